"""GPT-2 at its four published sizes, on the corpus and the mesh that are at hand."""

import dataclasses

from gptjax import DataConfig, Experiment, OptimConfig, TrainConfig, register
from gptjax.models.presets import gpt2
from gptjax.scaling.flops import count_parameters


def _gpt2(size: str, batch_size: int, lr: float) -> Experiment:
    """The published shape and context; learning rates of GPT-3's sizes (arXiv 2005.14165).

    GPT-2's own rates were tuned by hand and not published. 20 tokens per parameter
    (arXiv 2203.15556) rather than its unpublished number of epochs over WebText.
    """
    model = dataclasses.replace(gpt2(size), layers="scan", remat="block", compute_dtype="bfloat16")
    return Experiment(
        name=f"gpt2_{size}",
        model=model,
        data=DataConfig(
            tokenizer="bpe", vocab_size=50257, batch_size=batch_size, sequence_length=1024
        ),
        optim=OptimConfig(lr=lr, weight_decay=0.1, accumulation=1),
        train=TrainConfig(tokens=20 * count_parameters(model).total),
    )


@register
def gpt2_124m() -> Experiment:
    """GPT-2 small (124M): 12 layers, width 768, context 1024.

    python experiments/run.py --exp=gpt2_124m
    """
    return _gpt2("124m", batch_size=512, lr=6e-4)


@register
def gpt2_355m() -> Experiment:
    """GPT-2 medium (355M): 24 layers, width 1024, context 1024.

    python experiments/run.py --exp=gpt2_355m --mesh.fsdp=4
    """
    return _gpt2("355m", batch_size=512, lr=3e-4)


@register
def gpt2_774m() -> Experiment:
    """GPT-2 large (774M): 36 layers, width 1280, context 1024.

    python experiments/run.py --exp=gpt2_774m --mesh.fsdp=8
    """
    return _gpt2("774m", batch_size=512, lr=2.5e-4)


@register
def gpt2_1558m() -> Experiment:
    """GPT-2 XL (1558M): 48 layers, width 1600, context 1024.

    python experiments/run.py --exp=gpt2_1558m --mesh.fsdp=16
    """
    return _gpt2("1558m", batch_size=512, lr=2e-4)
