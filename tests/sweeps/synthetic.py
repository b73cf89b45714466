"""Sweep folders without training: the ledger and the curves that a known law would leave."""

import dataclasses
import json

import numpy as np

from gptjax import DataConfig, DecoderConfig, Experiment, TrainConfig
from gptjax.scaling.flops import count_flops, count_parameters
from gptjax.scaling.planner import Rates, ShapeRule, isoflop_rows, ladder
from gptjax.sweeps.folder import SweepFolder
from gptjax.sweeps.grid import Grid
from gptjax.sweeps.ledger import State
from gptjax.sweeps.sweep import Analysis, Sweep
from gptjax.training.workdir import write_json

LAW = {"E": 0.9, "A": 60.0, "B": 260.0, "alpha": 0.33, "beta": 0.36}
LENGTH = 128
MODEL = DecoderConfig(context_length=LENGTH, positions="rotary")
BASE = Experiment(
    name="synthetic",
    model=MODEL,
    data=DataConfig(batch_size=4, sequence_length=LENGTH),
    train=TrainConfig(steps=3),
)


def law_loss(N, D):
    return LAW["E"] + LAW["A"] * N ** -LAW["alpha"] + LAW["B"] * D ** -LAW["beta"]


def isoflop_sweep(
    name="synthetic", shapes=7, budgets=(4e11, 1.6e12, 6.4e12, 2.56e13), per_budget=5, **analysis
) -> Sweep:
    """A sweep of isoFLOP groups about the law's optimum; nothing of it is ever trained."""
    sizes = ladder(MODEL, ShapeRule(aspect=16, head_size=16), 8e3, 1.5e6, shapes)
    rates = Rates(lr=1e-3, reference_width=64, batch_tokens=512, batch_exponent=0.0)
    rows = isoflop_rows(
        MODEL, sizes, list(budgets), per_budget=per_budget, length=LENGTH, rates=rates, spread=6.0
    )
    return Sweep(name, BASE, Grid(tuple(rows)), Analysis(**analysis))


def fake(path, sweep: Sweep, *, noise=0.002, gain=1.0, seed=0, states=None) -> SweepFolder:
    """The folder that `sweep` would leave had its points followed the law.

    `gain`: the model learns as from this many times its FLOPs. `states` replaces the outcome of
    points by number, or leaves out ("waiting") those it maps so.
    """
    folder = SweepFolder.create(sweep, path)
    random = np.random.default_rng(seed)
    scale = gain**0.5  # on parameters and on tokens: their product is the compute
    for number, point in enumerate(sweep.points):
        e = point.experiment
        N = count_parameters(e.model).total
        per_token = count_flops(e.model, e.data.sequence_length).training
        loss = law_loss(scale * N, scale * e.tokens) * np.exp(noise * random.standard_normal())
        figures = {
            "validation_loss": float(loss),
            "bits_per_byte": float(loss / np.log(2)),
            "parameters": N,
            "non_embedding_parameters": count_parameters(e.model).non_embedding,
            "tokens": e.tokens,
            "flops": point.flops,
            "steps": e.steps,
            "seconds": 5.0 + point.flops / 2e10,
        }
        state = (states or {}).get(number, State("done", figures, starts=1))
        if state.status != "done":
            state = dataclasses.replace(state, starts=1)
        write_json(path / "ledger" / f"{point.name}.json", dataclasses.asdict(state))
        steps = np.unique(np.geomspace(1, e.steps, 150).round().astype(int))
        if state.status == "diverged":
            steps = steps[: len(steps) // 2]
        tokens = steps * e.tokens_per_step
        curve = law_loss(scale * N, scale * (tokens + 300.0))
        curve = curve * np.exp(0.01 * random.standard_normal(len(steps)))
        lines = [
            {
                "step": int(step),
                "loss": float(value),
                "tokens": int(seen),
                "flops": float(per_token * seen),
                "seconds": 5.0 + float(per_token * seen) / 2e10,
            }
            for step, value, seen in zip(steps, curve, tokens, strict=True)
        ]
        workdir = folder.workdir(point.name)
        workdir.mkdir(parents=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (workdir / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder
