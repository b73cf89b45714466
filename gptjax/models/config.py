"""What a transformer is made of, in the field's words. Everything derivable is a property.

With `parametrization="mup"` (arXiv 2203.03466, table 8, its form with constant-variance heads) the
best learning rate of a narrow model is that of a wide one. Relative to the model of `base_width`,
at which nothing changes: hidden matrices start from a variance that falls as 1 / width and take
the rates of `training.optimizer.width_multipliers`; embeddings, positions, biases, norms and the
head keep theirs; logits are multiplied by base_width / width; attention scores by
sqrt(base head size) / head size. A tied matrix fits both of its roles. All sizes of a layer are
meant to grow together, by more heads or by larger ones; the number of key/value heads grows too
or is 1. Depth is not covered: its one rule is the residual branches' 1 / sqrt(2 N).
"""

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from gptjax.errors import BadInput, check_types
from gptjax.models.config_parts import (
    AttentionConfig,
    EmbeddingConfig,
    ExpertsConfig,
    RotaryConfig,
)
from gptjax.ops.patterns import Pattern

Activation = Literal["gelu_tanh", "gelu_erf", "quick_gelu", "relu", "swiglu", "geglu"]
# learned_blocks: learned positions, and learned ones within a blank (GLM, arXiv 2103.10360);
# rotary_blocks: half of a head turns with the one, half with the other (code THUDM/ChatGLM-6B);
# relative: scores of distances (Transformer-XL, arXiv 1901.02860); relative_bias: a learned bias
# of the distance, the same in all layers (T5, arXiv 1910.10683)
Positions = Literal[
    "learned",
    "learned_blocks",
    "factorised",
    "rotary",
    "rotary_blocks",
    "alibi",
    "relative",
    "relative_bias",
    "none",
]

# Far beyond any model, near enough to answer at once.
LIMITS = {
    "num_layers": 4096,
    "d_model": 2**20,
    "base_width": 2**20,
    "num_heads": 2**16,
    "vocab_size": 2**24,
}


@dataclass(frozen=True)
class TransformerConfig:
    """What all kinds of models share; each kind is a subclass, with what it has beside this."""

    # Its name in a run's files, and of the models that an objective can be minimised with.
    kind = ""

    vocab_size: int = 257
    context_length: int = 256  # rows of the learned position table, and the longest sequence
    num_layers: int = 4
    d_model: int = 128
    num_heads: int = 4
    num_kv_heads: int = 0  # 0: as many as heads; 1 is multi-query (arXiv 1911.02150)
    d_ff: int = 0  # 0: 4 d_model, or for gated units 8/3 d_model rounded up to 32
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    positions: Positions = "learned"
    rotary: RotaryConfig = field(default_factory=RotaryConfig)
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_epsilon: float = 1e-5
    # deep: as post, with the stream times sqrt(2 N) before it is added to (GLM-130B, arXiv
    # 2210.02414, section 2.1; its code has a norm above the embedding too)
    block: Literal["pre", "post", "deep", "parallel", "parallel_two_norms"] = "pre"
    activation: Activation = "gelu_tanh"  # swiglu and geglu are gated (arXiv 2002.05202)
    # output: all but of queries, keys and values (GPT-Neo); mlp: there and in norms (GPT-J)
    biases: Literal["all", "output", "mlp", "norm", "none"] = "all"
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)  # in place of feed-forward layers
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)  # of tokens and logits
    tied_embeddings: bool = True  # the head is the table of tokens
    dropout: float = 0.0  # of embeddings and residual branches, not of attention weights
    # N(0, 0.02); N(0, 1 / fan_in); the latter with head and queries zero (arXiv 2203.03466, D.2);
    # standard deviation 0.125 / sqrt(fan_in) and a head of zeros (arXiv 1904.10509, section 6);
    # N(0, 1 / fan_in), of queries less by the head size, and words of N(0, 1) (arXiv 1910.10683)
    init: Literal["gpt2", "fan_in", "fan_in_zero", "sparse_transformer", "t5"] = "gpt2"
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
        return self.attention.head_dim or self.d_model // self.num_heads

    @property
    def qk_size(self) -> int:
        """The size of queries and keys in a head."""
        return self.attention.qk_dim or self.head_size

    @property
    def position_axes(self) -> tuple[int, ...]:
        """The rows of every position table."""
        if self.positions in ("learned", "learned_blocks"):
            return (self.context_length + self.embedding.position_offset,)
        return self.embedding.axes if self.positions == "factorised" else ()

    @property
    def embedding_size(self) -> int:
        """The width of token vectors and of the head's."""
        return self.embedding.size or self.d_model

    @property
    def outputs(self) -> int:
        """How many ids are predicted: the first so many."""
        return self.embedding.outputs or self.vocab_size

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
        return self.biases in ("all", "output", "mlp")

    @property
    def attention_biases(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.biases == "all"

    @property
    def output_biases(self) -> bool:
        """Whether what attention writes has a bias."""
        return self.biases in ("all", "output")

    @property
    def norm_biases(self) -> bool:
        return self.norm == "layernorm" and self.biases != "none"

    @property
    def random(self) -> bool:
        """Whether training draws numbers in the forward pass, which takes a "dropout" key."""
        return self.dropout > 0 or (self.experts.count > 0 and self.experts.jitter > 0)

    @property
    def rotary_size(self) -> int:
        """How many of a head's dimensions turn."""
        return int(self.qk_size * self.rotary.fraction + 1e-6)  # a share that was divided out

    @functools.cached_property
    def turn(self) -> "tuple[LayerKind, ...]":
        """The kinds of layers, in turn: layer i is of kind i modulo how many there are."""
        patterns, count = self.attention.patterns, self.experts.count
        every = self.experts.every if count else 1
        return tuple(
            LayerKind(patterns[i % len(patterns)], count > 0 and i % every == every - 1)
            for i in range(math.lcm(len(patterns), every))
        )

    @property
    def plain_layers(self) -> int:
        """The layers below a query layer, or all."""
        return self.num_layers - (self.attention.top_query != "none")

    def layer_kind(self, layer: int) -> "LayerKind":
        """What is particular to a layer."""
        turn = self.turn
        return turn[layer % len(turn)]

    def attention_pairs(self, length: int) -> float:
        """Query-key pairs that a sequence visits, the mean over layers and heads."""
        total = 0.0
        for i, kind in enumerate(self.turn):
            layers = len(range(i, self.num_layers, len(self.turn)))
            total += layers * kind.pattern.pairs(length) / len(kind.pattern.members)
        return total / self.num_layers

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
    def kernel(self) -> str:
        """The kernel that is asked for: scores of distances leave one."""
        relative = self.positions in ("relative", "relative_bias")
        return "dense" if relative else self.attention.kernel

    @property
    def score_scale(self) -> float:
        """What queries times keys are multiplied by: 1 / sqrt(K), under muP sqrt(base K) / K."""
        size = 1.0 if self.attention.scale == "one" else math.sqrt(self.qk_size)
        return 1.0 / size / math.sqrt(self.head_ratio)

    def at_width(self, width: int, grow: Literal["heads", "head_dim"] = "heads"):
        """The same model at another width: all its sizes in proportion, muP's base unchanged.

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
        if attention.head_dim:
            size = scaled("attention.head_dim", attention.head_dim)
            attention = replace(attention, head_dim=size)
        if self.parametrization == "mup" and not attention.base_head_dim:
            base = scaled("head_size", self.head_size, self.base_width)
            attention = replace(attention, base_head_dim=base)
        return replace(self, **sizes, attention=attention)

    def validate(self) -> None:
        """One clear line for a model that cannot be."""
        check_types("model", self)
        sizes = ("vocab_size", "context_length", "num_layers", "d_model", "num_heads", "base_width")
        for name in sizes:
            if getattr(self, name) < 1:
                raise BadInput(f"model.{name} is {getattr(self, name)}; give 1 or more")
        for name in ("num_kv_heads", "d_ff"):
            if getattr(self, name) < 0:
                raise BadInput(f"model.{name} is {getattr(self, name)}; give 0 (derived) or more")
        self.attention.validate(self.positions, self.num_layers)
        self.experts.validate(self.num_layers)
        self.embedding.validate(
            self.positions, self.vocab_size, self.context_length, self.tied_embeddings
        )
        if self.embedding.tasks and self.kind != "encoder":
            raise BadInput(
                f"model.embedding.tasks = {self.embedding.tasks} is of models that are encoders "
                "alone; give 0"
            )
        self._check_patterns()
        if self.zero_head and self.tied_embeddings:
            raise BadInput(
                f"model.init = '{self.init}' starts the head at zero, which tied embeddings "
                "cannot; give --model.init=fan_in or --model.tied_embeddings=False"
            )
        for name, most in LIMITS.items():
            if getattr(self, name) > most:
                raise BadInput(f"model.{name} is {getattr(self, name)}; give at most {most}")
        if not self.attention.head_dim and self.d_model % self.num_heads:
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
        if self.positions == "rotary_blocks" and (self.qk_size % 4 or turned != self.qk_size):
            raise BadInput(
                f"model.positions = 'rotary_blocks' turns two halves of a head, here {turned} of "
                f"{self.qk_size} dimensions; give a head size that 4 divides and rotary.fraction 1"
            )
        if self.positions.endswith("_blocks") and self.kind != "decoder":
            raise BadInput(
                f"model.positions = '{self.positions}' has places within blanks, which decoders "
                f"alone write; a model of kind {self.kind} takes {self.positions.partition('_')[0]}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise BadInput(f"model.dropout = {self.dropout}; give 0 or more and less than 1")
        if self.norm_epsilon <= 0 or self.rotary.base <= 0:
            raise BadInput("model.norm_epsilon and model.rotary.base must be above 0")

    def _check_patterns(self) -> None:
        name = "model.attention.pattern"
        try:
            patterns = self.attention.patterns
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None
        for pattern in patterns:
            count, repeats = len(pattern.members), self.num_heads // self.kv_heads
            if repeats % count and self.kv_heads % count:
                raise BadInput(
                    f"{name} = {self.attention.pattern!r} has {count} groups of heads, which "
                    f"{self.num_heads} heads over {self.kv_heads} key heads do not make"
                )
        if len(patterns) > self.num_layers:
            raise BadInput(
                f"{name} = {self.attention.pattern!r} has patterns for {len(patterns)} layers, and "
                f"model.num_layers is {self.num_layers}: give as many layers or fewer patterns"
            )
        if self.layers == "scan" and self.plain_layers % len(self.turn):
            experts = " and model.experts.every" if self.experts.count else ""
            raise BadInput(
                f"{name} = {self.attention.pattern!r}{experts} has {len(self.turn)} kinds of "
                f"layers in turn, and {self.plain_layers} layers are no multiple: give "
                "model.layers = 'unrolled'"
            )


@dataclass(frozen=True)
class DecoderConfig(TransformerConfig):
    """A decoder-only transformer (arXiv 1706.03762 without its encoder)."""

    kind = "decoder"

    def validate(self) -> None:
        super().validate()
        check_causal(self)


def check_causal(config: TransformerConfig) -> None:
    """BadInput for a model whose pattern lets a position read what it is to predict."""
    for pattern in config.attention.patterns:
        if pattern.causal:
            continue
        one = next(member for member in pattern.members if not member.causal)
        hint = "give a causal one"
        if hasattr(one, "ways"):
            hint = f"give {replace(one, ways='causal')}"
        raise BadInput(
            f"model.attention.pattern = {config.attention.pattern!r} lets positions read later "
            f"ones, which a decoder is to predict; {hint}"
        )


class LayerKind(NamedTuple):
    """What one layer has and another of the same model may not have.

    cross: whether it reads what an encoder wrote.
    """

    pattern: Pattern
    experts: bool
    cross: bool = False


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = (n for n in range(1, number + 1) if number % n == 0)
    return min(divisors, key=lambda n: (abs(n - wanted), n))
