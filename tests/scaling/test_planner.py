"""Plans: real shapes by one rule, budgets kept, tokens per parameter spread as asked."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from gptjax import DecoderConfig
from gptjax.errors import BadInput
from gptjax.scaling.flops import count_flops, count_parameters
from gptjax.scaling.planner import (
    IsoFlops,
    Rates,
    ShapeRule,
    Tuned,
    compute_optimal_rows,
    isoflop_rows,
    ladder,
    run_row,
    shape_row,
    split_budget,
)

MODEL = DecoderConfig(context_length=64, positions="rotary", num_kv_heads=2)
RULE = ShapeRule(aspect=24, head_size=8)
RATES = Rates(lr=0.01, reference_width=64, lr_exponent=-1.0, batch_tokens=1024)
DESIGN = IsoFlops(
    RULE,
    smallest=1e4,
    largest=5e5,
    shapes=8,
    budgets=(5e10, 1.5e11),
    per_budget=5,
    length=64,
    rates=RATES,
    tokens_per_parameter=15.0,
)


def test_a_ladder_is_geometric_and_follows_its_rule():
    shapes = ladder(MODEL, RULE, 1e4, 5e5, 8)
    sizes = [count_parameters(shape).total for shape in shapes]
    assert sizes == sorted(sizes) and len(set(sizes)) == 8
    assert sizes[0] < 1.5e4 and 4e5 < sizes[-1] < 6e5
    steps = [b / a for a, b in itertools.pairwise(sizes)]
    assert all(1.2 < step < 2.5 for step in steps)
    for shape in shapes:
        shape.validate()
        assert shape.head_size == 8 and shape.num_layers == max(round(shape.d_model / 24), 1)
    assert all(s.num_layers == 3 for s in ladder(MODEL, ShapeRule(24, 8, layers=3), 3e4, 3e5, 4))
    with pytest.raises(BadInput, match="make only"):
        ladder(MODEL, ShapeRule(aspect=24, head_size=64), 1e4, 5e5, 8)
    with pytest.raises(BadInput, match="the smallest first"):
        ladder(MODEL, RULE, 5e5, 1e4, 8)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dataclasses.replace(DESIGN, spread=1e308).rows(MODEL), "spread is 1e"),
        (lambda: dataclasses.replace(DESIGN, budgets=(10**400,)).rows(MODEL), "308 digits"),
        (lambda: dataclasses.replace(DESIGN, budgets=(10**400,)).most(MODEL), "308 digits"),
        (lambda: dataclasses.replace(DESIGN, rates=Rates(0.1, 9, 1e5)).rows(MODEL), "exponents"),
        (lambda: dataclasses.replace(DESIGN, rates=Rates(0.1, 9, -1e5)).rows(MODEL), "exponents"),
        (
            lambda: Rates(0.1, 9, batch_exponent=-1e5).batch(DESIGN.ladder(MODEL)[0], 64),
            "exponents",
        ),
        (lambda: dataclasses.replace(DESIGN, rates=Tuned(3)).rows(MODEL), "found is 3"),
        (lambda: DESIGN.rows(None), "not None"),
        (
            lambda: isoflop_rows(None, [MODEL], [1e12], per_budget=1, length=64, rates=RATES),
            "model",
        ),
        (lambda: compute_optimal_rows(None, [MODEL], length=64, rates=RATES), "model is None"),
        (lambda: run_row(None, MODEL, 1e6, 64, RATES), "model is None"),
        (lambda: ladder(MODEL, ShapeRule(1e9, 1), 1e4, 1e13, 4), "larger heads"),
        (lambda: split_budget(1e10, 2000, 2, 3.0), "2000 budgets a factor 3 apart"),
        (lambda: split_budget(1e10, 10**400, 2, 3.0), "308 digits"),
    ],
)
def test_what_no_number_holds_is_one_line(make, words):
    with pytest.raises(BadInput, match=words):
        make()


def test_budgets_may_be_an_array():
    design = dataclasses.replace(DESIGN, budgets=np.array([5e10, 1.5e11]))
    assert design == DESIGN and design.rows(MODEL) == DESIGN.rows(MODEL)


def test_isoflop_groups_keep_their_budget_and_surround_the_optimum():
    shapes = ladder(MODEL, RULE, 1e4, 5e5, 8)
    budgets = split_budget(2e13, 4, 5, factor=3.0)
    assert sum(budgets) * 5 == pytest.approx(2e13) and budgets[1] / budgets[0] == 3.0
    options = {"per_budget": 5, "length": 64, "rates": RATES, "tokens_per_parameter": 15.0}
    rows = isoflop_rows(MODEL, shapes, budgets, spread=8.0, **options)
    assert len(rows) == 20 and len({row["name"] for row in rows}) == 20
    by_size = {(s.num_layers, s.d_model): s for s in shapes}
    for budget in budgets:
        group = [row for row in rows if row["group"] == f"{budget:.3g}"]
        ratios = []
        for row in group:
            key = (row.get("model.num_layers", 4), row.get("model.d_model", 128))
            tokens = row["train.steps"] * row["data.batch_size"] * 64
            flops = count_flops(by_size[key], 64).training * tokens
            assert flops == pytest.approx(budget, rel=0.02)
            ratios.append(tokens / count_parameters(by_size[key]).total)
        assert len(group) == 5 and min(ratios) < 15 < max(ratios)
    with pytest.raises(BadInput, match="9 shapes for each budget"):
        isoflop_rows(MODEL, shapes, budgets, **{**options, "per_budget": 9})


def test_rates_and_batches_follow_their_rules():
    narrow, wide = RULE.shape(MODEL, 64), RULE.shape(MODEL, 256)
    assert RATES.rate(narrow) == 0.01 and RATES.rate(wide) == 0.0025
    ratio = count_parameters(wide).total / count_parameters(narrow).total
    grown = RATES.batch(wide, 64) / RATES.batch(narrow, 64)
    assert math.log2(RATES.batch(wide, 64)).is_integer()
    assert 0.5 <= grown / math.sqrt(ratio) <= 2
    assert Rates(0.01, 64, batch_tokens=1, smallest_batch=4).batch(narrow, 64) == 4


def test_a_row_sets_what_differs_and_compute_optimal_runs_are_proportional():
    shape = RULE.shape(MODEL, 64)
    row = shape_row(MODEL, shape)
    assert row["model.d_model"] == 64 and row["model.num_kv_heads"] == 0
    assert "model.positions" not in row
    rows = compute_optimal_rows(
        MODEL, ladder(MODEL, RULE, 1e4, 1e5, 3), length=64, rates=RATES, tokens_per_parameter=7.0
    )
    sizes = [count_parameters(s).total for s in ladder(MODEL, RULE, 1e4, 1e5, 3)]
    for row, size in zip(rows, sizes, strict=True):
        tokens = row["train.steps"] * row["data.batch_size"] * 64
        assert tokens == pytest.approx(7 * size, rel=0.05)


def test_a_design_is_the_rows_it_stands_for():
    shapes = ladder(MODEL, RULE, 1e4, 5e5, 8)
    options = {"per_budget": 5, "length": 64, "rates": RATES, "tokens_per_parameter": 15.0}
    assert DESIGN.ladder(MODEL) == shapes and DESIGN.total == 1e12
    assert DESIGN.rows(MODEL) == isoflop_rows(MODEL, shapes, DESIGN.budgets, spread=8.0, **options)
    more = DESIGN.scaled(3.1415926e12)
    assert more.budgets == (1.6e11, 4.7e11) and DESIGN.scaled(DESIGN.total) == DESIGN
    top = dataclasses.replace(DESIGN, budgets=(DESIGN.scaled(DESIGN.most(MODEL)).budgets[-1],))
    last = top.rows(MODEL)[-1]
    tokens = last["train.steps"] * last["data.batch_size"] * 64
    assert tokens / count_parameters(shapes[-1]).total == pytest.approx(15.0 * 8.0, rel=0.1)


NO_NUMBERS = (0, -1.0, math.nan, math.inf, "3", None, True)


@pytest.mark.parametrize(
    ("part", "wrong", "words"),
    [
        ("smallest", NO_NUMBERS, "smallest size"),
        ("largest", (*NO_NUMBERS, 1e3, 1e16), "largest size|smallest first"),
        ("shapes", (1, 2.5, "8", True), "number of shapes"),
        ("budgets", ((), 1e10, "1e10", *((bad,) for bad in NO_NUMBERS)), "budget"),
        ("budgets", ((1e11, 1.04e11), [2e11, 2e11]), "both print as C[12]e11"),
        ("budgets", ((10.0,),), "less than one step of width"),
        ("per_budget", (0, 9, 2.0, "2"), "per_budget|shapes for each"),
        ("length", (0, -64, 64.0, None), "length"),
        ("rates", (None, 0.01), "give Rates or Tuned"),
        ("tokens_per_parameter", NO_NUMBERS, "tokens_per_parameter"),
        ("spread", (*NO_NUMBERS, 0.5), "spread"),
        ("rule", (None, "wide"), "by a ShapeRule"),
    ],
)
def test_what_makes_no_design_is_one_line(part, wrong, words):
    for value in wrong:
        with pytest.raises(BadInput, match=words) as error:
            dataclasses.replace(DESIGN, **{part: value}).rows(MODEL)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cls", "field", "wrong"),
    [
        (RULE, "aspect", NO_NUMBERS),
        (RULE, "head_size", (0, -8, 8.0, "8")),
        (RULE, "layers", (-1, 2.0, None)),
        (RATES, "lr", NO_NUMBERS),
        (RATES, "reference_width", NO_NUMBERS),
        (RATES, "lr_exponent", (math.nan, "x")),
        (RATES, "batch_tokens", NO_NUMBERS),
        (RATES, "largest_batch", (0, 1.5)),
    ],
)
def test_what_makes_no_rule_is_one_line(cls, field, wrong):
    for value in wrong:
        with pytest.raises(BadInput, match=field):
            dataclasses.replace(cls, **{field: value}).validate()


def test_budgets_are_split_into_budgets():
    for total, count, per_budget, factor in (
        (0, 3, 5, 2.0), (math.inf, 3, 5, 2.0), (1e12, 0, 5, 2.0), (1e12, 3, 0, 2.0),
        (1e12, 3, 5, 0), (1e12, 3, 5, math.nan), (1e12, 3.0, 5, 2.0), ("1e12", 3, 5, 2.0),
    ):  # fmt: skip
        with pytest.raises(BadInput):
            split_budget(total, count, per_budget, factor)
