"""GPT-1 (Radford et al. 2018)."""

from experiments.published import published
from gptjax import Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes({"117m": "GPT-1, 117M: 12 post-norm layers, width 768, context 512."})
def gpt1(size: str) -> Experiment:
    """100 epochs of BooksCorpus in batches of 64 x 512 tokens; published perplexity there 18.4.

    Adam, 2000 steps of warm-up, a cosine to zero. The tokens of an epoch are not published: 10^9
    here, by the words of the corpus. Cost by the ledger: 7.2e19 FLOPs.
    """
    return published(
        presets.gpt1(size),
        lr=2.5e-4,
        batch_size=64,
        tokens=100e9,
        warmup_steps=2000,
        final_lr=0.0,
        b2=0.999,
        weight_decay=0.01,
    )
