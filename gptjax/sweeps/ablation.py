"""Which value of one field is best at equal compute: final losses over seeds, and where they cross.

Points are compared that are alike in everything but that field, the seed and the length of the
run. Intervals are 95% by Student's t: of a difference paired by seed (of weights, of data) where
both sides finished the same ones, by Welch's approximation otherwise.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gptjax.errors import BadInput, did_you_mean
from gptjax.experiment import MAY_DIFFER, flatten
from gptjax.scaling.laws import Interval
from gptjax.scaling.laws.isoflop import same_budgets
from gptjax.scaling.table import Runs
from gptjax.sweeps.curves import Curve
from gptjax.sweeps.sweep import FACTS, Analysis, Point

LEVEL = 0.95
SEEDS = ("train.seed", "data.seed")
# What follows from a budget, and what a run says of itself.
LENGTH = ("train.steps", "train.tokens", "train.eval_every", "train.checkpoint_every", "train.log_")
SAME_BUDGET = 0.1  # in log of FLOPs: whole steps make equal budgets differ a little


@dataclass(frozen=True, eq=False)
class Arm:
    """The runs of one value at one budget; arrays are [finished seeds]."""

    value: str
    names: tuple[str, ...]
    seeds: tuple[str, ...]
    unfinished: int  # points that diverged, failed or wait
    loss: np.ndarray
    flops: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray  # of steps, without compilation and evaluations; NaN where not known
    mean: Interval  # of the loss
    difference: Interval | None  # to the reference, None for the reference itself
    paired: bool
    share: np.ndarray  # of the reference's FLOPs, when its final loss was met; NaN: never


@dataclass(frozen=True, eq=False)
class Contrast:
    """The values at one budget, in the order of the grid."""

    label: str  # what sets this one apart from the others of the sweep
    arms: tuple[Arm, ...]
    reference: str

    @property
    def ranked(self) -> list[Arm]:
        """Arms with a loss, the lowest mean first."""
        return sorted((a for a in self.arms if len(a.loss)), key=lambda a: a.mean.estimate)

    def arm(self, value: str) -> Arm:
        return next(arm for arm in self.arms if arm.value == value)


@dataclass(frozen=True, eq=False)
class Ablation:
    """The values of one field, budget by budget."""

    field: str
    reference: str
    contrasts: tuple[Contrast, ...]

    @property
    def values(self) -> tuple[str, ...]:
        """In the order of the grid."""
        found = (arm.value for contrast in self.contrasts for arm in contrast.arms)
        return tuple(dict.fromkeys(found))


def ablate(
    points: Mapping[str, Point], runs: Runs, analysis: Analysis, curves: Mapping[str, Curve]
) -> Ablation | None:
    """Compare the values of `analysis.compare` over the finished `runs`; None without a field.

    Never raises for runs that are missing: an arm without a finished seed says so.
    """
    if not analysis.compare:
        return None
    reference = reference_of(points.values(), analysis)
    row = {name: i for i, name in enumerate(runs.names)}
    contrasts = []
    for label, by_value in alike(points.values(), analysis.compare):
        arms = {value: _arm(value, mine, runs, row, curves) for value, mine in by_value.items()}
        base = arms.get(reference)
        found = [_against(arm, base, curves) if base is not None else arm for arm in arms.values()]
        contrasts.append(Contrast(label, tuple(found), reference))
    return Ablation(analysis.compare, reference, tuple(contrasts))


def alike(points, field: str) -> list[tuple[str, dict[str, list[Point]]]]:
    """(label, points by value) of every set of points that differ in the field alone.

    Seeds and lengths aside. Of several budgets each is a set: by the points' group where they have
    one, by tokens where all values were given the same ones, by FLOPs otherwise. A set of one
    value is left out.
    """
    sets: dict[tuple, list[Point]] = {}
    others: dict[tuple, dict] = {}
    for point in points:
        rest = _rest(point, field)
        key = (point.group, *(f"{name}={value}" for name, value in sorted(rest.items())))
        sets.setdefault(key, []).append(point)
        others[key] = {**rest, "group": point.group} if point.group else rest
    varied = {
        name
        for rest in others.values()
        for name in rest
        if len({str(other.get(name)) for other in others.values()}) > 1
    }
    found = []
    for key, mine in sets.items():
        for budget, members in _budgets(mine, field, bool(mine[0].group)):
            by_value: dict[str, list[Point]] = {}
            for point in members:
                by_value.setdefault(value_of(point, field), []).append(point)
            if len(by_value) < 2:
                continue
            said = [f"{n.rsplit('.', 1)[-1]} {others[key].get(n, '')}" for n in sorted(varied)]
            found.append((", ".join([*said, *([budget] if budget else [])]), by_value))
    return found


def _rest(point: Point, field: str) -> dict[str, object]:
    """The fields in which points of one comparison agree."""
    flat = flatten(point.experiment.to_json())
    apart = (*MAY_DIFFER, *SEEDS, *LENGTH)
    return {
        name: value
        for name, value in flat.items()
        if name not in ("name", field) and not name.startswith(apart)
    }


def _budgets(points: list[Point], field: str, grouped: bool) -> list[tuple[str, list[Point]]]:
    """Points by budget with a label, which is empty when there is one."""
    tokens: dict[str, set[int]] = {}
    for point in points:
        tokens.setdefault(value_of(point, field), set()).add(point.experiment.tokens)
    if grouped:
        keys = [0.0] * len(points)
    elif len({frozenset(seen) for seen in tokens.values()}) == 1:
        keys = [float(point.experiment.tokens) for point in points]
    else:
        keys = list(same_budgets(np.array([point.flops for point in points]), SAME_BUDGET))
    found: dict[float, list[Point]] = {}
    for key, point in zip(keys, points, strict=True):
        found.setdefault(key, []).append(point)
    if len(found) == 1:
        return [("", points)]
    mean = lambda mine: float(np.mean([point.flops for point in mine]))
    return [(f"{mean(found[key]):.2g} FLOPs", found[key]) for key in sorted(found)]


def value_of(point: Point, field: str) -> str:
    """What a point has in the field, as text."""
    return str(flatten(point.experiment.to_json())[field])


def reference_of(points, analysis: Analysis) -> str:
    """The value that others are compared with; BadInput for a field or a value that is not there.

    A number may be written in another way than the grid has it.
    """
    points, field, wanted = tuple(points), analysis.compare, analysis.reference
    known = sorted({name for point in points for name in point.row} - {*FACTS})
    if field not in known:
        raise BadInput(
            f"analysis.compare is {field!r}, which no row of the grid sets"
            f"{did_you_mean(field, known)} (set: {', '.join(known)})"
        )
    if field in SEEDS or field.startswith(LENGTH):
        raise BadInput(
            f"analysis.compare is {field!r}, but seeds and lengths are what a comparison goes "
            f"over; give another field that the grid sets ({', '.join(known)})"
        )
    values = list(dict.fromkeys(value_of(point, field) for point in points))
    if not wanted:
        return values[0]
    found = next((value for value in values if _same(value, wanted)), None)
    if found is None:
        raise BadInput(
            f"analysis.reference is {wanted!r}, no value of {field}{did_you_mean(wanted, values)} "
            f"(values: {', '.join(values)})"
        )
    return found


def _same(value: str, wanted: str) -> bool:
    try:
        return value == wanted or float(value) == float(wanted)
    except ValueError:
        return False


def check_compared(points, analysis: Analysis) -> None:
    """BadInput where nothing would be compared; nothing is computed before."""
    if not analysis.compare:
        return
    points = tuple(points)
    reference_of(points, analysis)
    if alike(points, analysis.compare):
        return
    rests = [_rest(point, analysis.compare) for point in points]
    varied = {
        name
        for rest in rests
        for name in rest
        if len({str(other.get(name)) for other in rests}) > 1
    }
    also = f" also differ in {', '.join(sorted(varied))}" if varied else " differ in their budgets"
    raise BadInput(
        f"analysis.compare is {analysis.compare!r}, but points with two values of it{also}: give "
        "points that are alike in everything but it, the seed and the length of the run"
    )


# ---------------------------------------------------------------- figures of one value


def _arm(value: str, points: list[Point], runs: Runs, row: Mapping[str, int], curves) -> Arm:
    mine = [point for point in points if point.name in row]
    at = [row[point.name] for point in mine]
    loss = runs.loss[at]
    return Arm(
        value=value,
        names=tuple(point.name for point in mine),
        seeds=tuple(_seed(point) for point in mine),
        unfinished=len(points) - len(mine),
        loss=loss,
        flops=runs.flops[at],
        tokens=runs.tokens[at],
        seconds=np.array([curves[p.name].pace if p.name in curves else math.nan for p in mine]),
        mean=mean_interval(loss),
        difference=None,
        paired=False,
        share=np.full(len(mine), math.nan),
    )


def _seed(point: Point) -> str:
    e = point.experiment
    return f"{e.train.seed}/{e.data.seed}"


def _against(arm: Arm, base: Arm, curves: Mapping[str, Curve]) -> Arm:
    """The arm with what it is to the reference."""
    if arm is base:
        return arm
    paired = len(arm.seeds) > 1 and sorted(arm.seeds) == sorted(base.seeds)
    paired = paired and len(set(arm.seeds)) == len(arm.seeds)
    if paired:
        other = base.loss[[base.seeds.index(seed) for seed in arm.seeds]]
        difference = mean_interval(arm.loss - other)
    else:
        difference = welch(arm.loss, base.loss)
    fields = {name: getattr(arm, name) for name in Arm.__dataclass_fields__}
    share = np.array([share_to_equal(name, base, curves) for name in arm.names])
    return Arm(**{**fields, "difference": difference, "paired": paired, "share": share})


def mean_interval(values: np.ndarray) -> Interval:
    """The mean with its t interval; without ends for fewer than two values."""
    from scipy import stats

    if not len(values):
        return Interval(math.nan, math.nan, math.nan, LEVEL)
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan, LEVEL)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half, LEVEL)


def welch(mine: np.ndarray, theirs: np.ndarray) -> Interval:
    """The difference of two means by Welch's approximation; without ends for lone values."""
    from scipy import stats

    if not len(mine) or not len(theirs):
        return Interval(math.nan, math.nan, math.nan, LEVEL)
    gap = float(np.mean(mine) - np.mean(theirs))
    if len(mine) < 2 or len(theirs) < 2:
        return Interval(gap, math.nan, math.nan, LEVEL)
    parts = np.array([np.var(v, ddof=1) / len(v) for v in (mine, theirs)])
    if not parts.sum() > 0:
        return Interval(gap, gap, gap, LEVEL)
    counts = np.array([len(mine), len(theirs)])
    degrees = parts.sum() ** 2 / np.sum(parts**2 / (counts - 1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * math.sqrt(parts.sum())
    return Interval(gap, gap - half, gap + half, LEVEL)


def lead(contrast: Contrast) -> tuple[Arm, Arm, Interval] | None:
    """(best, runner-up, their difference), paired where it can be; None for fewer than two."""
    ranked = contrast.ranked
    if len(ranked) < 2:
        return None
    best, second = ranked[:2]
    return best, second, _against(best, second, {}).difference


def share_to_equal(name: str, base: Arm, curves: Mapping[str, Curve]) -> float:
    """FLOPs after which a run's curve meets the reference's final loss, over the reference's.

    The final loss is the end of the reference's curves of the same kind, their mean. NaN where
    it is never met, or where a curve is missing.
    """
    theirs = [curves[other] for other in base.names if other in curves]
    if name not in curves or not theirs:
        return math.nan
    held_out = all(curve.has_checks for curve in (curves[name], *theirs))
    goal = float(np.mean([curve.line(held_out)[1][-1] for curve in theirs]))
    flops, loss = curves[name].line(held_out)
    met = np.flatnonzero(loss <= goal)
    if not len(met):
        return math.nan
    i = int(met[0])
    at = flops[i]
    if i:
        part = (loss[i - 1] - goal) / (loss[i - 1] - loss[i])
        at = math.exp(np.log(flops[i - 1]) + part * np.log(flops[i] / flops[i - 1]))
    return float(at / np.mean(base.flops))
