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

from gptjax.ops import cudnn
from gptjax.ops.attention import LOCAL, Slots, attention, decode_attention, slots_of
from gptjax.ops.fused import merged
from gptjax.ops.kernels import kernel_pairs
from gptjax.ops.patterns import KINDS, lists, parse
from tests.ops.cases import Case, drawn, drawn_case, drawn_length, examples, seeds
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
        relative = case.tolerances.out if name == "out" else case.tolerances.gradients
        allowed = relative * exact.size(name, case.tolerances.share)
        assert error <= allowed, f"{kernel} {name}: {error:.3g} > {allowed:.3g}"


@given(seed=seeds)
@examples(8)
def test_dense(seed):
    check("dense", drawn_case(seed))


@pytest.mark.parametrize("kind", [*KINDS, "heads"])
@given(seed=seeds)
@examples(2)
def test_blocked(kind, seed):
    check("blocked", drawn_case(seed, kind))


@pytest.fixture
def small_lists(monkeypatch):
    monkeypatch.setattr(lists, "BLOCKS", (16,))


@given(seed=seeds)
@examples(6)
def test_block_list(seed, small_lists):
    check("block_list", drawn_case(seed, value_sizes=False))


@pytest.fixture
def stand_in(monkeypatch):
    """Dense products in the place of cuDNN's, for short groups, too."""
    monkeypatch.setattr(cudnn, "SHORTEST", 1)
    run = lambda pattern, scale, *x: merged(STAND_IN, pattern, scale, *x[:3], None)
    monkeypatch.setitem(LOCAL, "cudnn", run)
    monkeypatch.setattr("gptjax.ops.attention.choose_kernel", lambda *_: "cudnn")


@given(seed=seeds)
@examples(8)
def test_cudnn(seed, stand_in):
    abilities = {"value_sizes": False, "segments": False, "slopes": False}
    check("cudnn", drawn_case(seed, dtypes=("float32",), **abilities))


@given(seed=seeds)
@examples(2)
def test_splash(seed, small_grids):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptjax.ops.attention.choose_kernel", lambda *_: "splash")
        check("splash", drawn_case(seed, value_sizes=False, slopes=False))


@given(seed=seeds)
@examples(6)
def test_cached_decoding(seed):
    """Positions in chunks of a few sizes at random, with the slots that the pattern asks for."""
    case = drawn_case(seed, causal=True, longest=70, segments=False, dtypes=("float32",))
    random = np.random.default_rng(seed + 1)
    batch, length, groups, _ = case.k.shape
    room = length + int(random.integers(0, 30))
    slot = slots_of(case.pattern, room)
    assert len(slot) == room > slot.max()
    empty = lambda x: jnp.full((batch, groups, int(slot.max()) + 1, x.shape[-1]), 7.0)
    held = jnp.full(int(slot.max()) + 1, -1, jnp.int32)
    slots = Slots(empty(case.k), empty(case.v), held, jnp.asarray(slot))
    options = {"pattern": case.pattern, "slopes_H": case.slopes, "scale": case.scale}
    decode = quick(lambda q, k, v, slots, index: decode_attention(
        q, k, v, slots, index=index, **options))  # fmt: skip
    outs, start, sizes = [], 0, [1, *random.integers(1, 31, 2)]
    while start < length:
        stop = min(start + int(random.choice(sizes)), length)
        here = slice(start, stop)
        out, slots = decode(case.q[:, here], case.k[:, here], case.v[:, here], slots, start)
        outs.append(out)
        start = stop
    arrays = (case.q, case.k, case.v, case.g)
    exact = exact_attention(case.pattern, case.scale, *arrays, None, case.slopes)
    error = np.abs(np.concatenate(outs, 1) - exact.values["out"]).max()
    assert error <= case.tolerances.out * exact.size("out", case.tolerances.share)


@given(seed=seeds)
@examples(150)
def test_ledger(seed):
    """Pairs by query, those a kernel multiplies, what a cache must hold, and the text."""
    random = np.random.default_rng(seed)
    pattern = parse(drawn(random.choice(list(KINDS)), random))
    length = drawn_length(random, 300)
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
