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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.ops.parts import Band, Part
from gptjax.ops.patterns.base import HeadPattern

FAR = -1e30  # a finite minus infinity: exp gives 0 and differences give no NaN
STRIPS = 16  # at most so many in a triangle: more multiply less, but every one costs its start
BAND_WASTE = 1.5  # a band may multiply so many times the pairs that strips do
CHUNK_BYTES = 1 << 25  # of scores that one batched product may make


class Work(NamedTuple):
    """A part ready to be multiplied: arrays [..., T, K] in groups, cut into strips.

    places of queries and keys in the sequence: int32 [groups, places], -1 where filled up.
    """

    part: Part
    rule: object
    band: tuple[int, int, int] | None  # block, blocks before, blocks after
    queries: np.ndarray
    keys: np.ndarray
    strips: tuple[tuple[int, int, int, int], ...]  # queries [start, stop), keys [first, last)
    filled: bool  # the rule alone would let a query read a place that is filled up

    def take_queries(self, x, fill=0.0):
        """[..., T, K] as [..., groups, places, K]."""
        x = self.part.queries.take(x, fill)
        return x if self.band is None else _cut(x, self.band[0], fill)

    def put_queries(self, x, length: int, fill=0.0):
        """The inverse; positions of no group get `fill`."""
        if self.band is not None:
            x = _joined(x, self.band[0], self._places(self.part.queries, length))
        return self.part.queries.put(x, length, fill)

    def take_keys(self, x):
        """[..., T, K] as [..., groups, places, K]."""
        x = self.part.keys.take(x, 0)
        return x if self.band is None else _overlapping(x, *self.band)

    def put_keys(self, x, length: int):
        """The inverse of a gradient: what stands in several groups is added."""
        if self.band is not None:
            x = _added(x, *self.band, self._places(self.part.keys, length))
        return self.part.keys.put(x, length, 0.0)

    @staticmethod
    def _places(layout, length: int) -> int:
        return layout.positions(length).shape[1]


def _cut(x, block: int, fill):
    """[..., P, L, K] as [..., P L / block, block, K], filled up."""
    lead, (groups, places, size) = x.shape[:-3], x.shape[-3:]
    blocks = -(-places // block)
    xp = np if isinstance(x, np.ndarray) else jnp
    widths = [(0, 0)] * (x.ndim - 2) + [(0, blocks * block - places), (0, 0)]
    x = xp.pad(x, widths, constant_values=fill) if blocks * block > places else x
    return x.reshape(*lead, groups * blocks, block, size)


def _joined(x, block: int, places: int):
    """The inverse of `_cut`."""
    blocks = -(-places // block)
    x = x.reshape(*x.shape[:-3], -1, blocks * block, x.shape[-1])
    return x[..., :places, :]


def _overlapping(x, block: int, before: int, after: int, fill=0.0):
    """[..., P, L, K] as [..., P L / block, (before + 1 + after) block, K]: every block between
    its neighbours."""
    lead, (groups, places, size) = x.shape[:-3], x.shape[-3:]
    blocks = -(-places // block)
    xp = np if isinstance(x, np.ndarray) else jnp
    widths = [(0, 0)] * (x.ndim - 2)
    widths += [(before * block, (blocks + after) * block - places), (0, 0)]
    x = xp.pad(x, widths, constant_values=fill)
    x = x.reshape(*lead, groups, blocks + before + after, block, size)
    shifted = [x[..., i : i + blocks, :, :] for i in range(before + 1 + after)]
    x = xp.concatenate(shifted, axis=-2)
    return x.reshape(*lead, groups * blocks, -1, size)


def _added(x, block: int, before: int, after: int, places: int):
    """The transpose of `_overlapping`."""
    blocks, lead, size = -(-places // block), x.shape[:-3], x.shape[-1]
    x = x.reshape(*lead, -1, blocks, before + 1 + after, block, size)
    total = 0.0
    for i in range(before + 1 + after):
        widths = [(0, 0)] * (x.ndim - 4) + [(i, before + after - i), (0, 0), (0, 0)]
        total = total + jnp.pad(x[..., i, :, :], widths)
    total = total[..., before : before + blocks, :, :]
    return total.reshape(*total.shape[:-3], blocks * block, size)[..., :places, :]


@functools.lru_cache(maxsize=256)
def works(pattern: HeadPattern, length: int) -> tuple[Work, ...]:
    """What the blocked kernel multiplies for a pattern."""
    return tuple(_work(part, length) for part in pattern.parts(length))


def _work(part: Part, length: int) -> Work:
    queries, keys = part.queries.positions(length), part.keys.positions(length)
    rule, places = part.rule, queries.shape[1]
    strips = _strips(rule, places, keys.shape[1], block_size(places))
    band = _band(rule, places) if queries.shape == keys.shape else None
    if band is not None:
        block, before, after = band
        wide = (before + 1 + after) * block
        # A band multiplies what is filled up at both ends, too, but in one product.
        if -(-places // block) * block * wide <= BAND_WASTE * _strip_pairs(strips):
            rule = Band(rule.low - before * block, rule.high - before * block)
            queries = _cut(queries[..., None], block, -1)[..., 0]
            keys = _overlapping(keys[..., None], *band, fill=-1)[..., 0]
            strips = _strips(rule, block, wide, block)
        else:
            band = None
    # Places filled up at the end stay behind whatever a real query of a causal rule reads.
    behind = band is None and getattr(rule, "low", None) is not None and rule.low >= 0
    filled = bool((keys < 0).any()) and not (behind and type(part.keys) is type(part.queries))
    return Work(part, rule, band, queries, keys, tuple(strips), filled)


def _band(rule, places: int) -> tuple[int, int, int] | None:
    """The block of a band, blocks before and after; None for other rules and short sequences."""
    if not isinstance(rule, Band) or rule.low is None or rule.high is None:
        return None
    block = band_block(rule.high - rule.low + 1)
    if places <= 2 * block:
        return None
    return block, -(-max(rule.high, 0) // block), -(-max(-rule.low, 0) // block)


def _strips(rule, places: int, keys: int, size: int) -> list[tuple[int, int, int, int]]:
    """Strips of `size` queries, each with the keys that it can reach; empty ones are left out."""
    edges = [(start, min(start + size, places)) for start in range(0, places, size)]
    found = [(*edge, *rule.key_range(*edge, keys)) for edge in edges]
    return [strip for strip in found if strip[3] > strip[2]]


def _strip_pairs(strips) -> int:
    return sum((stop - start) * (last - first) for start, stop, first, last in strips)


def block_size(length: int) -> int:
    """Queries in a strip; at most STRIPS strips. Measured on CPUs."""
    return max(64 if length <= 256 else 128, 64 * math.ceil(length / (STRIPS * 64)))


def band_block(width: int) -> int:
    """Queries in a block of a band of so many keys."""
    return max(min(64 * math.ceil(width / 128), 256), 32)


def multiplied(pattern: HeadPattern, length: int) -> int:
    """Query-key pairs that the kernel multiplies per head and sequence, those it masks included."""
    return multiplied_by(works(pattern, length))


def multiplied_by(chosen: tuple[Work, ...]) -> int:
    """The pairs of some parts."""
    return sum(len(work.queries) * _strip_pairs(work.strips) for work in chosen)


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
        scores = scores + slopes * wide(apart)
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


def _part_forward(work: Work, q, k, v, extras):
    """q [P, B, G, R, L, K], k and v [P, B, G, S, K]: output float32 and log-sum-exp [..., L, 1]."""
    outs, sums, done = [], [], 0
    dims = (*q.shape[:4],)
    for strip in work.strips:
        start, stop, first, last = strip
        if start > done:
            outs.append(jnp.zeros((*dims, start - done, v.shape[-1]), jnp.float32))
            sums.append(jnp.full((*dims, start - done, 1), FAR, jnp.float32))
        scores = product("pbgrck,pbgsk->pbgrcs", q[..., start:stop, :], k[..., first:last, :])
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


def _part_backward(work: Work, q, k, v, g, logsum, radial, extras):
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
    q = _heads_first(q_BTHK, groups) * jnp.asarray(scale, q_BTHK.dtype)
    k, v = k_BSGK.transpose(0, 2, 1, 3), v_BSGK.transpose(0, 2, 1, 3)
    slopes = None if slopes_H is None else slopes_H.reshape(groups, -1)
    out = logsum = None
    for work in chosen:
        arrays = (
            _groups_first(work.take_queries(q)),
            _groups_first(work.take_keys(k)),
            _groups_first(work.take_keys(v)),
        )
        found = _chunked(_part_forward, work, arrays, _extras(work, segments_BT, slopes))
        part = work.put_queries(_groups_back(found[0]), length)
        part_sum = work.put_queries(_groups_back(found[1]), length, FAR)
        if out is None:
            out, logsum = part, part_sum
            continue
        both = jnp.logaddexp(logsum, part_sum)
        out = out * jnp.exp(logsum - both) + part * jnp.exp(part_sum - both)
        logsum = both
    return _heads_last(out), logsum


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
    q = _heads_first(q_BTHK, groups) * jnp.asarray(scale, dtype)
    k, v = k_BSGK.transpose(0, 2, 1, 3), v_BSGK.transpose(0, 2, 1, 3)
    g, out = _heads_first(g_BTHK, groups), _heads_first(out_BTHK, groups)
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
        found = _chunked(_part_backward, work, arrays, _extras(work, segments_BT, slopes))
        dq = dq + work.put_queries(_groups_back(found[0]), length)
        dk = dk + work.put_keys(_groups_back(found[1]), length)
        dv = dv + work.put_keys(_groups_back(found[2]), length)
    return _heads_last(dq) * scale, dk.transpose(0, 2, 1, 3), dv.transpose(0, 2, 1, 3)


blocked.defvjp(_forward, _backward)


def _heads_first(q_BTHK, groups: int):
    """[B, T, H, K] as [B, G, R, T, K]."""
    batch, length, heads, size = q_BTHK.shape
    return q_BTHK.reshape(batch, length, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)


def _heads_last(x_BGRTK):
    """[B, G, R, T, K] as [B, T, H, K]."""
    batch, groups, repeats, length, size = x_BGRTK.shape
    return x_BGRTK.transpose(0, 3, 1, 2, 4).reshape(batch, length, groups * repeats, size)
