"""Checkpoints of others as parameters on a mesh.

Everything is checked before anything is placed: the config, and the name, shape and dtype of
every tensor against what the model's parameters are made of. Then every device gets its part of
every array, read from the file as it is needed, so that the host holds little more than the
largest tensor at a time.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptjax.data.tokenizers import Tokenizer, gguf_tokenizer, read_tokenizer
from gptjax.data.tokenizers.base import RECORD
from gptjax.data.tokenizers.folder import PIECES
from gptjax.data.tokenizers.lists import VOCABULARIES, WORDS
from gptjax.errors import BadInput, did_you_mean
from gptjax.interop.families import FAMILIES, gguf, meta
from gptjax.interop.families.tensorflow import TENSORFLOW
from gptjax.interop.family import Family
from gptjax.interop.fields import Fields, setting, unlike
from gptjax.interop.layouts import Leaf
from gptjax.interop.stores import (
    PICKLES,
    GgufStore,
    Store,
    any_safetensors,
    open_safetensors,
    read_json,
    reading,
    refused_pickle,
)
from gptjax.interop.tensorbundle import open_tensorflow
from gptjax.models.config import TransformerConfig
from gptjax.parallel import DEFAULT_RULES, MeshConfig, Rules, make_mesh
from gptjax.training.state import param_specs

SOURCES = {
    "hf": "a folder with config.json and model.safetensors",
    "gguf": "a GGUF file",
    "meta": "a folder with params.json and safetensors of Meta's names",
    "tf": "a folder with hparams.json and GPT-2 of TensorFlow",
}
DTYPES = ("float32", "bfloat16", "float16")
TOKENIZERS = (RECORD, *VOCABULARIES, WORDS, *PIECES)


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Parameters of a checkpoint on a mesh.

    They are for `model_of(config).apply({"params": params}, tokens_BT)` under `jax.set_mesh`
    (`models.build`). `tokenizer` is None where the checkpoint brings none. ends: the ids that end a
    text by its generation_config.json or config.json, where these say so.
    """

    config: TransformerConfig
    params: Any
    tokenizer: Tokenizer | None
    source: str
    ends: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint: its tensors, and what its config says; nothing is read yet."""

    source: str
    path: Path
    kind: str
    family: Family
    store: Store
    config: TransformerConfig


def load(
    source: str,
    *,
    dtype: str = "float32",
    mesh=None,
    rules: Rules = DEFAULT_RULES,
    config: TransformerConfig | None = None,
    tokenizer: bool = True,
) -> Pretrained:
    """The model in a checkpoint of others: `hf:`, `gguf:`, `meta:` or `tf:` and its path.

    dtype: of the parameters, and with bfloat16 also of the computation. mesh: where they go, one
    device by default; rules: how they are split over it.
    config: the same model with other choices of training or speed, such as layers="scan".
    tokenizer: whether the checkpoint's own is read, where it has one.

    BadInput, in one line and before anything is placed, names the tensor or the field that is
    missing, too much, of another shape or type, or damaged.
    """
    if dtype not in DTYPES:
        raise BadInput(f"dtype is {dtype!r}; give {', '.join(DTYPES)}{did_you_mean(dtype, DTYPES)}")
    found = open_checkpoint(source)
    wanted = found.config if config is None else _agreed(found, config)
    leaves = checked(found, wanted)
    with reading(found.path):
        check_alias(found, leaves)
        words = read_words(found) if tokenizer else None
    mesh = make_mesh(MeshConfig(data=1)) if mesh is None else mesh
    kind = jax.numpy.dtype(dtype)
    shardings = jax.tree.map(
        lambda spec: jax.sharding.NamedSharding(mesh, spec), param_specs(wanted, mesh, rules)
    )
    params = jax.tree_util.tree_map_with_path(
        lambda path, sharding: _placed(leaves[_joined(path)], found.store, sharding, kind),
        shardings,
    )
    if config is None and dtype == "bfloat16":
        wanted = dataclasses.replace(wanted, compute_dtype="bfloat16")
    return Pretrained(wanted, params, words, source, ends_of(found))


def read_config(source: str) -> TransformerConfig:
    """The model of a checkpoint, without its parameters; BadInput as of `load`."""
    return open_checkpoint(source).config


def open_checkpoint(source: str) -> Checkpoint:
    """The tensors and the config behind a source; BadInput for what cannot be a model here."""
    kind, path = _parted(source)
    with reading(path):
        return _opened(source, kind, path)


def _opened(source: str, kind: str, path: Path) -> Checkpoint:
    if path.suffix in PICKLES and path.is_file():
        raise refused_pickle(path)
    if kind == "gguf":
        store = GgufStore(path, str(path))
        family = gguf.family_of(store)
        fields = Fields(gguf.completed(store), str(path))
    elif kind == "meta":
        _check_folder(path, kind)
        tree = read_json(path / "params.json")
        store, family = any_safetensors(path, str(path)), meta.META
        fields = Fields(meta.completed(tree, store), str(path / "params.json"))
    elif kind == "tf":
        _check_folder(path, kind)
        fields = Fields(read_json(path / "hparams.json"), str(path / "hparams.json"))
        store, family = open_tensorflow(path), TENSORFLOW
    else:
        _check_folder(path, kind)
        fields = Fields(read_json(path / "config.json"), str(path / "config.json"))
        family = _named(fields)
        if "encoder" not in family.kinds and fields.tree.get("is_causal", True) is not True:
            raise BadInput(  # where it is false or null, transformers lets all positions see all
                f"{fields.source}: is_causal is {fields.tree['is_causal']!r}, which no model here "
                "has; true is read"
            )
        store = open_safetensors(path, str(path))
    fields.told = family.tell(store.shapes, lambda one, other: _alike(store, one, other, rows=64))
    config = family.read(fields)
    try:
        config.validate()
    except BadInput as error:
        raise BadInput(f"{fields.source} makes no model: {error}") from None
    return Checkpoint(source, path, kind, family, store, config)


def checked(found: Checkpoint, config: TransformerConfig) -> dict[str, Leaf]:
    """What every parameter is made of, after all tensors were found to be as they should."""
    found.family.check_depth(found.store, config)
    leaves = found.family.adjusted(found.family.leaves(config), found.store)
    found.family.check(leaves, found.store, config)
    return leaves


def check_alias(found: Checkpoint, leaves: dict[str, Leaf]) -> None:
    """BadInput for a tied matrix that stands in the file twice, with other numbers.

    Transformers would untie such a model.
    """
    store = found.store
    for alias, name in found.family.again(leaves, found.config).items():
        if alias not in store.shapes or alias == name:
            continue
        if store.kind(alias) is not None:
            raise BadInput(f"{store.source}: the tensor {alias!r} is of type {store.kind(alias)}")
        if not _alike(store, alias, name):
            hint = "and is to be the same"
            if alias.removeprefix(found.family.body) == found.family.alias:
                field = "tied_embeddings" if found.kind == "meta" else "tie_word_embeddings"
                hint = f"and {field} is true; set it to false to read both"
            raise BadInput(f"{store.source}: the tensor {alias!r} differs from {name!r}, {hint}")


def _alike(store: Store, one: str, other: str, rows: int = 0) -> bool:
    """Whether two tensors hold the same numbers, in their first rows or in all."""
    shape, step = store.shapes[one], 4096
    if not shape or shape != store.shapes[other]:
        return False
    for low in range(0, min(rows or shape[0], shape[0]), step):
        span = ((low, min(low + (rows or step), shape[0])), *((0, size) for size in shape[1:]))
        read = (store.read(name, span).astype(np.float32) for name in (one, other))
        if not np.array_equal(*read, equal_nan=True):
            return False
    return True


def read_words(found: Checkpoint) -> Tokenizer | None:
    """The tokenizer that a checkpoint brings; BadInput for one that does not fit the model."""
    if found.kind == "gguf":
        if "tokenizer.ggml.model" not in found.store.fields:
            return None
        words = gguf_tokenizer(found.store.fields, str(found.path))
    elif any((found.path / name).exists() for name in TOKENIZERS):
        words = read_tokenizer(found.path)
    else:
        return None
    if words.vocab_size > found.config.vocab_size:
        raise BadInput(
            f"the tokenizer of {found.path} has {words.vocab_size} ids, and vocab_size is "
            f"{found.config.vocab_size}"
        )
    return words


def ends_of(found: Checkpoint) -> tuple[int, ...]:
    """The ids that end a text, as a folder of transformers says; () where it does not."""
    if found.kind != "hf":
        return ()
    for name in ("generation_config.json", "config.json"):
        path = found.path / name
        ends = read_json(path).get("eos_token_id") if path.is_file() else None
        ends = [ends] if type(ends) is int else ends
        if isinstance(ends, list) and ends and all(type(one) is int for one in ends):
            return tuple(one for one in ends if 0 <= one < found.config.vocab_size)
    return ()


def _parted(source: str) -> tuple[str, Path]:
    kind, colon, path = str(source).partition(":")
    if not colon or kind not in SOURCES or not path:
        near = did_you_mean(kind, SOURCES) if colon and kind not in SOURCES else ""
        known = ", ".join(f"{name}:PATH ({what})" for name, what in SOURCES.items())
        raise BadInput(f"the source is {str(source)!r}{near}; give one of {known}")
    if "\0" in path:
        raise BadInput(f"the source is {str(source)!r}, which is no path")
    try:
        return kind, Path(path).expanduser()
    except RuntimeError:  # ~name of nobody
        raise BadInput(f"the source is {str(source)!r}, whose home folder is not known") from None


def _check_folder(path: Path, kind: str) -> None:
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise BadInput(f"{path} {what}; {kind}: takes {SOURCES[kind]}")


def _named(fields: Fields) -> Family:
    name = fields.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        near = did_you_mean(str(name), FAMILIES)
        raise BadInput(
            f"{fields.source}: model_type is {name!r}, which no model here has{near} "
            f"(known: {', '.join(FAMILIES)})"
        )
    return FAMILIES[name]


def _agreed(found: Checkpoint, config: TransformerConfig) -> TransformerConfig:
    names = unlike(config, found.config)
    if names:
        raise BadInput(differing(names, config, found.config, found.source))
    return config


def differing(
    names: list[str], config: TransformerConfig, other: TransformerConfig, source: str
) -> str:
    """The fields in which a model is not the checkpoint's, in a line."""
    said = "; ".join(
        f"model.{name} = {setting(config, name)!r}, there {setting(other, name)!r}"
        for name in (names[:6] if config.kind == other.kind else ["kind"])
    )
    more = f"; and {len(names) - 6} more" * (len(names) > 6 and config.kind == other.kind)
    return f"the model is not that of {source}: {said}{more}"


def _placed(leaf: Leaf, store: Store, sharding, dtype) -> jax.Array:
    """An array of which every device reads its own block; equal blocks are read once."""
    blocks: dict[tuple, np.ndarray] = {}

    def block(index):
        key = tuple(s.indices(size)[:2] for s, size in zip(index, leaf.shape, strict=True))
        if key not in blocks:
            blocks[key] = leaf.read(store.read, index, dtype, store.source)
        return blocks[key]

    return jax.make_array_from_callback(leaf.shape, sharding, block)


def _joined(path) -> str:
    return "/".join(str(key.key) for key in path)
