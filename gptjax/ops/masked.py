"""Softmax attention of all pairs under a mask, with further terms and its own gradient.

For what no pattern can say: prefixes that differ from row to row, ranks, filled-up sources, scores
of distances, another sequence. Kept for the gradient are the output and one log-sum-exp a row, as
in `ops/blocked.py`, and the scores are computed again. Both ways go by strips of queries, whose
scores stay in a cache. All large arrays have queries as rows and keys as columns: gradients of keys
and values are made transposed, so that only small arrays are turned (XLA:CPU copies a transposed
factor of a batched product).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.ops.blocked import FAR, product, split_scale
from gptjax.ops.distances import Distances, Strip, at_columns, at_keys
from gptjax.ops.shards import backend

QUERIES = 64  # of a strip at least, where there are several
STRIPS = 4  # at most so many: more multiply less, but every one costs its start


class Terms(NamedTuple):
    """What is added to scores.

    bias_HTS: float32, the same in all rows. told_BHT2: float32, of keys of the query's type and of
    others; same_BTS: which are. distances: with the scale of scores, as content_HK, a bias of
    queries where they meet keys of content.
    """

    bias_HTS: jax.Array | None = None
    told_BHT2: jax.Array | None = None
    same_BTS: jax.Array | None = None
    distances: Distances | None = None
    content_HK: jax.Array | None = None


def strips_of(queries: int, keys: int, reads=None) -> tuple[Strip, ...]:
    """Strips of queries, each with the keys it can reach; reads: bool [queries, keys] or all."""
    size, strips = max(-(-queries // STRIPS), QUERIES), []
    for start in range(0, queries, size):
        stop, first, last = min(start + size, queries), 0, keys
        if reads is not None:
            reached = np.flatnonzero(reads[start:stop].any(0))
            first, last = (int(reached[0]), int(reached[-1]) + 1) if len(reached) else (0, 1)
        strips.append((start, stop, first, last))
    return tuple(strips)


def masked_attention(
    q_BTHK,
    k_BSGK,
    v_BSGK,
    mask,
    scale: float,
    terms: Terms = Terms(),  # noqa: B008 (a tuple of None)
    strips: tuple[Strip, ...] | None = None,
):
    """[B, T, H, K] in q's dtype.

    mask: bool [B or 1, T or 1, S], None for all. strips: by default those of all keys. A query that
    reads no key gets the mean of the values that its strip reaches.
    """
    dtype = q_BTHK.dtype
    strips = strips or strips_of(q_BTHK.shape[1], k_BSGK.shape[1])
    arrays = (q_BTHK, k_BSGK, v_BSGK, terms)
    if dtype.itemsize < 4 and backend() == "cpu":  # XLA:CPU lacks some products of halves
        arrays = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == dtype else x, arrays)
    return _attention((scale, strips), *arrays, mask).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how, q_BTHK, k_BSGK, v_BSGK, terms, mask):
    return _forward(how, q_BTHK, k_BSGK, v_BSGK, terms, mask)[0]


class _Factors(NamedTuple):
    """What scores are products of, heads before rows; keys as [..., K, S], and `rest` of the scale.

    q_HBTK meets keys of content, places_HBTK those of distances.
    """

    q_HBTK: jax.Array
    k_HBKS: jax.Array
    places_HBTK: jax.Array | None
    keys_HKL: jax.Array | None
    rest: float


def _factors(scale, q_BTHK, k_BSGK, terms: Terms) -> _Factors:
    heads, dtype = q_BTHK.shape[2], q_BTHK.dtype
    share, rest = split_scale(scale, dtype)
    q, places, keys = q_BTHK, None, None
    if terms.content_HK is not None:
        q = q + terms.content_HK[None, None]
    if terms.distances is not None:
        places = q_BTHK + terms.distances.bias_HK[None, None]
        places = _heads_first(places, heads) * jnp.asarray(share, dtype)
        keys = terms.distances.keys_LHK.transpose(1, 2, 0)
    q = _heads_first(q, heads) * jnp.asarray(share, dtype)
    return _Factors(q, _turned(_heads_first(k_BSGK, heads)), places, keys, rest)


def _scores(factors: _Factors, terms: Terms, mask, strip: Strip):
    """[H, B, C, S] of a strip, in float32."""
    start, stop, first, last = strip
    q, k = factors.q_HBTK[:, :, start:stop], factors.k_HBKS[..., first:last]
    scores = product("hbck,hbks->hbcs", q, k)
    if terms.distances is not None:
        column, count = terms.distances.columns(strip, factors.q_HBTK.shape[2])
        keys = factors.keys_HKL[..., column : column + count]
        wide = product("hbck,hkl->hbcl", factors.places_HBTK[:, :, start:stop], keys)
        scores = scores + at_keys(wide, _begins(terms.distances, strip), last - first)
    scores = scores if factors.rest == 1 else factors.rest * scores
    if terms.bias_HTS is not None:
        scores = scores + terms.bias_HTS[:, None, start:stop, first:last]
    if terms.told_BHT2 is not None:
        told = terms.told_BHT2[:, :, start:stop].swapaxes(0, 1)
        same = terms.same_BTS[None, :, start:stop, first:last]
        scores = scores + jnp.where(same, told[..., :1], told[..., 1:])
    if mask is not None:
        rows = mask if mask.shape[1] == 1 else mask[:, start:stop]  # one row may be of all queries
        scores = jnp.where(rows[None, :, :, first:last], scores, FAR)
    return scores


def _forward(how, q_BTHK, k_BSGK, v_BSGK, terms, mask):
    scale, strips = how
    factors, v = _factors(scale, q_BTHK, k_BSGK, terms), _heads_first(v_BSGK, q_BTHK.shape[2])
    outs, sums = [], []
    for strip in strips:
        scores = _scores(factors, terms, mask, strip)
        top = jnp.max(scores, -1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, -1, keepdims=True)
        values = v[:, :, strip[2] : strip[3]]
        out = product("hbcs,hbsk->hbck", weights.astype(v.dtype), values) / total
        reads = top > FAR / 2  # a query that reads nothing gets 0, and so do all gradients of it
        outs.append(jnp.where(reads, out, 0.0))
        sums.append(jnp.where(reads, top + jnp.log(total), 0.0))
    out_BTHK = _heads_last(jnp.concatenate(outs, 2)).astype(q_BTHK.dtype)
    return out_BTHK, (q_BTHK, k_BSGK, v_BSGK, terms, mask, out_BTHK, jnp.concatenate(sums, 2))


def _backward(how, kept, g_BTHK):
    q_BTHK, k_BSGK, v_BSGK, terms, mask, out_BTHK, logsum = kept
    (scale, strips), heads, dtype = how, q_BTHK.shape[2], q_BTHK.dtype
    factors = _factors(scale, q_BTHK, k_BSGK, terms)
    g, out = _heads_first(g_BTHK, heads), _heads_first(out_BTHK, heads)
    radial = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)
    k, v_turned = _turned(factors.k_HBKS), _turned(_heads_first(v_BSGK, heads))
    g_turned, q_turned = _turned(g), _turned(factors.q_HBTK)
    dk, dv, dkeys = (
        None if x is None else jnp.zeros(x.shape, jnp.float32)
        for x in (factors.k_HBKS, v_turned, factors.keys_HKL)
    )
    dq, dplaces, dterms = [], [], []
    for strip in strips:
        start, stop, first, last = strip
        rows = (slice(None), slice(None), slice(start, stop))
        weights = jnp.exp(_scores(factors, terms, mask, strip) - logsum[rows])
        dweights = product("hbck,hbks->hbcs", g[rows], v_turned[..., first:last])
        dscores = weights * (dweights - radial[rows])
        dterms.append(_dterms(terms, strip, dscores))
        weights, dscores = weights.astype(dtype), dscores.astype(dtype)
        dv = _add(dv, product("hbkc,hbcs->hbks", g_turned[..., start:stop], weights), first)
        dk = _add(dk, product("hbkc,hbcs->hbks", q_turned[..., start:stop], dscores), first)
        dq.append(product("hbcs,hbsk->hbck", dscores, k[:, :, first:last]))
        if terms.distances is not None:
            column, count = terms.distances.columns(strip, q_BTHK.shape[1])
            wide = at_columns(dscores, _begins(terms.distances, strip), count)
            keys = _turned(factors.keys_HKL[..., column : column + count])
            dplaces.append(product("hbcl,hlk->hbck", wide, keys))
            part = product("hbck,hbcl->hkl", factors.places_HBTK[rows], wide)
            dkeys = _add(dkeys, part, column)
    dq = scale * jnp.concatenate(dq, 2)
    dbias, dtold = zip(*dterms, strict=True)
    found = Terms(
        bias_HTS=_laid(terms.bias_HTS, strips, dbias),
        told_BHT2=None if terms.told_BHT2 is None else jnp.concatenate(dtold, 2),
        content_HK=None if terms.content_HK is None else _of_heads(dq, dtype),
    )
    if terms.distances is not None:
        dplaces = scale * jnp.concatenate(dplaces, 2)
        dkeys = (factors.rest * dkeys).transpose(2, 0, 1).astype(dtype)
        found = found._replace(distances=Distances(dkeys, _of_heads(dplaces, dtype)))
        dq = dq + dplaces
    dk = _grouped(_turned(factors.rest * dk), k_BSGK)
    return _heads_last(dq).astype(dtype), dk, _grouped(_turned(dv), v_BSGK), found, None


def _dterms(terms: Terms, strip: Strip, dscores):
    """Of a strip, the gradients of the bias [H, C, S] and of what types tell [B, H, C, 2]."""
    dbias = dtold = None
    heads, batch, *pairs = dscores.shape
    if terms.bias_HTS is not None:
        # As a product: XLA:CPU adds up an axis that is not the last slowly.
        ones, flat = jnp.ones(batch, jnp.float32), dscores.reshape(heads, batch, -1)
        dbias = product("b,hbx->hx", ones, flat).reshape(heads, *pairs)
    if terms.told_BHT2 is not None:
        same = terms.same_BTS[None, :, strip[0] : strip[1], strip[2] : strip[3]]
        dtold = [jnp.sum(jnp.where(which, dscores, 0.0), -1) for which in (same, ~same)]
        dtold = jnp.stack(dtold, -1).swapaxes(0, 1)
    return dbias, dtold


def _laid(like, strips: tuple[Strip, ...], parts):
    """The parts of strips as one array, zeros where no strip reaches."""
    if like is None:
        return None
    whole = jnp.zeros(like.shape, jnp.float32)
    for (start, stop, first, last), part in zip(strips, parts, strict=True):
        whole = whole.at[:, start:stop, first:last].set(part)
    return whole


def _begins(distances: Distances, strip: Strip):
    begins_BT = distances.begins_BT
    return None if begins_BT is None else begins_BT[:, strip[0] : strip[1]]


def _add(total, part, first: int):
    """The part added to the columns from the first on."""
    if part.shape == total.shape:
        return total + part
    return total.at[..., first : first + part.shape[-1]].add(part)


def _turned(x):
    return jnp.swapaxes(x, -1, -2)


def _heads_first(x_BSGK, heads: int):
    """[H, B, S, K]; what several heads share is repeated."""
    x_GBSK = x_BSGK.transpose(2, 0, 1, 3)
    return x_GBSK if len(x_GBSK) == heads else jnp.repeat(x_GBSK, heads // len(x_GBSK), 0)


def _heads_last(x_HBTK):
    return x_HBTK.transpose(1, 2, 0, 3)


def _grouped(x_HBSK, like_BSGK):
    """The inverse of `_heads_first`, of a gradient: the sum over heads that share."""
    x_GRBSK = x_HBSK.reshape(like_BSGK.shape[2], -1, *x_HBSK.shape[1:])
    x_GBSK = x_HBSK if x_GRBSK.shape[1] == 1 else jnp.sum(x_GRBSK, 1)
    return _heads_last(x_GBSK).astype(like_BSGK.dtype)


def _of_heads(x_HBTK, dtype):
    """[H, K]: the sum over rows and queries."""
    return jnp.sum(x_HBTK, (1, 2)).astype(dtype)


_attention.defvjp(_forward, _backward)
