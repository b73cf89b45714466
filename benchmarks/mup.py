"""muP against the standard parametrization: the coordinate check, and learning rates by width.

    python benchmarks/mup.py coordinates [--widths 64 128 256 512 1024] [--grow head_dim] [...]
    python benchmarks/mup.py transfer [--widths 64 512] [--powers -12 -5] [--seeds 2] [...]

Two layers on bytes of `pycode`, heads of 32 at width 64, base width 64. `coordinates` trains some
steps at a constant rate and prints the slope of the log of the mean absolute activation over the
log of the width. `transfer` trains at every rate 2^k of the grid and prints the validation loss
and the best rate of each width; runs of one width share a compiled program, and finished runs are
kept in --out, so a command that was stopped goes on. Results stand in RESULTS.md.
"""

import argparse
import dataclasses
import json
import math
import statistics
import time
from pathlib import Path

from gptjax import DataConfig, DecoderConfig, Experiment, OptimConfig, TrainConfig
from gptjax.allocator import tune
from gptjax.data.config import cache_root

BASE = 64
RATES = {"adamw": 2**-8, "lion": 2**-11, "adafactor": 2**-5, "muon": 2**-7}


def experiment(parametrization: str, optimizer: str, lr: float, **fields) -> Experiment:
    """The model of width 64 on bytes, without weight decay; `fields` are the model's."""
    return Experiment(
        name=f"mup_{parametrization}",
        model=DecoderConfig(
            vocab_size=257,
            context_length=64,
            num_layers=2,
            d_model=BASE,
            num_heads=2,
            positions="rotary",
            norm="rmsnorm",
            biases="none",
            tied_embeddings=False,
            # Adafactor's step is a share of the weight: none may start at zero.
            **{"init": "fan_in" if optimizer == "adafactor" else "fan_in_zero", **fields},
            parametrization=parametrization,
            base_width=BASE,
        ),
        data=DataConfig(corpus="pycode", batch_size=8, sequence_length=64),
        optim=OptimConfig(name=optimizer, lr=lr, weight_decay=0.0, schedule="constant"),
        train=TrainConfig(steps=100),
    )


def coordinates(arguments) -> None:
    """Print the slopes of both parametrizations and write one figure."""
    from gptjax.evaluation.coordinates import PARTS, coordinate_check, plot_coordinates

    lr = arguments.lr or RATES[arguments.optimizer]
    checks = {}
    for parametrization in arguments.parametrizations:
        begun = time.monotonic()
        check = coordinate_check(
            experiment(parametrization, arguments.optimizer, lr, **arguments.model),
            arguments.widths,
            steps=arguments.steps,
            seeds=range(arguments.seeds),
            grow=arguments.grow,
            report=print,
        )
        checks[parametrization] = check
        print(f"{parametrization}, {arguments.optimizer}, lr {lr:g}, {arguments.grow} grow:")
        for column in ("scale", "change"):
            slopes = check.slopes(column)
            for step in arguments.steps:
                by_part = {
                    part: [s for (place, at), s in slopes.items()
                           if at == step and place.endswith(part)]
                    for part in PARTS
                }  # fmt: skip
                shown = (
                    f"{part} " + " ".join(f"{s:+.3f}" for s in by_part[part])
                    for part in PARTS if by_part[part]
                )  # fmt: skip
                print(f"  {column} at step {step}: " + ", ".join(shown))
        worst = check.steepest()
        print(f"  steepest of scale: {', '.join(f'{k} {v:+.3f}' for k, v in worst.items())}")
        print(f"  {time.monotonic() - begun:.0f} s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = f"coordinates_{arguments.optimizer}_{arguments.grow}.png"
    plot_coordinates(checks, arguments.out / name)


def transfer(arguments) -> None:
    """Train every point of the grid that is not in the log yet; print tables and best rates."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.out / f"transfer_{arguments.optimizer}.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(r["parametrization"], r["width"], r["power"], r["seed"]) for r in rows}
    low, high = arguments.powers
    for parametrization in arguments.parametrizations:
        for width in arguments.widths:
            for seed in range(arguments.seeds):
                for power in range(low, high + 1):
                    if (parametrization, width, power, seed) in done:
                        continue
                    row = train(parametrization, width, power, seed, arguments)
                    with open(log, "a") as lines:
                        print(json.dumps(row), file=lines)
                    rows.append(row)
                    print(row, flush=True)
    table(rows)


def table(rows: list[dict]) -> None:
    """Mean validation loss over seeds of every point in the log, and the best rate of a width."""
    powers = sorted({r["power"] for r in rows})
    for parametrization in sorted({r["parametrization"] for r in rows}):
        print(f"\n{parametrization}: validation loss by log2 of the rate")
        print("| width | seeds |", " | ".join(map(str, powers)), "| best |")
        mine = [r for r in rows if r["parametrization"] == parametrization]
        for width in sorted({r["width"] for r in mine}):
            losses: dict[int, list[float]] = {power: [] for power in powers}
            for r in (r for r in mine if r["width"] == width):
                losses[r["power"]].append(math.inf if r["loss"] is None else r["loss"])
            means = {power: statistics.fmean(found) for power, found in losses.items() if found}
            cells = (f"{means[power]:.3f}" if power in means else "" for power in powers)
            seeds = max(map(len, losses.values()))
            print(f"| {width} | {seeds} |", " | ".join(cells), f"| 2^{min(means, key=means.get)} |")


def train(parametrization: str, width: int, power: int, seed: int, arguments) -> dict:
    """One run; its loss is None when a step was not finite."""
    import jax

    from gptjax import data
    from gptjax.evaluation.perplexity import Perplexity
    from gptjax.parallel.mesh import make_mesh
    from gptjax.training.loop import to_mesh
    from gptjax.training.optimizer import make_optimizer
    from gptjax.training.state import init_state
    from gptjax.training.step import make_eval_step, make_train_step

    base = experiment(parametrization, arguments.optimizer, 2.0**power, **arguments.model)
    e = dataclasses.replace(
        base,
        model=base.model.at_width(width, arguments.grow),
        data=dataclasses.replace(base.data, seed=seed),
        optim=dataclasses.replace(base.optim, schedule="linear", final_lr=0.0, warmup_fraction=0.1),
        train=TrainConfig(steps=arguments.train_steps, seed=seed),
    )
    e.validate()
    begun = time.monotonic()
    dataset = data.prepare(e.data)
    iterator, mesh = dataset.train_iterator(), make_mesh(e.mesh)
    state = init_state(e.model, make_optimizer(e.optim, e.steps), seed, mesh)
    step, finite = make_train_step(e), True
    with jax.set_mesh(mesh):
        for _ in range(e.steps):
            state, metrics = step(state, to_mesh(next(iterator), mesh))
            finite = finite and bool(metrics.finite)
        split = {"process_index": 0, "process_count": 1}
        figures = Perplexity(make_eval_step(e), dataset, 64, mesh, split)(state.params)
    return {
        "parametrization": parametrization,
        "width": width,
        "power": power,
        "seed": seed,
        "loss": figures["validation_loss"] if finite else None,
        "seconds": round(time.monotonic() - begun, 2),
    }


def main() -> None:
    """Read the command line and run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("coordinates", "transfer"))
    parser.add_argument("--optimizer", choices=tuple(RATES), default="adamw")
    parser.add_argument("--parametrizations", nargs="+", default=["mup", "standard"])
    parser.add_argument("--widths", type=int, nargs="+")
    parser.add_argument("--grow", choices=("heads", "head_dim"), default="heads")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--model", type=json.loads, default={}, help="fields of the model as JSON")
    parser.add_argument("--lr", type=float, default=0.0, help="of the coordinate check")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 1, 2, 5, 10])
    parser.add_argument("--powers", type=int, nargs=2, default=[-12, -5])
    parser.add_argument("--train_steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("runs/mup"))
    arguments = parser.parse_args()
    tune()
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_root(DataConfig()) / "compiled"))
    if arguments.what == "coordinates":
        arguments.widths = arguments.widths or [64, 128, 256, 512, 1024]
        coordinates(arguments)
    else:
        arguments.widths = arguments.widths or [64, 512]
        transfer(arguments)


if __name__ == "__main__":
    main()
