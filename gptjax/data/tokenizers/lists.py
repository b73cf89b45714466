"""Vocabularies, merges and settings as files: what stands beside a model of transformers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptjax.data.tokenizers.base import kept_of, read_file
from gptjax.data.tokenizers.build import (
    added_token,
    bert_normalizer,
    byte_bpe_text,
    gpt1_text,
    known_roles,
    word_piece_text,
)
from gptjax.data.tokenizers.huggingface import ROLES, byte_alphabet
from gptjax.errors import BadInput

VOCABULARIES = ("vocab.json", "encoder.json")
MERGES = ("merges.txt", "vocab.bpe")
WORDS = "vocab.txt"
MOST_UNMERGED = 0.001  # share of tokens without a merge: of GPT-2 1 of 50257, of RoBERTa 8
MOST_PADDING = 1024  # rows that a model's vocabulary may have beyond its tokenizer's
SPLIT_BY_CLASS = {  # pre-tokenizer of the classes that read vocab.json and merges.txt
    "": "gpt-2",
    "GPT2": "gpt-2",
    "Roberta": "gpt-2",
    "Bart": "gpt-2",
    "CodeGen": "gpt-2",
    "Longformer": "gpt-2",
    "LED": "gpt-2",
    "GPTNeoX": "olmo",
    "Qwen2": "qwen2",
    "OpenAIGPT": "gpt-1",
}
ADDED_BY_CLASS = {"T5": "add_eos_token", "MT5": "add_eos_token", "CodeLlama": "add_bos_token"}
TEMPLATE = "chat_template.jinja"


class Settings:
    """What the small JSON files beside a tokenizer say of it; those that are missing say nothing.

    BadInput for one that is damaged.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        names = ("tokenizer_config", "special_tokens_map", "added_tokens", "config")
        self.config, self._map, self._added, self._model = (
            _optional(folder / f"{name}.json") for name in names
        )

    @property
    def tokenizer_class(self) -> str:
        """The class in transformers, without the words Tokenizer and Fast; empty if not said."""
        name = self.config.get("tokenizer_class") or self._model.get("tokenizer_class") or ""
        return str(name).removesuffix("Fast").removesuffix("Tokenizer")

    @property
    def model_vocabulary(self) -> int:
        """The rows of the model's embedding, 0 if not said."""
        size = self._model.get("vocab_size")
        return size if type(size) is int else 0

    def kept(self) -> dict[str, bool | str]:
        """What `base.kept_of` finds in the tokenizer_config.json, and what its class implies.

        A chat_template.jinja comes before a template in that file, as in transformers.
        """
        found = kept_of(self.config)
        if self.tokenizer_class in ADDED_BY_CLASS:
            found.setdefault(ADDED_BY_CLASS[self.tokenizer_class], True)
        path = self._folder / TEMPLATE
        if path.exists():
            data = read_file(path, str(path), "a template of chats")
            try:
                found["chat_template"] = data.decode("utf-8")
            except UnicodeDecodeError:
                raise BadInput(f"{path} is no text; copy it again") from None
        return found

    def names(self) -> dict[str, str]:
        """The names of the special tokens by role."""
        found = {}
        for source in (self.config, self._map):
            for role in ROLES:
                name = source.get(f"{role}_token")
                name = name.get("content") if isinstance(name, dict) else name
                if isinstance(name, str):
                    found.setdefault(role, name)
        return found

    def roles(self, vocab: Mapping[str, int]) -> dict[str, int]:
        """The ids of the special tokens by role, as far as this vocabulary has them."""
        found = {role: vocab[name] for role, name in self.names().items() if name in vocab}
        ids = set(vocab.values())
        for role in ROLES:
            number = self._model.get(f"{role}_token_id")
            number = number[0] if isinstance(number, list) and number else number
            if type(number) is int and number in ids:
                found.setdefault(role, number)
        return known_roles(found, vocab)

    def added(self, vocab: Mapping[str, int], name: str) -> list[dict]:
        """The tokens that are found before the text is split, by id.

        Those of `added_tokens_decoder` or added_tokens.json, and the special ones.
        """
        found = {}
        try:
            for number, token in (self.config.get("added_tokens_decoder") or {}).items():
                flags = {k: bool(token[k]) for k in ("lstrip", "rstrip", "normalized")}
                special = bool(token["special"])
                found[int(number)] = added_token(int(number), token["content"], special, **flags)
            special_names = set(self.names().values())
            for content, number in self._added.items():
                token = added_token(int(number), content, content in special_names)
                found.setdefault(int(number), token)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise BadInput(f"{name}: the added tokens beside it are damaged") from None
        known = dict(vocab) | {token["content"]: number for number, token in found.items()}
        contents = {number: content for content, number in known.items()}
        for number in self.roles(known).values():
            found.setdefault(number, added_token(number, contents[number], True))
        return [found[number] for number in sorted(found)]


def bpe(
    vocab: dict[str, int], path: Path, name: str, settings: Settings
) -> tuple[str, dict[str, int]]:
    """The tokenizer.json and the roles of a vocab.json and the merges beside it."""
    there = [path.parent / other for other in MERGES if (path.parent / other).exists()]
    if not there:
        raise BadInput(f"{path.parent / MERGES[0]} is missing: {name} has no merges beside it")
    merges = _merges(there[0])
    added = settings.added(vocab, name)
    whole = vocab | {token["content"]: token["id"] for token in added}
    special = settings.roles(whole)
    split = _split(vocab, name, settings)
    ends = "</w>" if split == "gpt-1" else ""
    _check_merges(vocab, merges, added, ends, there[0])
    if split == "gpt-1":
        unk = settings.names().get("unk", "<unk>")
        return gpt1_text(vocab, merges, added, unk), special
    space = bool(settings.config.get("add_prefix_space"))
    text = byte_bpe_text(vocab, merges, added, pre=split, add_prefix_space=space, source=name)
    return text, special


def word_piece(lines: Sequence[str], name: str, settings: Settings) -> tuple[str, dict[str, int]]:
    """The tokenizer.json and the roles of a vocab.txt: a token a line."""
    vocab = {token: number for number, token in enumerate(lines)}
    unk = settings.names().get("unk", "[UNK]")
    if unk not in vocab:
        raise BadInput(f"{name} has no line {unk}, so it is no vocabulary of WordPiece")
    if settings.tokenizer_class not in ("", "Bert", "DistilBert", "Electra", "MobileBert"):
        raise BadInput(
            f"{name} belongs to a {settings.tokenizer_class} tokenizer, which is not read from a "
            "vocab.txt; give its tokenizer.json"
        )
    if settings.model_vocabulary > len(lines) + MOST_PADDING:
        raise BadInput(
            f"{name} has {len(lines)} lines, its model {settings.model_vocabulary} tokens: it was "
            "cut short or belongs to another model"
        )
    config = settings.config
    normalizer = bert_normalizer(
        config.get("do_lower_case", True),
        config.get("tokenize_chinese_chars", True),
        config.get("strip_accents"),
    )
    text = word_piece_text(vocab, settings.added(vocab, name), unk, normalizer)
    return text, settings.roles(vocab)


def ids_of(described: Mapping[str, Any], name: str) -> dict[str, int]:
    """The ids of all tokens in a tokenizer.json; the library verifies the rest."""
    try:
        vocab = described["model"]["vocab"]
        if isinstance(vocab, list):  # unigram: pairs of piece and score
            vocab = {piece: number for number, (piece, _) in enumerate(vocab)}
        added = {token["content"]: token["id"] for token in described.get("added_tokens") or ()}
        return dict(vocab) | added
    except (KeyError, TypeError, ValueError):
        raise BadInput(f"{name} is damaged: it has no vocabulary") from None


def parse_json(data: bytes, name: str) -> dict:
    """A JSON object; BadInput for anything else, such as a file that was cut short."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{name} is no whole JSON file: {error}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{name} holds no JSON object")
    return value


def lines_of(text: str) -> list[str]:
    """Lines as text files have them, without their ends; other separators are characters."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if not lines[-1] else lines


def _optional(path: Path) -> dict:
    if not path.exists():
        return {}
    return parse_json(read_file(path, str(path), "a JSON file"), str(path))


def _merges(path: Path) -> list[tuple[str, str]]:
    data = read_file(path, str(path), "a list of merges")
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise BadInput(f"{path} is no text, so it holds no merges; copy it again") from None
    pairs = []
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#version"):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise BadInput(f"{path} holds no pair in line {number}: {line[:40]!r}; copy it again")
        pairs.append((left, right))
    return pairs


def _split(vocab: Mapping[str, int], name: str, settings: Settings) -> str:
    """`gpt-1` or the name of a pre-tokenizer: by the class in transformers, else by the tokens."""
    chosen = SPLIT_BY_CLASS.get(settings.tokenizer_class)
    alphabet = byte_alphabet()
    whole = all(character in vocab for character in alphabet)
    ends = any(token.endswith("</w>") for token in vocab)
    if chosen == "gpt-1" or (chosen and not settings.tokenizer_class and ends and not whole):
        return "gpt-1"
    if chosen is None or ends or not whole:
        which = settings.tokenizer_class or "unknown kind of"
        raise BadInput(
            f"{name} is of a {which} tokenizer, which is not read from a vocabulary and merges; "
            "give its tokenizer.json"
        )
    return chosen


def _check_merges(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    added: Sequence[dict],
    ends: str,
    path: Path,
) -> None:
    """Refuse merges that leave tokens of the vocabulary unmade or make others."""
    made = {left + right for left, right in merges}
    strange = next((token for token in made if token not in vocab), None)
    if strange is not None:
        raise BadInput(
            f"{path} makes {strange!r}, which the vocabulary beside it does not have: they do not "
            "belong together"
        )
    apart = {token["content"] for token in added}
    unmade = [
        token
        for token in vocab
        if token not in made and token not in apart and len(token.removesuffix(ends)) > 1
    ]
    if len(unmade) > max(16, MOST_UNMERGED * len(vocab)):
        raise BadInput(
            f"{path} was cut short or belongs to another vocabulary: {len(unmade)} of "
            f"{len(vocab)} tokens come of no merge"
        )
