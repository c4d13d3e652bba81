#!/usr/bin/env python3
"""Job arrays on a real Slurm of one node, which this suite starts: `python3 tests/slurm/suite.py [-v]`.

An array shares a batch with `--shard auto`.  Elements of the array are told to end, killed and requeued; in the end each task
is answered once, and no task that was answered has run again.  The daemons talk over loopback, and end with the suite.

Where Slurm (Debian: slurm-wlm, munge) or root is missing it prints a line that starts with `skipped ` and says why, and exits 0.
"""
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

import support  # noqa: E402  (found by the line above)
from support import PROGRAM, wait_until  # noqa: E402

DAEMONS = ("munged", "slurmctld", "slurmd")
ELEMENTS, TASKS = 4, 200
QUICK = 40  # so many tasks end at once, the others when the file `go` is there

CONFIGURATION = """\
ClusterName=clinvk
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits, in seconds; below 5 it would be 120
AuthInfo=socket={directory}/munge.socket,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
RequeueExit=75
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=8
PartitionName=all Nodes=node Default=YES State=UP
"""

BACKEND = """\
#!/bin/sh
read -r number
echo $$ >> started.$number
[ "$number" -lt %d ] || while [ ! -e go ]; do sleep 0.2; done
echo "answer $number"
""" % QUICK


def script_of_the_man_page():
    with open(os.path.join(support.ROOT, "man", "clinvk.1"), encoding="utf-8") as file:
        return re.search("^#!/bin/sh\n#SBATCH --array.*?(?=^[.]Ed)", file.read(), re.M | re.S).group()


def free_ports(count):
    with contextlib.ExitStack() as sockets:
        all_of_them = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in all_of_them:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in all_of_them]


class Array(support.Case):
    def setUp(self):
        super().setUp()
        self.daemons = []
        for name in ("state", "spool"):
            os.mkdir(self.path(name))
        with open(os.open(self.path("munge.key"), os.O_WRONLY | os.O_CREAT, 0o400), "wb") as key:
            key.write(os.urandom(1024))
        controller_port, node_port = free_ports(2)
        self.environment["SLURM_CONF"] = self.file("slurm.conf", CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0], directory=self.directory, controller_port=controller_port, node_port=node_port))
        self.environment["PATH"] = os.pathsep.join([self.bin, self.environment["PATH"], "/usr/sbin"])
        os.chmod(self.directory, 0o755)  # munged refuses a path that others could change
        self.daemon("munged", "--foreground", "--force", *("--%s=%s" % (name, self.path("munge." + name.partition("-")[0])) for name in (
            "key-file", "socket", "pid-file", "log-file", "seed-file")))
        wait_until(lambda: os.path.exists(self.path("munge.socket")), "munged listens")
        self.daemon("slurmctld", "-D")
        wait_until(lambda: self.run_program(["scontrol", "ping"]).returncode == 0, "slurmctld answers")
        self.daemon("slurmd", "-D", "-N", "node")
        wait_until(lambda: self.slurm("sinfo", "--noheader", "--format=%T").strip() == "idle", "the node is idle")

    def daemon(self, *words):
        self.daemons.append(self.start_program(list(words), stdout=subprocess.DEVNULL))

    def tearDown(self):
        for process in reversed(self.daemons):
            process.terminate()
            process.wait()
        super().tearDown()

    def slurm(self, *words):
        completed = self.run_program(list(words))
        self.assertEqual(completed.returncode, 0, completed.stderr)
        return completed.stdout.decode()

    def states(self, job):
        """The states of the elements, by element, and their batch scripts' processes."""
        shown = self.slurm("scontrol", "show", "job", "--oneliner", job)
        rows = [dict(word.partition("=")[::2] for word in line.split()) for line in shown.splitlines()]
        return {int(row["ArrayTaskId"]): row["JobState"] for row in rows if row["ArrayTaskId"].isdigit()}

    def answers(self, element):
        """The indexes of the tasks that the results file of an element answers."""
        try:
            with open(self.path("results.%d.jsonl" % element)) as file:
                return [json.loads(line)["index"] for line in file if line.endswith("\n") and json.loads(line)["status"] == "ok"]
        except FileNotFoundError:
            return []

    def starts(self, number):
        try:
            with open(self.path("started.%d" % number)) as file:
                return len(file.readlines())
        except FileNotFoundError:
            return 0

    def test_array_whose_elements_are_told_to_end_and_killed_answers_each_task_once(self):
        for name, text in (("clinvk", "#!/bin/sh\nexec %s -B %s \"$@\"\n" % (sys.executable, PROGRAM)), ("answerer", BACKEND)):
            support.write_program(os.path.join(self.bin, name), text.encode())
        self.environment["CLINVK_BACKENDS"] = json.dumps({"answerer": {"command": ["answerer"]}})
        self.file("tasks.json", json.dumps([{"backend": "answerer", "prompt": "%d\n" % number} for number in range(TASKS)]))
        self.file("job.sh", script_of_the_man_page())
        job = self.slurm("sbatch", "--parsable", "job.sh").strip()
        each = range(ELEMENTS)
        wait_until(lambda: all(len(self.answers(element)) == QUICK / ELEMENTS for element in each), "the quick tasks are answered")
        wait_until(lambda: sum(map(self.starts, range(QUICK, TASKS))) == 3 * ELEMENTS, "three tasks run in each element")

        # As at the end of a job's time: clinvk ends with 75, and RequeueExit requeues the element.
        self.slurm("scancel", "--batch", "--signal=TERM", job + "_1")
        # As where an administrator drains a node: Slurm ends the element and requeues it.
        self.slurm("scontrol", "requeue", job + "_2")
        # As where a node dies: nothing ends in order, and nothing is requeued by itself.
        self.slurm("scancel", "--signal=KILL", "--batch", job + "_3")
        wait_until(lambda: self.states(job).get(3) in ("FAILED", "CANCELLED"), "the killed element has failed")
        self.slurm("scontrol", "requeue", job + "_3")
        started = {number: self.starts(number) for number in range(TASKS)}

        self.file("go", "")
        wait_until(lambda: set(self.states(job).values()) == {"COMPLETED"}, "all elements are completed")
        self.assertEqual(sorted(index for element in each for index in self.answers(element)), list(range(TASKS)))
        for element in each:
            self.assertEqual({index % ELEMENTS for index in self.answers(element)}, {element})
        # No quick task, each of which was answered, ran again; each of those that ran when their element ended did.
        self.assertEqual([number for number in range(QUICK) if self.starts(number) != 1], [])
        again = [number for number in range(TASKS) if self.starts(number) > 1]
        self.assertEqual(sorted({number % ELEMENTS for number in again}), [1, 2, 3])
        self.assertEqual([number for number in again if not started[number]], [])
        report = self.run_program(["clinvk", "report", *("results.%d.jsonl" % element for element in each), "--json"])
        self.assertEqual((report.returncode, report.stderr), (0, b""))
        self.assertEqual([(one["index"], one["output"]) for one in json.loads(report.stdout)["results"]],
                         [(number, "answer %d\n" % number) for number in range(TASKS)])


def main():
    missing = [name for name in DAEMONS if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")]
    if missing:
        print("skipped tests/slurm: %s cannot be found; Debian: apt install slurm-wlm munge" % ", ".join(missing))
        return 0
    if os.geteuid() != 0:
        print("skipped tests/slurm: only root can start the daemons for other users' jobs")
        return 0
    tempfile.tempdir = "/var/tmp"  # munged refuses a socket below a directory that all can write, unless that is sticky
    return not unittest.main(exit=False).result.wasSuccessful()


if __name__ == "__main__":
    sys.exit(main())
