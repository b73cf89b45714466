"""Configs of published systems, each with its source."""

from gptjax.models.config import DecoderConfig


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
