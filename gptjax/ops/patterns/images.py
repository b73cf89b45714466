"""Text, then an image in raster order: rows, columns and squares of it (arXiv 2102.12092)."""

import itertools
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gptjax.errors import BadInput
from gptjax.ops.parts import EVERYTHING, Band, Part, Residues, Span
from gptjax.ops.patterns.base import HeadPattern


@dataclass(frozen=True)
class _Image(HeadPattern):
    """`text` tokens, then an image of rows of `columns` in raster order; text is read by all."""

    @abstractmethod
    def bands(self) -> Iterable[Band]:
        """Distances between tokens of the image, disjoint, from the nearest on."""

    def _within(self, length: int) -> list[Band]:
        return list(itertools.takewhile(lambda band: band.low < length, self.bands()))

    def mask(self, queries, keys, length):
        image = (queries >= self.text) & (keys >= self.text)
        found = (queries >= keys) & (keys < self.text)
        for band in self._within(length):
            found = found | (image & band.mask(queries, keys))
        return found

    def visited(self, length):
        at = np.arange(length)
        image = at - self.text
        found = np.minimum(at + 1, self.text)
        for band in self._within(length):
            found = found + np.maximum(np.minimum(image, band.high) - band.low + 1, 0)
        return found

    def parts(self, length):
        t = min(self.text, length)
        parts = [Part(Span(0, t), Span(0, t))] if t else []
        if t and t < length:
            parts.append(Part(Span(t), Span(0, t), EVERYTHING))
        if t < length:
            parts += [Part(Span(t), Span(t), band) for band in self._within(length - t)]
        return tuple(parts)

    def kept(self, length):
        furthest = max(band.high for band in self._within(length))
        return min(furthest + 1, length), np.arange(min(self.text, length), dtype=np.int32)


@dataclass(frozen=True)
class ImageRow(_Image):
    """A row back: the last key read stands right above the query."""

    name = "image_row"
    columns: int
    text: int = 0

    def __post_init__(self):
        self.check(columns=1, text=0)

    def bands(self):
        return (Band(0, self.columns),)


@dataclass(frozen=True)
class ImageConv(_Image):
    """A square of `kernel` around the query, as far as it was before; edges wrap around."""

    name = "image_conv"
    columns: int
    kernel: int = 3
    text: int = 0

    def __post_init__(self):
        self.check(columns=1, kernel=1, text=0)
        if self.kernel % 2 == 0 or self.kernel > self.columns:
            raise BadInput(
                f"kernel of an image_conv pattern is {self.kernel}; give an odd number up to the "
                f"image's {self.columns} columns"
            )

    def bands(self):
        """Rows further up than any sequence reaches are never asked for."""
        half = self.kernel // 2
        above = (Band(r * self.columns - half, r * self.columns + half) for r in range(1, half + 1))
        return itertools.chain((Band(0, half),), above)


@dataclass(frozen=True)
class ImageColumn(HeadPattern):
    """The query's own column of the image, and all text."""

    name = "image_column"
    columns: int
    text: int = 0

    def __post_init__(self):
        self.check(columns=1, text=0)

    def mask(self, queries, keys, length):
        apart = queries - keys
        same = (queries >= self.text) & (apart % self.columns == 0)
        return (apart >= 0) & ((keys < self.text) | same)

    def visited(self, length):
        at = np.arange(length)
        image = np.maximum(at - self.text + self.columns, 0) // self.columns
        return np.minimum(at + 1, self.text) + image

    def parts(self, length):
        t = min(self.text, length)
        parts = [Part(Span(0, t), Span(0, t))] if t else []
        if t and t < length:
            parts.append(Part(Span(t), Span(0, t), EVERYTHING))
        if t < length:
            layout = Residues(min(self.columns, length - t), t)
            parts.append(Part(layout, layout))
        return tuple(parts)
