"""Attention in a factorisation order: who is read depends on ranks, not on places.

XLNet (arXiv 1906.08237, section 2.3): content at a place reads all content of its own rank and of
lower ones, a query at a place only that of lower ranks. Scores are those of distances to both
sides (`ops/relative.py`), and of whether two places are of the same type.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from gptjax.ops.attention import aligned
from gptjax.ops.distances import Distances
from gptjax.ops.masked import Terms, masked_attention, strips_of
from gptjax.ops.relative import DistanceKeys
from gptjax.ops.shards import on_shards


class TypeKeys(NamedTuple):
    """A score gets (q + relation) . keys[0] of places of one type, of two types keys[1].

    keys_RHK: two of them; relation_HK: a bias of queries.
    """

    keys_RHK: jax.Array
    relation_HK: jax.Array


def ranked_attention(
    q_BPHK,
    k_BSGK,
    v_BSGK,
    *,
    relative: DistanceKeys,
    order_BS,
    at_BP=None,
    types: TypeKeys | None = None,
    types_BS=None,
    segments_BS=None,
    scale: float,
):
    """Attention of content to content, or of queries at the places `at_BP`, [B, P, H, K].

    relative: of the 2 S - 1 distances from the longest down to its negative; order_BS: ranks, 0 of
    tokens that are not predicted, which all see each other. types with types_BS: integers of
    every place. segments_BS: integers, a place reads only its own.
    """
    length = k_BSGK.shape[1]
    q_BPHK, k_BSGK, v_BSGK, batch, heads, kv_heads = aligned(q_BPHK, k_BSGK, v_BSGK, 1)
    whole, kv_whole = P(batch, None, heads, None), P(batch, None, kv_heads, None)
    rows = {"order": order_BS, "at": at_BP, "types": types_BS, "segments": segments_BS}
    rows = {name: x for name, x in rows.items() if x is not None}
    arrays = [q_BPHK, k_BSGK, v_BSGK, *relative]
    specs = [whole, kv_whole, kv_whole, *relative.specs(heads)]
    if types_BS is not None:
        arrays = [*arrays, *types]
        specs = [*specs, P(None, heads, None), P(heads, None)]
    arrays, specs = [*arrays, *rows.values()], [*specs, *[P(batch, None)] * len(rows)]

    def run(q, k, v, *rest):
        rest, own = list(rest), {}
        terms = DistanceKeys(*(rest.pop(0) for _ in range(3)))
        kinds = TypeKeys(rest.pop(0), rest.pop(0)) if types_BS is not None else None
        own = dict(zip(rows, rest, strict=True))
        here = jnp.arange(length)
        at = own.get("at", jnp.broadcast_to(here, (q.shape[0], length)))
        begins = None if at_BP is None else length - 1 - at
        told = same = None
        if kinds is not None:
            told = scale * jnp.einsum(
                "bphk,rhk->bhpr",
                q + kinds.relation_HK[None, None],
                kinds.keys_RHK,
                preferred_element_type=jnp.float32,
            )
            same = _of(own["types"], at)[:, :, None] == own["types"][:, None, :]
        distances = Distances(terms.keys_LHK, terms.distance_HK, begins)
        added = Terms(None, told, same, distances, terms.content_HK)
        ranks = _of(own["order"], at)[:, :, None], own["order"][:, None, :]
        if at_BP is None:
            mask = ranks[1] <= ranks[0]
        else:
            others = at[:, :, None] != here[None, None]
            mask = (ranks[1] < ranks[0]) | ((ranks[1] == 0) & (ranks[0] == 0) & others)
        if "segments" in own:
            mask = mask & (_of(own["segments"], at)[:, :, None] == own["segments"][:, None, :])
        strips = strips_of(q.shape[1], length)
        return masked_attention(q, k, v, mask, scale, added, strips)

    return on_shards(run, tuple(specs), whole)(*arrays)


def _of(x_BS, at_BP):
    return jnp.take_along_axis(x_BS, at_BP, axis=1)
