"""LLaMA as its authors name it: params.json, rotary positions that turn neighbours.

Mistral's own files (params.json, consolidated.safetensors) have the same names.
"""

from gptjax.errors import BadInput, did_you_mean
from gptjax.interop.family import Family, Row, separate
from gptjax.interop.fields import Fields
from gptjax.interop.stores import Store
from gptjax.models.config import AttentionConfig, DecoderConfig, RotaryConfig

READ = (
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "hidden_dim",
    "ffn_dim_multiplier",
    "multiple_of",
    "vocab_size",
    "norm_eps",
    "rope_theta",
    "sliding_window",
    "max_seq_len",
    "max_position_embeddings",
    "tied_embeddings",
)
OF_RUNNING = ("max_batch_size", "model_parallel", "model_parallel_size")
# Fields that other models have, with the value that says they are not there.
WITHOUT = {
    "causal": True,
    "model_type": "transformer",
    "moe": None,
    "quantization": None,
    "use_biases": False,
    "use_qk_norm": False,
    "use_scaled_rope": False,
}


def completed(tree: dict, store: Store) -> dict:
    """A params.json with what only the tensors tell: the vocabulary, where it is not said."""
    shape = store.shapes.get("tok_embeddings.weight", (0,))
    size = tree.get("vocab_size")
    given = size if type(size) is int and size > 0 else shape[0]  # LLaMA's first files say -1
    return tree | {"vocab_size": given}


def read_meta(f: Fields) -> DecoderConfig:
    """The sizes of a params.json; the feed-forward width follows from rules where it is not given.

    Where no longest sequence is named it is 2048, that of the first models. The head is the table
    of tokens only where `tied_embeddings` says so. BadInput for a field of unknown meaning.
    """
    f.only(**WITHOUT)
    known = (*READ, *OF_RUNNING, *WITHOUT)
    for name, value in f.tree.items():
        if value is not None and name not in known:
            near = did_you_mean(name, known)
            raise BadInput(f"{f.source}: {name} is {value!r}, which no model here has{near}")
    d_model, heads = f.count("dim"), f.count("n_heads")
    width = f.count("hidden_dim", 0)
    if not width:
        width = int(int(8 * d_model / 3) * f.number("ffn_dim_multiplier", 1.0))
        step = f.count("multiple_of", 256)
        width = -(-width // step) * step
    size = f.count("head_dim", 0)
    return DecoderConfig(
        vocab_size=f.count("vocab_size"),
        context_length=f.count("max_seq_len", f.count("max_position_embeddings", 2048)),
        num_layers=f.count("n_layers"),
        d_model=d_model,
        num_heads=heads,
        num_kv_heads=f.count("n_kv_heads", heads),
        d_ff=width,
        attention=AttentionConfig(
            head_dim=0 if size * heads == d_model else size,
            pattern=f"window:{f.count('sliding_window')}" if f.has("sliding_window") else "causal",
        ),
        positions="rotary",
        rotary=RotaryConfig(f.positive("rope_theta", 10_000.0)),
        norm="rmsnorm",
        norm_epsilon=f.positive("norm_eps", 1e-5),
        activation="swiglu",
        biases="none",
        tied_embeddings=f.flag("tied_embeddings", False),
    )


META = Family(
    name="meta",
    architecture="llama",
    read=read_meta,
    write=lambda config: {},
    rows=(
        Row("embedding", "tok_embeddings.weight"),
        Row("layer/attention_norm/scale", "layers.{i}.attention_norm.weight"),
        Row("layer/mlp_norm/scale", "layers.{i}.ffn_norm.weight"),
        *separate("layers.{i}.attention.w{x}.weight", "(H K~) D"),
        Row("layer/attention/output", "layers.{i}.attention.wo.weight", "D (H K)"),
        Row("layer/mlp/gate", "layers.{i}.feed_forward.w1.weight", "F D"),
        Row("layer/mlp/down", "layers.{i}.feed_forward.w2.weight", "D F"),
        Row("layer/mlp/up", "layers.{i}.feed_forward.w3.weight", "F D"),
        Row("final_norm/scale", "norm.weight"),
        Row("head", "output.weight"),
    ),
    ignored=(r"rope\.freqs",),
    alias="output.weight",
)
