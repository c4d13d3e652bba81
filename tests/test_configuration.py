"""Section 4, Configuration: the file and its settings, what counts first, and the commands that show and change it.

What is YAML, and what not, is in test_yaml.py.
"""
import json
import os
import sys
import unittest

import support
from support import Case, clinvk, results, tasks

support.left_to_full_runs()

EVERYTHING = """\
# all settings
default_backend: echo
unified_flags: {approval_mode: auto, sandbox_mode: workspace, verbose: true, dry_run: false, max_turns: 3, max_tokens: 4, command_timeout_secs: 5.5}
backends:
  claude:
    model: opus
    approval_mode: ""
    sandbox_mode: read-only
    system_prompt: "be brief"
    allowed_tools: Bash
    extra_flags: [--add-dir, /x]
    enabled: true
    max_parallel: 2
  own:
    command: [cat]
session: {auto_resume: true, retention_days: 0, default_tags: [a], store_token_usage: false}
output: {format: json, show_tokens: true, show_timing: true, color: false}
parallel: {max_workers: 7, fail_fast: true, aggregate_output: false}
"""


class ConfigurationCase(Case):
    def setUp(self):
        super().setUp()
        self.environment["CLINVK_HOME"] = self.path("own")
        os.mkdir(self.path("own"))

    def configure(self, text):
        return self.file("own/config.yaml", text)

    def argv_of(self, *args, **task):
        """What a task would be called with."""
        done = self.clinvk("parallel", "--dry-run", *args, input=tasks("p", **task))
        self.assertEqual(done.stderr, b"")
        return done.stdout.decode()


class Reading(unittest.TestCase):
    def test_every_setting_is_read(self):
        configuration = clinvk.read_configuration(EVERYTHING, "c.yaml")
        said = {key for key in clinvk.SETTINGS if configuration.said(key) is not None}
        self.assertEqual(said, set(clinvk.SETTINGS))
        fields = {key.split(".")[-1] for key in configuration.values if key.startswith("backends.claude.")}
        self.assertEqual(fields | {"approval_mode"}, set(clinvk.BACKEND_SETTINGS) - set(clinvk.DEFINITION_FIELDS))
        self.assertEqual(configuration.definitions, {"own": clinvk.Definition(("cat",))})
        self.assertEqual((configuration.get("output.color"), configuration.get("unified_flags.command_timeout_secs")), ("never", 5.5))

    def test_what_is_empty_is_not_said(self):
        for text in ("", "unified_flags:\n", "unified_flags: {sandbox_mode: '', max_turns: 0, command_timeout_secs: 0}\n", "backends:\n  claude:\n",
                     "default_backend: null\n"):
            self.assertEqual(clinvk.read_configuration(text, "c.yaml").values, {}, text)

    def test_each_default_is_what_its_check_takes(self):
        for key, (check, default) in clinvk.SETTINGS.items():
            with self.subTest(key=key):
                value = list(default) if isinstance(default, tuple) else default
                self.assertIn(check(value), (default, None))

    def test_a_mistake_is_an_error_with_its_line(self):
        for text, place, part in (
                ("unified_flags:\n  sandbox_mod: full\n", "2: unified_flags.sandbox_mod: ", 'did you mean "unified_flags.sandbox_mode"?'),
                ("\nunifiedflags: {}\n", "2: unifiedflags: ", 'did you mean "unified_flags"?'),
                ("unified_flags:\n  sandbox_mode: readonly\n", "2: unified_flags.sandbox_mode: ", 'did you mean "read-only"?'),
                ("unified_flags:\n  max_turns: -1\n", "2: unified_flags.max_turns: ", "from 1 on"), ("parallel:\n\n  max_workers: many\n", "3: ", "expected a whole number"),
                ("server:\n  port: 1\n", "1: server: ", "unknown setting"), ("unified_flags: 3\n", "1: unified_flags: ", "expected a mapping"), ("- a\n", "1: ", "expected a mapping"),
                ("backends:\n  claud:\n    model: x\n", "2: backends.claud: ", 'did you mean "claude"?'),
                ("backends:\n  claude:\n    command: [cat]\n", "3: backends.claude.command: ", "built in"),
                ("backends:\n  own:\n    command: []\n", "3: backends.own.command: ", "expected a list that begins with the name of a program"),
                ("backends:\n  own:\n    command: [x, '{modle}']\n", "3: backends.own.command[1]: ", "did you mean"),
                ("backends:\n  codex:\n    allowed_tools: Bash\n", "3: backends.codex.allowed_tools: ", "only claude"), ("backends:\n  codex: 1\n", "2: backends.codex: ", "mapping"),
                ("a: &x 1\n", "1:4: ", "anchors"), ("a: 1\na: 2\n", "2:1: ", ""), ("unified_flags:\n\tsandbox_mode: full\n", "2:1: ", "tab")):
            with self.subTest(text), self.assertRaises(clinvk.ConfigError) as caught:
                clinvk.read_configuration(text, "c.yaml")
            message = str(caught.exception)
            self.assertTrue(message.startswith("c.yaml:" + place), message)
            self.assertIn(part, message)

    def test_what_counts_first_is_one_function(self):
        layers = [("a", {"x": None, "y": 1, "w": False}), ("b", {"x": "", "y": 2, "w": True}), ("c", {"x": 3, "z": ()})]
        self.assertEqual(clinvk.merge_layers(layers, ("w", "x", "y", "z", "v")), {"w": (False, "a"), "x": (3, "c"), "y": (1, "a"), "z": ((), "c")})


class Precedence(ConfigurationCase):
    def test_each_task_field_is_taken_from_the_first_that_says_it(self):
        # field, its value at: configuration, batch, command line, task; the option; how it shows in the command line of claude
        for field, file, batch, option, own, flag, shows in (
                ("model", "m1", "m2", "m3", "m4", "--model", "--model %s"), ("max_turns", 1, 2, 3, 4, "--max-turns", "--max-turns %s"),
                ("max_tokens", 1, 2, 3, 4, "--max-tokens", "CLAUDE_CODE_MAX_OUTPUT_TOKENS=%s"),
                ("system_prompt", "s1", "s2", "s3", "s4", "--system-prompt", "--append-system-prompt %s"),
                ("approval_mode", "auto", "none", "always", "auto", "--approval-mode", {"auto": "acceptEdits", "none": "bypassPermissions", "always": "dontAsk"})):
            place = "unified_flags" if field in ("max_turns", "max_tokens") else "backends:\n  claude"
            self.configure("default_backend: claude\n%s:\n    %s: %s\n" % (place, field, file))
            for said, expected in (((), file), (("batch",), batch), (("batch", "option"), option), (("batch", "option", "own"), own), (("own",), own)):
                task = {"prompt": "p"}
                if "own" in said:
                    task[field] = own
                value = {"tasks": [task], "defaults": {field: batch} if "batch" in said else {}}
                args = [flag, str(option)] if "option" in said else []
                with self.subTest(field=field, said=said):
                    done = self.clinvk("parallel", "--dry-run", *args, input=json.dumps(value))
                    shown = shows[expected] if isinstance(shows, dict) else shows % expected
                    self.assertIn(shown, done.stdout.decode(), done.stderr)

    def test_the_file_counts_last_for_every_field_that_it_can_say(self):
        # field: what the file says and where, what somebody else says, what is built in
        table = {"model": ("backends.echo.model", "m1", "m2", ""), "approval_mode": ("unified_flags.approval_mode", "auto", "none", "default"),
                 "sandbox_mode": ("unified_flags.sandbox_mode", "workspace", "full", "default"),
                 "system_prompt": ("backends.echo.system_prompt", "s1", "s2", ""), "max_turns": ("unified_flags.max_turns", 1, 2, 0),
                 "max_tokens": ("unified_flags.max_tokens", 1, 2, 0), "timeout": ("unified_flags.command_timeout_secs", 1.5, 2.5, 0.0),
                 "verbose": ("unified_flags.verbose", True, False, False), "dry_run": ("unified_flags.dry_run", True, False, False)}
        self.assertEqual(set(table), set(clinvk.Configuration().task_fields("echo")))
        for field, (key, said, other, built_in) in table.items():
            file = clinvk.Configuration("c.yaml", {key: said, "default_backend": "echo"})
            for source in ("nobody", "task", "command line", "batch", "environment"):
                if source == "environment" and field != "model":
                    continue
                rules = clinvk.TaskPolicy({field: other} if source == "command line" else {}, {"CLINVK_ECHO_MODEL": other} if source == "environment" else {},
                                     configuration=file)
                task = clinvk._job(dict({"prompt": "p"}, **{field: other} if source == "task" else {}), {field: other} if source == "batch" else {}, rules).task
                with self.subTest(field=field, source=source):
                    self.assertEqual(getattr(task, field), said if source == "nobody" else other)
            self.assertEqual(getattr(clinvk._job({"prompt": "p"}, {}, clinvk.TaskPolicy()).task, field), built_in)

    def test_the_environment_counts_before_the_file(self):
        self.configure("default_backend: codex\nbackends:\n  gemini: {model: from-file}\n")
        self.assertIn(" codex exec ", self.argv_of(backend=None))
        self.environment["CLINVK_BACKEND"] = "gemini"
        self.assertIn(" -m from-file ", self.argv_of(backend=None))
        self.environment["CLINVK_GEMINI_MODEL"] = "from-environment"
        self.assertIn(" -m from-environment ", self.argv_of(backend=None))

    def test_a_backends_own_settings_count_before_the_unified_ones(self):
        self.configure("unified_flags: {sandbox_mode: full}\nbackends:\n  codex: {sandbox_mode: read-only, extra_flags: [--x]}\n")
        self.assertIn(" -s read-only ", self.argv_of(backend="codex"))
        self.assertRegex(self.argv_of(backend="codex", extra=["--y"]), " --x --y - ")
        self.assertNotIn(" --policy ", self.argv_of(backend="gemini"))

    def test_tools_are_not_allowed_beforehand_where_a_sandbox_is_to_hold(self):
        self.configure("backends:\n  claude: {allowed_tools: Bash}\n")
        self.assertIn("--allowedTools Bash", self.argv_of(backend="claude"))
        for sandbox in ("read-only", "workspace"):
            self.assertNotIn("allowedTools", self.argv_of(backend="claude", sandbox_mode=sandbox))

    def test_what_the_file_adds_is_not_what_a_ceiling_is_about(self):
        self.configure("backends:\n  codex: {extra_flags: [--x]}\n")
        self.assertIn(" --x ", self.argv_of("--ceiling", "sandbox=workspace", backend="codex"))

    def test_a_batch_as_a_whole(self):
        self.configure("default_backend: echo\nparallel: {max_workers: 1, fail_fast: true, aggregate_output: false}\n")
        said = self.clinvk("parallel", input=json.dumps([{"prompt": "say a"}])).stdout
        self.assertIn(b"(max 1 parallel, fail-fast)", said)
        self.assertNotIn(b"Results\n", said)
        self.assertIn(b"Total: 1 task, 1 completed", said)
        said = self.clinvk("parallel", "-j", "2", input=json.dumps({"tasks": [{"prompt": "say a"}], "fail_fast": False})).stdout
        self.assertIn(b"(max 2 parallel)", said)

    def test_a_backend_that_is_disabled_is_refused(self):
        path = self.configure("backends:\n  echo:\n    enabled: false\n")
        done = self.clinvk("parallel", input=tasks("say a"))
        self.assertEqual((done.returncode, done.stdout), (2, b""))
        self.assertEqual(done.stderr.decode(), "clinvk: error: stdin:1: backend: echo is disabled by %s:3\n" % path)

    def test_a_limit_of_one_backend_does_not_hold_up_the_others(self):
        self.configure("backends:\n  claude: {max_parallel: 1}\n")
        go = self.path("go")
        batch = [{"backend": "claude", "prompt": "wait-for %s\nsay one" % go, "id": "first"}, {"backend": "claude", "prompt": "say two", "id": "second"},
                 {"backend": "echo", "prompt": "touch %s; say three" % go, "id": "other"}]
        for form in (json.dumps(batch), "".join(json.dumps(task) + "\n" for task in batch)):
            done = self.clinvk("parallel", "-j", "3", "--jsonl", "-q", input=form)
            answers = results(done)
            self.assertEqual([answer["status"] for answer in answers], ["ok"] * 3, answers)
            self.assertEqual([answer["task_id"] for answer in answers if answer["task_id"] != "other"], ["first", "second"])
            first, second = ([answer for answer in answers if answer["task_id"] == name][0] for name in ("first", "second"))
            self.assertLessEqual(first["end_time"], second["start_time"])
            os.unlink(go)

    def test_what_waits_for_its_backend_is_answered_when_the_run_is_stopped(self):
        self.configure("backends:\n  echo: {max_parallel: 1}\n")
        done = self.clinvk("parallel", "-j", "3", "--fail-fast", "--json", input=tasks("exit 3", "say a", "say b"))
        summary = json.loads(done.stdout)
        self.assertEqual((summary["total_tasks"], summary["failed"], summary["canceled"]), (3, 1, 2))


class Files(ConfigurationCase):
    def test_a_broken_file_ends_everything_before_it_starts(self):
        path = self.configure("unified_flags:\n  sandbox_mode: [\n")
        for command in (("parallel",), ("config", "show"), ("doctor",)):
            with self.subTest(command):
                done = self.clinvk(*command, input=tasks("touch " + self.path("started")))
                self.assertEqual((done.returncode, done.stdout), (3, b""))
                self.assertIn("clinvk: error: %s:2:" % path, done.stderr.decode())
        self.assertFalse(os.path.exists(self.path("started")))

    def test_the_file_is_where_somebody_says_it_is(self):
        self.configure("default_backend: codex\n")
        one, two = self.file("one.yaml", "default_backend: gemini\n"), self.file("two.yaml", '{"default_backend": "echo"}')
        for args, variable, program in (((), None, " codex "), ((), one, " gemini "), (("--config", two), one, " cat ")):
            self.environment.pop("CLINVK_CONFIG", None)
            if variable:
                self.environment["CLINVK_CONFIG"] = variable
            self.assertIn(program, self.argv_of(*args, backend=None))
            path = self.clinvk("config", "path", *args).stdout.decode().strip()
            self.assertEqual(path, args[1] if args else variable or self.path("own", "config.yaml"))

    def test_a_file_that_was_named_must_be_there(self):
        done = self.clinvk("parallel", "--config", self.path("none.yaml"), input=tasks("say a"))
        self.assertEqual((done.returncode, done.stderr.decode()), (3, "clinvk: error: %s: No such file or directory\n" % self.path("none.yaml")))
        os.rmdir(self.path("own"))
        self.assertEqual(self.clinvk("parallel", "-q", input=tasks("say a")).returncode, 0)

    def test_a_default_file_that_cannot_be_is_none_but_one_that_cannot_be_read_is_not(self):
        self.file("occupied", "")
        for home in ("/dev/null/x", self.path("occupied", "x")):
            with self.subTest(home):
                env = {"CLINVK_HOME": home}
                self.assertEqual(self.clinvk("parallel", "-q", input=tasks("say a"), env=env).returncode, 0)
                done = self.clinvk("-b", "echo", "say a", env=env)
                self.assertEqual((done.returncode, done.stdout), (0, b"a\n"))
                self.assertEqual(done.stderr.decode(), "clinvk: warning: this session is not kept: %s: Not a directory\n" % home)
                self.assertEqual(self.clinvk("config", "show", "--config", home + "/c.yaml").returncode, 3)
                self.assertEqual(self.clinvk("config", "show", env={"CLINVK_CONFIG": home + "/c.yaml"}).returncode, 3)
        os.mkdir(self.path("own", "config.yaml"))
        self.assertEqual(self.clinvk("parallel", input=tasks("say a")).returncode, 3)

    # A user without a home: HOME is not set, and nobody knows more of them, as in a container that is started with another user's number.
    HOMELESS = ("import pwd, sys\ndef nobody(*_):\n    raise KeyError\npwd.getpwuid = nobody\n"
                "sys.path.insert(0, %r)\nimport clinvk\nclinvk.console()\n" % support.MODULES)

    def test_without_a_home_everything_works_that_needs_none(self):
        def homeless(*args, **options):
            done = self.run_program([sys.executable, "-c", self.HOMELESS, *args], env={"HOME": None, "CLINVK_HOME": None}, cwd=self.path("own"), **options)
            self.assertEqual(os.listdir(self.path("own")), [])
            return done.returncode, done.stdout.decode(), done.stderr.decode()

        nowhere = "there is no home directory; set HOME or CLINVK_HOME\n"
        self.assertEqual(homeless("parallel", "-q", input=tasks("say a"))[0], 0)
        self.assertEqual(homeless("-b", "echo", "say a"), (0, "a\n", "clinvk: warning: this session is not kept: " + nowhere))
        self.assertEqual(homeless("-b", "echo", "--ephemeral", "say a"), (0, "a\n", ""))
        unread = "clinvk: warning: cannot read the sessions: " + nowhere
        self.assertEqual(homeless("sessions", "list"), (0, "", unread + "clinvk: there are no sessions\n"))
        self.assertEqual(homeless("resume", "--last", "x"), (4, "", unread + "clinvk: error: there is no session to resume\n"))
        self.assertEqual(homeless("config", "path"), (3, "", "clinvk: error: " + nowhere))

    def test_a_home_that_is_not_there_is_not_made(self):
        """System users have /nonexistent, which is to stay so."""
        for home in (self.path("nowhere"), ""):
            done = self.clinvk("-b", "echo", "say a", env={"HOME": home, "CLINVK_HOME": None})
            self.assertEqual((done.returncode, done.stdout), (0, b"a\n"))
            self.assertIn(b"this session is not kept: there is no home directory", done.stderr)
            self.assertFalse(os.path.exists(self.path("nowhere")))
            self.assertEqual(self.clinvk("parallel", "-q", input=tasks("say a"), env={"HOME": home, "CLINVK_HOME": None}).returncode, 0)

    def test_a_tilde_that_no_shell_has_replaced_is_the_home_directory(self):
        self.environment["HOME"] = self.home
        os.mkdir(os.path.join(self.home, "kept"))
        path = os.path.join(self.home, "kept", "config.yaml")
        os.rename(self.file("c.yaml", "output: {color: never}\n"), path)
        for variable, value in (("CLINVK_HOME", "~/kept"), ("CLINVK_CONFIG", "~/kept/config.yaml")):
            done = self.clinvk("config", "show", env={variable: value})
            self.assertIn('output.color: "never"  # %s:1\n' % path, done.stdout.decode())
        self.assertFalse(os.path.exists(self.path("~")))

    def test_a_file_that_never_ends_is_refused(self):
        done = self.clinvk("config", "show", "--config", "/dev/zero")
        self.assertEqual((done.returncode, done.stderr), (3, b"clinvk: error: /dev/zero: larger than 4 MB, which no configuration is\n"))

    def test_bytes_that_are_not_utf_8_are_named(self):
        self.file("own/config.yaml", b"# fine\ndefault_backend: \xff\n")
        self.assertIn(b"config.yaml:2: not valid UTF-8", self.clinvk("config", "show").stderr)

    def test_a_default_backend_must_be_known(self):
        self.configure("\ndefault_backend: copilot\n")
        done = self.clinvk("parallel", input=b'{"prompt": "p"}')
        self.assertEqual(done.returncode, 3)
        self.assertIn(b"config.yaml:2: default_backend: unknown backend", done.stderr)


class Commands(ConfigurationCase):
    def test_show_says_where_each_value_comes_from(self):
        path = self.configure("default_backend: codex\nbackends:\n  own:\n    command: [cat]\n")
        self.environment["CLINVK_CODEX_MODEL"] = "m"
        done = self.clinvk("config", "show", "--json")
        shown = json.loads(done.stdout)
        self.assertEqual(shown["default_backend"], {"value": "codex", "origin": path + ":1"})
        self.assertEqual(shown["backends.codex.model"], {"value": "m", "origin": "environment: CLINVK_CODEX_MODEL"})
        self.assertEqual(shown["parallel.max_workers"], {"value": 3, "origin": "built-in"})
        self.assertEqual(shown["backends.own.command"], {"value": ["cat"], "origin": path + ":4"})
        self.assertLessEqual(set(clinvk.SETTINGS), set(shown))
        lines = self.clinvk("config", "show").stdout.decode().splitlines()
        self.assertEqual(len(lines), len(shown))
        self.assertIn('default_backend: "codex"  # %s:1' % path, lines)

    def test_config_without_action_and_with_unknown_action_is_refused(self):
        self.assertEqual(self.clinvk("config").stderr,
                         b"clinvk config: error: expected an action (show, path), got none\n"
                         b"Try `clinvk config --help`.\n")
        done = self.clinvk("config", "set", "output.color", "never")
        self.assertEqual(done.returncode, 2)
        self.assertIn(b'expected an action (show, path), got "set"', done.stderr)

    def test_config_option_position_does_not_matter(self):
        path = self.file("c.yaml", "output: {color: never}\n")
        for words in (("show", "--config", path), ("--config", path, "show")):
            self.assertIn(b'output.color: "never"', self.clinvk("config", *words).stdout)

    def test_read_configuration_incomplete_setting_name_gets_a_hint(self):
        for text, message in (
                ("output: {colour: x}", 'output.colour: unknown setting "output.colour" (did you mean "output.color"?)'),
                ("backends: {claude: {modle: x}}", '(did you mean "backends.claude.model"?)'),
                ("color: x", "unknown setting")):
            with self.subTest(text), self.assertRaises(clinvk.ConfigError) as caught:
                clinvk.read_configuration(text, "c.yaml")
            self.assertIn(message, str(caught.exception))

    def test_a_command_of_the_configuration_is_a_backend(self):
        self.configure("backends:\n  shout:\n    command: [tr, a-z, A-Z]\n")
        done = self.clinvk("parallel", "-b", "shout", "--jsonl", "-q", input=b'{"prompt": "hello"}')
        self.assertEqual(results(done)[0]["output"], "HELLO")
        self.assertIn(b"shout", self.clinvk("doctor").stdout)


if __name__ == "__main__":
    unittest.main()
