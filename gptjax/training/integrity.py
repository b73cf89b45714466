"""Proof that a checkpoint's files and arrays are what was written.

A step carries a manifest of its files (sizes and sha256) and a JSON record, sealed by its own
hash, with the fingerprint of every array taken before it was written. The manifest names the file
that changed; the fingerprints also catch what changed between the device and the disk.
"""

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gptjax.errors import DamagedData
from gptjax.files import sync
from gptjax.training.workdir import read_json, write_json

MANIFEST = "files.json"
_CHUNK = 1 << 20


def canonical(obj: Any) -> bytes:
    """One spelling for equal JSON values."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":")).encode()


def seal(body: dict) -> dict:
    """Wrap JSON with its hash; what comes back from `unseal` is equal to a JSON round trip."""
    body = json.loads(json.dumps(body))
    return {"sha256": hashlib.sha256(canonical(body)).hexdigest(), "body": body}


def unseal(path: Path) -> dict:
    """The body of a sealed JSON file; DamagedData naming the file when anything changed."""
    sealed = read_json(path)
    if not isinstance(sealed, dict) or sealed.keys() != {"sha256", "body"}:
        raise DamagedData(f"{path} is damaged: it is not a sealed record")
    if hashlib.sha256(canonical(sealed["body"])).hexdigest() != sealed["sha256"]:
        raise DamagedData(f"{path} is damaged: its content does not match its own hash")
    return sealed["body"]


def _files(folder: Path) -> dict[str, Path]:
    """Every file under a folder but the manifest, by its relative name."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            found[path.relative_to(folder).as_posix()] = path
    found.pop(MANIFEST, None)
    return dict(sorted(found.items()))


def _digest(path: Path, sync: bool = False) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, without: Collection[str] = ()) -> None:
    """Put every file on the disk for good, then record its size and hash.

    Called again it only adds files that are new: what is listed keeps its first hash.
    """
    listed = unseal(folder / MANIFEST)["files"] if has_manifest(folder) else {}
    added = {
        name: {"bytes": path.stat().st_size, "sha256": _digest(path, sync=True)}
        for name, path in _files(folder).items()
        if name not in listed and name not in without
    }
    sync(folder)
    if added or not listed:
        write_json(folder / MANIFEST, seal({"files": listed | added}))


def has_manifest(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


def check_files(folder: Path) -> list[str]:
    """Compare a folder with its manifest; DamagedData names the first file that differs.

    Returns the names of files that the manifest does not list: they are not read.
    """
    listed = unseal(folder / MANIFEST)["files"]
    present = _files(folder)
    for name in listed:
        if name not in present:
            raise DamagedData(f"{name} is missing")
    for name, entry in listed.items():
        size = present[name].stat().st_size
        if size != entry["bytes"]:
            raise DamagedData(f"{name} has {size} bytes instead of {entry['bytes']}")
    for name, entry in listed.items():
        try:
            same = _digest(present[name]) == entry["sha256"]
        except OSError as error:
            raise DamagedData(f"{name} cannot be read ({error.strerror})") from error
        if not same:
            raise DamagedData(f"the content of {name} has changed (sha256 differs)")
    return sorted(present.keys() - listed.keys())


def leaf_differences(there: dict[str, dict], here: dict[str, dict]) -> list[str]:
    """One phrase for each array whose name, dtype or shape differs from the one wanted."""

    def form(leaf: dict) -> str:
        return f"{leaf['dtype']}[{','.join(map(str, leaf['shape']))}]"

    phrases = []
    for name in [*here, *(name for name in there if name not in here)]:
        if name not in there:
            phrases.append(f"{name} is {form(here[name])} here and absent there")
        elif name not in here:
            phrases.append(f"{name} is {form(there[name])} there and absent here")
        elif form(there[name]) != form(here[name]):
            phrases.append(f"{name} is {form(there[name])} there and {form(here[name])} here")
    return phrases
