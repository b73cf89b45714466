"""The fields of a config.json, and what a model computes, compared field by field."""

import math
from collections.abc import Mapping
from typing import Any

from gptjax.errors import BadInput, nearest
from gptjax.models.config import TransformerConfig

MISSING = object()
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu_erf",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
THEIR_ACTIVATIONS = {
    "gelu_tanh": "gelu_new",
    "gelu_erf": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
GATES = {"silu": "swiglu", "swish": "swiglu", "gelu_new": "geglu", "gelu_pytorch_tanh": "geglu"}
THEIR_GATES = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}


class Fields:
    """A config.json, read field by field: BadInput names the field and what it may be.

    told: what the tensors beside it tell, as a family's `told` has it.
    """

    def __init__(self, tree: dict, source: str, told: Mapping[str, Any] | None = None):
        self.tree, self.source, self.told = tree, source, told or {}

    def has(self, name: str) -> bool:
        return self.tree.get(name) is not None

    def get(self, name: str, default: Any = MISSING) -> Any:
        """A field as it is; a missing one, or one that is null, has the default."""
        value = self.tree.get(name)
        if value is None:
            if default is MISSING:
                near = nearest(name, self.tree)
                also = f"; it has {near[0]!r}" if near else ""
                raise BadInput(f"{self.source} has no {name!r}{also}")
            return default
        return value

    def count(self, name: str, default: Any = MISSING) -> int:
        value = self.get(name, default)
        least = 0 if default == 0 else 1
        if type(value) is not int or not least <= value < 2**31:
            raise BadInput(f"{self.source}: {name} is {value!r}; give a whole number above 0")
        return value

    def number(self, name: str, default: Any = MISSING) -> float:
        value = self.get(name, default)
        if type(value) not in (int, float) or not abs(value) < 1e300:
            raise BadInput(f"{self.source}: {name} is {value!r}; give a number")
        return float(value)

    def positive(self, name: str, default: Any = MISSING) -> float:
        value = self.number(name, default)
        if value <= 0:
            raise BadInput(f"{self.source}: {name} is {value:g}; give a number above 0")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if type(value) is not bool:
            raise BadInput(f"{self.source}: {name} is {value!r}; give true or false")
        return value

    def chosen(self, name: str, options: dict[str, str], default: Any = MISSING) -> Any:
        """What our configs call the value of a field."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in options:
            raise BadInput(
                f"{self.source}: {name} is {value!r}, which no model here has; known: "
                f"{', '.join(options)}"
            )
        return options[value]

    def only(self, **values: Any) -> None:
        """Fields that may have one value or a missing one."""
        for name, wanted in values.items():
            value = self.tree.get(name)
            if value is not None and value != wanted:
                raise BadInput(
                    f"{self.source}: {name} is {value!r}, which no model here has; {wanted!r} is "
                    "read"
                )

    def agree(self, **names: str) -> None:
        """BadInput where a field and another name that transformers has for it differ."""
        for name, other in names.items():
            if self.has(name) and self.has(other) and self.tree[name] != self.tree[other]:
                raise BadInput(
                    f"{self.source}: {name} is {self.tree[name]!r} and {other}, which means the "
                    f"same, is {self.tree[other]!r}; give one"
                )

    def inner_rotary(self) -> "Fields":
        """The object with the fields of rotary positions, under its new name or its old one."""
        new, old = self.get("rope_parameters", None), self.get("rope_scaling", None)
        if new and old and new != old:
            raise BadInput(f"{self.source}: rope_parameters and rope_scaling differ; give one")
        name, inner = ("rope_parameters", new) if new else ("rope_scaling", old or {})
        if not isinstance(inner, dict):
            raise BadInput(f"{self.source}: {name} is {inner!r}; give an object")
        return Fields(inner, f"{self.source}: {name}")

    def rotary(self, base: float = 10_000.0) -> tuple[float, float | None]:
        """The base of rotary positions and their share of a head, or None, in every spelling."""
        fields = self.inner_rotary()
        kind = fields.get("rope_type", fields.get("type", "default"))
        if kind != "default":
            raise BadInput(
                f"{self.source}: rope_type is {kind!r}, which no model here has; 'default' is read"
            )
        for name in ("rope_theta", "rotary_emb_base"):
            if self.has(name):
                base = self.positive(name)
        base = fields.positive("rope_theta", base)
        share = None
        for name in ("rotary_pct", "partial_rotary_factor"):
            if self.has(name):
                share = self.number(name)
        if fields.has("partial_rotary_factor"):
            share = fields.number("partial_rotary_factor")
        return base, share


def rope(config: TransformerConfig, **more: Any) -> dict:
    """The fields of rotary positions, as transformers spells them now and as it did before."""
    base = config.rotary.base
    inner = {"rope_type": "default", "rope_theta": base, **more}
    return {"rope_theta": base, "rope_parameters": inner, **more}


def function_of(config: TransformerConfig) -> dict[str, Any]:
    """What decides the logits, by the name of the field; other fields are of training or speed.

    Two configs with equal values have parameters of equal shapes and compute the same.
    """
    c, rotary = config, config.positions in ("rotary", "rotary_blocks")
    e, a, x = c.embedding, c.attention, c.experts
    both = c.kind == "encoder_decoder"
    every = {
        "kind": c.kind,
        "vocab_size": c.vocab_size,
        "context_length": c.context_length,
        "num_layers": c.num_layers,
        "d_model": c.d_model,
        "num_heads": c.num_heads,
        "num_kv_heads": c.kv_heads,
        "d_ff": c.ff_size,
        "attention.pattern": _patterns(c.decoder if both else c),
        "attention.head_dim": c.head_size,
        "attention.qk_dim": c.qk_size,
        "attention.scale": c.score_scale,
        "attention.memory": a.memory,
        "attention.top_query": a.top_query,
        "positions": c.positions,
        "rotary.base": c.rotary.base if rotary else None,
        "rotary.fraction": c.rotary_size if rotary else None,
        "norm": c.norm,
        "norm_epsilon": c.norm_epsilon,
        "block": c.block,
        "activation": c.activation,
        "biases": (c.attention_biases, c.output_biases, c.mlp_biases, c.norm_biases),
        "experts.count": x.count,
        "embedding.size": c.embedding_size,
        "embedding.norm": e.norm,
        "embedding.scale": e.scale,
        "embedding.logit_scale": e.logit_scale,
        "embedding.head_bias": e.head_bias,
        "embedding.outputs": c.outputs,
        "embedding.position_offset": e.position_offset,
        "embedding.position_shape": e.position_shape,
        "embedding.types": e.types,
        "embedding.tasks": e.tasks,
        "tied_embeddings": c.tied_embeddings,
        "parametrization": c.width_ratio,
    }
    if x.count:
        names = ("top_k", "every", "capacity", "most", "weights")
        every |= {f"experts.{n}": getattr(x, n) for n in names}
    if c.positions == "relative_bias":
        names = ("buckets", "max_distance", "bias_tables")
        every |= {f"attention.{n}": getattr(a, n) for n in names}
    if both:
        every["decoder_layers"] = c.decoder.num_layers
        every["encoder_pattern"] = _patterns(c.encoder)
    elif c.kind == "encoder":
        every |= {n: getattr(c, n) for n in ("head", "pooler", "classes", "token_classes")}
    return every


def _patterns(config: TransformerConfig) -> list[str]:
    """The attention pattern of every layer."""
    shown = [str(pattern) for pattern in config.attention.patterns]
    return [shown[i % len(shown)] for i in range(config.num_layers)]


def setting(config: TransformerConfig, name: str) -> Any:
    """The value of a dotted field of a model's config."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def unlike(one: TransformerConfig, other: TransformerConfig) -> list[str]:
    """Names of the fields in which what the two compute differs, by more than rounding."""
    left, right = function_of(one), function_of(other)
    return [name for name in {**left, **right} if not _same(left.get(name), right.get(name))]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other
