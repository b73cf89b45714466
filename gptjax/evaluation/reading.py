"""What a continuation begins with: tokens, a prefix read both ways, a source that an encoder reads.

Rows of a batch differ in all of it, and each is what it would be alone. Tokens of a prompt that is
read both ways go through the model at once; the loop that comes after them forces the longer
prompts of a batch into the row as it does elsewhere, and leaves their keys and values as they are.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.errors import BadInput
from gptjax.models.config import TransformerConfig
from gptjax.ops.patterns import Bidirectional, Causal


@dataclass(frozen=True, eq=False)
class Given:
    """What one continuation begins with, as ids.

    tokens: int32 [P], 1 or more, that stand before it; of an encoder-decoder the token that its
    decoder begins with. source: int32 [S] that an encoder reads. prefix: how many of the tokens are
    read by all others. positions, blocks: int32 [P] of the tokens where they are not their places
    (GLM): those of the continuation stay at the last position, and count on from the last block's.
    """

    tokens: np.ndarray
    source: np.ndarray | None = None
    prefix: int = 0
    positions: np.ndarray | None = None
    blocks: np.ndarray | None = None


class Reading(NamedTuple):
    """What a model is given beside the tokens of its rows; None where a model has no such thing.

    known_B: tokens of every prompt, of which the first prefix_B are read by all others;
    positions_BL, blocks_BL: of all tokens there will be; segments_BS: of a source, -1 where it is
    filled up; source_BS: its ids, before the first tokens alone.
    """

    known_B: jax.Array | None = None
    prefix_B: jax.Array | None = None
    positions_BL: jax.Array | None = None
    blocks_BL: jax.Array | None = None
    segments_BS: jax.Array | None = None
    source_BS: jax.Array | None = None

    def first(self, size: int) -> dict:
        """Inputs of the first tokens of every row, by the names that modules have for them."""
        found = {}
        if self.prefix_B is not None:
            found["prefix_BT"] = jnp.arange(size)[None] < self.prefix_B[:, None]
        if self.positions_BL is not None:
            found["positions_BT"] = self.positions_BL[:, :size]
            found["block_positions_BT"] = self.blocks_BL[:, :size]
        if self.source_BS is not None:
            found |= {"source_BS": self.source_BS, "source_segments_BS": self.segments_BS}
        return found

    def at(self, index) -> dict:
        """Inputs of one token of every row."""
        found = {}
        if self.positions_BL is not None:
            for name, x_BL in (
                ("positions_BT", self.positions_BL),
                ("block_positions_BT", self.blocks_BL),
            ):
                found[name] = jax.lax.dynamic_slice_in_dim(x_BL, index, 1, axis=1)
        if self.segments_BS is not None:
            found["source_segments_BS"] = self.segments_BS
        return found

    def later(self, copies: int) -> "Reading":
        """That of what comes after the first tokens, of so many copies of the rows."""
        rest = self._replace(source_BS=None)
        return jax.tree.map(lambda x: jnp.concatenate([x] * copies), rest)


def checked(config: TransformerConfig, prompts: Iterable) -> list[Given]:
    """Every prompt as a `Given`, whose arrays are int32; BadInput for one that cannot be read."""
    if config.kind not in ("decoder", "encoder_decoder", "task_modules"):
        raise BadInput(f"a model of kind {config.kind} writes no text, it says what it reads")
    found = [one if isinstance(one, Given) else Given(one) for one in prompts]
    if not found:
        raise BadInput("there is no prompt: give at least one")
    return [_checked(config, one) for one in found]


def _checked(config: TransformerConfig, given: Given) -> Given:
    tokens = checked_ids(config, given.tokens)
    if room(config, len(tokens) + 1) <= len(tokens):
        raise BadInput(
            f"a prompt of {len(tokens)} tokens leaves no room in a context of "
            f"{config.context_length}"
        )
    if config.kind != "encoder_decoder":
        if given.source is not None:
            raise BadInput("this model has no encoder that would read a source: give tokens alone")
        if given.prefix and config.kind != "decoder":
            raise BadInput(f"a model of kind {config.kind} reads no prefix both ways: give 0")
        _check_prefix(config, given.prefix, len(tokens))
        return Given(tokens, None, given.prefix, given.positions, given.blocks)
    if given.source is None:
        raise BadInput(
            "an encoder-decoder writes about a source: give Given(tokens=[START], source=IDS)"
        )
    if given.prefix:
        raise BadInput("a prefix is of decoders: what an encoder-decoder reads is its source")
    source = checked_ids(config, given.source, "source")
    if room(config, len(source)) < len(source):
        raise BadInput(
            f"a source of {len(source)} tokens is longer than the context of "
            f"{config.context_length}"
        )
    return Given(tokens, source)


def _check_prefix(config: TransformerConfig, prefix: int, tokens: int) -> None:
    if not 0 <= prefix <= tokens:
        raise BadInput(f"a prefix of {prefix} is none of a prompt of {tokens} tokens")
    if prefix and not dense(config):
        raise BadInput(
            f"model.attention.pattern = {config.attention.pattern!r} forgets what stands far back, "
            "and a prefix is read by all tokens after it; only causal attention can"
        )
    if prefix and config.positions == "relative":
        raise BadInput(
            "model.positions = 'relative' scores only distances to earlier tokens when it "
            "continues a text, and a prefix is read both ways"
        )


def checked_ids(config: TransformerConfig, ids, what: str = "prompt") -> np.ndarray:
    """int32 [n]; BadInput for none, or for one that the vocabulary does not have."""
    try:
        ids = np.asarray(ids).reshape(-1)
    except ValueError:  # lists of other lengths inside
        raise BadInput(f"the {what} is no list of ids") from None
    if not ids.size:
        raise BadInput(f"the {what} is empty: give at least one token")
    if ids.dtype.kind not in "iu":
        raise BadInput(f"the {what} begins with {ids.tolist()[0]!r:.40}: give ids, whole numbers")
    unknown = ids[(ids < 0) | (ids >= config.vocab_size)]
    if unknown.size:
        raise BadInput(
            f"token {unknown[0]} of the {what} is not in the vocabulary of {config.vocab_size}"
        )
    return ids.astype(np.int32)


def dense(config: TransformerConfig) -> bool:
    """Whether every token reads all before it."""
    return all(isinstance(pattern, Causal) for pattern in config.attention.patterns)


def room(config: TransformerConfig, wanted: int) -> int:
    """Positions that a sequence may have: those of the position tables, where there are any."""
    tables = config.position_axes or config.attention.top_query == "positions"
    return min(wanted, config.context_length) if tables else wanted


def reading_of(config: TransformerConfig, given: list[Given], length: int) -> Reading:
    """What a model reads beside the tokens of these rows, of up to `length` tokens."""
    reading = Reading()
    if any(one.prefix for one in given):
        known = np.array([len(one.tokens) for one in given], np.int32)
        prefix = np.array([one.prefix for one in given], np.int32)
        reading = reading._replace(known_B=jnp.asarray(known), prefix_B=jnp.asarray(prefix))
    if any(one.positions is not None for one in given):
        places = [_placed(one, length) for one in given]
        positions_BL, blocks_BL = (np.stack(x) for x in zip(*places, strict=True))
        reading = reading._replace(
            positions_BL=jnp.asarray(positions_BL), blocks_BL=jnp.asarray(blocks_BL)
        )
    if config.kind == "encoder_decoder":
        size = source_length(config, max(len(one.source) for one in given))
        source_BS = np.zeros((len(given), size), np.int32)
        segments_BS = np.full((len(given), size), -1, np.int32)
        for row, one in enumerate(given):
            source_BS[row, : len(one.source)] = one.source
            segments_BS[row, : len(one.source)] = 0
        reading = reading._replace(
            source_BS=jnp.asarray(source_BS), segments_BS=jnp.asarray(segments_BS)
        )
    return reading


def _placed(given: Given, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions of a row and those in its blanks, int32 [length] each."""
    count = len(given.tokens)
    if given.positions is None:
        return np.arange(length, dtype=np.int32), np.zeros(length, np.int32)
    positions = np.full(length, given.positions[-1], np.int32)
    blocks = np.full(length, given.blocks[-1], np.int32)
    positions[:count], blocks[:count] = given.positions, given.blocks
    blocks[count:] += np.arange(1, length - count + 1, dtype=np.int32)
    return positions, blocks


def source_length(config: TransformerConfig, longest: int) -> int:
    """Tokens that a source is filled up to, so that programs recur."""
    if config.experts.limited:  # what is filled up would take their room
        return longest
    if not all(isinstance(p, Bidirectional) for p in config.encoder.attention.patterns):
        return max(longest, config.context_length)
    length = -(-longest // 32) * 32
    return min(length, config.context_length) if longest <= config.context_length else length
