"""Files and folders that survive a power cut; below every room, so that each may use it."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Put a file's bytes, or the renames inside a folder, on the disk for good."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
