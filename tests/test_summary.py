"""Section 13, Summary: the table of the man page, totals that add up, exit statuses."""
import json
import random
import unittest

import support
from support import clinvk
from test_sinks import SinkCase

TASK = clinvk.Task("claude", "prompt")


def result(index, status="ok", backend="claude", seconds=1.0, **fields):
    task = TASK._replace(name=fields.pop("name", ""), prompt=fields.pop("prompt", "prompt %d" % index))
    return clinvk.Result(index, backend, status, 0, start_time=100.0, end_time=100.0 + seconds, task=task, **fields)


def totals_of(results, seconds=0.0):
    totals = clinvk.Totals()
    for each in results:
        totals.write(each)
    totals.duration_seconds = seconds
    return totals


class TableCase(SinkCase):
    def setUp(self):
        super().setUp()
        self.enter_environment()

    def printer(self, results, color=False, seconds=3.2):
        def write(output):
            table = clinvk.Table()
            for each in results:
                table.write(each)
            table.print(output, totals_of(results, seconds), color)
        return write

    def table(self, *results, **options):
        """The printed table, as its lines."""
        return self.written(self.printer(results, **options)).decode("utf-8").split("\n")

    def row(self, one, **options):
        """The lines of one result."""
        return self.table(one, **options)[5:-3]


class Tables(TableCase):
    def test_table_layout_is_that_of_the_manual(self):
        results = [result(1, "failed", "codex", 3.2, name="add logging", error="exceeded retry limit, last status: 429 Too Many Requests"),
                   result(0, "ok", "claude", 2.5, name="审查 auth 模块")]
        self.assertEqual("\n".join(self.table(*results)), """
Results
============================================================
#    BACKEND      STATUS     DURATION   TASK
------------------------------------------------------------
1    claude       OK         2.50s      审查 auth 模块
2    codex        FAILED     3.20s      add logging
     error: exceeded retry limit, last status: 429 Too Many Requests
------------------------------------------------------------
Total: 2 tasks, 1 completed, 1 failed (3.20s)
""")

    def test_table_rows_are_in_task_order(self):
        chance = random.Random(14)
        lines = self.table(*[result(index) for index in chance.sample(range(1200), 1200)])
        self.assertEqual([line.split()[0] for line in lines[5:-3]], [str(number) for number in range(1, 1201)])

    def test_table_shows_each_status_in_capitals(self):
        for status in clinvk.STATUSES:
            self.assertEqual(self.row(result(0, status))[0],
                             "1    claude       %-10s 1.00s      prompt 0" % ("OK" if status == "ok" else status.upper()))

    def test_table_label_is_the_name_else_the_first_line_of_the_prompt(self):
        for fields, label in (({"name": "its name"}, "its name"), ({"prompt": "\n  first\tline \nsecond"}, "first line"),
                              ({"name": "a\nb", "prompt": "c"}, "a"),
                              ({"prompt": "\x1b[31mred"}, "^[[31mred")):
            self.assertEqual(self.row(result(0, **fields)), ["1    claude       OK         1.00s      " + label])

    def test_table_label_of_invalid_input_is_the_error(self):
        lines = self.row(support.bad_input(1, "stdin:2: prompt: expected a string, got 3"))
        self.assertRegex(lines[0], r"^2 {17}FAILED     0\.00s {6}stdin:2: prompt: expected")
        self.assertEqual(lines[1], "     error: stdin:2: prompt: expected a string, got 3")

    def test_table_long_label_is_cut_by_columns(self):
        for name, cut in (("x" * 100, "x" * 36 + "..."), ("审" * 50, "审" * 18 + "..."), ("x" + "审" * 50, "x" + "审" * 17 + "..."),
                          ("e\u0301" * 39, "e\u0301" * 39)):
            self.assertEqual(self.row(result(0, name=name)), ["1    claude       OK         1.00s      " + cut])

    def test_table_width_is_that_of_the_terminal_but_at_least_sixty(self):
        one = result(0, "failed", name="x" * 200, error="e" * 20 + " " + "f" * 200)
        for columns, width in ((150, 150), (40, 60), (61, 61)):
            lines = self.shown(self.printer([one]), columns=columns).decode().split("\n")
            self.assertEqual(lines[5], "1    claude       FAILED     1.00s      " + "x" * (width - 44) + "...")
            self.assertEqual(lines[6], "     error: " + "e" * 20)
            self.assertEqual(lines[7], " " * 12 + "f" * (width - 12))
            self.assertEqual("".join(line[12:] for line in lines[7:-3]), "f" * 200)
            self.assertLess(len(lines[5]), max(width, 60) + 1)

    def test_table_columns_line_up_in_any_script(self):
        lines = self.table(result(0, name="审查"), result(1, backend="gemini", name="x"), result(9, "timeout", seconds=123.456, name="カタカナ"))
        starts = [sum(map(clinvk.columns_of, line[:line.index(label)])) for line, label in zip(lines[5:], ("审查", "x", "カタカナ"))]
        self.assertEqual(starts, [40, 40, 40])

    def test_table_error_is_one_line_and_canceled_tasks_have_none(self):
        self.assertEqual(self.row(result(0, "failed", error="\nfirst \x1b[1m\nsecond"))[1:], ["     error: first ^[[1m"])
        self.assertEqual(len(self.row(result(0, "canceled", error="canceled while it ran"))), 1)
        self.assertEqual(self.row(result(0, "timeout", error="timed out after 2s"))[1:], ["     error: timed out after 2s"])

    def test_table_does_not_repeat_the_prefix_of_an_error(self):
        for error, shown in (("error: no model", "no model"), ("Error: Error code: 429", "Error code: 429"), ("error:\n  no model\n", "no model"),
                             ("error:\n", "error:"), ("no error: x", "no error: x")):
            self.assertEqual(self.row(result(0, "failed", error=error))[1:], ["     error: " + shown])

    def test_table_warnings_follow_the_error(self):
        lines = self.row(result(0, "failed", error="bad", warnings=("one " * 30, "two \x1b[1m\nthree")))
        self.assertEqual(lines[1], "     error: bad")
        self.assertEqual(lines[2], "     warning: " + ("one " * 16).strip())
        self.assertEqual(lines[3], " " * 14 + ("one " * 14).strip())
        self.assertEqual(lines[4:], ["     warning: two ^[[1m"])

    def test_table_tasks_that_never_started_are_one_line_for_each_reason(self):
        unstarted = [result(index, "canceled", attempts=0, error="canceled before it started (fail-fast)") for index in range(1, 999)]
        for count, text in ((1, "1 task never started (fail-fast)"), (998, "998 tasks never started (fail-fast)")):
            lines = self.table(*unstarted[:count // 2], result(999, name="last"), *unstarted[count // 2:count])
            self.assertEqual(lines[5:-3], ["1000 claude       OK         1.00s      last", " " * 18 + "CANCELED   " + text])
        two = [result(0, "canceled", attempts=0, error="canceled before it started (%s)" % why) for why in ("claude is limited", "fail-fast")]
        self.assertEqual(self.table(*two)[5:-3], [" " * 18 + "CANCELED   1 task never started (%s)" % why for why in ("claude is limited", "fail-fast")])
        line = self.table(result(0, "canceled", attempts=0, error="canceled before it started"), color=True)[5]
        self.assertEqual(line, " " * 18 + "\x1b[33mCANCELED  \x1b[m 1 task never started")

    def test_table_colors_only_the_status_and_keeps_widths(self):
        results = [result(0), result(1, "failed", error="e"), result(2, "canceled"), result(3, "skipped"), result(4, "timeout"), result(5, "lost")]
        colored, plain = self.table(*results, color=True), self.table(*results)
        self.assertEqual([line for line in colored if "\x1b" in line], [
            "1    claude       \x1b[32mOK        \x1b[m 1.00s      prompt 0", "2    claude       \x1b[31mFAILED    \x1b[m 1.00s      prompt 1",
            "3    claude       \x1b[33mCANCELED  \x1b[m 1.00s      prompt 2", "5    claude       \x1b[31mTIMEOUT   \x1b[m 1.00s      prompt 4",
            "6    claude       \x1b[31mLOST      \x1b[m 1.00s      prompt 5"])
        for code in ("\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[m"):
            colored = [line.replace(code, "") for line in colored]
        self.assertEqual(colored, plain)

    def test_table_leaves_no_temporary_file(self):
        table = clinvk.Table()
        for index in range(100):
            table.write(result(index, name="n" * 1000))
        del table


class Totals(unittest.TestCase):
    def test_totals_parts_add_up_to_the_total(self):
        chance = random.Random(15)
        for _ in range(300):
            results = [result(index, chance.choice(clinvk.STATUSES), usage=chance.choice((None, {"total_tokens": 3, "input_tokens": 2})),
                              cost_usd=chance.choice((None, 0.25)))
                       for index in range(chance.randrange(20))]
            totals = totals_of(results)
            fields = totals.fields()
            self.assertEqual(fields["completed"] + fields["failed"] + fields["canceled"] + fields["skipped"], fields["total_tasks"])
            self.assertEqual(fields["total_tasks"], len(results))
            counted = {status: sum(each.status == status for each in results) for status in clinvk.STATUSES}
            self.assertEqual(fields["completed"], counted["ok"])
            self.assertEqual(fields["failed"], counted["failed"] + counted["timeout"] + counted["lost"])
            self.assertEqual((fields["canceled"], fields["skipped"]), (counted["canceled"], counted["skipped"]))
            self.assertEqual(fields.get("usage", {}).get("total_tokens", 0), 3 * sum(each.usage is not None for each in results))
            known = [each.cost_usd for each in results if each.cost_usd is not None]
            self.assertEqual(fields.get("cost_usd"), sum(known) if known else None)
            self.assertEqual(clinvk.verdict(totals), 1 if set(each.status for each in results) - {"ok", "skipped"} else 0)
            json.dumps(fields, allow_nan=False)

    def test_totals_line_has_only_what_is_known(self):
        for results, line in (
                ([], "Total: 0 tasks, 0 completed, 0 failed (3.20s)"), ([result(0)], "Total: 1 task, 1 completed, 0 failed (3.20s)"),
                ([result(0), result(1, "failed"), result(2, "canceled")], "Total: 3 tasks, 1 completed, 1 failed, 1 canceled (3.20s)"),
                ([result(0, "skipped"), result(1, "skipped")], "Total: 2 tasks, 0 completed, 0 failed, 2 skipped (3.20s)"),
                ([result(0, usage={"total_tokens": 1234567}, cost_usd=0.12345), result(1)],
                 "Total: 2 tasks, 2 completed, 0 failed, 1,234,567 tokens, $0.1235, 1 task of unknown cost (3.20s)"),
                ([result(0, cost_usd=0.5)] + [result(index, attempts=attempts)._replace(backend=backend)
                                              for index, backend, attempts in ((1, "echo", 1), (2, "codex", 1), (3, "claude", 0))],
                 "Total: 4 tasks, 4 completed, 0 failed, $0.5000 (3.20s)"),
                ([result(0, cost_usd=0.0)], "Total: 1 task, 1 completed, 0 failed, $0.0000 (3.20s)")):
            self.assertEqual(totals_of(results, 3.2).line(), line)

    def test_totals_reasons_are_counted_and_limited(self):
        totals = totals_of([result(0), result(1, "failed", error="a\n b\x1b"), result(2, "timeout", error="late"), result(3, "lost", error="a b\x1b"),
                            result(4, "canceled", error="canceled while it ran")])
        self.assertEqual(totals.reasons(), "2 failed: a b^[\n1 failed: late\n1 canceled: stopped while running\n")
        early = [result(index, "canceled", error="canceled before it started (fail-fast)", attempts=0) for index in (1, 2)]
        self.assertEqual(totals_of([result(0, "failed", error="a"), *early]).reasons(), "1 failed: a\n2 canceled: never started (fail-fast)\n")
        many = totals_of([result(index, "failed", error="error %d" % (index % 50)) for index in range(100)])
        self.assertEqual(many.reasons().splitlines(), ["2 failed: error %d" % number for number in range(20)] + ["60 failed for other reasons"])
        self.assertEqual(totals_of([result(0)]).reasons(), "")

    def test_totals_fields_are_in_order_without_unknown_ones(self):
        totals = totals_of([result(0, usage={"input_tokens": 5, "total_tokens": 7}, cost_usd=0.1),
                            result(1, usage={"total_tokens": 1}, cost_usd=0.2)], 1.23456)
        totals.start_time = 1795535999.5
        self.assertEqual(list(totals.fields().items()), [
            ("total_tasks", 2), ("completed", 2), ("failed", 0), ("canceled", 0), ("skipped", 0), ("total_duration_seconds", 1.235),
            ("start_time", "2026-11-24T15:59:59.500Z"),
            ("end_time", "2026-11-24T16:00:00.735Z"), ("usage", {"input_tokens": 5, "total_tokens": 8}), ("cost_usd", 0.3)])
        self.assertEqual(list(totals_of([result(0)]).fields())[-1], "end_time")

    def test_totals_duration_is_measured_until_stop(self):
        totals = clinvk.Totals()
        self.assertEqual(totals.duration_seconds, 0.0)
        totals.stop()
        first = totals.duration_seconds
        self.assertGreater(first, 0.0)
        totals.stop()
        self.assertGreater(totals.duration_seconds, first)


class Verdicts(unittest.TestCase):
    def verdict(self, *results, **options):
        return clinvk.verdict(totals_of(results), **options)

    def test_verdict_of_each_status(self):
        for status, code in (("ok", 0), ("skipped", 0), ("failed", 1), ("timeout", 1), ("canceled", 1), ("lost", 1)):
            self.assertEqual(self.verdict(result(0), result(1, status)), code, status)
        self.assertEqual(self.verdict(), 0)
        self.assertEqual(set(clinvk.STATUSES), {"ok", "skipped", "canceled", *clinvk.FAILED_STATUSES})

    def test_verdict_of_a_single_prompt_tells_timeouts_and_missing_programs(self):
        for status, exit_code, code in (
                ("ok", 0, 0), ("skipped", 0, 0), ("timeout", 124, 124), ("lost", -1, 1), ("failed", 127, 127),
                ("failed", 126, 126), ("failed", 3, 1), ("failed", 124, 1), ("canceled", -1, 1)):
            one = result(0, status)._replace(exit_code=exit_code)
            self.assertEqual(self.verdict(one, single=True), code, one)
            self.assertEqual(self.verdict(one), min(code, 1), one)

    def test_verdict_output_and_signals_come_before_the_results(self):
        failed, full, gone = result(0, "failed"), clinvk.OutputError("full"), clinvk.OutputError("gone", broken_pipe=True)
        for error, signal_number, code in ((full, 0, 74), (full, 2, 74), (gone, 0, 141), (gone, 2, 130), (None, 15, 143)):
            for results in ([failed], [result(0)]):
                for single in (False, True):
                    self.assertEqual(self.verdict(*results, error=error, signal_number=signal_number, single=single), code)

    def test_verdict_work_that_is_left_comes_before_failures_and_after_the_output(self):
        full, gone, failed = clinvk.OutputError("full"), clinvk.OutputError("gone", broken_pipe=True), result(0, "failed")
        for error, signal_number, code in ((None, 0, 75), (None, 15, 75), (None, 2, 130), (full, 0, 74), (full, 15, 74),
                                           (gone, 0, 141), (gone, 15, 75), (gone, 2, 130)):
            self.assertEqual(self.verdict(failed, error=error, signal_number=signal_number, left=True), code)


if __name__ == "__main__":
    unittest.main()
