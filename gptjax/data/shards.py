"""Tokens on disk: one flat array for each split, memory-mapped.

Documents stand in hash order, each after one separator id. The ids are uint16 where the
vocabulary allows it, else uint32.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gptjax.data.cache import Report
from gptjax.data.corpora.base import DocumentStore
from gptjax.data.splits import Split
from gptjax.data.tokenizers import Tokenizer
from gptjax.errors import BadInput

FORMAT = 1  # raise it when what is written changes
SPLITS = ("train", "validation")
BLOCK_BYTES = 8 << 20  # of text tokenised at once


def shard_dtype(vocab_size: int) -> np.dtype:
    """The dtype of ids on disk; raises `BadInput` for more ids than an int32 batch can name."""
    if vocab_size <= 1 << 16:
        return np.dtype(np.uint16)
    if vocab_size <= 1 << 31:
        return np.dtype(np.uint32)
    raise BadInput(
        f"a vocabulary of {vocab_size} ids is over what the tokens' dtype holds; "
        f"the largest is {1 << 31}"
    )


def write_shards(
    folder: Path,
    store: DocumentStore,
    split: Split,
    tokenizer: Tokenizer,
    truncate: int,
    report: Report,
) -> dict:
    """Tokenise both splits into `folder`; `truncate` > 0 keeps that many ids of a document.

    Returns the record: counts, the longest document, the unigram cross-entropy.
    """
    dtype = shard_dtype(tokenizer.vocab_size)
    record = {"dtype": dtype.name}
    counts = {}
    longest = (-1, -1)
    for name in SPLITS:
        numbers = getattr(split, name)
        last_bytes = split.last_bytes if name == "train" else 0
        report(f"tokenising {len(numbers):,} documents for {name}")
        documents = size = tokens = 0
        counts[name] = np.zeros(tokenizer.vocab_size, np.int64)
        with open(folder / f"{name}.bin", "wb") as file:
            for block, texts in _blocks(store, numbers, last_bytes):
                encoded = tokenizer.encode_many(texts)
                lengths = map(len, encoded)
                longest = max(longest, *zip(lengths, map(int, block), strict=True))
                ids = _joined(encoded, tokenizer.separator_id, truncate, dtype)
                file.write(ids.data)  # `tofile` hides why a write failed
                counts[name] += np.bincount(ids, minlength=tokenizer.vocab_size)
                documents += len(texts)
                tokens += len(ids)
                size += int(store.sizes[block].sum())
        if name == "train":
            size += split.last_bytes - int(store.sizes[numbers[-1]])
        record[name] = {"documents": documents, "bytes": size, "tokens": tokens}
    record["longest"] = {"tokens": longest[0], "name": store.document_name(longest[1])}
    record["unigram_entropy"] = _cross_entropy(counts["train"], counts["validation"])
    return record


def training_texts(store: DocumentStore, split: Split, most_bytes: int) -> Iterator[str]:
    """Training documents in their order up to about `most_bytes`: a random sample."""
    total = 0
    for _, texts in _blocks(store, split.train, split.last_bytes):
        for text in texts:
            yield text
            total += len(text.encode("utf-8"))
            if total >= most_bytes:
                return


def open_shard(folder: Path, name: str, record: dict) -> np.ndarray:
    """The memory-mapped ids of one split, [tokens]."""
    return np.memmap(
        folder / f"{name}.bin", np.dtype(record["dtype"]), "r", shape=(record[name]["tokens"],)
    )


def _blocks(
    store: DocumentStore, numbers: np.ndarray, last_bytes: int
) -> Iterator[tuple[Sequence[int], list[str]]]:
    """(numbers, texts) of about BLOCK_BYTES each; `last_bytes` > 0 cuts the last document."""
    sizes = np.cumsum(store.sizes[numbers])
    cuts = np.flatnonzero(np.diff(sizes // BLOCK_BYTES)) + 1
    for block in np.split(numbers, cuts):
        texts = list(store.texts(block))
        if last_bytes and len(block) and block[-1] == numbers[-1]:
            texts[-1] = texts[-1].encode("utf-8")[:last_bytes].decode("utf-8", "ignore")
        yield block, texts


def _joined(
    encoded: Sequence[np.ndarray], separator: int, truncate: int, dtype: np.dtype
) -> np.ndarray:
    kept = [ids[:truncate] if truncate else ids for ids in encoded]
    joined = np.empty(sum(map(len, kept)) + len(kept), dtype)
    start = 0
    for ids in kept:
        joined[start] = separator
        joined[start + 1 : start + 1 + len(ids)] = ids
        start += 1 + len(ids)
    return joined


def _cross_entropy(train: np.ndarray, validation: np.ndarray) -> float:
    """Nats per validation token under the training counts, one added to each."""
    log_p = np.log(train + 1.0) - np.log(train.sum() + len(train))
    return float(-(validation * log_p).sum() / max(validation.sum(), 1))
