"""Beam search against every continuation there is, and against greedy decoding."""

import functools
import itertools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gptjax import DecoderConfig, MeshConfig
from gptjax.errors import BadInput
from gptjax.evaluation.beams import beam_search
from gptjax.evaluation.generate import generate
from gptjax.models.build import init_params
from gptjax.models.decoder import Decoder
from gptjax.models.stack import logits
from gptjax.parallel import make_mesh
from gptjax.training.state import param_specs

VOCAB, COUNT, STOP = 5, 3, 2
CONFIG = DecoderConfig(
    vocab_size=VOCAB, context_length=16, num_layers=1, d_model=16, num_heads=2,
    positions="rotary", init="fan_in",
)  # fmt: skip
PROMPTS = [np.array([1, 3, 0], np.int32), np.array([4], np.int32)]


@functools.cache
def params():
    fresh = jax.jit(lambda: init_params(CONFIG, jax.random.key(2)))()
    return jax.tree.map(lambda x: 2.0 * x, fresh)


def every_continuation(prompt, penalty: float):
    """(score, log probability, tokens, ended) of all there are, best first."""
    whole = np.array([[*prompt, *c] for c in itertools.product(range(VOCAB), repeat=COUNT)])
    apply = jax.jit(
        lambda p, x: jax.nn.log_softmax(logits(Decoder(CONFIG).apply({"params": p}, x)))
    )
    logprobs = np.asarray(apply(params(), whole), np.float64)
    found = {}
    for row, tokens in zip(logprobs, whole[:, len(prompt) :].tolist(), strict=True):
        steps = [row[len(prompt) - 1 + i, token] for i, token in enumerate(tokens)]
        n = tokens.index(STOP) + 1 if STOP in tokens else COUNT
        ended = "stop" if STOP in tokens else "length"
        kept = tuple(tokens[: n - (ended == "stop")])
        total = sum(steps[:n])
        found[kept, ended] = (total / ((5 + n) / 6) ** penalty, total, kept, ended)
    return sorted(found.values(), reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
def test_with_beams_for_every_prefix_it_is_exhaustive(penalty):
    """Two prompts of unequal lengths at once, the eight best of each."""
    results = beam_search(
        CONFIG, params(), PROMPTS, COUNT, beams=VOCAB**2, length_penalty=penalty,
        num_results=8, stop_token=STOP,
    )  # fmt: skip
    for prompt, beams in zip(PROMPTS, results, strict=True):
        expected = every_continuation(prompt, penalty)[:8]
        assert [(tuple(b.tokens.tolist()), b.ended) for b in beams] == [e[2:] for e in expected]
        np.testing.assert_allclose([b.score for b in beams], [e[0] for e in expected], atol=1e-4)
        np.testing.assert_allclose([b.logprob for b in beams], [e[1] for e in expected], atol=1e-4)


def test_one_beam_is_greedy_and_a_prompt_is_searched_as_alone():
    search = functools.partial(beam_search, CONFIG, params(), count=7)
    one = search(PROMPTS, beams=1)
    greedy = generate(CONFIG, params(), PROMPTS, 7, temperature=0.0)
    for beams, row in zip(one, greedy, strict=True):
        np.testing.assert_array_equal(beams[0].tokens, row)
    together = search(PROMPTS, beams=3, num_results=3, stop_token=STOP)
    for prompt, beams in zip(PROMPTS, together, strict=True):
        alone = search([prompt], beams=3, num_results=3, stop_token=STOP)[0]
        assert [b.tokens.tolist() for b in beams] == [b.tokens.tolist() for b in alone]
        np.testing.assert_allclose([b.score for b in beams], [b.score for b in alone], atol=1e-5)
        assert [b.score for b in beams] == sorted((b.score for b in beams), reverse=True)


def test_on_a_mesh():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    placed = jax.tree.map(
        lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)),
        params(),
        param_specs(CONFIG, mesh),
    )
    here = beam_search(CONFIG, params(), PROMPTS, 4, beams=3, stop_token=STOP)
    there = beam_search(CONFIG, placed, PROMPTS, 4, beams=3, stop_token=STOP, mesh=mesh)
    for a, b in zip(here, there, strict=True):
        assert a[0].tokens.tolist() == b[0].tokens.tolist()
        np.testing.assert_allclose(a[0].score, b[0].score, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"beams": 0}, "beams = 0"),
        ({"num_results": 5}, "num_results = 5"),
        ({"length_penalty": float("nan")}, "length_penalty = nan"),
        ({"count": -1}, "count = -1"),
    ],
)
def test_bad_arguments_are_refused(fields, words):
    with pytest.raises(BadInput, match=words):
        beam_search(CONFIG, params(), PROMPTS, **{"count": 3, **fields})
