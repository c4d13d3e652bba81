"""Section 4, Configuration: the file, its settings, what counts first, and `clinvk config`.

The YAML subset is tested in test_yaml.py.
"""
import json
import os
import sys
import unittest

import support
from support import clinvk, results, tasks

support.left_to_full_runs()

EVERYTHING = """\
# all settings
default_backend: echo
unified_flags: {approval_mode: auto, sandbox_mode: workspace, verbose: true, dry_run: false,
                max_turns: 3, max_tokens: 4, command_timeout_secs: 5.5}
backends:
  claude:
    model: opus
    effort: max
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
parallel:
  {max_workers: 7, fail_fast: true, idle_timeout: 10m, max_output: 64M, aggregate_output: false,
  retries: 0, retry_on: [network], retry_acted: true, max_wait: 0, one_per_workdir: true,
  max_cost: $2.50, allow_unknown_cost: true, max_failures: 10%, canary: 3}
""".replace(",\n  ", ", ") + """
""".replace(",\n                ", ", ")

# A file, its place in the message, and a part of the message.
MISTAKES = [
    ("unified_flags:\n  sandbox_mod: full\n", "2: unified_flags.sandbox_mod: ",
     'did you mean "unified_flags.sandbox_mode"?'),
    ("\nunifiedflags: {}\n", "2: unifiedflags: ", 'did you mean "unified_flags"?'),
    ("unified_flags:\n  sandbox_mode: readonly\n", "2: unified_flags.sandbox_mode: ",
     'did you mean "read-only"?'),
    ("unified_flags:\n  max_turns: -1\n", "2: unified_flags.max_turns: ", "from 1 on"),
    ("session: {retention_days: -1}\n", "1: session.retention_days: ", "from 0 on"),
    ("parallel:\n\n  max_workers: many\n", "3: ", "expected a whole number"),
    ("server:\n  port: 1\n", "1: server: ", "unknown setting"),
    ("color: x", "1: color: ", "unknown setting"),
    ("output.color: never", "1: output.color: ", "unknown setting"),
    ("output: {colour: x}", "1: output.colour: ",
     'unknown setting "output.colour" (did you mean "output.color"?)'),
    ("backends: {claude: {modle: x}}", "1: ", '(did you mean "backends.claude.model"?)'),
    ("unified_flags: 3\n", "1: unified_flags: ", "expected a mapping"),
    ("- a\n", "1: ", "expected a mapping"),
    ("backends:\n  claud:\n    model: x\n", "2: backends.claud: ", 'did you mean "claude"?'),
    ("backends:\n  claude:\n    command: [cat]\n", "3: backends.claude.command: ", "built in"),
    ("backends:\n  claude:\n    model: x\n    output: text\n    command: [cat]\n",
     "4: backends.claude.output: ", "built in"),
    ("backends:\n  own:\n    command: []\n", "3: backends.own.command: ",
     "expected a list that begins with the name of a program"),
    ("backends:\n  own:\n    command: [x, '{modle}']\n", "3: backends.own.command[1]: ",
     "did you mean"),
    ("backends:\n  codex:\n    allowed_tools: Bash\n", "3: backends.codex.allowed_tools: ",
     "only claude"),
    ("backends:\n  codex: 1\n", "2: backends.codex: ", "mapping"),
    ("a: &x 1\n", "1:4: ", "anchors"), ("a: 1\na: 2\n", "2:1: ", ""),
    ("unified_flags:\n\tsandbox_mode: full\n", "2:1: ", "tab"),
]


class ConfigurationCase(support.ForkingCase):
    def setUp(self):
        super().setUp()
        self.environment["CLINVK_HOME"] = self.path("own")
        os.mkdir(self.path("own"))

    def configure(self, text):
        return self.file("own/config.yaml", text)

    def commands(self, *own, args=()):
        """The command line of each of the tasks."""
        batch = [dict({"prompt": "p"}, **fields) for fields in own]
        done = self.clinvk("parallel", "--dry-run", *args, input=json.dumps(batch))
        self.assertEqual(done.stderr, b"")
        lines = done.stdout.decode().splitlines()
        self.assertEqual(len(lines), len(batch), done.stdout)
        return lines


class ReadConfiguration(unittest.TestCase):
    def test_read_configuration_every_setting_is_read(self):
        configuration = clinvk.read_configuration(EVERYTHING, "c.yaml")
        self.assertEqual({key for key in clinvk.SETTINGS if configuration.values.get(key) is not None},
                         set(clinvk.SETTINGS))
        fields = {key.split(".")[-1] for key in configuration.values
                  if key.startswith("backends.claude.")}
        self.assertEqual(fields | {"approval_mode"},
                         set(clinvk.BACKEND_SETTINGS) - set(clinvk.DEFINITION_FIELDS))
        self.assertEqual(configuration.definitions, {"own": clinvk.Definition(("cat",))})
        self.assertEqual(configuration.get("output.color"), "never")
        self.assertEqual(configuration.get("unified_flags.command_timeout_secs"), 5.5)

    def test_read_configuration_empty_values_are_not_set(self):
        for text in ("", "unified_flags:\n", "backends:\n  claude:\n", "default_backend: null\n",
                     "backends: {claude: {allowed_tools: all}}",
                     "unified_flags: {sandbox_mode: '', max_turns: 0, command_timeout_secs: 0}\n"):
            self.assertEqual(clinvk.read_configuration(text, "c.yaml").values, {}, text)

    def test_settings_each_default_passes_its_own_check(self):
        for key, (check, default) in clinvk.SETTINGS.items():
            with self.subTest(key=key):
                value = list(default) if isinstance(default, tuple) else default
                self.assertIn(check(value), (default, None))

    def test_read_configuration_mistake_is_an_error_with_line_and_path(self):
        for text, place, part in MISTAKES:
            with self.subTest(text), self.assertRaises(clinvk.ConfigError) as caught:
                clinvk.read_configuration(text, "c.yaml")
            message = str(caught.exception)
            self.assertTrue(message.startswith("c.yaml:" + place), message)
            self.assertIn(part, message)


class Precedence(ConfigurationCase):
    def test_merge_layers_first_layer_that_sets_a_name_counts(self):
        layers = [("a", {"x": None, "y": 1, "w": False}), ("b", {"x": "", "y": 2, "w": True}),
                  ("c", {"x": 3, "z": ()})]
        self.assertEqual(clinvk.merge_layers(layers, ("w", "x", "y", "z", "v")),
                         {"w": (False, "a"), "x": (3, "c"), "y": (1, "a"), "z": ((), "c")})

    def test_parallel_each_task_field_is_that_of_the_first_source(self):
        # of each field the value in file, batch, option and task, and how claude gets it
        table = {"model": ("m1", "m2", "m3", "m4", "--model %s"),
                 "effort": ("low", "high", "xhigh", "max", "--effort %s"),
                 "max_turns": (1, 2, 3, 4, "--max-turns %s"),
                 "max_tokens": (1, 2, 3, 4, "CLAUDE_CODE_MAX_OUTPUT_TOKENS=%s"),
                 "system_prompt": ("s1", "s2", "s3", "s4", "--append-system-prompt %s"),
                 "approval_mode": ("auto", "none", "always", "auto", "--permission-mode %s")}
        modes = {"auto": "acceptEdits", "none": "bypassPermissions", "always": "dontAsk"}

        def values(source):
            return {field: row[source] for field, row in table.items()}

        self.configure(json.dumps({
            "unified_flags": {name: table[name][0] for name in ("max_turns", "max_tokens")},
            "backends": {"claude": {name: table[name][0] for name in (
                "model", "effort", "system_prompt", "approval_mode")}}}))
        options = ["--%s=%s" % (field.replace("_", "-"), row[2]) for field, row in table.items()]
        for batch, args in ((False, []), (True, []), (True, options)):
            text = json.dumps({"tasks": [{"prompt": "p"}, dict(values(3), prompt="p")],
                               "defaults": values(1) if batch else {}})
            done = self.clinvk("parallel", "-b", "claude", "--dry-run", *args, input=text)
            first, second = [line for line in done.stdout.decode().splitlines() if " claude " in line]
            for line, source in ((first, 2 if args else int(batch)), (second, 3)):
                for field, value in values(source).items():
                    with self.subTest(field=field, source=source):
                        self.assertIn(table[field][4] % modes.get(value, value), line)

    def test_task_fields_of_the_file_count_after_all_other_sources(self):
        # of each field the key in the file, its value, another source's value, the built-in one
        table = {"model": ("backends.echo.model", "m1", "m2", ""),
                 "effort": ("backends.echo.effort", "low", "max", ""),
                 "approval_mode": ("unified_flags.approval_mode", "auto", "none", "default"),
                 "sandbox_mode": ("unified_flags.sandbox_mode", "workspace", "full", "default"),
                 "system_prompt": ("backends.echo.system_prompt", "s1", "s2", ""),
                 "max_turns": ("unified_flags.max_turns", 1, 2, 0),
                 "max_tokens": ("unified_flags.max_tokens", 1, 2, 0),
                 "timeout": ("unified_flags.command_timeout_secs", 1.5, 2.5, 0.0),
                 "idle_timeout": ("parallel.idle_timeout", 1.5, 2.5, 0.0),
                 "max_output": ("parallel.max_output", 1000, 2000, 0),
                 "verbose": ("unified_flags.verbose", True, False, False),
                 "dry_run": ("unified_flags.dry_run", True, False, False)}
        self.assertEqual(set(table), set(clinvk._FOR_ALL).union(clinvk._FOR_ONE))
        for field, (key, own, other, built_in) in table.items():
            file = clinvk.Configuration("c.yaml", {key: own, "default_backend": "echo"})
            for source in ("file", "task", "command line", "batch", "environment"):
                if source == "environment" and field != "model":
                    continue
                policy = clinvk.TaskPolicy(
                    {field: other} if source == "command line" else {},
                    {"CLINVK_ECHO_MODEL": other} if source == "environment" else {},
                    configuration=file)
                value = dict({"prompt": "p"}, **{field: other} if source == "task" else {})
                job = clinvk._job(value, {field: other} if source == "batch" else {}, policy)
                with self.subTest(field=field, source=source):
                    self.assertEqual(getattr(job.task, field), own if source == "file" else other)
            job = clinvk._job({"prompt": "p"}, {}, clinvk.TaskPolicy())
            self.assertEqual(getattr(job.task, field), built_in)

    def test_parallel_environment_counts_before_the_file(self):
        self.configure("default_backend: codex\nbackends:\n  gemini: {model: from-file}\n")
        self.assertIn(" codex exec ", self.commands({})[0])
        self.environment["CLINVK_BACKEND"] = "gemini"
        self.assertIn(" -m from-file ", self.commands({})[0])
        self.environment["CLINVK_GEMINI_MODEL"] = "from-environment"
        self.assertIn(" -m from-environment ", self.commands({})[0])

    def test_parallel_settings_of_a_backend_count_before_the_unified_ones(self):
        self.configure("unified_flags: {sandbox_mode: full}\nbackends:\n"
                       "  codex: {sandbox_mode: read-only, extra_flags: [--x]}\n"
                       "  claude: {allowed_tools: Bash}\n")
        codex, more, gemini, claude, *sandboxed = self.commands(
            {"backend": "codex"}, {"backend": "codex", "extra": ["--y"]}, {"backend": "gemini"},
            {"backend": "claude"}, {"backend": "claude", "sandbox_mode": "read-only"},
            {"backend": "claude", "sandbox_mode": "workspace"})
        self.assertIn(" -s read-only ", codex)
        self.assertRegex(more, " --x --y - ")
        self.assertNotIn(" --policy ", gemini)
        self.assertIn("--allowedTools Bash", claude)
        self.assertNotIn("allowedTools", "".join(sandboxed))  # because a sandbox is promised

    def test_parallel_ceiling_permits_extra_flags_of_the_file(self):
        self.configure("backends:\n  codex: {extra_flags: [--x]}\n")
        self.assertIn(" --x ", self.commands({"backend": "codex"},
                                             args=("--ceiling", "sandbox=workspace"))[0])

    def test_parallel_settings_of_the_run_count_after_batch_and_option(self):
        self.configure("default_backend: echo\nparallel: {max_workers: 1, fail_fast: true, "
                       "aggregate_output: false}\n")
        done = self.clinvk("parallel", input=json.dumps([{"prompt": "say a"}])).stdout
        self.assertIn(b"(max 1 parallel, fail-fast)", done)
        self.assertNotIn(b"Results\n", done)
        self.assertIn(b"Total: 1 task, 1 completed", done)
        batch = {"tasks": [{"prompt": "say a"}], "fail_fast": False}
        done = self.clinvk("parallel", "-j", "2", input=json.dumps(batch)).stdout
        self.assertIn(b"(max 2 parallel)", done)

    def test_parallel_disabled_backend_is_refused_with_its_line(self):
        path = self.configure("backends:\n  echo:\n    enabled: false\n")
        done = self.clinvk("parallel", input=tasks("say a"))
        self.assertEqual((done.returncode, done.stdout), (2, b""))
        self.assertEqual(done.stderr.decode(),
                         "clinvk: error: stdin:1: backend: echo is disabled by %s:3\n" % path)

    def test_parallel_limit_of_one_backend_does_not_delay_others(self):
        self.configure("backends:\n  claude: {max_parallel: 1}\n")
        go = self.path("go")
        batch = [{"backend": "claude", "prompt": "wait-for %s\nsay one" % go, "id": "first"},
                 {"backend": "claude", "prompt": "say two", "id": "second"},
                 {"backend": "echo", "prompt": "touch %s; say three" % go, "id": "other"}]
        for form in (json.dumps(batch), "".join(json.dumps(task) + "\n" for task in batch)):
            answers = results(self.clinvk("parallel", "-j", "3", "--jsonl", "-q", input=form))
            self.assertEqual([answer["status"] for answer in answers], ["ok"] * 3, answers)
            by_id = {answer["task_id"]: answer for answer in answers}
            self.assertLessEqual(by_id["first"]["end_time"], by_id["second"]["start_time"])
            os.unlink(go)

    def test_parallel_fail_fast_cancels_tasks_that_wait_for_their_backend(self):
        self.configure("backends:\n  echo: {max_parallel: 1}\n")
        done = self.clinvk("parallel", "-j", "3", "--fail-fast", "--json",
                           input=tasks("exit 3", "say a", "say b"))
        summary = json.loads(done.stdout)
        self.assertEqual((summary["total_tasks"], summary["failed"], summary["canceled"]), (3, 1, 2))


class Files(ConfigurationCase):
    def test_commands_damaged_file_ends_them_before_anything_starts(self):
        path = self.configure("unified_flags:\n  sandbox_mode: [\n")
        for command in (("parallel",), ("config", "show"), ("doctor",)):
            with self.subTest(command):
                done = self.clinvk(*command, input=tasks("touch " + self.path("started")))
                self.assertEqual((done.returncode, done.stdout), (3, b""))
                self.assertIn("clinvk: error: %s:2:" % path, done.stderr.decode())
        self.assertFalse(os.path.exists(self.path("started")))

    def test_configuration_path_option_counts_before_variables_and_home(self):
        for environment, option, path, named in (
                ({"HOME": self.home}, None, self.home + "/.clinvk/config.yaml", False),
                ({"CLINVK_HOME": "/h"}, None, "/h/config.yaml", False),
                ({"CLINVK_HOME": "/h", "CLINVK_CONFIG": "/c.yaml"}, None, "/c.yaml", True),
                ({"CLINVK_CONFIG": "/c.yaml"}, "o.yaml", "o.yaml", True),
                ({"HOME": ""}, None, clinvk.NO_HOME + "/config.yaml", False)):
            os.environ["HOME"], former = environment.get("HOME", "/"), os.environ.get("HOME", "")
            try:
                self.assertEqual(clinvk.configuration_path(option, environment), (path, named))
            finally:
                os.environ["HOME"] = former
        one = self.file("one.yaml", "default_backend: gemini\n")
        two = self.file("two.yaml", '{"default_backend": "echo"}')
        self.environment["CLINVK_CONFIG"] = one
        self.assertIn(" gemini ", self.commands({})[0])
        self.assertIn(" cat ", self.commands({}, args=("--config", two))[0])
        self.assertEqual(self.clinvk("config", "path", "--config", two).stdout.decode(), two + "\n")

    def test_load_configuration_only_a_named_file_must_exist(self):
        for environment in ({"CLINVK_HOME": self.path("none")}, {"CLINVK_HOME": "/dev/null/x"}):
            configuration = clinvk.load_configuration(None, environment)
            self.assertEqual(configuration.values, {})
        os.mkdir(self.path("own", "config.yaml"))
        for option, environment, reason in (
                (self.path("none.yaml"), {}, "No such file or directory"),
                (None, {"CLINVK_CONFIG": "/dev/null/x"}, "Not a directory"),
                (None, {"CLINVK_HOME": self.path("own")}, "Is a directory"),
                ("/dev/zero", {}, "is a device; expected a regular file, a pipe or a terminal"),
                (self.file("bytes.yaml", b"# fine\na: \xff\n"), {}, "bytes.yaml:2: not valid UTF-8")):
            with self.subTest(reason), self.assertRaises(clinvk.ConfigError) as caught:
                clinvk.load_configuration(option, environment)
            self.assertTrue(str(caught.exception).endswith(reason), str(caught.exception))

    def test_commands_file_that_cannot_be_read_ends_them_with_3(self):
        done = self.clinvk("parallel", "--config", self.path("none.yaml"), input=tasks("say a"))
        self.assertEqual((done.returncode, done.stderr.decode()), (
            3, "clinvk: error: %s: No such file or directory\n" % self.path("none.yaml")))

    def test_prompt_unusable_home_is_a_warning(self):
        self.file("occupied", "")
        home = self.path("occupied", "x")
        done = self.clinvk("-b", "echo", "say a", env={"CLINVK_HOME": home})
        self.assertEqual((done.returncode, done.stdout), (0, b"a\n"))
        self.assertEqual(done.stderr.decode(), "clinvk: warning: this session is not kept: "
                                               "%s: Not a directory\n" % home)

    # A user without HOME and without an entry in the list of users, as in some containers.
    HOMELESS = ("import pwd, sys\ndef nobody(*_):\n    raise KeyError\npwd.getpwuid = nobody\n"
                "sys.path.insert(0, %r)\nimport clinvk\nclinvk.console()\n" % support.MODULES)

    def test_commands_without_a_home_work_where_they_need_none(self):
        def homeless(*args, **options):
            done = self.run_program([sys.executable, "-c", self.HOMELESS, *args], cwd=self.path("own"),
                                    env={"HOME": None, "CLINVK_HOME": None}, **options)
            self.assertEqual(os.listdir(self.path("own")), [])
            return done.returncode, done.stdout.decode(), done.stderr.decode()

        nowhere = "there is no home directory; set HOME or CLINVK_HOME\n"
        unread = "clinvk: warning: cannot read the sessions: " + nowhere
        self.assertEqual(homeless("parallel", "-q", input=tasks("say a"))[0], 0)
        self.assertEqual(homeless("-b", "echo", "say a"),
                         (0, "a\n", "clinvk: warning: this session is not kept: " + nowhere))
        self.assertEqual(homeless("-b", "echo", "--ephemeral", "say a"), (0, "a\n", ""))
        self.assertEqual(homeless("sessions", "list"),
                         (0, "", unread + "clinvk: there are no sessions\n"))
        self.assertEqual(homeless("resume", "--last", "x"),
                         (4, "", unread + "clinvk: error: there is no session to resume\n"))
        self.assertEqual(homeless("config", "path"), (3, "", "clinvk: error: " + nowhere))

    def test_prompt_home_that_does_not_exist_is_not_made(self):
        for home in (self.path("nowhere"), ""):  # system users have /nonexistent
            done = self.clinvk("-b", "echo", "say a", env={"HOME": home, "CLINVK_HOME": None})
            self.assertEqual((done.returncode, done.stdout), (0, b"a\n"))
            self.assertIn(b"this session is not kept: there is no home directory", done.stderr)
            self.assertFalse(os.path.exists(self.path("nowhere")))

    def test_config_show_tilde_in_a_variable_is_the_home_directory(self):
        self.environment["HOME"] = self.home
        os.mkdir(os.path.join(self.home, "kept"))
        path = os.path.join(self.home, "kept", "config.yaml")
        os.rename(self.file("c.yaml", "output: {color: never}\n"), path)
        for variable, value in (("CLINVK_HOME", "~/kept"), ("CLINVK_CONFIG", "~/kept/config.yaml")):
            done = self.clinvk("config", "show", env={variable: value})
            self.assertIn('output.color: "never"  # %s:1\n' % path, done.stdout.decode())
        self.assertFalse(os.path.exists(self.path("~")))

    def test_unknown_default_backend_is_an_error_of_the_file(self):
        self.configure("\ndefault_backend: ghost\n")
        for command in (["parallel"], ["config", "show"], ["doctor"]):
            done = self.clinvk(*command, input=b'{"prompt": "p"}')
            self.assertEqual(done.returncode, 3)
            self.assertIn(b"config.yaml:2: default_backend: unknown backend", done.stderr)


class Commands(ConfigurationCase):
    def test_config_show_states_the_origin_of_each_value(self):
        path = self.configure("default_backend: codex\nbackends:\n  own:\n    command: [cat]\n")
        self.environment["CLINVK_CODEX_MODEL"] = "m"
        shown = json.loads(self.clinvk("config", "show", "--json").stdout)
        for key, value, origin in (
                ("default_backend", "codex", path + ":1"),
                ("backends.codex.model", "m", "environment: CLINVK_CODEX_MODEL"),
                ("parallel.max_workers", 3, "built-in"),
                ("backends.own.command", ["cat"], path + ":4")):
            self.assertEqual(shown[key], {"value": value, "origin": origin})
        self.assertLessEqual(set(clinvk.SETTINGS), set(shown))
        lines = self.clinvk("config", "show").stdout.decode().splitlines()
        self.assertEqual(len(lines), len(shown))
        self.assertIn('default_backend: "codex"  # %s:1' % path, lines)

    def test_config_show_has_the_known_programs_that_are_set(self):
        path = self.configure("backends:\n  llm:\n    model: a\n  qwen: {command: [mine], enabled: false}\n")
        self.environment["CLINVK_OLLAMA_MODEL"] = "m"
        shown = json.loads(self.clinvk("config", "show", "--json").stdout)
        self.assertEqual(shown["backends.llm.model"], {"value": "a", "origin": path + ":3"})
        self.assertEqual(shown["backends.ollama.model"], {"value": "m", "origin": "environment: CLINVK_OLLAMA_MODEL"})
        self.assertEqual(shown["backends.qwen.command"], {"value": ["mine"], "origin": path + ":4"})
        self.assertEqual([key for key in shown if key.startswith(("backends.aider.", "backends.llm.command", "backends.ollama.command"))], [])

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

    def test_parallel_command_of_the_file_is_a_backend(self):
        self.configure("backends:\n  shout:\n    command: [tr, a-z, A-Z]\n")
        done = self.clinvk("parallel", "-b", "shout", "--jsonl", "-q", input=b'{"prompt": "hello"}')
        self.assertEqual(results(done)[0]["output"], "HELLO")
        self.assertIn(b"shout", self.clinvk("doctor").stdout)


if __name__ == "__main__":
    unittest.main()
