"""What is written, for which configs, and from where."""

import dataclasses
import json
import os
import resource
import signal

import jax
import pytest

pytest.importorskip("safetensors")

from gptjax.errors import BadInput
from gptjax.interop import export, load
from gptjax.interop.__main__ import main
from gptjax.interop.exporting import choose
from gptjax.interop.families import FAMILIES
from gptjax.interop.wholefolder import _held
from gptjax.models import presets
from gptjax.models.config import (
    AttentionConfig,
    DecoderConfig,
    EmbeddingConfig,
    ExpertsConfig,
    RotaryConfig,
)
from tests.interop.conftest import assert_close, computed

LLAMA = DecoderConfig(
    positions="rotary",
    norm="rmsnorm",
    activation="swiglu",
    biases="none",
    tied_embeddings=False,
)
PALM = dataclasses.replace(
    LLAMA, norm="layernorm", block="parallel", num_kv_heads=1, tied_embeddings=True
)
CHOICES = {
    "gpt2": DecoderConfig(d_ff=300, activation="relu"),
    "llama": LLAMA,
    "mistral": dataclasses.replace(LLAMA, attention=AttentionConfig(pattern="window:32")),
    "mixtral": dataclasses.replace(LLAMA, experts=ExpertsConfig(count=4)),
    "cohere": dataclasses.replace(PALM, embedding=EmbeddingConfig(logit_scale=0.5)),
    "gpt_neox": DecoderConfig(
        positions="rotary",
        rotary=RotaryConfig(fraction=0.25),
        block="parallel_two_norms",
        tied_embeddings=False,
    ),
    "gpt_neo": DecoderConfig(
        biases="output", attention=AttentionConfig(scale="one", pattern="causal/window:8")
    ),
    "bloom": DecoderConfig(positions="alibi", embedding=EmbeddingConfig(norm=True)),
    "openai-gpt": DecoderConfig(block="post"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_family_that_computes_the_same_is_found(name):
    config = CHOICES[name]
    assert choose(config).name == name
    stacked = dataclasses.replace(config, layers="scan", remat="block", dropout=0.1)
    assert choose(stacked).name == name


@pytest.mark.parametrize(
    "config,line",
    [
        (DecoderConfig(attention=AttentionConfig(pattern="strided:8")), r"pattern = 'strided:8'"),
        (dataclasses.replace(LLAMA, block="post"), r"nearest, has no .*model\.block = 'post'"),
        (DecoderConfig(positions="relative_bias"), r"has model\.positions = 'relative_bias'"),
        (DecoderConfig(parametrization="mup"), r"has model\.parametrization = 'mup'"),
        (dataclasses.replace(LLAMA, activation="relu"), r"model\.activation = 'relu'"),
    ],
)
def test_a_config_that_no_family_has_is_one_line(config, line):
    with pytest.raises(BadInput, match=line) as error:
        choose(config)
    assert "\n" not in str(error.value) and "nearest" in str(error.value)


def test_a_part_that_no_family_can_say_is_named_alone():
    config = presets.switch()
    with pytest.raises(BadInput, match=r"has model\.experts\.capacity = 1\.25 \(nearest: switch"):
        choose(config)
    experts = dataclasses.replace(config.experts, capacity=0.0)
    assert choose(dataclasses.replace(config, experts=experts)).name == "switch_transformers"
    other = dataclasses.replace(experts, every=3)
    with pytest.raises(BadInput, match=r"such as in every second") as error:
        choose(dataclasses.replace(config, experts=other))
    assert "vocab_size" not in str(error.value)
    with pytest.raises(BadInput, match="no family of checkpoints has models of kind task_modules"):
        choose(presets.ernie3("10b"))


def test_biases_that_a_family_has_besides_are_zeros(folder, tmp_path):
    """Image GPT was trained without them; transformers has them."""
    path, tokens, _ = folder("imagegpt")
    found = load(f"hf:{path}")
    config = dataclasses.replace(found.config, biases="none")
    params = jax.tree_util.tree_map_with_path(lambda _, x: x, found.params)
    for name in ("layer_0", "layer_1"):
        for part in ("attention", "mlp"):
            params[name][part] = {k: v for k, v in params[name][part].items() if "bias" not in k}
    assert export(config, params, tmp_path / "out").name == "imagegpt"
    again = load(f"hf:{tmp_path / 'out'}")
    assert again.config == found.config and not again.params["layer_0"]["mlp"]["up_bias"].any()
    plain = dataclasses.replace(found, config=config, params=params)
    assert_close(computed(again, tokens), computed(plain, tokens))


def test_a_family_that_does_not_fit_or_is_none(tmp_path):
    with pytest.raises(BadInput, match=r"gpt2 has no .*model\.positions = 'rotary'"):
        choose(LLAMA, "gpt2")
    with pytest.raises(BadInput, match="family is 'lama'; did you mean 'llama'"):
        choose(LLAMA, "lama")
    with pytest.raises(BadInput, match=r"exists; give the name of a folder that does not"):
        export(LLAMA, {}, tmp_path)
    with pytest.raises(BadInput, match="dtype is 'int8'"):
        export(LLAMA, {}, tmp_path / "x", dtype="int8")
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_of_an_export_that_failed(folder, tmp_path):
    found = load(f"hf:{folder('gpt2')[0]}")
    large = found.params | {"positions": found.params["positions"] + 1e5}
    with pytest.raises(BadInput, match=r"wpe\.weight has numbers beyond float16"):
        export(found.config, large, tmp_path / "deep" / "out", dtype="float16")
    for number in (float("nan"), float("inf")):
        bad = found.params | {"positions": found.params["positions"] + number}
        with pytest.raises(BadInput, match=r"wpe\.weight holds numbers that are not finite"):
            export(found.config, bad, tmp_path / "deep" / "out")
    whole = jax.tree.map(lambda x: x, found.params)
    del found.params["layer_1"]["mlp"]["down"]
    with pytest.raises(KeyError):
        export(found.config, found.params, tmp_path / "deep" / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(BadInput, match=r"cannot write .*out: .*File too large"):
            export(found.config, whole, tmp_path / "deep" / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["gpt2"]


def test_a_full_disk_is_one_line(folder, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    found = load(f"hf:{folder('gpt2')[0]}")
    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(BadInput, match=r"cannot write .*x: the disk is full$"):
        export(found.config, found.params, tmp_path / "a" / "b" / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["gpt2"]


def test_sigterm_leaves_nothing(folder, tmp_path, monkeypatch):
    path, _, _ = folder("gpt2")
    monkeypatch.setattr(
        "safetensors.numpy.save_file", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
    )
    before = signal.getsignal(signal.SIGTERM)
    assert main(["export", f"hf:{path}", str(tmp_path / "a" / "x")]) == 143
    assert [one.name for one in tmp_path.iterdir()] == ["gpt2"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_killed_export_left_is_removed_by_the_next(folder, tmp_path):
    found = load(f"hf:{folder('gpt2')[0]}")
    names = [f".x.{name}.partial" for name in ("deadfolk", "inuse___", "newcomer")]
    names += [".other.deadfolk.partial"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
        if "newcomer" not in name:
            os.utime(tmp_path / name, (0, 0))
    with _held(tmp_path / names[1]):
        export(found.config, found.params, tmp_path / "x")
    assert {path.name for path in tmp_path.iterdir()} == {"gpt2", "x", *names[1:]}


def test_where_nothing_can_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for out, line in {
        tmp_path / "file" / "x": "a file is in the way",
        tmp_path / ("x" * 300): "the name is too long",
        "/proc/foo": "cannot write /proc/foo: ",
        "a\0b": "no name may hold the character 0",
    }.items():
        with pytest.raises(BadInput, match=line):
            export(LLAMA, {}, out)


def test_large_ones_are_written_in_shards_and_stacked_ones_as_layers(folder, tmp_path):
    path, _, _ = folder("mixtral")
    one = load(f"hf:{path}")
    config = dataclasses.replace(one.config, layers="scan")
    stacked = load(f"hf:{path}", config=config)
    export(config, stacked.params, tmp_path / "out", shard_bytes=8000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    again = load(f"hf:{tmp_path / 'out'}")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one.params, again.params))


def test_families_write_what_they_read():
    for name, family in FAMILIES.items():
        ends = ("LM", "Model", "Modeling", "ForConditionalGeneration")
        assert family.name == name and family.architecture.endswith(ends)
