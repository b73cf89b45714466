"""Experiments by name: a registered function without arguments returns an Experiment or a Sweep."""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Callable

from gptjax.errors import BadInput, did_you_mean
from gptjax.experiment import Experiment
from gptjax.sweeps.sweep import Sweep

_functions: dict[str, Callable[[], Experiment | Sweep]] = {}
_loaded = False


def register(function: Callable[[], Experiment | Sweep]) -> Callable[[], Experiment | Sweep]:
    """Make `function` known under its own name; its docstring's first line is shown by --list."""
    name = function.__name__
    taken = _functions.get(name)
    if taken is not None and taken.__module__ != function.__module__:
        raise BadInput(f"two experiments are called {name}: {taken.__module__} has one already")
    _functions[name] = function
    return function


def _load() -> None:
    """Import every module of the `experiments` package, once."""
    global _loaded
    if _loaded:
        return
    package = importlib.import_module("experiments")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name != "run":
            importlib.import_module(f"experiments.{module.name}")
    _loaded = True


def names() -> list[str]:
    """All registered names, sorted as a reader would: depth_4 before depth_12."""
    _load()
    return sorted(_functions, key=lambda name: [_part(p) for p in re.split(r"(\d+)", name)])


def _part(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (-1, text)


def resolve(name: str) -> str:
    """The registered name that `name` is, or is an unambiguous suffix of."""
    if not isinstance(name, str):
        raise BadInput(f"an experiment is asked for by its name, a string, not by {name!r}")
    known = names()
    if name in known:
        return name
    if not name:
        raise BadInput("no experiment is named; --list shows them all")
    ends = [other for other in known if other.endswith(name)]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise BadInput(f"experiment '{name}' is ambiguous: {', '.join(ends)}")
    hint = did_you_mean(name, known) or "; --list shows them all"
    raise BadInput(f"unknown experiment '{name}'{hint}")


def get(name: str) -> Experiment | Sweep:
    """What is registered under a name (an unambiguous suffix will do); BadInput for none."""
    name = resolve(name)
    function = _functions[name]
    experiment = function()
    if not isinstance(experiment, Experiment | Sweep):
        where = f"{function.__module__}.{function.__qualname__}"
        raise BadInput(f"{where} returned {experiment!r}, neither an Experiment nor a Sweep")
    experiment = dataclasses.replace(experiment, name=name)
    experiment.validate()
    return experiment


def describe(name: str) -> str:
    """The first line of the experiment's docstring."""
    lines = (_functions[resolve(name)].__doc__ or "").strip().splitlines()
    return lines[0] if lines else ""
