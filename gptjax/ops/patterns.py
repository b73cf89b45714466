"""Attention patterns as values: which query may read which key.

A pattern knows its mask (the oracle of every kernel), the pairs it visits (the compute ledger) and
the keys a run of consecutive queries can reach (what a kernel may skip).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Causal:
    """Query t reads keys 0..t."""

    def mask(self, query_positions, key_positions):
        """Bool, True where a query may read a key; the two broadcast, e.g. [T, 1] and [1, S]."""
        return query_positions >= key_positions

    def pairs(self, length: int) -> int:
        """Query-key pairs in a sequence of `length` tokens."""
        return length * (length + 1) // 2

    def key_range(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """The smallest [first, last) that holds every key of the queries [start, stop)."""
        return 0, stop


@dataclass(frozen=True)
class Bidirectional:
    """Every query reads every key."""

    def mask(self, query_positions, key_positions):
        """Bool, all True; the two broadcast, e.g. [T, 1] and [1, S]."""
        return (query_positions == query_positions) & (key_positions == key_positions)

    def pairs(self, length: int) -> int:
        """Query-key pairs in a sequence of `length` tokens."""
        return length * length

    def key_range(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """The smallest [first, last) that holds every key of the queries [start, stop)."""
        return 0, length


Pattern = Causal | Bidirectional
