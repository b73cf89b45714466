import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from gptjax.errors import BadInput
from gptjax.ops.attention import (
    Slots,
    attention,
    cross_attention,
    decode_attention,
    slots_of,
)
from gptjax.ops.kernels import choose_kernel, kernel_pairs, kernel_products
from gptjax.ops.patterns import Bidirectional, Causal, parse
from gptjax.ops.rotary import alibi_slopes
from gptjax.ops.strips import block_size


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


SPARSE = ["window:11", "strided:7", "fixed:16,3", "summary:8,2,1", "longformer:9,3,causal"]
SPARSE += ["image_conv:8,3,20", "dilated:3,5", "bigbird:8,3,1,2,0,causal", "window:6|fixed:8,2"]


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


@pytest.mark.parametrize("text", SPARSE)
def test_sparse_parts_equal_the_mask(text):
    """Widths and strides that do not divide the length, documents, grouped heads, ALiBi."""
    q, k, v, g = inputs(length=131, groups=2)
    options = {"pattern": parse(text), "slopes_H": alibi_slopes(4)}
    options["segments_BT"] = segments(2, 131)
    got = value_and_gradients("blocked", q, k, v, g, **options)
    wanted = value_and_gradients("dense", q, k, v, g, **options)
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


def empty_slots(pattern, length, batch=2, groups=2, size=8):
    slot = slots_of(pattern, length)
    shape = (batch, groups, int(slot.max()) + 1, size)
    held = jnp.full(shape[2], -1, jnp.int32)
    return Slots(jnp.full(shape, 7.0), jnp.full(shape, 7.0), held, jnp.asarray(slot))


@pytest.mark.parametrize("slopes", [None, alibi_slopes(4)], ids=["plain", "alibi"])
@pytest.mark.parametrize("text", ["causal", *SPARSE])
def test_decoding_equals_training(text, slopes):
    """A prompt, some positions at once, then one after the other, with as few slots as will do."""
    q, k, v, _ = inputs(length=53)
    pattern = parse(text)
    whole = jax.jit(
        lambda q, k, v: attention(q, k, v, pattern=pattern, kernel="dense", slopes_H=slopes)
    )(q, k, v)
    decode = jax.jit(
        lambda q, k, v, slots, index: decode_attention(
            q, k, v, slots, pattern=pattern, index=index, slopes_H=slopes
        )
    )
    slots, outs = empty_slots(pattern, 61), []
    cuts = [0, 29, 37, *range(38, 53), 53]
    for start, stop in itertools.pairwise(cuts):
        here = slice(start, stop)
        out, slots = decode(q[:, here], k[:, here], v[:, here], slots, start)
        outs.append(out)
    assert_close(jnp.concatenate(outs, 1), whole, 2e-6)


def test_a_cache_keeps_what_can_still_be_read():
    places = lambda text: int(slots_of(parse(text), 4096).max()) + 1
    assert places("window:128") == 128 and places("local:64") == 64
    assert places("fixed:128,16") == 128 + 4096 // 128 * 16
    assert places("longformer:64,2,causal") == 66 and places("dilated:8,16") == 7 * 16 + 1
    assert places("summary:128,16") == 1 + 4096 // 128 * 16
    assert places("bigbird:64,3,1,0,0,causal") == 4 * 64
    assert places("window:4000|fixed:128,16") == places("fixed:128,128") == 4096
    assert places("window:64|local:128") == 128 and places("causal") == places("strided:64") == 4096


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


@pytest.mark.parametrize("pattern", [Causal(), Bidirectional(), *map(parse, SPARSE[:-1])])
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


@pytest.mark.parametrize(("kernel", "backend"), [("cudnn", "gpu"), ("splash", "tpu")])
def test_a_position_alone_needs_no_kernel(kernel, backend):
    """Parameters are made with one position, also where a kernel is forced that takes no less
    than a block."""
    plain = (Causal(), False, False)
    assert choose_kernel(kernel, backend, *plain, 1, jnp.bfloat16) == "dense"
    with pytest.raises(BadInput, match="cannot run"):
        choose_kernel(kernel, backend, *plain, 2, jnp.bfloat16)
    with pytest.raises(BadInput, match="this is cpu"):
        choose_kernel(kernel, "cpu", *plain, 1, jnp.bfloat16)


def test_arrays_that_do_not_go_together():
    q, k, v, _ = inputs()
    for wrong in ((q, k[:1], v), (q, k, v[:, :, :1]), (q, k[..., :4], v), (q[:1], k, v)):
        with pytest.raises(BadInput, match="do not go together"):
            attention(*wrong)


def test_patterns_of_heads_on_a_mesh_are_those_without():
    """Two patterns for six heads over two key heads belong to key heads; where three shards of the
    heads leave none of these whole, they cannot."""
    q, k, v, _ = inputs(length=19, heads=6, groups=2)
    mesh = jax.make_mesh((3,), ("tensor",), axis_types=(AxisType.Explicit,),
                         devices=jax.devices()[:3])  # fmt: skip
    with jax.set_mesh(mesh):
        q = jax.device_put(q, jax.NamedSharding(mesh, P(None, None, "tensor", None)))
        k, v = (jax.device_put(x, jax.NamedSharding(mesh, P())) for x in (k, v))
        for text in ("window:3|column:4", "window:3|column:4|local:5"):
            with pytest.raises(BadInput, match="cannot be dealt out"):
                jax.eval_shape(lambda *x, text=text: attention(*x, pattern=parse(text)), q, k, v)


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
        for text in ("causal", "fixed:16,3"):
            slots = empty_slots(parse(text), 80, q.shape[0], groups)
            at = jax.NamedSharding(mesh, P(kv[0], kv[2], None, None))
            slots = slots._replace(k=jax.device_put(slots.k, at), v=jax.device_put(slots.v, at))
            decoded, slots = jax.jit(
                lambda q, k, v, slots, text=text: decode_attention(
                    q, k, v, slots, pattern=parse(text), index=0, slopes_H=extra["slopes_H"]
                )
            )(q, k, v, slots)
            assert decoded.sharding.spec == heads and slots.k.sharding.spec == at.spec
    assert_close(got, wanted, 2e-5)


def test_a_source_that_is_filled_up_is_read_alike_by_all_queries():
    """Also by those of later strips, although the mask has one row for all of them."""
    q, k, v, g = inputs(length=271, groups=4)
    k, v = k[:, :131], v[:, :131]
    told = jnp.where(jnp.arange(131) < 90, 0, -1)[None].repeat(2, 0)

    def plain(q, k, v):
        scores = jnp.einsum("bthk,bshk->bhts", q, k[:, :90]) / np.sqrt(8)
        return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), v[:, :90])

    def both(made):
        return jax.jit(jax.value_and_grad(lambda *x: (made(*x) * g).sum(), (0, 1, 2)))(q, k, v)

    found = both(lambda *x: cross_attention(*x, key_segments_BS=told))
    for mine, theirs in zip(*map(jax.tree.leaves, (found, both(plain))), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
