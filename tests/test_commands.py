"""Section 10, the commands: `clinvk parallel` as a black box, run as a program with fake AI programs.

What goes to stdout and what to stderr in every form, on pipes, files and terminals; what a dry run prints and an output directory
keeps; how tasks come in, in which order and how many at a time they run; and what a backend is given and what it is spared.
"""
import fcntl
import json
import os
import pty
import re
import select
import shutil
import socket
import stat
import struct
import subprocess
import sys
import termios
import time
import tty
import unicodedata
import unittest

from support import PATIENCE, PROGRAM, PROGRAMS, ROOT, TESTS, Case, is_running, only_linux, results, tasks, write_program

STATUSES = ("ok", "failed", "timeout", "canceled", "lost", "skipped")
ERROR_KINDS = ("rate_limit quota overloaded network auth permission invalid context_length max_turns budget timeout signal not_found "
               "no_output backend worker_lost canceled").split()
USAGE = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_output_tokens", "total_tokens")
REQUIRED = {"index": int, "backend": str, "status": str, "exit_code": int, "output": str, "attempts": int, "start_time": str,
            "end_time": str, "duration_seconds": (int, float)}
OPTIONAL = {"task_id": str, "task_name": str, "tags": list, "meta": dict, "model": str, "error": str, "error_kind": str,
            "retry_after_seconds": (int, float), "warnings": list, "session_id": str, "usage": dict, "cost_usd": (int, float),
            "num_turns": int}
TOTALS = {"total_tasks": int, "completed": int, "failed": int, "canceled": int, "skipped": int,
          "total_duration_seconds": (int, float), "start_time": str, "end_time": str, "results": list}
INSTANT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
ESCAPE = b"\x1b"


def normal(data):
    """Text with every duration in it `0.00s`; a padded one keeps its width."""
    return re.sub(r"[0-9]+\.[0-9]{2}s( *)", lambda found: "0.00s".ljust(len(found.group()) if found.group(1) else 5),
                  data.decode("utf-8", "surrogateescape"))


def columns(text):
    """How many columns of a terminal a text takes."""
    return sum(0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
               for character in text)


class Commands(Case):
    def command(self, *arguments):
        return [sys.executable, "-W", "error", PROGRAM, "parallel", *arguments]

    def parallel(self, *arguments, input=b"", **options):
        """Runs `clinvk parallel`; `input` is on its stdin, a pipe."""
        return self.run_program(self.command(*arguments), input, **options)

    def start_parallel(self, *arguments, **options):
        return self.start_program(self.command(*arguments), **options)

    def touch(self, name):
        self.file(name + ".new", "")
        os.rename(self.path(name + ".new"), self.path(name))

    def has(self, name):
        return os.path.exists(self.path(name))

    def log(self, name="log"):
        """The lines that `append` instructions left."""
        if not self.has(name):
            return []
        with open(self.path(name)) as file:
            return file.read().split("\n")[:-1]

    def install_answerers(self, *names):
        """Programs whose answer is their prompt, whatever it says."""
        with open(os.path.join(TESTS, "bin", "fakeai"), "rb") as file:
            body = file.read().partition(b"\n")[2]
        taught = body.replace(b"program.run(read_prompt())", b'program.run(b"rest\\n" + read_prompt())')
        self.assertNotEqual(taught, body)
        for name in names:
            write_program(os.path.join(self.bin, name), b"#!%s -IS\n%s" % (os.fsencode(os.path.realpath(sys.executable)), taught))

    def assert_refused(self, completed, *messages):
        """It ended as one that was given bad input: nothing on stdout, one line on stderr, which has these words in it."""
        self.assertEqual((completed.returncode, completed.stdout), (2, b""), completed.stderr)
        errors = completed.stderr.decode()
        self.assertRegex(errors, r"\Aclinvk: error: [^\n]+\n\Z")
        for message in messages:
            self.assertIn(message, errors)

    def assert_result(self, result):
        """It is a result as the contract says: its fields, their types, and what must be true of all."""
        self.assertEqual([name for name in REQUIRED if name not in result], [])
        for name, value in result.items():
            expected = REQUIRED.get(name) or OPTIONAL.get(name)
            self.assertTrue(expected, "an unknown field: " + name)
            self.assertIsInstance(value, expected, name)
            self.assertNotIsInstance(value, bool, name)
            if name in OPTIONAL and name not in ("retry_after_seconds", "cost_usd", "num_turns"):
                self.assertTrue(value, "%s is empty and should be left out" % name)
        self.assertIn(result["status"], STATUSES)
        self.assertEqual("error" in result, result["status"] not in ("ok", "skipped"))
        self.assertEqual("error" in result, "error_kind" in result)
        self.assertIn(result.get("error_kind", "backend"), ERROR_KINDS)
        self.assertEqual(result["exit_code"] == 0, result["status"] in ("ok", "skipped"))
        for name in ("start_time", "end_time"):
            self.assertTrue(INSTANT.fullmatch(result[name]), result[name])
        self.assertGreaterEqual(result["end_time"], result["start_time"])
        self.assertGreaterEqual(result["duration_seconds"], 0)
        for name in ("tags", "warnings"):
            self.assertTrue(all(isinstance(item, str) for item in result.get(name, ())), name)
        for name, count in result.get("usage", {}).items():
            self.assertIn(name, USAGE)
            self.assertIsInstance(count, int)

    def lines_of(self, completed):
        """The results in the JSON Lines of a run, by index; each line is checked on its own."""
        self.assertTrue(completed.stdout.endswith(b"\n") or not completed.stdout)
        found = {}
        for line in completed.stdout.split(b"\n")[:-1]:
            result = json.loads(line.decode("utf-8"))
            self.assert_result(result)
            self.assertNotIn(result["index"], found)
            found[result["index"]] = result
        return [found[index] for index in sorted(found)]

    def report_of(self, completed):
        """The object that `--json` printed."""
        report = json.loads(completed.stdout.decode("utf-8"))
        for name, expected in TOTALS.items():
            self.assertIsInstance(report[name], expected, name)
        self.assertEqual(set(report) - set(TOTALS) - {"usage", "cost_usd"}, set())
        self.assertEqual(report["completed"] + report["failed"] + report["canceled"] + report["skipped"], report["total_tasks"])
        self.assertEqual([result["index"] for result in report["results"]], list(range(report["total_tasks"])))
        for result in report["results"]:
            self.assert_result(result)
        for name in ("start_time", "end_time"):
            self.assertTrue(INSTANT.fullmatch(report[name]))
        self.assertGreaterEqual(report["end_time"], report["start_time"])
        return report

    def statuses(self, completed):
        return [result["status"] for result in self.lines_of(completed)]


class TextForm(Commands):
    BATCH = {"tasks": [
        {"backend": "claude", "name": "审查 auth 模块", "prompt": "wait-for second-was-read; say fine"},
        {"backend": "codex", "prompt": "fail exceeded retry limit, last status: 429 Too Many Requests"},
        {"backend": "echo", "prompt": "say two\\nlines\nstderr a second line of the prompt"}]}

    def test_answers_are_printed_as_tasks_end_and_then_the_table_in_order(self):
        process = self.start_parallel("--file", self.file("tasks.json", self.BATCH))
        self.assertEqual([process.line(), process.line()], [b"Running 3 tasks (max 3 parallel)...", b""])
        self.assertEqual([process.line(), process.line()], [b"[3] two", b"lines"])
        self.touch("second-was-read")
        completed = process.finish()
        self.assertEqual(normal(completed.stdout), """\
[1] fine

Results
============================================================
#    BACKEND      STATUS     DURATION   TASK
------------------------------------------------------------
1    claude       OK         0.00s      审查 auth 模块
2    codex        FAILED     0.00s      fail exceeded retry limit, last stat...
     error: exceeded retry limit, last status: 429 Too Many Requests
3    echo         OK         0.00s      say two\\nlines
------------------------------------------------------------
Total: 3 tasks, 2 completed, 1 failed, 157 tokens, $0.2500 (0.00s)
""")
        self.assertEqual((completed.returncode, completed.stderr), (1, b""))

    def test_the_header_says_how_many_run_at_a_time_and_whether_it_fails_fast(self):
        one = self.file("one.json", {"tasks": [{"backend": "echo", "prompt": "say x"}], "max_parallel": 2, "fail_fast": True})
        for arguments, options, header in (
                (["-f", one], {}, "Running 1 tasks (max 2 parallel, fail-fast)..."),
                (["-f", one, "-j", "5"], {}, "Running 1 tasks (max 5 parallel, fail-fast)..."),
                (["--fail-fast"], {"input": tasks("say x")}, "Running tasks (max 3 parallel, fail-fast)...")):
            with self.subTest(header=header):
                completed = self.parallel(*arguments, **options)
                self.assertEqual(completed.stdout.decode().split("\n")[:3], [header, "", "[1] x"])
                self.assertEqual((completed.returncode, completed.stderr), (0, b""))

    def test_an_answer_is_given_as_it_is_and_always_ends_its_line(self):
        self.install_answerers("cat")
        for answer in ("x", "x\n", "two\n\n", "\ttab, \x07bell and \x1b[31m"):
            with self.subTest(answer=answer):
                completed = self.parallel("-j", "1", input=tasks(answer))
                start = b"Running tasks (max 1 parallel)...\n\n[1] " + answer.encode() + (b"" if answer.endswith("\n") else b"\n")
                self.assertEqual(completed.stdout[:len(start) + 9], start + b"\nResults\n")

    def test_a_task_without_an_answer_shows_in_the_table_alone(self):
        completed = self.parallel(input=tasks("exit 3"))
        self.assertEqual(normal(completed.stdout).split("\n")[1:4], ["", "", "Results"])
        self.assertIn("\n1    echo         FAILED     0.00s      exit 3\n     error: exit status 3\n", normal(completed.stdout))

    def test_quiet_prints_the_last_line_alone(self):
        completed = self.parallel("--quiet", input=tasks("say x", "exit 3", "say y"))
        self.assertEqual((completed.returncode, normal(completed.stdout), completed.stderr),
                         (1, "Total: 3 tasks, 2 completed, 1 failed (0.00s)\n", b""))

    def test_only_what_there_is_is_added_to_the_total(self):
        batch = tasks("say x") + tasks("say y", dry_run=True) + tasks("exit 1", "sleep 300")
        completed = self.parallel("-q", "-j", "1", "--fail-fast", input=batch)
        self.assertEqual(normal(completed.stdout), "Total: 4 tasks, 1 completed, 1 failed, 1 canceled, 1 skipped (0.00s)\n")

    def test_rows_do_not_break_whatever_names_and_errors_hold(self):
        completed = self.parallel(input=tasks("fail a\\nb\x1b[31m\t c", name="one\ttwo\nthree\x1b]0;x\x07"))
        self.assertIn("\n1    echo         FAILED     0.00s      one two\n     error: a\\nb^[[31m c\n---", normal(completed.stdout))


class JsonForms(Commands):
    BATCH = (tasks("wait-for third-was-read; say one", id="first", name="name", tags=["t", "u"], meta={"n": [1, None, {"x": 1.5}]})
             + tasks("exit 3") + tasks("say three", model="m"))

    def test_each_line_is_a_whole_result_and_comes_as_its_task_ends(self):
        process = self.start_parallel("--jsonl", "-q", "-f", self.file("batch", self.BATCH))
        early = [process.line(), process.line()]
        self.assertEqual({json.loads(line)["index"] for line in early}, {1, 2})
        self.touch("third-was-read")
        completed = process.finish()
        completed.stdout = b"".join(line + b"\n" for line in early) + completed.stdout
        first, second, third = self.lines_of(completed)
        self.assertEqual([first[name] for name in ("task_id", "task_name", "tags", "meta", "backend", "status", "exit_code", "output")],
                         ["first", "name", ["t", "u"], {"n": [1, None, {"x": 1.5}]}, "echo", "ok", 0, "one\n"])
        self.assertEqual([second[name] for name in ("status", "exit_code", "output", "error", "error_kind", "attempts")],
                         ["failed", 3, "", "exit status 3", "backend", 1])
        self.assertEqual((third["model"], third["warnings"]), ("m", ["echo has no model; it was not applied"]))
        self.assertFalse(set(OPTIONAL) & set(third) - {"model", "warnings"})

    def test_with_json_lines_the_table_goes_to_stderr(self):
        completed = self.parallel("--jsonl", input=tasks("say x"))
        self.assertEqual(len(completed.stdout.splitlines()), 1)
        self.assertEqual(normal(completed.stderr), """
Results
============================================================
#    BACKEND      STATUS     DURATION   TASK
------------------------------------------------------------
1    echo         OK         0.00s      say x
------------------------------------------------------------
Total: 1 tasks, 1 completed, 0 failed (0.00s)
""")

    def test_quiet_json_lines_are_all_there_is(self):
        completed = self.parallel("--jsonl", "-q", input=tasks("say x", "exit 1"))
        self.assertEqual((len(self.lines_of(completed)), completed.stderr, completed.returncode), (2, b"", 1))

    def test_a_line_is_one_write(self):
        # a socket of packets keeps apart what each write wrote
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET if sys.platform.startswith("linux") else socket.SOCK_DGRAM)
        with ours:
            with theirs:
                process = self.start_parallel("--jsonl", "-q", "-j", "1", stdout=theirs, stdin=subprocess.PIPE)
            process.stdin.write(tasks("say x", "flood 100000", "invalid-utf8", "fail " + "e" * 5000))
            process.stdin.close()
            ours.settimeout(PATIENCE)
            lines = [ours.recv(1 << 20) for _ in range(4)]
            self.assertEqual(process.finish().returncode, 1)
        self.assertEqual([json.loads(line)["index"] for line in lines], [0, 1, 2, 3])
        self.assertEqual([line.count(b"\n") for line in lines], [1] * 4)

    @only_linux
    def test_a_line_is_one_write_as_strace_sees_it(self):
        if not shutil.which("strace") or subprocess.run(["strace", "-o", os.devnull, "true"], stderr=subprocess.DEVNULL).returncode:
            self.skipTest("strace is not to be had here")
        completed = self.run_program(["strace", "-f", "-e", "trace=write", "-s", "8", "-o", self.path("trace")]
                                     + self.command("--jsonl", "-q", "-j", "1"), tasks("say x", "flood 300000", "say y"))
        lines = completed.stdout.splitlines(True)
        trace = self.log("trace")
        pid = next(line.split()[0] for line in trace if 'write(1, "{\\"index' in line)  # clinvk's, not a worker's or a backend's
        asked = [int(found.group(1)) for found in (re.match(pid + r" +write\(1, .*, ([0-9]+)(?:\)| <unfinished)", line) for line in trace) if found]
        self.assertEqual(asked, [len(line) for line in lines])
        self.assertEqual(len(lines), 3)

    def test_json_prints_nothing_until_the_end_and_then_one_object_in_order(self):
        process = self.start_parallel("--json", "-f", self.file("t", tasks("wait-for go; say one", "exit 3", "touch near; wait-for go")
                                                                + tasks("say four", dry_run=True)))
        self.wait_for_file(self.path("near"))
        self.assertEqual(select.select([process.stdout], [], [], 0)[0], [])
        self.touch("go")
        completed = process.finish()
        report = self.report_of(completed)
        self.assertEqual((completed.returncode, completed.stderr), (1, b""))
        self.assertEqual([report[name] for name in ("total_tasks", "completed", "failed", "canceled", "skipped")], [4, 1, 2, 0, 1])
        self.assertEqual([result["status"] for result in report["results"]], ["ok", "failed", "failed", "skipped"])
        self.assertEqual(report["results"][2]["error_kind"], "no_output")
        self.assertNotIn("usage", report)
        self.assertNotIn("cost_usd", report)

    def test_quiet_changes_nothing_in_json(self):
        completed = self.parallel("--json", "--quiet", input=tasks("say x"))
        self.assertEqual((self.report_of(completed)["completed"], completed.stderr, completed.returncode), (1, b"", 0))

    def test_usage_and_cost_are_summed_over_the_tasks_that_state_them(self):
        batch = tasks("say x", "say y", backend="claude") + tasks("say z", backend="codex") + tasks("say w")
        completed = self.parallel("--json", input=batch)
        report = self.report_of(completed)
        self.assertEqual(report["usage"], {"input_tokens": 450, "cached_input_tokens": 60, "output_tokens": 21,
                                           "reasoning_output_tokens": 6, "total_tokens": 471})
        self.assertEqual(report["cost_usd"], 0.5)
        self.assertEqual([result.get("cost_usd") for result in report["results"]], [0.25, 0.25, None, None])
        self.assertEqual(["usage" in result for result in report["results"]], [True, True, True, False])
        self.assertIn("Total: 2 tasks, 2 completed, 0 failed, 314 tokens, $0.5000 (",
                      self.parallel("-q", input=tasks("say x", "say y", backend="claude")).stdout.decode())

    def test_the_fields_of_every_kind_of_result_are_as_described(self):
        os.unlink(os.path.join(self.bin, "gemini"))
        batch = (tasks("say x", backend="claude", max_turns=3, id="c") + tasks("say x", backend="codex", max_turns=3)
                 + tasks("say x", backend="gemini") + tasks("die SEGV") + tasks("sleep 300", timeout=0.2)
                 + tasks("say x", dry_run=True) + tasks("say x", workdir="/nonexistent") + tasks("say x", nonsense=1)
                 + tasks("fail Rate limit reached. Please try again in 2.5s", backend="claude"))
        completed = self.parallel("--jsonl", "-q", input=batch, env={"PATH": self.bin})
        found = [(result["status"], result["exit_code"], result.get("error_kind"), result["attempts"]) for result in self.lines_of(completed)]
        self.assertEqual(found, [
            ("ok", 0, None, 1), ("ok", 0, None, 1), ("failed", 127, "not_found", 1), ("failed", 139, "signal", 1),
            ("timeout", 124, "timeout", 1), ("skipped", 0, None, 0), ("failed", 1, "invalid", 1), ("failed", 1, "invalid", 0),
            ("failed", 1, "rate_limit", 1)])
        lines = self.lines_of(completed)
        self.assertEqual([lines[0][name] for name in ("num_turns", "session_id", "model")],
                         [1, "5e551000-0000-4000-8000-000000000001", "fake-model-1"])
        self.assertEqual(lines[1]["warnings"], ["codex has no max_turns; it was not applied"])
        self.assertEqual(lines[7]["backend"], "")
        self.assertEqual(lines[8]["retry_after_seconds"], 2.5)
        self.assertEqual(completed.returncode, 1)


class Terminal:
    """A pseudo terminal of so many columns.  What is written to it can be read here, byte for byte."""

    def __init__(self, width=80):
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        self.data = b""

    def close(self):
        for file in (self.master, self.slave):
            if file >= 0:
                os.close(file)

    def detach(self):
        """Nobody but who has it by now can write to it."""
        os.close(self.slave)
        self.slave = -1

    def _more(self, deadline):
        if not select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise AssertionError("nothing more came; so far: %r" % self.data)
        try:
            piece = os.read(self.master, 1 << 16)
        except OSError:  # how Linux tells that nobody holds the other end any more
            piece = b""
        self.data += piece
        return piece

    def wait_for(self, pattern):
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, self.data):
            if not self._more(deadline):
                raise AssertionError("it ended without %r: %r" % (pattern, self.data))

    def rest(self):
        """All that was written, once nobody can write any more."""
        deadline = time.monotonic() + PATIENCE
        while self._more(deadline):
            pass
        return self.data


def screen(data):
    """What is left to see on a terminal: its lines."""
    lines, line, column = [], "", 0
    for token in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+|\x1b", data.decode("utf-8", "surrogateescape")):
        if token == "\r":
            column = 0
        elif token == "\n":
            lines.append(line)
            line, column = "", 0
        elif token == "\x1b[K":
            line = line[:column]
        elif not token.startswith("\x1b"):
            line = line[:column] + token + line[column + len(token):]
            column += len(token)
    return lines + [line]


STATUS_LINE = re.compile(rb"\[[0-9]+(/[0-9]+)?\] [0-9]+ running(, [0-9]+ failed)?, [0-9]{2}:[0-9]{2}")


class Terminals(Commands):
    def terminal(self, width=80):
        terminal = Terminal(width)
        self.addCleanup(terminal.close)
        return terminal

    def start_on(self, terminal, *arguments, **options):
        """Starts a run whose stderr, and without another one its stdout, is the terminal."""
        options.setdefault("stdout", terminal.slave)
        process = self.start_parallel(*arguments, stderr=terminal.slave, **options)
        terminal.detach()
        return process

    def on_terminal(self, *arguments, input=b"", width=80, env=None):
        """All that a run writes to a terminal of that width, where both stdout and stderr are."""
        terminal = self.terminal(width)
        process = self.start_on(terminal, *arguments, "-f", self.file("input", input), env=env)
        data = terminal.rest()
        process.finish()
        return data

    def test_the_status_line_shows_and_is_gone_before_anything_else(self):
        terminal = self.terminal()
        batch = self.file("t", tasks("say one", "wait-for go; say two", "exit 3"))
        process = self.start_on(terminal, "-f", batch, "-j", "2")
        terminal.wait_for(rb"\[2/3\] 1 running, 1 failed, 00:0")
        self.touch("go")
        data = terminal.rest()
        self.assertEqual(process.finish().returncode, 1)
        for found in STATUS_LINE.finditer(data):
            self.assertEqual(data[found.end():found.end() + 4], b"\r\x1b[K", data[found.start():found.end() + 40])
            self.assertIn(data[:found.start()][-1:], (b"\n", b"K"))
        self.assertEqual(normal("\n".join(screen(data)).encode()), """\
Running 3 tasks (max 2 parallel)...

[1] one
[2] two

Results
============================================================
#    BACKEND      STATUS     DURATION   TASK
------------------------------------------------------------
1    echo         OK         0.00s      say one
2    echo         OK         0.00s      wait-for go; say two
3    echo         FAILED     0.00s      exit 3
     error: exit status 3
------------------------------------------------------------
Total: 3 tasks, 2 completed, 1 failed (0.00s)
""")

    def test_the_status_line_goes_to_stderr_and_leaves_a_piped_stdout_clean(self):
        terminal = self.terminal()
        process = self.start_on(terminal, "--jsonl", "-f", self.file("t", tasks("wait-for go; say x")), stdout=subprocess.PIPE)
        terminal.wait_for(rb"\[0/1\] 1 running, 00:0")
        self.touch("go")
        completed = process.finish()
        self.assertEqual([result["output"] for result in self.lines_of(completed)], ["x\n"])
        self.assertEqual(screen(terminal.rest())[:2], ["", "Results"])

    def test_where_the_number_of_tasks_is_not_known_the_status_line_does_not_say_it(self):
        terminal = self.terminal()
        process = self.start_on(terminal, "--json", stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        process.stdin.write(tasks("wait-for go; say x"))
        terminal.wait_for(rb"\[0\] 1 running, 00:0")
        process.stdin.close()
        self.touch("go")
        self.report_of(process.finish())
        self.assertEqual(screen(terminal.rest()), [""])

    def test_on_a_narrow_terminal_the_status_line_is_cut_so_that_it_does_not_wrap(self):
        terminal = self.terminal(16)
        process = self.start_on(terminal, "--json", "-f", self.file("t", tasks("exit 1", "wait-for go; say x")), stdout=subprocess.PIPE)
        terminal.wait_for(rb"\[1/2\] 1 runn\.\.\.\r")
        self.touch("go")
        process.finish()
        for part in terminal.rest().split(b"\r\x1b[K"):
            self.assertLess(len(part), 16)

    def test_without_a_terminal_there_is_no_progress_unless_it_is_asked_for(self):
        batch = self.file("t", tasks("say x", "exit 1"))
        self.assertEqual(self.parallel("--json", "-f", batch).stderr, b"")
        lines = self.parallel("--json", "-f", batch, "-j", "1", "--progress", "always").stderr.decode().splitlines()
        self.assertEqual(len(lines), 2)
        self.assertRegex(lines[0], r"\A\[1/2\] [01] running, 00:[0-9]{2}\Z")
        self.assertRegex(lines[1], r"\A\[2/2\] [01] running, 1 failed, 00:[0-9]{2}\Z")

    def test_on_a_terminal_progress_can_be_switched_off(self):
        self.assertTrue(STATUS_LINE.search(self.on_terminal(input=tasks("say x"))))
        data = self.on_terminal("--progress", "never", "--color", "never", input=tasks("say x"))
        self.assertFalse(STATUS_LINE.search(data))
        self.assertNotIn(ESCAPE, data)

    def test_a_terminal_that_says_it_is_dumb_is_sent_no_escape_sequence(self):
        self.assertNotIn(ESCAPE, self.on_terminal(input=tasks("say x", "exit 1"), env={"TERM": "dumb"}))

    def test_statuses_are_colored_on_a_terminal_unless_something_says_otherwise(self):
        batch = tasks("say x", "exit 1")
        colored = re.compile(rb"1    echo         \x1b\[32mOK        \x1b\[m 0\.[0-9]{2}s      say x\n"
                             rb"2    echo         \x1b\[31mFAILED    \x1b\[m 0\.[0-9]{2}s      exit 1\n")
        plain = re.compile(rb"1    echo         OK         [0-9.]+s      say x\n2    echo         FAILED     [0-9.]+s      exit 1\n")
        for arguments, env, expected in (([], {}, colored), ([], {"NO_COLOR": "1"}, plain), ([], {"NO_COLOR": ""}, colored),
                                         ([], {"TERM": "dumb"}, plain), (["--color", "never"], {}, plain),
                                         (["--color", "always"], {"NO_COLOR": "1", "TERM": "dumb"}, colored),
                                         (["--color=auto"], {}, colored)):
            with self.subTest(arguments=arguments, env=env):
                self.assertRegex(self.on_terminal("--progress", "never", *arguments, input=batch, env=env), expected)
        for arguments, expected in (([], plain), (["--color", "always"], colored)):
            with self.subTest(arguments=arguments, on="a pipe"):
                self.assertRegex(self.parallel("-j", "1", *arguments, input=batch).stdout, expected)
                self.assertRegex(self.parallel("-j", "1", "--jsonl", *arguments, input=batch).stderr, expected)

    def test_control_characters_of_a_backend_do_not_reach_a_terminal(self):
        self.install_answerers("cat")
        awkward = "red \x1b[31m, title \x1b]0;x\x07, back \x08, C1 \u009b31m, turned \u202e, delete \x7f, return \r. Tab \t and \u5be9\u67e5"
        # a long answer takes another way
        batch = tasks(awkward, awkward * 200) + tasks("y", name=awkward, workdir="/nonexistent" + awkward)
        data = self.on_terminal("--progress", "never", "--color", "never", input=batch)
        text = data.decode("utf-8")
        self.assertEqual(sorted(set(re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text))), [])
        self.assertIn("[1] red ^[[31m, title ^[]0;x^G, back ^H, C1 <U+009B>31m, turned <U+202E>, delete ^?, return ^M. Tab \t and \u5be9\u67e5\n",
                      text)
        self.assertIn("     error: workdir /nonexistentred ^[[31m", text)

    def test_control_characters_do_not_reach_a_terminal_in_json_either(self):
        self.install_answerers("cat")
        awkward = "\x1b[31m \x07 \u009b31m \x7f \u202e"
        for form in ("--jsonl", "--json"):
            with self.subTest(form=form):
                text = self.on_terminal(form, "-q", "--progress", "never", input=tasks(awkward, awkward * 300)).decode("utf-8")
                self.assertEqual(re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text), [])
                self.assertIn(json.dumps(awkward), text.replace(": ", ":"))

    def test_the_table_is_cut_to_the_width_of_the_terminal_by_columns(self):
        batch = tasks("say 审查代码库的安全漏洞重点关注注入攻击和认证问题" * 3, "fail " + "错误" * 60, "say a" + "b" * 100, "say short")
        for width in (60, 61, 100):
            with self.subTest(width=width):
                lines = screen(self.on_terminal("--progress", "never", input=batch, width=width))
                rows = [line for line in lines[lines.index("Results"):] if line.startswith(("1 ", "2 ", "3 ", "4 ", "     error"))]
                self.assertEqual(len(rows), 5)
                self.assertEqual([row for row in rows if columns(row) > width], [])
                self.assertEqual([row[-3:] for row in rows[:4]], ["..."] * 4)
                self.assertGreaterEqual(min(columns(row) for row in rows[:4]), width - 3, rows)  # and not cut more than need be
                self.assertTrue(rows[4].endswith("  say short"))

    def test_warnings_and_errors_do_not_run_into_the_status_line(self):
        terminal = self.terminal()
        process = self.start_on(terminal, "--json", stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        process.stdin.write(json.dumps({"tasks": [{"backend": "echo", "prompt": "wait-for go; say x"}], "max_parallel": 2}).encode())
        terminal.wait_for(rb"\[0\] 1 running")
        process.stdin.write(json.dumps({"tasks": [{"backend": "echo", "prompt": "say y"}], "max_parallel": 9}).encode())
        terminal.wait_for(rb"clinvk: warning: ")
        self.touch("go")
        process.finish()
        self.assertEqual(screen(terminal.rest()), [
            "clinvk: warning: stdin:1: max_parallel: 9 is not applied: an earlier batch of this run said 2", ""])


# Writes down how it was called, in the next file of the directory that DUMPS names.
DUMP = r"""
import json, os, sys
directory = os.environ["DUMPS"]
record = {"program": os.path.basename(sys.argv[0]), "argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ),
          "stdin": sys.stdin.buffer.read().decode("utf-8", "surrogateescape")}
if "GEMINI_SYSTEM_MD" in os.environ:
    with open(os.environ["GEMINI_SYSTEM_MD"], "rb") as file:
        record["system"] = file.read().decode("utf-8", "surrogateescape")
with open(os.path.join(directory, "%03d" % len(os.listdir(directory))), "w") as file:
    json.dump(record, file)
"""
# What a shell sets on its own, what only a run has, and what Python sets where the locale is C.
NOT_COMPARED = ("_", "SHLVL", "OLDPWD", "CLINVK_RUN", "CLINVK_TASK", "TMPDIR", "GEMINI_SYSTEM_MD", "LC_CTYPE", "LOGNAME",
                "DUMPS")

AWKWARD_PROMPTS = ("plain", "it's \"quoted\" $HOME ${x} `id` $(id) \\ !! ~ * ? [a] {b} #c", "two\nlines\n\ttab \r return", "-n", "--help",
                   "审查 é \U0001f642", "\x01\x1b[31m\x7f\u009b\u200b", "'", "''\\''", "ends in newlines\n\n", "\udcff\ud800", "<<< 'x'", "%s %d")


class DryRun(Commands):
    def batch(self):
        where = self.path("it's a \"dir\"")
        os.mkdir(where)
        full = {"model": "m-1 'x'", "system_prompt": "Be \"brief\".\nIt's $HOME \\ 审查\n", "extra": ["--flag", "with blank", "it's"],
                "workdir": where, "max_turns": 4, "max_tokens": 100, "verbose": True, "approval_mode": "none", "sandbox_mode": "full",
                "timeout": 60}
        batch = [dict({"prompt": prompt}, backend="echo") for prompt in AWKWARD_PROMPTS]
        batch += [dict(full, backend=backend, prompt="full\n" + AWKWARD_PROMPTS[1]) for backend in ("claude", "codex", "gemini")]
        batch += [{"backend": backend, "prompt": "simple", "sandbox_mode": "read-only", "approval_mode": "auto"}
                  for backend in ("claude", "codex", "gemini")]
        return batch

    def dumps_of(self, run):
        """What the programs wrote down that `run` has called, one after the other."""
        directory = self.path("dumps")
        shutil.rmtree(directory, ignore_errors=True)
        os.mkdir(directory)
        run({"DUMPS": directory, "CLAUDECODE": "1", "CLAUDE_CODE_ENTRYPOINT": "cli", "NO_COLOR": "", "LC_ALL": "C.UTF-8"})
        records = []
        for name in sorted(os.listdir(directory)):
            with open(os.path.join(directory, name)) as file:
                record = json.load(file)
            record["env"] = {key: value for key, value in record["env"].items() if key not in NOT_COMPARED}
            records.append(record)
        return records

    def test_each_line_does_in_a_shell_what_the_task_would_do(self):
        for name in PROGRAMS:
            write_program(os.path.join(self.bin, name), b"#!%s -IS\n%s" % (os.fsencode(os.path.realpath(sys.executable)), DUMP.encode()))
        batch = self.batch()
        path = self.file("batch.json", batch)
        real = self.dumps_of(lambda env: self.parallel("-q", "-j", "1", "-f", path, env=env))
        self.assertEqual(len(real), len(batch))
        self.assertEqual([record["stdin"].encode("utf-8", "surrogateescape") for record in real],
                         [task["prompt"].encode("utf-8", "surrogatepass").replace(b"\xed\xb3\xbf", b"\xff") for task in batch])
        lines = []
        self.assertEqual(self.dumps_of(lambda env: lines.extend(
            self.parallel("--dry-run", "-f", path, env=env).stdout.splitlines())), [])
        self.assertEqual(len(lines), len(batch))
        for shell in (["bash", "--norc"], ["zsh", "-f"]):
            if not shutil.which(shell[0]):
                continue
            with self.subTest(shell=shell[0]):
                script = self.file("script", b"".join(line + b"\n" for line in lines))
                completed = []
                shown = self.dumps_of(lambda env: completed.append(self.run_program(shell + [script], env=env)))
                self.assertEqual(completed[0].stderr, b"")
                self.assertEqual(len(shown), len(batch))
                for line, theirs, ours in zip(lines, shown, real):
                    ours = dict(ours, stdin=ours["stdin"] + "\n")  # a here-string ends its line
                    if ours["cwd"] == self.directory:  # nothing sets it there
                        for record in (theirs, ours):
                            record["env"].pop("PWD", None)
                    self.assertEqual(theirs, ours, line)

    def test_a_line_is_one_line_to_read(self):
        completed = self.parallel("--dry-run", input=json.dumps(self.batch()))
        self.assertEqual((completed.returncode, completed.stderr), (0, b""))
        lines = completed.stdout.decode("utf-8").split("\n")
        self.assertEqual(len(lines), len(AWKWARD_PROMPTS) + 7)
        self.assertEqual([line for line in lines[:-1] if not line.isprintable()], [])
        self.assertEqual(lines[0], "env NO_COLOR=1 cat <<< plain")
        self.assertEqual(lines[2], "env NO_COLOR=1 cat <<< $'two\\nlines\\n\\ttab \\r return'")
        self.assertTrue(lines[-5].startswith("(cd -- '%s/it'\"'\"'s a \"dir\"' && env " % self.directory), lines[-5])

    def test_nothing_is_started_and_nothing_is_written(self):
        batch = {"output_dir": "out", "tasks": [
            {"backend": backend, "prompt": "touch ran", "workdir": "/nonexistent"} for backend in ("echo", "claude", "codex", "gemini")]}
        for arguments in ([], ["--json"], ["--jsonl"], ["-q"], ["--output-dir", self.path("other")]):
            with self.subTest(arguments=arguments):
                completed = self.parallel("--dry-run", *arguments, input=json.dumps(batch))
                self.assertEqual((completed.returncode, completed.stderr), (0, b""))
                self.assertEqual(completed.stdout.count(b"touch ran"), 4)
                self.assertEqual(sorted(os.listdir(self.directory)), ["bin", "home", "tmp"])

    def test_the_programs_need_not_be_there(self):
        completed = self.parallel("--dry-run", "-b", "codex", input=b'{"prompt": "x"}', env={"PATH": "/nonexistent"})
        self.assertEqual((completed.returncode, completed.stdout.split()[:3]), (0, [b"env", b"NO_COLOR=1", b"codex"]))

    def test_in_json_the_command_line_is_the_output_of_a_skipped_result(self):
        report = self.report_of(self.parallel("--dry-run", "--json", input=tasks("say x", "say y")))
        self.assertEqual([(result["status"], result["exit_code"], result["attempts"], result["output"]) for result in report["results"]],
                         [("skipped", 0, 0, "env NO_COLOR=1 cat <<< 'say %s'" % word) for word in "xy"])
        self.assertEqual((report["total_tasks"], report["skipped"]), (2, 2))
        self.assertEqual(self.statuses(self.parallel("--dry-run", "--jsonl", input=tasks("say x", "say y"))), ["skipped", "skipped"])

    def test_tasks_that_are_not_to_be_run_are_skipped_among_others_that_are(self):
        batch = tasks("say a") + tasks("touch ran", dry_run=True) + tasks("say b", dry_run=False)
        completed = self.parallel("--jsonl", "-q", input=batch)
        self.assertEqual([(result["status"], result["output"]) for result in self.lines_of(completed)],
                         [("ok", "a\n"), ("skipped", "env NO_COLOR=1 cat <<< 'touch ran'"), ("ok", "b\n")])
        self.assertEqual(completed.returncode, 0)
        text = self.parallel("-j", "1", input=batch).stdout.decode()
        self.assertIn("\n[1] a\n[2] env NO_COLOR=1 cat <<< 'touch ran'\n[3] b\n\nResults\n", text)
        self.assertIn("\nTotal: 3 tasks, 2 completed, 0 failed, 1 skipped (", text)
        self.assertFalse(self.has("ran"))

    def test_a_bad_value_on_the_pipe_is_told_and_the_rest_is_shown(self):
        completed = self.parallel("--dry-run", input=tasks("say a") + b'{"prompt": 3}\n' + tasks("say b"))
        self.assertEqual(completed.stdout, b"env NO_COLOR=1 cat <<< 'say a'\nenv NO_COLOR=1 cat <<< 'say b'\n")
        self.assertIn(b"clinvk: error: stdin:2: prompt: expected a string, got 3", completed.stderr)
        self.assertEqual(completed.returncode, 1)

    def test_lines_come_while_the_producer_still_writes(self):
        process = self.start_parallel("--dry-run", stdin=subprocess.PIPE)
        process.stdin.write(tasks("say a"))
        self.assertEqual(process.line(), b"env NO_COLOR=1 cat <<< 'say a'")
        process.stdin.write(tasks("say b"))
        self.assertEqual(process.line(), b"env NO_COLOR=1 cat <<< 'say b'")
        self.assertEqual(process.finish().returncode, 0)

    def test_what_counts_first_shows_in_the_command_line(self):
        batch = {"defaults": {"model": "of-defaults", "system_prompt": "s", "sandbox_mode": "read-only"}, "tasks": [
            {"prompt": "x", "backend": "codex", "model": "of-task", "sandbox_mode": "full"}, {"prompt": "x"},
            {"prompt": "x", "backend": "gemini"}]}
        env = {"CLINVK_BACKEND": "claude", "CLINVK_CLAUDE_MODEL": "of-environment", "CLINVK_GEMINI_MODEL": "of-environment"}

        def models(*arguments, value=batch):
            lines = self.parallel("--dry-run", *arguments, input=json.dumps(value), env=env).stdout.decode().splitlines()
            return [(word[0], word[1]) for line in lines
                    for word in [(re.search("claude|codex|gemini", line).group(), (re.search(r"-m(?:odel)? (\S+)", line) or [0, ""])[1])]]

        self.assertEqual(models(), [("codex", "of-task"), ("claude", "of-defaults"), ("gemini", "of-defaults")])
        self.assertEqual(models("--model", "of-option"), [("codex", "of-task"), ("claude", "of-option"), ("gemini", "of-option")])
        self.assertEqual(models("-b", "codex", value=[{"prompt": "x"}, {"prompt": "x", "backend": "gemini"}]),
                         [("codex", ""), ("gemini", "of-environment")])
        self.assertEqual(models(value={"prompt": "x"}), [("claude", "of-environment")])


class OutputDirectory(Commands):
    def read(self, *names):
        with open(self.path(*names), "rb") as file:
            return json.loads(file.read().decode("utf-8"))

    def test_each_task_has_its_file_and_the_run_its_summary(self):
        batch = {"output_dir": "out", "defaults": {"timeout": 60}, "tasks": [
            {"id": "first", "name": "not used", "backend": "echo", "prompt": "say one\\xff", "meta": {"n": None}, "tags": ["t"]},
            {"name": "second task", "backend": "claude", "prompt": "say two", "model": "m"},
            {"backend": "echo", "prompt": "exit 3"}]}
        completed = self.parallel("--json", "-f", self.file("t", batch), preexec_fn=lambda: os.umask(0))
        self.assertEqual((completed.returncode, completed.stderr), (1, b""))
        names = ["001_first.json", "002_second_task.json", "003_task-3.json", "summary.json"]
        self.assertEqual(sorted(os.listdir(self.path("out"))), names)
        self.assertEqual([stat.S_IMODE(os.stat(self.path("out", name)).st_mode) for name in names], [0o600] * 4)
        self.assertEqual(stat.S_IMODE(os.stat(self.path("out")).st_mode), 0o700)
        report = self.report_of(completed)
        kept = [self.read("out", name) for name in names]
        self.assertEqual(kept[3], report)
        self.assertEqual([file["result"] for file in kept[:3]], report["results"])
        self.assertEqual([set(file) for file in kept[:3]], [{"task", "result"}] * 3)
        self.assertEqual(kept[0]["task"], {"id": "first", "name": "not used", "backend": "echo", "prompt": "say one\\xff",
                                           "meta": {"n": None}, "tags": ["t"], "timeout": 60})
        again = self.parallel("--jsonl", "-q", input=json.dumps([file["task"] for file in kept[:3]]))
        self.assertEqual([result["output"] for result in self.lines_of(again)], [result["output"] for result in report["results"]])

    def test_a_file_is_written_when_its_task_ends(self):
        process = self.start_parallel("-j", "1", "-q", "--output-dir", "deep/out", "-f",
                                      self.file("t", tasks("say one", "wait-for go; say two")))
        self.wait_for_file(self.path("deep", "out", "001_task-1.json"))
        self.assertEqual(self.read("deep", "out", "001_task-1.json")["result"]["output"], "one\n")
        self.assertEqual(os.listdir(self.path("deep", "out")), ["001_task-1.json"])
        self.touch("go")
        self.assertEqual(process.finish().returncode, 0)
        self.assertEqual(sorted(os.listdir(self.path("deep", "out"))), ["001_task-1.json", "002_task-2.json", "summary.json"])

    def test_the_option_beats_the_batch(self):
        self.parallel("-q", "--output-dir", self.path("mine"), input=json.dumps({"output_dir": "theirs", "tasks": [
            {"backend": "echo", "prompt": "say x"}]}))
        self.assertTrue(self.has("mine/summary.json"))
        self.assertFalse(self.has("theirs"))

    def test_no_id_leaves_the_directory_and_names_are_ones_for_every_system(self):
        identifiers = ["../../up", "/abs/olute", "..", ".hidden", "a b\n\x1b", "审查", "x" * 300, "con.json", "a/b", "a_b", "~", "%s", "é"]
        os.mkdir(self.path("out"), 0o755)
        completed = self.parallel("-q", "--output-dir", self.path("out"), input=b"".join(tasks("say x", id=word) for word in identifiers))
        self.assertEqual((completed.returncode, completed.stderr), (0, b""))
        names = sorted(os.listdir(self.path("out")))
        self.assertEqual(len(names), len(identifiers) + 1)
        self.assertEqual([name for name in names if not re.fullmatch(r"[0-9]{3}_[A-Za-z0-9_-]{1,64}\.json|summary\.json", name)], [])
        self.assertEqual([self.read("out", name)["task"]["id"] for name in names[:-1]], identifiers)
        self.assertEqual(sorted(os.listdir(self.directory)), ["bin", "home", "out", "tmp"])

    def test_a_directory_that_cannot_be_made_or_written_ends_the_run_before_it_begins(self):
        self.file("file", "")
        places = [self.path("file"), self.path("file", "below"), "/dev/null/x"]
        if os.geteuid():
            os.mkdir(self.path("locked"), 0o500)
            places.append(self.path("locked"))
        for place in places:
            with self.subTest(place=place):
                completed = self.parallel("--output-dir", place, input=tasks("touch ran"))
                self.assertEqual((completed.returncode, completed.stdout), (74, b""))
                self.assertRegex(completed.stderr.decode(), r"\Aclinvk: error: cannot write to output_dir %s: [^\n]+\n\Z" % re.escape(place))
                self.assertFalse(self.has("ran"))

    def test_a_directory_that_fails_later_is_told_of_and_the_run_goes_on(self):
        process = self.start_parallel("-j", "1", "--jsonl", "-q", "--output-dir", "out", "-f",
                                      self.file("t", tasks("say one", "wait-for go; say two", "say three")))
        self.wait_for_file(self.path("out", "001_task-1.json"))
        os.rename(self.path("out"), self.path("gone"))
        self.touch("go")
        completed = process.finish()
        self.assertEqual([result["output"] for result in self.lines_of(completed)], ["one\n", "two\n", "three\n"])
        self.assertEqual(completed.returncode, 74)
        self.assertRegex(completed.stderr.decode(), r"\Aclinvk: error: cannot write out/002_task-2\.json: No such file or directory\n\Z")


class Pipes(Commands):
    def test_the_first_answer_comes_while_the_producer_still_waits(self):
        for make in (lambda task: json.dumps(task), lambda task: json.dumps({"tasks": [task]}, indent=2) + "\n",
                     lambda task: json.dumps([task]) + " "):
            process = self.start_parallel("--jsonl", "-q", stdin=subprocess.PIPE)
            for word in ("one", "two", "three"):
                process.stdin.write(make({"backend": "echo", "prompt": "say " + word}).encode())
                self.assertEqual(json.loads(process.line())["output"], word + "\n")
            completed = process.finish()
            self.assertEqual((completed.returncode, completed.stdout, completed.stderr), (0, b"", b""))

    def test_in_text_too_and_a_named_pipe_is_a_pipe(self):
        os.mkfifo(self.path("fifo"))
        process = self.start_parallel("--file", "fifo")
        with open(self.path("fifo"), "wb", buffering=0) as file:
            file.write(tasks("say one"))
            process.wait_for_line(b"[1] one")
            file.write(tasks("say two"))
            process.wait_for_line(b"[2] two")
        self.assertEqual(process.finish().returncode, 0)

    def test_the_whole_value_is_checked_before_any_of_it_starts(self):
        process = self.start_parallel("--jsonl", "-q", stdin=subprocess.PIPE)
        process.stdin.write(tasks("say one"))
        process.line()
        process.stdin.write(json.dumps([{"backend": "echo", "prompt": "touch ran"}, {"backend": "echo", "prompt": " "}]).encode() + b"\n")
        bad = json.loads(process.line())
        self.assertEqual((bad["index"], bad["status"], bad["exit_code"], bad["error_kind"], bad["backend"]), (1, "failed", 1, "invalid", ""))
        self.assertEqual(bad["error"], "stdin:2: [1].prompt: must not be blank")
        process.stdin.write(tasks("say three"))
        self.assertEqual(json.loads(process.line())["index"], 2)
        self.assertEqual(process.finish().returncode, 1)
        self.assertFalse(self.has("ran"))

    def test_each_bad_value_in_the_middle_is_one_failed_result_and_the_rest_goes_on(self):
        batch = (tasks("say a") + b'not json\n' + tasks("say b") + b'{"backend": "echo", "prom\n' + tasks("say c")
                 + b'{"backend": "ecko", "prompt": "x"}\n' + tasks("say d") + b'{"backend": "echo", "prompt": "\xff"}\n' + tasks("say e")
                 + b'{"tasks": [')
        completed = self.parallel("--jsonl", "-q", "-j", "1", input=batch)
        lines = self.lines_of(completed)
        self.assertEqual([result["output"] for result in lines if result["status"] == "ok"], ["a\n", "b\n", "c\n", "d\n", "e\n"])
        bad = [(result["index"], result["error"]) for result in lines if result["status"] != "ok"]
        self.assertEqual([index for index, _ in bad], [1, 3, 5, 7, 9])
        self.assertEqual([error.split(" ")[0] for _, error in bad], ["stdin:2:", "stdin:4:", "stdin:6:", "stdin:8:", "stdin:10:"])
        self.assertIn('unknown backend "ecko" (did you mean "echo"?)', bad[2][1])
        self.assertEqual((completed.returncode, completed.stderr), (1, b""))

    def test_a_bad_value_has_its_line_in_the_table(self):
        text = self.parallel("-j", "1", input=tasks("say a") + b'{"prompt": 3}\n').stdout.decode()
        self.assertRegex(text, r"\n2 {17}FAILED +[0-9.]+s +stdin:2: prompt: [^\n]+\n     error: stdin:2: prompt: expected a string, got 3\n")
        self.assertIn("Total: 2 tasks, 1 completed, 1 failed", text)

    def test_a_bad_value_before_anything_started_ends_the_run(self):
        for bad in (b'{"prompt": 3}', b"nonsense", b'{"prompt": "x", "backnd": "echo"}', b'["x"]', b'{"tasks": {}}', b"3", b'"x"', b"]"):
            with self.subTest(value=bad):
                self.assert_refused(self.parallel("--jsonl", input=bad + b"\n" + tasks("touch ran")), "stdin:1: ")
        self.assertFalse(self.has("ran"))

    def test_the_first_word_about_the_run_counts_and_another_is_warned_about(self):
        def batch(number, jobs):
            return json.dumps({"max_parallel": jobs, "tasks": [
                {"backend": "echo", "prompt": "append log +; append log -; say %d%d" % (number, n)} for n in range(3)]}) + "\n"

        for kind in ("pipe", "file"):
            with self.subTest(kind=kind):
                text = batch(1, 1) + batch(2, 1) + batch(3, 3)
                completed = (self.parallel("--jsonl", "-q", input=text) if kind == "pipe"
                             else self.parallel("--jsonl", "-q", "-f", self.file("stdin", text)))
                self.assertEqual(self.statuses(completed), ["ok"] * 9)
                self.assertEqual(completed.stderr.decode().replace(self.directory + "/", ""), "clinvk: warning: "
                                 "stdin:3: max_parallel: 3 is not applied: an earlier batch of this run said 1\n")
                self.assertEqual(self.log(), ["+", "-"] * 9)
                os.unlink(self.path("log"))

    def test_all_ways_to_write_tasks_down_can_be_mixed(self):
        one, two = ({"backend": "echo", "prompt": "say " + word} for word in ("1", "2"))
        text = "\ufeff\n" + json.dumps(one, indent=4) + json.dumps(two) + "\r\n" + json.dumps([one, two]) + "\n\n" + json.dumps(
            {"tasks": [two, one], "defaults": {"model": None}}) + json.dumps(one)
        with open(self.file("t", text), "rb") as file:
            for options in ({"input": text}, {"stdin": file}):
                with self.subTest(options=list(options)):
                    completed = self.parallel("--jsonl", "-q", **options)
                    self.assertEqual([result["output"].strip() for result in self.lines_of(completed)], list("1212211"))


class BadInput(Commands):
    def test_a_file_with_a_mistake_starts_nothing(self):
        good = tasks("touch ran")
        for name, content in (("last.jsonl", good * 3 + tasks("say x", max_turns="ten")),
                              ("torn.jsonl", good + b'{"backend": "echo", "prompt": "x"'),
                              ("batch.json", json.dumps({"tasks": [{"backend": "echo", "prompt": "touch ran"}] * 3 + [{"prompt": ""}]})),
                              ("large.jsonl", tasks("touch ran", meta={"x": "y" * 1000}) * 1100 + b'{"prompt": null}\n')):
            path = self.file(name, content)
            for how in ("--file", "stdin"):
                with self.subTest(name=name, how=how), open(path, "rb") as file:
                    completed = (self.parallel("--jsonl", "-f", path) if how == "--file"
                                 else self.parallel("--jsonl", stdin=file))
                    self.assert_refused(completed, (path if how == "--file" else "stdin") + ":")
                    self.assertFalse(self.has("ran"))

    def test_an_error_names_file_line_and_path(self):
        path = self.file("tasks.json", '{\n  "tasks": [\n    {"prompt": "a"},\n    {\n      "prompt": "b",\n      "max_turns": "ten"\n    }\n  ]\n}\n')
        self.assertEqual(self.parallel("-f", path).stderr.decode(),
                         'clinvk: error: %s:6: tasks[1].max_turns: expected a whole number, got "ten"\n' % path)
        self.assert_refused(self.parallel(input=b'{"max_parallel": 1001, "tasks": []}'), "stdin:1: max_parallel: expected at most 1000, got 1001")
        self.assert_refused(self.parallel(input=b'\n\n{"promt": "x"}'), 'stdin:3: promt: unknown field (did you mean "prompt"?)')

    def test_input_without_tasks_is_refused(self):
        for content in (b"", b" \n\t\r\n", b"\xef\xbb\xbf", b'{"tasks": []}', b"[]", b'{"tasks": null}'):
            with self.subTest(content=content):
                self.assert_refused(self.parallel("--json", input=content), "stdin:")
                self.assert_refused(self.parallel("--json", "-f", self.file("t", content)), self.path("t"))

    def test_a_file_that_cannot_be_read_is_refused(self):
        self.assert_refused(self.parallel("-f", self.path("missing.json")), self.path("missing.json") + ": No such file or directory")
        self.assert_refused(self.parallel("-f", self.directory), self.directory + ": Is a directory")
        if os.geteuid():
            os.chmod(self.file("secret", "{}"), 0)
            self.assert_refused(self.parallel("-f", self.path("secret")), "Permission denied")

    def test_a_terminal_on_stdin_is_no_input(self):
        terminal = Terminal()
        self.addCleanup(terminal.close)
        for arguments in ([], ["-f", "-"]):
            self.assert_refused(self.parallel(*arguments, stdin=terminal.slave), "no input: stdin is a terminal")

    def test_a_closed_stdin_is_no_input(self):
        completed = self.run_program(["sh", "-c", 'exec "$@" <&-', "sh"] + self.command())
        self.assert_refused(completed, "stdin: no ")


class Running(Commands):
    def test_so_many_run_at_once_as_are_asked_for(self):
        def meeting(number):
            """Each of them ends only if all of them run at the same time."""
            return ["touch here-%d; %ssay met" % (me, "".join("wait-for here-%d; " % other for other in range(number)))
                    for me in range(number)]

        for arguments, batch in (
                (["-j", "4"], {"tasks": [{"prompt": prompt} for prompt in meeting(4)], "max_parallel": 1}),
                (["--max-parallel=2"], [{"prompt": prompt} for prompt in meeting(2)]),
                ([], {"tasks": [{"prompt": prompt} for prompt in meeting(5)], "max_parallel": 5}),
                ([], [{"prompt": prompt} for prompt in meeting(3)])):
            for way in ("pipe", "file"):
                with self.subTest(arguments=arguments, way=way):
                    text = json.dumps(batch)
                    completed = (self.parallel("-b", "echo", "--jsonl", "-q", *arguments, input=text) if way == "pipe"
                                 else self.parallel("-b", "echo", "--jsonl", "-q", *arguments, "-f", self.file("t", text)))
                    self.assertEqual({result["output"] for result in self.lines_of(completed)}, {"met\n"})
                    for name in os.listdir(self.directory):
                        if name.startswith("here-"):
                            os.unlink(self.path(name))

    def test_never_more_and_in_the_order_of_the_input(self):
        prompts = ["append log +%d; touch started-%d; wait-for go-%d; append log -%d; say x" % (n, n, n, n) for n in range(6)]
        process = self.start_parallel("--jsonl", "-q", "-j", "2", "-f", self.file(
            "t", {"max_parallel": 6, "tasks": [{"backend": "echo", "prompt": prompt} for prompt in prompts]}))
        for n in range(6):
            for near in (n, min(n + 1, 5)):
                self.wait_for_file(self.path("started-%d" % near))
            self.touch("go-%d" % n)
            self.assertEqual(json.loads(process.line())["index"], n)
        self.assertEqual(process.finish().returncode, 0)
        log = self.log()
        started = [line for line in log if line.startswith("+")]
        self.assertEqual((sorted(started[:2]), started[2:]), (["+0", "+1"], ["+2", "+3", "+4", "+5"]))
        running = [sum(1 if line.startswith("+") else -1 for line in log[:end]) for end in range(len(log) + 1)]
        self.assertEqual(max(running), 2)

    def test_one_at_a_time_is_in_order(self):
        self.parallel("-q", "-j", "1", input=tasks(*["append log %d; say x" % n for n in range(5)]))
        self.assertEqual(self.log(), list("01234"))

    def test_at_the_first_failure_what_runs_is_stopped_and_the_rest_never_starts(self):
        prompts = ("ids pid; touch running; sleep 300", "wait-for running; exit 3", "touch ran", "touch ran")
        plain = [{"backend": "echo", "prompt": prompt} for prompt in prompts]
        for arguments, batch in ((["--fail-fast"], plain), (["--fail-fast"], {"tasks": plain, "fail_fast": False}),
                                 ([], {"tasks": plain, "fail_fast": True})):
            with self.subTest(arguments=arguments):
                completed = self.parallel("--jsonl", "-j", "2", *arguments, input=json.dumps(batch))
                lines = self.lines_of(completed)
                self.assertEqual([(result["status"], result["exit_code"], result["attempts"]) for result in lines],
                                 [("canceled", -1, 1), ("failed", 3, 1), ("canceled", -1, 0), ("canceled", -1, 0)])
                self.assertEqual([result["error"] for result in lines[2:]], ["canceled before it started (fail-fast)"] * 2)
                self.assertIn(b"\nTotal: 4 tasks, 0 completed, 1 failed, 3 canceled (", completed.stderr)
                self.assertEqual(completed.returncode, 1)
                self.assert_gone(self.pid_in(self.path("pid")))
                self.assertFalse(self.has("ran"))
                for name in ("pid", "running"):
                    os.unlink(self.path(name))

    def test_a_timeout_and_a_missing_program_are_failures_that_stop_a_run_that_fails_fast(self):
        os.unlink(os.path.join(self.bin, "gemini"))
        for first in (tasks("sleep 300", timeout=0.1), tasks("say x", backend="gemini")):
            completed = self.parallel("--fail-fast", "-j", "1", "--jsonl", "-q", input=first + tasks("touch ran"), env={"PATH": self.bin})
            self.assertEqual(self.statuses(completed)[1:], ["canceled"])
        self.assertFalse(self.has("ran"))

    def test_a_run_that_failed_fast_does_not_wait_for_its_producer(self):
        process = self.start_parallel("--fail-fast", "--jsonl", "-q", stdin=subprocess.PIPE)
        process.stdin.write(tasks("exit 3"))
        self.assertEqual(json.loads(process.line())["status"], "failed")
        self.assertEqual(process.wait(PATIENCE), 1)

    def test_without_fail_fast_the_rest_goes_on(self):
        completed = self.parallel("--jsonl", "-q", "-j", "1", input=tasks("exit 1", "die KILL", "say x"))
        self.assertEqual(self.statuses(completed), ["failed", "failed", "ok"])

    def test_a_task_is_stopped_when_its_time_is_over(self):
        batch = (tasks("ids one; sleep 300", timeout=0.3) + tasks("wait-for one; wait-for two; say x", timeout="15m")
                 + tasks("ids two; say partly; sleep 300"))
        completed = self.parallel("--jsonl", "-q", "--timeout", "1s", input=batch)
        lines = self.lines_of(completed)
        self.assertEqual([(result["status"], result["exit_code"], result.get("error_kind"), result.get("error")) for result in lines],
                         [("timeout", 124, "timeout", "timed out after 0.3s"), ("ok", 0, None, None),
                          ("timeout", 124, "timeout", "timed out after 1s")])
        self.assertEqual(lines[2]["output"], "partly\n")  # nothing that it said is thrown away
        self.assertEqual(completed.returncode, 1)
        for name in ("one", "two"):
            self.assertFalse(is_running(self.pid_in(self.path(name))))

    def test_a_program_that_is_not_there_fails_its_tasks_and_no_others(self):
        os.unlink(os.path.join(self.bin, "claude"))
        os.unlink(os.path.join(self.bin, "gemini"))
        write_program(os.path.join(self.bin, "gemini"), b"#!/nonexistent/interpreter\n")
        os.chmod(os.path.join(self.bin, "codex"), 0o644)
        batch = b"".join(tasks("say x", backend=name) for name in ("claude", "codex", "gemini", "echo"))
        completed = self.parallel("--jsonl", "-q", input=batch, env={"PATH": self.bin})
        lines = self.lines_of(completed)
        self.assertEqual([(result["status"], result["exit_code"], result.get("error_kind")) for result in lines],
                         [("failed", 127, "not_found"), ("failed", 126, "permission"), ("failed", 126, "not_found"), ("ok", 0, None)])
        self.assertEqual(lines[0]["error"], "claude: not found: it is not installed, or not on the PATH")
        self.assertIn("codex: cannot be started: Permission denied", lines[1]["error"])
        self.assertEqual(completed.returncode, 1)

    def test_the_exit_status_says_what_became_of_the_run(self):
        for status, arguments, text in (
                (0, [], tasks("say x", "say y")), (0, [], tasks("say x", dry_run=True)), (0, ["--dry-run"], tasks("exit 3")),
                (1, [], tasks("say x", "exit 3")), (1, [], tasks("exit 77")), (1, [], tasks("die TERM")), (1, [], tasks("stderr only")),
                (1, [], tasks("sleep 300", timeout=0.1)), (1, [], tasks("say x", workdir="/nonexistent")),
                (0, [], tasks("stderr error: noise is no failure; say x")),
                (2, [], b""), (2, [], b"nonsense"), (2, ["--nonsense"], tasks("say x")), (74, ["--output-dir", "/dev/null/x"], tasks("say x"))):
            with self.subTest(arguments=arguments, text=text):
                self.assertEqual(self.parallel("-q", "-j", "1", *arguments, input=text).returncode, status)


class Content(Commands):
    def outputs_of(self, form, batch):
        """What comes out of each task, and what jq makes of the whole where there is one."""
        completed = self.parallel(form, "-q", input=batch)
        found = self.lines_of(completed) if form == "--jsonl" else self.report_of(completed)["results"]
        if not shutil.which("jq"):
            return [result["output"] for result in found], None
        shown = self.run_program(["jq", "-c", "if .results then .results[] else . end | [.index, (.output | length)]"], completed.stdout)
        self.assertEqual((shown.returncode, shown.stderr), (0, b""))
        return [result["output"] for result in found], sorted(json.loads(line) for line in shown.stdout.splitlines())

    def test_whatever_a_backend_prints_each_line_is_json_in_utf_8(self):
        self.install_answerers("cat", "claude")
        # in an answer, too, a stray byte is the lone surrogate that Python has for it
        answers = ["\udcff\udcfe\udc80 and \udcc3( and \udcf0\udc9f", "a\0b\n", "x" * 1000000, "\u2028 \x7f \x1b \" \\ \x00 \ufeff \uffff",
                   "\U0001f642" * 70000, "\udce5\udcae" * 5000, "\u5be9\u67e5" * 400]
        batch = json.dumps([{"backend": "echo", "prompt": answer} for answer in answers])
        for form in ("--jsonl", "--json"):
            with self.subTest(form=form):
                outputs, shown = self.outputs_of(form, batch)
                self.assertEqual([output == answer for output, answer in zip(outputs, answers)], [True] * len(answers))
                self.assertEqual(len(outputs), len(answers))
                self.assertIn(shown, (None, [[index, len(answer)] for index, answer in enumerate(answers)]))

    def test_half_a_surrogate_pair_in_a_backends_own_json_survives(self):
        raw = r'raw {"type": "result", "is_error": false, "result": "a\\ud800b\\udc00c\\u0000\\ud83d\\ude42", "session_id": "s"}'
        for form in ("--jsonl", "--json"):
            outputs, _ = self.outputs_of(form, tasks(raw, backend="claude"))
            # a lone high half would end jq's reading: it is broken up into the bytes that it stands for
            self.assertEqual(ascii(outputs), ascii(["a\udced\udca0\udc80b\udc00c\0\U0001f642"]))

    def test_prompts_of_any_size_and_look_arrive_as_they_are(self):
        self.install_answerers(*PROGRAMS)
        self.file("file", "not this")
        prompts = ["-x", "--help", "--", "@file", "/quit", "$HOME `id` %s \\n", " leading and trailing \n", "a\0b", "\r\n\r\nx", "\ufeffx",
                   "\u00e9\u5be9\U0001f642" * 25000, "z" * (3 << 20)]
        completed = self.parallel("--jsonl", "-q", "-b", "echo", input=json.dumps([{"prompt": prompt} for prompt in prompts]))
        self.assertEqual([result["output"] for result in self.lines_of(completed)], prompts)
        for backend, prompt in (("claude", "-x"), ("codex", "@file"), ("gemini", "--help"), ("claude", "\u5be9" * 70000)):
            with self.subTest(backend=backend):
                result, = self.lines_of(self.parallel("--jsonl", "-q", input=tasks(prompt, backend=backend)))
                self.assertEqual((result["status"], result["output"] == prompt), ("ok", True), result.get("error"))

    @only_linux
    def test_a_prompt_is_not_to_be_seen_by_others(self):
        write_program(os.path.join(self.bin, "claude"), b"#!/bin/sh\ntr '\\0' ' ' < /proc/$$/cmdline > cmdline\nenv > environment\n")
        self.parallel("-q", input=tasks("a very secret prompt", backend="claude"))
        for name, there in (("cmdline", b"--output-format"), ("environment", b"CLINVK_TASK=0")):
            content = self.wait_for_file(self.path(name))
            self.assertIn(there, content)
            self.assertNotIn(b"secret", content)


class Surroundings(Commands):
    def answer(self, prompt, env=None, arguments=(), **options):
        completed = self.parallel("--jsonl", "-q", "-j", "1", *arguments, input=tasks(prompt), env=env, **options)
        result, = self.lines_of(completed)
        self.assertEqual((result["status"], completed.stderr), ("ok", b""), result)
        return result["output"].splitlines()

    def test_a_backend_gets_no_descriptor_but_its_three(self):
        read, write = os.pipe()
        try:
            for arguments in ((), ("--workdir", self.directory), ("--output-dir", "out")):
                with self.subTest(arguments=arguments):
                    self.assertEqual(self.answer("fds", arguments=arguments, pass_fds=(read, write)), ["0 1 2"])
        finally:
            os.close(read)
            os.close(write)

    def test_a_backend_gets_the_environment_less_what_breaks_nested_runs(self):
        nesting = ("CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_SESSION_ACCESS_TOKEN")
        names = nesting + ("NO_COLOR", "CLINVK_TASK", "MINE", "HOME")
        answer = self.answer("; ".join("env " + name for name in names),
                             env=dict(dict.fromkeys(nesting, "1"), MINE="it's mine", NO_COLOR=""))
        self.assertEqual(answer, [name + " is not set" for name in nesting] + ["1", "0", "it's mine", self.home])

    def test_each_task_has_a_temporary_directory_of_its_own_that_does_not_stay(self):
        completed = self.parallel("--jsonl", "-q", "-j", "2", input=tasks(*["env TMPDIR; write-tmp; touch t%d; wait-for t%d" % (n, 1 - n)
                                                                            for n in range(2)]))
        places = [result["output"].strip() for result in self.lines_of(completed)]
        self.assertEqual(len(set(places)), 2)
        for place in places:
            self.assertTrue(place.startswith(self.tmp + "/"), place)
            self.assertFalse(os.path.exists(place))

    def test_a_task_runs_where_it_is_told_to(self):
        os.mkdir(self.path("sub dir"))
        self.assertEqual(self.answer("cwd; env PWD", arguments=("-w", "sub dir"))[:2], [self.path("sub dir")] * 2)
        self.assertEqual(self.answer("cwd"), [self.directory])

    def test_no_home_is_needed(self):
        read_only = self.path("read-only")
        os.mkdir(read_only, 0o500)
        for home in (read_only, "/nonexistent/home", None):
            with self.subTest(home=home):
                self.assertEqual(self.answer("say x", env={"HOME": home}), ["x"])
        self.assertEqual(os.listdir(read_only), [])

    def test_it_leaves_nothing_but_what_it_was_asked_for(self):
        self.parallel("--json", input=tasks("say x", "flood 100000", "exit 1"))
        self.assertEqual(sorted(os.listdir(self.directory)), ["bin", "home", "tmp"])
        self.assertEqual(os.listdir(self.home) + os.listdir(self.tmp), [])

    def test_it_runs_as_a_copy_under_another_name_and_as_a_module(self):
        with open(PROGRAM, "rb") as file:
            body = file.read().partition(b"\n")[2]
        os.mkdir(self.path("elsewhere"))
        write_program(self.path("elsewhere", "clinvk"), b"#!%s -Werror\n%s" % (os.fsencode(os.path.realpath(sys.executable)), body))
        for command, env in (([self.path("elsewhere", "clinvk")], {}), (["clinvk"], {"PATH": self.path("elsewhere") + ":" + self.environment["PATH"]}),
                             ([sys.executable, "-W", "error", "-m", "clinvk"], {"PYTHONPATH": ROOT, "PYTHONDONTWRITEBYTECODE": "1"})):
            with self.subTest(command=command):
                environment = self.environment_with(env)
                program = shutil.which(command[0], path=environment["PATH"])
                completed = self.run_program([program] + command[1:] + ["parallel", "--jsonl", "-q", "-b", "echo"], b'{"prompt": "say x"}', env)
                self.assertEqual((completed.returncode, completed.stderr), (0, b""))
                self.assertEqual(results(completed)[0]["output"], "x\n")

    def test_a_run_within_a_run_is_a_run(self):
        # a backend that calls clinvk itself: neither run takes the other's processes for its own
        write_program(os.path.join(self.bin, "claude"), b"#!/bin/sh\n/bin/cat > inner.json\n'%s' '%s' parallel -q --jsonl < inner.json >&2\n"
                      b"echo '{\"type\": \"result\", \"is_error\": false, \"result\": \"inner done\"}'\n"
                      % (os.fsencode(sys.executable), os.fsencode(PROGRAM)))
        self.assertEqual(self.lines_of(self.parallel("--jsonl", "-q", input=tasks(
            tasks("say inner", "touch inner-ran; say x").decode(), backend="claude")))[0]["output"], "inner done")
        self.assertTrue(self.has("inner-ran"))


class Guide(Commands):
    """The examples of the user's own guide to `parallel`, with fakes that answer with their prompt."""

    BASIC = {"tasks": [{"backend": "claude", "prompt": "审查 auth 模块"}, {"backend": "codex", "prompt": "为 API 添加日志"},
                       {"backend": "gemini", "prompt": "为 utils 生成测试"}]}
    AUDIT = {"tasks": [
        {"backend": "claude", "prompt": "审查此代码库的安全漏洞，重点关注注入攻击和认证问题", "approval_mode": "auto", "sandbox_mode": "read-only"},
        {"backend": "gemini", "prompt": "分析此代码的常见安全反模式和 OWASP Top 10 问题", "approval_mode": "auto", "sandbox_mode": "read-only"},
        {"backend": "codex", "prompt": "检查代码库中的硬编码密钥、API 密钥和凭证", "approval_mode": "auto", "sandbox_mode": "read-only"}],
        "max_parallel": 3}

    def setUp(self):
        if not shutil.which("bash"):
            self.skipTest("bash is not installed")
        super().setUp()
        self.install_answerers("claude", "codex", "gemini")
        os.unlink(os.path.join(self.bin, "cat"))  # the scripts use the real one
        write_program(os.path.join(self.bin, "clinvk"), b"#!/bin/sh\nexec '%s' -W error '%s' \"$@\"\n"
                      % (os.fsencode(sys.executable), os.fsencode(PROGRAM)))
        self.file("tasks.json", self.BASIC)

    def shell(self, script, status=0):
        completed = self.run_program(["bash", "-o", "pipefail", "-c", script])
        self.assertEqual((completed.returncode, completed.stderr), (status, b""), script)
        return completed.stdout.decode()

    def break_codex(self):
        """From now on it answers as a program whose requests are too many."""
        write_program(os.path.join(self.bin, "codex"), b"#!/bin/sh\ncat > /dev/null\n"
                      b"echo '{\"type\":\"turn.failed\",\"error\":{\"message\":\"exceeded retry limit, last status: 429 Too Many Requests\"}}'\nexit 1\n")

    def need_jq(self):
        if not shutil.which("jq"):
            self.skipTest("jq is not installed")

    def test_a_file_stdin_and_the_options_of_the_guide(self):
        for script in ("clinvk parallel --file tasks.json", "cat tasks.json | clinvk parallel", "clinvk parallel < tasks.json",
                       "clinvk parallel --file tasks.json --max-parallel 2", "clinvk parallel --file tasks.json --fail-fast"):
            with self.subTest(script=script):
                text = normal(self.shell(script).encode())
                self.assertIn("\n1    claude       OK         0.00s      审查 auth 模块\n2    codex        OK         0.00s      为 API 添加日志\n"
                              "3    gemini       OK         0.00s      为 utils 生成测试\n" + "-" * 60 + "\n"
                              "Total: 3 tasks, 3 completed, 0 failed, 471 tokens, $0.2500 (0.00s)\n", text)
                for line in ("[1] 审查 auth 模块", "[2] 为 API 添加日志", "[3] 为 utils 生成测试"):
                    self.assertIn("\n%s\n" % line, text)
        self.assertEqual(normal(self.shell("clinvk parallel --file tasks.json --quiet").encode()),
                         "Total: 3 tasks, 3 completed, 0 failed, 471 tokens, $0.2500 (0.00s)\n")

    def test_every_field_of_the_guide_is_taken(self):
        os.mkdir(self.path("project"))
        self.file("full.json", {"tasks": [{
            "backend": "claude", "prompt": "审查代码", "model": "claude-opus-4-5-20251101", "workdir": self.path("project"),
            "approval_mode": "auto", "sandbox_mode": "workspace", "output_format": "json", "max_tokens": 4096, "max_turns": 10,
            "system_prompt": "你是一个代码审查员。"}]})
        result, = json.loads(self.shell("clinvk parallel --file full.json --json"))["results"]
        self.assertEqual((result["output"], result["status"], result.get("warnings")), ("审查代码", "ok", None))

    def test_the_report_of_the_guide(self):
        self.file("security-audit.json", self.AUDIT)
        self.shell("clinvk parallel --file security-audit.json --json > security-report.json")
        with open(self.path("security-report.json"), "rb") as file:
            report = json.loads(file.read())
        self.assertEqual([report[name] for name in ("total_tasks", "completed", "failed")], [3, 3, 0])
        self.assertEqual([(result["index"], result["backend"], result["output"], result["exit_code"]) for result in report["results"]],
                         [(index, task["backend"], task["prompt"], 0) for index, task in enumerate(self.AUDIT["tasks"])])

    def test_its_patterns_with_jq(self):
        self.need_jq()
        self.assertEqual(self.shell("clinvk parallel --file tasks.json --json | jq '.results[].output'"),
                         '"审查 auth 模块"\n"为 API 添加日志"\n"为 utils 生成测试"\n')
        self.break_codex()
        self.assertEqual(self.shell("clinvk parallel --file tasks.json --json | jq '.results[] | select(.exit_code == 0) | .output'", 1),
                         '"审查 auth 模块"\n"为 utils 生成测试"\n')
        self.assertEqual(json.loads(self.shell(
            "clinvk parallel --file tasks.json --json | jq '.results[] | select(.exit_code != 0) | {index, backend, error}'", 1)),
            {"index": 1, "backend": "codex", "error": "exceeded retry limit, last status: 429 Too Many Requests"})
        self.assertRegex(self.shell("""
            result=$(clinvk parallel --file tasks.json --json)
            failed=$(echo "$result" | jq '.failed')
            if [ "$failed" -gt 0 ]; then
              echo "警告: $failed 个任务失败"
              echo "$result" | jq '.results[] | select(.exit_code != 0)'
              exit 1
            fi""", 1), r'\A警告: 1 个任务失败\n\{\n  "index": 1,')

    def test_its_first_ten_tasks_and_tasks_made_on_the_way(self):
        self.file("many.jsonl", "".join(json.dumps({"backend": "codex", "prompt": "为 %d.go 生成单元测试" % n}) + "\n" for n in range(12)))
        self.shell("head -n 10 many.jsonl > batch1.json")
        self.assertIn("Total: 10 tasks, 10 completed, 0 failed", self.shell("clinvk parallel --file batch1.json --quiet"))
        self.need_jq()
        self.assertIn("Total: 3 tasks, 3 completed", self.shell("jq '.tasks[]' tasks.json | clinvk parallel --quiet"))
        self.assertEqual(self.shell("""jq -n '"auth", "user" | {backend: "codex", prompt: "为 \\(.).go 生成单元测试"}' |
            clinvk parallel --jsonl -q -j 1 | jq -r .output"""), "为 auth.go 生成单元测试\n为 user.go 生成单元测试\n")

    def test_one_prompt_for_several_projects(self):
        names = ("frontend", "backend", "worker")
        for name in names:
            os.mkdir(self.path(name))
        write_program(os.path.join(self.bin, "claude"), b"#!/bin/sh\ncat > /dev/null\ntouch updated\n"
                      b"echo '{\"type\": \"result\", \"is_error\": false, \"result\": \"done\"}'\n")
        self.file("projects.json", {"tasks": [{"backend": "claude", "prompt": "更新依赖并检查破坏性变更", "workdir": self.path(name)}
                                              for name in names]})
        self.assertIn("3 completed", self.shell("clinvk parallel --file projects.json -q"))
        self.assertEqual([self.has(name + "/updated") for name in names], [True] * 3)


if __name__ == "__main__":
    unittest.main()
