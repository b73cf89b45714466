"""The coordinate check: flat under muP, steep without."""

import dataclasses

import pytest

from gptjax.errors import BadInput
from gptjax.evaluation.coordinates import Coordinates, coordinate_check, plot_coordinates
from tests.conftest import changed


def member(tiny, optimizer: str, lr: float, **model):
    """The tiny run as a member of a family whose width changes."""
    fields = {
        "num_layers": 1,
        "num_heads": 2,
        "norm": "rmsnorm",
        "biases": "none",
        "tied_embeddings": False,
        "init": "fan_in" if optimizer == "adafactor" else "fan_in_zero",
        "parametrization": "mup",
        "base_width": 16,
    }
    optim = {"name": optimizer, "lr": lr, "schedule": "constant", "weight_decay": 0.0}
    return changed(tiny, model={**fields, **model}, optim={**optim, "warmup_fraction": 0.0})


def test_slopes_of_a_made_table(tmp_path):
    rows = [
        {"width": width, "seed": seed, "step": 1, "place": place, "scale": scale, "change": 0.0}
        for width in (8, 16, 64)
        for seed in (0, 1)
        for place, scale in (
            ("layer_0/mlp", width**0.5 * (1 + 0.5 * (-1) ** seed)),
            ("layer_1/mlp", width**-0.25),
            ("logits", 0.0),
        )
    ]
    check = Coordinates(rows)
    slopes = check.slopes()
    assert slopes == {
        ("layer_0/mlp", 1): pytest.approx(0.5),
        ("layer_1/mlp", 1): pytest.approx(-0.25),
    }
    assert check.steepest() == {"mlp": pytest.approx(0.5)}
    assert check.slopes("change") == {}
    plot_coordinates({"made": check}, tmp_path / "check.png")
    assert (tmp_path / "check.png").stat().st_size > 1000


def test_activations_keep_their_scale_under_mup_alone(tiny):
    """The change after three updates: its slope over the width is 0, and near 1 without muP."""
    check = coordinate_check(member(tiny, "adamw", 0.02), (16, 64), steps=(0, 3), seeds=(0, 1))
    assert len(check.rows) == 2 * 2 * 2 * 4
    assert all(row["scale"] > 1e-3 for row in check.rows if row["step"])
    assert len(check.slopes("change")) == 4
    assert all(abs(slope) < 0.25 for slope in check.slopes("change").values())
    standard = member(tiny, "adamw", 0.02, parametrization="standard")
    slopes = coordinate_check(standard, (16, 64), steps=(3,)).slopes("change")
    assert min(slopes.values()) > 0.4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"widths": (16, 16)}, "needs two widths"),
        ({"widths": (16, 64), "steps": ()}, "a step and a seed"),
        ({"widths": (16, 17)}, "nearest width: 16"),
    ],
)
def test_checks_that_cannot_be_are_refused(tiny, arguments, words):
    experiment = dataclasses.replace(member(tiny, "adamw", 0.01))
    with pytest.raises(BadInput, match=words):
        coordinate_check(experiment, **arguments)
