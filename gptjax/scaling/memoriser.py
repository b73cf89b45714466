"""The ideal memoriser of facts under a Zipf law: a loss in closed form, to test law fitters with.

Keys i = 1, 2, ... come with probability p_i proportional to i^-(1 + alpha). A learner with room
for M keys that has seen D samples knows a key if it is among the M most frequent and was seen at
least once. It pays `floor` on a key that it knows and `floor + gap` on another, so its loss
expected over samples is

    L(M, D) = floor + gap (sum_{i > M} p_i + sum_{i <= M} p_i (1 - p_i)^D).

Alone, a finite M gives a power law in M with exponent alpha and a finite D one in D with exponent
alpha / (1 + alpha) (arXiv 2102.04074, 2303.13506). Room kept for a frequent key that was never
seen stays empty here; a learner that filled it would gain only where both terms are alike.
"""

import math
from numbers import Real
from typing import NamedTuple

import numpy as np

from gptjax.errors import BadInput
from gptjax.scaling.table import Runs

SUMMED_KEYS = 1 << 20  # beyond these an integral takes the sum's place, to 1e-7 of the loss


class Asymptotes(NamedTuple):
    """L - floor tends to `A M^-a` where only memory is short, to `B D^-b` where only data is."""

    A: float
    a: float
    B: float
    b: float


def asymptotes(alpha: float, gap: float = 1.0) -> Asymptotes:
    """The two power laws of an endless list of keys, amplitudes included."""
    _check_alpha(alpha)
    from scipy.special import gamma, zeta

    first = 1.0 / zeta(1 + alpha)
    b = alpha / (1 + alpha)
    B = gap * first ** (1 / (1 + alpha)) / (1 + alpha) * gamma(b)
    return Asymptotes(float(gap * first / alpha), alpha, float(B), b)


def loss(
    memory, samples, alpha: float, keys: float = math.inf, floor: float = 0.0, gap: float = 1.0
) -> np.ndarray:
    """Expected loss of the ideal memoriser, in the unit of `floor` and `gap`.

    `memory` (whole numbers of keys, or inf) and `samples` (0 or more, or inf) broadcast against
    each other; the result is float64 of their common shape. `keys` is how many keys there are,
    inf for an endless list. Raises `BadInput` for values outside these ranges.
    """
    _check_alpha(alpha)
    memory, samples = _numbers("memory", memory), _numbers("samples", samples)
    if not isinstance(keys, Real) or not keys >= 1 or keys != np.floor(keys):
        raise BadInput(f"keys is {keys!r}; give a whole number of 1 or more, or inf")
    if not (memory >= 0).all() or (memory != np.floor(memory)).any():
        raise BadInput("memory is not 0 or more whole keys (or inf) everywhere; round it")
    if not (samples >= 0).all():
        raise BadInput("samples is not 0 or more everywhere")
    for name, value in (("floor", floor), ("gap", gap)):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise BadInput(f"{name} is {value!r}; give a finite number")
    try:
        memory, samples = np.broadcast_arrays(np.minimum(memory, keys), samples)
    except ValueError:
        raise BadInput(
            f"memory of shape {memory.shape} and samples of shape {samples.shape} do not broadcast"
        ) from None
    missed = np.array(_tail(memory, alpha, keys))
    for count in np.unique(samples):
        here = samples == count
        missed[here] += _unseen(memory[here], count, alpha, keys)
    return floor + gap * missed


def runs(
    memory, samples, alpha: float, keys: float = math.inf, floor: float = 0.0, gap: float = 1.0
) -> Runs:
    """The loss at every pair of `memory` [m] and `samples` [d] as a table of m d runs.

    Keys in memory stand for parameters and samples for tokens; FLOPs are 6 N D of those.
    """
    memory, samples = np.meshgrid(np.ravel(memory), np.ravel(samples), indexing="ij")
    memory, samples = memory.ravel(), samples.ravel()
    names = [f"memory_{m:g}_samples_{d:g}" for m, d in zip(memory, samples, strict=True)]
    values = loss(memory, samples, alpha, keys, floor, gap)
    return Runs.of(values, parameters=memory, tokens=samples, names=names)


def _numbers(name: str, values) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise BadInput(f"{name} is {values!r:.80}; give numbers") from None


def _check_alpha(alpha: float) -> None:
    if not isinstance(alpha, Real) or not 0 < alpha < math.inf:
        raise BadInput(f"alpha is {alpha!r}; give a value above 0, for example 0.5")


def _norm(alpha: float, keys: float) -> float:
    from scipy.special import zeta

    return float(zeta(1 + alpha) - (zeta(1 + alpha, keys + 1) if keys < math.inf else 0.0))


def _tail(memory: np.ndarray, alpha: float, keys: float) -> np.ndarray:
    """Probability of the keys after the first `memory`."""
    from scipy.special import zeta

    def beyond(rank):
        return np.where(np.isinf(rank), 0.0, zeta(1 + alpha, np.where(np.isinf(rank), 1, rank + 1)))

    return (beyond(memory) - beyond(np.float64(keys))) / _norm(alpha, keys)


def _unseen(memory: np.ndarray, samples: float, alpha: float, keys: float) -> np.ndarray:
    """sum_{i <= memory} p_i (1 - p_i)^samples, one value for each entry of `memory` [n]."""
    if math.isinf(samples):
        return np.zeros_like(memory)
    first = 1.0 / _norm(alpha, keys)
    most = int(min(SUMMED_KEYS, memory.max()))
    p = np.minimum(first * np.arange(1, most + 1, dtype=np.float64) ** -(1 + alpha), 1.0)
    missed = np.ones(most)
    if samples:
        with np.errstate(divide="ignore"):  # p = 1 where there is one key
            missed = np.exp(samples * np.log1p(-p))
    sums = np.concatenate([[0.0], np.cumsum(p * missed)])
    found = sums[np.minimum(memory, most).astype(np.int64)]
    long = memory > most
    if long.any():
        start = _unseen_integral(most + 0.5, samples, first, alpha)
        found[long] += start - _unseen_integral(memory[long] + 0.5, samples, first, alpha)
    return found


def _unseen_integral(start, samples: float, first: float, alpha: float):
    """The integral of p exp(-samples p) from `start` on, with p(x) = first x^-(1 + alpha)."""
    from scipy.special import gamma, gammainc

    if not samples:
        return first / alpha * np.power(start, -alpha)
    b = alpha / (1 + alpha)
    upper = samples * first * np.power(start, -(1 + alpha))
    scale = (samples * first) ** (1 / (1 + alpha)) / (samples * (1 + alpha))
    return scale * gamma(b) * gammainc(b, upper)
