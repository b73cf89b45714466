"""The runner: workers are started while there is something to do, then the sweep is analysed.

It holds nothing that is not in the folder. Killed at any moment, alone or with its workers, it is
started again by the same command; several runners may work on one folder.
"""

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptjax.errors import EXIT_DONE, EXIT_PREEMPTED, BadInput, did_you_mean
from gptjax.experiment import Experiment
from gptjax.sweeps.folder import SweepFolder, matching
from gptjax.sweeps.launchers import make_launcher
from gptjax.sweeps.ledger import State
from gptjax.sweeps.status import SweepProgress
from gptjax.sweeps.sweep import Sweep
from gptjax.sweeps.worker import GiveBack, work
from gptjax.training.signals import LeaveAtOnce, Preempted

if TYPE_CHECKING:
    from gptjax.scaling.table import Runs
    from gptjax.sweeps.report import Report

LAUNCHERS = ("here", "local", "ray", "slurm")
WORKERS = 4095  # at the most
POLL_SECONDS = 0.5
LINGER_SECONDS = 15.0  # a worker with nothing left ends by then; one in a queue may wait for days


@dataclass(frozen=True, repr=False)
class SweepResult:
    """A sweep's folder after a run over it, with the points that were asked for."""

    folder: SweepFolder
    states: dict[str, State]

    @property
    def failed(self) -> dict[str, str]:
        """What the points that failed say."""
        return {name: s.error for name, s in self.states.items() if s.status == "failed"}

    @property
    def runs(self) -> "Runs":
        """The folder's finished points as a table."""
        return self.folder.runs()

    @property
    def best(self) -> str:
        """The finished point of the lowest loss; "" while there is none."""
        runs = self.runs.finite()
        return runs.names[int(runs.loss.argmin())] if len(runs) else ""

    @functools.cached_property
    def report(self) -> "Report":
        """The report's path and summary; written when it is first asked for."""
        from gptjax.sweeps.report import write_report

        return write_report(self.folder)

    def __repr__(self) -> str:
        counts = Counter(state.status for state in self.states.values())
        stand = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
        best = f", best {self.best}" if "done" in counts else ""
        return f"<SweepResult of {self.folder.name} in {self.folder.path}: {stand}{best}>"


def backend() -> str:
    """jax's backend on this machine, asked in a process of its own: workers need the device."""
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
        raise BadInput(f"jax finds no device to train on: {last}")
    return done.stdout.strip()


def check_options(sweep: object, launcher: object, workers: object, only: object) -> tuple:
    """BadInput for a sweep or an option that cannot be; the patterns of `only` as a tuple."""
    if isinstance(sweep, Experiment):
        raise BadInput(f"{sweep.name} is a single run; use gptjax.fit")
    if not isinstance(sweep, Sweep):
        raise BadInput(f"a Sweep is run, such as gptjax.get(NAME) returns, not {sweep!r}")
    sweep.validate()
    only = (only,) if isinstance(only, str) else only
    if not isinstance(only, tuple | list) or not all(isinstance(text, str) for text in only):
        raise BadInput(f"only is {only!r}; give parts of points' names, such as ('lr=0.01',)")
    if launcher not in LAUNCHERS:
        near = did_you_mean(str(launcher), LAUNCHERS)
        raise BadInput(f"--launcher={launcher} is not one of {', '.join(LAUNCHERS)}{near}")
    if not isinstance(workers, int) or isinstance(workers, bool) or not 0 <= workers <= WORKERS:
        raise BadInput(
            f"workers is {workers!r}; give 1 to {WORKERS}, or 0 to let the device decide"
        )
    return tuple(only)


def run_sweep(
    sweep: Sweep,
    path: str | Path | None = None,
    *,
    launcher: str = "local",
    workers: int = 0,
    only: tuple[str, ...] = (),
    retry_failed: bool = False,
    fork: bool = False,
    report: bool = True,
) -> SweepResult:
    """Run what is not finished of a sweep, in `path` (default runs/NAME).

    `launcher` is here (in this process, as a notebook on a TPU must), local, ray or slurm;
    `workers` 0 lets the device decide. `only` are parts of points' names or `field=value`.
    `fork` goes on in a folder that holds points which the sweep no longer has. `report` writes
    the folder's report.html at the end.
    Raises BadInput, and `loop.Preempted` when a signal stopped it; the same call goes on.
    """
    only = check_options(sweep, launcher, workers, only)
    matching(sweep.name, {point.name: point for point in sweep.points}, only)
    folder = SweepFolder.create(sweep, path or Path("runs") / sweep.name, fork)
    names = folder.select(only)
    for name in names:
        if retry_failed and folder.ledger.state(name).status == "failed":
            folder.ledger.reset(name)
    if launcher == "here":
        with GiveBack(folder.ledger) if LeaveAtOnce.active else nullcontext():
            work(folder, names)
    else:
        _supervise(folder, names, launcher, workers, only)
    result = SweepResult(folder, {name: folder.ledger.state(name) for name in names})
    if report:
        _ = result.report
    return result


def _unclaimed(folder: SweepFolder, names: list[str]) -> tuple[int, int]:
    """(points not finished, those of them that a further worker could take)."""
    ledger, among = folder.ledger, set(names)
    left = [name for name in names if not ledger.state(name).finished]
    free = (folder.can_begin(name, among) and ledger.running(name) is None for name in left)
    return len(left), sum(free)


def _supervise(folder, names, kind: str, workers: int, only: tuple[str, ...]) -> None:
    """Keep workers alive until every point is finished."""
    left, _ = _unclaimed(folder, names)
    if not left:
        return
    # On a CPU a worker for each core: small models gain little from a second one.
    cpu = kind == "local" and backend() == "cpu"
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = (known or 1) if cpu else 1
    launcher = make_launcher(kind, folder.path, only, workers or min(cores, left), pin=cpu)
    stop, before = Stop(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, stop.arrived)
    progress = SweepProgress(folder, names)
    said = {name for name in names if folder.ledger.state(name).finished}
    try:
        while not stop.asked.is_set():
            folder.check_unchanged()
            alive = launcher.alive()
            left, unclaimed = _unclaimed(folder, names)
            _say_finished(folder, names, said, progress)
            if left:
                busy = time.monotonic()
            elif not alive or time.monotonic() - busy > LINGER_SECONDS:
                return
            for _ in range(min(launcher.workers, alive + unclaimed) - alive):
                launcher.start()
            progress.update(alive)
            stop.asked.wait(POLL_SECONDS)
        progress.say("stopping: the workers save what they are at")
        raise Preempted(f"stopped with {left} points left")
    finally:
        try:
            stop.end(launcher)
        finally:
            progress.close()
            for number, handler in before.items():
                signal.signal(number, handler)


class Stop:
    """Ctrl-C and SIGTERM while workers run: the first asks them to save, a third kills them."""

    def __init__(self):
        self.asked = threading.Event()
        self.presses = 0

    def arrived(self, number: int, frame) -> None:
        self.asked.set()
        self.presses += number == signal.SIGINT
        if self.presses == 2:
            print("the workers still save; Ctrl-C once more ends them without", file=sys.stderr)
        if self.presses >= 3:
            raise KeyboardInterrupt

    def end(self, launcher) -> None:
        """Stop the workers; KeyboardInterrupt where they are killed instead."""
        try:
            if self.presses >= 3:
                raise KeyboardInterrupt
            launcher.stop()
        except KeyboardInterrupt:
            self.presses = 0  # what is pressed from now on does not keep the workers alive
            launcher.kill()
            raise


def _say_finished(folder: SweepFolder, names, said: set[str], progress: SweepProgress) -> None:
    for name in names:
        state = folder.ledger.state(name)
        if name in said or not state.finished:
            continue
        said.add(name)
        loss = state.figures.get("validation_loss")
        what = f"loss {loss:.4f}" if loss is not None else state.error
        progress.say(f"{state.status} · {name} · {what}")


def exit_code(result: SweepResult) -> int:
    """0 when every asked-for point is done or diverged, 1 when some failed, 75 when some wait."""
    if result.failed:
        return 1
    return EXIT_DONE if all(s.finished for s in result.states.values()) else EXIT_PREEMPTED
