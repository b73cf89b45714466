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
MOST = 1 << 20  # devices: beyond any machine, near enough to answer at once
TRIED = 64  # numbers of devices for which a mesh is looked for before none is named


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
        size = math.prod(self.shape(1))
        if size > MOST:
            raise BadInput(f"mesh.data x mesh.fsdp x mesh.tensor is {size}; give at most {MOST}")


def possible_meshes(num_devices: int, fits) -> list[MeshConfig]:
    """Every mesh over exactly `num_devices` for which `fits(data, fsdp, tensor)` is None."""
    low = [n for n in range(1, math.isqrt(num_devices) + 1) if num_devices % n == 0]
    sizes = sorted({*low, *(num_devices // n for n in low)})
    return [
        MeshConfig(num_devices // (fsdp * tensor), fsdp, tensor)
        for fsdp, tensor in itertools.product(sizes, sizes)
        if num_devices % (fsdp * tensor) == 0
        and fits(num_devices // (fsdp * tensor), fsdp, tensor) is None
    ]


def _distance(wanted: MeshConfig, found: MeshConfig) -> float:
    pairs = zip(dataclasses.astuple(wanted), dataclasses.astuple(found), strict=True)
    return sum(abs(math.log2(max(a, 1) / b)) for a, b in pairs if a != REST)


def check_mesh(
    config: MeshConfig,
    num_devices: int,
    fits=lambda data, fsdp, tensor: None,
    here: int | None = None,
) -> None:
    """Refuse a mesh that the devices or the model cannot carry, naming the nearest possible ones.

    `fits(data, fsdp, tensor)` returns None, or in words what stands against it. A plan may be of
    more devices than are `here`.
    """
    config.validate()
    here = num_devices if here is None else here
    shape = config.shape(num_devices)
    size, inner = math.prod(shape), config.fsdp * config.tensor
    divides = config.data != REST or num_devices % inner == 0
    misfit = fits(*shape)
    if size <= num_devices and divides and misfit is None:
        return
    reasons = []
    if size > here:
        reasons.append(f"it takes {size} devices and {_are(here)}")
    elif not divides:
        reasons.append(f"fsdp x tensor = {inner} does not divide {num_devices} devices")
    if misfit is not None:
        reasons.append(misfit)
    near = [_nearest(config, count, fits) for count in sorted({here, num_devices})]
    raise BadInput(
        f"the mesh {_words(config)} is impossible: {'; '.join(reasons)}; nearest possible: "
        + "; ".join(near)
    )


def _nearest(config: MeshConfig, count: int, fits) -> str:
    """The nearest meshes over `count` devices, or over fewer where there is none, in words."""
    options = []
    for size in range(count, max(count - TRIED, 0), -1):
        options = possible_meshes(size, fits)
        if options:
            break
    options.sort(key=lambda option: _distance(config, option))
    named = ", ".join(map(_words, options[:3])) or "none"
    return f"{named} on {count} device{'s' * (count > 1)}"


def _are(count: int) -> str:
    return f"there are {count}" if count > 1 else "there is 1"


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
