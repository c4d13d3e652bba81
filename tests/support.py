"""What the tests share: a private environment for each test with fake AI programs in it, clinvk run as a black box or in the
background, waiting for events, and the check that nothing is left behind.

Every test that is a `Case` has its own directory, TMPDIR, HOME, programs (tests/bin/fakeai as cat, claude, codex and gemini)
and a variable CLINVK_TEST_MARK in the environment of all that it starts.  At its end no process with that mark runs, and
TMPDIR is empty.  The next test gets the same directory, unless something in it was changed that cannot just be removed.

A test that would wait for a constant of clinvk gives it another value: a fork of the test (ForkingCase) has that, too.
"""
import atexit
import contextlib
import gc
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import unittest
import warnings
import uuid
import venv

TESTS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TESTS)
PROGRAM = os.path.join(ROOT, "clinvk.py")  # what the users have; most tests run COMPILED
DATA = os.path.join(TESTS, "data")
PROGRAMS = ("cat", "claude", "codex", "gemini")
PATIENCE = 180.0  # after so many seconds something that should have happened never will

# Python compiles a file that it is given by path, or may not write beside, each time anew, and each spawned worker does so again:
# that took half the time of the tests.  So clinvk and the fake program are compiled here, once.  COMPILED runs as a program, and a
# script whose sys.path begins with MODULES imports it.  Errors and measurements name clinvk.py all the same.
# Another process compiles: what that takes of memory would be copied by each fork of this one.
MODULES = os.path.realpath(tempfile.mkdtemp(prefix="test-clinvk-modules-"))
COMPILED = os.path.join(MODULES, "clinvk.pyc")
COMPILER = ("import sys\nfrom py_compile import *\nfor name in (1, 3):\n"
            "    compile(*sys.argv[name:name + 2], doraise=True, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)")
subprocess.run([sys.executable, "-c", COMPILER, PROGRAM, COMPILED, os.path.join(TESTS, "bin", "fakeai"), os.path.join(MODULES, "fakeai.pyc")],
               check=True)
sys.path[:0] = [MODULES] if ROOT in sys.path else [MODULES, ROOT]

import clinvk  # noqa: E402  (found by the line above)

# What clinvk imports late, so that a fork of this process (ForkingCase) need not.
for _name in ("array", "ctypes", "datetime", "mmap", "multiprocessing.pool", "multiprocessing.popen_fork", "pickle", "queue", "resource",
              "shlex", "zoneinfo"):
    if importlib.util.find_spec(_name.partition(".")[0]):
        importlib.import_module(_name)

JOB_FIELDS = set(clinvk.Job._fields)


def job(index, backend, prompt, **fields):
    """A Job; `fields` are those of its task and its own."""
    own = {name: fields.pop(name) for name in list(fields) if name in JOB_FIELDS}
    return clinvk.Job(index, clinvk.Task(backend, prompt, **fields), **own)


def bad_input(index, error):
    """The Result of input that is no task."""
    return clinvk.Result(index, "", "failed", 1, error=error, error_kind="invalid", attempts=0)


def jobs_of(supply):
    """Yield what a supply hands out, each item waited for."""
    ready = threading.Event()
    supply.on_ready = ready.set
    while True:
        ready.clear()
        item = supply.next_job()
        if item == clinvk.END:
            return
        if item == clinvk.NOT_READY:
            ready.wait(PATIENCE)
        else:
            yield item


KNOWN = "known are " + ", ".join([*clinvk.BACKENDS, *clinvk.KNOWN])  # as messages about an unknown backend end


def _own_interpreter():
    """Return the path of this Python in an environment without packages, but orjson if it is there.

    Packages may do work each time that Python starts, and should not decide what is tested.
    """
    directory = os.path.join(MODULES, "python")
    venv.EnvBuilder(symlinks=True).create(directory)
    orjson = importlib.util.find_spec("orjson")
    if orjson and orjson.origin:
        packages = os.path.join(directory, "lib", "python%d.%d" % sys.version_info[:2], "site-packages")
        with open(os.path.join(packages, "orjson.pth"), "w") as file:
            file.write(os.path.dirname(os.path.dirname(orjson.origin)) + "\n")
    return os.path.join(directory, "bin", "python3")


def _remove_modules(owner):
    if os.getpid() == owner:  # a process that was forked does not own them
        clinvk.remove_tree(MODULES)


atexit.register(_remove_modules, os.getpid())
sys.executable = _own_interpreter()

# A shell's `&` and nohup start programs with signals ignored; what the tests send must count all the same.
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

LINUX = sys.platform.startswith("linux")
only_linux = unittest.skipUnless(LINUX, "needs /proc")

# How workers can be started.  A run of the tests for one method alone, as CI has them, tries that one where a test tries them all;
# threads go with fork.
PROCESS_METHODS = ("fork", "spawn") if LINUX else ("spawn",)
START_METHODS = PROCESS_METHODS + ("thread",)
if os.environ.get("CLINVK_START_METHOD") in PROCESS_METHODS:
    PROCESS_METHODS = (os.environ["CLINVK_START_METHOD"],)
    START_METHODS = PROCESS_METHODS + (("thread",) if PROCESS_METHODS == ("fork",) else ())


# CI makes a full run of the tests, and one with CLINVK_TESTS=brief for each other Python and start method.  Brief runs
# leave out what looks neither at workers nor at what a Python's version changes.
BRIEF = os.environ.get("CLINVK_TESTS") == "brief"
only_in_full_runs = unittest.skipIf(BRIEF, "a full run of the tests has these")


def left_to_full_runs():
    """Skip the module that calls this at its head in brief runs."""
    if BRIEF:
        raise unittest.SkipTest("a full run of the tests has these")


def left_to_fork():
    """Skip the module that calls this at its head in brief runs with spawn: its tests start no workers."""
    if BRIEF and PROCESS_METHODS == ("spawn",):
        raise unittest.SkipTest("a full run of the tests has these")


def data_file(name):
    with open(os.path.join(DATA, name), "rb") as file:
        return file.read()


def wait_until(predicate, message, seconds=PATIENCE):
    """Waits until `predicate()` is true, and returns what it gave; fails with `message` when that takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError("not within %g s: %s" % (seconds, message() if callable(message) else message))
        time.sleep(0.01)


def timer_after(*paths):
    """A threading.Timer that waits for files and not for its seconds."""
    class Timer(threading.Timer):
        def run(self):
            wait_until(lambda: self.finished.is_set() or all(map(os.path.exists, paths)), paths)
            if not self.finished.is_set():
                self.function(*self.args, **self.kwargs)

    return Timer


def processes_with(mark):
    """The pids of living processes that started with `mark` (`NAME=value`) in their environment."""
    wanted, found = b"\0" + mark.encode() + b"\0", []
    own = str(os.getpid())
    for entry in os.listdir("/proc") if LINUX else ():
        if entry.isdigit() and entry != own:
            try:
                file = os.open("/proc/%s/environ" % entry, os.O_RDONLY)
            except OSError:
                continue
            try:
                environment = b"".join(iter(lambda file=file: os.read(file, 1 << 16), b""))
            except OSError:
                continue
            finally:
                os.close(file)
            if wanted in b"\0" + environment + b"\0":
                found.append(int(entry))
    return found


def process_words(pid):
    """The command line of a process, for a message."""
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            return "%d %s" % (pid, file.read().replace(b"\0", b" ").decode("utf-8", "replace").strip())
    except OSError:
        return "%d (gone)" % pid


def life_of(pid):
    """(parent, whether it lives) of a process, None where there is none.  A zombie does not live, nor one that is on its way out."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[1]), fields[0] not in (b"Z", b"X") and not int(fields[6]) & 4  # PF_EXITING


def is_running(pid):
    """Whether a process lives."""
    if LINUX:
        life = life_of(pid)
        return life is not None and life[1]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def children_of(pid):
    """The pids of the living children of a process."""
    entries = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()] if LINUX else []
    return [entry for entry in entries if life_of(entry) == (pid, True)]


def kill_quietly(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass


def install_fakes(directory, names=PROGRAMS, changes=""):
    """Puts the fake program there under these names, to be started without a look at PATH or at site-packages.

    `changes` are statements that change the module `fakeai` first.
    """
    script = "#!%s -IS\nimport os, sys\nsys.path.insert(0, %r)\nimport fakeai\n%s\nos._exit(fakeai.main())\n" % (
        os.path.realpath(sys.executable), MODULES, changes)
    for name in names:
        write_program(os.path.join(directory, name), os.fsencode(script))


def write_program(path, content):
    """An executable file."""
    # A process that another thread forks meanwhile could hold a file open for writing (ETXTBSY): rename a closed one into place.
    with open(path + ".new", "wb") as file:
        file.write(content)
    os.chmod(path + ".new", 0o755)
    os.rename(path + ".new", path)


@contextlib.contextmanager
def descriptor_is(number, file):
    """Inside the block the standard descriptor `number` of this process is `file`."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    former = os.dup(number)
    os.dup2(file, number)
    try:
        yield
    finally:
        os.dup2(former, number)
        os.close(former)


class Background(subprocess.Popen):
    """A process in a session of its own.  Its stdout is read line by line, its stderr goes to a file."""

    def __init__(self, argv, error_path, **options):
        self._error_path, self._pending = error_path, b""
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("start_new_session", True)
        with open(error_path, "wb") as errors:
            options.setdefault("stderr", errors)
            super().__init__(argv, bufsize=0, **options)

    def error_output(self):
        """What it wrote to stderr so far."""
        with open(self._error_path, "rb") as file:
            return file.read()

    def line(self, seconds=PATIENCE):
        """Its next line on stdout, without the newline; b"" at the end of it.  Fails where none comes."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._pending:
            if not self._more(deadline):
                line, self._pending = self._pending, b""
                return line
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def wait_for_line(self, part, seconds=PATIENCE):
        """Its next line on stdout that holds `part`."""
        deadline = time.monotonic() + seconds
        while True:
            line = self.line(deadline - time.monotonic())
            if part in line:
                return line
            if not line and self.poll() is not None:
                raise AssertionError("it ended (%r) without a line with %r; stderr: %r" % (self.returncode, part, self.error_output()))

    def _more(self, deadline):
        if not select.select([self.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise AssertionError("no more output came; so far: %r; stderr: %r" % (self._pending, self.error_output()))
        piece = os.read(self.stdout.fileno(), 1 << 16)
        self._pending += piece
        return piece

    def finish(self, seconds=PATIENCE):
        """Waits for its end: the CompletedProcess, with what was not read yet of stdout."""
        deadline = time.monotonic() + seconds
        if self.stdin:
            self.stdin.close()
        while self.stdout and not self.stdout.closed and self._more(deadline):
            pass
        try:
            self.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError("it does not end; stderr: %r" % self.error_output()) from None
        return subprocess.CompletedProcess(self.args, self.returncode, self._pending, self.error_output())


def _state_of(directory):
    """What a test can change in its directory, apart from files that it makes and removes."""
    state = []
    for path in (directory, *(os.path.join(directory, name) for name in sorted(os.listdir(directory)))):
        status = os.lstat(path)
        state.append((path, status.st_ino, status.st_mode, status.st_uid))
        if path != directory:
            entries = [(entry.path, entry.stat(follow_symlinks=False)) for entry in os.scandir(path)]
            state += sorted((path, status.st_ino, status.st_mode, status.st_uid, status.st_mtime_ns, status.st_size) for path, status in entries)
    return state


class Case(unittest.TestCase):
    """A test with an environment of its own, that leaves nothing behind."""

    maxDiff = 4000

    _directory, _state = "", None  # which the next test of the class can have, and how it was made

    @classmethod
    def _take_directory(cls):
        """A directory for a test: that of the test before it, if that test left it as it was made."""
        directory, cls._directory = cls._directory, ""
        if not directory:
            directory = os.path.realpath(tempfile.mkdtemp(prefix="test-clinvk-"))
            for name in ("tmp", "home", "bin"):
                os.mkdir(os.path.join(directory, name), 0o700)
            install_fakes(os.path.join(directory, "bin"))
            cls._state = _state_of(directory)
        return directory

    @classmethod
    def _return_directory(cls, directory):
        try:
            made = [path for path, *_ in cls._state]
            for path in (directory, os.path.join(directory, "home")):
                for entry in os.scandir(path):
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.path)
                    elif entry.path not in made:
                        clinvk.remove_tree(entry.path)
            is_as_new = _state_of(directory) == cls._state
        except OSError:
            is_as_new = False
        if not is_as_new:
            clinvk.remove_tree(directory)
        elif not cls._directory:
            cls._directory = directory
            cls.addClassCleanup(cls._remove_directory)

    @classmethod
    def _remove_directory(cls):
        directory, cls._directory = cls._directory, ""
        if directory:
            clinvk.remove_tree(directory)

    def setUp(self):
        self.mark = "CLINVK_TEST_MARK=" + uuid.uuid4().hex
        self.directory = self._take_directory()
        self.addCleanup(self._return_directory, self.directory)
        self.tmp, self.home, self.bin = (os.path.join(self.directory, name) for name in ("tmp", "home", "bin"))
        self.environment = {name: value for name, value in os.environ.items()
                            if not name.startswith("CLINVK_") and name not in ("NO_COLOR",) + clinvk.NESTING_VARIABLES}
        self.environment.update(PATH=self.bin + os.pathsep + os.environ.get("PATH", os.defpath), TMPDIR=self.tmp, HOME=self.home,
                                TERM="xterm", CLINVK_TEST_MARK=self.mark.partition("=")[2])
        # A newer git cleans up in the background after a commit, which can remove the directory of a work tree that is being added.
        self.environment.update(GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="maintenance.auto", GIT_CONFIG_VALUE_0="false")
        if os.environ.get("CLINVK_START_METHOD"):
            self.environment["CLINVK_START_METHOD"] = os.environ["CLINVK_START_METHOD"]
        self._background = []

    def tearDown(self):
        left, words = [], []

        def merge_layers():
            left[:] = processes_with(self.mark)
            words[:] = [process_words(pid) for pid in left]
            return all(" " in word.strip() and not word.endswith("(gone)") and "multiprocessing.resource_tracker" not in word for word in words)

        # Python's own helper of the spawn method ends by itself, once it sees that its users have; a moment after them.  Who has no
        # command line any more is about to be gone.
        wait_until(merge_layers, "what ends by itself has ended")
        for pid in left:
            kill_quietly(pid)
        for process in self._background:
            kill_quietly(process.pid) if process.poll() is None else None
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()
        self.assertEqual(words, [], "processes were left running")
        self.assertEqual(sorted(os.listdir(self.tmp)), [], "temporary files were left")

    def path(self, *names):
        """A path in the test's own directory."""
        return os.path.join(self.directory, *names)

    def small_disk(self, kilobytes):
        """An empty file system of that size; its path."""
        path = self.path("disk")
        os.mkdir(path)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dk,mode=700" % kilobytes, "tmpfs", path], stderr=subprocess.PIPE)
        if mounted.returncode:
            self.skipTest("mounting is not permitted here")
        self.addCleanup(subprocess.run, ["umount", "-l", path], check=True)
        return path

    def file(self, name, content):
        """Makes a file in the test's own directory: of bytes, text, or anything else as JSON.  Its path."""
        if not isinstance(content, (bytes, str)):
            content = json.dumps(content)
        with open(self.path(name), "wb") as file:
            file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
        return self.path(name)

    def environment_with(self, changes):
        """The test's environment with changes; a variable that is None is left out."""
        merged = dict(self.environment, **(changes or {}))
        return {name: value for name, value in merged.items() if value is not None}

    def run_program(self, argv, input=b"", env=None, timeout=PATIENCE * 2, **options):
        """Runs a program to its end, without a terminal.  The CompletedProcess, with bytes."""
        if isinstance(input, str):
            input = input.encode("utf-8", "surrogateescape")
        if "stdin" not in options:
            options["input"] = input
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        return subprocess.run(argv, env=self.environment_with(env), timeout=timeout,
                              cwd=options.pop("cwd", self.directory), **options)

    def clinvk(self, *args, input=b"", env=None, **options):
        """Runs clinvk with these arguments; `input` is on its stdin, `env` changes the test's environment."""
        return self.run_program([sys.executable, COMPILED, *args], input, env, **options)

    def start_program(self, argv, env=None, **options):
        """Starts a program in the background, in a session of its own: a Background, killed at the end of the test."""
        options.setdefault("cwd", self.directory)
        process = Background(argv, self.path("stderr-%d" % len(self._background)), env=self.environment_with(env), **options)
        self._background.append(process)
        return process

    def start(self, *args, env=None, **options):
        """Starts clinvk in the background."""
        return self.start_program([sys.executable, COMPILED, *args], env, **options)

    def wait_for_file(self, path):
        """Waits until the file is there; its content."""
        wait_until(lambda: os.path.exists(path), "there is a file " + path)
        with open(path, "rb") as file:
            return file.read()

    def pid_in(self, path):
        """Waits for a file that holds a pid; that process will not outlive the test."""
        pid = int(self.wait_for_file(path).split()[0])
        self.addCleanup(kill_quietly, pid)
        return pid

    def assert_gone(self, pid):
        """Now, not by and by."""
        self.assertFalse(is_running(pid), "still running: " + process_words(pid))

    def wait_until_nothing_runs(self):
        """For tests that kill clinvk itself: what it started ends by and by."""
        wait_until(lambda: not processes_with(self.mark), lambda: "no process of the test runs: %s" % (
            [process_words(pid) for pid in processes_with(self.mark)],))

    def enter_environment(self, **changes):
        """Makes the test's environment that of this process, for the rest of the test."""
        former, former_tmp = dict(os.environ), tempfile.tempdir

        def leave():
            os.environ.clear()
            os.environ.update(former)
            tempfile.tempdir = former_tmp

        self.addCleanup(leave)
        environment = self.environment_with(changes)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None


# The head of a script, given by `-c`, that may run in a fork.
SCRIPT = "import sys\nsys.path.insert(0, %r)\nimport clinvk, os, signal, threading, time\n" % MODULES


def run_script(text, name):
    """Run a script to its end in this process, which was forked for it."""
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if os.path.isfile(name):
        main.__file__ = name  # for the workers that it spawns
    status = 1
    try:
        exec(compile(text, name, "exec"), vars(main))
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        if "multiprocessing.util" in sys.modules:  # as at the end of Python: Python 3.14 warns of semaphores that are left
            sys.modules["multiprocessing.util"]._run_finalizers()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class ForkingCase(Case):
    """A test that runs the program in forks of its own process: without the start of Python a run takes half the time."""

    def forked(self, argv):
        """Return the arguments of a program, with its name, and what does in a fork what it does; None if a fork cannot."""
        heads = [sys.executable, COMPILED], [sys.executable, "-W", "error", COMPILED]
        args = next((argv[len(head):] for head in heads if list(argv[:len(head)]) == head), None)
        if args is not None:
            return ["clinvk", *args], clinvk.console
        if list(argv[:2]) == [sys.executable, "-c"] and argv[2].startswith(SCRIPT):
            return ["-c", *argv[3:]], lambda: run_script(argv[2], "-c")
        return None

    def run_program(self, argv, input=b"", env=None, **options):
        """As Case.run_program; in a fork, unless the program, an option or a start method needs a process of its own."""
        if isinstance(input, str):
            input = input.encode("utf-8", "surrogateescape")
        args, act = self.forked(argv) or (argv, None)
        environment = self.environment_with(env)
        files = [options.get(name) for name in ("stdin", "stdout")]
        if (not act or set(options) - {"cwd", "stdin", "stdout"} or {subprocess.PIPE, subprocess.DEVNULL}.intersection(files) or len(input) > 4096 or os.environ.get("CLINVK_START_METHOD", "fork") != "fork"
                or any(name.startswith("PYTHON") and environment[name] != os.environ.get(name) for name in environment)):
            return super().run_program(argv, input, env, **options)
        reader, writer = os.pipe()
        os.write(writer, input)
        os.close(writer)  # before the program can look whether more may come
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            pid = os.fork()
            if pid == 0:
                try:
                    files = [file if own is None else own for own, file in zip(files, (reader, output))] + [errors]
                    for number, file in enumerate([file if isinstance(file, int) else file.fileno() for file in files]):
                        os.dup2(file, number)
                    os.chdir(options.get("cwd", self.directory))
                    os.environ.clear()
                    os.environ.update(environment)
                    tempfile.tempdir, sys.argv = None, args
                    warnings.simplefilter("error")
                    gc.freeze()  # what this process has made is no garbage of the fork
                    for value in vars(clinvk).values():  # what was found out in another environment
                        getattr(value, "cache_clear", int)()
                    signal.alarm(int(PATIENCE * 2))
                    act()
                finally:
                    os._exit(99)
            os.close(reader)
            status = os.waitpid(pid, 0)[1]
            for file in (output, errors):
                file.seek(0)
            code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            return subprocess.CompletedProcess(args, code, output.read(), errors.read())


class WorkerCase(Case):
    """A test that runs jobs in this process."""

    def setUp(self):
        super().setUp()
        self.enter_environment()

    def run_it(self, prompt, backend="echo", **fields):
        return clinvk.run_job(job(0, backend, prompt, **fields))

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

    def timeouts_come_after(self, *paths):
        """From now on a timeout comes when these files are there, whatever its seconds."""
        timer = timer_after(*paths)
        former, threading.Timer = threading.Timer, timer
        self.addCleanup(setattr, threading, "Timer", former)

    def in_background(self, task, state):
        """Runs a task in a thread.  What it gives when called is the Result."""
        results = []
        thread = threading.Thread(target=lambda: results.append(clinvk.run_job(task, state)))
        thread.start()

        def result():
            thread.join(PATIENCE)
            self.assertFalse(thread.is_alive(), "the task does not end")
            return results[0]

        return result


def tasks(*prompts, **fields):
    """JSON Lines: a task of the echo backend for each prompt; `fields` go into each."""
    return b"".join(json.dumps(dict({"backend": "echo", "prompt": prompt}, **fields)).encode() + b"\n" for prompt in prompts)


def results(completed):
    """The objects in the JSON Lines that a run printed."""
    return [json.loads(line) for line in completed.stdout.splitlines()]
