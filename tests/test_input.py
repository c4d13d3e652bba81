"""Section 6, Input: a stream of JSON values is cut into the same pieces wherever its chunks end and whatever is torn in it; every
field is checked, and an error says where it is; what counts first is the same for every field; files are validated before anything
starts, pipes hand their jobs out as they come.  No backend is started."""
import itertools
import json
import os
import pwd
import random
import re
import threading
import unittest
import unittest.mock

import support
from support import clinvk

support.left_to_fork()


def pieces(data, size=None):
    """The pieces of a stream that comes in chunks of that size."""
    size = size or len(data) or 1
    return list(clinvk.ValueSplitter(data[start:start + size] for start in range(0, len(data), size)))


def values(found):
    return [json.loads(piece.data.decode("utf-8")) for piece in found]


def outline(found):
    """What of the pieces matters: where each begins and what it holds."""
    return [(piece.line, piece.data.strip(), not piece.problem) for piece in found]


class Splitting(unittest.TestCase):
    STREAMS = [
        (b"", []), (b" \n\t\r\n ", []), (b"{}", [{}]), (b"[]", [[]]), (b'{"a":1}\n{"a":2}\n', [{"a": 1}, {"a": 2}]),
        (b'{"a":1}\r\n\r\n{"a":2}', [{"a": 1}, {"a": 2}]),
        (b'{"a":1}{"a":2}[3]{}', [{"a": 1}, {"a": 2}, [3], {}]), (b'[{"a":[{}]}] \t {"b":[]}', [[{"a": [{}]}], {"b": []}]),
        (b'{\n  "a": [\n    1,\n    {}\n  ]\n}\n{\n  "b": "x"\n}\n', [{"a": [1, {}]}, {"b": "x"}]),
        (b'\xef\xbb\xbf{"a":1}\n', [{"a": 1}]), (b"\xef\xbb\xbf", []),
        (b'\xef\xbb\xbf{"a":1}\n\xef\xbb\xbf{"a":2}\xef\xbb\xbf[3]', [{"a": 1}, {"a": 2}, [3]]),
        (b'\x1e{"a":1}\n\x1e{"a":2}\n', [{"a": 1}, {"a": 2}]), (b'\x1e\x1e[1]\x1e', [[1]]), (b'\xef\xbb\xbf\n\n[1]', [[1]]),
        (b'{"a":"}{][\\"\\\\"}\n{"b":"\\\\\\"]"}', [{"a": '}{]["\\'}, {"b": '\\"]'}]),
        ('{"提示":"审查\\n模块"}\n["é\U0001f600"]'.encode(), [{"提示": "审查\n模块"}, ["é\U0001f600"]]),
        (b'{"a": -1.5e3, "b": true, "c": null}[false]', [{"a": -1500.0, "b": True, "c": None}, [False]]),
    ]

    def test_splitter_chunks_of_any_size_give_the_same_values(self):
        for data, expected in self.STREAMS:
            for size in range(1, len(data) + 2):
                found = pieces(data, size)
                self.assertEqual(values(found), expected, (data, size))
                self.assertTrue(all(not piece.problem for piece in found))

    def test_splitter_piece_has_the_line_it_begins_on(self):
        data = b'\n\n{"a":1}\n{\n"b":2\n} {"c":3}\r\n\r\n[\n]\n'
        for size in range(1, len(data) + 1):
            self.assertEqual([piece.line for piece in pieces(data, size)], [3, 4, 6, 8], size)

    def test_splitter_random_streams_are_cut_where_values_end(self):
        chance = random.Random(8)

        def value(depth=0):
            kind = chance.randrange(6 if depth < 4 else 3)
            if kind == 0:
                return chance.choice([0, -1, 1.5, 10 ** 20, True, None])
            if kind < 3:
                return "".join(chance.choice('a{}[]",:\\\n\t é审\U0001f600') for _ in range(chance.randrange(8)))
            if kind == 3:
                return {str(value(9)): value(depth + 1) for _ in range(chance.randrange(4))}
            return [value(depth + 1) for _ in range(chance.randrange(4))]

        for _ in range(300):
            expected = [chance.choice((lambda: [value(1)], lambda: {"k": value(1)}))() for _ in range(chance.randrange(1, 6))]
            data = "".join(json.dumps(item, ensure_ascii=chance.random() < 0.5,
                indent=chance.choice((None, None, 2))) + chance.choice(("", " ", "\n", "\r\n", "\n\n \n"))
                           for item in expected).encode()
            for size in (1, chance.randrange(1, 20), len(data)):
                self.assertEqual(values(pieces(data, size)), expected, data)

    def test_splitter_value_is_yielded_with_its_last_byte(self):
        for data in (b'{"a":[1,"}"]}', b'[\n{}\n]'):
            rest = [data[place:place + 1] for place in range(len(data))] + [b"{}"]
            next(iter(clinvk.ValueSplitter(rest.pop(0) for _ in range(len(rest)))))
            self.assertEqual(rest, [b"{}"])

    @support.only_in_full_runs
    def test_splitter_damaged_streams_are_cut_the_same_in_any_chunks(self):
        chance = random.Random(9)
        seeds = [b'{"a":"x","b":[1,{"c":"\\"y"}]}\n', b'[\n  {"a": 1},\n  {"b": "2"}\n]\n', b'{"t": "\xe5\xae\xa1"}{}\n', b"\xef\xbb\xbf[1]\n",
            b"text\n", b'"a"\n']
        for _ in range(400):
            data = bytearray(b"".join(chance.choice(seeds) for _ in range(chance.randrange(1, 5))))
            for _ in range(chance.randrange(4)):
                place = chance.randrange(len(data) + 1)
                data[place:place + chance.randrange(4)] = chance.choice([b"", b'"', b"\\", b"{", b"}", b"]", b"[", b"\n", b",", b":", b"\n{", b"\xff",
                    b"x", b"\0"])
            data = bytes(data)
            expected = outline(pieces(data))
            for size in (1, 2, 3, 7, chance.randrange(1, 40)):
                self.assertEqual(outline(pieces(data, size)), expected, (data, size))

    def test_splitter_bytes_are_in_a_piece_or_on_a_skipped_line(self):
        # in a piece, or on the rest of a line, or on lines that were skipped up to one that starts a value
        chance = random.Random(10)
        for _ in range(500):
            data = bytes(chance.choice(b'{}[]":,a\\ \n\n') for _ in range(chance.randrange(1, 60)))
            lines = [0] + [place + 1 for place, byte in enumerate(data) if byte == 0x0a]
            place = 0
            for piece in pieces(data, 5):
                start = data.index(piece.data, max(place, lines[piece.line - 1]))
                skipped = data[place:start]
                if skipped.strip():
                    for line in skipped.split(b"\n")[1:]:
                        self.assertFalse(line[:1] in (b"{", b"[") and line, (data, piece))
                place = start + len(piece.data)

    def test_splitter_torn_line_costs_only_that_line(self):
        first = b'{"prompt":"a \\"b\\" {c}","tags":["x","y"],"meta":{"k":[1,{}]},"id":"one"}'
        second, third = b'{"prompt":"second"}', b'{"prompt":"third"}'
        for cut in range(1, len(first)):
            torn = first[:cut]
            # where a value may go on with an object only the line after that shows that it did not
            found = pieces(torn + b"\n" + second + b"\r\n" + third + b"\n", 11)
            good = []
            for piece in found:
                try:
                    good += values([piece])
                except ValueError:
                    continue
            self.assertEqual(good, [{"prompt": "second"}, {"prompt": "third"}], torn)
            self.assertEqual([piece.line for piece in found], [1, 2, 3], torn)
            for rest, lines in ((second, [1, 2]), (second + b"\n", [1, 2]), (second + b"\nnoise\n" + third, [1, 2, 3, 4])):
                found = pieces(torn + b"\n" + rest, 11)
                self.assertEqual(values([found[1]]), [{"prompt": "second"}], (torn, rest))
                self.assertEqual([piece.line for piece in found], lines, (torn, rest))

    def test_splitter_torn_off_batch_is_one_piece(self):
        batch = json.dumps({"tasks": [{"prompt": "a"}, {"prompt": "b", "meta": {"x": [{}]}}, {"prompt": "c"}], "max_parallel": 2})
        pretty = json.dumps(json.loads(batch), indent=2)
        flat = '{"tasks":[\n{"prompt":"a"},\n{"prompt":"b"},\n{"prompt":"c"}\n]}'
        for text in (batch, pretty, flat, "[\n" + flat + "\n]"):
            data = text.encode()
            for cut in range(1, len(data)):
                for end in (b"", b"\n"):
                    found = pieces(data[:cut] + end, 9)
                    self.assertEqual(len(found), 1)
                    with self.assertRaises(ValueError):
                        values(found)

    def test_splitter_noise_is_one_piece_up_to_a_line_with_a_value(self):
        for data, expected in (
                (b'hello\nworld\n  {"indented":1}\n{"a":1}\n', [(1, b"hello", False), (4, b'{"a":1}', True)]),
                (b'"text" {"a":1}\n[2]', [(1, b'"text" {"a":1}', False), (2, b"[2]", True)]),
                (b'12\n', [(1, b"12", False)]), (b"null", [(1, b"null", False)]), (b"}\n}\n{}", [(1, b"}", False), (3, b"{}", True)]),
                (b'{"a":1} trailing\n{"b":2}\n', [(1, b'{"a":1}', True), (1, b"trailing", False), (2, b'{"b":2}', True)]),
                (b'noise\n\xef\xbb\xbf{"a":1}\n', [(1, b"noise", False), (2, b'{"a":1}', True)]),
                (b'noise\n\x1e{"a":1}\n', [(1, b"noise", False), (2, b'{"a":1}', True)]),
                (b'\x1e{"a":\n\x1e{"b":2}\n', [(1, b'{"a":', True), (2, b'{"b":2}', True)]),
                (b'{"a":\n{\n"b":[1]\n}\n\n{"c":3}', [(1, b'{"a":', True), (2, b'{\n"b":[1]\n}', True), (6, b'{"c":3}', True)]),
                (b'{"a":[\n{"b":2},\n{"b":3}},\n{"b":4}\n', [(1, b'{"a":[\n{"b":2},\n{"b":3}}', True), (4, b'{"b":4}', True)]),
                (b'{"a":1,\n\xef\xbb\xbf{"b":2}\n', [(1, b'{"a":1,', True), (2, b'{"b":2}', True)]),
                (b"\xef\xbb\n[1]", [(1, b"\xef\xbb", False), (2, b"[1]", True)]),
                (b'{"a":"new\nline"}\n{"b":2}\n', [(1, b'{"a":"new', True), (3, b'{"b":2}', True)])):
            self.assertEqual(outline(pieces(data)), expected)


class TaskCase(support.Case):
    def setUp(self):
        super().setUp()
        self.warnings = []

    def stream(self, data, name="tasks.json", **rules):
        """The stream of a regular file; `rules` are fields of TaskPolicy."""
        path = self.file("input", data)
        file = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, file)
        return clinvk.TaskStream(file, name, clinvk.TaskPolicy(**rules), self.warnings.append)

    def jobs(self, data, **rules):
        return list(support.jobs_of(self.stream(data, **rules)))

    def tasks(self, data, **rules):
        return [job.task for job in self.jobs(data, **rules)]

    def piped(self, data, **rules):
        """The tasks of a pipe that holds all of `data`, and Results in the places of what is no task."""
        return [item.task or item for item in support.jobs_of(self.pipe_stream(data, **rules))]

    def pipe_stream(self, data, name="stdin", **rules):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)

        def write():
            try:
                clinvk.write_all(writer, data)
            except OSError:
                pass
            os.close(writer)

        thread = threading.Thread(target=write)
        thread.start()
        if len(data) < 60000:  # it fits into the pipe: nobody needs to read it
            thread.join()
        else:
            self.addCleanup(thread.join)
        shard = rules.pop("shard", clinvk.WHOLE)
        return clinvk.TaskStream(reader, name, clinvk.TaskPolicy(**rules), self.warnings.append, shard)

    def refused(self, data, **rules):
        """The message that a file of this content is refused with."""
        with self.assertRaises(clinvk.UserError) as caught:
            self.tasks(data, **rules)
        return str(caught.exception)

    def one(self, fields, **rules):
        return self.tasks(dict({"prompt": "p"}, **fields), **rules)[0]


class Shards(TaskCase):
    """The tasks of a shard: positions K, K + N and so on, of any input, with the indexes of the whole."""

    def shard(self, data, position, shards):
        return clinvk.TaskStream(self.opened(data), "tasks", clinvk.TaskPolicy(), self.warnings.append, clinvk.Shard(position, shards))

    def opened(self, data):
        file = os.open(self.file("input", data), os.O_RDONLY)
        self.addCleanup(os.close, file)
        return file

    @support.only_in_full_runs
    def test_union_of_all_shards_is_the_whole_each_task_once(self):
        small = b"\n".join(b'{"backend": "echo", "prompt": "%d"}' % number for number in range(23))
        batch = b'{"tasks": [%s]}' % b",".join(small.split(b"\n"))
        for data in (small, batch):
            for shards in (1, 2, 3, 7, 22, 23, 24, 100):
                found = []
                for position in range(shards):
                    stream = self.shard(data, position, shards)
                    total, jobs = stream.total, list(support.jobs_of(stream))
                    self.assertEqual([job.index % shards for job in jobs], [position] * len(jobs))
                    self.assertEqual((total, stream.total), (len(jobs), len(jobs)))
                    found += [(job.index, job.task.prompt) for job in jobs]
                self.assertEqual(sorted(found), [(number, str(number)) for number in range(23)])

    def test_input_that_is_read_twice_and_a_pipe_have_the_same_shards(self):
        prompt = "x" * 3000
        data = "\n".join(json.dumps({"backend": "echo", "prompt": "%d %s" % (number, prompt)}) for number in range(400)).encode()
        self.assertGreater(len(data), clinvk.SMALL_FILE_BYTES)
        expected = list(range(2, 400, 3))
        stream = self.shard(data, 2, 3)
        self.assertEqual([(job.index, int(job.task.prompt.split()[0])) for job in support.jobs_of(stream)], [(n, n) for n in expected])
        stream = self.pipe_stream(data, shard=clinvk.Shard(2, 3))
        self.assertIsNone(stream.total)
        self.assertEqual([job.index for job in support.jobs_of(stream)], expected)
        self.assertEqual(stream.total, len(expected))

    def test_bad_input_is_answered_by_the_shard_that_has_its_place(self):
        data = b'{"backend":"echo","prompt":"a"}\n{"bad":1}\n{"backend":"echo","prompt":"c"}\n'
        for position, statuses in enumerate([(None, None), ("failed",)]):
            stream = self.pipe_stream(data, shard=clinvk.Shard(position, 2))
            self.assertEqual(tuple(getattr(item, "status", None) for item in support.jobs_of(stream)), statuses)

    def test_the_whole_input_is_validated_whatever_the_shard(self):
        with self.assertRaises(clinvk.UserError):
            self.shard(b'[{"backend":"echo","prompt":"a"},{"bad":1}]', 0, 2)

    def test_environment_of_an_array_states_the_shard(self):
        slurm = "SLURM_ARRAY_TASK_ID=%d SLURM_ARRAY_TASK_MIN=%d SLURM_ARRAY_TASK_MAX=%d SLURM_ARRAY_TASK_STEP=%d SLURM_ARRAY_TASK_COUNT=%d"
        for text, expected in [
            (slurm % (0, 0, 3, 1, 4), (0, 4)), (slurm % (5, 1, 7, 2, 4), (2, 4)), (slurm % (7, 7, 7, 1, 1), (0, 1)),
            (slurm % (1, 0, 3, 1, 4) + " CLINVK_SHARDS=4", (1, 4)), (slurm % (1, 0, 3, 0, 4), (1, 4)),
            ("JOB_COMPLETION_INDEX=2 CLINVK_SHARDS=3", (2, 3)), ("AWS_BATCH_JOB_ARRAY_INDEX=0 CLINVK_SHARDS=3", (0, 3)),
            ("PBS_ARRAY_INDEX=2 CLINVK_SHARDS=5", (2, 5)), ("PBS_ARRAYID=2 CLINVK_SHARDS=5", (2, 5)), ("NOMAD_ALLOC_INDEX=1 CLINVK_SHARDS=2", (1, 2)),
            ("LSB_JOBINDEX=3 LSB_JOBINDEX_STEP=1 LSB_JOBINDEX_END=8", (2, 8)), ("LSB_JOBINDEX=5 LSB_JOBINDEX_STEP=2 LSB_JOBINDEX_END=8", (2, 4)),
            ("SGE_TASK_ID=10 SGE_TASK_FIRST=10 SGE_TASK_LAST=30 SGE_TASK_STEPSIZE=10", (0, 3)),
            ("CI_NODE_INDEX=2 CI_NODE_TOTAL=2", (1, 2)), ("CIRCLE_NODE_INDEX=1 CIRCLE_NODE_TOTAL=2", (1, 2)),
            ("BUILDKITE_PARALLEL_JOB=0 BUILDKITE_PARALLEL_JOB_COUNT=2", (0, 2)), ("SYSTEM_JOBPOSITIONINPHASE=3 SYSTEM_TOTALJOBSINPHASE=3", (2, 3)),
            ("CI_NODE_INDEX=2 CI_NODE_TOTAL=2 JOB_COMPLETION_INDEX=1 CLINVK_SHARDS=2 SGE_TASK_ID=undefined LSB_JOBINDEX=0", (1, 2)),
        ]:
            with self.subTest(text):
                environment = dict(word.split("=") for word in text.split())
                shard = clinvk.shard_of_environment(environment)
                self.assertEqual(shard[:2], expected)
                self.assertEqual(int(environment[shard.source]) >= 0, True)

    def test_environment_that_states_no_shard_or_several_is_refused(self):
        slurm = "SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_MAX=%s SLURM_ARRAY_TASK_STEP=1 SLURM_ARRAY_TASK_COUNT=%s"
        for text, problem in [
            ("", "--shard auto: no environment variable states the place of this job in an array; give --shard K/N."),
            ("SGE_TASK_ID=undefined LSB_JOBINDEX=0 CI_NODE_INDEX=", "no environment variable states"),
            ("JOB_COMPLETION_INDEX=2", "CLINVK_SHARDS is not set; expected a whole number, because JOB_COMPLETION_INDEX is set"),
            ("JOB_COMPLETION_INDEX=3 CLINVK_SHARDS=3", "JOB_COMPLETION_INDEX is 3, which is none of 3 places from 0 on; give --shard K/N"),
            ("CI_NODE_INDEX=0 CI_NODE_TOTAL=3", "CI_NODE_INDEX is 0, which is none of 3 places from 1 on"),
            ("CI_NODE_INDEX=x CI_NODE_TOTAL=3", 'CI_NODE_INDEX is "x"; expected a whole number'),
            ("CI_NODE_INDEX=1 CI_NODE_TOTAL=-3", 'CI_NODE_TOTAL is "-3"; expected a whole number, because CI_NODE_INDEX is set'),
            ("CI_NODE_INDEX=1 CI_NODE_TOTAL=3 CIRCLE_NODE_INDEX=1 CIRCLE_NODE_TOTAL=3",
             "CI_NODE_INDEX states 1/3 and CIRCLE_NODE_INDEX states 2/3; give --shard K/N"),
            (slurm % (7, 3), "do not agree on the number of shards (3 by SLURM_ARRAY_TASK_COUNT, 7 by SLURM_ARRAY_TASK_MAX)"),
            (slurm % (4, 4) + " CLINVK_SHARDS=8", "do not agree on the number of shards (4 by SLURM_ARRAY_TASK_COUNT, 8 by CLINVK_SHARDS"),
            ("SGE_TASK_ID=11 SGE_TASK_FIRST=10 SGE_TASK_LAST=30 SGE_TASK_STEPSIZE=10", "SGE_TASK_ID is 11, which is none of 3 places from 10 on"),
        ]:
            with self.subTest(text):
                with self.assertRaises(clinvk.UserError) as caught:
                    clinvk.shard_of_environment(dict(word.split("=") for word in text.split()))
                self.assertIn(problem, str(caught.exception))

    def test_number_of_a_shard_is_checked(self):
        self.assertEqual((clinvk.parse_shard("2/3"), clinvk.parse_shard("auto")), (clinvk.Shard(1, 3), None))
        for text in ("0/3", "4/3", "1/0", "1", "1/", "/3", "-1/3", "1/3/5", " 1/3", "1.5/3", "", "Auto", "\u0661/3"):
            with self.subTest(text), self.assertRaises(ValueError):
                clinvk.parse_shard(text)


class Samples(TaskCase):
    """Tasks that run several times, and with each cell of a matrix."""

    REPEATS = (1, 3, 0, 2, 1, 2, 3)
    CELLS = clinvk.cells_of([("model", ("x", "y"))], str)

    def data(self, size=0):
        return b"\n".join(json.dumps({"backend": "echo", "prompt": "%d %s" % (number, "x" * size), **({"repeat": repeat} if repeat else {})}).encode()
                          for number, repeat in enumerate(self.REPEATS))

    def order(self, cells, shard=clinvk.WHOLE):
        """(position, sample, cell) in the order of the run: first samples of all tasks come first."""
        return [(number, sample, cell) for sample in range(1, max(self.REPEATS) + 1) for number, repeat in enumerate(self.REPEATS)
                for cell in cells if sample <= max(1, repeat) and number % shard.shards == shard.position]

    def taken(self, supply):
        jobs = list(support.jobs_of(supply))
        indexes = [job.index for job in jobs]
        self.assertEqual(indexes, sorted(set(indexes)))  # a Spool keeps results in this order
        for job in jobs:
            self.assertEqual(int(job.task.prompt.split()[0]), clinvk.sample_of(job).index)
            self.assertEqual(job.task.model, clinvk.sample_of(job).cell.get("model", ""))
        return [(sample.index, sample.sample, sample.cell.get("model", "")) for sample in map(clinvk.sample_of, jobs)]

    @support.only_in_full_runs
    def test_order_and_total_are_the_same_in_every_form_of_the_input(self):
        for cells, shard in itertools.product(((clinvk.NO_CELL,), self.CELLS), [clinvk.Shard(*one) for one in ((0, 1), (2, 3), (8, 9))]):
            words = [cell.sample.cell.get("model", "") for cell in cells]
            rules = {"cells": cells, "shard": shard}
            expected = self.order(words, shard)
            with self.subTest(cells=words, shard=shard):
                large = self.data(clinvk.SMALL_FILE_BYTES // 4)
                for data in (self.data(), b"[" + self.data().replace(b"\n", b",") + b"]", large):
                    file = os.open(self.file("input", data), os.O_RDONLY)
                    self.addCleanup(os.close, file)
                    stream = clinvk.TaskStream(file, "tasks", clinvk.TaskPolicy(cells=cells), self.warnings.append, shard)
                    self.assertEqual(stream.total, len(expected))
                    self.assertEqual(self.taken(stream), expected)
                    self.assertEqual(stream.total, len(expected))
                stream = self.pipe_stream(self.data(), **rules)
                self.assertEqual((stream.total, self.taken(stream)), (len(expected), expected))
                stream = self.pipe_stream(large, **rules)
                self.assertEqual((stream.total, self.taken(stream), stream.total), (None, expected, len(expected)))

    def test_tasks_of_a_list_are_repeated_too(self):
        tasks = [clinvk.Task("echo", "%d p" % number, repeat=repeat) for number, repeat in enumerate(self.REPEATS)]
        supply = clinvk.JobList(tasks)
        self.assertEqual((supply.total, self.taken(supply)), (sum(max(1, repeat) for repeat in self.REPEATS), self.order([""])))
        self.assertEqual(self.taken(clinvk.JobList(iter(tasks))), self.order([""]))

    def test_task_that_is_the_only_job_has_no_sample(self):
        self.assertEqual([(job.index, job.task.sample) for job in self.jobs(self.data()) if not job.task.sample], [(0, None), (2, None), (4, None)])

    def test_further_samples_come_after_the_end_of_the_input(self):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        os.write(writer, b'{"backend": "echo", "prompt": "0 p", "repeat": 2}')
        stream = clinvk.TaskStream(reader, "stdin", clinvk.TaskPolicy(), self.warnings.append)
        os.write(writer, b'{"backend": "echo", "prompt": "1 p", "repeat": 2}\n')
        jobs = support.jobs_of(stream)
        self.assertEqual([(job.index, job.task.sample.sample) for job in (next(jobs), next(jobs))], [(0, 1), (1, 1)])
        self.assertIsNone(stream.total)
        os.close(writer)
        self.assertEqual([(job.index, job.task.sample) for job in jobs], [(2, clinvk.Sample(0, 2, 2)), (3, clinvk.Sample(1, 2, 2))])
        self.assertEqual(stream.total, 4)

    def test_bad_input_in_a_matrix_is_one_result_with_its_position(self):
        data = b'{"backend": "echo", "prompt": "0"}\n{"bad": 1}\n{"backend": "echo", "prompt": "2"}\n'
        items = list(support.jobs_of(self.pipe_stream(data, cells=self.CELLS)))
        self.assertEqual([(item.index, clinvk.sample_of(item).index) for item in items], [(0, 0), (1, 0), (2, 1), (4, 2), (5, 2)])
        self.assertEqual(clinvk.result_fields(items[2])["index"], 1)

    def test_jobs_of_the_cells_are_not_kept(self):
        self.assertEqual(len(self.jobs(b"[" + self.data().replace(b"\n", b",") + b"]", cells=self.CELLS)), 2 * sum(max(1, one) for one in self.REPEATS))
        with unittest.mock.patch.object(clinvk, "_job", wraps=clinvk._job) as made:
            stream = self.stream(self.data(), cells=self.CELLS)
            self.assertEqual(made.call_count, 2 * len(self.REPEATS))  # validated
            stream.next_job()
            self.assertEqual(made.call_count, 2 * len(self.REPEATS) + 2)

    def test_cell_counts_before_defaults_and_a_task_that_sets_its_field_is_refused(self):
        batch = {"defaults": {"model": "d", "backend": "echo"}, "tasks": [{"prompt": "p"}]}
        self.assertEqual([task.model for task in self.tasks(json.dumps(batch).encode(), cells=self.CELLS)], ["x", "y"])
        batch["tasks"].append({"prompt": "p", "model": "own"})
        self.assertEqual(self.refused(json.dumps(batch).encode(), cells=self.CELLS),
                         "tasks.json:1: tasks[1].model: --matrix varies this field, so no task can set it")

    def test_each_cell_is_validated_before_a_task_starts(self):
        cells = clinvk.cells_of([("sandbox_mode", ("read-only", "full"))], str)
        self.assertIn("sandbox_mode: \"full\" is above the ceiling", self.refused(
            b'{"backend": "claude", "prompt": "p"}', cells=cells, ceiling=clinvk.parse_ceiling("sandbox=workspace")))


class Shapes(TaskCase):
    def test_input_of_each_shape_gives_the_same_tasks(self):
        expected = [clinvk.Task("echo", "a", id="1"), clinvk.Task("claude", "b")]
        one, two = {"backend": "echo", "prompt": "a", "id": "1"}, {"prompt": "b"}
        lines = json.dumps(one) + "\n" + json.dumps(two)
        for data in ({"tasks": [one, two]}, [one, two], lines, lines.replace("\n", ""), json.dumps([one]) + json.dumps({"tasks": [two]}),
                     json.dumps({"tasks": [one, two]}, indent=4), "\ufeff" + lines, lines.replace("\n", "\r\n\r\n")):
            self.assertEqual(self.tasks(data), expected)
            encoded = data.encode() if isinstance(data, str) else json.dumps(data).encode()
            self.assertEqual(self.piped(encoded), expected)

    def test_total_of_a_file_and_of_a_finished_pipe_is_known(self):
        data = support.tasks("a", "b", "c")
        self.assertEqual(self.stream(data).total, 3)
        self.assertEqual(self.pipe_stream(data).total, 3)
        stream = self.pipe_stream(data + b'{"prompt": 3}\n[{"prompt":"d"},{"prompt":"e"}]')
        self.assertEqual((stream.total, [item.task and item.task.prompt for item in support.jobs_of(stream)]), (6, ["a", "b", "c", None, "d", "e"]))

    def test_file_is_read_from_its_offset(self):
        path = self.file("input", b"a heading line\n" + support.tasks("a"))
        file = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, file)
        os.lseek(file, len(b"a heading line\n"), os.SEEK_SET)
        stream = clinvk.TaskStream(file, "stdin", clinvk.TaskPolicy(), self.warnings.append)
        self.assertEqual([job.task.prompt for job in support.jobs_of(stream)], ["a"])

    def test_prompt_of_any_characters_is_unchanged(self):
        for prompt in ("  spaces \n", "\0", "\ud800", "\udcff", "审查 \U0001f600", "x" * 300000, "-x", "\ufeff"):
            for backend in clinvk.BACKENDS:
                self.assertEqual(self.one({"prompt": prompt, "backend": backend}).prompt, prompt)

    def test_field_null_counts_as_left_out(self):
        nothing = {field: None for field in clinvk.TASK_FIELDS if field != "prompt"}
        self.assertEqual(self.one(nothing), clinvk.Task("claude", "p"))
        self.assertEqual(self.tasks({"tasks": [{"prompt": "p"}], "defaults": None, "max_parallel": None, "fail_fast": None, "output_dir": None}),
                         [clinvk.Task("claude", "p")])
        self.assertEqual(self.one({"model": None}, overrides={"model": "m"}).model, "m")

    def test_input_without_tasks_is_refused(self):
        for data in (b"", b" \n", b"\xef\xbb\xbf\n"):
            self.assertEqual(self.refused(data), "tasks.json: no tasks: the input is empty")
            with self.assertRaisesRegex(clinvk.UserError, "^stdin: no tasks: the input is empty$"):
                self.piped(data)
        for data in (b"\n[]", b"\n[ ]"):
            self.assertEqual(self.refused(data), "tasks.json:2: no tasks: the list is empty")
        self.assertEqual(self.refused(b'{\n"tasks":\n[]}'), "tasks.json:3: tasks: no tasks: the list is empty")


class Errors(TaskCase):
    def test_error_in_a_batch_has_file_line_and_path(self):
        batch = json.dumps({"max_parallel": 2, "tasks": [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}, {"prompt": "d", "max_turns": "ten"}]},
            indent=2)
        self.assertEqual(self.refused("\n" + batch), 'tasks.json:16: tasks[3].max_turns: expected a whole number, got "ten"')

    def test_error_of_every_kind_has_its_message(self):
        for data, message in (
                ('{"prompt":"a"}\n{"prompt":\n3}', 'tasks.json:3: prompt: expected a string, got 3'),
                ('[{"prompt":"a"},\n{"prompt":" "}]', "tasks.json:2: [1].prompt: must not be blank"),
                ('{"tasks":[{"prompt":"a","promt":"b"}]}',
                'tasks.json:1: tasks[0].promt: unknown field (did you mean "prompt"?); free data goes into "meta"'),
                ('{"tasks":[{"prompt":"a"}],\n"zebra":1}', 'tasks.json:2: zebra: unknown field'),
                ('{"tasks":[{"prompt":"a"}],"max_paralel":1}', 'tasks.json:1: max_paralel: unknown field (did you mean "max_parallel"?)'),
                ('{"task":[{"prompt":"a"}]}', 'tasks.json:1: task: unknown field (did you mean "tasks"?)'),
                ('{"prompt":"a","cwd":"/"}', 'tasks.json:1: cwd: unknown field (did you mean "workdir"?)'),
                ('{"prompt":"a","args":[]}', 'tasks.json:1: args: unknown field (did you mean "extra"?)'),
                ('{"prompt":"a","system":"b"}', 'tasks.json:1: system: unknown field (did you mean "system_prompt"?)'),
                ('{"prompt":"a","files":[]}', 'tasks.json:1: files: unknown field; name the files in the prompt, and'),
                ('{"prompt":"a","retries":3}',
                'tasks.json:1: retries: unknown field; it is for the whole run: give the option, or the field of a batch'),
                ('{"tasks":[{"prompt":"a"}],"timeout":9}',
                'tasks.json:1: timeout: unknown field; it is for one task: put it into the task or into "defaults"'),
                ('{"tasks":[{"prompt":"a"}],"name":"n"}', 'tasks.json:1: name: unknown field; it is for one task: put it into the task'),
                ('{"tasks":[{"prompt":"a"}],"defaults":{"retries":3}}', 'tasks.json:1: defaults.retries: unknown field; it is for the whole run: '),
                ('{"tasks":[{"prompt":"a"}],"results":"r"}', "tasks.json:1: results: unknown field; give the option --results"),
                ('{"workers":2,"tasks":[{"prompt":"a"}]}', 'tasks.json:1: workers: unknown field (did you mean "max_parallel"?)'),
                ('{"promt":"a"}', 'tasks.json:1: promt: unknown field (did you mean "prompt"?); free data goes into "meta"'),
                ('{"backends":{}}', "tasks.json:1: a batch needs a list of tasks"),
                ('{"defaults":{},"prompts":[]}', "tasks.json:1: a batch needs a list of tasks"),
                ('{"max_paralel":3}', 'tasks.json:1: max_paralel: unknown field (did you mean "max_parallel"?)'),
                ('{"prompt":"a","x\\nclinvk: error: y":1}', 'tasks.json:1: ["x\\nclinvk: error: y"]: unknown field'),
                ('{"prompt":"a","":1}', 'tasks.json:1: [""]: unknown field'),
                ('{"prompt":"a","%s":1}' % ("x" * 500), 'tasks.json:1: ["%s...]: unknown field' % ("x" * 56)),
                ('{"prompt":"a","a-b.c":1}', "tasks.json:1: a-b.c: unknown field"),
                ('{"tasks":[{"prompt":"a"}],"defaults":{"a b":1}}', 'tasks.json:1: defaults["a b"]: unknown field'),
                ('{"backend":"echo"}', "tasks.json:1: a task needs a prompt"),
                ('[\n{"prompt":"a"},\n\n{"backend":"echo"}]', "tasks.json:4: [1]: a task needs a prompt"),
                ('{"backend":"echo",\n"prompt":null}', "tasks.json:1: a task needs a prompt"), ("{}", "tasks.json:1: a task needs a prompt"),
                ('{"tasks":{}}', "tasks.json:1: tasks: expected a list of tasks, got {}"),
                ('{"tasks":null}', "tasks.json:1: tasks: expected a list of tasks, got null"),
                ('{"tasks":["a"]}', 'tasks.json:1: tasks[0]: expected a task (an object), got "a"'),
                ("[[]]", "tasks.json:1: [0]: expected a task (an object), got []"),
                ('{"tasks":[{"prompt":"a"}],"defaults":[]}', "tasks.json:1: defaults: expected an object, got []"),
                ('{"tasks":[{"prompt":"a"}],\n"defaults":{\n"prompt":"b"}}', "tasks.json:3: defaults.prompt: unknown field"),
                ('{"tasks":[{"prompt":"a"}],"max_parallel":0}', "tasks.json:1: max_parallel: expected a whole number from 1 on, got 0"),
                ('{"tasks":[{"prompt":"a"}],"max_parallel":100000000}', "tasks.json:1: max_parallel: expected at most 1000, got 100000000"),
                ('{"tasks":[{"prompt":"a"}],"fail_fast":1}', "tasks.json:1: fail_fast: expected true or false, got 1"),
                ('{"tasks":[{"prompt":"a"}],"output_dir":""}', "tasks.json:1: output_dir: must not be blank"),
                ('{"prompt":"a","tags":["x",\n["y"]]}', 'tasks.json:2: tags[1]: expected a string, got ["y"]'),
                ('{"prompt":"a","extra":["x","",3]}', "tasks.json:1: extra[1]: must not be blank"),
                ('{"prompt":"a","backend":"claud"}', 'tasks.json:1: backend: unknown backend "claud" (did you mean "claude"?); ' + support.KNOWN),
                ('{"prompt":"a","sandbox_mode":"workspace",\n"approval_mode":"none"}',
                "tasks.json:1: sandbox_mode: claude: without approval nothing would keep it in the workspace: "
                 'use approval_mode "auto", or sandbox_mode "full"'),
                ("hello", 'tasks.json:1: expected a JSON object or array, got "hello"'),
                ("\n12\n", 'tasks.json:2: expected a JSON object or array, got "12"'),
                ("\xff{}".encode("latin-1"), "tasks.json:1: expected a JSON object or array, got "),
                ('{"prompt":"a"}'.encode("utf-16"),
                'tasks.json:1: expected a JSON object or array, got "\\udcff\\udcfe{\\u0000\\"\\u0000p'
                 '\\u0000r\\u0000o\\u0000m\\u0000p...: the input is UTF-16; `iconv -f UTF-16 '),
                ('{"prompt":"a"\n"x"}', "tasks.json:2: not valid JSON: Expecting ',' delimiter (column 1)"),
                ('{"prompt":NaN}', "tasks.json:1: not valid JSON: NaN is not JSON"),
                ('{"prompt":"a","meta":{"x":1e999}}', "tasks.json:1: not valid JSON: "), ('{"prompt":"a",}', "tasks.json:1: not valid JSON: "),
                ('{"prompt":"a\nb"}', "tasks.json:1: not valid JSON: "), ('{"prompt":"a"', "tasks.json:1: not valid JSON: "),
                ('{"prompt":"a"}]', "tasks.json:1: expected a JSON object or array, got "),
                ('{"tasks":[{"prompt":"a"},\n{"prompt":"b"}', "tasks.json:2: not valid JSON: Expecting ',' delimiter (column 15); "
                 "the input ends inside of the value that begins in line 1"), ("[" * 100000 + "]" * 100000, "tasks.json:1: nested too deep"),
                ('{"prompt":"a","meta":{"x":' + "[" * 100000 + "]" * 100000 + "}}", "tasks.json:1: nested too deep")):
            with self.subTest(data[:80]):
                refused = self.refused(data)
                self.assertTrue(refused.startswith(message), refused)
                self.assertLess(len(refused), 300)
                self.assertNotIn("\n", refused)

    def test_id_used_twice_is_refused_in_every_shape(self):
        one = '{"prompt":"a","id":"x"}'
        for data, message in (
                (one + "\n" + one, "tasks.json:2: id: "), ("[%s,\n%s]" % (one, one), "tasks.json:2: [1].id: "),
                ('{"tasks":[%s,\n%s]}' % (one, one), "tasks.json:2: tasks[1].id: "),
                (one + '\n{"tasks":[%s]}' % one, "tasks.json:2: tasks[0].id: "), (one + "\n[%s]" % one, "tasks.json:2: [0].id: "),
                ("[%s]\n\n" % one + one, "tasks.json:3: id: "),
                (one + '\n{"max_parallel":2,\n"tasks":[{"prompt":"b"},\n%s]}' % one, "tasks.json:4: tasks[1].id: ")):
            with self.subTest(data):
                self.assertEqual(self.refused(data), message + 'another task of this run has the id "x"')
                tasks = []
                try:
                    tasks = self.piped(data.encode())
                except clinvk.UserError as error:  # it stands in the first value
                    self.assertEqual(str(error), message.replace("tasks.json", "stdin") + 'another task of this run has the id "x"')
                if tasks:
                    self.assertEqual(tasks[-1].error, message.replace("tasks.json", "stdin") + 'another task of this run has the id "x"')

    def test_id_of_a_refused_value_is_free_again(self):
        data = b'{"prompt":"a"}\n[{"prompt":"b","id":"x"},{"prompt":3}]\n{"prompt":"c","id":"x"}\n'
        tasks = self.piped(data)
        self.assertEqual([getattr(item, "id", "failed") for item in tasks], ["", "failed", "x"])


class Repeated(TaskCase):
    def test_key_used_twice_is_refused_with_its_last_line(self):
        for data, place in (
                ('{"prompt":"a",\n"prompt":"b"}', "2: prompt"), ('{"sandbox_mode":"full","prompt":"a","sandbox_mode":"full"}', "1: sandbox_mode"),
                ('{"tasks":[{"prompt":"a"}],\n"tasks":[{"prompt":"b"}]}', "2: tasks"),
                ('{"defaults":{"timeout":1},\n"defaults":{},"tasks":[{"prompt":"a"}]}', "2: defaults"),
                ('[{"prompt":"a"},\n{"prompt":"b","id":"x",\n"id":"x"}]', "3: [1].id"),
                ('{"tasks":[{"prompt":"a","meta":{"k":1,\n"l":[{"m":1,\n"m":1}]}}]}', "3: tasks[0].meta.l[0].m"),
                ('{"prompt":"a","meta":{"x":{"y":1,"y":2},\n"x":3}}', "2: meta.x"), ('{"prompt":"a","meta":{"\\u0061":1,\n"a":2}}', "2: meta.a"),
                ('{"a":1,"b":2,\n"a":3}', "2: a")):
            with self.subTest(data):
                self.assertEqual(self.refused(data), "tasks.json:%s: the key is given twice in one object" % place)
        self.assertEqual(self.one({"meta": {"a": {"k": 1}, "b": {"k": 1}, "k": [{"k": 1}, {"k": 1}]}}).meta["b"], {"k": 1},
            "each object has its own keys")

    def test_key_used_twice_on_a_pipe_is_one_failed_task(self):
        tasks = self.piped(b'{"prompt":"a"}\n{"prompt":"b","prompt":"c"}\n{"prompt":"d"}\n')
        self.assertEqual([getattr(item, "error", "") or item.prompt for item in tasks],
            ["a", "stdin:2: prompt: the key is given twice in one object", "d"])

    def test_key_used_twice_before_bad_json_is_not_the_error(self):
        self.assertTrue(self.refused('{"prompt":"a","prompt":"b"\nx}').startswith("tasks.json:2: not valid JSON: "))


class Repairs(TaskCase):
    def test_repair_of_json_from_models_is_in_the_message(self):
        for data, line, repair in (
                ('[{"prompt":"a"}\n,]', 2, "remove the comma before the closing bracket"),
                ('{"prompt":"a",}', 1, "remove the comma before the closing bracket"),
                ('{"prompt":"a",\n"tags":["x", ]}', 2, "remove the comma before the closing bracket"),
                ('{"prompt":"a"},\n{"prompt":"b"}', 1, "remove the comma between values, or put the values into [ ]"),
                ('{"tasks":[\n// the first\n{"prompt":"a"}]}', 2, "remove the comment; JSON has none"),
                ('# tasks\n{"prompt":"a"}', 1, "remove the comment"), ('[/* x */{"prompt":"a"}]', 1, "remove the comment"),
                ("{'prompt':'a'}", 1, 'JSON has no quotes but "'), ('{"prompt":\'a\'}', 1, 'JSON has no quotes but "'),
                ("'a'", 1, 'JSON has no quotes but "'),
                ('{\u201cprompt\u201d:"a"}', 1, 'JSON has no quotes but "'),
                ('{"prompt":\u00aba\u00bb}', 1, 'JSON has no quotes but "'),
                ('{"prompt":\u201ea\u201c}', 1, 'JSON has no quotes but "'),
                ('{"prompt":"a","dry_run":True}', 1, "JSON has true, false and null"), ('{"prompt":"a","id":None}', 1, "JSON has true"),
                ('{prompt:"a"}', 1, "Expecting property name enclosed in double quotes"),
                ('{"prompt":"a\nb"}', 1, "write a line break in it as \\n"), ('{"prompt":"a\tb"}', 1, "write it as \\t in a string"),
                ('{"prompt":"a\x1b[0m"}', 1, "write it as \\u001b in a string"),
                ('{"prompt":"C:\\_x"}', 1, "write a backslash in a string as \\\\"),
                ('{"prompt":"say "hi" now"}', 1, 'or a backslash before a " inside of a string'),
                ('{"prompt":"a" "id":"b"}', 1, "a comma is missing here"),
                ("```json\n[]\n```", 1, "strips"), ('{"prompt":"a"}\n```', 2, "strips"),
                ('"a text"', 1, "`jq '{prompt: .}'` makes a task of a string"), ("The tasks are:\n[]", 1, "leave only the JSON; `jq -R '{prompt: .}'` makes a task of each line")):
            with self.subTest(data):
                refused = self.refused(data.encode())
                self.assertTrue(refused.startswith("tasks.json:%d: " % line) and (": " + repair in refused or repair in refused.partition(": ")[2]),
                    refused)

    def test_repair_names_invisible_characters_without_showing_them(self):
        for character, name in (("\f", "U+000C (a control character)"), ("\xa0", "U+00A0 (NO-BREAK SPACE)"), ("\u2028", "U+2028 (LINE SEPARATOR)"),
            ("\u200b", "U+200B (ZERO WIDTH SPACE)"),
                                ("\x0b", "U+000B"), ("\x85", "U+0085"), ("\0", "U+0000"), ("\u3000", "U+3000 (IDEOGRAPHIC SPACE)"),
                                ("\u202e", "U+202E (RIGHT-TO-LEFT OVERRIDE)")):
            for data in (character + '{"prompt":"a"}', '{"prompt":"a"}' + character + '{"prompt":"b"}', '{"prompt":' + character + '"a"}',
                '{"prompt":"a"},' + character):
                with self.subTest(data=data):
                    refused = self.refused(data.encode())
                    self.assertTrue(refused.isprintable(), ascii(refused))
                    if not data.endswith(character):
                        self.assertIn("remove %s" % name, refused)

    def test_repair_names_utf_16_and_utf_32(self):
        for codec, name in (("utf-16", "UTF-16"), ("utf-32", "UTF-32"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"),
            ("utf-32-le", "UTF-32LE"), ("utf-32-be", "UTF-32BE")):
            for text in ('{"prompt":"a"}\n', '[\n{"prompt":"a"}\n]\n'):
                self.assertIn(": the input is %s; `iconv -f %s -t UTF-8` makes it UTF-8" % (name, name), self.refused(text.encode(codec)))


    def test_table_and_content_in_utf_16_and_utf_32_are_named(self):
        for codec in ("utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
            name = codec.upper().replace("-LE", "LE").replace("-BE", "BE")
            advice = ": the input is %s; `iconv -f %s -t UTF-8` makes it UTF-8" % (name, name)
            for form, text in (("csv", "a,b\r\nx,y\r\n"), ("tsv", "a\nx\n"), ("csv", '"a\n",b\n"x","y"\n'), ("lines", "\xe9\n")):
                file = self.file("wide", text.encode(codec))
                template = clinvk.Template({"prompt": "{@}" if form == "lines" else "{a}"}, form)
                found = self.refused(file.encode() if form == "lines" else text.encode(codec), template=template)
                self.assertTrue(found.endswith(advice), found)

    def test_byte_order_mark_of_a_file_is_no_part_of_its_text(self):
        file = self.file("marked", b"\xef\xbb\xbfa\xef\xbb\xbf\n")
        self.assertEqual(clinvk.read_prompt(file, "--prompt-file"), "a\ufeff\n")
        self.assertEqual([task.prompt for task in self.tasks(file.encode(), template=clinvk.Template({"prompt": "<{@}>"}))], ["<a\ufeff\n>"])
        with open(file, "rb") as prompt, support.descriptor_is(0, prompt.fileno()):
            self.assertEqual(clinvk.read_prompt("-"), "\ufeffa\ufeff\n", "a prompt may be any bytes")
        self.file("marked", b"\xef\xbb\xbfa\n\xff")
        self.assertIn("byte 0xff in line 2 is not UTF-8", self.refused(file.encode(), template=clinvk.Template({"prompt": "{@}"})))

    def test_nul_byte_in_ordinary_text_is_not_utf_16(self):
        for data in (b"a\0b", b"a\0bc", b"\0ab", b"ab\0", b"abc\0d\0e\0"):
            self.assertEqual(clinvk.wide_encoding(data), "", data)
            file = self.file("text", data)
            self.assertEqual(self.refused(file.encode(), template=clinvk.Template({"prompt": "{@}"})),
                             'tasks.json:1: "%s" is not text: it contains a NUL byte' % file)
        for text in ("a", "ab", "abc"):
            for codec in ("utf-16-le", "utf-16-be"):
                self.assertIn(codec.upper().replace("-", "")[3:], clinvk.wide_encoding(text.encode(codec)).replace("-", ""), (text, codec))

    def test_prompt_file_and_schema_in_utf_16_are_named(self):
        file = self.file("wide", '{"type": "object"}'.encode("utf-16"))
        advice = "%s: the input is UTF-16; `iconv -f UTF-16 -t UTF-8` makes it UTF-8" % file
        with self.assertRaises(clinvk.UserError) as caught:
            clinvk.read_prompt(file, "--prompt-file")
        self.assertEqual(str(caught.exception), "--prompt-file " + advice)
        with self.assertRaises(ValueError) as caught:
            clinvk.read_schema(file)
        self.assertEqual(str(caught.exception), advice)
        with self.assertRaisesRegex(ValueError, r"^text:2: not valid JSON: .* \(column 1[78]\): remove the comma before the closing bracket$"):
            clinvk.read_schema('{\n"type": "object",}')


class Large(TaskCase):
    """Values whose tasks are parsed one by one.  Here every array counts as large."""

    def setUp(self):
        super().setUp()
        patch = unittest.mock.patch.object(clinvk, "LARGE_BYTES", 0)
        patch.start()
        self.addCleanup(patch.stop)

    # The same tests as for values that are parsed as a whole.
    test_error_of_every_kind_has_its_message = Errors.test_error_of_every_kind_has_its_message
    test_id_used_twice_is_refused_in_every_shape = Errors.test_id_used_twice_is_refused_in_every_shape
    test_id_of_a_refused_value_is_free_again = Errors.test_id_of_a_refused_value_is_free_again
    test_input_of_each_shape_gives_the_same_tasks = Shapes.test_input_of_each_shape_gives_the_same_tasks
    test_input_without_tasks_is_refused = Shapes.test_input_without_tasks_is_refused
    test_key_used_twice = Repeated.test_key_used_twice_is_refused_with_its_last_line

    def test_large_value_gives_the_tasks_of_a_small_one(self):
        chance = random.Random(12)
        for _ in range(60):
            items = [{"prompt": chance.choice(("a", "]},{[\"", "审\n查")), "tags": ["x"] * chance.randrange(3), "meta": {"k": [[], {"l": []}]},
                "id": str(number)}
                     for number in range(chance.randrange(1, 6))]
            value = chance.choice((items, {"tasks": items, "defaults": {"extra": ["-x"] * chance.randrange(40)}}, {"max_parallel": 2, "tasks": items},
                items[0]))
            data = json.dumps(value, ensure_ascii=chance.random() < 0.5, indent=chance.choice((None, 1)))
            with unittest.mock.patch.object(clinvk, "LARGE_BYTES", 1 << 20):
                expected = self.tasks(data)
            self.assertEqual(self.tasks(data), expected)
            self.assertEqual(self.piped(data.encode() + b' {"prompt":"last"}')[:-1], expected)

    def test_large_value_with_bad_elements_is_refused(self):
        for data, message in (
                ('[{"prompt":"a"},\n]', "2: not valid JSON: Expecting value (column 1): remove the comma before the closing bracket"),
                ('[{"prompt":"a"}\n\n {"prompt":"é"}]', "3: not valid JSON: Expecting ',' delimiter (column 2): a comma is missing"),
                ('[{"prompt":"a"},,{"prompt":"b"}]', "1: not valid JSON: Expecting value (column 17)"),
                ('[{"prompt":"a"}\nx]', "2: not valid JSON: Expecting ',' delimiter (column 1)"),
                ('[,{"prompt":"a"}]', "1: not valid JSON: Expecting value (column 2)"),
                ('[{"prompt":"é"} 5]', "1: not valid JSON: Expecting ',' delimiter (column 17)"),
                ('[{"prompt":"a"}, 5]', "1: [1]: expected a task (an object), got 5"),
                ('[{"prompt":"a"},\n"x\\"]"]', '2: [1]: expected a task (an object), got "x\\"]"'),
                ('[{"prompt":"a"},\n# b\n]', "2: not valid JSON: Expecting value (column 1): remove the comment"),
                ('[{"prompt":"é"},\n  {"prompt":}]', "2: not valid JSON: Expecting value (column 13)"),
                ('[{"prompt":"é"},\n  {"prompt":"é","id":}]', "2: not valid JSON: Expecting value (column 22)"),
                ('[{"prompt":"a"},\n{"prompt":"b","id":"x",\n"id":"y"}]', "3: [1].id: the key is given twice"),
                ('{"tasks":[{"prompt":"a"}],\n"defaults":}', "2: not valid JSON: ")):
            with self.subTest(data):
                self.assertTrue(self.refused(data).startswith("tasks.json:" + message), self.refused(data))

    def test_large_value_is_validated_first_and_not_kept_parsed(self):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        os.write(writer, json.dumps([{"prompt": "a"}, {"prompt": "b"}, {"prompt": 3}]).encode() + b'\n')
        os.close(writer)
        with self.assertRaisesRegex(clinvk.UserError, r"stdin:1: \[2\].prompt: expected a string"):
            clinvk.TaskStream(reader, "stdin", clinvk.TaskPolicy(), self.warnings.append)
        stream = self.pipe_stream(json.dumps({"tasks": [{"prompt": "p"}] * 1000}).encode())
        with unittest.mock.patch.object(clinvk, "_job", side_effect=clinvk._job) as made:
            self.assertEqual(sum(1 for _ in itertools.islice(support.jobs_of(stream), 5)), 5)
            self.assertLessEqual(made.call_count, 5)

    def test_large_file_is_parsed_twice(self):
        data = {"tasks": [{"prompt": "p", "id": str(number)} for number in range(100)], "max_parallel": 2}
        with unittest.mock.patch.object(clinvk, "SMALL_FILE_BYTES", 0), unittest.mock.patch.object(clinvk, "_job", side_effect=clinvk._job) as made:
            stream = self.stream(data)
            self.assertEqual((stream.total, stream.run, [job.task.id for job in support.jobs_of(stream)]),
                (100, {"max_parallel": 2}, [str(number) for number in range(100)]))
        self.assertEqual(made.call_count, 200)

    def test_large_value_with_a_task_bad_since_validation_fails_that_task(self):
        os.mkdir(self.path("in"))
        os.symlink("in", self.path("link"))
        stream = self.pipe_stream(json.dumps([{"prompt": name, "workdir": self.path(name)} for name in ("in", "link", "in")]).encode(),
            root=self.path("in"))
        os.unlink(self.path("link"))
        os.symlink("/", self.path("link"))
        tasks = list(support.jobs_of(stream))
        self.assertEqual([(item.index, item.task and item.task.prompt) for item in tasks], [(0, "in"), (1, None), (2, "in")])
        self.assertIn("stdin:1: [1].workdir: ", tasks[1].error)


class Bounds(TaskCase):
    @support.only_in_full_runs
    def test_value_over_the_limit_is_one_error(self):
        message = "the JSON value that begins here is larger than 0 MB; write tasks on lines of their own"
        inside = b'{"prompt":"inside"}\n'
        for begin, end in ((b'[\n', b'{"prompt":"x"}]'), (b'{"tasks":[\n', b'{}]}'), (b'["', b'"]\n')):
            body = begin + (inside + b",") * 10000 + end if not begin.endswith(b'"') else begin + b"x" * 200000 + end
            for tail in (b'\n{"prompt":"after"}\n', b""):
                with self.subTest(begin=begin, tail=tail), unittest.mock.patch.object(clinvk, "MAX_VALUE_BYTES", 1000):
                    tasks = self.piped(b'{"prompt":"first"}\n' + body + tail)
                    self.assertEqual([(getattr(item, "prompt", ""), getattr(item, "error", "").partition("; ")[0]) for item in tasks],
                                     [("first", ""), ("", "stdin:2: " + message.partition("; ")[0])] + [("after", "")] * bool(tail))
                    self.assertIn("tasks.json:1: " + message, self.refused(body + tail))

    @support.only_in_full_runs
    def test_splitter_buffer_is_bounded(self):
        with unittest.mock.patch.object(clinvk, "MAX_VALUE_BYTES", 1 << 16):
            for begin, unit in ((b'{"prompt":"', b"x"), (b"", b"x"), (b"", b"["), (b'{"a":', b"["), (b"[", b"1,"), (b"", b"\xef\xbb\xbf"),
                (b"x\n", b"\n"), (b"", b" ")):
                kept = []

                def chunks(begin=begin, unit=unit, kept=kept):
                    yield begin or b" "
                    for _ in range(16):
                        yield unit * (20000 // len(unit))
                        kept.append(len(splitter._buffer))

                splitter = clinvk.ValueSplitter(chunks())
                list(splitter)
                self.assertLess(max(kept), 1 << 17, (begin, unit))

    def test_large_value_cut_off_is_not_parsed(self):
        with unittest.mock.patch.object(clinvk, "SMALL_FILE_BYTES", 100), unittest.mock.patch.object(clinvk, "loads_unique") as parse:
            for torn in (b'{"prompt":"' + b"x" * 100, b"[" * 200, b'[{"prompt":"x"},' * 20):
                self.assertEqual(self.refused(b"\n" + torn), "tasks.json:2: the input ends inside of the JSON value that begins here")
        parse.assert_not_called()

    def test_device_without_end_is_refused(self):
        message = "%s: is a device; expected a regular file, a pipe or a terminal"
        for call in (clinvk.open_tasks, clinvk.read_chain):
            with self.assertRaises(clinvk.UserError) as caught:
                call("/dev/zero", clinvk.TaskPolicy(), self.warnings.append)
            self.assertEqual(str(caught.exception), message % "/dev/zero")
        with open("/dev/zero", "rb") as zero, support.descriptor_is(0, zero.fileno()), \
                self.assertRaisesRegex(clinvk.UserError, "^" + message % "stdin"):
            clinvk.open_tasks(None, clinvk.TaskPolicy(), self.warnings.append)
        with self.assertRaisesRegex(clinvk.UserError, "^/dev/null: no tasks: the input is empty"):
            clinvk.open_tasks("/dev/null", clinvk.TaskPolicy(), self.warnings.append)


LONG = "x" * 500
# per field: values that are taken, with what becomes of them, and values that are not, with the start of what is said
FIELDS = {
    "backend": ([("codex", "codex")], [("", "must not be blank"), (3, "expected a string, got 3"), ("CLAUDE", 'unknown backend "CLAUDE"'),
    (["claude"], "expected a string, got [")]),
    "prompt": ([("x", "x"), (" a\n", " a\n"), ("\0", "\0")],
    [("", "must not be blank"), (" \n\t", "must not be blank"), (3, "expected a string, got 3"), (["a"], "expected a string"),
    ({}, "expected a string")]),
    "model": ([("opus", "opus"), (LONG, LONG), ("\udcff", "\udcff")],
    [("", "must not be blank"), ("a\0b", "must not contain NUL"), ("\ud800", "contains a character that cannot be passed"),
                                                                              ("-x", "no model begins with -, as \"-x\" does"),
                                                                              ("--y=z", "no model begins with -"), (1, "expected a string")]),
    "workdir": ([("/x y", "/x y"), ("审查", "审查"), (".", ".")],
    [("", "must not be blank"), ("\0", "must not contain NUL"), (False, "expected a string, got false")]),
    "approval_mode": ([(mode, mode) for mode in clinvk.APPROVAL_MODES],
    [("", 'unknown approval mode ""'), ("never", 'unknown approval mode "never"'), (True, "unknown approval mode true"),
    ({}, "unknown approval mode {}")]),
    "sandbox_mode": ([(mode, mode) for mode in clinvk.SANDBOX_MODES],
    [("readonly", 'unknown sandbox mode "readonly" (did you mean "read-only"?); known are default, read-only, workspace, full')]),
    "output_format": ([("json", None), ("", None)], [(1, "expected a string, got 1")]),
    "max_tokens": ([(1, 1), (10 ** 6, 10 ** 6)],
    [(0, "expected a whole number from 1 on, got 0"), (-1, "expected a whole number from 1 on"), (1.0, "expected a whole number, got 1.0"),
    (True, "expected a whole number, got true"), ("1", 'expected a whole number, got "1"')]),
    "max_turns": ([(1, 1), (99, 99)], [(0, "expected a whole number from 1 on, got 0"), (2.5, "expected a whole number, got 2.5"),
    ([], "expected a whole number, got []"), (False, "expected a whole number, got false")]),
    "system_prompt": ([("be brief", "be brief"), ("a\nb", "a\nb")],
    [("  ", "must not be blank"), ("\0", "must not contain NUL"), ("\ud800", "contains a character"), ({}, "expected a string")]),
    "timeout": ([(90, 90.0), (0.5, 0.5), ("90", 90.0), ("1.5m", 90.0), ("2h", 7200.0)],
                [(0, "expected seconds above 0"), (-1, "expected seconds above 0"), (True, "expected seconds above 0"),
                ("soon", "expected a duration such as"), ("0s", "expected a duration above 0"), ([], "expected seconds above 0"),
                ("", "expected a duration")]),
    "idle_timeout": ([(90, 90.0), ("1.5m", 90.0)], [(0, "expected seconds above 0"), ("soon", "expected a duration such as")]),
    "effort": ([(effort, effort) for effort in ("low", "medium", "high", "xhigh", "max")],
    [("extra", 'unknown effort "extra"; known are low, medium, high, xhigh, max'), ("hihg", 'unknown effort "hihg" (did you mean "high"?)'), (3, "unknown effort 3")]),
    "answer_only": ([(False, False), (True, True)], [(1, "expected true or false, got 1")]),
    "literal": ([(False, False), (True, True)], [(1, "expected true or false, got 1"), ("true", 'expected true or false, got "true"')]),
    "max_output": ([(1, 1), (5000, 5000), ("500K", 512000), ("64M", 64 << 20), ("1.5 GiB", 3 << 29)],
                   [(0, "expected a number of bytes above 0 or a size"), (1.5, "expected a number of bytes"), (True, "expected a number of bytes"),
                   (1 << 70, "expected a number of bytes"), ("much", "expected a size such as 500K, 64M or 1G"), ("0", "expected a size of 1 byte or more"), ("", "expected a size")]),
    "extra": ([([], ()), (["-x", "a b"], ("-x", "a b"))],
    [("-x", "expected a list of strings"), ([1], "expected a string, got 1"), ([""], "must not be blank"), (["a\0"], "must not contain NUL"),
    ({"a": 1}, "expected a list of strings")]),
    "check": ([("make test", (("sh", "-c", "make test"),)), (["a b", ["grep", "-q", "x"]], (("sh", "-c", "a b"), ("grep", "-q", "x"))), ([], ())],
              [(1, "expected a command, or a list of commands, got 1"), ([[]], "expected a command: a text for sh -c, or a list of arguments, got []"),
               (" ", "must not be blank"), ([["a", 1]], "expected a string, got 1"), ([{}], "expected a command: a text"), (["a\0"], "must not contain NUL")]),
    "require_change": ([(True, True), (False, False)], [(1, "expected true or false, got 1")]),
    "protect": ([("tests/*", ("tests/*",)), (["a", "b"], ("a", "b")), ("./a", ("a",)), (".//././a//b/", ("a/b/",)), (".git*/..x/[.]/a.", (".git*/..x/[.]/a.",))],
                [(1, "expected a list of strings, got 1"), ([" "], "must not be blank"), ([1], "expected a string"),
                 *((text, "expected a pattern for paths from the top of the git work tree, without / before it or a part . or .. or .git, such as tests/* (* matches all paths), "
                    "got " + json.dumps(text)) for text in ("/tests", "//tests", "/", ".", "./", "..", "../r/tests", "a/../b", "a/.", "a/./b", "./../a", ".//", ".git", "./.git/hooks", "a/.git/"))]),
    "schema_retries": ([(0, 0), (5, 5)], [(6, "expected at most 5, got 6"), (-1, "expected a whole number from 0 on"), (True, "expected a whole number")]),
    "attempts": ([(1, 1), (9, 9)], [(0, "expected a whole number from 1 on, got 0"), ("2", 'expected a whole number, got "2"')]),
    "check_timeout": ([(90, 90.0), ("10m", 600.0)], [(0, "expected seconds above 0"), ("soon", "expected a duration such as")]),
    "verbose": ([(True, True), (False, False)], [(1, "expected true or false, got 1"), ("yes", "expected true or false")]),
    "dry_run": ([(True, True), (False, False)], [(0, "expected true or false, got 0"), ("", "expected true or false")]),
    "id": ([("1", "1"), ("../../x", "../../x"), (LONG, LONG)], [("", "must not be blank"), (1, "expected a string, got 1")]),
    "name": ([("审查 auth", "审查 auth"), ("a\nb", "a\nb")], [(" ", "must not be blank"), (1.5, "expected a string, got 1.5")]),
    "tags": ([([], ()), (["a", "", "审"], ("a", "", "审"))],
    [("a", "expected a list of strings"), ([None], "expected a string, got null"), ([["a"]], "expected a string")]),
    "repeat": ([(1, 1), (1000, 1000)], [(0, "expected a whole number from 1 on, got 0"), (1001, "expected at most 1000, got 1001"), ("2", "expected a whole number")]),
    "meta": ([({}, {}), ({"a": [None, {"b": 1.5}]}, {"a": [None, {"b": 1.5}]})],
    [([], "expected an object, got []"), ("x", "expected an object"), (0, "expected an object, got 0")]),
    "schema": ([({"type": "object"}, {"type": "object"})],
    [("s.json", 'expected a JSON Schema (an object), got "s.json"; the option --schema reads a file'), ([], "expected a JSON Schema (an object), got []"),
    ({}, 'the type of an answer must be "object", but "type" is missing; wrap a list as {"type": "object", "properties": {"items": ...}}'),
    ({"type": "array"}, 'the type of an answer must be "object", not "array"; wrap a list'), ({"type": ["object"]}, 'the type of an answer must be "object"')]),
}


class Fields(TaskCase):
    def setUp(self):
        super().setUp()
        patch = unittest.mock.patch.object(clinvk, "work_tree", return_value="/")  # for require_change
        patch.start()
        self.addCleanup(patch.stop)

    def test_fields_table_has_every_field(self):
        self.assertEqual(set(FIELDS), set(clinvk.TASK_FIELDS))
        self.assertEqual(set(clinvk.TASK_FIELDS) - {"output_format"}, set(clinvk.Task._fields) - {"write_to", "sample"})

    def test_field_with_a_good_value_is_kept(self):
        for field, (good, _) in FIELDS.items():
            for value, kept in good:
                with self.subTest(field=field, value=value):
                    task = self.one({field: value, "backend": "echo"} if field == "sandbox_mode" else {field: value}, allow_commands=True)
                    if field != "output_format":
                        self.assertEqual(getattr(task, field), kept)
                        self.assertIs(type(getattr(task, field)), type(kept))

    def test_field_with_a_bad_value_is_refused(self):
        for field, (_, bad) in FIELDS.items():
            for value, message in bad:
                with self.subTest(field=field, value=value):
                    refused = self.refused(dict({"prompt": "p"}, **{field: value}), allow_commands=True)
                    step = r"(\[\d\])*" if isinstance(value, list) and field in ("extra", "tags", "check", "protect") else ""
                    self.assertRegex(refused, "^tasks.json:1: %s%s: %s" % (field, step, re.escape(message)))

    def test_path_with_a_tilde_is_expanded_or_refused(self):
        for home, path, expected in (("/h", "~", "/h"), ("/h", "~/a b", "/h/a b"), ("/h", "~root/x", pwd.getpwuid(0).pw_dir.rstrip("/") + "/x"),
                                     ("", "~root", pwd.getpwuid(0).pw_dir), ("/h", "./~", "./~"), ("/h", "a/~", "a/~"), ("", "a~", "a~"),
                                     ("/h", "~no-such-user/x", None), ("", "~", None), ("", "~/x", None), ("here", "~/x", None)):
            with self.subTest(home=home, path=path), unittest.mock.patch.dict(os.environ, HOME=home):
                for data in ({"prompt": "p", "workdir": path}, {"tasks": [{"prompt": "p"}], "defaults": {"workdir": path}}):
                    if expected:
                        self.assertEqual(self.tasks(data)[0].workdir, expected)
                    else:
                        self.assertIn("workdir: %s begins with a home directory that is not known; write the path in full, or ./~" % json.dumps(path),
                                      self.refused(data))
        with unittest.mock.patch.dict(os.environ, HOME=os.getcwd()):
            self.assertEqual(self.stream({"tasks": [{"prompt": "p"}], "output_dir": "~/x"}).run, {"output_dir": os.getcwd() + "/x"})

    def test_defaults_take_all_fields_except_prompt_id_and_name(self):
        for field, (good, bad) in FIELDS.items():
            value, kept = good[-1]
            data = {"tasks": [{"prompt": "p", "backend": "echo"}], "defaults": {field: value}}
            with self.subTest(field):
                if field in ("prompt", "id", "name"):
                    self.assertIn("defaults.%s: unknown field" % field, self.refused(data))
                    continue
                task = self.tasks(data, allow_commands=True)[0]
                if field not in ("backend", "output_format"):
                    self.assertEqual(getattr(task, field), kept)
                self.assertIn("tasks.json:1: defaults.%s" % field, self.refused(dict(data, defaults={field: bad[-1][0]}), allow_commands=True))

    def test_prompt_over_the_limit_of_its_backend_is_refused(self):
        self.assertEqual(self.refused({"prompt": "x" * 1048577, "backend": "codex"}),
                         "tasks.json:1: prompt: the prompt has 1,048,577 characters; codex takes 1,048,576 at most")

    def test_meta_of_more_than_200_levels_is_refused(self):
        for depth in (100, clinvk.MAX_DEPTH - 1):
            text = '{"prompt":"p","meta":{"x":%s}}' % ("[" * (depth - 1) + "]" * (depth - 1))
            self.assertEqual(clinvk.dumps(self.tasks(text)[0].meta), text[21:-1].encode())
        for depth in (clinvk.MAX_DEPTH, 900):
            self.assertEqual(self.refused('{"prompt":"p","meta":{"x":%s}}' % ("[" * depth + "]" * depth)), "tasks.json:1: nested too deep")

    def test_timeout_of_any_size_can_be_waited_for(self):
        for value in (1e10, 1e300, "9" * 400, "99999999h"):
            with self.subTest(value):
                try:
                    timeout = self.one({"timeout": value}).timeout
                except clinvk.UserError:
                    continue
                self.assertLessEqual(timeout, threading.TIMEOUT_MAX)


# per field: values for the task itself, the command line, the batch's defaults and the environment, and the built-in one
PRECEDENCE = {
    "backend": ("echo", "codex", "gemini", "claude", "claude"), "model": ("own", "line", "defaults", "environment", ""),
    "effort": ("low", "high", "max", None, ""),
    "workdir": ("/own", "/line", "/defaults", None, ""), "approval_mode": ("auto", "none", "always", None, "default"),
    "sandbox_mode": ("read-only", "full", "workspace", None, "default"), "max_tokens": (1, 2, 3, None, 0), "max_turns": (1, 2, 3, None, 0),
    "system_prompt": ("own", "line", "defaults", None, ""), "timeout": (1.0, 2.0, 3.0, None, 0.0),
    "idle_timeout": (1.0, 2.0, 3.0, None, 0.0), "max_output": (1, 2, 3, None, 0),
    "check": ((("own",),), (("line",),), (("defaults",),), None, ()), "check_timeout": (1.0, 2.0, 3.0, None, 0.0), "attempts": (1, 2, 3, None, 0), "schema_retries": (0, 2, 3, None, 1),
    "require_change": (True, True, True, None, False), "protect": (("own",), ("line",), ("defaults",), None, ()),
    "extra": (("own",), ("line",), ("defaults",), None, ()),
    "literal": (False, True, False, None, False), "answer_only": (False, True, False, None, False), "verbose": (False, True, False, None, False), "dry_run": (False, True, False, None, False),
    "tags": (("own",), ("line",), ("defaults",), None, ()), "repeat": (2, 3, 4, None, 0),
    "meta": ({"own": 1}, {"line": 1}, {"defaults": 1}, None, None),
    "schema": ({"type": "object", "title": "own"}, {"type": "object", "title": "line"}, {"type": "object"}, None, None),
}


class Precedence(TaskCase):
    def setUp(self):
        super().setUp()
        patch = unittest.mock.patch.object(clinvk, "work_tree", return_value="/")  # for require_change
        patch.start()
        self.addCleanup(patch.stop)

    def test_precedence_table_has_every_field_of_defaults(self):
        self.assertEqual(set(PRECEDENCE), set(clinvk.DEFAULTS_FIELDS) - {"output_format"})

    def test_precedence_is_task_command_line_batch_environment(self):
        for field, (own, line, default, variable, built_in) in PRECEDENCE.items():
            for given in itertools.product((True, False), repeat=4):
                if variable is None and given[3]:
                    continue
                own_given, line_given, default_given, variable_given = given
                task, batch, overrides, environment = {"prompt": "p"}, {}, {}, {}
                if field != "backend":
                    task["backend"] = "echo"
                if own_given:
                    task[field] = own
                if line_given:
                    overrides[field] = line
                if default_given:
                    batch["defaults"] = {field: default}
                if variable_given:
                    environment["CLINVK_BACKEND" if field == "backend" else "CLINVK_ECHO_MODEL"] = variable
                expected = next((value for value, there in zip((own, line, default, variable), given) if there), built_in)
                if field == "dry_run" and line_given:
                    expected = True  # --dry-run starts nothing, whatever a task says
                with self.subTest(field=field, given=given):
                    got = self.tasks(dict(batch, tasks=[task]), overrides=overrides, environment=environment, allow_commands=True)[0]
                    self.assertEqual(getattr(got, field), expected)

    def test_model_of_the_environment_is_only_for_its_backend(self):
        environment = {"CLINVK_CLAUDE_MODEL": "opus", "CLINVK_CODEX_MODEL": "gpt", "CLINVK_GEMINI_MODEL": "pro"}
        tasks = self.tasks([{"prompt": "p", "backend": name} for name in ("claude", "codex", "gemini", "echo")] + [{"prompt": "p"}],
            environment=environment)
        self.assertEqual([task.model for task in tasks], ["opus", "gpt", "pro", "", "opus"])
        self.assertEqual(self.one({}, environment=dict(environment, CLINVK_BACKEND="codex"))[:3], ("codex", "p", "gpt"))
        self.assertEqual(self.one({}, environment={"CLINVK_BACKEND": "", "CLINVK_CLAUDE_MODEL": ""})[:3], ("claude", "p", ""))

    def test_extra_with_an_output_option_is_refused(self):
        for backend, extra in (("claude", ["--output-format", "text"]), ("claude", ["-x", "--output-format=json"]), ("gemini", ["-o", "json"]),
            ("gemini", ["-ojson"]),
                               ("gemini", ["--output-format", "stream-json"]), ("gemini", ["--outputFormat=text"])):
            word = next(word for word in extra if word.startswith(("-o", "--o")))
            message = '"%s" decides what %s prints, which clinvk has to read' % (word, backend)
            self.assertEqual(self.refused({"prompt": "p", "backend": backend, "extra": extra}), "tasks.json:1: extra: " + message)
            self.assertEqual(self.refused({"tasks": [{"prompt": "p", "backend": backend}], "defaults": {"extra": extra}}),
                "tasks.json:1: tasks[0]: extra: " + message)
        for backend, extra in (("codex", ["-o", "last"]), ("claude", ["--output-style", "-o"]), ("gemini", ["--other", "o"])):
            self.assertEqual(self.one({"backend": backend, "extra": extra}).extra, tuple(extra))

    def test_modes_from_two_layers_are_checked_together(self):
        # each is allowed alone, both together are not; the path is that of the task, which says nothing wrong itself
        self.assertEqual(self.refused({"tasks": [{"prompt": "a"}, {"prompt": "p", "approval_mode": "none"}]},
            overrides={"sandbox_mode": "workspace"}).partition("claude: ")[0],
                         "tasks.json:1: tasks[1]: sandbox_mode: ")


class Runs(TaskCase):
    def test_of_run_the_first_fail_fast_counts_and_is_max_failures_1(self):
        for run, batch, config, most in (
                ({}, {}, {}, 0), ({}, {"fail_fast": True}, {}, 1), ({}, {"fail_fast": False}, {"fail_fast": True}, 0),
                ({}, {"fail_fast": False}, {"max_failures": 0.1}, 0.1), ({}, {"max_failures": 5}, {"fail_fast": True}, 5),
                ({"fail_fast": True}, {"max_failures": 5}, {}, 1), ({"max_failures": 2}, {"fail_fast": True}, {}, 2),
                ({}, {"fail_fast": True, "max_failures": 3}, {}, 3)):
            values = {"parallel." + name: value for name, value in config.items()}
            policy = clinvk.TaskPolicy(run=run, configuration=clinvk.Configuration(values=values))
            self.assertEqual(policy.of_run(batch)["max_failures"], most, (run, batch, config))

    def test_of_run_limits_of_all_sources_count_each_for_its_backend(self):
        values = {"backends.claude.max_parallel": 1, "backends.codex.max_parallel": 2, "backends.my.own.max_parallel": 3}
        policy = clinvk.TaskPolicy(run={"limits": {"codex": 8}}, configuration=clinvk.Configuration(values=values))
        self.assertEqual(policy.of_run({"limits": {"codex": 7, "gemini": 6}})["limits"], {"claude": 1, "codex": 8, "gemini": 6, "my.own": 3})

    def test_run_has_the_fields_of_the_batch(self):
        stream = self.stream({"tasks": [{"prompt": "p"}], "max_parallel": 5, "fail_fast": True, "output_dir": "out"})
        self.assertEqual(stream.run, {"max_parallel": 5, "fail_fast": True, "output_dir": "out"})
        self.assertEqual(self.stream([{"prompt": "p"}]).run, {})

    def test_run_field_of_a_later_batch_causes_a_warning(self):
        batches = [{"tasks": [{"prompt": "a"}], "max_parallel": 2}, {"tasks": [{"prompt": "b"}], "fail_fast": True, "max_parallel": 2},
            {"tasks": [{"prompt": "c"}], "max_parallel": 9}]
        data = "\n".join(map(json.dumps, batches)).encode()
        warning = "3: max_parallel: 9 is not applied: an earlier batch of this run set 2"
        stream = self.stream(data)
        self.assertEqual((len(list(support.jobs_of(stream))), stream.run, self.warnings),
            (3, {"max_parallel": 2, "fail_fast": True}, ["tasks.json:" + warning]))
        del self.warnings[:]
        stream = self.pipe_stream(data)
        self.assertEqual((len(list(support.jobs_of(stream))), stream.run, self.warnings),
            (3, {"max_parallel": 2}, ["stdin:2: fail_fast: true is not applied: this run began without it", "stdin:" + warning]))


# what a definition may be, and what it comes to; and what it may not, with the start of what is said
NAMES = "a name may have lower-case letters, digits, '.', '_' and '-'"
NO_PROGRAM = "expected a list that begins with the name of a program"
JSON = {"command": ["x"], "output": "json"}
DEFINITIONS = [
    ({"command": ["cat"]}, clinvk.Definition(("cat",))),
    ({"command": ["x", "-m", "{model}", "{{model}}", "{}", "{Model}", "{prompt_file}"], "output": None},
     clinvk.Definition(("x", "-m", "{model}", "{{model}}", "{}", "{Model}", "{prompt_file}"))),
    (dict(JSON, answer=".a"), clinvk.Definition(("x",), "json", ("a",))),
    (dict(JSON, output="jsonl", answer=".choices[0].text", error=".e-1", session_id="[-1].x_y", usage=".审.u", join=True),
     clinvk.Definition(("x",), "jsonl", ("choices", 0, "text"), ("e-1",), (-1, "x_y"), ("审", "u"), True)),
    (dict(JSON, output="jsonl", answer=".a", structured=".d", ok={"path": ".is_error", "value": False}, done={"path": ".e[0]", "value": "审"},
          errors={"No key": "auth", "slow": "rate_limit"}, stop_signal="SIGINT", agent=True),
     clinvk.Definition(("x",), "jsonl", ("a",), structured=("d",), ok=(("is_error",), "false"), done=(("e", 0), '"审"'),
                       errors=(("No key", "auth"), ("slow", "rate_limit")), stop_signal="SIGINT", agent=True)),
    ({"command": ["x", "--ask={prompt}"], "errors": {"E": "quota"}, "stop_signal": "SIGQUIT", "agent": True, "answer": None, "join": False},
     clinvk.Definition(("x", "--ask={prompt}"), errors=(("E", "quota"),), stop_signal="SIGQUIT", agent=True)),
]
EXPECTED = ': expected an object such as {"path": ".status", "value": "SUCCESS"}, got '
BAD_DEFINITIONS = [
    ("x", ": expected a definition (an object with a command), got \"x\""), ([], ": expected a definition"), (None, ": expected a definition"),
    ({}, ": " + NO_PROGRAM), ({"command": None}, ".command: " + NO_PROGRAM), ({"command": []}, ".command: " + NO_PROGRAM),
    ({"command": ["{model}"]}, ".command: " + NO_PROGRAM), ({"command": ["./{model}", "x"]}, ".command: " + NO_PROGRAM),
    ({"command": "cat"}, '.command: expected a list of strings, got "cat"'), ({"command": ["cat", 3]}, ".command[1]: expected a string, got 3"),
    ({"command": ["cat", ""]}, ".command[1]: must not be blank"), ({"command": ["a\0b"]}, ".command[0]: must not contain NUL"),
    ({"command": ["x", "{modle}"]}, '.command[1]: unknown placeholder "modle" (did you mean "model"?); known are model, effort, workdir, '
     'system_prompt, max_turns, max_tokens, prompt_file, prompt'),
    ({"command": ["x", "a{model}b{zz}"]}, '.command[1]: unknown placeholder "zz"; known are '),
    ({"comand": ["x"]}, '.comand: unknown field (did you mean "command"?)'), ({"command": ["x"], "zebra": 1}, ".zebra: unknown field"),
    (dict(JSON, output="jsn"), '.output: unknown form of output "jsn" (did you mean "json"?); known are text, json, jsonl'),
    (dict(JSON, output=3), ".output: unknown form of output 3"), (JSON, ': output "json" needs the path of the answer: "answer"'),
    (dict(JSON, output="jsonl", error=".e"), ': output "jsonl" needs the path of the answer'), (dict(JSON, answer=None), ': output "json" needs'),
    ({"command": ["x"], "answer": ".a"}, ': with output "text" all output is the answer'),
    ({"command": ["x"], "output": "text", "join": True}, ': with output "text" all output is the answer'),
    ({"command": ["x"], "usage": ".u"}, ': with output "text" all output is the answer'),
    (dict(JSON, answer=".a", join=1), ".join: expected true or false, got 1"),
    (dict(JSON, answer=".a", ok=".s"), ".ok" + EXPECTED), (dict(JSON, answer=".a", ok={"path": ".s"}), ".ok" + EXPECTED),
    (dict(JSON, answer=".a", ok={"path": ".s", "value": None}), ".ok" + EXPECTED),
    (dict(JSON, answer=".a", ok={"path": "s", "value": 1}), '.ok.path: expected a path such as .message.content or .choices[0].text, got "s"'),
    (dict(JSON, answer=".a", ok={"path": ".s", "value": []}), ".ok.value: expected a text, a number, true or false, got []"),
    (dict(JSON, answer=".a", ok={"path": ".s", "valeu": 1}), '.ok.valeu: unknown field (did you mean "value"?)'),
    (dict(JSON, answer=".a", done={"path": ".s", "value": 1}), '.done: only a command with the output "jsonl" prints events'),
    ({"command": ["x"], "ok": {"path": ".s", "value": 1}}, ': with output "text" all output is the answer'),
    ({"command": ["x"], "structured": ".s"}, ': with output "text" all output is the answer'),
    ({"command": ["x"], "errors": ["E"]}, '.errors: expected an object of texts and error kinds, got ["E"]'),
    ({"command": ["x"], "errors": {"E": "qota"}}, '.errors.E: unknown error kind "qota" (did you mean "quota"?); known are rate_limit, '),
    ({"command": ["x"], "errors": {"E": 3}}, ".errors.E: unknown error kind 3"), ({"command": ["x"], "errors": {" ": "quota"}}, '.errors[" "]: must not be blank'),
    ({"command": ["x"], "stop_signal": "SIGKILL"}, '.stop_signal: unknown signal "SIGKILL"; known are SIGTERM, SIGINT, SIGHUP, SIGQUIT'),
    ({"command": ["x"], "agent": "yes"}, '.agent: expected true or false, got "yes"')]
BAD_DEFINITIONS += [(dict(JSON, answer=path), ".answer: expected a path such as .message.content or .choices[0].text, got ")
                    for path in ("a", ".", "a.b", ".a.", ".a..b", ".a[]", ".a[x]", ".a[1", "[1.5]", ".a b", ".a\n", "$.a", ".a[9999999999]",
                    ".a[0]x")]
BAD_DEFINITIONS += [(dict(JSON, answer=path), ".answer: " + message) for path,
    message in ((3, "expected a string, got 3"), ("", "must not be blank"))]


class Definitions(TaskCase):
    def batch(self, backends, *tasks):
        return {"tasks": list(tasks) or [{"prompt": "p", "backend": "mine"}], "backends": backends}

    def test_definition_is_the_same_in_environment_and_batch(self):
        for value, expected in DEFINITIONS:
            with self.subTest(value):
                self.assertEqual(clinvk.environment_definitions({"CLINVK_BACKENDS": json.dumps({"mine": value})}), {"mine": expected})
                job = self.jobs(self.batch({"mine": value}), allow_commands=True)[0]
                self.assertEqual(job, clinvk.Job(0, clinvk.Task("mine", "p"), definition=expected))

    def test_definition_with_a_mistake_is_refused_with_its_path(self):
        for value, message in BAD_DEFINITIONS:
            with self.subTest(value):
                self.assert_bad({"mine": value}, "mine" + message)

    def test_program_that_needs_a_model_is_refused_without_one(self):
        needs = "tasks.json:1: %sbackend: %s needs a model: give --model, the field model or CLINVK_%s_MODEL"
        asked = {"prompt": "p", "backend": "ollama"}
        self.assertEqual(self.refused(asked), needs % ("", "ollama", "OLLAMA"))
        mine = self.batch({"mine": {"command": ["cat", "{model}"], "needs_model": True}})
        self.assertEqual(self.refused(mine, allow_commands=True), needs % ("tasks[0].", "mine", "MINE"))
        for task, rules in ((dict(asked, model="m"), {}), (asked, {"environment": {"CLINVK_OLLAMA_MODEL": "m"}}), (dict(asked, extra=["m"]), {}),
                            (asked, {"overrides": {"model": "m"}}), (dict(asked, backend="llm"), {})):
            self.assertEqual(len(self.jobs(task, **rules)), 1)

    def assert_bad(self, backends, message):
        refused = self.refused(self.batch(backends), allow_commands=True)
        self.assertTrue(refused.startswith("tasks.json:1: backends%s%s" % ("." if message[0] not in ":[" else "", message)), refused)
        with self.assertRaises(clinvk.UserError) as caught:
            clinvk.environment_definitions({"CLINVK_BACKENDS": json.dumps(backends)})
        said = str(caught.exception)
        self.assertTrue(said.startswith("CLINVK_BACKENDS" + (": " if message[0] != ":" else "") + message), said)
        for text in (refused, said):
            self.assertNotIn("\n", text)
            self.assertNotIn('"meta"', text)  # which only a task has

    def test_path_into_json_gives_the_value_or_nothing(self):
        value = {"a": {"b-1": [10, {"c": None}, "x"], "0": "key"}, "审": False, "": 5, "list": [[1, 2], [3]]}
        for text, found in ((".a.b-1[0]", 10), (".a.b-1[-1]", "x"), (".a.b-1[-3]", 10), (".a.0", "key"), (".审", False), (".list[1][0]", 3),
            (".list[-2][-1]", 2),
                            (".a.b-1[1].c", None), (".a.b-1[3]", None), (".a.b-1[-4]", None), (".a[0]", None), (".list.a", None), (".a.b-1.0", None),
                            (".zebra.a[0]", None),
                            (".a.b-1[2][0]", None), (".a.b-1[2].x", None), (".审.x", None), ("[0]", None), ("[-1]", None)):
            with self.subTest(text):
                definition = clinvk.environment_definitions({"CLINVK_BACKENDS": json.dumps({"mine": dict(JSON, answer=text)})})["mine"]
                self.assertIs(type(clinvk.value_at(value, definition.answer)), type(found))
                self.assertEqual(clinvk.value_at(value, definition.answer), found)
        for value in (None, 3, "text", [], {}):
            self.assertIsNone(clinvk.value_at(value, ("a",)))
            self.assertIsNone(clinvk.value_at(value, (0,)))
            self.assertIs(clinvk.value_at(value, ()), value)

    def test_placeholder_is_a_name_in_braces(self):
        for text, names in (("{model}", ["model"]), ("a{model}b{workdir}{model}", ["model", "workdir", "model"]), ("{zz_z}", ["zz_z"]), ("", []),
            ("{}", []),
                            ("{Model}", []), ("{ model }", []), ("{model", []), ("model}", []), ("{a1}", []), ("{{model}}", []),
                            ("x{{model}}{model}", ["model"]),
                            ("{{model}", ["model"]), ("{model}}", ["model"]), ('{"a": {model}}', ["model"]), ("${model}", ["model"])):
            self.assertEqual(clinvk.placeholders(text), names, text)

    def test_definition_name_not_plain_or_built_in_is_refused(self):
        for name in ("a", "9", "gpt-4o.mini_x", "x" * 64):
            self.assertEqual(set(clinvk.environment_definitions({"CLINVK_BACKENDS": json.dumps({name: {"command": ["x"]}})})), {name})
        for name in ("A", "Mine", "-x", ".x", "_x", "a b", "a/b", "审", "x ", "x" * 65):
            with self.subTest(name):
                self.assert_bad({name: {"command": ["x"]}},
                    "%s: %s" % (name, NAMES) if clinvk.path_text((name,)) == name else "[%s]: %s" % (clinvk.quoted(name), NAMES))
        for name in clinvk.BACKENDS:
            self.assert_bad({name: {"command": ["x"]}}, "%s.command: %s is built in and cannot be redefined" % (name, name))
            for other in ({}, {"model": "x"}, [["x"]]):
                self.assert_bad({name: other}, "%s: %s is built in and cannot be redefined" % (name, name))

    def test_definitions_not_an_object_are_refused(self):
        for value in ([], "x", 3, [{"command": ["x"]}]):
            self.assert_bad(value, ": expected an object of definitions, got ")
        self.assertEqual(clinvk.environment_definitions({}), {})
        self.assertEqual(clinvk.environment_definitions({"CLINVK_BACKENDS": ""}), {})
        self.assertEqual(self.tasks(self.batch(None, {"prompt": "p"})), [clinvk.Task("claude", "p")])
        for text, repair in (("{", ""), ("nonsense", ""), ('{"a":NaN}', ""), ("[" * 100000, ""), ("\udcff{}", ""),
                             ('{"a": {"command": ["x"],}}', ": remove the comma before the closing bracket$")):
            with self.assertRaisesRegex(clinvk.UserError, "^CLINVK_BACKENDS: not valid JSON: .*" + repair):
                clinvk.environment_definitions({"CLINVK_BACKENDS": text})

    def test_check_in_the_input_is_refused_unless_allowed(self):
        for data, path, what in (({"prompt": "p", "check": "x"}, "check", "a task"),
                                 ({"tasks": [{"prompt": "p", "check": ["x"]}]}, "tasks[0].check", "a task"),
                                 ({"tasks": [{"prompt": "p"}], "defaults": {"check": "x"}}, "defaults.check", "a batch")):
            self.assertEqual(self.refused(data), "tasks.json:1: %s: commands that %s defines are only run with --allow-commands" % (path, what))
            self.assertEqual(self.tasks(data, allow_commands=True)[0].check, (("sh", "-c", "x"),))

    def test_task_whose_changes_matter_needs_a_git_work_tree(self):
        for field in ({"require_change": True}, {"protect": "x"}):
            outside = dict(field, prompt="p", workdir=self.directory)
            self.assertEqual(self.refused(outside), 'tasks.json:1: workdir: "%s" is in no git work tree, which require_change and protect need' % self.directory)
            os.makedirs(self.path("repository", ".git"), exist_ok=True)
            inside = dict(field, prompt="p", workdir=self.path("repository"))
            self.assertEqual(len(self.tasks(inside)), 1)
            with unittest.mock.patch.object(clinvk, "find_program", return_value=("", "not found")):
                self.assertEqual(self.refused(inside), "tasks.json:1: workdir: require_change and protect need git, which is missing")

    def test_task_that_can_change_nothing_cannot_be_required_to(self):
        os.makedirs(self.path("repository", ".git"))
        data = {"prompt": "p", "workdir": self.path("repository"), "require_change": True}
        for fields, what in (({"sandbox_mode": "read-only"}, "sandbox_mode read-only"), ({"answer_only": True}, "answer_only")):
            message = "a task that may change nothing (%s) would always fail: leave one out" % what
            self.assertEqual(self.refused(dict(data, **fields)), "tasks.json:1: require_change: " + message)
            self.assertEqual(len(self.tasks(dict(data, require_change=False, protect="x", **fields))), 1)

    def test_definition_in_a_batch_is_refused_unless_allowed(self):
        batch = json.dumps({"tasks": [{"prompt": "p"}], "backends": {"mine": {"command": ["x"]}}}, indent=1)
        self.assertEqual(self.refused("\n" + batch), "tasks.json:8: backends: commands that a batch defines are only run with --allow-commands")
        self.assertEqual(self.refused({"tasks": [{"prompt": "p"}], "backends": {}}),
                         "tasks.json:1: backends: commands that a batch defines are only run with --allow-commands")

    def test_definition_outside_a_batch_is_refused(self):
        for data in ({"prompt": "p", "backends": {}}, [{"prompt": "p", "backends": {}}], {"tasks": [{"prompt": "p", "backends": {}}]},
                     {"tasks": [{"prompt": "p"}], "defaults": {"backends": {}}}):
            self.assertRegex(self.refused(data, allow_commands=True), r"backends: unknown field")

    def test_definition_in_a_batch_is_only_for_its_tasks(self):
        one, two = (self.batch({"mine": {"command": [program]}}) for program in ("one", "two"))
        data = "\n".join(map(json.dumps, (one, two, {"prompt": "p", "backend": "mine"}, {"prompt": "p"}))).encode()
        first, second, bad, last = support.jobs_of(self.pipe_stream(data, allow_commands=True))
        self.assertEqual((first.definition.argv, second.definition.argv, last.definition), (("one",), ("two",), None))
        self.assertEqual(bad.error, 'stdin:3: backend: unknown backend "mine"; ' + support.KNOWN)

    def test_definition_of_the_environment_is_replaced_by_a_batch(self):
        mine = {"mine": clinvk.Definition(("user",))}
        data = "\n".join(map(json.dumps, ({"prompt": "p", "backend": "mine"}, self.batch({"mine": {"command": ["batch"]}}),
            [{"prompt": "p", "backend": "mine"}])))
        self.assertEqual([job.definition.argv for job in self.jobs(data, definitions=mine, allow_commands=True)], [("user",), ("batch",), ("user",)])
        self.assertEqual(self.one({"backend": "min"}, definitions={"min": mine["mine"]}).backend, "min")
        self.assertEqual(self.refused({"prompt": "p", "backend": "min"}, definitions=mine),
                         'tasks.json:1: backend: unknown backend "min" (did you mean "mine"?); ' + support.KNOWN + ', mine')

    def test_definition_can_be_the_backend_of_every_layer(self):
        mine = {"mine": clinvk.Definition(("x",))}
        for data, rules in (({"prompt": "p", "backend": "mine"}, {}), ({"prompt": "p"}, {"overrides": {"backend": "mine"}}),
                            ({"tasks": [{"prompt": "p"}], "defaults": {"backend": "mine"}}, {}),
                            ({"prompt": "p"}, {"environment": {"CLINVK_BACKEND": "mine"}})):
            self.assertEqual(self.jobs(data, definitions=mine, **rules), [clinvk.Job(0, clinvk.Task("mine", "p"), definition=mine["mine"])])

    def test_model_variable_of_a_definition_is_its_name_in_capitals(self):
        definitions = {name: clinvk.Definition(("x", "{model}")) for name in ("mine", "gpt-4o.mini_x")}
        environment = {"CLINVK_MINE_MODEL": "m", "CLINVK_GPT_4O_MINI_X_MODEL": "n"}
        self.assertEqual([self.one({"backend": name}, definitions=definitions, environment=environment).model for name in definitions], ["m", "n"])
        self.assertEqual(self.one({"backend": "mine", "model": "own"}, definitions=definitions, environment=environment).model, "own")

    def test_definition_refuses_modes_that_promise_something(self):
        mine = {"mine": clinvk.Definition(("x",))}
        for sandbox, approval in itertools.product(clinvk.SANDBOX_MODES, clinvk.APPROVAL_MODES):
            fields = {"prompt": "p", "backend": "mine", "sandbox_mode": sandbox, "approval_mode": approval}
            with self.subTest(sandbox=sandbox, approval=approval):
                if sandbox in ("default", "full") and approval in ("default", "none"):
                    self.assertEqual(self.one(fields, definitions=mine)[4:6], (approval, sandbox))
                    continue
                refused = self.refused(fields, definitions=mine)
                self.assertTrue(refused.startswith("tasks.json:1: sandbox_mode: mine: "), refused)
                self.assertIn('only "%s" is possible' % ("full" if sandbox not in ("default", "full") else "none"), refused)


SANDBOXES, APPROVALS = ("read-only", "workspace", "full"), ("always", "auto", "none")  # the lowest first


def ceiling_of(sandbox="", approval=""):
    return {field: mode for field, mode in (("sandbox_mode", sandbox), ("approval_mode", approval)) if mode}


class Ceilings(TaskCase):
    def test_ceiling_text_with_one_mode_or_both_is_parsed(self):
        for text, ceiling in (("sandbox=workspace,approval=auto", ("workspace", "auto")), ("approval=none , sandbox = full", ("full", "none")),
                              ("sandbox=read-only", ("read-only", "")), (" approval=always ", ("", "always"))):
            self.assertEqual(clinvk.parse_ceiling(text), ceiling_of(*ceiling))

    def test_ceiling_text_that_is_not_valid_is_refused(self):
        for text in ("", " ", ",", "sandbox", "sandbox=", "=full", "sandbox=default", "approval=default", "sandbox=auto", "approval=full",
            "sandbox=full,",
                     "sandbox=full,sandbox=full", "sandbox=full,approval=none,sandbox=full", "sandbox=Full", "sandbox_mode=full", "extra=none",
                     "sandbox=full;approval=none", "sandbox=read-only=full"):
            with self.subTest(text), self.assertRaises(ValueError) as caught:
                clinvk.parse_ceiling(text)
            self.assertEqual(str(caught.exception), "expected sandbox=MODE (read-only, workspace, full), approval=MODE (always, auto, none) "
                             "or both with a comma between, got %s" % json.dumps(text))

    def test_ceiling_refuses_modes_above_it(self):
        for field, ranks, part in (("sandbox_mode", SANDBOXES, "sandbox"), ("approval_mode", APPROVALS, "approval")):
            for most, mode in itertools.product(ranks, ranks):
                ceiling = ceiling_of(**{part: most})
                for data, place, rules in (({"prompt": "p", "backend": "echo", field: mode}, field + ": ", {}),
                                           ({"prompt": "p", "backend": "echo"}, field + ": ", {"overrides": {field: mode}}),
                                           ({"tasks": [{"prompt": "p", "backend": "echo"}], "defaults": {field: mode}}, "tasks[0]: %s: " % field,
                                           {})):
                    with self.subTest(field=field, most=most, mode=mode, data=data):
                        if ranks.index(mode) > ranks.index(most):
                            self.assertEqual(self.refused(data, ceiling=ceiling, **rules),
                                             'tasks.json:1: %s"%s" is above the ceiling, which is "%s"' % (place, mode, most))
                        else:
                            self.assertEqual(getattr(self.tasks(data, ceiling=ceiling, **rules)[0], field), mode)

    def test_ceiling_restricts_default_modes(self):
        for sandbox, approval in itertools.product(("",) + SANDBOXES, ("",) + APPROVALS):
            ceiling = ceiling_of(sandbox, approval)
            for said, modes in ((None, ("default", "read-only")), ("default", ("default", "read-only"))):
                task = self.one({"backend": "echo", "sandbox_mode": said, "approval_mode": said}, ceiling=ceiling)
                self.assertEqual(task.sandbox_mode, modes[bool(sandbox)], ceiling)
                # a sandbox that lets nothing be changed needs no approval
                self.assertEqual(task.approval_mode, "always" if not sandbox and approval in ("always", "auto") else "default", ceiling)
            if sandbox in ("", "full"):
                task = self.one({"backend": "echo", "sandbox_mode": "full"}, ceiling=ceiling)
                self.assertEqual((task.sandbox_mode, task.approval_mode), ("full", "always" if approval in ("always", "auto") else "default"),
                    ceiling)

    def test_ceiling_refuses_extra_but_no_other_field(self):
        for ceiling in (ceiling_of("full"), ceiling_of("", "none"), ceiling_of("full", "none")):
            for data, place, rules in (({"prompt": "p", "extra": ["x"]}, "extra: ", {}), ([{"prompt": "p", "extra": ["-x"]}], "[0].extra: ", {}),
                                       ({"tasks": [{"prompt": "p"}], "defaults": {"extra": ["x"]}}, "tasks[0]: extra: ", {})):
                self.assertEqual(self.refused(data, ceiling=ceiling, **rules),
                    "tasks.json:1: %sthe ceiling lets no task add options of its own" % place)
            task = self.one({"extra": [], "system_prompt": "s", "model": "m", "max_turns": 1}, ceiling=ceiling)
            self.assertEqual((task.extra, task.system_prompt, task.model, task.max_turns), ((), "s", "m", 1))
        self.assertEqual(self.one({"extra": ["x"]}).extra, ("x",))

    def test_ceiling_lets_answers_through(self):
        """They have no tools, whatever their modes say; a command of one's own has to promise it."""
        definitions = {"held": clinvk.Definition(("x",), answer_only=("--no-tools",)), "loose": clinvk.Definition(("x",))}
        for ceiling in (ceiling_of("read-only"), ceiling_of("read-only", "always"), ceiling_of("", "always")):
            for backend in ("claude", "codex", "gemini", "echo", "held"):
                data = {"prompt": "p", "backend": backend, "answer_only": True}
                for more in ({}, {"approval_mode": "none"}, {"sandbox_mode": "read-only"}):
                    task = self.one(dict(data, **more), ceiling=ceiling, definitions=definitions)
                    self.assertEqual((task.sandbox_mode, task.approval_mode), (more.get("sandbox_mode", "default"), more.get("approval_mode", "default")))
                self.assertIn("no task add options of its own", self.refused(dict(data, extra=["-x"]), ceiling=ceiling, definitions=definitions))
            refused = self.refused({"prompt": "p", "backend": "loose", "answer_only": True}, ceiling=ceiling, definitions=definitions)
            self.assertIn("loose: clinvk cannot ", refused)

    def test_answer_only_has_no_mode_that_lets_tools_run(self):
        for mode in ("workspace", "full"):
            message = 'answer_only allows no tools, so there is no mode "%s": leave one out' % mode
            data = {"prompt": "p", "backend": "claude", "answer_only": True}
            self.assertEqual(self.refused(dict(data, sandbox_mode=mode)), "tasks.json:1: sandbox_mode: " + message)
            self.assertEqual(self.refused(data, overrides={"sandbox_mode": mode}), "tasks.json:1: sandbox_mode: " + message)
            file = clinvk.Configuration("c.yaml", {"unified_flags.sandbox_mode": mode})
            self.assertEqual(self.one(data, configuration=file).sandbox_mode, "default")
            self.assertEqual(self.one({"prompt": "p", "backend": "claude"}, overrides={"answer_only": True}, configuration=file).sandbox_mode, "default")
            self.assertEqual(self.one(dict(data, answer_only=False), overrides={"answer_only": True}, configuration=file).sandbox_mode, mode)

    def test_answer_only_leaves_out_the_tools_of_the_configuration(self):
        file = clinvk.Configuration("c.yaml", {"backends.claude.allowed_tools": "Bash", "backends.claude.extra_flags": ("-x",)})
        data = {"prompt": "p", "backend": "claude"}
        self.assertEqual(self.one(data, configuration=file).extra, ("--allowedTools", "Bash", "-x"))
        self.assertEqual(self.one(dict(data, answer_only=True), configuration=file).extra, ("-x",))

    def test_prompt_is_literal_under_a_ceiling_or_a_root(self):
        data = [{"prompt": "p", "backend": "gemini", "workdir": self.directory}] * 2
        for rules, literal in (
                ({}, False), ({"ceiling": ceiling_of()}, False),
                ({"root": self.directory}, True), ({"ceiling": ceiling_of("full")}, True),
                ({"overrides": {"literal": True}}, True), ({"overrides": {"answer_only": True}}, True),
                ({"ceiling": ceiling_of("", "none")}, True)):
            found = [job.literal for job in self.jobs(data, **rules)]
            self.assertEqual(found, [literal] * 2, rules)

    @support.only_in_full_runs
    def test_prompt_too_large_when_literal_is_refused(self):
        data = {"prompt": "/" + "x" * ((8 << 20) - 1), "backend": "gemini"}
        self.assertEqual(self.one(data).prompt, data["prompt"])
        self.assertIn("the prompt has 8,388,609 bytes",
                      self.refused(data, ceiling=ceiling_of("full")))

    @unittest.mock.patch.object(clinvk, "SMALL_FILE_BYTES", 1 << 16)
    def test_ceiling_is_applied_when_a_large_file_is_read_again(self):
        line = b'{"prompt":"p","backend":"echo","sandbox_mode":"%s","meta":{"x":"%s"}}\n'
        data = line % (b"read-only", b"x" * 1000) * 100 + line % (b"full", b"")
        self.assertGreater(len(data), clinvk.SMALL_FILE_BYTES)
        self.assertEqual(self.refused(data, ceiling=ceiling_of("workspace")),
            'tasks.json:101: sandbox_mode: "full" is above the ceiling, which is "workspace"')
        stream = self.stream(data.replace(b'"full"', b'"default"'), ceiling=ceiling_of("workspace"))
        self.assertEqual(stream.total, 101)
        self.assertEqual([job.task.sandbox_mode for job in support.jobs_of(stream)], ["read-only"] * 101)
        # the file changes behind its back
        stream = self.stream(data.replace(b'"full"', b'"workspace"'), ceiling=ceiling_of("workspace"))
        self.file("input", data.replace(b'"full"', b'"workspace"').replace(b'"workspace"', b'"full"     '))
        self.assertRegex(list(support.jobs_of(stream))[-1].error, "^tasks.json: the file changed during the run")


class Roots(TaskCase):
    def setUp(self):
        super().setUp()
        for name in ("root", "root/in", "root-too", "out", "out/in"):
            os.mkdir(self.path(name))
        for link, target in (("root/leads-out", "../out"), ("into", "root/in"), ("root/loop", "loop"), ("root/up", ".."), ("the-root", "root"),
                             ("root/there-and-back", "../out/back")):
            os.symlink(target, self.path(link))
        os.symlink("../root/in", self.path("out/back"))
        former = os.getcwd()
        os.chdir(self.directory)
        self.addCleanup(os.chdir, former)

    INSIDE = ("root", "root/", "root/in", "./root/in/..", "root/in/../in", "into", "the-root/in", "out/../root/in", "root/there-and-back", "root/new",
              "root/new/../in", "root/leads-out/../root", "root/...", "root/..x")
    OUTSIDE = (".", "..", "/", "out", "root-too", "root/..", "root/in/../../out", "root/leads-out", "root/leads-out/in", "root/leads-out/..",
        "root/up",
               "root/up/root-too", "into/../../out", "root/new/../../out", "roo", "root/leads-out/new", "root/loop/../../out")

    def test_is_inside_follows_all_links(self):
        for root in ("root", self.path("root"), "the-root", "root/in/..", "out/../root"):
            for paths, inside in ((self.INSIDE, True), (self.OUTSIDE, False)):
                for path in paths:
                    for way in (path, self.path(path)):
                        self.assertIs(clinvk.is_inside(way, root), inside, (way, root))
        self.assertTrue(clinvk.is_inside("/etc", "/"))
        self.assertTrue(clinvk.is_inside("root", "."))

    def test_root_refuses_workdirs_that_lead_out(self):
        for path in self.INSIDE:
            self.assertEqual(self.jobs({"prompt": "p", "workdir": path}, root="root")[0],
                clinvk.Job(0, clinvk.Task("claude", "p", workdir=path), root=self.path("root"), literal=True))
        for path in self.OUTSIDE:
            message = '%s is outside of "root"' % json.dumps(path)
            self.assertEqual(self.refused('[{"prompt":"p","workdir":"root"},\n{"prompt":"p","workdir":%s}]' % json.dumps(path), root="root"),
                             "tasks.json:2: [1].workdir: " + message)
            self.assertEqual(self.refused({"prompt": "p", "workdir": path}, root="root"), "tasks.json:1: workdir: " + message)
            self.assertEqual(self.refused({"prompt": "p"}, root="root", overrides={"workdir": path}), "tasks.json:1: workdir: " + message)
            self.assertEqual(self.refused({"tasks": [{"prompt": "p"}], "defaults": {"workdir": path}}, root="root"),
                "tasks.json:1: tasks[0]: workdir: " + message)
            self.assertEqual(self.one({"workdir": path}).workdir, path)

    def test_root_applies_to_the_current_directory(self):
        message = '%sworkdir: the current directory is outside of "root"'
        self.assertEqual(self.refused({"prompt": "p"}, root="root"), "tasks.json:1: " + message % "")
        self.assertEqual(self.refused([{"prompt": "p", "workdir": "root"}, {"prompt": "p"}], root="root"), "tasks.json:1: [1]: " + message % "")
        for root in (".", self.directory, "..", "root/up"):
            self.assertEqual(self.jobs({"prompt": "p"}, root=root)[0].root, os.path.realpath(root))

    def test_output_dir_of_a_batch_outside_is_refused(self):
        for path in ("out", ".", "root/new/deep", "the-root/x", "root/up/x", "root/leads-out/../x", self.path("out")):
            self.assertEqual(self.stream({"tasks": [{"prompt": "p"}], "output_dir": path}).run, {"output_dir": path})
        os.symlink("/usr", self.path("away"))
        for path in ("..", "/tmp", "../x", "away", "away/local", "root/up/..", "new/../../x", self.directory + "-too", "away/../usr"):
            data = '{"output_dir":\n%s,"tasks":[{"prompt":"p"}]}' % json.dumps(path)
            self.assertEqual(self.refused(data),
                "tasks.json:2: output_dir: %s is outside of the current directory: only --output-dir can name it" % clinvk.quoted(path))
            self.assertEqual(self.stream(data, run={"output_dir": "mine"}).run, {"output_dir": path}, "which --output-dir then overrides")


class Files(TaskCase):
    def setUp(self):
        super().setUp()
        patch = unittest.mock.patch.object(clinvk, "SMALL_FILE_BYTES", 1 << 16)
        patch.start()
        self.addCleanup(patch.stop)

    def large(self, count=600, end=b""):
        return b"".join(b'{"prompt":"task %d","meta":{"filling":"%s"}}\n' % (number, b"x" * 200) for number in range(count)) + end

    def opened(self, path, **rules):
        """The message that opening it ends with."""
        with self.assertRaises(clinvk.UserError) as caught:
            clinvk.open_tasks(path, clinvk.TaskPolicy(**rules), self.warnings.append)
        return str(caught.exception)

    def test_large_file_is_validated_before_its_first_task(self):
        data = self.large(end=b'{"prompt":"last","id":7}\n')
        self.assertGreater(len(data), clinvk.SMALL_FILE_BYTES)
        self.assertEqual(self.refused(data), "tasks.json:601: id: expected a string, got 7")
        self.assertEqual(self.refused(self.large(end=b'{"prompt":"torn')).partition(" (")[0].split(": ")[:2], ["tasks.json:601", "not valid JSON"])

    def test_large_file_gives_all_tasks_in_order(self):
        stream = self.stream(self.large(end=b'{"tasks":[{"prompt":"last","id":"x"}],"max_parallel":7}'))
        self.assertEqual(stream.total, 601)
        self.assertEqual(stream.run, {"max_parallel": 7}, "known before the first task")
        tasks = [stream.next_job() for _ in range(601)]
        self.assertEqual(stream.next_job(), clinvk.END)
        self.assertEqual([task.index for task in tasks], list(range(601)))
        self.assertEqual([job.task.prompt for job in tasks], ["task %d" % number for number in range(600)] + ["last"])

    def test_large_file_that_changes_during_the_run_ends_with_an_error(self):
        data = self.large(3000)
        line = len(self.large(1))
        for change in (self.large(500), data[:len(data) // 2], data + self.large(1), b"", data.replace(b"task 2", b"TASK 2"),
                       data[:-line], self.large(3000, end=b"\n" * 9)):
            for rules in ({}, {"template": clinvk.Template({"prompt": "{}"})}, {"shard": clinvk.Shard(1, 7)}):
                rules = dict(rules)
                shard = rules.pop("shard", clinvk.WHOLE)
                path = self.file("input", data)
                with open(path, "rb") as file:
                    stream = clinvk.TaskStream(file.fileno(), "tasks.json", clinvk.TaskPolicy(**rules), self.warnings.append, shard)
                    found = [stream.next_job()]
                    with open(path, "wb") as other:
                        other.write(change)
                    found += iter(stream.next_job, clinvk.END)
                problem = found.pop()
                self.assertRegex(problem.error, "^tasks.json: the file changed during the run, .* --resume ")
                self.assertEqual((problem.status, problem.error_kind), ("failed", "invalid"))
                tasks = [json.loads(job.task.prompt) if "template" in rules else {"prompt": job.task.prompt} for job in found]
                self.assertEqual([task["prompt"] for task in tasks],
                                 ["task %d" % number for number in range(3000) if shard.has(number)][:len(tasks)])
                self.assertLess(len(tasks), 3000)

    def test_large_file_that_is_only_touched_is_read(self):
        path = self.file("input", self.large(3000))
        with open(path, "rb") as file:
            stream = clinvk.TaskStream(file.fileno(), "tasks.json", clinvk.TaskPolicy(), self.warnings.append)
            found = [stream.next_job()]
            os.utime(path, (1, 1))
            self.assertEqual(len(found + list(support.jobs_of(stream))), 3000)

    def test_file_that_cannot_be_read_is_named(self):
        self.assertEqual(self.opened(self.path("nowhere")), self.path("nowhere") + ": No such file or directory")
        self.assertRegex(self.opened(self.directory), "^%s: .*Is a directory$" % self.directory)
        self.assertEqual(self.opened(self.file("f", b"") + "/x"), self.path("f") + "/x: Not a directory")

    def test_unknown_backend_outside_the_input_is_an_error(self):
        path, mine = self.file("f", {"prompt": "p"}), {"mine": clinvk.Definition(("cat",))}
        for source, rules in (("CLINVK_BACKEND", {"environment": {"CLINVK_BACKEND": "codx"}}), ("--backend", {"overrides": {"backend": "codx"}})):
            self.assertEqual(self.opened(path, **rules), source + ': unknown backend "codx" (did you mean "codex"?); ' + support.KNOWN)
            self.assertEqual(self.opened(path, definitions=mine, **rules),
                             source + ': unknown backend "codx" (did you mean "codex"?); ' + support.KNOWN + ', mine')
            # a batch may still define it; this one does not
            self.assertEqual(self.opened(path, allow_commands=True, **rules),
                             path + ':1: unknown backend "codx" (did you mean "codex"?); ' + support.KNOWN)

    def test_root_that_is_not_a_directory_is_refused(self):
        path = self.file("f", {"prompt": "p"})
        for root in (self.path("nowhere"), path):
            self.assertEqual(self.opened(path, root=root), "--root: %s is not a directory" % root)

    def test_no_file_means_stdin_unless_it_is_a_terminal(self):
        for path in (None, "-"):
            with open(self.file("f", b"nonsense"), "rb") as file, support.descriptor_is(0, file.fileno()):
                self.assertTrue(self.opened(path).startswith('stdin:1: expected a JSON object or array, got "nonsense": '))
        master, slave = os.openpty()
        with support.descriptor_is(0, slave):
            self.assertRegex(self.opened(None), "^no input: stdin is a terminal; ")
        os.close(master)
        os.close(slave)

    def test_file_is_opened_by_name(self):
        path = self.file("my tasks.json", {"prompt": "p"})
        stream = clinvk.open_tasks(path, clinvk.TaskPolicy({"model": "m"}, {"CLINVK_BACKEND": "gemini"}), self.warnings.append)
        self.assertEqual(list(support.jobs_of(stream)), [clinvk.Job(0, clinvk.Task("gemini", "p", "m"))])
        self.assertIn(path + ":1: ", self.opened(self.file("bad", b"[1]")).replace("bad", "my tasks.json"))


class Splits(unittest.TestCase):
    """Items are what separators part, wherever chunks end."""

    def test_items_are_the_same_in_chunks_of_any_size(self):
        for data, separator, expected in [
            (b"", b"\n", []), (b"\n \n\t\n", b"\n", []), (b"a\nb", b"\n", [(1, "a"), (2, "b")]), (b"a\n\nb\r\n c \n", b"\n", [(1, "a"), (3, "b"), (4, " c ")]),
            (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", b"\n", [(1, "a"), (2, "\ufeffb")]), ("审查\r\r\n".encode(), b"\n", [(1, "审查\r")]),
            (b"a\nb\0c\r\0\0 \0d", b"\0", [(1, "a\nb"), (2, "c\r"), (5, "d")]), (b"\xff/a\0", b"\0", [(1, "\udcff/a")])]:
            for size in range(1, len(data) + 2):
                found = clinvk.split_items((data[start:start + size] for start in range(0, len(data), size)), separator)
                self.assertEqual([(piece.line, piece.parsed()) for piece in found], expected, (data, size))

    def test_item_is_yielded_before_another_chunk_is_asked_for(self):
        chunks = [b"a\nb", b"c\n"]
        found = clinvk.split_items((chunks.pop(0) for _ in range(2)), b"\n")
        self.assertEqual((next(found).value, chunks), ("a", [b"c\n"]))
        self.assertEqual(next(found).value, "bc")

    def test_item_that_is_too_large_is_refused_and_not_kept(self):
        with unittest.mock.patch.object(clinvk, "MAX_VALUE_BYTES", 1 << 20):
            found = list(clinvk.split_items(itertools.chain([b"a\n"], [b"x" * 70000] * 20, [b"\nb\n"]), b"\n"))
        self.assertEqual([(piece.line, bytes(piece.data), piece.problem) for piece in found],
                         [(1, b"a", ""), (2, b"", "the item is larger than 1 MB"), (3, b"b", "")])


class ItemCase(TaskCase):
    def template(self, prompt, form="lines", words=(), **fields):
        return clinvk.Template(dict(fields, prompt=prompt), form, words).checked()

    def prompts(self, data, prompt, **options):
        return [item.task.prompt if item.task else item.error for item in support.jobs_of(
            self.pipe_stream(data, template=self.template(prompt, **options)))]


class Items(ItemCase):
    """Each item becomes a task, by a template."""

    def test_placeholders_are_parts_of_the_item(self):
        for item, expected in [
            ("src/a.tar.gz", "a.tar.gz|src|src/a.tar|a.tar"), ("a.py", "a.py|.|a|a"), ("/a", "a|/|/a|a"), ("/", "/|/|/|/"), ("a/b.d/", "b.d|a|a/b.d/|b"),
            (".rc", ".rc|.|.rc|.rc"), ("a.b/c", "c|a.b|a.b/c|c"), ("a b", "a b|.|a b|a b"), ("{/}", "}|{|{/}|}"), ("-x.y", "-x.y|.|-x|-x")]:
            with self.subTest(item):
                self.assertEqual(self.prompts(item.encode(), "{}|{/}|{//}|{.}|{/.}"), [item + "|" + expected])

    def test_substitution_is_literal_and_other_braces_stay(self):
        for item in ("$(touch x) `y` ; \\1 %s {} {#} {{ {.a}", "'\"", "\udcff\u5ba1"):
            self.assertEqual(self.prompts(item.encode("utf-8", "surrogateescape"), '{{} {"a": 1} { } {1} {#}:{} {', ), ['{} {"a": 1} { } {1} 1:%s {' % item])

    @support.only_in_full_runs
    def test_numbers_count_items_whatever_is_read_and_how_often(self):
        items = ["item %d %s" % (number, "x" * 3000) for number in range(1, 401)]
        data = "\n".join(items).encode()
        self.assertGreater(len(data), clinvk.SMALL_FILE_BYTES)
        expected = ["%d %s" % item for item in enumerate(items, 1)]
        self.assertEqual([task.prompt for task in self.tasks(data, template=self.template("{#} {}"))], expected)
        self.assertEqual(self.prompts(data, "{#} {}"), expected)
        self.assertEqual(self.prompts(b"\n".join(data.split(b"\n")[:2] + [b"\0", b"last"]), "{#} {}")[2:],
                         ["stdin:3: " + next(clinvk.split_items([b"\0"], b"\n")).problem, "4 last"])
        values = [{"n": item} for item in items]
        for data in (json.dumps(values), json.dumps(values[:200]) + json.dumps(values[200:])):
            self.assertEqual([task.prompt for task in self.tasks(data.encode(), template=self.template("{#} {.n}"))], expected)
            self.assertEqual(self.prompts(data.encode(), "{#} {.n}"), expected)

    def test_fields_are_those_of_json_values(self):
        data = b'{"t": "T", "n": 1.5, "l": [{"k-1": "v"}], "o": {"a": [1, null]}, "b": true}\n [{"t": "U"}, {"t": "{.n}"}]'
        self.assertEqual(self.prompts(data[:data.index(b"\n")], "{.t} {.n} {.l[0].k-1} {.l[-1].k-1} {.o} {.b} {.o.a[0]}"), ['T 1.5 v v {"a":[1,null]} true 1'])
        self.assertEqual(self.prompts(data, "{#}{.t}"), ["1T", "2U", "3{.n}"])
        self.assertEqual(self.prompts(b'{"t": "T"}', "{} {.t}"), ['{"t":"T"} T'])

    def test_field_that_is_missing_is_bad_input_of_its_item(self):
        data = b'{"title": "T"}\n{"titel": "U"}\n{"title": null}\n[{"title": "V"}, 7]\n{"title": "W"}\n'
        self.assertEqual(self.prompts(data, "{#} {.title}"), [
            "1 T", 'stdin:2: the item has no field .title (did you mean "titel"?)', "stdin:3: the item has no field .title",
            "stdin:4: [1]: the item has no field .title", "5 W"])
        self.assertEqual(self.refused(data, template=self.template("{.title}")), 'tasks.json:2: the item has no field .title (did you mean "titel"?)')
        with self.assertRaisesRegex(clinvk.UserError, "^stdin:1: the item has no field .x.y$"):
            self.prompts(b'{"x": {"y ": 1}}', "{.x.y}")

    def test_item_goes_through_the_checks_of_a_task(self):
        root = self.path("root")
        os.mkdir(root)
        template = self.template("{}", workdir="{}", id="{/}")
        self.assertEqual(self.refused(("%s\n%s\n" % (root, self.directory)).encode(), root=root, template=template),
                         'tasks.json:2: workdir: "%s" is outside of "%s"' % (self.directory, root))
        self.assertEqual(self.refused(b"a/b\nb\n", template=template), 'tasks.json:2: id: another task of this run has the id "b"')
        self.assertEqual(self.refused(b"x\n", template=self.template("{}"), overrides={"sandbox_mode": "full"}, ceiling=clinvk.parse_ceiling("sandbox=workspace")),
                         'tasks.json:1: sandbox_mode: "full" is above the ceiling, which is "workspace"')
        task, = self.tasks(b"a\n", template=self.template("p {}", name="n {#}", id="{.}", workdir="/{}"), overrides={"model": "m"})
        self.assertEqual(task, clinvk.Task("claude", "p a", "m", "/a", id="a", name="n 1", literal=True))

    def test_file_of_an_answer_is_inside_of_the_root_and_new(self):
        root = self.path("root")
        os.makedirs(root + "/d")
        os.symlink(self.directory, root + "/out")
        os.symlink("nowhere", root + "/link")
        self.file("root/old", b"")
        rules = {"root": root, "overrides": {"workdir": root}}
        for item, message in [
            ("old", '"%s/old" exists; --overwrite replaces it'), ("link", '"%s/link" exists'), ("d", '"%s/d" is a directory; expected the name of a file'),
            ("d/", '"%s/d/" is a directory'), ("old/x", '"%s/old" is not a directory'), ("old/d/x", '"%s/old" is not a directory'), ("new/..", '"%s/new/.." is a directory'), ("../x", '"%s/../x" is outside of "' + root), ("out/x", '"%s/out/x" is outside of "'),
            ("a\n%s/./a" % root, 'another task of this run has the file "%s/./a"'), ("b/c/d\n%s/b" % root, '"%s/b" has to be a directory for the file of another task'),
            ("b\n%s/b/c/d" % root, '"%s/b/c/d" is below the file of another task')]:
            with self.subTest(item):
                refused = self.refused(("%s/%s\n" % (root, item)).encode(), template=self.template("{}", write_to="{}"), **rules)
                self.assertIn(": write_to: " + message % root, refused)
        task, = self.tasks(b"old", template=self.template("{}", write_to=root + "/{}")._replace(may_exist=True), **rules)
        self.assertEqual(task.write_to, root + "/old")
        with self.assertRaisesRegex(clinvk.UserError, 'write_to: "/x" is outside of the current directory; --root DIR, with the current directory below DIR, allows it$'):
            self.prompts(b"x", "{}", write_to="/{}")

    def test_file_of_another_shard_may_exist(self):
        path = self.file("2", b"")
        for shard, message in ((0, None), (1, '^stdin:2: write_to: "%s" exists; ' % path)):
            found = [getattr(item, "error", "") for item in support.jobs_of(self.pipe_stream(
                b"1\n2\n", template=self.template("{}", write_to=self.directory + "/{}"), root=self.directory, overrides={"workdir": self.directory}, shard=clinvk.Shard(shard, 2)))]
            self.assertRegex(found[0], message or "^$")

    def test_prompt_of_an_item_is_literal(self):
        for data, options in ((b"x", {}), (b'{"a": 1}', {"prompt": "{.a}"})):
            self.assertEqual([job.literal for job in self.jobs(data, template=self.template(**dict({"prompt": "{}"}, **options)))], [True])
        job, = self.jobs(b"/init @/etc/passwd", template=self.template("{}"), overrides={"backend": "gemini"})
        self.assertEqual(clinvk.backend_of(job).text(job), "\n/init \\@/etc/passwd")

    def test_arguments_are_items_as_they_are(self):
        template = self.template("{}", form="null", words=("a b", "", "c\n", "\udcff"))
        stream = clinvk.open_tasks(None, clinvk.TaskPolicy(template=template), self.warnings.append)
        self.assertEqual((stream.total, [job.task.prompt for job in support.jobs_of(stream)]), (3, ["a b", "c\n", "\udcff"]))

    def test_template_that_does_not_fit_the_items_is_refused(self):
        for prompt, options, message in [
            ("Hello", {}, "does not use the items"), ("{{}", {}, "does not use the items"), ('{"a": 1}', {}, "does not use the items"),
            ("{title}", {}, r"\{title\} in a template is no placeholder; the items are texts: a column needs --csv or --tsv, .*; the text itself is \{\{title\}$"),
            ("{.labels[].name} {.a}", {}, r"^\{.labels\[\].name\} in a template is no placeholder; the items are JSON values; the text itself is"), ("{.a b}", {}, "is no placeholder"),
            ("{.a}", {"form": "null"}, "the items are texts that NUL bytes separate"), ("{.a}", {"form": "null", "words": ("x",)}, "the items are arguments"),
            ("{.a} {/.}", {}, r"^\{/.\} in a template is no placeholder; the items are JSON values; the text itself is \{\{/.\}$"),
            ("{.a}", {"name": "{//}"}, "the items are JSON values")]:
            with self.subTest(prompt), self.assertRaisesRegex(clinvk.UserError, message):
                self.template(prompt, **options)
        self.assertEqual(self.template("Hello", id="{}").form, "lines")
        self.assertEqual(self.template("Hello {#}", name="{.a}").form, "json")


class Rows(ItemCase):
    """Each row of a table becomes a task."""

    def template(self, prompt, form="csv", words=(), **fields):
        return clinvk.Template(dict(fields, prompt=prompt), form, words)

    def test_rows_are_the_same_in_chunks_of_any_size(self):
        data = '\ufeff"a","b c"\r\n1,"x, ""y""\r\nz"\n\n\n审,\n"",'.encode()
        expected = [(1, ["a", "b c"], ""), (2, ["1", 'x, "y"\r\nz'], ""), (6, ["审", ""], ""), (7, ["", ""], "")]
        for size in range(1, len(data) + 2):
            self.assertEqual(list(clinvk.split_rows((data[start:start + size] for start in range(0, len(data), size)), ",")), expected, size)

    def test_columns_are_placeholders(self):
        data = b'id,text,First name\n1,"a {id}, b\nc",Bo\n2,,{{\n'
        self.assertEqual(self.prompts(data, '{#}.{id} {text}/{First name} {{text} {"text": 1} {Last name}'),
                         ['1.1 a {id}, b\nc/Bo {text} {"text": 1} {Last name}', '2.2 /{{ {text} {"text": 1} {Last name}'])
        self.assertEqual(self.prompts(data.replace(b",", b"\t"), "{id}|{text}", form="tsv")[1], "2|")
        self.assertEqual([task.id for task in self.tasks(data, template=self.template("{}", id="r{id}"))], ["r1", "r2"])
        self.assertEqual(json.loads(self.prompts(data, "{}")[1]), {"id": "2", "text": "", "First name": "{{"})

    def test_column_with_the_name_of_a_part_is_a_column(self):
        data = b"@,/,//,.,/.,.a,a b\n1,2,3,4,5,6,7\n"
        for form in ("csv", "tsv"):
            found = self.prompts(data.replace(b",", b"," if form == "csv" else b"\t"), "{#} {@}{/}{//}{.}{/.}{.a}{a b} {{/}", form=form)
            self.assertEqual(found, ["1 1234567 {/}"])
        with self.assertRaisesRegex(clinvk.UserError, r'^prompt: "\{@\}" is no column of '):
            self.prompts(b"/\n1\n", "{/}{@}")

    def test_column_with_the_name_of_the_number_is_no_placeholder(self):
        data = b"#,a\n7,8\n"
        self.assertEqual(self.prompts(data, "{a} {}"), ['8 {"#":"7","a":"8"}'])
        with self.assertRaisesRegex(clinvk.UserError, r"^\{#\} in a template is the number of the task, but a column has the name #; give the column another name$"):
            self.prompts(data, "{a}", name="{#}")

    def test_large_table_is_read_twice(self):
        rows = ["%d,%s" % (number, "x" * 3000) for number in range(400)]
        data = ("n,text\n" + "\n".join(rows)).encode()
        self.assertGreater(len(data), clinvk.SMALL_FILE_BYTES)
        expected = ["%d %d" % (number + 1, number) for number in range(400)]
        self.assertEqual([task.prompt for task in self.tasks(data, template=self.template("{#} {n}"))], expected)
        self.assertEqual(self.prompts(data, "{#} {n}"), expected)
        self.assertEqual(self.refused(data + b"\n1,2,3", template=self.template("{n}")), "tasks.json:402: the row has 3 fields, but there are 2 columns")

    def test_columns_that_change_between_two_readings_are_one_bad_input(self):
        path = self.file("t.csv", "n,text\n" + "1,%s\n" % ("x" * 2000) * 600)
        stream = clinvk.open_tasks(path, clinvk.TaskPolicy(template=self.template("{n}")), self.fail)
        self.file("t.csv", "m,text\n1,2\n")
        problem, = support.jobs_of(stream)
        self.assertRegex(problem.error, "^%s: the file changed during the run" % path)

    def test_row_that_cannot_be_read_is_bad_input(self):
        data = b'a,b\n1,2\n3\n4,"5"x\n\xe9,6\n\0,7\n8,9\n10,"11\n12,13\n'
        found = self.prompts(data, "{a}")
        self.assertEqual([found[0], found[5]], ["1", "8"])
        self.assertEqual(found[1:4], ["stdin:3: the row has 1 field, but there are 2 columns", "stdin:4: the row cannot be read: ',' expected after '\"'",
                                      "stdin:5: not valid UTF-8; `iconv -f WINDOWS-1252 -t UTF-8` converts texts of Windows"])
        self.assertRegex(found[4], "^stdin:6: the row cannot be read: .*NUL")
        self.assertEqual(found[6:], ['stdin:8: the row cannot be read: a field that begins with " does not end'])
        self.assertEqual(self.prompts(b"id,temperature\n1,2\n", 'About {id}: {"temperature": 1}'), ['About 1: {"temperature": 1}'])
        with unittest.mock.patch.object(clinvk, "MAX_FIELD", 5):
            self.assertEqual(self.prompts(b"a\n1\n123456\n2\n", "{a}"), ["1", "stdin:3: the row cannot be read: field larger than field limit (5)", "2"])
        with unittest.mock.patch.object(clinvk, "MAX_VALUE_BYTES", 5):
            self.assertEqual(self.prompts(b"a\n1\n123456\n2\n", "{a}")[::2], ["1", "2"])

    def test_template_that_does_not_fit_the_columns_is_refused(self):
        for data, prompt, message in [
            (b"text,id\n1,2\n", "{txet}", r'^prompt: "\{txet\}" is no column of stdin \(did you mean "\{text\}"\?\); its columns are: text, id; the text itself is \{\{txet\}$'),
            (b"id;text\n1;2\n", "{text}", r'^prompt: "\{text\}" is no column of stdin; its only column is "id;text": perhaps other characters part the fields; '),
            (b"id,text\n1,2\n", "{Text}", r'\(did you mean "\{text\}"\?\); its columns are: id, text'), (b"id,text\n", "{text}", "^stdin: no tasks: there is no row below the names of the columns$"),
            (b"First name,x\n1,2\n", "{Frist name} {x}", r'^prompt: "\{Frist name\}" is no column of stdin \(did you mean "\{First name\}"\?\)'),
            (b"text\n1\n", "{ text }", r'^prompt: "\{ text \}" is no column of stdin \(did you mean "\{text\}"'), (b"a\n1\n", "{a} {zzz}", "no column of stdin; its columns are: a; the text itself"),
            (b"a\n1\n", "Hello { b c }", "does not use the items; write {COLUMN}"), (b"a\n1\n", "{a}{/}", "no column of stdin"),
            (b"a\n1\n", "{a}{@}", "no column of stdin"), (b"a\n1\n", "{.a}", "a field of JSON values, but the items are rows"), (b"", "{a}", "^stdin:1: there is no row with"),
            (b"a\n\n", "{a}", "no tasks: there is no row"), (b"\na,b,a\n1,2,3\n", "{a}", '^stdin:2: two columns have the name "a"$'), (b"a\n1,2", "{a}", "^stdin:2: the row")]:
            with self.subTest(prompt), self.assertRaisesRegex(clinvk.UserError, message):
                self.prompts(data, prompt)


class Contents(ItemCase):
    """{@} is the content of the file that the item names."""

    def setUp(self):
        super().setUp()
        self.root = os.path.join(self.directory, "root")
        os.mkdir(self.root)

    def item(self, name, content):
        return self.file(os.path.join("root", name), content)

    def test_content_is_given_as_it_is(self):
        content = "{} {@} 审\r\n @x\n"
        path = self.item("a", content.encode())
        self.assertEqual(self.prompts(path.encode(), "{/}:{@}{{@}"), ["a:" + content + "{@}"])
        self.assertEqual([task.prompt for task in self.tasks(path.encode(), template=self.template("{@}"), root=self.root, overrides={"workdir": self.root})], [content])

    def test_file_that_cannot_be_a_part_of_a_prompt_is_bad_input(self):
        first, outside = self.item("first", b"x"), self.file("outside", b"secret")
        os.mkfifo(os.path.join(self.root, "pipe"))
        os.symlink(outside, os.path.join(self.root, "link"))
        os.mkdir(os.path.join(self.root, "d"))
        with open(os.path.join(self.root, "large"), "wb") as file:
            file.write(b"x" * (clinvk.MAX_CONTENT_BYTES + 1))
        self.item("binary", b"a\n\xff")
        self.item("nul", b"ab\0")
        for name, problem in [
            ("nowhere", ": No such file or directory"), ("d", ": Is a directory"), ("pipe", " is not a regular file"),
            ("binary", " is not text: byte 0xff in line 2 is not UTF-8"), ("nul", " is not text: it contains a NUL byte"),
            ("large", " is larger than 1 MiB; name the file in the prompt with {}"), ("link", ' is outside of "%s"' % self.root), ("../outside", ' is outside of "%s"' % self.root)]:
            with self.subTest(name):
                path = os.path.join(self.root, name)
                items = [item.task.prompt if item.task else item.error for item in support.jobs_of(self.pipe_stream(
                    ("%s\n%s\n" % (first, path)).encode(), template=self.template("{@}"), root=self.root, overrides={"workdir": self.root}))]
                quoted = clinvk.quoted(path)
                self.assertEqual(items, ["x", "stdin:2: " + quoted + problem])

    def test_contents_are_not_kept_but_read_again(self):
        paths = [self.item(str(number), b"%d" % number) for number in range(3)]
        data = "\n".join(paths).encode()
        for stream in (self.stream(data, template=self.template("{@}")), self.pipe_stream(data, template=self.template("{@}")),
                       clinvk.open_tasks(None, clinvk.TaskPolicy(template=self.template("{@}", "null", tuple(paths))), self.fail)):
            self.assertEqual(stream.total, 3)
            self.item("1", b"new")
            os.unlink(paths[2])
            found = [item.task.prompt if item.task else item.error.partition(": ")[2] for item in support.jobs_of(stream)]
            self.assertEqual(found, ["0", "new", '"%s": No such file or directory' % paths[2]])
            self.item("2", b"2")


class Pipes(TaskCase):
    def setUp(self):
        super().setUp()
        self.reader, self.writer = os.pipe()
        self.addCleanup(os.close, self.reader)
        self.ready = threading.Semaphore(0)

    def open_stream(self):
        stream = clinvk.TaskStream(self.reader, "stdin", clinvk.TaskPolicy(), self.warnings.append)
        stream.on_ready = self.ready.release
        return stream

    def wait(self):
        self.assertTrue(self.ready.acquire(timeout=support.PATIENCE), "on_ready was not called")

    def next_of(self, stream):
        """The next task, waited for as the pool does it."""
        while True:
            item = stream.next_job()
            if item != clinvk.NOT_READY:
                return item
            self.wait()

    def test_pipe_gives_tasks_while_its_writer_is_writing(self):
        os.write(self.writer, b'{"prompt":"first"}')
        stream = self.open_stream()
        self.assertEqual(stream.next_job().task.prompt, "first")
        self.assertEqual(stream.next_job(), clinvk.NOT_READY)
        os.write(self.writer, b'\n{"prompt":"sec')
        self.assertEqual(stream.next_job(), clinvk.NOT_READY)
        os.write(self.writer, b'ond"}[{"prompt":"third"},{"prompt":"fourth"}]')
        self.assertEqual([self.next_of(stream).task.prompt for _ in range(3)], ["second", "third", "fourth"])
        os.close(self.writer)
        self.assertEqual(self.next_of(stream), clinvk.END)
        self.assertEqual(stream.next_job(), clinvk.END)

    def test_total_of_a_pipe_with_an_open_writer_is_unknown(self):
        os.write(self.writer, b'{"prompt":"first"}{"prompt":"second"}')
        stream = self.open_stream()
        self.assertIsNone(stream.total)
        os.close(self.writer)
        self.assertEqual([self.next_of(stream).task.prompt for _ in range(2)], ["first", "second"])

    @unittest.mock.patch.object(clinvk, "SMALL_FILE_BYTES", 1 << 17)
    def test_total_of_a_pipe_with_more_than_is_read_ahead_is_unknown(self):
        os.close(self.writer)
        data = support.tasks(*["x" * 1000] * 400)
        self.assertGreater(len(data), 2 * clinvk.SMALL_FILE_BYTES)
        stream = self.pipe_stream(data)
        self.assertIsNone(stream.total)
        self.assertEqual(sum(1 for _ in support.jobs_of(stream)), 400)

    def test_pipe_holds_a_value_back_until_its_end(self):
        os.write(self.writer, b'{"prompt":"first"}{"tasks":[{"prompt":"a"},{"prompt":"b"},')
        stream = self.open_stream()
        self.assertEqual(stream.next_job().task.prompt, "first")
        self.assertEqual(stream.next_job(), clinvk.NOT_READY)
        os.write(self.writer, b'{"prompt":3}]}\n{"prompt":"c"}')
        os.close(self.writer)
        bad = self.next_of(stream)
        self.assertEqual((bad.index, bad.backend, bad.status, bad.error), (1, "", "failed", "stdin:1: tasks[2].prompt: expected a string, got 3"))
        self.assertEqual(self.next_of(stream), clinvk.Job(2, clinvk.Task("claude", "c")))
        self.assertEqual(self.next_of(stream), clinvk.END)

    def test_pipe_with_a_bad_first_value_is_an_error(self):
        os.write(self.writer, b'{"prompt":3}\n{"prompt":"good"}\n')
        os.close(self.writer)
        with self.assertRaisesRegex(clinvk.UserError, "^stdin:1: prompt: expected a string, got 3$"):
            self.open_stream()

    def test_pipe_with_damage_gives_one_failed_task_each(self):
        os.write(self.writer, b'{"prompt":"a"}\nnoise\nmore noise\n{"prompt":"b"}\n{"prompt":"torn\n{"prompt":"c"}\n{"prompt":"\xff"}\n'
                 b'{"prompt":"d"} x\n{"prompt":"e"}\n{"tasks":[{"prompt":"f"}')
        os.close(self.writer)
        told = [(item.task.prompt, "") if item.task else ("", item.error.partition(": ")[0]) for item in support.jobs_of(self.open_stream())]
        self.assertEqual(told, [("a", ""), ("", "stdin:2"), ("b", ""), ("", "stdin:5"), ("c", ""), ("", "stdin:7"), ("d", ""), ("", "stdin:8"),
            ("e", ""), ("", "stdin:10")])

    def test_pipe_after_stop_gives_only_the_value_being_read(self):
        os.write(self.writer, b'{"prompt":"first"}')
        stream = self.open_stream()
        self.assertEqual(stream.next_job().task.prompt, "first")
        self.assertEqual(stream.next_job(), clinvk.NOT_READY)
        stream.stop()
        os.write(self.writer, b'[{"prompt":"second"},{"prompt":"third"}]{"prompt":"fourth"}')
        self.assertEqual([self.next_of(stream).task.prompt for _ in range(2)], ["second", "third"])
        self.assertEqual(self.next_of(stream), clinvk.END)  # though the pipe is still open
        os.close(self.writer)

    def test_stop_after_the_last_value_of_a_pipe_is_at_its_end(self):
        for rest, at_end in ((b"", True), (b"\n \n", True), (b'{"prompt":"third"}', False), (b'{"prompt":"th', False)):
            with self.subTest(rest):
                reader, writer = os.pipe()
                self.addCleanup(os.close, reader)
                os.write(writer, b'{"prompt":"first"}')
                stream = clinvk.TaskStream(reader, "stdin", clinvk.TaskPolicy(), self.warnings.append)
                stream.on_ready = self.ready.release
                stream.stop()
                os.write(writer, b'{"prompt":"second"}' + rest)
                os.close(writer)
                self.assertEqual([self.next_of(stream).task.prompt for _ in range(2)], ["first", "second"])
                self.assertEqual((self.next_of(stream), stream.at_end), (clinvk.END, at_end))
        os.close(self.writer)

    def test_pipe_that_is_non_blocking_is_waited_for(self):
        os.set_blocking(self.reader, False)
        os.write(self.writer, b'{"prompt":"first"}')
        stream = self.open_stream()
        self.assertEqual(stream.next_job().task.prompt, "first")
        self.assertEqual(stream.next_job(), clinvk.NOT_READY)
        os.write(self.writer, b'{"prompt":"second"}')
        self.assertEqual(self.next_of(stream).task.prompt, "second")
        os.close(self.writer)
        self.assertEqual(self.next_of(stream), clinvk.END)

    def test_pipe_read_error_is_the_last_failed_task(self):
        os.write(self.writer, b'{"prompt":"a"}')
        duplicate = os.dup(self.reader)
        stream = clinvk.TaskStream(duplicate, "stdin", clinvk.TaskPolicy(), self.warnings.append)
        stream.on_ready = self.ready.release
        self.assertEqual(stream.next_job().task.prompt, "a")
        directory = os.open(self.directory, os.O_RDONLY)
        os.dup2(directory, duplicate)  # from now on reading it fails
        os.close(directory)
        self.addCleanup(os.close, duplicate)
        bad = self.next_of(stream)
        self.assertEqual((bad.index, bad.backend, bad.task), (1, "", None))
        self.assertRegex(bad.error, "^stdin: .*Is a directory$")
        self.assertEqual(self.next_of(stream), clinvk.END)
        os.close(self.writer)


if __name__ == "__main__":
    unittest.main()
