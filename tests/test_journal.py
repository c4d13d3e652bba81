"""Section 11, Journal: the results file, its lines, its keys, its lock, its repair, and what a later run takes from it."""
import errno
import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import unittest
import unittest.mock

import support
from support import COMPILED, PROGRAM, Case, clinvk, job, only_linux, results, tasks

# A new field of a task belongs either to clinvk.KEY_FIELDS or here: does it change the answer?
NOT_IN_THE_KEY = {"id", "name", "tags", "meta", "timeout", "idle_timeout", "max_output", "check_timeout", "attempts", "schema_retries", "verbose", "dry_run",
                  "literal", "write_to", "repeat", "sample"}  # a literal Job and a further sample have another key

HOLDER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import clinvk
journal = clinvk.Journal(sys.argv[2], resume=True, continuing="", warn=print)
os.write(1, b"open\\n")
sys.stdin.read()
"""


def answer_to(asked, **fields):
    """The ok Result of a job."""
    fields.setdefault("answer", "answer to " + asked.task.prompt)
    return clinvk.Result(asked.index, asked.task.backend, fields.pop("status", "ok"), fields.pop("exit_code", 0), task=asked.task,
                         start_time=1795535999.5, end_time=1795536002.0, **fields)


class JournalCase(Case):
    def setUp(self):
        super().setUp()
        self.results, self.warnings = self.path("results.jsonl"), []

    def open(self, resume=True, **options):
        self.warnings = []
        return clinvk.Journal(self.results, resume=resume, continuing="clinvk --resume", warn=self.warnings.append, **options)

    def run_jobs(self, *jobs, **options):
        """A run that answers jobs: the indexes of those that it had to start."""
        journal, started = self.open(**options), []
        for asked in jobs:
            kept = journal.resume(asked)
            if kept is None:
                started.append(asked.index)
                journal.started(asked)
            journal.write(kept or answer_to(asked))
        journal.close()
        return started

    def content(self):
        with open(self.results, "rb") as file:
            return file.read()

    def lines(self):
        return [json.loads(line) for line in self.content().splitlines()]

    def refused(self, part, error=clinvk.UserError, **options):
        with self.assertRaises(error) as caught:
            self.open(**options)
        self.assertIn(part, str(caught.exception))


@support.only_in_full_runs
class WriteTest(JournalCase):
    def test_write_the_line_is_the_result_with_key_and_label(self):
        first = job(0, "echo", "one\ntwo", id="i", name="", meta={"k": 1})
        journal = self.open()
        self.assertIsNone(journal.resume(first))
        result = answer_to(first, cost_usd=0.25, usage={"total_tokens": 3}, warnings=("w",))
        journal.write(result)
        shown = json.loads(b"".join(clinvk.encoded(result)))
        self.assertEqual(self.lines(), [dict(shown, key=clinvk.job_key(first), run=journal.run, label="one")])
        self.assertEqual(stat.S_IMODE(os.stat(self.results).st_mode), 0o600)

    def test_write_is_one_write_and_on_the_disk_when_it_returns(self):
        journal, calls, write, sync = self.open(), [], os.write, clinvk.put_on_disk
        asked = job(0, "echo", "p")
        journal.resume(asked)
        with unittest.mock.patch("os.write", lambda *call: calls.append("write") or write(*call)), \
                unittest.mock.patch.object(clinvk, "put_on_disk", lambda file: calls.append("sync") or sync(file)):
            journal.write(answer_to(asked))
            journal.write(clinvk.unfinished(job(1, "echo", "p"), "canceled", "never started", "canceled"))
        self.assertEqual(calls, ["write", "sync", "write"])

    def test_write_input_that_is_no_task_has_an_empty_key(self):
        self.open().write(support.bad_input(0, "bad"))
        self.assertEqual([(line["key"], line["label"], line["status"]) for line in self.lines()], [("", "bad", "failed")])
        self.assertEqual(self.run_jobs(job(0, "echo", "p")), [0])

    def test_write_fails_the_file_is_as_before(self):
        self.run_jobs(job(0, "echo", "p"))
        before = self.content()
        for size in (0, 1, 100):
            with self.subTest(size=size):
                journal, asked = self.open(), job(1, "echo", "q")
                journal.resume(asked)
                soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + size, hard))
                try:
                    with self.assertRaises(clinvk.OutputError) as caught:
                        journal.write(answer_to(asked, answer="x" * 1000))
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
                self.assertIn(self.results + ": " + os.strerror(errno.EFBIG), str(caught.exception))
                self.assertEqual(self.content(), before)
                journal.close()

    def test_write_the_disk_fails_the_file_is_as_before(self):
        journal, asked = self.open(), job(0, "echo", "q")
        journal.resume(asked)
        with unittest.mock.patch.object(clinvk, "put_on_disk", side_effect=OSError(errno.EIO, "Input/output error")):
            with self.assertRaises(clinvk.OutputError):
                journal.write(answer_to(asked))
        self.assertEqual(self.content(), b"")

    def test_write_after_the_file_was_removed_fails(self):
        journal = self.open()
        os.unlink(self.results)
        with self.assertRaises(clinvk.OutputError):
            journal.write(answer_to(job(0, "echo", "q")))


@support.only_in_full_runs
class ResumeTest(JournalCase):
    def test_resume_gives_the_result_of_the_line_for_the_task_of_this_run(self):
        first = job(0, "echo", "p", id="old", name="old", tags=("old",), meta={"old": 1})
        journal = self.open()
        journal.resume(first)
        kept = answer_to(first, answer="\udcff 😀\0\n", error="e", error_kind="backend", warnings=("w", "v"), model="m", session_id="s",
                         usage={"total_tokens": 3}, cost_usd=0.25, num_turns=2, retry_after_seconds=1.5, limits={"five": {"u": 1}}, attempts=2, retry_at=1795536003.0,
                         data={"label": "bug", "n": 2 ** 70},
                         tries=({"status": "failed", "cost_usd": 0.125}, {"status": "ok"}))
        journal.write(kept)
        journal.close()
        del journal
        again = job(7, "echo", "p", id="new", meta={"new": 2})
        journal = self.open()
        self.assertEqual(journal.resume(again), kept._replace(index=7, task=again.task, resumed=True))
        self.assertIsNone(journal.resume(again))  # one line answers one task

    def test_resume_needs_every_field_of_a_result_that_is_not_the_tasks(self):
        of_this_run, not_in_json = {"task", "resumed"}, {"acted", "changes", "usage_is_cumulative"}
        self.assertEqual(set(clinvk.Result._fields) - set(clinvk.LINE_FIELDS), {"answer"} | of_this_run | not_in_json)
        self.assertEqual(set(clinvk.LINE_FIELDS) - set(clinvk.Result._fields), {"key", "output", "duration_seconds", "samples", "cell", "task_id"})

    def test_resume_times_and_durations_are_those_of_the_line(self):
        numbers = random.Random(3)
        jobs = [job(index, "echo", "p%d" % index) for index in range(200)]
        journal = self.open()
        for asked in jobs:
            start = numbers.uniform(1e9, 2e9)
            journal.resume(asked)
            journal.write(answer_to(asked)._replace(start_time=start, end_time=start + numbers.uniform(0, 3)))
        journal.close()
        journal, names = self.open(), ("start_time", "end_time", "duration_seconds")
        for asked, line in zip(jobs, self.lines()):
            given = clinvk.result_fields(journal.resume(asked))
            self.assertEqual([given[name] for name in names], [line[name] for name in names])

    def test_resume_a_resumed_result_is_not_written_again(self):
        self.run_jobs(job(0, "echo", "p"))
        before = self.content()
        self.assertEqual(self.run_jobs(job(0, "echo", "p")), [])
        self.assertEqual(self.content(), before)

    def test_resume_reordered_and_extended_input_reruns_nothing(self):
        jobs = [job(index, "echo", "p%d" % index) for index in range(5)]
        self.assertEqual(self.run_jobs(*jobs), [0, 1, 2, 3, 4])
        others = [one._replace(index=index) for index, one in enumerate([*reversed(jobs), job(0, "echo", "new")])]
        self.assertEqual(self.run_jobs(*others), [5])

    def test_resume_one_changed_prompt_reruns_that_task(self):
        jobs = [job(index, "echo", "p%d" % index) for index in range(5)]
        self.run_jobs(*jobs)
        jobs[2] = job(2, "echo", "changed")
        self.assertEqual(self.run_jobs(*jobs), [2])

    def test_resume_with_the_results_of_other_tasks_warns(self):
        self.run_jobs(*[job(index, "echo", "p%d" % index) for index in range(3)])
        for first, count, warns in ((1, 2, 0), (30, 2, 1), (2, 20, 0), (100, 20, 1)):
            self.run_jobs(*[job(index, "echo", "p%d" % index) for index in range(first, first + count)], tasks=count)
            self.assertEqual(len([text for text in self.warnings if "is it the file of these tasks" in text]), warns)

    def test_resume_identical_tasks_are_matched_by_count(self):
        same = [job(index, "echo", "p") for index in range(5)]
        self.assertEqual(self.run_jobs(*same[:3]), [0, 1, 2])
        self.assertEqual(self.run_jobs(*same), [3, 4])
        self.assertEqual(self.run_jobs(*same), [])

    def test_resume_identical_tasks_get_their_own_lines(self):
        for ids in (("a", "b", "c", "d"), ("",) * 4):
            with self.subTest(ids):
                same, journal = [job(index, "echo", "p", id=id) for index, id in enumerate(ids)], self.open()
                for number in (2, 0, 3):  # as they end
                    journal.resume(same[number])
                    journal.write(answer_to(same[number], answer=str(number)))
                journal.close()
                journal = self.open()
                self.assertEqual([journal.resume(same[number]).answer for number in (0, 2, 3)], ["0", "2", "3"])
                self.assertIsNone(journal.resume(same[1]))
                journal.close()
                journal = self.open()  # a line of another is better than none
                self.assertEqual(sorted(journal.resume(job(index, "echo", "p", id=id and "new" + id)).answer for index, id in zip((7, 8, 9), ids)), ["0", "2", "3"])
                journal.close()
                os.unlink(self.results)
        self.run_jobs(same[0])
        with open(self.results, "ab") as file:
            file.write(self.content() * 2)
        self.assertEqual(self.run_jobs(*same), [3])  # three lines of one task

    def test_resume_last_of_several_lines_of_one_task_answers_it(self):
        one, journal = job(0, "echo", "p"), self.open()
        journal.resume(one)
        journal.write(answer_to(one, answer="first"))
        journal.close()
        line = self.content()
        for index, answers in ((b"0", ["last", "first"]), (b"0.0", ["first", "last"]), (b'"0"', ["first", "last"]), (b"-1", ["first", "last"]),
                               (b"[]", ["first", "last"])):  # another program may have written the file
            with self.subTest(index), open(self.results, "wb") as file:
                file.write(line + line.replace(b'"first"', b'"last"').replace(b'"index":0', b'"index":' + index))
                file.flush()
                journal = self.open()
                self.assertEqual([journal.resume(one).answer for _ in range(2)], answers)
                journal.close()

    def test_resume_identical_tasks_get_the_line_with_their_file_wherever_they_stand(self):
        first, journal = [job(index, "echo", "p", write_to="fr/" + name) for index, name in enumerate("bc")], self.open()
        for one in first:
            journal.resume(one)
            journal.write(answer_to(one, answer=one.task.write_to, written=one.task.write_to))
        journal.close()
        journal = self.open()
        again = [journal.resume(job(index, "echo", "p", write_to="fr/" + name)) for index, name in enumerate("cb")]
        self.assertEqual([result.answer for result in again], ["fr/c", "fr/b"])
        journal.close()
        for names, answers in (("axbc", [None, None, "fr/b", "fr/c"]), ("abc", [None, "fr/b", "fr/c"])):  # some have no line yet
            journal = self.open()
            again = [journal.resume(job(index + 5, "echo", "p", write_to="fr/" + name)) for index, name in enumerate(names)]
            self.assertEqual([result and result.answer for result in again], answers)
            journal.close()
        for template in ("de/%s", ""):  # another one, or none any more
            journal = self.open()
            again = [journal.resume(job(index, "echo", "p", write_to=template and template % name)) for index, name in enumerate("bc")]
            self.assertEqual([result.answer for result in again], ["fr/b", "fr/c"])
            journal.close()

    def test_resume_uses_each_of_several_equal_lines_once(self):
        one, journal = job(0, "echo", "p"), self.open()
        journal.resume(one)
        journal.write(answer_to(one))
        journal.close()
        line = self.content()
        for other in (line, line.replace(b'"index":0', b'"index":-1'), line.replace(b'"index":0,', b"")):
            with open(self.results, "wb") as file:
                file.write(line * 2 + other)
            journal = self.open()
            self.assertEqual([bool(journal.resume(job(index, "echo", "p"))) for index in range(4)], [True] * 3 + [False])
            journal.close()

    def test_resume_only_ok_results_are_not_run_again(self):
        asked = job(0, "echo", "p")
        for status in clinvk.STATUSES:
            with self.subTest(status):
                journal = self.open()
                self.assertIsNone(journal.resume(asked))
                journal.write(answer_to(asked, status=status))
                journal.close()
                del journal
                self.assertEqual(self.run_jobs(asked), [] if status == "ok" else [0])
                os.unlink(self.results)

    def test_resume_judged_samples_are_not_run_again(self):
        many, cell = clinvk.Sample(0, 1, 2), clinvk.Sample(0, cell={"model": "x"})
        for sample, kind, runs in ((many, "check", []), (many, "schema", []), (cell, "check", []), (cell, "protected", []), (None, "check", [0]),
                                   (many, "check_error", [0]), (many, "network", [0]), (clinvk.Sample(0), "check", [0])):
            with self.subTest(sample=sample, kind=kind):
                asked = job(0, "echo", "p", sample=sample)
                journal = self.open()
                self.assertIsNone(journal.resume(asked))
                journal.write(answer_to(asked, status="failed", error_kind=kind))
                journal.close()
                del journal
                self.assertEqual(self.run_jobs(asked), runs)
                os.unlink(self.results)

    def test_resume_large_answers_are_read_in_pieces(self):
        patch = unittest.mock.patch.object(clinvk, "LONG_LINE", 1 << 17)
        patch.start()
        self.addCleanup(patch.stop)
        text = 'line \\ "quoted" 😀\udcff\n' * 10000
        first, other = job(0, "echo", "p"), job(1, "echo", "q")
        journal = self.open()
        for asked in (first, other):
            journal.resume(asked)
            journal.write(answer_to(asked, answer=text, warnings=("w" * (clinvk.LONG_LINE + 1),)))
        journal.close()
        del journal
        journal = self.open()
        for asked in (first, other):
            kept = journal.resume(asked)
            self.assertIsInstance(kept.answer, clinvk.TextFile)
            self.assertLess(max(map(len, kept.answer)), 2 * clinvk.LONG_LINE)
            self.assertEqual((kept.output, len(kept.answer)), (text, len(clinvk.to_bytes(text))))
            self.assertEqual(kept.warnings, ("w" * (clinvk.LONG_LINE + 1),))

    def test_resume_a_file_that_was_edited_meanwhile_runs_the_task(self):
        asked = job(0, "echo", "p")
        self.run_jobs(asked)
        journal = self.open()
        with open(self.results, "r+b") as file:
            file.write(b"#")
        self.assertIsNone(journal.resume(asked))

    def test_costs_are_those_of_all_lines(self):
        journal = self.open()
        for index, status in enumerate(("ok", "failed", "ok")):
            journal.write(answer_to(job(index, "echo", "p"), status=status, cost_usd=0.5))
        journal.write(answer_to(job(3, "echo", "p")))
        journal.write(answer_to(job(4, "claude", "p"), status="timeout"))
        journal.write(answer_to(job(5, "claude", "p"), status="canceled", attempts=0))
        del journal
        journal = self.open()
        self.assertEqual(vars(journal.costs), {"stated": 1.5, "most": 0.5, "known": 3, "unknown": 1})


@support.only_in_full_runs
class KeyTest(unittest.TestCase):
    CHANGES = {"backend": "claude", "prompt": "q", "model": "m", "effort": "low", "answer_only": True, "system_prompt": "s", "workdir": "w", "approval_mode": "none",
               "sandbox_mode": "full", "max_turns": 1, "max_tokens": 1, "extra": ("e",), "schema": {"type": "object"}, "check": (("true",),), "require_change": True,
               "protect": ("x",)}

    def test_every_field_of_a_task_is_in_the_key_or_meant_not_to_be(self):
        self.assertEqual(set(clinvk.KEY_FIELDS) | NOT_IN_THE_KEY, set(clinvk.Task._fields))
        self.assertEqual(set(clinvk.KEY_FIELDS) & NOT_IN_THE_KEY, set())

    def test_every_field_in_the_key_changes_it(self):
        self.assertEqual(set(self.CHANGES), set(clinvk.KEY_FIELDS))
        task = clinvk.Task("echo", "p")
        keys = {clinvk.job_key(clinvk.Job(0, task._replace(**{name: value}))) for name, value in self.CHANGES.items()}
        self.assertEqual(len(keys | {clinvk.job_key(clinvk.Job(0, task))}), len(self.CHANGES) + 1)

    def test_other_fields_do_not_change_it(self):
        bare, full = job(0, "echo", "p"), job(9, "echo", "p", id="i", name="n", tags=("t",), meta={"k": 1}, timeout=9.0, verbose=True,
                                              dry_run=True)
        self.assertEqual(clinvk.job_key(bare), clinvk.job_key(full))

    def test_the_users_own_command_and_literal_prompts_change_it(self):
        plain = job(0, "mine", "p")
        definitions = [clinvk.Definition(("a",)), clinvk.Definition(("a", "b")), clinvk.Definition(("a",), output="json", answer=("x", 0))]
        others = [plain._replace(definition=definition) for definition in definitions] + [plain._replace(literal=True)]
        self.assertEqual(len({clinvk.job_key(one) for one in [plain, *others]}), 5)

    def test_keys_stay_what_they_are(self):
        """Files of an earlier version answer the tasks of a later one."""
        self.assertEqual(clinvk.job_key(job(0, "echo", "p\udcff")), "01571e26af99520a9b5a526ad6a29f362472fdf0fd693b4db1221779b1409274")
        mine = job(0, "mine", "p", extra=("-x",))._replace(definition=clinvk.Definition(("a",), answer=("x", 0)), literal=True)
        self.assertEqual(clinvk.job_key(mine), "afa4f2edfb905f453c6d26e106d5cfd896a11dccca9b4444b90d200a5b393451")


@support.only_in_full_runs
class RepairTest(JournalCase):
    def setUp(self):
        super().setUp()
        self.jobs = [job(index, "echo", "p%d é" % index) for index in range(3)]
        self.run_jobs(*self.jobs)
        self.whole = self.content()

    def put(self, data):
        with open(self.results, "wb") as file:
            file.write(data)

    def test_every_prefix_of_the_last_record_opens(self):
        start = self.whole.rindex(b"\n", 0, -1) + 1
        for end in range(start, len(self.whole) + 1):
            self.put(self.whole[:end])
            journal = self.open()
            kept_last = end >= len(self.whole) - 1  # only the newline is missing
            self.assertEqual(self.content(), self.whole if kept_last else self.whole[:start], end)
            self.assertEqual([journal.resume(one) is None for one in self.jobs], [False, False, not kept_last])
            torn = start < end < len(self.whole) - 1
            self.assertEqual(self.warnings, ["%s:3: the last line is incomplete and is left out" % self.results] if torn else [])
            del journal

    def test_a_tail_of_zeros_is_cut_off(self):
        for tail in (b"\0", b"\0" * 5000, self.whole[:20] + b"\0" * 5000):
            with self.subTest(tail[:30]):
                self.put(self.whole + tail)
                self.assertEqual(self.run_jobs(*self.jobs), [])
                self.assertEqual(self.content(), self.whole)

    def test_damage_elsewhere_is_refused_and_changes_nothing(self):
        lines = self.whole.splitlines(True)
        line = json.loads(lines[1])
        for bad in (b"\n".join(lines[1].split(b",", 1)), lines[1][:-2] + b"\n", b"[]\n", b"null\n", b"\0\n", b"\xff\n", b"{}\n",
                    json.dumps(dict(line, key=5)).encode() + b"\n", json.dumps(dict(line, status=None)).encode() + b"\n",
                    json.dumps(dict(line, usage={"total_tokens": "many"})).encode() + b"\n",
                    json.dumps(dict(line, start_time="noon")).encode() + b"\n", lines[1][:-1] + lines[2], b"[" * 100000 + b"\n"):
            for torn in (b"", lines[2][:9]):
                with self.subTest(bad[:50], torn=torn):
                    data = lines[0] + bad + lines[2] + torn
                    self.put(data)
                    self.refused(self.results + ":2: not a result: ")
                    self.assertEqual(self.content(), data)
                    self.assertFalse(os.path.lexists(self.results + ".running"))

    def test_blank_lines_and_other_fields_are_no_damage(self):
        self.put(b"\n \r\n" + self.whole.replace(b"\n", b"\r\n").replace(b'{"index"', b'{"new": {"x": []}, "index"') + b"\n")
        self.assertEqual(self.run_jobs(*self.jobs), [])

    def test_results_without_resume_are_refused(self):
        for data in (self.whole, b"{"):
            self.put(data)
            self.refused("%s: it contains results of an earlier run; for other tasks give another name; to continue: clinvk --resume" % self.results,
                         resume=False)
            self.assertEqual(self.content(), data)
        self.put(b"")
        self.assertEqual(self.run_jobs(self.jobs[0], resume=False), [0])

    def test_results_of_another_shard_are_refused_as_such(self):
        for shard, own in ((clinvk.Shard(0, 2), True), (clinvk.Shard(1, 2), False)):
            self.put(self.whole.splitlines(True)[0] + b"{")
            self.refused("%s: it contains results of %s" % (
                self.results, "an earlier run; " if own else "task 1, which is not in shard 2/2; give each shard a file of its own"),
                resume=False, shard=shard)

    def test_dry_run_reads_and_changes_nothing(self):
        data = self.whole + b"{torn"
        self.put(data)
        journal = self.open(dry_run=True)
        other = job(3, "echo", "other")
        self.assertEqual([journal.resume(one) is None for one in [*self.jobs, other]], [False, False, False, True])
        journal.started(other)
        journal.write(answer_to(other))
        journal.close()
        self.assertEqual(self.content(), data)
        self.refused("earlier run", dry_run=True, resume=False)
        os.unlink(self.results)
        self.assertIsNone(self.open(dry_run=True).resume(other))
        self.assertEqual([name for name in os.listdir(self.directory) if name.startswith("results")], [])


@support.only_in_full_runs
class FileTest(JournalCase):
    def test_what_is_not_a_regular_file_is_refused(self):
        os.mkdir(self.path("directory"))
        os.mkfifo(self.path("fifo"))
        os.symlink("/dev/null", self.path("link"))
        for name in ("directory", "fifo", "link", "/dev/null", "/dev/full"):
            with self.subTest(name):
                self.results = self.path(name)
                self.refused("expected a regular file")

    def test_a_link_to_a_regular_file_is_followed(self):
        os.symlink("real.jsonl", self.results)
        self.run_jobs(job(0, "echo", "p"))
        self.assertEqual(self.run_jobs(job(0, "echo", "p")), [])
        self.assertTrue(os.path.islink(self.results) and os.path.isfile(self.path("real.jsonl")))

    def test_a_file_that_cannot_be_made_is_an_output_error(self):
        self.results = self.path("missing", "results.jsonl")
        self.refused("No such file or directory", clinvk.OutputError)

    def test_the_file_of_stdout_or_stderr_is_refused(self):
        for number, name in ((1, "stdout"), (2, "stderr")):
            with self.subTest(name), open(self.results, "wb") as file, support.descriptor_is(number, file.fileno()):
                self.refused("%s is this file" % name)


class LockTest(JournalCase):
    def hold(self, **options):
        """Another process that has the results file open."""
        holder = self.start_program([sys.executable, "-c", HOLDER, support.MODULES, self.results], stdin=subprocess.PIPE, **options)
        holder.wait_for_line(b"open")
        return holder

    def test_a_second_run_is_refused_with_its_holder(self):
        holder = self.hold()
        with open(self.results + ".running", "rb") as file:
            start_time = json.loads(file.readline())["start_time"]
        self.refused("%s: another run writes to it (pid %d on %s, since %s)" % (self.results, holder.pid, os.uname().nodename, start_time))
        os.unlink(self.results + ".running")
        self.refused("%s: another run writes to it" % self.results)
        self.refused("; give each shard a file of its own", shard=clinvk.Shard(1, 2))
        holder.finish()
        self.open()

    def test_a_killed_run_leaves_no_lock(self):
        holder = self.hold()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        self.open()

    @only_linux
    def test_the_workers_of_a_killed_run_are_waited_for(self):
        with unittest.mock.patch.dict(globals(), HOLDER=HOLDER.replace("os.write(1", "os.fork(); os.write(1")):
            holder = self.hold()
        holder.wait_for_line(b"open")  # its child, which keeps the lock
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with unittest.mock.patch("time.sleep", lambda seconds: holder.stdin.close()):
            self.open()
        self.assertTrue(holder.stdin.closed)
        self.wait_until_nothing_runs()


class RunningTest(JournalCase):
    def running(self):
        with open(self.results + ".running", "rb") as file:
            return [json.loads(line) for line in file]

    def kill_after(self, *started, answered=()):
        """A run that is killed after it started jobs and answered some."""
        journal = self.open()
        for asked in started:
            journal.resume(asked)
            journal.started(asked)
        for asked in answered:
            journal.write(answer_to(asked))

    def test_it_names_the_run_and_the_tasks_that_it_started(self):
        journal, asked = self.open(), job(0, "echo", "p", name="first")
        journal.resume(asked)
        journal.started(asked)
        journal.started(asked._replace(attempt=2))
        head, *notes = self.running()
        self.assertEqual(notes, [{"index": 0, "key": clinvk.job_key(asked), "label": "first"}])
        self.assertEqual((head["pid"], head["host"], head["size"]), (os.getpid(), os.uname().nodename, 0))
        self.assertEqual(stat.S_IMODE(os.stat(self.results + ".running").st_mode), 0o600)
        journal.write(answer_to(asked))
        journal.close()
        self.assertFalse(os.path.exists(self.results + ".running"))

    def test_close_without_the_result_of_a_started_task_keeps_the_note(self):
        journal, asked = self.open(), job(0, "echo", "p")
        journal.resume(asked)
        journal.started(asked)
        journal.close()
        self.assertEqual([note["label"] for note in self.running()[1:]], ["p"])

    def test_tasks_of_a_killed_run_are_named_until_they_are_answered(self):
        same = [job(index, "echo", "same") for index in range(3)]
        other = job(3, "echo", "other", name="the other")
        self.kill_after(*same, other, answered=same[:1])
        for _ in range(2):  # the second run is killed before it starts any
            self.open()
            self.assertEqual(self.warnings, ["3 tasks were running when the last run ended; they run again: same, same, the other"])
        self.kill_after(*same[1:], other, answered=[*same[1:], other])
        self.open()
        self.assertEqual(self.warnings, [])

    def test_one_task_and_many_tasks_are_named(self):
        self.kill_after(job(0, "echo", "only"))
        self.open()
        self.assertEqual(self.warnings, ["1 task was running when the last run ended; it runs again: only"])
        self.kill_after(*[job(index, "echo", "p%d" % index) for index in range(7)])
        self.open()
        self.assertEqual(self.warnings, ["8 tasks were running when the last run ended; they run again: only, p0, p1, p2, p3 and 3 more"])

    def test_an_orderly_end_leaves_no_tasks(self):
        self.run_jobs(job(0, "echo", "p"))
        self.open()
        self.assertEqual(self.warnings, [])

    def test_anything_in_its_place_is_ignored_and_replaced(self):
        secret = self.file("secret", "secret")
        for make in (lambda path: os.symlink(secret, path), os.mkfifo, lambda path: self.file("results.jsonl.running", b"{\n\0\n[]\n5\n{\"key\": []}\n")):
            make(self.results + ".running")
            journal = self.open()
            self.assertEqual([set(line) for line in self.running()][0], {"pid", "host", "start_time", "size"})
            journal.close()
        with open(secret) as file:
            self.assertEqual(file.read(), "secret")


@support.only_in_full_runs
class CommandTest(unittest.TestCase):
    def test_continuing_command_adds_resume_and_quotes(self):
        self.addCleanup(setattr, sys, "argv", sys.argv)
        for path, start in (("/usr/bin/clinvk", "clinvk"), ("clinvk.py", "python3 clinvk.py"), (PROGRAM, PROGRAM)):
            sys.argv = [path]
            self.assertEqual(clinvk.continuing_command((), False), start + " --resume")
        sys.argv = ["clinvk"]
        for words, command in (((), "clinvk --resume"), (("parallel", "-f", "a b"), "clinvk parallel -f 'a b' --resume"),
                               (("parallel", "--resume", "-q"), "clinvk parallel --resume -q"), (("parallel", "--"), "clinvk parallel --resume --"),
                               (("parallel", "--", "x", "--resume"), "clinvk parallel --resume -- x --resume")):
            self.assertEqual(clinvk.continuing_command(words, False), command)
            self.assertEqual(clinvk.continuing_command(words, True), "the same input with: " + command)


@support.only_in_full_runs
class OrderTest(JournalCase):
    def test_a_result_is_in_the_file_before_any_sink_has_it(self):
        journal, asked, seen = self.open(), job(0, "echo", "p"), []
        journal.resume(asked)

        class Sink:
            write = staticmethod(lambda result: seen.append((result.status, [line["status"] for line in self.lines()])))

        feed = clinvk.Fanout([Sink(), Sink()], clinvk.Control(), journal)
        feed.write(answer_to(asked))
        self.assertEqual(seen, [("ok", ["ok"])] * 2)

    def test_a_result_that_is_not_in_the_file_is_canceled_for_all_sinks_and_ends_the_run(self):
        journal, control, seen = self.open(), clinvk.Control(), []

        class Sink:
            write = seen.append

        feed = clinvk.Fanout([Sink], control, journal)
        with unittest.mock.patch.object(clinvk, "put_on_disk", side_effect=OSError(errno.EIO, "Input/output error")):
            feed.write(answer_to(job(0, "echo", "p")))
        feed.write(answer_to(job(1, "echo", "p")))
        feed.write(answer_to(job(2, "echo", "p"), status="failed", error="e"))
        feed.write(answer_to(job(3, "echo", "p"), resumed=True))
        self.assertEqual([(one.status, one.output) for one in seen], [
            ("canceled", "answer to p"), ("canceled", "answer to p"), ("failed", "answer to p"), ("ok", "answer to p")])
        self.assertEqual((control.level, control.reason, self.lines()), (1, str(feed.error), []))


class RunTest(support.ForkingCase):
    """Whole runs with --results and --resume; the file `log` has a line for each start of a task."""

    def setUp(self):
        super().setUp()
        self.log, self.results = self.path("log"), self.path("results.jsonl")

    def input(self, *names, extra=""):
        return tasks(*["append log %s; %ssay answer to %s" % (name, extra, name) for name in names])

    def starts(self):
        """The names of the tasks that were started since the last call."""
        with open(self.log) as file:
            names = file.read().split()
        os.unlink(self.log)
        return sorted(names)

    def kept(self):
        with open(self.results) as file:
            return [(line["status"], line["label"]) for line in map(json.loads, file)]

    def run_it(self, *options, **keywords):
        return self.clinvk("parallel", "--results", "results.jsonl", *options, **keywords)

    def errors(self, completed):
        """What it wrote to stderr, as if it had been started by its name."""
        return completed.stderr.decode().replace("python3 " + COMPILED, "clinvk")

    def test_resume_runs_only_what_has_no_ok_result_and_prints_everything(self):
        source = self.input("a", "b") + tasks("append log c; exit 3")
        first = self.run_it("--jsonl", "--resume", input=source)  # there is no file yet
        self.assertEqual((first.returncode, self.starts()), (1, ["a", "b", "c"]))
        self.assertEqual([(one["status"], "key" in one) for one in sorted(results(first), key=lambda one: one["index"])],
                         [("ok", False), ("ok", False), ("failed", False)])
        self.assertFalse(os.path.exists(self.results + ".running"))
        second = self.run_it("--jsonl", "--resume", input=self.input("d") + source)
        self.assertEqual((second.returncode, self.starts()), (1, ["c", "d"]))
        answers = {one["index"]: one for one in results(second)}
        self.assertEqual({index: one.pop("resumed", False) for index, one in answers.items()}, {0: False, 1: True, 2: True, 3: False})
        for one in results(first):
            if one["status"] == "ok":
                self.assertEqual(dict(answers[one["index"] + 1], index=one["index"]), one)
        self.assertIn(b"\nTotal: 4 tasks, 3 completed (2 from an earlier run), 1 failed (", second.stderr)
        third = self.run_it("--json", "--resume", input=source)
        self.assertEqual((json.loads(third.stdout)["resumed"], self.starts()), (2, ["c"]))

    def test_resume_shows_answers_of_an_earlier_run_as_text(self):
        source = self.input("a", "b")
        self.run_it(input=source)
        again = self.run_it("--resume", input=source)
        self.assertIn(b"[1] answer to a\n", again.stdout)
        self.assertEqual((again.returncode, again.stderr, self.starts()), (0, b"", ["a", "b"]))

    def test_results_of_an_earlier_run_are_refused_with_the_command_that_continues(self):
        source = self.file("the tasks.jsonl", self.input("a"))
        self.run_it("-f", source)
        refused = self.run_it("-q", "-f", source)
        command = "clinvk parallel --results results.jsonl -q -f '%s' --resume" % source
        self.assertEqual((refused.returncode, refused.stdout, self.errors(refused)), (
            2, b"", "clinvk: error: --results results.jsonl: it contains results of an earlier run; for other tasks give another name; to continue: %s\n" % command))
        self.assertIn("to continue: the same input with: clinvk parallel --results results.jsonl --resume\n",
                      self.errors(self.run_it(input=self.input("a"))))
        self.assertEqual(self.starts(), ["a"])
        asked = self.run_it("--prompt-file", "-", "-q", "--", "a", input=b"say {}")
        self.assertIn("to continue: the same input with: clinvk parallel --results results.jsonl --prompt-file - -q --resume -- a\n", self.errors(asked))
        os.mkfifo(self.path("fifo"))
        for words in (["-f", "fifo"], ["--prompt-file", "fifo", "--", "a"]):
            feeder = self.start_program(["sh", "-c", 'printf %s "$1" > fifo', "sh", "say {}" if words[2:] else self.input("a").decode()])
            self.assertIn("to continue: the same input with: clinvk parallel --results results.jsonl ", self.errors(self.run_it(*words)))
            feeder.wait(support.PATIENCE)

    def test_file_of_the_tasks_is_refused_as_results_file(self):
        source = self.file("results.jsonl", self.input("a"))
        redirected = self.run_program(["sh", "-c", 'exec "$@" < results.jsonl', "sh", sys.executable, support.COMPILED,
                                       "parallel", "--results", "results.jsonl", "--resume"])
        for done in self.run_it("-f", source), self.run_it("-f", source, "--resume"), redirected:
            self.assertEqual((done.returncode, done.stdout, done.stderr), (
                2, b"", b"clinvk: error: --results results.jsonl: it is the file of the tasks; give another name\n"))
        self.assertFalse(os.path.exists(self.log))  # nothing was started

    def test_resume_without_results_is_refused(self):
        done = self.clinvk("parallel", "--resume", input=self.input("a"))
        self.assertEqual((done.returncode, done.stderr), (
            2, b"clinvk: error: --resume: there is no results file to continue from; give --results FILE\n"))

    def test_resume_renews_the_output_directory(self):
        source = self.input("a", "b")
        self.run_it("--output-dir", "out", input=source)
        again = self.run_it("--output-dir", "out", "--resume", input=source)
        self.assertEqual((again.returncode, sorted(os.listdir(self.path("out")))), (0, ["001_task-1.json", "002_task-2.json", "summary.json"]))
        with open(self.path("out", "001_task-1.json")) as file:
            self.assertTrue(json.load(file)["result"]["resumed"])
        self.assertEqual(self.starts(), ["a", "b"])

    def test_a_file_that_is_replaced_during_the_run_ends_it(self):
        source = self.file("tasks.jsonl", self.input("a", extra="wait-for go; ") + self.input("b", extra="wait-for never; "))
        run = self.start("parallel", "--results", "results.jsonl", "--jsonl", "-q", "-f", source)
        self.wait_for_file(self.log)
        os.rename(self.file("other", ""), self.results)  # as some editors do
        self.file("go", "")
        done = run.finish()
        self.assertEqual((done.returncode, [one["status"] for one in results(done)]), (74, ["canceled", "canceled"]))
        self.assertIn(b"cannot write results to results.jsonl: somebody has removed it", done.stderr)

    def test_a_second_run_at_the_same_time_is_refused(self):
        source = self.file("tasks.jsonl", self.input("a", extra="wait-for go; "))
        first = self.start("parallel", "--results", "results.jsonl", "-f", source)
        self.wait_for_file(self.log)
        second = self.run_it("--resume", "-f", source)
        self.assertEqual((second.returncode, second.stdout), (2, b""))
        self.assertIn(b"--results results.jsonl: another run writes to it (pid %d on " % first.pid, second.stderr)
        self.file("go", "")
        self.assertEqual((first.finish().returncode, self.starts()), (0, ["a"]))

    def test_a_run_that_was_stopped_continues(self):
        source = self.file("tasks.jsonl", self.input("a") + self.input("b", "c", extra="wait-for go; "))
        run = self.start("parallel", "-j", "2", "--results", "results.jsonl", "--jsonl", "-f", source)
        self.assertEqual(json.loads(run.line())["output"], "answer to a\n")
        run.send_signal(signal.SIGTERM)
        stopped = run.finish()
        self.assertEqual(stopped.returncode, 75, "a scheduler can start it again")
        self.assertEqual(self.errors(stopped).splitlines()[-1], "clinvk: to continue: clinvk parallel -j 2 "
                         "--results results.jsonl --jsonl -f %s --resume" % source)
        self.assertFalse(os.path.exists(self.results + ".running"))
        self.assertEqual(sorted(status for status, _ in self.kept()), ["canceled", "canceled", "ok"])
        self.file("go", "")
        self.starts()
        again = self.run_it("--resume", "-f", source)
        self.assertEqual((again.returncode, again.stderr, self.starts()), (0, b"", ["b", "c"]))

    def test_a_run_that_is_stopped_together_with_its_reader_continues(self):
        source = self.file("tasks.jsonl", self.input("a") + self.input("b", "c", extra="wait-for go; "))
        for streams in ({}, {"stderr": subprocess.STDOUT}):
            results_file = "results-%d" % len(streams)
            run = self.start("parallel", "-j", "1", "--results", results_file, "--jsonl", "-f", source, **streams)
            run.wait_for_line(b"answer to a")
            run.stdout.close()
            run.send_signal(signal.SIGTERM)
            self.assertEqual(run.wait(support.PATIENCE), 75)

    def test_a_run_that_is_stopped_before_a_retry_continues(self):
        script = "test -e go && exec cat; echo 'Rate limit reached. Please try again in 300s.' >&2; exit 1"
        backends = {"CLINVK_BACKENDS": json.dumps({"limited": {"command": ["sh", "-c", script]}})}
        source = self.file("tasks.jsonl", tasks("say a", backend="limited"))
        run = self.start("parallel", "--results", "results.jsonl", "-q", "-f", source, env=backends)
        support.wait_until(lambda: b"limited until" in run.error_output(), run.error_output)
        run.send_signal(signal.SIGTERM)
        stopped = run.finish()
        self.assertEqual((stopped.returncode, self.kept()), (75, [("failed", "say a")]))
        self.assertIn("clinvk: to continue: clinvk parallel", self.errors(stopped).splitlines()[-1])
        self.file("go", "")
        self.assertEqual(self.run_it("--resume", "-q", "-f", source, env=backends).returncode, 0)

    @support.only_in_full_runs
    def test_a_run_that_stops_before_the_end_of_a_pipe_says_so_and_continues(self):
        for number, (options, first, sent, status) in enumerate((
                (["--fail-fast"], "exit 3", 0, 1), (["--canary", "1"], "exit 3", 0, 1), (["--max-cost", "0.25"], "say a", 0, 75),
                ([], "say a", signal.SIGTERM, 75), ([], "say a", signal.SIGINT, -signal.SIGINT))):
            with self.subTest(options=options, sent=sent):
                batch, results_file = tasks(first, "say b", "say c", backend="claude"), "results-%d.jsonl" % number
                run = self.start("parallel", "--jsonl", "-q", "--results", results_file, *options, stdin=subprocess.PIPE)
                run.stdin.write(batch.splitlines(True)[0])
                run.line()
                if sent:
                    run.send_signal(sent)
                run.wait(support.PATIENCE)
                stopped = run.finish()
                last = self.errors(stopped).splitlines()[-2:]
                self.assertEqual((stopped.returncode, stopped.stdout, last[0]),
                                 (status, b"", "clinvk: the input was not read to its end: the tasks in the rest have no result"))
                self.assertRegex(last[1], "^clinvk: to continue.*: the same input with: clinvk parallel --jsonl -q --results %s" % results_file)
                again = results(self.clinvk("parallel", "--jsonl", "-q", "--results", results_file, "--resume", input=batch))
                self.assertEqual(sorted((one["index"], one["status"], one.get("resumed", False)) for one in again),
                                 [(0, "ok" if first == "say a" else "failed", first == "say a"), (1, "ok", False), (2, "ok", False)])

    def test_a_run_without_the_budget_for_all_continues_with_a_larger_one(self):
        self.clinvk("parallel", "--results", "results.jsonl", "-q", input=tasks("say a", backend="claude"))
        batch = tasks("say a", "say b", backend="claude")
        short = self.run_it("--resume", "--max-cost", "0.25", input=batch)
        self.assertEqual((short.returncode, self.kept()[-1]), (75, ("canceled", "say b")), "what the first run spent counts")
        self.assertRegex(self.errors(short).splitlines()[-1],
                         "^clinvk: to continue, with a larger --max-cost: the same input with: clinvk .* --resume --max-cost USD$")
        self.assertEqual(self.run_it("--resume", "--max-cost", "9", input=batch).returncode, 0)

    def test_a_run_whose_cost_is_not_known_continues_without_it(self):
        source = self.file("tasks.jsonl", tasks("say a", backend="claude"))
        self.run_it("-q", "-f", source)
        batch = tasks("say a", "say b", backend="claude") + tasks("sleep 300", "sleep 301", backend="claude", timeout=0.1)
        options = ("-j", "1", "-q", "--resume", "--max-cost", "0.8")
        short = self.run_it(*options, input=batch)
        self.assertEqual((short.returncode, [status for status, _ in self.kept()]), (75, ["ok", "ok", "timeout", "canceled"]))
        self.assertEqual(self.run_it(*options, "--allow-unknown-cost", input=batch).returncode, 1)
        os.unlink(self.results)
        short = self.run_it("-j", "1", "-q", "--max-cost", "0.8", input=b"".join(reversed(batch.splitlines(True))))
        self.assertEqual((short.returncode, [status for status, _ in self.kept()]), (75, ["timeout", "canceled", "canceled", "canceled"]))
        self.assertIn("clinvk: to continue, with --allow-unknown-cost: the same input with: clinvk", self.errors(short).splitlines()[-1])

    def test_a_run_that_was_killed_continues_and_names_what_was_running(self):
        source = self.file("tasks.jsonl", self.input("a") + self.input("b", "c", extra="wait-for go; "))
        run = self.start("parallel", "-j", "2", "--results", "results.jsonl", "--jsonl", "-f", source)
        self.assertEqual(json.loads(run.line())["output"], "answer to a\n")
        support.wait_until(lambda: os.path.getsize(self.log) == len("a\nb\nc\n"), "b and c run")
        run.kill()
        run.wait()
        self.file("go", "")
        self.starts()
        again = self.run_it("--resume", "-f", source)
        self.assertEqual((again.returncode, self.starts()), (0, ["b", "c"]))
        self.assertRegex(again.stderr.decode(), "^clinvk: warning: 2 tasks were running when the last run ended; they run again: "
                                                "append log b; [^\n]*, append log c; [^\n]*\n$")
        self.wait_until_nothing_runs()

    def test_what_cannot_be_kept_does_not_count_as_done(self):
        source = self.file("tasks.jsonl", self.input("a", "b", extra="flood 2500; ") + self.input("c", extra="wait-for go; "))
        limited = 'ulimit -f 8 && exec "$0" "$@"'
        done = self.run_program(["sh", "-c", limited, sys.executable, support.COMPILED, "parallel", "-j", "1", "--results", "results.jsonl",
                                 "--jsonl", "-f", source])
        self.assertEqual(done.returncode, 74, done.stderr)
        first, second, third = results(done)
        self.assertEqual([one["status"] for one in (first, second, third)], ["ok", "canceled", "canceled"])
        self.assertEqual((second["exit_code"], second["error_kind"], second["error"]), (
            -1, "canceled", "it ended well, but cannot write results to results.jsonl: File too large"))
        self.assertIn("answer to b", second["output"])
        self.assertIn(b"clinvk: error: cannot write results to results.jsonl: File too large\n", done.stderr)
        self.assertEqual(self.kept(), [("ok", "append log a; flood 2500; say answer to a")])
        self.file("go", "")
        self.starts()
        again = self.run_it("--resume", "--jsonl", "-q", "-f", source)
        self.assertEqual((again.returncode, [one["status"] for one in results(again)]), (0, ["ok"] * 3))
        self.assertNotIn("a", self.starts())

    def test_a_reader_that_goes_away_loses_no_result(self):
        source = self.file("tasks.jsonl", self.input("a") + self.input("b", extra="wait-for go; "))
        run = self.start("parallel", "--results", "results.jsonl", "--jsonl", "-f", source)
        run.line()
        run.stdout.close()
        run.wait()
        self.assertEqual((run.returncode, sorted(status for status, _ in self.kept())), (141, ["canceled", "ok"]))

    def test_dry_run_shows_what_would_run_and_changes_nothing(self):
        self.assertIn(b"say answer to a", self.run_it("--dry-run", input=self.input("a")).stdout)
        self.assertFalse(os.path.exists(self.results))
        self.run_it(input=self.input("a", "b"))
        with open(self.results, "rb") as file:
            before = file.read()
        refused = self.run_it("--dry-run", input=self.input("a", "b", "c"))
        self.assertEqual((refused.returncode, refused.stdout), (2, b""))
        shown = self.run_it("--dry-run", "--resume", input=self.input("a", "b", "c"))
        self.assertEqual((shown.returncode, shown.stdout.count(b"\n")), (0, 1))
        self.assertIn(b"say answer to c", shown.stdout)
        with open(self.results, "rb") as file:
            self.assertEqual(file.read(), before)
        self.assertEqual(self.starts(), ["a", "b"])

    def test_files_that_cannot_be_used_start_nothing(self):
        os.mkfifo(self.path("fifo"))
        for name, status, part in (("fifo", 2, b"expected a regular file"), ("/dev/stdout", 2, b"--results /dev/stdout: "),
                                   ("tmp", 2, b"expected a regular file"), ("-", 2, b"expected the name of a file"), ("no/results", 74, b"No such file or directory"),
                                   ("/proc/version", 74, b"cannot write results to /proc/version")):
            with self.subTest(name):
                done = self.clinvk("parallel", "--results", name, input=self.input("a"))
                self.assertEqual((done.returncode, done.stdout), (status, b""))
                self.assertIn(part, done.stderr)
        self.assertFalse(os.path.exists(self.log))


if __name__ == "__main__":
    unittest.main()
