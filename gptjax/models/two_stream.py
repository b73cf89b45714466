"""XLNet: content and queries as two streams through one stack (arXiv 1906.08237).

The query stream begins with one learned vector at every predicted place and reads content, never
its own; the layers of both are the same. There is no memory of earlier segments here.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from gptjax.models.config import LayerKind, TransformerConfig
from gptjax.models.layers import MLP, Attention, Dropout, Inputs, Norm
from gptjax.models.parameters import init_std, normal, weight, zeros
from gptjax.models.stack import REMAT_POLICIES, Output, Stack
from gptjax.ops.places import at_places
from gptjax.ops.two_stream import TypeKeys, ranked_attention
from gptjax.parallel import Rules, place


class TwoStreamAttention(Attention):
    """Attention of both streams, with the same weights."""

    @nn.compact
    def __call__(self, x_BTD, g_BPD, inputs: Inputs, order_BT, types_BT, at_BP):
        """What the layer adds to content [B, T, D] and to queries [B, P, D], or None for those."""
        c, (D, T) = self.config, (x_BTD.shape[-1], x_BTD.shape[1])
        w_q, w_k, w_v = self.projections(D)
        terms = {
            "relative": self.relative(x_BTD.dtype, inputs, T, both=True),
            "types": self.relations() if c.embedding.types else None,
            "order_BS": order_BT,
            "types_BS": types_BT,
            "segments_BS": inputs.segments_BT,
            "scale": c.score_scale,
        }
        k_BTGK, v_BTGK = self.heads(x_BTD, *w_k), self.heads(x_BTD, *w_v)
        outs = [ranked_attention(self.heads(x_BTD, *w_q), k_BTGK, v_BTGK, **terms)]
        if g_BPD is not None:
            q_BPHK = self.heads(g_BPD, *w_q)
            outs.append(ranked_attention(q_BPHK, k_BTGK, v_BTGK, at_BP=at_BP, **terms))
        shapes = [out.shape[1] for out in outs]
        both = self.output(jnp.concatenate(outs, 1), D)
        return both[:, : shapes[0]], None if g_BPD is None else both[:, shapes[0] :]

    def relations(self) -> TypeKeys:
        """What scores get from two places being of one type, or of two."""
        c = self.config
        shape, axes = (c.num_heads, c.qk_size), ("heads", "head_dim")
        init = normal(init_std(c, c.d_model))
        keys_RHK = weight(self, "type_keys", init, (2, *shape), (None, *axes))
        return TypeKeys(keys_RHK, weight(self, "type_bias", zeros, shape, axes))


class TwoStreamBlock(nn.Module):
    """A layer of both streams, normed behind as XLNet's are."""

    config: TransformerConfig
    rules: Rules
    kind: LayerKind

    @nn.compact
    def __call__(self, x_BTD, g_BPD, inputs, order_BT, types_BT, at_BP):
        c = self.config
        mix = TwoStreamAttention(c, self.rules, self.kind.pattern, name="attention")
        norms = [Norm(c, self.rules, name=f"{name}_norm") for name in ("attention", "mlp")]
        feed, drop = MLP(c, self.rules, name="mlp"), Dropout(c.dropout)
        y_BTD, z_BPD = mix(x_BTD, g_BPD, inputs, order_BT, types_BT, at_BP)
        T = x_BTD.shape[1]
        if g_BPD is not None:  # all that follows is the same for each vector
            x_BTD = jnp.concatenate([x_BTD, g_BPD], 1)
            y_BTD = jnp.concatenate([y_BTD, z_BPD], 1)
        x_BTD = norms[0](x_BTD + drop(y_BTD))
        x_BTD = norms[1](x_BTD + drop(feed(x_BTD)))
        return x_BTD[:, :T], None if g_BPD is None else x_BTD[:, T:]


class TwoStream(Stack):
    """XLNet (`models.kinds.TwoStreamConfig`)."""

    @nn.compact
    def __call__(
        self, tokens_BT, *, order_BT=None, types_BT=None, segments_BT=None, at_BP=None
    ) -> Output:
        """What is predicted at places of tokens [B, T]; without an order, content both ways.

        order_BT: ranks in the factorisation, 0 of tokens that are not predicted; at_BP: the places
        that are, by default all. types_BT: integers of which is told whether two are the same.
        """
        c = self.config
        B, T = tokens_BT.shape
        table_VD = self.words()
        x_BTD = Dropout(c.dropout)(self.widened(self.vectors(table_VD, tokens_BT)))
        std = init_std(c, c.d_model)
        start_D = weight(self, "query_start", normal(std), (c.d_model,), ("embed",))
        g_BPD, places = None, ("batch", "seq", None)
        if order_BT is None:
            order_BT = place(jnp.zeros((B, T), jnp.int32), places[:2], self.rules)
        else:
            if at_BP is None:
                at_BP = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
                at_BP = place(at_BP, places[:2], self.rules)
            shape = (B, at_BP.shape[1], c.d_model)
            g_BPD = place(jnp.broadcast_to(start_D[None, None], shape), places, self.rules)
        inputs = Inputs(np.arange(T), segments_BT)
        block = TwoStreamBlock
        if c.remat != "none":
            block = nn.remat(block, policy=REMAT_POLICIES[c.remat])
        for i in range(c.num_layers):
            layer = block(c, self.rules, c.layer_kind(i), name=f"layer_{i}")
            x_BTD, g_BPD = layer(x_BTD, g_BPD, inputs, order_BT, types_BT, at_BP)
        h_BPD = g_BPD
        if g_BPD is None:
            h_BPD = x_BTD if at_BP is None else at_places(x_BTD, at_BP)
        h_BPD, head_VD, bias_V = self.headed(h_BPD, table_VD)
        return Output(h_BPD, head_VD, None, bias_V, states_BTD=x_BTD)
