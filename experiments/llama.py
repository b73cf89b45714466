"""LLaMA at its four sizes (arXiv 2302.13971)."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes(
    {
        "7b": "LLaMA 7B: 32 layers, width 4096, 1.0 T tokens; published 35.1% on MMLU.",
        "13b": "LLaMA 13B: 40 layers, width 5120, 1.0 T tokens; published 46.9% on MMLU.",
        "33b": "LLaMA 33B: 60 layers, width 6656, 1.4 T tokens; published 57.8% on MMLU.",
        "65b": "LLaMA 65B: 80 layers, width 8192, 1.4 T tokens; published 63.4% on MMLU.",
    }
)
def llama(size: str) -> Experiment:
    """Batches of 4 M tokens, AdamW (0.9, 0.95), weight decay 0.1, clipping at 1.

    2000 steps of warm-up, a cosine to 10%. Cost by the ledger: 4.1e22 FLOPs for 7b, 5.6e23 for
    65b.
    """
    small = size in ("7b", "13b")
    return published(
        presets.llama(size),
        lr=3e-4 if small else 1.5e-4,
        batch_size=2048,
        tokens=1.0e12 if small else 1.4e12,
        warmup_steps=2000,
    )
