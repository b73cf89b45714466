"""Which value of one field is best at equal compute: final losses over seeds, and where they cross.

Points are compared that are alike in everything but that field, the seed and the length of the
run. Intervals are 95% by Student's t: of a difference paired by seed (of weights, of data) where
both sides finished the same ones, by Welch's approximation otherwise.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gptjax.scaling.laws import Interval
from gptjax.scaling.table import Runs
from gptjax.sweeps.alike import alike, reference_of
from gptjax.sweeps.curves import Curve
from gptjax.sweeps.sweep import Analysis, Point

LEVEL = 0.95


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


def numbers_of(ablation: Ablation) -> dict[str, float]:
    """The compared values as numbers; {} where one is none."""
    try:
        return {value: float(value) for value in ablation.values}
    except ValueError:
        return {}


def beyond_edge(contrast: Contrast, numbers: Mapping[str, float]) -> str:
    """`larger` or `smaller` where the best of three or more numbers is the grid's last one."""
    held = sorted(numbers[arm.value] for arm in contrast.arms) if numbers else []
    if len(held) < 3 or not contrast.ranked:
        return ""
    best = numbers[contrast.ranked[0].value]
    return {held[0]: "smaller", held[-1]: "larger"}.get(best, "")


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
