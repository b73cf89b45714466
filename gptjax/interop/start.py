"""Which experiment a run is that starts from a checkpoint of others.

The model is the checkpoint's. From the experiment come the choices of training and of speed
(`OF_TRAINING`), data, optimizer and all else. A field of the architecture that the command line
sets has to be as in the checkpoint. Text is cut by the checkpoint's tokenizer, where it has one
and the command line sets none.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

from gptjax.errors import BadInput
from gptjax.interop.fields import unlike
from gptjax.interop.loading import TOKENIZERS, Checkpoint, checked, differing, open_checkpoint
from gptjax.models.config import TransformerConfig

# Fields of a model's config that do not say what it computes.
OF_TRAINING = ("dropout", "init", "layers", "remat", "compute_dtype")
OF_ATTENTION = ("kernel",)
OF_EXPERTS = ("balance_weight", "z_weight", "jitter")
TRAINED = ("bytes", "bpe", "unigram", "file")  # tokenizers that another may take the place of


def starting_from(
    experiment: Any, source: str, given: Collection[str], begun: Any | None = None
) -> Any:
    """The experiment with the checkpoint's model and tokenizer.

    given: dotted names of the fields that were set by hand. begun: the experiment of a run that
    goes on, whose model and tokenizer stay what they are; the checkpoint is not opened then.
    BadInput, in one line, where what is given contradicts them, or for what cannot be read.
    """
    found = None if begun is not None else open_checkpoint(source)
    config = begun.model if found is None else found.config
    model = with_training(config, experiment.model)
    if found is not None:
        checked(found, model)
    given = {name.replace("-", "_") for name in given}
    wrong = [name for name in unlike(experiment.model, config) if f"model.{name}" in given]
    if wrong:
        raise BadInput(differing(wrong, experiment.model, config, source))
    data = experiment.data
    if data.sequence_length > model.context_length:
        raise BadInput(
            f"data.sequence_length = {data.sequence_length} is longer than the context of "
            f"{source}; give --data.sequence_length={model.context_length} or less"
        )
    chosen = {name for name in given if name.startswith("data.tokenizer")}
    if not chosen and data.tokenizer in TRAINED:
        if found is None:
            words = {name: getattr(begun.data, name) for name in ("tokenizer", "tokenizer_file")}
            data = dataclasses.replace(data, **words)
        else:
            data = _in_its_words(data, found)
    return dataclasses.replace(experiment, model=model, data=data)


def with_training(config: TransformerConfig, other: TransformerConfig) -> TransformerConfig:
    """A model with what another config says of training and of speed."""
    parts = {
        "attention": dataclasses.replace(
            config.attention, **{name: getattr(other.attention, name) for name in OF_ATTENTION}
        ),
        "experts": dataclasses.replace(
            config.experts, **{name: getattr(other.experts, name) for name in OF_EXPERTS}
        ),
    }
    return dataclasses.replace(
        config, **{name: getattr(other, name) for name in OF_TRAINING}, **parts
    )


def _in_its_words(data: Any, found: Checkpoint) -> Any:
    if found.kind == "gguf":
        raise BadInput(
            f"the tokenizer of {found.path} is inside the file; write it as a folder first "
            f"(python -m gptjax.interop export {found.source} FOLDER), or set data.tokenizer"
        )
    if not any((found.path / name).exists() for name in TOKENIZERS):
        return data
    return dataclasses.replace(data, tokenizer="file", tokenizer_file=str(found.path.absolute()))
