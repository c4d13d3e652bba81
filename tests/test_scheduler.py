"""Section 13, Scheduler: tables of events with a fake pool and a fake clock.  Nothing here waits or starts a process."""
import collections
import os
import random
import tempfile
import unittest
import unittest.mock

import support
from support import ROOT, clinvk, job

support.left_to_fork()


class FakePool:
    """A pool whose `wait` plays the next events of a script.

    An event is a function of the pool; what it returns are the results of that wait.
    """

    ahead = 1

    def __init__(self, *events):
        self.events, self.failure, self.calls = list(events), "", []
        self.running = {}

    def __len__(self):
        return len(self.running)

    def start(self, item):
        self.running[item.index] = item
        self.calls.append("start %d" % item.index)

    def cancel(self, reason):
        if "cancel" not in self.calls:
            self.calls.append("cancel")
            self.reason = reason

    def kill(self):
        self.calls.append("kill")

    def forget(self, item, sessions):
        self.calls.append("forget %s" % " ".join(sessions))

    def wait(self, seconds=0.25):
        if self.events:
            return self.events.pop(0)(self)
        return [self.ended(index) for index in sorted(self.running)]

    def ended(self, index, status="ok"):
        item = self.running.pop(index)
        return clinvk.unfinished(item, status, "", "", exit_code=0)


def end(index, status="ok"):
    return lambda pool: [pool.ended(index, status)]


def nothing(pool):
    return []


class FakeSupply(clinvk.Supply):
    """Hands out the items of a script; a number stands for the job of that index."""

    def __init__(self, *items, backends=None, reads_ahead=True):
        self.items, self.backends, self.reads_ahead = list(items), backends or {}, reads_ahead
        self.stopped, self.seen = False, []

    def next_job(self):
        item = self.items.pop(0) if self.items else clinvk.END
        return job(item, self.backends.get(item, "echo"), "p") if isinstance(item, int) else item

    def stop(self):
        self.stopped = True

    def arrived(self, result):
        self.seen.append(result.index)
        return result


def bad(index):
    """Input that is no task."""
    return clinvk.Result(index, "", "failed", 1, error="no task", error_kind="invalid", attempts=0)


class SchedulerCase(unittest.TestCase):
    def run_it(self, supply, pool, jobs=2, **options):
        """Return (index, status) of each result, in the order in which they came."""
        self.ticks = []
        scheduler = clinvk.Scheduler(supply, pool, jobs, clock=lambda: self.now(), on_tick=self.ticks.append, **options)
        results = list(scheduler.results())
        self.errors = {result.index: result.error for result in results}
        return [(result.index, result.status) for result in results]

    def now(self):
        self.time = getattr(self, "time", 0.0) + 0.1
        return self.time


class Order(SchedulerCase):
    def test_scheduler_starts_in_order_and_one_job_more_than_runs(self):
        pool = FakePool(end(1), end(0))
        self.assertEqual(self.run_it(FakeSupply(*range(5)), pool), [(1, "ok"), (0, "ok"), (2, "ok"), (3, "ok"), (4, "ok")])
        self.assertEqual(pool.calls, ["start %d" % index for index in range(5)])
        self.assertEqual(max(self.ticks), 2, "the third is not counted as running")

    def test_scheduler_hands_no_job_ahead_while_jobs_take_their_time(self):
        pool = Clocked(seconds=5)
        pool.ahead, lengths, wait = 1, [], pool.wait
        pool.wait = lambda seconds=0.25: lengths.append(len(pool)) or wait()
        self.assertEqual(len(self.run_it(FakeSupply(*range(5)), pool)), 5)
        self.assertEqual(max(lengths), 2)

    def test_scheduler_room_is_kept_for_each_kind_of_run(self):
        for supply, options, most in ((FakeSupply(*range(9)), {}, 4), (FakeSupply(*range(9), reads_ahead=False), {}, 3),
                                      (FakeSupply(*range(9)), {"policy": clinvk.RunPolicy(max_failures=1)}, 3)):
            lengths = []
            pool = FakePool(*[lambda pool: lengths.append(len(pool)) or [pool.ended(min(pool.running))]] * 9)
            self.assertEqual(len(self.run_it(supply, pool, jobs=3, **options)), 9)
            self.assertEqual(max(lengths), most)

    def test_scheduler_supply_that_is_not_ready_is_asked_after_each_event(self):
        wait = clinvk.NOT_READY
        pool = FakePool(nothing, end(0), nothing)
        self.assertEqual(self.run_it(FakeSupply(0, wait, wait, 1, wait), pool), [(0, "ok"), (1, "ok")])

    def test_scheduler_input_that_is_no_task_is_answered_without_the_pool(self):
        supply = FakeSupply(0, bad(1), bad(2), 3)
        pool = FakePool()
        self.assertEqual(sorted(self.run_it(supply, pool)), [(0, "ok"), (1, "failed"), (2, "failed"), (3, "ok")])
        self.assertEqual(pool.calls, ["start 0", "start 3"])
        self.assertEqual(sorted(supply.seen), [0, 1, 2, 3])

    def test_one_per_workdir_frees_the_directory_that_a_job_began_in(self):
        with tempfile.TemporaryDirectory() as directory:
            link = os.path.join(directory, "current")
            os.symlink("/", link)
            items = [job(0, "echo", "p", workdir=link), job(1, "echo", "p", workdir="/")]

            def swapped(pool):
                os.unlink(link)
                os.symlink("/usr", link)
                return [pool.ended(0)]

            with unittest.mock.patch("os.path.realpath", side_effect=os.path.realpath) as realpath:
                found = self.run_it(FakeSupply(*items), FakePool(swapped, end(1)), policy=clinvk.RunPolicy(one_per_workdir=True))
            self.assertEqual((found, realpath.call_count), ([(0, "ok"), (1, "ok")], 2))

    def test_dry_run_results_are_in_the_order_of_the_input(self):
        results = clinvk.run_pool(FakeSupply(0, 1, bad(2), 3), jobs=3, dry_run=True)
        self.assertEqual([(result.index, result.status) for result in results],
                         [(0, "skipped"), (1, "skipped"), (2, "failed"), (3, "skipped")])


class Limits(SchedulerCase):
    def test_scheduler_full_backend_waits_while_others_start(self):
        backends = {0: "codex", 1: "codex", 2: "echo", 3: "codex"}
        pool = FakePool(end(2), end(0), end(1))
        self.run_it(FakeSupply(0, 1, 2, 3, backends=backends), pool, jobs=3, policy=clinvk.RunPolicy(limits={"codex": 1}))
        self.assertEqual(pool.calls, ["start 0", "start 2", "start 1", "start 3"])

    def test_scheduler_reads_no_more_than_it_may_hold(self):
        count = clinvk.MAX_HELD + 10
        supply = FakeSupply(*range(count))
        left = []
        pool = FakePool(lambda pool: left.append(len(supply.items)) or [pool.ended(0)])
        self.assertEqual(len(self.run_it(supply, pool, policy=clinvk.RunPolicy(limits={"echo": 1}))), count)
        self.assertEqual(left, [count - 1 - clinvk.MAX_HELD])

    def test_scheduler_held_jobs_of_a_stopped_run_are_canceled(self):
        control = clinvk.Control()
        pool = FakePool(lambda pool: control.cancel() or [pool.ended(0)])
        self.assertEqual(self.run_it(FakeSupply(0, 1, 2), pool, policy=clinvk.RunPolicy(limits={"echo": 1}), control=control),
                         [(0, "ok"), (1, "canceled"), (2, "canceled")])


class Stopping(SchedulerCase):
    def test_scheduler_fail_fast_begins_nothing_after_the_first_failure(self):
        for status in clinvk.FAILED_STATUSES:
            pool = FakePool(end(0, status), end(1, "canceled"))
            supply = FakeSupply(*range(4))
            self.assertEqual(self.run_it(supply, pool, policy=clinvk.RunPolicy(max_failures=1)),
                             [(0, status), (1, "canceled"), (2, "canceled"), (3, "canceled")])
            self.assertEqual((pool.calls, pool.reason), (["start 0", "start 1", "cancel"], "fail-fast"))
            self.assertEqual(self.errors[3], "canceled before it started (fail-fast)")
            self.assertTrue(supply.stopped)

    def test_scheduler_fail_fast_counts_input_that_is_no_task(self):
        pool = FakePool()
        self.assertEqual(self.run_it(FakeSupply(bad(0), 1), pool, policy=clinvk.RunPolicy(max_failures=1)), [(0, "failed"), (1, "canceled")])
        self.assertEqual(pool.calls, [])

    def test_scheduler_without_fail_fast_goes_on_after_failures(self):
        pool = FakePool(end(0, "failed"), end(1, "lost"))
        self.assertEqual(self.run_it(FakeSupply(0, 1, 2), pool), [(0, "failed"), (1, "lost"), (2, "ok")])
        self.assertNotIn("cancel", pool.calls)

    def test_scheduler_cancel_names_its_reason_and_a_kill_goes_on_to_the_pool(self):
        control = clinvk.Control()

        def stop(pool):
            control.cancel("the reader went away")
            control.kill()
            return []

        pool = FakePool(stop)
        self.assertEqual(self.run_it(FakeSupply(*range(3)), pool, jobs=1, control=control), [(0, "ok"), (1, "canceled"), (2, "canceled")])
        self.assertEqual(pool.calls, ["start 0", "cancel", "kill"])
        self.assertEqual(self.errors[2], "canceled before it started (the reader went away)")

    def test_scheduler_cancel_without_a_reason_begins_nothing_more(self):
        control = clinvk.Control()
        pool = FakePool(lambda pool: control.cancel("") or [pool.ended(0)])
        self.assertEqual(self.run_it(FakeSupply(*range(3)), pool, jobs=1, control=control, policy=clinvk.RunPolicy(max_failures=1)),
                         [(0, "ok"), (1, "canceled"), (2, "canceled")])
        self.assertEqual(self.errors[2], "canceled before it started (interrupted)")

    def test_scheduler_pool_that_fails_ends_the_run_but_not_what_runs(self):
        def fail(pool):
            pool.failure = "the disk is full"
            return []

        pool = FakePool(fail, end(1), end(0))
        self.assertEqual(self.run_it(FakeSupply(*range(4)), pool), [(1, "ok"), (0, "ok"), (2, "canceled"), (3, "canceled")])
        self.assertNotIn("cancel", pool.calls)
        self.assertEqual(self.errors[3], "canceled before it started (the disk is full)")

    def test_scheduler_stopped_run_does_not_wait_for_more_input(self):
        control = clinvk.Control()
        pool = FakePool(lambda pool: control.cancel() or [pool.ended(0)])
        supply = FakeSupply(0, clinvk.NOT_READY, clinvk.NOT_READY, 1, *[clinvk.NOT_READY] * 50)
        self.assertEqual(self.run_it(supply, pool, control=control), [(0, "ok"), (1, "canceled")])
        self.assertGreater(len(supply.items), 40, "it was asked for no longer than TICK_SECONDS")

    def test_scheduler_stopped_run_whose_input_cannot_be_kept_ends_in_order(self):
        class Full(FakeSupply):
            def next_job(self):
                if not self.items:
                    raise clinvk.OutputError("the disk is full")
                return super().next_job()

        control = clinvk.Control()
        pool = FakePool(lambda pool: control.cancel() or [])
        self.assertEqual(self.run_it(Full(0, 1), pool, jobs=1, control=control), [(0, "ok"), (1, "canceled")])
        self.assertEqual((control.unread, pool.failure), (True, "the disk is full"))

    def test_scheduler_exceptions_of_the_supply_pass_through(self):
        class Broken(FakeSupply):
            def next_job(self):
                raise LookupError("no more")

        with self.assertRaises(LookupError):
            self.run_it(Broken(), FakePool())


class Clocked(FakePool):
    """A pool that plays a script of events, each a line of text, at a clock of its own.

    `12 0 ok` ends job 0 at second 12.  `12 0 rate_limit 60` ends job 0 with that kind of error, which states 60 seconds.
    When nothing is scripted, time goes on by a second, and a running job ends well after `seconds`.
    """

    ahead = 0

    def __init__(self, script="", seconds=1000):
        super().__init__()
        self.script, self.time, self.starts, self.seconds = [line.split() for line in script.strip().splitlines()], 0.0, [], seconds
        self.costs, self.acted, self.jobs, self.begun, self.tokens = {}, False, {}, {}, {}

    def now(self):
        return self.time

    def start(self, item):
        self.running[item.index] = self.jobs[item.index] = item
        self.begun[item.index] = self.time
        self.starts.append((round(self.time), item.index))

    def wait(self, seconds=0.25):
        if self.time > 200000:
            raise AssertionError("the run does not end")
        if self.script and int(self.script[0][0]) <= self.time + 1:
            at, index, kind, *stated = self.script.pop(0)
            self.time = max(self.time, float(at))
            return [self.outcome(int(index), kind, *map(float, stated))]
        self.time += 1
        over = [index for index in sorted(self.running) if self.time - self.begun[index] >= self.seconds]
        return [self.outcome(index, "ok") for index in over]

    def outcome(self, index, kind, stated=None):
        item = self.running.pop(index)
        status = {"ok": "ok", "worker_lost": "lost", "timeout": "timeout"}.get(kind, "failed")
        text = "your credit balance is too low" if kind == "quota" and stated is None else kind
        return clinvk.unfinished(item, status, "" if status == "ok" else text, "" if status == "ok" else kind, attempts=item.attempt,
                                 exit_code=0)._replace(cost_usd=self.costs.get(index), retry_after_seconds=stated, acted=self.acted,
                                                       start_time=self.begun[index], end_time=self.time,
                                                       changes=None if kind == "worker_lost" else clinvk.Changes(("", "")),
                                                       usage={"input_tokens": self.tokens[index]} if index in self.tokens else None)


class PolicyCase(unittest.TestCase):
    def play(self, script="", count=3, jobs=1, backends=None, pool=None, supply=None, jitter=0.5, sandbox="default", **policy):
        """Return the pool and the final results, by index."""
        pool = Clocked(script) if pool is None else pool
        self.pool, self.notices, self.control = pool, [], clinvk.Control()
        supply = supply or FakeSupply(*range(count), backends=backends)
        scheduler = clinvk.Scheduler(supply, pool, jobs, clinvk.RunPolicy(**dict({"retries": 2}, **policy)), control=self.control,
                                     clock=pool.now, wall=pool.now, jitter=lambda: jitter, notice=self.notices.append)
        results = list(scheduler.results())
        self.results = {result.index: result for result in results}
        self.assertEqual(len(results), len(self.results), "one final result a task")
        return [(index, self.results[index].status, self.results[index].attempts) for index in sorted(self.results)]


class Retries(PolicyCase):
    def test_retry_after_each_transient_kind_waits_with_jitter_and_lets_others_start(self):
        for kind in ("overloaded", "network", "worker_lost"):
            with self.subTest(kind=kind):
                answers = self.play("10 0 %s\n12 1 ok\n20 0 %s\n30 0 ok" % (kind, kind), count=2)
                self.assertEqual(answers, [(0, "ok", 3), (1, "ok", 1)])
                # the first wait is half of 2 s: task 1 runs meanwhile; the second is half of 4 s
                self.assertEqual(self.pool.starts, [(0, 0), (10, 1), (12, 0), (22, 0)])

    def test_retries_run_out_and_the_last_failure_stays(self):
        answers = self.play("10 0 network\n20 0 overloaded\n30 0 network", count=1)
        self.assertEqual(answers, [(0, "failed", 3)])
        result = self.results[0]
        self.assertEqual(result.error_kind, "network")
        self.assertEqual([one["error_kind"] for one in result.tries], ["network", "overloaded", "network"])
        self.assertEqual([one["duration_seconds"] for one in result.tries][0], 10)

    def test_retry_is_for_the_named_kinds_only(self):
        for kind, policy, starts in (("auth", {}, 1), ("timeout", {}, 1), ("network", {"retries": 0}, 1), ("rate_limit", {"retries": 0}, 1),
                                     ("network", {"retry_on": ("timeout",)}, 1), ("timeout", {"retry_on": ("timeout",)}, 2)):
            with self.subTest(kind=kind, policy=policy):
                self.play("10 0 %s\n20 0 ok" % kind, count=1, **policy)
                self.assertEqual(len(self.pool.starts), starts)

    def test_retry_of_a_task_that_acted_needs_permission(self):
        for policy, starts in (({}, 1), ({"retry_acted": True}, 2)):
            pool = Clocked("10 0 network\n20 0 ok")
            pool.acted = True
            self.play(pool=pool, count=1, **policy)
            self.assertEqual(len(pool.starts), starts)
        pool = Clocked("10 0 network")
        pool.acted = True
        self.play(pool=pool, count=1)
        self.assertIn("--retry-acted", self.results[0].warnings[-1])

    def test_retry_of_a_read_only_task_that_acted_needs_none(self):
        item = job(0, "echo", "p")
        for fields in ({"sandbox_mode": "read-only"}, {"answer_only": True}):
            pool = Clocked("10 0 network\n20 0 ok")
            pool.acted = True
            held = item._replace(task=item.task._replace(**fields))
            self.assertEqual(self.play(pool=pool, supply=FakeSupply(held)), [(0, "ok", 2)])

    def test_retry_stated_time_counts_with_a_little_slack(self):
        self.play("10 0 overloaded 20\n50 0 ok", count=1)
        self.assertEqual(self.pool.starts, [(0, 0), (33, 0)])

    def test_retry_sums_usage_and_cost_and_is_counted_as_one_failure(self):
        pool = Clocked("10 0 network\n20 1 auth\n30 0 ok\n40 2 ok")
        pool.costs = {0: 0.25}
        self.assertEqual(self.play(pool=pool, count=3, max_failures=2), [(0, "ok", 2), (1, "failed", 1), (2, "ok", 1)])
        self.assertEqual(self.results[0].cost_usd, 0.5)

    def test_retry_of_a_stopped_run_is_not_made(self):
        pool = Clocked("10 0 network")
        wait = pool.wait
        pool.wait = lambda seconds=0.25: wait() if pool.time < 10 else (self.control.cancel(), wait())[1]
        self.assertEqual(self.play(pool=pool, count=1), [(0, "failed", 1)])
        self.assertEqual(self.results[0].error_kind, "network")

    def test_run_that_is_stopped_before_another_try_knows_it(self):
        for second, script, untried in ((10, "10 0 network", True), (11, "10 0 network", True), (11, "10 0 rate_limit 60", True), (10, "10 0 rate_limit 60", True),
                                        (10, "10 0 auth", False), (10, "10 0 ok", False)):
            pool = Clocked(script)
            wait = pool.wait
            pool.wait = lambda seconds=0.25: (pool.time + 1 >= second and self.control.cancel(), wait())[1]
            self.play(pool=pool, count=1)
            self.assertEqual((len(pool.starts), self.control.untried), (1, untried), (second, script))

    def test_retry_jobs_say_which_attempt_they_are(self):
        self.play("10 0 network\n20 0 ok", count=1)
        self.assertEqual((self.pool.jobs[0].attempt, self.pool.jobs[0].retried), (2, False), "it may have acted, so the program tries requests again")
        self.play("10 0 network\n20 0 ok", count=1, retry_acted=True)
        self.assertTrue(self.pool.jobs[0].retried)

    def test_retry_of_a_supply_that_does_not_read_ahead_comes_before_its_next_job(self):
        pool = Clocked("10 0 network\n20 0 ok\n30 1 ok")
        self.play(pool=pool, supply=FakeSupply(0, 1, reads_ahead=False))
        self.assertEqual(pool.starts[0], (0, 0))
        self.assertEqual([index for _, index in pool.starts], [0, 0, 1])


    def test_retry_that_would_wait_longer_than_max_wait_is_not_made(self):
        self.assertEqual(self.play("10 0 overloaded 5000", count=1), [(0, "failed", 1)])
        self.assertEqual((self.control.left, round(self.results[0].retry_at)), ("rate_limit", 5070))


class Gates(PolicyCase):
    BACKENDS = {0: "claude", 1: "claude", 2: "codex", 3: "claude", 4: "claude", 5: "claude"}

    def test_gate_stated_limit_pauses_its_backend_only_then_one_probe_goes_ahead(self):
        answers = self.play("10 0 rate_limit 100\n20 2 ok\n150 0 ok\n160 1 ok\n161 3 ok", count=4, jobs=2, backends=self.BACKENDS, limits={"claude": 1})
        self.assertEqual(answers, [(0, "ok", 2), (1, "ok", 1), (2, "ok", 1), (3, "ok", 1)])
        # 100 s are stated, 11 are added
        self.assertEqual(self.pool.starts, [(0, 0), (0, 2), (121, 0), (150, 1), (160, 3)])
        self.assertEqual(self.control.limited, {})

    def test_gate_waiting_for_a_stated_time_uses_up_no_attempt(self):
        script = "\n".join("%d 0 rate_limit 10" % second for second in range(10, 100, 20)) + "\n120 0 ok"
        self.assertEqual(self.play(script, count=1, retries=1), [(0, "ok", 6)])

    def test_gate_unstated_limit_is_probed_after_1_2_4_minutes(self):
        script = "\n".join("%d 0 rate_limit" % second for second in (10, 75, 200, 450, 940, 1910, 3720))
        self.play(script, count=2, jobs=1, max_wait=100000)
        self.assertEqual(self.pool.starts, [(second, 0) for second in (0, 70, 195, 440, 930, 1900, 3710, 5520)] + [(6520, 1)])

    def test_gate_stated_reset_that_has_passed_is_probed_less_and_less(self):
        script = "\n".join("%d 0 rate_limit 0" % second for second in (10, 12, 73, 194, 435))
        self.play(script, count=2, jobs=1, max_wait=100000)
        self.assertEqual(self.pool.starts, [(second, 0) for second in (0, 11, 72, 193, 434, 915)] + [(1915, 1)])
        self.play("10 0 rate_limit 100\n130 0 rate_limit 0\n200 0 ok\n210 1 rate_limit 0\n220 1 ok", count=2, jobs=1)
        self.assertEqual(self.pool.starts, [(0, 0), (121, 0), (190, 0), (200, 1), (211, 1)])

    def test_gate_room_is_halved_by_a_limit_and_grows_with_each_success(self):
        gate = clinvk.Gate(8)
        for index in range(8):
            gate.started(index)
        gate.limit(0, 10, now=0, wall=0)
        self.assertFalse(gate.may_start(5, 5))
        self.assertTrue(gate.may_start(13, 13))
        gate.started(9)
        self.assertFalse(gate.may_start(13, 13), "one probe")
        for index in range(1, 8):
            gate.ended(index, True)
        self.assertIsNotNone(gate.closed_since, "they ran before the limit")
        self.assertEqual(gate.room, 4)
        gate.ended(9, True)
        self.assertEqual((gate.closed_since, gate.room, gate.running), (None, 5, 0))
        gate.started(10)
        gate.started(11)
        gate.limit(10, 10, now=20, wall=20)
        gate.limit(11, 10, now=21, wall=21)
        self.assertEqual((gate.room, gate.running), (2, 0), "limits of one pause count once")
        self.assertFalse(gate.may_start(32, 32), "the later of the two")

    def test_gate_sees_the_time_that_passed_while_the_machine_slept(self):
        gate = clinvk.Gate(1)
        gate.started(0)
        gate.limit(0, 3000, now=0, wall=1000)
        self.assertFalse(gate.may_start(10, 1010))
        self.assertTrue(gate.may_start(10, 9000))

    def test_gate_limit_beyond_max_wait_cancels_the_backend_and_the_others_go_on(self):
        answers = self.play("10 0 rate_limit 5000\n20 2 ok", count=5, jobs=2, backends=self.BACKENDS, limits={"claude": 1}, max_wait=3600)
        self.assertEqual(answers, [(0, "failed", 1), (1, "canceled", 0), (2, "ok", 1), (3, "canceled", 0), (4, "canceled", 0)])
        for index in (0, 1, 3, 4):
            self.assertEqual((self.results[index].error_kind, round(self.results[index].retry_at)), ("rate_limit", 5070))
        self.assertEqual(self.control.left, "rate_limit")
        self.assertIn("claude is limited until", self.results[1].error)

    def test_gate_waits_of_one_task_add_up_to_max_wait(self):
        script = "\n".join("%d 0 rate_limit 50" % second for second in range(10, 1000, 70))
        self.play(script, count=1, max_wait=200)
        self.assertEqual(self.results[0].status, "failed")
        self.assertLess(len(self.pool.starts), 6)
        self.assertTrue(self.control.left)

    def test_gate_quota_that_only_a_person_can_lift_is_not_waited_for(self):
        answers = self.play("10 0 quota\n20 2 ok", count=4, jobs=2, backends=self.BACKENDS, limits={"claude": 1})
        self.assertEqual(answers, [(0, "failed", 1), (1, "canceled", 0), (2, "ok", 1), (3, "canceled", 0)])
        self.assertEqual(self.results[1].error_kind, "quota")
        self.assertFalse(self.control.left, "no later time would change it")

    def test_gate_that_is_given_up_tells_so_once_and_cuts_a_long_error(self):
        pool = Clocked("10 0 quota\n11 1 quota\n20 2 rate_limit 9000")
        outcome = pool.outcome
        pool.outcome = lambda *event: outcome(*event)._replace(error="out of credits " + "x" * 999)
        self.play(pool=pool, count=4, jobs=3)
        self.assertEqual(len(self.notices), 1)
        self.assertRegex(self.notices[0], "^echo: out of credits x+[.]{3}: its other tasks are canceled$")
        self.assertLess(len(self.results[3].error), 300)

    def test_gate_keeps_the_reason_for_which_it_was_given_up(self):
        # the probe (0) succeeds after another task met a limit that is too long
        script = "10 0 rate_limit 10\n25 1 rate_limit 9000\n30 0 ok"
        answers = self.play(script, supply=FakeSupply(0, 1, *[clinvk.NOT_READY] * 40, 2, 3), jobs=2)
        self.assertEqual(answers[2:], [(2, "canceled", 0), (3, "canceled", 0)])
        self.assertEqual({self.results[index].error_kind for index in (1, 2, 3)}, {"rate_limit"})
        self.assertTrue(all(self.results[index].retry_at for index in (1, 2, 3)))

    def test_gate_limit_that_several_jobs_meet_is_told_of_once(self):
        self.play("10 0 rate_limit 600\n11 1 rate_limit 600\n12 2 rate_limit 600", count=3, jobs=3)
        self.assertEqual(len(self.notices), 1, self.notices)

    def test_gate_retry_that_waits_when_its_backend_is_given_up_says_until_when(self):
        self.play("10 0 rate_limit 10\n11 1 rate_limit 9000", count=2, jobs=2)
        self.assertEqual([(result.status, result.attempts, result.retry_at > 9000) for result in self.results.values()], [("failed", 1, True)] * 2)

    def test_gate_quota_that_states_its_end_is_waited_for(self):
        self.assertEqual(self.play("10 0 quota 60\n100 0 ok", count=1), [(0, "ok", 2)])

    def test_gate_person_is_needed_for_money_and_not_for_a_session_limit(self):
        for error, stated, needed in (
                ("You've hit your session limit · resets 3pm", 60, False), ("You've hit your monthly spend limit · resets Dec 1", 60, True),
                ("You've hit your usage limit. Upgrade to Pro to purchase more credits or try again in 2 days", 172800, False),
                ("You're out of credits", None, True), ("Your workspace is out of credits. Ask your workspace owner to refill", None, True),
                ("Quota exceeded for requests per day", None, False), ("Credit balance is too low", None, True), ("Insufficient Balance", None, True),
                ("402 Payment Required", None, True)):
            result = clinvk.Result(0, "claude", "failed", 1, error=error, error_kind="quota", retry_after_seconds=stated)
            self.assertEqual(clinvk.needs_person(result), needed, error)

    def test_gates_of_two_commands_of_one_name_are_two(self):
        one, other = (job(index, "echo", "p")._replace(definition=clinvk.Definition((name,))) for index, name in enumerate("xy"))
        self.play("10 0 rate_limit 100\n20 1 ok\n200 0 ok", supply=FakeSupply(one, other), jobs=1)
        self.assertEqual(self.pool.starts, [(0, 0), (10, 1), (121, 0)])


class BoundsOfARun(PolicyCase):
    def priced(self, script, costs, **policy):
        pool = Clocked(script)
        pool.costs = costs
        return self.play(pool=pool, **policy)

    def test_max_cost_starts_nothing_that_would_pass_it(self):
        answers = self.priced("10 0 ok\n20 1 ok\n30 2 ok", {0: 1.0, 1: 2.0, 2: 1.5}, count=5, max_cost=5)
        # 4.50 are spent and the mean is 1.50
        self.assertEqual(answers, [(0, "ok", 1), (1, "ok", 1), (2, "ok", 1), (3, "canceled", 0), (4, "canceled", 0)])
        self.assertEqual({self.results[index].error_kind for index in (3, 4)}, {"budget"})
        self.assertTrue(self.control.left)

    def test_max_cost_reserves_the_mean_for_each_running_task(self):
        self.priced("10 0 ok\n20 1 ok\n30 2 ok\n40 3 ok", {index: 1.0 for index in range(9)}, count=9, jobs=3, max_cost=4)
        self.assertEqual(self.pool.starts, [(0, 0), (0, 1), (0, 2), (10, 3)])
        self.assertEqual(round(self.pool.jobs[3].budget_usd, 2), 1.0)

    def test_max_cost_counts_what_earlier_runs_spent(self):
        for before, most, words in (([2.0], 2, "$2.0000 of max_cost $2 are spent, and a task costs $2.0000"),
                                    ([1.0, 0.5], 2, "$1.5000 of max_cost $2 are spent, and a task costs $0.7500"),
                                    ([0.5, None], 1.2, "$1.0000 of max_cost $1.2 are spent, $0.5000 of it for 1 attempt of unknown cost, and a task costs $0.5000")):
            pool, costs = Clocked(), clinvk.Costs()
            for cost in before:
                costs.add("claude", 1, cost, "")
            scheduler = clinvk.Scheduler(FakeSupply(0), pool, 1, clinvk.RunPolicy(max_cost=most), costs=costs, clock=pool.now)
            result, = scheduler.results()
            self.assertEqual((result.error_kind, result.error), ("budget", "canceled before it started (%s)" % words))

    def test_max_cost_that_is_used_up_with_the_last_task_leaves_nothing(self):
        self.priced("10 0 ok", {0: 5.0}, count=1, max_cost=5)
        self.assertFalse(self.control.left)

    def test_max_cost_that_is_used_up_while_the_input_continues_leaves_work(self):
        pool = Clocked("10 0 ok")
        pool.costs = {0: 5.0}
        self.play(pool=pool, supply=FakeSupply(0, *[clinvk.NOT_READY] * 99), max_cost=5)
        self.assertTrue(self.control.left)
        self.assertIn("$5.0000 of max_cost $5 are spent", self.notices[-1])

    def test_max_cost_is_not_missed_by_a_rounded_sum(self):
        pool = Clocked(seconds=5)
        pool.costs = {index: 0.1 for index in range(3)}
        self.assertEqual({status for _, status, _ in self.play(pool=pool, count=3, max_cost=0.3)}, {"ok"})

    def test_max_cost_counts_attempts_of_unknown_cost_as_the_dearest_one(self):
        script = "10 0 ok\n20 1 ok\n30 2 timeout\n40 3 worker_lost\n50 4 ok"
        for kind, policy, starts, spent in (("timeout", {}, 4, "$1.4000 of max_cost $1.6 are spent, $0.8000 of it for 2 attempts of unknown cost, and a task costs $0.3000"),
                                            ("timeout", {"allow_unknown_cost": True}, 6, None), ("not_found", {}, 5, "")):
            with self.subTest(kind=kind, **policy):
                pool = Clocked(script.replace("timeout", kind), seconds=10)
                pool.costs = {0: 0.4, 1: 0.2}
                self.play(pool=pool, count=6, backends=dict.fromkeys(range(6), "claude"), max_cost=1.6, retries=0, **policy)
                self.assertEqual(len(pool.starts), starts)
                self.assertIn(spent or "", self.results[5].error)

    def test_max_cost_of_which_nothing_is_known_starts_as_many_as_run_at_once(self):
        script = "10 0 timeout\n11 1 timeout\n12 2 timeout\n13 3 timeout\n14 4 timeout\n15 5 timeout"
        for backend, costs, policy, starts, left in (
                ("claude", {}, {}, 3, "unknown_cost"), ("claude", {1: 0.1}, {}, 6, ""), ("claude", {}, {"allow_unknown_cost": True}, 6, ""),
                ("claude", {0: 0.0}, {}, 4, "unknown_cost"), ("codex", {}, {}, 6, ""), ("claude", {}, {"max_cost": 0}, 6, "")):
            with self.subTest(backend=backend, costs=costs, **policy):
                pool = Clocked(script)
                pool.costs = costs
                self.play(pool=pool, count=6, jobs=2, backends=dict.fromkeys(range(6), backend), **dict({"max_cost": 9}, **policy))
                self.assertEqual((len(pool.starts), self.control.left), (starts, left))
        pool = Clocked("10 0 timeout")
        self.play(pool=pool, count=2, backends={0: "claude"}, max_cost=1)
        self.assertEqual((self.results[1].error_kind, self.results[1].error), (
            "budget", "canceled before it started (max_cost $1 cannot be kept without --allow-unknown-cost: no cost is known after 1 attempt)"))
        self.assertIn("no cost is known after 1 attempt: the other tasks are canceled", self.notices[-1])

    def test_max_failures_of_all_tasks_is_not_called_fail_fast(self):
        self.play("10 0 auth", supply=FakeSupply(0, bad(1), bad(2), 3), max_failures=1.0)
        self.assertEqual(self.results[3].error, "canceled before it started (max_failures: 3 tasks failed)")

    def test_max_failures_is_an_exact_share(self):
        for percent in range(1, 101):
            bounds = clinvk.Bounds(clinvk.RunPolicy(max_failures=percent / 100), clinvk.Costs(), 1, self.fail)
            for count in range(percent):
                self.assertFalse(bounds.failed)
                bounds.note(clinvk.Result(count, "claude", "failed", 1), 100)
            self.assertTrue(bounds.failed, percent)

    def test_max_failures_stop_the_run_at_that_number_or_share(self):
        for most, total, expected in ((2, None, 2), (0.5, 4, 2), (0.5, None, 3), (1, None, 1), (0, None, 6)):
            with self.subTest(most=most, total=total):
                supply = FakeSupply(*range(6))
                supply.total = total
                pool = Clocked("\n".join("%d %d auth" % (10 * index + 10, index) for index in range(6)))
                self.play(pool=pool, supply=supply, max_failures=most)
                self.assertEqual(sum(result.status == "failed" for result in self.results.values()), expected)

    def test_canary_runs_first_and_projects_the_rest(self):
        pool = Clocked("10 0 ok\n20 1 ok")
        pool.costs = {0: 0.1, 1: 0.3}
        supply = FakeSupply(*range(6))
        supply.total = 6
        self.play(pool=pool, supply=supply, jobs=3, canary=2)
        self.assertEqual(pool.starts[:5], [(0, 0), (0, 1), (20, 2), (20, 3), (20, 4)])
        self.assertIn("2 tasks succeeded; one takes 00:15 and $0.2000 on average; the other 4 take about 00:20 and $0.80", self.notices[0])

    def test_canary_names_the_tokens_that_answers_do_not_need(self):
        for tokens, fields, expected in (
                ((12100, 12110), {}, "12,100 of 12,100"), ((12000, 13000), {}, "12,500 of 12,500"),
                ((12100, 12100), {"prompt": "x" * 4000}, "11,100 of 12,100"), ((12100, 12100), {"prompt": "审" * 3000, "system_prompt": "s" * 400}, "9,800 of 12,100"),
                ((12100, 12100), {"prompt": "x" * 20000}, None), ((1900, 1900), {}, None), ((12100, 1900), {}, None), ((12100,), {}, None), ((), {}, None),
                ((12100, 12100), {"schema": {"type": "object", "title": "t" * 15000}}, None),
                ((12100, 12100), {"answer_only": True}, None), ((12100, 12100), {"sandbox_mode": "workspace"}, None),
                ((12100, 12100), {"sandbox_mode": "read-only"}, "12,100 of 12,100"), ((12100, 12100), {"backend": "echo"}, None),
                ((12100, 12100), {"backend": "codex"}, "12,100 of 12,100"), ((12100, 12100), "acted", None)):
            with self.subTest(tokens=tokens, fields=str(fields)[:80]):
                pool = Clocked("10 0 ok\n20 1 ok")
                pool.tokens, pool.acted = dict(enumerate(tokens)), fields == "acted"
                fields = dict({"backend": "claude", "prompt": "p"}, **({} if pool.acted else fields))
                items = [job(index, "claude", "p")._replace(task=clinvk.Task(**fields)) for index in range(3)]
                self.play(pool=pool, supply=FakeSupply(*items), jobs=3, canary=2)
                said = ["canary: about %s input tokens a task are the program's own; --answer-only leaves them out" % expected] if expected else []
                self.assertEqual([notice for notice in self.notices if "--answer-only" in notice], said)

    def test_canary_of_all_tasks_projects_nothing(self):
        supply = FakeSupply(0, 1)
        supply.total = 2
        self.play(pool=Clocked(seconds=5), supply=supply, canary=2)
        self.assertRegex(self.notices[0], "on average$")

    def test_canary_that_fails_cancels_the_rest_and_not_the_other_canaries(self):
        answers = self.play("10 0 auth\n20 1 ok", count=4, jobs=3, canary=2)
        self.assertEqual(answers, [(0, "failed", 1), (1, "ok", 1), (2, "canceled", 0), (3, "canceled", 0)])
        self.assertEqual(self.pool.calls, [])
        self.assertFalse(self.control.left)
        self.assertEqual(self.notices, ["canary: task 1 did not succeed: the other tasks are canceled"])

    def test_canary_is_tried_again_like_any_task(self):
        self.assertEqual(self.play("10 0 network\n20 0 ok\n30 1 ok", count=2, jobs=2, canary=1), [(0, "ok", 2), (1, "ok", 1)])

    def test_canary_whose_next_try_is_given_up_cancels_the_rest(self):
        answers = self.play("10 0 quota", count=2, canary=1, retry_on=("quota",))
        self.assertEqual(answers, [(0, "failed", 1), (1, "canceled", 0)])

    def test_canary_larger_than_the_run_holds_nothing_back(self):
        self.play(count=3, jobs=3, canary=9)
        self.assertEqual(len(self.pool.starts), 3)

    def test_one_per_workdir_runs_a_directory_alone_and_others_meanwhile(self):
        items = [job(index, "echo", "p") for index in range(4)]
        items = [item._replace(task=item.task._replace(workdir=workdir)) for item, workdir in zip(items, ("/", "/..", "/usr", "/"))]
        self.play("10 0 ok\n20 1 ok\n30 3 ok", supply=FakeSupply(*items), jobs=3, one_per_workdir=True)
        self.assertEqual(self.pool.starts, [(0, 0), (0, 2), (10, 1), (20, 3)])

    def test_tasks_whose_changes_are_judged_are_alone_in_their_work_tree(self):
        tests = os.path.join(ROOT, "tests")
        for judged, starts in (({"require_change": True}, [(0, 0), (0, 2), (10, 1), (20, 3)]), ({"protect": ("*.py",)}, [(0, 0), (0, 2), (10, 1), (20, 3)]),
                               ({}, [(0, 0), (0, 1), (0, 2), (10, 3)])):
            items = [job(index, "echo", "p") for index in range(4)]
            items = [item._replace(task=item.task._replace(workdir=workdir, **judged)) for item, workdir in zip(items, (ROOT, tests, "/usr", tests))]
            with unittest.mock.patch.object(clinvk, "work_tree", lambda path: "" if path == "/usr" else ROOT):
                self.play("10 0 ok\n20 1 ok\n30 3 ok", supply=FakeSupply(*items), jobs=3)
            self.assertEqual((self.pool.starts, self.notices), (starts, []), judged)

    def test_judged_tasks_of_one_work_tree_and_tasks_of_one_workdir_are_not_at_once(self):
        at_once, apart = [(0, 0), (0, 1)], [(0, 0), (10, 1)]
        tops = {"/r": "/r", "/r/sub": "/r", "/r/part": "/r/part", "/rx": "/rx"}
        for first, second, one_per_workdir, starts in (
                (("/r", True), ("/r/sub", True), False, apart), (("/r", True), ("/r/part", True), False, at_once),
                (("/r", True), ("/rx", True), False, at_once), (("/r", True), ("/r/sub", False), True, at_once), (("/r/sub", True), ("/r/sub", False), False, at_once),
                (("/r/sub", True), ("/r/sub", False), True, apart), (("/r/sub", False), ("/r/sub", True), True, apart),
                (("/r", False), ("/r/sub", True), True, apart), (("/r", False), ("/r/sub", False), True, at_once)):
            items = [job(index, "echo", "p", workdir=workdir, require_change=judged) for index, (workdir, judged) in enumerate((first, second))]
            with unittest.mock.patch.object(clinvk, "work_tree", tops.get):
                self.play("10 0 ok\n20 1 ok", supply=FakeSupply(*items), jobs=2, one_per_workdir=one_per_workdir)
            self.assertEqual(self.pool.starts, starts, (first, second))

    def test_scheduler_job_that_waits_for_its_directories_is_not_overtaken(self):
        script = "10 0 ok\n20 1 ok\n30 2 ok\n40 3 ok\n50 4 ok"
        for name, events, starts, held, items in (
                ("read later", script, [(0, 0), (0, 1), (0, 5), (10, 2), (30, 3), (30, 4)], 9,
                 ("echo /r", "echo /r/1", "echo /r/2 !", "echo /r/2", "echo /r", "echo /other")),
                ("judged later", script, [(0, 0), (10, 1), (20, 2), (30, 3)], 9, ("echo /r", "echo /r/1 !", "echo /r/2 !", "echo /r/2")),
                ("another backend", script, [(0, 0), (10, 1), (20, 2), (30, 3)], 9, ("echo /r", "echo /r", "gemini /r", "echo /r")),
                ("retry that has its directory", "10 0 rate_limit 60\n76 1 network\n90 1 ok\n99 0 ok",
                 [(0, 0), (10, 1), (77, 1), (90, 0)], 9, ("gemini /r", "echo /r/1 !")),
                ("limited backend", "10 0 rate_limit 60\n20 3 ok\n30 1 ok\n80 0 ok\n90 2 ok",
                 [(0, 0), (0, 1), (10, 3), (77, 0), (80, 2)], 9, ("gemini /z", "echo /r", "gemini /r/3 !", "echo /r/3")),
                ("backend that is given up", "10 0 quota\n20 3 ok\n30 1 ok", [(0, 0), (0, 1), (10, 3)], 9,
                 ("gemini /z", "echo /r", "gemini /r/3 !", "echo /r/3")),
                ("as many as may be held", script, [(0, 0), (10, 1), (10, 3), (20, 2)], 2, ("echo /r", "echo /r/1 !", "echo /r/1", "echo /other"))):
            jobs = [job(index, item.split()[0], "p", workdir=item.split()[1], require_change=item.endswith("!")) for index, item in enumerate(items)]
            with unittest.mock.patch.multiple(clinvk, work_tree=lambda path: "/r", MAX_HELD=held), self.subTest(name):
                self.play(events, supply=FakeSupply(*jobs), jobs=3, one_per_workdir=True)
                self.assertEqual(self.pool.starts, starts)

    def test_task_whose_changes_are_judged_keeps_its_work_tree_until_its_retry(self):
        for judged, starts in (({"protect": ("*.py",)}, [(0, 0), (11, 0), (20, 1)]), ({}, [(0, 0), (10, 1), (12, 0)])):
            items = [job(index, "echo", "p") for index in range(2)]
            items = [item._replace(task=item.task._replace(workdir=ROOT, **judged)) for item in items]
            with unittest.mock.patch.object(clinvk, "work_tree", lambda path: ROOT):
                self.play("10 0 network\n20 0 ok\n30 1 ok" if judged else "10 0 network\n12 1 ok\n20 0 ok", supply=FakeSupply(*items), jobs=1, retries=1)
            self.assertEqual(self.pool.starts, starts, judged)

    def test_retry_of_a_judged_task_comes_before_a_task_of_another_backend_in_its_work_tree(self):
        items = [job(index, backend, "p", protect=("*.py",), workdir=ROOT) for index, backend in enumerate(("echo", "gemini", "echo"))]
        with unittest.mock.patch.object(clinvk, "work_tree", lambda path: ROOT):
            self.play("10 0 network\n20 0 ok\n30 1 ok\n40 2 ok", supply=FakeSupply(*items), jobs=2, retries=1)
        self.assertEqual(self.pool.starts, [(0, 0), (11, 0), (20, 1), (30, 2)])

    def test_judged_task_whose_worker_was_lost_is_not_tried_again(self):
        for judged, starts in (({"protect": ("*.py",)}, 1), ({}, 2)):
            with unittest.mock.patch.object(clinvk, "work_tree", lambda path: ROOT):
                self.play("10 0 worker_lost\n20 0 ok", supply=FakeSupply(job(0, "echo", "p", workdir=ROOT, **judged)))
            self.assertEqual(len(self.pool.starts), starts)
            self.assertEqual(self.results[0].warnings, ("not tried again, because what it has changed is not known or not permitted",) * (starts == 1))

    def test_next_attempt_knows_the_changes_of_those_before_it(self):
        with unittest.mock.patch.object(clinvk, "work_tree", lambda path: ROOT):
            self.play("10 0 network\n20 0 ok", supply=FakeSupply(job(0, "echo", "p", workdir=ROOT, require_change=True)))
        self.assertEqual((self.pool.jobs[0].attempt, self.pool.jobs[0].changes), (2, clinvk.Changes(("", ""))))

    def test_writers_in_one_work_tree_are_warned_of_once(self):
        for backend, sandbox, count in (("claude", "workspace", 1), ("claude", "read-only", 0), ("echo", "default", 0)):
            items = [job(index, backend, "p") for index in range(3)]
            items = [item._replace(task=item.task._replace(sandbox_mode=sandbox, workdir=ROOT)) for item in items]
            self.play(supply=FakeSupply(*items), jobs=3)
            self.assertEqual(len(self.notices), count, (backend, self.notices))

    def test_warning_of_writers_advises_no_option_that_was_given(self):
        items = [job(index, "claude", "p", sandbox_mode="full", workdir=os.path.join(ROOT, name)) for index, name in enumerate(("", "tests"))]
        for given in (False, True):
            self.play(supply=FakeSupply(*items), jobs=2, one_per_workdir=given)
            self.assertEqual(self.notices, ['warning: tasks that may write run at once in the git work tree %s; give each a work tree of its own%s'
                                            % (clinvk.quoted(ROOT), "" if given else ", or --one-per-workdir")])

    def test_writers_are_agents_only(self):
        items = [job(index, backend, "p") for index, backend in enumerate(("claude", "echo"))]
        items = [item._replace(task=item.task._replace(sandbox_mode=mode, workdir=ROOT)) for item, mode in zip(items, ("read-only", "full"))]
        writer = items[0]._replace(index=2, task=items[0].task._replace(sandbox_mode="full"))
        self.play(pool=Clocked("10 0 ok\n20 2 ok\n30 1 ok"), supply=FakeSupply(items[0], items[1], writer), jobs=2)
        self.assertEqual(self.notices, [])

    def test_resumed_jobs_cost_no_start(self):
        pool = Clocked()
        resume = lambda item: clinvk.unfinished(item, "ok", "", "", exit_code=0) if item.index != 1 else None  # noqa: E731
        started = []
        scheduler = clinvk.Scheduler(FakeSupply(0, 1, 2), pool, 1, clock=pool.now, resume=resume, on_start=started.append)
        self.assertEqual(sorted(result.index for result in scheduler.results()), [0, 1, 2])
        self.assertEqual((pool.starts, [item.index for item in started]), ([(0, 1)], [1]))

    def test_job_is_started_as_on_start_returns_it(self):
        pool, handed = FakePool(), []
        start, pool.start = pool.start, lambda item: handed.append(item) or start(item)
        scheduler = clinvk.Scheduler(FakeSupply(0, 1), pool, 1, on_start=lambda item: item._replace(follow=True) if item.index else None)
        self.assertEqual([result.index for result in scheduler.results()], [0, 1])
        self.assertEqual([(item.index, item.follow) for item in handed], [(0, False), (1, True)])

    def test_resumed_jobs_of_a_stopped_run_keep_their_results(self):
        control = clinvk.Control()
        control.cancel()
        pool = Clocked()
        resume = lambda item: clinvk.unfinished(item, "ok", "", "", exit_code=0) if item.index else None  # noqa: E731
        scheduler = clinvk.Scheduler(FakeSupply(0, 1), pool, 1, clock=pool.now, resume=resume, control=control)
        self.assertEqual([result.status for result in scheduler.results()], ["canceled", "ok"])


class RandomPool(FakePool):
    """A pool whose jobs end in random ways after random times.  Its `start` checks what may start."""

    KINDS = ("", "rate_limit", "quota", "credit", "overloaded", "network", "worker_lost", "auth", "canceled", "not begun")

    def __init__(self, rng, policy, jobs, control):
        super().__init__()
        self.rng, self.policy, self.jobs, self.control = rng, policy, jobs, control
        self.time, self.waits, self.ahead, self.stopped = 0.0, 0, rng.choice((0, 1)), False
        self.stop_at = rng.choice((1e9, 1e9, rng.random() * 3000))
        self.kinds = rng.sample(self.KINDS, rng.randint(1, len(self.KINDS))) + [""] * rng.choice((1, 5, 20))
        self.starts, self.costs, self.good = collections.Counter(), [], set()
        self.opens, self.probes = {}, {}  # of the backends that are paused: from when on, and the job that probes

    def cancel(self, reason):
        self.stopped = True

    def start(self, item):
        policy, index, backend, places = self.policy, item.index, item.task.backend, self.jobs + self.ahead
        assert not self.stopped and index not in self.running and index not in self.good
        self.starts[index] += 1
        self.running[index] = item
        same = [other.task for other in self.running.values() if other.task.backend == backend]
        assert len(self.running) <= places and len(same) <= policy.limits.get(backend, places)
        workdirs = [other.task.workdir for other in self.running.values()]
        assert not policy.one_per_workdir or len(workdirs) == len(set(workdirs))
        for other in self.running.values():
            is_judged = item.task.require_change and other.task.require_change and other is not item
            assert not is_judged or clinvk.work_tree(item.task.workdir) != clinvk.work_tree(other.task.workdir), "in the work tree of a judged job"
        assert item.attempt == self.starts[index] or not (policy.retries or policy.max_cost)
        if policy.max_cost and self.costs:
            expected = sum(self.costs) * (1 + len(self.running) / len(self.costs))
            assert expected <= policy.max_cost + 1e-6, "the budget"
        assert len(self.starts) <= (policy.canary or 999) or len(self.good) >= policy.canary
        if backend in self.opens:
            assert backend not in self.probes and self.time >= self.opens[backend], "the pause"
            self.probes[backend] = index

    def wait(self, seconds=0.25):
        self.waits += 1
        assert self.waits < 50000, "the run does not end"
        self.time += seconds if self.rng.random() < 0.2 else self.rng.choice((1, 10, 300)) * self.rng.random()
        if self.time > self.stop_at:
            self.control.cancel()
        if not self.running or self.rng.random() < 0.2:
            return []
        return [self.over(self.rng.choice(list(self.running)))]

    def over(self, index):
        item, kind = self.running.pop(index), self.rng.choice(self.kinds)
        backend, limited = item.task.backend, kind in ("rate_limit", "quota") and self.policy.retries
        stated = self.rng.choice((None, 0, 5, 60, 3000, 20000)) if kind not in ("", "credit") else None
        cost = self.rng.choice((None, 0.0, 0.1, 1.0)) if kind not in ("canceled", "not begun") else None
        self.costs += [cost] if cost is not None else []
        is_probe = self.probes.get(backend) == index
        if limited and (is_probe or backend not in self.opens):
            self.opens[backend] = self.time + (60 if stated is None else stated)
        elif limited and stated is not None:
            self.opens[backend] = max(self.opens[backend], self.time + stated)
        elif is_probe:
            del self.opens[backend]
        if is_probe:
            del self.probes[backend]
        self.good |= set() if kind else {index}
        self.starts[index] -= kind == "not begun"
        status = {"": "ok", "worker_lost": "lost", "canceled": "canceled"}.get(kind, "failed")
        result = clinvk.unfinished(item, status, kind, {"credit": "quota", "not begun": "backend"}.get(kind, kind), exit_code=0,
                                   attempts=0 if kind == "not begun" else item.attempt)
        return result._replace(cost_usd=cost, retry_after_seconds=stated, acted=self.rng.random() < 0.1, end_time=result.start_time + 1,
                               changes=None if kind == "worker_lost" else clinvk.Changes(("", "")))


class RandomRuns(unittest.TestCase):
    """Random policies, inputs and events: each run ends, keeps its bounds, and answers each task once."""

    def one(self, seed):
        rng = random.Random(seed)
        jobs, count, control = rng.choice((1, 2, 3, 8)), rng.choice((0, 1, 3, 10, 30)), clinvk.Control()
        policy = clinvk.RunPolicy(
            retries=rng.choice((0, 1, 2, 5)), retry_acted=rng.random() < 0.5, max_wait=rng.choice((0, 10, 3600, 100000)),
            retry_on=(*clinvk.NO_POLICY.retry_on, *rng.choice(((), (), ("quota", "auth")))),
            limits=rng.choice(({}, {"claude": 1}, {"claude": 2, "codex": 1}, {"claude": 99})), one_per_workdir=rng.random() < 0.3,
            max_cost=rng.choice((0, 0, 0.5, 20)), max_failures=rng.choice((0, 0, 0, 1, 3, 0.5, 1.0)), canary=rng.choice((0, 0, 1, 2, 50)))
        pool, items, judged = RandomPool(rng, policy, jobs, control), [], rng.choice((0, 0, 0.1, 0.5))
        for index in range(count):
            items += [clinvk.NOT_READY] * rng.choice((0, 0, 0, 1, 3))
            item = job(index, rng.choice(("claude", "codex", "echo")), "p")
            task = item.task._replace(workdir=rng.choice(("/", "/usr", "/etc", "/usr/lib")), require_change=rng.random() < judged, sandbox_mode=rng.choice(("full", "read-only")))
            items.append(item._replace(task=task) if rng.random() < 0.95 else bad(index))
        supply = FakeSupply(*items, reads_ahead=rng.random() < 0.8)
        supply.total = rng.choice((None, count))
        done = {index for index in range(count) if rng.random() < rng.choice((0, 0, 0.2))}
        scheduler = clinvk.Scheduler(
            supply, pool, jobs, policy, control=control, clock=lambda: pool.time, wall=lambda: pool.time, jitter=rng.random,
            resume=lambda item: clinvk.unfinished(item, "ok", "resumed", "", attempts=7) if item.index in done else None)
        indexes = []
        for result in scheduler.results():
            indexes.append(result.index)
            if result.error not in ("no task", "resumed", "not begun"):
                assert result.attempts == pool.starts[result.index], (result, pool.starts[result.index])
        input_ended = not supply.items or control.level or scheduler._stop_reason()
        assert sorted(indexes) == list(range(len(indexes))) and input_ended, indexes
        assert len(indexes) == count or clinvk.NOT_READY in items
        assert not pool.running

    @support.only_in_full_runs
    def test_scheduler_random_runs_keep_all_bounds(self):
        first = int(os.environ.get("CLINVK_SEED", random.randrange(10 ** 9)))
        for seed in range(first, first + 1500):
            try:
                with unittest.mock.patch.object(clinvk, "work_tree", lambda path: path.replace("/lib", "")):
                    self.one(seed)
            except Exception as error:
                raise AssertionError("CLINVK_SEED=%d repeats this: %r" % (seed, error)) from error


class Repairs(SchedulerCase):
    """After a check that failed the program is asked again, in its session where there can be one."""

    SESSION = "5e551000-0000-4000-8000-00000000000%d"

    def play(self, *ends, backend="claude", attempts=3, policy=clinvk.NO_POLICY, control=None, **fields):
        """Run one task, whose attempts end so: (status, kind, output of the check).  Return (its result, the jobs that were started)."""
        started, ends = [], list(ends)

        class Player(FakePool):
            def start(pool, item):
                started.append(item)
                super().start(item)

            def wait(pool, seconds=0.25):
                if not pool.running:
                    return []
                (item,) = pool.running.values()
                pool.running.clear()
                status, kind, output, *more = ends.pop(0)
                check = {"status": "failed", "command": "make test", "exit_code": 2, "output": output} if kind == "check" else None
                result = clinvk.unfinished(item, status, "error %s" % kind if kind else "", kind, exit_code=bool(kind), attempts=item.attempt)
                result = result._replace(check=check, answer="the answer", session_id=self.SESSION % 1, cost_usd=0.5, usage={"total_tokens": 10 * len(started)},
                                         usage_is_cumulative=backend == "codex", acted=True)
                return [result._replace(**dict(*more))]

        self.pool = Player()
        item = job(0, backend, "do it", check=(("sh", "-c", "make test"),), attempts=attempts, **fields)
        supply = FakeSupply(item)
        scheduler = clinvk.Scheduler(supply, self.pool, 1, policy, clock=lambda: self.now(), control=control, jitter=lambda: 0.0)
        (result,) = scheduler.results()
        self.assertEqual(ends, [])
        self.assertEqual(result.task, item.task)
        return result, started

    FAILED, OK = ("failed", "check", "1 of 9 failed"), ("ok", "", "")

    def test_task_is_tried_until_its_check_passes_or_its_attempts_are_used_up(self):
        other, third = ("failed", "check", "something else"), ("failed", "check", "again something else")
        for ends, attempts, status in (
                ((self.OK,), 3, "ok"), ((self.FAILED, self.OK), 3, "ok"), ((self.FAILED, other, self.OK), 3, "ok"), ((self.FAILED,), 1, "failed"),
                ((self.FAILED,), 0, "failed"), ((self.FAILED, other), 2, "failed"), ((self.FAILED, other, third), 3, "failed")):
            with self.subTest(ends=len(ends), attempts=attempts):
                result, started = self.play(*ends, attempts=attempts)
                self.assertEqual((result.status, result.attempts, len(result.tries)), (status, len(ends), len(ends) if len(ends) > 1 else 0))
                self.assertEqual((result.cost_usd, [item.attempt for item in started]), (0.5 * len(ends), list(range(1, len(ends) + 1))))

    def test_answer_that_is_not_as_its_schema_is_asked_for_again(self):
        bad, late = ("failed", "schema", ""), ("timeout", "timeout", "")
        for ends, retries, status in (((bad, self.OK), 1, "ok"), ((bad, bad), 1, "failed"), ((bad,), 0, "failed"), ((bad, bad, self.OK), 2, "ok"), ((bad, late), 2, "timeout")):
            with self.subTest(ends=len(ends), retries=retries):
                result, started = self.play(*ends, schema={"type": "object"}, schema_retries=retries)
                self.assertEqual((result.status, result.attempts, result.cost_usd), (status, len(ends), 0.5 * len(ends)))
                self.assertEqual([item.resume for item in started[1:]], [self.SESSION % 1] * (len(ends) - 1))
                self.assertEqual({"error schema" in item.repair for item in started[1:]}, {True} if len(ends) > 1 else set())
        self.assertEqual(self.play(bad, backend="echo", schema={"type": "object"})[0].attempts, 1)
        self.assertEqual(self.play(bad)[0].attempts, 1)

    def test_two_equal_failures_end_it(self):
        result, _ = self.play(self.FAILED, ("failed", "check", "12 of 9 failed"), attempts=9)
        self.assertEqual((result.status, result.error_kind, result.attempts), ("failed", "check", 2))
        self.assertEqual(result.warnings, ("not tried again, because the check failed twice with the same output",))
        last, _ = self.play(self.FAILED, ("failed", "check", "12 of 9 failed"), attempts=2)
        self.assertEqual((last.attempts, last.warnings), (2, ()))
        code = {"check": {"status": "failed", "command": "make test", "exit_code": 3, "output": "1 of 9 failed"}}
        result, _ = self.play(self.FAILED, (*self.FAILED, code), self.OK, attempts=9)
        self.assertEqual((result.status, result.attempts), ("ok", 3))

    def test_other_errors_are_not_repaired(self):
        for status, kind in (("failed", "check_error"), ("failed", "max_turns"), ("failed", "quota"), ("timeout", "timeout"), ("canceled", "canceled"), ("failed", "backend")):
            result, _ = self.play((status, kind, ""))
            self.assertEqual((result.error_kind, result.attempts), (kind, 1))

    def test_transient_error_of_a_repair_is_retried_with_the_same_prompt_and_counts_by_itself(self):
        policy = clinvk.RunPolicy(retries=1, retry_acted=True)
        result, started = self.play(self.FAILED, ("failed", "network", ""), self.OK, attempts=2, policy=policy)
        self.assertEqual((result.status, result.attempts), ("ok", 3))
        self.assertEqual(started[1][:3] + (started[1].repair, started[1].resume), started[2][:3] + (started[2].repair, started[2].resume))

    def test_session_is_kept_for_the_attempts_and_removed_at_the_end(self):
        for ends, attempts in (((self.FAILED, self.OK), 2), ((self.OK,), 2), ((self.FAILED,), 1)):
            _, started = self.play(*ends, attempts=attempts)
            self.assertEqual([item.keep for item in started], [attempts > 1] * len(ends))
            self.assertEqual([call for call in self.pool.calls if "forget" in call], ["forget " + self.SESSION % 1] * (attempts > 1))
        _, started = self.play(self.FAILED, self.OK, keep=True)
        self.assertEqual([call for call in self.pool.calls if "forget" in call], [])

    def test_usage_of_codex_is_that_of_its_session(self):
        self.assertEqual(self.play(self.FAILED, self.OK)[0].usage, {"total_tokens": 30})
        self.assertEqual(self.play(self.FAILED, self.OK, backend="codex")[0].usage, {"total_tokens": 20})
        new_session = self.OK + ({"session_id": self.SESSION % 2},)
        self.assertEqual(self.play(self.FAILED, new_session, backend="codex")[0].usage, {"total_tokens": 30})

    def test_stopped_run_repairs_nothing(self):
        control = clinvk.Control()
        control.level, control.reason = 1, "interrupted"
        scheduler = clinvk.Scheduler(FakeSupply(), FakePool(), 1, control=control)
        entry = scheduler._entry(job(0, "claude", "p", check=(("true",),), attempts=3))
        result = clinvk.unfinished(entry.job, "failed", "e", "check")
        entry.gate.started(0)
        self.assertIs(scheduler._again(entry, result), result)
        self.assertTrue(control.untried)


if __name__ == "__main__":
    unittest.main()
