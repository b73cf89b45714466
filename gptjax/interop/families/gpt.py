"""GPT-1, GPT-2, Image GPT, GPT-Neo, GPT-J and GPT-NeoX, as transformers names them."""

import math

from gptjax.errors import BadInput
from gptjax.interop.family import Family, Row, linear, norm, qkv, separate
from gptjax.interop.fields import ACTIVATIONS, THEIR_ACTIVATIONS, Fields, rope
from gptjax.models.config import AttentionConfig, DecoderConfig, EmbeddingConfig, RotaryConfig

# What GPT-2 keeps of its masks in older files.
MASKS = (r"transformer\.h\.\d+\.attn\.(attention\.)?(bias|masked_bias)",)


def body(tokens: str, places: str, ln: str = "ln_{}") -> tuple[Row, ...]:
    """Rows of GPT-2 and of what was made of its code."""
    return (
        Row("embedding", f"transformer.{tokens}.weight"),
        Row("positions", f"transformer.{places}.weight"),
        *norm("layer/attention_norm", "transformer.h.{i}.ln_1"),
        *norm("layer/mlp_norm", "transformer.h.{i}.ln_2"),
        *norm("final_norm", "transformer.ln_f"),
        Row("head", "lm_head.weight"),
    )


FUSED = qkv(
    "transformer.h.{i}.attn.c_attn.weight",
    "D (c H K)",
    "transformer.h.{i}.attn.c_attn.bias",
    "(c H K)",
)
COLUMNS = (  # matrices as [inputs, outputs]
    *FUSED,
    *linear("layer/attention/output", "transformer.h.{i}.attn.c_proj", "(H K) D"),
    *linear("layer/mlp/up", "transformer.h.{i}.mlp.c_fc", "D F"),
    *linear("layer/mlp/down", "transformer.h.{i}.mlp.c_proj", "F D"),
)


def sizes(f: Fields, tied: bool = True) -> dict:
    """The sizes of a GPT, as OpenAI's code calls them."""
    f.agree(n_embd="hidden_size", n_layer="num_hidden_layers", n_head="num_attention_heads")
    f.agree(n_positions="max_position_embeddings")
    return {
        "vocab_size": f.count("vocab_size"),
        "context_length": f.count(
            "n_ctx" if f.has("n_ctx") and not f.has("n_positions") else "n_positions"
        ),
        "num_layers": f.count("n_layer"),
        "d_model": f.count("n_embd"),
        "num_heads": f.count("n_head"),
        "d_ff": f.count("n_inner", 0),
        "norm_epsilon": f.positive("layer_norm_epsilon", 1e-5),
        "tied_embeddings": f.flag("tie_word_embeddings", tied),
    }


def their_sizes(c: DecoderConfig) -> dict:
    """The same in the other direction."""
    return {
        "vocab_size": c.vocab_size,
        "n_positions": c.context_length,
        "n_layer": c.num_layers,
        "n_embd": c.d_model,
        "n_head": c.num_heads,
        "layer_norm_epsilon": c.norm_epsilon,
        "tie_word_embeddings": c.tied_embeddings,
    }


def inner(c: DecoderConfig) -> dict:
    """The width of feed-forward layers, null where it follows from the model's."""
    return {"n_inner": None if c.ff_size == 4 * c.d_model else c.ff_size}


def read_gpt1(f: Fields) -> DecoderConfig:
    """openai-gpt: norms behind the branches; its `gelu` is the tanh form."""
    activation = f.chosen("afn", {"gelu": "gelu_tanh", "relu": "relu"}, "gelu")
    return DecoderConfig(**sizes(f) | {"d_ff": 0}, block="post", activation=activation)


def write_gpt1(c: DecoderConfig) -> dict:
    return their_sizes(c) | {"afn": "relu" if c.activation == "relu" else "gelu"}


GPT1 = Family(
    name="openai-gpt",
    architecture="OpenAIGPTLMHeadModel",
    read=read_gpt1,
    write=write_gpt1,
    rows=(*body("tokens_embed", "positions_embed"), *COLUMNS),
    body="transformer.",
    ignored=MASKS,
    alias="lm_head.weight",
)


def read_gpt2(f: Fields) -> DecoderConfig:
    """gpt2; attention is scaled by the size of a head, or not at all."""
    f.only(scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    scale = "head_size" if f.flag("scale_attn_weights", True) else "one"
    return DecoderConfig(
        **sizes(f),
        activation=f.chosen("activation_function", ACTIVATIONS, "gelu_new"),
        attention=AttentionConfig(scale=scale),
    )


def write_gpt2(c: DecoderConfig) -> dict:
    return (
        their_sizes(c)
        | inner(c)
        | {
            "activation_function": THEIR_ACTIVATIONS.get(c.activation, "gelu_new"),
            "scale_attn_weights": c.attention.scale == "head_size",
        }
    )


GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    read=read_gpt2,
    write=write_gpt2,
    rows=(*body("wte", "wpe"), *COLUMNS),
    body="transformer.",
    ignored=MASKS,
    alias="lm_head.weight",
)


def read_imagegpt(f: Fields) -> DecoderConfig:
    """imagegpt: norms without a mean, a start token that is never predicted."""
    f.only(scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    scale = "head_size" if f.flag("scale_attn_weights", True) else "one"
    return DecoderConfig(
        **sizes(f, tied=False),
        norm="rmsnorm",
        activation=f.chosen("activation_function", ACTIVATIONS, "quick_gelu"),
        attention=AttentionConfig(scale=scale),
        embedding=EmbeddingConfig(outputs=f.count("vocab_size") - 1),
    )


IMAGE_GPT = Family(
    name="imagegpt",
    architecture="ImageGPTForCausalImageModeling",
    read=read_imagegpt,
    write=write_gpt2,
    rows=(*body("wte", "wpe"), *COLUMNS),
    body="transformer.",
    ignored=MASKS,
)


def read_gpt_neo(f: Fields) -> DecoderConfig:
    """gpt_neo: scores are not scaled, every other layer has a window."""
    f.agree(num_layers="num_hidden_layers", num_heads="num_attention_heads")
    kinds = their_kinds(f)
    period = next(
        p for p in range(1, len(kinds) + 1) if all(k == kinds[i % p] for i, k in enumerate(kinds))
    )
    patterns = {"global": "causal", "local": f"window:{f.count('window_size', 256)}"}
    return DecoderConfig(
        vocab_size=f.count("vocab_size"),
        context_length=f.count("max_position_embeddings"),
        num_layers=f.count("num_layers"),
        d_model=f.count("hidden_size"),
        num_heads=f.count("num_heads"),
        d_ff=f.count("intermediate_size", 0),
        norm_epsilon=f.positive("layer_norm_epsilon", 1e-5),
        tied_embeddings=f.flag("tie_word_embeddings", True),
        biases="output",
        activation=f.chosen("activation_function", ACTIVATIONS, "gelu_new"),
        attention=AttentionConfig(
            scale="one", pattern="/".join(patterns[k] for k in kinds[:period])
        ),
    )


def their_kinds(f: Fields) -> list[str]:
    """global or local for every layer, as one list or as turns with their counts."""
    count = f.count("num_layers")
    try:
        kinds = list(f.get("attention_layers", ()))
        if not kinds:
            parts = f.get("attention_types", [[["global", "local"], count // 2]])
            kinds = [kind for names, repeats in parts for kind in list(names) * min(repeats, count)]
        known = len(kinds) == count and all(kind in ("global", "local") for kind in kinds)
    except (TypeError, ValueError, OverflowError, MemoryError):
        known = False
    if not known:
        raise BadInput(
            f"{f.source}: attention_types is {f.get('attention_types', None)!r}; give global or "
            f"local for each of {count} layers"
        )
    return kinds


def write_gpt_neo(c: DecoderConfig) -> dict:
    """The same in the other direction; a pattern that is neither kind is lost."""
    shown = [str(pattern) for pattern in c.attention.patterns]
    widths = {int(p.removeprefix("window:")) for p in shown if p.startswith("window:")
              and p.removeprefix("window:").isdecimal()}  # fmt: skip
    kinds = ["global" if p == "causal" else "local" for p in shown]
    every = [kinds[i % len(kinds)] for i in range(c.num_layers)]
    whole = c.num_layers % len(kinds) == 0
    return {
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context_length,
        "num_layers": c.num_layers,
        "hidden_size": c.d_model,
        "num_heads": c.num_heads,
        "intermediate_size": None if c.ff_size == 4 * c.d_model else c.ff_size,
        "layer_norm_epsilon": c.norm_epsilon,
        "tie_word_embeddings": c.tied_embeddings,
        "activation_function": THEIR_ACTIVATIONS.get(c.activation, "gelu_new"),
        "attention_types": [[kinds, c.num_layers // len(kinds)]] if whole else [[every, 1]],
        "window_size": widths.pop() if len(widths) == 1 else 256,
    }


GPT_NEO = Family(
    name="gpt_neo",
    architecture="GPTNeoForCausalLM",
    read=read_gpt_neo,
    write=write_gpt_neo,
    rows=(
        *body("wte", "wpe"),
        *separate("transformer.h.{i}.attn.attention.{x}_proj.weight"),
        *linear("layer/attention/output", "transformer.h.{i}.attn.attention.out_proj", "D (H K)"),
        *linear("layer/mlp/up", "transformer.h.{i}.mlp.c_fc", "F D"),
        *linear("layer/mlp/down", "transformer.h.{i}.mlp.c_proj", "D F"),
    ),
    body="transformer.",
    ignored=MASKS,
    alias="lm_head.weight",
)


def read_gptj(f: Fields) -> DecoderConfig:
    """gptj: parallel branches, a part of each head turns, logits have a bias."""
    own = sizes(f, tied=False)
    turned = f.count("rotary_dim") if "rotary_dim" in f.tree else 64
    return DecoderConfig(
        **own,
        positions="rotary",
        rotary=RotaryConfig(fraction=turned / max(own["d_model"] // own["num_heads"], 1)),
        block="parallel",
        biases="mlp",
        activation=f.chosen("activation_function", ACTIVATIONS, "gelu_new"),
        embedding=EmbeddingConfig(head_bias=True),
    )


def write_gptj(c: DecoderConfig) -> dict:
    return (
        their_sizes(c)
        | inner(c)
        | {
            "activation_function": THEIR_ACTIVATIONS.get(c.activation, "gelu_new"),
            "rotary_dim": c.rotary_size,
        }
    )


GPTJ = Family(
    name="gptj",
    architecture="GPTJForCausalLM",
    read=read_gptj,
    write=write_gptj,
    rows=(
        Row("embedding", "transformer.wte.weight"),
        *norm("layer/norm", "transformer.h.{i}.ln_1"),
        *separate("transformer.h.{i}.attn.{x}_proj.weight", "(H K~) D"),
        Row("layer/attention/output", "transformer.h.{i}.attn.out_proj.weight", "D (H K)"),
        *linear("layer/mlp/up", "transformer.h.{i}.mlp.fc_in", "F D"),
        *linear("layer/mlp/down", "transformer.h.{i}.mlp.fc_out", "D F"),
        *norm("final_norm", "transformer.ln_f"),
        Row("head", "lm_head.weight"),
        Row("head_bias", "lm_head.bias"),
    ),
    body="transformer.",
    ignored=(*MASKS, r"transformer\.h\.\d+\.attn\.embed_positions"),
    alias="lm_head.weight",
)


def read_neox(f: Fields) -> DecoderConfig:
    """gpt_neox: parallel branches with a norm each, a quarter of each head turns.

    How many components turn is their share of a head, rounded down as transformers does it: of
    100 a share of 0.58 is 57, as that product of floats is below 58.
    """
    f.only(attention_bias=True)
    base, share = f.rotary()
    size = f.count("hidden_size") // f.count("num_attention_heads")
    share = 0.25 if share is None else share
    turned = int(size * share) if 0 <= share <= 1 else size * share
    return DecoderConfig(
        vocab_size=f.count("vocab_size"),
        context_length=f.count("max_position_embeddings"),
        num_layers=f.count("num_hidden_layers"),
        d_model=f.count("hidden_size"),
        num_heads=f.count("num_attention_heads"),
        d_ff=f.count("intermediate_size"),
        norm_epsilon=f.positive("layer_norm_eps", 1e-5),
        tied_embeddings=f.flag("tie_word_embeddings", False),
        positions="rotary",
        rotary=RotaryConfig(base, turned / max(size, 1)),
        block="parallel_two_norms" if f.flag("use_parallel_residual", True) else "pre",
        activation=f.chosen("hidden_act", ACTIVATIONS, "gelu"),
    )


def write_neox(c: DecoderConfig) -> dict:
    turned = c.rotary_size / c.head_size
    if int(c.head_size * turned) < c.rotary_size:
        turned = math.nextafter(turned, 1)
    return {
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context_length,
        "num_hidden_layers": c.num_layers,
        "hidden_size": c.d_model,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.ff_size,
        "layer_norm_eps": c.norm_epsilon,
        "tie_word_embeddings": c.tied_embeddings,
        "use_parallel_residual": c.block == "parallel_two_norms",
        "hidden_act": THEIR_ACTIVATIONS.get(c.activation, "gelu"),
        "rotary_pct": turned,
        "rotary_emb_base": c.rotary.base,
        **rope(c, partial_rotary_factor=turned),
    }


NEOX = Family(
    name="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    read=read_neox,
    write=write_neox,
    rows=(
        Row("embedding", "gpt_neox.embed_in.weight"),
        *norm("layer/attention_norm", "gpt_neox.layers.{i}.input_layernorm"),
        *norm("layer/mlp_norm", "gpt_neox.layers.{i}.post_attention_layernorm"),
        *qkv(
            "gpt_neox.layers.{i}.attention.query_key_value.weight",
            "(H c K) D",
            "gpt_neox.layers.{i}.attention.query_key_value.bias",
            "(H c K)",
        ),
        *linear("layer/attention/output", "gpt_neox.layers.{i}.attention.dense", "D (H K)"),
        *linear("layer/mlp/up", "gpt_neox.layers.{i}.mlp.dense_h_to_4h", "F D"),
        *linear("layer/mlp/down", "gpt_neox.layers.{i}.mlp.dense_4h_to_h", "D F"),
        *norm("final_norm", "gpt_neox.final_layer_norm"),
        Row("head", "embed_out.weight"),
    ),
    body="gpt_neox.",
    ignored=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    alias="embed_out.weight",
)
