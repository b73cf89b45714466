"""Published decoders: their parameters against the table, their mathematics against numpy."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import registry
from gptjax.errors import BadInput
from gptjax.models import presets
from gptjax.models.build import init_params
from gptjax.models.decoder import Decoder
from gptjax.models.presets.table import architecture, architectures, chinchilla_shapes
from gptjax.models.stack import logits
from gptjax.scaling.flops import count_parameters
from tests.models import numpy_decoders

ROWS = list(presets.by_row())

# Parameters here minus those of the table, each with its reason.
DIFFERENT = {
    # The class that was counted has biases, 9 d_model a layer; the published code has none.
    "igpt-s": -9 * 512 * 24,
    "igpt-m": -9 * 1024 * 36,
    "igpt-l": -9 * 1536 * 48,
    "igpt-xl": -9 * 3072 * 60,
    # Counted were the products of the layers: embedding, norms and distances come on top.
    "lamda-137b": 32000 * 8192 + (2 * 64 + 1) * 8192 + 32 * 128,
    # Counted were the products of the trunk's layers: distances, biases and norms come on top,
    # words with types and a norm, the modules of both tasks and the products to and from them.
    "ernie3-titan": 48 * (12288**2 + 11 * 12288 + 196608)
    + (40_000 + 4) * 12288
    + 40_000
    + 2 * 12 * (5 * 768**2 + 11 * 768 + 2 * 768 * 12288 + 12288)
    + 4 * 12288 * 768
    + 2 * (12288 + 768),
    # Counted were the products and the table of words: biases, norms, the last norm.
    "glm-130b": 70 * (4 * 12288 + 2 * 32768 + 12288 + 4 * 12288) + 2 * 12288,
}

# In millions as published, where nobody built the model to count.
PUBLISHED = {
    "sparse-cifar10": 59,
    "sparse-enwik8": 95,
    "sparse-imagenet64": 152,
    "gopher-44m": 44,
    "gopher-117m": 117,
    "gopher-417m": 417,
    "gopher-1.4b": 1_400,
    "gopher-7.1b": 7_100,
    "gopher-280b": 280_000,
    "chinchilla-70b": 70_000,
    "j1-large": 7_500,
    "pangu-alpha-2.6b": 2_600,
    "pangu-alpha-13b": 13_000,  # 13.1 B by the paper
    "pangu-alpha-200b": 207_000,
    "cpm-small": 109,
    "cpm-medium": 334,
    "transformer-xl-wt103": 520,  # 285 with an adaptive softmax
    "bert-tiny": 4.4,
    "bert-mini": 11.3,
    "bert-small": 29.1,
    "bert-medium": 41.7,
    "ul2-20b": 19_500,
    "glm-base": 110,
    "glm-large": 335,
    "glm-410m": 410,
    "glm-515m": 515,
    "glm-10b": 10_000,
    "glm-10b-chinese": 10_000,
}

# Where the published size is another, in millions: what it is, and what is counted here.
APART = {
    "glm-2b": (2_000, 1_920),  # rounded up
    "glm-roberta": (335, 355.4),  # the size of glm-large, whose table of words is smaller
    "glm-large-chinese": (335, 355.7),  # so is this
    "plug-27b": (27_000, 25_950),  # its table of words is not published
    "ernie3-10b": (10_000, 10_832.7),  # told are whole billions; distances have 0.8
}

WITHOUT = {
    "lamda-2b": "no shape is published",
    "lamda-8b": "no shape is published",
    "sparse-music": "no shape is published",
    "gpt4-rumour": "nothing is published",
    "u-palm-540b": "palm('540b'), trained further",
}


@pytest.mark.parametrize("row", ROWS)
def test_parameters_are_those_of_the_table(row):
    config = presets.named(row)
    config.validate()
    counted, told = count_parameters(config).total, architecture(row).get("param_count")
    if row in APART:
        size, here = APART[row]
        assert told is None and counted / 1e6 == pytest.approx(here, rel=0.002)
        assert here == pytest.approx(size, rel=0.09)
    elif row in PUBLISHED:
        assert told is None and counted / 1e6 == pytest.approx(PUBLISHED[row], rel=0.02)
    else:
        assert counted == told + DIFFERENT.get(row, 0)


def test_switch_has_the_parameters_of_transformers_defaults():
    """Those of SwitchTransformersConfig() in 5.23.0: narrower, experts in every fourth layer."""
    config = presets.switch()
    experts = dataclasses.replace(config.experts, every=4)
    other = dataclasses.replace(config, d_ff=2048, experts=experts)
    assert count_parameters(other).total == 317_312_256


@pytest.mark.parametrize("row", chinchilla_shapes(), ids=lambda row: f"{row['params_m']}m")
def test_chinchillas_grid_has_the_parameters_told(row):
    """To the million, in which some rows of table A9 are rounded and others cut."""
    config = presets.chinchilla(f"{row['params_m']}m")
    config.validate()
    assert abs(count_parameters(config).total / 1e6 - row["params_m"]) < 1


@pytest.mark.parametrize("size", ["3530m", "11452m"])
def test_heads_wider_or_narrower_than_the_model(size):
    config = dataclasses.replace(presets.chinchilla(size), layers="scan")
    assert config.num_heads * config.head_size != config.d_model
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    counted = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    assert counted == count_parameters(config).total


def test_every_row_is_a_model_or_says_why_not():
    for name, row in architectures().items():
        assert (name in presets.by_row()) != (name in WITHOUT), name
        assert row["source"] and "from_memory" in row
    for name in WITHOUT:
        with pytest.raises(BadInput, match="no model for the row"):
            presets.named(name)


def test_every_preset_is_registered():
    """Also as a run, with its sizes untouched."""
    runs = [registry.get(name) for name in registry.names()]
    models = [run.model for run in runs if not isinstance(run, registry.Sweep)]
    sizes = {(m.num_layers, m.d_model, m.positions, m.activation, m.block) for m in models}
    for row in ROWS:
        c = presets.named(row)
        assert (c.num_layers, c.d_model, c.positions, c.activation, c.block) in sizes, row


def test_sizes_that_are_not_there_are_named():
    with pytest.raises(BadInput, match=r"OPT has no size '7b'; there are 125m, .*175b"):
        presets.opt("7b")
    with pytest.raises(BadInput, match="'llama-7'; did you mean 'llama-7b'"):
        presets.named("llama-7")
    with pytest.raises(BadInput, match="did you mean 'bert-base'"):
        architecture("bert-bas")


def test_the_table_may_be_changed_by_none():
    row = architecture("opt-66b")
    row["n_layers"] = 0
    assert architecture("opt-66b")["n_layers"] == 64 and json.dumps(architectures())


TINY = {"vocab_size": 61, "context_length": 24, "d_model": 16, "num_heads": 4, "d_ff": 0}


def tiny(config, layers=3, attention=None, embedding=None, **fields):
    """The preset at a size for loops: its choices stay."""
    return dataclasses.replace(
        config,
        **{**TINY, "num_layers": layers, "dropout": 0.0, **fields},
        attention=dataclasses.replace(config.attention, **{"kernel": "dense", **(attention or {})}),
        embedding=dataclasses.replace(config.embedding, **(embedding or {})),
    )


PEERS = {
    "gpt3": (
        lambda: tiny(presets.gpt3("175b"), 4, {"pattern": "causal/window:5"}),
        functools.partial(numpy_decoders.gpt3, band=5),
    ),
    "pangu_alpha": (lambda: tiny(presets.pangu_alpha("200b")), numpy_decoders.pangu),
    "palm": (
        lambda: tiny(
            presets.palm("540b"), attention={"head_dim": 6}, embedding={"logit_scale": 1 / 4}
        ),
        numpy_decoders.palm,
    ),
    "lamda": (
        lambda: tiny(
            presets.lamda(), attention={"buckets": 8, "max_distance": 13, "head_dim": 6}, d_ff=24
        ),
        functools.partial(numpy_decoders.lamda, buckets=8, max_distance=13),
    ),
    "gopher": (lambda: tiny(presets.gopher("280b")), numpy_decoders.gopher),
    "transformer_xl": (
        lambda: tiny(presets.transformer_xl(), attention={"memory": 7}, embedding={"scale": 4.0}),
        functools.partial(numpy_decoders.transformer_xl, segment=7),
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_logits_equal_plain_numpy(name):
    make, peer = PEERS[name]
    config = make()
    config.validate()
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))

    def fill(path, leaf):
        return rng.normal(float(path[-1].key == "scale"), 0.3, leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(fill, shapes)
    tokens = rng.integers(0, TINY["vocab_size"], (2, 23))
    model = jax.jit(lambda p, t: logits(Decoder(config).apply({"params": p}, t)))
    got = np.asarray(model(params, jnp.asarray(tokens, jnp.int32)))
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    want = np.stack([peer(wide, row) for row in tokens])
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
