"""What the command line does with a sweep: run, plan, status."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from gptjax.errors import BadInput
from gptjax.sweeps.sweep import Point, Sweep
from gptjax.training.metrics import clock, short

H100 = 989e12  # FLOP/s in bf16 without sparsity (NVIDIA's data sheet, SXM5)
USED = 0.4  # of it in a usual training run


def show_plan(
    sweep: Sweep, only: tuple[str, ...] = (), launcher: str = "local", workers: int = 0
) -> float | None:
    """Print every point with its size and cost, and what they come to.

    Times are those of the launcher's workers on this machine; a program whose time is not known
    is measured now. Returns the expected seconds by the clock, where they are known.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from gptjax.sweeps.folder import matching

    chosen = set(matching(sweep.name, {p.name: p for p in sweep.points}, only))
    points = tuple(point for point in sweep.points if point.name in chosen)
    times = _Times(sweep, points, launcher, workers)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("point", overflow="fold")
    columns = ("group", "parameters", "tokens", "tokens/param", "steps", "lr", "batch", "FLOPs",
               "time", "program")  # fmt: skip
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    flops_of = _in_one_unit([point.flops for point in points])
    for point in points:
        e = point.experiment
        table.add_row(
            point.name,
            point.group,
            short(point.parameters),
            short(e.tokens),
            f"{e.tokens / point.parameters:.3g}",
            str(e.steps),
            f"{e.optim.lr:.3g}",
            short(e.tokens_per_step),
            flops_of(point.flops),
            times.of(point),
            point.program,
        )
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=150)
    console.print(table)
    flops = sum(point.flops for point in points)
    programs = len({point.program for point in points})
    budget = f" of a budget of {short(sweep.budget)}" if sweep.budget else ""
    console.print(
        f"{sweep.name}: {len(points)} points, {programs} compiled program{'s' * (programs > 1)}, "
        f"{short(flops, 'FLOP')}{budget}"
    )
    for line in times.lines():
        console.print(line)
    return times.schedule.wall if times.schedule is not None else None


class _Times:
    """What is known of the time of a sweep's points."""

    def __init__(self, sweep: Sweep, points: tuple[Point, ...], launcher: str, workers: int):
        from gptjax.sweeps.schedule import schedule
        from gptjax.sweeps.timing import find_place, measured
        from gptjax.sweeps.trunks import find_branches

        self.points = points
        self.place, self.costs, self.schedule = None, {}, None
        self.branches = find_branches({p.name: p for p in points}) if sweep.share_trunks else {}
        self.why_not = "a plan only" if sweep.plan_only else ""
        if launcher not in ("", "local", "here"):
            self.why_not = f"{launcher} works on other machines"
        if self.why_not:
            return
        self.place = find_place(launcher, workers, len(points))
        self.costs = measured(points, self.place)
        self.schedule = schedule(points, self.costs, self.place.workers, sweep.share_trunks)

    def of(self, point: Point) -> str:
        """The seconds of a point in a worker that has its program."""
        cost = self.costs.get(point.program, "")
        if isinstance(cost, str):
            return ""
        branch = self.branches.get(point.name)
        return clock(cost.seconds(point.experiment, branch.step if branch else 0))

    def lines(self) -> list[str]:
        """What is said below the table."""
        found = []
        if self.branches:
            saved = sum(
                p.flops * self.branches[p.name].step / p.experiment.steps
                for p in self.points
                if p.name in self.branches
            )
            share = saved / sum(p.flops for p in self.points)
            trunks = len({branch.trunk for branch in self.branches.values()})
            found.append(
                f"shared trunks: {len(self.branches)} points branch off {trunks} others, which "
                f"saves {100 * share:.0f}% of the FLOPs; their time is that of the rest"
            )
        unknown: Mapping[str, str] = {k: c for k, c in self.costs.items() if isinstance(c, str)}
        if self.why_not or unknown:
            why = self.why_not or "; ".join(sorted(set(unknown.values())))
            number = len(unknown) or len({p.program for p in self.points})
            found.append(
                f"expected time: not measured for {number} program{'s' * (number > 1)} ({why})"
            )
        if self.why_not:
            days = sum(point.flops for point in self.points) / (H100 * USED) / 86400
            found.append(
                f"{_three_digits(days)} H100-days at {100 * USED:.0f}% of "
                f"{H100 / 1e12:.0f} TFLOP/s (bf16)"
            )
        if self.schedule is not None:
            found += [
                f"expected wall time: {clock(self.schedule.wall)} with "
                f"{_workers(self.place.workers)}, from start to report; "
                f"{clock(self.schedule.alone)} one point at a time",
                self._source(),
            ]
        return found

    def _source(self) -> str:
        from gptjax.sweeps.timing import KEPT_HOURS, age, busy

        if busy(self.costs):
            return f"{busy(self.costs)}: its times are not kept, and the next plan measures again"
        return (
            f"the times were measured {_ago(age(self.costs))} on {self.place.label}, and are kept "
            f"for {KEPT_HOURS:g} hours; --remeasure measures them again"
        )


def _in_one_unit(values: list[float]) -> Callable[[float], str]:
    """How the FLOPs of a column are written: all with the unit of the middle one."""
    middle = sorted(values)[len(values) // 2] if values else 0.0
    power = min(max(math.floor(math.log10(middle)) // 3 if middle > 0 else 0, 0), 8)
    return lambda value: f"{_three_digits(value / 1000**power)}{' kMGTPEZY'[power].strip()}"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _ago(seconds: float) -> str:
    if seconds < 120:
        return "just now"
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{seconds / 60:.0f} minutes ago"


def wish_of(command):
    """What the options ask a sweep to be planned for."""
    from gptjax.sweeps.design import Wish

    return Wish(command.minutes, command.budget, command.tune)


def _show_wish(sweep: Sweep, command, path: Path) -> None:
    """--dry-run of a sweep that is planned anew."""
    from gptjax.sweeps.design import plan_sweep
    from gptjax.sweeps.schedule import REPORT_SECONDS

    wish = wish_of(command)
    where = {"launcher": command.launcher or "local", "workers": command.workers}
    plan = plan_sweep(sweep, wish, path, **where, only=command.only)
    first = None
    if plan.tuning is not None:
        print(
            f"first {wish.tuning.rates} learning rates a factor 2 apart are tuned for each shape "
            f"and batch on {plan.ratio:g} tokens per parameter; a grid whose best rate stands at "
            "its edge grows, which comes on top"
        )
        first = show_plan(plan.tuning, **where)
        print("then, with rates and batches of the rule until they are tuned:")
    second = show_plan(plan.sweep, command.only, **where)
    if first is not None and second is not None:
        print(f"expected wall time in all: {clock(first + second - REPORT_SECONDS)}")


def _before_main(sweep: Sweep, path: Path) -> bool:
    """Show where a planned sweep stands whose own points are not begun; False for any other."""
    from gptjax.sweeps.folder import SweepFolder
    from gptjax.sweeps.planned import read_plan
    from gptjax.sweeps.status import show_status

    saved = None if (path / "sweep.json").exists() else read_plan(path)
    if saved is None:
        return False
    if saved["sweep"] != sweep.name:
        raise BadInput(f"{path} was planned for {saved['sweep']}, not {sweep.name}")
    if (path / "tuning" / "sweep.json").exists():
        folder = SweepFolder.open(path / "tuning")
        show_status(folder, folder.select(()))
    budgets = ", ".join(f"{budget:.2g}" for budget in saved["budgets"])
    done = "tuned" if (path / "tuned.json").exists() else "not tuned yet"
    first = f"learning rates and batches are {done}; then follow" if saved["tuning"] else "planned:"
    print(
        f"{path} ({saved['options']}): {first} the runs of {sweep.name} in groups of {budgets} "
        "FLOPs, none of which is begun"
    )
    return True


def run_command(sweep: Sweep, command) -> int:
    """Do what the command line asks of a sweep; the exit code."""
    from gptjax.sweeps.design import run_planned
    from gptjax.sweeps.folder import SweepFolder
    from gptjax.sweeps.planned import default_folder, read_plan
    from gptjax.sweeps.runner import exit_code, run_sweep
    from gptjax.sweeps.status import show_status
    from gptjax.sweeps.timing import forget

    wish = wish_of(command)
    if command.fork and wish.any:
        raise BadInput("--fork goes on in a sweep's folder, and a plan wants one of its own")
    path = Path(command.workdir or default_folder(sweep, wish))
    if command.remeasure:
        forget(sweep.base)
    if command.dry_run and wish.any:
        _show_wish(sweep, command, path)
        return 0
    if command.dry_run:
        show_plan(sweep, command.only, command.launcher or "local", command.workers)
        return 0
    if command.status and _before_main(sweep, path):
        return 0
    if command.status:
        folder = SweepFolder.open(path)
        if folder.name != sweep.name:
            raise BadInput(f"{path} holds the sweep {folder.name}, not {sweep.name}")
        differs = "" if read_plan(path) is not None else folder.differs_from(sweep)
        if differs:
            print(f"{differs}; its own points follow")
        show_status(folder, folder.select(command.only))
        return 0
    if sweep.plan_only and not command.only:
        raise BadInput(
            f"{sweep.name} is a plan of {short(sweep.flops, 'FLOP')}: --dry-run shows it, "
            "--only=POINT runs a part of it"
        )
    saved = read_plan(path)
    if saved is not None and not wish.any:
        raise BadInput(
            f"{path} was planned with {saved['options']}: the same goes on; without it give "
            "another --workdir"
        )
    options = {
        "launcher": command.launcher or "local",
        "workers": command.workers,
        "only": command.only,
        "retry_failed": command.retry_failed,
    }
    if wish.any:
        asked = {"minutes": wish.minutes, "budget": wish.budget, "tune": wish.tune}
        result = run_planned(sweep, path, **asked, **options)
    else:
        result = run_sweep(sweep, path, **options, fork=command.fork, report=False)
    show_status(result.folder, result.folder.select(command.only))
    for name, error in result.failed.items():
        print(f"failed: {name}: {error}")
    if result.failed and not command.retry_failed:
        print("--retry-failed tries the failed points again")
    waiting = [name for name, state in result.states.items() if not state.finished]
    if waiting:
        print(f"{len(waiting)} points are with other workers; the same command looks again")
    for line in result.report.summary:
        print(line)
    print(f"report: {result.report.path}")
    return exit_code(result)
