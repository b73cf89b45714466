"""What objectives that hide parts of a text share: random spans, counts, and rows filled up."""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gptjax.data.vocabulary import Vocabulary
from gptjax.errors import BadInput
from gptjax.objectives.base import Family, Lengths, Objective, Row

# How a decoder reads what its targets are conditioned on: each token all the others, or those
# before it. The latter is the "language model" of arXiv 1910.10683 (table 2) beside its "prefix
# LM"; rows, targets and random numbers are the same.
Reading = Literal["both", "causal"]


@dataclass(frozen=True)
class Conditional(Objective):
    """Base of objectives that predict one part of a text from the other, which is read first."""

    reading: Reading = "both"  # of the part that is given, by a decoder

    @abstractmethod
    def row_length(self, raw: int, family: Family) -> int:
        """The `data.sequence_length` that a row of so many tokens of text needs."""

    def matching_length(self, length: int, family: Family, other: Family) -> int:
        """The `data.sequence_length` at which models of `other` get the text of `family`'s rows.

        Rows of one data seed then hide and predict the same tokens of the same windows in both.
        BadInput where rows of `other` cannot have that size.
        """
        raw = self.lengths(length, family).raw
        found = self.row_length(raw, other)
        other_raw = self.lengths(found, other).raw
        if other_raw != raw:
            raise BadInput(
                f"data.sequence_length={length} makes rows of {raw} tokens of text for a model of "
                f"kind {family}, which one of kind {other} cannot have; nearest: {other_raw} at "
                f"data.sequence_length={found}"
            )
        return found

    def ahead(self, pairs: float) -> float:
        """Of the pairs of a prefix that is read both ways those that are read."""
        return pairs if self.reading == "both" else 0.0

    def check_family(self, family: Family) -> None:
        """BadInput for a way of reading that a model of that kind has no use for."""
        if family == "encoder_decoder" and self.reading != "both":
            raise BadInput(
                f"objective.reading is '{self.reading}', which is of decoders: an encoder reads "
                "what is given both ways; give both"
            )


def check_share(name: str, value: float, low: float = 0.0, high: float = 1.0) -> None:
    """BadInput for a field that is not above `low` and below `high`."""
    if not low < value < high:
        raise BadInput(f"objective.{name} is {value}; give a number above {low:g}, below {high:g}")


def check_length(length: int, least: int, why: str) -> None:
    """BadInput for rows that are too short for an objective."""
    if length < least:
        raise BadInput(f"data.sequence_length is {length}; {why} needs {least} or more")


def counted(rng: np.random.Generator, expected: float) -> int:
    """A whole number whose mean is `expected`: the one below or the one above."""
    below = int(expected)
    return below + bool(rng.random() < expected - below)


def segmentation(rng: np.random.Generator, items: int, parts: int) -> np.ndarray:
    """int64 [parts]: sizes of 1 or more that sum to `items`, all such sequences equally likely."""
    cuts = np.sort(rng.choice(items - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=items)


def placed_apart(rng: np.random.Generator, sizes: np.ndarray, length: int) -> np.ndarray:
    """int64 [spans]: starts of spans of these sizes, in their order, none touching the next.

    All such places within `length` are equally likely; it must be at least the sizes' sum and one
    less than their number.
    """
    gaps = np.sort(rng.choice(length - int(sizes.sum()) + 1, len(sizes), replace=False))
    return gaps + np.cumsum(sizes) - sizes


def placed_in_text(
    rng: np.random.Generator, sizes: np.ndarray, is_special: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [spans] each: ascending starts and the sizes of spans that cover no special id.

    They stand in random order and do not touch each other. Those that cover a special id (bool [n])
    where all places are alike go to one of the places that are left, the longest first, or are left
    out where there is none.
    """
    length = len(is_special)
    sizes = rng.permutation(sizes[np.cumsum(sizes) + np.arange(len(sizes)) <= length])
    starts = placed_apart(rng, sizes, length)
    before = np.concatenate([[0], np.cumsum(is_special)])
    stays = before[starts + sizes] == before[starts]
    if stays.all():
        return starts, sizes
    closed = is_special.copy()
    found = []

    def place(start: int, size: int) -> None:
        found.append((start, size))
        closed[max(start - 1, 0) : start + size + 1] = True

    for start, size in zip(starts[stays].tolist(), sizes[stays].tolist(), strict=True):
        place(start, size)
    for size in sorted(sizes[~stays].tolist(), reverse=True):
        before = np.concatenate([[0], np.cumsum(closed)])
        free = np.flatnonzero(before[size:] == before[:-size])
        if len(free):
            place(int(rng.choice(free)), size)
    ordered = np.array(sorted(found), np.int64).reshape(-1, 2)
    return ordered[:, 0], ordered[:, 1]


def one_for_each(
    ids: np.ndarray, starts: np.ndarray, sizes: np.ndarray, mask: int
) -> tuple[np.ndarray, np.ndarray]:
    """The text, int32, with one mask for each span, and int64 [spans]: where in it they stand."""
    kept = np.ones(len(ids), bool)
    kept[ranges(starts, sizes)] = False
    kept[starts] = True
    text = np.array(ids, np.int32)
    text[starts] = mask
    return text[kept], np.cumsum(kept)[starts] - 1


def ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """int64 [sum of sizes]: starts[0], starts[0] + 1, ..., then those of the next span."""
    offsets = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(starts, sizes) + offsets


def poisson_table(mean: float, least: int = 0) -> np.ndarray:
    """float64 [n]: the chances of `least`, of up to `least` + 1, ... in a Poisson law from there.

    Its inverse, `searchsorted(table, uniform, side="right") + least`, draws from the law.
    """
    sizes = np.arange(1, int(mean + 12 * mean**0.5) + 20)
    chances = np.cumprod(np.concatenate([[1.0], mean / sizes]))[least:]
    table = np.cumsum(chances)
    return table[:-1] / table[-1]


def pairs_ahead(prefix: float) -> float:
    """Pairs of a token and a later one of a prefix of so many tokens, which the first reads too."""
    return prefix * (prefix - 1) / 2


def filled(values, size: int, fill=0, dtype=np.int32) -> np.ndarray:
    """[size]: the values, then `fill`."""
    row = np.full(size, fill, dtype)
    row[: len(values)] = values
    return row


def longest_run(ids: np.ndarray, separator: int) -> np.ndarray:
    """The longest part of the ids without a separator, the first of equals."""
    bounds = np.concatenate([[-1], np.flatnonzero(ids == separator), [len(ids)]])
    longest = int(np.argmax(np.diff(bounds)))
    return ids[bounds[longest] + 1 : bounds[longest + 1]]


def conditional_row(
    source: np.ndarray,
    targets: np.ndarray,
    lengths: Lengths,
    family: Family,
    vocabulary: Vocabulary,
    start: int,
    fits: bool = False,
    reading: Reading = "both",
) -> Row:
    """The row in which `targets` are predicted from `source` and from each other in order.

    An encoder-decoder reads the source apart and `start`, targets[0], targets[1], ...; a decoder
    reads the source, whose last token predicts targets[0], and goes on with the targets; `reading`
    the source causally it has no `prefix`. Whatever is shorter than `lengths` is filled up with pad
    and has the weight 0, in a source the segment -1; rows of an objective whose source and targets
    always fit have neither `weights` nor `source_segments`.
    """
    pad, count = vocabulary.id("pad"), len(targets)
    row = {"targets": filled(targets, lengths.predicted, pad)}
    if not fits:
        row["weights"] = filled(np.ones(count), lengths.predicted, 0.0, np.float32)
    if family == "encoder_decoder":
        row["tokens"] = filled([start], lengths.tokens, pad)
        row["tokens"][1:count] = targets[:-1]
        row["source"] = filled(source, lengths.source, pad)
        if not fits:
            row["source_segments"] = filled(np.zeros(len(source)), lengths.source, -1)
        return row
    row["tokens"] = filled(source, lengths.tokens, pad)
    row["tokens"][len(source) : len(source) + count - 1] = targets[:-1]
    if reading == "both":
        row["prefix"] = np.arange(lengths.tokens) < len(source)
    row["at"] = filled(len(source) - 1 + np.arange(count), lengths.predicted)
    return row


def parts_of(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """The source and the targets of which `conditional_row` made a row."""
    targets = row["targets"]
    if "weights" in row:
        targets = targets[row["weights"] > 0]
    if "source" not in row:
        return row["tokens"][: row["at"][0] + 1], targets
    source = row["source"]
    return source[row["source_segments"] >= 0] if "source_segments" in row else source, targets


def most(limit: int, size: Callable[[int], int], least: int = 1) -> int:
    """The largest n with size(n) <= limit, `least` - 1 for none; size never falls."""
    above = least + 1
    while size(above) <= limit:
        above *= 2
    return bisect_right(range(least, above), limit, key=size) + least - 1
