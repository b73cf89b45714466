"""What every attention pattern offers, and groups of heads with patterns of their own."""

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np

from gptjax.errors import BadInput
from gptjax.ops.parts import Part


class Pattern:
    """What every pattern offers; positions are those in the sequence, lengths are in tokens."""

    name = ""  # in texts
    causal = True  # no query reads a later key

    def mask(self, queries, keys, length: int):
        """Bool, True where a query may read a key; positions broadcast, e.g. [T, 1] and [1, S]."""
        raise NotImplementedError

    def visited(self, length: int) -> np.ndarray:
        """How many keys every query reads, int64 [length]."""
        raise NotImplementedError

    def parts(self, length: int) -> tuple[Part, ...]:
        """Disjoint dense parts that together are the pattern."""
        raise NotImplementedError

    def pairs(self, length: int) -> int:
        """Query-key pairs in a sequence."""
        return int(self.visited(length).sum())

    def kept(self, length: int) -> tuple[int, np.ndarray]:
        """(R, positions): what a cache must hold at any time to decode up to `length` positions.

        The positions, int32 ascending, are held for good once they are there; of all others the
        last R are.
        """
        return 0, np.arange(length, dtype=np.int32)

    @property
    def members(self) -> "tuple[Pattern, ...]":
        """The patterns of the groups of heads: head h has number h modulo how many there are."""
        return (self,)

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
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                name = f"{name} of a {type(self).__name__.lower()} pattern"
                raise BadInput(f"{name} is {value!r}; give an integer from {low} on")


@dataclass(frozen=True)
class Heads(Pattern):
    """Groups of heads with patterns of their own, dealt out in turn: head h has h modulo K."""

    patterns: tuple[Pattern, ...]

    @property
    def causal(self):
        return all(pattern.causal for pattern in self.patterns)

    @property
    def members(self):
        return self.patterns

    def visited(self, length):
        """The sum over one head of every pattern."""
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
