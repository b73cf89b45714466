"""ERNIE 3.0 (arXiv 2107.02137) at its two sizes."""

import dataclasses

from experiments.published import published
from gptjax import Experiment, MultiTask
from gptjax.models import presets
from gptjax.registry import register_sizes

RUNS = {"10b": (6144, 375e9), "titan": (512, 300e9)}  # sequences, tokens of text


@register_sizes(
    {
        "10b": "ERNIE 3.0, 10B: a trunk of 48 layers, width 4096, two modules of tasks.",
        "titan": "ERNIE 3.0 Titan, 260B: a trunk of 48 layers, width 12288.",
    }
)
def ernie3(size: str) -> Experiment:
    """Masked tokens and the order of parts for one module, next tokens for the other.

    Adam, 1e-4, weight decay 0.01, warm-up over 10,000 steps, a line to 0. Its entities, phrases and
    sentence distances, the growing batches, and Titan's batch are not those of the source.
    """
    batch_size, tokens = RUNS[size]
    model = presets.ernie3(size)
    model = dataclasses.replace(model, pooler="first", classes=3)
    return published(
        model,
        lr=1e-4,
        batch_size=batch_size,
        tokens=tokens,
        warmup_steps=10_000,
        objective=MultiTask(unit="word", sentences="three_way"),
        schedule="linear",
        final_lr=0.0,
        b2=0.999,
        weight_decay=0.01,
    )
