"""Dense decoders that differ in one thing, on the same budgets: what is a choice worth in compute?

    for name in gelu swiglu learned deep; do python experiments/run.py --exp=compare_$name; done
    python -m gptjax.sweeps.compare runs/compare_gelu runs/compare_swiglu

Every sweep has the same three budgets and tokens per parameter, so the losses overlap and the
compute-equivalent gain can be read off at equal loss.
"""

import dataclasses

from experiments.scaling import byte_run
from gptjax import Analysis, Sweep, register
from gptjax.scaling.planner import IsoFlops, Rates, ShapeRule
from gptjax.sweeps.grid import rows


def _compared(name: str, rule: ShapeRule, **model: object) -> Sweep:
    """Three budgets a factor 3 apart, four shapes each, of one kind of decoder.

    Around 45 tokens per parameter, where the optimum of these sizes was, and as near to it as the
    shapes come: runs of few steps obey no law and would blur all gains.
    """
    base = byte_run(length=128, lr=0.01)
    base = dataclasses.replace(base, model=dataclasses.replace(base.model, **model))
    rates = Rates(
        lr=0.01, reference_width=56, lr_exponent=-1.0, batch_tokens=1024, batch_exponent=0.0
    )
    design = IsoFlops(
        rule,
        smallest=1.2e4,
        largest=2e5,
        shapes=6,
        budgets=(2e11, 6e11, 1.8e12),
        per_budget=4,
        length=128,
        rates=rates,
        tokens_per_parameter=45.0,
        spread=3.5,
    )
    grid = rows(*design.rows(base.model))
    analysis = Analysis(laws=("chinchilla",))
    return Sweep(name, base, grid, analysis, share_trunks=True, design=design)


WIDE = ShapeRule(aspect=24, head_size=8)


@register
def compare_gelu() -> Sweep:
    """The reference of the comparisons: GELU, rotary positions, width 24 times the depth.

    python experiments/run.py --exp=compare_gelu
    """
    return _compared("compare_gelu", WIDE)


@register
def compare_swiglu() -> Sweep:
    """SwiGLU (arXiv 2002.05202) in the place of GELU, at the same parameters per layer.

    python experiments/run.py --exp=compare_swiglu
    """
    return _compared("compare_swiglu", WIDE, activation="swiglu")


@register
def compare_learned() -> Sweep:
    """Learned positions in the place of rotary ones.

    python experiments/run.py --exp=compare_learned
    """
    return _compared("compare_learned", WIDE, positions="learned")


@register
def compare_deep() -> Sweep:
    """Narrow and deep: width 8 times the depth in the place of 24.

    python experiments/run.py --exp=compare_deep
    """
    return _compared("compare_deep", ShapeRule(aspect=8, head_size=8))
