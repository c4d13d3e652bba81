"""What signals, a vanished reader and a killed parent do to a run of the program: everything is answered, and nothing lives on."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import unittest
from unittest import mock

from support import COMPILED, MODULES, PATIENCE, SCRIPT, Case, ForkingCase, children_of, clinvk, is_running, only_linux, process_words, processes_with, results, tasks, wait_until

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONG = "leave-group left; fork-child child; touch ready; sleep 300"


class Signals(ForkingCase):
    def start_batch(self, *arguments, prompts=("say first", LONG, "touch other; sleep 300", "say never"), **options):
        """A batch of which the first task has ended, two run and the last cannot begin (-j 2)."""
        path = self.file("batch.jsonl", tasks(*prompts))
        process = self.start("parallel", "-f", path, "-j", "2", *arguments, **options)
        self.wait_for_file(self.path("ready"))
        if len(prompts) == 4:
            self.wait_for_file(self.path("other"))
        return process

    def assert_all_stopped(self):
        for name in ("left", "child"):
            self.assert_gone(self.pid_in(self.path(name)))

    def again(self):
        for name in ("ready", "other", "left", "child"):
            os.unlink(self.path(name))

    def statuses(self, completed):
        return sorted((result["index"], result["status"]) for result in results(completed))

    def test_each_signal_stops_the_run_answers_every_task_and_ends_clinvk(self):
        for number in STOP_SIGNALS:
            with self.subTest(signal=number):
                process = self.start_batch("--jsonl")
                first = process.line()
                process.send_signal(number)
                completed = process.finish()
                completed.stdout = first + b"\n" + completed.stdout
                self.assertEqual(completed.returncode, -number)
                self.assertEqual(self.statuses(completed), [(0, "ok"), (1, "canceled"), (2, "canceled"), (3, "canceled")])
                self.assert_all_stopped()
                self.assertIn(b"4 tasks, 1 completed, 0 failed, 3 canceled", completed.stderr)
                again = b"press ^C again to kill them at once" if number == signal.SIGINT else b"the same signal again kills them"
                self.assertIn(b"stopping 2 running tasks (%s)" % again, completed.stderr)
                self.again()

    def test_sigusr1_shows_what_runs_and_ends_nothing(self):
        prompts = ("say first", "say halfway; touch ready; wait-for go", "stderr-flood 3000; touch other; wait-for go; say x", "say last")
        process = self.start_batch("--jsonl", "-q", prompts=prompts)
        lines = []
        for asked in (1, 2):
            process.send_signal(signal.SIGUSR1)
            wait_until(lambda: process.error_output().count(b" running:") == asked, process.error_output)
            lines += process.error_output().decode().splitlines()[len(lines):]
        wait_until(lambda: process.send_signal(signal.SIGUSR1) or b"  3 echo " in process.error_output()
                   and b" 2.9 KB, " in process.error_output() and b" 8 B, " in process.error_output(), process.error_output)
        self.file("go", "")
        completed = process.finish()
        self.assertEqual((completed.returncode, len(completed.stdout.splitlines())), (0, 4))
        self.assertEqual([line for line in lines if line.startswith("clinvk: ")], ["clinvk: 2 running:"] * 2)
        rows = [line for line in completed.stderr.decode().splitlines() if not line.startswith("clinvk: ")]
        for row in rows:
            self.assertRegex(row, r"^  [234] echo (\d+[ms])+, [\d.]+ K?B, quiet (\d+[ms])+  (say|stderr-flood) ")
        self.assertEqual({row.split()[0] for row in rows[:4]}, {"2", "3"})

    def test_sigusr1_shows_what_a_backend_does_last(self):
        use = {"id": "a", "content": [{"type": "tool_use", "name": "Bash", "input": {"command": "pytest -q"}}], "usage": {"input_tokens": 41210}}
        event = json.dumps({"type": "assistant", "message": use})
        process = self.start("parallel", "-q", "-f", self.file("batch", tasks("raw %s\\n;touch ready;wait-for go" % event, backend="claude")))
        self.wait_for_file(self.path("ready"))
        wait_until(lambda: process.send_signal(signal.SIGUSR1) or b"(Bash: pytest -q)" in process.error_output(), process.error_output)
        row = process.error_output().decode().splitlines()[-1]
        self.assertRegex(row, r"^  1 claude \S+, \d+ B, 41,210 tokens, quiet \S+  raw .*  \(Bash: pytest -q\)$")
        self.file("go", "")
        process.finish()

    def test_sigusr1_shows_which_backend_is_limited(self):
        process = self.start("parallel", "-q", "-f", self.file("batch", tasks("stderr Rate limit reached. Please try again in 600s;exit 1")))
        wait_until(lambda: b"its tasks wait" in process.error_output(), process.error_output)
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: b"clinvk: 0 running:\n  echo limited until " in process.error_output(), process.error_output)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.finish().returncode, -signal.SIGTERM)

    def test_sigusr1_that_reaches_a_worker_costs_nothing(self):
        process = self.start_batch("--jsonl", "-q", prompts=("touch ready; wait-for go; say x",))
        for child in children_of(process.pid):
            if "clinvk" in process_words(child) or "python" in process_words(child):
                os.kill(child, signal.SIGUSR1)
        self.file("go", "")
        self.assertEqual([line["status"] for line in results(process.finish())], ["ok"])

    def test_the_summary_comes_in_every_form(self):
        process = self.start_batch("--json")
        process.send_signal(signal.SIGTERM)
        report = json.loads(process.finish().stdout)
        self.assertEqual((report["total_tasks"], report["completed"], report["canceled"]), (4, 1, 3))
        self.again()
        process = self.start_batch()
        process.send_signal(signal.SIGTERM)
        self.assertIn(b"Total: 4 tasks, 1 completed, 0 failed, 3 canceled (", process.finish().stdout)
        self.again()
        process = self.start_batch("--quiet")
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.finish().stdout.splitlines()[1:], [b"2 canceled: stopped while running", b"1 canceled: never started (interrupted)"])

    def test_the_shell_sees_the_signal(self):
        path = self.file("batch.jsonl", tasks(LONG))
        shell = self.start_program(["sh", "-c", '"$@" & echo $!; wait $!; echo $?', "sh", sys.executable, COMPILED, "parallel",
                                    "--jsonl", "-q", "-f", path])
        pid = int(shell.line())
        self.wait_for_file(self.path("ready"))
        os.kill(pid, signal.SIGTERM)
        self.assertEqual(json.loads(shell.line())["status"], "canceled")
        self.assertEqual(shell.line(), b"143")
        shell.finish()

    def test_an_interrupt_of_the_whole_foreground_group_is_one_interrupt(self):
        process = self.start_batch("--jsonl")
        os.killpg(process.pid, signal.SIGINT)
        completed = process.finish()
        self.assertEqual(completed.returncode, -signal.SIGINT)
        self.assertEqual(len(results(completed)), 4)
        self.assertNotIn(b"Traceback", completed.stderr)

    def test_a_second_signal_does_not_wait_for_the_grace(self):
        process = self.start_batch("--jsonl", prompts=("say first",
                                                       "ignore-term; touch ready; sleep 300"))
        process.line()
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: b"stopping" in process.error_output(), "it says that it stops")
        process.send_signal(signal.SIGINT)
        completed = process.finish()
        self.assertEqual(completed.returncode, -signal.SIGTERM)
        self.assertEqual(self.statuses(completed), [(1, "canceled")])
        self.assertLess(results(completed)[0]["duration_seconds"], 300)

    def test_the_same_signal_again_at_once_is_one_signal(self):
        path = self.file("batch.jsonl", tasks("trap TERM 0 tidied; touch ready; sleep 300"))
        script = "import clinvk, signal; clinvk.ONE_SIGNAL_SECONDS = 1000; clinvk.console()"
        process = self.start_program([sys.executable, "-c", script, "parallel", "--jsonl", "-f", path], {"PYTHONPATH": MODULES})
        self.wait_for_file(self.path("ready"))
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: b"stopping" in process.error_output(), "it says that it stops")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(self.statuses(process.finish()), [(0, "canceled")])
        self.assertTrue(os.path.exists(self.path("tidied")))

    def test_stop_counts_a_signal_again_after_half_a_second_and_another_at_once(self):
        now = [100.0]
        for signals, level in (((15, 0.0), (15, 0.4)), 1), (((15, 0.0), (15, 0.6)), 2), (((15, 0.0), (2, 0.1)), 2), (
                ((15, 0.0), (15, 0.3), (15, 0.3)), 2):
            with self.subTest(signals=signals), mock.patch.object(clinvk.time, "monotonic", lambda: now[0]):
                control = clinvk.Control()
                stop = clinvk._Stop(control, clinvk.Console())
                for number, pause in signals:
                    now[0] += pause
                    stop(number)
                self.assertEqual((control.level, stop.signal_number), (level, 15))

    @only_linux
    def test_a_sigterm_to_all_processes_keeps_what_was_printed(self):
        if os.environ.get("CLINVK_START_METHOD") == "thread":
            self.skipTest("threads share the signal with clinvk")
        process = self.start_batch("--jsonl", "-q", prompts=("say first", "say begun; touch ready; sleep 300", "say never"))
        process.line()
        for pid in processes_with(self.mark):
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue  # ended already, by a signal to another
        completed = process.finish()
        self.assertEqual(completed.returncode, -signal.SIGTERM)
        answers = {result["index"]: (result["status"], result["output"]) for result in results(completed)}
        self.assertEqual(answers[1], ("canceled", "begun\n"))

    def test_a_backend_that_ignores_the_polite_signal_is_killed_after_the_grace(self):
        path = self.file("batch.jsonl", tasks("ignore-term; touch ready; sleep 300"))
        script = SCRIPT + "clinvk.run_pool.__kwdefaults__.update(grace=0.2)\nclinvk.console()"
        process = self.start_program([sys.executable, "-c", script, "parallel", "--jsonl", "-f", path])
        self.wait_for_file(self.path("ready"))
        process.send_signal(signal.SIGTERM)
        completed = process.finish()
        self.assertEqual(self.statuses(completed), [(0, "canceled")])

    def test_a_polite_backend_may_tidy_up(self):
        process = self.start_batch("--jsonl", prompts=("trap TERM 0 tidied; touch ready; sleep 300",))
        process.send_signal(signal.SIGTERM)
        completed = process.finish()
        self.assertEqual(self.statuses(completed), [(0, "canceled")])  # whatever its exit code says
        self.assertTrue(os.path.exists(self.path("tidied")))

    def test_every_task_of_a_value_that_was_read_from_a_pipe_is_answered(self):
        batch = json.dumps([{"backend": "echo", "prompt": "exit 3" if number == 0 else "say x"} for number in range(100)])
        completed = self.clinvk("parallel", "-j", "1", "--fail-fast", "--json", input=batch)
        report = json.loads(completed.stdout)
        self.assertEqual((report["total_tasks"], report["failed"], report["canceled"]), (100, 1, 99))

    def test_a_producer_without_end_is_no_reason_to_go_on_reading(self):
        completed = self.run_program(["sh", "-c", "yes \"$1\" | \"$2\" \"$3\" parallel -j 1 --fail-fast --jsonl -q", "sh",
                                      '{"backend":"echo","prompt":"exit 3"}', sys.executable, COMPILED])
        self.assertEqual(completed.returncode, 1)
        self.assertEqual([result["status"] for result in results(completed)][0], "failed")

    def test_an_ignored_sigchld_does_not_hide_the_ends_of_backends(self):
        script = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
        completed = self.run_program([sys.executable, "-c", script, sys.executable, COMPILED, "parallel", "--jsonl", "-q"],
                                     tasks("say a", "exit 3"))
        self.assertEqual(self.statuses(completed), [(0, "ok"), (1, "failed")])

    def test_a_dry_run_that_waits_for_input_ends_at_a_signal(self):
        process = self.start("parallel", "--dry-run", stdin=subprocess.PIPE)
        process.stdin.write(tasks("say a"))
        process.line()
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.finish().returncode, -signal.SIGTERM)

    def test_parallel_dry_run_whose_reader_leaves_stops_no_task(self):
        path = self.file("batch", tasks(*["say " + "a" * 60000] * 5))  # more than a pipe takes
        process = self.start("parallel", "--dry-run", "-f", path)
        process.line()
        process.stdout.close()
        self.assertEqual(process.finish().returncode, 141)
        self.assertNotIn(b"clinvk: ", process.error_output())

    def test_messages_at_the_end_that_nobody_reads_do_not_keep_it_from_ending(self):
        for number, status in ((signal.SIGTERM, 75), (signal.SIGINT, -signal.SIGINT)):
            with self.subTest(number=number):
                read, write = os.pipe()
                self.addCleanup(os.close, read)
                os.set_blocking(write, False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        os.write(write, bytes(4096))
                os.set_blocking(write, True)
                process = self.start("parallel", "--jsonl", "-q", "--results", "results-%d" % number, stdin=subprocess.PIPE, stderr=write)
                os.close(write)
                process.stdin.write(tasks("say a"))
                process.stdin.flush()
                self.assertEqual(json.loads(process.line())["output"], "a\n")
                process.send_signal(number)
                self.assertEqual(process.wait(PATIENCE), status)
                process.stdin.close()

    def test_a_reader_that_does_not_read_does_not_keep_it_from_ending(self):
        path = self.file("batch.jsonl", tasks("flood 10000000", "touch ready; sleep 300"))
        for options, status in (((), -signal.SIGTERM), (("--results", "results"), 75)):
            with self.subTest(options=options):
                process = self.start("parallel", "-j", "2", "--jsonl", "-q", "-f", path, *options)
                self.wait_for_file(self.path("ready"))
                os.read(process.stdout.fileno(), 1)  # the large line is on its way, and nobody reads on
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGTERM)
                wait_until(lambda: process.poll() is not None or process.send_signal(signal.SIGTERM), "it has ended")
                self.assertEqual(process.returncode, status)
                self.assertEqual(b"to continue: " in process.error_output(), bool(options))
                os.unlink(self.path("ready"))

    def test_a_full_pipe_on_stderr_does_not_keep_sigterm_from_ending_the_start(self):
        read, write = os.pipe()
        errors, full = os.pipe()
        os.set_blocking(full, False)
        with self.assertRaises(BlockingIOError):
            while True:
                os.write(full, bytes(1 << 12))
        os.set_blocking(full, True)
        process = subprocess.Popen([sys.executable, COMPILED, "parallel", "-q", "--results", "results"], stdin=read, stdout=subprocess.DEVNULL, stderr=full,
                                   cwd=self.directory, env=self.environment_with({}))
        self.addCleanup(process.kill)
        os.write(write, b'{"backend": "echo", ')
        wait_until(lambda: not clinvk.unread(read), "it has begun to read")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(PATIENCE), 75)
        for file in (read, write, errors, full):
            os.close(file)

    def test_an_interrupt_while_its_lines_are_read_shows_no_traceback(self):
        os.mkdir(self.path("asking"))
        head = """
import os, signal, sys
def interrupt(frame, event, argument):
    if frame.f_code.co_name == "Task":  # the body of a class
        sys.settrace(None)
        os.kill(os.getpid(), signal.SIGINT)
sys.settrace(interrupt)
"""
        by_path = self.file("run.py", head + "import runpy; runpy.run_path(%r, run_name='__main__')" % COMPILED)
        of_pip = self.file("clinvk", head + "from clinvk import console; console()")
        for path in (by_path, of_pip):
            done = self.run_program([sys.executable, path, "parallel"], env={"PYTHONPATH": MODULES})
            self.assertEqual((done.returncode, done.stderr), (-signal.SIGINT, b""))
            with open(path) as script:
                asking = self.file("asking/clinvk" if path == of_pip else "asking/run.py", script.read().replace("SIGINT", "SIGUSR1"))
            done = self.run_program([sys.executable, asking, "parallel", "--dry-run"], tasks("say a"), env={"PYTHONPATH": MODULES})
            self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_an_interrupt_after_all_is_written_is_no_error(self):
        # os._exit, the last thing that console calls, is made the moment at which it comes
        late = "import os, signal, clinvk; os._exit = lambda code: os.kill(os.getpid(), signal.SIGINT); clinvk.console()"
        done = self.run_program([sys.executable, "-c", late, "parallel", "--quiet"], tasks("say hello"), {"PYTHONPATH": MODULES})
        self.assertEqual((done.returncode, done.stderr), (-signal.SIGINT, b""))
        self.assertIn(b"1 completed", done.stdout)

    def test_a_signal_while_a_file_is_put_in_place_leaves_no_draft(self):
        script = SCRIPT + textwrap.dedent("""
            replace, number = os.replace, int(sys.argv.pop(1))
            def interrupted(*arguments, **options):
                os.kill(os.getpid(), number)
                replace(*arguments, **options)
            os.replace = interrupted
            clinvk.console()
            """)
        lines = self.file("lines", self.clinvk("parallel", "--jsonl", "-q", input=tasks("say a")).stdout)
        source, status = self.file("tasks", tasks("say a")), self.path("status")
        for number in STOP_SIGNALS:
            for words in (["report", "--html", "page", lines], ["report", "--junit", "page", lines], ["report", "--markdown", "page", lines],
                          ["-b", "echo", "say a"], ["parallel", "-q", "--status-file", status, "-f", source]):
                with self.subTest(signal=number, words=words):
                    done = self.run_program([sys.executable, "-c", script, str(int(number)), *words])
                    self.assertEqual(done.returncode, -number, done.stderr)
                    self.assertEqual([name for _, _, names in os.walk(self.directory) for name in names if name.endswith(".tmp")], [])
        self.assertFalse(os.path.exists(self.path("page")))

    def test_signals_that_were_blocked_from_the_start_are_seen(self):
        numbers = (*STOP_SIGNALS, signal.SIGUSR1)
        path = self.file("batch.jsonl", tasks("touch ready; sleep 300"))
        for number in STOP_SIGNALS:
            process = self.start("parallel", "--jsonl", "-q", "-f", path, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, numbers))
            self.wait_for_file(self.path("ready"))
            process.send_signal(signal.SIGUSR1)
            wait_until(lambda: b"1 running" in process.error_output(), "it tells what runs")
            process.send_signal(number)
            completed = process.finish()
            self.assertEqual((completed.returncode, self.statuses(completed)), (-number, [(0, "canceled")]))
            os.unlink(self.path("ready"))

    def test_signals_that_were_ignored_from_the_start_stay_so(self):
        path = self.file("batch.jsonl", tasks("touch ready; wait-for go; say done"))
        process = self.start_program(["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, COMPILED, "parallel",
                                      "--jsonl", "-q", "-f", path])
        self.wait_for_file(self.path("ready"))
        process.send_signal(signal.SIGHUP)
        open(self.path("go"), "w").close()
        completed = process.finish()
        self.assertEqual((completed.returncode, self.statuses(completed)), (0, [(0, "ok")]))

    def test_main_leaves_sigusr1_to_the_program_that_calls_it(self):
        script = ("import faulthandler, os, signal, sys\nsys.path.insert(0, %r)\nimport clinvk\nfaulthandler.register(signal.SIGUSR1, open(os.devnull, 'w'))\n"
                  "clinvk.main(['--version'])\nclinvk.main(['parallel', '--help'])\nos.kill(os.getpid(), signal.SIGUSR1)\nprint('alive')" % MODULES)
        completed = self.run_program([sys.executable, "-c", script])
        self.assertEqual((completed.returncode, completed.stdout.splitlines()[-1:]), (0, [b"alive"]), completed.stderr)

    def test_before_the_first_task_sigusr1_is_answered_and_sigterm_leaves_a_run_that_can_be_continued(self):
        for options, status in ((("--results", "results"), 75), ((), -signal.SIGTERM), (("--results", "results", "--dry-run"), -signal.SIGTERM)):
            read, write = os.pipe()
            process = self.start("parallel", "-q", *options, stdin=read)
            try:
                os.write(write, b'{"backend": "echo", ')
                wait_until(lambda: not clinvk.unread(read), "it has begun to read")
                process.send_signal(signal.SIGUSR1)
                wait_until(lambda: process.error_output() == b"clinvk: 0 running\n", process.error_output)
                process.send_signal(signal.SIGTERM)
                completed = process.finish()
            finally:
                os.close(read)
                os.close(write)
            self.assertEqual((completed.returncode, completed.stdout), (status, b""))
            words = b"to continue: the same input with: clinvk parallel -q --results results --resume\n" if status == 75 else b""
            self.assertEqual(completed.stderr.partition(b"running\n")[2].replace(("python3 %s" % COMPILED).encode(), b"clinvk"), words and b"clinvk: " + words)
        self.assertFalse(os.path.exists(self.path("results")))

    def test_between_the_plan_and_the_run_sigterm_leaves_a_run_that_can_be_continued(self):
        script = ("import os, sys, clinvk\nfirst = clinvk.%s\ndef stopped(*arguments, **named):\n    os.kill(os.getpid(), 15)\n    return first(*arguments, **named)\n"
                  "clinvk.%s = stopped\nclinvk.console()\n")
        for place, options, status in (("Overview", ("--results", "results"), 75), ("_Stop", ("--results", "results"), 75), ("Overview", (), -signal.SIGTERM),
                                       ("_conclude", ("--results", "results"), -signal.SIGTERM)):
            with self.subTest(place=place, options=options):
                process = self.run_program([sys.executable, "-c", script % (place, place), "parallel", "-q", *options], tasks("say a"), {"PYTHONPATH": MODULES})
                self.assertEqual((process.returncode, b"to continue" in process.stderr), (status, status == 75), process.stderr)

    def test_before_anything_was_started_a_signal_just_ends_it(self):
        read, write = os.pipe()
        process = self.start("parallel", "--jsonl", stdin=read)
        os.close(read)
        try:
            wait_until(lambda: self.catches_signals(process.pid), "it is up")
            process.send_signal(signal.SIGTERM)
            completed = process.finish()
        finally:
            os.close(write)
        self.assertEqual((completed.returncode, completed.stdout, completed.stderr), (-signal.SIGTERM, b"", b""))

    def catches_signals(self, pid):
        with open("/proc/%d/status" % pid) as file:
            caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt:"))
        return caught >> (signal.SIGTERM - 1) & 1

    def test_when_the_reader_goes_away_the_rest_is_stopped(self):
        process = self.start_batch("--jsonl")
        process.line()
        process.stdout.close()
        self.assertEqual(process.finish().returncode, 141)
        self.assert_all_stopped()
        self.assertIn(b"3 canceled", process.error_output())
        self.assertIn(b"1 task never started (the reader of stdout went away)\n", process.error_output())
        self.assertIn(b"clinvk: stopping 2 running tasks\n", process.error_output())

    @only_linux
    def test_when_clinvk_is_killed_nothing_lives_on_and_what_was_printed_is_whole(self):
        process = self.start_batch("--jsonl")
        process.line()
        process.kill()
        completed = process.finish()
        self.assertEqual(completed.stdout, b"")
        self.wait_until_nothing_runs()
        for name in ("left", "child"):
            pid = self.pid_in(self.path(name))
            wait_until(lambda: not is_running(pid), "it is gone")
        wait_until(lambda: not os.listdir(self.tmp), "the files are gone")

    @only_linux
    def test_killing_its_whole_group_leaves_nothing_either(self):
        process = self.start_batch("--jsonl")
        os.killpg(process.pid, signal.SIGKILL)
        process.finish()
        self.wait_until_nothing_runs()
        wait_until(lambda: not os.listdir(self.tmp), "the files are gone")

    @only_linux
    def test_a_run_inside_of_a_task_ends_with_the_worker_of_that_task(self):
        inner = self.file("inner.jsonl", tasks("leave-group left; ignore-term; touch ready; sleep 300"))
        outer = json.dumps({"outer": {"command": [sys.executable, COMPILED, "parallel", "--jsonl", "-f", inner]}})
        process = self.start("parallel", "--jsonl", "-b", "outer", "-j", "1", "--retries", "0", env={"CLINVK_BACKENDS": outer}, stdin=subprocess.PIPE)
        process.stdin.write(b'{"prompt": "x"}')
        process.stdin.close()
        self.wait_for_file(self.path("ready"))
        for child in children_of(process.pid):
            os.kill(child, signal.SIGKILL)
        self.assertEqual(self.statuses(process.finish()), [(0, "lost")])
        self.assert_gone(self.pid_in(self.path("left")))


@only_linux
class Container(Case):
    """PID 1 of a process name space of its own, as in a container."""

    def setUp(self):
        super().setUp()
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "true"]
        if not shutil.which("unshare") or subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
            self.skipTest("unshare --pid is not to be had here (it takes root)")
        self.command = command[:-1] + [sys.executable, "-W", "error", COMPILED, "parallel", "--jsonl", "-q"]

    def test_as_pid_1_it_runs_a_batch(self):
        completed = self.run_program(self.command, tasks("say a", "leave-group; say b"))
        self.assertEqual(completed.returncode, 0, completed.stderr)
        self.assertEqual(len(results(completed)), 2)

    def test_as_pid_1_a_signal_stops_it_with_the_exit_status_of_that_signal(self):
        path = self.file("batch.jsonl", tasks("touch ready; sleep 300"))
        process = self.start_program(self.command + ["-f", path])
        self.wait_for_file(self.path("ready"))
        child = wait_until(lambda: self.child_of(process.pid), "unshare has started it")
        os.kill(child, signal.SIGTERM)
        completed = process.finish()
        self.assertEqual(completed.returncode, 143)
        self.assertEqual([result["status"] for result in results(completed)], ["canceled"])

    def child_of(self, pid):
        with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
            pids = file.read().split()
        return int(pids[0]) if pids else 0


if __name__ == "__main__":
    unittest.main()
