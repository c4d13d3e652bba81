"""`python3 -m unittest discover -s tests` runs the tests of all modules in several processes: one for each
processor, or as many as CLINVK_TESTS_AT_ONCE says.  What it reports is the same as in one process.

A process runs a class, or a part of a large class, so that no process has much to do when the others are done.
"""
import gc
import multiprocessing.connection
import os
import pickle
import re
import signal
import textwrap
import unittest

import support


def load_tests(loader, suite, _pattern):
    """Make the suite of all modules, which the loader builds last, a Together."""
    if hasattr(os, "fork"):
        loader.suiteClass = Together
    return suite


class Error(Exception):
    """An exception of another process, as its traceback."""

    def __str__(self):
        return "in another process\n\n" + self.args[0]


class Failure(Error, AssertionError):
    """The same of an assertion."""


class Recorder(unittest.TestResult):
    """The result in the process of a class: sends what happens to each test in one piece."""

    def __init__(self, connection, tests, model):
        super().__init__()
        self.failfast, self.buffer, self.tb_locals = model.failfast, model.buffer, model.tb_locals
        self._connection, self._events = connection, []
        self._numbers = {id(test): number for number, test in enumerate(tests)}

    def startTest(self, test):
        super().startTest(test)
        self._connection.send(self._numbers[id(test)])

    def stopTest(self, test):
        super().stopTest(test)
        self.send_events()

    def send_events(self):
        self._connection.send(self._events)
        self._events = []

    def _record(self, name, test, value=None):
        part = None
        if isinstance(test, unittest.case._SubTest):
            part, test = test._subDescription(), test.test_case
        if isinstance(value, tuple):
            kind = Failure if issubclass(value[0], AssertionError) else Error
            value = kind(self._exc_info_to_string(value, test))
        # In place of a test, unittest gives what a class or module has before and after its tests.
        self._events.append((name, self._numbers.get(id(test), str(test)), part, value))

    def addSuccess(self, test):
        self._record("addSuccess", test)

    def addError(self, test, error):
        super().addError(test, error)
        self._record("addError", test, error)

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self._record("addFailure", test, error)

    def addSubTest(self, test, part, error):
        super().addSubTest(test, part, error)
        self._record("addSubTest", part, error)

    def addSkip(self, test, reason):
        self._record("addSkip", test, reason)

    def addExpectedFailure(self, test, error):
        self._record("addExpectedFailure", test, error)

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self._record("addUnexpectedSuccess", test)

    def addDuration(self, test, seconds):
        self._record("addDuration", test, seconds)


class Running:
    """Tests of a class that run in a process of their own."""

    class Part(unittest.case._SubTest):
        """A subtest that ran there."""

        def _subDescription(self):
            return self._message

    def __init__(self, tests, result):
        self._tests, self._result = tests, result
        self._current, self._reported, self._finished = None, set(), False
        self.connection, theirs = multiprocessing.connection.Pipe(duplex=False)
        self.pid = os.fork()
        if not self.pid:
            self._run(theirs)
        theirs.close()

    def _run(self, connection):
        try:
            gc.freeze()  # all modules of tests, which the collector would look through again and again
            recorder = Recorder(connection, self._tests, self._result)
            unittest.TestSuite(self._tests).run(recorder)
            recorder.send_events()
            connection.send(None)
        finally:
            os._exit(1)

    def receive(self):
        """Report what was sent.  Return whether more can come."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._end()
            return False
        if message is None or isinstance(message, int):
            self._finished, self._current = message is None, message
            return True
        current, self._current = self._current, None
        if current is not None:
            self._reported.add(current)
            self._result.startTest(self._tests[current])
        for event in message:
            self._replay(*event)
        if current is not None:
            self._result.stopTest(self._tests[current])
        return True

    def _replay(self, name, number, part, value):
        test = self._tests[number] if isinstance(number, int) else unittest.suite._ErrorHolder(number)
        error = (type(value), value, None) if isinstance(value, Error) else value
        if name == "addSubTest":
            self._result.addSubTest(test, self.Part(test, part, {}), error)
            return
        if part is not None:
            test = self.Part(test, part, {})
        if name == "addDuration" and not hasattr(self._result, name):
            return
        getattr(self._result, name)(*((test,) if value is None else (test, error)))

    def _end(self):
        """Reap the process.  Where it died, report an error for the test that it ran."""
        self.connection.close()
        os.waitpid(self.pid, 0)
        if not self._finished:
            test = unittest.suite._ErrorHolder(str(self._tests[self._current or 0]))
            error = Error("The process ended.  %d of its %d tests were reported.\n"
                          % (len(self._reported), len(self._tests)))
            self._result.addError(test, (Error, error, None))

    def kill(self):
        """End the process before its time."""
        os.kill(self.pid, signal.SIGTERM)
        os.waitpid(self.pid, 0)


def at_once():
    """Return how many processes run tests.  A third of their time they wait for other processes."""
    return int(os.environ.get("CLINVK_TESTS_AT_ONCE") or len(os.sched_getaffinity(0)) * 3 / 2)


MOST_TESTS = 8  # of a class in one process


def has_fixture(test):
    """Return whether the class of a test prepares something for all of its tests."""
    return any({"setUpClass", "tearDownClass"}.intersection(vars(one)) for one in type(test).__mro__ if one is not unittest.TestCase)


def parts_of(suite):
    """Return the tests of a suite in parts, each for one process: those of one class, in their order.

    The last part should run first: what takes long to prepare, then the large ones.
    """
    parts = []
    for tests in classes_in(suite):
        size = len(tests) if has_fixture(tests[0]) else MOST_TESTS
        parts += [tests[start:start + size] for start in range(0, len(tests), size)]
    return sorted(parts, key=lambda tests: (has_fixture(tests[0]), len(tests)))


def classes_in(suite):
    """Return the tests of a suite by their classes."""
    classes, waiting = {}, [suite]
    while waiting:
        one = waiting.pop()
        if isinstance(one, unittest.TestSuite):
            waiting.extend(reversed(list(one)))
        else:
            classes.setdefault((type(one).__module__, type(one)), []).append(one)
    return list(classes.values())


class Together(unittest.TestSuite):
    """Runs its parts in several processes."""

    def run(self, result, debug=False):
        waiting, running = parts_of(self), []
        if debug or len(waiting) < 2 or at_once() < 2:
            return super().run(result, debug)
        try:
            while (waiting or running) and not result.shouldStop:
                while waiting and len(running) < at_once():
                    running.append(Running(waiting.pop(), result))
                ready = multiprocessing.connection.wait([one.connection for one in running])
                running = [one for one in running if one.connection not in ready or one.receive()]
        finally:
            for one in running:
                one.kill()
        return result


class Reports(support.Case):
    MODULES = {
        "test_a": """
            class Outcomes(unittest.TestCase):
                def test_passes(self): pass
                def test_fails(self): self.assertEqual(1, 2)
                def test_breaks(self): raise ValueError("broken")
                @unittest.skip("not today")
                def test_skipped(self): pass
                @unittest.expectedFailure
                def test_expected(self): self.fail("as expected")
                @unittest.expectedFailure
                def test_unexpected(self): pass
                def test_parts(self):
                    for number in range(4):
                        with self.subTest("part", number=number):
                            if number == 1: self.fail("one")
                            if number == 2: raise KeyError("two")
                            if number == 3: self.skipTest("three")
            class Fixtures(unittest.TestCase):
                @classmethod
                def setUpClass(cls): raise OSError("no class")
                def test_never(self): pass
            class Skipped(unittest.TestCase):
                @classmethod
                def setUpClass(cls): raise unittest.SkipTest("no class today")
                def test_never(self): pass
            """,
        "test_b": "raise unittest.SkipTest('no module today')\n",
        "test_c": "import no_such_module\n",
        "test_together": "from together import load_tests\n"}

    def discover(self, processes, *options):
        """Run the tests of the modules in so many processes.  Return the status and what is said."""
        done = self.run_program([support.sys.executable, "-m", "unittest", "discover", "-v", *options],
                                env={"CLINVK_TESTS_AT_ONCE": str(processes)},
                                cwd=self.path("suite"))
        self.assertEqual(done.stdout, b"")
        return done.returncode, done.stderr.decode()

    def modules(self, modules):
        os.mkdir(self.path("suite"))
        for name, code in modules.items():
            self.file("suite/%s.py" % name, "import os, unittest\n" + textwrap.dedent(code))
        os.symlink(os.path.join(support.TESTS, "test_together.py"), self.path("suite", "together.py"))
        self.file("suite/support.py", "from unittest import TestCase as Case\n")  # the real one takes long to import

    def test_several_processes_outcomes_are_those_of_one(self):
        self.modules(self.MODULES)

        def outcomes(text):
            ran = re.search(r"^Ran \d+ tests", text, re.M).group()
            lines = re.findall(r"^(?:FAIL|ERROR|UNEXPECTED SUCCESS): .*|skipped '.*'|"
                               r"^.* \.\.\. (?:ok|expected failure).*", text, re.M)
            return ran, sorted(lines), text.splitlines()[-1]

        for options in ((), ("-k", "breaks", "-k", "parts")):
            with self.subTest(options):
                (alone, one), (together, several) = (self.discover(number, *options) for number in (1, 3))
                self.assertEqual((together, outcomes(several)), (alone, outcomes(one)))
                self.assertEqual(alone, 1)
                for reason in ("ValueError: broken", "KeyError: 'two'", "AssertionError: one"):
                    self.assertEqual(several.count("\n" + reason + "\n"), 1, several)

    def test_large_class_is_divided_unless_it_prepares_something(self):
        class Small(unittest.TestCase):
            def runTest(self): pass

        class Large(Small):
            def runTest(self): pass

        class Prepared(Small):
            @classmethod
            def setUpClass(cls): pass

        small, large, prepared = ([one() for _ in range(count)] for one, count in ((Small, 3), (Large, 2 * MOST_TESTS + 1), (Prepared, 2 * MOST_TESTS)))
        parts = parts_of(unittest.TestSuite([unittest.TestSuite(prepared), unittest.TestSuite(small + large)]))
        self.assertEqual(parts, [large[2 * MOST_TESTS:], small, large[:MOST_TESTS], large[MOST_TESTS:2 * MOST_TESTS], prepared])

    def test_process_that_dies_is_an_error_of_its_test(self):
        self.modules({"test_a": """
            class Deadly(unittest.TestCase):
                def test_a(self): pass
                def test_b(self): os._exit(0)
                def test_c(self): pass
            class Other(unittest.TestCase):
                def test_d(self): pass
            """, "test_together": self.MODULES["test_together"]})
        status, said = self.discover(2)
        self.assertEqual((status, said.splitlines()[-1]), (1, "FAILED (errors=1)"))
        self.assertRegex(said, r"ERROR: test_b \(")
        self.assertIn("1 of its 3 tests", said)


if __name__ == "__main__":
    unittest.main()
