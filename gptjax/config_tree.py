"""Configs as trees of dotted names: flat, compared, listed.

The parts of a list stand under their numbers: `objective.denoisers.0.rate`.
"""

import dataclasses


def flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    """`{"model.d_model": 128, ...}` from a nested dict."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# What may differ when a run goes on: the machine's shape and habits, not the run's arithmetic.
MAY_DIFFER = ("mesh.", "data.cache_dir", "data.workers", "train.keep_checkpoints")


def differences(old: dict, new: dict) -> list[str]:
    """`field: old -> new` for each field that changes the run, from two JSON trees."""
    old, new = flatten(old), flatten(new)
    absent = "(absent)"
    return [
        f"{key}: {old.get(key, absent)} -> {new.get(key, absent)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent) and not key.startswith(MAY_DIFFER)
    ]


def field_names(config, prefix: str = "") -> list[str]:
    """All dotted field names of a dataclass, or of one of its values with those of its parts."""
    names = []
    for f in dataclasses.fields(config):
        part = f.type if isinstance(config, type) else getattr(config, f.name)
        if dataclasses.is_dataclass(f.type):
            names += field_names(part, f"{prefix}{f.name}.")
        elif is_list(part):
            for number, one in enumerate(part):
                names += field_names(one, f"{prefix}{f.name}.{number}.")
        else:
            names.append(prefix + f.name)
    return names


def is_list(value: object) -> bool:
    """Whether a field's value is a list of parts that have fields of their own."""
    every = isinstance(value, tuple) and all(map(dataclasses.is_dataclass, value))
    return every and len(value) > 0


def list_lengths(names: list[str]) -> dict[str, int]:
    """The lists among dotted field names, by their own names, with how many parts each has."""
    found: dict[str, int] = {}
    for name in names:
        words = name.split(".")
        for place, word in enumerate(words):
            if word.isdecimal():
                found[".".join(words[:place])] = int(word) + 1
    return found
