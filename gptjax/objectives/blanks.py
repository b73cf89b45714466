"""Autoregressive blank infilling: spans give way to one mask each, and are generated behind.

GLM (arXiv 2103.10360). A row is part A, the text in which a mask stands for each span, which all
tokens read, and part B, the spans in random order, each behind [sop] and predicted up to [eop].
`positions` of part B are those of the spans' masks in part A, `block_positions` count from 1 in a
span and are 0 in part A.

A row has one of three tasks: spans of Poisson lengths, never 0, until `rate` of the tokens is
covered; whole sentences, of the mask [sMASK], until as much is; the end of the window, of the
mask [gMASK]. Deviations from GLM's code: one span is cut so that the share is exact, with its
fraction drawn; spans, which there are placed document by document, go elsewhere if they would cover
a separator; the end of a window may begin in an earlier document than the last.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, exp, sqrt
from typing import ClassVar, NamedTuple

import numpy as np

from gptjax.data.vocabulary import Vocabulary, sentences
from gptjax.errors import BadInput
from gptjax.objectives.base import Draw, Family, Lengths, Objective, Row
from gptjax.objectives.corruption import (
    check_length,
    check_share,
    counted,
    filled,
    most,
    one_for_each,
    pairs_ahead,
    placed_in_text,
    poisson_table,
    ranges,
)


class Spans(NamedTuple):
    """Ascending, apart from each other or side by side: int64 [spans] each."""

    starts: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class GLM(Objective):
    """Cross-entropy on the spans and on where each of them ends."""

    rate: float = 0.15  # share of tokens in spans, in rows of spans and of sentences
    mean_span: float = 3.0  # of the Poisson law, tokens; without 0 its mean is a little higher
    sentence_share: float = 0.0  # of the rows: sentences
    document_share: float = 0.0  # of the rows: the end of the window
    document_low: float = 0.5  # least share of a window that is its end; any up to all is as likely

    kind: ClassVar[str] = "glm"
    families: ClassVar[tuple[Family, ...]] = ("decoder",)
    likelihood: ClassVar[str] = "blanks"
    in_place: ClassVar[bool] = False

    def validate(self) -> None:
        super().validate()
        check_share("rate", self.rate)
        if not 0.5 <= self.mean_span <= 100:
            raise BadInput(f"objective.mean_span is {self.mean_span}; give 0.5 to 100 tokens")
        for name in ("sentence_share", "document_share", "document_low"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"objective.{name} is {getattr(self, name)}; give 0 to 1")
        if self.sentence_share + self.document_share > 1 + 1e-9:
            raise BadInput(
                f"objective.sentence_share and document_share are {self.sentence_share} and "
                f"{self.document_share}; give two that sum to at most 1"
            )

    def roles(self, length: int) -> tuple[str, ...]:
        masks = ["mask"]
        masks += ["smask"] * (self.sentence_share > 0) + ["gmask"] * (self.document_share > 0)
        return (*masks, "sop", "eop", "pad")

    def lengths(self, length: int, family: Family) -> Lengths:
        def size(count: int) -> int:
            return count + 2 * self._most_spans(count)

        check_length(length, size(1), self.kind)
        raw = most(length, size)
        covered = ceil(self.rate * raw)
        if self.sentence_share or self.document_share:
            covered = raw
        predicted = covered + self._most_spans(raw)
        return Lengths(raw, length, predicted, ahead=self._ahead(raw))

    def _ahead(self, raw: int) -> float:
        """The mean over tasks, of those that cover as much as they have to and no more."""
        covered = self.rate * raw
        left = pairs_ahead(raw - covered + covered / self._mean)
        size = np.arange(max(ceil(self.document_low * raw), 1), raw + 1)
        end = float(np.mean(pairs_ahead(raw - size + 1)))
        return self.document_share * end + (1 - self.document_share) * left

    @property
    def _mean(self) -> float:
        """The mean length of spans: of the Poisson law without 0."""
        return self.mean_span / (1 - exp(-self.mean_span))

    def _most_spans(self, count: int) -> int:
        """Of so many tokens: three standard deviations above the mean, as far as they exist."""
        covered = ceil(self.rate * count)
        mean = self._mean
        variance = mean * (1 + self.mean_span - mean)
        spans = covered / mean + 1 + 3 * sqrt(covered * variance / mean**3)
        return max(min(ceil(spans), covered, count - covered + 1), 1)

    def transform(
        self, length: int, family: Family, vocabulary: Vocabulary
    ) -> Callable[[np.ndarray, np.random.Generator, Draw], Row]:
        lengths = self.lengths(length, family)
        spans = self._most_spans(lengths.raw)
        table = poisson_table(self.mean_span, least=1)
        mask = vocabulary.id("mask")

        def row(ids: np.ndarray, rng: np.random.Generator, draw: Draw) -> Row:
            task = rng.random()
            if task < self.document_share:
                size = int(rng.integers(max(ceil(self.document_low * len(ids)), 1), len(ids) + 1))
                found = Spans(np.array([len(ids) - size]), np.array([size]))
                return _row(ids, found, rng, vocabulary.id("gmask"), vocabulary, lengths)
            if task < self.document_share + self.sentence_share:
                found = self._sentences(ids, rng, vocabulary, spans)
                return _row(ids, found, rng, vocabulary.id("smask"), vocabulary, lengths)
            found = self._drawn(ids, rng, vocabulary, spans, table)
            return _row(ids, found, rng, mask, vocabulary, lengths)

        return row

    def _drawn(self, ids, rng, vocabulary: Vocabulary, spans: int, table) -> Spans:
        """Spans of random lengths at random places between the separators."""
        apart = vocabulary.is_special[ids]
        covered = counted(rng, self.rate * int((~apart).sum()))
        sizes = np.searchsorted(table, rng.random(spans), side="right") + 1
        sizes = np.diff(np.minimum(np.cumsum(sizes), covered), prepend=0)
        return Spans(*placed_in_text(rng, sizes[sizes > 0], apart))

    def _sentences(self, ids, rng, vocabulary: Vocabulary, spans: int) -> Spans:
        """Whole sentences in random order, until they cover enough."""
        numbers = sentences(ids, vocabulary)
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        sizes = np.diff(starts, append=len(ids))
        order = rng.permutation(np.flatnonzero(~vocabulary.is_special[ids[starts]]))
        before = np.cumsum(sizes[order]) - sizes[order]
        chosen = np.sort(order[before < self.rate * len(ids)][:spans])
        return Spans(starts[chosen], sizes[chosen])


def _row(ids, spans: Spans, rng, mask: int, vocabulary: Vocabulary, lengths: Lengths) -> Row:
    """Parts A and B of a row, filled up."""
    starts, sizes = spans
    first, masks = one_for_each(ids, starts, sizes, mask)
    order = rng.permutation(len(starts))
    starts, sizes, masks = starts[order], sizes[order], masks[order]
    span = np.asarray(ids, np.int32)[ranges(starts, sizes)]
    begins = np.cumsum(sizes) - sizes
    second = np.insert(span, begins, vocabulary.id("sop"))
    targets = np.insert(span, begins + sizes, vocabulary.id("eop"))

    T, P, pad = lengths.tokens, lengths.predicted, vocabulary.id("pad")
    inside = ranges(np.ones_like(sizes), sizes + 1)
    places = [np.arange(len(first)), np.repeat(masks, sizes + 1)]
    return {
        "tokens": filled(np.concatenate([first, second]), T, pad),
        "positions": filled(np.concatenate(places), T),
        "block_positions": filled(np.concatenate([np.zeros(len(first)), inside]), T),
        "prefix": np.arange(T) < len(first),
        "at": filled(len(first) + np.arange(len(second)), P),
        "targets": filled(targets, P, pad),
        "weights": filled(np.ones(len(second)), P, 0.0, np.float32),
    }


def rebuilt(row: Row) -> np.ndarray:
    """int32: the text of which a row of `GLM` was made."""
    predicted = row["weights"] > 0
    at, targets = row["at"][predicted], row["targets"][predicted]
    begins = np.flatnonzero(row["block_positions"][at] == 1)
    masks = row["positions"][at[begins]].tolist()
    spans = dict(zip(masks, np.split(targets, begins)[1:], strict=True))
    first = row["tokens"][row["prefix"]].tolist()
    parts = [spans[i][:-1] if i in spans else [token] for i, token in enumerate(first)]
    return np.concatenate(parts).astype(np.int32)
