"""Permutation language modelling: some tokens are predicted one after another in a random order.

XLNet (arXiv 1906.08237), partial prediction. The predicted tokens are chosen as its data code
does: spans of 1 to `max_span` tokens, of n with a chance in proportion to 1/n, each at a random
place in a context of n / rate further tokens, and single tokens at random for what is missing.

`order` is a token's rank in the factorisation. Tokens that are not predicted have the rank 0 and
see each other, whatever their places; the predicted ones have the ranks 1, 2, ... in a random
order. The content of a token is read by content of the same or a higher rank and by queries of a
higher rank, so a predicted token sees all of rank 0, those predicted before it, and not itself.

Deviations: a span counts tokens, in XLNet whole words; how many are predicted is drawn so that
its mean is exactly `rate` of the text, there it is fixed; the order runs over the whole window,
there over parts of it; separators are read as any other token, there [SEP] and [CLS] have ranks
among the predicted ones. There is no memory and there are no pairs of texts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import numpy as np

from gptjax.data.vocabulary import Vocabulary
from gptjax.errors import BadInput
from gptjax.objectives.base import Draw, Family, Lengths, Objective, Row
from gptjax.objectives.corruption import check_length, check_share, counted, filled, ranges


@dataclass(frozen=True)
class PermutationLM(Objective):
    """Cross-entropy on the predicted tokens, of the query stream at their places."""

    rate: float = 1 / 6  # share of tokens that are predicted
    max_span: int = 5  # tokens

    kind: ClassVar[str] = "permutation_lm"
    families: ClassVar[tuple[Family, ...]] = ("two_stream",)
    # Each predicted token sees those before it in the order: together they are the likelihood of
    # what is missing, given the rest, in the order that was drawn.
    likelihood: ClassVar[str] = "blanks"

    def validate(self) -> None:
        super().validate()
        check_share("rate", self.rate)
        if not 1 <= self.max_span <= 1000:
            raise BadInput(f"objective.max_span is {self.max_span}; give 1 to 1000 tokens")

    def roles(self, length: int) -> tuple[str, ...]:
        return ()

    def lengths(self, length: int, family: Family) -> Lengths:
        check_length(length, 2, self.kind)
        return Lengths(length, length, ceil(self.rate * length))

    def transform(
        self, length: int, family: Family, vocabulary: Vocabulary
    ) -> Callable[[np.ndarray, np.random.Generator, Draw], Row]:
        predicted = self.lengths(length, family).predicted
        chances = np.cumsum(1 / np.arange(1, self.max_span + 1))
        chances /= chances[-1]

        def row(ids: np.ndarray, rng: np.random.Generator, draw: Draw) -> Row:
            text = ~vocabulary.is_special[ids]
            count = counted(rng, self.rate * int(text.sum()))
            at = self._chosen(text, count, rng, chances)
            order = np.zeros(length, np.int32)
            order[at] = rng.permutation(len(at)) + 1
            tokens = np.array(ids, np.int32)
            return {
                "tokens": tokens,
                "order": order,
                "at": filled(at, predicted),
                "targets": filled(tokens[at], predicted),
                "weights": filled(np.ones(len(at)), predicted, 0.0, np.float32),
            }

        return row

    def _chosen(self, text: np.ndarray, count: int, rng, chances: np.ndarray) -> np.ndarray:
        """Sorted int64 [count]: places of text, most of them in spans."""
        taken = np.zeros(len(text), bool)
        draws = rng.random((2, ceil(self.rate * len(text))))
        sizes = np.searchsorted(chances[:-1], draws[0], side="right") + 1
        sizes = np.diff(np.minimum(np.cumsum(sizes), count), prepend=0)
        context = np.floor(sizes / self.rate + 1e-9).astype(np.int64)
        ends = np.cumsum(sizes + context)
        starts = ends - sizes - context + (draws[1] * context).astype(np.int64)
        fits = starts + sizes <= len(text)
        taken[ranges(starts[fits], sizes[fits])] = True
        taken &= text
        missing = count - int(taken.sum())
        taken[rng.permutation(np.flatnonzero(text & ~taken))[:missing]] = True
        return np.flatnonzero(taken)
