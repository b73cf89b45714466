"""From a budget to the runs that answer it: shapes, tokens, rates and batches, as plain rows.

A row is a dict of an experiment's dotted fields, ready to be the grid of a sweep. The ladder
follows one depth/width rule, so that a curve over it compares sizes and nothing else; an isoFLOP
group spreads the tokens per parameter around the expected optimum (arXiv 2203.15556, approach 2).
`IsoFlops` is such a plan as a value, which can be planned anew for another budget.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gptjax.errors import BadInput
from gptjax.models.config import DecoderConfig
from gptjax.scaling.checks import check_count, check_number
from gptjax.scaling.flops import count_flops, count_parameters
from gptjax.scaling.rates import Chosen, Rates, Tuned

__all__ = [
    "IsoFlops",
    "Rates",
    "ShapeRule",
    "Tuned",
    "compute_optimal_rows",
    "isoflop_rows",
    "ladder",
    "run_row",
    "shape_row",
    "split_budget",
]


WIDTHS = 20000  # of a ladder; real ones have tens


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

    def validate(self) -> None:
        """BadInput for a rule that makes no shapes."""
        check_number("rule.aspect", self.aspect)
        check_count("rule.head_size", self.head_size)
        check_count("rule.layers", self.layers, 0)

    def shape(self, model: DecoderConfig, width: int) -> DecoderConfig:
        """The model at another width, with the layers and heads that belong to it."""
        return dataclasses.replace(
            model,
            d_model=width,
            num_layers=self.layers or max(round(width / self.aspect), 1),
            num_heads=max(width // self.head_size, 1),
            num_kv_heads=0,
            attention=dataclasses.replace(model.attention, head_dim=0),
            d_ff=0,
        )


def ladder(
    model: DecoderConfig, rule: ShapeRule, smallest: float, largest: float, count: int
) -> list[DecoderConfig]:
    """`count` real shapes whose total parameters are nearest to a geometric row, ascending.

    BadInput when the rule has fewer different shapes between the two sizes (in parameters).
    """
    if not isinstance(model, DecoderConfig) or not isinstance(rule, ShapeRule):
        raise BadInput(f"a ladder is of a DecoderConfig by a ShapeRule, not {model!r} by {rule!r}")
    rule.validate()
    check_number("the ladder's smallest size", smallest)
    check_number("the ladder's largest size", largest)
    check_count("the number of shapes in a ladder", count, 2)
    if not smallest < largest < 1e15:
        raise BadInput(
            f"a ladder of {count} shapes from {smallest:g} to {largest:g} parameters: give the "
            "smallest first, and sizes below 1e15"
        )
    shapes = {}
    width = rule.head_size
    while True:
        shape = rule.shape(model, width)
        size = count_parameters(shape).total
        shapes[size] = shape
        if len(shapes) > WIDTHS:
            raise BadInput(
                f"heads of {rule.head_size} make more than {WIDTHS} shapes up to {largest:g} "
                "parameters: give the rule larger heads, or a smaller aspect"
            )
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


def shape_row(model: DecoderConfig, shape: DecoderConfig) -> dict[str, object]:
    """The fields in which a shape differs from the model it was made of."""
    return {
        f"model.{field.name}": getattr(shape, field.name)
        for field in dataclasses.fields(shape)
        if getattr(shape, field.name) != getattr(model, field.name)
    }


def run_row(
    model: DecoderConfig, shape: DecoderConfig, tokens: float, length: int, rates: Chosen
) -> dict[str, object]:
    """One run of a shape: its fields, its rate, its batch, and whole steps of tokens."""
    _check_shapes(model, [shape], length, rates, 1.0)
    check_number("tokens", tokens)
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
    shapes: Sequence[DecoderConfig],
    budgets: Sequence[float],
    *,
    per_budget: int,
    length: int,
    rates: Chosen,
    tokens_per_parameter: float = 20.0,
    spread: float = 8.0,
) -> list[dict[str, object]]:
    """For each budget in FLOPs the shapes around its expected optimum, each on what it affords.

    The tokens per parameter of a budget's runs lie from `tokens_per_parameter` / spread to times
    spread, as near as the ladder's shapes come; a row's `group` is its budget. BadInput when the
    ladder has too few shapes, when a budget does not pay for one step, and for every argument that
    makes no plan.
    """
    _check_shapes(model, shapes, length, rates, tokens_per_parameter)
    check_number("spread", spread)
    if not 1 <= spread <= 1e6:
        raise BadInput(f"spread is {spread}; give 1 (no spread) to 1e6")
    check_count("per_budget", per_budget)
    budgets = _plain(budgets)
    check_budgets(budgets)
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
            per_token = count_flops(shape, length).training
            tokens = budget / per_token
            row = run_row(model, shape, tokens, length, rates)
            step = row["data.batch_size"] * length
            if tokens < step:
                raise BadInput(
                    f"a budget of {budget:.3g} FLOPs is less than one step of width "
                    f"{shape.d_model}: give {per_token * step:.3g} or more"
                )
            label = f"{_budget_label(budget)}_L{shape.num_layers}_d{shape.d_model}"
            rows.append({"name": label, "group": f"{budget:.3g}", **row})
    return rows


def _plain(budgets):
    """An array of numpy as a tuple of numbers; anything else as it is."""
    listed = budgets.tolist() if hasattr(budgets, "tolist") else budgets
    return tuple(listed) if isinstance(listed, list) else listed


def _budget_label(budget: float) -> str:
    return f"C{budget:.2g}".replace("+", "")


def check_budgets(budgets: Sequence[float]) -> None:
    """BadInput for budgets that are no FLOPs, or would carry the same name."""
    if isinstance(budgets, str | bytes) or not isinstance(budgets, Sequence) or not budgets:
        raise BadInput(f"budgets is {budgets!r}; give a list of FLOPs")
    names: dict[str, float] = {}
    for budget in budgets:
        check_number("a budget in FLOPs", budget)
        name = _budget_label(budget)
        if name in names:
            raise BadInput(
                f"budgets {names[name]!r} and {budget!r} both print as {name}: give budgets that "
                "differ in their first two digits"
            )
        names[name] = budget


def _check_shapes(model, shapes, length, rates, tokens_per_parameter) -> None:
    if not isinstance(model, DecoderConfig):
        raise BadInput(f"model is {model!r}; give a DecoderConfig")
    if not isinstance(shapes, Sequence):
        raise BadInput(f"shapes is {shapes!r}; give DecoderConfigs, such as ladder() makes")
    if not shapes or not all(isinstance(shape, DecoderConfig) for shape in shapes):
        raise BadInput(f"shapes is {shapes!r}; give DecoderConfigs, such as ladder() makes")
    check_count("length", length)
    check_number("tokens_per_parameter", tokens_per_parameter)
    if tokens_per_parameter > 1e9:
        raise BadInput(f"tokens_per_parameter is {tokens_per_parameter}; give 1e9 or less")
    _check_rates(rates)


def _check_rates(rates) -> None:
    if not all(hasattr(rates, name) for name in ("rate", "batch", "validate")):
        raise BadInput(f"rates is {rates!r}; give Rates or Tuned")
    rates.validate()


def compute_optimal_rows(
    model: DecoderConfig,
    shapes: list[DecoderConfig],
    *,
    length: int,
    rates: Chosen,
    tokens_per_parameter: float = 20.0,
) -> list[dict[str, object]]:
    """Every shape on its compute-optimal number of tokens."""
    _check_shapes(model, shapes, length, rates, tokens_per_parameter)
    rows = []
    for shape in shapes:
        tokens = tokens_per_parameter * count_parameters(shape).total
        row = run_row(model, shape, tokens, length, rates)
        rows.append({"name": f"L{shape.num_layers}_d{shape.d_model}", **row})
    return rows


def split_budget(total: float, count: int, per_budget: int, factor: float = 2.0) -> list[float]:
    """`count` budgets a factor apart, of `per_budget` runs each, that take `total` FLOPs."""
    check_number("the total in FLOPs", total)
    check_number("factor", factor)
    check_count("the number of budgets", count)
    check_count("per_budget", per_budget)
    if count * abs(math.log10(factor)) > 100:
        raise BadInput(f"{count} budgets a factor {factor:g} apart span more than 100 decades")
    first = total / (per_budget * sum(factor**i for i in range(count)))
    return [first * factor**i for i in range(count)]


@dataclass(frozen=True)
class IsoFlops:
    """IsoFLOP groups over a ladder, as a value: its rows, and the same plan on other budgets."""

    rule: ShapeRule
    smallest: float  # parameters of the ladder's first shape
    largest: float
    shapes: int
    budgets: Sequence[float]  # FLOPs of every run of a group, a group each
    per_budget: int
    length: int
    rates: Chosen
    tokens_per_parameter: float = 20.0
    spread: float = 8.0

    def __post_init__(self):
        object.__setattr__(self, "budgets", _plain(self.budgets))

    @property
    def total(self) -> float:
        """FLOPs of all runs, had none a trunk in common with another."""
        return self.per_budget * sum(self.budgets)

    def ladder(self, model: DecoderConfig) -> list[DecoderConfig]:
        """The real shapes, ascending."""
        return ladder(model, self.rule, self.smallest, self.largest, self.shapes)

    def rows(self, model: DecoderConfig) -> list[dict[str, object]]:
        """A row for every run, as `isoflop_rows` gives them; BadInput for what makes no plan."""
        check_count("length", self.length)
        return isoflop_rows(
            model,
            self.ladder(model),
            self.budgets,
            per_budget=self.per_budget,
            length=self.length,
            rates=self.rates,
            tokens_per_parameter=self.tokens_per_parameter,
            spread=self.spread,
        )

    def scaled(self, total: float) -> "IsoFlops":
        """The same plan with budgets in the same proportions, rounded to two digits."""
        check_number("the total in FLOPs", total)
        check_budgets(self.budgets)
        factor = total / self.total
        budgets = tuple(float(f"{budget * factor:.2g}") for budget in self.budgets)
        return dataclasses.replace(self, budgets=budgets)

    def most(self, model: DecoderConfig) -> float:
        """The total FLOPs beyond which the ladder is too short.

        There even the largest shape sees more tokens than the spread asks for, and the group of
        the largest budget no longer surrounds its optimum.
        """
        check_budgets(self.budgets)
        check_count("per_budget", self.per_budget)
        shape = self.ladder(model)[-1]
        tokens = self.tokens_per_parameter * self.spread * count_parameters(shape).total
        return self.total * tokens * count_flops(shape, self.length).training / max(self.budgets)
