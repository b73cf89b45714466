"""BERT (arXiv 1810.04805) at its two sizes and four small ones (arXiv 1908.08962)."""

from experiments.published import published
from gptjax import Experiment, MaskedLM
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes(
    {
        "tiny": "BERT tiny: 2 layers, width 128.",
        "mini": "BERT mini: 4 layers, width 256.",
        "small": "BERT small: 4 layers, width 512.",
        "medium": "BERT medium: 8 layers, width 512.",
        "base": "BERT base: 12 layers, width 768; published 79.6 on GLUE.",
        "large": "BERT large: 24 layers, width 1024; published 82.1 on GLUE.",
    }
)
def bert(size: str) -> Experiment:
    """A million steps of 256 rows of 512: tokens masked by 15%, and whether a part is the next.

    Adam (0.9, 0.999), weight decay 0.01, warm-up over 10,000 steps, a line to 0. Nine tenths of the
    steps have rows of 128 there. Cost by the ledger: 9.8e17 FLOPs for tiny, 2.6e20 for large.
    """
    return published(
        presets.bert(size),
        lr=1e-4,
        batch_size=256,
        steps=1_000_000,
        warmup_steps=10_000,
        objective=MaskedLM(sentences="next"),
        schedule="linear",
        final_lr=0.0,
        b2=0.999,
        epsilon=1e-6,
        weight_decay=0.01,
    )
