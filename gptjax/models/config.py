"""What a decoder is made of, in the field's words. Everything derivable is a property."""

from dataclasses import dataclass, field
from typing import Literal

from gptjax.errors import BadInput, check_types
from gptjax.ops.patterns import Causal

Activation = Literal["gelu_tanh", "gelu_erf", "relu", "swiglu", "geglu"]


# Far beyond any model, near enough to answer at once.
LIMITS = {"num_layers": 4096, "d_model": 2**20, "num_heads": 2**16, "vocab_size": 2**24}


@dataclass(frozen=True)
class AttentionConfig:
    """Which pairs attend, and the code that computes them."""

    pattern: Causal = field(default_factory=Causal)
    kernel: Literal["auto", "dense", "blocked", "cudnn"] = "auto"


@dataclass(frozen=True)
class DecoderConfig:
    """A dense decoder-only transformer (arXiv 1706.03762 without its encoder)."""

    vocab_size: int = 257
    context_length: int = 256  # rows of the learned position table, and the longest sequence
    num_layers: int = 4
    d_model: int = 128
    num_heads: int = 4
    num_kv_heads: int = 0  # 0: as many as heads; 1 is multi-query (arXiv 1911.02150)
    head_dim: int = 0  # 0: d_model / num_heads
    d_ff: int = 0  # 0: 4 d_model, or for gated units 8/3 d_model rounded up to 32
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    positions: Literal["learned", "rotary", "alibi", "none"] = "learned"
    rotary_base: float = 10_000.0
    rotary_fraction: float = 1.0  # of each head that turns (GPT-NeoX: 0.25)
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_epsilon: float = 1e-5
    block: Literal["pre", "post", "parallel"] = "pre"
    activation: Activation = "gelu_tanh"
    biases: Literal["all", "mlp", "norm", "none"] = "all"  # "mlp": of norms too (GPT-J)
    tied_embeddings: bool = True
    dropout: float = 0.0  # of embeddings and residual branches, not of attention weights
    init: Literal["gpt2", "fan_in"] = "gpt2"  # N(0, 0.02), or N(0, 1 / fan_in)
    layers: Literal["unrolled", "scan"] = "unrolled"
    remat: Literal["none", "products", "block"] = "none"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.d_model // self.num_heads

    @property
    def gated(self) -> bool:
        return self.activation in ("swiglu", "geglu")

    @property
    def unit(self) -> str:
        """The elementwise function, also of a gate."""
        return {"swiglu": "silu", "geglu": "gelu_tanh"}.get(self.activation, self.activation)

    @property
    def ff_size(self) -> int:
        if self.d_ff:
            return self.d_ff
        return -(-8 * self.d_model // 96) * 32 if self.gated else 4 * self.d_model

    @property
    def mlp_biases(self) -> bool:
        return self.biases in ("all", "mlp")

    @property
    def attention_biases(self) -> bool:
        return self.biases == "all"

    @property
    def norm_biases(self) -> bool:
        return self.norm == "layernorm" and self.biases != "none"

    @property
    def rotary_size(self) -> int:
        """How many of a head's dimensions turn: even."""
        return int(self.head_size * self.rotary_fraction) // 2 * 2

    def validate(self) -> None:
        """One clear line for a decoder that cannot be."""
        check_types("model", self)
        for name in ("vocab_size", "context_length", "num_layers", "d_model", "num_heads"):
            if getattr(self, name) < 1:
                raise BadInput(f"model.{name} is {getattr(self, name)}; give 1 or more")
        for name in ("num_kv_heads", "head_dim", "d_ff"):
            if getattr(self, name) < 0:
                raise BadInput(f"model.{name} is {getattr(self, name)}; give 0 (derived) or more")
        for name, most in LIMITS.items():
            if getattr(self, name) > most:
                raise BadInput(f"model.{name} is {getattr(self, name)}; give at most {most}")
        if not self.head_dim and self.d_model % self.num_heads:
            raise BadInput(
                f"model.d_model = {self.d_model} is not divisible by model.num_heads = "
                f"{self.num_heads}; nearest number of heads: "
                f"{_nearest_divisor(self.d_model, self.num_heads)}"
            )
        if self.num_heads % self.kv_heads:
            raise BadInput(
                f"model.num_heads = {self.num_heads} is not divisible by model.num_kv_heads = "
                f"{self.kv_heads}; nearest: {_nearest_divisor(self.num_heads, self.kv_heads)}"
            )
        if self.positions == "rotary" and not 2 <= self.rotary_size <= self.head_size:
            raise BadInput(
                f"model.rotary_fraction = {self.rotary_fraction} turns {self.rotary_size} of "
                f"{self.head_size} dimensions of a head; give a fraction that turns at least 2"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise BadInput(f"model.dropout = {self.dropout}; give 0 or more and less than 1")
        if self.norm_epsilon <= 0 or self.rotary_base <= 0:
            raise BadInput("model.norm_epsilon and model.rotary_base must be above 0")


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = (n for n in range(1, number + 1) if number % n == 0)
    return min(divisors, key=lambda n: (abs(n - wanted), n))
