"""Permutation language modelling: which tokens are predicted, and in which order."""

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.objectives import PermutationLM
from tests.objectives.rows import SYMBOLS, check_rows, maker, within


@pytest.mark.parametrize("changes", [{}, {"rate": 0.5}, {"max_span": 1}])
def test_rows(changes):
    for length in (2, 7, 120):
        check_rows(PermutationLM(**changes), length, "two_stream")


def test_what_is_predicted_and_when():
    make, _, lengths = maker(PermutationLM(), 240, "two_stream")
    assert lengths[:5] == (240, 240, 40, 0, 0)
    predicted = text = 0
    first, runs = np.zeros(240), []
    for seed in range(450):
        row, ids = make(seed)
        at = row["at"][row["weights"] > 0]
        assert np.array_equal(row["tokens"], ids)
        assert np.array_equal(row["targets"][: len(at)], ids[at]) and SYMBOLS not in ids[at]
        ranks = row["order"][at]
        assert sorted(ranks) == list(range(1, len(at) + 1))
        assert np.count_nonzero(row["order"]) == len(at)
        predicted, text = predicted + len(at), text + int((ids < SYMBOLS).sum())
        first[np.flatnonzero(ranks == 1)] += 1
        runs += np.diff(np.flatnonzero(np.diff(at, prepend=-9, append=999) > 1)).tolist()
    assert text > 100_000
    assert within(predicted, text / 6, 0.5 * 450**0.5)
    assert first[:36].max() < 30  # about 450 / 39 each
    share = np.bincount(runs, minlength=12) / len(runs)
    assert share[1] > share[2] > share[3] > share[4]
    assert share[6:].sum() < 0.04  # only where two meet


def test_spans_by_hand():
    class Uniform:
        def random(self, shape):
            return np.array([[0.0, 0.7, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0]])

        def permutation(self, places):
            return places

    chances = np.cumsum([1, 1 / 2, 1 / 3]) / (11 / 6)
    objective = PermutationLM(rate=0.25, max_span=3)
    # A span of 1 after 2 of its 4 tokens of context, one of 2 at the start of its own, and 1 more.
    found = objective._chosen(np.ones(15, bool), 4, Uniform(), chances)
    assert found.tolist() == [0, 2, 5, 6]
    text = np.ones(15, bool)
    text[[0, 6]] = False
    assert objective._chosen(text, 4, Uniform(), chances).tolist() == [1, 2, 3, 5]


def test_a_window_without_text():
    make, _, lengths = maker(PermutationLM(), 30, "two_stream")
    row, _ = make(0, np.full(lengths.raw, SYMBOLS, np.int32))
    assert not row["weights"].any() and not row["order"].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 1.0}, "objective.rate is 1.0"),
        ({"max_span": 0}, "objective.max_span is 0; give 1 to 1000"),
    ],
)
def test_bad_fields(changes, message):
    with pytest.raises(BadInput, match=message):
        PermutationLM(**changes).validate()
