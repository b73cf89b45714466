"""Attention under masks, with scores of distances and of types, against the plain softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import MeshConfig
from gptjax.ops import masked
from gptjax.ops.attention import softmax_attention
from gptjax.ops.patterns import Bidirectional, Causal, Window
from gptjax.ops.relative import DistanceKeys, DistanceScores, relative_attention
from gptjax.ops.two_stream import TypeKeys, ranked_attention
from gptjax.parallel import make_mesh

B, T, H, K = 2, 13, 4, 8
SCALE = K**-0.5


@pytest.fixture(autouse=True)
def short_strips(monkeypatch):
    monkeypatch.setattr(masked, "QUERIES", 3)


def arrays(groups=H, queries=T, distances=T, memory=False):
    """Queries, keys, values, vectors of distances and both biases; keys and values twice."""
    rng = np.random.default_rng(0)
    shapes = [(B, queries, H, K), *[(B, T, groups, K)] * (4 if memory else 2)]
    shapes += [(distances, H, K), (H, K), (H, K)]
    return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def plain(q, k, v, at, terms, mask, places, told=None):
    """By the plain softmax: at [B, T], places of distance 0 in `terms`, told [B, H, T, S]."""
    keys, content, place = terms
    away = places(at[:, :, None] - np.arange(k.shape[1])[None, None])
    away = jnp.clip(away, 0, len(keys) - 1)
    bias = SCALE * jnp.einsum("bthk,btshk->bhts", q + place[None, None], keys[away])
    bias = bias if told is None else bias + told
    apart = jnp.zeros((1, 1, 1))
    return softmax_attention(q + content[None, None], k, v, mask, apart, None, SCALE, bias)


def agree(ours, theirs, given, rtol=2e-5):
    """Outputs and all gradients."""
    rng = np.random.default_rng(1)
    found = []
    for function in (ours, theirs):
        with jax.numpy_rank_promotion("allow"):
            out, back = jax.vjp(jax.jit(function), *given)
            found.append([out, *back(jnp.asarray(rng.normal(size=out.shape), out.dtype))])
        rng = np.random.default_rng(1)
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=rtol * float(jnp.abs(b).max()))


@pytest.mark.parametrize("pattern", [Causal(), Window(2)], ids=str)
@pytest.mark.parametrize("groups", [H, 2])
def test_distances_to_earlier_keys(pattern, groups):
    at = np.broadcast_to(np.arange(T), (B, T))
    mask = pattern.mask(np.arange(T)[:, None], np.arange(T)[None], T)[None]

    def ours(q, k, v, *terms):
        return relative_attention(q, k, v, relative=DistanceKeys(*terms), pattern=pattern)

    agree(
        ours,
        lambda q, k, v, *terms: plain(q, k, v, at, terms, mask, lambda away: away),
        arrays(groups),
    )


def test_distances_both_ways_with_a_prefix_and_segments():
    at = np.broadcast_to(np.arange(T), (B, T))
    prefix = np.arange(T)[None] < np.array([4, 7])[:, None]
    segments = (np.arange(T)[None] >= np.array([9, T])[:, None]).astype(np.int32)
    mask = (at[:, :, None] >= at[:, None]) | prefix[:, None]
    mask = mask & (segments[:, :, None] == segments[:, None])
    given = {"prefix_BT": prefix, "segments_BT": segments, "both": True, "pattern": Causal()}
    agree(
        lambda q, k, v, *terms: relative_attention(q, k, v, relative=DistanceKeys(*terms), **given),
        lambda q, k, v, *terms: plain(q, k, v, at, terms, mask, lambda away: T - 1 - away),
        arrays(distances=2 * T - 1),
    )


def test_a_memory_of_the_segment_before():
    memory, at = 5, np.broadcast_to(np.arange(T), (B, T))
    count = np.arange(T) // memory
    own = (count[:, None] == count[None]) & (at[0][:, None] >= at[0][None])
    old = count[:, None] == count[None] + 1

    def ours(q, k, v, k_old, v_old, *terms):
        more = {"remembered": (k_old, v_old), "memory": memory, "pattern": Causal()}
        return relative_attention(q, k, v, relative=DistanceKeys(*terms), **more)

    def theirs(q, k, v, k_old, v_old, keys, content, place):
        k, v = jnp.concatenate([k_old, k], 1), jnp.concatenate([v_old, v], 1)
        away = np.clip(np.arange(T)[:, None] - np.arange(2 * T)[None] % T, 0, len(keys) - 1)
        bias = SCALE * jnp.einsum("bthk,tshk->bhts", q + place[None, None], keys[away])
        mask = np.concatenate([old, own], 1)[None]
        zero = jnp.zeros((1, 1, 1))
        return softmax_attention(q + content[None, None], k, v, mask, zero, None, SCALE, bias)

    agree(ours, theirs, arrays(distances=2 * memory, memory=True))


@pytest.mark.parametrize("own_places", [False, True])
def test_ranks_and_types(own_places):
    rng, P = np.random.default_rng(2), 5
    at = rng.integers(0, T, (B, P)) if own_places else np.broadcast_to(np.arange(T), (B, T))
    order = np.where(rng.random((B, T)) < 0.4, rng.integers(1, 9, (B, T)), 0).astype(np.int32)
    types = rng.integers(0, 2, (B, T)).astype(np.int32)
    of = lambda x: np.take_along_axis(x, at, 1)[:, :, None]
    mask = order[:, None] < of(order) if own_places else order[:, None] <= of(order)
    if own_places:
        others = at[:, :, None] != np.arange(T)[None, None]
        mask = mask | ((order[:, None] == 0) & (of(order) == 0) & others)
    same = of(types) == types[:, None]
    more = {"order_BS": order, "types_BS": types, "scale": SCALE}
    if own_places:
        more["at_BP"] = at.astype(np.int32)

    def ours(q, k, v, keys, content, place, relations, relation):
        kinds, terms = TypeKeys(relations, relation), DistanceKeys(keys, content, place)
        return ranked_attention(q, k, v, relative=terms, types=kinds, **more)

    def theirs(q, k, v, keys, content, place, relations, relation):
        told = SCALE * jnp.einsum("bthk,rhk->rbht", q + relation, relations)[..., None]
        told = jnp.where(same[:, None], told[0], told[1])
        terms = keys, content, place
        return plain(q, k, v, at, terms, mask, lambda away: T - 1 - away, told)

    kinds = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, H, K), (H, K))]
    agree(ours, theirs, arrays(2, at.shape[1], 2 * T - 1) + kinds)


def test_scores_of_distances_and_halves():
    rng = np.random.default_rng(3)
    scores = jnp.asarray(rng.normal(size=(2 * T - 1, H)), jnp.float32)
    away = T - 1 - (np.arange(T)[:, None] - np.arange(T)[None])
    given = {"pattern": Bidirectional(), "both": True}

    def ours(q, k, v, scores):
        return relative_attention(q, k, v, relative=DistanceScores(scores), **given)

    def theirs(q, k, v, scores):
        bias, zero = scores.T[:, away][None], jnp.zeros((1, 1, 1))
        return softmax_attention(q, k, v, np.ones((1, T, T), bool), zero, None, SCALE, bias)

    q, k, v, *_ = arrays()
    agree(ours, theirs, (q, k, v, scores))
    halves = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    out = ours(*halves, scores)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), ours(q, k, v, scores), atol=0.05)


def test_heads_and_rows_on_a_mesh_and_populations():
    q, k, v, *terms = arrays(distances=2 * T - 1)
    order = np.random.default_rng(4).integers(0, 3, (B, T)).astype(np.int32)

    def loss(q, k, v, *terms):
        more = {"order_BS": jnp.asarray(order), "scale": SCALE}
        out = ranked_attention(q, k, v, relative=DistanceKeys(*terms), **more)
        return jnp.sum(jnp.square(out))

    grad = jax.jit(jax.grad(loss, tuple(range(6))))
    alone = grad(q, k, v, *terms)
    members = jax.jit(jax.vmap(jax.grad(loss, tuple(range(6)))))(
        *[jnp.stack([x, 2 * x]) for x in (q, k, v, *terms)]
    )
    for a, b in zip(alone, members, strict=True):
        np.testing.assert_allclose(a, b[0], rtol=1e-4, atol=1e-4)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, tensor=2))):
        whole, vectors = jax.P("data", None, "tensor", None), jax.P(None, "tensor")
        specs = [whole] * 3 + [jax.P(None, "tensor", None), vectors, vectors]
        placed = [jax.device_put(x, spec) for x, spec in zip((q, k, v, *terms), specs, strict=True)]
        for a, b in zip(alone, grad(*placed), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_query_that_reads_nothing_gets_nothing():
    """Also no gradient, whichever strip it stands in; the others are as without it."""
    rng = np.random.default_rng(5)
    q, k, v = (rng.normal(size=(2, 70, 2, 8)).astype(np.float32) for _ in range(3))
    mask = rng.random((2, 70, 70)) < 0.4
    mask[:, [3, 69]] = False
    mask[1] = False

    def run(q, k, v):
        return masked.masked_attention(q, k, v, jnp.asarray(mask), 0.3)

    out, back = jax.vjp(run, q, k, v)
    expected = softmax_attention(q, k, v, jnp.asarray(mask), None, None, 0.3)
    some = mask.any(-1)
    np.testing.assert_allclose(out[some], expected[some], rtol=2e-4, atol=2e-5)
    assert not np.asarray(out)[~some].any()
    cotangent = rng.normal(size=out.shape).astype(np.float32)
    dq, dk, dv = back(cotangent)
    assert not np.asarray(dq)[~some].any()
    assert not np.asarray(dk)[1].any() and not np.asarray(dv)[1].any()
    quiet = np.where(some[..., None, None], cotangent, 0)
    for one, other in zip((dq, dk, dv), back(quiet), strict=True):
        np.testing.assert_array_equal(one, other)
