"""Section 8, Processes: a process is watched and stopped by its limits, gets its prompt when it has read its files, and leaves
nothing running."""
import json
import os
import shutil
import sys
import tempfile
import textwrap
import threading
import unittest
from unittest import mock

import support
from support import clinvk, is_running, wait_until


class PolicyFiles(support.WorkerCase):
    """A policy and a system prompt: gemini would run without them."""

    def install(self, before="", after="", reading="/bin/cat \"$policy\" $GEMINI_SYSTEM_MD ${GEMINI_CLI_HOME:+$GEMINI_CLI_HOME/.gemini/settings.json} > rules"):
        """Install a gemini that does `before`, reads its files, then its prompt, then does `after` and answers."""
        support.write_program(os.path.join(self.bin, "gemini"), ("""#!/bin/sh
            while [ $# -gt 0 ]; do [ "$1" = --policy ] && policy=$2; shift; done
            cd '%s'
            %s
            %s
            /bin/cat > prompt
            %s
            echo '{"type":"message","role":"assistant","content":"done"}'
            echo '{"type":"result","status":"success"}'
            """ % (self.directory, before, reading, after)).encode())

    def ask(self, prompt="审查 all", **fields):
        return self.run_it(prompt, "gemini", **dict(dict(sandbox_mode="read-only", timeout=60.0), **fields))

    def prompt(self):
        with open(self.path("prompt"), encoding="utf-8") as file:
            return file.read()

    def assert_unkept(self, result, *words):
        self.check(result, status="failed", error_kind="permission")
        self.assertNotEqual(result.exit_code, 0)
        for word in ("the sandbox could not be kept: ",) + words:
            self.assertIn(word, result.error)

    def test_a_program_that_read_its_rules_gets_its_prompt_whole(self):
        self.install()
        for prompt in ("x", "审", "审查 all", "x" * 3000000 + "审", "\0\x01"):
            self.check(self.ask(prompt, system_prompt="be brief"), status="ok", output="done", error="")
            self.assertEqual(self.prompt(), prompt)
            with open(self.path("rules")) as file:
                self.assertEqual(file.read(), clinvk._gemini_policy(False, "") + "be brief")

    def test_rules_that_are_lost_before_they_are_read_end_the_task_before_its_prompt(self):
        for before, words in (
                ('/bin/rm "$policy"', ("/policy.toml: No such file",)), (': > "$policy"', ("/policy.toml was changed",)),
                ('echo "[[rule]]" > new; /bin/mv new "$policy"', ("/policy.toml was changed",)),
                ('/bin/cp "$policy" new; /bin/mv new "$policy"', ("/policy.toml was changed",)),
                ('/bin/rm -r "${policy%/*}"', ("/policy.toml: No such file",)), ('/bin/rm "$GEMINI_SYSTEM_MD"', ("/system.md: No such file",))):
            with self.subTest(before):
                self.install(before + "; touch tampered")
                for fields in ({}, {"sandbox_mode": "workspace", "approval_mode": "auto"}, {"sandbox_mode": "default", "answer_only": True}):
                    result = self.ask(system_prompt="s", **fields)
                    self.assert_unkept(result, *words)
                    self.assertEqual((self.prompt(), result.output), ("审", ""))
                    os.unlink(self.path("tampered"))

    def test_rules_that_are_not_read_end_the_task_before_its_prompt(self):
        self.file("probe", b"x")
        if not clinvk.WatchedFile(self.path("probe"))._notes_readers:
            self.skipTest("the file system does not note who reads")
        self.addCleanup(setattr, clinvk, "FILES_SECONDS", clinvk.FILES_SECONDS)
        clinvk.FILES_SECONDS = 0.1
        self.install(reading="")  # as one that is started where TMPDIR is another directory
        self.assert_unkept(self.ask(), "/policy.toml was not read")
        self.assertEqual(self.prompt(), "审")

    @support.only_in_full_runs
    def test_rules_that_are_lost_later_or_rejected_fail_the_task(self):
        for after, word in (('/bin/rm "$policy"', "No such file"), (': > "$policy"', "was changed"),
                            ("printf '[USER] Policy file error in policy.toml:\\n  TOML parsing failed\\n' >&2", "gemini rejected its policy")):
            with self.subTest(after):
                self.install(after=after)
                self.assert_unkept(self.ask(), word)
                self.install(after=after + "; /usr/bin/head -c 300000 /dev/zero | /usr/bin/tr '\\0' '\\n' >&2; exit 1")
                self.assert_unkept(self.ask(), word)
        self.install(after="echo '[USER] Policy file error in policy.toml:' >&2")  # of the user's own
        self.check(self.ask(sandbox_mode="full", system_prompt="s"), status="ok")

    def test_a_program_that_does_not_wait_for_its_prompt_fails(self):
        self.install(reading="exec < /dev/null")
        self.assert_unkept(self.ask(), "did not wait for its prompt")

    def test_a_program_that_fails_before_it_reads_its_rules_says_why(self):
        self.install(before="echo 'error: no such option' >&2; exit 1")
        self.check(self.ask(), status="failed", exit_code=1, error="error: no such option", error_kind="backend")

    def test_a_system_prompt_that_is_lost_fails_the_task_in_every_mode(self):
        self.install(before='echo > "$GEMINI_SYSTEM_MD"')
        self.check(self.ask(sandbox_mode="default", system_prompt="s"), status="failed", error_kind="permission")
        self.assertEqual(self.prompt(), "审")

    def test_a_timeout_while_the_prompt_is_held_back_is_a_timeout(self):
        self.install(before="exec /bin/sleep 300")
        self.check(self.ask(timeout=0.3), status="timeout")

    def test_a_name_that_does_not_reach_the_program_starts_nothing(self):
        self.install(before="touch started")
        os.mkdir(self.path("a,b"))
        self.enter_environment(TMPDIR=self.path("a,b"))
        self.assert_unkept(self.ask(), "comma")
        self.check(self.ask(sandbox_mode="full"), status="ok")
        os.unlink(self.path("started"))
        self.enter_environment(TMPDIR=self.tmp)
        os.mkdir(os.fsencode(self.directory) + b"/bad\xff")
        self.assert_unkept(self.ask(workdir=self.path("bad\udcff")), "not valid UTF-8")
        self.assertFalse(os.path.exists(self.path("started")))


class Stopping(support.WorkerCase):
    def test_a_backend_that_nobody_could_stop_in_time_does_not_go_on(self):
        # a stack of that size cannot be had, and so no thread
        body = """
            import threading
            threading.stack_size(1 << 46)
            result = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "sleep 300", timeout=60.0)))
            print(result.status, result.exit_code, result.error_kind, result.error.splitlines()[-1])
            """
        done = self.run_program([sys.executable, "-c", "import os, sys\nsys.path.insert(0, %r)\nimport clinvk\n" % support.MODULES + textwrap.dedent(body)])
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertRegex(done.stdout.decode(), "^failed 1 backend .*can't start new thread")
        self.assertEqual(support.processes_with(self.mark), [])

    def test_a_task_that_takes_too_long_is_stopped_though_it_ignores_what_it_is_asked(self):
        state = self.state(grace=0.2)
        self.timeouts_come_after(self.path("ids"))
        result = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "ignore TERM INT HUP;say half;ids %s;sleep 300" % self.path("ids"), timeout=2.0)), state)
        self.check(result, status="timeout", exit_code=124, error="timed out after 2s", error_kind="timeout", output="half\n", attempts=1)
        self.assertGreaterEqual(result.duration_seconds, 0.2)
        self.assert_gone(self.pid_in(self.path("ids")))
        self.leave(state)

    def test_a_task_that_ends_in_time_is_not_touched(self):
        for timeout in (60.0, 1e9):
            self.check(self.run_it("sleep 0.05;say x", timeout=timeout), status="ok", output="x\n")
        self.assertEqual([thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and not thread.finished.is_set()], [])

    def test_a_stopped_task_has_timed_out_whatever_its_exit_code(self):
        expected = {"echo": b"TERM\n", "claude": b"TERM\n", "codex": b"INT\n", "gemini": b"TERM\n"}
        running = {}
        self.timeouts_come_after(*(self.path("ready-" + backend) for backend in expected))
        for backend in expected:
            path = self.path("trapped-" + backend)
            prompt = "trap TERM 0 %s;trap INT 0 %s;say x;touch %s;sleep 300" % (path, path, self.path("ready-" + backend))
            state = self.state(grace=support.PATIENCE)
            running[backend] = state, self.in_background(clinvk.Job(0, clinvk.Task(backend, prompt, timeout=3.0)), state)
        for backend, (state, result) in running.items():
            self.check(result(), status="timeout", exit_code=124, error="timed out after 3s", retry_after_seconds=None)
            self.assertEqual(self.wait_for_file(self.path("trapped-" + backend)), expected[backend])
            self.leave(state)

    def cancel_when_there(self, prompt, backend="echo", grace=support.PATIENCE):
        """Cancels the task once its prompt has made a file.  Its result, and the state."""
        state = self.state(grace=grace)
        there = self.path("there-" + backend)
        result = self.in_background(clinvk.Job(0, clinvk.Task(backend, prompt + ";ids %s;sleep 300" % there)), state)
        self.wait_for_file(there)
        state.cancel()
        return result(), state

    def test_a_task_that_is_canceled_is_asked_by_the_signal_of_its_program(self):
        for backend, signal_name in (("echo", "TERM"), ("claude", "TERM"), ("codex", "INT"), ("gemini", "TERM")):
            with self.subTest(backend):
                path = self.path("trapped-" + backend)
                result, state = self.cancel_when_there("say half;trap TERM 0 %s;trap INT 0 %s" % (path, path), backend)
                self.check(result, status="canceled", exit_code=-1, error="canceled while it ran", error_kind="canceled", attempts=1)
                self.assertEqual(self.wait_for_file(path), signal_name.encode() + b"\n")
                self.leave(state)

    def test_what_was_said_before_is_kept(self):
        result, state = self.cancel_when_there("say half")
        self.check(result, status="canceled", output="half\n")
        self.leave(state)

    def test_a_canceled_task_that_does_not_heed_is_killed_after_the_grace(self):
        result, state = self.cancel_when_there("ignore TERM INT HUP", grace=0.2)
        self.check(result, status="canceled", exit_code=-1)
        self.leave(state)

    def test_a_task_that_stands_still_is_stopped_too(self):
        state = self.state(grace=support.PATIENCE)
        result = self.in_background(clinvk.Job(0, clinvk.Task("echo", "ids %s;die STOP" % self.path("ids"))), state)
        pid = self.pid_in(self.path("ids"))

        def stopped():
            with open("/proc/%d/stat" % pid, "rb") as file:
                return file.read().rpartition(b")")[2].split()[0] == b"T"

        if support.LINUX:
            wait_until(stopped, "the backend stands still")
        state.cancel()
        self.check(result(), status="canceled")
        self.assert_gone(pid)
        self.leave(state)

    def test_nothing_starts_at_a_state_that_was_canceled(self):
        state = self.state()
        state.cancel()
        path = self.path("started")
        self.check(clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "touch " + path)), state), status="canceled", exit_code=-1, error="canceled before it started",
                   error_kind="canceled", attempts=0)
        self.assertFalse(os.path.exists(path))
        self.leave(state)

    def test_who_finds_the_worker_dead_can_know_what_it_held(self):
        notes = []
        state = self.state(note=lambda index, group: notes.append((index, group)))
        ids = clinvk.run_job(clinvk.Job(5, clinvk.Task("echo", "ids")), state).output.split()
        self.assertEqual(notes, [(5, int(ids[1])), (5, 0)])
        self.leave(state)


class Watching(support.WorkerCase):
    """What is seen of a process while it runs: idle, endless, or done and still there."""

    CODEX = b'{"type":"turn.completed","usage":{}}\n'

    def setUp(self):
        super().setUp()
        for name, value in (("WATCH_SECONDS", 0.02), ("LINGER_SECONDS", 0.1)):
            patch = mock.patch.object(clinvk, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def verdicts(self, looks, is_over=None, **limits):
        """The verdict of each look, which is (seconds, text that came on stdout since the last one, text on stderr)."""
        noted = []
        state = self.state(note_output=lambda *facts: noted.append(facts))
        with mock.patch.object(clinvk.time, "monotonic", lambda: 1000.0), tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            execution = clinvk.Execution(("x",), {}, (0, out.fileno(), errors.fileno()), is_over=is_over, **limits)
            process = clinvk._Process(0, execution, state)
            found = []
            for seconds, stdout, stderr in looks:
                os.write(out.fileno(), stdout)
                os.write(errors.fileno(), stderr)
                found.append(process._exceeded(1000.0 + seconds))
        self.leave(state)
        return found, noted

    def test_process_is_stopped_where_no_thread_can_be_started(self):
        with mock.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")):
            state = self.state()
            process = clinvk._Process(0, clinvk.Execution(("x",), {}, (0, 1, 2)), state)
            with mock.patch.object(process, "_exceeded", lambda now: "stalled"), mock.patch.object(process, "end_group") as end:
                process.look()
                process.look()
            self.leave(state)
        self.assertEqual((process.verdict, end.call_count), ("stalled", 1))

    def test_process_is_stalled_only_after_so_long_without_a_byte_on_either_stream(self):
        with mock.patch.object(clinvk, "WATCH_SECONDS", 1.0):
            for looks, expected in (
                    ([(1, b"", b""), (2, b"", b""), (3, b"", b"")], ["", "", "stalled"]),
                    ([(1, b"", b""), (2, b"", b"e"), (3, b"", b""), (4, b"", b""), (5, b"", b"")], ["", "", "", "", "stalled"]),
                    ([(2, b"o", b""), (4, b"o", b""), (6, b"", b"e"), (8, b"o", b""), (10, b"", b""), (12, b"", b"")], [""] * 5 + ["stalled"]),
                    ([(1, b"", b""), (3600, b"", b""), (3601, b"", b"")], ["", "stalled", "stalled"]),  # as if 2 s had passed
                    ([(1, b"", b""), (3600, b"o", b""), (3601, b"", b"")], ["", "", ""])):
                with self.subTest(looks):
                    self.assertEqual(self.verdicts(looks, idle_timeout=3.0)[0], expected)
            self.assertEqual(self.verdicts([(2, b"", b""), (4, b"", b"")])[0], ["", ""])

    def test_suspension_of_the_worker_or_the_machine_is_not_idleness(self):
        with mock.patch.object(clinvk, "WATCH_SECONDS", 1.0):
            self.assertEqual(self.verdicts([(1, b"", b""), (100000, b"", b""), (200000, b"", b"")], idle_timeout=60.0)[0], ["", "", ""])

    def test_process_that_printed_its_last_event_is_over_only_when_it_lingers(self):
        is_over = clinvk.BACKENDS["codex"].is_over
        with mock.patch.object(clinvk, "WATCH_SECONDS", 5.0), mock.patch.object(clinvk, "LINGER_SECONDS", 10.0):
            for looks, limits, expected in (
                    ([(5, self.CODEX, b""), (10, b"", b""), (15, b"", b""), (20, b"", b"")], {}, ["", "", "over", ""]),
                    ([(5, self.CODEX, b""), (10, b"", b"e"), (15, b"", b"e")], {}, ["", "", "over"]),
                    ([(5, self.CODEX, b""), (10, b"noise\n", b""), (15, b"", b""), (20, b"", b"")], {}, ["", "", "", "over"]),
                    ([(5, self.CODEX, b""), (10, b"{}\n", b""), (15, b"", b""), (20, b"", b"")], {}, [""] * 4),
                    ([(5, self.CODEX, b""), (10, b"", b"")], {"idle_timeout": 5.0}, ["", "over"]),
                    ([(5, b"{}\n", b""), (10, b"", b"")], {"idle_timeout": 5.0}, ["", "stalled"])):
                with self.subTest(looks):
                    self.assertEqual(self.verdicts(looks, is_over, **limits)[0], expected)

    def test_own_command_that_lingers_after_its_last_event_is_ended_by_its_signal(self):
        script = """trap 'echo > "$0"; exit 3' INT; echo '{"t": "hi", "part": {"end": true}}'; while :; do sleep 0.05; done"""
        got = os.path.join(self.directory, "got")
        own = clinvk.Definition(("sh", "-c", script, got), "jsonl", ("t",), done=(("part", "end"), "true"), stop_signal="SIGINT")
        result = clinvk.run_job(clinvk.Job(0, clinvk.Task("own", "x"), definition=own))
        self.assertEqual((result.status, result.output, result.exit_code), ("ok", "hi", 0))
        self.assertEqual(result.warnings, (clinvk.OVERSTAYED % ("own", "0.1s"),))
        self.assertTrue(os.path.exists(got), "it got another signal")

    def test_process_that_prints_too_much_has_that_verdict(self):
        self.assertEqual(self.verdicts([(1, b"xxx", b"eeeeeeeeeee"), (2, b"xx", b""), (3, b"x", b"")], max_output=5)[0], ["", "", "max_output"])

    def test_size_and_time_of_the_last_output_are_noted(self):
        with mock.patch.object(clinvk, "WATCH_SECONDS", 1.0):
            self.assertEqual(self.verdicts([(1, b"", b""), (2, b"abc", b"d"), (3, b"", b""), (5, b"", b"")])[1],
                             [(0, 1.0, "", 0), (4, 0.0, "", 0), (4, 1.0, "", 0), (4, 3.0, "", 0)])

    @staticmethod
    def saying(text, key="", tokens=0):
        message = {"id": key, "content": [{"type": "text", "text": text}], "usage": {"input_tokens": tokens}}
        return json.dumps({"type": "assistant", "message": message}).encode() + b"\n"

    def activity(self, *pieces):
        """What is noted at the looks after these pieces of claude's stdout: (action, tokens)."""
        noted = self.verdicts([(1, piece, b"") for piece in pieces], doing=clinvk.BACKENDS["claude"].doing)[1]
        return [facts[2:] for facts in noted]

    def test_last_action_and_the_tokens_of_all_messages_are_noted(self):
        say = self.saying
        self.assertEqual(self.activity(say("one", "a", 5) + say("two", "a", 7), b"", b"noise\n\n" + say("", "b", 10), say("three", "a", 7)),
                         [("two", 7), ("two", 7), ("two", 17), ("three", 17)])

    def test_line_is_read_when_it_is_whole(self):
        line = self.saying("审查", "a", 5)
        self.assertEqual(self.activity(*(line[start:start + 40] for start in range(0, len(line), 40)))[-2:], [("", 0), ("审查", 5)])

    def test_line_that_is_too_long_and_what_came_before_it_are_left_out(self):
        huge = b"x" * clinvk.LONG_LINE
        self.assertEqual(self.activity(self.saying("before", "a", 1), huge, huge + self.saying("in it"), self.saying("after")),
                         [("before", 1), ("before", 1), ("before", 1), ("after", 1)])
        self.assertEqual(self.activity(self.saying("left out", "a", 1) + self.saying("x" * clinvk.LONG_LINE) + self.saying("last")), [("last", 0)])

    def test_action_is_one_safe_line_without_secrets_that_is_cut_to_columns(self):
        for text, shown in (("\n \n first\tline \nsecond", "first line"), ("\x1b[31mred\x07\u202e", "^[[31mred^G<U+202E>"), ("\ud800x", "<U+D800>x"),
                            ("x" * 61, "x" * 57 + "..."), ("查" * 31, "查" * 28 + "...")):
            self.assertEqual(self.activity(self.saying(text)), [(shown, 0)])
        os.environ["FAKE_API_KEY"] = "sk-very-secret-0123456789"
        clinvk._secrets.cache_clear()
        self.addCleanup(clinvk._secrets.cache_clear)
        self.assertEqual(self.activity(self.saying("x" * 30 + " sk-very-secret-0123456789")), [("x" * 30 + " [FAKE_API_KEY]", 0)])
        self.assertEqual(self.activity(self.saying("x" * 50 + " sk-very-secret-0123456789")), [("x" * 50 + " [FAKE_...", 0)])

    def test_programs_are_over_after_the_event_that_they_end_with(self):
        started = b'{"type":"system","subtype":"background_tasks_changed","tasks":[{"task_id":"a"}]}\n'
        ended = started.replace(b'[{"task_id":"a"}]', b"[]")
        claude, codex, gemini = (support.data_file(name + "-ok.out") for name in ("claude", "codex", "gemini"))
        quoting = json.dumps({"type": "user", "text": started.decode()}).encode() + b"\n"
        for backend, text, expected in (
                ("claude", claude, True), ("claude", support.data_file("claude-two-results.out"), True), ("claude", support.data_file("claude-401.out"), True),
                ("claude", claude[:-20], False), ("claude", claude.rpartition(b"{")[0], False), ("claude", b"", False),
                ("claude", started + claude, False), ("claude", started + claude + ended, False), ("claude", started + ended + claude, True),
                ("claude", quoting + claude, True), ("claude", claude + b'{"type":"assistant"}\n', False),
                ("codex", codex, True), ("codex", support.data_file("codex-500.out"), True), ("codex", codex.rpartition(b'{"type":"turn')[0], False),
                ("gemini", gemini, True), ("gemini", support.data_file("gemini-429.out"), True), ("gemini", support.data_file("gemini-terminated.out"), False),
                ("claude", claude + b"hook: session end\n[1]\n" + b'{"type":"rate_limit_event"}\n{"type":"system","subtype":"hook_response"}\n', True),
                ("claude", claude + b'{"type":"system","subtype":"init"}\n', False), ("claude", claude + b'{"type":"user"}\nnoise\n', False),
                ("claude", claude + b'noise\n{"type":"assi', False), ("gemini", gemini + b"Flushing telemetry...\n", True),
                ("codex", codex + b'\n\n{"type":"error","message":"x"}\n', True), ("codex", codex + b'{"type":"turn.started"}\n{"type":"error"}\n', False),
                ("codex", codex + b"x" * clinvk.LONG_LINE, False), ("codex", b"x" * 3000000 + b"\n" + codex, True), ("codex", b'["turn.completed"]\n', False)):
            with self.subTest(backend=backend, text=text[-100:]), tempfile.TemporaryFile() as file:
                file.write(text)
                file.flush()
                self.assertEqual(clinvk.BACKENDS[backend].is_over(file.fileno()), expected)
        self.assertIsNone(clinvk.BACKENDS["echo"].is_over)
        self.assertIsNone(clinvk.custom_backend("own", clinvk.Definition(("x",))).is_over)

    def test_task_that_prints_nothing_for_so_long_is_stopped(self):
        self.check(self.run_it("say half;sleep 300", idle_timeout=0.3), status="timeout", exit_code=124, error="stalled: no output for 0.3s",
                   error_kind="stalled", output="half\n", retry_after_seconds=None)
        error = '{"type":"error","message":"Reconnecting... waiting for network"}'
        self.check(self.run_it("raw %s\\n;sleep 300" % error, "codex", idle_timeout=0.3), status="timeout", error_kind="stalled",
                   error="stalled: no output for 0.3s (it was waiting: Reconnecting... waiting for network)")

    def test_task_that_stalls_is_killed_where_it_ignores_what_it_is_asked(self):
        state = self.state(grace=0.2)
        over = threading.Event()
        thread = threading.Thread(target=lambda: self.wait_for_file(self.path("ids")) and state.watch(over.wait))
        thread.start()
        result = clinvk.run_job(support.job(0, "echo", "ignore TERM;ids %s;sleep 300" % self.path("ids"), idle_timeout=0.1), state)
        over.set()
        thread.join()
        self.check(result, status="timeout", error_kind="stalled")
        self.assert_gone(self.pid_in(self.path("ids")))
        self.leave(state)

    def test_task_that_prints_too_much_fails_with_what_it_said_until_then(self):
        for prompt in ("flood 300000;sleep 300", "flood 300000"):
            self.check(self.run_it(prompt, max_output=5000), status="failed", error_kind="max_output", output="x" * 5000,
                       error="it printed more than 4.9 KB; max_output (--max-output) allows more")
        self.check(self.run_it("flood 5000", max_output=5000), status="ok", output="x" * 5000)
        self.check(self.run_it("flood 300000", "codex", max_output=100), status="failed", exit_code=1, error_kind="max_output",
                   session_id="5e551000-0000-7000-8000-000000000002", output="", warnings=())

    def test_program_that_lingers_after_its_last_event_is_judged_by_the_event(self):
        texts = {name: support.data_file(name + ".out").decode().replace("\\", "\\\\").replace("\n", "\\n").replace(";", "\\x3b")
                 for name in ("claude-ok", "codex-ok", "gemini-ok", "codex-429")}
        for name, text in texts.items():
            backend = name.partition("-")[0]
            with self.subTest(name):
                result = self.run_it("trap TERM 7;trap INT 7;raw %s;sleep 300" % text, backend)
                if name == "codex-429":
                    self.check(result, status="failed", exit_code=1, error_kind="rate_limit")
                else:
                    self.check(result, status="ok", exit_code=0, error="")
                    self.assertTrue(result.output)
                self.assertEqual(result.warnings[:1], ("%s did not end by itself and was ended 0.1s after its last event" % backend,))


class Leftovers(support.WorkerCase):
    HEAD = """
import os, sys, threading, time
sys.path.insert(0, %r)
import clinvk

class Timer(threading.Timer):  # its time comes when a file is there
    def run(self):
        while not os.path.exists(self.path):
            time.sleep(0.01)
        self.function(*self.args)

threading.Timer = Timer
""" % support.MODULES

    def test_what_stays_in_the_group_ends_with_the_backend(self):
        for word in ("fork-child", "keep-group-pipe"):
            state = self.state()
            path = self.path(word)
            self.check(clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "say x;%s %s %s" % (word, path, self.path("go")))), state), status="ok", output="x\n")
            pid = self.pid_in(path)
            wait_until(lambda pid=pid: not is_running(pid), "the child has ended")
            self.leave(state)

    @support.only_linux
    def test_what_left_the_group_ends_with_the_run(self):
        for word in ("leave-group", "keep-pipe", "fork-child"):
            for end in ("say x", "exit 1", "die KILL"):
                path = self.path(word + end.split()[0])
                self.run_it("%s %s %s;%s" % (word, path, self.path("go"), end))
                self.assert_gone(self.pid_in(path))

    @support.only_linux
    def test_what_left_the_group_of_a_stopped_task_ends_with_the_task(self):
        state = self.state(grace=0.2)
        path = self.path("pid")
        self.timeouts_come_after(path)
        self.check(clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "leave-group %s;sleep 300" % path, timeout=2.0)), state), status="timeout")
        self.assert_gone(self.pid_in(path))
        self.leave(state)

    @support.only_linux
    def test_without_adoption_what_left_the_group_of_a_longer_task_ends_with_the_task_and_is_named(self):
        state = self.state()
        path = self.path("pid")
        with mock.patch.object(clinvk, "SWEEP_AFTER_SECONDS", 0.1):
            result = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "leave-group %s;sleep 0.1;say x" % path)), state)
        self.check(result, status="ok", warnings=("echo left processes running, which were killed: cat",))
        self.assert_gone(self.pid_in(path))
        self.leave(state)

    @support.only_linux
    def test_a_sweep_after_a_task_spares_the_other_tasks_of_the_run(self):
        state, other = self.state(grace=0.2), self.state()
        other.run_id = state.run_id
        running = self.in_background(clinvk.Job(1, clinvk.Task("echo", "leave-group %s;wait-for %s;say spared" % (self.path("pid"), self.path("go")))), other)
        pid = self.pid_in(self.path("pid"))
        self.check(clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "sleep 300", timeout=0.05)), state), status="timeout")
        self.assertTrue(is_running(pid))
        self.file("go", b"")
        self.check(running(), status="ok", output="spared\n")
        self.leave(state)
        self.leave(other)
        self.assert_gone(pid)

    @support.only_linux
    def test_a_worker_that_adopts_orphans_ends_even_those_without_a_mark(self):
        body = """
            Timer.path = sys.argv[1] + "/keep-pipe-3"
            adopts = clinvk.adopt_orphans()
            state = clinvk.WorkerState("run-of-a-test", sys.argv[1], adopts=adopts)
            for index, end in enumerate(("say x", "exit 1", "die KILL", "sleep 300")):
                words = "".join("%s %s/%s-%d;" % (word, sys.argv[1], word, index) for word in ("scrub", "leave-group", "fork-child", "keep-pipe"))
                result = clinvk.run_job(clinvk.Job(index, clinvk.Task("echo", words + end, timeout=3.0 if "sleep" in end else 0.0)), state)
                left = []
                for word in ("scrub", "leave-group", "fork-child", "keep-pipe"):
                    try:
                        os.kill(int(open("%s/%s-%d" % (sys.argv[1], word, index)).read()), 0)
                        left.append(word)
                    except ProcessLookupError:
                        pass
                print(adopts, result.status, left)
            """
        os.mkdir(self.path("d"))
        done = self.run_program([sys.executable, "-c", self.HEAD + textwrap.dedent(body), self.path("d")])
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual(done.stdout.decode().splitlines(), ["True ok []", "True failed []", "True failed []", "True timeout []"])

    @support.only_linux
    def test_a_result_names_what_outlived_its_task_and_was_killed(self):
        body = """
            state = clinvk.WorkerState("run-of-a-test", sys.argv[1], adopts=clinvk.adopt_orphans())
            gone = "while [ -d /proc/$p ] && ! grep -q State:.Z /proc/$p/status; do :; done"
            for argv in (("true",), ("sh", "-c", "sleep 300 & setsid sleep 300 & exit 3"), ("sh", "-c", "true & wait; echo x"),
                         ("sh", "-c", "(true & echo $! >pid); read p <pid; " + gone), ("sh", "-c", "(sleep 300 & echo $! >pid); read p <pid; kill -9 $p; " + gone),
                         ("sh", "-c", "for i in 1 2 3 4 5 6 7; do sleep 300 & done")):
                task = clinvk.Job(0, clinvk.Task("own", "x", workdir=sys.argv[1]), definition=clinvk.Definition(argv))
                result = clinvk.run_job(task, state)
                print(result.exit_code, list(result.warnings))
            Timer.path = sys.argv[1] + "/left"
            result = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "leave-group %s/left;sleep 300" % sys.argv[1], timeout=1.0)), state)
            print(result.exit_code, list(result.warnings))
            state.drop_files()
            """
        os.mkdir(self.path("d"))
        done = self.run_program([sys.executable, "-c", self.HEAD + textwrap.dedent(body), self.path("d")])
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        lines = [line.replace("setsid", "sleep").replace("sh,", "sleep,").replace("sh'", "sleep'").replace("sh and", "sleep and")
                 for line in done.stdout.decode().splitlines()]  # one that was not given the time to become sleep
        left = "own left processes running, which were killed: %s"
        self.assertEqual(lines, ["1 []", "3 %s" % [left % "sleep, sleep"], "0 []", "1 []", "1 []", "1 %s" % [left % "sleep, sleep, sleep, sleep, sleep and 2 more"],
                                 "124 []"])

    @support.only_linux
    def test_a_helper_that_a_backend_leaves_by_itself_is_no_warning(self):
        ends = {"codex": '{"type":"item.completed","item":{"type":"agent_message","text":"x"}}\n{"type":"turn.completed"}',
                "claude": '{"type":"result","subtype":"success","is_error":false,"result":"x"}'}
        for name in ("git", "git-remote-http", "node"):
            os.symlink(shutil.which("sleep"), self.path(name))
        for backend, names, told in (("codex", ["git", "git-remote-http"], None), ("codex", ["git", "node"], "node"), ("claude", ["git"], "git"), ("codex", [], None)):
            with self.subTest(backend=backend, names=names):
                left = "".join("setsid '%s' 300 >/dev/null 2>&1 &\nuntil grep -q %s /proc/$!/comm; do :; done\n" % (self.path(name), name) for name in names)
                support.write_program(os.path.join(self.bin, backend), ("#!/bin/sh\n/bin/cat >/dev/null\n%s/bin/cat <<'END'\n%s\nEND\n" % (left, ends[backend])).encode())
                warnings = ("%s left processes running, which were killed: %s" % (backend, told),) if told else ()
                with mock.patch.object(clinvk, "SWEEP_AFTER_SECONDS", 0):
                    self.check(self.run_it("x", backend), status="ok", output="x", warnings=warnings)

    def test_the_temporary_directory_of_a_task_is_removed_with_all_in_it(self):
        for prompt in ("write-tmp", "remove-tmp", "write-tmp;exit 1", "write-tmp;die KILL"):
            state = self.state()
            path = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "env TMPDIR;" + prompt)), state).output.strip()
            self.assertEqual(os.path.exists(path) and os.listdir(path), False if "write" in prompt else (os.path.exists(path) and []), prompt)
            self.check(clinvk.run_job(clinvk.Job(1, clinvk.Task("echo", "list-tmp")), state), output="700 []\n")
            self.leave(state)


class ToldToEnd(support.WorkerCase):
    def test_a_backend_that_ends_after_a_sigterm_to_its_worker_is_canceled_if_the_run_is(self):
        for canceled, status in ((True, "canceled"), (False, "ok")):
            patch = mock.patch.object(clinvk, "HANDOVER_SECONDS", 0 if status == "ok" else support.PATIENCE)
            patch.start()
            self.addCleanup(patch.stop)
            state = self.state()
            there, go = self.path("there-" + status), self.path("go-" + status)
            result = self.in_background(clinvk.Job(0, clinvk.Task("echo", "say x;touch %s;wait-for %s" % (there, go))), state)
            self.wait_for_file(there)
            state.told_to_end, state.canceled = True, canceled
            self.file("go-" + status, b"")
            self.check(result(), status=status, output="x\n")
            self.leave(state)


if __name__ == "__main__":
    unittest.main()
