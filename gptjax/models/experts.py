"""A mixture of experts in the place of a feed-forward layer (arXiv 1701.06538).

Switch is one expert for each token with weights as routed (arXiv 2101.03961), Mixtral two with
weights that sum to 1 (arXiv 2401.04088). Logits and probabilities of the router are float32.

With a capacity an expert takes `ExpertsConfig.slots` tokens of a sequence, the earlier ones first
and of one token its likelier choice; the rest pass by on the residual stream. A sequence is the
group of arXiv 2006.16668, so what is dropped depends neither on the batch, its microbatches nor the
mesh, and no later token displaces an earlier one, as there (all first choices before all second) it
may. With a cache, which knows nothing of earlier loads, no token is dropped. Loads are balanced
over a whole microbatch.

On a mesh experts are split over `tensor`: every device has the tokens of its rows and computes
those that chose its experts, and the results are added up. `fsdp` shards the experts' storage and
gathers them before use, as all weights.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gptjax.models.config import TransformerConfig
from gptjax.models.config_parts import ExpertsConfig
from gptjax.models.parameters import init_std, normal, weight, zeros
from gptjax.ops import activations
from gptjax.ops.experts import (
    Choices,
    choose,
    layout_with_capacity,
    layout_without_limit,
    product,
    ranks,
    rearranged,
)
from gptjax.ops.linear import PRODUCT, project
from gptjax.ops.shards import explicit_mesh, on_shards
from gptjax.parallel import Rules, place
from gptjax.parallel.rules import activation_spec


class Routing(NamedTuple):
    """What routers tell of a batch: float32 scalars, of one layer or the mean over layers.

    balance_loss: E times the sum over experts of the share of tokens that chose it times its mean
    probability (arXiv 2101.03961, equation 4). Each of several choices counts, as for Mixtral in
    transformers: even loads give `top_k`. Layers are told apart (there they are pooled).
    z_loss: the mean squared log-partition of the logits (arXiv 2202.08906, equation 5).
    dropped: the share of choices beyond a capacity; busiest: of choices of the most chosen expert.
    """

    balance_loss: jax.Array
    z_loss: jax.Array
    dropped: jax.Array
    busiest: jax.Array


class Experts(nn.Module):
    """Feed-forward layers, plain or gated, of which every token takes some."""

    config: TransformerConfig
    rules: Rules

    @nn.compact
    def __call__(self, x_BTD, cached: bool):
        """What the layer adds to x, and its `Routing`; cached: no expert is ever full."""
        c, e = self.config, self.config.experts
        T, D = x_BTD.shape[1:]
        # Of the base width's deviation and rate, with its logits divided, as muP treats the head.
        std = init_std(c, D) * c.width_ratio**0.5
        shape = (D, e.count)
        router_DE = weight(self, "router", normal(std), shape, ("embed", None), "float32")
        spec = activation_spec(("batch", "seq", None), (*x_BTD.shape[:2], e.count), self.rules)
        x32_BTD = self.jittered(x_BTD.astype(jnp.float32))
        logits_BTE = project(x32_BTD, router_DE, out_sharding=spec) / c.width_ratio
        choices = choose(logits_BTE, e.top_k, e.weights)
        capacity = 0 if cached else e.slots(T)
        ranks_BTJ = ranks(choices) if capacity else jnp.zeros_like(choices.experts_BTJ)
        routing = told(logits_BTE, choices, ranks_BTJ, capacity)
        return self.computed(x_BTD, choices, ranks_BTJ, capacity), routing

    def jittered(self, x_BTD):
        """The router's input; in training, while a "dropout" key is given, with noise."""
        jitter = self.config.experts.jitter
        if not jitter or not self.has_rng("dropout"):
            return x_BTD
        key = self.make_rng("dropout")
        noise = jax.random.uniform(key, x_BTD.shape, x_BTD.dtype, 1 - jitter, 1 + jitter)
        return x_BTD * place(noise, ("batch", "seq", None), self.rules)

    def computed(self, x_BTD, choices: Choices, ranks_BTJ, capacity: int):
        """The weighted sum [B, T, D] of what the chosen experts make of every token."""
        c, mesh = self.config, explicit_mesh()
        weights = self.weights(x_BTD.shape[-1])
        tokens = (x_BTD, choices.experts_BTJ, ranks_BTJ, choices.weights_BTJ)
        axes = self.rules.expert
        compute = functools.partial(
            _compute,
            names=tuple(weights),
            unit=c.unit,
            capacity=capacity,
            axes=axes if mesh is not None else (),
        )
        if mesh is not None:
            batch = self.rules.spec(("batch", "seq", None), x_BTD.shape, mesh)
            names = {name: self.axes(name) for name in weights}
            specs = [
                self.rules.gathered_spec(names[name], w.shape, mesh) for name, w in weights.items()
            ]
            compute = on_shards(compute, (*[batch] * len(tokens), *specs), batch)
        return compute(*tokens, *weights.values())

    def weights(self, width: int) -> dict[str, jax.Array]:
        """Every expert's matrices and biases by name, each with a leading axis of experts."""
        c = self.config
        D, E, F = width, c.experts.count, c.ff_size
        made = {}
        for name in ("up", "gate", "down") if c.gated else ("up", "down"):
            shape = (E, F, D) if name == "down" else (E, D, F)
            std = init_std(c, shape[1], residual=name == "down")
            made[name] = weight(self, name, normal(std), shape, self.axes(name))
            if c.mlp_biases:
                bias = f"{name}_bias"
                made[bias] = weight(self, bias, zeros, (E, shape[2]), self.axes(bias))
        return made

    def axes(self, name: str) -> tuple[str | None, ...]:
        """Logical axis names; feed-forward columns stay whole, `tensor` is the experts'."""
        return {
            "down": ("expert", None, "embed"),
            "down_bias": ("expert", "embed"),
            "up_bias": ("expert", None),
            "gate_bias": ("expert", None),
        }.get(name, ("expert", "embed", None))


def told(logits_BTE, choices: Choices, ranks_BTJ, capacity: int) -> Routing:
    """The `Routing` of one layer; a capacity of 0 is none."""
    E, J = logits_BTE.shape[-1], choices.experts_BTJ.shape[-1]
    share_E = jnp.mean(choices.taken_BTJE, axis=(0, 1)).sum(axis=0)
    chance_E = jnp.mean(choices.probs_BTE, axis=(0, 1))
    log_z_BT = jax.nn.logsumexp(logits_BTE, axis=-1)
    dropped = jnp.mean((ranks_BTJ >= capacity).astype(jnp.float32)) if capacity else 0.0
    return Routing(
        E * jnp.sum(share_E * chance_E),
        jnp.mean(jnp.square(log_z_BT)),
        jnp.asarray(dropped, jnp.float32),
        jnp.max(share_E) / J,
    )


def mean_routing(routings: list[Routing | None]) -> Routing | None:
    """The mean over layers that have experts, scanned ones stacked; None where there are none."""
    routings = [routing for routing in routings if routing is not None]
    if not routings:
        return None
    layers = sum(routing.dropped.size for routing in routings)
    return jax.tree.map(lambda *one: sum(map(jnp.sum, one)) / layers, *routings)


def routing_loss(config: ExpertsConfig, routings: list[Routing | None]):
    """What routers add to the loss of a token: the weighted sum over layers, or None."""
    losses = [
        jnp.sum(config.balance_weight * one.balance_loss + config.z_weight * one.z_loss)
        for one in routings
        if one is not None
    ]
    return sum(losses) if losses else None


def _compute(x_BTD, experts_BTJ, ranks_BTJ, weights_BTJ, *arrays, names, unit, capacity, axes):
    """The part of the sum that comes of the experts that are here; over `axes` it is complete."""
    given = dict(zip(names, arrays, strict=True))
    B, T, D = x_BTD.shape
    J, count = experts_BTJ.shape[-1], given["up"].shape[0]
    first = count * jax.lax.axis_index(axes) if axes else 0
    if capacity:
        layout = layout_with_capacity(experts_BTJ, ranks_BTJ, first, count, capacity)
    else:
        layout = layout_without_limit(experts_BTJ, first, count)
    pairs_PD = jnp.broadcast_to(x_BTD[:, :, None], (B, T, J, D)).reshape(-1, D)
    rows_MD = rearranged(pairs_PD, layout.pair_M, layout.row_P)
    expert_M = _expert_of_rows(layout, count)

    def times(x, name):
        y = product(x, given[name], layout.sizes_E)
        if f"{name}_bias" in given:
            y = y + given[f"{name}_bias"].at[expert_M].get(mode="clip")
        return checkpoint_name(y, PRODUCT)

    act = activations.activation(unit)
    h_MF = times(rows_MD, "up")
    h_MF = act(times(rows_MD, "gate")) * h_MF if "gate" in given else act(h_MF)
    out_BTJD = rearranged(times(h_MF, "down"), layout.row_P, layout.pair_M).reshape(B, T, J, D)
    y_BTD = jnp.sum(weights_BTJ[..., None] * out_BTJD.astype(weights_BTJ.dtype), axis=2)
    y_BTD = y_BTD.astype(x_BTD.dtype)
    return jax.lax.psum(y_BTD, axes) if axes else y_BTD


def _expert_of_rows(layout, count: int):
    """[M]: the expert of every row; beyond the last where a row is of none."""
    rows = layout.pair_M.shape[0]
    if layout.sizes_E is None:
        return jnp.arange(rows) // (rows // count)
    return jnp.sum(jnp.arange(rows)[:, None] >= jnp.cumsum(layout.sizes_E)[None], axis=1)
