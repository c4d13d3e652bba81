"""Section 1, Types: records that are immutable, complete by default and fit to travel; the closed sets of words."""
import ast
import pickle
import re
import unittest

import support
from support import clinvk

TASK = clinvk.Task("echo", "hello")
JOB = clinvk.Job(0, TASK)


def record_classes():
    """(name, fields, defaults) of each record as the source declares it."""
    with open(support.PROGRAM, encoding="utf-8") as file:
        module = ast.parse(file.read())
    for node in module.body:
        if isinstance(node, ast.ClassDef) and any(isinstance(base, ast.Name) and base.id == "NamedTuple" for base in node.bases):
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            yield node.name, [item.target.id for item in fields], [item.target.id for item in fields if item.value]


class Records(unittest.TestCase):
    def test_a_record_has_the_fields_and_defaults_that_its_class_declares(self):
        seen = 0
        for name, fields, defaulted in record_classes():
            with self.subTest(name):
                record = getattr(clinvk, name)
                self.assertEqual(list(record._fields), fields)
                self.assertEqual(list(record._field_defaults), defaulted)
                self.assertEqual(fields[len(fields) - len(defaulted):], defaulted, "defaults stand at the end")
                seen += 1
        self.assertGreaterEqual(seen, 7)

    def test_a_record_cannot_be_changed(self):
        for record in (TASK, JOB, clinvk.unfinished(JOB, "failed", "e", "backend"), clinvk.Definition(("x",)), clinvk.TaskPolicy()):
            with self.assertRaises(AttributeError):
                setattr(record, record._fields[-1], "other")
            with self.assertRaises(AttributeError):
                record.brand_new = 1

    def test_task_and_result_travel_between_processes_unchanged(self):
        task = TASK._replace(extra=("-x", "\ud800"), meta={"a": [1, {"b": None}]}, timeout=1.5, tags=("t",))
        job = clinvk.Job(3, task, clinvk.Definition(("x", "{model}"), "jsonl", ("a", 0), usage=("u", -1), join=True), root="/r")
        result = clinvk.Result(3, "echo", "ok", 0, "answer\udcff\0", usage={"total_tokens": 1}, task=task)
        for value in (task, job, result):
            for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
                copy = pickle.loads(pickle.dumps(value, protocol))
                self.assertEqual(copy, value)
                self.assertIs(type(copy), type(value))

    def test_a_record_names_itself_and_its_fields(self):
        self.assertEqual(clinvk.Task.__name__, "Task")
        self.assertEqual(clinvk.Task.__module__, "clinvk")
        self.assertTrue(repr(TASK).startswith("Task(backend='echo', prompt='hello', model=''"), repr(TASK))

    def test_record_without_postponed_annotations_has_its_fields(self):
        class Point(clinvk.NamedTuple):  # this module has no `from __future__ import annotations`
            x: int
            y: int = 0

        self.assertEqual((Point(1), Point(y=2, x=1)._asdict(), Point._fields), ((1, 0), {"x": 1, "y": 2}, ("x", "y")))

    def test_a_task_needs_a_backend_and_a_prompt_and_nothing_else(self):
        with self.assertRaises(TypeError):
            clinvk.Task("echo")
        self.assertEqual([value for value in TASK[2:] if value],
                         ["default", "default", 1], "only the two modes and schema_retries have a default that says something")

    def test_a_duration_is_never_below_zero(self):
        result = clinvk.Result(0, "echo", "ok", 0, start_time=10.0, end_time=12.5)
        self.assertEqual(result.duration_seconds, 2.5)
        self.assertEqual(result._replace(end_time=9.0).duration_seconds, 0.0)

    def test_an_unfinished_result_says_what_became_of_its_task(self):
        job = clinvk.Job(4, TASK._replace(model="m", id="x"))
        result = clinvk.unfinished(job, "lost", "its worker died", "worker_lost", attempts=1, start_time=5.0)
        self.assertEqual(result[:4], (4, "echo", "lost", -1))
        self.assertEqual((result.error, result.error_kind, result.model, result.attempts, result.output),
                         ("its worker died", "worker_lost", "m", 1, ""))
        self.assertEqual(result.start_time, 5.0)
        self.assertGreater(result.end_time, 5.0)
        canceled = clinvk.unfinished(job, "canceled", "e", "canceled")
        self.assertEqual((canceled.attempts, canceled.duration_seconds), (0, 0.0))


class Words(unittest.TestCase):
    def test_every_error_kind_that_a_table_names_is_a_known_one(self):
        tables = [kind for kind, _ in clinvk._KIND_PATTERNS]
        tables += list(clinvk._KIND_BY_STATUS.values()) + list(clinvk._GEMINI_EXIT_KINDS.values())
        self.assertEqual(set(tables) - set(clinvk.ERROR_KINDS), set())

    def test_every_status_and_error_kind_that_the_source_gives_a_result_is_a_known_one(self):
        with open(support.PROGRAM, encoding="utf-8") as file:
            calls = re.findall(r'unfinished\(\w+(?:\.\w+)*, "(\w+)", [^\n]*?"(\w+)"(?:, exit_code|, attempts|\)|,\n)', file.read())
        self.assertGreaterEqual(len(calls), 5)
        for status, kind in calls:
            self.assertIn(status, clinvk.STATUSES)
            self.assertIn(kind, clinvk.ERROR_KINDS)

    def test_the_closed_sets_are_those_of_the_manual(self):
        self.assertEqual(set(clinvk.STATUSES), set("ok failed timeout canceled lost skipped".split()))
        self.assertEqual(set(clinvk.ERROR_KINDS), set(
            "rate_limit quota overloaded network auth permission invalid context_length max_turns budget timeout stalled signal "
            "not_found no_output max_output damaged_output schema check check_error no_change protected backend worker_lost canceled".split()))
        self.assertEqual((clinvk.EXIT_OK, clinvk.EXIT_FAILED, clinvk.EXIT_USAGE, clinvk.EXIT_BUG, clinvk.EXIT_OUTPUT), (0, 1, 2, 70, 74))
        self.assertEqual((clinvk.EXIT_HANGUP, clinvk.EXIT_INTERRUPT, clinvk.EXIT_PIPE, clinvk.EXIT_TERMINATE), (129, 130, 141, 143))


class Exceptions(unittest.TestCase):
    def test_an_output_error_knows_whether_the_reader_went_away(self):
        self.assertFalse(clinvk.OutputError("disk full").broken_pipe)
        self.assertTrue(clinvk.OutputError("gone", broken_pipe=True).broken_pipe)
        self.assertEqual(str(clinvk.OutputError("disk full")), "disk full")

    def test_an_interruption_is_not_taken_for_a_failure(self):
        self.assertFalse(issubclass(clinvk.Interrupted, Exception))
        self.assertEqual(clinvk.Interrupted(15).signal_number, 15)

    def test_what_the_module_offers_is_there(self):
        for name in clinvk.__all__:
            self.assertTrue(callable(getattr(clinvk, name)), name)


if __name__ == "__main__":
    unittest.main()
