"""What sparse attention is made of: dense parts, each a rule over re-arranged queries and keys.

A layout cuts positions into groups of equal length, so that a part is one batched dense product;
a rule says which key of a group a query of the same group reads, by their places in it. Disjoint
parts that together make a pattern are merged by their log-sum-exp: the result is exact. The
factorisation is that of arXiv 1904.10509, section 5; the merge that of arXiv 2205.14135. Patterns
are part of configs, so this module loads no jax.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Rule(Protocol):
    """Which places of a group's keys the places of its queries read."""

    def mask(self, queries, keys):
        """Bool; the two are places within a group and broadcast."""

    def key_range(self, start: int, stop: int, keys: int) -> tuple[int, int]:
        """The smallest [first, last) that holds every key of the queries [start, stop)."""


@dataclass(frozen=True)
class Band:
    """low <= query - key <= high; None is no limit."""

    low: int | None = 0
    high: int | None = None

    def mask(self, queries, keys):
        apart = queries - keys
        inside = apart == apart
        if self.low is not None:
            inside = inside & (apart >= self.low)
        if self.high is not None:
            inside = inside & (apart <= self.high)
        return inside

    def key_range(self, start, stop, keys):
        first = 0 if self.high is None else max(start - self.high, 0)
        last = keys if self.low is None else min(stop - self.low, keys)
        return min(first, keys), max(last, min(first, keys))


EVERYTHING = Band(None, None)


@dataclass(frozen=True)
class Stairs:
    """Queries in blocks of `rows`, keys of `columns`: a query reads all blocks before its own."""

    rows: int
    columns: int

    def mask(self, queries, keys):
        return queries // self.rows > keys // self.columns

    def key_range(self, start, stop, keys):
        return 0, min((stop - 1) // self.rows * self.columns, keys)


@dataclass(frozen=True)
class Recent:
    """In blocks of `block`: a query reads its own up to itself, and `before` whole ones before."""

    block: int
    before: int

    def mask(self, queries, keys):
        return (queries >= keys) & (queries // self.block - keys // self.block <= self.before)

    def key_range(self, start, stop, keys):
        first = min(max(start // self.block - self.before, 0) * self.block, keys)
        return first, max(min(stop, keys), first)


@dataclass(frozen=True)
class Corner:
    """Of a block with itself: key <= query, and the key in columns [first, last) or the query."""

    first: int
    last: int

    def mask(self, queries, keys):
        column = (keys >= self.first) & (keys < self.last) & (keys <= queries)
        return column | (keys == queries)

    def key_range(self, start, stop, keys):
        return min(self.first, start), min(stop, keys)


class Layout(Protocol):
    """Positions 0..length - 1 in groups of equal length; -1 where a place is filled up."""

    def positions(self, length: int) -> np.ndarray:
        """int32 [groups, places]."""

    def take(self, x, fill: float):
        """[..., T, K] as [..., groups, places, K]."""

    def put(self, x, length: int, fill: float):
        """The inverse; positions that are in no group get `fill`."""


@dataclass(frozen=True)
class Span:
    """One group: positions from `first` to before `last` (None: the end)."""

    first: int = 0
    last: int | None = None

    def positions(self, length):
        return np.arange(length, dtype=np.int32)[self.first : self.last][None]

    def take(self, x, fill):
        return x[..., None, self.first : self.last, :]

    def put(self, x, length, fill):
        x = x[..., 0, :, :]
        after = length - self.first - x.shape[-2]
        return _padded(x, self.first, after, fill)


@dataclass(frozen=True)
class Residues:
    """Group r: positions first + r, first + r + step, first + r + 2 step, ..."""

    step: int
    first: int = 0

    def positions(self, length):
        return _numbers(self, length).T.copy()

    def take(self, x, fill):
        return _folded(x[..., self.first :, :], self.step, fill).swapaxes(-3, -2)

    def put(self, x, length, fill):
        return _unfolded(x.swapaxes(-3, -2), self.first, length, fill)


@dataclass(frozen=True)
class Blocks:
    """Group g: `step` positions in a row from first + g step on."""

    step: int
    first: int = 0

    def positions(self, length):
        return _numbers(self, length)

    def take(self, x, fill):
        return _folded(x[..., self.first :, :], self.step, fill)

    def put(self, x, length, fill):
        return _unfolded(x, self.first, length, fill)


@dataclass(frozen=True)
class Columns:
    """One group: of every whole block of `step` positions the places [first, last)."""

    step: int
    first: int
    last: int

    def positions(self, length):
        blocks = np.arange(length // self.step, dtype=np.int32)[:, None] * self.step
        return (blocks + np.arange(self.first, self.last, dtype=np.int32)).reshape(1, -1)

    def take(self, x, fill):
        whole = x.shape[-2] // self.step
        x = x[..., : whole * self.step, :]
        x = x.reshape(*x.shape[:-2], whole, self.step, x.shape[-1])[..., self.first : self.last, :]
        return x.reshape(*x.shape[:-3], 1, whole * (self.last - self.first), x.shape[-1])

    def put(self, x, length, fill):
        whole, count = length // self.step, self.last - self.first
        x = x.reshape(*x.shape[:-3], whole, count, x.shape[-1])
        x = _padded(x, self.first, self.step - self.last, fill)
        x = x.reshape(*x.shape[:-3], whole * self.step, x.shape[-1])
        return _padded(x, 0, length - whole * self.step, fill)


@dataclass(frozen=True)
class Chosen:
    """Group g: the blocks of `step` positions that its row of numbers names; -1 is none.

    Every group has a row of as many numbers; a block may stand in several.
    """

    step: int
    numbers: tuple[tuple[int, ...], ...]

    def positions(self, length):
        numbers = np.asarray(self.numbers, np.int32)
        found = numbers[..., None] * self.step + np.arange(self.step, dtype=np.int32)
        found = np.where((numbers[..., None] < 0) | (found >= length), -1, found)
        return found.reshape(len(numbers), -1)

    def take(self, x, fill):
        import jax.numpy as jnp

        x, numbers = _folded(x, self.step, fill), np.asarray(self.numbers, np.int32)
        x = jnp.take(x, np.maximum(numbers, 0), axis=x.ndim - 3)
        return x.reshape(*x.shape[:-4], len(numbers), -1, x.shape[-1])

    def put(self, x, length, fill):
        import jax.numpy as jnp

        numbers = np.asarray(self.numbers, np.int32)
        x = x.reshape(*x.shape[:-2], numbers.shape[1], self.step, x.shape[-1])
        x = x.reshape(*x.shape[:-4], numbers.size, *x.shape[-2:])
        blocks = -(-length // self.step)
        where = np.where(numbers < 0, blocks, numbers).reshape(-1)
        total = jnp.full((*x.shape[:-3], blocks + 1, *x.shape[-2:]), fill, x.dtype)
        at = (..., where, slice(None), slice(None))
        # Blocks that stand in several groups only ever come back as gradients, which add up.
        total = total.at[at].add(x) if fill == 0 else total.at[at].set(x)
        total = total[..., :blocks, :, :]
        return total.reshape(*total.shape[:-3], -1, x.shape[-1])[..., :length, :]


@dataclass(frozen=True)
class Part:
    """Queries and keys in equally many groups, and the rule between them."""

    queries: Layout
    keys: Layout
    rule: Rule = Band()
    order: str = "places"  # or "positions": a query also reads no later position (block lists)


def _numbers(layout, length):
    places = max(-(-(length - layout.first) // layout.step), 0) * layout.step
    found = np.arange(layout.first, layout.first + places, dtype=np.int32)
    return np.where(found < length, found, -1).reshape(-1, layout.step)


def _padded(x, before: int, after: int, fill: float):
    import jax.numpy as jnp

    if not before and not after:
        return x
    widths = [(0, 0)] * (x.ndim - 2) + [(before, after), (0, 0)]
    return jnp.pad(x, widths, constant_values=fill)


def _folded(x, step: int, fill: float):
    """[..., T, K] as [..., T / step, step, K], filled up."""
    blocks = -(-x.shape[-2] // step)
    x = _padded(x, 0, blocks * step - x.shape[-2], fill)
    return x.reshape(*x.shape[:-2], blocks, step, x.shape[-1])


def _unfolded(x, first: int, length: int, fill: float):
    x = x.reshape(*x.shape[:-3], -1, x.shape[-1])[..., : length - first, :]
    return _padded(x, first, 0, fill)
