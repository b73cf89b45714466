"""Transformer-XL (arXiv 1901.02860), its large model of WikiText-103."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes({"wt103": "Transformer-XL: 18 layers, memory 384; published perplexity 18.3."})
def transformer_xl(size: str) -> Experiment:
    """4 M steps of 49,152 words: 128 x 384 there, 16 sequences of eight segments here.

    Adam, 16,000 steps of warm-up, a cosine to zero, clipping at 0.25, dropout 0.2, that of
    attention weights left out. Published with an adaptive softmax, here with a full one; the
    published 18.3 is of words, this corpus has pieces of words. Cost by the ledger: 6.7e20 FLOPs.
    """
    return published(
        presets.transformer_xl(size),
        lr=2.5e-4,
        batch_size=16,
        steps=4_000_000,
        warmup_steps=16_000,
        final_lr=0.0,
        b2=0.999,
        weight_decay=0.0,
        clip_norm=0.25,
    )
