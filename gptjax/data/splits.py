"""Which documents a run trains on and which it is validated on, decided by their hashes.

The first eight bytes of a document's sha256 order the documents (a shuffle that every machine
repeats), the next eight choose the split. Equal documents have equal hashes, so no text stands
in both splits. `max_bytes` bounds the training documents only, in their order: a smaller
amount is the beginning of a larger one and the validation split is the same for all.
"""

from dataclasses import dataclass

import numpy as np

from gptjax.errors import BadInput


@dataclass(frozen=True)
class Split:
    """Numbers of documents in hash order; the last training document ends at `last_bytes`."""

    train: np.ndarray  # int64
    validation: np.ndarray  # int64
    last_bytes: int  # UTF-8 bytes kept of the last training document


def split_documents(
    hashes: np.ndarray, sizes: np.ndarray, validation_fraction: float, max_bytes: int = 0
) -> Split:
    """Split documents by hash; at least one (the lowest) is validated on, one trained on.

    `hashes` is uint8 [documents, 32], `sizes` int64 [documents]. Raises `BadInput` when all
    documents would be in one split, which happens when all have the same text.
    """
    words = np.ascontiguousarray(hashes).view(">u8").astype(np.uint64)
    order = np.lexsort((words[:, 2], words[:, 0]))
    chance = words[order, 1]
    threshold = np.uint64(min(int(validation_fraction * 2.0**64), 2**64 - 1))
    held_out = chance < threshold
    if not held_out.any():
        held_out = chance == chance.min()
    if held_out.all():
        held_out = chance != chance.max()
    train, validation = order[~held_out], order[held_out]
    if not len(train) or not len(validation):
        raise BadInput(
            f"all {len(sizes)} documents of the corpus fall into one split, as a document is "
            "never cut in two for it; give at least two different documents "
            "(more files, or JSON lines)"
        )
    ends = np.cumsum(sizes[train])
    last = int(sizes[train[-1]])
    if max_bytes and ends[-1] > max_bytes:
        count = int(np.searchsorted(ends, max_bytes)) + 1
        train = train[:count]
        last = int(max_bytes - (ends[count - 2] if count > 1 else 0))
    return Split(train, validation, last)
