"""Approach 1 (arXiv 2203.15556): the lowest loss at each compute over all training curves.

Where the smallest or the largest model is lowest, the envelope shows only that no smaller or
larger one was trained; those stretches do not count for the exponents.
"""

from dataclasses import dataclass

import numpy as np

from gptjax.errors import BadInput
from gptjax.scaling.laws.checks import check_level, check_resamples, check_runs, check_seed
from gptjax.scaling.laws.intervals import Interval, interval_of, resampler
from gptjax.scaling.table import OTHERS_OUT, Runs

GRID = 200  # points in log C


@dataclass(frozen=True, eq=False)
class Envelope:
    """The envelope's points, and N = N_factor C^a, D = D_factor C^b through them."""

    flops: np.ndarray
    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    a: Interval
    b: Interval
    N_factor: float
    D_factor: float
    flags: tuple[str, ...]


def envelope(
    runs: Runs,
    *,
    by: str | None = None,
    resamples: int = 300,
    seed: int = 0,
    level: float = 0.95,
) -> Envelope:
    """Approach 1 on training curves: a row per checkpoint, `by` the column that names the run.

    Without `by`, rows of equal name are one curve, and rows of one model size if no name repeats.
    Loss is interpolated along each curve in log C. Intervals draw whole curves with replacement.
    BadInput when fewer than 3 sizes are on the envelope.
    """
    check_runs(runs)
    check_level(level)
    check_seed(seed)
    check_resamples(resamples)
    for name in ("parameters", "flops", "loss"):
        values = runs.column(name)
        if not (np.isfinite(values) & (values > 0)).all():
            raise BadInput(f"approach 1 needs a positive {name} in every row; {OTHERS_OUT}")
    if by is None:
        by = "names" if len(set(runs.names)) < len(runs) else "parameters"
    values = runs.column(by)
    curves = np.unique(values, return_inverse=True)[1]
    lengths = np.bincount(curves)
    if (lengths < 2).all():
        raise BadInput("approach 1 needs training curves: several rows per run, named by `by`")
    grid = np.linspace(np.log(runs.flops.min()), np.log(runs.flops.max()), GRID)
    table = _curves(runs, curves, grid)
    sizes = np.array([runs.parameters[curves == k][0] for k in range(len(lengths))])
    found = _lowest(table, sizes, np.ones(len(sizes), bool))
    flags = []
    if len(set(sizes[found[1]])) < 3:
        raise BadInput(f"{len(set(sizes[found[1]]))} sizes between the smallest and the largest "
                       "are on the envelope; approach 1 needs 3")  # fmt: skip
    points, owners = found
    slope = _powers(grid, points, sizes[owners], _tokens(runs, curves, grid, points, owners))
    drawn = []
    by_row = Runs.of(np.ones(len(sizes)), parameters=sizes)
    draw = resampler(by_row, None, np.random.default_rng(seed), needed=2)
    for _ in range(resamples):
        chosen = draw() > 0
        at, who = _lowest(table, sizes, chosen)
        if len(set(sizes[who])) >= 2:
            drawn.append(_powers(grid, at, sizes[who], _tokens(runs, curves, grid, at, who)))
    drawn = np.array(drawn)
    if len(drawn) < 0.8 * resamples:
        flags.append(f"few curves: {resamples - len(drawn)} of {resamples} resamples had no line")
    if not len(drawn):
        raise BadInput("approach 1: too few curves to resample for intervals")
    return Envelope(
        flops=np.exp(grid[points]),
        parameters=sizes[owners],
        tokens=_tokens(runs, curves, grid, points, owners),
        loss=np.exp(table[owners, points]),
        a=interval_of("a", slope[0], drawn[:, 0], level),
        b=interval_of("b", slope[2], drawn[:, 2], level),
        N_factor=float(np.exp(slope[1])),
        D_factor=float(np.exp(slope[3])),
        flags=tuple(flags),
    )


def _curves(runs: Runs, curves: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """log loss of every curve on the grid, [curves, grid], inf where it was not trained."""
    out = np.full((curves.max() + 1, len(grid)), np.inf)
    for k in range(len(out)):
        rows = np.flatnonzero(curves == k)
        rows = rows[np.argsort(runs.flops[rows])]
        x, y = np.log(runs.flops[rows]), np.log(runs.loss[rows])
        inside = (grid >= x[0] - 1e-12) & (grid <= x[-1] + 1e-12)
        out[k, inside] = np.interp(grid[inside], x, y)
    return out


def _lowest(table: np.ndarray, sizes: np.ndarray, chosen: np.ndarray):
    """(grid points, curves) of the envelope, without the smallest and the largest size's share."""
    masked = np.where(chosen[:, None], table, np.inf)
    owner = masked.argmin(axis=0)
    known = np.isfinite(masked.min(axis=0)) & (np.isfinite(masked).sum(axis=0) >= 2)
    ends = (sizes[chosen].min(), sizes[chosen].max())
    points = np.flatnonzero(known & ~np.isin(sizes[owner], ends))
    return points, owner[points]


def _tokens(runs: Runs, curves: np.ndarray, grid: np.ndarray, points, owners) -> np.ndarray:
    """Tokens at points of the envelope, along each owner's curve; C / 6N without tokens."""
    out = np.exp(grid[points]) / 6
    for k in np.unique(owners):
        rows, mine = np.flatnonzero(curves == k), owners == k
        tokens = runs.tokens[rows]
        if np.isnan(tokens).any():
            out[mine] /= runs.parameters[rows[0]]
        else:  # D grows with C along a curve
            per_token = np.exp(np.mean(np.log(runs.flops[rows] / tokens)))
            out[mine] *= 6 / per_token
    return out


def _powers(grid, points, sizes, tokens) -> np.ndarray:
    """[a, log N_factor, b, log D_factor]."""
    x = grid[points]
    return np.concatenate([np.polyfit(x, np.log(sizes), 1), np.polyfit(x, np.log(tokens), 1)])
