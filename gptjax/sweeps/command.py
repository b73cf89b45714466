"""What the command line does with a sweep: run, plan, status."""

from pathlib import Path

from gptjax.errors import BadInput
from gptjax.sweeps.sweep import Sweep
from gptjax.training.metrics import clock, short


def show_plan(sweep: Sweep, only: tuple[str, ...] = ()) -> None:
    """Print every point with its size and cost, and what they come to."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from gptjax.sweeps.folder import matching

    chosen = set(matching(sweep.name, {p.name: p for p in sweep.points}, only))
    points = tuple(point for point in sweep.points if point.name in chosen)
    seconds: dict[str, float | str] = {}
    if not sweep.plan_only:
        from gptjax.sweeps.timing import seconds_per_step

        seconds = seconds_per_step(points)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("point", overflow="fold")
    columns = ("group", "parameters", "tokens", "tokens/param", "steps", "FLOPs", "time", "program")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    total = 0.0
    unknown: dict[str, str] = {}
    for point in points:
        e, step = point.experiment, seconds.get(point.program, "a plan only")
        if isinstance(step, str):
            unknown[point.program] = step
        else:
            total += step * e.steps
        table.add_row(
            point.name,
            point.group,
            short(point.parameters),
            short(e.tokens),
            f"{e.tokens / point.parameters:.3g}",
            str(e.steps),
            short(point.flops),
            "" if isinstance(step, str) else clock(step * e.steps),
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
        f"{sweep.name}: {len(points)} points, {programs} compiled programs, "
        f"{short(flops, 'FLOP')}{budget}"
    )
    if unknown:
        why = "; ".join(sorted(set(unknown.values())))
        console.print(f"expected time: not measured for {len(unknown)} programs ({why})")
    if total:
        console.print(f"expected time: {clock(total)} of training, one point at a time")


def run_command(sweep: Sweep, command) -> int:
    """Do what the command line asks of a sweep; the exit code."""
    from gptjax.sweeps.folder import SweepFolder
    from gptjax.sweeps.report import write_report
    from gptjax.sweeps.runner import exit_code, run_sweep
    from gptjax.sweeps.status import show_status

    path = Path(command.workdir or Path("runs") / sweep.name)
    if command.dry_run:
        show_plan(sweep, command.only)
        return 0
    if command.status:
        folder = SweepFolder.open(path)
        if folder.name != sweep.name:
            raise BadInput(f"{path} holds the sweep {folder.name}, not {sweep.name}")
        if list(folder.points) != [point.name for point in sweep.points]:
            print(f"{path} was started with other settings than {sweep.name} has now")
        show_status(folder, folder.select(command.only))
        return 0
    if sweep.plan_only and not command.only:
        raise BadInput(
            f"{sweep.name} is a plan of {short(sweep.flops, 'FLOP')}: --dry-run shows it, "
            "--only=POINT runs a part of it"
        )
    result = run_sweep(
        sweep,
        path,
        launcher=command.launcher or "local",
        workers=command.workers,
        only=command.only,
        retry_failed=command.retry_failed,
    )
    show_status(result.folder, result.folder.select(command.only))
    for name, error in result.failed.items():
        print(f"failed: {name}: {error}")
    waiting = [name for name, state in result.states.items() if not state.finished]
    if waiting:
        print(f"{len(waiting)} points are with other workers; the same command looks again")
    report = write_report(result.folder)
    for line in report.summary:
        print(line)
    print(f"report: {report.path}")
    return exit_code(result)
