"""Section 9, Sinks: what is written where, and in how many writes, for answers of every size and content.

A pipe gets every byte, a terminal gets no control characters.  The sinks write to the stdout or stderr
of this process, which is a socket, a pipe, a file or a terminal here.
"""
import errno
import fcntl
import json
import os
import random
import signal
import socket
import stat
import struct
import sys
import termios
import textwrap
import threading
import unittest
import unittest.mock

import support
from support import clinvk

TASK = clinvk.Task("echo", "say hello")


def result(index=0, answer="hello\n", **fields):
    fields.setdefault("task", TASK)
    return clinvk.Result(index, "echo", fields.pop("status", "ok"), fields.pop("exit_code", 0), answer,
                         start_time=fields.pop("start_time", 1795535999.5), end_time=fields.pop("end_time", 1795536002.0), **fields)


class SinkCase(support.Case):
    def hide_secret(self):
        """From now on `s3cret` is a secret."""
        patch = unittest.mock.patch.object(clinvk, "without_secrets", lambda text: text.replace("s3cret", "[A_KEY]"))
        patch.start()
        self.addCleanup(patch.stop)

    def text_file(self, data, name="answer"):
        return clinvk.TextFile(self.file(name, data), len(data)).take()

    def written(self, write, number=1):
        """What a sink writes to a pipe."""
        reader, writer = os.pipe()
        collected = []

        def collect():
            while True:
                piece = os.read(reader, 1 << 16)
                if not piece:
                    return
                collected.append(piece)

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            with support.descriptor_is(number, writer):
                os.close(writer)
                write(clinvk.Output(number))
        finally:
            thread.join()
            os.close(reader)
        return b"".join(collected)

    def shown(self, write, number=1, columns=80, lines=24):
        """What a sink writes to a terminal, byte for byte."""
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        attributes = termios.tcgetattr(slave)
        attributes[1] &= ~termios.OPOST  # no carriage returns put in
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        collected = []

        def collect():
            while True:
                try:
                    piece = os.read(master, 1 << 16)
                except OSError:  # EIO: nobody has the terminal open any more
                    return
                if not piece:
                    return
                collected.append(piece)

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            with support.descriptor_is(number, slave):
                os.close(slave)
                write(clinvk.Output(number))
        finally:
            thread.join()
            os.close(master)
        return b"".join(collected)

    def writes(self, write):
        """What a sink writes, one item for each write: this socket keeps them apart."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        collected = []

        def collect():
            while True:
                piece = mine.recv(1 << 21)
                if not piece:
                    return
                collected.append(piece)

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            with support.descriptor_is(1, theirs.fileno()):
                theirs.close()
                write(clinvk.Output(1))
        finally:
            thread.join()
            mine.close()
        return collected


class Fields(SinkCase):
    def test_encoded_plain_result_has_these_fields_in_order(self):
        self.assertEqual(b"".join(clinvk.encoded(result())), (
            b'{"index":0,"backend":"echo","status":"ok","exit_code":0,"output":"hello\\n","attempts":1,'
            b'"start_time":"2026-11-24T15:59:59.500Z","end_time":"2026-11-24T16:00:02.000Z","duration_seconds":2.5}'))

    def test_encoded_full_result_has_all_fields_in_order(self):
        task = TASK._replace(id="a-1", name="审查", tags=("x", "y"), meta={"k": [1, None]})
        full = result(7, "out", status="failed", exit_code=3, error="e", error_kind="rate_limit", retry_after_seconds=2.5, warnings=("w",),
                      model="m", session_id="s",
                      usage={"total_tokens": 5}, cost_usd=0.25, num_turns=2, attempts=2, task=task)
        value = json.loads(b"".join(clinvk.encoded(full)).decode())
        self.assertEqual(list(value.items()), [
            ("index", 7), ("task_id", "a-1"), ("task_name", "审查"), ("tags", ["x", "y"]), ("meta", {"k": [1, None]}), ("backend", "echo"),
            ("model", "m"), ("status", "failed"),
            ("exit_code", 3), ("output", "out"), ("error", "e"), ("error_kind", "rate_limit"), ("retry_after_seconds", 2.5), ("warnings", ["w"]),
            ("session_id", "s"),
            ("usage", {"total_tokens": 5}), ("cost_usd", 0.25), ("num_turns", 2), ("attempts", 2), ("start_time", "2026-11-24T15:59:59.500Z"),
            ("end_time", "2026-11-24T16:00:02.000Z"), ("duration_seconds", 2.5)])

    def test_encoded_empty_output_and_a_cost_of_zero_are_kept(self):
        value = json.loads(b"".join(clinvk.encoded(result(answer="", cost_usd=0.0, task=None))).decode())
        self.assertEqual((value["output"], value["cost_usd"]), ("", 0.0))
        self.assertNotIn("cost_usd", json.loads(b"".join(clinvk.encoded(result())).decode()))

    def test_encoded_answer_in_a_file_equals_one_in_memory(self):
        chance = random.Random(11)
        for size in (0, 1, clinvk.CHUNK - 1, clinvk.CHUNK, clinvk.CHUNK + 1, 3 * clinvk.CHUNK + 5):
            data = bytearray(chance.choice((b"a", "审".encode(), b"\xff", b"\0", b'"', b"\\", b"\n", "\U0001f600".encode())) for _ in range(0))
            while len(data) < size:
                data += chance.choice((b"plain text " * 50, "审查".encode(), b"\xff", b"\0", b'"', b"\\", b"\n", "\U0001f600".encode(),
                                       b"\xed\xa0\x80x"))
            in_file = result(answer=self.text_file(bytes(data)), error="after", warnings=("w",))
            in_memory = in_file._replace(answer=clinvk.to_text(bytes(data)))
            pieces = list(clinvk.encoded(in_file))
            self.assertLess(max(map(len, pieces)), 8 * clinvk.CHUNK)
            self.assertEqual(json.loads(b"".join(pieces).decode("utf-8")), json.loads(b"".join(clinvk.encoded(in_memory)).decode("utf-8")))


class JsonLines(SinkCase):
    @support.only_linux
    def test_json_lines_each_result_is_one_line_in_one_write(self):
        results = [result(2), result(0, "审查\n\x1b[31m"), result(1, "x" * 100000)]

        def write(output):
            sink = clinvk.JsonLines(output)
            for each in results:
                sink.write(each)

        lines = self.writes(write)
        self.assertEqual(len(lines), 3)
        for line, each in zip(lines, results):
            self.assertEqual(line.count(b"\n"), 1)
            self.assertTrue(line.endswith(b"}\n"))
            self.assertEqual(json.loads(line.decode())["output"], each.answer)

    @support.only_linux
    def test_json_lines_large_answer_is_one_write_up_to_a_bound(self):
        data = b"y" * 150000
        lines = self.writes(lambda output: clinvk.JsonLines(output).write(result(answer=self.text_file(data))))
        self.assertEqual([json.loads(line.decode())["output"] for line in lines], [data.decode()])
        huge = b"z" * (2 * clinvk.ONE_WRITE_BYTES)
        line = self.written(lambda output: clinvk.JsonLines(output).write(result(answer=self.text_file(huge))))
        self.assertEqual(json.loads(line.decode())["output"], huge.decode())
        self.assertEqual(line.count(b"\n"), 1)

    def test_json_lines_any_bytes_are_valid_utf8_json(self):
        for data in (b"\xff\xfe", b"\xed\xa0\x80", b"\xed\xb2\x80", b"\0\x01\x1b\x7f", b"\xc3", "\u2028\u2029\ufeff".encode(), b"\x80" * 70000):
            for answer in (clinvk.to_text(data), self.text_file(data)):
                line = self.written(lambda output: clinvk.JsonLines(output).write(result(answer=answer)))
                output = json.loads(line.decode("utf-8"))["output"]
                self.assertEqual(clinvk.to_bytes(output), data)

    def test_json_lines_on_a_terminal_escape_control_characters(self):
        for data in ("\x1b[31m\x7f\x9b31m\u202e\u2066审\t\0".encode() + b"\xff\x9b\xed\xa0\x80", "\x9b".encode() * 50000):
            for answer in (clinvk.to_text(data), self.text_file(data)):
                line = self.shown(lambda output: clinvk.JsonLines(output).write(result(answer=answer))).decode("utf-8")
                self.assertEqual([c for c in line[:-1] if ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066"], [])
                self.assertEqual(clinvk.to_bytes(json.loads(line)["output"]), data)

    def test_output_that_cannot_be_written_raises_the_reason(self):
        reader, writer = os.pipe()
        os.close(reader)
        with support.descriptor_is(1, writer), self.assertRaises(clinvk.OutputError) as caught:
            clinvk.JsonLines(clinvk.Output(1)).write(result())
        os.close(writer)
        self.assertEqual((str(caught.exception), caught.exception.broken_pipe), ("the reader of stdout went away", True))
        if os.path.exists("/dev/full"):
            full = os.open("/dev/full", os.O_WRONLY)
            with support.descriptor_is(1, full), self.assertRaisesRegex(clinvk.OutputError,
                "^cannot write to stdout: No space left on device$") as caught:
                clinvk.JsonLines(clinvk.Output(1)).write(result())
            with support.descriptor_is(2, full):
                clinvk.Output(2).text("nobody can read this, and nobody needs to know\n")
            os.close(full)
            self.assertFalse(caught.exception.broken_pipe)


class Redaction(SinkCase):
    def setUp(self):
        super().setUp()
        self.hide_secret()

    def test_output_text_on_stderr_is_redacted_and_on_stdout_is_not(self):
        for number, expected in ((1, b"a s3cret\n"), (2, b"a [A_KEY]\n")):
            self.assertEqual(self.written(lambda output: output.text("a s3cret\n"), number), expected)

    def test_redacted_result_loses_secrets_in_error_and_warnings_only(self):
        secret = result(0, "s3cret", error="error s3cret", warnings=("one s3cret", "two"), session_id="s3cret")
        self.assertEqual(clinvk.redacted(secret), secret._replace(error="error [A_KEY]", warnings=("one [A_KEY]", "two")))


class Fanouts(SinkCase):
    def test_fanout_looks_for_the_reader_at_most_ten_times_a_second(self):
        control = clinvk.Control()
        fanout = clinvk.Fanout([clinvk.ToFunction(clinvk.do_nothing)], control)
        with unittest.mock.patch.object(clinvk, "reader_is_gone", return_value=False) as look, \
                unittest.mock.patch.object(clinvk.time, "monotonic") as clock:
            for clock.return_value in (5.0, 5.01, 5.05, 5.2, 5.21, 5.4):
                fanout.look_for_reader()
            self.assertEqual(look.call_count, 3)
            look.return_value, clock.return_value = True, 6.0
            fanout.look_for_reader()
            clock.return_value = 7.0
            fanout.look_for_reader()  # in vain: it is gone
        self.assertEqual((look.call_count, control.level, fanout.error.broken_pipe), (4, 1, True))


class Spools(SinkCase):
    def setUp(self):
        super().setUp()
        self.enter_environment()

    def test_spool_records_come_back_whole_in_index_order(self):
        chance = random.Random(12)
        records = {index: [os.urandom(chance.choice((0, 1, 10, 70000))) for _ in range(chance.randrange(1, 4))]
                   for index in chance.sample(range(300), 60)}
        spool = clinvk.Spool()
        for index in chance.sample(sorted(records), len(records)):
            spool.add(index, iter(records[index]))
        self.assertEqual(os.listdir(self.tmp), [])
        for _ in range(2):
            self.assertEqual([b"".join(pieces) for pieces in spool], [b"".join(records[index]) for index in sorted(records)])
        spool.add(1000, [b"late"])
        self.assertEqual([b"".join(pieces) for pieces in spool][-1], b"late")
        self.assertEqual(list(clinvk.Spool()), [])

    def test_spool_full_disk_raises_and_keeps_earlier_records(self):
        body = """
            import os, resource, sys
            sys.path.insert(0, sys.argv[1])
            import clinvk
            spool = clinvk.Spool()
            spool.add(0, [b"a" * 70000])
            resource.setrlimit(resource.RLIMIT_FSIZE, (100000, resource.RLIM_INFINITY))
            for size in (70000, 100):
                try:
                    spool.add(1, [b"b" * size])
                    print([len(b"".join(pieces)) for pieces in spool])
                except clinvk.OutputError as error:
                    print(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            print([set(b"".join(pieces)) for pieces in spool][0] == {97})
            """
        done = self.run_program([sys.executable, "-c", textwrap.dedent(body), support.MODULES])
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        lines = done.stdout.decode().splitlines()
        self.assertRegex(lines[0], "^cannot write results.*: File too large$")
        self.assertEqual(lines[-1], "True")

    def test_json_has_the_results_from_before_the_disk_of_the_temporary_files_was_full(self):
        script = ("import errno, os, sys, clinvk\n"
                  "flush = clinvk.Spool._flush\n"
                  "def fill(self):\n"
                  "    if not self._written:\n"
                  "        return flush(self)\n"
                  "    with clinvk.writing('results'):\n"
                  "        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
                  "clinvk.Spool._flush = fill\n"
                  "sys.exit(clinvk.main(['parallel', '-b', 'echo', '-j', '1', '--json', '-q', '--prompt', 'say ' + '{}' * 1000, '--items', sys.argv[1]]))\n")
        items = self.file("items", "".join("%09d\n" % number for number in range(40)))
        done = self.run_program([sys.executable, "-c", script, items], env={"PYTHONPATH": support.MODULES})
        self.assertEqual(done.returncode, 74, done.stderr)
        kept = json.loads(done.stdout)["results"]
        self.assertTrue(10 < len(kept) < 40, len(kept))
        self.assertEqual([(one["index"], one["output"].strip()) for one in kept], [(index, "%09d" % index * 1000) for index in range(len(kept))])
        self.assertRegex(done.stderr, b"No space left on device; %d of 40 results not written\n$" % (40 - len(kept)))

    def test_spool_without_a_directory_raises_output_error(self):
        os.environ["TMPDIR"] = self.path("nowhere")
        with self.assertRaisesRegex(clinvk.OutputError, "^cannot write results.*nowhere.*No such file or directory"):
            clinvk.Spool()


class Reports(SinkCase):
    def setUp(self):
        super().setUp()
        self.enter_environment()

    @support.only_in_full_runs
    def test_report_is_one_object_in_task_order(self):
        chance = random.Random(13)
        report, totals = clinvk.JsonReport(), clinvk.Totals()
        order = chance.sample(range(50), 50)
        for index in order:
            each = result(index, self.text_file(b"\xff" * 100000, "a%d" % index) if index % 10 == 3 else "answer %d" % index)
            report.write(each)
            totals.write(each)
        totals.stop()
        text = b"".join(report.pieces(totals.fields()))
        self.assertTrue(text.endswith(b"\n]}\n"))
        value = json.loads(text.decode("utf-8"))
        self.assertEqual(list(value)[:4], ["total_tasks", "completed", "failed", "canceled"])
        self.assertEqual(list(value)[-1], "results")
        self.assertEqual([each["index"] for each in value["results"]], list(range(50)))
        self.assertEqual(value["results"][7]["output"], "answer 7")
        self.assertEqual(value["results"][13]["output"], "\udcff" * 100000)
        self.assertEqual(len(text.splitlines()), 52, "a result a line")

    def test_report_without_results_is_valid(self):
        self.assertEqual(json.loads(b"".join(clinvk.JsonReport().pieces({"total_tasks": 0})).decode()), {"total_tasks": 0, "results": []})


class Texts(SinkCase):
    def test_text_answer_follows_its_number_and_ends_its_line(self):
        for index, answer, expected in ((0, "hello", b"[1] hello\n"), (1, "hello\n", b"[2] hello\n"), (9, "a\n\nb\n\n", b"[10] a\n\nb\n\n"),
                                        (2, "", b""), (0, "审查", "[1] 审查\n".encode())):
            self.assertEqual(self.written(lambda output: clinvk.Text(output).write(result(index, answer))), expected)

    def test_text_answer_in_a_file_is_written_the_same_way(self):
        for data in (b"x" * 200000, b"x" * 199999 + b"\n", "审".encode() * 70000):
            got = self.written(lambda output: clinvk.Text(output).write(result(3, self.text_file(data))))
            self.assertEqual(got, b"[4] " + data.rstrip(b"\n") + b"\n")

    def test_text_label_is_the_name_else_the_id(self):
        for fields, label in (({"name": "n", "id": "i"}, b"[1 n] "), ({"id": "i"}, b"[1 i] "), ({"name": " a\x1b\nb"}, b"[1 a^[] "),
                              ({"name": "\n"}, b"[1] "),
                              ({"name": "x" * 100}, b"[1 " + b"x" * 57 + b"...] "), ({"name": "\udcff"}, b"[1 <FF>] ")):
            got = self.written(lambda output: clinvk.Text(output).write(result(0, "answer", task=TASK._replace(**fields))))
            self.assertEqual(got, label + b"answer\n")

    def test_text_failure_comes_before_a_partial_answer(self):
        for status, fields, answer, expected in (
                ("failed", {"error": "bad\x1b[1m\nworse\n"}, "", b"[1] FAILED: bad^[[1m\nworse\n"),
                ("timeout", {"error": "late"}, " \n", b"[1] TIMEOUT: late\n"),
                ("lost", {"error": "gone"}, "a\nb", b"[1] LOST: gone\n[1] partial output: a\nb\n"),
                ("failed", {"error": "bad", "error_kind": "check"}, "a", b"[1] FAILED: bad\n[1] answer: a\n"),
                ("canceled", {"error": "canceled while it ran"}, "a", b"[1] CANCELED: canceled while it ran\n[1] partial output: a\n"),
                ("canceled", {"error": "canceled before it started", "attempts": 0}, "", b"")):
            each = result(0, answer, status=status, **fields)
            self.assertEqual(self.written(lambda output: clinvk.Text(output).write(each)), expected)
            self.assertEqual(self.written(lambda output: clinvk.Text(output, lambda result: "[a]").write(each)),
                             expected and expected.replace(b"[1] partial output: ", b"partial output:\n").replace(b"[1] answer: ", b"answer:\n").replace(b"[1] ", b"[a]\n"))
        each = result(0, self.text_file(b"x" * 200000), status="failed", error="bad")
        self.assertEqual(self.written(lambda output: clinvk.Text(output).write(each)),
                         b"[1] FAILED: bad\n[1] partial output: " + b"x" * 200000 + b"\n")

    def test_text_to_a_pipe_keeps_all_bytes(self):
        for data in (b"\x1b[31mred\x1b[0m\r\n\0\xff\x9b\xed\xa0\x80", b"\x1b]0;title\x07" * 20000):
            for answer in (clinvk.to_text(data), self.text_file(data)):
                got = self.written(lambda output: clinvk.Text(output).write(result(0, answer)))
                self.assertEqual(got, b"[1] " + data + (b"" if data.endswith(b"\n") else b"\n"))

    def test_text_to_a_terminal_has_no_control_characters(self):
        for data in ("\x1b[31mred\x1b[0m \x1b]0;t\x07 a\rb \x9b31m \u202e審\t.\n".encode(), b"\x1b[2J" * 20000):
            for answer in (clinvk.to_text(data), self.text_file(data)):
                got = self.shown(lambda output: clinvk.Text(output).write(result(0, answer))).decode("utf-8")
                self.assertEqual([c for c in got if ord(c) < 32 and c not in "\n\t" or 127 <= ord(c) < 160 or c == "\u202e"], [])
                self.assertTrue(got.startswith("[1] ^[["))

    def test_text_to_a_terminal_has_no_stray_bytes(self):
        for data in (b"a\x9b31mred\n", b"\x90\x9d\xff\n", b"\x9b2J" * 30000):
            for answer in (clinvk.to_text(data), self.text_file(data)):
                got = self.shown(lambda output: clinvk.Text(output).write(result(0, answer)))
                got.decode("utf-8")  # every byte belongs to a character

    def test_command_lines_only_planned_commands_are_written(self):
        def write(output):
            sink = clinvk.CommandLines(output)
            sink.write(result(0, "cat <<< hello", status="skipped"))
            sink.write(result(1, "", status="failed", error="bad"))
            sink.write(result(2, "x" * 100, status="skipped"))
        self.assertEqual(self.written(write), b"cat <<< hello\n" + b"x" * 100 + b"\n")

    def test_command_lines_warn_once_of_each_option_without_effect(self):
        warned = []

        def write(output):
            sink = clinvk.CommandLines(output, warned.append)
            for index in range(30):
                sink.write(result(index, "x", status="skipped", warnings=("a", "b", "%d" % (index // 2))))
        self.assertEqual(self.written(write), b"x\n" * 30)
        self.assertEqual(warned, ["a", "b", *map(str, range(15))])


class Directories(SinkCase):
    def setUp(self):
        super().setUp()
        self.enter_environment()
        self.out = self.path("deep", "out")
        self.warnings = []

    def opened(self, path="", **options):
        return clinvk.Directory(path or self.out, warn=self.warnings.append, **options)

    def test_directory_has_a_file_for_each_task_and_a_summary(self):
        directory, totals = self.opened(), clinvk.Totals()
        self.assertEqual(os.listdir(self.out), [])
        for each in (result(1, "b", task=TASK._replace(name="审查 auth 模块", meta={"k": 1}, timeout=5.0)),
                     result(0, "a", task=TASK._replace(id="first one"))):
            directory.write(each)
            totals.write(each)
        self.assertEqual(sorted(os.listdir(self.out)), ["001_first_one.json", "002_auth.json"], "each is there at once")
        directory.finish(totals.fields())
        self.assertEqual(sorted(os.listdir(self.out)), ["001_first_one.json", "002_auth.json", "summary.json"])
        with open(os.path.join(self.out, "002_auth.json"), encoding="utf-8") as file:
            value = json.load(file)
        self.assertEqual(value["task"], {"backend": "echo", "prompt": "say hello", "timeout": 5.0,
                                         "name": "审查 auth 模块", "meta": {"k": 1}})
        self.assertEqual((value["result"]["index"], value["result"]["output"]), (1, "b"))
        with open(os.path.join(self.out, "summary.json"), encoding="utf-8") as file:
            summary = json.load(file)
        self.assertEqual((summary["total_tasks"], [each["output"] for each in summary["results"]]), (2, ["a", "b"]))

    def test_directory_word_default_is_kept_in_other_fields(self):
        task = clinvk.Task("echo", "default", model="default", name="default", id="default", tags=("default",))
        self.opened().write(result(task=task))
        with open(os.path.join(self.out, "001_default.json"), encoding="utf-8") as file:
            self.assertEqual(json.load(file)["task"], {"backend": "echo", "prompt": "default", "model": "default", "name": "default",
                                                       "id": "default", "tags": ["default"]})

    def test_directory_and_files_are_private_under_any_umask(self):
        former = os.umask(0)
        self.addCleanup(os.umask, former)
        directory = self.opened()
        directory.write(result(0, self.text_file(b"x" * 300000)))
        directory.finish({})
        self.assertEqual(stat.S_IMODE(os.stat(self.out).st_mode), 0o700)
        for name in os.listdir(self.out):
            self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.out, name)).st_mode), 0o600)

    def test_directory_ids_and_names_make_no_paths(self):
        directory = self.opened()
        words = ["../../x", "/etc/passwd", "..", ".", "a/b\\c", "审查", "x" * 500, "con", "a\0b\nc", "-rf", "\ud800", "NUL ", "summary", "%s%n", "é",
                 "~", "a.json"]
        for index, word in enumerate(words):
            directory.write(result(index, task=TASK._replace(id=word)))
            directory.write(result(100 + index, task=TASK._replace(name=word)))
        names = os.listdir(self.out)
        self.assertEqual(len(names), 2 * len(words))
        for name in names:
            self.assertRegex(name, r"\A[0-9]{3}_[A-Za-z0-9_-]{1,64}\.json\Z")
        self.assertIn("001_x.json", names)
        self.assertIn("006_task-6.json", names)
        self.assertEqual(sorted(os.listdir(self.path("deep"))), ["out"])
        directory.write(result(1233))
        self.assertIn("1234_task-1234.json", os.listdir(self.out))

    def output_in(self, name):
        with open(os.path.join(self.out, name)) as file:
            return json.load(file)["result"]["output"]

    def one_run(self, text, id="", **options):
        """A run of one task in the directory, and its warnings."""
        del self.warnings[:]
        directory = self.opened(**options)
        directory.write(result(0, text, task=TASK._replace(id=id)))
        directory.finish(clinvk.Totals().fields())
        return self.warnings

    def test_directory_with_earlier_results_without_ids_needs_overwrite(self):
        self.assertEqual(self.one_run("one"), [])
        os.unlink(os.path.join(self.out, "summary.json"))  # of a run that was killed
        refusal = "^output_dir %s: it contains results of an earlier run: .*--overwrite$" % self.out
        for name in ("001_task-1.json", "1000_other.1.json"):
            os.rename(os.path.join(self.out, os.listdir(self.out)[0]), os.path.join(self.out, name))
            with self.assertRaisesRegex(clinvk.UserError, refusal):
                self.opened()
            self.assertEqual(self.output_in(name), "one")
        self.assertEqual(self.one_run("two", overwrite=True), [])
        self.assertEqual(self.one_run("three", overwrite=True), [])
        self.assertEqual((self.output_in("001_task-1.json"), self.output_in("1000_other.1.json")), ("three", "one"))

    def test_result_of_the_same_id_is_replaced_and_of_another_is_kept(self):
        name = "001_a__b.json"
        for text in ("one", "two"):
            self.assertEqual(self.one_run(text, id='a "b', has_ids=True), [])
            self.assertEqual(self.output_in(name), text)
        for id in ("a/ b", 'a "b"', "a__b"):  # the file name is the same for all
            warning, = self.one_run(id, id=id, has_ids=True)
            self.assertEqual(self.output_in(warning.rpartition(" ")[2]), id)
        self.assertEqual(self.output_in(name), "two")
        self.assertEqual(len(os.listdir(self.out)), 5)

    def test_drafts_of_a_killed_run_are_removed_and_nothing_else(self):
        self.one_run("one", id="a")
        drafts = ["001_a.json.0123456789ab.tmp", "1234_b-c.opus.2.json.ffffffffffff.tmp", "summary.json.0a0a0a0a0a0a.tmp"]
        others = ["001_a.json.tmp", "001_a.json.0123456789AB.tmp", "001_a.json.0123456789abc.tmp", "a.json.0123456789ab.tmp", "001_a.0123456789ab.tmp",
                  "x001_a.json.0123456789ab.tmp", "001_a.json.0123456789ab.tmp~"]
        for name in drafts + others:
            self.file(os.path.join(self.out, name), b"{")
        with self.assertRaises(clinvk.UserError):
            self.opened()
        self.assertEqual(set(drafts + others) - set(os.listdir(self.out)), set())
        self.one_run("two", id="a", has_ids=True)
        self.assertEqual(sorted(os.listdir(self.out)), sorted(others + ["001_a.json", "summary.json"]))

    def test_result_without_an_id_that_came_by_pipe_replaces_nothing(self):
        self.one_run("one")
        warning, = self.one_run("two", has_ids=True)
        self.assertEqual((self.output_in("001_task-1.json"), self.output_in("001_task-1.1.json")), ("one", "two"))

    def test_file_that_clinvk_did_not_write_is_never_replaced(self):
        os.makedirs(self.out)
        target = self.file("target", b'{"task":{"id":"x"')
        for kind in ("foreign", "link", "fifo", "directory", "empty"):
            path = os.path.join(self.out, "001_x.json")
            {"foreign": lambda: self.file(path, b'{"precious":1}'), "link": lambda: os.symlink(target, path),
             "fifo": lambda: os.mkfifo(path), "directory": lambda: os.mkdir(path), "empty": lambda: self.file(path, b"")}[kind]()
            before = os.lstat(path)
            for number, options in enumerate(({"has_ids": True}, {"overwrite": True}), 1):
                with self.subTest(kind=kind, options=options):
                    warning, = self.one_run(kind, id="x", **options)
                    self.assertEqual(warning, "output_dir %s: 001_x.json is kept, because clinvk did not write it for this task: "
                                     "this result is in 001_x.%d.json" % (self.out, number))
                    self.assertEqual(self.output_in("001_x.%d.json" % number), kind)
                    self.assertTrue(os.path.samestat(before, os.lstat(path)))
            clinvk.remove_tree(self.out)
            os.makedirs(self.out)
        with open(target, "rb") as file:
            self.assertEqual(file.read(), b'{"task":{"id":"x"')

    def test_summary_of_another_program_is_kept(self):
        os.makedirs(self.out)
        path = self.file(os.path.join(self.out, "summary.json"), b'{"precious":1}')
        for options in ({}, {"has_ids": True}, {"overwrite": True}):
            refusal = "^cannot write to output_dir %s: clinvk did not write the summary.json in it; " % self.out
            with self.assertRaisesRegex(clinvk.OutputError, refusal):
                self.opened(**options)
        os.unlink(path)
        directory = self.opened()
        self.file(path, b'{"precious":1}')  # later
        directory.finish(clinvk.Totals().fields())
        self.assertEqual(sorted(os.listdir(self.out)), ["summary.1.json", "summary.json"])
        with open(path) as file:
            self.assertEqual(file.read(), '{"precious":1}')

    def test_directory_without_hard_links_replaces_nothing(self):
        def no_links(*args, **options):
            raise OSError(errno.EPERM, "Operation not permitted")

        with unittest.mock.patch.object(os, "link", no_links):
            self.one_run("one")
            self.assertEqual(self.output_in("001_task-1.json"), "one")
            warning, = self.one_run("two", has_ids=True)
        self.assertEqual((self.output_in("001_task-1.json"), self.output_in("001_task-1.1.json")), ("one", "two"))
        self.assertEqual(len(os.listdir(self.out)), 3)

    def test_directory_in_use_is_refused_until_its_run_has_ended(self):
        first = self.opened()
        for options in ({}, {"has_ids": True}, {"overwrite": True}):
            with self.assertRaises(clinvk.OutputError) as caught:
                self.opened(**options)
            self.assertEqual(str(caught.exception), "cannot write to output_dir %s: another clinvk is writing to it" % self.out)
        del first
        self.opened()

    def test_directory_that_is_a_link_out_of_the_root_is_refused(self):
        for name in ("root", "outside"):
            os.mkdir(self.path(name))
        os.symlink("../outside", self.path("root", "out"))
        with self.assertRaises(clinvk.OutputError) as caught:
            self.opened(self.path("root", "out"), roots=["", self.path("root")])
        self.assertEqual(str(caught.exception), "cannot write to output_dir %s: it is outside of %s" % (
            self.path("root", "out"), clinvk.quoted(self.path("root"))))
        self.opened(self.path("root", "new"), roots=[self.path("root")])
        before = len(os.listdir("/dev/fd"))
        self.opened(self.path("root", "new")).finish({})
        self.assertEqual(len(os.listdir("/dev/fd")), before, "it is closed")

    def test_directory_that_cannot_be_used_is_named_in_the_error(self):
        path = self.file("a file", b"")
        for bad in (path, os.path.join(path, "below")):
            with self.assertRaisesRegex(clinvk.OutputError, "^cannot write to output_dir %s: Not a directory$" % bad):
                self.opened(bad)
        directory = self.opened()
        os.rmdir(self.out)
        with self.assertRaisesRegex(clinvk.OutputError, "^cannot write %s/001_task-1.json: No such file or directory" % self.out):
            directory.write(result())

    def test_directory_results_without_a_task_are_kept(self):
        directory = self.opened()
        directory.write(result(0, task=None))
        bad = support.bad_input(1, "stdin:2: prompt: expected a string, got 3")
        directory.write(bad)
        with open(os.path.join(self.out, "002_task-2.json")) as file:
            value = json.load(file)
        self.assertNotIn("task", value, "what was no task must not be fed back as one")
        self.assertEqual(value["result"]["error"], bad.error)


class AnswerFiles(SinkCase):
    """--write-to: an ok answer is in the file of its task, whole, or the result says why not."""

    def setUp(self):
        super().setUp()
        self.root = self.path("root")
        os.mkdir(self.root)

    def put(self, name, overwrite=False, **fields):
        answers = clinvk.Answers(self.root, overwrite)
        task = TASK._replace(write_to=os.path.join(self.root, name))
        return answers.put(answers.checked(result(task=task, **fields))), answers.error

    def content(self, name):
        with open(os.path.join(self.root, name), "rb") as file:
            return file.read()

    def test_answer_is_written_whole_with_a_newline(self):
        for number, (answer, data) in enumerate([("a", b"a\n"), ("a\n", b"a\n"), ("审\n\n", "审\n\n".encode()), ("\udcff", b"\xff\n"), (self.text_file(b"x" * 3000000), b"x" * 3000000 + b"\n")]):
            put, error = self.put("new/%d" % number, answer=answer)
            self.assertEqual((put.written, put.warnings, error), (os.path.join(self.root, "new/%d" % number), (), None))
            self.assertEqual(self.content("new/%d" % number), data)
        mask = os.umask(0)
        os.umask(mask)
        self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.root, "new/0")).st_mode), 0o666 & ~mask)
        self.assertEqual(sorted(os.listdir(os.path.join(self.root, "new"))), ["0", "1", "2", "3", "4"])

    def test_only_ok_results_of_tasks_with_a_file_are_written(self):
        for fields in ({"status": "failed", "exit_code": 1}, {"status": "skipped"}, {"status": "canceled"}):
            self.assertEqual(self.put("x", **fields)[0].written, "")
        plain = result()
        answers = clinvk.Answers(self.root, True)
        self.assertIs(answers.put(answers.checked(plain)), plain)
        self.assertEqual(os.listdir(self.root), [])

    def test_file_that_exists_is_replaced_only_with_overwrite(self):
        self.file("root/x", b"old")
        put, error = self.put("x")
        problem = "cannot write %s/x: File exists; --overwrite replaces it" % self.root
        self.assertEqual((put.status, put.written, put.warnings, str(error)), ("ok", "", (problem,), problem))
        self.assertEqual(self.content("x"), b"old")
        self.assertEqual(self.put("x", overwrite=True)[1], None)
        self.assertEqual((self.content("x"), os.listdir(self.root)), (b"hello\n", ["x"]))

    def test_file_of_another_task_by_another_name_is_not_replaced(self):
        """As `Readme` and `readme` where capitals do not count; here by a link that came during the run."""
        os.mkdir(os.path.join(self.root, "a"))
        os.symlink("a", os.path.join(self.root, "b"))
        problem = "cannot write %s/b/x: it is the file of another task" % self.root
        for resumed in (False, True):
            answers = clinvk.Answers(self.root, True)
            first, second = (result(answer=name, task=TASK._replace(write_to=os.path.join(self.root, name, "x"))) for name in ("a", "b"))
            first = first._replace(resumed=resumed, written=first.task.write_to, end_time=0.0)
            self.assertEqual(answers.put(answers.checked(first)).warnings, ())
            put = answers.put(answers.checked(second))
            self.assertEqual((put.status, put.written, put.warnings, str(answers.error)), ("ok", "", (problem,), problem))
            self.assertEqual(self.content("a/x"), b"a\n")

    def test_file_with_exactly_the_answer_of_an_earlier_run_is_its_file(self):
        written = os.path.join(self.root, "x")
        for answer, content, is_it in (("a", b"a\n", True), ("a\n", b"a\n", True), ("审" * 100000, ("审" * 100000 + "\n").encode(), True),
                                       ("a", b"a", False), ("a", b"a\n\n", False), ("a", b"b\n", False), ("a", b"", False)):
            for earlier in ("", "elsewhere"):
                with self.subTest(answer=answer[:9], content=content[:9], earlier=earlier):
                    self.file("root/x", content)
                    put, error = self.put("x", resumed=True, answer=answer, written=earlier)
                    self.assertEqual((put.written, bool(put.warnings), bool(error)), (written if is_it else "", not is_it, not is_it))
                    self.assertEqual(self.content("x"), content)
        self.file("root/x", b"a\n")
        self.assertEqual(self.put("x", answer="a")[0].written, "", "a task that was run again")
        os.rename(written, written + "2")
        os.symlink(written + "2", written)
        self.assertEqual(self.put("x", resumed=True, answer="a")[0].written, "")
        os.unlink(written)
        os.mkfifo(written)
        self.assertEqual(self.put("x", resumed=True, answer="a")[0].written, "")

    def test_resumed_answer_is_written_where_its_file_is_gone(self):
        written = os.path.join(self.root, "x")
        self.assertEqual(self.put("x", resumed=True, written=written)[0].written, written)
        os.unlink(written)
        with unittest.mock.patch("os.listdir", side_effect=PermissionError(13, "Permission denied")):  # a directory that can only be written
            self.assertEqual(self.put("x", resumed=True, written=written)[1], None)
        self.file("root/x", b"edited")
        self.assertEqual(self.put("x", overwrite=True, resumed=True, written=written)[0].written, written)
        self.assertEqual(self.content("x"), b"edited")
        os.utime(written, (1, 1))  # the run was killed before the file was replaced
        self.assertEqual(self.put("x", overwrite=True, resumed=True, written=written, end_time=2.0)[0].written, written)
        self.assertEqual(self.content("x"), b"hello\n")
        self.file("root/x", b"edited")
        self.assertEqual(self.content("x"), b"edited")
        self.assertEqual(self.put("x", resumed=True, written="other")[0].written, "")

    def test_directory_that_became_a_link_to_the_outside_is_not_followed(self):
        for link in ("out", "a/out"):
            os.makedirs(os.path.dirname(os.path.join(self.root, link)), exist_ok=True)
            os.symlink(self.directory, os.path.join(self.root, link))
            put, error = self.put(link + "/new/x")
            self.assertEqual((put.written, str(error)), ("", "cannot write %s/%s/new/x: it is outside of %s" % (self.root, link, clinvk.quoted(self.root))))
        self.assertFalse(os.path.exists(self.path("new")))
        self.file("root/file", b"")
        self.assertEqual(str(self.put("file/x")[1]), "cannot write %s/file/x: Not a directory" % self.root)


class FakeRun:
    """An Overview of a run whose clock and events are set by the test."""

    def __init__(self, tasks=10, jobs=2, total=True):
        self.control, self.totals = clinvk.Control(), clinvk.Totals()
        self.supply = clinvk.JobList([TASK] * tasks)
        self.supply.total = tasks if total else None
        self.overview = clinvk.Overview(self.totals, self.control, self.supply, jobs)
        self.running = []
        self.reads = 0
        self.control.running = self.read

    def read(self):
        self.reads += 1
        return self.running

    def end(self, *results):
        for one in results:
            self.totals.write(one)
            self.overview.write(one)

    def start(self, index=0, seconds=1.0, quiet=0.5, *, action="", tokens=0, attempt=1, **task):
        job = support.job(index, task.pop("backend", "echo"), task.pop("prompt", "say it"), **task)._replace(attempt=attempt)
        self.running.append(clinvk.Running(job, seconds, 10, quiet, action, tokens))


def took(seconds, index=0, backend="echo", **fields):
    """The result of a task that took so long."""
    return result(index, end_time=seconds, start_time=0.0, attempts=fields.pop("attempts", 1), **fields)._replace(backend=backend)


class Overviews(SinkCase):
    def test_seconds_left_follow_from_the_median_the_mix_and_the_tasks_at_once(self):
        for jobs, results, expected in (
                (1, [], None),  # nothing is known yet
                (1, [took(10)], 90.0),
                (2, [took(10)], 45.0),
                (2, [took(1), took(10), took(600)], 35.0),  # the median, not the mean
                (1, [took(10), took(30, backend="claude")], 160.0),  # four of each
                (1, [took(10), took(10, status="failed")], 80.0),
                (1, [took(10), took(99, resumed=True)], 80.0),  # which another run has done
                (1, [took(10), took(0.1, status="canceled")], 80.0),
                (20, [took(10)] * 7, 10.0)):  # no more run than are left
            with self.subTest(jobs=jobs, results=len(results), expected=expected):
                run = FakeRun(jobs=jobs)
                run.end(*results)
                self.assertEqual(run.overview.seconds_left(run.running), expected)

    def test_seconds_left_count_what_running_tasks_have_done(self):
        run = FakeRun(jobs=2)
        run.end(took(10))
        run.start(1, seconds=4.0)
        run.start(2, seconds=100.0)  # which takes longer than most: its rest is not known
        run.start(3, seconds=100.0, backend="codex")  # of which nothing is known
        self.assertEqual(run.overview.seconds_left(run.running), (90 - 4 - 10) / 2)

    def test_seconds_left_begin_at_the_end_of_a_limit_where_nothing_runs(self):
        run = FakeRun(jobs=1)
        run.end(took(10))
        run.control.limited = {"claude": 1000.0 + 600, "codex": 1000.0 + 900, "gemini": 10.0}
        with unittest.mock.patch.object(clinvk.time, "time", lambda: 1000.0):
            self.assertEqual(run.overview.seconds_left(run.running), 600 + 90)
            run.start(1, seconds=4.0)
            self.assertEqual(run.overview.seconds_left(run.running), 90 - 4)

    def test_seconds_left_are_unknown_without_a_total_and_after_a_stop(self):
        for total, stopped in ((False, False), (True, True)):
            run = FakeRun(total=total)
            run.end(took(10))
            if stopped:
                run.control.cancel()
            self.assertIsNone(run.overview.seconds_left(run.running))
            self.assertIsNone(run.overview.fields()["ends_at"])

    def test_seconds_left_forget_what_was_long_ago(self):
        run = FakeRun(tasks=1000, jobs=1)
        run.end(*[took(1000)] * 200 + [took(10)] * 100)
        self.assertEqual(run.overview.seconds_left(run.running), 7000.0)

    def test_fields_are_those_of_the_run_without_secrets(self):
        self.hide_secret()
        run = FakeRun(tasks=4)
        run.end(took(10, cost_usd=0.5), took(10), took(10, backend="claude"), took(1, status="timeout", cost_usd=0.25))
        run.start(3, 65.0, 5.0, id="i-s3cret", name="n \x1b s3cret", action="Bash: echo s3cret", tokens=7, attempt=2)
        run.control.limited = {"claude": 4e9, "codex": 1.0}
        with unittest.mock.patch.object(clinvk.time, "time", lambda: 1795535999.5):
            fields = run.overview.fields()
        self.assertEqual(run.reads, 1)
        self.assertEqual(fields, {
            "updated_at": "2026-11-24T15:59:59.500Z", "total_tasks": 4, "done": 4, "completed": 3, "failed": 1, "canceled": 0, "skipped": 0,
            "resumed": 0, "running": [{
                "index": 3, "id": "i-[A_KEY]", "name": "n ^[ [A_KEY]", "backend": "echo", "attempt": 2,
                "started": "2026-11-24T15:58:54.500Z", "last_event_at": "2026-11-24T15:59:54.500Z",
                "last_action": "Bash: echo [A_KEY]", "tokens": 7, "log": ""}],
            "gates": {"claude": "2096-10-02T07:06:40.000Z"}, "eta_seconds": 0.0, "ends_at": "2026-11-24T15:59:59.500Z",
            "cost_usd": 0.75, "cost_unknown": 1})


class StatusFiles(SinkCase):
    def setUp(self):
        super().setUp()
        self.status, self.warnings, self.run_of = self.path("status.json"), [], FakeRun()
        self.clock = unittest.mock.patch.object(clinvk.time, "monotonic", return_value=100.0)
        self.now = self.clock.start()
        self.addCleanup(self.clock.stop)

    def status_file(self, path=None):
        return clinvk.StatusFile(path or self.status, self.run_of.overview, "then", self.warnings.append)

    def content(self):
        with open(self.status, "rb") as file:
            data = file.read()
        self.assertTrue(data.endswith(b"}\n"))
        return json.loads(data)

    def was_written(self, status, at):
        """Whether the file is another one after a look at that time."""
        before = os.stat(self.status).st_ino
        keep = os.open(self.status, os.O_RDONLY)  # so that its number is not used again
        self.now.return_value = at
        status.show()
        os.close(keep)
        return os.stat(self.status).st_ino != before

    def test_status_file_is_written_at_changes_and_else_every_five_seconds(self):
        status = self.status_file()
        status.show()
        self.assertEqual(stat.S_IMODE(os.stat(self.status).st_mode), 0o600)
        written = []
        for at, change in ((100.1, clinvk.do_nothing), (100.6, clinvk.do_nothing), (101.2, lambda: self.run_of.start(0)),
                           (101.3, lambda: self.run_of.start(1)), (101.8, clinvk.do_nothing), (102.4, clinvk.do_nothing),
                           (103.0, lambda: self.run_of.end(result(0))), (103.6, self.run_of.control.cancel), (104.2, clinvk.do_nothing),
                           (108.0, clinvk.do_nothing), (108.7, clinvk.do_nothing), (110.0, clinvk.do_nothing)):
            change()
            if self.was_written(status, at):
                written.append(at)
        # The change at 101.3 comes too soon after the one before it.
        self.assertEqual(written, [101.2, 101.8, 103.0, 103.6, 108.7])
        self.assertEqual((self.content()["state"], self.content()["exit_status"]), ("stopping", None))

    def test_status_file_shows_the_end(self):
        status = self.status_file()
        for exit_status in (3, None):
            status.finish(exit_status)
            content = self.content()
            self.assertEqual((content["run"], content["pid"], content["state"], content["exit_status"]),
                             ("then", os.getpid(), "ended", exit_status))

    def test_status_file_that_cannot_be_written_is_one_warning(self):
        status = self.status_file(self.path("none", "status.json"))
        for self.now.return_value in (100.0, 110.0, 120.0):
            status.show()
        self.assertEqual(self.warnings, ["cannot write the status file %s: No such file or directory; the run continues"
                                         % self.path("none", "status.json")])
        os.mkdir(self.path("none"))
        status.finish(0)
        self.assertEqual(os.listdir(self.path("none")), ["status.json"])

    def test_status_file_follows_a_link_and_leaves_it(self):
        os.symlink(self.file("real", ""), self.status)
        self.status_file().show()
        self.assertTrue(os.path.islink(self.status))
        self.assertEqual(self.content()["state"], "running")

    def test_status_file_replaces_only_its_own(self):
        self.status_file().show()
        clinvk.StatusFile.check(self.status)
        for path, message in ((self.file("notes", "my own"), "clinvk did not write this file"), (self.tmp, "expected a regular file"),
                              ("/dev/null", "expected a regular file")):
            with self.subTest(path=path), self.assertRaisesRegex(clinvk.UserError, "--status-file %s: %s" % (path, message)):
                clinvk.StatusFile.check(path)


class Statuses(SinkCase):
    """The line or the table of a run on stderr, with a clock that the test sets."""

    LINE, TABLE = (1000, 1000), (60, 15)  # the least terminal for a table

    def setUp(self):
        super().setUp()
        self.now = 100.0
        clock = unittest.mock.patch.object(clinvk.time, "monotonic", lambda: self.now)
        clock.start()
        self.addCleanup(clock.stop)

    def drawn(self, run, columns=80, lines=24, least=TABLE, now=142.5, **options):
        """What is drawn of a run on a terminal of that size, by lines."""
        def write(output):
            self.now = 100.0
            progress = clinvk.Progress(output, run.overview, least, **options)
            self.now = now
            run.reads = 0
            progress.show()
            self.assertLessEqual(run.reads, 1)

        return self.shown(write, 2, columns, lines).decode().split("\n")

    def test_progress_of_one_task_at_a_time_is_one_line_that_is_cleared(self):
        def write(output):
            run = FakeRun(20)
            run.start(0)
            run.start(1)
            progress = clinvk.Progress(output, run.overview, self.LINE)
            progress.show()
            progress.hide()
            run.start(2)
            for one in (took(0), took(0, status="failed"), took(0, status="timeout"), took(0, status="canceled")):
                run.end(one)
                progress.write(one)
            progress.show()
            progress.hide()
            progress.hide()

        self.assertEqual(self.shown(write, 2).decode(), "[0/20] 2 running, 00:00\r\x1b[J[4/20] 3 running, 2 failed, 00:00\r\x1b[J")

    def test_progress_unknown_total_is_left_out_and_the_line_fits(self):
        run = FakeRun(total=False)
        run.start()
        self.assertEqual(self.drawn(run, least=self.LINE), ["[0] 1 running, 00:42"])
        self.assertEqual(self.drawn(run, 12, least=self.LINE), ["[0] 1 ru..."])

    def test_progress_line_has_limits_the_rest_and_the_cost(self):
        run = FakeRun(100)
        run.end(took(10, backend="claude", cost_usd=1.2))
        self.assertEqual(self.drawn(run), ["[1/100] 0 running, 00:42, about 8m15s left, $1.20"])
        run.end(took(30, status="failed", backend="claude"))
        run.control.limited["claude"] = 4e9
        with unittest.mock.patch.object(clinvk, "local_time", lambda moment: "14:05"), \
                unittest.mock.patch.object(clinvk.time, "time", lambda: 4e9 - 60):
            self.assertEqual(self.drawn(run, 200), [
                "[2/100] 0 running, 1 failed, 00:42, about 25m left, claude limited until 14:05, \u2265$1.20"])
            self.assertEqual(self.drawn(run, 60), [
                "[2/100] 0 running, 1 failed, 00:42, about 25m left, claude", "limited until 14:05, \u2265$1.20"])

    def test_progress_is_drawn_at_most_so_often(self):
        for least, expected in ((self.LINE, 3), (self.TABLE, 2)):
            def write(output):
                self.now = 0.0
                progress = clinvk.Progress(output, FakeRun().overview, least)
                for self.now in (5.0, 5.01, 5.05, 5.2, 5.21, 5.25, 5.4, 6.1):
                    progress.show()
                    if self.now == 5.2 and least == self.LINE:
                        self.now = 5.15

            with self.subTest(least=least):
                self.assertEqual(self.shown(write, 2).count(b"running"), expected + (least == self.LINE))

    def test_progress_elsewhere_is_a_line_for_each_result_and_after_a_silence(self):
        def write(output):
            run = FakeRun(3)
            run.start()
            progress = clinvk.Progress(output, run.overview, self.TABLE)
            progress.show()
            for one, self.now in ((took(0), 101.0), (took(0, status="lost"), 120.0)):
                run.end(one)
                progress.write(one)
                progress.hide()
                progress.show()
            for self.now in (149.0, 150.5, 155.0, 181.0):
                progress.show()

        self.assertEqual(self.written(write, 2).decode().splitlines(), [
            "[1/3] 1 running, 00:01", "[2/3] 1 running, 1 failed, 00:20", "[2/3] 1 running, 1 failed, 00:50",
            "[2/3] 1 running, 1 failed, 01:21"])

    def test_table_has_a_row_for_each_running_task(self):
        run = FakeRun(20)
        run.start(1, 191.0, 2.0, name="review auth", backend="claude", action="Bash: pytest -q", tokens=12345)
        run.start(4, 3700.0, 130.0, prompt="add logging", backend="codex", action="thinking", attempt=2)
        self.assertEqual(self.drawn(run), [
            "# BACKEND TIME    IDLE     TRY TOKENS TASK        LAST",
            "2 claude  03:11   2s           12,345 review auth Bash: pytest -q",
            "5 codex   1:01:40 quiet 2m 2          add logging thinking",
            "[0/20] 2 running, 00:42"])

    def test_table_is_drawn_as_the_man_page_shows_it(self):
        with open(os.path.join(support.ROOT, "man", "clinvk.1"), encoding="utf-8") as file:
            shown = file.read().split(".It Fl -progress Cm")[1].split(".Bd -literal -offset indent\n")[1].split(".Ed")[0].splitlines()
        run = FakeRun(20, jobs=2)
        run.control.limited["claude"] = 4e9
        run.end(*(took(220, backend="claude", **fields) for fields in ({"cost_usd": 1.2}, {}, {"status": "failed"})))
        run.start(1, 191.0, 2.0, name="review auth", backend="claude", action="Bash: pytest -q")
        run.start(4, 280.0, 180.0, name="add logging", backend="codex", action="thinking")
        clinvk_now = 100.0 + 402
        with unittest.mock.patch.object(clinvk, "local_time", lambda moment: "14:05"):
            self.assertEqual(self.drawn(run, 100, now=clinvk_now)[-1], shown[-1].replace(
                r"\(>=", "claude limited until 14:05, \u2265"))
        run.control.limited.clear()
        self.assertEqual(self.drawn(run, 100, now=clinvk_now), [line.replace(r"\(>=", "\u2265") for line in shown])

    def test_table_leaves_out_columns_without_a_value(self):
        run = FakeRun()
        run.start(0)
        self.assertEqual(self.drawn(run)[:2], ["# BACKEND TIME  IDLE TASK", "1 echo    00:01 0s   say it"])

    def test_table_marks_a_quiet_task_in_yellow_where_colors_are_wanted(self):
        run = FakeRun()
        run.start(0, 90.0, 61.0, name="quiet 3m")
        run.start(1, 90.0, 59.0, name="2 echo 00:01 quiet 3m")
        for color, expected in ((True, "\x1b[33mquiet 1m\x1b[m"), (False, "quiet 1m")):
            rows = self.drawn(run, quiet_after=60.0, color=color)
            self.assertEqual(rows[1:3], ["1 echo    01:30 %s quiet 3m" % expected, "2 echo    01:30 59s      2 echo 00:01 quiet 3m"])

    def test_table_takes_at_most_half_of_the_terminal(self):
        for lines, running, expected in ((24, 10, 10), (24, 11, 9), (24, 500, 9), (15, 5, 5), (15, 6, 4)):
            run = FakeRun(1000)
            for index in range(running):
                run.start(index)
            with self.subTest(lines=lines, running=running):
                block = self.drawn(run, lines=lines)
                self.assertLessEqual(len(block), lines // 2)
                self.assertEqual([row.split()[0] for row in block[1:expected + 1]], [str(number + 1) for number in range(expected)])
                rest = ["and %d more" % (running - expected)] if running > expected else []
                self.assertEqual(block[expected + 1:-1], rest)

    def test_table_needs_a_terminal_that_is_large_enough(self):
        run = FakeRun()
        run.start(0)
        for columns, lines, least, expected in ((60, 15, self.TABLE, 3), (59, 15, self.TABLE, 1), (60, 14, self.TABLE, 1), (20, 4, (0, 0), 3)):
            with self.subTest(columns=columns, lines=lines, least=least):
                self.assertEqual(len(self.drawn(run, columns, lines, least)), expected + (columns == 20))

    def test_table_rows_are_cut_by_display_width(self):
        run = FakeRun(jobs=9)
        for index, name in enumerate(("\u5be9\u67e5" * 40, "\U0001f389 party " * 20, "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u26a0\ufe0f", "e\u0301" * 90)):
            run.start(index, name=name, action="Edit: " + name)
        for columns in (40, 60, 61, 80, 200):
            with self.subTest(columns=columns):
                block = self.drawn(run, columns, least=(0, 0))
                self.assertEqual(len(block), 6)
                self.assertLess(max(map(clinvk.columns_in, block)), columns)
                self.assertNotRegex("".join(block), "[\u200d\ufe0f]")

    def test_table_hides_secrets_and_control_characters(self):
        self.hide_secret()
        run = FakeRun()
        run.start(0, name="a s3cret \x1b[2J", action="Bash: s3cret \u202e")
        self.assertEqual(self.drawn(run)[1], "1 echo    00:01 0s   a [A_KEY] ^[[2J Bash: [A_KEY] <U+202E>")

    def test_table_is_erased_by_the_lines_that_it_takes_now(self):
        for columns, up in ((80, "\x1b[2A"), (20, "\x1b[7A"), (200, "\x1b[2A")):
            def write(output):
                run = FakeRun()
                run.start(0, name="n" * 100)
                progress = clinvk.Progress(output, run.overview, self.TABLE)
                progress.show()
                with unittest.mock.patch.object(clinvk, "terminal_size", lambda file: (columns, 24)):
                    progress.hide()

            with self.subTest(columns=columns):
                self.assertTrue(self.shown(write, 2).decode().endswith("1 running, 00:00\r%s\x1b[J" % up))

    def test_table_returns_soon_after_it_was_hidden(self):
        def write(output):
            progress = clinvk.Progress(output, run.overview, self.TABLE)
            for self.now in (100.0, 100.2, 100.21, 100.35):
                progress.show()
                progress.hide()

        run = FakeRun()
        run.start(0)
        self.assertEqual(self.shown(write, 2).count(b"BACKEND"), 3)

    def test_stop_waits_until_the_table_is_drawn(self):
        stops = []

        def write(output):
            progress = clinvk.Progress(output, run.overview, self.TABLE)
            real, signals = output.write, [signal.SIGTSTP]

            def interrupted(pieces):
                real(pieces)
                if signals:
                    progress.stop(signals.pop())
                    self.assertEqual(stops, [])

            with unittest.mock.patch.object(output, "write", interrupted), \
                    unittest.mock.patch.object(clinvk, "stop_until_continued", lambda: stops.append(list(progress._shown))):
                progress.show()
                progress.show()

        run = FakeRun()
        run.start(0)
        shown = self.shown(write, 2).decode()
        self.assertEqual(stops, [[]])
        self.assertEqual(shown.count("\x1b[2A\x1b[J"), 1)
        self.assertTrue(shown.endswith("1 running, 00:00"))  # and is drawn at once when the process is continued

    def test_progress_after_a_broken_write_writes_no_more(self):
        def write(output):
            progress = clinvk.Progress(output, FakeRun().overview, self.TABLE)
            with unittest.mock.patch.object(output, "write", side_effect=clinvk.Interrupted(2)):
                with self.assertRaises(clinvk.Interrupted):
                    progress.show()
            progress.hide()

        self.assertEqual(self.shown(write, 2), b"")


if __name__ == "__main__":
    unittest.main()
