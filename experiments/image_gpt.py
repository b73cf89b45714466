"""Image GPT at its four sizes (Chen et al. 2020): pixels of 512 colours, one after another."""

from experiments.published import published
from gptjax import DataConfig, Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes(
    {
        "s": "Image GPT S, 76M: 24 layers, 32x32 pixels; published 2.0895 nats per pixel.",
        "m": "Image GPT M, 455M: 36 layers, 32x32 pixels; published 2.0614 nats per pixel.",
        "l": "Image GPT L, 1.4B: 48 layers, 32x32 pixels; published 2.0466 nats per pixel.",
        "xl": "Image GPT XL, 6.8B: 60 layers, 64x64 pixels.",
    }
)
def igpt(size: str) -> Experiment:
    """ImageNet's pixels are not at hand: bytes of Python stand in, so it is a plan of cost.

    Steps, batches and rates are from memory: Adam (0.9, 0.95), a cosine to zero, no weight decay;
    10^6 steps of 128 images, of "xl" 2 10^6 of 64. Cost by the ledger: 6.9e19 FLOPs for s, 2.4e22
    for xl.
    """
    rates = {"s": 3e-3, "m": 3e-3, "l": 1e-3, "xl": 3e-4}
    return published(
        presets.image_gpt(size),
        lr=rates[size],
        batch_size=64 if size == "xl" else 128,
        steps=2_000_000 if size == "xl" else 1_000_000,
        data=DataConfig(),
        final_lr=0.0,
        weight_decay=0.0,
    )
