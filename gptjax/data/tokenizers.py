"""Text to ids and back, exactly: bytes, sentencepiece BPE or unigram, and plain symbols.

Sentencepiece treats some characters in its own way: it cuts training text at newlines, writes
spaces as U+2581 and reads U+2581 as a space, drops training sentences with tabs or U+2585, and
ends strings at NUL in places. A model trained here therefore never sees them: they are written
as private-use characters, and a private-use character that the text really has is written as
an escape and a letter. The count of UTF-8 bytes that an id stands for stays exact and free of
context: the escape counts 2 and the letter 1, which makes the 3 of such a character.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from gptjax.data.config import absolute
from gptjax.errors import BadInput

RECORD = "tokenizer.json"
MODEL = "tokenizer.model"
SENTENCE_BYTES = 4000  # training text is handed over in pieces of about this size
MAX_MODEL_BYTES = 1 << 28  # a million pieces take some 20 MB
NO_LOG = 3  # sentencepiece's errors reach us as exceptions; its log of them would go to stderr
TRAINER_THREADS = 2  # fixed, since the unigram trainer sums in an order that depends on it

FIRST_SYMBOL = 0x100  # the character that id 0 of a `SymbolTokenizer` stands for
MOST_SYMBOLS = 50_000  # that end below the surrogates

IMAGES = {
    "\n": "\ue00a",
    "\t": "\ue009",
    "\r": "\ue00d",
    "\0": "\ue000",
    "\u2581": "\ue001",
    "\u2585": "\ue002",
}
ESCAPE = "\ue00f"
_RESERVED = [*IMAGES.values(), ESCAPE]
_LETTERS = "abcdefg"  # ESCAPE + letter k stands for the reserved character k itself
_ORIGINALS = {image: original for original, image in IMAGES.items()}
_FIND_RESERVED = re.compile(f"[{''.join(_RESERVED)}]")
_FIND_ESCAPED = re.compile(f"{ESCAPE}([{_LETTERS}])|[{''.join(_RESERVED)}]")


class Tokenizer(Protocol):
    """What the rest of the project asks of a tokenizer.

    `token_bytes` is int32 [vocab_size]: UTF-8 bytes that each id stands for, 0 for the
    separator, so that nats / (sum of token_bytes of the targets) / ln 2 is bits per byte.
    """

    kind: str
    vocab_size: int
    separator_id: int
    sha256: str
    token_bytes: np.ndarray

    def encode(self, text: str) -> np.ndarray: ...
    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def save(self, folder: Path) -> None: ...


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8, 256 separates documents."""

    kind = "bytes"
    vocab_size = 257
    separator_id = 256
    sha256 = hashlib.sha256(b"bytes of UTF-8, separator 256").hexdigest()

    def __init__(self):
        self.token_bytes = np.ones(self.vocab_size, np.int32)
        self.token_bytes[self.separator_id] = 0

    def encode(self, text: str) -> np.ndarray:
        """int32 [bytes]."""
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One array for each text, in the smallest dtype."""
        return [np.frombuffer(_utf8(text), np.uint8) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text; separators stand for nothing, bytes that are not UTF-8 for U+FFFD."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", "replace")

    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer` needs."""
        _save_record(self, folder)


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

    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer` needs."""
        _save_record(self, folder)


class SentencePieceTokenizer:
    """A sentencepiece model, trained here or brought along.

    A model trained here has the private-use characters in its vocabulary and gets its text
    escaped; one that does not have them is fed the text as it is, and `exact` tells whether
    its own normalisation keeps text whole.
    """

    def __init__(self, model: bytes, kind: str, source: str = "the model"):
        import sentencepiece

        self.kind = kind
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        sentencepiece.set_min_log_level(NO_LOG)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.vocab_size = self._processor.vocab_size() if model else 0
        except (RuntimeError, ValueError, TypeError):
            self.vocab_size = 0
        if not self.vocab_size:
            raise BadInput(
                f"{source} is not a sentencepiece model; give the .model file that "
                "sentencepiece wrote, or leave data.tokenizer_file empty to train one"
            )
        processor = self._processor
        separators = [i for i in (processor.bos_id(), processor.eos_id()) if i >= 0]
        if not separators:
            raise BadInput(f"{source} has neither a bos nor an eos piece to separate documents")
        self.separator_id = separators[0]
        unknown = processor.unk_id()
        self.escapes = all(processor.piece_to_id(c) != unknown for c in _RESERVED)
        self.token_bytes = np.array([self._bytes(i) for i in range(self.vocab_size)], np.int32)

    @property
    def exact(self) -> bool:
        """Whether decoding gives back every text that was encoded (tried on a hard one)."""
        text = "  two  spaces\n\ttab\r\nñ \U0001f642 ﬁ\u2581 end "
        return self.decode(self.encode(text)) == text

    def encode(self, text: str) -> np.ndarray:
        """int32 [ids]."""
        return np.array(self._processor.encode(self._prepare(text)), np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array for each text, on all cores."""
        prepared = [self._prepare(text) for text in texts]
        encoded = self._processor.encode(prepared, num_threads=os.cpu_count() or 1)
        return [np.array(ids, np.int32) for ids in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """The text; separators stand for nothing, bytes that are not UTF-8 for U+FFFD."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        ids = ids[(ids != self.separator_id) & (ids < self.vocab_size)]
        text = self._processor.decode(ids.tolist())
        return unescape(text) if self.escapes else text

    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer` needs."""
        _save_record(self, folder)
        (Path(folder) / MODEL).write_bytes(self.model)

    def _prepare(self, text: str) -> bytes:
        return _utf8(escape(text) if self.escapes else text)

    def _bytes(self, number: int) -> int:
        processor = self._processor
        if processor.is_byte(number):
            return 1
        if processor.is_control(number) or processor.is_unknown(number):
            return 0
        piece = processor.id_to_piece(number).replace("\u2581", " ")
        if not self.escapes:
            return len(piece.encode("utf-8"))
        return sum(2 if c == ESCAPE else len(_ORIGINALS.get(c, c).encode("utf-8")) for c in piece)


def escape(text: str) -> str:
    """The same text without the characters that sentencepiece treats in its own way."""
    if _FIND_RESERVED.search(text):
        text = _FIND_RESERVED.sub(lambda m: ESCAPE + _LETTERS[_RESERVED.index(m[0])], text)
    for original, image in IMAGES.items():
        text = text.replace(original, image)
    return text


def unescape(text: str) -> str:
    """The inverse of `escape`; a lone escape, which a model may generate, is dropped."""

    def original(match: re.Match) -> str:
        if match[1]:
            return _RESERVED[_LETTERS.index(match[1])]
        return _ORIGINALS.get(match[0], "")

    return _FIND_ESCAPED.sub(original, text)


def train_sentencepiece(
    kind: str, vocab_size: int, texts: Iterable[str], report: Callable[[str], None]
) -> SentencePieceTokenizer:
    """Train a `bpe` or `unigram` model with `vocab_size` ids on all of `texts`."""
    import io

    import sentencepiece

    report(f"training a {kind} tokenizer of {vocab_size:,} ids")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,  # indentation
            byte_fallback=True,
            character_coverage=0.9999,
            required_chars="".join([*_RESERVED, *_LETTERS]),
            max_sentence_length=1 << 24,  # nothing is left out for its length
            unk_id=0,
            unk_piece="<|unknown|>",
            bos_id=1,
            bos_piece="<|separator|>",
            eos_id=-1,
            pad_id=-1,
            num_threads=TRAINER_THREADS,
            minloglevel=NO_LOG,
        )
    except (RuntimeError, OSError) as error:
        raise BadInput(_training_failure(kind, vocab_size, str(error))) from error
    return SentencePieceTokenizer(model.getvalue(), kind)


def load_tokenizer(folder: str | Path, sha256: str = "") -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`.

    Raises `BadInput` if the files are missing, if the model is not the one recorded beside it
    or, where `sha256` is given, if it is not that one.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / RECORD).read_text())
        kind, recorded = record["kind"], record["sha256"]
        made = None
        if kind == "bytes":
            made = ByteTokenizer()
        elif kind == "symbols":
            made = SymbolTokenizer(record["vocab_size"] - 1)
        model = b"" if made else (folder / MODEL).read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder} holds no whole tokenizer ({error}); copy it again") from error
    found = made.sha256 if made else hashlib.sha256(model).hexdigest()
    if found != recorded or (sha256 and found != sha256):
        expected = sha256 if sha256 and found != sha256 else recorded
        raise BadInput(
            f"{folder / MODEL} is a sentencepiece model of another run: its sha256 is "
            f"{found[:12]}, the recorded one is {expected[:12]}; put the run's own file back"
        )
    return made or SentencePieceTokenizer(model, kind)


def read_sentencepiece(path: str, kind: str) -> SentencePieceTokenizer:
    """The tokenizer in a user's sentencepiece model file."""
    file = absolute(path, "data.tokenizer_file")
    try:
        if file.exists() and not file.is_file():  # a pipe or a device might never end
            raise BadInput(f"data.tokenizer_file {path} is not a file; give sentencepiece's .model")
        if file.stat().st_size > MAX_MODEL_BYTES:
            raise BadInput(f"data.tokenizer_file {path} is too large for a sentencepiece model")
        model = file.read_bytes()
    except OSError as error:
        raise BadInput(f"data.tokenizer_file {path} cannot be read: {error.strerror}") from error
    return SentencePieceTokenizer(model, kind, f"data.tokenizer_file {path}")


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(
            f"character {error.start} of the text is half of a surrogate pair, not Unicode text"
        ) from None


def _save_record(tokenizer: Tokenizer, folder: Path) -> None:
    names = ("kind", "vocab_size", "separator_id", "sha256")
    record = {name: getattr(tokenizer, name) for name in names}
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _sentences(texts: Iterable[str]) -> Iterable[str]:
    """Escaped pieces of about SENTENCE_BYTES, cut after newlines where there are any."""
    newline = IMAGES["\n"]
    for text in texts:
        text = escape(text)
        start = 0
        while start < len(text):
            end = start + SENTENCE_BYTES
            if end < len(text):
                cut = text.rfind(newline, start, end)
                end = cut + 1 if cut > start else end
            yield text[start:end]
            start = end


def _training_failure(kind: str, vocab_size: int, message: str) -> str:
    too_high = re.search(r"[Vv]ocabulary size too high.*?<= ?(\d+)", message, re.DOTALL)
    too_low = re.search(r"smaller than required_chars\. (\d+) vs (\d+)", message)
    if too_high:
        return (
            f"data.vocab_size={vocab_size} is more than this text has pieces for; "
            f"the largest possible is {too_high[1]}"
        )
    if too_low:
        return (
            f"data.vocab_size={vocab_size} is too small for the characters of this text; "
            f"the least is {max(map(int, too_low.groups()))}"
        )
    reason = message.strip().splitlines()[-1][-300:] if message.strip() else "no reason given"
    return f"sentencepiece could not train a {kind} tokenizer of {vocab_size} ids: {reason}"
