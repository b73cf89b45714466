"""Attention whose scores depend on the distance between query and key.

Transformer-XL's form (arXiv 1901.02860, section 3.3) gives every distance a key of its own and
queries two learned biases; T5's (arXiv 1910.10683, section 2.1) gives every bucket of distances a
learned score. Both need the scores of all pairs, so the plain masked softmax computes them.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from gptjax.ops.attention import aligned
from gptjax.ops.distances import Distances
from gptjax.ops.masked import Terms, masked_attention, strips_of
from gptjax.ops.patterns import Pattern
from gptjax.ops.shards import on_shards


class DistanceKeys(NamedTuple):
    """Transformer-XL: a score gets (q + distance) . keys[query - key], its content q + content.

    keys_LHK: of the distances 0..L-1, or where later keys are read too of all from the longest down
    to its negative; content_HK and distance_HK: u and v of the source.
    """

    keys_LHK: jax.Array
    content_HK: jax.Array
    distance_HK: jax.Array

    def specs(self, heads):
        """The partition of every array, for heads on these mesh axes."""
        return DistanceKeys(P(None, heads, None), P(heads, None), P(heads, None))

    def query(self, q_BTHK):
        """The queries that meet keys of content."""
        return q_BTHK + self.content_HK[None, None]

    def terms(self, queries: int, keys: int, both: bool) -> Terms:
        """What masked attention adds to the scores of queries at the end of so many keys."""
        keys_LHK = self.keys_LHK
        if not both:  # one column more, for the later keys of a strip, which are masked
            keys_LHK = jnp.pad(keys_LHK[:keys][::-1], ((0, 1), (0, 0), (0, 0)))
        distances = Distances(keys_LHK, self.distance_HK)
        return Terms(distances=distances, content_HK=self.content_HK)

    def bias(self, q_BTHK, scale: float):
        """[B, H, T, L] in float32: what a query's score gets at every distance."""
        return scale * jnp.einsum(
            "bthk,lhk->bhtl",
            q_BTHK + self.distance_HK[None, None],
            self.keys_LHK,
            preferred_element_type=jnp.float32,
        )


class DistanceScores(NamedTuple):
    """T5: a score gets scores[query - key]; scores_LH: of distances as in `DistanceKeys`."""

    scores_LH: jax.Array

    def specs(self, heads):
        return DistanceScores(P(None, heads))

    def query(self, q_BTHK):
        return q_BTHK

    def bias(self, q_BTHK, scale: float):
        scores_1HTL = self.scores_LH.T[None, :, None].astype(jnp.float32)
        length, (_, heads, _, distances) = q_BTHK.shape[1], scores_1HTL.shape
        return jnp.broadcast_to(scores_1HTL, (1, heads, length, distances))

    def terms(self, queries: int, keys: int, both: bool) -> Terms:
        """What masked attention adds to the scores of queries at the end of so many keys.

        Later keys have their own scores, or those of near ones. A gather, which XLA does not make
        again for every row of a batch, as it would a shift.
        """
        away = np.arange(keys - queries, keys)[:, None] - np.arange(keys)[None]
        places = keys - 1 - away if both else np.maximum(away, 0)
        return Terms(bias_HTS=jnp.take(self.scores_LH.T.astype(jnp.float32), places, axis=1))


Relative = DistanceKeys | DistanceScores


def at_distances(bias_BHTL, apart_TS):
    """[B, H, T, S]: the bias of every pair; apart_TS: key minus query position, as masked pairs."""
    away = jnp.clip(-apart_TS, 0, bias_BHTL.shape[-1] - 1)[None, None]
    shape = (*bias_BHTL.shape[:2], *apart_TS.shape)
    return jnp.take_along_axis(bias_BHTL, jnp.broadcast_to(away, shape), axis=-1)


def relative_attention(
    q_BTHK,
    k_BTGK,
    v_BTGK,
    *,
    relative: Relative,
    pattern: Pattern,
    both: bool = False,
    memory: int = 0,
    remembered=None,
    segments_BT=None,
    prefix_BT=None,
    scale: float | None = None,
):
    """Self-attention over whole sequences with scores of distances, [B, T, H, K].

    relative: of at least T distances, or twice the memory; both: of the 2 T - 1 distances to keys
    on both sides. prefix_BT: bool, keys that every query reads. memory: positions in a segment; a
    query reads its own segment up to itself and the one before as a whole, whose keys and values
    are taken from `remembered`, a pair shaped as k and v: with other gradients. segments_BT:
    integers, a query reads only keys of its own.
    """
    length = q_BTHK.shape[1]
    scale = 1.0 / math.sqrt(q_BTHK.shape[-1]) if scale is None else scale
    q_BTHK, k_BTGK, v_BTGK, batch, heads, kv_heads = aligned(q_BTHK, k_BTGK, v_BTGK, 1)
    whole, kv_whole = P(batch, None, heads, None), P(batch, None, kv_heads, None)
    arrays = [q_BTHK, k_BTGK, v_BTGK, *relative]
    specs = [whole, kv_whole, kv_whole, *relative.specs(heads)]
    if memory:
        _, *remembered, _, _, _ = aligned(q_BTHK, *remembered, 1)
        arrays, specs = [*arrays, *remembered], [*specs, kv_whole, kv_whole]
    for rows in (segments_BT, prefix_BT):
        if rows is not None:
            arrays, specs = [*arrays, rows], [*specs, P(batch, None)]

    def run(q, k, v, *rest):
        terms, rest = type(relative)(*rest[: len(relative)]), list(rest[len(relative) :])
        prefix = None if prefix_BT is None else rest.pop()
        segments = None if segments_BT is None else rest[-1]
        mask, reads = None, None
        if memory:
            q, k, v, mask, segments = _cut(memory, q, k, v, *rest[:2], segments)
            reads = mask.any(0)
        else:
            at = np.arange(length)
            reads = pattern.mask(at[:, None], at[None, :], length)
            mask = reads[None]
            if prefix is not None:
                mask, reads = mask | prefix[:, None, :], None
            if segments is not None:
                segments = segments, segments
        if segments is not None:
            mask = mask & (segments[0][:, :, None] == segments[1][:, None, :])
        queries, keys = q.shape[1], k.shape[1]
        out = masked_attention(
            q,
            k,
            v,
            jnp.asarray(mask),
            scale,
            terms.terms(queries, keys, both),
            strips_of(queries, keys, reads),
        )
        return out.reshape(-1, out.shape[1] * (-(-length // memory) if memory else 1),
                           *out.shape[2:])[:, :length]  # fmt: skip

    return on_shards(run, tuple(specs), whole)(*arrays)


def _cut(memory: int, q, k, v, k_old, v_old, segments):
    """Everything in segments [B * N, M, ...], keys with those of the segment before in front."""
    count = -(-q.shape[1] // memory)

    def cut(x):
        widths = [(0, 0), (0, count * memory - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, widths).reshape(x.shape[0], count, memory, *x.shape[2:])

    def before(x):
        return jnp.pad(cut(x)[:, :-1], [(0, 0), (1, 0)] + [(0, 0)] * (x.ndim - 1))

    def flat(x):
        return x.reshape(-1, *x.shape[2:])

    at = np.arange(memory)
    own = np.broadcast_to(at[:, None] >= at[None, :], (count, memory, memory))
    old = np.broadcast_to((np.arange(count) > 0)[:, None, None], own.shape)
    mask = np.tile(np.concatenate([old, own], -1), (q.shape[0], 1, 1))
    if segments is not None:
        both = jnp.concatenate([before(segments), cut(segments)], 2)
        segments = flat(cut(segments)), flat(both)
    k, v = (
        flat(jnp.concatenate([before(x_old), cut(x)], 2)) for x_old, x in ((k_old, k), (v_old, v))
    )
    return flat(cut(q)), k, v, mask, segments


def sinusoids(distances_L: np.ndarray, size: int):
    """Vectors of distances, float32 [L, size]: sines, then cosines.

    The frequencies are those of arXiv 1706.03762; Transformer-XL's code does not interleave them.
    """
    powers = jnp.arange(0, size, 2, dtype=jnp.float32) / size
    angles = jnp.asarray(distances_L, jnp.float32)[:, None] / (10_000.0**powers)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)[:, :size]


def distance_buckets(count: int, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of every distance 0..count-1 to an earlier key, int32 (arXiv 1910.10683).

    Half of them hold one distance each, the others ranges that grow geometrically up to
    `max_distance`.
    """
    exact, away = buckets // 2, np.arange(count)
    # In float32, as the source computes it: where a range ends exactly decides the bucket.
    ratio = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    coarse = np.minimum(exact + ratio.astype(np.int32), buckets - 1)
    return np.where(away < exact, away, coarse).astype(np.int32)


def bucket_rows(count: int, buckets: int, max_distance: int, both: bool, later: bool) -> np.ndarray:
    """The row of T5's table of every distance, int32 [count].

    both: [2 count - 1], from the longest to earlier keys down to the longest to later ones. later:
    whether later keys have rows of their own, the second half of the table, as in an encoder.
    """
    rows = distance_buckets(count, buckets // 2 if later else buckets, max_distance)
    if not both:
        return rows
    ahead = rows[1:] + buckets // 2 if later else np.zeros(count - 1, np.int32)
    return np.concatenate([rows[::-1], ahead]).astype(np.int32)
