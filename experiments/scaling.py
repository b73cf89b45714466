"""Sweeps over size and compute: a law on two cores, one on a single GPU, and published designs."""

import dataclasses

from gptjax import (
    Analysis,
    DataConfig,
    DecoderConfig,
    Experiment,
    OptimConfig,
    Sweep,
    TrainConfig,
    register,
)
from gptjax.models.presets import gpt2
from gptjax.scaling.planner import IsoFlops, Rates, ShapeRule, ladder, run_row, split_budget
from gptjax.sweeps.grid import rows

BYTES = DecoderConfig(
    vocab_size=257,
    context_length=128,
    positions="rotary",
    norm="rmsnorm",
    activation="gelu_tanh",
    biases="none",
    tied_embeddings=False,
    init="fan_in",
)


def byte_run(length: int, lr: float) -> Experiment:
    """A byte model whose learning rate stays until a cooldown of the last 30% of the steps.

    A constant rate with a cooldown (arXiv 2405.18392) makes runs of one shape on several budgets
    alike until the cooldown of the shortest, so that one trunk serves them all. A warm-up in
    steps, not in shares of the run, keeps them alike from the start.
    """
    return Experiment(
        name="byte_run",
        model=dataclasses.replace(BYTES, context_length=length),
        data=DataConfig(corpus="pycode", tokenizer="bytes", sequence_length=length),
        optim=OptimConfig(
            name="adamw", lr=lr, schedule="wsd", warmup_steps=40, decay_fraction=0.3, final_lr=0.0
        ),
        # One evaluation, at the end: what is measured is the loss of a finished run.
        train=TrainConfig(steps=1, eval_every=1 << 30, eval_batches=64, sample_tokens=0),
    )


@register
def sweep_cpu_10min() -> Sweep:
    """IsoFLOP groups of 20 byte models on pycode: a law in ten minutes on two cores.

    8 shapes from 10K to 500K parameters, 4 budgets a factor 3 apart, 5 shapes around each
    budget's optimum. The law is fitted to the three lower budgets and must predict the fourth.
    Of 0.004, 0.008 and 0.016 the last was best at width 32 (2.005 nats), the second at 56, the
    first at 96: a rate of 0.01 at 56 that falls with the width. 8 sequences in a batch were better
    than 16 at 56 and at 96.

    python experiments/run.py --exp=sweep_cpu_10min
    python experiments/run.py --exp=sweep_cpu_10min --minutes=5 --tune
    """
    base = byte_run(length=128, lr=0.01)
    rates = Rates(
        lr=0.01, reference_width=56, lr_exponent=-1.0, batch_tokens=1024, batch_exponent=0.0
    )
    design = IsoFlops(
        ShapeRule(aspect=24, head_size=8),
        smallest=1e4,
        largest=5e5,
        shapes=8,
        budgets=tuple(split_budget(2e13, 4, 5, factor=3.0)),
        per_budget=5,
        length=128,
        rates=rates,
        tokens_per_parameter=25.0,
        spread=14.0,
    )
    grid = rows(*design.rows(base.model))
    return Sweep(
        "sweep_cpu_10min",
        base,
        grid,
        Analysis(laws=("q_norm", "chinchilla"), holdout=2.0, predict=("1e14", "1e15")),
        share_trunks=True,
        design=design,
    )


@register
def sweep_h100_25min() -> Sweep:
    """IsoFLOP groups of 30 byte models from 0.7M to 40M parameters, planned for one H100.

    5 budgets a factor 3 apart; bfloat16 products. The time is a plan: it was not measured.

    python experiments/run.py --exp=sweep_h100_25min
    """
    base = byte_run(length=512, lr=0.004)
    base = dataclasses.replace(
        base, model=dataclasses.replace(base.model, compute_dtype="bfloat16")
    )
    rates = Rates(
        lr=0.004,
        reference_width=192,
        lr_exponent=-0.5,
        batch_tokens=32768,
        reference_parameters=2e6,
        batch_exponent=0.33,
    )
    design = IsoFlops(
        ShapeRule(aspect=48, head_size=32),
        smallest=7e5,
        largest=4e7,
        shapes=10,
        budgets=tuple(split_budget(1e17, 5, 6, factor=3.0)),
        per_budget=6,
        length=512,
        rates=rates,
        tokens_per_parameter=15.0,
        spread=14.0,
    )
    grid = rows(*design.rows(base.model))
    return Sweep(
        "sweep_h100_25min",
        base,
        grid,
        Analysis(laws=("q_norm", "chinchilla"), holdout=2.0, predict=("1e18", "1e20")),
        share_trunks=True,
        design=design,
    )


def _full_size(length: int, batch: int, steps: int) -> Experiment:
    """GPT-2's block on a 32k vocabulary; a plan, whose corpus is at hand only in small."""
    model = dataclasses.replace(
        gpt2("124m"), vocab_size=32000, context_length=length, layers="scan", remat="block"
    )
    return Experiment(
        name="full_size",
        model=dataclasses.replace(model, compute_dtype="bfloat16"),
        data=DataConfig(
            tokenizer="bpe", vocab_size=32000, batch_size=batch, sequence_length=length
        ),
        train=TrainConfig(steps=steps),
    )


@register
def plan_kaplan() -> Sweep:
    """Kaplan et al. (arXiv 2001.08361): sizes from 0.4M to 1.5B on up to 23B tokens; a plan.

    Their batch of 512 sequences of 1024 tokens and 2.5e5 steps, each size on eight amounts of
    tokens; every size shares its trunk. Cost and shapes by --dry-run; nothing starts by itself.

    python experiments/run.py --exp=plan_kaplan --dry-run
    """
    base = _full_size(1024, 512, 250_000)
    shapes = ladder(base.model, ShapeRule(aspect=64, head_size=64), 2.5e6, 1.5e9, 10)
    rates = Rates(
        lr=2.5e-3,
        reference_width=256,
        lr_exponent=-0.7,
        batch_tokens=512 * 1024,
        batch_exponent=0.0,
    )
    found = []
    for shape in shapes:
        for tokens in (2.2e7, 4.4e7, 2e8, 8e8, 3e9, 6e9, 1.2e10, 2.3e10):
            row = run_row(base.model, shape, tokens, 1024, rates)
            found.append({"name": f"L{shape.num_layers}_d{shape.d_model}_D{tokens:.1e}", **row})
    found = [{**row, "name": row["name"].replace("+", "")} for row in found]
    return Sweep("plan_kaplan", base, rows(*found), plan_only=True)


@register
def plan_chinchilla() -> Sweep:
    """Hoffmann et al. (arXiv 2203.15556), approach 2: nine isoFLOP groups to 3e21; a plan.

    70M to 16B parameters, 6e18 to 3e21 FLOPs. Cost and shapes by --dry-run; nothing starts by
    itself.

    python experiments/run.py --exp=plan_chinchilla --dry-run
    """
    base = _full_size(2048, 256, 1000)
    rates = Rates(
        lr=2e-4,
        reference_width=1536,
        lr_exponent=-0.5,
        batch_tokens=512 * 1024,
        reference_parameters=4e8,
        batch_exponent=0.3,
    )
    design = IsoFlops(
        ShapeRule(aspect=96, head_size=128),
        smallest=7e7,
        largest=1.6e10,
        shapes=24,
        budgets=(6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21),
        per_budget=9,
        length=2048,
        rates=rates,
        tokens_per_parameter=20.0,
        spread=10.0,
    )
    grid = rows(*design.rows(base.model))
    return Sweep("plan_chinchilla", base, grid, plan_only=True, design=design)
