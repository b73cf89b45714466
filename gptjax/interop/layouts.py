"""How one array of ours lies in a tensor of another checkpoint, in a line of text.

A layout names the axes of the other tensor from the outermost: `(H K) D` is a matrix whose rows
are the components of all heads, `D (c H K)` one whose columns are queries, keys and values one
after the other (c: which of them). The letters are those of the arrays of a model: V ids, S
positions, R rows of another table, D, E and W widths, C classes, H heads, G key/value heads, K
components of a head, F columns of a feed-forward layer, X experts; `1` is an axis of size one.
`K~` says that rotary positions turn neighbours (arXiv 2104.09864) where the models here turn
halves: components are then in another order.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from gptjax.errors import BadInput

Range = tuple[int, int]
Fetch = Callable[[str, tuple[Range, ...]], np.ndarray]  # a block of a named tensor

PART = 1 << 18  # numbers

# The axes of every kind of parameter, by the end of its path.
OURS = {
    "embedding": "V E",
    "positions": "S D",
    "embedding_in": "E D",
    "embedding_out": "D E",
    "head": "V E",
    "head_bias": "V",
    "scale": "D",
    "bias": "D",
    "query": "D H K",
    "key": "D G K",
    "value": "D G K",
    "output": "H K D",
    "query_bias": "H K",
    "key_bias": "G K",
    "value_bias": "G K",
    "output_bias": "D",
    "distance": "D H K",
    "content_bias": "H K",
    "place_bias": "H K",
    "query_start": "D",
    "type_keys": "R H K",
    "type_bias": "H K",
    "distance_scores": "R H",
    "types": "R D",
    "tasks": "R D",
    "transform": "D W",
    "transform_bias": "W",
    "pooler": "D W",
    "pooler_bias": "W",
    "classes": "D C",
    "classes_bias": "C",
    "token_classes": "D C",
    "token_classes_bias": "C",
    "mlp/up": "D F",
    "mlp/gate": "D F",
    "mlp/down": "F D",
    "up_bias": "F",
    "gate_bias": "F",
    "down_bias": "D",
    "router": "D X",
    "experts/up": "X D F",
    "experts/gate": "X D F",
    "experts/down": "X F D",
}


def axes_of(path: str) -> tuple[str, ...]:
    """The axes of the parameter with this path, without that of stacked layers."""
    *parents, last = path.split("/")
    key = f"{parents[-1]}/{last}" if parents and last in ("up", "gate", "down") else last
    return tuple(OURS[key].split())


@functools.lru_cache(maxsize=256)
def parsed(layout: str) -> tuple[tuple[str, ...], ...]:
    """The axes of a layout, each with the axes of ours that are merged in it."""
    return tuple(
        tuple(group.strip("()").split()) for group in re.findall(r"\([^)]*\)|[^\s()]+", layout)
    )


@dataclass(frozen=True)
class Piece:
    """One array of ours, or one layer's or one expert's share of it, in one of their tensors.

    axes: of ours; sizes: of every axis; part: which of the merged arrays, such as 1 for keys;
    turned: how many components of a head rotary positions turn, for the order of `K~`.
    """

    name: str
    layout: str
    axes: tuple[str, ...]
    sizes: Mapping[str, int]
    part: int = 0
    turned: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of their tensor."""
        return tuple(math.prod(map(self._size, group)) for group in parsed(self.layout))

    def _size(self, axis: str) -> int:
        return 1 if axis == "1" else self.sizes[axis.removesuffix("~")]

    @property
    def order(self) -> np.ndarray:
        """Where each component of a head stands in theirs."""
        half = self.turned // 2
        turned = np.arange(self.turned).reshape(half, 2).T.reshape(-1)
        return np.concatenate([turned, np.arange(self.turned, self.sizes["K"])])

    def _flat(self) -> list[str]:
        return [axis for group in parsed(self.layout) for axis in group]

    def _onto(self) -> tuple[int, ...]:
        """The permutation that puts the merged axes of theirs in our order, others first."""
        flat = [axis.removesuffix("~") for axis in self._flat()]
        others = [n for n, axis in enumerate(flat) if axis not in self.axes]
        return (*others, *(flat.index(axis) for axis in self.axes))

    def read(self, fetch: Fetch, index: tuple[Range, ...]) -> np.ndarray:
        """A block of ours; no more of their tensor is read than the ranges that hold it."""
        wanted = dict(zip(self.axes, index, strict=True))
        wanted["c"] = (self.part, self.part + 1)
        wanted["1"] = (0, 1)
        ranges, shape, cuts = [], [], []
        for group in parsed(self.layout):
            start, stop, leading = 0, 1, True
            for axis in group:
                size, name = self._size(axis), axis.removesuffix("~")
                low, high = (0, size) if axis.endswith("~") else wanted[name]
                if leading:  # a range of this axis is a range of the merged one
                    start, stop = start * size + low, start * size + high
                    shape.append(high - low)
                    cuts.append(slice(None))
                    leading = high - low == 1
                else:
                    start, stop = start * size, stop * size
                    shape.append(size)
                    cuts.append(slice(low, high))
            ranges.append((start, stop))
        block = np.asarray(fetch(self.name, tuple(ranges))).reshape(shape)[tuple(cuts)]
        turned = next((n for n, axis in enumerate(self._flat()) if axis.endswith("~")), None)
        if turned is not None:
            block = np.take(block, self.order[slice(*wanted["K"])], axis=turned)
        return block.transpose(self._onto()).reshape([high - low for low, high in index])

    def write(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Put the whole of ours where it belongs in their tensor."""
        flat = self._flat()
        view = theirs.reshape([self._size(axis) for axis in flat])
        view = view[tuple(self._chosen(axis) for axis in flat)].transpose(self._onto())
        view = view.reshape(ours.shape) if view.shape != ours.shape else view
        if any(axis.endswith("~") for axis in flat):
            at = [slice(None)] * ours.ndim
            at[self.axes.index("K")] = self.order
            view[tuple(at)] = ours
        else:
            view[...] = ours

    def _chosen(self, axis: str) -> slice:
        return slice(self.part, self.part + 1) if axis == "c" else slice(None)


@dataclass(frozen=True)
class Leaf:
    """An array of ours: pieces in the order of its leading axes (layers, experts)."""

    path: str
    shape: tuple[int, ...]
    lead: tuple[int, ...]
    pieces: tuple[Piece, ...]

    def read(self, fetch: Fetch, index: tuple[slice, ...], dtype, source: str) -> np.ndarray:
        """The block of this array that `index` names.

        BadInput, which begins with the source, for numbers that are not finite.
        """
        spans = [s.indices(size) for s, size in zip(index, self.shape, strict=True)]
        ranges = [(low, high) for low, high, _ in spans]
        lead, inner = ranges[: len(self.lead)], tuple(ranges[len(self.lead) :])
        if not lead:
            name = self.pieces[0].name
            return _cast(self.pieces[0].read(fetch, inner), dtype, f"{source}: {name}")
        out = np.empty([high - low for low, high in ranges], dtype)
        for at in itertools.product(*(range(*span) for span in lead)):
            piece = self.pieces[np.ravel_multi_index(at, self.lead)]
            here = tuple(n - low for n, (low, _) in zip(at, lead, strict=True))
            out[here] = _cast(piece.read(fetch, inner), dtype, f"{source}: {piece.name}")
        return out


def _cast(block: np.ndarray, dtype, name: str) -> np.ndarray:
    """The block in another dtype, in which its numbers have to be finite."""
    with np.errstate(over="ignore", invalid="ignore"):  # told below
        made = block.astype(dtype, copy=False)
    if not finite(made):
        raise not_finite(name, str(made.dtype), finite(block))
    return made


def finite(block: np.ndarray) -> bool:
    """Whether all numbers are finite.

    It is found in parts, so that what numpy says of each number stays in the cache: 0.3 s for a
    gigabyte of float32.
    """
    if not block.size:
        return True
    longest = int(np.argmax(np.abs(block.strides))) if block.ndim else 0
    block = np.moveaxis(np.atleast_1d(block), longest, 0)
    step = max(1, len(block) * PART // block.size)
    return all(np.isfinite(block[n : n + step]).all() for n in range(0, len(block), step))


def not_finite(name: str, dtype: str, were: bool) -> BadInput:
    """The error for a tensor with numbers that are not finite; `were`: before they were cast."""
    if not were:
        return BadInput(f"{name} holds numbers that are not finite")
    wider = "bfloat16" if dtype == "float16" else "float32"
    return BadInput(f"{name} has numbers beyond {dtype}; give --dtype={wider}")
