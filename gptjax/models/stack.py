"""The layers of a transformer, from vectors of tokens to the stream above the last of them.

Decoders, encoders, both sides of an encoder-decoder and a trunk of several tasks are stacks; what
they have above it (a head, a pooler) is their own. One module serves training, evaluation and
cached decoding; the cache is an argument and a result, so `apply` stays pure.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gptjax.models.config import LayerKind, TransformerConfig
from gptjax.models.experts import Routing
from gptjax.models.layers import Block, Cache, Dropout, Inputs, Norm, distance_scores
from gptjax.models.parameters import (
    embedding_std,
    head_std,
    init_std,
    normal,
    position_std,
    weight,
    zeros,
)
from gptjax.ops.linear import PRODUCT, project, unembed
from gptjax.parallel import DEFAULT_RULES, Rules
from gptjax.parallel.rules import activation_spec

REMAT_POLICIES = {
    "products": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "block": jax.checkpoint_policies.nothing_saveable,
}


class Output(NamedTuple):
    """What a model returns: the factors of its logits, and the cache or None.

    Logits are hidden_BTD @ head_VD.T + head_bias_V, where the head has a bias. states_BTD: the
    stream above the last layer. Of experts there are the mean `Routing` of the layers, and what
    training adds to the loss of a token. rows_BC and tokens_BTC: logits of the classes of rows and
    of tokens; pooled_BD: what those of rows are made from.
    """

    hidden_BTD: jax.Array
    head_VD: jax.Array
    cache: Cache | None = None
    head_bias_V: jax.Array | None = None
    routing: Routing | None = None
    auxiliary: jax.Array | None = None
    states_BTD: jax.Array | None = None
    pooled_BD: jax.Array | None = None
    rows_BC: jax.Array | None = None
    tokens_BTC: jax.Array | None = None


class Stack(nn.Module):
    """Layers in turn, and how vectors of tokens enter them; every choice stands in the config.

    cross: whether every layer reads what an encoder wrote.
    """

    config: TransformerConfig
    rules: Rules = DEFAULT_RULES
    cross: bool = False

    def table(self, name: str, std: float, rows: int):
        """A matrix of one vector for each id."""
        shape = (rows, self.config.embedding_size)
        return weight(self, name, normal(std), shape, ("vocab", "embed"))

    def vectors(self, table_VD, tokens_BT):
        """The vectors [B, T, E] of tokens."""
        shape = (*tokens_BT.shape, table_VD.shape[-1])
        spec = activation_spec(("batch", "seq", None), shape, self.rules)
        x_BTD = table_VD.at[tokens_BT].get(out_sharding=spec, mode="clip")
        share = self.config.embedding.gradient_share
        if share < 1:
            x_BTD = x_BTD * share + jax.lax.stop_gradient(x_BTD) * (1 - share)
        return x_BTD * self.config.embedding.scale

    def words(self):
        """The table of tokens."""
        return self.table("embedding", embedding_std(self.config), self.config.vocab_size)

    def widening(self):
        """The matrix from the width of token vectors to the stream's, None where they are one."""
        c = self.config
        if not c.embedding.size:
            return None
        axes, shape = (None, "embed"), (c.embedding.size, c.d_model)
        return weight(self, "embedding_in", normal(init_std(c, shape[0])), shape, axes)

    def widened(self, x_BTE, w_ED):
        """Vectors of tokens as wide as the stream, by `widening`."""
        if w_ED is None:
            return x_BTE
        shape = (*x_BTE.shape[:2], self.config.d_model)
        spec = activation_spec(("batch", "seq", None), shape, self.rules)
        return project(x_BTE, w_ED, out_sharding=spec)

    def headed(self, x_BTD, table_VD):
        """The factors of the logits, hidden states and a matrix, and a bias or None."""
        c = self.config
        if c.embedding.size:
            axes, shape = ("embed", None), (c.d_model, c.embedding.size)
            w_DE = weight(self, "embedding_out", normal(init_std(c, c.d_model)), shape, axes)
            wide = (*x_BTD.shape[:2], c.embedding_size)
            spec = activation_spec(("batch", "seq", None), wide, self.rules)
            x_BTD = project(x_BTD, w_DE, out_sharding=spec)
        head_VD, bias_V = table_VD, None
        if not c.tied_embeddings:
            head_VD = self.table("head", head_std(c), c.outputs)
        if c.embedding.head_bias:
            bias_V = weight(self, "head_bias", zeros, (c.outputs,), ("vocab",))
        # muP's output multiplier, on the side of which every head has the same.
        return x_BTD * (c.embedding.logit_scale / c.width_ratio), head_VD, bias_V

    def product(self, name: str, x_BTD, width: int):
        """A product with a bias, whole on every device."""
        wide = x_BTD.shape[-1]
        std = init_std(self.config, wide)
        w_DF = weight(self, name, normal(std), (wide, width), ("embed", None))
        spec = activation_spec(("batch", "seq", None), (*x_BTD.shape[:2], width), self.rules)
        y_BTF = project(x_BTD, w_DF, out_sharding=spec)
        return y_BTF + weight(self, f"{name}_bias", zeros, (width,), (None,))[None, None]

    def of_rows(self, states_BTD):
        """What a pooler makes of rows, [B, D], and logits of their classes, [B, C], or None."""
        c = self.config
        if c.pooler == "none":
            return None, None
        pooled_B1D = jnp.tanh(self.product("pooler", states_BTD[:, :1], states_BTD.shape[-1]))
        rows_BC = self.product("classes", pooled_B1D, c.classes)[:, 0] if c.classes else None
        return pooled_B1D[:, 0], rows_BC

    def entered(self, x_BTD, positions, more):
        """The stream below the first layer: with positions and other vectors, normed, dropped.

        more: ids [B, T] by the names of tables, each with how many rows it has.
        """
        c = self.config
        spec = activation_spec(("batch", "seq", None), x_BTD.shape, self.rules)
        if c.position_axes:
            x_BTD = x_BTD + self.position_vectors(positions, spec)
        for name, (rows, ids_BT) in more.items():
            shape = (rows, c.d_model)
            table_RD = weight(self, name, normal(position_std(c)), shape, (None, "embed"))
            ids_BT = jnp.zeros(x_BTD.shape[:2], jnp.int32) if ids_BT is None else ids_BT
            x_BTD = x_BTD + table_RD.at[ids_BT].get(out_sharding=spec, mode="clip")
        if c.embedding.norm:
            x_BTD = Norm(c, self.rules, name="embedding_norm")(x_BTD)
        return Dropout(c.dropout)(x_BTD)

    def through(self, x_BTD, inputs: Inputs, cache, kinds: TransformerConfig | None = None):
        """The stream above the last layer, normed where the layers are not; cache; routings.

        kinds: another config, whose kinds of layers take the place of the stack's own.
        """
        x_BTD, cache, routings = self.blocks(x_BTD, inputs, cache, kinds or self.config)
        if self.config.block not in ("post", "deep"):
            x_BTD = Norm(self.config, self.rules, name="final_norm")(x_BTD)
        return x_BTD, cache, routings

    def distance_scores(self, count: int, both: bool):
        """Those of all layers, where they share a table (`layers.distance_scores`), or None."""
        c = self.config
        if c.attention.bias_tables == "layer":
            return None
        return distance_scores(self, c.attention.patterns[0], count, both)

    def position_vectors(self, positions, spec):
        """Learned vectors [B or 1, T, D]: of each position, or the sum of those of its axes."""
        c, after = self.config, math.prod(self.config.position_axes)
        total, std = 0.0, position_std(self.config)
        for i, rows in enumerate(c.position_axes):
            after //= rows
            name = "positions" if len(c.position_axes) == 1 else f"positions_{i}"
            table_SD = weight(self, name, normal(std), (rows, c.d_model), (None, "embed"))
            here = spec if positions.ndim == 2 else None
            row = positions // after % rows
            if len(c.position_axes) == 1:
                row = positions + c.embedding.position_offset
            p_TD = table_SD.at[row].get(out_sharding=here, mode="clip")
            total = total + (p_TD if p_TD.ndim == 3 else p_TD[None])
        return total

    def blocks(self, x_BTD, inputs, cache, kinds: TransformerConfig):
        """The layers, unrolled or as one scanned layer, each recomputed as `remat` says.

        Returns the stream, the cache, and the `Routing` of every layer, or None.
        """
        c = self.config
        if c.layers == "scan":
            return self.scanned(x_BTD, inputs, cache, kinds)
        caches, routings = [], []
        for i in range(c.plain_layers):
            layer = self.block(c, self.rules, self.kind(kinds.layer_kind(i)), name=f"layer_{i}")
            x_BTD, (one, routing) = layer(x_BTD, _of_layer(cache, i), inputs)
            caches.append(one)
            routings.append(routing)
        return x_BTD, _joined(caches, cache), routings

    def kind(self, kind: LayerKind) -> LayerKind:
        """That kind of layer in this stack."""
        return kind._replace(cross=self.cross)

    @property
    def block(self):
        """The module of a layer."""
        c = self.config
        if c.remat == "none":
            return Block
        # Under scan the loop already stops the compiler from merging the two computations.
        return nn.remat(Block, policy=REMAT_POLICIES[c.remat], prevent_cse=c.layers == "unrolled")

    def scanned(self, x_BTD, inputs, cache, kinds: TransformerConfig):
        """All layers as a loop over one, or over one of every kind in turn."""
        c = self.config
        turn = tuple(self.kind(one) for one in kinds.turn)

        def cache_axes(written):
            return nn.broadcast if cache is None else Cache(0, nn.broadcast, 0 if written else None)

        made = cache is not None and cache.written is not None
        alone = len(turn) == 1
        layer = nn.scan(
            self.block if alone else Turn,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(cache_axes(made), nn.broadcast),
            out_axes=(cache_axes(self.cross), 0),
            length=c.plain_layers // len(turn),
            metadata_params={nn.PARTITION_NAME: "layer"},
        )(c, self.rules, turn[0] if alone else (self.block, turn), name="layers")
        one = None
        if cache is not None:
            one = _of_layer(cache, 0)
            if not alone:
                count = len(turn)
                written = cache.written and cache.written[:count]
                one = Cache(cache.layers[:count], cache.length, written)
        x_BTD, (one, routings) = layer(x_BTD, one, inputs)
        routings = [routings] if alone else list(routings)
        if cache is None or not alone:
            return x_BTD, one and one._replace(length=cache.length), routings
        return x_BTD, _joined([one], cache), routings


class Turn(nn.Module):
    """What is scanned: a layer of every kind, in turn."""

    config: TransformerConfig
    rules: Rules
    of: tuple[type[nn.Module], tuple[LayerKind, ...]]  # the module of a layer, and the kinds

    @nn.compact
    def __call__(self, x_BTD, cache, inputs):
        caches, routings = [], []
        block, kinds = self.of
        for i, kind in enumerate(kinds):
            layer = block(self.config, self.rules, kind, name=f"turn_{i}")
            x_BTD, (one, routing) = layer(x_BTD, _of_layer(cache, i), inputs)
            caches.append(one)
            routings.append(routing)
        return x_BTD, (_joined(caches, cache), tuple(routings))


def _of_layer(cache: Cache | None, layer: int) -> Cache | None:
    if cache is None:
        return None
    written = None if cache.written is None else cache.written[layer]
    return Cache(cache.layers[layer], cache.length, written)


def _joined(caches: list[Cache], cache: Cache | None) -> Cache | None:
    """The cache with what its layers have become."""
    if cache is None:
        return None
    written = tuple(one.written for one in caches)
    layers = tuple(one.layers for one in caches)
    return Cache(layers, cache.length, None if written[0] is None else written)


def logits(output: Output, rules: Rules = DEFAULT_RULES):
    """Logits [B, T, V] in float32."""
    h, w = output.hidden_BTD, output.head_VD
    shape = (*h.shape[:2], w.shape[0])
    spec = activation_spec(("batch", "seq", "vocab"), shape, rules)
    out = unembed(h, w, out_sharding=spec)
    bias_V = output.head_bias_V
    return out if bias_V is None else out + bias_V.astype(jnp.float32)[None, None]


def room(cache: Cache) -> int:
    """How many positions there will be at most."""
    return cache.layers[0].slot.shape[-1]
