"""Encoders, encoder-decoders and prefix models: who reads whom, and second opinions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import (
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    MeshConfig,
    TwoStreamConfig,
)
from gptjax.errors import BadInput
from gptjax.models.build import empty_cache, init_params, model_of, param_axes
from gptjax.models.config_parts import AttentionConfig, EmbeddingConfig, ExpertsConfig
from gptjax.models.stack import logits
from gptjax.parallel import make_mesh
from gptjax.scaling.flops import count_parameters
from gptjax.training.state import param_specs
from tests.models import numpy_relatives as peers

T, S = 11, 13
SMALL = {"vocab_size": 37, "context_length": 16, "num_layers": 2, "d_model": 24, "num_heads": 3}
T5 = {
    "norm": "rmsnorm",
    "positions": "relative_bias",
    "attention": AttentionConfig(scale="one", buckets=8, max_distance=9),
    "biases": "none",
    "init": "t5",
}
BERT = {
    "block": "post",
    "activation": "gelu_erf",
    "norm_epsilon": 1e-12,
    "embedding": EmbeddingConfig(norm=True, types=2, head_bias=True),
}
ENCODERS = {
    "bert": EncoderConfig(**SMALL, **BERT, pooler="first", classes=2, token_classes=3),
    "rotary": EncoderConfig(**SMALL, positions="rotary", head="plain", num_kv_heads=1),
    "buckets": EncoderConfig(
        **SMALL, **T5 | {"attention": AttentionConfig("bidirectional", buckets=8, max_distance=9)}
    ),
    "xl": EncoderConfig(**SMALL, positions="relative"),
    "window": EncoderConfig(**SMALL, attention=AttentionConfig("window:2,1"), layers="scan"),
}
PAIRS = {
    "t5": EncoderDecoderConfig(**SMALL, **T5, activation="relu"),
    "t5_scan": EncoderDecoderConfig(**SMALL, **T5, activation="geglu", layers="scan"),
    "bart": EncoderDecoderConfig(
        **SMALL,
        block="post",
        embedding=EmbeddingConfig(norm=True, position_offset=2, head_bias=True),
    ),
    "plug": EncoderDecoderConfig(**SMALL | {"num_layers": 3}, **BERT, decoder_layers=1),
    "rotary": EncoderDecoderConfig(**SMALL, positions="rotary", num_kv_heads=1),
    "switch": EncoderDecoderConfig(
        **SMALL, **T5, experts=ExpertsConfig(count=4, top_k=1, every=2, weights="as_routed")
    ),
}
XLNET = TwoStreamConfig(
    **SMALL,
    activation="gelu_erf",
    biases="mlp",
    embedding=EmbeddingConfig(types=2, head_bias=True),
)
PREFIXES = {
    "learned": DecoderConfig(**SMALL),
    "rotary": DecoderConfig(**SMALL, positions="rotary"),
    "glm": DecoderConfig(**SMALL, positions="learned_blocks"),
    "chatglm": DecoderConfig(
        **SMALL, positions="rotary_blocks", block="deep", embedding=EmbeddingConfig(norm=True)
    ),
    "alibi": DecoderConfig(**SMALL, positions="alibi"),
    "buckets": DecoderConfig(**SMALL, **T5),
    "xl": DecoderConfig(**SMALL, positions="relative"),
}


@functools.cache
def random_params(config):
    """Parameters that are all random, also those that begin as zeros or ones."""
    params = jax.jit(lambda: init_params(config, jax.random.key(1)))()
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), params)


def ids(length, rows=2, seed=0):
    return np.random.default_rng(seed).integers(0, 37, (rows, length)).astype(np.int32)


def sees(config, place, width, of="states_BTD", **inputs):
    """[T, width]: whether output t moves with the vectors of input s, by the gradient.

    place: which of the ids are traced: "tokens" or "source_BS".
    """
    params, rows = random_params(config), inputs.pop(place)
    # Every place gets an id of its own, whose vector is then a variable of its own.
    table = params["embedding"]

    def outputs(shift):
        moved = params | {"embedding": jnp.concatenate([table, table[rows[0]] + shift])}
        if "head_bias" in params:
            moved["head_bias"] = jnp.zeros(len(table) + width)
        bigger = dataclasses.replace(config, vocab_size=len(table) + width)
        given = {place: jnp.arange(width, dtype=jnp.int32)[None] + len(table), **inputs}
        out = model_of(bigger).apply({"params": moved}, given.pop("tokens"), **given)
        return getattr(out, of)[0].sum(-1)

    shift = jnp.zeros((width, table.shape[1]))
    jacobian = jax.jit(jax.jacrev(outputs))(shift)
    return np.asarray(jnp.abs(jacobian).sum(-1) > 1e-7)


@pytest.mark.parametrize("name", [n for n in ENCODERS if n != "window"])
def test_every_place_of_an_encoder_sees_both_sides(name):
    seen = sees(ENCODERS[name], "tokens", T, tokens=ids(T, 1))
    assert seen.all()


def test_an_encoder_keeps_its_pattern_and_its_segments():
    seen = sees(
        dataclasses.replace(ENCODERS["window"], num_layers=1), "tokens", T, tokens=ids(T, 1)
    )
    apart = np.arange(T)[:, None] - np.arange(T)[None]
    np.testing.assert_array_equal(seen, (apart <= 1) & (apart >= -1))
    segments = np.array([[0] * 4 + [1] * (T - 4)], np.int32)
    seen = sees(ENCODERS["bert"], "tokens", T, tokens=ids(T, 1), segments_BT=segments)
    np.testing.assert_array_equal(seen, segments[0][:, None] == segments[0][None])


@pytest.mark.parametrize("name", [n for n in PREFIXES if n != "chatglm"])
def test_a_prefix_is_read_both_ways_and_the_rest_from_behind(name):
    prefix = np.arange(T)[None] < 4
    more = {}
    if name == "glm":
        more = {"block_positions_BT": np.maximum(np.arange(T) - 3, 0)[None].astype(np.int32)}
    seen = sees(PREFIXES[name], "tokens", T, tokens=ids(T, 1), prefix_BT=prefix, **more)
    t, s = np.arange(T)[:, None], np.arange(T)[None]
    np.testing.assert_array_equal(seen, (s <= t) | (s < 4))


@pytest.mark.parametrize("name", [n for n in PAIRS if n != "switch"])
def test_a_decoder_sees_the_whole_encoder_and_its_own_past(name):
    config = PAIRS[name]
    given = {"tokens": ids(T, 1), "source_BS": ids(S, 1, 1)}
    np.testing.assert_array_equal(
        sees(config, "tokens", T, **given), np.tril(np.ones((T, T), bool))
    )
    assert sees(config, "source_BS", S, **given).all()
    filled = np.where(np.arange(S) < 9, 0, -1)[None].astype(np.int32)
    seen = sees(config, "source_BS", S, **given, source_segments_BS=filled)
    np.testing.assert_array_equal(seen, np.broadcast_to(filled >= 0, (T, S)))


def test_a_query_never_sees_its_own_token_and_the_order_says_which_others():
    order = np.array([[0, 0, 3, 0, 1, 0, 2, 0, 0, 4, 0]], np.int32)
    at = np.array([[2, 4, 6, 9]], np.int32)
    given = {"tokens": ids(T, 1), "order_BT": order, "types_BT": (ids(T, 1, 7) > 18) + 0}
    content = sees(XLNET, "tokens", T, **given)
    np.testing.assert_array_equal(content, order[0][None] <= order[0][:, None])
    queries = sees(XLNET, "tokens", T, of="hidden_BTD", **given)
    np.testing.assert_array_equal(queries[at[0]], order[0][None] < order[0][at[0], None])
    some = sees(XLNET, "tokens", T, of="hidden_BTD", **given, at_BP=at)
    np.testing.assert_array_equal(some, queries[at[0]])


@pytest.mark.parametrize(
    "config",
    [*ENCODERS.values(), *PAIRS.values(), PREFIXES["glm"], PREFIXES["chatglm"], XLNET],
)
def test_the_ledger_counts_every_parameter(config):
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert count_parameters(config).total == sum(x.size for x in jax.tree.leaves(shapes))
    names = jax.tree.leaves(param_axes(config), is_leaf=lambda x: isinstance(x, tuple))
    assert len(names) == len(jax.tree.leaves(shapes))


def written(config, *args, **inputs):
    out = jax.jit(lambda p: model_of(config).apply({"params": p}, *args, **inputs))
    return out(random_params(config))


def as_float64(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def assert_near(ours, theirs):
    scale = np.abs(theirs).max()
    assert np.abs(np.asarray(ours, np.float64) - theirs).max() < 1e-5 * scale


def test_glm_equals_numpy():
    config = PREFIXES["glm"]
    tokens = ids(T, 1)
    prefix, blocks = np.arange(T)[None] < 6, np.maximum(np.arange(T) - 5, 0)[None]
    positions = np.array([[0, 1, 2, 3, 4, 5, 2, 2, 2, 4, 4]])
    out = written(
        config, tokens, positions_BT=positions, block_positions_BT=blocks, prefix_BT=prefix
    )
    theirs = peers.glm(
        as_float64(random_params(config)), tokens[0], positions[0], blocks[0], prefix[0]
    )
    assert_near(logits(out)[0], theirs)


def test_glm_130b_equals_numpy():
    config = DecoderConfig(
        **SMALL,
        positions="rotary",
        block="deep",
        activation="geglu",
        embedding=EmbeddingConfig(gradient_share=0.1, norm=True),
    )
    tokens, prefix = ids(T, 1), np.arange(T)[None] < 6
    positions = np.array([[0, 1, 2, 3, 4, 5, 2, 2, 2, 4, 4]])
    out = written(config, tokens, positions_BT=positions, prefix_BT=prefix)
    theirs = peers.glm_130b(as_float64(random_params(config)), tokens[0], positions[0], prefix[0])
    assert_near(logits(out)[0], theirs)


def test_chatglm_equals_numpy():
    config = PREFIXES["chatglm"]
    tokens, prefix = ids(T, 1), np.arange(T)[None] < 6
    blocks = np.maximum(np.arange(T) - 5, 0)[None]
    positions = np.array([[0, 1, 2, 3, 4, 5, 2, 2, 2, 4, 4]])
    out = written(
        config, tokens, positions_BT=positions, block_positions_BT=blocks, prefix_BT=prefix
    )
    row = tokens[0], positions[0], blocks[0], prefix[0]
    assert_near(logits(out)[0], peers.chatglm(as_float64(random_params(config)), *row))
    zero = written(config, tokens, block_positions_BT=0 * blocks)
    assert_near(logits(written(config, tokens)), np.asarray(logits(zero), np.float64))


def test_plug_equals_numpy():
    config = dataclasses.replace(
        PAIRS["plug"], embedding=EmbeddingConfig(norm=True, types=2), decoder_layers=2
    )
    source, tokens, types = ids(S, 1), ids(T, 1, 1), (np.arange(S) > 6)[None].astype(np.int32)
    out = written(config, tokens, source_BS=source, source_types_BS=types)
    params = as_float64(random_params(config))
    assert_near(logits(out)[0], peers.plug(params, source[0], tokens[0], types[0]))


def test_the_gradient_of_words_is_shrunk():
    def gradient(share):
        config = DecoderConfig(
            **SMALL, tied_embeddings=False, embedding=EmbeddingConfig(gradient_share=share)
        )
        params = random_params(dataclasses.replace(config, embedding=EmbeddingConfig()))
        total = lambda p: logits(model_of(config).apply({"params": p}, ids(T)))[..., 0].sum()
        return jax.jit(jax.value_and_grad(total))(params)

    (whole, full), (same, less) = gradient(1.0), gradient(0.1)
    assert float(whole) == pytest.approx(float(same), rel=1e-6)
    np.testing.assert_allclose(less["embedding"], 0.1 * full["embedding"], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(less["head"], full["head"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_cached_decoding_equals_whole_rows(name):
    """Token by token behind a start of three, the encoder's side read once."""
    config, params, source, tokens = PAIRS[name], random_params(PAIRS[name]), ids(S), ids(T, 2, 1)
    filled = np.where(np.arange(S) < 9, 0, -1)[None].repeat(2, 0).astype(np.int32)
    whole = logits(written(config, tokens, source_BS=source, source_segments_BS=filled))
    model = model_of(config)
    read = jax.jit(lambda p, s: model.apply({"params": p}, source_BS=s, source_segments_BS=filled))
    memory = read(params, source)
    cache, found = empty_cache(config.decoder, 2, T), []

    @jax.jit
    def step(params, tokens, memory, cache):
        given = {"written_BSD": memory, "source_segments_BS": filled}
        out = model.apply({"params": params}, tokens, cache=cache, **given)
        return logits(out), out.cache

    for low, high in [(0, 3), *((t, t + 1) for t in range(3, T))]:
        made, cache = step(params, tokens[:, low:high], memory, cache)
        found.append(made)
    np.testing.assert_allclose(np.concatenate(found, 1), whole, atol=1e-4)


@pytest.mark.parametrize("name", ["buckets", "learned", "rotary"])
def test_a_cached_prefix_equals_whole_rows(name):
    config, params, tokens = PREFIXES[name], random_params(PREFIXES[name]), ids(T)
    known = np.arange(T)[None].repeat(2, 0) < 5
    whole = logits(written(config, tokens, prefix_BT=known))
    cache, model = empty_cache(config, 2, T), model_of(config)
    first = model.apply({"params": params}, tokens[:, :5], prefix_BT=known[:, :5], cache=cache)
    rest = model.apply({"params": params}, tokens[:, 5:], cache=first.cache)
    made = np.concatenate([logits(first), logits(rest)], 1)
    np.testing.assert_allclose(made, whole, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 1, 3)])
@pytest.mark.parametrize("name", ["bert", "t5", "bart", "glm", "xlnet"])
def test_meshes(name, shape):
    """Outputs at chosen places are the same on a mesh, the gradient too."""
    config = {**ENCODERS, **PAIRS, **PREFIXES, "xlnet": XLNET}[name]
    config = dataclasses.replace(config, d_ff=96)
    params, rows = random_params(config), 4
    at = np.sort(np.random.default_rng(3).permuted(np.tile(np.arange(T), (rows, 1)), axis=1)[:, :5])
    inputs = {"at_BP": at.astype(np.int32)}
    if name in PAIRS:
        inputs |= {"source_BS": ids(S, rows, 1)}
        inputs |= {"source_segments_BS": np.where(np.arange(S) < 9, 0, -1)[None].repeat(rows, 0)}
    elif name == "xlnet":
        inputs |= {"order_BT": ids(T, rows, 5) % 4, "types_BT": ids(T, rows, 6) % 2}
    elif name == "glm":
        inputs |= {"prefix_BT": np.arange(T)[None].repeat(rows, 0) < 4}
    tokens = ids(T, rows)

    def total(params, tokens, inputs):
        out = model_of(config).apply({"params": params}, tokens, **inputs)
        return jnp.square(logits(out)).mean()

    value, gradient = jax.jit(jax.value_and_grad(total))(params, tokens, inputs)
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
    split = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    specs = param_specs(config, mesh)
    with jax.set_mesh(mesh):
        placed = jax.tree.map(
            lambda x, s: jax.device_put(x, jax.NamedSharding(mesh, s)), params, specs
        )
        rows_of = jax.tree.map(lambda x: jax.device_put(x, split), (tokens, inputs))
        there, other = jax.jit(jax.value_and_grad(total))(placed, *rows_of)
    assert float(there) == pytest.approx(float(value), rel=1e-5)
    for mine, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=5e-5 * max(1.0, float(jnp.abs(mine).max())))


@pytest.mark.parametrize(
    "config, words",
    [
        (dataclasses.replace(ENCODERS["rotary"], classes=2), "model.pooler=first"),
        (dataclasses.replace(PAIRS["t5"], block="parallel"), "no place"),
        (dataclasses.replace(PREFIXES["chatglm"], num_heads=4), "a head size that 4 divides"),
        (EncoderConfig(**SMALL, positions="rotary_blocks"), "of kind encoder takes rotary"),
        (EncoderConfig(**SMALL, positions="learned_blocks"), "of kind encoder takes learned"),
        (dataclasses.replace(PAIRS["t5"], encoder_pattern="windw:3"), "model.encoder_pattern"),
        (dataclasses.replace(PAIRS["t5"], decoder_layers=-1), "model.decoder_layers is -1"),
        (EncoderConfig(**SMALL, attention=AttentionConfig(top_query="positions")), "of decoders"),
    ],
)
def test_what_cannot_be_is_refused(config, words):
    with pytest.raises(BadInput, match=words):
        config.validate()
