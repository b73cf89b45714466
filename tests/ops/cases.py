"""Attention problems at random, for property tests: patterns, shapes, documents, slopes, types."""

import os
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gptjax.ops.patterns import KINDS, Pattern, parse
from gptjax.ops.rotary import alibi_slopes

# So many times the examples, other ones in every run, for a search that takes long.
MORE = int(os.environ.get("GPTJAX_EXAMPLES", "1"))


def examples(count: int):
    """Settings for `count` examples, always the same ones unless more are asked for."""
    return settings(
        max_examples=count * MORE,
        derandomize=MORE == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class Tolerances(NamedTuple):
    """Of the output and of gradients, relative to a result or to this share of its terms."""

    out: float
    gradients: float
    share: float


# In bfloat16 the output is rounded once from sums of rounded weights; gradients also go through
# the rounded output and rounded gradients of scores.
TOLERANCES = {
    "float32": Tolerances(2e-6, 2e-5, 0.1),
    "bfloat16": Tolerances(2 * 2.0**-8, 4 * 2.0**-8, 1.0),
}


class Case(NamedTuple):
    """Arrays of one problem and the options of `attention`; the seed makes it again."""

    seed: int
    pattern: Pattern
    scale: float
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    g: np.ndarray
    segments: np.ndarray | None
    slopes: np.ndarray | None
    tolerances: Tolerances

    def __repr__(self) -> str:
        there = [name for name in ("segments", "slopes") if getattr(self, name) is not None]
        return (
            f"Case(seed {self.seed}: {self.pattern}, scale {self.scale:.3f}, q {self.q.shape}, "
            f"k {self.k.shape}, v {self.v.shape}, {self.q.dtype}, {there})"
        )


def drawn(name: str, random: np.random.Generator) -> str:
    """A text of a kind with random fields, some of them beyond any length."""
    n = lambda low, high: int(random.integers(low, high))

    def width() -> int:
        return int(random.choice([n(1, 12), n(1, 60), n(1, 60), n(60, 200), 10**6, 2**31 - 1],
                                 p=[0.25, 0.25, 0.2, 0.2, 0.05, 0.05]))  # fmt: skip

    def some(low: int, high: int) -> int:
        return n(0, 2) * n(low, high)

    block, columns, ways = width(), n(1, 40), random.choice(["both", "causal"])
    places = min(n(1, 12), block)
    kernel = 2 * n(0, min((columns - 1) // 2, 3) + 1) + 1
    fields = {
        "causal": [],
        "bidirectional": [],
        "prefix": [width()],
        "window": [width(), some(1, 60)],
        "column": [width()],
        "dilated": [width(), width()],
        "strided": [width(), n(0, 2) * width()],
        "local": [block, some(1, 4)],
        "fixed": [block, places, n(0, min(block // places, 5))],
        "summary": [block, places, n(0, min(block // places, 5))],
        "longformer": [width(), width(), ways],
        "bigbird": [width(), 2 * n(0, 2) + 1, n(0, 3), n(0, 4), n(0, 9), ways],
        "image_row": [columns, some(1, 60)],
        "image_column": [columns, some(1, 60)],
        "image_conv": [columns, kernel, some(1, 60)],
    }[name]
    return name + (":" + ",".join(map(str, fields)) if fields else "")


def drawn_pattern(random: np.random.Generator, kind: str = "", causal: bool = False) -> Pattern:
    """A pattern of a kind, or of any one or groups of heads; `heads` are such groups."""
    while True:
        name = kind or random.choice([*KINDS, *["heads"] * 5])
        count = int(random.integers(2, 4)) if name == "heads" else 1
        names = random.choice(list(KINDS), count) if name == "heads" else [name]
        pattern = parse("|".join(drawn(one, random) for one in names))
        if pattern.causal or not causal:
            return pattern


def drawn_length(random: np.random.Generator, longest: int = 193) -> int:
    """Primes, both sides of a block, the shortest, and anything."""
    blocks = [n for n in (64, 65, 67, 127, 128, 131, 163, 193) if n <= longest]
    options = [random.integers(1, longest + 1), random.integers(1, longest + 1), 1, 2]
    if blocks:
        options += [random.choice(blocks)] * 3
    return int(random.choice(options))


def drawn_case(
    seed: int,
    kind: str = "",
    causal: bool = False,
    longest: int = 193,
    dtypes: tuple[str, ...] = ("float32", "float32", "bfloat16"),
    value_sizes: bool = True,
    segments: bool = True,
    slopes: bool = True,
) -> Case:
    """A problem that a kernel of these abilities can be given."""
    random = np.random.default_rng(seed)
    n = lambda low, high: int(random.integers(low, high))
    pattern, length = drawn_pattern(random, kind, causal), drawn_length(random, longest)
    count, batch = len(pattern.members), n(1, 3)
    # Patterns are dealt out to the queries of a key head, or to key heads.
    groups, repeats = n(1, 3), n(1, 4 if count == 1 else 3)
    if n(0, 2):
        groups *= count
    else:
        repeats *= count
    qk_size, heads = n(1, 25), groups * repeats
    v_size = n(1, 25) if value_sizes and n(0, 2) else qk_size
    dtype = str(random.choice(dtypes))
    shapes = [(heads, qk_size), (groups, qk_size), (groups, v_size), (heads, v_size)]
    arrays = [
        random.standard_normal((batch, length, *shape)).astype(jnp.dtype(dtype)) for shape in shapes
    ]
    ids = tilt = None
    if segments and n(0, 2):
        starts = random.random((batch, length)) < random.choice([0.02, 0.1, 0.5])
        ids = (np.cumsum(starts, 1) - n(0, 3)).astype(np.int32)
        if n(0, 2):  # a document that goes on after another
            ids = ids % 2
    if slopes and n(0, 2):
        tilt = random.uniform(-0.05, 0.05, heads)
        tilt = np.asarray(alibi_slopes(heads) if pattern.causal and n(0, 2) else tilt, np.float32)
    scale = float(random.choice([1.0, 1.0, 0.3, 1.7, -0.6])) / np.sqrt(qk_size)
    return Case(seed, pattern, float(scale), *arrays, ids, tilt, TOLERANCES[dtype])


# Examples are seeds: so few must not be each other's neighbours.
seeds = st.integers(0, 2**32 - 1)
