"""The fused kernel by lists of blocks, interpreted on the CPU, with blocks of 16 positions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gptjax.errors import BadInput
from gptjax.ops.attention import attention
from gptjax.ops.kernels import choose_kernel, kernel_pairs, kernel_products
from gptjax.ops.patterns import lists, parse
from gptjax.ops.rotary import alibi_slopes

PATTERNS = ["causal", "bidirectional", "prefix:50", "window:11", "window:9,4", "column:7"]
PATTERNS += ["dilated:3,5", "strided:7", "strided:8,19", "local:16", "fixed:16,3", "fixed:16,3,2"]
PATTERNS += ["summary:8,2,1", "longformer:9,3,causal", "longformer:9,3", "bigbird:8,3,1,2,0,causal"]
PATTERNS += ["bigbird:10,3,1,2", "image_row:8,20", "image_column:8,20", "image_conv:8,3,20"]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(lists, "BLOCKS", (16,))


def inputs(batch, length, heads, groups, size, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, n, size) for n in (heads, groups, groups, heads)]
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def documents(batch, length, seed=0):
    starts = np.random.default_rng(seed).random((batch, length)) < 2.5 / length
    return jnp.asarray(np.cumsum(starts, 1), jnp.int32)


# LLVM's optimisation takes longer here than the tiny programs run.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def value_and_gradients(kernel, q, k, v, g, **options):
    def both(q, k, v, g):
        out, pull = jax.vjp(lambda *x: attention(*x, kernel=kernel, **options), q, k, v)
        return out, *pull(g)

    return quick(both)(q, k, v, g)


def assert_close(got, wanted, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.max(np.abs(a - b)) <= tolerance * max(1e-2, np.max(np.abs(b)))


@pytest.mark.parametrize("text", PATTERNS)
def test_lists_are_those_of_the_mask(text):
    pattern = parse(text)
    for length in (1, 13, 131, 256):
        at = np.arange(length)
        mask = np.asarray(pattern.mask(at[:, None], at[None, :], length))
        for block in lists.BLOCKS:
            blocks = -(-length // block)
            filled = np.pad(mask, [(0, blocks * block - length)] * 2)
            pairs = filled.reshape(blocks, block, blocks, block).sum((1, 3))
            full, some = pairs == block * block, pairs > 0
            for found, turned in ((lists.key_lists, False), (lists.query_lists, True)):
                rows, entries = found(pattern, length, block)
                sizes = rows[:, 3] - rows[:, 1]
                assert np.all(np.diff(sizes) <= 0) and len(entries) == some.sum()
                assert sorted(rows[:, 0]) == list(range(blocks))
                for number, first, middle, last in rows:
                    row = (slice(None), number) if turned else (number, slice(None))
                    whole = np.flatnonzero(full[row])
                    assert np.array_equal(entries[first:middle], whole)
                    partial = np.flatnonzero(some[row] & ~full[row])
                    assert np.array_equal(entries[middle:last], partial)


def test_long_sequences_need_no_mask():
    """Lists of 32k positions; a mask of them would have 1 G entries."""
    blocks = 32768 // 64
    assert kernel_pairs(parse("causal"), 32768, "block_list") == blocks * (blocks + 1) // 2 * 64**2
    pattern = parse("fixed:512,64")
    rows, entries = lists.key_lists(pattern, 32768, 64)
    [(_, first, middle, last)] = [row for row in rows if row[0] == blocks - 1]
    assert np.array_equal(entries[first:middle], [*range(7, 504, 8), *range(504, 511)])
    assert np.array_equal(entries[middle:last], [511])


CASES = {  # pattern, batch, length, heads, groups, head size, what stands aside
    "one": ("strided:7", 1, 1, 2, 1, 8, ""),
    "prime": ("strided:8,19", 2, 83, 4, 2, 16, "documents alibi"),
    "places": ("summary:8,2,1", 1, 61, 4, 1, 24, "alibi"),
    "both ways": ("longformer:9,3", 2, 64, 2, 2, 8, "documents"),
    "blocks": ("bigbird:10,3,1,2", 1, 83, 2, 2, 16, ""),
    "causal blocks": ("bigbird:16,2,1,1,0,causal", 1, 100, 6, 2, 12, "documents"),
    "image": ("image_conv:8,3,20", 1, 83, 2, 1, 32, "alibi"),
    "heads": ("prefix:20|column:5", 1, 67, 4, 2, 8, "documents alibi"),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_dense(name, small_blocks):
    text, batch, length, heads, groups, size, aside = CASES[name]
    q, k, v, g = inputs(batch, length, heads, groups, size)
    options = {"pattern": parse(text)}
    if "documents" in aside:
        options["segments_BT"] = documents(batch, length)
    if "alibi" in aside:
        options.update(slopes_H=alibi_slopes(heads), scale=0.3)
    got = value_and_gradients("block_list", q, k, v, g, **options)
    wanted = value_and_gradients("dense", q, k, v, g, **options)
    assert_close(got[0], wanted[0], 2e-6)
    assert_close(got[1:], wanted[1:], 2e-5)


def test_bfloat16_within_rounding(small_blocks):
    pattern = parse("strided:7")
    exact = value_and_gradients("dense", *inputs(1, 67, 2, 1, 16), pattern=pattern)
    halves = inputs(1, 67, 2, 1, 16, dtype=jnp.bfloat16)
    rounded = value_and_gradients("block_list", *halves, pattern=pattern)
    assert all(x.dtype == jnp.bfloat16 for x in rounded)
    assert_close(rounded, exact, 2.0**-5)


def test_many_runs_at_once(small_blocks):
    """Under vmap, over runs that share their documents."""
    pattern, shared = parse("fixed:8,2"), documents(1, 35)
    arrays = [inputs(1, 35, 2, 1, 8, seed=seed) for seed in range(2)]
    run = lambda kernel: (
        lambda q, k, v, g: jax.vjp(
            lambda *x: attention(*x, pattern=pattern, kernel=kernel, segments_BT=shared), q, k, v
        )[1](g)
    )
    stacked = [jnp.stack(both) for both in zip(*arrays, strict=True)]
    got = quick(jax.vmap(run("block_list")))(*stacked)
    assert_close(got, quick(jax.vmap(run("dense")))(*stacked), 2e-5)


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 1, 4)], indirect=True, ids=str)
def test_meshes(mesh, small_blocks):
    """On shards, under jit and remat, with key heads that are sharded and that are not."""
    q, k, v, g = inputs(4, 35, 4, 2, 8)
    aside = {"segments_BT": documents(4, 35), "slopes_H": alibi_slopes(4)}

    def step(kernel, q, k, v, g, aside):
        body = lambda *x: attention(*x, kernel=kernel, pattern=parse("strided:7"), **aside)
        out, pull = jax.vjp(jax.checkpoint(body), q, k, v)
        return out, *pull(g)

    wanted = quick(functools.partial(step, "dense"))(q, k, v, g, aside)
    heads = P(("data", "fsdp"), None, "tensor", None)
    kv = heads if mesh.shape["tensor"] == 2 else P(("data", "fsdp"), None, None, None)
    with jax.set_mesh(mesh):
        put = lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec))
        q, k, v, g = map(put, (q, k, v, g), (heads, kv, kv, heads))
        aside["segments_BT"] = put(aside["segments_BT"], P(("data", "fsdp"), None))
        got = quick(functools.partial(step, "block_list"))(q, k, v, g, aside)
    assert [x.sharding.spec for x in got] == [heads, heads, kv, kv]
    assert_close(got, wanted, 2e-5)


def test_choice():
    def choose(text, kernel="auto", backend="gpu", length=1024, dtype=jnp.bfloat16, size=64):
        return choose_kernel(kernel, backend, parse(text), True, False, length, dtype, size)

    assert choose("strided:128") == choose("bigbird:64") == "block_list"
    assert choose("causal") == choose("window:64") == "blocked"
    assert choose("strided:128", dtype=jnp.float32) == choose("strided:128", size=256) == "blocked"
    assert choose("column:1024", length=8192) == "blocked"  # one pair in 32 of a block
    assert choose("fixed:128,8", backend="cpu") == "blocked"
    assert choose("causal", "block_list", "cpu", dtype=jnp.float32) == "block_list"
    for wrong in ({"backend": "tpu"}, {"size": 256}):
        with pytest.raises(BadInput, match="block_list"):
            choose("strided:128", "block_list", **wrong)


def test_ledger(small_blocks):
    """Products in a turn of the loops, and the pairs of the listed blocks."""
    pattern, (q, k, v, g) = parse("strided:7"), inputs(1, 67, 2, 2, 16)
    listed = len(lists.key_lists(pattern, 67, 16).entries) * 16 * 16
    assert kernel_pairs(pattern, 67, "block_list") == listed >= pattern.pairs(67)

    def count(jaxpr):
        own = sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns)
        inner = (inside for eqn in jaxpr.eqns for inside in jax.core.jaxprs_in_params(eqn.params))
        return own + sum(count(inside) for inside in inner)

    run = lambda q, k, v: attention(q, k, v, kernel="block_list", pattern=pattern)
    forward = count(jax.make_jaxpr(run)(q, k, v).jaxpr) / 2  # in two loops
    both = count(jax.make_jaxpr(lambda q, k, v, g: jax.vjp(run, q, k, v)[1](g))(q, k, v, g).jaxpr)
    assert (forward, both / 2 - forward) == kernel_products("block_list")
