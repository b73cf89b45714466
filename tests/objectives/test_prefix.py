"""Prefix language modelling: where the text is split, and what predicts what."""

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.objectives import PrefixLM
from gptjax.objectives.corruption import parts_of
from tests.objectives.rows import SYMBOLS, check_ahead, check_rows, maker, within


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_rows(family):
    for length in (2, 3, 61):
        check_rows(PrefixLM(), length, family)
    check_rows(PrefixLM(low=0.5, high=0.5), 61, family)


def test_a_decoder_predicts_what_follows():
    make, _, lengths = maker(PrefixLM(), 20, "decoder")
    assert lengths[:5] == (20, 20, 16, 0, 1)
    sizes = []
    for seed in range(2000):
        row, ids = make(seed)
        size = int(row["prefix"].sum())
        assert row["prefix"][:size].all() and np.array_equal(row["tokens"], ids[:20])
        predicted = row["weights"] > 0
        assert row["at"][predicted].tolist() == list(range(size - 1, 20))
        assert np.array_equal(row["targets"][predicted], ids[size:])
        sizes.append(size)
    counts = np.bincount(sizes)
    assert (np.flatnonzero(counts)[[0, -1]] == [5, 15]).all()
    assert within(np.mean(sizes), 10, (10 / 2000) ** 0.5)
    assert within(counts.max(), 2000 / 11, (2000 / 11) ** 0.5)


def test_an_encoder_reads_the_prefix():
    make, vocabulary, lengths = maker(PrefixLM(), 20, "encoder_decoder")
    assert lengths[:5] == (20, 16, 16, 15, 1)
    for seed in range(50):
        row, ids = make(seed)
        source, targets = parts_of(row)
        assert np.array_equal(np.concatenate([source, targets]), ids)
        assert row["tokens"][0] == SYMBOLS == vocabulary.separator
        assert np.array_equal(row["tokens"][1 : len(targets)], targets[:-1])
        assert row["weights"].sum() == len(targets)
        assert (row["source_segments"] >= 0).sum() == len(source)


def test_one_place_for_all_rows_fills_nothing_up():
    objective = PrefixLM(low=0.5, high=0.5)
    for family, sizes in (("decoder", (20, 20, 11, 0)), ("encoder_decoder", (20, 11, 11, 10))):
        make, _, lengths = maker(objective, 20, family)
        row, _ = make(0)
        assert lengths[:4] == sizes and not {"weights", "source_segments"} & row.keys()
        assert [len(x) for x in parts_of(row)] == [10, 11]


def test_pairs_of_a_prefix():
    check_ahead(PrefixLM(), 200)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": 0.0}, "objective.low is 0.0"),
        ({"high": 1.0}, "objective.high is 1.0"),
        ({"low": 0.8}, r"objective.low is 0.8, above objective.high=0.75"),
    ],
)
def test_bad_fields(changes, message):
    with pytest.raises(BadInput, match=message):
        PrefixLM(**changes).validate()
