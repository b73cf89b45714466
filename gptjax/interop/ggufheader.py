"""The header of a GGUF file, walked before the package gguf reads it.

That package believes every length: a flipped bit in one makes it loop for hours, and in an
offset makes it read other bytes. Here every length is held against the file, and tensors have to
lie one behind the other without gaps, as llama.cpp asks too (ggml-org/ggml, docs/gguf.md).
"""

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path

from gptjax.errors import BadInput

VERSIONS = (2, 3)
SIZES = (1, 1, 2, 2, 4, 4, 4, 1, None, None, 8, 8, 8)  # bytes of a value, by its type
UINT32, STRING, ARRAY = 4, 8, 9
MOST_DIMS, MOST_NAME = 4, 65535


def check_header(path: Path, blocks: Mapping[int, tuple[int, int]]) -> None:
    """BadInput that names the field or the tensor whose length, type or place cannot be.

    blocks: numbers in a block and its bytes, by type of tensor.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BadInput(f"{path} is no GGUF file: it does not begin with GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            walk = _Walk(data)
            try:
                walk.header(blocks)
                walk.tensors()
            except (struct.error, IndexError, ValueError) as error:
                what = str(error) if type(error) is ValueError else "it ends there"
                raise BadInput(
                    f"{path} is damaged or cut short in {walk.where}, at byte {walk.at}: {what}"
                ) from None


class _Walk:
    """A place in a file that moves over what stands there; `where` says what that is."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at, self.order, self.where = data, 4, "<", "its header"
        self.alignment, self.found = 32, []

    def header(self, blocks: Mapping[int, tuple[int, int]]) -> None:
        if not struct.unpack_from("<I", self.data, self.at)[0] & 0xFFFF:
            self.order = ">"
        version = self.number("I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}; 2 and 3 are read")
        tensors, fields = self.number("Q"), self.number("Q")
        for n in range(fields):
            self.where = f"its field {n}"
            name = self.string()
            self.where = f"its field {name!r}"
            kind, start = self.number("I"), self.at
            self.value(kind)
            if name == "general.alignment":
                self.alignment = struct.unpack_from(self.order + "I", self.data, start)[0]
                if kind != UINT32 or self.alignment.bit_count() != 1:
                    raise ValueError("it is no power of two")
        for n in range(tensors):
            self.where = f"its tensor {n}"
            name = self.string()
            self.where = f"its tensor {name!r}"
            dims = self.number("I")
            if dims > MOST_DIMS:
                raise ValueError(f"it has {dims} axes")
            shape = [self.number("Q") for _ in range(dims)]
            kind, offset = self.number("I"), self.number("Q")
            if kind not in blocks:
                raise ValueError(f"it is of type {kind}, which is none")
            numbers, size = blocks[kind]
            if shape and shape[0] % numbers:
                raise ValueError(f"its rows of {shape[0]} numbers are no blocks of {numbers}")
            self.found.append((name, offset, math.prod(shape) // numbers * size))

    def tensors(self) -> None:
        """Whether the tensors fill the rest of the file, one behind the other."""
        start = expected = self._aligned(self.at)
        for name, offset, size in self.found:
            self.where, self.at = f"its tensor {name!r}", start + offset
            if self.at != expected:
                raise ValueError(f"it begins there, and the one before it ends for {expected}")
            if self.at + size > len(self.data):
                raise ValueError(f"it ends for byte {self.at + size}, the file {len(self.data)}")
            expected = self._aligned(self.at + size)
        if len(self.data) > expected:
            self.at = expected
            raise ValueError(f"{len(self.data) - expected} bytes follow it, the last one")

    def _aligned(self, at: int) -> int:
        return -(-at // self.alignment) * self.alignment

    def number(self, kind: str) -> int:
        found = struct.unpack_from(self.order + kind, self.data, self.at)[0]
        self.at += struct.calcsize(kind)
        return found

    def string(self) -> str:
        """The next string, which is a name."""
        length, start = self.number("Q"), self.at
        if length > MOST_NAME:
            raise ValueError(f"its name would have {length} bytes")
        self.skip(length)
        try:
            return self.data[start : self.at].decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("its name is not UTF-8") from None

    def skip(self, length: int) -> None:
        if length > len(self.data) - self.at:
            raise ValueError(f"{length} bytes are to follow, and {len(self.data) - self.at} do")
        self.at += length

    def value(self, kind: int, inside: bool = False) -> None:
        if kind >= len(SIZES) or (kind == ARRAY and inside):
            raise ValueError(f"it has a value of type {kind}")
        if kind == STRING:
            self.skip(self.number("Q"))
        elif kind == ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner < len(SIZES) and SIZES[inner]:
                self.skip(SIZES[inner] * count)
            else:
                for _ in range(count):
                    self.value(inner, inside=True)
        else:
            self.skip(SIZES[kind])
