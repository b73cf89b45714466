"""Experiments by name: a registered function without arguments returns an Experiment or a Sweep."""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable

from gptjax.errors import BadInput, did_you_mean
from gptjax.experiment import Experiment
from gptjax.sweeps.sweep import Sweep

_functions: dict[str, Callable[[], Experiment | Sweep]] = {}
_broken: dict[str, str] = {}  # modules that cannot be imported, and why
_loaded = False


def register(function: Callable[[], Experiment | Sweep]) -> Callable[[], Experiment | Sweep]:
    """Make `function` known under its own name; its docstring's first line is shown by --list."""
    name = function.__name__
    taken = _functions.get(name)
    if taken is not None and taken.__module__ != function.__module__:
        raise BadInput(f"two experiments are called {name}: {taken.__module__} has one already")
    _functions[name] = function
    return function


def register_sizes(about: dict[str, str]):
    """Make a function of a size known as NAME_SIZE for every size, each with a docstring.

    about: what every size is, in one line; the function's own docstring and the command follow.
    """

    def each(function: Callable[[str], Experiment]) -> Callable[[str], Experiment]:
        for size, line in about.items():
            one = functools.partial(function, size)
            one.__name__ = one.__qualname__ = f"{function.__name__}_{size}"
            one.__module__ = function.__module__
            command = f"python experiments/run.py --exp={one.__name__} --dry-run"
            one.__doc__ = f"{line}\n\n{inspect.getdoc(function)}\n\n{command}"
            register(one)
        return function

    return each


def _load() -> None:
    """Import every module of the `experiments` package, once; one that fails costs only itself."""
    global _loaded
    if _loaded:
        return
    try:
        package = importlib.import_module("experiments")
    except ImportError as error:
        raise BadInput(f"the package experiments is not found: {error}") from None
    for module in pkgutil.iter_modules(package.__path__):
        name = f"experiments.{module.name}"
        try:
            if module.name != "run":
                importlib.import_module(name)
        except Exception as error:
            _broken[name] = _why(error)
    _loaded = True


def broken() -> dict[str, str]:
    """Modules of `experiments` that cannot be imported, and why."""
    _load()
    return dict(_broken)


def _why(error: Exception) -> str:
    """An error of an experiment's code in one line, with its place there."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if "experiments" in frame.filename] or frames
    place = f"{theirs[-1].filename}, line {theirs[-1].lineno}"
    return f"{type(error).__name__}: {error} ({place})"


def names() -> list[str]:
    """All registered names, sorted as a reader would: depth_4 before depth_12."""
    _load()
    return sorted(_functions, key=lambda name: [_part(p) for p in re.split(r"(\d+)", name)])


def families() -> dict[str, list[str]]:
    """Registered names by the module of `experiments` they stand in, as they stand there."""
    _load()
    found: dict[str, list[str]] = {}
    for name, function in _functions.items():
        found.setdefault(function.__module__.rpartition(".")[2], []).append(name)
    return {family: found[family] for family in sorted(found)}


def describe_family(family: str) -> str:
    """The first line of the docstring of that module of `experiments`."""
    module = sys.modules.get(f"experiments.{family}")
    return (module.__doc__ or "").strip().partition("\n")[0] if module else ""


def _part(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (-1, text)


def resolve(name: str) -> str:
    """The registered name that `name` is, or is an unambiguous suffix of."""
    if not isinstance(name, str):
        raise BadInput(f"an experiment is asked for by its name, a string, not by {name!r}")
    known = names()
    if name in known:
        return name
    if name.replace("-", "_") in known:  # as the names of published models are written
        return name.replace("-", "_")
    if not name:
        raise BadInput("no experiment is named; --list shows them all")
    ends = [other for other in known if other.endswith(name)]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise BadInput(f"experiment '{name}' is ambiguous: {', '.join(ends)}")
    hint = _hint(name, known) or "; --list shows them all"
    failed = "".join(f"; {module} cannot be imported: {why}" for module, why in _broken.items())
    raise BadInput(f"unknown experiment '{name}'{hint}{failed}")


def _hint(name: str, known: list[str]) -> str:
    """The names that begin as this one does, or those of that family; else the nearest."""
    plain = name.replace("-", "_").lower()
    begun = [other for other in known if other.startswith(plain)] or families().get(plain, [])
    if not begun or plain in known:
        return did_you_mean(name, known)
    more = f" and {len(begun) - 8} more" * (len(begun) > 8)
    return f"; there are {', '.join(begun[:8])}{more}"


def get(name: str) -> Experiment | Sweep:
    """What is registered under a name (an unambiguous suffix will do); BadInput for none."""
    name = resolve(name)
    function = _functions[name]
    try:
        experiment = function()
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{name} cannot be made: {_why(error)}") from error
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


def documentation(name: str) -> str:
    """The experiment's docstring: what it reproduces, and what stands in for what is unknown."""
    return inspect.getdoc(_functions[resolve(name)]) or ""
