"""Vectors of texts, whose products tell how alike they are (arXiv 1908.10084).

A text's vector is the mean of what an encoder says of its tokens, those of its start and its end
among them, with the length 1.
"""

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.errors import BadInput
from gptjax.evaluation.decode import on_mesh
from gptjax.evaluation.texts import Source
from gptjax.models.build import model_of
from gptjax.models.config import TransformerConfig

STEP = 16  # lengths are filled up to multiples of it, so that few programs are compiled


def sentence_embeddings(
    source: Source | str | Path,
    texts: Sequence[str],
    *,
    length: int | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """float32 [texts, D]: a vector of length 1 for each text, cut to `length` tokens.

    source: an encoder, or an encoder-decoder, whose encoder is asked: one that was loaded, or
    where it is, a run's folder or hf:PATH; length: 256 by default, or all of a shorter context.
    Texts begin with the tokenizer's `cls` and end with its `sep`, or `eos`, where it has them.
    BadInput for a model that reads from left to right, one without a tokenizer, and a text without
    a token.
    """
    if isinstance(texts, str):
        raise BadInput("texts is one text; give a list of texts, such as ['one', 'two']")
    texts = list(texts)
    for n, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadInput(f"text {n} is {text!r}; give strings")
    if isinstance(source, str | Path):
        source = _loaded(str(source))
    config = source.config
    if config.kind not in ("encoder", "encoder_decoder"):
        raise BadInput(f"vectors of texts are made by encoders, and this model is a {config.kind}")
    if source.tokenizer is None:
        raise BadInput("vectors of texts need a tokenizer, and this model has none")
    length = min(256, config.context_length) if length is None else length
    if not 3 <= length <= config.context_length:
        raise BadInput(f"length is {length}; give 3 to {config.context_length} tokens")
    if batch_size < 1:
        raise BadInput(f"batch_size is {batch_size}; give 1 or more texts")
    rows = _rows(source.tokenizer, texts, length)
    order = np.argsort([len(row) for row in rows], kind="stable")
    out = np.zeros((len(rows), config.d_model), np.float32)
    params, mesh = on_mesh(source.params)
    ways = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    filled = -(-min(batch_size, len(rows)) // ways) * ways
    with jax.set_mesh(mesh) if mesh is not None else nullcontext():
        for low in range(0, len(rows), batch_size):
            some = order[low : low + batch_size]
            longest = min(-(-len(rows[some[-1]]) // STEP) * STEP, config.context_length)
            tokens = np.zeros((filled, longest), np.int32)
            mask = np.zeros_like(tokens)
            for n, row in enumerate(some):
                tokens[n, : len(rows[row])], mask[n, : len(rows[row])] = rows[row], 1
            out[some] = np.asarray(_vectors(config)(params, tokens, mask))[: len(some)]
    return out


def _loaded(source: str) -> Source:
    """The model that a text names."""
    import gptjax
    from gptjax.interop.loading import SOURCES, load

    kind, colon, _ = source.partition(":")
    return load(source) if colon and kind in SOURCES else gptjax.load(source)


def _rows(tokenizer, texts: Sequence[str], length: int) -> list[np.ndarray]:
    """The ids of every text."""
    special = tokenizer.special
    start = [special["cls"]] if "cls" in special else []
    end = [special[role] for role in ("sep", "eos") if role in special][:1]
    room = length - len(start) - len(end)
    rows = [np.array([*start, *ids[:room], *end]) for ids in tokenizer.encode_many(texts)]
    for n, row in enumerate(rows):
        if not len(row):
            raise BadInput(f"text {n} has no token: {texts[n]!r}")
    return rows


@functools.lru_cache(maxsize=8)
def _vectors(config: TransformerConfig):
    model = model_of(config)

    @jax.jit
    def vectors(params, tokens_BT, mask_BT):
        given = {"params": params}
        if config.kind == "encoder":
            states_BTD = model.apply(given, tokens_BT, segments_BT=mask_BT - 1).states_BTD
        else:
            read = {"source_BS": tokens_BT, "source_segments_BS": mask_BT - 1}
            states_BTD = model.apply(given, **read)
        # As a sum: it has the direction of the mean.
        sum_BD = jnp.sum(states_BTD.astype(jnp.float32) * mask_BT[:, :, None], 1)
        squared_B1 = jnp.sum(jnp.square(sum_BD), -1, keepdims=True)
        return sum_BD * jax.lax.rsqrt(jnp.maximum(squared_B1, 1e-24))

    return vectors
