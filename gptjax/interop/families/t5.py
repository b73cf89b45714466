"""T5 1.0 and 1.1, mT5, UMT5 and BART, as transformers names them.

Whether a head of its own stands beside T5's table of tokens is told by the tensors: releases of
transformers since 5 write tie_word_embeddings as true in either case. It also says whether logits
are scaled, as T5 1.0 does and 1.1 does not; the releases read it differently (see `scaled`).
"""

import math

from gptjax.errors import BadInput
from gptjax.interop.family import Family, Row, Shapes, linear, norm, separate
from gptjax.interop.fields import ACTIVATIONS, THEIR_ACTIVATIONS, Fields
from gptjax.models.config import AttentionConfig, EmbeddingConfig
from gptjax.models.kinds import EncoderDecoderConfig

UNITS = {name: (unit, name) for name, unit in ACTIVATIONS.items()}  # ours, and dense_act_fn
UNITS |= {
    "gated-gelu": ("geglu", "gelu_new"),
    "gated-gelu_new": ("geglu", "gelu_new"),
    "gated-silu": ("swiglu", "silu"),
}
THEIR_UNITS = THEIR_ACTIVATIONS | {"geglu": "gated-gelu", "swiglu": "gated-silu"}


def t5_told(shapes: Shapes, alike) -> dict:
    """Whether the head is the table of tokens: a file may hold the same matrix twice."""
    there = {"lm_head.weight", "shared.weight"} <= shapes.keys()
    return {"tied": not there or alike("lm_head.weight", "shared.weight")}


def scaled(f: Fields) -> bool:
    """Whether logits are divided by the root of the width.

    Releases before 5 scale all three where embeddings are tied. Since then T5 has a field of its
    own, mT5 never scales, and UMT5 always does: also a published one, whose config says false.
    """
    tied = f.flag("tie_word_embeddings", True)
    kind = f.get("model_type", "t5")
    if kind == "mt5":
        return tied and str(f.get("transformers_version", "5")).startswith(("2.", "3.", "4."))
    return f.flag("scale_decoder_outputs", tied) if kind == "t5" else tied


def read_t5(f: Fields) -> EncoderDecoderConfig:
    """t5, mt5 and umt5, which has biases of distances in every layer."""
    unit, dense = f.chosen("feed_forward_proj", UNITS, "relu" if is_t5(f) else "gated-gelu")
    f.only(is_encoder_decoder=True, is_decoder=False, dense_act_fn=dense)
    f.agree(d_model="hidden_size", num_heads="num_attention_heads", d_kv="head_dim")
    f.agree(num_layers="num_hidden_layers")
    f.only(is_gated_act=unit in ("geglu", "swiglu"))
    d_model, heads, layers = f.count("d_model"), f.count("num_heads"), f.count("num_layers")
    size, after = f.count("d_kv", 64), f.count("num_decoder_layers", layers)
    tied = f.flag("tie_word_embeddings", True)
    return EncoderDecoderConfig(
        vocab_size=f.count("vocab_size"),
        context_length=f.count("n_positions", 512),
        num_layers=layers,
        decoder_layers=0 if after == layers else after,
        d_model=d_model,
        num_heads=heads,
        d_ff=f.count("d_ff"),
        attention=AttentionConfig(
            head_dim=0 if size * heads == d_model else size,
            scale="one",
            buckets=f.count("relative_attention_num_buckets", 32),
            max_distance=f.count("relative_attention_max_distance", 128),
            bias_tables="layer" if f.get("model_type", "t5") == "umt5" else "shared",
        ),
        positions="relative_bias",
        norm="rmsnorm",
        norm_epsilon=f.positive("layer_norm_epsilon", 1e-6),
        activation=unit,
        biases="none",
        embedding=EmbeddingConfig(logit_scale=d_model**-0.5 if scaled(f) else 1.0),
        tied_embeddings=f.told.get("tied", tied),
        init="t5",
    )


def is_t5(f: Fields) -> bool:
    """Whether the feed-forward layers are plain where nothing is said."""
    return f.get("model_type", "t5") == "t5"


def write_t5(c: EncoderDecoderConfig) -> dict:
    given = c.embedding.logit_scale
    scale = abs(given - c.d_model**-0.5) < abs(given - 1)  # there are these two
    return {
        "vocab_size": c.vocab_size,
        "n_positions": c.context_length,
        "num_layers": c.num_layers,
        "num_decoder_layers": c.decoder.num_layers,
        "d_model": c.d_model,
        "num_heads": c.num_heads,
        "d_kv": c.head_size,
        "d_ff": c.ff_size,
        "relative_attention_num_buckets": c.attention.buckets,
        "relative_attention_max_distance": c.attention.max_distance,
        "layer_norm_epsilon": c.norm_epsilon,
        "feed_forward_proj": THEIR_UNITS.get(c.activation, "relu"),
        "is_encoder_decoder": True,
        "tie_word_embeddings": scale,
        "scale_decoder_outputs": scale,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }


def gated(c: EncoderDecoderConfig) -> bool:
    """Whether feed-forward layers have a gate."""
    return c.gated


def ungated(c: EncoderDecoderConfig) -> bool:
    """Whether they have none."""
    return not c.gated


def t5_stack(side: str, own_biases: bool) -> tuple[Row, ...]:
    """Rows of one of T5's stacks; own_biases: whether every layer has a table of distances."""
    theirs, ours = f"{side}.block.{{i}}.layer", f"{side}/layer"
    table = "0.SelfAttention.relative_attention_bias.weight"
    ff = f"{theirs}.{2 if side == 'decoder' else 1}"
    rows = (
        Row(f"{ours}/attention_norm/scale", f"{theirs}.0.layer_norm.weight"),
        *separate(f"{theirs}.0.SelfAttention.{{x}}.weight", ours=f"{ours}/attention"),
        Row(f"{ours}/attention/output", f"{theirs}.0.SelfAttention.o.weight", "D (H K)"),
        Row(f"{ours}/mlp_norm/scale", f"{ff}.layer_norm.weight"),
        Row(f"{ours}/mlp/up", f"{ff}.DenseReluDense.wi.weight", "F D", when=ungated),
        Row(f"{ours}/mlp/gate", f"{ff}.DenseReluDense.wi_0.weight", "F D"),
        Row(f"{ours}/mlp/up", f"{ff}.DenseReluDense.wi_1.weight", "F D", when=gated),
        Row(f"{ours}/mlp/down", f"{ff}.DenseReluDense.wo.weight", "D F"),
        Row(f"{side}/final_norm/scale", f"{side}.final_layer_norm.weight"),
        Row(f"{ours}/attention/distance_scores", f"{theirs}.{table}")
        if own_biases
        else Row(f"{side}/distance_scores", f"{side}.block.0.layer.{table}"),
    )
    if side == "encoder":
        return rows
    return (
        *rows,
        Row(f"{ours}/cross_norm/scale", f"{theirs}.1.layer_norm.weight"),
        *separate(f"{theirs}.1.EncDecAttention.{{x}}.weight", ours=f"{ours}/cross_attention"),
        Row(f"{ours}/cross_attention/output", f"{theirs}.1.EncDecAttention.o.weight", "D (H K)"),
    )


def t5(name: str, title: str, own_biases: bool = False) -> Family:
    """A family with the names of T5."""
    return Family(
        name=name,
        architecture=f"{title}ForConditionalGeneration",
        read=read_t5,
        write=write_t5,
        rows=(
            Row("embedding", "shared.weight"),
            Row("head", "lm_head.weight"),
            *t5_stack("encoder", own_biases),
            *t5_stack("decoder", own_biases),
        ),
        # Old files hold biases between the stacks that no release reads.
        ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
        alias="lm_head.weight",
        kinds=("encoder_decoder",),
        told=t5_told,
        copies=tuple((f"{side}.embed_tokens.weight", "embedding") for side in STACKS),
        start="pad",
    )


STACKS = ("encoder", "decoder")
T5, MT5, UMT5 = t5("t5", "T5"), t5("mt5", "MT5"), t5("umt5", "UMT5", own_biases=True)


def bart_told(shapes: Shapes, alike) -> dict:
    """Whether logits have a bias."""
    return {"bias": "final_logits_bias" in shapes}


def read_bart(f: Fields) -> EncoderDecoderConfig:
    """bart: norms behind the branches and above the embedding, positions from the third row on."""
    f.only(is_encoder_decoder=True, is_decoder=False, normalize_before=False)
    f.agree(d_model="hidden_size", encoder_attention_heads="num_attention_heads")
    f.agree(encoder_layers="num_hidden_layers")
    f.only(normalize_embedding=True, add_final_layer_norm=False, static_position_embeddings=False)
    d_model, layers = f.count("d_model"), f.count("encoder_layers")
    after = f.count("decoder_layers", layers)
    for name in ("attention_heads", "ffn_dim"):
        one, other = (f.count(f"{side}_{name}") for side in STACKS)
        if one != other:
            raise BadInput(
                f"{f.source}: encoder_{name} is {one} and decoder_{name} is {other}; models here "
                "have one for both"
            )
    return EncoderDecoderConfig(
        vocab_size=f.count("vocab_size"),
        context_length=f.count("max_position_embeddings", 1024),
        num_layers=layers,
        decoder_layers=0 if after == layers else after,
        d_model=d_model,
        num_heads=f.count("encoder_attention_heads"),
        d_ff=f.count("encoder_ffn_dim"),
        block="post",
        activation=f.chosen("activation_function", ACTIVATIONS, "gelu"),
        embedding=EmbeddingConfig(
            norm=True,
            scale=math.sqrt(d_model) if f.flag("scale_embedding", False) else 1.0,
            head_bias=f.told.get("bias", True),
            position_offset=2,
        ),
        tied_embeddings=f.flag("tie_word_embeddings", True),
    )


def write_bart(c: EncoderDecoderConfig) -> dict:
    sizes = {"attention_heads": c.num_heads, "ffn_dim": c.ff_size}
    return {f"{side}_{name}": size for side in STACKS for name, size in sizes.items()} | {
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context_length,
        "encoder_layers": c.num_layers,
        "decoder_layers": c.decoder.num_layers,
        "d_model": c.d_model,
        "activation_function": THEIR_ACTIVATIONS.get(c.activation, "gelu"),
        "scale_embedding": abs(c.embedding.scale - math.sqrt(c.d_model))
        < abs(c.embedding.scale - 1),
        "tie_word_embeddings": c.tied_embeddings,
        "is_encoder_decoder": True,
        "pad_token_id": min(1, c.vocab_size - 1),
        "decoder_start_token_id": min(2, c.vocab_size - 1),
        "forced_eos_token_id": None,
    }


def bart_stack(side: str) -> tuple[Row, ...]:
    """Rows of one of BART's stacks."""
    theirs, ours = f"model.{side}.layers.{{i}}", f"{side}/layer"

    def attention(mine: str, name: str) -> tuple[Row, ...]:
        return (
            *separate(f"{theirs}.{name}.{{x}}_proj.weight", ours=f"{ours}/{mine}"),
            *linear(f"{ours}/{mine}/output", f"{theirs}.{name}.out_proj", "D (H K)"),
        )

    rows = (
        Row(f"{side}/positions", f"model.{side}.embed_positions.weight"),
        *norm(f"{side}/embedding_norm", f"model.{side}.layernorm_embedding"),
        *attention("attention", "self_attn"),
        *norm(f"{ours}/attention_norm", f"{theirs}.self_attn_layer_norm"),
        *linear(f"{ours}/mlp/up", f"{theirs}.fc1", "F D"),
        *linear(f"{ours}/mlp/down", f"{theirs}.fc2", "D F"),
        *norm(f"{ours}/mlp_norm", f"{theirs}.final_layer_norm"),
    )
    if side == "encoder":
        return rows
    cross = norm(f"{ours}/cross_norm", f"{theirs}.encoder_attn_layer_norm")
    return (*rows, *attention("cross_attention", "encoder_attn"), *cross)


BART = Family(
    name="bart",
    architecture="BartForConditionalGeneration",
    read=read_bart,
    write=write_bart,
    rows=(
        Row("embedding", "model.shared.weight"),
        Row("head", "lm_head.weight"),
        Row("head_bias", "final_logits_bias", "1 V"),
        *bart_stack("encoder"),
        *bart_stack("decoder"),
    ),
    body="model.",
    alias="lm_head.weight",
    kinds=("encoder_decoder",),
    told=bart_told,
    copies=tuple((f"model.{side}.embed_tokens.weight", "embedding") for side in STACKS),
    start="eos",
)
