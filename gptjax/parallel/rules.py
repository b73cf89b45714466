"""Logical axis names to mesh axes, and the two layouts of a parameter.

A parameter is *stored* with its `embed` axis split over `fsdp` and is *gathered* along it right
before use; the gradient's way back is the reduce-scatter. Heads, feed-forward columns, the
vocabulary and experts stay split over `tensor` in both layouts.
"""

import math
from dataclasses import dataclass

from jax.sharding import PartitionSpec as P

from gptjax.errors import BadInput
from gptjax.ops.shards import explicit_mesh, reshard

Axes = tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """Mesh axes by logical axis name; an empty tuple leaves that axis whole."""

    batch: Axes = ("data", "fsdp")
    seq: Axes = ()
    embed: Axes = ("fsdp",)
    heads: Axes = ("tensor",)
    kv_heads: Axes = ("tensor",)
    head_dim: Axes = ()
    mlp: Axes = ("tensor",)
    expert: Axes = ("tensor",)
    vocab: Axes = ("tensor",)
    layer: Axes = ()

    # An axis that the mesh does not divide is left whole for these names and refused for others:
    # one key/value head is shared by all, 50257 is prime, and a width of 6 x 13 is rare.
    MAY_STAY_WHOLE = frozenset({"kv_heads", "vocab", "embed"})

    def spec(self, names: tuple[str | None, ...], shape: tuple[int, ...], mesh) -> P:
        """The stored layout of an array of this shape whose axes carry these names."""
        parts = []
        for name, size in zip(names, shape, strict=True):
            axes = getattr(self, name) if name else ()
            ways = math.prod(mesh.shape[axis] for axis in axes)
            if size % ways:
                if name not in self.MAY_STAY_WHOLE:
                    raise BadInput(f"{name} = {size} is not divisible by {'x'.join(axes)} = {ways}")
                axes = ()
            parts.append(axes[0] if len(axes) == 1 else (axes or None))
        return P(*parts)

    def gathered_spec(self, names, shape, mesh) -> P:
        """The layout in which a parameter is used: whole along `embed`."""
        return self.spec(tuple(None if n == "embed" else n for n in names), shape, mesh)


DEFAULT_RULES = Rules()


def gathered(w, names: tuple[str | None, ...], rules: Rules):
    """The parameter in the layout in which it is multiplied; the array itself without a mesh."""
    mesh = explicit_mesh()
    return w if mesh is None else reshard(w, rules.gathered_spec(names, w.shape, mesh))


def place(x, names: tuple[str | None, ...], rules: Rules):
    """An activation in the layout of its logical names; the array itself without a mesh."""
    mesh = explicit_mesh()
    return x if mesh is None else reshard(x, rules.spec(names, x.shape, mesh))


def activation_spec(names: tuple[str | None, ...], shape: tuple[int, ...], rules: Rules):
    """An `out_sharding` for a product of this shape; None without a mesh."""
    mesh = explicit_mesh()
    return None if mesh is None else rules.spec(names, shape, mesh)
