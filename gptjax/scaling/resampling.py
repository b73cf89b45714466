"""Redrawn runs of a comparison: each sweep's own, or matched ones together, within budgets."""

import numpy as np

from gptjax.scaling.laws.fit import Fit
from gptjax.scaling.laws.intervals import Refits
from gptjax.scaling.laws.isoflop import SAME_BUDGET, same_budgets
from gptjax.scaling.table import Runs

SAME_SIZE = 0.01  # of log N: of one design, though an architecture adds a norm or a bias


def too_few(fit: Fit, tables: dict[str, Runs]) -> list[str]:
    """The labels of tables so small that the only draw that can be fitted is the table itself."""
    return [label for label, runs in tables.items() if len(runs) <= fewest(fit)]


def fewest(fit: Fit) -> int:
    """Different runs of one table that a draw must hold: fewer do not carry its own powers."""
    return 2 * len(fit.law.of) + 1


def matched(tables: list[Runs]) -> list[np.ndarray] | None:
    """The rows of every table in the order of the first one's; None where they do not match.

    They do where each run has one partner of its size and budget in every other table.
    """
    keys = [np.log([runs.parameters, runs.flops]) for runs in tables]
    found = []
    for other in keys:
        if other.shape != keys[0].shape:
            return None
        near = np.abs(keys[0][:, :, None] - other[:, None, :])
        alike = (near[0] < SAME_SIZE) & (near[1] < SAME_BUDGET)
        if not ((alike.sum(0) == 1).all() and (alike.sum(1) == 1).all()):
            return None
        found.append(alike.argmax(1))
    return found


def resample(fit: Fit, tables: list[Runs], resamples: int, seed: int) -> np.ndarray:
    """[resamples, P]: refits to runs drawn with replacement within each budget of each sweep.

    Budgets were planned and did not turn out: a draw that lacks one would tell of another design.
    Residuals about a fit are smaller than the noise by the parameters that followed it, and draws
    of a small table that hold enough different runs vary less than free ones; both widen the draws
    about the estimate. Matched runs are drawn together: what a law gets wrong of a size and a
    budget it gets wrong of all architectures, and a gain is between them.
    """
    random = np.random.default_rng(seed)
    refit = Refits(fit)
    order = matched(tables)
    strata = [_strata(runs) for runs in (tables if order is None else tables[:1])]
    counts = [
        np.stack([_draw(groups, fewest(fit), random) for _ in range(resamples)])
        for groups in strata
    ]
    if order is not None:
        strata, counts = strata * len(tables), [counts[0][:, np.argsort(rows)] for rows in order]
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
