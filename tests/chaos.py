#!/usr/bin/env python3
"""Random kills at random moments: `python3 tests/chaos.py N [--seed S] [--start-method fork|spawn] [--round K] [--at-once M] [--events 'A;B']`.

N rounds, each a real `clinvk parallel` whose backends start grandchildren, in their group and out of it, deaf to SIGTERM,
holding stdout, with an empty environment.  At a random moment one event hits it: a worker, several, a backend, the
parent, or the parent and all workers are killed; a signal comes, to it, to its group, to all, or twice; the reader of its
stdout goes away; its directory is removed; or nothing.  Every other round keeps logs.  In a nested round the backends start runs of their own.  Whatever
happens, every task is answered exactly once (of a killed parent: every line is whole), the exit status and the totals are
true, nothing hangs, no process is left running and no file in TMPDIR.  A failure prints the seed and the round, which replay it with the same --events.

With `--resume N`: N rounds of runs with --results and --resume.  Each run is killed at a random moment, until the last one, which
is left alone.  The file always opens, every task gets exactly one `ok` line, and no task that had one runs again.

The programs that stand for `cat`, `claude`, `codex` and `gemini` are a shell that takes the prompt for its script.
"""
import argparse
import collections
import concurrent.futures
import json
import os
import py_compile
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "clinvk.py")

ROUND_SECONDS = 180.0    # more is a hang
CLEAN_SECONDS = 60.0     # after a SIGKILL of the parent: the grace of 5 s, and time for a busy machine
ATOMIC_BYTES = 4096      # what a pipe takes whole or not at all: a longer line may be torn by SIGKILL, and by nothing else

STATUSES = {"ok", "failed", "timeout", "canceled", "lost", "skipped"}
BACKENDS = ("echo", "echo", "echo", "claude", "codex", "gemini")

# What the programs print around an answer.
WRAPPED = {
    "echo": ("", "\\n"),
    "claude": ('{"type":"result","subtype":"success","is_error":false,"result":"', '"}\\n'),
    "codex": ('{"type":"thread.started","thread_id":"t"}\\n{"type":"item.completed","item":{"type":"agent_message","text":"',
              '"}}\\n{"type":"turn.completed","usage":{"input_tokens":3,"output_tokens":2}}\\n'),
    "gemini": ('{"type":"init","session_id":"s","model":"m"}\\n{"type":"message","role":"assistant","content":"',
               '"}\\n{"type":"result","status":"success"}\\n'),
}

# Grandchildren; each would live for most of a minute.  %s is the round's mark, for those whose environment is empty.
GRANDCHILDREN = {
    "group": "sleep 45.%s &",
    "session": "setsid sleep 45.%s &",
    "deaf": "(trap '' TERM INT HUP; exec sleep 45.%s) &",
    "deaf session": "setsid sh -c 'trap \"\" TERM INT HUP; while :; do sleep 45.%s; done' &",
    "late writer": "(i=0; while [ $i -lt 900 ]; do echo late; sleep 0.05; i=$((i+1)); done; : 45.%s) &",
    "late writer session": "setsid sh -c 'i=0; while [ $i -lt 900 ]; do echo late; sleep 0.05; i=$((i+1)); done; : 45.%s' &",
    "spawner": "setsid sh -c 'i=0; while [ $i -lt 400 ]; do setsid sleep 45.%s & sleep 0.03; i=$((i+1)); done' &",
    "bare": "setsid env -i /bin/sleep 45.%s &",
}
NESTED = """echo '{"prompt": "setsid sleep 45.%s & sleep 45"}' | "$CHAOS_PYTHON" "$CHAOS_PROGRAMS/clinvk.pyc" parallel -b echo -q >/dev/null 2>&1 &"""
POLITE = "trap 'printf saved; exit 0' TERM"  # for the events that must not kill at once
LATE = ("late writer", "late writer session")

Plan = collections.namedtuple("Plan", "prompt backend status output late timeout seconds")
Event = collections.namedtuple("Event", "weight signals")

# Each event and how often it is drawn; `signals`: the run is stopped by it.
EVENTS = {
    "nothing": Event(6, ()),
    "worker killed": Event(30, ()),
    "workers killed": Event(10, ()),
    "backend killed": Event(8, ()),
    "parent killed": Event(26, ()),
    "SIGINT": Event(18, (signal.SIGINT,)),
    "SIGINT to the group": Event(18, (signal.SIGINT,)),
    "SIGTERM": Event(14, (signal.SIGTERM,)),
    "SIGHUP": Event(10, (signal.SIGHUP,)),
    "two SIGINTs": Event(14, (signal.SIGINT, signal.SIGINT)),
    "reader gone": Event(20, ()),
    "directory removed": Event(16, ()),
    "all killed": Event(16, ()),
    "nested, worker killed": Event(8, ()),
    "nested, parent killed": Event(8, ()),
    "nested, all killed": Event(8, ()),
    "two SIGTERMs": Event(16, (signal.SIGTERM, signal.SIGTERM)),
    "SIGTERM to all": Event(16, (signal.SIGTERM,)),
}
WITH_DEAD_WORKERS = [event for event in EVENTS if event.endswith(("worker killed", "workers killed", "all killed"))]


class Failure(Exception):
    """What a round showed to be wrong."""


def require(truth, message, *values):
    if not truth:
        raise Failure(message % values if values else message)


def make_programs(directory):
    os.makedirs(directory)
    for name in ("cat", "claude", "codex", "gemini"):
        path = os.path.join(directory, name)
        with open(path, "w") as file:
            file.write("#!/bin/sh\nexec /bin/sh\n")
        os.chmod(path, 0o755)
    # Python would compile the file at each start, for longer than a run takes.
    py_compile.compile(SOURCE, os.path.join(directory, "clinvk.pyc"), doraise=True,
                       invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


def environments():
    """(pid, environment, command line) of every process."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open("/proc/%s/environ" % entry, "rb") as file:
                    environment = file.read()
                with open("/proc/%s/cmdline" % entry, "rb") as file:
                    yield int(entry), environment, file.read()
            except OSError:
                continue


def children(pid):
    """The processes that `pid` started, without the helper that spawn keeps."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open("/proc/%s/stat" % entry, "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                with open("/proc/%s/cmdline" % entry, "rb") as file:
                    helper = b"resource_tracker" in file.read()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] not in (b"Z", b"X") and not helper:
                found.append(int(entry))
    return found


def handles(pid, number):
    """Whether the process has a handler for that signal."""
    with open("/proc/%d/status" % pid) as file:
        caught = next((line.split()[1] for line in file if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)


def workers(parent):
    """The workers of a run: unlike its guard they are in its session."""
    found = []
    for child in children(parent):
        try:
            if os.getsid(child) == parent:
                found.append(child)
        except ProcessLookupError:
            continue
    return found


def is_guard(pid):
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            return b"GUARD" in file.read()
    except OSError:
        return False


def kill(pid, number):
    try:
        os.kill(pid, number)
        return True
    except ProcessLookupError:
        return False


class Round:
    """One round, all of it drawn from its own random numbers."""

    def __init__(self, number, seed, start_method, programs, events):
        self.random = random.Random("%s:%d" % (seed, number))
        self.mark = "%06d%05d" % (os.getpid() % 1000000, number)
        self.start_method, self.programs = start_method, programs
        chance = self.random
        self.event = chance.choices(events, [EVENTS[event].weight for event in events])[0]
        self.jobs = chance.randint(1, 6)
        self.form = chance.choices(("--jsonl", "--json"), (3, 1))[0]
        self.quiet = chance.random() < 0.2
        self.fail_fast = chance.random() < 0.1
        self.keeps_directory = chance.random() < 0.15
        self.keeps_logs = number % 2 == 0
        self.source = chance.choice(("batch file", "lines file", "stdin file", "slow pipe", "slow pipe"))
        # Who ignores SIGTERM costs the grace of five seconds, but for a second signal.
        self.polite = self.event in ("two SIGTERMs", "SIGTERM to all")
        self.stubborn = not self.polite and chance.random() < (0.5 if self.event == "two SIGINTs" else 0.05)
        self.plans = [self.plan(index) for index in range(chance.randint(1, 12))]
        self.broken_line = len(self.plans) // 2 if self.source == "slow pipe" and len(self.plans) > 2 and chance.random() < 0.1 else -1
        # From the start, or from when there are workers, within what the tasks may take.
        self.at_start = chance.random() < 0.2
        span = 0.15 if self.at_start else min(1.0, sum(plan.seconds for plan in self.plans) / self.jobs)
        self.moment = chance.uniform(0, span)
        # Between two signals, or two kills: politely stopped is a run within milliseconds.
        self.gap = chance.uniform(0, 0.4 if self.stubborn or self.event == "workers killed" else 0.02)
        self.killed = 0       # workers, or backends
        self.sent = 0         # signals
        self.late_event = False
        self.unborn = False      # a signal came when Python was still starting up: what it does then is not ours
        self.unattended = False  # the parent was killed when it had no guard yet

    def plan(self, index):
        chance = self.random
        backend = chance.choice(BACKENDS)
        token = "answer %d of %s" % (index, self.mark)
        polite = self.polite and backend == "echo"
        lines = [POLITE] * polite + [': > "$CHAOS_DIRECTORY/started.$CLINVK_TASK"']
        if self.event.startswith("nested"):
            lines.append(NESTED % self.mark)
        late = False
        # A kill of a worker can leave behind what has neither the mark in its environment nor a parent.
        kinds = [kind for kind in GRANDCHILDREN if kind != "bare" or self.event not in WITH_DEAD_WORKERS]
        for kind in chance.sample(kinds, chance.choice((0, 0, 1, 1, 2))):
            if kind in LATE and backend != "echo":
                continue
            late = late or kind in LATE
            lines.append(GRANDCHILDREN[kind] % self.mark)
        if self.stubborn and index < 2:
            lines += ["trap '' TERM INT HUP", "sleep 7"]
            seconds = 7.0
        else:
            seconds = chance.uniform(0, 0.5) if chance.random() < 0.7 else 0.0
            lines.append("sleep %.3f" % seconds)
        end = chance.choices(("answer", "large", "exit", "signal", "timeout"), (14, 3, 2, 1, 1))[0]
        timeout = 0
        before, after = WRAPPED[backend]
        if end == "large":
            size = chance.choice((2000, 5000, 300000))
            lines += ["printf '%s'" % before, "printf '%s '" % token, "head -c %d /dev/zero | tr '\\0' x" % size, "printf '%s'" % after]
            token += " " + "x" * size
        elif end != "timeout":
            lines.append("printf '%s%s%s'" % (before, token, after))
        if end == "timeout":
            seconds = timeout = 7.5 if self.stubborn else 0.6
            lines.append("sleep 30")
        elif end == "exit":
            lines.append("exit 3")
        elif end == "signal":
            lines.append("kill -9 $$")
        status = {"exit": "failed", "signal": "failed", "timeout": "timeout"}.get(end, "ok")
        output = token + ("\n" if backend == "echo" else "")
        return Plan("\n".join(lines), backend, status, output, late, timeout, seconds + 0.02)

    def describe(self):
        return "%s %.3f s after %s (gap %.3f), %d tasks, -j %d, %s, %s%s%s%s%s" % (
            self.event, self.moment, "the start" if self.at_start else "there were workers", self.gap, len(self.plans), self.jobs, self.form, self.source, ", --fail-fast" * self.fail_fast,
            ", --output-dir" * self.keeps_directory + ", --log-dir" * self.keeps_logs, ", stubborn" * self.stubborn, ", -q" * self.quiet)

    # -- running ---------------------------------------------------------------

    def run(self):
        self.directory = tempfile.mkdtemp(prefix="chaos-")
        self.tmp = os.path.join(self.directory, "tmp")
        os.mkdir(self.tmp)
        self.process = None
        try:
            try:
                self.start()
                self.live()
                self.judge()
                self.judge_rest()
            except Failure as failure:
                return "%s%s" % (failure, self.evidence())
            return ""
        finally:
            for pid in self.left():
                kill(pid, signal.SIGKILL)
            if self.process:
                self.process.kill()
                self.process.wait()
            self.feeder.join()
            shutil.rmtree(self.directory, ignore_errors=True)

    def tasks(self):
        for index, plan in enumerate(self.plans):
            prompt = 'echo "$CHAOS_API_KEY" >&2\n' * self.keeps_logs + plan.prompt
            task = {"prompt": prompt, "backend": plan.backend, "id": "t%d" % index}
            if plan.timeout:
                task["timeout"] = plan.timeout
            yield task

    def start(self):
        self.feeder = threading.Thread(target=self.feed)
        lines = [json.dumps(task) for task in self.tasks()]
        if self.broken_line >= 0:
            lines[self.broken_line] = '{"prompt": "torn'
        self.lines = lines
        text = json.dumps({"tasks": list(self.tasks())}) if self.source == "batch file" else "\n".join(lines)
        path = os.path.join(self.directory, "tasks.json")
        with open(path, "w") as file:
            file.write(text)
        argv = [sys.executable, os.path.join(self.programs, "clinvk.pyc"), "parallel", self.form, "-j", str(self.jobs)]
        argv += ["-f", path] if self.source in ("batch file", "lines file") else []
        argv += ["-q"] * self.quiet + ["--fail-fast"] * self.fail_fast
        argv += ["--output-dir", os.path.join(self.directory, "kept")] * self.keeps_directory
        argv += ["--log-dir", os.path.join(self.directory, "logs")] * self.keeps_logs
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CLINVK_")}
        environment.update(PATH=self.programs + os.pathsep + os.environ["PATH"], TMPDIR=self.tmp, CLINVK_TEST_MARK=self.mark,
                           CLINVK_START_METHOD=self.start_method, CHAOS_DIRECTORY=self.directory, PYTHONFAULTHANDLER="1",
                           CHAOS_PYTHON=sys.executable, CHAOS_PROGRAMS=self.programs, CHAOS_API_KEY=self.mark)
        stdin = open(path) if self.source == "stdin file" else subprocess.PIPE if self.source == "slow pipe" else subprocess.DEVNULL
        self.stderr_path = os.path.join(self.directory, "stderr")
        with open(self.stderr_path, "wb") as stderr:
            self.process = subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, env=environment,
                                            start_new_session=True)
        if self.source == "stdin file":
            stdin.close()
        self.feeder.start()

    def feed(self):
        """Writes the tasks into the pipe, slowly."""
        if self.source != "slow pipe":
            return
        chance = random.Random(self.mark)
        pipe = self.process.stdin
        try:
            for line in self.lines:
                time.sleep(chance.choice((0, 0, 0.02, 0.1)))
                pipe.write(line.encode() + b"\n")
                pipe.flush()
        except BrokenPipeError:
            pass
        finally:
            try:
                pipe.close()
            except BrokenPipeError:
                pass

    def live(self):
        """Reads stdout to its end; lets the event happen on the way."""
        self.stdout = b""
        began = time.monotonic()
        todo = collections.deque(self.happenings())
        due = began + self.moment if self.at_start else None
        pipe = self.process.stdout
        while True:
            now = time.monotonic()
            require(now - began < ROUND_SECONDS, "hang: stdout is still open after %d s", ROUND_SECONDS)
            if due is None and workers(self.process.pid):
                due = now + self.moment
            if todo and due is not None and now >= due:
                if self.process.poll() is not None:
                    self.late_event = True
                    todo.clear()
                elif todo[0]() is False:  # nothing there yet that it could hit
                    due = now + 0.005
                else:
                    todo.popleft()
                    due = now + self.gap
            if pipe.closed:
                if self.process.poll() is not None:
                    break
                time.sleep(0.01)
            elif select.select([pipe], [], [], 0.25 if not todo else 0.01 if due is None else max(0.0, min(due - now, 0.25)))[0]:
                piece = os.read(pipe.fileno(), 1 << 16)
                self.stdout += piece
                if not piece:
                    pipe.close()
        self.status = self.process.returncode
        self.late_event = self.late_event or bool(todo)

    def happenings(self):
        """What is to be done, in turn; each gives False if it has to be tried again."""
        parent = self.process.pid

        def worker():
            found = workers(parent)
            if found and kill(self.random.choice(found), signal.SIGKILL):
                self.killed += 1
                return True
            return False

        def backend():
            found = [process for child in workers(parent) for process in children(child)]
            if found and kill(self.random.choice(found), signal.SIGKILL):
                self.killed += 1
                return True
            return False

        def send(number):
            self.sent += 1
            os.kill(parent, number)  # not reaped yet: it cannot be another's

        def interrupt(number, send_it=send):
            if not self.sent:
                self.unborn = not handles(parent, signal.SIGTERM)
            send_it(number)

        def kill_parent():
            self.unattended = not any(is_guard(child) for child in children(parent))
            send(signal.SIGKILL)

        def kill_all():
            """As `pkill -9 -f clinvk` does."""
            self.unattended = not any(is_guard(child) for child in children(parent))
            mark = b"CLINVK_TEST_MARK=" + self.mark.encode()
            hit = [pid for pid, environment, command in environments() if mark in environment.split(b"\0")
                   and (b"clinvk.py" in command or b"spawn_main" in command)]
            for pid in set(hit + workers(parent) + [parent]):
                kill(pid, signal.SIGKILL)
            self.sent += 1

        def terminate_all():
            for pid in sorted(self.left()):
                kill(pid, signal.SIGTERM)
            self.sent += 1

        def remove_directory():
            found = os.listdir(self.tmp)
            for name in found:
                shutil.rmtree(os.path.join(self.tmp, name), ignore_errors=True)
            self.killed += self.jobs if found else 0
            return bool(found)

        def send_group(number):
            self.sent += 1
            os.killpg(parent, number)

        def leave():
            self.process.stdout.close()

        return {"nothing": [], "worker killed": [worker], "workers killed": [worker] * self.random.randint(2, 4),
                "backend killed": [backend], "parent killed": [kill_parent], "all killed": [kill_all],
                "directory removed": [remove_directory], "SIGTERM to all": [lambda: interrupt(0, lambda _: terminate_all())],
                "SIGINT to the group": [lambda: interrupt(signal.SIGINT, send_group)], "reader gone": [leave],
                }.get(self.event.replace("nested, ", "")) or [lambda number=number: interrupt(number) for number in EVENTS[self.event].signals]

    # -- judging ---------------------------------------------------------------

    def judge(self):
        with open(self.stderr_path, "rb") as file:
            self.stderr = file.read().decode("utf-8", "replace")
        started = [int(name.split(".")[1]) for name in os.listdir(self.directory) if name.startswith("started.")]
        stopping = set(EVENTS[self.event].signals) if self.sent else set()
        if self.event.endswith(("parent killed", "all killed")) and self.sent and self.status == -signal.SIGKILL:
            self.judge_killed()
            return
        if self.unborn or stopping and not started and not self.stdout and self.status in [-number for number in stopping]:
            return
        require("Traceback" not in self.stderr, "a traceback on stderr")
        gone = self.event == "reader gone" and not self.late_event
        allowed = {0, 1} | {-number for number in stopping} | ({141} if gone else set())
        require(self.status in allowed, "exit status %d; allowed are %s", self.status, sorted(allowed))
        if gone:
            self.judge_lines(self.stdout, torn=True)
            return
        results = self.results()
        self.judge_results(results, started, stopped=self.status < 0)
        self.judge_totals(results)
        if self.keeps_directory:
            self.judge_directory(len(results))
        if self.keeps_logs:
            self.judge_logs(results)

    def judge_logs(self, results):
        """Every attempt has a log without secrets, and every file there belongs to an attempt."""
        named = set()
        for result in results:
            for attempt in [result] + result.get("tries", []):
                if "log" in attempt:
                    named.update((attempt["log"], attempt["log"][:-len("jsonl")] + "err"))
            require(bool(result["attempts"]) == ("log" in result), "task %d: %d attempts, log %s", result["index"],
                    result["attempts"], result.get("log"))
        kept = os.path.join(self.directory, "logs")
        for path in (os.path.join(kept, name) for name in os.listdir(kept)):
            with open(path, "rb") as file:
                require(self.mark.encode() not in file.read(), "a secret is left in %s", path)
            require(path in named or self.killed and path.endswith(".tmp"), "%s belongs to no result", path)

    def judge_lines(self, data, torn=False):
        """Whole lines of JSON; with `torn` what comes after the last newline does not count.  In order of their end."""
        *lines, rest = data.split(b"\n")
        require(torn or not rest, "stdout ends in half a line: %r", rest[-200:])
        require(self.form == "--json" or all(self.is_object(line) for line in lines), "a line on stdout is not JSON")
        return [json.loads(line) for line in lines] if self.form == "--jsonl" else []

    def is_object(self, line):
        try:
            return isinstance(json.loads(line), dict)
        except ValueError:
            return False

    def judge_killed(self):
        results = self.judge_lines(self.stdout, torn=True)
        rest = self.stdout.rpartition(b"\n")[2]
        require(self.form == "--json" or len(rest) == 0 or len(rest) >= ATOMIC_BYTES, "a small line was torn: %r", rest)
        indexes = [result["index"] for result in results]
        require(len(set(indexes)) == len(indexes), "a task was answered twice: %s", indexes)
        if self.keeps_directory:
            self.judge_directory()

    def judge_directory(self, count=None):
        """Every file in the output directory is whole; of a run that was not killed, one for each result and the summary."""
        kept = os.path.join(self.directory, "kept")
        names = os.listdir(kept) if os.path.isdir(kept) else []
        for name in names:
            if name.endswith(".json"):
                with open(os.path.join(kept, name), "rb") as file:
                    require(self.is_object(file.read()), "%s is not whole", name)
        wanted = ["%03d_t%d.json" % (index + 1, index) for index in range(count or 0) if index != self.broken_line]
        missing = set(wanted + ["summary.json"]) - set(names) if count is not None else ()
        require(not missing, "missing in the output directory: %s", missing)

    def results(self):
        if self.form == "--jsonl":
            return self.judge_lines(self.stdout)
        try:
            self.report = json.loads(self.stdout)
        except ValueError:
            raise Failure("stdout is not one JSON object: %r" % self.stdout[-200:]) from None
        require([result["index"] for result in self.report["results"]] == list(range(len(self.report["results"]))),
                "the results are not in order")
        return self.report["results"]

    def judge_results(self, results, started, stopped):
        count = len(results)
        indexes = sorted(result["index"] for result in results)
        require(indexes == list(range(count)), "not exactly one result for each task: %s", indexes)
        failing = any(result["status"] not in ("ok", "skipped") for result in results)
        if self.source == "slow pipe" and (stopped or self.fail_fast and failing):  # it may not have read everything
            require(count > max(started, default=-1), "task %d ran and has no result", max(started, default=-1))
        else:
            require(count == len(self.plans), "%d results for %d tasks", count, len(self.plans))
        odd = collections.Counter()
        for result in results:
            plan, status = self.plans[result["index"]], result["status"]
            require(status in STATUSES, "unknown status %r", status)
            if result["index"] == self.broken_line:
                require(status == "failed" or status == "canceled", "the torn line became %s", status)
                continue
            if status != plan.status:
                odd[status] += 1
                allowed = (status == "canceled" and (stopped or self.fail_fast and failing)
                           or status == "lost" and self.killed and self.event in WITH_DEAD_WORKERS
                           or status == "failed" and self.killed and self.event in ("backend killed", "directory removed"))
                require(allowed, "task %d: %s instead of %s: %s", result["index"], status, plan.status, result.get("error"))
            elif status == "ok":
                answer = result["output"].replace("late\n", "") if plan.late else result["output"]
                require(answer == plan.output, "task %d: not its answer: %r", result["index"], result["output"][:200])
            if self.polite and plan.backend == "echo" and status == "canceled" and result["index"] in started:
                whole = plan.output in result["output"].replace("late\n", "")  # it had just ended when it was stopped
                require(whole or "saved" in result["output"], "task %d was not stopped politely: %r", result["index"], result["output"][-200:])
            require(status == "ok" or result.get("error"), "task %d: %s, and no error", result["index"], status)
        hit = odd["lost"] if self.event in WITH_DEAD_WORKERS else odd["failed"]
        require(hit <= self.killed, "%d tasks suffered from %d kills", hit, self.killed)
        good = all(result["status"] == "ok" for result in results)
        require(stopped or self.status == (0 if good else 1), "exit status %d with %s", self.status,
                collections.Counter(result["status"] for result in results))

    def judge_totals(self, results):
        columns = collections.Counter({"ok": "completed", "canceled": "canceled", "skipped": "skipped"}.get(result["status"], "failed")
                                      for result in results)
        if self.form == "--json":
            said = {name: self.report[name] for name in ("completed", "failed", "canceled", "skipped")}
            require(self.report["total_tasks"] == len(results), "total_tasks is %d of %d", self.report["total_tasks"], len(results))
        elif self.quiet:
            return
        else:
            line = re.search(r"^Total: (\d+) tasks?, (\d+) completed, (\d+) failed(?:, (\d+) canceled)?", self.stderr, re.M)
            require(line, "no totals on stderr")
            require(int(line.group(1)) == len(results), "the totals count %s tasks of %d", line.group(1), len(results))
            said = dict(zip(("completed", "failed", "canceled"), (int(number or 0) for number in line.groups()[1:])))
        require(+collections.Counter(said) == columns, "the totals say %s, the results %s", said, dict(columns))

    def left(self):
        """The processes that carry this round's mark."""
        mark = b"CLINVK_TEST_MARK=" + self.mark.encode()
        return [pid for pid, environment, command in environments()
                if mark in environment.split(b"\0") or b"45." + self.mark.encode() in command]

    def judge_rest(self):
        if self.unattended:  # nobody is there who could clear away what it made
            while os.path.lexists(self.tmp):  # a process that ends may remove a part of it at the same time
                shutil.rmtree(self.tmp, ignore_errors=True)
            os.mkdir(self.tmp)
        deadline = time.monotonic() + CLEAN_SECONDS
        while self.left() or os.listdir(self.tmp):
            require(time.monotonic() < deadline, "left after the end: processes %s, in TMPDIR %s", self.left(), os.listdir(self.tmp))
            time.sleep(0.05)

    def evidence(self):
        """All that helps to see why, for a failed round."""
        text = ["", "  exit status %s, %d bytes on stdout" % (self.process.poll(), len(self.stdout))]
        left = self.left()
        for pid in left:
            for name in ("cmdline", "wchan", "stack"):
                try:
                    with open("/proc/%d/%s" % (pid, name), "rb") as file:
                        text.append("  %d %s: %s" % (pid, name, file.read(1500).decode("utf-8", "replace").replace("\0", " ").strip()))
                except OSError:
                    continue
            try:
                with open("/proc/%d/stat" % pid) as file:
                    text.append("  %d stat: %s" % (pid, " ".join(file.read().split()[2:6])))
            except OSError:
                continue
        for pid in left:
            kill(pid, signal.SIGABRT)  # Python then shows where each of its threads is
        deadline = time.monotonic() + 5
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.05)
        with open(self.stderr_path, "rb") as file:
            text.append("  stderr: " + file.read()[-25000:].decode("utf-8", "replace").replace("\n", "\n    "))
        text.append("  stdout: %r" % re.sub(rb"x{50,}", b"xx...", self.stdout)[-1500:])
        return "\n".join(text)


class ResumeRound(Round):
    """A batch that is killed again and again, and continued until it is done."""

    def __init__(self, number, seed, start_method, programs):
        self.random = chance = random.Random("resume %s:%d" % (seed, number))
        self.mark = "%06d%05d" % (os.getpid() % 1000000, number)
        self.start_method, self.programs = start_method, programs
        self.event, self.unattended = "resume", False
        self.jobs, self.form, self.stdout = chance.randint(1, 5), "--jsonl", b""
        self.copies = {"task%d of %s" % (index, self.mark): chance.choice((1, 1, 1, 2, 3)) for index in range(chance.randint(1, 12))}
        self.scripts = {}
        for name in self.copies:
            lines = ['echo "$CHAOS_RUN %s" >> "$CHAOS_DIRECTORY/starts"' % name]
            if chance.random() < 0.15:  # fails once
                lines.append('mkdir "$CHAOS_DIRECTORY/%s" 2>/dev/null && exit 3' % name)
            if chance.random() < 0.1:
                lines.append("setsid sleep 45.%s &" % self.mark)
            lines.append("sleep %.3f" % chance.choice((0, 0, 0.01, chance.uniform(0, 0.2))))
            if chance.random() < 0.2:  # a line of several writes
                lines.append("head -c %d /dev/zero | tr '\\0' x" % chance.choice((70000, 1500000, 5000000)))
            self.scripts[name] = "\n".join([*lines, "echo answer"])
        self.kills = chance.randint(1, 6)

    def describe(self):
        return "%d jobs, %s tasks, %d kills" % (self.jobs, sum(self.copies.values()), self.kills)

    def start(self):
        self.feeder = threading.Thread(target=int)
        self.feeder.start()
        self.results, self.input = (os.path.join(self.directory, name) for name in ("results.jsonl", "tasks.jsonl"))
        self.stderr_path = os.path.join(self.directory, "stderr")

    def launch(self, number):
        lines = [json.dumps({"prompt": self.scripts[name], "name": name, "backend": "echo"})
                 for name, count in self.copies.items() for _ in range(count)]
        self.random.shuffle(lines)
        with open(self.input, "w") as file:
            file.write("\n".join(lines))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CLINVK_")}
        environment.update(PATH=self.programs + os.pathsep + os.environ["PATH"], TMPDIR=self.tmp, CLINVK_TEST_MARK=self.mark,
                           CLINVK_START_METHOD=self.start_method, CHAOS_DIRECTORY=self.directory, CHAOS_RUN=str(number))
        with open(self.stderr_path, "wb") as stderr, open(os.path.join(self.directory, "stdout"), "wb") as stdout:
            self.process = subprocess.Popen(
                [sys.executable, os.path.join(self.programs, "clinvk.pyc"), "parallel", "--jsonl", "-q", "-j", str(self.jobs),
                 "-f", self.input, "--results", self.results, "--resume"],
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment, start_new_session=True)

    def live(self):
        for number in range(self.kills + 1):
            before = self.ok_lines()
            self.launch(number)
            if number < self.kills:
                self.interrupt()
            try:
                self.status = self.process.wait(ROUND_SECONDS)
            except subprocess.TimeoutExpired:
                raise Failure("hang: run %d has not ended after %d s" % (number, ROUND_SECONDS)) from None
            self.judge_run(number, before)

    def interrupt(self):
        try:
            self.process.wait(self.random.choice((self.random.uniform(0, 0.15), self.random.uniform(0, 1))))
        except subprocess.TimeoutExpired:
            how = self.random.choice(("parent", "parent", "parent", "all", "SIGINT"))
            if how == "all":
                self.unattended = self.unattended or not any(is_guard(child) for child in children(self.process.pid))
                for pid in workers(self.process.pid):
                    kill(pid, signal.SIGKILL)
            elif how == "parent":
                self.unattended = self.unattended or not any(is_guard(child) for child in children(self.process.pid))
            is_signal = how == "SIGINT" and handles(self.process.pid, signal.SIGTERM)  # Python is still starting up otherwise
            self.process.send_signal(signal.SIGINT if is_signal else signal.SIGKILL)

    def lines(self, path):
        """The objects in the whole lines of a file."""
        if not os.path.exists(path):
            return []
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")[:-1]
        require(all(map(self.is_object, lines)), "a damaged line in %s", path)
        return [json.loads(line) for line in lines]

    def ok_lines(self):
        return collections.Counter(line["label"] for line in self.lines(self.results) if line["status"] == "ok")

    def judge_run(self, number, before):
        with open(self.stderr_path) as file:
            self.stderr = file.read()
        killed = self.status == -signal.SIGKILL  # a worker that Python is starting then may complain
        require(killed or "Traceback" not in self.stderr, "a traceback on stderr of run %d", number)
        require(self.status in (0, 1, -signal.SIGKILL, -signal.SIGINT), "run %d: exit status %d", number, self.status)
        with open(os.path.join(self.directory, "stdout"), "rb") as file:
            self.stdout = file.read()
        shown = [json.loads(line) for line in self.stdout.split(b"\n")[:-1]]
        ok = self.ok_lines()
        for name, count in collections.Counter(result["task_name"] for result in shown if result["status"] == "ok").items():
            require(count <= ok[name], "run %d showed %d results of %s, the file has %d", number, count, name, ok[name])
        started = collections.Counter()
        path = os.path.join(self.directory, "starts")
        if os.path.exists(path):
            with open(path) as file:
                started.update(line.split(" ", 1)[1] for line in file.read().splitlines() if line.startswith("%d " % number))
        for name, count in self.copies.items():
            require(started[name] <= count - before[name], "run %d started %s %d times; %d of %d were done", number, name, started[name],
                    before[name], count)
            require(ok[name] <= count, "run %d: %s has %d ok lines for %d tasks", number, name, ok[name], count)
        if killed:
            noted = collections.Counter(line.get("label") for line in self.lines(self.results + ".running"))
            done = collections.Counter(result["task_name"] for result in shown)  # the notes go when all is done, and the kill came after
            missing = [name for name in started if started[name] > max(noted[name], done[name])]
            require(not missing, "run %d started %s without a note", number, missing)
        elif self.status >= 0:
            require(not os.path.exists(self.results + ".running"), "run %d ended and FILE.running is there", number)
            require(len(shown) == sum(self.copies.values()), "run %d: %d results for %d tasks", number, len(shown), sum(self.copies.values()))

    def judge(self):
        """Tasks that fail once may have failed in the last run."""
        while self.status == 1:
            self.kills += 1
            before = self.ok_lines()
            self.launch(self.kills)
            self.status = self.process.wait(ROUND_SECONDS)
            self.judge_run(self.kills, before)
        require(self.status == 0, "the last run: exit status %d", self.status)
        require(self.ok_lines() == collections.Counter(self.copies), "not exactly one ok line for each task: %s", self.ok_lines())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rounds", type=int, nargs="?", default=0)
    parser.add_argument("--resume", type=int, default=0, metavar="N", help="N rounds of runs that are killed and continued")
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10 ** 6)))
    parser.add_argument("--start-method", choices=("fork", "spawn"), default="fork")
    parser.add_argument("--round", type=int, help="only this one of them")
    parser.add_argument("--events", type=lambda text: text.split(";"), default=list(EVENTS), help="only these, separated by semicolons")
    parser.add_argument("--at-once", type=int, default=3, help="rounds that run at the same time (default: 3)")
    options = parser.parse_args()
    # SIGINT may be ignored where we come from (a shell's `&`); clinvk would rightly keep that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
    print("chaos: %d rounds, seed %s, %s, Python %s" % (
        options.rounds + options.resume, options.seed, options.start_method, sys.version.split()[0]), flush=True)
    began = time.monotonic()
    rounds, failures = collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory(prefix="chaos-programs-") as directory:
        programs = os.path.join(directory, "bin")
        make_programs(programs)

        def play(number):
            if options.resume:
                one = ResumeRound(number, options.seed, options.start_method, programs)
            else:
                one = Round(number, options.seed, options.start_method, programs, options.events)
            return number, one, one.run()

        numbers = range(options.rounds or options.resume) if options.round is None else [options.round]
        with concurrent.futures.ThreadPoolExecutor(options.at_once) as players:
            for number, one, failure in players.map(play, numbers):
                rounds[one.event] += 1
                if failure:
                    failures[one.event] += 1
                    print("FAILED: round %d of seed %s (%s): %s\n  %s" % (
                        number, options.seed, options.start_method, one.describe(), failure), flush=True)
    for event in rounds:
        print("%-20s %4d rounds, %d failures" % (event, rounds[event], failures[event]))
    print("chaos: %d rounds, %d failures, %.0f s" % (sum(rounds.values()), sum(failures.values()), time.monotonic() - began))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
