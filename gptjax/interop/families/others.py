"""OPT, BLOOM and XLNet, as transformers names them."""

from gptjax.interop.family import Family, Row, linear, norm, qkv, separate
from gptjax.interop.fields import ACTIVATIONS, THEIR_ACTIVATIONS, Fields
from gptjax.models.config import AttentionConfig, DecoderConfig, EmbeddingConfig
from gptjax.models.kinds import TwoStreamConfig


def read_opt(f: Fields) -> DecoderConfig:
    """opt: positions from the third row on; the 350M model has norms behind, narrow tokens."""
    f.only(enable_bias=True, layer_norm_elementwise_affine=True, _remove_final_layer_norm=False)
    d_model = f.count("hidden_size")
    size = f.count("word_embed_proj_dim", d_model)
    return DecoderConfig(
        vocab_size=f.count("vocab_size"),
        context_length=f.count("max_position_embeddings"),
        num_layers=f.count("num_hidden_layers"),
        d_model=d_model,
        num_heads=f.count("num_attention_heads"),
        d_ff=f.count("ffn_dim"),
        tied_embeddings=f.flag("tie_word_embeddings", True),
        block="pre" if f.flag("do_layer_norm_before", True) else "post",
        activation=f.chosen("activation_function", ACTIVATIONS, "relu"),
        embedding=EmbeddingConfig(size=0 if size == d_model else size, position_offset=2),
    )


def write_opt(c: DecoderConfig) -> dict:
    return {
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context_length,
        "num_hidden_layers": c.num_layers,
        "hidden_size": c.d_model,
        "num_attention_heads": c.num_heads,
        "ffn_dim": c.ff_size,
        "tie_word_embeddings": c.tied_embeddings,
        "do_layer_norm_before": c.block == "pre",
        "activation_function": THEIR_ACTIVATIONS.get(c.activation, "relu"),
        "word_embed_proj_dim": c.embedding_size,
        "pad_token_id": min(1, c.vocab_size - 1),  # its row of the embedding is zeroed at most
    }


OPT = Family(
    name="opt",
    architecture="OPTForCausalLM",
    read=read_opt,
    write=write_opt,
    rows=(
        Row("embedding", "model.decoder.embed_tokens.weight"),
        Row("positions", "model.decoder.embed_positions.weight"),
        Row("embedding_in", "model.decoder.project_in.weight", "D E"),
        Row("embedding_out", "model.decoder.project_out.weight", "E D"),
        *norm("layer/attention_norm", "model.decoder.layers.{i}.self_attn_layer_norm"),
        *norm("layer/mlp_norm", "model.decoder.layers.{i}.final_layer_norm"),
        *separate("model.decoder.layers.{i}.self_attn.{x}_proj.weight"),
        *linear("layer/attention/output", "model.decoder.layers.{i}.self_attn.out_proj", "D (H K)"),
        *linear("layer/mlp/up", "model.decoder.layers.{i}.fc1", "F D"),
        *linear("layer/mlp/down", "model.decoder.layers.{i}.fc2", "D F"),
        *norm("final_norm", "model.decoder.final_layer_norm"),
        Row("head", "lm_head.weight"),
    ),
    body="model.",
    alias="lm_head.weight",
)


def read_bloom(f: Fields) -> DecoderConfig:
    """bloom: ALiBi, a norm above the embedding."""
    f.only(apply_residual_connection_post_layernorm=False)
    f.agree(n_layer="num_hidden_layers", n_head="num_attention_heads", n_embed="hidden_size")
    heads = "num_attention_heads" if f.has("num_attention_heads") else "n_head"
    return DecoderConfig(
        vocab_size=f.count("vocab_size"),
        context_length=f.count("seq_length", 2048),
        num_layers=f.count("num_hidden_layers" if f.has("num_hidden_layers") else "n_layer"),
        d_model=f.count("n_embed" if f.has("n_embed") else "hidden_size"),
        num_heads=f.count(heads),
        norm_epsilon=f.positive("layer_norm_epsilon", 1e-5),
        tied_embeddings=f.flag("tie_word_embeddings", True),
        positions="alibi",
        embedding=EmbeddingConfig(norm=True),
    )


def write_bloom(c: DecoderConfig) -> dict:
    return {
        "vocab_size": c.vocab_size,
        "seq_length": c.context_length,
        "n_layer": c.num_layers,
        "hidden_size": c.d_model,
        "n_head": c.num_heads,
        "layer_norm_epsilon": c.norm_epsilon,
        "tie_word_embeddings": c.tied_embeddings,
    }


BLOOM = Family(
    name="bloom",
    architecture="BloomForCausalLM",
    read=read_bloom,
    write=write_bloom,
    rows=(
        Row("embedding", "transformer.word_embeddings.weight"),
        *norm("embedding_norm", "transformer.word_embeddings_layernorm"),
        *norm("layer/attention_norm", "transformer.h.{i}.input_layernorm"),
        *norm("layer/mlp_norm", "transformer.h.{i}.post_attention_layernorm"),
        *qkv(
            "transformer.h.{i}.self_attention.query_key_value.weight",
            "(H c K) D",
            "transformer.h.{i}.self_attention.query_key_value.bias",
            "(H c K)",
        ),
        *linear("layer/attention/output", "transformer.h.{i}.self_attention.dense", "D (H K)"),
        *linear("layer/mlp/up", "transformer.h.{i}.mlp.dense_h_to_4h", "F D"),
        *linear("layer/mlp/down", "transformer.h.{i}.mlp.dense_4h_to_h", "D F"),
        *norm("final_norm", "transformer.ln_f"),
        Row("head", "lm_head.weight"),
    ),
    body="transformer.",
    alias="lm_head.weight",
)


def read_xlnet(f: Fields) -> DecoderConfig | TwoStreamConfig:
    """xlnet: both streams, or with attn_type `uni` Transformer-XL's scores and memory."""
    ways = f.chosen("attn_type", {"bi": "two_stream", "uni": "decoder"}, "bi")
    f.agree(d_model="hidden_size", n_layer="num_hidden_layers", n_head="num_attention_heads")
    f.agree(vocab_size="n_token")
    f.only(clamp_len=-1, same_length=False, bi_data=False)
    d_model, heads = f.count("d_model"), f.count("n_head")
    size = f.count("d_head", max(d_model // heads, 1))
    head_dim = 0 if size * heads == d_model else size
    common = {
        "vocab_size": f.count("vocab_size"),
        "context_length": f.count("context_length", 512),
        "num_layers": f.count("n_layer"),
        "d_model": d_model,
        "num_heads": heads,
        "d_ff": f.count("d_inner"),
        "norm_epsilon": f.positive("layer_norm_eps", 1e-12),
        "biases": "mlp",
        "activation": f.chosen("ff_activation", ACTIVATIONS, "gelu"),
        "tied_embeddings": f.flag("tie_word_embeddings", True),
    }
    if ways == "two_stream":
        return TwoStreamConfig(
            **common,
            attention=AttentionConfig("bidirectional", head_dim=head_dim),
            embedding=EmbeddingConfig(head_bias=True, types=2),
        )
    memory = f.count("mem_len", 0) if f.flag("use_mems_eval", True) else 0
    return DecoderConfig(
        **common,
        attention=AttentionConfig(head_dim=head_dim, memory=memory),
        positions="relative",
        block="post",
        embedding=EmbeddingConfig(head_bias=True),
    )


def write_xlnet(c: DecoderConfig | TwoStreamConfig) -> dict:
    return {
        "vocab_size": c.vocab_size,
        "context_length": c.context_length,  # ours: transformers has no longest sequence
        "n_layer": c.num_layers,
        "d_model": c.d_model,
        "n_head": c.num_heads,
        "d_head": c.head_size,
        "d_inner": c.ff_size,
        "mem_len": c.attention.memory or None,
        "use_mems_eval": c.attention.memory > 0,
        "attn_type": "bi" if c.kind == "two_stream" else "uni",
        "layer_norm_eps": c.norm_epsilon,
        "ff_activation": THEIR_ACTIVATIONS.get(c.activation, "gelu"),
        "tie_word_embeddings": c.tied_embeddings,
    }


def xlnet_zeros(c: DecoderConfig | TwoStreamConfig) -> dict[str, tuple[int, ...]]:
    """Embeddings of segments and of masks, which reading from left to right has no use for."""
    if c.kind == "two_stream":
        return {}
    heads = (c.num_heads, c.head_size)
    zeros: dict[str, tuple[int, ...]] = {"transformer.mask_emb": (1, 1, c.d_model)}
    for i in range(c.num_layers):
        zeros[f"transformer.layer.{i}.rel_attn.r_s_bias"] = heads
        zeros[f"transformer.layer.{i}.rel_attn.seg_embed"] = (2, *heads)
    return zeros


XLNET = Family(
    name="xlnet",
    architecture="XLNetLMHeadModel",
    kinds=("decoder", "two_stream"),
    read=read_xlnet,
    write=write_xlnet,
    rows=(
        Row("embedding", "transformer.word_embedding.weight"),
        Row("layer/attention/query", "transformer.layer.{i}.rel_attn.q"),
        Row("layer/attention/key", "transformer.layer.{i}.rel_attn.k"),
        Row("layer/attention/value", "transformer.layer.{i}.rel_attn.v"),
        Row("layer/attention/output", "transformer.layer.{i}.rel_attn.o", "D H K"),
        Row("layer/attention/distance", "transformer.layer.{i}.rel_attn.r"),
        Row("layer/attention/content_bias", "transformer.layer.{i}.rel_attn.r_w_bias"),
        Row("layer/attention/place_bias", "transformer.layer.{i}.rel_attn.r_r_bias"),
        Row("layer/attention/type_keys", "transformer.layer.{i}.rel_attn.seg_embed"),
        Row("layer/attention/type_bias", "transformer.layer.{i}.rel_attn.r_s_bias"),
        Row("query_start", "transformer.mask_emb", "1 1 D"),
        *norm("layer/attention_norm", "transformer.layer.{i}.rel_attn.layer_norm"),
        *linear("layer/mlp/up", "transformer.layer.{i}.ff.layer_1", "F D"),
        *linear("layer/mlp/down", "transformer.layer.{i}.ff.layer_2", "D F"),
        *norm("layer/mlp_norm", "transformer.layer.{i}.ff.layer_norm"),
        Row("head", "lm_loss.weight"),
        Row("head_bias", "lm_loss.bias"),
    ),
    ignored=(
        r"transformer\.mask_emb",
        r"transformer\.layer\.\d+\.rel_attn\.(r_s_bias|seg_embed)",
    ),
    alias="lm_loss.weight",
    zeros=xlnet_zeros,
    around="xlnet",
)
