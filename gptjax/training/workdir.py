"""A run's folder: one living process in it, JSON that is whole or absent, an exact metrics log."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptjax.errors import BadInput, DamagedData, Trouble
from gptjax.files import sync

_STORAGE_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk reports an error",
    errno.ENOENT: "no folder can be made there",
    errno.ENOTDIR: "a file is in the way",
    errno.EEXIST: "a file is in the way",
    errno.EISDIR: "a folder is in the way",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its links lead in a circle",
}
# Libraries report the same troubles as text; the first phrase that occurs names the trouble.
_STORAGE_PHRASES = {
    "no space left": errno.ENOSPC,
    "disk quota": errno.EDQUOT,
    "read-only file system": errno.EROFS,
    "permission denied": errno.EACCES,
    "input/output error": errno.EIO,
}


def storage_failure(error: BaseException | None) -> str | None:
    """What the disk refused, in words; None for an error that is no matter of storage."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _STORAGE_ERRORS:
            return _STORAGE_ERRORS[error.errno]
        text = str(error).lower()
        for phrase, number in _STORAGE_PHRASES.items():
            if phrase in text:
                return _STORAGE_ERRORS[number]
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """A full or read-only disk becomes `Trouble("cannot <what>: the disk is full")`."""
    try:
        yield
    except OSError as error:
        reason = storage_failure(error)
        if reason is None:
            raise
        raise Trouble(f"cannot {what}: {reason}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by one rename, after its bytes are on the disk."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(f"write {path}"):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def _plain(value: Any):
    """Scalars of numpy and jax as Python's own."""
    if getattr(value, "shape", None) == ():
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def write_json(path: Path, obj: Any) -> None:
    """Write indented JSON so that a reader finds the old file or the new one, never a part."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, default=_plain)
    write_whole(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; DamagedData naming the file when it holds something else, BadInput if absent."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise DamagedData(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error


def _holder(text: bytes) -> str:
    try:
        row = json.loads(text)
        return f"process {row['pid']} on host {row['host']} since {row['since']}"
    except (ValueError, TypeError, KeyError):
        return "another process"


@contextlib.contextmanager
def claim(workdir: Path) -> Iterator[Path]:
    """Create a run's folder and hold it alone until the block ends or the process dies.

    In a run of several hosts only process 0 claims. The lock is the kernel's (`flock` on
    `.lock`), so a crash releases it; the file itself stays and says who held it last.
    """
    workdir = Path(workdir)
    what = f"use {workdir} as a working folder"
    if "\0" in str(workdir):
        raise BadInput(f"cannot {what}: no name may hold the character 0")
    with storage_errors(what):
        workdir.mkdir(parents=True, exist_ok=True)
        number = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Trouble(
                f"{workdir} is in use by {_holder(os.read(number, 4096))}; wait for it, stop it, "
                "or give another --workdir"
            ) from None
        except OSError as error:
            warnings.warn(
                f"{workdir} lies on a file system without locks ({error.strerror}): nothing keeps "
                "a second process out of it",
                stacklevel=3,
            )
        since = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        row = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with storage_errors(what):
            os.ftruncate(number, 0)
            os.pwrite(number, (json.dumps(row) + "\n").encode(), 0)
        yield workdir
    finally:
        os.close(number)


class MetricsLog:
    """One JSON object a line. A crash can tear only the last line, and a resume cuts it off."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._file = None

    def write(self, row: dict) -> None:
        """Append a row; it is with the kernel when this returns, so a kill does not lose it."""
        line = json.dumps(row, default=_plain) + "\n"
        with storage_errors(f"write {self.path}"):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
            if self._file.write(line.encode()) != len(line.encode()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Rows written so far survive a power cut."""
        if self._file is not None:
            with storage_errors(f"write {self.path}"):
                os.fsync(self._file.fileno())

    def _lines(self) -> list[tuple[bytes, dict]]:
        """Whole lines with their rows; a torn last line is left out."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        *lines, torn = content.split(b"\n")
        del torn  # empty after a whole last line
        found = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                raise DamagedData(
                    f"{self.path}, line {number} is damaged: {error}; move the file away to go on "
                    "without its rows"
                ) from error
            found.append((line, row))
        return found

    def rows(self) -> list[dict]:
        """Every whole row; DamagedData naming the line when one in the middle is unreadable."""
        return [row for _, row in self._lines()]

    def truncate_after(self, step: int) -> None:
        """Drop rows of later steps and a torn last line; the rest stays byte for byte."""
        self.close()
        if not self.path.exists():
            return
        kept = [line for line, row in self._lines() if "step" not in row or row["step"] <= step]
        content = b"".join(line + b"\n" for line in kept)
        if content != self.path.read_bytes():
            write_whole(self.path, content)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
