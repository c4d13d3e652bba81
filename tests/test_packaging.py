"""clinvk can be had in each of the ways that are promised: as one file under any name, as a module, from a zip or a zipapp, and by
`pip install` with the man page and the completions in their places; and building leaves nothing in the checkout.
"""
import ast
import configparser
import glob
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import zipapp
import zipfile

import support
from support import COMPILED, MODULES, PROGRAM, ROOT, Case, clinvk, results, tasks

support.left_to_full_runs()

SHARED = {"man/clinvk.1": "share/man/man1/clinvk.1",
          "completions/clinvk.bash": "share/bash-completion/completions/clinvk.bash",
          "completions/_clinvk": "share/zsh/site-functions/_clinvk",
          "completions/clinvk.fish": "share/fish/vendor_completions.d/clinvk.fish"}
PROCESS_METHODS = ("fork", "spawn") if support.LINUX else ("spawn",)  # also in a run of the tests for one of them
LARGE = "x" * (clinvk.INLINE_BYTES + 1)  # an answer that travels as a file


def packaged_files():
    """What a build needs of the checkout."""
    return ["clinvk.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", *SHARED]


class OneFileTest(Case):
    def assert_runs(self, argv, **env):
        """A batch, with both kinds of start: the worker must find the program again.  Python compiles a file each time."""
        for method in PROCESS_METHODS:
            with self.subTest(argv=argv, start_method=method):
                environment = dict(env, CLINVK_START_METHOD=method, PYTHONDONTWRITEBYTECODE="1")
                run = self.run_program(argv + ["parallel", "--jsonl", "--quiet", "-j", "1"], tasks("one", "two", "rest\n" + LARGE), environment)
                self.assertEqual((run.stderr.decode(), len(results(run))), ("", 3))
                self.assertEqual({result["status"] for result in results(run)}, {"ok"})

    def setUp(self):
        super().setUp()
        os.unlink(os.path.join(self.bin, "cat"))  # the real one answers with its whole prompt
        self.place = self.path("some where")
        os.mkdir(self.place)

    def test_it_can_be_executed_through_a_link_without_its_suffix(self):
        self.assertTrue(os.access(PROGRAM, os.X_OK))
        with open(PROGRAM, "rb") as file:
            self.assertEqual(file.readline(), b"#!/usr/bin/env python3\n")
        link = os.path.join(self.place, "clinvk")
        os.symlink(PROGRAM, link)
        # the python3 that `env` finds is this one
        os.symlink(sys.executable, os.path.join(self.bin, "python3"))
        self.assert_runs([link])

    def test_launcher_of_the_readme_runs_and_keeps_the_byte_code(self):
        with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
            sentence = re.search(r"an executable file `clinvk` with\s+the lines (.*?`)[.]\s", file.read(), re.S).group(1)
        launcher = os.path.join(self.place, "clinvk")
        with open(launcher, "w") as file:
            file.write("".join(line + "\n" for line in re.findall("`(.*?)`", sentence)))
        os.chmod(launcher, 0o755)
        os.symlink(sys.executable, os.path.join(self.bin, "python3"))
        shutil.copy(PROGRAM, self.place)
        made = self.run_program([sys.executable, launcher, "--version"], env={"PYTHONDONTWRITEBYTECODE": None})
        self.assertEqual((made.stdout.decode(), made.stderr, made.returncode), ("clinvk %s\n" % clinvk.__version__, b"", 0))
        self.assertTrue(glob.glob(os.path.join(self.place, "__pycache__", "clinvk.*.pyc")))
        self.assert_runs([launcher])

    def test_it_runs_as_a_compiled_module_of_an_image(self):
        py_compile.compile(shutil.copy(PROGRAM, self.place), doraise=True)
        self.assert_runs([sys.executable, "-m", "clinvk"], PYTHONPATH=self.place)

    def test_it_runs_from_a_zip(self):
        archive = os.path.join(self.place, "x.zip")
        with zipfile.ZipFile(archive, "w") as file:
            file.write(PROGRAM, "clinvk.py")
        self.assert_runs([sys.executable, "-m", "clinvk"], PYTHONPATH=archive)

    def test_it_runs_as_a_zipapp(self):
        source, archive = os.path.join(self.place, "source"), os.path.join(self.place, "clinvk.pyz")
        os.mkdir(source)
        shutil.copy(PROGRAM, source)
        zipapp.create_archive(source, archive, main="clinvk:console")
        self.assert_runs([sys.executable, archive])

    def test_it_runs_without_site_packages_and_with_warnings_as_errors(self):
        self.assert_runs([sys.executable, "-I", "-S", "-W", "error", PROGRAM])

    def test_it_runs_under_another_name_where_nothing_can_be_written_beside_it(self):
        path = os.path.join(self.place, "other.py")
        shutil.copy(PROGRAM, path)
        os.chmod(path, 0o444)
        os.chmod(self.place, 0o555)
        self.addCleanup(os.chmod, self.place, 0o755)
        self.assert_runs([sys.executable, path], HOME="/no/such/home")
        self.assertEqual(os.listdir(self.place), ["other.py"])

    def test_it_can_be_imported_and_used_by_a_script(self):
        script = self.file("script.py", "import sys, clinvk\n"
                                        "if __name__ == '__main__':\n"
                                        "    tasks = [clinvk.Task('echo', 'say %d' % n) for n in range(3)]\n"
                                        "    for result in clinvk.run_pool(tasks, jobs=2, start_method=sys.argv[1]):\n"
                                        "        print(result.index, result.status, result.output)\n")
        for method in PROCESS_METHODS:
            with self.subTest(start_method=method):
                run = self.run_program([sys.executable, "-W", "error", script, method], env={"PYTHONPATH": MODULES})
                self.assertEqual((sorted(run.stdout.decode().splitlines()), run.stderr.decode()), (["%d ok say %d" % (n, n) for n in range(3)], ""))


class UnsuitablePythonTest(Case):
    """A Python that is too old, or lacks a part of its standard library as Debian's python3-minimal does: one line and exit status 2."""

    def run_after(self, statement, *arguments):
        """Run clinvk in a Python that executed `statement` first."""
        script = self.file("start.py", "import marshal, os, sys\n%s\nwith open(%r, 'rb') as file:\n"
                                       "    code = marshal.loads(file.read()[16:])\nexec(code, globals())\n" % (statement, COMPILED))
        return self.run_program([sys.executable, "-I", "-S", script, *arguments], tasks("touch %s" % self.path("ran")))

    def assert_refused(self, run, *messages):
        self.assertIn(run.stderr.decode(), [message + "\n" for message in messages])
        self.assertEqual((run.returncode, run.stdout, os.path.exists(self.path("ran"))), (2, b"", False))

    def test_python_before_3_8_is_refused_and_no_task_starts(self):
        for arguments in (["parallel", "--jsonl"], ["--version"], ["-b", "echo", "x"]):
            run = self.run_after("sys.version_info = (3, 7, 17, 'final', 0)", *arguments)
            self.assert_refused(run, "clinvk needs Python 3.8 or newer; this is 3.7.17")

    def test_program_compiles_on_python_3_7_to_say_that_it_needs_a_newer_one(self):
        with open(PROGRAM, "rb") as file:
            source = file.read()
        ast.parse(source, feature_version=(3, 7))
        self.assertIn(b"\nfrom __future__ import annotations  # clinvk needs Python 3.8 or newer\n", source)  # 3.6 shows this line

    def test_missing_module_is_named_and_no_task_starts(self):
        for module in ("json", "queue", "multiprocessing", "argparse", "threading", "pickle", "signal"):
            with self.subTest(module):
                self.assert_refused(self.run_after("sys.modules[%r] = None" % module, "parallel", "--jsonl"), (
                    "clinvk needs the module %s, which this Python lacks; on Debian and Ubuntu: apt install python3" % module))

    def test_import_into_an_unsuitable_python_raises_import_error(self):
        script = "import sys\nsys.version_info = (3, 7, 17, 'final', 0)\nsys.path.insert(0, %r)\nimport clinvk" % ROOT
        run = self.run_program([sys.executable, "-I", "-S", "-B", "-c", script])
        self.assertEqual(run.stderr.decode().splitlines()[-1], "ImportError: clinvk needs Python 3.8 or newer; this is 3.7.17")


class SetupTest(unittest.TestCase):
    def setUp(self):
        self.setup = configparser.ConfigParser()
        self.setup.read(os.path.join(ROOT, "setup.cfg"))

    def test_setup_cfg_installs_the_module_the_command_and_the_shared_files(self):
        self.assertEqual(self.setup["options"]["py_modules"], "clinvk")
        self.assertEqual(self.setup["options.entry_points"]["console_scripts"].split("\n"), ["", "clinvk = clinvk:console"])
        installed = {source: "%s/%s" % (directory, os.path.basename(source))
                     for directory, sources in self.setup["options.data_files"].items() for source in sources.split()}
        self.assertEqual(installed, SHARED)
        for source in packaged_files():
            self.assertTrue(os.path.isfile(os.path.join(ROOT, source)), source)

    def test_setup_cfg_says_which_pythons_it_is_for(self):
        self.assertEqual(self.setup["options"]["python_requires"], ">=3.8")
        versions = re.findall(r"Programming Language :: Python :: (3\.\d+)", self.setup["metadata"]["classifiers"])
        self.assertEqual(versions[0], "3.8")
        self.assertEqual(versions, ["3.%d" % (8 + n) for n in range(len(versions))])

    def test_it_has_no_dependencies_but_the_extra_for_speed(self):
        self.assertNotIn("install_requires", self.setup["options"])
        self.assertEqual(dict(self.setup["options.extras_require"]), {"speed": "orjson"})

    def test_pyproject_toml_holds_the_build_system_alone(self):
        with open(os.path.join(ROOT, "pyproject.toml"), encoding="utf-8") as file:
            self.assertEqual(re.findall(r"^\[.*", file.read(), re.M), ["[build-system]"])

    def test_the_checkout_has_nothing_else_at_its_top(self):
        wanted = {"clinvk.py", "setup.cfg", "tests", "man", "completions", "LICENSE", "README.md", "CHANGES.md", "CONTRIBUTING.md",
                  "pyproject.toml"}
        ignored = {"build", "dist", "__pycache__"}
        self.assertEqual({name for name in os.listdir(ROOT) if not name.startswith(".") and not name.endswith(".egg-info")} - ignored, wanted)

    def test_the_file_parses_as_python_3_8(self):
        with open(PROGRAM, "rb") as file:
            ast.parse(file.read(), feature_version=(3, 8))


class PipTest(Case):
    """`pip install` into a fresh virtual environment, made once.  What is installed is run with both start methods."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.before = cls.checkout()
        cls.venv = os.path.realpath(tempfile.mkdtemp(prefix="test-clinvk-venv-"))
        cls.addClassCleanup(shutil.rmtree, cls.venv, ignore_errors=True)
        cls.python = os.path.join(cls.venv, "bin", "python")
        cls.source = os.path.join(cls.venv, "checkout")
        for name in packaged_files():
            os.makedirs(os.path.dirname(os.path.join(cls.source, name)), exist_ok=True)
            shutil.copy(os.path.join(ROOT, name), os.path.join(cls.source, name))
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("CLINVK_", "PYTHON"))}
        environment.update(TMPDIR=cls.venv, PIP_NO_CACHE_DIR="1", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1",
                           PIP_RETRIES="1", PIP_ROOT_USER_ACTION="ignore")

        def python(*arguments, executable=cls.python):
            return subprocess.run([executable, *arguments], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, cwd=cls.venv, timeout=600)

        # The pip of this Python, where it has one, can install into the environment: another takes seconds to make.
        base = os.path.realpath(sys.executable)
        cls.pip = [base, "-m", "pip", "--python", cls.python]
        has_pip = python("-m", "pip", "--python", base, "--version", executable=base).returncode == 0
        if not has_pip:
            cls.pip = [cls.python, "-m", "pip"]
        made = python("-m", "venv", *["--without-pip"] * has_pip, cls.venv, executable=sys.executable)
        if made.returncode:
            raise unittest.SkipTest("no virtual environment can be made here: %s" % made.stdout.decode()[-300:])
        install = python(*cls.pip[1:], "install", cls.source, executable=cls.pip[0])
        if install.returncode:
            with open(os.path.join(ROOT, "pyproject.toml"), encoding="utf-8") as file:
                wanted = re.findall(r'"([^"]+)"', re.search(r"requires = \[(.*?)\]", file.read(), re.S).group(1))
            reached = python(*cls.pip[1:], "download", "--no-deps", "--dest", os.path.join(cls.venv, "downloads"), *wanted, executable=cls.pip[0])
            if reached.returncode:
                raise unittest.SkipTest("pip cannot get %s: %s" % (", ".join(wanted), reached.stdout.decode().strip().splitlines()[-1]))
            raise AssertionError("pip install failed:\n" + install.stdout.decode())

    @staticmethod
    def checkout():
        return sorted(name for name in os.listdir(ROOT) if name in ("build", "dist") or name.endswith(".egg-info"))

    def setUp(self):
        super().setUp()
        os.unlink(os.path.join(self.bin, "cat"))

    def test_the_command_is_on_the_path_and_runs(self):
        command = os.path.join(self.venv, "bin", "clinvk")
        self.assertEqual(self.run_program([command, "--version"]).stdout.decode(), "clinvk %s\n" % clinvk.__version__)
        for method in ("fork", "spawn"):
            with self.subTest(start_method=method):
                run = self.run_program([command, "parallel", "--jsonl", "-q"], tasks("one", LARGE), {"CLINVK_START_METHOD": method})
                self.assertEqual((run.stderr, sorted(len(result["output"]) for result in results(run)), run.returncode), (b"", [3, len(LARGE)], 0))

    def test_the_man_page_and_the_completions_are_in_their_places(self):
        for source, installed in SHARED.items():
            with self.subTest(file=installed):
                with open(os.path.join(ROOT, source), "rb") as file, open(os.path.join(self.venv, installed), "rb") as copy:
                    self.assertEqual(copy.read(), file.read())

    def test_the_module_is_the_one_file(self):
        found = self.run_program([self.python, "-I", "-c", "import clinvk; print(clinvk.__file__)"]).stdout.decode().strip()
        self.assertTrue(found.startswith(self.venv + os.sep), found)
        with open(PROGRAM, "rb") as file, open(found, "rb") as copy:
            self.assertEqual(copy.read(), file.read())

    def test_its_metadata_are_right(self):
        metadata, = glob.glob(os.path.join(self.venv, "lib", "python3*", "site-packages", "clinvk-*.dist-info", "METADATA"))
        with open(metadata, encoding="utf-8") as file:
            text = file.read()
        for line in ("Name: clinvk", "Version: " + clinvk.__version__, "Requires-Python: >=3.8", "Provides-Extra: speed"):
            self.assertIn("\n%s\n" % line, text)
        self.assertRegex(text, r"\nLicense(-Expression)?: MIT\n")
        self.assertRegex(text, r"""\nRequires-Dist: orjson ?; ?extra == ['"]speed['"]\n""")
        self.assertIn("# clinvk\n", text)
        self.assertTrue(glob.glob(os.path.join(os.path.dirname(metadata), "**", "LICENSE"), recursive=True))

    def test_building_leaves_nothing_in_the_checkout(self):
        self.assertEqual(self.checkout(), self.before)

    def test_pip_knows_every_file_so_that_it_can_remove_them(self):
        listed = self.run_program([*self.pip, "--disable-pip-version-check", "show", "-f", "clinvk"]).stdout.decode()
        for installed in SHARED.values():
            self.assertIn(installed, listed)


if __name__ == "__main__":
    unittest.main()
