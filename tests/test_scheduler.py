"""Section 10, Scheduler: tables of events with a fake pool and a fake clock.  Nothing here waits or starts a process."""
import unittest

from support import clinvk, job


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

    def test_scheduler_room_is_kept_for_each_kind_of_run(self):
        for supply, options, most in ((FakeSupply(*range(9)), {}, 4), (FakeSupply(*range(9), reads_ahead=False), {}, 3),
                                      (FakeSupply(*range(9)), {"fail_fast": True}, 3)):
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


    def test_dry_run_results_are_in_the_order_of_the_input(self):
        results = clinvk.run_pool(FakeSupply(0, 1, bad(2), 3), jobs=3, dry_run=True)
        self.assertEqual([(result.index, result.status) for result in results],
                         [(0, "skipped"), (1, "skipped"), (2, "failed"), (3, "skipped")])


class Limits(SchedulerCase):
    def test_scheduler_full_backend_waits_while_others_start(self):
        backends = {0: "a", 1: "a", 2: "b", 3: "a"}
        pool = FakePool(end(2), end(0), end(1))
        self.run_it(FakeSupply(0, 1, 2, 3, backends=backends), pool, jobs=3, limits={"a": 1})
        self.assertEqual(pool.calls, ["start 0", "start 2", "start 1", "start 3"])

    def test_scheduler_reads_no_more_than_it_may_hold(self):
        count = clinvk.MAX_HELD + 10
        supply = FakeSupply(*range(count))
        left = []
        pool = FakePool(lambda pool: left.append(len(supply.items)) or [pool.ended(0)])
        self.assertEqual(len(self.run_it(supply, pool, limits={"echo": 1})), count)
        self.assertEqual(left, [count - 1 - clinvk.MAX_HELD])

    def test_scheduler_held_jobs_of_a_stopped_run_are_canceled(self):
        control = clinvk.Control()
        pool = FakePool(lambda pool: control.cancel() or [pool.ended(0)])
        self.assertEqual(self.run_it(FakeSupply(0, 1, 2), pool, limits={"echo": 1}, control=control),
                         [(0, "ok"), (1, "canceled"), (2, "canceled")])


class Stopping(SchedulerCase):
    def test_scheduler_fail_fast_begins_nothing_after_the_first_failure(self):
        for status in clinvk.FAILED_STATUSES:
            pool = FakePool(end(0, status), end(1, "canceled"))
            supply = FakeSupply(*range(4))
            self.assertEqual(self.run_it(supply, pool, fail_fast=True),
                             [(0, status), (1, "canceled"), (2, "canceled"), (3, "canceled")])
            self.assertEqual((pool.calls, pool.reason), (["start 0", "start 1", "cancel"], "fail-fast"))
            self.assertEqual(self.errors[3], "canceled before it started (fail-fast)")
            self.assertTrue(supply.stopped)

    def test_scheduler_fail_fast_counts_input_that_is_no_task(self):
        pool = FakePool()
        self.assertEqual(self.run_it(FakeSupply(bad(0), 1), pool, fail_fast=True), [(0, "failed"), (1, "canceled")])
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
        self.assertEqual(self.run_it(FakeSupply(*range(3)), pool, jobs=1, control=control), [(0, "ok"), (1, "ok"), (2, "canceled")])
        self.assertEqual(pool.calls, ["start 0", "start 1", "cancel", "kill"])
        self.assertEqual(self.errors[2], "canceled before it started (the reader went away)")

    def test_scheduler_cancel_without_a_reason_begins_nothing_more(self):
        control = clinvk.Control()
        pool = FakePool(lambda pool: control.cancel("") or [pool.ended(0)])
        self.assertEqual(self.run_it(FakeSupply(*range(3)), pool, jobs=1, control=control, fail_fast=True),
                         [(0, "ok"), (1, "canceled"), (2, "canceled")])
        self.assertEqual(self.errors[2], "canceled before it started (interrupted)")

    def test_scheduler_pool_that_fails_ends_the_run_but_not_what_runs(self):
        def fail(pool):
            pool.failure = "the disk is full"
            return []

        pool = FakePool(fail, end(1), end(0))
        self.assertEqual(self.run_it(FakeSupply(*range(4)), pool, jobs=1), [(1, "ok"), (0, "ok"), (2, "canceled"), (3, "canceled")])
        self.assertNotIn("cancel", pool.calls)
        self.assertEqual(self.errors[3], "canceled before it started (the disk is full)")

    def test_scheduler_stopped_run_does_not_wait_for_more_input(self):
        control = clinvk.Control()
        pool = FakePool(lambda pool: control.cancel() or [pool.ended(0)])
        supply = FakeSupply(0, clinvk.NOT_READY, clinvk.NOT_READY, 1, *[clinvk.NOT_READY] * 50)
        self.assertEqual(self.run_it(supply, pool, control=control), [(0, "ok"), (1, "canceled")])
        self.assertGreater(len(supply.items), 40, "it was asked for no longer than TICK_SECONDS")

    def test_scheduler_exceptions_of_the_supply_pass_through(self):
        class Broken(FakeSupply):
            def next_job(self):
                raise LookupError("no more")

        with self.assertRaises(LookupError):
            self.run_it(Broken(), FakePool())


if __name__ == "__main__":
    unittest.main()
