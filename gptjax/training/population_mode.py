"""Which mode steps a population fastest on this device: measured once, then remembered."""

import hashlib
import json
import statistics
import time
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np

from gptjax.errors import BadInput
from gptjax.training.example import example_batch
from gptjax.training.loop import to_mesh
from gptjax.training.metrics import short
from gptjax.training.optimizer import hyper_of, make_optimizer
from gptjax.training.stacked import Mode, population_program, stack
from gptjax.training.state import init_state
from gptjax.training.workdir import write_json

ROUNDS = 5
ROUND_SECONDS = 0.15  # of each mode in a round
LARGE_ON_CPU = 1e10  # FLOPs of a step beyond which one run keeps a CPU busy: vmap was slower there
WORTH = 0.97  # of the sequential time: a gain below it may be noise
MEMORY_SHARE = 0.8  # of the free memory that a population may take


def choose_mode(experiment, members: int, mesh, store: Path | None = None, say=print) -> Mode:
    """The fastest mode for so many runs of this program on this mesh, memory permitting.

    Times a few steps on random data: one member after the other, `lax.map` and `vmap` over all,
    and `vmap` over halves, quarters, ... while that gets faster. `store` is a JSON file of earlier
    choices, by program, device and versions. Seconds to a minute, most of it compiling.
    """
    if members == 1 or jax.process_count() > 1:  # hosts would measure, and choose, differently
        return Mode("sequential")
    key = _key(experiment, members, mesh)
    with suppress(KeyError, TypeError, BadInput):  # a damaged row is measured anew
        row = _read(store)[key]
        mode = Mode(row["kind"], row["width"])
        mode.validate(members)
        return mode
    say(f"measuring how {members} runs of {experiment.name} train fastest together")
    ratios = measure_modes(experiment, members, mesh, say)
    mode = min(ratios, key=ratios.get)
    if ratios[mode] > WORTH:
        mode = Mode("sequential")
    table = ", ".join(f"{one} {ratio:.2f}" for one, ratio in ratios.items())
    say(f"population of {members}: {mode} (time against sequential: {table})")
    if store is not None:
        row = {"kind": mode.kind, "width": mode.width, "measured": table}
        store.parent.mkdir(parents=True, exist_ok=True)
        write_json(store, {**_read(store), key: row})
    return mode


def measure_modes(experiment, members: int, mesh, say=print) -> dict[Mode, float]:
    """Time of a step of all members in each mode worth trying, as a share of the sequential."""
    sequential = Mode("sequential")
    ratios = {sequential: 1.0}
    if experiment.step_flops.training > LARGE_ON_CPU and jax.default_backend() == "cpu":
        return ratios
    alone = _Stepper(experiment, sequential, mesh)
    alone.warm_up()

    def measure(mode: Mode) -> float:
        groups = -(-members // mode.width)
        try:
            stepper = _Stepper(experiment, mode, mesh)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            say(f"{mode} is left out: it does not fit into memory")
            return float("inf")
        needed = stepper.bytes + (members - mode.width) * stepper.state_bytes / mode.width
        if needed > MEMORY_SHARE * free_memory(mesh):
            say(f"{mode} is left out: it would take {short(needed, 'B')} of memory")
            return float("inf")
        stepper.warm_up()
        rounds = [(stepper.time(), alone.time()) for _ in range(ROUNDS)]
        return groups * statistics.median(a / b for a, b in rounds) / members

    ratios[Mode("map", members)] = measure(Mode("map", members))
    width, best = members, float("inf")
    while width > 1:
        mode = Mode("vmap", width).fitted(members)
        ratios[mode] = measure(mode)
        if ratios[mode] > best:
            break
        best, width = ratios[mode], -(-mode.width // 2)
    return ratios


class _Stepper:
    """One group of a mode, stepped on random data as a population would."""

    def __init__(self, experiment, mode: Mode, mesh):
        optimizer = make_optimizer(experiment.optim, experiment.steps)
        state = init_state(experiment.model, optimizer, 0, mesh)
        self.state_bytes = mode.width * sum(x.nbytes for x in jax.tree.leaves(state))
        self.mesh, self.hyper = mesh, hyper_of(experiment.optim, experiment.steps)
        with jax.set_mesh(mesh):
            self.batch = to_mesh(example_batch(experiment), mesh)
            if mode.kind != "sequential":
                state = stack([state] * mode.width)
                stacked = jax.tree.map(lambda x: np.stack([x] * mode.width), self.hyper)
                self.hyper = jax.device_put(stacked, jax.NamedSharding(mesh, jax.P()))
            self.state = state
            self.program = population_program(experiment, mode.kind, shared=True)
            compiled = self.program.lower(self.state, self.batch, self.hyper).compile()
        self.bytes = self.state_bytes + compiled.memory_analysis().temp_size_in_bytes
        self.steps = 2

    def warm_up(self) -> None:
        """Fix how many steps a round has."""
        self.time()
        self.steps = max(self.steps, round(ROUND_SECONDS / self.time()))

    def time(self) -> float:
        """Seconds of a step over a round; metrics are read one step late, as in training."""
        begun, before = time.perf_counter(), None
        with jax.set_mesh(self.mesh):
            for _ in range(self.steps):
                self.state, metrics = self.program(self.state, self.batch, self.hyper)
                if before is not None:
                    jax.device_get(before)
                before = metrics
            jax.block_until_ready((before, self.state))
        return (time.perf_counter() - begun) / self.steps


def free_memory(mesh) -> float:
    """Bytes that the devices of this process have left, all together; infinite where unknown."""
    free = 0.0
    for device in mesh.local_devices:
        stats = device.memory_stats()
        if not stats or "bytes_limit" not in stats:
            break
        free += stats["bytes_limit"] - stats["bytes_in_use"]
    else:
        return free
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    return float("inf")


def _key(experiment, members: int, mesh) -> str:
    program = hashlib.sha256(repr(experiment.program).encode()).hexdigest()[:16]
    shape = "x".join(map(str, mesh.devices.shape))
    kind = mesh.devices.flat[0].device_kind
    return f"{program} x {members} on {shape} {kind}, jax {jax.__version__}"


def _read(store: Path | None) -> dict:
    try:
        known = json.loads(store.read_text()) if store is not None else {}
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
