"""Section 11, the command line: what is refused and how, help and version, the environment, and the exit status when an output fails.

Black box where the process matters.  Long tables of arguments go through `main(argv)` in one process, which is tested by that, too.
"""
import json
import os
import pty
import re
import select
import sys
import textwrap
import tty
import unittest

import support
from support import COMPILED, MODULES, PATIENCE, only_linux, results, tasks

import clinvk

support.left_to_full_runs()

# One line that says what is wrong, and one that says where help is.
USAGE_ERROR = re.compile(r"\A(clinvk(?: [a-z]+)*): error: ([^\n]+)\nTry `\1 --help`\.\n\Z")

# Calls main with each list of arguments; writes down the type and the value of what it returns, and what went to stdout and stderr.
CALLER = """
import json, os, sys
sys.path.insert(0, %r)
import clinvk

def content(name):
    with open(name, "rb") as file:
        return file.read().decode()

if __name__ == "__main__":
    calls = []
    for argv in json.loads(content("calls")):
        for number in (1, 2):
            file = os.open("stream-%%d" %% number, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
            os.close(file)
        status = clinvk.main(argv)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        calls.append([type(status).__name__, status] + [content("stream-%%d" %% number) for number in (1, 2)])
    with open("answers", "w") as file:
        json.dump(calls, file)
""" % MODULES


class CommandLine(support.ForkingCase):
    def setUp(self):
        super().setUp()
        self.environment.pop("PYTHONUNBUFFERED", None)  # it would hide what is not flushed

    def command(self, *arguments):
        return [sys.executable, "-W", "error", COMPILED, *arguments]

    def run_clinvk(self, *arguments, input=b"", **options):
        return self.run_program(self.command(*arguments), input, **options)

    def with_redirection(self, redirection, *arguments, **options):
        """Runs it by a shell that redirects as told."""
        return self.run_program(["sh", "-c", 'exec "$@" ' + redirection, "sh"] + self.command(*arguments), **options)

    def main(self, *calls, **options):
        """(exit status, stdout, stderr) of main for each list of arguments, one after the other in one process."""
        self.file("calls", list(calls))
        completed = self.run_program([sys.executable, "-W", "error", self.file("caller.py", CALLER)], **options)
        self.assertEqual((completed.returncode, completed.stderr), (0, b""))
        answers = json.loads(self.wait_for_file(self.path("answers")))
        self.assertEqual([kind for kind, _, _, _ in answers], ["int"] * len(calls))
        return [tuple(answer[1:]) for answer in answers]

    def assert_usage_error(self, answer, *words):
        status, stdout, stderr = answer
        self.assertEqual((status, stdout), (2, ""), stderr)
        found = USAGE_ERROR.match(stderr)
        self.assertTrue(found, stderr)
        for word in words:
            self.assertIn(word, found.group(2))

    def one_task(self):
        return self.file("one.jsonl", tasks("touch ran"))

    def assert_nothing_ran(self):
        self.assertFalse(os.path.exists(self.path("ran")))


class Usage(CommandLine):
    def test_usage_error_is_one_line_and_nothing_starts(self):
        one = self.one_task()
        table = [
            (["help", "paralel"], ['unknown command "paralel" (did you mean "parallel"?)']), (["paralel"], ['"paralel"', "parallel"]),
            (["help", "nothing"], ['unknown command "nothing"']), (["help", "help"], ['"help"']),
            (["parallel", "extra"], ["extra"]),
            (["parallel", "-f", one, "extra"], ["extra"]), (["parallel", "--nonsense", "-f", one], ["--nonsense"]),
            (["parallel", "-f", one, "-x"], ["-x"]), (["parallel", "-f", one, "--json", "--jsonl"], ["--json", "--jsonl", "not allowed"]),
            (["parallel", "-f", one, "--jsonl", "-q", "--json"], ["--json", "--jsonl", "not allowed"]),
            (["parallel", "-f", one, "--json=yes"], ["--json"]), (["parallel", "-f", one, "--fail-fast=1"], ["--fail-fast"]),
            (["parallel", "-f"], ["-f/--file"]), (["parallel", "-f", one, "-j"], ["-j/--max-parallel"]),
            (["parallel", "-f", one, "--timeout"], ["--timeout"]), (["version", "extra"], ["extra"]),
            (["doctor", "extra"], ["extra"]), (["doctor", "--jsonl"], ["--jsonl", "--json"]), (["doctor", "--json=yes"], ["--json"]),
            (["parallel", "-f", one, "--ceiling"], ["--ceiling"]), (["parallel", "-f", one, "--root"], ["--root"]),
            (["parallel", "-f", one, "--allow-commands=yes"], ["--allow-commands"])]
        for (arguments, words), answer in zip(table, self.main(*[arguments for arguments, _ in table])):
            with self.subTest(arguments=arguments):
                self.assert_usage_error(answer, *words)
        self.assert_nothing_ran()

    def test_usage_error_exits_2_in_a_process(self):
        for arguments, word in ((["parallel", "--nonsense"], "clinvk parallel: error: unknown argument --nonsense"),
                                (["parallel", "tasks.json"], "clinvk parallel: error: unknown argument tasks.json; a file is named with --file\n"),
                                (["chain", "chain.json"], "clinvk chain: error: unknown argument chain.json; a file is named with --file\n"),
                                (["versoin"], "clinvk: error: ")):
            with self.subTest(arguments=arguments):
                completed = self.run_clinvk(*arguments, input=tasks("touch ran"))
                self.assert_usage_error((completed.returncode, completed.stdout.decode(), completed.stderr.decode()))
                self.assertTrue(completed.stderr.decode().startswith(word), completed.stderr)
        self.assert_nothing_ran()

    def test_unknown_option_names_the_nearest_known_one(self):
        near = {"--max-paralel": "--max-parallel", "--failfast": "--fail-fast", "--dryrun": "--dry-run", "--outputdir=x": "--output-dir",
                "--colour": "--color", "--ceilling": "--ceiling", "--allow-command": "--allow-commands", "--json-l": "--jsonl", "--sandbox": "--sandbox-mode", "--max_turns": "--max-turns", "--zzz": ""}
        for (option, known), answer in zip(near.items(), self.main(*[["parallel", option] for option in near])):
            with self.subTest(option=option):
                self.assert_usage_error(answer, option)
                self.assertEqual(re.findall(r'\(did you mean "([^"]+)"\?\)', answer[2]), [known] if known else [], answer[2])

    def test_option_of_another_program_names_the_replacement(self):
        parallel, near = ("--jobs=4", "--workers", "--max-workers", "--threads", "-P", "-P4", "-n"), '(did you mean "--max-parallel"?)'
        table = [(["parallel", option], near) for option in parallel] + [
            (["parallel", "--cwd", "x"], '(did you mean "--workdir"?)'), (["--system", "x", "why"], '(did you mean "--system-prompt"?)'),
            (["parallel", "--samples", "5"], '(did you mean "--repeat"?)'), (["--no-tools", "why"], '(did you mean "--answer-only"?)'), (["parallel", "--test", "x"], '(did you mean "--check"?)'),
            (["-p", "why"], "unknown argument -p; a prompt needs no option: clinvk TEXT"), (["--prompt=why"], "a prompt needs no option: clinvk TEXT"),
            (["parallel", "--retry", "3"], "unknown argument --retry; tasks are tried again with --retries"), (["--retries=3", "why"], "it is an option of `clinvk parallel`"),
            (["run", "tasks.json"], 'unknown command "run"; to run a batch: clinvk parallel --file FILE; to ask it as a prompt: clinvk -- run'),
            (["parallel", "-f", "a", "--file", "b"], "--file: given twice"), (["chain", "-fa", "-fb"], "given twice")]
        for (arguments, words), answer in zip(table, self.main(*[arguments for arguments, _ in table])):
            with self.subTest(arguments=arguments):
                self.assertEqual(answer[:2], (2, ""))
                self.assertIn(words, answer[2])
        for answer in self.main(["chain", "--workers", "4"], ["chain", "-n", "4"]):  # a wrong hint is worse than none
            self.assertNotIn("did you mean", answer[2])

    def test_prompt_that_is_a_task_file_names_the_command_to_run_it(self):
        self.file("tasks.json", [])
        self.file("two.jsonl", "")
        calls = {name: ["-b", "echo", "--dry-run", name] for name in ("tasks.json", "two.jsonl")}
        for (name, _), answer in zip(calls.items(), self.main(*calls.values())):
            self.assert_usage_error(answer, '"%s" is a file; to run its tasks: clinvk parallel --file %s; '
                                    "to ask it as a prompt: clinvk -- %s" % (name, name, name))
        calls = [["-b", "echo", "--dry-run", *words] for words in (["--", "tasks.json"], ["missing.json"], ["prompt", "tasks.json"])]
        for words, answer in zip(calls, self.main(*calls)):
            self.assertEqual(answer, (0, "env NO_COLOR=1 cat <<< %s\n" % words[-1], ""))

    def test_option_of_another_command_names_that_command(self):
        table = ((["-f", "tasks.json"], "parallel"), (["-q", "x"], "parallel"),
                 (["x", "--jsonl"], "parallel"), (["compare", "--backends=echo", "--check=true", "x"], "parallel"), (["chain", "--repeat=5"], "parallel"), (["report", "--canary=1"], "parallel"), (["--output-dir=x", "x"], "parallel"),
                 (["sessions", "show", "--older-than", "1d", "x"], "sessions clean"),
                 (["config", "path", "--json"], "config show"))
        for (words, command), answer in zip(table, self.main(*[words for words, _ in table])):
            with self.subTest(words=words):
                self.assert_usage_error(answer, "it is an option of `clinvk %s`" % command)

    def test_long_option_abbreviated_is_refused(self):
        options = sorted(set(re.findall(r"(?<=[ \[])--[a-z-]+", self.main(["parallel", "--help"])[0][1])))
        self.assertGreater(len(options), 15)
        one = self.one_task()
        short = sorted({option[:length] for option in options for length in range(4, len(option))} - set(options))
        for beginning, answer in zip(short, self.main(*[["parallel", "-f", one, beginning, "3"] for beginning in short])):
            with self.subTest(beginning=beginning):
                self.assert_usage_error(answer, beginning)
        self.assert_usage_error(self.main(["--vers"])[0])
        self.assert_nothing_ran()

    def test_option_values_valid_are_accepted_and_others_refused(self):
        one = self.file("one.jsonl", tasks("say x"))
        whole, text = ["0", "-1", "1.5", "", "x", "\u0663", "1e3", " 1", "+1", "0x10"], ["", " "]
        bad = {"-j": whole + ["1001"], "--max-parallel": whole + ["1" + "0" * 30], "--max-turns": whole, "--max-tokens": whole, "--model": text, "--workdir": text,
               "--system-prompt": text, "--output-dir": text, "--timeout": ["0", "0s", "-5", "x", "1d", "inf", "nan", "", "5  m", "m", "1.2.3", "1e3"],
               "--idle-timeout": ["0", "x"], "--max-output": ["0", "x", "", "-1", "1e3", "5X"], "--check": text, "--attempts": whole, "--schema-retries": ["6", "-1", "x", "1.5", ""], "--protect": text, "--repair-prompt": [*text, "-"], "--check-timeout": ["0", "x"],
               "--backend": text, "--root": text, "--ceiling": ["", "full", "sandbox=default", "sandbox=auto", "sandbox=full,", "sandbox=full,sandbox=full"], "--approval-mode": ["", "yes", "Auto"], "--sandbox-mode": ["", "readonly", "rw"],
               "--effort": ["", "none", "High"], "--schema": ["", "-", "{", "{}", '{"type": "array"}', '{"type": "object", "type": "object"}', "/none"], "--progress": ["", "yes", "Always"], "--color": ["", "yes", "auto "]}
        good = {"-j": ["1", "64", "1000"], "--max-parallel": ["2"], "--max-turns": ["1"], "--max-tokens": ["100000"], "--model": ["m x"], "--workdir": ["/"],
                "--system-prompt": ["two\nlines", "-x y"], "--timeout": ["90", "90s", "1.5m", "15m", "2h", "0.5"],
                "--schema": [' {"type": "object"}'], "--idle-timeout": ["10m"], "--max-output": ["500K", "64M", "1G", "4096"], "--check": ["make test"], "--schema-retries": ["0", "5"], "--attempts": ["1", "20"], "--check-timeout": ["90", "10m"],
                "--backend": list(clinvk.BACKENDS), "--approval-mode": ["default", "auto", "none", "always"],
                "--sandbox-mode": ["default", "read-only", "workspace", "full"], "--output-dir": ["out"],
                "--root": ["/"], "--ceiling": ["sandbox=workspace,approval=auto", "approval=always", "sandbox=full"],
                "--progress": ["auto", "table", "always", "never"], "--color": ["auto", "always", "never"]}
        for values, check in ((bad, lambda answer, option: self.assert_usage_error(answer, option.lstrip("-") + ":")),
                              (good, lambda answer, option: self.assertEqual(
                                  (*answer[:2], re.sub(r"clinvk: warning: echo has no \w+; it was not applied\n", "", answer[2])), (0, "env NO_COLOR=1 cat <<< 'say x'\n", "")))):
            calls = [(option, value) for option in values for value in values[option]]
            answers = self.main(*[["parallel", "--dry-run", "--allow-commands", "-f", one, "%s%s%s" % (option, "=" if option.startswith("--") else "", value)]
                                  if value or option.startswith("--") else ["parallel", "-f", one, option, value] for option, value in calls])
            for (option, value), (status, stdout, stderr) in zip(calls, answers):
                with self.subTest(option=option, value=value):
                    if option == "--workdir":
                        stdout = re.sub(r"\A\(cd -- / && (.*)\)\n\Z", r"\1\n", stdout)
                    check((status, stdout, stderr), option if option != "-j" else "max-parallel")

    def test_literal_holds_for_each_command_that_runs_tasks(self):
        """The newline keeps the prompt from being a command, the variable keeps its files out."""
        batch = self.file("task.json", {"prompt": "/x @/y", "backend": "claude"})
        chain = self.file("chain.json", {"steps": [{"prompt": "/x @/y", "backend": "claude"}]})
        calls = [["parallel", "-f", batch], ["chain", "-f", chain], ["compare", "--backends", "claude", "/x @/y"],
                 ["-b", "claude", "/x @/y"]]
        for option in ([], ["--literal"]):
            for status, stdout, stderr in self.main(*[[*call, "--dry-run", *option] for call in calls]):
                self.assertEqual((status, stderr), (0, ""))
                self.assertEqual("CLAUDE_CODE_DISABLE_FILE_MENTIONS=1" in stdout, bool(option), stdout)
                self.assertIn("<<< " + (r"$'\n/x @/y'" if option else "'/x @/y'"), stdout)

    def test_unknown_backend_and_missing_root_are_refused(self):
        one = self.file("one.jsonl", b'{"prompt":"touch ran"}')
        table = [("--backend=ecko", '--backend: unknown backend "ecko" (did you mean "echo"?); ' + support.KNOWN),
                 ("--backend=Claude", '--backend: unknown backend "Claude" (did you mean "claude"?); ' + support.KNOWN),
                 ("--backend=echo ", '--backend: unknown backend "echo " (did you mean "echo"?); ' + support.KNOWN),
                 ("--backend=cat", '--backend: unknown backend "cat"; ' + support.KNOWN
                  + "; to make this program a backend, define it in CLINVK_BACKENDS or in the configuration"),
                 ("--root=nowhere", "--root: nowhere is not a directory"), ("--root=" + one, "--root: %s is not a directory" % one)]
        for (_, message), answer in zip(table, self.main(*[["parallel", "-f", one, option] for option, _ in table])):
            self.assertEqual(answer, (2, "", "clinvk: error: %s\n" % message))
        self.assert_nothing_ran()

    def test_path_option_with_a_tilde_is_expanded_or_refused(self):
        self.environment["HOME"] = self.directory
        self.file("tasks.jsonl", tasks("say x"))
        done = self.run_clinvk("parallel", "-b", "echo", "--jsonl", "-q", "--file=~/tasks.jsonl", "--root=~", "--workdir=~", "--output-dir=~/kept")
        self.assertEqual((done.returncode, done.stderr, os.path.exists(self.path("kept", "summary.json"))), (0, b"", True))
        options = ("--file", "--root", "--workdir", "--output-dir")
        for option, answer in zip(options, self.main(*[["parallel", option + "=~no-such-user/x"] for option in options])):
            self.assert_usage_error(answer, option, '"~no-such-user/x" begins with a home directory that is not known')

    def test_options_in_any_order_and_form_are_equal(self):
        batch = self.file("batch.json", [{"prompt": "say x"}, {"prompt": "say y", "model": "own"}])
        orders = (["parallel", "--dry-run", "--backend", "codex", "--model", "m", "--sandbox-mode", "full", "-f", batch],
                  ["parallel", "-f", batch, "-m", "m", "-b", "codex", "--sandbox-mode=full", "--dry-run"],
                  ["parallel", "-f" + batch, "-mm", "-bcodex", "--sandbox-mode=full", "--dry-run"],
                  ["parallel", "--file=" + batch, "--model=m", "--backend=codex", "--sandbox-mode", "full", "--dry-run"],
                  ["parallel", "-qf", batch, "-mm", "-b", "codex", "--sandbox-mode", "full", "--dry-run", "--fail-fast", "-j2"],
                  ["parallel", "--model", "other", "-b", "gemini", "--sandbox-mode", "read-only", "-b", "codex", "--sandbox-mode", "full", "-m", "m",
                   "--dry-run", "-f", batch])
        expected = "".join("env NO_COLOR=1 codex exec --json --skip-git-repo-check --ephemeral --color never -s danger-full-access -m %s - <<< 'say %s'\n"
                           % pair for pair in (("m", "x"), ("own", "y")))
        for order, answer in zip(orders, self.main(*orders)):
            with self.subTest(order=order):
                self.assertEqual(answer, (0, expected, ""))

    def test_usage_error_has_no_raw_control_characters_on_a_terminal(self):
        master, slave = pty.openpty()
        try:
            tty.setraw(slave)
            process = self.start_program(self.command("parallel", "--\x1b]0;title\x07"), stderr=slave)
            os.close(slave)
            slave = -1
            self.assertEqual(process.finish().returncode, 2)
            written = b""
            while select.select([master], [], [], PATIENCE)[0]:
                try:
                    piece = os.read(master, 1 << 16)
                except OSError:  # Linux: nobody holds the other end any more
                    break
                if not piece:
                    break
                written += piece
        finally:
            for file in (master, slave):
                if file >= 0:
                    os.close(file)
        self.assertIn(b"unknown argument --", written)
        self.assertEqual(re.findall(rb"[\x00-\x09\x0b-\x1f\x7f]", written), [])


class HelpAndVersion(CommandLine):
    def test_version_is_that_of_the_module(self):
        for answer in self.main(["--version"], ["version"]):
            self.assertEqual(answer, (0, "clinvk %s\n" % clinvk.__version__, ""))
        for arguments in (["--version"], ["version"]):
            completed = self.run_clinvk(*arguments)
            self.assertEqual((completed.returncode, completed.stdout.decode(), completed.stderr), (0, "clinvk %s\n" % clinvk.__version__, b""))

    def test_help_names_commands_and_options_on_stdout(self):
        short, same, parallel, also, version, doctor = self.main(
            ["--help"], ["-h"], ["parallel", "--help"], ["parallel", "-q", "-h"], ["version", "--help"], ["doctor", "--json", "--help"])
        self.assertEqual((short, parallel), (same, also))
        for status, stdout, stderr in (short, parallel, version, doctor):
            self.assertEqual((status, stderr), (0, ""))
            self.assertTrue(stdout.startswith("usage: clinvk "), stdout)
            self.assertTrue(stdout.endswith("\n"))
        self.assertRegex(doctor[1], r"(?m)^ +--json +[a-z]")
        for command in ("parallel", "version", "doctor"):
            self.assertRegex(short[1], r"\n +%s +[a-z]" % command)
        for option in ("-f", "--file", "-j", "--max-parallel", "--fail-fast", "--json", "--jsonl", "-q", "--quiet", "--output-dir", "--dry-run",
                       "--progress", "--color", "--ceiling", "--root", "--allow-commands", "-b", "--backend", "-m", "--model", "--effort", "--schema", "-w", "--workdir", "--approval-mode", "--sandbox-mode",
                       "--system-prompt", "--max-turns", "--max-tokens", "--timeout", "--idle-timeout", "--max-output", "-h", "--help"):
            self.assertRegex(parallel[1], r"(?m)^ +(-[a-z][ ,].*)?%s\b" % option)

    def test_help_as_a_word_equals_the_option(self):
        answers = self.main(["help"], ["--help"], ["help", "parallel"], ["parallel", "--help"], ["help", "sessions", "x"], ["sessions", "-h"])
        for by_word, by_option in zip(answers[::2], answers[1::2]):
            self.assertEqual(by_word, by_option)
            self.assertEqual((by_word[0], by_word[2]), (0, ""))

    def test_no_argument_shows_help_on_stderr(self):
        status, stdout, stderr = self.main([])[0]
        self.assertEqual((status, stdout, stderr), (2, "", self.main(["--help"])[0][1]))

    def test_help_without_home_and_tmpdir_succeeds(self):
        completed = self.run_clinvk("parallel", "--help", env={"HOME": None, "TMPDIR": "/nonexistent", "CLINVK_BACKEND": "nonsense"})
        self.assertEqual((completed.returncode, completed.stderr), (0, b""))

    def test_help_and_version_unwritable_exit_74(self):
        full = "> /dev/full" if os.path.exists("/dev/full") else ">&-"
        for arguments, redirection, unbuffered in (
                (["--help"], full, "1"), (["parallel", "--help"], ">&-", None), (["--version"], full, None), (["version"], ">&-", "1"),
                (["--version", "--version"], full, None), (["doctor"], ">&-", None), (["doctor", "--json"], full, None)):
            with self.subTest(arguments=arguments):
                completed = self.with_redirection(redirection, *arguments, env={"PYTHONUNBUFFERED": unbuffered})
                self.assertEqual(completed.returncode, 74, completed.stderr)
                self.assertRegex(completed.stderr.decode(), r"\Aclinvk: error: cannot write to stdout: [^\n]+\n\Z")


class Streams(CommandLine):
    def run_without_reader(self, *arguments, **options):
        """Runs it with a stdout that nobody can read any more."""
        read, write = os.pipe()
        os.close(read)
        try:
            return self.run_clinvk(*arguments, stdout=write, **options)
        finally:
            os.close(write)

    def test_help_and_version_without_reader_exit_141(self):
        for arguments in (["parallel", "--help"], ["--version"], ["doctor"]):
            with self.subTest(arguments=arguments):
                completed = self.run_without_reader(*arguments)
                self.assertEqual((completed.returncode, completed.stderr), (141, b""))

    def test_parallel_without_reader_prints_totals_on_stderr(self):
        one = self.file("batch.jsonl", tasks("say x", "sleep 300"))
        for arguments in ([], ["--jsonl"], ["--json"], ["-q"], ["--jsonl", "-q"], ["--dry-run"]):
            with self.subTest(arguments=arguments):
                completed = self.run_without_reader("parallel", "-j", "1", "-f", one, *arguments)
                self.assertEqual(completed.returncode, 141)
                self.assertNotIn(b"Traceback", completed.stderr)
                if arguments != ["--dry-run"]:
                    self.assertRegex(completed.stderr, rb"(?m)^Total: 2 tasks, [01] completed, 0 failed, [12] canceled \(")

    def test_parallel_reader_leaves_stops_the_rest(self):
        for arguments in ([], ["--jsonl"], ["--json"], ["-q"]):
            with self.subTest(arguments=arguments):
                process = self.start_program(self.command("parallel", "-j", "2", *arguments, "-f", self.file("batch.jsonl", tasks(
                    "say x", "ids pid; sleep 300", "sleep 300"))))
                pid = self.pid_in(self.path("pid"))
                if arguments in ([], ["--jsonl"]):
                    process.wait_for_line(b"x")
                process.stdout.close()
                self.assertEqual(process.wait(PATIENCE), 141)
                self.assert_gone(pid)
                self.assertRegex(process.error_output(), rb"(?m)^Total: 3 tasks, [01] completed, 0 failed, [23] canceled \(")
                os.unlink(self.path("pid"))

    def test_parallel_unwritable_stdout_exits_74(self):
        one = self.file("batch.jsonl", tasks("say x", "say y"))
        full = "> /dev/full" if os.path.exists("/dev/full") else ">&-"
        for arguments, redirection in (([], full), (["--jsonl"], ">&-"), (["--json"], full), (["-q"], ">&-"), (["--dry-run"], full)):
            with self.subTest(arguments=arguments, redirection=redirection):
                completed = self.with_redirection(redirection, "parallel", "-j", "1", "-f", one, *arguments)
                self.assertEqual(completed.returncode, 74)
                self.assertRegex(completed.stderr.decode(), r"(?m)^clinvk: error: cannot write to stdout: (Bad file descriptor|No space left on device)")

    def test_parallel_without_stderr_works(self):
        one = self.file("batch.jsonl", tasks("fds; say x", "exit 3"))
        for redirection in ["2>&-"] + (["2> /dev/full"] if os.path.exists("/dev/full") else []):
            with self.subTest(redirection=redirection):
                completed = self.with_redirection(redirection, "parallel", "-j", "1", "-f", one, "--jsonl", "--progress", "always")
                self.assertEqual(completed.returncode, 1)
                self.assertEqual([(result["status"], result["output"]) for result in results(completed)],
                                 [("ok", "0 1 2\nx\n"), ("failed", "")])
            for arguments, status in ((["parallel", "--nonsense"], 2), (["parallel", "-f", "/nonexistent"], 2), (["version"], 0)):
                with self.subTest(arguments=arguments, redirection=redirection):
                    completed = self.with_redirection(redirection, *arguments)
                    self.assertEqual((completed.returncode, not completed.stdout), (status, status == 2))

    def test_program_without_streams_exits_with_the_right_status(self):
        one = self.file("batch.jsonl", tasks("say x"))
        for redirection, arguments, status in (("<&- >&- 2>&-", ["parallel", "--jsonl", "-f", one], 74), ("<&- >&- 2>&-", ["parallel"], 2),
                                               ("<&- 2>&-", ["parallel", "-q", "-f", one], 0), ("<&- >&- 2>&-", ["version"], 74)):
            with self.subTest(redirection=redirection, arguments=arguments):
                self.assertEqual(self.with_redirection(redirection, *arguments).returncode, status)

    @only_linux
    def test_closed_stdout_is_not_reused_for_another_file(self):
        self.with_redirection(">&-", "parallel", "--json", "--output-dir", "out", input=tasks("say x"))
        with open(self.path("out", "summary.json")) as file:
            self.assertEqual(json.load(file)["completed"], 1)


class Environment(CommandLine):
    def test_variable_invalid_is_refused_before_anything_starts(self):
        for name, value, words in (("CLINVK_START_METHOD", "frok", ["frok", "fork, spawn, thread"]),
                                   ("CLINVK_BACKEND", "claud", ['unknown backend "claud" (did you mean "claude"?)']),
                                   ("CLINVK_BACKEND", "Echo ", ["unknown backend"]),
                                   ("CLINVK_CEILING", "sandbox=ful", ["expected sandbox=MODE", 'got "sandbox=ful"']), ("CLINVK_CEILING", " ", ["expected sandbox="]),
                                   ("CLINVK_BACKENDS", "{", ["not valid JSON"]),
                                   ("CLINVK_BACKENDS", '{"mine": {"comand": ["x"]}}', ['mine.comand: unknown field (did you mean "command"?)'])):
            with self.subTest(name=name, value=value):
                completed = self.run_clinvk("parallel", "--jsonl", input=tasks("touch ran"), env={name: value})
                self.assertEqual((completed.returncode, completed.stdout), (2, b""))
                self.assertRegex(completed.stderr.decode(), r"\Aclinvk: error: %s: [^\n]+\n\Z" % name)
                for word in words:
                    self.assertIn(word, completed.stderr.decode())
        self.assert_nothing_ran()

    def test_variable_empty_is_ignored(self):
        completed = self.run_clinvk("parallel", "-q", "-b", "echo", input=b'{"prompt": "say x"}', env={
            "CLINVK_START_METHOD": "", "CLINVK_BACKEND": "", "CLINVK_ECHO_MODEL": "", "CLINVK_CEILING": "", "CLINVK_BACKENDS": "", "NO_COLOR": "", "TMPDIR": ""})
        self.assertEqual((completed.returncode, completed.stderr), (0, b""))

    def test_start_method_of_each_kind_runs_a_batch(self):
        for method in ("fork", "spawn", "thread"):
            with self.subTest(method=method):
                completed = self.run_clinvk("parallel", "--jsonl", "-q", "-j", "2", input=tasks("say x", "say y"), env={"CLINVK_START_METHOD": method})
                self.assertEqual((completed.returncode, completed.stderr), (0, b""))
                self.assertEqual(sorted(result["output"] for result in results(completed)), ["x\n", "y\n"])

    def test_backend_variable_applies_to_tasks_without_backend(self):
        completed = self.run_clinvk("parallel", "--jsonl", "-q", "-j", "1", input=b'{"prompt": "say x"}{"prompt": "say x", "backend": "codex"}',
                                    env={"CLINVK_BACKEND": "echo"})
        self.assertEqual([result["backend"] for result in results(completed)], ["echo", "codex"])


class AsAFunction(CommandLine):
    def test_main_returns_the_exit_status_of_a_batch(self):
        batch = self.file("batch.jsonl", tasks("say x", "exit 3"))
        good = self.file("good.jsonl", tasks("say x"))
        failed, ok, missing, bad = self.main(["parallel", "-q", "-f", batch], ["parallel", "--json", "-f", good],
                                             ["parallel", "-f", "/nonexistent"], ["parallel", "--output-dir", "/dev/null/x", "-f", good])
        self.assertEqual((failed[0], failed[2]), (1, ""))
        self.assertRegex(failed[1], r"\ATotal: 2 tasks, 1 completed, 1 failed \([0-9.]+s\)\n1 failed: exit status 3\n\Z")
        self.assertEqual((ok[0], json.loads(ok[1])["completed"], ok[2]), (0, 1, ""))
        self.assertEqual(missing, (2, "", "clinvk: error: /nonexistent: No such file or directory\n"))
        self.assertEqual(bad[:2], (74, ""))

    def test_main_without_argument_uses_those_of_the_process(self):
        completed = self.run_program([sys.executable, "-W", "error", "-c", textwrap.dedent("""
            import sys
            sys.path.insert(0, %r)
            import clinvk
            status = clinvk.main()
            print("still here", status, flush=True)
            """ % MODULES), "version"])
        self.assertEqual((completed.returncode, completed.stdout.decode()), (0, "clinvk %s\nstill here 0\n" % clinvk.__version__))


class Bugs(CommandLine):
    """What should never happen: an exception that nothing in the program expects.  Here a broken orjson is the cause."""

    def broken_json(self):
        os.mkdir(self.path("broken"))
        self.file("broken/orjson.py", "def loads(data):\n    raise ValueError\n\ndef dumps(value):\n    raise LookupError('broken on purpose')\n")
        return {"PYTHONPATH": self.path("broken"), "PYTHONDONTWRITEBYTECODE": "1"}

    def test_bug_prints_a_traceback_and_stops_the_run(self):
        completed = self.run_clinvk("parallel", "--jsonl", "-j", "2", env=self.broken_json(),
                                    input=tasks("wait-for pid; say x", "ids pid; sleep 300", "touch ran"))
        self.assertEqual((completed.returncode, completed.stdout), (70, b""))
        errors = completed.stderr.decode()
        self.assertTrue(errors.startswith("clinvk: this is a bug in clinvk %s:\nTraceback (most recent call last):\n" % clinvk.__version__), errors)
        self.assertTrue(errors.endswith("\nLookupError: broken on purpose\n"), errors)
        self.assert_gone(self.pid_in(self.path("pid")))
        self.assert_nothing_ran()

    def test_bug_without_stderr_exits_70(self):
        completed = self.with_redirection("2>&-", "parallel", "--jsonl", env=self.broken_json(), input=tasks("say x"))
        self.assertEqual((completed.returncode, completed.stdout), (70, b""))


if __name__ == "__main__":
    unittest.main()
