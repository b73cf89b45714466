"""Switch Transformers' experts in a decoder (arXiv 2101.03961)."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes({"base-8": "Switch-Base's decoder: 12 layers, 8 experts in every second."})
def switch_decoder(size: str) -> Experiment:
    """100,000 steps of a million tokens; the published systems are encoder-decoders.

    Adafactor, 1e-2 for 10,000 steps and 1/sqrt(step) afterwards, here risen to in these steps.
    Length and batch are from memory. Cost by the ledger: 6.0e19 FLOPs.
    """
    return published(
        presets.switch_decoder(size),
        lr=1e-2,
        batch_size=2048,
        steps=100_000,
        name="adafactor",
        schedule="inverse_sqrt",
        warmup_steps=10_000,
        weight_decay=0.0,
    )
