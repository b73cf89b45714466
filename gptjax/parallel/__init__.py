"""Meshes, logical-axis rules and shardings."""

from gptjax.parallel.mesh import AXES, MeshConfig, make_mesh
from gptjax.parallel.rules import DEFAULT_RULES, Rules, gathered, place

__all__ = ["AXES", "DEFAULT_RULES", "MeshConfig", "Rules", "gathered", "make_mesh", "place"]
