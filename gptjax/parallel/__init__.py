"""Meshes, logical-axis rules and shardings; jax is imported by what needs it."""

import importlib

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


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'gptjax.parallel' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
