"""An experiment is a value: it validates itself, survives JSON, and knows what follows from it."""

import copy
import dataclasses
import json

import pytest

from gptjax import DataConfig, DecoderConfig, Experiment, NextToken, TrainConfig
from gptjax.config_tree import differences, field_names
from gptjax.errors import BadInput
from gptjax.experiment import upgraded
from gptjax.models.config import AttentionConfig, EmbeddingConfig
from gptjax.run_folder import load_experiment
from tests.conftest import changed

E = Experiment(
    name="e",
    model=DecoderConfig(attention=AttentionConfig(kernel="blocked")),
    data=DataConfig(files=("a.txt", "b.txt"), corpus="files", batch_size=12, sequence_length=31),
    train=TrainConfig(tokens=10_000),
    objective=NextToken(z_loss=1e-4),
)


def test_json_round_trip(tmp_path):
    E.validate()
    text = json.dumps(E.to_json())
    again = Experiment.from_json(json.loads(text))
    assert again == E and hash(again) == hash(E) and again.to_json() == E.to_json()
    (tmp_path / "experiment.json").write_text(text)
    assert load_experiment(tmp_path) == E
    with pytest.raises(BadInput, match="holds no run"):
        load_experiment(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("part", "key", "value", "words"),
    [
        ("model", "widht", 3, "widht"),
        ("train", "tokens", "many", r"train\.tokens"),
        ("model", "activation", "sigmoid", r"model\.activation"),
        ("data", "files", 5, r"data\.files"),
        ("data", "corpus", 5, r"expected str @ experiment\.data\.corpus"),
        ("model", "d_model", 1.5, r"expected int @ experiment\.model\.d_model"),
        ("model", "tied_embeddings", "no", "expected bool"),
        ("train", "seed", True, "expected int"),
        ("optim", "lr", 10**400, r"too large.*optim\.lr"),
    ],
)
def test_json_that_does_not_fit_is_named(part, key, value, words):
    tree = E.to_json()
    tree[part][key] = value
    with pytest.raises(BadInput, match=words):
        Experiment.from_json(tree)


def test_json_of_another_kind_is_refused():
    for tree in (None, [], "text"):
        with pytest.raises(BadInput, match="it is a"):
            Experiment.from_json(tree)
    tree = E.to_json()
    tree["optim"]["lr"] = 1
    assert Experiment.from_json(tree).optim.lr == 1.0


def test_a_missing_part_of_json_is_named():
    tree = E.to_json()
    del tree["train"]
    with pytest.raises(BadInput, match="train"):
        Experiment.from_json(tree)


def test_runs_of_earlier_versions_are_read():
    """Fields that moved are found, fields that are new have their defaults, the rest is kept."""
    now = changed(E, model={"attention": AttentionConfig(head_dim=6)}).to_json()
    then = copy.deepcopy(now)
    del then["model"]["attention"]["head_dim"], then["model"]["experts"], then["data"]["workers"]
    then["model"]["head_dim"] = 6
    then["model"]["rotary_base"] = then["model"].pop("rotary")["base"]
    kept = copy.deepcopy(then)
    assert upgraded(then) == now and then == kept
    assert Experiment.from_json(then).to_json() == now
    for broken in ({"model": 3}, {"model": {"head_dim": 2, "attention": 4}}, {}):
        assert isinstance(upgraded(broken), dict)
    with pytest.raises(BadInput, match="head_size"):
        Experiment.from_json(now | {"model": now["model"] | {"head_size": 3}})


def test_steps_follow_from_tokens():
    assert E.tokens_per_step == 12 * 31
    assert E.steps == 27 and E.tokens == 27 * 372  # 10000 / 372 = 26.9
    steps = changed(E, train={"steps": 5})
    assert steps.steps == 5 and steps.tokens == 5 * 372
    assert changed(E, train={"tokens": 372}).steps == 1


def test_steps_follow_from_flops():
    """The nearest whole number; steps come before FLOPs, and FLOPs before tokens."""
    one = E.step_flops.training
    for flops, steps in ((1.4, 1), (7.4, 7), (7.6, 8)):
        run = changed(E, train={"flops": flops * one})
        run.validate()
        assert run.steps == steps and run.flops == steps * one
        assert Experiment.from_json(json.loads(json.dumps(run.to_json()))) == run
    assert changed(E, train={"flops": 9e99, "steps": 5}).steps == 5
    then = E.to_json()
    del then["train"]["flops"]  # of before there was the field
    assert Experiment.from_json(then) == E


def test_every():
    assert E.every("eval") == 2 and E.every("checkpoint") == 2  # ten times in 27 steps
    assert changed(E, train={"steps": 3}).every("eval") == 1
    own = changed(E, train={"eval_every": 7, "checkpoint_every": 11})
    assert own.every("eval") == 7 and own.every("checkpoint") == 11


def test_differences_name_what_changes_the_run():
    other = changed(
        E,
        model={"d_model": 256, "attention": AttentionConfig(kernel="dense")},
        mesh={"fsdp": 4},
        train={"keep_checkpoints": 9},
        data={"cache_dir": "/elsewhere"},
    )
    assert differences(E.to_json(), E.to_json()) == []
    assert differences(E.to_json(), other.to_json()) == [
        "model.attention.kernel: blocked -> dense",
        "model.d_model: 128 -> 256",
    ]
    assert differences({"a": {"b": 1}}, {"a": {}}) == ["a.b: 1 -> (absent)"]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((5, 1, 1), "12 sequences are not divisible by data x fsdp = 5"),
        ((2, 4, 1), "12 sequences are not divisible by data x fsdp = 8"),
        ((1, 1, 8), "model.num_heads = 4 is not divisible by tensor = 8"),
        ((2, 3, 2), None),
    ],
)
def test_meshes_that_the_run_refuses(shape, words):
    refusal = E.mesh_refusal(*shape)
    assert refusal is None if words is None else words in refusal


def test_meshes_that_the_model_refuses():
    grouped = changed(E, model={"num_kv_heads": 2})
    assert "num_kv_heads = 2" in grouped.mesh_refusal(1, 1, 4)
    assert changed(E, model={"num_kv_heads": 1}).mesh_refusal(1, 1, 4) is None
    assert "feed-forward width 514" in changed(E, model={"d_ff": 514}).mesh_refusal(1, 1, 4)
    pieces = changed(E, optim={"accumulation": 3})
    assert "4 sequences" in pieces.mesh_refusal(3, 1, 1)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"data": {"sequence_length": 300}}, "300 is longer than model.context_length = 256"),
        ({"optim": {"accumulation": 5}}, "batch_size = 12 is not divisible by optim.accum"),
        ({"model": {"vocab_size": 256}}, "smaller than the tokenizer's 257"),
        ({"data": {"tokenizer": "bpe", "vocab_size": 500}}, "--model.vocab_size=500"),
        (
            {"model": {"tied_embeddings": False, "embedding": EmbeddingConfig(outputs=10)}},
            "outputs = 10 leaves out some of the tokenizer's 257 ids",
        ),
        ({"train": {"tokens": 0}}, "are all 0"),
        ({"train": {"flops": -1.0}}, "train.flops is -1.0; give 0 or more"),
        ({"train": {"flops": 1e3}}, r"1000 is less than one step of \d\.\d+e\+09 FLOPs"),
        ({"train": {"flops": 1e300}}, "is more than 2 .. 31 steps"),
        ({"train": {"steps": -1}}, "train.steps is -1"),
        ({"train": {"sample_top_p": 0.0}}, "sample_top_p"),
        ({"train": {"log_every": 0}}, "log_every"),
        ({"train": {"tokens": 1.5}}, "train.tokens is 1.5, which is not of type int"),
        ({"model": {"d_model": True}}, "model.d_model is True"),
        ({"model": {"positions": "rotery"}}, "did you mean 'rotary'"),
        (
            {"model": {"positions": "rotary_blocks"}, "objective": {"z_loss": 0.0}},
            "objective .next_token. has none; give --objective=glm",
        ),
        ({"model": {"attention": AttentionConfig(kernel="fast")}}, "model.attention.kernel"),
        ({"model": {"dropout": float("nan")}}, "finite"),
        ({"optim": {"lr": 10**400}}, "finite"),
        ({"objective": {"z_loss": -1.0}}, "objective.z_loss is -1.0"),
        ({"mesh": {"tensor": 0}}, "mesh.tensor is 0"),
    ],
)
def test_impossible_experiments_are_refused(parts, words):
    with pytest.raises(BadInput, match=words):
        changed(E, **parts).validate()


def test_field_names():
    names = field_names(Experiment)
    assert {"model.d_model", "model.attention.kernel", "mesh.fsdp", "name"} <= set(names)
    assert len(dataclasses.fields(Experiment)) == 7


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("model", None, "the experiment's model is None, not a TransformerConfig"),
        ("optim", {"lr": 1.0}, "optim is {'lr': 1.0}, not a OptimConfig"),
        ("name", "", "name is ''"),
        ("name", "../up", "name is"),
        ("name", "/root", "name is"),
        ("name", 5, "name is 5"),
    ],
)
def test_parts_of_another_type_are_refused(part, value, words):
    with pytest.raises(BadInput, match=words):
        dataclasses.replace(E, **{part: value}).validate()
    dataclasses.replace(E, name="depth/lr=1e-3_b").validate()


def test_a_prompt_that_is_no_text_is_refused():
    with pytest.raises(BadInput, match=r"train.sample_prompt is 'a\\udcff': character 1 is half"):
        changed(E, train={"sample_prompt": "a\udcff"}).validate()
    with pytest.raises(BadInput, match=r"data\.files.*half of a surrogate pair"):
        changed(E, data={"files": ("x", "\udcff.txt")}).validate()
    changed(E, train={"sample_prompt": "a\x1b\0 é"}).validate()
