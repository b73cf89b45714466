"""Tokenizers of the library `tokenizers`: whatever a tokenizer.json describes.

Two things differ from that library's defaults. The names of special tokens are ordinary text
here (as with `split_special_tokens=True` in transformers), so that no document can forge the
separator; `encode(text, special=True)` reads them. And what a file says of truncation and
padding does not hold.

`token_bytes` is exact for byte-level BPE that keeps its text, and for sentencepiece models with
byte fallback but for the space that they put before a text. WordPiece and GPT-1's BPE drop
spaces, case and accents: there a token counts the bytes that it is written with, a word the
space beside it, an unknown word nothing. That is an approximation: measured, 0.3% over the
bytes of Markdown and 10% under those of indented code.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from gptjax.data.tokenizers.base import HARD_TEXT, save_record, utf8
from gptjax.errors import BadInput

JSON = "huggingface.json"  # beside our record, which has the name tokenizer.json
MOST_IDS = 1 << 24  # what an id may be: the counts of bytes are an array up to the largest
ROLES = ("bos", "eos", "sep", "cls", "unk", "pad", "mask")
MISSING = "{} needs the package tokenizers: pip install 'gptjax[hf]'"


class HuggingFaceTokenizer:
    """The tokenizer that the text of a tokenizer.json describes.

    `separator_id` stands between documents; `special` has the ids of the roles in `ROLES`, as
    far as they are known. `continues` is bool [vocab_size] for WordPiece, which marks the tokens
    that go on with a word, else None. `kept` is for others alone (`base.kept_of`). BadInput where
    the text describes no tokenizer.
    """

    kind = "hf"

    def __init__(
        self,
        text: str,
        separator_id: int,
        special: Mapping[str, int] | None = None,
        source: str = "the tokenizer",
        kept: Mapping[str, bool | str] | None = None,
    ):
        self.text = text
        self.kept = dict(kept or {})
        self.separator_id = int(separator_id)
        self.special = {role: int(number) for role, number in (special or {}).items()}
        self._source = source
        self._plain = _parsed(text, source)
        self._plain.encode_special_tokens = True
        self._marked = None
        vocab = self._plain.get_vocab(True)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        if not 0 < self.vocab_size <= MOST_IDS:
            raise BadInput(
                f"{source} has {self.vocab_size} as its number of ids; it may be 1 to {MOST_IDS}"
            )
        ids = set(vocab.values())
        if len(ids) < len(vocab):
            raise BadInput(f"{source} has two tokens of one id: {_twice(vocab)}")
        for role, number in {"separator": self.separator_id, **self.special}.items():
            if number not in ids:
                raise BadInput(f"{source} has no token {number}, which is to be its {role}")
        settings = json.dumps([self.separator_id, sorted(self.special.items())])
        self.sha256 = hashlib.sha256(f"{settings}\n{text}".encode()).hexdigest()
        described = json.loads(text)
        for token in described.get("added_tokens", ()):
            if vocab.get(token["content"]) != token["id"]:
                raise BadInput(
                    f"{source} gives the token {token['content']!r} the id {token['id']}, but its "
                    f"place in the vocabulary is {vocab.get(token['content'])}"
                )
        self._surfaces, self.continues = _surfaces(described, vocab, self.vocab_size)
        self._surfaces[self.separator_id] = b""
        self.token_bytes = np.array([len(one) for one in self._surfaces], np.int32)

    @property
    def exact(self) -> bool:
        """Whether decoding gives back every text that was encoded (tried on a hard one)."""
        return self.decode(self.encode(HARD_TEXT)) == HARD_TEXT

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """int32 [ids]; `special` reads the names of special tokens as these tokens."""
        utf8(text)
        chosen = self._reading_special() if special else self._plain
        return np.array(chosen.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array for each text, on all cores."""
        for text in texts:
            utf8(text)
        encoded = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """The text; special tokens stand for nothing, bytes that are not UTF-8 for U+FFFD."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        ids = ids[(ids != self.separator_id) & (ids >= 0) & (ids < self.vocab_size)]
        return self._plain.decode(ids.tolist(), skip_special_tokens=True)

    def token(self, number: int) -> str:
        """How the vocabulary writes an id."""
        return self._plain.id_to_token(number)

    def surfaces(self) -> list[bytes]:
        """The bytes that each id writes inside a text, none for special ones."""
        return self._surfaces

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name, None without one."""
        return self._plain.token_to_id(token)

    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer` needs."""
        save_record(self, folder, special=self.special, **self.kept)
        (Path(folder) / JSON).write_text(self.text, encoding="utf-8", newline="")

    def _reading_special(self):
        if self._marked is None:
            self._marked = _parsed(self.text, self._source)
        return self._marked


def _parsed(text: str, source: str):
    try:
        import tokenizers
    except ImportError:
        raise BadInput(MISSING.format(source)) from None
    try:
        made = tokenizers.Tokenizer.from_str(text)
        made.encode("a")  # a missing unknown token shows here
    except BaseException as error:  # a panic of the library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise BadInput(f"{source} describes no tokenizer: {str(error)[:200]}") from None
    made.no_truncation()
    made.no_padding()
    return made


def _twice(vocab: Mapping[str, int]) -> str:
    """The tokens of the first id that more than one has."""
    first: dict[int, str] = {}
    for token, number in sorted(vocab.items()):
        if first.setdefault(number, token) != token:
            return f"{first[number]!r} and {token!r} are {number}"
    return ""


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE (as GPT-2's encoder.py has it).

    Bytes that print stand for themselves in Latin-1, the others follow from U+0100 on.
    """
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in prints]
    return {chr(byte): byte for byte in prints} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


def _parts(node) -> Iterator[dict]:
    """A normalizer, pre-tokenizer or decoder and whatever stands in it, one after another."""
    if isinstance(node, dict):
        yield node
        for inner in ("normalizers", "pretokenizers", "decoders"):
            for part in node.get(inner) or ():
                yield from _parts(part)


def _surfaces(
    described: dict, vocab: Mapping[str, int], size: int
) -> tuple[list[bytes], np.ndarray | None]:
    """What decoding writes for each id, nothing for special tokens; what goes on with a word."""
    model = described["model"]
    steps = list(_parts(described.get("decoder")))
    steps += _parts(described.get("pre_tokenizer"))
    kinds = {step["type"] for step in steps}
    alphabet = byte_alphabet() if "ByteLevel" in kinds else {}
    falls_back = model.get("byte_fallback") and "ByteFallback" in kinds
    fallbacks = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(0x100)}
    prefix = model.get("continuing_subword_prefix") if model.get("type") == "WordPiece" else None
    suffix = model.get("end_of_word_suffix") or None
    written = [("\u2581", " ")] if "Metaspace" in kinds else []
    for step in steps:
        if step["type"] == "Replace" and "String" in step["pattern"]:
            written.append((step["pattern"]["String"], step["content"]))

    def surface(token: str) -> bytes:
        if alphabet and all(character in alphabet for character in token):
            return bytes(alphabet[character] for character in token)
        if falls_back and token in fallbacks:
            return fallbacks[token]
        if prefix is not None:
            inside = token.startswith(prefix)
            token = token.removeprefix(prefix) if inside else _space(token) + token
        elif suffix is not None and token.endswith(suffix):
            token = token.removesuffix(suffix)
            token += _space(token)
        for old, new in written:
            token = token.replace(old, new)
        return token.encode("utf-8")

    found = [b""] * size
    for token, number in vocab.items():
        found[number] = surface(token)
    for token in described.get("added_tokens", ()):
        found[token["id"]] = b"" if token["special"] else token["content"].encode("utf-8")
    unknown = model.get("unk_token")
    if unknown in vocab:
        found[vocab[unknown]] = b""
    if prefix is None:
        return found, None
    continues = np.zeros(size, bool)
    continues[[number for token, number in vocab.items() if token.startswith(prefix)]] = True
    return found, continues


def _space(word: str) -> str:
    """The space beside a word; marks of punctuation mostly have none."""
    return " " if word[:1].isalnum() else ""
