"""Section 14, Report: which line of results files counts for a task, and what is said of all of them together."""
import base64
import csv
import hashlib
import io
import itertools
import json
import math
import operator
import os
import random
import re
import signal
import sys
import tracemalloc
import unittest
from unittest import mock
from xml.etree import ElementTree

import support
from support import COMPILED, Case, ForkingCase, clinvk, only_in_full_runs, tasks, write_program

support.left_to_fork()

START = 1795535999.5
HIDDEN = "an ok result before the last line, which counts; --tasks FILE finds the lines of tasks that were moved: "
csv.field_size_limit(1 << 30)


def line(index, status="ok", start=0.0, seconds=1.0, **fields):
    """A line of a results file, without its newline."""
    value = {"index": index, "backend": "claude", "status": status, "exit_code": 0, "output": "answer %d" % index, "attempts": 1,
             "start_time": clinvk.utc(START + start), "end_time": clinvk.utc(START + start + seconds), "duration_seconds": seconds,
             "key": "k%d" % index, "run": clinvk.utc(START), "label": "label %d" % index}
    value.update(fields)
    return json.dumps({name: item for name, item in value.items() if item is not None}).encode()


def lines(*given):
    return b"".join(one + b"\n" for one in given)


def attempt(start, seconds, **fields):
    return dict({"status": "failed", "start_time": clinvk.utc(START + start), "duration_seconds": seconds}, **fields)


class ReportCase(ForkingCase):
    def setUp(self):
        super().setUp()
        self.warnings = []

    def records(self, *contents):
        """The records of files with these contents."""
        paths = [self.file("results-%d.jsonl" % number, content) for number, content in enumerate(contents)]
        return clinvk.Records(paths, self.warnings.append)

    def statistics(self, *given):
        statistics = clinvk.Statistics(self.records(lines(*given)), table=clinvk.Table())
        self.assertEqual(statistics.totals.total, len(given))
        return statistics

    def report(self, *contents, options=(), **further):
        paths = [self.file("results-%d.jsonl" % number, content) for number, content in enumerate(contents)]
        run = self.clinvk("report", *options, *paths, **further)
        return run.stdout.decode(), run.stderr.decode(), run.returncode


class Samples(ReportCase):
    """Lines of several samples and cells: each is a record of its own, and those of a task stand together."""

    GIVEN = [line(index, sample=sample, samples=3, cell={"model": model}, label="case", key="%d %d %s" % (index, sample, model))
             for sample in (1, 2) for index in (0, 1) for model in ("b", "a")]

    def test_samples_and_cells_are_in_the_order_of_tasks_then_cells(self):
        records = self.records(lines(*self.GIVEN[::2], line(1)), lines(*self.GIVEN[1::2]))
        found = [(sample.index, sample.cell.get("model"), sample.sample) for sample in (record.result.task.sample for record in records)]
        self.assertEqual(found, [(0, "b", 1), (0, "b", 2), (0, "a", 1), (0, "a", 2), (1, "b", 1), (1, "b", 2), (1, None, 1), (1, "a", 1), (1, "a", 2)])
        self.assertEqual((list(records.repeated), list(records.shared), records.gaps), ([], [], []))

    def test_cells_are_in_the_order_of_the_matrix_where_lines_state_it(self):
        given = [line(index, sample=1, samples=1, cell={"model": model}, cell_number=number)
                 for index, model, number in ((0, "b", 2), (1, "c", 3), (1, "a", 1), (0, "a", 1), (1, "b", 2))]
        records = self.records(lines(*given))
        self.assertEqual([(record.result.index, record.result.task.sample.cell["model"]) for record in records],
                         [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (1, "c")])

    def test_line_without_a_sample_is_that_of_the_first(self):
        records = self.records(lines(line(0, "failed"), line(1)), lines(line(0, sample=1, samples=2), line(0, sample=2, samples=2)))
        self.assertEqual([(record.result.index, record.result.status, record.is_flaky) for record in records], [(0, "ok", True), (0, "ok", False), (1, "ok", False)])
        self.assertEqual(records.shared, [0])

    def test_several_ok_lines_of_one_sample_are_named(self):
        records = self.records(lines(*self.GIVEN, line(1, sample=2, cell={"model": "a"}, key="1 2 a")))
        self.assertEqual(next(records.problems()), "1 task has %s2" % HIDDEN)
        twice = self.records(lines(*self.GIVEN, *self.GIVEN))
        self.assertEqual(next(twice.problems()), "8 tasks have %s1, 2" % HIDDEN)

    def test_samples_without_a_line_are_counted(self):
        self.assertEqual(list(self.records(lines(*self.GIVEN)).problems()), ["4 samples have no result, of task: 1, 2"])
        given = [line(index, sample=1, samples=2) for index in range(7)] + [line(0, sample=2, samples=2)]
        self.assertEqual(list(self.records(lines(*given)).problems()), ["6 samples have no result, of task: 2, 3, 4, 5, 6, ..."])
        self.assertEqual(list(self.records(lines(*given, *(line(index, sample=2, samples=2) for index in range(1, 7)))).problems()), [])

    def test_rows_titles_and_names_show_cell_and_sample(self):
        printed, warnings, status = self.report(lines(*self.GIVEN))
        self.assertEqual((warnings, status), ("clinvk: warning: 4 samples have no result, of task: 1, 2\n", 0))
        self.assertIn("\n1    claude       OK         1.00s      [b] 1/3 case\n1.2  claude       OK         1.00s      [b] 2/3 case\n"
                      "1    claude       OK         1.00s      [a] 1/3 case\n", printed)
        paths = {option: self.path(option) for option in ("junit", "markdown", "html")}
        self.report(lines(*self.GIVEN), options=[word for option, path in paths.items() for word in ("--" + option, path)])
        for option, text in (("junit", 'name="2.2 [a] 2/3"'), ("markdown", "| 2.2 | OK | claude | 1.00s |  |  | \\[a\\] 2/3 |"), ("html", '"[a] 2/3 case"')):
            with open(paths[option]) as file:
                self.assertIn(text, file.read(), option)

    def test_file_of_tasks_has_the_prompt_of_all_samples(self):
        path = self.file("tasks.json", [{"prompt": "label 0 in full", "name": "label 0"}, {"prompt": "p", "repeat": 3}])
        given = [line(0, sample=sample, samples=2) for sample in (1, 2)] + [line(1, sample=sample, samples=3, label="p") for sample in (1, 3)]
        records = self.records(lines(*given))
        records.find_tasks(clinvk.open_tasks(path, clinvk.TaskPolicy(), self.warnings.append))
        self.assertEqual([record.prompt for record in records], ["label 0 in full"] * 2 + ["p"] * 2)
        self.assertEqual(list(records.unanswered), [{"index": 1, "sample": 2, "label": "p"}])

    def test_samples_of_the_file_of_tasks_without_a_line_are_named_in_each_form(self):
        results, path = self.path("results.jsonl"), self.file("tasks.jsonl", b'{"backend": "echo", "prompt": "p", "repeat": 3}\n')
        self.clinvk("parallel", "--results", results, "--file", path)
        with open(results, "rb") as file:
            content = b"".join(one for one in file if json.loads(one).get("sample", 1) != 2)
        with open(path, "ab") as file:
            file.write(b'{"backend": "echo", "prompt": "new"}\n')
        files = {option: self.path(option) for option in ("junit", "markdown")}
        options = ["--tasks", path, *(word for option, name in files.items() for word in ("--" + option, name))]
        printed, warnings, _ = self.report(content, options=options)
        self.assertEqual(warnings, "clinvk: warning: 2 tasks have no result: 2, 1.2\n")
        self.assertIn("\nNo result:\n   2 new\n 1.2 p\n\n", printed)
        self.assertEqual(json.loads(self.report(content, options=["--tasks", path, "--json"])[0])["unanswered"],
                         [{"index": 1, "label": "new"}, {"index": 0, "sample": 2, "label": "p"}])
        for option, text in (("junit", '<testcase name="1.2" '), ("markdown", "| 1.2 | NO RESULT |")):
            with open(files[option]) as file:
                self.assertIn(text, file.read(), option)


class ChangedInput(ReportCase):
    """Lines of runs between which tasks were added, removed or put into another order."""

    def shown(self, records):
        return [(record.result.index, record.result.output, record.is_flaky) for record in records]

    def run_twice(self, first, second, *options):
        """Run two inputs into one results file; the paths of the results and of the tasks of the second."""
        results, tasks = self.path("results"), self.path("tasks")
        for rows in (first, second):
            self.file("rows.csv", "id,text\n" + "".join(rows))
            words = ("parallel", "-b", "echo", "-q", "--csv", self.path("rows.csv"), "--prompt", "say {text}", *options)
            self.assertEqual(self.clinvk(*words, "--results", results, "--resume").returncode, 0)
        with open(tasks, "wb") as file:
            file.write(self.clinvk(*words, "--emit-tasks").stdout)
        return results, tasks

    def test_lines_with_ids_are_told_apart(self):
        results, _ = self.run_twice(["1,one\n", "2,two\n"], ["0,zero\n", "1,one\n", "2,two\n"], "--id", "{id}")
        report = self.clinvk("report", "--csv", ".task_id,.output", results)
        self.assertEqual((report.stderr, sorted(re.findall(r"\d\W+\w+", report.stdout.decode()))), (b"", ['0,"zero', '1,"one', '2,"two']))

    def test_file_of_tasks_finds_the_lines_by_their_keys(self):
        for options in ((), ("--id", "{id}")):
            results, tasks = self.run_twice(["1,one\n", "2,two\n", "3,three\n", "4,four\n"], ["4,four\n", "3,three\n", "5,five\n", "2,two\n"], *options)
            report = self.clinvk("report", "--csv", ".output", "--tasks", tasks, "--fail-on", "any", results)
            self.assertEqual((report.returncode, report.stderr), (0, b""))
            self.assertEqual(sorted(re.findall(r"\w+", report.stdout.decode())[1:]), ["five", "four", "one", "three", "two"])
            os.unlink(results)

    def test_edited_task_has_its_last_line_and_is_not_flaky(self):
        path = self.file("tasks.json", [{"prompt": "new"}, {"prompt": "other"}])
        task = clinvk.Task("echo", "new")
        key = clinvk.job_key(clinvk.Job(0, task))
        given = lines(line(0, "failed", key="old", output="old", label="old"), line(0, key=key, output="new", label="new"), line(1, key="k", output="other", label="other"))
        paths = [self.file("results", given)]
        records = clinvk.Records(paths, self.warnings.append, True)
        records.find_tasks(clinvk.open_tasks(path, clinvk.TaskPolicy({}, {}, {}), self.warnings.append))
        self.assertEqual(self.shown(records), [(0, "new", False), (1, "other", False)])
        self.assertEqual((len(records), len(list(records.captures())), [record.result.output for record in records.replaced()]), (2, 2, ["old"]))
        self.assertEqual(self.shown(clinvk.Records(paths, self.warnings.append)), [(0, "new", True), (1, "other", False)])

    def test_failure_from_before_a_task_was_moved_is_replaced_by_its_result(self):
        path = self.file("tasks.json", [{"prompt": "new"}, {"prompt": "first"}])
        keys = [clinvk.job_key(clinvk.Job(0, clinvk.Task("echo", prompt))) for prompt in ("new", "first")]
        given = lines(line(0, "failed", key=keys[1]), line(0, key=keys[0]), line(1, key=keys[1]))
        records = clinvk.Records([self.file("results", given)], self.warnings.append, True)
        records.find_tasks(clinvk.open_tasks(path, clinvk.TaskPolicy({"backend": "echo"}, {}, {}), self.warnings.append))
        self.assertEqual([(record.result.index, record.result.status) for record in records], [(0, "ok"), (1, "ok")])

    def test_task_that_was_moved_has_the_last_of_its_lines(self):
        path = self.file("tasks.json", [{"prompt": "one", "id": "one"}])
        key = clinvk.job_key(clinvk.Job(0, clinvk.Task("echo", "one")))
        for fields in ({"key": key}, {"key": "of other options", "task_id": "one"}):
            for places in ((3, 1), (3, 0), (0, 3), (0, 3, 1)):
                given = [line(place, "failed", **fields) for place in places[:-1]]
                paths = [self.file("results", lines(*given, line(places[-1], **fields)))]
                records = clinvk.Records(paths, self.warnings.append, True)
                records.find_tasks(clinvk.open_tasks(path, clinvk.TaskPolicy({"backend": "echo"}, {}, {}), self.warnings.append))
                self.assertEqual([(record.result.index, record.result.status, record.prompt) for record in records], [(places[-1], "ok", "one")],
                                 (fields, places))

    def test_all_cells_of_a_task_stay_where_lines_have_no_keys(self):
        path = self.file("tasks.json", [{"prompt": "one", "id": "one"}])
        given = [line(0, status, key=None, task_id="one", label="one", cell={"model": status}, cell_number=number)
                 for number, status in enumerate(("failed", "ok"), 1)]
        records = clinvk.Records([self.file("results", lines(*given))], self.warnings.append, True)
        records.find_tasks(clinvk.open_tasks(path, clinvk.TaskPolicy(), self.warnings.append))
        self.assertEqual([record.result.status for record in records], ["failed", "ok"])

    def test_equal_tasks_have_as_many_answers_as_there_are_ok_lines(self):
        path = self.file("tasks.json", [{"prompt": "one"}] * 2)
        key = clinvk.job_key(clinvk.Job(0, clinvk.Task("echo", "one")))
        for statuses, expected in (((0, "failed", 1, "ok", 1, "ok"), ["ok", "ok"]), ((0, "failed", 1, "ok", 1, "failed"), ["failed", "ok"]),
                                   ((0, "ok", 1, "ok", 2, "failed"), ["ok", "ok"]), ((0, "failed", 1, "failed", 1, "ok"), ["failed", "ok"]),
                                   ((0, "failed", 1, "failed", 0, "ok", 1, "ok"), ["ok", "ok"]), ((1, "ok", 0, "canceled", 1, "ok"), ["ok", "ok"])):
            given = lines(*[line(index, status, key=key) for index, status in zip(statuses[::2], statuses[1::2])])
            for with_tasks in (True, False):
                records = clinvk.Records([self.file("results", given)], self.warnings.append, with_tasks)
                if with_tasks:
                    records.find_tasks(clinvk.open_tasks(path, clinvk.TaskPolicy({"backend": "echo"}, {}, {}), self.warnings.append))
                if with_tasks or 2 not in statuses:
                    self.assertEqual((sorted(record.result.status for record in records), list(records.problems())), (expected, []), statuses)
        sampled = [line(index, status, key="k%d" % sample, sample=sample, samples=2) for index, sample, status in (
            (0, 1, "ok"), (1, 1, "ok"), (0, 2, "failed"), (1, 2, "ok"), (1, 2, "failed"))]
        records = self.records(lines(*sampled))
        self.assertEqual([(record.result.index, record.result.status) for record in records], [(0, "ok"), (0, "ok"), (1, "ok"), (1, "failed")])
        self.assertEqual(list(records.problems()), [])

    def test_hidden_ok_line_of_another_key_is_named(self):
        given = lines(line(0, key="a"), line(0, "failed", key="b"), line(1, key="c"), line(1, key="c"), line(2, "failed", key="d"), line(2, key="e"))
        self.assertEqual(list(self.records(given).problems()), ["2 tasks have %s1, 2" % HIDDEN])

    def test_lines_without_ids_and_keys_join_the_others(self):
        given = [line(0, key="", output="1"), line(0, key="a", output="2"), line(0, key="", output="3")]
        for by_key in (False, True):
            records = clinvk.Records([self.file("results", lines(*given))], self.warnings.append, by_key)
            self.assertEqual([record.result.output for record in records], ["3"])
        given = [line(0, output="1"), line(0, task_id="x", output="2"), line(0, output="3"), line(0, task_id="y", output="4"), line(0, task_id="x", output="5")]
        self.assertEqual([record.result.output for record in self.records(lines(*given))], ["5", "4"])


class Reading(ReportCase):
    def test_records_are_in_the_order_of_the_tasks(self):
        order = random.Random(20).sample(range(50), 50)
        records = self.records(lines(*map(line, order)))
        self.assertEqual([record.result.index for record in records], list(range(50)))
        self.assertEqual([record.result.output for record in records], ["answer %d" % index for index in range(50)])
        self.assertEqual((len(records), list(records.problems())), (50, []))

    def test_the_last_line_of_a_task_counts_and_later_files_come_last(self):
        first = lines(line(0, "failed"), line(1), line(0, output="again"), line(2))
        second = lines(line(2, "canceled"), line(1, output="other file"))
        found = [(record.result.status, record.result.output) for record in self.records(first, second)]
        self.assertEqual(found, [("ok", "again"), ("ok", "other file"), ("canceled", "answer 2")])
        self.assertEqual(next(iter(self.records(second, first))).result.output, "again")

    def test_tasks_with_several_results_and_missing_ones_are_numbered_as_in_the_table(self):
        problems = list(self.records(lines(line(0), line(0), line(4), line(9)), lines(line(4, "failed"))).problems())
        self.assertEqual(problems, ["2 tasks have %s1, 5" % HIDDEN,
                                    "1 task has results in several files; the last counts: 5",
                                    "7 tasks have no result: 2, 3, 4, 6, 7, ..."])
        self.assertEqual(list(self.records(lines(line(0, "failed"), line(0))).problems()), [])
        self.assertEqual(list(self.records(lines(line(1))).problems()), ["1 task has no result: 1"])

    def test_gaps_are_ranges(self):
        self.assertEqual(self.records(lines(line(7), line(2), line(3))).gaps, [(0, 1), (4, 6)])

    def test_lines_of_jsonl_have_neither_key_nor_label(self):
        record, = self.records(lines(line(0, key=None, label=None, run=None, task_id="my id")))
        self.assertEqual((record.result.task.id, clinvk.task_label(record.result.task)), ("my id", "my id"))

    def test_the_task_is_what_the_line_has_of_it(self):
        record, = self.records(lines(line(0, task_id="i", task_name="n", tags=["a", "b"], meta={"k": [1]})))
        self.assertEqual(record.result.task, clinvk.Task("claude", "label 0", id="i", name="n", tags=("a", "b"), meta={"k": [1]}, sample=clinvk.Sample(0)))

    def test_the_duration_counts_where_the_times_contradict_it(self):
        for fields, start in (({"end_time": clinvk.utc(START - 3600)}, START), ({"end_time": clinvk.utc(START + 3600)}, START),
                              ({"start_time": None}, START - 3.5), ({"end_time": None}, START), ({"start_time": None, "end_time": None}, 0.0)):
            given = line(0, **{"end_time": clinvk.utc(START), "duration_seconds": 3.5, **fields})
            result, = (record.result for record in self.records(lines(given)))
            self.assertEqual((result.start_time, result.duration_seconds), (start, 3.5), fields)

    def test_large_answers_stay_in_the_file(self):
        answer = "x" * (clinvk.LONG_LINE + 400000) + "\u5ba1\\\"" * 3
        records = self.records(lines(line(0, output=answer)))
        record, = records
        self.assertLess(sum(len(value) for value in record.fields.values() if isinstance(value, str)), clinvk.LONG_LINE + 100000)
        self.assertEqual(record.result.output, answer)

    def test_a_damaged_line_is_an_error_with_its_place(self):
        for damaged, reason in ((b"{", "not a result"), (b"[]", "expected an object"), (b'{"status": "ok"}', "index is missing"),
                                (b'{"index": 1}', "status is missing"), (b'{"index": -1, "status": "ok"}', "index: expected a whole number"),
                                (b'{"index": 10000000, "status": "ok"}', "index: expected a whole number below 10000000, got 10000000"),
                                (b'{"index": 0, "status": "good"}', 'status: unknown status "good"'),
                                (b'{"index": 0, "status": "ok", "meta": ' + b"[" * 9999 + b"]" * 9999 + b"}", "not a result")):
            with self.subTest(damaged=damaged[:40]):
                with self.assertRaises(clinvk.UserError) as caught:
                    self.records(lines(line(0), b"", damaged, line(1)))
                self.assertIn("results-0.jsonl:3: not a result: ", str(caught.exception))
                self.assertIn(reason, str(caught.exception))
                self.assertIn("; correct or remove this line", str(caught.exception))

    def test_an_incomplete_last_line_is_left_out_with_a_warning(self):
        records = self.records(lines(line(0)) + line(1)[:-1])
        self.assertEqual([record.result.index for record in records], [0])
        self.assertEqual(self.warnings, [self.path("results-0.jsonl") + ":2: the last line is incomplete and is left out"])
        self.assertEqual(len(self.records(lines(line(0)) + line(1))), 2)

    def test_a_file_that_changes_meanwhile_is_an_error(self):
        records = self.records(lines(line(0), line(1)))
        reading = iter(records)
        next(reading)
        self.file("results-0.jsonl", b"")
        with self.assertRaisesRegex(clinvk.UserError, "results-0.jsonl: it was changed while it was read"):
            list(reading)


class Attempts(unittest.TestCase):
    def attempts(self, status="ok", **fields):
        result = clinvk.Result(0, "claude", status, 0, start_time=START, end_time=START + 2, **fields)
        return [(round(one.start - START, 3), round(one.end - START, 3), one.error_kind or one.status) for one in clinvk.attempts_of(result)]

    def test_a_task_has_one_attempt_or_those_in_tries(self):
        self.assertEqual(self.attempts(), [(0.0, 2.0, "ok")])
        self.assertEqual(self.attempts("timeout"), [(0.0, 2.0, "timeout")])
        tries = attempt(-20, 1.0, error_kind="network"), attempt(-10, 2.0, error_kind="rate_limit"), attempt(0, 2.0)
        self.assertEqual(self.attempts(tries=tries, attempts=3), [(-20.0, -19.0, "network"), (-10.0, -8.0, "rate_limit"), (0.0, 2.0, "failed")])

    def test_a_task_that_never_started_has_none(self):
        self.assertEqual(self.attempts("canceled", attempts=0), [])

    def test_tries_that_are_no_tries_are_left_out(self):
        self.assertEqual(self.attempts(tries=({"start_time": 1}, {}, {"start_time": clinvk.utc(START), "duration_seconds": -1})), [(0, 2.0, "ok")])


class Timelines(ReportCase):
    def timeline(self, *given, columns=25):
        statistics = self.statistics(*given)
        return clinvk.timeline_text(statistics.spans, statistics.runs, columns).splitlines()

    def test_lanes_are_filled_from_the_first(self):
        shown = self.timeline(line(0, start=0, seconds=10), line(1, start=0, seconds=5), line(2, "failed", start=5, seconds=5),
                              line(3, start=10, seconds=10))
        self.assertEqual(shown[0], "From %s: 20s, 1s a column" % clinvk.utc(START))
        self.assertEqual(shown[1:3], ["   1 " + "#" * 20, "   2 " + "#" * 5 + "x" * 6])

    def test_attempts_and_waits_have_their_marks(self):
        tries = [attempt(0, 2, error_kind="rate_limit"), attempt(10, 5, error_kind="network"), attempt(16, 4)]
        shown = self.timeline(line(0, start=16, seconds=4, attempts=3, tries=tries))
        self.assertEqual(shown[1], "   1 rrr.......rrrrrr####")

    def test_another_task_runs_in_the_lane_of_a_task_that_waits(self):
        tries = [attempt(0, 2, error_kind="rate_limit"), attempt(18, 2)]
        shown = self.timeline(line(0, start=18, seconds=2, attempts=2, tries=tries), line(1, start=5, seconds=5))
        self.assertEqual(shown[1], "   1 rrr..######.......##")
        self.assertEqual(shown[2:], ["# ok   r tried again   .", "waiting for a limit"])

    def test_the_starts_of_several_runs_are_above(self):
        runs = {"run": clinvk.utc(START + 10)}
        self.assertEqual(self.timeline(line(0, seconds=6), line(1, start=10, seconds=10, **runs))[1], "     |         |")
        self.assertEqual(self.timeline(line(0, seconds=20))[1][:6], "   1 #")

    def test_a_long_pause_is_shortened(self):
        later = {"run": clinvk.utc(START + 100000)}
        shown = self.timeline(line(0, seconds=10), line(1, start=100000, seconds=10, **later), line(2, start=5, seconds=6), columns=105)
        self.assertEqual(shown[0], "From %s: 27h46m50s, 0.216s a column" % clinvk.utc(START))
        self.assertEqual(shown[1:4], [
            "     |" + " " * 52 + "|", "   1 " + "#" * 47 + "   ~~~" + "#" * 47, "   2 " + " " * 23 + "#" * 28 + "~~~"])
        self.assertEqual(shown[-1], "# ok   ~ a long pause, shortened   | a run begins")
        for seconds in (1.0, 1000.0):  # as long as the tasks
            shown = self.timeline(line(0, seconds=seconds), line(1, start=1.2 * seconds, seconds=seconds))
            self.assertNotIn("~", "".join(shown))

    def test_many_pauses_leave_room_for_the_tasks(self):
        shown = self.timeline(*[line(index, start=index * 10000) for index in range(10)], columns=105)
        self.assertEqual(shown[1].count("~") + shown[1].count("#"), 100)
        self.assertGreater(shown[1].count("#"), 60)

    def test_attempts_of_replaced_lines_are_shown_once(self):
        first = line(0, "failed", seconds=10)
        path = self.file("copy.jsonl", lines(first))
        paths = [self.file("both.jsonl", lines(first, line(0, start=10, seconds=10))), path, self.path("both.jsonl")]
        statistics = clinvk.Statistics(clinvk.Records(paths, self.warnings.append), table=clinvk.Table())
        self.assertEqual(statistics.totals.total, 1)
        self.assertEqual(clinvk.timeline_text(statistics.spans, statistics.runs, 25).splitlines()[1:], ["   1 xxxxxxxxxx" + "x#########", "# ok   x failed"])
        self.assertEqual(statistics.totals.counts["failed"], 0)

    def test_lanes_beyond_twenty_are_counted(self):
        shown = self.timeline(*[line(index) for index in range(33)])
        self.assertEqual([shown[20][:5], shown[21]], ["  20 ", "     and 13 more"])

    @only_in_full_runs
    def test_each_lane_has_one_task_at_a_time_and_there_are_no_more_lanes_than_needed(self):
        chance = random.Random(30)
        for _ in range(20):
            given = [(chance.randrange(100), chance.randrange(1, 30)) for _ in range(60)]
            spans = self.statistics(*[line(index, start=start, seconds=seconds) for index, (start, seconds) in enumerate(sorted(given))]).spans
            ends, lanes = {}, 0
            for (start, seconds), lane in zip(sorted(given), clinvk.lanes_of(spans)):
                self.assertLessEqual(ends.get(lane, 0), start)
                ends[lane], lanes = start + seconds, max(lanes, lane + 1)
            most = max(sum(start <= moment < start + seconds for start, seconds in given) for moment in range(130))
            self.assertEqual(lanes, most)

    def test_it_fits_the_columns(self):
        for columns in (60, 80, 133):
            shown = self.timeline(line(0, seconds=3600.0), line(1, start=9999.0), columns=columns)
            self.assertEqual(max(map(len, shown[1:2])), columns)
            self.assertLessEqual(max(map(len, shown)), columns)

    def test_lines_without_times_have_no_timeline(self):
        self.assertEqual(self.timeline(b'{"index": 0, "status": "ok"}'), [])


class Numbers(ReportCase):
    def test_percentiles_are_values_of_the_nearest_rank(self):
        chance = random.Random(40)
        for count in (1, 2, 3, 9, 10, 11, 19, 20, 21, 100, 101):
            values = [chance.randrange(1000) / 8 for _ in range(count)]
            number, total, *found = clinvk.percentiles_of({"seconds": values})["seconds"].values()
            self.assertEqual((number, total), (count, sum(values)))
            for percent, value in zip((50, 90, 95, 100), found):
                self.assertGreaterEqual(sum(one <= value for one in values) * 100, percent * count)
                self.assertLess(sum(one < value for one in values) * 100, percent * count)

    def test_measures_have_what_is_known_of_tasks_that_ran(self):
        statistics = self.statistics(line(0, seconds=2.0, usage={"total_tokens": 1200}, cost_usd=0.5), line(1, seconds=4.0),
                                 line(2, "canceled", attempts=0))
        self.assertEqual(clinvk.percentiles_text(clinvk.percentiles_of(statistics.measures), 80), "\n"
                         "         TASKS      SUM      P50      P90      P95      MAX\n"
                         "SECONDS      2    6.00s    2.00s    4.00s    4.00s    4.00s\n"
                         "TOKENS       1    1,200    1,200    1,200    1,200    1,200\n"
                         "COST         1  $0.5000  $0.5000  $0.5000  $0.5000  $0.5000\n")

    def test_groups_are_totals_by_field_the_largest_first(self):
        statistics = self.statistics(line(0, backend="gemini", model="\u5ba1\u67e5"), line(1, model="m\x1b"), line(2, "timeout", error_kind="timeout", model="m\x1b"))
        text = "".join(clinvk.groups_text(field, groups, 80) for field, groups in statistics.groups.items())
        self.assertEqual(text, "\n"
                         "BACKEND  TASKS  OK  FAILED    PASS  MEDIAN  TOKENS  COST\n"
                         "claude       2   1       1  100.0%   1.00s       -     -\n"
                         "gemini       1   1       0  100.0%   1.00s       -     -\n\n"
                         "MODEL  TASKS  OK  FAILED    PASS  MEDIAN  TOKENS  COST\n"
                         "m^[        2   1       1  100.0%   1.00s       -     -\n"
                         "\u5ba1\u67e5       1   1       0  100.0%   1.00s       -     -\n\n"
                         "ERROR KIND  TASKS  OK  FAILED  PASS  MEDIAN  TOKENS  COST\n"
                         "timeout         1   0       1     -   1.00s       -     -\n")

    def test_the_pass_rate_is_of_the_tasks_that_were_judged(self):
        ends = (("ok", ""), ("failed", "check"), ("failed", "schema"), ("failed", "check_error"), ("timeout", "timeout"), ("canceled", "canceled"))
        content = lines(*(line(index, status, model="m", error_kind=kind, seconds=index + 1.0, attempts=int(kind != "canceled"), label="a" if index < 2 else "b")
                          for index, (status, kind) in enumerate(ends)))
        groups = json.loads(self.report(content, options=["--json", "--by", "model", "--by", "label"])[0])["groups"]
        names = "judged", "pass_rate", "median_seconds"
        self.assertEqual({name: [group[one] for one in names] for of in groups.values() for name, group in of.items()},
                         {"m": [3, 0.333333, 3.0], "a": [2, 0.5, 1.0], "b": [1, 0.0, 4.0]})
        printed = self.report(content, options=["--by", "label"])[0]
        self.assertIn("\nLABEL  TASKS  OK  FAILED   PASS  MEDIAN  TOKENS  COST\nb          4   0       3   0.0%   4.00s       -     -\n"
                      "a          2   1       1  50.0%   1.00s       -     -\n", printed)

    def test_groups_are_bounded(self):
        groups = self.statistics(*[line(index, model="m%d" % index) for index in range(clinvk.MAX_GROUPS + 5)]).groups["model"]
        self.assertEqual((len(groups), groups[clinvk.OTHER_GROUPS].total), (clinvk.MAX_GROUPS + 1, 5))

    def test_long_names_are_cut_to_the_columns(self):
        text = clinvk.aligned([["NAME", "TASKS"], ["x" * 100, "1"], ["\u5ba1" * 50, "2"]], 40)
        self.assertEqual(text.splitlines(), ["NAME" + " " * 29 + "  TASKS", "x" * 30 + "...      1", "\u5ba1" * 15 + "...      2"])

    def test_the_time_of_the_totals_is_from_the_first_start_to_the_last_end(self):
        totals = self.statistics(line(0, start=5, seconds=2), line(1, start=1, seconds=1, tries=[attempt(-3, 1), attempt(1, 1)])).totals
        self.assertEqual((totals.fields()["start_time"], totals.fields()["end_time"], totals.duration_seconds),
                         (clinvk.utc(START - 3), clinvk.utc(START + 7), 10.0))


class Forms(ReportCase):
    def rows(self, content, *options):
        """The rows of the CSV."""
        printed, errors, status = self.report(content, options=["--csv", *options])
        self.assertEqual((errors, status), ("", 0))
        return list(csv.reader(io.StringIO(printed, newline="")))

    def test_json_is_one_object_with_the_results_in_order(self):
        given = line(1, "failed", cost_usd=0.25, error_kind="backend", custom={"a": [1]}), line(0, usage={"total_tokens": 5}), line(3), line(3)
        printed, _, status = self.report(lines(*given), options=["--json"])
        value = json.loads(printed)
        self.assertEqual(value.pop("results"), [json.loads(given[place]) for place in (1, 0, 3)])
        self.assertEqual((status, value), (0, {
            "total_tasks": 3, "completed": 2, "failed": 1, "canceled": 0, "skipped": 0, "total_duration_seconds": 1.0,
            "start_time": clinvk.utc(START), "end_time": clinvk.utc(START + 1), "usage": {"total_tokens": 5}, "cost_usd": 0.25, "cost_unknown": 2,
            "percentiles": {"seconds": {"tasks": 3, "sum": 3.0, "p50": 1.0, "p90": 1.0, "p95": 1.0, "max": 1.0},
                            "tokens": {"tasks": 1, "sum": 5.0, "p50": 5.0, "p90": 5.0, "p95": 5.0, "max": 5.0},
                            "cost_usd": {"tasks": 1, "sum": 0.25, "p50": 0.25, "p90": 0.25, "p95": 0.25, "max": 0.25}},
            "groups": {"backend": {"claude": dict(self.GROUP, total_tasks=3, completed=2, failed=1, judged=2, pass_rate=1.0, task_seconds=3.0,
                                                  usage={"total_tokens": 5}, cost_usd=0.25, cost_unknown=2)},
                       "model": {"": dict(self.GROUP, total_tasks=3, completed=2, failed=1, judged=2, pass_rate=1.0, task_seconds=3.0,
                                          usage={"total_tokens": 5}, cost_usd=0.25, cost_unknown=2)},
                       "error_kind": {"backend": dict(self.GROUP, failed=1, cost_usd=0.25)}},
            "duplicates": {"ok": [3], "files": []}, "gaps": [[2, 2]], "flaky": [], "unanswered": []}))

    GROUP = {"total_tasks": 1, "completed": 0, "failed": 0, "canceled": 0, "skipped": 0, "judged": 0, "pass_rate": None,
             "median_seconds": 1.0, "task_seconds": 1.0}

    def test_jsonl_has_the_lines_that_count_as_they_are(self):
        given = line(1, "failed"), line(0, output="\u5ba1\x00"), line(1, custom=1)
        printed, _, status = self.report(lines(*given), options=["--jsonl"])
        self.assertEqual((printed.encode(), status), (lines(given[1], given[2]), 0))
        again = self.report(printed.encode(), options=["--jsonl"])
        self.assertEqual(again, (printed, "", 0))

    def test_csv_has_a_choice_of_columns_or_those_that_are_asked_for(self):
        content = lines(line(1, data={"label": "b", "n": [1, 2]}, tags=["x"]), line(0, usage={"total_tokens": 7}, cost_usd=0.5, output='a "b",\nc'))
        self.assertEqual(self.rows(content)[1], ["0", "label 0", "", "claude", "", "ok", "", "", "1", "1.0", "7", "0.5", clinvk.utc(START), "", ""])
        self.assertEqual(self.rows(content)[0][-5:], ["usage.total_tokens", "cost_usd", "start_time", "sample", "cell"])
        given = [line(0, sample=sample, samples=2, cell={"model": "b"}) for sample in (1, 2)]
        self.assertEqual([row[-2:] for row in self.rows(lines(*given))[1:]], [["1", '{"model":"b"}'], ["2", '{"model":"b"}']])
        self.assertEqual(self.rows(content, ".data.label,.cost_usd, .tags[0],.data.n,.output"), [
            ["data.label", "cost_usd", "tags[0]", "data.n", "output"], ["", "0.5", "", "", 'a "b",\nc'], ["b", "", "x", "[1,2]", "answer 1"]])

    def test_csv_warns_of_names_that_no_result_has(self):
        content = lines(line(0, data={"label": "b", "score": None}, tags=["x"], meta={"a": {"b": 1}}), line(1, "failed", more=1))
        for column, problem in ((".data.labl", '"labl" (did you mean "label"?)'), (".dta.label", '"dta" (did you mean "data"?)'),
                                (".meta.a.c", '"c"'), (".output.text", '"text"'), (".data[0]", "0"), (".tags.x", '"x"'), (".mor", '"mor" (did you mean "more"?)')):
            printed, errors, status = self.report(content, options=["--csv", ".index,%s" % column])
            self.assertEqual((printed.splitlines()[1:], errors, status),
                             (["0,", "1,"], "clinvk: warning: --csv %s: no result has %s\n" % (column, problem), 0))
        # empty in all results, or in none
        self.rows(content, ".data.label,.data.score,.error,.usage.total_tokens,.cost_usd,.check.output,.tags[1],.more")

    def test_csv_cells_are_no_formulas(self):
        for text in ("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=", "-", "-1x",
                     "\uff1d1+1", "\uff0b1", "\uff0d1", "\uff20SUM(A1)"):
            self.assertEqual(clinvk.csv_cell(text), "'" + text)
        for text in ("-1", "+1.5", "-.5e-3", "1=1", "text", "", "'=1", " =1"):
            self.assertEqual(clinvk.csv_cell(text), text)
        self.assertEqual([clinvk.csv_cell(value) for value in (-1, 1.5, None, True, {"a": 1}, "a\0b")], ["-1", "1.5", "", "true", '{"a":1}', "a\ufffdb"])
        content = lines(line(0, output="=1+1", label="@x"))
        self.assertEqual(self.rows(content, ".output,.label"), [["output", "label"], ["'=1+1", "'@x"]])

    def test_csv_is_utf_8_whatever_the_texts_are(self):
        content = lines(line(0, output="a\ud800x\udcffb\U0001f389\0", tags=["\udcff"]))
        self.assertEqual(self.rows(content, ".output,.tags[0]"), [["output", "tags[0]"], ["a\ufffdx\ufffdb\U0001f389\ufffd", "\ufffd"]])

    def test_values_that_are_nested_too_deep_are_errors(self):
        for name, options in (("x", ["--csv", ".index,.x"]), ("cell", ["--by", "cell"]), ("cell", ["--json"])):
            content = lines(line(0).replace(b"{", b'{"%s":%s,' % (name.encode(), b"[" * 3000 + b"]" * 3000), 1))
            _, errors, status = self.report(content, options=options)
            self.assertRegex(errors, r"\Aclinvk: error: .*: nested too deep[^\n]*\n\Z")
            self.assertEqual(status, 2)

    @only_in_full_runs
    def test_csv_has_long_strings_whole(self):
        long = "y" * (clinvk.LONG_LINE + 400000)
        self.assertEqual(self.rows(lines(line(0, data={"a": [long]}, output=long)), ".data.a[0],.index"), [["data.a[0]", "index"], [long, "0"]])
        self.assertEqual(len(self.rows(lines(line(0, data={"a": [long]})), ".data")[1][0]), len(long) + len('{"a":[""]}'))

    def test_csv_columns_are_told_from_files(self):
        path = self.file("r.jsonl", lines(line(0)))
        for arguments in (["--csv", "./r.jsonl"], ["--csv", path], [path, "--csv"], ["--csv=", path], ["--csv=.index", "r.jsonl"], ["--csv", ".index", "--", path],
                          ["--csv", "--color", "never", path]):
            run = self.clinvk("report", *arguments)
            self.assertEqual((run.stdout.decode().splitlines()[1][:2].rstrip(","), run.stderr, run.returncode), ("0", b"", 0), arguments)
        run = self.clinvk("report", "--csv", ".a b", path)
        self.assertIn('argument --csv: expected a path such as .message.content or .choices[0].text, got ".a b"', run.stderr.decode())
        self.assertEqual(run.returncode, 2)

    def test_by_chooses_the_groups(self):
        content = lines(line(0, tags=["a", "b", "a"], cell="x=1"), line(1, tags=["b"], cell={"k": 1}), line(2))
        groups = json.loads(self.report(content, options=["--json", "--by", "tags", "--by", "cell"])[0])["groups"]
        self.assertEqual({field: {name: group["total_tasks"] for name, group in of.items()} for field, of in groups.items()},
                         {"tags": {"a": 1, "b": 2}, "cell": {"x=1": 1, "k=1": 1, "": 1}})
        printed = self.report(content, options=["--by", "tags"])[0]
        self.assertIn("\nTAGS  TASKS  OK  FAILED    PASS  MEDIAN  TOKENS  COST\nb         2 ", printed)
        self.assertNotIn("BACKEND  TASKS", printed)


    def test_quiet_prints_the_totals_and_the_distinct_errors(self):
        content = lines(line(0), *(line(index, "failed", error="no such model") for index in (1, 2)))
        page = self.path("page.html")
        self.assertEqual(self.report(content, options=["-q", "--fail-on", "any", "--html", page]),
                         ("Total: 3 tasks, 1 completed, 2 failed (1.00s)\n2 failed: no such model\n", "", 1))
        self.assertTrue(os.path.getsize(page))
        self.assertEqual(self.report(content, options=["--csv=.index", "--quiet"])[0], "index\n0\n1\n2\n")


class Tasks(ReportCase):
    def found(self, given, *results):
        """The indexes of the tasks that have no result, and the prompts of the others by the index in the line."""
        records = self.records(lines(*results))
        path = self.file("tasks.jsonl", lines(*(json.dumps(one).encode() for one in given)))
        records.find_tasks(clinvk.open_tasks(path, clinvk.TaskPolicy(), self.warnings.append))
        return ([task["index"] for task in records.unanswered],
                {record.result.index: record.result.task.prompt for record in records})

    def key(self, **fields):
        return clinvk.job_key(clinvk.Job(0, clinvk.Task("claude", **fields)))

    def test_a_task_has_the_line_with_its_key(self):
        given = [{"prompt": "one"}, {"prompt": "two"}, {"prompt": "three\nlines"}]
        self.assertEqual(self.found(given, line(0, key=self.key(prompt="three\nlines")), line(2, key=self.key(prompt="one"))),
                         ([1], {0: "three\nlines", 2: "one"}))

    def test_each_line_answers_one_task(self):
        given = [{"prompt": "same"}] * 4
        self.assertEqual(self.found(given, line(1, key=self.key(prompt="same")), line(7, key=self.key(prompt="same")))[0], [2, 3])
        self.assertEqual(self.found(given, *[line(index, key=self.key(prompt="same")) for index in range(4)])[0], [])

    def test_a_task_without_a_line_with_its_key_has_that_with_its_id_or_its_index_and_label(self):
        given = [{"prompt": "one", "id": "a"}, {"prompt": "two"}, {"prompt": "three"}, {"prompt": "four", "name": "n"}]
        self.assertEqual(self.found(given, line(5, task_id="a"), line(1, label="two"), line(2, label="other"), line(3, label="n")),
                         ([2], {5: "one", 1: "two", 2: "other", 3: "four"}))

    def test_lines_of_jsonl_have_their_index(self):
        self.assertEqual(self.found([{"prompt": "one"}, {"prompt": "two"}], line(1, key=None, label=None)), ([0], {1: "two"}))

    def lines_run(self, count):
        """How many lines of the program run while so many equal tasks find their results; one more has none."""
        records = self.records(lines(*[line(index + 5000, key=self.key(prompt="same")) for index in range(count)]))
        ran = []

        def trace(frame, event, _):
            if frame.f_code.co_filename == clinvk.main.__code__.co_filename:
                ran.append(event)
                return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            records.find_tasks(clinvk.JobList([clinvk.Task("claude", "same")] * (count + 1)))
        finally:
            sys.settrace(before)
        self.assertEqual([record.prompt for record in records], ["same"] * count)
        self.assertEqual([task["index"] for task in records.unanswered], [count])
        return len(ran)

    def test_many_equal_tasks_take_no_more_time_each(self):
        few, some, many = map(self.lines_run, (200, 400, 600))
        self.assertLess(many - some, 1.05 * (some - few))

    def test_the_results_of_a_shard_take_no_memory_for_other_tasks(self):
        last = clinvk.MAX_INDEX - 1
        records = self.records(lines(line(3, key="other"), line(last, key=self.key(prompt="one")), line(last, sample=2, key="")))
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        records.find_tasks(clinvk.JobList([clinvk.Task("claude", "one")]))
        self.assertLess(tracemalloc.get_traced_memory()[1], clinvk.MAX_INDEX)
        self.assertEqual([record.prompt for record in records], ["", "one", "one"])

    def test_tasks_without_a_result_are_named_in_each_form(self):
        results = self.path("results.jsonl")
        self.clinvk("parallel", "--results", results, input=tasks("say one", "say two"))
        path = self.file("tasks.jsonl", tasks("say one", "say new", "say two", "say newer"))
        run = self.clinvk("report", "--tasks", path, results)
        self.assertEqual((run.stderr.decode(), run.returncode), ("clinvk: warning: 2 tasks have no result: 2, 4\n", 0))
        self.assertIn("\nNo result:\n   2 say new\n   4 say newer\n\n", run.stdout.decode())
        self.assertEqual(json.loads(self.clinvk("report", "--json", "--tasks", path, results).stdout)["unanswered"],
                         [{"index": 1, "label": "say new"}, {"index": 3, "label": "say newer"}])
        self.assertIn(b"2 tasks have no result: 2, 4", self.clinvk("report", "--csv", "--tasks", path, results).stderr)

    def test_long_lists_are_cut_in_the_text_alone(self):
        path = self.file("tasks.jsonl", tasks(*["say %d" % index for index in range(60)]))
        given = lines(*[line(index, attempts=2, label="say %d" % index) for index in range(30)])
        printed = self.report(given, options=["--tasks", path])[0]
        self.assertIn("\nFlaky: 30 tasks, ok after a failure: %s, ...\n" % ", ".join(map(str, range(1, 21))), printed)
        self.assertIn("\n  31 say 30\n", printed)
        self.assertIn("\n  50 say 49\n  ...\n\n", printed)
        value = json.loads(self.report(given, options=["--tasks", path, "--json"])[0])
        self.assertEqual((len(value["flaky"]), len(value["unanswered"])), (30, 30))

    def test_a_file_of_tasks_must_be_regular_and_valid(self):
        results = self.file("results.jsonl", lines(line(0)))
        for content, message in ((None, "tasks.json: No such file or directory\n"), ("[1]", "tasks.json:1: "), ("id,text\n", "; the same command with --emit-tasks makes the file\n")):
            if content:
                self.file("tasks.json", content)
            run = self.clinvk("report", "--tasks", self.path("tasks.json"), results)
            self.assertEqual((run.stdout, run.returncode), (b"", 2))
            self.assertIn(message, run.stderr.decode())
        self.assertIn(b"--tasks -: expected a regular file", self.clinvk("report", "--tasks", "-", results).stderr)


class Failing(ReportCase):
    def statuses(self, *given, unanswered=0):
        """Whether --fail-on fails with any, flaky, 50%, 51%, 1%."""
        statistics = clinvk.Statistics(self.records(lines(*given)))
        statistics.records.unanswered = [{}] * unanswered
        return [int(statistics.is_failure(clinvk.parse_fail_on(what))) for what in ("any", "flaky", "50%", "51%", "1%")]

    def test_failures_and_canceled_tasks_fail(self):
        self.assertEqual(self.statuses(line(0), line(1)), [0, 0, 0, 0, 0])
        self.assertEqual(self.statuses(line(0), line(1, "skipped")), [0, 0, 0, 0, 0])
        for status in ("failed", "canceled", "timeout", "lost"):
            self.assertEqual(self.statuses(line(0), line(1, status)), [1, 1, 1, 0, 1])
        self.assertEqual(self.statuses(), [0, 0, 0, 0, 0])
        self.assertEqual([self.report(lines(line(0, "failed")), options=options)[2] for options in ([], ["--fail-on", "any"])], [0, 1])

    def test_a_share_is_exact(self):
        for percent in range(1, 101):
            statistics = self.statistics()
            statistics.totals.counts.update(failed=percent, completed=100 - percent)
            self.assertTrue(statistics.is_failure(clinvk.parse_fail_on("%d%%" % percent)), percent)
            if percent < 100:
                self.assertFalse(statistics.is_failure(clinvk.parse_fail_on("%d%%" % (percent + 1))), percent)

    def test_flaky_tasks_are_ok_after_a_failure(self):
        for given in ([line(0, attempts=2)], [line(0, "failed"), line(0)], [line(0, "timeout"), line(0, "canceled"), line(0)]):
            self.assertEqual(self.statuses(*given), [0, 1, 0, 0, 0])
            self.assertIn("\nFlaky: 1 task, ok after a failure: 1\n", self.report(lines(*given))[0])
        for given in ([line(0, "canceled"), line(0)], [line(0), line(0)]):
            self.assertEqual(self.statuses(*given), [0, 0, 0, 0, 0])
        self.assertEqual(self.statuses(line(0, "failed", attempts=3)), [1, 1, 1, 1, 1])
        self.assertEqual(json.loads(self.report(lines(line(0), line(1, attempts=2)), options=["--json"])[0])["flaky"], [1])

    def test_tasks_without_a_result_fail(self):
        self.assertEqual(self.statuses(line(0), line(1), unanswered=2), [1, 1, 1, 0, 1])
        path = self.file("tasks.jsonl", lines(*[json.dumps({"prompt": "label %d" % index}).encode() for index in range(4)]))
        for count, share, status in ((2, "50%", 1), (2, "51%", 0), (4, "any", 0)):
            self.assertEqual(self.report(lines(*map(line, range(count))), options=["--fail-on", share, "--tasks", path])[2], status)

    def test_other_words_are_refused(self):
        for what in ("none", "0%", "101%", "5", "1.5%", ""):
            with self.assertRaisesRegex(ValueError, "^expected any, flaky or a percentage such as 10%"):
                clinvk.parse_fail_on(what)
        _, errors, status = self.report(lines(line(0)), options=["--fail-on="])
        self.assertIn("argument --fail-on: expected any, flaky or a percentage such as 10%", errors)
        self.assertEqual(status, 2)


class Files(ReportCase):
    """--junit, --markdown and --with-output."""

    # What Jenkins and GitLab read: for each element its attributes, required ones first, and its children in their order.
    SCHEMA = {"testsuites": (["name", "tests", "failures", "errors", "time"], ["testsuite"]),
              "testsuite": (["name", "tests", "failures", "errors", "skipped", "time", "timestamp"], ["testcase"]),
              "testcase": (["name", "classname"], ["skipped", "error", "failure", "system-out"]),
              "skipped": (["message"], []), "error": (["message", "type"], []), "failure": (["message", "type"], []), "system-out": ([], [])}
    OPTIONAL = {"testcase": {"time"}}
    HOSTILE = "a\x00\x1b[1m\r\ud800\ufffe\udc80 <b>&amp;]]></system-out> | `x` [l](http://e) www.e.com @me **b** \u5ba1\n\n# h\n</pre><script>"

    def written(self, option, *given, options=(), path=None):
        """The file that a report writes."""
        path = path or self.path("written")
        _, errors, status = self.report(lines(*given), options=["--" + option, path, *options])
        self.assertEqual((errors if "--tasks" not in options else "", status), ("", 0))
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()

    def junit(self, *given, options=()):
        """The root of the XML, after a check of its structure, its counts and its names."""
        root = ElementTree.fromstring(self.written("junit", *given, options=options).encode())
        self.assertEqual(root.tag, "testsuites")
        for element in root.iter():
            required, children = self.SCHEMA[element.tag]
            self.assertEqual(set(required) - set(element.attrib), set(), element.tag)
            self.assertLessEqual(set(element.attrib) - set(required), self.OPTIONAL.get(element.tag, set()))
            places = [children.index(child.tag) for child in element]
            self.assertEqual(places, sorted(places), element.tag)
        cases = root.findall("./testsuite/testcase")
        for element in (root, root[0]):
            counts = {"tests": len(cases), **{name: sum(case.find(tag) is not None for case in cases) for name, tag in (
                ("failures", "failure"), ("errors", "error"), ("skipped", "skipped"))}}
            self.assertEqual({name: int(element.attrib.get(name, counts[name])) for name in counts}, counts)
            self.assertRegex(element.attrib["time"], r"^\d+\.\d{3}$")
        self.assertRegex(root[0].attrib["timestamp"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d$")
        self.assertEqual(len({(case.attrib["classname"], case.attrib["name"]) for case in cases}), len(cases))
        return root

    def test_junit_has_a_test_case_for_each_task(self):
        root = self.junit(line(2, "timeout", error="late\nvery", error_kind="timeout"), line(0, task_name="name"), line(1, "failed", error="e"),
                          line(3, "canceled", attempts=0, error="canceled before it started"), line(4, "lost"), line(5, "skipped"))
        cases = root.findall("./testsuite/testcase")
        self.assertEqual([(case.attrib["name"], [child.tag for child in case]) for case in cases], [
            ("1 name", []), ("2", ["failure"]), ("3", ["failure"]), ("4", ["skipped"]), ("5", ["failure"]), ("6", ["skipped"])])
        self.assertEqual((cases[2][0].attrib, cases[2][0].text), ({"message": "late", "type": "timeout"}, "late\nvery"))
        self.assertEqual((cases[0].attrib["classname"], cases[0].attrib["time"]), ("claude", "1.000"))

    def test_junit_has_tasks_without_a_result_as_errors(self):
        path = self.file("tasks.jsonl", lines(b'{"prompt": "label 0"}', b'{"prompt": "x", "id": "my id"}'))
        cases = self.junit(line(0), options=["--tasks", path]).findall("./testsuite/testcase")
        self.assertEqual([(case.attrib["name"], len(case)) for case in cases], [("1", 0), ("2 my id", 1)])

    @only_in_full_runs
    def test_a_task_without_a_result_has_the_title_that_its_result_would_have(self):
        given = [b'{"prompt": "p", "id": "a\\nb|c"}', b'{"prompt": "p", "id": "i", "name": "n\\nm"}', b'{"prompt": "p"}', b'{"prompt": "p", "id": "last"}']
        path = self.file("tasks.jsonl", lines(*given))
        titles = []
        for answered in ([line(0, task_id="a\nb|c", label="p"), line(1, task_id="i", task_name="n\nm", label="n"), line(2, label="p")], []):
            for options in (["--tasks", path], ["--tasks", path, "--with-output"]):
                cases = self.junit(line(3, task_id="last"), *answered, options=options).findall("./testsuite/testcase")
                titles.append(sorted(case.attrib["name"] for case in cases))
                text = self.written("markdown", line(3, task_id="last"), *answered, options=options)
                titles.append(sorted(" ".join(row) for row in re.findall(r"^\| (\d) \|.*\| ([^|]*?) ?\|  \|$", text, re.M)))
                titles[-1] = [title.strip() for title in titles[-1]]
        self.assertEqual(titles, [["1 a", "2 n", "3", "4 last"]] * 2 + [["1 a", "2 n", "3 p", "4 last"]] * 2
                         + [["1 a", "2 n", "3", "4 last"]] * 2 + [["1 a", "2 n", "3 p", "4 last"]] * 2)

    def test_junit_holds_any_text(self):
        root = self.junit(line(0, "failed", error=self.HOSTILE, output=self.HOSTILE, task_name=self.HOSTILE, backend='q"<>'), options=["--with-output"])
        case, = root.findall("./testsuite/testcase")
        text = case.find("system-out").text
        for part in ("a^@^[[1m^M<U+D800>\ufffd<80> <b>&amp;]]></system-out> |", "\u5ba1\n\n# h\n</pre><script>"):
            self.assertIn(part, text)
        self.assertTrue(case.attrib["name"].startswith("1 a^@^[[1m"))
        self.assertEqual(case.attrib["classname"], 'q"<>')

    @only_in_full_runs
    def test_junit_has_large_answers_whole(self):
        answer = "<" * (clinvk.LONG_LINE + 400000)
        self.assertEqual(self.junit(line(0, output=answer), options=["--with-output"]).find(".//system-out").text, answer)

    def test_prompts_and_answers_are_in_the_files_only_if_asked_for(self):
        path = self.file("tasks.jsonl", lines(b'{"prompt": "label 0 secretly"}'))
        given = line(0, label="label 0 secretly", output="answer secretly", key="k")
        for option in ("junit", "markdown"):
            self.assertNotIn("secretly", self.written(option, given, options=["--tasks", path]))
            text = self.written(option, given, options=["--tasks", path, "--with-output"])
            self.assertIn("label 0 secretly", text)
            self.assertIn("answer secretly", text)

    def test_markdown_is_a_table_with_failures_first(self):
        text = self.written("markdown", line(0, task_name="n|1", cost_usd=0.5, usage={"total_tokens": 1000}), line(1, "canceled"),
                            line(2, "failed", error="e", attempts=2), line(3, attempts=3), line(4, "lost"))
        self.assertEqual(text, "## clinvk\n\nTotal: 5 tasks, 2 completed, 2 failed, 1 canceled, 1,000 tokens, $0.5000, 4 tasks of unknown cost (1.00s)\n\n1 task flaky.\n\n"
                         "| # | Status | Backend | Time | Tokens | Cost | Task | Error |\n| --: | :-- | :-- | --: | --: | --: | :-- | :-- |\n"
                         "| 3 | FAILED (2) | claude | 1.00s |  |  |  | e |\n| 5 | LOST | claude | 1.00s |  |  |  |  |\n"
                         "| 2 | CANCELED | claude | 1.00s |  |  |  |  |\n"
                         "| 1 | OK | claude | 1.00s | 1,000 | $0.5000 | n\\|1 |  |\n| 4 | OK (3) | claude | 1.00s |  |  |  |  |\n")

    def test_markdown_shows_texts_as_they_are(self):
        text = self.HOSTILE.replace("\r", "")
        text = self.written("markdown", line(0, "failed", error=text, output=text, task_name=text), options=["--with-output"])
        row = next(row for row in text.splitlines() if row.startswith("| 1 "))
        self.assertEqual(len(re.findall(r"(?<!\\)\|", row)), 9)
        self.assertIn("&lt;b&gt;&amp;amp;\\]\\]&gt;", row)
        self.assertIn("\\`x\\` \\[l\\](http\\://e) www\\.e.com \\@me \\*\\*b\\*\\*", row)
        self.assertEqual(re.findall(r"</?[a-z]+>", text), ["<details>", "<summary>", "</summary>", "<pre>", "</pre>", "</details>"])
        self.assertRegex(text, r"</summary>\n\n<pre>")  # behind a blank line, so that a blank line does not end it

    def markdown(self, *given, with_output=False):
        return "".join(clinvk.markdown_texts(self.statistics(*given), with_output))

    def test_markdown_is_cut_at_the_end_of_a_row(self):
        given = [line(index, "failed" if index % 20 == 19 else "ok", task_name="n" * 100) for index in range(240)]
        with mock.patch.object(clinvk, "MAX_MARKDOWN", 1 << 14):
            text = self.markdown(*given)
        self.assertLessEqual(len(text.encode()), 1 << 14)
        self.assertGreater(len(text.encode()), (1 << 14) - 1000)
        rows = re.findall(r"^\| (\d+) \| (\w+) .* \|$", text, re.M)
        self.assertEqual([status for _, status in rows[:13]], ["FAILED"] * 12 + ["OK"])
        self.assertTrue(text.endswith(" |\n\n%d more tasks not shown: this file has at most 1 MiB.\n" % (240 - len(rows))))

    def test_markdown_with_large_answers_is_cut(self):
        text = self.markdown(*[line(index, output="\u5ba1" * 30000) for index in range(30)], with_output=True)
        self.assertLessEqual(len(text.encode()), clinvk.MAX_MARKDOWN)
        answers = text.count("<details>")
        self.assertGreater(answers, 10)
        self.assertEqual(text.count("\u5ba1" * clinvk.MAX_SHOWN + "\n..."), answers)
        self.assertTrue(text.endswith("\n%d more answers not shown: this file has at most 1 MiB.\n" % (30 - answers)))

    def test_files_are_replaced_whole_and_written_where_stdout_is_gone(self):
        results, path = self.file("results.jsonl", lines(line(0))), self.file("out.xml", "before")
        os.chmod(path, 0o644)
        reader, writer = os.pipe()
        os.close(reader)
        run = self.clinvk("report", "--junit", path, results, stdout=writer)
        os.close(writer)
        self.assertEqual((run.stderr, run.returncode), (b"", 141))
        with open(path) as file:
            self.assertIn("</testsuites>", file.read())
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        self.assertEqual(sorted(os.listdir(self.directory)), ["bin", "home", "out.xml", "results.jsonl", "tmp"])

    def test_files_are_those_to_which_links_lead(self):
        os.symlink(self.file("real", "before"), self.path("link"))
        self.assertIn("| 1 | OK |", self.written("markdown", line(0), path=self.path("link")))
        self.assertTrue(os.path.islink(self.path("link")))

    def test_a_file_is_not_that_to_which_stdout_goes(self):
        results, path = self.file("results.jsonl", lines(line(0))), self.path("out")
        os.symlink("/proc/self/fd/1" if os.path.isdir("/proc/self/fd") else path, self.path("link"))
        for name in (path, self.path("link")):
            with open(path, "wb") as file:
                run = self.clinvk("report", "--html", name, "--json", results, stdout=file)
            self.assertEqual((run.stderr.decode(), run.returncode),
                             ("clinvk: error: --html %s: it is another file of this command; give another name\n" % name, 2))

    def test_files_that_cannot_be_written_are_errors(self):
        results = self.file("results.jsonl", lines(line(0)))
        os.symlink(results, self.path("link"))
        for options, message, status in (
                (["--junit", self.path("no", "x")], "cannot write %s: No such file or directory" % self.path("no", "x"), 74),
                (["--junit", self.tmp], "--junit %s: expected a regular file, or a name that does not exist" % self.tmp, 2),
                (["--markdown", self.path("link")], "--markdown %s: it is another file of this command; give another name" % self.path("link"), 2),
                (["--junit", "x", "--markdown", "./x"], "--junit x: it is another file of this command; give another name", 2),
                (["--with-output"], "--with-output: there is no file for it; give --" + " or --".join(clinvk.REPORT_FILES), 2)):
            run = self.clinvk("report", *options, results)
            self.assertEqual((run.stdout, run.stderr.decode(), run.returncode), (b"", "clinvk: error: %s\n" % message, status))


class Command(ReportCase):
    def test_it_prints_the_table_the_totals_and_the_rest(self):
        printed, warnings, status = self.report(lines(line(1, "failed", error="no\x1b", error_kind="backend"), line(0, seconds=9.0)))
        self.assertEqual((warnings, status), ("", 0))
        self.assertTrue(printed.startswith("\nResults\n" + "=" * 60 + "\n#    BACKEND      STATUS     DURATION   TASK\n" + "-" * 60 + "\n"
                                           "1    claude       OK         9.00s      label 0\n"
                                           "2    claude       FAILED     1.00s      label 1\n     error: no^[\n" + "-" * 60 + "\n"
                                           "Total: 2 tasks, 1 completed, 1 failed (9.00s)\n\n"), printed)
        for part in ("\nSECONDS      2", "\nBACKEND  TASKS", "\nbackend         1 ", "\n\nFrom "):
            self.assertIn(part, printed)
        self.assertTrue(printed.endswith("\n# ok   x failed\n"))

    def test_it_reports_what_a_run_left(self):
        results = self.path("results.jsonl")
        run = self.clinvk("parallel", "--results", results, "--jsonl", input=tasks("say one", "say two", "say three"))
        self.assertEqual(run.returncode, 0, run.stderr)
        of_file = self.clinvk("report", results)
        self.assertEqual((of_file.stderr, of_file.returncode), (b"", 0))
        self.assertEqual([row.split()[5] for row in of_file.stdout.decode().splitlines()[5:8]], ["one", "two", "three"])
        for arguments in ((), ("-",)):
            of_pipe = self.clinvk("report", *arguments, input=run.stdout)
            self.assertEqual((of_pipe.stderr, of_pipe.returncode), (b"", 0))
            self.assertEqual(of_pipe.stdout.decode().split("Total: ")[1].split(" (")[0], "3 tasks, 3 completed, 0 failed")

    def test_it_warns_of_duplicates_and_gaps_and_succeeds(self):
        _, warnings, status = self.report(lines(line(0), line(0), line(2)))
        self.assertEqual((warnings.splitlines(), status), ([
            "clinvk: warning: 1 task has %s1" % HIDDEN, "clinvk: warning: 1 task has no result: 2"], 0))

    def test_files_that_cannot_be_read_are_errors(self):
        for arguments, message in (((self.path("none"),), "cannot read %s: No such file or directory" % self.path("none")),
                                   ((self.directory,), "cannot read %s: Is a directory" % self.directory),
                                   (("/dev/zero",), "/dev/zero: is a device; expected a regular file, a pipe or a terminal")):
            run = self.clinvk("report", *arguments)
            self.assertEqual((run.stdout, run.stderr.decode(), run.returncode), (b"", "clinvk: error: %s\n" % message, 2))
        run = self.clinvk("report", "-", input=lines(line(0), b"damaged", line(1)))
        self.assertTrue(run.stderr.startswith(b"clinvk: error: stdin:2: not a result: "), run.stderr)
        printed, errors, status = self.report(lines(line(0), b"damaged", line(1)))
        self.assertEqual((printed, status), ("", 2))
        self.assertIn("results-0.jsonl:2: not a result: ", errors)

    def test_the_output_of_json_is_refused_with_advice(self):
        run = self.clinvk("parallel", "--json", input=tasks("say one"))
        refused = self.clinvk("report", input=run.stdout)
        self.assertEqual((refused.stderr, refused.returncode),
                         (b"clinvk: error: stdin: is the output of --json; give that of --jsonl, or the file of --results\n", 2))

    def test_an_empty_file_has_no_tasks_which_is_a_warning(self):
        printed, warnings, status = self.report(b"")
        self.assertEqual((printed.splitlines()[-1], warnings, status), (
            "Total: 0 tasks, 0 completed, 0 failed (0.00s)", "clinvk: warning: there are no results in %s\n" % self.path("results-0.jsonl"), 0))
        self.assertEqual(self.clinvk("report", input=b"").stderr, b"clinvk: warning: there are no results in stdin\n")
        self.assertIn(b"error: stdin:1: not a result", self.clinvk("report", "-", input=b"damaged\n").stderr)

    def test_a_dash_is_no_file_to_write(self):
        for option in ("--html", "--junit", "--markdown"):
            run = self.clinvk("report", option, "-", self.file("results.jsonl", lines(line(0))), cwd=self.directory)
            self.assertEqual((run.returncode, run.stdout), (2, b""))
            self.assertIn(b'argument %s: expected the name of a file, got "-"' % option.encode(), run.stderr)
            self.assertFalse(os.path.exists(self.path("-")))

    def test_no_field_of_a_line_reaches_the_terminal_as_it_is(self):
        hostile = "a\x1b]0;t\x07\nb\r"
        names = ("backend", "model", "error", "error_kind", "task_id", "task_name", "label", "session_id", "output")
        content = lines(line(0, "failed", tags=[hostile], warnings=[hostile], cell=hostile, **dict.fromkeys(names, hostile)))
        for field in clinvk.GROUP_FIELDS:
            printed = self.report(content, options=["--by", field])[0]
            self.assertEqual(re.findall(r"[\x00-\x09\x0b-\x1f]", printed), [])
            self.assertEqual(re.findall("^b", printed, re.M), [])

    def test_color_is_that_of_the_table(self):
        self.assertIn("\x1b[32mOK", self.report(lines(line(0)), options=["--color", "always"])[0])
        self.assertNotIn("\x1b", self.report(lines(line(0)))[0])


# What people see who lack a kind of cone, in linear RGB (Machado, Oliveira and Fernandes, 2009); the first lack none.
SIGHTS = (((1, 0, 0), (0, 1, 0), (0, 0, 1)),
          ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
          ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
          ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)))


def linear(color):
    """The linear red, green and blue of a color of sRGB such as #1b1f24 or #fff."""
    digits = color[1:] if len(color) == 7 else "".join(digit * 2 for digit in color[1:])
    parts = [int(digits[at:at + 2], 16) / 255 for at in (0, 2, 4)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def luminance(red, green, blue):
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def lab(red, green, blue):
    """The place of a color in CIELAB, where a distance of 2 can just be seen."""
    x, y, z = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in (
        (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505, luminance(red, green, blue),
        (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.0888))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


class Page(ReportCase):
    def test_colors_differ_from_each_other_for_everybody_and_from_the_background(self):
        themes = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{([^}]*)\}", clinvk.PAGE_STYLE)]
        self.assertEqual(len(themes), 2)
        for colors in themes:
            back = luminance(*linear(colors["back"])) + 0.05
            kinds = {name: linear(colors[name]) for name in ("ok", "failed", "timeout", "lost", "other", "wait")}
            for name, color in kinds.items():
                contrast = (luminance(*color) + 0.05) / back
                self.assertGreaterEqual(max(contrast, 1 / contrast), 3.0, (name, colors[name]))  # WCAG 2, 1.4.11
            for sight in SIGHTS:
                seen = {name: lab(*(min(1.0, max(0.0, sum(map(operator.mul, row, color)))) for row in sight)) for name, color in kinds.items()}
                for one, other in itertools.combinations(seen, 2):
                    self.assertGreater(math.dist(seen[one], seen[other]), 20.0, (one, other, SIGHTS.index(sight)))

    """`--html`; tests/browser.py looks at the page in a browser."""

    HOSTILE = ("</script><script>x</script>", "<!--<script>", "-->", "<img src=x onerror=y>", "a\0\x1b]0;t\x07\u202e &amp; \u2028\u2029", "\udc80\ud800")

    def page(self, content, *options, warnings=0, **further):
        """The page of a results file, in bytes."""
        path = self.path("page.html")
        run = self.clinvk("report", "--html", path, *options, self.file("results.jsonl", content), **further)
        self.assertEqual((run.returncode, run.stderr.count(b"clinvk: warning: "), run.stderr.count(b"\n")), (0, warnings, warnings), run.stderr)
        with open(path, "rb") as file:
            return file.read()

    def tasks_in(self, page):
        """The tasks in the data of a page, each a dictionary."""
        data, = re.findall(rb'<script type="application/json" id="data">(.*?)</script>', page, re.S)
        self.assertEqual(re.findall("[<>&\u2028\u2029\0-\x09\x0b-\x1f]", data.decode("utf-8")), [])
        value = json.loads(data)
        return [dict(zip(value["columns"], task)) for task in value["tasks"]]

    def test_a_task_is_data_and_no_markup(self):
        given = [line(index, "failed", task_name=text, task_id=text, tags=[text], error=text, output=text, model=text, warnings=[text], backend=text,
                      tries=[attempt(0, 1, error=text, error_kind=text), attempt(2, 1)], attempts=2) for index, text in enumerate(self.HOSTILE)]
        page = self.page(lines(*given))
        self.assertEqual((page.count(b"<script"), page.count(b"</script")), (2, 2))
        found = self.tasks_in(page)
        for text, task in zip(self.HOSTILE, found):
            shown = clinvk.visible(text)
            self.assertEqual([task[name] for name in ("id", "tags", "error", "answer", "model", "warnings", "backend")],
                             [shown, [shown], shown, shown, shown, [shown], shown])
            self.assertEqual([one[4] for tries in task["tries"] for one in tries], [shown, ""])
        self.assertEqual(len(found), len(self.HOSTILE))

    def test_only_the_script_and_the_style_of_the_page_are_allowed(self):
        page = self.page(lines(line(0)))
        policy, = re.findall(rb'<meta http-equiv="Content-Security-Policy" content="(.*?)">', page, re.S)
        self.assertTrue(policy.startswith(b"default-src 'none'; "))
        for kind in (b"style", b"script"):
            content, = re.findall(b"<%s>(.*?)</%s>" % (kind, kind), page, re.S)
            digest = base64.b64encode(hashlib.sha256(content).digest())
            self.assertIn(b"%s-src 'sha256-%s'" % (kind, digest), policy)
        self.assertEqual(set(re.findall(rb"https?://[^\"]*", page)), {b"http://www.w3.org/2000/svg"})
        for name in (b"innerHTML", b"outerHTML", b"insertAdjacent", b"document.write", b"eval(", b"style="):
            self.assertNotIn(name, page)
        self.assertEqual(re.findall(rb"<\w+[^>]* on\w+=", page), [])

    def test_answers_are_left_out_without_output(self):
        content = lines(line(0, task_name="name"), line(1))
        with_output, without = self.tasks_in(self.page(content)), self.tasks_in(self.page(content, "--without-output"))
        self.assertEqual([(task["name"], task["answer"]) for task in with_output], [("name", "answer 0"), ("label 1", "answer 1")])
        self.assertEqual([(task["name"], task["answer"]) for task in without], [("name", ""), ("", "")])
        _, errors, status = self.report(content, options=["--without-output"])
        self.assertEqual((status, errors), (2, "clinvk: error: --without-output: there is no page for it; give --html\n"))

    def test_a_prompt_is_in_the_page_where_the_tasks_are_known(self):
        self.file("tasks.json", {"tasks": [{"backend": "claude", "prompt": "do <b>\nthis", "id": "x"}]})
        content = lines(line(0, task_id="x", key=None, label=None))
        tasks_option = ("--tasks", self.path("tasks.json"))
        self.assertEqual([task["prompt"] for task in self.tasks_in(self.page(content, *tasks_option))], ["do <b>\nthis"])
        for options in ((), (*tasks_option, "--without-output")):
            self.assertEqual([task["prompt"] for task in self.tasks_in(self.page(content, *options))], [""])

    def test_the_end_of_the_logs_is_in_the_page(self):
        results = self.path("results.jsonl")
        run = self.clinvk("parallel", "--results", results, "--log-dir", "logs", "-q",
                          input=tasks("stderr one\nstderr-flood 9000\nstderr \\n<b>\x1b\nsay answer", "say x"))
        self.assertEqual(run.returncode, 0, run.stderr)
        with open(results, "rb") as file:
            content = file.read()
        first, second = self.tasks_in(self.page(content))
        (_, printed), (path, errors) = first["logs"]
        self.assertEqual((path, printed, errors), ("logs/001_task-1.1.err", "answer\n", "<b>^[\n"))
        self.assertEqual([text for _, text in second["logs"]], ["x\n", ""])
        self.assertEqual([task["logs"] for task in self.tasks_in(self.page(content, "--without-output"))], [[], []])
        self.assertEqual(self.tasks_in(self.page(lines(line(0))))[0]["logs"], [])

    def test_secrets_are_hidden_in_the_end_of_a_log(self):
        secret = "sk-abcdefghijklmnopqrstuv"
        self.file("001_a.1.err", "x" * 3000 + "\n" + secret + "y" * 4086 + "\nthe last line " + secret)
        page = self.page(lines(line(0, log="001_a.1.err", log_stderr="002_a.1.err")), env={"OPENAI_API_KEY": secret})
        self.assertNotIn(secret[-6:].encode(), page)
        self.assertEqual([task["logs"] for task in self.tasks_in(page)], [
            [["001_a.1.err", "the last line [OPENAI_API_KEY]"], ["002_a.1.err", "[it cannot be read: No such file or directory]"]]])

    def test_only_a_regular_file_that_has_the_name_of_a_log_is_read(self):
        read = ["001_a.1.err", "1000_a-b.x-y.2.13.jsonl", "logs\nof/002_task-2.1.jsonl"]
        others = ["secret", "01_a.1.err", "001_a.err", "001_a.1.txt", "001_a.1.err~", "001_a b.1.err", "001_\u00e4.1.err", "x001_a.1.err"]
        os.mkdir(self.path("logs\nof"))
        for name in read + others:
            self.file(name, "content")
        os.symlink("secret", self.path("003_link.1.err"))
        os.mkfifo(self.path("003_fifo.1.err"))
        os.mkdir(self.path("003_directory.1.err"))
        others += ["003_link.1.err", "003_fifo.1.err", "003_directory.1.err", "\0/001_a.1.err", "\ud800/001_a.1.err", "001_a.1.err/", "."]
        content = lines(*(line(index, log=name) for index, name in enumerate(read + others)))
        found = [text for task in self.tasks_in(self.page(content)) for _, text in task["logs"]]
        self.assertEqual(found, ["content"] * len(read) + [""] * len(others))

    @only_in_full_runs
    def test_a_long_answer_is_cut(self):
        task, = self.tasks_in(self.page(lines(line(0, output="\u5ba1" * 400000))))
        self.assertEqual(task["answer"], "\u5ba1" * 100000 + "\n[cut: 100,000 of 400,000 characters]")

    def test_times_are_those_of_the_line(self):
        tries = [attempt(0, 1, error_kind="rate_limit"), attempt(4.25, 2.5, status="ok")]
        first, second = self.tasks_in(self.page(lines(line(0, start=4.25, seconds=2.5, attempts=2, tries=tries), line(1, "canceled", attempts=0))))
        start = int(START * 1000)
        self.assertEqual([first[name] for name in ("start", "ms", "runs", "attempts")], [start + 4250, 2500, [start], 2])
        self.assertEqual(first["tries"], [[[start, 1000, "failed", "rate_limit", ""], [start + 4250, 2500, "ok", "", ""]]])
        self.assertEqual([second[name] for name in ("start", "ms", "tries")], [None, None, []])

    def test_attempts_in_lines_that_do_not_count_are_in_the_page(self):
        tries = [attempt(0, 1, error_kind="rate_limit"), attempt(4, 1)]
        page = self.page(lines(line(1, "failed", start=4, attempts=2, tries=tries), line(0, "canceled", attempts=0),
                               line(1, start=60, run=clinvk.utc(START + 59)), line(0, start=61)))
        start = int(START * 1000)
        never, again = ((task["runs"], task["tries"]) for task in self.tasks_in(page))
        self.assertEqual(never, ([start], [[[start + 61000, 1000, "ok", "", ""]]]))
        self.assertEqual((sorted(again[0]), again[1]), ([start, start + 59000], [
            [[start, 1000, "failed", "rate_limit", ""], [start + 4000, 1000, "failed", "", ""]], [[start + 60000, 1000, "ok", "", ""]]]))

    def test_attempts_that_two_files_have_are_in_the_page_once(self):
        given = lines(line(0, "failed"), line(0, start=60))
        page = self.page(given, self.file("copy.jsonl", lines(line(0, "failed"))), self.file("copy-2.jsonl", given), warnings=2)
        self.assertEqual([[tries[0][2] for tries in task["tries"]] for task in self.tasks_in(page)], [["failed", "ok"]])

    def test_attempts_of_a_task_that_is_nowhere_any_more_are_left_out(self):
        first = clinvk.job_key(clinvk.Job(0, clinvk.Task("echo", "first")))
        tasks_file = self.file("tasks.json", json.dumps([{"backend": "echo", "prompt": "new"}, {"backend": "echo", "prompt": "first"}]))
        page = self.page(lines(line(0, "failed", key=first), line(1, key=first)), "--tasks", tasks_file, warnings=1)
        self.assertEqual([(task["index"], len(task["tries"])) for task in self.tasks_in(page)], [(1, 1)])

    @only_in_full_runs
    def test_ten_thousand_tasks_take_less_than_5_mb(self):
        pages = [self.page(lines(*(line(index, task_id="task-%05d" % index, task_name="Review module %05d of the program" % index, tags=["nightly", "auth"],
                                        model="claude-sonnet-4-5", cost_usd=0.012345, usage={"total_tokens": 12345}, output="x" * 2000)
                                   for index in range(count))), "--without-output") for count in (100, 200)]
        self.assertEqual([len(self.tasks_in(page)) for page in pages], [100, 200])
        self.assertLess(len(pages[0]) + (len(pages[1]) - len(pages[0])) * 99, 5000000)

    def test_it_is_replaced_whole_or_stays_as_it_is(self):
        self.page(lines(line(0)))
        page = self.page(lines(line(0), line(1)))
        self.assertEqual((len(self.tasks_in(page)), os.stat(self.path("page.html")).st_mode & 0o777), (2, 0o600))
        self.assertEqual(self.report(lines(line(0)) + b"damaged\n" + lines(line(1)), options=["--html", self.path("page.html")])[2], 2)
        with open(self.path("page.html"), "rb") as file:
            self.assertEqual(file.read(), page)
        os.mkdir(self.path("taken"))
        for path, status in ((self.path("none", "page.html"), 74), (self.path("taken"), 2)):
            self.assertEqual(self.report(lines(line(0)), options=["--html", path])[2], status)
        self.assertEqual([name for name in os.listdir(self.directory) if name.endswith(".tmp")], [])


class AfterRuns(Case):
    """What real runs leave: a limit, a failure, kill -9, and another run that continues."""

    LIMITED = b"""#!/bin/sh
        echo >> starts
        [ "$(wc -l < starts)" -gt 1 ] && exec cat
        echo "429 rate limit, try again in 0.3s" >&2
        exit 1
        """

    @only_in_full_runs
    def test_a_run_that_was_killed_and_continued_is_reported_as_a_whole(self):
        write_program(self.path("limited"), self.LIMITED.replace(b" " * 8, b""))
        self.environment["CLINVK_BACKENDS"] = json.dumps({"limited": {"command": [self.path("limited")]}})
        batch = self.file("tasks.jsonl", tasks("say hello", backend="limited") + tasks("touch up; wait-for mended; exit 3") + tasks("say third")
                          + tasks("touch running; wait-for go; say x"))
        words = ["parallel", "-j", "4", "--jsonl", "-q", "--file", batch, "--results", self.path("results.jsonl"), "--resume"]
        first = self.start(*words)
        self.wait_for_file(self.path("up"))
        self.wait_for_file(self.path("running"))
        self.file("mended", "")
        for _ in range(3):
            self.assertTrue(first.line())
        first.send_signal(signal.SIGKILL)
        first.finish()
        self.wait_until_nothing_runs()
        early = self.clinvk("report", "--tasks", batch, "--fail-on", "75%", self.path("results.jsonl"))
        self.assertEqual((early.stderr.decode(), early.returncode), ("clinvk: warning: 1 task has no result: 4\n", 0))
        self.assertIn("\nNo result:\n   4 touch running; wait-for go; say x\n", early.stdout.decode())
        self.file("go", "")
        self.assertEqual(self.clinvk(*words).returncode, 1)  # task 2 fails again
        last = self.clinvk("report", "--json", "--tasks", batch, "--fail-on", "flaky", self.path("results.jsonl"))
        value = json.loads(last.stdout)
        self.assertEqual((last.stderr, last.returncode), (b"", 1))
        self.assertEqual([value[name] for name in ("total_tasks", "completed", "failed", "flaky", "gaps", "unanswered")], [4, 3, 1, [0], [], []])
        statistics = clinvk.Statistics(clinvk.Records([self.path("results.jsonl")], self.fail), table=clinvk.Table())
        limited, again = clinvk.attempts_of(next(iter(statistics.records)).result)
        self.assertEqual((limited.error_kind, again.status), ("rate_limit", "ok"))
        self.assertGreaterEqual(again.start - limited.end, 0.3 - 0.01)
        shown = clinvk.timeline_text(statistics.spans, statistics.runs, 5000).splitlines()
        self.assertEqual(shown[1].count("|"), 2)
        self.assertIn("....", "".join(shown[2:-1]))


class Memory(Case):
    @only_in_full_runs
    def test_large_answers_are_not_kept_in_memory(self):
        """tests/hostile.py has many results."""
        measured = ("import os, sys; pid = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:]); usage = os.wait4(pid, 0); "
                    "assert usage[1] == 0; print(usage[2].ru_maxrss, file=sys.stderr)")
        path = self.file("results.jsonl", lines(*[line(index, output="answer " * 10000) for index in range(300)]))
        for option in ("--json", "--csv", "--jsonl", "--color=never"):
            run = self.run_program([sys.executable, "-c", measured, sys.executable, COMPILED, "report", option, path])
            self.assertEqual(run.returncode, 0, run.stderr)
            self.assertLess(int(run.stderr), 30 << 10, option)  # KiB, more than the answers


class Terminal(Case):
    def test_a_terminal_is_no_results_file(self):
        controller, terminal = os.openpty()
        try:
            run = self.clinvk("report", stdin=terminal)
        finally:
            os.close(controller)
            os.close(terminal)
        self.assertEqual((run.stderr, run.returncode),
                         (b"clinvk: error: no results file: give the names of results files, or a pipe\n", 2))


if __name__ == "__main__":
    unittest.main()
