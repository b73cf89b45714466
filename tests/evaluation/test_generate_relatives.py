"""Decoding of encoder-decoders and of decoders that read their prompt both ways."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gptjax import DecoderConfig, EncoderConfig, EncoderDecoderConfig, MeshConfig
from gptjax.errors import BadInput
from gptjax.evaluation.beams import beam_search
from gptjax.evaluation.generate import generate
from gptjax.evaluation.reading import Given
from gptjax.models.build import init_params, model_of
from gptjax.models.config_parts import AttentionConfig, EmbeddingConfig
from gptjax.models.stack import logits
from gptjax.parallel import make_mesh
from gptjax.training.state import param_specs

VOCAB, COUNT = 31, 6
SMALL = {"vocab_size": VOCAB, "context_length": 40, "num_layers": 1, "d_model": 16, "num_heads": 2}
SMALL |= {"tied_embeddings": False, "init": "fan_in"}
T5 = EncoderDecoderConfig(
    **SMALL,
    norm="rmsnorm",
    positions="relative_bias",
    attention=AttentionConfig(scale="one", buckets=8, max_distance=9),
    biases="none",
    layers="scan",
)
BART = EncoderDecoderConfig(
    **SMALL, block="post", embedding=EmbeddingConfig(norm=True, position_offset=2), decoder_layers=2
)
DEEPER = SMALL | {"num_layers": 2}  # the last token of a prompt reads all of it anyway
GLM = DecoderConfig(**DEEPER, positions="learned_blocks")
CHATGLM = DecoderConfig(
    **DEEPER, positions="rotary_blocks", block="deep", embedding=EmbeddingConfig(norm=True)
)
BUCKETS = DecoderConfig(**DEEPER, positions="relative_bias", attention=T5.attention)


@functools.cache
def params_of(config):
    """Weights of twice their size, so that the choices are not near ties, and random scores."""
    params = jax.jit(lambda: init_params(config, jax.random.key(1)))()
    return jax.tree.map(lambda x: 2.0 * x, params)


def ids(count, seed):
    return np.random.default_rng(seed).integers(0, VOCAB, count).astype(np.int32)


SOURCES = [Given(np.array([3]), source=ids(n, n)) for n in (5, 9, 7)]
PREFIXES = [Given(ids(n, n), prefix=n) for n in (5, 9, 7)]


def whole_logits(config, given, rows):
    """[B, T, V] of whole rows at once, without a cache, filled up at their ends."""
    T = max(len(one.tokens) + len(row) for one, row in zip(given, rows, strict=True))

    def filled(values, size=T, fill=0):
        return np.pad(values, (0, size - len(values)), constant_values=fill)

    tokens = [filled([*one.tokens, *row]) for one, row in zip(given, rows, strict=True)]
    if given[0].source is not None:
        sources = [one.source for one in given]
        S = max(map(len, sources))
        inputs = {
            "source_BS": np.stack([filled(x, S) for x in sources]),
            "source_segments_BS": np.stack([filled(0 * x, S, -1) for x in sources]),
        }
    else:
        inputs = {"prefix_BT": np.arange(T)[None] < np.array([[one.prefix] for one in given])}
    if given[0].positions is not None:
        positions = [np.pad(one.positions, (0, T - len(one.positions)), "edge") for one in given]
        blocks = [[*one.blocks, *one.blocks[-1] + 1 + np.arange(T)][:T] for one in given]
        inputs |= {"positions_BT": np.stack(positions), "block_positions_BT": np.stack(blocks)}
    apply = jax.jit(lambda p, x, more: logits(model_of(config).apply({"params": p}, x, **more)))
    return np.asarray(apply(params_of(config), np.stack(tokens).astype(np.int32), inputs))


def check_greedy(config, given, rows):
    scores_BTV = whole_logits(config, given, rows)
    for one, row, scores in zip(given, rows, scores_BTV, strict=True):
        start = len(one.tokens) - 1
        np.testing.assert_array_equal(row, scores.argmax(-1)[start : start + len(row)])
    assert len(np.unique(np.concatenate(rows))) > 2


@pytest.mark.parametrize("config", [T5, BART], ids=["t5", "bart"])
def test_sources_of_unequal_lengths_are_written_about_as_each_alone(config):
    rows = generate(config, params_of(config), SOURCES, COUNT, temperature=0.0)
    check_greedy(config, SOURCES, rows)


def test_prompts_of_unequal_lengths_are_read_both_ways_as_each_alone():
    params = params_of(BUCKETS)
    rows = generate(BUCKETS, params, PREFIXES, COUNT, temperature=0.0)
    check_greedy(BUCKETS, PREFIXES, rows)
    behind = [dataclasses.replace(one, prefix=0) for one in PREFIXES]
    one, other = (whole_logits(BUCKETS, given, rows) for given in (PREFIXES, behind))
    assert np.abs(one - other)[:, -1].max() > 0.1  # it matters how the prompt is read


@pytest.mark.parametrize("config", [GLM, CHATGLM], ids=["glm", "chatglm"])
def test_a_blank_is_filled_at_the_position_of_its_mask(config):
    """Parts of seven and of four tokens, behind the longer one a blank that is already filled."""
    given = [
        Given(
            ids(11, 1),
            prefix=7,
            positions=np.array([*range(7), 2, 2, 2, 5]),
            blocks=np.array([0] * 7 + [1, 2, 3, 1]),
        ),
        Given(ids(5, 2), prefix=4, positions=np.array([0, 1, 2, 3, 1]), blocks=np.eye(5)[4]),
    ]
    given[1] = dataclasses.replace(given[1], blocks=given[1].blocks.astype(np.int32))
    rows = generate(config, params_of(config), given, COUNT, temperature=0.0)
    check_greedy(config, given, rows)


def searched(config, given, beams, stop):
    options = {"beams": beams, "stop_token": stop, "num_results": 2, "length_penalty": 0.0}
    found = beam_search(config, params_of(config), given, COUNT, **options)
    return [[(b.tokens.tolist(), b.ended, b.logprob) for b in one] for one in found]


@pytest.mark.parametrize(
    ("config", "given"), [(T5, SOURCES), (BUCKETS, PREFIXES)], ids=["t5", "prefix"]
)
def test_beams_have_the_likelihoods_of_whole_rows(config, given):
    """And those of several prompts together are those of each alone."""
    together = searched(config, given, 4, stop=7)
    alone = searched(config, given[1:2], 4, stop=7)[0]
    assert [b[:2] for b in alone] == [b[:2] for b in together[1]]
    rows = [beams[0][0] + [7] * (beams[0][1] == "stop") for beams in together]
    scores_BTV = whole_logits(config, given, rows)
    for one, row, beams, scores in zip(given, rows, together, scores_BTV, strict=True):
        start = len(one.tokens) - 1
        logprobs = np.asarray(jax.nn.log_softmax(scores))[start : start + len(row)]
        np.testing.assert_allclose(beams[0][2], logprobs[range(len(row)), row].sum(), atol=1e-3)


@pytest.mark.parametrize(
    ("config", "given"), [(T5, SOURCES), (GLM, PREFIXES)], ids=["t5", "prefix"]
)
def test_on_a_mesh(config, given):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    params = jax.tree.map(
        lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)),
        params_of(config),
        param_specs(config, mesh),
    )
    here = generate(config, params_of(config), given, 3, temperature=0.0)
    there = generate(config, params, given, 3, temperature=0.0, mesh=mesh)
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("config", "given", "words"),
    [
        (EncoderConfig(**SMALL), ids(3, 0), "of kind encoder writes no text"),
        (T5, ids(3, 0), "an encoder-decoder writes about a source"),
        (T5, Given(ids(1, 0), source=ids(0, 0)), "the source is empty"),
        (T5, Given(ids(1, 0), source=[99]), "token 99 of the source"),
        (T5, Given(ids(1, 0), source=ids(3, 0), prefix=1), "a prefix is of decoders"),
        (BART, Given(ids(1, 0), source=ids(41, 0)), "a source of 41 tokens"),
        (GLM, SOURCES[0], "this model has no encoder"),
        (GLM, Given(ids(3, 0), prefix=4), "a prefix of 4"),
        (
            DecoderConfig(**SMALL, attention=AttentionConfig("window:4")),
            Given(ids(3, 0), prefix=3),
            "only causal attention",
        ),
        (DecoderConfig(**SMALL, positions="relative"), Given(ids(3, 0), prefix=3), "'relative'"),
    ],
)
def test_what_cannot_be_read_is_refused(config, given, words):
    with pytest.raises(BadInput, match=words):
        generate(config, None, [given], 3)
