"""Figures as PNG: loss against tokens, compute and time of one run, and any `Chart`."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gptjax.scaling.chart import GREY, INK, Chart, Series, Surface, extent


def read_rows(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; a torn last line is left out."""
    rows = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


AXES = (("tokens", "training tokens"), ("flops", "training FLOPs"), ("seconds", "time"))
SMOOTH = 0.05  # the trailing mean takes this share of the steps so far: evenly on a log axis


def plot_curves(metrics: Path, out: Path, title: str = "") -> None:
    """Write loss against tokens, the ledger's FLOPs and time as one PNG."""
    from matplotlib.figure import Figure

    rows = read_rows(Path(metrics))
    train = [row for row in rows if "loss" in row]
    held_out = [row for row in rows if "validation_loss" in row]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, len(AXES), sharey=True)
    unit, in_unit = _time_unit(max((row["seconds"] for row in rows), default=0.0))
    for panel, (column, label) in zip(panels, AXES, strict=True):
        scale, label = (in_unit, unit) if column == "seconds" else (1.0, label)
        panel.plot(
            [row[column] / scale for row in train],
            trailing_mean([row["loss"] for row in train], SMOOTH),
            color="#7a9cc6",
            linewidth=1,
            label=f"training (mean of the last {100 * SMOOTH:.0f}%)",
        )
        if held_out:
            panel.plot(
                [row[column] / scale for row in held_out],
                [row["validation_loss"] for row in held_out],
                "o-",
                color="#c0392b",
                markersize=3.5,
                linewidth=1.2,
                label="validation",
            )
        panel.set_xlabel(label)
        if rows:  # an axis without values has no logarithm
            if column != "seconds":
                panel.set_xscale("log")
                log_ticks(panel.xaxis, most=6)
            panel.set_yscale("log")
            log_ticks(panel.yaxis)
        panel.grid(True, alpha=0.25)
    panels[0].set_ylabel("loss (nats per token)")
    panels[0].legend(frameon=False, fontsize=8)
    figure.align_xlabels(panels)
    figure.suptitle(title, fontsize=11)
    part = Path(out).with_suffix(".part.png")
    figure.savefig(part, dpi=130)
    part.replace(out)


def _time_unit(seconds: float) -> tuple[str, float]:
    """What to count so long a time in, and its seconds."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 3 * size:
            return unit, size
    return "seconds", 1.0


def trailing_mean(values: Sequence[float], share: float) -> np.ndarray:
    """The mean at each place over the last `share` of the places so far, at least one."""
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - np.maximum((share * end).astype(int), 1), 0)
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[end] - total[begin]) / (end - begin)


DASHES = {"solid": "-", "dash": "--", "dot": ":"}
SYMBOLS = {"circle": "o", "circle-open": "o", "diamond": "D", "star": "*", "x": "x", "square": "s"}


def draw_png(chart: Chart, out: Path) -> None:
    """Draw a chart into a PNG; the same chart gives the same bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 4.9), layout="constrained")
    axes = figure.subplots()
    if chart.surface is not None:
        _contours(axes, chart.surface)
    shown: set[str] = set()
    for series in chart.series:
        if series.hidden or not len(series.x):
            continue
        label = series.group or series.name
        _series(axes, series, label if label not in shown else "_nolegend_")
        shown.add(label)
    axes.set_xscale("log" if chart.log_x else "linear")
    axes.set_yscale("log" if chart.log_y else "linear")
    for axis, limit in (("x", axes.set_xlim), ("y", axes.set_ylim)):
        ends = extent(chart, axis)
        if ends is not None:
            limit(*ends)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.set_title(chart.title, fontsize=11, loc="left")
    axes.grid(True, which="major", alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for axis, log in ((axes.xaxis, chart.log_x), (axes.yaxis, chart.log_y)):
        if log:
            log_ticks(axis)
    if shown:  # under the axes: over them it would hide what a reader looks for
        figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    part = Path(out).with_suffix(".part.png")
    # the version of the library in the file would make equal figures differ
    figure.savefig(part, dpi=150, metadata={"Software": None})
    part.replace(out)


def _series(axes, series: Series, label: str) -> None:
    if series.style == "line":
        if series.low is not None:
            axes.fill_between(
                series.x, series.low, series.high, color=series.color, alpha=0.16, linewidth=0
            )
        axes.plot(
            series.x,
            series.y,
            DASHES[series.dash],
            color=series.color,
            linewidth=0.75 * series.width,
            alpha=series.opacity,
            label=label,
        )
        return
    opened = series.symbol == "circle-open"
    axes.errorbar(
        series.x,
        series.y,
        yerr=_reach(series.y, series.low, series.high),
        xerr=_reach(series.x, series.x_low, series.x_high),
        fmt=SYMBOLS[series.symbol],
        color=series.color,
        markerfacecolor="none" if opened else series.color,
        markersize=0.7 * series.size,
        alpha=series.opacity,
        elinewidth=1,
        capsize=2,
        label=label,
    )


def _reach(middle, low, high):
    """Lengths of error bars down and up, [2, points]."""
    if low is None:
        return None
    middle = np.asarray(middle, dtype=float)
    return np.maximum([middle - np.asarray(low), np.asarray(high) - middle], 0.0)


def _contours(axes, surface: Surface) -> None:
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

    levels = MaxNLocator(14).tick_values(float(surface.z.min()), float(surface.z.max()))
    filled = axes.contourf(surface.x, surface.y, surface.z, levels, cmap="Blues_r", alpha=0.55)
    drawn = axes.contour(surface.x, surface.y, surface.z, levels, colors=GREY, linewidths=0.8)
    for text in axes.clabel(drawn, fontsize=8, fmt="%.3g", colors=INK):
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
    axes.figure.colorbar(filled, ax=axes, label=surface.label, pad=0.01, aspect=30)


# ---------------------------------------------------------------- ticks of logarithmic axes

# What a decade may be divided by, the coarsest first.
DIVISIONS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))


def tick_values(low: float, high: float, most: int = 7) -> list[float]:
    """Round values from `low` to `high`, 3 to `most` of them, for a logarithmic axis.

    Whole decades where there are enough, parts of decades where there are not, and even steps
    between ends that are so near each other that a logarithm is nearly straight.
    """
    from matplotlib.ticker import MaxNLocator

    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for parts in DIVISIONS:
        found = [part * 10.0**d for d in decades for part in parts]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) >= 3:
            return found[:: -(-len(found) // most)]
    even = MaxNLocator(most - 1, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(value) for value in even if low <= value <= high]


def tick_texts(values: list[float]) -> list[str]:
    """20k, 1.5M; powers of ten where letters would say little: beyond 1e10 or below 1e-3."""
    if not values:
        return []
    if max(values) < 1e10 and min(values) >= 1e-3:
        return [_lettered(value) for value in values]
    texts = []
    for value in values:
        power = int(np.floor(np.log10(value) + 1e-9))
        factor = f"{value / 10.0**power:.4g}"
        texts.append(f"$10^{{{power}}}$" if factor == "1" else f"${factor}\\cdot10^{{{power}}}$")
    return texts


def _lettered(value: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.4g}{letter}"
    return f"{value:.6g}"


def log_ticks(axis, most: int = 7) -> None:
    """Few and readable ticks on a logarithmic axis of matplotlib, whatever its span."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = axis.get_view_interval()
    values = tick_values(low, high, most)
    texts = dict(zip(values, tick_texts(values), strict=True))
    axis.set_major_locator(FixedLocator(values))
    axis.set_major_formatter(FuncFormatter(lambda value, _: texts.get(value, "")))
    axis.set_minor_locator(NullLocator())
