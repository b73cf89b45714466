"""Rotary positions (arXiv 2104.09864) and ALiBi slopes (arXiv 2108.12409)."""

import math

import jax.numpy as jnp
import numpy as np

from gptjax.errors import BadInput


def rotary(x_BTHK, positions, base: float = 10000.0, fraction: float = 1.0):
    """Rotates queries or keys by their positions.

    Half-split layout: component i pairs with i + half ("rotate_half"), where the source
    interleaves 2i with 2i + 1; the two differ by a fixed permutation of the head's components.

    x_BTHK: [B, T, H, K]; positions: [T] or [B, T]. With `fraction` < 1 only the first
    int(K * fraction) components turn, as in GPT-NeoX (arXiv 2204.06745). Angles are float32, the
    result has x's dtype. BadInput when the rotated size is odd or zero.
    """
    head_size = x_BTHK.shape[-1]
    turned = int(head_size * fraction + 1e-6)  # as DecoderConfig.rotary_size
    if turned < 2 or turned % 2 or turned > head_size:
        raise BadInput(
            f"rotary needs an even number of rotated components between 2 and the head size; "
            f"head size {head_size} x fraction {fraction} gives {turned}"
        )
    half = turned // 2
    frequencies = np.float32(base) ** (-np.arange(half, dtype=np.float32) / np.float32(half))
    positions = jnp.asarray(positions)
    if positions.ndim == 1:
        positions = positions[None, :]
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    x = x_BTHK.astype(jnp.float32)
    first, second, rest = x[..., :half], x[..., half:turned], x_BTHK[..., turned:]
    both = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    both = both.astype(x_BTHK.dtype)
    return both if turned == head_size else jnp.concatenate([both, rest], -1)


def rotary_blocks(x_BTHK, positions, blocks_BT, base: float = 10000.0):
    """The same for two positions at once: the first half of a head's components turns with one.

    The second half turns with blocks [B, T], the place within a blank; None is 0 everywhere, at
    which nothing turns (code THUDM/ChatGLM-6B, `position_encoding_2d`). The head size is a multiple
    of 4.
    """
    first, second = jnp.split(x_BTHK, 2, axis=-1)
    if blocks_BT is not None:
        second = rotary(second, blocks_BT, base)
    return jnp.concatenate([rotary(first, positions, base), second], -1)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """ALiBi's slopes [H] in float32: 2^(-8i/H) for i = 1..H when H is a power of two.

    Otherwise those of the largest power of two below, then every second one of twice that power,
    as the source's code does.
    """
    if num_heads < 1:
        raise BadInput(f"ALiBi needs at least one head, got {num_heads}")

    def powers(count):
        return [2.0 ** (-8.0 * (i + 1) / count) for i in range(count)]

    below = 2 ** int(math.log2(num_heads))
    slopes = powers(below) + powers(2 * below)[0::2][: num_heads - below]
    return np.asarray(slopes, np.float32)
