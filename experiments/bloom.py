"""BLOOM at its six sizes (arXiv 2211.05100)."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes

# Rate and sequences of 2048 tokens in a batch.
RATES = {
    "560m": (3e-4, 256),
    "1b1": (2.5e-4, 256),
    "1b7": (2e-4, 512),
    "3b": (1.6e-4, 512),
    "7b1": (1.2e-4, 512),
    "176b": (6e-5, 2048),
}


@register_sizes(
    {
        "560m": "BLOOM 560M: 24 layers, width 1024, ALiBi.",
        "1b1": "BLOOM 1.1B: 24 layers, width 1536.",
        "1b7": "BLOOM 1.7B: 24 layers, width 2048.",
        "3b": "BLOOM 3B: 30 layers, width 2560.",
        "7b1": "BLOOM 7.1B: 30 layers, width 4096.",
        "176b": "BLOOM 176B: 70 layers, width 14336, 46 languages and 13 of programs.",
    }
)
def bloom(size: str) -> Experiment:
    """366 B tokens of ROOTS, which is of 176b: that of the smaller ones is not in our source.

    Batches and rates of the smaller ones are from memory. Adam (0.9, 0.95), weight decay 0.1,
    clipping at 1, warm-up over 375 M tokens, a cosine to 10%. Cost by the ledger: 1.3e21 FLOPs for
    560m, 3.9e23 for 176b.
    """
    lr, batch_size = RATES[size]
    return published(
        presets.bloom(size), lr=lr, batch_size=batch_size, tokens=366e9, warmup_tokens=375e6
    )
