"""Learning rate and batch of every size: by a rule that is given, or by one that was tuned.

A plan asks for `rate(shape)` and `batch(shape, length)` and does not care which it is.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from gptjax.errors import BadInput
from gptjax.models.config import DecoderConfig
from gptjax.scaling.checks import check_count, check_number
from gptjax.scaling.flops import count_parameters


class Chosen(Protocol):
    """What gives every shape its learning rate and its batch."""

    def rate(self, shape: DecoderConfig) -> float:
        """The learning rate of a shape, to three digits."""

    def batch(self, shape: DecoderConfig, length: int) -> int:
        """Sequences of `length` tokens in a batch."""

    def validate(self) -> None:
        """BadInput for the first field that makes no plan."""


@dataclass(frozen=True)
class Rates:
    """Learning rate and batch by rule.

    lr = lr * (width / reference_width) ** lr_exponent: -1 is the rule of muP for Adam's hidden
    matrices (arXiv 2203.03466, table 3), about -0.5 what tuning of standard parametrisations often
    finds, 0 what muP itself or Muon want. A batch holds batch_tokens * (parameters /
    reference_parameters) ** batch_exponent tokens, as a power of two of sequences; critical batch
    sizes grow with about the root of the tokens (arXiv 2505.13738), and tokens with parameters.
    """

    lr: float
    reference_width: int
    lr_exponent: float = 0.0
    batch_tokens: float = 4096
    reference_parameters: float = 1e5
    batch_exponent: float = 0.5
    smallest_batch: int = 1  # sequences
    largest_batch: int = 1 << 20

    def rate(self, shape: DecoderConfig) -> float:
        """The learning rate of a shape, to three digits."""
        with _in_range(shape):
            rate = self.lr * (shape.d_model / self.reference_width) ** self.lr_exponent
            return _rate(rate)

    def batch(self, shape: DecoderConfig, length: int) -> int:
        """Sequences of `length` tokens in a batch."""
        with _in_range(shape):
            ratio = count_parameters(shape).total / self.reference_parameters
            sequences = self.batch_tokens * ratio**self.batch_exponent / length
            return _power_of_two(sequences, self.smallest_batch, self.largest_batch)

    def validate(self) -> None:
        """BadInput for the first field that makes no plan."""
        for name in ("lr", "reference_width", "batch_tokens", "reference_parameters"):
            check_number(f"rates.{name}", getattr(self, name))
        for name in ("lr_exponent", "batch_exponent"):
            check_number(f"rates.{name}", getattr(self, name), -math.inf)
        check_count("rates.smallest_batch", self.smallest_batch)
        check_count("rates.largest_batch", self.largest_batch, self.smallest_batch)


@dataclass(frozen=True)
class Best:
    """What tuning found for one shape: the rate at the bottom of the parabola, and the batch."""

    parameters: int
    width: int
    lr: float
    batch_tokens: int
    loss: float  # at the bottom of the parabola


@dataclass(frozen=True)
class Tuned:
    """Learning rate and batch by power laws of the parameters, fitted to tuned shapes.

    One tuned shape serves all sizes: the form for muP, whose rate does not change with the width.
    The law takes the place of each shape's own best, whose error is a large part of a factor 2:
    a power law over several sizes is what is extrapolated in arXiv 2401.02954 (section 3.1) and in
    arXiv 2406.19146.
    """

    found: tuple[Best, ...]

    def _law(self, field: str, shape: DecoderConfig) -> float:
        """The least-squares line through the logarithms, at a shape."""
        at = math.log(count_parameters(shape).total)
        xs = [math.log(best.parameters) for best in self.found]
        ys = [math.log(getattr(best, field)) for best in self.found]
        x, y = sum(xs) / len(xs), sum(ys) / len(ys)
        spread = sum((each - x) ** 2 for each in xs)
        slope = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / (spread or 1.0)
        return math.exp(y + slope * (at - x))

    def rate(self, shape: DecoderConfig) -> float:
        """The learning rate of a shape, to three digits."""
        with _in_range(shape):
            return _rate(self._law("lr", shape))

    def batch(self, shape: DecoderConfig, length: int) -> int:
        """Sequences of `length` tokens in a batch."""
        with _in_range(shape):
            return _power_of_two(self._law("batch_tokens", shape) / length, 1, 1 << 20)

    def validate(self) -> None:
        """BadInput for what no tuning finds."""
        several = isinstance(self.found, tuple | list) and len(self.found) > 0
        if not several or not all(isinstance(best, Best) for best in self.found):
            raise BadInput(f"found is {self.found!r}; give the best of one tuned shape or more")
        for best in self.found:
            for name in ("parameters", "width", "lr", "batch_tokens"):
                check_number(f"found.{name}", getattr(best, name))

    def to_json(self) -> list[dict]:
        """The tuned shapes as plain values."""
        return [dataclasses.asdict(best) for best in self.found]

    @staticmethod
    def from_json(tree: object) -> "Tuned":
        """The same back; BadInput for anything else."""
        try:
            tuned = Tuned(tuple(Best(**row) for row in tree))
        except TypeError:
            raise BadInput("not the best of tuned shapes: their rows are damaged") from None
        tuned.validate()
        return tuned


@contextlib.contextmanager
def _in_range(shape: DecoderConfig) -> Iterator[None]:
    try:
        yield
    except (OverflowError, ZeroDivisionError, ValueError):
        raise BadInput(
            f"rates give no finite learning rate and batch above 0 at width {shape.d_model}: give "
            "exponents nearer to 0, or another reference"
        ) from None


def _rate(value: float) -> float:
    if not 0 < value < math.inf:
        raise OverflowError
    return float(f"{value:.3g}")


def _power_of_two(sequences: float, least: int, most: int) -> int:
    return min(max(2 ** round(math.log2(max(sequences, 1.0))), least), most)


MOST = 3  # rates that a grid gains at once


def lowest(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, float, int]:
    """Where the loss is lowest over learning rates a constant factor apart.

    Returns (rate, loss, more). A parabola in log rate through the best and its two neighbours
    gives rate and loss; beside a run that diverged (an infinite loss) the best itself. When the
    best is the lowest or the highest rate, `more` is how many the grid should gain there, below
    0 for lower ones: as far as the parabola through the three at that edge falls. Otherwise 0.
    """
    pairs = sorted(zip(rates, losses, strict=True))
    losses = [loss if math.isfinite(loss) else math.inf for _, loss in pairs]
    best, last = min(range(len(pairs)), key=lambda i: losses[i]), len(pairs) - 1
    rate, loss = pairs[best][0], losses[best]
    if loss == math.inf:
        return rate, loss, -MOST
    middle = min(max(best, 1), last - 1)
    away = _bottom(losses[middle - 1 : middle + 2]) if last > 1 else None
    if 0 < best < last:
        if away is None:
            return rate, loss, 0
        factor = pairs[best + 1][0] / rate
        return rate * factor**away, loss - 0.25 * (losses[best - 1] - losses[best + 1]) * away, 0
    more = MOST - 1 if away is None else min(max(round(abs(away)), 1), MOST)
    return rate, loss, -more if best == 0 else more


def _bottom(three: Sequence[float]) -> float | None:
    """The bottom of the parabola through three losses, in steps from the middle one."""
    left, middle, right = three
    bend = left - 2 * middle + right
    return 0.5 * (left - right) / bend if 0 < bend < math.inf else None
