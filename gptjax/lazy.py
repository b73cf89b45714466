"""Packages whose names are imported when they are first asked for (PEP 562)."""

import importlib
import sys
from collections.abc import Callable


def lazy(package: str, where: dict[str, str]) -> tuple[Callable, Callable]:
    """The `__getattr__` and `__dir__` of a package whose names live in the modules `where` names.

    A name is looked up once and then stands in the package: a submodule of the same name, which
    an import would put there, does not hide it later.
    """

    def getattr_(name: str):
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(where[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *where})

    return getattr_, dir_
