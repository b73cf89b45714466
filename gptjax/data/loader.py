"""Batches of windows out of a flat array of ids, by grain: shuffled, repeated, resumable.

Window i is ids i*T to i*T + T inclusive, its targets are its tokens shifted by one, so
neighbours share one id and every id but the first is predicted exactly once in an epoch (the
last, shorter window is left out). Grain shuffles the numbers of the windows anew in each epoch
and groups them into global batches; a batch may span two epochs. A process reads its rows of
the global batch only, so the order does not depend on how many processes there are, and the
state is a count of batches that any number of processes and reading threads may take up.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from gptjax.errors import BadInput


def count_windows(tokens: int, length: int) -> int:
    """Whole windows of `length` tokens in a flat array of `tokens`."""
    return max(tokens - 1, 0) // length


def check_enough(train: int, validation: int, length: int, batch_size: int) -> None:
    """Refuse splits of so many tokens without a batch to train on or a window to validate on."""
    if not count_windows(validation, length):
        raise BadInput(
            f"the validation split has {validation} tokens, fewer than one window of "
            f"data.sequence_length={length}; raise data.validation_fraction, give more "
            "text or shorten the sequence"
        )
    windows = count_windows(train, length)
    if windows < batch_size:
        raise BadInput(
            f"the training split has {windows} windows of {length} tokens, fewer than "
            f"data.batch_size={batch_size}; give more text, a smaller batch or a shorter "
            "data.sequence_length"
        )


class WindowReader:
    """Reads rows of windows: a callable from window numbers to a batch.

    The batch has int32 [b, T] arrays: `tokens`, `targets`, and as asked for `segments` (number
    of the document within the window, from 0) and `positions` (0 at each document's separator
    and at the window's start).
    """

    def __init__(
        self,
        ids: np.ndarray,
        length: int,
        separator: int,
        rows: slice,
        segments: bool,
        positions: bool,
    ):
        self.ids = ids
        self.length = length
        self.separator = separator
        self.rows = rows
        self.segments = segments
        self.positions = positions

    def __call__(self, windows: Sequence[int]) -> dict[str, np.ndarray]:
        windows = windows[self.rows]
        ids, length = self.ids, self.length
        tokens_BT = np.empty((len(windows), length), np.int32)
        targets_BT = np.empty((len(windows), length), np.int32)
        for row, window in enumerate(windows):
            start = int(window) * length
            tokens_BT[row] = ids[start : start + length]
            targets_BT[row] = ids[start + 1 : start + length + 1]
        batch = {"tokens": tokens_BT, "targets": targets_BT}
        if self.segments or self.positions:
            starts_BT = tokens_BT == self.separator
            if self.segments:
                numbers_BT = np.cumsum(starts_BT, axis=1, dtype=np.int32)
                batch["segments"] = numbers_BT - numbers_BT[:, :1]
            if self.positions:
                place_T = np.arange(length, dtype=np.int32)
                last_start_BT = np.maximum.accumulate(np.where(starts_BT, place_T, 0), axis=1)
                batch["positions"] = (place_T - last_start_BT).astype(np.int32)
        return batch


class TrainIterator:
    """Endless or `epochs` long; `get_state` and `set_state` are exact and cheap."""

    def __init__(
        self, reader: WindowReader, batch_size: int, epochs: int, seed: int, workers: int, key: str
    ):
        import grain

        batches = (
            grain.MapDataset.range(count_windows(len(reader.ids), reader.length))
            .shuffle(seed=_shuffle_seed(seed))
            .repeat(epochs or None)
            .batch(batch_size, drop_remainder=True, batch_fn=reader)
        )
        # Threads, not processes: reading is memory-bound, and the state stays one number.
        options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4 * workers)
        self._iterator = iter(batches.to_iter_dataset(options))
        self._key = key

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def get_state(self) -> dict:
        """A small JSON-able dict; the next batch after `set_state` of it is the next one now."""
        return {"data": self._key, "grain": self._iterator.get_state()}

    def set_state(self, state: dict) -> None:
        """Continue where `state` was taken; raises `BadInput` for a state of other data."""
        try:
            key, inner = state["data"], state["grain"]
        except (KeyError, TypeError):
            raise BadInput("the saved data iterator is not one that this loader wrote") from None
        if key != self._key:
            raise BadInput(
                "the saved data iterator belongs to another corpus, tokenizer, batch size, "
                "sequence length or data seed; continue with the run's own data settings"
            )
        self._iterator.set_state(inner)


def validation_batches(
    reader: WindowReader, batch_size: int, count: int
) -> Iterator[dict[str, np.ndarray]]:
    """Up to `count` batches in one fixed random order; fewer batches are a prefix of more.

    A split smaller than one batch gives one batch in which windows repeat.
    """
    windows = count_windows(len(reader.ids), reader.length)
    order = np.argsort(_mixed(np.arange(windows, dtype=np.uint64)), kind="stable")
    if windows < batch_size:
        order = np.resize(order, batch_size)
    available = len(order) // batch_size
    return (
        reader(order[batch * batch_size : (batch + 1) * batch_size])
        for batch in range(min(count, available))
    )


def _shuffle_seed(seed: int) -> int:
    # Grain adds the epoch to the seed: neighbouring seeds would share epochs without a hash.
    return int.from_bytes(hashlib.sha256(f"windows {seed}".encode()).digest()[:4], "big")


def _mixed(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: an order that no library version changes."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
