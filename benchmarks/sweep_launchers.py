"""A sweep under Ray and under SLURM, disturbed: `python benchmarks/sweep_launchers.py`.

Ray: a worker and a process of Ray are killed. SLURM: a worker is killed, jobs are queued again by
`scontrol requeue` and by the signal of a preemption. Under both the runner is stopped by SIGTERM,
and killed, and started again. Then every point must have been finished exactly once, held by one
worker at a time, and must equal the point of a sweep in local processes that was left alone, bit
for bit. What is not installed is skipped with a line. Where no SLURM answers, slurmctld and slurmd
are run for the time being as a cluster of this one machine (as root; Debian: slurm-wlm, munge).
"""

import argparse
import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from faults import write_corpus  # noqa: E402
from sweep_faults import check, finish, kill, start  # noqa: E402

SLURM_CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CryptoType=crypto/munge
SlurmctldPort={port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1
JobRequeue=1
ReturnToService=2
KillWait=15
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def answers() -> bool:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%t"], capture_output=True, text=True, timeout=20
        )
        return done.returncode == 0 and any(w in done.stdout for w in ("idle", "mix"))
    return False


@contextlib.contextmanager
def slurm_cluster(folder: Path):
    """The SLURM that is there, or one of this machine alone; yields why there is none, or ''."""
    if shutil.which("sbatch") and answers():
        yield ""
        return
    needed = ("munged", "slurmctld", "slurmd", "sbatch")
    missing = [name for name in needed if shutil.which(name) is None]
    if missing or os.getuid():
        yield f"no SLURM answers, and {', '.join(missing) or 'root'} is missing to start one"
        return
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True, mode=0o755)
    folder.chmod(0o755)
    ports = free_ports(2)
    conf = SLURM_CONF.format(
        host=socket.gethostname(), folder=folder, port=ports[0], node_port=ports[1]
    )
    (folder / "slurm.conf").write_text(conf)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    munge = [
        *("munged", "--foreground", "--force", f"--socket={folder}/munge.socket"),
        *(f"--key-file={folder}/munge.key", f"--pid-file={folder}/munge/pid"),
        *(f"--seed-file={folder}/munge/seed", f"--log-file={folder}/munge/log"),
    ]
    started = []
    with open(folder / "daemons.log", "ab") as log:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", socket.gethostname()]):
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
            time.sleep(1.0)
    try:
        until = time.monotonic() + 60
        while not answers() and time.monotonic() < until:
            time.sleep(1.0)
        tail = (folder / "daemons.log").read_text(errors="replace")[-1500:]
        yield "" if answers() else f"SLURM did not start:\n{tail}"
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            process.wait()
        del os.environ["SLURM_CONF"]


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def workers_on(folder: Path) -> dict[int, int]:
    """Living workers on a folder, whoever started them, and their parents."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"gptjax.sweeps.worker" in words and os.fsencode(folder.resolve()) in words:
                    stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                    if stat[0] != "Z":
                        found[int(entry.name)] = int(stat[1])
    return found


def job_of(worker: int) -> str:
    """The job of SLURM that a worker belongs to."""
    for word in Path(f"/proc/{worker}/environ").read_bytes().split(b"\0"):
        if word.startswith(b"SLURM_JOB_ID="):
            return word.partition(b"=")[2].decode()
    raise LookupError(f"process {worker} is in no job")


class Disturbed:
    """One sweep's folder and the runner on it, which is started again whenever it ended."""

    def __init__(self, work: Path, launcher: str, given):
        self.work, self.launcher, self.given = work, launcher, given
        self.folder = work / f"under_{launcher}"
        self.runner = start(work, self.folder, given, launcher)

    def events(self, kind: str) -> int:
        log = self.folder / "ledger" / "events.jsonl"
        if not log.exists():
            return 0
        return sum(f'"event": "{kind}"' in line for line in log.read_text().splitlines())

    def saved(self) -> int:
        """How far the points are, by their checkpoints."""
        steps = self.folder.glob("points/*/checkpoints/[0-9]*")
        newest = Counter()
        for path in steps:
            if path.name.isdecimal():
                newest[path.parent] = max(newest[path.parent], int(path.name))
        return sum(newest.values())

    def worker_at_work(self) -> int:
        """Wait until the sweep got further, and name a worker."""
        before, until = self.saved(), time.monotonic() + 300
        while time.monotonic() < until:
            if self.runner.poll() is not None:
                self.fail(f"the runner ended with {self.runner.poll()} before it was disturbed")
            living = workers_on(self.folder)
            if living and self.saved() > before:
                return min(living)
            time.sleep(0.2)
        self.fail("nothing happens")

    def fail(self, why: str):
        tail = (self.work / "output.txt").read_text(errors="replace")[-3000:]
        raise SystemExit(f"{self.launcher}: {why}:\n{tail}")

    def disturb(self, what: str) -> None:
        worker = self.worker_at_work()
        begun = time.monotonic()
        if what == "worker killed":
            kill(worker)
        elif what == "process of Ray killed":
            kill(workers_on(self.folder)[worker])
        elif what == "requeue":
            subprocess.run(["scontrol", "requeue", job_of(worker)], check=True)
        elif what == "preemption":
            subprocess.run(["scancel", "--signal=USR2", job_of(worker)], check=True)
        else:
            before = self.events("given back")
            self.runner.send_signal(signal.SIGKILL if "killed" in what else signal.SIGTERM)
            code = self.runner.wait()
            if "killed" not in what:
                left = len(workers_on(self.folder))
                gave = self.events("given back") - before
                print(
                    f"{self.launcher}: the runner left after {time.monotonic() - begun:.1f} s "
                    f"with code {code}, {gave} points given back, {left} workers left",
                    flush=True,
                )
            self.runner = start(self.work, self.folder, self.given, self.launcher)
        print(f"{self.launcher}: {what}", flush=True)

    def finish(self) -> list[str]:
        if self.runner.wait():
            self.fail(f"the runner ended with code {self.runner.returncode}")
        left = len(workers_on(self.folder))
        wrong = check(self.work / "quiet", self.folder, self.given.steps)
        return wrong + ([f"{left} workers outlived the runner"] if left else [])


RUNNER = ["runner stopped", "runner killed"]
RAY = ["worker killed", "process of Ray killed", *RUNNER]
SLURM = ["worker killed", "requeue", "preemption", *RUNNER]


def disturb(work: Path, launcher: str, what: list[str], given) -> list[str]:
    begun = time.monotonic()
    sweep = Disturbed(work, launcher, given)
    for each in what:
        sweep.disturb(each)
    wrong = sweep.finish()
    counts = {kind: sweep.events(kind) for kind in ("start", "lost", "given back", "done")}
    seconds = time.monotonic() - begun
    print(f"{launcher}: {json.dumps(counts)}, {len(wrong)} broken, {seconds:.0f} s", flush=True)
    return [f"{launcher}: {line}" for line in wrong]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--launchers", default="ray,slurm")
    parser.add_argument("--points", type=int, default=6)
    parser.add_argument("--steps", type=int, default=1500)
    given = parser.parse_args()
    wanted = given.launchers.split(",")
    wrong = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        work = Path(folder)
        no_slurm = ""
        if "slurm" in wanted and importlib.util.find_spec("submitit"):
            no_slurm = stack.enter_context(slurm_cluster(work / "cluster"))
        reasons = {"slurm": no_slurm}
        for launcher, package in (("ray", "ray"), ("slurm", "submitit")):
            if importlib.util.find_spec(package) is None:
                reasons[launcher] = f"{package} is not installed"
        todo = []
        for launcher in wanted:
            if reasons.get(launcher):
                print(f"{launcher} skipped: {reasons[launcher]}")
            else:
                todo.append(launcher)
        if todo:
            write_corpus(work / "corpus", random.Random(0))
            begun = time.monotonic()
            finish(work, work / "quiet", given)
            print(f"local, undisturbed: {time.monotonic() - begun:.0f} s", flush=True)
        for launcher in todo:
            wrong += disturb(work, launcher, RAY if launcher == "ray" else SLURM, given)
    for line in wrong:
        print(f"broken: {line}")
    print("all promises kept" if not wrong else f"{len(wrong)} promises broken")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
