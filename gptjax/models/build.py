"""Models by their configs: the module of each kind, its parameters, the cache of a decoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gptjax.models.config import TransformerConfig
from gptjax.models.decoder import Decoder
from gptjax.models.encoder import Encoder
from gptjax.models.encoder_decoder import EncoderDecoder
from gptjax.models.layers import Cache
from gptjax.models.stack import Stack
from gptjax.models.task_modules import TaskModules
from gptjax.models.two_stream import TwoStream
from gptjax.ops.attention import Slots, slots_of
from gptjax.ops.patterns import Pattern
from gptjax.parallel import DEFAULT_RULES, Rules, place

MODULES = {
    "decoder": Decoder,
    "encoder": Encoder,
    "encoder_decoder": EncoderDecoder,
    "two_stream": TwoStream,
    "task_modules": TaskModules,
}


def model_of(config: TransformerConfig, rules: Rules = DEFAULT_RULES) -> Stack:
    """The module that a config describes."""
    return MODULES[config.kind](config, rules)


def _variables(config: TransformerConfig, key):
    """Random parameters in boxes that name their axes, from the shortest input there is."""
    token = jnp.zeros((1, 1), jnp.int32)
    more = {"source_BS": token} if config.kind in ("encoder_decoder", "task_modules") else {}
    return model_of(config).init({"params": key}, token, **more)["params"]


def init_params(config: TransformerConfig, key):
    """Random parameters as a plain dict, without a mesh (values do not depend on the mesh)."""
    return nn.meta.unbox(_variables(config, key))


def param_axes(config: TransformerConfig):
    """Logical axis names of every parameter, in the same tree as the parameters."""
    boxed = jax.eval_shape(lambda key: _variables(config, key), jax.random.key(0))
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
    return jax.tree.map(
        lambda leaf: tuple(leaf.names) if is_box(leaf) else (None,) * leaf.ndim,
        boxed,
        is_leaf=is_box,
    )


def empty_cache(
    config: TransformerConfig, batch: int, length: int, rules: Rules = DEFAULT_RULES
) -> Cache:
    """A cache with room for `length` positions of `batch` sequences, laid out on the mesh."""
    if config.kind == "task_modules":
        parts = [empty_cache(c, batch, length, rules) for c in (config.writer, config.generation)]
        return parts[0]._replace(layers=(*parts[0].layers, *parts[1].layers))
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
