"""From a `DataConfig` to batches: corpus, tokenizer and tokens, each once into the cache."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gptjax.data import loader, shards
from gptjax.data.cache import Report, key_of, prepared, read_record
from gptjax.data.config import DataConfig, cache_root
from gptjax.data.corpora import DocumentStore, make_corpus
from gptjax.data.splits import Split, split_documents
from gptjax.data.tokenizers import (
    ByteTokenizer,
    SymbolTokenizer,
    Tokenizer,
    load_tokenizer,
    tokenizer_of,
    train_sentencepiece,
)
from gptjax.errors import BadInput

TOKENIZER_FORMAT = 1  # raise it when the training of tokenizers changes
TOKENIZER_SAMPLE_BYTES = 20_000_000
# Rough: pycode has 2.7 bytes a GPT-2 token, English prose 4 to 4.5; a symbol of facts is 2 bytes.
BYTES_PER_TOKEN = {"bytes": 1.0, "symbols": 2.0, "bpe": 3.0, "unigram": 3.0, "file": 3.0}


class Dataset:
    """A prepared corpus: batches to train on, batches to validate on, and what they are."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, folder: Path, manifest: dict):
        self.config = config
        self.tokenizer = tokenizer
        self.folder = folder
        self.manifest = manifest
        self._ids = {name: shards.open_shard(folder, name, manifest) for name in shards.SPLITS}

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer, the separator among them."""
        return self.tokenizer.vocab_size

    @property
    def token_bytes(self) -> np.ndarray:
        """int32 [vocab_size]: UTF-8 bytes that each id stands for."""
        return self.tokenizer.token_bytes

    @property
    def unigram_entropy(self) -> float:
        """Nats per validation token under the training split's token frequencies."""
        return self.manifest["unigram_entropy"]

    def windows(self, rows: loader.Rows | None = None) -> int:
        """Training rows in an epoch."""
        rows = rows or loader.plain_rows(self.config.sequence_length)
        return loader.count_windows(len(self._ids["train"]), rows.raw, rows.overlap)

    def train_iterator(
        self, process_index: int = 0, process_count: int = 1, rows: loader.Rows | None = None
    ) -> loader.TrainIterator:
        """The training batches of one process: its rows of every global batch.

        rows: what an objective makes of windows, by default the tokens that follow each.
        """
        config = self.config
        told = {"rows": rows.name} if rows is not None and rows.name else {}
        key = key_of(
            {
                "tokens": self.manifest["key"],
                "batch_size": config.batch_size,
                "sequence_length": config.sequence_length,
                "seed": config.seed,
                **told,
            }
        )
        reader = self._reader("train", process_index, process_count, rows)
        return loader.TrainIterator(
            reader, config.batch_size, config.epochs, config.seed, config.workers, key
        )

    def validation_batches(
        self,
        count: int,
        process_index: int = 0,
        process_count: int = 1,
        rows: loader.Rows | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Up to `count` batches, the same at every call and for every data seed."""
        reader = self._reader("validation", process_index, process_count, rows)
        return loader.validation_batches(reader, self.config.batch_size, count)

    def target_entropy(self, rows: loader.Rows, count: int = 512) -> float:
        """Nats per target of validation rows under the frequencies of those of training rows.

        Both of up to `count` rows, each id once more than it was seen.
        """
        counts = []
        for split in shards.SPLITS:
            reader = self._reader(split, 0, 1, rows, whole=True)
            windows = np.unique(np.linspace(0, reader.windows - 1, count).astype(int))
            batch = reader([(window, window) for window in windows])
            chosen = batch["weights"] > 0 if "weights" in batch else slice(None)
            counts.append(np.bincount(batch["targets"][chosen].reshape(-1)))
        size = max(map(len, counts))
        train, validation = (np.pad(c, (0, size - len(c))) for c in counts)
        chances = (train + 1) / (train + 1).sum()
        return float(-(validation * np.log(chances)).sum() / validation.sum())

    def _reader(
        self,
        split: str,
        process_index: int,
        process_count: int,
        rows: loader.Rows | None,
        whole: bool = False,
    ) -> loader.RowReader:
        config = self.config
        if config.batch_size % process_count:
            below = config.batch_size - config.batch_size % process_count
            raise BadInput(
                f"data.batch_size={config.batch_size} is not divisible by {process_count} "
                f"processes; the nearest are {below or process_count} and {below + process_count}"
            )
        if rows is not None:
            sizes = [len(self._ids[name]) for name in shards.SPLITS]
            loader.check_enough(*sizes, config.sequence_length, config.batch_size, rows)
        size = config.batch_size // process_count
        seed = config.seed if split == "train" else "of validation"
        return loader.RowReader(
            self._ids[split],
            rows or loader.plain_rows(config.sequence_length),
            self.tokenizer.separator_id,
            slice(None) if whole else slice(process_index * size, (process_index + 1) * size),
            segments=config.document_attention == "within",
            positions=config.positions == "document",
            seed=loader.seed_of(f"rows {seed}"),
        )


def prepare(config: DataConfig, report: Report | None = None) -> Dataset:
    """Everything that `config` asks for, from the cache or made now and cached.

    `report` gets lines of progress. Raises `BadInput` for whatever a user can mend.
    """
    report = report or (lambda line: None)
    config.validate()
    brought = None
    if config.tokenizer_file:
        brought = tokenizer_of(config.tokenizer_file, config.tokenizer)
        shards.shard_dtype(brought.vocab_size)
        if not brought.exact:
            report(
                f"{config.tokenizer_file} does not keep every text exactly; "
                "bits per byte are those of the text as it normalises it"
            )
    store = make_corpus(config, report).prepare()
    chosen = _chosen(config, store.record)
    parts = _Parts(config, store, report)
    tokenizer = brought or parts.tokenizer(chosen)
    truncate = config.sequence_length if config.long_documents == "truncate" else 0
    key = _tokens_key(config, chosen, tokenizer.kind, tokenizer.sha256)
    folder = cache_root(config) / "tokens" / key
    tokens = prepared(
        folder,
        lambda path: shards.write_shards(path, store, parts.split, tokenizer, truncate, report),
        report,
    )
    refuse_long(config, **tokens["longest"])
    sizes = [tokens[name]["tokens"] for name in shards.SPLITS]
    loader.check_enough(*sizes, config.sequence_length, config.batch_size)
    manifest = {
        "corpus": store.name,
        "corpus_sha256": store.record["sha256"],
        "corpus_documents": store.record["documents"],
        "corpus_bytes": store.record["bytes"],
        "corpus_details": store.record["details"],
        "tokenizer": tokenizer.kind,
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "key": key,
        **tokens,
    }
    return Dataset(config, tokenizer, folder, manifest)


def training_tokens(config: DataConfig) -> tuple[int, bool] | None:
    """(tokens in an epoch over the training split, whether they have been counted).

    Looks at the cache and at the sizes of files alone. What has not been tokenised is estimated
    by `BYTES_PER_TOKEN`; None where a corpus tells nothing before it is fetched.
    """
    corpus = make_corpus(config, lambda line: None)
    record = _known(corpus.folder)
    if record is not None:
        found = _counted(config, record)
        if found is not None:
            return found, True
    size = record["bytes"] if record else corpus.expected_bytes()
    if size is None:
        return None
    size = size * (1 - config.validation_fraction)
    if config.max_bytes:
        size = min(size, config.max_bytes)
    return int(size / BYTES_PER_TOKEN[config.tokenizer]), False


def _counted(config: DataConfig, corpus: dict) -> int | None:
    """Tokens of a training split that stands in the cache."""
    chosen = _chosen(config, corpus)
    if config.tokenizer_file:
        brought = tokenizer_of(config.tokenizer_file, config.tokenizer)
        kind, sha256 = brought.kind, brought.sha256
    elif config.tokenizer in ("bytes", "symbols"):
        plain = {"bytes": ByteTokenizer, "symbols": lambda: SymbolTokenizer(config.symbols)}
        made = plain[config.tokenizer]()
        kind, sha256 = made.kind, made.sha256
    else:
        trained = _known(_tokenizer_folder(config, chosen))
        if trained is None:
            return None
        kind, sha256 = config.tokenizer, trained["sha256"]
    tokens = _known(cache_root(config) / "tokens" / _tokens_key(config, chosen, kind, sha256))
    return tokens and tokens["train"]["tokens"]


def _known(folder: Path) -> dict | None:
    try:
        return read_record(folder, "size")
    except BadInput:  # damaged: it will be made again
        return None


def _chosen(config: DataConfig, corpus: dict) -> dict:
    """Which documents stand in which split, as the keys of the cache name it."""
    return {
        "corpus": corpus["sha256"],
        "validation_fraction": config.validation_fraction,
        "max_bytes": config.max_bytes,
    }


def _tokenizer_folder(config: DataConfig, chosen: dict) -> Path:
    settings = [config.tokenizer, config.vocab_size, TOKENIZER_SAMPLE_BYTES]
    key = key_of([TOKENIZER_FORMAT, chosen, settings])
    return cache_root(config) / "tokenizers" / f"{config.tokenizer}-{key}"


def _tokens_key(config: DataConfig, chosen: dict, kind: str, sha256: str) -> str:
    truncate = config.sequence_length if config.long_documents == "truncate" else 0
    return key_of([shards.FORMAT, chosen, kind, sha256, truncate])


class _Parts:
    """The split, worked out at most once and only if something must be built."""

    def __init__(self, config: DataConfig, store: DocumentStore, report: Report):
        self.config = config
        self.store = store
        self.report = report
        self._split: Split | None = None

    @property
    def split(self) -> Split:
        if self._split is None:
            config, store = self.config, self.store
            self._split = split_documents(
                store.hashes, store.sizes, config.validation_fraction, config.max_bytes
            )
        return self._split

    def tokenizer(self, chosen: dict) -> Tokenizer:
        """Bytes, symbols, or a sentencepiece model trained on a sample of the training split."""
        config = self.config
        if config.tokenizer == "bytes":
            return ByteTokenizer()
        if config.tokenizer == "symbols":
            return SymbolTokenizer(config.symbols)
        folder = _tokenizer_folder(config, chosen)
        prepared(folder, self._train_tokenizer, self.report)
        return load_tokenizer(folder)

    def _train_tokenizer(self, folder: Path) -> dict:
        texts = shards.training_texts(self.store, self.split, TOKENIZER_SAMPLE_BYTES)
        config = self.config
        made = train_sentencepiece(config.tokenizer, config.vocab_size, texts, self.report)
        made.save(folder)
        return {"sha256": made.sha256}


def refuse_long(config: DataConfig, name: str, tokens: int) -> None:
    """Refuse a document over the sequence length where `data.long_documents` says so."""
    if config.long_documents == "refuse" and tokens > config.sequence_length:
        raise BadInput(
            f"document {name} has {tokens} tokens, more than "
            f"data.sequence_length={config.sequence_length}; set data.long_documents to 'split' "
            "(over several windows) or 'truncate' (keep its beginning)"
        )
