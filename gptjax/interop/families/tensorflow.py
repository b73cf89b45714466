"""GPT-2 as OpenAI's code names it (openai/gpt-2): hparams.json and model/h0/attn/c_attn/w."""

from gptjax.interop.family import Family, Row, norm, qkv
from gptjax.interop.fields import Fields
from gptjax.models.config import DecoderConfig


def read_hparams(f: Fields) -> DecoderConfig:
    """The five sizes of a hparams.json."""
    return DecoderConfig(
        vocab_size=f.count("n_vocab"),
        context_length=f.count("n_ctx"),
        num_layers=f.count("n_layer"),
        d_model=f.count("n_embd"),
        num_heads=f.count("n_head"),
    )


def matrix(ours: str, theirs: str, layout: str) -> tuple[Row, ...]:
    """Rows of a convolution of width 1 and its bias."""
    return Row(ours, f"{theirs}/w", f"1 {layout}"), Row(f"{ours}_bias", f"{theirs}/b")


TENSORFLOW = Family(
    name="tensorflow gpt2",
    architecture="gpt2",
    read=read_hparams,
    write=lambda config: {},
    rows=(
        Row("embedding", "model/wte"),
        Row("positions", "model/wpe"),
        *norm("layer/attention_norm", "model/h{i}/ln_1", "g"),
        *norm("layer/mlp_norm", "model/h{i}/ln_2", "g"),
        *qkv("model/h{i}/attn/c_attn/w", "1 D (c H K)", "model/h{i}/attn/c_attn/b", "(c H K)"),
        *matrix("layer/attention/output", "model/h{i}/attn/c_proj", "(H K) D"),
        *matrix("layer/mlp/up", "model/h{i}/mlp/c_fc", "D F"),
        *matrix("layer/mlp/down", "model/h{i}/mlp/c_proj", "F D"),
        *norm("final_norm", "model/ln_f", "g"),
    ),
    body="model/",
)
