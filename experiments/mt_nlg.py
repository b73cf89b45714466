"""Megatron-Turing NLG (arXiv 2201.11990)."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes({"530b": "MT-NLG 530B: 105 layers, width 20480; published 76.6% on LAMBADA."})
def mt_nlg(size: str) -> Experiment:
    """270 B tokens in batches of 1920 x 2048, to which the batch grows there.

    Adam (0.9, 0.95), weight decay 0.1, clipping at 1, warm-up over 1 B tokens, a cosine to 10%.
    Cost by the ledger: 8.6e23 FLOPs.
    """
    return published(
        presets.mt_nlg(size), lr=5e-5, batch_size=1920, tokens=270e9, warmup_tokens=1e9
    )
