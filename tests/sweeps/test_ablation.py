"""Values of one field against each other over seeds: figures, words, and what is refused."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from scipy import stats

from gptjax import Analysis, Sweep
from gptjax.errors import BadInput
from gptjax.scaling.table import Runs
from gptjax.sweeps.ablation import ablate, lead, mean_interval, welch
from gptjax.sweeps.ablation_page import (
    ablation_json,
    ablation_summary,
    geometric,
    value_chart,
    verdict,
)
from gptjax.sweeps.alike import alike, compared
from gptjax.sweeps.curves import Curve
from gptjax.sweeps.grid import rows, values
from gptjax.sweeps.ledger import State
from gptjax.sweeps.report import write_report
from tests.sweeps.synthetic import BASE, fake

FIELD = "model.activation"
UNIT = "nats"
KINDS = values(FIELD, "gelu_tanh", "relu", "swiglu")
SEEDS = values("train.seed", 0, 1, 2)


def sweep_of(grid, **analysis) -> Sweep:
    return Sweep("values", BASE, grid, Analysis(laws=(), **{"compare": FIELD, **analysis}))


def found_in(sweep: Sweep, losses, keep=None, curves=None):
    """The ablation of points with these losses; `keep` are those that finished."""
    points = {point.name: point for point in sweep.points}
    at = [i for i in range(len(points)) if keep is None or keep[i]]
    names = [list(points)[i] for i in at]
    runs = Runs.of(
        np.array(losses, float)[at],
        parameters=1e3,
        tokens=[points[name].experiment.tokens for name in names],
        flops=[points[name].flops for name in names],
        names=names,
    )
    return ablate(points, runs, sweep.analysis, curves or {})


def test_differences_are_paired_by_seed():
    seeds = np.array([0.0, 0.1, 0.3])  # the seeds differ by more than the values do
    relu = np.array([0.021, 0.030, 0.025])
    losses = [*(2 + seeds), *(2 + seeds + relu), *(2 + seeds[::-1])]
    found = found_in(sweep_of(KINDS * SEEDS), losses)
    (contrast,) = found.contrasts
    gelu, relu_arm, swiglu = contrast.arms
    expected = stats.ttest_1samp(relu, 0).confidence_interval(0.95)
    gap = relu_arm.difference
    assert relu_arm.paired and gap.estimate == pytest.approx(relu.mean())
    assert (gap.low, gap.high) == pytest.approx((expected.low, expected.high))
    assert verdict(gap, UNIT).startswith("higher by 0.0253 nats [0.0")
    assert verdict(swiglu.difference, UNIT).startswith("not separable (+0.0000 nats [-")
    assert gelu.difference is None and contrast.label == "" and found.reference == "gelu_tanh"
    said = ablation_summary(found, UNIT)
    assert said[0].startswith(f"{FIELD}: the lowest loss is that of gelu_tanh, 2.1333 [")
    assert "against swiglu, the next: not separable" in said[0] and len(said) == 3


def test_unequal_seeds_are_compared_by_welch():
    losses = [2.0, 2.1, 2.05, 2.4, 2.5, 2.42, 1.0, 1.0, 1.0]
    keep = [True] * 5 + [False] + [True, False, False]
    found = found_in(sweep_of(KINDS * SEEDS, reference="relu"), losses, keep)
    gelu, relu, swiglu = found.contrasts[0].arms
    expected = stats.ttest_ind(losses[:3], losses[3:5], equal_var=False).confidence_interval(0.95)
    assert not gelu.paired and relu.unfinished == 1
    assert (gelu.difference.low, gelu.difference.high) == pytest.approx(tuple(expected))
    assert math.isnan(swiglu.difference.low) and swiglu.difference.estimate == pytest.approx(-1.45)
    assert "a lone seed" in verdict(swiglu.difference, UNIT)
    assert "1.0000 nats over 1 seed" in ablation_summary(found, UNIT)[0]
    keep = [True] * 3 + [False] * 6  # nothing of the reference has finished
    said = ablation_summary(found_in(sweep_of(KINDS * SEEDS, reference="relu"), losses, keep), UNIT)
    assert said[1] == "gelu_tanh against relu: no finished run to compare."
    best, second, gap = lead(found.contrasts[0])
    assert (best.value, second.value) == ("swiglu", "gelu_tanh") and math.isnan(gap.low)
    json.dumps(ablation_json(found, UNIT), allow_nan=False)


def test_intervals_of_few_values():
    assert math.isnan(mean_interval(np.zeros(0)).estimate)
    assert mean_interval(np.array([2.0, 2.0])).low == 2.0
    assert welch(np.array([1.0, 1.0]), np.array([2.0, 2.0])).high == -1.0
    assert verdict(welch(np.zeros(0), np.ones(2)), UNIT) == "no finished run to compare"


def test_each_budget_and_setting_is_compared_by_itself():
    by_length = sweep_of(KINDS * SEEDS * values("train.steps", 10, 20))
    assert len(alike(by_length.points, FIELD)) == 2
    # at equal FLOPs the values have other lengths, and the budgets are told by FLOPs
    equal = rows(
        *(
            {FIELD: kind, "train.steps": steps * budget, "train.seed": seed}
            for budget in (1, 4)
            for kind, steps in (("gelu_tanh", 100), ("relu", 104))
            for seed in (0, 1)
        )
    )
    sets = alike(sweep_of(equal).points, FIELD)
    assert [{v: len(p) for v, p in by.items()} for _, by in sets] == [
        {"gelu_tanh": 2, "relu": 2}
    ] * 2
    assert all(label.endswith(" FLOPs") for label, _ in sets)
    rates = alike(sweep_of(KINDS * SEEDS * values("optim.lr", 1e-3, 1e-2)).points, FIELD)
    assert [label for label, _ in rates] == ["lr 0.001", "lr 0.01"]
    both = sweep_of(KINDS * values("train.seed", 0) * values("data.seed", 0, 1))
    assert len(alike(both.points, FIELD)) == 1, "the order of the data is a seed too"


@pytest.mark.parametrize(
    ("grid", "analysis", "words"),
    [
        (KINDS, {"compare": "model.activatoin"}, "no row of the grid sets; did you mean 'model.ac"),
        (KINDS, {"reference": "swigul"}, "no value of model.activation; did you mean 'swiglu'?"),
        (KINDS, {"compare": "", "reference": "relu"}, "but nothing is compared"),
        (KINDS * SEEDS, {"compare": "train.seed"}, "seeds and lengths are what a comparison goes"),
        (
            rows({FIELD: "relu", "optim.lr": 0.1}, {FIELD: "gelu_tanh", "optim.lr": 0.2}),
            {},
            "also differ in optim.lr",
        ),
        (
            rows({FIELD: "relu", "train.steps": 10}, {FIELD: "gelu_tanh", "train.steps": 90}),
            {},
            "differ in their budgets",
        ),
        (values(FIELD, "relu"), {}, "two values"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(grid, analysis, words):
    with pytest.raises(BadInput, match=words.replace("?", r"\?")):
        sweep_of(grid, **analysis).validate()


def test_a_number_may_be_written_in_another_way():
    grid = values("optim.lr", 1e-2, 1e-3) * SEEDS
    sweep = sweep_of(grid, compare="optim.lr", reference="1e-3")
    sweep.validate()
    assert found_in(sweep, np.linspace(2, 3, 6)).reference == "0.001"


def test_the_share_of_flops_is_read_off_where_curves_cross():
    sweep = sweep_of(values(FIELD, "gelu_tanh", "relu") * values("train.seed", 0, 1))
    flops = np.geomspace(1, 100, 41) / 100 * sweep.points[0].flops
    at = lambda gain: 5 - np.log(gain * flops / flops[0])
    made = [
        Curve(flops, flops, at(gain), 9.0, 9.0) for gain in (1, 1, 2, 4)
    ]  # twice and four times as fast
    curves = {point.name: curve for point, curve in zip(sweep.points, made, strict=True)}
    found = found_in(sweep, [c.loss[-1] for c in made], curves=curves)
    assert found.contrasts[0].arms[1].share == pytest.approx([0.5, 0.25], rel=1e-6)
    assert "38% (25% to 50% over seeds) of the FLOPs" in ablation_summary(found, UNIT)[1]
    slow = dataclasses.replace(made[2], loss=made[2].loss + 3)
    found = found_in(sweep, [1, 1, 2, 2], curves={**curves, sweep.points[2].name: slow})
    assert np.isnan(found.contrasts[0].arms[1].share).tolist() == [True, False]
    assert "met by 1 of 2 seeds" in ablation_summary(found, UNIT)[1]


def test_the_report_tells_and_draws_the_comparison(tmp_path):
    sweep = sweep_of(KINDS * SEEDS)
    states = {4: State("diverged", {}, "the loss is not finite at step 2")}
    folder = fake(tmp_path / "runs", sweep, states=states)
    report = write_report(folder)
    text = report.path.read_text(encoding="utf-8")
    assert "model.activation, value by value" in text and "law was asked for" not in text
    assert report.summary[0].startswith(f"{FIELD}: the lowest loss is that of ")
    for name in ("ablation_flops", "ablation_seconds"):
        assert f'id="plot-{name}"' in text
        assert (folder.path / "figures" / f"{name}.png").stat().st_size > 5000
    tree = json.loads((folder.path / "ablation.json").read_text())
    (contrast,) = tree["comparisons"]
    assert [arm["unfinished"] for arm in contrast["values"]] == [0, 1, 0]
    assert [arm["paired"] for arm in contrast["values"]] == [False, False, True]
    before = (report.path.read_bytes(), (folder.path / "ablation.json").read_bytes())
    write_report(folder)
    assert before == (report.path.read_bytes(), (folder.path / "ablation.json").read_bytes())


@pytest.mark.parametrize("done", [0, 1])
def test_few_finished_points_are_told_in_words(tmp_path, done):
    sweep = sweep_of(values(FIELD, "gelu_tanh", "relu") * values("train.seed", 0))
    states = {i: State("diverged", {}, "the loss is not finite") for i in range(done, 2)}
    folder = fake(tmp_path / "runs", sweep, states=states)
    said = write_report(folder).summary
    assert ("no point has finished" in said[0]) == (done == 0)


RATES = values("optim.lr", 3e-3, 1e-2, 2e-2, 4e-2) * values("train.seed", 0, 1)


def test_a_grid_of_a_number_is_compared_by_itself(tmp_path):
    folder = fake(tmp_path / "runs", Sweep("rates", BASE, RATES, Analysis(laws=())))
    said = write_report(folder).summary
    assert said[0].startswith("optim.lr: the lowest loss is that of ") and len(said) <= 3
    text = (folder.path / "report.html").read_text()
    for absent in ("Approach 1", "Held-out", "not fitted", "No law"):
        assert absent not in text.split("<body>")[1]
    assert 'id="plot-loss_value"' in text and "mean over seeds" in text
    columns = [re.sub("<.*?>", " ", row).split() for row in re.findall("<tr><th.*?</tr>", text)]
    assert ["point", "lr", "seed", "status", "N"] in [names[:5] for names in columns]
    assert "loss_flops" in text and (folder.path / "figures" / "loss_value.png").exists()


@pytest.mark.parametrize(
    ("grid", "field"),
    [
        (RATES, "optim.lr"),
        (values("optim.lr", 1e-3, 2e-3) * values("optim.weight_decay", 0.0, 0.1), "optim.lr"),
        (SEEDS, ""),
        (values("train.steps", 3, 6), ""),
    ],
)
def test_the_field_that_is_compared_by_itself(grid, field):
    sweep = Sweep("grid", BASE, grid, Analysis(laws=()))
    assert compared(sweep.points, sweep.analysis).compare == field
    assert compared(sweep.points, Analysis()).compare == ""


@pytest.mark.parametrize(("losses", "way"), [((3, 2, 1), "larger"), ((2, 1, 3), "")])
def test_the_best_value_at_the_edge_is_said(losses, way):
    grid = values("optim.lr", 1e-3, 2e-3, 4e-3)
    found = found_in(sweep_of(grid, compare="optim.lr"), losses)
    said = " ".join(ablation_summary(found, UNIT))
    assert (f"{way} values of optim.lr may be better still" in said) == bool(way)
    assert value_chart(found, UNIT).log_x and not geometric([1.0, 2.0, 3.0])
