import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gptjax.errors import BadInput
from gptjax.ops.attention import (
    attention,
    block_size,
    choose_kernel,
    decode_attention,
    kernel_pairs,
    kernel_products,
)
from gptjax.ops.patterns import Bidirectional, Causal
from gptjax.ops.rotary import alibi_slopes


def inputs(batch=2, length=131, heads=4, groups=2, size=8, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = [heads, groups, groups, heads]
    return tuple(
        jax.random.normal(key, (batch, length, n, size)).astype(dtype)
        for key, n in zip(keys, shapes, strict=True)
    )


def segments(batch, length):
    cuts = jnp.array([[17, 90], [3, 101]])[jnp.arange(batch) % 2]
    return jnp.sum(jnp.arange(length)[None, :, None] >= cuts[:, None, :], -1)


def value_and_gradients(kernel, q, k, v, g, **options):
    @jax.jit
    def both(q, k, v, g):
        out, pull = jax.vjp(lambda *x: attention(*x, kernel=kernel, **options), q, k, v)
        return out, *pull(g)

    return both(q, k, v, g)


def assert_close(got, wanted, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.max(np.abs(a - b)) <= tolerance * max(1e-2, np.max(np.abs(b)))


OPTIONS = {
    "plain": {},
    "segments": {"segments_BT": segments(2, 131)},
    "alibi": {"slopes_H": alibi_slopes(4)},
    "all": {"segments_BT": segments(2, 131), "slopes_H": alibi_slopes(4), "scale": 0.3},
    "bidirectional": {"pattern": Bidirectional(), "segments_BT": segments(2, 131)},
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", OPTIONS)
def test_blocked_equals_dense(name, groups):
    q, k, v, g = inputs(groups=groups)
    got = value_and_gradients("blocked", q, k, v, g, **OPTIONS[name])
    wanted = value_and_gradients("dense", q, k, v, g, **OPTIONS[name])
    assert_close(got[0], wanted[0], 2e-6)
    assert_close(got[1:], wanted[1:], 2e-5)


@pytest.mark.parametrize("length", [1, 13, 64, 65, 193])
def test_any_length(length):
    q, k, v, g = inputs(batch=1, length=length)
    got = value_and_gradients("blocked", q, k, v, g)
    wanted = value_and_gradients("dense", q, k, v, g)
    assert_close(got[0], wanted[0], 2e-6)
    assert_close(got[1:], wanted[1:], 2e-5)


@pytest.mark.parametrize("kernel", ["dense", "blocked"])
def test_bfloat16_within_rounding(kernel):
    exact = value_and_gradients("dense", *inputs())
    rounded = value_and_gradients(kernel, *inputs(dtype=jnp.bfloat16))
    assert all(x.dtype == jnp.bfloat16 for x in rounded)
    assert_close(rounded, exact, 2.0**-5)


def test_dense_is_the_textbook_softmax():
    q, k, v, _ = inputs(batch=1, length=11, heads=2, groups=1, size=4)
    wanted = np.zeros(q.shape)
    for h in range(2):
        for t in range(11):
            scores = np.asarray(k)[0, : t + 1, 0] @ np.asarray(q)[0, t, h] / 2.0
            weights = np.exp(scores) / np.sum(np.exp(scores))
            wanted[0, t, h] = weights @ np.asarray(v)[0, : t + 1, 0]
    assert_close(attention(q, k, v, kernel="dense"), wanted, 2e-6)


@pytest.mark.parametrize("kernel", ["dense", "blocked"])
def test_causal_by_gradient(kernel):
    q, k, v, g = inputs(batch=1, length=97)
    only = jnp.zeros_like(g).at[:, 41].set(g[:, 41])
    _, dq, dk, dv = value_and_gradients(kernel, q, k, v, only)
    assert not np.any(np.asarray(dk)[:, 42:]) and not np.any(np.asarray(dv)[:, 42:])
    assert np.all(np.any(np.asarray(dv)[:, :42], (2, 3)))
    assert np.array_equal(np.flatnonzero(np.any(np.asarray(dq), (0, 2, 3))), [41])


@pytest.mark.parametrize("slopes", [None, alibi_slopes(4)], ids=["plain", "alibi"])
def test_decoding_equals_training(slopes):
    q, k, v, _ = inputs(length=29)
    whole = jax.jit(lambda q, k, v: attention(q, k, v, slopes_H=slopes))(q, k, v)
    room = ((0, 0), (0, 8), (0, 0), (0, 0))
    k, v = jnp.pad(k, room, constant_values=7.0), jnp.pad(v, room, constant_values=7.0)
    decode = jax.jit(lambda q, index: decode_attention(q, k, v, index=index, slopes_H=slopes))
    first, some = decode(q[:, :13], 0), decode(q[:, 13:16], jnp.int32(13))
    each = decode(jnp.stack([q[0, 5:7], q[1, 20:22]]), jnp.array([5, 20]))
    assert_close(first, whole[:, :13], 2e-6)
    assert_close(some, whole[:, 13:16], 2e-6)
    assert_close(each, jnp.stack([whole[0, 5:7], whole[1, 20:22]]), 2e-6)


def traced_products(function, *arguments):
    """Multiplications of all dot_generals in the jaxpr, inner ones included."""

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contract, _), _ = equation.params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                inner = np.prod([left[i] for i in contract], dtype=int)
                total += int(np.prod(equation.outvars[0].aval.shape, dtype=int) * inner)
            for inside in jax.core.jaxprs_in_params(equation.params):
                total += count(inside)
        return total

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


@pytest.mark.parametrize("pattern", [Causal(), Bidirectional()])
@pytest.mark.parametrize("kernel", ["dense", "blocked"])
@pytest.mark.parametrize("length", [61, 131, 1031])
def test_ledger_counts_what_is_multiplied(kernel, length, pattern):
    q, k, v, g = inputs(batch=1, length=length)
    pairs = kernel_pairs(pattern, length, kernel) * q.shape[2] * q.shape[3]
    forward, backward = kernel_products(kernel)

    def run(q, k, v):
        return attention(q, k, v, kernel=kernel, pattern=pattern)

    assert traced_products(run, q, k, v) == forward * pairs
    both = traced_products(lambda *x: jax.vjp(run, *x[:3])[1](x[3]), q, k, v, g)
    assert both == (forward + backward) * pairs
    assert pattern.pairs(length) <= kernel_pairs(pattern, length, kernel)


@pytest.mark.parametrize("pattern", [Causal(), Bidirectional()])
def test_pattern_pairs_are_those_of_its_mask(pattern):
    positions = np.arange(37)
    mask = pattern.mask(positions[:, None], positions[None, :])
    assert mask.sum() == pattern.pairs(37)
    first, last = pattern.key_range(5, 9, 37)
    reached = np.flatnonzero(mask[5:9].any(0))
    assert (reached[0], reached[-1] + 1) == (first, last)


def test_long_sequences_have_at_most_16_strips():
    for length in (1, 64, 1024, 1025, 8191, 32768):
        assert -(-length // block_size(length)) <= 16


def test_choice_of_kernel():
    def choose(kernel="auto", backend="cpu", **changed):
        plain = {
            "pattern": Causal(),
            "has_segments": False,
            "has_slopes": False,
            "length": 1024,
            "dtype": jnp.bfloat16,
        }
        return choose_kernel(kernel, backend, **{**plain, **changed})

    assert choose() == "blocked" and choose(length=31) == "dense"
    assert choose(backend="gpu") == "cudnn" and choose("dense", "gpu") == "dense"
    assert choose(backend="gpu", has_segments=True) == "blocked"
    assert choose(backend="gpu", dtype=jnp.float32) == "blocked"
    for wrong in ({"backend": "cpu"}, {"backend": "gpu", "has_slopes": True}):
        with pytest.raises(BadInput, match="cannot run"):
            choose("cudnn", **wrong)
    with pytest.raises(BadInput, match="did you mean 'blocked'"):
        choose("blokced")


def test_heads_that_do_not_group():
    q, k, v, _ = inputs(heads=4, groups=4)
    with pytest.raises(BadInput, match="no multiple"):
        attention(q, k[:, :, :3], v[:, :, :3])


@pytest.mark.parametrize(
    ("kernel", "groups"), [("dense", 4), ("blocked", 1), ("blocked", 2), ("blocked", 4)]
)
def test_meshes(mesh, kernel, groups):
    q, k, v, g = inputs(batch=8, length=67, groups=groups)
    extra = {"segments_BT": segments(8, 67), "slopes_H": alibi_slopes(4)}

    def step(q, k, v, g, extra):
        def run(q, k, v):
            body = jax.checkpoint(lambda q, k, v: attention(q, k, v, kernel=kernel, **extra))
            return body(q, k, v)

        out, pull = jax.vjp(run, q, k, v)
        return out, *pull(g)

    wanted = jax.jit(step)(q, k, v, g, extra)
    heads = P(("data", "fsdp"), None, "tensor", None)
    kv = heads if groups % mesh.shape["tensor"] == 0 else P(("data", "fsdp"), None, None, None)
    with jax.set_mesh(mesh):
        q, k, v, g = (
            jax.device_put(x, jax.NamedSharding(mesh, spec))
            for x, spec in zip((q, k, v, g), (heads, kv, kv, heads), strict=True)
        )
        extra["segments_BT"] = jax.device_put(
            extra["segments_BT"], jax.NamedSharding(mesh, P(("data", "fsdp"), None))
        )
        got = jax.jit(step)(q, k, v, g, extra)
        assert [x.sharding.spec for x in got] == [heads, heads, kv, kv]
        decoded = jax.jit(
            lambda q, k, v: decode_attention(q[:, 40:], k, v, index=40, slopes_H=extra["slopes_H"])
        )(q, k, v)
        assert decoded.sharding.spec == heads
    assert_close(got, wanted, 2e-5)
