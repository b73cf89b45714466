"""How parameters are made: with logical axis names, gathered for use, from which deviation.

Every parameter is created by `weight`, which notes its logical axis names for the sharding rules,
gathers it along `embed`, and casts it to the dtype of the computation.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from gptjax.models.config import TransformerConfig
from gptjax.parallel import gathered


def normal(std: float):
    """Initialiser: N(0, std^2)."""
    return lambda key, shape, dtype: std * jax.random.normal(key, shape, dtype)


def zeros(key, shape, dtype):
    return jnp.zeros(shape, dtype)


def ones(key, shape, dtype):
    return jnp.ones(shape, dtype)


def weight(
    module: nn.Module, name: str, init, shape, axes: tuple[str | None, ...], dtype: str = ""
):
    """The named parameter of a module, ready to be multiplied; dtype: not that of the config."""
    boxed = nn.with_partitioning(init, axes)
    w = module.param(name, boxed, shape, jnp.float32)
    w = w.value if isinstance(w, nn.meta.AxisMetadata) else w
    w = w.astype(dtype or module.config.compute_dtype)
    return gathered(w, axes, module.rules)


def init_std(config: TransformerConfig, fan_in: int, residual: bool = False) -> float:
    """Standard deviation of a weight.

    "gpt2" is 0.02, and for the products that write into the residual stream 0.02 / sqrt(2 N), so
    that the stream's variance does not grow with depth; "fan_in" is 1 / sqrt(fan_in) with the
    same factor, "sparse_transformer" an eighth of that, "t5" without the factor. Under muP 0.02
    belongs to the base width.
    """
    std = (0.125 if config.init == "sparse_transformer" else 1.0) / math.sqrt(fan_in)
    if config.init == "gpt2":
        std = 0.02 / math.sqrt(config.width_ratio)
    scaled = residual and config.init != "t5"
    return std / math.sqrt(2 * config.num_layers) if scaled else std


def embedding_std(config: TransformerConfig) -> float:
    """Standard deviation of the token table."""
    if config.init == "sparse_transformer":
        return 0.125 / math.sqrt(config.d_model)
    if config.init == "t5":
        return 1.0
    # A tied matrix is the head too: 0.02 as published, whatever the other weights do.
    return 0.02 if config.init == "gpt2" or config.tied_embeddings else 1.0


def position_std(config: TransformerConfig) -> float:
    """Standard deviation of learned positions."""
    if config.init != "sparse_transformer":
        return 0.02
    return 0.125 / math.sqrt(config.d_model * len(config.position_axes))


def head_std(config: TransformerConfig) -> float:
    """Standard deviation of an untied head's weights: under muP the same at every width."""
    if config.zero_head:
        return 0.0
    width = config.base_width if config.parametrization == "mup" else config.d_model
    return 0.02 if config.init == "gpt2" else 1.0 / math.sqrt(width)
