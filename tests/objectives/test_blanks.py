"""Blank infilling: the two parts of a row and their positions, shares and lengths of spans."""

from math import exp

import numpy as np
import pytest

from gptjax.data.tokenizers import ByteTokenizer
from gptjax.data.vocabulary import vocabulary_of
from gptjax.errors import BadInput
from gptjax.objectives import GLM
from gptjax.objectives.base import Lengths
from gptjax.objectives.blanks import Spans, _row, rebuilt
from gptjax.objectives.corruption import poisson_table
from tests.objectives.rows import SYMBOLS, check_ahead, check_rows, maker, within

TASKS = [{}, {"sentence_share": 1.0}, {"document_share": 1.0}, {"rate": 0.6, "mean_span": 1.0}]


@pytest.mark.parametrize("changes", TASKS)
def test_rows(changes):
    for length in (3, 20, 101):
        check_rows(GLM(**changes), length, "decoder", count=5)


def test_a_row_by_hand():
    class Swapped:
        def permutation(self, count):
            return np.arange(count)[::-1]

    _, vocabulary, _ = maker(GLM(), 16, "decoder")
    mask, sop, eop = (vocabulary.id(role) for role in ("mask", "sop", "eop"))
    spans = Spans(np.array([2, 4]), np.array([1, 2]))
    row = _row(np.arange(1, 7), spans, Swapped(), mask, vocabulary, Lengths(6, 12, 7))
    assert row["tokens"].tolist() == [1, 2, mask, 4, mask, sop, 5, 6, sop, 3, SYMBOLS, SYMBOLS]
    assert row["positions"].tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 2, 2, 0, 0]  # the paper's figure 2
    assert row["block_positions"].tolist() == [0] * 5 + [1, 2, 3, 1, 2, 0, 0]
    assert row["prefix"].tolist() == [True] * 5 + [False] * 7
    assert row["at"].tolist() == [5, 6, 7, 8, 9, 0, 0]
    assert row["targets"].tolist() == [5, 6, eop, 3, eop, SYMBOLS, SYMBOLS]
    assert row["weights"].tolist() == [1.0] * 5 + [0.0] * 2
    assert rebuilt(row).tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("changes", TASKS)
def test_the_text_is_rebuilt(changes):
    make, _, _ = maker(GLM(**changes), 90, "decoder")
    for seed in range(30):
        row, ids = make(seed)
        assert np.array_equal(rebuilt(row), ids)


def test_shares_and_lengths_of_spans():
    make, vocabulary, lengths = maker(GLM(), 256, "decoder")
    covered = text = spans = 0
    for seed in range(500):
        ids = np.random.default_rng(seed).integers(SYMBOLS, size=lengths.raw)
        ids[[40, 150]] = SYMBOLS
        row, _ = make(seed, ids)
        targets = row["targets"][row["weights"] > 0]
        assert SYMBOLS not in targets
        ends = int((targets == vocabulary.id("eop")).sum())
        spans, covered, text = spans + ends, covered + len(targets) - ends, text + len(ids) - 2
    assert text > 100_000
    assert within(covered, 0.15 * text, 0.5 * 500**0.5)
    assert 2.9 < covered / spans < 3.16  # the last of a row is cut


def test_lengths_are_of_a_poisson_law_without_0():
    table, runs = poisson_table(3.0, least=1), 100_000
    sizes = np.searchsorted(table, np.random.default_rng(0).random(runs), side="right") + 1
    mean = 3 / (1 - exp(-3))
    assert sizes.min() == 1
    assert within(sizes.mean(), mean, (mean * (4 - mean) / runs) ** 0.5)
    whole = np.searchsorted(poisson_table(3.0), np.random.default_rng(1).random(runs), side="right")
    assert within((whole == 0).mean(), exp(-3), (exp(-3) / runs) ** 0.5)
    assert within(whole.mean(), 3, (3 / runs) ** 0.5)


def test_sentences_are_whole():
    tokenizer = ByteTokenizer()
    objective = GLM(sentence_share=1.0)
    vocabulary = vocabulary_of(tokenizer, objective.roles(140))
    transform = objective.transform(140, "decoder", vocabulary)
    raw = objective.lengths(140, "decoder").raw
    ids = tokenizer.encode("One is here. Two is 2.5! And three?\n" * 9)[:raw]
    found = {
        b"One is here.",
        b" Two is 2.5!",
        b" And three?\n",
        bytes(ids[raw - raw % 36 :].tolist()),
    }
    for seed in range(40):
        row = transform(ids, np.random.default_rng(seed), None)
        targets = row["targets"][row["weights"] > 0]
        spans = np.split(targets, np.flatnonzero(targets == vocabulary.id("eop")) + 1)[:-1]
        assert {bytes(span[:-1].tolist()) for span in spans} <= found
        assert sum(len(span) - 1 for span in spans) >= 0.15 * raw
        masks = row["tokens"][row["prefix"]] == vocabulary.id("smask")
        assert masks.sum() == len(spans)


def test_the_end_of_a_document():
    make, vocabulary, lengths = maker(GLM(document_share=1.0), 60, "decoder")
    sizes = []
    for seed in range(1000):
        row, ids = make(seed)
        first = row["tokens"][row["prefix"]]
        assert first[-1] == vocabulary.id("gmask")
        targets = row["targets"][row["weights"] > 0]
        sizes.append(len(targets) - 1)
        assert np.array_equal(np.concatenate([first[:-1], targets[:-1]]), ids)
    low = -(-lengths.raw // 2)
    assert (min(sizes), max(sizes)) == (low, lengths.raw)
    spread = lengths.raw - low + 1
    assert within(np.mean(sizes), (low + lengths.raw) / 2, spread / 12**0.5 / 1000**0.5)


def test_tasks_are_drawn_by_their_shares():
    make, vocabulary, _ = maker(GLM(sentence_share=0.2, document_share=0.3), 40, "decoder")
    counts = np.zeros(3)
    for seed in range(900):
        row, _ = make(seed)
        first = row["tokens"][row["prefix"]]
        for task, role in enumerate(("mask", "smask", "gmask")):
            counts[task] += vocabulary.id(role) in first
    for share, count in zip((0.5, 0.2, 0.3), counts, strict=True):
        assert within(count, share * 900, (share * (1 - share) * 900) ** 0.5)


def test_windows_of_many_separators():
    for changes in TASKS[:2]:
        make, _, lengths = maker(GLM(**changes), 40, "decoder")
        ids = np.full(lengths.raw, SYMBOLS, np.int32)
        row, _ = make(0, ids)
        assert not row["weights"].any()
        ids[::2] = 5
        row, _ = make(0, ids)
        assert SYMBOLS not in row["targets"][row["weights"] > 0]


def test_pairs_of_a_prefix():
    check_ahead(GLM(), 200)
    check_ahead(GLM(document_share=0.5), 200)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0.0}, "objective.rate is 0.0"),
        ({"mean_span": 0.1}, "objective.mean_span is 0.1; give 0.5 to 100"),
        ({"document_low": 2.0}, "objective.document_low is 2.0"),
        ({"sentence_share": 0.7, "document_share": 0.7}, "sum to at most 1"),
    ],
)
def test_bad_fields(changes, message):
    with pytest.raises(BadInput, match=message):
        GLM(**changes).validate()
