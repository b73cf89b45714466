"""Span corruption: T5's counts, the two texts it makes, and the way back."""

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.objectives import SpanCorruption
from gptjax.objectives.corruption import (
    conditional_row,
    most,
    parts_of,
    placed_apart,
    placed_in_text,
    ranges,
    segmentation,
)
from gptjax.objectives.spans import corrupted, corrupted_sizes, noise_counts, rebuilt
from tests.objectives.rows import SYMBOLS, check_ahead, check_rows, maker, within

FAMILIES = ("encoder_decoder", "decoder")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"rate": 0.5, "mean_span": 1.0}, {"mean_span": 40.0}])
def test_rows(family, changes):
    for length in (11, 67, 128):
        check_rows(SpanCorruption(**changes), length, family, count=3)


def test_counts_are_those_of_t5():
    assert corrupted_sizes(568, 0.15, 3.0) == (512, 114)  # as its paper's rows of 512
    lengths = SpanCorruption().lengths(512, "encoder_decoder")
    assert lengths[:5] == (568, 114, 114, 512, 0)
    assert noise_counts(2, 0.01, 3.0) == noise_counts(2, 0.99, 3.0) == (1, 1)
    for length in range(3, 200):
        assert SpanCorruption().lengths(length, "encoder_decoder").source == length


def test_a_text_by_hand():
    class Chosen:  # spans of 1 and 3 tokens, with 2 and 4 before them
        def choice(self, count, size, replace):
            return {3: [0], 5: [1]}[count]

    ids = np.arange(10, 20)
    source, targets = corrupted(ids, 0.4, 2.0, Chosen(), np.array([101, 102, 103]), SYMBOLS)
    assert source.tolist() == [10, 11, 101, 13, 14, 15, 16, 102, SYMBOLS]
    assert targets.tolist() == [101, 12, 102, 17, 18, 19, SYMBOLS]
    _, vocabulary, lengths = maker(SpanCorruption(rate=0.4, mean_span=2.0), 15, "decoder")
    assert lengths.raw == 10
    row = conditional_row(source, targets, lengths, "decoder", vocabulary, SYMBOLS, fits=True)
    assert row["tokens"].tolist() == [*source, *targets[:-1]]
    assert row["at"].tolist() == list(range(8, 15))
    assert row["prefix"].tolist() == [True] * 9 + [False] * 6
    lengths = lengths._replace(tokens=7, source=9)
    row = conditional_row(source, targets, lengths, "encoder_decoder", vocabulary, 7, fits=True)
    assert row["tokens"].tolist() == [7, *targets[:-1]] and np.array_equal(row["source"], source)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_is_rebuilt(family):
    for rate, mean_span in ((0.15, 3.0), (0.5, 8.0), (0.5, 1.0)):
        objective = SpanCorruption(rate=rate, mean_span=mean_span)
        make, vocabulary, lengths = maker(objective, 101, family)
        for seed in range(20):
            row, ids = make(seed)
            source, targets = parts_of(row)
            noise, spans = noise_counts(lengths.raw, rate, mean_span)
            assert (len(source), len(targets)) == (
                101 - 0,
                noise + spans + 1,
            ) or family == "decoder"
            assert np.array_equal(rebuilt(source, targets, vocabulary), ids)
            if family == "encoder_decoder":
                assert row["tokens"][0] == vocabulary.id("pad")
                assert np.array_equal(row["tokens"][1:], targets[:-1])


def test_lengths_of_spans_are_those_of_a_random_composition():
    rng, runs = np.random.default_rng(0), 4000
    sizes = np.array([segmentation(rng, 12, 4) for _ in range(runs)])
    assert sizes.min() == 1 and (sizes.sum(1) == 12).all()
    # All C(11, 3) = 165 ways alike: the first part is 1 in C(10, 2) = 45 of them.
    for part in range(4):
        assert within((sizes[:, part] == 1).mean(), 45 / 165, (0.2 / runs) ** 0.5)
    assert segmentation(rng, 5, 1).tolist() == [5] and segmentation(rng, 5, 5).tolist() == [1] * 5


def test_spans_are_placed_apart_and_alike():
    rng, runs = np.random.default_rng(1), 3000
    sizes = np.array([2, 1])
    starts = np.array([placed_apart(rng, sizes, 6) for _ in range(runs)])
    found, counts = np.unique(starts, axis=0, return_counts=True)
    assert found.tolist() == [[0, 3], [0, 4], [0, 5], [1, 4], [1, 5], [2, 5]]
    assert within(counts.max() / runs, 1 / 6, (5 / 36 / runs) ** 0.5)
    assert ranges(np.array([3, 9]), np.array([2, 3])).tolist() == [3, 4, 9, 10, 11]


def test_spans_leave_special_ids_out():
    is_special = np.zeros(30, bool)
    is_special[[0, 9, 10, 21]] = True
    sizes, found = np.array([3, 1, 2, 2]), np.zeros(30)
    for seed in range(300):
        starts, placed = placed_in_text(np.random.default_rng(seed), sizes, is_special)
        assert sorted(placed) == [1, 2, 2, 3]
        assert (starts[1:] > (starts + placed)[:-1]).all()
        places = ranges(starts, placed)
        assert not is_special[places].any()
        found[places] += 1
    assert found[~is_special].min() > 40  # 92 in the mean
    starts, placed = placed_in_text(np.random.default_rng(0), sizes, np.arange(30) % 3 == 0)
    assert sorted(placed) == [1, 2, 2] and starts.dtype == np.int64


def test_most():
    assert most(100, lambda n: n * n) == 10
    assert most(0, lambda n: n * n, 3) == 2
    assert most(9, lambda n: n * n, 3) == 3


def test_pairs_of_a_prefix():
    check_ahead(SpanCorruption(), 200)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 1.0}, "objective.rate is 1.0; give a number above 0, below 1"),
        ({"mean_span": 0.5}, "objective.mean_span is 0.5; give 1 or more"),
    ],
)
def test_bad_fields(changes, message):
    with pytest.raises(BadInput, match=message):
        SpanCorruption(**changes).validate()


def test_too_short():
    with pytest.raises(BadInput, match=r"data.sequence_length is 4; span_corruption needs 5"):
        SpanCorruption().lengths(4, "decoder")
