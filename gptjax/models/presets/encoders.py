"""Encoders and encoder-decoders: BERT, RoBERTa, T5 1.0 and 1.1, mT5, UL2."""

from gptjax.models.config import AttentionConfig, EmbeddingConfig
from gptjax.models.kinds import EncoderConfig, EncoderDecoderConfig
from gptjax.models.presets.table import architecture, chosen, sized, sizes

BERT = sizes("bert-")
ROBERTA = sizes("roberta-")
T5_V1_1 = sizes("t5-v1_1-")
T5 = {size: row for size, row in sizes("t5-").items() if row not in T5_V1_1.values()}
MT5 = sizes("mt5-")
UL2 = sizes("ul2-")


def bert(size: str) -> EncoderConfig:
    """BERT (arXiv 1810.04805; small ones arXiv 1908.08962): "tiny" to "large".

    Post-norm, a norm above the embedding, two kinds of tokens, tanh-GELU as in its code (the erf
    form in transformers), a pooler with the two classes of next sentences. Weights start from a
    normal cut at two deviations there, and all from 0.02: here those that write into the stream
    start smaller. The dropout of attention's weights is left out.
    """
    return sized(
        architecture(chosen("BERT", size, BERT)),
        EncoderConfig,
        block="post",
        embedding=EmbeddingConfig(norm=True, types=2, head_bias=True),
        pooler="first",
        classes=2,
        dropout=0.1,
    )


def roberta(size: str) -> EncoderConfig:
    """RoBERTa (arXiv 1907.11692): "base" or "large".

    BERT without a pooler, with GELU in its erf form and positions from the third row on. Its one
    kind of tokens adds the same vector to all.
    """
    embedding = EmbeddingConfig(norm=True, types=1, head_bias=True, position_offset=2)
    return sized(
        architecture(chosen("RoBERTa", size, ROBERTA)),
        EncoderConfig,
        block="post",
        activation="gelu_erf",
        embedding=embedding,
        dropout=0.1,
    )


def t5(size: str) -> EncoderDecoderConfig:
    """T5 (arXiv 1910.10683): "small", "base", "large", "3b" or "11b".

    RMSNorm, ReLU, no biases, buckets of distances, scores that no factor scales, tied embeddings
    whose logits are divided by sqrt(d_model). Dropout 0.1 of embeddings and residual branches; that
    of attention's weights and of feed-forward units is left out.
    """
    row = architecture(chosen("T5", size, T5))
    embedding = EmbeddingConfig(logit_scale=row["d_model"] ** -0.5)
    return _t5_like(row, activation="relu", embedding=embedding, dropout=0.1)


def t5_v1_1(size: str) -> EncoderDecoderConfig:
    """T5 1.1 (code google-research/text-to-text-transfer-transformer): "small" to "xxl".

    T5 with gated GELU, a head of its own and no dropout.
    """
    row = architecture(chosen("T5 1.1", size, T5_V1_1))
    return _t5_like(row, activation="geglu", tied_embeddings=False)


def mt5(size: str) -> EncoderDecoderConfig:
    """mT5 (arXiv 2010.11934): "small", "base", "large", "xl" or "xxl".

    T5 1.1 with a table of 250112 ids and rows of 1024 tokens.
    """
    row = architecture(chosen("mT5", size, MT5))
    return _t5_like(row, activation="geglu", tied_embeddings=False)


def ul2(size: str = "20b") -> EncoderDecoderConfig:
    """UL2 (arXiv 2205.05131): "20b".

    T5 1.1 with SwiGLU and heads of 256. Its depth, head size and feed-forward width are not read
    in a source.
    """
    row = architecture(chosen("UL2", size, UL2))
    return _t5_like(row, activation="swiglu", norm_epsilon=1e-6, tied_embeddings=False)


def _t5_like(row: dict, **fields) -> EncoderDecoderConfig:
    depth, after = row["n_encoder_layers"], row["n_decoder_layers"]
    return sized(
        row,
        EncoderDecoderConfig,
        AttentionConfig(scale="one", head_dim=row["d_head"]),
        num_layers=depth,
        decoder_layers=0 if after == depth else after,
        positions="relative_bias",
        norm="rmsnorm",
        biases="none",
        init="t5",
        **fields,
    )
