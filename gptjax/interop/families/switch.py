"""Switch Transformers (arXiv 2101.03961), as transformers names them.

An expert takes `expert_capacity` tokens of a sequence there, the earlier ones first and whatever
the sequence's length: `experts.most` here. A capacity of at least the context is none at all, and
`experts.capacity`, a share of an even load, has no word there: such a model is not written. With
a cache transformers drops by what it is given at once, models here drop nothing.
"""

import dataclasses

from gptjax.errors import BadInput
from gptjax.interop.families.t5 import STACKS, t5_stack
from gptjax.interop.family import Family, Row
from gptjax.interop.fields import ACTIVATIONS, THEIR_ACTIVATIONS, Fields
from gptjax.models.config import AttentionConfig, EmbeddingConfig
from gptjax.models.config_parts import ExpertsConfig
from gptjax.models.kinds import EncoderDecoderConfig


def sparse(layers: int, count: int) -> set[int]:
    """The layers with experts where so many are asked for, as transformers places them."""
    step = layers // count if count else layers
    return {i for i in range(layers) if step == 1 or i % max(step, 1) == 1}


def every(f: Fields, depths: dict[str, int]) -> int:
    """Of how many layers the last has experts; BadInput where no such number makes theirs."""
    wanted = {
        side: sparse(depth, f.count(f"num_sparse_{side}_layers", 3))
        for side, depth in depths.items()
    }
    for number in range(1, min(depths.values()) + 1):
        ours = {s: {i for i in range(n) if i % number == number - 1} for s, n in depths.items()}
        if ours == wanted:
            return number
    told = ", ".join(f"{side} {sorted(layers)}" for side, layers in wanted.items())
    raise BadInput(
        f"{f.source}: num_sparse_encoder_layers and num_sparse_decoder_layers put experts into the "
        f"layers {told}; models here have them in the last of every so many, such as in every "
        "second (6 of 12 layers)"
    )


def read_switch(f: Fields) -> EncoderDecoderConfig:
    """switch_transformers: T5 with experts in some layers."""
    unit = f.chosen("dense_act_fn", ACTIVATIONS, "relu")
    f.only(is_encoder_decoder=True, is_decoder=False, is_gated_act=False)
    f.only(router_bias=False, router_ignore_padding_tokens=False, router_dtype="float32")
    f.agree(d_model="hidden_size", num_heads="num_attention_heads", num_layers="num_hidden_layers")
    d_model, heads, layers = f.count("d_model"), f.count("num_heads"), f.count("num_layers")
    size, after = f.count("d_kv", 64), f.count("num_decoder_layers", layers)
    context, capacity = f.count("n_positions", 512), f.count("expert_capacity", 64)
    tied = f.flag("tie_word_embeddings", True)
    return EncoderDecoderConfig(
        vocab_size=f.count("vocab_size"),
        context_length=context,
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
        ),
        positions="relative_bias",
        norm="rmsnorm",
        norm_epsilon=f.positive("layer_norm_epsilon", 1e-6),
        activation=unit,
        biases="none",
        experts=ExpertsConfig(
            count=f.count("num_experts", 8),
            top_k=1,
            every=every(f, {"encoder": layers, "decoder": after}),
            most=capacity if capacity < context else 0,
            balance_weight=f.number("router_aux_loss_coef", 0.001),
            z_weight=f.number("router_z_loss_coef", 0.001),
            jitter=f.number("router_jitter_noise", 0.01),
            weights="as_routed",
        ),
        embedding=EmbeddingConfig(logit_scale=d_model**-0.5 if tied else 1.0),
        tied_embeddings=tied,
        init="t5",
    )


def write_switch(c: EncoderDecoderConfig) -> dict:
    e = c.experts
    return {
        "vocab_size": c.vocab_size,
        "n_positions": c.context_length,
        "num_layers": c.num_layers,
        "num_decoder_layers": c.decoder.num_layers,
        "num_sparse_encoder_layers": max(c.num_layers // e.every, 1),
        "num_sparse_decoder_layers": max(c.decoder.num_layers // e.every, 1),
        "num_experts": e.count,
        "expert_capacity": e.most or c.context_length,
        "router_bias": False,
        "router_jitter_noise": e.jitter,
        "router_aux_loss_coef": e.balance_weight,
        "router_z_loss_coef": e.z_weight,
        "d_model": c.d_model,
        "num_heads": c.num_heads,
        "d_kv": c.head_size,
        "d_ff": c.ff_size,
        "relative_attention_num_buckets": c.attention.buckets,
        "relative_attention_max_distance": c.attention.max_distance,
        "layer_norm_epsilon": c.norm_epsilon,
        "dense_act_fn": THEIR_ACTIVATIONS.get(c.activation, "relu"),
        "is_encoder_decoder": True,
        "tie_word_embeddings": c.tied_embeddings,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }


def stack(side: str) -> tuple[Row, ...]:
    """Rows of one of the two stacks: T5's, and experts beside the dense layers."""
    dense = (row for row in t5_stack(side, False) if "wi_" not in row.theirs)
    rows = (
        dataclasses.replace(row, theirs=row.theirs.replace("DenseReluDense", "mlp"), when=None)
        for row in dense
    )
    theirs = f"{side}.block.{{i}}.layer.{2 if side == 'decoder' else 1}.mlp"
    ours, one = f"{side}/layer/experts", f"{theirs}.experts.expert_{{e}}"
    return (
        *rows,
        Row(f"{ours}/router", f"{theirs}.router.classifier.weight", "X D"),
        Row(f"{ours}/up", f"{one}.wi.weight", "F D"),
        Row(f"{ours}/down", f"{one}.wo.weight", "D F"),
    )


SWITCH = Family(
    name="switch_transformers",
    architecture="SwitchTransformersForConditionalGeneration",
    read=read_switch,
    write=write_switch,
    rows=(
        Row("embedding", "shared.weight"),
        Row("head", "lm_head.weight"),
        *stack("encoder"),
        *stack("decoder"),
    ),
    alias="lm_head.weight",
    kinds=("encoder_decoder",),
    copies=tuple((f"{side}.embed_tokens.weight", "embedding") for side in STACKS),
    start="pad",
)
