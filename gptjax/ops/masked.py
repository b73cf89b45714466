"""Softmax attention of all pairs under a mask, with a bias of its own, and its own gradient.

For what no pattern can say: prefixes that differ from row to row, ranks, filled-up sources, scores
of distances, another sequence. Kept for the gradient are the output and one log-sum-exp a row, as
in `ops/blocked.py`, and the scores are computed again, transposed.
"""

import functools

import jax
import jax.numpy as jnp

from gptjax.ops.blocked import FAR, heads_first, heads_last, product, split_scale
from gptjax.ops.shards import backend


def masked_attention(q_BTHK, k_BSGK, v_BSGK, mask, scale: float, bias_BHTS=None):
    """[B, T, H, K] in q's dtype.

    mask: bool [B or 1, T, S], None for all; bias: float32 [B or 1, H, T, S], added to the scores.
    A query that reads no key gets the mean of all values.
    """
    dtype = q_BTHK.dtype
    if dtype.itemsize < 4 and backend() == "cpu":  # XLA:CPU lacks some products of halves
        q_BTHK, k_BSGK, v_BSGK = (x.astype(jnp.float32) for x in (q_BTHK, k_BSGK, v_BSGK))
    if bias_BHTS is not None:
        groups = k_BSGK.shape[2]
        rows, _, count, keys = bias_BHTS.shape
        bias_BHTS = bias_BHTS.reshape(rows, groups, -1, count, keys)
    return _attention(scale, q_BTHK, k_BSGK, v_BSGK, mask, bias_BHTS).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(scale, q_BTHK, k_BSGK, v_BSGK, mask, bias):
    return _forward(scale, q_BTHK, k_BSGK, v_BSGK, mask, bias)[0]


def _inputs(scale, q_BTHK, k_BSGK, v_BSGK):
    share, rest = split_scale(scale, q_BTHK.dtype)
    q = heads_first(q_BTHK, k_BSGK.shape[2]) * jnp.asarray(share, q_BTHK.dtype)
    return q, k_BSGK.transpose(0, 2, 1, 3), v_BSGK.transpose(0, 2, 1, 3), rest


def _forward(scale, q_BTHK, k_BSGK, v_BSGK, mask, bias):
    q, k, v, rest = _inputs(scale, q_BTHK, k_BSGK, v_BSGK)
    scores = product("bgrtk,bgsk->bgrts", q, k)
    scores = scores if rest == 1 else rest * scores
    scores = scores if bias is None else scores + bias
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, FAR)
    top = jnp.max(scores, -1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, -1, keepdims=True)
    out = product("bgrts,bgsk->bgrtk", weights.astype(v.dtype), v) / total
    out_BTHK = heads_last(out).astype(q_BTHK.dtype)
    return out_BTHK, (q_BTHK, k_BSGK, v_BSGK, mask, bias, out_BTHK, top + jnp.log(total))


def _backward(scale, kept, g_BTHK):
    q_BTHK, k_BSGK, v_BSGK, mask, bias, out_BTHK, logsum = kept
    q, k, v, rest = _inputs(scale, q_BTHK, k_BSGK, v_BSGK)
    groups, dtype = k.shape[1], q.dtype
    g, out = heads_first(g_BTHK, groups), heads_first(out_BTHK, groups)
    radial = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), -1)
    scores = product("bgsk,bgrtk->bgsrt", k, q)
    scores = scores if rest == 1 else rest * scores
    if bias is not None:
        scores = scores + bias.transpose(0, 1, 4, 2, 3)
    if mask is not None:
        scores = jnp.where(mask.swapaxes(1, 2)[:, None, :, None], scores, FAR)
    weights = jnp.exp(scores - logsum[..., 0][:, :, None])
    dweights = product("bgsk,bgrtk->bgsrt", v, g)
    dscores = weights * (dweights - radial[:, :, None])
    dbias = None
    if bias is not None:
        dbias = dscores if bias.shape[0] > 1 else _summed(dscores)
        dbias = dbias.transpose(0, 1, 3, 4, 2)
    dscores = dscores.astype(dtype)
    dq = jnp.moveaxis(product("bgks,bgsrt->bgkrt", k.swapaxes(-1, -2), dscores), 2, -1)
    dk = product("bgsrt,bgrtk->bgsk", dscores, q)
    dv = product("bgsrt,bgrtk->bgsk", weights.astype(dtype), g)
    dk = dk if rest == 1 else rest * dk
    dq_BTHK = heads_last(dq * scale).astype(dtype)
    dk_BSGK, dv_BSGK = (
        x.transpose(0, 2, 1, 3).astype(like.dtype) for x, like in ((dk, k_BSGK), (dv, v_BSGK))
    )
    return dq_BTHK, dk_BSGK, dv_BSGK, None, dbias


def _summed(x):
    """The sum over rows, as a product: XLA:CPU adds up the first axis of an array slowly."""
    rows = len(x)
    return (jnp.ones((1, rows), x.dtype) @ x.reshape(rows, -1)).reshape(1, *x.shape[1:])


_attention.defvjp(_forward, _backward)
