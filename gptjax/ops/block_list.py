"""Exact attention by lists of blocks, for any pattern, in one fused GPU kernel (Pallas, Triton).

A program takes a block of queries and goes through the blocks of keys that its list names
(`ops/patterns/lists.py`): first those it reads whole, then those where the pattern's mask is
computed from the positions. Scores stay on the chip; kept are the output and one log-sum-exp a
row. The backward pass computes them again, once by blocks of queries for their gradient and once
by blocks of keys through the transposed lists, so that no sum needs atomics (arXiv 2205.14135,
2307.08691). Sums are float32. Where there is no GPU the kernels are interpreted, slowly.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.ops.blocked import FAR
from gptjax.ops.patterns.base import HeadPattern
from gptjax.ops.patterns.lists import key_lists, list_block, query_lists
from gptjax.ops.shards import backend

LARGEST_HEAD = 128
LOG2_E = math.log2(math.e)  # GPUs have an instruction for powers of 2


class _Plan(NamedTuple):
    """What a kernel knows when it is compiled."""

    pattern: HeadPattern
    length: int
    block: int
    scale: float
    repeats: int  # heads over one key head
    interpret: bool


class _Aside(NamedTuple):
    """What changes scores, each None where there is none, as arrays or inside a kernel as refs.

    table: int8, which blocks of a block pattern read which; segments: int32 [B, T]; slopes:
    float32 [H].
    """

    table: object
    segments: object
    slopes: object


class _Side:
    """Positions of a block of queries or keys, shaped to broadcast against a block of scores."""

    def __init__(self, number, plan: _Plan, aside: _Aside, axis: int):
        from jax.experimental import pallas as pl

        self.rows = pl.ds(number * plan.block, plan.block)
        shape = (plan.block, 1) if axis == 0 else (1, plan.block)
        self.at = number * plan.block + jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        self.segments = None
        if aside.segments is not None:
            segments = aside.segments[self.rows]
            self.segments = segments[:, None] if axis == 0 else segments[None, :]


def _allowed(plan: _Plan, aside: _Aside, queries: _Side, keys: _Side, partial: bool):
    """Bool [block, block], or None where all is allowed."""
    found = None
    if partial:
        found = _pattern_mask(plan, aside.table, queries.at, keys.at)
        found = found & (queries.at < plan.length) & (keys.at < plan.length)
    if queries.segments is not None:
        same = queries.segments == keys.segments
        found = same if found is None else found & same
    return found


def _pattern_mask(plan: _Plan, table, queries, keys):
    if table is None:
        return plan.pattern.mask(queries, keys, plan.length)
    size, last = plan.pattern.block, table.shape[0] - 1
    places = [jnp.minimum(at // size, last) for at in jnp.broadcast_arrays(queries, keys)]
    found = table[places[0], places[1]] > 0
    return found & (queries >= keys) if plan.pattern.causal else found


def _scores(plan: _Plan, aside: _Aside, left, right, queries: _Side, keys: _Side, slope):
    """Products of the rows of two blocks, scaled and with ALiBi, as exponents of 2."""
    scores = _product(left, right.T) * (plan.scale * LOG2_E)
    if slope is not None:
        scores = scores - (slope * LOG2_E) * jnp.abs(keys.at - queries.at).astype(jnp.float32)
    return scores


def _product(left, right):
    return jnp.dot(left, right, preferred_element_type=jnp.float32)


def _row(rows, number):
    """A row of `Lists.rows` as four numbers."""
    return tuple(rows[number, column] for column in range(4))


def _over_lists(body, first, middle, last, carry):
    """Runs `body(entry, carry, partial)` over both halves of a row."""
    carry = jax.lax.fori_loop(first, middle, lambda j, c: body(j, c, False), carry)
    return jax.lax.fori_loop(middle, last, lambda j, c: body(j, c, True), carry)


def _forward_kernel(plan: _Plan, rows, entries, q, k, v, aside: _Aside, out, logsum):
    from jax.experimental import pallas as pl

    number, first, middle, last = _row(rows, pl.program_id(0))
    slope = None if aside.slopes is None else aside.slopes[pl.program_id(2)]
    queries = _Side(number, plan, aside, axis=0)
    mine = q[queries.rows, :]

    def body(j, carry, partial):
        total, top, weight = carry
        keys = _Side(entries[j], plan, aside, axis=1)
        scores = _scores(plan, aside, mine, k[keys.rows, :], queries, keys, slope)
        allowed = _allowed(plan, aside, queries, keys, partial)
        if allowed is not None:
            scores = jnp.where(allowed, scores, FAR)
        # A row without any key so far has FAR on top and weights of 1: its first key undoes them.
        new_top = jnp.maximum(top, jnp.max(scores, 1))
        shrink, weights = jnp.exp2(top - new_top), jnp.exp2(scores - new_top[:, None])
        values = v[keys.rows, :]
        total = total * shrink[:, None] + _product(weights.astype(values.dtype), values)
        return total, new_top, weight * shrink + jnp.sum(weights, 1)

    zeros = jnp.zeros(mine.shape, jnp.float32)
    carry = zeros, jnp.full(plan.block, FAR, jnp.float32), jnp.zeros(plan.block, jnp.float32)
    total, top, weight = _over_lists(body, first, middle, last, carry)
    out[queries.rows, :] = (total / weight[:, None]).astype(out.dtype)
    logsum[queries.rows] = top + jnp.log2(weight)


def _weights(scores, logsum, allowed):
    weights = jnp.exp2(scores - logsum)
    return weights if allowed is None else jnp.where(allowed, weights, 0.0)


def _query_kernel(plan: _Plan, rows, entries, q, k, v, g, logsum, radial, aside: _Aside, dq):
    """The gradient of the queries."""
    from jax.experimental import pallas as pl

    number, first, middle, last = _row(rows, pl.program_id(0))
    slope = None if aside.slopes is None else aside.slopes[pl.program_id(2)]
    queries = _Side(number, plan, aside, axis=0)
    mine, mine_g = q[queries.rows, :], g[queries.rows, :]
    mine_logsum, mine_radial = logsum[queries.rows][:, None], radial[queries.rows][:, None]

    def body(j, total, partial):
        keys = _Side(entries[j], plan, aside, axis=1)
        theirs = k[keys.rows, :]
        scores = _scores(plan, aside, mine, theirs, queries, keys, slope)
        allowed = _allowed(plan, aside, queries, keys, partial)
        weights = _weights(scores, mine_logsum, allowed)
        dscores = weights * (_product(mine_g, v[keys.rows, :].T) - mine_radial)
        return total + _product(dscores.astype(theirs.dtype), theirs)

    total = _over_lists(body, first, middle, last, jnp.zeros(mine.shape, jnp.float32))
    dq[queries.rows, :] = (total * plan.scale).astype(dq.dtype)


def _key_kernel(plan: _Plan, rows, entries, q, k, v, g, logsum, radial, aside: _Aside, dk, dv):
    """The gradients of keys and values, over all heads of a key head; scores are transposed."""
    from jax.experimental import pallas as pl

    number, first, middle, last = _row(rows, pl.program_id(0))
    first_head = pl.program_id(2) * plan.repeats
    keys = _Side(number, plan, aside, axis=0)
    mine, mine_v = k[keys.rows, :], v[keys.rows, :]

    def head(r, carry):
        slope = None if aside.slopes is None else aside.slopes[first_head + r]

        def body(j, carry, partial):
            dk, dv = carry
            queries = _Side(entries[j], plan, aside, axis=1)
            theirs, theirs_g = q[queries.rows, r, :], g[queries.rows, r, :]
            scores = _scores(plan, aside, mine, theirs, queries, keys, slope)
            allowed = _allowed(plan, aside, queries, keys, partial)
            weights = _weights(scores, logsum[r, queries.rows][None, :], allowed)
            dv = dv + _product(weights.astype(theirs_g.dtype), theirs_g)
            dweights = _product(mine_v, theirs_g.T)
            dscores = weights * (dweights - radial[r, queries.rows][None, :])
            return dk + _product(dscores.astype(theirs.dtype), theirs), dv

        return _over_lists(body, first, middle, last, carry)

    zeros = jnp.zeros(mine.shape, jnp.float32)
    if plan.repeats == 1:
        total_k, total_v = head(0, (zeros, zeros))
    else:
        total_k, total_v = jax.lax.fori_loop(0, plan.repeats, head, (zeros, zeros))
    dk[keys.rows, :] = (total_k * plan.scale).astype(dk.dtype)
    dv[keys.rows, :] = total_v.astype(dv.dtype)


def _run(kernel, plan: _Plan, lists, arrays, specs, aside: _Aside, grid, outs, out_specs):
    """One fused kernel over a grid of rows of the lists, sequences and heads."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    def whole(array):
        return pl.BlockSpec(array.shape, lambda row, b, h: (0,) * array.ndim)

    lists = [jnp.asarray(lists.rows), jnp.asarray(lists.entries)]
    segments = pl.BlockSpec((None, arrays[0].shape[1]), lambda row, b, h: (b, 0))
    aside_specs = _Aside(
        None if aside.table is None else whole(aside.table),
        None if aside.segments is None else segments,
        None if aside.slopes is None else whole(aside.slopes),
    )
    wide = arrays[0].shape[-1] > 64
    return pl.pallas_call(
        functools.partial(kernel, plan),
        grid=(len(lists[0]), *grid),
        in_specs=[*map(whole, lists), *specs, aside_specs],
        out_specs=out_specs,
        out_shape=outs,
        interpret=plan.interpret,
        compiler_params=triton.CompilerParams(num_warps=8 if wide else 4, num_stages=2),
    )(*lists, *arrays, aside)


def _specs(length: int, size: int, repeats: int):
    """Block specs by name: a head, its key head, all heads of a key head; [B, H, T] likewise."""
    from jax.experimental import pallas as pl

    return {
        "head": pl.BlockSpec((None, length, None, size), lambda row, b, h: (b, 0, h, 0)),
        "key": pl.BlockSpec((None, length, None, size), lambda row, b, h: (b, 0, h // repeats, 0)),
        "heads": pl.BlockSpec((None, length, repeats, size), lambda row, b, h: (b, 0, h, 0)),
        "sum": pl.BlockSpec((None, None, length), lambda row, b, h: (b, h, 0)),
        "sums": pl.BlockSpec((None, repeats, length), lambda row, b, h: (b, h, 0)),
    }


def _prepared(pattern, scale, q_BTHK, k_BSGK, segments_BT, slopes_H):
    """The plan, what stands aside, and a function that fills arrays up to whole blocks."""
    length, size = q_BTHK.shape[1], q_BTHK.shape[-1]
    block = list_block(pattern, length)
    behind = -length % block
    missing = max(16, 1 << (size - 1).bit_length()) - size

    def filled(x):
        return jnp.pad(x, [(0, 0), (0, behind), (0, 0), (0, missing)])

    table = None
    if hasattr(pattern, "blocks"):  # whole blocks decide: a table, not arithmetic
        table = jnp.asarray(pattern.blocks(length).astype(np.int8))
    if segments_BT is not None:
        segments_BT = jnp.pad(segments_BT.astype(jnp.int32), [(0, 0), (0, behind)])
    if slopes_H is not None:
        slopes_H = slopes_H.astype(jnp.float32)
    repeats = q_BTHK.shape[2] // k_BSGK.shape[2]
    plan = _Plan(pattern, length, block, float(scale), repeats, backend() == "cpu")
    return plan, _Aside(table, segments_BT, slopes_H), filled


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def block_list(pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H):
    """Attention [B, T, H, K] of a pattern; see `ops.attention.attention` for the arguments."""
    return _forward(pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H)[0]


def _forward(pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H):
    plan, aside, filled = _prepared(pattern, scale, q_BTHK, k_BSGK, segments_BT, slopes_H)
    q, k, v = filled(q_BTHK), filled(k_BSGK), filled(v_BSGK)
    batch, length, heads, size = q.shape
    specs = _specs(length, size, plan.repeats)
    out, logsum = _run(
        _forward_kernel,
        plan,
        key_lists(pattern, plan.length, plan.block),
        (q, k, v),
        (specs["head"], specs["key"], specs["key"]),
        aside,
        (batch, heads),
        (
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ),
        (specs["head"], specs["sum"]),
    )
    out = out[:, : plan.length, :, : q_BTHK.shape[-1]]
    return out, (q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H, out, logsum)


def _backward(pattern, scale, kept, g_BTHK):
    q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H, out_BTHK, logsum = kept
    plan, aside, filled = _prepared(pattern, scale, q_BTHK, k_BSGK, segments_BT, slopes_H)
    q, k, v, g = (filled(x) for x in (q_BTHK, k_BSGK, v_BSGK, g_BTHK.astype(q_BTHK.dtype)))
    radial = jnp.sum(g_BTHK.astype(jnp.float32) * out_BTHK.astype(jnp.float32), -1)
    radial = jnp.pad(radial.transpose(0, 2, 1), [(0, 0), (0, 0), (0, q.shape[1] - plan.length)])
    batch, length, heads, size = q.shape
    specs, arrays = _specs(length, size, plan.repeats), (q, k, v, g, logsum, radial)
    [dq] = _run(
        _query_kernel,
        plan,
        key_lists(pattern, plan.length, plan.block),
        arrays,
        [specs[name] for name in ("head", "key", "key", "head", "sum", "sum")],
        aside,
        (batch, heads),
        [jax.ShapeDtypeStruct(q.shape, q.dtype)],
        [specs["head"]],
    )
    dk, dv = _run(
        _key_kernel,
        plan,
        query_lists(pattern, plan.length, plan.block),
        arrays,
        [specs[name] for name in ("heads", "head", "head", "heads", "sums", "sums")],
        aside,
        (batch, k.shape[2]),
        [jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)],
        [specs["head"], specs["head"]],
    )
    dq, dk, dv = (x[:, : plan.length, :, : q_BTHK.shape[-1]] for x in (dq, dk, dv))
    return dq, dk, dv, None, None if slopes_H is None else jnp.zeros_like(slopes_H)


block_list.defvjp(_forward, _backward)
