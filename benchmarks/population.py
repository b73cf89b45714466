"""Times K runs of one shape: one after the other in a shared program, by lax.map, by vmap.

    python benchmarks/population.py [--shapes tiny small middle a] [--members 4 8 16] [--rounds 9]

A tick is one step of every member, with its batch put on the device and its metrics read a tick
late, as in training. "two processes" are pinned to a core each and step half of the members in
sequence. Rounds are interleaved; a ratio is the median over rounds of sequential / side, with
its quartiles. What `choose_mode` takes is marked. Results stand in RESULTS.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SHAPES = {  # layers, width, heads, length, batch, vocabulary
    "tiny": (2, 16, 2, 64, 8, 257),
    "small": (2, 32, 2, 128, 8, 257),
    "middle": (2, 64, 4, 128, 8, 257),
    "a": (4, 128, 4, 256, 16, 256),
}
ROUND_SECONDS = 0.4


def make_experiment(shape: str):
    """The experiment of a shape."""
    from gptjax import DataConfig, DecoderConfig, Experiment, MeshConfig, TrainConfig

    layers, width, heads, length, batch, vocab = SHAPES[shape]
    model = DecoderConfig(
        vocab_size=vocab,
        context_length=length,
        num_layers=layers,
        d_model=width,
        num_heads=heads,
    )
    return Experiment(
        name=shape,
        model=model,
        data=DataConfig(batch_size=batch, sequence_length=length),
        train=TrainConfig(steps=1000),
        mesh=MeshConfig(data=1),
    )


class Side:
    """A population in one mode, ready to tick."""

    def __init__(self, experiment, mesh, mode, members: int):
        import jax
        import numpy as np

        from gptjax.training.optimizer import hyper_of, make_optimizer
        from gptjax.training.stacked import arrange
        from gptjax.training.state import init_state

        optimizer = make_optimizer(experiment.optim, experiment.steps)
        data, iterator = experiment.data, object()
        rows = np.random.default_rng(0).integers(
            experiment.model.vocab_size, size=(data.batch_size, data.sequence_length + 1)
        )
        rows = rows.astype(np.int32)
        self.batches = {id(iterator): {"tokens": rows[:, :-1], "targets": rows[:, 1:]}}
        self.mesh, self.members = mesh, members
        runs = [
            SimpleNamespace(
                state=init_state(experiment.model, optimizer, seed, mesh),
                hyper=hyper_of(experiment.optim, experiment.steps),
                iterator=iterator,
                left=1,
            )
            for seed in range(members)
        ]
        self.parameters = sum(x.size for x in jax.tree.leaves(runs[0].state.params))
        self.runs = runs  # keeps the iterator's id
        with jax.set_mesh(mesh):
            self.groups = arrange(experiment, mesh, mode.fitted(members), runs)
        self.ticks = 2
        self.time()
        self.ticks = max(2, round(ROUND_SECONDS / self.time()))
        self.seconds: list[float] = []

    def time(self) -> float:
        """Seconds of a tick, over a round."""
        import jax

        begun, before = time.perf_counter(), []
        with jax.set_mesh(self.mesh):
            for _ in range(self.ticks):
                now = [(group, group.step(self.batches)) for group in self.groups]
                for group, metrics in before:
                    group.read(metrics)
                before = now
            for group, metrics in before:
                group.read(metrics)
        return (time.perf_counter() - begun) / self.ticks


class Pinned:
    """Two processes, a core each, with half of the members in sequence."""

    def __init__(self, shape: str, members: int):
        command = [sys.executable, __file__, "--work", "--shapes", shape]
        cores = sorted(os.sched_getaffinity(0))[:2]
        self.processes = [
            subprocess.Popen(
                [*command, "--members", str(members // 2), "--core", str(core)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for core in cores
        ]
        self.cpu = 0.0
        self.read()
        self.seconds: list[float] = []

    def read(self) -> list[float]:
        answers = [json.loads(process.stdout.readline()) for process in self.processes]
        self.cpu += sum(cpu for _, cpu in answers)
        return [seconds for seconds, _ in answers]

    def time(self) -> float:
        """Seconds of a tick of the slower one."""
        for process in self.processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        return max(self.read())

    def stop(self) -> None:
        for process in self.processes:
            process.stdin.close()
            process.wait()


def work(shape: str, members: int, core: int) -> None:
    """One of the two processes: answers every line with the seconds of a tick."""
    os.sched_setaffinity(0, {core})
    import jax

    from gptjax.allocator import tune
    from gptjax.parallel import make_mesh
    from gptjax.training.stacked import Mode

    tune()
    experiment = make_experiment(shape)
    mesh = make_mesh(experiment.mesh, jax.devices()[:1])
    side = Side(experiment, mesh, Mode("sequential"), members)
    print(json.dumps((0.0, 0.0)), flush=True)
    for _ in sys.stdin:
        cpu = time.process_time()
        seconds = side.time()
        print(json.dumps((seconds, time.process_time() - cpu)), flush=True)


def busy_seconds() -> float:
    """CPU seconds this machine has spent on anything so far."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return (sum(map(int, fields[:8])) - int(fields[3]) - int(fields[4])) / os.sysconf("SC_CLK_TCK")


def compare(shape: str, members: int, rounds: int, processes: bool) -> None:
    """One shape and number of members: a row for every side."""
    import jax

    from gptjax.parallel import make_mesh
    from gptjax.training.population_mode import choose_mode
    from gptjax.training.stacked import Mode

    experiment = make_experiment(shape)
    mesh = make_mesh(experiment.mesh, jax.devices()[:1])
    chosen = choose_mode(experiment, members, mesh, None, lambda line: print(f"# {line}"))
    modes = [Mode("sequential"), Mode("map", members), Mode("vmap", members)]
    modes += [Mode("vmap", members // 2)] * (members >= 4)
    modes += [chosen] * (chosen not in modes)
    sides = {str(mode): Side(experiment, mesh, mode, members) for mode in modes}
    parameters = sides["sequential"].parameters
    if processes:
        sides["two processes"] = Pinned(shape, members)
    busy, begun = busy_seconds() - time.process_time(), time.perf_counter()
    for _ in range(rounds):
        for side in sides.values():
            side.seconds.append(side.time())
    took = time.perf_counter() - begun
    busy = busy_seconds() - time.process_time() - busy
    if processes:
        busy -= sides["two processes"].cpu
    print(f"# meanwhile other processes took {max(busy, 0.0) / took:.2f} cores")
    base = sides["sequential"].seconds
    for name, side in sides.items():
        ratios = [a / b for a, b in zip(base, side.seconds, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        ms = 1e3 * statistics.median(side.seconds) / members
        mark = " (chosen)" if name == str(chosen) else ""
        print(
            f"| {shape}, {parameters:,} | {members} | {name}{mark} | {ms:.2f} | "
            f"{middle:.2f} ({low:.2f} to {high:.2f}) |",
            flush=True,
        )
    if processes:
        sides["two processes"].stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--members", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--processes", action="store_true", help="two pinned processes too")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.shapes[0], options.members[0], options.core)
        return
    from gptjax.allocator import tune

    print(f"# {tune()}")
    import jax

    print(f"# {len(os.sched_getaffinity(0))} cores, jax {jax.__version__}")
    print("| shape, parameters | members | side | ms a step | times sequential (quartiles) |")
    print("|---|---|---|---|---|")
    for shape in options.shapes:
        for members in options.members:
            compare(shape, members, options.rounds, options.processes)


if __name__ == "__main__":
    main()
