"""`clinvk compare`: one prompt for several backends, and their answers side by side.

As a black box with fake AI programs.
"""
import json
import os
import re
import shutil
import signal
import sys
import unittest

import test_command_line
import test_commands
import support
from support import PATIENCE, COMPILED, clinvk, wait_until
from test_commands import normal

support.left_to_full_runs()

# The fakes as commands of the user's own: each does what the prompt says, and `mine` is one that is not there.
MINE = json.dumps({"one": {"command": ["cat"]}, "two": {"command": ["cat"]}, "upper": {"command": ["tr", "a-z", "A-Z"]},
                   "mine": {"command": ["no-such-program"]}})


class CompareCase(test_commands.Commands):
    main = test_command_line.CommandLine.main

    def setUp(self):
        super().setUp()
        self.environment["CLINVK_BACKENDS"] = MINE

    def command(self, *arguments):
        return [sys.executable, "-W", "error", COMPILED, "compare", *arguments]

    def compare(self, *arguments, input=b"", **options):
        return self.run_program(self.command(*arguments), input, **options)

    def report(self, completed):
        """The object that `--json` printed; what holds of every one is checked."""
        report = json.loads(completed.stdout.decode("utf-8"))
        for result in report["results"]:
            self.assert_result(result)
        self.assertEqual([result["backend"] for result in report["results"]], report["backends"])
        self.assertEqual([result["index"] for result in report["results"]], list(range(report["total_tasks"])))
        self.assertEqual(sum(report[name] for name in ("completed", "failed", "canceled", "skipped")), report["total_tasks"])
        self.assertNotEqual(report.get("not_installed"), [])
        return report

    def only(self, *programs):
        """A PATH with these fakes alone."""
        for name in os.listdir(self.bin):
            if name not in programs:
                os.unlink(os.path.join(self.bin, name))
        return {"PATH": self.bin}

    def assert_error(self, completed, *words, status=2):
        self.assertEqual((completed.returncode, completed.stdout), (status, b""), completed.stderr)
        for word in words:
            self.assertIn(word, completed.stderr.decode())
        self.assertFalse(self.has("ran"))


    def assert_errors(self, *table):
        """Each of the calls (arguments, part of the message) is refused; all run in one process."""
        for (arguments, message), answer in zip(table, self.main(*[["compare", *arguments] for arguments, _ in table])):
            with self.subTest(arguments=arguments):
                self.assertEqual(answer[:2], (2, ""))
                self.assertIn(message, answer[2])
        self.assertFalse(self.has("ran"))


class Choice(CompareCase):
    def test_choice_missing_or_double_is_refused(self):
        self.assert_errors(
            (["touch ran"], "one of the arguments --backends --all-backends is required"),
            (["--all-backends", "--backends", "echo", "touch ran"], "not allowed with argument"),
            (["--all-backends"], "no prompt: give it as an argument"),
            (["--backends", "echo", "touch", "ran"],
             "unknown argument ran; commas separate the backends, and a prompt of several words needs quotes around it"),
            (["--all-backends", "-b", "echo", "touch ran"], "unknown argument -b"))

    def test_backends_unknown_or_repeated_are_refused(self):
        self.assert_errors(*((["--backends", names, "touch ran"], message) for names, message in (
            ("echo,ecko", '--backends: unknown backend "ecko" (did you mean "echo"?); ' + support.KNOWN + ', one, two'),
                               ("echo,", '--backends: unknown backend ""'), ("", '--backends: unknown backend ""'), ("Claude", '"Claude"'),
            ("one,two, one", 'clinvk: error: --backends: "one" is named twice'))))

    def test_backends_run_in_the_given_order(self):
        report = self.report(self.compare("--json", "--backends", " two , one,echo", "say x"))
        self.assertEqual(report["backends"], ["two", "one", "echo"])
        self.assertEqual([result["output"] for result in report["results"]], ["x\n"] * 3)

    def test_all_backends_are_the_installed_ones_except_echo(self):
        support.write_program(os.path.join(self.bin, "llm"), b"#!/bin/sh\nexec cat\n")  # known programs have to be named
        completed = self.compare("--json", "--all-backends", "say x", env=dict(self.only("cat", "claude", "codex", "llm"), CLINVK_BACKENDS='{"one": {"command": ["cat"]}}'))
        report = self.report(completed)
        missing = [name for name in clinvk.BACKENDS if name not in ("claude", "codex", "echo")]
        self.assertEqual((report["backends"], report["not_installed"]), (["claude", "codex", "one"], missing))
        self.assertEqual((completed.returncode, completed.stderr.decode()), (0, "clinvk: warning: not installed, so left out: %s\n" % ", ".join(missing)))

    def test_backend_disabled_is_left_out_or_refused(self):
        path = self.file("config.yaml", "backends:\n  codex:\n    enabled: false\n")
        env = dict(self.only("cat", "claude", "codex"), CLINVK_CONFIG=path, CLINVK_BACKENDS="")
        self.assertEqual(self.report(self.compare("--json", "--all-backends", "say x", env=env))["backends"], ["claude"])
        self.assert_error(self.compare("--backends", "claude,codex", "touch ran", env=env), "codex is disabled by " + path)

    def test_backend_not_installed_is_named_and_the_others_run(self):
        for arguments, missing in ((["--backends", "mine,one,gemini,echo"], ["mine", "gemini"]), (["--backends", "one,echo"], None)):
            completed = self.compare("--json", *arguments, "say x", env=self.only("cat"))
            report = self.report(completed)
            self.assertEqual((report["backends"], report.get("not_installed")), (["one", "echo"], missing))
            self.assertEqual((completed.returncode, completed.stderr.decode()), (0, "clinvk: warning: not installed, so left out: mine, gemini\n" if missing else ""))

    def test_backend_not_executable_fails(self):
        os.chmod(os.path.join(self.bin, "codex"), 0o644)
        completed = self.compare("--json", "--backends", "codex,echo", "say x", env=self.only("cat", "codex"))
        report = self.report(completed)
        self.assertEqual([(result["status"], result["exit_code"]) for result in report["results"]], [("failed", 126), ("ok", 0)])
        self.assertEqual((completed.returncode, "not_installed" in report), (1, False))

    def test_no_backend_installed_exits_1_with_a_message(self):
        env = dict(self.only("cat"), CLINVK_BACKENDS='{"mine": {"command": ["no-such-program"]}}')
        for arguments, names in ((["--backends", "claude,mine"], "claude, mine"), (["--all-backends"], ", ".join([name for name in clinvk.BACKENDS if name != "echo"] + ["mine"]))):
            completed = self.compare(*arguments, "--json", "touch ran", env=env)
            self.assert_error(completed, status=1)
            self.assertEqual(completed.stderr.decode(), "clinvk: error: none of the backends is installed: %s\n" % names)

    def test_relative_program_is_relative_to_the_current_directory(self):
        os.mkdir(self.path("sub"))
        env = {"CLINVK_BACKENDS": '{"tool": {"command": ["./tool"]}}'}
        tool = shutil.copy(os.path.join(self.bin, "cat"), self.path("sub", "tool"))
        self.assert_error(self.compare("--json", "--backends", "tool", "-w", "sub", "say x", env=env), "none of the backends is installed: tool", status=1)
        os.rename(tool, self.path("tool"))
        self.assertEqual(self.report(self.compare("--json", "--backends", "tool", "-w", "sub", "say x", env=env))["completed"], 1)


class Prompts(CompareCase):
    def test_prompt_dash_reads_stdin(self):
        for text in ("rest\nfrom stdin\n", "rest\n" + "x" * 300000, "rest\n审查 \udcff"):
            report = self.report(self.compare("--json", "--backends", "one,echo", "-", input=text))
            self.assertEqual(report["prompt"], text)
            self.assertEqual([result["output"] for result in report["results"]], [text[len("rest\n"):]] * 2)

    def test_prompt_after_two_dashes_may_look_like_an_option(self):
        self.install_answerers("cat")
        self.assertEqual(self.report(self.compare("--json", "--backends", "echo", "--", "--help"))["results"][0]["output"], "--help")

    def test_prompt_blank_or_too_large_is_refused(self):
        self.assert_errors(*((["--backends", "echo", prompt], "clinvk: error: the prompt is blank\n") for prompt in ("", " \n", "-")))
        self.assert_error(self.compare("--backends", "echo,codex", "-", input=b"x" * 1048577),
                          "clinvk: error: prompt: the prompt has 1,048,577 characters; codex takes 1,048,576 at most\n")

    def test_mode_that_one_backend_cannot_keep_is_refused(self):
        self.assert_errors(
            (["--backends", "claude,codex", "--sandbox-mode", "full", "--approval-mode", "auto", "touch ran"],
             "clinvk: error: sandbox_mode: codex: "),
            (["--backends", "claude,one", "--sandbox-mode", "read-only", "touch ran"], "clinvk: error: sandbox_mode: one: "))

    def test_task_options_apply_to_all_backends(self):
        completed = self.compare("--dry-run", "--backends", "claude,codex,one", "-m", "m", "-w", "/", "x", env={"CLINVK_CLAUDE_MODEL": "other"})
        lines = completed.stdout.decode().splitlines()
        self.assertEqual((completed.returncode, completed.stderr, len(lines)), (0, b"clinvk: warning: one has no model; it was not applied\n", 3))
        for line, part in zip(lines, ("--model m ", "-m m ", "cat ")):
            self.assertTrue(line.startswith("(cd -- / && env "), line)
            self.assertIn(part, line)
        self.assertIn("--model other ", self.compare("--dry-run", "--backends", "claude", "x", env={"CLINVK_CLAUDE_MODEL": "other"}).stdout.decode())
        report = self.report(self.compare("--json", "--backends", "one,two", "--timeout", "0.2s", "sleep 300"))
        self.assertEqual([result["status"] for result in report["results"]], ["timeout"] * 2)

    def test_dry_run_needs_no_program_and_starts_nothing(self):
        env = {"PATH": "/nonexistent"}
        completed = self.compare("--dry-run", "--all-backends", "touch ran", env=env)
        self.assertEqual(completed.returncode, 0)
        programs = [row.command(clinvk.Job(0, clinvk.Task(name, "x"))).argv[0] for name, row in clinvk.BACKENDS.items() if name != "echo"]
        programs += ["cat", "cat", "tr", "no-such-program"]
        self.assertEqual([re.search("|".join(programs), line).group() for line in completed.stdout.decode().splitlines()], programs)
        report = self.report(self.compare("--dry-run", "--json", "--backends", "echo", "touch ran", env=env))
        self.assertEqual((report["skipped"], report["results"][0]["output"]), (1, "env NO_COLOR=1 cat <<< 'touch ran'"))
        self.assertFalse(self.has("ran"))


class Running(CompareCase):
    def test_backends_run_at_once_or_with_sequential_in_turn(self):
        env = {"CLINVK_BACKENDS": json.dumps({name: {"command": ["sh", "-c", "sed 's/ME/%s/g; s/OTHER/%s/g' | cat" % (name, other)]}
                                              for name, other in (("a", "b"), ("b", "a"))})}
        completed = self.compare("--json", "--backends", "a,b", "touch here-ME; wait-for here-OTHER; say met", env=env)
        self.assertEqual([result["output"] for result in self.report(completed)["results"]], ["met\n"] * 2)
        self.compare("--json", "--sequential", "--backends", "b,a", "append log +ME; append log -ME; say x", env=env)
        self.assertEqual(self.log(), ["+b", "-b", "+a", "-a"])

    def test_failure_of_one_backend_exits_1_and_stops_no_other(self):
        completed = self.compare("--json", "--backends", "bad,one", "--sequential", "say x",
                                 env={"CLINVK_BACKENDS": '{"bad": {"command": ["sh", "-c", "echo why >&2; exit 3"]}, "one": {"command": ["cat"]}}'})
        report = self.report(completed)
        self.assertEqual([(result["status"], result["exit_code"], result.get("error")) for result in report["results"]], [("failed", 3, "why"), ("ok", 0, None)])
        self.assertEqual((completed.returncode, report["completed"], report["failed"]), (1, 1, 1))

    def test_signal_cancels_all_backends(self):
        process = self.start_program(self.command("--json", "--backends", "one,two", "append pids x; leave-group left; touch ready; sleep 300"))
        self.wait_for_file(self.path("left"))
        wait_until(lambda: self.log("pids") == ["x", "x"], "both run")
        process.send_signal(signal.SIGINT)
        completed = process.finish()
        report = self.report(completed)
        self.assertEqual(([result["status"] for result in report["results"]], completed.returncode), (["canceled"] * 2, -signal.SIGINT))
        self.assert_gone(self.pid_in(self.path("left")))

    def test_reader_leaves_stops_all_and_prints_the_table_on_stderr(self):
        env = {"CLINVK_BACKENDS": '{"fast": {"command": ["tr", "x", "x"]}, "one": {"command": ["cat"]}, "two": {"command": ["cat"]}}'}
        for arguments in ([], ["--json"], ["--jsonl"]):
            process = self.start_program(self.command(*arguments, "--progress", "always", "--backends", "fast,one,two", "append log x; sleep 300"), env=env)
            wait_until(lambda: self.log()[-2:] == ["x", "x"] and b"[1/3]" in process.error_output(), "two of them run, one has answered")
            process.stdout.close()
            self.assertEqual(process.wait(PATIENCE), 141)
            self.assertRegex(process.error_output(), rb"(?m)^one          CANCELED +\S+ +- +- +-\n(.*\n)*Total: 3 tasks, 1 completed, 0 failed, 2 canceled \(")
            self.assertNotIn(b"[fast]", process.error_output())
            os.unlink(self.path("log"))


class Forms(CompareCase):
    def test_text_prints_answers_in_order_and_a_table(self):
        completed = self.compare("--backends", "claude,one,codex,mine,two", "-m", "m", "say a\\nb", env={"CLINVK_BACKENDS": json.dumps(
            dict(json.loads(MINE), two={"command": ["sh", "-c", "echo no luck >&2; exit 1"]}))})
        self.assertEqual(normal(completed.stdout), """\
Comparing 4 backends: claude, one, codex, two

[claude]
a
b

[one]
a
b

[codex]
a
b

[two]
FAILED: no luck

Results
============================================================
BACKEND      STATUS     DURATION   TOKENS     COST       MODEL
------------------------------------------------------------
claude       OK         0.00s      157        $0.2500    fake-model-1
one          OK         0.00s      -          -          m
     warning: one has no model; it was not applied
codex        OK         0.00s      157        -          m
two          FAILED     0.00s      -          -          m
     error: no luck
     warning: two has no model; it was not applied
------------------------------------------------------------
Total: 4 tasks, 3 completed, 1 failed, 314 tokens, $0.2500 (0.00s)
""")
        self.assertEqual((completed.returncode, completed.stderr.decode()), (1, "clinvk: warning: not installed, so left out: mine\n"))

    def test_text_prints_all_answers_at_the_end(self):
        env = {"CLINVK_BACKENDS": '{"slow": {"command": ["sh", "-c", "while ! test -e go; do sleep 0.05; done; cat"]}, "one": {"command": ["cat"]}}'}
        process = self.start_program(self.command("--backends", "slow,one", "append log x; say x"), env=env)
        self.assertEqual(process.line(), b"Comparing 2 backends: slow, one")
        wait_until(lambda: self.log() == ["x"], "the fast one has answered")
        self.touch("go")
        self.assertEqual(process.finish().stdout.split(b"\n")[:6], [b"", b"[slow]", b"x", b"", b"[one]", b"x"])

    def test_text_prints_large_answers_whole(self):
        completed = self.compare("--backends", "one,two", "flood 300000")
        self.assertIn(b"[one]\n" + b"x" * 300000 + b"\n\n[two]\n" + b"x" * 300000 + b"\n\nResults\n", completed.stdout)

    def test_json_object_has_fields_in_order(self):
        report = self.report(self.compare("--json", "--backends", "one,mine", "say x"))
        self.assertEqual(list(report), ["prompt", "backends", "not_installed", "total_tasks", "completed", "failed", "canceled", "skipped",
                                        "total_duration_seconds", "start_time", "end_time", "results"])

    def test_jsonl_prints_results_as_they_come_and_the_table_on_stderr(self):
        env = {"CLINVK_BACKENDS": '{"slow": {"command": ["sh", "-c", "while ! test -e go; do sleep 0.05; done; cat"]}, "one": {"command": ["cat"]}}'}
        process = self.start_program(self.command("--jsonl", "--backends", "slow,one", "say x"), env=env)
        self.assertEqual(json.loads(process.line())["backend"], "one")
        self.touch("go")
        second = json.loads(process.line())
        self.assert_result(second)
        self.assertEqual((second["backend"], second["index"]), ("slow", 0))
        completed = process.finish()
        self.assertIn(b"\nBACKEND      STATUS     DURATION   TOKENS     COST       MODEL\n", completed.stderr)
        self.assertNotIn(b"[one]", completed.stderr)
        self.assertEqual((completed.returncode, completed.stdout), (0, b""))

    def test_quiet_prints_only_the_total(self):
        self.assertEqual(normal(self.compare("-q", "--backends", "one,two", "say x").stdout), "Total: 2 tasks, 2 completed, 0 failed (0.00s)\n")

    def test_terminal_gets_colors_and_no_control_characters(self):
        self.install_answerers("cat")
        terminal = test_commands.Terminal()
        self.addCleanup(terminal.close)
        process = self.start_program(self.command("--progress", "never", "--backends", "echo,upper", "a\x1b]0;x\x07 b"),
                                     stdout=terminal.slave, stderr=terminal.slave)
        terminal.detach()
        shown = terminal.rest()
        self.assertEqual(process.finish().returncode, 0)
        self.assertEqual(set(re.findall(rb"\x1b[^m]*m|[\x00-\x08\x0b-\x1f]", shown)), {b"\x1b[32m", b"\x1b[m"})
        self.assertIn(b"echo         \x1b[32mOK        \x1b[m", shown)
        self.assertIn(b"\n[echo]\na^[]0;x^G b\n\n[upper]\nA^[]0;X^G B\n", shown)

    def test_unwritable_stdout_exits_74_with_the_reason(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("/dev/full is not there")
        for arguments, message in (
                ([], b"No space left on device"), (["-q"], b"No space left on device"),
                (["--json"], b"No space left on device; 1 of 1 result not written")):
            with self.subTest(arguments=arguments):
                completed = self.run_program(["sh", "-c", 'exec "$@" > /dev/full', "sh"] + self.command("--backends", "one", *arguments, "say x"))
                self.assertEqual(completed.returncode, 74)
                self.assertIn(b"clinvk: error: cannot write to stdout: " + message, completed.stderr)


if __name__ == "__main__":
    unittest.main()
