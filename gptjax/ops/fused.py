"""A pattern by a fused kernel where it can, by the portable one where it cannot, as one function.

A fused kernel (cuDNN, splash) computes whole parts of a pattern (`ops/parts.py`) and their
log-sum-exp; the parts are merged by it. Backward, a part's own kernel gets the output and the
log-sum-exp of the whole row: then its probabilities are final and its internal row sum (of output
times gradient) is the whole row's, so the parts' gradients simply add up (arXiv 2205.14135).
"""

import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.ops.blocked import FAR, backward_of, forward_of
from gptjax.ops.parts import Band, Part, Recent, Stairs
from gptjax.ops.patterns.base import HeadPattern
from gptjax.ops.strips import works


class Fused(Protocol):
    """A fused kernel; hashable. Log-sum-exps are float32 [B, T, H], FAR where a row is empty."""

    def can(self, part: Part, length: int) -> bool:
        """Whether it computes this part."""

    def forward(self, part, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT):
        """Output and log-sum-exp of a part at all positions."""

    def backward(self, part, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, out, logsum, g):
        """Gradients of q, k, v; out and logsum are the whole row's."""


class Rows(NamedTuple):
    """The keys of every query of a part stand in a row: [first, last) over all groups in turn.

    first, last: int64 [groups x places of queries]; an empty row, or one filled up, is [0, 0).
    queries, keys: groups x places; pairs: those that are no filled-up places; filled: whether a
    query's row holds a key that is filled up.
    """

    first: np.ndarray
    last: np.ndarray
    queries: int
    keys: int
    pairs: int
    filled: bool


@functools.lru_cache(maxsize=256)
def rows_of(part: Part, length: int) -> Rows | None:
    """The rows of a part, None where keys do not stand together."""
    if part.order != "places" or not isinstance(part.rule, Band | Stairs | Recent):
        return None
    queries, keys = part.queries.positions(length), part.keys.positions(length)
    groups, places = queries.shape
    size = keys.shape[1]
    at = np.arange(places, dtype=np.int64)
    if isinstance(part.rule, Band):
        low, high = part.rule.low, part.rule.high
        first = np.zeros_like(at) if high is None else np.maximum(at - high, 0)
        last = np.full_like(at, size) if low is None else np.clip(at - low + 1, 0, size)
    elif isinstance(part.rule, Stairs):
        first = np.zeros_like(at)
        last = np.minimum(at // part.rule.rows * part.rule.columns, size)
    else:
        first = np.maximum(at // part.rule.block - part.rule.before, 0) * part.rule.block
        last = np.minimum(at + 1, size)
    base = np.arange(groups, dtype=np.int64)[:, None] * size
    seen = (queries >= 0) & (first < last)
    first, last = (np.where(seen, base + edge, 0).reshape(-1) for edge in (first, last))
    there = np.concatenate([[0], np.cumsum(keys.reshape(-1) >= 0)])
    pairs = int((there[last] - there[first]).sum())
    filled = pairs < int((last - first).sum())
    return Rows(first, last, queries.size, keys.size, pairs, filled)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def merged(fused: Fused, pattern: HeadPattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT):
    """Attention [B, T, H, K] of a pattern, its parts by `fused` where it can."""
    return _forward(fused, pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT)[0]


def split(fused: Fused, pattern: HeadPattern, length: int):
    """The parts for the fused kernel, and the work left to the portable one."""
    mine = tuple(part for part in pattern.parts(length) if fused.can(part, length))
    rest = tuple(work for work in works(pattern, length) if work.part not in mine)
    return mine, rest


def _forward(fused, pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT):
    mine, rest = split(fused, pattern, q_BTHK.shape[1])
    arrays = (scale, q_BTHK, k_BSGK, v_BSGK, segments_BT)
    found = [fused.forward(part, *arrays) for part in mine]
    if rest:
        out, logsum = forward_of(rest, *arrays, None)
        found.append((out, _heads_last(logsum)))
    out, logsum = found[0]
    if len(found) > 1:
        logsum = functools.reduce(jnp.logaddexp, [part for _, part in found])
        weights = [jnp.exp(part - logsum)[..., None] for _, part in found]
        out = sum(w * part for w, (part, _) in zip(weights, found, strict=True))
    out = out.astype(q_BTHK.dtype)
    return out, (q_BTHK, k_BSGK, v_BSGK, segments_BT, out, logsum)


def _backward(fused, pattern, scale, kept, g_BTHK):
    q, k, v, segments, out, logsum = kept
    mine, rest = split(fused, pattern, q.shape[1])
    found = [fused.backward(part, scale, q, k, v, segments, out, logsum, g_BTHK) for part in mine]
    if rest:
        sums = _heads_first(logsum, k.shape[2])
        found.append(backward_of(rest, scale, q, k, v, segments, None, out, sums, g_BTHK))
    total = lambda parts: sum(part.astype(jnp.float32) for part in parts)
    dq, dk, dv = (total(parts) for parts in zip(*found, strict=True))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


merged.defvjp(_forward, _backward)


def _heads_last(x_BGRT1):
    batch, groups, repeats, length, _ = x_BGRT1.shape
    return x_BGRT1.reshape(batch, groups * repeats, length).swapaxes(1, 2)


def _heads_first(x_BTH, groups: int):
    batch, length, heads = x_BTH.shape
    return x_BTH.swapaxes(1, 2).reshape(batch, groups, heads // groups, length, 1)


def taken(layout, x_BTHK, fill=0.0):
    """[B, groups, places, H, K] of [B, T, H, K]."""
    x = layout.take(x_BTHK.reshape(*x_BTHK.shape[:2], -1), fill)
    return x.reshape(*x.shape[:3], *x_BTHK.shape[2:])


def put_back(layout, x, length: int, fill=0.0):
    """The inverse of `taken`; positions of no group get `fill`."""
    found = layout.put(x.reshape(*x.shape[:3], -1), length, fill)
    return found.reshape(*found.shape[:2], *x.shape[3:])


def padded_heads(x_BTHK, multiple: int):
    """x with zeros behind the features of a head, up to a multiple."""
    more = -x_BTHK.shape[-1] % multiple
    return jnp.pad(x_BTHK, [(0, 0)] * 3 + [(0, more)]) if more else x_BTHK


def nothing_seen(logsum):
    """Where a row is empty: a fused kernel gives it minus infinity, NaN or its own mask value."""
    return ~(logsum > FAR)
