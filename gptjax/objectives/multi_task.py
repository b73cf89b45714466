"""Two tasks in every row: a text with hidden tokens is filled in, and the text after it is written.

ERNIE 3.0 (arXiv 2107.02137) trains a trunk with a module for understanding and one for generation
by several tasks at once. Here the first module's is masked language modelling, with all that
`objectives.masked` can do beside it, and the second one's is to predict each next token; no text is
read twice. A model of one task alone is trained by `masked_lm` or `next_token`.

Deviations: the source masks phrases and entities of knowledge, which needs their lists; it sorts
reordered and distant sentences, of which `sentences` has the forms of ALBERT and StructBERT.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gptjax.data.vocabulary import Vocabulary
from gptjax.errors import BadInput
from gptjax.objectives.base import (
    INPUTS,
    Draw,
    Family,
    Lengths,
    LossSums,
    PartSums,
    Row,
    with_classes,
    with_routing,
)
from gptjax.objectives.masked import MaskedLM


@dataclass(frozen=True)
class MultiTask(MaskedLM):
    """Hidden tokens and next tokens, weighed as if their means were; numbers are those expected.

    `targets` are those of hidden tokens and then the next tokens.
    """

    masked_share: float = 0.5  # of what is minimised; the rest is of the next tokens

    kind: ClassVar[str] = "multi_task"
    families: ClassVar[tuple[Family, ...]] = ("task_modules",)
    # Of the text that is written; hidden tokens are left out of it (`text`).
    likelihood: ClassVar[str] = "text"
    in_place: ClassVar[bool] = False

    def validate(self) -> None:
        super().validate()
        if not 0 < self.masked_share < 1:
            raise BadInput(
                f"objective.masked_share is {self.masked_share}; give a number above 0, below 1 "
                "(for one task alone give --objective=masked_lm or next_token)"
            )

    def lengths(self, length: int, family: Family) -> Lengths:
        raw, hidden = self._sizes(length)
        return Lengths(raw + length, length, hidden + length, source=length, overlap=1)

    def transform(
        self, length: int, family: Family, vocabulary: Vocabulary
    ) -> Callable[[np.ndarray, np.random.Generator, Draw], Row]:
        raw, _ = self._sizes(length)
        hide = super().transform(length, family, vocabulary)

        def row(ids: np.ndarray, rng: np.random.Generator, draw: Draw) -> Row:
            made, text = hide(ids[:raw], rng, draw), np.asarray(ids[raw:], np.int32)
            made["tokens"] = text[:-1]
            made["targets"] = np.concatenate([made["targets"], text[1:]])
            ones = np.ones(length, np.float32)
            made["weights"] = np.concatenate([made["weights"], ones])
            return made

        return row

    def sums(self, apply, batch) -> LossSums:
        given = {name: batch[key] for key, name in INPUTS.items() if key in batch}
        out = apply(batch["tokens"], **given)
        hidden = batch["at"].shape[1]

        def of(part: slice) -> LossSums:
            targets, weights = batch["targets"][:, part], batch["weights"][:, part]
            return self.of_tokens(out, out.hidden_BTD[:, part], targets, weights)

        masked, written = of(slice(hidden)), of(slice(hidden, None))
        count = masked.tokens + written.tokens
        first, second = self._weights(batch["source"].shape[1], batch["tokens"].shape[1])
        total = first * masked.total + second * written.total
        parts = {
            "masked": PartSums(masked.nats, masked.correct, masked.tokens),
            "next": PartSums(written.nats, written.correct, written.tokens),
        }
        nats, correct = masked.nats + written.nats, masked.correct + written.correct
        sums = LossSums(total, nats, correct, count, parts=parts)
        if "label" in batch:
            sums = with_classes(sums, out.rows_BC, batch["label"])
        return with_routing(sums, out)

    def _weights(self, source: int, tokens: int) -> tuple[float, float]:
        """What a hidden token and a next one count in the sum that is minimised.

        By the mean number of hidden tokens, so that no split of a batch changes the sum.
        """
        raw, _ = self._sizes(source)
        hidden = (self.rate + self.shuffle_rate) * raw
        every = hidden + tokens
        return self.masked_share * every / hidden, (1 - self.masked_share) * every / tokens

    def text(self, sums: LossSums, batch) -> tuple:
        hidden = batch["at"].shape[1]
        return sums.parts["next"].nats, batch["targets"][:, hidden:], None
