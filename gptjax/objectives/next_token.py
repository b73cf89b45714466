"""Next-token prediction: the mean negative log-likelihood of each token given those before it.

The z-loss keeps the log-partition near zero (arXiv 2204.02311, section 5).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gptjax.data.loader import shifted
from gptjax.data.vocabulary import Vocabulary
from gptjax.objectives.base import Draw, Family, Lengths, Objective, Row


@dataclass(frozen=True)
class NextToken(Objective):
    """Cross-entropy on `targets`, over chunks of tokens so that logits never exist whole."""

    kind: ClassVar[str] = "next_token"
    families: ClassVar[tuple[Family, ...]] = ("decoder", "task_modules")
    likelihood: ClassVar[str] = "text"

    def lengths(self, length: int, family: Family) -> Lengths:
        return Lengths(length, length, length, overlap=1)

    def roles(self, length: int) -> tuple[str, ...]:
        return ()

    def transform(
        self, length: int, family: Family, vocabulary: Vocabulary
    ) -> Callable[[np.ndarray, np.random.Generator, Draw], Row]:
        return shifted
