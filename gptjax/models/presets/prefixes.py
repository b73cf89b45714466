"""Models that read both ways and write in order: GLM, GLM-130B, ChatGLM, XLNet, PLUG, ERNIE 3.0."""

from gptjax.models.config import AttentionConfig, DecoderConfig, EmbeddingConfig
from gptjax.models.kinds import EncoderDecoderConfig, TaskModulesConfig, TwoStreamConfig
from gptjax.models.presets.table import architecture, chosen, decoder, sized, sizes

GLM_130B = {"130b": "glm-130b"}
GLM = {size: row for size, row in sizes("glm-").items() if row not in GLM_130B.values()}
CHATGLM = sizes("chatglm-")
XLNET = sizes("xlnet-")
PLUG = sizes("plug-")
ERNIE3 = sizes("ernie3-")

# Ids of GLM's tokenizers with its special tokens, filled up to a multiple of 128.
GLM_WORDS = {"BERT": 30592, "GPT-2": 50304, "Chinese": 50048}


def glm(size: str) -> DecoderConfig:
    """GLM (arXiv 2103.10360; code THUDM/GLM): "base" to "10b", and two of Chinese.

    GPT-2's layers with a second table of positions, for places within a blank; both have a row more
    than a sequence has tokens. The tokenizers' ids are filled up to a multiple of 128, which the
    table does not tell. With them "2b" has 1.92 B parameters, "roberta" and "large-chinese" have
    355 and 356 M, where 335 M are told.
    """
    row = architecture(chosen("GLM", size, GLM))
    words = next(ids for name, ids in GLM_WORDS.items() if name in row["vocab"])
    return decoder(
        row | {"vocab": words, "context": row["context"] + 1}, positions="learned_blocks"
    )


def glm_130b(size: str = "130b") -> DecoderConfig:
    """GLM-130B (arXiv 2210.02414): "130b".

    Rotary positions, GEGLU, DeepNorm with sqrt(2 N), a tenth of the gradient for the embedding and,
    as in its code, a norm above it. The table's count is of the products of the layers and the
    table of tokens.
    """
    return decoder(
        architecture(chosen("GLM-130B", size, GLM_130B)),
        positions="rotary",
        block="deep",
        activation="geglu",
        init="fan_in",
        embedding=EmbeddingConfig(gradient_share=0.1, norm=True),
    )


def chatglm(size: str = "6b") -> DecoderConfig:
    """ChatGLM (code THUDM/ChatGLM-6B): "6b".

    GLM-130B's layers with plain GELU; half of each head turns with the position in the text, half
    with the place within the blank. The table of tokens is that of the release without the ids of
    images, and is the head too, as the class ties them.
    """
    return decoder(
        architecture(chosen("ChatGLM", size, CHATGLM)),
        positions="rotary_blocks",
        block="deep",
        init="fan_in",
        embedding=EmbeddingConfig(norm=True),
    )


def xlnet(size: str) -> TwoStreamConfig:
    """XLNet (arXiv 1906.08237): "base" or "large".

    Two streams, Transformer-XL's scores of distances, tokens of two types that scores tell apart;
    its memory of earlier segments is left out.
    """
    return sized(
        architecture(chosen("XLNet", size, XLNET)),
        TwoStreamConfig,
        context_length=512,
        activation="gelu_erf",
        biases="mlp",
        embedding=EmbeddingConfig(head_bias=True, types=2),
        dropout=0.1,
    )


def plug(size: str = "27b") -> EncoderDecoderConfig:
    """PLUG (AliceMind's notes): "27b".

    StructBERT's encoder of 24 layers, and after it a decoder of 6. Heads of 128, BERT's 512
    positions and a table of 21,128 Chinese ids (BERT's) stand in for what is not published; with
    them it has 26 B parameters.
    """
    row = architecture(chosen("PLUG", size, PLUG))
    return sized(
        row | {"n_heads": row["d_model"] // 128, "vocab": 21_128, "context": 512},
        EncoderDecoderConfig,
        AttentionConfig(),
        num_layers=row["n_encoder_layers"],
        decoder_layers=row["n_decoder_layers"],
        block="post",
        norm_epsilon=1e-12,
        activation="gelu_erf",
        embedding=EmbeddingConfig(norm=True, types=2, head_bias=True),
    )


def ernie3(size: str) -> TaskModulesConfig:
    """ERNIE 3.0 (arXiv 2107.02137; Titan arXiv 2112.12731): "10b" or "titan".

    A trunk of Transformer-XL's scores, without its memory, and for either task a module of 12
    layers of 768. Those of Titan, post-norm layers, and 40,000 ids are not read in a source; the
    table's count is of the products of the trunk's layers, without distances.
    """
    row = architecture(chosen("ERNIE 3.0", size, ERNIE3))
    return sized(
        {"d_ff": 4 * row["d_model"], "vocab": 40_000} | row,
        TaskModulesConfig,
        task_layers=12,
        task_width=768,
        block="post",
        activation="gelu_erf",
        embedding=EmbeddingConfig(norm=True, types=2, head_bias=True),
        dropout=0.1,
    )
