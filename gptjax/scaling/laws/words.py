"""Intervals and doubts in words, the same wherever a fit is told of."""

import math
from collections.abc import Mapping

from gptjax.scaling.laws.fit import Fit
from gptjax.scaling.laws.intervals import Interval

MEANINGLESS = 1e9  # an end so many times beyond the estimate (or below it) bounds nothing
DOUBTS = ("unconverged", "no variation", "gross outlier", "floor not identified",
          "q not identified", "negative exponent")  # fmt: skip


def open_ends(estimate: float, low: float | None, high: float | None) -> tuple[bool, bool]:
    """Which ends of an interval bound nothing: 0 of what is positive, infinity, or nearly so.

    None is an end that is not finite, as in JSON; NaN is no end at all, and not open.
    """
    size = abs(estimate)
    far = MEANINGLESS * max(size, 1e-6)

    def beyond(end: float | None) -> bool:
        return end is None or math.isinf(end) or abs(end) > far

    near_zero = low is not None and 0 <= low <= size / MEANINGLESS and low < estimate
    return beyond(low) or near_zero, beyond(high)


def is_open(interval: Interval) -> bool:
    """Whether an end of a known interval bounds nothing."""
    return any(open_ends(interval.estimate, interval.low, interval.high))


def ends_text(estimate: float, low: float | None, high: float | None, form: str = ".4g") -> str:
    """`[0.86, 1.08]`, with `open` for an end that bounds nothing; empty without an interval."""
    if any(end is not None and math.isnan(end) for end in (low, high)):
        return ""
    opened = open_ends(estimate, low, high)
    texts = [
        "open" if off else format(end, form) for off, end in zip(opened, (low, high), strict=True)
    ]
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
    wide = [name for name, interval in (intervals or {}).items() if is_open(interval)]
    if wide:
        found.append(f"open interval of {', '.join(wide)}")
    return ", ".join(found)
