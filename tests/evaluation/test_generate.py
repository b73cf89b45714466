"""Decoding with a cache: what it says must be what the whole forward pass says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gptjax import DecoderConfig, MeshConfig
from gptjax.errors import BadInput
from gptjax.evaluation.generate import generate, generate_rows, groups
from gptjax.evaluation.sampling import Sampling, filtered, penalised
from gptjax.models.build import init_params
from gptjax.models.decoder import Decoder
from gptjax.models.stack import logits
from gptjax.ops.linear import FEW_ROWS, unembed
from gptjax.parallel import make_mesh
from gptjax.training.state import param_specs

VOCAB, CONTEXT, PROMPT, COUNT = 31, 17, 5, 9
LEARNED = DecoderConfig(
    vocab_size=VOCAB, context_length=CONTEXT, num_layers=2, d_model=16, num_heads=4, init="fan_in"
)
ROTARY = dataclasses.replace(
    LEARNED, num_layers=1, num_kv_heads=2, positions="rotary", norm="rmsnorm", tied_embeddings=False
)
PROMPTS = np.random.default_rng(0).integers(0, VOCAB, (3, PROMPT)).astype(np.int32)


@functools.cache
def params_of(config):
    """Weights three times as large as fresh ones, so that the choices are not near ties."""
    params = jax.jit(lambda: init_params(config, jax.random.key(1)))()
    return jax.tree.map(lambda x: 3.0 * x, params)


@functools.cache
def greedy(config, count=COUNT):
    """One decoding that several tests look at."""
    return generate(config, params_of(config), PROMPTS, count, temperature=0.0)


@pytest.mark.parametrize("config", [LEARNED, ROTARY], ids=["learned", "rotary"])
def test_greedy_with_a_cache_equals_greedy_without(config):
    """Each chosen token is the argmax of the whole forward pass over what stands before it."""
    chosen = np.stack(greedy(config))
    assert chosen.shape == (3, COUNT)
    whole = np.concatenate([PROMPTS, chosen], axis=1)
    apply = jax.jit(lambda p, x: logits(Decoder(config).apply({"params": p}, x)))
    expected = np.argmax(apply(params_of(config), whole), -1)
    np.testing.assert_array_equal(chosen, expected[:, PROMPT - 1 : -1])
    assert len(np.unique(chosen)) > 3  # it does not say one thing for ever


def test_rows_of_a_batch_are_independent():
    alone = generate(ROTARY, params_of(ROTARY), PROMPTS[1:2], COUNT, temperature=0.0)
    np.testing.assert_array_equal(alone[0], greedy(ROTARY)[1])


@pytest.mark.parametrize("config", [LEARNED, ROTARY], ids=["learned", "rotary"])
def test_prompts_of_unequal_lengths_are_continued_as_each_alone(config):
    """Greedy and drawn; in one batch, several samples of each, and in groups."""
    prompts = [PROMPTS[0][:2], PROMPTS[1], PROMPTS[2][:1], PROMPTS[0][:4]]
    for drawing in ({"temperature": 0.0}, {"temperature": 2.0, "top_k": 9, "top_p": 0.9}):
        run = functools.partial(generate, config, params_of(config), seed=3, **drawing)
        together = run(prompts, COUNT, num_samples=2)
        alone = [row for prompt in prompts for row in run([prompt], COUNT, num_samples=2)]
        pairs = run(prompts, COUNT, num_samples=2, batch_size=4)
        for row, other, third in zip(together, alone, pairs, strict=True):
            assert len(row) == COUNT
            np.testing.assert_array_equal(row, other)
            np.testing.assert_array_equal(row, third)
    assert (together[0] != together[1]).any()  # two samples of one prompt


def test_few_rows_times_a_table_are_those_of_many():
    """A few rows are multiplied in another order, also for gradients."""
    rng = np.random.default_rng(0)
    h_BTD = rng.normal(size=(FEW_ROWS + 1, 1, 7)).astype(np.float32)
    w_VD = rng.normal(size=(11, 7)).astype(np.float32)

    def total(h_BTD):
        return jnp.sum(jnp.sin(unembed(h_BTD, w_VD)))

    for few, many in ((unembed(h_BTD[:3], w_VD), unembed(h_BTD, w_VD)[:3]),
                      (jax.grad(total)(h_BTD[:3]), jax.grad(total)(h_BTD)[:3])):  # fmt: skip
        np.testing.assert_allclose(few, many, atol=1e-5)


def test_prompts_far_apart_are_decoded_apart():
    assert groups([5, 90, 7, 91, 6], 2) == [[0, 4], [2], [1, 3]]
    assert groups([5, 90, 7, 91, 6], 64) == [[0, 4, 2], [1, 3]]


def test_halves_over_grouped_heads():
    """Several rows at once: a product of bfloat16 that XLA:CPU does not have."""
    config = dataclasses.replace(ROTARY, compute_dtype="bfloat16")
    rows = generate(config, params_of(ROTARY), PROMPTS[:2], 3, temperature=0.0)
    assert [len(row) for row in rows] == [3, 3]


def test_sparse_patterns_are_decoded_as_they_are_trained():
    """A window's cache is a ring; unequal prompts stand in it as each alone."""
    attention = dataclasses.replace(ROTARY.attention, pattern="window:4")
    config = dataclasses.replace(ROTARY, attention=attention)
    prompts = [PROMPTS[0], PROMPTS[1][:3]]
    rows = generate(config, params_of(ROTARY), prompts, COUNT, temperature=0.0)
    apply = jax.jit(lambda p, x: logits(Decoder(config).apply({"params": p}, x)))
    for prompt, row in zip(prompts, rows, strict=True):
        whole = np.concatenate([prompt, row])[None]
        expected = np.argmax(apply(params_of(ROTARY), whole), -1)[0]
        np.testing.assert_array_equal(row, expected[len(prompt) - 1 : -1])


def test_the_penalty_is_that_of_a_loop_over_tokens():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 7)).astype(np.float32)
    tokens, known, penalty = rng.integers(0, 7, (2, 5)), np.arange(5) < 3, 1.7
    expected = scores.copy()
    for row in range(2):
        for token in set(tokens[row, :3].tolist()):
            x = scores[row, token]
            expected[row, token] = x / penalty if x > 0 else x * penalty
    got = jax.jit(penalised)(scores, tokens, known[None], penalty)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert (expected != scores).any() and (expected == scores).any()


def test_a_large_penalty_repeats_nothing():
    prompts = [PROMPTS[0][:2], PROMPTS[1]]
    rows = generate(
        ROTARY, params_of(ROTARY), prompts, COUNT, temperature=0.0, repetition_penalty=1e6
    )
    for prompt, row in zip(prompts, rows, strict=True):
        assert len({*row.tolist(), *prompt.tolist()}) == COUNT + len(set(prompt.tolist()))


def test_a_listener_hears_all_tokens_and_may_end_a_row():
    heard = {0: [], 1: [], 2: []}

    def listen(row, tokens):
        heard[row] += tokens.tolist()
        return row == 1 and len(heard[1]) >= 3

    options = {"temperature": 0.0, "on_tokens": listen}
    rows = generate(ROTARY, params_of(ROTARY), PROMPTS, COUNT, every=2, **options)
    assert [len(row) for row in rows] == [COUNT, 3, COUNT]
    for row, whole in zip(rows, greedy(ROTARY), strict=True):
        np.testing.assert_array_equal(row, whole[: len(row)])
    assert [heard[i] for i in range(3)] == [row.tolist() for row in rows]


def test_what_else_was_likely_is_what_the_whole_pass_says():
    rows = generate_rows(
        ROTARY, params_of(ROTARY), PROMPTS[:2], 4, Sampling(temperature=5.0, seed=1), top=3
    )
    apply = jax.jit(lambda p, x: logits(Decoder(ROTARY).apply({"params": p}, x)))
    for prompt, row in zip(PROMPTS, rows, strict=False):
        whole = np.concatenate([prompt, row.tokens])[None]
        scores = apply(params_of(ROTARY), whole)[0, PROMPT - 1 : -1]
        expected = np.asarray(jax.nn.log_softmax(scores))
        best = np.argsort(-expected, axis=-1)[:, :3]
        np.testing.assert_array_equal(row.top_ids, best)
        taken = np.take_along_axis(expected, best, -1)
        np.testing.assert_allclose(row.top_logprobs, taken, atol=1e-4)
        own = np.take_along_axis(expected, row.tokens[:, None], -1)[:, 0]
        np.testing.assert_allclose(row.logprobs, own, atol=1e-4)


def test_a_stop_token_ends_a_row_and_no_other():
    rows = greedy(ROTARY)
    stop = int(rows[0][3])
    ended = generate(ROTARY, params_of(ROTARY), PROMPTS, COUNT, temperature=0.0, stop_token=stop)
    for before, after in zip(rows, ended, strict=True):
        where = np.flatnonzero(before == stop)
        np.testing.assert_array_equal(after, before[: where[0]] if where.size else before)
    assert len(ended[0]) <= 3
    several = (stop, int(rows[1][1]), 10_000)
    ended = generate(ROTARY, params_of(ROTARY), PROMPTS, COUNT, temperature=0.0, stop_token=several)
    for before, after in zip(rows, ended, strict=True):
        where = np.flatnonzero(np.isin(before, several))
        np.testing.assert_array_equal(after, before[: where[0]] if where.size else before)


def test_learned_positions_end_with_the_context():
    rows = greedy(LEARNED, 100)
    assert all(len(row) == CONTEXT - PROMPT for row in rows)
    np.testing.assert_array_equal(rows[0][:COUNT], greedy(LEARNED)[0])
    assert all(len(row) == 23 for row in greedy(ROTARY, 23))  # others go on


def test_sampling_follows_its_seed_and_leaves_out_unknown_ids():
    sample = functools.partial(
        generate, ROTARY, params_of(ROTARY), PROMPTS, COUNT, temperature=5.0, vocab_size=7
    )
    one, again, other = (np.stack(sample(seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() and one.max() < 7 and len(np.unique(one)) > 3


def test_one_candidate_is_greedy():
    sure = generate(ROTARY, params_of(ROTARY), PROMPTS, COUNT, temperature=2.0, top_k=1)
    np.testing.assert_array_equal(np.stack(sure), np.stack(greedy(ROTARY)))


def test_filters_keep_the_right_sets():
    """Probabilities .4, .3, .2, .1 in another order."""
    p = np.array([[0.2, 0.4, 0.1, 0.3]])
    run = jax.jit(filtered, static_argnums=1)

    def kept(top_k, top_p):
        share = None if top_p == 1.0 else jnp.float32(top_p)
        out = np.asarray(run(jnp.log(jnp.asarray(p, jnp.float32)), top_k, share))[0]
        np.testing.assert_allclose(out[np.isfinite(out)], np.log(p[0])[np.isfinite(out)], rtol=1e-5)
        return set(np.flatnonzero(np.isfinite(out)))

    assert kept(0, 1.0) == {0, 1, 2, 3} == kept(9, 1.0)
    assert kept(2, 1.0) == {1, 3} and kept(1, 1.0) == {1}
    assert kept(0, 0.35) == {1}  # .4 reaches .35
    assert kept(0, 0.5) == {1, 3}  # .4 does not reach .5, .7 does
    assert kept(0, 0.8) == {0, 1, 3}
    assert kept(0, 1e-6) == {1}
    # top-k first: of {.4, .3}, renormalised to .57 and .43, .5 keeps one and .6 both.
    assert kept(2, 0.5) == {1} and kept(2, 0.6) == {1, 3}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"top_k": -1}, "top_k = -1"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"prompt_BP": np.zeros((1, 0))}, "prompt is empty"),
        ({"prompt_BP": np.zeros((1, CONTEXT), int)}, "no room in a context of 17"),
        ({"prompt_BP": np.full((1, 3), VOCAB)}, "token 31 .*vocabulary of 31"),
        ({"prompt_BP": np.full((1, 3), -1)}, "token -1 .*vocabulary of 31"),
        ({"prompt_BP": [[1.5]]}, "the prompt begins with 1.5: give ids"),
        ({"prompt_BP": [["a"]]}, "the prompt begins with 'a': give ids"),
        ({"prompt_BP": [[2**40]]}, "token 1099511627776 .*vocabulary of 31"),
        ({"prompt_BP": [[2**70]]}, "the prompt begins with 1180591620717411303424: give"),
        ({"prompt_BP": [[[1], [1, 2]]]}, "the prompt is no list of ids"),
        ({"seed": 2**32}, "seed = 4294967296 must be 0 or more and below 4294967296"),
        ({"seed": -1}, "seed = -1"),
        ({"count": -1}, "count = -1"),
        ({"vocab_size": 99}, "vocab_size = 99"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0"),
        ({"num_samples": 0}, "num_samples = 0"),
        ({"prompt_BP": []}, "there is no prompt"),
    ],
)
def test_bad_arguments_are_refused(fields, words):
    arguments = {"prompt_BP": PROMPTS, "count": 3, **fields}
    with pytest.raises(BadInput, match=words):
        generate(LEARNED, params_of(LEARNED), arguments.pop("prompt_BP"), **arguments)


def test_nothing_asked_for_is_nothing():
    rows = generate(ROTARY, params_of(ROTARY), PROMPTS, 0)
    assert [len(row) for row in rows] == [0, 0, 0]


def test_on_a_mesh():
    """Heads and weights are split; one row, which no mesh could split, and three."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    params = jax.tree.map(
        lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)),
        params_of(ROTARY),
        param_specs(ROTARY, mesh),
    )
    rows = generate(ROTARY, params, PROMPTS, COUNT, temperature=0.0, mesh=mesh)
    np.testing.assert_array_equal(np.stack(rows), np.stack(greedy(ROTARY)))
    sampled = generate(ROTARY, params, PROMPTS[:1], COUNT, top_k=5, top_p=0.9, mesh=mesh)
    assert len(sampled[0]) == COUNT and sampled[0].max() < VOCAB
