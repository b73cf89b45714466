"""The corpus that every installation carries: Python's sources and our dependencies'.

The standard library of the running interpreter and the `.py` files that the installed
distributions of our dependency closure list in their records. Extras (test tools and the
like) are not followed, so installing them does not change the corpus; other versions of the
packages do, which is why a run's manifest names the versions and the sha256.
"""

import importlib.metadata
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from gptjax.data.cache import Report, key_of
from gptjax.data.config import DataConfig
from gptjax.data.corpora.base import TextCorpus

OURS = "gptjax"
# What pyproject.toml requires, for a checkout that is not installed.
ROOTS = (
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "importlib-resources",
    "array-record",
    "grain",
    "sentencepiece",
    "zstandard",
    "numpy",
    "packaging",
    "scipy",
    "cattrs",
    "tyro",
    "rich",
    "matplotlib",
    "tensorboardX",
)
# Generated validators, an eighth of the corpus: they would be learned instead of Python.
GENERATED = {"plotly"}
_SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages"}


class PyCode(TextCorpus):
    """One document per Python source file; files that are not UTF-8 are left out."""

    name = "pycode"

    def __init__(self, config: DataConfig, report: Report):
        super().__init__(config, report)
        self.distributions = closure(requirements_of_ours())
        self.files = source_files(self.distributions)

    def fingerprint(self) -> str:
        return key_of([[name, size, time] for name, _, size, time in self.files])

    def documents(self) -> Iterator[tuple[str, str]]:
        for name, path, _, _ in self.files:
            try:
                yield name, Path(path).read_bytes().decode("utf-8")
            except (UnicodeDecodeError, OSError):
                continue  # test data of the packages hold such files on purpose

    def expected_bytes(self) -> int:
        return sum(size for _, _, size, _ in self.files)

    def announce(self) -> str:
        megabytes = self.expected_bytes() / 1e6
        return f"preparing pycode: {len(self.files):,} files, {megabytes:,.1f} MB"

    def details(self) -> dict:
        import platform

        versions = {name: found.version for name, found in sorted(self.distributions.items())}
        return {"python": platform.python_version(), "packages": versions}


def normalised(name: str) -> str:
    """A distribution's name as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements_of_ours() -> list[str]:
    """Names of our requirements outside the extras, without those that are GENERATED."""
    try:
        requires = importlib.metadata.distribution(OURS).requires
    except importlib.metadata.PackageNotFoundError:
        return list(ROOTS)
    names = [name for name in _without_extras(requires) if normalised(name) not in GENERATED]
    return names or list(ROOTS)


def _without_extras(requires: list[str] | None) -> list[str]:
    from packaging.requirements import InvalidRequirement, Requirement

    names = []
    for text in requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            names.append(requirement.name)
    return names


def closure(roots: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions that `roots` require, directly or not, ours left out."""
    found, seen, waiting = {}, {OURS}, list(roots)
    while waiting:
        name = normalised(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += _without_extras(found[name].requires)
    return found


def _recorded(distribution: importlib.metadata.Distribution) -> list[str]:
    # Reading RECORD as text takes a tenth of the time of `distribution.files`.
    record = distribution.read_text("RECORD")
    if record is None:
        return [file.as_posix() for file in distribution.files or ()]
    return [line.split(",", 1)[0] for line in record.splitlines()]


def source_files(
    distributions: dict[str, importlib.metadata.Distribution],
) -> list[tuple[str, str, int, int]]:
    """(name, path, bytes, mtime in ns) of each source file, sorted by name, each name once."""
    listed: dict[str, str] = {}
    for distribution in distributions.values():
        root = str(distribution.locate_file(""))
        for name in _recorded(distribution):
            if name.endswith(".py") and not name.startswith((".", "/")):
                listed.setdefault(name, os.path.join(root, name))
    library = sysconfig.get_paths()["stdlib"]
    for folder, folders, names in os.walk(library):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)  # in place: this prunes the walk
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                listed["python/" + os.path.relpath(path, library)] = path
    files = []
    for name, path in sorted(listed.items()):
        try:
            status = os.stat(path)
        except OSError:
            continue  # listed in a record and removed since
        if status.st_size:
            files.append((name, path, status.st_size, status.st_mtime_ns))
    return files
