"""The memoriser's loss against sums over every key, against samples, and against its limits."""

import math

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.scaling.memoriser import asymptotes, loss, runs


def zipf(alpha, keys):
    p = np.arange(1, keys + 1, dtype=np.float64) ** -(1 + alpha)
    return p / p.sum()


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("keys", [1, 997, 3_000_017])
def test_loss_is_the_sum_over_keys(alpha, keys):
    p = zipf(alpha, keys)
    memory = np.array([0, 1, 10, 991, 2_000_003, math.inf])
    samples = np.array([0, 1, 101, 1e6, 1e10, math.inf])
    got = loss(memory[:, None], samples, alpha, keys, floor=0.7, gap=1.9)
    assert got.shape == (6, 6)
    with np.errstate(divide="ignore", invalid="ignore"):
        for i, m in enumerate(np.minimum(memory, keys).astype(int)):
            for j, d in enumerate(samples):
                missed = np.where(p == 0, 1, (1 - p) ** d)
                expected = p[m:].sum() + (p[:m] * missed[:m]).sum()
                assert got[i, j] == pytest.approx(0.7 + 1.9 * expected, rel=1e-7)


def test_loss_is_the_mean_over_samples():
    alpha, keys, memory, samples = 0.5, 499, 61, 307
    p = zipf(alpha, keys)
    counts = np.random.default_rng(0).multinomial(samples, p, size=4000)
    known = (counts > 0) & (np.arange(keys) < memory)
    losses = 1 - known @ p
    error = losses.std() / math.sqrt(len(losses))
    assert abs(losses.mean() - loss(memory, samples, alpha, keys)) < 4 * error


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0])
def test_asymptotes_of_endless_keys(alpha):
    A, a, B, b = asymptotes(alpha, gap=2.0)
    assert (a, b) == (alpha, pytest.approx(alpha / (1 + alpha)))
    for size in (1e5, 1e9):
        assert loss(size, math.inf, alpha, gap=2.0) == pytest.approx(A * size**-a, rel=1e-4)
    assert loss(math.inf, 1e14, alpha, gap=2.0) == pytest.approx(B * 1e14**-b, rel=1e-4)
    assert loss(math.inf, math.inf, alpha, floor=0.3) == 0.3
    assert loss(0, 1e5, alpha) == pytest.approx(1.0)
    assert loss(math.inf, 0, alpha) == pytest.approx(1.0)


def test_endless_keys_are_the_limit_of_many():
    memory, samples = np.array([1e3, 1e7, 1e8]), 1e9
    for keys in (1e12, 1e15):
        near = loss(memory, samples, 1.0, keys)
        assert near == pytest.approx(loss(memory, samples, 1.0), abs=2 / keys)


def test_a_table_of_every_pair():
    table = runs([10, 100], [1e3, 1e4, 1e5], 0.5, floor=1.5, gap=2.0)
    assert len(table) == 6
    assert list(table.parameters) == [10, 10, 10, 100, 100, 100]
    assert list(table.tokens) == [1e3, 1e4, 1e5] * 2
    assert table.names[1] == "memory_10_samples_10000"
    assert table.loss[4] == loss(100, 1e4, 0.5, floor=1.5, gap=2.0)
    assert np.all(table.flops == 6 * table.parameters * table.tokens)


@pytest.mark.parametrize(
    "arguments",
    [(1, 1, 0.0), (1, 1, -1.0), (1.5, 1, 1.0), (-1, 1, 1.0), (1, -1, 1.0), (1, 1, 1.0, 0.5),
     ("a", 1, 1.0), (1, None, 1.0), (1, 1, "a"), (1, 1, 1.0, "a"), ([1, 2], [1, 2, 3], 1.0),
     (1, 1, 1.0, 9, "a"), (math.nan, 1, 1.0), (1, math.nan, 1.0), (1, 1, math.nan)],
)  # fmt: skip
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(BadInput):
        loss(*arguments)
