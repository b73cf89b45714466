"""Decoding with a key-value cache: the prompt in one pass, then one compiled loop for all tokens.

Rows of different lengths all begin at position 0, so positions and attention patterns are those of
each row alone: the shortest prompt goes through the model at once, and where a row's own prompt is
longer, the loop takes its tokens from there instead of drawing them. The loop's state is donated:
keys and values are written where they stand. An encoder-decoder's source is read once, with the
first tokens; prompts that are read both ways go through the model whole (`reading.py`).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.evaluation.reading import Given, Reading, dense
from gptjax.evaluation.sampling import Method, Settings, choose, penalised
from gptjax.models.build import empty_cache, model_of
from gptjax.models.config import TransformerConfig
from gptjax.models.layers import Cache
from gptjax.models.stack import logits
from gptjax.ops.attention import Slots
from gptjax.ops.shards import explicit_mesh, reshard, spec_of
from gptjax.parallel import Rules, place

# Few sequences are decoded at once: they are not split over devices, the weights still are.
DECODE_RULES = Rules(batch=())
NOTHING = Reading()


class Top(NamedTuple):
    """What the model held likely, before any sampling setting: log probabilities in nats.

    chosen_BL: of the token at every position; ids_BLN, logprobs_BLN: the N likeliest.
    """

    chosen_BL: jax.Array
    ids_BLN: jax.Array
    logprobs_BLN: jax.Array


class State(NamedTuple):
    """Where a decoding stands: tokens before `index` are known, those before index - 1 cached."""

    index: jax.Array
    tokens_BL: jax.Array
    done_B: jax.Array
    cache: Cache
    top: Top | None


class Request(NamedTuple):
    """What is asked of every row.

    lengths_B: of the prompts; limits_B: of prompt and continuation together; keys_B: random keys;
    stop: int32 [S], tokens that end a row, -1 for none; reading: what the model is given beside
    tokens.
    """

    lengths_B: jax.Array
    limits_B: jax.Array
    keys_B: jax.Array
    settings: Settings
    stop: jax.Array
    reading: Reading = NOTHING


def stops_of(stop_token: int | Sequence[int]) -> np.ndarray:
    """int32 [S]: the tokens that end a row, -1 for none."""
    stops = np.asarray(stop_token, np.int32).reshape(-1)
    return stops if len(stops) else np.array([-1], np.int32)


def cache_length(config: TransformerConfig, longest: int) -> int:
    """Positions that a cache is made for, `longest` or a little more, so that programs recur."""
    if not dense(config):  # blocks that are drawn by lot depend on the length trained with
        return max(longest, config.context_length)
    length = -(-longest // 32) * 32
    return min(length, config.context_length) if longest <= config.context_length else length


def prefill_size(config: TransformerConfig, known: int, length: int) -> int:
    """How many tokens go through the model at once when `known` are to be cached.

    More than are known where the cache holds every position: what they leave is never read, since
    each position is written before any reads it. Not where they would take room among experts.
    """
    if not known or not dense(config) or config.experts.limited:
        return known
    step = 16 if known <= 128 else 128
    return min(-(-known // step) * step, length)


FLOAT32 = ("router",)  # parameters that are multiplied in float32 whatever else is


def as_multiplied(config: TransformerConfig, params):
    """The parameters in the dtype that they are multiplied in, so that no step casts them."""

    def due(path, leaf) -> bool:
        return leaf.dtype != config.compute_dtype and path[-1].key not in FLOAT32

    if not any(jax.tree.leaves(jax.tree_util.tree_map_with_path(due, params))):
        return params

    def cast(path, leaf):
        return leaf.astype(config.compute_dtype) if due(path, leaf) else leaf

    return jax.jit(lambda params: jax.tree_util.tree_map_with_path(cast, params))(params)


def next_logits(
    config: TransformerConfig,
    params,
    tokens_B1,
    cache: Cache,
    vocab: int,
    reading: Reading = NOTHING,
):
    """Logits [B, vocab] after one more token in every row, whole on every device, and the cache."""
    model, more = model_of(config, DECODE_RULES), reading.at(cache.length)
    out = model.apply({"params": params}, tokens_B1, cache=cache, **more)
    logits_BV = logits(out, DECODE_RULES)[:, 0]
    if explicit_mesh() is not None:  # sampling sorts rows, so they are made whole
        logits_BV = reshard(logits_BV, jax.P(None, None))
    new = out.cache
    if reading.known_B is not None:
        new = _kept(cache, new, reading.known_B)
    # As it was: a scan over layers would hand back a copy.
    return logits_BV[:, :vocab], new._replace(written=cache.written)


def _kept(old: Cache, new: Cache, known_B) -> Cache:
    """The new cache, with the keys and values of prompts that were read both ways as they were."""
    at = old.length

    def one(before: Slots, after: Slots) -> Slots:
        def kept(x, y):
            stays = (at < known_B).reshape((1,) * (x.ndim - 4) + (-1, 1, 1, 1))
            parts = (jax.lax.dynamic_slice_in_dim(z, at, 1, axis=z.ndim - 2) for z in (x, y))
            part = jnp.where(stays, *parts)
            return jax.lax.dynamic_update_slice_in_dim(y, part, at, axis=y.ndim - 2)

        return after._replace(k=kept(before.k, after.k), v=kept(before.v, after.v))

    layers = (one(*pair) for pair in zip(old.layers, new.layers, strict=True))
    return new._replace(layers=tuple(layers))


@functools.partial(jax.jit, static_argnames=("config", "size", "copies"))
def prefilled(
    params, tokens_BL, known, reading: Reading = NOTHING, *, config, size: int, copies: int = 1
) -> Cache:
    """The cache after the first `known` (at most `size`) of the tokens, every row `copies` times.

    Row b stands at b, B + b, 2 B + b and so on.
    """
    batch, length = tokens_BL.shape
    side = config.decoder if config.kind == "encoder_decoder" else config
    cache = empty_cache(side, batch, length, DECODE_RULES)
    if size:
        model, more = model_of(config, DECODE_RULES), reading.first(size)
        cache = model.apply({"params": params}, tokens_BL[:, :size], cache=cache, **more).cache
    if copies == 1:
        return cache._replace(length=known)

    def copied(x):
        return jnp.concatenate([x] * copies, axis=x.ndim - 4)

    layers = tuple(s._replace(k=copied(s.k), v=copied(s.v)) for s in cache.layers)
    return Cache(layers, known, jax.tree.map(copied, cache.written))


def rows_of(cache: Cache, rows_B) -> Cache:
    """The cache with its rows taken from those at `rows_B`, int32 [B], of the same sources.

    What is kept of an encoder's side is therefore the same in both.
    """

    def taken(x):
        lead = (slice(None),) * (x.ndim - 4)
        spec = spec_of(x) if explicit_mesh() is not None else None
        return x.at[(*lead, rows_B)].get(mode="clip", out_sharding=spec)

    def one(s: Slots) -> Slots:
        return s._replace(k=taken(s.k), v=taken(s.v))

    return cache._replace(layers=tuple(one(s) for s in cache.layers))


@functools.partial(
    jax.jit, static_argnames=("config", "method", "vocab"), donate_argnames=("state",)
)
def run(
    params, state: State, request: Request, until, *, config, method: Method, vocab: int
) -> State:
    """The state with tokens known up to `until`, or until every row is done."""
    places_L = jnp.arange(state.tokens_BL.shape[1])

    def more(state: State):
        return (state.index < until) & ~jnp.all(state.done_B)

    def one(state: State) -> State:
        i, tokens_BL = state.index, state.tokens_BL
        last_B1 = jax.lax.dynamic_slice_in_dim(tokens_BL, i - 1, 1, axis=1)
        reading = request.reading
        logits_BV, cache = next_logits(config, params, last_B1, state.cache, vocab, reading)
        scores_BV = logits_BV
        if method.penalised:
            known_L = (places_L < i)[None]
            penalty = request.settings.repetition_penalty
            scores_BV = penalised(logits_BV, tokens_BL, known_L, penalty)
        keys_B = request.keys_B
        if not method.greedy:  # by how many were drawn before, whatever stands in other rows
            keys_B = jax.vmap(jax.random.fold_in)(keys_B, i - request.lengths_B)
        drawn_B = choose(scores_BV, keys_B, method, request.settings)
        drawn_B = jnp.where(state.done_B, jnp.maximum(request.stop[0], 0), drawn_B)
        forced_B = i < request.lengths_B
        given_B = jax.lax.dynamic_index_in_dim(tokens_BL, i, axis=1, keepdims=False)
        token_B = jnp.where(forced_B, given_B, drawn_B)
        tokens_BL = jax.lax.dynamic_update_slice_in_dim(tokens_BL, token_B[:, None], i, axis=1)
        stops_B = jnp.any(token_B[:, None] == request.stop[None], axis=1)
        ended_B = ~forced_B & (stops_B | (i + 1 >= request.limits_B))
        top = None if state.top is None else _noted(state.top, logits_BV, token_B, i)
        return State(i + 1, tokens_BL, state.done_B | ended_B, cache, top)

    return jax.lax.while_loop(more, one, state)


def _noted(top: Top, logits_BV, token_B, index) -> Top:
    logprobs_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    best_BN, ids_BN = jax.lax.top_k(logprobs_BV, top.ids_BLN.shape[-1])
    chosen_B1 = jnp.take_along_axis(logprobs_BV, token_B[:, None], axis=-1)

    def put(x, part):
        return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), index, axis=1)

    return Top(
        put(top.chosen_BL, chosen_B1),
        put(top.ids_BLN, ids_BN[:, None]),
        put(top.logprobs_BLN, best_BN[:, None]),
    )


def begun(
    config: TransformerConfig,
    params,
    prompts: list[Given],
    reading: Reading,
    length: int,
    copies: int = 1,
    top: int = 0,
) -> State:
    """The state before the first token: prompts in a buffer [B * copies, L], their start cached."""
    tokens_BL = np.zeros((len(prompts), length), np.int32)
    for row, prompt in zip(tokens_BL, prompts, strict=True):
        row[: len(prompt.tokens)] = prompt.tokens
    counts = [len(prompt.tokens) for prompt in prompts]
    known = min(counts) - 1
    size = prefill_size(config, known if reading.known_B is None else max(counts), length)
    if config.kind == "encoder_decoder":
        size = max(size, 1)  # with a token the layers read the source
    cache = prefilled(
        params,
        jnp.asarray(tokens_BL),
        jnp.int32(known),
        reading,
        config=config,
        size=size,
        copies=copies,
    )
    rows = len(prompts) * copies
    noted = None
    if top:
        shape = (rows, length, top)
        kinds = ((shape[:2], np.float32), (shape, np.int32), (shape, np.float32))
        noted = Top(*(everywhere(np.zeros(*kind)) for kind in kinds))
    tokens_BL = everywhere(np.tile(tokens_BL, (copies, 1)))
    done_B = everywhere(np.zeros(rows, bool))
    return State(everywhere(np.int32(known + 1)), tokens_BL, done_B, cache, noted)


def on_mesh(params, mesh=None):
    """The parameters and the mesh to decode on: `mesh`, or the one that the parameters are on.

    A mesh of one device is none: the programs are simpler without.
    """
    kind = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if mesh is None and isinstance(kind, jax.sharding.NamedSharding):
        mesh = kind.mesh
    if mesh is None or mesh.size > 1:
        return params, mesh
    # Given a device itself, jax 0.10 keeps the old layout in the arrays' types.
    alone = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
    return jax.device_put(params, alone), None


def everywhere(x):
    """A small array, whole on every device."""
    return place(jnp.asarray(x), (None,) * np.ndim(x), DECODE_RULES)
