"""Runs that begin with a checkpoint of others."""

import dataclasses

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors")

import gptjax
from gptjax import command_line
from gptjax.errors import BadInput
from gptjax.interop import export, load
from gptjax.interop.start import starting_from
from gptjax.models.decoder import init_params
from tests.conftest import changed


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """LLaMA of two layers with a vocabulary for bytes, stacked layers being another's choice."""
    config = gptjax.DecoderConfig(
        context_length=32,
        num_layers=2,
        d_model=8,
        num_heads=2,
        positions="rotary",
        norm="rmsnorm",
        activation="swiglu",
        biases="none",
    )
    out = tmp_path_factory.mktemp("start") / "llama"
    export(config, init_params(config, jax.random.key(7)), out)
    return f"hf:{out}"


def test_a_run_begins_with_the_weights_and_goes_on_without_them(tiny, checkpoint, tmp_path):
    given = changed(
        tiny,
        train={"steps": 1, "sample_tokens": 0, "eval_batches": 1},
        model={"layers": "scan"},
        optim={"lr": 1e-9, "warmup_fraction": 0.0},
    )
    experiment = starting_from(given, checkpoint, ["model.layers"])
    assert experiment.model.norm == "rmsnorm" and experiment.model.layers == "scan"
    run = gptjax.fit(experiment, tmp_path / "run", init_from=checkpoint)
    theirs = load(checkpoint, config=experiment.model).params
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool(np.abs(a - b).max() < 1e-6), theirs, run.params)
    )
    longer = changed(experiment, train={"steps": 2})
    again = gptjax.fit(longer, tmp_path / "run", fork=True, init_from="hf:/nowhere")
    assert again.figures["steps"] == 2


def test_what_contradicts_the_checkpoint_is_one_line(tiny, checkpoint):
    other = changed(tiny, model={"d_model": 32})
    with pytest.raises(BadInput, match=r"model\.d_model = 32, there 8$"):
        starting_from(other, checkpoint, ["model.d_model"])
    assert starting_from(other, checkpoint, []).model.d_model == 8
    long = changed(tiny, data={"sequence_length": 33})
    with pytest.raises(BadInput, match=r"sequence_length = 33 is longer than the context of hf:"):
        starting_from(long, checkpoint, [])
    with pytest.raises(BadInput, match="the model is not that of"):
        gptjax.fit(tiny, "/tmp/never", init_from=checkpoint)


def test_the_checkpoint_s_tokenizer_is_taken_unless_another_is_named(tiny, checkpoint, tmp_path):
    from gptjax.data.tokenizers import ByteTokenizer

    found = load(checkpoint)
    export(found.config, found.params, tmp_path / "m", tokenizer=ByteTokenizer())
    data = starting_from(tiny, f"hf:{tmp_path / 'm'}", []).data
    assert (data.tokenizer, data.tokenizer_file) == ("file", str(tmp_path / "m"))
    assert starting_from(tiny, f"hf:{tmp_path / 'm'}", ["data.tokenizer"]).data == tiny.data
    begun = dataclasses.replace(tiny, data=data, model=found.config)
    on = starting_from(tiny, "hf:/nowhere", [], begun)
    assert on.data == data and on.model == found.config


def test_the_command(checkpoint, tmp_path, capsys, monkeypatch):
    seen = {}
    fit = lambda experiment, workdir, **more: seen.update(more, experiment=experiment)
    monkeypatch.setattr("gptjax.runs.fit", fit)
    command = ["--exp=quickstart", f"--init-from={checkpoint}", "--data.sequence_length=32"]
    command.append(f"--workdir={tmp_path / 'run'}")
    assert command_line.main(command) == 0
    assert seen["experiment"].model.norm == "rmsnorm" and seen["init_from"] == checkpoint
    assert command_line.main([*command, "--model.num_layers=3"]) == 2
    assert "model.num_layers = 3, there 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
