"""A trunk that all tasks share, with a stack of its own above it for each of two (ERNIE 3.0).

The trunk (arXiv 2107.02137: the universal representation module) reads a source both ways or
tokens from left to right, with the same weights; the module of understanding goes on with the
first, the module of generation with the second. Both may be narrower than the trunk.

Deviations: how the trunk meets its modules is not published; here a product with a bias leads into
each and another out of it, to the width of the table of tokens, which is the head of both. There
is no memory of earlier segments.
"""

import flax.linen as nn
import jax.numpy as jnp

from gptjax.models.encoder_decoder import Side
from gptjax.models.experts import mean_routing, routing_loss
from gptjax.models.layers import Cache, Inputs
from gptjax.models.stack import Output, Stack
from gptjax.ops.places import at_places


class TaskModules(Stack):
    """ERNIE 3.0 (`models.kinds.TaskModulesConfig`)."""

    @nn.compact
    def __call__(
        self,
        tokens_BT=None,
        *,
        source_BS=None,
        source_segments_BS=None,
        source_types_BS=None,
        positions_BT=None,
        segments_BT=None,
        at_BP=None,
        cache=None,
    ) -> Output:
        """Hidden states of places of a source [B, S], then those of tokens [B, T].

        Of the two at least one is given. `at_BP`: places of the source, by default all; what is
        said of rows is of the source. Segments keep attention within a document; with a cache the
        tokens follow those already in it. states_BTD are those of the last module that ran.
        """
        c = self.config
        table_VD, w_ED = self.words(), self.widening()
        trunk = Side(c.writer, self.rules, name="trunk")
        hidden, routings, pooled = [], [], (None, None)
        if source_BS is not None:
            x_BSD = self.widened(self.vectors(table_VD, source_BS), w_ED)
            inputs = Inputs(jnp.arange(source_BS.shape[1]), source_segments_BS)
            x_BSD, _, more = trunk(x_BSD, inputs, types_BT=source_types_BS, kinds=c.reader)
            states_BTD, _ = self.task("understanding", c.understanding, x_BSD, inputs)
            pooled = self.of_rows(states_BTD)
            h_BPD = states_BTD if at_BP is None else at_places(states_BTD, at_BP)
            hidden.append(self.product("understanding_out", h_BPD, c.d_model))
            routings += more
        if tokens_BT is not None:
            T = tokens_BT.shape[1]
            start = 0 if cache is None else cache.length
            positions = start + jnp.arange(T) if positions_BT is None else positions_BT
            inputs = Inputs(positions, segments_BT)
            below, above = _parted(cache, c.writer)
            x_BTD = self.widened(self.vectors(table_VD, tokens_BT), w_ED)
            x_BTD, below, more = trunk(x_BTD, inputs, below)
            states_BTD, above = self.task("generation", c.generation, x_BTD, inputs, above)
            hidden.append(self.product("generation_out", states_BTD, c.d_model))
            routings += more
            if cache is not None:
                cache = Cache((*below.layers, *above.layers), cache.length + T)
        h_BPD = hidden[0] if len(hidden) == 1 else jnp.concatenate(hidden, 1)
        h_BPD, head_VD, bias_V = self.headed(h_BPD, table_VD)
        experts = mean_routing(routings), routing_loss(c.experts, routings)
        return Output(h_BPD, head_VD, cache, bias_V, *experts, states_BTD, *pooled)

    def task(self, name: str, config, x_BTD, inputs: Inputs, cache=None):
        """The stream above a module, and its cache."""
        x_BTD = self.product(f"{name}_in", x_BTD, config.d_model)
        x_BTD, cache, _ = Side(config, self.rules, name=name)(x_BTD, inputs, cache)
        return x_BTD, cache


def _parted(cache: Cache | None, trunk) -> tuple[Cache | None, Cache | None]:
    """The trunk's part of a cache and that of the module above it."""
    if cache is None:
        return None, None
    count = len(trunk.turn) if trunk.layers == "scan" else trunk.num_layers
    return tuple(Cache(part, cache.length) for part in (cache.layers[:count], cache.layers[count:]))
