"""Section 6, Worker: run_task, in this process, against the fake program: each behaviour has its Result, whatever a backend leaves
running or lying about is cleared away, nothing of one task reaches the next."""
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import unittest
from unittest import mock

import support
from support import clinvk, is_running, results, tasks, wait_until


class WorkerCase(support.Case):
    def setUp(self):
        super().setUp()
        self.enter_environment()

    def run_it(self, prompt, backend="echo", **fields):
        return clinvk.run_job(support.job(0, backend, prompt, **fields))

    def check(self, result, **expected):
        for field, value in expected.items():
            self.assertEqual(getattr(result, field), value, (field, result))

    def state(self, grace=5.0, **options):
        """A state of the test's own; what its tasks left running is ended with the test."""
        directory = clinvk.make_private_directory()
        state = clinvk.WorkerState(clinvk.new_run_id(), directory, grace=grace, **options)
        self.addCleanup(clinvk.remove_tree, directory)  # for a test that fails before it leaves the state
        return state

    def leave(self, state):
        state.drop_files()
        clinvk.sweep(clinvk.RUN_MARK % state.run_id)
        clinvk.remove_tree(state.directory)

    def in_background(self, task, state):
        """Runs a task in a thread.  What it gives when called is the Result."""
        results = []
        thread = threading.Thread(target=lambda: results.append(clinvk.run_job(task, state)))
        thread.start()

        def result():
            thread.join(support.PATIENCE)
            self.assertFalse(thread.is_alive(), "the task does not end")
            return results[0]

        return result


class Behaviours(WorkerCase):
    def test_each_end_of_a_plain_command_has_its_result(self):
        for prompt, expected in (
                ("say hello", ("ok", 0, "hello\n", "", "")), ("say hello;stderr warning: 429", ("ok", 0, "hello\n", "", "")), ("raw no newline", ("ok", 0, "no newline", "", "")),
                ("say half;exit 3", ("failed", 3, "half\n", "exit status 3", "backend")), ("stderr HTTP 429: slow down;exit 1", ("failed", 1, "", "HTTP 429: slow down", "rate_limit")),
                ("stderr first;stderr ;stderr last one;exit 1", ("failed", 1, "", "last one", "backend")), ("say x;exit 126", ("failed", 126, "x\n", "exit status 126", "backend")),
                ("say x;exit 127", ("failed", 127, "x\n", "exit status 127", "backend")), ("say x;exit 143", ("failed", 143, "x\n", "exit status 143", "backend")),
                ("say x;exit 255", ("failed", 255, "x\n", "exit status 255", "backend")), ("say half;die KILL", ("failed", 137, "half\n", "ended by signal 9 (SIGKILL)", "signal")),
                ("die 40", ("failed", 168, "", "ended by signal 40 (unknown)", "signal")), ("die SEGV", ("failed", 139, "", "ended by signal 11 (SIGSEGV)", "signal")), ("say x;die TERM", ("failed", 143, "x\n", "ended by signal 15 (SIGTERM)", "signal")),
                ("stderr only this", ("failed", 1, "", "echo ended well but gave no answer", "no_output")), ("raw \\n \\t\\n", ("failed", 1, "\n \t\n", "echo ended well but gave no answer", "no_output"))):
            with self.subTest(prompt):
                result = self.run_it(prompt)
                self.assertEqual((result.status, result.exit_code, result.output, result.error, result.error_kind), expected)
                self.check(result, attempts=1, index=0, backend="echo", retry_after_seconds=None, warnings=(), usage=None, cost_usd=None)

    def test_each_end_of_each_program_has_its_result(self):
        for backend in ("claude", "codex", "gemini"):
            for prompt, expected in (
                    ("say hello;say 审查", ("ok", 0, "hello\n审查", "", "")), ("say hello;stderr noise", ("ok", 0, "hello", "", "")), ("say", ("failed", 1, "", backend + " ended well but gave no answer", "no_output")),
                    ("fail Rate limit reached. Please try again in 2s.", ("failed", 1, "", "Rate limit reached. Please try again in 2s.", "rate_limit")),
                    ("exit 3", ("failed", 3, "", "fakeai failed", "backend")), ("die KILL", ("failed", 137, "", "ended by signal 9 (SIGKILL)", "signal")),
                    ("raw not what it prints\\n", ("failed", 1, "not what it prints\n", None, "backend")), ("stderr error: unknown option '-x';raw ;exit 1", ("failed", 1, "", "error: unknown option '-x'", "invalid"))):
                with self.subTest(backend=backend, prompt=prompt):
                    result = self.run_it(prompt, backend)
                    if backend == "codex" and prompt.startswith("raw not"):
                        expected = expected[:2] + ("",) + expected[3:]  # its lines that are no events are no answer
                    error = result.error if expected[3] is None else expected[3]
                    self.assertEqual((result.status, result.exit_code, result.output, result.error, result.error_kind), expected[:3] + (error, expected[4]))
                    self.assertEqual(result.retry_after_seconds, 2.0 if "2s" in prompt else None)

    def test_what_a_program_tells_of_itself_is_in_the_result(self):
        usage = {"input_tokens": 150, "cached_input_tokens": 20, "output_tokens": 7, "reasoning_output_tokens": 2, "total_tokens": 157}
        self.check(self.run_it("say x", "claude", model="asked"), usage=usage, cost_usd=0.25, num_turns=1, model="fake-model-1", session_id="5e551000-0000-4000-8000-000000000001")
        self.check(self.run_it("say x", "claude", verbose=True), output="x", cost_usd=0.25)
        self.check(self.run_it("say x", "codex", model="asked", max_turns=3), usage=usage, cost_usd=None, num_turns=None, model="asked",
                   session_id="5e551000-0000-7000-8000-000000000002", warnings=("codex has no max_turns; it was not applied",))
        self.check(self.run_it("say x", "gemini"), usage=usage, model="fake-model-3", session_id="5e551000-0000-4000-8000-000000000003")

    def test_bytes_of_every_kind_come_through(self):
        for prompt, data in (("split-utf8", "审查\n".encode()), ("invalid-utf8", b"\xff\xfe\x80 and \xc3( and \xed\xa0\x80\n"), ("nul", b"a\0b\n"), ("rest\n\x1b[31m;\n\n", b"\x1b[31m;\n\n")):
            self.assertEqual(clinvk.to_bytes(self.run_it(prompt).output), data)

    def test_the_prompt_goes_in_by_stdin_as_it_is(self):
        for text in ("", " \n", "-x --help", "$(id) `id` \\", "审查 \U0001f600", "\0\x01\xff", "\udcff\udced\udca0\udc80", "x" * 200000, "\ufeff"):
            self.assertEqual(self.run_it("rest\nanswer: " + text).output, "answer: " + text)
        self.assertEqual(self.run_it("prompt-size\nargv\n" + " " * 5000000).output, "5000017\n[]\n")

    def test_an_answer_of_any_size_is_whole_whichever_way_it_travels(self):
        for size in (clinvk.INLINE_BYTES - 1, clinvk.INLINE_BYTES, clinvk.INLINE_BYTES + 1, 5000000):
            self.check(self.run_it("flood %d" % size), status="ok", output="x" * size)
        for backend in ("claude", "codex", "gemini"):
            for size in (clinvk.INLINE_BYTES, clinvk.INLINE_BYTES + 1, 1000000):
                self.check(self.run_it("flood %d y" % size, backend), status="ok", output="y" * size)

    def test_a_large_answer_travels_in_a_file_that_ends_with_it(self):
        result = self.run_it("flood 100000")
        self.assertIsInstance(result.answer, clinvk.TextFile)
        self.assertEqual(os.listdir(self.tmp), [])
        self.assertEqual(result.output, result.output)

    def test_noise_on_stderr_of_any_size_blocks_nothing(self):
        self.check(self.run_it("stderr-flood 5000000;say done"), status="ok", output="done\n")
        result = self.run_it("stderr-flood 5000000;stderr ;stderr ;stderr the reason;exit 1")
        self.check(result, status="failed", error="the reason")
        self.check(self.run_it("flood 300000;stderr-flood 300000;flood 300000 z"), output="x" * 300000 + "z" * 300000)

    def test_a_bad_task_and_a_dry_run_start_nothing(self):
        path = self.path("started")
        self.check(self.run_it("touch " + path, dry_run=True), status="skipped", exit_code=0, output="env NO_COLOR=1 cat <<< 'touch %s'" % path, attempts=0, error="")
        self.assertFalse(os.path.exists(path))

    def test_whatever_goes_wrong_is_a_result(self):
        result = self.run_it("say x", "no such backend")
        self.check(result, status="failed", exit_code=1, error_kind="backend")
        self.assertIn("no such backend", result.error)

    def test_times_are_those_of_the_run(self):
        quick, slow = self.run_it("say x"), self.run_it("sleep 0.2;say x")
        self.assertGreaterEqual(slow.duration_seconds, 0.2)
        self.assertGreaterEqual(slow.start_time, quick.end_time)

    def test_the_task_is_in_its_result(self):
        for job in (clinvk.Job(0, clinvk.Task("echo", "say x", meta={"k": 1})), clinvk.Job(0, clinvk.Task("echo", "x", dry_run=True)), clinvk.Job(0, clinvk.Task("?", "x"))):
            self.assertIs(clinvk.run_job(job).task, job.task)
            state = self.state()
            result = clinvk.run_job(job, state)
            self.leave(state)
            self.assertIs(result.task, job.task)


class PolicyFiles(WorkerCase):
    """A policy and a system prompt: gemini would run without them."""

    def install(self, before="", after="", reading="/bin/cat \"$policy\" $GEMINI_SYSTEM_MD > rules"):
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
                for sandbox, approval in (("read-only", "default"), ("workspace", "auto")):
                    result = self.ask(sandbox_mode=sandbox, approval_mode=approval, system_prompt="s")
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


class Surroundings(WorkerCase):
    def test_a_backend_gets_the_environment_it_should(self):
        self.enter_environment(CLAUDECODE="1", CLAUDE_CODE_ENTRYPOINT="cli", CLAUDE_CODE_SESSION_ACCESS_TOKEN="secret", NO_COLOR=None, PWD="/as/it/was", OTHER="kept 审查")
        lines = clinvk.run_job(clinvk.Job(17, clinvk.Task("echo", "env CLAUDECODE;env CLAUDE_CODE_ENTRYPOINT;env CLAUDE_CODE_SESSION_ACCESS_TOKEN;env NO_COLOR;env OTHER;env PWD;"
                                            "env CLINVK_TASK;env CLINVK_RUN;env TMPDIR;list-tmp"))).output.splitlines()
        self.assertEqual(lines[:7], ["CLAUDECODE is not set", "CLAUDE_CODE_ENTRYPOINT is not set", "CLAUDE_CODE_SESSION_ACCESS_TOKEN is not set", "1", "kept 审查", "/as/it/was", "17"])
        self.assertTrue(lines[7].startswith("%d_" % os.getpid()), lines[7])
        self.assertTrue(lines[8].startswith(self.tmp + "/clinvk-"), lines[8])
        self.assertEqual(lines[9], "700 []")

    def test_two_runs_have_two_marks(self):
        self.assertNotEqual(self.run_it("env CLINVK_RUN").output, self.run_it("env CLINVK_RUN").output)

    def test_variables_of_the_backend_itself_reach_it(self):
        self.check(self.run_it("env GEMINI_CLI_NO_RELAUNCH", "gemini"), output="1")
        self.check(self.run_it("env CLAUDE_CODE_MAX_OUTPUT_TOKENS", "claude", max_tokens=777), output="777")
        self.check(self.run_it("env-file GEMINI_SYSTEM_MD", "gemini", system_prompt="be 'brief'\n审查"), output="be 'brief'\n审查")

    def test_a_backend_is_called_with_its_words(self):
        for backend in ("claude", "codex", "gemini"):
            task = clinvk.Job(0, clinvk.Task(backend, "argv", model="m x", extra=("--flag", "a\nb"), system_prompt="审"))
            self.assertEqual(json.loads(clinvk.run_job(task).output), list(clinvk.BACKENDS[backend].command(task).argv[1:]))

    def test_a_workdir_is_where_a_backend_runs_and_what_pwd_says(self):
        os.symlink(self.home, self.path("link"))
        for workdir, cwd, pwd in ((self.home, self.home, self.home), (self.path("link"), self.home, self.path("link")), (self.home + "/../home/.", self.home, self.home)):
            self.check(self.run_it("cwd;env PWD;list-tmp", workdir=workdir), output="%s\n%s\n700 []\n" % (cwd, pwd))
        former = os.getcwd()
        self.addCleanup(os.chdir, former)
        os.chdir(self.directory)
        self.check(self.run_it("cwd;env PWD", workdir="home"), output="%s\n%s\n" % (self.home, self.home))
        self.check(self.run_it("cwd"), output=self.directory + "\n")

    def test_a_backend_has_a_session_of_its_own_and_three_descriptors(self):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        clinvk.close_on_exec_inherited()  # as main does
        for workdir in ("", self.home):
            ids, fds = self.run_it("ids;fds", workdir=workdir).output.splitlines()
            self.assertEqual(len(set(ids.split())), 1)
            self.assertNotEqual(ids.split()[2], str(os.getsid(0)))
            self.assertEqual(fds, "0 1 2")


class LaunchFailures(WorkerCase):
    def check_failed(self, result, code, kind, error):
        self.check(result, status="failed", exit_code=code, error_kind=kind, output="", attempts=1)
        self.assertRegex(result.error, error)
        self.assertEqual(os.listdir(self.tmp), [])

    def both_ways(self):
        """Without a working directory and with one, a program is started in different ways."""
        return "", self.home

    def test_a_program_that_is_not_there(self):
        os.environ["PATH"] = self.home
        for backend in clinvk.BACKENDS:
            for workdir in self.both_ways():
                program = "cat" if backend == "echo" else backend
                self.check_failed(self.run_it("say x", backend, workdir=workdir), 127, "not_found", "^%s: not found: it is not installed, or not on the PATH; `clinvk doctor` shows what can be used$" % program)

    def test_a_program_that_is_not_there_in_a_working_directory_that_is_called_like_it(self):
        os.environ["PATH"] = self.home
        former = os.getcwd()
        self.addCleanup(os.chdir, former)
        os.chdir(self.directory)
        for name in ("c", "cat"):
            os.mkdir(name)
            self.check_failed(self.run_it("say x", workdir=name), 127, "not_found", "^cat: not found")

    def test_a_program_that_is_not_there_beside_a_directory_on_the_path_that_nobody_may_search(self):
        # root may search any, so not as root
        body = """
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            for workdir in ("", "/"):
                result = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "x", workdir=workdir)))
                print(result.exit_code, result.error_kind, result.error, flush=True)
            """
        closed = self.path("closed")
        os.mkdir(closed, 0)
        os.chmod(self.directory, 0o711)
        os.chmod(self.tmp, 0o777)
        done = self.run_program([sys.executable, "-c", "import os, sys\nsys.path.insert(0, %r)\nimport clinvk, errno, select, shutil, signal, "
                                 "subprocess, threading, traceback\n" % support.MODULES + textwrap.dedent(body)],
                                env={"PATH": closed + os.pathsep + self.home})
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual(done.stdout.decode().splitlines(), ["127 not_found cat: not found: it is not installed, or not on the PATH; `clinvk doctor` shows what can be used"] * 2)

    def test_a_program_whose_interpreter_is_not_there(self):
        support.write_program(os.path.join(self.bin, "cat"), b"#!/nowhere/python\n")
        os.environ["PATH"] = self.bin
        for workdir in self.both_ways():
            self.check_failed(self.run_it("say x", workdir=workdir), 126, "not_found", "^cat: cannot be executed: the interpreter it names does not exist$")

    def test_a_program_that_cannot_be_executed(self):
        os.environ["PATH"] = self.bin
        os.chmod(os.path.join(self.bin, "cat"), 0o644)
        for workdir in self.both_ways():
            self.check_failed(self.run_it("say x", workdir=workdir), 126, "permission", "^cat: cannot be started: Permission denied$")
        os.remove(os.path.join(self.bin, "cat"))
        os.mkdir(os.path.join(self.bin, "cat"))
        for workdir in self.both_ways():
            self.check_failed(self.run_it("say x", workdir=workdir), 126, "permission", "^cat: cannot be started: Permission denied$")

    def test_a_program_that_is_none(self):
        support.write_program(os.path.join(self.bin, "cat"), b"\x7fnot an executable format\n")
        os.environ["PATH"] = self.bin
        for workdir in self.both_ways():
            self.check_failed(self.run_it("say x", workdir=workdir), 126, "backend", "^cat: cannot be started: Exec format error$")

    def test_an_option_that_is_too_long_for_a_command_line(self):
        for workdir in self.both_ways():
            self.check_failed(self.run_it("say x", "claude", system_prompt="x" * 3000000, workdir=workdir), 126, "invalid", "^claude: cannot be started: Argument list too long$")

    def test_a_working_directory_that_is_none(self):
        path = self.file("a file", b"")
        self.check_failed(self.run_it("say x", workdir=self.path("nowhere")), 1, "invalid", "^workdir %s: No such file or directory$" % self.path("nowhere"))
        self.check_failed(self.run_it("say x", workdir=path), 1, "invalid", "^workdir %s: Not a directory$" % path)

    def test_a_temporary_directory_that_is_none(self):
        os.environ["TMPDIR"] = self.path("nowhere")
        result = self.run_it("say x")
        self.check(result, status="failed", exit_code=1, error_kind="backend")
        self.assertRegex(result.error, "nowhere: No such file or directory")

    def test_state_whose_directory_was_removed_makes_it_again(self):
        state = self.state()
        for number in range(2):
            clinvk.remove_tree(state.directory)
            result = clinvk.run_job(clinvk.Job(number, clinvk.Task("echo", "list-tmp", workdir=self.directory)), state)
            self.check(result, status="ok", output="700 []\n")
        self.leave(state)

    def test_state_that_was_canceled_does_not_make_its_directory_again(self):
        state = self.state()
        clinvk.remove_tree(state.directory)
        state.cancel()
        clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "say x")), state)
        self.assertFalse(os.path.exists(state.directory))

    def test_state_whose_directory_cannot_be_made_again_fails_its_tasks(self):
        state = self.state()
        os.rmdir(state.directory)
        self.file(state.directory, b"")
        result = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "say x", workdir=self.directory)), state)
        self.check(result, status="failed", exit_code=1, error_kind="backend")
        self.assertEqual(result.error, "cannot write temporary files to %s: File exists" % state.directory)
        os.unlink(state.directory)

    def test_no_descriptors_left(self):
        body = """
            import resource
            clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "say x")))  # what it imports is there now
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), 64))
            state = clinvk.WorkerState("run", sys.argv[2])
            held = []
            for free in (0, 2, 3, 4, 5):
                while True:
                    try:
                        held.append(os.dup(0))
                    except OSError:
                        break
                for _ in range(free):
                    os.close(held.pop())
                result = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "say x", workdir=sys.argv[3])), state)
                print(result.status, result.error or result.output.strip())
                state.drop_files()
                for file in held:
                    os.close(file)
                del held[:]
            result = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "say x")), state)
            print(result.status, result.output.strip())
            """
        os.mkdir(self.path("d"))
        for workdir in ("", self.home):
            done = self.run_program([sys.executable, "-c", "import os, sys\nsys.path.insert(0, %r)\nimport clinvk\n" % support.MODULES + textwrap.dedent(body),
                                     "40", self.path("d"), workdir])
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            lines = done.stdout.decode().splitlines()
            self.assertRegex(lines[0], "^failed .*: Too many open files$")
            for line in lines[1:-1]:
                self.assertRegex(line, "^(ok x|failed .*: Too many open files)$")
            self.assertEqual(lines[-1], "ok x", "afterwards all is well again")


class Stopping(WorkerCase):
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
        result = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "ignore TERM INT HUP;say half;ids %s;sleep 300" % self.path("ids"), timeout=2.0)), state)
        self.check(result, status="timeout", exit_code=124, error="timed out after 2s", error_kind="timeout", output="half\n", attempts=1)
        self.assertGreaterEqual(result.duration_seconds, 2.2)
        self.assert_gone(self.pid_in(self.path("ids")))
        self.leave(state)

    def test_a_task_that_ends_in_time_is_not_touched(self):
        for timeout in (60.0, 1e9):
            self.check(self.run_it("sleep 0.05;say x", timeout=timeout), status="ok", output="x\n")
        self.assertEqual([thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and not thread.finished.is_set()], [])

    def test_a_stopped_task_has_timed_out_whatever_its_exit_code(self):
        expected = {"echo": b"TERM\n", "claude": b"TERM\n", "codex": b"INT\n", "gemini": b"TERM\n"}
        running = {}
        for backend in expected:
            path = self.path("trapped-" + backend)
            prompt = "trap TERM 0 %s;trap INT 0 %s;say x;sleep 300" % (path, path)
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


class Logs(WorkerCase):
    """What a program prints, in files that others read: written as it comes, cut and without secrets at the end."""

    SECRET = "sk-very-secret-0123456789"

    def setUp(self):
        super().setUp()
        os.environ["FAKE_API_KEY"] = self.SECRET
        clinvk._secrets.cache_clear()
        self.addCleanup(clinvk._secrets.cache_clear)

    def log(self, most=1 << 20):
        return clinvk.Log(self.path("log"), "shown", most)

    def content(self, suffix=".jsonl"):
        with open(self.path("log" + suffix), "rb") as file:
            return file.read()

    def closed(self, content, most):
        """The files of a log of that content after its end, and whether each is the file that it was."""
        paths = [self.file(name, content) for name in ("log.jsonl", "log.err")]
        before = [os.stat(path).st_ino for path in paths]
        for _ in range(2):  # a second time changes nothing
            job = support.job(0, "echo", "p", log=self.log(most))
            result = clinvk.with_log(job, clinvk.Result(0, "echo", "lost", -1))
            self.check(result, log="shown.jsonl", log_stderr="shown.err", warnings=())
        return self.content(), self.content(".err"), [os.stat(path).st_ino for path in paths] == before

    def test_log_that_is_too_large_keeps_the_whole_lines_at_both_ends(self):
        lines = b"".join(b"%08d\n" % number for number in range(100))
        for content, most, kept in (
                (lines, 900, None), (lines[:-1], 899, None), (lines, 899, (44, 44)), (lines, 190, (5, 5)), (lines, 189, (4, 4)), (lines, 117, (0, 0)), (lines, 1, (0, 0)),
                (lines[:-1], 198, (5, 5)), (b"x" * 500 + lines, 300, (0, 11)), (lines + b"x" * 500, 300, (11, 0)), (b"x" * 500, 300, (0, 0))):
            with self.subTest(size=len(content), most=most):
                out, errors, is_same = self.closed(content, most)
                if kept is None:
                    self.assertEqual((out, errors, is_same), (content, content, True))
                    continue
                whole = content.splitlines(keepends=True)
                head, tail = b"".join(whole[:kept[0]]), b"".join(whole[len(whole) - kept[1]:])
                missing = len(content) - len(head) - len(tail)
                self.assertEqual(out, head + b'{"type":"clinvk.cut","missing_bytes":%d}\n' % missing + tail)
                self.assertEqual(errors, head + b"[clinvk: %d bytes are missing here]\n" % missing + tail)

    def test_secrets_in_a_log_of_any_size_are_hidden_and_all_else_stays(self):
        secret, name = self.SECRET.encode(), b"[FAKE_API_KEY]"
        other = b"\xff\xfe \xc3( \xed\xa0\x80 \0 \xe5\xae\xa1\r\n"
        for content in (b"", b"\n", other, secret, b"a" + secret, secret + b"\n" + other + secret + secret, b'{"key":"%b"}\n' % secret, other * 20000 + secret + b"\n" + other * 9000):
            with self.subTest(size=len(content)):
                out, errors, is_same = self.closed(content, 1 << 30)
                expected = content.replace(secret, name)
                self.assertEqual((out, errors, is_same), (expected, expected, content == expected))

    def test_secret_in_a_long_line_is_hidden_at_each_place(self):
        secret, size = self.SECRET.encode(), 4 * clinvk.CHUNK
        patch = mock.patch.object(clinvk, "LONG_LINE", size)
        patch.start()
        self.addCleanup(patch.stop)
        places = [place + shift for place in (clinvk.CHUNK, size - clinvk.CHUNK, size, 2 * size) for shift in (-24, -9, 0)]
        line = bytearray(b"x" * (3 * size))
        for place in places:
            with self.subTest(place=place):
                line[place:place + len(secret)] = secret
                out, _, _ = self.closed(bytes(line), 1 << 30)
                self.assertEqual(out, line.replace(secret, b"[FAKE_API_KEY]"))
                line[place:place + len(secret)] = b"x" * len(secret)

    def test_attempt_has_a_private_log_of_both_streams(self):
        result = self.run_it("say hello;env FAKE_API_KEY;stderr noise;exit 3", log=self.log())
        self.check(result, status="failed", exit_code=3, output="hello\n%s\n" % self.SECRET, log="shown.jsonl", log_stderr="shown.err")
        self.assertEqual((self.content(), self.content(".err")), (b"hello\n[FAKE_API_KEY]\n", b"noise\n"))
        self.assertEqual({os.stat(self.path("log" + suffix)).st_mode & 0o777 for suffix in (".jsonl", ".err")}, {0o600})
        result = self.run_it("say hello", "claude", log=self.log()._replace(path=self.path("other")))
        self.check(result, status="ok", output="hello")
        with open(self.path("other.jsonl")) as file:
            self.assertEqual([json.loads(line)["type"] for line in file][-1], "result")

    def test_large_answer_shares_no_file_with_the_log(self):
        state = self.state()
        result = clinvk.run_job(support.job(0, "echo", "flood 300000", log=self.log()), state)
        self.assertEqual(os.stat(self.path("log.jsonl")).st_nlink, 1)
        with open(self.path("log.jsonl"), "r+b") as file:
            file.truncate()
        self.check(clinvk.with_answer(result), status="ok", output="x" * 300000)
        self.leave(state)

    def test_answer_is_whole_where_the_log_is_cut(self):
        self.check(self.run_it("flood 300000", log=self.log(1000)), status="ok", output="x" * 300000)
        self.assertEqual(json.loads(self.content())["missing_bytes"], 300000)

    def test_job_that_is_not_started_has_no_log(self):
        state = self.state()
        state.cancel()
        self.check(clinvk.run_job(support.job(0, "echo", "say x", log=self.log()), state), status="canceled", attempts=0, log="", log_stderr="")
        self.leave(state)
        self.assertFalse([name for name in os.listdir(self.directory) if name.startswith("log")])
        self.check(self.run_it("say x", definition=clinvk.Definition(("no-such-program",)), log=self.log()), exit_code=127, log="shown.jsonl")

    def test_log_that_cannot_be_opened_fails_the_task(self):
        os.symlink(self.path("target"), self.path("log.jsonl"))
        self.check(self.run_it("say x", log=self.log()), status="failed", attempts=1, output="",
                   error="cannot write the output to %s: Too many levels of symbolic links" % self.path("log.jsonl"))
        self.assertFalse(os.path.exists(self.path("target")))
        gone = self.log()._replace(path=self.path("none", "log"))
        self.check(self.run_it("say x", log=gone), status="failed", error="cannot write the output to %s.jsonl: No such file or directory" % gone.path)

    def test_log_that_cannot_be_closed_is_a_warning(self):
        os.mkdir(self.path("log.jsonl"))
        self.file("log.err", self.SECRET)
        result = clinvk.with_log(support.job(0, "echo", "p", log=self.log()), clinvk.Result(0, "echo", "ok", 0, warnings=("w",)))
        self.check(result, warnings=("w", "cannot cut %s or hide its secrets: Is a directory" % self.path("log.jsonl")))
        self.assertEqual(self.content(".err"), b"[FAKE_API_KEY]")
        os.rmdir(self.path("log.jsonl"))
        os.mkfifo(self.path("log.jsonl"))  # which nobody opens
        self.check(clinvk.with_log(support.job(0, "echo", "p", log=self.log()), result), log="shown.jsonl")

    def test_full_log_directory_is_named(self):
        disk = self.path("disk")
        os.mkdir(disk)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k,mode=700", "tmpfs", disk], stderr=subprocess.DEVNULL).returncode:
            self.skipTest("mounting is not permitted here")
        self.addCleanup(subprocess.run, ["umount", "-l", disk], check=True)
        for backend in ("echo", "claude"):
            log = clinvk.Log(os.path.join(disk, backend), "shown", 1 << 20)
            result = self.run_it("say x;flood 999999", backend, log=log)
            self.check(result, status="failed", log="shown.jsonl")
            self.assertEqual(result.error.partition(" (")[0], "cannot write the answer to %s: No space left on device" % disk)
            os.unlink(log.path + ".jsonl")


class Watching(WorkerCase):
    """What is seen of a process while it runs: idle, endless, or done and still there."""

    CODEX = b'{"type":"turn.completed","usage":{}}\n'

    def setUp(self):
        super().setUp()
        for name, value in (("WATCH_SECONDS", 0.02), ("LINGER_SECONDS", 0.3)):
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
                    ([(5, self.CODEX, b""), (10, b"{}\n", b""), (15, b"", b""), (20, b"", b"")], {}, [""] * 4),
                    ([(5, self.CODEX, b""), (10, b"", b"")], {"idle_timeout": 5.0}, ["", "over"]),
                    ([(5, b"{}\n", b""), (10, b"", b"")], {"idle_timeout": 5.0}, ["", "stalled"])):
                with self.subTest(looks):
                    self.assertEqual(self.verdicts(looks, is_over, **limits)[0], expected)

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
                ("codex", b"x" * 3000000 + b"\n" + codex, True), ("codex", b'["turn.completed"]\n', False)):
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
        thread = threading.Thread(target=state.watch, args=(over.wait,))
        thread.start()
        result = clinvk.run_job(support.job(0, "echo", "ignore TERM;ids %s;sleep 300" % self.path("ids"), idle_timeout=2.0), state)
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
                self.assertEqual(result.warnings[:1], ("%s did not end by itself and was ended 0.3s after its last event" % backend,))


class Leftovers(WorkerCase):
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
        self.check(clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "leave-group %s;sleep 300" % path, timeout=2.0)), state), status="timeout")
        self.assert_gone(self.pid_in(path))
        self.leave(state)

    @support.only_linux
    def test_what_left_the_group_of_a_longer_task_ends_with_the_task(self):
        state = self.state()
        path = self.path("pid")
        self.check(clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "leave-group %s;sleep %s;say x" % (path, clinvk.SWEEP_AFTER_SECONDS))), state), status="ok")
        self.assert_gone(self.pid_in(path))
        self.leave(state)

    @support.only_linux
    def test_a_sweep_after_a_task_spares_the_other_tasks_of_the_run(self):
        state, other = self.state(grace=0.2), self.state()
        other.run_id = state.run_id
        running = self.in_background(clinvk.Job(1, clinvk.Task("echo", "leave-group %s;wait-for %s;say spared" % (self.path("pid"), self.path("go")))), other)
        pid = self.pid_in(self.path("pid"))
        self.check(clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "sleep 300", timeout=0.5)), state), status="timeout")
        self.assertTrue(is_running(pid))
        self.file("go", b"")
        self.check(running(), status="ok", output="spared\n")
        self.leave(state)
        self.leave(other)
        self.assert_gone(pid)

    @support.only_linux
    def test_a_worker_that_adopts_orphans_ends_even_those_without_a_mark(self):
        body = """
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
        done = self.run_program([sys.executable, "-c", "import os, sys\nsys.path.insert(0, %r)\nimport clinvk\n" % support.MODULES + textwrap.dedent(body), self.path("d")])
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
            result = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "leave-group;sleep 300", timeout=1.0)), state)
            print(result.exit_code, list(result.warnings))
            state.drop_files()
            """
        os.mkdir(self.path("d"))
        done = self.run_program([sys.executable, "-c", "import os, sys\nsys.path.insert(0, %r)\nimport clinvk\n" % support.MODULES + textwrap.dedent(body), self.path("d")])
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        lines = [line.replace("setsid", "sleep").replace("sh,", "sleep,").replace("sh'", "sleep'").replace("sh and", "sleep and")
                 for line in done.stdout.decode().splitlines()]  # one that was not given the time to become sleep
        left = "own left processes running, which were killed: %s"
        self.assertEqual(lines, ["1 []", "3 %s" % [left % "sleep, sleep"], "0 []", "1 []", "1 []", "1 %s" % [left % "sleep, sleep, sleep, sleep, sleep and 2 more"],
                                 "124 []"])

    @support.only_linux
    def test_without_adoption_what_left_the_group_of_a_longer_task_is_named(self):
        state = self.state()
        prompt = "leave-group %s;sleep %s;say x" % (self.path("pid"), clinvk.SWEEP_AFTER_SECONDS)
        self.check(clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", prompt)), state), status="ok", warnings=("echo left processes running, which were killed: cat",))
        self.leave(state)

    def test_a_helper_that_a_backend_leaves_by_itself_is_no_warning(self):
        for backend, names, told in (("codex", ["git", "git-remote-http"], None), ("codex", ["git", "node"], "node"), ("claude", ["git"], "git"), ("codex", [], None)):
            warnings = ("%s left processes running, which were killed: %s" % (backend, told),) if told else ()
            self.assertEqual(clinvk.left_running(clinvk.Job(0, clinvk.Task(backend, "x")), names), warnings)

    def test_the_temporary_directory_of_a_task_is_removed_with_all_in_it(self):
        for prompt in ("write-tmp", "remove-tmp", "write-tmp;exit 1", "write-tmp;die KILL"):
            state = self.state()
            path = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "env TMPDIR;" + prompt)), state).output.strip()
            self.assertEqual(os.path.exists(path) and os.listdir(path), False if "write" in prompt else (os.path.exists(path) and []), prompt)
            self.check(clinvk.run_job(clinvk.Job(1, clinvk.Task("echo", "list-tmp")), state), output="700 []\n")
            self.leave(state)


class ToldToEnd(WorkerCase):
    def test_a_backend_that_ends_after_a_sigterm_to_its_worker_is_canceled_if_the_run_is(self):
        for canceled, status in ((True, "canceled"), (False, "ok")):
            state = self.state()
            there, go = self.path("there-" + status), self.path("go-" + status)
            result = self.in_background(clinvk.Job(0, clinvk.Task("echo", "say x;touch %s;wait-for %s" % (there, go))), state)
            self.wait_for_file(there)
            state.told_to_end, state.canceled = True, canceled
            self.file("go-" + status, b"")
            self.check(result(), status=status, output="x\n")
            self.leave(state)


class OneAfterTheOther(WorkerCase):
    def test_nothing_of_a_task_reaches_the_next(self):
        state = self.state()
        prompts = ("flood 200000", "say a", "stderr-flood 100000;exit 1", "invalid-utf8", "stderr x;exit 2", "write-tmp;flood 500", "say", "list-tmp;env TMPDIR", "flood 5000 z", "say b")
        alone = [self.run_it(prompt) for prompt in prompts]
        for _ in range(2):
            for index, (prompt, expected) in enumerate(zip(prompts, alone)):
                result = clinvk.run_job(clinvk.Job(index, clinvk.Task("echo", prompt)), state)
                if isinstance(result.answer, clinvk.TextFile):
                    result.answer.take()
                if "TMPDIR" in prompt:
                    self.assertEqual(result.output.split("\n")[0], "700 []")
                    continue
                self.assertEqual((result.status, result.exit_code, result.output, result.error), (expected.status, expected.exit_code, expected.output, expected.error), prompt)
        self.assertEqual(len(os.listdir(state.directory)), 1, "the directory that is used again")
        self.leave(state)

    def test_what_a_task_left_writing_does_not_reach_the_next(self):
        state = self.state()
        go = self.path("go")
        self.check(clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "say x;keep-pipe %s %s" % (self.path("pid"), go))), state), output="x\n")
        self.file("go", b"")
        self.wait_for_file(go + ".done")
        for index in range(1, 4):
            self.check(clinvk.run_job(clinvk.Job(index, clinvk.Task("echo", "say clean")), state), output="clean\n")
        self.leave(state)
        wait_until(lambda: not is_running(self.pid_in(self.path("pid"))), "the writer has ended")

    def test_what_a_task_left_writing_does_not_reach_its_answer_after_the_end(self):
        for size in (10, 3000, 200000):
            state = self.state()
            go, pid = self.path("go-%d" % size), self.path("pid-%d" % size)
            result = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "flood %d;keep-pipe %s %s" % (size, pid, go))), state)
            if isinstance(result.answer, clinvk.TextFile):
                result.answer.take()
            self.file("go-%d" % size, b"")
            self.wait_for_file(go + ".done")
            self.assertEqual(result.output, "x" * size)
            self.leave(state)

    def test_an_answer_is_taken_in_hand_as_text_or_as_a_file_or_said_to_be_gone(self):
        for size in (100, clinvk.CHUNK, clinvk.CHUNK + 1):
            result = clinvk.Result(0, "echo", "ok", 0, clinvk.TextFile(self.file("answer", "x" * size), size))
            taken = clinvk.with_answer(result)
            self.assertEqual((taken.status, taken.output, os.path.exists(self.path("answer"))), ("ok", "x" * size, False))
        self.assertEqual(clinvk.with_answer(taken._replace(answer="text")).answer, "text")
        for code in (0, 3):
            gone = clinvk.with_answer(clinvk.Result(0, "echo", "ok", code, clinvk.TextFile(self.path("nowhere"), 9)))
            self.check(gone, status="failed", exit_code=code or 1, output="", error_kind="backend")
            self.assertRegex(gone.error, "^cannot read the answer back: .*No such file or directory")

    def test_full_temporary_directory_is_named_with_what_did_not_fit(self):
        disk = self.path("disk")
        os.mkdir(disk)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k,mode=700", "tmpfs", disk], stderr=subprocess.DEVNULL).returncode:
            self.skipTest("mounting is not permitted here")
        self.addCleanup(subprocess.run, ["umount", "-l", disk], check=True)
        quiet = "import os\nos.read(0, 9)\nfor _ in range(99):\n    try:\n        os.write(1, b'x' * 10000)\n    except OSError:\n        pass\n"
        support.write_program(os.path.join(self.bin, "quiet"), ("#!%s -IS\n%s" % (os.path.realpath(sys.executable), quiet)).encode())
        env = {"TMPDIR": disk, "CLINVK_BACKENDS": '{"quiet": {"command": ["quiet"]}}'}
        full = "cannot write the %%s to %s: No space left on device" % disk
        run = self.clinvk("parallel", "--jsonl", "-q", "-j", "1", env=env, input=(
            tasks("say x" * 100000) + tasks("x", backend="quiet") + tasks("say small") + tasks("say x;flood 999999", backend="claude")))
        errors = [(result["status"], result.get("error", "").partition(" (")[0]) for result in results(run)]
        self.assertEqual(errors, [("failed", full % "prompt"), ("failed", full % "answer"), ("ok", ""), ("failed", full % "answer")])
        self.assertEqual((run.stderr, os.listdir(disk)), (b"", []))
        self.enter_environment(TMPDIR=disk)
        for argv in (("cat",), ("cat", "{prompt_file}")):
            self.check(self.run_it("x" * 500000, "own", definition=clinvk.Definition(argv)), status="failed", error=full % "prompt")
        with open(os.path.join(disk, "filler"), "wb") as file:
            while True:
                try:
                    os.write(file.fileno(), b"f" * 4096)
                except OSError:
                    break
        run = self.clinvk("parallel", "--jsonl", "-q", input=tasks("say x"), env=env)
        self.assertEqual((run.returncode, run.stdout, run.stderr.decode()),
                         (74, b"", "clinvk: error: cannot write temporary files to %s: No space left on device\n" % disk))

    def test_an_answer_on_its_way_is_not_changed_by_the_next_task(self):
        state = self.state()
        first = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "flood 50000 a")), state)
        second = clinvk.run_job(clinvk.Job(1, clinvk.Task("echo", "flood 60000 b")), state)
        clinvk.run_job(clinvk.Job(2, clinvk.Task("echo", "say c")), state)
        self.assertEqual((first.answer.take() and first.output, second.answer.take() and second.output), ("a" * 50000, "b" * 60000))
        self.leave(state)

    def test_an_answer_that_cannot_be_kept_is_a_failed_result_and_the_next_task_is_well(self):
        for backend in ("claude", "echo"):
            state = self.state()
            there, go = self.path("there-" + backend), self.path("go-" + backend)
            result = self.in_background(clinvk.Job(0, clinvk.Task(backend, "remove-tmp;touch %s;wait-for %s;flood 5000" % (there, go))), state)
            self.wait_for_file(there)
            os.rmdir(state.directory)
            self.file(state.directory, b"")
            self.file("go-" + backend, b"")
            self.check(result(), status="failed", exit_code=1, error_kind="backend", attempts=1)
            self.assertRegex(result().error, "^cannot write the answer to .*File exists")
            os.unlink(state.directory)
            self.check(clinvk.run_job(clinvk.Job(1, clinvk.Task(backend, "say x")), state), status="ok")
            self.leave(state)


if __name__ == "__main__":
    unittest.main()
