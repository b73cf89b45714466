"""The little these ops need to know about explicit meshes."""

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

# `jax.reshard` is `jax.sharding.reshard` before jax 0.8.
_reshard = getattr(jax, "reshard", None) or jax.sharding.reshard


def explicit_mesh():
    """The mesh in force when it has explicit axes, else None (no mesh, or inside `shard_map`)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or AxisType.Explicit not in mesh.axis_types:
        return None
    return mesh


def backend() -> str:
    """The platform that a program traced here is for: "cpu", "gpu" or "tpu".

    That of the mesh in force, whose devices need not be here; without one jax's default.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if device is None:
        return jax.default_backend()
    if hasattr(device, "platform"):
        return device.platform
    kind = device.device_kind.lower()  # jax 0.7 tells no platform
    return next((name for name in ("tpu", "cpu") if name in kind), "gpu")


def on_platform(mesh: AbstractMesh, platform: str) -> AbstractMesh:
    """The mesh with devices of a platform (cpu, gpu or tpu) that `backend` finds in it."""
    fields = {"device_kind": platform, "num_cores": None, "platform": platform}
    known = {name: fields[name] for name in AbstractDevice.__dataclass_fields__}
    return mesh.update(abstract_device=AbstractDevice(**known))


def spec_of(x) -> P:
    """The partition of x as its type knows it, one entry per axis; all None without a mesh."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return P(*[None] * x.ndim)
    return P(*sharding.spec, *[None] * (x.ndim - len(sharding.spec)))


def axes_of(entry) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec."""
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def without(entry, taken: tuple[str, ...]):
    """An entry less the mesh axes in `taken`."""
    left = tuple(axis for axis in axes_of(entry) if axis not in taken)
    return left[0] if len(left) == 1 else (left or None)


def reshard(x, spec: P):
    """x with the partition `spec`; x itself without an explicit mesh or when it has it already."""
    if explicit_mesh() is None:
        return x
    # In jax 0.7 a constant made inside jit belongs to no mesh yet: it is placed all the same.
    sharding = getattr(jax.typeof(x), "sharding", None)
    placed = sharding is not None and not sharding.mesh.empty
    if placed and spec_of(x) == P(*spec, *[None] * (x.ndim - len(spec))):
        return x
    return _reshard(x, spec)


def on_shards(function, in_specs, out_specs):
    """`function` on the local part of every array; itself without an explicit mesh.

    Arrays are resharded to `in_specs` first. Replication is not tracked inside, so collectives are
    the caller's business; gradients of replicated arguments are summed by `shard_map`.
    """
    if explicit_mesh() is None:
        return function
    # check_vma=False: the loop carries inside would need pvary in jax 0.7 and pcast later.
    mapped = jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def call(*arrays):
        return mapped(*[reshard(x, spec) for x, spec in zip(arrays, in_specs, strict=True)])

    return call
