"""Redrawn runs of a comparison: each sweep's own, within its planned budgets."""

import numpy as np

from gptjax.scaling.laws.fit import Fit
from gptjax.scaling.laws.intervals import Refits
from gptjax.scaling.laws.isoflop import SAME_BUDGET, same_budgets
from gptjax.scaling.table import Runs


def too_few(fit: Fit, tables: dict[str, Runs]) -> list[str]:
    """The labels of tables so small that the only draw that can be fitted is the table itself."""
    return [label for label, runs in tables.items() if len(runs) <= fewest(fit)]


def fewest(fit: Fit) -> int:
    """Different runs of one table that a draw must hold: fewer do not carry its own powers."""
    return 2 * len(fit.law.of) + 1


def resample(fit: Fit, tables: list[Runs], resamples: int, seed: int) -> np.ndarray:
    """[resamples, P]: refits to runs drawn with replacement within each budget of each sweep.

    Budgets were planned and did not turn out: a draw that lacks one would tell of another design.
    Residuals about a fit are smaller than the noise by the parameters that followed it, and draws
    of a small table that hold enough different runs vary less than free ones; both widen the draws
    about the estimate.
    """
    random = np.random.default_rng(seed)
    refit = Refits(fit)
    strata = [_strata(runs) for runs in tables]
    counts = [
        np.stack([_draw(groups, fewest(fit), random) for _ in range(resamples)])
        for groups in strata
    ]
    raws = np.array([refit(row) for row in np.concatenate(counts, axis=1)])
    runs = len(fit.runs)
    widen = np.sqrt(runs / max(runs - refit.free, 1))
    widen *= max(_held_back(drawn, groups) for drawn, groups in zip(counts, strata, strict=True))
    return fit.raw + (raws - fit.raw) * widen


def _held_back(counts: np.ndarray, groups: list[np.ndarray]) -> float:
    """How much wider free draws of these groups would be than counts [resamples, rows], or 1."""
    free = sum(len(group) - 1 for group in groups)  # the variance of all counts together
    return float(np.sqrt(max(free / max(np.mean((counts - 1) ** 2) * counts.shape[1], 1e-9), 1)))


def _strata(runs: Runs) -> list[np.ndarray]:
    """Rows by budget where each of several has three runs or more, else all of them together."""
    budget = same_budgets(runs.flops, SAME_BUDGET)
    groups = [np.flatnonzero(budget == one) for one in np.unique(budget)]
    if len(groups) > 1 and min(len(group) for group in groups) >= 3:
        return groups
    return [np.arange(len(runs))]


def _draw(groups: list[np.ndarray], least: int, random: np.random.Generator) -> np.ndarray:
    """How often each run is drawn, [rows]; at least `least` different ones."""
    size = sum(len(group) for group in groups)
    while True:
        rows = np.concatenate([random.choice(group, len(group)) for group in groups])
        counts = np.bincount(rows, minlength=size)
        if np.count_nonzero(counts) >= least:
            return counts.astype(float)
