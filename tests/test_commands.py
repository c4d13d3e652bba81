"""Section 10, the commands: `clinvk parallel` as a black box, run as a program with fake AI programs.

What goes to stdout and what to stderr in every form, on pipes, files and terminals; what a dry run prints and an output directory
keeps; how tasks come in, in which order and how many at a time they run; and what a backend is given and what it is spared.  Commands of
the user's own, and how far a task file is trusted.  `clinvk doctor`.
"""
import ast
import fcntl
import functools
import itertools
import json
import os
import platform
import pty
import re
import resource
import select
import signal
import shlex
import shutil
import socket
import stat
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
import tty
import unicodedata
import unittest
from unittest import mock

import support
from support import (COMPILED, PATIENCE, PROGRAM, PROGRAMS, Case, clinvk, install_fakes, is_running, only_linux, results, tasks,
                     write_program)

STATUSES = ("ok", "failed", "timeout", "canceled", "lost", "skipped")
ERROR_KINDS = ("rate_limit quota overloaded network auth permission invalid context_length max_turns budget timeout stalled signal "
               "not_found no_output max_output schema check check_error no_change protected backend worker_lost canceled").split()
USAGE = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_output_tokens", "total_tokens", "cache_write_input_tokens")
REQUIRED = {"index": int, "backend": str, "status": str, "exit_code": int, "output": str, "attempts": int, "start_time": str,
            "end_time": str, "duration_seconds": (int, float)}
OPTIONAL = {"task_id": str, "task_name": str, "tags": list, "meta": dict, "model": str, "error": str, "error_kind": str,
            "retry_after_seconds": (int, float), "warnings": list, "session_id": str, "usage": dict, "cost_usd": (int, float),
            "num_turns": int, "limits": dict, "resumed": bool, "tries": list, "retry_at": str, "written": str, "data": dict, "log": str,
            "log_stderr": str, "check": dict, "sample": int, "samples": int, "cell": dict, "cell_number": int}
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


class Commands(support.ForkingCase):
    def set_in_forks(self, **constants):
        """Set constants of clinvk to the end of the test; a process that is no fork keeps its own."""
        for name, value in constants.items():
            patch = mock.patch.object(clinvk, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def command(self, *arguments):
        return [sys.executable, "-W", "error", COMPILED, "parallel", *arguments]

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
        install_fakes(self.bin, names, 'read = fakeai.read_prompt\nfakeai.read_prompt = lambda: b"rest\\n" + read()')

    def finished_pipe(self, data):
        """A pipe that contains `data` and has no writer any more, for the stdin of a run."""
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        os.write(writer, data)
        os.close(writer)
        return reader

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


@support.only_in_full_runs
class TextForm(Commands):
    BATCH = {"tasks": [
        {"backend": "claude", "name": "审查 auth 模块", "prompt": "wait-for second-was-read; say fine"},
        {"backend": "codex", "prompt": "wait-for third-was-read; fail exceeded retry limit, last status: 429 Too Many Requests"},
        {"backend": "echo", "prompt": "say two\\nlines\nstderr a second line of the prompt"}]}

    def test_answers_are_printed_as_tasks_end_and_then_the_table_in_order(self):
        process = self.start_parallel("--retries", "0", "--file", self.file("tasks.json", self.BATCH))
        self.assertEqual([process.line(), process.line()], [b"Running 3 tasks (max 3 parallel)...", b""])
        self.assertEqual([process.line(), process.line()], [b"[3] two", b"lines"])
        self.touch("third-was-read")
        self.assertEqual(process.line(), b"[2] FAILED: exceeded retry limit, last status: 429 Too Many Requests")
        self.touch("second-was-read")
        completed = process.finish()
        self.assertEqual(normal(completed.stdout), """\
[1 审查 auth 模块] fine

Results
============================================================
#    BACKEND      STATUS     DURATION   TASK
------------------------------------------------------------
1    claude       OK         0.00s      审查 auth 模块
2    codex        FAILED     0.00s      wait-for third-was-read; fail exceed...
     error: exceeded retry limit, last status: 429 Too Many Requests
3    echo         OK         0.00s      say two\\nlines
------------------------------------------------------------
Total: 3 tasks, 2 completed, 1 failed, 157 tokens, $0.2500 (0.00s)
""")
        self.assertEqual((completed.returncode, completed.stderr), (1, b""))

    def test_the_header_says_how_many_run_at_a_time_and_whether_it_fails_fast(self):
        one = self.file("one.json", {"tasks": [{"backend": "echo", "prompt": "say x"}], "max_parallel": 2, "fail_fast": True})
        for arguments, options, header in (
                (["-f", one], {}, "Running 1 task (max 2 parallel, fail-fast)..."),
                (["-f", one, "-j", "5"], {}, "Running 1 task (max 5 parallel, fail-fast)..."),
                (["--fail-fast"], {"stdin": self.finished_pipe(tasks("say x"))}, "Running 1 task (max 3 parallel, fail-fast)..."),
                ([], {"stdin": self.finished_pipe(tasks("say x", "say x"))}, "Running 2 tasks (max 3 parallel)...")):
            with self.subTest(header=header):
                completed = self.parallel(*arguments, **options)
                self.assertRegex(completed.stdout.decode(), r"\A%s\n\n\[[12]\] x\n" % re.escape(header))
                self.assertEqual(completed.stderr, b"")

    def test_header_while_the_pipe_is_still_written_has_no_number(self):
        process = self.start_parallel(stdin=subprocess.PIPE)
        process.stdin.write(tasks("say x"))
        self.assertEqual(process.line(), b"Running tasks (max 3 parallel)...")
        self.assertEqual(process.finish().returncode, 0)

    def test_an_answer_is_given_as_it_is_and_always_ends_its_line(self):
        self.install_answerers("cat")
        for answer in ("x", "x\n", "two\n\n", "\ttab, \x07bell and \x1b[31m"):
            with self.subTest(answer=answer):
                completed = self.parallel("-j", "1", "-f", self.file("t", tasks(answer)))
                start = b"Running 1 task (max 1 parallel)...\n\n[1] " + answer.encode() + (b"" if answer.endswith("\n") else b"\n")
                self.assertEqual(completed.stdout[:len(start) + 9], start + b"\nResults\n")

    def test_failed_task_is_shown_as_it_ends_and_in_the_table(self):
        batch = tasks("exit 3") + tasks("say a part; exit 3", name="src/mod_7.py", id="seven") + tasks("exit 3", id="eight")
        text = normal(self.parallel("-j", "1", "-f", self.file("t", batch)).stdout)
        self.assertEqual(text.split("\n")[2:8], [
            "[1] FAILED: exit status 3", "[2 src/mod_7.py] FAILED: exit status 3", "[2 src/mod_7.py] partial output: a part",
            "[3 eight] FAILED: exit status 3", "", "Results"])
        self.assertIn("\n1    echo         FAILED     0.00s      exit 3\n     error: exit status 3\n", text)

    def test_tasks_that_never_started_are_one_line_of_the_table(self):
        text = normal(self.parallel("-j", "1", "--fail-fast", "-f", self.file("t", tasks("exit 3", *["touch ran"] * 150))).stdout)
        self.assertEqual(text.partition("\n\n")[2], """\
[1] FAILED: exit status 3

Results
============================================================
#    BACKEND      STATUS     DURATION   TASK
------------------------------------------------------------
1    echo         FAILED     0.00s      exit 3
     error: exit status 3
                  CANCELED   150 tasks never started (fail-fast)
------------------------------------------------------------
Total: 151 tasks, 0 completed, 1 failed, 150 canceled (0.00s)
""")

    def test_warnings_are_under_the_row_of_their_task(self):
        denial = {"type": "result", "is_error": False, "result": "done", "permission_denials": [
            {"tool_name": "Bash", "tool_input": {"command": "make"}}]}
        batch = tasks("raw " + json.dumps(denial), backend="claude") + tasks("say x", max_turns=3)
        completed = self.parallel("-f", self.file("t", batch))
        first, second = [result["warnings"][0] for result in self.lines_of(self.parallel("--jsonl", "-q", input=batch))]
        rows = normal(completed.stdout).partition("#")[2].split("\n")
        self.assertEqual((rows[3], rows[5]), ("     warning: " + first, "     warning: " + second))
        self.assertEqual(completed.returncode, 0)

    def test_quiet_prints_totals_and_each_distinct_error_once(self):
        long = "no luck: " + "x" * 300
        completed = self.parallel("--quiet", "-j", "1", input=tasks("say x", "exit 3", "stderr %s; exit 4" % long, "exit 3", "say y"))
        self.assertEqual((completed.returncode, normal(completed.stdout), completed.stderr),
                         (1, "Total: 5 tasks, 2 completed, 3 failed (0.00s)\n2 failed: exit status 3\n1 failed: %s\n" % long, b""))
        self.assertEqual(normal(self.parallel("--quiet", input=tasks("say x")).stdout).count("\n"), 1)

    def test_only_what_there_is_is_added_to_the_total(self):
        batch = tasks("say x") + tasks("say y", dry_run=True) + tasks("exit 1", "sleep 300")
        completed = self.parallel("-q", "-j", "1", "--fail-fast", input=batch)
        self.assertEqual(normal(completed.stdout), "Total: 4 tasks, 1 completed, 1 failed, 1 canceled, 1 skipped (0.00s)\n1 failed: exit status 1\n1 canceled: never started (fail-fast)\n")

    def test_rows_do_not_break_whatever_names_and_errors_hold(self):
        completed = self.parallel(input=tasks("fail a\\nb\x1b[2J\t c", name="one\ttwo\nthree\x1b]0;x\x07"))
        self.assertIn("\n1    echo         FAILED     0.00s      one two\n     error: a\\nb^[[2J c\n---", normal(completed.stdout))
        self.assertIn("\n[1 one two] FAILED: a\\nb^[[2J\t c\n", normal(completed.stdout))


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
Total: 1 task, 1 completed, 0 failed (0.00s)
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
    @support.only_in_full_runs
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
        completed = self.parallel("--jsonl", "-q", "--retries", "0", input=batch, env={"PATH": self.bin})
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
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+|\x1b", data.decode("utf-8", "surrogateescape")):
        if token == "\r":
            column = 0
        elif token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif token == "\x1b[J":
            lines[row:] = [lines[row][:column]]
        elif token.startswith("\x1b[") and token.endswith("A"):
            row -= int(token[2:-1])
        elif not token.startswith("\x1b"):
            lines[row] = lines[row][:column] + token + lines[row][column + len(token):]
            column += len(token)
    return lines


STATUS_LINE = re.compile(rb"\[[0-9]+(/[0-9]+)?\] [0-9]+ running(, [0-9]+ failed)?, [0-9]{2}:[0-9]{2}")


@support.only_in_full_runs
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
        terminal.wait_for(rb"\[2/3\] 1 running, 1 failed, \d\d:\d\d")
        self.touch("go")
        data = terminal.rest()
        self.assertEqual(process.finish().returncode, 1)
        for found in STATUS_LINE.finditer(data):
            self.assertRegex(data[found.end():], rb"\A\r(\x1b\[\dA)?\x1b\[J")
            self.assertIn(data[:found.start()][-1:], (b"\n", b"J"))
        self.assertEqual(normal("\n".join(screen(data)).encode()), """\
Running 3 tasks (max 2 parallel)...

[1] one
[3] FAILED: exit status 3
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

    def test_what_is_shown_stays_where_a_result_writes_nothing_to_the_terminal(self):
        script = self.file("counting.py", textwrap.dedent("""
            import sys
            sys.path.insert(0, %r)
            import clinvk
            if __name__ == "__main__":
                hide, calls = clinvk.Progress.hide, []
                clinvk.Progress.hide = lambda progress, *given: (calls.append(1), hide(progress, *given))
                status = clinvk.main(["parallel", "-f", sys.argv[1], *sys.argv[2:]])
                print("hidden", len(calls), status)
            """ % support.MODULES))
        file = self.file("input", tasks(*["say x"] * 12))
        for options, at_least, at_most in (((), 12, 99), (("-q",), 1, 3), (("--json",), 1, 3)):
            terminal = self.terminal()
            self.start_program([sys.executable, script, file, *options], stdout=terminal.slave, stderr=terminal.slave)
            terminal.detach()
            hidden, status = re.search(rb"hidden (\d+) (\d+)", terminal.rest()).groups()
            self.assertEqual(status, b"0")
            self.assertTrue(at_least <= int(hidden) <= at_most, (options, hidden))

    def test_the_status_line_goes_to_stderr_and_leaves_a_piped_stdout_clean(self):
        terminal = self.terminal()
        process = self.start_on(terminal, "--jsonl", "-f", self.file("t", tasks("wait-for go; say x")), stdout=subprocess.PIPE)
        terminal.wait_for(rb"\[0/1\] 1 running, \d\d:\d\d")
        self.touch("go")
        completed = process.finish()
        self.assertEqual([result["output"] for result in self.lines_of(completed)], ["x\n"])
        self.assertEqual(screen(terminal.rest())[:2], ["", "Results"])

    def test_status_line_of_a_finished_pipe_has_the_number_of_tasks(self):
        terminal = self.terminal()
        stdin = self.finished_pipe(tasks("exit 0", "wait-for go; say x"))
        process = self.start_on(terminal, "--json", stdout=subprocess.PIPE, stdin=stdin)
        terminal.wait_for(rb"\[1/2\] 1 running")
        self.touch("go")
        self.report_of(process.finish())

    def test_where_the_number_of_tasks_is_not_known_the_status_line_does_not_say_it(self):
        terminal = self.terminal()
        process = self.start_on(terminal, "--json", stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        process.stdin.write(tasks("wait-for go; say x"))
        terminal.wait_for(rb"\[0\] 1 running, \d\d:\d\d")
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
        for part in terminal.rest().split(b"\r\x1b[J"):
            self.assertLess(len(part), 16)

    def test_without_a_terminal_there_is_no_progress_unless_it_is_asked_for(self):
        batch = self.file("t", tasks("say x", "exit 1"))
        self.assertEqual(self.parallel("--json", "-f", batch).stderr, b"")
        lines = self.parallel("--json", "-f", batch, "-j", "1", "--progress", "always").stderr.decode().splitlines()
        self.assertEqual(len(lines), 2)
        self.assertRegex(lines[0], r"\A\[1/2\] [01] running, \d\d:\d\d(, about \S+ left)?\Z")
        self.assertRegex(lines[1], r"\A\[2/2\] [01] running, 1 failed, \d\d:\d\d\Z")

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
        for arguments, env, expected in (([], {"NO_COLOR": "1"}, plain), (["--color=auto"], {"NO_COLOR": ""}, colored),
                                         ([], {"TERM": "dumb"}, plain), (["--color", "never"], {}, plain),
                                         (["--color", "always"], {"NO_COLOR": "1", "TERM": "dumb"}, colored)):
            with self.subTest(arguments=arguments, env=env):
                self.assertRegex(self.on_terminal("-j", "1", "--progress", "never", *arguments, input=batch, env=env), expected)
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

    def test_table_is_fitted_to_the_width_of_the_terminal_by_columns(self):
        batch = tasks("say 审查代码库的安全漏洞重点关注注入攻击和认证问题" * 3, "fail " + "错误" * 60, "say a" + "b" * 100, "say short")
        for width in (60, 61, 100):
            with self.subTest(width=width):
                lines = screen(self.on_terminal("--progress", "never", input=batch, width=width))
                table = lines[lines.index("Results") + 4:-3]
                self.assertEqual([row for row in table if columns(row) > width], [])
                rows = [row for row in table if not row.startswith(" ")]
                self.assertEqual([row[-3:] for row in rows[:3]], ["..."] * 3)
                self.assertGreaterEqual(min(columns(row) for row in rows[:3]), width - 3, rows)  # and not cut more than need be
                self.assertTrue(rows[3].endswith("  say short"))
                error = [row for row in table if row.startswith(" ")]  # which is wrapped
                self.assertEqual("".join(row[12:] for row in error), "错误" * 60)
                self.assertEqual([row[:12] for row in error], ["     error: "] + [" " * 12] * (len(error) - 1))
                self.assertGreaterEqual(min(columns(row) for row in error[:-1]), width - 1)

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
            "clinvk: warning: stdin:1: max_parallel: 9 is not applied: an earlier batch of this run set 2", ""])


# Writes down how it was called, in the next file of the directory that DUMPS names; a file among its temporary ones by its content.
DUMP = r"""
import os, sys
directory = os.environ["DUMPS"]

def shown(word):
    option, place, name = word.partition(os.environ["TMPDIR"] + "/")
    if not place:
        return word
    with open(place + name, "rb") as file:
        return "%s<%s>" % (option, file.read().decode("utf-8", "surrogateescape"))

argv = list(map(shown, sys.argv[1:]))
record = {"program": os.path.basename(sys.argv[0]), "argv": argv, "cwd": os.getcwd(), "env": dict(os.environ)}
if "GEMINI_SYSTEM_MD" in os.environ:  # before the prompt, as gemini does
    with open(os.environ["GEMINI_SYSTEM_MD"], "rb") as file:
        record["system"] = file.read().decode("utf-8", "surrogateescape")
record["stdin"] = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
with open(os.path.join(directory, "%03d" % len(os.listdir(directory))), "w") as file:
    file.write(ascii(record))  # importing json would take as long as all the rest
"""
# What a shell sets on its own, what only a run has, and what Python sets where the locale is C.
NOT_COMPARED = ("_", "SHLVL", "OLDPWD", "CLINVK_RUN", "CLINVK_TASK", "TMPDIR", "GEMINI_SYSTEM_MD", "LC_CTYPE", "LOGNAME",
                "DUMPS")

AWKWARD_PROMPTS = ("plain", "it's \"quoted\" $HOME ${x} `id` $(id) \\ !! ~ * ? [a] {b} #c", "two\nlines\n\ttab \r return", "-n", "--help",
                   "审查 é \U0001f642", "\x01\x1b[31m\x7f\u009b\u200b", "'", "''\\''", "ends in newlines\n\n", "\udcff\ud800", "<<< 'x'", "%s %d")


@support.only_in_full_runs
class DryRun(Commands):
    # commands of the user's own among the programs that write down how they were called
    DEFINITIONS = {"reader": {"command": ["dump", "-m", "{model}", "-x", "{max_turns}", "it's {workdir}; $(touch ran)"]},
                   "filer": {"command": ["dump", "--prompt={prompt_file}", "-s", "{system_prompt}", "{{model}}", "*"]}}
    SECRET = "a secret's value: $HOME `id` *"

    def batch(self):
        where = self.path("it's a \"dir\"")
        os.makedirs(where, exist_ok=True)
        full = {"model": "m-1 'x'", "system_prompt": "Be \"brief\".\nIt's $HOME \\ 审查\n", "extra": ["--flag", "with blank", "it's"],
                "workdir": where, "max_turns": 4, "max_tokens": 100, "verbose": True, "approval_mode": "none", "sandbox_mode": "full",
                "timeout": 60}
        batch = [dict({"prompt": prompt}, backend="echo") for prompt in AWKWARD_PROMPTS]
        batch += [dict(full, backend=backend, prompt="full\n" + AWKWARD_PROMPTS[1]) for backend in ("claude", "codex", "gemini")]
        batch += [{"backend": backend, "prompt": "simple", "sandbox_mode": "read-only", "approval_mode": "auto"}
                  for backend in ("claude", "codex", "gemini")]
        own = {name: value for name, value in full.items() if name not in ("max_turns", "verbose")}
        batch += [dict(own, backend="filer", prompt=prompt) for prompt in AWKWARD_PROMPTS]
        batch += [dict(own, backend="reader", prompt="own"), {"backend": "reader", "prompt": "alone"}, {"backend": "filer", "prompt": "alone"}]
        batch += [{"backend": backend, "prompt": "1%s2%s" % (self.SECRET, self.SECRET), "system_prompt": "x" + self.SECRET}
                  for backend in ("claude", "codex", "gemini", "filer")]
        return batch

    def dumps_of(self, run):
        """What the programs wrote down that `run` has called, one after the other."""
        directory = self.path("dumps")
        shutil.rmtree(directory, ignore_errors=True)
        os.mkdir(directory)
        run({"DUMPS": directory, "CLAUDECODE": "1", "CLAUDE_CODE_ENTRYPOINT": "cli", "NO_COLOR": "", "LC_ALL": "C.UTF-8",
             "CLINVK_BACKENDS": json.dumps(self.DEFINITIONS), "X_API_KEY": self.SECRET})
        records = []
        for name in sorted(os.listdir(directory)):
            with open(os.path.join(directory, name)) as file:
                record = ast.literal_eval(file.read())
            record["env"] = {key: value for key, value in record["env"].items()
                             if key not in NOT_COMPARED and not key.startswith("CLINVK_RUN_")}
            records.append(record)
        return records

    def test_each_line_does_in_a_shell_what_the_task_would_do(self):
        for name in PROGRAMS + ("dump",):
            write_program(os.path.join(self.bin, name), b"#!%s -IS\n%s" % (os.fsencode(os.path.realpath(sys.executable)), DUMP.encode()))
        batch = self.batch()
        path = self.file("batch.json", batch)
        real = self.dumps_of(lambda env: self.parallel("-q", "-j", "1", "-f", path, env=env))
        self.assertEqual(len(real), len(batch))
        self.assertEqual([record["stdin"].encode("utf-8", "surrogateescape") or record["argv"][0][10:-1].encode("utf-8", "surrogateescape")
                          for record in real],
                         [task["prompt"].encode("utf-8", "surrogatepass").replace(b"\xed\xb3\xbf", b"\xff") for task in batch])
        lines = []
        self.assertEqual(self.dumps_of(lambda env: lines.extend(
            self.parallel("--dry-run", "-f", path, env=env).stdout.splitlines())), [])
        self.assertEqual(len(lines), len(batch))
        self.assertEqual(len([line for line in lines if b'"$X_API_KEY"' in line]), 4)
        self.assertEqual([line for line in lines if b"a secret" in line], [])
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
                    ours = dict(ours, stdin=ours["stdin"] and ours["stdin"] + "\n")  # a here-string ends its line
                    if ours["cwd"] == self.directory:  # nothing sets it there
                        for record in (theirs, ours):
                            record["env"].pop("PWD", None)
                    self.assertEqual(theirs, ours, line)
        self.assertFalse(self.has("ran"))

    def test_a_line_is_one_line_to_read(self):
        completed = self.parallel("--dry-run", input=json.dumps(self.batch()), env={"CLINVK_BACKENDS": json.dumps(self.DEFINITIONS)})
        self.assertEqual(completed.returncode, 0)
        self.assertRegex(completed.stderr.decode(), r"\A(clinvk: warning: \w+ has no \w+; it was not applied\n)+\Z")
        lines = completed.stdout.decode("utf-8").split("\n")
        self.assertEqual(len(lines), len(self.batch()) + 1)
        self.assertEqual([line for line in lines[:-1] if not line.isprintable()], [])
        self.assertEqual(lines[0], "env NO_COLOR=1 cat <<< plain")
        self.assertEqual(lines[2], "env NO_COLOR=1 cat <<< $'two\\nlines\\n\\ttab \\r return'")
        self.assertTrue(lines[len(AWKWARD_PROMPTS)].startswith("(cd -- '%s/it'\"'\"'s a \"dir\"' && env " % self.directory), lines)

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


@support.only_in_full_runs
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
        support.wait_until(lambda: os.listdir(self.path("deep", "out")) == ["001_task-1.json"], "the file has no other name any more")
        self.touch("go")
        self.assertEqual(process.finish().returncode, 0)
        self.assertEqual(sorted(os.listdir(self.path("deep", "out"))), ["001_task-1.json", "002_task-2.json", "summary.json"])

    def test_the_option_beats_the_batch(self):
        self.parallel("-q", "--output-dir", self.path("mine"), input=json.dumps({"output_dir": "theirs", "tasks": [
            {"backend": "echo", "prompt": "say x"}]}))
        self.assertTrue(self.has("mine/summary.json"))
        self.assertFalse(self.has("theirs"))

    def outputs(self):
        """What the result files in `out` contain."""
        return {name: self.read("out", name)["result"]["output"] for name in os.listdir(self.path("out")) if name != "summary.json"}

    def test_failed_task_that_runs_again_replaces_its_result_under_another_number(self):
        for batch, status in ((tasks("say a", id="a") + tasks("say b", id="x/log") + tasks("exit 3", id="log"), 1), (tasks("say c", id="log"), 0)):
            self.assertEqual(self.parallel("-q", "--output-dir", "out", input=batch).returncode, status)
        self.assertEqual(self.outputs(), {"001_a.json": "a\n", "002_x_log.json": "b\n", "001_log.json": "c\n"})
        self.parallel("-q", "--output-dir", "out", input=tasks("say d", id="x.log"))
        self.assertEqual(self.outputs()["002_x_log.json"], "b\n")  # the names are alike, but not the ids

    def test_second_run_in_a_directory_needs_ids_or_overwrite(self):
        self.parallel("-q", "--output-dir", "out", input=tasks("say one"))
        for batch in (tasks("touch ran"), tasks("touch ran", id="a") + tasks("touch ran")):
            for options in ({"stdin": self.finished_pipe(batch)}, {"arguments": ["-f", self.file("t", batch)]}):
                completed = self.parallel("--output-dir", "out", *options.pop("arguments", ()), **options)
                self.assert_refused(completed, "output_dir out: it contains results of an earlier run: choose another directory, or replace them with --overwrite")
        self.assertEqual((self.outputs(), self.has("ran")), ({"001_task-1.json": "one\n"}, False))
        self.assertEqual(self.parallel("-q", "--output-dir", "out", "--overwrite", input=tasks("say two")).returncode, 0)
        self.assertEqual(self.outputs(), {"001_task-1.json": "two\n"})
        for word in ("three", "four"):
            completed = self.parallel("-q", "--output-dir", "out", input=tasks("say " + word, id="a"))
            self.assertEqual((completed.returncode, completed.stderr), (0, b""))
        self.assertEqual(self.outputs(), {"001_task-1.json": "two\n", "001_a.json": "four\n"})
        self.assert_refused(self.parallel("--overwrite", input=tasks("touch ran")), "--overwrite: there are no files of answers; give --output-dir or --write-to")

    def test_task_without_an_id_that_comes_later_by_pipe_keeps_its_answer(self):
        self.parallel("-q", "--output-dir", "out", input=tasks("say one", "say one"))
        process = self.start_parallel("-q", "--output-dir", "out", stdin=subprocess.PIPE)
        process.stdin.write(tasks("say two", id="a"))
        self.wait_for_file(self.path("out", "001_a.json"))
        process.stdin.write(tasks("say two"))
        completed = process.finish()
        self.assertEqual(completed.returncode, 0)
        self.assertEqual(completed.stderr, b"clinvk: warning: output_dir out: 002_task-2.json is kept, because clinvk did not write it for this task: "
                         b"this result is in 002_task-2.1.json\n")
        self.assertEqual(self.outputs(), {"001_task-1.json": "one\n", "002_task-2.json": "one\n", "001_a.json": "two\n", "002_task-2.1.json": "two\n"})

    def test_two_runs_at_once_in_one_directory_and_after_a_kill(self):
        batch = self.file("t", tasks("touch started; wait-for go; say x", id="a"))
        first = self.start_parallel("-q", "--output-dir", "out", "-f", batch)
        self.wait_for_file(self.path("started"))
        for arguments in ([], ["--overwrite"]):
            completed = self.parallel("--output-dir", "out", *arguments, input=tasks("touch ran", id="a"))
            self.assertEqual((completed.returncode, completed.stdout, completed.stderr),
                             (74, b"", b"clinvk: error: cannot write to output_dir out: another clinvk is writing to it\n"))
        first.kill()
        first.wait()
        self.wait_until_nothing_runs()
        self.assertEqual(self.parallel("-q", "--output-dir", "out", input=tasks("say x", id="a")).returncode, 0)
        self.assertFalse(self.has("ran"))

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

    def test_nothing_is_made_where_one_of_the_places_cannot_be_written(self):
        self.file("file", "")
        places = {"--results": "results", "--log-dir": "logs/a", "--output-dir": "out/a"}
        before = sorted(os.listdir(self.directory))
        for option, bad, reason in (("--results", "file/x", "Not a directory"), ("--results", "no/x", "No such file or directory"),
                                    ("--log-dir", "file/x", "Not a directory"), ("--output-dir", "file/x", "Not a directory")):
            words = [word for pair in dict(places, **{option: bad}).items() for word in pair]
            run = self.parallel(*words, input=tasks("touch ran"))
            self.assertEqual((run.returncode, run.stdout), (74, b""))
            self.assertRegex(run.stderr.decode(), r"^clinvk: error: cannot write \S.* %s: %s\n\Z" % (bad, reason))
            self.assertEqual(sorted(os.listdir(self.directory)), before)

    def test_results_may_be_in_an_output_directory_that_is_to_be_made(self):
        for place in ("out", "above"):
            run = self.parallel("--jsonl", "-q", "--output-dir", place + "/new" * (place == "above"), "--results", place + "/r.jsonl", input=tasks("say x"))
            self.assertEqual((run.returncode, run.stderr), (0, b""))
            self.assertTrue(self.has(place + "/r.jsonl"))

    def test_a_directory_that_fails_later_is_told_of_and_the_run_goes_on(self):
        process = self.start_parallel("-j", "1", "--jsonl", "-q", "--output-dir", "out", "-f",
                                      self.file("t", tasks("say one", "touch runs; wait-for go; say two", "say three")))
        self.wait_for_file(self.path("runs"))  # then the first result has been written
        shutil.rmtree(self.path("out"))
        self.touch("go")
        completed = process.finish()
        self.assertEqual([result["output"] for result in self.lines_of(completed)], ["one\n", "two\n", "three\n"])
        self.assertEqual(completed.returncode, 74)
        self.assertRegex(completed.stderr.decode(), r"\Aclinvk: error: cannot write out/002_task-2\.json: No such file or directory\n\Z")

    def test_tmpdir_removed_by_a_task_answers_every_task_and_exits_with_74(self):
        os.mkdir(self.path("gone"))
        process = self.start_parallel("-j", "1", "--json", "-q", "-f", self.file("t", tasks("touch runs; wait-for go; say one", "say two", "say three")),
                                      env={"TMPDIR": self.path("gone")})
        self.wait_for_file(self.path("runs"))
        shutil.rmtree(self.path("gone"))
        self.touch("go")
        completed = process.finish()
        first, *others = [result["status"] for result in self.report_of(completed)["results"]]
        self.assertEqual((first, others[0], others[1] in ("failed", "canceled")), ("ok", "failed", True))
        self.assertEqual(completed.returncode, 74)
        self.assertRegex(completed.stderr.decode(), r"\Aclinvk: error: cannot write temporary files to [^\n]*: No such file or directory\n\Z")


def python(source):
    """The argv of a small program."""
    return [sys.executable, "-IS", "-c", textwrap.dedent(source)]


COPY = python("import sys; sys.stdout.write(sys.stdin.read())")
RAW = python("import ast, sys; sys.stdout.write(ast.literal_eval(sys.stdin.read()))")  # prints the text whose Python literal the prompt is
HOW_CALLED = python("import json, sys; print(json.dumps(sys.argv[1:] + [sys.stdin.read()]))")


def defined(**definitions):
    """The environment in which these commands are backends."""
    return {"CLINVK_BACKENDS": json.dumps(definitions)}


@support.only_in_full_runs
class Templates(Commands):
    """Each item of a list becomes a task."""

    def setUp(self):
        super().setUp()
        self.install_answerers("cat")  # of the backend echo

    def outputs(self, *arguments, input=b"", **options):
        run = self.parallel("-b", "echo", "--jsonl", "-q", *arguments, input=input, **options)
        self.assertEqual((run.stderr, run.returncode), (b"", 0))
        return [result["output"] for result in self.lines_of(run)]

    def test_items_are_arguments_lines_or_what_nul_bytes_separate(self):
        names = ["src/a b.py", "src/$(touch ran).py", "-x.py", "src/审.py"]
        expected = ["%d Test %s in %s" % (number, name, os.path.dirname(name) or ".") for number, name in enumerate(names, 1)]
        template = ("--prompt", "{#} Test {} in {//}")
        lines = "".join(name + "\n" for name in names).encode()
        self.file("items", lines)
        self.assertEqual(self.outputs(*template, "--", *names), expected)
        self.assertEqual(self.outputs(*template, input=lines), expected)
        self.assertEqual(self.outputs(*template, "-0", input=lines.replace(b"\n", b"\0")), expected)
        self.assertEqual(self.outputs(*template, "--items", self.path("items")), expected)
        self.assertEqual(self.outputs(*template, "--items", "-", input=lines), expected)
        self.assertEqual(self.outputs("--prompt-file", "-", "a", "b", input=b"- {}\n"), ["- a\n", "- b\n"])
        self.assertEqual(self.outputs("--prompt", "- {}", "a", "b"), ["- a", "- b"])
        self.assertFalse(self.has("ran"))

    def test_json_values_are_items_where_the_template_has_fields(self):
        issues = [{"n": 1, "title": "A", "body": "a {.n} @/etc/passwd"}, {"n": 2, "title": "B", "body": "/init"}]
        expected = ["Summarize A: a {.n} @/etc/passwd", "Summarize B: /init"]
        for data in (json.dumps(issues), "".join(json.dumps(issue) + "\n" for issue in issues)):
            run = self.parallel("-b", "echo", "--jsonl", "-q", "--prompt", "Summarize {.title}: {.body}", "--id", "pr-{.n}", "--name", "{.title}", input=data.encode())
            self.assertEqual([(result["task_id"], result["task_name"], result["output"]) for result in self.lines_of(run)],
                             [("pr-1", "A", expected[0]), ("pr-2", "B", expected[1])])

    def test_rows_of_a_table_and_contents_of_files(self):
        table = 'id,text\n7,"one, ""1""\n@x"\n8,/two\n'
        self.file("t.csv", table)
        for arguments, data in ((("--csv", self.path("t.csv")), b""), (("--csv", "-"), table.encode()), (("--tsv=-",), table.encode().replace(b",", b"\t", 1).replace(b"7,", b"7\t").replace(b"8,", b"8\t"))):
            self.assertEqual(self.outputs(*arguments, "--prompt", "Label {text}", input=data), ['Label one, "1"\n@x', "Label /two"])
        self.assertEqual(self.outputs("--prompt", "Translate\n{@}", self.path("t.csv")), ["Translate\n" + table])
        run = self.parallel("-b", "echo", "--jsonl", "-q", "--prompt", "{@}", "-0", "--root", self.directory, "-w", self.directory, input=os.fsencode(self.path("t.csv")) + b"\0/etc/passwd\0")
        self.assertEqual([(result["output"], result.get("error_kind")) for result in self.lines_of(run)], [(table, None), ("", "invalid")])

    def test_workdir_of_each_item(self):
        for name in ("one", "two"):
            os.mkdir(self.path(name))
        run = self.parallel("--jsonl", "-q", "--dry-run", "--prompt", "Fix the tests", "-w", "{}", "one", "two", cwd=self.directory)
        self.assertEqual([result["output"].split("; ")[0].split(" && ")[0] for result in self.lines_of(run)], ["(cd -- one", "(cd -- two"])

    def test_task_starts_as_soon_as_its_item_has_come(self):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        run = self.start_parallel("-b", "echo", "--jsonl", "-q", "--prompt", "Triage {}", stdin=reader)
        os.write(writer, b"one\ntw")
        self.assertEqual(json.loads(run.line())["output"], "Triage one")
        os.write(writer, b"o\n")
        self.assertEqual(json.loads(run.line())["output"], "Triage two")
        os.close(writer)
        self.assertEqual(run.wait(), 0)

    def test_run_of_items_is_continued_by_its_results(self):
        template = ("-b", "echo", "-q", "--results", self.path("r"), "--prompt", "Migrate {}")
        self.assertEqual(self.parallel(*template, "--", "a", "b").returncode, 0)
        run = self.parallel(*template, "--resume", "--", "c", "b", "a")
        self.assertIn(b"3 completed (2 from an earlier run)", run.stdout)
        self.assertEqual(self.parallel(*template, "--resume", "--shard", "2/2", "--", "c", "x").stdout.split(b" (")[0], b"Total: 1 task, 1 completed, 0 failed")

    def test_failed_result_of_an_earlier_run_is_not_tried_again(self):
        common = ("-b", "echo", "-q", "--check", 'grep -q a "$CLINVK_OUTPUT"', "--results", self.path("r"), "--resume", "--prompt", "{}")
        self.assertEqual(self.parallel(*common, "--repeat", "2", "--", "b").returncode, 1)
        again = self.parallel(*common, "--", "b")
        self.assertEqual((again.returncode, again.stderr), (1, b""))
        self.assertIn(b"try the failed tasks again", self.parallel(*common, "--", "b", "c").stderr)
        with open(self.path("r")) as file:
            self.assertEqual(len(file.readlines()), 3)

    def test_list_of_what_is_left_has_no_failures_of_an_earlier_run(self):
        common = ("-b", "echo", "--check", "exit 3", "--results", self.path("r"), "--resume", "--repeat", "2", "--prompt", "{.a}")
        self.assertEqual(self.parallel(*common, "-q", input=b'{"a": "x"}').returncode, 1)
        for option, lines in (("--dry-run", 2), ("--emit-tasks", 1)):
            for data, message in ((b'{"a": "x"}{"a": "y"}', b""), (b'{"a": "x"}{"a": "y"}{}', b"clinvk: error: stdin:1: the item has no field .a\n")):
                listed = self.parallel(*common, option, input=data)
                self.assertEqual((listed.returncode, listed.stdout.count(b"\n"), listed.stderr), (int(bool(message)), lines, message))

    def test_command_that_continues_a_run_of_arguments_needs_no_input(self):
        run = self.parallel("-q", "--results", self.path("r"), "--prompt", "{}", "-w", "/no/{}", "--", "a")
        self.assertRegex(run.stderr.decode(), r"\Aclinvk: to try the failed tasks again: \S+ .*--prompt '\{\}' -w '/no/\{\}' --resume -- a\n\Z")

    def test_emitted_tasks_are_the_input_of_the_same_run(self):
        self.file("configuration.yaml", "backends:\n  claude:\n    extra_flags: [--from-file]\n    model: small\n")
        options = ("--config", self.path("configuration.yaml"), "--sandbox-mode", "read-only", "--timeout", "15m")
        tasks = {"tasks": [{"prompt": "审 @/etc/passwd", "id": "\ud800", "workdir": "/", "effort": "high", "extra": ["-x"], "meta": {"k": [1]}},
                           {"prompt": "b", "backend": "gemini", "dry_run": True}],
                 "defaults": {"tags": ["t"]}, "max_parallel": 2}
        for arguments, data in ((("--prompt", "{} @/etc/passwd", "--id", "{#}", "-w", "/{}", "a", "b"), b""), ((), json.dumps(tasks).encode())):
            planned = self.parallel("--dry-run", *options, *arguments, input=data).stdout
            self.assertEqual(len(planned.splitlines()), 2)
            emitted = self.parallel("--emit-tasks", *options, *arguments, input=data)
            self.assertEqual((emitted.stderr, emitted.returncode), (b"", 0))
            self.assertEqual(self.parallel("--dry-run", "--config", self.path("configuration.yaml"), input=emitted.stdout).stdout, planned)
            again = self.parallel("--emit-tasks", "--config", self.path("configuration.yaml"), input=emitted.stdout)
            self.assertEqual(again.stdout, emitted.stdout)
        first = json.loads(emitted.stdout.splitlines()[0].decode())
        self.assertEqual(list(first.items()), [
            ("id", "\ud800"), ("backend", "claude"), ("prompt", "审 @/etc/passwd"), ("model", "small"), ("effort", "high"), ("workdir", "/"),
            ("sandbox_mode", "read-only"), ("timeout", 900), ("extra", ["-x"]), ("tags", ["t"]), ("meta", {"k": [1]})])
        self.assertTrue(b'"literal":true' in self.parallel("--emit-tasks", "--prompt", "{}", "a").stdout)

    def test_emitted_check_is_run_with_the_option_that_the_error_names(self):
        emitted = self.parallel("--emit-tasks", "-b", "echo", "--prompt", "say {}", "--check", "exit 3", "a").stdout
        refused = self.parallel(input=emitted)
        self.assertEqual((refused.returncode, refused.stderr), (2, b"clinvk: error: stdin:1: check: commands that a task defines are only run with --allow-commands\n"))
        result, = self.lines_of(self.parallel("--allow-commands", "--jsonl", "-q", input=emitted))
        self.assertEqual((result["error_kind"], result["check"]["command"]), ("check", "exit 3"))

    def test_emitted_tasks_are_those_that_are_left_and_bad_input_is_told(self):
        self.parallel("-b", "echo", "-q", "--results", self.path("r"), input=b'{"prompt": "a"}')
        run = self.parallel("-b", "echo", "--emit-tasks", "--results", self.path("r"), "--resume", input=b'{"prompt": "a"}\n{"prompt": "b"}\n{"promt": "c"}\n')
        self.assertEqual((run.stdout, run.returncode), (b'{"backend":"echo","prompt":"b"}\n', 1))
        self.assertRegex(run.stderr, b"stdin:3: promt: unknown field")

    def test_answers_are_written_to_files(self):
        self.file("one.md", "un\n")
        self.file("two.md", "deux")
        template = ("-b", "echo", "--jsonl", "-q", "--prompt", "{@}", "--write-to", "fr/{/.}.txt")
        run = self.parallel(*template, "--results", "r", "one.md", "two.md", cwd=self.directory)
        self.assertEqual([(result["output"], result["written"]) for result in self.lines_of(run)], [("un\n", "fr/one.txt"), ("deux", "fr/two.txt")])
        for name, content in (("one", "un\n"), ("two", "deux\n")):
            with open(self.path("fr", name + ".txt")) as file:
                self.assertEqual(file.read(), content)
        self.assert_refused(self.parallel(*template, "one.md", cwd=self.directory), 'write_to: "fr/one.txt" exists; --overwrite replaces it')
        os.unlink(self.path("fr", "one.txt"))
        self.file("fr/three.txt", "mine")
        self.file("three.md", "trois")
        for _ in range(2):  # an answer without a place is not paid for
            run = self.parallel(*template, "--results", "r", "--resume", "two.md", "one.md", "three.md", cwd=self.directory)
            self.assertEqual([(result.get("resumed"), result.get("written"), result["attempts"], result.get("error"))
                              for result in sorted(map(json.loads, run.stdout.splitlines()), key=lambda result: result["index"])],
                             [(True, "fr/two.txt", 1, None), (True, "fr/one.txt", 1, None),
                              (None, None, 0, "cannot write fr/three.txt: File exists; --overwrite replaces it")])
            self.assertEqual(run.returncode, 1)
        self.assertEqual(self.parallel(*template, "--overwrite", "three.md", cwd=self.directory).returncode, 0)
        with open(self.path("fr", "three.txt")) as file:
            self.assertEqual(file.read(), "trois\n")

    @only_linux
    def test_answer_whose_directory_takes_no_file_is_not_paid_for_and_the_others_are_written(self):
        closed = self.path("closed")
        os.mkdir(closed, 0o500)
        closed = "/proc" if os.access(closed, os.W_OK) else closed  # root may write to any directory but to one without files
        run = self.parallel("-b", "echo", "-j", "1", "--jsonl", "-q", "--prompt", "{}", "--write-to", "{}", "--root", "/", "one", closed + "/two", "three",
                            cwd=self.directory)
        results = sorted(map(json.loads, run.stdout.splitlines()), key=lambda result: result["index"])
        self.assertEqual([(result["status"], result["attempts"], result.get("written")) for result in results],
                         [("ok", 1, "one"), ("failed", 0, None), ("ok", 1, "three")])
        self.assertRegex(results[1]["error"], "^cannot write %s/two: " % closed)
        self.assertEqual(run.returncode, 1)

    def test_dry_run_may_be_told_to_replace_answers(self):
        self.file("one", "mine")
        run = self.parallel("-b", "echo", "--dry-run", "--prompt", "{}", "--write-to", "{}", "--overwrite", "--", "one", cwd=self.directory)
        self.assertEqual((run.returncode, run.stderr), (0, b""))
        with open(self.path("one")) as file:
            self.assertEqual(file.read(), "mine")

    def test_answers_of_a_run_without_files_are_written_by_the_next_run_and_known_to_those_after(self):
        template = ("-b", "echo", "--jsonl", "-q", "--prompt", "{}", "--results", "r", "--resume", "--write-to")
        self.parallel(*template, "old/{}", "one", "two", cwd=self.directory)
        for number in range(3):
            run = self.parallel(*template, "fr/{}", "one", "two", cwd=self.directory)
            self.assertEqual((run.returncode, run.stderr), (0, b""), number)
            self.assertEqual([(one["resumed"], one["written"], one.get("warnings")) for one in map(json.loads, run.stdout.splitlines())],
                             [(True, "fr/one", None), (True, "fr/two", None)])
        self.file("fr/two", "mine")
        run = self.parallel(*template, "fr/{}", "one", "two", cwd=self.directory)
        self.assertEqual((run.returncode, run.stderr), (74, b"clinvk: error: cannot write fr/two: File exists; --overwrite replaces it\n"))

    def test_warning_about_a_file_is_of_the_run_that_could_not_write_it(self):
        def run(*arguments):
            done = self.parallel("-b", "echo", "--jsonl", "-q", "--prompt", "{}", "--results", "r", "--resume", *arguments, "--", "x", cwd=self.directory)
            found = json.loads(done.stdout)
            return done.returncode, found.get("written"), found.get("warnings")

        run()
        os.mkdir(self.path("e"))
        self.file("e/x", "mine")
        self.assertEqual(run("--write-to", "e/{}"), (74, None, ["cannot write e/x: File exists; --overwrite replaces it"]))
        self.assertEqual(run("--write-to", "e/{}"), (74, None, ["cannot write e/x: File exists; --overwrite replaces it"]))
        self.file("e/x", "x\n")
        self.assertEqual(run("--write-to", "e/{}"), (0, "e/x", None))
        self.assertEqual(run("--write-to", "d/{#}"), (0, "d/1", None))
        self.assertEqual(run(), (0, None, None))

    def test_files_of_identical_prompts_are_known_to_the_next_run(self):
        definition = {"CLINVK_BACKENDS": json.dumps({"count": {"command": ["sh", "-c", "echo x >> log; wc -l < log"]}})}
        for number in range(2):
            run = self.parallel("-b", "count", "-j", "1", "--jsonl", "-q", "--prompt", "p", "--write-to", "fr/{}", "--results", "r", "--resume", "--", "a", "b", "c",
                                cwd=self.directory, env=definition)
            self.assertEqual((run.returncode, run.stderr), (0, b""), number)
            self.assertEqual([(one["written"], one["output"].strip()) for one in map(json.loads, run.stdout.splitlines())], [("fr/a", "1"), ("fr/b", "2"), ("fr/c", "3")])

    def test_run_that_was_killed_while_it_wrote_an_answer_is_continued(self):
        script = ("import os, sys, clinvk\n"
                  "def die(*arguments, **named):\n"
                  "    os.kill(os.getpid(), 9)\n"
                  "%s = die\n"
                  "sys.exit(clinvk.main(['parallel'] + sys.argv[1:]))\n")
        for number, place in enumerate(("clinvk.Journal.write", "os.link", "clinvk.Directory.write")):
            with self.subTest(place):
                directory = self.path(str(number))
                os.makedirs(os.path.join(directory, "fr"))
                arguments = ["-b", "echo", "-j", "1", "-q", "--prompt", "{}", "--write-to", "fr/{}", "--results", "r", "--resume", "--output-dir", "out", "--", "one", "two"]
                killed = self.run_program([sys.executable, "-c", script % place, *arguments], env={"PYTHONPATH": support.MODULES}, cwd=directory)
                self.assertEqual(killed.returncode, -9)
                self.file(os.path.join(directory, "fr", "two.0123456789ab.tmp"), "mine")
                run = self.parallel(*arguments, cwd=directory)
                self.assertEqual(run.returncode, 0, run.stderr)
                self.assertNotIn(b"warning", run.stderr.replace(b"clinvk: warning: 1 task was running when the last run ended; it runs again: one\n", b""))
                self.assertEqual(sorted(os.listdir(os.path.join(directory, "fr"))), ["one", "two", "two.0123456789ab.tmp"])
                self.assertEqual(sorted(os.listdir(os.path.join(directory, "out"))), ["001_task-1.json", "002_task-2.json", "summary.json"])
                for name in ("one", "two"):
                    with open(os.path.join(directory, "fr", name)) as file:
                        self.assertEqual(file.read(), name + "\n")
                with open(os.path.join(directory, "r")) as file:
                    self.assertEqual([json.loads(line)["written"] for line in file], ["fr/one", "fr/two"])

    def test_answers_that_no_disk_takes_stop_a_run_without_a_results_file(self):
        disk = self.small_disk(16)
        arguments = ("-b", "echo", "-q", "-j", "1", "--prompt", "{}", "--write-to", "{#}", "--items", self.file("items", "".join("%d\n" % number for number in range(40))))
        run = self.parallel(*arguments, cwd=disk)
        self.assertEqual(run.returncode, 74, run.stderr)
        self.assertIn(b"never started (cannot write ", run.stdout)
        count = len(os.listdir(disk))
        self.assertTrue(0 < count < 20, count)
        for number in range(1, count + 1):
            with open(os.path.join(disk, str(number))) as file:
                self.assertEqual(file.read(), "%d\n" % (number - 1))
        results = ("--results", self.path("r"), "--resume")
        run = self.parallel(*arguments, *results, "--overwrite", cwd=disk)
        self.assertEqual((run.returncode, run.stdout.partition(b" (")[0]), (74, b"Total: 40 tasks, 40 completed, 0 failed"), run.stderr)
        os.mkdir(self.path("roomy"))
        run = self.parallel(*arguments, *results, cwd=self.path("roomy"))
        self.assertEqual((run.returncode, len(os.listdir(self.path("roomy")))), (0, 40), run.stderr)

    def test_files_of_answers_may_have_the_longest_names(self):
        long, cut = "n" * 255, "n" * 238 + ".0123456789ab.tmp"
        arguments = ("-b", "echo", "-q", "--prompt", "{}", "--results", "r", "--resume")
        run = self.parallel(*arguments, "--write-to", "d/{}", "--", long, "\u00e9" * 127, "n" * 256, "m" * 238, cwd=self.directory)
        self.assertEqual(run.returncode, 1, run.stderr)
        self.assertIn(b"1 failed: cannot write d/%s: File name too long\n" % (b"n" * 256), run.stdout)
        self.assertEqual(sorted(os.listdir(self.path("d"))), ["m" * 238, long, "\u00e9" * 127])
        os.unlink(self.path("d", long))
        self.file(os.path.join("d", cut), "of a killed run")
        run = self.parallel(*arguments, "--write-to", "d/{}", "--", long, cwd=self.directory)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(sorted(os.listdir(self.path("d"))), ["m" * 238, long, "\u00e9" * 127])

    def test_no_answer_replaces_another_file_of_the_run(self):
        names = ("items", "r.jsonl", "r.jsonl.running", "status.json", "answer")
        self.file("items", "".join("./%s\n" % name for name in names))
        self.file("answer", "old")
        run = self.parallel("-b", "echo", "-q", "-j", "1", "--prompt", "{}", "--write-to", "{}", "--overwrite", "--items", "items", "--results", "r.jsonl",
                            "--status-file", "status.json", cwd=self.directory)
        self.assertEqual(run.returncode, 1)
        self.assertIn(b"failed: cannot write ./items: it is another file of this run\n", run.stdout)
        for name, count in (("items", 5), ("r.jsonl", 5), ("status.json", 1), ("answer", 1)):
            with open(self.path(name)) as file:
                self.assertEqual(len(file.readlines()), count)
        with open(self.path("r.jsonl")) as file:
            self.assertEqual(sorted(json.loads(line).get("written", "") for line in file), ["", "", "", "", "./answer"])
        with open(self.path("answer")) as file:
            self.assertEqual(file.read(), "./answer\n")

    def test_no_answer_replaces_what_is_redirected_or_read_for_the_run(self):
        files = {"items": "./items\n./out\n./template\n./config.yaml\n./answer\n", "template": "{}", "config.yaml": "{}", "answer": "old"}
        for name, content in files.items():
            self.file(name, content)
        with open(self.path("items"), "rb") as items, open(self.path("out"), "wb") as out:
            run = self.start("parallel", "-b", "echo", "-q", "-j", "1", "--jsonl", "--write-to", "{}", "--overwrite", "--prompt-file", "template", "--config", "config.yaml",
                             stdin=items, stdout=out, cwd=self.directory).finish()
        self.assertEqual(run.returncode, 1, run.stderr)
        for name, content in dict(files, answer="./answer\n").items():
            with open(self.path(name)) as file:
                self.assertEqual(file.read(), content)
        with open(self.path("out")) as file:
            self.assertEqual([json.loads(line)["index"] for line in file], list(range(5)))

    def test_items_and_templates_that_do_not_fit_are_refused_before_anything_starts(self):
        path = self.file("items", b"x\n")
        for arguments, message in [
            (("--prompt", "Hello", "--", "a", "b"), 'the template "Hello" does not use the items; write {} where an item belongs\n'), (("--prompt", "Review", "{}", "--", "a"), "; a template of several words needs quotes"), (("--prompt", "{}", "-f", path), "--file and a template for items exclude each other; --items FILE reads items"),
            (("--prompt", "{}", "--items", path, "a"), "--items and items that are arguments exclude"), (("--prompt", "{}", "-0", "a"), "--null and items that are arguments"),
            (("--items", path), "--items: there is no template"), (("--name", "n"), "--name: there is no template"), (("-0",), "--null: there is no template"),
            (("--prompt", "{}"), "stdin: no tasks: the input is empty"), (("--prompt", "{}", ""), "arguments: no tasks: the input is empty"),
            (("--prompt-file", "-"), "--prompt-file -: the items are read from stdin"), (("--prompt-file", self.path("nowhere"), "a"), "nowhere: No such file"),
            (("--prompt", "{}", "--items", self.path("nowhere")), "nowhere: No such file"), (("--prompt", "{.a}", "a"), "but the items are arguments"),
            (("--prompt", "{a}", "--csv", path, "a"), '--csv and items that are arguments exclude each other; "a" is left over: a template of several words needs quotes'), (("--prompt", "{a}", "--tsv", path, "-0"), "--null and --tsv exclude"),
            (("--write-to", "x"), "--write-to: there is no template"), (("--prompt", "{}", "--write-to", "x{}", "--emit-tasks", "a"), "--write-to and --emit-tasks exclude"),
            (("--prompt", "{}", "--write-to", "x", "a", "b"), 'another task of this run has the file "x"'), (("--prompt", "{}", "--write-to", "/{}", "a"), "outside of the current directory"),
            (("--csv", path), "--csv: there is no template"), (("--prompt", "{title}", "--csv", path), 'prompt: "{title}" is no column of ' + path + "; its columns are: x"),
            (("--prompt-file", "-", "--csv", "-"), "--prompt-file -: the items are read from stdin"), (("--prompt", "{@}", self.path("nowhere")), "No such file"),
            (("--prompt", "{title}", "a"), "no placeholder"), (("--prompt", "{}", "--items", path, "--results", path), "it is the file of the tasks"),
            (("--prompt", "{}", "--items", path, "--status-file", path), "it is the file of the tasks"),
            (("--prompt", "{}", "-b", "codx", "a"), 'unknown backend "codx"')]:
            with self.subTest(arguments=arguments):
                self.assert_refused(self.parallel(*arguments), message)
        self.assertEqual(self.parallel("a").returncode, 2)


@support.only_in_full_runs
class Scripts(Commands):
    """What users write as scripts, as one line of a shell each."""

    FILES = {"src/a b.jsx": "", "src/b.jsx": "", "docs/un.md": "un\n", "docs/deux.md": "deux\n", "app.log": "ok\nERROR one\nok\nERROR $(two) @x\n",
             "in.csv": 'id,text\n1,"good, ""very"""\n2,/bad @/etc/passwd\n', "chunks/000": "a\nb\n", "chunks/001": "c\n",
             "swe.jsonl": '{"instance_id": "x-1", "problem": "It\\nfails"}\n{"instance_id": "x-2", "problem": "Slow"}\n'}

    def setUp(self):
        super().setUp()
        install_fakes(self.bin, ("claude", "cat"), 'read = fakeai.read_prompt\nfakeai.read_prompt = lambda: b"rest\\n" + read()')
        write_program(self.path("bin", "clinvk"), ("#!/bin/sh\nexec '%s' '%s' \"$@\"\n" % (sys.executable, COMPILED)).encode())
        write_program(self.path("bin", "git"), b"#!/bin/sh\ncase $* in *-z*) printf 'src/a b.jsx\\0src/b.jsx\\0';; *) printf '1f2e\\n3d4c\\n';; esac\n")
        write_program(self.path("bin", "gh"), b"#!/bin/sh\necho '[{\"number\": 7, \"title\": \"Fix it\"}, {\"number\": 8, \"title\": \"@me {}\"}]'\n")
        for name, content in self.FILES.items():
            os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
            self.file(name, content)
        for name in ("x-1", "x-2"):
            os.makedirs(self.path("repos", name))

    def test_each_script_is_one_line(self):
        for line, prompts in [
            ("git ls-files -z '*.jsx' | clinvk parallel -0 --prompt 'Migrate {} to hooks' --sandbox-mode workspace --approval-mode auto --canary 1 --results m",
             ["Migrate src/a b.jsx to hooks", "Migrate src/b.jsx to hooks"]),
            ("clinvk parallel --prompt 'Write tests for {} in {//}/{/.}.test.js' -- src/*.jsx",
             ["Write tests for src/a b.jsx in src/a b.test.js", "Write tests for src/b.jsx in src/b.test.js"]),
            ("gh pr list --json number,title | clinvk parallel --prompt 'Review PR {.number}: {.title}' --id 'pr-{.number}' --sandbox-mode read-only",
             ["Review PR 7: Fix it", "Review PR 8: @me {}"]),
            ("clinvk parallel --csv in.csv --prompt 'Label: {text}' --id '{id}' -m haiku -j 8 --results r", ['Label: good, "very"', "Label: /bad @/etc/passwd"]),
            ("seq 3 | clinvk parallel --prompt 'Solve it. Attempt {}' -m opus", ["Solve it. Attempt %d" % number for number in (1, 2, 3)]),
            ("clinvk parallel --prompt 'Translate {@}' --write-to 'docs/fr/{/}' --results t --resume -- docs/*.md", ["Translate deux", "Translate un"]),
            ("grep ERROR app.log | clinvk parallel --prompt 'Triage: {}'", ["Triage: ERROR one", "Triage: ERROR $(two) @x"]),
            ("git log --format=%h | clinvk parallel --prompt 'Write a title for commit {}'", ["Write a title for commit 1f2e", "Write a title for commit 3d4c"]),
            ("clinvk parallel --items swe.jsonl --prompt 'Fix: {.problem}' --id '{.instance_id}' -w 'repos/{.instance_id}' --results s", ["Fix: It\nfails", "Fix: Slow"]),
            ("clinvk parallel --prompt 'Extract: {@}' --results c --resume -- chunks/*", ["Extract: a\nb", "Extract: c"])]:
            with self.subTest(line):
                run = self.run_program(["sh", "-c", line + " --jsonl -q" if " -- " not in line else line.replace(" -- ", " --jsonl -q -- ")])
                self.assertEqual((run.returncode, [result["output"] for result in self.lines_of(run)]), (0, prompts), run.stderr)
        with open(self.path("docs", "fr", "un.md")) as file:
            self.assertEqual(file.read(), "Translate un\n")


@support.only_in_full_runs
class CheckedScripts(Commands):
    """The same with checks, schemas and samples, and with programs that pretend."""

    def setUp(self):
        if not shutil.which("bash") or not shutil.which("jq"):
            self.skipTest("bash or jq is not installed")
        super().setUp()
        os.unlink(os.path.join(self.bin, "cat"))  # the scripts use the real one
        self.program("clinvk", "exec '%s' -W error '%s' \"$@\"" % (sys.executable, COMPILED))
        # It notes its options and its prompt, and answers with the prompt, or as a schema asks for
        self.program("claude", """printf '%s ' "$@" >> options; prompt=$(cat); printf '%s\\n' "$prompt" >> prompts
            if command -v act > /dev/null; then act "$prompt"; fi
            case " $* " in *--json-schema*) data='{"label": "bug", "verdict": "approve"}' ;; *) data=null ;; esac
            jq -nc --arg answer "$prompt" --argjson data "$data" '{type: "result", is_error: false, session_id: "s", total_cost_usd: 0.01,
                result: $answer, structured_output: $data} | del(.[] | nulls)'""")
        self.file("schema.json", {"type": "object", "properties": {"label": {"enum": ["bug", "feature"]}, "verdict": {"enum": ["approve", "reject"]}}})

    def program(self, name, script):
        write_program(os.path.join(self.bin, name), ("#!/bin/sh\n%s\n" % script).encode())

    def script(self, line, status=0):
        """The output of a line, in which C is `clinvk parallel`."""
        completed = self.run_program(["bash", "-o", "pipefail", "-c", re.sub(r"(^|[|;] )C ", r"\1clinvk parallel ", line)])
        self.assertEqual(completed.returncode, status, completed.stderr)
        return completed.stdout.decode()

    def content(self, *names):
        with open(self.path(*names)) as file:
            return file.read()

    def repository(self, *names):
        """Files of a git work tree, which claude changes as the program `act` does; the other files of the test are ignored."""
        if not shutil.which("git"):
            self.skipTest("git is not installed")
        os.mkdir(self.path("src"))
        for name in names:
            self.file(os.path.join("src", name), "old\n")
        self.file(".gitignore", "*\n!src\n!src/*\n")
        self.script("git init -q . && git add src && git -c user.name=n -c user.email=e commit -qm first")

    def test_migration_over_files_is_checked_and_starts_with_a_few(self):
        self.repository("a.jsx", "two words.jsx", "x.jsx", "y.jsx", "z.jsx")
        self.program("act", 'case $1 in *y.jsx*) ;; *) file=${1#Migrate }; echo new >> "${file% to hooks}" ;; esac')
        self.program("npx", 'echo "$CLINVK_TASK: $*" >> checks; test "$CLINVK_TASK" != 4 || { echo "error TS2304"; exit 2; }')
        line = ("git ls-files -z '*.jsx' | C -0 --prompt 'Migrate {} to hooks' --sandbox-mode workspace --approval-mode auto --one-per-workdir "
                "--check 'npx tsc --noEmit' --require-change --canary 3 --results m.jsonl --jsonl -q")
        found = [json.loads(line) for line in self.script(line, 1).splitlines()]
        self.assertEqual(sorted((one["index"], one["status"], one.get("error_kind")) for one in found),
                         [(0, "ok", None), (1, "ok", None), (2, "ok", None), (3, "failed", "no_change"), (4, "failed", "check")])
        self.assertEqual(self.content("src", "two words.jsx"), "old\nnew\n")
        self.assertEqual(sorted(self.content("checks").splitlines()), ["%d: tsc --noEmit" % number for number in (0, 1, 2, 4)])

    def test_tests_are_generated_and_run(self):
        self.repository("a.go", "b.go", "c.go", "go.mod")
        self.program("act", 'case $1 in *c.go) echo new >> src/go.mod ;; esac')
        self.program("go", 'grep -q "src/b.go" "$CLINVK_OUTPUT" && mkdir failed && { echo "FAIL b"; exit 1; }; echo ok')
        printed = self.script("C --prompt 'Write tests for {}' --sandbox-mode workspace --check 'go test ./...' --attempts 3 "
                              "--protect src/go.mod --one-per-workdir --json -q -- src/*.go", 1)
        self.assertEqual([(one["status"], one.get("error_kind"), one["attempts"]) for one in json.loads(printed)["results"]],
                         [("ok", None, 1), ("ok", None, 2), ("failed", "protected", 1)])
        self.assertIn("FAIL b", self.content("prompts"))

    def test_each_pull_request_has_one_verdict(self):
        self.program("gh", """echo '[{"number": 7, "title": "Add x"}, {"number": 9, "title": "Fix @y"}]'""")
        line = ("""gh pr list --json number,title | jq -c '.[] | {id: "pr-\\(.number)", prompt: "Review: \\(.title)"}' | """
                "C --sandbox-mode read-only --schema schema.json --jsonl -q | jq -r '[.task_id, .data.verdict] | @tsv' | sort")
        self.assertEqual(self.script(line), "pr-7\tapprove\npr-9\tapprove\n")

    def test_records_are_labelled_and_the_labels_are_columns(self):
        self.file("in.csv", 'id,text\n1,"It is @/etc/passwd\nslow"\n2,/exit\n')
        line = ("C --csv in.csv --prompt 'Label: {text}' --id '{id}' --answer-only --schema schema.json -m haiku -j 8 --results r.jsonl -q; "
                "clinvk report --csv .task_id,.data.label,.cost_usd r.jsonl")
        self.assertEqual(normal(self.script(line).encode()), "Total: 2 tasks, 2 completed, 0 failed, $0.0200 (0.00s)\ntask_id,data.label,cost_usd\n1,bug,0.01\n2,bug,0.01\n")
        self.assertIn("--model haiku ", self.content("options"))

    def test_models_are_compared_on_cases_with_several_samples(self):
        self.file("cases.json", [{"id": name, "prompt": "case " + name, "meta": {"of": name}} for name in "ab"])
        self.program("grade", 'jq -e \'.meta.of == .task_id and (.cell.model == "opus" or .sample < 2)\' "$CLINVK_RESULT" > /dev/null')
        line = "C -f cases.json --matrix model=opus,sonnet --repeat 2 --check grade --results e.jsonl -q > totals; clinvk report --by cell --json e.jsonl"
        groups = json.loads(self.script(line))["groups"]["cell"]
        self.assertEqual({name: (group["judged"], group["pass_rate"]) for name, group in groups.items()},
                         {"model=opus": (4, 1.0), "model=sonnet": (4, 0.5)})
        self.assertEqual(sorted(self.content("prompts").splitlines()), ["case a"] * 4 + ["case b"] * 4)

    def test_translations_are_files_and_only_what_changed_is_translated_again(self):
        os.mkdir(self.path("docs"))
        self.file("docs/one.md", "one")
        self.file("docs/two.md", "two")
        line = "C --prompt 'Translate: {@}' --answer-only --write-to 'fr/{/}' --results t.jsonl --resume -q -- docs/*.md"
        self.script(line)
        self.file("docs/two.md", "changed")
        self.script(line.replace(" -q", " --overwrite -q"))
        self.assertEqual((self.content("fr", "one.md"), self.content("fr", "two.md")), ("Translate: one\n", "Translate: changed\n"))
        self.assertEqual(sorted(self.content("prompts").splitlines()), ["Translate: changed", "Translate: one", "Translate: two"])

    def test_log_lines_are_triaged_as_they_come(self):
        line = ("""printf '%s\\n' 'ERROR @/etc/passwd' 'INFO fine' 'ERROR {"a": 1}' | grep ERROR | C --prompt 'Classify: {}' --answer-only --schema schema.json --jsonl -q | """
                "jq -r .data.label")
        self.assertEqual(self.script(line), "bug\nbug\n")
        self.assertEqual(len(self.content("prompts").splitlines()), 2)


@support.only_in_full_runs
class OwnCommands(Commands):
    """Commands of the user's own, defined by CLINVK_BACKENDS or by a batch."""

    def own(self, command, *prompts, env=None, arguments=(), fields=None, **definition):
        """The results of tasks for a command that is defined as `mine`."""
        completed = self.parallel("--jsonl", "-q", "--retries", "0", *arguments, env=dict(env or {}, **defined(mine=dict(definition, command=command))),
                                  input=tasks(*prompts, **dict(fields or {}, backend="mine")))
        self.assertEqual(completed.stderr, b"")
        return self.lines_of(completed)

    def called(self, command, env=None, arguments=(), **fields):
        """How a program is called, the argument that it is to print that aside: its other arguments and its stdin."""
        result, = self.own(HOW_CALLED + command, "the prompt", env=env, arguments=arguments, fields=fields)
        self.assertEqual((result["status"], result.get("warnings")), ("ok", None), result)
        return json.loads(result["output"])

    def test_of_text_all_is_the_answer_and_the_exit_code_the_verdict(self):
        program = python("""
            import sys
            code, _, text = sys.stdin.read().partition(" ")
            sys.stdout.write(text)
            sys.stderr.write("it says %s" % code)
            sys.exit(int(code))""")
        good, big, bad, blank = self.own(program, "0 審\n", "0 " + "x" * 100000, "3 half", "0  ")
        self.assertEqual([(result["status"], result["exit_code"], result["output"]) for result in (good, bad)],
                         [("ok", 0, "審\n"), ("failed", 3, "half")])
        self.assertEqual((big["status"], big["output"] == "x" * 100000), ("ok", True))
        self.assertEqual((bad["error"], bad["error_kind"]), ("it says 3", "backend"))
        self.assertEqual((blank["status"], blank["error_kind"], blank["error"]), ("failed", "no_output", "mine ended well but gave no answer"))
        self.assertEqual([result["backend"] for result in (good, big, bad, blank)], ["mine"] * 4)
        for result in (good, big, bad, blank):
            self.assertFalse({"usage", "session_id", "model", "cost_usd"} & set(result))

    def test_of_json_each_thing_stands_where_the_definition_says(self):
        said = {"message": {"content": [{"text": "審 \ud83d\ude42"}]}, "id": "s-1", "error": None,
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 3, "reasoning_tokens": 2}}
        failed = dict(said, error={"message": "Rate limit reached. Please try again in 2.5s", "code": 3})
        odd = dict(said, message={"content": [{"text": {"a": [1]}}]}, error=False, id=7, usage=[])
        values = (said, failed, dict(said, error="it broke"), dict(said, error=["x", 1]), odd, {"id": "s-1"}, [])
        results = self.own(RAW, *[repr(json.dumps(value)) for value in values], repr("no json"), output="json",
                           answer=".message.content[0].text", error=".error", session_id=".id", usage=".usage")
        found = [(result["status"], result["exit_code"], result.get("error_kind"), result.get("error"), result["output"]) for result in results]
        self.assertEqual(found[:7], [
            ("ok", 0, None, None, "審 \U0001f642"), ("failed", 1, "rate_limit", failed["error"]["message"], "審 \U0001f642"),
            ("failed", 1, "backend", "it broke", "審 \U0001f642"), ("failed", 1, "backend", '["x",1]', "審 \U0001f642"),
            ("ok", 0, None, None, '{"a":[1]}')] + [("failed", 1, "no_output", "mine ended well but gave no answer", "")] * 2)
        self.assertEqual(found[7], ("failed", 1, "backend", "what it printed is not JSON", "no json"))
        self.assertEqual(results[0]["usage"], dict(zip(USAGE, (10, 3, 5, 2, 15))))
        self.assertEqual([result.get("session_id") for result in results], ["s-1"] * 4 + [None, "s-1", None, None])
        self.assertEqual(results[1]["retry_after_seconds"], 2.5)
        self.assertNotIn("usage", results[4])

    def test_an_exit_code_makes_json_a_failure_too(self):
        program = python("""
            import sys
            print('{"a": "half"}')
            sys.stderr.write(sys.stdin.read().strip("."))
            sys.exit(4)""")
        for result, error in zip(self.own(program, "first\n\nlast words", "...", output="json", answer=".a"), ("last words", "exit status 4")):
            self.assertEqual((result["status"], result["exit_code"], result["error"], result["output"]), ("failed", 4, error, "half"))

    def test_of_json_lines_the_last_that_says_something_counts(self):
        lines = ('{"text": "one", "id": "first", "usage": {"input": 1}}\n\nnoise\n[{"text": "in a list"}]\n{"text": "two"}\n'
                 '{"text": null, "id": "last"}\n{"usage": {"input": 4, "output": 2}}\n{"error": ""}')
        paths = {"answer": ".text", "session_id": ".id", "usage": ".usage", "error": ".error", "output": "jsonl"}
        result, failed, empty = self.own(RAW, repr(lines), repr(lines + '\n{"error": "late"}\n{"error": null}'), repr("noise\n"), **paths)
        self.assertEqual([result[name] for name in ("status", "output", "session_id")], ["ok", "two", "last"])
        self.assertEqual(result["usage"], dict(zip(USAGE, (4, 0, 2, 0, 6))))
        self.assertEqual([failed[name] for name in ("status", "error", "output")], ["failed", "late", "two"])
        self.assertEqual([empty[name] for name in ("status", "error", "output")], ["failed", "what it printed is not JSON", "noise\n"])
        joined, = self.own(RAW, repr(lines), join=True, **paths)
        self.assertEqual((joined["status"], joined["output"]), ("ok", "onetwo"))

    def test_placeholders_stand_for_the_fields_of_the_task(self):
        os.mkdir(self.path("it's here"))
        command = ["-m", "{model}", "--dir={workdir}", "-s", "{system_prompt}", "--turns", "{max_turns}", "{max_tokens}",
                   "x{model}-{max_turns}y", "{{model}}", "{}"]
        fields = {"model": "m {workdir}", "workdir": "it's here", "system_prompt": "two\nlines {model}", "max_turns": 3, "max_tokens": 4}
        self.assertEqual(self.called(command, **fields), [
            "-m", "m {workdir}", "--dir=" + self.path("it's here"), "-s", "two\nlines {model}", "--turns", "3", "4", "xm {workdir}-3y", "{model}", "{}",
            "the prompt"])
        variable = {"CLINVK_MINE_MODEL": "of-environment"}
        self.assertEqual(self.called(["{model}"], env=variable), ["of-environment", "the prompt"])
        self.assertEqual(self.called(["{model}"], env=variable, arguments=["--model", "of-option"]), ["of-option", "the prompt"])
        self.assertEqual(self.called(["-v"], extra=["--more", "{model}"]), ["-v", "--more", "{model}", "the prompt"])

    def test_an_element_whose_field_is_not_given_drops_out_with_its_option(self):
        table = (
            (["-m", "{model}", "end"], ["end"]), (["--model={model}", "end"], ["end"]), (["run", "{model}"], ["run"]),
            (["-a", "-m", "{model}"], ["-a"]), (["-a", "--m{model}", "b"], ["-a", "b"]), (["--", "{model}"], ["--"]), (["-", "{model}"], ["-"]),
            (["-m", "{model}", "{max_turns}"], []), (["-m", "{model}{system_prompt}"], []), (["-m", "{{model}}"], ["-m", "{model}"]),
            (["-x", "value", "{model}"], ["-x", "value"]), (["-m", "{model}", "-s", "{system_prompt}", "-t", "{max_turns}"], ["-t", "2"]),
            (["{model}", "x", "{system_prompt}"], ["x"]), (["-t", "{max_turns}", "{model}"], ["-t", "2"]))
        definitions = {"c%d" % number: {"command": HOW_CALLED + command} for number, (command, _) in enumerate(table)}
        batch = [dict({"backend": "c%d" % number, "prompt": "p"}, **{"max_turns": 2} if "2" in left else {})
                 for number, (_, left) in enumerate(table)]
        completed = self.parallel("--jsonl", "-q", env=defined(**definitions), input=json.dumps(batch))
        for (command, left), result in itertools.zip_longest(table, self.lines_of(completed)):
            self.assertEqual(json.loads(result["output"]), left + ["p"], command)

    def test_the_prompt_comes_by_stdin_or_in_a_private_file_that_does_not_stay(self):
        program = python("""
            import json, os, sys
            path = sys.argv[1].partition("=")[2]
            with open(path, "rb") as file:
                print(json.dumps({"prompt": file.read().decode("utf-8", "surrogateescape"), "stdin": sys.stdin.read(), "path": path,
                                  "mode": os.stat(path).st_mode & 0o777, "with": os.listdir(os.path.dirname(path))}))""")
        prompts = ["-x $HOME `id`\n", "審 a\0b", "y" * 300000]
        for result, prompt in zip(self.own(program + ["--prompt={prompt_file}"], *prompts), prompts):
            said = json.loads(result["output"])
            self.assertEqual((said["prompt"] == prompt, said["stdin"], said["mode"], said["with"]), (True, "", 0o600, ["prompt"]))
            self.assertTrue(said["path"].startswith(self.tmp + "/"), said["path"])
            self.assertFalse(os.path.exists(said["path"]))

    def test_no_shell_ever_sees_an_argument(self):
        awkward = ["a; touch ran", "$(touch ran)", "`touch ran`", "| touch ran", "&& touch ran", "* ~ {a,b}", "'\"\\", "> ran", "two\nlines",
                   "--", "-x", "%s"]
        self.assertEqual(self.called(awkward), awkward + ["the prompt"])
        self.assertEqual(self.called(["{model}", "{system_prompt}"], model="$(touch ran)", system_prompt="; touch ran"),
                         ["$(touch ran)", "; touch ran", "the prompt"])
        result, = self.own(["cat; touch ran"], "x")
        self.assertEqual((result["status"], result["exit_code"], result["error_kind"]), ("failed", 127, "not_found"))
        self.assertFalse(self.has("ran"))

    def test_a_field_that_the_command_has_no_place_for_is_warned_about(self):
        fields = {"model": "m", "system_prompt": "s", "max_turns": 1, "max_tokens": 2, "verbose": True, "extra": ["x"], "timeout": 60}
        result, = self.own(HOW_CALLED + ["{max_turns}"], "p", fields=fields)
        self.assertEqual(result["warnings"], ["mine has no %s; it was not applied" % name
                                              for name in ("model", "system_prompt", "max_tokens", "verbose")])
        self.assertEqual(json.loads(result["output"]), ["1", "x", "p"])

    def test_modes_that_it_cannot_keep_are_refused_and_those_that_promise_nothing_are_not(self):
        for fields, words in (
                ({"sandbox_mode": "read-only"}, ['clinvk cannot keep this program in sandbox_mode "read-only"', 'only "full" is possible']),
                ({"approval_mode": "auto"}, ['clinvk cannot give this program the approval_mode "auto"', 'only "none" is possible'])):
            self.assert_refused(self.parallel(env=defined(mine={"command": COPY}), input=tasks("x", backend="mine", **fields)),
                                "stdin:1: ", "mine: ", *words)
        result, = self.own(COPY, "x", fields={"sandbox_mode": "full", "approval_mode": "none"})
        self.assertEqual((result["status"], result["output"]), ("ok", "x"))

    def test_it_is_stopped_when_its_time_is_over(self):
        with mock.patch.object(threading, "Timer", support.timer_after(self.path("pid"))):
            result, = self.own(python("import os, time; open('new', 'w').write(str(os.getpid())); os.rename('new', 'pid'); time.sleep(300)"),
                               "x", fields={"timeout": 4})
        self.assertEqual((result["status"], result["exit_code"], result["error"]), ("timeout", 124, "timed out after 4s"))
        self.assert_gone(self.pid_in(self.path("pid")))

    def test_a_program_that_is_not_there_fails_its_tasks_and_no_others(self):
        self.file("plain", "")
        env = defined(missing={"command": ["no-such-program", "{model}"]}, plain={"command": [self.path("plain")]}, good={"command": COPY})
        missing, plain, good = self.lines_of(self.parallel("--jsonl", "-q", env=env, input=b"".join(
            tasks("x", backend=name) for name in ("missing", "plain", "good"))))
        self.assertEqual((missing["exit_code"], missing["error_kind"], missing["error"]),
                         (127, "not_found", "no-such-program: not found: it is not installed, or not on the PATH; `clinvk doctor` shows what can be used"))
        self.assertEqual((plain["exit_code"], plain["error_kind"], plain["error"]),
                         (126, "permission", self.path("plain") + ": cannot be started: Permission denied"))
        self.assertEqual(good["output"], "x")

    def test_it_can_be_named_by_an_option_by_a_variable_and_in_the_defaults(self):
        env = defined(mine={"command": COPY})
        for arguments, more, batch in ((["-b", "mine"], {}, {"prompt": "x"}), ([], {"CLINVK_BACKEND": "mine"}, {"prompt": "x"}),
                                       ([], {}, {"tasks": [{"prompt": "x"}], "defaults": {"backend": "mine"}})):
            result, = self.lines_of(self.parallel("--jsonl", "-q", *arguments, env=dict(env, **more), input=json.dumps(batch)))
            self.assertEqual((result["backend"], result["output"]), ("mine", "x"))

    def test_a_dry_run_shows_its_command_line_and_starts_nothing(self):
        env = defined(mine={"command": ["no-such-program", "-m", "{model}", "it's; $(touch ran)"]}, filer={"command": ["touch", "ran", "{prompt_file}"]})
        completed = self.parallel("--dry-run", env=env, input=tasks("a prompt", backend="mine")
                                  + tasks("a prompt", backend="mine", model="m") + tasks("a prompt", backend="filer"))
        self.assertEqual((completed.returncode, completed.stderr), (0, b""))
        first, second, third = completed.stdout.decode().splitlines()
        self.assertEqual(first, "env NO_COLOR=1 no-such-program 'it'\"'\"'s; $(touch ran)' <<< 'a prompt'")
        self.assertEqual(second, "env NO_COLOR=1 no-such-program -m m 'it'\"'\"'s; $(touch ran)' <<< 'a prompt'")
        self.assertIn("printf %s 'a prompt' > ", third)
        self.assertFalse(self.has("ran"))

    def test_a_batch_may_not_define_one_unless_that_is_allowed(self):
        batch = {"tasks": [{"prompt": "touch ran", "backend": "echo"}, {"prompt": "x", "backend": "mine"}],
                 "backends": {"mine": {"command": ["touch", "ran-too"]}}}
        path = self.file("batch.json", json.dumps(batch, indent=2))
        line = json.dumps(batch, indent=2).split("\n").index('  "backends": {') + 1
        message = ":%d: backends: commands that a batch defines are only run with --allow-commands"
        for arguments in ([], ["--dry-run"], ["--jsonl", "-b", "echo"]):
            self.assert_refused(self.parallel("-f", path, *arguments), path + message % line)
        piped = self.parallel("--jsonl", "-q", input=tasks("say first") + json.dumps(batch).encode() + b"\n" + tasks("say last"))
        first, bad, last = self.lines_of(piped)
        self.assertEqual([first["output"], last["output"]], ["first\n", "last\n"])
        self.assertEqual((bad["error_kind"], bad["error"]), ("invalid", "stdin" + message % 2))
        self.assertFalse(self.has("ran") or self.has("ran-too"))

    def test_with_leave_a_batch_defines_commands_for_its_own_tasks(self):
        def batch(word):
            definition = {"command": python("print(%r)" % word)}
            return {"backends": {"mine": definition, word: definition}, "tasks": [{"prompt": "x", "backend": name} for name in ("mine", word)]}

        text = "".join(json.dumps(value) + "\n" for value in (
            batch("one"), {"prompt": "x", "backend": "one"}, batch("two"), {"prompt": "x", "backend": "mine"}))
        found = self.lines_of(self.parallel("--jsonl", "-q", "--allow-commands", input=text, env=defined(mine={"command": python("print('user')")})))
        self.assertEqual([result["output"].strip() for result in found], ["one", "one", "", "two", "two", "user"])
        self.assertEqual(found[2]["error"], 'stdin:2: backend: unknown backend "one"; ' + support.KNOWN + ', mine')
        # a backend that is named on the command line may be one that the batch defines
        text = json.dumps(dict(batch("three"), tasks=[{"prompt": "x"}]))
        completed = self.parallel("--jsonl", "-q", "--allow-commands", "-b", "three", input=text)
        self.assertEqual([result["output"] for result in self.lines_of(completed)], ["three\n"])
        self.assert_refused(self.parallel("-b", "three", input=text), "--backend: unknown backend")

    def test_the_definition_is_not_in_the_files_of_an_output_directory(self):
        self.own(COPY, "x", arguments=["--output-dir", "out", "--root", "/"], fields={"workdir": "."})
        with open(self.path("out", "001_task-1.json"), "rb") as file:
            kept = json.loads(file.read())
        self.assertEqual(kept["task"], {"backend": "mine", "prompt": "x", "workdir": "."})

    def test_known_programs_are_run_and_judged_as_they_were_recorded(self):
        for name, code, status, kind in (
                ("aider-ok", 0, "ok", None), ("aider-401", 0, "failed", "auth"), ("copilot-no-login", 1, "failed", "auth"),
                ("llm-429", 1, "failed", "rate_limit"), ("opencode-ok", 0, "ok", None), ("opencode-401", 1, "failed", "auth"),
                ("qwen-schema", 0, "ok", None), ("qwen-schema-refused", 1, "failed", "schema")):
            program, schema = name.partition("-")[0], {"type": "object", "properties": {"a": {"type": "integer"}}} if "schema" in name else None
            kept = ["/bin/cat %s" % shlex.quote(path) + end for path, end in (
                (os.path.join(support.DATA, name + ".out"), ""), (os.path.join(support.DATA, name + ".err"), " >&2")) if os.path.exists(path)]
            write_program(self.path("bin", program), ("#!/bin/sh\necho \"$@\" > asked\n%s\nexit %d\n" % ("\n".join(kept), code)).encode())
            result, = support.results(self.parallel("--jsonl", "-q", "--retries", "0", "--schema-retries", "0", "-m", "some/model",
                                                    input=tasks("p", backend=program, schema=schema)))
            with self.subTest(name):
                self.assertEqual((result["status"], result.get("error_kind"), result.get("data")), (status, kind, {"a": 5} if name == "qwen-schema" else None))
                with open(self.path("asked")) as file:
                    words = file.read()
                self.assertIn("some/model", words)
                self.assertEqual("--json-schema" in words, bool(schema))

    def test_a_known_program_is_a_backend_without_a_definition(self):
        write_program(self.path("bin", "llm"), b'#!/bin/sh\necho "$*: $(/bin/cat)"\n')
        write_program(self.path("bin", "aider"), b'#!/bin/sh\necho "litellm.RateLimitError: try again in 1s"\n')
        said = "prompt --no-log -m m: say hi\n"
        results = self.lines_of(self.parallel("--jsonl", "-q", "--limit", "llm=1", "--results", "r", input=tasks("say hi", backend="llm"),
                                              env={"CLINVK_LLM_MODEL": "m"}))
        self.assertEqual([(result["backend"], result["model"], result["output"]) for result in results], [("llm", "m", said)])
        again, = support.results(self.parallel("--jsonl", "-q", "--results", "r", "--resume", "-m", "m", input=tasks("say hi", backend="llm")))
        self.assertEqual((again["output"], again["resumed"]), (said, True))
        done = self.clinvk("-m", "m", "say hi", env={"CLINVK_BACKEND": "llm"})
        self.assertEqual((done.returncode, done.stdout.decode()), (0, said))
        own, = self.lines_of(self.parallel("--jsonl", "-q", input=tasks("say hi", backend="llm"), env=defined(llm={"command": ["cat"]})))
        self.assertEqual(own["output"], "hi\n")
        self.assert_refused(self.parallel("--sandbox-mode", "read-only", input=tasks("say hi", backend="llm")),
                            'llm: clinvk cannot keep this program in sandbox_mode "read-only"; only "full" is possible')
        # it may have edited files before: it is not started again
        agent, = self.lines_of(self.parallel("--jsonl", "-q", input=tasks("say hi", backend="aider")))
        self.assertEqual([agent[name] for name in ("status", "error_kind", "attempts")], ["failed", "rate_limit", 1])
        missing, = self.lines_of(self.parallel("--jsonl", "-q", input=tasks("say hi", backend="qwen"), env={"PATH": self.path("bin")}))
        self.assertEqual((missing["exit_code"], missing["error_kind"]), (127, "not_found"))


@support.only_in_full_runs
class Strangers(Commands):
    """Task files that are trusted no further than their reader says."""

    def lines(self, *arguments, **options):
        completed = self.parallel("--dry-run", *arguments, **options)
        self.assertEqual((completed.returncode, completed.stderr), (0, b""))
        return completed.stdout.decode().splitlines()

    def test_what_is_above_the_ceiling_is_refused_with_file_and_line(self):
        path = self.file("tasks.json", '{"tasks": [\n{"prompt": "touch ran", "backend": "echo"},\n{"prompt": "x",\n"sandbox_mode": "full"}]}')
        for most, arguments, env in (("workspace", ["--ceiling", "sandbox=workspace"], {}),
                                     ("read-only", [], {"CLINVK_CEILING": "approval=none,sandbox=read-only"})):
            self.assert_refused(self.parallel("-f", path, *arguments, env=env),
                                '%s:4: tasks[1].sandbox_mode: "full" is above the ceiling, which is "%s"\n' % (path, most))
        self.assertFalse(self.has("ran"))
        for fields, arguments, message in (
                ({"approval_mode": "none"}, [], 'approval_mode: "none" is above the ceiling, which is "auto"'),
                ({"extra": ["--add-dir", "/"]}, [], "extra: the ceiling lets no task add options of its own"),
                ({}, ["--approval-mode", "none"], 'approval_mode: "none" is above the ceiling, which is "auto"'),
                ({}, ["--sandbox-mode", "full"], 'sandbox_mode: "full" is above the ceiling, which is "workspace"')):
            with self.subTest(fields=fields, arguments=arguments):
                self.assert_refused(self.parallel("--ceiling", "sandbox=workspace,approval=auto", *arguments, input=tasks("touch ran", **fields)),
                                    "stdin:1: " + message)
        self.assertFalse(self.has("ran"))

    def test_the_option_counts_before_the_variable(self):
        env = {"CLINVK_CEILING": "sandbox=read-only"}
        batch = tasks("say x", sandbox_mode="workspace")
        self.assert_refused(self.parallel(env=env, input=batch), "above the ceiling")
        self.assertEqual(self.parallel("--ceiling", "sandbox=workspace", env=env, input=batch).returncode, 0)
        self.assertEqual(self.parallel("--ceiling", "approval=none", env=env, input=batch).returncode, 0)
        self.assert_refused(self.parallel("--ceiling", "sandbox=read-only", env={"CLINVK_CEILING": "sandbox=full"}, input=batch), "above the ceiling")

    def test_what_a_task_leaves_to_its_backend_becomes_what_a_ceiling_can_promise(self):
        def lines(ceiling, *more):
            batch = [{"prompt": "x", "backend": backend} for backend in ("claude", "codex", "gemini")]
            return self.lines("--ceiling", ceiling, input=json.dumps(batch + [dict(fields, prompt="x") for fields in more]))

        for ceiling in ("sandbox=read-only", "sandbox=full", "sandbox=workspace,approval=auto"):
            claude, codex, gemini, said = lines(ceiling, {"backend": "codex", "sandbox_mode": "default", "approval_mode": "default"})
            self.assertRegex(claude, " --permission-mode dontAsk .*--tools Read,Glob,Grep,WebFetch,WebSearch ")
            self.assertIn(" -s read-only ", codex)
            self.assertIn(" --approval-mode default --policy ", gemini)
            self.assertIn(" -s read-only ", said)
        for ceiling in ("approval=always", "approval=auto"):
            claude, codex, gemini, full = lines(ceiling, {"backend": "claude", "sandbox_mode": "full"})
            self.assertIn(" --permission-mode dontAsk ", claude)
            self.assertNotIn(" --tools ", claude)
            self.assertIn(" -s read-only ", codex)
            self.assertIn(" --approval-mode default ", gemini)
            self.assertIn(" --permission-mode dontAsk ", full)
        claude, codex, gemini = lines("approval=none")
        self.assertNotRegex(claude + codex + gemini, " --permission-mode | -s | --approval-mode ")
        *_, claude, codex = lines("sandbox=workspace,approval=none", {"backend": "claude", "sandbox_mode": "workspace", "approval_mode": "auto"},
                                  {"backend": "codex", "sandbox_mode": "workspace", "approval_mode": "none"})
        self.assertRegex(claude, " --permission-mode acceptEdits .*Edit,Write")
        self.assertIn(" -s workspace-write ", codex)

    def test_a_system_prompt_is_allowed_under_a_ceiling(self):
        line, = self.lines("--ceiling", "sandbox=read-only,approval=always",
                           input=tasks("x", backend="claude", system_prompt="be brief", model="m", max_turns=3))
        for words in ("--append-system-prompt 'be brief'", "--model m", "--max-turns 3"):
            self.assertIn(words, line)

    def test_on_a_pipe_a_task_above_the_ceiling_is_one_failed_result(self):
        batch = tasks("say a") + tasks("touch ran", sandbox_mode="full") + tasks("say b") + tasks("touch ran", extra=["x"]) + tasks("say c")
        completed = self.parallel("--jsonl", "-q", "-j", "1", "--ceiling", "sandbox=workspace", input=batch)
        found = self.lines_of(completed)
        self.assertEqual([result["output"] for result in found], ["a\n", "", "b\n", "", "c\n"])
        self.assertEqual([result.get("error") for result in found if result["status"] == "failed"], [
            'stdin:2: sandbox_mode: "full" is above the ceiling, which is "workspace"',
            "stdin:4: extra: the ceiling lets no task add options of its own"])
        self.assertEqual([result.get("error_kind") for result in found if result["status"] == "failed"], ["invalid"] * 2)
        self.assertEqual(completed.returncode, 1)
        self.assertFalse(self.has("ran"))

    def test_a_command_of_the_users_own_is_under_no_ceiling_that_bounds_something(self):
        env = defined(mine={"command": COPY})
        for ceiling in ("sandbox=read-only", "sandbox=workspace", "sandbox=full", "approval=always", "approval=auto"):
            self.assert_refused(self.parallel("--ceiling", ceiling, env=env, input=tasks("x", backend="mine")), "mine: ")
        for ceiling, fields in (("approval=none", {}), ("sandbox=full,approval=none", {"sandbox_mode": "full"})):
            self.assertEqual(self.parallel("-q", "--ceiling", ceiling, env=env, input=tasks("x", backend="mine", **fields)).returncode, 0)

    def test_a_workdir_outside_of_the_root_is_refused(self):
        for name in ("root", "root/in", "root-too", "out"):
            os.mkdir(self.path(name))
        os.symlink(self.path("out"), self.path("root", "away"))
        os.symlink(self.path("root", "in"), self.path("inwards"))
        good = ("root", self.path("root"), "root/in", "inwards", "root/in/..")
        bad = ("out", self.path("out"), "root/away", "root/..", "root-too", "/", "root/in/../../out")
        for root in ("root", self.path("root")):
            batch = b"".join(tasks("cwd", workdir=workdir) for workdir in good) + b"".join(tasks("touch ran", workdir=workdir) for workdir in bad)
            found = self.lines_of(self.parallel("--jsonl", "-q", "--root", root, input=batch))
            self.assertEqual([result["output"].strip() for result in found],
                             [os.path.realpath(self.path(workdir)) for workdir in good] + [""] * len(bad))
            self.assertEqual([result["error"] for result in found[len(good):]], [
                'stdin:%d: workdir: "%s" is outside of "%s"' % (number, workdir, root) for number, workdir in enumerate(bad, len(good) + 1)])
            for arguments, batch in ((["-f", self.file("t", tasks("touch ran", workdir="out"))], b""), (["-w", "out"], tasks("touch ran"))):
                self.assert_refused(self.parallel("--root", root, *arguments, input=batch), ':1: workdir: "out" is outside of "%s"' % root)
        self.assertFalse(any(os.path.exists(self.path(place, "ran")) for place in (".", "out", "root", "root-too")))

    def swapped(self, prompt, target):
        """The results of a task in root/work, which an earlier one replaces by a link once all tasks have been read."""
        for name in ("root", "root/work", "root/other", "out"):
            os.mkdir(self.path(name))
        swap = python("import os; os.rename('work', 'moved'); os.symlink(%r, 'work'); print('swapped')" % target)
        path = self.file("tasks.jsonl", tasks("x", backend="swap", workdir="root") + tasks(prompt, workdir="root/work")
                         + tasks("say last", workdir="root/other"))
        found = self.lines_of(self.parallel("--jsonl", "-q", "-j", "1", "--root", "root", "-f", path, env=defined(swap={"command": swap})))
        self.assertEqual([found[0]["output"], found[2]["output"]], ["swapped\n", "last\n"])
        return found[1]

    def test_a_workdir_that_leads_out_by_the_time_of_its_launch_is_not_entered(self):
        result = self.swapped("touch ran; cwd", "../out")
        self.assertEqual((result["status"], result["exit_code"], result["error_kind"], result["output"]), ("failed", 1, "invalid", ""))
        self.assertEqual(result["error"], "workdir root/work: is outside of " + self.path("root"))
        self.assertEqual(os.listdir(self.path("out")), [])

    def test_a_workdir_that_became_a_link_within_the_root_is_entered(self):
        self.assertEqual(self.swapped("cwd", "other")["output"], self.path("root", "other") + "\n")

    def test_a_task_without_a_workdir_is_held_to_the_root_too(self):
        os.mkdir(self.path("root"))
        self.assert_refused(self.parallel("--root", "root", input=tasks("touch ran")),
                            'stdin:1: workdir: the current directory is outside of "root"')
        self.assertFalse(self.has("ran"))
        self.assertEqual(self.parallel("-q", "--root", "root", "--workdir", "root", input=tasks("touch ran; say x")).returncode, 0)
        self.assertTrue(self.has("root/ran"))
        self.assertEqual(self.parallel("-q", "--root", ".", input=tasks("touch ran; say x")).returncode, 0)

    def test_a_program_with_a_relative_path_is_not_that_of_the_workdir(self):
        for name in ("there", "beside"):
            os.mkdir(self.path(name))
        write_program(self.path("there", "tool"), b"#!/bin/sh\necho theirs\n")
        here = defined(tool={"command": ["./tool"]}, other={"command": ["other"]})
        env = dict(here, PATH=":".join(("", "beside", self.environment["PATH"])))
        batch = b"".join(tasks("x", backend=name, workdir="there") for name in ("tool", "other"))
        os.link(self.path("there", "tool"), self.path("there", "other"))
        missing, absent = self.lines_of(self.parallel("--jsonl", "-q", input=batch, env=env))
        self.assertEqual([(result["exit_code"], result["error_kind"]) for result in (missing, absent)], [(127, "not_found")] * 2)
        write_program(self.path("tool"), b"#!/bin/sh\necho ours\n")
        write_program(self.path("beside", "other"), b"#!/bin/sh\necho ours, too\n")
        found = self.lines_of(self.parallel("--jsonl", "-q", input=batch, env=env))
        self.assertEqual([result["output"] for result in found], ["ours\n", "ours, too\n"])
        line = self.parallel("--dry-run", input=batch.splitlines()[0], env=env).stdout
        self.assertEqual(self.run_program(["bash", "-c", line]).stdout, b"ours\n")
        os.chmod(self.path("tool"), 0o644)
        for workdir in ({}, {"workdir": "there"}):
            result, = self.lines_of(self.parallel("--jsonl", "-q", input=tasks("x", backend="tool", **workdir), env=here))
            self.assertEqual((result["exit_code"], result["error"]), (126, self.path("tool") + ": cannot be started: Permission denied"))

    def test_nor_is_what_a_program_looks_for_on_the_path(self):
        for name in ("beside", "there", "there/beside"):
            os.mkdir(self.path(name))
        write_program(self.path("beside", "tool"), b"#!/usr/bin/env helper\n")
        for directory, said in (("beside", b"ours"), ("there/beside", b"theirs")):
            write_program(self.path(directory, "helper"), b"#!/bin/sh\necho %s\n" % said)
        env = dict(defined(tool={"command": ["tool"]}), PATH="beside:" + self.environment["PATH"])
        for workdir in ({}, {"workdir": "there"}):
            result, = self.lines_of(self.parallel("--jsonl", "-q", input=tasks("x", backend="tool", **workdir), env=env))
            self.assertEqual(result["output"], "ours\n")

    def test_what_a_program_is_told_of_its_workdir_does_not_lead_out_of_the_root_later(self):
        for name in ("root", "root/in", "outside"):
            os.mkdir(self.path(name))
        os.symlink("in", self.path("root", "link"))
        swap = python("import os, sys; os.unlink('../link'); os.symlink('../outside', '../link'); "
                      "print(*map(os.path.realpath, (sys.argv[1], os.environ['PWD'])))") + ["{workdir}"]
        result, = self.lines_of(self.parallel("--jsonl", "-q", "--root", "root", input=tasks("x", backend="swap", workdir="root/link"), env=defined(swap={"command": swap})))
        self.assertEqual(result["output"].split(), [self.path("root", "in")] * 2)

    @only_linux
    def test_a_directory_that_only_has_the_name_of_one_inside_is_outside(self):
        """As in another mount namespace, to which /proc leads."""
        for name in ("root", "root/in", "outside"):
            os.mkdir(self.path(name))
        other = self.start_program(["unshare", "-rm", "sh", "-c", "mount --bind outside root/in && echo there && exec sleep 300"]) if shutil.which("unshare") else None
        if not other or other.line() != b"there":
            self.skipTest("no mount namespace can be made")
        elsewhere = "/proc/%d/root%s" % (other.pid, self.path("root", "in"))
        result, = self.lines_of(self.parallel("--jsonl", "-q", "--root", "root", input=tasks("touch ran; say x", workdir=elsewhere)))
        other.kill()
        other.wait()
        self.assertEqual((result["status"], result["error"]), ("failed", "workdir %s: is outside of %s" % (elsewhere, self.path("root"))))
        self.assertEqual(os.listdir(self.path("outside")), [])

    def test_no_system_prompt_is_an_option(self):
        show = python("import sys; print(sys.argv[1:])") + ["-s", "{system_prompt}", "--s={system_prompt}", "-{system_prompt}"]
        result, = self.lines_of(self.parallel("--jsonl", "-q", input=tasks("x", backend="show", system_prompt="--yolo"), env=defined(show={"command": show})))
        self.assertEqual(result["output"], "['-s', ' --yolo', '--s=--yolo', '---yolo']\n")

    def test_no_model_is_an_option(self):
        self.assert_refused(self.parallel(input=tasks("touch ran", model="--yolo")), 'stdin:1: model: no model begins with -, as "--yolo" does')
        self.assert_refused(self.parallel("--model=-x", input=tasks("touch ran")), 'stdin:1: model: no model begins with -')
        self.assert_refused(self.parallel(input=tasks("touch ran", backend="claude"), env={"CLINVK_CLAUDE_MODEL": "-x"}), 'stdin:1: model: no model begins')
        self.assertFalse(self.has("ran"))

    def test_results_go_where_they_went_whatever_a_task_puts_in_that_place(self):
        os.mkdir(self.path("victim"))
        swap = python("import os; os.rename('out', 'moved'); os.symlink('victim', 'out'); print('swapped')")
        batch = {"output_dir": "out", "max_parallel": 1, "tasks": [{"backend": "swap", "prompt": "x", "id": "../a"}, {"backend": "echo", "prompt": "say x"}]}
        completed = self.parallel("-q", "-f", self.file("t", batch), env=defined(swap={"command": swap}))
        self.assertEqual(completed.returncode, 0, completed.stderr)
        self.assertEqual(os.listdir(self.path("victim")), [])
        self.assertEqual(sorted(os.listdir(self.path("moved"))), ["001_a.json", "002_task-2.json", "summary.json"])

    def test_output_dir_of_a_batch_is_inside_of_the_root(self):
        os.mkdir(self.path("src"))
        os.symlink("..", self.path("src", "up"))
        for place in ("elsewhere", ".", "src/up/x"):
            batch = json.dumps({"tasks": [{"prompt": "touch ran", "backend": "echo"}], "output_dir": place})
            self.assert_refused(self.parallel("--root", "src", "-w", "src", input=batch),
                                'stdin:1: output_dir: "%s" is outside of "src": only --output-dir can name it' % place)
        self.assertFalse(self.has("elsewhere") or self.has("ran") or self.has("src/ran"))
        batch = json.dumps({"tasks": [{"prompt": "say x", "backend": "echo"}], "output_dir": "src/out"})
        self.assertEqual(self.parallel("-q", "--root", "src", "-w", "src", input=batch).returncode, 0)
        self.assertTrue(self.has("src/out/summary.json"))

    def test_results_stay_in_the_current_directory_unless_the_command_line_says_otherwise(self):
        os.mkdir(self.path("out"))
        os.mkdir(self.path("here"))
        os.symlink("../out", self.path("here", "link"))
        for number, place in enumerate(("../out", self.path("out"), "link", "link/deep", "..", self.path("here-too"), "new/../../out")):
            batch = json.dumps({"tasks": [{"prompt": "touch ran", "backend": "echo"}], "output_dir": place})
            arguments = ["--dry-run"] * (number % 2)
            with self.subTest(place=place, arguments=arguments):
                self.assert_refused(self.parallel(*arguments, input=batch, cwd=self.path("here")), 'stdin:1: output_dir: "' + place[:40],
                                    " is outside of the current directory: only --output-dir can name it")
        self.assertEqual((os.listdir(self.path("out")), os.listdir(self.path("here"))), ([], ["link"]))
        for place in ("deep/er", ".", self.path("here", "own")):
            batch = json.dumps({"tasks": [{"prompt": "say x", "backend": "echo"}], "output_dir": place})
            self.assertEqual(self.parallel("-q", input=batch, cwd=self.path("here")).returncode, 0)
            self.assertTrue(os.path.exists(os.path.join(self.path("here"), place, "summary.json")))
        batch = json.dumps({"tasks": [{"prompt": "say x", "backend": "echo"}], "output_dir": "../nowhere"})
        self.assertEqual(self.parallel("-q", "--output-dir", "../out", input=batch, cwd=self.path("here")).returncode, 0)
        self.assertIn("summary.json", os.listdir(self.path("out")))
        self.assertFalse(self.has("nowhere"))


@support.only_in_full_runs
class Secrets(Commands):
    """Values of the environment whose names look like keys do not stand in what clinvk itself says."""

    SECRET = "sk-ant-0123456789"

    def run_with(self, *arguments, input=b"", env=None, **options):
        return self.parallel(*arguments, input=input, env=dict(env or {}, X_API_KEY=self.SECRET), **options)

    def test_an_answer_is_left_and_an_error_is_not(self):
        batch = tasks("env X_API_KEY; stderr noise", "env X_API_KEY; stderr a %s and %s; exit 3" % (self.SECRET, self.SECRET))
        completed = self.run_with("--jsonl", "-q", input=batch)
        good, bad = self.lines_of(completed)
        self.assertEqual((good["status"], good["output"]), ("ok", self.SECRET + "\n"))
        self.assertEqual((bad["output"], bad["error"]), (self.SECRET + "\n", "a [X_API_KEY] and [X_API_KEY]"))
        for backend in ("claude", "codex", "gemini"):
            with self.subTest(backend=backend):
                good, bad = self.lines_of(self.run_with("--jsonl", "-q", input=tasks(
                    "env X_API_KEY", "fail wrong key " + self.SECRET, backend=backend)))
                self.assertEqual(good["output"], self.SECRET)
                self.assertIn("wrong key [X_API_KEY]", bad["error"])

    def test_in_every_form_and_in_the_files_of_an_output_directory(self):
        shown = python("import os, sys; sys.exit('the key is ' + os.environ['X_API_KEY'])")
        for arguments in ([], ["--json"], ["--jsonl"], ["-q"], ["--jsonl", "--progress", "always"], ["--output-dir", "out"]):
            with self.subTest(arguments=arguments):
                completed = self.run_with(*arguments, input=tasks("x", backend="shown"), env=defined(shown={"command": shown}))
                said = completed.stdout + completed.stderr
                self.assertNotIn(self.SECRET.encode(), said)
                self.assertIn(b"the key is [X_API_KEY]", said)
        for name in ("001_task-1.json", "summary.json"):
            with open(self.path("out", name)) as file:
                content = file.read()
            self.assertIn("the key is [X_API_KEY]", content)
            self.assertNotIn(self.SECRET, content)

    def test_of_a_proxy_in_what_a_program_says(self):
        url = "http://user:pa%40ssword@proxy.test:3128"
        result, = self.lines_of(self.parallel("--jsonl", "-q", env={"HTTPS_PROXY": url}, input=tasks(
            "stderr cannot reach %s with pa@ssword or dXNlcjpwYUBzc3dvcmQ=; exit 3" % url)))
        self.assertEqual(result["error"], "cannot reach http://[HTTPS_PROXY]@proxy.test:3128 with [HTTPS_PROXY] or [HTTPS_PROXY]Q=")
        shown = self.parallel("--dry-run", env={"HTTPS_PROXY": url}, input=tasks("say " + url)).stdout.decode()
        self.assertEqual(shown, "env NO_COLOR=1 cat <<< 'say http://''[HTTPS_PROXY]'@proxy.test:3128\n")

    def test_in_warnings(self):
        event = {"type": "item.completed", "item": {"type": "error", "message": "the key %s is old" % self.SECRET}}
        denial = {"type": "result", "is_error": False, "result": "done", "permission_denials": [
            {"tool_name": "Bash", "tool_input": {"command": "echo " + self.SECRET}}]}
        for backend, value in (("codex", event), ("claude", denial)):
            result, = self.lines_of(self.run_with("--jsonl", "-q", input=tasks("raw " + json.dumps(value).replace("\\", "\\\\"), backend=backend)))
            warning, = result["warnings"]
            self.assertIn("[X_API_KEY]", warning)
            self.assertNotIn(self.SECRET, warning)

    def test_in_what_is_said_of_bad_input(self):
        named = self.file(self.SECRET + ".json", b"nonsense")
        for options, message in (({"input": tasks("x", max_turns=self.SECRET)}, 'stdin:1: max_turns: expected a whole number, got "[X_API_KEY]"'),
                                 ({"input": tasks("x", **{self.SECRET: 1})}, "stdin:1: [X_API_KEY]: unknown field"),
                                 ({"input": tasks("x", backend="x-" + self.SECRET)}, 'unknown backend "x-[X_API_KEY]"'),
                                 ({"input": self.SECRET + "\n"}, 'stdin:1: expected a JSON object or array, got "[X_API_KEY]"'),
                                 ({"arguments": ["-f", named]}, self.path("[X_API_KEY].json:1: ")),
                                 ({"arguments": ["-f", self.path(self.SECRET, "x")]}, self.path("[X_API_KEY]/x: No such file or directory")),
                                 ({"arguments": ["--root", self.SECRET], "input": tasks("x")}, "--root: [X_API_KEY] is not a directory"),
                                 ({"env": {"CLINVK_CEILING": self.SECRET}, "input": tasks("x")}, 'CLINVK_CEILING: expected '),
                                 ({"env": {"CLINVK_BACKENDS": '{"%s": 3}' % self.SECRET}, "input": tasks("x")}, "CLINVK_BACKENDS: [X_API_KEY]: ")):
            with self.subTest(message=message):
                completed = self.run_with(*options.pop("arguments", ()), **options)
                self.assert_refused(completed, message)
                self.assertNotIn(self.SECRET.encode(), completed.stderr)

    def test_in_what_is_said_of_a_line_that_is_no_task(self):
        secret = "eyJ" + "abcdefghij" * 40
        completed = self.run_with(input="TOKEN=%s\n" % secret, env={"A_TOKEN": secret})
        self.assertTrue(completed.stderr.startswith(
            b'clinvk: error: stdin:1: expected a JSON object or array, got "TOKEN=[A_TOKEN]": '), completed.stderr)
        self.assertNotIn(b"abcdefghij", completed.stderr)

    def test_in_the_files_of_a_dry_run(self):
        completed = self.run_with("--dry-run", input=tasks("x", backend="gemini", workdir=self.SECRET, sandbox_mode="workspace", approval_mode="auto"))
        self.assertEqual(completed.returncode, 0, completed.stderr)
        self.assertIn(b"[X_API_KEY]", completed.stdout.partition(b"policy.toml")[0])
        self.assertNotIn(b"0123456789", completed.stdout)

    def test_in_the_configuration_as_it_is_shown(self):
        path = self.file("own.yaml", "backends:\n  claude:\n    extra_flags: [--settings, '%s']\n" % self.SECRET)
        for form in ((), ("--json",)):
            completed = self.clinvk("config", "show", "--config", path, *form, env={"X_API_KEY": self.SECRET})
            self.assertIn(b"[X_API_KEY]", completed.stdout)
            self.assertNotIn(self.SECRET.encode(), completed.stdout)

    def test_in_what_is_said_of_bad_options(self):
        for arguments, message in ((["--timeout", self.SECRET], 'argument --timeout: expected a duration such as 90, 90s, 15m or 2h, got "[X_API_KEY]"'),
                                   (["--color", self.SECRET], "argument --color: invalid choice: '[X_API_KEY]'"), (["--" + self.SECRET], "unknown argument --[X_API_KEY]")):
            completed = self.run_with(*arguments)
            self.assertEqual(completed.returncode, 2)
            self.assertIn(message, completed.stderr.decode())

    def test_in_what_is_said_of_a_directory_that_cannot_be_written(self):
        self.file(self.SECRET, b"")
        completed = self.run_with("--output-dir", self.SECRET, input=tasks("x"))
        self.assertEqual(completed.returncode, 74)
        self.assertIn(b"cannot write to output_dir [X_API_KEY]: ", completed.stderr)
        self.assertNotIn(self.SECRET.encode(), completed.stderr)

    def test_in_the_table(self):
        completed = self.run_with(input=tasks("say a") + tasks("x", backend=self.SECRET) + tasks("say c", name="named " + self.SECRET) + tasks("say " + self.SECRET))
        rows = completed.stdout.decode().partition("#")[2]
        self.assertEqual(rows.count("[X_API_KEY]"), 3, rows)
        self.assertNotIn(self.SECRET, rows)

    def test_in_what_becomes_of_a_bad_task_on_a_pipe(self):
        batch = tasks("say a") + tasks("x", max_turns=self.SECRET) + tasks("x", workdir="/nowhere/" + self.SECRET) + json.dumps(
            {"max_parallel": 3, "output_dir": self.SECRET, "tasks": [{"backend": "echo", "prompt": "say b"}]}).encode()
        completed = self.run_with("--jsonl", "-q", input=batch)
        found = self.lines_of(completed)
        self.assertEqual(found[1]["error"], 'stdin:2: max_turns: expected a whole number, got "[X_API_KEY]"')
        self.assertEqual(found[2]["error"], "workdir /nowhere/[X_API_KEY]: No such file or directory")
        self.assertIn(b'clinvk: warning: stdin:4: output_dir: "[X_API_KEY]" is not applied', completed.stderr)
        self.assertNotIn(self.SECRET.encode(), completed.stdout + completed.stderr)
        dry = self.run_with("--dry-run", input=batch)
        self.assertIn(b'clinvk: error: stdin:2: max_turns: expected a whole number, got "[X_API_KEY]"', dry.stderr)
        self.assertNotIn(self.SECRET.encode(), dry.stdout + dry.stderr)

    def test_a_dry_run_shows_the_variable_and_its_line_runs_all_the_same(self):
        batch = tasks("say a %s b%s" % (self.SECRET, self.SECRET)) + tasks("x", backend="claude", system_prompt=self.SECRET, workdir=self.directory)
        completed = self.run_with("--dry-run", input=batch)
        self.assertNotIn(self.SECRET.encode(), completed.stdout)
        echo, claude = completed.stdout.decode().splitlines()
        self.assertEqual(echo, """env NO_COLOR=1 cat <<< 'say a '"$X_API_KEY"' b'"$X_API_KEY\"""")
        self.assertIn('--append-system-prompt "$X_API_KEY" ', claude)
        shown = self.run_program(["bash", "-c", echo], env={"X_API_KEY": self.SECRET})
        self.assertEqual(shown.stdout.decode(), "a %s b%s\n" % (self.SECRET, self.SECRET))
        report = self.run_with("--dry-run", "--json", input=batch)
        self.assertEqual(self.report_of(report)["results"][0]["output"], echo)
        self.assertNotIn(self.SECRET.encode(), report.stdout)

    def test_other_names_and_short_values_are_left(self):
        for name, value in (("X_NAME", self.SECRET), ("KEYBOARD", self.SECRET), ("X_API_KEY", "sk-0123")):
            result, = self.lines_of(self.parallel("--jsonl", "-q", env={name: value}, input=tasks("stderr it is %s; exit 3" % value)))
            self.assertEqual(result["error"], "it is " + value)
            self.assertEqual(self.parallel("--dry-run", env={name: value}, input=tasks(value)).stdout.decode(), "env NO_COLOR=1 cat <<< %s\n" % value)

    def test_of_one_secret_within_another_the_whole_is_hidden(self):
        values = {"A_TOKEN": "inner-secret", "B_TOKEN": "outer-inner-secret-outer", "C_TOKEN": "secret-o" * 2, "D_TOKEN": "inner-secret-more"}
        prompt = "stderr %(A_TOKEN)s %(B_TOKEN)s %(C_TOKEN)s%(A_TOKEN)s %(D_TOKEN)s; exit 3" % values
        result, = self.lines_of(self.parallel("--jsonl", "-q", env=values, input=tasks(prompt)))
        self.assertEqual(result["error"], "[A_TOKEN] [B_TOKEN] [C_TOKEN][A_TOKEN] [D_TOKEN]")


class DeletedDirectory(support.ForkingCase):
    def test_deleted_current_directory_is_named(self):
        gone = "the current directory does not exist any more"
        self.addCleanup(os.chdir, os.getcwd())
        os.mkdir(self.path("deleted"))
        os.chdir(self.path("deleted"))
        os.rmdir(self.path("deleted"))
        clinvk_there = functools.partial(self.clinvk, cwd=".")
        batch = tasks("say x") + tasks("say x", workdir="sub") + tasks("say x", workdir=self.directory)
        for form in ([], ["--dry-run"]):
            run = clinvk_there("parallel", "--jsonl", "-q", "-j", "1", *form, input=batch)
            self.assertEqual([result.get("error") for result in results(run)], [gone, gone, None])
        for prompt, literal in (("say x", False), ("mail a@b/c", True)):
            batch = tasks(prompt, backend="gemini", sandbox_mode="workspace", approval_mode="auto", literal=literal)
            self.assertEqual(results(clinvk_there("parallel", "--jsonl", "-q", "--dry-run", input=batch))[0]["error"], gone)
        for arguments, status in ((["-b", "echo", "say x"], 2), (["-b", "claude", "-c", "say x"], 2), (["parallel", "--root", "."], 2)):
            run = clinvk_there(*arguments, input=tasks("say x") if "parallel" in arguments else b"")
            self.assertEqual((run.returncode, run.stdout), (status, b""))
            self.assertRegex(run.stderr.decode(), r"\Aclinvk: error: (--root: )?%s\n\Z" % gone)
        self.assertEqual(clinvk_there("-b", "echo", "-w", self.directory, "say x").stdout, b"x\n")
        doctor = clinvk_there("doctor", "--json", env={"PATH": "relative:" + self.environment["PATH"]}), self.clinvk("doctor", "--json")
        self.assertEqual([json.loads(run.stdout)["machine"]["directory"] for run in doctor], [gone, self.directory])


class FewProcesses(Case):
    """`ulimit -u`, which does not bind root: as a user that nobody is."""

    @only_linux
    def test_limit_of_processes_is_one_line_without_tracebacks(self):
        if os.geteuid() != 0:
            self.skipTest("only root can become another user")
        user, place = 100000 + int.from_bytes(os.urandom(3), "big"), self.path("place")
        os.chmod(self.directory, 0o755)
        os.mkdir(place)
        os.chown(place, user, user)
        program = os.path.join(place, "clinvk.pyc")

        def run(python, arguments, limit, count=3):
            def become():
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
                resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))

            return self.run_program([python, "-B", *arguments], tasks(*["touch ran"] * count),
                                    {"HOME": place, "TMPDIR": place, "CLINVK_START_METHOD": "fork"},
                                    preexec_fn=become, cwd=place)

        def runs(python):
            try:
                return run(python, ["-c", "import multiprocessing.pool"], 100).returncode == 0
            except OSError:
                return False

        python = next(filter(runs, (os.path.realpath(sys.executable), "/usr/bin/python3")), None)
        if python is None:
            self.skipTest("no Python here that another user can run")
        compiled = self.run_program([python, "-c", "import py_compile, sys; py_compile.compile(*sys.argv[1:], doraise=True)", PROGRAM, program])
        self.assertEqual(compiled.returncode, 0, compiled.stderr)
        for limit, jobs in [(limit, 3) for limit in range(3, 8)] + [(12, 40), (30, 40)]:
            done = run(python, [program, "parallel", "-j", str(jobs), "--jsonl", "-q"], limit, jobs)
            self.assertEqual((done.returncode, done.stdout, done.stderr.decode()), (2, b"", (
                "clinvk: error: cannot start %d workers: Resource temporarily unavailable; try a smaller --max-parallel\n" % jobs)), limit)
            self.assertEqual(os.listdir(place), ["clinvk.pyc"])


@support.only_in_full_runs
class Doctor(Commands):
    """`clinvk doctor`, with programs of ours on the PATH and nothing else."""

    def setUp(self):
        super().setUp()
        os.mkdir(self.path("path"))
        self.environment["PATH"] = self.path("path")
        self.install("cat", "exit 9")  # which is not asked

    def install(self, name, script):
        write_program(self.path("path", name), b"#!/bin/sh\n%s\n" % script.encode())

    def doctor(self, *arguments, **options):
        return self.run_program([sys.executable, "-W", "error", COMPILED, "doctor", *arguments], **options)

    def report(self, status, **options):
        """What it says in JSON: (backends by their names, machine)."""
        completed = self.doctor("--json", **options)
        self.assertEqual((completed.returncode, completed.stderr), (status, b""))
        self.assertEqual(completed.stdout.count(b"\n"), 1)
        report = json.loads(completed.stdout.decode("utf-8"))
        self.assertEqual(sorted(report), ["backends", "clinvk", "machine", "not_installed"])
        self.assertEqual(report["clinvk"], clinvk.__version__)
        for entry in report["backends"]:
            self.assertEqual(sorted(set(entry) - {"defined_for"}), ["name", "path", "problem", "program", "usable", "version"])
            self.assertEqual(entry["usable"], not entry["problem"], entry)
        return {entry["name"]: entry for entry in report["backends"]}, report["machine"]

    def test_each_program_is_found_and_asked_for_its_version(self):
        self.install("claude", 'echo "2.1.331 (Claude Code)"; echo "args: $*" > asked; exec 2>&1 >> asked; read line; echo "${CLAUDECODE-none}"')
        self.install("codex", "echo; echo '  codex-cli   0.169.0'; echo more")
        self.install("gemini", "echo 'cannot find module' >&2; exit 3")
        backends, _ = self.report(0, env={"CLAUDECODE": "1"})
        self.assertEqual(list(backends), list(clinvk.BACKENDS))
        self.assertEqual(backends["claude"], {"name": "claude", "program": "claude", "path": self.path("path", "claude"),
                                              "version": "2.1.331 (Claude Code)", "usable": True, "problem": ""})
        self.assertEqual([backends["codex"][name] for name in ("version", "usable")], ["codex-cli 0.169.0", True])
        self.assertEqual([backends["gemini"][name] for name in ("path", "version", "usable", "problem")],
                         [self.path("path", "gemini"), "", False, "cannot find module"])
        self.assertEqual([backends["echo"][name] for name in ("program", "path", "version", "usable")], ["cat", self.path("path", "cat"), "", True])
        self.assertEqual(self.wait_for_file(self.path("asked")), b"args: --version\nnone\n")

    def test_what_is_missing_is_told_with_how_to_install_it(self):
        self.file("path/codex", "#!/bin/sh\n")
        self.install("gemini", "exit 0")
        backends, _ = self.report(1)
        self.assertEqual((backends["claude"]["path"], backends["claude"]["problem"]),
                         ("", "not found on the PATH; to install it: npm install -g @anthropic-ai/claude-code"))
        self.assertEqual((backends["codex"]["path"], backends["codex"]["problem"]),
                         (self.path("path", "codex"), "cannot be executed; to install it: npm install -g @openai/codex"))
        self.assertEqual((backends["gemini"]["usable"], backends["gemini"]["problem"]), (False, "gemini ended well but gave no answer"))

    def test_the_exit_status_says_whether_there_is_one_to_use(self):
        self.report(1)  # echo alone
        os.unlink(self.path("path", "cat"))
        self.assertFalse(self.report(1)[0]["echo"]["usable"])
        mine = defined(mine={"command": ["./tool", "{model}"]})
        self.assertIs(self.report(1, env=mine)[0]["mine"]["usable"], False)
        write_program(self.path("tool"), b"#!/bin/sh\ntouch ran\n")
        backends, _ = self.report(0, env=mine)
        self.assertEqual((list(backends)[-1], backends["mine"]["path"], backends["mine"]["version"]), ("mine", self.path("tool"), ""))
        self.assertFalse(self.has("ran"), "of what it would do nothing is known: it is not asked")
        self.install("gemini", "echo 1")
        self.report(0)

    def test_in_text_there_is_a_line_for_each(self):
        self.install("claude", r"printf 'v\033[31m1\n'")
        self.install("codex", "echo >&2 broken; exit 1")
        completed = self.doctor(env={"CLINVK_BACKENDS": '{"mine": {"command": ["cat"]}, "other": {"command": ["missing"]}}'})
        self.assertEqual((completed.returncode, completed.stderr), (0, b""))
        lines, _, machine = completed.stdout.decode().partition("\n\n")
        cat = self.path("path", "cat")
        own = tuple(name for name in clinvk.BACKENDS if name not in support.PROGRAMS + ("echo",))
        self.assertEqual([line for line in lines.split("\n") if line.split()[0] not in own], [
            "claude     v^[[31m1  " + self.path("path", "claude"), "codex      cannot be used:  %s  broken" % self.path("path", "codex"),
            "gemini     cannot be used:  not found on the PATH; to install it: npm install -g @google/gemini-cli", "echo       found  " + cat,
            "mine       found  " + cat, "other      cannot be used:  not found on the PATH",
            "also known, not installed: aider, copilot, llm, ollama, opencode, qwen"])
        said = dict(line.split(None, 1) for line in machine.splitlines())
        self.assertEqual(set(said), set(self.report(0)[1]))
        self.assertEqual((said["temp"], said["home"], said["home_writable"], said["nested_in"]), (self.tmp, self.home, "yes", "none"))
        self.assertTrue(completed.stdout.endswith(b"\n"))

    def test_known_programs_are_shown_where_they_are_installed(self):
        self.install("llm", 'echo "llm, version 0.99: $*"')
        self.install("ollama", "exit 3")
        completed = self.doctor("--json")
        self.assertEqual(completed.returncode, 0)
        report = json.loads(completed.stdout.decode())
        self.assertEqual(report["not_installed"], ["aider", "copilot", "opencode", "qwen"])
        backends = {entry["name"]: entry for entry in report["backends"]}
        self.assertEqual(list(backends), [*clinvk.BACKENDS, "llm", "ollama"])
        self.assertEqual(backends["llm"], {"name": "llm", "program": "llm", "path": self.path("path", "llm"), "version": "llm, version 0.99: --version",
                                           "usable": True, "problem": "", "defined_for": "0.36"})
        self.assertEqual([backends["ollama"][name] for name in ("usable", "problem", "defined_for")], [False, "exit status 3", ""])
        lines = self.doctor().stdout.decode().split("\n")
        self.assertIn("llm        llm, version 0.99: --version  %s  (defined for 0.36)" % self.path("path", "llm"), lines)
        self.assertIn("ollama     cannot be used:  %s  exit status 3" % self.path("path", "ollama"), lines)

    def test_configuration_can_be_chosen(self):
        configuration = self.file("other.yaml", "backends:\n  mine:\n    command: [cat]\n")
        backends = json.loads(self.doctor("--config", configuration, "--json").stdout.decode())["backends"]
        self.assertEqual([entry["usable"] for entry in backends if entry["name"] == "mine"], [True])
        completed = self.doctor("--config", self.path("nowhere"))
        self.assertEqual((completed.returncode, completed.stdout), (3, b""))

    def test_own_definition_of_a_known_name_is_shown_in_its_place(self):
        self.install("llm", "exit 3")
        backends, _ = self.report(0, env=defined(llm={"command": ["cat"]}))
        self.assertEqual((backends["llm"]["program"], backends["llm"]["usable"], "defined_for" in backends["llm"]), ("cat", True, False))

    def test_what_matters_of_the_machine(self):
        method = self.environment.get("CLINVK_START_METHOD") or clinvk.default_start_method()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        _, machine = self.report(1, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard)))
        self.assertEqual(machine["python"], "%s %s" % (platform.python_version(), sys.executable))
        self.assertEqual([machine[name] for name in ("start_method", "temp", "temp_writable", "home", "home_writable", "descriptors", "nested_in")],
                         [method, self.tmp, True, self.home, True, 200, []])
        self.assertIs(machine["semaphores"], True)
        self.assertIs(machine["finds_strays"], support.LINUX)
        self.assertGreater(machine["temp_free_mb"], 0)
        self.assertLessEqual(machine["temp_free_mb"], shutil.disk_usage(self.tmp).total >> 20)
        self.assertEqual(machine["orjson"] != "no", orjson_is_there())

    def test_a_home_that_cannot_be_written_and_runs_in_runs_are_told(self):
        _, machine = self.report(1, env={"HOME": "/nonexistent/home", "CLAUDECODE": "1", "CLAUDE_CODE_ENTRYPOINT": "cli"})
        self.assertEqual((machine["home"], machine["home_writable"]), ("/nonexistent/home", False))
        self.assertEqual(machine["nested_in"], ["CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT"])
        text = self.doctor(env={"HOME": "/nonexistent/home", "CLAUDECODE": "1"}).stdout.decode()
        self.assertRegex(text, r"(?m)^home_writable +no$")
        self.assertRegex(text, r"(?m)^nested_in +CLAUDECODE$")

    def test_each_start_method_is_tried_with_the_programs(self):
        self.install("claude", "echo 1")
        for method in ("fork", "spawn", "thread"):
            backends, machine = self.report(0, env={"CLINVK_START_METHOD": method})
            self.assertEqual((machine["start_method"], backends["claude"]["version"]), (method, "1"))

    def test_an_unknown_start_method_is_refused(self):
        self.assert_refused(self.doctor(env={"CLINVK_START_METHOD": "forc"}), 'CLINVK_START_METHOD: unknown start method "forc"')

    def test_without_a_place_for_temporary_files_nothing_can_be_used(self):
        self.install("claude", "echo 1")
        backends, machine = self.report(1, env={"TMPDIR": self.path("nowhere")})
        self.assertEqual((machine["temp"], machine["temp_writable"], machine["temp_free_mb"]), (self.path("nowhere"), False, 0))
        self.assertEqual([backends[name]["problem"].partition(": ")[0] for name in ("claude", "echo", "gemini")],
                         ["cannot write temporary files to " + self.path("nowhere")] * 2 + ["not found on the PATH; to install it"])

    def test_definitions_with_a_mistake_are_refused(self):
        self.assert_refused(self.doctor(env={"CLINVK_BACKENDS": '{"mine": {}}'}), "CLINVK_BACKENDS: mine: ")

    def test_it_leaves_nothing(self):
        self.install("claude", "echo 1; : > \"$TMPDIR/left\"; sleep 300 &")
        self.environment["PATH"] += os.pathsep + os.defpath
        self.report(0)
        self.assertEqual(os.listdir(self.home) + os.listdir(self.tmp), [])


def orjson_is_there():
    try:
        import orjson
        return bool(orjson)
    except ImportError:
        return False


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
                                 "stdin:3: max_parallel: 3 is not applied: an earlier batch of this run set 1\n")
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


@support.only_in_full_runs
class BadInput(Commands):
    def test_a_file_with_a_mistake_starts_nothing(self):
        good = tasks("touch ran")
        for how, name, content in (("stdin", "last.jsonl", good * 3 + tasks("say x", max_turns="ten")),
                              ("--file", "torn.jsonl", good + b'{"backend": "echo", "prompt": "x"'),
                              ("stdin", "batch.json", json.dumps({"tasks": [{"backend": "echo", "prompt": "touch ran"}] * 3 + [{"prompt": ""}]})),
                              ("stdin", "large.jsonl", tasks("touch ran", meta={"x": "y" * 1000}) * 1100 + b'{"prompt": null}\n'),
                              ("--file", "large.jsonl", tasks("touch ran", meta={"x": "y" * 1000}) * 1100 + b'{"prompt": null}\n')):
            path = self.file(name, content)
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
        for content in (b"", b'{"tasks": []}'):
            with self.subTest(file=content):
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

        for way, arguments, batch in (
                ("pipe", ["-j", "4"], {"tasks": [{"prompt": prompt} for prompt in meeting(4)], "max_parallel": 1}),
                ("file", ["--max-parallel=2"], [{"prompt": prompt} for prompt in meeting(2)]),
                ("pipe", [], {"tasks": [{"prompt": prompt} for prompt in meeting(5)], "max_parallel": 5}),
                ("file", [], [{"prompt": prompt} for prompt in meeting(3)])):
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
        batch = (tasks("ids one; sleep 300", timeout=3) + tasks("wait-for one; wait-for two; say x", timeout="15m")
                 + tasks("say partly; ids two; sleep 300"))
        timer, soon = threading.Timer, support.timer_after(self.path("one"), self.path("two"))
        with mock.patch.object(threading, "Timer", lambda seconds, *rest: (soon if seconds < 60 else timer)(seconds, *rest)):
            completed = self.parallel("--jsonl", "-q", "--timeout", "5s", input=batch)
        lines = self.lines_of(completed)
        self.assertEqual([(result["status"], result["exit_code"], result.get("error_kind"), result.get("error")) for result in lines],
                         [("timeout", 124, "timeout", "timed out after 3s"), ("ok", 0, None, None),
                          ("timeout", 124, "timeout", "timed out after 5s")])
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
        self.assertEqual(lines[0]["error"], "claude: not found: it is not installed, or not on the PATH; `clinvk doctor` shows what can be used")
        self.assertIn("codex: cannot be started: Permission denied", lines[1]["error"])
        self.assertEqual(completed.returncode, 1)

    def test_the_exit_status_says_what_became_of_the_run(self):
        for status, arguments, text in (
                (0, [], tasks("say x", "stderr error: noise is no failure; say x") + tasks("exit 3", dry_run=True)),
                (0, ["--dry-run"], tasks("exit 3")), (1, [], tasks("say x", "exit 77")), (1, [], tasks("die TERM")),
                (1, [], tasks("sleep 300", timeout=0.1)), (1, [], tasks("say x", workdir="/nonexistent")),
                (2, [], b""), (2, [], b"nonsense"), (2, ["--nonsense"], tasks("say x")), (74, ["--output-dir", "/dev/null/x"], tasks("say x"))):
            with self.subTest(arguments=arguments, text=text):
                self.assertEqual(self.parallel("-q", "-j", "1", *arguments, input=text).returncode, status)


class Logs(Commands):
    SECRET = {"FAKE_API_KEY": "sk-very-secret-0123456789"}

    def kept(self, *names):
        """The content of the files of the log directory; of those with these names, if there are any."""
        found = {}
        for name in names or os.listdir(self.path("logs")):
            with open(self.path("logs", name), "rb") as file:
                found[name] = file.read()
        return found

    def test_log_can_be_followed_while_the_program_runs(self):
        for method in support.START_METHODS:
            with self.subTest(method=method):
                batch = self.file("t", tasks("say one;stderr bad;touch ready;wait-for go;say two", id="it: s\u00ed/../x"))
                process = self.start_parallel("--jsonl", "-q", "--log-dir", "logs/" + method, "--status-file", "status", "-f", batch,
                                              env={"CLINVK_START_METHOD": method})
                self.wait_for_file(self.path("ready"))
                name = "logs/%s/001_it__s_____x.1" % method
                tail = self.start_program(["tail", "-n", "+1", "-f", name + ".jsonl"])
                self.assertEqual(tail.line(), b"one")
                with open(self.path(name + ".err"), "rb") as file:
                    self.assertEqual(file.read(), b"bad\n")
                support.wait_until(lambda: json.loads(self.wait_for_file(self.path("status")))["running"], "the status file")
                running, = json.loads(self.wait_for_file(self.path("status")))["running"]
                self.assertEqual(running["log"], name + ".jsonl")
                self.touch("go")
                self.assertEqual(tail.line(), b"two")
                result, = self.lines_of(process.finish())
                self.assertEqual((result["log"], result["log_stderr"]), (name + ".jsonl", name + ".err"))
                self.assertEqual([os.stat(self.path(*path)).st_mode & 0o777 for path in (("logs", method), (name + ".jsonl",), (name + ".err",))],
                                 [0o700, 0o600, 0o600])
                tail.kill()
                tail.wait(PATIENCE)
                for used in ("ready", "go"):
                    os.unlink(self.path(used))

    @support.only_in_full_runs
    def test_each_form_of_the_results_names_the_log(self):
        batch = self.file("t.json", tasks("say x", name="a"))
        log = {"log": "logs/001_a.%d.jsonl", "log_stderr": "logs/001_a.%d.err"}
        self.parallel("--json", "-q", "--log-dir", "logs", "--results", "r", "--output-dir", "logs", "-f", batch)
        json_run = self.parallel("--json", "-q", "--log-dir", "logs", "-f", batch)
        with open(self.path("r")) as results_file, open(self.path("logs", "001_a.json")) as kept:
            found = [json.load(results_file), json.load(kept)["result"], json.loads(json_run.stdout)["results"][0]]
        for result, number in zip(found, (1, 1, 2)):
            self.assertEqual({name: result[name] for name in log}, {name: path % number for name, path in log.items()})
        chain = self.clinvk("chain", "--json", "--log-dir", "logs", input=json.dumps({"steps": [{"backend": "echo", "prompt": "say a"}, {"backend": "echo", "prompt": "say b"}]}))
        self.assertEqual([step["log"] for step in json.loads(chain.stdout)["results"]], ["logs/001_task-1.1.jsonl", "logs/002_task-2.1.jsonl"])
        compared = self.clinvk("compare", "--backends", "claude,codex", "--json", "--log-dir", self.path("other"), "say x")
        self.assertEqual([one["log"] for one in json.loads(compared.stdout)["results"]],
                         [self.path("other", "%03d_task-%d.1.jsonl" % (number, number)) for number in (1, 2)])
        self.assertFalse(self.parallel("-q", "--dry-run", "--log-dir", "none", "-f", batch).returncode or self.has("none"))

    def test_each_attempt_and_each_run_has_a_log_of_its_own(self):
        self.set_in_forks(RETRY_SECONDS=0.01)
        failing = "append log x;stderr connection refused;exit 1"
        run = self.parallel("--jsonl", "-q", "--retries", "1", "--results", "r", "--log-dir", "logs", input=tasks(failing, "say fine"))
        result = next(line for line in results(run) if not line["index"])
        self.assertEqual([one["log"] for one in result["tries"]], ["logs/001_task-1.%d.jsonl" % number for number in (1, 2)])
        self.assertEqual((result["log"], result["log_stderr"]), ("logs/001_task-1.2.jsonl", "logs/001_task-1.2.err"))
        before = self.kept()
        self.assertEqual((len(before), before["001_task-1.1.err"], before["001_task-1.2.err"]), (6, b"connection refused\n", b"connection refused\n"))
        run = self.parallel("--jsonl", "-q", "--results", "r", "--resume", "--retries", "0", "--log-dir", "logs", input=tasks(failing, "say fine"))
        self.assertEqual({line["index"]: line["log"] for line in results(run)}, {0: "logs/001_task-1.3.jsonl", 1: "logs/002_task-2.1.jsonl"})
        self.assertEqual(dict(self.kept(), **before), self.kept())
        os.unlink(self.path("logs", "002_task-2.1.jsonl"))  # .err is still there
        run = self.parallel("--jsonl", "-q", "--log-dir", "logs", input=tasks("exit 1", "say fine"))
        self.assertEqual({line["index"]: line["log"] for line in results(run)}, {0: "logs/001_task-1.4.jsonl", 1: "logs/002_task-2.2.jsonl"})

    @support.only_in_full_runs
    def test_closed_log_is_cut_and_has_no_secrets(self):
        run = self.parallel("--jsonl", "-q", "--log-dir", "logs", "--log-max", "1K", env=self.SECRET, input=tasks(
            "env FAKE_API_KEY;" + "say 01234567890123456789;" * 100 + "say end", "env FAKE_API_KEY;stderr sk-very-secret-0123456789"))
        self.assertEqual([line["status"] for line in results(run)], ["ok", "ok"])
        kept = self.kept()
        lines = kept["001_task-1.1.jsonl"].splitlines()
        self.assertEqual((lines[0], lines[-1]), (b"[FAKE_API_KEY]", b"end"))
        missing, = (json.loads(line)["missing_bytes"] for line in lines if line.startswith(b"{"))
        self.assertEqual(missing + 21 * (len(lines) - 3) + 26 + 4, 26 + 2100 + 4)
        self.assertLess(len(kept["001_task-1.1.jsonl"]), 1024)
        self.assertEqual([kept["002_task-2.1" + suffix] for suffix in (".jsonl", ".err")], [b"[FAKE_API_KEY]\n"] * 2)

    @only_linux
    def test_log_of_a_worker_that_is_killed_is_closed_all_the_same(self):
        for method in support.PROCESS_METHODS:
            with self.subTest(method=method):
                process = self.start_parallel("--jsonl", "-q", "--retries", "0", "--log-dir", "logs/" + method, "-f", self.file(
                    "t", tasks("env FAKE_API_KEY;stderr sk-very-secret-0123456789;ids ids;wait-for never", backend="echo")),
                    env=dict(self.SECRET, CLINVK_START_METHOD=method))
                pid = self.pid_in(self.path("ids"))
                os.kill(support.life_of(pid)[0], signal.SIGKILL)
                result, = self.lines_of(process.finish())
                self.assertEqual((result["status"], result["log"]), ("lost", "logs/%s/001_task-1.1.jsonl" % method))
                self.assertEqual(self.kept(*("%s/001_task-1.1%s" % (method, suffix) for suffix in (".jsonl", ".err"))),
                                 {"%s/001_task-1.1%s" % (method, suffix): b"[FAKE_API_KEY]\n" for suffix in (".jsonl", ".err")})
                os.unlink(self.path("ids"))

    def test_stopped_run_closes_the_logs_of_what_ran(self):
        process = self.start_parallel("--jsonl", "-q", "-j", "1", "--log-dir", "logs", "-f", self.file(
            "t", tasks("env FAKE_API_KEY;touch ready;wait-for never", "say x", "say y")), env=self.SECRET)
        self.wait_for_file(self.path("ready"))
        process.send_signal(signal.SIGTERM)
        lines = self.lines_of(process.finish())
        self.assertEqual({line["index"]: line.get("log") for line in lines}, {0: "logs/001_task-1.1.jsonl", 1: None, 2: None})
        self.assertEqual(self.kept(), {"001_task-1.1.jsonl": b"[FAKE_API_KEY]\n", "001_task-1.1.err": b""})

    @support.only_in_full_runs
    def test_log_directory_that_cannot_be_used_ends_the_run_before_it_starts(self):
        self.file("file", "x")
        for path in ("file", "file/below"):
            run = self.parallel("--log-dir", path, input=tasks("touch ran"))
            self.assertEqual((run.returncode, run.stdout, run.stderr.decode()), (
                74, b"", "clinvk: error: cannot write to --log-dir %s: Not a directory\n" % path))
        self.assertFalse(self.has("ran"))
        run = self.parallel("--log-max", "1M", input=tasks("touch ran"))
        self.assertEqual((run.returncode, run.stderr.decode()), (2, "clinvk: error: --log-max: there are no logs; give --log-dir DIR\n"))

    @support.only_in_full_runs
    def test_options_of_checks_without_a_check_are_refused(self):
        for name, value in (("--attempts", "3"), ("--check-timeout", "9"), ("--repair-prompt", self.file("repair", "Again."))):
            run = self.parallel(name, value, input=tasks("say x"))
            self.assertEqual((run.returncode, run.stdout, run.stderr.decode()), (2, b"", "clinvk: error: %s: there is no check; give --check CMD, "
                                                                                 "or --allow-commands for the checks of the tasks\n" % name))
            for more in (["--check", "true"], ["--allow-commands"]):
                self.assertEqual(self.parallel(name, value, *more, input=tasks("say x")).returncode, 0)

    @support.only_in_full_runs
    def test_dry_run_names_the_fields_without_effect(self):
        options = ("--effort", "high", "-b", "gemini", "--dry-run")
        warning = "gemini has no effort; it was not applied"
        for run in (self.parallel(*options, input=tasks("a", "b", backend="gemini")), self.clinvk(*options, "a")):
            self.assertEqual((run.returncode, run.stderr.decode()), (0, "clinvk: warning: %s\n" % warning))
        found = results(self.parallel(*options, "--jsonl", input=tasks("a", backend="gemini")))
        self.assertEqual([(one["status"], one["warnings"]) for one in found], [("skipped", [warning])])

    @support.only_in_full_runs
    def test_placeholders_in_a_check_are_named(self):
        call = ["--jsonl", "-q", "--prompt", "say {}", "--check", "test {/.} = {/.}"]
        self.assertEqual(self.parallel(*call, "--", "x").stderr.decode(),
                         "clinvk: warning: --check is no template, {/.} stays as it is; a check finds the id of its task, such as that of --id '{/.}', in $CLINVK_TASK_ID\n")
        self.assertEqual(self.parallel("--jsonl", "-q", "--check", "test {} = {}", input=tasks("say x")).stderr, b"")

    def test_log_directory_that_goes_away_fails_the_tasks_after_that(self):
        process = self.start_parallel("--jsonl", "-q", "-j", "1", "--log-dir", "logs", "-f", self.file(
            "t", tasks("touch ready;wait-for go;say x", "say y", "say z")))
        self.wait_for_file(self.path("ready"))
        clinvk.remove_tree(self.path("logs"))
        self.touch("go")
        lines = {line["index"]: line for line in self.lines_of(process.finish())}
        self.assertEqual([lines[index]["status"] for index in range(3)], ["ok", "failed", "failed"])
        self.assertEqual(lines[2]["error"], "cannot write the output to logs/003_task-3.1.jsonl: No such file or directory")


@support.only_in_full_runs
class StatusFiles(Commands):
    def status(self):
        with open(self.path("status.json"), "rb") as file:
            return json.load(file)

    def wait_for_status(self, predicate):
        """The first status that the file shows of which the predicate is true."""
        return support.wait_until(lambda: self.has("status.json") and predicate(self.status()) and self.status(), "the status file")

    def test_status_file_shows_the_run_from_its_start_to_its_end(self):
        batch = [{"backend": "echo", "prompt": "say one"}, {"backend": "echo", "id": "slow", "name": "two", "prompt": "wait-for go; exit 3"}]
        process = self.start_parallel("--jsonl", "-q", "--status-file", "status.json", "--results", "r.jsonl", "-f", self.file("t", batch),
                                      cwd=self.directory)
        status = self.wait_for_status(lambda status: status["done"] == 1 and status["running"])
        self.assertEqual((status["pid"], status["state"], status["exit_status"], status["total_tasks"]), (process.pid, "running", None, 2))
        self.assertEqual([(one["index"], one["id"], one["name"], one["attempt"]) for one in status["running"]], [(1, "slow", "two", 1)])
        self.assertLess(status["run"], status["running"][0]["started"])
        self.touch("go")
        lines = self.lines_of(process.finish())
        self.assertEqual(len(lines), 2)
        ended = self.status()
        with open(self.path("r.jsonl")) as file:
            self.assertEqual({json.loads(line)["run"] for line in file}, {ended["run"]})
        self.assertEqual((ended["state"], ended["exit_status"], ended["done"], ended["failed"], ended["running"]), ("ended", 1, 2, 1, []))
        self.assertFalse([name for name in os.listdir(self.directory) if name.endswith(".tmp")])

    def test_status_file_of_a_stopped_run_has_its_exit_status(self):
        process = self.start_parallel("-q", "--status-file", self.path("status.json"), "-f", self.file("t", tasks("wait-for never")))
        self.wait_for_status(lambda status: status["running"])
        process.send_signal(signal.SIGTERM)
        process.finish()
        self.assertEqual((self.status()["state"], self.status()["exit_status"], self.status()["canceled"]), ("ended", 143, 1))

    def test_status_file_that_is_no_status_file_is_refused_before_another_is_made(self):
        self.assert_refused(self.parallel("--status-file", self.file("mine", "text"), "--results", "r.jsonl", "--output-dir", "out", input=tasks("say x")),
                            "clinvk did not write this file")
        self.assertEqual([self.has(name) for name in ("r.jsonl", "r.jsonl.running", "out")], [False] * 3)

    def test_status_file_that_cannot_be_written_stops_nothing(self):
        os.mkdir(self.path("gone"))
        process = self.start_parallel("--jsonl", "-q", "-j", "1", "--status-file", self.path("gone", "s"), "-f", self.file(
            "t", tasks("wait-for go; say z", "say x", "say y")))
        support.wait_until(lambda: os.listdir(self.path("gone")) == ["s"], "the status file")
        clinvk.remove_tree(self.path("gone"))
        self.touch("go")
        completed = process.finish()
        self.assertEqual(len(self.lines_of(completed)), 3)
        self.assertEqual(completed.stderr.decode(), "clinvk: warning: cannot write the status file %s: No such file or directory; "
                         "the run continues\n" % self.path("gone", "s"))

    def test_status_file_that_something_else_is_written_to_is_refused(self):
        batch = self.file("t.json", tasks("touch ran"))
        completed = self.parallel("--status-file", "-", "-f", batch, cwd=self.directory)
        self.assertEqual((completed.returncode, completed.stdout, os.path.exists(self.path("-"))), (2, b"", False))
        self.assertIn(b'argument --status-file: expected the name of a file, got "-"', completed.stderr)
        for arguments, input, error in ((["--status-file", "t.json", "-f", batch], b"", "t.json: it is the file of the tasks"),
                                        (["--status-file", "s", "--results", "./s"], tasks("touch ran"), "s: it is the file of the results"),
                                        (["--status-file", "s.running", "--results", "s"], tasks("touch ran"), "s.running: it is the file of the tasks that run"),
                                        (["--status-file", "bin"], tasks("touch ran"), "bin: expected a regular file")):
            with self.subTest(arguments=arguments):
                completed = self.parallel(*arguments, input=input, cwd=self.directory)
                self.assertEqual((completed.returncode, completed.stdout), (2, b""))
                self.assertIn("clinvk: error: --status-file " + error, completed.stderr.decode())
        for stream in ("stdout", "stderr"):
            with self.subTest(stream=stream), open(self.path("out"), "wb") as out:
                process = self.start_parallel("--status-file", "out", "-f", batch, cwd=self.directory, **{stream: out})
                process.wait(PATIENCE)
                self.assertEqual(process.returncode, 2)
        self.assertFalse(self.has("ran"))

    def test_status_file_is_not_written_by_a_dry_run(self):
        self.parallel("--dry-run", "--status-file", self.path("status.json"), input=tasks("say x"))
        self.assertFalse(self.has("status.json"))


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
        answers = ["\udcff\udcfe\udc80 and \udcc3( and \udcf0\udc9f", "a\0b\n", "x" * 200000, "\u2028 \x7f \x1b \" \\ \x00 \ufeff \uffff",
                   "\U0001f642" * 20000, "\udce5\udcae" * 5000, "\u5be9\u67e5" * 400]
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

    def test_half_a_surrogate_pair_in_the_words_of_a_task_comes_back_as_it_was(self):
        words = {"id": "i\ud800", "name": "n\udfff\udced", "tags": ["\udbff", "t"], "meta": {"\ud800": 1, "\udced\udca0\udc80": [{"\udfff": "\ud83d"}]}}
        for form in ("--jsonl", "--json"):
            for prompt in ("a", "x" * 100000):
                completed = self.parallel(form, "-q", "--output-dir", "kept", input=json.dumps(dict(words, backend="echo", prompt=prompt)))
                with open(self.path("kept", next(name for name in os.listdir(self.path("kept")) if name != "summary.json"))) as file:
                    kept = json.load(file)
                result, = self.lines_of(completed) if form == "--jsonl" else self.report_of(completed)["results"]
                for given in (result, kept["result"]):
                    self.assertEqual({"id": given["task_id"], "name": given["task_name"], "tags": given["tags"], "meta": given["meta"]}, words)
                self.assertEqual({name: kept["task"][name] for name in words}, words)
                clinvk.remove_tree(self.path("kept"))

    def test_prompts_of_any_size_and_look_arrive_as_they_are(self):
        self.install_answerers(*PROGRAMS)
        self.file("file", "not this")
        prompts = ["-x", "--help", "--", "@file", "/quit", "$HOME `id` %s \\n", " leading and trailing \n", "a\0b", "\r\n\r\nx", "\ufeffx",
                   "\u00e9\u5be9\U0001f642" * 10000, "z" * (1 << 20)]
        completed = self.parallel("--jsonl", "-q", "-b", "echo", input=json.dumps([{"prompt": prompt} for prompt in prompts]))
        self.assertEqual([result["output"] for result in self.lines_of(completed)], prompts)
        given = (("claude", "-x"), ("codex", "@file"), ("gemini", "--help"), ("claude", "\u5be9" * 70000))
        completed = self.parallel("--jsonl", "-q", input=b"".join(tasks(prompt, backend=backend) for backend, prompt in given))
        for (backend, prompt), result in zip(given, self.lines_of(completed)):
            with self.subTest(backend=backend):
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

    def test_a_run_within_a_run_is_a_run(self):
        # a backend that calls clinvk itself: neither run takes the other's processes for its own
        write_program(os.path.join(self.bin, "claude"), b"#!/bin/sh\n/bin/cat > inner.json\n'%s' '%s' parallel -q --jsonl < inner.json >&2\n"
                      b"echo '{\"type\": \"result\", \"is_error\": false, \"result\": \"inner done\"}'\n"
                      % (os.fsencode(sys.executable), os.fsencode(COMPILED)))
        self.assertEqual(self.lines_of(self.parallel("--jsonl", "-q", input=tasks(
            tasks("say inner", "touch inner-ran; say x").decode(), backend="claude")))[0]["output"], "inner done")
        self.assertTrue(self.has("inner-ran"))


@support.only_in_full_runs
class RetriesAndBounds(Commands):
    FLAKY = """#!/bin/sh
        read -r kind times reason
        echo >> "starts.$CLINVK_TASK"
        [ "$(wc -l < "starts.$CLINVK_TASK")" -gt "$times" ] && exec echo "done"
        echo "$reason" >&2
        exit 1
        """

    def setUp(self):
        super().setUp()
        self.set_in_forks(RETRY_SECONDS=0.01)
        write_program(self.path("flaky"), textwrap.dedent(self.FLAKY).lstrip().encode())
        self.environment.update(defined(flaky={"command": [self.path("flaky")]}, other={"command": [self.path("flaky")]}))

    def starts(self, index):
        try:
            with open(self.path("starts.%d" % index)) as file:
                return len(file.readlines())
        except FileNotFoundError:
            return 0

    def test_transient_errors_are_tried_again_and_the_result_tells_of_it(self):
        batch = tasks("fail 1 503 the service is overloaded", "fail 9 401 unauthorized", "fail 0 x", backend="flaky")
        completed = self.parallel("--jsonl", input=batch)
        first, second, third = self.lines_of(completed)
        self.assertEqual([(result["status"], result["attempts"]) for result in (first, second, third)], [("ok", 2), ("failed", 1), ("ok", 1)])
        self.assertEqual([(one["status"], one.get("error_kind")) for one in first["tries"]], [("failed", "overloaded"), ("ok", None)])
        self.assertNotIn("tries", third)
        self.assertEqual([self.starts(index) for index in range(3)], [2, 1, 1])
        self.assertIn("\n1    flaky        OK (2)     ", completed.stderr.decode())

    def test_stated_limit_pauses_its_backend_and_no_other(self):
        batch = tasks("fail 1 429 rate limit, try again in 0.2s", "fail 0 x", backend="flaky") + tasks("fail 0 x", backend="other")
        completed = self.parallel("--jsonl", "-q", "-j", "1", "--retries", "1", input=batch)
        order = [json.loads(line)["index"] for line in completed.stdout.splitlines()]
        self.assertEqual((completed.returncode, order[0], sorted(order)), (0, 2, [0, 1, 2]), completed.stderr)

    def test_limit_beyond_max_wait_cancels_its_backend_and_ends_with_75(self):
        batch = tasks("fail 1 429 rate limit, try again in 2h", "fail 0 x", backend="flaky") + tasks("fail 0 x", backend="other")
        completed = self.parallel("--jsonl", "-q", "-j", "1", "--max-wait", "0", input=batch)
        first, second, third = self.lines_of(completed)
        self.assertEqual((completed.returncode, first["status"], second["status"], third["status"]), (75, "failed", "canceled", "ok"))
        self.assertEqual({result["error_kind"] for result in (first, second)}, {"rate_limit"})
        self.assertGreater(second["retry_at"], first["end_time"])
        self.assertEqual((self.starts(0), self.starts(1)), (1, 0))
        self.assertIn("--results FILE", completed.stderr.decode().splitlines()[-1])
        self.assertRegex(completed.stderr.decode(), "clinvk: flaky is limited until [-0-9 ]*[0-9]{2}:[0-9]{2}, which is longer than")

    def test_batch_and_configuration_set_the_policies(self):
        for batch, config in (({"retries": 0}, ""), ({}, "parallel:\n  retries: 0\n"), ({"retries": 1, "retry_on": ["timeout"]}, ""),
                              ({"max_failures": 1}, "parallel: {retry_on: [auth]}\n")):
            for name in ("starts.0", "starts.1"):
                if self.has(name):
                    os.unlink(self.path(name))
            config = self.file("config.yaml", config)
            batch = dict(batch, tasks=[{"backend": "flaky", "prompt": "fail 9 503 overloaded"}])
            result, = self.lines_of(self.parallel("--jsonl", "-q", "--config", config, input=json.dumps(batch)))
            self.assertEqual((result["attempts"], self.starts(0)), (1, 1), (batch, config))

    def test_max_cost_leaves_tasks_for_a_later_run(self):
        completed = self.parallel("--json", "-j", "1", "--max-cost", "0.60", input=tasks("say a", "say b", "say c", backend="claude"))
        report = self.report_of(completed)
        self.assertEqual((completed.returncode, report["cost_usd"], [result["status"] for result in report["results"]]),
                         (75, 0.5, ["ok", "ok", "canceled"]))
        self.assertEqual(report["results"][2]["error_kind"], "budget")
        self.assertIn("--max-budget-usd", self.parallel("--max-cost", "0.60", input=tasks("argv", backend="claude")).stdout.decode())

    def test_max_cost_needs_backends_that_state_their_cost(self):
        self.assert_refused(self.parallel("--max-cost", "1", input=tasks("say a", backend="codex")), "codex states no cost", "--allow-unknown-cost")
        batch = {"max_cost": 1, "tasks": [{"backend": "codex", "prompt": "say a"}]}
        self.assert_refused(self.parallel(input=json.dumps(batch)), "tasks[0].backend: codex states no cost")
        completed = self.parallel("-q", "--allow-unknown-cost", input=json.dumps(batch))
        self.assertIn("$0.0000, 1 task of unknown cost", completed.stdout.decode())

    def test_canary_that_fails_runs_nothing_else(self):
        completed = self.parallel("--jsonl", "-q", "--canary", "1", input=tasks("fail 9 401 unauthorized", "fail 0 x", backend="flaky"))
        self.assertEqual((completed.returncode, self.statuses(completed), self.starts(1)), (1, ["failed", "canceled"], 0))
        completed = self.parallel("--jsonl", "-q", "--canary", "1", input=tasks("fail 0 x", "fail 0 x", backend="other"))
        self.assertEqual((completed.returncode, self.statuses(completed)), (0, ["ok", "ok"]))
        self.assertIn("clinvk: canary: 1 task succeeded", completed.stderr.decode())

    def test_values_that_are_wrong_are_refused(self):
        for arguments, words in ((("--limit", "nobody=2"), 'unknown backend "nobody"'), (("--limit", "codex"), "expected BACKEND=N"),
                                 (("--retry-on", "weather"), 'unknown error kind "weather"'), (("--max-failures", "101%"), "a percentage"),
                                 (("--max-cost", "-1"), "expected an amount in USD"), (("--canary", "0"), "from 1 on"),
                                 (("--max-wait", "soon"), "expected a duration"), (("--retries", "-1"), "argument --retries: expected a whole number from 0 on, got -1"),
                                 (("--retry-on", "auth,"), 'argument --retry-on: unknown error kind ""')):
            with self.subTest(arguments=arguments):
                completed = self.parallel(*arguments, input=tasks("x"))
                self.assertEqual(completed.returncode, 2)
                self.assertIn(words, completed.stderr.decode())
        for field, value in (("limits", {"nobody": 1}), ("limits", {"echo": 0}), ("retry_on", "network"), ("max_failures", 0), ("retries", 1.5)):
            self.assert_refused(self.parallel(input=json.dumps({field: value, "tasks": [{"prompt": "x"}]})), "stdin:1: " + field)

    def test_writers_in_one_work_tree_are_warned_of(self):
        os.mkdir(self.path(".git"))
        batch = tasks("say a", "say b", backend="claude", sandbox_mode="workspace")
        self.assertIn("run at once in the git work tree", self.parallel("-q", input=batch).stderr.decode())
        self.assertEqual(self.parallel("-q", "--one-per-workdir", input=batch).stderr, b"")

    @only_linux
    def test_lost_worker_is_replaced_and_its_task_tried_again(self):
        if os.environ.get("CLINVK_START_METHOD") == "thread":
            self.skipTest("threads cannot be lost")
        write_program(self.path("flaky"), b"#!/bin/sh\ncat > /dev/null\n[ -e ready ] && exec echo again\n: > ready\nexec sleep 300\n")
        process = self.start_parallel("--jsonl", "-q", "-j", "1", "--file", self.file("tasks.jsonl", tasks("x", backend="flaky")))
        self.wait_for_file(self.path("ready"))
        for child in support.children_of(process.pid):
            support.kill_quietly(child)
        result, = self.lines_of(process.finish())
        self.assertEqual((result["status"], result["output"], result["attempts"]), ("ok", "again\n", 2))
        self.assertEqual(result["tries"][0]["status"], "lost")


@support.only_in_full_runs
class Wrap(Commands):
    def test_program_runs_behind_the_words_and_is_not_looked_for(self):
        os.mkdir(self.path("w d"))
        completed = self.parallel("--jsonl", "-q", "--wrap", """sh -c 'echo "$1" "$(ls -d "$2")" "$3"; shift 3; exec "$@"' sh {workdir} {scratch} '<{task}>'""",
                                  input=tasks("say a", "say b", workdir=self.path("w d")))
        self.assertEqual((completed.returncode, completed.stderr), (0, b""))
        for result in results(completed):
            first, answer = result["output"].splitlines()
            self.assertTrue(first.startswith(self.path("w d") + " /") and first.endswith(" <%d>" % result["index"]), first)
            self.assertEqual(answer, "ab"[result["index"]])

    def test_command_line_of_a_dry_run_can_be_pasted(self):
        for wrap in ("env A=1 sh -c 'echo $A; exec \"$@\"' sh", "sh -c 'ls -d \"$1\" >&2; shift; echo 1; exec \"$@\"' sh {scratch}"):
            shown = self.parallel("--dry-run", "--wrap", wrap, input=tasks("say a"))
            self.assertEqual(shown.returncode, 0)
            self.assertEqual(self.run_program(["bash", "-c", shown.stdout.decode()]).stdout, b"1\na\n")

    def test_wrapper_that_is_not_there_is_named(self):
        result = results(self.parallel("--jsonl", "-q", "--wrap", "no-such-wrapper -x", input=tasks("say a")))[0]
        self.assertEqual((result["exit_code"], result["error_kind"]), (127, "not_found"))
        self.assertEqual(result["error"], "no-such-wrapper: not found: it is not installed, or not on the PATH; --wrap names it")

    def test_words_are_checked(self):
        for words, problem in (("", 'expected a command line, got ""'), ("sh 'a", "expected a command line (no closing quotation), got")):
            completed = self.parallel("--wrap", words, input=tasks("say a"))
            self.assertEqual(completed.returncode, 2)
            self.assertIn("argument --wrap: " + problem, completed.stderr.decode())

    def test_timeout_ends_the_wrapper_and_what_runs_in_it(self):
        with mock.patch.object(threading, "Timer", support.timer_after(self.path("ids"))):
            completed = self.parallel("--jsonl", "-q", "--timeout", "4", "--wrap", "sh -c '\"$@\"; exit 3' sh", input=tasks("ids ids; sleep 300"))
        result, = results(completed)
        self.assertEqual(result["status"], "timeout")
        with open(self.path("ids")) as file:
            self.assertFalse(is_running(int(file.read().split()[0])))


@support.only_in_full_runs
class Shards(Commands):
    def test_shards_share_a_batch_and_each_can_be_continued(self):
        file = self.file("tasks.json", json.dumps([{"backend": "echo", "prompt": "say %d" % number} for number in range(7)]))
        lines = []
        for shard in ("1/3", "2/3", "3/3"):
            results_file = self.path(shard[0] + ".jsonl")
            for resumed in (False, True):
                completed = self.parallel("-f", file, "--shard", shard, "--results", results_file, "--resume", "--jsonl", "-q")
                self.assertEqual((completed.returncode, completed.stderr), (0, b""))
                found = results(completed)
                self.assertEqual([result.get("resumed", False) for result in found], [resumed] * len(found))
            lines += [(result["index"], result["output"].strip()) for result in found]
        self.assertEqual(sorted(lines), [(number, str(number)) for number in range(7)])

    def test_shard_of_the_environment_is_named(self):
        completed = self.parallel("--shard", "auto", "--json", "-q", input=tasks("say a", "say b", "say c", "say d"),
                                  env={"CI_NODE_INDEX": "2", "CI_NODE_TOTAL": "2"})
        self.assertEqual((completed.returncode, completed.stderr), (0, b"clinvk: shard 2 of 2, by CI_NODE_INDEX\n"))
        report = json.loads(completed.stdout)
        self.assertEqual((report["total_tasks"], [(one["index"], one["output"]) for one in report["results"]]), (2, [(1, "b\n"), (3, "d\n")]))

    def test_environment_without_a_shard_runs_nothing(self):
        completed = self.parallel("--shard", "auto", "--jsonl", input=tasks("touch ran", backend="flaky"))
        self.assertEqual((completed.returncode, completed.stdout), (2, b""))
        self.assertIn(b"error: --shard auto: no environment variable states the place of this job", completed.stderr)
        self.assertFalse(self.has("ran"))

    def test_shard_without_a_task_succeeds(self):
        completed = self.parallel("--shard", "3/3", input=tasks("say a"))
        self.assertEqual((completed.returncode, completed.stderr), (0, b""))
        self.assertIn(b"Total: 0 tasks, 0 completed, 0 failed", completed.stdout)


@support.only_in_full_runs
class Samples(Commands):
    """`--matrix` and `--repeat`."""

    MATRIX = ("--matrix", "model=opus,sonnet")

    def setUp(self):
        super().setUp()
        self.cases = self.file("cases.json", [{"backend": "claude", "id": name, "prompt": "append log %s; say %s" % (name, name)} for name in "ab"])

    def found(self, completed):
        """(id, cell, sample) of each result."""
        return [(one["task_id"], one.get("cell", {}).get("model"), one.get("sample")) for one in results(completed)]

    def assert_done(self, completed, runs, resumed):
        self.assertEqual((completed.returncode, completed.stderr), (0, b""))
        self.assertEqual(sum(one.get("resumed", False) for one in results(completed)), resumed)
        self.assertEqual(len(self.log()), runs)

    @only_linux
    def test_samples_that_cannot_be_kept_end_the_run_and_lose_no_result(self):
        prompts = tasks(*("say %d;%s" % (number, "#" * 54000) for number in range(30)))
        completed = self.clinvk("parallel", "--repeat", "2", "--jsonl", "-q", "-j", "3", input=prompts,
                                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)))
        self.assertEqual(completed.returncode, 74)
        self.assertRegex(completed.stderr, rb"^clinvk: error: cannot write the samples to [^\n]*: File too large\n"
                         rb"clinvk: the input was not read to its end: the tasks in the rest have no result\n$")
        indexes = sorted(result["index"] for result in results(completed))
        self.assertEqual(indexes, list(range(len(indexes))))
        self.assertGreater(len(indexes), 15)
        full = os.open("/dev/full", os.O_RDWR)
        with mock.patch.object(clinvk, "nameless_file", return_value=full):
            jobs = clinvk.with_samples([support.job(0, "echo", "x", repeat=2)], lambda: 1)
            self.assertEqual(next(jobs).index, 0)
            with self.assertRaisesRegex(clinvk.OutputError, "cannot write the samples to .*: No space left on device"):
                next(jobs)

    def test_each_task_runs_with_each_cell_and_again_and_reports_compare_them(self):
        kept = self.path("e.jsonl")
        completed = self.parallel("-f", self.cases, *self.MATRIX, "--repeat", "3", "--results", kept, "--jsonl", "-q", "-j", "1")
        self.assert_done(completed, 12, 0)
        self.assertEqual(self.found(completed), [(name, model, sample) for sample in (1, 2, 3) for name in "ab" for model in ("opus", "sonnet")])
        for one in results(completed):
            self.assert_result(one)
            self.assertEqual((one["index"], one["samples"], one["output"]), ("ab".index(one["task_id"]), 3, one["task_id"]))
        report = json.loads(self.clinvk("report", "--json", "--by", "cell", "--by", "model", kept).stdout)
        counts = {field: {name: group["total_tasks"] for name, group in groups.items()} for field, groups in report["groups"].items()}
        self.assertEqual(counts, {"cell": {"model=opus": 6, "model=sonnet": 6}, "model": counts["model"]})
        self.assertEqual([(one["index"], one["cell"]["model"], one["sample"]) for one in report["results"]],
                         [(index, model, sample) for index in (0, 1) for model in ("opus", "sonnet") for sample in (1, 2, 3)])
        self.assertEqual((report["gaps"], report["duplicates"]), ([], {"ok": [], "files": []}))
        named = self.clinvk("report", "--tasks", self.cases, "--jsonl", "--fail-on", "any", kept)
        self.assertEqual((len(named.stdout.splitlines()), named.stderr, named.returncode), (12, b"", 0))

    def test_cell_reaches_the_program(self):
        self.file("short.txt", "Be short.\n")
        completed = self.parallel("--matrix", "model=opus,sonnet", "--matrix", "system_prompt=@short.txt", "-b", "claude", "--jsonl", "-q", "-j", "1",
                                  input=tasks("argv", backend="claude"))
        for model, one in zip(("opus", "sonnet"), results(completed)):
            words = json.loads(one["output"])
            self.assertEqual(words[words.index("--model") + 1], model)
            self.assertIn("Be short.\n", words)
            self.assertEqual(one["cell"], {"model": model, "system_prompt": "@short.txt"})

    def test_rows_show_cell_and_sample(self):
        file = self.file("tasks", [{"name": "n", "prompt": "say a"}])
        run = normal(self.parallel("--matrix", "backend=echo,claude", "--repeat", "2", "-j", "1", "-f", file).stdout)
        self.assertTrue(run.startswith("Running 4 tasks (max 1 parallel)...\n\n[1 n echo] a\n[1 n claude] a\n[1.2 n echo] a\n[1.2 n claude] a\n"), run)
        self.assertIn("\n1    echo         OK         0.00s      [echo] 1/2 n\n1    claude       OK         0.00s      [claude] 1/2 n\n"
                      "1.2  echo         OK         0.00s      [echo] 2/2 n\n1.2  claude       OK         0.00s      [claude] 2/2 n\n", run)

    def test_more_samples_of_the_same_tasks_run_only_those_that_are_missing(self):
        run = functools.partial(self.parallel, "-f", self.cases, "--results", self.path("r"), "--resume", "--jsonl", "-q")
        self.assert_done(run(), 2, 0)
        self.assert_done(run("--repeat", "3"), 6, 2)
        self.assert_done(run("--repeat", "5"), 10, 6)
        run = functools.partial(self.parallel, "-f", self.cases, "--results", self.path("m"), "--resume", "--jsonl", "-q")
        self.assert_done(run("--repeat", "5", "--matrix", "model=opus"), 20, 0)
        completed = run("--repeat", "2", "--matrix", "model=opus,haiku")
        self.assert_done(completed, 24, 4)
        self.assertEqual({(one["sample"], one["samples"], one["cell"]["model"]) for one in results(completed) if "resumed" in one},
                         {(1, 2, "opus"), (2, 2, "opus")})

    def test_samples_that_a_check_failed_are_measured_and_not_drawn_again(self):
        grade = """grep -q '"sample":[24],' "$CLINVK_RESULT" """
        run = functools.partial(self.parallel, "-f", self.cases, "--results", self.path("r"), "--resume", "-q", "--check", grade)
        for options, runs, line in ((("--repeat", "2"), 4, "4 tasks, 2 completed, 2 failed"), (("--repeat", "2"), 4, "4 tasks, 2 completed (2 from an earlier run), 2 failed"),
                                    (("--repeat", "4", "--max-failures", "3"), 8, "8 tasks, 4 completed (2 from an earlier run), 4 failed")):
            completed = run(*options)
            self.assertEqual((completed.returncode, completed.stderr, len(self.log())), (1, b"", runs))
            self.assertIn("Total: " + line, completed.stdout.decode())

    def test_shards_have_all_samples_of_their_tasks_and_their_files_are_merged(self):
        file = self.file("tasks.json", [{"prompt": "say %d" % number, "repeat": number % 3 + 1} for number in range(5)])
        whole = [(number, model, sample) for number in range(5) for model in ("x", "y") for sample in range(1, number % 3 + 2)]
        found, files = [], [self.path("%d.jsonl" % shard) for shard in (1, 2, 3)]
        for shard, kept in enumerate(files, 1):
            completed = self.parallel("-f", file, "-b", "claude", "--matrix", "model=x,y", "--shard", "%d/3" % shard, "--results", kept, "--jsonl", "-q")
            found += [(one["index"], one["cell"]["model"], one.get("sample", 1)) for one in results(completed)]
        self.assertEqual(sorted(found), whole)
        merged = self.clinvk("report", "--jsonl", *files)
        self.assertEqual(sorted((one["index"], one["cell"]["model"], one.get("sample", 1)) for one in results(merged)), whole)

    def test_killed_run_continues_and_each_sample_has_one_result(self):
        run = ("-f", self.cases, *self.MATRIX, "--repeat", "8", "--results", self.path("r"), "--resume", "--jsonl", "-q", "-j", "2")
        process = self.start_parallel(*run, stdout=subprocess.PIPE)
        support.wait_until(lambda: len(self.log()) >= 10, "some samples ran")
        process.kill()
        process.wait()
        self.wait_until_nothing_runs()
        completed = self.parallel(*run)
        self.assertEqual(completed.returncode, 0)
        expected = sorted((name, model, sample) for name in "ab" for model in ("opus", "sonnet") for sample in range(1, 9))
        self.assertEqual(sorted(self.found(completed)), expected)
        with open(self.path("r")) as file:
            lines = [json.loads(line) for line in file]
        self.assertEqual(sorted((one["task_id"], one["cell"]["model"], one["sample"]) for one in lines), expected)
        self.assertGreater(sum(one.get("resumed", False) for one in results(completed)), 5)

    def test_files_have_cell_and_sample_in_their_names(self):
        out, logs = self.path("out"), self.path("logs")
        for matrix, names in ((("model=opus,gpt-5.1",), ("opus", "gpt-5_1")), (("model=a.b,a_b",), ("cell-1", "cell-2")),
                              (("model=x", "sandbox_mode=full,read-only"), ("x-full", "x-read-only"))):
            options = [word for axis in matrix for word in ("--matrix", axis)]
            for _ in range(1 + (names[0] == "opus")):  # the second run replaces the files of the first: the tasks have ids
                completed = self.parallel("-f", self.cases, *options, "--repeat", "2", "--output-dir", out, "-q")
                self.assertEqual((completed.returncode, completed.stderr), (0, b""))
            expected = {"00%d_%s.%s%s.json" % (number, name, cell, sample) for number, name in ((1, "a"), (2, "b")) for cell in names for sample in ("", ".2")}
            self.assertEqual(set(os.listdir(out)), expected | {"summary.json"})
            for name in expected:
                with open(os.path.join(out, name)) as file:
                    content = json.load(file)
                self.assertEqual((content["result"]["sample"], content.get("sample"), content["cell"]), (*[2 if ".2." in name else 1] * 2, content["result"]["cell"]))
                self.assertNotIn("repeat", content["task"])  # a failed sample can be run again by itself
            clinvk.remove_tree(out)
        self.parallel("-f", self.cases, "--repeat", "2", *self.MATRIX, "--log-dir", logs, "-q")
        self.assertIn("001_a.opus.2.1.jsonl", os.listdir(logs))
        self.assertEqual(len(os.listdir(logs)), 16)

    def test_file_of_a_sample_is_replaced_only_by_that_sample(self):
        out = self.path("out")
        self.parallel("-f", self.cases, "--repeat", "2", "--output-dir", out, "-q")
        one = self.file("one.json", [{"backend": "claude", "id": "b", "prompt": "say again"}])
        self.parallel("-f", one, "--repeat", "2", "--output-dir", out, "-q")
        self.assertEqual(set(os.listdir(out)), {"001_a.json", "001_a.2.json", "001_b.json", "001_b.2.json", "summary.json"})

    def test_emitted_tasks_are_the_cells_with_their_repeat(self):
        run = self.parallel("-f", self.cases, *self.MATRIX, "--repeat", "3", "--emit-tasks")
        self.assertEqual([(one["id"], one["model"], one["repeat"]) for one in results(run)],
                         [(name + "." + model, model, 3) for name in "ab" for model in ("opus", "sonnet")])
        self.assert_done(self.parallel("--jsonl", "-q", "--results", self.path("r"), input=run.stdout), 12, 0)
        run = self.parallel("-f", self.cases, *self.MATRIX, "--repeat", "4", "--emit-tasks", "--results", self.path("r"), "--resume")
        self.assertEqual([one["repeat"] for one in results(run)], [4] * 4)  # of each a sample is left
        self.assert_done(self.parallel("--jsonl", "-q", "--results", self.path("r"), "--resume", input=run.stdout), 16, 12)

    def test_matrix_that_cannot_be_is_refused_before_anything_starts(self):
        blank = self.file("blank.txt", " \n")
        template = ("--prompt", "{}", "--write-to", "{}.txt", "-b", "echo")
        for arguments, message in (
                (("--matrix", "modle=a,b"), 'unknown field "modle" (did you mean "model"?); known are backend, model'),
                (("--matrix", "model"), 'expected FIELD=VALUE,... such as model=opus,sonnet, got "model"'),
                (("--matrix", "model=a,,b"), 'model: a value is empty: "a,,b"'), (("--matrix", "model="), "a value is empty"),
                (("--matrix", "model=a,b,a"), 'model: a value is there twice: "a,b,a"'),
                (("--matrix", "sandbox_mode=rw"), 'unknown sandbox mode "rw"'), (("--matrix", "backend=codx"), '--matrix: unknown backend "codx"'),
                (("--matrix", "system_prompt=short.txt"), "expected @FILE"), (("--matrix", "system_prompt=@nowhere"), "nowhere: No such file"),
                (("--matrix", "system_prompt=@" + blank), "must not be blank"), (("--matrix", "model=a", "--matrix", "model=b"), "model is given twice"),
                (("--matrix", "model=" + ",".join(map(str, range(101)))), "more than 100 combinations"),
                (("--matrix", "model=a,b", "-m", "c"), "--matrix model and --model exclude each other"),
                (("--matrix", "sandbox_mode=full", "--sandbox-mode", "full"), "--matrix sandbox_mode and --sandbox-mode exclude each other"),
                (("--repeat", "0"), "expected a whole number from 1 on"), (("--repeat", "1001"), "expected at most 1000"),
                ((*template, "--repeat", "2", "touched"), "--write-to and --repeat exclude each other: a task would have several answers, but one file; run each by itself, or make the files from --results"),
                ((*template, "--matrix", "model=a,b", "touched"), "--write-to and --matrix exclude each other"),
                (("--matrix", "model=a,b"), "[0].model: --matrix varies this field, so no task can set it")):
            with self.subTest(arguments=arguments):
                completed = self.parallel(*arguments, input=b'[{"backend": "claude", "model": "m", "prompt": "touch touched"}]')
                self.assertEqual((completed.returncode, completed.stdout), (2, b""))
                self.assertIn(message, completed.stderr.decode())
                self.assertFalse(self.has("touched") or self.has("touched.txt"))
        self.assertEqual(self.parallel(*template, "--repeat", "1", "--matrix", "model=x", "-q", "say a").returncode, 0)

    def test_canary_names_the_sample(self):
        completed = self.parallel("--repeat", "2", "--canary", "2", "-j", "1", "-q", input=tasks("say a; exit 3"))
        self.assertIn(b"canary: task 1 did not succeed", completed.stderr)


@support.only_in_full_runs
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
                      % (os.fsencode(sys.executable), os.fsencode(COMPILED)))
        self.file("tasks.json", self.BASIC)

    def shell(self, script, status=0):
        completed = self.run_program(["bash", "-o", "pipefail", "-c", script])
        self.assertEqual((completed.returncode, completed.stderr), (status, b""), script)
        return completed.stdout.decode()

    def break_codex(self):
        """From now on it answers as a program whose requests are bad."""
        write_program(os.path.join(self.bin, "codex"), b"#!/bin/sh\ncat > /dev/null\n"
                      b"echo '{\"type\":\"turn.failed\",\"error\":{\"message\":\"stream error: unexpected status 400 Bad Request\"}}'\nexit 1\n")

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
            {"index": 1, "backend": "codex", "error": "stream error: unexpected status 400 Bad Request"})
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
