"""What to train on: corpus, tokenizer, windows and split, in one frozen dataclass."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gptjax.data.zipf import ZipfFacts
from gptjax.errors import BadInput, check_types, did_you_mean

CORPORA = ("pycode", "shakespeare", "files", "zipf_facts", "digits")
IMAGES = {"digits": (64, 17)}  # corpora of images: pixels, grey levels
MAX_SENTENCEPIECE_VOCAB = 1 << 20  # beyond it the trainer takes all memory and ends the process
MAX_WORKERS = 1024  # each is a thread
MIN_SENTENCEPIECE_VOCAB = 320  # 256 bytes, the separator, the escapes and some letters
TFDS_NAME = re.compile(r"tfds:[a-z0-9_]+(/[\w.+-]+)?(:\d+\.\d+\.\d+)?")


@dataclass(frozen=True)
class DataConfig:
    """A corpus cut into windows of tokens; every field takes part in what a run sees.

    `max_bytes` bounds the training documents only, so that runs with different amounts share
    one validation split. With `document_attention="within"` a batch carries `segments`, with
    `positions="document"` it carries `positions`.
    """

    corpus: str = "pycode"  # pycode | shakespeare | files | zipf_facts | digits | tfds:NAME
    files: tuple[str, ...] = ()  # globs of .txt, .jsonl, .gz, .zst (also .jsonl.zst)
    text_key: str = "text"  # field of a JSON line or feature of a TFDS example
    facts: ZipfFacts = field(default_factory=ZipfFacts)  # of the corpus zipf_facts
    # symbols: of zipf_facts and digits; file: whatever tokenizer_file names
    tokenizer: Literal["bytes", "bpe", "unigram", "symbols", "file"] = "bytes"
    vocab_size: int = 8192  # of a sentencepiece model trained here; bytes has 257
    tokenizer_file: str = ""  # bpe, unigram: a sentencepiece model; file: a folder or a file
    batch_size: int = 16  # sequences in a global batch
    sequence_length: int = 256  # tokens
    max_bytes: int = 0  # about this much training text, documents in hash order; 0 = all
    validation_fraction: float = 0.01  # of the documents, chosen by document hash
    epochs: int = 0  # 0 = as many as the run needs
    seed: int = 0  # of the order of the windows
    long_documents: Literal["split", "truncate", "refuse"] = "split"
    document_attention: Literal["across", "within"] = "across"
    positions: Literal["window", "document"] = "window"  # document = 0 at each document start
    workers: int = 0  # threads that read ahead; the order and the state do not depend on it
    cache_dir: str = ""  # "" = $GPTJAX_CACHE or ~/.cache/gptjax

    @property
    def symbols(self) -> int:
        """Ids of the tokenizer `symbols` but its separator."""
        return IMAGES[self.corpus][1] if self.corpus in IMAGES else self.facts.symbols

    def validate(self) -> None:
        """Raise `BadInput` for the first field that cannot be used; reads no file."""
        check_types("data", self)
        self._validate_corpus()
        self._validate_facts()
        if self.tokenizer in ("bytes", "symbols") and self.tokenizer_file:
            raise BadInput(
                f"data.tokenizer_file is given but data.tokenizer is {self.tokenizer!r}; "
                "set data.tokenizer to 'file', or leave the file out"
            )
        if self.tokenizer == "file" and not self.tokenizer_file:
            raise BadInput(
                "data.tokenizer='file' needs data.tokenizer_file: a folder with a tokenizer.json, "
                "vocab.json and merges.txt, vocab.txt or tokenizer.model, or one of these files"
            )
        if self.tokenizer in ("bpe", "unigram") and not self.tokenizer_file:
            _check_at_least("vocab_size", self.vocab_size, MIN_SENTENCEPIECE_VOCAB)
            _check_at_most("vocab_size", self.vocab_size, MAX_SENTENCEPIECE_VOCAB)
        for name in ("batch_size", "sequence_length"):
            _check_at_least(name, getattr(self, name), 1)
        for name in ("max_bytes", "epochs", "seed", "workers"):
            _check_at_least(name, getattr(self, name), 0)
        _check_at_most("workers", self.workers, MAX_WORKERS)
        if not 0 < self.validation_fraction < 1:
            nearest = 0.01 if self.validation_fraction <= 0 else 0.5
            raise BadInput(
                f"data.validation_fraction={self.validation_fraction} leaves a split without "
                f"documents; it lies between 0 and 1, for example {nearest}"
            )

    def _validate_corpus(self) -> None:
        if self.corpus.startswith("tfds:"):
            if not TFDS_NAME.fullmatch(self.corpus):
                raise BadInput(
                    f"data.corpus={self.corpus!r} is not a TFDS name; "
                    "write tfds:NAME or tfds:NAME/CONFIG, for example tfds:lm1b"
                )
        elif self.corpus not in CORPORA:
            raise BadInput(
                f"data.corpus={self.corpus!r} is not one of {', '.join(CORPORA)}, tfds:NAME"
                + did_you_mean(self.corpus, CORPORA)
            )
        if self.corpus == "files" and not self.files:
            raise BadInput(
                "data.corpus='files' needs data.files, for example --data.files 'texts/*.txt'"
            )
        if self.corpus != "files" and self.files:
            raise BadInput(
                f"data.files is given but data.corpus is {self.corpus!r}; "
                "set data.corpus to 'files'"
            )
        for path in (*self.files, self.tokenizer_file, self.cache_dir):
            if "\0" in path:
                raise BadInput(f"data: {path!r} holds NUL, which no path does")
        if "" in self.files:
            raise BadInput("data.files holds an empty name; give globs such as 'texts/*.txt'")
        if not self.text_key:
            raise BadInput("data.text_key is empty; name the field with the text, often 'text'")

    def _validate_facts(self) -> None:
        """What the exact entropy of zipf_facts rests on: whole facts, each seen by itself."""
        made = self.corpus == "zipf_facts" or self.corpus in IMAGES
        if made != (self.tokenizer == "symbols"):
            raise BadInput(
                f"data.tokenizer={self.tokenizer!r} does not go with data.corpus={self.corpus!r}; "
                "the corpora zipf_facts and digits and the tokenizer symbols belong together"
            )
        if self.corpus in IMAGES:
            self._validate_images()
        if self.corpus != "zipf_facts":
            if self.facts != ZipfFacts():
                raise BadInput(
                    f"data.facts is given but data.corpus is {self.corpus!r}; "
                    "set data.corpus to 'zipf_facts'"
                )
            return
        self.facts.validate()
        if self.sequence_length % self.facts.length:
            whole = max(round(self.sequence_length / self.facts.length), 1) * self.facts.length
            raise BadInput(
                f"data.sequence_length={self.sequence_length} cuts facts of {self.facts.length} "
                f"tokens; the nearest that does not is {whole}"
            )
        if (self.document_attention, self.positions) != ("within", "document"):
            raise BadInput(
                "facts are predicted each by itself: set data.document_attention to 'within' and "
                "data.positions to 'document'"
            )
        if self.long_documents != "split":
            raise BadInput(
                f"data.long_documents={self.long_documents!r} would drop facts; set it to 'split'"
            )

    def _validate_images(self) -> None:
        """An image and its separator fill a window, or several fill it whole."""
        unit = IMAGES[self.corpus][0] + 1
        if self.sequence_length % unit:
            whole = max(round(self.sequence_length / unit), 1) * unit
            raise BadInput(
                f"data.sequence_length={self.sequence_length} cuts images of {unit - 1} pixels and "
                f"a separator; the nearest that does not is {whole}"
            )
        if self.document_attention != "within" or self.long_documents != "split":
            raise BadInput(
                "images are predicted each by itself: set data.document_attention to 'within' and "
                "data.long_documents to 'split'"
            )


def cache_root(config: DataConfig) -> Path:
    """The folder that holds prepared corpora, tokenizers and tokens."""
    chosen = config.cache_dir or os.environ.get("GPTJAX_CACHE") or "~/.cache/gptjax"
    return absolute(chosen, "data.cache_dir" if config.cache_dir else "GPTJAX_CACHE")


def absolute(path: str, name: str) -> Path:
    """A path that the user gave as `name`, from the root, with ~ replaced."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:  # ~nobody
        raise BadInput(f"{name} is {path!r}: {error}") from None


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise BadInput(f"data.{name}={value} is too small; the least is {least}")


def _check_at_most(name: str, value: int, most: int) -> None:
    if value > most:
        raise BadInput(f"data.{name}={value} is too large; the most is {most}")
