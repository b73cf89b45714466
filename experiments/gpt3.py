"""GPT-3 at its eight sizes (arXiv 2005.14165)."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes

# Rate and sequences of 2048 tokens in a batch: 0.5M, 1M, 2M and 3.2M tokens.
RATES = {
    "125m": (6e-4, 256),
    "350m": (3e-4, 256),
    "760m": (2.5e-4, 256),
    "1.3b": (2e-4, 512),
    "2.7b": (1.6e-4, 512),
    "6.7b": (1.2e-4, 1024),
    "13b": (1e-4, 1024),
    "175b": (6e-5, 1536),
}


@register_sizes(
    {
        "125m": "GPT-3 small, 125M: 12 layers, width 768, context 2048.",
        "350m": "GPT-3 medium, 350M: 24 layers, width 1024.",
        "760m": "GPT-3 large, 760M: 24 layers, width 1536.",
        "1.3b": "GPT-3 XL, 1.3B: 24 layers, width 2048.",
        "2.7b": "GPT-3 2.7B: 32 layers, width 2560.",
        "6.7b": "GPT-3 6.7B: 32 layers, width 4096.",
        "13b": "GPT-3 13B: 40 layers, width 5120.",
        "175b": "GPT-3 175B: 96 layers, width 12288; published 76.2% on LAMBADA without examples.",
    }
)
def gpt3(size: str) -> Experiment:
    """300 B tokens of filtered web pages, books and Wikipedia.

    Adam (0.9, 0.95), weight decay 0.1, clipping at 1, warm-up over 375 M tokens, a cosine to 10%:
    there by 260 B tokens, here by the end. The batch grows from 32 k tokens there. The width of
    the banded layers is not published (256 here), nor which they are. Cost by the ledger: 2.4e20
    FLOPs for 125m, 3.2e23 for 175b.
    """
    lr, batch_size = RATES[size]
    return published(
        presets.gpt3(size), lr=lr, batch_size=batch_size, tokens=300e9, warmup_tokens=375e6
    )
