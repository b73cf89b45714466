"""Intervals: their width, their coverage in small, and what they refuse."""

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.scaling.laws import Interval, bootstrap, fit_law, interval_text, profile
from gptjax.scaling.table import Runs
from tests.scaling.test_laws import TRUTH, drawn

OPTIONS = {"starts": 4, "diagnose": False}


@pytest.fixture(scope="module")
def fit():
    return fit_law(drawn("chinchilla", 0.01, rows=120), "chinchilla", **OPTIONS)


@pytest.fixture(scope="module")
def boot(fit):
    return bootstrap(fit, 200)


def test_bootstrap_covers_everything_it_says(fit, boot):
    assert boot.raws.shape == (200, 5) and boot.unconverged == 0
    for name, value in TRUTH["chinchilla"].items():
        interval = boot.parameters[name]
        assert interval.low < fit.parameters[name] < interval.high
        assert value in interval
    assert 0.28 / 0.62 in boot.derived["a"]
    low, high = boot.predict(N=[1e9, 1e10], D=2e11)
    assert low.shape == (2,) and (low < fit.predict(N=[1e9, 1e10], D=2e11)).all()
    assert (high - low < 0.05).all()
    best = boot.optimum(1e21)
    point = fit.optimum(1e21)
    for name in ("parameters", "tokens", "loss"):
        assert best[name].low < getattr(point, name) < best[name].high


def test_profile_agrees_with_bootstrap_and_standard_errors(fit, boot):
    for name in ("E", "alpha", "beta"):
        one, other = profile(fit, name), boot.parameters[name]
        assert TRUTH["chinchilla"][name] in one
        assert 0.6 < (one.high - one.low) / (other.high - other.low) < 1.7
    width = np.log(profile(fit, "A").high / profile(fit, "A").low)
    assert width == pytest.approx(2 * 1.98 * fit.standard_errors["A"], rel=0.35)


def test_an_end_that_the_runs_do_not_bound_is_open():
    flat = fit_law(drawn("kaplan_n", 0.02, rows=30), "power_floor:parameters", **OPTIONS)
    interval = profile(flat, "E")
    assert interval.low == 0.0 and interval.high > flat.parameters["E"]


def test_what_the_runs_do_not_determine_is_open_at_both_ends():
    runs = drawn("chinchilla", 0.01, rows=60)
    rising = Runs.of(1 / runs.loss, flops=runs.flops)
    found = bootstrap(fit_law(rising, "power_floor:flops", **OPTIONS), 20)
    assert (found.parameters["E"].low, found.parameters["E"].high) == (0.0, np.inf)
    assert np.isfinite(found.parameters["alpha"].high)


def test_profile_coverage_in_small():
    """A line in log-log, whose profile is exact: 95% of intervals hold the truth."""
    hits = 0
    for seed in range(60):
        runs = drawn("kaplan_n", 0.02, rows=20, seed=seed)
        found = fit_law(runs, "kaplan_n", loss="squared_log", starts=1, diagnose=False)
        hits += 0.076 in profile(found, "alpha")
    assert hits >= 52


def test_groups_are_drawn_whole():
    runs = drawn("kaplan_n", 0.0, rows=60)
    shared = np.repeat(np.random.default_rng(0).normal(0, 0.02, 12), 5)
    runs = Runs.of(
        runs.loss * np.exp(shared),
        parameters=runs.parameters,
        names=np.repeat([f"model_{i}" for i in range(12)], 5),
    )
    found = fit_law(runs, "kaplan_n", loss="squared_log", **OPTIONS)
    widths = []
    for by in (None, "names"):
        low, high = bootstrap(found, 80, by=by).predict(N=3e8)
        widths.append(float(high[0] - low[0]))
    assert widths[1] > 1.4 * widths[0]  # 12 independent shifts, not 60


def test_what_is_refused(fit):
    with pytest.raises(BadInput, match="at least 20"):
        bootstrap(fit, 3)
    with pytest.raises(BadInput, match="level is 95"):
        profile(fit, "alpha", level=95)
    with pytest.raises(BadInput, match="no parameter 'alfa'"):
        profile(fit, "alfa")
    held = fit_law(fit.runs, "chinchilla", fixed={"E": 1.7}, **OPTIONS)
    with pytest.raises(BadInput, match="it has no interval"):
        profile(held, "E")
    assert "E" not in bootstrap(held, 20).parameters


def test_an_interval_without_width_is_an_error(fit):
    from gptjax.scaling.laws.intervals import interval_of

    with pytest.raises(BadInput, match="has no width"):
        interval_of("alpha", 0.3, np.full(100, 0.3), 0.95)


def test_long_repetitions_tell_how_far_they_are(monkeypatch):
    from gptjax.scaling.laws import progress

    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    said = []
    assert list(progress.counted(8, "bootstrap of a", said.append)) == list(range(8))
    assert said[0] == "bootstrap of a: 12% · 1 of 8 · 28 s left" and len(said) == 3
    assert list(progress.counted(3, "quiet", None)) == [0, 1, 2]


def test_ends_that_bound_nothing_are_open():
    assert interval_text(Interval(2.0, 1.5, 2.5)) == "2 [1.5, 2.5]"
    assert interval_text(Interval(2.0, 0.0, np.inf)) == "2 [open, open]"
    assert interval_text(Interval(2.0, 1.0, 1.02e130)) == "2 [1, open]"
    assert interval_text(Interval(-0.1, -0.3, 0.1)) == "-0.1 [-0.3, 0.1]"
    assert interval_text(Interval(2.0, np.nan, np.nan)) == "2"
    assert interval_text(Interval(1e-13, -0.1, 0.1), ".1f") == "0.0 [-0.1, 0.1]"
    assert interval_text(Interval(1e-13, 0.0, 1.5), ".1f") == "0.0 [open, 1.5]"
