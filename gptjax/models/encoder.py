"""The encoder: a text both ways, and what is said of its tokens and of the whole.

BERT (arXiv 1810.04805) normalises after every layer and transforms the stream before the
vocabulary's table; its pooler sees the first token alone.
"""

import flax.linen as nn
import jax.numpy as jnp

from gptjax.models.experts import mean_routing, routing_loss
from gptjax.models.layers import Inputs, Norm
from gptjax.models.stack import Output, Stack
from gptjax.ops import activations
from gptjax.ops.places import at_places


class Encoder(Stack):
    """An encoder-only transformer (`models.kinds.EncoderConfig`)."""

    @nn.compact
    def __call__(
        self,
        tokens_BT,
        *,
        positions_BT=None,
        segments_BT=None,
        types_BT=None,
        tasks_BT=None,
        at_BP=None,
    ) -> Output:
        """What is said of tokens [B, T]: hidden states, and of rows and tokens their classes.

        `segments_BT` keeps attention within a document; `types_BT` and `tasks_BT` are rows of the
        tables of types and of tasks, by default the first; `at_BP`: the places whose hidden states
        are wanted, by default all.
        """
        c = self.config
        T = tokens_BT.shape[1]
        table_VD = self.words()
        x_BTD = self.widened(self.vectors(table_VD, tokens_BT), self.widening())
        positions = jnp.arange(T) if positions_BT is None else positions_BT
        more = {"types": (c.embedding.types, types_BT), "tasks": (c.embedding.tasks, tasks_BT)}
        more = {name: given for name, given in more.items() if given[0]}
        x_BTD = self.entered(x_BTD, positions, more)
        inputs = Inputs(positions, segments_BT)
        if c.positions == "relative_bias":
            inputs = inputs._replace(scores_LH=self.distance_scores(T, both=True))
        states_BTD, _, routings = self.through(x_BTD, inputs, None)
        x_BTD = states_BTD if at_BP is None else at_places(states_BTD, at_BP)
        if c.head == "transform":
            unit = activations.activation(c.unit)
            x_BTD = unit(self.product("transform", x_BTD, c.d_model))
            x_BTD = Norm(c, self.rules, name="transform_norm")(x_BTD)
        hidden = self.headed(x_BTD, table_VD)
        tokens_BTC = None
        if c.token_classes:
            tokens_BTC = self.product("token_classes", states_BTD, c.token_classes)
        routing = mean_routing(routings), routing_loss(c.experts, routings)
        said = states_BTD, *self.of_rows(states_BTD), tokens_BTC
        return Output(*hidden[:2], None, hidden[2], *routing, *said)
