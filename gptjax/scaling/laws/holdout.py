"""Held-out scoring by compute: fit below C / k, predict above, beside baselines.

A law earns its place when it beats a power law in compute alone, the nearest run and the last
value. The error is that of log loss: 0.01 is one percent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from gptjax.errors import BadInput
from gptjax.scaling.laws.checks import check_runs
from gptjax.scaling.laws.fit import fit_law
from gptjax.scaling.laws.isoflop import same_budgets
from gptjax.scaling.laws.law import Law
from gptjax.scaling.laws.registry import get_law
from gptjax.scaling.table import Runs

WHOLE_STEPS = 0.01  # in log: budgets this close were one before steps were rounded to whole ones


@dataclass(frozen=True, eq=False)
class Score:
    """How one law (or baseline) predicted the held-out runs, in log loss."""

    name: str
    mean_absolute: float
    root_mean_square: float
    bias: float  # mean of observed minus predicted
    worst: float
    errors: np.ndarray  # observed minus predicted, [held-out runs]
    baseline: bool
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Holdout:
    """Scores, best mean absolute error first."""

    scores: tuple[Score, ...]
    fitted: Runs
    held_out: Runs
    below: float  # runs up to these FLOPs were fitted
    k: float

    def __getitem__(self, name: str) -> Score:
        for score in self.scores:
            if score.name == name:
                return score
        raise BadInput(f"no score of {name!r}, only {', '.join(s.name for s in self.scores)}")


def holdout(
    runs: Runs, laws: str | Law | Sequence[str | Law], k: float = 4.0, **options
) -> Holdout:
    """Fit each law to the runs with C <= max(C) / k and score it on the others.

    `options` go to `fit_law`. A law that the fitted runs cannot carry is an error, as in
    `fit_law`. Baselines: `power law in C` (with a floor, through the lowest losses), `nearest
    run` in log N and log D (or log C) and `last value`, the loss of the largest fitted run.
    """
    check_runs(runs)
    laws = [get_law(law) for law in (laws if isinstance(laws, tuple | list) else [laws])]
    if not isinstance(k, Real) or not 1 < k < np.inf:
        raise BadInput(f"k is {k!r}; give more than 1: runs above max(C) / k are held out")
    if not len(runs):
        raise BadInput("there are no runs to hold out of")
    if not (np.isfinite(runs.flops) & (runs.flops > 0)).all():
        raise BadInput("holding out by compute needs positive flops in every run")
    below = float(runs.flops.max() / k) * (1 + 1e-9)
    fitted, held_out = runs.select(runs.flops <= below), runs.select(runs.flops > below)
    if len(fitted) < 3:
        why = "give a smaller k" if len(runs) > 3 else f"there are {len(runs)} runs in all"
        raise BadInput(f"{len(fitted)} runs lie below max(C) / {k:g}; {why}")
    scores = []
    for law in laws:
        if law.target != "loss":
            raise BadInput(f"law {law.name!r} predicts {law.target}; held-out scoring is of loss")
        fit = fit_law(fitted, law, **options)
        scores.append(_score(law.name, fit.predict(held_out), held_out, False, fit.flags))
    for name, predicted in baselines(fitted, held_out).items():
        scores.append(_score(name, predicted, held_out, True))
    scores.sort(key=lambda s: s.mean_absolute)
    return Holdout(tuple(scores), fitted, held_out, below, float(k))


def baselines(fitted: Runs, held_out: Runs) -> dict[str, np.ndarray]:
    """Predictions of loss that know no law of N and D, by name."""
    out = {}
    front = frontier(fitted)
    law = "power_floor" if len(front) >= 4 else "kaplan_c"
    if len(front) >= 3:
        out["power law in C"] = fit_law(front, law, diagnose=False).predict(held_out)
    axes = [
        name
        for name in ("parameters", "tokens", "flops")
        if np.isfinite(fitted.column(name)).all() and np.isfinite(held_out.column(name)).all()
    ]
    axes = axes[:2] if axes[:2] == ["parameters", "tokens"] else axes
    # a row of nonsense, such as 0 tokens, is far from all
    near = np.log(np.stack([np.maximum(fitted.column(a), 1e-300) for a in axes], axis=1))
    far = np.log(np.stack([np.maximum(held_out.column(a), 1e-300) for a in axes], axis=1))
    distance = ((far[:, None] - near[None]) ** 2).sum(axis=2)
    out["nearest run"] = fitted.loss[distance.argmin(axis=1)]
    out["last value"] = np.full(len(held_out), fitted.loss[np.argmax(fitted.flops)])
    return out


def frontier(runs: Runs) -> Runs:
    """The runs that no cheaper (or equal) run beats: the lowest losses, by rising compute.

    FLOPs within a percent are equal.
    """
    order = np.lexsort((runs.loss, same_budgets(runs.flops, WHOLE_STEPS)))
    lowest = np.minimum.accumulate(runs.loss[order])
    first = np.concatenate([[True], lowest[1:] < lowest[:-1]])[: len(order)]
    return runs.select(order[first])


def _score(name, predicted, held_out: Runs, baseline: bool, flags=()) -> Score:
    errors = np.log(held_out.loss) - np.log(predicted)
    return Score(
        name=name,
        mean_absolute=float(np.mean(np.abs(errors))),
        root_mean_square=float(np.sqrt(np.mean(errors**2))),
        bias=float(np.mean(errors)),
        worst=float(np.max(np.abs(errors))),
        errors=errors,
        baseline=baseline,
        flags=tuple(flags),
    )
