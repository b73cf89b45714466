"""What a tokenizer is, the two that need no file, and what all of them share."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from gptjax.errors import BadInput

RECORD = "tokenizer.json"
MAX_MODEL_BYTES = 1 << 28  # a million pieces take some 20 MB
FIRST_SYMBOL = 0x100  # the character that id 0 of a `SymbolTokenizer` stands for
MOST_SYMBOLS = 50_000  # that end below the surrogates
HARD_TEXT = "  two  spaces\n\ttab\r\nñ n\u0303 \U0001f642 ﬁ\u2581 end "  # few keep it whole
KEPT = {"add_bos_token": bool, "add_eos_token": bool, "chat_template": str}


class Tokenizer(Protocol):
    """What the rest of the project asks of a tokenizer.

    `token_bytes` is int32 [vocab_size]: UTF-8 bytes that each id stands for, 0 for the
    separator, so that nats / (sum of token_bytes of the targets) / ln 2 is bits per byte.
    `special` has the ids of the roles that the vocabulary fills: bos, eos, unk, pad, sep, cls,
    mask. The separator is one of them, and where there is an eos, generation ends at it.
    `surfaces` has the bytes of UTF-8 that each id writes inside a text, none for special ones;
    `id_of` the id of what the vocabulary writes so, such as "<extra_id_0>", None without one.
    """

    kind: str
    vocab_size: int
    separator_id: int
    sha256: str
    token_bytes: np.ndarray
    special: dict[str, int]

    def encode(self, text: str) -> np.ndarray: ...
    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def surfaces(self) -> list[bytes]: ...
    def id_of(self, token: str) -> int | None: ...
    def save(self, folder: Path) -> None: ...


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8, 256 separates documents."""

    kind = "bytes"
    vocab_size = 257
    separator_id = 256
    sha256 = hashlib.sha256(b"bytes of UTF-8, separator 256").hexdigest()

    def __init__(self):
        self.special = {"bos": self.separator_id, "eos": self.separator_id}
        self.token_bytes = np.ones(self.vocab_size, np.int32)
        self.token_bytes[self.separator_id] = 0

    def encode(self, text: str) -> np.ndarray:
        """int32 [bytes]."""
        return np.frombuffer(utf8(text), np.uint8).astype(np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One array for each text, in the smallest dtype."""
        return [np.frombuffer(utf8(text), np.uint8) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text; separators stand for nothing, bytes that are not UTF-8 for U+FFFD."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", "replace")

    def surfaces(self) -> list[bytes]:
        """The byte that each id writes, none for the separator."""
        return [*(bytes([byte]) for byte in range(256)), b""]

    def id_of(self, token: str) -> int | None:
        """None: bytes have no names."""
        return None

    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer` needs."""
        save_record(self, folder)


class SymbolTokenizer:
    """Ids of a made-up language: id i is the character U+0100 + i, the last id is a newline.

    The newline is the separator, also between documents that stand in one text.
    """

    kind = "symbols"

    def __init__(self, symbols: int):
        if not 1 <= symbols <= MOST_SYMBOLS:
            raise BadInput(f"there are {symbols} symbols; give 1 to {MOST_SYMBOLS}")
        self.vocab_size = symbols + 1
        self.separator_id = symbols
        self.special = {"bos": symbols, "eos": symbols}
        self.sha256 = hashlib.sha256(f"symbols {symbols}".encode()).hexdigest()
        characters = (chr(FIRST_SYMBOL + i) for i in range(symbols))
        sizes = [len(character.encode("utf-8")) for character in characters]
        self.token_bytes = np.array([*sizes, 0], np.int32)

    def encode(self, text: str) -> np.ndarray:
        """int32 [characters]; raises `BadInput` for a character that is no symbol."""
        try:
            points = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.int64)
        except UnicodeEncodeError:
            points = np.zeros(1, np.int64)
        ids, between = points - FIRST_SYMBOL, points == ord("\n")
        if not (between | ((ids >= 0) & (ids < self.separator_id))).all():
            raise BadInput(
                f"the text has characters that are none of the {self.separator_id} symbols from "
                f"U+{FIRST_SYMBOL:04X} on"
            )
        return np.where(between, self.separator_id, ids).astype(np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One array for each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The symbols, with a newline for each separator."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        points = np.where(ids == self.separator_id, ord("\n"), ids + FIRST_SYMBOL)
        return points.astype("<u4").tobytes().decode("utf-32-le")

    def surfaces(self) -> list[bytes]:
        """The symbol that each id writes, nothing for the separator."""
        return [*(chr(FIRST_SYMBOL + i).encode() for i in range(self.separator_id)), b""]

    def id_of(self, token: str) -> int | None:
        """None: symbols have no names."""
        return None

    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer` needs."""
        save_record(self, folder)


def utf8(text: str) -> bytes:
    """The bytes of a text; BadInput for halves of surrogate pairs."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(
            f"character {error.start} of the text is half of a surrogate pair, not Unicode text"
        ) from None


def save_record(tokenizer: Tokenizer, folder: Path, **more) -> None:
    """Write what tells `load_tokenizer` which tokenizer this is."""
    names = ("kind", "vocab_size", "separator_id", "sha256")
    record = {name: getattr(tokenizer, name) for name in names} | more
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def kept_of(said: Mapping) -> dict[str, bool | str]:
    """What a tokenizer_config.json or a record says of `KEPT`, which only `export` heeds.

    Encoding puts no bos before a text and no eos behind it here; for others they are kept.
    """
    return {name: said[name] for name, kind in KEPT.items() if isinstance(said.get(name), kind)}


def read_file(path: Path, name: str, what: str) -> bytes:
    """The bytes of a user's file; BadInput, which begins with `name`, says what it should be."""
    try:
        if path.exists() and not path.is_file():  # a pipe or a device might never end
            raise BadInput(f"{name} is not a file; give {what}")
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise BadInput(f"{name} is too large for {what}")
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{name} cannot be read: {error.strerror}") from error
