"""GPT-Neo, GPT-J and GPT-NeoX of EleutherAI, trained on the Pile (arXiv 2101.00027)."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes(
    {
        "125m": "GPT-Neo 125M: 12 layers, dense and windows of 256 in turn, 300 B tokens.",
        "1.3b": "GPT-Neo 1.3B: 24 layers; published 0.7527 bits per byte on the Pile.",
        "2.7b": "GPT-Neo 2.7B: 32 layers; published 0.7165 bits per byte on the Pile.",
    }
)
def gpt_neo(size: str) -> Experiment:
    """Adam (0.9, 0.95), weight decay 0.1, clipping at 1, 3000 steps of warm-up, a cosine to 10%.

    The rates of the repository's configs, the steps of the model cards. Cost by the ledger: 2.4e20
    FLOPs for 125m, 6.9e21 for 2.7b.
    """
    lr, batch_size, steps = {
        "125m": (6e-4, 256, 572_300),
        "1.3b": (2e-4, 512, 362_000),
        "2.7b": (1.6e-4, 512, 400_000),
    }[size]
    return published(
        presets.gpt_neo(size), lr=lr, batch_size=batch_size, steps=steps, warmup_steps=3000
    )


@register_sizes({"6b": "GPT-J 6B: 28 parallel layers; published 3.99 perplexity on LAMBADA."})
def gpt_j(size: str) -> Experiment:
    """383,500 steps of 512 x 2048 tokens: 402 B.

    3000 steps of warm-up, a cosine to 10%: there by step 303,000, here by the end. Adam (0.9,
    0.999), weight decay 0.1, clipping at 1. Cost by the ledger: 1.5e22 FLOPs.
    """
    return published(
        presets.gpt_j(size), lr=1.2e-4, batch_size=512, steps=383_500, warmup_steps=3000, b2=0.999
    )


@register_sizes({"20b": "GPT-NeoX 20B: 44 parallel layers; published 72.0% on LAMBADA."})
def gpt_neox(size: str) -> Experiment:
    """150,000 steps of 1536 x 2048 tokens (1538 by the paper): 472 B.

    Adam (0.9, 0.95), weight decay 0.01, clipping at 1, 1% of warm-up, a cosine to 10%. Cost by the
    ledger: 5.9e22 FLOPs.
    """
    return published(
        presets.gpt_neox(size),
        lr=0.97e-4,
        batch_size=1536,
        steps=150_000,
        warmup_fraction=0.01,
        weight_decay=0.01,
    )
