"""Dense attention and bands: everything, everything before, a prefix, a window."""

from dataclasses import dataclass

import numpy as np

from gptjax.ops.parts import EVERYTHING, Band, Part, Span
from gptjax.ops.patterns.base import HeadPattern, nothing


@dataclass(frozen=True)
class Causal(HeadPattern):
    """Query t reads keys 0..t."""

    name = "causal"

    def mask(self, queries, keys, length):
        return queries >= keys

    def visited(self, length):
        return np.arange(1, length + 1)

    def parts(self, length):
        return (Part(Span(), Span()),)


@dataclass(frozen=True)
class Bidirectional(HeadPattern):
    """Every query reads every key."""

    name = "bidirectional"
    causal = False

    def mask(self, queries, keys, length):
        return (queries == queries) & (keys == keys)

    def visited(self, length):
        return np.full(length, length)

    def parts(self, length):
        return (Part(Span(), Span(), EVERYTHING),)


@dataclass(frozen=True)
class Prefix(HeadPattern):
    """The first `prefix` positions read each other, later ones whatever is before them."""

    name = "prefix"
    prefix: int
    causal = False

    def __post_init__(self):
        self.check(prefix=1)

    def mask(self, queries, keys, length):
        return (queries >= keys) | (keys < self.prefix)

    def visited(self, length):
        return np.maximum(np.arange(1, length + 1), min(self.prefix, length))

    def parts(self, length):
        p = min(self.prefix, length)
        first = Part(Span(0, p), Span(0, p), EVERYTHING)
        rest = Part(Span(p), Span(), Band(low=-p))
        return (first, rest) if p < length else (first,)


@dataclass(frozen=True)
class Window(HeadPattern):
    """A band: `width` keys up to the query itself, and `after` keys behind it."""

    name = "window"
    width: int
    after: int = 0

    def __post_init__(self):
        self.check(width=1, after=0)

    @property
    def causal(self):
        return self.after == 0

    def mask(self, queries, keys, length):
        return Band(-self.after, self.width - 1).mask(queries, keys)

    def visited(self, length):
        at = np.arange(length)
        return np.minimum(at, self.width - 1) + 1 + np.minimum(length - 1 - at, self.after)

    def parts(self, length):
        return (Part(Span(), Span(), Band(-self.after, self.width - 1)),)

    def kept(self, length):
        return min(self.width, length), nothing()
