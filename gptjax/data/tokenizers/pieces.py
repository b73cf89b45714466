"""Sentencepiece models: BPE or unigram, trained here with an exact round trip, or brought along.

Sentencepiece treats some characters in its own way: it cuts training text at newlines, writes
spaces as U+2581 and reads U+2581 as a space, drops training sentences with tabs or U+2585, and
ends strings at NUL in places. A model trained here therefore never sees them: they are written
as private-use characters, and a private-use character that the text really has is written as
an escape and a letter. The count of UTF-8 bytes that an id stands for stays exact and free of
context: the escape counts 2 and the letter 1, which makes the 3 of such a character.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from gptjax.data.config import absolute
from gptjax.data.tokenizers.base import HARD_TEXT, read_file, save_record, utf8
from gptjax.errors import BadInput

MODEL = "tokenizer.model"
SENTENCE_BYTES = 4000  # training text is handed over in pieces of about this size
NO_LOG = 3  # sentencepiece's errors reach us as exceptions; its log of them would go to stderr
TRAINER_THREADS = 2  # fixed, since the unigram trainer sums in an order that depends on it

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
LETTERS = "abcdefg"  # ESCAPE + letter k stands for the reserved character k itself
_ORIGINALS = {image: original for original, image in IMAGES.items()}
_FIND_RESERVED = re.compile(f"[{''.join(_RESERVED)}]")
_FIND_ESCAPED = re.compile(f"{ESCAPE}([{LETTERS}])|[{''.join(_RESERVED)}]")


class SentencePieceTokenizer:
    """A sentencepiece model, trained here or brought along.

    A model trained here has the private-use characters in its vocabulary and gets its text
    escaped; one that does not have them is fed the text as it is, and `exact` tells whether
    its own normalisation keeps text whole. `kept` is for others alone (`base.kept_of`).
    """

    def __init__(
        self,
        model: bytes,
        kind: str,
        source: str = "the model",
        kept: Mapping[str, bool | str] | None = None,
    ):
        import sentencepiece

        self.kind = kind
        self.model = model
        self.kept = dict(kept or {})
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
        roles = {role: getattr(processor, f"{role}_id")() for role in ("bos", "eos", "unk", "pad")}
        self.special = {role: number for role, number in roles.items() if number >= 0}
        unknown = processor.unk_id()
        self.escapes = all(processor.piece_to_id(c) != unknown for c in _RESERVED)
        try:
            sizes = [self._bytes(i) for i in range(self.vocab_size)]
        except UnicodeDecodeError:
            raise BadInput(f"{source} is damaged: it has a piece that is not UTF-8") from None
        self.token_bytes = np.array(sizes, np.int32)

    @property
    def exact(self) -> bool:
        """Whether decoding gives back every text that was encoded (tried on a hard one)."""
        return self.decode(self.encode(HARD_TEXT)) == HARD_TEXT

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

    def surfaces(self) -> list[bytes]:
        """The bytes that each id writes inside a text, none for special ones."""
        return [self._surface(number) for number in range(self.vocab_size)]

    def id_of(self, token: str) -> int | None:
        """The id of a piece by its name, None without one."""
        number = self._processor.piece_to_id(token)
        return number if self._processor.id_to_piece(number) == token else None

    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer` needs."""
        save_record(self, folder, **self.kept)
        (Path(folder) / MODEL).write_bytes(self.model)

    def _prepare(self, text: str) -> bytes:
        return utf8(escape(text) if self.escapes else text)

    def _surface(self, number: int) -> bytes:
        processor = self._processor
        piece = processor.id_to_piece(number)
        if processor.is_byte(number):
            return bytes([int(piece[3:5], 16)])  # <0x0A>
        if processor.is_control(number) or processor.is_unknown(number):
            return b""
        piece = piece.replace("\u2581", " ")
        return (unescape(piece) if self.escapes else piece).encode("utf-8")

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
        text = _FIND_RESERVED.sub(lambda m: ESCAPE + LETTERS[_RESERVED.index(m[0])], text)
    for original, image in IMAGES.items():
        text = text.replace(original, image)
    return text


def unescape(text: str) -> str:
    """The inverse of `escape`; a lone escape, which a model may generate, is dropped."""

    def original(match: re.Match) -> str:
        if match[1]:
            return _RESERVED[LETTERS.index(match[1])]
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
            required_chars="".join([*_RESERVED, *LETTERS]),
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


def read_sentencepiece(path: str, kind: str) -> SentencePieceTokenizer:
    """The tokenizer in a user's sentencepiece model file."""
    file = absolute(path, "data.tokenizer_file")
    name = f"data.tokenizer_file {path}"
    model = read_file(file, name, "sentencepiece's .model")
    return SentencePieceTokenizer(model, kind, name)


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
