"""PLUG (AliceMind's notes): an encoder first, then a short decoder behind it."""

from experiments.published import published
from gptjax import Denoising, Experiment
from gptjax.models import presets
from gptjax.registry import register_sizes


@register_sizes({"27b": "PLUG 27B: an encoder of 24 layers and a decoder of 6, width 8192."})
def plug(size: str) -> Experiment:
    """The second stage, 100B tokens: text from which spans are missing is written whole.

    Before it the encoder was trained alone on 300B tokens as StructBERT (masked_lm with
    `sentences=three_way` and `shuffle_rate=0.05`). Rate and batch are not published: 1e-4 and 1024
    rows stand here.
    """
    return published(
        presets.plug(size), lr=1e-4, batch_size=1024, tokens=1e11, objective=Denoising()
    )
