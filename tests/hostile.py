#!/usr/bin/env python3
"""The stress tests for tools of this kind, by the list in parallel_alternatives(7): `python3 tests/hostile.py`.

Outputs that could mix, noise on stderr, outputs larger than memory should hold, disks that are full or fill up, death without
warning, characters that shells and file names choke on, lines and numbers of tasks without a limit.  It takes minutes and
gigabytes of temporary space, so it is no part of the discovered tests; .ci/run runs it.
"""
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest
from unittest import mock

import support
from support import COMPILED, Case, only_linux, results, tasks

MEGABYTE = 1 << 20

# Each is a prompt, an id, a name and a directory in turn.
AWKWARD = (
    "My brother's 12\" *** record  (costs $$$).jpg", "-x", "--help", "-", "a  b\tc", " leading and trailing ", "two\nlines\n",
    "$(touch pwned) `touch pwned` ${HOME} $HOME !! ~ * ? [a] {b,c}", "; touch pwned & | > < \\ \\n %s %d", "'\"'\"' \\\" \\'",
    "../../../etc/passwd", "/", "..", "审查 auth 模块 — ✓ 👩‍💻 ñ é", "\u202egnp.exe\u202c", "\x01\x1b[31mred\x1b[0m\x07\x7f", "\r\nCR",
    "caf\u00e9 and cafe\u0301", "{}", "{1} {.} {/}", "%", "#", "=", "a" * 200,
)


def memory_kilobytes(pid, proportional):
    """What a process takes now: its share (PSS) or all of it that is in memory, 0 once it is gone."""
    name, field = ("smaps_rollup", b"Pss:") if proportional else ("status", b"VmHWM:")
    try:
        with open("/proc/%d/%s" % (pid, name), "rb") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(field)), 0)
    except OSError:
        return 0


class HostileCase(Case):
    def peaks(self, process):
        """Watches a background process to its end.  The peaks in MB: of the whole tree (PSS, sampled), of the process alone."""
        tree = own = 0
        while process.poll() is None:
            tree = max(tree, sum(memory_kilobytes(pid, True) for pid in support.processes_with(self.mark)))
            own = max(own, memory_kilobytes(process.pid, False))
            time.sleep(0.05)
        return tree / 1024.0, own / 1024.0

    def program(self, name, code):
        """Puts a Python program on the PATH."""
        support.write_program(os.path.join(self.bin, name), ("#!%s -IS\n%s" % (os.path.realpath(sys.executable), code)).encode())

    def fill(self, directory):
        """Writes until the disk is full.  The file that does it."""
        path = os.path.join(directory, "filler")
        with open(path, "wb", buffering=0) as file:
            for size in (4096, 1):
                try:
                    while True:
                        file.write(b"f" * size)
                except OSError:
                    continue
        return path


class OutputsDoNotMix(HostileCase):
    PROMPT = "flood 300000 a; stderr-flood 300000; flood 300000 c; stderr-flood 300000; flood 300000 e; say"
    ANSWER = "a" * 300000 + "c" * 300000 + "e" * 300000

    def test_each_answer_stays_together_in_text(self):
        done = self.clinvk("parallel", "-j", "10", input=tasks(*[self.PROMPT] * 30))
        self.assertEqual(done.returncode, 0)
        lines = [line for line in done.stdout.decode().splitlines() if line.startswith("[")]
        self.assertEqual(sorted(lines), sorted("[%d] %s" % (number, self.ANSWER) for number in range(1, 31)))
        self.assertEqual(done.stderr, b"")

    def test_each_answer_stays_together_in_json_lines(self):
        done = self.clinvk("parallel", "-j", "10", "--jsonl", "-q", input=tasks(*[self.PROMPT] * 30))
        answers = results(done)
        self.assertEqual(sorted(result["index"] for result in answers), list(range(30)))
        self.assertEqual({result["output"] for result in answers}, {self.ANSWER + "\n"})
        self.assertEqual(done.stderr, b"")

    def test_writers_on_one_pipe_do_not_cut_into_each_others_lines(self):
        """Small lines are one atomic write each, so that two runs can share a pipe."""
        command = '("$0" "$1" parallel --jsonl -q -f "$2" & "$0" "$1" parallel --jsonl -q -f "$2"; wait)'
        source = self.file("tasks.jsonl", tasks(*["say %s" % ("x" * 500)] * 60))
        done = self.run_program(["sh", "-c", command, sys.executable, support.PROGRAM, source])
        answers = results(done)
        self.assertEqual(sorted(result["index"] for result in answers), sorted(list(range(60)) * 2))

    def test_stderr_of_a_task_is_no_part_of_its_answer(self):
        done = self.clinvk("parallel", "--jsonl", "-q", input=tasks("say stdout; stderr noise; say stdout; stderr noise"))
        self.assertEqual(results(done)[0]["output"], "stdout\nstdout\n")
        self.assertNotIn(b"noise", done.stdout + done.stderr)

    def test_stderr_of_a_failed_task_is_its_error(self):
        done = self.clinvk("parallel", "--jsonl", "-q", input=tasks("say stdout; stderr the reason; exit 3"))
        result = results(done)[0]
        self.assertEqual((result["output"], result["error"], result["exit_code"]), ("stdout\n", "the reason", 3))


class MemoryIsBounded(HostileCase):
    @only_linux
    def test_twenty_outputs_of_10_mb_stay_on_disk_until_the_end(self):
        source = self.file("tasks.jsonl", tasks(*["flood 10000000"] * 20))
        with open(self.path("out"), "wb") as out:
            run = self.start("parallel", "-j", "3", "--json", "-f", source, stdout=out)
            tree, own = self.peaks(run)
        self.assertEqual(run.returncode, 0, run.error_output())
        with open(self.path("out"), "rb") as file:
            report = json.loads(file.read())
        self.assertEqual({len(result["output"]) for result in report["results"]}, {10000000})
        self.assertEqual(report["completed"], 20)
        self.assertLess(tree, 150, "MB, the whole tree")
        self.assertLess(own, 40, "MB, the parent")

    @only_linux
    def test_twelve_answers_of_10_mb_in_events_of_claude_are_not_all_in_memory_at_once(self):
        self.program("claude", """
import sys
if "--version" in sys.argv:
    print("2.1.332 (Claude Code)")
    sys.exit()
for line in (('{"type":"system","subtype":"init","session_id":"s"}', ""),
             ('{"type":"assistant","message":{"content":[{"type":"text","text":"', '"}]}}'),
             ('{"type":"result","subtype":"success","is_error":false,"session_id":"s","result":"', '"}')):
    sys.stdout.write(line[0])
    for _ in range(1000 if line[1] else 0):
        sys.stdout.write("0123456789" * 999 + "12345678\\\\n")
    sys.stdout.write(line[1] + "\\n")
""")
        source = self.file("tasks.jsonl", tasks(*["x"] * 12, backend="claude"))
        with open(self.path("out"), "wb") as out:
            run = self.start("parallel", "-j", "3", "--json", "-q", "-f", source, stdout=out)
            tree, own = self.peaks(run)
        self.assertEqual(run.returncode, 0, run.error_output())
        with open(self.path("out"), "rb") as file:
            report = json.loads(file.read())
        self.assertEqual({len(result["output"]) for result in report["results"]}, {9999000})
        self.assertLess(tree, 100, "MB, the whole tree")

    @only_linux
    def test_one_output_of_300_mb_takes_no_more_memory_than_one_of_a_megabyte(self):
        peaks = []
        for size in (1000000, 300000000):
            run = self.start("parallel", "--jsonl", "-f", self.file("tasks.jsonl", tasks("flood %d" % size)), stdout=subprocess.DEVNULL)
            peaks.append(self.peaks(run))
            self.assertEqual(run.returncode, 0, run.error_output())
        self.assertLess(peaks[1][0], peaks[0][0] + 20, "MB, the whole tree: %s" % peaks)
        self.assertLess(peaks[1][1], peaks[0][1] + 10, "MB, the parent: %s" % peaks)

    @only_linux
    def test_stderr_of_a_gigabyte_takes_no_memory_either(self):
        run = self.start("parallel", "--jsonl", "-f", self.file("tasks.jsonl", tasks("say ok; stderr-flood 1000000000; exit 1")),
                         stdout=subprocess.DEVNULL)
        tree, own = self.peaks(run)
        self.assertEqual(run.returncode, 1, run.error_output())
        self.assertLess(tree, 90, "MB, the whole tree")

    @only_linux
    def test_chain_that_passes_60_mb_on_takes_no_more_memory_than_one_of_a_megabyte(self):
        self.program("gen", "import sys\nsize = int(input())\nfor _ in range(size // 10000):\n    sys.stdout.write('x' * 10000)\n")
        env = {"PATH": self.bin + os.pathsep + os.defpath, "CLINVK_BACKENDS": json.dumps({"gen": {"command": ["gen"]}})}
        os.unlink(os.path.join(self.bin, "cat"))  # the fake program reads all of its prompt
        peaks = []
        for size in (1000000, 60000000):
            steps = [{"backend": "gen", "prompt": str(size)}] + [{"backend": "echo", "prompt": "{{previous}}"}] * 2
            with open(self.path("out"), "wb") as out:
                run = self.start("chain", "--jsonl", "-q", "-f", self.file("chain.json", {"steps": steps}), stdout=out, env=env)
                peaks.append(self.peaks(run))
            self.assertEqual(run.returncode, 0, run.error_output())
            with open(self.path("out"), "rb") as file:
                self.assertEqual([line.count(b"x" * 10000) for line in file], [size // 10000] * 3)
        self.assertLess(peaks[1][0], peaks[0][0] + 20, "MB, the whole tree: %s" % peaks)

    @only_linux
    def test_chain_answers_for_later_steps_are_not_kept_in_memory(self):
        peaks = []
        for size in (1, 4000000):
            steps = [{"backend": "echo", "prompt": "flood %d" % size, "name": "n%d" % number} for number in range(14)]
            steps += [{"backend": "echo", "prompt": "rest\n{{steps.n%d.output}}" % number} for number in range(14)]
            run = self.start("chain", "--json", "-f", self.file("chain.json", {"steps": steps}), stdout=subprocess.DEVNULL)
            peaks.append(self.peaks(run)[1])
            self.assertEqual(run.returncode, 0, run.error_output())
        self.assertLess(peaks[1], peaks[0] + 8, "MB, the parent: %s" % peaks)

    @only_linux
    def test_a_stream_of_any_size_is_read_with_the_memory_of_its_longest_line(self):
        """Many lines, with and without marks, and one that is longer than any that is looked at."""
        script = """if True:
            import os, sys
            import clinvk
            def peak():  # ru_maxrss would begin with that of the process which forked this one
                with open("/proc/self/status") as file:
                    return [int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:")][0]
            rows = [clinvk.BACKENDS[name].read for name in ("claude", "codex", "gemini", "echo")] + [
                clinvk.custom_backend("own", clinvk.Definition(("x",), "jsonl", ("result",), ("error",))).read]
            peaks = []
            for path in sys.argv[1:]:
                for read in rows:
                    capture = clinvk.Capture(os.open(path, os.O_RDONLY))
                    reply = read(capture, "", 0)
                    print(len(capture) >> 20, reply.output, reply.session_id)
                peaks.append(peak())
            print(peaks[1] - peaks[0])
        """
        small = b"".join(support.data_file(name + "-ok.out") for name in ("gemini", "codex", "claude"))
        tool = {"type": "user", "message": {"content": [{"type": "tool_result", "content": "y" * 3000}]}}
        marked = {"type": "tool_use", "parameters": {"content": "z" * 3000, "of": "result", "in": "error"}}
        filler = (json.dumps(tool) + "\n" + json.dumps(marked) + "\n").encode()
        paths = [self.path("small"), self.path("large")]
        for path, count, hole in ((paths[0], 0, 0), (paths[1], 5000, 100 << 20)):
            with open(path, "wb") as file:
                file.write(small)
                for _ in range(count // 100):
                    file.write(filler * 100)
                file.seek(hole, os.SEEK_CUR)
                file.write(b"\n" + small)
        self.assertGreater(os.path.getsize(paths[1]), 125 << 20)
        done = self.run_program([sys.executable, "-c", script, *paths], env={"PYTHONPATH": support.MODULES}, timeout=support.PATIENCE * 5)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        *lines, grown = done.stdout.decode().splitlines()
        for read, line in enumerate(lines):
            size, output = line.split(" ", 1)
            self.assertEqual(size, "0" if read < 5 else str(os.path.getsize(paths[1]) >> 20))
            self.assertTrue(output.startswith("None" if read % 5 == 3 else "MOCK-OK: hello from the mock model."), line)
        self.assertLess(int(grown), support.clinvk.MAX_LINE_BYTES + (16 << 20))

    @only_linux
    def test_twenty_thousand_tasks_take_little_more_memory_than_a_thousand(self):
        peaks = []
        for count in (1000, 20000):
            source = self.file("tasks.jsonl", b"".join(
                b'{"backend":"echo","prompt":"task %d","id":"number-%d","name":"n"}\n' % (number, number) for number in range(count)))
            with open(self.path("out"), "wb") as out:
                run = self.start("parallel", "--dry-run", "-f", source, stdout=out)
                peaks.append(self.peaks(run)[1])
            self.assertEqual(run.returncode, 0, run.error_output())
            with open(self.path("out"), "rb") as file:
                lines = file.read().splitlines()
            self.assertEqual(len(lines), count)
            self.assertIn(b"'task %d'" % (count - 1), lines[-1])
        self.assertLess(peaks[1], peaks[0] + 5, "MB, the parent: %s" % peaks)

    @only_linux
    def test_report_of_ten_thousand_results_takes_little_more_memory_than_that_of_a_thousand(self):
        line = '{"index":%d,"backend":"claude","status":"ok","exit_code":0,"output":"%s","attempts":1,"start_time":"%s",' \
               '"duration_seconds":1.0,"task_id":"id %d","key":"k%d","label":"label %d"}\n'
        for option in ("--json", "--color=never"):
            peaks = []
            for count in (1000, 10000):
                path = self.file("results.jsonl", "".join(
                    line % (index, "answer " * 100, support.clinvk.utc(index // 8), index, index, index) for index in range(count)))
                with open(self.path("out"), "wb") as out:
                    run = self.start("report", option, path, stdout=out)
                    peaks.append(self.peaks(run)[1])
                self.assertEqual(run.returncode, 0, run.error_output())
            self.assertLess(peaks[1], peaks[0] + 5, "MB: %s %s" % (option, peaks))  # the answers have 7

    def test_many_words_are_no_more_work_than_few(self):
        """All the bytes arrive; how long it takes is measured elsewhere."""
        self.program("cat", """
import os
line = " ".join(map(str, range(1, 1001))).encode() + b"\\n"
block = line * (2000000 // len(line) + 1)
os.write(1, block[:2000000])
""")
        done = self.clinvk("parallel", "-j", "4", input=tasks(*["go"] * 4))
        self.assertEqual(done.returncode, 0)
        words = done.stdout.partition(b"\nResults\n")[0].split()
        line = " ".join(map(str, range(1, 1001))) + "\n"
        expected = (line * (2000000 // len(line) + 1))[:2000000].count(" ") + 2000000 // len(line)
        self.assertGreaterEqual(len(words), 4 * expected)


class LinesWithoutLimit(HostileCase):
    @only_linux
    def test_a_line_of_output_may_be_longer_than_4_gb(self):
        self.program("cat", "import os\nos.ftruncate(1, 4300000000)\nos.lseek(1, 0, 2)\nos.write(1, b'the end\\n')\n")
        run = self.start("parallel", "--max-output", "5G", "-f", self.file("tasks.jsonl", tasks("go")))
        import fcntl
        fcntl.fcntl(run.stdout, 1031, MEGABYTE)  # F_SETPIPE_SZ
        size, end, buffer = 0, b"", bytearray(MEGABYTE)
        while True:
            count = os.readv(run.stdout.fileno(), [buffer])
            if not count:
                break
            size += count
            end = (end + bytes(buffer[:count]))[-2000:]
        run.wait()
        self.assertEqual(run.returncode, 0, run.error_output())
        answer_end, _, summary = end.partition(b"the end\n")
        self.assertEqual(answer_end.strip(b"\0"), b"")
        self.assertGreater(size - len(summary), 4300000000)
        self.assertIn(b"Total: 1 task, 1 completed", summary)

    def test_a_line_of_input_may_have_30_mb(self):
        prompt = ("foo." + "x" * 29999996)
        line = json.dumps({"backend": "echo", "prompt": prompt, "id": "long"}).encode() + b"\n" + tasks("short")
        plain = {"PATH": os.defpath}
        expected = hashlib.sha256(prompt.encode()).digest()
        for form in ("stdin", "file"):
            with self.subTest(form):
                source = {"input": line} if form == "stdin" else {}
                args = ["-f", self.file("tasks.jsonl", line)] if form == "file" else []
                done = self.clinvk("parallel", "--jsonl", "-q", *args, env=plain, **source)
                self.assertEqual(done.returncode, 0, done.stderr[-1000:])
                answers = {result["index"]: result for result in results(done)}
                self.assertEqual(hashlib.sha256(answers[0]["output"].encode()).digest(), expected)
                self.assertEqual(answers[1]["output"], "short")

    def test_a_single_task_is_enough_for_many_jobs(self):
        done = self.clinvk("parallel", "-j", "64", "--json", input=tasks("say one"))
        report = json.loads(done.stdout)
        self.assertEqual((report["total_tasks"], report["results"][0]["output"]), (1, "one\n"))


class SinglePrompts(HostileCase):
    # Runs a program; the size of the largest of it and its children goes to stderr, in KiB.
    MEASURED = ("import os, sys; pid = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:]); "
                "print(os.wait4(pid, 0)[2].ru_maxrss, file=sys.stderr)")

    def test_prompt_with_a_large_answer_takes_little_memory(self):
        size = 150 << 20
        for form in ("text", "stream-json", "json"):
            with self.subTest(form=form):
                process = self.start_program([
                    "sh", "-c", '"$@" | wc -c', "sh", sys.executable, "-c", self.MEASURED, sys.executable, COMPILED,
                    "-b", "echo", "-o", form, "flood %d" % size])
                self.assertGreater(int(process.line()), size)
                self.assertEqual(process.finish().returncode, 0)
                self.assertLess(int(process.error_output()), 60 << 10)


class FullDisks(HostileCase):
    MESSAGE = b"clinvk: error: cannot write to stdout: No space left on device"

    def assert_told(self, done, count, message=MESSAGE):
        """It failed for its output, says so, and shows on stderr what became of every task."""
        errors = done.stderr.decode("utf-8", "replace")
        self.assertNotIn("Traceback", errors)
        self.assertEqual(done.returncode, 74, errors)
        self.assertIn(message.decode(), errors)
        rows = re.findall(r"^\d+ ", errors, re.M)
        folded = re.findall(r"CANCELED +(\d+) tasks? never started", errors)
        self.assertEqual(len(set(rows)) + sum(map(int, folded)), count, errors)
        self.assertIn("Total: %d tasks" % count, errors)

    def test_a_full_stdout_ends_the_run_and_shows_every_tasks_fate(self):
        source = self.file("tasks.jsonl", tasks(*["say answer"] * 5))
        for form in ([], ["--jsonl"], ["--json"], ["--jsonl", "--output-dir", self.path("kept")]):
            with self.subTest(form), open("/dev/full", "wb") as full:
                done = self.clinvk("parallel", "-j", "2", *form, "-f", source, stdout=full)
                self.assert_told(done, 5)

    def test_a_full_stdout_is_noticed_by_what_prints_little(self):
        for args in (["parallel", "-q"], ["parallel", "--dry-run"], ["--version"], ["parallel", "--help"], ["--help"]):
            with self.subTest(args), open("/dev/full", "wb") as full:
                done = self.clinvk(*args, input=tasks("say answer"), stdout=full)
                self.assertEqual(done.returncode, 74, done.stderr)
                self.assertIn(b"No space left on device", done.stderr)
                self.assertNotIn(b"Traceback", done.stderr)

    def test_a_full_stderr_does_not_spoil_the_results(self):
        with open("/dev/full", "wb") as full:
            done = self.clinvk("parallel", "--jsonl", input=tasks("say one", "exit 3"), stderr=full)
        self.assertEqual(sorted(result["status"] for result in results(done)), ["failed", "ok"])
        self.assertIn(done.returncode, (1, 74))

    def test_a_file_on_a_full_disk_ends_with_a_whole_line(self):
        disk = self.small_disk(64)
        for size, count in ((10000, 12), (300, 250), (70000, 2)):
            with self.subTest(size):
                source = self.file("tasks.jsonl", tasks(*["flood %d" % size] * count))
                path = os.path.join(disk, "out")
                with open(path, "wb") as out:
                    out.write(b'{"earlier":"run"}\n')
                with open(path, "ab") as out:
                    done = self.clinvk("parallel", "-j", "3", "--jsonl", "-f", source, stdout=out)
                self.assert_told(done, count)
                with open(path, "rb") as file:
                    written = file.read()
                self.assertTrue(written.endswith(b"\n"), written[-100:])
                kept = [json.loads(line) for line in written.splitlines()]
                self.assertEqual(kept[0], {"earlier": "run"})
                self.assertTrue(all(len(result["output"]) == size for result in kept[1:]))
                os.unlink(path)

    def test_a_file_on_a_full_disk_holds_no_part_of_a_line_of_megabytes(self):
        disk = self.small_disk(3000)
        source = self.file("tasks.jsonl", tasks("say small", "flood 5000000", "say small"))
        for mode in ("wb", "ab"):
            with self.subTest(mode):
                path = os.path.join(disk, "out")
                with open(path, mode) as out:
                    done = self.clinvk("parallel", "-j", "1", "--jsonl", "-f", source, stdout=out)
                self.assert_told(done, 3)
                with open(path, "rb") as file:
                    lines = file.read().split(b"\n")
                self.assertEqual(lines[-1], b"")
                self.assertEqual([json.loads(line)["output"] for line in lines[:-1]], ["small\n"])
                os.unlink(path)

    def test_a_report_that_does_not_fit_is_told_of(self):
        path = os.path.join(self.small_disk(256), "out")
        source = self.file("tasks.jsonl", tasks(*["flood 100000"] * 5))
        with open(path, "wb") as out:
            done = self.clinvk("parallel", "-j", "3", "--json", "-f", source, stdout=out)
        self.assert_told(done, 5)

    def test_a_results_file_on_a_full_disk_loses_nothing_and_counts_nothing_that_is_not_in_it(self):
        path = os.path.join(self.small_disk(256), "results.jsonl")
        source = self.file("tasks.jsonl", tasks(*["append log %d; flood 10000 %s" % (number, "abc"[number % 3]) for number in range(60)]))
        done = self.clinvk("parallel", "-j", "4", "--jsonl", "--results", path, "-f", source)
        self.assert_told(done, 60, b"cannot write results to %s: No space left on device" % path.encode())
        with open(path, "rb") as file:
            data = file.read()
        kept = [json.loads(line) for line in data.splitlines()]
        self.assertTrue(data.endswith(b"\n") and 5 < len(kept) < 60)
        shown = results(done)
        self.assertEqual(sorted(result["index"] for result in shown), list(range(60)))
        self.assertEqual(sorted(line["index"] for line in kept if line["status"] == "ok"),
                         sorted(result["index"] for result in shown if result["status"] == "ok"))
        self.assertTrue(os.path.exists(path + ".running"))
        roomy = self.path("results.jsonl")
        for end in ("", ".running"):
            shutil.copy(path + end, roomy + end)
        os.unlink(self.path("log"))
        again = self.clinvk("parallel", "-j", "4", "-q", "--results", roomy, "--resume", "-f", source)
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertIn(b"60 completed (%d from an earlier run)" % len(kept), again.stdout)
        self.assertRegex(again.stderr, b"running when the last run ended; (?:it runs|they run) again: append log")
        with open(self.path("log")) as file:
            self.assertEqual(len(file.readlines()), 60 - len(kept))

    def test_an_output_directory_on_a_full_disk_is_told_of_and_stdout_goes_on(self):
        disk = self.small_disk(256)
        kept = os.path.join(disk, "kept")
        done = self.clinvk("parallel", "-j", "1", "--jsonl", "-q", "--output-dir", kept, input=tasks(*["flood 100000"] * 5))
        self.assertEqual(done.returncode, 74, done.stderr)
        self.assertIn(b"No space left on device", done.stderr)
        self.assertEqual(sorted(result["index"] for result in results(done)), list(range(5)))
        for name in os.listdir(kept):
            self.assertTrue(name.endswith(".json"), name)
            with open(os.path.join(kept, name), "rb") as file:
                json.loads(file.read())

    def test_a_tmpdir_without_room_is_told_of(self):
        disk = self.small_disk(64)
        self.fill(disk)
        for form in ([], ["--jsonl"], ["--json"]):
            with self.subTest(form):
                done = self.clinvk("parallel", "-j", "2", *form, input=tasks(*["say answer"] * 4), env={"TMPDIR": disk})
                self.assertNotIn(b"Traceback", done.stdout + done.stderr)
                self.assertIn(b"No space left on device", done.stdout + done.stderr)
                self.assertIn(done.returncode, (1, 74), done.stderr)
                if done.returncode == 1 and form == ["--jsonl"]:
                    self.assertEqual(sorted(result["index"] for result in results(done)), list(range(4)))
                self.assertEqual(os.listdir(disk), ["filler"])

    def test_a_tmpdir_without_inodes_is_told_of(self):
        disk = self.small_disk(64)
        subprocess.run(["mount", "-o", "remount,nr_inodes=2", disk], check=True)
        with open(os.path.join(disk, "last"), "wb"):
            pass
        done = self.clinvk("parallel", "--jsonl", input=tasks(*["say answer"] * 4), env={"TMPDIR": disk})
        self.assertNotIn(b"Traceback", done.stdout + done.stderr)
        self.assertIn(b"No space left on device", done.stdout + done.stderr)
        self.assertIn(done.returncode, (1, 74))

    def test_a_tmpdir_that_fills_up_fails_the_tasks_it_hits_and_no_others(self):
        disk = self.small_disk(2000)
        for form in ([], ["--jsonl"], ["--json"]):
            with self.subTest(form):
                prompts = ["say before", "flood 9000000", "say after", "flood 9000000", "say last"]
                done = self.clinvk("parallel", "-j", "1", *form, input=tasks(*prompts), env={"TMPDIR": disk})
                self.assertNotIn(b"Traceback (most recent call last):\n  File \"%s" % support.PROGRAM.encode(), done.stdout + done.stderr)
                self.assertEqual(done.returncode, 1, done.stderr)
                if form:
                    answers = json.loads(done.stdout)["results"] if form == ["--json"] else results(done)
                    self.assertEqual([result["status"] for result in answers], ["ok", "failed", "ok", "failed", "ok"])
                    self.assertTrue(all(result.get("error") for result in answers if result["status"] == "failed"))
                self.assertEqual(os.listdir(disk), [])

    def test_an_answer_that_did_not_fit_on_the_disk_is_no_success(self):
        """A program that does not look whether it could write, as many do not, ends with 0 all the same."""
        disk = self.small_disk(2000)
        self.program("cat", """
import os
for _ in range(400):
    try:
        os.write(1, b"x" * 10000)
    except OSError:
        pass
""")
        done = self.clinvk("parallel", "--jsonl", "-q", input=tasks("go"), env={"TMPDIR": disk})
        result = results(done)[0]
        self.assertEqual(result["status"], "failed", result.get("error"))
        self.assertIn("No space left on device", result["error"])

    def test_a_disk_that_other_programs_fill_meanwhile_loses_no_task_silently(self):
        disk = self.small_disk(1000)
        run = self.start("parallel", "-j", "2", "--jsonl", "-q", env={"TMPDIR": disk}, stdin=subprocess.PIPE)
        run.stdin.write(tasks("say before", "touch %s; wait-for %s; say during" % (self.path("runs"), self.path("go"))))
        self.wait_for_file(self.path("runs"))
        self.fill(disk)
        with open(self.path("go"), "wb"):
            pass
        run.stdin.write(tasks("flood 5000", "say %s" % ("y" * 5000), "say small"))
        done = run.finish()
        answers = results(done)
        self.assertIn(done.returncode, (1, 74), done.stderr)
        self.assertEqual(sorted(result["index"] for result in answers), list(range(5)), done.stderr)
        for result in answers:
            whole = {0: "before\n", 1: "during\n", 2: "x" * 5000, 3: "y" * 5000 + "\n", 4: "small\n"}[result["index"]]
            self.assertTrue(result["output"] == whole if result["status"] == "ok" else result["error"], result)


class NothingIsLeft(HostileCase):
    @only_linux
    def test_a_killed_run_leaves_no_file_and_no_process(self):
        with_children = "fork-child; leave-group; keep-pipe; write-tmp; touch %s.$; sleep 200"
        source = self.file("tasks.jsonl", tasks(*[with_children.replace("$", str(number)) % self.path("runs") for number in range(6)]))
        for form in ("--json", "--jsonl"):
            with self.subTest(form):
                run = self.start("parallel", "-j", "3", form, "-f", source)
                for number in range(3):
                    self.wait_for_file(self.path("runs.%d" % number))
                os.kill(run.pid, signal.SIGKILL)
                run.wait()
                self.wait_until_nothing_runs()
                support.wait_until(lambda: not os.listdir(self.tmp), lambda: "TMPDIR is empty: %s" % os.listdir(self.tmp))
                for number in range(3):
                    os.unlink(self.path("runs.%d" % number))

    @only_linux
    def test_a_run_that_is_killed_with_large_outputs_leaves_no_file(self):
        source = self.file("tasks.jsonl", tasks("flood 50000000", "flood 50000000; touch %s; sleep 200" % self.path("runs")))
        run = self.start("parallel", "--json", "-f", source)
        self.wait_for_file(self.path("runs"))
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        self.wait_until_nothing_runs()
        support.wait_until(lambda: not os.listdir(self.tmp), lambda: "TMPDIR is empty: %s" % os.listdir(self.tmp))

    @only_linux
    @unittest.skipUnless(shutil.which("busybox"), "busybox is not installed here")
    def test_guard_with_the_tools_of_busybox_finds_what_runs(self):
        tools, mark = self.path("tools"), "GUARDED_%d" % os.getpid()
        os.mkdir(tools)
        for name in ("sh", "grep", "chmod", "rm"):
            os.symlink(shutil.which("busybox"), os.path.join(tools, name))

        def start(argv, environment, workdir, files):
            return started(("busybox", "sh", *argv[1:]), dict(environment, PATH=tools), workdir, files)

        started = support.clinvk.start_session
        left = subprocess.Popen(["sleep", "300"], env=dict(self.environment, **{mark: "0"}))
        reader, writer = os.pipe()
        with mock.patch.object(support.clinvk, "start_session", start):
            guard = support.clinvk.start_guard(reader, mark, self.path("run"))
        for file in (reader, writer):
            os.close(file)
        os.waitpid(guard, 0)
        self.assertEqual(left.poll(), -signal.SIGKILL)


class AwkwardCharacters(HostileCase):
    def test_prompts_arrive_as_they_are(self):
        done = self.clinvk("parallel", "--json", input=tasks(*AWKWARD), env={"PATH": os.defpath})
        report = json.loads(done.stdout)
        self.assertEqual([result["output"] for result in report["results"]], list(AWKWARD))
        self.assertEqual(os.listdir(self.home), [])
        self.assertFalse(os.path.exists(self.path("pwned")))

    def test_ids_and_names_come_back_as_they_are_and_stay_in_the_output_directory(self):
        lines = b"".join(tasks("say %d" % number, id=word, name=word, tags=[word], meta={word: word})
                         for number, word in enumerate(AWKWARD))
        before = set(os.listdir(self.directory))
        done = self.clinvk("parallel", "--json", "--output-dir", self.path("kept"), input=lines)
        report = json.loads(done.stdout)
        for field in ("task_id", "task_name"):
            self.assertEqual([result[field] for result in report["results"]], list(AWKWARD))
        self.assertEqual([result["meta"] for result in report["results"]], [{word: word} for word in AWKWARD])
        names = os.listdir(self.path("kept"))
        self.assertEqual(len(names), len(AWKWARD) + 1)
        self.assertEqual(sorted(name[:3] for name in names), sorted(["%03d" % number for number in range(1, len(AWKWARD) + 1)] + ["sum"]))
        self.assertTrue(all(name.isascii() and name.isprintable() and not set(name) & set(" /\\'\"$`*?") for name in names), names)
        self.assertEqual(set(os.listdir(self.directory)) - before, {"kept"})

    def test_working_directories_may_be_called_anything(self):
        lines, wanted = b"", []
        for word in AWKWARD:
            if "/" in word or word in ("..", "-"):
                continue
            path = os.path.join(self.path("work"), word)
            os.makedirs(path)
            wanted.append(path)
            lines += tasks("cwd; env PWD", workdir=path)
        done = self.clinvk("parallel", "--json", input=lines)
        report = json.loads(done.stdout)
        self.assertEqual([result["output"] for result in report["results"]], ["%s\n%s\n" % (path, path) for path in wanted])

    def test_what_a_dry_run_prints_does_in_a_shell_what_the_task_would_do(self):
        bash = shutil.which("bash")
        if not bash:
            self.skipTest("needs bash")
        lines = b"".join(tasks(word) for word in AWKWARD)
        printed = self.clinvk("parallel", "--dry-run", input=lines, env={"PATH": os.defpath}).stdout.decode().splitlines()
        self.assertEqual(len(printed), len(AWKWARD))
        for word, line in zip(AWKWARD, printed):
            with self.subTest(word):
                done = self.run_program([bash, "-c", line], env={"PATH": os.defpath})
                self.assertEqual(done.stdout.decode(), word + "\n")
        self.assertFalse(os.path.exists(self.path("pwned")))

    def test_no_control_character_of_a_task_reaches_the_table(self):
        done = self.clinvk("parallel", "--jsonl", input=b"".join(tasks("say x", name="n " + word) for word in AWKWARD))
        table = done.stderr.decode()
        self.assertEqual([c for c in table if c < " " and c != "\n" or c == "\x7f" or c == "\u202e"], [])


class Pipelines(HostileCase):
    def setUp(self):
        super().setUp()
        self.file("clinvk", "#!/bin/sh\nexec '%s' '%s' \"$@\"\n" % (sys.executable, support.PROGRAM))
        os.rename(self.path("clinvk"), os.path.join(self.bin, "clinvk"))
        os.chmod(os.path.join(self.bin, "clinvk"), 0o755)

    def pipeline(self, text):
        for program in ("bash", "jq"):
            if not shutil.which(program):
                self.skipTest("needs " + program)
        return self.run_program(["bash", "-o", "pipefail", "-c", text])

    def test_a_pipeline_of_two_runs_and_jq_around_them(self):
        done = self.pipeline("""
            seq 40 | jq -c '{backend: "echo", prompt: "say answer \\(.)", id: "n\\(.)"}' | clinvk parallel -j 4 --jsonl -q |
            jq '{backend: "echo", id: .task_id, prompt: ("say again, " + .output)}' | clinvk parallel -j 4 --json -q |
            jq -r '.results[] | select(.status == "ok") | .task_id + ": " + .output' | sort -u | grep -c 'again, answer'""")
        self.assertEqual((done.returncode, done.stdout.strip()), (0, b"40"), done.stderr)

    def test_composed_commands_see_the_exit_status(self):
        done = self.pipeline("""
            task='{"backend": "echo", "prompt": "say foo"}'
            clinvk parallel -q <<< "$task" > /dev/null && echo foo; echo "$task" | clinvk parallel --jsonl -q | jq -r .output
            if ! clinvk parallel -q > /dev/null <<< '{"backend": "echo", "prompt": "exit 3"}'; then echo failed; fi""")
        self.assertEqual(done.stdout, b"foo\nfoo\n\nfailed\n", done.stderr)

    def test_a_reader_that_has_enough_ends_the_run(self):
        done = self.pipeline("""
            jq -nc 'range(100000) | {backend: "echo", prompt: "say \\(.)"}' | clinvk parallel -j 2 --jsonl -q | head -n 3 | jq -s length
            echo "${PIPESTATUS[@]}" """)
        self.assertEqual(done.stdout.splitlines()[0], b"3")
        self.assertEqual(done.stdout.splitlines()[1].split()[1:], [b"141", b"0", b"0"], done.stderr)


if __name__ == "__main__":
    unittest.main()
