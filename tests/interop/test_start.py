"""Runs that begin with a checkpoint of others."""

import dataclasses
import json

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors")

import gptjax
from gptjax import command_line
from gptjax.errors import BadInput
from gptjax.interop import export, load
from gptjax.interop.__main__ import main
from gptjax.interop.start import starting_from
from tests.conftest import changed
from tests.interop.conftest import random_params


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """LLaMA of one layer with a vocabulary for bytes."""
    config = gptjax.DecoderConfig(
        context_length=32,
        num_layers=1,
        d_model=8,
        num_heads=2,
        positions="rotary",
        norm="rmsnorm",
        activation="swiglu",
        biases="none",
    )
    out = tmp_path_factory.mktemp("start") / "llama"
    export(config, random_params(config), out)
    return f"hf:{out}"


@pytest.fixture(scope="module")
def run(tiny, checkpoint, tmp_path_factory):
    """A run of one step of hardly any length that began with the checkpoint."""
    given = changed(
        tiny,
        train={"steps": 1, "sample_tokens": 0, "eval_batches": 1},
        model={"dropout": 0.1},
        optim={"lr": 1e-9, "warmup_fraction": 0.0},
    )
    experiment = starting_from(given, checkpoint, ["model.dropout"])
    assert experiment.model.norm == "rmsnorm" and experiment.model.dropout == 0.1
    folder = tmp_path_factory.mktemp("start") / "run"
    return experiment, gptjax.fit(experiment, folder, init_from=checkpoint)


def test_a_run_begins_with_the_weights_and_goes_on_without_them(run, checkpoint):
    experiment, result = run
    theirs = load(checkpoint, config=experiment.model).params
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool(np.abs(a - b).max() < 1e-6), theirs, result.params)
    )
    again = gptjax.fit(experiment, result.workdir, init_from="hf:/nowhere")
    assert again.figures["validation_loss"] == result.figures["validation_loss"]


def test_a_run_and_its_tokenizer_are_written_by_the_command(run, tmp_path, capsys):
    workdir, out = str(run[1].workdir), tmp_path / "out"
    assert main(["export", workdir, str(out), "--family=gpt2"]) == 2
    assert "gpt2 has no model.positions = 'rotary'" in capsys.readouterr().err
    assert main(["export", workdir, str(out), "--dtype=bfloat16"]) == 0
    assert "LlamaForCausalLM in bfloat16" in capsys.readouterr().out
    found = load(f"hf:{out}")
    assert found.tokenizer.vocab_size == 257
    assert list(found.tokenizer.encode("ab")) == [97, 98]
    ids = json.loads((out / "generation_config.json").read_text())
    assert ids["eos_token_id"] == 256
    assert main(["export", f"hf:{out}", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["show", f"hf:{out}"]) == 0
    shown = capsys.readouterr().out
    assert "tensors of BF16" in shown and ", 257 ids" in shown
    assert "model.positions = rotary" in shown and "model.num_kv_heads = " in shown


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
    assert "model.num_layers = 3, there 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
