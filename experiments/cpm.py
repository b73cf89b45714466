"""CPM-1 at its three sizes (arXiv 2012.00413)."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes(
    {
        "small": "CPM-1 small, 109M: 12 layers, width 768, 30000 Chinese ids.",
        "medium": "CPM-1 medium, 334M: 24 layers, width 1024.",
        "large": "CPM-1 large, 2.6B: 32 layers, width 2560.",
    }
)
def cpm(size: str) -> Experiment:
    """20,000 steps of 3072 x 1024 tokens of 100 GB of Chinese text, 5000 of them warm-up.

    What the rate does after the warm-up and the weight decay are not in our source. Cost by the
    ledger: 4.4e19 FLOPs for small, 1.0e21 for large.
    """
    return published(presets.cpm(size), lr=1.5e-4, batch_size=3072, steps=20_000, warmup_steps=5000)
