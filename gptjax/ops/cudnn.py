"""cuDNN's fused attention for the parts of a pattern that it can do; the rest is portable.

It does causal, full and left-window attention without a mask array. A part in groups is such a
call with the groups in its batch; a part that starts `low` keys before the query is one between
the queries from `low` on and the keys that lie as far from the end. Public jax rounds cuDNN's
log-sum-exp to the inputs' type and its gradient takes none, so the primitives underneath are
called; where a jax lacks them, public jax computes the patterns that are one part.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax.ops.blocked import FAR
from gptjax.ops.fused import merged, nothing_seen, padded_heads, put_back, rows_of, split, taken
from gptjax.ops.parts import EVERYTHING, Band, Blocks, Part, Residues, Span
from gptjax.ops.patterns.base import HeadPattern
from gptjax.ops.strips import multiplied_by

SHORTEST = 64  # places: releases of cuDNN have refused shorter ones; the portable way is quick
HEAD_MULTIPLE = 8


class Call(NamedTuple):
    """One call: queries `[low:]` and keys `[:-low]` of every group; a window of 0 is none."""

    low: int
    causal: bool
    window: int


def call_of(part: Part, length: int) -> Call | None:
    """How cuDNN computes a part, None where it cannot."""
    if not isinstance(part.rule, Band) or part.order != "places":
        return None
    queries, keys = part.queries.positions(length), part.keys.positions(length)
    if part.rule == EVERYTHING:
        plain = isinstance(part.queries, Span) and isinstance(part.keys, Span)
        enough = min(queries.shape[1], keys.shape[1]) >= SHORTEST
        return Call(0, False, 0) if plain and enough else None
    low, high = part.rule.low, part.rule.high
    same = part.queries == part.keys and isinstance(part.queries, Span | Residues | Blocks)
    if not same or low is None or low < 0 or queries.shape[1] - low < SHORTEST:
        return None
    window = 0 if high is None or high - low + 1 >= queries.shape[1] - low else high - low + 1
    return Call(low, True, window)


class CuDNN(NamedTuple):
    """The fused kernel (`ops.fused.Fused`) over a forward and a backward primitive."""

    fwd: object
    bwd: object

    def can(self, part: Part, length: int) -> bool:
        return call_of(part, length) is not None

    def forward(self, part, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT):
        length = q_BTHK.shape[1]
        call = call_of(part, length)
        q, k, v = _cut(part, call, q_BTHK, k_BSGK, v_BSGK)
        out, logsum = self.fwd(call, scale, q, k, v)
        back = functools.partial(_uncut_queries, part, call, q_BTHK.shape)
        out, logsum = back(out), back(logsum.swapaxes(1, 2)[..., None], FAR)[..., 0]
        return out, jnp.where(nothing_seen(logsum), FAR, logsum)

    def backward(self, part, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, out, logsum, g):
        length = q_BTHK.shape[1]
        call = call_of(part, length)
        q, k, v = _cut(part, call, q_BTHK, k_BSGK, v_BSGK)
        rows = functools.partial(_cut_queries, part, call)
        # Places that are filled up get no weight.
        sums = rows(logsum[..., None], -FAR)[..., 0].swapaxes(1, 2)
        dq, dk, dv = self.bwd(call, scale, q, k, v, sums, rows(out), rows(g))
        dq = _uncut_queries(part, call, q_BTHK.shape, dq)
        return dq, *(_uncut_keys(part, call, k_BSGK.shape, x) for x in (dk, dv))


def _cut(part, call, q, k, v):
    keys = [taken(part.keys, x) for x in (k, v)]
    places = keys[0].shape[2] - call.low
    keys = [x[:, :, :places].reshape(-1, places, *x.shape[3:]) for x in keys]
    return _cut_queries(part, call, q), *keys


def _cut_queries(part, call, x, fill=0.0):
    """[B groups, places, H, K] of [B, T, H, K]."""
    x = taken(part.queries, x, fill)[:, :, call.low :]
    return x.reshape(-1, *x.shape[2:])


def _uncut_queries(part, call, shape, x, fill=0.0):
    x = x.reshape(shape[0], -1, *x.shape[1:])
    x = jnp.pad(x, [(0, 0)] * 2 + [(call.low, 0)] + [(0, 0)] * 2, constant_values=fill)
    return put_back(part.queries, x, shape[1], fill)


def _uncut_keys(part, call, shape, x):
    x = x.reshape(shape[0], -1, *x.shape[1:])
    x = jnp.pad(x, [(0, 0)] * 2 + [(0, call.low)] + [(0, 0)] * 2)
    return put_back(part.keys, x, shape[1])


def _primitive(name: str, call: Call, scale, *arrays, **more):
    """Binds a primitive of jax's private module, the same in jax 0.7.2 and 0.10.2."""
    from jax._src.cudnn import fused_attention_stablehlo as lower

    query, key, value, *rest = arrays
    none = jnp.zeros(0, query.dtype)
    return getattr(lower, name).bind(
        query, key, value, *[none] * 7, *rest, scale=scale, seed=42, dropout_rate=0.0,
        variadic_args=(False, False),
        mask_type=lower.MaskType.CAUSAL if call.causal else lower.MaskType.NO_MASK,
        layout=lower.AttentionLayout.BTNH.value, sliding_window_length=call.window or None, **more,
    )  # fmt: skip


def _fwd(call: Call, scale, q, k, v):
    """Output [N, T, H, K] and log-sum-exp [N, H, T]."""
    name = "_dot_product_attention_fwd_p_wrapper"
    return _primitive(name, call, scale, q, k, v, is_training=True)


def _bwd(call: Call, scale, q, k, v, logsum, out, g):
    name = "_dot_product_attention_bwd_p_wrapper"
    return _primitive(name, call, scale, q, k, v, logsum, out, g)


CUDNN = CuDNN(_fwd, _bwd)


@functools.lru_cache(maxsize=1)
def available() -> bool:
    """Whether this jax has the primitives, with the arguments they are given here."""
    x = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)

    def both(q):
        out, logsum = _fwd(Call(0, True, 0), 1.0, q, q, q)
        return _bwd(Call(0, True, 0), 1.0, q, q, q, logsum, out, out)

    try:
        jax.eval_shape(both, x)
    except (ImportError, AttributeError, TypeError, ValueError):
        return False
    return True


def single_call(pattern: HeadPattern, length: int) -> Call | None:
    """The one call that computes a whole pattern, which public jax can make."""
    parts = pattern.parts(length)
    call = call_of(parts[0], length)
    whole = len(parts) == 1 and parts[0].queries == parts[0].keys == Span()
    return call if whole and call is not None and call.low == 0 else None


def cudnn_can(pattern: HeadPattern, length: int) -> str:
    """What stands against cuDNN for a pattern, empty when nothing does."""
    if not any(call_of(part, length) for part in pattern.parts(length)):
        return f"no part of {pattern} at length {length} is causal, full or a window to it"
    if available() or single_call(pattern, length) is not None:
        return ""
    return "this jax lacks the primitives for patterns of several parts"


def cudnn_pairs(pattern: HeadPattern, length: int) -> int:
    """Query-key pairs of the parts cuDNN computes, and those multiplied for the others."""
    mine, rest = split(CUDNN, pattern, length)
    return sum(rows_of(part, length).pairs for part in mine) + multiplied_by(rest)


def cudnn(pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H):
    """Attention [B, T, H, K] of a pattern; bfloat16 or float16; no segments, no ALiBi."""
    size = q_BTHK.shape[-1]
    q, k, v = (padded_heads(x, HEAD_MULTIPLE) for x in (q_BTHK, k_BSGK, v_BSGK))
    if available():
        return merged(CUDNN, pattern, scale, q, k, v, None)[..., :size]
    call = single_call(pattern, q.shape[1])
    window = (call.window - 1, 0) if call.window else None
    out = jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=call.causal, local_window_size=window,
        implementation="cudnn",
    )  # fmt: skip
    return out[..., :size]
