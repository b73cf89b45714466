"""Eight simulated devices and no silent rank promotion, also when only this folder is run."""

import jax
import pytest
from jax.sharding import AxisType

from gptjax.ops import splash

if jax.config.jax_num_cpu_devices != 8:
    jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

AXES = ("data", "fsdp", "tensor")
MESHES = [(1, 1, 1), (2, 2, 2), (1, 1, 4), (8, 1, 1)]


@pytest.fixture(params=MESHES, ids=str)
def mesh(request):
    """An explicit mesh over the first devices; the test enters it with `jax.set_mesh`."""
    shape = request.param
    count = shape[0] * shape[1] * shape[2]
    return jax.make_mesh(
        shape, AXES, axis_types=(AxisType.Explicit,) * 3, devices=jax.devices()[:count]
    )


@pytest.fixture
def small_grids(monkeypatch):
    """Splash's blocks are of 128 places, so that short sequences have several."""
    monkeypatch.setattr(splash, "WIDEST", 128)
    monkeypatch.setattr(splash, "NARROW", 128)
    caches = (splash.grid_of, splash.visits)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()
