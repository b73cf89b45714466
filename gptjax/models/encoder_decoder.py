"""The encoder-decoder: one stack reads a text both ways, another writes with an eye on it.

Both share the table of tokens, which is also the head of T5 1.0 (arXiv 1910.10683); T5 1.1 has a
head of its own. Positions, the embedding's norm and scores of distances are each stack's own.
"""

import flax.linen as nn
import jax.numpy as jnp

from gptjax.models.experts import mean_routing, routing_loss
from gptjax.models.layers import Inputs
from gptjax.models.stack import Output, Stack, room
from gptjax.ops.places import at_places


class Side(Stack):
    """A stack among others."""

    @nn.compact
    def __call__(self, x_BTD, inputs: Inputs, cache=None, types_BT=None, kinds=None):
        """The stream above its last layer, the cache, and the `Routing` of every layer.

        kinds: as of `Stack.through`.
        """
        c = self.config
        more = {"types": (c.embedding.types, types_BT)} if c.embedding.types else {}
        x_BTD = self.entered(x_BTD, inputs.positions, more)
        if c.positions == "relative_bias":
            count = x_BTD.shape[1] if cache is None else room(cache)
            both = not c.attention.patterns[0].causal
            inputs = inputs._replace(scores_LH=self.distance_scores(count, both))
        return self.through(x_BTD, inputs, cache, kinds)


class EncoderDecoder(Stack):
    """An encoder and a decoder that reads it (`models.kinds.EncoderDecoderConfig`)."""

    @nn.compact
    def __call__(
        self,
        tokens_BT=None,
        *,
        source_BS=None,
        source_segments_BS=None,
        source_types_BS=None,
        written_BSD=None,
        segments_BT=None,
        at_BP=None,
        cache=None,
    ):
        """Hidden states of the decoder's tokens [B, T], of which each is predicted by those before.

        source_BS: what the encoder reads; without tokens the result is what it writes, which may
        be given as written_BSD in its place. Segments keep attention within documents, also between
        the two sides; a source of segment -1 is read by none. With a cache the tokens follow those
        in it; what the layers make of the encoder's side is kept there.
        """
        c = self.config
        table_VD, w_ED = self.words(), self.widening()
        routings = []
        if written_BSD is None and (cache is None or cache.written is None):
            inputs = Inputs(jnp.arange(source_BS.shape[1]), source_segments_BS)
            x_BSD = self.widened(self.vectors(table_VD, source_BS), w_ED)
            side = Side(c.encoder, self.rules, name="encoder")
            written_BSD, _, routings = side(x_BSD, inputs, types_BT=source_types_BS)
        if tokens_BT is None:
            return written_BSD
        T = tokens_BT.shape[1]
        positions = jnp.arange(T) if cache is None else cache.length + jnp.arange(T)
        inputs = Inputs(positions, segments_BT, None, None, written_BSD, source_segments_BS)
        x_BTD = self.widened(self.vectors(table_VD, tokens_BT), w_ED)
        side = Side(c.decoder, self.rules, cross=True, name="decoder")
        x_BTD, cache, more = side(x_BTD, inputs, cache)
        cache = None if cache is None else cache._replace(length=cache.length + T)
        states_BTD = x_BTD
        if at_BP is not None:
            x_BTD = at_places(x_BTD, at_BP)
        x_BTD, head_VD, bias_V = self.headed(x_BTD, table_VD)
        routings = [*routings, *more]
        experts = mean_routing(routings), routing_loss(c.experts, routings)
        return Output(x_BTD, head_VD, cache, bias_V, *experts, states_BTD)
