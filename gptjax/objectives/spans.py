"""Span corruption: spans of a text are cut out and predicted in order, each after its sentinel.

T5 (arXiv 1910.10683), with the counts of its preprocessors: of n tokens round(n * rate) are cut
out in round(of these / mean_span) spans, all ways to cut both the spans and what lies between
them being equally likely; a text begins with what is left and ends with a span. The source is the
text with a sentinel for each span, the targets are each span after its sentinel, and both end
with eos. So many tokens are taken that the source is exactly as long as the encoder's row.

A decoder reads the source first, both ways or causally, and goes on with the targets, the source's
eos predicting the first sentinel; such a row may be a token or two short of its length, and is
filled up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gptjax.data.vocabulary import SENTINEL, Vocabulary
from gptjax.errors import BadInput
from gptjax.objectives.base import Draw, Family, Lengths, Row
from gptjax.objectives.corruption import (
    Conditional,
    check_length,
    check_share,
    conditional_row,
    most,
    pairs_ahead,
    segmentation,
)


def noise_counts(count: int, rate: float, mean_span: float) -> tuple[int, int]:
    """How many of `count` tokens are cut out, and in how many spans; `count` is 2 or more."""
    noise = min(max(round(count * rate), 1), count - 1)
    spans = max(round(noise / mean_span), 1)
    return noise, min(spans, noise, count - noise)


def corrupted_sizes(count: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Tokens of the source and of the targets, each with its eos, that `count` tokens make."""
    noise, spans = noise_counts(count, rate, mean_span)
    return count - noise + spans + 1, noise + spans + 1


def corrupted(
    ids: np.ndarray,
    rate: float,
    mean_span: float,
    rng: np.random.Generator,
    sentinels: np.ndarray,
    eos: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The source and the targets, int32, of `corrupted_sizes`."""
    ids = np.asarray(ids, np.int32)
    noise, spans = noise_counts(len(ids), rate, mean_span)
    cut = segmentation(rng, noise, spans)
    left = segmentation(rng, len(ids) - noise, spans)
    is_noise = np.repeat(np.arange(2 * spans) % 2 == 1, np.stack([left, cut], 1).reshape(-1))
    starts = np.cumsum(left + cut) - cut  # of the spans in the text
    source = ids.copy()
    source[starts] = sentinels[:spans]
    keep = ~is_noise
    keep[starts] = True
    targets = np.insert(ids[is_noise], np.cumsum(cut) - cut, sentinels[:spans])
    return np.append(source[keep], np.int32(eos)), np.append(targets, np.int32(eos))


def rebuilt(source: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """int32: the text of which `corrupted` made these two; nothing may fill them up.

    A sentinel that the targets do not have stays as it is.
    """
    source, targets = source[:-1], targets[:-1]  # without eos
    at = np.flatnonzero(np.isin(targets, vocabulary.all_sentinels))
    spans = dict(zip(targets[at].tolist(), np.split(targets, at)[1:], strict=True))
    parts = [spans[one][1:] if one in spans else [one] for one in source.tolist()]
    return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)


@dataclass(frozen=True)
class SpanCorruption(Conditional):
    """Cross-entropy on the spans that were cut out, their sentinels and the eos."""

    rate: float = 0.15  # share of tokens that are cut out
    mean_span: float = 3.0  # tokens

    kind: ClassVar[str] = "span_corruption"
    families: ClassVar[tuple[Family, ...]] = ("encoder_decoder", "decoder")
    likelihood: ClassVar[str] = "blanks"  # the sentinel after a span says where it ends
    in_place: ClassVar[bool] = False

    def validate(self) -> None:
        super().validate()
        check_share("rate", self.rate)
        check_mean_span("mean_span", self.mean_span)

    def roles(self, length: int) -> tuple[str, ...]:
        spans = noise_counts(self._raw(length, "encoder_decoder"), self.rate, self.mean_span)[1]
        return ("eos", "pad", *(f"{SENTINEL}{i}" for i in range(spans)))

    def lengths(self, length: int, family: Family) -> Lengths:
        self.check_family(family)
        raw = self._raw(length, family)
        source, targets = corrupted_sizes(raw, self.rate, self.mean_span)
        if family == "encoder_decoder":
            return Lengths(raw, targets, targets, source)
        return Lengths(raw, length, targets, ahead=self.ahead(pairs_ahead(source)))

    def row_length(self, raw: int, family: Family) -> int:
        source, targets = corrupted_sizes(raw, self.rate, self.mean_span)
        return source if family == "encoder_decoder" else source + targets - 1

    def _raw(self, length: int, family: Family) -> int:
        check_length(length, self.row_length(2, family), self.kind)
        return most(length, lambda raw: self.row_length(raw, family), 2)

    def transform(
        self, length: int, family: Family, vocabulary: Vocabulary
    ) -> Callable[[np.ndarray, np.random.Generator, Draw], Row]:
        lengths = self.lengths(length, family)
        spans = noise_counts(lengths.raw, self.rate, self.mean_span)[1]
        sentinels, eos = vocabulary.sentinels(spans), vocabulary.id("eos")
        start = vocabulary.id("pad")  # as T5 begins what its decoder reads

        def row(ids: np.ndarray, rng: np.random.Generator, draw: Draw) -> Row:
            parts = corrupted(ids, self.rate, self.mean_span, rng, sentinels, eos)
            return conditional_row(
                *parts, lengths, family, vocabulary, start, fits=True, reading=self.reading
            )

        return row


def check_mean_span(name: str, value: float) -> None:
    """BadInput for a mean length of spans below one token."""
    if value < 1:
        raise BadInput(f"objective.{name} is {value}; give 1 or more tokens")
