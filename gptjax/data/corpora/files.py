"""The user's own text files as a corpus."""

import os
from collections.abc import Iterator

from gptjax.data.cache import Report, key_of
from gptjax.data.config import DataConfig
from gptjax.data.corpora.base import TextCorpus
from gptjax.data.text_files import find_files, read_documents

UNPACKED = 3  # text is about so many times its compressed size


class Files(TextCorpus):
    """Whole .txt files and JSON lines that match the globs of `data.files`."""

    name = "files"

    def __init__(self, config: DataConfig, report: Report):
        super().__init__(config, report)
        self.paths = find_files(config.files)

    def fingerprint(self) -> str:
        listing = []
        for path in self.paths:
            status = path.stat()
            listing.append([os.path.realpath(path), status.st_size, status.st_mtime_ns])
        return key_of([self.config.text_key, listing])

    def documents(self) -> Iterator[tuple[str, str]]:
        for path in self.paths:
            yield from read_documents(path, self.config.text_key)

    def expected_bytes(self) -> int:
        return sum(
            path.stat().st_size * (UNPACKED if path.suffix in (".gz", ".zst") else 1)
            for path in self.paths
        )

    def announce(self) -> str:
        total = sum(path.stat().st_size for path in self.paths)
        return f"preparing files: {len(self.paths):,} files, {total / 1e6:,.1f} MB"

    def details(self) -> dict:
        return {"files": len(self.paths)}
