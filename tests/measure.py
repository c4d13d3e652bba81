#!/usr/bin/env python3
"""Measures clinvk beside other programs: `python3 tests/measure.py [start] [pool] [events] [journal] [memory] [million] [stream] [table] [report]`.

Prints the table of CONTRIBUTING.md.  Times are medians of whole processes, taken in turns, so that a machine that slows down
slows down all of them; read the ratios.  It asserts nothing: a busy machine is no bug.  Needs Linux; for the pool
also gcc (with a static libc), xargs and GNU parallel.  Use a Python without site packages of its own (a fresh venv), as
they weigh on the start of every Python program alike.
"""
import fcntl
import json
import os
import platform
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PYTHON = sys.executable
JOBS, TASKS = 8, 5000
PARALLEL_TASKS = 500  # GNU parallel is measured with fewer and scaled

INSTANT = r"""
#include <unistd.h>
int main(void) { return write(1, "x", 1) != 1; }
"""

EVENTS = INSTANT.replace('"x", 1) != 1', "events, sizeof events - 1) < 0").replace("int main", "static const char events[] =%s;\nint main" % "".join(
    "\n    " + json.dumps(json.dumps(event) + "\n") for event in (
        {"type": "system", "subtype": "init", "session_id": "866e6041-cf01-4597-99cd-a5f788e47d04", "model": "m", "tools": []},
        {"type": "assistant", "message": {"id": "1", "model": "m", "content": [{"type": "text", "text": "done"}]}},
        {"type": "result", "subtype": "success", "is_error": False, "num_turns": 1, "result": "done", "total_cost_usd": 0.001,
         "session_id": "866e6041-cf01-4597-99cd-a5f788e47d04", "usage": {"input_tokens": 3, "output_tokens": 4}})))

FLOOD = r"""
#include <string.h>
#include <unistd.h>
int main(void) {
    static char block[1 << 16];
    long left = 10000000;
    memset(block, 'x', sizeof block);
    while (left > 0) {
        long wrote = write(1, block, left < (long) sizeof block ? left : (long) sizeof block);
        if (wrote < 0) return 1;
        left -= wrote;
    }
    return 0;
}
"""


class Bench:
    """A directory with what is measured, and the rows of the table."""

    def __init__(self, directory):
        self.directory = directory
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("CLINVK_", "PYTHON"))}
        self.environment.update(PYTHONPATH=self.path(), TMPDIR=self.path(), CLINVK_TEST_MARK=os.path.basename(directory))
        shutil.copy(os.path.join(ROOT, "clinvk.py"), self.path("clinvk.py"))
        self.by_path = [PYTHON, self.path("clinvk.py")]
        # what the `clinvk` that pip writes does; the module comes from __pycache__
        self.installed = [PYTHON, "-c", "from clinvk import console; console()"]
        subprocess.run(self.installed + ["--version"], env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def path(self, *names):
        return os.path.join(self.directory, *names)

    def compile(self, source, directory, name="cat"):
        """Makes a static program of C and puts it there, as `cat`, which the echo backend calls, or another.  Its path."""
        os.makedirs(self.path(directory), exist_ok=True)
        program = self.path(directory, name)
        subprocess.run(["gcc", "-O2", "-static", "-x", "c", "-o", program, "-"], input=source.encode(), check=True)
        return program

    def with_programs(self, directory):
        return dict(self.environment, PATH=self.path(directory) + os.pathsep + os.environ["PATH"])

    def lines(self, name, count, line):
        """A file of `count` tasks."""
        with open(self.path(name), "w") as file:
            for number in range(count):
                file.write(line(number) + "\n")
        return self.path(name)

    def time(self, argv, environment=None, stdin=None):
        with open(stdin or os.devnull, "rb") as source, open(os.devnull, "wb") as out:
            began = time.perf_counter()
            process = subprocess.Popen(argv, stdin=source, stdout=out, env=environment or self.environment)
            process.wait()
            took = time.perf_counter() - began
        if process.returncode:
            raise SystemExit("%s: exit status %d" % (" ".join(argv), process.returncode))
        return took

    def medians(self, rounds, *runs):
        """The median of each run's times; they take turns."""
        times = [[] for _ in runs]
        for _ in range(rounds):
            for run, taken in zip(runs, times):
                taken.append(run())
        return [statistics.median(taken) for taken in times]

    def tree(self):
        """The processes that belong to what is measured now."""
        mark = b"CLINVK_TEST_MARK=" + self.environment["CLINVK_TEST_MARK"].encode()
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                try:
                    with open("/proc/%s/environ" % entry, "rb") as file:
                        if mark in file.read().split(b"\0"):
                            found.append(int(entry))
                except OSError:
                    continue
        return found


def megabytes(pid, name, field):
    try:
        with open("/proc/%d/%s" % (pid, name)) as file:
            return next((int(line.split()[1]) / 1024.0 for line in file if line.startswith(field)), 0.0)
    except OSError:
        return 0.0


def share(pids):
    """The memory of several processes, what they share counted once (PSS)."""
    return sum(megabytes(pid, "smaps_rollup", "Pss:") for pid in pids)


def row(what, clinvk, beside, ratio, aim):
    print("| %s | %s | %s | %s | %s |" % (what, clinvk, beside, ratio, aim), flush=True)


def measure_start(bench, rounds=41):
    task = bench.lines("one.jsonl", 1, lambda number: '{"backend": "echo", "prompt": "hello"}')
    empty, version, version_path, echo, echo_path = bench.medians(
        rounds, lambda: bench.time([PYTHON, "-c", "pass"]),
        lambda: bench.time(bench.installed + ["--version"]), lambda: bench.time(bench.by_path + ["--version"]),
        lambda: bench.time(bench.installed + ["parallel"], stdin=task), lambda: bench.time(bench.by_path + ["parallel"], stdin=task))
    for what, took, aim in (("`clinvk --version`, installed", version, "1.5"), ("`./clinvk.py --version`", version_path, ""),
                            ("one `echo` task, installed", echo, "5"), ("one `echo` task, `./clinvk.py`", echo_path, "")):
        row(what, "%.1f ms" % (took * 1000), "`python3 -c pass` %.1f ms" % (empty * 1000), "%.2f" % (took / empty), aim)


def measure_pool(bench, rounds=5):
    program = bench.compile(INSTANT, "instant")
    tasks = bench.lines("tasks.jsonl", TASKS, lambda number: '{"backend": "echo", "prompt": "%d"}' % number)
    many, few = (bench.lines("numbers-%d" % count, count, str) for count in (TASKS, PARALLEL_TASKS))
    environment = bench.with_programs("instant")
    runs = [lambda: bench.time(bench.installed + ["parallel", "-j", str(JOBS), "--jsonl", "-q", "-f", tasks], environment),
            lambda: bench.time(["xargs", "-P", str(JOBS), "-n", "1", program], stdin=many)]
    if shutil.which("parallel"):
        runs.append(lambda: bench.time(["parallel", "-j", str(JOBS), program], stdin=few) * TASKS / PARALLEL_TASKS)
    clinvk, xargs, *parallel = bench.medians(rounds, *runs)
    what = "%d instant tasks, `-j %d --jsonl`" % (TASKS, JOBS)
    mine = "%.2f s (%.2f ms a task)" % (clinvk, clinvk / TASKS * 1000)
    row(what, mine, "`xargs -P %d` %.2f s" % (JOBS, xargs), "%.2f" % (clinvk / xargs), "1.5")
    if parallel:
        row(what, mine, "GNU parallel %.1f s (scaled from %d)" % (parallel[0], PARALLEL_TASKS), "%.2f" % (clinvk / parallel[0]), "0.25")


def measure_events(bench, rounds=5):
    """A task of claude: its events are read."""
    program, count = bench.compile(EVENTS, "events", "claude"), 3000
    tasks = bench.lines("claude.jsonl", count, lambda number: '{"backend": "claude", "sandbox_mode": "read-only", "prompt": "%d"}' % number)
    numbers, environment = bench.lines("claude-numbers", count, str), bench.with_programs("events")
    clinvk, xargs = bench.medians(
        rounds, lambda: bench.time(bench.installed + ["parallel", "-j", str(JOBS), "--jsonl", "-q", "-f", tasks], environment),
        lambda: bench.time(["xargs", "-P", str(JOBS), "-n", "1", program], stdin=numbers))
    row("%d instant tasks of `claude`, `-j %d --jsonl`" % (count, JOBS), "%.2f s (%.2f ms a task)" % (clinvk, clinvk / count * 1000),
        "`xargs -P %d` %.2f s" % (JOBS, xargs), "%.2f" % (clinvk / xargs), "1.6")


def measure_journal(bench, rounds=5):
    bench.compile(INSTANT, "instant")
    tasks = bench.lines("tasks.jsonl", TASKS, lambda number: '{"backend": "echo", "prompt": "%d"}' % number)
    environment, results = bench.with_programs("instant"), bench.path("results.jsonl")
    words = bench.installed + ["parallel", "-j", str(JOBS), "--jsonl", "-q", "-f", tasks]

    def with_results():
        if os.path.exists(results):
            os.unlink(results)
        return bench.time(words + ["--results", results], environment)

    def syncs():
        line = b"x" * 400
        with open(bench.path("synced"), "wb", buffering=0) as file:
            began = time.perf_counter()
            for _ in range(TASKS):
                file.write(line)
                os.fdatasync(file.fileno())
            return time.perf_counter() - began

    without, kept, synced, again = bench.medians(
        rounds, lambda: bench.time(words, environment), with_results, syncs,
        lambda: bench.time(words + ["--results", results, "--resume"], environment))
    what = "%d instant tasks, `-j %d --jsonl --results FILE`" % (TASKS, JOBS)
    row(what, "%.2f s" % kept, "without `--results` %.2f s" % without, "%.2f" % (kept / without), "")
    row("%d writes of 400 bytes, each with `fdatasync`" % TASKS, "", "%.2f s" % synced, "%.2f of the difference" % (synced / (kept - without)), "")
    row("%d tasks with `--resume`, all done before" % TASKS, "%.2f s" % again, "", "", "")


def measure_memory(bench):
    bench.compile(INSTANT, "instant")
    run = subprocess.Popen(bench.installed + ["parallel", "-j", "3", "--jsonl"], env=bench.with_programs("instant"), bufsize=0,
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    run.stdin.write(b'{"backend": "echo", "prompt": "one"}\n')
    json.loads(run.stdout.readline())
    idle = []
    for _ in range(20):
        time.sleep(0.05)
        idle.append(share(bench.tree()))
    count = len(bench.tree())
    run.stdin.close()
    run.stdout.read()
    run.wait()
    row("3 idle workers, the tree (PSS)", "%.1f MB, %d processes" % (statistics.median(idle), count), "", "", "25 MB")

    bench.compile(FLOOD, "flood")
    tasks = bench.lines("floods.jsonl", 20, lambda number: '{"backend": "echo", "prompt": "%d"}' % number)
    run = subprocess.Popen(bench.installed + ["parallel", "-j", "3", "--json", "-f", tasks], env=bench.with_programs("flood"),
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    tree = own = 0.0
    while run.poll() is None:
        tree, own = max(tree, share(bench.tree())), max(own, megabytes(run.pid, "status", "VmHWM:"))
    row("20 tasks of 10 MB, `-j 3 --json`, the tree (peak PSS)", "%.1f MB" % tree, "", "", "150 MB")
    row("the same, the parent (peak RSS)", "%.1f MB" % own, "", "", "40 MB")


def measure_million(bench):
    for what, line in (("without ids", lambda number: '{"backend":"echo","prompt":"task %d"}' % number),
                       ("with ids", lambda number: '{"backend":"echo","prompt":"task %d","id":"number-%d"}' % (number, number))):
        peaks = {}
        for count in (1000, 1000000):
            tasks = bench.lines("million.jsonl", count, line)
            began = time.perf_counter()
            run = subprocess.Popen(bench.installed + ["parallel", "--dry-run", "-f", tasks], env=bench.environment,
                                   stdout=subprocess.DEVNULL)
            peaks[count] = 0.0
            while run.poll() is None:
                peaks[count] = max(peaks[count], megabytes(run.pid, "status", "VmHWM:"))
                time.sleep(0.01)
            took = time.perf_counter() - began
            os.unlink(tasks)
        row("1,000,000 tasks of `--dry-run` %s, the parent (peak RSS)" % what, "%.1f MB (%.0f s)" % (peaks[1000000], took),
            "1,000 tasks %.1f MB" % peaks[1000], "+%.1f MB" % (peaks[1000000] - peaks[1000]), "+30 MB")


def measure_stream(bench):
    """A pipe of tasks that run; for about half an hour."""
    peaks = {}
    for count in (1000, 1000000):
        began = time.perf_counter()
        source = subprocess.Popen(["seq", "-f", '{"backend":"echo","prompt":"task %.0f"}', str(count)], stdout=subprocess.PIPE)
        run = subprocess.Popen(bench.installed + ["parallel", "--jsonl", "-q", "-j", "2"], env=bench.environment, stdin=source.stdout, stdout=subprocess.PIPE)
        source.stdout.close()
        lines, peaks[count] = 0, 0.0
        for lines, _ in enumerate(run.stdout, 1):
            if lines % 1000 == 0:
                peaks[count] = max(peaks[count], megabytes(run.pid, "status", "VmHWM:"))
        took = time.perf_counter() - began
        source.wait()
        if (run.wait(), lines) != (0, count):
            raise SystemExit("%d tasks have %d results, exit status %d" % (count, lines, run.returncode))
    row("1,000,000 tasks through `echo`, from a pipe, the parent (peak RSS)", "%.1f MB (%.0f s)" % (peaks[1000000], took),
        "1,000 tasks %.1f MB" % peaks[1000], "+%.1f MB" % (peaks[1000000] - peaks[1000]), "+30 MB")


def measure_report(bench):
    def line(number):  # 8 tasks at a time
        times = [time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(1795536000 + number // 8 * 3 + seconds)) for seconds in (0, 3)]
        return json.dumps({"index": number, "backend": "claude", "model": "a-model", "status": "ok", "exit_code": 0, "output": "answer " * 40,
                           "usage": {"input_tokens": 100, "output_tokens": 5, "total_tokens": 105}, "cost_usd": 0.25, "attempts": 1,
                           "start_time": times[0], "end_time": times[1], "duration_seconds": 3.0, "key": "0" * 64, "label": "a task"})

    for what, options in (("", []), (" --json", ["--json"])):
        peaks, times = {}, {}
        for count in (1000, 100000):
            results = bench.lines("results.jsonl", count, line)
            began = time.perf_counter()
            run = subprocess.Popen(bench.installed + ["report", *options, results], env=bench.environment, stdout=subprocess.DEVNULL)
            peaks[count] = 0.0
            while run.poll() is None:
                peaks[count] = max(peaks[count], megabytes(run.pid, "status", "VmHWM:"))
                time.sleep(0.01)
            times[count] = time.perf_counter() - began
        row("`report%s` of 100,000 results against 1,000 (peak RSS)" % what, "%.1f MB (%.1f s)" % (peaks[100000], times[100000]),
            "%.1f MB" % peaks[1000], "+%.0f bytes a task" % ((peaks[100000] - peaks[1000]) * 1048576 / 99000), "")


def measure_table(bench):
    """How much of a core the parent uses while 8 tasks print, with the table on a terminal of 120 columns."""
    tasks = bench.lines("table.jsonl", 8, lambda number: '{"backend": "printer", "name": "task %d", "prompt": "p"}' % number)
    printer = {"printer": {"command": ["sh", "-c", "while sleep 0.1; do echo line; done"]}}
    shares, seconds = {}, 30
    for way in ("table", "never"):
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        run = subprocess.Popen(bench.installed + ["parallel", "-j", "8", "-q", "--progress", way, "-f", tasks], stdin=slave, stdout=slave,
                               stderr=slave, env=dict(bench.environment, CLINVK_BACKENDS=json.dumps(printer), TERM="xterm"))
        os.close(slave)
        threading.Thread(target=lambda: [None for _ in iter(lambda: read_or_end(master), b"")], daemon=True).start()
        time.sleep(3)
        before = cpu_seconds(run.pid)
        time.sleep(seconds)
        shares[way] = (cpu_seconds(run.pid) - before) / seconds * 100
        run.terminate()
        run.wait()
    row("8 running tasks with the table, the parent (user + sys)", "%.2f %% of a core" % shares["table"],
        "without it %.2f %%" % shares["never"], "", "1 %")


def cpu_seconds(pid):
    with open("/proc/%d/stat" % pid) as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_or_end(file):
    try:
        return os.read(file, 1 << 16)
    except OSError:  # nobody has the terminal open any more
        return b""


PARTS = {"start": measure_start, "pool": measure_pool, "events": measure_events, "journal": measure_journal, "memory": measure_memory, "million": measure_million,
         "stream": measure_stream, "table": measure_table, "report": measure_report}


def main():
    chosen = sys.argv[1:] or list(PARTS)
    unknown = set(chosen) - set(PARTS)
    if unknown:
        raise SystemExit("unknown part %s; known are %s" % (", ".join(unknown), ", ".join(PARTS)))
    orjson = subprocess.run([PYTHON, "-c", "import orjson"], stderr=subprocess.DEVNULL).returncode == 0
    print("Python %s%s, %s, %d cores, load %.1f\n" % (platform.python_version(), " with orjson" if orjson else "", platform.platform(),
                                                      os.cpu_count() or 0, os.getloadavg()[0]))
    row("what", "clinvk", "beside", "ratio", "aim")
    row("---", "---", "---", "---", "---")
    with tempfile.TemporaryDirectory(prefix="measure-") as directory:
        bench = Bench(directory)
        for part in chosen:
            PARTS[part](bench)


if __name__ == "__main__":
    main()
