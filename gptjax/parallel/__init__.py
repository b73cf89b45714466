"""Meshes, logical-axis rules and shardings; jax is imported by what needs it."""

from gptjax.lazy import lazy

_WHERE = {
    "AXES": "gptjax.parallel.mesh",
    "DEFAULT_RULES": "gptjax.parallel.rules",
    "MeshConfig": "gptjax.parallel.mesh",
    "Rules": "gptjax.parallel.rules",
    "gathered": "gptjax.parallel.rules",
    "make_mesh": "gptjax.parallel.mesh",
    "place": "gptjax.parallel.rules",
}

__all__ = sorted(_WHERE)
__getattr__, __dir__ = lazy(__name__, _WHERE)
