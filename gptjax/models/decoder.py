"""The decoder: tokens in, hidden states and the vocabulary projection out.

Logits are not made here: the objective multiplies hidden states with the head chunk by chunk, and
`logits` does it whole for decoding. One module serves training, evaluation and cached decoding;
the cache is an argument and a result, so `apply` stays pure.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gptjax.models.config import DecoderConfig
from gptjax.models.experts import Routing, mean_routing, routing_loss
from gptjax.models.layers import Block, Cache, Dropout, Inputs, Norm
from gptjax.models.parameters import init_std, normal, weight, zeros
from gptjax.ops.attention import Slots, slots_of
from gptjax.ops.linear import PRODUCT, project, unembed
from gptjax.ops.patterns import Pattern
from gptjax.ops.relative import distance_buckets
from gptjax.parallel import DEFAULT_RULES, Rules, place
from gptjax.parallel.rules import activation_spec

REMAT_POLICIES = {
    "products": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "block": jax.checkpoint_policies.nothing_saveable,
}


class Output(NamedTuple):
    """What a model returns: the factors of its logits, and the cache or None.

    Logits are hidden_BTD @ head_VD.T + head_bias_V, where the head has a bias. Of experts there are
    the mean `Routing` of the layers, and what training adds to the loss of a token.
    """

    hidden_BTD: jax.Array
    head_VD: jax.Array
    cache: Cache | None = None
    head_bias_V: jax.Array | None = None
    routing: Routing | None = None
    auxiliary: jax.Array | None = None


class Decoder(nn.Module):
    """A decoder-only transformer; every choice stands in its config."""

    config: DecoderConfig
    rules: Rules = DEFAULT_RULES

    @nn.compact
    def __call__(self, tokens_BT, *, positions_BT=None, segments_BT=None, cache=None) -> Output:
        """Hidden states of tokens [B, T]; with a cache the tokens follow those already in it.

        `positions_BT` counts from each document's start where the data resets positions;
        `segments_BT` keeps attention within a document. Dropout is active while
        `rngs={"dropout": key}` is given.
        """
        c = self.config
        B, T = tokens_BT.shape
        table_VD = self.table("embedding", embedding_std(c), c.vocab_size)
        spec = activation_spec(("batch", "seq", None), (B, T, c.embedding_size), self.rules)
        x_BTD = table_VD.at[tokens_BT].get(out_sharding=spec, mode="clip") * c.embedding.scale
        spec = activation_spec(("batch", "seq", None), (B, T, c.d_model), self.rules)
        if c.embedding.size:
            axes, shape = (None, "embed"), (c.embedding.size, c.d_model)
            w_ED = weight(self, "embedding_in", normal(init_std(c, shape[0])), shape, axes)
            x_BTD = project(x_BTD, w_ED, out_sharding=spec)
        start = 0 if cache is None else cache.length
        positions = start + jnp.arange(T) if positions_BT is None else positions_BT
        if c.position_axes:
            x_BTD = x_BTD + self.position_vectors(positions, spec)
        if c.embedding.norm:
            x_BTD = Norm(c, self.rules, name="embedding_norm")(x_BTD)
        x_BTD = Dropout(c.dropout)(x_BTD)
        scores_LH = None
        if c.positions == "relative_bias":
            scores_LH = self.distance_scores(T if cache is None else room(cache))
        inputs = Inputs(positions, segments_BT, scores_LH)
        given = cache
        x_BTD, cache, routings = self.blocks(x_BTD, inputs, cache)
        if c.block != "post":
            x_BTD = Norm(c, self.rules, name="final_norm")(x_BTD)
        if c.attention.top_query == "positions":
            x_BTD, (last, routing) = self.query_layer(x_BTD, inputs, given)
            routings.append(routing)
            last = None if last is None else last.layers
            cache = None if cache is None else cache._replace(layers=(*cache.layers, last))
        cache = None if cache is None else cache._replace(length=cache.length + T)
        if c.embedding.size:
            axes, shape = ("embed", None), (c.d_model, c.embedding.size)
            w_DE = weight(self, "embedding_out", normal(init_std(c, c.d_model)), shape, axes)
            spec = activation_spec(("batch", "seq", None), (B, T, c.embedding_size), self.rules)
            x_BTD = project(x_BTD, w_DE, out_sharding=spec)
        head_VD, bias_V = table_VD, None
        if not c.tied_embeddings:
            head_VD = self.table("head", head_std(c), c.outputs)
        if c.embedding.head_bias:
            bias_V = weight(self, "head_bias", zeros, (c.outputs,), ("vocab",))
        # muP's output multiplier, on the side of which every head has the same.
        x_BTD = x_BTD * (c.embedding.logit_scale / c.width_ratio)
        experts = mean_routing(routings), routing_loss(c.experts, routings)
        return Output(x_BTD, head_VD, cache, bias_V, *experts)

    def table(self, name: str, std: float, rows: int):
        """A matrix of one vector for each id."""
        c = self.config
        return weight(self, name, normal(std), (rows, c.embedding_size), ("vocab", "embed"))

    def distance_scores(self, count: int):
        """The learned score [L, H] of every distance, the same in all layers."""
        c = self.config
        shape = (c.attention.buckets, c.num_heads)
        table = weight(self, "distance_scores", normal(0.02), shape, (None, "heads"))
        buckets = distance_buckets(count, *shape[:1], c.attention.max_distance)
        spec = activation_spec((None, "heads"), (count, c.num_heads), self.rules)
        return table.at[buckets].get(out_sharding=spec)

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

    def blocks(self, x_BTD, inputs, cache):
        """The layers, unrolled or as one scanned layer, each recomputed as `remat` says.

        Returns the stream, the cache, and the `Routing` of every layer, or None.
        """
        c = self.config
        if c.layers == "scan":
            return self.scanned(x_BTD, inputs, cache)
        layers, routings = [], []
        for i in range(c.plain_layers):
            one = None if cache is None else Cache(cache.layers[i], cache.length)
            layer = self.block(c, self.rules, c.layer_kind(i), name=f"layer_{i}")
            x_BTD, (one, routing) = layer(x_BTD, one, inputs)
            layers.append(None if one is None else one.layers)
            routings.append(routing)
        return x_BTD, None if cache is None else cache._replace(layers=tuple(layers)), routings

    @property
    def block(self):
        """The module of a layer."""
        c = self.config
        if c.remat == "none":
            return Block
        # Under scan the loop already stops the compiler from merging the two computations.
        return nn.remat(Block, policy=REMAT_POLICIES[c.remat], prevent_cse=c.layers == "unrolled")

    def scanned(self, x_BTD, inputs, cache):
        """All layers as a loop over one, or over one of every kind in turn."""
        c, turn = self.config, self.config.turn
        cache_axes = nn.broadcast if cache is None else Cache(0, nn.broadcast)
        alone = len(turn) == 1
        layer = nn.scan(
            self.block if alone else Turn,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(cache_axes, nn.broadcast),
            out_axes=(cache_axes, 0),
            length=c.plain_layers // len(turn),
            metadata_params={nn.PARTITION_NAME: "layer"},
        )(c, self.rules, turn[0] if alone else self.block, name="layers")
        one = None
        if cache is not None:
            given = cache.layers[: len(turn)]
            one = Cache(given[0] if alone else given, cache.length)
        x_BTD, (one, routings) = layer(x_BTD, one, inputs)
        routings = [routings] if alone else list(routings)
        if cache is None:
            return x_BTD, None, routings
        return x_BTD, cache._replace(layers=(one.layers,) if alone else one.layers), routings

    def query_layer(self, x_BTD, inputs, cache):
        """The last layer, whose queries are learned vectors of positions (arXiv 2104.12369).

        It predicts the token after a position from where that is, and from what it reads.
        """
        c = self.config
        shape, last = (c.context_length, c.d_model), c.num_layers - 1
        table_SD = weight(self, "query_positions", normal(0.02), shape, (None, "embed"))
        spec = activation_spec(("batch", "seq", None), x_BTD.shape, self.rules)
        at_BT = inputs.positions
        if at_BT.ndim == 1:
            at_BT = place(jnp.broadcast_to(at_BT, x_BTD.shape[:2]), ("batch", "seq"), self.rules)
        q_BTD = table_SD.at[at_BT].get(out_sharding=spec, mode="clip")
        one = None if cache is None else Cache(cache.layers[-1], cache.length)
        layer = self.block(c, self.rules, c.layer_kind(last), name="query_layer")
        return layer(x_BTD, one, inputs, q_BTD)


class Turn(nn.Module):
    """What is scanned: a layer of every kind, in turn."""

    config: DecoderConfig
    rules: Rules
    block: type[nn.Module]

    @nn.compact
    def __call__(self, x_BTD, cache, inputs):
        layers, routings = [], []
        for i, kind in enumerate(self.config.turn):
            one = None if cache is None else Cache(cache.layers[i], cache.length)
            layer = self.block(self.config, self.rules, kind, name=f"turn_{i}")
            x_BTD, (one, routing) = layer(x_BTD, one, inputs)
            layers.append(None if one is None else one.layers)
            routings.append(routing)
        cache = None if cache is None else Cache(tuple(layers), cache.length)
        return x_BTD, (cache, tuple(routings))


def embedding_std(config: DecoderConfig) -> float:
    """Standard deviation of the token table."""
    if config.init == "sparse_transformer":
        return 0.125 / math.sqrt(config.d_model)
    # A tied matrix is the head too: 0.02 as published, whatever the other weights do.
    return 0.02 if config.init == "gpt2" or config.tied_embeddings else 1.0


def position_std(config: DecoderConfig) -> float:
    """Standard deviation of learned positions."""
    if config.init != "sparse_transformer":
        return 0.02
    return 0.125 / math.sqrt(config.d_model * len(config.position_axes))


def head_std(config: DecoderConfig) -> float:
    """Standard deviation of an untied head's weights: under muP the same at every width."""
    if config.zero_head:
        return 0.0
    width = config.base_width if config.parametrization == "mup" else config.d_model
    return 0.02 if config.init == "gpt2" else 1.0 / math.sqrt(width)


def logits(output: Output, rules: Rules = DEFAULT_RULES):
    """Logits [B, T, V] in float32."""
    h, w = output.hidden_BTD, output.head_VD
    shape = (*h.shape[:2], w.shape[0])
    spec = activation_spec(("batch", "seq", "vocab"), shape, rules)
    out = unembed(h, w, out_sharding=spec)
    bias_V = output.head_bias_V
    return out if bias_V is None else out + bias_V.astype(jnp.float32)[None, None]


def empty_cache(
    config: DecoderConfig, batch: int, length: int, rules: Rules = DEFAULT_RULES
) -> Cache:
    """A cache with room for `length` positions of `batch` sequences, laid out on the mesh."""
    stacked = config.layers == "scan"
    count = len(config.turn) if stacked else config.plain_layers
    lead = (config.plain_layers // count,) if stacked else ()

    def slots(pattern: Pattern, lead: tuple[int, ...]) -> Slots:
        where = slots_of(pattern, length)
        places = int(where.max(initial=0)) + 1
        shape, before = (*lead, batch, config.kv_heads, places), tuple("layer" for _ in lead)
        axes = (*before, "batch", "kv_heads", "seq", "head_dim")
        pair = [
            place(jnp.zeros((*shape, size), config.compute_dtype), axes, rules)
            for size in (config.qk_size, config.head_size)
        ]
        held = jnp.full((*lead, places), -1, jnp.int32)
        where = jnp.broadcast_to(jnp.asarray(where), (*lead, length))
        return Slots(*pair, *(place(x, (*before, None), rules) for x in (held, where)))

    layers = [slots(config.layer_kind(i).pattern, lead) for i in range(count)]
    if config.plain_layers < config.num_layers:  # the query layer is never part of a stack
        layers.append(slots(config.layer_kind(config.num_layers - 1).pattern, ()))
    return Cache(tuple(layers), jnp.zeros((), jnp.int32))


def room(cache: Cache) -> int:
    """How many positions there will be at most."""
    return cache.layers[0].slot.shape[-1]


def init_params(config: DecoderConfig, key):
    """Random parameters as a plain dict, without a mesh (values do not depend on the mesh)."""
    boxed = Decoder(config).init({"params": key}, jnp.zeros((1, 1), jnp.int32))["params"]
    return nn.meta.unbox(boxed)


def param_axes(config: DecoderConfig):
    """Logical axis names of every parameter, in the same tree as the parameters."""
    boxed = jax.eval_shape(
        lambda key: Decoder(config).init({"params": key}, jnp.zeros((1, 1), jnp.int32))["params"],
        jax.random.key(0),
    )
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
    return jax.tree.map(
        lambda leaf: tuple(leaf.names) if is_box(leaf) else (None,) * leaf.ndim,
        boxed,
        is_leaf=is_box,
    )
