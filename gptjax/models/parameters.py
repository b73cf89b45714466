"""How parameters are made: with logical axis names, gathered for use, from which deviation.

Every parameter is created by `weight`, which notes its logical axis names for the sharding rules,
gathers it along `embed`, and casts it to the dtype of the computation.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from gptjax.models.config import DecoderConfig
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


def init_std(config: DecoderConfig, fan_in: int, residual: bool = False) -> float:
    """Standard deviation of a weight.

    "gpt2" is 0.02, and for the products that write into the residual stream 0.02 / sqrt(2 N), so
    that the stream's variance does not grow with depth; "fan_in" is 1 / sqrt(fan_in) with the
    same factor, "sparse_transformer" an eighth of that. Under muP 0.02 belongs to the base width.
    """
    std = (0.125 if config.init == "sparse_transformer" else 1.0) / math.sqrt(fan_in)
    if config.init == "gpt2":
        std = 0.02 / math.sqrt(config.width_ratio)
    return std / math.sqrt(2 * config.num_layers) if residual else std
