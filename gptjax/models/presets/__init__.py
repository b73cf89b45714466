"""Configs of published systems, each with its source: `presets.gpt2("124m")`.

Sizes come from the table in `presets.table`; `named` takes the names of its rows. A field that is
not published is named in the docstring together with what stands here in its place.
"""

import functools
from collections.abc import Callable

from gptjax.errors import BadInput, did_you_mean
from gptjax.models.config import TransformerConfig
from gptjax.models.presets import encoders, google, large, open_models, openai, prefixes
from gptjax.models.presets.encoders import bert, mt5, roberta, t5, t5_v1_1, ul2
from gptjax.models.presets.google import (
    chinchilla,
    gopher,
    lamda,
    palm,
    switch,
    transformer_xl,
)
from gptjax.models.presets.large import cpm, jurassic, mt_nlg, pangu_alpha
from gptjax.models.presets.open_models import (
    bloom,
    gpt_j,
    gpt_neo,
    gpt_neox,
    llama,
    mistral,
    mixtral,
    opt,
)
from gptjax.models.presets.openai import gpt1, gpt2, gpt3, image_gpt, sparse_transformer
from gptjax.models.presets.prefixes import chatglm, ernie3, glm, glm_130b, plug, xlnet

# The sizes of every family, each with the row of the table that it is.
FAMILIES: dict[Callable[[str], TransformerConfig], dict[str, str]] = {
    gpt1: openai.GPT1,
    gpt2: openai.GPT2,
    gpt3: openai.GPT3,
    sparse_transformer: openai.SPARSE,
    image_gpt: openai.IMAGE_GPT,
    gpt_neo: open_models.GPT_NEO,
    gpt_j: open_models.GPT_J,
    gpt_neox: open_models.GPT_NEOX,
    opt: open_models.OPT,
    bloom: open_models.BLOOM,
    llama: open_models.LLAMA,
    mistral: open_models.MISTRAL,
    mixtral: open_models.MIXTRAL,
    transformer_xl: google.TRANSFORMER_XL,
    switch: google.SWITCH,
    lamda: google.LAMDA,
    palm: google.PALM,
    gopher: google.GOPHER,
    chinchilla: google.CHINCHILLA,
    mt_nlg: large.MT_NLG,
    jurassic: large.JURASSIC,
    pangu_alpha: large.PANGU_ALPHA,
    cpm: large.CPM,
    bert: encoders.BERT,
    roberta: encoders.ROBERTA,
    t5: encoders.T5,
    t5_v1_1: encoders.T5_V1_1,
    mt5: encoders.MT5,
    ul2: encoders.UL2,
    glm: prefixes.GLM,
    glm_130b: prefixes.GLM_130B,
    chatglm: prefixes.CHATGLM,
    xlnet: prefixes.XLNET,
    plug: prefixes.PLUG,
    ernie3: prefixes.ERNIE3,
}


@functools.cache
def by_row() -> dict[str, tuple[Callable[[str], TransformerConfig], str]]:
    """The function and the size behind every row of the table that is a model here."""
    return {row: (make, size) for make, known in FAMILIES.items() for size, row in known.items()}


def named(row: str) -> TransformerConfig:
    """The model of a row of the table, such as "llama-7b"; BadInput where there is none."""
    if row not in by_row():
        raise BadInput(f"there is no model for the row {row!r}{did_you_mean(row, by_row())}")
    make, size = by_row()[row]
    return make(size)


__all__ = [make.__name__ for make in FAMILIES] + ["FAMILIES", "by_row", "named"]
