"""Jurassic-1 (Lieber et al. 2021)."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes(
    {
        "large": "Jurassic-1 Large, 7.5B: 32 layers, width 4096, a vocabulary of 256000.",
        "jumbo": "Jurassic-1 Jumbo, 178B: 76 layers, width 13824, a vocabulary of 256000.",
    }
)
def jurassic(size: str) -> Experiment:
    """300 B tokens, a cosine.

    Batches of 3.2 M tokens are of "jumbo"; rate and batch of "large" are those of GPT-3 6.7B. Cost
    by the ledger: 1.4e22 FLOPs for large, 3.2e23 for jumbo.
    """
    lr, batch_size = (1.2e-4, 1024) if size == "large" else (6e-5, 1536)
    return published(
        presets.jurassic(size), lr=lr, batch_size=batch_size, tokens=300e9, warmup_tokens=375e6
    )
