"""Models of Google and DeepMind: Transformer-XL, Switch, LaMDA, PaLM, Gopher and Chinchilla."""

import math

from gptjax.models.config import AttentionConfig, DecoderConfig, EmbeddingConfig, ExpertsConfig
from gptjax.models.kinds import EncoderDecoderConfig
from gptjax.models.presets.table import (
    architecture,
    chinchilla_shapes,
    chosen,
    decoder,
    published,
    sized,
    sizes,
)

TRANSFORMER_XL = sizes("transformer-xl-")
SWITCH = {"base-8": "switch-base-8"}
LAMDA = {"137b": "lamda-137b"}  # the shapes of 2B and 8B are not published
PALM = sizes("palm-")
GOPHER = sizes("gopher-")
CHINCHILLA = {"70b": "chinchilla-70b"}


def transformer_xl(size: str = "wt103") -> DecoderConfig:
    """Transformer-XL (arXiv 1901.02860; code kimiyoung/transformer-xl): "wt103", the large one.

    Post-norm, ReLU, scores of distances with two biases in every layer, segments of 384 that read
    the one before; biases in feed-forward layers and norms; token vectors times sqrt(d_model).
    The published embedding and softmax are adaptive (arXiv 1809.10853), with less for rare words:
    285M parameters there, 520M here with all words alike. The memory here begins anew with every
    sequence, which is as long as eight segments; there it goes on over batches.
    """
    row = architecture(chosen("Transformer-XL", size, TRANSFORMER_XL))
    segment = 384
    return decoder(
        row,
        AttentionConfig(memory=segment),
        context_length=8 * segment,
        positions="relative",
        block="post",
        activation="relu",
        biases="mlp",
        dropout=0.2,
        embedding=EmbeddingConfig(scale=math.sqrt(row["d_model"]), head_bias=True),
    )


def switch(size: str = "base-8") -> EncoderDecoderConfig:
    """Switch Transformer (arXiv 2101.03961; code google/flaxformer, switch_classic): "base-8".

    T5 whose every second layer has experts, on both sides: a token goes to one of 8, which takes
    1.25 times an even load. Groups are sequences here and 8192 tokens there. The noise of the
    router is the paper's, the released code has none; dropout is left to fine-tuning.
    """
    row = architecture(chosen("Switch", size, SWITCH))
    return sized(
        row,
        EncoderDecoderConfig,
        AttentionConfig(scale="one"),
        num_layers=row["n_encoder_layers"],
        positions="relative_bias",
        norm="rmsnorm",
        activation="relu",
        biases="none",
        embedding=EmbeddingConfig(logit_scale=row["d_model"] ** -0.5),
        init="t5",
        experts=ExpertsConfig(
            count=row["n_experts"],
            top_k=1,
            every=row["sparse_every"],
            capacity=1.25,
            balance_weight=0.01,
            jitter=0.01,
            weights="as_routed",
        ),
    )


def lamda(size: str = "137b") -> DecoderConfig:
    """LaMDA (arXiv 2201.08239): "137b".

    Gated GELU, and T5's buckets of distances in the place of positions. Not published are the
    context (2048 here), the norm (LayerNorm without biases here), the factor of scores (that of
    heads here), whether embeddings are tied (here they are) and the shapes of 2B and 8B. The
    table's count is of the products in the layers alone.
    """
    return published(
        chosen("LaMDA", size, LAMDA),
        context_length=2048,
        positions="relative_bias",
        activation="geglu",
        biases="none",
    )


def palm(size: str) -> DecoderConfig:
    """PaLM (arXiv 2204.02311): "8b", "62b" or "540b".

    Attention and a SwiGLU of 4 d_model side by side under one LayerNorm without biases, one
    key/value head of 256, rotary positions, tied embeddings whose logits are divided by
    sqrt(d_model). Token vectors start from N(0, 1) there, from N(0, 0.02) here; the norm's
    epsilon is not published.
    """
    name = chosen("PaLM", size, PALM)
    return published(
        name,
        positions="rotary",
        block="parallel",
        activation="swiglu",
        biases="none",
        embedding=EmbeddingConfig(logit_scale=1 / math.sqrt(architecture(name)["d_model"])),
        init="fan_in",
    )


def gopher(size: str) -> DecoderConfig:
    """Gopher (arXiv 2112.11446): "44m", "117m", "417m", "1.4b", "7.1b" or "280b".

    GPT-2 with RMSNorm and Transformer-XL's scores of distances. The form of GELU and the norm's
    epsilon are not published; that embeddings are tied follows from the parameters told.
    """
    return published(chosen("Gopher", size, GOPHER), positions="relative", norm="rmsnorm")


def chinchilla(size: str) -> DecoderConfig:
    """Chinchilla (arXiv 2203.15556): "70b", or one of table A9 by its millions, "44m" to "16183m".

    Gopher's architecture in other shapes. In some rows of table A9 the heads together are wider
    or narrower than the model.
    """
    grid = {f"{row['params_m']}m": row for row in chinchilla_shapes()}
    if size in grid:
        like = architecture("chinchilla-70b")
        row = {name: like[name] for name in ("vocab", "context")} | grid[size]
    else:
        row = architecture(chosen("Chinchilla", size, CHINCHILLA | dict.fromkeys(grid, "")))
    return decoder(row, positions="relative", norm="rmsnorm")
