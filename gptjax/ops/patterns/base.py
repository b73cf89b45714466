"""What every attention pattern offers, and groups of heads with patterns of their own."""

import dataclasses
import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from gptjax.errors import BadInput
from gptjax.ops.parts import Part

LARGEST = 2**31 - 1  # of a field, and of any distance between a query and a key


class Pattern(ABC):
    """What the attention of a layer offers; lengths are in tokens."""

    causal = True  # no query reads a later key

    @property
    @abstractmethod
    def members(self) -> "tuple[HeadPattern, ...]":
        """The patterns of the groups of heads, one for all or several that are dealt out.

        Of K patterns head h has number h modulo K where as many queries as K or a multiple share a
        key head; otherwise all queries of key head g have number g modulo K.
        """

    @abstractmethod
    def visited(self, length: int) -> np.ndarray:
        """How many keys every query reads, the sum over the members, int64 [length]."""

    @abstractmethod
    def kept(self, length: int) -> tuple[int, np.ndarray]:
        """(R, positions): what a cache must hold at any time to decode up to `length` positions.

        The positions, int32 ascending, are held for good once they are there; of all others the
        last R are.
        """

    def pairs(self, length: int) -> int:
        """Query-key pairs in a sequence, the sum over the members."""
        return int(self.visited(length).sum())


class HeadPattern(Pattern):
    """The pattern of one head; a subclass is a dataclass whose fields are what its text says."""

    name = ""  # in texts

    @abstractmethod
    def mask(self, queries, keys, length: int):
        """Bool, True where a query may read a key.

        Positions in the sequence that broadcast, e.g. [T, 1] and [1, S].
        """

    @abstractmethod
    def parts(self, length: int) -> tuple[Part, ...]:
        """Disjoint dense parts that together are the pattern."""

    @property
    def members(self):
        return (self,)

    def kept(self, length):
        return 0, np.arange(length, dtype=np.int32)

    def __str__(self) -> str:
        """The text that `parse` makes this pattern of."""
        fields = [(f, getattr(self, f.name)) for f in dataclasses.fields(self)]
        while fields and fields[-1][1] == fields[-1][0].default:
            fields.pop()
        return self.name + (":" + ",".join(str(value) for _, value in fields) if fields else "")

    def check(self, **least: int) -> None:
        """BadInput for a field that is no integer from its least value on."""
        for name, low in least.items():
            value = getattr(self, name)
            said = f"{name} of {_article(self.name)} {self.name} pattern is"
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise BadInput(f"{said} {value!r}; give an integer from {low} on")
            if value > LARGEST:
                raise BadInput(f"{said} larger than {LARGEST}, the largest; give a smaller one")


@dataclass(frozen=True)
class Heads(Pattern):
    """Groups of heads with patterns of their own, dealt out in turn (`Pattern.members`)."""

    patterns: tuple[HeadPattern, ...]

    @property
    def causal(self):
        return all(pattern.causal for pattern in self.patterns)

    @property
    def members(self):
        return self.patterns

    def visited(self, length):
        return sum(pattern.visited(length) for pattern in self.patterns)

    def kept(self, length):
        """What any of them must hold."""
        found = [pattern.kept(length) for pattern in self.patterns]
        kept = functools.reduce(np.union1d, [positions for _, positions in found])
        return max(ring for ring, _ in found), kept.astype(np.int32)

    def __str__(self):
        return "|".join(str(pattern) for pattern in self.patterns)


def nothing() -> np.ndarray:
    return np.zeros(0, np.int32)


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"
