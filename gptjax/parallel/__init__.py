"""Meshes, logical-axis rules and shardings."""

from gptjax.parallel.mesh import AXES, MeshConfig, make_mesh
from gptjax.parallel.rules import Rules, gathered, place

__all__ = ["AXES", "MeshConfig", "Rules", "gathered", "make_mesh", "place"]
