"""The compute-optimal shape at a budget, from any law of N and D.

What a budget buys is read off the runs: C / D as a power of N, fitted to their counted FLOPs
(6 N D is off by tens of percent for small models), or 6 N D where the runs have no FLOPs.
"""

from dataclasses import dataclass

import numpy as np

from gptjax.errors import BadInput
from gptjax.scaling.laws.law import Law
from gptjax.scaling.table import Runs

REACH = 25.0  # e-folds of N searched beyond the runs on either side: 11 decades
DECADES = 1.0  # extrapolation farther than this is flagged


@dataclass(frozen=True)
class Optimum:
    """The N and D with the lowest predicted loss among those that cost `flops`."""

    flops: float
    parameters: float
    tokens: float
    loss: float
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cost:
    """FLOPs per token = factor * N^power."""

    factor: float = 6.0
    power: float = 1.0

    @staticmethod
    def of(runs: Runs) -> "Cost":
        """From the counted FLOPs of runs."""
        with np.errstate(divide="ignore", invalid="ignore"):
            n, per_token = np.log(runs.parameters), np.log(runs.flops / runs.tokens)
        good = np.isfinite(n) & np.isfinite(per_token)
        n, per_token = n[good], per_token[good]
        if not len(n):
            return Cost()
        ratio = per_token - n
        if np.ptp(ratio) < 0.01 or np.ptp(n) < 0.1:
            return Cost(float(np.exp(ratio.mean())), 1.0)
        power, intercept = np.polyfit(n - n.mean(), per_token, 1)
        return Cost(float(np.exp(intercept - power * n.mean())), float(power))

    def tokens(self, log_n: np.ndarray, flops: float) -> np.ndarray:
        """log D that `flops` pay for."""
        return np.log(flops / self.factor) - self.power * log_n


def best_shape(
    law: Law, raw: np.ndarray, flops: float, cost: Cost, around: tuple[float, float], others: dict
) -> tuple[float, float, float]:
    """(N, D, loss) of the optimum, by a grid over log N that closes in; NaN without an inner one.

    `around` is the runs' range of log N; `others` are the further columns that the law reads.
    """
    low, high = around[0] - REACH, around[1] + REACH
    left, right = low, high
    n = y = np.zeros(0)
    for _ in range(6):
        n = np.linspace(left, right, 81)
        columns = {"parameters": np.exp(n), "tokens": np.exp(cost.tokens(n, flops))}
        columns["flops"] = np.full_like(n, flops)
        columns.update({name: np.full_like(n, value) for name, value in others.items()})
        y, _ = law.evaluate(raw, law.prepare(columns))
        best = int(np.argmin(y))
        if best in (0, 80):
            return (np.nan,) * 3
        left, right = n[best - 1], n[best + 1]
        if right - left < 1e-4:
            break
    before, here, after = y[best - 1 : best + 2]
    bend = before - 2 * here + after
    shift = 0.5 * (before - after) / bend if bend > 0 else 0.0
    top = n[best] + shift * (n[1] - n[0])
    return float(np.exp(top)), float(np.exp(cost.tokens(top, flops))), float(np.exp(here))


def check_shape_law(law: Law, others: dict) -> None:
    """BadInput when a law has no N and D to choose, or lacks a further column."""
    if not law.has_shape:
        raise BadInput(f"law {law.name!r} is not one of parameters and tokens: no optimum")
    wanted = [v for v in law.variables if v not in ("parameters", "tokens", "flops")]
    missing = [v for v in wanted if v not in others]
    if missing:
        raise BadInput(f"the optimum of {law.name!r} needs {missing[0]}: optimum(flops, "
                       f"{missing[0]}=...)")  # fmt: skip


def reach_flags(runs: Runs, decades: float = DECADES, **asked: float) -> tuple[str, ...]:
    """One flag per quantity that lies more than `decades` beyond the runs."""
    flags = []
    for name, value in asked.items():
        known = runs.column(name)
        known = known[np.isfinite(known) & (known > 0)]
        if not len(known) or not value > 0:
            continue
        beyond = max(np.log10(value / known.max()), np.log10(known.min() / value))
        if beyond > decades:
            flags.append(f"extrapolation: {name} {value:.3g} is {beyond:.1f} decades "
                         "beyond the runs")  # fmt: skip
    return tuple(flags)
