"""What objectives know of a tokenizer: its special ids, its words and the ends of its sentences.

Special tokens of an objective ("mask", "sentinel_0", ...) are those of the tokenizer where its
vocabulary has them under a usual name, else ids beyond its own, in the order in which they are
asked for. So the sentinels of a T5 tokenizer are its <extra_id_0>, <extra_id_1>, ... wherever they
stand, and those of any other one count upwards from its last id.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gptjax.data.tokenizers.base import Tokenizer
from gptjax.errors import BadInput

# How vocabularies write the roles, the usual form first.
NAMES = {
    "mask": ("[MASK]", "<mask>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "pad": ("[PAD]", "<pad>"),
    "eos": ("</s>", "<eos>"),
    "bos": ("<s>", "<bos>"),
    "nlu": ("[NLU]",),
    "s2s": ("[S2S]",),
    "nlg": ("[NLG]",),
    "smask": ("[sMASK]",),
    "gmask": ("[gMASK]",),
    "sop": ("<sop>", "<|startofpiece|>"),
    "eop": ("<eop>", "<|endofpiece|>"),
}
SENTINEL = "sentinel_"
AS_SEPARATOR = ("pad", "eos", "bos")  # these never cost an id of their own
STOPS = tuple(sign.encode() for sign in ".!?\u3002\uff01\uff1f")
CLOSING = b"\"')]}"  # may stand between the end of a sentence and that of its token


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Ids of a tokenizer, and beyond them those of special tokens that it does not have.

    size: ids of the tokenizer; separator: between documents; token_bytes: int32 [total], UTF-8
    bytes of each id, 0 for special ones; special: ids by role of those that the tokenizer has;
    extra: of those it does not have, from `size` on. joins_left, joins_right: bool [total],
    whether a token begins or ends with a sign of words; ends_sentence, ends_line: whether it ends
    with a full stop or the like, with a newline; closes: whether it has nothing but these, quotes
    and brackets. names: how special ids are shown.
    """

    size: int
    separator: int
    token_bytes: np.ndarray
    special: dict[str, int]
    extra: dict[str, int]
    joins_left: np.ndarray
    joins_right: np.ndarray
    ends_sentence: np.ndarray
    ends_line: np.ndarray
    closes: np.ndarray
    names: dict[int, str]

    @property
    def total(self) -> int:
        """Ids in all: what a model's vocabulary must hold."""
        return self.size + len(self.extra)

    def id(self, role: str) -> int:
        """The id of a special token; pad, eos and bos are the separator where there is none."""
        for known in (self.special, self.extra):
            if role in known:
                return known[role]
        if role in AS_SEPARATOR or role == "separator":
            return self.separator
        raise BadInput(f"the vocabulary has no {role} token; ask `vocabulary_of` for one")

    def sentinels(self, count: int) -> np.ndarray:
        """int32 [count]: the ids of sentinel_0, sentinel_1, ..."""
        return np.array([self.id(f"{SENTINEL}{i}") for i in range(count)], np.int32)

    @cached_property
    def all_sentinels(self) -> np.ndarray:
        """int32 [n]: the ids of all that were asked for."""
        known = (self.special | self.extra).items()
        return np.array([i for role, i in known if role.startswith(SENTINEL)], np.int32)

    @cached_property
    def ordinary(self) -> np.ndarray:
        """int32 [n]: the ids that stand for text."""
        found = self.token_bytes > 0
        found[list(self.names)] = False
        return np.flatnonzero(found).astype(np.int32)

    @cached_property
    def is_special(self) -> np.ndarray:
        """bool [total]: the ids that stand for no text."""
        found = np.ones(self.total, bool)
        found[self.ordinary] = False
        return found


def vocabulary_of(tokenizer: Tokenizer, roles: Sequence[str] = ()) -> Vocabulary:
    """The tokenizer's vocabulary with an id for each of `roles`."""
    size, special, extra = tokenizer.vocab_size, dict(tokenizer.special), {}
    for role in roles:
        if role in special or role in extra:
            continue
        names = _names(role)
        found = next((i for i in map(tokenizer.id_of, names) if i is not None), None)
        if found is not None:
            special[role] = found
        elif role not in AS_SEPARATOR:
            extra[role] = size + len(extra)
    total = size + len(extra)
    shown = {number: _names(role)[0] for role, number in (special | extra).items()}
    shown[tokenizer.separator_id] = "<|separator|>"
    token_bytes = np.zeros(total, np.int32)
    token_bytes[:size] = tokenizer.token_bytes
    token_bytes[[number for number in shown if number < size]] = 0
    left, right, ends, lines, closes = np.zeros((5, total), bool)
    for number, surface in enumerate(tokenizer.surfaces()):
        if surface and token_bytes[number]:
            left[number] = _in_word(surface, last=False)
            right[number] = _in_word(surface, last=True)
            ends[number] = surface.rstrip(b" \t" + CLOSING).endswith(STOPS)
            lines[number] = surface.rstrip(b" \t").endswith(b"\n")
            closes[number] = not surface.strip(b".!?\n" + CLOSING)
    continues = getattr(tokenizer, "continues", None)
    if continues is not None:
        left[:size] = continues
        right = token_bytes > 0
    tables = (left, right, ends, lines, closes)
    return Vocabulary(size, tokenizer.separator_id, token_bytes, special, extra, *tables, shown)


def numbered_vocabulary(total: int, roles: Sequence[str] = ()) -> Vocabulary:
    """A vocabulary of numbers: so many ids in all, the last of them special; no two join a word."""
    extra = [role for role in roles if role not in AS_SEPARATOR]
    size = max(total - len(extra), 1)
    numbers = {role: size + i for i, role in enumerate(extra)}
    shown = {number: _names(role)[0] for role, number in numbers.items()}
    token_bytes = np.ones(size + len(extra), np.int32)
    token_bytes[[size - 1, *numbers.values()]] = 0
    none = np.zeros(size + len(extra), bool)
    shown[size - 1] = "<|separator|>"
    return Vocabulary(size, size - 1, token_bytes, {}, numbers, *[none] * 5, shown)


def words(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """int32 [n]: the number of the word that each token stands in, from 0.

    A word is a run of letters, digits and underscores; any other token is one by itself, so is
    each sign of Chinese, and special tokens are. Bytes of 128 and more count as letters.
    """
    joined = vocabulary.joins_right[ids[:-1]] & vocabulary.joins_left[ids[1:]]
    return _numbered(~joined, len(ids))


def sentences(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """int32 [n]: the number of the sentence that each token stands in, from 0.

    A sentence ends with newlines, with one of .!? and the quotes and brackets behind it where no
    word goes on at once, or before and after a separator.
    """
    closes, line = vocabulary.closes[ids], vocabulary.ends_line[ids]
    ends = vocabulary.ends_sentence[ids] | line
    reason = np.maximum.accumulate(np.where(closes & ~ends, 0, np.arange(len(ids))))
    ended = ends[reason[:-1]] & ~closes[1:] & ~vocabulary.joins_left[ids[1:]]
    ended = np.where(line[:-1], ~(closes & line)[1:], ended)
    apart = ids == vocabulary.separator
    return _numbered(ended | apart[:-1] | apart[1:], len(ids))


def describe(ids: Iterable[int], vocabulary: Vocabulary, tokenizer: Tokenizer) -> str:
    """The text of ids, in which special ones stand by name: "one [MASK] three"."""
    text, run = [], []
    for number in np.asarray(ids, np.int64).reshape(-1).tolist():
        if number in vocabulary.names:
            text += [tokenizer.decode(run), vocabulary.names[number]]
            run = []
        else:
            run.append(number)
    return "".join([*text, tokenizer.decode(run)])


def _names(role: str) -> tuple[str, ...]:
    if role.startswith(SENTINEL):
        return (f"<extra_id_{role.removeprefix(SENTINEL)}>",)
    return NAMES.get(role, (f"[{role.upper()}]",))


def _numbered(begins: np.ndarray, count: int) -> np.ndarray:
    numbers = np.zeros(count, np.int32)
    np.cumsum(begins, out=numbers[1:])
    return numbers


def _in_word(surface: bytes, last: bool) -> bool:
    """Whether the first or the last character is one of a word."""
    text = surface.decode("utf-8", "replace")
    sign = text[-1 if last else 0]
    if sign == "\ufffd":  # a part of a character
        return True
    return sign == "_" or (sign.isalnum() and not "\u3400" <= sign <= "\u9fff")
