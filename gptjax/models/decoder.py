"""The decoder: tokens in, hidden states and the vocabulary projection out.

Logits are not made here: the objective multiplies hidden states with the head chunk by chunk, and
`stack.logits` does it whole for decoding.
"""

import flax.linen as nn
import jax.numpy as jnp

from gptjax.models.experts import mean_routing, routing_loss
from gptjax.models.layers import Cache, Inputs
from gptjax.models.parameters import normal, weight
from gptjax.models.stack import Output, Stack, room
from gptjax.ops.places import at_places
from gptjax.parallel import place
from gptjax.parallel.rules import activation_spec


class Decoder(Stack):
    """A decoder-only transformer (`models.config.DecoderConfig`)."""

    @nn.compact
    def __call__(
        self,
        tokens_BT,
        *,
        positions_BT=None,
        segments_BT=None,
        prefix_BT=None,
        types_BT=None,
        block_positions_BT=None,
        at_BP=None,
        cache=None,
    ) -> Output:
        """Hidden states of tokens [B, T]; with a cache the tokens follow those already in it.

        `positions_BT` counts from each document's start where the data resets positions;
        `segments_BT` keeps attention within a document; tokens of the `prefix_BT` (bool) are read
        by all others, also by earlier ones. `block_positions_BT`: places within a blank, which
        models without positions of blocks leave out. `at_BP`: the places whose output is wanted, by
        default all. Dropout is active while `rngs={"dropout": key}` is given.
        """
        c = self.config
        T = tokens_BT.shape[1]
        table_VD = self.words()
        x_BTD = self.widened(self.vectors(table_VD, tokens_BT), self.widening())
        start = 0 if cache is None else cache.length
        positions = start + jnp.arange(T) if positions_BT is None else positions_BT
        more = {"types": (c.embedding.types, types_BT)} if c.embedding.types else {}
        if c.positions == "learned_blocks":
            more["block_positions"] = *c.position_axes, block_positions_BT
        x_BTD = self.entered(x_BTD, positions, more)
        inputs = Inputs(positions, segments_BT, prefix_BT, blocks_BT=block_positions_BT)
        if c.positions == "relative_bias":
            if cache is None:
                scores_LH = self.distance_scores(T, both=prefix_BT is not None)
            else:
                scores_LH = self.distance_scores(room(cache), both=False)
            inputs = inputs._replace(scores_LH=scores_LH)
        given = cache
        x_BTD, cache, routings = self.through(x_BTD, inputs, cache)
        if c.attention.top_query == "positions":
            x_BTD, (last, routing) = self.query_layer(x_BTD, inputs, given)
            routings.append(routing)
            last = None if last is None else last.layers
            cache = None if cache is None else cache._replace(layers=(*cache.layers, last))
        cache = None if cache is None else cache._replace(length=cache.length + T)
        states_BTD = x_BTD
        if at_BP is not None:
            x_BTD = at_places(x_BTD, at_BP)
        x_BTD, head_VD, bias_V = self.headed(x_BTD, table_VD)
        experts = mean_routing(routings), routing_loss(c.experts, routings)
        return Output(x_BTD, head_VD, cache, bias_V, *experts, states_BTD)

    def query_layer(self, x_BTD, inputs, cache):
        """The last layer, whose queries are learned vectors of positions (arXiv 2104.12369).

        It predicts the token after a position from where that is, and from what it reads.
        """
        c = self.config
        shape, last = (c.context_length, c.d_model), c.num_layers - 1
        table_SD = weight(self, "query_positions", normal(0.02), shape, (None, "embed"))
        spec = activation_spec(("batch", "seq", None), x_BTD.shape, self.rules)
        at_BT = inputs.positions
        if at_BT.ndim == 1:
            at_BT = place(jnp.broadcast_to(at_BT, x_BTD.shape[:2]), ("batch", "seq"), self.rules)
        q_BTD = table_SD.at[at_BT].get(out_sharding=spec, mode="clip")
        one = None if cache is None else Cache(cache.layers[-1], cache.length)
        layer = self.block(c, self.rules, c.layer_kind(last), name="query_layer")
        return layer(x_BTD, one, inputs, q_BTD)
