"""Ticks of logarithmic axes, trailing means, and figures of runs of any length."""

import json

import numpy as np
import pytest

from gptjax.scaling.plots import plot_curves, tick_texts, tick_values, trailing_mean


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (1.8e3, 9e4, ["3k", "10k", "30k"]),
        (2.4, 6.5, ["3", "4", "5", "6"]),
        (2.0, 2.1, ["2", "2.02", "2.04", "2.06", "2.08", "2.1"]),
        (7e3, 3e6, ["10k", "100k", "1M"]),
        (2e10, 4e11, ["$3\\cdot10^{10}$", "$10^{11}$", "$3\\cdot10^{11}$"]),
        (1e12, 1e24, [f"$10^{{{n}}}$" for n in range(12, 25, 2)]),
        (1.0, 1.0004, ["1", "1.0001", "1.0002", "1.0003", "1.0004"]),
    ],
)
def test_ticks_are_few_round_and_told_apart(low, high, texts):
    assert tick_texts(tick_values(low, high)) == texts


def test_every_span_has_three_to_seven_ticks():
    random = np.random.default_rng(0)
    for _ in range(300):
        low = 10 ** random.uniform(-3, 20)
        values = tick_values(low, low * 10 ** random.uniform(0.05, 15))
        assert 3 <= len(values) <= 7 and len(set(tick_texts(values))) == len(values)


def test_a_trailing_mean_grows_with_the_run():
    values = np.arange(1.0, 101.0)
    mean = trailing_mean(values, 0.1)
    assert list(mean[:19]) == list(values[:19]) and mean[-1] == np.mean(values[-10:])


@pytest.mark.parametrize("steps", [0, 1, 20])
def test_curves_of_short_runs_are_drawn(tmp_path, steps):
    rows = [{"step": i, "loss": 6 / i, "tokens": 256 * i, "flops": 1e9 * i, "seconds": 0.1 * i}
            for i in range(1, steps + 1)]  # fmt: skip
    rows += [{**row, "validation_loss": row["loss"]} for row in rows[-1:]]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", title="short")
    assert (tmp_path / "curves.png").stat().st_size > 5000
