"""LayerNorm (arXiv 1607.06450) and RMSNorm (arXiv 1910.07467) with float32 statistics.

Their gradients are written out: they keep the mean and the inverse deviation of each row and
recompute the normalised input, so nothing but the input itself is stored.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from gptjax.ops.shards import reshard, spec_of


def layer_norm(x, scale_D, bias_D=None, eps: float = 1e-5):
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis, in x's dtype.

    x: [..., D]; scale_D, bias_D: [D], the bias may be None. The variance is the biased one.
    """
    scale_D, bias_D = _like_last_axis(x, scale_D), _like_last_axis(x, bias_D)
    if bias_D is None:
        return _layer_norm_plain(eps, x, scale_D)
    return _layer_norm(eps, x, scale_D, bias_D)


def rms_norm(x, scale_D, eps: float = 1e-6):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, in x's dtype; scale_D: [D]."""
    return _rms_norm(eps, x, _like_last_axis(x, scale_D))


def _like_last_axis(x, vector_D):
    """The vector sharded as the last axis of x is."""
    return vector_D if vector_D is None else reshard(vector_D, P(spec_of(x)[-1]))


def _wide(vector_D, ndim: int):
    """[D] as [1, ..., 1, D] in float32."""
    return jnp.expand_dims(vector_D.astype(jnp.float32), tuple(range(ndim - 1)))


def _centred(x, eps):
    """x less its mean in float32, and the inverse deviation."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, -1, keepdims=True)
    return y, jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)


def _input_gradient(normed, inverse, g_normed):
    """The gradient of LayerNorm's normalisation: removes the mean and the radial component."""
    mean = jnp.mean(g_normed, -1, keepdims=True)
    radial = jnp.mean(g_normed * normed, -1, keepdims=True)
    return inverse * (g_normed - mean - normed * radial)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer_norm(eps, x, scale_D, bias_D):
    y, inverse = _centred(x, eps)
    return (y * inverse * _wide(scale_D, x.ndim) + _wide(bias_D, x.ndim)).astype(x.dtype)


def _layer_norm_forward(eps, x, scale_D, bias_D):
    return _layer_norm(eps, x, scale_D, bias_D), (x, scale_D, bias_D)


def _layer_norm_backward(eps, kept, g):
    x, scale_D, bias_D = kept
    y, inverse = _centred(x, eps)
    normed, g = y * inverse, g.astype(jnp.float32)
    rows = tuple(range(x.ndim - 1))
    return (
        _input_gradient(normed, inverse, g * _wide(scale_D, x.ndim)).astype(x.dtype),
        jnp.sum(g * normed, rows).astype(scale_D.dtype),
        jnp.sum(g, rows).astype(bias_D.dtype),
    )


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer_norm_plain(eps, x, scale_D):
    y, inverse = _centred(x, eps)
    return (y * inverse * _wide(scale_D, x.ndim)).astype(x.dtype)


def _layer_norm_plain_forward(eps, x, scale_D):
    return _layer_norm_plain(eps, x, scale_D), (x, scale_D)


def _layer_norm_plain_backward(eps, kept, g):
    x, scale_D = kept
    y, inverse = _centred(x, eps)
    normed, g = y * inverse, g.astype(jnp.float32)
    return (
        _input_gradient(normed, inverse, g * _wide(scale_D, x.ndim)).astype(x.dtype),
        jnp.sum(g * normed, tuple(range(x.ndim - 1))).astype(scale_D.dtype),
    )


_layer_norm_plain.defvjp(_layer_norm_plain_forward, _layer_norm_plain_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rms_norm(eps, x, scale_D):
    y = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
    return (y * inverse * _wide(scale_D, x.ndim)).astype(x.dtype)


def _rms_norm_forward(eps, x, scale_D):
    return _rms_norm(eps, x, scale_D), (x, scale_D)


def _rms_norm_backward(eps, kept, g):
    x, scale_D = kept
    y, g = x.astype(jnp.float32), g.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
    normed, g_normed = y * inverse, g * _wide(scale_D, x.ndim)
    radial = jnp.mean(g_normed * normed, -1, keepdims=True)
    return (
        (inverse * (g_normed - normed * radial)).astype(x.dtype),
        jnp.sum(g * normed, tuple(range(x.ndim - 1))).astype(scale_D.dtype),
    )


_rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)
