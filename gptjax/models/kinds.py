"""The kinds of models by name, and what encoders and encoder-decoders have beside the rest."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from gptjax.errors import BadInput, did_you_mean
from gptjax.models.config import DecoderConfig, TransformerConfig, check_causal
from gptjax.models.config_parts import AttentionConfig


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
        for name in ("classes", "token_classes"):
            if getattr(self, name) < 0:
                raise BadInput(f"model.{name} is {getattr(self, name)}; give 0 (none) or more")
        if self.classes and self.pooler == "none":
            raise BadInput(
                f"model.classes = {self.classes} are of what a pooler gives; give "
                "--model.pooler=first"
            )


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
        self.decoder.validate()


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


def check_plain(config: TransformerConfig) -> None:
    """BadInput for what belongs to decoders alone."""
    if config.attention.memory:
        raise BadInput(
            f"model.attention.memory = {config.attention.memory} is of decoders, and this model is "
            f"an {config.kind.replace('_', '-')}"
        )
    if config.attention.top_query != "none":
        raise BadInput(
            f"model.attention.top_query = '{config.attention.top_query}' is of decoders, and this "
            f"model is an {config.kind.replace('_', '-')}"
        )


KINDS: dict[str, type[TransformerConfig]] = {
    cls.kind: cls for cls in (DecoderConfig, EncoderConfig, EncoderDecoderConfig, TwoStreamConfig)
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
