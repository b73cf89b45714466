"""The parts of a model's config that have fields of their own, each with its checks."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from gptjax.errors import BadInput
from gptjax.ops.patterns import Pattern, parse_layers


@dataclass(frozen=True)
class AttentionConfig:
    """Which pairs attend, how their scores are made, and the code that computes them."""

    # One that `python -m gptjax.ops.patterns` lists, such as strided:128. A slash parts layers, in
    # turn (causal/window:256), a bar groups of heads.
    pattern: str = "causal"
    kernel: Literal["auto", "dense", "blocked", "cudnn", "splash", "block_list"] = "auto"
    head_dim: int = 0  # size of values in a head; 0: d_model / num_heads
    qk_dim: int = 0  # size of queries and keys in a head; 0: that of values
    base_head_dim: int = 0  # muP: the head size at the base width; 0: the same as here
    scale: Literal["head_size", "one"] = "head_size"  # of scores: 1 / sqrt(K), or none (GPT-Neo)
    buckets: int = 32  # of relative_bias: distances with a bias of their own, half of them exact
    max_distance: int = 128  # of relative_bias: the last bucket holds this and all beyond
    # Of relative_bias: one table for all layers of a stack (T5), or one in each (UMT5, arXiv
    # 2304.09151).
    bias_tables: Literal["shared", "layer"] = "shared"
    # Of relative positions: sequences are cut into segments of so many positions, and each reads
    # the one before without a gradient (arXiv 1901.02860); 0: whole sequences.
    memory: int = 0
    # The last layer's queries are learned vectors of positions (PanGu-alpha, arXiv 2104.12369).
    top_query: Literal["none", "positions"] = "none"

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The patterns of the layers, in turn; BadInput for a text that names none."""
        return parse_layers(f"local:{self.memory},1" if self.memory else self.pattern)

    def validate(self, positions: str, num_layers: int) -> None:
        """BadInput, in one line, for an attention that cannot be, of a model with these choices."""
        derived = {"head_dim": "d_model / num_heads", "qk_dim": "the head size"}
        derived |= {"base_head_dim": "the head size of this model", "memory": "whole sequences"}
        for name, meaning in derived.items():
            if getattr(self, name) < 0:
                raise BadInput(
                    f"model.attention.{name} is {getattr(self, name)}; give 0 ({meaning}) or more"
                )
        if self.buckets < 2 or self.buckets % 2 or self.max_distance <= self.buckets // 2:
            raise BadInput(
                f"model.attention.buckets = {self.buckets} and max_distance = "
                f"{self.max_distance}; give an even number of buckets and a distance above its half"
            )
        if positions in ("relative", "relative_bias") and self.kernel not in ("auto", "dense"):
            raise BadInput(
                f"model.attention.kernel = '{self.kernel}' has no relative positions, which "
                f"model.positions = '{positions}' asks for; give dense or auto"
            )
        if self.top_query != "none" and num_layers < 2:
            raise BadInput(
                f"model.attention.top_query = '{self.top_query}' makes the last layer a query "
                f"layer, and model.num_layers is {num_layers}; give 2 or more"
            )
        if positions in ("relative", "relative_bias") and "|" in self.pattern:
            raise BadInput(
                f"model.attention.pattern = {self.pattern!r} has groups of heads, which "
                f"model.positions = '{positions}' does not; part the layers by a slash instead"
            )
        if self.memory and positions != "relative":
            raise BadInput(
                f"model.attention.memory is of relative positions, and model.positions is "
                f"{positions!r}; for segments without a memory of their own give "
                f"--model.attention.pattern=local:{self.memory},1"
            )
        if self.memory and self.pattern != "causal":
            raise BadInput(
                f"model.attention.memory = {self.memory} is a pattern itself, beside "
                f"model.attention.pattern = {self.pattern!r}; leave one of them out"
            )


@dataclass(frozen=True)
class RotaryConfig:
    """How rotary positions turn queries and keys (arXiv 2104.09864)."""

    base: float = 10_000.0
    fraction: float = 1.0  # of each head that turns (GPT-NeoX: 0.25)


@dataclass(frozen=True)
class EmbeddingConfig:
    """How tokens and positions become vectors, and vectors logits."""

    size: int = 0  # of token vectors, mapped to d_model and back (OPT-350M: 512); 0: d_model
    norm: bool = False  # a norm above the embedding (BLOOM)
    scale: float = 1.0  # what token vectors are multiplied by (Transformer-XL: sqrt(d_model))
    # Of the gradient that token vectors get (GLM-130B: 0.1, arXiv 2210.02414, section 2.2).
    gradient_share: float = 1.0
    logit_scale: float = 1.0  # what logits are multiplied by (PaLM: 1 / sqrt(d_model))
    head_bias: bool = False  # of logits (GPT-J)
    outputs: int = 0  # ids that are predicted, the first so many (Image GPT: 512 of 513); 0: all
    position_offset: int = 0  # rows of the position table before that of the first one (OPT: 2)
    types: int = 0  # kinds of tokens that have a vector each (BERT: 2, for the texts of a pair)
    tasks: int = 0  # of encoders: tasks that have a vector each (ERNIE 2.0, arXiv 1907.12412)
    # Of factorised positions: a learned table for each axis of an array in raster order (32x32x3:
    # rows, columns and channels of an image), added up (arXiv 1904.10509, section 5.3).
    position_shape: str = ""

    @property
    def axes(self) -> tuple[int, ...]:
        """The sizes of the axes of factorised positions."""
        return tuple(int(size) for size in self.position_shape.split("x") if size)

    def validate(self, positions: str, vocab_size: int, context_length: int, tied: bool) -> None:
        """BadInput, in one line, for an embedding that cannot be, of a model with these choices."""
        for name, meaning in {
            "size": "d_model",
            "outputs": "all",
            "position_offset": "none",
            "types": "none",
            "tasks": "none",
        }.items():
            if getattr(self, name) < 0:
                raise BadInput(
                    f"model.embedding.{name} is {getattr(self, name)}; give 0 ({meaning}) or more"
                )
        for name in ("scale", "logit_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"model.embedding.{name} is {getattr(self, name)}; give above 0")
        if not 0 <= self.gradient_share <= 1:
            raise BadInput(f"model.embedding.gradient_share is {self.gradient_share}; give 0 to 1")
        if self.outputs > vocab_size:
            raise BadInput(
                f"model.embedding.outputs = {self.outputs} is more than model.vocab_size = "
                f"{vocab_size}; give at most that"
            )
        if self.outputs and tied:
            raise BadInput(
                "model.embedding.outputs is of a head of its own; give "
                "--model.tied_embeddings=False"
            )
        if self.position_offset and positions not in ("learned", "learned_blocks"):
            raise BadInput(
                f"model.embedding.position_offset is of learned positions, and model.positions is "
                f"{positions!r}"
            )
        self._check_position_shape(positions, context_length)

    def _check_position_shape(self, positions: str, context_length: int) -> None:
        shape = self.position_shape
        if positions != "factorised":
            if shape:
                raise BadInput(
                    f"model.embedding.position_shape = {shape!r} is of factorised positions, and "
                    f"model.positions is {positions!r}"
                )
            return
        if not re.fullmatch(r"[1-9]\d{0,6}(x[1-9]\d{0,6})+", shape):
            raise BadInput(
                f"model.embedding.position_shape is {shape!r}; give the sizes of two axes or more, "
                "such as 96x128"
            )
        if math.prod(self.axes) < context_length:
            raise BadInput(
                f"model.embedding.position_shape = {shape!r} has {math.prod(self.axes)} positions, "
                f"fewer than model.context_length = {context_length}"
            )


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts in the place of feed-forward layers (arXiv 1701.06538)."""

    count: int = 0  # experts in a layer; 0: one feed-forward layer, as in a dense model
    top_k: int = 2  # experts that a token goes to: 1 (Switch, arXiv 2101.03961), 2 (Mixtral)
    every: int = 1  # the last of so many layers has experts, the others are dense (Switch: 2)
    # Tokens an expert takes, in shares of an even load; the rest are dropped. 0: none are.
    capacity: float = 0.0
    most: int = 0  # tokens of a sequence an expert takes, whatever its length; 0: as capacity says
    balance_weight: float = 0.01  # of the load-balance loss (arXiv 2101.03961, equation 4)
    z_weight: float = 0.0  # of the router's z-loss (arXiv 2202.08906, equation 5)
    jitter: float = 0.0  # training multiplies the router's input by 1 - jitter to 1 + jitter
    # Whether the weights of the chosen experts sum to 1 (Mixtral) or are those among all (Switch).
    weights: Literal["normalised", "as_routed"] = "normalised"

    @property
    def limited(self) -> bool:
        """Whether experts may be full."""
        return self.count > 0 and (self.capacity > 0 or self.most > 0)

    def slots(self, length: int) -> int:
        """Tokens of a sequence of so many that an expert takes; 0: there is no limit."""
        if self.most:
            return min(self.most, length)
        even = length * self.top_k / max(self.count, 1)
        return min(math.ceil(round(self.capacity * even, 6)), length)

    def validate(self, num_layers: int) -> None:
        """BadInput, in one line, for experts that cannot be; num_layers: the model's."""
        if self.count < 0 or self.every < 1:
            raise BadInput(
                f"model.experts.count = {self.count} and model.experts.every = {self.every}; give "
                "0 or more, and 1 or more"
            )
        if self.most < 0 or (self.most and self.capacity):
            raise BadInput(
                f"model.experts.most is {self.most}; give 0 or more, and above 0 only with "
                f"model.experts.capacity = 0 (it is {self.capacity:g})"
            )
        for name in ("capacity", "balance_weight", "z_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadInput(f"model.experts.{name} is {getattr(self, name)}; give 0 or more")
        if not 0 <= self.jitter < 1:
            raise BadInput(f"model.experts.jitter is {self.jitter}; give 0 or more and below 1")
        if not self.count:
            return
        if not 1 <= self.top_k <= self.count:
            raise BadInput(
                f"model.experts.top_k is {self.top_k}; give 1 to {self.count}, as many as experts"
            )
        if self.top_k == 1 and self.weights == "normalised":
            raise BadInput(
                "model.experts.weights = 'normalised' makes the weight of the one expert of "
                "model.experts.top_k = 1 always 1, which teaches the router nothing; give as_routed"
            )
        if self.every > num_layers:
            raise BadInput(
                f"model.experts.every = {self.every} leaves none of {num_layers} layers with "
                f"experts; give at most {num_layers}"
            )
