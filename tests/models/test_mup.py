"""What muP makes of a decoder: nothing at its base width, and its rules at every other."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import DataConfig, DecoderConfig, Experiment, OptimConfig, TrainConfig
from gptjax.errors import BadInput
from gptjax.models.build import init_params
from gptjax.models.config import AttentionConfig
from gptjax.models.decoder import Decoder
from gptjax.models.parameters import head_std, init_std
from gptjax.models.stack import logits

BASE = DecoderConfig(
    vocab_size=61,
    context_length=19,
    num_layers=1,
    d_model=16,
    num_heads=4,
    num_kv_heads=2,
    activation="swiglu",
    d_ff=48,
    tied_embeddings=False,
    parametrization="mup",
    base_width=16,
)


def standard(config: DecoderConfig) -> DecoderConfig:
    return dataclasses.replace(config, parametrization="standard")


def initialised(config: DecoderConfig, std: float = 0.2):
    """Normal weights by numpy: compiling the initialisers takes long."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, std, x.shape), jnp.float32), shapes)


@functools.partial(jax.jit, static_argnums=0)
def says(config: DecoderConfig, params):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 61, (2, 19)), jnp.int32)
    return logits(Decoder(config).apply({"params": params}, tokens))


def test_at_the_base_width_it_is_the_standard_parametrization():
    other = standard(BASE)
    for init in ("gpt2", "fan_in", "fan_in_zero"):
        mup, plain = (dataclasses.replace(c, init=init) for c in (BASE, other))
        assert head_std(mup) == head_std(plain)
        assert init_std(mup, 48, residual=True) == init_std(plain, 48, residual=True)
    params = initialised(BASE)
    np.testing.assert_array_equal(says(BASE, params), says(other, params))


@pytest.mark.parametrize("grow", ["heads", "head_dim"])
def test_logits_are_those_of_a_standard_model_with_other_weights(grow):
    """Scores by sqrt(base K) / K and logits by base / width may be moved into the weights."""
    wide = BASE.at_width(64, grow)
    assert (wide.num_heads, wide.head_size) == ((16, 4) if grow == "heads" else (4, 16))
    params = initialised(wide)
    moved = {**params, "head": params["head"] / 4}
    if grow == "head_dim":
        mix = params["layer_0"]["attention"]
        queries = {name: mix[name] / 2 for name in ("query", "query_bias")}
        moved["layer_0"] = {**params["layer_0"], "attention": {**mix, **queries}}
    np.testing.assert_allclose(
        says(wide, params), says(standard(wide), moved), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("init", ["gpt2", "fan_in"])
def test_deviations_fall_with_the_width_inside_blocks_only(init):
    narrow = dataclasses.replace(BASE, init=init)
    wide = narrow.at_width(64)
    assert head_std(wide) == head_std(narrow) == (0.02 if init == "gpt2" else 0.25)
    for residual in (False, True):
        assert init_std(wide, 64, residual) == pytest.approx(init_std(narrow, 16, residual) / 2)


def test_weights_as_they_start():
    model = dataclasses.replace(BASE, init="fan_in_zero").at_width(64)
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    mix, mlp = params["layer_0"]["attention"], params["layer_0"]["mlp"]
    assert not mix["query"].any() and not params["head"].any()
    assert float(mix["key"].std()) == pytest.approx(1 / 8, rel=0.05)
    assert float(mlp["down"].std()) == pytest.approx(1 / math.sqrt(2 * 192), rel=0.05)
    assert float(params["embedding"].std()) == pytest.approx(1.0, rel=0.05)


def test_sizes_in_proportion():
    model = dataclasses.replace(BASE, d_model=32, attention=AttentionConfig(head_dim=8))
    wide = model.at_width(64)
    assert (wide.d_ff, wide.num_heads, wide.num_kv_heads, wide.head_size) == (96, 8, 4, 8)
    larger = model.at_width(64, "head_dim")
    assert (larger.num_heads, larger.num_kv_heads, larger.head_size) == (4, 2, 16)
    assert larger.attention.base_head_dim == 4  # of width 16, where nothing changes
    assert larger.at_width(16, "head_dim").score_scale == pytest.approx(0.5)
    assert larger.score_scale == pytest.approx(math.sqrt(4) / 16)
    assert dataclasses.replace(model, num_kv_heads=1).at_width(64).num_kv_heads == 1
    with pytest.raises(BadInput, match=r"model\.num_kv_heads would be 2\.5; nearest width: 16"):
        dataclasses.replace(BASE, d_ff=0).at_width(20)


@pytest.mark.parametrize(
    ("model", "optim", "words"),
    [
        ({"base_width": 0}, {}, "model.base_width is 0"),
        ({"attention": AttentionConfig(base_head_dim=-1)}, {}, "base_head_dim is -1"),
        ({"init": "fan_in_zero", "tied_embeddings": True}, {}, "tied embeddings cannot"),
        ({"init": "fan_in_zero"}, {"name": "adafactor"}, "weights that start at zero outside muP"),
        ({"parametrization": "mu"}, {}, "model.parametrization"),
    ],
)
def test_what_makes_no_sense_is_refused(model, optim, words):
    experiment = Experiment(
        name="mup",
        model=dataclasses.replace(BASE, vocab_size=257, **model),
        data=DataConfig(sequence_length=19),
        train=TrainConfig(steps=1),
        optim=OptimConfig(**optim),
    )
    with pytest.raises(BadInput, match=words):
        experiment.validate()
