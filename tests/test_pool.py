"""Section 9, Pool: run_pool used as a library, in processes of its own, under each start method.

The contract: one Result for each task, whatever dies; nothing left when the generator is closed or exhausted.  Each case
is a small script that imports clinvk, run as a program so that signals and kills hit nobody else.
"""
import errno
import json
import os
import signal
import sys
import textwrap
import unittest

from support import clinvk, MODULES, PROCESS_METHODS, START_METHODS, ForkingCase, children_of, is_running, only_linux, run_script, wait_until

HEAD = """
import json, os, signal, sys, threading, time
sys.path.insert(0, %r)
import clinvk
from clinvk import END, NOT_READY, Control, Job, Pool, Supply, Task, run_pool

# Looks come five times as often, here and in spawned workers, and as many more of them condemn a pool.
clinvk.TICK_SECONDS, clinvk.WATCH_SECONDS, clinvk.STALL_TICKS, clinvk.START_TICKS = 0.05, 0.1, 100, 1200
Pool.wait.__defaults__ = clinvk.TICK_SECONDS,

def echo(*prompts):
    return [Job(index, Task("echo", prompt)) for index, prompt in enumerate(prompts)]

def say(*words):
    print(*words, flush=True)

def tell(result):
    say(json.dumps([result.index, result.status, result.exit_code, result.output, result.error]))

def worker_of(path):
    with open(path) as file:
        backend = file.read().split()[0]
    with open("/proc/" + backend + "/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])

METHOD = sys.argv[1]
if __name__ == "__main__":
""" % MODULES


class Pool(ForkingCase):
    def forked(self, argv):
        if argv[:3] != [sys.executable, "-W", "error"]:
            return super().forked(argv)

        with open(argv[3]) as file:
            script = file.read()
        return argv[3:], lambda: run_script(script, argv[3])

    def script(self, body, name="script.py"):
        return self.file(name, HEAD + textwrap.indent(textwrap.dedent(body), "    "))

    def run_script(self, method, body, *args, **options):
        completed = self.run_program([sys.executable, "-W", "error", self.script(body), method, *args], **options)
        self.assertEqual(completed.stderr, b"", method)
        self.assertEqual(completed.returncode, 0, method)
        return [json.loads(line) for line in completed.stdout.splitlines()]

    def start_script(self, method, body):
        return self.start_program([sys.executable, "-W", "error", self.script(body), method])

    def each(self, methods, body):
        for method in methods:
            with self.subTest(method=method):
                yield method, self.run_script(method, body)


class Contract(Pool):
    def test_every_task_is_answered_once_and_its_text_comes_back(self):
        for _, lines in self.each(START_METHODS, """
            for result in run_pool(echo(*["say %d" % n for n in range(12)]), jobs=3, start_method=METHOD):
                tell(result)
            """):
            self.assertEqual(sorted(line[0] for line in lines), list(range(12)))
            self.assertEqual({(index, text) for index, _, _, text, _ in lines}, {(n, "%d\n" % n) for n in range(12)})

    def test_one_job_runs_tasks_in_order_and_the_next_can_be_made_from_the_last_result(self):
        for _, lines in self.each(START_METHODS, """
            answers = []
            def chain():
                for index in range(4):
                    yield Job(index, Task("echo", "say %s" % (answers[-1].strip() + "x" if answers else "a")))
            for result in run_pool(chain(), jobs=1, start_method=METHOD):
                answers.append(result.output)
                tell(result)
            """):
            self.assertEqual([line[3] for line in lines], ["a\n", "ax\n", "axx\n", "axxx\n"])

    def test_pool_of_an_impossible_number_of_jobs_is_refused(self):
        for jobs in (0, 1001, "3", 2.5):
            with self.assertRaisesRegex(ValueError, "^jobs: expected (at most 1000|a whole number)"):
                next(clinvk.run_pool([clinvk.Task("echo", "p")], jobs))

    def test_pool_answers_a_task_with_an_invalid_field(self):
        good = clinvk.Task("echo", "p", timeout="15m", tags=("a",), check=("true",))
        bad = [(clinvk.Task("claude", "p", sandbox_mode="read_only"), 'sandbox_mode: unknown sandbox mode "read_only" (did you mean "read-only"?); known are '),
               (clinvk.Task("nosuch", "p"), 'backend: unknown backend "nosuch"; known are '),
               (clinvk.Task("echo", 5), "prompt: expected "), (clinvk.Task("echo", ""), "prompt: "), (clinvk.Task("echo", "p", timeout="soon"), "timeout: ")]
        found = sorted(clinvk.run_pool([task for task, _ in bad] + [good], 2))
        self.assertEqual((found.pop().status, len(found)), ("ok", 5))
        for result, (_, error) in zip(found, bad):
            self.assertEqual((result.status, result.error_kind, result.error[:len(error)]), ("failed", "invalid", error))

    def test_pool_shows_what_runs_and_stops_what_stalls(self):
        for _, lines in self.each(START_METHODS, """
            pool = Pool(2, METHOD)
            pool.start(Job(4, Task("echo", "say hello;stderr hello;wait-for go")))
            pool.start(Job(7, Task("echo", "say x;sleep 300", idle_timeout=0.3)))
            seen = []
            while not [one for one in seen if one.size == 12 and one.quiet > 0.3]:
                for result in pool.wait():
                    say(json.dumps([result.index, result.status, result.error_kind]))
                seen = pool.running()
            one, = [one for one in seen if one.size == 12]
            say(json.dumps([one.job.index, one.job.task.backend, one.seconds >= one.quiet > 0.3]))
            while [one for one in pool.running() if one.job.index == 7]:
                for result in pool.wait():
                    say(json.dumps([result.index, result.status, result.error_kind]))
            open("go", "w").close()
            while len(pool):
                for result in pool.wait():
                    say(json.dumps([result.index, result.status, result.error_kind]))
            say(json.dumps(pool.running()))
            pool.close()
            os.unlink("go")
            """):
            self.assertEqual(sorted(lines[:-1], key=str), [[4, "echo", True], [4, "ok", ""], [7, "timeout", "stalled"]])
            self.assertEqual(lines[-1], [])

    def test_pool_shows_what_a_program_did_last_and_its_tokens(self):
        def event(text, key, tokens):
            message = {"id": key, "content": [{"type": "text", "text": text}], "usage": {"output_tokens": tokens}}
            return json.dumps(json.dumps({"type": "assistant", "message": message}))[1:-1].replace(";", "\\x3b")

        prompt = "raw %s\\n;wait-for first;raw %s\\n;wait-for second" % (event("looking; \u5ba1" * 9, "a", 41000), event("done", "b", 7))
        for _, lines in self.each(START_METHODS, """
            pool = Pool(1, METHOD)
            pool.start(Job(0, Task("claude", %r)))
            seen = []
            for name in ("first", "second"):
                while not [one for one in pool.running() if one.action and one.action not in seen]:
                    pool.wait()
                one, = pool.running()
                seen.append(one.action)
                say(json.dumps([one.action, one.tokens]))
                open(name, "w").close()
            while len(pool):
                pool.wait()
            pool.start(Job(1, Task("claude", "touch third; wait-for fourth")))
            while not os.path.exists("third"):
                pool.wait()
            say(json.dumps([[one.action, one.tokens] for one in pool.running()]))
            open("fourth", "w").close()
            while len(pool):
                pool.wait()
            pool.close()
            for name in ("first", "second", "third", "fourth"):
                os.unlink(name)
            """ % prompt):
            self.assertEqual(lines, [["looking; \u5ba1" * 5 + "lo...", 41000], ["done", 41007], [["", 0]]])

    def test_pool_shows_the_check_that_runs_as_a_part_of_its_task(self):
        events = {"type": "assistant", "message": {"id": "a", "content": [], "usage": {"output_tokens": 7}}}, {
            "type": "result", "subtype": "success", "is_error": False, "result": "done"}
        prompt = "".join("raw %s\\n;wait-for go;" % json.dumps(event) for event in events)
        for _, lines in self.each(START_METHODS, """
            pool = Pool(1, METHOD)
            check = "until [ -e over ]; do sleep 0.01; done", "exit 0"
            pool.start(Job(0, Task("claude", %r, check=tuple(("sh", "-c", one) for one in check))))
            seen = before = []
            while len(pool) and not [one for one in seen if one.action]:
                if not os.path.exists("go") and [one for one in seen if one.tokens]:
                    before = seen
                    open("go", "w").close()
                pool.wait()
                seen = pool.running()
            say(json.dumps([[one.action, one.tokens, one.seconds >= before[0].seconds] for one in seen]))
            open("over", "w").close()
            while len(pool):
                pool.wait()
            pool.close()
            os.unlink("go")
            os.unlink("over")
            """ % prompt):
            self.assertEqual(lines, [[["check: until [ -e over ]; do sleep 0.01; done", 7, True]]])

    def test_ledger_shows_a_job_that_has_no_process_yet(self):
        ledger = clinvk.Ledger.create(self.tmp, 2)
        self.addCleanup(ledger.close)
        slot = ledger.take()
        self.assertEqual([one[0] for one in ledger.running()], [-1])
        ledger.claim(slot, clinvk.Job(3, clinvk.Task("echo", "p"), attempt=2))
        (index, attempt, seconds, size, quiet, action, tokens), = ledger.running()
        self.assertEqual((index, attempt, size, action, tokens), (3, 2, 0, "", 0))
        self.assertGreaterEqual(seconds, quiet)

    def test_ledger_never_shows_half_an_action(self):
        ledger = clinvk.Ledger.create(self.tmp, 2)
        self.addCleanup(ledger.close)
        slot = ledger.take()
        for action, shown in (("a" * 200, "a" * 128), ("\u5ba1" * 43, "\u5ba1" * 42), ("x\ud800", "x?"), ("", ""), ("b", "b")):
            ledger.claim(slot, clinvk.Job(3, clinvk.Task("echo", "p")))
            ledger.note(slot, 3, 77)
            self.assertEqual([one[5:] for one in ledger.running()], [("", 0)])
            ledger.note_output(slot, 5, 0.0, action, 9)
            self.assertEqual([(one[0], one[3], *one[5:]) for one in ledger.running()], [(3, 5, shown, 9)])
        ledger._words[slot + 8] |= 1  # as in the middle of a change, also of a worker that was killed there
        self.assertEqual([one[5] for one in ledger.running()], [""])
        ledger.note_output(slot, 5, 0.0, "c", 9)
        self.assertEqual([one[5] for one in ledger.running()], ["c"])

    def test_no_more_tasks_are_taken_than_there_are_jobs(self):
        for _, lines in self.each(START_METHODS, """
            taken, done, most = [], [], 0
            def supply():
                for index in range(6):
                    taken.append(index)
                    say(len(taken) - len(done))
                    yield Job(index, Task("echo", "say x"))
            for result in run_pool(supply(), jobs=2, start_method=METHOD):
                done.append(result)
            """):
            self.assertEqual(max(lines), 2)

    def test_a_supply_that_is_not_ready_is_asked_again_when_it_calls(self):
        for _, lines in self.each(START_METHODS, """
            class Slow(Supply):
                def __init__(self):
                    self.left, self.ready = 3, threading.Event()
                def next_job(self):
                    if not self.left:
                        return END
                    if not self.ready.is_set():
                        threading.Timer(0.01, self.come).start()
                        return NOT_READY
                    self.ready.clear()
                    self.left -= 1
                    return Job(self.left, Task("echo", "say x"))
                def come(self):
                    self.ready.set()
                    self.on_ready()
            for result in run_pool(Slow(), jobs=2, start_method=METHOD):
                tell(result)
            """):
            self.assertEqual(sorted(line[0] for line in lines), [0, 1, 2])

    def test_what_the_supply_raises_passes_through_and_leaves_nothing(self):
        for _, lines in self.each(START_METHODS, """
            def supply():
                yield Job(0, Task("echo", "sleep 300"))
                raise LookupError("no more")
            try:
                for result in run_pool(supply(), jobs=2, start_method=METHOD):
                    tell(result)
            except LookupError as error:
                say(json.dumps(str(error)))
            """):
            self.assertEqual(lines, ["no more"])

    def test_large_prompts_and_answers_travel_and_outlive_the_run(self):
        for _, lines in self.each(START_METHODS, """
            prompts = ["rest\\n" + "\\u00e9" * 50000 + str(n) for n in range(3)]
            results = list(run_pool(echo(*prompts), jobs=2, start_method=METHOD))
            for result in results:
                say(json.dumps(result.output == prompts[result.index][5:]))
            """):
            self.assertEqual(lines, [True] * 3)

    def test_what_describes_a_task_comes_back_with_its_result(self):
        for _, lines in self.each(START_METHODS, """
            task = Task("echo", "say x", id="i", name="n", tags=("t",), meta={"a": [1, None]})
            for result in run_pool([task], jobs=1, start_method=METHOD):
                say(json.dumps(result.task == task))
            """):
            self.assertEqual(lines, [True])

    def test_several_runs_at_once_do_not_hold_each_others_lifelines(self):
        for method in PROCESS_METHODS:
            with self.subTest(method=method):
                self.run_script(method, """
                    first = run_pool(echo("say a", "sleep 300"), jobs=2, start_method=METHOD)
                    next(first)
                    second = run_pool(echo("say b", "sleep 300"), jobs=2, start_method=METHOD)
                    next(second)
                    first.close()
                    second.close()
                    """)


class Stopping(Pool):
    def test_fail_fast_stops_what_runs_and_cancels_the_rest(self):
        for _, lines in self.each(START_METHODS, """
            for result in run_pool(echo("exit 3", "sleep 300", "say never"), jobs=2, policy=clinvk.RunPolicy(max_failures=1), start_method=METHOD):
                tell(result)
            """):
            self.assertEqual([(line[0], line[1]) for line in sorted(lines)], [(0, "failed"), (1, "canceled"), (2, "canceled")])
            self.assertIn("fail-fast", sorted(lines)[2][4])

    def test_cancel_answers_everything(self):
        for _, lines in self.each(START_METHODS, """
            control = Control()
            for result in run_pool(echo("say a", "sleep 300", "sleep 300", "say b"), jobs=2, control=control, start_method=METHOD):
                tell(result)
                control.cancel()
            """):
            self.assertEqual([(line[0], line[1]) for line in sorted(lines)],
                             [(0, "ok"), (1, "canceled"), (2, "canceled"), (3, "canceled")])

    def test_kill_does_not_wait_for_the_grace(self):
        for _, lines in self.each(START_METHODS, """
            control = Control()
            for result in run_pool(echo("say a", "ignore-term; touch ready; sleep 300"), jobs=2, control=control,
                                   grace=1000.0, start_method=METHOD):
                tell(result)
                while not os.path.exists("ready"):
                    time.sleep(0.01)
                if not control.level:
                    control.cancel()
                    threading.Timer(0.1, control.kill).start()
            os.unlink("ready")
            """):
            self.assertEqual([(line[0], line[1]) for line in sorted(lines)], [(0, "ok"), (1, "canceled")])

    def test_closing_the_generator_stops_what_runs(self):
        for _, lines in self.each(START_METHODS, """
            results = run_pool(echo("say a", "leave-group left; fork-child; sleep 300"), jobs=2, start_method=METHOD)
            tell(next(results))
            while not os.path.exists("left"):
                time.sleep(0.01)
            os.unlink("left")
            results.close()
            """):
            self.assertEqual([line[:2] for line in lines], [[0, "ok"]])
        # that nothing is left, tearDown checks

    def test_on_tick_is_told_how_many_run(self):
        for _, lines in self.each(START_METHODS, """
            seen = set()
            def tick(running):
                seen.add(running)
                if running == 2:
                    open("go", "w").close()
            for result in run_pool(echo("wait-for go; say x", "wait-for go; say x"), jobs=2, on_tick=tick, start_method=METHOD):
                pass
            os.unlink("go")
            say(json.dumps(sorted(seen)))
            """):
            self.assertEqual(lines[0][-1], 2)


@only_linux
class Deaths(Pool):
    RUN = """
        for result in run_pool(echo(*sys.argv[2:]), jobs=2, start_method=METHOD):
            tell(result)
        say("end")
        """

    def start_run(self, method, *prompts):
        return self.start_program([sys.executable, "-W", "error", self.script(self.RUN), method, *prompts])

    def parent_of(self, pid):
        with open("/proc/%d/stat" % pid) as file:
            return int(file.read().rpartition(")")[2].split()[1])

    def results(self, process):
        lines = []
        while True:
            line = process.line()
            if line in (b"end", b""):
                self.assertEqual(line, b"end", process.error_output())
                return sorted(lines)
            lines.append(json.loads(line))

    def test_a_killed_worker_costs_its_own_task_and_leaves_nothing_of_it(self):
        for method in PROCESS_METHODS:
            with self.subTest(method=method):
                process = self.start_run(method, "fork-child child-%s; leave-group left-%s; ids ids-%s; sleep 300" % ((method,) * 3),
                                         "say a", "say b")
                backend = int(self.wait_for_file(self.path("ids-" + method)).split()[0])
                os.kill(self.parent_of(backend), signal.SIGKILL)
                lines = self.results(process)
                self.assertEqual([(line[0], line[1], line[2]) for line in lines], [(0, "lost", -1), (1, "ok", 0), (2, "ok", 0)])
                self.assertIn("worker process was killed", lines[0][4])
                for name in ("child-", "left-"):
                    self.assertFalse(is_running(self.pid_in(self.path(name + method))))
                self.assertEqual(process.finish().returncode, 0)
                self.assertEqual(process.error_output(), b"")

    def test_killed_workers_are_replaced(self):
        for method in PROCESS_METHODS:
            with self.subTest(method=method):
                prompts = ["ids ids-%s-%d; wait-for go-%s; say x" % (method, n, method) for n in range(4)]
                process = self.start_run(method, *prompts)
                for number in range(2):
                    backend = int(self.wait_for_file(self.path("ids-%s-%d" % (method, number))).split()[0])
                    os.kill(self.parent_of(backend), signal.SIGKILL)
                for number in (2, 3):
                    self.wait_for_file(self.path("ids-%s-%d" % (method, number)))
                open(self.path("go-" + method), "w").close()
                self.assertEqual([(line[0], line[1]) for line in self.results(process)],
                                 [(0, "lost"), (1, "lost"), (2, "ok"), (3, "ok")])
                self.assertEqual(process.finish().returncode, 0)

    def test_an_idle_worker_that_is_killed_inside_the_queue_lock_blocks_nobody(self):
        # an idle worker holds the lock of the task queue while it waits; with a semaphore the others would wait for ever
        for method in PROCESS_METHODS:
            with self.subTest(method=method):
                process = self.start_script(method, """
                    class Slow(Supply):
                        given = 0
                        def next_job(self):
                            if self.given == 0 or self.given < 4 and os.path.exists("more-" + METHOD):
                                self.given += 1
                                return Job(self.given, Task("echo", "say x"))
                            if self.given == 4:
                                return END
                            threading.Timer(0.05, lambda: self.on_ready()).start()
                            return NOT_READY
                    for result in run_pool(Slow(), jobs=2, start_method=METHOD):
                        tell(result)
                    say("end")
                    """)
                process.line()
                workers = wait_until(lambda: self.seated(process.pid, 2), "two workers have sat down")
                for worker in workers:
                    os.kill(worker, signal.SIGKILL)
                open(self.path("more-" + method), "w").close()
                self.assertEqual([line[:2] for line in self.results(process)], [[2, "ok"], [3, "ok"], [4, "ok"]])
                self.assertEqual(process.finish().returncode, 0)

    def seated(self, parent, count):
        """The workers of a run, once all of them are in groups of their own, which is when they have begun to be workers."""
        session = os.getsid(parent)  # the guard has its own
        workers = [pid for pid in children_of(parent) if os.getpgid(pid) == pid and os.getsid(pid) == session]
        return workers if len(workers) == count else None

    def test_a_pool_that_stands_still_after_a_death_is_replaced(self):
        # After a death, the head of a message without its body in the task queue: whoever reads it waits for the rest for ever,
        # and takes the messages that follow for it.
        for method in PROCESS_METHODS:
            with self.subTest(method=method):
                process = self.start_script(method, """
                    import struct
                    run = Pool(2, METHOD, 5.0, say)
                    worker_pool = run._pools[0]
                    def seated():
                        while len(list(worker_pool.ledger)) < 2:
                            run.wait()
                        return [pid for _, pid, _, _ in worker_pool.ledger]
                    first = seated()
                    os.kill(first[0], signal.SIGKILL)
                    while not worker_pool.lost_a_worker:
                        run.wait()
                    seated()
                    os.write(worker_pool.pool._inqueue._writer.fileno(), struct.pack("!i", 100000))
                    done = []
                    run.start(Job(0, Task("echo", "say a")))
                    clinvk.TICK_SECONDS = 0  # each wait is a look
                    while len(run._pools) == 1:
                        done += run.wait(0.001)
                    clinvk.TICK_SECONDS = 0.05
                    while len(run):
                        done += run.wait()
                    run.start(Job(1, Task("echo", "say b")))
                    while len(run):
                        done += run.wait()
                    for result in done:
                        tell(result)
                    say(json.dumps(len(run._pools)))
                    run.close()
                    say("end")
                    """)
                *lines, worker_pools = self.results_of_mixed(process)
                self.assertEqual([line[:2] for line in lines], [[0, "ok"], [1, "ok"]])
                self.assertEqual(worker_pools, 2)
                self.assertEqual(process.finish().returncode, 0)

    def results_of_mixed(self, process):
        lines = []
        while True:
            line = process.line()
            if line in (b"end", b""):
                self.assertEqual(line, b"end", process.error_output())
                return lines
            lines.append(json.loads(line))

    def test_when_the_parent_is_killed_nothing_lives_on(self):
        for method in PROCESS_METHODS:
            with self.subTest(method=method):
                process = self.start_run(method, "fork-child; leave-group left-%s; scrub scrubbed-%s; ignore-term; "
                                         "touch ready-%s; sleep 300" % ((method,) * 3), "wait-for never")
                left, scrubbed = self.pid_in(self.path("left-" + method)), self.pid_in(self.path("scrubbed-" + method))
                self.wait_for_file(self.path("ready-" + method))
                process.kill()
                process.wait()
                self.wait_until_nothing_runs()
                wait_until(lambda: not is_running(left) and not is_running(scrubbed), "what left the group is gone")
                wait_until(lambda: not os.listdir(self.tmp), "the files are gone")
                self.assertEqual(process.error_output(), b"")

    def test_a_run_killed_with_all_its_workers_leaves_nothing(self):
        for method in START_METHODS:
            with self.subTest(method=method):
                process = self.start_run(method, "fork-child; leave-group left-%s; ignore-term; touch ready-%s; sleep 300" % (method, method),
                                         "ids ids-%s; wait-for never" % method)
                left = self.pid_in(self.path("left-" + method))
                self.wait_for_file(self.path("ready-" + method))
                self.wait_for_file(self.path("ids-" + method))
                for pid in children_of(process.pid) + [process.pid]:
                    os.kill(pid, signal.SIGKILL)
                process.wait()
                self.wait_until_nothing_runs()
                wait_until(lambda: not is_running(left), "what left the group is gone")
                wait_until(lambda: not os.listdir(self.tmp), "the files are gone")

    def test_a_sigterm_does_not_end_a_worker(self):
        for method in PROCESS_METHODS:
            with self.subTest(method=method):
                process = self.start_run(method, "ids ids-%s; wait-for go-%s; say a" % (method, method))
                backend = int(self.wait_for_file(self.path("ids-" + method)).split()[0])
                os.kill(self.parent_of(backend), signal.SIGTERM)
                self.file("go-" + method, b"")
                self.assertEqual([line[:2] for line in self.results(process)], [[0, "ok"]])
                self.assertEqual(process.finish().returncode, 0)

    def test_a_guard_that_is_killed_or_stopped_does_not_matter_to_the_run(self):
        for number in (signal.SIGKILL, signal.SIGSTOP):
            process = self.start_run(PROCESS_METHODS[0], "touch ready-%d; wait-for go-%d; say a" % (number, number))
            self.wait_for_file(self.path("ready-%d" % number))
            guard = next(pid for pid in children_of(process.pid) if b"GUARD" in self.words_of(pid))
            os.killpg(guard, number)
            self.file("go-%d" % number, b"")
            self.assertEqual([line[:2] for line in self.results(process)], [[0, "ok"]])
            self.assertEqual(process.finish().returncode, 0)

    def words_of(self, pid):
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            return file.read()

    def test_a_damaged_pool_does_not_keep_a_canceled_run_from_ending(self):
        for method in PROCESS_METHODS:
            with self.subTest(method=method):
                process = self.start_script(method, """
                    import struct
                    run = Pool(2, METHOD, 5.0, say)
                    worker_pool = run._pools[0]
                    while len(list(worker_pool.ledger)) < 2:
                        run.wait()
                    os.kill(list(worker_pool.ledger)[0][1], signal.SIGKILL)
                    while not worker_pool.lost_a_worker:
                        run.wait()
                    while len(list(worker_pool.ledger)) < 2:
                        run.wait()
                    os.write(worker_pool.pool._inqueue._writer.fileno(), struct.pack("!i", 100000))
                    run.start(Job(0, Task("echo", "say a")))
                    run.cancel()
                    clinvk.TICK_SECONDS = 0  # each wait is a look
                    while len(run):
                        for result in run.wait(0.001):
                            tell(result)
                    run.close()
                    say("end")
                    """)
                self.assertEqual([line[:2] for line in self.results(process)], [[0, "canceled"]])
                self.assertEqual(process.finish().returncode, 0)

    def test_a_worker_that_does_not_answer_cannot_keep_a_killed_run(self):
        for method in PROCESS_METHODS:
            with self.subTest(method=method):
                process = self.start_script(method, """
                    control = Control()
                    def tick(running):
                        if os.path.exists("ids-" + METHOD) and not control.level:
                            os.kill(worker_of("ids-" + METHOD), signal.SIGSTOP)
                            control.kill()
                    for result in run_pool(echo("ids ids-%s; sleep 300" % METHOD), jobs=1, control=control, on_tick=tick, start_method=METHOD):
                        tell(result)
                    say("end")
                    """)
                self.assertEqual([line[:2] for line in self.results(process)], [[0, "canceled"]])
                self.assertEqual(process.finish().returncode, 0)

    def test_a_worker_that_its_backend_stops_goes_on(self):
        for method in PROCESS_METHODS:
            with self.subTest(method=method):
                lines = self.run_script(method, """
                    def stop():
                        while not os.path.exists("ids-" + METHOD):
                            time.sleep(0.01)
                        os.kill(worker_of("ids-" + METHOD), signal.SIGSTOP)
                        os.unlink("ids-" + METHOD)
                        open("go-" + METHOD, "w").close()
                    def tasks():
                        for index, end in enumerate(("say x", "sleep 300")):
                            threading.Thread(target=stop).start()
                            prompt = "ids ids-%s; wait-for go-%s; %s" % (METHOD, METHOD, end)
                            yield Job(index, Task("echo", prompt, timeout=0.5 * index))
                            os.unlink("go-" + METHOD)
                    for result in run_pool(tasks(), jobs=1, start_method=METHOD):
                        tell(result)
                    """)
                self.assertEqual([line[:2] for line in lines], [[0, "ok"], [1, "timeout"]])

    def test_one_cancel_ends_a_run_whose_worker_does_not_go_on(self):
        for method in PROCESS_METHODS:
            with self.subTest(method=method):
                lines = self.run_script(method, """
                    exists = clinvk.process_exists
                    unheard = {signal.SIGCONT: 0}  # as if the worker were stopped again at once
                    clinvk.process_exists = lambda pid, number=0: exists(pid, unheard.get(number, number))
                    clinvk.KILLED_SECONDS = 0.1
                    control = Control()
                    def tick(running):
                        if os.path.exists("ids-" + METHOD) and not control.level:
                            os.kill(worker_of("ids-" + METHOD), signal.SIGSTOP)
                            control.cancel()
                    for result in run_pool(echo("ids ids-%s; sleep 300" % METHOD), jobs=1, control=control, on_tick=tick,
                                           start_method=METHOD, grace=0.1):
                        tell(result)
                    """)
                self.assertEqual([line[:2] for line in lines], [[0, "canceled"]])


class LostFiles(Pool):
    """What tasks do to the run's directory.  Here the supply does it, between two tasks, so that nothing depends on time."""

    RUN = """
        import multiprocessing, shutil
        def supply(control, damage, kill):
            yield Job(0, Task("echo", "flood 5000"))
            exec(damage, dict(globals(), directory=control.directory))
            if kill:
                for worker in multiprocessing.active_children():
                    os.kill(worker.pid, signal.SIGKILL)
                    worker.join()
            for index in range(1, 4):
                yield Job(index, Task("echo", "rest\\n" + "y" * 5000))
        for damage, kill in json.loads(sys.argv[2]):
            control, lines = Control(), []
            for result in run_pool(supply(control, damage, kill), jobs=1, control=control, start_method=METHOD):
                lines.append([result.index, result.status, len(result.output), result.error])
            say(json.dumps([control.failure, *lines]))
        """

    def run_with(self, cases, method, **options):
        """Run four tasks for each case: a statement after the first task, and whether the workers are killed then."""
        return self.run_script(method, self.RUN, json.dumps(cases), **options)

    def test_run_whose_directory_is_removed_or_closed_makes_it_again(self):
        damages = "shutil.rmtree(directory)", "os.chmod(directory, 0)", "os.rename(directory, directory + '-moved')"
        for method in START_METHODS:
            cases = [(damage, kill) for damage in damages for kill in (False, True)[:1 + (method != "thread")]]
            outcomes = self.run_with(cases, method)
            for case, outcome in zip(cases, outcomes):
                with self.subTest((case, method)):
                    self.assertEqual(outcome, [""] + [[index, "ok", 5000, ""] for index in range(4)])
            self.assertEqual(len(outcomes), len(cases))
        for name in os.listdir(self.tmp):
            if name.endswith("-moved"):
                clinvk.remove_tree(os.path.join(self.tmp, name))

    def test_run_whose_files_are_cut_and_removed_goes_on(self):
        damage = "for entry in os.scandir(directory):\n    if entry.is_file():\n        open(entry, 'wb').close()\n        os.unlink(entry)"
        for method in PROCESS_METHODS:
            with self.subTest(method):
                (_, *lines), = self.run_with([(damage, True)], method)
                self.assertEqual([line[:2] for line in lines], [[index, "ok"] for index in range(4)])

    def test_run_whose_directory_cannot_be_made_again_answers_every_task(self):
        for method in START_METHODS:
            with self.subTest(method):
                os.mkdir(self.path("gone"))
                (failure, *lines), = self.run_with([("shutil.rmtree(os.environ['TMPDIR'])", False)], method, env={"TMPDIR": self.path("gone")})
                self.assertEqual([line[:2] for line in lines], [[0, "ok"], [1, "failed"], [2, "canceled"], [3, "canceled"]])
                self.assertRegex(failure, "^cannot write temporary files to %s/clinvk-.*: No such file or directory$" % self.path("gone"))
                self.assertIn(failure, lines[2][3])

    def test_lost_result_of_a_second_attempt_is_an_answer(self):
        lines = self.run_script(PROCESS_METHODS[0], """
            pool = Pool(1, METHOD)
            pool.start(Job(0, Task("codex", "fail 1 " + "x" * 4000), attempt=2))
            while pool._events.empty():
                time.sleep(0.01)
            clinvk.remove_tree(pool.directory)
            result, = pool.wait()
            say(json.dumps([result.status, result.attempts, result.error[:22]]))
            pool.close()
            """)
        self.assertEqual(lines, [["failed", 2, "cannot read its result"]])

    def test_message_whose_file_was_changed_is_not_unpickled(self):
        value = ["x" * 5000]
        self.assertEqual(clinvk._unpack(clinvk._pack(value, self.directory, "message", lambda: None)), value)
        for content in (b"cos\nsystem\n(S'touch pwned'\ntR.", b"", b"XXXX"):
            message = clinvk._pack(value, self.directory, "message", lambda: None)
            self.file("message", content)
            with self.assertRaisesRegex(OSError, "was changed by another process"):
                clinvk._unpack(message)

    @only_linux
    def test_large_answers_come_whole_where_a_file_cannot_get_a_name_later(self):
        lines = self.run_script(PROCESS_METHODS[0], """
            del os.O_TMPFILE
            for result in run_pool(echo("flood 5000", "flood 300000"), jobs=1, start_method=METHOD):
                say(len(result.output))
            """)
        self.assertEqual(lines, [5000, 300000])


class Spawn(Pool):
    def test_pool_of_a_program_without_a_guard_names_the_guard_at_once(self):
        script = self.file("script.py", textwrap.dedent("""
            import sys
            sys.path.insert(0, %r)
            import clinvk
            for result in clinvk.run_pool([clinvk.Task("echo", "say x")], jobs=2, start_method="spawn"):
                print(result.status)
            """) % MODULES)
        completed = self.run_program([sys.executable, script])
        errors = completed.stderr.decode().splitlines()
        self.assertEqual((completed.stdout, completed.returncode), (b"", 1))
        self.assertEqual(errors[-1], "clinvk.UserError: " + clinvk.UNGUARDED)
        self.assertIn('if __name__ == "__main__":', clinvk.UNGUARDED)
        self.assertLessEqual(errors.count(errors[-1]), 30, "workers that cannot start are started again and again")

    def test_pool_that_is_closed_leaves_multiprocessing_as_it_was(self):
        lines = self.run_script("spawn", """
            import multiprocessing.util
            before = multiprocessing.util.spawnv_passfds
            first = run_pool(echo("say a", "say b"), jobs=1, start_method=METHOD)
            next(first)
            second = run_pool(echo("say a"), jobs=1, start_method=METHOD)
            next(second)
            second.close()
            say(json.dumps(multiprocessing.util.spawnv_passfds is before))
            first.close()
            say(json.dumps(multiprocessing.util.spawnv_passfds is before))

            def add_pool(pool, add_pool=clinvk.Pool._add_pool):
                if pool.method == "spawn":
                    raise OSError("no semaphores")
                add_pool(pool)
            clinvk.Pool._add_pool = add_pool
            pool = clinvk.Pool(1, METHOD)
            say(json.dumps(pool.method))
            pool.close()
            say(json.dumps(multiprocessing.util.spawnv_passfds is before))
            """)
        self.assertEqual(lines, [False, True, "thread", True])

    def test_pool_of_a_program_without_a_guard_that_catches_the_error_leaves_nothing(self):
        script = self.file("script.py", textwrap.dedent("""
            import multiprocessing, os, sys
            sys.path.insert(0, %r)
            import clinvk
            try:
                list(clinvk.run_pool([clinvk.Task("echo", "say x")], jobs=2, start_method="spawn"))
            except clinvk.UserError:
                if multiprocessing.current_process().name != "MainProcess":
                    raise
                print(os.listdir(os.environ["TMPDIR"]), multiprocessing.active_children())
            """) % MODULES)
        completed = self.run_program([sys.executable, script])
        self.assertEqual((completed.stdout, completed.returncode), (b"[] []\n", 0))

    def test_pool_does_not_take_another_process_of_its_program_for_a_worker(self):
        script = self.file("script.py", HEAD + textwrap.indent(textwrap.dedent("""
            import multiprocessing
            clinvk.TICK_SECONDS = 0.01
            read, write = os.pipe()
            other = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(len(os.read(read, 1))))
            other.start()
            pool = Pool(1, "spawn")
            pool.start(Job(0, Task("echo", "say x")))
            pool.wait()
            pool.wait()
            os.write(write, b"x")
            other.join()
            try:
                for _ in range(5):
                    pool.wait()
                open("go", "w").close()
                while len(pool):
                    for result in pool.wait():
                        tell(result)
            finally:
                open("go", "w").close()
                pool.close()
            """), "    ") + "while METHOD and __name__ != '__main__' and not os.path.exists('go'):\n    time.sleep(0.01)\n")
        completed = self.run_program([sys.executable, script, "spawn"])
        self.assertEqual((completed.stdout, completed.stderr), (b'[0, "ok", 0, "x\\n", ""]\n', b""))


class Ahead(Pool):
    def test_pool_answers_a_canceled_job_that_no_worker_has_begun_as_not_started(self):
        for _, lines in self.each(START_METHODS, """
            pool = clinvk.Pool(1, METHOD)
            for index, prompt in enumerate(("touch ready; sleep 300", "touch never; sleep 300")):
                pool.start(Job(index, Task("echo", prompt)))
            while not os.path.exists("ready"):
                pool.wait(0.01)
            pool.cancel()
            while len(pool):
                for result in pool.wait():
                    tell(result)
            pool.close()
            os.unlink("ready")
            """):
            self.assertEqual([line[:2] + line[4:] for line in sorted(lines)],
                             [[0, "canceled", clinvk.CANCELED_LATE], [1, "canceled", clinvk.CANCELED_EARLY]])
            self.assertFalse(os.path.exists(self.path("never")))

    @only_linux
    def test_pool_with_a_waiting_job_and_a_dead_worker_is_not_replaced(self):
        for method in PROCESS_METHODS:
            with self.subTest(method=method):
                process = self.start_script(method, """
                    clinvk.HANDOVER_SECONDS = 0
                    pool = Pool(1, METHOD)
                    pool.start(Job(0, Task("echo", "ids ids-%s; sleep 300" % METHOD)))
                    while not os.path.exists("ids-" + METHOD):
                        pool.wait()
                    os.kill(worker_of("ids-" + METHOD), signal.SIGKILL)
                    pool.start(Job(1, Task("echo", "touch begun-%s; wait-for go-%s; say x" % (METHOD, METHOD))))
                    pool.start(Job(2, Task("echo", "say y")))
                    results = []
                    while not os.path.exists("begun-" + METHOD):
                        results += pool.wait()
                    clinvk.TICK_SECONDS = 0  # each wait is a look
                    for _ in range(3 * clinvk.STALL_TICKS):
                        results += pool.wait(0.001)
                    open("go-" + METHOD, "w").close()
                    while len(pool):
                        results += pool.wait()
                    for result in results:
                        tell(result)
                    say(json.dumps(len(pool._pools)))
                    pool.close()
                    say("end")
                    """)
                *lines, pools = self.results_of_mixed(process)
                self.assertEqual(([line[:2] for line in lines], pools), ([[0, "lost"], [1, "ok"], [2, "ok"]], 1))
                self.assertEqual(process.finish().returncode, 0)

    def results_of_mixed(self, process):
        return Deaths.results_of_mixed(self, process)

    def test_pool_whose_workers_all_end_before_a_job_begins_has_too_many_of_them(self):
        for method in {"fork"}.intersection(PROCESS_METHODS):  # whose workers inherit what is patched
            lines = self.run_script(method, """
                import threading
                start, parent = threading.Thread.start, os.getpid()
                def without_threads(thread):
                    if os.getpid() != parent or pool:
                        raise RuntimeError("can't start new thread")
                    start(thread)
                pool, clinvk.TICK_SECONDS, clinvk.STALL_TICKS = None, 0.02, 3
                threading.Thread.start = without_threads
                pool = Pool(2, METHOD)
                for index in range(3):
                    pool.start(Job(index, Task("echo", "say x")))
                try:
                    while len(pool):
                        for result in pool.wait():
                            tell(result)
                except clinvk.UserError as error:
                    say(json.dumps(str(error)))
                threading.Thread.start = start
                pool.close()
                """)
            self.assertEqual(lines, ["cannot start 2 workers: %s; try a smaller --max-parallel" % os.strerror(errno.EAGAIN)])

    def test_pool_job_whose_file_is_removed_before_it_begins_is_sent_again(self):
        for _, lines in self.each(START_METHODS, """
            pool = clinvk.Pool(1, METHOD)
            for index, prompt in enumerate(("touch ready; wait-for go", "rest\\n" + "x" * 5000)):
                pool.start(Job(index, Task("echo", prompt)))
            while not os.path.exists("ready"):
                pool.wait(0.01)
            clinvk.remove_tree(pool.directory)
            open("go", "w").close()
            while len(pool):
                for result in pool.wait():
                    say(json.dumps([result.index, len(result.output), result.error_kind]))
            pool.close()
            os.unlink("ready")
            os.unlink("go")
            """):
            self.assertEqual(sorted(lines)[1], [1, 5000, ""])

    @only_linux
    def test_pool_returned_job_is_not_lost_with_the_worker_that_returned_it(self):
        for method in PROCESS_METHODS:
            with self.subTest(method=method):
                lines = self.run_script(method, """
                    clinvk.TICK_SECONDS, clinvk.HANDOVER_SECONDS = 0.02, 0
                    pool = Pool(1, METHOD)
                    former = pool._pools[0]
                    former.ledger.retire()
                    pool.start(Job(0, Task("echo", "ids ids-%s; wait-for go-%s; say x" % (METHOD, METHOD))))
                    pool._add_pool()
                    while not os.path.exists("ids-" + METHOD):
                        pool.wait()
                    (_, worker, index, _), = former.ledger
                    say(json.dumps(index))
                    os.kill(worker, signal.SIGKILL)
                    while not former.lost_a_worker:
                        pool.wait()
                    open("go-" + METHOD, "w").close()
                    while len(pool):
                        for result in pool.wait():
                            tell(result)
                    pool.close()
                    """)
                self.assertEqual(lines, [0, [0, "ok", 0, "x\n", ""]])

    @only_linux
    def test_pool_job_that_is_tried_again_is_not_lost_with_the_worker_of_its_first_attempt(self):
        lines = self.run_script(PROCESS_METHODS[0], """
            clinvk.TICK_SECONDS, clinvk.HANDOVER_SECONDS = 0.02, 0
            pool, results = Pool(2, METHOD), []
            former, idle = pool._pools[0], []
            for attempt in range(1, 100):
                pool.start(Job(0, Task("echo", "wait-for go; say x"), attempt=attempt))
                while not any(index == 0 and group for _, _, index, group in former.ledger):
                    pool.wait()
                idle = [pid for _, pid, index, group in former.ledger if index == 0 and not group]
                if idle:
                    break
                open("go", "w").close()
                while len(pool):
                    pool.wait()
                os.unlink("go")
            os.kill(idle[0], signal.SIGKILL)
            while not former.lost_a_worker:
                results += pool.wait()
            open("go", "w").close()
            while len(pool):
                results += pool.wait()
            pool.close()
            say(json.dumps([[result.status, result.attempts == attempt] for result in results]))
            """)
        self.assertEqual(lines, [[["ok", True]]])

    @only_linux
    def test_pool_lost_job_that_had_to_wait_starts_when_its_worker_has_it(self):
        for method in PROCESS_METHODS:
            with self.subTest(method=method):
                lines = self.run_script(method, """
                    clinvk.TICK_SECONDS = 0  # each wait is a look
                    pool = Pool(1, METHOD)
                    pool.start(Job(0, Task("echo", "touch ready-%s; wait-for go-%s; say x" % (METHOD, METHOD))))
                    pool.start(Job(1, Task("echo", "ids ids-%s; sleep 300" % METHOD)))
                    while not os.path.exists("ready-" + METHOD):
                        pool.wait()
                    before = time.time()
                    for _ in range(10):
                        pool.wait(0.001)
                    open("go-" + METHOD, "w").close()
                    while not os.path.exists("ids-" + METHOD):
                        pool.wait()
                    os.kill(worker_of("ids-" + METHOD), signal.SIGKILL)
                    results = []
                    while len(pool):
                        results += pool.wait()
                    say(json.dumps([results[-1].status, results[-1].start_time > before]))
                    pool.close()
                    """)
                self.assertEqual(lines, [["lost", True]])

    def test_lost_task_may_have_acted_where_its_backend_has_tools(self):
        lines = self.run_script(PROCESS_METHODS[0], """
            cases = [(backend, False) for backend in ("claude", "codex", "gemini", "echo")] + [("claude", True)]
            pool = Pool(len(cases), METHOD)
            clinvk.HANDOVER_SECONDS = 0
            for number, (backend, answer_only) in enumerate(cases):
                pool.start(Job(number, Task(backend, "ids acting-%d; sleep 300" % number, answer_only=answer_only)))
            results = []
            for number in range(len(cases)):
                while not os.path.exists("acting-%d" % number):
                    results += pool.wait()
                os.kill(worker_of("acting-%d" % number), signal.SIGKILL)
            while len(pool):
                results += pool.wait()
            for result in sorted(results, key=lambda result: result.index):
                say(json.dumps([result.backend, result.status, result.acted]))
            pool.close()
            """)
        self.assertEqual(lines, [["claude", "lost", True], ["codex", "lost", True], ["gemini", "lost", True], ["echo", "lost", False], ["claude", "lost", False]])


class WithoutDescriptors(Pool):
    def test_a_run_raises_the_soft_limit_to_what_its_workers_take(self):
        lines = self.run_script(PROCESS_METHODS[0], """
            import resource
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            for result in run_pool(echo(*["say x"] * 12), jobs=12, start_method=METHOD):
                tell(result)
            """)
        self.assertEqual([line[1] for line in lines], ["ok"] * 12)

    def test_a_run_for_which_there_are_none_is_refused_and_leaves_nothing(self):
        lines = self.run_script(PROCESS_METHODS[0], """
            import multiprocessing
            def refuse(duplex):
                raise OSError(24, "Too many open files")
            multiprocessing.Pipe = refuse
            try:
                list(run_pool(echo("say a"), start_method=METHOD))
            except clinvk.UserError as error:
                say(json.dumps(str(error)))
            """)
        self.assertIn("cannot start 3 workers: Too many open files", lines[0])

    @only_linux
    def test_pool_whose_threads_cannot_be_started_leaves_no_worker(self):
        for method in PROCESS_METHODS:
            lines = self.run_script(method, """
                import multiprocessing
                start, parent, calls = threading.Thread.start, os.getpid(), []
                def refuse(thread):
                    calls.append(os.getpid() == parent)
                    if sum(calls) == refused:
                        raise RuntimeError("can't start new thread")
                    start(thread)
                threading.Thread.start = refuse
                for refused in (1, 2, 3):  # Pool starts three
                    calls.clear()
                    try:
                        list(run_pool(echo("say a"), jobs=2, start_method=METHOD))
                    except clinvk.UserError as error:
                        say(json.dumps([refused, str(error), len(multiprocessing.active_children())]))
                """)
            self.assertEqual([(refused, left) for refused, _, left in lines], [(1, 0), (2, 0), (3, 0)], method)
            for _, error, _ in lines:
                self.assertIn("cannot start 2 workers", error)

    def test_worker_that_cannot_be_replaced_leaves_no_traceback(self):
        for method in {"fork"}.intersection(PROCESS_METHODS):
            lines = self.run_script(method, """
                import multiprocessing
                pool = clinvk.Pool(2, METHOD)
                handler = pool._pools[-1].pool._worker_handler
                def refuse():
                    raise BlockingIOError(11, "Resource temporarily unavailable")
                fork, os.fork = os.fork, refuse
                victim = multiprocessing.active_children()[0]
                victim.kill()
                victim.join()
                pool._pools[-1].pool._change_notifier.put(None)
                handler.join()
                os.fork = fork
                say(json.dumps(handler.is_alive()))
                pool.close()
                """)
            self.assertEqual(lines, [False])

    def test_pool_of_a_finished_run_is_not_kept_by_its_control(self):
        for _, lines in self.each(START_METHODS, """
            import gc
            controls = [Control() for _ in range(3)]
            for control in controls:
                list(run_pool(echo("say a"), jobs=1, control=control, start_method=METHOD))
                gc.collect()
                say(len(os.listdir("/dev/fd")))
            """):
            self.assertEqual(lines[0], lines[2])


class WithoutLocks(Pool):
    def test_where_worker_processes_cannot_be_had_tasks_run_in_threads_and_that_is_said_once(self):
        completed = self.run_program([sys.executable, "-W", "error", self.script("""
            def refuse(*arguments):
                raise OSError(38, "Function not implemented")
            clinvk.fcntl.lockf = refuse  # a file system without locks
            for result in run_pool(echo("say a", "say b"), jobs=2, start_method=METHOD, notice=lambda text: say(json.dumps(text))):
                tell(result)
            """), PROCESS_METHODS[0]])
        lines = [json.loads(line) for line in completed.stdout.splitlines()]
        self.assertEqual(completed.returncode, 0, completed.stderr)
        self.assertEqual(lines[0], "warning: cannot start worker processes (Function not implemented): tasks run in threads")
        self.assertEqual([line[:2] for line in sorted(lines[1:])], [[0, "ok"], [1, "ok"]])

    def test_pool_that_cannot_be_made_leaves_no_file_open(self):
        lines = self.run_script(PROCESS_METHODS[0], """
            def refuse(*arguments):
                raise OSError(38, "Function not implemented")
            clinvk.fcntl.lockf = refuse
            for _ in range(3):
                list(run_pool(echo("say a"), jobs=1, start_method=METHOD))
                say(len(os.listdir("/dev/fd")))
            """)
        self.assertEqual(lines[1], lines[2])


if __name__ == "__main__":
    unittest.main()
