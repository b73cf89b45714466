"""Approaches 1 and 2 on a law whose optimum is known, and what they refuse."""

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.scaling.laws import envelope, isoflop
from gptjax.scaling.table import Runs

E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28
SHARE = BETA / (ALPHA + BETA)
G = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))


def loss(N, D):
    return E + A * N**-ALPHA + B * D**-BETA


def groups(noise: float = 0.0, seed: int = 0) -> Runs:
    """Five budgets, seven sizes about the optimum of each."""
    random = np.random.default_rng(seed)
    C = np.repeat(10.0 ** np.arange(18, 22.5, 1), 7)
    N = G * (C / 6) ** SHARE * np.tile(2.0 ** np.arange(-3, 4), 5)
    C = C * np.exp(random.uniform(-0.01, 0.01, len(C)))  # whole steps do not hit a budget
    D = C / (6 * N)
    return Runs.of(loss(N, D) * np.exp(noise * random.standard_normal(len(C))),
                   parameters=N, tokens=D)  # fmt: skip


def test_isoflop_finds_the_optimum():
    result = isoflop(groups(0.001))
    assert len(result.minima) == 5 and all(len(m.rows) >= 4 for m in result.minima)
    assert result.a.estimate == pytest.approx(SHARE, abs=0.02) and SHARE in result.a
    assert result.b.estimate == pytest.approx(1 - result.a.estimate, abs=0.005)
    best = result.optimum(1e22)
    assert best.parameters == pytest.approx(G * (1e22 / 6) ** SHARE, rel=0.15)
    assert best.parameters in result.intervals(1e22)["parameters"]
    assert best.loss == pytest.approx(loss(best.parameters, best.tokens), rel=0.02)
    middle = result.minima[2]
    assert middle.curve(middle.parameters.estimate) == pytest.approx(middle.loss.estimate)


def test_outlying_runs_are_named_and_both_answers_given():
    runs = groups(0.001)
    spoilt = runs.loss * np.where(np.arange(35) == 24, 1.08, 1.0)
    result = isoflop(Runs.of(spoilt, parameters=runs.parameters, tokens=runs.tokens))
    assert "run_24" in result.dropped
    without = result.without_outliers.a.estimate
    assert abs(without - SHARE) < abs(result.a.estimate - SHARE) + 0.005


def test_budgets_given_as_a_list_or_a_column():
    runs = groups(0.001)
    listed = isoflop(runs, budgets=[1e19, 1e20, 1e21])
    assert [m.flops for m in listed.minima] == [1e19, 1e20, 1e21]
    column = runs.with_columns(budget=np.repeat([1.0, 2.0, 3.0, 4.0, 5.0], 7))
    assert [m.flops for m in isoflop(column).minima] == [1, 2, 3, 4, 5]


def test_isoflop_refuses_what_has_no_minimum():
    runs = groups()
    with pytest.raises(BadInput, match="2 budgets with a minimum"):
        isoflop(runs.select(np.tile(np.arange(7) < 3, 5)))
    left = isoflop(runs.select(~((runs.flops > 5e21) & (np.tile(np.arange(7), 5) < 3))))
    assert any("lowest loss is at the smallest size" in flag for flag in left.flags)
    with pytest.raises(BadInput, match="needs flops"):
        isoflop(Runs.of(runs.loss, parameters=runs.parameters))


def test_envelope_of_training_curves():
    sizes = 10.0 ** np.arange(6, 9.6, 0.2)
    N = np.repeat(sizes, 60)
    D = np.tile(10.0 ** np.linspace(7, 12.5, 60), len(sizes))
    runs = Runs.of(loss(N, D), parameters=N, tokens=D, names=[f"{n:.3g}" for n in N])
    result = envelope(runs, resamples=60)
    # D of a curve's point is free here, so the envelope is that of the law itself
    assert result.a.estimate == pytest.approx(SHARE, abs=0.03)
    assert result.a.low < result.a.estimate < result.a.high
    np.testing.assert_allclose(6 * result.parameters * result.tokens, result.flops, rtol=1e-6)
    with pytest.raises(BadInput, match="several rows per run"):
        envelope(groups())
