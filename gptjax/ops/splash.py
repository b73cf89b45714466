"""Splash attention on TPUs, a call per part of a pattern, merged by log-sum-exp.

A part in groups is one call over all groups in turn: the keys of a query stand in a row, so a
query carries the ends of its row and no mask is ever made; the kernel's grid visits only blocks
of which a row reads something. (Many short groups thus share a block of the grid.) The kernel
comes with jax; its grid is told here from the rows, as its own way tests every pair on the host.
Splash gives a backward pass only for its own output, so its backward kernels are called directly.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.ops.blocked import FAR
from gptjax.ops.fused import Rows, merged, nothing_seen, put_back, rows_of, split, taken
from gptjax.ops.parts import Band, Chosen, Part, Span
from gptjax.ops.patterns.base import HeadPattern
from gptjax.ops.shards import backend
from gptjax.ops.strips import multiplied_by

LANES = 128
WIDEST = 512  # places in a block of the grid, where rows are long
NARROW = 256  # and where they are short: less is multiplied in vain
BITS = 16  # of either end of a row, in one integer of 32


class Grid(NamedTuple):
    """A part on the grid: places in a block, the ends of every row, and who computes the mask.

    ends: int32 [queries], what the mask function is given of a query; fits: whether it can.
    """

    rows: Rows
    block_q: int
    block_k: int
    queries: int  # filled up to whole blocks
    keys: int
    ends: np.ndarray
    mask: object
    fits: bool


def _row_mask(ends, key):
    """A row's ends in the upper and the lower 16 bits."""
    return (key >= jax.lax.shift_right_logical(ends, BITS)) & (key < (ends & ((1 << BITS) - 1)))


@functools.lru_cache(maxsize=64)
def _band_mask(low, high):
    band = Band(low, high)
    return lambda query, key: band.mask(query, key)


@functools.lru_cache(maxsize=256)
def grid_of(part: Part, length: int) -> Grid | None:
    """How splash computes a part, None where it cannot."""
    rows = rows_of(part, length)
    if rows is None or rows.filled or not rows.pairs:
        return None
    widest = int((rows.last - rows.first).max())
    block_q, queries = _blocks(rows.queries, widest)
    block_k, keys = _blocks(rows.keys, widest)
    more = queries - rows.queries
    first, last = np.pad(rows.first, (0, more)), np.pad(rows.last, (0, more))
    rows = rows._replace(first=first, last=last)
    ends, mask, fits = (first << BITS | last).astype(np.uint32).view(np.int32), _row_mask, True
    if isinstance(part.rule, Band) and len(part.queries.positions(length)) == 1:
        low, high = part.rule.low, part.rule.high
        behind = low is not None and rows.queries - 1 - low < rows.keys
        if (low is not None or high is not None) and (behind or keys == rows.keys):
            ends, mask = np.arange(queries, dtype=np.int32), _band_mask(low, high)
    if mask is _row_mask:
        fits = keys < 1 << BITS
        if (first == 0).all() and (last == keys).all():
            ends = mask = None
    return Grid(rows, block_q, block_k, queries, keys, ends, mask, fits)


def _blocks(places: int, widest: int) -> tuple[int, int]:
    """Places in a block, and in all blocks together."""
    most = WIDEST if widest > NARROW else NARROW
    count = math.ceil(places / most)
    block = LANES * math.ceil(places / (count * LANES))
    return block, block * math.ceil(places / block)


@functools.lru_cache(maxsize=256)
def visits(part: Part, length: int) -> np.ndarray:
    """Bool [blocks of queries, blocks of keys]: where a query reads a key."""
    grid = grid_of(part, length)
    first, last = (x.reshape(-1, grid.block_q, 1) for x in (grid.rows.first, grid.rows.last))
    start = np.arange(0, grid.keys, grid.block_k)
    reads = (first < last) & (first < start + grid.block_k) & (last > start)
    return reads.any(1)


def _steps(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The blocks every row of the grid visits, and whether it does: [rows, most visits]."""
    width = max(int(seen.sum(1).max()), 1)
    order = np.argsort(~seen, axis=1, kind="stable")[:, :width]
    run = np.take_along_axis(seen, order, 1)
    # A step that does nothing keeps the block of the step before: nothing is fetched.
    kept = np.maximum(run.sum(1, keepdims=True) - 1, 0)
    last = np.take_along_axis(order, kept, 1)
    return np.where(run, order, last), run


def _small(x: np.ndarray) -> jax.Array:
    """[1, ...] in the smallest signed type that holds it: scalar memory is scarce."""
    top = int(x.max(initial=0))
    kind = np.int8 if top < 1 << 7 else np.int16 if top < 1 << 15 else np.int32
    return jnp.asarray(x[None].astype(kind))


def _info(grid: Grid, blocks, run):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info

    ends = None if grid.ends is None else jnp.asarray(grid.ends)
    return splash_attention_mask_info.MaskInfo(
        data_next=_small(blocks), mask_next=None, block_mask=_small(run.astype(np.int32)),
        partial_mask_blocks=None, q_sequence=ends,
    )  # fmt: skip


def _options(grid: Grid):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    q, k = grid.block_q, grid.block_k
    sizes = kernel.BlockSizes(
        block_q=q, block_kv=k, block_kv_compute=k, block_q_dkv=q, block_kv_dkv=k,
        block_kv_dkv_compute=k, block_q_dq=q, block_kv_dq=k,
    )  # fmt: skip
    return kernel, {
        "mask_value": kernel.DEFAULT_MASK_VALUE, "is_mqa": False, "block_sizes": sizes,
        "residual_checkpoint_name": None, "mask_function": grid.mask,
        "attn_logits_soft_cap": None, "interpret": backend() != "tpu",
    }  # fmt: skip


def _filled_up(x, places: int, fill=0.0):
    """[B, groups, places, ...] as [B, places, ...], filled up."""
    x = x.reshape(x.shape[0], -1, *x.shape[3:])
    widths = [(0, 0), (0, places - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, widths, constant_values=fill)


class Splash(NamedTuple):
    """The fused kernel (`ops.fused.Fused`)."""

    def can(self, part: Part, length: int) -> bool:
        grid = grid_of(part, length)
        return grid is not None and grid.fits

    def _arrays(self, part, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT):
        """[B, H, places, K] of q, k, v and the segments of queries and keys, if any."""
        kernel, _ = _options(grid := grid_of(part, q_BTHK.shape[1]))
        q = _filled_up(taken(part.queries, q_BTHK), grid.queries)
        k, v = (_filled_up(taken(part.keys, x), grid.keys) for x in (k_BSGK, v_BSGK))
        q, k, v = (x.swapaxes(1, 2) for x in (q * jnp.asarray(scale, q.dtype), k, v))
        if segments_BT is None:
            return q, k, v, None
        x = segments_BT.astype(jnp.int32)[..., None, None]
        rows = [(part.queries, grid.queries), (part.keys, grid.keys)]
        ids = (_filled_up(taken(layout, x, 0), places, 0)[..., 0, 0] for layout, places in rows)
        return q, k, v, kernel.SegmentIds(*ids)

    def forward(self, part, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT):
        length = q_BTHK.shape[1]
        grid = grid_of(part, length)
        kernel, options = _options(grid)
        arrays = self._arrays(part, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT)
        info = _info(grid, *_steps(visits(part, length)))
        call = kernel.SplashAttentionKernel(info, None, None, save_residuals=True, **options)
        out, (logsum,) = jax.vmap(call)(*arrays)
        out = _back(part.queries, out.swapaxes(1, 2), length)
        logsum = _back(part.queries, logsum.swapaxes(1, 2)[..., None], length, FAR)[..., 0]
        empty = nothing_seen(logsum)
        return jnp.where(empty[..., None], 0.0, out), jnp.where(empty, FAR, logsum)

    def backward(self, part, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, out, logsum, g):
        length = q_BTHK.shape[1]
        grid, seen = grid_of(part, length), visits(part, length)
        kernel, options = _options(grid)
        arrays = self._arrays(part, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT)
        blocks, run = _steps(seen.T)
        infos = _info(grid, *_steps(seen)), _info(grid, blocks.T, run.T)
        rows = lambda x, **fill: _filled_up(
            taken(part.queries, x, **fill), grid.queries, **fill
        ).swapaxes(1, 2)
        # Places that are filled up get no weight.
        sums = rows(logsum[..., None], fill=-FAR)[..., 0]

        def one(q, k, v, segments, out, logsum, g):
            kept = (q, k, v, segments, None, out, logsum, *infos)
            found = kernel._splash_attention_bwd(save_residuals=False, res=kept, do=g, **options)
            return found[3:6]

        dq, dk, dv = jax.vmap(one)(*arrays, rows(out), sums, rows(g))
        dq, dk, dv = (x.swapaxes(1, 2) for x in (dq, dk, dv))
        if isinstance(part.keys, Chosen):  # where blocks stand in several groups they are added
            dk, dv = dk.astype(jnp.float32), dv.astype(jnp.float32)
        dq = _back(part.queries, dq, length).astype(jnp.float32) * scale
        return dq, _back(part.keys, dk, length), _back(part.keys, dv, length)


def _back(layout, x, length: int, fill=0.0):
    """[B, T, H, K] of [B, places, H, K]."""
    groups, places = layout.positions(length).shape
    x = x[:, : groups * places].reshape(x.shape[0], groups, places, *x.shape[2:])
    return put_back(layout, x, length, fill)


SPLASH = Splash()


@functools.lru_cache(maxsize=1)
def available() -> bool:
    """Whether this jax has the kernels with the arguments they are given here."""
    import inspect

    try:
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as k

        taken_by = set(inspect.signature(k._splash_attention_bwd).parameters)
        _, options = _options(grid_of(Part(Span(), Span()), LANES))
    except (ImportError, AttributeError, TypeError):
        return False
    return taken_by == {*options, "save_residuals", "res", "do"}


def splash_can(pattern: HeadPattern, length: int) -> str:
    """What stands against splash for a pattern, empty when nothing does."""
    if not any(SPLASH.can(part, length) for part in pattern.parts(length)):
        return f"in no part of {pattern} at length {length} the keys of a query stand in a row"
    return "" if available() else "this jax lacks the splash kernels"


def splash_pairs(pattern: HeadPattern, length: int) -> int:
    """Query-key pairs in the blocks that the parts' grids visit, and of what is left over."""
    mine, rest = split(SPLASH, pattern, length)
    pairs = sum(
        int(visits(part, length).sum()) * grid.block_q * grid.block_k
        for part, grid in ((part, grid_of(part, length)) for part in mine)
    )
    return pairs + multiplied_by(rest)


def splash(pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT, slopes_H):
    """Attention [B, T, H, K] of a pattern; no ALiBi. Interpreted where there is no TPU: slow."""
    return merged(SPLASH, pattern, scale, q_BTHK, k_BSGK, v_BSGK, segments_BT)
