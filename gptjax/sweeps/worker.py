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
from gptjax.errors import EXIT_BAD_INPUT, EXIT_PREEMPTED, BadInput
from gptjax.sweeps.folder import SweepFolder
from gptjax.sweeps.ledger import Lease, Ledger
from gptjax.sweeps.trunks import begin_from_trunk
from gptjax.training.signals import LeaveAtOnce, Preempted

Say = Callable[[str], None]


def next_point(folder: SweepFolder, names: list[str], last: str = "") -> Lease | None:
    """Claim the best point there is: of the program at hand if possible, the costly ones first.

    The costly ones first, because whoever takes the last point ends the sweep; a point whose
    trunk is still growing is left for later.
    """
    among = set(names)
    points = [folder.points[name] for name in names if folder.can_begin(name, among)]
    points.sort(key=lambda point: (point.program != last, -point.flops))
    for point in points:
        lease = folder.ledger.claim(point.name, folder.newest_step(point.name))
        if lease is not None:
            return lease
    return None


def run_point(folder: SweepFolder, lease: Lease, say: Say = print) -> None:
    """Train one claimed point and write down what came of it; a divergence is a result.

    Preempted and KeyboardInterrupt pass through after the point was given back.
    """
    from gptjax.runs import fit
    from gptjax.training.loop import Diverged

    point, ledger = folder.points[lease.point], folder.ledger
    workdir, branch = folder.workdir(point.name), folder.branches.get(point.name)
    try:
        if branch is not None:
            trunk = folder.workdir(branch.trunk)
            if begin_from_trunk(trunk, branch.step, workdir, point.experiment):
                say(f"{point.name} begins at step {branch.step} of {branch.trunk}")
        result = fit(point.experiment, workdir, keep_steps=folder.kept_steps(point.name))
    except Diverged as error:
        say(f"{point.name} diverged: {error}")
        ledger.finish(lease, "diverged", {}, str(error))
    except BadInput as error:  # trying again would not help
        say(f"{point.name} failed: {error}")
        ledger.failed(lease, str(error), attempts=1)
    except (Preempted, KeyboardInterrupt):
        ledger.give_back(lease)
        raise
    except Exception as error:
        traceback.print_exc()
        ledger.failed(lease, f"{type(error).__name__}: {error}", folder.attempts)
    else:
        figures = {k: v for k, v in result.figures.items() if k != "sample"}
        ledger.finish(lease, "done", figures)


def work(folder: SweepFolder, names: list[str], say: Say = print) -> int:
    """Take points until none of `names` can be claimed; how many were begun."""
    last, begun = "", 0
    while (lease := next_point(folder, names, last)) is not None:
        last = folder.points[lease.point].program
        say(f"--- {lease.point}")
        run_point(folder, lease, say)
        begun += 1
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


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 nothing left to take, 2 bad input, 75 stopped and saved."""
    parser = argparse.ArgumentParser(prog="python -m gptjax.sweeps.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--cpus", default="", help="pin to these, such as 0,1")
    parser.add_argument("--parent", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.parent:
        die_with_parent()
        if os.getppid() != given.parent:  # it died before the kernel was asked
            return EXIT_PREEMPTED
    if given.cpus:  # before jax counts them
        os.sched_setaffinity(0, {int(cpu) for cpu in given.cpus.split(",")})
    allocator.tune()
    from gptjax.command_line import use_compilation_cache

    use_compilation_cache()
    try:
        folder = SweepFolder.open(given.folder)
        with GiveBack(folder.ledger):
            work(folder, folder.select(tuple(given.only)), lambda text: print(text, flush=True))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Preempted as stopped:
        print(stopped)
        return EXIT_PREEMPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
