"""Folders that are either whole or absent: built aside, synced, renamed, verified on use.

A folder is taken as good only if its `record.json` is there (it is written last) and every
file has the size and the sha256 in it. A build that was killed leaves a hidden folder that the
next builder removes. Two processes that need one folder build it once, behind a file lock that
the system drops when its holder dies.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from gptjax.errors import BadInput, DamagedData, Trouble
from gptjax.files import sync

RECORD = "record.json"
FULL_CHECK_BYTES = 1 << 30  # beyond this only sizes are checked at a start (sha256: 1 to 2 GB/s)
_NO_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}
_NO_WRITE |= {errno.EEXIST}  # the cache folder's name belongs to a file

Report = Callable[[str], None]


def key_of(value) -> str:
    """A short name for a JSON-able value: the first 24 hex digits of its sha256."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(folder: Path, check: str = "auto") -> dict | None:
    """What the builder of `folder` returned, or None if it was never built.

    `check` is `size`, `full` (also sha256) or `auto` (full up to a gigabyte). Raises
    `DamagedData` naming the first file that is not what was written.
    """
    try:
        saved = json.loads((folder / RECORD).read_text())
        record = saved["record"]
        files = {str(name): (size, sha256) for name, (size, sha256) in saved["files"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadInput(f"{folder / RECORD} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedData(f"{folder / RECORD} is not what was written") from None
    for name, (size, _) in files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise DamagedData(f"{path} has {found} bytes, {size} were written")
    total = sum(size for size, _ in files.values())
    if check == "full" or (check == "auto" and total <= FULL_CHECK_BYTES):
        for name, (_, sha256) in files.items():
            if file_sha256(folder / name) != sha256:
                raise DamagedData(f"{folder / name} has changed since it was written")
    return record


def prepared(
    folder: Path, build: Callable[[Path], dict], report: Report, check: str = "auto"
) -> dict:
    """The record of `folder`, which `build(temporary_folder)` fills if absent or damaged."""
    with contextlib.suppress(DamagedData):
        record = read_record(folder, check)
        if record is not None:
            return record
    with _write_errors(folder), _locked(folder, report):
        try:
            record = read_record(folder, check)  # another process may have built it meanwhile
        except DamagedData as damage:
            report(f"rebuilding: {damage}")
            record = None
        if record is not None:
            return record
        for stale in folder.parent.glob(f".{folder.name}.building-*"):
            shutil.rmtree(stale, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        temporary = folder.parent / f".{folder.name}.building-{os.getpid()}"
        temporary.mkdir()
        try:
            record = build(temporary)
            _seal(temporary, record)
            os.replace(temporary, folder)
            sync(folder.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return record


def _seal(folder: Path, record: dict) -> None:
    """Sync every file, then write the record that makes the folder good."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[path.relative_to(folder).as_posix()] = (path.stat().st_size, file_sha256(path))
        sync(path)
    with open(folder / RECORD, "w") as file:
        json.dump({"record": record, "files": files}, file)
        file.flush()
        os.fsync(file.fileno())
    for path in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        sync(path)


@contextlib.contextmanager
def _locked(folder: Path, report: Report) -> Iterator[None]:
    lock = folder.parent / f".{folder.name}.lock"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise _unwritable(folder.parent, error.strerror) from error
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"another process is making {folder}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError on a full disk
        full = os.strerror(errno.ENOSPC)
        reason = full if full in str(error) else getattr(error, "strerror", None)
        if reason != full and getattr(error, "errno", None) not in _NO_WRITE:
            raise
        raise _unwritable(folder.parent, reason) from error


def check_writable(root: Path) -> None:
    """Raise `BadInput` if nothing could be cached under `root`; leaves nothing behind."""
    there = root
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=".gptjax-"):
            pass
    except OSError as error:
        raise _unwritable(root, error.strerror) from error


def _unwritable(folder: Path, reason: str | None) -> Trouble:
    return Trouble(
        f"the cache {folder} cannot be written ({reason}); "
        "set data.cache_dir or GPTJAX_CACHE to a folder with room"
    )
