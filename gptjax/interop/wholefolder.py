"""A folder that is written whole or not at all.

It is written beside its place under another name, and renamed. A process that was killed leaves
that other folder behind; the next one that writes there removes it, unless someone holds it still.
"""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".partial"
YOUNG = 60  # seconds in which a folder that nobody holds may be about to be


@contextlib.contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends; after an error nothing stays.

    Folders above it are made, and removed again after an error where they are empty.
    """
    made = [parent for parent in out.parents if not parent.exists()]
    partial = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{out.name[:40]}."
        _remove_left(out.parent, prefix)
        partial = Path(tempfile.mkdtemp(prefix=prefix, suffix=SUFFIX, dir=out.parent))
        partial.chmod(0o755)
        with _held(partial):
            yield partial
            os.rename(partial, out)
    except BaseException:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold the folder; whether nobody else does, which is False where locks are unknown."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(handle)


def _remove_left(parent: Path, prefix: str) -> None:
    """Remove what dead processes left."""
    name = re.compile(rf"{re.escape(prefix)}[a-z0-9_]{{8}}{re.escape(SUFFIX)}")
    with contextlib.suppress(OSError):
        for path in parent.glob(f"*{SUFFIX}"):
            if not name.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
                continue
            if time.time() - path.stat().st_mtime > YOUNG:
                with _held(path) as alone:
                    if alone:
                        shutil.rmtree(path, ignore_errors=True)
