"""LaMDA (arXiv 2201.08239), of which one shape is published."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes({"137b": "LaMDA 137B: 64 layers, width 8192, gated GELU, T5's relative positions."})
def lamda(size: str) -> Experiment:
    """3 M steps of 256 k tokens, by a survey, of a corpus of 2.81 T.

    Optimizer and rate are not published: AdamW at 1e-4 here. Cost by the ledger: 6.6e23 FLOPs.
    """
    return published(presets.lamda(size), lr=1e-4, batch_size=128, steps=3_000_000)
