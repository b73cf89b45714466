"""Configs as trees of dotted names: flat, compared, listed."""

import dataclasses


def flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    """`{"model.d_model": 128, ...}` from a nested dict."""
    flat = {}
    for key, value in tree.items():
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
        else:
            names.append(prefix + f.name)
    return names
