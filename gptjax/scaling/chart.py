"""A figure as data: what is drawn, apart from who draws it.

`scaling/plots.py` draws a `Chart` with matplotlib, for paper; a report's page draws the same one
with plotly, for the screen. So both show the same points, bands and words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

INK, GREY = "#22313f", "#8a97a3"
PALETTE = ("#c0392b", "#1f6fb2", "#2e8b57", "#8e44ad", "#d98817", "#16808a", "#7a4b2a", "#5d6d7e")
# dark to light with rising luminance, after matplotlib's viridis, its pale end left out
RAMP = ((68, 1, 84), (64, 67, 135), (41, 120, 142), (34, 167, 132), (121, 209, 81))


@dataclass(frozen=True, eq=False)
class Series:
    """Points or a line; `low` and `high` are a band about a line and error bars on points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: Literal["line", "points"] = "line"
    color: str = INK
    dash: Literal["solid", "dash", "dot"] = "solid"
    symbol: Literal["circle", "circle-open", "diamond", "star", "x", "square"] = "circle"
    width: float = 2.0
    size: float = 8.0
    opacity: float = 1.0
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    x_low: Sequence[float] | None = None
    x_high: Sequence[float] | None = None
    hover: Sequence[str] = ()  # a text per point; without, the name and the numbers
    group: str = ""  # series that the legend shows once and switches together
    hidden: bool = False  # drawn only once its legend entry is clicked


@dataclass(frozen=True, eq=False)
class Surface:
    """Contours of z [len(y), len(x)]."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    label: str


@dataclass(frozen=True, eq=False)
class Chart:
    """One figure: its file's stem, words, axes and series."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    caption: str = ""
    log_x: bool = True
    log_y: bool = True
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    surface: Surface | None = None


def ramp(share: float) -> str:
    """A colour for a share from 0 (dark) to 1 (light), as #rrggbb."""
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    i = min(int(place), len(RAMP) - 2)
    mixed = (round(a + (b - a) * (place - i)) for a, b in zip(RAMP[i], RAMP[i + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def colors_by(values: Sequence[float]) -> list[str]:
    """A colour per value by the rank of its logarithm's place between the extremes."""
    logs = np.log(np.asarray(values, dtype=float))
    span = np.ptp(logs) if len(logs) else 0.0
    return [ramp((v - logs.min()) / span if span > 0 else 0.4) for v in logs]


def margins(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """The range of positive values, widened by a share of its logarithm on both sides."""
    values = np.asarray(values, dtype=float)
    low, high = np.log(values.min()), np.log(values.max())
    pad = max((high - low) * share, 0.02)
    return float(np.exp(low - pad)), float(np.exp(high + pad))


def extent(chart: Chart, axis: Literal["x", "y"]) -> tuple[float, float] | None:
    """The ends of a chart's axis: those asked for, else what holds all that is drawn at first.

    None where nothing is drawn, or nothing positive on a logarithmic axis.
    """
    asked, log = getattr(chart, f"{axis}_range"), getattr(chart, f"log_{axis}")
    if asked is not None:
        return float(asked[0]), float(asked[1])
    parts = ("x", "x_low", "x_high") if axis == "x" else ("y", "low", "high")
    every = [getattr(s, part) for s in chart.series if not s.hidden for part in parts]
    every = [np.asarray(v, dtype=float) for v in every if v is not None]
    values = np.concatenate(every) if every else np.zeros(0)
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if not len(values):
        return None
    if log:
        return margins(values)
    low, high = float(values.min()), float(values.max())
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def short_power(value: float) -> str:
    """3e11 for 3.0e+11."""
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}"
