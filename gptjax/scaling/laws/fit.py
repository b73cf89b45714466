"""`fit_law`: one law on one table, from many starts, with the known traps flagged."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real

import numpy as np

from gptjax.errors import BadInput
from gptjax.scaling.laws.checks import (
    check_delta,
    check_fixed,
    check_runs,
    check_seed,
    check_starts,
    numbers_of,
)
from gptjax.scaling.laws.inference import covariance, free_covariance, information, scale_of
from gptjax.scaling.laws.law import Law
from gptjax.scaling.laws.objective import Objective, check_loss
from gptjax.scaling.laws.optimum import (
    DECADES,
    Cost,
    Optimum,
    best_shape,
    check_shape_law,
    reach_flags,
)
from gptjax.scaling.laws.registry import get_law
from gptjax.scaling.laws.solve import AGREE, Solution, coordinates_of, descend, hold
from gptjax.scaling.table import FIELDS, LETTERS, OTHERS_OUT, Runs

SHAPE = FIELDS[:3]  # parameters, tokens, FLOPs
HOPS = 24  # where starts disagree, a quarter of that where none does
LONGEST_HOP = 2.0  # in a raw coordinate


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """A fitted law; `predict` and `optimum` use it, `bootstrap` and `profile` put intervals on it.

    `residuals` are observed minus predicted, of log L (or of the target itself, under a loss
    without `_log`). `objective` is the sum over runs. `spread` is how far the starts that
    reached the best objective differ in each parameter.
    """

    law: Law
    runs: Runs
    loss: str
    delta: float
    weights: np.ndarray
    fixed: dict[str, float]
    raw: np.ndarray
    parameters: dict[str, float]
    derived: dict[str, float]  # what follows from them: a and b, N_c, ...
    standard_errors: dict[str, float]  # of log parameters relative, from the curvature
    objective: float
    converged: bool
    starts: int
    starts_agreeing: int
    spread: dict[str, float]
    residuals: np.ndarray
    r2: float
    aic: float
    bic: float
    cost: Cost
    flags: tuple[str, ...] = ()
    without_outliers: "Fit | None" = field(default=None, repr=False)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value:.4g}" for name, value in self.parameters.items())
        flags = f", {len(self.flags)} flags" if self.flags else ""
        return f"<Fit {self.law.name} to {len(self.runs)} runs: {values}, R2 {self.r2:.4g}{flags}>"

    def __str__(self) -> str:
        """The table of parameters, quality and flags that the command prints."""
        from gptjax.scaling.laws.show import fit_text

        return fit_text(self)

    def predict(self, runs: Runs | None = None, **columns) -> np.ndarray:
        """The law's target for a table, or for columns by name (letters N, D, C too), [rows].

        `fit.predict(N=1e9, D=[1e10, 1e11])`; without arguments, for the fitted runs. The one of
        N, D, C that is missing follows from the cost of the fitted runs.
        """
        return self.law.predict(self.raw, self.inputs(runs, **columns))

    def inputs(self, runs: Runs | None = None, **columns) -> np.ndarray:
        """What `predict` gives the law, [variables, rows]; BadInput for what is missing."""
        if columns:
            return self.law.prepare(self._complete(columns))
        if runs is not None:
            check_runs(runs)
        return self.law.prepare(law_columns(self.runs if runs is None else runs, self.law))

    def _complete(self, columns: Mapping) -> dict[str, np.ndarray]:
        given = {LETTERS.get(k, k): numbers_of(k, v) for k, v in columns.items()}
        for name, values in given.items():
            if name in SHAPE and not usable(values).all():
                raise BadInput(f"{name} is {values.min():g}; give positive numbers")
        try:
            shape = np.broadcast_shapes(*(v.shape for v in given.values()))
        except ValueError:
            shapes = ", ".join(f"{name} {values.shape}" for name, values in given.items())
            raise BadInput(f"these shapes do not go together: {shapes}") from None
        given = {k: np.broadcast_to(v, shape).ravel() for k, v in given.items()}
        N, D, C = (given.get(name) for name in SHAPE)
        factor, power = self.cost.factor, self.cost.power
        if C is None and N is not None and D is not None:
            given["flops"] = factor * N**power * D
        elif D is None and N is not None and C is not None:
            given["tokens"] = C / (factor * N**power)
        elif N is None and D is not None and C is not None:
            given["parameters"] = (C / (factor * D)) ** (1 / power)
        for name in self.law.variables:
            if name not in given:
                wanted = ", ".join(self.law.variables)
                raise BadInput(f"law {self.law.name!r} predicts from {wanted}; give {name}=...")
        return given

    def optimum(self, flops: float, decades: float = DECADES, **others: float) -> Optimum:
        """The compute-optimal N and D at a budget, with its loss.

        `others` are further columns that the law reads (unique_tokens=...). BadInput when the
        law has no interior optimum there. Flagged when it lies over `decades` beyond the runs.
        """
        check_shape_law(self.law, others)
        if not isinstance(flops, Real) or not 0 < flops < np.inf:
            raise BadInput(f"flops is {flops!r}; give a positive number")
        N, D, loss = best_shape(self.law, self.raw, flops, self.cost, self.size_range, others)
        if not np.isfinite(N):
            raise BadInput(f"the fitted {self.law.name} has no compute-optimal size at {flops:.3g} "
                           "FLOPs: loss falls all the way to one end")  # fmt: skip
        flags = reach_flags(self.runs, decades, flops=flops, parameters=N, tokens=D)
        return Optimum(float(flops), N, D, loss, flags)

    @property
    def size_range(self) -> tuple[float, float]:
        """log N of the smallest and the largest run."""
        sizes = np.log(self.runs.parameters)
        return float(sizes.min()), float(sizes.max())

    def problem(self, weights: np.ndarray | None = None) -> Objective:
        """The objective that was minimised, with other weights if given."""
        objective = build_objective(self.runs, self.law, self.loss, self.delta, self.fixed)
        return replace(objective, weights=self.weights if weights is None else weights)


def fit_law(
    runs: Runs,
    law: str | Law,
    *,
    loss: str | None = None,
    delta: float = 1e-3,
    starts: int = 16,
    seed: int = 0,
    weights=None,
    fixed: Mapping[str, float] | None = None,
    diagnose: bool = True,
) -> Fit:
    """Fit a law to runs by minimising a sum of Huber (or squared) residuals of log loss.

    `loss`: huber_log (default, with `delta`), squared_log, huber, squared. `weights`: one
    positive number per run. `fixed`: parameters held at values. `diagnose` adds the flags that
    cost refits (floor, outliers). BadInput for rows without the figures that the law reads, for
    too few runs, and for runs that do not differ in a variable.
    """
    check_runs(runs)
    law = get_law(law)
    loss = check_loss(law.default_loss if loss is None else loss, law)
    check_delta(delta)
    check_starts(starts)
    check_seed(seed)
    fixed = check_fixed(fixed)
    objective = build_objective(runs, law, loss, delta, fixed)
    if weights is not None:
        objective = replace(objective, weights=check_weights(weights, len(runs)))
    best, solutions = search(objective, starts, seed)
    fit = describe(runs, objective, best, solutions, fixed)
    if diagnose:
        from gptjax.scaling.laws.flags import diagnosed

        fit = diagnosed(fit)
    return fit


def search(objective: Objective, starts: int, seed: int) -> tuple[Solution, list[Solution]]:
    """(the best found, the solution of every start)."""
    random = np.random.default_rng(seed)
    solutions = []
    for _ in range(starts):
        raw = objective.law.start(objective.x, objective.y, random)
        solutions.append(descend(objective, coordinates_of(objective, raw)))
    best = min(solutions, key=lambda s: s.value)
    free, different = objective.basis.shape[1], np.unique(objective.x, axis=1).shape[1]
    if starts > 1 and free and different > free + 1:  # else valleys, on whose floor all is equal
        agree = all(s.value <= best.value * (1 + AGREE) for s in solutions)
        best = hop(objective, best, random, HOPS // 4 if agree else HOPS)
    return best, solutions


def hop(objective: Objective, best: Solution, random: np.random.Generator, hops: int) -> Solution:
    """Descend again from points a few standard errors away, as long as that finds better.

    With a small delta a law that bends in its parameters has many shallow optima about the best,
    too close together for starts from afar to tell.
    """
    left = hops
    while left:
        covariance = free_covariance(objective, best.raw, scale_of(objective, best.raw))
        lengths, directions = np.linalg.eigh(covariance)
        steps = directions * np.sqrt(np.maximum(lengths, 0))
        largest = np.abs(objective.basis @ steps).max(axis=0)
        steps = steps * np.minimum(1.0, LONGEST_HOP / np.maximum(largest, 1e-300))
        size = random.choice([0.5, 1.0, 2.0])
        start = best.coordinates + steps @ random.standard_normal(len(lengths)) * size
        found = descend(objective, start, first=False)
        left -= 1
        if found.value < best.value * (1 - AGREE):
            best, left = found, max(left, HOPS // 2)
    return best


def describe(
    runs: Runs,
    objective: Objective,
    best: Solution,
    solutions: list[Solution],
    fixed: dict[str, float],
) -> Fit:
    """A `Fit` of the best solution, which the solutions of the starts may agree with."""
    law = objective.law
    tolerance = AGREE * abs(best.value) + 1e-14 * objective.delta
    agreeing = [s for s in solutions if s.value <= best.value + tolerance]
    values = [law.to_values(s.raw) for s in [best, *agreeing]]
    free = [name for name in law.names if name not in fixed]
    spread = {name: float(np.ptp([v[name] for v in values])) for name in free}
    residual, _ = objective.residuals(best.raw)
    target = np.exp(objective.y) if law.log_target else objective.y
    missed = target - law.predict(best.raw, objective.x)
    scale = scale_of(objective, best.raw)
    errors = np.sqrt(np.maximum(np.diag(covariance(objective, best.raw, scale)), 0))
    aic, bic = information(objective, best.raw)
    unit = np.abs(target).max() or 1.0  # squares of huge targets would overflow
    total = np.sum(((target - target.mean()) / unit) ** 2)
    varies = np.ptp(target) > 1e-9 * unit
    parameters = law.to_values(best.raw)
    fit = Fit(
        law=law,
        runs=runs,
        loss=objective.loss,
        delta=objective.delta,
        weights=objective.weights,
        fixed=fixed,
        raw=best.raw,
        parameters=parameters,
        derived=law.derived(parameters),
        standard_errors={n: float(errors[law.index(n)]) for n in free},
        objective=best.value,
        converged=best.converged,
        starts=len(solutions),
        starts_agreeing=len(agreeing),
        spread=spread,
        residuals=-residual,
        r2=float(1 - np.sum((missed / unit) ** 2) / total) if varies else float("nan"),
        aic=aic,
        bic=bic,
        cost=Cost.of(runs),
    )
    from gptjax.scaling.laws.flags import free_flags

    return replace(fit, flags=free_flags(fit))


def build_objective(
    runs: Runs, law: Law, loss: str, delta: float, fixed: Mapping[str, float]
) -> Objective:
    """The checked objective of a law on a table, unweighted."""
    held = {law.index(name): law.raw_value(name, value) for name, value in fixed.items()}
    for place, name in enumerate(law.variables):
        if name == law.target or name in law.variables[:place]:
            raise BadInput(f"law {law.name!r} reads {name} twice; give each column once")
    columns = law_columns(runs, law)
    target = target_of(runs, law)
    check_rows(runs, law, columns, len(law.parameters) - len(held))
    x = law.prepare(columns)
    objective = Objective(
        law=law,
        x=x,
        y=np.log(target) if law.log_target else target,
        weights=np.ones(len(runs)),
        loss=loss,
        delta=delta,
        centring=law.centring(x),
        base=np.zeros(len(law.parameters)),
        basis=np.eye(len(law.parameters)),
    )
    return hold(objective, held)


def law_columns(runs: Runs, law: Law) -> dict[str, np.ndarray]:
    """The columns that a law reads; BadInput for one that is missing or has no usable number."""
    columns = {}
    for name in law.variables:
        values = runs.column(name)
        if values.dtype.kind not in "fiu":
            raise BadInput(f"the column {name!r}, which law {law.name!r} reads, is text")
        _check_values(runs, law, name, values, name not in law.signed)
        columns[name] = values
    return columns


def target_of(runs: Runs, law: Law) -> np.ndarray:
    """The column that a law predicts, checked like those it reads."""
    values = runs.column(law.target)
    _check_values(runs, law, law.target, values, law.log_target)
    return values


def _check_values(runs: Runs, law: Law, name: str, values: np.ndarray, positive: bool) -> None:
    if np.isnan(values).all():
        letter = next((k for k, v in LETTERS.items() if v == name), name)
        others = ", ".join(runs.columns)
        more = f"; if it is one of {others}, say so: --columns {letter}=HEADER" if others else ""
        raise BadInput(f"law {law.name!r} needs {name}, and no run has it{more}")
    bad = ~usable(values, positive)
    if bad.any():
        first = ", ".join(f"{runs.names[i]} ({values[i]:g})" for i in np.flatnonzero(bad)[:3])
        more = f" and {bad.sum() - 3} more" if bad.sum() > 3 else ""
        kind = "positive finite" if positive else "finite"
        raise BadInput(f"{name} is not a {kind} number in {first}{more}; {OTHERS_OUT}")


def usable(values: np.ndarray, positive: bool = True) -> np.ndarray:
    """Which figures a law can read, [rows]."""
    return np.isfinite(values) & ((values > 0) if positive else True)


def usable_rows(runs: Runs, law: Law) -> np.ndarray:
    """Which runs have all that a law reads and predicts, [rows]; empty columns are not asked."""
    mask = np.ones(len(runs), bool)
    wanted = {name: name not in law.signed for name in law.variables} | {law.target: law.log_target}
    for name, positive in wanted.items():
        values = runs.column(name)
        if values.dtype.kind in "fiu" and not np.isnan(values).all():
            mask &= usable(values, positive)
    return mask


def check_rows(runs: Runs, law: Law, columns: Mapping[str, np.ndarray], free: int) -> None:
    """BadInput when there are too few different runs for the free parameters of a law."""
    table = np.stack([*columns.values()], axis=1)
    different = len(np.unique(table, axis=0))
    if len(runs) < free + 1 or different < free:
        said = f"{len(runs)} runs" if different == len(runs) else f"{different} different runs"
        raise BadInput(f"law {law.name!r} has {free} free parameters and needs at least "
                       f"{free + 1} runs; there are {said}")  # fmt: skip
    for name, values in columns.items():
        if free and len(np.unique(values)) < 2:
            raise BadInput(f"law {law.name!r} needs runs that differ in {name}; all have "
                           f"{values[0]:g}")  # fmt: skip


def check_weights(weights, rows: int) -> np.ndarray:
    """The weights as an array, or BadInput."""
    weights = numbers_of("weights", weights)
    if weights.shape != (rows,) or not np.isfinite(weights).all() or not (weights > 0).all():
        raise BadInput(f"weights: give one positive number for each of the {rows} runs")
    return weights
