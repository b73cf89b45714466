"""Decoders with open weights: GPT-Neo, GPT-J, GPT-NeoX, OPT, BLOOM, LLaMA, Mistral, Mixtral."""

from gptjax.models.config import (
    AttentionConfig,
    DecoderConfig,
    EmbeddingConfig,
    ExpertsConfig,
    RotaryConfig,
)
from gptjax.models.presets.table import chosen, published, sizes

GPT_NEO = sizes("gpt-neo-")
GPT_J = sizes("gpt-j-")
GPT_NEOX = sizes("gpt-neox-")
OPT = sizes("opt-")
BLOOM = sizes("bloom-")
LLAMA = sizes("llama-")
MISTRAL = sizes("mistral-")
MIXTRAL = sizes("mixtral-")


def gpt_neo(size: str) -> DecoderConfig:
    """GPT-Neo (code EleutherAI/gpt-neo): "125m", "1.3b" or "2.7b".

    Dense layers and windows of 256 in turn, scores that no factor scales, and biases everywhere
    but in queries, keys and values.
    """
    attention = AttentionConfig(pattern="causal/window:256", scale="one")
    return published(chosen("GPT-Neo", size, GPT_NEO), attention, biases="output")


def gpt_j(size: str = "6b") -> DecoderConfig:
    """GPT-J (code kingoflolz/mesh-transformer-jax): "6b".

    One norm for attention and the feed-forward layer side by side, 64 of a head's 256 dimensions
    turned by position, no biases in attention, a head of its own with one. Of 50400 ids 50257 are
    used. The README tells 6,053,381,344 parameters, 2,498,560 more than the weights have.
    """
    return published(
        chosen("GPT-J", size, GPT_J),
        positions="rotary",
        rotary=RotaryConfig(fraction=64 / 256),
        block="parallel",
        biases="mlp",
        tied_embeddings=False,
        embedding=EmbeddingConfig(head_bias=True),
    )


def gpt_neox(size: str = "20b") -> DecoderConfig:
    """GPT-NeoX (arXiv 2204.06745): "20b".

    Attention and the feed-forward layer side by side, each under a norm of its own; a quarter of
    each head turned by position; a head of its own. The vocabulary is padded to 50432 ids.
    """
    return published(
        chosen("GPT-NeoX", size, GPT_NEOX),
        positions="rotary",
        rotary=RotaryConfig(fraction=0.25),
        block="parallel_two_norms",
        tied_embeddings=False,
    )


def opt(size: str) -> DecoderConfig:
    """OPT (arXiv 2205.01068; code facebookresearch/metaseq): "125m" to "175b".

    ReLU, learned positions that begin at the table's third row. "350m" differs: post-norm without
    a final norm, and token vectors of 512 that two matrices map to the width and back; that form
    is known from its released weights. Dropout 0.1 of residual branches, none of embeddings: here
    it is 0, since one rate serves both.
    """
    name = chosen("OPT", size, OPT)
    post = size == "350m"
    return published(
        name,
        activation="relu",
        block="post" if post else "pre",
        embedding=EmbeddingConfig(position_offset=2, size=512 if post else 0),
    )


def bloom(size: str) -> DecoderConfig:
    """BLOOM (arXiv 2211.05100): "560m", "1b1", "1b7", "3b", "7b1" or "176b".

    ALiBi in the place of positions, a norm right above the embedding, tanh-GELU, tied embeddings.
    """
    name = chosen("BLOOM", size, BLOOM)
    return published(name, positions="alibi", embedding=EmbeddingConfig(norm=True))


def llama(size: str) -> DecoderConfig:
    """LLaMA (arXiv 2302.13971): "7b", "13b", "33b" or "65b".

    RMSNorm, SwiGLU, rotary positions, no biases, a head of its own. The norm's epsilon is read
    for 7b and 13b only.
    """
    return _llama_like(chosen("LLaMA", size, LLAMA))


def mistral(size: str = "7b") -> DecoderConfig:
    """Mistral (arXiv 2310.06825): "7b".

    LLaMA with 8 key/value heads for 32 heads, in windows of 4096 positions.
    """
    attention = AttentionConfig(pattern="window:4096")
    return _llama_like(chosen("Mistral", size, MISTRAL), attention)


def mixtral(size: str = "8x7b") -> DecoderConfig:
    """Mixtral (arXiv 2401.04088): "8x7b".

    Mistral with dense attention over 32768 positions and eight experts in every layer, of which a
    token goes to two; no token is dropped. The weight of the load-balance loss is not published:
    0.01 of Switch.
    """
    return _llama_like(
        chosen("Mixtral", size, MIXTRAL),
        rotary=RotaryConfig(base=1e6),
        experts=ExpertsConfig(count=8, top_k=2, weights="normalised"),
    )


def _llama_like(name: str, attention: AttentionConfig | None = None, **fields) -> DecoderConfig:
    return published(
        name,
        attention,
        positions="rotary",
        norm="rmsnorm",
        activation="swiglu",
        biases="none",
        tied_embeddings=False,
        **fields,
    )
