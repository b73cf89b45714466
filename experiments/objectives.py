"""Encoders, encoder-decoders and prefix models on the embedded corpus, in minutes on a laptop.

All have the quickstart's data, optimizer and about its size, so that their curves stand beside it.
"""

import dataclasses

from experiments.quickstart import quickstart
from gptjax import (
    EncoderConfig,
    EncoderDecoderConfig,
    Experiment,
    MaskedLM,
    SpanCorruption,
    TrainConfig,
    register,
)
from gptjax.models.config_parts import AttentionConfig


def variant(**parts) -> Experiment:
    """The quickstart with other parts."""
    base = quickstart()
    return dataclasses.replace(base, **{"train": TrainConfig(tokens=2_300_000)} | parts)


@register
def bert_quick() -> Experiment:
    """A byte-level BERT: an encoder that predicts 15% of its bytes from both sides.

    python experiments/run.py --exp=bert_quick
    """
    model = EncoderConfig(
        vocab_size=258,
        num_layers=4,
        d_model=128,
        num_heads=2,
        norm="rmsnorm",
        positions="rotary",
        biases="none",
        init="fan_in_zero",
        tied_embeddings=False,
        head="plain",
    )
    return variant(name="bert_quick", model=model, objective=MaskedLM())


@register
def t5_quick() -> Experiment:
    """A byte-level T5: an encoder reads text with gaps, a decoder fills them.

    python experiments/run.py --exp=t5_quick
    """
    model = EncoderDecoderConfig(
        vocab_size=384,
        num_layers=3,
        d_model=128,
        num_heads=2,
        norm="rmsnorm",
        positions="relative_bias",
        attention=AttentionConfig(scale="one"),
        biases="none",
        init="t5",
        tied_embeddings=False,
    )
    return variant(name="t5_quick", model=model, objective=SpanCorruption())
