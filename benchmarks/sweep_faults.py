"""Kills a sweep's runner, its workers or both: `python benchmarks/sweep_faults.py`.

The sweep is started again by the same call until it ends; half of the starts have a second runner
on the same folder. Then every point must have been finished exactly once, held by one worker at a
time, and must equal the point of a sweep that was left alone: metrics, data position, parameters,
bit for bit. Prints the counts and exits 1 on a broken promise.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from faults import compare, write_corpus  # noqa: E402

CALL = """
import sys
sys.path[:0] = [{root!r}, {benchmarks!r}]
from sweep_faults import tiny_sweep
from gptjax.sweeps.runner import run_sweep
run_sweep(tiny_sweep({work!r}, {points}, {steps}), {folder!r}, launcher={launcher!r}, workers=2)
"""


def tiny_sweep(work: str, points: int, steps: int):
    """Points of two shapes, each with learning rates of its own."""
    from gptjax import DataConfig, DecoderConfig, Experiment, OptimConfig, Sweep, TrainConfig
    from gptjax.sweeps.grid import product, subsample, values

    base = Experiment(
        name="tiny",
        model=DecoderConfig(num_layers=2, d_model=32, num_heads=2, context_length=64),
        data=DataConfig(
            corpus="files",
            files=(f"{work}/corpus/*.txt",),
            validation_fraction=0.1,
            batch_size=8,
            sequence_length=64,
        ),
        optim=OptimConfig(lr=1e-3),
        train=TrainConfig(
            steps=steps, checkpoint_every=50, eval_every=200, eval_batches=1, sample_tokens=0
        ),
    )
    rates = values("optim.lr", *(0.001 + 0.0005 * i for i in range((points + 1) // 2)))
    grid = product(values("model.d_model", 32, 64), rates)
    return Sweep("tiny", base, subsample(grid, points))


def start(work: Path, folder: Path, given, launcher: str = "local") -> subprocess.Popen:
    """One runner."""
    code = CALL.format(
        root=str(ROOT),
        benchmarks=str(ROOT / "benchmarks"),
        work=str(work),
        points=given.points,
        steps=given.steps,
        folder=str(folder),
        launcher=launcher,
    )
    environment = {**os.environ, "GPTJAX_CACHE": str(work / "cache")}
    with open(work / "output.txt", "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-c", code], stdout=output, stderr=output, env=environment, cwd=work
        )


def workers_of(runner: int, folder: Path) -> list[int]:
    """Living workers on a folder that this runner started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if int(stat[1]) == runner and b"gptjax.sweeps.worker" in words:
                found.append(int(entry.name))
    return found


def kill(number: int) -> bool:
    try:
        os.kill(number, signal.SIGKILL)
        return True
    except ProcessLookupError:
        return False


def try_kills(work: Path, folder: Path, given, rng: random.Random) -> Counter:
    """Disturb a sweep until so many kills hit; returns what was hit."""
    hits: Counter = Counter()
    runners: list[subprocess.Popen] = []
    while sum(hits.values()) < given.kills:
        runners = [runner for runner in runners if runner.poll() is None]
        if not runners:
            runners = [start(work, folder, given) for _ in range(rng.choice((1, 2)))]
        time.sleep(rng.uniform(0.5, given.pause))
        if all(runner.poll() == 0 for runner in runners):
            raise SystemExit(f"the sweep ended after {sum(hits.values())} kills: raise --steps")
        runner = rng.choice([runner for runner in runners if runner.poll() is None] or runners)
        workers = workers_of(runner.pid, folder)
        what = rng.choice(("runner", "worker", "both"))
        if what != "runner" and not workers:
            continue
        if what == "worker":
            hit = kill(rng.choice(workers))
        else:
            hit = kill(runner.pid)
            runner.wait()
            if what == "both":
                hit = sum(kill(worker) for worker in workers) == len(workers)
        if hit:
            hits[what] += 1
            print(f"kill {sum(hits.values())}: {what}, {len(runners)} runner(s)", flush=True)
    for runner in runners:
        runner.wait()
    return hits


def finish(work: Path, folder: Path, given) -> None:
    code = start(work, folder, given).wait()
    if code:
        tail = (work / "output.txt").read_text(errors="replace")[-3000:]
        raise SystemExit(f"a sweep ended with code {code}:\n{tail}")


def check(quiet: Path, killed: Path, steps: int) -> list[str]:
    """Everything that is wrong with a disturbed sweep."""
    from gptjax.sweeps.folder import SweepFolder

    one, other = SweepFolder.open(quiet), SweepFolder.open(killed)
    wrong = []
    held: dict[str, bool] = {}
    done: Counter = Counter()
    for row in other.ledger.events():
        point, event = row["point"], row["event"]
        if event == "start":
            if held.get(point):
                wrong.append(f"{point} was taken by two workers at a time")
            held[point] = True
        else:
            held[point] = False
            done[point] += event == "done"
    for name, state in other.ledger.states().items():
        if state.status != "done" or done[name] != 1:
            why = f" ({state.error})" if state.error else ""
            wrong.append(f"{name} is {state.status}{why}, finished {done[name]} times")
            continue
        same = {"seconds"}
        before = one.ledger.state(name).figures
        if {k: v for k, v in before.items() if k not in same} != {
            k: v for k, v in state.figures.items() if k not in same
        }:
            wrong.append(f"{name} has other figures")
        wrong += [
            f"{name}: {what}" for what in compare(one.workdir(name), other.workdir(name), steps)
        ]
    starts = sum(state.starts for state in other.ledger.states().values())
    print(f"{len(other.points)} points, {starts} starts, {sum(done.values())} finishes")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--points", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--pause", type=float, default=14.0, help="longest wait before a kill")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_corpus(work / "corpus", rng)
        begun = time.monotonic()
        finish(work, work / "quiet", given)
        print(f"quiet sweep: {time.monotonic() - begun:.0f} s", flush=True)
        hits = try_kills(work, work / "killed", given, rng)
        finish(work, work / "killed", given)
        wrong = check(work / "quiet", work / "killed", given.steps)
        print(f"{sum(hits.values())} kills ({dict(hits)}), {time.monotonic() - begun:.0f} s in all")
    for line in wrong:
        print(f"broken: {line}")
    print("all promises kept" if not wrong else f"{len(wrong)} promises broken")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
