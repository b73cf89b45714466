"""OPT at its nine sizes (arXiv 2205.01068)."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes

# Rate and sequences of 2048 tokens in a batch: 0.5M, 1M, 2M and 4M tokens.
RATES = {
    "125m": (6e-4, 256),
    "350m": (3e-4, 256),
    "1.3b": (2e-4, 512),
    "2.7b": (1.6e-4, 512),
    "6.7b": (1.2e-4, 1024),
    "13b": (1e-4, 2048),
    "30b": (1e-4, 2048),
    "66b": (8e-5, 1024),
    "175b": (3e-5, 1024),
}


@register_sizes(
    {
        "125m": "OPT 125M: 12 layers, width 768, context 2048.",
        "350m": "OPT 350M: 24 post-norm layers, width 1024, token vectors of 512.",
        "1.3b": "OPT 1.3B: 24 layers, width 2048.",
        "2.7b": "OPT 2.7B: 32 layers, width 2560.",
        "6.7b": "OPT 6.7B: 32 layers, width 4096.",
        "13b": "OPT 13B: 40 layers, width 5120.",
        "30b": "OPT 30B: 48 layers, width 7168.",
        "66b": "OPT 66B: 64 layers, width 9216.",
        "175b": "OPT 175B: 96 layers, width 12288; its rate was changed by hand several times.",
    }
)
def opt(size: str) -> Experiment:
    """300 B tokens of a corpus of 180 B.

    Adam (0.9, 0.95), weight decay 0.1, clipping at 1, warm-up over 375 M tokens, a line to 10%. Of
    175b the launcher's rate is 3e-5, a survey has 1.2e-4. Weights start from N(0, 0.006) there.
    Cost by the ledger: 2.6e20 FLOPs for 125m, 3.2e23 for 175b.
    """
    lr, batch_size = RATES[size]
    return published(
        presets.opt(size),
        lr=lr,
        batch_size=batch_size,
        tokens=300e9,
        warmup_tokens=375e6,
        schedule="linear",
    )
