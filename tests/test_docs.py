"""What is written about clinvk is true: the man page and the three completions know exactly the options, words, fields, exit
statuses and variables that the program knows; the versions agree; the examples of the README and of the man page are run.
"""
import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest

import support
from support import COMPILED, ROOT, Case, clinvk, write_program

support.left_to_full_runs()

NAMES = (*clinvk.BACKENDS, *clinvk.KNOWN)  # of backends
WORDS_OF_FIELDS = {"backend": NAMES, "approval_mode": clinvk.APPROVAL_MODES, "sandbox_mode": clinvk.SANDBOX_MODES,
                   "effort": clinvk.EFFORTS}
HELP = {"-h", "--help"}
ACTIONS = clinvk.actions_of("sessions")
FILES = {"--file", "--config", "--results", "--csv", "--tasks", "--junit", "--markdown", "--html", "--status-file", "--items", "--tsv", "--prompt-file", "--schema", "--repair-prompt"}
DIRECTORIES = {"--workdir", "--output-dir", "--root", "--log-dir"}
CEILINGS = tuple("%s=%s" % (field.replace("_mode", ""), mode) for field, modes in clinvk._RANKS.items() for mode in modes)


def text_of(*names):
    with open(os.path.join(ROOT, *names), encoding="utf-8") as file:
        return file.read()


# A clinvk that lists two sessions.
FAKE_LIST = b"""#!/bin/sh
[ "$1 $2" = "sessions list" ] || exit 2
echo 'ID         BACKEND      STATUS     AGE   TURNS TAGS         PROMPT'
echo '0123456789 claude       completed  1m    1     -            what is this?'
echo 'abcdef0123 codex        error      2d    3     a,b          deadbeef is no id'
"""


def needs(*programs):
    """Skips a test where one of these programs is not installed."""
    missing = [program for program in programs if not shutil.which(program)]
    return unittest.skipIf(missing, "not installed: " + ", ".join(missing))


def parsers():
    """The parser of each command, by name; the general one under ''."""
    return {name: clinvk.build_parser(name) for name in clinvk.COMMANDS if " " not in name}


def option_actions(parser):
    return [action for action in parser._actions if action.option_strings]


def options_of(parser):
    return {option for action in option_actions(parser) for option in action.option_strings}


def words_for(action):
    """The words that the value of an option is one of; () where it is free, None where it has none."""
    if action.nargs == 0:
        return None
    return tuple(action.choices or dict(WORDS_OF_FIELDS, ceiling=CEILINGS, backends=NAMES).get(action.dest.replace("task_", ""), ()))


def commands():
    return set(parsers()) - {""}


def commands_with_actions():
    """Such as `sessions list`."""
    return [name for name in clinvk.COMMANDS if " " in name]


# Expressions that do not belong into texts for users, as patterns: translated idioms, verbs of
# speech for data, and sentences whose subject is a clause.
STOP_LIST = (
    r"for ever\b", r"by and by", r"as good as", r"\bbe had\b", r"\b(?:go|goes|going|gone|went) on with",
    r"\b(?:come|comes|came) to (?:\w+thing\b|the same)", r"what (?:\w+ )?(?:becomes?|became|comes?) (?:of|to)\b",
    r"\bsees? to it\b", r"(?:\. |^)(?:What|Whoever|Of)\b", r"\bone that\b", r"\bbeside\b", r"\balone\b",
    r"\b(?:stands?|stood|says?|said|tells?|told|holds?|held)\b", r"1 tasks",
    r"most (?:turns|tokens)", r"last session of all", r"ask several backends the same")


def messages():
    """The texts in clinvk.py: its string constants with a blank, without docstrings and shell scripts."""
    tree = ast.parse(text_of("clinvk.py"))
    docstrings = {node.body[0].value for node in ast.walk(tree)
                  if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and isinstance(node.body[0], ast.Expr)}
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
            and node not in docstrings and " " in node.value and "$(" not in node.value]


def sentences_of(page):
    """The text of a man page, without macros and examples; each item begins a sentence."""
    page = re.sub(r"^\.Bd.*?^\.Ed\n|^\.D[1l] .*\n|^\.\\\".*\n", "", page, flags=re.M | re.S)
    page = re.sub(r"^\.(?:Sh|Ss|It) .*\n", ". ", page, flags=re.M)
    return re.sub(r"^\.[A-Z][a-z]\b ?", "", page, flags=re.M)


class Wording(unittest.TestCase):
    def test_texts_for_users_have_no_expressions_of_the_stop_list(self):
        texts = {"/".join(path): [text_of(*path)] for path in (
            ("README.md",), ("CONTRIBUTING.md",), ("CHANGES.md",), ("completions", "_clinvk"), ("completions", "clinvk.fish"))}
        texts["man/clinvk.1"] = [sentences_of(text_of("man", "clinvk.1"))]
        texts["clinvk.py"] = messages()
        self.assertGreater(len(texts["clinvk.py"]), 300)
        for name, parts in texts.items():
            for text in parts:
                text = " ".join(text.split()).replace("always, auto, none", "")
                for found in re.finditer("|".join(STOP_LIST), text):
                    self.fail("%s: ...%s" % (name, text[max(0, found.start() - 50):found.end() + 30]))


class ManPage:
    """The mdoc source, cut up."""

    def __init__(self):
        self.lines = text_of("man", "clinvk.1").splitlines()

    def part(self, section, subsection=""):
        """The lines of a section, or of a subsection of it."""
        found, inside, place = [], False, ""
        for line in self.lines:
            if line.startswith(".Sh "):
                inside, place = line[4:] == section, ""
            elif line.startswith(".Ss "):
                place = line[4:]
            elif inside and (not subsection or place == subsection):
                found.append(line)
        if not found:
            raise AssertionError("the man page has no %s %s" % (section, subsection))
        return found

    def items(self, section, subsection=""):
        """What stands in the `.It` lines of its lists, but for lists inside lists, with the lines that belong to each."""
        depth, items = 0, []
        for line in self.part(section, subsection):
            depth += line.startswith(".Bl ") - line.startswith(".El")
            if depth == 1 and line.startswith(".It "):
                items.append((line[4:], []))
            elif depth and items:
                items[-1][1].append(line)
        return items

    def words(self, section, subsection=""):
        """The words of the items, without macros."""
        return [word for item, _ in self.items(section, subsection) for word in item.split()
                if not re.fullmatch(r"[A-Z][a-z]|,", word)]

    def options(self, section, subsection=""):
        return {"-" + option for item, _ in self.items(section, subsection) for option in re.findall(r"Fl (\S+)", item)}

    def body(self, section, word, subsection=""):
        """The lines that belong to the item of that word."""
        return next(lines for item, lines in self.items(section, subsection) if word in item.split())

    def rows(self, lines):
        """The rows of a table, without its head; what stands with a comma between stands for each of these."""
        return [[cell.replace("Fl -", "--").split(", ") for cell in line[4:].split(" Ta ")] for line in lines
                if line.startswith(".It ") and " Ta " in line and not line.startswith(".It Em ")]


MAN = ManPage()


def examples_of_the_man_page(pattern=r"^\.Dl \$ ([^\n]*)|^\.Bd [^\n]*\n\$ (.*?)^\.Ed"):
    text = "\n".join(MAN.part("EXAMPLES")) + "\n"
    found = [match.group(match.lastindex) for match in re.finditer(pattern, text, re.M | re.S)]
    return [example.replace(r"\(dq", '"').replace(r"\e", "\\").replace(r"\&", "") for example in found]


class ManPageTest(unittest.TestCase):
    def test_man_page_options_equal_those_of_the_parser(self):
        for command, parser in parsers().items():
            with self.subTest(command=command):
                written = MAN.options("OPTIONS", "Options of " + command) if command not in ("", "version") else set()
                general = MAN.options("OPTIONS", "General options")
                self.assertEqual(written | (general & HELP if command else general), options_of(parser))

    def test_man_page_synopsis_has_every_option(self):
        for command, text in re.findall(r"^\.Nm\n(?:\.Cm (\w+)\n)?((?:\.(?:Op|Fl) .*\n)*)", "\n".join(MAN.part("SYNOPSIS")) + "\n", re.M):
            with self.subTest(command=command):
                shown = set()
                for option in re.findall(r"(?:Fl|\|) (-?[-\w]+)", text):
                    shown.update(["-" + option] if option.startswith("-") else ["-" + letter for letter in option])
                parser = parsers()[command]
                self.assertEqual(shown - options_of(parser), set())
                self.assertEqual([action.option_strings for action in option_actions(parser)
                                  if not shown.intersection(action.option_strings)], [])

    def test_man_page_commands_equal_those_of_the_program(self):
        self.assertEqual(set(MAN.words("COMMANDS")), commands())

    def test_man_page_option_values_equal_the_choices(self):
        described = set()
        for command, parser in sorted(parsers().items(), key=lambda item: item[0] != "parallel"):
            for action in option_actions(parser):
                if action.choices:
                    with self.subTest(command=command, option=action.option_strings):
                        option = action.option_strings[-1]
                        item = next(item for item, _ in MAN.items("OPTIONS", "Options of " + command) if option[1:] in item.split())
                        if command == "parallel" or option not in described:  # the others say: as for parallel
                            self.assertEqual(item.partition("Cm ")[2].split(" | "), list(action.choices))
                    if command == "parallel":
                        described.add(option)

    def test_man_page_batch_and_task_fields_equal_those_of_the_program(self):
        self.assertEqual(sorted(MAN.words("INPUT", "Batch fields")), sorted(clinvk.BATCH_FIELDS))
        self.assertEqual(sorted(MAN.words("INPUT", "Task fields")), sorted(clinvk.TASK_FIELDS))

    def test_man_page_chain_fields_and_placeholders_equal_those_of_the_program(self):
        self.assertEqual(sorted(MAN.words("INPUT", "Chain fields")), sorted(clinvk.CHAIN_FIELDS))
        text = "\n".join(MAN.part("INPUT", "Chain fields"))
        said = re.findall(r"^\.Ql (\{\{.*\}\})", text, re.M)
        self.assertEqual([bool(re.fullmatch(clinvk._REFERENCE, reference)) for reference in said], [True, True])

    def test_man_page_fields_of_chains_and_comparisons_equal_the_output(self):
        totals = clinvk.Totals()
        task = clinvk.Task("echo", "p", name="n")
        result = clinvk.Result(0, "echo", "ok", 0, task=task)
        ours = set(clinvk.chain_fields(totals, 1)) | set(clinvk.step_fields(result)) - set(clinvk.result_fields(result))
        self.assertEqual(set(MAN.words("OUTPUT", "Output of a chain")), ours - set(totals.fields()))
        ours = set(clinvk.comparison_fields(totals, "p", ["echo"], ["claude"]))
        self.assertEqual(set(MAN.words("OUTPUT", "Output of a comparison")), ours - set(totals.fields()))

    def test_man_page_fields_of_a_report_equal_the_output(self):
        with tempfile.NamedTemporaryFile() as file:
            ours = set(clinvk.Statistics(clinvk.Records([file.name], print)).fields())
        self.assertEqual(set(MAN.words("OUTPUT", "Output of a report")), ours - set(clinvk.Totals().fields()))

    def test_man_page_field_values_equal_the_modes(self):
        for field, words in dict(WORDS_OF_FIELDS, backend=tuple(clinvk.BACKENDS)).items():
            with self.subTest(field=field):
                lines = next(lines for item, lines in MAN.items("INPUT", "Task fields") if item == "Va " + field)
                self.assertEqual({line.split()[1] for line in lines if line.startswith(".Cm ")}, set(words))

    def test_man_page_result_fields_equal_the_output(self):
        task = clinvk.Task("echo", "p", id="i", name="n", tags=("t",), meta={"k": 1}, sample=clinvk.Sample(0, 2, 3, {"model": "m"}, "m", 1))
        full = clinvk.Result(0, "echo", "failed", 1, "o", "e", "backend", 1.0, ("w",), "m", "s", {"input_tokens": 1}, 0.1, 1, task=task,
                             limits={"five_hour": {"utilization": 0.5}}, resumed=True, tries=({"status": "failed"},), retry_at=1.0, written="w", data={},
                             log="l", log_stderr="e", check={"status": "passed", "output": ""})
        self.assertEqual(sorted(MAN.words("OUTPUT", "Result")), sorted(clinvk.result_fields(full)))

    def test_man_page_optional_result_fields_are_marked(self):
        always = set(clinvk.result_fields(clinvk.Result(0, "echo", "ok", 0)))
        for item, lines in MAN.items("OUTPUT", "Result"):
            for field in re.findall(r"\w{3,}", item):
                with self.subTest(field=field):
                    self.assertEqual(".Pq optional ." not in lines, field in always)

    def test_man_page_usage_counts_equal_the_output(self):
        usage = clinvk._usage(1, 1, 1, 1, 1)
        lines = next(lines for item, lines in MAN.items("OUTPUT", "Result") if item == "Va usage")
        self.assertEqual({line.split()[1] for line in lines if line.startswith(".Va ")}, set(usage))

    def test_man_page_json_fields_equal_the_output(self):
        totals = clinvk.Totals()
        totals.usage, totals.cost_usd, totals.cost_unknown, totals.resumed = {"total_tokens": 1}, 0.1, 1, 1
        self.assertEqual(sorted(MAN.words("OUTPUT", "JSON")), sorted(list(totals.fields()) + ["results"]))

    def test_man_page_status_file_fields_equal_the_output(self):
        task, run = clinvk.Task("echo", "p"), clinvk.Control()
        run.running = lambda: [clinvk.Running(clinvk.Job(0, task), 1.0, 1, 0.5)]
        overview = clinvk.Overview(clinvk.Totals(), run, clinvk.JobList([task]), 1)
        fields = overview.fields()
        status = os.path.join(tempfile.mkdtemp(dir=support.MODULES), "status.json")
        clinvk.StatusFile(status, overview, "then", self.fail).show()
        with open(status) as file:
            self.assertEqual(sorted(MAN.words("OUTPUT", "Status file")), sorted(json.load(file)))
        lines = next(lines for item, lines in MAN.items("OUTPUT", "Status file") if item == "Va running")
        words = re.findall(r"\w+", " ".join(line[4:] for line in lines if line.startswith(".Va ")))
        self.assertEqual(sorted(words), sorted(fields["running"][0]))

    @needs("jq")
    def test_man_page_monitor_prints_what_runs(self):
        line, = (line for line in MAN.part("OUTPUT", "Status file") if line.startswith("$ "))
        words = shlex.split(line[len("$ "):].replace(r"\(dq", '"').replace(r"\e", "\\"))
        self.assertEqual((words[:3], words[-1]), (["watch", "-x", "jq"], "status.json"))
        status = {"done": 3, "total_tasks": 9, "failed": 1, "running": [
            {"id": "a", "name": "one", "last_event_at": "14:05", "last_action": "thinking"}]}
        run = subprocess.run(words[2:-1], input=json.dumps(status).encode(), stdout=subprocess.PIPE)
        self.assertEqual(run.stdout.decode(), "3 of 9 done, 1 failed\na one: 14:05 thinking\n")

    def test_man_page_session_fields_equal_the_output(self):
        self.assertEqual(sorted(MAN.words("SESSIONS", "Session fields")), sorted(clinvk.SESSION_FIELDS))
        always = set(clinvk.session_fields(clinvk.Session("0" * 32, "echo", 0.0, 0.0, "/")))
        for item, lines in MAN.items("SESSIONS", "Session fields"):
            for field in re.findall(r"\w{2,}", item.replace("Va ", "")):
                with self.subTest(field=field):
                    self.assertEqual(".Pq optional ." not in lines, field in always)
        text = "\n".join(MAN.body("SESSIONS", "status", "Session fields"))
        self.assertEqual(set(re.findall(r"\.Cm (\w+)", text)), set(clinvk.SESSION_STATUSES))
        self.assertIn("its first {:,} characters".format(clinvk.MAX_KEPT_PROMPT), "\n".join(MAN.part("SESSIONS")))

    def test_man_page_session_actions_and_options_equal_the_tables(self):
        items = MAN.items("OPTIONS", "Options of sessions")
        self.assertEqual([item.split()[1] for item, _ in items if item.startswith("Cm ")], ACTIONS)
        for item, lines in items:
            for option in re.findall(r"Fl -([-\w]+)", item):
                with self.subTest(option=option):
                    having = {action for action in ACTIONS if "--" + option in options_of(clinvk.build_parser("sessions " + action))}
                    said = " ".join(lines).partition(":")[0] if option != "json" else " ".join(lines)
                    self.assertEqual(set(re.findall(r"\b(%s)\b" % "|".join(ACTIONS), said)), having)

    def test_man_page_resuming_equals_the_backends(self):
        text = " ".join(MAN.part("SESSIONS"))
        for name, backend in clinvk.BACKENDS.items():
            with self.subTest(backend=name):
                can = backend.resuming
                if not can:
                    self.assertRegex(text, r"\.Cm %s and commands of your own cannot be resumed\." % name)
                else:
                    self.assertEqual(bool(re.search(r"\.Cm %s cannot\." % name, text)), "workdir" not in can)
                    self.assertEqual(bool(re.search(r"\.Cm (\w+ and \.Cm )?%s (and \.Cm \w+ )?the system prompt of the first run" % name, text)),
                                     "system_prompt" not in can)

    def test_man_page_statuses_and_error_kinds_equal_the_program(self):
        self.assertEqual(sorted(MAN.words("OUTPUT", "Statuses")), sorted(clinvk.STATUSES))
        self.assertEqual(sorted(MAN.words("OUTPUT", "Error kinds")), sorted(clinvk.ERROR_KINDS))

    def test_man_page_exit_statuses_equal_the_program(self):
        statuses = {value for name, value in vars(clinvk).items() if name.startswith("EXIT_")}
        self.assertEqual({int(word) for word in MAN.words("EXIT STATUS")}, statuses)

    def test_man_page_backends_equal_the_program(self):
        self.assertEqual(MAN.words("BACKENDS", "The programs"), list(clinvk.BACKENDS))

    def test_man_page_mode_tables_equal_the_command_lines(self):
        option = {"claude": "--permission-mode", "codex": "-s", "gemini": "--approval-mode"}
        for name, backend in clinvk.BACKENDS.items():
            rows = MAN.rows(MAN.body("BACKENDS", name, "The programs"))
            self.assertEqual(bool(rows), name in option)
            for sandbox in clinvk.SANDBOX_MODES if rows else ():
                for approval in clinvk.APPROVAL_MODES:
                    with self.subTest(backend=name, sandbox_mode=sandbox, approval_mode=approval):
                        said = next(row[2][0] for row in rows if {sandbox, "any"} & set(row[0]) and {approval, "any"} & set(row[1]))
                        argv = backend.command(clinvk.Job(0, clinvk.Task(name, "p", sandbox_mode=sandbox, approval_mode=approval))).argv
                        if (sandbox, approval) in backend.impossible_modes:
                            does = "refused"
                        elif option[name] in argv:
                            does = argv[argv.index(option[name]) + 1]
                        else:
                            does = "its own default" if name == "codex" else "its own settings"
                        self.assertEqual(said, does)

    def test_man_page_refused_modes_equal_the_backends(self):
        rows = MAN.rows(MAN.part("BACKENDS", "What the modes come to"))
        for name, backend in clinvk.BACKENDS.items():
            for sandbox in clinvk.SANDBOX_MODES if name != "echo" else ():
                for approval in clinvk.APPROVAL_MODES:
                    with self.subTest(backend=name, sandbox_mode=sandbox, approval_mode=approval):
                        effect = [row[3] for row in rows if {sandbox, "any"} & set(row[0]) and {name, "all"} & set(row[2])
                                  and ({approval, "any"} & set(row[1]) or row[1] == ["any but always"] and approval != "always")]
                        self.assertEqual(["refused"] in effect[:1], (sandbox, approval) in backend.impossible_modes)

    def test_man_page_definitions_of_commands_are_valid(self):
        text = "\n".join(MAN.part("BACKENDS", "Commands of your own"))
        example = re.search(r"^\.Bd [^\n]*\n(\{.*?)^\.Ed", text + "\n", re.M | re.S).group(1).replace(r"\(dq", '"')
        self.assertEqual(list(clinvk.environment_definitions({"CLINVK_BACKENDS": example})), ["copy", "say", "ask"])
        self.assertEqual([name for name in clinvk.DEFINITION_FIELDS if ".Va " + name not in text and name not in
                          " ".join(MAN.words("BACKENDS", "Commands of your own"))], [])
        self.assertEqual([name for name in clinvk.PLACEHOLDERS if "Ql {%s}" % name not in text], [])

    def test_man_page_known_programs_equal_those_of_the_program(self):
        self.assertEqual(MAN.words("BACKENDS", "Known programs"), list(clinvk.KNOWN))
        text = "\n".join(MAN.part("BACKENDS", "Known programs"))
        self.assertEqual(re.findall(r"^(\d+\.[\d.]*\d)", text, re.M), [version for version in clinvk.KNOWN_VERSIONS.values() if version])

    def test_man_page_missing_fields_equal_the_backends(self):
        optional = {"model", "effort", "system_prompt", "max_turns", "max_tokens", "extra", "verbose"}
        for name, backend in clinvk.BACKENDS.items():
            with self.subTest(backend=name):
                text = "\n".join(MAN.body("BACKENDS", name, "The programs"))
                sentence = re.search(r"^It has no\n(.*?)\.$", text, re.M | re.S)
                has_not = set(re.findall(r"\.Va (\w+)", sentence.group(1))) if sentence else set()
                if name == "echo":
                    self.assertEqual(backend.honours & optional, set())
                else:
                    self.assertEqual(has_not, optional - backend.honours)

    def test_man_page_limits_and_signals_equal_the_backends(self):
        for name, backend in clinvk.BACKENDS.items():
            with self.subTest(backend=name):
                text = "\n".join(MAN.body("BACKENDS", name, "The programs"))
                size = "{:,} {}".format(backend.max_prompt, backend.max_prompt_unit) if backend.max_prompt else "any size"
                self.assertRegex(text, "(?m)^The prompt may have %s[.,;]" % size)
                self.assertEqual("It is stopped with " + backend.stop_signal in text, backend.stop_signal != "SIGTERM")

    def test_man_page_numbers_equal_the_constants(self):
        self.assertIn("after %d seconds" % clinvk.GRACE_SECONDS, "\n".join(MAN.part("RUNNING", "The end of a task")))
        self.assertIn("of the input, else %d." % clinvk.DEFAULT_JOBS, "\n".join(MAN.part("OPTIONS")))
        self.assertIn("tasks at once, %d at most." % clinvk.MAX_JOBS, "\n".join(MAN.part("OPTIONS")))
        self.assertIn("no deeper than %d levels" % clinvk.MAX_DEPTH, "\n".join(MAN.part("INPUT", "Task fields")))
        self.assertEqual((clinvk.SMALL_FILE_BYTES, clinvk.ONE_WRITE_BYTES), (1 << 20, 1 << 20), "the man page says 1 MiB of both")
        self.assertIn("of at most %d MiB" % (clinvk.MAX_CONTENT_BYTES >> 20), "\n".join(MAN.part("INPUT", "Templates")))

    def test_man_page_variables_equal_those_of_the_program(self):
        source = text_of("clinvk.py")
        used = set()
        for variable in re.findall(r"CLINVK_(?:[A-Z_]|%s)+", source):
            names = ["name"] if variable == clinvk.RUN_MARK else [name.upper() for name in clinvk.BACKENDS]
            used.update({variable.replace("%s", name) for name in names})
        used.discard("CLINVK_")
        used.update(clinvk.NESTING_VARIABLES)
        backends = source[source.index("\n# --- 4."):source.index("\n# --- 5.")]
        used.update(re.findall(r"""(?:\(|\[|\{|, )"([A-Z]+(?:_[A-Z]+)+)"(?=: |\] = )""", backends))
        written = set(MAN.words("ENVIRONMENT"))
        self.assertEqual(used - written, set())
        for variable in written - used - {"PATH"}:
            self.assertRegex(source, r"""["(, ]%s["=]""" % variable)

    def test_man_page_has_the_variables_of_every_array_of_jobs(self):
        text = " ".join(MAN.part("ENVIRONMENT")).split()
        self.assertEqual([row.place for row in clinvk.SHARD_VARIABLES if row.place not in text], [])

    def test_man_page_start_methods_equal_those_of_the_program(self):
        lines = MAN.body("ENVIRONMENT", "CLINVK_START_METHOD")
        self.assertEqual({line.split()[1] for line in lines if line.startswith(".Cm ")}, set(clinvk.START_METHODS))

    @needs("mandoc")
    def test_man_page_has_no_mandoc_warnings(self):
        lint = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", os.path.join(ROOT, "man", "clinvk.1")],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        self.assertEqual((lint.stdout.decode(), lint.returncode), ("", 0))

    @needs("mandoc")
    def test_man_page_quotes_and_examples_are_rendered_well(self):
        """mdoc takes a lone `.` for the end of a sentence, and a quotation that another one follows goes on behind that."""
        shown = subprocess.run(["mandoc", "-T", "utf8", "-O", "width=200", os.path.join(ROOT, "man", "clinvk.1")],
                               stdout=subprocess.PIPE, check=True, timeout=60).stdout.decode()
        shown = re.sub(".\b", "", shown)
        self.assertEqual(re.findall("\u2018[^\u2019]*\u2018.*", shown), [])
        self.assertEqual([line for line in text_of("man", "clinvk.1").splitlines() if re.match(r'\.(?!Bl|Os).* "', line) and line.count('"') > 1], [])
        for example in examples_of_the_man_page():
            for line in example.splitlines():
                self.assertIn(line.strip() + "\n", shown)


class VersionTest(unittest.TestCase):
    def test_version_and_date_agree_everywhere(self):
        version, date = re.search(r"^## (\S+) \((\d{4}-\d{2}-\d{2})\)$", text_of("CHANGES.md"), re.M).groups()
        self.assertEqual(version, clinvk.__version__)
        self.assertIn('.Os "clinvk %s"' % version, MAN.lines)
        year, month, day = (int(part) for part in date.split("-"))
        months = "January February March April May June July August September October November December".split()
        self.assertIn(".Dd %s %d, %d" % (months[month - 1], day, year), MAN.lines)

    def test_setup_cfg_reads_the_version_from_the_module(self):
        self.assertRegex(text_of("setup.cfg"), r"(?m)^version = attr: clinvk\.__version__$")
        self.assertRegex(text_of("clinvk.py"), r'(?m)^__version__ = "\d+\.\d+\.\d+"$')


class BashCompletionTest(unittest.TestCase):
    path = os.path.join(ROOT, "completions", "clinvk.bash")

    def complete(self, *words, **variables):
        """What the completion offers for the last of the words, and what it told readline by compopt."""
        script = ('compopt() { printf "compopt %s\\n" "$*"; }; source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _clinvk; '
                  'if ((${#COMPREPLY[@]})); then printf "%s\\n" "${COMPREPLY[@]}"; fi')
        run = subprocess.run([shutil.which("bash"), "--norc", "--noprofile", "-c", script, self.path] + list(words), timeout=60,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ, LC_ALL="C", **variables))
        self.assertEqual((run.stderr.decode(), run.returncode), ("", 0))
        lines = run.stdout.decode().splitlines()
        return ({line for line in lines if not line.startswith("compopt ")},
                [line[len("compopt "):] for line in lines if line.startswith("compopt ")])

    @needs("bash")
    def test_completion_of_a_prompt_without_its_word_offers_its_options(self):
        self.assertEqual(self.complete("clinvk", "-b", "")[0], set(NAMES))
        for words in (("-b", "claude", "--s"), ("--backend", "=", "claude", "--s"), ("-c", "--s")):
            with self.subTest(words=words):
                self.assertEqual(self.complete("clinvk", *words)[0],
                                 {"--sandbox-mode", "--schema", "--system-prompt"})

    def test_bash_options_equal_those_of_the_parser(self):
        listed = dict(re.findall(r"^ {8}(\w+|'')\)\n +options='([^']*)'", text_of("completions", "clinvk.bash"), re.M))
        self.assertEqual({command.strip("'"): set(options.split()) for command, options in listed.items()},
                         {command: options_of(parser) for command, parser in parsers().items()})

    @needs("bash")
    def test_bash_parses_the_completion(self):
        run = subprocess.run(["bash", "-n", self.path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        self.assertEqual((run.stdout, run.returncode), (b"", 0))

    @needs("bash")
    def test_bash_completes_clinvk_and_leaves_files_to_readline(self):
        run = subprocess.run(["bash", "--norc", "--noprofile", "-c", 'source "$0"; complete -p clinvk', self.path],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        self.assertEqual(run.stdout, b"complete -o default -F _clinvk clinvk\n")

    @needs("bash")
    def test_bash_offers_commands_and_their_options(self):
        general = options_of(parsers()[""])
        self.assertEqual(self.complete("clinvk", "")[0], commands() | general)
        self.assertEqual(self.complete("clinvk", "-")[0], general)
        self.assertEqual(self.complete("clinvk", "p")[0], {"parallel", "prompt"})
        for command, parser in parsers().items():
            if command:
                with self.subTest(command=command):
                    self.assertEqual(self.complete("clinvk", command, "-")[0], options_of(parser))
                    self.assertEqual(self.complete("clinvk", command, "--help", "--ma")[0],
                                     {option for option in options_of(parser) if option.startswith("--ma")})

    @needs("bash")
    def test_bash_offers_the_values_of_each_option(self):
        for command, parser in parsers().items():
            for action in option_actions(parser):
                words = words_for(action)
                for option in action.option_strings if words is not None else ():
                    with self.subTest(command=command, option=option):
                        offered, told = self.complete("clinvk", command, option, "")
                        self.assertEqual(offered, set(words))
                        kinds = set(action.option_strings)
                        self.assertEqual(told, [] if kinds & FILES else ["+o default -o dirnames"] if kinds & DIRECTORIES else ["+o default"])

    @needs("bash", "sed")
    def test_it_offers_actions_and_sessions(self):
        with tempfile.TemporaryDirectory() as directory:
            write_program(os.path.join(directory, "clinvk"), FAKE_LIST)
            path = directory + os.pathsep + os.environ.get("PATH", os.defpath)
            self.assertEqual(self.complete("clinvk", "sessions", "")[0], set(ACTIONS))
            for words in (("resume",), ("sessions", "show"), ("sessions", "delete"), ("sessions", "delete", "0123456789")):
                with self.subTest(words=words):
                    self.assertEqual(self.complete("clinvk", *words, "", PATH=path)[0], {"0123456789", "abcdef0123"})
            self.assertEqual(self.complete("clinvk", "resume", "01", PATH=path)[0], {"0123456789"})
            self.assertEqual(self.complete("clinvk", "sessions", "show", "", PATH="/nonexistent")[0], set())

    @needs("bash")
    def test_bash_offers_the_options_of_an_action(self):
        for action in commands_with_actions():
            self.assertEqual(self.complete("clinvk", *action.split(), "-")[0], options_of(clinvk.build_parser(action)), action)

    @needs("bash")
    def test_bash_offers_values_after_an_equals_sign(self):
        self.assertEqual(self.complete("clinvk", "parallel", "--color", "=", "a")[0], {"auto", "always"})
        self.assertEqual(self.complete("clinvk", "parallel", "--color", "=")[0], {"auto", "always", "never"})
        self.assertEqual(self.complete("clinvk", "parallel", "--backend", "=", "ge")[0], {"gemini"})


class ZshCompletionTest(unittest.TestCase):
    path = os.path.join(ROOT, "completions", "_clinvk")

    def specs(self):
        """The specs of _arguments, by command: (options, values or None)."""
        text = text_of("completions", "_clinvk")
        general, *parts = re.split(r"^ +([a-z]+)\)\n +(?:_arguments|_clinvk_action) ", text, flags=re.M)
        found = {}
        for command, part in [("", general)] + list(zip(parts[::2], parts[1::2])):
            found[command] = []
            for spec in re.findall(r"^ +('\*?(?:\([^)]*\))?(?:--|'\{).*)", part, re.M):
                options = re.match(r"'\*?(?:\([^)]*\))?(?:'\{([^}]*)\}'|([-\w=+]+))\[", spec)
                values = re.search(r"\]:[^:]*:(\(([^)]*)\))?", spec)
                names = (options.group(1) or options.group(2)).split(",")
                found[command].append(({name.rstrip("=+") for name in names}, {name[-1] for name in names} & set("=+"),
                                       None if not values else tuple((values.group(2) or "").split())))
        return found

    def test_its_options_are_those_of_the_parser(self):
        specs = self.specs()
        for command, parser in parsers().items():
            with self.subTest(command=command):
                self.assertEqual({option for options, _, _ in specs[command] for option in options}, options_of(parser))

    def test_its_values_are_those_of_the_parser(self):
        for command, parser in parsers().items():
            known = {frozenset(options): (marks, values) for options, marks, values in self.specs()[command]}
            for action in option_actions(parser):
                with self.subTest(command=command, option=action.option_strings):
                    marks, values = known[frozenset(action.option_strings)]
                    self.assertEqual(values, words_for(action))
                    self.assertEqual("=" in marks, values is not None)

    def test_zsh_offers_files_and_directories(self):
        text = text_of("completions", "_clinvk")
        for option in sorted(FILES | DIRECTORIES):
            with self.subTest(option=option):
                self.assertRegex(text, r"%s=\}?'?\[[^]]*\]:[^:]*:_files%s'" % (option, " -/" if option in DIRECTORIES else ""))

    def test_it_knows_the_commands(self):
        self.assertEqual(set(re.findall(r"^ +'([a-z]+):[^']*'$", text_of("completions", "_clinvk"), re.M)), commands())

    @needs("zsh")
    def test_zsh_offers_the_options_of_an_action(self):
        script = ('_arguments() { [[ "$*" == *"->argument"* ]] && state=argument && return 1; printf "%s\\n" "$@" }; '
                  'words=(${(s: :)2} -) CURRENT=2; source $1')
        for action in commands_with_actions():
            run = subprocess.run(["zsh", "-f", "-c", script, "zsh", self.path, action], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
            self.assertEqual((run.stderr, run.returncode), (b"", 0))
            offered = re.findall(r"^(?:\([^)]*\))?(--?[\w-]+)[+=]?=?\[", run.stdout.decode(), re.M)
            self.assertEqual(set(offered), options_of(clinvk.build_parser(action)), action)

    @needs("zsh")
    def test_zsh_parses_the_completion(self):
        run = subprocess.run(["zsh", "-f", "-n", self.path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        self.assertEqual((run.stdout, run.returncode), (b"", 0))


class FishCompletionTest(Case):
    script = os.path.join(ROOT, "completions", "clinvk.fish")

    def lines(self):
        """(command, the rest of the line) of each `complete`."""
        text = text_of("completions", "clinvk.fish")
        found = re.findall(r"^complete -c clinvk -n (?:__fish_use_subcommand|'__clinvk_in ([\w ]+)') (.*)$", text, re.M)
        self.assertEqual(len(found), len(re.findall(r"^complete .* -n ", text, re.M)))
        lines = [line for commands, line in found if commands]
        self.assertEqual(len(lines), len(set(lines)), "options that several commands share are there once")
        return [(command, line) for commands, line in found for command in commands.split() or [""]]

    @staticmethod
    def options_in(line):
        line = re.sub(r"'[^']*'", "''", line)
        return ["-" + letter for letter in re.findall(r"-s (\w)\b", line)] + ["--" + name for name in re.findall(r"-l ([-\w]+)", line)]

    def complete(self, line):
        run = self.run_program(["fish", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", self.script, line])
        self.assertEqual((run.stderr.decode(), run.returncode), ("", 0))
        return {offered.split("\t")[0] for offered in run.stdout.decode().splitlines()}

    def test_its_options_are_those_of_the_parser(self):
        for command, parser in parsers().items():
            with self.subTest(command=command):
                self.assertEqual({option for place, line in self.lines() if place == command for option in self.options_in(line)},
                                 options_of(parser))

    def test_its_values_are_those_of_the_parser(self):
        for command, parser in parsers().items():
            known = {frozenset(self.options_in(line)): line for place, line in self.lines() if place == command}
            for action in option_actions(parser):
                with self.subTest(command=command, option=action.option_strings):
                    line, words, kinds = known[frozenset(action.option_strings)], words_for(action), set(action.option_strings)
                    if kinds & FILES:
                        self.assertIn(" -rF ", line)
                    elif kinds & DIRECTORIES:
                        self.assertIn(" -xa '(__fish_complete_directories)' ", line)
                    elif words:
                        self.assertIn(" -xa '%s' " % " ".join(words), line)
                    else:
                        self.assertEqual(" -x " in line, words == ())

    def test_it_knows_the_commands(self):
        self.assertEqual(set(re.findall(r"__fish_use_subcommand -a (\w+)", text_of("completions", "clinvk.fish"))), commands())

    @needs("fish")
    def test_fish_parses_the_completion(self):
        run = self.run_program(["fish", "--no-config", "--no-execute", self.script])
        self.assertEqual((run.stdout, run.stderr, run.returncode), (b"", b"", 0))

    @needs("fish")
    def test_fish_offers_commands_options_and_values(self):
        self.assertEqual(self.complete("clinvk "), commands())
        self.assertEqual(self.complete("clinvk -"), options_of(parsers()[""]))
        for command in commands():
            self.assertEqual(self.complete("clinvk %s -" % command), options_of(parsers()[command]))
        for action in commands_with_actions():
            self.assertEqual(self.complete("clinvk %s -" % action), options_of(clinvk.build_parser(action)), action)
        self.assertEqual(self.complete("clinvk -c --ef"), {"--effort"})
        self.assertEqual(self.complete("clinvk parallel --backend "), set(NAMES))
        self.assertEqual(self.complete("clinvk parallel --color=a"), {"--color=auto", "--color=always"})
        self.assertEqual(self.complete("clinvk parallel --ceiling "), set(CEILINGS))
        self.assertEqual(self.complete("clinvk prompt -o "), set(clinvk.PROMPT_FORMS))
        self.assertEqual(self.complete("clinvk sessions list --status "), set(clinvk.SESSION_STATUSES))
        self.file("my-tasks.json", "{}")
        os.mkdir(self.path("my-directory"))
        self.assertEqual(self.complete("clinvk parallel -f my"), {"my-tasks.json", "my-directory/"})
        self.assertEqual(self.complete("clinvk parallel --output-dir my"), {"my-directory/"})

    @needs("fish")
    def test_it_offers_actions_and_sessions(self):
        write_program(os.path.join(self.bin, "clinvk"), FAKE_LIST)
        self.assertEqual(self.complete("clinvk sessions "), set(ACTIONS))
        for words in ("resume", "sessions show", "sessions delete", "sessions delete abcdef0123"):
            with self.subTest(words=words):
                self.assertEqual(self.complete("clinvk %s " % words), {"0123456789", "abcdef0123"})

    @needs("fish")
    def test_completion_without_clinvk_on_the_path_offers_nothing(self):
        os.symlink(shutil.which("fish"), os.path.join(self.bin, "fish"))
        self.environment["PATH"] = self.bin
        for words in ("resume", "sessions show"):
            self.assertEqual(self.complete("clinvk %s " % words), set())


class ExampleCase(Case):
    """A shell in an empty directory, with clinvk on the PATH and the machine's own programs behind it."""

    def setUp(self):
        super().setUp()
        self.tools, self.place = os.path.join(self.directory, "tools"), os.path.join(self.directory, "place")
        os.mkdir(self.tools)
        os.mkdir(self.place)
        write_program(os.path.join(self.tools, "clinvk"),
                      ('#!/bin/sh\nexec "%s" "%s" "$@"\n' % (sys.executable, COMPILED)).encode())
        self.environment.update(PATH=self.tools + os.pathsep + os.environ.get("PATH", os.defpath), LC_ALL="C.UTF-8")

    def shell(self, command):
        """What a person at a terminal would see, and the exit status."""
        run = self.run_program(["bash", "--norc", "--noprofile", "-c", command], cwd=self.place, stdin=subprocess.DEVNULL,
                               stderr=subprocess.STDOUT)
        return run.stdout.decode(), run.returncode


def readme_blocks(language):
    """(whether lines may be in any order, text) of each code block in that language."""
    return [(bool(any_order), text) for any_order, text in
            re.findall(r"^(<!-- in any order -->\n)?```%s\n(.*?)^```$" % language, text_of("README.md"), re.M | re.S)]


def commands_in(block):
    """(command, what it prints) of each command in a console block; a here-document belongs to its command."""
    found, end = [], ""
    for line in block.splitlines(True):
        if end:
            found[-1][0] += line
            end = "" if line.rstrip("\n") == end else end
        elif line.startswith("> "):
            found[-1][0] += line[2:]
        elif line.startswith("$ "):
            found.append([line[2:], ""])
            here = re.search(r"<<'(\w+)'", line)
            end = here.group(1) if here else ""
        else:
            found[-1][1] += line
    return found


def without_times(text):
    return re.sub(r"\d+\.\d\ds *", "0.00s ", text)


class ReadmeTest(ExampleCase):
    """The README's commands, in a fresh copy of the checkout; clinvk is not on the PATH at first."""

    def setUp(self):
        super().setUp()
        for name in ("clinvk.py", "man", "completions"):
            copy = shutil.copytree if os.path.isdir(os.path.join(ROOT, name)) else shutil.copy
            copy(os.path.join(ROOT, name), os.path.join(self.place, name))
        os.rename(os.path.join(self.tools, "clinvk"), os.path.join(self.tools, "compiled"))
        os.symlink(sys.executable, os.path.join(self.tools, "python3"))
        self.environment["PATH"] = os.pathsep.join(
            [os.path.join(self.home, ".local", "bin"), self.environment["PATH"]])

    @needs("bash", "jq")
    def test_readme_commands_print_what_the_readme_shows(self):
        blocks = readme_blocks("console")
        self.assertIn("./clinvk.py", blocks[0][1])
        self.assertGreater(len(blocks), 5)
        installed = os.path.join(self.home, ".local", "bin", "clinvk")
        for any_order, block in blocks:
            order = sorted if any_order else list
            block = block.replace("480", "48").replace("500", "50")  # tasks, which show the same
            for command, printed in commands_in(block):
                with self.subTest(command=command):
                    self.assertEqual(order(without_times(self.shell(command)[0]).splitlines()),
                                     order(without_times(printed).splitlines()))
                if command.startswith("install "):
                    with open(installed, "rb") as file:
                        self.assertEqual(file.read(), text_of("clinvk.py").encode())
                    shutil.copy(os.path.join(self.tools, "compiled"), installed)  # Python compiles a file that is called by path each time

    def test_readme_script_prints_what_its_comment_shows(self):
        script, = (text for _, text in readme_blocks("python") if "run_pool" in text)
        self.file(os.path.join("place", "script.py"), script)
        run = self.run_program([sys.executable, "script.py"], cwd=self.place)
        self.assertEqual((run.stdout.decode(), run.stderr), (script.split("# prints ")[1], b""))

    def test_readme_is_at_most_150_lines(self):
        self.assertLessEqual(text_of("README.md").count("\n"), 150)

    def test_named_test_files_exist(self):
        text = text_of("README.md") + text_of("CONTRIBUTING.md")
        named = set(re.findall(r"(?:tests/[\w/.]+\w|\.ci/run)", text))
        self.assertGreater(len(named), 5)
        self.assertEqual([name for name in sorted(named) if not os.path.exists(os.path.join(ROOT, name))], [])

    def test_readme_options_exist(self):
        known = {option for parser in parsers().values() for option in options_of(parser)}
        lines = [re.sub(r"'[^']*'|#.*", "''", command) for _, block in readme_blocks("console") + readme_blocks("sh")
                 for command in block.splitlines()]
        self.assertGreater(sum("clinvk" in line for line in lines), 7)
        for line in lines:
            for call in re.findall(r"clinvk(?:\.py)?( [^|;)]*)", line):
                with self.subTest(line=line):
                    self.assertEqual(set(re.findall(r"(?<=\s)--?[a-z][-a-z]*", call)) - known, set())


class ManPageExamplesTest(ExampleCase):
    def test_man_page_manifests_are_yaml_and_share_a_batch(self):
        manifests = [clinvk.YamlDocument(text, "manifest").value for text in
                     examples_of_the_man_page(r"^\.Bd [^\n]*\n((?:apiVersion|jobs):.*?)^\.Ed")]
        container = manifests[0]["spec"]["template"]["spec"]["containers"][0]
        self.assertEqual(container["env"], [{"name": "CLINVK_SHARDS", "value": str(manifests[0]["spec"]["completions"])}])
        self.assertEqual(manifests[0]["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"], [clinvk.EXIT_LEFT])
        self.assertEqual(len(manifests[1]["jobs"]["batch"]["strategy"]["matrix"]["shard"]), 4)
        commands = [container["command"][2], manifests[1]["jobs"]["batch"]["steps"][1]["run"]]
        for command in commands:
            words = command.partition(" parallel ")[2].replace("${{ matrix.shard }}", "2").partition(" >")[0].split()
            clinvk.parse_command_line(["parallel", *words])

    @needs("bash", "jq", "git")
    def test_man_page_examples_work(self):
        answer = b'#!/bin/sh\ncat > /dev/null\n'
        write_program(os.path.join(self.tools, "claude"), answer + b'case "$*" in *--json-schema*) data=", \\"structured_output\\": {\\"label\\": \\"bug\\"}" ;; esac\necho \'{"type": "result", "is_error": false, "result": "fine", "session_id": "s"\'"$data}"\n')
        write_program(os.path.join(self.tools, "gemini"), answer + b'echo \'{"type": "message", "role": "assistant", "content": "fine"}\'\n'
                      b'echo \'{"type": "result", "status": "success"}\'\n')
        write_program(os.path.join(self.tools, "llm"), b"#!/bin/sh\nexec cat\n")
        for name, content in (("tasks.json", '{"tasks": [{"prompt": "one"}, {"prompt": "two"}]}'), ("prompts.txt", "one\ntwo\n"),
                              ("results.jsonl", '{"index":1,"status":"ok"}\n'), ("nightly.jsonl", '{"index":0,"status":"ok"}\n'),
                              ("plan.json", '[{"prompt": "one", "workdir": "src"}]'), ("label.json", {"type": "object", "required": ["label"], "properties": {"label": {"enum": ["bug"]}}}), ("cases.json", '[{"prompt": "one", "meta": {"want": "fine"}}]'),
                              ("chain.json", '{"steps": [{"backend": "echo", "prompt": "[{\\"prompt\\": \\"one\\"}]"}, '
                               '{"backend": "echo", "prompt": "{{previous}}"}]}')):
            self.file(os.path.join("place", name), content)
        self.file(os.path.join("place", "tickets.csv"), "id,text\n1,\"It is slow,\nvery slow\"\n")
        self.file(os.path.join("place", "issues.json"), [{"number": 7, "title": "Slow", "body": "It takes an hour."}])
        os.mkdir(os.path.join(self.place, "src"))
        self.file(os.path.join("place", "src", "a.py"), "")
        subprocess.run("git init -q && git add src", shell=True, cwd=self.place, check=True, timeout=60)
        write_program(os.path.join(self.tools, "pytest"), b'#!/bin/sh\n[ "$1" = tests/test_a.py ]\n')
        made = self.shell("""echo '{"prompt": "one", "workdir": "/no/such"}' | clinvk parallel -q --output-dir out; """
                          "sed -i.bak 's,/no/such,/,' out/001*.json; rm out/*.bak")
        self.assertEqual(made[1], 0, made[0])
        examples = examples_of_the_man_page()
        self.assertGreater(len(examples), 4)
        for example in examples:
            with self.subTest(example=example):
                printed, status = self.shell("set -o pipefail; " + example)
                self.assertEqual(status, 0, printed)
                self.assertNotIn("failed: ", printed)
                if "labels.jsonl" in example:
                    self.assertIn("task_id,data.label,error\n1,bug,\n", printed)
                if "results.jsonl" in example:
                    self.assertIn('{"index":0,', printed)
                    self.assertNotIn('"index":1', printed)
        with open(os.path.join(self.place, "review.md")) as file:
            self.assertEqual(file.read(), "## src/a.py\nfine\n")
        with open(os.path.join(self.place, "all.json")) as file:
            self.assertIn('"completed":2', file.read())


if __name__ == "__main__":
    unittest.main()
