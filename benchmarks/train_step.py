"""Times one training step of gptjax against a plain PyTorch GPT of the same shape, on a CPU.

    python benchmarks/train_step.py [--shapes a b c] [--rounds 7] [--sides gptjax torch ...]

Float32, forward, backward, clipping and AdamW. Every side lives in a process of its own; rounds
are interleaved, each side's step time is the median over all rounds, and a ratio is the median of
the ratios within a round, given with its quartiles. Peak memory is the process's high-water mark.
Trust ratios only where other processes took next to nothing: OpenMP's threads spin while they wait,
so PyTorch loses far more than gptjax on a shared machine.
PyTorch must be installed; it is no dependency of gptjax. Results stand in RESULTS.md.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
THREADS = 2
SHAPES = {
    "a": {"layers": 4, "width": 128, "heads": 4, "length": 256, "batch": 16, "vocab": 256},
    "b": {"layers": 6, "width": 384, "heads": 6, "length": 256, "batch": 8, "vocab": 8192},
    "c": {"layers": 12, "width": 768, "heads": 12, "length": 512, "batch": 2, "vocab": 50257},
}
STEPS = {"a": 8, "b": 3, "c": 1}  # steps in a round
SIDES = {
    "gptjax": "gptjax, tuned allocator",
    "gptjax-system": "gptjax, system allocator",
    "torch": "PyTorch eager, tuned allocator",
    "torch-system": "PyTorch eager, system allocator",
    "compiled": "torch.compile, tuned allocator",
    "compiled-system": "torch.compile, system allocator",
}


# ---------------------------------------------------------------- workers


def gptjax_step(shape: dict):
    """(a function that takes one training step, number of parameters)."""
    import jax
    import numpy as np

    from gptjax import DataConfig, DecoderConfig, Experiment, OptimConfig, TrainConfig
    from gptjax.parallel import MeshConfig, make_mesh
    from gptjax.training.optimizer import make_optimizer
    from gptjax.training.state import init_state
    from gptjax.training.step import make_train_step

    experiment = Experiment(
        name="benchmark",
        model=DecoderConfig(
            vocab_size=shape["vocab"],
            context_length=shape["length"],
            num_layers=shape["layers"],
            d_model=shape["width"],
            num_heads=shape["heads"],
        ),
        data=DataConfig(batch_size=shape["batch"], sequence_length=shape["length"]),
        train=TrainConfig(steps=1000),
        optim=OptimConfig(),
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    rows = np.random.default_rng(0).integers(
        shape["vocab"], size=(shape["batch"], shape["length"] + 1), dtype=np.int32
    )
    optimizer = make_optimizer(experiment.optim, experiment.steps)
    state = init_state(experiment.model, optimizer, 0, mesh)
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    train_step = make_train_step(experiment)
    with jax.set_mesh(mesh):
        where = jax.NamedSharding(mesh, jax.P(("data", "fsdp"), None))
        batch = {"tokens": rows[:, :-1], "targets": rows[:, 1:]}
        batch = {name: jax.device_put(x, where) for name, x in batch.items()}

    def step() -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = train_step(state, batch)
            return float(metrics.loss)

    return step, parameters


def torch_step(shape: dict, compiled: bool):
    """(a function that takes one training step, number of parameters)."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import torch
    from peers.torch_gpt import make_step

    torch.set_num_threads(THREADS)
    return make_step(shape, compiled)


def work(side: str, name: str) -> None:
    """Answers every line `n` on stdin with the seconds of n steps, as one JSON line."""
    from gptjax.allocator import tune

    said = tune()
    shape = SHAPES[name]
    if side.startswith("gptjax"):
        step, parameters = gptjax_step(shape)
    else:
        step, parameters = torch_step(shape, side.startswith("compiled"))
    began = time.perf_counter()
    losses = [step(), step()]
    about = {"parameters": parameters, "first_losses": losses, "allocator": said}
    print(json.dumps({**about, "start_s": time.perf_counter() - began}), flush=True)
    for line in sys.stdin:
        seconds, cpu = [], time.process_time()
        for _ in range(int(line)):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu = (time.process_time() - cpu) / len(seconds)
        peak = usage.ru_maxrss * 1024 / 1e9  # ru_maxrss is in KiB on Linux
        print(json.dumps({"seconds": seconds, "cpu_s": cpu, "peak_gb": peak}), flush=True)


# ---------------------------------------------------------------- rounds


class Worker:
    """One side in a process of its own."""

    def __init__(self, side: str, name: str):
        allocator = "system" if side.endswith("-system") else "tuned"
        environment = {
            **os.environ,
            "GPTJAX_ALLOCATOR": allocator,
            "JAX_PLATFORMS": "cpu",
            "OMP_NUM_THREADS": str(THREADS),
            "PYTHONPATH": str(ROOT),
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", side, "--shapes", name],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self.read()
        self.seconds, self.cpu = [], []  # the median step and CPU seconds a step of each round
        self.peak_gb = 0.0

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with code {self.process.wait()}")
        return json.loads(line)

    def round(self, steps: int) -> None:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self.read()
        self.seconds.append(statistics.median(answer["seconds"]))
        self.cpu.append(answer["cpu_s"])
        self.peak_gb = answer["peak_gb"]

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile)."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def busy_seconds() -> float:
    """CPU seconds this machine has spent on anything so far; 0 where /proc does not tell."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return 0.0
    idle = int(fields[3]) + int(fields[4])  # idle, and waiting for a disk
    return (sum(map(int, fields[:8])) - idle) / os.sysconf("SC_CLK_TCK")


def compare(name: str, sides: list[str], rounds: int) -> None:
    """Runs the rounds of one shape and prints its table."""
    shape = SHAPES[name]
    print(f"\n({name}) " + ", ".join(f"{k} {v}" for k, v in shape.items()), flush=True)
    workers = {side: Worker(side, name) for side in sides}
    began, busy = time.perf_counter(), busy_seconds()
    try:
        for _ in range(rounds):
            for worker in workers.values():
                worker.round(STEPS[name])
        took, busy = time.perf_counter() - began, busy_seconds() - busy
    finally:
        for worker in workers.values():
            worker.stop()
    sizes = {worker.about["parameters"] for worker in workers.values()}
    assert len(sizes) == 1, f"the sides differ in their number of parameters: {sizes}"
    ours = workers[sides[0]]
    own = sum(STEPS[name] * sum(worker.cpu) for worker in workers.values())
    print(
        f"{sizes.pop():,} parameters; {rounds} rounds of {STEPS[name]} steps; meanwhile other "
        f"processes took {max(busy - own, 0.0) / took:.2f} cores of {os.cpu_count()}"
    )
    print(f"| side | step ms | fastest | CPU ms | peak GB | time / {sides[0]} (quartiles) |")
    print("|---|---|---|---|---|---|")
    for side, worker in workers.items():
        ratios = [theirs / own for theirs, own in zip(worker.seconds, ours.seconds, strict=True)]
        low, middle, high = quartiles(ratios)
        ms = [1e3 * x for x in (quartiles(worker.seconds)[1], min(worker.seconds))]
        print(
            f"| {SIDES[side]} | {ms[0]:.0f} | {ms[1]:.0f} | "
            f"{1e3 * statistics.median(worker.cpu):.0f} | {worker.peak_gb:.2f} | "
            f"{middle:.2f} ({low:.2f} to {high:.2f}) |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--work", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.shapes[0])
        return
    for name in options.shapes:
        compare(name, options.sides, options.rounds)


if __name__ == "__main__":
    main()
