"""LLaMA and GPT-2 as GGUF files name them; llama's queries and keys turn neighbours there."""

from gptjax.errors import BadInput
from gptjax.interop.family import Family, Row, linear, norm, qkv, separate
from gptjax.interop.fields import Fields
from gptjax.interop.stores import GgufStore
from gptjax.models.config import AttentionConfig, DecoderConfig, ExpertsConfig, RotaryConfig

ARCHITECTURE = "general.architecture"
# Fields that other models have, with the value that says they are not there.
WITHOUT = {
    "attention.causal": True,
    "attention.clamp_kqv": None,
    "attention.max_alibi_bias": 0.0,
    "attention.scale": None,
    "attention.temperature_scale": None,
    "attn_logit_softcapping": None,
    "embedding_scale": 1.0,
    "expert_shared_count": 0,
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "rope.dimension_sections": None,
    "rope.scaling.attn_factor": 1.0,
    "use_parallel_residual": False,
}


def completed(store: GgufStore) -> dict:
    """The metadata of the architecture, with what only the tensors tell."""
    fields, prefix = store.fields, f"{store.fields.get(ARCHITECTURE)}."
    tree = {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}
    tree.setdefault("vocab_size", store.shapes.get("token_embd.weight", (0,))[0])
    return tree | {"tied": "output.weight" not in store.shapes}


def family_of(store: GgufStore) -> Family:
    """The family of a file; BadInput for an architecture that is not read."""
    name = store.fields.get(ARCHITECTURE)
    if name not in GGUF:
        raise BadInput(
            f"{store.source}: {ARCHITECTURE} is {name!r}, which no model here has; "
            f"{' and '.join(GGUF)} are read"
        )
    if "rope_freqs.weight" in store.shapes:
        raise BadInput(
            f"{store.source} holds the tensor 'rope_freqs.weight': its rotary positions have "
            "frequencies of their own, which no model here has"
        )
    return GGUF[name]


def read_llama(f: Fields) -> DecoderConfig:
    """LLaMA, and Mixtral, which has the same architecture there."""
    f.only(**WITHOUT)
    f.only(**{"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "rope.scale_linear": 1.0})
    d_model, heads = f.count("embedding_length"), f.count("attention.head_count")
    size = f.count("attention.key_length", max(d_model // heads, 1))
    f.only(**{"attention.value_length": size})
    return DecoderConfig(
        vocab_size=f.count("vocab_size"),
        context_length=f.count("context_length"),
        num_layers=f.count("block_count"),
        d_model=d_model,
        num_heads=heads,
        num_kv_heads=f.count("attention.head_count_kv", heads),
        d_ff=f.count("feed_forward_length"),
        attention=AttentionConfig(
            head_dim=0 if size * heads == d_model else size,
            pattern=f"window:{f.count('attention.sliding_window')}"
            if f.has("attention.sliding_window")
            else "causal",
        ),
        positions="rotary",
        rotary=RotaryConfig(
            f.positive("rope.freq_base", 10_000.0),
            f.count("rope.dimension_count", size) / size,
        ),
        norm="rmsnorm",
        norm_epsilon=_short(f.positive("attention.layer_norm_rms_epsilon")),
        activation="swiglu",
        biases="none",
        experts=ExpertsConfig(
            count=f.count("expert_count", 0), top_k=f.count("expert_used_count", 0) or 2
        ),
        tied_embeddings=f.flag("tied", False),
    )


def read_gpt2(f: Fields) -> DecoderConfig:
    """GPT-2."""
    f.only(**WITHOUT)
    return DecoderConfig(
        vocab_size=f.count("vocab_size"),
        context_length=f.count("context_length"),
        num_layers=f.count("block_count"),
        d_model=f.count("embedding_length"),
        num_heads=f.count("attention.head_count"),
        d_ff=f.count("feed_forward_length"),
        norm_epsilon=_short(f.positive("attention.layer_norm_epsilon")),
        tied_embeddings=f.flag("tied", False),
    )


def _short(value: float) -> float:
    """The number that someone wrote, of one that went through float32."""
    return float(f"{value:.6g}")


GGUF = {
    "llama": Family(
        name="gguf llama",
        architecture="llama",
        read=read_llama,
        write=lambda config: {},
        rows=(
            Row("embedding", "token_embd.weight"),
            Row("layer/attention_norm/scale", "blk.{i}.attn_norm.weight"),
            Row("layer/mlp_norm/scale", "blk.{i}.ffn_norm.weight"),
            *separate("blk.{i}.attn_{x}.weight", "(H K~) D"),
            Row("layer/attention/output", "blk.{i}.attn_output.weight", "D (H K)"),
            Row("layer/mlp/gate", "blk.{i}.ffn_gate.weight", "F D"),
            Row("layer/mlp/up", "blk.{i}.ffn_up.weight", "F D"),
            Row("layer/mlp/down", "blk.{i}.ffn_down.weight", "D F"),
            Row("layer/experts/router", "blk.{i}.ffn_gate_inp.weight", "X D"),
            Row("layer/experts/gate", "blk.{i}.ffn_gate_exps.weight", "X F D"),
            Row("layer/experts/up", "blk.{i}.ffn_up_exps.weight", "X F D"),
            Row("layer/experts/down", "blk.{i}.ffn_down_exps.weight", "X D F"),
            Row("final_norm/scale", "output_norm.weight"),
            Row("head", "output.weight"),
        ),
    ),
    "gpt2": Family(
        name="gguf gpt2",
        architecture="gpt2",
        read=read_gpt2,
        write=lambda config: {},
        rows=(
            Row("embedding", "token_embd.weight"),
            Row("positions", "position_embd.weight"),
            *norm("layer/attention_norm", "blk.{i}.attn_norm"),
            *norm("layer/mlp_norm", "blk.{i}.ffn_norm"),
            *qkv("blk.{i}.attn_qkv.weight", "(c H K) D", "blk.{i}.attn_qkv.bias", "(c H K)"),
            *linear("layer/attention/output", "blk.{i}.attn_output", "D (H K)"),
            *linear("layer/mlp/up", "blk.{i}.ffn_up", "F D"),
            *linear("layer/mlp/down", "blk.{i}.ffn_down", "D F"),
            *norm("final_norm", "output_norm"),
            Row("head", "output.weight"),
        ),
    ),
}
