"""Which attention kernel runs, and what it multiplies."""

import jax.numpy as jnp

from gptjax.errors import BadInput, did_you_mean
from gptjax.ops.block_list import LARGEST_HEAD
from gptjax.ops.cudnn import cudnn_can, cudnn_pairs
from gptjax.ops.patterns import Bidirectional, Causal, Window
from gptjax.ops.patterns.base import HeadPattern
from gptjax.ops.patterns.lists import listed_pairs
from gptjax.ops.splash import LANES, splash_can, splash_pairs
from gptjax.ops.strips import block_size, multiplied

KERNELS = ("dense", "blocked", "cudnn", "splash", "block_list")
PLATFORMS = {"cudnn": "gpu", "splash": "tpu"}  # of kernels that run on one alone
HALVES = (jnp.dtype("bfloat16"), jnp.dtype("float16"))
# A pair costs about so many times more where scores go through a GPU's memory; an estimate from
# bytes and operations, not measured.
UNFUSED_COST = 8


def choose_kernel(
    kernel: str,
    backend: str,
    pattern: HeadPattern,
    has_segments: bool,
    has_slopes: bool,
    length: int,
    dtype,
    head_size: int | None = None,
    value_size: int | None = None,
) -> str:
    """The kernel that runs: the one asked for, or for `auto` the fastest that can.

    backend: cpu, gpu (or cuda), tpu, as `ops.shards.backend()` says. value_size: that of values in
    a head, when it is not that of queries. BadInput when the one asked for cannot run; a single
    position is always for `dense`.
    """
    if kernel not in ("auto", *KERNELS):
        raise BadInput(
            f"unknown attention kernel {kernel!r}{did_you_mean(kernel, KERNELS)} "
            f"(known: auto, {', '.join(KERNELS)})"
        )
    options = (has_segments, has_slopes, length, dtype, head_size)

    def against(name: str) -> list[str]:
        found = AGAINST[name](backend, pattern, *options)
        if value_size not in (None, head_size):
            found.append(f"its values are as wide as its queries, not {value_size} and {head_size}")
        return found

    if kernel in AGAINST:
        if why := against(kernel):
            raise BadInput(f"attention kernel {kernel!r} cannot run: {'; '.join(why)}")
    if length == 1:  # a position alone, as when parameters are made: nothing to multiply
        return "dense"
    if kernel != "auto":
        return kernel
    for name in ("cudnn", "splash"):
        if not against(name):
            return name
    if backend in ("gpu", "cuda") and jnp.dtype(dtype) in HALVES and not against("block_list"):
        plain = isinstance(pattern, (Causal, Bidirectional, Window))
        # Blocks hold few pairs of patterns such as columns far apart; `blocked` gathers those.
        unfused = UNFUSED_COST * multiplied(pattern, length)
        if not plain and listed_pairs(pattern, length) <= unfused:
            return "block_list"
    return "blocked" if length > block_size(length) else "dense"


def _against_cudnn(backend, pattern, has_segments, has_slopes, length, dtype, head_size):
    """What stands against cuDNN, in words; the platform comes first, the rest costs more."""
    if backend not in ("gpu", "cuda"):
        return [f"it needs a CUDA GPU and this is {backend}"]
    against = []
    if jnp.dtype(dtype) not in HALVES:
        against.append(f"it takes bfloat16 or float16, not {jnp.dtype(dtype).name}")
    if has_segments or has_slopes:
        against.append("segments and ALiBi would need a mask or bias array, which is slow there")
    if head_size is not None and head_size > 128:
        against.append(f"its head size is at most 128, not {head_size}")
    return against + ([why] if length > 1 and (why := cudnn_can(pattern, length)) else [])


def _against_splash(backend, pattern, has_segments, has_slopes, length, dtype, head_size):
    if backend != "tpu":
        return [f"it needs a TPU and this is {backend}"]
    against = []
    if jnp.dtype(dtype) not in (jnp.dtype("bfloat16"), jnp.dtype("float32")):
        against.append(f"it takes bfloat16 or float32, not {jnp.dtype(dtype).name}")
    if has_slopes:
        against.append("it has no ALiBi")
    if 1 < length < LANES:
        against.append(f"its blocks hold {LANES} places, more than a sequence of {length}")
    return against + ([why] if length > 1 and (why := splash_can(pattern, length)) else [])


def _against_block_list(backend, pattern, has_segments, has_slopes, length, dtype, head_size):
    if backend not in ("gpu", "cuda", "cpu"):
        return [f"it needs a CUDA GPU, or a CPU to be tried on, and this is {backend}"]
    if head_size is not None and head_size > LARGEST_HEAD:
        return [f"its head size is at most {LARGEST_HEAD}, not {head_size}"]
    return []


AGAINST = {
    "cudnn": _against_cudnn,
    "splash": _against_splash,
    "block_list": _against_block_list,
}


def kernel_pairs(pattern: HeadPattern, length: int, kernel: str) -> int:
    """Query-key pairs the kernel multiplies per head and sequence, those it masks included.

    Of what cuDNN computes those of the pattern: what it does inside is not visible.
    """
    if kernel == "dense":
        return length * length
    return PAIRS[kernel](pattern, length)


PAIRS = {
    "blocked": multiplied,
    "cudnn": cudnn_pairs,
    "splash": splash_pairs,
    "block_list": listed_pairs,
}


def kernel_products(kernel: str) -> tuple[int, int]:
    """Matrix products over `kernel_pairs` in the forward and the backward pass.

    Each costs 2 K operations per pair and head. The blocked kernels compute the scores again;
    splash and block_list do so for the gradients of queries and of keys apart, and the products
    of values with them.
    """
    return {"dense": (2, 4), "splash": (2, 7), "block_list": (2, 7)}.get(kernel, (2, 5))


def score_products(kernel: str) -> int:
    """Of the products of the backward pass those as wide as queries, not as values."""
    return {"dense": 2, "splash": 4, "block_list": 4}.get(kernel, 3)
