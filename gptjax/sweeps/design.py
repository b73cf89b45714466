"""A sweep planned anew: for minutes on this machine, for a budget in FLOPs, with tuned rates.

    python experiments/run.py --exp=sweep_cpu_10min --minutes=5 --tune

The sweep must carry its design. What was planned stands in WORKDIR/plan.json, and what tuning
found in WORKDIR/tuned.json, so the same command goes on with the budgets it began with, however
the machine's speed may have changed.
"""

import bisect
import dataclasses
import functools
import itertools
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gptjax.errors import BadInput
from gptjax.scaling.checks import check_number
from gptjax.scaling.flops import count_parameters
from gptjax.scaling.planner import run_row
from gptjax.sweeps.folder import matching
from gptjax.sweeps.grid import rows
from gptjax.sweeps.measure import Cost
from gptjax.sweeps.planned import (
    Wish,
    as_begun,
    base_fields,
    check_folder,
    default_folder,
    recovered,
    with_budgets,
    with_tuned,
    write_plan,
    write_tuned,
)
from gptjax.sweeps.runner import SweepResult, check_options, run_sweep
from gptjax.sweeps.schedule import REPORT_SECONDS, RUNNER_SECONDS, schedule
from gptjax.sweeps.sweep import Sweep
from gptjax.sweeps.timing import Place, busy, find_place, measured
from gptjax.sweeps.tuning import (
    Stage,
    Tuning,
    first_cells,
    look,
    run_tuning,
    tokens_per_parameter,
    tuning_sweep,
)
from gptjax.training.metrics import clock

LEAST_STEPS = 20  # of the shortest run
LEAST_WARMUPS = 1.25  # of its length
STEP = 1.02  # from one total to the next that is tried
GAP = 10.0  # without a good total, below which none is looked for
NEW_BUDGET = re.compile(r"C\d")  # of a point's name
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """A sweep as it will be run; where rates are tuned before, the first runs of that."""

    sweep: Sweep
    tuning: Sweep | None = None
    ratio: float = 0.0  # tokens per parameter of a tuning run
    fresh: bool = True  # not read from a folder


# ---------------------------------------------------------------- from a budget to a plan


def totals(sweep: Sweep) -> list[float]:
    """The total FLOPs that a design can be planned for, ascending, a few percent apart.

    From the first at which no run is too short to mean anything to the one beyond which the
    ladder is too short.
    """
    design, model = sweep.design, sweep.base.model
    fewest = max(LEAST_STEPS, round(LEAST_WARMUPS * sweep.base.optim.warmup_steps))

    def enough(total: float) -> bool:
        try:
            found = design.scaled(total).rows(model)
        except BadInput:  # less than a step
            return False
        return min(row["train.steps"] for row in found) >= fewest

    total = lowest = design.most(model)
    found = []
    while total > lowest / GAP:
        if enough(total):
            found.append(total)
            lowest = total
        total /= STEP
    found.reverse()
    if not found:
        raise BadInput(f"no budget gives every run of {sweep.name} {fewest} steps or more")
    return found


def for_budget(sweep: Sweep, total: float) -> Sweep:
    """The sweep on so many FLOPs in all, budgets rounded to two digits; BadInput when too few."""
    check_number("--budget", total)
    least, *_, most = totals(sweep)
    for bound, wrong in ((least, total < least), (most, total > most)):
        if wrong:
            what = "too few" if total < bound else "more than its ladder of shapes has a use for"
            raise BadInput(
                f"{total:.3g} FLOPs for {sweep.name} are {what}: give {least:.2g} to {most:.2g}"
            )
    return sweep.planned(design=sweep.design.scaled(total))


def every_shape(sweep: Sweep) -> Sweep:
    """A run of each shape of the ladder: all programs that any budget may need."""
    design, model = sweep.design, sweep.base.model
    each = [
        {"name": f"L{shape.num_layers}_d{shape.d_model}"}
        | run_row(model, shape, 20.0 * count_parameters(shape).total, design.length, design.rates)
        for shape in design.ladder(model)
    ]
    return dataclasses.replace(sweep, grid=rows(*each), design=None, budget=0.0)


def for_minutes(
    sweep: Sweep,
    minutes: float,
    costs: Mapping[str, Cost | str],
    workers: int,
    before: Callable[[float], float] = lambda total: 0.0,
) -> Sweep:
    """The largest plan, in budgets of two digits, that is expected to end within the minutes.

    `before(total)`: seconds that go before the runs of so many FLOPs. BadInput, with the least or
    the most minutes, when no plan of the design takes them.
    """
    check_number("--minutes", minutes)
    choices = totals(sweep)

    @functools.cache
    def wall(total: float) -> float:
        points = sweep.planned(design=sweep.design.scaled(total)).points
        found = schedule(points, costs, workers, sweep.share_trunks)
        return math.inf if found is None else found.wall + before(total)

    fewest = wall(choices[0])
    if fewest == math.inf:
        why = "; ".join(sorted({cost for cost in costs.values() if isinstance(cost, str)}))
        raise BadInput(f"--minutes cannot be planned for {sweep.name} on this machine: {why}")
    if fewest > 60 * minutes:
        raise _too_short(sweep, minutes, fewest, costs)
    highest = wall(choices[-1])
    if highest <= 60 * minutes:
        raise BadInput(
            f"--minutes={minutes:g} is more than the shapes of {sweep.name} have a use for: "
            f"{highest / 60:.1f} are the most on this machine, unless the design's `largest` grows"
        )
    # More FLOPs may take less time, where another shape or another order fits better.
    first = bisect.bisect_right(choices, 60 * minutes, key=wall)
    near = itertools.takewhile(lambda total: wall(total) < 66 * minutes, choices[first:])
    total = max(
        [total for total in near if wall(total) <= 60 * minutes], default=choices[first - 1]
    )
    return sweep.planned(design=sweep.design.scaled(total))


def _too_short(sweep: Sweep, minutes: float, seconds: float, costs: Mapping = {}) -> BadInput:
    up = math.ceil(seconds / 6) / 10
    why = f" ({busy(costs)})" if busy(costs) else ""
    anew = "; --remeasure measures its speed anew" if costs else ""
    return BadInput(
        f"--minutes={minutes:g} is too short for {sweep.name}: its smallest plan takes {up:g} "
        f"minutes or more on this machine{why}{anew}"
    )


def _check_hope(sweep: Sweep, minutes: float, place: Place) -> Callable[[Mapping], None]:
    """What refuses minutes that are hopeless, before a program is measured and after each."""
    points = sweep.planned(design=sweep.design.scaled(totals(sweep)[0])).points
    flops = sum(point.flops for point in points) / (2 if sweep.share_trunks else 1)
    least = flops / place.fastest + RUNNER_SECONDS + REPORT_SECONDS
    if least > 60 * minutes:
        raise _too_short(sweep, minutes, least)

    def check(costs: Mapping[str, Cost | str]) -> None:
        some = [point for point in points if isinstance(costs.get(point.program), Cost)]
        found = schedule(some, costs, place.workers, sweep.share_trunks)
        if found is not None and found.wall > 1.2 * 60 * minutes:
            raise _too_short(sweep, minutes, found.wall, costs)

    return check


# ---------------------------------------------------------------- planning and running


def plan_sweep(
    sweep: Sweep,
    wish: Wish,
    path: Path | None = None,
    *,
    launcher: str = "local",
    workers: int = 0,
    only: tuple[str, ...] = (),
    say: Say = print,
) -> Plan:
    """The plan that `wish` asks for, or the one that stands in the folder; nothing is written.

    Minutes want the time of every program; those not known yet are measured now. BadInput when
    the sweep cannot be planned so, or the folder was planned otherwise.
    """
    only = check_options(sweep, launcher, workers, only)
    wish.check(sweep)
    saved = check_folder(sweep, path, wish) if path is not None else None
    if saved is not None:
        sweep = with_budgets(sweep, tuple(saved["budgets"]))
        if not wish.tune:
            return Plan(sweep, fresh=False)
        tuned = with_tuned(sweep, path)
        if tuned is not None:
            return Plan(tuned, fresh=False)
        stage = look(sweep, wish.tuning, saved["ratio"], path / "tuning")
        return Plan(sweep, stage.sweep, saved["ratio"], fresh=False)

    cells = first_cells(sweep, wish.tuning) if wish.tune else ()

    def tuning_of(planned: Sweep) -> tuple[Sweep | None, float]:
        if not cells:
            return None, 0.0
        ratio = tokens_per_parameter(planned, cells, wish.tuning)
        return tuning_sweep(planned, cells, ratio), ratio

    begun = recovered(sweep, path, wish) if path is not None else None
    if begun is not None:
        say(f"{path / 'plan.json'} is missing: the budgets are those of sweep.json")
        again = with_budgets(sweep, begun.design.budgets)
        return Plan(again, *tuning_of(again))
    _check_only(sweep, only)
    if wish.budget:
        share = 1 + wish.tuning.share if wish.tune else 1.0
        sweep = for_budget(sweep, wish.budget / share)
    if wish.minutes:
        place = find_place(launcher, workers, len(sweep.points))
        tried = tuning_of(sweep)[0]
        points = (*every_shape(sweep).points, *(tried.points if tried else ()))
        costs = measured(points, place, say, _check_hope(sweep, wish.minutes, place))

        def before(total: float) -> float:
            tried = tuning_of(sweep.planned(design=sweep.design.scaled(total)))[0]
            found = schedule(tried.points, costs, place.workers) if tried else None
            return found.wall - REPORT_SECONDS if found else 0.0

        sweep = for_minutes(sweep, wish.minutes, costs, place.workers, before)
    tuning, ratio = tuning_of(sweep)
    return Plan(sweep, tuning, ratio)


def _check_only(sweep: Sweep, only: tuple[str, ...]) -> None:
    """BadInput for patterns that choose no point of any plan; before anything is measured."""
    points = {point.name: point for point in (*sweep.points, *every_shape(sweep).points)}
    changing = ("steps", "lr", "batch_size")  # from plan to plan
    for pattern in only:
        field = pattern.partition("=")[0].rsplit(".", 1)[-1]
        if field not in changing and not NEW_BUDGET.match(pattern):
            matching(sweep.name, points, (pattern,))


def run_planned(
    sweep: Sweep,
    path: str | Path | None = None,
    *,
    minutes: float = 0.0,
    budget: float = 0.0,
    tune: bool = False,
    tuning: Tuning | None = None,
    launcher: str = "local",
    workers: int = 0,
    only: tuple[str, ...] = (),
    retry_failed: bool = False,
    say: Say = print,
) -> SweepResult:
    """Run a sweep of a design for so many minutes on this machine, or so many FLOPs.

    With `tune` the learning rates and batches are found first, in `path`/tuning. `path` defaults
    to a folder of runs/ that is named after the plan; a folder goes on with the plan it has.
    Otherwise as `runner.run_sweep`.
    """
    only = check_options(sweep, launcher, workers, only)
    wish = Wish(minutes, budget, tune, Tuning() if tuning is None else tuning)
    wish.check(sweep)
    if path is not None and (not isinstance(path, str | Path) or "\0" in str(path)):
        raise BadInput(f"the sweep's folder is {path!r}; give a path, such as 'runs/rates'")
    path = Path(path or default_folder(sweep, wish))
    options = {"launcher": launcher, "workers": workers}
    plan = plan_sweep(sweep, wish, path, **options, only=only, say=say)
    if plan.fresh:
        if not tune:
            matching(sweep.name, {point.name: point for point in plan.sweep.points}, only)
        write_plan(path, plan.sweep, wish, plan.ratio)
        plan = plan_sweep(sweep, wish, path, **options, say=say)  # another's, if it was first
    run = functools.partial(run_sweep, **options, retry_failed=retry_failed, report=False)
    if plan.tuning is None:
        return run(plan.sweep, path, only=only)
    begun = time.monotonic()
    stage = run_tuning(plan.sweep, wish.tuning, plan.ratio, path / "tuning", run, say)
    tuned = plan.sweep.planned(design=dataclasses.replace(plan.sweep.design, rates=stage.tuned))
    again = as_begun(tuned, path)  # a lost tuned.json changes no budgets
    tuned = again or _after_tuning(tuned, wish, stage, begun, options, say)
    write_tuned(path, tuned, base_fields(plan.sweep), stage.rounds)
    return run(with_tuned(plan.sweep, path), path, only=only)


def _after_tuning(
    tuned: Sweep, wish: Wish, stage: Stage, begun: float, options: dict, say: Say
) -> Sweep:
    """The sweep with its tuned rates on the budgets that the rest of the minutes pays for."""
    for best in stage.tuned.found:
        say(
            f"tuned: width {best.width}: lr {best.lr:g}, {best.batch_tokens} tokens in a batch, "
            f"loss {best.loss:.4f}"
        )
    if not wish.minutes:
        return tuned
    place = find_place(options["launcher"], options["workers"], len(tuned.points))
    costs = measured((*every_shape(tuned).points, *stage.sweep.points), place, say)
    known = schedule(stage.sweep.points, costs, place.workers)
    seconds = time.monotonic() - begun
    if known is not None:  # what an earlier start did is not on this process's clock
        seconds = max(seconds, known.wall - REPORT_SECONDS)
    try:
        rest = max(wish.minutes - seconds / 60, 1e-3)
        return for_minutes(tuned, rest, costs, place.workers)
    except BadInput:
        say(f"{clock(seconds)} of tuning leave less than the smallest plan takes, which is run")
        return tuned.planned(design=tuned.design.scaled(totals(tuned)[0]))
