"""A trunk with modules of two tasks: its parts by the encoder and the decoder, masks, the cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import MeshConfig, TaskModulesConfig
from gptjax.errors import BadInput
from gptjax.evaluation.generate import generate
from gptjax.models.build import empty_cache, model_of
from gptjax.models.config_parts import AttentionConfig, EmbeddingConfig, ExpertsConfig
from gptjax.models.decoder import Decoder
from gptjax.models.encoder import Encoder
from gptjax.models.encoder_decoder import Side
from gptjax.models.layers import Inputs
from gptjax.models.stack import logits
from gptjax.parallel import make_mesh
from gptjax.scaling.flops import count_flops, count_parameters, row_flops
from gptjax.training.state import param_specs
from tests.models.test_relatives import ids, random_params, sees

T, S = 9, 12
SMALL = {"vocab_size": 37, "context_length": 16, "num_layers": 2, "d_model": 24, "num_heads": 3}
MODELS = {
    "ernie3": TaskModulesConfig(
        **SMALL,
        block="post",
        task_width=16,
        embedding=EmbeddingConfig(norm=True, types=2, head_bias=True),
        pooler="first",
        classes=3,
    ),
    "rotary": TaskModulesConfig(
        **SMALL, positions="rotary", norm="rmsnorm", num_kv_heads=1, tied_embeddings=False
    ),
    "scan": TaskModulesConfig(
        **SMALL,
        positions="learned",
        layers="scan",
        remat="block",
        attention=AttentionConfig("causal/window:4"),
        reading_pattern="bidirectional/window:2,2",
    ),
    "experts": TaskModulesConfig(
        **SMALL,
        positions="alibi",
        task_layers=1,
        experts=ExpertsConfig(count=3, every=2),
        embedding=EmbeddingConfig(size=16),
    ),
}


def run(module, params, *args, **given):
    """`apply`, compiled: op by op the same takes ten times as long."""
    call = lambda params, args, given: module.apply({"params": params}, *args, **given)
    return jax.jit(call)(params, args, given)


def apply(config, tokens, **given):
    return run(model_of(config), random_params(config), tokens, **given)


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_are_an_encoder_and_a_decoder_with_one_trunk(name):
    """Each task by modules that were compared with others' code, put one behind the other."""
    config, params = MODELS[name], random_params(MODELS[name])
    source, tokens = ids(S), ids(T, seed=1)
    out = apply(config, tokens, source_BS=source)
    whole = {name: x for name, x in params.items() if name.startswith("embedding")}
    whole |= {"head": params.get("head"), **params["trunk"]}
    whole["head_bias"] = jnp.zeros(37)
    reader = dataclasses.replace(config.reader, head="plain")
    read, written = run(Encoder(reader), whole, source), run(Decoder(config.writer), whole, tokens)
    said = []
    for task, side, x, length in (
        ("understanding", config.understanding, read.states_BTD, S),
        ("generation", config.generation, written.states_BTD, T),
    ):
        given = Inputs(jnp.arange(length))
        x = np.asarray(x) @ np.asarray(params[f"{task}_in"]) + np.asarray(params[f"{task}_in_bias"])
        x, _, _ = run(Side(side), params[task], jnp.asarray(x), given)
        out_DF, bias_F = (np.asarray(params[f"{task}_out{part}"]) for part in ("", "_bias"))
        said.append(np.asarray(x) @ out_DF + bias_F)
    head = params["embedding"] if config.tied_embeddings else params["head"]
    said, bias_V = np.concatenate(said, 1), np.asarray(params.get("head_bias", 0.0))
    if "embedding_out" in params:
        said = said @ np.asarray(params["embedding_out"])
    expected = said @ np.asarray(head).T + bias_V
    np.testing.assert_allclose(logits(out), expected, rtol=1e-4, atol=2e-4)
    # Either alone is the same.
    np.testing.assert_allclose(logits(apply(config, tokens)), expected[:, S:], rtol=1e-4, atol=2e-4)
    places = np.array([[3, 0], [7, 7]], np.int32)
    alone = logits(apply(config, None, source_BS=source, at_BP=places))
    wanted = np.take_along_axis(np.asarray(expected), places[:, :, None], 1)
    np.testing.assert_allclose(alone, wanted, rtol=1e-4, atol=2e-4)


def test_a_source_is_read_both_ways_and_tokens_from_behind():
    config = MODELS["ernie3"]
    seen = sees(config, "source_BS", S, tokens=None, source_BS=ids(S, 1))
    assert seen.all()
    seen = sees(config, "tokens", T, tokens=ids(T, 1))
    np.testing.assert_array_equal(seen, np.tril(np.ones((T, T), bool)))
    # Neither sees the other.
    seen = sees(config, "source_BS", S, tokens=ids(T, 1), source_BS=ids(S, 1))
    assert not seen.any()
    segments = np.array([[0] * 5 + [-1] * (S - 5)], np.int32)
    seen = sees(
        config, "source_BS", S, tokens=None, source_BS=ids(S, 1), source_segments_BS=segments
    )
    np.testing.assert_array_equal(seen, segments[0][:, None] == segments[0][None])


@pytest.mark.parametrize("name", MODELS)
def test_cached_decoding_is_that_of_whole_rows(name):
    config, tokens = MODELS[name], ids(T)
    whole = logits(apply(config, tokens))
    cache = empty_cache(config, 2, T)
    parts = []
    for low, high in ((0, 4), (4, 5), (5, T)):
        out = apply(config, tokens[:, low:high], cache=cache)
        parts, cache = [*parts, logits(out)], out.cache
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, rtol=1e-4, atol=2e-4)


def test_a_text_is_gone_on_with_as_whole_rows_say():
    config, tokens = MODELS["ernie3"], ids(3)
    made = np.asarray(generate(config, random_params(config), tokens, 5, temperature=0))
    text = np.concatenate([tokens, made], 1)
    best = np.asarray(logits(apply(config, text))).argmax(-1)
    np.testing.assert_array_equal(best[:, 2:-1], text[:, 3:])


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_flops_are_counted(name):
    config = MODELS[name]
    sizes = [x.size for x in jax.tree.leaves(jax.eval_shape(lambda: random_params(config)))]
    assert count_parameters(config).total == sum(sizes)
    # What is only written costs a decoder, its module and the products between.
    below, above = (count_flops(c, T) for c in (config.writer, config.generation))
    both = row_flops(config, T, T)
    between = 4 * T * 24 * config.task_size
    assert both.mlp == pytest.approx(T * (below.mlp + above.mlp))
    assert both.head == pytest.approx(T * below.head + between)
    assert both.encoder == 0
    read = row_flops(config, 0, 2, source=S)
    assert read.projections == read.attention == read.mlp == 0 < read.encoder


def test_all_axes_of_a_mesh():
    config = MODELS["ernie3"]
    config = dataclasses.replace(config, num_heads=4, task_heads=2)
    source, tokens = ids(S), ids(T)
    params = random_params(config)
    given = {"source_BS": source}
    expected = np.asarray(logits(apply(config, tokens, **given)))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    specs = param_specs(config, mesh)
    placed = jax.tree.map(
        lambda x, spec: jax.device_put(x, jax.sharding.NamedSharding(mesh, spec)), params, specs
    )
    batch = [jnp.concatenate([x, x]) for x in (tokens, source)]
    rows = jax.sharding.NamedSharding(mesh, jax.P(("data", "fsdp"), None))
    with jax.set_mesh(mesh):
        tokens, source = (jax.device_put(x, rows) for x in batch)
        out = jax.jit(
            lambda p, t, s: logits(model_of(config).apply({"params": p}, t, source_BS=s))
        )(placed, tokens, source)
    np.testing.assert_allclose(np.asarray(out)[:2], expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task_layers": 0}, "model.task_layers is 0"),
        ({"task_width": 20, "task_heads": 3}, "model.task_width = 20 .*model.task_heads"),
        ({"reading_pattern": "bidirectinal"}, "model.reading_pattern: .*bidirectional"),
        ({"attention": AttentionConfig("bidirectional")}, "model.attention.pattern"),
        ({"positions": "relative_bias"}, "model.positions"),
        ({"block": "parallel"}, "model.block = 'parallel'"),
        ({"classes": 2}, "--model.pooler=first"),
        ({"layers": "scan", "reading_pattern": "bidirectional/window:1,1"}, "'unrolled'"),
        ({"attention": AttentionConfig(memory=4)}, "of kind task_modules"),
    ],
)
def test_what_cannot_be_is_named(fields, words):
    with pytest.raises(BadInput, match=words):
        TaskModulesConfig(**SMALL, **fields).validate()


def test_modules_grow_with_the_trunk():
    config = TaskModulesConfig(**SMALL, task_width=16, task_heads=2).at_width(48)
    assert (config.task_width, config.task_heads, config.num_heads) == (32, 4, 6)
    with pytest.raises(BadInput, match="task_width would be"):
        TaskModulesConfig(**SMALL, task_width=10, task_heads=5).at_width(32, grow="head_dim")
