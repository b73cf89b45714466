"""The published architectures as data: a row for each, with where its numbers were read.

`architectures.json` also holds encoders and encoder-decoders. A row says in `verified` whether its
sizes were read in the source it names, and in `from_memory` which fields were not; what is not
published is null or absent. `param_count` was measured by building the model of `hf_class` without
memory, unless `param_count_method` says otherwise.
"""

import dataclasses
import functools
import json
from importlib import resources
from typing import TypeVar

from gptjax.errors import BadInput, did_you_mean
from gptjax.models.config import AttentionConfig, DecoderConfig, TransformerConfig

Kind = TypeVar("Kind", bound=TransformerConfig)


@functools.cache
def _read() -> dict:
    text = resources.files(__package__).joinpath("architectures.json").read_text(encoding="utf-8")
    return json.loads(text)


@functools.cache
def _by_name() -> dict[str, dict]:
    return {row["name"]: row for row in _read()["architectures"]}


def architectures() -> dict[str, dict]:
    """All rows by name, in the order of the table."""
    return {name: dict(row) for name, row in _by_name().items()}


def architecture(name: str) -> dict:
    """The row of that name; BadInput for none."""
    if name not in _by_name():
        hint = did_you_mean(name, _by_name())
        raise BadInput(f"there is no architecture {name!r} in the table{hint}")
    return dict(_by_name()[name])


def chinchilla_shapes() -> list[dict]:
    """The 50 shapes of arXiv 2203.15556, table A9, smallest first."""
    return [dict(row) for row in _read()["chinchilla_table_A9"]["rows"]]


def sizes(prefix: str) -> dict[str, str]:
    """Rows by what follows a prefix: `sizes("opt-")["66b"]` is "opt-66b"."""
    return {name.removeprefix(prefix): name for name in _by_name() if name.startswith(prefix)}


def chosen(family: str, size: str, known: dict[str, str]) -> str:
    """The row of a family's size; BadInput names the sizes there are."""
    if size not in known:
        raise BadInput(f"{family} has no size {size!r}; there are {', '.join(known)}")
    return known[size]


def published(name: str, attention: AttentionConfig | None = None, **fields) -> DecoderConfig:
    """The sizes of a row as a decoder; `fields` say what it is beside them, or replace sizes.

    What the config derives by itself (4 d_model, d_model / num_heads) is left to it.
    """
    return decoder(architecture(name), attention, **fields)


def decoder(row: dict, attention: AttentionConfig | None = None, **fields) -> DecoderConfig:
    """`published` for any mapping with the table's names of sizes."""
    return sized(row, DecoderConfig, attention, **fields)


def sized(row: dict, kind: type[Kind], attention: AttentionConfig | None = None, **fields) -> Kind:
    """The same as a model of another kind."""
    given = {
        "vocab_size": row.get("vocab"),
        "context_length": row.get("context"),
        "num_layers": row.get("n_layers"),
        "d_model": row["d_model"],
        "num_heads": row["n_heads"],
        "num_kv_heads": row.get("n_kv_heads"),
        "norm_epsilon": row.get("norm_eps"),
    }
    given = {field: value for field, value in given.items() if value is not None} | fields
    head_dim = row.get("d_head") or 0
    config = kind(**given | ({} if attention is None else {"attention": attention}))
    if head_dim and head_dim * given["num_heads"] != given["d_model"]:
        attention = dataclasses.replace(config.attention, head_dim=head_dim)
        config = dataclasses.replace(config, attention=attention)
    if "d_ff" in fields or config.ff_size == row["d_ff"]:
        return config
    return dataclasses.replace(config, d_ff=row["d_ff"])
