"""The algebra of grids, and what a sweep makes of its rows."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from gptjax import (
    UL2,
    DataConfig,
    DecoderConfig,
    EncoderDecoderConfig,
    Experiment,
    OptimConfig,
    TrainConfig,
)
from gptjax.config_tree import MAY_DIFFER, differences, flatten
from gptjax.errors import BadInput
from gptjax.objectives.denoisers import Denoiser
from gptjax.sweeps.alike import alike, value_of
from gptjax.sweeps.folder import matching
from gptjax.sweeps.grid import Grid, chain, override, product, rows, subsample, values, zipped
from gptjax.sweeps.sweep import Analysis, Sweep, digest, identity
from gptjax.sweeps.trunks import find_branches

BASE = Experiment(
    name="base",
    model=DecoderConfig(num_layers=1, d_model=16, num_heads=2, context_length=32),
    data=DataConfig(batch_size=4, sequence_length=32),
    train=TrainConfig(steps=3),
)
WIDTHS = values("model.d_model", 16, 32)
SEEDS = values("train.seed", 0, 1, 2)


def test_product_zip_chain_and_subsample():
    both = product(WIDTHS, SEEDS)
    assert both == WIDTHS * SEEDS and len(both) == 6
    assert both.rows[1] == {"model.d_model": 16, "train.seed": 1}
    assert zipped(WIDTHS, values("train.seed", 5, 6)).rows[1] == {
        "model.d_model": 32,
        "train.seed": 6,
    }
    assert chain(WIDTHS, SEEDS) == WIDTHS + SEEDS and len(WIDTHS + SEEDS) == 5
    some = subsample(both, 3, seed=1)
    assert len(some) == 3 and some == subsample(both, 3, seed=1)
    assert [row for row in both if row in some.rows] == list(some)


def test_grids_that_cannot_be_are_refused():
    with pytest.raises(BadInput, match="2, 3 rows cannot be zipped"):
        zipped(WIDTHS, SEEDS)
    with pytest.raises(BadInput, match=r"two factors of a grid set model\.d_model"):
        product(WIDTHS, WIDTHS)
    with pytest.raises(BadInput, match="7 rows cannot be drawn from a grid of 6; give 1 to 6"):
        subsample(WIDTHS * SEEDS, 7)
    with pytest.raises(BadInput, match=r"did you mean 'model\.d_model'"):
        override(BASE, {"model.d_modle": 16})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WIDTHS * 3, "3 is no grid"),
        (lambda: 3 * WIDTHS, "3 is no grid"),
        (lambda: "ab" + WIDTHS, "is no grid"),
        (lambda: zipped(WIDTHS, [{"train.seed": 1}]), "is no grid"),
        (lambda: product(), "no grid is given"),
        (lambda: rows("abc"), "row 0 of a grid is 'abc'; give a dict"),
        (lambda: rows({"train.seed": 1}, {3: 1}), "row 1 of a grid sets 3"),
        (lambda: Grid(3), "the rows of a grid are 3"),
        (lambda: values("optim.lr"), r"values\('optim\.lr', 1, 2\)"),
        (lambda: values("optim.lr", {1e-3}), "gives optim.lr the value .*, a set; give a number"),
        (lambda: values("data.files", ["a", None]), "data.files the value None"),
        (lambda: subsample(WIDTHS, 1.5), "count of subsample is 1.5"),
        (lambda: subsample(WIDTHS, 1, seed=[1]), "seed of subsample"),
        (lambda: subsample([1], 1), "is no grid"),
    ],
)
def test_nonsense_is_one_line(make, words):
    with pytest.raises(BadInput, match=words):
        make()


def test_scalars_of_numpy_become_plain():
    grid = values("optim.lr", np.float32(0.5), np.float64(0.25))
    assert [type(row["optim.lr"]) for row in grid] == [float, float]
    assert type(values("model.num_layers", np.int64(2)).rows[0]["model.num_layers"]) is int


def test_points_carry_their_experiment_and_a_name_of_their_own():
    sweep = Sweep("s", BASE, WIDTHS * SEEDS)
    sweep.validate()
    points = sweep.points
    assert [p.experiment.model.d_model for p in points] == [16, 16, 16, 32, 32, 32]
    assert points[1].name.startswith("d_model-16_seed-1-") and points[1].experiment.train.seed == 1
    assert len({p.name for p in points}) == 6 and len({p.program for p in points}) == 2
    assert sweep.flops == pytest.approx(sum(p.flops for p in points))
    named = Sweep("s", BASE, rows({"name": "small", "group": "1e9", "train.seed": 4}))
    assert named.points[0].name.startswith("small-") and named.points[0].group == "1e9"


def test_a_name_changes_with_the_run_and_not_with_the_machine():
    other = dataclasses.replace(BASE, optim=dataclasses.replace(BASE.optim, lr=1e-4))
    elsewhere = dataclasses.replace(BASE, mesh=dataclasses.replace(BASE.mesh, fsdp=2), name="x")
    assert identity(other) != identity(BASE) == identity(elsewhere)


def test_lengths_in_flops_of_a_grid():
    """Points of one budget are alike, whatever their steps; nothing given is no other name."""
    flat = flatten(BASE.to_json())
    before = {k: v for k, v in flat.items() if not k.startswith((*MAY_DIFFER, "train.flops"))}
    del before["name"]
    assert identity(BASE) == digest(json.dumps(before, sort_keys=True))
    budgets = values("train.flops", 1e9, 4e9)
    with pytest.raises(BadInput, match=r"row 0.*train.steps = 3 takes the place of train.flops"):
        _ = Sweep("s", BASE, budgets).points
    base = dataclasses.replace(BASE, train=TrainConfig(tokens=9))
    with pytest.raises(BadInput, match=r"train.flops is 'many', which is not of type float"):
        _ = Sweep("s", base, values("train.flops", "many")).points
    sweep = Sweep("s", base, WIDTHS * budgets, Analysis(laws=(), compare="model.d_model"))
    sweep.validate()
    assert sweep.points[1].name.startswith("d_model-16_flops-4e+09-")
    for point in sweep.points:
        half = point.experiment.step_flops.training / 2
        assert abs(point.flops - point.row["train.flops"]) <= half
    assert len(alike(sweep.points, "model.d_model")) == 2
    assert matching("s", {p.name: p for p in sweep.points}, ("train.flops=4e9",)) == [
        sweep.points[1].name,
        sweep.points[3].name,
    ]
    wsd = dataclasses.replace(base, optim=OptimConfig(schedule="wsd", warmup_steps=2))
    shared = Sweep("s", wsd, budgets, share_trunks=True)
    assert len(find_branches({p.name: p for p in shared.points})) == 1


def test_sweeps_that_cannot_be_are_refused():
    with pytest.raises(BadInput, match=r"row 1 of sweep s \(num_heads-3\): model\.d_model = 16"):
        _ = Sweep("s", BASE, values("model.num_heads", 2, 3)).points
    with pytest.raises(BadInput, match="rows 0 and 2 of sweep s are the same run"):
        _ = Sweep("s", BASE, values("train.seed", 0, 1, 0)).points
    with pytest.raises(BadInput, match="no points"):
        Sweep("s", BASE, rows()).validate()
    with pytest.raises(BadInput, match="more than its budget"):
        Sweep("s", BASE, SEEDS, budget=1e3).validate()
    for options, words in (
        ({"name": 3}, "a sweep's name is 3"),
        ({"name": "../up"}, "a sweep's name is '../up'"),
        ({"base": 3}, "base of sweep s is no Experiment"),
        ({"grid": 3}, "grid of sweep s is no Grid"),
        ({"analysis": 3}, "analysis of sweep s is no Analysis"),
        ({"attempts": True}, "attempts of sweep s is True; give 1 or more"),
        ({"together": 1.5}, "together of sweep s is 1.5"),
        ({"share_trunks": "no"}, "share_trunks of sweep s is 'no'; give True or False"),
        ({"budget": "a"}, "budget of sweep s is 'a'; give FLOPs"),
        ({"budget": float("nan")}, "budget of sweep s is nan"),
    ):
        with pytest.raises(BadInput, match=words):
            Sweep(**{"name": "s", "base": BASE, "grid": SEEDS, **options}).validate()
    with pytest.raises(BadInput, match="is no name for a folder"):
        _ = Sweep("s", BASE, rows({"name": "../up"})).points
    with pytest.raises(BadInput, match=r"analysis\.holdout is 0\.5"):
        Sweep("s", BASE, SEEDS, Analysis(holdout=0.5)).validate()
    with pytest.raises(BadInput, match="did you mean 'chinchilla'"):
        Sweep("s", BASE, SEEDS, Analysis(laws=("chinchila",))).validate()
    with pytest.raises(BadInput, match=r"analysis\.predict holds 'soon'"):
        Sweep("s", BASE, SEEDS, Analysis(predict=("soon",))).validate()
    with pytest.raises(BadInput, match=r"analysis\.loss"):
        Sweep("s", BASE, SEEDS, Analysis(loss="los")).validate()


def test_parts_of_a_list_are_fields_of_a_grid():
    base = dataclasses.replace(BASE, model=EncoderDecoderConfig(context_length=32), objective=UL2())
    made = [override(base, row) for row in values("objective.denoisers.1.rate", 0.2, 0.4)]
    assert [one.objective.denoisers[1].rate for one in made] == [0.2, 0.4]
    assert made[0].objective.denoisers[2:] == UL2().denoisers[2:]
    points = [SimpleNamespace(experiment=one) for one in made]
    assert [value_of(one, "objective.denoisers.1.rate") for one in points] == ["0.2", "0.4"]
    assert differences(*(one.to_json() for one in made)) == [
        "objective.denoisers.1.rate: 0.2 -> 0.4"
    ]
    whole = override(base, {"objective.denoisers": (Denoiser("S", 0.25),)})
    assert len(whole.objective.denoisers) == 1
    assert len(value_of(SimpleNamespace(experiment=whole), "objective.denoisers")) > 2
