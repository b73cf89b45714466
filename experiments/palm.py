"""PaLM at its three sizes (arXiv 2204.02311)."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes(
    {
        "8b": "PaLM 8B: 32 parallel layers, width 4096, one key/value head.",
        "62b": "PaLM 62B: 64 parallel layers, width 8192.",
        "540b": "PaLM 540B: 118 parallel layers, width 18432; published 69.3% on MMLU.",
    }
)
def palm(size: str) -> Experiment:
    """780 B tokens in batches of 2048 x 2048, which is where 540b ends: it begins with 512.

    Adafactor, whose second moments are not factored there; 1e-2 for 10,000 steps and 1/sqrt(step)
    afterwards, here risen to in these steps; weight decay lr^2 there, none here; clipping at 1;
    z-loss 1e-4. Cost by the ledger: 4.2e22 FLOPs for 8b, 2.5e24 for 540b.
    """
    return published(
        presets.palm(size),
        lr=1e-2,
        batch_size=2048,
        tokens=780e9,
        z_loss=1e-4,
        name="adafactor",
        schedule="inverse_sqrt",
        warmup_steps=10_000,
        weight_decay=0.0,
    )
