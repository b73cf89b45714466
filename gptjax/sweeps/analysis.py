"""What a sweep's finished points say: the laws that it asked for, with intervals and held-out runs.

Whatever cannot be fitted is said in words, since the points have been paid for by then.
"""

import contextlib
from dataclasses import dataclass, field

import numpy as np

from gptjax.errors import BadInput
from gptjax.scaling.laws import (
    Bootstrap,
    Envelope,
    Fit,
    Interval,
    Isoflop,
    bootstrap,
    envelope,
    fit_law,
    get_law,
    isoflop,
    profile,
)
from gptjax.scaling.laws.holdout import baselines
from gptjax.scaling.laws.holdout import frontier as unbeaten
from gptjax.scaling.laws.isoflop import budget_of
from gptjax.scaling.table import Runs
from gptjax.sweeps.curves import Curve, curve_table
from gptjax.sweeps.sweep import Analysis

SEEDS = ("train.seed", "data.seed")
SHAPE = ("parameters", "tokens", "flops")
AHEAD = (1.0, 10.0)  # optima are told at these multiples of the largest run, and as asked


@dataclass(frozen=True, eq=False)
class LawResult:
    """One law on the fitted runs. `why` says what is missing: the fit, or its intervals.

    A law of FLOPs alone is one of compute-optimal runs, so it is fitted to the lowest losses.
    """

    name: str
    lowest_only: bool = False
    fit: Fit | None = None
    bootstrap: Bootstrap | None = None
    profiles: dict[str, Interval] = field(default_factory=dict)
    with_held_out: Fit | None = None
    why: str = ""

    def intervals(self) -> dict[str, Interval]:
        """By bootstrap, of parameters and what is derived from them; {} without."""
        if self.bootstrap is None:
            return {}
        return {**self.bootstrap.parameters, **self.bootstrap.derived}


@dataclass(frozen=True, eq=False)
class Best:
    """The compute-optimal shape at a budget by one law or approach; ends are NaN where unknown."""

    flops: float
    by: str
    parameters: Interval
    tokens: Interval
    loss: Interval
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Score:
    """How a law or a baseline predicted the held-out runs; errors are observed / predicted - 1."""

    name: str
    baseline: bool
    errors: np.ndarray  # [held-out runs], NaN where nothing is predicted
    at_best: float  # of the lowest loss among the runs with the most FLOPs

    @property
    def mean_absolute(self) -> float:
        known = self.errors[np.isfinite(self.errors)]
        return float(np.mean(np.abs(known))) if len(known) else float("nan")

    @property
    def worst(self) -> float:
        known = self.errors[np.isfinite(self.errors)]
        return float(np.max(np.abs(known))) if len(known) else float("nan")


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that a report tells of a table of runs."""

    analysis: Analysis
    runs: Runs  # finished with a finite loss, after `remarks` were acted on
    fitted: Runs
    held_out: Runs
    laws: tuple[LawResult, ...]
    isoflop: Isoflop | None
    envelope: Envelope | None
    scores: tuple[Score, ...]
    optima: tuple[Best, ...]
    why: dict[str, str]  # for isoflop, envelope and scores, where they are missing
    remarks: tuple[str, ...]

    @property
    def main(self) -> LawResult | None:
        """The fitted law of the lowest AIC; held-out runs have no say in it.

        Laws of FLOPs alone, which are fitted to fewer runs, come after all others.
        """
        fitted = [law for law in self.laws if law.fit is not None]
        return min(fitted, key=lambda law: (law.lowest_only, law.fit.aic), default=None)


def analyse(
    runs: Runs,
    analysis: Analysis,
    curves: dict[str, Curve] | None = None,
    fields: tuple[str, ...] = (),
) -> Findings:
    """Fit what an analysis asks for; `fields` are the columns in which runs were set apart.

    Never raises for runs that cannot carry a law: `why` and `remarks` say so. Where no law is
    asked for nothing is fitted and every run is kept.
    """
    remarks: list[str] = []
    finite = runs.finite()
    if len(finite) < len(runs):
        remarks.append(f"{len(runs) - len(finite)} finished runs have no finite loss")
    if not analysis.laws:
        return _unfitted(analysis, finite, tuple(remarks))
    runs, said = tuned(finite, fields)
    remarks += said
    fitted, held_out, said = split(runs, analysis.holdout)
    remarks += said
    laws = tuple(fit_one(name, fitted, held_out, analysis) for name in analysis.laws)
    why: dict[str, str] = {}
    by_budget = _or_why(why, "isoflop", lambda: isoflop(with_budget(fitted)))
    along = curve_table(fitted, curves or {})
    if len(along):
        lowest = _or_why(why, "envelope", lambda: envelope(along, by="names"))
    else:
        lowest, why["envelope"] = None, "there are no training curves"
    if not len(held_out):
        why["scores"] = "no runs were held out"
    elif all(law.fit is None for law in laws):
        why["scores"] = "no law could be fitted below the held-out runs"
    optima = optima_at(budgets_of(runs, analysis), laws, by_budget)
    return Findings(
        analysis=analysis,
        runs=runs,
        fitted=fitted,
        held_out=held_out,
        laws=laws,
        isoflop=by_budget,
        envelope=lowest,
        scores=() if "scores" in why else scored(fitted, held_out, laws),
        optima=optima,
        why=why,
        remarks=tuple(remarks),
    )


def _unfitted(analysis: Analysis, runs: Runs, remarks: tuple[str, ...]) -> Findings:
    return Findings(
        analysis=analysis,
        runs=runs,
        fitted=runs,
        held_out=runs.select(np.zeros(len(runs), bool)),
        laws=(),
        isoflop=None,
        envelope=None,
        scores=(),
        optima=(),
        why=dict.fromkeys(("isoflop", "envelope", "scores"), "no law was asked for"),
        remarks=remarks,
    )


def _or_why(why: dict[str, str], name: str, compute):
    """What `compute` returns; None, with the reason noted, when the runs do not carry it."""
    try:
        return compute()
    except BadInput as error:
        why[name] = str(error)
        return None


def tuned(runs: Runs, fields: tuple[str, ...]) -> tuple[Runs, list[str]]:
    """(runs, remarks): of runs of one shape and length only the best setting, all its seeds.

    A law is one of tuned runs. `fields` without the seed are what a setting consists of.
    """
    settings = [name for name in fields if name not in SEEDS and name in runs.columns]
    if not settings:
        return runs, []
    shapes: dict[tuple, dict[tuple, list[int]]] = {}
    for i in range(len(runs)):
        shape = tuple(float(runs.column(name)[i]) for name in SHAPE)
        setting = tuple(str(runs.columns[name][i]) for name in settings)
        shapes.setdefault(shape, {}).setdefault(setting, []).append(i)
    kept = []
    for rivals in shapes.values():
        kept += min(rivals.values(), key=lambda rows: float(np.mean(runs.loss[rows])))
    if len(kept) == len(runs):
        return runs, []
    varied = [name for name in settings if len(set(runs.columns[name])) > 1]
    said = (
        f"{len(runs) - len(kept)} of {len(runs)} runs are not fitted: another setting of the same "
        f"shape and length reached a lower loss (settings differ in {', '.join(varied)})"
    )
    return runs.select(np.array(sorted(kept))), [said]


def split(runs: Runs, k: float) -> tuple[Runs, Runs, list[str]]:
    """(fitted, held out, remarks): runs of more than 1/k of the largest FLOPs are held out."""
    nothing = runs.select(np.zeros(len(runs), bool))
    if k <= 1 or not len(runs):
        return runs, nothing, []
    below = runs.flops <= runs.flops.max() / k * (1 + 1e-9)
    if below.sum() < 3:
        said = (
            f"nothing is held out: {int(below.sum())} of {len(runs)} runs lie below 1/{k:g} of the "
            "largest, too few to fit"
        )
        return runs, nothing, [said]
    return runs.select(below), runs.select(~below), []


def with_budget(runs: Runs) -> Runs:
    """The runs with a column `budget` from their group, where every group is a number."""
    if "budget" in runs.columns or "group" not in runs.columns:
        return runs
    try:
        budget = np.array([float(group) for group in runs.columns["group"]])
    except ValueError:
        return runs
    return runs.with_columns(budget=budget)


def fit_one(name: str, fitted: Runs, held_out: Runs, analysis: Analysis) -> LawResult:
    """One law with its intervals, or why not."""
    lowest_only = False
    if not len(fitted):
        return LawResult(name, why="no run has finished with a finite loss")
    try:
        lowest_only = get_law(name).variables == ("flops",)
        fit = fit_law(lowest_runs(fitted) if lowest_only else fitted, name)
    except BadInput as error:
        return LawResult(name, lowest_only, why=str(error))
    both = None
    if len(held_out):
        every = Runs.concatenate([fitted, held_out])
        with contextlib.suppress(BadInput):
            every = lowest_runs(every) if lowest_only else every
            both = fit_law(every, name, diagnose=False)
    why, drawn, profiles = "", None, {}
    try:
        if analysis.bootstrap:
            drawn = bootstrap(fit, resamples=max(analysis.bootstrap, 20), say=print)
        for parameter in fit.parameters:
            profiles[parameter] = profile(fit, parameter)
    except BadInput as error:
        why = f"without intervals: {error}" if drawn is None else f"without profiles: {error}"
    return LawResult(name, lowest_only, fit, drawn, profiles, both, why)


def lowest_runs(runs: Runs) -> Runs:
    """The lowest loss at each budget, where it is below that of all smaller budgets."""
    budgets = budget_of(runs)
    best = {}
    for i, budget in enumerate(np.where(np.isfinite(budgets), budgets, runs.flops)):
        if budget not in best or runs.loss[i] < runs.loss[best[budget]]:
            best[budget] = i
    return unbeaten(runs.select(np.array(sorted(best.values()), dtype=int)))


def scored(fitted: Runs, held_out: Runs, laws: tuple[LawResult, ...]) -> tuple[Score, ...]:
    """Laws and baselines by how they predict the held-out runs, the best first."""
    top = held_out.flops >= held_out.flops.max() * 0.9  # whole steps make budgets differ a little
    best = int(np.argmin(np.where(top, held_out.loss, np.inf)))
    found = []
    for law in laws:
        if law.fit is None or law.fit.law.target != "loss":
            continue
        errors = held_out.loss / law.fit.predict(held_out) - 1
        at_best = float(errors[best])
        if law.lowest_only:
            lowest = set(lowest_runs(held_out).names)
            errors = np.where([name in lowest for name in held_out.names], errors, np.nan)
        found.append(Score(law.name, False, errors, at_best))
    rivals = baselines(fitted, held_out)
    rivals.pop("power law in C", None)
    # runs of one budget differ by a step in FLOPs: a curve through them all would bend
    lowest = baselines(lowest_runs(fitted), held_out)
    rivals.update({name: lowest[name] for name in lowest if name == "power law in C"})
    for name, predicted in rivals.items():
        errors = held_out.loss / predicted - 1
        found.append(Score(name, True, errors, float(errors[best])))
    return tuple(sorted(found, key=lambda score: score.mean_absolute))


def budgets_of(runs: Runs, analysis: Analysis) -> list[float]:
    """Budgets in FLOPs to tell the optimum at: multiples of the largest run's, and as asked."""
    largest = [float(runs.flops.max())] if len(runs) else []
    found = [flops * times for flops in largest for times in AHEAD]
    return sorted({*found, *map(float, analysis.predict)})


def optima_at(budgets, laws: tuple[LawResult, ...], by_budget: Isoflop | None) -> tuple[Best, ...]:
    """The compute-optimal shapes by every law of N and D, and by approach 2."""
    found = []
    for flops in budgets:
        for law in laws:
            best = _law_optimum(law, flops)
            if best is not None:
                found.append(best)
        if by_budget is not None:
            with contextlib.suppress(BadInput):  # two minima tell no loss, equal ones no interval
                best, ends = by_budget.optimum(flops), by_budget.intervals(flops)
                loss = Interval(best.loss, np.nan, np.nan)
                shape = (ends["parameters"], ends["tokens"])
                found.append(Best(flops, "approach 2", *shape, loss, best.flags))
    return tuple(found)


def _law_optimum(law: LawResult, flops: float) -> Best | None:
    if law.fit is None:
        return None
    try:
        best = law.fit.optimum(flops)
    except BadInput:  # no law of N and D, or no inner optimum
        return None
    names = ("parameters", "tokens", "loss")
    ends = {name: Interval(getattr(best, name), np.nan, np.nan) for name in names}
    if law.bootstrap is not None:
        with contextlib.suppress(BadInput):  # no interval of some width
            ends = law.bootstrap.optimum(flops)
    return Best(flops, law.name, *(ends[name] for name in names), best.flags)


def frontier(law: LawResult, flops: np.ndarray) -> dict[str, np.ndarray] | None:
    """The lowest loss that a law allows at each budget, [budgets], with its interval.

    Keys: loss, low, high, and parameters and tokens for a law that chooses them. None for a law
    that does not tell a loss from FLOPs.
    """
    fit = law.fit
    if fit is None or not set(fit.law.variables) <= set(SHAPE) or fit.law.target != "loss":
        return None
    raws = [fit.raw] if law.bootstrap is None else [fit.raw, *law.bootstrap.raws]
    if fit.law.variables == ("flops",):
        x = fit.inputs(flops=flops)
        return _band(np.stack([fit.law.predict(raw, x) for raw in raws]))
    if not {"parameters", "tokens"} <= set(fit.law.variables):
        return None
    try:
        best = [fit.optimum(float(c)) for c in flops]
    except BadInput:
        return None
    # sizes around the best one: the lowest of a fine row is the optimum of each resample
    sizes = np.log([b.parameters for b in best])[:, None] + np.linspace(-5, 5, 121)
    columns = {"parameters": np.exp(sizes), "flops": np.broadcast_to(flops[:, None], sizes.shape)}
    columns["tokens"] = columns["flops"] / (
        fit.cost.factor * columns["parameters"] ** fit.cost.power
    )
    x = fit.law.prepare({name: values.ravel() for name, values in columns.items()})
    losses = [fit.law.predict(raw, x).reshape(sizes.shape).min(axis=1) for raw in raws]
    band = _band(np.stack(losses))
    band["parameters"] = np.array([b.parameters for b in best])
    band["tokens"] = np.array([b.tokens for b in best])
    return band


def _band(samples: np.ndarray) -> dict[str, np.ndarray]:
    """The first row with the percentiles of the others."""
    if len(samples) == 1:
        return {"loss": samples[0]}
    low, high = np.quantile(samples[1:], [0.025, 0.975], axis=0)
    return {"loss": samples[0], "low": low, "high": high}
