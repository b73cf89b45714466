"""Where workers live: processes of this machine, tasks of a Ray cluster, jobs of SLURM.

Every launcher only starts workers and counts the living: the ledger in the sweep's folder decides
who does what, so launchers can be mixed, killed and started anew. The folder must be visible
under the same path wherever a worker runs; what a worker prints is in its logs/.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from gptjax.errors import EXIT_BAD_INPUT, EXIT_PREEMPTED, BadInput, did_you_mean

STOP_SECONDS = 120.0  # what a worker gets to save itself
CRASHES = 5  # of workers in a row within QUICK_SECONDS, until the runner gives up
QUICK_SECONDS = 15.0


class Launcher(Protocol):
    """Starts workers on a sweep's folder."""

    workers: int

    def start(self) -> None:
        """One more worker."""

    def alive(self) -> int:
        """How many workers live, or wait in a queue; BadInput when they cannot be started."""

    def stop(self) -> None:
        """Ask all workers to save and leave, and wait for them."""

    def kill(self) -> None:
        """End all workers without a save."""


def worker_command(folder: Path, only: tuple[str, ...]) -> list[str]:
    """What starts a worker on any machine."""
    patterns = [f"--only={pattern}" for pattern in only]
    return [sys.executable, "-m", "gptjax.sweeps.worker", str(folder.resolve()), *patterns]


def make_launcher(
    kind: str, folder: Path, only: tuple[str, ...], workers: int, pin: bool = True
) -> Launcher:
    """A launcher by name: local, ray or slurm."""
    from gptjax.sweeps.clusters import Ray, Slurm

    kinds = {"local": Local, "ray": Ray, "slurm": Slurm}
    if kind not in kinds:
        near = did_you_mean(kind, kinds)
        raise BadInput(f"--launcher={kind} is not one of here, {', '.join(kinds)}{near}")
    if kind == "local":
        return Local(folder, only, workers, pin)
    return kinds[kind](folder, only, workers)


class Crashes:
    """Gives up on workers that end again and again as soon as they start."""

    def __init__(self):
        self.count = 0

    def ended(self, code: int | None, seconds: float, log: Path) -> None:
        """A worker ended after so long; None is the code of one that was killed unseen."""
        if code == EXIT_BAD_INPUT:
            raise BadInput(f"a worker refused to start: {last_line(log)}")
        if code in (0, EXIT_PREEMPTED) or seconds >= QUICK_SECONDS:
            self.count = 0
            return
        self.count += 1
        if self.count >= CRASHES:
            how = "are killed" if code is None else f"end with code {code}"
            raise BadInput(f"workers {how} as soon as they start; see {log}: {last_line(log)}")


class Local:
    """Processes of this machine, on a CPU each pinned to its share of the cores."""

    def __init__(self, folder: Path, only: tuple[str, ...], workers: int, pin: bool = True):
        self.folder, self.only, self.workers = folder, only, workers
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        share = len(cores) // workers if pin else 0
        self.shares = [cores[i * share : (i + 1) * share] for i in range(workers)]
        self.running: list[subprocess.Popen | None] = [None] * workers
        self.begun = [0.0] * workers
        self.crashes = Crashes()

    def log(self, slot: int) -> Path:
        """What the worker of a slot prints."""
        return self.folder / "logs" / f"worker-{os.getpid()}-{slot}.log"

    def start(self) -> None:
        slot = self.running.index(None)
        command = worker_command(self.folder, self.only)
        command.append(f"--parent={os.getpid()}")
        if self.shares[slot]:
            command.append(f"--cpus={','.join(str(cpu) for cpu in self.shares[slot])}")
        self.log(slot).parent.mkdir(parents=True, exist_ok=True)
        self.begun[slot] = time.monotonic()
        with open(self.log(slot), "ab") as log:
            self.running[slot] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the runner, which stops its workers
            )

    def alive(self) -> int:
        for slot, process in enumerate(self.running):
            if process is None or process.poll() is None:
                continue
            self.running[slot] = None
            seconds = time.monotonic() - self.begun[slot]
            self.crashes.ended(process.returncode, seconds, self.log(slot))
        return sum(process is not None for process in self.running)

    def stop(self) -> None:
        living = [process for process in self.running if process is not None]
        for process in living:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        until = time.monotonic() + STOP_SECONDS
        for process in living:
            try:
                process.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self) -> None:
        for process in self.running:
            if process is not None:
                process.kill()
                process.wait()


def last_line(log: Path) -> str:
    """What a worker said last."""
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "nothing was printed"
