"""Section 9, Worker: run_job, in this process, against the fake program: each behaviour has its Result, nothing of one task
reaches the next, and logs."""
import json
import os
import signal
import sys
import textwrap
import unittest
from unittest import mock

import support
from support import clinvk, is_running, results, tasks, wait_until


class Behaviours(support.WorkerCase):
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

    LABEL = {"type": "object", "properties": {"label": {"enum": ["bug", "feature"]}}, "required": ["label"]}

    def test_answer_by_a_schema_is_data_and_any_other_fails(self):
        for answer, data, error in (
                ('{"label": "bug", "n": %d, "x": 1.50}' % 2 ** 70, {"label": "bug", "n": 2 ** 70, "x": 1.5}, ""),
                ('\n\n```json\n{"label": "bug"}\n```\n', {"label": "bug"}, ""),
                ('{"label": "bug", "text": "%s"}' % ("x" * 5000), {"label": "bug", "text": "x" * 5000}, ""),
                ('{"label": "Bug"}', None, 'data.label: expected one of "bug", "feature", got "Bug"'),
                ('["bug"]', None, 'data: expected an object, got ["bug"]'), ("no", None, "the answer is not JSON: Expecting value: line 1 column 1 (char 0)"),
                ('{"label": "bug", "label": "bug"}', None, "data.label: the key is given twice in one object"),
                ('"%s"' % ("x" * (1 << 20)), None, "the answer has 1,048,578 bytes; with a schema 1,048,576 are allowed")):
            with self.subTest(answer[:50]):
                result = self.run_it("rest\n" + answer, schema=self.LABEL)
                self.check(result, data=data, error=error, output=answer, status="failed" if error else "ok",
                           exit_code=int(bool(error)), error_kind="schema" if error else "")
        self.check(self.run_it("say x;exit 3", schema=self.LABEL), status="failed", exit_code=3, error_kind="backend", data=None)
        self.check(self.run_it('rest\n{"label": "bug"}'), status="ok", data=None)
        many = {"type": "object", "additionalProperties": {"type": "null"}}
        self.assertRegex(self.run_it('rest\n{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1}', schema=many).error,
                         "^data.a: expected null, got 1; .*; data.e: expected null, got 1 and 2 more$")

    def test_check_of_an_answer_that_would_take_years_ends(self):
        pattern = {"type": "object", "properties": {"a": {"pattern": "^(a+)+$"}}}
        twice = {"a%d" % number: {"allOf": [{"$ref": "#/$defs/a%d" % (number + 1)}] * 2} for number in range(60)}
        before = signal.getsignal(signal.SIGALRM)
        for answer, schema in (('{"a": "%s!"}' % ("a" * 60), pattern), ("````a\n" * 8000, pattern),
                               ("{}", {"type": "object", "$ref": "#/$defs/a0", "$defs": dict(twice, a60={})})):
            with mock.patch.object(clinvk, "SCHEMA_SECONDS", 0.3):
                result = self.run_it("rest\n" + answer, schema=schema, schema_retries=0)
            self.check(result, error="the answer cannot be checked by the schema: it took longer than 0.3s", error_kind="schema", data=None)
            self.assertEqual((signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)), (before, (0.0, 0.0)))

    def test_error_by_a_schema_shows_no_secret(self):
        with mock.patch.dict(os.environ, MY_TOKEN="hush-hush-hush"):
            clinvk._secrets.cache_clear()
            self.addCleanup(clinvk._secrets.cache_clear)
            result = self.run_it('rest\n{"label": "hush-hush-hush"}', schema=self.LABEL)
        self.assertEqual(result.error, 'data.label: expected one of "bug", "feature", got "[MY_TOKEN]"')

    def test_schema_follows_the_prompt_where_the_program_has_no_option_for_it(self):
        definition = clinvk.Definition(("head",))
        asked = clinvk.schema_request(clinvk.Job(0, clinvk.Task("own", "p", schema=self.LABEL), definition))
        self.assertTrue(asked.endswith(json.dumps(self.LABEL, separators=(",", ":")) + "\n"), asked)
        for argv in (("head",), ("head", "{prompt_file}")):
            result = clinvk.run_job(clinvk.Job(0, clinvk.Task("own", "{}", schema=self.LABEL), clinvk.Definition(argv)))
            self.check(result, output="{}" + asked, error_kind="schema")
        self.assertTrue(clinvk.BACKENDS["gemini"].text(support.job(0, "gemini", "@x", schema=self.LABEL)).endswith(asked))
        for backend in ("claude", "echo"):
            self.assertEqual(clinvk.BACKENDS[backend].text(support.job(0, backend, "p", schema=self.LABEL)), "p")

    def test_program_can_read_the_file_of_the_schema(self):
        definition = clinvk.Definition(("head", "-c", "9999", "{schema_file}", "-"))
        result = clinvk.run_job(clinvk.Job(0, clinvk.Task("own", "the prompt", schema=self.LABEL), definition))
        self.check(result, error_kind="schema", warnings=())
        self.assertIn(json.dumps(self.LABEL, separators=(",", ":")), result.output)
        self.assertTrue(result.output.endswith("the prompt"), result.output)

    def test_data_is_what_the_command_states(self):
        definition = clinvk.Definition(("head",), "json", ("text",), structured=("value",))
        for prompt, data, error in (('{"text": "x", "value": {"label": "bug"}}', {"label": "bug"}, ""),
                                    ('{"text": "", "value": {"label": "bug"}}', {"label": "bug"}, ""),
                                    ('{"text": "{\\"label\\": \\"bug\\"}"}', None, "own ended well but gave no answer by the schema"),
                                    ('{"text": " "}', None, "own ended well but gave no answer")):
            definition = definition._replace(argv=("sed", "/^$/,$d"))
            self.check(clinvk.run_job(clinvk.Job(0, clinvk.Task("own", prompt, schema=self.LABEL), definition)), data=data, error=error)
        blank = clinvk.run_job(clinvk.Job(0, clinvk.Task("own", '{"text": "", "value": 1}'), definition))
        self.check(blank, data=None, error="own ended well but gave no answer")
        support.write_program(self.path("bin", "claude"), b"""#!/bin/sh
            echo '{"type": "result", "is_error": false, "result": "", "structured_output": {"label": "bug"}, "session_id": "s"}'""")
        self.check(self.run_it("p", "claude", schema=self.LABEL), status="ok", data={"label": "bug"}, error="")
        self.check(self.run_it("p", "claude"), status="failed", error_kind="no_output", data=None)

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


class Surroundings(support.WorkerCase):
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

    def test_answer_only_program_runs_in_an_empty_directory_with_a_home_of_its_own(self):
        os.makedirs(self.path("own", ".gemini"))
        self.file("own/auth.json", "secret")
        self.file("own/.gemini/oauth_creds.json", "secret")
        self.file("own/.gemini/settings.json", '{"hooks": {}}')
        self.enter_environment(CODEX_HOME=self.path("own"), GEMINI_CLI_HOME=self.path("own"))
        for backend, variable, path, names in (
                ("codex", "CODEX_HOME", "/codex", ["codex", "here"]),
                ("gemini", "GEMINI_CLI_HOME", "", [".gemini", "here", "policy.toml", "system.md"])):
            result = self.run_it("cwd\nenv PWD\nenv TMPDIR\nenv %s\nlist-tmp" % variable, backend, answer_only=True, workdir=self.path("own"))
            self.assertEqual(result.status, "ok", result)
            cwd, pwd, scratch, home, listed = result.output.splitlines()
            self.assertEqual((cwd, pwd, home), (scratch + "/here", scratch + "/here", scratch + path))
            self.assertEqual(listed, "700 " + str(names))
            self.assertFalse(os.path.exists(scratch + "/here"))
        with open(self.path("own", "auth.json")) as auth, open(self.path("own", ".gemini", "oauth_creds.json")) as credentials:
            self.assertEqual((auth.read(), credentials.read()), ("secret", "secret"), "the links are removed, not what they lead to")

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


class LaunchFailures(support.WorkerCase):
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
        # root may search any, so not as root; what is imported late is imported before, where root alone may read this Python's files
        body = """
            job = clinvk.Job(0, clinvk.Task("echo", "x", workdir="/"))
            clinvk.run_job(job)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            for workdir in ("", "/"):
                result = clinvk.run_job(job._replace(task=job.task._replace(workdir=workdir)))
                print(result.exit_code, result.error_kind, result.error, flush=True)
            """
        closed = self.path("closed")
        os.mkdir(closed, 0)
        os.chmod(self.directory, 0o711)
        os.chmod(self.tmp, 0o777)
        done = self.run_program([sys.executable, "-c", "import os, sys\nsys.path.insert(0, %r)\nimport clinvk\n" % support.MODULES + textwrap.dedent(body)],
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


class Logs(support.WorkerCase):
    """What a program prints, in files that others read: written as it comes, cut and without secrets at the end."""

    SECRET = "sk-very-secret-0123456789"

    def setUp(self):
        super().setUp()
        os.environ["FAKE_API_KEY"] = self.SECRET
        clinvk._secrets.cache_clear()
        self.addCleanup(clinvk._secrets.cache_clear)

    def log(self, most=1 << 20, name="log"):
        """The fields of a job with a log."""
        return {"log": self.path(name), "log_max": most}

    def content(self, suffix=".jsonl"):
        with open(self.path("log" + suffix), "rb") as file:
            return file.read()

    def closed(self, content, most):
        """The files of a log of that content after its end, and whether each is the file that it was."""
        paths = [self.file(name, content) for name in ("log.jsonl", "log.err")]
        before = [os.stat(path).st_ino for path in paths]
        for _ in range(2):  # a second time changes nothing
            job = support.job(0, "echo", "p", **self.log(most))
            result = clinvk.with_log(job, clinvk.Result(0, "echo", "lost", -1))
            self.check(result, log=self.path("log.jsonl"), log_stderr=self.path("log.err"), warnings=())
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
        for name, value in (("CHUNK", 1 << 12), ("LONG_LINE", 1 << 14)):
            patch = mock.patch.object(clinvk, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        secret, size = self.SECRET.encode(), clinvk.LONG_LINE
        places = [place + shift for place in (clinvk.CHUNK, size - clinvk.CHUNK, size, 2 * size) for shift in (-24, -9, 0)]
        line = bytearray(b"x" * (3 * size))
        for place in places:
            with self.subTest(place=place):
                line[place:place + len(secret)] = secret
                out, _, _ = self.closed(bytes(line), 1 << 30)
                self.assertEqual(out, line.replace(secret, b"[FAKE_API_KEY]"))
                line[place:place + len(secret)] = b"x" * len(secret)

    def test_attempt_has_a_private_log_of_both_streams(self):
        result = self.run_it("say hello;env FAKE_API_KEY;stderr noise;exit 3", **self.log())
        self.check(result, status="failed", exit_code=3, output="hello\n%s\n" % self.SECRET, log=self.path("log.jsonl"), log_stderr=self.path("log.err"))
        self.assertEqual((self.content(), self.content(".err")), (b"hello\n[FAKE_API_KEY]\n", b"noise\n"))
        self.assertEqual({os.stat(self.path("log" + suffix)).st_mode & 0o777 for suffix in (".jsonl", ".err")}, {0o600})
        result = self.run_it("say hello", "claude", **self.log(name="other"))
        self.check(result, status="ok", output="hello")
        with open(self.path("other.jsonl")) as file:
            self.assertEqual([json.loads(line)["type"] for line in file][-1], "result")

    def test_large_answer_shares_no_file_with_the_log(self):
        state = self.state()
        result = clinvk.run_job(support.job(0, "echo", "flood 300000", **self.log()), state)
        self.assertEqual(os.stat(self.path("log.jsonl")).st_nlink, 1)
        with open(self.path("log.jsonl"), "r+b") as file:
            file.truncate()
        self.check(clinvk.with_answer(result), status="ok", output="x" * 300000)
        self.leave(state)

    def test_answer_is_whole_where_the_log_is_cut(self):
        self.check(self.run_it("flood 300000", **self.log(1000)), status="ok", output="x" * 300000)
        self.assertEqual(json.loads(self.content())["missing_bytes"], 300000)

    def test_job_that_is_not_started_has_no_log(self):
        state = self.state()
        state.cancel()
        self.check(clinvk.run_job(support.job(0, "echo", "say x", **self.log()), state), status="canceled", attempts=0, log="", log_stderr="")
        self.leave(state)
        self.assertFalse([name for name in os.listdir(self.directory) if name.startswith("log")])
        self.check(self.run_it("say x", definition=clinvk.Definition(("no-such-program",)), **self.log()), exit_code=127, log=self.path("log.jsonl"))

    def test_log_that_cannot_be_opened_fails_the_task(self):
        os.symlink(self.path("target"), self.path("log.jsonl"))
        self.check(self.run_it("say x", **self.log()), status="failed", attempts=1, output="",
                   error="cannot write the output to %s: Too many levels of symbolic links" % self.path("log.jsonl"))
        self.assertFalse(os.path.exists(self.path("target")))
        gone = self.log(name=os.path.join("none", "log"))
        self.check(self.run_it("say x", **gone), status="failed", error="cannot write the output to %s.jsonl: No such file or directory" % gone["log"])

    def test_log_that_cannot_be_closed_is_a_warning(self):
        os.mkdir(self.path("log.jsonl"))
        self.file("log.err", self.SECRET)
        result = clinvk.with_log(support.job(0, "echo", "p", **self.log()), clinvk.Result(0, "echo", "ok", 0, warnings=("w",)))
        self.check(result, warnings=("w", "cannot cut %s or hide its secrets: Is a directory" % self.path("log.jsonl")))
        self.assertEqual(self.content(".err"), b"[FAKE_API_KEY]")
        os.rmdir(self.path("log.jsonl"))
        os.mkfifo(self.path("log.jsonl"))  # which nobody opens
        self.check(clinvk.with_log(support.job(0, "echo", "p", **self.log()), result), log=self.path("log.jsonl"))

    def test_full_log_directory_is_named(self):
        disk = self.small_disk(400)
        for backend in ("echo", "claude"):
            log = self.log(name=os.path.join(disk, backend))
            result = self.run_it("say x;flood 999999", backend, **log)
            self.check(result, status="failed", log=log["log"] + ".jsonl")
            self.assertEqual(result.error.partition(" (")[0], "cannot write the answer to %s: No space left on device" % disk)
            os.unlink(log["log"] + ".jsonl")


class OneAfterTheOther(support.WorkerCase):
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
        disk = self.small_disk(400)
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

    def test_directory_that_stays_full_ends_the_run(self):
        disk = self.small_disk(400)
        self.file("disk/filler", b"f" * 350000)
        for what, where in (("temporary files", {"env": {"TMPDIR": disk}}), ("logs", {"log_dir": disk})):
            arguments = ["--log-dir", where["log_dir"]] if "log_dir" in where else []
            run = self.clinvk("parallel", "--jsonl", "-q", "-j", "1", *arguments, env=where.get("env", {}),
                              input=tasks(*["flood 100000"] * 20, backend="claude"))
            reason = "cannot write %s to %s: No space left on device" % (what, disk)
            statuses = [result["status"] for result in results(run)]
            self.assertIn(statuses.count("failed"), (1, 2), "one job is handed out ahead")
            self.assertEqual(statuses.count("canceled"), 20 - statuses.count("failed"))
            self.assertIn(reason, results(run)[-1]["error"])
            self.assertEqual((run.returncode, run.stderr.decode()), (74, "clinvk: error: %s\n" % reason))
            self.assertEqual([name for name in os.listdir(disk) if name.startswith("clinvk-")], [])

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
