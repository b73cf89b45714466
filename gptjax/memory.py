"""Whether a planned run fits into its devices' memory, and which settings make it fit.

What is summed is what a step must hold at once: parameters, gradients, optimizer state and what
the backward pass needs. Temporary buffers of the compiler come on top, so the sum is a least.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import jax

from gptjax.experiment import Experiment
from gptjax.training.metrics import short

ROOM = 0.9  # of a device's memory that the sum may take; the rest is for temporary buffers
GIB = 1 << 30
# One device's memory in GiB, from the vendors' data sheets.
CHIPS = {
    "NVIDIA T4": 16,
    "TPU v5e": 16,
    "NVIDIA L4": 24,
    "TPU v6e": 32,
    "NVIDIA A100 80GB": 80,
    "NVIDIA H100": 80,
    "TPU v5p": 95,
    "NVIDIA H200": 141,
}
MOST_FSDP = 1024


@dataclass(frozen=True)
class Need:
    """Bytes that one device must hold: the training state, and what a microbatch keeps."""

    state: int
    kept: int

    @property
    def total(self) -> int:
        return self.state + self.kept


def device_memory() -> int | None:
    """Bytes of one device here, None where the backend does not say.

    Devices of a CPU share the memory of the machine, or of the container it is in.
    """
    device = jax.devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats.get("bytes_limit")
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # absent, or the word "max"
            limits.append(int(Path(path).read_text()))
    return min(limits) // jax.local_device_count()


def verdict(
    experiment: Experiment, need: Need, mesh: dict[str, int], here: bool, limit: int | None
) -> list[str]:
    """Lines that say whether a run fits, and what helps where it does not.

    `mesh` are the devices along each axis; `here`: whether they are in this machine; `limit`: the
    bytes of one of them, None where they are not known.
    """
    if not here or limit is None:
        return _of_chips(experiment, need, mesh)
    kind = jax.devices()[0].device_kind
    said = f"memory: at least {short(need.total, 'B')} of a device's {short(limit, 'B')} ({kind})"
    if need.total <= ROOM * limit:
        return [f"{said}: fits, {short(limit - need.total, 'B')} are left"]
    if need.total <= limit:
        word = f"fits barely, {short(limit - need.total, 'B')} are left for temporary buffers"
    else:
        word = f"does not fit, {short(need.total - limit, 'B')} too much"
    return [f"{said}: {word}", *remedies(experiment, need, mesh, limit)]


def _of_chips(experiment: Experiment, need: Need, mesh: dict[str, int]) -> list[str]:
    """The same for devices that are not here: from which kind on they would do."""
    named = [f"{name} ({size} GiB)" for name, size in CHIPS.items()]
    fits = [need.total <= ROOM * size * GIB for size in CHIPS.values()]
    said = f"memory: at least {short(need.total, 'B')} on each device"
    if not any(fits):
        limit = max(CHIPS.values()) * GIB
        lines = remedies(experiment, need, mesh, limit)
        return [f"{said}: does not fit the largest known, {named[-1]}", *lines]
    first = fits.index(True)
    short_of = f", not {named[first - 1]}" if first else ""
    return [f"{said}: fits {named[first]} and larger{short_of}"]


def remedies(experiment: Experiment, need: Need, mesh: dict[str, int], limit: int) -> list[str]:
    """What to change, each by itself, with values that by this reckoning suffice."""
    lines = []
    if experiment.model.remat != "block":
        lines.append("  --model.remat=block keeps one array per layer for the backward pass")
    ways = [_smallest(experiment, need, mesh, limit, most) for most in (None, 1)]
    for fsdp, accumulation in dict.fromkeys(way for way in ways if way is not None):
        parts, where = [], ""
        if fsdp != mesh["fsdp"]:
            parts.append(f"--mesh.data=1 --mesh.fsdp={fsdp}")
            where = f", on {fsdp * mesh['tensor']} such devices"
        if accumulation != experiment.optim.accumulation:
            parts.append(f"--optim.accumulation={accumulation}")
        lines.append(f"  {' '.join(parts)} fits and trains the same{where}")
    rows = experiment.data.batch_size
    least = mesh["data"] * mesh["fsdp"] * experiment.optim.accumulation
    room = ROOM * limit - need.state
    smaller = int(rows * room / need.kept) // least * least if room > 0 and need.kept else 0
    if 0 < smaller < rows:
        lines.append(f"  --data.batch_size={smaller} fits, and is another training")
    if not lines:
        lines.append("  a smaller model, or devices with more memory")
    return lines


def _smallest(
    experiment: Experiment, need: Need, mesh: dict[str, int], limit: int, times: int | None
) -> tuple[int, int] | None:
    """(fsdp, accumulation) that suffice: the fewest devices first, then the fewest microbatches.

    `times`: how many times the microbatches of now are allowed; None for any.
    """
    rows, now = experiment.data.batch_size, experiment.optim.accumulation
    ways = mesh["data"] * mesh["fsdp"]
    sizes = [mesh["fsdp"], *(2**n for n in range(1, 11) if mesh["fsdp"] < 2**n <= MOST_FSDP)]
    for fsdp in sizes:
        split = ways if fsdp == mesh["fsdp"] else fsdp
        for accumulation in range(now, (rows if times is None else now * times) + 1):
            if rows % accumulation or rows // accumulation % split:
                continue
            if split != ways and experiment.model.d_model % fsdp:
                continue
            kept = need.kept * ways / split * now / accumulation
            if need.state * mesh["fsdp"] / fsdp + kept <= ROOM * limit:
                return fsdp, accumulation
    return None
