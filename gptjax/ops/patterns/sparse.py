"""Factorised patterns: strided and fixed (arXiv 1904.10509), alone and merged, and dilated ones.

The single heads of the Sparse Transformer are Window and Column (strided), Local and Summary
(fixed); Strided and Fixed are the two merged into one head (its section 5.2). Dilated windows are
those of arXiv 2004.05150.
"""

from dataclasses import dataclass

import numpy as np

from gptjax.errors import BadInput
from gptjax.ops.parts import Band, Blocks, Columns, Corner, Part, Recent, Residues, Span, Stairs
from gptjax.ops.patterns.base import LARGEST, HeadPattern, nothing


@dataclass(frozen=True)
class Column(HeadPattern):
    """Keys at distances 0, stride, 2 stride, ...: the second strided head of arXiv 1904.10509."""

    name = "column"
    stride: int

    def __post_init__(self):
        self.check(stride=1)

    def mask(self, queries, keys, length):
        apart = queries - keys
        return (apart >= 0) & (apart % self.stride == 0)

    def visited(self, length):
        return np.arange(length) // self.stride + 1

    def parts(self, length):
        layout = Residues(min(self.stride, length))
        return (Part(layout, layout),)


@dataclass(frozen=True)
class Dilated(HeadPattern):
    """`width` keys at distances 0, dilation, 2 dilation, ..."""

    name = "dilated"
    width: int
    dilation: int

    def __post_init__(self):
        self.check(width=1, dilation=1)

    @property
    def reach(self) -> int:
        """Distance from a query to its furthest key."""
        return min((self.width - 1) * self.dilation, LARGEST)

    def mask(self, queries, keys, length):
        apart = queries - keys
        near = apart <= self.reach
        return (apart >= 0) & near & (apart % self.dilation == 0)

    def visited(self, length):
        return np.minimum(np.arange(length) // self.dilation, self.width - 1) + 1

    def parts(self, length):
        layout = Residues(min(self.dilation, length))
        return (Part(layout, layout, Band(0, self.width - 1)),)

    def kept(self, length):
        return min(self.reach + 1, length), nothing()


@dataclass(frozen=True)
class Strided(HeadPattern):
    """Window and Column in one head (merged, section 5.2 of arXiv 1904.10509).

    `window` keys up to the query, `stride` of them by default, and those at multiples of the
    stride before.
    """

    name = "strided"
    stride: int
    window: int = 0

    def __post_init__(self):
        self.check(stride=1, window=0)

    @property
    def width(self) -> int:
        return self.window or self.stride

    def mask(self, queries, keys, length):
        apart = queries - keys
        return (apart >= 0) & ((apart < self.width) | (apart % self.stride == 0))

    def visited(self, length):
        at = np.arange(length)
        far = np.maximum(at // self.stride - (self._steps - 1), 0)
        return np.minimum(at, self.width - 1) + 1 + far

    @property
    def _steps(self) -> int:
        """Multiples of the stride, from this one on, that the window does not hold."""
        return -(-self.width // self.stride)

    def parts(self, length):
        near = Part(Span(), Span(), Band(0, self.width - 1))
        layout = Residues(self.stride)
        far = Part(layout, layout, Band(low=self._steps))
        return (near, far) if self._steps * self.stride < length else (near,)


@dataclass(frozen=True)
class Local(HeadPattern):
    """The query's own block of `block` positions, up to the query: the first fixed head.

    And all of the `before` blocks before it: one is what Transformer-XL reads, its segment and the
    memory of the one before (arXiv 1901.02860).
    """

    name = "local"
    block: int
    before: int = 0

    def __post_init__(self):
        self.check(block=1, before=0)

    def mask(self, queries, keys, length):
        return Recent(self.block, self.before).mask(queries, keys)

    def visited(self, length):
        at = np.arange(length)
        return at - np.maximum(at // self.block - self.before, 0) * self.block + 1

    def parts(self, length):
        if self.before:
            return (Part(Span(), Span(), Recent(self.block, self.before)),)
        layout = Blocks(min(self.block, length))
        return (Part(layout, layout),)

    def kept(self, length):
        return min((self.before + 1) * self.block, length), nothing()


@dataclass(frozen=True)
class Fixed(HeadPattern):
    """The query's own block and `columns` last places of every block before it, in one head.

    Several vertical heads: head v of them reads the places that lie v times `columns` further to
    the front (`|` gives every group of heads its own: `fixed:128,16,0|fixed:128,16,1`).
    """

    name = "fixed"
    block: int
    columns: int = 1
    vertical: int = 0

    def __post_init__(self):
        self.check(block=1, columns=1, vertical=0)
        if (self.vertical + 1) * self.columns > self.block:
            raise BadInput(
                f"a fixed pattern of blocks of {self.block} has no {self.columns} columns for "
                f"vertical head {self.vertical}; give at most {self.block // self.columns - 1}"
                if self.columns <= self.block
                else f"a fixed pattern of blocks of {self.block} has at most as many columns, "
                f"not {self.columns}"
            )

    @property
    def places(self) -> tuple[int, int]:
        """Of a block the places [first, last) that later blocks read."""
        last = self.block - self.vertical * self.columns
        return last - self.columns, last

    def _summary(self, queries, keys):
        first, last = self.places
        place = keys % self.block
        before = queries // self.block > keys // self.block
        return before & (place >= first) & (place < last)

    def mask(self, queries, keys, length):
        own = queries // self.block == keys // self.block
        return (own & (queries >= keys)) | self._summary(queries, keys)

    def visited(self, length):
        at = np.arange(length)
        return at // self.block * self.columns + at % self.block + 1

    def parts(self, length):
        layout = Blocks(min(self.block, length))
        return (Part(layout, layout), *self._before(length))

    def kept(self, length):
        at = np.arange(length, dtype=np.int32)
        first, last = self.places
        return min(self.block, length), at[(at % self.block >= first) & (at % self.block < last)]

    def _before(self, length):
        if length <= self.block:
            return ()
        stairs = Stairs(self.block, self.columns)
        # The first block has no other before it.
        return (Part(Span(), Columns(self.block, *self.places), stairs),)


@dataclass(frozen=True)
class Summary(Fixed):
    """The second fixed head alone: the last places of all blocks, up to the query, and itself."""

    name = "summary"

    def mask(self, queries, keys, length):
        first, last = self.places
        own = queries // self.block == keys // self.block
        place = keys % self.block
        column = (place >= first) & (place < last) & (keys <= queries)
        return (own & (column | (keys == queries))) | self._summary(queries, keys)

    def visited(self, length):
        first, last = self.places
        at = np.arange(length)
        place = at % self.block
        columns = np.clip(place - first + 1, 0, self.columns)
        itself = (place < first) | (place >= last)
        return at // self.block * self.columns + columns + itself

    def parts(self, length):
        layout = Blocks(min(self.block, length))
        return (Part(layout, layout, Corner(*self.places)), *self._before(length))

    def kept(self, length):
        return 1, super().kept(length)[1]
