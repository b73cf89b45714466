"""Every kernel against the oracle on problems drawn at random, and cached decoding against it.

`GPTJAX_EXAMPLES=50 pytest tests/ops/test_properties.py` draws 50 times as many, other ones in every
run.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptjax.ops import cudnn
from gptjax.ops.attention import LOCAL, Slots, attention, decode_attention, slots_of
from gptjax.ops.fused import merged
from gptjax.ops.kernels import kernel_pairs
from gptjax.ops.patterns import lists, parse
from tests.ops.cases import Case, cases, causal_patterns, examples, lengths, one_pattern
from tests.ops.oracle import exact_attention
from tests.ops.test_cudnn import STAND_IN

# LLVM's optimisation takes longer here than the tiny programs run.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def check(kernel: str, case: Case) -> None:
    """The output and the gradients of a kernel against the oracle's."""
    options = {"segments_BT": case.segments, "slopes_H": case.slopes, "scale": case.scale}

    def both(q, k, v, g):
        run = lambda q, k, v: attention(q, k, v, pattern=case.pattern, kernel=kernel, **options)
        out, pull = jax.vjp(run, q, k, v)
        return dict(zip(("out", "dq", "dk", "dv"), (out, *pull(g)), strict=True))

    got = quick(both)(case.q, case.k, case.v, case.g)
    arrays = (case.q, case.k, case.v, case.g)
    exact = exact_attention(case.pattern, case.scale, *arrays, case.segments, case.slopes)
    for name, value in got.items():
        assert value.dtype == case.q.dtype
        error = np.abs(np.asarray(value, np.float64) - exact.values[name]).max()
        allowed = case.tolerances[name != "out"] * exact.sizes[name]
        assert error <= allowed, f"{kernel} {name}: {error:.3g} > {allowed:.3g}"


@given(case=cases())
@examples(15)
def test_dense(case):
    check("dense", case)


@given(case=cases())
@examples(25)
def test_blocked(case):
    check("blocked", case)


@pytest.fixture
def small_lists(monkeypatch):
    monkeypatch.setattr(lists, "BLOCKS", (16,))


@given(case=cases(value_sizes=False))
@examples(10)
def test_block_list(case, small_lists):
    check("block_list", case)


@pytest.fixture
def stand_in(monkeypatch):
    """Dense products in the place of cuDNN's, for short groups, too."""
    monkeypatch.setattr(cudnn, "SHORTEST", 1)
    run = lambda pattern, scale, *x: merged(STAND_IN, pattern, scale, *x[:3], None)
    monkeypatch.setitem(LOCAL, "cudnn", run)
    monkeypatch.setattr("gptjax.ops.attention.choose_kernel", lambda *_: "cudnn")


@given(case=cases(value_sizes=False, segments=False, slopes=False, dtypes=["float32"]))
@examples(15)
def test_cudnn(case, stand_in):
    check("cudnn", case)


@given(case=cases(length=st.integers(1, 200), value_sizes=False, slopes=False))
@examples(2)
def test_splash(case, small_grids):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptjax.ops.attention.choose_kernel", lambda *_: "splash")
        check("splash", case)


@given(
    case=cases(pattern=causal_patterns, length=st.integers(1, 70), segments=False,
               dtypes=["float32"]),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=2),
    order=st.randoms(use_true_random=False),
    more=st.integers(0, 30),
)  # fmt: skip
@examples(10)
def test_cached_decoding(case, sizes, order, more):
    """Positions in chunks of a few sizes at random, with the slots that the pattern asks for."""
    batch, length, groups, _ = case.k.shape
    slot = slots_of(case.pattern, length + more)
    assert len(slot) == length + more > slot.max()
    empty = lambda x: jnp.full((batch, groups, int(slot.max()) + 1, x.shape[-1]), 7.0)
    held = jnp.full(int(slot.max()) + 1, -1, jnp.int32)
    slots = Slots(empty(case.k), empty(case.v), held, jnp.asarray(slot))
    options = {"pattern": case.pattern, "slopes_H": case.slopes, "scale": case.scale}
    decode = quick(lambda q, k, v, slots, index: decode_attention(
        q, k, v, slots, index=index, **options))  # fmt: skip
    outs, start = [], 0
    while start < length:
        stop = min(start + order.choice([1, *sizes]), length)
        here = slice(start, stop)
        out, slots = decode(case.q[:, here], case.k[:, here], case.v[:, here], slots, start)
        outs.append(out)
        start = stop
    arrays = (case.q, case.k, case.v, case.g)
    exact = exact_attention(case.pattern, case.scale, *arrays, None, case.slopes)
    error = np.abs(np.concatenate(outs, 1) - exact.values["out"]).max()
    assert error <= case.tolerances[0] * exact.sizes["out"]


@given(pattern=one_pattern.map(parse), length=lengths)
@examples(150)
def test_ledger(pattern, length):
    """Pairs by query, those a kernel multiplies, what a cache must hold, and the text."""
    at = np.arange(length)
    mask = np.asarray(pattern.mask(at[:, None], at[None, :], length))
    mask = np.broadcast_to(mask, (length, length))
    assert mask.diagonal().all() and parse(str(pattern)) == pattern
    assert np.array_equal(pattern.visited(length), mask.sum(1))
    for kernel in ("dense", "blocked", "cudnn", "splash", "block_list"):
        assert pattern.pairs(length) <= kernel_pairs(pattern, length, kernel)
    if pattern.causal:
        ring, kept = pattern.kept(length)
        there = np.isin(at, kept)[None, :] | (at[:, None] - at[None, :] < ring)
        assert not (mask & ~there).any() and not np.triu(mask, 1).any()
