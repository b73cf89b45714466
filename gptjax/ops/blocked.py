"""Exact attention by blocks, for any pattern, in plain XLA, with its own gradient.

Every part of a pattern (`ops/parts.py`) becomes batched products over strips of queries and the
keys that a strip can reach; the parts are merged by their log-sum-exp. Kept for the gradient are
the output and one log-sum-exp a row, and the probabilities are computed again (arXiv 2205.14135):
under the log-sum-exp of the whole row those of a part are final, so parts need no second merge.
A strip sees all its keys at once, so unlike its source it needs no running maximum. Sums are
float32 whatever the inputs are.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.ops.strips import Work, works

FAR = -1e30  # a finite minus infinity: exp gives 0 and differences give no NaN
CHUNK_BYTES = 1 << 25  # of scores that one batched product may make


def _masked(work: Work, strip, scores, extras, transposed: bool):
    """Scores [P, B, G, R, C, S], or [P, B, G, S, R, C], with ALiBi and the mask."""
    start, stop, first, last = strip
    q_places, k_places = np.arange(start, stop), np.arange(first, last)
    turn = (lambda x: jnp.swapaxes(x, -1, -2)) if transposed else (lambda x: x)
    wide = (lambda x: x[..., None, :]) if transposed else (lambda x: x[..., None, :, :])
    mask = work.rule.mask(jnp.asarray(q_places)[:, None], jnp.asarray(k_places)[None, :])
    mask = wide(turn(mask)[None, None, None])
    positions, segments, slopes_GR = extras
    q_at, k_at = positions[0][:, start:stop, None], positions[1][:, None, first:last]
    if work.filled:
        mask = mask & wide(turn(jnp.broadcast_to(k_at >= 0, (len(k_at), 1, last - first)))
                           [:, None, None])  # fmt: skip
    if work.part.order == "positions":
        mask = mask & wide(turn(q_at >= k_at)[:, None, None])
    if segments is not None:
        same = segments[0][..., start:stop, None] == segments[1][..., None, first:last]
        mask = mask & wide(turn(same)[:, :, None])
    if slopes_GR is not None:
        apart = turn((k_at - q_at).astype(jnp.float32))[:, None, None]
        slopes = slopes_GR[None, None, :, None, :, None] if transposed else (
            slopes_GR[None, None, :, :, None, None])  # fmt: skip
        scores = scores - slopes * wide(jnp.abs(apart))
    return jnp.where(mask, scores, FAR)


def _groups_first(x):
    """[B, G, (R,) P, L, K] as [P, B, G, (R,) L, K]."""
    return jnp.moveaxis(x, -3, 0)


def _groups_back(x):
    return jnp.moveaxis(x, 0, -3)


def _extras(work: Work, segments_BT, slopes_GR):
    """Positions [P, L] and segments [P, B, L] of queries and keys, and the slopes."""
    positions = (jnp.asarray(work.queries), jnp.asarray(work.keys))
    if segments_BT is None:
        return positions, None, slopes_GR
    x = segments_BT[..., None]
    take = lambda f, **fill: jnp.moveaxis(f(x, **fill), -3, 0)[..., 0]
    return positions, (take(work.take_queries, fill=0), take(work.take_keys)), slopes_GR


product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _part_forward(work: Work, q, k, v, extras, rest: float):
    """q [P, B, G, R, L, K], k and v [P, B, G, S, K]: output float32 and log-sum-exp [..., L, 1].

    rest: what scores are still to be multiplied by (`split_scale`).
    """
    outs, sums, done = [], [], 0
    dims = (*q.shape[:4],)
    for strip in work.strips:
        start, stop, first, last = strip
        if start > done:
            outs.append(jnp.zeros((*dims, start - done, v.shape[-1]), jnp.float32))
            sums.append(jnp.full((*dims, start - done, 1), FAR, jnp.float32))
        scores = product("pbgrck,pbgsk->pbgrcs", q[..., start:stop, :], k[..., first:last, :])
        scores = scores if rest == 1 else rest * scores
        scores = _masked(work, strip, scores, extras, transposed=False)
        top = jnp.max(scores, -1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, -1, keepdims=True)
        out = product("pbgrcs,pbgsk->pbgrck", weights.astype(v.dtype), v[..., first:last, :])
        outs.append(out / total)
        sums.append(top + jnp.log(total))
        done = stop
    if done < q.shape[-2]:
        outs.append(jnp.zeros((*dims, q.shape[-2] - done, v.shape[-1]), jnp.float32))
        sums.append(jnp.full((*dims, q.shape[-2] - done, 1), FAR, jnp.float32))
    return jnp.concatenate(outs, -2), jnp.concatenate(sums, -2)


def _part_backward(work: Work, q, k, v, g, logsum, radial, extras, rest: float):
    """Gradients of q, k, v of a part, laid out as they are; works on transposed scores.

    [P, B, G, S, (R, C)]: then only small arrays need transposing. XLA:CPU copies a transposed
    factor of a batched product; these would be the largest arrays.
    """
    dk, dv = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    kt = jnp.swapaxes(k, -1, -2)
    dqs, done, dtype = [], 0, q.dtype
    for strip in work.strips:
        start, stop, first, last = strip
        if start > done:
            dqs.append(jnp.zeros((*q.shape[:4], start - done, q.shape[-1]), jnp.float32))
        rows = (Ellipsis, slice(start, stop), slice(None))
        keys, values = k[..., first:last, :], v[..., first:last, :]
        scores = product("pbgsk,pbgrck->pbgsrc", keys, q[rows])
        scores = scores if rest == 1 else rest * scores
        scores = _masked(work, strip, scores, extras, transposed=True)
        weights = jnp.exp(scores - logsum[rows][..., 0][:, :, :, None])
        dweights = product("pbgsk,pbgrck->pbgsrc", values, g[rows])
        dscores = (weights * (dweights - radial[rows][..., 0][:, :, :, None])).astype(dtype)
        dq = product("pbgks,pbgsrc->pbgkrc", kt[..., first:last], dscores)
        dqs.append(jnp.moveaxis(dq, 3, -1))
        dk = _add_rows(dk, product("pbgsrc,pbgrck->pbgsk", dscores, q[rows]), first)
        dv = _add_rows(dv, product("pbgsrc,pbgrck->pbgsk", weights.astype(dtype), g[rows]), first)
        done = stop
    if done < q.shape[-2]:
        dqs.append(jnp.zeros((*q.shape[:4], q.shape[-2] - done, q.shape[-1]), jnp.float32))
    return jnp.concatenate(dqs, -2), dk, dv


def _add_rows(total, part, first: int):
    """Adds the part to the rows of the total from `first` on."""
    if part.shape == total.shape:
        return total + part
    rows = jax.lax.slice_in_dim(total, first, first + part.shape[-2], axis=-2 % total.ndim)
    return jax.lax.dynamic_update_slice_in_dim(total, rows + part, first, axis=-2 % total.ndim)


def _chunked(function, work: Work, arrays, extras):
    """`function(work, *arrays, extras)` over the groups, some at a time when scores are large."""
    groups, scores = len(work.queries), 0
    for start, stop, first, last in work.strips:
        scores = max(scores, 4 * (stop - start) * (last - first))
    per_group = scores * math.prod(arrays[0].shape[1:4])
    if groups == 1 or groups * per_group <= CHUNK_BYTES:
        return function(work, *arrays, extras)
    size = max(CHUNK_BYTES // per_group, 1)
    positions, segments, slopes = extras

    def one(x):
        arrays, positions, segments = jax.tree.map(lambda leaf: leaf[None], x)
        found = function(work, *arrays, (positions, segments, slopes))
        return jax.tree.map(lambda leaf: leaf[0], found)

    return jax.lax.map(one, (arrays, positions, segments), batch_size=size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def blocked(pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H):
    """Attention [B, T, H, K] of a pattern; see `ops.attention.attention` for the arguments."""
    return _forward(pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H)[0]


def _forward(pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H):
    chosen = works(pattern, q_BTHK.shape[1])
    out, logsum = forward_of(chosen, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H)
    out_BTHK = out.astype(q_BTHK.dtype)
    return out_BTHK, (q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H, out_BTHK, logsum)


def forward_of(chosen, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H):
    """Attention over some parts, and its log-sum-exp: float32 [B, T, H, K] and [B, G, R, T, 1].

    A query that reads nothing in them gets zeros and FAR.
    """
    groups, length = k_BSGK.shape[2], q_BTHK.shape[1]
    share, rest = split_scale(scale, q_BTHK.dtype)
    q = heads_first(q_BTHK, groups) * jnp.asarray(share, q_BTHK.dtype)
    k, v = k_BSGK.transpose(0, 2, 1, 3), v_BSGK.transpose(0, 2, 1, 3)
    slopes = None if slopes_H is None else slopes_H.reshape(groups, -1)
    out = logsum = None
    for work in chosen:
        arrays = (
            _groups_first(work.take_queries(q)),
            _groups_first(work.take_keys(k)),
            _groups_first(work.take_keys(v)),
        )
        one = functools.partial(_part_forward, rest=rest)
        found = _chunked(one, work, arrays, _extras(work, segments_BT, slopes))
        part = work.put_queries(_groups_back(found[0]), length)
        part_sum = work.put_queries(_groups_back(found[1]), length, FAR)
        if out is None:
            out, logsum = part, part_sum
            continue
        both = jnp.logaddexp(logsum, part_sum)
        out = out * jnp.exp(logsum - both) + part * jnp.exp(part_sum - both)
        logsum = both
    return heads_last(out), logsum


def _backward(pattern, scale, kept, g_BTHK):
    q_BTHK, k_BSGK, v_BSGK, _, slopes_H, _, _ = kept
    chosen = works(pattern, q_BTHK.shape[1])
    dq, dk, dv = backward_of(chosen, scale, *kept, g_BTHK)
    dq, dk, dv = dq.astype(q_BTHK.dtype), dk.astype(k_BSGK.dtype), dv.astype(v_BSGK.dtype)
    return dq, dk, dv, None, None if slopes_H is None else jnp.zeros_like(slopes_H)


def backward_of(
    chosen, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H, out_BTHK, logsum, g_BTHK
):
    """Float32 gradients of q, k, v through some parts, given what the whole row came to."""
    groups, dtype, length = k_BSGK.shape[2], q_BTHK.dtype, q_BTHK.shape[1]
    share, rest = split_scale(scale, dtype)
    q = heads_first(q_BTHK, groups) * jnp.asarray(share, dtype)
    k, v = k_BSGK.transpose(0, 2, 1, 3), v_BSGK.transpose(0, 2, 1, 3)
    g, out = heads_first(g_BTHK, groups), heads_first(out_BTHK, groups)
    radial = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)
    slopes = None if slopes_H is None else slopes_H.reshape(groups, -1)
    dq = dk = dv = 0.0
    for work in chosen:
        arrays = (
            _groups_first(work.take_queries(q)),
            _groups_first(work.take_keys(k)),
            _groups_first(work.take_keys(v)),
            _groups_first(work.take_queries(g)),
            _groups_first(work.take_queries(logsum, -FAR)),  # no weight where filled up
            _groups_first(work.take_queries(radial)),
        )
        one = functools.partial(_part_backward, rest=rest)
        found = _chunked(one, work, arrays, _extras(work, segments_BT, slopes))
        dq = dq + work.put_queries(_groups_back(found[0]), length)
        dk = dk + work.put_keys(_groups_back(found[1]), length)
        dv = dv + work.put_keys(_groups_back(found[2]), length)
    dk = dk if rest == 1 else rest * dk
    return heads_last(dq) * scale, dk.transpose(0, 2, 1, 3), dv.transpose(0, 2, 1, 3)


blocked.defvjp(_forward, _backward)


def split_scale(scale: float, dtype) -> tuple[float, float]:
    """The share of the scale that queries are multiplied by, and the rest, which scores are.

    Few queries cost less to scale than many scores, but halves would be rounded a second time:
    theirs is a power of two.
    """
    if jnp.dtype(dtype).itemsize > 2:
        return scale, 1.0
    share = 2.0 ** round(math.log2(scale)) if scale > 0 else 1.0
    return share, scale / share


def heads_first(q_BTHK, groups: int):
    """[B, T, H, K] as [B, G, R, T, K]."""
    batch, length, heads, size = q_BTHK.shape
    return q_BTHK.reshape(batch, length, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)


def heads_last(x_BGRTK):
    """[B, G, R, T, K] as [B, T, H, K]."""
    batch, groups, repeats, length, size = x_BGRTK.shape
    return x_BGRTK.transpose(0, 3, 1, 2, 4).reshape(batch, length, groups * repeats, size)
