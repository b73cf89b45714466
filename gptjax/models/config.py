"""What a decoder is made of, in the field's words. Everything derivable is a property.

With `parametrization="mup"` (arXiv 2203.03466, table 8, its form with constant-variance heads) the
best learning rate of a narrow model is that of a wide one. Relative to the model of `base_width`,
at which nothing changes: hidden matrices start from a variance that falls as 1 / width and take
the rates of `training.optimizer.width_multipliers`; embeddings, positions, biases, norms and the
head keep theirs; logits are multiplied by base_width / width; attention scores by
sqrt(base head size) / head size. A tied matrix fits both of its roles. All sizes of a layer are
meant to grow together, by more heads or by larger ones; the number of key/value heads grows too
or is 1. Depth is not covered: its one rule is the residual branches' 1 / sqrt(2 N).
"""

import math
import re
from dataclasses import dataclass, field, replace
from typing import Literal

from gptjax.errors import BadInput, check_types
from gptjax.ops.patterns import Pattern, parse_layers

Activation = Literal["gelu_tanh", "gelu_erf", "quick_gelu", "relu", "swiglu", "geglu"]


# Far beyond any model, near enough to answer at once.
LIMITS = {
    "num_layers": 4096,
    "d_model": 2**20,
    "base_width": 2**20,
    "num_heads": 2**16,
    "vocab_size": 2**24,
}


@dataclass(frozen=True)
class AttentionConfig:
    """Which pairs attend, and the code that computes them."""

    # One that `python -m gptjax.ops.patterns` lists, such as strided:128. A slash parts layers, in
    # turn (causal/window:256), a bar groups of heads.
    pattern: str = "causal"
    kernel: Literal["auto", "dense", "blocked", "cudnn", "splash", "block_list"] = "auto"
    qk_dim: int = 0  # size of queries and keys in a head; 0: that of values
    base_head_dim: int = 0  # muP: the head size at the base width; 0: the same as here

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The patterns of the layers, in turn; BadInput for a text that names none."""
        return parse_layers(self.pattern)


@dataclass(frozen=True)
class RotaryConfig:
    """How rotary positions turn queries and keys (arXiv 2104.09864)."""

    base: float = 10_000.0
    fraction: float = 1.0  # of each head that turns (GPT-NeoX: 0.25)


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
    positions: Literal["learned", "factorised", "rotary", "alibi", "none"] = "learned"
    # Of factorised ones: a learned table for each axis of an array in raster order (32x32x3: rows,
    # columns and channels of an image), added up (arXiv 1904.10509, section 5.3).
    position_shape: str = ""
    rotary: RotaryConfig = field(default_factory=RotaryConfig)
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_epsilon: float = 1e-5
    block: Literal["pre", "post", "parallel"] = "pre"
    activation: Activation = "gelu_tanh"
    biases: Literal["all", "mlp", "norm", "none"] = "all"  # "mlp": there and in norms (GPT-J)
    tied_embeddings: bool = True
    dropout: float = 0.0  # of embeddings and residual branches, not of attention weights
    # N(0, 0.02); N(0, 1 / fan_in); the latter with head and queries zero (arXiv 2203.03466, D.2);
    # standard deviation 0.125 / sqrt(fan_in) and a head of zeros (arXiv 1904.10509, section 6)
    init: Literal["gpt2", "fan_in", "fan_in_zero", "sparse_transformer"] = "gpt2"
    parametrization: Literal["standard", "mup"] = "standard"  # mup: one rate for all
    base_width: int = 64  # of muP: the width at which it equals the standard parametrization
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
    def qk_size(self) -> int:
        """The size of queries and keys in a head."""
        return self.attention.qk_dim or self.head_size

    @property
    def position_axes(self) -> tuple[int, ...]:
        """The rows of every position table."""
        if self.positions == "learned":
            return (self.context_length,)
        if self.positions != "factorised":
            return ()
        return tuple(int(size) for size in self.position_shape.split("x"))

    @property
    def zero_head(self) -> bool:
        """Whether the head starts at zero."""
        return self.init in ("fan_in_zero", "sparse_transformer")

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
        """How many of a head's dimensions turn."""
        return int(self.qk_size * self.rotary.fraction)

    def layer_pattern(self, layer: int) -> Pattern:
        """Which pairs attend in a layer."""
        patterns = self.attention.patterns
        return patterns[layer % len(patterns)]

    def attention_pairs(self, length: int) -> float:
        """Query-key pairs that a sequence visits, the mean over layers and heads."""
        every = [self.layer_pattern(i) for i in range(self.num_layers)]
        return sum(p.pairs(length) / len(p.members) for p in every) / self.num_layers

    @property
    def width_ratio(self) -> float:
        """Under muP the width in base widths, otherwise 1."""
        return self.d_model / self.base_width if self.parametrization == "mup" else 1.0

    @property
    def head_ratio(self) -> float:
        """Under muP the head size in base head sizes, otherwise 1."""
        base = self.attention.base_head_dim if self.parametrization == "mup" else 0
        return self.qk_size / base if base else 1.0

    @property
    def score_scale(self) -> float:
        """What queries times keys are multiplied by: 1 / sqrt(K), under muP sqrt(base K) / K."""
        return 1.0 / math.sqrt(self.qk_size) / math.sqrt(self.head_ratio)

    def at_width(self, width: int, grow: Literal["heads", "head_dim"] = "heads") -> "DecoderConfig":
        """The same decoder at another width: all its sizes in proportion, muP's base unchanged.

        grow: whether the number of heads changes or their size. BadInput where a size would not
        be whole.
        """

        def scaled(name: str, size: int, width: int = width) -> int:
            if size * width % self.d_model:
                step = self.d_model // math.gcd(self.d_model, size)
                raise BadInput(
                    f"at width {width} model.{name} would be {size * width / self.d_model:g}; "
                    f"nearest width: {max(round(width / step), 1) * step}"
                )
            return size * width // self.d_model

        sizes = {"d_model": width, "d_ff": scaled("d_ff", self.d_ff)}
        attention = self.attention
        if grow == "heads":
            sizes["num_heads"] = scaled("num_heads", self.num_heads)
            if self.num_kv_heads > 1:
                sizes["num_kv_heads"] = scaled("num_kv_heads", self.num_kv_heads)
            return replace(self, **sizes)
        if self.head_dim:
            sizes["head_dim"] = scaled("head_dim", self.head_dim)
        if self.parametrization == "mup" and not attention.base_head_dim:
            base = scaled("head_size", self.head_size, self.base_width)
            attention = replace(attention, base_head_dim=base)
        return replace(self, **sizes, attention=attention)

    def validate(self) -> None:
        """One clear line for a decoder that cannot be."""
        check_types("model", self)
        sizes = ("vocab_size", "context_length", "num_layers", "d_model", "num_heads", "base_width")
        for name in sizes:
            if getattr(self, name) < 1:
                raise BadInput(f"model.{name} is {getattr(self, name)}; give 1 or more")
        for name in ("num_kv_heads", "head_dim", "d_ff"):
            if getattr(self, name) < 0:
                raise BadInput(f"model.{name} is {getattr(self, name)}; give 0 (derived) or more")
        if self.attention.qk_dim < 0:
            raise BadInput(
                f"model.attention.qk_dim is {self.attention.qk_dim}; give 0 (the head size) or more"
            )
        if self.attention.base_head_dim < 0:
            raise BadInput(
                f"model.attention.base_head_dim is {self.attention.base_head_dim}; give 0 (the "
                "head size of this model) or more"
            )
        self._check_patterns()
        if self.zero_head and self.tied_embeddings:
            raise BadInput(
                f"model.init = '{self.init}' starts the head at zero, which tied embeddings "
                "cannot; give --model.init=fan_in or --model.no-tied-embeddings"
            )
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
        turned = self.rotary_size
        if self.positions == "rotary" and (turned % 2 or not 2 <= turned <= self.qk_size):
            raise BadInput(
                f"model.rotary.fraction = {self.rotary.fraction} turns {turned} of the "
                f"{self.qk_size} dimensions of a head; give a head size and a fraction that "
                "turn an even number, 2 or more"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise BadInput(f"model.dropout = {self.dropout}; give 0 or more and less than 1")
        if self.norm_epsilon <= 0 or self.rotary.base <= 0:
            raise BadInput("model.norm_epsilon and model.rotary.base must be above 0")
        self._check_position_shape()

    def _check_position_shape(self) -> None:
        shape = self.position_shape
        if self.positions != "factorised":
            if shape:
                raise BadInput(
                    f"model.position_shape = {shape!r} is of factorised positions, and "
                    f"model.positions is {self.positions!r}"
                )
            return
        if not re.fullmatch(r"[1-9]\d{0,6}(x[1-9]\d{0,6})+", shape):
            raise BadInput(
                f"model.position_shape is {shape!r}; give the sizes of two axes or more, such as "
                "96x128"
            )
        if math.prod(self.position_axes) < self.context_length:
            raise BadInput(
                f"model.position_shape = {shape!r} has {math.prod(self.position_axes)} positions, "
                f"fewer than model.context_length = {self.context_length}"
            )

    def _check_patterns(self) -> None:
        name = "model.attention.pattern"
        try:
            patterns = self.attention.patterns
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None
        for pattern in patterns:
            count, repeats = len(pattern.members), self.num_heads // self.kv_heads
            if not pattern.causal:
                raise BadInput(
                    f"{name} = {self.attention.pattern!r} lets positions read later ones, which a "
                    "decoder is to predict; give a causal one"
                )
            if repeats % count and self.kv_heads % count:
                raise BadInput(
                    f"{name} = {self.attention.pattern!r} has {count} groups of heads, which "
                    f"{self.num_heads} heads over {self.kv_heads} key heads do not make"
                )
        if self.layers == "scan" and self.num_layers % len(patterns):
            raise BadInput(
                f"{name} = {self.attention.pattern!r} has {len(patterns)} layers in turn, and "
                f"{self.num_layers} layers are no multiple: give model.layers = 'unrolled'"
            )


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = (n for n in range(1, number + 1) if number % n == 0)
    return min(divisors, key=lambda n: (abs(n - wanted), n))
