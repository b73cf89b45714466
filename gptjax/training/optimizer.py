"""Optimizers and schedules, all from optax; what is ours is which parameters decay.

AdamW (arXiv 1711.05101), Adafactor (1804.04235), Lion (2302.06675), Muon (Jordan et al. 2024,
with AdamW for embeddings, heads and vectors).
"""

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gptjax.models.config import DecoderConfig
from gptjax.training.config import OptimConfig, decay_length, warmup_length


class Hyper(NamedTuple):
    """The numbers in which runs of one compiled program may differ: traced, not compiled in.

    Scalars, or [K] for a population of K runs. Rates are per step, lengths in steps.
    """

    lr: Any
    vector_lr: Any  # of Muon's vectors and tables, as a multiple of lr
    final_lr: Any  # as a multiple of lr
    warmup: Any
    decay: Any  # length of the fall: to the end of the run, or the cooldown of "wsd"
    steps: Any
    b1: Any
    b2: Any
    epsilon: Any
    weight_decay: Any
    clip_norm: Any


def hyper_of(config: OptimConfig, steps: int) -> Hyper:
    """The traced numbers of a run of `steps` steps."""
    return Hyper(
        np.float32(config.lr),
        np.float32((config.vector_lr or config.lr) / config.lr),
        np.float32(config.final_lr),
        np.int32(warmup_length(config, steps)),
        np.int32(decay_length(config, steps)),
        np.int32(steps),
        np.float32(config.b1),
        np.float32(config.b2),
        np.float32(config.epsilon),
        np.float32(config.weight_decay),
        np.float32(config.clip_norm),
    )


def learning_rate(schedule: str, hyper: Hyper, step) -> jax.Array:
    """The rate of a step, counted from 0; optax's schedules take no traced lengths."""
    if schedule == "inverse_sqrt":
        # Evaluated during the warm-up too, at steps below 0.
        offset = jnp.maximum(hyper.warmup, 1)
        share = (offset / jnp.maximum(step - hyper.warmup + offset, offset)) ** 0.5
    elif schedule == "constant":
        share = jnp.ones(())
    else:
        left = jnp.clip((hyper.steps - step) / hyper.decay, 0.0, 1.0)
        if schedule == "cosine":
            left = 0.5 * (1.0 - jnp.cos(jnp.pi * left))
        share = hyper.final_lr + (1.0 - hyper.final_lr) * left
    rise = jnp.minimum((step + 1) / jnp.maximum(hyper.warmup, 1), 1.0)
    return hyper.lr * jnp.where(step < hyper.warmup, rise, share)


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate of each step of a run, from 0 to `steps` - 1."""
    hyper = hyper_of(config, steps)
    return lambda step: learning_rate(config.schedule, hyper, step)


def path_name(path) -> str:
    """A key path in words: `layer_0/attention/query`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def decay_mask(config: OptimConfig, params):
    """True for every parameter that decays: those whose path no `no_decay` regex finds."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(re.search(p, path_name(path)) for p in config.no_decay), params
    )


BLOCKS = re.compile(
    r"(^|/)(query_)?layer(s/|_\d|/)"
    r"|^(transform|pooler|(understanding|generation)_(in|out))$"
)


def is_block_matrix(name: str) -> bool:
    """Whether a parameter of this path is a weight inside a block: as wide on both sides.

    Those between the blocks and a head, and between a trunk and the modules of its tasks, are too.
    A router of experts is not: it is a head, of as many outputs at every width. Nor are tables of
    distances and of types.
    """
    if not BLOCKS.search(name):
        return False
    return not re.search("bias|scale|router|distance_scores|type_keys", name)


def width_multipliers(config: OptimConfig, model: DecoderConfig, params):
    """Under muP, what each parameter's rate is multiplied by; 1 at the base width and elsewhere.

    Tables, vectors and the head keep their rate (the head's logits are scaled instead), and so
    does what Adam trains beside Muon. A weight inside a block must move its output by as much at
    every width, when r is the width in base widths:

    - AdamW and Lion move every entry by the rate, and all entries of a row pull in one direction:
      1 / r (arXiv 2203.03466, table 8).
    - Adafactor moves it by a share of its root mean square, which falls as 1 / sqrt(r) itself:
      1 / sqrt(r) (arXiv 2407.05872).
    - Muon's update has the root mean square of AdamW's but full rank, so a spectral norm of
      sqrt(max(in, out)), where sqrt(out / in) is wanted (arXiv 2310.17813): 1 / sqrt(r). Of one
      key/value head for all (`out` a head's size) it is less by sqrt(out's growth / r).

    Weight decay takes no part: it shrinks by lr * weight_decay at every width, so that its time
    scale in steps transfers as well. Adam's epsilon is the same everywhere and must stay below
    the gradients, which fall as 1 / width.
    """
    r = model.width_ratio
    power = {"adamw": 1.0, "lion": 1.0, "adafactor": 0.5, "muon": 0.5}[config.name]

    def multiplier(path, _):
        name = path_name(path)
        if not is_block_matrix(name):
            return 1.0
        shared = model.num_kv_heads == 1 and re.search("(key|value)$", name)
        if name.startswith(("understanding", "generation")):  # with as many as other heads
            shared = False
        if config.name == "muon" and shared:
            return math.sqrt(model.head_ratio) / r
        return r**-power

    return jax.tree_util.tree_map_with_path(multiplier, params)


def make_optimizer(
    config: OptimConfig, steps: int, model: DecoderConfig | None = None
) -> optax.GradientTransformation:
    """The optimizer of a run with its numbers built in; `init` alone needs no model."""
    return traced_optimizer(config, hyper_of(config, steps), model)


def traced_optimizer(
    config: OptimConfig, hyper: Hyper, model: DecoderConfig | None
) -> optax.GradientTransformation:
    """Clipping, the update rule, decoupled decay and the schedule in one transformation.

    Of `config` only what `program_config` keeps is read; the numbers are those of `hyper`. Rates
    follow the width as the model's parametrization says; the state is the same without a model.
    """
    schedule = lambda step: learning_rate(config.schedule, hyper, step)
    mask = lambda params: decay_mask(config, params)
    if config.name in ("adamw", "lion"):
        direction = optax.scale_by_lion(hyper.b1, hyper.b2)
        if config.name == "adamw":
            direction = optax.scale_by_adam(hyper.b1, hyper.b2, hyper.epsilon)
        rule = optax.chain(
            _by_width(direction, config, model),
            optax.add_decayed_weights(hyper.weight_decay, mask),
            optax.scale_by_learning_rate(schedule),
        )
    else:
        rule = _muon(hyper, schedule)
        if config.name == "adafactor":
            rule = optax.adafactor(schedule, weight_decay_rate=None, min_dim_size_to_factor=128)
        rule = optax.chain(
            _by_width(rule, config, model), _scheduled_decay(schedule, hyper.weight_decay, mask)
        )
    if not config.clip_norm:
        return rule
    return optax.chain(optax.clip_by_global_norm(hyper.clip_norm), rule)


def _by_width(rule, config: OptimConfig, model: DecoderConfig | None):
    """The rule with its updates multiplied as muP asks."""
    if model is None or model.parametrization == "standard":
        return rule

    def update(updates, state, params):
        updates, state = rule.update(updates, state, params)
        multipliers = width_multipliers(config, model, params)
        return jax.tree.map(lambda u, m: m * u, updates, multipliers), state

    return optax.GradientTransformation(rule.init, update)


def _scheduled_decay(schedule, rate, mask):
    """Decoupled weight decay for a rule that has scaled its updates already."""

    def update(updates, state, params):
        lr = schedule(state.count)
        shrink = lambda u, p, decays: u - lr * rate * p if decays else u
        updates = jax.tree.map(shrink, updates, params, mask(params))
        return updates, optax.ScaleByScheduleState(count=state.count + 1)

    init = lambda params: optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))
    return optax.GradientTransformation(init, update)


def _muon(hyper: Hyper, schedule):
    """Muon for the weights inside blocks, Adam for everything else, both without decay.

    Updates are scaled to the root mean square of AdamW's (0.2, arXiv 2502.16982), so one learning
    rate serves both. Newton-Schulz multiplies sharded matrices with themselves, which explicit
    axes refuse: the update runs with automatic axes, and keeps the layout of its input.
    """
    from optax.contrib import MuonDimensionNumbers, muon

    def as_matrix(path, leaf):
        name = path_name(path)
        if not is_block_matrix(name):
            return None
        # Axes over which to repeat: of scanned layers, of experts.
        lead = ("layers" in name.split("/")) + ("/experts/" in name)
        axes = tuple(range(lead, leaf.ndim))
        split = len(axes) - 1 if name.endswith(("output", "down")) else 1
        return MuonDimensionNumbers(axes[:split], axes[split:])

    rule = muon(
        schedule,
        eps=hyper.epsilon,
        adam_b1=hyper.b1,
        adam_b2=hyper.b2,
        adam_learning_rate=lambda step: hyper.vector_lr * schedule(step),
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
