"""Masked language modelling: tokens of a text are hidden and predicted from both sides.

BERT (arXiv 1810.04805), with whole words, and with the relations of two parts of text that BERT
(next part or not), ALBERT (in order or swapped, arXiv 1909.11942) and StructBERT (next, previous
or of another text, with tokens to put in order; arXiv 1908.04577) predict besides.

Deviations. How many tokens are predicted is drawn so that its mean is exactly `rate` of the
tokens that stand for text; BERT rounds a share of all. The parts are not made of sentences: they
are the two sides of a random place in the longest stretch of one document that a window has. A
part of another text is cut to the length of the one that it replaces, so that lengths do not
betray it. StructBERT counts its 5% over trigrams, here it is the share of tokens that stand in
them; their new order is any, the old one among them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal

import numpy as np

from gptjax.data.vocabulary import Vocabulary, words
from gptjax.errors import BadInput
from gptjax.objectives.base import Draw, Family, Lengths, Objective, Row
from gptjax.objectives.corruption import (
    check_length,
    check_share,
    counted,
    filled,
    longest_run,
)

MARKS = 3  # [cls] A [sep] B [sep]
# Where a model reads apart what is masked, its rows have these names for it.
SOURCE = {"tokens": "source", "segments": "source_segments", "types": "source_types"}
CLASSES = {"none": 0, "next": 2, "order": 2, "three_way": 3}


@dataclass(frozen=True)
class MaskedLM(Objective):
    """Cross-entropy on the hidden tokens; `label` is the relation of the parts.

    Labels: next: 0 the next part, 1 one of another text; order: 0 in order, 1 swapped; three_way:
    0 the next part, 1 the previous, 2 of another text.
    """

    rate: float = 0.15  # share of tokens that are predicted
    mask_share: float = 0.8  # of these: replaced by the mask
    random_share: float = 0.1  # of these: replaced by a random token; the rest stays
    masking: Literal["dynamic", "static"] = "dynamic"  # static: a window is always masked alike
    unit: Literal["token", "word"] = "token"
    sentences: Literal["none", "next", "order", "three_way"] = "none"
    shuffle_rate: float = 0.0  # share of tokens in spans that are put out of order and predicted
    shuffle_span: int = 3

    kind: ClassVar[str] = "masked_lm"
    families: ClassVar[tuple[Family, ...]] = ("encoder", "task_modules")
    # Hidden tokens are predicted apart from each other, so their product is no likelihood.
    likelihood: ClassVar[str] = "none"

    @property
    def in_place(self) -> bool:
        return not self.paired

    @property
    def paired(self) -> bool:
        """Whether rows are two parts of text between marks."""
        return self.sentences != "none"

    def validate(self) -> None:
        super().validate()
        check_share("rate", self.rate)
        for name in ("mask_share", "random_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"objective.{name} is {getattr(self, name)}; give 0 to 1")
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise BadInput(
                f"objective.mask_share and random_share are {self.mask_share} and "
                f"{self.random_share}; give two that sum to at most 1"
            )
        if not 0 <= self.shuffle_rate < 1 - self.rate:
            raise BadInput(
                f"objective.shuffle_rate is {self.shuffle_rate}; give 0 or more, and less than "
                f"the {1 - self.rate:g} that objective.rate leaves"
            )
        if self.shuffle_span < 2:
            raise BadInput(f"objective.shuffle_span is {self.shuffle_span}; give 2 or more")

    def classes(self) -> int:
        return CLASSES[self.sentences]

    def roles(self, length: int) -> tuple[str, ...]:
        return ("mask", "cls", "sep", "pad") if self.paired else ("mask",)

    def lengths(self, length: int, family: Family) -> Lengths:
        raw, predicted = self._sizes(length)
        if family == "encoder":
            return Lengths(raw, length, predicted)
        return Lengths(raw, 0, predicted, source=length)

    def _sizes(self, length: int) -> tuple[int, int]:
        """Ids of the corpus in a row, and how many of its places may be predicted."""
        if self.paired:
            check_length(length, MARKS + 2, f"objective.sentences={self.sentences}")
        check_length(length, 1, self.kind)
        raw = length - MARKS if self.paired else length
        shuffled = ceil(self.shuffle_rate * raw / self.shuffle_span) * self.shuffle_span
        return raw, min(ceil(self.rate * raw) + shuffled, raw)

    def transform(
        self, length: int, family: Family, vocabulary: Vocabulary
    ) -> Callable[[np.ndarray, np.random.Generator, Draw], Row]:
        _, predicted = self._sizes(length)

        def row(ids: np.ndarray, rng: np.random.Generator, draw: Draw) -> Row:
            made: Row = {}
            if self.paired:
                first, second, label = self._parts(ids, rng, draw, vocabulary.separator)
                ids, made = _joined(first, second, length, vocabulary)
                made["label"] = np.array(label, np.int32)
            ids = np.asarray(ids, np.int32)
            tokens, at = self._hidden(ids, rng, vocabulary)
            made["tokens"] = tokens
            made["at"] = filled(at, predicted)
            made["targets"] = filled(ids[at], predicted)
            made["weights"] = filled(np.ones(len(at)), predicted, 0.0, np.float32)
            if family == "encoder":
                return made
            return {SOURCE.get(name, name): values for name, values in made.items()}

        return row

    def _hidden(self, ids, rng, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
        """The ids with tokens hidden and put out of order, and the sorted places of both."""
        free = ~vocabulary.is_special[ids]
        places = np.flatnonzero(free)
        chosen = self._chosen(ids, places, rng, vocabulary)
        how = rng.random(len(chosen))
        random = vocabulary.ordinary[rng.integers(len(vocabulary.ordinary), size=len(chosen))]
        kept = np.where(how < self.mask_share + self.random_share, random, ids[chosen])
        tokens = ids.copy()
        tokens[chosen] = np.where(how < self.mask_share, vocabulary.id("mask"), kept)
        if self.shuffle_rate:
            spans = counted(rng, self.shuffle_rate * len(places) / self.shuffle_span)
            free[chosen] = False
            starts = _free_spans(free, self.shuffle_span, spans, rng)
            moved = starts[:, None] + np.arange(self.shuffle_span)
            tokens[moved] = rng.permuted(ids[moved], axis=1)
            chosen = np.concatenate([chosen, moved.reshape(-1)])
        return tokens, np.sort(chosen)

    def _chosen(self, ids, places, rng, vocabulary: Vocabulary) -> np.ndarray:
        """Which of the places are predicted, in any order."""
        count = counted(rng, self.rate * len(places))
        if self.unit == "token":
            return rng.permutation(places)[:count]
        numbers = words(ids, vocabulary)[places]
        sizes = np.bincount(numbers, minlength=1)
        taken = np.zeros(len(sizes), bool)
        for word in rng.permutation(np.unique(numbers)).tolist():
            if sizes[word] <= count:
                taken[word] = True
                count -= sizes[word]
        return places[taken[numbers]]

    def _parts(self, ids, rng, draw: Draw, separator: int):
        """Two parts of text and the label of how they follow each other."""
        text = longest_run(ids, separator)
        cut = int(rng.integers(1, max(len(text), 2)))
        first, second = text[:cut], text[cut:]
        label = int(rng.integers(self.classes()))
        if label == 1 and self.sentences != "next":
            first, second = second, first
        elif label:
            other = longest_run(draw(rng, len(ids)), separator)
            start = int(rng.integers(max(len(other) - len(second), 0) + 1))
            second = other[start : start + len(second)]
        return first, second, label


def _joined(first, second, length: int, vocabulary: Vocabulary) -> tuple[np.ndarray, Row]:
    """[cls] first [sep] second [sep], filled up, with its segments and types."""
    cls, sep = vocabulary.id("cls"), vocabulary.id("sep")
    text = np.concatenate([[cls], first, [sep], second, [sep]])
    place = np.arange(length)
    types = (place >= len(first) + 2) & (place < len(text))
    return filled(text, length, vocabulary.id("pad")), {
        "segments": np.where(place < len(text), 0, -1).astype(np.int32),
        "types": types.astype(np.int32),
    }


def _free_spans(free: np.ndarray, span: int, count: int, rng) -> np.ndarray:
    """int64 [<= count]: starts of random spans in which all places are free, none overlapping."""
    before = np.concatenate([[0], np.cumsum(free)])
    whole = np.flatnonzero(before[span:] - before[:-span] == span)
    used, starts = set(), []
    for start in rng.permutation(whole).tolist():
        if len(starts) == count:
            break
        if used.isdisjoint(range(start, start + span)):
            used.update(range(start, start + span))
            starts.append(start)
    return np.array(starts, np.int64)
