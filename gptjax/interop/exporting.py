"""A model as transformers loads it: safetensors, config.json, generation_config.json, tokenizer.

A family is chosen that computes the same: the config that would be written is read back and
compared field by field. Where there is none, one that has biases besides will do: they are
written as zeros.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.data.tokenizers import Tokenizer, export_tokenizer
from gptjax.data.vocabulary import Vocabulary, vocabulary_of
from gptjax.errors import BadInput, Trouble, did_you_mean
from gptjax.evaluation.forms import Form
from gptjax.interop.families import FAMILIES
from gptjax.interop.family import Family
from gptjax.interop.fields import Fields, function_of, setting, unlike
from gptjax.interop.layouts import Leaf, Piece, finite, not_finite
from gptjax.interop.wholefolder import written_whole
from gptjax.models.config import TransformerConfig
from gptjax.training.workdir import storage_failure

BIASES = ("biases", "embedding.head_bias")  # fields of what may be written as zeros
# Parts that a field decides: where that differs, it alone is told.
PARTS = {"rotary": "positions", "experts": "experts.count"}
SHARD = 5_000_000_000  # bytes: larger checkpoints are written in several files
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


def export(
    config: TransformerConfig,
    params: Any,
    out: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    vocabulary: Vocabulary | None = None,
    form: Form | None = None,
    family: str = "",
    dtype: str = "float32",
    shard_bytes: int = SHARD,
) -> Family:
    """Write a model into the folder `out`, which must not exist; the family it was written as.

    vocabulary: the tokenizer's with the special tokens of the run's objective; form: how an
    encoder-decoder is asked, of which the ids that begin and end its answers are written. BadInput
    names the field that no family has, or that the one asked for has not.
    """
    from safetensors import SafetensorError

    out = check_out(out, dtype)
    chosen = choose(config, family)
    leaves = chosen.leaves(_with_biases(chosen, config))
    if tokenizer is not None:
        vocabulary = _named(chosen, config, tokenizer, vocabulary)
    ids = _special(tokenizer, vocabulary)
    start = ids.get(f"{chosen.start}_token_id")
    if form is not None and form.start >= 0:
        ids["eos_token_id"], start = form.end, form.start
    tree = chosen.written(config) | ids
    tree |= {} if start is None else {"decoder_start_token_id": start}
    _check_ids(chosen, config, tree)
    if config.kind == "encoder" and tree["architectures"][0].endswith("Model"):
        leaves = chosen.alone(leaves)
    try:
        with written_whole(out) as partial:
            _write_tensors(chosen, config, leaves, params, partial, dtype, shard_bytes)
            tree |= {"dtype": dtype, "torch_dtype": dtype}  # now, and in releases before 4.56
            _write_json(partial / "config.json", tree)
            if config.kind != "encoder":
                start = {k: v for k, v in tree.items() if k == "decoder_start_token_id"}
                _write_json(partial / "generation_config.json", ids | start)
            if tokenizer is not None:
                ends = None  # a checkpoint's tokenizer says so itself
                if form is not None and vocabulary is not None:
                    ends = ("bos",) * bool(form.before) + ("eos",) * bool(form.after)
                told = {"vocabulary": vocabulary, "around": chosen.around, "ends": ends}
                export_tokenizer(tokenizer, partial, **told)
    except (OSError, SafetensorError) as error:
        reason = storage_failure(error) or getattr(error, "strerror", None) or error
        raise Trouble(f"cannot write {out}: {reason}") from error
    return chosen


def _named(
    family: Family, config: TransformerConfig, tokenizer: Tokenizer, given: Vocabulary | None
) -> Vocabulary | None:
    """The vocabulary with those ends of texts that the tokenizer itself has, and with padding.

    Padding of a run that has no token for it is what its rows were filled with, the separator,
    unless the family makes another model of that. Decoders get none.
    """
    found = vocabulary_of(tokenizer, ("cls", "sep", "mask", "pad")) if family.around else None
    if given is None and found is None:
        return None
    special = {} if found is None else found.special
    special = special | ({} if given is None else given.special)
    if "pad" not in tokenizer.special:
        pad = special.pop("pad", None)
        if pad is None and given is not None and config.kind != "decoder":
            pad = given.id("pad")
        padded = family.written(config) | ({} if pad is None else {"pad_token_id": pad})
        if pad is not None and not unlike(
            _as_read(family, config), _as_read(family, config, padded)
        ):
            special["pad"] = pad
    if given is None:
        return dataclasses.replace(found, special=special, extra={})
    return dataclasses.replace(given, special=special)


def check_out(out: str | Path, dtype: str) -> Path:
    """Where an export is to stand; BadInput for a folder that exists and an unknown dtype."""
    if dtype not in DTYPES:
        raise BadInput(f"dtype is {dtype!r}; give {', '.join(DTYPES)}{did_you_mean(dtype, DTYPES)}")
    if "\0" in str(out):
        raise BadInput(f"cannot write {out}: no name may hold the character 0")
    try:
        out = Path(out).expanduser()
        there = out.exists() or out.is_symlink()
    except RuntimeError:  # ~name of nobody
        raise BadInput(f"cannot write {out}: its home folder is not known") from None
    except OSError as error:
        reason = storage_failure(error) or error.strerror or error
        raise Trouble(f"cannot write {out}: {reason}") from error
    if there:
        raise BadInput(f"{out} exists; give the name of a folder that does not")
    return out


def choose(config: TransformerConfig, name: str = "") -> Family:
    """The first family that computes the same, or the one named; BadInput with the fields."""
    if name and name not in FAMILIES:
        raise BadInput(
            f"family is {name!r}{did_you_mean(name, FAMILIES)} (known: {', '.join(FAMILIES)})"
        )
    fit = [f for f in FAMILIES.values() if (f.name == name if name else config.kind in f.kinds)]
    if not fit:
        raise BadInput(f"no family of checkpoints has models of kind {config.kind}")
    tried = {f.name: _misses(f, config) for f in fit}
    for found, misses in tried.items():
        if not misses:
            return FAMILIES[found]
    for found, misses in tried.items():
        family = FAMILIES[found]
        if set(misses) <= {*BIASES} and not _misses(family, _with_biases(family, config)):
            return family
    every = list(tried.values())
    everywhere = [field for field in every[0] if all(field in misses for misses in every)]
    nearest = min(tried, key=lambda found: len(tried[found]))
    if len(tried[nearest]) == len(function_of(config)):
        raise BadInput(_unsayable(config, fit))
    if name:
        lost = _said(config, tried[name])
        raise BadInput(f"{name} has no {lost}; without --family the fitting one is looked for")
    if not everywhere:
        lost = _said(config, tried[nearest])
        raise BadInput(
            f"no family of checkpoints has all of this; {nearest}, nearest, has no {lost}"
        )
    there = _said(_as_read(FAMILIES[nearest], config), tried[nearest])
    raise BadInput(
        f"no family of checkpoints has {_said(config, everywhere)} (nearest: {nearest}, with "
        f"{there})"
    )


def _unsayable(config: TransformerConfig, families: list[Family]) -> str:
    """Why none of them can say a model: in what the nearest differs, and other reasons."""
    reasons, misses = [], {}
    for family in families:
        try:
            misses[family.name] = unlike(config, _like(family, config))
        except BadInput:
            try:
                _as_read(family, config)
            except BadInput as error:
                reasons.append(str(error))
    if misses:
        nearest = min(misses, key=lambda name: len(misses[name]))
        differs = _said(config, misses[nearest])
        reasons = [f"{nearest}, nearest, has no {differs}" if differs else nearest, *reasons]
    return f"no family of checkpoints has this model: {'; '.join(dict.fromkeys(reasons))}"


def _like(family: Family, config: TransformerConfig) -> TransformerConfig:
    """What a family that cannot say a model has in its place: its own for parts it cannot lack."""
    tree = family.written(config)
    fields = Fields({k: v for k, v in tree.items() if type(v) is not int or v}, family.name)
    if family.told:
        fields.told = family.tell(family.known(config), lambda one, other: False)
    return family.read(fields)


def _said(config: TransformerConfig, fields: list[str]) -> str:
    parts = {part for part, whole in PARTS.items() if whole in fields}
    fields = [f for f in fields if f in PARTS.values() or f.partition(".")[0] not in parts]
    more = f"; and {len(fields) - 6} more" * (len(fields) > 6)
    return "; ".join(f"model.{field} = {setting(config, field)!r}" for field in fields[:6]) + more


def _misses(family: Family, config: TransformerConfig) -> list[str]:
    """The fields of a model that the family would lose."""
    if config.kind not in family.kinds:
        return ["kind"]
    try:
        return unlike(config, _as_read(family, config))
    except BadInput:  # it cannot even be said, as no experts in Mixtral
        return list(function_of(config))


def _check_ids(family: Family, config: TransformerConfig, tree: dict) -> None:
    """BadInput for ids of a tokenizer that make another model, as those of padding in RoBERTa."""
    back = _as_read(family, config)
    for name in unlike(back, _as_read(family, config, tree)):
        pad, wanted = tree["pad_token_id"], family.written(config)["pad_token_id"]
        raise BadInput(
            f"{family.name} derives model.{name} from the id of the padding: the tokenizer's is "
            f"{pad}, and the model's is {wanted}"
        )


def _as_read(
    family: Family, config: TransformerConfig, tree: dict | None = None
) -> TransformerConfig:
    fields = Fields(tree or family.written(config), family.name)
    if family.told:
        pieces = (piece for leaf in family.leaves(config).values() for piece in leaf.pieces)
        fields.told = family.tell({p.name: p.shape for p in pieces}, lambda one, other: False)
    return family.read(fields)


def _with_biases(family: Family, config: TransformerConfig) -> TransformerConfig:
    """The model with all biases that the family has besides its own."""
    back = _as_read(family, config)
    found, wanted = function_of(back)["biases"], function_of(config)["biases"]
    biases = back.biases if all(a >= b for a, b in zip(found, wanted, strict=True)) else None
    bias = back.embedding.head_bias or config.embedding.head_bias
    embedding = dataclasses.replace(config.embedding, head_bias=bias)
    return dataclasses.replace(config, biases=biases or config.biases, embedding=embedding)


def _special(tokenizer: Tokenizer | None, vocabulary: Vocabulary | None) -> dict[str, int | None]:
    ids: dict[str, int | None] = {"bos_token_id": None, "eos_token_id": None}
    if tokenizer is not None:
        ids = dict.fromkeys(ids, tokenizer.separator_id)
        special = tokenizer.special if vocabulary is None else vocabulary.special
        known = {f"{role}_token_id": n for role, n in special.items()}
        ids |= {k: v for k, v in known.items() if k in (*ids, "pad_token_id")}
    return ids


def _write_tensors(family, config, leaves, params, folder, dtype, shard_bytes) -> None:
    from safetensors.numpy import save_file

    zeros = family.zeros(config) if family.zeros else {}
    pieces: dict[str, list[tuple[Leaf, int, Piece]]] = {}
    for leaf in leaves.values():
        for n, piece in enumerate(leaf.pieces):
            pieces.setdefault(piece.name, []).append((leaf, n, piece))
    shapes = {name: found[0][2].shape for name, found in pieces.items()} | dict(zeros)
    shards = list(_shards(shapes, DTYPES[dtype], shard_bytes))
    index = {}
    for n, names in enumerate(shards):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name in names:
            tensors[name] = np.zeros(shapes[name], _numpy(dtype))
            found = pieces.get(name, ())
            with np.errstate(over="ignore", invalid="ignore"):  # told below
                for leaf, part, piece in found:
                    piece.write(_share(params, leaf, part), tensors[name])
            if not finite(tensors[name]):
                were = all(finite(_share(params, leaf, part)) for leaf, part, _ in found)
                raise not_finite(name, dtype, were)
            index[name] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # some releases write it for the owner alone
    if len(shards) > 1:
        size = sum(int(np.prod(shape)) for shape in shapes.values()) * DTYPES[dtype]
        tree = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
        _write_json(folder / "model.safetensors.index.json", tree)


def _share(params, leaf: Leaf, part: int) -> np.ndarray:
    """The share of one of our arrays that one of its pieces holds."""
    value = params
    for key in leaf.path.split("/"):
        if key.endswith("bias") and key not in value:
            return np.zeros(leaf.shape[len(leaf.lead) :], np.float32)
        value = value[key]
    return np.asarray(value[np.unravel_index(part, leaf.lead)] if leaf.lead else value)


def _shards(shapes: dict, itemsize: int, most: int) -> Iterator[list[str]]:
    names, held = [], 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * itemsize
        if names and held + size > most:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names


def _numpy(dtype: str):
    import jax.numpy as jnp

    return jnp.dtype(dtype)


def _write_json(path: Path, tree: dict) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
