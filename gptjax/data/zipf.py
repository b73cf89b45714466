"""Facts whose keys follow a Zipf law: draws, every possible fact, and the exact entropy.

Key i = 0, 1, ... has probability proportional to (i + 1)^-(1 + alpha) and is written as two
digits, i // n and i % n with n = ceil(sqrt(keys)). Its value is that of a fixed random table with
probability 1 - noise and else uniform over all values. The rare keys are what makes loss fall as
a power of parameters and of tokens (arXiv 2102.04074, 2303.13506; `scaling/memoriser.py`).

A fact is one document, written after its separator, `s`:

    plain   s d1 d2 v
    gap     s d1 d2 x_1 ... x_gap v    x is one of a few fixed strings of digits, drawn uniformly;
                                       their first digits differ, so the first tells the others
    split   s d1 d2 ? v                an encoder reads d1 d2, a decoder goes on from `?`

The last token of a fact predicts the next separator, which is certain. Where attention and
positions stay within documents, no prediction can use another fact: the entropy of each position
below is then exactly what no model can beat, and all facts are as few as can be listed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from gptjax.errors import BadInput

STRINGS = 8  # of distractors
MOST_KEYS = 1 << 26


@dataclass(frozen=True)
class ZipfFacts:
    """The law of the facts, and how many to draw for training and validation together."""

    alpha: float = 0.5
    keys: int = 4096
    values: int = 16
    noise: float = 0.1  # probability of a value drawn uniformly
    count: int = 1_000_000
    variant: Literal["plain", "gap", "split"] = "plain"
    gap: int = 8  # distractors between key and value, in the variant of that name
    seed: int = 0  # of the table, the distractors and the draws

    @property
    def digits(self) -> int:
        return math.isqrt(self.keys - 1) + 1

    @property
    def symbols(self) -> int:
        """Ids but the separator: digits from 0, then values, then `?` where there is one."""
        return self.digits + self.values + (self.variant == "split")

    @property
    def ask(self) -> int:
        """The id of `?`."""
        return self.digits + self.values

    @property
    def separator(self) -> int:
        return self.symbols

    @property
    def vocab_size(self) -> int:
        return self.symbols + 1

    @property
    def length(self) -> int:
        """Tokens of a fact with its separator."""
        return {"plain": 4, "gap": 4 + self.gap, "split": 5}[self.variant]

    @property
    def strings(self) -> int:
        """How many strings of distractors there are to draw from; 1 where there is none."""
        return min(STRINGS, self.digits) if self.variant == "gap" else 1

    @property
    def sequences(self) -> int:
        """Facts that can be told apart."""
        return self.keys * self.strings * self.values

    def validate(self) -> None:
        """Raise `BadInput` for the first field that cannot be used."""
        for name, least, most in (
            ("keys", 1, MOST_KEYS),
            ("values", 2, 1 << 14),
            ("count", 2, 2**31 - 1),
            ("gap", 1, 4096),
            ("seed", 0, 2**31 - 1),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise BadInput(
                    f"data.facts.{name}={value} does not lie between {least} and {most}; "
                    f"the nearest is {min(max(value, least), most)}"
                )
        if not self.alpha > 0:
            raise BadInput(f"data.facts.alpha={self.alpha}; give a value above 0, for example 0.5")
        if not 0 <= self.noise <= 1:
            raise BadInput(f"data.facts.noise={self.noise} is no probability; give 0 to 1")

    @property
    def value_probabilities(self) -> tuple[float, float]:
        """Given the key: of the table's value, and of each other one."""
        other = self.noise / self.values
        return 1 - self.noise + other, other


class Entropy(NamedTuple):
    """In nats: `by_position` [length] is that of the token after each, `per_token` their mean."""

    by_position: np.ndarray
    per_token: float
    value: float  # of a value whose key is known; log(values) where it is not


def entropy(facts: ZipfFacts) -> Entropy:
    """The least expected loss that any model can reach; sums over all keys.

    The decoder of a split fact is asked the last two positions only.
    """
    square = np.zeros(facts.digits**2)
    square[: facts.keys] = probabilities(facts)
    first = _entropy(square.reshape(facts.digits, -1).sum(1))
    table, other = facts.value_probabilities
    value = _entropy(np.array([table] + [other] * (facts.values - 1)))
    between = [0.0] * (facts.length - 4)
    if facts.variant == "gap":
        between[0] = math.log(facts.strings)
    by_position = np.array([first, _entropy(square) - first, *between, value, 0.0])
    return Entropy(by_position, float(by_position.mean()), value)


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def probabilities(facts: ZipfFacts) -> np.ndarray:
    """float64 [keys], the most frequent first."""
    p = np.arange(1, facts.keys + 1, dtype=np.float64) ** -(1 + facts.alpha)
    return p / p.sum()


def value_table(facts: ZipfFacts) -> np.ndarray:
    """int64 [keys]: each key's value, 0 to values - 1."""
    return _below(_uniform(_stream(facts, "table"), facts.keys), facts.values)


def distractors(facts: ZipfFacts) -> np.ndarray:
    """int64 [strings, length - 4] ids: digits in the variant `gap`, `?` in `split`."""
    width = facts.length - 4
    if facts.variant != "gap":
        return np.full((1, width), facts.ask)
    uniform = _uniform(_stream(facts, "distractors"), facts.strings * width)
    strings = _below(uniform, facts.digits).reshape(facts.strings, width)
    strings[:, 0] = np.arange(facts.strings)
    return strings


def draws(facts: ZipfFacts, block: int) -> Iterator[np.ndarray]:
    """All `count` facts in order, int32 [<= block, length] of ids at a time.

    The bits of PCG64 are the same in every version of numpy, those of its distributions are not.
    """
    chances = np.cumsum(probabilities(facts))
    table = value_table(facts)
    stream = _stream(facts, "draws")
    for start in range(0, facts.count, block):
        n = min(block, facts.count - start)
        of_key, of_value, of_string = _uniform(stream, 3 * n).reshape(n, 3).T
        key = np.searchsorted(chances[:-1], of_key, side="right")
        value = table[key]
        noisy = of_value < facts.noise
        value[noisy] = _below(of_value[noisy] / facts.noise, facts.values)
        string = _below(of_string, facts.strings)
        yield _written(facts, key, string, value)


def sequences(facts: ZipfFacts, block: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every possible fact with its probability: int32 [<= block, length], float64 [<= block]."""
    p, table = probabilities(facts), value_table(facts)
    likely, other = facts.value_probabilities
    for start in range(0, facts.sequences, block):
        numbers = np.arange(start, min(start + block, facts.sequences))
        key, string, value = np.unravel_index(numbers, (facts.keys, facts.strings, facts.values))
        weight = p[key] / facts.strings * np.where(value == table[key], likely, other)
        yield _written(facts, key, string, value), weight


def encoder_decoder(facts: ZipfFacts, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Split facts [n, length] as examples: `encoder_tokens`, `tokens`, `targets`, each [n, 2].

    The encoder reads the key's digits; the decoder reads `?` and the value and is asked the value
    and the separator.
    """
    if facts.variant != "split":
        raise BadInput(f"data.facts.variant is {facts.variant!r}; an encoder needs 'split'")
    targets = np.stack([ids[:, 4], np.full(len(ids), facts.separator, ids.dtype)], axis=1)
    return {"encoder_tokens": ids[:, 1:3], "tokens": ids[:, 3:5], "targets": targets}


def _written(facts: ZipfFacts, key, string, value) -> np.ndarray:
    ids = np.empty((len(key), facts.length), np.int32)
    ids[:, 0] = facts.separator
    ids[:, 1] = key // facts.digits
    ids[:, 2] = key % facts.digits
    ids[:, 3:-1] = distractors(facts)[string]
    ids[:, -1] = facts.digits + value
    return ids


def _stream(facts: ZipfFacts, purpose: str) -> np.random.PCG64:
    """Random bits for one purpose, so that more of one thing changes no other."""
    return np.random.PCG64([facts.seed, *purpose.encode()])


def _uniform(stream: np.random.PCG64, count: int) -> np.ndarray:
    return (stream.random_raw(count) >> np.uint64(11)) * 2.0**-53


def _below(uniform: np.ndarray, end: int) -> np.ndarray:
    return np.minimum((uniform * end).astype(np.int64), end - 1)
