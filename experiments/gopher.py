"""Gopher at its six sizes (arXiv 2112.11446)."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes

# Rate and sequences of 2048 tokens in a batch.
RATES = {
    "44m": (6e-4, 128),
    "117m": (6e-4, 128),
    "417m": (2e-4, 128),
    "1.4b": (2e-4, 128),
    "7.1b": (1.2e-4, 1024),
    "280b": (4e-5, 3072),
}


@register_sizes(
    {
        "44m": "Gopher 44M: 8 layers, width 512, RMSNorm, Transformer-XL's relative positions.",
        "117m": "Gopher 117M: 12 layers, width 768.",
        "417m": "Gopher 417M: 12 layers, width 1536.",
        "1.4b": "Gopher 1.4B: 24 layers, width 2048.",
        "7.1b": "Gopher 7.1B: 32 layers, width 4096.",
        "280b": "Gopher 280B: 80 layers, width 16384; published 60.0% on MMLU.",
    }
)
def gopher(size: str) -> Experiment:
    """300 B tokens of MassiveText; the batch of 280b grows from 3 M tokens to 6 M there.

    Adam, a cosine to 10%. From memory: 1500 steps of warm-up, clipping at 1, from 7.1b on at 0.25;
    rates and batches from 117m to 7.1b. The betas are not in our source. Cost by the ledger:
    9.7e19 FLOPs for 44m, 4.7e23 for 280b.
    """
    lr, batch_size = RATES[size]
    return published(
        presets.gopher(size),
        lr=lr,
        batch_size=batch_size,
        tokens=300e9,
        warmup_steps=1500,
        weight_decay=0.0,
        clip_norm=0.25 if size in ("7.1b", "280b") else 1.0,
    )
