"""Switch Transformers: T5 with experts (arXiv 2101.03961)."""

from experiments.t5 import run
from gptjax import Experiment, SpanCorruption
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes({"base-8": "Switch-Base: 12 and 12 layers, 8 experts in every second."})
def switch(size: str) -> Experiment:
    """100,000 steps of 2048 rows of 512, spans of 15% cut out, Adafactor at 0.01 as T5's.

    Length, batch and steps are from memory; the weight of T5's z-loss is kept. Cost by the ledger:
    8.7e19 FLOPs.

    python experiments/run.py --exp=switch_base-8 --dry-run
    """
    return run(presets.switch(size), 2048, SpanCorruption(), steps=100_000)
