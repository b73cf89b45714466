"""PanGu-alpha at its three sizes (arXiv 2104.12369)."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes(
    {
        "2.6b": "PanGu-alpha 2.6B: 31 layers and a query layer, width 2560, context 1024.",
        "13b": "PanGu-alpha 13B: 39 layers and a query layer, width 5120.",
        "200b": "PanGu-alpha 200B: 63 layers and a query layer, width 16384.",
    }
)
def pangu_alpha(size: str) -> Experiment:
    """1.1 TB of Chinese text; how much of it was read is not in our source: 40 B tokens here.

    The rate of 200b is a survey's (2e-5; another source has 2e-4). Other rates and all batches are
    ours. Cost by the ledger: 6.5e20 FLOPs for 2.6b, 5.0e22 for 200b.
    """
    lr, batch_size = {"2.6b": (1e-4, 512), "13b": (5e-5, 1024), "200b": (2e-5, 2048)}[size]
    return published(presets.pangu_alpha(size), lr=lr, batch_size=batch_size, tokens=40e9)
