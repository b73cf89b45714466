"""Tuned rates: the bottom of a parabola, edges that ask for more, power laws through the best."""

import math

import pytest

from gptjax import DecoderConfig
from gptjax.errors import BadInput
from gptjax.scaling.flops import count_parameters
from gptjax.scaling.planner import ShapeRule
from gptjax.scaling.rates import Best, Tuned, lowest

MODEL = DecoderConfig(context_length=64, positions="rotary")
NARROW, MIDDLE, WIDE = (ShapeRule(24, 8).shape(MODEL, width) for width in (16, 64, 256))


def best(shape, lr, batch=1024):
    return Best(count_parameters(shape).total, shape.d_model, lr, batch, 2.0)


def test_the_parabola_finds_its_own_bottom():
    curve = lambda lr: 2.0 + 0.3 * math.log(lr / 0.013) ** 2
    rates = [0.005, 0.01, 0.02, 0.04]
    rate, loss, edge = lowest(rates, [curve(lr) for lr in rates])
    assert rate == pytest.approx(0.013) and loss == pytest.approx(2.0) and edge == 0
    shuffled = [0.04, 0.005, 0.02, 0.01]
    assert lowest(shuffled, [curve(lr) for lr in shuffled])[0] == pytest.approx(0.013)


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        ([1.0, 2.0, 3.0], (0.01, 1.0, -2)),  # no bend to go by
        ([3.0, 2.0, 1.0], (0.04, 1.0, 2)),
        ([4.0, 1.9, 1.0], (0.04, 1.0, 1)),  # a bottom just beyond
        ([3.1, 2.0, 1.0], (0.04, 1.0, 3)),  # far beyond
        ([1.0, 1.9, 4.0], (0.01, 1.0, -1)),
        ([2.0, 1.0, math.inf], (0.02, 1.0, 0)),  # beside a divergence the best itself
        ([1.0, math.inf, math.inf], (0.01, 1.0, -2)),
        ([2.0, 1.0, math.nan], (0.02, 1.0, 0)),
        ([math.inf, math.inf, math.inf], (0.01, math.inf, -3)),
        ([1.0, 1.0, 1.0], (0.01, 1.0, -2)),
    ],
)
def test_edges_and_divergence(losses, found):
    assert lowest([0.01, 0.02, 0.04], losses) == found


def test_the_law_of_tuned_shapes():
    ratio = math.log(count_parameters(WIDE).total / count_parameters(NARROW).total)
    tuned = Tuned((best(NARROW, 0.04), best(WIDE, 0.01, batch=4096)))
    tuned.validate()
    assert tuned.rate(NARROW) == 0.04 and tuned.rate(WIDE) == 0.01
    share = math.log(count_parameters(MIDDLE).total / count_parameters(NARROW).total) / ratio
    assert tuned.rate(MIDDLE) == pytest.approx(0.04 * 0.25**share, rel=5e-3)
    assert tuned.batch(NARROW, 64) == 16 and tuned.batch(WIDE, 64) == 64
    assert tuned.batch(NARROW, 4096) == 1
    one = Tuned((best(NARROW, 0.04),))
    assert one.rate(WIDE) == one.rate(NARROW) == 0.04
    assert Tuned.from_json(tuned.to_json()) == tuned
    for tree in (None, [], [{"lr": 3}], [{**tuned.to_json()[0], "lr": "fast"}]):
        with pytest.raises(BadInput):
            Tuned.from_json(tree)
