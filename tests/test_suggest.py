"""The field that is named to who misnames one."""

import pytest

from gptjax import registry
from gptjax.config_tree import field_names
from gptjax.experiment import Experiment
from gptjax.suggest import SYNONYMS, nearest_fields, unknown_field

LENGTHS = ["data.sequence_length", "model.context_length"]


@pytest.mark.parametrize(
    ("names", "fields"),
    [
        ("model.widht width model.d_modle modle.d_model hidden_sise", ["model.d_model"]),
        ("model.depht depth num_layer", ["model.num_layers"]),
        ("layers model.layres", ["model.layers", "model.num_layers"]),
        ("heads model.haeds n_head", ["model.num_heads"]),
        ("context seq_len contxt", LENGTHS),
        ("model.block_size", ["model.context_length"]),
        ("learning_rate optim.learnign_rate lr optm.lr", ["optim.lr"]),
        ("batch data.bacth batchsize", ["data.batch_size"]),
        ("steps model.steps train.setps iterations", ["train.steps"]),
        ("seed", ["data.facts.seed", "data.seed", "train.seed"]),
        ("train.sed", ["train.seed"]),
        ("qqqq opt", []),
    ],
)
def test_the_nearest_fields_of_a_name(names, fields):
    for name in names.split():
        assert sorted(nearest_fields(name)) == fields, name


def test_the_table_names_fields_that_exist():
    assert set(SYNONYMS) <= set(field_names(Experiment))


def test_parts_of_a_list_have_numbers():
    run = registry.get("ul2_quick")
    names = [name for name in field_names(run) if name.startswith("objective.denoisers")]
    assert names[0] == "objective.denoisers.0.mode" and names[-1] == "objective.denoisers.6.share"

    def said(name):
        return str(unknown_field(f"objective.{name}", run))

    assert "has 7 parts, 0 to 6: did you mean 'objective.denoisers.6.rate'" in said(
        "denoisers.9.rate"
    )
    assert "mean 'objective.denoisers.2.rate'" in said("denoisers.2.rat")
    assert "mean 'objective.denoisers.0.rate'" in said("denoisers.rate")
    assert "is a part with fields" in said("denoisers.3")


def test_below_a_part_its_own_fields_are_named():
    run = registry.get("t5_quick").with_objective("prefix_lm")
    for name in ("objective.rate", "objective.denoisers.0.rat"):
        assert "'objective' has z_loss, chunk_tokens, " in str(unknown_field(name, run))
    said = str(unknown_field("objective.denoisers.0.rat", registry.get("ul2_quick")))
    assert said.endswith("did you mean 'objective.denoisers.0.rate'?")


def test_what_is_said():
    assert "'qqqq'; --help" in str(unknown_field("qqqq"))
    assert "'model' is a part" in str(unknown_field("model"))
    assert "'mesh' has data, fsdp, tensor" in str(unknown_field("mesh.qqqq"))
