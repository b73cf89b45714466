import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.models import presets
from gptjax.models.build import empty_cache, init_params, param_axes
from gptjax.models.config import AttentionConfig, DecoderConfig, EmbeddingConfig, RotaryConfig
from gptjax.models.decoder import Decoder
from gptjax.models.stack import logits
from gptjax.scaling.flops import count_parameters
from tests.models import numpy_gpt2

BASE = DecoderConfig(
    vocab_size=61,
    context_length=23,
    num_layers=2,
    d_model=16,
    num_heads=4,
    attention=AttentionConfig(kernel="dense"),
)
VARIANTS = {
    "gpt2": {},
    "rotary_gqa_swiglu": {
        "positions": "rotary",
        "num_kv_heads": 2,
        "activation": "swiglu",
        "norm": "rmsnorm",
        "biases": "none",
        "tied_embeddings": False,
    },
    "alibi_mqa_parallel": {
        "positions": "alibi",
        "num_kv_heads": 1,
        "block": "parallel",
        "biases": "mlp",
    },
    "post_relu_headsize": {
        "block": "post",
        "activation": "relu",
        "positions": "none",
        "attention": AttentionConfig(head_dim=6),
        "init": "fan_in",
    },
    "geglu_partial_rotary": {
        "activation": "geglu",
        "positions": "rotary",
        "rotary": RotaryConfig(fraction=0.5),
        "biases": "norm",
        "attention": AttentionConfig(kernel="blocked"),
    },
    "mup_larger_heads_gqa": {
        "parametrization": "mup",
        "base_width": 8,
        "num_kv_heads": 2,
        "attention": AttentionConfig(kernel="blocked", base_head_dim=2),
    },
    "small_keys_factorised_positions": {
        "positions": "factorised",
        "embedding": EmbeddingConfig(position_shape="4x6"),
        "activation": "quick_gelu",
        "init": "sparse_transformer",
        "tied_embeddings": False,
        "attention": AttentionConfig(pattern="strided:4", kernel="blocked", qk_dim=2),
    },
    "transformer_xl": {  # two segments and a part of a third
        "positions": "relative",
        "block": "post",
        "biases": "mlp",
        "attention": AttentionConfig(memory=8),
        "embedding": EmbeddingConfig(scale=4.0),
    },
    "relative_rmsnorm": {"positions": "relative", "norm": "rmsnorm", "num_kv_heads": 2},
    "lamda": {
        "positions": "relative_bias",
        "activation": "geglu",
        "biases": "none",
        "layers": "scan",
        "attention": AttentionConfig(scale="one", buckets=8, max_distance=12),
    },
    "opt_350m": {"block": "post", "embedding": EmbeddingConfig(size=6, position_offset=2)},
    "bloom": {"positions": "alibi", "embedding": EmbeddingConfig(norm=True)},
    "gpt_j": {
        "positions": "rotary",
        "block": "parallel",
        "biases": "mlp",
        "tied_embeddings": False,
        "embedding": EmbeddingConfig(head_bias=True, outputs=59),
    },
    "gpt_neox": {"positions": "rotary", "block": "parallel_two_norms"},
    "gpt_neo": {
        "biases": "output",
        "attention": AttentionConfig(scale="one", pattern="causal/window:3"),
    },
    "pangu": {
        "num_layers": 3,
        "layers": "scan",
        "attention": AttentionConfig(top_query="positions"),
        "embedding": EmbeddingConfig(logit_scale=0.5),
    },
    "dense_banded_fixed": {  # layers in turn, heads in turn
        "num_kv_heads": 2,
        "attention": AttentionConfig(pattern="causal/window:4|fixed:6,2"),
    },
}


def variant(name: str, **fields) -> DecoderConfig:
    return dataclasses.replace(BASE, **{**VARIANTS[name], **fields})


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, tokens, **inputs):
    return logits(Decoder(config).apply({"params": params}, tokens, **inputs))


@functools.partial(jax.jit, static_argnums=0)
def outputs(config, params, tokens, **inputs):
    return Decoder(config).apply({"params": params}, tokens, **inputs)


def initialised(config, std: float = 0.02):
    """Scales of one and normal weights, by numpy: compiling the initialisers takes long."""
    rng = np.random.default_rng(7)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))

    def fill(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(mean, std, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, 61, (3, 19)), jnp.int32)


@pytest.mark.parametrize("kernel", ["dense", "blocked"])
def test_gpt2_equals_plain_numpy(tokens, kernel):
    config = dataclasses.replace(BASE, attention=AttentionConfig(kernel=kernel))
    params = initialised(config, std=0.3)
    got = np.asarray(run(config, params, tokens))
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    want = np.stack([numpy_gpt2.logits(wide, row) for row in np.asarray(tokens)])
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("name", VARIANTS)
def test_causality_by_gradient(name, tokens):
    """The logits at position t depend on the embeddings of positions up to t and on no later."""
    config = variant(name, tied_embeddings=False)
    params = initialised(config, std=0.3)
    here = 7
    row = jnp.arange(19, dtype=jnp.int32)[None]  # every position has its own embedding row

    def one_logit(table):
        return run(config, {**params, "embedding": table}, row)[0, here].sum()

    influence = np.abs(np.asarray(jax.jit(jax.grad(one_logit))(params["embedding"]))).sum(-1)
    assert (influence[: here + 1] > 0).all()
    assert (influence[here + 1 :] == 0).all()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("layers", ["unrolled", "scan"])
def test_cached_logits_equal_uncached_ones(name, layers, tokens):
    config = variant(name, layers=layers)
    params = initialised(config)
    whole = run(config, params, tokens)
    cache = empty_cache(config, 3, 19)
    parts = []
    for start, stop in [(0, 9), (9, 10), (10, 19)]:
        out = outputs(config, params, tokens[:, start:stop], cache=cache)
        cache = out.cache
        parts.append(logits(out))
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_ledger_counts_every_parameter(name):
    for layers in ("unrolled", "scan"):
        config = variant(name, layers=layers)
        shapes = jax.eval_shape(lambda c=config: init_params(c, jax.random.key(0)))
        counted = sum(x.size for x in jax.tree.leaves(shapes))
        assert counted == count_parameters(config).total


@pytest.mark.parametrize(
    ("size", "count"),
    [("124m", 124439808), ("355m", 354823168), ("774m", 774030080), ("1558m", 1557611200)],
)
def test_gpt2_sizes(size, count):
    assert count_parameters(presets.gpt2(size)).total == count


@pytest.mark.parametrize("layers", ["unrolled", "scan"])
def test_rematerialisation_changes_nothing(layers, tokens):
    plain = variant("gpt2", layers=layers)
    params = initialised(plain)

    def gradient(config):
        return jax.jit(jax.grad(lambda p: jnp.square(run(config, p, tokens)).mean()))(params)

    wanted = gradient(plain)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7)
    for remat in ("products", "block"):
        jax.tree.map(near, gradient(dataclasses.replace(plain, remat=remat)), wanted)


def test_scanned_layers_equal_unrolled_ones(tokens):
    config = variant("rotary_gqa_swiglu")
    params = initialised(config)
    stacked = {k: v for k, v in params.items() if not k.startswith("layer_")}
    stacked["layers"] = jax.tree.map(
        lambda *x: jnp.stack(x), *(params[f"layer_{i}"] for i in range(config.num_layers))
    )
    scanned = dataclasses.replace(config, layers="scan")
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(
        lambda x: x.shape, jax.eval_shape(lambda: init_params(scanned, jax.random.key(0)))
    )
    np.testing.assert_allclose(
        run(scanned, stacked, tokens), run(config, params, tokens), rtol=1e-5, atol=1e-6
    )


def test_documents_do_not_see_each_other(tokens):
    """With segments and positions that restart, a packed document is as if it were alone."""
    config = variant("rotary_gqa_swiglu")
    params = initialised(config)
    cut = 8
    segments = jnp.asarray([[0] * cut + [1] * (19 - cut)] * 3)
    positions = jnp.asarray([[*range(cut), *range(19 - cut)]] * 3)
    packed = run(config, params, tokens, segments_BT=segments, positions_BT=positions)
    alone = run(config, params, tokens[:, cut:])
    np.testing.assert_allclose(packed[:, cut:], alone, rtol=2e-4, atol=2e-5)


def test_dropout_is_active_with_a_key_only(tokens):
    config = variant("gpt2", dropout=0.5)
    params = initialised(config)
    still = outputs(config, params, tokens).hidden_BTD
    again = outputs(variant("gpt2"), params, tokens).hidden_BTD
    key = jax.random.key(1)
    dropped = outputs(config, params, tokens, rngs={"dropout": key}).hidden_BTD
    assert (still == again).all() and not np.allclose(still, dropped)


def test_bfloat16_computes_in_bfloat16(tokens):
    config = variant("gpt2", compute_dtype="bfloat16")
    params = initialised(config)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    out = outputs(config, params, tokens)
    assert out.hidden_BTD.dtype == jnp.bfloat16 and logits(out).dtype == jnp.float32


def test_every_axis_has_a_name():
    axes = param_axes(variant("rotary_gqa_swiglu", layers="scan"))
    assert axes["layers"]["attention"]["query"] == ("layer", "embed", "heads", "head_dim")
    assert axes["head"] == ("vocab", "embed")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"d_model": 20, "num_heads": 8}, "d_model = 20 is not divisible by .* nearest .*: 10"),
        ({"num_kv_heads": 3}, "num_heads = 4 is not divisible by model.num_kv_heads = 3"),
        ({"num_layers": 0}, "model.num_layers is 0"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"positions": "rotary", "rotary": RotaryConfig(fraction=0.1)}, "rotary.fraction"),
        (
            {"positions": "factorised", "embedding": EmbeddingConfig(position_shape="4")},
            "two axes or more",
        ),
        (
            {"positions": "factorised", "embedding": EmbeddingConfig(position_shape="2x3")},
            "fewer than model.context_length",
        ),
        ({"embedding": EmbeddingConfig(position_shape="4x8")}, "of factorised positions"),
        ({"attention": AttentionConfig(pattern="windw:3")}, "did you mean 'window'"),
        ({"attention": AttentionConfig(pattern="bidirectional")}, "give a causal one"),
        ({"attention": AttentionConfig(pattern="bigbird:2")}, "give bigbird:2,3,1,3,0,causal"),
        (
            {"attention": AttentionConfig(pattern="causal/causal/window:2")},
            "patterns for 3 layers, and model.num_layers is 2",
        ),
        ({"attention": AttentionConfig(pattern="causal|window:2|window:3")}, "3 groups of heads"),
        (
            {
                "layers": "scan",
                "num_layers": 4,
                "attention": AttentionConfig(pattern="causal/causal/window:2"),
            },
            "in turn",
        ),
        (
            {"positions": "rotary", "attention": AttentionConfig(head_dim=5)},
            "turns 5 of the 5 dim",
        ),
    ],
)
def test_impossible_models_are_refused(fields, words):
    with pytest.raises(BadInput, match=words):
        dataclasses.replace(BASE, **fields).validate()


@pytest.mark.parametrize(("name", "count"), [("cifar10", 59), ("enwik8", 95), ("imagenet64", 152)])
def test_sparse_transformer_sizes(name, count):
    """As published, in millions, to the digits that are told."""
    config = presets.sparse_transformer(name)
    config.validate()
    assert round(count_parameters(config).total / 1e6) == count
