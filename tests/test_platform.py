"""Section 3, Platform, with real processes, files, pipes and terminals.

Tests that change a process for good run a script in a process of its own.
"""
import errno
import fcntl
import os
import pickle
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import unittest
import unittest.mock

import support
from support import clinvk, is_running, wait_until


class PlatformCase(support.Case):
    def script(self, body, *args, prepare="", **options):
        """Run Python statements in a process that has imported clinvk.  Return its stdout."""
        done = self.run_program(self.script_argv(body, args, prepare), **options)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        return done.stdout.decode()

    def script_argv(self, body, args=(), prepare=""):
        head = "import errno, os, signal, sys, time\n%s\nsys.path.insert(0, %r)\nimport clinvk\n" % (prepare, support.MODULES)
        return [sys.executable, "-S", "-c", head + textwrap.dedent(body)] + list(args)

    def stop(self, *processes):
        for process in processes:
            process.kill()
            process.wait()

    def start_script(self, body, *args, **options):
        return self.start_program(self.script_argv(body, args), **options)


class Locks(PlatformCase):
    HOLD = """
        with clinvk.KernelLock(open(sys.argv[1], "a+b"), int(sys.argv[2])):
            print("held", flush=True)
            signal.pause()
        """

    def can_lock(self, path, position):
        """Return whether nobody holds the lock now."""
        with open(path, "r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, position)
                return True
            except OSError:
                return False

    def test_kernel_lock_holder_killed_is_released(self):
        path = self.path("lock")
        holder = self.start_script(self.HOLD, path, "3")
        self.assertEqual(holder.line(), b"held")
        self.assertFalse(self.can_lock(path, 3))
        waiter = self.start_script(self.HOLD, path, "3")
        os.kill(holder.pid, signal.SIGKILL)
        self.assertEqual(waiter.line(), b"held")
        self.assertFalse(self.can_lock(path, 3))
        self.stop(holder, waiter)
        self.assertTrue(self.can_lock(path, 3))

    def test_kernel_lock_other_positions_are_other_locks(self):
        path = self.path("lock")
        holder = self.start_script(self.HOLD, path, "0")
        self.assertEqual(holder.line(), b"held")
        other = self.start_script(self.HOLD, path, "1")
        self.assertEqual(other.line(), b"held")
        self.assertTrue(self.can_lock(path, 2))
        self.stop(holder, other)

    def test_kernel_lock_three_processes_exclude_each_other(self):
        counter = self.file("counter", b"0")
        body = """
            lock = clinvk.KernelLock(open(sys.argv[1], "a+b"), 0)
            for _ in range(150):
                with lock:
                    with open(sys.argv[2], "r+b", buffering=0) as file:
                        number = int(file.read())
                        file.seek(0)
                        file.write(b"%d" % (number + 1))
            """
        workers = [self.start_script(body, self.path("lock"), counter) for _ in range(3)]
        self.assertEqual([worker.finish().returncode for worker in workers], [0, 0, 0])
        with open(counter, "rb") as file:
            self.assertEqual(file.read(), b"450")

    def test_kernel_lock_held_is_seen_at_its_position_only(self):
        file = open(self.path("lock"), "a+b")
        self.addCleanup(file.close)
        lock = clinvk.KernelLock(file, 5)
        with lock:
            body = """
                import fcntl
                with open(sys.argv[1], "r+b") as file:
                    for position in (4, 5):
                        try:
                            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, position)
                            print("free", end=" ")
                        except OSError:
                            print("held", end=" ")
                """
            self.assertEqual(self.script(body, self.path("lock")), "free held ")
        self.assertTrue(self.can_lock(self.path("lock"), 5))
        self.assertTrue(lock.acquire())
        lock.release()


class Writing(PlatformCase):
    def test_write_all_slow_pipe_takes_everything(self):
        data = os.urandom(1 << 20)
        for blocking in (True, False):
            with self.subTest(blocking=blocking):
                reader, writer = os.pipe()
                os.set_blocking(writer, blocking)
                received = []

                def read():
                    while True:
                        piece = os.read(reader, 50000)
                        if not piece:
                            return
                        received.append(piece)

                thread = threading.Thread(target=read)
                thread.start()
                clinvk.write_all(writer, bytearray(data))
                os.close(writer)
                thread.join()
                os.close(reader)
                self.assertEqual(b"".join(received), data)

    def test_write_all_nothing_makes_no_write(self):
        clinvk.write_all(-1, b"")

    def test_write_all_file_limit_cuts_the_record_off(self):
        # the limit makes a real short write, and after it a failing one
        body = """
            import resource
            file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | (os.O_APPEND if sys.argv[2] == "append" else 0), 0o600)
            clinvk.write_all(file, b"first\\n")
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
            try:
                clinvk.write_all(file, b"x" * 150 + b"\\n")
            except OSError as error:
                print(error.errno == errno.EFBIG, os.fstat(file).st_size)
            clinvk.write_all(file, b"last\\n")
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            clinvk.write_all(file, b"more\\n")
            """
        for mode in ("append", "plain"):
            with self.subTest(mode):
                path = self.path("file-" + mode)
                self.assertEqual(self.script(body, path, mode), "True 6\n")
                with open(path, "rb") as file:
                    self.assertEqual(file.read(), b"first\nlast\nmore\n")

    def test_write_all_closed_pipe_and_full_device_are_errors(self):
        reader, writer = os.pipe()
        os.close(reader)
        with self.assertRaises(BrokenPipeError):
            clinvk.write_all(writer, b"x")
        os.close(writer)
        if os.path.exists("/dev/full"):
            with open("/dev/full", "wb", buffering=0) as full, self.assertRaises(OSError) as caught:
                clinvk.write_all(full.fileno(), b"x")
            self.assertEqual(caught.exception.errno, errno.ENOSPC)


class Reading(PlatformCase):
    def test_read_some_signal_that_interrupts_no_read_is_handled(self):
        # the signal goes to another thread, so that the read goes on: so does a read that a signal comes just before
        body = """
            import threading
            reader, writer = os.pipe()
            signal.signal(signal.SIGUSR1, lambda *_: os.write(writer, b"handled"))
            send = lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            threading.Timer(0.2, send).start()
            print(clinvk.read_some(reader).decode())
            """
        self.assertEqual(self.script(body), "handled\n")

    def test_read_some_of_a_pipe_that_another_process_made_non_blocking_waits(self):
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        timer = threading.Timer(0.1, os.write, (writer, b"late"))
        timer.start()
        self.assertEqual(clinvk.read_some(reader), b"late")
        timer.join()
        os.close(writer)
        self.assertEqual(clinvk.read_some(reader), b"")
        os.close(reader)


class Files(PlatformCase):
    def test_nameless_file_has_no_name_and_is_private(self):
        file = clinvk.nameless_file(self.tmp)
        self.addCleanup(os.close, file)
        self.assertEqual(os.listdir(self.tmp), [])
        self.assertEqual(stat.S_IMODE(os.fstat(file).st_mode), 0o600)
        self.assertFalse(os.get_inheritable(file))
        os.write(file, b"hello")
        self.assertEqual(os.pread(file, 10, 0), b"hello")

    def test_nameless_file_without_o_tmpfile_loses_its_name(self):
        body = """
            file = clinvk.nameless_file(sys.argv[1])
            os.write(file, b"hello")
            print(os.listdir(sys.argv[1]), oct(os.fstat(file).st_mode & 0o777), os.get_inheritable(file), os.pread(file, 10, 0))
            try:
                clinvk.give_name(file, sys.argv[1] + "/named")
            except OSError:
                print("has no name", os.listdir(sys.argv[1]))
            """
        os.mkdir(self.path("d"))
        self.assertEqual(self.script(body, self.path("d"), prepare="if hasattr(os, 'O_TMPFILE'): del os.O_TMPFILE"),
                         "[] 0o600 False b'hello'\nhas no name []\n")

    def test_nameless_file_missing_directory_is_an_error(self):
        with self.assertRaises(OSError):
            clinvk.nameless_file(self.path("nowhere"))

    @support.only_linux
    def test_give_name_of_a_nameless_file_copies_nothing(self):
        for size in (0, 5, 3 * clinvk.CHUNK + 1):
            data, path = os.urandom(size), self.path("named-%d" % size)
            file = clinvk.nameless_file(self.directory)
            clinvk.write_all(file, data)
            clinvk.give_name(file, path)
            self.assertTrue(clinvk.is_same(file, path))
            os.close(file)
            with open(path, "rb") as named:
                self.assertEqual(named.read(), data)
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)

    def test_write_whole_any_umask_makes_a_private_file(self):
        former = os.umask(0)
        self.addCleanup(os.umask, former)
        path = self.file("target", b"old")
        os.chmod(path, 0o666)
        clinvk.write_whole(path, [b"new ", b"content"])
        with open(path, "rb") as file:
            self.assertEqual(file.read(), b"new content")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        self.assertEqual(sorted(os.listdir(self.directory)), ["bin", "home", "target", "tmp"])

    def test_write_whole_draft_is_not_written_through_a_link(self):
        """Somebody who can write into the directory may guess its name."""
        path, victim = self.path("target"), self.file("victim", b"old")
        os.symlink(victim, "%s.%s.tmp" % (path, bytes(6).hex()))
        with unittest.mock.patch("os.urandom", bytes), self.assertRaises(FileExistsError):
            clinvk.write_whole(path, [b"new"])
        with open(victim, "rb") as file:
            self.assertEqual(file.read(), b"old")

    def test_write_whole_failure_keeps_the_old_file_and_no_draft(self):
        path = self.file("target", b"old")

        def pieces():
            yield b"half"
            raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt):
            clinvk.write_whole(path, pieces())
        body = """
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
            try:
                clinvk.write_whole(sys.argv[1], [b"x" * 80, b"y" * 80])
            except OSError as error:
                print(error.errno == errno.EFBIG)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            """
        self.assertEqual(self.script(body, path), "True\n")
        os.mkdir(self.path("a directory"))
        with self.assertRaises(OSError):
            clinvk.write_whole(self.path("a directory"), [b"x"])
        with self.assertRaises(OSError):
            clinvk.write_whole(self.path("nowhere", "x"), [b"x"])
        with open(path, "rb") as file:
            self.assertEqual(file.read(), b"old")
        self.assertEqual(sorted(os.listdir(self.directory)), ["a directory", "bin", "home", "target", "tmp"])

    def test_file_chunks_range_leaves_the_position(self):
        data = os.urandom(clinvk.CHUNK * 2 + 10)
        file = os.open(self.file("data", data), os.O_RDONLY)
        self.addCleanup(os.close, file)
        os.lseek(file, 7, os.SEEK_SET)
        for start, end in ((0, None), (0, 0), (5, 9), (clinvk.CHUNK - 1, clinvk.CHUNK + 1), (3, len(data) + 100), (len(data), None)):
            pieces = list(clinvk.file_chunks(file, start, end))
            self.assertEqual(b"".join(pieces), data[start:end])
            self.assertTrue(all(0 < len(piece) <= clinvk.CHUNK for piece in pieces))
        self.assertEqual(os.lseek(file, 0, os.SEEK_CUR), 7)

    def test_text_file_is_read_repeatedly_and_ends_with_its_object(self):
        data = "审查".encode() * 50000 + b"\xff\xed\xa0\x80"
        path = self.file("text", data)
        text = pickle.loads(pickle.dumps(clinvk.TextFile(path, len(data)))).take()
        self.assertFalse(os.path.exists(path))
        for _ in range(2):
            chunks = list(text)
            self.assertEqual("".join(chunks), clinvk.to_text(data))
            self.assertLessEqual(max(map(len, chunks)), clinvk.CHUNK)
            self.assertEqual(b"".join(text.pieces()), data)
        result = clinvk.Result(0, "echo", "ok", 0, text)
        self.assertEqual(result.output, clinvk.to_text(data))
        open_before = len(os.listdir("/dev/fd"))
        del text, result
        self.assertEqual(len(os.listdir("/dev/fd")), open_before - 1)

    def test_text_file_grown_keeps_its_text_and_a_cut_one_fails(self):
        path = self.file("text", b"answer late")
        text = clinvk.TextFile(path, 6).take()
        self.assertEqual((len(text), "".join(text), b"".join(text.pieces())), (6, "answer", b"answer"))
        with self.assertRaisesRegex(OSError, "text was cut by another process"):
            clinvk.TextFile(self.file("text", b"ans"), 6).take()

    def test_renew_directory_makes_it_again_or_restores_its_mode(self):
        path = self.path("private")
        os.mkdir(path, 0o700)
        for damage in (lambda: os.rmdir(path), lambda: os.chmod(path, 0), lambda: os.chmod(path, 0o777), lambda: None):
            damage()
            clinvk.renew_directory(path)
            self.assertEqual(stat.S_IMODE(os.lstat(path).st_mode), 0o700)

    def test_renew_directory_name_of_something_else_is_refused(self):
        path = self.path("private")
        with self.assertRaises(FileNotFoundError):
            clinvk.renew_directory(self.path("nowhere", "private"))
        for put in (lambda: self.file("private", b""), lambda: os.symlink(self.home, path)):
            put()
            with self.assertRaises(FileExistsError):
                clinvk.renew_directory(path)
            os.unlink(path)
        if os.geteuid() == 0:
            os.mkdir(path)
            os.chown(path, 65534, 65534)
            with self.assertRaises(FileExistsError):
                clinvk.renew_directory(path)

    def test_make_private_directory_is_private_and_removable(self):
        self.enter_environment()
        path = clinvk.make_private_directory()
        self.assertEqual(os.path.dirname(path), self.tmp)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o700)
        os.makedirs(os.path.join(path, "a", "b"))
        os.symlink(self.home, os.path.join(path, "link"))
        with open(os.path.join(path, "a", "file"), "w"):
            pass
        clinvk.remove_tree(path)
        self.assertFalse(os.path.exists(path))
        self.assertTrue(os.path.isdir(self.home), "a link is removed, not followed")
        clinvk.remove_tree(path)  # gone already: no error

    def test_remove_tree_of_a_link_removes_the_link_and_leaves_its_target(self):
        target, link = self.path("target"), self.path("link")
        os.makedirs(os.path.join(target, "sub"))
        for path in (os.path.join(target, "sub"), target):
            os.chmod(path, 0o755)
        os.symlink(target, link)
        clinvk.remove_tree(link)
        self.assertFalse(os.path.lexists(link))
        self.assertEqual([stat.S_IMODE(os.stat(path).st_mode) for path in (target, os.path.join(target, "sub"))],
                         [0o755, 0o755])

    def test_remove_tree_unchangeable_entries_are_no_error(self):
        path = self.path("tree")
        os.makedirs(os.path.join(path, "sub"))
        with unittest.mock.patch("shutil.rmtree"), unittest.mock.patch("os.chmod", side_effect=PermissionError):
            clinvk.remove_tree(path)
        self.assertTrue(os.path.isdir(path))

    def test_remove_tree_any_kind_is_removed_and_no_link_followed(self):
        os.makedirs(self.path("tree", "deep"))
        self.file("tree/deep/file", "x")
        os.makedirs(self.path("kept", "deep"))
        for name, target in (("to-tree", "kept"), ("to-file", "kept-file"), ("to-nothing", "nowhere")):
            os.symlink(target, self.path(name))
        self.file("kept-file", "x")
        self.file("file", "x")
        os.chmod(self.path("file"), 0)
        for name in ("tree", "to-tree", "to-file", "to-nothing", "file", "file", "nowhere/at/all"):
            clinvk.remove_tree(self.path(name))
            self.assertFalse(os.path.lexists(self.path(name)), name)
        self.assertEqual(sorted(os.listdir(self.directory)), ["bin", "home", "kept", "kept-file", "tmp"])
        self.assertEqual(os.listdir(self.path("kept")), ["deep"])

    def test_free_space_unknown_directory_is_0(self):
        free = clinvk.free_space(self.directory)
        self.assertGreater(free, 1 << 20)
        self.assertLessEqual(free, shutil.disk_usage(self.directory).total)
        self.assertEqual(clinvk.free_space(self.path("nowhere")), 0)

    def test_allow_descriptors_never_lowers_the_soft_limit(self):
        body = """
            import resource
            resource.setrlimit(resource.RLIMIT_NOFILE, (77, 200))
            for count in (10, 150, 100, 1000):
                clinvk.allow_descriptors(count)
                print(resource.getrlimit(resource.RLIMIT_NOFILE))
            """
        self.assertEqual(self.script(body), "(77, 200)\n(150, 200)\n(150, 200)\n(200, 200)\n")

    def test_descriptor_limit_is_the_soft_one(self):
        body = """
            import resource
            resource.setrlimit(resource.RLIMIT_NOFILE, (77, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            print(clinvk.descriptor_limit())
            """
        self.assertEqual(self.script(body), "77\n")

    def test_remove_tree_read_only_directories_are_removed(self):
        # as a package cache leaves them; root may remove anything, so not as root
        body = """
            import shutil
            directory = sys.argv[1]
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os.makedirs(directory + "/top/cache/module")
            open(directory + "/top/cache/module/file", "wb").close()
            os.chmod(directory + "/top/cache/module", 0o555)
            os.chmod(directory + "/top/cache", 0)
            clinvk.remove_tree(directory + "/top")
            print(os.path.exists(directory + "/top"), flush=True)
            """
        os.mkdir(self.path("open"))
        os.chmod(self.path("open"), 0o777)
        os.chmod(self.directory, 0o711)
        self.assertEqual(self.script(body, self.path("open")), "False\n")


    def test_directories_of_any_depth_are_made_and_removed(self):
        top, depth = self.path("top"), 2500
        os.mkdir(top)
        script = "import os\nos.chdir(%r)\nfor _ in range(%d):\n    os.mkdir('a', 0o500)\n    os.chmod('a', 0o700)\n    os.chdir('a')\nopen('file', 'w').close()\nos.chmod('.', 0o500)"
        self.run_program([sys.executable, "-c", script % (top, depth)])
        os.symlink(self.home, os.path.join(top, "link"))
        clinvk.remove_tree(top)
        self.assertFalse(os.path.lexists(top))
        self.assertTrue(os.path.isdir(self.home))
        deep = self.path("d", *["b"] * 1500)
        clinvk.make_directories(deep, 0o700)
        clinvk.make_directories(deep)
        self.assertEqual(stat.S_IMODE(os.stat(deep).st_mode), 0o700)
        self.assertNotEqual(stat.S_IMODE(os.stat(os.path.dirname(deep)).st_mode), 0o700)
        open(os.path.join(deep, "file"), "w").close()
        with self.assertRaises(NotADirectoryError):
            clinvk.make_directories(os.path.join(deep, "file", "c"))
        clinvk.remove_tree(self.path("d"))
        self.assertFalse(os.path.exists(self.path("d")))

class Starting(PlatformCase):
    """Both ways to start a program: without a working directory posix_spawn, with one subprocess."""

    def files(self, content=b""):
        """Descriptors for stdin, stdout and stderr; stdin holds `content`."""
        files = [clinvk.nameless_file(self.directory) for _ in range(3)]
        for file in files:
            self.addCleanup(os.close, file)
        os.write(files[0], content)
        os.lseek(files[0], 0, os.SEEK_SET)
        return files

    def both_ways(self):
        """No working directory, and one."""
        return None, self.place(self.home)

    def place(self, path):
        place = clinvk.open_directory(path)
        self.addCleanup(os.close, place.file)
        return place

    def start_it(self, argv, workdir, content=b"", environment=None):
        """(exit code, stdout, stderr) of a program, started to its end."""
        files = self.files(content)
        pid = clinvk.start_session(tuple(argv), self.environment if environment is None else environment, workdir, files)
        code = clinvk.code_of_status(os.waitpid(pid, 0)[1])
        return code, os.pread(files[1], 1 << 20, 0), os.pread(files[2], 1 << 20, 0)

    def test_start_session_passes_arguments_environment_and_files(self):
        self.enter_environment()
        for workdir in self.both_ways():
            code, out, err = self.start_it(("cat", "-a", "b c", ""), workdir, b"argv;env MARK;ids;cwd;stderr oops;exit 7",
                                           dict(self.environment, MARK="审查 1"))
            argv, mark, ids, cwd = out.decode().splitlines()
            self.assertEqual((code, argv, mark, err), (7, '["-a", "b c", ""]', "审查 1", b"oops\n"))
            self.assertEqual(len(set(ids.split())), 1, "its own group and session: " + ids)
            self.assertEqual(cwd, workdir.real if workdir else os.getcwd())

    def test_start_session_signal_is_a_negative_code(self):
        self.enter_environment()
        for workdir in self.both_ways():
            for name in ("KILL", "SEGV", "TERM"):
                self.assertEqual(self.start_it(("cat",), workdir, b"die " + name.encode())[0], -getattr(signal, "SIG" + name))

    def assert_fails(self, expected, argv, workdir, filenames, environment=None):
        with self.assertRaises(OSError) as caught:
            clinvk.start_session(tuple(argv), environment or self.environment, workdir, self.files())
        self.assertEqual(errno.errorcode.get(caught.exception.errno), errno.errorcode[expected])
        self.assertIn(caught.exception.filename, filenames)

    def test_start_session_unusable_program_is_named_in_the_error(self):
        self.environment["PATH"] = self.bin  # what else is on it may forbid to be searched
        self.enter_environment()
        support.write_program(os.path.join(self.bin, "lost"), b"#!/nowhere/interpreter\n")
        support.write_program(os.path.join(self.bin, "plain"), b"#!/bin/sh\n")
        os.chmod(os.path.join(self.bin, "plain"), 0o644)
        os.mkdir(os.path.join(self.bin, "folder"))
        for workdir in self.both_ways():
            self.assert_fails(errno.ENOENT, ("no-such-program",), workdir, ("no-such-program", None))
            self.assert_fails(errno.ENOENT, ("lost",), workdir, ("lost", None))
            self.assert_fails(errno.EACCES, ("plain",), workdir, ("plain", None))
            self.assert_fails(errno.EACCES, ("folder",), workdir, ("folder", None))
            self.assert_fails(errno.E2BIG, ("cat", "x" * (3 << 20)), workdir, ("cat", None))

    def test_start_session_unusable_workdir_is_named_in_the_error(self):
        for workdir, expected in ((self.path("nowhere"), errno.ENOENT), (self.file("a file", b""), errno.ENOTDIR)):
            with self.assertRaises(OSError) as caught:
                clinvk.open_directory(workdir)
            self.assertEqual((caught.exception.errno, caught.exception.filename), (expected, os.path.join(workdir, ".")))

    def test_open_directory_renamed_stays_the_same(self):
        for name in ("one", "two"):
            os.mkdir(self.path(name))
        os.symlink("one", self.path("link"))
        place = self.place(self.path("link"))
        os.unlink(self.path("link"))
        os.symlink("two", self.path("link"))
        self.assertEqual(place.real, self.path("one"))
        self.enter_environment()
        self.assertEqual(self.start_it(("cat",), place, b"cwd")[1].decode().strip(), self.path("one"))

    def test_start_session_relative_program_is_not_searched_in_the_workdir(self):
        for name in ("here", "there"):
            os.mkdir(self.path(name))
            support.write_program(self.path(name, "tool"), b"#!/bin/sh\necho %s $0\n" % name.encode())
        support.write_program(self.path("there", "other"), b"#!/bin/sh\necho wrong\n")
        support.write_program(self.path("here", "stray"), b"#!/bin/sh\necho wrong, too\n")
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.path("here"))
        for path in (".", "", ":/usr/bin", self.bin + "::"):
            self.enter_environment(PATH=path)
            place = self.place(self.path("there"))
            for program in ("./tool", "tool", "../here/tool"):
                self.assertEqual(self.start_it((program,), place), (0, b"here %s\n" % self.path("here", "tool").encode(), b""))
            self.assert_fails(errno.ENOENT, ("./other",), place, ("./other",))
            self.assert_fails(errno.ENOENT, ("other",), place, ("other",))
        self.enter_environment(PATH=self.bin)
        for workdir in (None, place):  # what is beside clinvk is not on the PATH
            self.assert_fails(errno.ENOENT, ("stray",), workdir, ("stray", None))

    def test_start_session_first_usable_program_on_the_path_starts(self):
        for name, content in (("lost", b"#!/nowhere/interpreter\n"), ("plain", b"#!/bin/sh\n"), ("good", b"#!/bin/sh\necho good\n"), ("later", b"#!/bin/sh\necho later\n")):
            os.mkdir(self.path(name))
            support.write_program(self.path(name, "tool"), content)
        os.chmod(self.path("plain", "tool"), 0o644)
        self.enter_environment(PATH=":".join(map(self.path, ("lost", "plain", "good", "later"))))
        for workdir in self.both_ways():
            self.assertEqual(self.start_it(("tool",), workdir), (0, b"good\n", b""))

    def test_start_session_closed_standard_descriptors_do_not_matter(self):
        self.assertEqual(self.script("""
            files = [os.open(name, os.O_RDWR | os.O_CREAT) for name in (os.devnull, sys.argv[1], os.devnull)]
            former = os.dup(1)
            for file in range(3):
                os.close(file)
            pid = clinvk.start_session(("pwd",), dict(os.environ), clinvk.open_directory("/"), files)
            code = clinvk.code_of_status(os.waitpid(pid, 0)[1])
            os.write(former, ("%d %s" % (code, open(sys.argv[1]).read())).encode())
            """, self.path("out")), "0 /\n")

    def test_start_session_error_leaves_no_process(self):
        before = support.children_of(os.getpid())
        with self.assertRaises(OSError):
            clinvk.start_session(("no-such-program",), self.environment, None, self.files())
        with self.assertRaises(OSError):
            clinvk.start_session(("no-such-program",), self.environment, self.place(self.home), self.files())
        self.assertEqual(support.children_of(os.getpid()), before)

    @support.only_linux
    def test_start_session_resets_signals_that_python_ignores(self):
        for workdir in self.both_ways():
            code, out, _ = self.start_it(("grep", "SigIgn", "/proc/self/status"), workdir)
            ignored = int(out.split()[1], 16)
            for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
                self.assertFalse(ignored >> (number - 1) & 1, "%d is ignored" % number)

    def test_start_session_passes_no_descriptor_but_three(self):
        body = """
            clinvk.close_on_exec_inherited()
            for workdir in (None, clinvk.open_directory("/")):
                files = [os.open("/dev/null", os.O_RDONLY)] + [clinvk.nameless_file(sys.argv[1]) for _ in range(2)]
                pid = clinvk.start_session((sys.executable, "-IS", "-c", '''
            import os
            for file in range(64):
                try:
                    os.fstat(file)
                    print(file, end=" ")
                except OSError:
                    pass'''.replace("            ", "")), dict(os.environ), workdir, files)
                code = clinvk.code_of_status(os.waitpid(pid, 0)[1])
                print(code, os.pread(files[1], 100, 0).decode())
            print(os.get_inheritable(int(sys.argv[2])))
            """
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        self.assertEqual(self.script(body, self.directory, str(writer), pass_fds=(reader, writer)), "0 0 1 2 \n0 0 1 2 \nFalse\n")

    def test_start_session_without_setsid_uses_popen(self):
        body = """
            def refuse(*args, **options):
                raise NotImplementedError("setsid")
            os.posix_spawnp = refuse
            files = [os.open("/dev/null", os.O_RDONLY)] + [clinvk.nameless_file(sys.argv[1]) for _ in range(2)]
            pid = clinvk.start_session(("sh", "-c", "exit 5"), dict(os.environ), None, files)
            print(os.getsid(pid) == pid, clinvk.code_of_status(os.waitpid(pid, 0)[1]))
            """
        self.assertEqual(self.script(body, self.directory), "True 5\n")

    def test_wait_for_end_does_not_reap(self):
        files = self.files()
        pid = clinvk.start_session(("sh", "-c", "exit 3"), self.environment, None, files)
        clinvk.wait_for_end(pid)
        os.kill(pid, 0)  # a zombie: its pid is nobody else's
        self.assertEqual(clinvk.code_of_status(os.waitpid(pid, 0)[1]), 3)


class Finding(PlatformCase):
    """A program that is looked for, without starting it."""

    def setUp(self):
        super().setUp()
        for name in ("one", "two"):
            os.mkdir(self.path(name))
        support.write_program(self.path("two", "tool"), b"#!/bin/sh\n")
        self.enter_environment(PATH=self.path("one") + ":" + self.path("two"))

    def test_find_program_first_executable_on_the_path(self):
        self.assertEqual(clinvk.find_program("tool"), (self.path("two", "tool"), ""))
        os.mkdir(self.path("one", "tool"))
        self.assertEqual(clinvk.find_program("tool"), (self.path("two", "tool"), ""), "a directory is no program")
        os.rmdir(self.path("one", "tool"))
        self.file("one/tool", "")
        self.assertEqual(clinvk.find_program("tool"), (self.path("two", "tool"), ""), "nor is a file that cannot be executed")
        support.write_program(self.path("one", "tool"), b"#!/bin/sh\n")
        self.assertEqual(clinvk.find_program("tool"), (self.path("one", "tool"), ""))

    def test_find_program_unusable_name_has_a_reason(self):
        self.assertEqual(clinvk.find_program("missing"), ("", "not found on the PATH"))
        self.file("two/plain", "")
        self.assertEqual(clinvk.find_program("plain"), (self.path("two", "plain"), "cannot be executed"))
        self.assertEqual(clinvk.find_program(self.path("two", "plain")), (self.path("two", "plain"), "cannot be executed"))
        os.mkdir(self.path("two", "directory"))
        self.assertEqual(clinvk.find_program("directory"), ("", "not found on the PATH"))
        self.assertEqual(clinvk.find_program(self.path("nowhere", "tool"))[0], "")

    def test_find_program_path_becomes_absolute(self):
        self.assertEqual(clinvk.find_program(self.path("two", "tool")), (self.path("two", "tool"), ""))
        body = "print(clinvk.find_program('two/tool'), clinvk.find_program('tool'))"
        self.assertEqual(self.script(body, env={"PATH": "two"}), "%r %r\n" % (((self.path("two", "tool"), ""),) * 2))


class Ending(PlatformCase):
    def test_process_exists_until_it_is_reaped(self):
        process = self.start_program(["sleep", "300"])
        self.assertTrue(clinvk.process_exists(process.pid))
        self.assertTrue(clinvk.process_exists(1), "also one of another user")
        self.stop(process)
        self.assertFalse(clinvk.process_exists(process.pid))

    def test_send_signal_reaches_a_group_and_reports_a_missing_one(self):
        process = self.start_program(["sleep", "300"])
        self.assertTrue(clinvk.send_signal(process.pid, 0))
        self.assertTrue(clinvk.send_signal(process.pid, signal.SIGTERM))
        self.assertEqual(process.wait(), -signal.SIGTERM)
        self.assertFalse(clinvk.send_signal(process.pid, signal.SIGTERM))

    @support.only_linux
    def test_marked_processes_in_other_sessions_are_found(self):
        other = "OTHER_MARK_%d" % os.getpid()  # other runs of this test have marks of their own
        both = self.start_program(["sleep", "300"], env={other: "1"})
        one = self.start_program(["sleep", "300"])
        large = self.start_program(["sleep", "300"], env={"A_LARGE_ONE": "x" * 100000})
        near = self.start_program(["sleep", "300"], env={"CLINVK_TEST_MARK": self.mark.partition("=")[2] + "0"})
        wait_until(lambda: sorted(clinvk.marked_processes(self.mark)) == sorted([both.pid, one.pid, large.pid]), "three are found")
        for mark in (other, other + "=1"):
            self.assertEqual(clinvk.marked_processes(mark), [both.pid])
        for mark in (other[:-1], other + "=", other + "=11", other[1:], other[1:] + "=1"):
            self.assertEqual(clinvk.marked_processes(mark), [])
        clinvk.sweep(other)
        self.assertEqual(both.wait(), -signal.SIGKILL)
        self.assertTrue(is_running(one.pid) and is_running(large.pid) and is_running(near.pid))
        clinvk.sweep(self.mark)
        self.assertEqual((one.wait(), large.wait()), (-signal.SIGKILL, -signal.SIGKILL))
        self.stop(near)

    @support.only_linux
    def test_sweep_ends_processes_that_fork_and_leave_their_session(self):
        for number in range(3):
            process = self.start_program([os.path.join(self.bin, "cat")], stdin=subprocess.PIPE)
            process.stdin.write(b"ignore TERM INT HUP;leave-group %s;fork-child %s;sleep 300" % (
                self.path("left-%d" % number).encode(), self.path("child-%d" % number).encode()))
            process.stdin.close()
        pids = [self.pid_in(self.path("%s-%d" % (kind, number))) for number in range(3) for kind in ("left", "child")]
        clinvk.sweep(self.mark)
        for pid in pids:
            self.assert_gone(pid)
        self.assertEqual(support.processes_with(self.mark), [])

    @support.only_linux
    def test_sweep_spares_its_own_process(self):
        body = """
            clinvk.sweep("CLINVK_TEST_MARK=" + os.environ["CLINVK_TEST_MARK"])
            print("alive")
            """
        self.assertEqual(self.script(body), "alive\n")

    GUARDED = """
            reader, writer = os.pipe()
            mark = "GUARDED_MARK_%d" % os.getpid()  # other runs of this test have marks of their own
            guard = clinvk.start_guard(reader, mark, sys.argv[1])
            os.close(reader)
            marked = subprocess.Popen(["sleep", "300"], env=dict(os.environ, **{mark: "0"}))
            other = subprocess.Popen(["sleep", "300"], env=dict(os.environ, OTHER_MARK=mark))
            """

    @support.only_linux
    def test_start_guard_at_the_end_of_its_pipe_kills_the_run_and_removes_its_directory(self):
        body = self.GUARDED + """
            while True:  # until the shell ignores signals
                with open("/proc/%d/status" % guard) as file:
                    if int(file.read().split("SigIgn:")[1].split()[0], 16) >> signal.SIGTERM - 1 & 1:
                        break
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.killpg(guard, number)
            os.close(writer)
            os.waitpid(guard, 0)
            print(marked.wait(), other.poll(), os.path.exists(sys.argv[1]))
            other.kill()
            other.wait()
            """
        os.mkdir(self.path("tools"))  # of the user, for other ends
        for name in ("cat", "chmod", "grep", "rm"):
            support.write_program(self.path("tools", name), b"#!/bin/sh\nsleep 300\n")
        for path in (os.environ["PATH"], self.path("tools") + os.pathsep + os.environ["PATH"]):
            os.makedirs(self.path("run", "read only"))
            os.chmod(self.path("run", "read only"), 0o500)
            self.environment["PATH"] = path
            self.assertEqual(self.script(body, self.path("run"), prepare="import subprocess"), "-9 None False\n")

    @support.only_linux
    def test_start_guard_without_grep_kills_the_run(self):
        """Images with a shell and coreutils alone have none."""
        body = self.GUARDED + """
            os.close(writer)
            os.waitpid(guard, 0)
            print(marked.wait(), other.poll(), os.path.exists(sys.argv[1]))
            other.kill()
            other.wait()
            """
        os.mkdir(self.path("few"))
        for name in ("cat", "chmod", "rm"):
            os.symlink(shutil.which(name, path=os.defpath), self.path("few", name))
        os.mkdir(self.path("run"))
        prepare = "import subprocess\nos.defpath = %r\nos.environ['PATH'] = os.defpath" % self.path("few")
        body = body.replace('["sleep"', '[%r' % shutil.which("sleep"))
        self.assertEqual(self.script(body, self.path("run"), prepare=prepare), "-9 None False\n")

    @support.only_linux
    def test_start_guard_inherits_nothing_that_changes_its_shell_or_tools(self):
        body = """
            reader, writer = os.pipe()
            guard = clinvk.start_guard(reader, "GUARDED_MARK", "/nonexistent/clinvk-0")
            text = ""
            while not text:  # until it has an environment
                with open("/proc/%d/environ" % guard) as file:
                    text = file.read()
            names = {pair.partition("=")[0] for pair in text.split("\\0")}
            os.write(writer, b"\\n")
            os.waitpid(guard, 0)
            print(sorted(names & set(sys.argv[1:])))
            """
        changes = {"SHELLOPTS": "noglob", "GREP_OPTIONS": "--color=always", "BASH_FUNC_grep%%": "() { :; }", "KEPT": "1"}
        self.environment.update(changes)
        self.assertEqual(self.script(body, *changes), "['KEPT']\n")

    @support.only_linux
    def test_start_guard_after_a_newline_kills_nothing(self):
        body = self.GUARDED + """
            os.write(writer, b"\\n")
            os.waitpid(guard, 0)
            print(marked.poll(), os.path.exists(sys.argv[1]))
            for process in (marked, other):
                process.kill()
                process.wait()
            """
        os.mkdir(self.path("run"))
        self.assertEqual(self.script(body, self.path("run"), prepare="import subprocess"), "None True\n")

    @support.only_linux
    def test_start_guard_has_another_name_than_clinvk_and_another_parent(self):
        body = """
            reader, writer = os.pipe()
            guard = clinvk.start_guard(reader, "GUARDED_MARK_%d" % os.getpid(), "/nonexistent/clinvk-0")
            os.close(reader)
            children = lambda pid: [int(word) for word in open("/proc/%d/task/%d/children" % (pid, pid)).read().split()]
            while not children(guard):
                pass
            print(children(os.getpid()) == [guard])
            for pid in [guard] + children(guard):
                for name in ("comm", "cmdline"):
                    print("clinvk" in open("/proc/%d/%s" % (pid, name)).read(), "python" in open("/proc/%d/%s" % (pid, name)).read())
            os.close(writer)
            os.waitpid(guard, 0)
            """
        self.assertEqual(self.script(body), "True\n" + 4 * "False False\n")

    @support.only_linux
    def test_end_children_ends_orphans_in_any_session(self):
        body = """
            print(clinvk.adopt_orphans())
            null = os.open(os.devnull, os.O_RDWR)
            prompt = clinvk.nameless_file(sys.argv[1])
            os.write(prompt, "".join("%s %s/%s;" % (word, sys.argv[1], word) for word in ("leave-group", "fork-child", "scrub")).encode())
            os.lseek(prompt, 0, os.SEEK_SET)
            backend = clinvk.start_session(("cat",), dict(os.environ), None, (prompt, null, null))
            clinvk.wait_for_end(backend)
            pids = [int(open(sys.argv[1] + "/" + word).read()) for word in ("leave-group", "fork-child", "scrub")]
            for pid in pids:
                os.kill(pid, 0)
            stubborn = clinvk.start_session(("sh", "-c", "trap '' TERM INT; kill -STOP $$"), dict(os.environ), None, (null, null, null))
            print(clinvk.end_children())
            for pid in pids + [backend, stubborn]:
                try:
                    os.kill(pid, 0)
                    print("left", pid)
                except ProcessLookupError:
                    pass
            print(clinvk.end_children())
            """
        os.mkdir(self.path("d"))
        self.assertEqual(self.script(body, self.path("d")), "True\nTrue\nTrue\n")

    @support.only_linux
    def test_end_children_many_at_once_all_end(self):
        body = """
            clinvk.adopt_orphans()
            null = os.open(os.devnull, os.O_RDWR)
            for _ in range(20):
                clinvk.start_session(("sh", "-c", "sleep 300 & sleep 300 & sleep 300 & wait"), dict(os.environ), None, (null, null, null))
            print(clinvk.end_children(), clinvk._children())
            """
        self.assertEqual(self.script(body), "True []\n")

    @unittest.skipUnless(support.LINUX and os.geteuid() == 0, "only root can become somebody else")
    def test_end_children_leaves_a_child_of_another_user(self):
        # as one that called sudo
        body = """
            reader, writer = os.pipe()
            other = os.fork()
            if not other:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            os.setresuid(65534, 65534, 65534)
            print(clinvk.end_children())
            os.close(writer)
            os.waitpid(other, 0)
            print(clinvk.end_children(), flush=True)
            """
        self.assertEqual(self.script(body), "False\nTrue\n")

    def test_end_children_without_children_returns_true(self):
        self.assertEqual(self.script("print(clinvk.end_children())"), "True\n")


class Elsewhere(PlatformCase):
    """The definitions for systems that have no /proc, taken here by a process that believes to be on one."""

    PREPARE = "sys.platform = 'darwin'"

    def test_elsewhere_nothing_is_found_and_nothing_fails(self):
        body = """
            print(clinvk.finds_strays(), clinvk.marked_processes("PATH=x"), clinvk.adopt_orphans(), clinvk.default_start_method())
            clinvk.sweep("HOME=" + os.environ["HOME"])
            """
        self.assertEqual(self.script(body, prepare=self.PREPARE), "False [] False spawn\n")

    def test_elsewhere_task_runs_and_its_group_ends(self):
        body = """
            result = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "say hello;fork-child " + sys.argv[1])))
            print(result.status, result.exit_code, result.output, end="")
            """
        self.assertEqual(self.script(body, self.path("pid"), prepare=self.PREPARE), "ok 0 hello\n")
        pid = self.pid_in(self.path("pid"))
        wait_until(lambda: not is_running(pid), "the child of the backend is gone")

    def test_elsewhere_task_runs_without_waitid(self):
        body = """
            for prompt in ("say hello", "exit 3", "die KILL"):
                result = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", prompt)))
                print(result.status, result.exit_code)
            slow = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "sleep 300", timeout=0.3)))
            print(slow.status, slow.exit_code)
            """
        self.assertEqual(self.script(body, prepare=self.PREPARE + "; del os.waitid"), "ok 0\nfailed 3\nfailed 137\ntimeout 124\n")


class Spawned(PlatformCase):
    def test_spawned_worker_imports_nothing_from_the_current_directory(self):
        """Neither by a worker, nor by the tracker that multiprocessing starts beside it; nor in a second run."""
        os.mkdir(self.path("here"))
        for name in ("multiprocessing", "signal", "selectors", "struct"):
            self.file(os.path.join("here", name + ".py"), "open(%r, 'w')" % self.path("imported"))
        program = self.file("program.py", textwrap.dedent("""
            import sys
            sys.path.insert(0, %r)
            import clinvk
            if __name__ == "__main__":
                tasks = [clinvk.Task("echo", prompt) for prompt in ["say a", "say b"]]
                for _ in range(2):
                    for result in clinvk.run_pool(tasks, jobs=1, start_method="spawn"):
                        print(result.status)
            """ % support.MODULES))
        done = self.run_program([sys.executable, "-W", "error", program], cwd=self.path("here"))
        self.assertEqual((done.stdout, done.stderr), (b"ok\n" * 4, b""))
        self.assertFalse(os.path.exists(self.path("imported")))


class WithoutProc(PlatformCase):
    """A chroot or container in which nobody has mounted /proc (and so no /dev/fd works)."""

    PREPARE = """
real_listdir = os.listdir
def listdir(path="."):
    if str(path).startswith(("/proc", "/dev/fd")):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
    return real_listdir(path)
os.listdir = listdir
"""

    def test_without_proc_descriptors_are_close_on_exec(self):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        body = """
            clinvk.close_on_exec_inherited()
            print(os.get_inheritable(int(sys.argv[1])), os.get_inheritable(1))
            """
        self.assertEqual(self.script(body, str(writer), prepare=self.PREPARE, pass_fds=(reader, writer)), "False True\n")

    def test_without_proc_task_runs(self):
        body = """
            for prompt in ("say hello", "flood 3000", "sleep 300"):
                result = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", prompt, timeout=0.3 if "sleep" in prompt else 0.0)))
                print(result.status, len(result.output))
            print(clinvk.finds_strays(), clinvk.marked_processes("HOME=" + os.environ["HOME"]), clinvk.end_children())
            """
        self.assertEqual(self.script(body, prepare=self.PREPARE), "ok 6\nok 3000\ntimeout 0\nFalse [] True\n")


class WithoutDevNull(PlatformCase):
    """A chroot without devices, or one whose /dev/null this user may not open."""

    def test_without_dev_null_tasks_run_and_streams_may_be_closed(self):
        body = "clinvk.main(['parallel', '--prompt', 'say {}', '--jsonl', '-q', '--results', sys.argv[1], '--', 'a', 'b'])"
        argv = self.script_argv(body, [self.path("results")], prepare="os.devnull = '/nonexistent/null'")
        for closed, status in (("", "ok"), ("<&-", "ok"), ("<&- >&- 2>&-", "")):  # no stdout stops the run
            with self.subTest(closed):
                self.run_program(["sh", "-c", 'exec "$@" ' + closed, "sh"] + argv)
                with open(self.path("results")) as file:
                    self.assertEqual(file.read().count('"status":"' + status), 2)
                os.unlink(self.path("results"))


class Signals(PlatformCase):
    def test_die_at_once_ends_the_process_by_the_signal(self):
        done = self.run_program(self.script_argv("clinvk.die_at_once(signal.SIGTERM)\nprint('alive')"))
        self.assertEqual((done.returncode, done.stdout), (-signal.SIGTERM, b""))

    def test_reset_sigchld_ignored_by_the_parent_children_are_waited_for(self):
        body = """
            print(signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN)
            clinvk.reset_sigchld()
            result = clinvk.run_job(clinvk.Job(0, clinvk.Task("echo", "say x;exit 3")))
            print(result.exit_code, result.output, end="")
            """
        ignoring = "import os, signal, sys\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nos.execv(sys.argv[1], sys.argv[1:])"
        done = self.run_program([sys.executable, "-c", ignoring] + self.script_argv(body))
        self.assertEqual((done.returncode, done.stderr, done.stdout), (0, b"", b"True\n3 x\n"))

    REACT = """
        if sys.argv[1] != "-":
            signal.signal(getattr(signal, sys.argv[1]), signal.SIG_IGN)
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        caught = []
        with clinvk.on_signals(caught.append):
            print("ready", flush=True)
            while signal.SIGTERM not in caught:
                time.sleep(0.005)
        after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        print([int(number) for number in caught], before == after)
        """

    def caught(self, ignored, *numbers):
        process = self.start_script(self.REACT, ignored)
        self.assertEqual(process.line(), b"ready")
        for number in numbers:
            os.kill(process.pid, number)
        done = process.finish()
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        return done.stdout.decode().strip()

    def test_on_signals_call_react_and_are_restored(self):
        # sent at once, they are told in the order of their numbers
        self.assertEqual(self.caught("-", signal.SIGHUP, signal.SIGINT, signal.SIGTERM), "[1, 2, 15] True")

    def test_on_signals_ignored_one_stays_ignored(self):
        self.assertEqual(self.caught("SIGHUP", signal.SIGHUP, signal.SIGTERM), "[15] True")
        self.assertEqual(self.caught("SIGINT", signal.SIGINT, signal.SIGTERM), "[15] True")

    def test_on_signals_in_another_thread_change_nothing(self):
        body = """
            import threading
            def inside():
                before = signal.getsignal(signal.SIGTERM)
                with clinvk.on_signals(print):
                    print(signal.getsignal(signal.SIGTERM) is before)
            thread = threading.Thread(target=inside)
            thread.start()
            thread.join()
            """
        self.assertEqual(self.script(body), "True\n")

    def test_die_of_ends_the_process_by_the_signal(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            done = self.run_program(self.script_argv("signal.signal(int(sys.argv[1]), print)\nclinvk.die_of(int(sys.argv[1]))\ntime.sleep(60)", [str(int(number))]))
            self.assertEqual((done.returncode, done.stdout, done.stderr), (-number, b"", b""))


class Streams(PlatformCase):
    SHOW = """
        clinvk.open_standard_streams()
        with open(sys.argv[1], "w") as report:
            for file in (0, 1, 2):
                os.fstat(file)
            for file, act in ((0, lambda: os.read(0, 1)), (1, lambda: os.write(1, b"x")), (2, lambda: os.write(2, b"x"))):
                try:
                    act()
                    print(file, "works", file=report)
                except OSError as error:
                    print(file, error.strerror, file=report)
            print(report.fileno() > 2, file=report)
        """

    def test_open_standard_streams_closed_stdout_cannot_be_written(self):
        bad = os.strerror(errno.EBADF)
        for closed, expected in (("<&-", "works works works"), (">&-", "works %s works" % bad),
                                 ("2>&-", "works works works"),
                                 ("<&- >&- 2>&-", "works %s works" % bad)):
            with self.subTest(closed):
                report = self.path("report")
                argv = self.script_argv(self.SHOW, [report])
                self.run_program(["sh", "-c", 'exec "$@" ' + closed, "sh"] + argv)
                with open(report) as file:
                    lines = file.read().splitlines()
                self.assertEqual([line.partition(" ")[2] for line in lines[:3]],
                                 [word.replace("_", " ") for word in expected.replace(bad, bad.replace(" ", "_")).split()])
                self.assertEqual(lines[3], "True")

    def test_terminal_columns_those_of_the_terminal_or_80(self):
        master, slave = os.openpty()
        reader, writer = os.pipe()
        for file in (master, slave, reader, writer):
            self.addCleanup(os.close, file)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 133, 0, 0))
        self.assertEqual(clinvk.terminal_columns(slave), 133)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
        self.assertEqual(clinvk.terminal_columns(slave), 80, "a terminal that does not know its width")
        self.assertEqual(clinvk.terminal_columns(writer), 80)
        self.assertEqual(clinvk.terminal_columns(9999), 80, "a closed file")

    def test_reader_is_gone_closed_reader_is_seen(self):
        reader, writer = os.pipe()
        self.assertFalse(clinvk.reader_is_gone(writer))
        os.close(reader)
        self.assertTrue(clinvk.reader_is_gone(writer))
        os.close(writer)
        one, other = socket.socketpair()
        self.assertFalse(clinvk.reader_is_gone(one.fileno()))
        other.close()
        self.assertTrue(clinvk.reader_is_gone(one.fileno()))
        one.close()
        with open(self.path("file"), "wb") as file:
            self.assertFalse(clinvk.reader_is_gone(file.fileno()))
        with open(os.devnull, "wb") as file:
            self.assertFalse(clinvk.reader_is_gone(file.fileno()))

    def test_reader_is_gone_full_pipe_is_not(self):
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        try:
            while True:
                os.write(writer, bytes(4096))
        except BlockingIOError:
            pass
        self.assertFalse(clinvk.reader_is_gone(writer))
        os.close(reader)
        self.assertTrue(clinvk.reader_is_gone(writer))
        os.close(writer)


if __name__ == "__main__":
    unittest.main()
