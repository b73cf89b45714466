"""Chinchilla (arXiv 2203.15556)."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes({"70b": "Chinchilla 70B: 80 layers, width 8192; published 67.6% on MMLU."})
def chinchilla(size: str) -> Experiment:
    """1.4 T tokens of MassiveText; the batch grows from 1.5 M tokens to 3 M in the middle there.

    AdamW, a cosine to 10%. Weight decay, betas and warm-up are not in our source. Cost by the
    ledger: 5.6e23 FLOPs.
    """
    return published(
        presets.chinchilla(size), lr=1e-4, batch_size=1536, tokens=1.4e12, warmup_steps=1500
    )
