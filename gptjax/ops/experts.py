"""Tokens to experts and back: which experts, rows ordered by expert, products by expert.

Letters of these modules: E experts, J choices of a token, P = B T J pairs of a token and an expert
that it chose, M rows that experts compute. A row holds one pair; where an expert takes a fixed
number of tokens some rows hold none, and where it takes all, rows stand by expert without gaps.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from gptjax.ops.shards import backend

BLOCK = 128  # rows that a CPU multiplies at once


class Choices(NamedTuple):
    """Where tokens go: experts_BTJ from the likeliest down, their weights, and all probabilities.

    taken_BTJE is 1 where a choice is of an expert, and carries no gradient.
    """

    experts_BTJ: jax.Array
    weights_BTJ: jax.Array
    probs_BTE: jax.Array
    taken_BTJE: jax.Array


class Layout(NamedTuple):
    """Which pair each row holds and which row holds each pair; beyond the last: none.

    sizes_E: rows of each expert, in their order, or None where all have the same number.
    """

    pair_M: jax.Array
    row_P: jax.Array
    sizes_E: jax.Array | None


def choose(logits_BTE, count: int, weights: Literal["normalised", "as_routed"]) -> Choices:
    """The `count` likeliest experts of every token.

    weights: the probabilities of the chosen, made to sum to 1 or as they are.
    """
    probs_BTE = jax.nn.softmax(logits_BTE, axis=-1)
    experts_BTJ = jax.lax.top_k(jax.lax.stop_gradient(probs_BTE), count)[1]
    every = jnp.arange(logits_BTE.shape[-1])[None, None, None]
    taken_BTJE = (experts_BTJ[..., None] == every).astype(probs_BTE.dtype)
    weights_BTJ = jnp.sum(taken_BTJE * probs_BTE[:, :, None], axis=-1)
    if weights == "normalised":
        weights_BTJ = weights_BTJ / jnp.sum(weights_BTJ, axis=-1, keepdims=True)
    return Choices(experts_BTJ, weights_BTJ, probs_BTE, taken_BTJE)


def ranks(choices: Choices):
    """[B, T, J]: how many pairs before this one, in its sequence, chose the same expert.

    Earlier tokens come first, and of one token its likelier choice.
    """
    B, T, J, E = choices.taken_BTJE.shape
    taken = choices.taken_BTJE.astype(jnp.int32)
    before = jnp.cumsum(taken.reshape(B, T * J, E), axis=1).reshape(B, T, J, E) - taken
    return jnp.sum(before * taken, axis=-1)


def layout_with_capacity(experts_BTJ, ranks_BTJ, first, count: int, capacity: int) -> Layout:
    """Rows of experts `first` to `first + count - 1`, `capacity` of them for every sequence.

    Pairs of other experts and those beyond the capacity have no row.
    """
    B, rows = experts_BTJ.shape[0], count * experts_BTJ.shape[0] * capacity
    local_BTJ = experts_BTJ - first
    here = (local_BTJ >= 0) & (local_BTJ < count) & (ranks_BTJ < capacity)
    at_BTJ = (local_BTJ * B + jnp.arange(B)[:, None, None]) * capacity + ranks_BTJ
    row_P = jnp.where(here, at_BTJ, rows).reshape(-1)
    return Layout(_inverse(row_P, rows), row_P, None)


def layout_without_limit(experts_BTJ, first, count: int) -> Layout:
    """Rows of experts `first` to `first + count - 1`, one for each pair that chose them."""
    local_P = experts_BTJ.reshape(-1) - first
    local_P = jnp.where((local_P >= 0) & (local_P < count), local_P, count)
    sizes_E = jnp.sum(local_P[:, None] == jnp.arange(count)[None], axis=0, dtype=jnp.int32)
    order = jnp.argsort(local_P, stable=True)
    pair_M = jnp.where(jnp.arange(order.size) < jnp.sum(sizes_E), order, order.size)
    return Layout(pair_M, _inverse(pair_M, order.size), sizes_E)


def _inverse(places, size: int):
    """For each of `size` places who stands there, or how many there are in all: nobody."""
    nobody = jnp.full((size,), places.size, jnp.int32)
    return nobody.at[places].set(jnp.arange(places.size, dtype=jnp.int32), mode="drop")


@jax.custom_vjp
def rearranged(x, index, inverse):
    """Rows of x [., D] by index, zeros for one beyond the last; `inverse` leads back.

    A row is taken once at most, so the gradient is taken by the inverse and nothing is added up.
    """
    return x.at[index].get(mode="fill", fill_value=0)


def _rearranged_forward(x, index, inverse):
    return rearranged(x, index, inverse), inverse


def _rearranged_backward(inverse, g):
    return g.at[inverse].get(mode="fill", fill_value=0), None, None


rearranged.defvjp(_rearranged_forward, _rearranged_backward)


def product(x_MD, w_EDF, sizes_E=None):
    """[M, F]: each row times the matrix of its expert; rows of no expert are 0 or unspecified.

    sizes_E: rows of each expert in turn; None: M / E each. `jax.lax.ragged_dot` is a dense product
    for every expert where a platform has no kernel for it: on a CPU blocks of rows are multiplied.
    """
    if sizes_E is None:
        x_ECD = x_MD.reshape(w_EDF.shape[0], -1, x_MD.shape[1])
        return jnp.einsum("ecd,edf->ecf", x_ECD, w_EDF).reshape(-1, w_EDF.shape[2])
    if backend() == "cpu":
        return _blocked(x_MD, w_EDF, sizes_E)
    return jax.lax.ragged_dot(x_MD, w_EDF, sizes_E)


@jax.custom_vjp
def _blocked(x_MD, w_EDF, sizes_E):
    return _by_rows(x_MD, w_EDF, sizes_E, 0)


def _blocked_forward(x_MD, w_EDF, sizes_E):
    return _blocked(x_MD, w_EDF, sizes_E), (x_MD, w_EDF, sizes_E)


def _blocked_backward(kept, g_MF):
    x_MD, w_EDF, sizes_E = kept
    w_grad = _by_experts(x_MD, g_MF, sizes_E).astype(w_EDF.dtype)
    return _by_rows(g_MF, w_EDF, sizes_E, 1), w_grad, None


_blocked.defvjp(_blocked_forward, _blocked_backward)


def _blocks(x, sizes_E):
    """(rows with a block to spare, block, start of each expert's rows)."""
    block = min(BLOCK, x.shape[0])
    return jnp.pad(x, ((0, block), (0, 0))), block, jnp.cumsum(sizes_E) - sizes_E


def _dot(a, b, a_axis: int, b_axis: int):
    dimensions = (((a_axis,), (b_axis,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _by_rows(x, w, sizes_E, axis: int):
    """Each row contracted with `axis` of its expert's matrix; rows of no expert are 0."""
    rows = x.shape[0]
    x, block, starts_E = _blocks(x, sizes_E)

    def expert(e, out):
        matrix = w[e]

        # A last block may reach into the next expert's rows, which are then written over.
        def part(i, out):
            at = (starts_E[e] + i * block, 0)
            y = _dot(jax.lax.dynamic_slice(x, at, (block, x.shape[1])), matrix, 1, axis)
            return jax.lax.dynamic_update_slice(out, y.astype(out.dtype), at)

        return jax.lax.fori_loop(0, -(-sizes_E[e] // block), part, out)

    out = jnp.zeros((x.shape[0], w.shape[2 - axis]), x.dtype)
    out = jax.lax.fori_loop(0, w.shape[0], expert, out)[:rows]
    return jnp.where(jnp.arange(rows)[:, None] < jnp.sum(sizes_E), out, 0)


def _by_experts(x_MD, g_MF, sizes_E):
    """[E, D, F]: the rows of x times those of g, summed over the rows of each expert."""
    x_MD, block, starts_E = _blocks(x_MD, sizes_E)
    g_MF = jnp.pad(g_MF, ((0, block), (0, 0)))
    shape = (x_MD.shape[1], g_MF.shape[1])

    def expert(e, out):
        def part(i, total):
            at = starts_E[e] + i * block
            x, g = (jax.lax.dynamic_slice_in_dim(a, at, block) for a in (x_MD, g_MF))
            own = (i * block + jnp.arange(block) < sizes_E[e])[:, None]
            return total + _dot(jnp.where(own, x, 0), g, 0, 0)

        count = -(-sizes_E[e] // block)
        total = jax.lax.fori_loop(0, count, part, jnp.zeros(shape, jnp.float32))
        return jax.lax.dynamic_update_index_in_dim(out, total, e, 0)

    out = jnp.zeros((sizes_E.shape[0], *shape), jnp.float32)
    return jax.lax.fori_loop(0, sizes_E.shape[0], expert, out)
