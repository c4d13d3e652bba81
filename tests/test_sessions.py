"""Section 11, Sessions: the store.

Written sessions are read again; damaged files are named and left alone; an id may be shortened; the
last used session comes first; processes that create, use, delete and list at once, or are killed,
lose nothing and never see half a file.
"""
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import textwrap
import unittest
import unittest.mock

import support
from support import clinvk

support.left_to_full_runs()

EVERY_FIELD = dict(
    backend="claude", backend_session_id="0f6c4b1e-9a51-4a3c-8a3b-111111111111", model="opus",
    initial_prompt="审查 auth 模块\n\0\x1b[31m \udcff", status="error", turn_count=3, cost_usd=0.0,
    token_usage={"input_tokens": 1200, "output_tokens": 34, "total_tokens": 1234},
    cumulative_usage={"input_tokens": 2400}, tags=("a", "部署", ""), error="retry limit\nstatus: 429")


class StoreCase(support.Case):
    def setUp(self):
        super().setUp()
        self.sessions, self.warnings = self.path("home", "sessions"), []
        self.store = clinvk.SessionStore(self.sessions, self.warnings.append)

    def file_of(self, id):
        return os.path.join(self.sessions, id + ".json")

    def put(self, content, id=None):
        """Write a session file with this content; return the id."""
        id = id or os.urandom(16).hex()
        os.makedirs(self.sessions, exist_ok=True)
        with open(self.file_of(id), "wb") as file:
            file.write(content if isinstance(content, bytes) else json.dumps(content).encode())
        return id

    def put_fields(self, name=None, **changes):
        """Write a session file of few fields; a change to None leaves a field out."""
        name = name or os.urandom(16).hex()
        moment = "2025-01-31T12:00:00.000Z"
        fields = {"id": name, "backend": "claude", "created_at": moment, "last_used": moment,
                  "working_dir": "/work", **changes}
        return self.put({key: value for key, value in fields.items() if value is not None}, name)

    def fields(self, id):
        with open(self.file_of(id), "rb") as file:
            return json.loads(file.read())

    def finished(self, backend="claude", **changes):
        session = self.store.create(backend)
        return self.store.finish(session._replace(status="completed", **changes))

    def refused(self, call, *arguments):
        """The message of the SessionError that this raises."""
        with self.assertRaises(clinvk.SessionError) as caught:
            call(*arguments)
        return str(caught.exception)

    def start_script(self, body, *args):
        """Start statements that know `store`; their stdin is a pipe."""
        head = "import os, sys, time\nsys.path.insert(0, %r)\nimport clinvk\nstore = clinvk.SessionStore(%r, print)\n"
        script = head % (support.MODULES, self.sessions) + textwrap.dedent(body)
        return self.start_program([sys.executable, "-c", script, *args], stdin=subprocess.PIPE)

    def start_user(self, id):
        """Start a process that uses a session until its stdin ends."""
        user = self.start_script("""
            session = store.begin(sys.argv[1])
            print("begun", flush=True)
            sys.stdin.read()
            store.finish(session._replace(status="completed", turn_count=session.turn_count + 1))
            """, id)
        self.assertEqual(user.line(), b"begun", user.error_output())
        return user


class Files(StoreCase):
    def test_create_makes_an_active_session_of_the_real_directory(self):
        os.symlink(self.home, self.path("link"))
        session = self.store.create("codex", working_dir=self.path("link"), model="o3",
                                    initial_prompt="hello", tags=["x", "y"])
        self.assertRegex(session.id, r"\A[0-9a-f]{32}\Z")
        self.assertEqual(session, clinvk.Session(
            session.id, "codex", session.created_at, session.created_at, self.home, model="o3",
            initial_prompt="hello", status="active", tags=("x", "y")))
        self.assertEqual(self.store.load(session.id), session)

    def test_finish_every_field_is_written_and_read(self):
        session = self.store.create("claude")._replace(
            created_at=1700000000.123, last_used=1700000001.0, **EVERY_FIELD)
        self.assertEqual(set(clinvk.SESSION_FIELDS), set(session._fields))
        self.assertEqual(self.store.finish(session), session)
        self.assertEqual(self.store.all(), [session])
        fields = self.fields(session.id)
        self.assertEqual(set(fields), set(session._fields))
        self.assertEqual(fields["created_at"], "2023-11-14T22:13:20.123Z")

    def test_create_empty_fields_are_left_out(self):
        session = self.store.create("claude")
        self.assertEqual(set(self.fields(session.id)), {
            "id", "backend", "created_at", "last_used", "working_dir", "status", "turn_count"})

    def test_create_prompts_of_any_content_come_back(self):
        for prompt in ("x" * 3000000, "\0", "😀", "\udc80\udcff", '"\\\n', "\u2028"):
            with self.subTest(prompt[:10]):
                id = self.store.create("claude", initial_prompt=prompt).id
                self.assertEqual(self.store.load(id).initial_prompt, prompt)

    def test_parse_utc_returns_written_times_to_the_millisecond(self):
        numbers = random.Random(5)
        for moment in [0.0, 0.0004, 0.9996, 1e9, 4e9] + [numbers.uniform(0, 4e9) for _ in range(500)]:
            written = clinvk.parse_utc(clinvk.utc(moment))
            self.assertLess(abs(written - moment), 0.00051)
            self.assertEqual(clinvk.parse_utc(clinvk.utc(written)), written)

    def test_load_null_and_unknown_fields_are_ignored(self):
        id = self.put_fields(model=None)
        whole = self.store.load(id)
        self.put(dict(self.fields(id), model=None, tags=None, checkpoints=[{"at": 1.5}]), id)
        self.assertEqual(self.store.load(id), whole)

    def test_create_files_and_directories_are_private(self):
        self.sessions = self.path("above", "home", "sessions")
        user = self.start_script("os.umask(0)\nstore.finish(store.create('claude'))")
        self.assertEqual(user.finish().returncode, 0)
        modes = {os.path.basename(path): stat.S_IMODE(os.stat(path).st_mode) for path in [
            self.path("above", "home"), self.sessions,
            *(os.path.join(self.sessions, name) for name in os.listdir(self.sessions))]}
        self.assertEqual(sorted(modes.values()), [0o600, 0o600, 0o700, 0o700], modes)

    def test_finish_never_writes_a_file_that_cannot_be_read(self):
        for change in (dict(turn_count=-1), dict(tags=(1,)), dict(cost_usd=-1.0), dict(model=5),
                       dict(token_usage={"input_tokens": 0.5})):
            session = self.store.create("claude")
            before = self.fields(session.id)
            with self.subTest(change), self.assertRaises(ValueError):
                self.store.finish(session._replace(**change))
            self.assertEqual(self.fields(session.id), before)

    def test_finish_does_not_bring_back_a_deleted_session(self):
        session = self.store.create("claude")
        os.unlink(self.file_of(session.id))
        self.assertIn("there is no session", self.refused(self.store.finish, session))
        self.assertEqual(self.store.all(), [])


class Damage(StoreCase):
    WRONG = {
        "id": [5, "0" * 32], "backend": [5], "working_dir": [7], "model": [{}], "status": [1],
        "created_at": [1700000000, "", "2025-01-31", "2025-01-31T12:00:00Z", "1969-12-31T23:59:59.000Z",
                       "2025-02-30T12:00:00.000Z", "9999-12-31T23:59:59.000Z"],
        "last_used": [False], "turn_count": [-1, 1.5, True, "3", 10 ** 4000], "error": [False],
        "token_usage": [[], {"input_tokens": "5"}], "cumulative_usage": [{"x": -1}],
        "cost_usd": ["0.5", -1, True, 1e15], "tags": ["a", [1], [None]], "initial_prompt": [["x"]],
        "backend_session_id": [12]}

    def setUp(self):
        super().setUp()
        self.good = self.store.create("claude")

    def assert_left_alone(self, id, *parts):
        """A file is named in one warning, is not listed, cannot be loaded, and can be deleted."""
        del self.warnings[:]
        store = clinvk.SessionStore(self.sessions, self.warnings.append)
        for _ in range(2):
            self.assertEqual([session.id for session in store.all()], [self.good.id])
        self.assertEqual(len(self.warnings), 1, self.warnings)
        for part in (self.file_of(id), *parts):
            self.assertIn(part, self.warnings[0])
            self.assertIn(part, self.refused(store.load, id))
        self.assertEqual(store.clean(3600), [])
        self.assertEqual(store.match(id[:20]), id)
        store.delete(id)
        self.assertFalse(os.path.lexists(self.file_of(id)))

    def test_load_wrong_value_names_the_field(self):
        self.assertEqual(set(self.WRONG), set(clinvk.SESSION_FIELDS))
        for field, values in self.WRONG.items():
            for value in values:
                with self.subTest(field=field, value=value):
                    part = field if value != "0" * 32 else value
                    self.assert_left_alone(self.put_fields(**{field: value}), part)

    def test_load_missing_field_is_named(self):
        for field in clinvk.Session._fields[:5]:
            with self.subTest(field):
                self.assert_left_alone(self.put_fields(**{field: None}), field, "missing")

    def test_all_any_content_does_not_hide_the_other_sessions(self):
        for content in (b"", b"{", b"[]", b"null", b"\xff", b"[" * 100000, b"{}", b"\0" * 100):
            with self.subTest(content[:10]):
                self.assert_left_alone(self.put(content))

    def test_all_other_kinds_of_files_do_not_hide_the_other_sessions(self):
        fifo, link = os.urandom(16).hex(), os.urandom(16).hex()
        os.mkfifo(self.file_of(fifo))
        self.assert_left_alone(fifo)
        os.symlink("/no/such/file", self.file_of(link))
        self.assertEqual([session.id for session in self.store.all()], [self.good.id])
        self.store.delete(link)
        for name in ("x.json", "README", self.good.id + ".json.bak", "A" * 32 + ".json"):
            self.file(os.path.join("home", "sessions", name), b"other")
        self.assertEqual([session.id for session in self.store.all()], [self.good.id])


class Finding(StoreCase):
    ONE, TWO, THREE = "3f" + "0" * 30, "3f" + "0" * 29 + "1", "3e" + "a" * 30

    def setUp(self):
        super().setUp()
        self.put_fields(self.ONE, initial_prompt="the parser")
        self.put_fields(self.TWO, backend="codex", initial_prompt="\n 审查\x1b[31m this")
        self.put_fields(self.THREE, backend_session_id="abc-1", last_used="2025-03-01T00:00:00.000Z")

    def test_match_start_of_one_id_or_backend_id_is_enough(self):
        for text, id in (("3e", self.THREE), ("3EAA", self.THREE), (self.TWO, self.TWO),
                         (self.ONE.upper(), self.ONE), ("abc-1", self.THREE)):
            with self.subTest(text):
                self.assertEqual(self.store.match(text), id)

    def test_match_ambiguous_start_names_the_sessions(self):
        self.assertEqual(
            self.refused(self.store.match, "3f"),
            '2 session ids start with "3f": %s (claude: the parser), %s (codex: 审查^[[31m this)'
            % (self.ONE, self.TWO))
        self.put(b"{", "4" + "0" * 31)
        for number in range(20):
            self.put_fields("4%x" % (16 + number) + "0" * 29)
        message = self.refused(self.store.match, "4")
        self.assertTrue(message.startswith('21 session ids start with "4": 40000000 (?), 41000000 '))
        self.assertTrue(message.endswith(" and 16 more"), message)

    def test_match_unknown_text_is_refused(self):
        for text in ("5", "3d", "0" * 32, "3e" + "a" * 31):
            self.assertEqual(self.refused(self.store.match, text),
                             'no session id starts with "%s"' % text)
        for text in ("", "x", "../../etc/passwd", self.ONE + ".json", "3e\n", " 3e", "abc-2", "٣e"):
            with self.subTest(text):
                self.assertIn("is not the id of a session, nor the start of one",
                              self.refused(self.store.match, text))

    def test_load_and_delete_an_id_is_never_a_path(self):
        self.file("home/secret.json", {"id": "x"})
        for id in ("../secret", "/etc/passwd", "", "0" * 31 + "/", "0" * 31 + "\n", "A" * 32):
            for call in (self.store.load, self.store.delete):
                self.assertIn("is not the id of a session", self.refused(call, id))
        self.assertTrue(os.path.exists(self.path("home", "secret.json")))


class Choosing(StoreCase):
    def test_all_is_sorted_by_use_then_creation_and_filtered(self):
        os.symlink(self.home, self.path("link"))
        moments = ["2025-01-0%dT00:00:00.000Z" % day for day in range(1, 5)]
        a = self.put_fields(last_used=moments[1], working_dir=self.home, tags=["x"], status="error")
        b = self.put_fields(last_used=moments[2], working_dir=self.home, tags=["x", "y"],
                            backend="codex", backend_session_id="b")
        c = self.put_fields(last_used=moments[3], working_dir=self.tmp)
        d = self.put_fields(last_used=moments[3], working_dir=self.tmp, created_at=moments[0],
                            backend_session_id="d")
        for filters, ids in (
                (dict(), (c, d, b, a)), (dict(backend="claude"), (c, d, a)), (dict(tag="x"), (b, a)),
                (dict(status="error"), (a,)), (dict(working_dir=self.path("link")), (b, a)),
                (dict(working_dir="/"), ()), (dict(backend="claude", tag="x"), (a,))):
            with self.subTest(filters):
                self.assertEqual([session.id for session in self.store.all(**filters)], list(ids))
        self.assertEqual(self.store.last().id, d)
        self.assertEqual(self.store.last("codex", self.home).id, b)
        self.assertIsNone(self.store.last("codex", self.tmp))

    def test_last_and_is_resumable_need_a_backend_that_continues_sessions(self):
        for backend, resumable in (("claude", True), ("echo", False), ("own", False)):
            with self.subTest(backend):
                id = self.put_fields(backend=backend, backend_session_id="x",
                                     last_used="2026-01-01T00:00:00.000Z")
                self.assertEqual(clinvk.is_resumable(self.store.load(id)), resumable)
                self.store.delete(id) if resumable else None
        self.assertIsNone(self.store.last())

    def test_parse_age_takes_hours_days_and_weeks(self):
        for text, seconds in (("12h", 43200), ("30d", 2592000), ("2w", 1209600), ("0d", 0),
                              ("1.5d", 129600)):
            self.assertEqual(clinvk.parse_age(text), seconds)
        for text in ("", "d", "5x", "5", "-1d", "1e3d", "1.2.3d", ".d", "5 d", "5D", "²d", "6m", "5d\n"):
            with self.subTest(text), self.assertRaises(ValueError) as caught:
                clinvk.parse_age(text)
            self.assertIn("12h, 30d or 2w", str(caught.exception))


class Deleting(StoreCase):
    def test_delete_removes_all_sessions_or_none(self):
        a, b, c = (self.finished().id for _ in range(3))
        self.assertIn("there is no session", self.refused(self.store.delete, a, "0" * 32))
        user = self.start_user(c)
        self.assertEqual(self.refused(self.store.delete, a, c),
                         "session %s is in use: another clinvk runs a prompt in it" % c[:8])
        self.assertEqual(len(self.store.all()), 3)
        user.kill()
        user.wait()
        self.store.delete(a, c)
        self.assertEqual([session.id for session in self.store.all()], [b])

    def test_clean_removes_old_sessions_that_are_not_in_use(self):
        old, new, used = self.put_fields(), self.finished().id, self.put_fields()
        user = self.start_user(used)
        self.put_fields(used)  # as old as the first
        self.file(os.path.join("home", "sessions", old + ".json.0123.tmp"), b"of a killed writer")
        self.assertEqual(self.store.clean(3600), [old])
        self.assertEqual(user.finish().returncode, 0)
        self.assertEqual({session.id for session in self.store.all()}, {new, used})
        self.assertEqual([name for name in os.listdir(self.sessions) if name.endswith(".tmp")], [])
        self.assertEqual(sorted(self.store.clean(0)), sorted([new, used]))


class InUse(StoreCase):
    def test_begin_session_in_use_is_refused_until_its_run_ends(self):
        id = self.finished().id
        user = self.start_user(id)
        self.assertEqual(self.store.load(id).status, "active")
        self.assertEqual(self.refused(self.store.begin, id),
                         "session %s is in use: another clinvk runs a prompt in it" % id[:8])
        self.assertEqual(user.finish().returncode, 0)
        session = self.store.load(id)
        self.assertEqual((session.status, session.turn_count), ("completed", 1))
        self.assertEqual(self.store.begin(id).status, "active")

    def test_load_session_of_a_killed_run_is_an_error_and_can_be_begun(self):
        id = self.finished().id
        user = self.start_user(id)
        user.kill()
        user.wait()
        self.assertEqual(self.fields(id)["status"], "active")
        session = self.store.load(id)
        self.assertEqual((session.status, session.error),
                         ("error", "clinvk was stopped before the end of the run"))
        self.assertEqual((self.store.all(status="active"), self.store.all(status="error")),
                         ([], [session]))
        self.assertEqual(self.start_user(id).finish().returncode, 0)

    def test_stores_share_the_lock_file_of_a_directory(self):
        id = self.finished().id
        self.store.begin(id)
        before = len(os.listdir("/dev/fd"))
        for _ in range(5):
            clinvk.SessionStore(self.sessions, self.warnings.append).all()
        self.assertEqual(len(os.listdir("/dev/fd")), before)
        shutil.rmtree(self.sessions)  # a directory that is made anew has another lock file
        id = self.finished().id
        user = self.start_user(id)
        self.assertIn("is in use", self.refused(self.store.begin, id))
        user.finish()

    def test_begin_of_many_at_once_succeeds_for_one_while_others_list(self):
        id = self.finished().id
        lookers = [self.start_script("while True: store.all()") for _ in range(2)]
        users = [self.start_script("""
            sys.stdin.read(1)
            try:
                print(store.begin(sys.argv[1]).status, flush=True)
            except clinvk.SessionError:
                print("refused", flush=True)
            sys.stdin.read()
            """, id) for _ in range(8)]
        for user in users:
            user.stdin.write(b"x")
        self.assertEqual(sorted(user.line() for user in users), [b"active"] + [b"refused"] * 7)
        for user in users + lookers:
            user.kill()
            user.wait()
        self.assertEqual(self.store.begin(id).status, "active")

    def test_processes_that_create_use_delete_and_list_at_once_lose_nothing(self):
        workers = [self.start_script("""
            for _ in range(8):
                one, two = store.create("claude"), store.create("claude")
                store.finish(one._replace(status="completed"))
                session = store.begin(one.id)
                assert store.load(one.id).status == "active"
                store.finish(session._replace(turn_count=1, status="completed"))
                store.finish(two)
                store.delete(two.id)
                store.all()
                print(one.id, flush=True)
            """) for _ in range(6)]
        ids = []
        for worker in workers:
            done = worker.finish()
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            ids += done.stdout.decode().split()
        self.assertEqual(sorted((one.id, one.turn_count) for one in self.store.all()),
                         sorted((id, 1) for id in ids))
        self.assertEqual((len(ids), self.warnings), (48, []))


class Unwritable(StoreCase):
    def test_all_where_the_lock_cannot_be_tried_shows_what_the_file_says(self):
        id = self.put_fields(status="active")
        with unittest.mock.patch.object(self.store, "_try_lock", side_effect=PermissionError):
            self.assertEqual([(one.id, one.status) for one in self.store.all()], [(id, "active")])
        self.assertEqual([(one.id, one.status) for one in self.store.all()], [(id, "error")])

    def test_all_without_a_directory_finds_nothing_and_makes_none(self):
        self.assertEqual((self.store.all(), self.store.last(), self.store.clean(0)), ([], None, []))
        self.assertFalse(os.path.exists(self.sessions))

    def test_create_where_no_directory_can_be_made_raises(self):
        self.file("home/sessions", b"a file")
        with self.assertRaises(OSError):
            self.store.create("claude")
        self.assertEqual(self.store.all(), [])
        self.assertEqual(len(self.warnings), 1)


if __name__ == "__main__":
    unittest.main()
