"""clinvk.py keeps its shape: the map in its docstring is that of its banners, data flows down, it needs the standard library
alone, what is dangerous stands in one place each, and importing it starts nothing and loads little.
"""
import ast
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import unittest

import support
from support import PROGRAM, ROOT, clinvk

support.left_to_full_runs()

# What costs as much as starting Python, or is needed by some commands only.
LATE_IMPORTS = ("argparse", "typing", "dataclasses", "subprocess", "multiprocessing", "threading", "shutil", "tempfile",
                "difflib", "queue", "pickle", "calendar")


def read_source():
    with open(PROGRAM, encoding="utf-8") as file:
        return file.read()


SOURCE = read_source()
TREE = EVALUATED = AROUND = None  # while the tests of this module run: they take much memory, and each fork copies its tables


def setUpModule():
    global TREE, EVALUATED, AROUND
    TREE = ast.parse(SOURCE)
    EVALUATED, AROUND = list(evaluated(TREE)), enclosing_functions()


def tearDownModule():
    global TREE, EVALUATED, AROUND
    TREE = EVALUATED = AROUND = None


BANNERS = [(int(number), title, SOURCE.count("\n", 0, place.start()) + 1) for place in
           re.finditer(r"^# --- (\d+)\. (.*?) -+$", SOURCE, re.M) for number, title in [place.groups()]]


def section_of(node):
    """The title of the section in which a node stands; "" for what comes before the first banner."""
    return next((title for _, title, line in reversed(BANNERS) if line <= node.lineno), "")


def annotations_of(node):
    """The annotations of one node: nothing of theirs is evaluated."""
    if isinstance(node, ast.AnnAssign):
        yield node.annotation
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        arguments = node.args
        every = arguments.posonlyargs + arguments.args + arguments.kwonlyargs + [arguments.vararg, arguments.kwarg]
        yield from (argument.annotation for argument in every if argument and argument.annotation)
        if node.returns:
            yield node.returns


def evaluated(tree):
    """All nodes of the tree but for annotations and for what only type checkers read."""
    skipped, todo = set(), [tree]
    while todo:
        node = todo.pop()
        if id(node) in skipped:
            continue
        skipped.update(id(annotation) for annotation in annotations_of(node))
        yield node
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)


class Globals(ast.NodeVisitor):
    """Collects the names that are looked up in the module: those that no scope around them binds."""

    def __init__(self):
        self.used = []  # (name, node)
        self._scopes = []

    def use_of(self, node):
        self.visit(node)
        return self.used

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Load) and not any(node.id in scope for scope in self._scopes):
            self.used.append((node.id, node))

    def visit_AnnAssign(self, node):
        for part in (node.target, node.value):
            if part:
                self.visit(part)

    def _visit_function(self, node):
        for part in getattr(node, "decorator_list", []) + node.args.defaults + [d for d in node.args.kw_defaults if d]:
            self.visit(part)
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs + [node.args.vararg, node.args.kwarg]
        body = node.body if isinstance(node.body, list) else [node.body]
        self._in_scope({argument.arg for argument in arguments if argument} | bound_in(body), body)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _visit_function

    def _visit_comprehension(self, node):
        bound = {name.id for part in node.generators for name in ast.walk(part.target) if isinstance(name, ast.Name)}
        self._in_scope(bound, list(ast.iter_child_nodes(node)))

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_comprehension

    def _in_scope(self, names, nodes):
        self._scopes.append(names)
        for node in nodes:
            self.visit(node)
        self._scopes.pop()


def bound_in(body):
    """The names that statements of a function bind, but for those of functions inside it."""
    bound, declared, todo = set(), set(), list(body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, ast.Global):
            declared.update(node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            bound.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
        todo += ast.iter_child_nodes(node)
    return bound - declared


def definitions():
    """The names that the module defines, each with the line of its first definition."""
    found, todo = {}, list(TREE.body)
    while todo:
        node = todo.pop(0)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.setdefault(node.name, node)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        found.setdefault(name.id, node)
        elif isinstance(node, ast.If):
            todo += node.body + node.orelse
    return found


def enclosing_functions():
    """For each node the names of the functions and classes around it, from the outside in."""
    around = {}

    def visit(node, names):
        around[node] = names
        inner = names + (node.name,) if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else names
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(TREE, ())
    return around


def places(*wanted):
    """Where a dotted name is used, as (section, functions around it): `sys.exit`, or a bare name, `print`."""
    found = []
    for node in EVALUATED:
        dotted = ""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            dotted = "%s.%s" % (node.value.id, node.attr)
        elif isinstance(node, ast.Name):
            dotted = node.id
        if dotted in wanted:
            found.append((section_of(node), AROUND[node], "line %d: %s" % (node.lineno, dotted)))
    return found


def imports():
    """(top-level module, node) of each import that is carried out."""
    found = []
    for node in EVALUATED:
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(((node.module or "").partition(".")[0], node))
    return found


class MapTest(unittest.TestCase):
    def test_the_docstring_lists_the_sections_in_their_order(self):
        listed = re.findall(r"^ +(\d+)\. (\w[\w ]*?) {2,}\w", ast.get_docstring(TREE, clean=False), re.M)
        self.assertGreater(len(listed), 9)
        self.assertEqual([(int(number), title) for number, title in listed], [(number, title) for number, title, _ in BANNERS])
        self.assertEqual([number for number, _, _ in BANNERS], list(range(1, len(BANNERS) + 1)))

    def test_banners_have_one_width(self):
        self.assertEqual({len(SOURCE.splitlines()[line - 1]) for _, _, line in BANNERS}, {79})

    def test_no_section_uses_a_later_one(self):
        defined, number = definitions(), {title: number for number, title, _ in BANNERS}
        number[""] = 0
        upward, seen = [], 0
        for statement in TREE.body:
            for name, node in Globals().use_of(statement):
                if name in defined:
                    seen += 1
                    if number[section_of(defined[name])] > number[section_of(node)]:
                        upward.append("line %d: %s is defined in section %s" % (node.lineno, name, section_of(defined[name])))
        self.assertGreater(seen, 500)
        self.assertEqual(upward, [])

    def test_what_it_offers_to_importers_is_there(self):
        for name in clinvk.__all__:
            self.assertTrue(hasattr(clinvk, name), name)


class PlacesTest(unittest.TestCase):
    """What may stand in one place only."""

    def assert_only_in(self, section, found, at_least=1):
        self.assertGreaterEqual(len(found), at_least, "nothing was looked at")
        self.assertEqual([place for where, _, place in found if where != section], [])

    def test_processes_are_started_by_the_platform_section_alone(self):
        self.assert_only_in("Platform", places("os.posix_spawn", "os.posix_spawnp", "subprocess.Popen", "subprocess.run", "os.system",
                                               "os.popen", "os.fork", "os.forkpty", "os.execv", "os.execve", "os.execvp", "os.spawnv"))
        self.assert_only_in("Platform", [(section_of(node), (), "line %d" % node.lineno) for module, node in imports() if module == "subprocess"])

    def test_processes_alone_starts_backends(self):
        self.assert_only_in("Processes", [place for place in places("start_session") if place[0] != "Platform"])

    def test_multiprocessing_is_used_by_the_pool_alone(self):
        self.assert_only_in("Pool", [(section_of(node), (), "line %d" % node.lineno) for module, node in imports()
                                     if module == "multiprocessing"])

    def test_the_program_exits_in_console_alone(self):
        exits = places("sys.exit", "exit", "quit", "os.abort") + [place for place in places("os._exit") if place[0] != "Pool"]
        self.assertEqual({functions[0] for _, functions, _ in exits}, {"console", "die_at_once", "_refuse"})
        self.assert_only_in("Command line", [place for place in exits if place[1][0] not in ("die_at_once", "_refuse")])
        raised = {AROUND[node][0] for node in EVALUATED if isinstance(node, ast.Raise) and node.exc
                  and "SystemExit" in {name.id for name in ast.walk(node.exc) if isinstance(name, ast.Name)}}
        # argparse leaves so, and main catches it; a thread of Pool ends so
        self.assertLessEqual(raised, {"build_parser", "_popen_or_end_thread"})

    def test_standard_streams_are_written_by_way_of_outputs_alone(self):
        self.assertEqual(places("print", "input", "sys.__stdout__", "sys.__stderr__"), [])
        used = [place for place in places("sys.stdout", "sys.stderr") if place[1] != ("_refuse",)]
        self.assert_only_in("Command line", used, 0)  # what argparse prints, and bug reports
        written = places("os.write")
        self.assert_only_in("Platform", written)
        self.assertEqual(len({functions for _, functions, _ in written}), 1)
        self.assertEqual({functions[0] for _, functions, _ in places("Output") if section_of(definitions()[functions[0]]) == "Commands"},
                         {"Console"})
        self.assertEqual({section for section, _, _ in places("Output")}, {"Commands", "Command line"})

    def test_platforms_are_told_apart_in_the_platform_section_alone(self):
        self.assert_only_in("Platform", places("sys.platform", "os.name", "os.uname"), 2)
        probes = [(section_of(node), (), "line %d" % node.lineno) for node in EVALUATED
                  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr")
                  and isinstance(node.args[0], ast.Name) and node.args[0].id == "os"]
        self.assert_only_in("Platform", probes)

    def test_only_a_task_and_the_whole_program_catch_everything(self):
        catching = []
        for node in EVALUATED:
            if not isinstance(node, ast.ExceptHandler):
                continue
            with self.subTest(line=node.lineno):
                self.assertIsNotNone(node.type, "it catches everything")
                caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
                if "Exception" in caught:
                    catching.append(AROUND[node][0])
                if "BaseException" in caught:  # to clear up, or to hand it to another thread
                    last = node.body[-1]
                    raised = isinstance(last, ast.Raise) and last.exc is None
                    handed_on = node.name and any(isinstance(name, ast.Name) and name.id == node.name for name in ast.walk(node))
                    self.assertTrue(raised or handed_on)
        self.assertEqual(sorted(catching), ["console", "run_job"])

    def test_there_are_no_globals_that_functions_assign(self):
        self.assertEqual([node.lineno for node in ast.walk(TREE) if isinstance(node, ast.Global)], [])


class ImportTest(unittest.TestCase):
    def test_it_needs_the_standard_library_alone(self):
        paths = sysconfig.get_paths()
        standard = tuple(os.path.realpath(paths[name]) + os.sep for name in ("stdlib", "platstdlib"))
        for module, node in imports():
            if module in ("orjson", "__future__") or module == "zoneinfo" and sys.version_info < (3, 9):  # where it is not had, nothing is lost
                continue
            with self.subTest(module=module, line=node.lineno):
                spec = importlib.util.find_spec(module)
                self.assertIsNotNone(spec)
                origin = spec.origin or ""
                if module not in sys.builtin_module_names and origin != "frozen":
                    self.assertTrue(os.path.realpath(origin).startswith(standard), origin)
                    self.assertNotIn("-packages", origin)

    def test_orjson_may_be_missing(self):
        for module, node in imports():
            if module == "orjson":
                guards = [guard for guard in ast.walk(TREE) if isinstance(guard, ast.Try) and node in guard.body]
                self.assertEqual([handler.type.id for guard in guards for handler in guard.handlers], ["ImportError"])

    def import_it(self, *options):
        """Imports the module in a fresh interpreter: what it printed, and the modules that were loaded for it."""
        script = ("import sys, os, _thread\n"
                  "sys.dont_write_bytecode = True\n"
                  "sys.path.insert(0, sys.argv[1])\n"
                  "before = set(sys.modules)\n"
                  "threads = _thread._count()\n"
                  "import clinvk\n"
                  "loaded = sorted(set(sys.modules) - before)\n"
                  "assert _thread._count() == threads, 'a thread was started'\n"
                  "try:\n"
                  "    os.waitpid(-1, os.WNOHANG)\n"
                  "    raise AssertionError('a process was started')\n"
                  "except ChildProcessError:\n"
                  "    pass\n"
                  "os.write(3, ' '.join(loaded).encode())\n")
        reader, writer = os.pipe()
        try:
            run = subprocess.run([sys.executable, *options, "-c", 'import os, sys; os.dup2(int(sys.argv.pop(1)), 3)\n' + script, str(writer), ROOT],
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[writer], timeout=60)
            os.close(writer)
            writer = -1
            with os.fdopen(reader, "rb", closefd=False) as file:
                loaded = file.read().decode().split()
        finally:
            for file in (reader, writer):
                if file >= 0:
                    os.close(file)
        self.assertEqual((run.stdout, run.stderr.decode(), run.returncode), (b"", "", 0))
        self.assertIn("clinvk", loaded)
        return loaded

    def test_importing_it_starts_nothing_and_prints_nothing(self):
        self.import_it("-W", "error")

    def test_importing_it_loads_little(self):
        self.assertEqual(set(self.import_it("-I", "-S")) & set(LATE_IMPORTS), set())

    def test_asking_for_the_version_loads_little(self):
        script = ("import sys; sys.path.insert(0, sys.argv.pop(1)); before = set(sys.modules); import clinvk; "
                  "clinvk.main(['--version']); print(*set(sys.modules) - before)")
        run = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", script, ROOT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        version, loaded = run.stdout.decode().splitlines()
        self.assertEqual((version, run.stderr.decode()), ("clinvk " + clinvk.__version__, ""))
        self.assertEqual(set(loaded.split()) & set(LATE_IMPORTS), set())


# The ratchet.  Each number is the most that is allowed now; a change may lower a number, never raise
# it.  The aims are those of the defaults: 60 lines and 4 levels a function, 5 positional parameters,
# 100 columns.
MOST_LINES = {
    "": 146, "Types": 313, "Text and JSON": 688, "Schema": 318, "Platform": 982,
    "Configuration": 885, "Backends": 1780, "Input": 1520, "Plans": 203, "Processes": 448,
    "Checks": 480, "Worker": 455, "Pool": 973, "Scheduler": 747, "Journal": 507,
    "Sinks": 896, "Summary": 203, "Report": 1375, "Sessions": 305, "Commands": 1334,
    "Command line": 493
}
LONG_FUNCTIONS = {}
DEEP_FUNCTIONS = {}
FUNCTIONS_OF_MANY_PARAMETERS = {}
WIDE_LINES = 0
NESTED_CONDITIONALS = 0
CONDITIONAL_EMPTY_LISTS = 0
STORED_LAMBDAS = 0
BLOCKS = (ast.If, ast.For, ast.While, ast.Try, ast.With)


def functions(node, prefix=""):
    """(qualified name, node) of each function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            if isinstance(child, ast.FunctionDef):
                yield prefix + child.name, child
            yield from functions(child, prefix + child.name + ".")
        else:
            yield from functions(child, prefix)


def depth_of(node, depth=0):
    """How deep blocks are nested in a function; an `elif` is as deep as its `if`."""
    deepest = depth
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
                continue
            is_elif = isinstance(node, ast.If) and field == "orelse" and len(value) == 1 and isinstance(child, ast.If)
            deeper = isinstance(child, BLOCKS) and not is_elif
            deepest = max(deepest, depth_of(child, depth + deeper))
    return deepest


def measured():
    """What the ratchet holds, as it is."""
    ends = [line for _, _, line in BANNERS] + [SOURCE.count("\n") + 1]
    lines = {"": BANNERS[0][2] - 1}
    lines.update((title, end - start) for (_, title, start), end in zip(BANNERS, ends[1:]))
    long, deep, many = {}, {}, {}
    for name, node in functions(TREE):
        size, depth = node.end_lineno - node.lineno + 1, depth_of(node)
        positional = [argument for argument in node.args.posonlyargs + node.args.args if argument.arg not in ("self", "cls")]
        for found, number, limit in ((long, size, 60), (deep, depth, 4), (many, len(positional), 5)):
            if number > limit:
                found[name] = number
    conditionals = [node for node in ast.walk(TREE) if isinstance(node, ast.IfExp)]
    parents = {child: node for node in ast.walk(TREE) for child in ast.iter_child_nodes(node)}
    return {
        "MOST_LINES": lines, "LONG_FUNCTIONS": long, "DEEP_FUNCTIONS": deep, "FUNCTIONS_OF_MANY_PARAMETERS": many,
        "WIDE_LINES": sum(len(line) > 100 for line in SOURCE.splitlines()),
        "NESTED_CONDITIONALS": sum(isinstance(part, ast.IfExp) for node in conditionals for part in (node.body, node.orelse)),
        "CONDITIONAL_EMPTY_LISTS": sum(isinstance(node.orelse, (ast.List, ast.Tuple)) and not node.orelse.elts for node in conditionals),
        "STORED_LAMBDAS": sum(isinstance(node, ast.Lambda) and not isinstance(parents[node], (ast.Call, ast.keyword))
                              for node in ast.walk(TREE))}


class RatchetTest(unittest.TestCase):
    def test_sizes_never_grow_and_exceptions_that_are_not_needed_any_more_are_gone(self):
        found = measured()
        for name, now in found.items():
            allowed = globals()[name]
            with self.subTest(name):
                if isinstance(now, dict):
                    self.assertEqual({key: value for key, value in now.items() if value > allowed.get(key, 0)}, {})
                else:
                    self.assertLessEqual(now, allowed)

        for name in ("LONG_FUNCTIONS", "DEEP_FUNCTIONS", "FUNCTIONS_OF_MANY_PARAMETERS"):
            self.assertEqual(set(globals()[name]) - set(found[name]), set(), name)


if __name__ == "__main__":
    unittest.main()
