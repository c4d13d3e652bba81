"""`clinvk chain`: steps one after the other, each with the answers of those before it.  Mostly as a black box with fake AI programs.

What placeholders become and which are refused, what a failure does to the steps after it, what comes out in every form, and the
pipeline that turns the answer of a chain into a batch.
"""
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import unittest
from unittest import mock

import test_command_line
import test_commands
import support
from support import PATIENCE, COMPILED, Case, clinvk, only_linux, wait_until, write_program
from test_commands import normal

support.left_to_full_runs()

COUNTS = ("total_steps", "completed_steps", "failed_step", "total_tasks", "completed", "failed", "canceled", "skipped")


def step(prompt, **fields):
    return dict({"backend": "echo", "prompt": prompt}, **fields)


class ChainCase(test_commands.Commands):
    main = test_command_line.CommandLine.main

    def command(self, *arguments):
        return [sys.executable, "-W", "error", COMPILED, "chain", *arguments]

    def chain_file(self, *steps, **fields):
        return self.file("chain.json", dict(fields, steps=steps))

    def chain(self, *steps, arguments=("--json",), env=None, **fields):
        """Runs a chain of these steps; `fields` are said of it as a whole."""
        return self.run_program(self.command(*arguments, "-f", self.chain_file(*steps, **fields)), env=env)

    def run_input(self, text, *arguments, **options):
        return self.run_program(self.command(*arguments), text if isinstance(text, (bytes, str)) else json.dumps(text), **options)

    def assert_step(self, result):
        self.assertEqual(result["step"], result["index"] + 1)
        self.assertEqual(result.get("name"), result.get("task_name"))
        self.assert_result({name: value for name, value in result.items() if name not in ("step", "name")})

    def report(self, completed):
        """The object that `--json` printed; what holds of every one is checked."""
        report = json.loads(completed.stdout.decode("utf-8"))
        for result in report["results"]:
            self.assert_step(result)
        self.assertEqual([result["index"] for result in report["results"]], list(range(report["total_steps"])))
        self.assertEqual((report["total_steps"], report["completed_steps"]), (report["total_tasks"], report["completed"]))
        self.assertEqual(sum(report[name] for name in ("completed", "failed", "canceled", "skipped")), report["total_tasks"])
        failed = [result["step"] for result in report["results"] if result["status"] in ("failed", "timeout", "lost")]
        self.assertEqual(report.get("failed_step"), failed[0] if failed else None)
        self.assertEqual(list(report)[-1], "results")
        return report

    def outputs(self, *steps, **fields):
        """The answers of a chain in which all goes well."""
        completed = self.chain(*steps, **fields)
        self.assertEqual((completed.returncode, completed.stderr), (0, b""), completed.stdout)
        return [result["output"] for result in self.report(completed)["results"]]

    def counts(self, report):
        return {name: report[name] for name in COUNTS if name in report}


class Placeholders(ChainCase):
    def test_previous_is_replaced_by_the_answer_of_the_step_before(self):
        self.assertEqual(self.outputs(step("say one"), step("rest\n<{{previous}}>"), step("rest\n[{{previous}}]")), ["one\n", "<one\n>", "[<one\n>]"])

    def test_step_name_of_any_kind_is_replaced_in_later_steps(self):
        names = ("analyze", "审查 auth", "a.b", "with 'quotes\" \\ $x", "output", "previous")
        answers = self.outputs(*[step("say %d" % number, name=name) for number, name in enumerate(names)],
                               step("rest\n" + " ".join("{{steps.%s.output}}" % name for name in reversed(names))))
        self.assertEqual(answers[-1], "5\n 4\n 3\n 2\n 1\n 0\n")

    def test_placeholders_in_answers_are_not_replaced(self):
        braces = "say \\x7b\\x7bprevious}} \\x7b\\x7bsteps.first.output}} \\\\1 \\\\g<0> %s $& \\x7b0}"
        said = "{{previous}} {{steps.first.output}} \\1 \\g<0> %s $& {0}\n"
        answers = self.outputs(step(braces, name="first"), step("rest\n{{previous}}|{{previous}}{{steps.first.output}}"),
                               step("rest\n{{previous}}"))
        self.assertEqual(answers, [said, said + "|" + said + said, said + "|" + said + said])

    def test_text_in_braces_stays_unchanged(self):
        text = "{previous} {{ x }} {{}} {{steps.a}} {{steps..output}} {{{previous}}} {{Previous}} {{session}} "
        text += "${{ steps.build.outputs.tag }} {{steps.a.outputs}}"
        completed = self.chain(step("say A"), step("rest\n" + text))
        self.assertEqual(self.report(completed)["results"][1]["output"], text.replace("{{previous}}", "A\n"))

    def test_misspelt_placeholder_causes_a_warning(self):
        table = (("{{ previous }}", "{{previous}}"), ("{{previos}}", "{{previous}}"), ("{{steps.plan.outptu}}", "{{steps.plan.output}}"),
                 ("{{ steps.plan.output }}", "{{steps.plan.output}}"), ("{{version}}", ""), ("{{session}}", ""), ("{{ x }}", ""))
        path = self.file("chain.json", '{"steps": [\n{"backend": "echo", "name": "plan", "prompt": "say x"}%s]}' % "".join(
            ',\n{"backend": "echo", "prompt": "rest\\n%s"}' % text for text, _ in table))
        completed = self.run_program(self.command("--json", "-f", path))
        self.assertEqual([result["output"] for result in self.report(completed)["results"][1:]], [text for text, _ in table])
        self.assertEqual(completed.stderr.decode(), "".join(
            "clinvk: warning: %s:%d: steps[%d].prompt: %s is no placeholder and stays as it is (did you mean \"%s\"?)\n"
            % (path, number + 2, number, text, meant) for number, (text, meant) in enumerate(table, 1) if meant))

    def test_answers_of_any_size_and_content_are_passed_on_unchanged(self):
        self.install_answerers("claude")
        answers = self.outputs(step("flood 3000000"), step("prompt-size;rest\n{{previous}}"))
        self.assertEqual(answers[1], "%d\n%s" % (3000000 + len("prompt-size;rest\n"), "x" * 3000000))
        answers = self.outputs(step("invalid-utf8; nul; say \\u2028 \\x1b[31m \\U0001f642 \\ud83d"), step("rest\n{{previous}}"))
        self.assertEqual(answers[0], answers[1])
        answers = self.outputs(step("-x --help\n@file \\n  trailing  \n", backend="claude"), step("rest\n{{previous}}|"))
        self.assertEqual(answers[1], "-x --help\n@file \\n  trailing  |")

    def test_large_answer_reaches_a_command_that_reads_its_prompt_from_a_file(self):
        env = {"CLINVK_BACKENDS": json.dumps({"own": {"command": [
            sys.executable, "-c", "import sys; sys.stdout.write(open(sys.argv[1]).read())", "{prompt_file}"]}})}
        answers = self.outputs(step("flood 300000"), step("\n審 {{previous}}|{{previous}}", backend="own"), step("rest\n{{previous}}"), env=env)
        self.assertEqual(answers[1:], ["\n審 %s|%s" % (("x" * 300000,) * 2)] * 2)

    def test_schema_follows_a_large_answer_in_the_prompt(self):
        schema = {"type": "object", "properties": {"a": {"const": 1}}}
        env = {"CLINVK_BACKENDS": json.dumps({"end": {"command": ["tail", "-c", "60"]}})}
        answers = self.report(self.chain(step("flood 300000"), step("{{previous}}", backend="end", schema=schema, schema_retries=0), env=env))["results"]
        self.assertEqual([answer.get("error_kind") for answer in answers], [None, "schema"])
        self.assertTrue(answers[1]["output"].endswith(json.dumps(schema, separators=(",", ":")) + "\n"), answers[1])

    def test_large_prompt_is_shown_in_the_table_by_its_beginning(self):
        completed = self.chain(step("flood 300000"), step("  say {{previous}}"), step("say"), arguments=("--jsonl",))
        table = completed.stderr.decode()
        self.assertRegex(table, r"(?m)^2 +echo +OK +\S+ +say x+\.\.\.$")

    def test_random_chains_equal_a_plain_replacement(self):
        chance = random.Random(5)
        for _ in range(300):
            names = ["n%d" % number for number in range(5)]
            pieces = ["{{previous}}", "{{previous", "}}", "{", "x", "\\1", "{{steps.", ".output}}", "\n"]
            steps, answers, expected = [], [], []
            for position in range(5):
                known = ["{{steps.%s.output}}" % name for name in names[:position]] + (["{{previous}}"] if position else [])
                while True:
                    parts = [chance.choice(pieces[1:] + known) for _ in range(chance.randrange(1, 9))]
                    prompt = "".join(parts) + "."
                    try:  # pieces may happen to be a placeholder that cannot be replaced
                        cut = clinvk._parts(prompt, position, {name: number for number, name in enumerate(names)})
                        break
                    except ValueError:
                        continue
                steps.append({"backend": "echo", "name": names[position], "prompt": prompt})
                answers.append("".join(chance.choice(pieces) for _ in range(chance.randrange(4))))
                expected.append("".join(part if isinstance(part, str) else answers[part] for part in cut))
                self.assertEqual("".join(part if isinstance(part, str) else "\0" for part in cut),
                                 self.with_marks(prompt, names))
            run = clinvk._chain({"steps": steps}, clinvk.TaskPolicy(), self.fail)
            for position, job in enumerate(iter(run.next_job, clinvk.END)):
                self.assertEqual((job.index, job.task.prompt), (position, expected[position]))
                result = clinvk.Result(position, "echo", "ok", 0, answers[position], task=job.task)
                self.assertEqual(run.arrived(result), result)
            self.assertEqual(position, 4)

    @staticmethod
    def with_marks(prompt, names):
        """Each placeholder of the prompt as a NUL, found without a regular expression."""
        known, marked = ["{{previous}}"] + ["{{steps.%s.output}}" % name for name in names], ""
        while prompt:
            here = next((text for text in known if prompt.startswith(text)), "")
            marked += "\0" if here else prompt[0]
            prompt = prompt[len(here) or 1:]
        return marked


class Refused(ChainCase):
    def assert_chain_refused(self, text, *messages):
        completed = self.run_input(text, "--json")
        self.assert_refused(completed, *messages)
        self.assertFalse(self.has("ran"))

    def test_placeholder_without_step_is_refused_with_line_and_path(self):
        chain = """{
  "steps": [
    {"backend": "echo", "name": "analyze", "prompt": "touch ran"},
    {"backend": "echo", "name": "tests",
     "prompt": "touch ran; %s"},
    {"backend": "echo", "name": "last", "prompt": "say x"}]}"""
        for text, problem in (
                ("{{steps.analyse.output}}", 'no earlier step has that name (did you mean "analyze"?)'), ("{{steps.zzz.output}}", "no earlier step has that name"),
                ("{{steps.last.output}}", "no earlier step has that name"),
                ("{{steps.tests.output}}", "no earlier step has that name"),
                ("{{previous}} {{steps.Analyze.output}}", 'no earlier step has that name (did you mean "analyze"?)')):
            with self.subTest(text=text):
                path = self.file("chain.json", chain % text)
                completed = self.run_program(self.command("-f", path))
                self.assert_refused(completed)
                self.assertEqual(completed.stderr.decode(), "clinvk: error: %s:5: steps[1].prompt: %s cannot be replaced: %s\n"
                                 % (path, text.split("} ")[-1], problem))
                self.assertFalse(self.has("ran"))
        self.assert_chain_refused({"steps": [step("say x {{previous}}")]},
                                  "stdin:1: steps[0].prompt: {{previous}} cannot be replaced: no earlier step exists")

    def test_placeholder_outside_of_prompts_is_refused(self):
        for field, value in (("model", "{{previous}}"), ("workdir", "/{{steps.a.output}}"), ("system_prompt", "x {{previous}}"),
                             ("extra", ["x", "{{previous}}"])):
            self.assert_chain_refused({"steps": [step("touch ran", name="a"), step("say x", **{field: value})]},
                                      "stdin:1: steps[1].%s: placeholders are replaced only in prompts" % field)
        self.assert_chain_refused({"defaults": {"system_prompt": "{{previous}}"}, "steps": [step("touch ran")]},
                                  "stdin:1: steps[0].system_prompt: placeholders are replaced only in prompts")

    def test_invalid_chain_is_refused_with_line_and_path(self):
        ran, cases = json.dumps(step("touch ran")), []
        for text, message in (
                (b"", "stdin: no chain: the input is empty"), (b" \n\n", "stdin: no chain: the input is empty"),
                (b"{}", "stdin:1: steps: a chain needs a list of steps"),
                (b'{"steps": null}', "stdin:1: steps: a chain needs a list of steps that is not empty"),
                (b'{"steps": []}', "stdin:1: steps: a chain needs a list of steps that is not empty"),
                (b'\n{"steps":\n{}}', "stdin:3: steps: expected a list of steps, got {}"),
                (b'{"prompt": "a"}', 'stdin:1: a chain needs "steps": {"steps": [{"prompt": ...}]}'),
                (b'{"step": []}', 'stdin:1: step: unknown field (did you mean "steps"?)'),
                (b'{"steps": [3]}', "stdin:1: steps[0]: expected a task (an object), got 3"),
                (b'{"steps": [{"prompt": "a", "repeat": 2}]}', "stdin:1: steps[0].repeat: a step of a chain runs once"),
                ('{"steps": [%s, {"backend": "echo"}]}' % ran, "stdin:1: steps[1]: a task needs a prompt"),
                ('{"steps": [%s], "stop_on_failure": "no"}' % ran, 'stdin:1: stop_on_failure: expected true or false, got "no"'),
                ('{"steps": [%s], "max_parallel": 2}' % ran, "stdin:1: max_parallel: unknown field"),
                ('{"steps": [%s], "retries": 2}' % ran, "stdin:1: retries: unknown field; it is for the whole chain: give the option of that name"),
                ('{"steps": [%s], "timeout": 2}' % ran, 'stdin:1: timeout: unknown field; it is for one task: put it into the task or into "defaults"'),
                ('{"steps": [%s], "repeat": 2}' % ran, "stdin:1: repeat: unknown field; a step of a chain runs once"),
                ('{"steps": [%s], "defaults": {"max_wait": 2}}' % ran, "stdin:1: defaults.max_wait: unknown field; it is for the whole run: give the option"),
                ('{"steps": [%s, {"backend": "ecko", "prompt": "x"}]}' % ran,
                'stdin:1: steps[1].backend: unknown backend "ecko" (did you mean "echo"?)'),
                ('{"steps": [%s, {"promt": "x"}]}' % ran, 'stdin:1: steps[1].promt: unknown field (did you mean "prompt"?)'),
                ('{"steps": [%s]}\n{"steps": [%s]}' % (ran, ran), "stdin:2: a chain is one JSON value, and here begins another"),
                ('{"steps": [%s]}\nnoise' % ran, 'stdin:2: expected a JSON object or array, got "noise"'),
                ('{"steps": [%s]' % ran, "stdin:1: not valid JSON: "), (b'{"steps": ["\xff"]}', "stdin:1: not valid UTF-8 (byte 0xff)"),
                ("[%s]" % ran, "stdin:1: this is a batch: run it with `clinvk parallel`"),
                ('\n{"tasks": [%s]}' % ran, "stdin:2: this is a batch: run it with `clinvk parallel`"),
                ("[" * 100000, "stdin:1: nested too deep"),
                ('{"steps": [%s], "defaults": {"id": "x"}}' % ran, "stdin:1: defaults.id: unknown field; it is for one task: put it into the task"),
                ('{"steps": [%s], "backends": {"x": {"command": ["x"]}}}' % ran,
                "stdin:1: backends: commands that a chain defines are only run with --allow-commands")):
            cases.append((self.file("chain-%d.json" % len(cases), text), message))
        for (path, message), answer in zip(cases, self.main(*[["chain", "--json", "-f", path] for path, _ in cases])):
            with self.subTest(message=message):
                self.assertEqual(answer[:2], (2, ""))
                self.assertIn("clinvk: error: " + message.replace("stdin", path), answer[2])
        self.assertFalse(self.has("ran"))

    def test_repeated_name_or_id_is_refused(self):
        for field in ("name", "id"):
            self.assert_chain_refused({"steps": [step("touch ran", **{field: "x"}), step("say x"), step("say x", **{field: "x"})]},
                                      'stdin:1: steps[2].%s: another step has the %s "x"' % (field, field))

    def test_chain_given_to_parallel_names_the_command(self):
        completed = self.run_program([sys.executable, COMPILED, "parallel"], json.dumps({"steps": [step("touch ran")]}).encode())
        self.assert_refused(completed, "stdin:1: steps: this is a chain: run it with `clinvk chain`")

    def test_unreadable_input_is_refused(self):
        self.assert_refused(self.run_program(self.command("-f", self.path("missing"))), self.path("missing") + ": No such file or directory")
        self.assert_refused(self.run_program(self.command("-f", self.directory)), "Is a directory")
        terminal = test_commands.Terminal()
        self.addCleanup(terminal.close)
        for arguments in ([], ["-f", "-"]):
            self.assert_refused(self.run_program(self.command(*arguments), stdin=terminal.slave), "no input: stdin is a terminal")

    def test_step_above_the_ceiling_or_outside_of_root_is_refused(self):
        os.mkdir(self.path("inside"))
        for arguments, field, message in (
                (["--ceiling", "sandbox=workspace"], {"sandbox_mode": "full"}, 'steps[1].sandbox_mode: "full" is above the ceiling'),
                (["--root", "inside", "-w", "inside"], {"workdir": "/"}, 'steps[1].workdir: "/" is outside of "inside"')):
            completed = self.chain(step("touch ran"), step("say x", **field), arguments=["--json"] + arguments)
            self.assert_refused(completed, message)
            self.assertFalse(self.has("inside/ran"))

    def test_answer_passed_on_is_as_literal_as_a_prompt(self):
        for backend in ("claude", "gemini"):
            write_program(os.path.join(self.bin, backend), b"""#!/bin/sh
/bin/cat >%s-stdin
env >%s-variables
""" % ((backend.encode(),) * 2))
        for guard in (["--ceiling", "approval=none"], ["--root", self.directory], ["--literal"], []):
            self.chain(step("say /x @/y", name="a"), *({"prompt": "{{steps.a.output}}", "backend": backend} for backend in ("claude", "gemini")),
                       arguments=["--json", *guard], stop_on_failure=False)
            for backend, literal in (("claude", b"\n/x @/y\n"), ("gemini", b"\n/x \\@/y\n")):
                self.assertEqual(self.wait_for_file(self.path(backend + "-stdin")), literal if guard else b"/x @/y\n", (backend, guard))
                variables = self.wait_for_file(self.path(backend + "-variables"))
                self.assertEqual(b"\nCLAUDE_CODE_DISABLE_FILE_MENTIONS=1\n" in variables, bool(guard) and backend == "claude")


class Input(ChainCase):
    def test_input_from_file_or_pipe_in_any_layout_runs(self):
        chain = {"steps": [step("say one"), step("rest\n{{previous}}")]}
        line, pretty = json.dumps(chain), "\ufeff\n" + json.dumps(chain, indent=4) + "\n\n"
        for completed in (self.run_input(pretty, "--json"), self.run_input(line, "--json", "-f", "-"),
                          self.run_program(self.command("--json", "--file", self.file("c.json", pretty)))):
            self.assertEqual([result["output"] for result in self.report(completed)["results"]], ["one\n", "one\n"])
            self.assertEqual((completed.returncode, completed.stderr), (0, b""))

    def test_input_on_a_pipe_runs_after_its_end(self):
        process = self.start_program(self.command("--jsonl", "-q"), stdin=subprocess.PIPE)
        process.stdin.write(json.dumps({"steps": [step("touch ran; say x")]}).encode())
        self.assertEqual(select.select([process.stdout], [], [], 0.2)[0], [])
        self.assertFalse(self.has("ran"))
        self.assertEqual(process.finish().returncode, 0)
        self.assertTrue(self.has("ran"))

    def test_endless_input_ends_at_the_second_value(self):
        completed = self.run_program(["sh", "-c", "yes '{\"steps\": []}' | exec \"$@\"", "sh"] + self.command())
        self.assertEqual(completed.returncode, 2)

    def test_defaults_and_backends_apply_to_all_steps(self):
        os.mkdir(self.path("sub"))
        completed = self.chain(step("cwd; env CLINVK_TASK", name="a"), step("cwd", workdir="/"), step("rest\nx", backend="mine"),
                               defaults={"workdir": self.path("sub"), "tags": ["t"]}, backends={"mine": {"command": ["tr", "x", "y"]}},
                               arguments=["--json", "--allow-commands"])
        results = self.report(completed)["results"]
        self.assertEqual([result["output"] for result in results], [self.path("sub") + "\n0\n", "/\n", "rest\ny"])
        self.assertEqual([result["tags"] for result in results], [["t"]] * 3)

    def test_options_apply_to_steps_without_the_field(self):
        chain = {"steps": [{"prompt": "x"}, {"prompt": "x", "backend": "codex", "model": "own"}], "defaults": {"model": "of-defaults"}}
        completed = self.run_input(chain, "--dry-run", "-b", "claude", "--model", "m", "--sandbox-mode", "read-only", "-w", "/")
        lines = completed.stdout.decode().splitlines()
        self.assertEqual(completed.returncode, 0, completed.stderr)
        self.assertRegex(lines[0], r"^\(cd -- / && env .* claude -p .*--tools Read,.* --model m <<< x\)$")
        self.assertRegex(lines[1], r"^\(cd -- / && env .* codex exec .* -s read-only .*-m own .*- <<< x\)$")

    def test_pass_working_dir_passes_the_directory_on(self):
        for name in ("one", "two"):
            os.mkdir(self.path(name))
        steps = (step("cwd"), step("cwd", workdir="one"), step("cwd"), step("cwd", workdir=self.path("two")), step("cwd", workdir=None))
        for passed, policy, expected in (
                (False, {}, ["", "one", "", self.path("two"), ""]),
                (True, {}, ["", "one", "one", self.path("two"), self.path("two")]),
                (True, {"overrides": {"workdir": "/"}, "root": "/"}, ["/", "one", "one", self.path("two"), self.path("two")])):
            chain = clinvk._chain({"steps": list(steps), "pass_working_dir": passed}, clinvk.TaskPolicy(**policy), self.fail)
            self.assertEqual([job.task.workdir for job in chain.steps], expected)
        completed = self.chain(*steps[1:3], pass_working_dir=True, arguments=["--json", "--root", "one"])
        self.assertEqual([result["output"] for result in self.report(completed)["results"]], [self.path("one") + "\n"] * 2)


class Failures(ChainCase):
    def test_first_failure_cancels_the_later_steps(self):
        os.unlink(os.path.join(self.bin, "claude"))
        for prompt, fields, status in (("exit 3", {}, "failed"), ("sleep 300", {"timeout": 0.1}, "timeout"),
                                       ("say x", {"backend": "claude"}, "failed")):
            with self.subTest(prompt=prompt, fields=fields):
                completed = self.chain(step("say one"), step(prompt, **fields), step("touch ran"), step("touch ran {{previous}}"),
                    env={"PATH": self.bin})
                report = self.report(completed)
                self.assertEqual((completed.returncode, completed.stderr), (1, b""))
                self.assertEqual(self.counts(report), dict(zip(COUNTS, (4, 1, 2, 4, 1, 1, 2, 0))))
                self.assertEqual([result["status"] for result in report["results"]], ["ok", status, "canceled", "canceled"])
                self.assertEqual([(result["error"], result["error_kind"], result["exit_code"], result["attempts"], result["output"])
                                  for result in report["results"][2:]], [("not run, because step 2 failed", "canceled", -1, 0, "")] * 2)
                self.assertFalse(self.has("ran"))

    def test_stop_on_failure_false_replaces_missing_answers_by_nothing(self):
        steps = (step("say partly; exit 3", name="bad"), step("rest\n<{{previous}}>"), step("rest\n<{{steps.bad.output}}{{previous}}>"))
        completed = self.chain(*steps, stop_on_failure=False)
        report = self.report(completed)
        self.assertEqual([(result["status"], result["output"]) for result in report["results"]],
            [("failed", "partly\n"), ("ok", "<>"), ("ok", "<<>>")])
        warning = "step 1 has no answer (failed): its place in the prompt is empty"
        self.assertEqual([result.get("warnings") for result in report["results"]], [None, [warning], [warning]])
        self.assertEqual(completed.stderr.decode(), "clinvk: warning: step 2: %s\nclinvk: warning: step 3: %s\n" % (warning, warning))
        self.assertEqual((completed.returncode, self.counts(report)), (1, dict(zip(COUNTS, (3, 2, 1, 3, 2, 1, 0, 0)))))

    def test_prompt_that_becomes_too_large_fails_its_step(self):
        for stop, last in ((True, ("canceled", "")), (False, ("ok", "on\n"))):
            with self.subTest(stop_on_failure=stop):
                completed = self.chain(step("flood 1048577"), step("{{previous}}", backend="codex", model="m"), step("say on"), stop_on_failure=stop)
                results = self.report(completed)["results"]
                self.assertEqual([results[1][name] for name in ("status", "exit_code", "error_kind", "error", "backend", "attempts", "model")], [
                    "failed", 1, "invalid", "the prompt has 1,048,577 characters; codex takes 1,048,576 at most", "codex", 0, "m"])
                self.assertEqual((results[2]["status"], results[2]["output"]), last)
                self.assertEqual(completed.returncode, 1)

    def test_prompt_that_becomes_blank_fails_its_step(self):
        completed = self.chain(step("exit 1"), step(" {{previous}}\n"), step("say on"), stop_on_failure=False)
        results = self.report(completed)["results"]
        self.assertEqual([results[1][name] for name in ("status", "error_kind", "error")],
                         ["failed", "invalid", "the prompt is blank once its placeholders are replaced"])
        self.assertEqual(len(results[1]["warnings"]), 1)
        self.assertEqual(results[2]["output"], "on\n")

    def test_step_with_dry_run_is_skipped_and_the_chain_continues(self):
        completed = self.chain(step("touch ran", dry_run=True), step("rest\n<{{previous}}>"))
        report = self.report(completed)
        self.assertEqual([(result["status"], result["output"]) for result in report["results"]],
                         [("skipped", "env NO_COLOR=1 cat <<< 'touch ran'"), ("ok", "<>")])
        self.assertEqual(report["results"][1]["warnings"], ["step 1 has no answer (skipped): its place in the prompt is empty"])
        self.assertEqual((completed.returncode, self.counts(report)), (0, {
            "total_steps": 2, "completed_steps": 1, "total_tasks": 2, "completed": 1, "failed": 0, "canceled": 0, "skipped": 1}))
        self.assertFalse(self.has("ran"))

    def flaky(self, reason):
        """A backend that fails once for this reason, then answers with its prompt."""
        write_program(self.path("flaky"), b"#!/bin/sh\n[ -e failed ] && exec dd bs=65536 2> /dev/null\n: > failed\necho '%s' >&2\nexit 1\n" % reason)
        return test_commands.defined(flaky={"command": [self.path("flaky")]})

    def test_step_that_is_tried_again_gets_the_whole_earlier_answer(self):
        patch = mock.patch.object(clinvk, "RETRY_SECONDS", 0)  # of the forks
        patch.start()
        self.addCleanup(patch.stop)
        for size in (10, 3000000):
            completed = self.chain(step("flood %d" % size), step("<{{previous}}>", backend="flaky"), env=self.flaky(b"503 overloaded"))
            results = self.report(completed)["results"]
            self.assertEqual([(result["status"], result["attempts"]) for result in results], [("ok", 1), ("ok", 2)])
            self.assertEqual(results[1]["output"], "<%s>" % results[0]["output"])
            os.unlink(self.path("failed"))

    def test_step_that_meets_a_long_limit_ends_the_chain_and_names_no_option_of_parallel(self):
        completed = self.chain(step("x", backend="flaky"), step("touch ran"), env=self.flaky(b"429 rate limit, try again in 2h"))
        self.assertEqual((completed.returncode, [result["status"] for result in self.report(completed)["results"]]), (75, ["failed", "canceled"]))
        self.assertIn("flaky is limited until", completed.stderr.decode())
        self.assertNotIn("--results", completed.stderr.decode())

    @only_linux
    def test_lost_worker_fails_its_step(self):
        if os.environ.get("CLINVK_START_METHOD") == "thread":
            self.skipTest("threads cannot be lost")
        process = self.start_program(self.command("--json", "--retries", "0", "-f",
                                                  self.chain_file(step("ids pid; sleep 300"), step("touch ran"))))
        backend = self.pid_in(self.path("pid"))
        with open("/proc/%d/stat" % backend) as file:
            os.kill(int(file.read().rpartition(")")[2].split()[1]), signal.SIGKILL)  # its worker
        report = self.report(process.finish())
        self.assertEqual([result["status"] for result in report["results"]], ["lost", "canceled"])
        self.assert_gone(backend)


class Forms(ChainCase):
    STEPS = (step("say one\\ntwo", name="审查", backend="claude"), step("stderr noise; rest\n{{previous}}", backend="codex"),
        step("exit 3", name="fix"), step("say x"))

    def test_text_prints_answers_under_their_steps_and_a_table(self):
        completed = self.chain(*self.STEPS, arguments=[])
        self.assertEqual(normal(completed.stdout), """\
Running a chain of 4 steps...

[1/4] 审查 (claude)
one
two

[2/4] Step 2 (codex)
one
two

[3/4] fix (echo)
FAILED: exit status 3

Results
============================================================
#    BACKEND      STATUS     DURATION   TASK
------------------------------------------------------------
1    claude       OK         0.00s      审查
2    codex        OK         0.00s      stderr noise; rest
3    echo         FAILED     0.00s      fix
     error: exit status 3
                  CANCELED   1 task not run, because step 3 failed
------------------------------------------------------------
Total: 4 tasks, 2 completed, 1 failed, 1 canceled, 314 tokens, $0.2500 (0.00s)
""")
        self.assertEqual((completed.returncode, completed.stderr), (1, b""))

    def test_text_prints_an_answer_as_its_step_ends(self):
        process = self.start_program(self.command("-f", self.chain_file(step("say one"), step("wait-for go; say two"))))
        process.wait_for_line(b"[1/2] Step 1 (echo)")
        self.assertEqual(process.line(), b"one")
        self.touch("go")
        completed = process.finish()
        self.assertTrue(completed.stdout.startswith(b"\n[2/2] Step 2 (echo)\ntwo\n\nResults\n"), completed.stdout)

    def test_jsonl_prints_results_as_steps_end_and_the_table_on_stderr(self):
        process = self.start_program(self.command("--jsonl", "-f",
            self.chain_file(step("say one", name="n"), step("wait-for go; rest\n{{previous}}"))))
        first = json.loads(process.line())
        self.touch("go")
        second = json.loads(process.line())
        completed = process.finish()
        for result in (first, second):
            self.assert_step(result)
        self.assertEqual([(result["step"], result.get("name"), result["output"]) for result in (first, second)],
            [(1, "n", "one\n"), (2, None, "one\n")])
        self.assertIn(b"\nTotal: 2 tasks, 2 completed, 0 failed (", completed.stderr)
        self.assertEqual((completed.returncode, completed.stdout), (0, b""))

    def test_json_object_has_fields_in_order(self):
        report = self.report(self.chain(step("say one", name="n"), step("exit 1")))
        self.assertEqual(list(report), ["total_steps", "completed_steps", "failed_step", "total_tasks", "completed", "failed", "canceled", "skipped",
                                        "total_duration_seconds", "start_time", "end_time", "results"])
        self.assertEqual(list(report["results"][0])[:4], ["step", "name", "index", "task_name"])

    def test_quiet_prints_the_total_and_the_reasons(self):
        completed = self.chain(*self.STEPS, arguments=["-q"])
        self.assertEqual(normal(completed.stdout),
            "Total: 4 tasks, 2 completed, 1 failed, 1 canceled, 314 tokens, $0.2500 (0.00s)\n"
            "1 failed: exit status 3\n1 canceled: not run, because step 3 failed\n")
        self.assertEqual(self.chain(*self.STEPS, arguments=["-q", "--jsonl"]).stderr, b"")

    def test_dry_run_prints_steps_with_their_placeholders(self):
        steps = (step("touch ran", name="a"), step("touch ran {{previous}} {{steps.a.output}}", workdir="/nonexistent"))
        completed = self.chain(*steps, arguments=["--dry-run"], pass_working_dir=True)
        self.assertEqual((completed.returncode, completed.stderr, completed.stdout.decode().splitlines()), (0, b"", [
            "env NO_COLOR=1 cat <<< 'touch ran'", "(cd -- /nonexistent && env NO_COLOR=1 cat <<< 'touch ran {{previous}} {{steps.a.output}}')"]))
        report = self.report(self.chain(*steps, arguments=["--dry-run", "--json"]))
        self.assertEqual(([result["status"] for result in report["results"]], report["skipped"]), (["skipped"] * 2, 2))
        self.assertFalse(self.has("ran"))

    def test_terminal_gets_no_control_characters(self):
        terminal = test_commands.Terminal()
        self.addCleanup(terminal.close)
        process = self.start_program(self.command("--progress", "never", "--color", "never", "-f", self.chain_file(
            step("say \\x1b[31mred", name="a\x1b]0;x\x07\nb"))), stdout=terminal.slave, stderr=terminal.slave)
        terminal.detach()
        shown = terminal.rest()
        process.finish()
        self.assertNotIn(b"\x1b", shown)
        self.assertIn(b"[1/1] a^[]0;x^G (echo)\n^[[31mred\n", shown)

    def test_progress_counts_the_steps(self):
        completed = self.chain(step("say one"), step("exit 1"), arguments=["--json", "--progress", "always"])
        self.assertRegex(completed.stderr.decode(), r"\A\[1/2\] 0 running, \d\d:\d\d(, about \S+ left)?\n\[2/2\] 0 running, 1 failed, \d\d:\d\d\n\Z")

    def test_steps_run_in_turn(self):
        self.outputs(*[step("append log +%d; append log -%d; say x" % (number, number)) for number in range(4)])
        self.assertEqual(self.log(), [sign + str(number) for number in range(4) for sign in "+-"])

    def test_unwritable_stdout_exits_74_with_the_reason(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("/dev/full is not there")
        path = self.chain_file(step("say one"), step("touch ran; say two"))
        for arguments in ([], ["--json"]):
            with self.subTest(arguments=arguments):
                completed = self.run_program(["sh", "-c", 'exec "$@" > /dev/full', "sh"] + self.command("-f", path, *arguments))
                self.assertEqual(completed.returncode, 74)
                self.assertIn(b"clinvk: error: cannot write to stdout: No space left on device", completed.stderr)


class Stopped(ChainCase):
    def start_steps(self, *arguments, **options):
        process = self.start_program(self.command("-f", self.chain_file(
            step("say one"), step("ids pid; leave-group left; touch ready; sleep 300"), step("touch ran {{previous}}"), step("touch ran"),
            stop_on_failure=options.pop("stop_on_failure", True)), *arguments), **options)
        self.wait_for_file(self.path("ready"))
        return process

    def assert_all_stopped(self):
        for name in ("pid", "left"):
            self.assert_gone(self.pid_in(self.path(name)))
        self.assertFalse(self.has("ran"))
        for name in ("pid", "left", "ready"):
            os.unlink(self.path(name))

    def test_signal_cancels_the_step_and_the_later_ones(self):
        for number, stop in ((signal.SIGINT, True), (signal.SIGTERM, False)):
            with self.subTest(signal=number, stop_on_failure=stop):
                process = self.start_steps("--json", stop_on_failure=stop)
                process.send_signal(number)
                completed = process.finish()
                report = self.report(completed)
                self.assertEqual(completed.returncode, -number)
                self.assertEqual([(result["status"], result.get("error")) for result in report["results"]], [
                    ("ok", None), ("canceled", "canceled while it ran")] + [("canceled", "canceled before it started (interrupted)")] * 2)
                self.assertNotIn(b"warning", completed.stderr)
                self.assert_all_stopped()

    def test_signal_after_a_failed_step_is_the_reason(self):
        process = self.start_program(self.command("--json", "-f", self.chain_file(
            step("exit 3"), step("touch ready; sleep 300"), step("say x"), stop_on_failure=False)))
        self.wait_for_file(self.path("ready"))
        process.send_signal(signal.SIGTERM)
        report = self.report(process.finish())
        self.assertEqual([(result["status"], result["error"]) for result in report["results"]], [
            ("failed", "exit status 3"), ("canceled", "canceled while it ran"), ("canceled", "canceled before it started (interrupted)")])

    def test_reader_leaves_cancels_the_later_steps(self):
        for arguments in ([], ["--json"]):
            with self.subTest(arguments=arguments):
                process = self.start_steps(*arguments)
                process.stdout.close()
                self.assertEqual(process.wait(PATIENCE), 141)
                self.assertIn(b"Total: 4 tasks, 1 completed, 0 failed, 3 canceled (", process.error_output())
                self.assert_all_stopped()

    @only_linux
    def test_sigkill_leaves_nothing_running(self):
        if os.environ.get("CLINVK_START_METHOD") == "thread":
            self.skipTest("threads cannot do that")
        process = self.start_steps("--json")
        process.kill()
        process.finish()
        self.wait_until_nothing_runs()
        wait_until(lambda: not os.listdir(self.tmp), "the files are gone")


class Pipeline(Case):
    """The pipeline of the user's guide: the answer of a chain is a file of tasks, which `parallel` then runs."""

    TASKS = '{"tasks": [{"backend": "claude", "prompt": "为 auth.go 生成单元测试"},\n  {"backend": "codex", "prompt": "为 user.go 生成单元测试"}]}'
    CHAIN = {"steps": [
        {"name": "analyze", "backend": "claude", "prompt": "分析代码库结构"},
        {"name": "generate-tests", "backend": "claude", "prompt": "基于以下内容创建包含所有模块测试生成任务的 tasks.json 文件：{{previous}}"}]}

    def setUp(self):
        for program in ("bash", "jq"):
            if not shutil.which(program):
                self.skipTest(program + " is not installed")
        super().setUp()
        os.unlink(os.path.join(self.bin, "cat"))
        write_program(os.path.join(self.bin, "clinvk"), b"#!/bin/sh\nexec '%s' -W error '%s' \"$@\"\n"
                      % (os.fsencode(sys.executable), os.fsencode(COMPILED)))
        self.file("analyze.json", self.CHAIN)

    def install_models(self, answer):
        """A claude that answers `answer` when it is asked for tasks.json, else with its prompt; a codex that answers with its prompt."""
        self.file("answer", answer)
        program = ("#!%s -IS\nimport json, os, sys\nprompt = sys.stdin.buffer.read().decode()\n"
                   "with open(os.path.join(%r, 'asked'), 'a') as file:\n    file.write(json.dumps(prompt) + '\\n')\n"
                   "answer = open(os.path.join(%r, 'answer')).read() if 'tasks.json' in prompt else 'auth.go, user.go' if '分析' in prompt else prompt\n"
                   % (os.path.realpath(sys.executable), self.directory, self.directory)).encode()
        write_program(os.path.join(self.bin, "claude"), program + b"print(json.dumps({'type': 'result', 'is_error': False, 'result': answer}))\n")
        write_program(os.path.join(self.bin, "codex"),
            program + b"print(json.dumps({'type': 'item.completed', 'item': {'type': 'agent_message', 'text': "
                      b"answer}}))\nprint(json.dumps({'type': 'turn.completed'}))\n")

    def shell(self, script):
        run = self.run_program(["bash", "-o", "pipefail", "-c", script])
        return run.returncode, run.stdout.decode(), run.stderr.decode()

    CHAINED = "clinvk chain --file analyze.json --json | jq -r '.results[-1].output' > generated-tasks.json; "

    def test_answer_of_a_chain_runs_as_a_batch(self):
        self.install_models(self.TASKS + "\n")
        status, printed, errors = self.shell(self.CHAINED + "clinvk parallel --file generated-tasks.json --json | jq -r '.results[].output'")
        self.assertEqual((status, printed, errors), (0, "为 auth.go 生成单元测试\n为 user.go 生成单元测试\n", ""))
        with open(self.path("asked")) as file:
            asked = [json.loads(line) for line in file]
        self.assertEqual(asked[1], "基于以下内容创建包含所有模块测试生成任务的 tasks.json 文件：auth.go, user.go")

    def test_answer_in_a_markdown_fence_is_refused_with_the_repair(self):
        self.install_models("\n  ```json\n%s\n  ```" % self.TASKS)
        status, printed, errors = self.shell(self.CHAINED + "clinvk parallel --file generated-tasks.json")
        self.assertEqual((status, printed, errors), (2, "", (
            'clinvk: error: generated-tasks.json:2: expected a JSON object or array, got "```json": '
            "the JSON is in a Markdown fence, which `sed '/^ *```/d'` strips\n")))
        advice = errors.split("which `")[1].split("` strips")[0]
        status, printed, errors = self.shell(advice + " generated-tasks.json | clinvk parallel --json | jq -r '.results[].output'")
        self.assertEqual((status, printed, errors), (0, "为 auth.go 生成单元测试\n为 user.go 生成单元测试\n", ""))

    def test_failed_chain_leaves_no_tasks(self):
        self.install_models(self.TASKS)
        write_program(os.path.join(self.bin, "claude"), b"#!/bin/sh\nexit 3\n")
        status, printed, errors = self.shell(self.CHAINED + "clinvk parallel --file generated-tasks.json")
        self.assertEqual((status, printed, errors), (2, "", "clinvk: error: generated-tasks.json: no tasks: the input is empty\n"))


if __name__ == "__main__":
    unittest.main()
