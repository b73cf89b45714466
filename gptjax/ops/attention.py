"""Softmax attention: one function for training, one for decoding, several kernels behind them.

`dense` is the plain masked softmax and the oracle. `blocked` computes the dense parts that a
pattern is made of, and nothing else (`ops/blocked.py`). On a CUDA GPU `cudnn` gives such parts to
cuDNN (`ops/cudnn.py`), on a TPU `splash` to splash attention (`ops/splash.py`); `block_list` is a
fused kernel for any pattern, by lists of blocks (`ops/block_list.py`). Which one runs is decided in
`ops/kernels.py`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from gptjax.errors import BadInput
from gptjax.ops.block_list import block_list
from gptjax.ops.blocked import FAR, blocked
from gptjax.ops.cudnn import cudnn
from gptjax.ops.kernels import choose_kernel
from gptjax.ops.masked import masked_attention
from gptjax.ops.patterns import Causal, Pattern
from gptjax.ops.shards import axes_of, backend, on_shards, reshard, spec_of
from gptjax.ops.splash import splash


def attention(
    q_BTHK,
    k_BSGK,
    v_BSGK,
    *,
    pattern: Pattern = Causal(),  # noqa: B008 (frozen)
    kernel: str = "auto",
    segments_BT=None,
    prefix_BT=None,
    slopes_H=None,
    scale: float | None = None,
):
    """Self-attention over whole sequences (S == T), [B, T, H, K] in q's dtype.

    segments_BT: integers; a query reads only keys of its own segment. prefix_BT: bool, keys that
    every query reads beside those of the pattern; only `dense` has them. slopes_H: ALiBi slopes,
    the score loses slope * |key position - query position| (arXiv 2108.12409); constants, no
    gradient flows into them. scale: of the scores, 1/sqrt(K) by default. BadInput when a forced
    kernel cannot do what is asked.
    """
    length, head_size = q_BTHK.shape[1], q_BTHK.shape[-1]
    if q_BTHK.shape[2] % k_BSGK.shape[2]:
        raise BadInput(f"{q_BTHK.shape[2]} heads are no multiple of {k_BSGK.shape[2]} kv heads")
    if k_BSGK.shape[1] != length:
        raise BadInput(f"attention needs as many keys as queries, not {k_BSGK.shape[1]}, {length}")
    if k_BSGK.shape != (len(q_BTHK), *v_BSGK.shape[1:3], head_size) or len(v_BSGK) != len(k_BSGK):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_BTHK, k_BSGK, v_BSGK))
        raise BadInput(f"queries, keys and values do not go together: their shapes are {shapes}")
    if prefix_BT is not None:
        if kernel not in ("auto", "dense"):
            raise BadInput(f"attention kernel {kernel!r} has no prefixes of rows; give dense")
        kernel = "dense"
    kernels = [
        choose_kernel(
            kernel,
            backend(),
            member,
            segments_BT is not None,
            slopes_H is not None,
            length,
            q_BTHK.dtype,
            head_size,
            v_BSGK.shape[-1],
        )
        for member in pattern.members
    ]
    scale = 1.0 / math.sqrt(head_size) if scale is None else scale
    q_BTHK, k_BSGK, v_BSGK, batch, heads, kv_heads = aligned(q_BTHK, k_BSGK, v_BSGK, len(kernels))
    whole, kv_whole = P(batch, None, heads, None), P(batch, None, kv_heads, None)
    arrays, specs = [q_BTHK, k_BSGK, v_BSGK], [whole, kv_whole, kv_whole]
    if segments_BT is not None:
        arrays, specs = [*arrays, segments_BT], [*specs, P(batch, None)]
    if prefix_BT is not None:
        arrays, specs = [*arrays, prefix_BT], [*specs, P(batch, None)]
    if slopes_H is not None:
        slopes_H = jax.lax.stop_gradient(jnp.asarray(slopes_H, jnp.float32))
        arrays, specs = [*arrays, slopes_H], [*specs, P(heads)]

    def run(q, k, v, *rest):
        rest = list(rest)
        segments = rest.pop(0) if segments_BT is not None else None
        prefix = {} if prefix_BT is None else {"prefix_BT": rest.pop(0)}
        slopes = rest.pop(0) if slopes_H is not None else None
        outs = []
        for place, (member, name) in enumerate(zip(pattern.members, kernels, strict=True)):
            *mine, own_slopes = _dealt(place, len(kernels), q, k, v, slopes)
            outs.append(LOCAL[name](member, scale, *mine, segments, own_slopes, **prefix))
        return _collected(outs, k.shape[2])

    return on_shards(run, tuple(specs), whole)(*arrays)


def cross_attention(
    q_BTHK, k_BSGK, v_BSGK, *, segments_BT=None, key_segments_BS=None, scale: float | None = None
):
    """Attention to another sequence, [B, T, H, K] in q's dtype.

    key_segments_BS: integers, of which none reads those below 0; with segments_BT a query reads
    only keys of its own segment.
    """
    scale = 1.0 / math.sqrt(q_BTHK.shape[-1]) if scale is None else scale
    q_BTHK, k_BSGK, v_BSGK, batch, heads, kv_heads = aligned(q_BTHK, k_BSGK, v_BSGK, 1)
    whole, kv_whole = P(batch, None, heads, None), P(batch, None, kv_heads, None)
    given = [x for x in (key_segments_BS, segments_BT) if x is not None]

    def run(q, k, v, *segments):
        mask = None
        if key_segments_BS is not None:
            mask = segments[0][:, None, :] >= 0
            if segments_BT is not None:
                mask = mask & (segments[1][:, :, None] == segments[0][:, None, :])
        return masked_attention(q, k, v, mask, scale)

    specs = (whole, kv_whole, kv_whole, *[P(batch, None)] * len(given))
    return on_shards(run, specs, whole)(q_BTHK, k_BSGK, v_BSGK, *given)


class Slots(NamedTuple):
    """Keys and values of earlier positions, as many as a pattern can still read.

    k, v: [B, G, S, K], so that the products of one new position read them as they lie; held: int32
    [S], the position in every slot, -1 while it is empty; slot: int32 [L], the slot of every
    position up to the longest sequence.
    """

    k: jax.Array
    v: jax.Array
    held: jax.Array
    slot: jax.Array


def _held(pattern: Pattern, length: int) -> tuple[int, np.ndarray]:
    """What `pattern.kept` says, or all positions where those need no more slots."""
    ring, kept = pattern.kept(length)
    if ring + len(kept) >= length:
        return 0, np.arange(length, dtype=np.int32)
    return ring, kept


def slots_of(pattern: Pattern, length: int) -> np.ndarray:
    """The slot of every position, int32 [length]: a ring, and after it what is held for good."""
    ring, kept = _held(pattern, length)
    slot = np.arange(length, dtype=np.int32) % max(ring, 1)
    slot[kept] = ring + np.arange(len(kept), dtype=np.int32)
    return slot


def decode_attention(
    q_BTHK,
    k_BTGK,
    v_BTGK,
    slots: Slots,
    *,
    pattern: Pattern,
    index,
    slopes_H=None,
    relative=None,
    scale=None,
    prefix_BT=None,
):
    """Attention of T new positions to themselves and to those in the slots: [B, T, H, K], slots.

    The new positions are index..index + T - 1; the slots that come back hold them, as far as the
    pattern can still read them. Once a position is in a ring's slot, none reads the one before.
    relative: what scores get from distances (`ops/relative.py`), of one pattern for all heads.
    prefix_BT: bool, those of the new positions that all of them read.
    """
    scale = 1.0 / math.sqrt(q_BTHK.shape[-1]) if scale is None else scale
    count, length = q_BTHK.shape[1], slots.slot.shape[0]
    new = jnp.asarray(index, jnp.int32) + jnp.arange(count, dtype=jnp.int32)
    ring, _ = _held(pattern, length)
    written = _write(slots, k_BTGK, v_BTGK, new, ring)
    keys, values, held = _by_position(written.k), _by_position(written.v), written.held
    if ring and count > 1:  # early ones of the new positions read what later ones take the slot of
        keys = jnp.concatenate([_by_position(slots.k), k_BTGK.astype(keys.dtype)], 1)
        values = jnp.concatenate([_by_position(slots.v), v_BTGK.astype(values.dtype)], 1)
        held = jnp.concatenate([slots.held, new])
    members = pattern.members
    q_BTHK, keys, values, batch, heads, kv_heads = aligned(q_BTHK, keys, values, len(members))
    whole, kv_whole = P(batch, None, heads, None), P(batch, None, kv_heads, None)
    arrays, specs = [q_BTHK, keys, values, new, held], [whole, kv_whole, kv_whole, P(None), P(None)]
    if slopes_H is not None:
        arrays, specs = [*arrays, jnp.asarray(slopes_H, jnp.float32)], [*specs, P(heads)]
    if relative is not None:
        arrays, specs = [*arrays, *relative], [*specs, *relative.specs(heads)]
    if prefix_BT is not None:
        arrays, specs = [*arrays, prefix_BT], [*specs, P(batch, None)]

    def run(q, k, v, new, held, *rest):
        rest = list(rest)
        prefix = None if prefix_BT is None else rest.pop()
        slopes = rest.pop(0) if slopes_H is not None else None
        outs, apart = [], (held[None, :] - new[:, None])[None]
        for place, member in enumerate(members):
            *mine, own_slopes = _dealt(place, len(members), q, k, v, slopes)
            mask = member.mask(new[:, None], held[None, :], length)[None]
            if prefix is not None:
                column = held - new[0]
                known = jnp.take(prefix, jnp.clip(column, 0, count - 1), axis=1)
                mask = mask | (known & (column >= 0)[None])[:, None, :]
            mask = mask & ((held >= 0) & (held <= new[-1]))[None, None, :]
            bias = None
            if relative is not None:
                from gptjax.ops.relative import at_distances

                terms = type(relative)(*rest)
                bias = at_distances(terms.bias(mine[0], scale), apart[0])
                mine[0] = terms.query(mine[0])
            outs.append(softmax_attention(*mine, mask, apart, own_slopes, scale, bias))
        return _collected(outs, k.shape[2])

    return on_shards(run, tuple(specs), whole)(*arrays), written


def _by_position(x_BGSK):
    """[B, S, G, K], or the inverse: a view, no copy, where a product reads it."""
    return jnp.swapaxes(x_BGSK, 1, 2)


def _write(slots: Slots, k_BTGK, v_BTGK, new, ring: int) -> Slots:
    """The slots with the new positions in them."""
    k_new, v_new = _by_position(k_BTGK), _by_position(v_BTGK)
    if ring == 0 or len(new) == 1:
        start = slots.slot[new[0]]
        put = lambda x, part, axis: jax.lax.dynamic_update_slice_in_dim(
            x, part.astype(x.dtype), start, axis
        )
        return Slots(put(slots.k, k_new, 2), put(slots.v, v_new, 2), put(slots.held, new, 0),
                     slots.slot)  # fmt: skip
    where = slots.slot[new]
    # Of several that share a place in the ring the last stays: the others go nowhere.
    where = jnp.where((where < ring) & (new + ring <= new[-1]), len(slots.held), where)
    held = slots.held.at[where].set(new, mode="drop")
    spec = P(*spec_of(slots.k))
    put = on_shards(
        lambda x, part, where: x.at[:, :, where].set(part.astype(x.dtype), mode="drop"),
        (spec, spec, P(None)),
        spec,
    )
    return Slots(put(slots.k, k_new, where), put(slots.v, v_new, where), held, slots.slot)


def _dealt(place: int, count: int, q_BTHK, k_BSGK, v_BSGK, slopes_H):
    """The heads that belong to one of `count` patterns (`Pattern.members`).

    Dealt out in turn, so that every shard of the heads holds as many of each.
    """
    if count == 1:
        return q_BTHK, k_BSGK, v_BSGK, slopes_H
    heads, groups = q_BTHK.shape[2], k_BSGK.shape[2]
    if heads // groups % count == 0:
        slopes_H = None if slopes_H is None else slopes_H[place::count]
        return q_BTHK[:, :, place::count], k_BSGK, v_BSGK, slopes_H
    if groups % count:
        raise _undealt(count, heads, groups)
    batch, length, _, size = q_BTHK.shape
    q = q_BTHK.reshape(batch, length, groups, -1, size)[:, :, place::count]
    if slopes_H is not None:
        slopes_H = slopes_H.reshape(groups, -1)[place::count].reshape(-1)
    q = q.reshape(batch, length, heads // count, size)
    return q, k_BSGK[:, :, place::count], v_BSGK[:, :, place::count], slopes_H


def _undealt(count: int, heads: int, groups: int) -> BadInput:
    return BadInput(
        f"{count} patterns cannot be dealt out to {heads} heads over {groups} key heads on every "
        "shard; give a multiple"
    )


def _collected(outs: list, groups: int):
    """The inverse of `_dealt`: [B, T, H, K] of all heads."""
    count = len(outs)
    if count == 1:
        return outs[0]
    batch, length, heads, size = outs[0].shape
    if heads * count // groups % count == 0:
        return jnp.stack(outs, 3).reshape(batch, length, heads * count, size)
    outs = [out.reshape(batch, length, groups // count, 1, -1, size) for out in outs]
    return jnp.concatenate(outs, 3).reshape(batch, length, heads * count, size)


def aligned(q_BTHK, k_BSGK, v_BSGK, count: int):
    """q, k, v ready to be cut into shards, and their batch, heads and kv heads mesh axes.

    When the kv heads are not sharded as the heads are (too few of them), each head gets its own
    copy, unless there is one for all, which every shard can hold. BadInput where `count` patterns
    would then go to other heads than without shards.
    """
    batch, heads = spec_of(q_BTHK)[0], spec_of(q_BTHK)[2]
    groups, repeats = k_BSGK.shape[2], q_BTHK.shape[2] // k_BSGK.shape[2]
    if axes_of(spec_of(k_BSGK)[2]) == axes_of(heads):
        return q_BTHK, k_BSGK, v_BSGK, batch, heads, heads
    plain = P(batch, None, None, None)
    k_BSGK, v_BSGK = reshard(k_BSGK, plain), reshard(v_BSGK, plain)
    if groups == 1:
        return q_BTHK, k_BSGK, v_BSGK, batch, heads, None
    if repeats > 1 and repeats % count:
        raise _undealt(count, q_BTHK.shape[2], groups)
    which = [head // repeats for head in range(q_BTHK.shape[2])]
    k_BSHK, v_BSHK = (
        jnp.concatenate([x[:, :, g : g + 1] for g in which], 2) for x in (k_BSGK, v_BSGK)
    )
    return q_BTHK, k_BSHK, v_BSHK, batch, heads, heads


def softmax_attention(q_BTHK, k_BSGK, v_BSGK, mask, apart, slopes_H, scale, bias_BHTS=None):
    """The plain masked softmax, [B, T, H, K].

    mask, apart (key minus query position): broadcast against [B, T, S]; bias: float32, added to
    the scores.
    """
    groups, dtype = k_BSGK.shape[2], q_BTHK.dtype
    if dtype.itemsize < 4 and backend() == "cpu":  # XLA:CPU lacks some products of halves
        q_BTHK, k_BSGK, v_BSGK = (x.astype(jnp.float32) for x in (q_BTHK, k_BSGK, v_BSGK))
    q_BTGRK = q_BTHK.reshape(*q_BTHK.shape[:2], groups, -1, q_BTHK.shape[-1])
    scores = scale * jnp.einsum(
        "btgrk,bsgk->bgrts", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32
    )
    if slopes_H is not None:
        slopes = slopes_H.reshape(1, groups, -1, 1, 1)
        scores = scores - slopes * jnp.abs(apart)[:, None, None].astype(jnp.float32)
    if bias_BHTS is not None:
        scores = scores + bias_BHTS.reshape(bias_BHTS.shape[0], *scores.shape[1:])
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, FAR), axis=-1)
    out = jnp.einsum(
        "bgrts,bsgk->btgrk",
        weights.astype(v_BSGK.dtype),
        v_BSGK,
        preferred_element_type=jnp.float32,
    )
    return out.reshape(*q_BTHK.shape[:3], v_BSGK.shape[-1]).astype(dtype)


def _dense(pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H, prefix_BT=None):
    positions = jnp.arange(q_BTHK.shape[1])
    mask = pattern.mask(positions[:, None], positions[None, :], len(positions))[None]
    if prefix_BT is not None:
        mask = mask | prefix_BT[:, None, :]
    if segments_BT is not None:
        mask = mask & (segments_BT[:, :, None] == segments_BT[:, None, :])
    if prefix_BT is not None and slopes_H is None:
        return masked_attention(q_BTHK, k_BSGK, v_BSGK, mask, scale)
    apart = (positions[None, :] - positions[:, None])[None]
    return softmax_attention(q_BTHK, k_BSGK, v_BSGK, mask, apart, slopes_H, scale)


LOCAL = {
    "dense": _dense,
    "blocked": blocked,
    "cudnn": cudnn,
    "splash": splash,
    "block_list": block_list,
}
