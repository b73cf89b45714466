"""RoBERTa at its two sizes (arXiv 1907.11692)."""

from experiments.published import published
from gptjax import Experiment, MaskedLM
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes(
    {
        "base": "RoBERTa base: 12 layers, width 768.",
        "large": "RoBERTa large: 24 layers, width 1024; published 88.5 on GLUE.",
    }
)
def roberta(size: str) -> Experiment:
    """500,000 steps of 8192 rows of 512 tokens, masked anew each time.

    Adam (0.9, 0.98), weight decay 0.01, no clipping, a line to 0. Cost by the ledger: 1.3e21 FLOPs
    for base, 4.2e21 for large.
    """
    return published(
        presets.roberta(size),
        lr={"base": 6e-4, "large": 4e-4}[size],
        batch_size=8192,
        steps=500_000,
        warmup_steps={"base": 24_000, "large": 30_000}[size],
        objective=MaskedLM(),
        schedule="linear",
        final_lr=0.0,
        b2=0.98,
        epsilon=1e-6,
        weight_decay=0.01,
        clip_norm=0.0,
    )
