"""Masked language modelling: what is hidden, how often, and the relations of two parts."""

import numpy as np
import pytest

from gptjax.data.tokenizers import ByteTokenizer
from gptjax.data.vocabulary import vocabulary_of, words
from gptjax.errors import BadInput
from gptjax.objectives import MaskedLM
from tests.objectives.rows import SYMBOLS, check_rows, maker, within

PAIRS = ("next", "order", "three_way")


@pytest.mark.parametrize(
    "changes",
    [{}, {"unit": "word"}, {"shuffle_rate": 0.05}, *({"sentences": one} for one in PAIRS)],
)
def test_rows(changes):
    check_rows(MaskedLM(**changes), 61, "encoder")


def test_shares_of_masks_are_as_said():
    make, vocabulary, _ = maker(MaskedLM(), 250, "encoder")
    mask, text, predicted, masked, kept, changed = vocabulary.id("mask"), 0, 0, 0, 0, 0
    for seed in range(400):
        row, ids = make(seed)
        at = row["at"][row["weights"] > 0]
        assert (np.diff(at) > 0).all()
        assert np.array_equal(row["targets"][: len(at)], ids[at])
        assert not np.isin(ids[at], [SYMBOLS, mask]).any()
        others = np.delete(np.arange(250), at)
        assert np.array_equal(row["tokens"][others], ids[others])
        read = row["tokens"][at]
        text += int((ids < SYMBOLS).sum())
        predicted += len(at)
        masked += int((read == mask).sum())
        kept += int((read == ids[at]).sum())
        changed += int(((read != ids[at]) & (read != mask)).sum())
        assert (read != SYMBOLS).all()
    assert text > 95_000
    assert within(predicted, 0.15 * text, 0.5 * 400**0.5)  # a fraction drawn for each row
    # A random token may be the true one.
    for count, p in ((masked, 0.8), (kept, 0.1 + 0.1 / SYMBOLS), (changed, 0.1 - 0.1 / SYMBOLS)):
        assert within(count, p * predicted, (p * (1 - p) * predicted) ** 0.5)


def test_whole_words_are_hidden_together():
    tokenizer = ByteTokenizer()
    vocabulary = vocabulary_of(tokenizer, ["mask"])
    ids = tokenizer.encode("several words, of differing lengths: all of them_are hidden whole " * 2)
    transform = MaskedLM(unit="word", mask_share=1.0).transform(len(ids), "encoder", vocabulary)
    number, rate = words(ids, vocabulary), []
    for seed in range(200):
        row = transform(ids, np.random.default_rng(seed), None)
        hidden = row["tokens"] == 257
        assert (np.bincount(number, hidden) % np.bincount(number) == 0).all()
        rate.append(hidden.mean())
    assert 0.14 < np.mean(rate) < 0.151


def test_shuffled_spans_are_predicted():
    objective = MaskedLM(rate=0.1, shuffle_rate=0.06, mask_share=1.0, random_share=0.0)
    make, vocabulary, _ = maker(objective, 250, "encoder")
    shuffled = text = 0
    for seed in range(100):
        row, ids = make(seed)
        at = row["at"][row["weights"] > 0]
        moved = at[row["tokens"][at] != vocabulary.id("mask")]
        assert np.array_equal(row["targets"][: len(at)], ids[at])
        assert len(moved) % 3 == 0 and (ids[moved] < SYMBOLS).all()
        assert np.array_equal(np.sort(row["tokens"][moved]), np.sort(ids[moved]))
        shuffled += len(moved)
        text += int((ids < SYMBOLS).sum())
    assert within(shuffled, 0.06 * text, 1.5 * 100**0.5)


@pytest.mark.parametrize("sentences", PAIRS)
def test_two_parts(sentences):
    length, runs = 64, 1500
    make, vocabulary, lengths = maker(MaskedLM(sentences=sentences, rate=0.1), length, "encoder")
    assert lengths.raw == 61
    ids = np.arange(61).astype(np.int32)
    ids[[7, 50]] = SYMBOLS  # the longest document is 8 to 49
    cls, sep = vocabulary.id("cls"), vocabulary.id("sep")
    labels = []
    for seed in range(runs):
        row, _ = make(seed, ids)
        whole = row["tokens"].copy()
        whole[row["at"][row["weights"] > 0]] = row["targets"][row["weights"] > 0]
        ends = np.flatnonzero(whole == sep)
        assert whole[0] == cls and len(ends) == 2
        assert not np.isin([0, *ends], row["at"][row["weights"] > 0]).any()
        first, second = whole[1 : ends[0]], whole[ends[0] + 1 : ends[1]]
        size = ends[1] + 1
        assert (row["segments"] == np.where(np.arange(length) < size, 0, -1)).all()
        ones = np.flatnonzero(row["types"])
        assert (ones[0], ones[-1]) == (ends[0] + 1, ends[1])
        label = int(row["label"])
        labels.append(label)
        other = (sentences, label) in (("next", 1), ("three_way", 2))
        if not other:
            parts = (first, second) if label == 0 else (second, first)
            assert np.array_equal(np.concatenate(parts), np.arange(8, 50))
        else:
            assert np.array_equal(first, np.arange(8, 8 + len(first)))
            assert len(second) <= 42 - len(first) and SYMBOLS not in second
    classes = MaskedLM(sentences=sentences).classes()
    share = np.bincount(labels, minlength=classes) / runs
    p = 1 / classes
    assert within(share.max(), p, (p * (1 - p) / runs) ** 0.5)


def test_a_window_without_text_has_no_targets():
    for changes in ({}, {"unit": "word"}, {"sentences": "next", "shuffle_rate": 0.1}):
        make, _, lengths = maker(MaskedLM(**changes), 20, "encoder")
        row, _ = make(0, np.full(lengths.raw, SYMBOLS, np.int32))
        assert not row["weights"].sum() or changes.get("sentences")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0.0}, "objective.rate is 0.0"),
        ({"mask_share": 0.95}, "sum to at most 1"),
        ({"shuffle_rate": 0.9}, "objective.shuffle_rate is 0.9"),
        ({"shuffle_span": 1}, "objective.shuffle_span is 1"),
        ({"unit": "words"}, "did you mean 'word'"),
    ],
)
def test_bad_fields(changes, message):
    with pytest.raises(BadInput, match=message):
        MaskedLM(**changes).validate()


def test_too_short():
    with pytest.raises(BadInput, match=r"data.sequence_length is 4; .* needs 5"):
        MaskedLM(sentences="next").lengths(4, "encoder")
