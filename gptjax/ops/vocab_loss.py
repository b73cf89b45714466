"""Cross entropy over a large vocabulary without ever holding all logits.

Tokens are taken in chunks. When the loss is differentiated the gradients of the hidden states and
of the head are computed in the forward pass, while a chunk's logits are at hand, and scaled by the
incoming gradient in the backward pass: three matrix products, where recomputing needs four.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from gptjax.ops.shards import axes_of, on_shards, reshard, spec_of, without

_CHUNK_LOGITS = 2**25  # logits of a chunk by default: 128 MB in float32
_UNROLLED = 4  # more chunks than these run in a loop


class VocabStats(NamedTuple):
    """Sums over all tokens, float32 scalars without gradient."""

    cross_entropy: jax.Array  # nats, times the token's weight
    z_term: jax.Array  # z_loss * logsumexp^2, times the token's weight
    weight_sum: jax.Array
    correct: jax.Array  # weights of the tokens whose target has the largest logit


def vocab_loss(
    hidden_BTD,
    head_VD,
    targets_BT,
    weights_BT=None,
    *,
    head_bias_V=None,
    z_loss: float = 0.0,
    chunk_tokens: int | None = None,
):
    """(total nats, VocabStats): the summed cross entropy plus the z-loss (arXiv 2204.02311).

    The logits are hidden_BTD @ head_VD.T + head_bias_V in float32, whatever the dtype of their
    factors. weights_BT: 1 everywhere by default. chunk_tokens: tokens a device takes at a time, by
    default so that their logits fill 128 MB. The total is differentiable in hidden, head, bias and
    weights; targets outside the vocabulary need weight 0. The vocabulary may be sharded.
    """
    batch, sequence, _ = spec_of(hidden_BTD)
    rows = (*axes_of(batch), *axes_of(sequence))
    vocab = without(spec_of(head_VD)[0], rows)
    hidden_BTD = reshard(hidden_BTD, P(batch, sequence, None))
    head_VD = reshard(head_VD, P(vocab, None))
    targets_BT = reshard(targets_BT, P(batch, sequence))
    if weights_BT is None:
        weights_BT = jnp.ones(targets_BT.shape, jnp.float32)
    weights_BT = reshard(weights_BT.astype(jnp.float32), P(batch, sequence))
    if head_bias_V is not None:
        head_bias_V = reshard(head_bias_V, P(vocab))
    settings = _Settings(z_loss, chunk_tokens, batch, sequence, vocab)
    return _vocab_loss(settings, hidden_BTD, head_VD, head_bias_V, targets_BT, weights_BT)


class _Settings(NamedTuple):
    z_loss: float
    chunk_tokens: int | None
    batch: object  # entries of the PartitionSpecs
    sequence: object
    vocab: object


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _vocab_loss(settings, hidden_BTD, head_VD, bias_V, targets_BT, weights_BT):
    return _sharded(settings, False, hidden_BTD, head_VD, bias_V, targets_BT, weights_BT)[:2]


def _vocab_loss_forward(settings, hidden_BTD, head_VD, bias_V, targets_BT, weights_BT):
    total, stats, gradients = _sharded(
        settings, True, hidden_BTD, head_VD, bias_V, targets_BT, weights_BT
    )
    return (total, stats), gradients


def _vocab_loss_backward(settings, gradients, g):
    g_total = g[0]
    dhidden, dhead, dbias, dweights = (
        None if x is None else (x * g_total).astype(x.dtype) for x in gradients
    )
    return dhidden, dhead, dbias, None, dweights


_vocab_loss.defvjp(_vocab_loss_forward, _vocab_loss_backward)


def _sharded(settings, with_gradient, hidden_BTD, head_VD, bias_V, targets_BT, weights_BT):
    """(total, stats, gradients for a unit gradient of the total or None)."""
    token = P(settings.batch, settings.sequence)
    hidden, head, bias = P(*token, None), P(settings.vocab, None), P(settings.vocab)
    arrays = [hidden_BTD, head_VD, targets_BT, weights_BT]
    in_specs = [hidden, head, token, token]
    gradient_specs = (hidden, head, None, token)
    if bias_V is not None:
        arrays, in_specs = [*arrays, bias_V], [*in_specs, bias]
        gradient_specs = (hidden, head, bias, token)
    out_specs = (P(), VocabStats(P(), P(), P(), P()), gradient_specs if with_gradient else None)

    def run(h_BTD, head_VD, targets_BT, weights_BT, bias_V=None):
        sums, gradients = _local_loss(
            settings,
            with_gradient,
            h_BTD.reshape(-1, h_BTD.shape[-1]),
            head_VD,
            bias_V,
            targets_BT.reshape(-1),
            weights_BT.reshape(-1),
        )
        rows = (*axes_of(settings.batch), *axes_of(settings.sequence))
        sums = _sum_over(sums, rows)
        stats = VocabStats(*sums)
        if with_gradient:
            dhidden, dhead, dbias, dweights = gradients
            gradients = (
                _sum_over(dhidden, axes_of(settings.vocab)).reshape(h_BTD.shape),
                _sum_over(dhead, rows).astype(head_VD.dtype),
                None if dbias is None else _sum_over(dbias, rows).astype(bias_V.dtype),
                dweights.reshape(weights_BT.shape),
            )
            gradients = (gradients[0].astype(h_BTD.dtype), *gradients[1:])
        return stats.cross_entropy + stats.z_term, stats, gradients

    return on_shards(run, tuple(in_specs), out_specs)(*arrays)


def _sum_over(x, axes):
    return jax.lax.psum(x, axes) if axes else x


def _local_loss(settings, with_gradient, hidden_ND, head_VD, bias_V, targets_N, weights_N):
    """Sums [4] and float32 gradients of the local tokens against the local vocabulary."""
    tokens, vocab = hidden_ND.shape[0], head_VD.shape[0]
    size = settings.chunk_tokens or max(1, _CHUNK_LOGITS // vocab)
    count = -(-tokens // size)
    size = -(-tokens // count)  # the same number of chunks, of even size
    chunk = functools.partial(_chunk_loss, settings, with_gradient, head_VD, bias_V)
    rows = (hidden_ND, targets_N, weights_N)
    shared = None  # running sums, head and bias gradients
    per_token = []  # gradients of hidden and weights

    whole = tokens // size
    if count > _UNROLLED:
        cut = whole * size
        stacked = tuple(x[:cut].reshape(whole, size, *x.shape[1:]) for x in rows)

        def step(carry, xs):
            part, ys = chunk(*xs)
            return jax.tree.map(jnp.add, carry, part), ys

        like = jax.eval_shape(chunk, *(x[0] for x in stacked))[0]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        shared, ys = jax.lax.scan(step, zeros, stacked)
        per_token.append(jax.tree.map(lambda x: x.reshape(cut, *x.shape[2:]), ys))
        starts = [cut] if cut < tokens else []
    else:
        starts = range(0, tokens, size)
    for start in starts:
        part, ys = chunk(*(x[start : start + size] for x in rows))
        shared = part if shared is None else jax.tree.map(jnp.add, shared, part)
        per_token.append(ys)
    sums, dhead, dbias = shared
    if not with_gradient:
        return sums, None
    dhidden, dweights = jax.tree.map(lambda *xs: jnp.concatenate(xs), *per_token)
    return sums, (dhidden, dhead, dbias, dweights)


def _chunk_loss(settings, with_gradient, head_VD, bias_V, hidden_CD, targets_C, weights_C):
    """((sums, head gradient, bias gradient), (hidden gradient, loss per token)) of one chunk."""
    axes, vocab = axes_of(settings.vocab), head_VD.shape[0]
    contract = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
    logits = contract(hidden_CD, head_VD, (((1,), (1,)), ((), ())))
    if bias_V is not None:
        logits = logits + bias_V.astype(jnp.float32)[None, :]
    targets = targets_C - (jax.lax.axis_index(axes) * vocab if axes else 0)
    here = (targets >= 0) & (targets < vocab)
    picked = jnp.take_along_axis(logits, jnp.clip(targets, 0, vocab - 1)[:, None], 1)[:, 0]
    picked = _sum_over(jnp.where(here, picked, 0.0), axes)
    top = jnp.max(logits, 1)
    top = jax.lax.pmax(top, axes) if axes else top
    logsum = top + jnp.log(_sum_over(jnp.sum(jnp.exp(logits - top[:, None]), 1), axes))
    entropy, z_term = logsum - picked, settings.z_loss * jnp.square(logsum)
    sums = (
        jnp.sum(weights_C * entropy),
        jnp.sum(weights_C * z_term),
        jnp.sum(weights_C),
        jnp.sum(weights_C * (picked >= top)),
    )
    if not with_gradient:
        return (sums, None, None), None
    slope = weights_C * (1.0 + 2.0 * settings.z_loss * logsum)
    hit = jnp.arange(vocab)[None, :] == targets[:, None]
    dlogits = jnp.exp(logits - logsum[:, None]) * slope[:, None]
    dlogits = dlogits - jnp.where(hit, weights_C[:, None], 0.0)
    dbias = None if bias_V is None else jnp.sum(dlogits, 0)
    dlogits = dlogits.astype(hidden_CD.dtype)
    dhidden = contract(dlogits, head_VD, (((1,), (0,)), ((), ())))
    dhead = contract(dlogits, hidden_CD, (((0,), (0,)), ((), ())))
    return (sums, dhead, dbias), (dhidden, entropy + z_term)
