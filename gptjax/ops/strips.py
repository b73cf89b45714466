"""How a part of a pattern is cut for the blocked kernel: strips of queries, or overlapping blocks.

A strip of queries is multiplied with the keys that it can reach. A narrow band is cut into blocks
instead, each with its neighbours beside it, so that the whole band is one batched product.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gptjax.ops.parts import Band, Part
from gptjax.ops.patterns.base import HeadPattern

STRIPS = 16  # at most so many in a triangle: more multiply less, but every one costs its start
BAND_WASTE = 1.5  # a band may multiply so many times the pairs that strips do


class Work(NamedTuple):
    """A part ready to be multiplied: arrays [..., T, K] in groups, cut into strips.

    places of queries and keys in the sequence: int32 [groups, places], -1 where filled up.
    """

    part: Part
    rule: object
    band: tuple[int, int, int] | None  # block, blocks before, blocks after
    queries: np.ndarray
    keys: np.ndarray
    strips: tuple[tuple[int, int, int, int], ...]  # queries [start, stop), keys [first, last)
    filled: bool  # the rule alone would let a query read a place that is filled up

    def take_queries(self, x, fill=0.0):
        """[..., T, K] as [..., groups, places, K]."""
        x = self.part.queries.take(x, fill)
        return x if self.band is None else _cut(x, self.band[0], fill)

    def put_queries(self, x, length: int, fill=0.0):
        """The inverse; positions of no group get `fill`."""
        if self.band is not None:
            x = _joined(x, self.band[0], self._places(self.part.queries, length))
        return self.part.queries.put(x, length, fill)

    def take_keys(self, x):
        """[..., T, K] as [..., groups, places, K]."""
        x = self.part.keys.take(x, 0)
        return x if self.band is None else _overlapping(x, *self.band)

    def put_keys(self, x, length: int):
        """The inverse of a gradient: what stands in several groups is added."""
        if self.band is not None:
            x = _added(x, *self.band, self._places(self.part.keys, length))
        return self.part.keys.put(x, length, 0.0)

    @staticmethod
    def _places(layout, length: int) -> int:
        return layout.positions(length).shape[1]


def _cut(x, block: int, fill):
    """[..., P, L, K] as [..., P L / block, block, K], filled up."""
    lead, (groups, places, size) = x.shape[:-3], x.shape[-3:]
    blocks = -(-places // block)
    xp = np if isinstance(x, np.ndarray) else jnp
    widths = [(0, 0)] * (x.ndim - 2) + [(0, blocks * block - places), (0, 0)]
    x = xp.pad(x, widths, constant_values=fill) if blocks * block > places else x
    return x.reshape(*lead, groups * blocks, block, size)


def _joined(x, block: int, places: int):
    """The inverse of `_cut`."""
    blocks = -(-places // block)
    x = x.reshape(*x.shape[:-3], -1, blocks * block, x.shape[-1])
    return x[..., :places, :]


def _overlapping(x, block: int, before: int, after: int, fill=0.0):
    """[..., P, L, K] as [..., P L / block, (before + 1 + after) block, K]: every block between
    its neighbours."""
    lead, (groups, places, size) = x.shape[:-3], x.shape[-3:]
    blocks = -(-places // block)
    xp = np if isinstance(x, np.ndarray) else jnp
    widths = [(0, 0)] * (x.ndim - 2)
    widths += [(before * block, (blocks + after) * block - places), (0, 0)]
    x = xp.pad(x, widths, constant_values=fill)
    x = x.reshape(*lead, groups, blocks + before + after, block, size)
    shifted = [x[..., i : i + blocks, :, :] for i in range(before + 1 + after)]
    x = xp.concatenate(shifted, axis=-2)
    return x.reshape(*lead, groups * blocks, -1, size)


def _added(x, block: int, before: int, after: int, places: int):
    """The transpose of `_overlapping`."""
    blocks, lead, size = -(-places // block), x.shape[:-3], x.shape[-1]
    x = x.reshape(*lead, -1, blocks, before + 1 + after, block, size)
    total = 0.0
    for i in range(before + 1 + after):
        widths = [(0, 0)] * (x.ndim - 4) + [(i, before + after - i), (0, 0), (0, 0)]
        total = total + jnp.pad(x[..., i, :, :], widths)
    total = total[..., before : before + blocks, :, :]
    return total.reshape(*total.shape[:-3], blocks * block, size)[..., :places, :]


@functools.lru_cache(maxsize=256)
def works(pattern: HeadPattern, length: int) -> tuple[Work, ...]:
    """What the blocked kernel multiplies for a pattern."""
    return tuple(_work(part, length) for part in pattern.parts(length))


def _work(part: Part, length: int) -> Work:
    queries, keys = part.queries.positions(length), part.keys.positions(length)
    rule, places = part.rule, queries.shape[1]
    strips = _strips(rule, places, keys.shape[1], block_size(places))
    band = _band(rule, places) if queries.shape == keys.shape else None
    if band is not None:
        block, before, after = band
        wide = (before + 1 + after) * block
        # A band multiplies what is filled up at both ends, too, but in one product.
        if -(-places // block) * block * wide <= BAND_WASTE * _strip_pairs(strips):
            rule = Band(rule.low - before * block, rule.high - before * block)
            queries = _cut(queries[..., None], block, -1)[..., 0]
            keys = _overlapping(keys[..., None], *band, fill=-1)[..., 0]
            strips = _strips(rule, block, wide, block)
        else:
            band = None
    # Places filled up at the end stay behind whatever a real query of a causal rule reads.
    behind = band is None and getattr(rule, "low", None) is not None and rule.low >= 0
    filled = bool((keys < 0).any()) and not (behind and type(part.keys) is type(part.queries))
    return Work(part, rule, band, queries, keys, tuple(strips), filled)


def _band(rule, places: int) -> tuple[int, int, int] | None:
    """The block of a band, blocks before and after; None for other rules and short sequences."""
    if not isinstance(rule, Band) or rule.low is None or rule.high is None:
        return None
    block = band_block(rule.high - rule.low + 1)
    if places <= 2 * block:
        return None
    return block, -(-max(rule.high, 0) // block), -(-max(-rule.low, 0) // block)


def _strips(rule, places: int, keys: int, size: int) -> list[tuple[int, int, int, int]]:
    """Strips of `size` queries, each with the keys that it can reach; empty ones are left out."""
    edges = [(start, min(start + size, places)) for start in range(0, places, size)]
    found = [(*edge, *rule.key_range(*edge, keys)) for edge in edges]
    return [strip for strip in found if strip[3] > strip[2]]


def _strip_pairs(strips) -> int:
    return sum((stop - start) * (last - first) for start, stop, first, last in strips)


def block_size(length: int) -> int:
    """Queries in a strip; at most STRIPS strips. Measured on CPUs."""
    return max(64 if length <= 256 else 128, 64 * math.ceil(length / (STRIPS * 64)))


def band_block(width: int) -> int:
    """Queries in a block of a band of so many keys."""
    return max(min(64 * math.ceil(width / 128), 256), 32)


def multiplied(pattern: HeadPattern, length: int) -> int:
    """Query-key pairs that the kernel multiplies per head and sequence, those it masks included."""
    return multiplied_by(works(pattern, length))


def multiplied_by(chosen: tuple[Work, ...]) -> int:
    """The pairs of some parts."""
    return sum(len(work.queries) * _strip_pairs(work.strips) for work in chosen)
