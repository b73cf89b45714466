"""From a budget to the runs that answer it: shapes, tokens, rates and batches, as plain rows.

A row is a dict of an experiment's dotted fields, ready to be the grid of a sweep. The ladder
follows one depth/width rule, so that a curve over it compares sizes and nothing else; an isoFLOP
group spreads the tokens per parameter around the expected optimum (arXiv 2203.15556, approach 2).
"""

import dataclasses
import math
from dataclasses import dataclass

from gptjax.errors import BadInput
from gptjax.models.config import DecoderConfig
from gptjax.scaling.flops import count_flops, count_parameters


@dataclass(frozen=True)
class ShapeRule:
    """Width from depth: layers = width / aspect, heads of one size.

    Kaplan et al. (arXiv 2001.08361, figure 5) find the loss flat within a few percent over
    aspects from 30 to 150; below a million parameters there are not enough layers for these, and
    smaller aspects serve.
    """

    aspect: float = 64.0  # d_model / num_layers
    head_size: int = 64
    layers: int = 0  # above 0: this many at every width

    def shape(self, model: DecoderConfig, width: int) -> DecoderConfig:
        """The model at another width, with the layers and heads that belong to it."""
        return dataclasses.replace(
            model,
            d_model=width,
            num_layers=self.layers or max(round(width / self.aspect), 1),
            num_heads=max(width // self.head_size, 1),
            num_kv_heads=0,
            head_dim=0,
            d_ff=0,
        )


def ladder(
    model: DecoderConfig, rule: ShapeRule, smallest: float, largest: float, count: int
) -> list[DecoderConfig]:
    """`count` real shapes whose total parameters are nearest to a geometric row, ascending.

    BadInput when the rule has fewer different shapes between the two sizes (in parameters).
    """
    if rule.head_size < 1 or not rule.aspect > 0:
        raise BadInput(f"{rule} makes no shapes: give a head size and an aspect above 0")
    if not 0 < smallest < largest < 1e15 or count < 2:
        raise BadInput(
            f"a ladder of {count} shapes from {smallest:g} to {largest:g} parameters: give two or "
            "more, the smallest first"
        )
    shapes = {}
    width = rule.head_size
    while True:
        shape = rule.shape(model, width)
        size = count_parameters(shape).total
        shapes[size] = shape
        if size > largest * 1.5:
            break
        width += rule.head_size
    chosen: list[int] = []
    for i in range(count):
        wanted = smallest * (largest / smallest) ** (i / (count - 1))
        free = [size for size in shapes if size not in chosen]
        if not free:
            break
        chosen.append(min(free, key=lambda size: abs(math.log(size / wanted))))
    if len(chosen) < count:
        raise BadInput(
            f"heads of {rule.head_size} make only {len(shapes)} shapes up to {largest:g} "
            f"parameters, not {count}: lower the head size or the count"
        )
    return [shapes[size] for size in sorted(chosen)]


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
        rate = self.lr * (shape.d_model / self.reference_width) ** self.lr_exponent
        return float(f"{rate:.3g}")

    def batch(self, shape: DecoderConfig, length: int) -> int:
        """Sequences of `length` tokens in a batch."""
        ratio = count_parameters(shape).total / self.reference_parameters
        sequences = self.batch_tokens * ratio**self.batch_exponent / length
        nearest = 2 ** round(math.log2(max(sequences, 1.0)))
        return min(max(nearest, self.smallest_batch), self.largest_batch)


def shape_row(model: DecoderConfig, shape: DecoderConfig) -> dict[str, object]:
    """The fields in which a shape differs from the model it was made of."""
    return {
        f"model.{field.name}": getattr(shape, field.name)
        for field in dataclasses.fields(shape)
        if getattr(shape, field.name) != getattr(model, field.name)
    }


def run_row(
    model: DecoderConfig, shape: DecoderConfig, tokens: float, length: int, rates: Rates
) -> dict[str, object]:
    """One run of a shape: its fields, its rate, its batch, and whole steps of tokens."""
    batch = rates.batch(shape, length)
    return {
        **shape_row(model, shape),
        "optim.lr": rates.rate(shape),
        "data.batch_size": batch,
        "data.sequence_length": length,
        "train.tokens": 0,
        "train.steps": max(round(tokens / (batch * length)), 1),
    }


def isoflop_rows(
    model: DecoderConfig,
    shapes: list[DecoderConfig],
    budgets: list[float],
    *,
    per_budget: int,
    length: int,
    rates: Rates,
    tokens_per_parameter: float = 20.0,
    spread: float = 8.0,
) -> list[dict[str, object]]:
    """For each budget in FLOPs the shapes around its expected optimum, each on what it affords.

    The tokens per parameter of a budget's runs lie from `tokens_per_parameter` / spread to times
    spread, as near as the ladder's shapes come; a row's `group` is its budget. BadInput when the
    ladder has too few shapes.
    """
    if per_budget > len(shapes):
        raise BadInput(f"{per_budget} shapes for each budget, and the ladder has {len(shapes)}")
    rows = []
    for budget in budgets:
        ratios = {}
        for i, shape in enumerate(shapes):
            tokens = budget / count_flops(shape, length).training
            ratios[i] = tokens / count_parameters(shape).total
        chosen: list[int] = []
        for j in range(per_budget):
            place = 2 * j / (per_budget - 1) - 1 if per_budget > 1 else 0.0
            wanted = tokens_per_parameter * spread**place
            free = [i for i in ratios if i not in chosen]
            chosen.append(min(free, key=lambda i: abs(math.log(ratios[i] / wanted))))
        for i in sorted(chosen):
            shape = shapes[i]
            tokens = budget / count_flops(shape, length).training
            row = run_row(model, shape, tokens, length, rates)
            label = f"C{budget:.2g}_L{shape.num_layers}_d{shape.d_model}".replace("+", "")
            rows.append({"name": label, "group": f"{budget:.3g}", **row})
    return rows


def compute_optimal_rows(
    model: DecoderConfig,
    shapes: list[DecoderConfig],
    *,
    length: int,
    rates: Rates,
    tokens_per_parameter: float = 20.0,
) -> list[dict[str, object]]:
    """Every shape on its compute-optimal number of tokens."""
    rows = []
    for shape in shapes:
        tokens = tokens_per_parameter * count_parameters(shape).total
        row = run_row(model, shape, tokens, length, rates)
        rows.append({"name": f"L{shape.num_layers}_d{shape.d_model}", **row})
    return rows


def split_budget(total: float, count: int, per_budget: int, factor: float = 2.0) -> list[float]:
    """`count` budgets a factor apart, of `per_budget` runs each, that take `total` FLOPs."""
    first = total / (per_budget * sum(factor**i for i in range(count)))
    return [first * factor**i for i in range(count)]
