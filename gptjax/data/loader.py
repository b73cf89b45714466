"""Batches of rows out of a flat array of ids, by grain: shuffled, repeated, resumable.

Window i is the ids from i * raw on, and an objective makes a row of it. In next-token prediction a
window is one id longer than `raw` and its targets are its tokens shifted by one: neighbours share
an id, and every id but the first is predicted exactly once in an epoch (the last, shorter window is
left out). Grain shuffles the numbers of the windows anew in each epoch and groups them into global
batches; a batch may span two epochs. A process reads its rows of the global batch only, so the
order does not depend on how many processes there are, and the state is a count of batches that any
number of processes and reading threads may take up. What is random in a row is drawn from its place
in that order, so a run that goes on draws what it would have drawn.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gptjax.errors import BadInput

Row = dict[str, np.ndarray]


class Rows(NamedTuple):
    """How windows of ids become rows; what an objective gives.

    raw: ids after which the next window begins; overlap: ids beyond them that are read too.
    make(ids, generator, draw): the row of the ids of a window, random numbers, and a drawer
    draw(generator, n) of n ids from elsewhere. fixed: whether a window makes the same row each time
    it comes. name: tells data iterators of different rows apart; "" for plain windows, of which
    nothing is drawn.
    """

    raw: int
    overlap: int
    make: Callable[[np.ndarray, np.random.Generator, Callable], Row]
    fixed: bool = False
    name: str = ""


def shifted(ids: np.ndarray, rng=None, draw=None) -> Row:
    """All ids but the last, and the ids that follow them."""
    ids = np.asarray(ids, np.int32)
    return {"tokens": ids[:-1], "targets": ids[1:]}


def plain_rows(length: int) -> Rows:
    """Windows of `length` tokens and the tokens that follow each of theirs."""
    return Rows(length, 1, shifted)


def count_windows(tokens: int, raw: int, overlap: int = 1) -> int:
    """Whole windows in a flat array of `tokens`."""
    return max(tokens - overlap, 0) // raw


def check_enough(
    train: int, validation: int, length: int, batch_size: int, rows: Rows | None = None
) -> None:
    """Refuse splits of so many tokens without a batch to train on or a window to validate on."""
    raw, overlap = (length, 1) if rows is None else rows[:2]
    if not count_windows(validation, raw, overlap):
        raise BadInput(
            f"the validation split has {validation} tokens, fewer than one window of "
            f"data.sequence_length={length}; raise data.validation_fraction, give more "
            "text or shorten the sequence"
        )
    windows = count_windows(train, raw, overlap)
    if windows < batch_size:
        raise BadInput(
            f"the training split has {windows} windows of {raw} tokens, fewer than "
            f"data.batch_size={batch_size}; give more text, a smaller batch or a shorter "
            "data.sequence_length"
        )


class RowReader:
    """Reads batches: a callable from (place in the order, number of a window) of every row.

    A batch has what the rows have, and as asked for int32 `segments` (number of the document within
    the window, from 0) and `positions` (0 at each document's separator and at the window's start),
    of objectives that leave tokens in their places.
    """

    def __init__(
        self,
        ids: np.ndarray,
        rows: Rows,
        separator: int,
        part: slice,
        segments: bool,
        positions: bool,
        seed: int,
    ):
        self.ids = ids
        self.rows = rows
        self.separator = separator
        self.part = part
        self.segments = segments
        self.positions = positions
        self.seed = seed

    @property
    def windows(self) -> int:
        return count_windows(len(self.ids), self.rows.raw, self.rows.overlap)

    def __call__(self, numbers: Sequence[tuple[int, int]]) -> Row:
        numbers = numbers[self.part]
        made = [self._row(int(place), int(window)) for place, window in numbers]
        batch = {name: np.stack([row[name] for row in made]) for name in made[0]}
        if self.segments or self.positions:
            length = self.rows.raw
            starts = [int(window) * length for _, window in numbers]
            ids_BT = np.stack([self.ids[start : start + length] for start in starts])
            starts_BT = ids_BT == self.separator
            if self.segments:
                numbers_BT = np.cumsum(starts_BT, axis=1, dtype=np.int32)
                batch["segments"] = numbers_BT - numbers_BT[:, :1]
            if self.positions:
                place_T = np.arange(length, dtype=np.int32)
                last_start_BT = np.maximum.accumulate(np.where(starts_BT, place_T, 0), axis=1)
                batch["positions"] = (place_T - last_start_BT).astype(np.int32)
        return batch

    def _row(self, place: int, window: int) -> Row:
        start = window * self.rows.raw
        ids = self.ids[start : start + self.rows.raw + self.rows.overlap]
        if not self.rows.name:  # nothing is drawn
            return self.rows.make(ids, None, self._draw)
        drawn = window if self.rows.fixed else place
        rng = np.random.Generator(np.random.Philox(key=[self.seed, drawn]))
        return self.rows.make(ids, rng, self._draw)

    def _draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        start = int(rng.integers(max(len(self.ids) - count, 0) + 1))
        return self.ids[start : start + count]


class TrainIterator:
    """Endless or `epochs` long; `get_state` and `set_state` are exact and cheap."""

    def __init__(
        self, reader: RowReader, batch_size: int, epochs: int, seed: int, workers: int, key: str
    ):
        import grain

        batches = (
            grain.MapDataset.range(reader.windows)
            .shuffle(seed=seed_of(f"windows {seed}"))
            .repeat(epochs or None)
            .map_with_index(lambda place, window: (place, window))
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
    reader: RowReader, batch_size: int, count: int
) -> Iterator[dict[str, np.ndarray]]:
    """Up to `count` batches in one fixed random order; fewer batches are a prefix of more.

    A split smaller than one batch gives one batch in which windows repeat.
    """
    windows = reader.windows
    order = np.argsort(_mixed(np.arange(windows, dtype=np.uint64)), kind="stable")
    if windows < batch_size:
        order = np.resize(order, batch_size)
    available = len(order) // batch_size
    return (
        reader(
            [(window, window) for window in order[batch * batch_size : (batch + 1) * batch_size]]
        )
        for batch in range(min(count, available))
    )


def seed_of(text: str) -> int:
    """A number of 32 bits for what is random under that name.

    Grain adds the epoch to its seed: neighbouring seeds would share epochs without a hash.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _mixed(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: an order that no library version changes."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
