"""Section 5, Backends: the exact command of each program for every field and mode, what is refused, and what is read
from outputs that the real programs printed.

tests/data has recordings of Claude Code 2.1.331, Codex 0.169.0 and Gemini CLI 0.61.0 against a mock API, shortened but not
changed: NAME.out is stdout, NAME.err is stderr.  Those with `made` in their names were written by hand, because no mock shows them.
The tests start only shells, which run the lines of --dry-run, and fake programs, which report how they were called."""
import json
import os
import random
import re
import shutil
import sys
import time
import unittest
from unittest import mock
from unittest.mock import ANY

import support
from support import clinvk, write_program

support.left_to_full_runs()

PROMPT = "--dangerous $(prompt)"
SCRATCH = clinvk.SCRATCH


def task(backend, **fields):
    return support.job(0, backend, PROMPT, **fields)


def command(backend, **fields):
    return clinvk.BACKENDS[backend].command(task(backend, **fields))


class Environment(support.Case):
    """A test whose environment is this process's, so that no configuration of its user's counts."""

    def setUp(self):
        super().setUp()
        self.enter_environment(CODEX_HOME=None, GEMINI_CLI_HOME=None, CLAUDE_CODE_MAX_RETRIES=None, DISABLE_AUTOUPDATER=None,
                               CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=None)
        self.environment = dict(os.environ)


CLAUDE_READS = '--setting-sources user --strict-mcp-config --settings {"disableAllHooks":true} --tools Read,Glob,Grep,WebFetch,WebSearch'
CLAUDE_WRITES = "--restricted --strict-mcp-config --tools Read,Glob,Grep,WebFetch,WebSearch,Edit,Write,NotebookEdit,Bash"
CODEX_READS = "-s read-only --ignore-rules"
CODEX_WRITES = ("-s workspace-write --ignore-rules -c sandbox_workspace_write.exclude_slash_tmp=true"
                " -c sandbox_workspace_write.writable_roots=[]")
POLICY = " --policy %s/policy.toml" % SCRATCH
UNCONFINED = 'without approval nothing would keep it in the workspace: use approval_mode "auto", or sandbox_mode "full"'
UNASKED = ('codex exec never asks, so with sandbox_mode "%s" it would write unasked: '
           'use sandbox_mode "read-only", or another approval_mode')
EVERY_COMMAND = ('codex exec never asks, so with sandbox_mode "full" it would run every command, not only edit files: '
                 'use sandbox_mode "workspace", or approval_mode "none"')

# For each sandbox mode what the approval modes default, auto, none and always come to: the words, or why they are refused.
MODES = {
    "claude": {
        "default": ("", "--permission-mode acceptEdits", "--permission-mode bypassPermissions", "--permission-mode dontAsk"),
        "read-only": ("--permission-mode dontAsk " + CLAUDE_READS,) * 4,
        "workspace": ("--permission-mode dontAsk " + CLAUDE_WRITES, "--permission-mode acceptEdits " + CLAUDE_WRITES, UNCONFINED,
                      "--permission-mode dontAsk " + CLAUDE_WRITES),
        "full": ("", "--permission-mode acceptEdits --add-dir /", "--permission-mode bypassPermissions", "--permission-mode dontAsk")},
    "codex": {
        "default": ("", "", "", CODEX_READS),
        "read-only": (CODEX_READS,) * 4,
        "workspace": (CODEX_WRITES, CODEX_WRITES, CODEX_WRITES, UNASKED % "workspace"),
        "full": ("-s danger-full-access", EVERY_COMMAND, "-s danger-full-access", UNASKED % "full")},
    "gemini": {
        "default": ("", "--approval-mode auto_edit", "--approval-mode yolo", "--approval-mode default"),
        "read-only": ("--approval-mode default" + POLICY,) * 4,
        "workspace": ("--approval-mode default" + POLICY, "--approval-mode auto_edit" + POLICY, UNCONFINED, "--approval-mode default" + POLICY),
        "full": ("", "--approval-mode auto_edit --include-directories /", "--approval-mode yolo --include-directories /",
                 "--approval-mode default")},
    "echo": {sandbox: ("",) * 4 for sandbox in clinvk.SANDBOX_MODES},
}
BASE = {
    "claude": ["claude", "-p", "--output-format", "stream-json", "--verbose", "--no-session-persistence"],
    "codex": ["codex", "exec", "--json", "--skip-git-repo-check", "--ephemeral", "--color", "never"],
    "gemini": ["gemini", "--skip-trust", "-o", "stream-json"],
    "echo": ["cat"],
}
LAST = {"codex": ["-"]}
ID = "01a20f0e-e425-7671-a9f0-21820580624d"


class Wrap(support.Case):
    """The words of --wrap come before the command, each placeholder replaced within its word."""

    def argv(self, wrap, **fields):
        return clinvk.command_of(support.job(3, "echo", "p", **fields)._replace(wrap=tuple(wrap))).argv

    def test_words_come_before_the_command_of_the_backend(self):
        plain = self.argv(())
        self.assertEqual(self.argv(("nice", "-n", "5")), ("nice", "-n", "5", *plain))
        self.assertEqual(self.argv(("x", "{workdir}:/w", "{scratch}/a", "t{task}"), workdir="/tmp"),
                         ("x", "/tmp:/w", clinvk.SCRATCH + "/a", "t3", *plain))
        self.assertEqual(self.argv(("{workdir}",))[0], os.getcwd())

    def test_other_braces_stay(self):
        self.assertEqual(self.argv(("{{.Names}}", "{x}", "{", "{ task}"))[:4], ("{{.Names}}", "{x}", "{", "{ task}"))

    def test_value_with_braces_is_not_searched_again(self):
        os.mkdir(self.path("{task}"))
        self.assertEqual(self.argv(("{workdir}",), workdir=self.path("{task}"))[0], self.path("{task}"))


class Commands(Environment):
    def assert_argv(self, backend, words, **fields):
        """The backend's own words, `words` as text or list, and what must come last."""
        words = words.split() if isinstance(words, str) else words
        with self.subTest(backend=backend, **fields):
            self.assertEqual(list(command(backend, **fields).argv), BASE[backend] + words + LAST.get(backend, []))

    def test_command_plain_task_has_these_words(self):
        self.assertEqual(set(BASE), set(clinvk.BACKENDS))
        self.assertEqual(clinvk.BUILT_IN, list(clinvk.BACKENDS))
        for backend in BASE:
            self.assert_argv(backend, "")

    def test_modes_of_each_backend_have_words_or_are_refused(self):
        for backend, row in clinvk.BACKENDS.items():
            for sandbox in clinvk.SANDBOX_MODES:
                for approval, words in zip(clinvk.APPROVAL_MODES, MODES[backend][sandbox]):
                    refused = row.impossible_modes.get((sandbox, approval), "")
                    if ": use " in words:
                        self.assertEqual(refused, words, (backend, sandbox, approval))
                    else:
                        self.assertEqual(refused, "", (backend, sandbox, approval))
                        self.assert_argv(backend, words, sandbox_mode=sandbox, approval_mode=approval)

    def test_modes_are_those_of_the_table(self):
        self.assertEqual(clinvk.APPROVAL_MODES, ("default", "auto", "none", "always"))
        self.assertEqual({tuple(rows) for rows in MODES.values()}, {clinvk.SANDBOX_MODES})

    def test_command_prompt_is_never_in_it(self):
        for backend in clinvk.BACKENDS:
            said = command(backend, model="m", system_prompt="s", extra=("-x",), max_turns=2, max_tokens=3, verbose=True,
                           sandbox_mode="read-only")
            self.assertTrue(said.by_stdin)
            for word in (*said.argv, *said.environment.values(), *said.preset.values(), *said.files.values()):
                self.assertNotIn(PROMPT, word)

    def test_claude_options_become_arguments(self):
        for field, value, words in (
                ("model", "opus", ["--model", "opus"]), ("effort", "max", ["--effort", "max"]), ("max_turns", 7, ["--max-turns", "7"]), ("verbose", True, []),
                ("system_prompt", "-be 审查\nbrief", ["--append-system-prompt", "-be 审查\nbrief"]),
                ("extra", ("--add-dir", "/x y"), ["--add-dir", "/x y"]), ("max_tokens", 777, []), ("timeout", 5.0, []), ("tags", ("t",), [])):
            self.assert_argv("claude", words, **{field: value})
        self.assert_argv("claude", ["--permission-mode", "acceptEdits", "--model", "m", "--max-turns", "1", "--append-system-prompt", "s", "--last"],
                         model="m", max_turns=1, system_prompt="s", verbose=True, extra=("--last",), approval_mode="auto")

    def test_claude_without_named_session_keeps_none(self):
        for extra in (("--resume", ID), ("-r", ID), ("--resume=" + ID,), ("--continue",), ("-c",), ("--session-id", ID), ("--fork-session",)):
            self.assertEqual(list(command("claude", extra=extra).argv), BASE["claude"][:-1] + list(extra))
        for extra in (("--add-dir", "resume"), ("resume",), ("--resumed",)):
            self.assert_argv("claude", list(extra), extra=extra)

    def test_claude_fields_without_option_become_variables(self):
        quiet = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1", "CLAUDE_CODE_MAX_RETRIES": "2"}
        as_root = {"IS_SANDBOX": "1"} if os.geteuid() == 0 else {}
        for fields, environment in (
                ({}, {}), ({"max_tokens": 777}, {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": "777"}), ({"approval_mode": "none"}, as_root),
                ({"approval_mode": "none", "sandbox_mode": "full"}, as_root), ({"approval_mode": "none", "sandbox_mode": "read-only"}, {}),
                ({"approval_mode": "auto"}, {})):
            said = command("claude", **fields)
            self.assertEqual((said.environment, said.preset, said.files), (environment, quiet, {}), fields)

    def test_claude_does_not_retry_where_clinvk_does(self):
        self.assertEqual(clinvk._claude_command(support.job(0, "claude", "x", retried=True)).preset["CLAUDE_CODE_MAX_RETRIES"], "0")
        for backend in ("codex", "gemini", "echo"):
            self.assertEqual(clinvk.BACKENDS[backend].command(support.job(0, backend, "x", retried=True, budget_usd=2.5)), command(backend))

    def test_claude_gets_its_budget_in_cents(self):
        for budget, words in ((0.0, []), (2.5, ["--max-budget-usd", "2.50"]), (1.239, ["--max-budget-usd", "1.23"]), (0.29, ["--max-budget-usd", "0.29"]),
                              (0.0001, ["--max-budget-usd", "0.01"]), (1234.567, ["--max-budget-usd", "1234.56"])):
            self.assertEqual(list(clinvk._claude_command(support.job(0, "claude", "x", budget_usd=budget)).argv), BASE["claude"] + words)

    def test_claude_literal_prompt_adds_no_file(self):
        variables = ("CLAUDE_CODE_DISABLE_FILE_MENTIONS", "CLAUDE_CODE_DISABLE_ATTACHMENTS")
        for sandbox in clinvk.SANDBOX_MODES:
            plain = command("claude", sandbox_mode=sandbox)
            literal = command("claude", sandbox_mode=sandbox, literal=True)
            self.assertEqual((plain.environment, literal.argv), ({}, plain.argv))
            expected = variables if sandbox == "read-only" else variables[:1]
            self.assertEqual(literal.environment, dict.fromkeys(expected, "1"), sandbox)

    def test_literal_prompt_with_slash_is_not_a_command(self):
        for prompt in ("/help", "/mine\nmore", "/etc/hosts is", "//", " /x", "\n/x", "x /y", "\ufeff/x"):
            for backend, row in clinvk.BACKENDS.items():
                one = clinvk.Job(0, clinvk.Task(backend, prompt))
                before = "\n" if backend in ("claude", "gemini") and prompt[0] == "/" else ""
                self.assertEqual(row.text(one), prompt)
                self.assertEqual(row.text(one._replace(literal=True)), before + prompt, backend)

    # A bar stands before each @ that could lead gemini elsewhere.
    REFERENCES = (
        "see |@/etc/passwd now", "|@../x", "in |@sub/x.txt", '|@"a b"', "|@\\x", "x|@/y", "|@x|@/y",
        "\\@x|@/y", "(|@/x)", "\t|@~/x\r\n|@/y.", "|@.../../x", "|@\0\u3000/x", "|@a\u00a0/b",
        '|@x"', "|@|@/x", "git|@host:a/b", "me@example.com and /x", "@in.txt, @property @ /",
        "\\@/x", "@", "@ /x", "@(/x)")

    def test_gemini_literal_prompt_path_outside_is_escaped(self):
        self.enter_environment(GEMINI_CLI_HOME=self.directory)
        text = clinvk.BACKENDS["gemini"].text
        for marked in self.REFERENCES:
            for mode in ({}, {"sandbox_mode": "read-only"}, {"sandbox_mode": "full"},
                         {"sandbox_mode": "workspace", "approval_mode": "auto"}):
                one = clinvk.Job(0, clinvk.Task("gemini", marked.replace("|", ""), **mode))
                self.assertEqual(text(one), one.task.prompt)
                self.assertEqual(text(one._replace(literal=True)), marked.replace("|", "\\"))
        self.assertEqual(text(clinvk.Job(0, clinvk.Task("gemini", "/x @/y"), literal=True)), "\n/x \\@/y")

    def test_gemini_larger_workspace_escapes_every_path(self):
        self.enter_environment(GEMINI_CLI_HOME=self.directory)
        prompt = "me@example.com @in.txt \\@x @ y"
        escaped = "me\\@example.com \\@in.txt \\@x @ y"

        def said(**fields):
            return clinvk.BACKENDS["gemini"].text(
                support.job(0, "gemini", prompt, literal=True, **fields))

        for approval in clinvk.APPROVAL_MODES:
            self.assertEqual(said(approval_mode=approval), prompt)
            self.assertEqual(said(sandbox_mode="full", approval_mode=approval),
                             escaped if approval in ("auto", "none") else prompt)
        for extra in ("--include-directories", "--include-directories=/x", "--includeDirectories"):
            self.assertEqual(said(extra=(extra, "/x")), escaped)
        os.mkdir(self.path(".gemini"))
        self.file(".gemini/settings.json", {"context": {}})
        self.assertEqual(said(), prompt)
        self.file(".gemini/settings.json", {"context": {"includeDirectories": ["/x"]}})
        self.assertEqual(said(sandbox_mode="read-only"), escaped)

    def test_literal_prompt_size_sets_the_time_needed(self):
        for piece in ("@", "@x", "\\@", '@"', "@a/"):
            one = clinvk.Job(0, clinvk.Task("gemini", piece * 500000), literal=True)
            self.assertGreaterEqual(len(clinvk.BACKENDS["gemini"].text(one)), len(one.task.prompt))

    def test_codex_options_become_arguments(self):
        for field, value, words in (
                ("model", "gpt-x", ["-m", "gpt-x"]), ("system_prompt", 'say "审查"\n', ["-c", 'developer_instructions="say \\"审查\\"\\n"']),
                ("effort", "xhigh", ["-c", "model_reasoning_effort=xhigh"]),
                ("extra", ("--output-schema", "f"), ["--output-schema", "f"]), ("extra", ("resume", ID), ["resume", ID]),
                ("max_turns", 7, []), ("max_tokens", 7, []), ("verbose", True, [])):
            self.assert_argv("codex", words, **{field: value})
        self.assert_argv("codex", ["-s", "read-only", "--ignore-rules", "-m", "m", "-c", 'developer_instructions="s"', "resume", ID],
                         model="m", system_prompt="s", extra=("resume", ID), sandbox_mode="read-only")
        self.assertEqual(command("codex", model="m", system_prompt="s")[1:6], ({}, {}, {}, True, ""))

    def test_codex_system_prompt_is_a_toml_string(self):
        text = "it's \"x\" \\ \t\x7f\x00 審 \U0001f600\n$HOME?"
        setting = command("codex", system_prompt=text[:-1] + "\udcff").argv[-2]
        name, _, value = setting.partition("=")
        self.assertEqual((name, json.loads(value)), ("developer_instructions", text))
        self.assertNotRegex(value, r"\\ud[89a-f]|[\x00-\x08\x0a-\x1f\x7f]", "TOML knows no surrogate pairs, and no control characters but tab")
        try:
            import tomllib
        except ImportError:
            return
        self.assertEqual(tomllib.loads(setting), {"developer_instructions": text})

    def test_gemini_options_become_arguments_and_files(self):
        for field, value, words in (
                ("model", "gemini-3-pro", ["-m", "gemini-3-pro"]), ("extra", ("-e", "none"), ["-e", "none"]), ("system_prompt", "s", []),
                ("max_turns", 7, []), ("max_tokens", 7, []), ("verbose", True, [])):
            self.assert_argv("gemini", words, **{field: value})
        alone = {"GEMINI_CLI_NO_RELAUNCH": "1"}
        self.assertEqual(command("gemini")[1:6], (alone, {}, {}, True, ""))
        self.assertEqual(command("gemini", system_prompt="be brief\n")[1:6], (
            dict(alone, GEMINI_SYSTEM_MD=SCRATCH + "/system.md"), {}, {"system.md": "be brief\n"}, True, ""))

    GEMINI_READS = '"list_directory","read_file","read_many_files","grep_search","search_file_content","glob","google_web_search"'
    POLICY = '[[rule]]\ntoolName = "*"\ndecision = "deny"\npriority = 997\n[[rule]]\ntoolName = [%s]\ndecision = "allow"\npriority = 998\n'

    def test_gemini_sandbox_is_kept_by_a_policy(self):
        for sandbox, row in MODES["gemini"].items():
            for approval, words in zip(clinvk.APPROVAL_MODES, row):
                if ": use " not in words:
                    files = command("gemini", sandbox_mode=sandbox, approval_mode=approval, system_prompt="s").files
                    policy = files.pop("policy.toml", "")
                    self.assertEqual(files, {"system.md": "s"})
                    reading = self.POLICY % self.GEMINI_READS if POLICY in words else ""
                    self.assertTrue(policy.startswith(reading), policy)
                    self.assertEqual("write_file" in policy, "auto_edit" in words and POLICY in words)

    def gemini_writing(self, workdir):
        """The rules on writing, most important first: each its decision and whether it concerns a tool's arguments."""
        rules = []
        for text in command("gemini", sandbox_mode="workspace", approval_mode="auto", workdir=workdir).files["policy.toml"].split("[[rule]]\n"):
            rule = {name: json.loads(value) for name, value in (line.split(" = ", 1) for line in text.splitlines())}
            if rule and rule["toolName"] == ["write_file", "replace"]:
                rules.append((rule["priority"], rule["decision"], re.compile(rule.get("argsPattern", "")).search))
        return [rule[1:] for rule in sorted(rules, reverse=True, key=lambda rule: rule[0])]

    def test_gemini_workspace_policy_allows_the_workdir_only(self):
        odd, delete = self.path("it's (a+b) [c] .* $ 审"), self.path("a\x7fb")
        os.mkdir(odd)
        os.mkdir(delete)
        os.symlink(odd, self.path("link"))
        for workdir in (self.home, odd, delete, self.path("link"), ""):
            here = workdir or os.getcwd()
            (denial, denied), (permission, allowed) = self.gemini_writing(workdir)
            self.assertEqual((denial, permission), ("deny", "allow"))
            for path, refused in (
                    ("x.txt", False), ("sub/x", False), (here + "/x", False), (here + "/sub/x", False), (os.path.realpath(here) + "/x", False),
                    ("/etc/passwd", True), (here + "x", True), (here + "-more/x", True), (os.path.dirname(here) + "/x", True),
                    ("../x", True), (here + "/../x", True),
                    ("a/../../x", True), ('a"/../../x', True), ("a\\/../../x", True), ("//etc/passwd", True)):
                for arguments in ({"file_path": path, "content": "/etc/../x"}, {"content": 'its "file_path":"/etc/x"', "file_path": path}):
                    text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
                    self.assertEqual((bool(denied(text)), bool(allowed(text))), (refused, not refused), (workdir, text))
            self.assertTrue(denied('{"a":{"file_path":"x"},"file_path":"/etc/x"}'))

    def test_gemini_policy_of_the_root_directory_allows_every_path(self):
        (decision, applies), = self.gemini_writing("/")
        self.assertEqual(decision, "allow")
        self.assertTrue(applies('{"content":"x","file_path":"/etc/x"}') and applies('{"file_path":"x"}'))

    def test_gemini_policy_of_odd_directory_is_toml(self):
        # TOML has no raw control characters, nor DEL, and no escapes of surrogates
        for name in ("a\x7fb", "nl\nx", "q\"x", "back\\x", "\u2028", "\U0001f600", "e\u0301"):
            text = command("gemini", sandbox_mode="workspace", approval_mode="auto", workdir="/w/" + name).files["policy.toml"]
            self.assertNotRegex(text, r"[\x00-\x09\x0b-\x1f\x7f]|\\u[dD][89a-fA-F]")
            for line in text[:-1].split("\n"):
                self.assertRegex(line, r'\A(\[\[rule\]\]|priority = \d+|\w+ = \[?"([^"\\]|\\.|",")*"\]?)\Z')

    def test_gemini_name_that_it_cannot_find_is_refused(self):
        for name, tmp, problem in (
                ("plain", "", ""), ("a,b", "", ""), ("plain", "a,b", "gemini cuts the name of its policy at the comma of TMPDIR, "),
                ("bad\udcff", "", "is not valid UTF-8"), ("plain", "bad\udcff", "is not valid UTF-8")):
            self.enter_environment(TMPDIR=self.path(tmp))
            for sandbox in ("read-only", "workspace"):
                said = command("gemini", sandbox_mode=sandbox, workdir=self.path(name)).problem
                self.assertIn(problem, said)
                self.assertEqual(bool(problem), bool(said), said)
            self.assertEqual(command("gemini", workdir=self.path(name)).problem, "")

    def test_option_warnings_field_without_effect_is_named(self):
        everything = dict(model="m", effort="low", system_prompt="s", max_turns=2, max_tokens=3, extra=("x",), verbose=True)
        expected = {"claude": [], "codex": ["max_turns", "max_tokens", "verbose"], "gemini": ["effort", "max_turns", "max_tokens", "verbose"],
                    "echo": ["model", "effort", "system_prompt", "max_turns", "max_tokens", "extra", "verbose"]}
        for backend, fields in expected.items():
            self.assertEqual(clinvk.option_warnings(task(backend, **everything)),
                             tuple("%s has no %s; it was not applied" % (backend, field) for field in fields))
            self.assertEqual(clinvk.option_warnings(task(backend)), ())

    def test_option_warnings_codex_resume_has_a_caution(self):
        caution = "codex counts the tokens of the whole session that it resumed"
        self.assertEqual(clinvk.option_warnings(task("codex", extra=("resume", ID))), (caution,))
        self.assertEqual(clinvk.option_warnings(task("codex", extra=("resume", ID), max_turns=2)),
                         ("codex has no max_turns; it was not applied", caution))
        for backend, extra in (("codex", ("--resume",)), ("claude", ("resume",)), ("gemini", ("--resume", "latest"))):
            self.assertEqual(clinvk.option_warnings(task(backend, extra=extra)), ())

    def test_honours_fields_change_the_command(self):
        values = dict(model="m", effort="low", system_prompt="s", max_turns=2, max_tokens=3, extra=("x",), verbose=True)
        for backend, row in clinvk.BACKENDS.items():
            for field, value in values.items():
                changed = command(backend, **{field: value}) != command(backend)
                always = (backend, field) == ("claude", "verbose")
                self.assertEqual(changed or always, field in row.honours, (backend, field))

    def test_prompt_too_large_states_size_and_limit(self):
        for backend, unit, most, character in (("claude", "bytes", 10000000, "x"), ("claude", "bytes", 10000000, "审"),
                                               ("codex", "characters", 1048576, "审"), ("gemini", "bytes", 8388608, "é")):
            row, width = clinvk.BACKENDS[backend], len(character.encode()) if unit == "bytes" else 1
            self.assertEqual(clinvk.refused_prompt(row, character * (most // width)), "")
            too_large = clinvk.refused_prompt(row, character * (most // width + 1))
            self.assertEqual(too_large, "the prompt has {:,} {}; {} takes {:,} at most".format((most // width + 1) * width, unit, backend, most))
        self.assertEqual(clinvk.refused_prompt(clinvk.BACKENDS["echo"], "x" * 20000000), "")

    def test_stop_signal_is_sigint_for_codex_only(self):
        self.assertEqual({name: row.stop_signal for name, row in clinvk.BACKENDS.items()},
                         {"claude": "SIGTERM", "codex": "SIGINT", "gemini": "SIGTERM", "echo": "SIGTERM"})


class Leftovers(Environment):
    """What gemini writes down of a conversation, with the real names."""

    SESSION = "12af6918-7077-4a89-a969-4f041870d5d6"

    def setUp(self):
        super().setUp()
        self.places = {name: self.path(name, ".gemini", "tmp", "project") for name in ("home", "elsewhere")}
        for place in self.places.values():
            os.makedirs(os.path.join(place, "chats"))

    def put(self, name, text, home="home"):
        path = os.path.join(self.places[home], name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        return path

    def left(self, session=SESSION, **fields):
        return sorted(clinvk.BACKENDS["gemini"].leftovers(task("gemini", **fields), clinvk.Reply(session_id=session)))

    def test_leftovers_are_the_records_of_the_run(self):
        own = [self.put("chats/session-2026-11-24T19-56-12af6918.jsonl", '{"sessionId":"%s","kind":"main"}\n' % self.SESSION),
               self.put("tool-outputs/session-%s/out.txt" % self.SESSION, "x")]
        own[1] = os.path.dirname(own[1])
        self.put("chats/session-2026-11-24T19-57-12af6918.jsonl", '{"sessionId":"12af6918-0000-4a89-a969-4f041870d5d6"}\n')
        self.put("chats/session-2026-11-24T19-56-aaaaaaaa.jsonl", '{"sessionId":"aaaaaaaa-0000-4a89-a969-4f041870d5d6"}\n')
        self.put("logs.json", self.SESSION)
        self.assertEqual(self.left(), own)
        for row in ("claude", "codex", "echo"):
            self.assertEqual(clinvk.BACKENDS[row].leftovers(task(row), clinvk.Reply(session_id=self.SESSION)), [])

    def test_leftovers_with_named_session_are_kept(self):
        own = [self.put("chats/session-2026-11-24T19-56-12af6918.jsonl", self.SESSION)]
        for extra in (("--resume", "latest"), ("-r", "1"), ("--resume=latest",), ("--session-id", "mine"), ("--session-id=mine",)):
            self.assertEqual(self.left(extra=extra), [])
        self.assertEqual(self.left(extra=("--resumed", "x")), own)

    def test_leftovers_are_searched_in_the_home_of_gemini(self):
        for home in ("home", "elsewhere"):
            self.put("chats/session-2026-11-24T19-56-12af6918.jsonl", self.SESSION, home)
        os.environ["GEMINI_CLI_HOME"] = self.path("elsewhere")
        self.assertEqual([os.path.relpath(path, self.places["elsewhere"]) for path in self.left()],
                         ["chats/session-2026-11-24T19-56-12af6918.jsonl"])

    def test_leftovers_without_session_id_are_none(self):
        self.put("chats/session-2026-11-24T19-56-12af6918.jsonl", self.SESSION)
        self.put("chats/session-2026-11-24T19-57-[12]*.jsonl", "[12]*")
        self.put("tool-outputs/session-12af6918/x", "x")
        self.put("../../../precious/x", "x")
        above = "/../../../../../precious"
        self.assertTrue(os.path.isdir(os.path.join(self.places["home"], "tool-outputs", "session-12af6918") + above))
        for session in ("", "1", "-", "1*", "*", "[12]*", "session", "12af6918", "/", "../..", above, "x\0y", "\udcff", "e" * 300):
            with self.subTest(session):
                self.assertEqual(self.left(session), [])

    def test_leftovers_of_a_large_answer_do_not_include_it(self):
        record = self.put("chats/session-2026-11-24T19-56-5e551000.jsonl", "5e551000-0000-4000-8000-000000000003")
        state = clinvk.WorkerState("run", self.path("state"))
        os.mkdir(state.directory)
        result = clinvk.run_job(clinvk.Job(0, clinvk.Task("gemini", "flood 100000")), state)
        state.drop_files()
        self.assertEqual(result.status, "ok")
        self.assertFalse(os.path.exists(record))
        self.assertTrue([name for name in os.listdir(state.directory) if os.path.getsize(os.path.join(state.directory, name)) == 100000])
        result.answer.take()


class CaptureCase(Environment):
    def capture(self, data):
        file = clinvk.nameless_file(self.directory)
        self.addCleanup(os.close, file)
        clinvk.write_all(file, data)
        return clinvk.Capture(file)

    def limit(self, name, value):
        """Give a constant of clinvk another value for the rest of the test."""
        self.addCleanup(setattr, clinvk, name, getattr(clinvk, name))
        setattr(clinvk, name, value)


HELLO = "MOCK-OK: hello from the mock model."
METADATA = ("Model metadata for `gpt-5.1-codex` not found. Defaulting to fallback metadata; this can degrade performance and cause issues.",)


def tokens(total_input, cached, output, reasoning, written=0):
    counts = {"input_tokens": total_input, "cached_input_tokens": cached, "output_tokens": output,
              "reasoning_output_tokens": reasoning, "total_tokens": total_input + output}
    return dict(counts, cache_write_input_tokens=written) if written else counts


def claude(requests=1, **more):
    """What a run of claude says after so many requests to the mock."""
    return dict({"output": HELLO, "usage": tokens(1700 * requests, 200 * requests, 34 * requests, 0, 300 * requests),
                 "cost_usd": round(0.00702 * requests, 9), "num_turns": requests, "model": "claude-opus-5-5"}, **more)


def codex(requests=1, **more):
    return dict({"output": HELLO, "usage": tokens(1200 * requests, 200 * requests, 34 * requests, 10 * requests), "warnings": METADATA}, **more)


def gemini(requests=1, **more):
    return dict({"output": HELLO, "usage": tokens(1200 * requests, 200 * requests, 44 * requests, 10 * requests), "model": "gemini-2.5-pro"}, **more)


def claude_error(error, kind, **more):
    return dict({"error": error, "error_kind": kind, "cost_usd": 0.0, "num_turns": 1}, **more)


def codex_error(error, kind, **more):
    return dict({"error": error, "error_kind": kind, "warnings": METADATA}, **more)


def gemini_error(error, kind, **more):
    return dict({"error": error, "error_kind": kind, "model": "gemini-2.5-pro"}, **more)


EXHAUSTED = "[API Error: You exceeded your current quota, please check your plan and billing details.\nSuggested retry after %ds.]"
ENDED = "Model stream ended without a finish reason."
NO_STDOUT = {"output": None}
ONE = {"output": "I will use a tool."}

# The recording, the exit code, and what is read: the beginning of the error; the other fields whole, and empty if not said.
# The session is the one that the recording names.
READINGS = (
    ("claude-ok", 0, claude()),
    ("claude-json", 0, claude()),
    ("claude-array", 0, claude()),
    ("claude-cut-recovered", 0, claude(usage=tokens(5100, 600, 36, 0, 900), cost_usd=0.01994)),
    ("claude-error-event-recovered", 0, claude(usage=tokens(6800, 800, 37, 0, 1200))),
    ("claude-not-json-recovered", 0, claude()),
    ("claude-denied", 0, claude(2, warnings=("permission denied: Bash: touch /etc/xx",))),
    ("claude-made-limit-allowed", 0, claude()),
    ("claude-made-limit-warning", 0, claude(
        output="429 Too Many Requests: you've hit your limit, quota exceeded, please try again in 5 minutes. 审查")),
    ("claude-made-limit-rejected", 1, claude_error("You've hit your session limit · resets 10:50pm", "quota", retry_after_seconds=0.0)),
    ("claude-resumed", 0, claude()),  # its total_cost_usd is that of two runs
    ("claude-resumed-400", 1, claude_error("API Error: 400 mock: bad request", "invalid")),
    ("claude-two-results", 0, claude(2, num_turns=ANY)),
    ("claude-400", 1, claude_error("API Error: 400 mock: bad request", "invalid")),
    ("claude-401", 1, claude_error("Invalid API key · Fix external API key", "auth")),
    ("claude-403", 1, claude_error("Failed to authenticate. API Error: 403", "permission")),
    ("claude-404", 1, claude_error("There's an issue with the selected model (claude-opus-5-5).", "invalid")),
    ("claude-429", 1, claude_error("API Error: Request rejected (429)", "rate_limit", retry_after_seconds=2.473)),
    ("claude-429-gave-up", 1, claude_error("API Error: Request rejected (429)", "rate_limit")),
    ("claude-quota", 1, claude_error("Credit balance is too low", "quota")),
    ("claude-500", 1, claude_error("API Error: 500 Internal server error.", "overloaded")),
    ("claude-529", 1, claude_error("API Error: 529 Overloaded.", "overloaded", retry_after_seconds=2.382)),
    ("claude-no-key", 1, claude_error("Not logged in · Please run /login", "auth")),
    ("claude-max-turns", 1, claude(2, **ONE, error="Reached maximum number of turns (2)", error_kind="max_turns", num_turns=3)),
    ("claude-budget", 1, claude(2, **ONE, error="Reached maximum budget ($0.01)", error_kind="budget", usage=tokens(1700, 200, 34, 0, 300))),
    ("claude-max-tokens", 1, claude(4, error="API Error: Claude's response exceeded the 128000 output token maximum.", error_kind="backend")),
    ("claude-refusal", 1, claude(2, error="API Error: Opus 5.5's safeguards flagged this message", error_kind="invalid")),
    ("claude-resume-unknown", 1, claude_error("No conversation found with session ID: 11111111", ANY, num_turns=None)),
    ("claude-bad-option", 1, dict(NO_STDOUT, error="error: unknown option '--frob'", error_kind="invalid")),
    ("claude-no-prompt", 1, dict(NO_STDOUT, error="Error: Input must be provided either through stdin", error_kind=ANY)),
    ("claude-root", 1, dict(NO_STDOUT, error="--dangerously-skip-permissions cannot be used with root", error_kind=ANY)),
    ("codex-ok", 0, codex()),
    ("codex-tool", 0, codex(2)),
    ("codex-resumed", 0, codex(2)),  # the tokens of two runs: it tells no others
    ("codex-made-reconnecting", 0, codex()),
    ("codex-made-noise", 0, codex(warnings=())),
    ("codex-400", 1, codex_error("mock error 400", "invalid")),
    ("codex-401", 1, codex_error("unexpected status 401 Unauthorized: Incorrect API key", "auth")),
    ("codex-403", 1, codex_error("unexpected status 403 Forbidden", "permission")),
    ("codex-404", 1, codex_error("The model `gpt-5.1-codex` does not exist", "invalid")),
    ("codex-429", 1, codex_error("exceeded retry limit, last status: 429 Too Many Requests", "rate_limit")),
    ("codex-error-event", 1, codex_error("rate limit exceeded: Rate limit reached for gpt-5.1-codex.", "rate_limit", retry_after_seconds=2.0)),
    ("codex-quota", 1, codex_error("Quota exceeded. Check your plan and billing details.", "quota")),
    ("codex-500", 1, codex_error("We’re currently experiencing high demand", "overloaded")),
    ("codex-503", 1, codex_error("unexpected status 503 Service Unavailable", "overloaded")),
    ("codex-529", 1, codex_error("unexpected status 529 <unknown status code>", "overloaded")),
    ("codex-cut", 1, codex_error("stream disconnected before completion", "network")),
    ("codex-max-tokens", 1, codex_error("Incomplete response returned, reason: max_output_tokens", "backend", output=HELLO)),
    ("codex-no-key", 1, codex_error("Missing environment variable: `MOCK_KEY`.", "auth")),
    ("codex-bad-option", 2, {"error": "error: unexpected argument '--frob' found", "error_kind": "invalid"}),
    ("codex-resume-unknown", 1, {"error": "Error: thread/resume: thread/resume failed: no rollout found", "error_kind": ANY}),
    ("codex-too-large", 1, {"error": "Error: turn/start: turn/start failed: Input exceeds the maximum length", "error_kind": "context_length"}),
    ("codex-no-git", 1, {"error": "Not inside a trusted directory and --skip-git-repo-check", "error_kind": "permission"}),
    ("codex-bad-config", 1, {"error": "Error loading config.toml: model_providers.mock: provider name", "error_kind": ANY}),
    ("gemini-ok", 0, gemini()),
    ("gemini-tool", 0, gemini(2)),
    ("gemini-write", 0, gemini(2)),
    ("gemini-max-tokens", 0, gemini()),  # it does not tell
    ("gemini-400", 144, gemini_error("API key not valid.", "auth")),
    ("gemini-401", 145, gemini_error("Request had invalid authentication credentials.", "auth")),
    ("gemini-403", 147, gemini_error("Permission denied.", "permission")),
    ("gemini-404", 1, gemini_error("[API Error: models/gemini-2.5-pro is not found for API version v1beta", "invalid")),
    ("gemini-429", 173, gemini_error(EXHAUSTED % 2, "rate_limit", retry_after_seconds=2.0)),
    ("gemini-429-minute", 173, gemini_error(EXHAUSTED % 60, "rate_limit", retry_after_seconds=60.0)),
    ("gemini-quota", 173, gemini_error("[API Error: You have exhausted your daily quota on this model.]", "quota")),
    ("gemini-500", 244, gemini_error("An internal error has occurred.", "overloaded")),
    ("gemini-503", 247, gemini_error("[API Error: The model is overloaded. Please try again later.]", "overloaded")),
    ("gemini-cut", 0, gemini_error(ENDED, "network", output="MOCK-OK: hello fr")),
    ("gemini-error-event", 0, gemini_error(ENDED, "network")),
    ("gemini-not-json", 1, gemini_error("[API Error: Expected property name or '}' in JSON at position 1]", "backend")),
    ("gemini-max-turns", 53, gemini(output="", error="Reached max session turns for this session.", error_kind="max_turns")),
    ("gemini-json-400", 144, {"error": "API key not valid.", "error_kind": "auth"}),
    ("gemini-json-429", 173, {"error": "You exceeded your current quota", "error_kind": "rate_limit", "retry_after_seconds": 2.0}),
    ("gemini-no-key", 41, dict(NO_STDOUT, error="When using Gemini API, you must specify the GEMINI_API_KEY", error_kind="auth")),
    ("gemini-untrusted", 55, dict(NO_STDOUT, error="Gemini CLI is not running in a trusted directory.", error_kind="permission")),
    ("gemini-resume-unknown", 42, dict(NO_STDOUT, error="Error resuming session: Invalid session identifier", error_kind="invalid")),
    ("gemini-no-prompt", 42, dict(NO_STDOUT, error="No input provided via stdin.", error_kind="invalid")),
    ("gemini-bad-option", 1, dict(NO_STDOUT, error="Unknown argument: frob", error_kind="invalid")),
)
# Runs in which a tool ran.
ACTED = ("claude-budget", "claude-denied", "claude-max-turns", "claude-terminated-tool", "codex-interrupted-tool", "codex-tool",
         "gemini-max-turns", "gemini-tool", "gemini-write")
# Runs that were stopped: what they had said, and how that begins what they waited for.
STOPPED = (
    ("claude-terminated", 143, "", ""),
    ("claude-terminated-tool", 143, "I will use a tool.", ""),
    ("claude-429-waiting", 143, "", "rate_limit, HTTP status 429"),
    ("claude-refused-waiting", 143, "", "unknown"),
    ("codex-interrupted", 1, "", ""),
    ("codex-interrupted-tool", 1, "", ""),
    ("codex-refused-waiting", 1, "", "Reconnecting... waiting for network (Connection failed: error sending request)"),
    ("gemini-terminated", 0, "MOCK-OK: hello fr", ""),
    ("gemini-429-waiting", 0, "", "Attempt 2 failed: You exceeded your current quota, please check your plan and billing details."),
    ("gemini-500-waiting", 0, "", "Attempt 2 failed with status 500. Retrying with backoff..."),
)


def recorded(name):
    """(stdout, stderr) of a recording."""
    paths = [os.path.join(support.DATA, name + suffix) for suffix in (".out", ".err")]
    out, err = (support.data_file(path) if os.path.exists(path) else b"" for path in paths)
    return out, err.decode()


def backend_of(name):
    return name.partition("-")[0]


def session_in(text):
    found = re.search(r'"(?:session_id|thread_id)": ?"([^"]+)"', text)
    return found.group(1) if found else ""


# The same for the programs of KNOWN.  They were driven by hand: that they are installed is not asked of CI.
KNOWN_READINGS = (
    ("aider-ok", 0, {"output": None}), ("aider-401", 0, {"output": None, "error": "litellm.AuthenticationError: ", "error_kind": "auth"}),
    ("copilot-no-login", 1, {"output": None, "error": "Error: No authentication information found.", "error_kind": "auth"}),
    ("llm-429", 1, {"output": None, "error": "Error: Error code: 429 - Rate limit", "error_kind": "rate_limit", "retry_after_seconds": 20.0}),
    ("llm-unknown-model", 1, {"output": None, "error": "Error: 'Unknown model: nix'", "error_kind": "invalid"}),
    ("opencode-ok", 0, {"output": HELLO, "session_id": "ses_dd8b194deffeQSN7x54bm4Jet3"}),
    ("opencode-tool", 0, {"output": HELLO, "session_id": "ses_dd86f3246ffeJl15kOIqvTWGQR"}),
    ("opencode-401", 1, {"error": "Incorrect API key provided: mock.", "error_kind": "auth", "session_id": "ses_dd8b12b9affefFLdbZLIMbpjmj"}),
    ("opencode-429", 1, {"error": "Rate limit reached for mock-429", "error_kind": "rate_limit", "retry_after_seconds": 20.0,
                         "session_id": "ses_dd8b1006dffeaLZ9WzZBgnYLHS"}),
    ("opencode-no-session", 1, {"error": "Error: Session not found", "error_kind": "invalid"}),
    ("qwen-ok", 0, {"output": HELLO, "usage": tokens(2400, 400, 68, 0), "session_id": "74c70612-ad07-4a9f-bcc1-c1c0a044f37b"}),
    ("qwen-401", 1, {"error": "[API Error: 401 Incorrect API key provided: mock.]", "error_kind": "auth",
                     "session_id": "f4785ac3-b298-41f1-9c15-9c207ad733c3"}),
    ("qwen-no-auth", 1, {"error": "No auth type is selected.", "error_kind": "auth", "session_id": "d5992586-32a6-4743-8702-e183f78054f5"}),
    ("qwen-schema", 0, {"output": '{"a":5}', "structured": {"a": 5}, "usage": tokens(10, 0, 3, 0), "session_id": "3124a445-5f91-4e36-8db1-66e317043135"}),
    ("qwen-schema-refused", 1, {"error": "Model produced plain text instead of", "error_kind": "schema", "usage": tokens(20, 0, 6, 0),
                                "session_id": "d51dabe8-6e9b-49bc-b40c-52fcda2e6645"}),
    ("qwen-no-session", 1, {"error": "No saved session found with title", "error_kind": "invalid"}),
)

FENCE = "```json\n%s\n```"


class Schemas(CaptureCase):
    SCHEMA = {"type": "object", "properties": {"mail": {"pattern": "@x"}}}

    def test_json_in_takes_a_value_or_one_fence_or_the_last_that_is_marked(self):
        for text, value in (
                (' {"a": 1}\n', {"a": 1}), ("[1]", [1]), ('"x"', "x"), ('{"a": "1\n2\t"}', {"a": "1\n2\t"}), (FENCE % "{}", {}), ("```\n[1]\n```", [1]),
                ("  ~\n" + FENCE % "1" + "\nthen\n" + FENCE % "2" + "\nend", 2), ("````JSON\r\n[\n```\n]\r\n````\r\n", None), ("x\n```JSON\r\n[1]\r\n```\r\n", [1]),
                ("see ```json {} ```", None), ("```\n1\n```\n```\n2\n```", None), ("```python\n1\n```\n" + FENCE % "2" + "\n```\n3\n```", 2), ("Here: {}", None), ("{} {}", None),
                ("", None), ("```json\n{}", None), (FENCE % "{", None), ("NaN", None), ('{"a": Infinity}', None), ("1e999", None), ("\udcff", None), ("[" * 100000, None),
                ('{"a": "```json\n1\n```"}', {"a": "```json\n1\n```"}), ('{"a": 12345678901234567890123}', {"a": 12345678901234567890123})):
            with self.subTest(text[:50]):
                if value is None:
                    self.assertRaisesRegex(ValueError, "^the answer is not JSON: ", clinvk.json_in, text)
                else:
                    self.assertEqual(clinvk.json_in(text), value)
        self.assertRaisesRegex(ValueError, "^data.a.b: the key is given twice in one object$", clinvk.json_in, FENCE % '{"a": {"b": 1, "b": 2}}')

    def test_schema_is_an_option_of_claude(self):
        said = command("claude", schema=self.SCHEMA)
        self.assertEqual(said.argv[said.argv.index("--json-schema") + 1], '{"type":"object","properties":{"mail":{"pattern":"\\u0040x"}}}')
        self.assertEqual(said.preset["MAX_STRUCTURED_OUTPUT_RETRIES"], "2")
        self.assertNotIn("MAX_STRUCTURED_OUTPUT_RETRIES", command("claude").preset)

    def test_schema_is_a_file_of_codex_where_its_strict_mode_takes_it(self):
        strict = {"type": "object", "properties": {"a": {"type": ["string", "null"]}, "b": {"anyOf": [{"$ref": "#/$defs/x"}]}}, "required": ["a", "b"],
                  "additionalProperties": False, "$defs": {"x": {"type": "array", "items": {"type": "integer"}, "minItems": 1}}, "title": "t"}
        said, plain = command("codex", schema=strict), command("codex")
        self.assertEqual(said.argv, (*plain.argv[:-1], "--output-schema", SCRATCH + "/schema.json", "-"))
        self.assertEqual(said.files, {"schema.json": json.dumps(strict, separators=(",", ":"))})
        self.assertEqual((clinvk.schema_request(task("codex", schema=strict)), clinvk.option_warnings(task("codex", schema=strict))), ("", ()))
        for change, problem in (
                ({"additionalProperties": True}, 'the top has no "additionalProperties": false'), ({"required": ["b"]}, 'the top does not require "a"'),
                ({"allOf": [{"type": "object"}]}, "the top has allOf"), ({"properties": {"a": {"enum": [1]}, "b": True}}, "properties.a has no type"),
                ({"properties": {"a": {"type": "null"}, "b": True}}, "properties.b is true"),
                ({"properties": {"a": {"type": "null"}, "b": {"type": "null"}, "additionalProperties": {}},
                  "required": ["a", "b", "additionalProperties"]}, "properties.additionalProperties has no type"),
                ({"$defs": {"x": {"type": "object"}}}, '["$defs"].x has no "additionalProperties": false')):
            with self.subTest(problem):
                other = task("codex", schema=dict(strict, **change))
                self.assertEqual(clinvk.command_of(other), plain)
                self.assertIn("Answer with one JSON object", clinvk.BACKENDS["codex"].text(other))
                self.assertEqual(clinvk.option_warnings(other), (
                    "codex takes no schema in which %s; it is asked for the schema in the prompt" % problem,))

    def test_own_command_gets_the_schema_by_placeholders(self):
        def job(*words, **fields):
            return support.job(0, "own", "p", **fields)._replace(definition=clinvk.Definition(("x", *words)))

        text = clinvk.schema_text(task("echo", schema=self.SCHEMA).task)
        for words, argv, files in ((("--schema", "{schema}"), ("--schema", text), {}),
                                   (("--schema", "@{schema_file}"), ("--schema", "@%s/schema.json" % SCRATCH), {"schema.json": text})):
            asked = job(*words, schema=self.SCHEMA)
            said = clinvk.command_of(asked)
            self.assertEqual((said.argv, said.files, clinvk.backend_of(asked).text(asked)), (("x", *argv), files, "p"))
            self.assertEqual(clinvk.command_of(job(*words)), clinvk.Command(("x",)))
        both = clinvk.command_of(job("{prompt}", schema=self.SCHEMA)).argv[1]
        self.assertTrue(both.startswith("p\n\nAnswer with one JSON object") and both.endswith(text + "\n"), both)

    def test_data_of_claude_is_its_structured_output(self):
        def read(code=0, **fields):
            return clinvk.BACKENDS["claude"].read(self.capture(clinvk.dumps(dict({"type": "result", "subtype": "success", "result": "{}"}, **fields))), "", code)

        self.assertEqual(read(structured_output={"a": 2 ** 70}).structured, {"a": 2 ** 70})
        self.assertEqual([read().structured, read(structured_output={}, is_error=True).structured, read(1, structured_output={}).structured], [None] * 3)
        failed = read(1, subtype="error_max_structured_output_retries", is_error=True, result="", errors=["no valid output"])
        self.assertEqual((failed.error, failed.error_kind), ("no valid output", "schema"))

    def test_long_strings_of_claudes_data_are_whole(self):
        self.limit("LONG_LINE", clinvk.CHUNK)
        data = {"a": ["x" * 300000, {"b": "y" * 300000}]}
        capture = self.capture(clinvk.dumps({"type": "result", "subtype": "success", "result": "z", "structured_output": data}))
        reply = clinvk.BACKENDS["claude"].read(capture, "", 0)
        self.assertFalse(reply.structured == data)
        self.assertTrue(capture.whole(reply.structured) == data)


class Readers(CaptureCase):
    def read(self, backend, stdout=b"", stderr="", code=0):
        row = clinvk.backend_of(clinvk.Job(0, clinvk.Task(backend, "x")))
        return row.read(self.capture(stdout), stderr, code)

    def check(self, reply, **expected):
        fields = dict(clinvk.Reply()._asdict(), waiting=ANY, usage_is_cumulative=ANY, acted=ANY, **expected)
        for field, value in fields.items():
            if field == "error" and value:
                self.assertEqual(reply.error[:len(value)], value)
            else:
                self.assertEqual(getattr(reply, field), value, field)

    def test_usage_of_codex_only_is_cumulative(self):
        for backend in ("claude", "codex", "gemini"):
            self.assertEqual(self.read(backend, recorded(backend + "-ok")[0]).usage_is_cumulative, backend == "codex")

    def test_tool_that_ran_is_seen_however_the_run_ended(self):
        acted = {name for name, code, *_ in READINGS + STOPPED if self.read(backend_of(name), *recorded(name), code).acted}
        self.assertEqual(acted, set(ACTED))

    def test_only_tools_that_can_act_count(self):
        def use(name):
            return {"type": "assistant", "message": {"content": [{"type": "text", "text": "x"}, {"type": "tool_use", "name": name}]}}

        def item(event, kind):
            return {"type": event, "item": {"type": kind}}

        for backend, event, acted in (
                ("claude", use("Bash"), True), ("claude", dict(use("Bash"), parent_tool_use_id="t"), True), ("claude", use("StructuredOutput"), False),
                ("claude", {"type": "assistant", "message": {"content": "tool_use"}}, False),
                ("codex", item("item.started", "command_execution"), True), ("codex", item("item.started", "file_change"), True),
                ("codex", item("item.started", "mcp_tool_call"), True), ("codex", item("item.started", "some_new_tool"), True),
                ("codex", item("item.started", "reasoning"), False), ("codex", item("item.started", "todo_list"), False),
                ("codex", item("item.completed", "agent_message"), False), ("gemini", {"type": "tool_use", "tool_name": "x"}, True)):
            with self.subTest(event):
                self.assertIs(self.read(backend, json.dumps(event).encode() + b"\n", code=1).acted, acted)

    def test_claude_limits_of_the_account_are_those_of_the_last_event(self):
        def stated(*windows, code=0):
            *events, result = recorded("claude-made-limit-allowed")[0].splitlines()
            events = [event for event in events if b"rate_limit_event" not in event]
            events += [clinvk.dumps({"type": "rate_limit_event", "rate_limit_info": {"status": "allowed", "unifiedWindows": each}}) for each in windows]
            return self.read("claude", b"\n".join(events + [result] * (not code)), code=code).limits

        week = {"seven_day": {"utilization": 1, "resetsAt": 1753600000.5, "status": "allowed", "surpassedThreshold": None}}
        both = dict(week, five_hour={"utilization": 0.24, "resetsAt": 1753088400})
        for code in (0, 1):
            self.assertEqual(stated(week, both, code=code), {"five_hour": {"utilization": 0.24, "resets_at": 1753088400},
                                                             "seven_day": {"utilization": 1, "resets_at": 1753600000.5}})
        self.assertEqual(stated({"five_hour": {"utilization": "0.2", "resetsAt": 5}}), {"five_hour": {"resets_at": 5}})
        for odd in (None, [], "x", {}, {"five_hour": None}, {"five_hour": {"utilization": True, "resetsAt": -1}}, {"a": {"utilization": 1e300}}):
            self.assertIsNone(stated(odd))
        self.assertIsNone(stated())

    def test_recordings_are_read_as_stated(self):
        for name, code, expected in READINGS:
            with self.subTest(name):
                stdout, stderr = recorded(name)
                self.check(self.read(backend_of(name), stdout, stderr, code),
                           **dict(expected, session_id=session_in(stdout.decode() + stderr)))

    def test_recordings_of_known_programs_are_read_as_stated(self):
        for name, code, expected in KNOWN_READINGS:
            with self.subTest(name):
                self.check(self.read(backend_of(name), *recorded(name), code), **expected)

    def test_recordings_are_all_in_a_table(self):
        told = [row[0] for row in READINGS + STOPPED + KNOWN_READINGS]
        self.assertEqual(sorted(told), sorted({name.rpartition(".")[0] for name in os.listdir(support.DATA)}))

    def test_reader_of_stopped_run_keeps_text_and_wait(self):
        for name, code, output, waiting in STOPPED:
            with self.subTest(name):
                stdout, stderr = recorded(name)
                reply = self.read(backend_of(name), stdout, stderr, code)
                self.assertEqual((reply.output, reply.waiting[:len(waiting) or None], reply.session_id),
                                 (output, waiting, session_in(stdout.decode())))
                self.assertNotIn("None", reply.waiting)
                self.assertTrue(reply.error, "ended by somebody else it has failed")

    def test_reader_ignores_noise_on_stderr(self):
        for name in ("gemini-terminated", "gemini-no-prompt"):
            stdout, stderr = recorded(name)
            self.assertTrue(stderr.startswith("Warning: 256-color support not detected."))
            self.assertNotIn("256-color", self.read("gemini", stdout, stderr, 1).error)

    def test_reader_ignores_key_order_blanks_and_line_ends(self):
        def reordered(value):
            if isinstance(value, dict):
                return {key: reordered(value[key]) for key in reversed(list(value))}
            return [reordered(item) for item in value] if isinstance(value, list) else value

        for name, code, _ in READINGS:
            stdout, stderr = recorded(name)
            if "made-noise" in name or not stdout:
                continue
            values = [json.loads(line) for line in stdout.splitlines()]
            expected = self.read(backend_of(name), stdout, stderr, code)
            for lines in ([json.dumps(value).encode() for value in values], [json.dumps(reordered(value), indent=None).encode() for value in values],
                          [clinvk.dumps(value) + b"\r\n" for value in values], [b"  " + clinvk.dumps(value) + b" \n" for value in values]):
                reply = self.read(backend_of(name), b"\n".join(lines), stderr, code)
                self.assertEqual(reply, expected, name)

    def test_reader_marks_pass_over_no_event(self):
        class All(clinvk.Capture):
            def events(self, *marks, answer):
                return super().events(b"", answer=answer)

        for name, code, _ in READINGS:
            stdout, stderr = recorded(name)
            file = self.capture(stdout).file
            read = clinvk.BACKENDS[backend_of(name)].read
            self.assertEqual(read(clinvk.Capture(file), stderr, code), read(All(file), stderr, code), name)

    def test_reader_of_torn_stream_fails_and_keeps_text(self):
        chance = random.Random(8)
        for name in ("claude-ok", "claude-denied", "codex-ok", "codex-tool", "gemini-ok", "gemini-tool"):
            stdout, stderr = recorded(name)
            whole = self.read(backend_of(name), stdout)
            last = stdout.rstrip(b"\n").rfind(b"\n") + 1  # where the event begins that says that it is complete
            ends = [match.end() for match in re.finditer(b"\n", stdout[:last])]
            for cut in sorted(set(ends + [chance.randrange(len(stdout) - 1) for _ in range(40)] + [len(stdout) - 2])):
                reply = self.read(backend_of(name), stdout[:cut])
                self.assertTrue(reply.error, (name, cut))
                self.assertEqual(reply.error_kind, "backend")
                self.assertEqual(reply.session_id, whole.session_id if cut >= ends[0] else "")
                if cut >= last:
                    self.assertEqual(reply.output, whole.output)
            self.assertEqual(self.read(backend_of(name), stdout.rstrip(b"\n")), whole, "the last newline is not needed")

    def test_claude_rejected_limit_event_sets_the_wait(self):
        events = [json.loads(line) for line in recorded("claude-made-limit-rejected")[0].splitlines()]
        for status, code, most in (("rejected", 1, 3600), ("allowed", 1, None), ("allowed_warning", 1, None), ("rejected", 0, None)):
            events[1]["rate_limit_info"].update(status=status, resetsAt=int(time.time()) + 3600)
            if not code:
                events[-1].update(is_error=False, result="fine")
            events[-1]["result"] = events[-1]["result"].partition(" · ")[0]
            reply = self.read("claude", b"\n".join(map(clinvk.dumps, events)), code=code)
            self.assertEqual(bool(reply.error), bool(code))
            if most is None:
                self.assertIsNone(reply.retry_after_seconds)
            else:
                self.assertTrue(most - support.PATIENCE < reply.retry_after_seconds <= most, reply.retry_after_seconds)
        for odd in (None, "soon", [], {}, True, -5, 0, 1e30):
            events[1]["rate_limit_info"].update(status="rejected", resetsAt=odd)
            events[-1].update(is_error=True)
            self.assertIsNone(self.read("claude", b"\n".join(map(clinvk.dumps, events)), code=1).retry_after_seconds)

    def test_claude_rejected_limit_event_decides_over_unknown_words(self):
        events = [json.loads(line) for line in recorded("claude-made-limit-rejected")[0].splitlines()]
        events[-1]["api_error_status"] = None
        for said, kind, limit in (("x", "quota", {}), ("x", "backend", {"status": "allowed"}), ("x", "backend", {"isUsingOverage": True}),
                                  ("Not logged in", "auth", {}), ("x", "backend", {"resetsAt": None})):
            events[1]["rate_limit_info"] = dict({"status": "rejected", "resetsAt": 1753088400}, **limit)
            events[-1]["result"] = said
            self.assertEqual(self.read("claude", b"\n".join(map(clinvk.dumps, events)), code=1).error_kind, kind)

    def test_error_kind_of_subscription_limit_is_quota(self):
        events = [json.loads(line) for line in recorded("claude-429-gave-up")[0].splitlines()]
        for text in ("You've hit your limit · resets 1pm (Europe/Lisbon)", "You've hit your weekly limit · resets Sep 15 at 7pm",
                     "You're out of extra usage · resets 11:30am (Asia/Colombo)", "Claude AI usage limit reached|1753088400"):
            for status in (429, None):
                events[-1].update(result=text, api_error_status=status)
                self.assertEqual(self.read("claude", b"\n".join(map(clinvk.dumps, events)), code=1).error_kind, "quota")
        failed = {"type": "turn.failed",
                  "error": {"message": "You've hit your usage limit. Upgrade to Pro or try again in 4 days 2 hours 46 minutes."}}
        reply = self.read("codex", clinvk.dumps(failed), code=1)
        self.assertEqual((reply.error_kind, reply.retry_after_seconds), ("quota", 4 * 86400 + 2 * 3600 + 46 * 60))

    def test_error_kind_of_used_up_credit_is_quota(self):
        for text in ("You're out of credits. Buy more to continue.", "You\u2019re out of credits",
                     "Your workspace is out of credits. Ask your workspace owner to refill",
                     "You hit your spend cap set in your workspace", "You've reached your workspace credit limit"):
            failed = {"type": "turn.failed", "error": {"message": text}}
            self.assertEqual(self.read("codex", clinvk.dumps(failed), code=1).error_kind, "quota", text)
        for text in ("You've hit your monthly spend limit \u00b7 /usage-credits to raise it",
                     "You've hit your channel's monthly spend limit", "monthly spend limit reached"):
            for status in (429, 403, None):
                result = {"type": "result", "is_error": True, "result": text, "api_error_status": status, "session_id": "s"}
                self.assertEqual(self.read("claude", clinvk.dumps(result), code=1).error_kind, "quota", text)

    def test_codex_cache_writes_are_part_of_the_input(self):
        usage = {"input_tokens": 1200, "cached_input_tokens": 200, "cache_write_input_tokens": 300, "output_tokens": 34,
                 "reasoning_output_tokens": 10}
        reply = self.read("codex", clinvk.dumps({"type": "turn.completed", "usage": usage}))
        self.assertEqual(reply.usage, dict(usage, total_tokens=1234))

    def test_gemini_refused_login_advises_a_key(self):
        text = ("This client is no longer supported for Gemini Code Assist for individuals. "
                "To continue using Gemini, please migrate to another product")
        thrown = ("Error authenticating: IneligibleTierError: %s\n    at setup (file:///x.js:1:2) {\n"
                  "  ineligibleTiers: [ { reasonCode: 'UNSUPPORTED_CLIENT' } ]\n}\n" % text)
        block = json.dumps({"session_id": "s", "error": {"type": "Error", "message": text, "code": 403}}, indent=2)
        result = {"type": "result", "status": "error", "error": {"type": "unknown", "message": text}}
        for stdout, stderr, code in ((b"", thrown, 1), (b"", thrown, 41), (b"", "Failed to sign in.\nMessage: %s\n" % text, 1),
                                     (b"", "noise\n" + block, 147),
                                     (clinvk.dumps(result), "", 1), (b"", "Failed.\n\n%s\n\nBye." % text.replace("for Gemini", "for\nGemini"), 1)):
            reply = self.read("gemini", stdout, stderr, code)
            self.assertEqual(reply.error_kind, "auth", stderr)
            self.assertRegex(reply.error, r"^gemini does not accept the login of a personal account any more, use an API key \(GEMINI_API_KEY\): \w")
        self.assertEqual(self.read("gemini", recorded("gemini-ok")[0], thrown).error, "", "noise of a good run")

    def test_claude_is_error_decides_over_exit_code(self):
        stdout, _ = recorded("claude-401")
        self.assertEqual(self.read("claude", stdout, code=0).error_kind, "auth", "its subtype is success, and so may its exit code be")
        stdout, _ = recorded("claude-made-limit-warning")
        reply = self.read("claude", stdout, "hook failed\n", code=3)
        self.assertEqual((reply.error, reply.error_kind), ("hook failed", "backend"))
        self.assertTrue((reply.output or "").startswith("429 Too Many"), "an answer is kept")

    def test_claude_early_end_in_older_versions_fails(self):
        for subtype, kind in (("error_max_turns", "max_turns"), ("error_max_budget_usd", "budget"), ("error_during_execution", "backend")):
            for more in ({}, {"errors": []}, {"result": "half an answer"}):
                result = dict({"type": "result", "subtype": subtype, "is_error": False, "num_turns": 2, "session_id": "s"}, **more)
                reply = self.read("claude", clinvk.dumps(result))
                self.assertEqual((bool(reply.error), reply.error_kind), (True, kind), result)

    def test_claude_denial_has_the_telling_input(self):
        value = json.loads(recorded("claude-json")[0])
        for given, told in (({"command": "touch x\nrm y", "description": "d"}, ": touch x"), ({"file_path": "/x", "content": "c"}, ": /x"),
                            ({"url": "http://x/", "prompt": "p"}, ": http://x/"), ({"pattern": "p"}, ": p"), ({"old": "p"}, ""), (None, ""), ([], ""), ({"command": 5}, ""),
                            ({"command": "\x1b[31m" + "x" * 500}, ": ^[[31m" + "x" * 188), ({"command": ""}, "")):
            value["permission_denials"] = [{"tool_name": "Tool", "tool_use_id": "t", "tool_input": given}]
            self.assertEqual(self.read("claude", clinvk.dumps(value)).warnings, ("permission denied: Tool" + told,))
        value["permission_denials"] *= 100
        self.assertEqual(len(self.read("claude", clinvk.dumps(value)).warnings), 20)
        value["permission_denials"] = [None, {}, "x", {"tool_name": []}]
        self.assertEqual(self.read("claude", clinvk.dumps(value)).warnings, ("permission denied: ",) * 4)

    def test_claude_text_of_subagent_is_ignored(self):
        init, said = recorded("claude-ok")[0].splitlines()[:2]
        of_subagent = dict(json.loads(said), parent_tool_use_id="toolu_1")
        of_subagent["message"] = {"content": [{"type": "text", "text": "of the subagent"}]}
        self.assertEqual(self.read("claude", b"\n".join((init, said, clinvk.dumps(of_subagent)))).output, HELLO)

    def test_claude_without_result_fails_and_keeps_output(self):
        for stdout, stderr, code, error, kind in (
                (b"", "", 0, "claude printed no result", "backend"), (b"", "", 1, "claude printed no result", "backend"),
                (b"", "Error: piped stdin input exceeds 10MB\n", 1, "Error: piped stdin input exceeds 10MB", ANY),
                (b"[" * 100000, "", 0, "[" * 2000, "backend"),
                (b"Error: Reached max turns (2)\n", "", 1, "Error: Reached max turns (2)", "max_turns")):
            reply = self.read("claude", stdout, stderr, code)
            self.assertEqual((reply.output, reply.error, reply.error_kind), (None, error, kind))

    def test_claude_without_result_has_the_usage_of_its_messages(self):
        init, said = recorded("claude-ok")[0].splitlines()[:2]
        events = [dict(json.loads(said), message={"id": name, "usage": {"input_tokens": 10, "cache_read_input_tokens": 100, "output_tokens": output}},
                       parent_tool_use_id=parent) for name, output, parent in (("a", 1, None), ("a", 7, None), ("b", 2, "toolu_1"))]
        reply = self.read("claude", b"\n".join((init, *map(clinvk.dumps, events))), "", 143)
        self.assertEqual((reply.usage, reply.cost_usd, reply.num_turns), (tokens(220, 200, 9, 0), None, None))
        self.assertIsNone(self.read("claude", init, "", 143).usage)

    def test_claude_cost_not_stated_is_none(self):
        value = json.loads(recorded("claude-json")[0])
        for since_last, total, cost in (
                ({"m": {"costUSD": 0.5}}, 9.0, 0.5), ({"m": {"costUSD": 0.1}, "n": {"costUSD": 0.2}}, 9.0, 0.3), (None, 0.25, 0.25),
                (None, None, None),
                ({"m": {}}, None, None), (None, "0.25", None), (None, True, None), (None, -1, None), (None, 0, 0.0)):
            value.update(model_usage_since_last_result=since_last, total_cost_usd=total)
            with self.subTest(since_last=since_last, total=total):
                self.assertEqual(self.read("claude", clinvk.dumps(value)).cost_usd, cost)

    def test_codex_failed_turn_fails_with_exit_code_0(self):
        for name, _, expected in READINGS:
            if expected.get("error") and name.startswith("codex") and recorded(name)[0].count(b"turn.failed"):
                self.assertEqual(self.read("codex", recorded(name)[0], code=0), self.read("codex", recorded(name)[0], code=1))

    def test_codex_unknown_setting_fails_with_permission(self):
        note = ('{"type":"item.completed","item":{"type":"error","message":"Codex is ignoring 1 unrecognized configuration setting. '
                'Check for typos or deprecated settings.\\n  session-flags: `%s` is ignored."}}\n')
        answer = ('{"type":"item.completed","item":{"type":"agent_message","text":"session-flags: `developer_instructions`"}}\n'
                  '{"type":"turn.completed"}\n')
        for setting, kind in (("sandbox_workspace_write.exclude_slash_tmp", "permission"), ("developer_instructions", "permission"),
                              ("of_the_user", "")):
            reply = self.read("codex", (note % setting + answer).encode())
            self.assertEqual(reply.error_kind, kind)
            self.assertEqual(bool(kind), "the sandbox could not be kept: codex does not know the setting " + setting.partition(".")[0] == reply.error)

    def test_codex_bad_exit_after_complete_turn_fails(self):
        reply = self.read("codex", recorded("codex-ok")[0], "boom\n", code=101)
        self.assertEqual((reply.output, reply.error), (HELLO, "boom"))

    def test_codex_wait_next_to_the_message_is_read(self):
        body = {"error": {"type": "usage_limit_reached", "message": "The usage limit has been reached", "resets_at": 1753088400,
                          "resets_in_seconds": 3600}}
        reply = self.read("codex", clinvk.dumps({"type": "turn.failed", "error": {"message": json.dumps(body)}}), code=1)
        self.assertEqual((reply.error, reply.error_kind, reply.retry_after_seconds), ("The usage limit has been reached", "quota", 3600.0))

    def test_codex_line_of_any_size_is_read(self):
        large = "审" * 200000
        lines = [json.dumps(event, ensure_ascii=False).encode() for event in (
            {"type": "item.completed", "item": {"type": "command_execution", "aggregated_output": "y" * 300000}},
            {"type": "item.completed", "item": {"type": "agent_message", "text": large}}, {"type": "turn.completed"})]
        self.check(self.read("codex", b"\r\n\n".join(lines)), output=large)

    def test_warnings_are_limited_and_safe_to_show(self):
        event = {"type": "item.completed", "item": {"type": "error", "message": "\x1b[31mred\nsecond line"}}
        lines = [json.dumps(event).encode()] * 100 + [b'{"type":"turn.completed"}']
        self.assertEqual(self.read("codex", b"\n".join(lines)).warnings, ("^[[31mred",) * 20)
        event = {"type": "error", "severity": "warning", "message": "\x1b[31mred\nsecond line"}
        lines = [json.dumps(event).encode()] * 100 + [b'{"type":"result","status":"success"}']
        self.assertEqual(self.read("gemini", b"\n".join(lines)).warnings, ("^[[31mred",) * 20)

    def test_gemini_answer_is_the_text_after_the_last_tool(self):
        say, use, done = ({"type": "message", "role": "assistant", "content": "%s", "delta": True}, {"type": "tool_use", "tool_name": "x"},
                          {"type": "result", "status": "success"})
        for order, output in (("ab", "ab"), ("aTb", "b"), ("abTTcdTef", "ef"), ("aT", "a"), ("T", ""), ("", ""), ("TaTbT", "b")):
            events = [use if c == "T" else dict(say, content=c) for c in order] + [{"type": "message", "role": "user", "content": "asked"}, done]
            self.assertEqual(self.read("gemini", b"\n".join(map(clinvk.dumps, events))).output, output, order)

    def test_gemini_without_result_reads_the_error_on_stderr(self):
        block = recorded("gemini-json-429")[1]
        block = block[block.rindex("\n{") + 1:]
        for stderr in (block, "noise\n" + block, '{"level": "info"}\n' + block, "{\n  odd\n}\n" + block, "\n\n" + block + "\n\n",
                       block.replace("\n", "\r\n")):
            reply = self.read("gemini", b"", stderr, 173)
            self.assertEqual((reply.error_kind, reply.retry_after_seconds, reply.session_id), ("rate_limit", 2.0, session_in(block)), stderr)
        for stderr in ("", "{", "{}", '{"error": "text"}', '{"error": {}}', '{"error": {"message": 5}}', "x\n{", "[]", "null", "{" * 60000):
            reply = self.read("gemini", b"", stderr, 41)
            self.assertTrue(reply.error)
            self.assertEqual(reply.error_kind, "auth")

    def test_gemini_wait_next_to_the_message_is_read(self):
        body = {"error": {"code": 429, "message": "Resource has been exhausted", "status": "RESOURCE_EXHAUSTED", "details": [
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "38.6s"}]}}
        result = {"type": "result", "status": "error", "error": {"type": "unknown", "message": "[API Error: %s]" % json.dumps(body)}}
        reply = self.read("gemini", clinvk.dumps(result), code=173)
        self.assertEqual((reply.error, reply.error_kind, reply.retry_after_seconds), ("Resource has been exhausted", "rate_limit", 38.6))

    def test_gemini_failed_try_before_text_is_not_the_wait(self):
        reply = self.read("gemini", recorded("gemini-terminated")[0], recorded("gemini-429-waiting")[1])
        self.assertEqual((reply.output, reply.waiting), ("MOCK-OK: hello fr", ""))
        torn = b"\n".join(recorded("gemini-tool")[0].splitlines()[:3])
        self.assertEqual(self.read("gemini", torn, recorded("gemini-429-waiting")[1]).waiting, "")

    def test_gemini_exit_code_sets_the_kind(self):
        for code, kind in ((41, "auth"), (42, "invalid"), (44, "backend"), (52, "invalid"), (53, "max_turns"), (55, "permission"), (144, "invalid"),
                           (145, "auth"), (147, "permission"), (173, "rate_limit"), (244, "overloaded"), (247, "overloaded"),
                           (1, "backend"), (130, "backend")):
            result = {"type": "result", "status": "error", "error": {"type": "unknown", "message": "[API Error: it failed]"}}
            self.assertEqual(self.read("gemini", clinvk.dumps(result), code=code).error_kind, kind, code)
            self.assertTrue(self.read("gemini", recorded("gemini-ok")[0], code=code).error, "a good result with a bad exit code is a failure")

    def test_text_reader_exit_code_decides(self):
        for stdout in (b"rate limit 429 error", b"", b"\xff", recorded("claude-401")[0]):
            self.check(self.read("echo", stdout, "warning: something\n"), output=None)
        self.check(self.read("echo", b"half", "cat: a\n\ncat: b: Permission denied\n", 1), output=None,
                   error="cat: b: Permission denied", error_kind="permission")
        self.check(self.read("echo", b"half", "", 4), output=None, error="exit status 4", error_kind="backend")

    def test_reason_is_found_on_stderr(self):
        chained = ("Traceback (most recent call last):\n  File \"x.py\", line 2, in <module>\n    open('/nowhere/key')\n"
                   "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/key'\n\n%s\n\n"
                   "Traceback (most recent call last):\n  File \"x.py\", line 4, in <module>\n    raise RuntimeError('no client')\n"
                   "RuntimeError: no client\n")
        root = "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/key'"
        direct = chained % "The above exception was the direct cause of the following exception:"
        during = chained % "During handling of the above exception, another exception occurred:"
        earlier = "Traceback (most recent call last):\n  File \"log.py\", line 1, in f\nKeyError: 'old'\nretrying\n\n"
        for stderr, reason in (
                (direct, root), (during, root), (earlier + direct, root), (direct.replace("\n", "\r\n"), root),
                (earlier, "KeyError: 'old'\nretrying"),
                ("x.py:1: SyntaxWarning: x\n" + earlier + "fatal: not a git repository\n", "fatal: not a git repository"),
                ("node:internal/modules/cjs/loader:1210\n  throw err;\n  ^\n\nError: Cannot find module '/m'\nRequire stack:\n- /[eval]\n"
                 "    at Module._load (node:internal:1)\n  code: 'MODULE_NOT_FOUND'\n}\n\nNode.js v20.20.2\n", "Error: Cannot find module '/m'"),
                ("/x.js:9\n  throw e\n  ^\n\nTypeError [ERR_X]: bad\nin two lines\n    at f (/x.js:9:1)\n\nNode.js v22.17.0\n",
                 "TypeError [ERR_X]: bad\nin two lines"),
                ("TypeError: fetch failed\n    at node:1:2 {\n  [cause]: Error: connect ECONNREFUSED 127.0.0.1:9\n      at f (x:1)\n}\n",
                 "Error: connect ECONNREFUSED 127.0.0.1:9"),
                ("\n/x.js:1\nthrow 'boom'\n^\nboom\n(Use `node --trace-uncaught ...` to show where)\n\nNode.js v20.20.2\n",
                 "/x.js:1\nthrow 'boom'\n^\nboom"),
                ("fatal: Unable to create '/r/.git/index.lock': File exists.\n\nAnother git process seems to be running, e.g.\nan editor.\n",
                 "fatal: Unable to create '/r/.git/index.lock': File exists."),
                ("error: failed to push some refs to 'x'\nhint: Updates were rejected\nhint: See the manual.\n",
                 "error: failed to push some refs to 'x'"),
                ("error: no such model: x-9\n\nUsage: tool [options]\nTry tool --help.\n", "error: no such model: x-9"),
                ("usage: tool [-h] x\ntool: error: x is required\n", "tool: error: x is required"),
                ("2026-01-01 starting\n\npanic: open /x: no such file\n\ngoroutine 1 [running]:\nmain.main()\n\t/x.go:5 +0x2c\nexit status 2\n",
                 "panic: open /x: no such file"),
                ("fatal error: all goroutines are asleep - deadlock!\n\ngoroutine 1 [select]:\nmain.main()\n",
                 "fatal error: all goroutines are asleep - deadlock!"),
                ("\nthread 'main' (7) panicked at p.rs:1:76:\nthe key is missing\nnote: run with `RUST_BACKTRACE=1`\n",
                 "thread 'main' (7) panicked at p.rs:1:76: the key is missing"),
                ("\nthread 'main' panicked at p.rs:1:76:\nno key\nstack backtrace:\n   0: std::panicking\n             at /lib.rs:1\n",
                 "thread 'main' panicked at p.rs:1:76: no key"),
                ("Error: cannot load the settings\n\nCaused by:\n    No such file (os error 2)\n\nStack backtrace:\n   0: x\n",
                 "Error: cannot load the settings\nCaused by:\n    No such file (os error 2)"),
                ("Exception in thread \"main\" java.lang.RuntimeException: no client\n\tat X.main(X.java:1)\n"
                 "Caused by: java.io.FileNotFoundException: /nowhere/key\n\tat X.main(X.java:1)\n", "java.io.FileNotFoundException: /nowhere/key"),
                ("x.rb:1:in `f': no key (RuntimeError)\n\tfrom x.rb:2:in `<main>'\n", "x.rb:1:in `f': no key (RuntimeError)"),
                ("Options:\n -x\nbad thing\n", "Options:\n -x\nbad thing"), ("   at least one file\n", "at least one file"),
                ("note: no such thing\n", "note: no such thing"),
                ("Error: connection lost, retrying\nError: gave up\n", "Error: gave up"),
                ("Error: attempt 1 failed\nError: attempt 2 failed\n", "Error: attempt 2 failed"),
                ("loading x\nmodel not found\n", "model not found"),
                ("loading\n01:02 INFO a\n01:02 ERROR busy, retrying\n01:03 ERROR gave up\nbye\n", "01:03 ERROR gave up\nbye"),
                ("+ fetch\ncurl: (6) Could not resolve host: x\n", "curl: (6) Could not resolve host: x"),
                ("x.py:1: DeprecationWarning: x\nCannot load y:\n  no such file\n", "Cannot load y:\n  no such file"),
                ("  + Exception Group Traceback (most recent call last):\n  |     raise ExceptionGroup('a', [ValueError(1)])\n    | ValueError: 1\n", "| ValueError: 1"),
                ("Your credits are used up.\nBuy more at x.\n", "Your credits are used up.\nBuy more at x."),
                ("Rate limit reached\nThe request failed\n", "Rate limit reached\nThe request failed"),
                ("error: a is missing\nerror: b is missing\n", "error: a is missing\nerror: b is missing"),
                ("loading x\nreading 10%\nreading...\nthe key is empty\n", "the key is empty"), ("loading x\n1 of 2\n2 of 2\nSegmentation fault\n", "Segmentation fault"),
                ("loading x\n  part 1\nloading y\nloading z\nno key\n  in x.toml\n", "no key\n  in x.toml"), *((whole, whole) for whole in (
                    "config.toml: line 3: expected '='\nsee config.md", "no space left on device\nbye", "something went wrong\ntrace id 5f", "a\nb\nc",
                    "密钥为空。\n请设置\n变量\n然后重试", 'it said "no."\na\nb\nc')), ("usage limit reached\nbuy more at x\n", "usage limit reached\nbuy more at x"),
                ("These are too large:\na\nb\n", "These are too large:\na\nb"), ("+----\nno key\n+----\n", "+----\nno key\n+----"), ("***\n  The key is old\nbye\n", "***\n  The key is old\nbye"), ("1%\r100%\nno space\n", "100%\nno space"),
                ("Usage: tool FILE\n", "Usage: tool FILE"), ("Node.js v20\n", "Node.js v20"), ("one\n\ntwo: three\n", "two: three")):
            with self.subTest(stderr):
                self.assertEqual(self.read("echo", b"", stderr, 1).error, reason)
                definition = clinvk.Definition(("x",), "jsonl", ("answer",))
                self.assertEqual(clinvk.custom_backend("x", definition).read(self.capture(b""), stderr, 1).error, reason)

    def test_reason_of_failed_python_is_the_root_cause(self):
        script = "try:\n    {}['key']\nexcept KeyError:\n    raise RuntimeError('no client')"
        failed = self.run_program([sys.executable, "-c", script])
        self.assertEqual(self.read("echo", b"", failed.stderr.decode(), failed.returncode).error, "KeyError: 'key'")

    def test_reader_with_output_of_any_shape_returns_a_reply(self):
        chance = random.Random(6)
        odd = [None, True, False, 0, -1, 1.5, 1 << 70, "", "text", "429", [], [1], ["a"], {}, {"a": 1}, [[]], [{}], {"message": []}, "\udcff"]

        def damaged(value):
            """The value with something in it replaced."""
            if isinstance(value, (dict, list)) and value and chance.random() < 0.85:
                copy = dict(value) if isinstance(value, dict) else list(value)
                key = chance.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
                if isinstance(copy, dict) and chance.random() < 0.15:
                    del copy[key]
                else:
                    copy[key] = damaged(copy[key])
                return copy
            return chance.choice(odd)

        for name, code, *_ in READINGS + STOPPED:
            stdout, stderr = recorded(name)
            values = [json.loads(line) for line in stdout.splitlines() if line[:1] in (b"{", b"[") and line[-1:] in (b"}", b"]")]
            head, _, block = ("\n" + stderr).rpartition("\n{") if name.startswith("gemini-json") else (stderr, "", "")
            for _ in range(4):
                output = b"\n".join(clinvk.dumps(damaged(value) if chance.random() < 0.5 else value) for value in values)
                errors = head + "\n" + clinvk.dumps(damaged(json.loads("{" + block))).decode() if block else stderr
                for exit_code in {0, 1, code}:
                    reply = self.read(backend_of(name), output, errors, exit_code)
                    self.assertIsInstance(reply.output, (str, type(None)))
                    self.assertIsInstance(reply.error, str)
                    self.assertIsInstance(reply.waiting, str)
                    self.assertIn(reply.error_kind, clinvk.ERROR_KINDS + ("",))
                    self.assertEqual(bool(reply.error), bool(reply.error_kind))
                    clinvk.dumps(reply._asdict())

    def test_reader_with_odd_counts_keeps_the_answer(self):
        value = json.loads(recorded("claude-json")[0])
        for usage in (None, [], "many", {"input_tokens": "1200"}, {"output_tokens": [34]}, {"input_tokens": None}, {"cache_read_input_tokens": {}}):
            reply = self.read("claude", clinvk.dumps(dict(value, usage=usage)))
            self.assertEqual((reply.output, reply.error), (HELLO, ""))
        lines = recorded("gemini-ok")[0].splitlines()
        for stats in (None, [], {"input_tokens": "1200"}, {"output_tokens": [3]}, {"total_tokens": -5}, {"models": [1]}, {"models": {"m": 1}}):
            reply = self.read("gemini", b"\n".join(lines[:-1] + [clinvk.dumps({"type": "result", "status": "success", "stats": stats})]))
            self.assertEqual((reply.output, reply.error), (HELLO, ""))
        lines = recorded("codex-ok")[0].splitlines()
        for usage in (None, [], {"input_tokens": "2400"}, {"cached_input_tokens": "x"}):
            reply = self.read("codex", b"\n".join(lines[:-1] + [clinvk.dumps({"type": "turn.completed", "usage": usage})]))
            self.assertEqual((reply.output, reply.error), (HELLO, ""))


def stored(output, capture):
    """The answer as _judge would have it kept."""
    return clinvk.to_text(capture.read()) if output is None else output


class Doing(Environment):
    """What a program does, from each of its events while they come."""

    def doing(self, backend, *lines):
        return [clinvk.BACKENDS[backend].doing(line) for line in lines]

    def recorded(self, name):
        found = self.doing(name.partition("-")[0], *support.data_file(name + ".out").splitlines())
        return [(action, tokens) for _, action, tokens in found if action or tokens]

    def test_recorded_events_tell_what_each_program_did(self):
        last = "MOCK-OK: hello from the mock model."
        self.assertEqual(self.recorded("claude-denied"), [("I will use a tool.", 0), ("Bash: touch /etc/xx", 0), (last, 0)])
        self.assertEqual(self.recorded("claude-429-waiting"), [("waiting: rate_limit", 0)] * 2)
        self.assertEqual(self.recorded("codex-tool"), [("command_execution: echo hi; exit 3", 0)] * 2 + [(last, 0), ("", 2468)])
        self.assertEqual(self.recorded("codex-made-reconnecting")[0], ("Reconnecting... 1/5 (exceeded retry limit, last status: 429 Too Many Requests)", 0))
        self.assertEqual(self.recorded("gemini-tool"), [("run_shell_command: echo hi", 0), ("answering", 0), ("answering", 0), ("", 2488)])
        self.assertEqual(self.recorded("gemini-write"), [("write_file: x.txt", 0), ("answering", 0), ("answering", 0), ("", 2488)])

    def test_claude_states_the_usage_of_a_message_with_each_of_its_blocks(self):
        def event(key, *blocks):
            usage = {"input_tokens": 1, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 300, "output_tokens": 4000}
            return json.dumps({"type": "assistant", "message": {"id": key, "content": blocks, "usage": usage}}).encode()

        text, thought = {"type": "text", "text": "Now."}, {"type": "thinking", "thinking": "let me see"}
        use = {"type": "tool_use", "name": "Edit", "input": {"old_string": "a", "file_path": "src/a.py"}}
        self.assertEqual(self.doing("claude", event("m1", thought), event("m1", text), event("m2", text, use), event("m3")),
                         [("m1", "thinking", 4321), ("m1", "Now.", 4321), ("m2", "Edit: src/a.py", 4321), ("m3", "", 4321)])

    def test_items_of_codex_without_a_command_have_other_words(self):
        items = [{"type": "reasoning", "text": "**Looking**"}, {"type": "todo_list", "items": []}, {"type": "error", "message": "m"},
                 {"type": "file_change", "changes": [{"path": "src/a.py", "kind": "update"}, {"path": "b"}]}, {"type": "file_change", "changes": []},
                 {"type": "mcp_tool_call", "server": "s", "tool": "look"}, {"type": "web_search", "query": "q"},
                 {"type": "command_execution", "command": "pytest -q"}, {"type": "command_execution", "command": "/bin/sh -c \"a\nb\""}]
        found = self.doing("codex", *(json.dumps({"type": "item.completed", "item": item}).encode() for item in items))
        self.assertEqual([action for _, action, _ in found], ["thinking", "planning", "", "file_change: src/a.py", "file_change", "look", "web_search: q",
                                                               "command_execution: pytest -q", "command_execution: a"])

    def test_lines_of_any_content_are_taken(self):
        odd = [b"", b"no JSON", b"[]", b"null", b'{"type":[]}', b'{"type":"assistant"', b'{"type":"assistant","message":{"content":[1,{"type":"tool_use","input":[]}]}}',
               b'{"type":"item.started","item":{"type":[],"changes":{},"command":1,"tool":{}}}', b'{"type":"item.started","item":[]}',
               b'{"type":"message","role":"assistant","content":1}', b'{"type":"tool_use","tool_name":1,"parameters":[]}',
               b'{"type":"error","message":1}', b'{"type":"assistant","message":{"id":1,"usage":{"input_tokens":-1,"output_tokens":"1"}}}', b"[" * 100000]
        for backend in ("claude", "codex", "gemini"):
            for key, action, tokens in self.doing(backend, *odd):
                self.assertEqual((key, tokens), ("", 0))
                self.assertIn(action, ("", "answering"))

    def test_programs_without_known_events_tell_nothing(self):
        own = clinvk.custom_backend("own", clinvk.Definition(("own",), "jsonl", ("text",)))
        self.assertEqual([own.doing, clinvk.BACKENDS["echo"].doing], [None, None])


class Verdicts(CaptureCase):
    """From what a backend printed, its exit code, and what was done to it, to the Result."""

    def judge(self, backend, stdout, stderr="", code=0, stopped="", **fields):
        files = [self.capture(data).file for data in (stdout, stderr.encode())]
        return clinvk._judge(support.job(0, backend, "x", **fields), clinvk.Ended(code, stopped), clinvk.Execution((), {}, [-1] + files), stored)

    def test_verdict_of_blank_answer_is_no_output(self):
        empty = {
            "claude": recorded("claude-ok")[0].replace(HELLO.encode(), b" \\n"),
            "codex": b"\n".join(line for line in recorded("codex-ok")[0].splitlines() if b"agent_message" not in line),
            "gemini": b"\n".join(line for line in recorded("gemini-ok")[0].splitlines() if b'"assistant"' not in line),
            "echo": b" \n"}
        for backend, stdout in empty.items():
            result = self.judge(backend, stdout)
            self.assertEqual((result.status, result.exit_code, result.error, result.error_kind),
                             ("failed", 1, backend + " ended well but gave no answer", "no_output"))

    def test_verdict_of_failure_with_exit_code_0_is_1(self):
        for name, code, expected in READINGS:
            with self.subTest(name):
                result = self.judge(backend_of(name), *recorded(name), code=code)
                good = not expected.get("error")
                self.assertEqual((result.status, result.exit_code), ("ok", 0) if good else ("failed", code or 1))
                self.assertEqual(result.error_kind, expected.get("error_kind", ""))

    def test_verdict_of_stopped_run_ignores_its_output(self):
        for name, code, output, waiting in STOPPED:
            for stopped, status, exit_code, error in (("timeout", "timeout", 124, "timed out after 90s"),
                                                      ("canceled", "canceled", -1, "canceled while it ran")):
                with self.subTest(name, stopped=stopped):
                    for ended in (code, 0, -15, -9):
                        result = self.judge(backend_of(name), *recorded(name), code=ended, stopped=stopped, timeout=90.0)
                        if waiting and stopped == "timeout":
                            error = "timed out after 90s (it was waiting: %s" % waiting
                            self.assertEqual((result.error[:len(error)], result.error[-1]), (error, ")"))
                        else:
                            self.assertEqual(result.error, error)
                        self.assertEqual((result.status, result.exit_code, result.error_kind, result.output), (status, exit_code, status, output))
                        self.assertEqual((result.session_id, result.retry_after_seconds), (session_in(recorded(name)[0].decode()), None))

    def test_verdict_of_stopped_run_keeps_answer_and_usage(self):
        for name in ("claude-ok", "codex-ok", "gemini-ok"):
            result = self.judge(backend_of(name), *recorded(name), stopped="timeout", timeout=1.0)
            self.assertEqual((result.status, result.output, result.error), ("timeout", HELLO, "timed out after 1s"))
            self.assertIsNotNone(result.usage)

    def test_verdict_of_killed_program_is_signal(self):
        for name in ("claude-ok", "codex-ok", "gemini-ok"):
            result = self.judge(backend_of(name), *recorded(name), code=-11)
            self.assertEqual((result.status, result.exit_code, result.error, result.error_kind, result.output),
                             ("failed", 139, "ended by signal 11 (SIGSEGV)", "signal", HELLO))


    # For each program two texts of an answer, then its end, and of a whole answer the texts that count.
    STREAMS = {
        "claude": (b'{"type":"assistant","session_id":"s","message":{"content":[{"type":"text","text":"%s"}]}}',
                   b'{"type":"result","is_error":false,"result":"two"}', "two"),
        "codex": (b'{"type":"item.completed","item":{"id":"i","type":"agent_message","text":"%s"}}', b'{"type":"turn.completed","usage":{}}', "two"),
        "gemini": (b'{"type":"message","role":"assistant","content":"%s","delta":true}',
                   b'{"type":"result","status":"success","stats":{}}', "onetwo")}

    def stream(self, backend):
        text, end, output = self.STREAMS[backend]
        return [text % b"one", text % b"two", end], output

    LOST = "line %d of what %s printed cannot be read; a part of the answer may be missing"

    def test_damage_text_around_events_does_no_harm(self):
        for backend in self.STREAMS:
            lines, output = self.stream(backend)
            for place in range(3):
                for before, after in ((b"MCP ERR: ", b""), (b"", b" [DEBUG] {done}"), (b"\xff{x} [1] ", b"\x1b[0m tail"),
                                      (b'{"level":"info"}', b'{"level":"info"}'),
                                      (b"{ code: 'E' } ", b"\r")):
                    changed = lines[:place] + [before + lines[place] + after] + lines[place + 1:]
                    result = self.judge(backend, b"\n".join(changed))
                    self.assertEqual((result.status, result.output, result.warnings), ("ok", output, ()), changed)
            for glued in (lines[0] + lines[1] + b"\n" + lines[2], b"".join(lines)):
                result = self.judge(backend, glued)
                self.assertEqual((result.status, result.output, result.warnings), ("ok", output, ()), glued)

    def test_damage_of_possible_answer_fails_the_task(self):
        def check(backend, lines, number, output):
            result = self.judge(backend, b"\n".join(lines))
            self.assertEqual((result.status, result.exit_code, result.output, result.error_kind), ("failed", 1, output, "damaged_output"), lines)
            self.assertTrue(result.error.endswith(self.LOST % (number, backend)), result.error)

        for backend in ("codex", "gemini"):
            (one, two, end), _ = self.stream(backend)
            for damaged in (two[:-2], two[:-12], two[:20], two[:12], two.replace(b"two", b"t\xffwo"), b"MCP ERR: " + two[:-2], two[:-2] + b" log",
                            two[:-2] + one, two[:-9] + end, two[two.index(b'"role"' if backend == "gemini" else b'"type":"agent'):], two + two[:-2],
                            two.replace(b",", b", ").replace(b":", b": ")[:-2], two.replace(b'"two"', b"NaN"), b'{"level":"info"}' + two[:-2]):
                check(backend, [b"a banner", b"", one, damaged, end], 4, "onetwo" if backend == "gemini" and damaged == two + two[:-2]
                      else "two" if damaged == two + two[:-2] else "one")
            result = self.judge(backend, b"\n".join([one, end, two[:-2]]))
            self.assertEqual((result.status, result.output, result.warnings), ("ok", "one", ("line 3 of what %s printed cannot be read" % backend,)))
        shell = b'{"type":"item.completed","item":{"id":"3","type":"command_execution","aggregated_output":"x"}}'
        result = b'{"type":"tool_result","timestamp":"1","tool_id":"x","output":"y"}'
        user = b'{"type":"message","timestamp":"1","role":"user","content":"asked"}'
        for backend, mark, others in (("codex", b"agent_message", (shell,)), ("gemini", b"assistant", (result, user))):
            (one, two, end), _ = self.stream(backend)
            place = two.index(mark)
            check(backend, [one, two.replace(mark, mark[:5] + b"\xff" + mark[5:]), end], 2, "one")
            for other in others:
                for cut in (2, 4, 9, 12, place, place + 5):
                    check(backend, [one, two[:cut] + other, other, end], 2, "one")
        (one, two, end), _ = self.stream("claude")
        for damaged in (end[:-2], end[:-9], b"log: " + end[:-1], end[:12], end.replace(b"two", b"\xff"),
                        b'{"duration_api_ms":21,"stop_reason":"end', end[16:]):
            check("claude", [one, two, damaged], 3, "two")
            check("claude", [one, two, end, damaged], 4, "two")
        check("claude", [one, two[:-2], end.replace(b"two", b"")], 2, "one")
        tool = b'{"type":"tool_use","tool_name":"x","parameters":{"content":"y"}}'
        (one, two, end), _ = self.stream("gemini")
        check("gemini", [one, tool[:-4], two, end], 2, "onetwo")

    def test_damage_before_a_replacing_line_is_a_warning(self):
        for backend in ("claude", "codex"):
            (one, two, end), output = self.stream(backend)
            result = self.judge(backend, b"\n".join([one[:-2], one[:-9], two, end]))
            self.assertEqual((result.status, result.output, result.warnings),
                             ("ok", output, ("lines 1, 2 of what %s printed cannot be read" % backend,)))
        tool = b'{"type":"tool_use","tool_name":"x"}'
        (one, two, end), _ = self.stream("gemini")
        result = self.judge("gemini", b"\n".join([one[:-2]] * 8 + [tool, two, end]))
        self.assertEqual((result.status, result.output, result.warnings),
                         ("ok", "two", ("lines 1, 2, 3, 4, 5 and 3 more of what gemini printed cannot be read",)))
        for backend, damaged in (("codex", b'{"type":"thread.started","thread_'), ("gemini", b'{"type":"init","session_'),
                                 ("claude", b'{"type":"system","subtype":"init","cwd')):
            lines, output = self.stream(backend)
            result = self.judge(backend, b"\n".join([damaged] + lines))
            self.assertEqual((result.status, result.output, result.warnings), ("ok", output, ("line 1 of what %s printed cannot be read" % backend,)))

    NOISE = (b"[DEBUG] {ripgrep} is missing", b"config = {", b"}", b"{ code: 'ENOENT', errno: -2 }",
             b'the "assistant" said "agent_message" {', b"[1, 2",
             b'{"level":"info","text of a log', b'{"time":"12:00","level":', b"\xe5\xae {}", b'say "type" and "role"', b"{{{{", b'""',
             b"{'type': 'message'}",
             b'{"type":"tool_result","tool_id":"x","output":"{\\"role\\":\\"assistant\\"', b'{"type":"message","role":"user","content":"asked',
             b'{"type":"item.completed","item":{"id":"i","type":"command_execution","aggregated_output":"\\"agent_message\\"',
             b'{"type":"item.updated","item":{"id":"i","ty', b'{"type":"user","message":{"content":"\\"type\\":\\"result\\"')

    def test_damage_noise_fails_nothing(self):
        for backend in self.STREAMS:
            lines, output = self.stream(backend)
            for noise in self.NOISE:
                for place in range(4):
                    result = self.judge(backend, b"\n".join(lines[:place] + [noise] + lines[place:]))
                    self.assertEqual((result.status, result.output), ("ok", output), (backend, noise, place, result.error))
                    self.assertEqual(result.warnings, (), (backend, noise))

    def test_damage_too_long_line_fails_if_it_may_be_the_answer(self):
        self.limit("MAX_LINE_BYTES", 2 * clinvk.CHUNK)
        tools = {"claude": b'{"type":"user","message":{"content":"%s"}}', "gemini": b'{"type":"tool_result","output":"%s"}',
                 "codex": b'{"type":"item.completed","item":{"type":"command_execution","aggregated_output":"%s"}}'}
        for backend in self.STREAMS:
            lines, output = self.stream(backend)
            large = b"y" * (clinvk.MAX_LINE_BYTES + 1)
            self.assertEqual(self.judge(backend, b"\n".join([tools[backend] % large] + lines)).status, "ok")
            self.assertEqual(self.judge(backend, b"\n".join([lines[0], self.STREAMS[backend][0] % large, *lines[2:]])).status,
                             "ok" if backend == "claude" else "failed")

    def test_damage_keeps_other_reasons_and_verdicts(self):
        (one, two, end), _ = self.stream("codex")
        cut = b"\n".join([one, two[:-2]])
        limited = cut + b'\n{"type":"turn.failed","error":{"message":"Rate limit reached"}}'
        for stdout, stderr, code, error, kind in ((limited, "", 1, "Rate limit reached", "rate_limit"),
                                                  (limited, "", 0, "Rate limit reached", "rate_limit"), (cut, "boom", 1, "boom", "backend")):
            result = self.judge("codex", stdout, stderr, code)
            self.assertEqual((result.error, result.error_kind, result.output, result.warnings), (error, kind, "one", (self.LOST % (2, "codex"),)))
        result = self.judge("codex", cut, stopped="timeout", timeout=1.0)
        self.assertEqual((result.error_kind, result.warnings), ("timeout", ()))
        result = self.judge("codex", cut)
        self.assertEqual((result.error, result.error_kind),
                         ("codex ended before its turn was complete; " + self.LOST % (2, "codex"), "damaged_output"))

    def test_blank_text_at_the_end_keeps_the_text_before(self):
        tool = b'{"type":"tool_use","tool_name":"x"}'
        for backend in self.STREAMS:
            (one, two, end), _ = self.stream(backend)
            for blank in (b"", b" \\n\\t"):
                lines = {"claude": [one, two.replace(b"two", blank), end.replace(b"two", blank)], "codex": [one, two.replace(b"two", blank), end],
                         "gemini": [one, tool, two.replace(b"two", blank), end]}[backend]
                result = self.judge(backend, b"\n".join(lines))
                self.assertEqual((result.status, result.output, result.warnings),
                                 ("ok", "one", ("%s ended with a blank text; the output is the text before it" % backend,)))
                failed = self.judge(backend, b"\n".join(lines), "it broke\n", 3)
                self.assertEqual((failed.status, failed.output, failed.error), ("failed", "one", "it broke"))
        one, two, end = self.stream("claude")[0]
        self.assertEqual(self.judge("claude", one + b"\n" + end.replace(b'"two"', b"null")).output, "one")
        one, two, end = self.stream("codex")[0]
        result = self.judge("codex", b"\n".join([one.replace(b"one", b" "), two, end]))
        self.assertEqual((result.output, result.warnings), ("two", ()))

    def test_bad_exit_after_complete_answer_is_named(self):
        for backend in self.STREAMS:
            lines, output = self.stream(backend)
            result = self.judge(backend, b"\n".join(lines), "", 7)
            self.assertEqual((result.status, result.exit_code, result.output, result.error, result.error_kind),
                             ("failed", 7, output, backend + " ended with exit status 7 after a complete answer", "backend"))


class AnswerOnly(Environment):
    def setUp(self):
        super().setUp()
        self.enter_environment(CODEX_HOME=self.directory, GEMINI_CLI_HOME=self.directory)

    def test_answer_only_claude_has_no_tools(self):
        words = ["--permission-mode", "dontAsk", "--setting-sources", "user", "--strict-mcp-config", "--settings", '{"disableAllHooks":true}',
                 "--tools", "", "--safe-mode"]
        for fields, system in (({}, clinvk.ANSWER_PROMPT), ({"system_prompt": "s", "approval_mode": "none"}, "s")):
            said = command("claude", answer_only=True, **fields)
            self.assertEqual(list(said.argv), BASE["claude"] + words + ["--system-prompt", system])
            self.assertFalse(said.apart)
        job = support.job(0, "claude", "@x", answer_only=True)._replace(literal=True)
        self.assertEqual(sorted(clinvk.command_of(job).environment), ["CLAUDE_CODE_DISABLE_ATTACHMENTS", "CLAUDE_CODE_DISABLE_FILE_MENTIONS"])

    def test_answer_only_codex_has_a_home_with_its_login(self):
        said = command("codex", answer_only=True)
        self.assertEqual((said.links, said.apart, said.environment), ({}, True, {"CODEX_HOME": SCRATCH + "/codex"}))
        self.assertEqual(list(said.argv[len(BASE["codex"]):][:4]), ["-s", "read-only", "--ignore-rules", "-c"])
        self.assertIn('instructions="%s"' % clinvk.ANSWER_PROMPT, said.argv)
        for name in ("auth.json", "config.toml", "AGENTS.md"):
            self.file(name, "")
        links = {"codex/" + name: self.path(name) for name in ("auth.json", "config.toml")}
        said = command("codex", answer_only=True, system_prompt="be 'brief'")
        self.assertEqual((said.links, said.problem), (links, ""))
        self.assertIn("instructions=\"be 'brief'\"", said.argv)
        self.assertEqual([word for word in said.argv if word.startswith("developer_instructions")], ['developer_instructions=""'])

    def test_answer_only_codex_disables_each_server(self):
        for config, servers, bad in (
                ("", "", False), ("# [mcp_servers.x]\nmodel = 'mcp_servers.x'\n", "", False), ("[mcp_servers.some]\n", "some", False),
                ('  [ mcp_servers . "odd name" ]\n[mcp_servers.some.env]\n[mcp_servers.some]\nmcp_servers.x.command = "y"\n', '"odd name" some x', False),
                ("[mcp_servers.'a.b']\n", "'a.b'", False), ("[mcp_servers]\nx = {}\n", "", True), ("mcp_servers = {x = {}}\n", "", True),
                ("mcp_servers_x = 1\n[my_mcp_servers.x]\n", "", False)):
            with self.subTest(config):
                self.file("config.toml", config)
                said = command("codex", answer_only=True)
                settings = [word for word in said.argv if word.startswith("mcp_servers=")]
                names = re.findall(r"""("[^"]*"|'[^']*'|\w+)=\{enabled=false\}""", "".join(settings))
                self.assertEqual((" ".join(names), "[mcp_servers.NAME]" in said.problem), (servers, bad))

    def test_answer_only_gemini_has_a_home_with_its_login(self):
        os.mkdir(self.path(".gemini"))
        self.file(".gemini/settings.json", '{\n  // how\n  "security": {"auth": 1}, "mcpServers": {"x": {}}, "hooks": {}, "context": {}}')
        for name in ("oauth_creds.json", ".env", "GEMINI.md"):
            self.file(".gemini/" + name, "")
        said = command("gemini", answer_only=True, approval_mode="none")
        self.assertEqual(said.links, {".gemini/" + name: self.path(".gemini", name) for name in ("oauth_creds.json", ".env")})
        self.assertEqual(json.loads(said.files[".gemini/settings.json"]), {"security": {"auth": 1}, "tools": {"useRipgrep": False}})
        self.assertEqual(said.files["policy.toml"], '[[rule]]\ntoolName = "*"\ndecision = "deny"\npriority = 997\n')
        self.assertEqual((said.files["system.md"], said.apart, said.environment["GEMINI_CLI_HOME"]), (clinvk.ANSWER_PROMPT, True, SCRATCH))
        self.assertEqual(list(said.argv), BASE["gemini"] + ("--approval-mode default --policy %s/policy.toml -e none "
                                                            "--allowed-mcp-server-names none" % SCRATCH).split())

    def test_answer_only_gemini_reads_commented_settings_or_says_why_not(self):
        os.mkdir(self.path(".gemini"))
        for text, kept in (('{"security": {"a": "http://x/*"}, // x\n/* y\n"general": 1 */ "model": {"b": "\\"//"}}',
                            {"security": {"a": "http://x/*"}, "model": {"b": '"//'}}), ("{} // x", {}), ('{"security": 1,}', None), ("[]", None), ("", None),
                           ('"\\' * 100000, None), ("/*" * 100000, None)):  # in no quadratic time
            with self.subTest(text):
                self.file(".gemini/settings.json", text)
                said = command("gemini", answer_only=True)
                self.assertEqual(json.loads(said.files[".gemini/settings.json"]), dict(kept or {}, tools={"useRipgrep": False}))
                self.assertEqual("settings.json cannot be read: " in said.problem, kept is None, said.problem)

    def test_answer_only_gemini_prompt_is_unchanged(self):
        """There is no file that it could name, unless the user adds directories."""
        for extra, text in (((), "see @/x and @in.txt"), (("--include-directories", "/x"), "see \\@/x and \\@in.txt")):
            job = support.job(0, "gemini", "see @/x and @in.txt", answer_only=True, extra=extra)._replace(literal=True)
            self.assertEqual(clinvk.BACKENDS["gemini"].text(job), text)

    def test_answer_only_is_a_read_only_sandbox_where_it_is_kept(self):
        definitions = {"held": clinvk.Definition(("x", "y"), answer_only=("--no-tools", "{model}")), "bare": clinvk.Definition(("x",), answer_only=()),
                       "loose": clinvk.Definition(("x",))}
        for backend in (*clinvk.BACKENDS, *definitions):
            job = support.job(0, backend, "p", answer_only=True, model="m", extra=("-z",))._replace(definition=definitions.get(backend))
            kept = backend != "loose"
            self.assertEqual((clinvk.answers_only(job), clinvk.sandbox_of(job)), (kept, "read-only" if kept else "default"))
            self.assertEqual(any("answer_only" in warning for warning in clinvk.option_warnings(job)), not kept)
            if backend == "held":
                self.assertEqual(clinvk.command_of(job).argv, ("x", "y", "--no-tools", "m", "-z"))
                self.assertEqual(clinvk.command_of(job._replace(task=job.task._replace(answer_only=False))).argv, ("x", "y", "-z"))
            self.assertFalse(clinvk.may_write(job))
            self.assertEqual(clinvk.may_write(job._replace(task=job.task._replace(protect=("x",)))), not kept)

    def test_answer_only_wrapped_command_runs_in_its_empty_directory(self):
        for backend, workdir in (("gemini", clinvk.HERE), ("codex", clinvk.HERE), ("claude", "/tmp")):
            job = support.job(0, backend, "p", answer_only=True, workdir="/tmp")._replace(wrap=("in", "{workdir}"))
            self.assertEqual(clinvk.command_of(job).argv[1], workdir)


class OwnCommands(CaptureCase):
    """Commands that the user defined."""

    @staticmethod
    def row(*argv, **fields):
        return clinvk.custom_backend("own", clinvk.Definition(argv, **fields))

    def said(self, argv, **fields):
        return self.row(*argv).command(task("own", **fields))

    def read(self, stdout, stderr="", code=0, **fields):
        return self.row("x", **fields).read(self.capture(stdout), stderr, code)

    def test_own_command_last_value_of_the_right_type_counts(self):
        reply = self.read(b'{"id":"abc","usage":{"input_tokens":5}}\n{"text":"hi","id":7,"usage":"none"}\n', output="jsonl", answer=("text",), session_id=("id",), usage=("usage",))
        self.assertEqual((reply.output, reply.session_id, reply.usage["input_tokens"]), ("hi", "abc", 5))

    def test_own_command_placeholders_are_filled_in(self):
        full = dict(model="m {workdir}", effort="max", workdir="/w", system_prompt="be\n'brief' {model}", max_turns=7, max_tokens=9)
        for argv, given in (
                (["p"], ["p"]), (["p", "{model}"], ["p", "m {workdir}"]), (["p", "-e", "{effort}"], ["p", "-e", "max"]), (["p", "-m", "{model}", "x"], ["p", "-m", "m {workdir}", "x"]),
                (["p", "--model={model}"], ["p", "--model=m {workdir}"]), (["p", "{system_prompt}"], ["p", "be\n'brief' {model}"]),
                (["p", "{max_turns}/{max_tokens}", "{workdir}{workdir}"], ["p", "7/9", "/w/w"]), (["p", "{{model}}"], ["p", "{model}"]),
                (["p", "{{model}} is {model}"], ["p", "{model} is m {workdir}"]), (["p", "{}", "{ model }", '{"model": 1}', "$HOME", ""],
                                                                                   ["p", "{}", "{ model }", '{"model": 1}', "$HOME", ""])):
            with self.subTest(argv):
                said = self.said(argv, **full)
                self.assertEqual((list(said.argv), said.environment, said.preset, said.files, said.by_stdin), (given, {}, {}, {}, True))

    def test_own_command_workdir_is_absolute(self):
        # the command is started in it: what is called from there by the same relative path is another one
        self.assertEqual(self.said(["p", "{workdir}"], workdir="sub").argv, ("p", os.path.abspath("sub")))

    def test_own_command_empty_argument_is_left_out(self):
        for argv, given in (
                (["p", "{model}", "x"], ["p", "x"]), (["p", "-m", "{model}", "x"], ["p", "x"]), (["p", "--model={model}", "x"], ["p", "x"]),
                (["p", "-v", "--model={model}"], ["p", "-v"]), (["p", "-v", "-m", "{model}", "-q"], ["p", "-v", "-q"]),
                (["p", "-m", "{model}", "{model}"], ["p"]), (["p", "-a", "-m", "{model}", "{model}"], ["p", "-a"]),
                (["p", "run", "{model}"], ["p", "run"]),
                (["p", "--", "{model}"], ["p", "--"]), (["p", "-", "{model}"], ["p", "-"]),
                (["p", "-w", "{workdir}", "-m", "{model}"], ["p", "-w", "/w"]),
                (["p", "-x", "{workdir}{model}"], ["p"]), (["p", "--w={workdir}", "{model}"], ["p", "--w=/w"]),
                (["p", "-n", "{max_turns}"], ["p"]), (["p", "-m", "{{model}}"], ["p", "-m", "{model}"])):
            with self.subTest(argv):
                self.assertEqual(list(self.said(argv, workdir="/w").argv), given)

    def test_own_command_prompt_comes_by_stdin_or_file(self):
        said = self.said(["p", "-f", "{prompt_file}", "--in={prompt_file}"], extra=("-x", "{model}"))
        path = SCRATCH + "/prompt"
        self.assertEqual(said, clinvk.Command(("p", "-f", path, "--in=" + path, "-x", "{model}"), files={"prompt": PROMPT}, by_stdin=False))
        self.assertTrue(self.said(["p", "{{prompt_file}}"]).by_stdin)

    def test_own_command_unnamed_field_is_a_warning(self):
        definition = clinvk.Definition(("p", "{model}", "{{max_turns}}"))
        one = task("own", definition=definition, model="m", system_prompt="s", max_turns=2, max_tokens=3, extra=("x",), verbose=True)
        self.assertEqual(clinvk.option_warnings(one), tuple(
            "own has no %s; it was not applied" % field for field in ("system_prompt", "max_turns", "max_tokens", "verbose")))
        self.assertEqual(clinvk.backend_of(one).name, "own")

    def test_own_command_refuses_modes_that_promise_something(self):
        row = self.row("p")
        for sandbox in clinvk.SANDBOX_MODES:
            for approval in clinvk.APPROVAL_MODES:
                expected = ""
                if sandbox in ("read-only", "workspace"):
                    expected = 'clinvk cannot keep this program in sandbox_mode "%s"; only "full" is possible' % sandbox
                elif approval in ("auto", "always"):
                    expected = 'clinvk cannot give this program the approval_mode "%s"; only "none" is possible' % approval
                self.assertEqual(row.impossible_modes.get((sandbox, approval), ""), expected)

    def test_own_text_exit_code_decides(self):
        self.assertEqual(self.read(b'{"error": "429"}', "noise\n"), clinvk.Reply(output=None))
        reply = self.read(b"half", "a\n\nRate limit reached, try again in 5s\n", 3)
        self.assertEqual((reply.output, reply.error_kind, reply.retry_after_seconds), (None, "rate_limit", 5.0))

    PATHS = dict(answer=("message", "content"), error=("error",), session_id=("id",), usage=("usage",))

    def test_own_json_is_read_by_its_paths(self):
        for value, expected in (
                ({"message": {"content": "hi"}}, dict(output="hi")), ({"message": {"content": ""}}, dict(output="")), ({}, dict(output="")),
                ({"message": {"content": {"a": [1, "审"]}}}, dict(output='{"a":[1,"审"]}')), ({"message": {"content": 5}}, dict(output="5")),
                ({"message": {"content": None}}, dict(output="")), ({"message": {"content": False}}, dict(output="false")),
                ({"message": ["x"]}, dict(output="")),
                ({"message": {"content": "hi"}, "id": "s-1", "error": None}, dict(output="hi", session_id="s-1")),
                ({"message": {"content": "hi"}, "id": 5, "error": False, "usage": []}, dict(output="hi")),
                ({"message": {"content": "hi"}, "error": ""}, dict(output="hi")), ({"message": {"content": "hi"}, "error": {}}, dict(output="hi")),
                ({"message": {"content": "half"}, "error": "model 'x' not found"},
                 dict(output="half", error="model 'x' not found", error_kind="invalid")),
                ({"error": {"message": "Rate limit reached, try again in 2s", "code": 429}},
                 dict(error="Rate limit reached, try again in 2s", error_kind="rate_limit", retry_after_seconds=2.0)),
                ({"error": {"code": 7}}, dict(error='{"code":7}', error_kind="backend")), ({"error": True}, dict(error="true", error_kind="backend")),
                ([1], dict(output="")), ("text", dict(output="")), (5, dict(output=""))):
            with self.subTest(value):
                self.assertEqual(self.read(json.dumps(value, indent=2).encode(), output="json", **self.PATHS), clinvk.Reply(**expected))

    def test_own_json_not_json_fails_and_is_kept(self):
        for stdout in (b"", b"plain words", b"{", b"{} {}", b"\xff", b"[" * 100000):
            for output in ("json", "jsonl"):
                if (stdout, output) != (b"{} {}", "jsonl"):
                    self.assertEqual(self.read(stdout, output=output, **self.PATHS),
                                     clinvk.Reply(output=None, error="what it printed is not JSON", error_kind="backend"))
        reply = self.read(b"plain words", "Error: no such model: does not exist\n", 2, output="json", **self.PATHS)
        self.assertEqual((reply.error, reply.error_kind), ("Error: no such model: does not exist", "invalid"))
        self.assertEqual(self.read(b'{"message": {"content": "half"}}', "", 2, output="json", **self.PATHS),
                         clinvk.Reply(output="half", error="exit status 2", error_kind="backend"))

    def test_own_jsonl_last_value_counts(self):
        lines = [{"message": {"content": "one"}, "id": "s"}, {"usage": {"input_tokens": 5, "output_tokens": 1}},
                 {"message": {"content": "two"}}, {"id": None},
                 {"usage": {"input_tokens": 7, "output_tokens": 2}}]
        stdout = b"banner\n\n" + b"\n".join(json.dumps(line).encode() for line in lines) + b"\n{torn"
        expected = dict(session_id="s", usage=tokens(7, 0, 2, 0))
        self.assertEqual(self.read(stdout, output="jsonl", **self.PATHS), clinvk.Reply(output="two", **expected))
        self.assertEqual(self.read(stdout, output="jsonl", join=True, **self.PATHS), clinvk.Reply(output="onetwo", **expected))
        self.assertEqual(self.read(stdout + b'\n{"error": "it broke"}\n{"message": {"content": "three"}}', output="jsonl", **self.PATHS),
                         clinvk.Reply(output="three", error="it broke", error_kind="backend", **expected))

    def test_own_jsonl_damaged_line_with_answer_key_fails(self):
        def judge(stdout, **fields):
            files = [self.capture(data).file for data in (stdout, b"")]
            definition = clinvk.Definition(("x",), **dict(self.PATHS, **fields))
            return clinvk._judge(clinvk.Job(0, clinvk.Task("own", "x"), definition), clinvk.Ended(0), clinvk.Execution((), {}, [-1] + files), stored)

        one, two, other = b'{"message":{"content":"one"}}', b'{"message":{"content":"two"}}', b'{"id":"s","tool":{"content":"x"}}'
        for stdout, join, output, number, warnings in (
                (one + b"\n" + two[:-3], False, "one", 2, 0), (one + b"\n" + two[:-3], True, "one", 2, 0),
                (one[:-3] + b"\n" + two, True, "two", 1, 0),
                (one[:-3] + b"\n" + two, False, "two", 0, 1), (b"log: " + one + b" log\n" + two, True, "onetwo", 0, 0),
                (one + two, True, "onetwo", 0, 0),
                (one + b"\n" + b'{"id":"s","usage":', False, "one", 0, 1), (one + b"\n{torn\n[INFO] it } said {", False, "one", 0, 0)):
            result = judge(stdout, output="jsonl", join=join)
            self.assertEqual((result.status, result.output, len(result.warnings)), ("failed" if number else "ok", output, warnings), stdout)
            self.assertEqual((result.error, result.error_kind), (Verdicts.LOST % (number, "own"), "damaged_output") if number else ("", ""))
        for stdout, status, output, error in (
                (b"loading {model}...\n" + json.dumps({"message": {"content": "one"}}, indent=2).encode() + b"\nbye\n", "ok", "one", ""),
                (b"loading\n" + two[:-3], "failed", "loading\n" + two[:-3].decode(), "what it printed is not JSON; " + Verdicts.LOST % (2, "own")),
                (b"loading\n" + other[:-3], "failed", "loading\n" + other[:-3].decode(),
                 "what it printed is not JSON; " + Verdicts.LOST % (2, "own"))):
            result = judge(stdout, output="json")
            self.assertEqual((result.status, result.output, result.error), (status, output, error))
        for stdout, status in ((b'["one"]\n["two', "failed"), (b'["one"]\n[INFO] done', "ok")):
            self.assertEqual(judge(stdout, output="jsonl", answer=(0,)).status, status)

    def test_own_jsonl_blank_answer_keeps_the_one_before(self):
        stdout = b'{"message":{"content":" "}}\n{"message":{"content":"one"}}\n{"message":{"content":"\\n"}}\n'
        reply = self.read(stdout, output="jsonl", **self.PATHS)
        self.assertEqual((reply.output, reply.warnings), ("one", ("it ended with a blank text; the output is the text before it",)))
        reply = self.read(stdout, output="jsonl", join=True, **self.PATHS)
        self.assertEqual((reply.output, reply.warnings), (" one\n", ()))

    def test_own_jsonl_many_joined_texts_take_linear_time(self):
        def work(count):
            start = time.process_time()
            reply = self.read(b'{"t":"ab"}\n' * count, output="jsonl", answer=("t",), join=True)
            self.assertEqual(reply.output, "ab" * count)
            return time.process_time() - start

        few = min(work(5000) for _ in range(3))
        self.assertLess(work(50000), 40 * few, "the work grows with the square of the lines")

    def test_value_at_follows_keys_and_positions(self):
        value = {"a": [{"b": "x"}, {"b": "y"}], "c": "text"}
        for path, found in ((("a", 0, "b"), "x"), (("a", -1, "b"), "y"), (("a", 2, "b"), None), (("a", -3), None), (("c", 0), None),
                            (("c", "d"), None),
                            (("a", "b"), None), ((0,), None), ((), value), (("z",), None)):
            self.assertEqual(clinvk.value_at(value, path), found)

    def test_own_usage_is_read_under_many_names(self):
        for usage, expected in (
                ({"input_tokens": 9, "output_tokens": 2}, tokens(9, 0, 2, 0)),
                ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}, tokens(9, 0, 2, 0)),
                ({"prompt_eval_count": 9, "eval_count": 2}, tokens(9, 0, 2, 0)),
                ({"input": 9, "output": 2, "cached": 4, "reasoning": 1}, tokens(9, 4, 2, 1)),
                ({"promptTokenCount": 9, "candidatesTokenCount": 2, "cachedContentTokenCount": 4, "thoughtsTokenCount": 1}, tokens(9, 4, 2, 1)),
                ({"input_tokens": 9, "output_tokens": 2, "cache_creation_input_tokens": 3}, tokens(9, 0, 2, 0, 3)),
                ({"input_tokens": 9, "cached_input_tokens": 4, "output_tokens": 3, "reasoning_output_tokens": 1}, tokens(9, 4, 3, 1)),
                ({"input_tokens": 0, "prompt_tokens": 9}, tokens(9, 0, 0, 0)), ({"input_tokens": "9"}, None), ({"words": 9}, None),
                ({}, None), (None, None), (5, None)):
            with self.subTest(usage):
                self.assertEqual(self.read(json.dumps({"usage": usage}).encode(), output="json", **self.PATHS).usage, expected)

    def test_own_command_prompt_can_be_an_argument(self):
        said = self.said(["p", "--ask={prompt}", "-m", "{model}"])
        self.assertEqual(said, clinvk.Command(("p", "--ask=" + PROMPT), by_stdin=False))
        most = clinvk.MAX_ARGUMENT_BYTES
        for argument, prompt, refusal in (
                ("{prompt}", "x" * most, ""), ("{prompt}", "x" * (most + 1), "the prompt has 131,072 bytes; own takes 131,071 at most"),
                ("--ask={prompt}", "审" * (most // 3 - 2), ""), ("{prompt}!", "x" * most, "the prompt has 131,071 bytes; own takes 131,070 at most"),
                ("{prompt}", "-v", "the prompt begins with -, so own would take it for an option; a command of your own can have -- before {prompt}"), ("--ask={prompt}", "-v", ""), ("{prompt}", " -v", ""),
                ("{prompt}", "a\0b", "the prompt is an argument of own: it must not contain NUL"), ("{prompt_file}", "-\0" * most, ""),
                ("{prompt}", "\ud800", "the prompt is an argument of own: it contains a character that cannot be passed to a program")):
            self.assertEqual(clinvk.refused_prompt(self.row("p", argument), prompt), refusal, argument)
        self.assertEqual(clinvk.refused_prompt(self.row("p", "{prompt}"), "a", "-", "b"), "")
        self.assertIn("begins with -", clinvk.refused_prompt(self.row("p", "{prompt}"), "-", "b"))
        self.assertEqual(clinvk.refused_prompt(self.row("p", "-x", "--", "{prompt}"), "-v"), "")
        self.assertIn("begins with -", clinvk.refused_prompt(self.row("p", "{prompt}", "--", "{prompt}"), "-v"))
        self.assertEqual(clinvk.refused_prompt(self.row("p", "--"), "a\0b"), "")

    def test_own_command_gets_the_largest_prompt_as_an_argument(self):
        write_program(os.path.join(self.bin, "own"), b'#!/bin/sh\nprintf %s "${#1}"; /bin/cat\n')
        job = clinvk.Job(0, clinvk.Task("own", "x" * clinvk.MAX_ARGUMENT_BYTES), definition=clinvk.Definition(("own", "{prompt}")))
        self.assertEqual(clinvk.run_job(job).output, str(clinvk.MAX_ARGUMENT_BYTES))

    def test_own_json_ok_is_the_value_of_success(self):
        for value, stated, error in (
                ("SUCCESS", "SUCCESS", ""), ("SUCCESS", "ERROR", 'expected "SUCCESS" at .s[-1], got "ERROR"'), (True, True, ""),
                (True, 1, "expected true at .s[-1], got 1"), (1, True, "expected 1 at .s[-1], got true"), (False, None, "expected false at .s[-1], got null"),
                ("x", {"a": "y" * 999}, 'expected "x" at .s[-1], got {"a":"')):
            fields = dict(self.PATHS, output="jsonl", ok=(("s", -1), clinvk.dumps(value).decode()))
            stdout = clinvk.dumps({"message": {"content": "hi"}, "s": [stated]}) + b"\n{}\n"
            reply = self.read(stdout, **fields)
            self.assertEqual((reply.error[:len(error) or None], reply.error_kind, reply.output), (error, "backend" if error else "", "hi"))
            self.assertLess(len(reply.error), 300)
            self.assertEqual(self.read(stdout, code=3, **fields).error, "exit status 3")

    def test_own_json_structured_is_the_last_value_there(self):
        stdout = b'{"d": {"a": 1}}\n{"d": false, "message": {"content": "x"}}\n{"d": null}\n'
        self.assertIs(self.read(stdout, output="jsonl", structured=("d",), **self.PATHS).structured, False)
        self.assertIsNone(self.read(stdout, output="jsonl", **self.PATHS).structured)

    def test_own_errors_are_found_by_their_texts(self):
        errors = (("No key", "auth"), ("busy", "overloaded"))
        for stdout, stderr, code, error, kind in (
                (b"fine", "", 0, "", ""), (b"No key", "", 0, "No key", "auth"), (b"banner\n\nNo key\nfor x\n\n", "", 0, "No key\nfor x", "auth"),
                (b"busy\nretry\nbusy, too", "", 0, "busy, too", "overloaded"), (b"x\n" * 30000, "", 0, "", ""),
                (b"No key\n\nfine", "", 0, "", ""), (b"It says: No key", "", 0, "", ""), (b"fine", "noise\nbusy: x\n", 0, "busy: x", "overloaded"),
                (b"x", "it has: No key", 3, "it has: No key", "auth"), (b"It says: busy", "", 3, "exit status 3", "overloaded"),
                (b"x", "connection reset", 3, "connection reset", "network")):
            with self.subTest(stdout=stdout, stderr=stderr):
                reply = self.read(stdout, stderr, code, errors=errors)
                self.assertEqual((reply.error, reply.error_kind, reply.output), (error, kind, None))
        reply = self.read(b'{"message": {"content": "busy, try again in 9s"}}', output="json", errors=errors, **self.PATHS)
        self.assertEqual((reply.error_kind, reply.retry_after_seconds, reply.output), ("overloaded", 9.0, "busy, try again in 9s"))
        self.assertEqual(self.read(b'{"error": "Connection lost: busy"}', output="json", errors=errors, **self.PATHS).error_kind, "overloaded")

    def test_own_done_is_the_event_after_which_it_is_over(self):
        row = self.row("x", output="jsonl", answer=("t",), done=(("part", "reason"), '"stop"'), stop_signal="SIGINT")
        for stdout, over in ((b"", False), (b'{"part":{"reason":"stop"}}\n', True), (b'{"part":{"reason":"stop"}}', True),
                             (b'{"part":{"reason":"stop"}}\n{"part":{}}\n', False), (b'{"part":{"reason":"tool"}}\n', False), (b'{"part":{"reason":"stop"}}\nbye\n', True), (b"[1]\n{", False)):
            self.assertIs(row.is_over(self.capture(stdout).file), over, stdout)
        self.assertEqual(row.stop_signal, "SIGINT")
        self.assertIsNone(self.row("x").is_over)

    def test_own_agent_gets_no_command_in_a_literal_prompt(self):
        for argv in (("p", "{prompt}"), ("p", "{prompt_file}"), ("p",)):
            for prompt, literal, agent, before in (
                    ("/help", True, True, "\n"), ("!touch x", True, True, "\n"), (" /x", True, True, ""), ("/help", False, True, ""),
                    ("!touch x", True, False, "")):
                row = self.row(*argv, agent=agent)
                job = clinvk.Job(0, clinvk.Task("own", prompt), literal=literal)
                said = row.command(job)
                given = row.text(job) if said.by_stdin else said.files["prompt"] if said.files else said.argv[1]
                self.assertEqual(given, before + prompt)

    def test_own_agent_may_have_acted(self):
        for agent in (False, True):
            self.assertIs(self.read(b"x", code=1, agent=agent).acted, agent)
            self.assertIs(self.row("x", agent=agent).is_agent, agent)

    def test_known_programs_are_what_a_user_could_define(self):
        self.assertEqual(set(clinvk.KNOWN), set(clinvk.KNOWN_VERSIONS))
        for name, definition in clinvk.KNOWN.items():
            fields = {field: value for field, value in definition._asdict().items() if value != clinvk.Definition._field_defaults.get(field)}
            fields["command"] = list(fields.pop("argv"))
            for field in ("answer", "error", "session_id", "usage", "structured"):
                if field in fields:
                    fields[field] = "." + clinvk.path_text(fields[field])
            for field in {"ok", "done"} & set(fields):
                fields[field] = {"path": "." + clinvk.path_text(fields[field][0]), "value": json.loads(fields[field][1])}
            if "errors" in fields:
                fields["errors"] = dict(fields["errors"])
            self.assertEqual(clinvk.environment_definitions({"CLINVK_BACKENDS": json.dumps({name: fields})}), {name: definition})
            row = clinvk.backend_of(clinvk.Job(0, clinvk.Task(name, "x")))
            self.assertEqual({mode for pair in row.impossible_modes for mode in pair[:1]}, set(clinvk.SANDBOX_MODES))
            full = task(name, model="m", definition=definition)
            self.assertEqual((row.name, "m" in row.command(full).argv, "" in row.command(full).argv), (name, True, False))

    def test_own_command_runs_without_a_shell(self):
        write_program(os.path.join(self.bin, "own"), b'#!/bin/sh\nfor word; do printf "<%s>" "$word"; done\n[ -f "$2" ] && /bin/cat "$2"\n/bin/cat\n')
        for argv, output in ((("own", "$HOME; exit 3", "{model}", "{{model}}"), "<$HOME; exit 3><m><{model}>the prompt"),
                             (("own", "-f", "{prompt_file}"), "<-f><[^<>]*/prompt>the prompt")):
            result = clinvk.run_job(clinvk.Job(0, clinvk.Task("own", "the prompt", model="m"), definition=clinvk.Definition(argv)))
            self.assertRegex(result.output, "^%s$" % (output if "*" in output else re.escape(output)))
            self.assertEqual(result.status, "ok")


class Captures(CaptureCase):
    def test_lines_do_not_depend_on_pieces(self):
        chance = random.Random(7)
        for _ in range(30):
            lines = [bytes(chance.choices(b"ab \xff", k=chance.choice((0, 1, 5, 70000)))) for _ in range(6)]
            data = b"\n".join(lines) + chance.choice((b"", b"\n", b"\n\n"))
            self.assertEqual(list(self.capture(data).lines()), [line for line in data.split(b"\n") if line.strip()])

    def test_lines_of_too_long_line_are_its_beginning(self):
        self.limit("MAX_LINE_BYTES", 3 * clinvk.CHUNK)
        for size in (0, clinvk.CHUNK, clinvk.MAX_LINE_BYTES - 1, clinvk.MAX_LINE_BYTES, clinvk.MAX_LINE_BYTES + 1,
                     2 * clinvk.MAX_LINE_BYTES, 3 * clinvk.MAX_LINE_BYTES + 7):
            for before, after in ((b"a\n", b"\nb\n"), (b"", b"\nb"), (b"a\n", b""), (b"", b""), (b"a\n", b"\n" + b"y" * size + b"\nb")):
                data = before + b"x" * size + after
                lengths = [len(line) for line in data.split(b"\n") if line]
                given = list(self.capture(data).lines())
                self.assertEqual([line[:1] for line in given], [line[:1] for line in data.split(b"\n") if line])
                for line, length in zip(given, lengths):
                    self.assertIn(len(line), (length,) if length <= clinvk.MAX_LINE_BYTES else range(1, clinvk.CHUNK + 1), (size, before, after[:9]))

    def test_events_are_objects_in_marked_lines(self):
        data = (b'{"type":"a","n":1}\n{"type":"b"}\n[{"type":"a","n":2},5,[{"type":"a"}],{"type":"c"}]\nnot "a" JSON\n'
                b'"a"\n["a"]\n{"n":3,"x":"\\"a\\""}\n{"type":"a"')
        self.assertEqual([event.get("n", event["type"]) for event in self.capture(data).events(b'"a"', answer="!")], [1, 2, "c"])
        self.assertEqual([event.get("n", event.get("type")) for event in self.capture(data).events(b'"b"', b"x", answer="!")], ["b", 3])

    def long_events(self, *texts, damage=lambda line: line, ascii=False):
        lines = [json.dumps({"type": "a", "before": "x", "text": text, "after": [text[:9]]}, ensure_ascii=ascii).encode() for text in texts]
        capture = self.capture(b"\n".join(map(damage, lines)) + b"\n")
        return capture, list(capture.events(b'"a"', answer="text"))

    def test_events_long_strings_stay_on_disk_and_return_whole(self):
        self.limit("LONG_LINE", 3 * clinvk.CHUNK)
        size = 2 * clinvk.LONG_LINE
        for pattern in ("审查", "a\\\"\n\t/", "\U0001f642 é", '{"b": "c"}, [', "x"):
            for ascii in {False, not pattern.isascii()}:
                text = pattern * (size // len(pattern))
                capture, events = self.long_events(text, "short", text, ascii=ascii)
                self.assertEqual(["".join(capture.text_of(event["text"])) for event in events], [text, "short", text])
                self.assertLess(len(events[0]["text"]), size * 0.8)
                self.assertEqual([(event["before"], event["after"]) for event in events],
                                 [("x", [text[:9]]), ("x", ["short"]), ("x", [text[:9]])])

    def test_events_damage_deep_in_long_string_is_lost(self):
        self.limit("LONG_LINE", 3 * clinvk.CHUNK)
        text = "0123456789" * (clinvk.LONG_LINE // 5)
        place = clinvk.LONG_LINE + clinvk.LONG_LINE // 2
        for name, damage in (("byte", lambda line: line[:place] + b"\xff" + line[place:]), ("cut", lambda line: line[:place]),
                             ("tab", lambda line: line[:place] + b"\t" + line[place:]),
                             ("escape", lambda line: line[:place] + b"\\x" + line[place:])):
            with self.subTest(name):
                capture, events = self.long_events(text, damage=damage)
                self.assertEqual((capture.lost_lines, events), ([1], []))

    def test_events_long_claude_answer_is_stored_and_error_is_cut(self):
        text = "answer " * 300000
        for failed in (False, True):
            event = {"type": "result", "subtype": "success", "is_error": failed, "session_id": "s", "result": text}
            write_program(os.path.join(self.bin, "claude"), b"#!/bin/sh\n/bin/cat %s\n" % self.file("event", event).encode())
            result = clinvk.run_job(clinvk.Job(0, clinvk.Task("claude", "x")))
            if failed:
                self.assertEqual((result.status, result.output, result.error), ("failed", "", text[:clinvk.CHUNK]))
            else:
                self.assertEqual((result.status, result.output), ("ok", text))

    def test_capture_ignores_what_is_written_later(self):
        file = clinvk.nameless_file(self.directory)
        self.addCleanup(os.close, file)
        os.write(file, b"one\ntwo")
        capture = clinvk.Capture(file)
        os.write(file, b" late\nlater\n")
        self.assertEqual((len(capture), capture.read(), list(capture.lines()), capture.tail()), (7, b"one\ntwo", [b"one", b"two"], "one\ntwo"))

    def test_tail_is_the_end_of_a_large_text(self):
        data = b"b" * 20000 + b"\n" + b"a" * 50000 + b"\xffend"
        self.assertEqual(self.capture(data).tail(), clinvk.to_text(data[20001:]), "it begins with a line")
        data = b"a" * 100000 + b"\xffend"
        tail = self.capture(data).tail()
        self.assertTrue(clinvk.to_text(data).endswith(tail))
        self.assertGreaterEqual(len(tail), clinvk.CHUNK // 2)
        self.assertEqual(self.capture(data + b"\nb\n").tail()[-4:], "d\nb\n")
        self.assertGreaterEqual(len(self.capture(data + b"\n").tail()), clinvk.CHUNK // 2, "a line that is longer ends it")
        data = b"a" * 60000 + b"\n" + b"b" * (clinvk.CHUNK - 60001)
        self.assertEqual(self.capture(data).tail(), data.decode(), "all of it where it is short enough")

    def test_errors_contain_no_half_of_a_secret(self):
        """Whatever is cut: the beginning and the end of what the program wrote, its last paragraph, a quotation."""
        secret = "s3cr3t-" + "0123456789abcdef" * 4
        body = """if True:
            import os, sys
            sys.path.insert(0, sys.argv[1])
            import clinvk
            secret = os.environ["THE_API_KEY"]
            for filling in range(0, 90, 17):
                for text in ("x" * (clinvk.CHUNK - filling) + "\\n\\n", "error: " + "x" * (2000 - filling),
                             "x" * (60 - filling % 60)):
                    for stderr in (secret + text, text + secret, text + secret + text):
                        file = clinvk.nameless_file(sys.argv[2])
                        os.write(file, stderr.encode())
                        tail = clinvk.Capture(file).tail()
                        os.close(file)
                        said = [clinvk.last_words(tail), clinvk._reason(tail), clinvk._failed(clinvk.Reply(), stderr).error, clinvk.quoted(stderr),
                                clinvk.one_line(clinvk._tool_text("Bash", {"command": stderr})[:200])]
                        for shown in said:
                            assert "s3cr" not in shown and "cdef" not in shown, (filling, len(text), shown[-300:])
            """
        done = self.run_program([sys.executable, "-c", body, support.MODULES, self.directory], env={"THE_API_KEY": secret})
        self.assertEqual((done.returncode, done.stderr.decode()[-2000:]), (0, ""))

    def test_is_blank_of_white_space_is_true(self):
        for data, blank in ((b"", True), (b" \n\t\r", True), (b" " * 200000, True), (b" " * 200000 + b"x", False), (b"\0", False), (b"\xff", False)):
            self.assertEqual(self.capture(data).is_blank(), blank)

    def test_last_words_are_the_last_paragraph(self):
        for text, words in (("", ""), ("\n \n\n", ""), ("a\nb\n\nc\nd\n\n", "c\nd"), ("a\r\n\r\nb\r\n", "b"),
                            ("\x1b[31mred\x1b[0m\n", "^[[31mred^[[0m"), ("x" * 3000, "x" * 2000)):
            self.assertEqual(clinvk.last_words(text), words)


class Errors(Environment):
    def test_error_kind_is_found_in_words(self):
        for text, kind in (
                ("You've hit your limit · resets 1pm (Europe/Lisbon)", "quota"),
                ("You're out of extra usage · resets 11:30am (Asia/Colombo)", "quota"),
                ("Claude AI usage limit reached|1753088400", "quota"), ("You've hit your session limit · resets 10:50pm (Asia/Saigon)", "quota"),
                ("Credit balance is too low", "quota"), ("insufficient_quota", "quota"),
                ("You have exhausted your daily quota on this model.", "quota"),
                ("usage_limit_reached", "quota"), ("You exceeded your current quota, please check your plan and billing details.", "quota"),
                ("You exceeded your current quota.\nSuggested retry after 3600s.", "quota"),
                ("You exceeded your current quota.\nPlease retry in 47.43s.", "rate_limit"),
                ("exceeded retry limit, last status: 429 Too Many Requests", "rate_limit"),
                ("Rate limit reached for gpt-x. Please try again in 6.379s", "rate_limit"),
                ("rate_limit_error", "rate_limit"), ("RESOURCE_EXHAUSTED", "rate_limit"), ("Too many requests", "rate_limit"),
                ("API Error: 529 Overloaded", "overloaded"), ("The model is overloaded. Please try again later.", "overloaded"),
                ("503 Service Unavailable", "overloaded"),
                ("We’re currently experiencing high demand, which may cause temporary errors.", "overloaded"),
                ("prompt is too long: 210000 tokens > 200000 maximum", "context_length"),
                ("Your input exceeds the context window of this model", "context_length"),
                ("This model's maximum context length is 128000 tokens", "context_length"),
                ("Input exceeds the maximum length of 1048576 characters.", "context_length"),
                ("The input token count (2000000) exceeds the maximum number of tokens allowed (1048576).", "context_length"),
                ("Reached maximum number of turns (2)", "max_turns"), ("Reached max session turns for this session.", "max_turns"),
                ("Reached maximum budget ($0.05)", "budget"),
                ("Invalid API key · Fix external API key", "auth"), ("Not logged in · Please run /login", "auth"),
                ("unexpected status 401 Unauthorized", "auth"),
                ("Missing environment variable: `OPENAI_API_KEY`.", "auth"), ("Invalid auth method selected.", "auth"),
                ("403 Forbidden", "permission"),
                ("cat: x: Permission denied", "permission"), ("Connection refused (ECONNREFUSED)", "network"),
                ("getaddrinfo ENOTFOUND api.example.com", "network"),
                ("stream disconnected before completion", "network"), ("Request timed out.", "network"), ("TypeError: fetch failed", "network"),
                ("The model `x` does not exist or you do not have access to it.", "invalid"), ("error: unknown option '--frob'", "invalid"),
                ("error: unexpected argument '--frob' found", "invalid"), ("Unknown argument: frob", "invalid"),
                ("please try again later", "backend"), ("Segmentation fault", "backend"), ("", "backend"),
                ("exit status 4", "backend"), ("took 4290 ms", "backend"), ("port 4010", "backend")):
            with self.subTest(text):
                self.assertEqual(clinvk.error_kind(text), kind)

    def test_error_kind_of_a_subscription_does_not_depend_on_the_time_of_day(self):
        self.local_zone("UTC0")
        for seconds in (13 * 3600 - 5, 13 * 3600 - 300, 13 * 3600 + 5):  # of 1753056000, midnight
            with mock.patch.object(clinvk.time, "time", return_value=1753056000 + seconds):
                self.assertEqual(clinvk.error_kind("You've hit your limit · resets 1pm"), "quota")
                self.assertEqual(clinvk.error_kind('Quota exceeded {"resets_at":1753102800}'), "quota")

    def test_error_kind_of_files_and_of_other_numbers_is_no_limit(self):
        for text in ("FileNotFoundError: billing/2024.csv", "failed to load /x/billing-service/.codex/config.toml: unknown field", "cannot open /w/issue-429",
                     "main.c:429:5: error: expected ';'", "AssertionError: 429 != 200", "cannot find module './billing'", "cannot read billing.py, line 529",
                     "TypeError: usage limit must be int", "TypeError: quota must be int", "ran 429 tests, 503 slow",
                     "read 500 lines, 502 of them twice", "took 504 s", "FileNotFoundError: x", "ModuleNotFoundError: x", "OSError: [Errno 122] Disk quota exceeded: 'out'", "see docs/rate-limit.md:503"):
            with self.subTest(text):
                self.assertNotIn(clinvk.error_kind(text), ("quota", "rate_limit", "overloaded", "network"))
        for kind, texts in (
                ("quota", ("You exceeded your current quota, please check your plan and billing details.", "insufficient_quota", "Quota exceeded for metric: x",
                           "402 Payment Required", "Insufficient Balance", "Error: Insufficient credits. Add more using", "requires more credits, or fewer max_tokens",
                           "Your credit balance is too low to access the API. Go to Plans & Billing to upgrade", "The usage limit has been reached",
                           "You have exhausted your daily quota on this model.", "billing_hard_limit_reached", "Claude AI usage limit reached|1753088400",
                           "5-hour limit reached \u2219 resets 3pm", "Session limit reached", "Weekly limit reached", "You've reached your Fable limit",
                           "You've hit your limit \u00b7 resets 1pm", "You've hit your usage limit.")),
                ("rate_limit", ("API Error: 429 {}", "HTTP 429", "exceeded retry limit, last status: 429 Too Many Requests", "Error code: 429 - x", "429", '{"code":429}',
                                "Request failed (429)", "the API responded with 429", "{statusCode: 429}", "Rate limit reached for mock", "You have reached your rate limit", "request to /v1/x: http status 429")),
                ("overloaded", ("API Error: 529 {}", "got status: 503 Service Unavailable", "Selected model is at capacity. Please try a different model.", "Overloaded",
                                "unexpected status 500 Internal Server Error: x", "unexpected status 502 Bad Gateway: x", "HTTP 504", "error code: 522",
                                "Internal server error", "Bad gateway", "Gateway Timeout"))):
            for text in texts:
                with self.subTest(text):
                    self.assertEqual(clinvk.error_kind(text), kind)

    def test_error_kind_status_counts_more_than_words(self):
        for status, text, kind in (
                (429, "anything", "rate_limit"), (429, "You exceeded your current quota", "quota"),
                (429, "You exceeded your current quota, retry in 2s", "rate_limit"),
                (429, "You've hit your limit · resets 1pm", "quota"), (401, "not found", "auth"), (403, "x", "permission"),
                (403, "billing is not enabled", "quota"),
                (403, "rate limit", "permission"), (400, "x", "invalid"), (400, "Credit balance is too low", "quota"),
                (400, "API key not valid.", "auth"),
                (400, "prompt is too long: 210000 tokens > 200000 maximum", "context_length"), (400, "network", "invalid"),
                (402, "billing", "quota"), (404, "x", "invalid"),
                (408, "x", "network"), (413, "x", "context_length"), (500, "quota service crashed", "overloaded"),
                (502, "x", "overloaded"), (503, "x", "overloaded"),
                (504, "x", "overloaded"), (529, "rate limit", "overloaded"), (None, "429", "rate_limit"), (418, "rate limit", "rate_limit"),
                ("429", "x", "backend"), ([], "x", "backend"), ({}, "429", "rate_limit"), (True, "x", "backend")):
            with self.subTest(status=status, text=text):
                self.assertEqual(clinvk.error_kind(text, status), kind)

    def test_error_kind_takes_linear_time(self):
        words = "you hit your "
        start = time.process_time()
        for _ in range(64):
            clinvk._failed(clinvk.Reply(), words * 300)
        short = time.process_time() - start
        start = time.process_time()
        reply = clinvk._failed(clinvk.Reply(), words * 300 * 64)
        self.assertLess(time.process_time() - start, 8 * max(short, 0.05), "the work grows with the square of the text")
        self.assertLessEqual(len(reply.error), clinvk.CHUNK)

    NOW = 1753081200.0  # 2025-07-21, 07:00 UTC

    def local_zone(self, zone):
        """Makes `zone` the zone of this process, for the rest of the test."""
        former = os.environ.get("TZ")

        def leave():
            os.environ.pop("TZ", None)
            if former is not None:
                os.environ["TZ"] = former
            time.tzset()

        self.addCleanup(leave)
        os.environ["TZ"] = zone
        time.tzset()

    def test_retry_after_reads_stated_waits(self):
        self.local_zone("UTC0")
        for text, seconds in (
                ("Please try again in 6.379s", 6.379), ("Please try again in 2s.", 2), ("try again in 1m30s", 90),
                ("Please retry in 47.43s", 47.43), ("Please retry in 47.43s.", 47.43),
                ('"retryDelay": "38.6s"', 38.6), ('{"retryDelay":"38s"}', 38), ("Your quota will reset after 12s", 12),
                ("Resets in 2h39m52s", 9592), ("Suggested retry after 3600s.", 3600),
                ("resets in 1h", 3600), ("RETRY AFTER 5S", 5), ("Retry-After: 30", 30), ("retry-after: 30s", 30), ('"retry_after": 1.5', 1.5),
                ("or try again in 5 days 22 hours 11 minutes.", 5 * 86400 + 22 * 3600 + 660),
                ("try again in 8 hours, 30 minutes", 30600), ("try again in 1 day", 86400),
                ('"resets_in_seconds": 3600', 3600), ('{"resets_at":1753088400}', 7200), ('"resetsAt":1753088400,', 7200),
                ('"resets_at": 1753000000', 0),
                ('{"resets_at":1753088400,"resets_in_seconds":13872}', 13872), ("Claude AI usage limit reached|1753088400", 7200),
                ("try again at 1:21 PM", 22860), ("Try again at 7:00 AM.", 60), ("or try again at 7:01 AM.", 60),
                ("try again at 6:59 AM", 0), ("try again at 6:50 AM", 0), ("try again at 6:49 AM", 85740), ("resets Jul 21 at 6:55am", 0),
                ("Your limit will reset at 3pm", 28800), ("resets Mon 4pm", 32400), ("resets Monday at 6:55am", 0), ("resets Mon, 6am", 7 * 86400 - 3600),
                ("resets Sun 4pm", 6 * 86400 + 32400), ("resets Wed, Jul 23, 4pm", 2 * 86400 + 32400),
                ("retry after 2025-07-21T08:00:00Z", 3600), ("resets at 2025-07-21T10:00:00.123+02:00", 3600), ('"reset_at": "2025-07-21T06:00:00Z"', 0),
                ("retry after 2025-07-21", None), ("retry after 2025-13-21T08:00:00Z", None),
                ("resets 10pm", 54000), ("resets 12am", 61200),
                ("resets 12pm", 18000), ("resets at 3:30 a.m.", 73800), ("resets 13pm", None), ("resets 0am", None), ("resets 1:75pm", None),
                ("please try again later", None), ("Please wait and try again later.", None), ("try again in a few minutes", None),
                ("it took 5s", None), ("", None),
                ("try again in 120ms", None), ("Retrying after 5406ms", None), ("try again in 10 months", None),
                ("try again in 99999999999s", None), ("resets soon", None),
                ("try again in " + "9" * 400 + "s", None), ("limit reached|17530884", None), ("resets 1pm (Middle/Earth)", None),
                ("resets 1pm (/etc/passwd)", None)):
            with self.subTest(text[:60]):
                self.assertEqual(clinvk.retry_after(text, self.NOW), seconds if seconds is None else ANY)
                if seconds is not None:
                    self.assertAlmostEqual(clinvk.retry_after(text, self.NOW), seconds, places=5)

    def test_retry_after_time_of_day_uses_its_zone(self):
        try:
            import zoneinfo
        except ImportError:
            self.assertIsNone(clinvk.retry_after("resets 1pm (Europe/Lisbon)", self.NOW), "there are no zones before Python 3.9")
            return
        before_winter = 1761429600.0  # 2025-10-25, 22:00 UTC: in the night after it the clocks are put back
        for text, now, zone, hours in (
                ("You've hit your limit · resets 1pm (Europe/Lisbon)", self.NOW, "Europe/Lisbon", 5),
                ("resets 8am (Europe/Lisbon)", self.NOW, "Europe/Lisbon", 1 / 60),
                ("You're out of extra usage · resets 11:30am (Asia/Colombo)", self.NOW, "Asia/Colombo", 23),
                ("You've hit your session limit · resets 10:50pm (Asia/Saigon)", self.NOW, "Asia/Saigon", 8 + 5 / 6),
                ("resets 1pm (UTC)", self.NOW, "UTC", 6),
                ("resets 3pm (America/Argentina/Buenos_Aires)", self.NOW, "America/Argentina/Buenos_Aires", 11),
                ("resets 10am (Etc/GMT-2)", self.NOW, "Etc/GMT-2", 1),
                ("resets 1pm (Europe/Lisbon)", before_winter, "Europe/Lisbon", 15)):
            try:
                zoneinfo.ZoneInfo(zone)
            except zoneinfo.ZoneInfoNotFoundError:
                self.assertIsNone(clinvk.retry_after(text, now), "without zones it cannot be known")
                continue
            self.assertAlmostEqual(clinvk.retry_after(text, now), hours * 3600, places=5, msg=text)


class DryRun(CaptureCase):
    """The lines of --dry-run, tried in real shells: the fake programs tell what they were called with."""

    PROMPT = "argv;env NO_COLOR;env GEMINI_CLI_NO_RELAUNCH;env CLAUDECODE;cwd;say it's \"$HOME\" `x` 审查 \\\\\n%s"

    def shells(self):
        found = [argv for argv in (["bash", "--norc"], ["zsh", "-f"]) if shutil.which(argv[0])]
        if not found:
            self.skipTest("neither bash nor zsh is installed")
        return found

    def told(self, shell, one, line="", code=0, **options):
        """What the fake said when the line was run: its lines."""
        done = self.run_program(shell + ["-c", line or clinvk.command_line(one)], **options)
        self.assertEqual((done.stderr, done.returncode), (b"", code))
        text = clinvk.backend_of(one).read(self.capture(done.stdout), "", 0).output
        return (done.stdout.decode() if text is None else text).rstrip("\n").split("\n")

    def test_command_line_of_literal_prompt_is_that_of_the_task(self):
        line = clinvk.command_line(clinvk.Job(0, clinvk.Task("claude", "x"), literal=True))
        self.assertIn(" CLAUDE_CODE_DISABLE_FILE_MENTIONS=1 ", line)
        line = clinvk.command_line(clinvk.Job(0, clinvk.Task("gemini", "/x @/y"), literal=True))
        self.assertTrue(line.endswith(" <<< $'\\n/x \\\\@/y'"), line)

    def test_command_line_runs_the_program_as_the_task_would(self):
        odd = "it's -x \"$HOME\"\n`id` 审查\t\\"
        for shell in self.shells():
            for backend in clinvk.BACKENDS:
                one = clinvk.Job(0, clinvk.Task(backend, self.PROMPT % "say last", model=odd, system_prompt=odd, extra=(odd, "--"),
                                                workdir=self.home, max_turns=3, verbose=True))
                lines = self.told(shell, one)
                self.assertEqual(json.loads(lines[0]), list(clinvk.BACKENDS[backend].command(one).argv[1:]))
                self.assertEqual(lines[1:],
                                 ["1", "1" if backend == "gemini" else "GEMINI_CLI_NO_RELAUNCH is not set", "CLAUDECODE is not set", self.home,
                                             "it's \"$HOME\" `x` 审查 \\", "last"])

    def test_command_line_has_these_texts(self):
        for one, line in (
                (clinvk.Job(0, clinvk.Task("echo", "it's")), "env NO_COLOR=1 cat <<< 'it'\"'\"'s'"),
                (clinvk.Job(0, clinvk.Task("claude", "x", max_tokens=5, model="m")),
                 "env CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 CLAUDE_CODE_MAX_OUTPUT_TOKENS=5 CLAUDE_CODE_MAX_RETRIES=2 "
                 "DISABLE_AUTOUPDATER=1 NO_COLOR=1 "
                 "claude -p --output-format stream-json --verbose --no-session-persistence --model m <<< x"),
                (clinvk.Job(0, clinvk.Task("codex", "x", workdir="/w d")),
                 "(cd -- '/w d' && env NO_COLOR=1 codex exec --json --skip-git-repo-check --ephemeral --color never - <<< x)"),
                (clinvk.Job(0, clinvk.Task("gemini", "x", system_prompt="be brief")),
                 "(d=$(mktemp -d) && printf %s 'be brief' > \"$d\"/system.md && "
                 "env GEMINI_CLI_NO_RELAUNCH=1 GEMINI_SYSTEM_MD=\"$d\"/system.md NO_COLOR=1 "
                 "gemini --skip-trust -o stream-json <<< x; s=$?; rm -r \"$d\"; exit $s)"),
                (clinvk.Job(0, clinvk.Task("own", "it's"), definition=clinvk.Definition(("own", "--in={prompt_file}"))),
                 "(d=$(mktemp -d) && printf %s 'it'\"'\"'s' > \"$d\"/prompt && "
                 "env NO_COLOR=1 own --in=\"$d\"/prompt < /dev/null; s=$?; rm -r \"$d\"; exit $s)")):
            self.assertEqual(clinvk.command_line(one), line)

    def test_command_line_unsets_variables_of_a_session_around(self):
        self.enter_environment(CLAUDECODE="1", CLAUDE_CODE_ENTRYPOINT="cli")
        self.environment.update(CLAUDECODE="1", CLAUDE_CODE_ENTRYPOINT="cli")
        for shell in self.shells():
            self.assertEqual(self.told(shell, clinvk.Job(0, clinvk.Task("echo", "env CLAUDECODE;env CLAUDE_CODE_ENTRYPOINT"))),
                             ["CLAUDECODE is not set", "CLAUDE_CODE_ENTRYPOINT is not set"])

    def test_command_line_preset_yields_to_the_user(self):
        one = clinvk.Job(0, clinvk.Task("claude",
                                        "env CLAUDE_CODE_MAX_RETRIES;env DISABLE_AUTOUPDATER;env CLAUDE_CODE_MAX_OUTPUT_TOKENS", max_tokens=5))
        for said, lines in (({}, ["2", "1", "5"]),
                            ({"CLAUDE_CODE_MAX_RETRIES": "7", "DISABLE_AUTOUPDATER": "", "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "9"}, ["7", "", "5"])):
            self.enter_environment(**said)
            self.environment.update(said)
            self.assertEqual(clinvk.run_job(one).output.split("\n"), lines)
            for shell in self.shells():
                self.assertEqual(self.told(shell, one), lines)

    def test_command_line_files_exist_only_while_it_runs(self):
        text = "be 'brief'\n审查 $x %s \\n"
        for shell in self.shells():
            one = clinvk.Job(0, clinvk.Task("gemini", "env-file GEMINI_SYSTEM_MD", system_prompt=text))
            self.assertEqual("\n".join(self.told(shell, one)), text)
            one = clinvk.Job(0, clinvk.Task("gemini", "argv;touch %s;exit 0" % self.path("ran"), system_prompt=text,
                                            sandbox_mode="read-only", workdir=self.home))
            words = json.loads(self.told(shell, one)[0])
            policy = words[words.index("--policy") + 1]
            self.assertEqual((os.path.dirname(os.path.dirname(policy)), os.path.basename(policy)), (self.tmp, "policy.toml"))
            self.assertEqual(os.listdir(self.tmp), [])

    def test_command_line_own_command_reads_its_prompt_file(self):
        write_program(os.path.join(self.bin, "own"), b'#!/bin/sh\n/bin/cat\n[ "$1" = -f ] && /bin/cat "$2" && pwd && exit 7\n')
        one = clinvk.Job(0, clinvk.Task("own", "the 'prompt'\n审查 %s\\", workdir=self.home),
                         definition=clinvk.Definition(("own", "-f", "{prompt_file}")))
        for shell in self.shells():
            done = self.run_program(shell + ["-c", clinvk.command_line(one)], input=b"of somebody else")
            self.assertEqual((done.stdout.decode(), done.stderr, done.returncode), (one.task.prompt + self.home + "\n", b"", 7))

    def test_command_line_secret_is_a_variable(self):
        secret, other = "s3cret $HOME 'x'", "s3cret $HOME 'x' and more"
        env = {"MY_API_KEY": secret, "OTHER_TOKEN": other, "PLAIN": "plain-value-1", "SHORT_KEY": "short"}
        fields = {"model": secret, "system_prompt": "be %s, %s: plain-value-1 short" % (secret, other), "workdir": self.home}
        for backend in ("claude", "gemini", "codex"):
            fields["prompt"] = "argv;%ssay %s" % ("env-file GEMINI_SYSTEM_MD;" if backend == "gemini" else "", secret)
            done = self.clinvk("parallel", "--dry-run", "--jsonl", "-q", input=json.dumps(dict(fields, backend=backend)), env=env)
            line = json.loads(done.stdout)["output"]
            self.assertNotIn("s3cret", line)
            self.assertIn('"$MY_API_KEY"', line)
            one = support.job(0, backend, fields["prompt"], **{name: fields[name] for name in ("model", "system_prompt", "workdir")})
            for shell in self.shells():
                lines = self.told(shell, one, line, env=env)
                if backend == "gemini":
                    self.assertEqual(lines[1], fields["system_prompt"])
                else:
                    self.assertIn(json.dumps(fields["system_prompt"])[1:-1], lines[0].replace('\\\\\\"', '\\"'))
                self.assertIn(secret, json.loads(lines[0]))
                self.assertEqual(lines[-1], secret)

    def test_command_line_is_one_line_for_any_prompt(self):
        for prompt in ("a\nb\r\n", "\x1b[2J", "\u2028", "\x85", "\x0b\x0c", "'\n'"):
            for one in (clinvk.Job(0, clinvk.Task("echo", prompt)), clinvk.Job(0, clinvk.Task("gemini", prompt, system_prompt=prompt)),
                        clinvk.Job(0, clinvk.Task("own", prompt), definition=clinvk.Definition(("own", "{prompt_file}")))):
                line = clinvk.command_line(one)
                self.assertTrue(line.isprintable(), ascii(line))


if __name__ == "__main__":
    unittest.main()
