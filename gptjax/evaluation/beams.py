"""Beam search: the likeliest continuations that K hypotheses side by side find.

Finished hypotheses are ranked by log P / ((5 + n) / 6)^penalty with n their tokens, the stop token
among them (arXiv 1609.08144, section 7, without its coverage term). With at least as many beams as
there are prefixes it is exhaustive. The rule of transformers 5 is another: log P / n^penalty, a
hypothesis ends only among the K best of a step, and the search when none that goes on would be
better than the worst finished if it ended now.
"""

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.errors import BadInput
from gptjax.evaluation.decode import (
    as_multiplied,
    begun,
    cache_length,
    everywhere,
    next_logits,
    on_mesh,
    rows_of,
    stops_of,
)
from gptjax.evaluation.generate import checked_vocabulary, groups, sizes
from gptjax.evaluation.reading import Given, Reading, checked, reading_of, room
from gptjax.models.config import TransformerConfig
from gptjax.models.layers import Cache

NEVER = -1e30  # the score of a hypothesis that is none
Rule = Literal["gnmt", "transformers"]


@dataclass(frozen=True)
class Beam:
    """One continuation: tokens int32 [T] without the stop token.

    logprob: of the tokens and of the stop token where there is one, in nats; score: the same by
    the length penalty; ended: "stop" or "length".
    """

    tokens: np.ndarray
    logprob: float
    score: float
    ended: str


class Finished(NamedTuple):
    """The best ended hypotheses, [K, B] or [K, B, L]; length counts the prompt and the stop."""

    tokens_KBL: jax.Array
    logprob_KB: jax.Array
    score_KB: jax.Array
    length_KB: jax.Array


class Search(NamedTuple):
    """Where a search stands: tokens before `index` are known, those before index - 1 cached."""

    index: jax.Array
    tokens_KBL: jax.Array
    logprob_KB: jax.Array
    finished: Finished
    cache: Cache
    going_B: jax.Array
    settled_B: jax.Array  # ended before the limit: no beam can come to more than is finished


class Bounds(NamedTuple):
    """What is asked of every prompt: its length, the most tokens with its continuation.

    reading: what the model is given of every hypothesis beside tokens, as of [K, B] rows.
    """

    lengths_B: jax.Array
    limits_B: jax.Array
    penalty: jax.Array
    stop: jax.Array
    reading: Reading


def normalised(logprob, tokens, penalty, rule: Rule = "gnmt"):
    """A hypothesis's score: its log probability by the length penalty for so many tokens."""
    return logprob / (tokens if rule == "transformers" else (5.0 + tokens) / 6.0) ** penalty


@functools.partial(
    jax.jit, static_argnames=("config", "vocab", "rule"), donate_argnames=("search",)
)
def _searched(params, search: Search, bounds: Bounds, *, config, vocab: int, rule: Rule) -> Search:
    beams, batch, _ = search.tokens_KBL.shape

    def step(s: Search) -> Search:
        i = s.index
        last_KB = jax.lax.dynamic_index_in_dim(s.tokens_KBL, i - 1, axis=2, keepdims=False)
        last_R1 = last_KB.reshape(beams * batch, 1)
        reading = bounds.reading
        logits_RV, cache = next_logits(config, params, last_R1, s.cache, vocab, reading)
        logprob_KBV = jax.nn.log_softmax(logits_RV, -1).reshape(beams, batch, vocab)
        logprob_KBV = s.logprob_KB[:, :, None] + logprob_KBV
        flat_BW = jnp.moveaxis(logprob_KBV, 1, 0).reshape(batch, beams * vocab)
        # At most S of every beam's continuations are stop tokens: K others remain of (1 + S) K.
        most = (1 + bounds.stop.shape[0]) * beams
        best_BC, which_BC = jax.lax.top_k(flat_BW, min(most, beams * vocab))
        best_CB, which_CB = best_BC.T, which_BC.T
        parent_CB, token_CB = which_CB // vocab, which_CB % vocab
        generated_B = i + 1 - bounds.lengths_B
        stops_CB = jnp.any(token_CB[..., None] == bounds.stop[None, None], axis=-1)
        live_B = s.going_B & (i >= bounds.lengths_B)

        ends_CB = stops_CB & live_B[None]
        if rule == "transformers":
            ends_CB = ends_CB & (jnp.arange(len(ends_CB)) < beams)[:, None]
        ended_CB = jnp.where(ends_CB, best_CB, NEVER)
        score_CB = normalised(best_CB, generated_B[None].astype(jnp.float32), bounds.penalty, rule)
        score_CB = jnp.where(ends_CB, score_CB, NEVER)
        histories_CBL = _from(s.tokens_KBL, parent_CB)
        finished = _merged(s.finished, histories_CBL, ended_CB, score_CB, i + 1)

        logprob_KB, order_KB = _best(jnp.where(stops_CB, NEVER, best_CB), beams)
        parent_KB = jnp.take_along_axis(parent_CB, order_KB, axis=0)
        token_KB = jnp.take_along_axis(token_CB, order_KB, axis=0)
        same_KB = jnp.broadcast_to(jnp.arange(beams)[:, None], (beams, batch))
        given_KB = jax.lax.dynamic_index_in_dim(s.tokens_KBL, i, axis=2, keepdims=False)
        parent_KB = jnp.where(live_B[None], parent_KB, same_KB)
        token_KB = jnp.where(live_B[None], token_KB, given_KB)
        logprob_KB = jnp.where(live_B[None], logprob_KB, s.logprob_KB)
        tokens_KBL = _from(s.tokens_KBL, parent_KB)
        tokens_KBL = jax.lax.dynamic_update_slice_in_dim(
            tokens_KBL, token_KB[:, :, None], i, axis=2
        )
        rows_R = (parent_KB * batch + jnp.arange(batch)[None]).reshape(-1)
        cache = rows_of(cache, rows_R)

        # Log probabilities only fall, so this is the best that any beam can come to.
        most_B = jnp.where(bounds.penalty > 0, bounds.limits_B - bounds.lengths_B, generated_B + 1)
        if rule == "transformers":
            most_B = generated_B
        reach_B = normalised(logprob_KB.max(0), most_B.astype(jnp.float32), bounds.penalty, rule)
        settled_B = finished.score_KB.min(0) >= reach_B
        settled_B = s.settled_B | (live_B & settled_B)
        going_B = s.going_B & ~settled_B & (i + 1 < bounds.limits_B)
        return Search(i + 1, tokens_KBL, logprob_KB, finished, cache, going_B, settled_B)

    def more(s: Search):
        return jnp.any(s.going_B)

    return jax.lax.while_loop(more, step, search)


def _best(score_CB, count: int):
    best_BK, order_BK = jax.lax.top_k(score_CB.T, count)
    return best_BK.T, order_BK.T


def _from(tokens_KBL, parent_CB):
    """tokens [C, B, L] of the hypotheses numbered [C, B]."""
    return jnp.take_along_axis(tokens_KBL, parent_CB[:, :, None], axis=0)


def _merged(old: Finished, tokens_CBL, logprob_CB, score_CB, length) -> Finished:
    """The best of those finished before and of new ones."""
    beams = old.score_KB.shape[0]
    lengths_CB = jnp.broadcast_to(length, logprob_CB.shape).astype(jnp.int32)
    new = Finished(tokens_CBL, logprob_CB, score_CB, lengths_CB)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=0), old, new)
    score_KB, order_KB = _best(both.score_KB, beams)

    def kept(x):
        return jnp.take_along_axis(x, order_KB, axis=0)

    return Finished(
        _from(both.tokens_KBL, order_KB), kept(both.logprob_KB), score_KB, kept(both.length_KB)
    )


def beam_search(
    config: TransformerConfig,
    params,
    prompts,
    count: int,
    *,
    beams: int = 4,
    length_penalty: float = 0.6,
    num_results: int = 1,
    stop_token: int | Sequence[int] = -1,
    vocab_size: int | None = None,
    mesh=None,
    batch_size: int = 64,
    rule: Rule = "gnmt",
) -> list[list[Beam]]:
    """The best `num_results` continuations of each prompt, best first.

    prompts: int array [B, P], or a list of arrays of any lengths, or of `Given`; count: the most
    tokens of a continuation, those that have none left count as ended. length_penalty: 0 ranks by
    probability alone, more is kinder to long ones. A prompt may have fewer results where there are
    no more.
    BadInput for what cannot be.
    """
    vocab = checked_vocabulary(config, count, vocab_size)
    prompts = checked(config, prompts)
    if beams < 1 or not 1 <= num_results <= beams:
        raise BadInput(
            f"beams = {beams} must be 1 or more, num_results = {num_results} from 1 to as many"
        )
    if not abs(length_penalty) <= 10:
        raise BadInput(f"length_penalty = {length_penalty} must be a number from -10 to 10")
    if count == 0:
        return [[Beam(np.zeros(0, np.int32), 0.0, 0.0, "length")] for _ in prompts]
    found: dict[int, list[Beam]] = {}
    params, mesh = on_mesh(params, mesh)
    with jax.set_mesh(mesh) if mesh is not None else nullcontext():
        params = as_multiplied(config, params)
        for group in groups(sizes(prompts), max(batch_size // beams, 1)):
            mine = [prompts[i] for i in group]
            lengths = np.array([len(prompt.tokens) for prompt in mine], np.int32)
            limits = np.minimum(lengths + count, room(config, int(lengths.max()) + count))
            length = cache_length(config, int(limits.max()))
            reading = reading_of(config, mine, length)
            bounds = Bounds(
                jnp.asarray(lengths),
                jnp.asarray(limits, jnp.int32),
                jnp.float32(length_penalty),
                jnp.asarray(stops_of(stop_token)),
                reading.later(beams),
            )
            search = _begun(config, params, mine, reading, length, beams)
            search = _searched(params, search, bounds, config=config, vocab=vocab, rule=rule)
            for i, result in zip(group, _ranked(search, bounds, num_results, rule), strict=True):
                found[i] = result
    return [found[i] for i in range(len(prompts))]


def _begun(
    config, params, prompts: list[Given], reading: Reading, length: int, beams: int
) -> Search:
    state, shape = begun(config, params, prompts, reading, length, beams), (beams, len(prompts))
    # One beam is the prompt; the others are like it and count for nothing.
    logprob_KB = np.full(shape, NEVER, np.float32)
    logprob_KB[0] = 0.0
    finished = Finished(
        np.zeros((*shape, length), np.int32),
        np.full(shape, NEVER, np.float32),
        np.full(shape, NEVER, np.float32),
        np.zeros(shape, np.int32),
    )
    tokens_KBL = np.asarray(state.tokens_BL).reshape(*shape, length)
    going_B = np.ones(len(prompts), bool)
    arrays = jax.tree.map(everywhere, (tokens_KBL, logprob_KB, finished))
    return Search(state.index, *arrays, state.cache, everywhere(going_B), everywhere(~going_B))


def _ranked(search: Search, bounds: Bounds, count: int, rule: Rule) -> list[list[Beam]]:
    """The best of the finished hypotheses and of those that were cut by their limit."""
    tokens_KBL, logprob_KB = np.asarray(search.tokens_KBL), np.asarray(search.logprob_KB)
    finished, settled_B = jax.tree.map(np.asarray, (search.finished, search.settled_B))
    lengths, limits = np.asarray(bounds.lengths_B), np.asarray(bounds.limits_B)
    penalty, results = float(bounds.penalty), []
    for b, (start, limit) in enumerate(zip(lengths, limits, strict=True)):
        every = []
        for k in range(len(tokens_KBL)):
            if finished.score_KB[k, b] > NEVER:
                tokens = finished.tokens_KBL[k, b, start : finished.length_KB[k, b] - 1]
                values = float(finished.logprob_KB[k, b]), float(finished.score_KB[k, b])
                every.append(Beam(tokens, *values, "stop"))
            if logprob_KB[k, b] > NEVER / 2 and not settled_B[b]:
                logprob = float(logprob_KB[k, b])
                score = float(normalised(logprob, float(limit - start), penalty, rule))
                every.append(Beam(tokens_KBL[k, b, start:limit], logprob, score, "length"))
        results.append(sorted(every, key=lambda beam: -beam.score)[:count])
    return results
