"""Vectors of some places of a sequence."""

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from gptjax.ops.shards import on_shards, spec_of


def at_places(x_BTD, at_BP):
    """The vectors [B, P, D] at places of every row; rows may be sharded, places must not be."""
    batch = spec_of(x_BTD)[0]

    def run(x_BTD, at_BP):
        return jnp.take_along_axis(x_BTD, at_BP[:, :, None], axis=1, mode="clip")

    return on_shards(run, (P(batch, None, None), P(batch, None)), P(batch, None, None))(
        x_BTD, at_BP
    )
