"""UL2: a mixture of denoisers, each with a mode token that the source begins with.

UL2 (arXiv 2205.05131, section 3 and table 2). R cuts out short spans at a low rate, X long ones
or many, S the end of a text in one piece; the mode tokens are those of its published checkpoints:
[NLU] for R, [NLG] for X, [S2S] for S. All are cut out as in `spans`, S with a single span, so that
its targets have a sentinel before and an eos behind the rest of the text.

Every row takes as many tokens as fit whichever denoiser is drawn; sources and targets that are
shorter than the longest are filled up. UL2's code packs them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

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
)
from gptjax.objectives.spans import check_mean_span, corrupted, corrupted_sizes, noise_counts

ROLES = {"R": "nlu", "S": "s2s", "X": "nlg"}


@dataclass(frozen=True)
class Denoiser:
    """One way of a mixture to cut tokens out."""

    mode: Literal["R", "S", "X"]
    rate: float  # share of tokens that are cut out
    mean_span: float = 3.0  # tokens; S has one span, whatever this is
    share: float = 1.0  # of the rows, relative to the other denoisers'

    @property
    def span(self) -> float:
        """The mean length of spans that makes a single one of S."""
        return math.inf if self.mode == "S" else self.mean_span

    def sizes(self, count: int) -> tuple[int, int]:
        """Tokens of the source, with its mode and eos, and of the targets, with theirs."""
        source, targets = corrupted_sizes(count, self.rate, self.span)
        return source + 1, targets


PAPER = (
    Denoiser("R", 0.15, 3.0),
    Denoiser("R", 0.15, 8.0),
    Denoiser("S", 0.25),
    Denoiser("X", 0.5, 3.0),
    Denoiser("X", 0.5, 8.0),
    Denoiser("X", 0.15, 64.0),
    Denoiser("X", 0.5, 64.0),
)


@dataclass(frozen=True)
class UL2(Conditional):
    """Cross-entropy on what the drawn denoiser cut out, with its sentinels and the eos."""

    denoisers: tuple[Denoiser, ...] = PAPER

    kind: ClassVar[str] = "ul2"
    families: ClassVar[tuple[Family, ...]] = ("encoder_decoder", "decoder")
    likelihood: ClassVar[str] = "blanks"  # the end that S cuts off is a blank too
    in_place: ClassVar[bool] = False

    def validate(self) -> None:
        super().validate()
        if not self.denoisers:
            raise BadInput("objective.denoisers is empty; give one Denoiser or more")
        for place, one in enumerate(self.denoisers):
            name = f"denoisers.{place}"
            check_share(f"{name}.rate", one.rate)
            check_mean_span(f"{name}.mean_span", one.mean_span)
            if one.share <= 0:
                raise BadInput(f"objective.{name}.share is {one.share}; give a number above 0")

    def roles(self, length: int) -> tuple[str, ...]:
        modes = {one.mode for one in self.denoisers}
        spans = self._spans(self._raw(length, "encoder_decoder"))
        marks = (role for mode, role in ROLES.items() if mode in modes)
        return ("eos", "pad", *marks, *(f"{SENTINEL}{i}" for i in range(spans)))

    def lengths(self, length: int, family: Family) -> Lengths:
        self.check_family(family)
        raw = self._raw(length, family)
        source, targets = map(max, zip(*(one.sizes(raw) for one in self.denoisers), strict=True))
        if family == "encoder_decoder":
            return Lengths(raw, targets, targets, source)
        every = sum(one.share for one in self.denoisers)
        ahead = sum(one.share * pairs_ahead(one.sizes(raw)[0]) for one in self.denoisers) / every
        return Lengths(raw, length, targets, ahead=self.ahead(ahead))

    def _spans(self, raw: int) -> int:
        return max(noise_counts(raw, one.rate, one.span)[1] for one in self.denoisers)

    def row_length(self, raw: int, family: Family) -> int:
        sizes = [one.sizes(raw) for one in self.denoisers]
        if family == "encoder_decoder":
            return max(source for source, _ in sizes)
        return max(source + targets - 1 for source, targets in sizes)

    def _raw(self, length: int, family: Family) -> int:
        """Of as many tokens every denoiser makes a row that fits."""
        check_length(length, self.row_length(2, family), self.kind)
        return most(length, lambda raw: self.row_length(raw, family), 2)

    def transform(
        self, length: int, family: Family, vocabulary: Vocabulary
    ) -> Callable[[np.ndarray, np.random.Generator, Draw], Row]:
        lengths = self.lengths(length, family)
        sentinels, eos = vocabulary.sentinels(self._spans(lengths.raw)), vocabulary.id("eos")
        start = vocabulary.id("pad")
        modes = [[vocabulary.id(ROLES[one.mode])] for one in self.denoisers]
        shares = np.cumsum([one.share for one in self.denoisers])

        def row(ids: np.ndarray, rng: np.random.Generator, draw: Draw) -> Row:
            place = int(np.searchsorted(shares[:-1], rng.random() * shares[-1], side="right"))
            one = self.denoisers[place]
            source, targets = corrupted(ids, one.rate, one.span, rng, sentinels, eos)
            source = np.concatenate([modes[place], source])
            return conditional_row(
                source, targets, lengths, family, vocabulary, start, reading=self.reading
            )

        return row
