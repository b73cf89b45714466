"""A report's figures on the screen: their axes hold what is drawn and are ticked at any span."""

import pytest

from gptjax.scaling.chart import Chart, Series, extent
from gptjax.sweeps.page import plotly_figure


@pytest.mark.parametrize(
    ("x", "texts"),
    [
        ((2.3, 2.9), ["2.4", "2.6", "2.8"]),
        ((1.2e13, 9e13), ["2·10<sup>13</sup>", "5·10<sup>13</sup>"]),
        ((1e12, 1e15), [f"10<sup>{n}</sup>" for n in range(12, 16)]),
        ((2e4, 3e6), ["100k", "1M"]),
    ],
)
def test_logarithmic_axes_have_ticks_at_any_span(x, texts):
    chart = Chart("name", "title", "loss", "loss", (Series("a", x, x),))
    axis = plotly_figure(chart).layout.xaxis
    assert axis.tickmode == "array" and set(texts) <= set(axis.ticktext)
    assert len(axis.ticktext) == len(axis.tickvals) >= 3


def test_bands_and_intervals_are_within_the_frame():
    line = Series("a", [1, 2], [3.0, 4.0], low=[2.0, 3.5], high=[3.5, 9.0])
    hidden = Series("b", [1, 2], [1e3, 1e4], hidden=True)
    chart = Chart("name", "title", "x", "y", (line, hidden), log_x=False)
    low, high = extent(chart, "y")
    assert 1.5 < low < 2.0 and 9.0 < high < 12.0
    assert extent(chart, "x") == (0.95, 2.05)
    assert extent(Chart("name", "title", "x", "y", ()), "x") is None
