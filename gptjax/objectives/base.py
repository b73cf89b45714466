"""What every objective offers: how text becomes a row of a batch, and the loss of a batch.

The first half is numpy and runs in the data pipeline, one row at a time, from a generator that the
row's place in the order of the run seeds; the second is jax and calls a model through `apply`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np

from gptjax.data.loader import Row
from gptjax.data.vocabulary import Vocabulary
from gptjax.errors import BadInput, check_types

if TYPE_CHECKING:  # a list of experiments needs no jax
    import jax

Family = Literal["decoder", "encoder", "encoder_decoder", "two_stream", "task_modules"]
FAMILIES: tuple[Family, ...] = get_args(Family)
Draw = Callable[[np.random.Generator, int], np.ndarray]
# What a model is given beside tokens, by the names that its module has for them.
INPUTS = {
    "positions": "positions_BT",
    "segments": "segments_BT",
    "types": "types_BT",
    "prefix": "prefix_BT",
    "block_positions": "block_positions_BT",
    "order": "order_BT",
    "at": "at_BP",
    "source": "source_BS",
    "source_segments": "source_segments_BS",
    "source_types": "source_types_BS",
}


class Lengths(NamedTuple):
    """How many tokens a row takes and gives; everything is filled up to these.

    raw: ids of the corpus, after which the next row begins; overlap: ids beyond them that are read
    too; tokens: of what a model predicts from; source: of what is read apart, by an encoder;
    predicted: of targets, those of weight 0 among them; ahead: pairs of a token and a later one of
    a prefix, which the token reads too, in the mean.
    """

    raw: int
    tokens: int
    predicted: int
    source: int = 0
    overlap: int = 0
    ahead: float = 0.0


class PartSums(NamedTuple):
    """Sums over a part of what is predicted in a batch, and of how much; float32 scalars."""

    nats: "jax.Array"
    correct: "jax.Array"
    count: "jax.Array"


class LossSums(NamedTuple):
    """Sums over the predicted tokens of a batch; float32 scalars.

    `total` is what is differentiated: nats plus auxiliary terms. `routing`: of a model with
    experts the sums of what its routers tell (`models.experts.Routing`), times the tokens.
    `parts`: by name, what is told apart: "row" is of the classes of rows, which are no tokens.
    """

    total: "jax.Array"
    nats: "jax.Array"
    correct: "jax.Array"
    tokens: "jax.Array"
    routing: Any = None
    parts: "dict[str, PartSums] | None" = None


@dataclass(frozen=True)
class Objective(ABC):
    """Base of all objectives; the fields are those of the loss over the vocabulary.

    A row that `transform` gives has int32 arrays, unless said otherwise: `tokens` [T], `targets`
    [P], float32 `weights` [P] (0 where nothing is predicted; absent: 1 everywhere), and of these
    what the model needs: `at` [P] (the places of `tokens` whose output predicts the targets;
    absent: all), `positions`, `segments`, `types`, `block_positions`, `order` [T], bool `prefix`
    [T] (tokens that every other one may read), `source`, `source_segments` [S] (-1: filled up) of
    an encoder-decoder, and `label` [] (a class of the row).
    """

    z_loss: float = 0.0
    chunk_tokens: int = 0  # tokens whose logits exist at once on a device; 0: 128 MB of logits

    kind: ClassVar[str] = ""  # its name on the command line and in a run's files
    families: ClassVar[tuple[Family, ...]] = ()  # of models that can carry it
    # What its loss is the likelihood of: whole text, text after a prefix, blanks in the rest of a
    # text, or nothing (tokens that are predicted apart from each other).
    likelihood: ClassVar[Literal["text", "continuation", "blanks", "none"]] = "none"
    # Whether tokens stay in their places, so that attention can be kept within documents.
    in_place: ClassVar[bool] = True

    @abstractmethod
    def lengths(self, length: int, family: Family) -> Lengths:
        """The sizes of a row for `data.sequence_length`; BadInput where it is too short."""

    @abstractmethod
    def roles(self, length: int) -> tuple[str, ...]:
        """The special tokens that rows need, such as "mask" or "sentinel_0"."""

    @abstractmethod
    def transform(
        self, length: int, family: Family, vocabulary: Vocabulary
    ) -> Callable[[np.ndarray, np.random.Generator, Draw], Row]:
        """A function of int ids [raw + overlap], a generator, and of a drawer of other text.

        The drawer gives so many ids from a random place of the same split.
        """

    def classes(self) -> int:
        """Of the label of a row; 0: rows have none."""
        return 0

    def validate(self) -> None:
        """BadInput, in one line, for an objective that cannot be."""
        check_types("objective", self)
        for name in ("z_loss", "chunk_tokens"):
            if getattr(self, name) < 0:
                raise BadInput(f"objective.{name} is {getattr(self, name)}; give 0 or more")

    def sums(self, apply, batch) -> LossSums:
        """The loss of a batch; `apply(tokens_BT, NAME=...)` gives a model's `Output`."""
        given = {name: batch[key] for key, name in INPUTS.items() if key in batch}
        out = apply(batch.get("tokens"), **given)
        sums = self.of_tokens(out, out.hidden_BTD, batch["targets"], batch.get("weights"))
        if "label" in batch:
            sums = with_classes(sums, out.rows_BC, batch["label"])
        return with_routing(sums, out)

    def of_tokens(self, out, hidden_BTD, targets_BT, weights_BT) -> LossSums:
        """The loss of targets, from hidden states that meet the head of an `Output`."""
        from gptjax.ops.vocab_loss import vocab_loss

        total, stats = vocab_loss(
            hidden_BTD,
            out.head_VD,
            targets_BT,
            weights_BT,
            head_bias_V=out.head_bias_V,
            z_loss=self.z_loss,
            chunk_tokens=self.chunk_tokens or None,
        )
        return LossSums(total, stats.cross_entropy, stats.correct, stats.weight_sum)

    def text(self, sums: LossSums, batch) -> tuple:
        """Nats of the text that the loss is the likelihood of, its targets and their weights.

        Of sums and a batch on the host; weights are None where they are 1 everywhere.
        """
        return sums.nats, batch["targets"], batch.get("weights")


def with_classes(sums: LossSums, logits_BC, label_B) -> LossSums:
    """The sums of a batch with the loss of its rows' classes.

    Its mean over rows counts as much as that of the tokens over tokens (arXiv 1810.04805).
    """
    import jax
    import jax.numpy as jnp

    logprobs_BC = jax.nn.log_softmax(logits_BC.astype(jnp.float32), -1)
    chosen_BC = jax.nn.one_hot(label_B, logits_BC.shape[-1], dtype=jnp.float32)
    nats = -(logprobs_BC * chosen_BC).sum()
    hits = (logprobs_BC.argmax(-1) == label_B).astype(jnp.float32).sum()
    rows = jnp.float32(len(label_B))
    total = sums.total + jax.lax.stop_gradient(sums.tokens) / rows * nats
    parts = (sums.parts or {}) | {"row": PartSums(nats, hits, rows)}
    return sums._replace(total=total, parts=parts)


def with_routing(sums: LossSums, out) -> LossSums:
    """The sums of a batch with what the routers of a model's `Output` add to every token."""
    if out.routing is None:
        return sums
    routing = type(out.routing)(*(sums.tokens * one for one in out.routing))
    return sums._replace(total=sums.total + sums.tokens * out.auxiliary, routing=routing)
