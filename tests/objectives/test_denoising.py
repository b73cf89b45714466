"""Denoising: what is read of a text, how much of it, and that all of it is predicted."""

from math import exp

import numpy as np
import pytest

from gptjax.data.tokenizers import ByteTokenizer
from gptjax.data.vocabulary import vocabulary_of
from gptjax.errors import BadInput
from gptjax.objectives import Denoising
from gptjax.objectives.corruption import one_for_each, parts_of
from tests.objectives.rows import SYMBOLS, check_ahead, check_rows, maker, within

FAMILIES = ("encoder_decoder", "decoder")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"permuted_share": 1.0}, {"rate": 0.9, "mean_span": 1.0}])
def test_rows(family, changes):
    for length in (2, 9, 100):
        check_rows(Denoising(**changes), length, family, count=5)


def test_one_mask_for_each_span():
    text, masks = one_for_each(np.arange(8), np.array([1, 5]), np.array([2, 3]), 99)
    assert text.tolist() == [0, 99, 3, 4, 99] and masks.tolist() == [1, 4]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_is_predicted(family):
    make, vocabulary, _ = maker(Denoising(), 80, family)
    for seed in range(30):
        row, ids = make(seed)
        source, targets = parts_of(row)
        assert np.array_equal(targets, ids) and len(ids) == (80 if family != "decoder" else 40)
        whole = source[source != vocabulary.id("mask")].tolist()
        if family == "decoder":
            assert whole.pop() == SYMBOLS
            assert row["tokens"][row["at"][0]] == SYMBOLS
            assert np.array_equal(row["tokens"][row["at"][1:]], ids[:-1])
        else:
            assert row["tokens"].tolist() == [SYMBOLS, *ids[:-1]]
        rest = iter(ids.tolist())
        assert all(one in rest for one in whole)  # in their order
        assert whole.count(SYMBOLS) == np.count_nonzero(ids == SYMBOLS)


def test_shares_of_masks():
    make, vocabulary, _ = maker(Denoising(), 256, "encoder_decoder")
    text = covered = masks = 0
    for seed in range(400):
        row, ids = make(seed, np.random.default_rng(seed).integers(SYMBOLS, size=256))
        source, _ = parts_of(row)
        now = int((source == vocabulary.id("mask")).sum())
        text, masks, covered = text + len(ids), masks + now, covered + len(ids) - len(source) + now
    assert text > 100_000
    assert within(covered, 0.3 * text, 0.5 * 400**0.5)
    # Renewals of a Poisson law, with the one that is cut: covered / 3 and about 2/3 a row.
    assert within(masks, covered / 3 + 0.67 * 400, (400 * 77 / 9) ** 0.5)


def test_spans_of_no_length_put_masks_in():
    make, vocabulary, _ = maker(Denoising(), 256, "encoder_decoder")
    spans = put_in = 0
    for seed in range(300):
        row, _ = make(seed, np.arange(256) % SYMBOLS)
        source, _ = parts_of(row)
        is_mask = source == vocabulary.id("mask")
        # Between neighbours of the text that follow each other, masks stand for nothing.
        rest, gaps = source[~is_mask], np.diff(np.flatnonzero(~is_mask)) - 1
        put_in += gaps[(rest[1:] - rest[:-1]) % SYMBOLS == 1].sum()
        spans += is_mask.sum()
    assert 0.6 * exp(-3) < put_in / spans < 1.1 * exp(-3)  # some stand beside other masks


def test_sentences_change_places():
    tokenizer = ByteTokenizer()
    objective = Denoising(permuted_share=1.0)
    vocabulary = vocabulary_of(tokenizer, objective.roles(60))
    ids = np.append(tokenizer.encode("A b. C d! E f? G h.\nI.\nJ k. L m. N o"), [256, 65, 66])
    found = set()
    for seed in range(60):
        read = objective._permuted(ids, np.random.default_rng(seed), vocabulary)
        found.add(tokenizer.decode(read[:3]))
        assert np.array_equal(np.sort(read), np.sort(ids))
        text = tokenizer.decode(read)
        assert all(one in text for one in ("A b.", " C d!", " G h.\n", "I.\n", " N o"))
    assert {"A b", " C ", "I.\n", " N "} <= found
    half = Denoising(permuted_share=0.25)
    moved = [half._permuted(ids, np.random.default_rng(seed), vocabulary) for seed in range(60)]
    assert sum(read[0] == ids[0] for read in moved) > 30


def test_a_window_without_text():
    make, _, lengths = maker(Denoising(permuted_share=1.0), 30, "encoder_decoder")
    row, ids = make(0, np.full(lengths.raw, SYMBOLS, np.int32))
    assert np.array_equal(row["source"], ids)


def test_pairs_of_a_prefix():
    check_ahead(Denoising(), 200)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 1.0}, "objective.rate is 1.0"),
        ({"mean_span": 0.5}, "objective.mean_span is 0.5; give 1 to 100"),
        ({"permuted_share": 1.5}, "objective.permuted_share is 1.5; give 0 to 1"),
    ],
)
def test_bad_fields(changes, message):
    with pytest.raises(BadInput, match=message):
        Denoising(**changes).validate()
