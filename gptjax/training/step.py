"""One jitted function takes a state and a batch to the next state and its metrics."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gptjax.models.build import model_of
from gptjax.ops.shards import explicit_mesh, reshard, spec_of
from gptjax.parallel import DEFAULT_RULES
from gptjax.training.config import program_config
from gptjax.training.optimizer import hyper_of, learning_rate, traced_optimizer
from gptjax.training.state import TrainState


class StepMetrics(NamedTuple):
    """Scalars of one update, read by the host after the next update has been dispatched.

    `squares` holds every gradient's sum of squares in the order of `jax.tree.leaves(params)`;
    `finite` is False when the update was refused because the loss or a gradient was not finite.
    `routing`: of a model with experts, what its routers tell (`models.experts.Routing`).
    """

    loss: jax.Array
    accuracy: jax.Array
    grad_norm: jax.Array
    lr: jax.Array
    finite: jax.Array
    squares: jax.Array
    routing: Any = None


def loss_sums(model, objective, params, batch, dropout_key=None):
    """The objective's sums on one batch, for a model's config and its parameters."""
    module = model_of(model)
    rngs = None if dropout_key is None else {"dropout": dropout_key}

    def apply(tokens_BT, **inputs):
        return module.apply({"params": params}, tokens_BT, rngs=rngs, **inputs)

    return objective.sums(apply, batch)


def gradients(sums_of, pieces: int, params, batch, key):
    """Gradient of the mean loss per predicted token, and the sums, over so many microbatches.

    `sums_of(params, batch, key)` gives the sums of a batch.
    """
    tokens = float(batch["targets"].size)
    if "weights" in batch:
        tokens = jnp.maximum(batch["weights"].sum(), 1.0)

    def loss(params, batch, key):
        sums = sums_of(params, batch, key)
        return sums.total / tokens, sums

    grad = jax.grad(loss, has_aux=True)
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
    """`(state, batch) -> (state, metrics)` of one run; the state is donated."""
    program = train_program(experiment)
    hyper = hyper_of(experiment.optim, experiment.steps)
    return lambda state, batch: program(state, batch, hyper)


def train_program(experiment):
    """The jitted `(state, batch, hyper) -> (state, metrics)` that all runs of its shape share.

    A run of another length, rate, decay or seed takes the same compiled program: its numbers are
    in `hyper`. A step whose loss or gradient is not finite changes nothing but the step counter,
    so that the last good parameters survive it.
    """
    return jax.jit(train_step_of(experiment), donate_argnums=0)


def train_step_of(experiment, guard: Literal["branch", "select"] = "branch"):
    """The function under `train_program`; one object for all experiments of a program.

    `guard` says how a step that is not finite is refused: by a branch, or by a select per array,
    which is what a branch becomes under `vmap`.
    """
    optim = program_config(experiment.optim)
    return _train_step(experiment.model, experiment.objective, optim, guard)


@functools.lru_cache(maxsize=32)
def _train_step(model, objective, optim, guard):
    def update(grads, params, opt_state, hyper):
        updates, opt_state = traced_optimizer(optim, hyper, model).update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def train_step(state: TrainState, batch, hyper) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(state.rng, state.step) if model.random else None
        sums_of = functools.partial(loss_sums, model, objective)
        grads, sums = gradients(sums_of, optim.accumulation, state.params, batch, key)
        squares = jnp.stack([jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)])
        loss = sums.nats / sums.tokens
        grad_norm = jnp.sqrt(squares.sum())
        finite = jnp.isfinite(sums.total) & jnp.isfinite(grad_norm)
        old = state.params, state.opt_state
        if guard == "select":
            new = update(grads, *old, hyper)
            params, opt_state = jax.tree.map(functools.partial(_select, finite), new, old)
        else:
            # A select per array would keep a copy of the whole old state.
            keep = lambda grads, params, opt_state, hyper: (params, opt_state)
            params, opt_state = jax.lax.cond(finite, update, keep, grads, *old, hyper)
        metrics = StepMetrics(
            loss=loss,
            accuracy=sums.correct / sums.tokens,
            grad_norm=grad_norm,
            lr=learning_rate(optim.schedule, hyper, state.step),
            finite=finite,
            squares=squares,
            routing=jax.tree.map(lambda one: one / sums.tokens, sums.routing),
        )
        return TrainState(state.step + 1, params, opt_state, state.rng), metrics

    return train_step


def _select(flag, new, old):
    """`new` where the scalar flag holds; under `vmap` the flag is laid out as the arrays are."""
    return jnp.where(reshard(jnp.broadcast_to(flag, old.shape), spec_of(old)), new, old)


def make_eval_step(experiment):
    """`(params, batch) -> LossSums`, without dropout; runs of one shape share it."""
    return jax.jit(_eval_step(experiment.model, experiment.objective))


@functools.lru_cache(maxsize=32)
def _eval_step(model, objective):
    return lambda params, batch: loss_sums(model, objective, params, batch)
