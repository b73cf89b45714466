"""The dense decoder: tokens in, hidden states and the vocabulary projection out.

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
from gptjax.models.layers import Block, Cache, Dropout, Norm, normal, weight
from gptjax.ops.attention import Slots, slots_of
from gptjax.ops.linear import PRODUCT
from gptjax.ops.patterns import Pattern
from gptjax.parallel import DEFAULT_RULES, Rules, place
from gptjax.parallel.rules import activation_spec

REMAT_POLICIES = {
    "products": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "block": jax.checkpoint_policies.nothing_saveable,
}


class Output(NamedTuple):
    """What a model returns: hidden states [B, T, D], the head [V, D], and the cache or None."""

    hidden_BTD: jax.Array
    head_VD: jax.Array
    cache: Cache | None = None


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
        vocab_axes = ("vocab", "embed")
        std = normal(embedding_std(c))
        table_VD = weight(self, "embedding", std, (c.vocab_size, c.d_model), vocab_axes)
        spec = activation_spec(("batch", "seq", None), (B, T, c.d_model), self.rules)
        x_BTD = table_VD.at[tokens_BT].get(out_sharding=spec, mode="clip")
        start = 0 if cache is None else cache.length
        positions = start + jnp.arange(T) if positions_BT is None else positions_BT
        if c.position_axes:
            x_BTD = x_BTD + self.position_vectors(positions, spec)
        x_BTD = Dropout(c.dropout)(x_BTD)
        x_BTD, cache = self.blocks(x_BTD, positions, segments_BT, cache)
        cache = None if cache is None else cache._replace(length=cache.length + T)
        if c.block != "post":
            x_BTD = Norm(c, self.rules, name="final_norm")(x_BTD)
        head_VD = table_VD
        if not c.tied_embeddings:
            std = head_std(c)
            head_VD = weight(self, "head", normal(std), (c.vocab_size, c.d_model), vocab_axes)
        # muP's output multiplier, on the side of which every head has the same.
        return Output(x_BTD / c.width_ratio, head_VD, cache)

    def position_vectors(self, positions, spec):
        """Learned vectors [B or 1, T, D]: of each position, or the sum of those of its axes."""
        c, after = self.config, math.prod(self.config.position_axes)
        total, std = 0.0, position_std(self.config)
        for i, rows in enumerate(c.position_axes):
            after //= rows
            name = "positions" if len(c.position_axes) == 1 else f"positions_{i}"
            table_SD = weight(self, name, normal(std), (rows, c.d_model), (None, "embed"))
            here = spec if positions.ndim == 2 else None
            place = positions if len(c.position_axes) == 1 else positions // after % rows
            p_TD = table_SD.at[place].get(out_sharding=here, mode="clip")
            total = total + (p_TD if p_TD.ndim == 3 else p_TD[None])
        return total

    def blocks(self, x_BTD, positions, segments_BT, cache):
        """All layers, unrolled or as one scanned layer, each recomputed as `remat` says."""
        c = self.config
        block = Block
        if c.remat != "none":
            # Under scan the loop already stops the compiler from merging the two computations.
            block = nn.remat(
                Block, policy=REMAT_POLICIES[c.remat], prevent_cse=c.layers == "unrolled"
            )
        if c.layers == "scan":
            return self.scanned(block, x_BTD, positions, segments_BT, cache)
        layers = []
        for i in range(c.num_layers):
            one = None if cache is None else Cache(cache.layers[i], cache.length)
            layer = block(c, self.rules, c.layer_pattern(i), name=f"layer_{i}")
            x_BTD, one = layer(x_BTD, one, positions, segments_BT)
            layers.append(None if one is None else one.layers)
        return x_BTD, None if cache is None else Cache(tuple(layers), cache.length)

    def scanned(self, block, x_BTD, positions, segments_BT, cache):
        """All layers as a loop over one, or over one of every pattern in turn."""
        c, patterns = self.config, self.config.attention.patterns
        cache_axes = nn.broadcast if cache is None else Cache(0, nn.broadcast)
        alone = len(patterns) == 1
        turn = nn.scan(
            block if alone else Turn,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(cache_axes, nn.broadcast, nn.broadcast),
            out_axes=cache_axes,
            length=c.num_layers // len(patterns),
            metadata_params={nn.PARTITION_NAME: "layer"},
        )(c, self.rules, patterns[0] if alone else block, name="layers")
        if cache is None or not alone:
            return turn(x_BTD, cache, positions, segments_BT)
        x_BTD, one = turn(x_BTD, Cache(cache.layers[0], cache.length), positions, segments_BT)
        return x_BTD, Cache((one.layers,), cache.length)


class Turn(nn.Module):
    """What is scanned: a layer of every pattern, in turn."""

    config: DecoderConfig
    rules: Rules
    block: type[nn.Module]

    @nn.compact
    def __call__(self, x_BTD, cache, positions, segments_BT):
        layers = []
        for i, pattern in enumerate(self.config.attention.patterns):
            one = None if cache is None else Cache(cache.layers[i], cache.length)
            layer = self.block(self.config, self.rules, pattern, name=f"turn_{i}")
            x_BTD, one = layer(x_BTD, one, positions, segments_BT)
            layers.append(None if one is None else one.layers)
        return x_BTD, None if cache is None else Cache(tuple(layers), cache.length)


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
    return jnp.einsum("btd,vd->btv", h, w, preferred_element_type=jnp.float32, out_sharding=spec)


def empty_cache(
    config: DecoderConfig, batch: int, length: int, rules: Rules = DEFAULT_RULES
) -> Cache:
    """A cache with room for `length` positions of `batch` sequences, laid out on the mesh."""
    patterns = config.attention.patterns
    count = len(patterns) if config.layers == "scan" else config.num_layers
    lead = (config.num_layers // count,) if config.layers == "scan" else ()
    before = tuple("layer" for _ in lead)

    def slots(pattern: Pattern) -> Slots:
        where = slots_of(pattern, length)
        places = int(where.max(initial=0)) + 1
        shape = (*lead, batch, places, config.kv_heads)
        axes = (*before, "batch", "seq", "kv_heads", "head_dim")
        pair = [
            place(jnp.zeros((*shape, size), config.compute_dtype), axes, rules)
            for size in (config.qk_size, config.head_size)
        ]
        held = jnp.full((*lead, places), -1, jnp.int32)
        where = jnp.broadcast_to(jnp.asarray(where), (*lead, length))
        return Slots(*pair, *(place(x, (*before, None), rules) for x in (held, where)))

    layers = tuple(slots(config.layer_pattern(i)) for i in range(count))
    return Cache(layers, jnp.zeros((), jnp.int32))


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
