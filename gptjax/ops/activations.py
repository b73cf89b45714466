"""Activation functions by name.

`gelu_tanh` is x * sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3), the same function as the
tanh form of arXiv 1606.08415, with its gradient written out, which needs one sigmoid and no tanh.
"""

import math

import jax
import jax.numpy as jnp

from gptjax.errors import BadInput, did_you_mean

_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
_CUBIC = 0.044715


@jax.custom_vjp
def gelu_tanh(x):
    """GELU by its tanh approximation (GPT-1, GPT-2), any shape; computed in float32."""
    y = x.astype(jnp.float32)
    return (y * jax.nn.sigmoid(_SLOPE * (y + _CUBIC * y * y * y))).astype(x.dtype)


def _gelu_tanh_forward(x):
    return gelu_tanh(x), x


def _gelu_tanh_backward(x, g):
    y = x.astype(jnp.float32)
    squared = y * y
    gate = jax.nn.sigmoid(_SLOPE * y * (1.0 + _CUBIC * squared))
    inner = _SLOPE * y * (1.0 + 3.0 * _CUBIC * squared)
    return ((g.astype(jnp.float32) * gate * (1.0 + inner * (1.0 - gate))).astype(x.dtype),)


gelu_tanh.defvjp(_gelu_tanh_forward, _gelu_tanh_backward)


def gelu_erf(x):
    """GELU by the error function (BERT), any shape."""
    return jax.nn.gelu(x, approximate=False)


def relu(x):
    """max(x, 0), any shape."""
    return jax.nn.relu(x)


def silu(x):
    """x * sigmoid(x), any shape."""
    return jax.nn.silu(x)


def quick_gelu(x):
    """x * sigmoid(1.702 x), any shape: GELU's first approximation in arXiv 1606.08415."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu_tanh": gelu_tanh,
    "gelu_erf": gelu_erf,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "silu": silu,
}


def activation(name: str):
    """The activation function called `name`; BadInput names the nearest when there is none."""
    if name not in ACTIVATIONS:
        raise BadInput(
            f"unknown activation {name!r}{did_you_mean(name, ACTIVATIONS)} "
            f"(known: {', '.join(ACTIVATIONS)})"
        )
    return ACTIVATIONS[name]
