"""Any TFDS set by name, `tfds:lm1b`: the text feature of its train split.

TFDS fetches most sets from the network; without one it tries for minutes before it gives up,
hence the line printed first. Sets that need TensorFlow to be prepared are refused by TFDS.
"""

from pathlib import Path

from gptjax.data.cache import Report, key_of, prepared
from gptjax.data.config import DataConfig, cache_root
from gptjax.data.corpora.base import Corpus, DocumentStore, IndexWriter, text_bytes
from gptjax.errors import BadInput, did_you_mean

SPLIT = "train"


class TfdsSet(Corpus):
    """Documents are the examples of a TFDS set; splits are made here, by document hash."""

    def __init__(self, config: DataConfig, report: Report):
        super().__init__(config, report)
        self.name = config.corpus
        self.tfds_name = config.corpus.removeprefix("tfds:")

    def fingerprint(self) -> str:
        return key_of([self.tfds_name, self.config.text_key])

    def prepare(self) -> DocumentStore:
        root = cache_root(self.config)
        folder = self.folder
        record = prepared(folder, lambda path: self._index_set(root, path), self.report, "size")
        examples = root / record["examples"]
        if not (examples / "dataset_info.json").is_file():
            self._download(root)
        return DocumentStore(self.name, examples, folder, record, self.config.text_key, "")

    def _index_set(self, root: Path, folder: Path) -> dict:
        builder = self._download(root)
        features = builder.info.features
        text_key = self.config.text_key
        if text_key not in features:
            raise BadInput(
                f"{self.name} has no feature {text_key!r}, only {', '.join(sorted(features))}; "
                "set data.text_key"
            )
        if SPLIT not in builder.info.splits:
            raise BadInput(
                f"{self.name} has no split {SPLIT!r}, only {', '.join(builder.info.splits)}"
            )
        source = builder.as_data_source(split=SPLIT)
        if not len(source):
            raise BadInput(f"corpus {self.name!r} has no document")
        if not isinstance(source[0][text_key], str | bytes):
            raise BadInput(f"{self.name} feature {text_key!r} is not text; set data.text_key")
        with IndexWriter(folder) as index:
            for number in range(len(source)):
                data = text_bytes(source[number][text_key])
                _check_utf8(data, f"{self.name} example {number}")
                index.add(str(number), data)
        details = {"tfds": builder.info.full_name}
        examples = Path(builder.data_path).relative_to(root).as_posix()
        return index.record | {"examples": examples, "details": details}

    def _download(self, root: Path):
        self.report(
            f"preparing {self.name}: TFDS fetches it from the network; "
            "without one it fails after about 200 seconds"
        )
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder(
                self.tfds_name, data_dir=root / "tfds", file_format="array_record"
            )
        except tfds.core.DatasetNotFoundError:
            # The list of the community's sets lies on a server and wants TensorFlow to be read.
            known = tfds.list_builders(with_community_datasets=False)
            raise BadInput(
                f"data.corpus={self.name!r} is not a set that TFDS knows"
                + did_you_mean(self.tfds_name, known)
            ) from None
        except Exception as error:
            raise BadInput(f"{self.name} cannot be opened by TFDS: {_first_line(error)}") from error
        # The bucket's prepared copies are tfrecord, which needs TensorFlow: never ask for them.
        download = tfds.download.DownloadConfig(try_download_gcs=False)
        try:
            builder.download_and_prepare(download_config=download)
        except Exception as error:
            raise BadInput(
                f"{self.name} could not be prepared by TFDS ({_first_line(error)}); it needs a "
                "network, some sets need TensorFlow; data.corpus='pycode' needs neither"
            ) from error
        return builder


def _check_utf8(data: bytes, where: str) -> None:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{where} is not UTF-8 at byte offset {error.start}") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
