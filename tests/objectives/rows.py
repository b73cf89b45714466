"""Rows of objectives as the tests make them, and what holds for every one."""

import numpy as np

from gptjax.data.tokenizers import SymbolTokenizer
from gptjax.data.vocabulary import vocabulary_of
from gptjax.objectives.base import Objective

SYMBOLS = 127  # ids 0 to 126, the separator is 127


def text(rng: np.random.Generator, count: int) -> np.ndarray:
    """Ids of random text with a separator in every 50 tokens."""
    ids = rng.integers(SYMBOLS, size=count).astype(np.int32)
    ids[rng.random(count) < 0.02] = SYMBOLS
    return ids


def maker(objective: Objective, length: int, family: str):
    """`make(seed, ids=None) -> (row, ids)`, with the vocabulary and the lengths."""
    objective.validate()
    vocabulary = vocabulary_of(SymbolTokenizer(SYMBOLS), objective.roles(length))
    lengths = objective.lengths(length, family)
    transform = objective.transform(length, family, vocabulary)

    def make(seed: int, ids=None):
        rng = np.random.Generator(np.random.Philox(seed))
        given = text(np.random.default_rng(seed), lengths.raw + lengths.overlap)
        ids = given if ids is None else ids
        kept = ids.copy()
        row = transform(ids, rng, text)
        assert np.array_equal(ids, kept), "the corpus is only read"
        return row, ids

    return make, vocabulary, lengths


def check_rows(objective: Objective, length: int, family: str, count: int = 8) -> None:
    """Shapes and dtypes as said, the same row for the same seed, targets where `at` says."""
    make, vocabulary, lengths = maker(objective, length, family)
    assert family in objective.families
    shapes = {
        **dict.fromkeys(("targets", "weights", "at"), (lengths.predicted,)),
        **dict.fromkeys(("source", "source_segments"), (lengths.source,)),
        "label": (),
    }
    keys = None
    for seed in range(count):
        row, ids = make(seed)
        again, _ = make(seed, ids.astype(np.int8))  # in which special ids have no room
        keys = keys or row.keys()
        assert row.keys() == again.keys() == keys
        for name, value in row.items():
            kind = {"weights": np.float32, "prefix": bool}.get(name, np.int32)
            assert value.dtype == kind, name
            assert value.shape == shapes.get(name, (lengths.tokens,)), name
            assert np.array_equal(value, again[name]), name
        for name in ("tokens", "targets", "source"):
            if name in row:
                assert row[name].min() >= 0 and row[name].max() < vocabulary.total
        if "at" in row:
            assert row["at"].min() >= 0 and row["at"].max() < lengths.tokens
            if "weights" in row:
                assert not row["at"][row["weights"] == 0].any()


def check_ahead(objective: Objective, length: int) -> None:
    """The pairs that a prefix adds, in the mean of a decoder's rows, are those of `lengths`."""
    make, _, lengths = maker(objective, length, "decoder")
    sizes = np.array([make(seed)[0]["prefix"].sum() for seed in range(300)])
    pairs = sizes * (sizes - 1) / 2
    assert abs(pairs.mean() - lengths.ahead) <= 0.03 * lengths.ahead + 3 * pairs.std() / 300**0.5


def within(count: float, expected: float, error: float) -> bool:
    """Whether a measured figure is within three standard errors."""
    return abs(count - expected) <= 3 * error
