"""Softmax attention: one function for training, one for decoding, several kernels behind them.

`dense` is the plain masked softmax and the oracle. `blocked` walks over strips of queries, skips
the keys a strip cannot reach, and has its own gradient, which keeps only the output and the
log-sum-exp of each row and recomputes the probabilities (arXiv 2205.14135); a strip sees all its
keys at once, so unlike its source it needs no running maximum. `cudnn` is cuDNN's fused kernel.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from gptjax.errors import BadInput, did_you_mean
from gptjax.ops.patterns import Bidirectional, Causal, Pattern
from gptjax.ops.shards import axes_of, on_shards, reshard, spec_of

KERNELS = ("dense", "blocked", "cudnn")
_FAR = -1e30  # a finite minus infinity: exp gives 0 and differences give no NaN


def attention(
    q_BTHK,
    k_BSGK,
    v_BSGK,
    *,
    pattern: Pattern = Causal(),  # noqa: B008 (frozen)
    kernel: str = "auto",
    segments_BT=None,
    slopes_H=None,
    scale: float | None = None,
):
    """Self-attention over whole sequences (S == T), [B, T, H, K] in q's dtype.

    segments_BT: integers; a query reads only keys of its own segment. slopes_H: ALiBi slopes, the
    score gets slope * (key position - query position) (arXiv 2108.12409); constants, no gradient
    flows into them. scale: of the scores, 1/sqrt(K) by default. BadInput when a forced kernel
    cannot do what is asked.
    """
    length, head_size = q_BTHK.shape[1], q_BTHK.shape[-1]
    if q_BTHK.shape[2] % k_BSGK.shape[2]:
        raise BadInput(f"{q_BTHK.shape[2]} heads are no multiple of {k_BSGK.shape[2]} kv heads")
    if k_BSGK.shape[1] != length:
        raise BadInput(f"attention needs as many keys as queries, not {k_BSGK.shape[1]}, {length}")
    kernel = choose_kernel(
        kernel,
        jax.default_backend(),
        pattern,
        segments_BT is not None,
        slopes_H is not None,
        length,
        q_BTHK.dtype,
        head_size,
    )
    scale = 1.0 / math.sqrt(head_size) if scale is None else scale
    local = {"dense": _dense, "blocked": _blocked, "cudnn": _cudnn}[kernel]
    q_BTHK, k_BSGK, v_BSGK, batch, heads, kv_heads = _aligned(q_BTHK, k_BSGK, v_BSGK)
    whole, kv_whole = P(batch, None, heads, None), P(batch, None, kv_heads, None)
    arrays, specs = [q_BTHK, k_BSGK, v_BSGK], [whole, kv_whole, kv_whole]
    if segments_BT is not None:
        arrays, specs = [*arrays, segments_BT], [*specs, P(batch, None)]
    if slopes_H is not None:
        slopes_H = jax.lax.stop_gradient(jnp.asarray(slopes_H, jnp.float32))
        arrays, specs = [*arrays, slopes_H], [*specs, P(heads)]

    def run(q, k, v, *rest):
        rest = list(rest)
        segments = rest.pop(0) if segments_BT is not None else None
        slopes = rest.pop(0) if slopes_H is not None else None
        return local(pattern, scale, q, k, v, segments, slopes)

    return on_shards(run, tuple(specs), whole)(*arrays)


def decode_attention(q_BTHK, k_cache_BSGK, v_cache_BSGK, *, index, slopes_H=None, scale=None):
    """Causal attention of T new queries against a cache, [B, T, H, K] in q's dtype.

    The queries stand at positions index..index + T - 1 and the cache already holds their keys and
    values; of its S slots the first index + T are read. index: an integer, or [B] of them.
    """
    scale = 1.0 / math.sqrt(q_BTHK.shape[-1]) if scale is None else scale
    q_BTHK, k, v, batch, heads, kv_heads = _aligned(q_BTHK, k_cache_BSGK, v_cache_BSGK)
    whole, kv_whole = P(batch, None, heads, None), P(batch, None, kv_heads, None)
    index = jnp.asarray(index, jnp.int32)
    arrays = [q_BTHK, k, v, index]
    specs = [whole, kv_whole, kv_whole, P(batch) if index.ndim else P()]
    if slopes_H is not None:
        arrays, specs = [*arrays, jnp.asarray(slopes_H, jnp.float32)], [*specs, P(heads)]

    def run(q, k, v, index, slopes=None):
        keys = jnp.arange(k.shape[1])
        positions = index.reshape(-1, 1) + jnp.arange(q.shape[1])[None, :]  # [B or 1, T]
        apart = keys[None, None, :] - positions[:, :, None]
        return _softmax_attention(q, k, v, apart <= 0, apart, slopes, scale)

    return on_shards(run, tuple(specs), whole)(*arrays)


def choose_kernel(
    kernel: str,
    backend: str,
    pattern: Pattern,
    has_segments: bool,
    has_slopes: bool,
    length: int,
    dtype,
    head_size: int | None = None,
) -> str:
    """The kernel that runs: the one asked for, or for `auto` the fastest that can.

    backend: as `jax.default_backend()` says. BadInput when the one asked for cannot run.
    """
    if kernel not in ("auto", *KERNELS):
        raise BadInput(
            f"unknown attention kernel {kernel!r}{did_you_mean(kernel, KERNELS)} "
            f"(known: auto, {', '.join(KERNELS)})"
        )
    against = []
    if backend not in ("gpu", "cuda"):
        against.append(f"it needs a CUDA GPU and this is {backend}")
    if jnp.dtype(dtype) not in (jnp.dtype("bfloat16"), jnp.dtype("float16")):
        against.append(f"it takes bfloat16 or float16, not {jnp.dtype(dtype).name}")
    if has_segments or has_slopes:
        against.append("segments and ALiBi would need a mask or bias array, which is slow there")
    if not isinstance(pattern, (Causal, Bidirectional)):
        against.append(f"it has no {type(pattern).__name__} pattern")
    if head_size is not None and (head_size % 8 or head_size > 128):
        against.append(f"its head size is a multiple of 8 up to 128, not {head_size}")
    if kernel == "cudnn" and against:
        raise BadInput(f"attention kernel 'cudnn' cannot run: {'; '.join(against)}")
    if kernel != "auto":
        return kernel
    if not against:
        return "cudnn"
    return "blocked" if length > block_size(length) else "dense"


def block_size(length: int) -> int:
    """Queries in a strip of the blocked kernel; at most 16 strips. Measured on CPUs."""
    return max(64 if length <= 256 else 128, 64 * math.ceil(length / (16 * 64)))


def kernel_pairs(pattern: Pattern, length: int, kernel: str) -> int:
    """Query-key pairs the kernel multiplies per head and sequence, those it masks included.

    cuDNN's are those of the pattern: what it does inside is not visible.
    """
    if kernel == "cudnn":
        return pattern.pairs(length)
    if kernel == "dense":
        return length * length
    return sum(
        (stop - start) * (last - first) for start, stop, first, last in _strips(pattern, length)
    )


def kernel_products(kernel: str) -> tuple[int, int]:
    """Matrix products over `kernel_pairs` in the forward and the backward pass.

    Each costs 2 K operations per pair and head. The blocked kernels compute the scores again.
    """
    return (2, 4) if kernel == "dense" else (2, 5)


def _strips(pattern, length):
    """(start, stop, first, last): queries [start, stop) against keys [first, last)."""
    size = block_size(length)
    for start in range(0, length, size):
        stop = min(start + size, length)
        yield start, stop, *pattern.key_range(start, stop, length)


def _aligned(q_BTHK, k_BSGK, v_BSGK):
    """q, k, v ready to be cut into shards, and their batch, heads and kv heads mesh axes.

    When the kv heads are not sharded as the heads are (too few of them), each head gets its own
    copy, unless there is one for all, which every shard can hold.
    """
    batch, heads = spec_of(q_BTHK)[0], spec_of(q_BTHK)[2]
    groups = k_BSGK.shape[2]
    if axes_of(spec_of(k_BSGK)[2]) == axes_of(heads):
        return q_BTHK, k_BSGK, v_BSGK, batch, heads, heads
    plain = P(batch, None, None, None)
    k_BSGK, v_BSGK = reshard(k_BSGK, plain), reshard(v_BSGK, plain)
    if groups == 1:
        return q_BTHK, k_BSGK, v_BSGK, batch, heads, None
    which = [head // (q_BTHK.shape[2] // groups) for head in range(q_BTHK.shape[2])]
    k_BSHK, v_BSHK = (
        jnp.concatenate([x[:, :, g : g + 1] for g in which], 2) for x in (k_BSGK, v_BSGK)
    )
    return q_BTHK, k_BSHK, v_BSHK, batch, heads, heads


def _softmax_attention(q_BTHK, k_BSGK, v_BSGK, mask, apart, slopes_H, scale):
    """mask, apart (key minus query position): broadcast against [B, T, S]."""
    groups = k_BSGK.shape[2]
    q_BTGRK = q_BTHK.reshape(*q_BTHK.shape[:2], groups, -1, q_BTHK.shape[-1])
    scores = scale * jnp.einsum(
        "btgrk,bsgk->bgrts", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32
    )
    if slopes_H is not None:
        slopes = slopes_H.reshape(1, groups, -1, 1, 1)
        scores = scores + slopes * apart[:, None, None].astype(jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, _FAR), axis=-1)
    out = jnp.einsum(
        "bgrts,bsgk->btgrk",
        weights.astype(v_BSGK.dtype),
        v_BSGK,
        preferred_element_type=jnp.float32,
    )
    return out.reshape(q_BTHK.shape).astype(q_BTHK.dtype)


def _dense(pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H):
    positions = jnp.arange(q_BTHK.shape[1])
    mask = pattern.mask(positions[:, None], positions[None, :])[None]
    if segments_BT is not None:
        mask = mask & (segments_BT[:, :, None] == segments_BT[:, None, :])
    apart = (positions[None, :] - positions[:, None])[None]
    return _softmax_attention(q_BTHK, k_BSGK, v_BSGK, mask, apart, slopes_H, scale)


def _cudnn(pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H):
    del segments_BT, slopes_H  # choose_kernel lets none through
    causal = isinstance(pattern, Causal)
    return jax.nn.dot_product_attention(
        q_BTHK, k_BSGK, v_BSGK, scale=scale, is_causal=causal, implementation="cudnn"
    )


def _masked(pattern, strip, scores, segments_BT, slopes_H, transposed=False):
    """A strip's scores with ALiBi and the mask: [B, G, R, C, S'], or [B, G, S', R, C]."""
    start, stop, first, last = strip
    queries, keys = jnp.arange(start, stop), jnp.arange(first, last)
    if transposed:
        wide = (slice(None), None, slice(None), None, slice(None))  # [B, S', C] to 5 axes
        at = (queries[None, :], keys[:, None])
        groups, repeats = scores.shape[1], scores.shape[3]
        by_head = (1, groups, 1, repeats, 1)
    else:
        wide = (slice(None), None, None)
        at = (queries[:, None], keys[None, :])
        by_head = (1, *scores.shape[1:3], 1, 1)
    if slopes_H is not None:
        apart = (at[1] - at[0]).astype(jnp.float32)[None][wide]
        scores = scores + slopes_H.reshape(by_head) * apart
    mask = pattern.mask(*at)[None]
    if segments_BT is not None:
        ours, theirs = segments_BT[:, start:stop], segments_BT[:, first:last]
        same = ours[:, :, None] == theirs[:, None, :]
        mask = mask & (same.transpose(0, 2, 1) if transposed else same)
    return jnp.where(mask[wide], scores, _FAR)


def _heads_first(q_BTHK, groups: int):
    """[B, T, H, K] as [B, G, R, T, K]."""
    batch, length, heads, size = q_BTHK.shape
    return q_BTHK.reshape(batch, length, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)


def _heads_last(x_BGRTK):
    """[B, G, R, T, K] as [B, T, H, K]."""
    batch, groups, repeats, length, size = x_BGRTK.shape
    return x_BGRTK.transpose(0, 3, 1, 2, 4).reshape(batch, length, groups * repeats, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blocked(pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H):
    return _blocked_forward(pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H)[0]


def _blocked_forward(pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H):
    q = _heads_first(q_BTHK, k_BSGK.shape[2]) * jnp.asarray(scale, q_BTHK.dtype)
    k, v = k_BSGK.transpose(0, 2, 1, 3), v_BSGK.transpose(0, 2, 1, 3)
    outs, logsums = [], []
    for strip in _strips(pattern, q.shape[3]):
        start, stop, first, last = strip
        scores = jnp.einsum(
            "bgrtk,bgsk->bgrts",
            q[:, :, :, start:stop],
            k[:, :, first:last],
            preferred_element_type=jnp.float32,
        )
        scores = _masked(pattern, strip, scores, segments_BT, slopes_H)
        top = jnp.max(scores, -1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, -1, keepdims=True)
        out = jnp.einsum(
            "bgrts,bgsk->bgrtk",
            weights.astype(v.dtype),
            v[:, :, first:last],
            preferred_element_type=jnp.float32,
        )
        outs.append((out / total).astype(q_BTHK.dtype))
        logsums.append((top + jnp.log(total))[..., 0])
    out_BTHK = _heads_last(jnp.concatenate(outs, 3))
    kept = (q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H, out_BTHK, jnp.concatenate(logsums, 3))
    return out_BTHK, kept


def _blocked_backward(pattern, scale, kept, g_BTHK):
    """Works on transposed scores [B, G, S', (R, C)]: then only small arrays need transposing.

    XLA:CPU copies a transposed factor of a batched product; these would be the largest arrays.
    """
    q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H, out_BTHK, logsum_BGRT = kept
    groups, dtype = k_BSGK.shape[2], q_BTHK.dtype
    q = _heads_first(q_BTHK, groups) * jnp.asarray(scale, dtype)
    k, v = k_BSGK.transpose(0, 2, 1, 3), v_BSGK.transpose(0, 2, 1, 3)
    k_BGKS, g = k_BSGK.transpose(0, 2, 3, 1), _heads_first(g_BTHK, groups)
    radial_BGRT = jnp.sum(
        g.astype(jnp.float32) * _heads_first(out_BTHK, groups).astype(jnp.float32), -1
    )
    dk, dv = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dqs = []
    for strip in _strips(pattern, q.shape[3]):
        start, stop, first, last = strip
        rows = (slice(None),) * 3 + (slice(start, stop),)
        keys, values = k[:, :, first:last], v[:, :, first:last]
        scores = product("bgsk,bgrck->bgsrc", keys, q[rows])
        scores = _masked(pattern, strip, scores, segments_BT, slopes_H, transposed=True)
        weights = jnp.exp(scores - logsum_BGRT[rows][:, :, None])
        dweights = product("bgsk,bgrck->bgsrc", values, g[rows])
        dscores = (weights * (dweights - radial_BGRT[rows][:, :, None])).astype(dtype)
        dq = product("bgks,bgsrc->bgkrc", k_BGKS[..., first:last], dscores)
        dqs.append(dq.transpose(0, 3, 4, 1, 2))  # [B, R, C, G, K]
        dk = _add_rows(dk, product("bgsrc,bgrck->bgsk", dscores, q[rows]), first)
        dv = _add_rows(dv, product("bgsrc,bgrck->bgsk", weights.astype(dtype), g[rows]), first)
    dq_BTHK = jnp.concatenate(dqs, 2).transpose(0, 2, 3, 1, 4).reshape(q_BTHK.shape)
    dq_BTHK = (dq_BTHK * scale).astype(dtype)
    dk, dv = dk.transpose(0, 2, 1, 3).astype(dtype), dv.transpose(0, 2, 1, 3).astype(dtype)
    return dq_BTHK, dk, dv, None, None if slopes_H is None else jnp.zeros_like(slopes_H)


def _add_rows(total_BGSK, part_BGSK, first: int):
    """Adds the part to the rows of the total from `first` on."""
    rows = jax.lax.slice_in_dim(total_BGSK, first, first + part_BGSK.shape[2], axis=2)
    return jax.lax.dynamic_update_slice_in_dim(total_BGSK, rows + part_BGSK, first, axis=2)


_blocked.defvjp(_blocked_forward, _blocked_backward)
