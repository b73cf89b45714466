"""Encoders, encoder-decoders and prefix models on the embedded corpus, in minutes on a laptop.

All have the quickstart's text, optimizer and number of training tokens, and are as wide; depths
are chosen so that a step costs 1 to 1.6 times the FLOPs. Their losses are of different tasks:
docs/objectives.md says which figures stand on one axis.
"""

import dataclasses

from experiments.quickstart import quickstart
from gptjax import (
    GLM,
    UL2,
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    Experiment,
    MaskedLM,
    MultiTask,
    PermutationLM,
    SpanCorruption,
    TaskModulesConfig,
    TwoStreamConfig,
    register,
)

SIZES = {"vocab_size": 384, "d_model": 128, "num_heads": 2}
MODERN = {"norm": "rmsnorm", "biases": "none", "tied_embeddings": False}
# T5's unscaled scores and its initial weights are made for Adafactor; Muon gets the usual ones.
T5 = EncoderDecoderConfig(**SIZES, **MODERN, num_layers=3, positions="relative_bias", init="fan_in")


def variant(name: str, model, objective) -> Experiment:
    """The quickstart with another model and objective."""
    return dataclasses.replace(quickstart(), name=name, model=model, objective=objective)


@register
def bert_quick() -> Experiment:
    """A byte-level BERT: an encoder that predicts 15% of its bytes from both sides.

    python experiments/run.py --exp=bert_quick
    """
    model = EncoderConfig(
        **SIZES, **MODERN, num_layers=4, positions="rotary", init="fan_in", head="plain"
    )
    return variant("bert_quick", model, MaskedLM())


@register
def t5_quick() -> Experiment:
    """A byte-level T5: an encoder reads text with gaps of 3 bytes, a decoder fills them.

    python experiments/run.py --exp=t5_quick
    """
    return variant("t5_quick", T5, SpanCorruption())


@register
def ul2_quick() -> Experiment:
    """A byte-level UL2: seven ways to cut text out, each with a mode token.

    python experiments/run.py --exp=ul2_quick
    """
    return variant("ul2_quick", T5, UL2())


@register
def glm_quick() -> Experiment:
    """A byte-level GLM: one stack reads text with blanks both ways and fills them in order.

    A third of the rows each has short spans, whole lines and the end of the window as blanks.

    python experiments/run.py --exp=glm_quick
    """
    model = DecoderConfig(
        **SIZES,
        **MODERN,
        num_layers=4,
        context_length=256,
        positions="learned_blocks",
        init="fan_in",
    )
    objective = GLM(sentence_share=1 / 3, document_share=1 / 3)
    return variant("glm_quick", model, objective)


@register
def xlnet_quick() -> Experiment:
    """A byte-level XLNet: a sixth of the bytes is predicted, in random orders, by a second stream.

    python experiments/run.py --exp=xlnet_quick
    """
    model = TwoStreamConfig(**SIZES, num_layers=4, biases="mlp", activation="gelu_tanh")
    return variant("xlnet_quick", model, PermutationLM())


@register
def ernie3_quick() -> Experiment:
    """A byte-level ERNIE 3.0: one trunk, a module that fills in hidden bytes, one that writes.

    python experiments/run.py --exp=ernie3_quick
    """
    model = TaskModulesConfig(
        **SIZES,
        **MODERN,
        num_layers=3,
        task_layers=2,
        task_width=64,
        positions="rotary",
        init="fan_in",
    )
    return variant("ernie3_quick", model, MultiTask())
