"""XLNet (arXiv 1906.08237) at its two sizes."""

from experiments.published import published
from gptjax import Experiment, PermutationLM
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes(
    {
        "base": "XLNet base: 12 layers, width 768.",
        "large": "XLNet large: 24 layers, width 1024; published 85.4 on RACE.",
    }
)
def xlnet(size: str) -> Experiment:
    """500,000 steps of 8192 rows of 512, a sixth of the tokens in a random order.

    Adam, 4e-4, a line to 0 after 40,000 steps. There is no memory of earlier segments.
    """
    return published(
        presets.xlnet(size),
        lr=4e-4,
        batch_size=8192,
        steps=500_000,
        warmup_steps=40_000,
        objective=PermutationLM(),
        schedule="linear",
        final_lr=0.0,
        weight_decay=0.01,
    )
