"""Checks of the plain arguments that fits share: one line each, before anything is computed."""

from collections.abc import Mapping
from numbers import Integral, Real

import numpy as np

from gptjax.errors import BadInput
from gptjax.scaling.table import Runs

DELTAS = (1e-9, 1e3)  # below rounding, and beyond any residual of a log loss
FEWEST_RESAMPLES = 20


def check_runs(runs) -> None:
    """BadInput for what is no table of runs."""
    if not isinstance(runs, Runs):
        raise BadInput(f"runs is a {type(runs).__name__}, not a table: Runs.read_csv reads one")


def check_level(level: float) -> None:
    """BadInput for a level that is no share."""
    if not isinstance(level, Real) or not 0 < level < 1:
        raise BadInput(f"level is {level!r}; give a share between 0 and 1, as 0.95")


def check_seed(seed: int) -> None:
    """BadInput for a seed that no generator takes."""
    if not _whole(seed) or seed < 0:
        raise BadInput(f"seed is {seed!r}; give a whole number of 0 or more")


def check_resamples(resamples: int) -> None:
    """BadInput for too few resamples to read an interval's ends from."""
    if not _whole(resamples) or resamples < FEWEST_RESAMPLES:
        raise BadInput(
            f"resamples is {resamples!r}; an interval needs at least {FEWEST_RESAMPLES}, better "
            "1000"
        )


def check_starts(starts: int) -> None:
    """BadInput for no start at all."""
    if not _whole(starts) or starts < 1:
        raise BadInput(f"starts is {starts!r}; give at least 1, better 16")


def check_delta(delta: float) -> None:
    """BadInput for a delta at which Huber's loss is no loss that could be minimised."""
    low, high = DELTAS
    if not isinstance(delta, Real) or not low <= delta <= high:
        raise BadInput(
            f"delta is {delta!r}; give {low:g} to {high:g}, as 1e-3 (for squares: loss=squared_log)"
        )


def check_fixed(fixed) -> dict[str, float]:
    """Parameters that are held, by name; BadInput for what is no number."""
    if not isinstance(fixed or {}, Mapping):
        raise BadInput(f"fixed is {fixed!r:.80}; give a dict, as {{'E': 1.7}}")
    for name, value in (fixed or {}).items():
        if not isinstance(value, Real):
            raise BadInput(f"fixed holds {name} at {value!r:.80}; give a number")
    return dict(fixed or {})


def numbers_of(name: str, values) -> np.ndarray:
    """The values as float64, of whatever shape; BadInput for what is no number."""
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise BadInput(f"{name} is {values!r:.80}; give numbers") from None


def _whole(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
