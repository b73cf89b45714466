"""Prefix language modelling: a text is read up to a random place, the rest of it is predicted.

The PrefixLM of T5 (arXiv 1910.10683, section 3.2.2) and UniLM (arXiv 1905.03197). A decoder reads
the beginning in both directions or causally, and its last token predicts the first of the rest; an
encoder reads it apart from the decoder, which begins with the separator. All three predict the same
tokens of the same windows. T5 draws the place among all; here it is uniform between two shares, so
that neither part is ever nearly empty.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor
from typing import ClassVar

import numpy as np

from gptjax.data.vocabulary import Vocabulary
from gptjax.errors import BadInput
from gptjax.objectives.base import Draw, Family, Lengths, Row
from gptjax.objectives.corruption import (
    Conditional,
    check_length,
    check_share,
    conditional_row,
    pairs_ahead,
)


@dataclass(frozen=True)
class PrefixLM(Conditional):
    """Cross-entropy on what follows the prefix."""

    low: float = 0.25  # least share of the tokens in the prefix
    high: float = 0.75  # largest

    kind: ClassVar[str] = "prefix_lm"
    families: ClassVar[tuple[Family, ...]] = ("decoder", "encoder_decoder")
    likelihood: ClassVar[str] = "continuation"

    def validate(self) -> None:
        super().validate()
        check_share("low", self.low)
        check_share("high", self.high)
        if self.low > self.high:
            raise BadInput(
                f"objective.low is {self.low}, above objective.high={self.high}; give less or as "
                "much"
            )

    def roles(self, length: int) -> tuple[str, ...]:
        return ("pad",)

    def row_length(self, raw: int, family: Family) -> int:
        return raw

    def lengths(self, length: int, family: Family) -> Lengths:
        self.check_family(family)
        low, high = self._sizes(length)
        predicted = length + 1 - low
        if family == "encoder_decoder":
            return Lengths(length, predicted, predicted, high, overlap=1)
        pairs = float(np.mean(pairs_ahead(np.arange(low, high + 1))))
        return Lengths(length, length, predicted, overlap=1, ahead=self.ahead(pairs))

    def _sizes(self, length: int) -> tuple[int, int]:
        """The least and the largest size of a prefix."""
        check_length(length, 2, self.kind)
        low = min(max(ceil(self.low * length), 1), length - 1)
        return low, max(min(floor(self.high * length), length - 1), low)

    def transform(
        self, length: int, family: Family, vocabulary: Vocabulary
    ) -> Callable[[np.ndarray, np.random.Generator, Draw], Row]:
        lengths, (low, high) = self.lengths(length, family), self._sizes(length)

        def row(ids: np.ndarray, rng: np.random.Generator, draw: Draw) -> Row:
            size = int(rng.integers(low, high + 1))
            parts = ids[:size], ids[size:]
            start = vocabulary.separator
            return conditional_row(
                *parts, lengths, family, vocabulary, start, low == high, self.reading
            )

        return row
