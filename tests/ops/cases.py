"""Attention problems at random, for property tests: patterns, shapes, documents, slopes, types."""

import os
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gptjax.ops.patterns import Pattern, parse
from gptjax.ops.rotary import alibi_slopes

# So many times the examples, drawn anew in every run, for a search that takes long.
MORE = int(os.environ.get("GPTJAX_EXAMPLES", "1"))


def examples(count: int):
    """Settings for `count` examples, always the same ones unless more are asked for."""
    return settings(
        max_examples=count * MORE,
        derandomize=MORE == 1,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )


def _words(*fields):
    return st.tuples(*fields).map(lambda values: ",".join(map(str, values)))


def _columns(block: int):
    """A block, columns of it, and a vertical head that it has."""
    return st.integers(1, block).flatmap(
        lambda columns: _words(
            st.just(block), st.just(columns), st.integers(0, block // columns - 1)
        )
    )


_n = st.integers
_wide = st.one_of(*[_n(1, 160)] * 5, st.sampled_from([10**6, 2**31 - 1]))  # beyond any length
_text = st.one_of(st.just(0), _n(1, 80))
_ways = st.sampled_from(["causal", "both"])
_fields = {
    "causal": st.just(""),
    "bidirectional": st.just(""),
    "prefix": _words(_wide),
    "window": _words(_wide, st.one_of(st.just(0), _n(1, 60), _wide)),
    "column": _words(_wide),
    "dilated": _words(st.one_of(_n(1, 40), _wide), st.one_of(_n(1, 40), _wide)),
    "strided": _words(st.one_of(_n(1, 80), _wide), st.one_of(st.just(0), _wide)),
    "local": _words(_wide, st.one_of(st.just(0), _n(1, 5), _wide)),
    "fixed": _wide.flatmap(_columns),
    "summary": _wide.flatmap(_columns),
    "longformer": _words(_wide, st.one_of(_n(1, 60), _wide), _ways),
    "bigbird": _words(
        st.one_of(_n(1, 60), _wide),
        *(st.one_of(_n(low, high), _wide) for low, high in ((1, 4), (0, 3), (0, 3), (0, 9))),
        _ways,
    ),
    "image_row": _words(st.one_of(_n(1, 60), _wide), _text),
    "image_column": _words(st.one_of(_n(1, 60), _wide), _text),
    "image_conv": _n(1, 40).flatmap(
        lambda columns: _words(
            st.just(columns), _n(0, min((columns - 1) // 2, 3)).map(lambda n: 2 * n + 1), _text
        )
    ),
}
one_pattern = st.sampled_from(sorted(_fields)).flatmap(
    lambda name: _fields[name].map(lambda fields: f"{name}:{fields}")
)
_groups_of_heads = st.lists(one_pattern, min_size=2, max_size=3).map("|".join)
patterns = st.one_of(one_pattern, one_pattern, _groups_of_heads).map(parse)
causal_patterns = patterns.filter(lambda pattern: pattern.causal)
# Primes, both sides of a block, and anything.
lengths = st.one_of(st.sampled_from([1, 2, 3, 5, 64, 65, 67, 127, 128, 131, 193]), _n(1, 150))


class Case(NamedTuple):
    """Arrays of one problem and the options of `attention`; tolerances are relative to the sizes
    of the oracle, for the output and for gradients."""

    pattern: Pattern
    scale: float
    q: jnp.ndarray
    k: jnp.ndarray
    v: jnp.ndarray
    g: jnp.ndarray
    segments: jnp.ndarray | None
    slopes: jnp.ndarray | None
    tolerances: tuple[float, float]

    def __repr__(self) -> str:
        there = [name for name in ("segments", "slopes") if getattr(self, name) is not None]
        return (
            f"Case({self.pattern}, scale {self.scale:.3f}, q {self.q.shape}, k {self.k.shape}, "
            f"v {self.v.shape}, {self.q.dtype}, {there})"
        )


# The output is rounded once from sums of rounded weights; gradients also go through the rounded
# output and rounded gradients of scores.
TOLERANCES = {"float32": (2e-6, 2e-5), "bfloat16": (2 * 2.0**-8, 4 * 2.0**-8)}


@st.composite
def cases(
    draw,
    pattern=patterns,
    length=lengths,
    dtypes=("float32", "float32", "bfloat16"),
    value_sizes: bool = True,
    segments: bool = True,
    slopes: bool = True,
    size: int = 24,
) -> Case:
    """A problem that a kernel of these abilities can be given."""
    pattern, length = draw(pattern), draw(length)
    count, batch = len(pattern.members), draw(_n(1, 2))
    # Patterns are dealt out to the queries of a key head, or to key heads.
    groups, repeats = draw(_n(1, 2)), draw(_n(1, 3 if count == 1 else 2))
    if count > 1 and draw(st.booleans()):
        groups *= count
    elif count > 1:
        repeats *= count
    qk_size, heads = draw(_n(1, size)), groups * repeats
    v_size = draw(st.one_of(st.just(qk_size), _n(1, size))) if value_sizes else qk_size
    dtype = draw(st.sampled_from(dtypes))
    rng = np.random.default_rng(draw(_n(0, 2**32 - 1)))
    shapes = [(heads, qk_size), (groups, qk_size), (groups, v_size), (heads, v_size)]
    arrays = [jnp.asarray(rng.standard_normal((batch, length, *shape)), dtype) for shape in shapes]
    ids = tilt = None
    if segments and draw(st.booleans()):
        starts = rng.random((batch, length)) < rng.choice([0.02, 0.1, 0.5])
        ids = np.cumsum(starts, 1) - draw(_n(0, 2))
        if draw(st.booleans()):  # a document that goes on after another
            ids = ids % 2
        ids = jnp.asarray(ids, jnp.int32)
    if slopes and draw(st.booleans()):
        plain = pattern.causal and draw(st.booleans())
        tilt = alibi_slopes(heads) if plain else rng.uniform(-0.05, 0.05, heads)
        tilt = jnp.asarray(tilt, jnp.float32)
    scale = draw(st.sampled_from([1.0, 1.0, 0.3, 1.7, -0.6])) / np.sqrt(qk_size)
    return Case(pattern, float(scale), *arrays, ids, tilt, TOLERANCES[dtype])
