"""LLaMA, Mistral, Mixtral and Cohere's Command R, as transformers names them."""

from gptjax.errors import BadInput
from gptjax.interop.family import Family, Row, separate
from gptjax.interop.fields import GATES, THEIR_GATES, Fields, rope
from gptjax.models.config import (
    AttentionConfig,
    DecoderConfig,
    EmbeddingConfig,
    ExpertsConfig,
    RotaryConfig,
)

BODY = (
    Row("embedding", "model.embed_tokens.weight"),
    Row("layer/attention_norm/scale", "model.layers.{i}.input_layernorm.weight"),
    Row("layer/mlp_norm/scale", "model.layers.{i}.post_attention_layernorm.weight"),
    Row("layer/attention/output", "model.layers.{i}.self_attn.o_proj.weight", "D (H K)"),
    Row("layer/attention/output_bias", "model.layers.{i}.self_attn.o_proj.bias"),
    Row("final_norm/scale", "model.norm.weight"),
    Row("head", "lm_head.weight"),
)
MLP = tuple(
    row
    for name, layout in {"up": "F D", "gate": "F D", "down": "D F"}.items()
    for row in (
        Row(f"layer/mlp/{name}", f"model.layers.{{i}}.mlp.{name}_proj.weight", layout),
        Row(f"layer/mlp/{name}_bias", f"model.layers.{{i}}.mlp.{name}_proj.bias"),
    )
)
HEADS = separate("model.layers.{i}.self_attn.{x}_proj.weight")
MOE = "model.layers.{i}.block_sparse_moe"
EXPERTS = (
    Row("layer/experts/router", f"{MOE}.gate.weight", "X D"),
    Row("layer/experts/gate", f"{MOE}.experts.{{e}}.w1.weight", "F D"),
    Row("layer/experts/down", f"{MOE}.experts.{{e}}.w2.weight", "D F"),
    Row("layer/experts/up", f"{MOE}.experts.{{e}}.w3.weight", "F D"),
)
FREQUENCIES = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def common(
    f: Fields,
    context: int = 2048,
    base: float = 10_000.0,
    tied: bool = False,
    shared: int | None = None,
    width: int | None = None,
) -> dict:
    """What all of them say of themselves, with their defaults.

    shared, width: key/value heads and sliding window where the field is missing; a null one says
    as many heads as queries have, and no window.
    """
    for fields in (f, f.inner_rotary()):  # transformers turns whole heads, whatever these say
        fields.only(partial_rotary_factor=1.0, rotary_pct=1.0, rotary_emb_base=None)
    base, _ = f.rotary(base)
    d_model, heads = f.count("hidden_size"), f.count("num_attention_heads")
    size = f.count("head_dim", 0)
    if shared is None or "num_key_value_heads" in f.tree:
        shared = heads
    if "sliding_window" in f.tree:
        width = f.count("sliding_window") if f.has("sliding_window") else None
    return {
        "vocab_size": f.count("vocab_size"),
        "context_length": f.count("max_position_embeddings", context),
        "num_layers": f.count("num_hidden_layers"),
        "d_model": d_model,
        "num_heads": heads,
        "num_kv_heads": f.count("num_key_value_heads", shared),
        "d_ff": f.count("intermediate_size"),
        "attention": AttentionConfig(
            head_dim=0 if size * heads == d_model else size,
            pattern="causal" if width is None else f"window:{width}",
        ),
        "positions": "rotary",
        "rotary": RotaryConfig(base),
        "norm": "rmsnorm",
        "activation": f.chosen("hidden_act", GATES, "silu"),
        "biases": "none",
        "tied_embeddings": f.flag("tie_word_embeddings", tied),
    }


def their_common(c: DecoderConfig) -> dict:
    """The same in the other direction."""
    return {
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context_length,
        "num_hidden_layers": c.num_layers,
        "hidden_size": c.d_model,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_size,
        "intermediate_size": c.ff_size,
        "hidden_act": THEIR_GATES.get(c.activation, "silu"),
        "rms_norm_eps": c.norm_epsilon,
        "tie_word_embeddings": c.tied_embeddings,
        **rope(c),
    }


def window(c: DecoderConfig) -> dict:
    """The width that all layers share, or null."""
    width = c.attention.pattern.removeprefix("window:")
    return {"sliding_window": int(width) if width.isdecimal() else None}


def read_llama(f: Fields) -> DecoderConfig:
    """llama: RMSNorm, SwiGLU, rotary positions, no biases (or all of them)."""
    f.only(sliding_window=None)
    attention, mlp = f.flag("attention_bias", False), f.flag("mlp_bias", False)
    if attention != mlp:
        raise BadInput(
            f"{f.source}: attention_bias is {attention} and mlp_bias is {mlp}, which no model here "
            "has; equal ones are read"
        )
    known = common(f) | {"norm_epsilon": f.positive("rms_norm_eps", 1e-6)}
    return DecoderConfig(**known | {"biases": "all" if attention else "none"})


def write_llama(c: DecoderConfig) -> dict:
    return their_common(c) | dict.fromkeys(("attention_bias", "mlp_bias"), c.biases == "all")


LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    read=read_llama,
    write=write_llama,
    rows=(*BODY, *HEADS, *MLP),
    body="model.",
    ignored=FREQUENCIES,
    alias="lm_head.weight",
)


def read_mistral(f: Fields) -> DecoderConfig:
    """mistral: LLaMA with key/value heads that queries share, and a window in all layers."""
    known = common(f, context=4096 * 32, shared=8, width=4096)
    return DecoderConfig(**known, norm_epsilon=f.positive("rms_norm_eps", 1e-6))


def write_mistral(c: DecoderConfig) -> dict:
    return their_common(c) | window(c)


MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    read=read_mistral,
    write=write_mistral,
    rows=(*BODY, *HEADS, *MLP),
    body="model.",
    ignored=FREQUENCIES,
    alias="lm_head.weight",
)


def read_mixtral(f: Fields) -> DecoderConfig:
    """mixtral: Mistral with experts, whose weights sum to 1, in every layer."""
    f.agree(num_local_experts="num_experts")
    known = common(f, context=4096 * 32, base=1e6, shared=8)
    top_k, balance = f.count("num_experts_per_tok", 2), f.number("router_aux_loss_coef", 0.001)
    if top_k == 1:
        raise BadInput(
            f"{f.source}: num_experts_per_tok is 1, whose weight would always be 1, which no model "
            "here has; 2 or more are read"
        )
    if balance < 0:
        raise BadInput(f"{f.source}: router_aux_loss_coef is {balance:g}; give 0 or more")
    experts = ExpertsConfig(
        count=f.count("num_local_experts", 8), top_k=top_k, balance_weight=balance
    )
    return DecoderConfig(**known, norm_epsilon=f.positive("rms_norm_eps", 1e-5), experts=experts)


def write_mixtral(c: DecoderConfig) -> dict:
    return (
        their_common(c)
        | window(c)
        | {
            "num_local_experts": c.experts.count,
            "num_experts_per_tok": c.experts.top_k,
            "router_aux_loss_coef": c.experts.balance_weight,
        }
    )


MIXTRAL = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    read=read_mixtral,
    write=write_mixtral,
    rows=(*BODY, *HEADS, *EXPERTS),
    body="model.",
    ignored=FREQUENCIES,
    alias="lm_head.weight",
)


def read_cohere(f: Fields) -> DecoderConfig:
    """cohere: parallel branches behind one norm without a bias; with one key/value head, PaLM."""
    f.only(use_qk_norm=False, attention_bias=False, sliding_window=None)
    known = common(f, context=8192, base=500_000.0, tied=True)
    return DecoderConfig(
        **known
        | {
            "norm": "layernorm",
            "norm_epsilon": f.positive("layer_norm_eps", 1e-5),
            "block": "parallel",
            "embedding": EmbeddingConfig(logit_scale=f.number("logit_scale", 0.0625)),
        }
    )


def write_cohere(c: DecoderConfig) -> dict:
    known = their_common(c) | {"logit_scale": c.embedding.logit_scale, "use_qk_norm": False}
    return known | {"layer_norm_eps": known.pop("rms_norm_eps"), "attention_bias": False}


COHERE = Family(
    name="cohere",
    architecture="CohereForCausalLM",
    read=read_cohere,
    write=write_cohere,
    rows=(
        Row("embedding", "model.embed_tokens.weight"),
        Row("layer/norm/scale", "model.layers.{i}.input_layernorm.weight"),
        *separate("model.layers.{i}.self_attn.{x}_proj.weight", "(H K~) D"),
        Row("layer/attention/output", "model.layers.{i}.self_attn.o_proj.weight", "D (H K)"),
        *MLP,
        Row("final_norm/scale", "model.norm.weight"),
        Row("head", "lm_head.weight"),
    ),
    body="model.",
    ignored=FREQUENCIES,
    alias="lm_head.weight",
)
