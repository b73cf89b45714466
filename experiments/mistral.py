"""Mistral 7B (arXiv 2310.06825) and Mixtral 8x7B (arXiv 2401.04088), whose training is unknown."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes({"7b": "Mistral 7B: 32 layers, 8 key/value heads, windows of 4096 positions."})
def mistral(size: str) -> Experiment:
    """Rate, batch and tokens are not published: LLaMA 7B's stand here, on sequences of 8192.

    Cost by the ledger: 4.7e22 FLOPs.
    """
    return published(
        presets.mistral(size), lr=3e-4, batch_size=512, tokens=1.0e12, warmup_steps=2000
    )


@register_sizes({"8x7b": "Mixtral 8x7B: 46.7B in 8 experts a layer, 12.9B of them for a token."})
def mixtral(size: str) -> Experiment:
    """Rate, batch and tokens are not published: LLaMA 7B's stand here, on sequences of 32768.

    Cost by the ledger: 1.0e23 FLOPs.
    """
    return published(
        presets.mixtral(size), lr=3e-4, batch_size=128, tokens=1.0e12, warmup_steps=2000
    )
