"""What the points of a sweep cost on this machine: short real runs of every program, kept.

They are measured as a sweep's workers run: on a CPU in as many pinned processes at once as there
will be workers, each with a part of the programs, elsewhere in one process. The figures are kept
beside the prepared corpora for a day, so a second plan is free. Those of a machine that was busy
with something else are used once and not kept.
"""

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptjax import data
from gptjax.data.config import cache_root
from gptjax.errors import BadInput
from gptjax.experiment import Experiment
from gptjax.scaling.flops import count_parameters
from gptjax.sweeps.launchers import last_line
from gptjax.sweeps.measure import Cost, measure_programs, short_run
from gptjax.sweeps.planned import locked
from gptjax.sweeps.sweep import Point, digest, identity
from gptjax.training.config import program_config
from gptjax.training.metrics import clock
from gptjax.training.workdir import read_json, storage_errors, write_json

KEPT_HOURS = 24.0
BUSY = 0.6  # CPU seconds per second, below which others had a large part of the cores
SAY_SECONDS = 20.0  # between two lines of progress
POLL_SECONDS = 0.3

Say = Callable[[str], None]
Costs = Mapping[str, Cost | str]


@dataclass(frozen=True)
class Place:
    """Where a sweep's workers live: the device, how many they are, and the cores of each."""

    device: str
    backend: str
    shares: tuple[tuple[int, ...], ...]  # empty: not pinned
    here: bool = False  # in this process

    @property
    def workers(self) -> int:
        return len(self.shares)

    @property
    def fastest(self) -> float:
        """FLOP/s that no training here passes: 32 single-precision ones in a core's cycle at
        6 GHz; beside a CPU the fastest pod of accelerators."""
        if self.backend != "cpu":
            return 1e17
        return 2e11 * (sum(len(share) for share in self.shares) or os.cpu_count() or 1)

    @property
    def label(self) -> str:
        """What a measurement holds for."""
        cores = len(self.shares[0])
        pinned = f" pinned to {cores} cores each" if cores else ""
        return f"{self.workers} workers{pinned}, {self.device}"


ASK = (
    "import jax, json; d = jax.devices();"
    "print(json.dumps([jax.default_backend(), len(d), d[0].device_kind, jax.__version__]))"
)


def find_place(launcher: str, workers: int, points: int) -> Place:
    """Where a launcher would work on so many points; `workers` 0 lets the device decide.

    BadInput for launchers of other machines, whose time cannot be measured here.
    """
    if launcher not in ("local", "here"):
        raise BadInput(
            f"--launcher={launcher} works on other machines, and minutes are measured on this one: "
            "give --budget=FLOPS"
        )
    if launcher == "here":
        import jax

        devices = jax.devices()
        kind, backend = devices[0].device_kind, jax.default_backend()
        about = (backend, len(devices), kind, jax.__version__)
    else:  # in a process of its own: workers need the device
        done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
            raise BadInput(f"jax finds no device to train on: {last}")
        about = json.loads(done.stdout)
    backend, count, kind, version = about
    kind = _processor() if backend == "cpu" else kind
    device = f"{f'{count} x ' if count > 1 else ''}{kind}, jax {version}"
    if launcher == "here":
        return Place(device, backend, ((),), here=True)
    can_pin = backend == "cpu" and hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if can_pin else []
    workers = workers or min(len(cores) or 1, points)
    share = len(cores) // workers
    return Place(
        device, backend, tuple(tuple(cores[i * share : (i + 1) * share]) for i in range(workers))
    )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# ---------------------------------------------------------------- what is known


def measured(
    points: Sequence[Point],
    place: Place,
    say: Say = print,
    check: Callable[[Costs], None] = lambda costs: None,
) -> dict[str, Cost | str]:
    """For each program of the points what it costs, or why it was not measured.

    What is not known yet, or is older than a day, is measured now, by one process at a time.
    `check(costs)` is called with what is known after every program, and may raise BadInput.
    """
    programs = {point.program: point.experiment for point in points}
    found = _all_known(programs, place)
    if len(found) == len(programs):
        return found
    store = store_of(next(iter(programs.values())))
    with locked(store.with_suffix(".lock"), lambda: say("waiting for another that measures")):
        found = _all_known(programs, place)
        new = {program: e for program, e in programs.items() if program not in found}
        if new:
            _measure_new(new, place, found, say, check)
    return found


def _all_known(programs: dict[str, Experiment], place: Place) -> dict[str, Cost | str]:
    each = {program: _known(experiment, place) for program, experiment in programs.items()}
    return {program: cost for program, cost in each.items() if cost is not None}


def _measure_new(
    new: dict[str, Experiment], place: Place, found: dict[str, Cost | str], say: Say, check
) -> None:
    """Measure these, with lines of progress, into `found`."""
    check(found)
    for config in {_one_corpus(e): e.data for e in new.values()}.values():
        data.prepare(config, report=say)
    say(f"measuring {len(new)} programs in {place.workers} processes, once a day")
    begun = said = time.monotonic()
    done = 0
    with contextlib.closing(_measure(new, place)) as outcomes:
        for program, outcome in outcomes:
            if outcome is not None:
                done += 1
                found[program] = outcome
                if isinstance(outcome, Cost) and not busy({program: outcome}):
                    _keep(new[program], place, outcome)
                check(found)
            now = time.monotonic()
            if now - said > SAY_SECONDS and done < len(new):
                said = now
                say(_progress(done, len(new), now - begun))
    say(f"measured in {time.monotonic() - begun:.0f} s")
    if busy(found):
        say(f"{busy(found)}: these times are not kept, and the plan they make may be too small")


def _progress(done: int, count: int, seconds: float) -> str:
    if not done:
        return f"measuring: 0 of {count} programs after {clock(seconds)}"
    left = clock(seconds / done * (count - done))
    each = f"{seconds / done:.0f} s a program"
    return f"measuring: {done} of {count} programs · {each} · {left} left"


def busy(costs: Costs) -> str:
    """That something else had the machine while these were measured; "" where nothing had."""
    shares = [cost.cpu for cost in costs.values() if isinstance(cost, Cost)]
    least = min(shares, default=1.0)
    if least >= BUSY:
        return ""
    return f"the machine was busy with other work (a measurement got {100 * least:.0f}% of a core)"


def forget(experiment: Experiment) -> None:
    """All programs are measured anew from now on."""
    store = store_of(experiment)
    with locked(store.with_suffix(".lock")), storage_errors(f"remove {store}"):
        store.unlink(missing_ok=True)


def age(costs: dict[str, Cost | str]) -> float:
    """Seconds since the oldest of these was measured; 0 when there is none."""
    whens = [cost.when for cost in costs.values() if isinstance(cost, Cost)]
    return max(time.time() - min(whens), 0.0) if whens else 0.0


def store_of(experiment: Experiment) -> Path:
    """The file in which costs are kept."""
    return cache_root(experiment.data) / "timings.json"


def _key(experiment: Experiment, place: Place) -> str:
    plain = dataclasses.replace(short_run(experiment, 1), optim=program_config(experiment.optim))
    return f"run {identity(plain, 16)} on {place.label}"


def _known(experiment: Experiment, place: Place) -> Cost | None:
    try:
        row = json.loads(store_of(experiment).read_text())[_key(experiment, place)]
        cost = Cost(**{name: float(value) for name, value in row.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return cost if abs(time.time() - cost.when) < KEPT_HOURS * 3600 else None


def _keep(experiment: Experiment, place: Place, cost: Cost) -> None:
    store = store_of(experiment)
    try:
        known = json.loads(store.read_text())
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    with storage_errors(f"write {store}"):
        store.parent.mkdir(parents=True, exist_ok=True)
    write_json(store, known | {_key(experiment, place): dataclasses.asdict(cost)})


def _one_corpus(experiment: Experiment) -> str:
    return digest(repr(dataclasses.replace(experiment.data, batch_size=1, seed=0)))


# ---------------------------------------------------------------- measuring


def _measure(
    programs: dict[str, Experiment], place: Place
) -> Iterator[tuple[str, Cost | str | None]]:
    """Every program with its outcome, as it comes; None now and then while none does."""
    if place.here:
        yield from zip(programs, measure_programs(list(programs.values())), strict=True)
        return
    # The costliest first, each to the process with the least to do.
    loads: list[list[str]] = [[] for _ in place.shares]
    sums = [0.0] * len(loads)
    size = lambda e: count_parameters(e.model).total * e.tokens_per_step
    for program in sorted(programs, key=lambda name: -size(programs[name])):
        least = min(range(len(loads)), key=lambda i: sums[i])
        loads[least].append(program)
        sums[least] += size(programs[program])
    with tempfile.TemporaryDirectory(prefix="gptjax-timing-") as folder:
        children = []
        try:
            for slot, (names, share) in enumerate(zip(loads, place.shares, strict=True)):
                if names:
                    tasks = [programs[name].to_json() for name in names]
                    children.append((names, *_child(Path(folder) / str(slot), tasks, share)))
            seen = [0] * len(children)
            alive = [True] * len(children)
            while any(alive):
                for i, (names, process, out, log) in enumerate(children):
                    code = process.poll() if alive[i] else None
                    rows = read_json(out) if alive[i] and out.exists() else []
                    for name, row in zip(names[seen[i] :], rows[seen[i] :], strict=False):
                        seen[i] += 1
                        yield name, row if isinstance(row, str) else Cost(**row)
                    if code is not None:
                        alive[i] = False
                        for name in names[seen[i] :]:
                            yield name, f"its process ended with code {code}: {last_line(log)}"
                time.sleep(POLL_SECONDS)
                yield "", None
        finally:
            for _, process, _, _ in children:
                if process.poll() is None:
                    process.terminate()
                    process.wait()


def _child(folder: Path, tasks: list[dict], share: Sequence[int]):
    folder.mkdir()
    write_json(folder / "tasks.json", tasks)
    command = [
        sys.executable,
        "-m",
        "gptjax.sweeps.measure",
        str(folder),
        f"--parent={os.getpid()}",
    ]
    command += [f"--cpus={','.join(str(cpu) for cpu in share)}"] if share else []
    command.append(f"--begun={time.time()}")
    log = folder / "log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    return process, folder / "costs.json", log
