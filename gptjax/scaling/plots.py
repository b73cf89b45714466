"""Figures as PNG: loss against tokens, compute and time of one run, and any `Chart`."""

import json
from pathlib import Path

import numpy as np

from gptjax.scaling.chart import GREY, Chart, Series, Surface


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


AXES = (("tokens", "tokens"), ("flops", "training FLOPs (ledger)"), ("seconds", "seconds"))


def plot_curves(metrics: Path, out: Path, title: str = "") -> None:
    """Write loss against tokens, ledger FLOPs and seconds as one PNG."""
    from matplotlib.figure import Figure

    rows = read_rows(Path(metrics))
    train = [row for row in rows if "loss" in row]
    held_out = [row for row in rows if "validation_loss" in row]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, len(AXES), sharey=True)
    for panel, (column, label) in zip(panels, AXES, strict=True):
        panel.plot(
            [row[column] for row in train],
            _smooth([row["loss"] for row in train]),
            color="#7a9cc6",
            linewidth=1,
            label="training (running mean)",
        )
        panel.plot(
            [row[column] for row in held_out],
            [row["validation_loss"] for row in held_out],
            "o-",
            color="#c0392b",
            markersize=3.5,
            linewidth=1.2,
            label="validation",
        )
        panel.set_xlabel(label)
        if rows:  # an axis without values has no logarithm
            panel.set_yscale("log")
            panel.set_xscale("linear" if column == "seconds" else "log")
        panel.grid(True, which="both", alpha=0.2)
    panels[0].set_ylabel("nats per token")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    part = Path(out).with_suffix(".part.png")
    figure.savefig(part, dpi=130)
    part.replace(out)


def _smooth(values: list[float], share: float = 0.01) -> list[float]:
    """A trailing mean over 1% of the run, at least one step."""
    width = max(int(len(values) * share), 1)
    out, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        out.append(total / min(i + 1, width))
    return out


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
    if chart.x_range is not None:
        axes.set_xlim(*chart.x_range)
    if chart.y_range is not None:
        axes.set_ylim(*chart.y_range)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.set_title(chart.title, fontsize=11, loc="left")
    axes.grid(True, which="major", alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if chart.log_y and chart.y_range and chart.y_range[1] < 10 * chart.y_range[0]:
        _plain_ticks(axes.yaxis)
    if shown:
        outside = len(shown) > 6
        axes.legend(
            frameon=False,
            fontsize=8,
            loc="upper left" if outside else "best",
            bbox_to_anchor=(1.0, 1.0) if outside else None,
        )
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
    from matplotlib.ticker import MaxNLocator

    levels = MaxNLocator(14).tick_values(float(surface.z.min()), float(surface.z.max()))
    drawn = axes.contour(surface.x, surface.y, surface.z, levels, colors=GREY, linewidths=0.8)
    axes.clabel(drawn, fontsize=7, fmt="%.3g")


def _plain_ticks(axis) -> None:
    """Plain numbers on a logarithmic axis of less than a decade."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

    axis.set_major_locator(MaxNLocator(7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
