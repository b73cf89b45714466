"""The kinds of models by name, and what encoders and encoder-decoders have beside the rest."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from gptjax.errors import BadInput, did_you_mean
from gptjax.models.config import DecoderConfig, TransformerConfig, check_causal
from gptjax.models.config_parts import AttentionConfig, EmbeddingConfig, ExpertsConfig


def _both_ways() -> AttentionConfig:
    return AttentionConfig(pattern="bidirectional")


@dataclass(frozen=True)
class EncoderConfig(TransformerConfig):
    """Reads a text both ways and says something of each of its tokens (BERT, arXiv 1810.04805)."""

    kind = "encoder"

    attention: AttentionConfig = field(default_factory=_both_ways)
    # What stands between the last layer and the vocabulary: nothing, or a square product, the
    # activation and a norm (BERT).
    head: Literal["plain", "transform"] = "transform"
    pooler: Literal["none", "first"] = "none"  # first: tanh of a square product of the first token
    classes: int = 0  # of a whole row, from what the pooler gives (next sentence: 2)
    token_classes: int = 0  # of every token

    def validate(self) -> None:
        super().validate()
        check_plain(self)
        check_classes(self)
        if self.token_classes < 0:
            raise BadInput(f"model.token_classes is {self.token_classes}; give 0 (none) or more")


@dataclass(frozen=True)
class EncoderDecoderConfig(TransformerConfig):
    """An encoder, and a decoder that reads all it wrote (arXiv 1706.03762; T5, arXiv 1910.10683).

    Both have the fields of a transformer; `num_layers` is the encoder's depth.
    """

    kind = "encoder_decoder"

    decoder_layers: int = 0  # 0: as many as the encoder has
    encoder_pattern: str = "bidirectional"  # `attention.pattern` is the decoder's

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder's side as a config."""
        attention = dataclasses.replace(self.attention, pattern=self.encoder_pattern)
        return EncoderConfig(**_shared(self) | {"attention": attention})

    @property
    def decoder(self) -> DecoderConfig:
        """The decoder's side as a config; what it reads of the encoder is not part of it."""
        layers = self.decoder_layers or self.num_layers
        return DecoderConfig(**_shared(self) | {"num_layers": layers})

    def validate(self) -> None:
        super().validate()
        check_causal(self)
        check_plain(self)
        if self.decoder_layers < 0:
            raise BadInput(
                f"model.decoder_layers is {self.decoder_layers}; give 0 (as many as the encoder "
                "has) or more"
            )
        if self.block.startswith("parallel"):
            raise BadInput(
                f"model.block = '{self.block}' leaves no place for what a decoder reads of an "
                "encoder; give pre or post"
            )
        try:
            self.encoder.validate()
        except BadInput as error:
            said = str(error).replace("model.attention.pattern", "model.encoder_pattern")
            raise BadInput(said) from None
        try:
            self.decoder.validate()
        except BadInput as error:
            said = str(error).replace("model.num_layers", "model.decoder_layers")
            raise BadInput(said) from None


@dataclass(frozen=True)
class TwoStreamConfig(TransformerConfig):
    """XLNet (arXiv 1906.08237): tokens are predicted in any order, by a stream of queries.

    `embedding.types` above 0: scores tell whether two places are of the same type.
    """

    kind = "two_stream"

    attention: AttentionConfig = field(default_factory=_both_ways)
    positions: Literal["relative"] = "relative"
    block: Literal["post"] = "post"
    layers: Literal["unrolled"] = "unrolled"

    def validate(self) -> None:
        super().validate()
        check_plain(self)
        if self.attention.pattern != "bidirectional":
            raise BadInput(
                f"model.attention.pattern = {self.attention.pattern!r}: who reads whom is the "
                "order's business in this model; give bidirectional"
            )
        if self.experts.count:
            raise BadInput("model.experts.count is above 0, and this model has no experts; give 0")


@dataclass(frozen=True)
class TaskModulesConfig(TransformerConfig):
    """ERNIE 3.0 (arXiv 2107.02137): a trunk for all tasks, and above it a stack for each of two.

    One task reads a text both ways and fills in what is hidden, one writes it token by token. The
    fields of a transformer are the trunk's; the modules of tasks share its other choices.
    """

    kind = "task_modules"

    # What other kinds have beside these would be another thing for a source than for tokens.
    positions: Literal["learned", "rotary", "alibi", "relative", "none"] = "relative"
    reading_pattern: str = "bidirectional"  # of the source; `attention.pattern` is of the tokens
    task_layers: int = 2  # of either module
    task_width: int = 0  # 0: the trunk's
    task_heads: int = 0  # 0: of the trunk's size
    pooler: Literal["none", "first"] = "none"  # as an encoder's, above the module that reads
    classes: int = 0

    @property
    def task_size(self) -> int:
        """The width of the modules."""
        return self.task_width or self.d_model

    @property
    def reader(self) -> EncoderConfig:
        """The trunk as it reads a source."""
        return EncoderConfig(**self._trunk | {"attention": self._reading})

    @property
    def writer(self) -> DecoderConfig:
        """The trunk as it reads tokens."""
        return DecoderConfig(**self._trunk)

    @property
    def understanding(self) -> EncoderConfig:
        """The module of the task that reads both ways."""
        return EncoderConfig(**self._module | {"attention": self._reading})

    @property
    def generation(self) -> DecoderConfig:
        """The module of the task that writes."""
        return DecoderConfig(**self._module)

    @property
    def _reading(self) -> AttentionConfig:
        return dataclasses.replace(self.attention, pattern=self.reading_pattern)

    @property
    def _trunk(self) -> dict:
        return _shared(self)

    @property
    def _module(self) -> dict:
        """The fields of both modules: positions are added below the trunk alone."""
        heads = self.task_heads or max(self.task_size // self.head_size, 1)
        ratio = self.base_width * self.task_size / self.d_model
        return _shared(self) | {
            "num_layers": self.task_layers,
            "d_model": self.task_size,
            "num_heads": heads,
            "num_kv_heads": 0,
            "d_ff": self.d_ff * self.task_size // self.d_model,
            "positions": "none" if self.positions == "learned" else self.positions,
            "experts": ExpertsConfig(),
            "embedding": EmbeddingConfig(),
            "base_width": max(round(ratio), 1),
        }

    def at_width(self, width: int, grow: Literal["heads", "head_dim"] = "heads"):
        made = super().at_width(width, grow)
        size, heads = (x * width / self.d_model for x in (self.task_width, self.task_heads))
        heads = self.task_heads if grow == "head_dim" else heads
        if size % 1 or heads % 1:
            raise BadInput(
                f"at width {width} model.task_width would be {size:g} and model.task_heads "
                f"{heads:g}; give a width at which they are whole"
            )
        return dataclasses.replace(made, task_width=int(size), task_heads=int(heads))

    def validate(self) -> None:
        super().validate()
        check_causal(self)
        check_plain(self)
        check_classes(self)
        if self.task_layers < 1:
            raise BadInput(f"model.task_layers is {self.task_layers}; give 1 or more")
        for name in ("task_width", "task_heads"):
            if getattr(self, name) < 0:
                raise BadInput(f"model.{name} is {getattr(self, name)}; give 0 (derived) or more")
        if self.block.startswith("parallel"):
            raise BadInput(f"model.block = '{self.block}' is of decoders; give pre, post or deep")
        sides = {
            "model.reading_pattern": (self.reader, self.understanding),
            "model.attention.pattern": (self.writer, self.generation),
        }
        for pattern, stacks in sides.items():
            for stack in stacks:
                try:
                    stack.validate()
                except BadInput as error:
                    said = str(error).replace("model.attention.pattern", pattern)
                    if stack is stacks[1]:
                        for ours, name in OF_MODULES.items():
                            said = said.replace(f"model.{name}", f"model.{ours}")
                        if "model.task_" not in said:
                            said = f"with model.task_width = {self.task_size}: {said}"
                    raise BadInput(said) from None
        if self.layers == "scan" and len(self.reader.turn) != len(self.turn):
            raise BadInput(
                f"model.reading_pattern = {self.reading_pattern!r} and model.attention.pattern = "
                f"{self.attention.pattern!r} have {len(self.reader.turn)} and {len(self.turn)} "
                "kinds of layers in turn, which scanned layers cannot share: give "
                "model.layers = 'unrolled'"
            )


# The fields of the modules of tasks by the names that a stack has for them.
OF_MODULES = {"task_layers": "num_layers", "task_width": "d_model", "task_heads": "num_heads"}


def check_classes(config) -> None:
    """BadInput for classes of rows that a model cannot tell apart."""
    if config.classes < 0:
        raise BadInput(f"model.classes is {config.classes}; give 0 (none) or more")
    if config.classes and config.pooler == "none":
        raise BadInput(
            f"model.classes = {config.classes} are of what a pooler gives; give "
            "--model.pooler=first"
        )


def check_plain(config: TransformerConfig) -> None:
    """BadInput for what belongs to decoders alone."""
    if config.attention.memory:
        raise BadInput(
            f"model.attention.memory = {config.attention.memory} is of decoders, and this model is "
            f"of kind {config.kind}"
        )
    if config.attention.top_query != "none":
        raise BadInput(
            f"model.attention.top_query = '{config.attention.top_query}' is of decoders, and this "
            f"model is of kind {config.kind}"
        )


KINDS: dict[str, type[TransformerConfig]] = {
    cls.kind: cls
    for cls in (
        DecoderConfig,
        EncoderConfig,
        EncoderDecoderConfig,
        TwoStreamConfig,
        TaskModulesConfig,
    )
}


def config_type(kind: str) -> type[TransformerConfig]:
    """The config's type of that kind of model; BadInput for none."""
    if kind not in KINDS:
        raise BadInput(
            f"model.kind is {kind!r}; there are {', '.join(KINDS)}{did_you_mean(kind, KINDS)}"
        )
    return KINDS[kind]


def _shared(config: TransformerConfig) -> dict:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(TransformerConfig)}
