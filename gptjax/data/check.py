"""What `prepare` would refuse, told within a second and before anything is prepared."""

import hashlib

import numpy as np

from gptjax.data import loader, shards
from gptjax.data.cache import RECORD, check_writable
from gptjax.data.config import DataConfig, cache_root
from gptjax.data.corpora import make_corpus
from gptjax.data.prepare import refuse_long
from gptjax.data.splits import split_documents
from gptjax.data.text_files import Enough, find_files, read_documents
from gptjax.data.tokenizers import tokenizer_of
from gptjax.errors import BadInput

MOST_BYTES = 8 << 20  # of the user's files that are read


def check(config: DataConfig) -> int:
    """Refuse what `prepare` would refuse, as far as it is soon known; the tokenizer's ids.

    The user's files are read up to `MOST_BYTES`, and where that is all of them, it is known
    whether they give two splits and a batch (of bytes: what sentencepiece makes of them is not).
    Downloads and names of TFDS sets are left to `prepare`.
    """
    config.validate()
    ids = {"bytes": 257, "symbols": config.symbols + 1}.get(config.tokenizer)
    if ids is None:
        ids = config.vocab_size
    if config.tokenizer_file:
        ids = tokenizer_of(config.tokenizer_file, config.tokenizer).vocab_size
        shards.shard_dtype(ids)
    if config.corpus == "files":
        _check_files(config)
    try:
        check_writable(cache_root(config))
    except BadInput:
        if not (make_corpus(config, lambda line: None).folder / RECORD).exists():
            raise
    return ids


def _check_files(config: DataConfig) -> None:
    names, sizes, hashes, left = [], [], [], MOST_BYTES
    try:
        for path in find_files(config.files):
            for name, text in read_documents(path, config.text_key, left):
                data = text.encode("utf-8")
                left -= len(data)
                if data:
                    names.append(name)
                    sizes.append(len(data))
                    hashes.append(hashlib.sha256(data).digest())
                if config.tokenizer == "bytes":
                    refuse_long(config, name, len(data))
    except Enough:
        return
    if not names:
        raise BadInput("corpus 'files' has no document with text in it")
    split = split_documents(
        np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32),
        np.array(sizes, np.int64),
        config.validation_fraction,
        config.max_bytes,
    )
    if config.tokenizer != "bytes":
        return
    kept = np.array(sizes, np.int64)
    kept[split.train[-1]] = split.last_bytes
    if config.long_documents == "truncate":
        kept = np.minimum(kept, config.sequence_length)
    tokens = [int((kept[n] + 1).sum()) for n in (split.train, split.validation)]
    loader.check_enough(*tokens, config.sequence_length, config.batch_size)
