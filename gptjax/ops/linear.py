"""Projections as plain 2-D matrix products."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from gptjax.ops.shards import axes_of, explicit_mesh, reshard, spec_of, without


def project(x, w, *, contract: int = 1, out_sharding: P | None = None):
    """Contracts the last `contract` axes of x with the first `contract` axes of w.

    x: [..., in], w: [in, out...] in x's dtype, result [..., out...]. It runs as one product of
    [tokens, in] and [in, out], which XLA:CPU does faster than the batched form, forward and
    backward. Under an explicit mesh `out_sharding` is the partition of the result; without one it
    follows from x's leading axes and w's trailing ones. Mesh axes that shard x's leading axes are
    gathered out of w first (FSDP).
    """
    lead, tail = x.shape[: x.ndim - contract], w.shape[contract:]
    inner = math.prod(w.shape[:contract])
    if x.shape[x.ndim - contract :] != w.shape[:contract]:
        raise ValueError(f"cannot contract the last {contract} axes of {x.shape} with {w.shape}")
    if explicit_mesh() is None:
        out = x.reshape(-1, inner) @ w.reshape(inner, -1)
        return out.reshape(*lead, *tail)
    x_spec = spec_of(x)
    taken = tuple(axis for entry in x_spec[: len(lead)] for axis in axes_of(entry))
    w = reshard(w, P(*[without(entry, taken) for entry in spec_of(w)]))
    if out_sharding is None:
        out_sharding = P(*x_spec[: len(lead)], *spec_of(w)[contract:])
    out_sharding = P(*out_sharding, *[None] * (len(lead) + len(tail) - len(out_sharding)))
    axes = (tuple(range(len(lead), x.ndim)), tuple(range(contract)))
    flat = _flat_specs(x_spec, spec_of(w), out_sharding, len(lead), contract)
    if flat is None:  # sharded along an axis that cannot be merged, e.g. the sequence
        return jax.lax.dot_general(x, w, (axes, ((), ())), out_sharding=out_sharding)
    rows, inner_x, inner_w, columns, out_rows, out_columns = flat
    x = jax.lax.reshape(x, (math.prod(lead), inner), out_sharding=P(rows, inner_x))
    w = jax.lax.reshape(w, (inner, math.prod(tail)), out_sharding=P(inner_w, columns))
    out = jnp.matmul(x, w, out_sharding=P(out_rows, out_columns))
    return jax.lax.reshape(out, (*lead, *tail), out_sharding=out_sharding)


def _flat_specs(x_spec, w_spec, out_spec, lead: int, contract: int):
    """Entries of the merged axes, or None where anything but a group's first axis is sharded."""
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
    return tuple(group[0] if len(group) else None for group in groups)
