"""Denoising: a whole text is predicted from a corrupted one.

BART (arXiv 1910.13461). Text infilling: spans of Poisson lengths, until `rate` of the tokens is
covered, give way to one mask each; a span of no length puts a mask in. Before it, a share of the
sentences may change places among themselves (all of them in BART's large models).

Deviations from fairseq's code: spans begin at any token, not at words, and touch neither each
other nor cover a separator; one is cut so that the share is exact, with its fraction drawn; no
span's mask is replaced by a random token; separators keep their place in the order of sentences,
which may change documents; where masks would be more than the tokens they stand for, as with
spans that are short in the mean, the rest of those put in is left out.

An encoder reads the corrupted text and the decoder begins with the separator; a decoder reads the
corrupted text as a prefix with the separator behind, and goes on with the text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gptjax.data.vocabulary import Vocabulary, sentences
from gptjax.errors import BadInput
from gptjax.objectives.base import Draw, Family, Lengths, Objective, Row
from gptjax.objectives.corruption import (
    check_length,
    check_share,
    conditional_row,
    counted,
    one_for_each,
    pairs_ahead,
    placed_in_text,
    poisson_table,
    ranges,
)


@dataclass(frozen=True)
class Denoising(Objective):
    """Cross-entropy on every token of the text."""

    rate: float = 0.3  # share of tokens in spans
    mean_span: float = 3.0  # of the Poisson law, tokens
    permuted_share: float = 0.0  # of the sentences that change places

    kind: ClassVar[str] = "denoising"
    families: ClassVar[tuple[Family, ...]] = ("encoder_decoder", "decoder")
    # Most of the text stands in what is read: its likelihood given that is one of neither.
    likelihood: ClassVar[str] = "none"
    in_place: ClassVar[bool] = False

    def validate(self) -> None:
        super().validate()
        check_share("rate", self.rate)
        if not 1 <= self.mean_span <= 100:
            raise BadInput(f"objective.mean_span is {self.mean_span}; give 1 to 100 tokens")
        if not 0 <= self.permuted_share <= 1:
            raise BadInput(f"objective.permuted_share is {self.permuted_share}; give 0 to 1")

    def roles(self, length: int) -> tuple[str, ...]:
        return ("mask", "pad")

    def lengths(self, length: int, family: Family) -> Lengths:
        check_length(length, 2, self.kind)
        if family == "encoder_decoder":
            return Lengths(length, length, length, length)
        raw = length // 2
        covered = self.rate * raw
        read = raw - covered + covered / self.mean_span + 1
        return Lengths(raw, length, raw, ahead=pairs_ahead(read))

    def transform(
        self, length: int, family: Family, vocabulary: Vocabulary
    ) -> Callable[[np.ndarray, np.random.Generator, Draw], Row]:
        lengths, separator = self.lengths(length, family), vocabulary.separator
        table, mask = poisson_table(self.mean_span), vocabulary.id("mask")

        def row(ids: np.ndarray, rng: np.random.Generator, draw: Draw) -> Row:
            text = np.asarray(ids, np.int32)
            read = self._permuted(text, rng, vocabulary) if self.permuted_share else text
            source = self._infilled(read, rng, vocabulary, table, mask)
            if family == "decoder":
                source = np.append(source, np.int32(separator))
            return conditional_row(source, text, lengths, family, vocabulary, separator)

        return row

    def _infilled(self, ids, rng, vocabulary: Vocabulary, table, mask: int) -> np.ndarray:
        """int32 [<= n]: the text with its spans replaced."""
        apart = vocabulary.is_special[ids]
        covered = counted(rng, self.rate * int((~apart).sum()))
        if not covered:
            return ids
        sizes = np.searchsorted(table, rng.random(covered), side="right")
        before = np.cumsum(sizes) - sizes
        sizes = np.minimum(sizes, covered - before)[before < covered]
        empty = int((sizes == 0).sum())
        starts, sizes = placed_in_text(rng, sizes[sizes > 0], apart)
        source, _ = one_for_each(ids, starts, sizes, mask)
        empty = min(empty, len(ids) - len(source))
        return np.insert(source, rng.integers(len(source) + 1, size=empty), mask)

    def _permuted(self, ids, rng, vocabulary: Vocabulary) -> np.ndarray:
        """int32 [n]: the text with a share of its sentences in each other's places."""
        starts = np.flatnonzero(np.diff(sentences(ids, vocabulary), prepend=-1))
        sizes = np.diff(starts, append=len(ids))
        movable = np.flatnonzero(~vocabulary.is_special[ids[starts]])
        count = counted(rng, self.permuted_share * len(movable))
        moved = np.sort(rng.permutation(movable)[:count])
        order = np.arange(len(starts))
        order[moved] = rng.permutation(moved)
        return ids[ranges(starts[order], sizes[order])]
