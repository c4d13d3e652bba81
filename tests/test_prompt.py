"""Single prompts, `resume` and `sessions`.

The command line, the three forms of output, live output, exit statuses, and sessions that are kept and
continued.
"""
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
import tty
import unittest
from unittest import mock

import support
from support import COMPILED, PATIENCE, clinvk, only_linux, wait_until

support.left_to_full_runs()

CLAUDE, CODEX, GEMINI = ("5e551000-0000-%d000-8000-00000000000%d" % pair for pair in ((4, 1), (7, 2), (4, 3)))  # the sessions of the fakes
USAGE = {"input_tokens": 150, "cached_input_tokens": 20, "output_tokens": 7, "reasoning_output_tokens": 2, "total_tokens": 157}


def assistant(text, **more):
    """A message of claude, as an instruction of the fake program."""
    return raw(dict({"type": "assistant", "message": {"content": [{"type": "text", "text": text}]}, "session_id": "s"}, **more))


def raw(event):
    return "raw %s\\n\n" % json.dumps(event).replace("\\", "\\\\")


def done(text, **more):
    return raw(dict({"type": "result", "subtype": "success", "is_error": False, "result": text, "session_id": "s"}, **more))


class PromptCase(support.ForkingCase):
    def setUp(self):
        super().setUp()
        self.environment["CLINVK_BACKEND"] = "echo"

    def ask(self, *args, status=0, errors=b"", **options):
        """Runs clinvk; its stdout as text."""
        run = self.clinvk(*args, **options)
        self.assertEqual((run.returncode, run.stderr), (status, errors), run.stdout[-2000:])
        return run.stdout.decode("utf-8", "surrogateescape")

    def asked(self, *args, status=0, **options):
        """The result object of `-o json`."""
        return json.loads(self.ask("-o", "json", *args, status=status, **options))

    def refused(self, *args, status=2, **options):
        """The message of a call that is refused."""
        run = self.clinvk(*args, **options)
        self.assertEqual((run.returncode, run.stdout), (status, b""), run.stderr)
        return run.stderr.decode()

    def sessions(self, *args):
        return json.loads(self.ask("sessions", "list", "--json", *args))

    def in_forks(self, **constants):
        """Give constants of clinvk other values where it runs in a fork."""
        for name, value in constants.items():
            patch = mock.patch.object(clinvk, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def configure(self, **settings):
        os.makedirs(self.path("home", ".clinvk"), exist_ok=True)
        self.file("home/.clinvk/config.yaml", settings)


class Words(unittest.TestCase):
    """What of the command line is a prompt, what a command, what an option."""

    def parsed(self, *words):
        options = clinvk.parse_command_line(list(words))
        return options.command, options.words, options

    def test_words_that_are_not_a_command_are_a_prompt(self):
        for words, prompt in (((" fix it ",), " fix it "), (("why",), "why"), (("",), ""), (("-",), "-"), (("prompt", "version"), "version"),
                              (("--", "version"), "version"), (("--", "-x"), "-x"), (("--", "--"), "--"), (("-b", "echo", "why"), "why"),
                              (("why", "-b", "echo"), "why"), (("-becho", "--", "parallel"), "parallel"), (("-c", "-w/", "why"), "why"),
                              (("-cbecho", "why"), "why"), (("-cb", "echo", "why"), "why"), (("--model=a b", "-mc d", "why"), "why"),
                              (("--system-prompt", "version", "why"), "why"), (("-x is what?",), "-x is what?"),
                              (("paralel tasks",), "paralel tasks"),
                              (("--dry-run why not",), "--dry-run why not"), (("-m", "x", "--", "-m"), "-m"), (("-b", "echo", ""), ""),
                              (("prompt", "--", "-h"), "-h")):
            with self.subTest(words=words):
                command, found, _ = self.parsed(*words)
                self.assertEqual((command, found), ("prompt", [prompt]))

    def test_command_is_found_behind_its_options(self):
        for words, expected in ((("version",), "version"), (("-b", "echo", "parallel"), "parallel"),
                                (("--dry-run", "--json", "parallel"), "parallel"),
                                (("--last", "resume", "why"), "resume"), (("--json", "sessions", "list"), "sessions list")):
            with self.subTest(words=words):
                self.assertEqual(self.parsed(*words)[0], expected)

    def test_options_and_words_can_be_mixed(self):
        for words in (("resume", "abc", "-o", "json", "go on", "--here"), ("resume", "-ojson", "--here", "abc", "go on"),
                      ("resume", "--here", "-o", "json", "--", "abc", "go on"), ("--here", "resume", "abc", "go on", "--output-format=json")):
            with self.subTest(words=words):
                command, found, options = self.parsed(*words)
                self.assertEqual((command, found, options.output_format, options.here), ("resume", ["abc", "go on"], "json", True))
        command, found, options = self.parsed("sessions", "--json", "delete", "abc", "b", "--json", "d")
        self.assertEqual((command, found, options.json), ("sessions delete", ["abc", "b", "d"], True))
        _, found, options = self.parsed("sessions", "delete", "abc", "--", "-b")
        self.assertEqual(found, ["abc", "-b"])

    def test_prompt_takes_each_option_of_a_task(self):
        options = self.parsed("why", "-b", "codex", "-m", "m", "--effort", "xhigh", "--schema", '{"type": "object"}', "-w", "/", "--approval-mode", "none", "--sandbox-mode", "full", "--system-prompt", "s",
                              "--max-turns", "2", "--max-tokens", "3", "--timeout", "2m", "--idle-timeout", "30s", "--max-output", "1K")[2]
        self.assertEqual({name: value for name, value in vars(options).items() if name.startswith("task_")}, {
            "task_dry_run": False, "task_backend": "codex", "task_model": "m", "task_effort": "xhigh", "task_schema": {"type": "object"}, "task_workdir": "/", "task_approval_mode": "none",
            "task_sandbox_mode": "full", "task_literal": False, "task_answer_only": False,
            "task_system_prompt": "s", "task_max_turns": 2, "task_max_tokens": 3, "task_timeout": 120.0,
            "task_idle_timeout": 30.0, "task_max_output": 1024})

    def test_age_is_one_number_and_one_unit(self):
        self.assertEqual([clinvk.age(seconds) for seconds in (-5, 0, 0.9, 59.9, 60, 3599, 3600, 86399, 86400, 86400 * 400)],
                         ["0s", "0s", "0s", "59s", "1m", "59m", "1h", "23h", "1d", "400d"])


class Refused(PromptCase):
    def test_prompt_of_one_word_like_a_command_is_refused(self):
        for word, near in (("paralel", "parallel"), ("session", "sessions"), ("Resume", "resume"), ("prmpt", "prompt"), ("serve", ""),
                           ("completion", "")):
            with self.subTest(word=word):
                hint = ' (did you mean "%s"?)' % near if near else ""
                self.assertEqual(self.refused("-b", "echo", word), 'clinvk: error: unknown command "%s"%s; to ask it as a prompt: clinvk -- %s\n'
                                 "Try `clinvk --help`.\n" % (word, hint, word))
                self.assertEqual(self.ask("--dry-run", "-b", "echo", "--", word), "env NO_COLOR=1 cat <<< %s\n" % word)

    def test_prompt_chain_and_compare_are_commands(self):
        for word in ("chain", "compare"):
            self.refused(word, input=b"")

    def test_prompt_missing_or_blank_is_refused(self):
        message = "clinvk: error: no prompt: give it as an argument, or - to read it from stdin\n"
        for args in (("-b", "echo"), ("prompt",), ("-c",), ("resume", "--last")):
            with self.subTest(args=args):
                self.assertEqual(self.refused(*args, input=b"not this"), message)
        self.assertEqual(self.refused("resume", "what is this"), message.replace("prompt:", 'prompt for the session "what is this":'))
        for args in (("",), ("prompt", " \n"), ("-",)):
            with self.subTest(args=args):
                self.assertEqual(self.refused(*args), "clinvk: error: the prompt is blank\n")
        self.assertEqual(self.refused("resume"), "clinvk: error: which session? Give its id (`clinvk sessions list` shows them), or --last\n")

    def test_prompt_of_words_without_quotes_is_refused(self):
        for args in (("why", "is", "this"), ("prompt", "why", "is"), ("resume", "--last", "why", "is"), ("resume", "abc", "why", "is")):
            with self.subTest(args=args):
                self.assertIn("unknown argument is; a prompt of several words needs quotes around it", self.refused(*args))
        self.assertIn("unknown argument -b; a prompt of several words needs", self.refused("--", "why", "-b", "echo"))

    def test_prompt_wrong_options_are_named(self):
        for args, words in ((("-b", "ecko", "why"), '--backend: unknown backend "ecko" (did you mean "echo"?)'),
                            (("-o", "yaml", "why"), "invalid choice: 'yaml'"),
                            (("-c", "--ephemeral", "why"), "not allowed with"), (("-j", "2", "why"), 'unknown argument -j'),
                            (("--ephemerel", "why"), '(did you mean "--ephemeral"?)'),
                            (("-b", "codex", "--approval-mode", "always", "--sandbox-mode", "full", "x"),
                                                                                       "sandbox_mode: codex: codex exec never asks"),
                            (("resume", "abc", "-b", "echo", "x"), "--backend goes with --last"),
                            (("resume", "--last", "abc", "x"), "quotes around it, and with --last there is no id\n"),
                            (("resume", "abc", "--ephemeral", "x"), "--ephemeral")):
            with self.subTest(args=args):
                self.assertIn(words, self.refused(*args))
        self.assertEqual(self.refused("why", env={"CLINVK_BACKEND": "ecko"}),
                         'clinvk: error: CLINVK_BACKEND: unknown backend "ecko" (did you mean "echo"?); ' + support.KNOWN + '\n')
        self.assertFalse(os.path.exists(self.path("home", ".clinvk")))


class Output(PromptCase):
    def test_prompt_prints_only_the_answer(self):
        self.assertEqual(self.ask("say x\nsay 审查"), "x\n审查\n")
        for backend in ("claude", "codex", "gemini"):
            with self.subTest(backend=backend):
                self.assertEqual(self.ask("-b", backend, "say x\nsay 审查"), "x\n审查\n")

    def test_prompt_of_several_words_that_begins_like_an_option_is_asked(self):
        for prompt in ("-c is an option", "-m is one, too", "-hi there", "- x", "-x y"):
            with self.subTest(prompt=prompt):
                self.assertEqual(self.clinvk("--dry-run", "-b", "codex", prompt, "-m", "a b").stdout.rpartition(b" <<< ")[2].decode(), "'%s'\n" % prompt)

    def test_prompt_dash_reads_stdin(self):
        self.assertEqual(self.ask("-", input=b"rest\na\nb"), "a\nb\n")
        self.assertEqual(self.ask("-b", "claude", "-", input=b"prompt-size\nsay x\n"), "18\nx\n")

    def test_prompt_from_an_endless_device_is_refused(self):
        with open("/dev/zero", "rb") as device:
            self.assertEqual(self.refused("-", stdin=device), "clinvk: error: stdin: is a device; expected a regular file, a pipe or a terminal\n")

    def test_prompt_bytes_that_are_not_utf_8_are_kept(self):
        self.assertEqual(self.clinvk("-", input=b"rest\na\xff\0b").stdout, b"a\xff\0b\n")

    def test_prompt_leaves_the_stdin_of_a_shell_loop(self):
        with open(self.file("lines", b"one\nfor sed\n"), "rb") as lines:
            run = self.run_program(["sh", "-c", 'read x; "$0" "$1" "say $x"; sed ""', sys.executable, COMPILED], stdin=lines)
        self.assertEqual((run.stdout, run.stderr), (b"one\nfor sed\n", b""))

    def test_prompt_argument_with_content_on_stdin_is_refused(self):
        message = "clinvk: error: stdin has content, which a prompt that is an argument leaves unread; to ask about it: "
        for words in (("say x",), ("compare", "--backends", "echo", "say x")):
            with self.subTest(words=words):
                self.assertTrue(self.refused(*words, input=b"\n").startswith(message))
                with open(self.file("content", b"x"), "rb") as content:
                    self.assertTrue(self.refused(*words, stdin=content).startswith(message))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.send(b"x")
            self.assertTrue(self.refused("say x", stdin=theirs).startswith(message))

    def test_prompt_argument_with_an_empty_or_silent_stdin_runs(self):
        self.in_forks(STDIN_SECONDS=0.01)
        reader, writer = os.pipe()
        ours, theirs = socket.socketpair()
        gone, other = socket.socketpair()
        gone.close()
        with ours, theirs, other, open(self.file("empty", b""), "rb") as empty, open("/dev/zero", "rb") as device:
            for stdin in (reader, theirs, other, empty, device, subprocess.DEVNULL):
                self.assertEqual(self.ask("say x", stdin=stdin), "x\n")
        os.close(writer)
        self.assertEqual(self.ask("say x", stdin=reader), "x\n")
        os.close(reader)

    def test_prompt_argument_with_late_content_on_stdin_warns(self):
        for words in (("ids here; wait-for seen; say x",), ("compare", "-q", "--backends", "echo", "ids here; wait-for seen; say x")):
            with self.subTest(words=words):
                for name in ("here", "seen"):
                    clinvk.remove_tree(self.path(name))
                process = self.start_program([sys.executable, COMPILED, *words], stdin=subprocess.PIPE)
                self.wait_for_file(self.path("here"))
                process.stdin.write(b"late\n")
                self.file("seen", b"")
                done = process.finish()
                self.assertEqual((done.returncode, done.stderr),
                                 (0, b"clinvk: warning: stdin had content, which was not read; the prompt - reads it\n"))

    def test_json_output_is_the_result_with_the_session(self):
        result = self.asked("-b", "claude", "say x")
        session, = self.sessions()
        self.assertEqual((result["status"], result["output"], result["session_id"], result["session"]), ("ok", "x", CLAUDE, session["id"]))
        self.assertEqual((result["index"], result["usage"], result["cost_usd"]), (0, USAGE, 0.25))
        self.assertNotIn("session", self.asked("--ephemeral", "say x"))

    def test_stream_json_output_is_that_of_the_backend(self):
        for backend, mark in (("claude", "result"), ("codex", "turn.completed"), ("gemini", "result")):
            with self.subTest(backend=backend):
                events = [json.loads(line) for line in self.ask("-b", backend, "-o", "stream-json", "say x").splitlines()]
                self.assertGreater(len(events), 2)
                self.assertEqual(events[-1]["type"], mark)
        self.assertEqual(self.ask("-o", "stream-json", "rest\na\nb"), "a\nb\n")
        self.assertEqual(self.ask("-o", "stream-json", "-b", "claude", "raw [1]", status=1, errors=b"clinvk: claude: [1]\n"), "[1]\n")

    def test_output_format_setting_is_the_default_form(self):
        self.configure(output={"format": "json"})
        self.assertEqual(json.loads(self.ask("say x"))["output"], "x\n")
        self.assertEqual(self.ask("-o", "text", "say x"), "x\n")

    def test_show_tokens_and_show_timing_settings_print_to_stderr(self):
        self.configure(output={"show_tokens": True, "show_timing": True})
        run = self.clinvk("-b", "claude", "say x")
        self.assertEqual(run.stdout, b"x\n")
        self.assertRegex(run.stderr.decode(), r"\ATokens: 157 \(input: 150, output: 7\)\nTime: [0-9.]+s\n\Z")
        self.assertEqual(self.clinvk("-b", "claude", "-o", "json", "say x").stderr, b"")

    def test_prompt_errors_and_warnings_go_to_stderr(self):
        for backend in ("echo", "claude", "codex"):
            with self.subTest(backend=backend):
                self.ask("-b", backend, "fail no luck", status=1, errors=b"clinvk: %s: no luck\n" % backend.encode())
        self.assertEqual(self.ask("--max-turns", "3", "say x", errors=b"clinvk: warning: echo has no max_turns; it was not applied\n"), "x\n")
        self.assertEqual(self.ask("say x\nfail no luck", status=1, errors=b"clinvk: echo: no luck\n"), "x\n")
        result = json.loads(self.ask("-o", "json", "--max-turns", "3", "fail no luck", status=1, errors=b"clinvk: echo: no luck\n"))
        self.assertEqual((result["error"], result["warnings"]), ("no luck", ["echo has no max_turns; it was not applied"]))
        self.ask("-b", "claude", "exit 0", status=1, errors=b"clinvk: claude: claude ended well but gave no answer\n")

    def test_dry_run_starts_nothing_and_keeps_no_session(self):
        for form in ([], ["-o", "text"], ["-o", "stream-json"]):
            self.assertEqual(self.ask("--dry-run", *form, "touch ran"), "env NO_COLOR=1 cat <<< 'touch ran'\n")
        result = self.asked("--dry-run", "touch ran")
        self.assertEqual((result["status"], result["output"]), ("skipped", "env NO_COLOR=1 cat <<< 'touch ran'"))
        self.configure(unified_flags={"dry_run": True})
        self.assertEqual(self.ask("touch ran"), "env NO_COLOR=1 cat <<< 'touch ran'\n")
        self.assertEqual(os.listdir(self.path("home", ".clinvk")), ["config.yaml"])
        self.assertFalse(os.path.exists(self.path("ran")))

    def test_custom_backend_answer_is_printed(self):
        lines = 'raw {"t": "a"}\\n;raw {"t": "b"}\\n'
        for definition, printed in (({"command": ["cat"]}, '{"t": "a"}\n{"t": "b"}\n'),
                                    ({"command": ["cat"], "output": "jsonl", "answer": ".t"}, "a\nb\n"),
                                    ({"command": ["cat"], "output": "jsonl", "answer": ".t", "join": True}, "ab\n")):
            with self.subTest(definition=definition):
                self.assertEqual(self.ask("-b", "mine", lines, env={"CLINVK_BACKENDS": json.dumps({"mine": definition})}), printed)
        self.assertEqual(self.ask("-b", "mine", 'raw {"t":\\n;raw "a"}', env={"CLINVK_BACKENDS": json.dumps(
            {"mine": {"command": ["cat"], "output": "json", "answer": ".t"}})}), "a\n")


class Live(PromptCase):
    """The answer is shown while it comes, and nothing of it twice."""

    def live(self, backend, *parts, form="text"):
        """Runs a prompt whose parts are held back until what came before was seen; what was printed, by part."""
        prompt = "".join("%s\nwait-for go-%d\n" % (part[0], number) for number, part in enumerate(parts))
        process = self.start("-b", backend, "-o", form, prompt)
        for number, (_, expected) in enumerate(parts):
            for line in expected:
                self.assertEqual(process.line().decode(), line)
            self.file("go-%d" % number, "")
        return process.finish()

    def test_live_messages_of_claude_are_shown_as_they_come(self):
        end = self.live("claude", (assistant("one"), ["one"]), (assistant("not mine", parent_tool_use_id="x") + assistant(""), []),
                        (assistant("two\nlines"), ["two", "lines"]), (done("two\nlines"), []))
        self.assertEqual((end.returncode, end.stdout, end.stderr), (0, b"", b""))

    def test_live_messages_of_codex_are_shown_as_they_come(self):
        def message(text):
            return raw({"type": "item.completed", "item": {"type": "agent_message", "text": text}})

        end = self.live("codex", (raw({"type": "thread.started", "thread_id": "t"}) + message("one"), ["one"]),
                        (raw({"type": "item.completed", "item": {"type": "error", "message": "not this"}}) + message("two"), ["two"]),
                        (raw({"type": "turn.completed", "usage": {}}), []))
        self.assertEqual((end.returncode, end.stdout, end.stderr), (0, b"", b"clinvk: warning: not this\n"))

    def test_live_pieces_of_gemini_are_joined(self):
        def piece(text, role="assistant"):
            return raw({"type": "message", "role": role, "content": text, "delta": True})

        end = self.live("gemini", (raw({"type": "init", "session_id": "s"}) + piece("the prompt", "user") + piece("one ") + piece("line\nand"),
                                   ["one line"]),
                        (piece(" more") + raw({"type": "tool_use", "tool_name": "t"}) + piece("two\n"), ["and more", "two"]),
                        (raw({"type": "result", "status": "success", "stats": {}}), []))
        self.assertEqual((end.returncode, end.stdout, end.stderr), (0, b"", b""))

    def test_live_text_is_shown_as_it_comes(self):
        end = self.live("echo", ("raw one\\ntw", ["one"]), ("raw o\\n", ["two"]), ("raw three", []))
        self.assertEqual((end.returncode, end.stdout, end.stderr), (0, b"three\n", b""))

    def test_live_stream_json_lines_are_copied(self):
        last = {"type": "result", "is_error": False, "result": "x"}
        end = self.live("claude", (raw({"n": 1}) + "raw {\"n\":", ['{"n": 1}']), ("raw 2}\\n", ['{"n":2}']), (raw(last), [json.dumps(last)]),
                        form="stream-json")
        self.assertEqual((end.returncode, end.stdout, end.stderr), (0, b"", b""))

    def test_live_character_in_two_writes_is_whole(self):
        self.assertEqual(self.ask("split-utf8"), "审查\n")

    def test_final_result_is_printed_only_where_nothing_was_streamed(self):
        for prompt, printed in (
                (assistant("one") + done("one"), "one\n"), (assistant(" one\n\n") + done("one"), " one\n\n"),
                (assistant("one") + done("another"), "one\n"),
                (assistant("one") + assistant("two") + done("two"), "one\ntwo\n"), (done("one"), "one\n"),
                (assistant("x" * 3000) + done("x" * 3000), "x" * 3000 + "\n"),
                (assistant("ab") + done("abc"), "ab\n")):
            with self.subTest(prompt=prompt[:200]):
                self.assertEqual(self.ask("-b", "claude", "--ephemeral", prompt), printed)

    def test_live_error_text_is_not_part_of_the_answer(self):
        failed = raw({"type": "assistant", "message": {"model": "<synthetic>", "content": [{"type": "text", "text": "API Error: 500"}]},
                      "error": "unknown"})
        self.assertEqual(self.ask("-b", "claude", assistant("one") + failed + done("API Error: 500", is_error=True), status=1,
                                  errors=b"clinvk: claude: API Error: 500\n"), "one\n")

    def test_live_control_characters_do_not_reach_a_terminal(self):
        for form, shown in (("text", b"a^[]0;t^Gb\r\n"), ("stream-json", b"a^[]0;t^Gb\r\n")):
            with self.subTest(form=form):
                master, slave = pty.openpty()
                try:
                    process = self.start("-o", form, "raw a\\x1b]0\\x3bt\\x07b\\n", stdout=slave)
                    os.close(slave)
                    slave = -1
                    self.assertEqual(process.wait(PATIENCE), 0)
                    self.assertEqual(os.read(master, 1000), shown)
                finally:
                    for file in (master, slave):
                        if file >= 0:
                            os.close(file)

    def test_live_answer_on_a_terminal_removes_the_status_line(self):
        master, slave = pty.openpty()
        tty.setraw(slave)
        try:
            process = self.start("--progress", "auto", "wait-for go; raw one\\n; wait-for more; raw two\\n", stdout=slave, stderr=slave)
            os.close(slave)
            slave = -1
            seen = self.read_until(master, b"[0/1] 1 running, ")
            self.file("go", "")
            seen = self.read_until(master, b"one\n")
            self.assertIn(b"\r\x1b[J", seen)
            self.file("more", "")
            self.assertEqual(self.read_until(master, b"two\n"), b"two\n")
            self.assertEqual(process.wait(PATIENCE), 0)
        finally:
            for file in (master, slave):
                if file >= 0:
                    os.close(file)

    def read_until(self, file, end):
        seen, deadline = b"", time.monotonic() + PATIENCE
        while end not in seen:
            self.assertTrue(select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0], seen)
            seen += os.read(file, 1 << 16)
        return seen


class Ends(PromptCase):
    def test_prompt_exit_status_tells_the_kind_of_failure(self):
        self.file("bin/mine", "no program\n")
        os.chmod(self.path("bin", "mine"), 0o755)
        os.unlink(self.path("bin", "gemini"))
        definitions = {"CLINVK_BACKENDS": json.dumps({"broken": {"command": [self.path("bin")]}, "sh": {"command": ["sh"]}})}
        for args, status, error in ((("say x",), 0, ""), (("fail no luck",), 1, "echo: no luck"), (("exit 3",), 1, "echo: exit status 3"),
                                    (("exit 0",), 1, "echo ended well but gave no answer"),
                                    (("--timeout", "0.2", "sleep 300"), 124, "echo: timed out after 0.2s"),
                                    (("-b", "gemini", "x"), 127,
                                     "gemini: not found: it is not installed, or not on the PATH; `clinvk doctor` shows what can be used"),
                                    (("-b", "broken", "x"), 126, "cannot be started: Permission denied"),
                                    (("-b", "sh", "exit 127"), 127, "exit status 127"),
                                    (("-w", "/nonexistent", "x"), 1, "echo: workdir /nonexistent: No such file"),
                                    (("die SEGV",), 1, "ended by signal 11"),
                                    (("die TERM",), 1, "ended by signal 15")):
            with self.subTest(args=args):
                run = self.clinvk(*args, env=dict(definitions, PATH=self.bin + ":/usr/bin:/bin"))
                self.assertEqual(run.returncode, status, run.stderr)
                self.assertIn(error, run.stderr.decode())

    def test_program_that_cannot_be_started_leaves_no_session(self):
        os.unlink(self.path("bin", "gemini"))
        self.file("bin/codex", "#!/nonexistent/interpreter\n")
        os.chmod(self.path("bin", "codex"), 0o755)
        env = {"CLINVK_BACKENDS": json.dumps({"directory": {"command": [self.path("bin")]}}), "PATH": self.bin}
        for arguments, status in ((["-b", "gemini", "x"], 127), (["-b", "codex", "x"], 126), (["-b", "directory", "x"], 126),
                                  (["-w", "/nonexistent", "x"], 1)):
            for form in ([], ["-o", "json"]):
                run = self.clinvk(*arguments, *form, env=env)
                self.assertEqual(run.returncode, status, run.stderr)
                self.assertNotIn(b'"session"', run.stdout)
        self.assertEqual(self.sessions(), [])
        self.assertIn("session", self.asked("exit 3", status=1, errors=b"clinvk: echo: exit status 3\n"))
        self.assertEqual(len(self.sessions()), 1)

    def test_prompt_killed_leaves_no_backend_and_no_file(self):
        process = self.start("raw one\\n; ids pid; sleep 300")
        self.assertEqual(process.line(), b"one")
        self.pid_in(self.path("pid"))
        process.kill()
        process.wait()
        self.wait_until_nothing_runs()
        wait_until(lambda: not os.listdir(self.tmp), "the files of the run are gone")
        self.assertEqual([(entry["status"], entry["error"]) for entry in self.sessions()],
                         [("error", "clinvk was stopped before the end of the run")])
        self.assertRegex(self.ask("sessions", "list"), r" echo +error ")

    def test_prompt_stdout_that_cannot_be_written_is_an_error(self):
        for form in ("text", "json", "stream-json"):
            with self.subTest(form=form):
                run = self.run_program(["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, COMPILED, "-o", form, "say x"])
                self.assertEqual(run.returncode, 74)
                self.assertIn(b"clinvk: error: cannot write to stdout: Bad file descriptor", run.stderr)

    BEGUN = "raw %s\\n" % json.dumps({"type": "system", "subtype": "init", "session_id": CLAUDE, "model": "m"})

    def test_run_that_cannot_begin_leaves_the_sessions_as_they_were(self):
        self.ask("-b", "claude", "say a")
        before = self.sessions()
        for words in (("-b", "claude", "say b"), ("-b", "claude", "-c", "say b"), ("resume", before[0]["id"], "say b")):
            with self.subTest(words):
                self.ask(*words, env={"TMPDIR": "/nowhere"}, status=74,
                         errors=b"clinvk: error: cannot write temporary files to /nowhere: No such file or directory\n")
                self.assertEqual(self.sessions(), before)
        self.ask("-b", "claude", "-c", "say b")

    def test_prompt_stopped_while_it_runs_ends_its_backend_and_keeps_what_is_known_of_the_session(self):
        for form, end in (("text", signal.SIGINT), ("text", None), ("json", signal.SIGTERM), ("json", None), ("stream-json", signal.SIGHUP),
                          ("stream-json", None)):
            with self.subTest(form=form, end=end or "the reader goes away"):
                process = self.start("-b", "claude", "-o", form, self.BEGUN + "; ids pid; sleep 300")
                pid = self.pid_in(self.path("pid"))
                if end is None:
                    process.stdout.close()
                    self.assertEqual(process.wait(PATIENCE), 141)
                else:
                    process.send_signal(end)
                    done = process.finish()
                    self.assertEqual(done.returncode, -end)
                    self.assertIn(b"clinvk: claude: canceled while it ran\n", done.stderr)
                self.assert_gone(pid)
                session = self.sessions("-n", "1")[0]
                self.assertEqual((session["status"], session["error"], session.get("backend_session_id"), session["turn_count"]),
                                 ("error", "canceled while it ran", CLAUDE, 1))
                os.unlink(self.path("pid"))

    @only_linux
    def test_session_is_kept_when_the_answer_cannot_be_written(self):
        for form in ("text", "json", "stream-json"):
            with self.subTest(form=form), open("/dev/full", "wb") as full:
                run = self.clinvk("-b", "claude", "-o", form, "say x", stdout=full)
                self.assertEqual((run.returncode, run.stderr.count(b"No space left on device")), (74, 1), run.stderr)
                session = self.sessions("-n", "1")[0]
                self.assertEqual((session["status"], session["backend_session_id"], session["turn_count"], session["token_usage"]),
                                 ("completed", CLAUDE, 1, USAGE))

    def test_session_is_kept_before_the_answer_is_written(self):
        process = self.start("-b", "claude", "-o", "json", "flood 1000000")
        wait_until(lambda: [session["status"] for session in self.sessions()] == ["completed"], "the session is kept while nobody reads the answer")
        self.assertIsNone(process.poll())
        process.kill()
        process.wait()
        wait_until(lambda: not os.listdir(self.tmp), "the files of the run are gone")
        self.wait_until_nothing_runs()

    def test_prompt_processes_left_behind_do_not_write_into_the_answer(self):
        warning = b"clinvk: warning: echo left processes running, which were killed: cat\n" if support.LINUX else b""
        self.assertEqual(self.ask("keep-pipe pid go; say x", errors=warning), "x\n")


class Conversations(PromptCase):
    """Sessions, as runs make them and go on with them."""

    def argv(self, *args, **options):
        return json.loads(self.ask(*args, "argv", **options))

    def test_session_is_written_for_each_run(self):
        self.ask("-b", "claude", "-m", "opus", "say x")
        entry, = self.sessions()
        self.assertEqual({name: entry.get(name) for name in ("backend", "backend_session_id", "status", "turn_count", "token_usage", "cost_usd",
            "working_dir", "model",
                                                             "initial_prompt", "error")},
                         {"backend": "claude", "backend_session_id": CLAUDE, "status": "completed", "turn_count": 1, "token_usage": USAGE,
                          "cost_usd": 0.25,
                          "working_dir": self.directory, "model": "fake-model-1", "initial_prompt": "say x", "error": None})
        self.ask("-b", "claude", "fail no luck", status=1, errors=b"clinvk: claude: no luck\n")
        self.ask("-w", "/", "fail no luck", status=1, errors=b"clinvk: echo: no luck\n")
        last, failed, _ = self.sessions()
        self.assertEqual([(entry["status"], entry["error"], entry["turn_count"], entry["working_dir"]) for entry in (last, failed)],
                         [("error", "no luck", 0, "/"), ("error", "no luck", 1, self.directory)])

    def changed(self, **fields):
        """The id of a session of claude whose file says something else."""
        self.ask("-b", "claude", "say x")
        entry = dict(self.sessions()[0], **fields)
        self.file(os.path.join("home", ".clinvk", "sessions", entry["id"] + ".json"), entry)
        return entry["id"]

    def test_sessions_show_prints_one_line_for_each_field(self):
        text = self.ask("sessions", "show", self.changed(model="m\nstatus: forged", tags=["a\nid: forged"], working_dir="/w\nx: forged"))
        self.assertNotIn("forged", text)

    def test_session_is_active_while_it_runs(self):
        process = self.start("raw one\\n; wait-for go")
        self.assertEqual(process.line(), b"one")
        self.assertEqual([entry["status"] for entry in self.sessions()], ["active"])
        self.file("go", "")
        process.finish()
        self.assertEqual([entry["status"] for entry in self.sessions()], ["completed"])

    def test_ephemeral_run_keeps_no_session_of_the_backend(self):
        for backend, word in (("claude", "--no-session-persistence"), ("codex", "--ephemeral")):
            with self.subTest(backend=backend):
                self.assertNotIn(word, self.argv("-b", backend))
                self.assertIn(word, self.argv("-b", backend, "--ephemeral"))
        chats = self.path("home", ".gemini", "tmp", "project", "chats")
        os.makedirs(chats)
        for args, left in (((), 1), (("--ephemeral",), 0)):
            self.file("home/.gemini/tmp/project/chats/session-%s.json" % GEMINI[:8], json.dumps({"id": GEMINI}))
            self.ask("-b", "gemini", *args, "say x")
            self.assertEqual(len(os.listdir(chats)), left)
        self.assertEqual([entry["backend"] for entry in self.sessions()], ["gemini", "codex", "claude"])

    def test_answer_only_prompt_keeps_and_continues_no_session(self):
        self.configure(session={"auto_resume": True})
        self.assertIn("--no-session-persistence", self.argv("-b", "claude", "--answer-only"))
        self.assertEqual(self.sessions(), [])
        self.ask("-b", "claude", "say x")
        entry, = self.sessions()
        self.assertNotIn("--resume", self.argv("-b", "claude", "--answer-only"))
        for words in (("-c", "-b", "claude"), ("resume", "--last")):
            message = self.refused(*words, "--answer-only", "x", status=4)
            self.assertRegex(message, r"session \w+ \(claude\) cannot be resumed with answer_only, which keeps no session\n\Z")
        self.assertEqual(self.sessions(), [entry])

    def test_batch_keeps_no_session(self):
        done = self.clinvk("parallel", "--jsonl", "-q", "-b", "claude", input=b'{"prompt": "argv"}')
        self.assertIn("--no-session-persistence", json.loads(json.loads(done.stdout)["output"]))
        self.assertEqual(os.listdir(self.home), [])

    def test_session_that_cannot_be_written_is_a_warning(self):
        os.mkdir(self.path("home", ".clinvk"))
        self.file("home/.clinvk/sessions", "")
        run = self.clinvk("-b", "claude", "argv")
        self.assertEqual(run.returncode, 0)
        self.assertIn("--no-session-persistence", json.loads(run.stdout))
        self.assertRegex(run.stderr.decode(), r"\Aclinvk: warning: this session is not kept: [^\n]+\n\Z")

    def test_continue_takes_the_last_session_of_directory_and_backend(self):
        message = self.refused("-c", "-b", "claude", "x", status=4)
        self.assertEqual(message, "clinvk: error: there is no session of claude in the current directory to continue; `clinvk sessions list` shows the others\n")
        os.mkdir(self.path("other"))
        self.assertNotIn("--resume", self.argv("-b", "claude"))
        self.assertNotIn("--resume", self.argv("-b", "gemini", "-w", "other"))
        self.assertIn("in other to continue", self.refused("-c", "-b", "claude", "-w", "other", "x", status=4))
        self.assertIn("of gemini in", self.refused("-c", "-b", "gemini", "x", status=4))
        words = self.argv("-b", "claude", "-c")
        self.assertEqual(words[words.index("--resume") + 1], CLAUDE)
        words = self.argv("-b", "gemini", "-c", cwd=self.path("other"))
        self.assertEqual(words[words.index("--resume") + 1], GEMINI)
        self.assertEqual([(entry["backend"], entry["turn_count"]) for entry in self.sessions()], [("gemini", 2), ("claude", 2)])
        self.assertEqual([entry["initial_prompt"] for entry in self.sessions()], ["argv", "argv"])

    def test_auto_resume_setting_continues_the_last_session(self):
        self.assertNotIn("--resume", self.argv("-b", "claude"))
        self.assertNotIn("--resume", self.argv("-b", "claude"))
        self.configure(session={"auto_resume": True})
        os.mkdir(self.path("other"))
        self.assertNotIn("--resume", self.argv("-b", "claude", "-w", "other"))
        self.assertNotIn("--resume", self.argv("-b", "codex"))
        self.assertNotIn("--resume", self.argv("-b", "claude", "--ephemeral"))
        run = self.clinvk("-b", "claude", "argv")
        self.assertIn("--resume", json.loads(run.stdout))
        self.assertRegex(run.stderr.decode(), r"\Aclinvk: continuing session [0-9a-f]{8} \(claude\)\n\Z")

    def test_resume_finds_a_session_by_each_kind_of_id(self):
        self.ask("-b", "claude", "say x")
        session, = self.sessions()
        for words in (("resume", session["id"]), ("resume", session["id"][:6]), ("resume", CLAUDE), ("resume", "--last"),
                      ("resume", "--last", "-b", "claude")):
            with self.subTest(words=words):
                self.assertIn(CLAUDE, self.argv(*words))
        self.assertEqual(self.ask("resume", "--last", "-", input=b"say from stdin"), "from stdin\n")
        self.assertEqual(self.sessions()[0]["turn_count"], 7)
        for words, message in ((("resume", "beef"), 'no session id starts with "beef"'), (("resume", "xyz"), '"xyz" is not the id of a session'),
                               (("resume", "--last", "-b", "codex"), "there is no session of codex to resume")):
            with self.subTest(words=words):
                self.assertIn(message, self.refused(*words, "x", status=4))

    def test_resume_id_in_a_session_file_is_never_an_option(self):
        self.ask("-b", "claude", "say x")
        session, = self.sessions()
        for name in ("--yolo", "-", "a\0b", "\ud800", "\udcff", "\x1b[2J", "a\nb"):
            with self.subTest(name=name):
                self.file("home/.clinvk/sessions/%s.json" % session["id"], dict(session, backend_session_id=name))
                self.assertIn("is not an id", self.refused("resume", session["id"], "touch ran", status=4))
                self.assertEqual(self.sessions()[0]["status"], "completed")

    def test_resume_runs_in_the_directory_of_the_session(self):
        os.mkdir(self.path("other"))
        self.ask("-b", "claude", "-w", "other", "say x")
        self.assertEqual(self.ask("resume", "--last", "cwd"), self.path("other") + "\n")
        self.assertEqual(self.ask("resume", "--last", "--here", "cwd"), self.directory + "\n")
        os.rmdir(self.path("other"))
        self.assertIn("which no longer exists; --here continues", self.refused("resume", "--last", "x", status=4))
        self.assertEqual(self.ask("resume", "--last", "--here", "say y"), "y\n")

    def test_resume_that_the_backend_cannot_do_is_refused(self):
        self.ask("-b", "gemini", "say x")
        self.ask("-b", "echo", "say x")
        os.mkdir(self.path("other"))
        echo, gemini = self.sessions()
        self.assertIn("gemini continues a session only in its directory, " + self.directory,
                      self.refused("resume", gemini["id"], "--here", "x", status=4, cwd=self.path("other")))
        self.assertIn("echo keeps no sessions", self.refused("resume", echo["id"], "x", status=4))
        self.assertEqual(self.refused("-c", "x", status=4), "clinvk: error: echo keeps no sessions that could be continued\n")
        self.ask("-b", "mine", "say x", env={"CLINVK_BACKENDS": '{"mine": {"command": ["cat"]}}'})
        self.assertIn('unknown backend "mine"', self.refused("resume", self.sessions()[0]["id"], "x", status=4))

    def counting(self, tokens):
        return raw({"type": "thread.started", "thread_id": CODEX}) + raw({"type": "item.completed",
            "item": {"type": "agent_message", "text": "x"}}) + raw(
            {"type": "turn.completed", "usage": {"input_tokens": tokens, "cached_input_tokens": 10, "output_tokens": tokens // 10}})

    def test_codex_usage_of_each_run_is_the_difference(self):
        shares = [self.asked(*words, self.counting(tokens))["usage"]["total_tokens"]
                  for words, tokens in ((("-b", "codex"), 1000), (("-b", "codex", "-c"), 3000), (("resume", "--last"), 3500))]
        self.assertEqual(shares, [1100, 2200, 550])
        session, = self.sessions()
        self.assertEqual((session["token_usage"]["total_tokens"], session["cumulative_usage"]["total_tokens"]), (3850, 3850))

    def test_store_token_usage_setting_off_keeps_no_tokens(self):
        self.configure(session={"store_token_usage": False, "default_tags": ["a", "b"]})
        self.ask("-b", "codex", self.counting(1000))
        session, = self.sessions()
        self.assertEqual((session.get("token_usage"), session.get("cumulative_usage"), session["tags"]), (None, None, ["a", "b"]))
        result = self.asked("-b", "codex", "-c", self.counting(3000))
        self.assertEqual((result["usage"]["total_tokens"], result["warnings"]),
                         (3300, ["codex counts the tokens of the whole session that it resumed"]))

    def test_continue_with_a_new_system_prompt_warns_where_it_may_not_apply(self):
        for backend, warned in (("claude", True), ("codex", True), ("gemini", False)):
            with self.subTest(backend=backend):
                self.assertNotIn("warnings", self.asked("-b", backend, "--system-prompt", "s", "say x"))
                self.assertEqual("warnings" in self.asked("-b", backend, "-c", "--system-prompt", "s", "say x"), warned)
                self.assertNotIn("warnings", self.asked("-b", backend, "-c", "say x"))

    def test_session_file_removed_during_the_run_is_not_written(self):
        process = self.start("-b", "claude", "touch started; wait-for go; say x")
        self.wait_for_file(self.path("started"))
        os.unlink(self.path("home", ".clinvk", "sessions", self.sessions()[0]["id"] + ".json"))
        self.file("go", "")
        end = process.finish()
        self.assertEqual((end.returncode, end.stdout), (0, b"x\n"))
        self.assertRegex(end.stderr.decode(), r"\Aclinvk: warning: the session is not updated: there is no session [0-9a-f]{32}\n\Z")
        self.assertEqual(self.sessions(), [])

    def test_resume_of_a_session_in_use_is_refused(self):
        self.in_forks(LOCK_WAIT_SECONDS=0)
        self.ask("-b", "claude", "say x")
        id = self.sessions()[0]["id"]
        first = self.start("resume", id, "touch started; wait-for go; say y")
        self.wait_for_file(self.path("started"))
        for words in (("resume", id), ("resume", "--last"), ("resume", CLAUDE), ("-b", "claude", "-c")):
            with self.subTest(words=words):
                self.assertEqual(self.refused(*words, "touch ran", status=4),
                                 "clinvk: error: session %s is in use: another clinvk runs a prompt in it\n" % id[:8])
        self.ask("resume", id, "--dry-run", "touch ran")
        self.assertEqual(self.sessions()[0]["status"], "active")
        self.configure(session={"auto_resume": True})
        note = "clinvk: session %s (claude) is in use: this is a new one\n" % id[:8]
        self.assertEqual(self.ask("-b", "claude", "say z", errors=note.encode()), "z\n")
        self.file("go", "")
        self.assertEqual(first.finish().stdout, b"y\n")
        self.assertEqual({entry["id"] == id: (entry["status"], entry["turn_count"]) for entry in self.sessions()},
                         {True: ("completed", 2), False: ("completed", 1)})
        self.assertFalse(os.path.exists(self.path("ran")))

    def test_resume_after_a_killed_run_continues(self):
        self.ask("-b", "claude", "say x")
        process = self.start("resume", "--last", "ids pid; sleep 300")
        self.pid_in(self.path("pid"))
        process.kill()
        process.wait()
        self.assertEqual([(entry["status"], entry["error"]) for entry in self.sessions()],
                         [("error", "clinvk was stopped before the end of the run")])
        self.wait_until_nothing_runs()
        wait_until(lambda: not os.listdir(self.tmp), "the files of the run are gone")
        self.assertEqual(self.ask("resume", "--last", "say y"), "y\n")
        self.assertEqual([(entry["status"], entry.get("error"), entry["turn_count"]) for entry in self.sessions()], [("completed", None, 2)])

    def test_many_prompts_at_once_lose_no_session(self):
        processes = [self.start("-b", "claude", "say %d" % number) for number in range(3)]
        self.assertEqual([process.finish().returncode for process in processes], [0] * 3)
        self.assertEqual(sorted(entry["initial_prompt"] for entry in self.sessions()), sorted("say %d" % number for number in range(3)))
        processes = [self.start("resume", entry["id"], "say again") for entry in self.sessions()]
        self.assertEqual([process.finish().returncode for process in processes], [0] * 3)
        self.assertEqual({entry["turn_count"] for entry in self.sessions()}, {2})


class SessionAfter(unittest.TestCase):
    session = clinvk.Session(
        "0" * 32, "claude", 1.0, 2.0, "/", "theirs", model="asked", turn_count=3, error="former",
        token_usage={"input_tokens": 5}, cost_usd=1.0, cumulative_usage={"input_tokens": 50})

    def after(self, with_usage=True, **fields):
        return clinvk.session_after(self.session, clinvk.Result(0, "claude", "ok", 0)._replace(**fields), with_usage)

    def assert_fields(self, session, **fields):
        self.assertEqual({name: getattr(session, name) for name in fields}, fields)

    def test_session_after_a_good_run_adds_up(self):
        after = self.after(usage={"input_tokens": 7, "output_tokens": 1}, cost_usd=0.5, session_id="new", model="used")
        self.assert_fields(after, status="completed", error="", backend_session_id="new", turn_count=4, cost_usd=1.5, model="used",
                           token_usage={"input_tokens": 12, "output_tokens": 1}, cumulative_usage={"input_tokens": 50})
        self.assertGreater(after.last_used, self.session.last_used)

    def test_session_after_a_cumulative_count_adds_the_difference(self):
        fields = {"usage": {"input_tokens": 57, "output_tokens": 1}, "usage_is_cumulative": True}
        self.assert_fields(self.after(**fields), token_usage={"input_tokens": 12, "output_tokens": 1}, cumulative_usage=fields["usage"])
        self.assert_fields(self.after(with_usage=False, **fields), token_usage={"input_tokens": 5}, cumulative_usage={})

    def test_session_after_a_run_without_facts_keeps_them(self):
        self.assert_fields(self.after(), backend_session_id="theirs", token_usage={"input_tokens": 5}, cost_usd=1.0,
                           model="asked", cumulative_usage={"input_tokens": 50})

    def test_session_after_a_bad_run_counts_a_turn_that_the_backend_took(self):
        for session_id, turns in (("theirs", 4), ("", 3)):
            after = self.after(status="failed", error="no luck", session_id=session_id)
            self.assert_fields(after, status="error", error="no luck", turn_count=turns)


class SessionsCommand(PromptCase):
    def make(self, *prompts, backend="claude"):
        for prompt in prompts:
            self.ask("-b", backend, prompt)
        return [entry["id"] for entry in reversed(self.sessions("-n", str(len(prompts))))]

    def test_sessions_list_is_a_table_with_the_last_used_first(self):
        self.assertEqual(self.ask("sessions", "list", errors=b"clinvk: there are no sessions\n"), "")
        one, two = self.make("say x\nsay more", "say 审查" + "查" * 60)
        head, first, second = self.ask("sessions", "list").splitlines()
        self.assertEqual(head, "ID       BACKEND      STATUS     AGE   TURNS TAGS         PROMPT")
        self.assertRegex(first, r"\A%s claude       completed  \d+s +1     -            say 审查查+\.\.\.\Z" % two[:8])
        self.assertLessEqual(sum(map(clinvk.columns_of, first)), 80)
        self.assertRegex(second, r"\A%s claude       completed  \d+s +1     -            say x\Z" % one[:8])
        self.ask("resume", one, "say y")
        self.assertTrue(self.ask("sessions", "list").splitlines()[1].startswith(one[:8]))

    def test_sessions_list_filters(self):
        self.configure(session={"default_tags": ["a"]})
        one, = self.make("say x")
        self.configure()
        two, = self.make("say y")
        three, = self.make("say z", backend="codex")
        self.ask("-b", "claude", "fail no luck", status=1, errors=b"clinvk: claude: no luck\n")
        four = self.sessions()[0]["id"]
        for args, ids in ((("--backend", "codex"), [three]), (("--status", "error"), [four]), (("--tag", "a"), [one]),
                          (("--resumable",), [four, three, two, one]), (("-n", "2"), [four, three]),
                          (("-b", "claude", "--status", "completed"), [two, one]), (("-b", "gemini"), [])):
            with self.subTest(args=args):
                self.assertEqual([entry["id"] for entry in self.sessions(*args)], ids)
        self.assertEqual(self.ask("sessions", "list", "-b", "gemini", errors=b"clinvk: there are no such sessions\n"), "")
        self.assertEqual(self.ask("sessions", "list", "-b", "cluade", errors=b'clinvk: there are no such sessions (did you mean "claude"?)\n'), "")

    def test_sessions_show_prints_what_is_known(self):
        id, = self.make("say x\nsay y")
        text = self.ask("sessions", "show", id[:7])
        for line in ("id: +%s" % id, "backend: +claude", "status: +completed", r"created: +\S+Z \(\d+s ago\)", "directory: +" + self.directory,
                     "backend's id: +" + CLAUDE, "turns: +1", "usage: +150 input tokens, .*157 total tokens.*", r"cost: +\$0.2500", "prompt: +say x"):
            self.assertRegex(text, "(?m)^%s$" % line)
        self.assertNotIn("error:", text)
        self.assertEqual(json.loads(self.ask("sessions", "show", id, "--json")), self.sessions()[0])

    def test_sessions_delete_removes_all_or_none(self):
        one, two, three = self.make("say x", "say y", "say z")
        self.assertIn("no session id starts with", self.refused("sessions", "delete", one, "0" * 20, status=4))
        self.assertEqual(len(self.sessions()), 3)
        self.assertEqual(self.ask("sessions", "delete", one, two[:8], one[:8]), "%s\n%s\n" % (one, two))
        self.assertEqual(json.loads(self.ask("sessions", "delete", "--json", three)), {"deleted": [three]})
        self.assertEqual(self.sessions(), [])

    def test_sessions_delete_with_one_in_use_removes_none(self):
        idle, = self.make("say x")
        process = self.start("-b", "claude", "touch started; wait-for go; say y")
        self.wait_for_file(self.path("started"))
        used, = [session["id"] for session in self.sessions() if session["status"] == "active"]
        self.assertEqual(self.refused("sessions", "delete", idle, used, status=4),
                         "clinvk: error: session %s is in use: another clinvk runs a prompt in it\n" % used[:8])
        self.assertEqual({session["id"] for session in self.sessions()}, {idle, used})
        self.file("go", "")
        self.assertEqual(process.finish().returncode, 0)
        self.assertEqual(self.ask("sessions", "delete", idle, used), "%s\n%s\n" % (idle, used))

    def test_sessions_clean_removes_old_ones(self):
        one, two = self.make("say x", "say y")
        path = self.path("home", ".clinvk", "sessions", one + ".json")
        with open(path) as file:
            entry = json.load(file)
        self.file(path, dict(entry, last_used=clinvk.utc(time.time() - 31 * 86400)))
        self.assertEqual(self.ask("sessions", "clean", "--older-than", "32d"), "")
        self.configure(session={"retention_days": 0})
        note = b"clinvk: session.retention_days is 0: sessions are never deleted; --older-than deletes some\n"
        self.assertEqual(self.ask("sessions", "clean", errors=note), "")
        self.configure(session={"retention_days": 40})
        self.assertEqual(self.ask("sessions", "clean"), "")
        self.configure()
        self.assertEqual(self.ask("sessions", "clean", "--dry-run"), one + "\n")
        self.assertEqual(len(self.sessions()), 2)
        self.assertEqual(json.loads(self.ask("sessions", "clean", "--json")), {"deleted": [one]})
        process = self.start("raw one\\n; wait-for go")
        self.assertEqual(process.line(), b"one")
        for dry in (("--dry-run",), ()):  # what runs is in use, however little that is
            self.assertEqual(self.ask("sessions", "clean", "--older-than", "0d", *dry), two + "\n")
        self.file("go", "")
        process.finish()

    def test_sessions_clean_with_a_broken_configuration_removes_nothing(self):
        self.make("say x")
        os.makedirs(self.path("home", ".clinvk"), exist_ok=True)
        self.file("home/.clinvk/config.yaml", "session: {retention_days: x}\n")
        self.assertIn("config.yaml:1: session.retention_days: ", self.refused("sessions", "clean", status=3))
        self.assertEqual(len(self.sessions()), 1)

    def test_sessions_wrong_arguments_are_named(self):
        for args, message in (((), "clinvk sessions: error: expected an action (list, show, delete, clean), got none\n"),
                              (("lst",), 'expected an action (list, show, delete, clean), got "lst"'),
                              (("show",), "which session? `clinvk sessions list` shows them"),
                              (("show", "a", "b"), "clinvk sessions show: error: unknown argument b"), (("list", "a"), "unknown argument a"),
                              (("list", "--older-than", "1d"), "unknown argument --older-than; it is an option of `clinvk sessions clean`"),
                              (("delete", "--dry-run", "a"), "unknown argument --dry-run; it is an option of `clinvk sessions clean`"),
                              (("clean", "--older-than", "3m"), "expected an age such as 12h, 30d or 2w"),
                              (("list", "--status", "good"), "invalid choice: 'good'"),
                              (("list", "-n", "0"), "from 1 on"), (("list", "--jsn"), 'unknown argument --jsn (did you mean "--json"?)')):
            with self.subTest(args=args):
                self.assertIn(message, self.refused("sessions", *args))
        self.assertFalse(os.path.exists(self.path("home", ".clinvk")))

    def test_sessions_list_names_a_damaged_file_and_shows_the_rest(self):
        id, = self.make("say x")
        self.file("home/.clinvk/sessions/%s.json" % ("0" * 32), "{")
        run = self.clinvk("sessions", "list")
        self.assertEqual((run.returncode, run.stdout.count(b"\n")), (0, 2))
        self.assertRegex(run.stderr.decode(), r"\Aclinvk: warning: \S+/0{32}\.json is not a session and stays unchanged: [^\n]+\n\Z")
        self.assertEqual(self.ask("sessions", "delete", "0" * 32), "0" * 32 + "\n")

    def test_clinvk_home_is_where_sessions_are_kept(self):
        self.ask("say x", env={"CLINVK_HOME": self.path("elsewhere")})
        self.assertEqual(self.sessions(), [])
        self.assertEqual(len(os.listdir(self.path("elsewhere", "sessions"))), 2)


class Row(unittest.TestCase):
    """How backends are told to keep a session and to go on with one."""

    def argv(self, name, **fields):
        return list(clinvk.BACKENDS[name].command(support.job(0, name, "p", **fields)).argv)

    def test_backend_command_names_the_session_to_resume(self):
        for name, words in (("claude", ["--resume", "ID"]), ("codex", ["resume", "ID", "-"]), ("gemini", ["--resume", "ID"])):
            with self.subTest(backend=name):
                argv = self.argv(name, keep=True, resume="ID", sandbox_mode="read-only", model="m")
                place = argv.index(words[0])
                self.assertEqual(argv[place:place + len(words)], words)
        self.assertEqual(self.argv("codex", keep=True, resume="ID", extra=("--add-dir", "/"), sandbox_mode="full")[-5:],
                         ["--add-dir", "/", "resume", "ID", "-"])

    def test_lines_in_pieces_are_joined(self):
        for size in (1, 3, 100):
            lines = clinvk.Lines()
            data = b"one\n\n  \ntwo\r\nthree"
            found = [line for start in range(0, len(data), size) for line in lines.feed(data[start:start + size])]
            self.assertEqual(found + list(lines.rest()), [b"one", b"two\r", b"three"])

    def test_lines_too_long_are_cut_and_others_are_whole(self):
        longest, chunk = clinvk.MAX_LINE_BYTES, clinvk.CHUNK
        clinvk.MAX_LINE_BYTES, clinvk.CHUNK = 10, 9
        try:
            lines = clinvk.Lines()
            found = [line for piece in (b"x" * 8, b"y" * 8, b"y" * 8 + b"\nok\n" + b"z" * 11 + b"\n\n", b"end") for line in lines.feed(piece)]
            self.assertEqual(found + list(lines.rest()), [b"xxxxxxxxy", b"ok", b"z" * 9, b"end"])
            self.assertEqual(lines.number, 5)
        finally:
            clinvk.MAX_LINE_BYTES, clinvk.CHUNK = longest, chunk


if __name__ == "__main__":
    unittest.main()
