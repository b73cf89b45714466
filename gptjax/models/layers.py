"""The parts of a transformer block: norm, attention, feed-forward, and the cache of one layer."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gptjax.models.config import LayerKind, TransformerConfig
from gptjax.models.experts import Experts
from gptjax.models.parameters import init_std, normal, ones, weight, zeros
from gptjax.ops import activations
from gptjax.ops.attention import attention, cross_attention, decode_attention
from gptjax.ops.linear import project
from gptjax.ops.norms import layer_norm, rms_norm
from gptjax.ops.patterns import Pattern
from gptjax.ops.relative import (
    DistanceKeys,
    DistanceScores,
    bucket_rows,
    relative_attention,
    sinusoids,
)
from gptjax.ops.rotary import alibi_slopes, rotary, rotary_blocks
from gptjax.parallel import DEFAULT_RULES, Rules, place
from gptjax.parallel.rules import activation_spec


class Cache(NamedTuple):
    """Keys and values of every layer after `length` positions.

    `layers` holds the `Slots` of every layer; of scanned layers those of each pattern in turn, with
    a leading axis. `written`: in the same order the keys and values of what an encoder wrote; None
    before the first tokens, and in decoders.
    """

    layers: Any
    length: jax.Array
    written: Any = None


class Inputs(NamedTuple):
    """What every layer of a model gets beside the stream.

    positions: [T] or [B, T]; segments_BT: None or integers that keep attention within a document;
    prefix_BT: None or which tokens all others read, also earlier ones; scores_LH: None or the
    learned score of every distance in every head; written_BSD: None or what an encoder wrote, with
    segments of its own; blocks_BT: None or places within a blank.
    """

    positions: jax.Array
    segments_BT: jax.Array | None = None
    prefix_BT: jax.Array | None = None
    scores_LH: jax.Array | None = None
    written_BSD: jax.Array | None = None
    written_segments_BS: jax.Array | None = None
    blocks_BT: jax.Array | None = None


class Norm(nn.Module):
    config: TransformerConfig
    rules: Rules

    @nn.compact
    def __call__(self, x_BTD):
        c = self.config
        width = x_BTD.shape[-1]
        scale_D = weight(self, "scale", ones, (width,), ("embed",))
        if c.norm == "rmsnorm":
            return rms_norm(x_BTD, scale_D, c.norm_epsilon)
        bias_D = weight(self, "bias", zeros, (width,), ("embed",)) if c.norm_biases else None
        return layer_norm(x_BTD, scale_D, bias_D, c.norm_epsilon)


class Dropout(nn.Module):
    """Inverted dropout (arXiv 1207.0580), active while a "dropout" key is given."""

    rate: float

    @nn.compact
    def __call__(self, x):
        if not self.rate or not self.has_rng("dropout"):
            return x
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, x.shape)
        keep = place(keep, ("batch",) + (None,) * (x.ndim - 1), DEFAULT_RULES)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))


def distance_scores(module: nn.Module, pattern: Pattern, count: int, both: bool):
    """The learned score of every distance in every head, from a table of the module.

    [L, H] for the distances 0..L-1 to earlier keys; for both [2 L - 1, H], of L - 1 down to
    1 - L. An encoder's table has rows of their own for later keys (arXiv 1910.10683).
    """
    c = module.config
    shape = (c.attention.buckets, c.num_heads)
    std = 1.0 / math.sqrt(c.d_model) if c.init == "t5" else 0.02
    table = weight(module, "distance_scores", normal(std), shape, (None, "heads"))
    rows = bucket_rows(count, shape[0], c.attention.max_distance, both, not pattern.causal)
    spec = activation_spec((None, "heads"), (len(rows), c.num_heads), module.rules)
    return table.at[rows].get(out_sharding=spec)


class Attention(nn.Module):
    """Multi-head, grouped (arXiv 2305.13245) or multi-query attention with a functional cache."""

    config: TransformerConfig
    rules: Rules
    pattern: Pattern

    @nn.compact
    def __call__(self, x_BTD, inputs: Inputs, cache, queries_BTD=None):
        """What the layer adds to x [B, T, D], and the cache; queries: of other vectors than x."""
        c = self.config
        D, H = x_BTD.shape[-1], c.num_heads
        w_q, w_k, w_v = self.projections(D)
        q_BTHK = self.heads(x_BTD if queries_BTD is None else queries_BTD, *w_q)
        k_BTGK, v_BTGK = self.heads(x_BTD, *w_k), self.heads(x_BTD, *w_v)
        if c.positions == "rotary":
            q_BTHK = rotary(q_BTHK, inputs.positions, c.rotary.base, c.rotary.fraction)
            k_BTGK = rotary(k_BTGK, inputs.positions, c.rotary.base, c.rotary.fraction)
        elif c.positions == "rotary_blocks":
            places = inputs.positions, inputs.blocks_BT, c.rotary.base
            q_BTHK, k_BTGK = rotary_blocks(q_BTHK, *places), rotary_blocks(k_BTGK, *places)
        T, M = x_BTD.shape[1], c.attention.memory
        both = cache is None and (not self.pattern.causal or inputs.prefix_BT is not None)
        longest = cache.layers.slot.shape[0] if cache is not None else 2 * M if M else T
        terms = {
            "pattern": self.pattern,
            "scale": c.score_scale,
            "segments_BT": inputs.segments_BT,
            "prefix_BT": inputs.prefix_BT,
        }
        relative = self.relative(x_BTD.dtype, inputs, longest, both)
        slopes_H = alibi_slopes(H) if c.positions == "alibi" else None
        if cache is not None:
            out_BTHK, layers = decode_attention(
                q_BTHK,
                k_BTGK,
                v_BTGK,
                cache.layers,
                pattern=self.pattern,
                index=cache.length,
                slopes_H=slopes_H,
                relative=relative,
                scale=c.score_scale,
                prefix_BT=inputs.prefix_BT,
            )
            cache = cache._replace(layers=layers)
        elif relative is not None:
            if M:  # as the source: what is remembered teaches the projections, not what it is of
                old_BTD = jax.lax.stop_gradient(x_BTD)
                terms["remembered"] = [self.heads(old_BTD, *w) for w in (w_k, w_v)]
            out_BTHK = relative_attention(
                q_BTHK, k_BTGK, v_BTGK, relative=relative, memory=M, both=both, **terms
            )
        else:
            kernel = c.attention.kernel
            out_BTHK = attention(q_BTHK, k_BTGK, v_BTGK, kernel=kernel, slopes_H=slopes_H, **terms)
        return self.output(out_BTHK, D), cache

    def relative(self, dtype, inputs: Inputs, longest: int, both: bool):
        """What scores get from distances up to the longest, or None; both: also to later keys."""
        c = self.config
        if c.positions == "relative_bias" and c.attention.bias_tables == "layer":
            return DistanceScores(distance_scores(self, self.pattern, longest, both))
        if inputs.scores_LH is not None:
            return DistanceScores(inputs.scores_LH if both else inputs.scores_LH[:longest])
        if c.positions != "relative":
            return None
        shape, axes = (c.num_heads, c.qk_size), ("heads", "head_dim")
        std = init_std(c, c.d_model)
        w_DHK = weight(self, "distance", normal(std), (c.d_model, *shape), ("embed", *axes))
        distances_L = np.arange(longest - 1, -longest, -1) if both else np.arange(longest)
        r_LD = sinusoids(distances_L, c.d_model).astype(dtype)
        spec = activation_spec((None, *axes), (len(distances_L), *shape), self.rules)
        keys_LHK = project(r_LD, w_DHK, out_sharding=spec)
        biases = (weight(self, f"{name}_bias", zeros, shape, axes) for name in ("content", "place"))
        return DistanceKeys(keys_LHK, *biases)

    def output(self, out_BTHK, width: int):
        """What the layer adds to the stream."""
        c = self.config
        H, K = out_BTHK.shape[2:]
        std = init_std(c, H * K, residual=True)
        w_HKD = weight(self, "output", normal(std), (H, K, width), ("heads", "head_dim", "embed"))
        shape = (*out_BTHK.shape[:2], width)
        spec = activation_spec(("batch", "seq", None), shape, self.rules)
        y_BTD = project(out_BTHK, w_HKD, contract=2, out_sharding=spec)
        if c.output_biases:
            y_BTD = y_BTD + weight(self, "output_bias", zeros, (width,), ("embed",))[None, None]
        return y_BTD

    def projections(self, width: int):
        """Those of queries, keys and values."""
        c = self.config
        return (
            self.projection("query", width, c.num_heads, c.qk_size, "heads"),
            self.projection("key", width, c.kv_heads, c.qk_size, "kv_heads"),
            self.projection("value", width, c.kv_heads, c.head_size, "kv_heads"),
        )

    def projection(self, name: str, width: int, count: int, size: int, axis: str):
        """The weights of one of the three input products, its bias or None, and its heads' axis."""
        c = self.config
        std = init_std(c, width, residual=c.block == "deep" and name == "value")
        if name == "query" and c.init in ("fan_in_zero", "t5"):  # T5 does not scale its scores
            std = 0.0 if c.init == "fan_in_zero" else std / math.sqrt(size)
        shape = (width, count, size)
        w_DHK = weight(self, name, normal(std), shape, ("embed", axis, "head_dim"))
        bias_HK = None
        if c.attention_biases:
            bias_HK = weight(self, f"{name}_bias", zeros, shape[1:], (axis, "head_dim"))
        return w_DHK, bias_HK, axis

    def heads(self, x_BTD, w_DHK, bias_HK, axis: str):
        """An input product, [B or 1, T, count, K] with `count` split over `tensor`."""
        out = (*x_BTD.shape[:2], *w_DHK.shape[1:])
        spec = activation_spec(("batch", "seq", axis, "head_dim"), out, self.rules)
        y_BTHK = project(x_BTD, w_DHK, out_sharding=spec)
        return y_BTHK if bias_HK is None else y_BTHK + bias_HK[None, None]


class CrossAttention(Attention):
    """A decoder's attention to what an encoder wrote; without positions (arXiv 1910.10683)."""

    @nn.compact
    def __call__(self, x_BTD, inputs: Inputs, kept):
        """What the layer adds to x [B, T, D], and the encoder's keys and values, kept or made."""
        w_q, w_k, w_v = self.projections(x_BTD.shape[-1])
        if kept is None:
            kept = tuple(self.heads(inputs.written_BSD, *w) for w in (w_k, w_v))
        out_BTHK = cross_attention(
            self.heads(x_BTD, *w_q),
            *kept,
            segments_BT=inputs.segments_BT,
            key_segments_BS=inputs.written_segments_BS,
            scale=self.config.score_scale,
        )
        return self.output(out_BTHK, x_BTD.shape[-1]), kept


class MLP(nn.Module):
    """Feed-forward layer, plain or gated (arXiv 2002.05202)."""

    config: TransformerConfig
    rules: Rules

    @nn.compact
    def __call__(self, x_BTD):
        c = self.config
        D, F = x_BTD.shape[-1], c.ff_size
        act = activations.activation(c.unit)
        h_BTF = self.columns("up", x_BTD)
        h_BTF = act(self.columns("gate", x_BTD)) * h_BTF if c.gated else act(h_BTF)
        std = init_std(c, F, residual=True)
        w_FD = weight(self, "down", normal(std), (F, D), ("mlp", "embed"))
        spec = activation_spec(("batch", "seq", None), x_BTD.shape, self.rules)
        y_BTD = project(h_BTF, w_FD, out_sharding=spec)
        if c.mlp_biases:
            y_BTD = y_BTD + weight(self, "down_bias", zeros, (D,), ("embed",))[None, None]
        return y_BTD

    def columns(self, name: str, x_BTD):
        c = self.config
        D, F = x_BTD.shape[-1], c.ff_size
        std = init_std(c, D, residual=c.block == "deep")
        w_DF = weight(self, name, normal(std), (D, F), ("embed", "mlp"))
        spec = activation_spec(("batch", "seq", "mlp"), (*x_BTD.shape[:2], F), self.rules)
        h_BTF = project(x_BTD, w_DF, out_sharding=spec)
        if c.mlp_biases:
            h_BTF = h_BTF + weight(self, f"{name}_bias", zeros, (F,), ("mlp",))[None, None]
        return h_BTF


class Block(nn.Module):
    """One layer: pre-norm (GPT-2), post-norm (GPT-1) or parallel (GPT-J, PaLM arXiv 2204.02311).

    Deep is post-norm with a heavier stream (arXiv 2203.00555), weighed as in GLM-130B.

    GPT-NeoX (arXiv 2204.06745) has a norm each for the two branches that are parallel.
    """

    config: TransformerConfig
    rules: Rules
    kind: LayerKind

    @nn.compact
    def __call__(self, x_BTD, cache, inputs: Inputs, queries_BTD=None):
        """The stream [B, T, D] after the layer, and its cache and `Routing`, where it has any.

        queries: of other vectors than the stream's.
        """
        c = self.config

        def norm(name):
            return Norm(c, self.rules, name=name)

        def drop(y_BTD):
            return Dropout(c.dropout)(y_BTD)

        mix = Attention(c, self.rules, self.kind.pattern, name="attention")

        def feed(h_BTD):
            if not self.kind.experts:
                return MLP(c, self.rules, name="mlp")(h_BTD), None
            return Experts(c, self.rules, name="experts")(h_BTD, cached=cache is not None)

        def across(h_BTD, cache):
            layer = CrossAttention(c, self.rules, self.kind.pattern, name="cross_attention")
            y_BTD, kept = layer(h_BTD, inputs, None if cache is None else cache.written)
            return y_BTD, None if cache is None else cache._replace(written=kept)

        if c.block == "pre":
            y_BTD, cache = mix(norm("attention_norm")(x_BTD), inputs, cache, queries_BTD)
            x_BTD = x_BTD + drop(y_BTD)
            if self.kind.cross:
                y_BTD, cache = across(norm("cross_norm")(x_BTD), cache)
                x_BTD = x_BTD + drop(y_BTD)
            y_BTD, routing = feed(norm("mlp_norm")(x_BTD))
            x_BTD = x_BTD + drop(y_BTD)
        elif c.block in ("post", "deep"):
            share = math.sqrt(2 * c.num_layers) if c.block == "deep" else 1.0
            y_BTD, cache = mix(x_BTD, inputs, cache, queries_BTD)
            x_BTD = norm("attention_norm")(share * x_BTD + drop(y_BTD))
            if self.kind.cross:
                y_BTD, cache = across(x_BTD, cache)
                x_BTD = norm("cross_norm")(share * x_BTD + drop(y_BTD))
            y_BTD, routing = feed(x_BTD)
            x_BTD = norm("mlp_norm")(share * x_BTD + drop(y_BTD))
        else:
            two = c.block == "parallel_two_norms"
            h_BTD = norm("attention_norm" if two else "norm")(x_BTD)
            y_BTD, cache = mix(h_BTD, inputs, cache, queries_BTD)
            h_BTD = norm("mlp_norm")(x_BTD) if two else h_BTD
            z_BTD, routing = feed(h_BTD)
            x_BTD = x_BTD + drop(y_BTD + z_BTD)
        return x_BTD, (cache, routing)
