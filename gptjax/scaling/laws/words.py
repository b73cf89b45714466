"""Intervals and doubts in words, the same wherever a fit is told of."""

import math
from collections.abc import Mapping

from gptjax.scaling.laws.fit import Fit
from gptjax.scaling.laws.intervals import Interval

MEANINGLESS = 1e9  # an end so many times beyond the estimate (or below it) bounds nothing
DOUBTS = ("unconverged", "no variation", "gross outlier", "floor not identified",
          "q not identified", "negative exponent")  # fmt: skip


def is_open(estimate: float, end: float | None) -> bool:
    """Whether an end of an interval bounds nothing: 0 or infinity, or so far that it might be."""
    if end is None or not math.isfinite(end):
        return True
    size = abs(estimate)
    return end != estimate and (
        abs(end) > MEANINGLESS * size > 0 or (size > 0 and 0 <= end < size / MEANINGLESS)
    )


def ends_text(estimate: float, low: float | None, high: float | None, form: str = ".4g") -> str:
    """`[0.86, 1.08]`, with `open` for an end that bounds nothing; empty without an interval."""
    if any(end is not None and math.isnan(end) for end in (low, high)):
        return ""
    texts = ["open" if is_open(estimate, end) else format(end, form) for end in (low, high)]
    return f"[{', '.join(texts)}]"


def interval_text(interval: Interval, form: str = ".4g") -> str:
    """`0.95 [0.86, 1.08]`; the estimate alone where there is no interval."""
    ends = ends_text(interval.estimate, interval.low, interval.high, form)
    return format(interval.estimate, form) + (f" {ends}" if ends else "")


def doubts(fit: Fit, intervals: Mapping[str, Interval] | None = None) -> str:
    """Why a fit is no result yet, in a few words, or an empty text; `intervals` by parameter.

    What stands in a headline beside the parameters: the flags that take a figure's meaning, and
    the parameters with an open interval.
    """
    said = [flag.partition(":")[0] for flag in fit.flags]
    found = [kind for kind in DOUBTS if kind in said]
    wide = [
        name
        for name, interval in (intervals or {}).items()
        if not math.isnan(interval.low)
        and (is_open(interval.estimate, interval.low) or is_open(interval.estimate, interval.high))
    ]
    if wide:
        found.append(f"open interval of {', '.join(wide)}")
    return ", ".join(found)
