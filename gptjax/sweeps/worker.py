"""A worker: one process that takes points from a sweep's ledger until there is nothing to take.

    python -m gptjax.sweeps.worker FOLDER [--only PATTERN ...] [--cpus 0,1]

It needs the folder alone. Started by the runner, by Ray, by SLURM, or by hand on another host.
"""

import argparse
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gptjax import allocator
from gptjax.errors import EXIT_PREEMPTED, BadInput, OneLineParser, Trouble, exit_code_of
from gptjax.process import quiet_libraries, use_compilation_cache
from gptjax.sweeps.folder import SweepFolder
from gptjax.sweeps.ledger import Lease, Ledger
from gptjax.sweeps.status import Pace
from gptjax.sweeps.sweep import Point
from gptjax.sweeps.trunks import begin_from_trunk
from gptjax.training.signals import LeaveAtOnce, Preempted

Say = Callable[[str], None]


def next_points(folder: SweepFolder, names: list[str], last: str = "") -> list[Lease]:
    """Claim the best point there is, and those that can be trained beside it; [] for none.

    Best is one of the program at hand, and of these the costliest: whoever takes the last point
    ends the sweep. A point whose trunk is still growing is left for later.
    """
    among = set(names)
    points = [folder.points[name] for name in names if folder.can_begin(name, among)]
    points.sort(key=lambda point: (point.program != last, -point.flops))
    leases: list[Lease] = []
    program = ""
    for point in points:
        if leases and point.program != program:
            continue
        lease = folder.ledger.claim(point.name, folder.newest_step(point.name))
        if lease is not None:
            leases.append(lease)
            program = point.program
        if len(leases) == folder.together:
            break
    return leases


def run_points(folder: SweepFolder, leases: list[Lease], say: Say = print) -> None:
    """Train claimed points of one program and write down what came of them.

    A divergence is a result. Preempted, KeyboardInterrupt and Trouble pass through after the
    points that are not finished were given back.
    """
    try:
        _run_points(folder, leases, say)
    finally:
        for lease in leases:
            folder.ledger.give_back(lease)


def _run_points(folder: SweepFolder, leases: list[Lease], say: Say) -> None:
    from gptjax.training.loop import Diverged

    ledger = folder.ledger
    try:
        outcomes = _train(folder, [folder.points[lease.point] for lease in leases], say)
    except (Preempted, Trouble):
        raise
    except Exception as error:
        if len(leases) > 1:  # one of them may be at fault: each for itself
            say(f"together they failed ({type(error).__name__}: {error}); now one by one")
            for lease in leases:
                _run_points(folder, [lease], say)
        elif isinstance(error, BadInput):  # trying again would not help
            say(f"{leases[0].point} failed: {error}")
            ledger.failed(leases[0], str(error), attempts=1)
        else:
            traceback.print_exc()
            ledger.failed(leases[0], f"{type(error).__name__}: {error}", folder.attempts)
        return
    for lease, outcome in zip(leases, outcomes, strict=True):
        if isinstance(outcome, Diverged):
            say(f"{lease.point} diverged: {outcome}")
            ledger.finish(lease, "diverged", {}, str(outcome))
        else:
            figures = {k: v for k, v in outcome.figures.items() if k != "sample"}
            ledger.finish(lease, "done", figures)


def _train(folder: SweepFolder, points: list[Point], say: Say) -> list:
    """A `Result` or a `Diverged` for each point."""
    from gptjax import population, runs
    from gptjax.training.loop import Diverged

    for point in points:
        branch = folder.branches.get(point.name)
        if branch is not None and begin_from_trunk(
            folder.workdir(branch.trunk),
            branch.step,
            folder.workdir(point.name),
            point.experiment,
            say,
        ):
            say(f"{point.name} begins at step {branch.step} of {branch.trunk}")
    workdirs = [folder.workdir(point.name) for point in points]
    kept = [folder.kept_steps(point.name) for point in points]
    if len(points) == 1:
        try:
            return [runs.fit(points[0].experiment, workdirs[0], keep_steps=kept[0])]
        except Diverged as diverged:
            return [diverged]
    experiments = [point.experiment for point in points]
    return population.fit_population(experiments, workdirs, keep_steps=kept)


def work(folder: SweepFolder, names: list[str], say: Say = print) -> int:
    """Take points until none of `names` can be claimed; how many were begun."""
    last, begun, pace = "", 0, Pace(folder, names)
    while leases := next_points(folder, names, last):
        last = folder.points[leases[0].point].program
        share, points, left = pace.look()
        say(f"--- {100 * share:.0f}% · {points}{left} · now:")
        for lease in leases:
            say(f"--- {lease.point}")
        run_points(folder, leases, say)
        begun += len(leases)
    return begun


class GiveBack(LeaveAtOnce):
    """A signal outside the training loop gives the claimed point back before it ends the worker.

    Inside the loop `fit` answers signals itself: it saves first.
    """

    def __init__(self, ledger: Ledger):
        super().__init__()
        self.ledger = ledger

    def arrived(self, number: int) -> None:
        for lease in self.ledger.held():
            with suppress(OSError):
                self.ledger.give_back(lease)
        super().arrived(number)


def die_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the runner dies, so that no worker is left alone."""
    PR_SET_PDEATHSIG = 1
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def pin(cpus: str) -> None:
    """Keep this process to CPUs such as "0,1"; BadInput for those that it may not use."""
    if not hasattr(os, "sched_setaffinity"):
        raise BadInput("--cpus: processes cannot be pinned on this system; leave it out")
    allowed = sorted(os.sched_getaffinity(0))
    wanted = [int(cpu) if cpu.isdecimal() and cpu.isascii() else -1 for cpu in cpus.split(",")]
    if not {*wanted} <= {*allowed}:
        known = ",".join(map(str, allowed))
        raise BadInput(f"--cpus={cpus} is no list of CPUs that this process may use: {known}")
    os.sched_setaffinity(0, wanted)


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 nothing left to take, 2 bad input, 75 stopped and saved."""
    return exit_code_of(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = OneLineParser(
        prog="python -m gptjax.sweeps.worker", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="a sweep's folder, such as runs/NAME")
    parser.add_argument(
        "--only", action="append", default=[], help="parts of points' names, or field=value"
    )
    parser.add_argument("--cpus", default="", help="pin to these, such as 0,1")
    parser.add_argument("--parent", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.parent:
        die_with_parent()
        if os.getppid() != given.parent:  # it died before the kernel was asked
            return EXIT_PREEMPTED
    if given.cpus:  # before jax counts them
        pin(given.cpus)
    allocator.tune()
    use_compilation_cache()
    quiet_libraries()
    try:
        folder = SweepFolder.open(given.folder)
        with GiveBack(folder.ledger):
            work(folder, folder.select(tuple(given.only)), lambda text: print(text, flush=True))
    except Preempted as stopped:
        print(stopped)
        return EXIT_PREEMPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
