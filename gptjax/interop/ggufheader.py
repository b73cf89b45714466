"""The header of a GGUF file, walked before the package gguf reads it.

That package believes every length: a flipped bit in one makes it loop for hours, and in an
offset makes it read other bytes. Here every length is held against the file, and tensors have to
lie one behind the other without gaps, as llama.cpp asks too (ggml-org/ggml, docs/gguf.md).
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from gptjax.errors import BadInput

VERSIONS = (2, 3)
SIZES = (1, 1, 2, 2, 4, 4, 4, 1, None, None, 8, 8, 8)  # bytes of a value, by its type
STRING, ARRAY = 8, 9
MOST_DIMS, MOST_NAME = 4, 65535


def check_header(path: Path) -> None:
    """BadInput that names the field or the tensor whose length or type cannot be."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BadInput(f"{path} is no GGUF file: it does not begin with GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            walk = _Walk(data)
            try:
                walk.header()
            except (struct.error, IndexError, ValueError) as error:
                what = str(error) if type(error) is ValueError else "it ends there"
                raise BadInput(
                    f"{path} is damaged or cut short in {walk.where}, at byte {walk.at}: {what}"
                ) from None


def check_places(tensors: list[Any], start: int, alignment: int, size: int, path: Path) -> None:
    """BadInput unless the tensors of a reader of gguf fill the file from `start` to its end."""
    expected = start
    for tensor in tensors:
        if tensor.data_offset != expected:
            raise BadInput(
                f"{path} is damaged: the tensor {tensor.name!r} begins at byte "
                f"{tensor.data_offset}, and the one before it ends for byte {expected}"
            )
        end = tensor.data_offset + tensor.n_bytes
        expected = -(-end // alignment) * alignment
        if end > size:
            raise BadInput(f"{path} is damaged or cut short: it ends in tensor {tensor.name!r}")
    if size > expected:
        raise BadInput(f"{path} is damaged: {size - expected} bytes follow its last tensor")


class _Walk:
    """A place in a file that moves over what stands there; `where` says what that is."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at, self.order, self.where = data, 4, "<", "its header"

    def header(self) -> None:
        if not struct.unpack_from("<I", self.data, self.at)[0] & 0xFFFF:
            self.order = ">"
        version = self.number("I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}; 2 and 3 are read")
        tensors, fields = self.number("Q"), self.number("Q")
        for n in range(fields):
            self.where = f"its field {n}"
            self.where = f"its field {self.string()!r}"
            self.value(self.number("I"))
        for n in range(tensors):
            self.where = f"its tensor {n}"
            self.where = f"its tensor {self.string()!r}"
            dims = self.number("I")
            if dims > MOST_DIMS:
                raise ValueError(f"it has {dims} axes")
            self.skip(8 * dims + 4 + 8)  # sizes, type, offset

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
