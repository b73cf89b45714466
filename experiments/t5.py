"""T5 1.0 (arXiv 1910.10683), T5 1.1 and mT5 (arXiv 2010.11934), five sizes each, and UL2."""

from experiments.published import published
from gptjax import UL2, Experiment, SpanCorruption
from gptjax.models import presets
from gptjax.models.kinds import EncoderDecoderConfig
from gptjax.objectives import Objective
from gptjax.registry import register_sizes


def run(
    model: EncoderDecoderConfig, batch_size: int, objective: Objective, **length: float
) -> Experiment:
    """What all share: Adafactor at 0.01, falling as the root of steps after the first 10,000.

    The rate rises in these from 0; there it stands still.
    """
    return published(
        model,
        lr=1e-2,
        batch_size=batch_size,
        **length,
        warmup_steps=10_000,
        z_loss=1e-4,
        objective=objective,
        name="adafactor",
        schedule="inverse_sqrt",
        weight_decay=0.0,
        clip_norm=0.0,
    )


@register_sizes(
    {
        "small": "T5 small: 6 and 6 layers, width 512.",
        "base": "T5 base: 12 and 12 layers, width 768.",
        "large": "T5 large: 24 and 24 layers, width 1024.",
        "3b": "T5 3B: 24 and 24 layers, width 1024, 32 heads of 128.",
        "11b": "T5 11B: 24 and 24 layers, width 1024, 128 heads of 128.",
    }
)
def t5(size: str) -> Experiment:
    """A million steps of 2048 rows of 512: spans of 15% are cut out and written by the decoder.

    Supervised tasks that were mixed in are left out. Cost by the ledger: 2.2e20 FLOPs for small,
    4.7e22 for 11b.
    """
    return run(presets.t5(size), 2048, SpanCorruption(), steps=1_000_000)


@register_sizes(
    {
        "small": "T5 1.1 small: 8 and 8 layers, width 512.",
        "base": "T5 1.1 base: 12 and 12 layers, width 768.",
        "large": "T5 1.1 large: 24 and 24 layers, width 1024.",
        "xl": "T5 1.1 XL: 24 and 24 layers, width 2048.",
        "xxl": "T5 1.1 XXL: 24 and 24 layers, width 4096.",
    }
)
def t5_v1_1(size: str) -> Experiment:
    """As T5, with gated units, without dropout and without supervised tasks.

    Cost by the ledger: 2.2e20 FLOPs for small, 4.3e22 for xxl.
    """
    return run(presets.t5_v1_1(size), 2048, SpanCorruption(), steps=1_000_000)


@register_sizes(
    {
        "small": "mT5 small: 8 and 8 layers, width 512.",
        "base": "mT5 base: 12 and 12 layers, width 768.",
        "large": "mT5 large: 24 and 24 layers, width 1024.",
        "xl": "mT5 XL: 24 and 24 layers, width 2048.",
        "xxl": "mT5 XXL: 24 and 24 layers, width 4096.",
    }
)
def mt5(size: str) -> Experiment:
    """A million steps of 1024 rows of 1024 tokens in 101 languages.

    Cost by the ledger: 4.0e20 FLOPs for small, 4.5e22 for xxl.
    """
    return run(presets.mt5(size), 1024, SpanCorruption(), steps=1_000_000)


@register_sizes({"20b": "UL2 20B: 32 and 32 layers, width 4096."})
def ul2(size: str) -> Experiment:
    """A trillion tokens in batches of 1024 rows of 512, by a mixture of seven denoisers.

    Its rate is not published: that of T5. Cost by the ledger: 9.3e22 FLOPs.
    """
    return run(presets.ul2(size), 1024, UL2(), tokens=1e12)
