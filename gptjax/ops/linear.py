"""Projections as plain 2-D matrix products."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from gptjax.ops.shards import axes_of, backend, explicit_mesh, reshard, spec_of, without

FEW_ROWS = 64  # beside which packing a table of words costs more than the product
PRODUCT = "product"  # the name by which a rematerialisation policy keeps these results


def project(x, w, *, contract: int = 1, out_sharding: P | None = None):
    """Contracts the last `contract` axes of x with the first `contract` axes of w.

    x: [..., in], w: [in, out...] in x's dtype, result [..., out...] in x's dtype, summed in
    float32. It runs as one product of [tokens, in] and [in, out], which XLA:CPU does faster than
    the batched form, forward and backward. Under an explicit mesh `out_sharding` is the partition
    of the result; without one it follows from x's leading axes and w's trailing ones. Mesh axes
    that shard x's leading axes are gathered out of w first (FSDP).
    """
    lead, tail = x.shape[: x.ndim - contract], w.shape[contract:]
    if x.shape[x.ndim - contract :] != w.shape[:contract]:
        raise ValueError(f"cannot contract the last {contract} axes of {x.shape} with {w.shape}")
    specs = _FlatSpecs()
    if explicit_mesh() is not None:
        x_spec = spec_of(x)
        taken = tuple(axis for entry in x_spec[: len(lead)] for axis in axes_of(entry))
        w = reshard(w, P(*[without(entry, taken) for entry in spec_of(w)]))
        if out_sharding is None:
            out_sharding = P(*x_spec[: len(lead)], *spec_of(w)[contract:])
        out_sharding = P(*out_sharding, *[None] * (len(lead) + len(tail) - len(out_sharding)))
        specs = _flat_specs(x_spec, spec_of(w), out_sharding, len(lead), contract)
        if specs is None:  # sharded along an axis that cannot be merged, e.g. the sequence
            axes = (tuple(range(len(lead), x.ndim)), tuple(range(contract)))
            out = jax.lax.dot_general(x, w, (axes, ((), ())), out_sharding=out_sharding)
            return checkpoint_name(out, PRODUCT)
    inner = math.prod(w.shape[:contract])
    x = _reshaped(x, (math.prod(lead), inner), specs.x)
    w = _reshaped(w, (inner, math.prod(tail)), specs.w)
    return _reshaped(checkpoint_name(_product(specs, x, w), PRODUCT), (*lead, *tail), out_sharding)


def unembed(h_BTD, w_VD, *, out_sharding: P | None = None):
    """Hidden states times every row of a table: [B, T, V], summed and returned in float32.

    XLA:CPU packs the right side of a product anew each time, which for a few rows of h is most of
    the work: the table stands on the left then, and a barrier keeps the compiler from exchanging
    the two again.
    """
    few = h_BTD.shape[0] * h_BTD.shape[1] <= FEW_ROWS and backend() == "cpu"
    if few and explicit_mesh() is None:
        out_VBT = jnp.einsum("vd,btd->vbt", w_VD, h_BTD, preferred_element_type=jnp.float32)
        return jnp.moveaxis(jax.lax.optimization_barrier(out_VBT), 0, -1)
    return jnp.einsum(
        "btd,vd->btv",
        h_BTD,
        w_VD,
        preferred_element_type=jnp.float32,
        out_sharding=out_sharding,
    )


class _FlatSpecs(NamedTuple):
    """Partitions of the three matrices; None without an explicit mesh."""

    x: P | None = None
    w: P | None = None
    out: P | None = None


def _flat_specs(x_spec, w_spec, out_spec, lead: int, contract: int):
    """The partitions, or None where anything but a merged group's first axis is sharded."""
    groups = (
        x_spec[:lead],
        x_spec[lead:],
        w_spec[:contract],
        w_spec[contract:],
        out_spec[:lead],
        out_spec[lead:],
    )
    if any(entry is not None for group in groups for entry in group[1:]):
        return None
    rows, inner_x, inner_w, columns, out_rows, out_columns = (
        group[0] if len(group) else None for group in groups
    )
    return _FlatSpecs(P(rows, inner_x), P(inner_w, columns), P(out_rows, out_columns))


def _reshaped(x, shape, spec):
    return x.reshape(shape) if spec is None else jax.lax.reshape(x, shape, out_sharding=spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(specs, x, w):
    """x @ w. All three products sum in float32 and round once: for bfloat16 that is what a CPU
    with matrix units is fast at, and autodiff would mix float32 cotangents with bfloat16 weights.
    """
    return _contract(x, w, 1, 0, specs.out)


def _product_forward(specs, x, w):
    return _product(specs, x, w), (x, w)


def _product_backward(specs, kept, g):
    x, w = kept
    return _contract(g, w, 1, 1, specs.x), _contract(x, g, 0, 0, specs.w)


_product.defvjp(_product_forward, _product_backward)


def _contract(a, b, a_axis: int, b_axis: int, out_sharding):
    dimensions = (((a_axis,), (b_axis,)), ((), ()))
    out = jax.lax.dot_general(
        a, b, dimensions, preferred_element_type=jnp.float32, out_sharding=out_sharding
    )
    return out.astype(a.dtype)
