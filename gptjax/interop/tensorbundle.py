"""Checkpoints of TensorFlow, read without it: NAME.index and NAME.data-00000-of-00001.

The index is a table of sorted keys in LevelDB's format, whose values are protocol buffers that
say where each tensor lies (tensorflow/core/util/tensor_bundle). Its checksums are held against
what is read. The same names in an npz file or in safetensors are read too, as converters leave
them.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from gptjax.errors import BadInput
from gptjax.interop.checksums import crc32c, masked
from gptjax.interop.layouts import Range
from gptjax.interop.stores import Store, any_safetensors, check_file

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes at the end of an index
DTYPES = {1: np.float32, 2: np.float64, 14: ml_dtypes.bfloat16, 19: np.float16}  # of DataType
NAMES = {3: "int32", 7: "string", 9: "int64"}


class BundleStore(Store):
    """The tensors of one checkpoint, `path` being that of its index."""

    def __init__(self, path: Path):
        self.source = str(path)
        check_file(path)
        try:
            entries = {k.decode(): _message(v) for k, v in _table(path.read_bytes())}
            shards = _number(entries.pop(""), 1, 1)
            self._entries = {name: _entry(fields) for name, fields in entries.items()}
        except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
            raise BadInput(f"{path} is damaged, cut short or no index: {error}") from None
        self.shapes = {name: shape for name, (shape, *_) in self._entries.items()}
        self._verified: set[str] = set()
        parts = [
            path.with_suffix(f".data-{n:05d}-of-{shards:05d}") for n in range(min(shards, 10**5))
        ]
        for part in parts:
            check_file(part)
        sizes = [part.stat().st_size for part in parts]
        empty = np.zeros(0, np.uint8)
        self._data = [
            np.memmap(p, np.uint8, "r") if n else empty for p, n in zip(parts, sizes, strict=True)
        ]
        for name, (shape, kind, shard, offset, size, _) in self._entries.items():
            known = np.dtype(DTYPES.get(kind, np.uint8)).itemsize
            if shard >= len(parts) or (kind in DTYPES and size != math.prod(shape) * known):
                raise BadInput(f"{path} is damaged: its entry of the tensor {name!r} cannot be")
            if offset + size > sizes[shard]:
                raise BadInput(
                    f"{parts[shard]} is cut short: the tensor {name!r} ends at byte {offset + size}"
                )

    def kind(self, name: str) -> str | None:
        found = self._entries[name][1]
        return None if found in DTYPES else NAMES.get(found, f"DataType {found}")

    def dtype(self, name: str) -> str:
        return np.dtype(DTYPES[self._entries[name][1]]).name

    def read(self, name: str, ranges: tuple[Range, ...]) -> np.ndarray:
        shape, kind, shard, offset, size, checksum = self._entries[name]
        data = np.asarray(self._data[shard][offset : offset + size])
        if name not in self._verified:
            if masked(crc32c(data)) != checksum:
                raise BadInput(
                    f"{self.source}: the tensor {name!r} is damaged: its checksum is another"
                )
            self._verified.add(name)
        whole = data.view(DTYPES[kind]).reshape(shape)
        return np.array(whole[tuple(slice(*span) for span in ranges)])


class NpzStore(Store):
    """The arrays of an npz file; object arrays, which are pickles, are refused."""

    def __init__(self, path: Path):
        self.source = str(path)
        check_file(path)
        try:
            self._arrays = np.load(path, allow_pickle=False)
            self.shapes = {name: self._arrays[name].shape for name in self._arrays.files}
        except OSError:
            raise
        except Exception as error:  # zip files fail in many ways
            raise BadInput(f"{path} is damaged or holds pickles: {error}") from None

    def kind(self, name: str) -> str | None:
        found = self._arrays[name].dtype
        return None if found.kind == "f" else found.name

    def dtype(self, name: str) -> str:
        return self._arrays[name].dtype.name

    def read(self, name: str, ranges: tuple[Range, ...]) -> np.ndarray:
        return self._arrays[name][tuple(slice(*span) for span in ranges)]


def open_tensorflow(folder: Path) -> Store:
    """The tensors in a folder: of its newest checkpoint, or of an npz or safetensors file."""
    indices = sorted(folder.glob("*.index"), key=lambda path: path.stat().st_mtime)
    if indices:
        return BundleStore(indices[-1])
    arrays = sorted(folder.glob("*.npz"))
    if arrays:
        return NpzStore(arrays[0])
    return any_safetensors(folder, str(folder))


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table whose blocks are not compressed."""
    if len(data) < FOOTER or struct.unpack("<Q", data[-8:])[0] != MAGIC:
        raise ValueError("it has no footer of an index")
    at = len(data) - FOOTER
    _, at = _varint(data, at)  # the metaindex, of which there is no use
    _, at = _varint(data, at)
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    for _, handle in _block(data, offset, size):
        start, at = _varint(handle, 0)
        length, at = _varint(handle, at)
        yield from _block(data, start, length)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if offset + size + 5 > len(data):
        raise ValueError("a block ends behind the file")
    stored = struct.unpack_from("<I", data, offset + size + 1)[0]
    if masked(crc32c(data[offset : offset + size + 1])) != stored:
        raise ValueError(f"the checksum of its block at byte {offset} is another")
    if data[offset + size]:
        raise ValueError("its blocks are compressed, which is not read")
    block = data[offset : offset + size]
    restarts = struct.unpack("<I", block[-4:])[0]
    end, at, key = len(block) - 4 * (restarts + 1), 0, b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        at += fresh
        yield key, block[at : at + length]
        at += length


def _entry(fields: dict[int, list]) -> tuple[tuple[int, ...], int, int, int, int, int]:
    """Shape, dtype, file, first byte, bytes and checksum of a tensor."""
    dims = _message(fields.get(2, [b""])[0]).get(2, [])
    shape = tuple(_number(_message(dim), 1) for dim in dims)
    checksum = fields.get(6, [bytes(4)])[0]
    if type(checksum) is not bytes or len(checksum) != 4:
        raise ValueError("a checksum is no number of 4 bytes")
    return shape, *(_number(fields, n) for n in (1, 3, 4, 5)), struct.unpack("<I", checksum)[0]


def _number(fields: dict[int, list], number: int, default: int = 0) -> int:
    value = fields.get(number, [default])[0]
    if type(value) is not int:
        raise ValueError(f"field {number} is no number")
    return value


def _message(data: bytes) -> dict[int, list]:
    """The fields of a protocol buffer by number: integers, or bytes."""
    fields: dict[int, list] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 2:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
            value, at = data[at : at + length], at + length
        else:
            raise ValueError(f"a field of wire type {wire}")
        fields.setdefault(number, []).append(value)
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number is too long")
