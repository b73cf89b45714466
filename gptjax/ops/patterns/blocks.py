"""Bands with tokens or blocks that are read by all: Longformer (arXiv 2004.05150), BigBird
(arXiv 2007.14062)."""

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gptjax.errors import BadInput
from gptjax.ops.parts import EVERYTHING, Band, Chosen, Part, Span
from gptjax.ops.patterns.base import HeadPattern

MOST_BLOCKS = 8192  # of a sequence, where every pair of blocks is looked at


@dataclass(frozen=True)
class Longformer(HeadPattern):
    """A band around every query, and `tokens` first positions that all read and that read all."""

    name = "longformer"
    width: int  # keys up to the query itself; as many less one behind it where `both` ways
    tokens: int = 1
    ways: Literal["both", "causal"] = "both"

    def __post_init__(self):
        self.check(width=1, tokens=1)
        check_ways(self)

    @property
    def causal(self):
        return self.ways == "causal"

    @property
    def _band(self) -> Band:
        return Band(0 if self.causal else 1 - self.width, self.width - 1)

    def mask(self, queries, keys, length):
        found = (keys < self.tokens) | self._band.mask(queries, keys)
        return found & (queries >= keys) if self.causal else found | (queries < self.tokens)

    def visited(self, length):
        g, at = min(self.tokens, length), np.arange(length)
        before = np.minimum(np.maximum(at - g, 0), self.width - 1)
        if self.causal:
            return np.where(at < g, at + 1, g + before + 1)
        after = np.minimum(length - 1 - at, self.width - 1)
        return np.where(at < g, length, g + before + 1 + after)

    def parts(self, length):
        g = min(self.tokens, length)
        first = Part(Span(0, g), Span(0, g) if self.causal else Span(),
                     Band() if self.causal else EVERYTHING)  # fmt: skip
        rest = (Part(Span(g), Span(0, g), EVERYTHING), Part(Span(g), Span(g), self._band))
        return (first, *rest) if g < length else (first,)

    def kept(self, length):
        if not self.causal:
            return super().kept(length)
        return min(self.width, length), np.arange(min(self.tokens, length), dtype=np.int32)


@dataclass(frozen=True)
class BigBird(HeadPattern):
    """Blocks: `window` around the query's own, the first `first` ones for all, `random` others.

    The first blocks also read everything. Causal: no query reads a later key, and what is drawn
    lies before.
    """

    name = "bigbird"
    block: int
    window: int = 3
    first: int = 1
    random: int = 3
    seed: int = 0
    ways: Literal["both", "causal"] = "both"

    def __post_init__(self):
        self.check(block=1, window=1, first=0, random=0, seed=0)
        check_ways(self)
        if not self.causal and self.window % 2 == 0:
            raise BadInput(
                f"window of a bigbird pattern is {self.window}: both ways it is an odd number of "
                "blocks, as many before as after the query's own"
            )

    @property
    def causal(self):
        return self.ways == "causal"

    def blocks(self, length: int) -> np.ndarray:
        """Bool [blocks, blocks]: which blocks of queries read which of keys."""
        count = -(-length // self.block)
        if count > MOST_BLOCKS:
            raise BadInput(
                f"{self} makes {count} blocks of {length} positions, more than {MOST_BLOCKS}; "
                f"give blocks of {-(-length // MOST_BLOCKS)} or more"
            )
        return _bigbird_blocks(self, count)

    def mask(self, queries, keys, length):
        import jax.numpy as jnp

        blocks = self.blocks(length)
        plain = isinstance(queries, np.ndarray) and isinstance(keys, np.ndarray)
        blocks = blocks if plain else jnp.asarray(blocks)
        found = blocks[queries // self.block, keys // self.block]
        return found & (queries >= keys) if self.causal else found

    def visited(self, length):
        blocks, at = self.blocks(length), np.arange(length)
        lacking = len(blocks) * self.block - length  # of the last block
        keys = blocks.sum(1) * self.block - blocks[:, -1] * lacking
        if not self.causal:
            return keys[at // self.block]
        keys -= self.block  # its own, of which a query reads what is before it
        keys[-1] += lacking
        return keys[at // self.block] + at % self.block + 1

    def parts(self, length):
        blocks, parts, block = self.blocks(length), [], min(self.block, length)
        reads = [tuple(np.flatnonzero(row).tolist()) for row in blocks]
        # Rows of nearly as many blocks go together, so that little is filled up.
        sizes = np.array([1 << max(len(row) - 1, 0).bit_length() for row in reads])
        for size in np.unique(sizes):
            rows = np.flatnonzero(sizes == size).tolist()
            widest = max(len(reads[row]) for row in rows)
            keys = tuple(reads[row] + (-1,) * (widest - len(reads[row])) for row in rows)
            queries = Chosen(block, tuple((row,) for row in rows))
            order = "positions" if self.causal else "places"
            parts.append(Part(queries, Chosen(block, keys), EVERYTHING, order))
        return tuple(parts)

    def kept(self, length):
        """The window, and the blocks that some later block reads beyond its window."""
        if not self.causal:
            return super().kept(length)
        blocks = self.blocks(length)
        far = np.tril(blocks, -self.window).any(0)
        at = np.arange(length, dtype=np.int32)
        return min(self.window * self.block, length), at[far[at // self.block]]


@functools.lru_cache(maxsize=64)
def _bigbird_blocks(pattern: BigBird, count: int) -> np.ndarray:
    at = np.arange(count, dtype=np.int16)
    apart = at[:, None] - at[None, :]
    around = pattern.window // 2
    found = np.abs(apart) <= around
    if pattern.causal:
        found = (apart >= 0) & (apart < pattern.window)
    found = found | (at[None, :] < pattern.first) | (at[:, None] < pattern.first)
    rng = np.random.default_rng(pattern.seed)
    for row in range(pattern.first, count):
        free = np.flatnonzero(~found[row] & ((at <= row) | (not pattern.causal)))
        found[row, rng.permutation(free)[: pattern.random]] = True
    if pattern.causal:
        found &= apart >= 0
    found.setflags(write=False)
    return found


def check_ways(pattern) -> None:
    if pattern.ways not in ("both", "causal"):
        raise BadInput(f"ways of {type(pattern).__name__} is {pattern.ways!r}: both or causal")
