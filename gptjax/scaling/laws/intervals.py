"""Intervals: bootstrap over runs, and profiles of the objective.

The bootstrap draws runs with replacement (as integer weights), refits from the best point and
reads percentiles; it needs no assumption about the noise. Runs that are checkpoints of one
training are not independent: give their column as `by`, and whole groups are drawn. The profile
refits with one parameter held, until the objective has grown as much as noise allows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from gptjax.errors import BadInput
from gptjax.scaling.laws.checks import check_level, check_resamples, check_seed
from gptjax.scaling.laws.fit import Fit
from gptjax.scaling.laws.inference import scale_of
from gptjax.scaling.laws.law import Law
from gptjax.scaling.laws.objective import Objective
from gptjax.scaling.laws.optimum import best_shape, check_shape_law
from gptjax.scaling.laws.progress import Say, counted
from gptjax.scaling.laws.solve import coordinates_of, descend, hold
from gptjax.scaling.table import Runs

SMOOTH = 1.8  # times the spread of residuals and n^(-1/3), measured on 100 and 240 runs
FELT = 1e-6  # a change of a raw coordinate by one that moves no log loss by more is not felt


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; an end at 0 or infinity is open."""

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def interval_of(name: str, estimate: float, samples: np.ndarray, level: float) -> Interval:
    """The percentile interval of samples; BadInput when it has no width."""
    samples = samples[np.isfinite(samples)]
    if not len(samples):
        return Interval(estimate, float("nan"), float("nan"), level)
    low, high = np.quantile(samples, [0.5 - level / 2, 0.5 + level / 2])
    if not high > low:
        raise BadInput(f"the interval of {name} has no width: all {len(samples)} resamples gave "
                       f"{low:.6g}; the runs do not determine an interval")  # fmt: skip
    return Interval(estimate, float(low), float(high), level)


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Refits to resampled runs; every figure of the fit has an interval here."""

    fit: Fit
    level: float
    raws: np.ndarray  # [resamples, P]
    unconverged: int
    parameters: dict[str, Interval] = field(default_factory=dict)
    derived: dict[str, Interval] = field(default_factory=dict)

    def predict(self, runs: Runs | None = None, **columns) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) of the law's mean at what `Fit.predict` takes, each [rows]."""
        x = self.fit.inputs(runs, **columns)
        samples = np.stack([self.fit.law.predict(raw, x) for raw in self.raws])
        low, high = np.quantile(samples, [0.5 - self.level / 2, 0.5 + self.level / 2], axis=0)
        return low, high

    def optimum(self, flops: float, **others: float) -> dict[str, Interval]:
        """Intervals of the compute-optimal `parameters`, `tokens` and `loss` at a budget.

        Resamples without an interior optimum are left out.
        """
        fit = self.fit
        best = fit.optimum(flops, **others)
        check_shape_law(fit.law, others)
        samples = np.array(
            [best_shape(fit.law, raw, flops, fit.cost, fit.size_range, others) for raw in self.raws]
        )
        names = ("parameters", "tokens", "loss")
        return {
            name: interval_of(f"the optimal {name}", getattr(best, name), column, self.level)
            for name, column in zip(names, samples.T, strict=True)
        }


def bootstrap(
    fit: Fit,
    resamples: int = 1000,
    seed: int = 0,
    *,
    level: float = 0.95,
    by: str | None = None,
    say: Say | None = None,
) -> Bootstrap:
    """Refit to `resamples` draws of the runs; intervals are percentiles at `level`.

    `by` names a column whose equal values belong together (checkpoints of one training). A
    parameter that the runs do not determine at all has an interval open at both ends. `say` gets
    a line now and then when it takes longer than some seconds. BadInput for an interval without
    width.
    """
    _check_fit(fit)
    check_level(level)
    check_resamples(resamples)
    check_seed(seed)
    refit = Refits(fit)
    draw = resampler(fit.runs, by, np.random.default_rng(seed), needed=max(refit.free, 1))
    what = f"bootstrap of {fit.law.name}"
    raws = np.array([refit(draw()) for _ in counted(resamples, what, say)])
    flat = flat_parameters(fit)
    parameters, derived = figures(fit.law, raws)
    kept = {name: v for name, v in parameters.items() if name not in fit.fixed}
    return Bootstrap(
        fit=fit,
        level=level,
        raws=raws,
        unconverged=refit.unconverged,
        parameters={
            n: _open(fit, n, level) if n in flat else interval_of(n, fit.parameters[n], v, level)
            for n, v in kept.items()
        },
        derived={n: interval_of(n, fit.derived[n], v, level) for n, v in derived.items()},
    )


class Refits:
    """A fit's law again, from the best point, to runs that were drawn with replacement."""

    def __init__(self, fit: Fit):
        self.fit, self.unconverged = fit, 0
        self.base = smoothed(fit.problem(), fit.residuals)
        self.free = self.base.basis.shape[1]
        # deviations count from the smoothed optimum, which is not quite the fit
        start = coordinates_of(self.base, fit.raw)
        self.center = descend(self.base, start, first=False)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """[P] raw for how often each run was drawn, [rows]."""
        weighted = replace(self.base, weights=self.base.weights * counts)
        found = descend(weighted, self.center.coordinates, first=False)
        self.unconverged += not found.converged
        return self.fit.raw + (found.raw - self.center.raw)


def smoothed(objective: Objective, residuals: np.ndarray) -> Objective:
    """The objective with a delta that is no small part of the residuals' spread.

    Resampled absolute residuals jump from run to run: with a small delta the bootstrap of 100
    runs was a quarter too wide. The bandwidth shrinks as runs grow more.
    """
    if not objective.robust:
        return objective
    spread = 1.4826 * float(np.median(np.abs(residuals)))
    return replace(
        objective, delta=max(objective.delta, SMOOTH * spread / len(residuals) ** (1 / 3))
    )


def flat_parameters(fit: Fit) -> set[str]:
    """Parameters that the prediction does not feel where they stand: a vanished floor, q at its
    limit. Resamples leave them where they are, which says nothing about them."""
    _, slopes = fit.problem().residuals(fit.raw)
    felt = np.abs(slopes).max(axis=1) > FELT
    return {name for name, moves in zip(fit.law.names, felt, strict=True) if not moves}


def _open(fit: Fit, name: str, level: float) -> Interval:
    low = 0.0 if fit.law.parameters[fit.law.index(name)].log else -np.inf
    return Interval(fit.parameters[name], low, np.inf, level)


def resampler(
    runs: Runs, by: str | None, random: np.random.Generator, needed: int
) -> Callable[[], np.ndarray]:
    """A function that draws runs (or groups of them) with replacement, as counts [rows].

    A draw with fewer than `needed` different runs is drawn again: no law can be fitted to it.
    """
    group = np.arange(len(runs))
    if by is not None:
        group = np.unique(runs.column(by), return_inverse=True)[1]
    groups = int(group.max()) + 1
    if groups < 3:
        what = "runs" if by is None else f"groups of {by}"
        raise BadInput(f"the bootstrap has {groups} {what} to draw from; give at least 3")

    def draw() -> np.ndarray:
        for _ in range(200):
            counts = np.bincount(random.integers(0, groups, groups), minlength=groups)[group]
            if np.count_nonzero(counts) > needed:
                return counts.astype(float)
        raise BadInput(f"{groups} runs are too few to resample for {needed} free parameters")

    return draw


def figures(law: Law, raws: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(parameters, derived) of many raw points, each [points] by name."""
    values = [law.to_values(raw) for raw in raws]
    derived = [law.derived(v) for v in values]

    def columns(rows: list[Mapping[str, float]]) -> dict[str, np.ndarray]:
        return {name: np.array([row.get(name, np.nan) for row in rows]) for name in rows[0]}

    return columns(values), columns(derived)


def profile(fit: Fit, name: str, level: float = 0.95) -> Interval:
    """The interval of one parameter by refitting with it held at values around the best.

    An end that the runs do not bound is open: 0 (or -inf) below, inf above. BadInput for a
    parameter that was held in the fit, and for an interval without width.
    """
    _check_fit(fit)
    check_level(level)
    law, index = fit.law, fit.law.index(name)
    if name in fit.fixed:
        raise BadInput(f"{name} was fixed at {fit.fixed[name]:g}: it has no interval")
    objective = fit.problem()
    scale = scale_of(objective, fit.raw)
    limit = scale.critical(level)
    held = {law.index(n): law.raw_value(n, v) for n, v in fit.fixed.items()}
    best = float(fit.raw[index])
    error = fit.standard_errors[name]
    step = error if np.isfinite(error) and 0 < error < 3 else 0.1 * max(abs(best), 1.0)

    def excess(value: float, near: np.ndarray) -> tuple[float, np.ndarray]:
        there = hold(objective, {**held, index: value})
        # follow the valley: the other coordinates move along with the held one
        solution = descend(there, coordinates_of(there, near), first=False)
        return scale.statistic(solution.value - fit.objective), solution.raw

    ends = []
    for side in (-1.0, 1.0):
        inside, outside, near = best, None, fit.raw
        reach = step * np.sqrt(limit)
        for _ in range(12):
            value = best + side * reach
            found, raw = excess(value, near)
            if found > limit:
                outside = value
                break
            inside, near, reach = value, raw, reach * 1.7
        if outside is None:
            ends.append(side * np.inf)
            continue
        for _ in range(30):  # bisect: the statistic may have kinks under Huber's loss
            if abs(outside - inside) <= 1e-3 * max(abs(outside - best), 1e-300):
                break
            middle = 0.5 * (inside + outside)
            found, raw = excess(middle, near)
            if found > limit:
                outside = middle
            else:
                inside, near = middle, raw
        ends.append(0.5 * (inside + outside))
    low, high = ends
    if not high > low:
        raise BadInput(f"the interval of {name} has no width at {fit.parameters[name]:.6g}: the "
                       "residuals are zero")  # fmt: skip
    if law.parameters[index].log:
        low, high = (float(np.exp(min(end, 700.0))) for end in ends)
        high = np.inf if np.isinf(ends[1]) else high
    return Interval(fit.parameters[name], float(low), float(high), level)


def _check_fit(fit) -> None:
    if not isinstance(fit, Fit):
        raise BadInput(f"fit is a {type(fit).__name__}, not what fit_law returns")
