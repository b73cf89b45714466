"""Optimizers and schedules, all from optax; what is ours is which parameters decay.

AdamW (arXiv 1711.05101), Adafactor (1804.04235), Lion (2302.06675), Muon (Jordan et al. 2024,
with AdamW for embeddings, heads and vectors).
"""

import math
import re

import jax
import jax.numpy as jnp
import optax

from gptjax.training.config import OptimConfig


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate of each step, from 0 to `steps` - 1."""
    warmup = math.ceil(config.warmup_fraction * steps)
    end = config.final_lr * config.lr
    rest = max(steps - warmup, 1)
    if config.schedule == "cosine":
        body = optax.cosine_decay_schedule(config.lr, rest, config.final_lr)
    elif config.schedule == "linear":
        body = optax.linear_schedule(config.lr, end, rest)
    elif config.schedule == "wsd":
        cooldown = max(math.ceil(config.decay_fraction * steps), 1)
        body = optax.linear_schedule(config.lr, end, cooldown, max(rest - cooldown, 0))
    elif config.schedule == "inverse_sqrt":
        offset = max(warmup, 1)
        # The body is evaluated during the warm-up too, at steps below 0.
        body = lambda step: config.lr * (offset / (jnp.maximum(step, 0) + offset)) ** 0.5
    else:
        body = optax.constant_schedule(config.lr)
    if not warmup:
        return body
    rise = lambda step: config.lr * (step + 1) / warmup
    return optax.join_schedules([rise, body], [warmup])


def path_name(path) -> str:
    """A key path in words: `layer_0/attention/query`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def decay_mask(config: OptimConfig, params):
    """True for every parameter that decays: those whose path no `no_decay` regex finds."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(re.search(p, path_name(path)) for p in config.no_decay), params
    )


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, the update rule, decoupled decay and the schedule in one transformation."""
    schedule = make_schedule(config, steps)
    mask = lambda params: decay_mask(config, params)
    decay = {"weight_decay": config.weight_decay, "mask": mask}
    if config.name == "adamw":
        rule = optax.adamw(schedule, config.b1, config.b2, config.epsilon, **decay)
    elif config.name == "lion":
        rule = optax.lion(schedule, config.b1, config.b2, **decay)
    elif config.name == "adafactor":
        rule = optax.chain(
            optax.adafactor(schedule, weight_decay_rate=None, min_dim_size_to_factor=128),
            _scheduled_decay(schedule, config.weight_decay, mask),
        )
    else:
        rule = optax.chain(
            _muon(config, schedule), _scheduled_decay(schedule, config.weight_decay, mask)
        )
    if not config.clip_norm:
        return rule
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)


def _scheduled_decay(schedule, rate: float, mask):
    """Decoupled weight decay for a rule that has scaled its updates already."""

    def update(updates, state, params):
        lr = schedule(state.count)
        shrink = lambda u, p, decays: u - lr * rate * p if decays else u
        updates = jax.tree.map(shrink, updates, params, mask(params))
        return updates, optax.ScaleByScheduleState(count=state.count + 1)

    init = lambda params: optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))
    return optax.GradientTransformation(init, update)


def _muon(config: OptimConfig, schedule):
    """Muon for the weights inside blocks, Adam for everything else, both without decay.

    Updates are scaled to the root mean square of AdamW's (0.2, arXiv 2502.16982), so one learning
    rate serves both. Newton-Schulz multiplies sharded matrices with themselves, which explicit
    axes refuse: the update runs with automatic axes, and keeps the layout of its input.
    """
    from optax.contrib import MuonDimensionNumbers, muon

    def as_matrix(path, leaf):
        name = path_name(path)
        if not name.startswith("layer") or re.search("bias|scale", name):
            return None
        lead = 1 if name.startswith("layers/") else 0
        axes = tuple(range(lead, leaf.ndim))
        split = len(axes) - 1 if name.endswith(("output", "down")) else 1
        return MuonDimensionNumbers(axes[:split], axes[split:])

    vector = (config.vector_lr or config.lr) / config.lr
    rule = muon(
        schedule,
        eps=config.epsilon,
        adam_b1=config.b1,
        adam_b2=config.b2,
        adam_learning_rate=lambda step: vector * schedule(step),
        muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(
            as_matrix, params
        ),
        consistent_rms=0.2,
    )

    def update(updates, state, params):
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return rule.update(updates, state, params)
        out = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (updates, state))
        return jax.sharding.auto_axes(rule.update, out_sharding=out)(updates, state, params)

    return optax.GradientTransformation(rule.init, update)
