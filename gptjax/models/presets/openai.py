"""OpenAI's decoders: GPT-1, GPT-2, GPT-3, Sparse Transformers and Image GPT."""

from gptjax.models.config import AttentionConfig, DecoderConfig, EmbeddingConfig
from gptjax.models.presets.table import chosen, published, sizes

GPT1 = {"117m": "gpt1"}
GPT2 = {"124m": "gpt2", "355m": "gpt2-medium", "774m": "gpt2-large", "1558m": "gpt2-xl"}
GPT3 = {
    "125m": "gpt3-small",
    "350m": "gpt3-medium",
    "760m": "gpt3-large",
    "1.3b": "gpt3-xl",
    "2.7b": "gpt3-2.7b",
    "6.7b": "gpt3-6.7b",
    "13b": "gpt3-13b",
    "175b": "gpt3-175b",
}
SPARSE = {
    "cifar10": "sparse-cifar10",
    "enwik8": "sparse-enwik8",
    "imagenet64": "sparse-imagenet64",
}
IMAGE_GPT = sizes("igpt-")


def gpt1(size: str = "117m") -> DecoderConfig:
    """GPT-1 (Radford et al. 2018; code openai/finetune-transformer-lm): "117m".

    Post-norm without a final norm, tanh-GELU, learned positions, tied embeddings. The 40478 ids
    are 40000 merges and their characters. Attention weights are dropped out in the source too.
    """
    return published(chosen("GPT-1", size, GPT1), block="post", dropout=0.1)


def gpt2(size: str) -> DecoderConfig:
    """GPT-2 (Radford et al. 2019; code openai/gpt-2): "124m", "355m", "774m" or "1558m".

    The paper's counts (117M, 345M, 762M, 1542M) were corrected by its authors later; these are
    the parameters as counted. Pre-norm, tanh-GELU, learned positions, tied embeddings, residual
    writes scaled by 1/sqrt(2 N), dropout 0.1 in the code (0 here: one epoch of a large corpus).
    The published positions start from N(0, 0.01) and attention weights are dropped out as well.
    """
    return published(chosen("GPT-2", size, GPT2))


def gpt3(size: str) -> DecoderConfig:
    """GPT-3 (arXiv 2005.14165, table 2.1): "125m" to "175b".

    GPT-2 with dense and banded layers in turn. Neither the width of the band nor which layers
    have it is published: 256 positions as in GPT-Neo, the first layer dense. The table prints 24
    heads of 128 for 1.3b and a width of 5140 for 13b, which fit neither their own rows nor the
    parameters told: 16 heads and 5120 here.
    """
    name = chosen("GPT-3", size, GPT3)
    slips = {"gpt3-xl": {"num_heads": 16}, "gpt3-13b": {"d_model": 5120}}
    attention = AttentionConfig(pattern="causal/window:256")
    return published(name, attention, **slips.get(name, {}))


def sparse_transformer(name: str) -> DecoderConfig:
    """Sparse Transformers (arXiv 1904.10509): "cifar10" (59M), "enwik8" (95M), "imagenet64" (152M).

    Pre-norm, x * sigmoid(1.702 x), factorised positions (rows, columns and channels of images; of
    text the rows and columns of a matrix as wide as the stride), every block recomputed, weights
    from N(0, 0.125 / sqrt(fan_in)) and a head of zeros. The CIFAR-10 model has half-size queries,
    keys and feed-forward layers. Heads are merged in all three: the paper says so of enwik8. Its
    stride on CIFAR-10 is not in the text.
    """
    row = chosen("Sparse Transformers", name, SPARSE)
    d_ff, pattern, shape, dropout = {
        "cifar10": (512, "strided:128", "32x32x3", 0.25),
        "enwik8": (2048, "fixed:128,32", "96x128", 0.4),
        "imagenet64": (2048, "strided:128", "64x64x3", 0.01),
    }[name]
    return published(
        row,
        AttentionConfig(pattern=pattern, qk_dim=64 if name == "cifar10" else 0),
        d_ff=d_ff,
        positions="factorised",
        embedding=EmbeddingConfig(position_shape=shape),
        activation="quick_gelu",
        tied_embeddings=False,
        dropout=dropout,
        init="sparse_transformer",
        layers="scan",
        remat="block",
    )


def image_gpt(size: str) -> DecoderConfig:
    """Image GPT (Chen et al. 2020; code openai/image-gpt): "s", "m", "l" or "xl".

    Pixels of 512 colours in raster order after a learned first vector: 513 ids in, 512 out.
    RMSNorm, x * sigmoid(1.702 x), no biases, a head of its own. Of "xl" neither layers nor heads
    are published: 60 follow from the parameters told, 16 are a guess. The table's counts are of a
    class that adds biases, 9 d_model in each layer, and have those beyond ours.
    """
    return published(
        chosen("Image GPT", size, IMAGE_GPT),
        vocab_size=513,
        embedding=EmbeddingConfig(outputs=512),
        norm="rmsnorm",
        activation="quick_gelu",
        biases="none",
        tied_embeddings=False,
    )
