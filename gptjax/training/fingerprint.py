"""Fingerprints of arrays: the same bits give the same 32-bit word on every mesh.

Every element's bits are added to its index in the whole array times an odd constant, scrambled
by a bijection of 32-bit words (the finaliser of MurmurHash3), and summed modulo 2**32. The sum has
no order, so any layout gives the same word, and it runs where the array lies. A change of one
element always changes the sum; other changes are missed once in 2**32. This guards against
accidents, not against forgery.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_INDEX_FACTOR = 0x9E3779B1  # odd, so that no two indices below 2**32 meet


def leaf_names(tree) -> list[str]:
    """Names such as `params/layers_0/query`, in the order of `jax.tree.leaves`."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def is_key(leaf) -> bool:
    """Whether a leaf is a typed array of random keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _words(x):
    """The bits of an array as uint32, one or two words an element (then in a last axis)."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.stack([_words(x.real), _words(x.imag)], axis=-1)
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    bits = (jnp.finfo if floating else jnp.iinfo)(x.dtype).bits
    if bits < 8:  # packed elements: every value fits the wider type exactly
        x, bits = (x.astype(jnp.float32), 32) if floating else (x.astype(jnp.int8), 8)
    if bits == 64:
        return lax.bitcast_convert_type(x, jnp.uint32)
    unsigned = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[bits]
    return lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _scramble(word):
    word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


@jax.jit
def array_fingerprint(x) -> jax.Array:
    """A uint32 scalar, replicated; equal for equal bits in any layout."""
    if is_key(x):
        x = jax.random.key_data(x)
    word = _words(x)
    factor = _INDEX_FACTOR
    # One axis at a time: only vectors are laid out anew, never an index as large as the array.
    for axis in reversed(range(word.ndim)):
        line = [1] * word.ndim
        line[axis] = word.shape[axis]
        word = word + lax.broadcasted_iota(jnp.uint32, line, axis) * np.uint32(factor)
        factor = factor * word.shape[axis] % 2**32
    return jnp.sum(_scramble(word), dtype=jnp.uint32)


def fingerprints(tree: Any) -> dict[str, str]:
    """Leaf name to eight hexadecimal digits.

    One small program per shape and layout: a program of the whole tree takes seconds to compile.
    Each is waited for: XLA:CPU's simulated devices deadlock on many programs with collectives.
    """
    words = [jax.device_get(array_fingerprint(leaf)) for leaf in jax.tree.leaves(tree)]
    return {name: f"{int(w):08x}" for name, w in zip(leaf_names(tree), words, strict=True)}
