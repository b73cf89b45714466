"""Which blocks of keys every block of queries reads, for kernels that work by lists of blocks.

How many pairs of a block of queries and one of keys a pattern holds follows from its dense parts:
in every part the keys of a query are one or two runs of places, so that a search in the sorted
positions counts them by blocks. No mask is made: n queries cost n times the blocks of keys.
"""

import functools
from typing import NamedTuple

import numpy as np

from gptjax.ops.parts import Corner, Part
from gptjax.ops.patterns.base import HeadPattern

BLOCKS = (32, 64)  # positions in a block, ascending, each twice the one before
# A block takes as long as its pairs and so many more; an estimate, not measured.
START = 2048
CHUNK = 512  # queries counted at a time


class Lists(NamedTuple):
    """Blocks of one side and for each those it is multiplied with on the other.

    rows: int32 [blocks, 4], a block's number and where in `entries` its blocks that need no mask
    start, where those that need one start, and where they stop; long rows first, so that none of
    them is left to the end. entries: int32, numbers of blocks, ascending in both halves of a row.
    """

    rows: np.ndarray
    entries: np.ndarray


def pair_counts(pattern: HeadPattern, length: int, block: int) -> np.ndarray:
    """Pairs of the pattern in every block of queries and keys, int32 [blocks, blocks]."""
    blocks = -(-length // block)
    counts = np.zeros((blocks, blocks), np.int32)
    for part in pattern.parts(length):
        queries, keys = part.queries.positions(length), part.keys.positions(length)
        runs = _runs(part.rule, queries.shape[1], keys.shape[1])
        for query_row, key_row in zip(queries, keys, strict=True):
            _count(counts, part, query_row, key_row, runs, block)
    return counts


def _runs(rule, queries: int, keys: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Disjoint runs [first, last) of places of keys that every place of queries reads."""
    at = np.arange(queries)
    if isinstance(rule, Corner):
        beside = (at < rule.first) | (at >= rule.last)
        columns = (np.full(queries, rule.first), np.minimum(at + 1, rule.last))
        return [columns, (at, at + beside)]
    found = np.array([rule.key_range(i, i + 1, keys) for i in range(queries)]).reshape(-1, 2)
    return [(found[:, 0], found[:, 1])]


def _count(counts, part: Part, queries, keys, runs, block: int) -> None:
    """Adds the pairs of one group of a part to the counts."""
    blocks = len(counts)
    keys = np.where(keys < 0, blocks * block, keys)  # behind all: positions ascend
    edges = np.searchsorted(keys, np.arange(blocks + 1) * block).astype(np.int32)
    places = np.flatnonzero(queries >= 0)
    for start in range(0, len(places), CHUNK):
        chosen = places[start : start + CHUNK]
        at = queries[chosen]
        numbers, first = np.unique(at // block, return_index=True)
        for low, high in runs:
            low, high = low[chosen, None], high[chosen, None]
            if part.order == "positions":
                high = np.minimum(high, np.searchsorted(keys, at, side="right")[:, None])
            high = np.maximum(low, high)
            # Only blocks between the first and the last key that any of these queries reads.
            begin = max(np.searchsorted(edges, low.min(), side="right") - 1, 0)
            end = np.searchsorted(edges, high.max())
            reached = np.clip(edges[None, begin : end + 1], low, high)
            totals = np.add.reduceat(reached, first, axis=0)
            counts[numbers, begin:end] += np.diff(totals, axis=1).astype(np.int32)


@functools.lru_cache(maxsize=16)
def _counts(pattern: HeadPattern, length: int, blocks: tuple[int, ...]) -> dict[int, np.ndarray]:
    """The counts for every size of block, the larger ones by adding up the smallest."""
    counts = {blocks[0]: pair_counts(pattern, length, blocks[0])}
    for block in blocks[1:]:
        half = counts[block // 2]
        half = np.pad(half, [(0, len(half) % 2)] * 2)
        counts[block] = half.reshape(len(half) // 2, 2, -1, 2).sum((1, 3), dtype=np.int32)
    return counts


def list_block(pattern: HeadPattern, length: int) -> int:
    """The size of block that should be fastest for the pattern."""
    counts = _counts(pattern, length, BLOCKS)
    return min(BLOCKS, key=lambda b: np.count_nonzero(counts[b]) * (b * b + START))


def listed_pairs(pattern: HeadPattern, length: int) -> int:
    """Query-key pairs in the blocks that are listed, those that are masked included."""
    block = list_block(pattern, length)
    return int(np.count_nonzero(_counts(pattern, length, BLOCKS)[block])) * block * block


def key_lists(pattern: HeadPattern, length: int, block: int) -> Lists:
    """For every block of queries the blocks of keys that it reads; block: one of BLOCKS."""
    return _lists(_counts(pattern, length, BLOCKS)[block], block)


def query_lists(pattern: HeadPattern, length: int, block: int) -> Lists:
    """For every block of keys the blocks of queries that read it."""
    return _lists(_counts(pattern, length, BLOCKS)[block].T, block)


def _lists(counts: np.ndarray, block: int) -> Lists:
    full, partial = counts == block * block, (counts > 0) & (counts < block * block)
    rows, entries, done = [], [], 0
    for number in range(len(counts)):
        halves = [np.flatnonzero(full[number]), np.flatnonzero(partial[number])]
        middle, stop = done + len(halves[0]), done + len(halves[0]) + len(halves[1])
        rows.append((number, done, middle, stop))
        entries += halves
        done = stop
    rows = np.array(rows, np.int32)
    rows = rows[np.argsort(rows[:, 1] - rows[:, 3], kind="stable")]
    return Lists(rows, np.concatenate(entries).astype(np.int32))
