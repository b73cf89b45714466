"""One jitted function takes a state and a batch to the next state and its metrics."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gptjax.models.decoder import Decoder
from gptjax.ops.shards import explicit_mesh, reshard
from gptjax.parallel import DEFAULT_RULES
from gptjax.training.optimizer import make_optimizer, make_schedule
from gptjax.training.state import TrainState


class StepMetrics(NamedTuple):
    """Scalars of one update, read by the host after the next update has been dispatched.

    `squares` holds every gradient's sum of squares in the order of `jax.tree.leaves(params)`;
    `finite` is False when the update was refused because the loss or a gradient was not finite.
    """

    loss: jax.Array
    accuracy: jax.Array
    grad_norm: jax.Array
    lr: jax.Array
    finite: jax.Array
    squares: jax.Array


def loss_sums(experiment, params, batch, dropout_key=None):
    """The objective's sums on one batch."""
    model = Decoder(experiment.model)
    rngs = None if dropout_key is None else {"dropout": dropout_key}

    def apply(tokens_BT, **inputs):
        return model.apply({"params": params}, tokens_BT, rngs=rngs, **inputs)

    return experiment.objective.sums(apply, batch)


def gradients(experiment, params, batch, key):
    """Gradient of the mean loss per predicted token, and the sums; accumulates if asked to."""
    tokens = float(batch["targets"].size)
    if "weights" in batch:
        tokens = jnp.maximum(batch["weights"].sum(), 1.0)

    def loss(params, batch, key):
        sums = loss_sums(experiment, params, batch, key)
        return sums.total / tokens, sums

    grad = jax.grad(loss, has_aux=True)
    pieces = experiment.optim.accumulation
    if pieces == 1:
        return grad(params, batch, key)

    def accumulate(carry, piece):
        index, rows = piece
        piece_key = None if key is None else jax.random.fold_in(key, index)
        return jax.tree.map(jnp.add, carry, grad(params, rows, piece_key)), None

    pieces_of = jax.tree.map(lambda x: _split_rows(x, pieces), batch)
    first = jax.tree.map(lambda x: x[0], pieces_of)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=getattr(leaf, "sharding", None)),
        jax.eval_shape(grad, params, first, key),
    )
    carry, _ = jax.lax.scan(accumulate, zeros, (jnp.arange(pieces), pieces_of))
    return carry


def _split_rows(x, pieces: int):
    """[B, ...] to [pieces, B / pieces, ...] so that every device keeps its own rows."""
    mesh = explicit_mesh()
    rows = x.shape[0] // pieces
    if mesh is None:
        return jnp.moveaxis(x.reshape(rows, pieces, *x.shape[1:]), 1, 0)
    whole = (None,) * (x.ndim - 1)
    axes = DEFAULT_RULES.batch
    split = jax.lax.reshape(x, (rows, pieces, *x.shape[1:]), out_sharding=jax.P(axes, None, *whole))
    return reshard(jnp.moveaxis(split, 1, 0), jax.P(None, axes, *whole))


def make_train_step(experiment):
    """`(state, batch) -> (state, metrics)`; the state is donated.

    A step whose loss or gradient is not finite changes nothing but the step counter, so that the
    last good parameters survive it.
    """
    optimizer = make_optimizer(experiment.optim, experiment.steps)
    schedule = make_schedule(experiment.optim, experiment.steps)

    def update(grads, params, opt_state):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def train_step(state: TrainState, batch) -> tuple[TrainState, StepMetrics]:
        key = None
        if experiment.model.dropout:
            key = jax.random.fold_in(state.rng, state.step)
        grads, sums = gradients(experiment, state.params, batch, key)
        squares = jnp.stack([jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)])
        loss = sums.nats / sums.tokens
        grad_norm = jnp.sqrt(squares.sum())
        finite = jnp.isfinite(sums.total) & jnp.isfinite(grad_norm)
        # A branch, not a select per array: that would keep a copy of the whole old state.
        params, opt_state = jax.lax.cond(
            finite, update, lambda grads, *old: old, grads, state.params, state.opt_state
        )
        metrics = StepMetrics(
            loss=loss,
            accuracy=sums.correct / sums.tokens,
            grad_norm=grad_norm,
            lr=jnp.asarray(schedule(state.step), jnp.float32),
            finite=finite,
            squares=squares,
        )
        return TrainState(state.step + 1, params, opt_state, state.rng), metrics

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(experiment):
    """`(params, batch) -> LossSums`, without dropout."""
    return jax.jit(lambda params, batch: loss_sums(experiment, params, batch))
