"""Configs of published systems, each with its source."""

from gptjax.models.config import AttentionConfig, DecoderConfig, EmbeddingConfig


def gpt2(size: str) -> DecoderConfig:
    """GPT-2 (Radford et al. 2019; code openai/gpt-2): "124m", "355m", "774m" or "1558m".

    The paper's counts (117M, 345M, 762M, 1542M) were corrected by its authors later; these are
    the parameters as counted. Pre-norm, tanh-GELU, learned positions, tied embeddings, residual
    writes scaled by 1/sqrt(2 N), dropout 0.1 in the code (0 here: one epoch of a large corpus).
    The published positions start from N(0, 0.01) and attention weights are dropped out as well.
    """
    num_layers, d_model, num_heads = {
        "124m": (12, 768, 12),
        "355m": (24, 1024, 16),
        "774m": (36, 1280, 20),
        "1558m": (48, 1600, 25),
    }[size]
    return DecoderConfig(
        vocab_size=50257,
        context_length=1024,
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
    )


def sparse_transformer(name: str) -> DecoderConfig:
    """Sparse Transformers (arXiv 1904.10509): "cifar10" (59M), "enwik8" (95M), "imagenet64" (152M).

    Pre-norm, x * sigmoid(1.702 x), factorised positions (rows, columns and channels of images; of
    text the rows and columns of a matrix as wide as the stride), every block recomputed, weights
    from N(0, 0.125 / sqrt(fan_in)) and a head of zeros. The CIFAR-10 model has half-size queries,
    keys and feed-forward layers. Heads are merged in all three: the paper says so of enwik8. Its
    stride on CIFAR-10 is not in the text.
    """
    shapes = {
        "cifar10": (128, 256, 2, 512, "strided:128", "32x32x3", 0.25),
        "enwik8": (30, 512, 8, 2048, "fixed:128,32", "96x128", 0.4),
        "imagenet64": (48, 512, 16, 2048, "strided:128", "64x64x3", 0.01),
    }
    num_layers, d_model, num_heads, d_ff, pattern, shape, dropout = shapes[name]
    halved = d_model // num_heads // 2 if name == "cifar10" else 0
    return DecoderConfig(
        vocab_size=256,
        context_length=3072 if name == "cifar10" else 12288,
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        d_ff=d_ff,
        attention=AttentionConfig(pattern=pattern, qk_dim=halved),
        positions="factorised",
        embedding=EmbeddingConfig(position_shape=shape),
        activation="quick_gelu",
        tied_embeddings=False,
        dropout=dropout,
        init="sparse_transformer",
        layers="scan",
        remat="block",
    )
