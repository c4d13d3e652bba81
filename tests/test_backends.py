"""Section 4, Backends: the exact words each program is called with, for every field and mode; what is refused; and what is read
from outputs that the real programs printed (tests/data), in good times and in bad ones.  Nothing is launched but the shells
that try the lines of --dry-run."""
import json
import os
import random
import shutil
import unittest

import support
from support import clinvk

BASE = {
    "claude": ["claude", "-p", "--output-format", "json", "--no-session-persistence", "--permission-mode", "default"],
    "codex": ["codex", "exec", "--json", "--skip-git-repo-check", "--ephemeral", "--color", "never", "-"],
    "gemini": ["gemini", "--skip-trust", "-o", "json", "--approval-mode", "default"],
    "echo": ["cat"],
}
PROMPT = "--dangerous $(prompt)"


def task(backend, **fields):
    return clinvk.Task(0, backend, PROMPT, **fields)


def command(backend, **fields):
    return clinvk.BACKENDS[backend].command(task(backend, **fields))


class Commands(unittest.TestCase):
    def assert_argv(self, backend, expected, **fields):
        with self.subTest(backend=backend, **fields):
            self.assertEqual(list(command(backend, **fields).argv), expected)

    def test_a_plain_task_is_called_with_these_words(self):
        self.assertEqual(set(BASE), set(clinvk.BACKENDS))
        for backend, argv in BASE.items():
            self.assert_argv(backend, argv)

    def test_the_prompt_never_becomes_a_part_of_the_command(self):
        for backend in clinvk.BACKENDS:
            said = command(backend, model="m", system_prompt="s", extra=("-x",), max_turns=2, max_tokens=3, verbose=True)
            for word in said.argv + tuple(said.environment.values()) + tuple(said.text_environment.values()):
                self.assertNotIn(PROMPT, word)

    def test_claude_takes_its_options(self):
        base = BASE["claude"]
        for field, value, words in (("model", "opus", ["--model", "opus"]), ("max_turns", 7, ["--max-turns", "7"]), ("verbose", True, ["--verbose"]),
                                    ("system_prompt", "-be 审查\nbrief", ["--append-system-prompt", "-be 审查\nbrief"]), ("extra", ("--add-dir", "/x y"), ["--add-dir", "/x y"]),
                                    ("max_tokens", 777, []), ("timeout", 5.0, []), ("tags", ("t",), [])):
            self.assert_argv("claude", base + words, **{field: value})
        self.assert_argv("claude", base + ["--model", "m", "--max-turns", "1", "--append-system-prompt", "s", "--verbose", "--last"],
                         model="m", max_turns=1, system_prompt="s", verbose=True, extra=("--last",))

    def test_claude_takes_its_modes(self):
        for sandbox in clinvk.SANDBOX_MODES:
            for approval in clinvk.APPROVAL_MODES:
                mode = {"none": "bypassPermissions", "auto": "acceptEdits"}.get(approval, "default")
                words = ["--permission-mode", mode]
                if sandbox == "read-only":
                    words = ["--permission-mode", "plan", "--disallowedTools", "Bash,Edit,Write,NotebookEdit"]
                self.assert_argv("claude", BASE["claude"][:-2] + words, sandbox_mode=sandbox, approval_mode=approval)

    def test_claude_is_told_by_its_environment_what_has_no_option(self):
        quiet = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}
        self.assertEqual(command("claude").environment, quiet)
        self.assertEqual(command("claude", max_tokens=777).environment, dict(quiet, CLAUDE_CODE_MAX_OUTPUT_TOKENS="777"))
        self.assertEqual(command("claude", approval_mode="none").environment,
                         dict(quiet, IS_SANDBOX="1") if os.geteuid() == 0 else quiet)
        self.assertEqual(command("claude", approval_mode="none", sandbox_mode="read-only").environment, quiet)

    def test_codex_takes_its_options(self):
        base = BASE["codex"][:-1]
        for field, value, words in (("model", "gpt-x", ["-m", "gpt-x"]), ("system_prompt", 'say "审查"\n', ["-c", 'developer_instructions="say \\"审查\\"\\n"']),
                                    ("extra", ("--output-schema", "f"), ["--output-schema", "f"]), ("max_turns", 7, []), ("max_tokens", 7, []), ("verbose", True, [])):
            self.assert_argv("codex", base + words + ["-"], **{field: value})
        self.assertEqual(command("codex", model="m").environment, {})

    def test_codex_takes_its_modes(self):
        names = {"default": [], "read-only": ["-s", "read-only"], "workspace": ["-s", "workspace-write"], "full": ["-s", "danger-full-access"]}
        for sandbox in clinvk.SANDBOX_MODES:
            for approval in ("default", "auto", "none"):
                self.assert_argv("codex", BASE["codex"][:-1] + names[sandbox] + ["-"], sandbox_mode=sandbox, approval_mode=approval)
        for sandbox in ("default", "read-only"):  # exec never asks: who wants to be asked gets no writing
            self.assert_argv("codex", BASE["codex"][:-1] + ["-s", "read-only", "-"], sandbox_mode=sandbox, approval_mode="always")

    def test_gemini_takes_its_options(self):
        for field, value, words in (("model", "gemini-3-pro", ["-m", "gemini-3-pro"]), ("extra", ("-e", "none"), ["-e", "none"]), ("system_prompt", "s", []),
                                    ("max_turns", 7, []), ("max_tokens", 7, []), ("verbose", True, [])):
            self.assert_argv("gemini", BASE["gemini"] + words, **{field: value})
        self.assertEqual(command("gemini"), (tuple(BASE["gemini"]), {"GEMINI_CLI_NO_RELAUNCH": "1"}, {}))
        self.assertEqual(command("gemini", system_prompt="be brief").text_environment, {"GEMINI_SYSTEM_MD": "be brief"})

    def test_gemini_takes_its_modes(self):
        for sandbox in clinvk.SANDBOX_MODES:
            for approval in clinvk.APPROVAL_MODES:
                mode = "plan" if sandbox == "read-only" else {"none": "yolo", "auto": "auto_edit"}.get(approval, "default")
                self.assert_argv("gemini", BASE["gemini"][:-1] + [mode], sandbox_mode=sandbox, approval_mode=approval)

    def test_combinations_that_could_not_be_kept_are_refused_and_no_others(self):
        refused = {(backend, sandbox, approval) for backend, row in clinvk.BACKENDS.items()
                   for sandbox in clinvk.SANDBOX_MODES for approval in clinvk.APPROVAL_MODES if row.refuse(sandbox, approval)}
        self.assertEqual(refused, {("claude", "workspace", "none"), ("gemini", "workspace", "none"),
                                   ("codex", "workspace", "always"), ("codex", "full", "always")})
        for backend, sandbox, approval in refused:
            self.assertIn("use ", clinvk.BACKENDS[backend].refuse(sandbox, approval), "it says what to do instead")

    def test_an_option_that_a_backend_does_not_have_is_a_warning(self):
        everything = dict(model="m", system_prompt="s", max_turns=2, max_tokens=3, extra=("x",), verbose=True)
        expected = {"claude": [], "codex": ["max_turns", "max_tokens", "verbose"], "gemini": ["max_turns", "max_tokens", "verbose"],
                    "echo": ["model", "system_prompt", "max_turns", "max_tokens", "extra", "verbose"]}
        for backend, fields in expected.items():
            self.assertEqual(clinvk.option_warnings(task(backend, **everything)),
                             tuple("%s has no %s; it was not applied" % (backend, field) for field in fields))
            self.assertEqual(clinvk.option_warnings(task(backend)), ())

    def test_what_a_backend_honours_changes_its_command(self):
        values = dict(model="m", system_prompt="s", max_turns=2, max_tokens=3, extra=("x",), verbose=True)
        for backend, row in clinvk.BACKENDS.items():
            for field, value in values.items():
                changed = command(backend, **{field: value}) != command(backend)
                self.assertEqual(changed, field in row.honours, (backend, field))

    def test_a_prompt_larger_than_the_program_takes_is_told_before_anything_starts(self):
        for backend, unit, most, character in (("claude", "bytes", 10000000, "x"), ("claude", "bytes", 10000000, "审"),
                                               ("codex", "characters", 1048576, "审"), ("gemini", "bytes", 8388608, "é")):
            row, width = clinvk.BACKENDS[backend], len(character.encode()) if unit == "bytes" else 1
            self.assertEqual(clinvk.prompt_too_large(row, character * (most // width)), "")
            too_large = clinvk.prompt_too_large(row, character * (most // width + 1))
            self.assertEqual(too_large, "the prompt has {:,} {}; {} takes {:,} at most".format((most // width + 1) * width, unit, backend, most))
        self.assertEqual(clinvk.prompt_too_large(clinvk.BACKENDS["echo"], "x" * 20000000), "")

    def test_codex_is_interrupted_and_the_others_are_terminated(self):
        self.assertEqual({name: row.stop_signal for name, row in clinvk.BACKENDS.items()},
                         {"claude": "SIGTERM", "codex": "SIGINT", "gemini": "SIGTERM", "echo": "SIGTERM"})


class CaptureCase(support.Case):
    def capture(self, data):
        file = clinvk.nameless_file(self.directory)
        self.addCleanup(os.close, file)
        clinvk.write_all(file, data)
        return clinvk.Capture(file)


class Readers(CaptureCase):
    def read(self, backend, stdout=b"", stderr="", code=0):
        """The Reply to an output; a name with a dot stands for that file of tests/data."""
        if isinstance(stdout, str):
            stdout = support.data_file(stdout)
        if stderr.endswith(".stderr"):
            stderr = support.data_file(stderr).decode()
        return clinvk.BACKENDS[backend].read(self.capture(stdout), stderr, code)

    def check(self, reply, **expected):
        fields = dict(clinvk.Reply()._asdict(), **expected)
        for field, value in fields.items():
            self.assertEqual(getattr(reply, field), value, field)

    CLAUDE = dict(session_id="a66a8eca-4b1f-4f0e-9d53-0a6a2b7f1c11", model="claude-opus-5-5", cost_usd=0.00702, num_turns=1, usage={
        "input_tokens": 1700, "cached_input_tokens": 200, "output_tokens": 34, "reasoning_output_tokens": 4, "total_tokens": 1734})
    CODEX = dict(session_id="01a20dcf-8b0d-7933-b9dc-0ae496d26e2f", usage={
        "input_tokens": 2400, "cached_input_tokens": 400, "output_tokens": 68, "reasoning_output_tokens": 20, "total_tokens": 2468})
    GEMINI = dict(session_id="7c1b2a90-3f0e-4a55-9a8b-51f0c2d3e4f5", model="gemini-3-pro", usage={
        "input_tokens": 1300, "cached_input_tokens": 220, "output_tokens": 48, "reasoning_output_tokens": 10, "total_tokens": 1348})
    HELLO = "MOCK-OK: hello from the mock model."

    def test_claude_success(self):
        self.check(self.read("claude", "claude-success.json"), output=self.HELLO, **self.CLAUDE)
        self.check(self.read("claude", "claude-success.json", "[claude-code:unrecognized_model] {}\n"), output=self.HELLO, **self.CLAUDE)

    def test_claude_success_in_another_order_of_keys_and_with_the_words_of_a_limit_in_the_answer(self):
        self.check(self.read("claude", "claude-success-older.json"),
                   output="An answer about 429 Too Many Requests, quota and rate limit:\n审查 auth 模块。", **self.CLAUDE)

    def test_claude_success_as_an_array_of_events(self):
        self.check(self.read("claude", "claude-verbose.json"), output=self.HELLO, **self.CLAUDE)

    def test_claude_denied_permissions_are_warnings(self):
        self.check(self.read("claude", "claude-denied.json"), output=self.HELLO, warnings=("permission denied: Bash", "permission denied: Write"),
                   **dict(self.CLAUDE, num_turns=4))

    def test_claude_errors_are_told_by_is_error_though_their_subtype_is_success(self):
        for name, kind, start in (
                ("429", "rate_limit", "API Error: Request rejected (429)"), ("401", "auth", "Invalid API key"), ("403", "permission", "Failed to authenticate."),
                ("404", "invalid", "There's an issue with the selected model"), ("500", "backend", "API Error: 500"), ("529", "overloaded", "API Error: Repeated 529"),
                ("credit", "quota", "Credit balance is too low"), ("limit", "quota", "You've hit your limit · resets 1pm"),
                ("refused", "network", "API Error: Connection refused"), ("not-logged-in", "auth", "Not logged in")):
            for code in (0, 1):
                with self.subTest(name, code=code):
                    reply = self.read("claude", "claude-error-%s.json" % name, code=code)
                    self.assertEqual(reply.error_kind, kind)
                    self.assertTrue(reply.error.startswith(start), reply.error)
                    self.assertEqual((reply.output, reply.usage, reply.session_id), ("", None, self.CLAUDE["session_id"]))

    def test_claude_errors_without_a_result_are_told_by_their_list(self):
        self.check(self.read("claude", "claude-error-max-turns.json", code=1), error="Reached maximum number of turns (2)", error_kind="max_turns",
                   **dict(self.CLAUDE, num_turns=3))
        self.check(self.read("claude", "claude-error-budget.json", code=1), error="Reached maximum budget ($0.05)", error_kind="budget",
                   **dict(self.CLAUDE, cost_usd=0.0612))
        self.check(self.read("claude", "claude-error-during-execution.json", code=0), error="claude failed: error_during_execution", error_kind="backend", **self.CLAUDE)

    def test_claude_that_ends_badly_after_a_good_result_has_failed_but_its_answer_is_kept(self):
        reply = self.read("claude", "claude-success-older.json", "hook failed\n", code=3)
        self.assertEqual((reply.error, reply.error_kind), ("hook failed", "backend"))
        self.assertTrue((reply.output or "").startswith("An answer about 429"), reply)

    def test_claude_without_a_result_has_failed_and_what_it_printed_is_kept(self):
        for stdout in ("claude-verbose-torn.json", "claude-verbose-no-result.json"):
            reply = self.read("claude", stdout)
            self.assertIsNone(reply.output)
            self.assertTrue(reply.error)
            self.assertEqual(reply.error_kind, "backend")
        for stdout, stderr, code, error, kind in (
                (b"", "", 0, "claude printed no result", "backend"), (b"", "", 1, "claude printed no result", "backend"),
                (b"", "error: unknown option '--frob'\n", 1, "error: unknown option '--frob'", "invalid"),
                (b"", "Error: piped stdin input exceeds 10MB\n", 1, "Error: piped stdin input exceeds 10MB", "context_length"),
                (b"[" * 100000, "", 0, "[" * 2000, "backend"), (b"Error: Reached max turns (2)\n", "", 1, "Error: Reached max turns (2)", "max_turns"),
                (b"", "--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons\n", 1,
                 "--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons", "permission")):
            reply = self.read("claude", stdout, stderr, code)
            self.assertEqual((reply.output, reply.error, reply.error_kind), (None, error, kind))

    def test_claude_with_an_empty_result_has_no_answer_and_no_error_of_its_own(self):
        self.check(self.read("claude", "claude-empty.json"), output="", **self.CLAUDE)

    def test_codex_success_is_its_last_message_and_error_items_are_warnings(self):
        self.check(self.read("codex", "codex-success.jsonl", "Reading additional input from stdin...\n"), output=self.HELLO, **dict(self.CODEX, warnings=(
            "Model metadata for `gpt-5.1-codex` not found. Defaulting to fallback metadata; this can degrade performance and cause issues.",)))

    def test_codex_error_events_before_a_success_are_progress(self):
        self.check(self.read("codex", "codex-reconnecting-then-success.jsonl"), output=self.HELLO, **self.CODEX)

    def test_codex_failures_are_told_by_the_turn_that_failed(self):
        for name, kind, start, wait in (
                ("429", "rate_limit", "exceeded retry limit, last status: 429", None), ("window", "rate_limit", "rate limit exceeded: Rate limit reached", 6.379),
                ("401", "auth", "unexpected status 401 Unauthorized", None), ("404", "invalid", "The model `mock-404` does not exist", None),
                ("quota", "quota", "Quota exceeded.", None), ("500", "overloaded", "We’re currently experiencing high demand", None),
                ("529", "overloaded", "unexpected status 529", None), ("no-key", "auth", "Missing environment variable", None),
                ("cut", "network", "stream disconnected before completion", None), ("max-tokens", "backend", "Incomplete response returned", None)):
            for code in (0, 1):
                with self.subTest(name, code=code):
                    reply = self.read("codex", "codex-failed-%s.jsonl" % name, code=code)
                    self.assertEqual((reply.error_kind, reply.retry_after_seconds), (kind, wait))
                    self.assertTrue(reply.error.startswith(start), reply.error)
                    self.assertEqual(reply.output, "The first half of an" if name == "max-tokens" else "")
                    self.assertEqual(reply.session_id, self.CODEX["session_id"])

    def test_codex_that_ends_before_its_turn_is_complete_has_failed(self):
        too_large = "Error: turn/start: turn/start failed: Input exceeds the maximum length of 1048576 characters. (code -32602)"
        for stdout, stderr, code, error, kind in (
                ("codex-only-thread.jsonl", "Reading additional input from stdin...\n\n" + too_large + "\n", 1, too_large, "context_length"),
                ("codex-waiting.jsonl", "", 1, "Reconnecting... waiting for network (Connection failed: error sending request)", "network"),
                ("codex-torn.jsonl", "", 0, "codex ended before its turn was complete", "backend"),
                (b"", "Not inside a trusted directory and --skip-git-repo-check was not specified.\n", 1,
                 "Not inside a trusted directory and --skip-git-repo-check was not specified.", "permission"),
                (b"", "error: unexpected argument '--frob' found\n", 2, "error: unexpected argument '--frob' found", "invalid"),
                (b"", "", 0, "codex ended before its turn was complete", "backend")):
            with self.subTest(error):
                reply = self.read("codex", stdout, stderr, code)
                self.assertEqual((reply.error, reply.error_kind), (error, kind))
        self.assertEqual(self.read("codex", "codex-torn.jsonl").output, self.HELLO, "what it said is kept")

    def test_codex_with_a_bad_exit_code_after_a_complete_turn_has_failed(self):
        reply = self.read("codex", "codex-success.jsonl", "boom\n", code=101)
        self.assertEqual((reply.output, reply.error), (self.HELLO, "boom"))

    def test_codex_lines_that_are_not_events_are_passed_over(self):
        self.check(self.read("codex", "codex-noise.jsonl"), output=self.HELLO, **self.CODEX)

    def test_codex_lines_of_any_size_are_read(self):
        large = "审" * 200000
        lines = [json.dumps(event, ensure_ascii=False).encode() for event in (
            {"type": "item.completed", "item": {"type": "command_execution", "aggregated_output": "y" * 300000}},
            {"type": "item.completed", "item": {"type": "agent_message", "text": large}}, {"type": "turn.completed"})]
        self.check(self.read("codex", b"\r\n\n".join(lines)), output=large)

    def test_codex_warnings_are_bounded_in_number_and_length_and_safe_to_show(self):
        event = {"type": "item.completed", "item": {"type": "error", "message": "\x1b[31mred\nsecond line"}}
        lines = [json.dumps(event).encode()] * 100 + [b'{"type":"turn.completed"}']
        self.assertEqual(self.read("codex", b"\n".join(lines)).warnings, ("^[[31mred",) * 20)

    def test_gemini_success_whatever_stands_on_stderr(self):
        self.check(self.read("gemini", "gemini-success.json", "gemini-noise.stderr"), output=self.HELLO, **self.GEMINI)
        self.check(self.read("gemini", "gemini-no-stats.json"), output=self.HELLO, session_id=self.GEMINI["session_id"])

    def test_gemini_with_an_empty_response_has_no_answer(self):
        self.check(self.read("gemini", "gemini-empty.json"), output="", **self.GEMINI)

    def test_gemini_errors_stand_at_the_end_of_stderr(self):
        for name, code, kind, error, wait in (
                ("429", 173, "rate_limit", "Resource has been exhausted (e.g. check quota per minute). Please retry in 47.43s.", 47.43),
                ("quota", 173, "quota", "You have exhausted your daily quota on this model.\nSuggested retry after 3600s.", 3600.0),
                ("in-string", 144, "invalid", "API key not valid. Please pass a valid API key.", None),
                ("401", 145, "auth", "Request had invalid authentication credentials.", None), ("403", 147, "permission", "The caller does not have permission", None),
                ("404", 1, "invalid", "models/mock-404 is not found for API version v1beta, or is not supported for generateContent.", None),
                ("500", 244, "backend", "An internal error has occurred.", None), ("503", 247, "overloaded", "The model is overloaded. Please try again later.", None),
                ("turns", 53, "max_turns", "Reached max session turns for this session. Increase the number of turns by specifying maxSessionTurns in settings.json.", None),
                ("auth", 41, "auth", "Please set an Auth method in your settings.json or specify one of the following environment variables before running: GEMINI_API_KEY", None)):
            with self.subTest(name):
                self.check(self.read("gemini", b"", "gemini-error-%s.stderr" % name, code), error=error, error_kind=kind, retry_after_seconds=wait,
                           session_id=self.GEMINI["session_id"])

    def test_gemini_errors_without_an_object_are_told_by_the_last_words(self):
        self.check(self.read("gemini", b"", "gemini-error-untrusted.stderr", 55), error_kind="permission",
                   error="Gemini CLI is not running in a trusted directory. To proceed, use --skip-trust.")
        self.check(self.read("gemini", b"", "gemini-usage.stderr", 1), error="Unknown argument: frobnicate", error_kind="backend")
        self.check(self.read("gemini", b"", "", 41), error="gemini failed", error_kind="auth")

    def test_gemini_without_a_response_has_failed_and_what_it_printed_is_kept(self):
        reply = self.read("gemini", b"", "gemini-noise.stderr")
        self.assertEqual((reply.output, reply.error_kind), (None, "backend"))
        reply = self.read("gemini", b"An unexpected critical error occurred:[object Object]\n")
        self.assertEqual((reply.output, reply.error, reply.error_kind), (None, "An unexpected critical error occurred:[object Object]", "backend"))
        reply = self.read("gemini", b'{"error":{"message":"API key expired","code":400}}')
        self.assertEqual((reply.error, reply.error_kind), ("API key expired", "invalid"))

    def test_a_plain_command_is_judged_by_its_exit_code_alone(self):
        for stdout in (b"rate limit 429 error", b"", b"\xff"):
            self.check(self.read("echo", stdout, "warning: something\n"), output=None)
        self.check(self.read("echo", b"half", "cat: a\n\ncat: b: Permission denied\n", 1), output=None, error="cat: b: Permission denied", error_kind="permission")
        self.check(self.read("echo", b"half", "", 4), output=None, error="exit status 4", error_kind="backend")

    def test_no_output_whatever_its_shape_makes_a_reader_fail(self):
        chance = random.Random(6)
        odd = [None, True, False, 0, -1, 1.5, 10 ** 400, "", "text", "429", [], [1], ["a"], {}, {"a": 1}, [[]], [{}], {"message": []}]

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

        for name in sorted(os.listdir(support.DATA)):
            backend = name.partition("-")[0]
            text = support.data_file(name)
            for _ in range(150):
                if name.endswith(".jsonl"):
                    lines = [json.loads(line) for line in text.splitlines() if line[:1] == b"{" and line[-1:] == b"}"]
                    output = b"\n".join(json.dumps(damaged(line) if chance.random() < 0.5 else line).encode() for line in lines)
                    stderr = ""
                elif name.endswith(".json") and "torn" not in name:
                    output, stderr = json.dumps(damaged(json.loads(text))).encode(), ""
                elif "\n{" in "\n" + text.decode():
                    head, _, block = ("\n" + text.decode()).rpartition("\n{")
                    output, stderr = b"", head + "\n" + json.dumps(damaged(json.loads("{" + block)))
                else:
                    continue
                for code in (0, 1):
                    reply = self.read(backend, output, stderr, code)
                    self.assertIsInstance(reply.output, (str, type(None)))
                    self.assertIsInstance(reply.error, str)
                    self.assertIn(reply.error_kind, clinvk.ERROR_KINDS + ("",))
                    clinvk.dumps(reply._asdict())

    def test_an_odd_count_of_tokens_does_not_cost_the_answer(self):
        value = json.loads(support.data_file("claude-success.json"))
        for usage in (None, [], "many", {"input_tokens": "1200"}, {"output_tokens": [34]}, {"input_tokens": None}, {"cache_read_input_tokens": {}}):
            reply = self.read("claude", json.dumps(dict(value, usage=usage)).encode())
            self.assertEqual((reply.output, reply.error), (self.HELLO, ""))
        value = json.loads(support.data_file("gemini-success.json"))
        for tokens in (None, [], {"prompt": "1200"}, {"candidates": [3]}, {"total": "5"}):
            value["stats"]["models"]["gemini-3-pro"]["tokens"] = tokens
            reply = self.read("gemini", json.dumps(value).encode())
            self.assertEqual((reply.output, reply.error), (self.HELLO, ""))
        for usage in (None, [], {"input_tokens": "2400"}, {"cached_input_tokens": "x"}):
            lines = support.data_file("codex-success.jsonl").splitlines()[:-1] + [json.dumps({"type": "turn.completed", "usage": usage}).encode()]
            reply = self.read("codex", b"\n".join(lines))
            self.assertEqual((reply.output, reply.error), (self.HELLO, ""))


class Captures(CaptureCase):
    def test_lines_are_the_same_wherever_the_pieces_end(self):
        chance = random.Random(7)
        for _ in range(30):
            lines = [bytes(chance.choice(b"ab \xff") for _ in range(chance.choice((0, 1, 5, 70000)))) for _ in range(6)]
            data = b"\n".join(lines) + chance.choice((b"", b"\n", b"\n\n"))
            self.assertEqual(list(self.capture(data).lines()), [line for line in data.split(b"\n") if line.strip()])

    def test_what_is_written_after_the_end_is_not_part_of_it(self):
        file = clinvk.nameless_file(self.directory)
        self.addCleanup(os.close, file)
        os.write(file, b"one\ntwo")
        capture = clinvk.Capture(file)
        os.write(file, b" late\nlater\n")
        self.assertEqual((len(capture), capture.read(), list(capture.lines()), capture.tail()), (7, b"one\ntwo", [b"one", b"two"], "one\ntwo"))

    def test_the_tail_is_the_end_of_a_large_text(self):
        data = b"a" * 100000 + b"\xffend"
        self.assertEqual(self.capture(data).tail(), clinvk.to_text(data[-clinvk.CHUNK:]))

    def test_blank_is_what_holds_white_space_alone(self):
        for data, blank in ((b"", True), (b" \n\t\r", True), (b" " * 200000, True), (b" " * 200000 + b"x", False), (b"\0", False), (b"\xff", False)):
            self.assertEqual(self.capture(data).is_blank(), blank)

    def test_the_last_words_are_the_last_paragraph_safe_to_show(self):
        for text, words in (("", ""), ("\n \n\n", ""), ("a\nb\n\nc\nd\n\n", "c\nd"), ("a\r\n\r\nb\r\n", "b"), ("\x1b[31mred\x1b[0m\n", "^[[31mred^[[0m"), ("x" * 3000, "x" * 2000)):
            self.assertEqual(clinvk.last_words(text), words)


class Errors(unittest.TestCase):
    def test_the_kind_of_an_error_is_told_by_its_words(self):
        for text, kind in (
                ("You've hit your limit · resets 1pm (Europe/Lisbon)", "quota"), ("You're out of extra usage · resets 11:30am (Asia/Colombo)", "quota"),
                ("Claude AI usage limit reached|1753088400", "quota"), ("You've hit your session limit · resets 10:50pm (Asia/Saigon)", "quota"),
                ("Credit balance is too low", "quota"), ("insufficient_quota", "quota"), ("You have exhausted your daily quota on this model.", "quota"),
                ("exceeded retry limit, last status: 429 Too Many Requests", "rate_limit"), ("Rate limit reached for gpt-x. Please try again in 6.379s", "rate_limit"),
                ("rate_limit_error", "rate_limit"), ("RESOURCE_EXHAUSTED", "rate_limit"), ("Too many requests", "rate_limit"),
                ("Quota exceeded for quota metric 'Generate requests per minute'", "rate_limit"),
                ("API Error: 529 Overloaded", "overloaded"), ("The model is overloaded. Please try again later.", "overloaded"), ("503 Service Unavailable", "overloaded"),
                ("We’re currently experiencing high demand, which may cause temporary errors.", "overloaded"),
                ("prompt is too long: 210000 tokens > 200000 maximum", "context_length"), ("Your input exceeds the context window of this model", "context_length"),
                ("This model's maximum context length is 128000 tokens", "context_length"), ("Input exceeds the maximum length of 1048576 characters.", "context_length"),
                ("Reached maximum number of turns (2)", "max_turns"), ("Reached max session turns for this session.", "max_turns"), ("Reached maximum budget ($0.05)", "budget"),
                ("Invalid API key · Fix external API key", "auth"), ("Not logged in · Please run /login", "auth"), ("unexpected status 401 Unauthorized", "auth"),
                ("Missing environment variable: `OPENAI_API_KEY`.", "auth"), ("403 Forbidden", "permission"), ("cat: x: Permission denied", "permission"),
                ("Connection refused (ECONNREFUSED)", "network"), ("getaddrinfo ENOTFOUND api.example.com", "network"), ("stream disconnected before completion", "network"),
                ("Request timed out.", "network"), ("The model `x` does not exist or you do not have access to it.", "invalid"), ("error: unknown option '--frob'", "invalid"),
                ("error: unexpected argument '--frob' found", "invalid"), ("please try again later", "backend"), ("Segmentation fault", "backend"), ("", "backend"),
                ("exit status 4", "backend"), ("took 4290 ms", "backend"), ("port 4010", "backend")):
            with self.subTest(text):
                self.assertEqual(clinvk.error_kind(text), kind)

    def test_a_stated_status_counts_for_more_than_words(self):
        for status, text, kind in (
                (429, "anything", "rate_limit"), (429, "You exceeded your current quota", "quota"), (429, "Quota exceeded: requests per minute", "rate_limit"), (401, "not found", "auth"),
                (403, "x", "permission"), (403, "billing is not enabled", "quota"), (400, "x", "invalid"), (400, "Credit balance is too low", "quota"), (402, "billing", "quota"), (404, "x", "invalid"),
                (413, "x", "context_length"), (500, "quota service crashed", "backend"), (502, "x", "overloaded"), (503, "x", "overloaded"), (529, "rate limit", "overloaded"),
                (None, "429", "rate_limit"), (418, "rate limit", "rate_limit"), ("429", "x", "backend"), ([], "x", "backend"), ({}, "429", "rate_limit")):
            with self.subTest(status=status, text=text):
                self.assertEqual(clinvk.error_kind(text, status), kind)

    def test_the_time_to_wait_is_read_where_one_is_stated(self):
        for text, seconds in (
                ("Please try again in 6.379s", 6.379), ("Please try again in 2s.", 2), ("try again in 1m30s", 90), ("Please retry in 47.43s", 47.43), ("Please retry in 47.43s.", 47.43),
                ('"retryDelay": "38.6s"', 38.6), ("Your quota will reset after 12s", 12), ("Resets in 2h39m52s", 9592), ("Suggested retry after 3600s.", 3600),
                ("resets in 1h", 3600), ("RETRY AFTER 5S", 5), ("please try again later", None), ("try again at 1:21 PM", None), ("resets 1pm (Europe/Lisbon)", None),
                ("usage limit reached|1753088400", None), ("it took 5s", None), ("", None), ("try again in 120ms", None), ("try again in 1.2.3s", None), ("Retrying after 5406ms", None)):
            with self.subTest(text):
                self.assertEqual(clinvk.retry_after(text), seconds)


class DryRun(CaptureCase):
    """The lines of --dry-run, tried in real shells: the fake programs tell what they were called with."""

    PROMPT = "argv;env NO_COLOR;env GEMINI_CLI_NO_RELAUNCH;env CLAUDECODE;cwd;say it's \"$HOME\" `x` 审查 \\\\\n%s"

    def shells(self):
        found = [argv for argv in (["bash", "--norc"], ["zsh", "-f"]) if shutil.which(argv[0])]
        if not found:
            self.skipTest("neither bash nor zsh is installed")
        return found

    def told(self, shell, one):
        """What the fake said when the line was run: its lines."""
        done = self.run_program(shell + ["-c", clinvk.command_line(one)])
        self.assertEqual(done.stderr, b"")
        if one.backend == "echo":
            text = done.stdout.decode()
        else:
            text = clinvk.BACKENDS[one.backend].read(self.capture(done.stdout), "", done.returncode).output
        return text.rstrip("\n").split("\n")

    def test_the_line_runs_the_program_as_the_task_would(self):
        odd = "it's -x \"$HOME\"\n`id` 审查\t\\"
        for shell in self.shells():
            for backend in clinvk.BACKENDS:
                one = clinvk.Task(0, backend, self.PROMPT % "say last", model=odd, system_prompt=odd, extra=(odd, "--"), workdir=self.home, max_turns=3, verbose=True)
                lines = self.told(shell, one)
                self.assertEqual(json.loads(lines[0]), list(clinvk.BACKENDS[backend].command(one).argv[1:]))
                self.assertEqual(lines[1:], ["1", "1" if backend == "gemini" else "GEMINI_CLI_NO_RELAUNCH is not set", "CLAUDECODE is not set", self.home,
                                             "it's \"$HOME\" `x` 审查 \\", "last"])

    def test_the_variables_of_a_session_around_it_are_taken_away(self):
        self.enter_environment(CLAUDECODE="1", CLAUDE_CODE_ENTRYPOINT="cli")
        self.environment.update(CLAUDECODE="1", CLAUDE_CODE_ENTRYPOINT="cli")
        for shell in self.shells():
            self.assertEqual(self.told(shell, clinvk.Task(0, "echo", "env CLAUDECODE;env CLAUDE_CODE_ENTRYPOINT")),
                             ["CLAUDECODE is not set", "CLAUDE_CODE_ENTRYPOINT is not set"])

    def test_a_text_that_goes_in_by_a_file_is_there_when_the_line_runs(self):
        for shell in self.shells():
            one = clinvk.Task(0, "gemini", "env-file GEMINI_SYSTEM_MD", system_prompt="be 'brief'\n审查 $x %s \\n")
            self.assertEqual("\n".join(self.told(shell, one)), one.system_prompt)

    def test_it_is_one_line_whatever_the_prompt_holds(self):
        for prompt in ("a\nb\r\n", "\x1b[2J", "\u2028", "\x85", "\x0b\x0c", "'\n'"):
            line = clinvk.command_line(clinvk.Task(0, "echo", prompt))
            self.assertTrue(line.isprintable(), ascii(line))


if __name__ == "__main__":
    unittest.main()
