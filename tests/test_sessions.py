"""Section Sessions: the store.  What is written is read again, by this version and beside what a newer one added; damaged files
are named and left alone; a session is found by the beginning of its id; the last used come first; and any number of processes
that create, change, delete and list at once, or are killed in the midst of it, lose nothing and never see half a file.
"""
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import unittest
import unittest.mock

import support
from support import clinvk

support.left_to_full_runs()

EVERYTHING = dict(
    backend="claude", backend_session_id="0f6c4b1e-9a51-4a3c-8a3b-111111111111", model="opus", initial_prompt="审查 auth 模块\n\0\x1b[31m \udcff",
    status="error", turn_count=3, token_usage={"input_tokens": 1200, "cached_input_tokens": 900, "output_tokens": 34,
                                                   "reasoning_output_tokens": 4, "total_tokens": 1234},
    cumulative_usage={"input_tokens": 2400}, cost_usd=0.0, cumulative_cost_usd=0.02106, tags=("a", "部署", ""), title="Auth",
    parent_id="f" * 32, fork=True, error="exceeded retry limit\nlast status: 429")


def names_in(directory):
    return sorted(os.listdir(directory))


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


class SessionCase(support.Case):
    def setUp(self):
        super().setUp()
        self.sessions = self.path("home", "sessions")
        self.warnings = []
        self.store = self.new_store()

    def new_store(self):
        return clinvk.SessionStore(self.sessions, self.warnings.append)

    def tearDown(self):
        super().tearDown()
        if os.path.isdir(self.sessions):
            os.chmod(self.sessions, 0o700)
            self.assertEqual([name for name in os.listdir(self.sessions) if name.endswith(".tmp")], [], "drafts were left")

    def file_of(self, session):
        return os.path.join(self.sessions, getattr(session, "id", session) + ".json")

    def put(self, content, id=None):
        """A session file with this content; the id."""
        id = id or os.urandom(16).hex()
        os.makedirs(self.sessions, exist_ok=True)
        with open(self.file_of(id), "wb") as file:
            file.write(content if isinstance(content, bytes) else json.dumps(content).encode())
        return id

    def put_fields(self, name=None, **changes):
        """A session file with few fields, some of them changed (None leaves one out); the id in its name."""
        name = name or os.urandom(16).hex()
        fields = {"id": name, "backend": "claude", "created_at": "2025-01-31T12:00:00.000Z", "last_used": "2025-01-31T12:00:00.000Z",
                  "working_dir": "/work"}
        fields.update(changes)
        return self.put({field: value for field, value in fields.items() if value is not None}, name)

    def content(self, session):
        with open(self.file_of(session), "rb") as file:
            return file.read()

    def fields(self, session):
        return json.loads(self.content(session))

    def ids(self, **chosen):
        return [session.id for session in self.store.all(**chosen)]

    def refused(self, call, *arguments):
        """The message of the SessionError that this raises."""
        with self.assertRaises(clinvk.SessionError) as caught:
            call(*arguments)
        return str(caught.exception)

    def script_argv(self, body, args=()):
        head = ("import os, signal, sys, time\nsys.path.insert(0, %r)\nimport clinvk\n"
                "def warn(text):\n    raise SystemExit('warning: ' + text)\n"
                "store = clinvk.SessionStore(%r, warn)\n" % (support.ROOT, self.sessions))
        return [sys.executable, "-c", head + textwrap.dedent(body)] + [str(argument) for argument in args]

    def script(self, body, *args, **options):
        """Runs statements that know `store` in a process of their own; its stdout as text."""
        done = self.run_program(self.script_argv(body, args), **options)
        self.assertEqual((done.returncode, done.stderr.decode()), (0, ""))
        return done.stdout.decode()

    def start_script(self, body, *args, **options):
        return self.start_program(self.script_argv(body, args), **options)

    def at_once(self, count, body, *args):
        """Runs statements in so many processes, which all begin at the same moment; what each printed, as lines.

        Each has its number in sys.argv[1].
        """
        gate, opener = os.pipe()
        try:
            processes = [self.start_script('print("ready", flush=True)\nos.read(0, 1)\n' + textwrap.dedent(body), number, *args, stdin=gate)
                         for number in range(count)]
            for process in processes:
                self.assertEqual(process.line(), b"ready", process.error_output())
        finally:
            os.close(opener)
            os.close(gate)
        printed = []
        for process in processes:
            done = process.finish(4 * support.PATIENCE)
            self.assertEqual((done.returncode, done.stderr.decode()), (0, ""))
            printed.append(done.stdout.decode().split("\n")[:-1])
        return printed


class Ages(unittest.TestCase):
    def test_ages_are_hours_days_or_weeks(self):
        for text, seconds in (("12h", 43200), ("30d", 2592000), ("2w", 1209600), ("0d", 0), ("0h", 0), ("1.5d", 129600), ("007d", 604800)):
            with self.subTest(text):
                self.assertEqual(clinvk.parse_age(text), seconds)

    def test_what_is_no_age_is_refused(self):
        for text in ("", "d", "5x", "5", "0", "30", "-1d", "+1d", "1e3d", "1.2.3d", ".d", "5 d", " 5d", "5d ", "5D", "5dd", "\u0663d", "²d", "infd",
                     "nand", "0x1d", "1_0d", "6m", "90s", "d5", "5d\n"):
            with self.subTest(text):
                with self.assertRaises(ValueError) as caught:
                    clinvk.parse_age(text)
                self.assertIn("12h, 30d or 2w", str(caught.exception))

    def test_an_age_of_any_length_is_taken(self):
        self.assertGreater(clinvk.parse_age("9" * 5000 + "d"), 1e300)


class Files(SessionCase):
    def test_a_new_session_is_active_and_knows_where_it_was_made(self):
        before = time.time()
        session = self.store.create("codex", working_dir=self.path("home", "..", "home"), model="o3", initial_prompt="hello",
                                    title="t", tags=["x", "y"])
        self.assertRegex(session.id, r"\A[0-9a-f]{32}\Z")
        self.assertEqual(session, clinvk.Session(session.id, "codex", session.created_at, session.created_at, self.home, model="o3",
                                                 initial_prompt="hello", status="active", title="t", tags=("x", "y")))
        self.assertEqual((session.status, session.turn_count, session.fork), ("active", 0, False))
        self.assertTrue(before - 0.001 <= session.created_at <= time.time() + 0.001)
        self.assertEqual(self.store.load(session.id), session)

    def test_without_a_directory_a_session_is_of_the_current_one_as_it_is_really_called(self):
        os.symlink(self.home, self.path("link"))
        self.assertEqual(self.script('print(store.create("claude").working_dir)', cwd=self.path("link")), self.home + "\n")
        self.assertEqual(self.store.create("claude", working_dir=self.path("link")).working_dir, self.home)

    def test_every_field_is_written_and_read(self):
        made = self.store.create("claude")
        session = made._replace(created_at=1700000000.123, last_used=1700000001.0, unknown={"later": [1, {"x": None}]}, **EVERYTHING)
        defaults = clinvk.Session._field_defaults
        self.assertEqual([name for name in session._fields if getattr(session, name) == defaults.get(name, "")], [], "it has a default")
        self.assertEqual(self.store.save(session), session)
        self.assertEqual(self.new_store().load(session.id), session)
        self.assertEqual(self.store.all(), [session])
        fields = self.fields(session)
        self.assertEqual(set(fields), set(clinvk.Session._fields) - {"unknown"} | {"later"})
        self.assertEqual((fields["created_at"], fields["last_used"]), ("2023-11-14T22:13:20.123Z", "2023-11-14T22:13:21.000Z"))
        self.assertEqual((fields["token_usage"], fields["tags"]), (EVERYTHING["token_usage"], ["a", "部署", ""]))

    def test_every_field_has_a_way_to_be_read(self):
        self.assertEqual(set(clinvk.SESSION_FIELDS), set(clinvk.Session._fields) - {"unknown"})

    def test_what_is_empty_is_left_out(self):
        session = self.store.create("claude")
        self.assertEqual(set(self.fields(session)), {"id", "backend", "created_at", "last_used", "working_dir", "status", "turn_count"})
        self.assertTrue(self.content(session).endswith(b"}\n"))
        self.assertEqual(self.fields(session), clinvk.session_fields(session))

    def test_a_cost_of_zero_is_not_an_unknown_cost(self):
        session = self.store.create("claude")
        self.assertIsNone(self.store.load(session.id).cost_usd)
        self.store.update(session.id, lambda session: session._replace(cost_usd=0.0))
        self.assertEqual(self.store.load(session.id).cost_usd, 0.0)

    def test_prompts_of_any_size_and_content_come_back(self):
        for prompt in ("x" * 3000000, "\0", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "\udc80\udcff", '"\\\n', "\u2028"):
            with self.subTest(prompt[:10]):
                self.assertEqual(self.store.load(self.store.create("claude", initial_prompt=prompt).id).initial_prompt, prompt)

    def test_times_come_back_to_the_millisecond_and_then_stay(self):
        numbers = random.Random(5)
        for moment in [0.0, 0.0004, 0.9996, 1e9, 4e9] + [numbers.uniform(0, 4e9) for _ in range(2000)]:
            written = clinvk._moment(clinvk.utc(moment))
            self.assertLess(abs(written - moment), 0.00051)
            self.assertEqual(clinvk._moment(clinvk.utc(written)), written)
        id = self.store.create("claude").id
        written = self.store.update(id, lambda session: session._replace(created_at=moment, last_used=moment))
        self.assertEqual((written.created_at, written.last_used), (clinvk._moment(clinvk.utc(moment)),) * 2)
        self.assertEqual(self.store.update(id, lambda session: session), written)

    def test_times_in_other_forms_of_rfc_3339_are_read(self):
        for text, seconds in (("2023-11-14T22:13:20Z", 1700000000.0), ("2023-11-14T22:13:20.5Z", 1700000000.5),
                              ("2023-11-14T22:13:20.123456789Z", 1700000000.123456), ("2023-11-15T06:13:20.25+08:00", 1700000000.25),
                              ("2023-11-14T14:13:20-08:00", 1700000000.0)):
            with self.subTest(text):
                self.assertEqual(self.store.load(self.put_fields(last_used=text)).last_used, seconds)

    def test_fields_that_are_null_are_as_good_as_left_out(self):
        id = self.put_fields()
        whole = self.store.load(id)
        fields = dict(self.fields(id), **dict.fromkeys(set(clinvk.SESSION_FIELDS) - set(self.fields(id))))
        self.put(fields, id)
        self.assertEqual(self.store.load(id), whole)

    def test_what_a_newer_version_added_is_kept_when_a_file_is_written_again(self):
        added = {"format": 7, "checkpoints": [{"at": 1.5, "big": 12345678901234567890123}], "unknown": {"x": None}, "nothing": None, "é": "\ud800"}
        id = self.put_fields(status="paused", token_usage={"input_tokens": 5, "image_tokens": 6}, **added)
        with open(self.file_of(id), "r+", encoding="utf-8") as file:
            fields = dict(json.load(file), nothing=None)
            file.seek(0)
            json.dump(fields, file)
        self.assertEqual(self.store.load(id).status, "paused")
        self.store.update(id, lambda session: session._replace(title="new", turn_count=4))
        after = self.fields(id)
        self.assertEqual({name: value for name, value in after.items() if name not in ("title", "turn_count", "é")},
                         {name: value for name, value in fields.items() if name != "é"})
        self.assertEqual(after["é"].encode("utf-8", "surrogateescape"), b"\xed\xa0\x80")  # as everywhere: jq gives up at lone high ones
        self.assertEqual((after["title"], after["turn_count"]), ("new", 4))

    def test_files_and_directories_are_private_whatever_the_umask(self):
        self.sessions = self.path("above", "home", "sessions")
        self.script('os.umask(0)\nstore.update(store.create("claude").id, lambda session: session._replace(turn_count=1))')
        self.assertEqual(mode_of(self.path("above", "home")), 0o700)
        self.assertEqual(mode_of(self.sessions), 0o700)
        modes = {name: mode_of(os.path.join(self.sessions, name)) for name in os.listdir(self.sessions)}
        self.assertEqual(len(modes), 2)
        self.assertEqual(set(modes.values()), {0o600}, modes)

    def test_directories_that_are_there_stay_as_they_are(self):
        os.chmod(self.home, 0o755)
        os.mkdir(self.sessions, 0o750)
        os.chmod(self.sessions, 0o750)
        self.store.create("claude")
        self.assertEqual((mode_of(self.home), mode_of(self.sessions)), (0o755, 0o750))

    def test_a_file_is_replaced_not_written_into(self):
        session = self.store.create("claude")
        with open(self.file_of(session), "rb") as reader:
            before = os.fstat(reader.fileno()).st_ino
            self.store.update(session.id, lambda session: session._replace(title="new"))
            self.assertEqual(json.loads(reader.read())["id"], session.id)
            self.assertNotEqual(os.stat(self.file_of(session)).st_ino, before)

    @support.only_linux
    def test_a_file_is_on_the_disk_before_it_has_its_name_and_then_so_is_its_name(self):
        self.assertEqual(self.script("""
            sync, replace, done = os.fsync, os.replace, []
            os.fsync = lambda file: (done.append(("sync", os.readlink("/proc/self/fd/%d" % file))), sync(file))
            os.replace = lambda source, target, **more: (done.append(("rename", source, target)), replace(source, target, **more))
            path = sys.argv[1] + "/" + store.create("claude").id + ".json"
            draft = done[0][1]
            print(draft.startswith(path + ".") and draft.endswith(".tmp") and done == [("sync", draft), ("rename", draft, path), ("sync", sys.argv[1])] or done)
            """, self.sessions), "True\n")

    def test_nothing_is_written_that_could_not_be_read_again(self):
        session = self.store.create("claude")
        before = self.content(session)
        for change in (dict(turn_count=-1), dict(turn_count=True), dict(tags=(1,)), dict(token_usage={"input_tokens": 0.5}), dict(cost_usd=-1.0),
                       dict(fork=1), dict(model=5)):
            with self.subTest(change):
                with self.assertRaises(ValueError):
                    self.store.update(session.id, lambda session: session._replace(**change))
                self.assertEqual(self.content(session), before)


class Damage(SessionCase):
    WRONG = {"id": [5, "0" * 32], "backend": [5, ["claude"]], "working_dir": [7], "model": [{}], "status": [1], "title": [[]],
             "created_at": [1700000000, "", "yesterday", "2025-01-31", "2025-01-31T12:00:00", "2025-02-30T12:00:00Z",
                            "2025-01-31T12:00:00.1234", "Z", ".", "1969-12-31T23:59:59Z", "9999-12-31T23:59:59Z", "9999-01-01T00:00:00Z",
                            "9998-12-31T23:59:59.9999Z"],
             "last_used": [False, "2025-13-01T00:00:00Z"], "turn_count": [-1, 1.5, True, "3", 10 ** 4000], "token_usage": [[], {"input_tokens": "5"}, {"x": None}],
             "cumulative_usage": [3, {"x": -1}], "cost_usd": ["0.5", -1, True, 10 ** 400, 1e15], "cumulative_cost_usd": [[]], "tags": ["a", [1], [None], {"a": 1}],
             "fork": [1, "true"], "error": [False], "initial_prompt": [["x"]], "backend_session_id": [12], "parent_id": [0]}

    def assert_left_alone(self, id, *parts):
        """It is named in one warning, is not listed, cannot be loaded or changed, and is as it was."""
        before = self.content(id) if os.path.isfile(self.file_of(id)) else None
        del self.warnings[:]
        store = self.new_store()
        self.assertEqual([session.id for session in store.all()], [self.good.id])
        self.assertEqual(len(store.all()), 1)
        self.assertEqual(len(self.warnings), 1, self.warnings)
        for part in (self.file_of(id),) + parts:
            self.assertIn(part, self.warnings[0])
        message = self.refused(store.load, id)
        for part in (self.file_of(id),) + parts:
            self.assertIn(part, message)
        self.refused(store.update, id, lambda session: session._replace(title="x"))
        self.refused(store.find, id[:20])
        self.assertEqual(store.clean(3600), [])
        if before is not None:
            self.assertEqual(self.content(id), before)
        self.assertEqual(store.match(id[:20]), id)

    def setUp(self):
        super().setUp()
        self.good = self.store.create("claude")

    def test_a_field_of_the_wrong_kind_is_named(self):
        self.assertEqual(set(self.WRONG), set(clinvk.SESSION_FIELDS))
        for field, values in self.WRONG.items():
            for value in values:
                with self.subTest(field=field, value=value):
                    id = self.put_fields(**{field: value})
                    self.assert_left_alone(id, *([field] if value != "0" * 32 else ["0" * 32]))
                    self.store.delete(id)

    def test_a_field_that_must_be_there_is_named(self):
        for field in ("id", "backend", "created_at", "last_used", "working_dir"):
            with self.subTest(field):
                id = self.put_fields(**{field: None})
                self.assert_left_alone(id, field, "missing")
                self.store.delete(id)

    def test_what_is_no_session_at_all_does_not_hide_the_others(self):
        whole = self.content(self.good)
        for content in (b"", b"\n", b"{", whole[:-2], whole[:40], whole + b"x", b"[]", b"null", b"5", b'"x"', b"\xff\xfe{}", b"\0" * 4096, whole.replace(b'"', b"'"),
                        b"[" * 100000, b'{"a":' * 100000, b'{"cost_usd": NaN}', b'{"cost_usd": 1e999}', whole):
            with self.subTest(content[:40]):
                id = self.put(content)
                self.assert_left_alone(id)
                self.store.delete(id)
                self.assertEqual(self.ids(), [self.good.id])

    def test_what_is_no_file_does_not_hide_the_others(self):
        directory, fifo, device = (os.urandom(16).hex() for _ in range(3))
        os.mkdir(self.file_of(directory))
        self.assert_left_alone(directory)
        os.rmdir(self.file_of(directory))
        os.mkfifo(self.file_of(fifo))
        # in a process that can be ended: who waits for a writer waits for ever
        self.assertEqual(self.script("print(len(clinvk.SessionStore(store._directory).all()))", timeout=support.PATIENCE), "1\n")
        self.assert_left_alone(fifo)
        self.store.delete(fifo)
        os.symlink("/dev/null", self.file_of(device))
        self.assert_left_alone(device)
        self.store.delete(device)
        self.assertTrue(os.path.exists("/dev/null"))

    def test_other_files_are_none_of_its_business(self):
        for name in ("index.json", "store.lock", "notes", "0" * 31 + ".json", "0" * 33 + ".json", "A" * 32 + ".json", "g" * 32 + ".json",
                     "0" * 32, "0" * 32 + ".json~", "." + "0" * 32 + ".json"):
            with open(os.path.join(self.sessions, name), "w") as file:
                file.write("{")
        before = names_in(self.sessions)
        self.assertEqual(self.ids(), [self.good.id])
        self.assertEqual(self.warnings, [])
        self.assertEqual(self.store.clean(1e9), [])
        self.assertEqual(names_in(self.sessions), before)

    NUMBERS = ["1" + "0" * 400, "1e15", "999999999999999", "-1", "-0", "0.0", "1e308", "1e-400", "9" * 20, "4" * 5000, "1.5", "1152921504606846976"]
    TIMES = ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "1969-12-31T23:59:59.999Z",
             "9998-12-31T23:59:59.9999Z", "2025-01-31T24:00:00Z", "2025-01-31T12:00:00+00:00:00.000001", "2025-W05-5T12:00:00Z", "20250131T120000Z",
             "2025-01-31T12:00:00.Z", "2025-01-31T12:00:00.٣Z", "\ud800Z", "2025\0", "2025-01-31T12:00:00.123456+25:00"]
    TEXTS = ["", "\0", "a\nb\x1b[2J\r", "\ud83d", "审查" * 50, "x" * 20000, "--x", "[" * 300, "active", "claude"]

    def noise(self, chance, depth=0):
        """The JSON text of any value."""
        kind = chance.randrange(9 if depth < 3 else 5)
        if kind < 2:
            return chance.choice(self.NUMBERS)
        if kind < 4:
            return json.dumps(chance.choice(self.TIMES if kind == 2 else self.TEXTS))
        if kind == 4:
            return chance.choice(["null", "true", "false", "[]", "{}"])
        if kind == 5:
            levels = chance.choice([10, 150, 250, 800, 990, 5000])
            return chance.choice(["[" * levels + "]" * levels, '{"a":' * levels + "1" + "}" * levels])
        inner = [self.noise(chance, depth + 1) for _ in range(chance.randrange(4))]
        if kind < 8:
            return "[%s]" % ",".join(inner)
        return "{%s}" % ",".join("%s:%s" % (json.dumps(chance.choice(self.TEXTS)), value) for value in inner)

    def test_whatever_a_file_holds_the_others_can_be_used_and_it_can_be_deleted(self):
        """What is taken for a session can also be shown and written again."""
        seed = int.from_bytes(os.urandom(4), "little")
        chance = random.Random(seed)
        taken, wrong = set(), set()
        fields = sorted(clinvk.SESSION_FIELDS) + ["unknown", "later"]
        with self.subTest(seed=seed):
            for number in range(400):
                id = self.put_fields(status="completed")
                text = json.dumps(self.fields(id))[:-1]
                for field in [fields[number % len(fields)]] + chance.sample(fields, chance.randrange(3)):  # the last of several counts
                    text += ', "%s": %s' % (field, self.noise(chance))
                self.put((text + "}").encode(), id)
                try:
                    self.store.load(id)
                    taken.add(id)
                except clinvk.SessionError:
                    wrong.add(id)
            self.assertTrue(len(taken) > 20 and len(wrong) > 100, (len(taken), len(wrong)))
            self.assertEqual(set(self.ids()), taken | {self.good.id})
            self.assertEqual(len(self.warnings), len(wrong))
            for id in taken:
                self.assertEqual(self.store.update(id, lambda session: session._replace(turn_count=1)).turn_count, 1)
            os.symlink(os.path.dirname(self.sessions), self.path("home", ".clinvk"))
            for words in (["list"], ["list", "--json"], ["show", self.good.id], ["tag", self.good.id, "x"], ["fork", self.good.id],
                          ["clean", "--dry-run"], *(["show", id] for id in sorted(taken)[:5])):
                done = self.clinvk("sessions", *words)
                self.assertEqual(done.returncode, 4 if words[0] == "fork" else 0, done.stderr[-2000:])
                if words == ["list"]:
                    self.assertEqual(done.stdout.count(b"\n"), len(taken) + 2)
            self.assertEqual(self.store.load(self.good.id).tags, ("x",))
            self.store.clean(1e12)
            for id in taken | wrong:
                self.store.delete(id)
            self.assertEqual(self.ids(), [self.good.id])

    def test_a_link_to_nowhere_is_no_session_but_can_be_deleted(self):
        id = os.urandom(16).hex()
        os.symlink("/nonexistent/file", self.file_of(id))
        self.assertEqual((self.ids(), self.warnings), ([self.good.id], []))
        self.assertIn(id, self.refused(self.store.load, id))
        self.store.delete(id)
        self.assertFalse(os.path.lexists(self.file_of(id)))


class Finding(SessionCase):
    def setUp(self):
        super().setUp()
        for id, changes in (("3f" + "0" * 30, dict(title="the parser")), ("3f" + "0" * 29 + "1", dict(backend="codex", initial_prompt="\n 审查\x1b[31m this")),
                            ("3e" + "a" * 30, dict(backend_session_id="abc-1", last_used="2025-03-01T00:00:00Z")),
                            ("4d" + "b" * 30, dict(backend_session_id="abc-1", fork=True, last_used="2025-04-01T00:00:00Z"))):
            self.put_fields(id, **changes)

    def test_the_beginning_of_an_id_is_enough_where_it_is_that_of_one(self):
        for text, id in (("4", "4d" + "b" * 30), ("3e", "3e" + "a" * 30), ("3EAA", "3e" + "a" * 30), ("3f" + "0" * 29 + "1", "3f" + "0" * 29 + "1"),
                         ("3f" + "0" * 30, "3f" + "0" * 30), ("3F" + "0" * 30, "3f" + "0" * 30)):
            with self.subTest(text):
                self.assertEqual(self.store.find(text).id, id)
                self.assertEqual(self.store.match(text), id)

    def test_where_several_begin_so_they_are_shown_by_as_much_as_tells_them_apart(self):
        self.assertEqual(self.refused(self.store.find, "3f"), '2 sessions begin with "3f": %s (claude: the parser), %s (codex: 审查^[[31m this)' % (
            "3f" + "0" * 30, "3f" + "0" * 29 + "1"))
        self.assertIn('3 sessions begin with "3"', self.refused(self.store.find, "3"))
        self.store.delete("3f" + "0" * 30)
        self.assertEqual(self.refused(self.store.find, "3"),
                         '2 sessions begin with "3": 3eaaaaaa (claude: ), 3f000000 (codex: 审查^[[31m this)')

    def test_of_very_many_some_are_shown(self):
        for number in range(20):
            self.put_fields("7%x" % (16 + number) + "0" * 29)
        message = self.refused(self.store.find, "7")
        self.assertTrue(message.startswith('20 sessions begin with "7": 71000000 (claude: ), '), message)
        self.assertTrue(message.endswith(" and 15 more"), message)

    def test_a_damaged_one_among_several_is_shown_too(self):
        self.put(b"{", "4" + "0" * 31)
        self.assertIn("40000000 (?)", self.refused(self.store.find, "4"))

    def test_what_names_no_session_is_said(self):
        for text in ("5", "3d", "0" * 32, "3f" + "0" * 29 + "2"):
            self.assertEqual(self.refused(self.store.find, text), 'no session begins with "%s"' % text)
        for text in ("", "x", "fix the parser", "../../etc/passwd", "3f" + "0" * 30 + ".json", "3e\n", " 3e", "3e" + "a" * 31, "abc-2", "abc", "٣e"):
            with self.subTest(text):
                message = self.refused(self.store.find, text)
                self.assertTrue("is not the id of a session" in message or "no session begins with" in message, message)

    def test_the_id_of_the_backends_own_session_names_the_session_that_it_belongs_to(self):
        self.assertEqual(self.store.find("abc-1").id, "3e" + "a" * 30)

    def test_an_id_is_never_a_path(self):
        self.file("secret.json", {"id": "x"})
        for id in ("../secret", "../../secret", "/etc/passwd", "", ".", "0" * 31 + "/", "0" * 31 + "\n", "A" * 32):
            for call in (self.store.load, self.store.delete, lambda id: self.store.update(id, lambda session: session)):
                self.assertIn("is not the id of a session", self.refused(call, id))
        self.assertTrue(os.path.exists(self.path("secret.json")))


class Order(SessionCase):
    def use(self, session, seconds_ago, **changes):
        return self.store.update(session.id, lambda session: session._replace(last_used=time.time() - seconds_ago, **changes))

    def test_the_last_used_come_first_however_their_files_lie_in_time(self):
        numbers = random.Random(11)
        ages = [numbers.uniform(0, 1e6) for _ in range(60)]
        made = [self.use(self.store.create("claude"), age) for age in ages]
        order = [session.id for session in sorted(made, key=lambda session: -session.last_used)]
        self.assertEqual(self.ids(), order)
        for session in made:  # written as they were used, as if by a server whose clock is behind, or later, in any order
            os.utime(self.file_of(session), (0, session.last_used + numbers.choice((-30, 0, 5, 1e4, 1e6, 1e7))))
        self.assertEqual(self.ids(), order)
        for limit in (1, 2, 59, 60, 61):
            self.assertEqual(self.ids(limit=limit), order[:limit])

    def test_a_file_servers_clock_may_be_behind(self):
        made = [self.use(self.store.create("claude"), 100 - 10 * number) for number in range(10)]
        for number, session in enumerate(made):
            os.utime(self.file_of(session), (0, session.last_used - 50 * (number % 2)))
        self.assertEqual(self.ids(), [session.id for session in reversed(made)])
        self.assertEqual(self.ids(limit=1), [made[9].id])

    def test_using_one_again_brings_it_to_the_front(self):
        made = [self.use(self.store.create("claude"), 1000 - number) for number in range(5)]
        self.use(made[1], 1)
        self.assertEqual(self.ids(), [made[number].id for number in (1, 4, 3, 2, 0)])

    def test_of_those_used_at_the_same_time_the_last_made_comes_first(self):
        ids = [self.put_fields(created_at="2025-01-0%dT00:00:00Z" % day) for day in (3, 1, 2)]
        self.assertEqual(self.ids(), [ids[0], ids[2], ids[1]])

    def test_old_files_are_not_read_for_what_is_new(self):
        for number in range(50):
            os.utime(self.file_of(self.put(b"damaged")), (0, 1700000000 + number))
        made = [self.use(self.store.create("claude"), age, backend_session_id="b") for age in (30, 20, 10)]
        self.assertEqual(self.ids(limit=3), [made[2].id, made[1].id, made[0].id])
        self.assertEqual(self.store.last(), made[2])
        self.assertEqual(self.warnings, [])
        self.assertEqual(len(self.ids()), 3)
        self.assertEqual(len(self.warnings), 50)

    def test_they_are_chosen_by_backend_status_tag_and_directory(self):
        os.symlink(self.home, self.path("link"))
        a = self.use(self.store.create("claude", working_dir=self.home, tags=["x"]), 3, status="error")
        b = self.use(self.store.create("codex", working_dir=self.home, tags=["x", "y"]), 2)
        c = self.use(self.store.create("claude", working_dir=self.tmp), 1)
        for chosen, expected in ((dict(), (c, b, a)), (dict(backend="claude"), (c, a)), (dict(status="error"), (a,)), (dict(tag="x"), (b, a)),
                                 (dict(tag="y"), (b,)), (dict(working_dir=self.home), (b, a)), (dict(working_dir=self.path("link")), (b, a)),
                                 (dict(working_dir=self.directory), ()), (dict(backend="claude", tag="x"), (a,)), (dict(tag="X"), ()),
                                 (dict(backend="claude", limit=1), (c,)), (dict(backend="codex", status="active", tag="y", working_dir=self.home), (b,))):
            with self.subTest(chosen):
                self.assertEqual(self.store.all(**chosen), list(expected))

    def test_the_last_is_one_that_can_be_continued(self):
        a = self.use(self.store.create("claude", working_dir=self.home), 4, backend_session_id="a")
        b = self.use(self.store.create("codex", working_dir=self.home), 3, backend_session_id="b")
        c = self.use(self.store.create("claude", working_dir=self.tmp), 2, backend_session_id="c")
        self.use(self.store.create("claude", working_dir=self.home), 1)
        self.assertEqual(self.store.last(), c)
        self.assertEqual(self.store.last("codex"), b)
        self.assertEqual(self.store.last(working_dir=self.home), b)
        self.assertEqual(self.store.last("claude", self.home), a)
        self.assertIsNone(self.store.last("gemini"))
        self.assertIsNone(self.store.last("codex", self.tmp))


class Removing(SessionCase):
    def test_a_deleted_session_is_gone_and_the_others_are_not(self):
        a, b = self.store.create("claude"), self.store.create("claude")
        self.store.delete(a.id)
        self.assertEqual(self.ids(), [b.id])
        self.assertIn(a.id, self.refused(self.store.delete, a.id))
        self.assertIn(a.id, self.refused(self.store.load, a.id))

    def test_an_update_does_not_bring_a_deleted_session_back(self):
        session = self.store.create("claude")
        self.store.delete(session.id)
        self.refused(self.store.update, session.id, lambda session: session)
        self.assertEqual(names_in(self.sessions), [".lock"])

    def test_what_was_not_used_for_long_is_cleaned_away(self):
        ages = (0, 86000, 86800, 40 * 86400)
        made = [self.store.save(self.store.create("claude")._replace(last_used=time.time() - age, status="error")) for age in ages]
        self.assertEqual(self.store.clean(50 * 86400), [])
        self.assertEqual(set(self.store.clean(86400)), {made[2].id, made[3].id})
        self.assertEqual(self.ids(), [made[0].id, made[1].id])
        self.assertEqual(self.store.clean(0), [made[0].id, made[1].id])
        self.assertEqual((self.ids(), names_in(self.sessions)), ([], [".lock"]))

    def start_user(self, session):
        """A process that holds a session's lock until `finish`, and then has counted a turn in it."""
        user = self.start_script("""
            def change(session):
                print("held", flush=True)
                sys.stdin.read()
                return session._replace(last_used=time.time(), turn_count=1)
            store.update(sys.argv[1], change)
            """, session.id, stdin=subprocess.PIPE)
        self.assertEqual(user.line(), b"held")
        return user

    def start_until_locked(self, body, *args):
        """A process that has come to where it waits for a lock."""
        process = self.start_script('print("begun", flush=True)\n' + body, *args)
        self.assertEqual(process.line(), b"begun")
        if support.LINUX:
            support.wait_until(lambda: self.waits_for_lock(process.pid), "it waits for the session's lock")
        return process

    def waits_for_lock(self, pid):
        with open("/proc/locks") as file:
            return any("->" in line and " %d " % pid in line for line in file)

    def test_what_is_used_while_its_turn_comes_is_not_cleaned_away(self):
        session = self.store.save(self.store.create("claude")._replace(last_used=time.time() - 1000))
        user = self.start_user(session)
        cleaner = self.start_until_locked("print(store.clean(500))")
        self.assertEqual(user.finish().returncode, 0)
        self.assertEqual(cleaner.finish().stdout, b"[]\n")
        self.assertEqual([session.turn_count for session in self.store.all()], [1])

    def test_what_is_deleted_while_it_is_changed_is_deleted(self):
        session = self.store.save(self.store.create("claude")._replace(status="completed"))
        user = self.start_user(session)
        deleter = self.start_until_locked("store.delete(sys.argv[1])", session.id)
        self.assertEqual((user.finish().returncode, deleter.finish().returncode), (0, 0))
        self.assertEqual(self.ids(), [])

    def test_what_a_killed_writer_left_goes_with_the_session_or_is_cleaned_away(self):
        a, b = self.store.create("claude"), self.store.create("claude")
        for session in (a, b):
            with open(self.file_of(session) + ".12345.tmp", "w") as file:
                file.write('{"id": "half')
        self.assertEqual(self.ids(limit=2), [session.id for session in self.store.all()])
        self.assertEqual(self.warnings, [])
        self.store.delete(a.id)
        self.assertEqual(names_in(self.sessions), [".lock", b.id + ".json", b.id + ".json.12345.tmp"])
        self.assertEqual(self.store.clean(1000), [])
        self.assertEqual(names_in(self.sessions), [".lock", b.id + ".json"])


class InUse(SessionCase):
    """A session is active while a process lives that made it so, and no other can begin in it meanwhile."""

    USER = """
        store.begin(sys.argv[1])
        print("begun", flush=True)
        sys.stdin.read()
        store.update(sys.argv[1], lambda session: session._replace(status="completed", turn_count=session.turn_count + 1))
        """

    def setUp(self):
        super().setUp()
        self.session = self.store.save(self.store.create("claude")._replace(status="completed"))

    def start_user(self):
        user = self.start_script(self.USER, self.session.id, stdin=subprocess.PIPE)
        self.assertEqual(user.line(), b"begun", user.error_output())
        return user

    def as_it_is(self):
        session = self.new_store().load(self.session.id)
        self.assertEqual(self.store.all(), [session])
        return session.status, session.error

    def test_it_can_be_begun_by_one_at_a_time(self):
        user = self.start_user()
        self.assertEqual(self.as_it_is(), ("active", ""))
        self.assertEqual(self.refused(self.store.begin, self.session.id),
                         "session %s (claude) is in use: another clinvk runs a prompt in it" % self.session.id[:8])
        self.assertEqual(user.finish().returncode, 0)
        self.assertEqual(self.as_it_is(), ("completed", ""))
        self.assertEqual(self.store.begin(self.session.id).status, "active")
        self.assertEqual(self.script("print(store.load(sys.argv[1]).status)", self.session.id), "active\n")

    def test_one_whose_process_was_killed_is_not_active_and_can_be_begun(self):
        user = self.start_user()
        user.kill()
        user.wait()
        self.assertEqual(self.fields(self.session)["status"], "active")
        self.assertEqual(self.as_it_is(), ("error", "clinvk was stopped before the end of the run"))
        self.assertEqual((self.ids(status="active"), self.ids(status="error")), ([], [self.session.id]))
        self.assertEqual(self.start_user().finish().returncode, 0)
        self.assertEqual(self.as_it_is()[0], "completed")

    def test_one_that_is_deleted_while_it_is_looked_at_is_not_there(self):
        user = self.start_user()
        read = self.store._read

        def read_and_lose(id):
            session = read(id)
            os.unlink(self.file_of(id))
            return session

        with unittest.mock.patch.object(self.store, "_read", read_and_lose):
            self.assertEqual(self.store.all(), [])
        self.assertNotEqual(user.finish().returncode, 0)

    def test_stores_share_the_files_of_their_locks(self):
        """Which stay open; but a directory that was made anew has another one."""
        self.store.begin(self.session.id)
        before = len(os.listdir("/dev/fd"))
        for _ in range(5):
            self.new_store().update(self.session.id, lambda session: session._replace(title="new"))
        self.assertEqual(len(os.listdir("/dev/fd")), before)
        shutil.rmtree(self.sessions)
        self.session = self.store.save(self.store.create("claude")._replace(status="completed"))
        user = self.start_user()
        self.assertIn("is in use", self.refused(self.store.begin, self.session.id))
        user.finish()

    def test_others_may_change_it_and_it_stays_in_use(self):
        user = self.start_user()
        self.script('store.update(sys.argv[1], lambda session: session._replace(title="new"))', self.session.id)
        self.assertEqual(self.as_it_is(), ("active", ""))
        self.assertIn("is in use", self.refused(self.store.begin, self.session.id))
        self.assertEqual(user.finish().returncode, 0)
        session = self.store.load(self.session.id)
        self.assertEqual((session.status, session.title, session.turn_count), ("completed", "new", 1))

    def test_delete_of_a_session_in_use_is_refused_until_its_user_dies(self):
        user = self.start_user()
        with open(self.file_of(self.session.id), "w") as file:
            file.write("damaged")
        self.assertEqual(self.refused(self.store.delete, self.session.id),
                         "session %s is in use: another clinvk runs a prompt in it" % self.session.id[:8])
        self.assertTrue(os.path.exists(self.file_of(self.session.id)))
        user.kill()
        user.wait()
        self.store.delete(self.session.id)
        self.assertEqual(self.ids(), [])

    def test_it_is_not_cleaned_away(self):
        user = self.start_user()
        self.assertEqual(self.store.clean(0), [])
        self.assertEqual(user.finish().returncode, 0)
        self.assertEqual(self.store.clean(0), [self.session.id])

    def test_a_new_one_is_in_use(self):
        maker = self.start_script('print(store.create("codex").id, flush=True)\nsys.stdin.read()', stdin=subprocess.PIPE)
        id = maker.line().decode()
        self.assertEqual(self.ids(status="active"), [id])
        self.assertIn("is in use", self.refused(self.store.begin, id))
        maker.finish()
        self.assertEqual(self.ids(status="active"), [])

    def test_of_many_that_begin_at_once_while_others_look_one_may(self):
        printed = self.at_once(30, """
            if int(sys.argv[1]) % 3 == 0:
                for _ in range(100):
                    store.all()
            else:
                try:
                    print(store.begin(sys.argv[2]).status, flush=True)
                    while not os.path.exists(sys.argv[3]):
                        time.sleep(0.01)
                except clinvk.SessionError:
                    print("refused", flush=True)
                    open(sys.argv[3] + ".refused", "ab", 0).write(b"x")
                    if os.stat(sys.argv[3] + ".refused").st_size == 19:
                        open(sys.argv[3], "wb")
            """, self.session.id, self.path("go"))
        self.assertEqual(sorted(line for lines in printed for line in lines), ["active"] + ["refused"] * 19)

    def test_one_that_was_killed_can_be_begun_while_others_look(self):
        """Who looks has to take a lock for a moment: nobody may take that for a run."""
        lookers = [self.start_script('print("looks", flush=True)\nwhile True:\n    store.all()') for _ in range(2)]
        for looker in lookers:
            self.assertEqual(looker.line(), b"looks")
        self.assertEqual(self.script("""
            for _ in range(20):
                child = os.fork()
                if not child:
                    store.begin(sys.argv[1])
                    os._exit(0)
                if os.waitpid(child, 0)[1]:
                    raise SystemExit(1)
            print(store.load(sys.argv[1]).status)
            """, self.session.id), "error\n")
        for looker in lookers:
            self.assertIsNone(looker.poll(), looker.error_output())
            looker.kill()
            looker.wait()

    def test_who_may_not_write_there_sees_what_the_file_says(self):
        user = self.start_user()
        user.kill()
        user.wait()
        os.unlink(os.path.join(self.sessions, ".lock"))
        os.mkdir(os.path.join(self.sessions, ".lock"))
        self.assertEqual(self.script("print([session.status for session in store.all()])"), "['active']\n")


class Forks(SessionCase):
    def test_a_fork_goes_on_from_its_parent_and_leaves_it_alone(self):
        parent = self.store.save(self.store.create("claude", working_dir=self.home)._replace(
            created_at=1700000000.0, last_used=1700000000.0, unknown={"pid": 5}, **dict(EVERYTHING, fork=False)))
        before = self.content(parent)
        fork = self.store.fork(parent)
        self.assertEqual(self.content(parent), before)
        self.assertEqual(self.store.load(fork.id), fork)
        self.assertNotEqual(fork.id, parent.id)
        self.assertEqual(fork, parent._replace(id=fork.id, created_at=fork.created_at, last_used=fork.created_at, parent_id=parent.id, fork=True,
                                               turn_count=0, token_usage={}, cost_usd=None, status="completed", error="", unknown={}))
        self.assertEqual(fork.backend_session_id, EVERYTHING["backend_session_id"])
        self.assertGreater(fork.created_at, parent.created_at)
        self.assertEqual(self.store.last(), fork)
        self.assertEqual(self.store.fork(fork).parent_id, fork.id)

    def test_there_must_be_a_conversation_to_fork(self):
        session = self.store.create("claude")
        self.assertIn(session.id, self.refused(self.store.fork, session))
        self.assertEqual(self.ids(), [session.id])


class Unwritable(SessionCase):
    # What is imported late could lie where only root can read it.
    AS_NOBODY = "clinvk.SessionStore(store._directory).all()\nif os.geteuid() == 0:\n    os.setgroups([])\n    os.setgid(65534)\n    os.setuid(65534)\n"

    def test_where_there_is_no_directory_there_are_no_sessions_and_none_is_made(self):
        self.assertEqual((self.store.all(), self.store.last(), self.store.clean(0)), ([], None, []))
        id = "0" * 32
        for call in (self.store.load, self.store.find, self.store.delete, lambda id: self.store.update(id, lambda session: session)):
            self.assertIn(id, self.refused(call, id))
        self.assertEqual((self.warnings, os.listdir(self.home)), ([], []))

    def test_where_no_directory_can_be_made_creating_raises_and_listing_gives_nothing(self):
        self.file("occupied", "")
        for directory in (self.path("occupied", "sessions"), self.path("occupied", "home", "sessions")) + (("/proc/clinvk/sessions",) if support.LINUX else ()):
            with self.subTest(directory):
                store = clinvk.SessionStore(directory)
                self.assertEqual((store.all(), store.last(), store.clean(0)), ([], None, []))
                with self.assertRaises(OSError):
                    store.create("claude")
                self.refused(store.find, "0" * 32)

    def test_in_a_directory_that_cannot_be_written_sessions_can_be_read(self):
        session = self.store.save(self.store.create("claude", initial_prompt="hello")._replace(status="completed"))
        owner = 65534 if os.geteuid() == 0 else -1
        os.chown(self.file_of(session), owner, -1)
        os.chmod(self.directory, 0o711)
        os.chmod(self.home, 0o755)
        os.chmod(self.sessions, 0o555)
        before = names_in(self.sessions), self.content(session)
        self.assertEqual(self.script(self.AS_NOBODY + textwrap.dedent("""
            print(len(store.all()), store.find(sys.argv[1][:5]).initial_prompt)
            for call in (lambda: store.create("claude"), lambda: store.update(sys.argv[1], lambda session: session),
                         lambda: store.delete(sys.argv[1]), lambda: store.clean(0), lambda: store.save(store.load(sys.argv[1]))):
                try:
                    call()
                except PermissionError as error:
                    print(error.strerror)
            """), session.id), "1 hello\n" + 5 * "Permission denied\n")
        self.assertEqual((names_in(self.sessions), self.content(session)), before)

    def test_a_directory_and_a_file_that_cannot_be_read_are_named(self):
        a, b = self.store.create("claude"), self.store.create("claude")
        owner = 65534 if os.geteuid() == 0 else -1
        os.chown(self.file_of(a), owner, -1)
        os.chmod(self.file_of(b), 0)
        os.chmod(self.directory, 0o711)
        os.chmod(self.home, 0o755)
        os.chmod(self.sessions, 0o555)
        body = self.AS_NOBODY + "said = []\nprint([session.id for session in clinvk.SessionStore(store._directory, said.append).all()], said)"
        self.assertEqual(self.script(body), "%s %s\n" % ([a.id], ["%s is no session, and left alone: Permission denied" % self.file_of(b)]))
        os.chmod(self.sessions, 0o311 if owner < 0 else 0o711)
        self.assertEqual(self.script(body), "[] %s\n" % ["cannot read the sessions: %s: Permission denied" % self.sessions])

    def test_when_the_disk_is_full_the_session_stays_as_it_was(self):
        session = self.store.create("claude", initial_prompt="x" * 100)
        before = self.content(session)
        self.assertEqual(self.script("""
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
            for call in (lambda: store.update(sys.argv[1], lambda session: session._replace(title="t" * 1000)),
                         lambda: store.create("claude", initial_prompt="p" * 1000)):
                try:
                    call()
                except OSError as error:
                    print(error.strerror)
            """, session.id), 2 * "File too large\n")
        self.assertEqual((names_in(self.sessions), self.content(session)), ([".lock", session.id + ".json"], before))


class AtOnce(SessionCase):
    def test_25_made_at_once_are_25_listed(self):
        printed = self.at_once(25, 'print(store.create("claude", initial_prompt=sys.argv[1]).id)')
        made = [line for lines in printed for line in lines]
        self.assertEqual(len(set(made)), 25)
        self.assertEqual(sorted(self.ids()), sorted(made))
        self.assertEqual(sorted(session.initial_prompt for session in self.store.all()), sorted(map(str, range(25))))
        self.assertEqual(names_in(self.sessions), sorted([".lock"] + [id + ".json" for id in made]))

    def test_60_processes_that_create_change_delete_and_list_at_once_lose_nothing(self):
        """Each makes four sessions and deletes one of them, counts in one that all share, in one of its own and in some that others
        delete, and lists.  `warn` ends a process that sees half a file; each says what it did, and that is what is there."""
        shared = self.store.create("claude")
        prey = [self.store.save(self.store.create("codex")._replace(status="completed")).id for _ in range(20)]
        keepers = [self.store.create("gemini").id for _ in range(40)]
        printed = self.at_once(60, """
            import random
            number, shared, prey, keepers = int(sys.argv[1]), sys.argv[2], sys.argv[3].split(","), set(sys.argv[4].split(","))
            chance = random.Random(number)
            def count(id):
                store.update(id, lambda session: session._replace(turn_count=session.turn_count + 1, last_used=time.time(),
                             token_usage=dict(session.token_usage, **{"by-%d" % number: session.token_usage.get("by-%d" % number, 0) + 1})))
            made = [store.create("claude", initial_prompt="x" * chance.randrange(20000)).id for _ in range(4)]
            for turn in range(3):
                count(shared)
                count(made[0])
                victim = chance.choice(prey)
                try:
                    if chance.random() < 0.3:
                        store.delete(victim)
                        print("deleted", victim)
                    else:
                        count(victim)
                        print("counted", victim)
                except clinvk.SessionError as error:
                    assert str(error) == "there is no session " + victim, error
                listed = {session.id for session in store.all()}
                assert shared in listed and keepers <= listed and set(made) <= listed, "one was not listed"
                assert store.find(made[1]).id == made[1]
            store.delete(made[3])
            print("made", *made[:3])
            """, shared.id, ",".join(prey), ",".join(keepers))
        said = [line.split() for lines in printed for line in lines]
        made = [id for words in said if words[0] == "made" for id in words[1:]]
        deleted = [words[1] for words in said if words[0] == "deleted"]
        counted = [words[1] for words in said if words[0] == "counted"]
        self.assertEqual((len(made), len(set(made))), (180, 180))
        self.assertGreater(len(deleted), 0)
        self.assertGreater(len(counted), 0)
        self.assertEqual(len(deleted), len(set(deleted)), "one was deleted twice")

        found = {session.id: session for session in self.store.all()}
        self.assertEqual(set(found), {shared.id} | set(keepers) | set(made) | (set(prey) - set(deleted)))
        self.assertEqual(found[shared.id].turn_count, 180)
        self.assertEqual(found[shared.id].token_usage, {"by-%d" % number: 3 for number in range(60)})
        self.assertEqual([found[id].turn_count for words in said if words[0] == "made" for id in words[1:]], [3, 0, 0] * 60)
        self.assertEqual({id: found[id].turn_count for id in prey if id in found}, {id: counted.count(id) for id in prey if id in found})
        self.assertEqual(names_in(self.sessions), sorted([".lock"] + [id + ".json" for id in found]))
        self.assertEqual(self.warnings, [])

    def test_while_one_is_changed_others_can_be_but_not_that_one(self):
        first, second = self.store.create("claude"), self.store.create("claude")
        while second.id[:7] == first.id[:7]:  # one of 2 to the 28th shares the lock
            second = self.store.create("claude")
        slow = """
            def change(session):
                print("changing", flush=True)
                sys.stdin.read()
                return session._replace(turn_count=session.turn_count + 1)
            print("begun", flush=True)
            store.update(sys.argv[1], change)
            """
        holder = self.start_script(slow, first.id, stdin=subprocess.PIPE)
        self.assertEqual((holder.line(), holder.line()), (b"begun", b"changing"))
        waiter = self.start_script(slow, first.id)
        self.assertEqual(waiter.line(), b"begun")
        self.script('store.update(sys.argv[1], lambda session: session._replace(turn_count=7))\nprint(store.create("codex").id)', second.id)
        self.assertEqual(self.store.load(second.id).turn_count, 7)
        self.assertEqual(self.store.load(first.id).turn_count, 0)
        self.assertEqual(len(self.ids()), len(os.listdir(self.sessions)) - 1)
        self.assertEqual(holder.finish().returncode, 0)
        self.assertEqual(waiter.finish().stdout, b"changing\n")
        self.assertEqual(self.store.load(first.id).turn_count, 2)

    def test_one_who_is_killed_while_changing_holds_nobody_up(self):
        session = self.store.create("claude")
        holder = self.start_script("""
            def change(session):
                print("changing", flush=True)
                signal.pause()
            store.update(sys.argv[1], change)
            """, session.id)
        self.assertEqual(holder.line(), b"changing")
        holder.kill()
        holder.wait()
        self.script('store.update(sys.argv[1], lambda session: session._replace(turn_count=1))', session.id)
        self.assertEqual(self.store.load(session.id).turn_count, 1)

    def test_writers_that_are_killed_at_any_moment_leave_whole_files(self):
        numbers = random.Random(7)
        shared = self.store.create("claude")
        sure = 0
        for _ in range(8):
            writers = [self.start_script("""
                while True:
                    store.update(sys.argv[1], lambda session: session._replace(turn_count=session.turn_count + 1))
                    print(store.create("codex", initial_prompt="x" * 50000).id, flush=True)
                """, shared.id) for _ in range(3)]
            done = 0
            for turn in range(numbers.randrange(3, 12)):
                done += bool(writers[turn % 3].line())
            for writer in writers:
                os.kill(writer.pid, signal.SIGKILL)
            for writer in writers:
                rest = writer.finish()
                self.assertEqual((rest.returncode, rest.stderr), (-signal.SIGKILL, b""))
                done += rest.stdout.count(b"\n")
            sure += done
            sessions = self.store.all()
            self.assertEqual(self.warnings, [])
            self.assertGreaterEqual(len(sessions), 1 + sure)
            self.assertGreaterEqual(self.store.load(shared.id).turn_count, sure)
            sure = len(sessions) - 1
        self.assertEqual(self.store.clean(1e9), [])
        self.assertEqual(names_in(self.sessions), sorted([".lock"] + [session.id + ".json" for session in self.store.all()]))

    def test_a_listing_leaves_out_none_that_is_being_replaced(self):
        """btrfs does leave out names whose files are replaced while the directory is read, and a large directory is not read at once."""
        ids = {self.put_fields() for _ in range(1000)}
        writers = [self.start_script("""
            while True:
                for id in sys.argv[1:]:
                    store.update(id, lambda session: session._replace(turn_count=session.turn_count + 1))
            """, *sorted(ids)[number::100]) for number in (0, 50)]
        hot = sorted(ids)[0], sorted(ids)[50]
        support.wait_until(lambda: all(self.store.load(id).turn_count for id in hot), "both writers write")
        for _ in range(10):
            self.assertEqual(set(self.ids()) ^ ids, set())
        for writer in writers:
            self.assertIsNone(writer.poll(), writer.error_output())
            writer.kill()
            writer.wait()
        self.store.clean(1e12)

    def test_threads_that_read_need_no_turn(self):
        ids = {self.store.create("claude").id for _ in range(20)}
        seen = []
        threads = [threading.Thread(target=lambda: seen.append({session.id for session in self.new_store().all()})) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(support.PATIENCE)
        self.assertEqual(seen, [ids] * 8)


if __name__ == "__main__":
    unittest.main()
