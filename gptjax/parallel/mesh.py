"""One function builds every mesh: three explicit axes, a single device is a mesh of ones.

`data` repeats the parameters, `fsdp` shards them and gathers each one before use (ZeRO-3,
arXiv 1910.02054), `tensor` splits heads, feed-forward columns and the vocabulary (Megatron,
arXiv 1909.08053). The batch is split over `data` and `fsdp`.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass

from gptjax.errors import BadInput, check_types

AXES = ("data", "fsdp", "tensor")
REST = -1


@dataclass(frozen=True)
class MeshConfig:
    """How many devices stand along each axis; presets: data, fsdp, tensor, or any product."""

    data: int = REST  # -1: whatever the other axes leave
    fsdp: int = 1
    tensor: int = 1

    def shape(self, num_devices: int) -> tuple[int, int, int]:
        """Devices along (data, fsdp, tensor); `data` is filled up when it is -1."""
        data = self.data
        if data == REST:
            data = max(num_devices // (self.fsdp * self.tensor), 1)
        return (data, self.fsdp, self.tensor)

    def validate(self) -> None:
        check_types("mesh", self)
        if self.data != REST and self.data < 1:
            raise BadInput(f"mesh.data is {self.data}; give 1 or more, or -1 for all that is left")
        for name in ("fsdp", "tensor"):
            if getattr(self, name) < 1:
                raise BadInput(f"mesh.{name} is {getattr(self, name)}; give 1 or more")


def possible_meshes(num_devices: int, fits) -> list[MeshConfig]:
    """Every mesh over exactly `num_devices` for which `fits(data, fsdp, tensor)` holds."""
    sizes = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    return [
        MeshConfig(num_devices // (fsdp * tensor), fsdp, tensor)
        for fsdp, tensor in itertools.product(sizes, sizes)
        if num_devices % (fsdp * tensor) == 0 and fits(num_devices // (fsdp * tensor), fsdp, tensor)
    ]


def _distance(wanted: MeshConfig, found: MeshConfig) -> float:
    pairs = zip(dataclasses.astuple(wanted), dataclasses.astuple(found), strict=True)
    return sum(abs(math.log2(max(a, 1) / b)) for a, b in pairs if a != REST)


def check_mesh(config: MeshConfig, num_devices: int, fits=lambda data, fsdp, tensor: None) -> None:
    """Refuse a mesh that the devices or the model cannot carry, naming the nearest possible ones.

    `fits(data, fsdp, tensor)` returns None, or in words what stands against it.
    """
    config.validate()
    shape = config.shape(num_devices)
    reason = None
    if math.prod(shape) > num_devices:
        reason = f"it takes {math.prod(shape)} devices and there are {num_devices}"
    elif config.data == REST and num_devices % (config.fsdp * config.tensor):
        reason = f"fsdp x tensor = {config.fsdp * config.tensor} does not divide {num_devices}"
    else:
        reason = fits(*shape)
    if reason is None:
        return
    options = possible_meshes(num_devices, lambda *shape: fits(*shape) is None)
    options.sort(key=lambda option: _distance(config, option))
    named = ", ".join(_words(option) for option in options[:3]) or "none on these devices"
    raise BadInput(f"the mesh {_words(config)} is impossible: {reason}; nearest possible: {named}")


def _words(config: MeshConfig) -> str:
    return "(" + ", ".join(f"{axis}={getattr(config, axis)}" for axis in AXES) + ")"


def make_mesh(config: MeshConfig, devices=None):
    """A `jax.sharding.Mesh` with explicit axes over the first devices that the config asks for."""
    import jax
    from jax.sharding import AxisType

    devices = list(jax.devices() if devices is None else devices)
    check_mesh(config, len(devices))
    shape = config.shape(len(devices))
    explicit = (AxisType.Explicit,) * len(AXES)
    return jax.make_mesh(shape, AXES, axis_types=explicit, devices=devices[: math.prod(shape)])


def abstract_mesh(shape: tuple[int, int, int]):
    """The same mesh without devices, for plans and traces."""
    from jax.sharding import AbstractMesh, AxisType

    return AbstractMesh(shape, AXES, axis_types=(AxisType.Explicit,) * len(AXES))
