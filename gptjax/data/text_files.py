"""The user's text files, read as documents, with one clear line for whatever is wrong in them.

A `.txt` file is one document, a line of a `.jsonl` file is one; either may be packed as `.gz`
or `.zst` (a bare `name.gz` holds plain text).
"""

import glob
import gzip
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from gptjax.errors import BadInput, did_you_mean

KINDS = (".txt", ".jsonl")
PACKED = (".gz", ".zst")
CHUNK = 1 << 20
MAX_DOCUMENT_BYTES = 1 << 30  # a TFDS example is one message of at most 2 GiB


def find_files(patterns: Iterable[str]) -> list[Path]:
    """The files that the globs match, sorted, each once; checked as far as is cheap."""
    found = {}
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)
        matches = sorted(glob.glob(expanded, recursive=True))
        if not matches and os.path.lexists(expanded):
            matches = [expanded]
        if not matches:
            raise BadInput(_no_match(pattern, expanded))
        for match in matches:
            path = Path(match)
            if path.is_dir():
                if glob.has_magic(expanded):
                    continue
                raise BadInput(f"{path} is a folder; give a glob such as '{path}/*.txt'")
            _check(path)
            found[os.path.realpath(path)] = path
    if not found:
        raise BadInput(f"data.files {list(patterns)} match folders only, no file")
    return sorted(found.values())


class Enough(Exception):
    """A file was read as far as was asked, and all was well up to there."""


def read_documents(
    path: Path, text_key: str, most_bytes: int | None = None
) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each document of a file; raises `BadInput` at the first fault.

    Raises `Enough` where the file, unpacked, goes on beyond `most_bytes`.
    """
    kind, packing = _kind(path)
    chunks = _CHUNKS[packing](path)
    if most_bytes is not None:
        chunks = _first(chunks, most_bytes)
    if kind == ".jsonl":
        yield from _json_documents(path, chunks, text_key)
    else:
        yield str(path), _whole_text(path, chunks)


def _first(chunks: Iterable[bytes], most_bytes: int) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        yield chunk
        if size > most_bytes:
            raise Enough


def _no_match(pattern: str, expanded: str) -> str:
    if glob.has_magic(expanded):
        return f"no file matches data.files '{pattern}'; check the folder and the ending"
    folder = Path(expanded).parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return f"file {pattern} does not exist{did_you_mean(Path(expanded).name, names)}"


def _kind(path: Path) -> tuple[str, str]:
    suffixes = [s.lower() for s in path.suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in PACKED else ""
    kind = suffixes[-1] if suffixes and suffixes[-1] in KINDS else ""
    return (kind or ".txt" if packing else kind), packing


def _check(path: Path) -> None:
    if not _kind(path)[0]:
        raise BadInput(f"{path} has an unknown ending; it must be .txt, .jsonl, .gz or .zst")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device might never end
            raise BadInput(f"{path} is neither a file nor a folder; give text files")
        with open(path, "rb"):
            pass
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    if status.st_size == 0:
        raise BadInput(f"{path} is empty; remove it from data.files or fill it")


def _plain_chunks(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error


def _gzip_chunks(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except EOFError:
        raise BadInput(f"{path} is truncated: its gzip data end too early; copy it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(f"{path} is not whole gzip data: {error}") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    # A stream reader ends silently in a cut frame; a decompression object tells by `eof`.
    import zstandard

    unpacker, started = zstandard.ZstdDecompressor().decompressobj(), False
    try:
        for chunk in _plain_chunks(path):
            while chunk:
                if unpacker.eof:
                    unpacker, started = zstandard.ZstdDecompressor().decompressobj(), False
                started = True
                if data := unpacker.decompress(chunk):
                    yield data
                chunk = unpacker.unused_data if unpacker.eof else b""
    except zstandard.ZstdError as error:
        raise BadInput(f"{path} is not whole zstd data: {error}") from error
    if started and not unpacker.eof:
        raise BadInput(f"{path} is truncated: its zstd frame is not finished; copy it again")


_CHUNKS = {"": _plain_chunks, ".gz": _gzip_chunks, ".zst": _zstd_chunks}


def _whole_text(path: Path, chunks: Iterable[bytes]) -> str:
    parts, size = [], 0
    for chunk in chunks:
        _refuse_nul(path, chunk, size)  # in time: a binary file may be endless
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_DOCUMENT_BYTES:
            raise BadInput(
                f"{path} holds over {MAX_DOCUMENT_BYTES} bytes in one document; "
                "cut it into several files or into JSON lines"
            )
    text = _decoded(path, b"".join(parts), 0)
    if not text:
        raise BadInput(f"{path} is empty; remove it from data.files or fill it")
    return text


def _refuse_nul(path: Path, data: bytes, offset: int) -> None:
    nul = data.find(b"\0")
    if nul >= 0:
        raise BadInput(
            f"{path} is binary: NUL at byte {offset + nul}; give text files"
            " (UTF-16 must be converted to UTF-8)"
        )


def _decoded(path: Path, data: bytes, offset: int) -> str:
    _refuse_nul(path, data, offset)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path} is not UTF-8 at byte offset {offset + error.start} "
            f"(byte 0x{data[error.start]:02x}); convert it, for example with iconv -t UTF-8"
        ) from None


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    # Only b"\n" ends a line: JSON strings may hold U+2028 and U+0085 as they are.
    rest = []
    for chunk in chunks:
        *complete, tail = chunk.split(b"\n")
        if complete:
            yield b"".join([*rest, complete[0]])
            yield from complete[1:]
            rest = []
        rest.append(tail)
    yield b"".join(rest)


def _json_documents(
    path: Path, chunks: Iterable[bytes], text_key: str
) -> Iterator[tuple[str, str]]:
    offset = 0
    for number, line in enumerate(_lines(chunks), 1):
        where = f"{path}:{number}"
        text = _decoded(path, line, offset)
        offset += len(line) + 1
        if number == 1:
            text = text.removeprefix("\ufeff")  # a byte-order mark, as some editors put it
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{where} is not whole JSON: {error}") from None
        if not isinstance(value, dict):
            raise BadInput(f"{where} is a JSON {type(value).__name__}, not an object with text")
        if text_key not in value:
            fields = ", ".join(sorted(value)[:10]) or "none"
            raise BadInput(f"{where} has no field {text_key!r}, only {fields}; set data.text_key")
        document = value[text_key]
        if not isinstance(document, str):
            raise BadInput(f"{where} field {text_key!r} is {type(document).__name__}, not text")
        try:
            document.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadInput(
                f"{where} field {text_key!r} holds half of a surrogate pair "
                f"(character {error.start}), which is not Unicode text"
            ) from None
        yield where, document
