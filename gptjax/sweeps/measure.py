"""Short real runs of programs, one after the other in this process: what a run of each costs.

    python -m gptjax.sweeps.measure FOLDER --parent=PID --begun=TIME [--cpus=0,1]

`gptjax.sweeps.timing` starts as many of these at once as a sweep has workers.
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptjax import allocator
from gptjax.errors import BadInput
from gptjax.experiment import Experiment
from gptjax.process import quiet_libraries, use_compilation_cache
from gptjax.scaling.flops import count_parameters
from gptjax.sweeps.worker import die_with_parent
from gptjax.training.workdir import MetricsLog, read_json, write_json

FIRST_STEPS = 8  # of the run that compiles
SECONDS = 1.5  # of steps in the run that is timed
STEPS = (16, 300)  # of that run, fewest and most
LARGE = 2e8  # parameters beyond which only steps are timed: a run would write gigabytes
STORED_SECONDS = 0.2  # of compilation beyond which a program is kept for the next process


@dataclass(frozen=True)
class Cost:
    """Seconds of one program in a worker."""

    start: float  # from a worker's start to its first run, imports and corpus among it
    begin: float  # tracing and loading the compiled program, once in every worker
    run: float  # of every run beside what follows: opening, the last files
    step: float
    evaluation: float
    save: float
    when: float  # measured, in seconds since 1970
    cpu: float = 1.0  # CPU seconds per second meanwhile, where the CPU is the device

    def seconds(self, experiment: Experiment, since: int = 0) -> float:
        """A run's time from step `since` on, in a worker that has its program."""
        found = self.run + (experiment.steps - since) * self.step
        for what, each in (("eval", self.evaluation), ("checkpoint", self.save)):
            every, steps = experiment.every(what), experiment.steps
            found += each * (-(-steps // every) - since // every)
        return found


def measure_programs(
    experiments: Sequence[Experiment], begun: float | None = None
) -> Iterator[Cost | str]:
    """The cost of each in this process, or why there is none; `begun`: when the process was."""
    compiled = _count_compilation()
    begun = begun or time.time()
    start = None
    for experiment in experiments:
        try:
            if start is None and not _steps_alone(experiment):
                start = _first_run(experiment, begun, compiled)
            yield _cost(experiment, start or 0.0, compiled)
        except BadInput as error:
            yield str(error)


def _first_run(experiment: Experiment, begun: float, compiled: list[float]) -> float:
    """Seconds from the start of the process until its first run, beside those of that run."""
    import jax

    waited = time.time() - begun
    first, _ = _run(experiment, FIRST_STEPS, compiled)
    jax.clear_caches()
    second, _ = _run(experiment, FIRST_STEPS, compiled)
    return waited + max(first - second, 0.0)


def _steps_alone(experiment: Experiment) -> bool:
    """Whether no whole run of it can be made here, or should be."""
    import jax

    from gptjax.plan import CPU_LIMIT

    slow = jax.default_backend() == "cpu" and experiment.step_flops.training > CPU_LIMIT
    wide = math.prod(experiment.mesh.shape(1)) > jax.device_count()
    return slow or wide or count_parameters(experiment.model).total > LARGE


def _cost(experiment: Experiment, start: float, compiled: list[float]) -> Cost | str:
    import jax

    if _steps_alone(experiment):
        from gptjax.plan import measure

        seconds, why_not = measure(experiment)
        return why_not if seconds is None else Cost(start, 0, 0, seconds, 0, 0, time.time())
    first, rows = _run(experiment, FIRST_STEPS, compiled)
    fastest = min(b - a for a, b in _pairs(rows))
    count = round(SECONDS / max(fastest, 1e-3))
    count = min(max(count, STEPS[0]), STEPS[1])
    wall, used = time.perf_counter(), time.process_time()
    seconds, rows = _run(experiment, count, compiled)
    cpu = (time.process_time() - used) / (time.perf_counter() - wall)
    cpu = cpu if jax.default_backend() == "cpu" else 1.0
    gaps = [b - a for a, b in _pairs(rows)]
    # A save in the middle slows the steps behind it; all others are those of a long run.
    half = count // 2
    after = slice(half - 1, half + 7)
    plain = sorted(gaps[1 : half - 1] + gaps[half + 7 :] or gaps)
    fifth = len(plain) // 5  # moments of other work count little in a long run
    plain = plain[fifth : len(plain) - fifth]
    step = sum(plain) / len(plain)
    save = max(sum(gaps[after]) - len(gaps[after]) * step, 0.0)
    evaluation = max(rows[-1]["seconds"] - rows[-2]["seconds"], 0.0)
    run = max(seconds - count * step - evaluation - 2 * save, 0.0)
    begin = max(first - FIRST_STEPS * step - evaluation - 2 * save - run, 0.0)
    return Cost(start, begin, run, step, evaluation, save, time.time(), cpu)


def _pairs(rows: list[dict]) -> list[tuple[float, float]]:
    times = [row["seconds"] for row in rows if "grad_norm" in row]
    return list(itertools.pairwise(times))


def _run(experiment: Experiment, steps: int, compiled: list[float]) -> tuple[float, list[dict]]:
    """Seconds of a real run in a folder that goes, without what is compiled once, and its rows."""
    from gptjax.runs import fit

    compiled.clear()
    with tempfile.TemporaryDirectory(prefix="gptjax-timing-") as folder:
        begun = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            fit(short_run(experiment, steps), Path(folder) / "run")
        seconds = time.perf_counter() - begun
        rows = MetricsLog(Path(folder) / "run" / "metrics.jsonl").rows()
    return seconds - sum(each for each in compiled if each > STORED_SECONDS), rows


def short_run(experiment: Experiment, steps: int) -> Experiment:
    """The run with so many steps, one evaluation, at its end, and two saves."""
    train = dataclasses.replace(
        experiment.train,
        tokens=0,
        steps=steps,
        flops=0.0,
        seed=0,
        log_every=1,
        eval_every=1 << 30,
        checkpoint_every=max(steps // 2, 1),
    )
    return dataclasses.replace(experiment, name="timing", train=train)


def _count_compilation() -> list[float]:
    """A list that gets the seconds of every program that is compiled from now on."""
    import jax

    durations: list[float] = []

    def listen(event: str, seconds: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            durations.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return durations


def main() -> int:
    """Measure the tasks of a folder and write what they cost, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m gptjax.sweeps.measure")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cpus", default="")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--begun", type=float, required=True)
    given = parser.parse_args()
    die_with_parent()
    if os.getppid() != given.parent:
        return 1
    if given.cpus:  # before jax counts them
        os.sched_setaffinity(0, {int(cpu) for cpu in given.cpus.split(",")})
    tempfile.tempdir = str(given.folder)  # whoever stops this takes it all away
    allocator.tune()
    use_compilation_cache()
    quiet_libraries()
    tasks = [Experiment.from_json(tree) for tree in read_json(given.folder / "tasks.json")]
    found: list = []
    for cost in measure_programs(tasks, given.begun):
        found.append(cost if isinstance(cost, str) else dataclasses.asdict(cost))
        write_json(given.folder / "costs.json", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
