#!/usr/bin/env python3
"""The table of the running tasks in a real terminal: `python3 tests/terminal.py`.

Each test has a tmux server with a socket of its own and an interactive bash in it, types commands, and looks at what the screen
shows.  It needs tmux and bash; .ci/run runs it.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import unittest

import support
from support import COMPILED, Case, clinvk, wait_until, write_program

PROMPT = "READY$"
# What is in no line once the table is gone.
BLOCK = re.compile(r"BACKEND +TIME|^\[\d+/\d+\] |and \d+ more")
NAMES = ("日本語のとても長い名前をつける仕事", "review auth", "🎉 party 👨‍👩‍👧 family ⚠️", "e\u0301t\u00e9 " * 30, "审查代码库的安全漏洞" * 5, "x")

MISSING = [program for program in ("tmux", "bash") if not shutil.which(program)]


@unittest.skipIf(MISSING, "not installed: " + ", ".join(MISSING))
class TerminalCase(Case):
    def setUp(self):
        super().setUp()
        write_program(os.path.join(self.bin, "clinvk"), ('#!/bin/sh\nexec %s -W error %s "$@"\n' % (sys.executable, COMPILED)).encode())
        os.mkdir(self.path("sockets"))
        self.environment.update(TMUX_TMPDIR=self.path("sockets"), PS1=PROMPT + " ", LC_ALL="C.UTF-8", HISTFILE="")
        self.environment.pop("TMUX", None)

    def tearDown(self):
        self.close()
        super().tearDown()

    def close(self):
        """Ends tmux and its shell, and so hangs up the terminal."""
        self.tmux("kill-server", check=False)
        wait_until(lambda: not [pid for pid in support.processes_with(self.mark) if re.search(r"^\d+ (tmux|bash) ", support.process_words(pid))],
                   "the end of the terminal")

    def tmux(self, *words, check=True):
        """Runs a command of tmux, in its own server; what it prints."""
        run = subprocess.run(["tmux", "-u", "-L", "test", "-f", "/dev/null", *words], env=self.environment, cwd=self.directory,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if check:
            self.assertEqual((run.returncode, run.stdout if run.returncode else b""), (0, b""))
        return run.stdout.decode()

    def open(self, columns, lines):
        """Starts a shell in a terminal of that size."""
        self.tmux("new-session", "-d", "-x", str(columns), "-y", str(lines), "bash", "--norc", "--noprofile", "-i")
        self.wait_for(lambda screen: screen == [PROMPT], "the prompt of the shell")

    def type(self, *keys):
        self.tmux("send-keys", *keys)

    def resize(self, columns, lines):
        self.tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def screen(self, *options):
        """The lines that the terminal shows, without blank ones at the end."""
        lines = [line.rstrip() for line in self.tmux("capture-pane", "-p", *options).splitlines()]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def history(self):
        """All lines since the start, each whole where it was too long for the terminal."""
        return self.screen("-J", "-S", "-")

    def wait_for(self, predicate, what):
        """Waits until the predicate is true of the screen; the screen."""
        shown = []

        def look():
            shown[:] = self.screen()
            return predicate(shown)

        wait_until(look, lambda: "%s; the screen is:\n%s" % (what, "\n".join(shown)), 60)
        return shown

    def touch(self, name):
        self.file(name, "")

    def batch(self, count, prompt="wait-for go-%d; say answer %d is %s whole", names=NAMES):
        """A file of tasks."""
        return self.file("t.jsonl", "".join(json.dumps({
            "backend": "echo", "name": names[index % len(names)], "prompt": prompt.replace("%d", str(index)).replace("%s", "w" * 90)}) + "\n"
            for index in range(count)))

    def run_batch(self, count, *options, **more):
        self.batch(count, **more)
        self.type("clinvk parallel -f t.jsonl %s" % " ".join(options), "Enter")

    def wait_for_rows(self, *numbers):
        """Waits until the table has rows for these tasks, at the bottom of what is shown, and nothing is garbled."""
        def is_table(screen):
            titles = [place for place, line in enumerate(screen) if line.startswith("#") and " TIME" in line]
            rows = [line.split()[0] for line in screen[titles[0] + 1:] if re.match(r"\d+ +echo +\d\d:\d\d ", line)] if len(titles) == 1 else []
            return rows == [str(number) for number in numbers] and screen[-1].startswith("[") and len(screen) - titles[0] == len(rows) + 2

        return self.wait_for(is_table, "rows of %s" % (numbers,))

    def clinvk_pid(self):
        """The pid of the clinvk that the shell has started."""
        shell = int(self.tmux("display-message", "-p", "#{pane_pid}"))
        pid, = wait_until(lambda: support.children_of(shell), "the shell has a child")
        return pid

    def catches(self, pid, number):
        """Whether a process has a handler for a signal."""
        with open("/proc/%d/status" % pid) as file:
            return bool(int(re.search(r"SigCgt:\s*(\w+)", file.read()).group(1), 16) & 1 << (number - 1))

    def assert_clean_end(self, answers):
        """Waits for the prompt; then each answer is there once and whole, and nothing is left of the table."""
        self.wait_for(lambda screen: screen[-1:] == [PROMPT], "the prompt after the run")
        history = self.history()
        self.assertEqual([line for line in history if BLOCK.search(line)], [])
        text = "\n".join(history)
        for index in answers:
            with self.subTest(answer=index):
                self.assertEqual(len(re.findall(r"^\[%d .*\] answer %d is w{90} whole$" % (index + 1, index), text, re.M)), 1, text)
        self.assertEqual(len(re.findall(r"answer \d+ is w", text)), len(answers), text)
        self.assertEqual(self.tmux("display-message", "-p", "#{cursor_flag}").strip(), "1")
        self.type("echo $((6 * 7))", "Enter")
        self.wait_for(lambda screen: screen[-2:] == ["42", PROMPT], "what the next command prints")


class Table(TerminalCase):
    def test_table_is_below_the_answers_in_terminals_of_every_size(self):
        for columns, lines in ((60, 15), (80, 24), (200, 50)):
            with self.subTest(columns=columns, lines=lines):
                self.open(columns, lines)
                self.run_batch(6, "-j", "4")
                screen = self.wait_for_rows(1, 2, 3, 4)
                self.assertLess(max(map(clinvk.columns_in, screen)), columns)
                self.assertEqual(self.tmux("display-message", "-p", "#{cursor_flag}").strip(), "1")
                self.touch("go-1")
                screen = self.wait_for_rows(1, 3, 4, 5)
                self.assertIn("[2 review auth] answer 1 is", "\n".join(screen))
                for index in (0, 2, 3, 4, 5):
                    self.touch("go-%d" % index)
                self.assert_clean_end(range(6))
                self.close()
                for index in range(6):
                    os.unlink(self.path("go-%d" % index))

    def test_small_terminal_has_a_line_and_a_table_where_it_is_asked_for(self):
        for options, rows in (((), 0), (("--progress", "table"), 1)):
            with self.subTest(options=options):
                self.open(40, 10)
                self.run_batch(3, "-j", "2", *options)
                if rows:
                    self.wait_for_rows(1, 2)
                else:
                    screen = self.wait_for(lambda screen: screen[-1:] and screen[-1].startswith("[0/3] 2 running"), "the line")
                    self.assertNotIn("BACKEND", "\n".join(screen))
                for index in range(3):
                    self.touch("go-%d" % index)
                self.assert_clean_end(range(3))
                self.close()
                for index in range(3):
                    os.unlink(self.path("go-%d" % index))

    def test_terminal_in_which_no_table_fits_has_a_line(self):
        self.open(80, 2)
        self.run_batch(3, "-j", "2", "--progress", "table")
        self.wait_for(lambda screen: "".join(screen[-1:]).startswith("[0/3] 2 running, 00:02"), "the line")
        self.assertEqual([line for line in self.history() if re.search("BACKEND|more", line)], [])
        for index in range(3):
            self.touch("go-%d" % index)
        self.assert_clean_end(range(3))

    def test_table_survives_resizing(self):
        self.open(80, 24)
        self.run_batch(10, "-j", "3")
        self.wait_for_rows(1, 2, 3)
        for index, (columns, lines) in enumerate(((60, 15), (200, 50), (61, 40), (100, 15), (60, 50), (80, 24))):
            self.resize(columns, lines)
            self.wait_for_rows(index + 1, index + 2, index + 3)
            self.touch("go-%d" % index)
            screen = self.wait_for_rows(index + 2, index + 3, index + 4)
            self.assertLess(max(map(clinvk.columns_in, screen[-5:])), columns)
        self.resize(40, 10)
        self.wait_for(lambda screen: screen[-1].startswith("[6/10] 3 running") and not BLOCK.search("\n".join(screen[:-1])), "the line")
        for index in range(6, 10):
            self.touch("go-%d" % index)
        self.resize(80, 24)
        self.assert_clean_end(range(10))

    def test_more_tasks_than_fit_are_counted(self):
        self.open(80, 24)
        self.run_batch(30, "-j", "20", names=("a",))
        screen = self.wait_for(lambda screen: "and 11 more" in screen, "the number of the others")
        self.assertEqual(len([line for line in screen if re.match(r"\d+ +echo ", line)]), 9)
        for index in range(30):
            self.touch("go-%d" % index)
        self.assert_clean_end(range(30))

    def test_answers_that_come_fast_are_whole(self):
        self.open(80, 24)
        self.run_batch(150, "-j", "4", prompt="say answer %d is %s whole", names=("日本語",))
        self.assert_clean_end(range(150))

    def test_messages_come_above_the_table(self):
        self.open(80, 24)
        self.run_batch(2, "-j", "2", "--quiet-after", "1s")
        self.wait_for_rows(1, 2)
        os.kill(self.clinvk_pid(), signal.SIGUSR1)
        self.wait_for(lambda screen: any("clinvk: 2 running:" in line for line in screen), "the list of SIGUSR1")
        screen = self.wait_for_rows(1, 2)
        self.wait_for(lambda screen: "quiet " in screen[-2], "the mark of a quiet task")
        self.assertEqual(len([line for line in screen if "clinvk: 2 running:" in line]), 1)
        for index in range(2):
            self.touch("go-%d" % index)
        self.assert_clean_end(range(2))


class Ends(TerminalCase):
    def test_interrupt_leaves_a_clean_terminal(self):
        self.open(80, 24)
        self.run_batch(9, "-j", "3")
        self.wait_for_rows(1, 2, 3)
        self.touch("go-0")
        self.wait_for_rows(2, 3, 4)
        self.type("C-c")
        self.assert_clean_end([0])
        self.assertIn("clinvk: stopping 3 running tasks (press ^C again to kill them at once)", "\n".join(self.history()))

    def test_other_ends_leave_a_clean_terminal(self):
        for number in (signal.SIGTERM, signal.SIGHUP):
            with self.subTest(number=number):
                self.open(80, 24)
                self.run_batch(3, "-j", "2", "-q")
                self.wait_for_rows(1, 2)
                os.kill(self.clinvk_pid(), number)
                self.assert_clean_end([])
                self.close()

    def test_stopped_run_leaves_the_terminal_and_comes_back(self):
        self.open(80, 24)
        self.run_batch(5, "-j", "2")
        self.wait_for_rows(1, 2)
        pid = self.clinvk_pid()
        for turn in range(2):
            workers = [child for child in support.children_of(pid) if re.search("clinvk|multiprocessing", support.process_words(child))]
            self.assertEqual([self.catches(process, signal.SIGTSTP) for process in [pid] + workers], [True] + [False] * len(workers))
            self.assertGreaterEqual(len(workers), 2)
            self.type("C-z")
            screen = self.wait_for(lambda screen: screen[-1:] == [PROMPT], "the prompt while the run is stopped")
            self.assertIn("Stopped", screen[-2])
            self.assertEqual([line for line in screen if BLOCK.search(line)], [])
            with open("/proc/%d/stat" % pid) as file:
                self.assertEqual(file.read().rpartition(")")[2].split()[0], "T")
            self.touch("go-%d" % turn)  # the task ends meanwhile
            self.type("fg", "Enter")
            self.wait_for_rows(turn + 2, turn + 3)
        for index in range(5):
            self.touch("go-%d" % index)
        self.assert_clean_end(range(5))

    def done(self):
        """The number of tasks that have ended, from the status file; None before there is one."""
        try:
            with open(self.path("status.json")) as file:
                return json.load(file)["done"]
        except FileNotFoundError:
            return None

    def test_run_that_is_started_in_the_background_leaves_the_terminal_to_the_shell(self):
        self.open(80, 24)
        self.run_batch(3, "-j", "2", "--jsonl", "-q", "--progress", "table", "--status-file", "status.json", ">", "out", "&")
        for turn, index in enumerate((1, 0)):
            self.touch("go-%d" % index)
            wait_until(lambda: self.done() == turn + 1, "a result")
            self.type("echo $((6 * 7))", "Enter")
            screen = self.wait_for(lambda screen: screen[-2:] == ["42", PROMPT] and screen.count("42") == turn + 1, "what the shell and its commands print")
            self.assertEqual([line for line in screen if BLOCK.search(line)], [])
        self.type("fg", "Enter")
        self.wait_for_rows(3)
        self.touch("go-2")
        self.assert_clean_end([])

    def test_run_in_the_background_draws_no_table(self):
        self.open(80, 24)
        self.run_batch(4, "-j", "2", "--jsonl", "-q", ">", "out")
        self.wait_for_rows(1, 2)
        self.type("C-z")
        self.wait_for(lambda screen: screen[-1:] == [PROMPT], "the prompt while the run is stopped")
        self.type("bg", "Enter")
        self.touch("go-0")
        wait_until(lambda: os.path.getsize(self.path("out")), "a result")
        screen = self.wait_for(lambda screen: screen[-1:] == [PROMPT], "the prompt while the run is in the background")
        self.assertEqual([line for line in screen if BLOCK.search(line)], [])
        self.type("fg", "Enter")
        self.wait_for_rows(2, 3)
        for index in range(4):
            self.touch("go-%d" % index)
        self.assert_clean_end([])
        with open(self.path("out")) as file:
            self.assertEqual(sorted(json.loads(line)["index"] for line in file), [0, 1, 2, 3])


if __name__ == "__main__":
    unittest.main()
