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
    def __call__(self, x_BND, inputs: Inputs, order_BT, types_BT, at_BP):
        """What the layer adds to content and, behind it, queries: [B, T, D] or [B, T + P, D]."""
        c, (D, T) = self.config, (x_BND.shape[-1], order_BT.shape[1])
        w_q, w_k, w_v = self.projections(D)
        terms = {
            "relative": self.relative(x_BND.dtype, inputs, T, both=True),
            "types": self.relations() if c.embedding.types else None,
            "order_BS": order_BT,
            "types_BS": types_BT,
            "segments_BS": inputs.segments_BT,
            "scale": c.score_scale,
        }
        q_BNHK, x_BTD = self.heads(x_BND, *w_q), x_BND[:, :T]
        k_BTGK, v_BTGK = self.heads(x_BTD, *w_k), self.heads(x_BTD, *w_v)
        out_BNHK = ranked_attention(q_BNHK[:, :T], k_BTGK, v_BTGK, **terms)
        if x_BND.shape[1] > T:
            q_BPHK = q_BNHK[:, T:]
            out_BPHK = ranked_attention(q_BPHK, k_BTGK, v_BTGK, at_BP=at_BP, **terms)
            out_BNHK = jnp.concatenate([out_BNHK, out_BPHK], 1)
        return self.output(out_BNHK, D)

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
    def __call__(self, x_BND, inputs, order_BT, types_BT, at_BP):
        c = self.config
        mix = TwoStreamAttention(c, self.rules, self.kind.pattern, name="attention")
        norms = [Norm(c, self.rules, name=f"{name}_norm") for name in ("attention", "mlp")]
        feed, drop = MLP(c, self.rules, name="mlp"), Dropout(c.dropout)
        x_BND = norms[0](x_BND + drop(mix(x_BND, inputs, order_BT, types_BT, at_BP)))
        return norms[1](x_BND + drop(feed(x_BND)))


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
        x_BTD = Dropout(c.dropout)(self.widened(self.vectors(table_VD, tokens_BT), self.widening()))
        std = init_std(c, c.d_model)
        start_D = weight(self, "query_start", normal(std), (c.d_model,), ("embed",))
        x_BND, places = x_BTD, ("batch", "seq", None)
        if order_BT is None:
            order_BT = place(jnp.zeros((B, T), jnp.int32), places[:2], self.rules)
        else:
            if at_BP is None:
                at_BP = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
                at_BP = place(at_BP, places[:2], self.rules)
            shape = (B, at_BP.shape[1], c.d_model)
            g_BPD = place(jnp.broadcast_to(start_D[None, None], shape), places, self.rules)
            # All but attention is the same for each vector: both go through it as one.
            x_BND = jnp.concatenate([x_BTD, g_BPD], 1)
        inputs = Inputs(np.arange(T), segments_BT)
        block = TwoStreamBlock
        if c.remat != "none":
            block = nn.remat(block, policy=REMAT_POLICIES[c.remat])
        for i in range(c.num_layers):
            layer = block(c, self.rules, c.layer_kind(i), name=f"layer_{i}")
            x_BND = layer(x_BND, inputs, order_BT, types_BT, at_BP)
        x_BTD, h_BPD = x_BND[:, :T], x_BND[:, T:]
        if x_BND.shape[1] == T:
            h_BPD = x_BTD if at_BP is None else at_places(x_BTD, at_BP)
        h_BPD, head_VD, bias_V = self.headed(h_BPD, table_VD)
        return Output(h_BPD, head_VD, None, bias_V, states_BTD=x_BTD)
