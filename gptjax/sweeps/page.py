"""A report's page: one HTML file that holds its figures, its tables and all that draws them."""

import html
import json
import math
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from gptjax.scaling.chart import GREY, INK, Chart, Series, Surface, extent
from gptjax.scaling.plots import draw_png, tick_texts, tick_values
from gptjax.training.workdir import storage_errors

FONT = 'system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif'
POWER = re.compile(r"\$(?:([\d.]+)\\cdot)?10\^\{(-?\d+)\}\$")  # a tick's text as matplotlib has it


@dataclass(frozen=True)
class Cell:
    """What a table shows, and what it is sorted by."""

    text: str
    value: float | str
    wide: bool = False


def number(value: float, form: str = ".4g") -> Cell:
    """A number's cell; blank for one that is not known."""
    if value is None or not math.isfinite(value):
        return Cell("", "")
    return Cell(format(value, form), float(value))


def table(
    heads: list[str],
    rows: list[list[Cell | str]],
    kinds: list[str] | None = None,
    sort: bool = True,
) -> str:
    """An HTML table. `kinds` are CSS classes of the rows; with `sort`, a click on a head sorts."""
    numeric = [
        any(isinstance(row[i], Cell) and isinstance(row[i].value, float) for row in rows)
        for i in range(len(heads))
    ]
    marks = [' class="number"' if numbers else "" for numbers in numeric]
    head = "".join(f"<th{m}>{html.escape(h)}</th>" for h, m in zip(heads, marks, strict=True))
    lines = []
    for i, row in enumerate(rows):
        cells = []
        for cell, mark in zip(row, marks, strict=True):
            if isinstance(cell, str):
                cell = Cell(cell, cell)
            mark = ' class="wide"' if cell.wide else mark
            value = repr(cell.value) if isinstance(cell.value, float) else html.escape(cell.value)
            cells.append(f'<td{mark} data-value="{value}">{html.escape(cell.text)}</td>')
        kind = f' class="{kinds[i]}"' if kinds else ""
        lines.append(f"<tr{kind}>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    sortable = ' class="sortable"' if sort else ""
    return (
        f'<div class="scroll"><table{sortable}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def bullets(lines: list[str], kind: str = "plain") -> str:
    """A list of plain texts."""
    return f'<ul class="{kind}">' + "".join(f"<li>{html.escape(t)}</li>" for t in lines) + "</ul>"


def figure(chart: Chart, place: int) -> str:
    """A chart with its buttons and caption."""
    data = json.dumps(json.loads(plotly_figure(chart).to_json()), separators=(",", ":"))
    data = data.replace("<", "\\u003c")  # a name must not end the script
    buttons = "".join(
        f'<button type="button" data-axis="{axis}" title="switch between log and linear">'
        f"{axis[0]}: {'log' if log else 'linear'}</button> "
        for axis, log in (("xaxis", chart.log_x), ("yaxis", chart.log_y))
    )
    return f"""<figure data-chart="{chart.name}" id="figure-{chart.name}">
<div class="switches">{buttons}</div><h3>Figure {place}. {html.escape(chart.title)}</h3>
<div class="plot" id="plot-{chart.name}"></div>
<script type="application/json">{data}</script>
<figcaption>{html.escape(chart.caption)}</figcaption>
</figure>"""


def page(title: str, body: str) -> str:
    """A whole page; it opens without a network."""
    from plotly.offline import get_plotlyjs

    assets = resources.files("gptjax.sweeps") / "assets"
    style = (assets / "report.css").read_text(encoding="utf-8")
    script = (assets / "report.js").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
{body}
<script>
{script}</script>
</body>
</html>
"""


def frame(path: str | Path, height: int = 800) -> str:
    """HTML that shows a written page inside another one, such as a notebook's output.

    The page goes along whole: a notebook elsewhere cannot open this machine's files.
    """
    text = html.escape(Path(path).read_text(encoding="utf-8"))
    style = f"width: 100%; height: {height}px; border: 1px solid {GREY}"
    return f'<iframe srcdoc="{text}" style="{style}"></iframe>'


def write_figures(folder: Path, drawn: tuple[Chart, ...]) -> None:
    """Each chart as PNG; figures that an earlier report left there go."""
    with storage_errors(f"write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.png"):
            if old.stem not in {chart.name for chart in drawn}:
                old.unlink()
        for chart in drawn:
            draw_png(chart, folder / f"{chart.name}.png")


# ---------------------------------------------------------------- charts by plotly


def plotly_figure(chart: Chart):
    """A chart as plotly's figure; the same chart gives the same JSON."""
    from plotly import graph_objects

    traces = []
    if chart.surface is not None:
        traces.append(_contours(chart.surface))
    shown: set[str] = set()
    for series in chart.series:
        if len(series.x):
            traces += _traces(series, chart, (series.group or series.name) not in shown)
            shown.add(series.group or series.name)
    axis = {
        "gridcolor": "#eceff1",
        "linecolor": GREY,
        "ticks": "outside",
        "tickcolor": GREY,
        "exponentformat": "power",
        "zeroline": False,
    }
    layout = {
        "template": "none",
        "font": {"family": FONT, "size": 13, "color": INK},
        "margin": {"l": 70, "r": 20, "t": 16, "b": 60},
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "white", "font": {"family": FONT, "size": 12}, "align": "left"},
        "legend": {"orientation": "h", "y": -0.2, "x": 0, "font": {"size": 12}},
        "xaxis": {**axis, **_axis(chart.x_label, chart.log_x, extent(chart, "x"))},
        "yaxis": {**axis, **_axis(chart.y_label, chart.log_y, extent(chart, "y"))},
    }
    return graph_objects.Figure(data=traces, layout=layout, skip_invalid=False)


def _axis(label: str, log: bool, ends: tuple[float, float] | None) -> dict:
    """An axis; a logarithmic one has the ticks of the PNG, since plotly leaves short ones bare."""
    axis = {"title": {"text": label}, "type": "log" if log else "linear"}
    if ends is None:
        return axis
    axis["range"] = [math.log10(v) if log else v for v in ends]
    if log:
        values = tick_values(*ends)
        texts = [POWER.sub(_html_power, text) for text in tick_texts(values)]
        axis |= {"tickmode": "array", "tickvals": values, "ticktext": texts}
    return axis


def _html_power(found: re.Match) -> str:
    factor, power = found.groups()
    return f"{factor}·10<sup>{power}</sup>" if factor else f"10<sup>{power}</sup>"


def _plain(values) -> list:
    """Numbers as JSON has them, to six digits; what is not finite is null."""
    return [
        float(f"{v:.6g}") if math.isfinite(v) else None for v in np.asarray(values, dtype=float)
    ]


def _traces(series: Series, chart: Chart, first: bool) -> list[dict]:
    group = series.group or series.name
    common = {
        "type": "scatter",
        "name": group,
        "legendgroup": group,
        "visible": "legendonly" if series.hidden else True,
    }
    x, y = _plain(series.x), _plain(series.y)
    traces = []
    if series.style == "line":
        if series.low is not None:
            low, high = _plain(series.low), _plain(series.high)
            fill = ",".join(str(int(series.color[i : i + 2], 16)) for i in (1, 3, 5))
            traces.append(
                common
                | {
                    "x": x + x[::-1],
                    "y": high + low[::-1],
                    "mode": "lines",
                    "fill": "toself",
                    "fillcolor": f"rgba({fill},0.16)",
                    "line": {"width": 0},
                    "hoverinfo": "skip",
                    "showlegend": False,
                }
            )
        name = html.escape(series.name)
        line = {"color": series.color, "width": series.width, "dash": series.dash}
        traces.append(
            common
            | {
                "x": x,
                "y": y,
                "mode": "lines",
                "line": line,
                "opacity": series.opacity,
                "showlegend": first,
                "hovertemplate": f"<b>{name}</b><br>%{{x:.3g}}, %{{y:.4g}}<extra></extra>",
            }
        )
        return traces
    points = {
        "x": x,
        "y": y,
        "mode": "markers",
        "marker": {"color": series.color, "size": series.size, "symbol": series.symbol},
        "opacity": series.opacity,
        "showlegend": first,
    }
    if series.symbol not in ("circle-open", "x"):
        points["marker"]["line"] = {"width": 1, "color": "white"}
    if series.hover:
        points |= {"text": list(series.hover), "hovertemplate": "%{text}<extra></extra>"}
    for axis, low, high, at in (
        ("error_y", series.low, series.high, series.y),
        ("error_x", series.x_low, series.x_high, series.x),
    ):
        if low is not None:
            at = np.asarray(at, dtype=float)
            points[axis] = {
                "type": "data",
                "symmetric": False,
                "array": _plain(np.asarray(high) - at),
                "arrayminus": _plain(at - np.asarray(low)),
                "thickness": 1.4,
                "width": 3,
            }
    return [common | points]


def _contours(surface: Surface) -> dict:
    return {
        "type": "contour",
        "x": _plain(surface.x),
        "y": _plain(surface.y),
        "z": [_plain(row) for row in surface.z],
        "colorscale": [[0, "#f7fbff"], [0.5, "#c6dbef"], [1, "#6baed6"]],
        "reversescale": True,
        "ncontours": 16,
        "contours": {"showlabels": True, "labelfont": {"size": 10, "color": INK}},
        "line": {"width": 0.7, "color": GREY},
        "colorbar": {"title": {"text": surface.label, "side": "right"}, "thickness": 14},
        "hovertemplate": "%{x:.3g}, %{y:.3g}: %{z:.4f}<extra></extra>",
        "showlegend": False,
    }
