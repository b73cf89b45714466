"""What every corpus shares: a TFDS builder in array_record, its index and random access.

TFDS is used without TensorFlow: `file_format="array_record"` (the parquet writer keeps only
part of the examples, tfrecord needs TensorFlow). A corpus in the cache is a folder

    tfds/<name>/1.0.0/   what the TFDS builder wrote
    index.npz            sha256 and size of each document, in the order of the examples
    documents.jsonl      the same with names, for people
"""

import abc
import contextlib
import functools
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gptjax.data.cache import Report, key_of, prepared
from gptjax.data.config import DataConfig, cache_root
from gptjax.errors import BadInput, DamagedData, printable

FORMAT = 1  # of a corpus folder; raise it when what is written changes


class Corpus(abc.ABC):
    """A named source of documents: found cheaply, prepared once into the cache."""

    name: str  # also the folder's name

    def __init__(self, config: DataConfig, report: Report):
        self.config = config
        self.report = report

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A key that changes when the sources change, found without reading them."""

    @property
    def folder(self) -> Path:
        """Where it stands in the cache, or will."""
        key = key_of([FORMAT, self.name, self.fingerprint()])
        return cache_root(self.config) / "corpora" / f"{self.name.partition(':')[0]}-{key}"

    @abc.abstractmethod
    def prepare(self) -> "DocumentStore":
        """The documents in the cache, written there if they are not."""

    def expected_bytes(self) -> int | None:
        """About how much text it will be, known without reading it; None where it is not."""
        return None


class TextCorpus(Corpus):
    """A corpus that is read document by document and written as a TFDS set of that name."""

    @abc.abstractmethod
    def documents(self) -> Iterator[tuple[str, str]]:
        """Yield (name, text); the order does not matter, empty texts are left out later."""

    def details(self) -> dict:
        """What a run's manifest says of this corpus beyond counts and hashes."""
        return {}

    def announce(self) -> str:
        """One line that tells what preparing it means."""
        return f"preparing {self.name}"

    def prepare(self) -> "DocumentStore":
        """The documents in the cache, written there if they are not."""
        folder = self.folder
        record = prepared(folder, self._build, self.report)
        return DocumentStore(self.name, folder / "tfds" / self.name / "1.0.0", folder, record)

    def _build(self, folder: Path) -> dict:
        self.report(self.announce())
        with IndexWriter(folder) as index:
            _write_examples(self.name, lambda: self._indexed(index), folder / "tfds")
        return index.record | {"details": self.details()}

    def _indexed(self, index: "IndexWriter") -> Iterator[tuple[int, dict]]:
        # Indexed as they pass by: the builder keeps their order, reading verifies each hash.
        for name, text in self.documents():
            if text:
                data = text.encode("utf-8")
                yield index.add(name, data), {"name": printable(name), "text": data}
        if not index.sizes:
            raise BadInput(f"corpus {self.name!r} has no document with text in it")


class DocumentStore:
    """Documents of a prepared corpus: hashes and sizes at once, texts on demand.

    `hashes` is uint8 [documents, 32], `sizes` int64 [documents] in UTF-8 bytes.
    """

    def __init__(
        self,
        name: str,
        examples: Path,
        folder: Path,
        record: dict,
        text_key: str = "text",
        name_key: str = "name",
    ):
        self.name = name
        self.folder = folder
        self.record = record
        self._examples = examples
        self._text_key = text_key
        self._name_key = name_key

    @functools.cached_property
    def _index(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "index.npz") as index:
            return {"hashes": index["hashes"], "sizes": index["sizes"]}

    @property
    def hashes(self) -> np.ndarray:
        return self._index["hashes"]

    @property
    def sizes(self) -> np.ndarray:
        return self._index["sizes"]

    @functools.cached_property
    def _source(self):
        return _source(self._examples)

    def texts(self, numbers: Sequence[int]) -> Iterator[str]:
        """The texts of these documents; a text that is not the indexed one raises."""
        for number in numbers:
            data = text_bytes(self._source[int(number)][self._text_key])
            if hashlib.sha256(data).digest() != self.hashes[number].tobytes():
                raise DamagedData(
                    f"document {number} under {self._examples} has changed since it was "
                    f"prepared; remove {self.folder} and start again"
                )
            yield data.decode("utf-8")

    def document_name(self, number: int) -> str:
        """What to call a document in a message."""
        if self._name_key:
            return text_bytes(self._source[int(number)][self._name_key]).decode("utf-8")
        return f"{self.name} example {number}"


def text_bytes(value: str | bytes) -> bytes:
    """A text feature as UTF-8."""
    return value.encode("utf-8") if isinstance(value, str) else bytes(value)


def _source(folder: Path):
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(folder).as_data_source(split="train")


class IndexWriter:
    """Collects hashes and sizes of documents and writes them into a folder at the end."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.hashes: list[bytes] = []
        self.sizes: list[int] = []

    def __enter__(self) -> "IndexWriter":
        self._listing = open(self.folder / "documents.jsonl", "w", encoding="utf-8")
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._listing.close()
        if kind is None:
            hashes = np.frombuffer(b"".join(self.hashes), np.uint8).reshape(-1, 32)
            sizes = np.array(self.sizes, np.int64)
            np.savez(self.folder / "index.npz", hashes=hashes, sizes=sizes)

    def add(self, name: str, data: bytes) -> int:
        """Note one document; returns its number."""
        digest = hashlib.sha256(data)
        self.hashes.append(digest.digest())
        self.sizes.append(len(data))
        line = {"name": name, "bytes": len(data), "sha256": digest.hexdigest()}
        self._listing.write(json.dumps(line) + "\n")
        return len(self.sizes) - 1

    @property
    def record(self) -> dict:
        """Counts, and one sha256 over the sorted hashes of the documents."""
        return {
            "documents": len(self.sizes),
            "bytes": sum(self.sizes),
            "sha256": hashlib.sha256(b"".join(sorted(self.hashes))).hexdigest(),
        }


@functools.cache
def _builder_class(builder_name: str) -> type:
    import tensorflow_datasets as tfds

    class LocalInfo(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """There is no bucket to ask: these sets are made here."""

    class TextBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Documents of one corpus, in the order in which they are generated."""

        name = builder_name
        VERSION = tfds.core.Version("1.0.0")

        def __init__(self, examples, **options):
            self._examples_of = examples
            super().__init__(**options)

        def _info(self):
            text = tfds.features.Text()
            return LocalInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"name": text, "text": text}),
                disable_shuffling=True,  # the order is that of the document hashes, set later
            )

        def _split_generators(self, download_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from self._examples_of()

    return TextBuilder


def _write_examples(name: str, examples, data_dir: Path) -> None:
    import tensorflow_datasets as tfds

    failure = []

    def guarded():
        # TFDS decorates exceptions of a generator: keep the one line that was meant.
        try:
            yield from examples()
        except BadInput as error:
            failure.append(error)
            raise

    builder = _builder_class(name)(guarded, data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with quiet_tfds():
        try:
            builder.download_and_prepare(download_config=config)
        except Exception:
            if failure:
                raise failure[0] from None
            raise


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Keep TFDS's banners and progress bars off the screen; ours is one line."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
