"""Next-token prediction: the mean negative log-likelihood of each token given those before it.

The z-loss keeps the log-partition near zero (arXiv 2204.02311, section 5).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from gptjax.errors import BadInput, check_types

if TYPE_CHECKING:  # a list of experiments needs no jax
    import jax


class LossSums(NamedTuple):
    """Sums over the predicted tokens of a batch; float32 scalars.

    `total` is what is differentiated: nats plus auxiliary terms. `routing`: of a model with
    experts the sums of what its routers tell (`models.experts.Routing`), times the tokens.
    """

    total: "jax.Array"
    nats: "jax.Array"
    correct: "jax.Array"
    tokens: "jax.Array"
    routing: Any = None


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy on `targets`, over chunks of tokens so that logits never exist whole."""

    z_loss: float = 0.0
    chunk_tokens: int = 0  # tokens whose logits exist at once on a device; 0: 128 MB of logits

    def validate(self) -> None:
        check_types("objective", self)
        for name in ("z_loss", "chunk_tokens"):
            if getattr(self, name) < 0:
                raise BadInput(f"objective.{name} is {getattr(self, name)}; give 0 or more")

    def sums(self, apply, batch) -> LossSums:
        """`apply(tokens_BT, positions_BT=, segments_BT=)` gives a model's `Output`.

        A batch holds `tokens` and `targets` [B, T], and where the data gives them `positions`,
        `segments` and float `weights` [B, T].
        """
        from gptjax.ops.vocab_loss import vocab_loss

        out = apply(
            batch["tokens"],
            positions_BT=batch.get("positions"),
            segments_BT=batch.get("segments"),
        )
        total, stats = vocab_loss(
            out.hidden_BTD,
            out.head_VD,
            batch["targets"],
            batch.get("weights"),
            head_bias_V=out.head_bias_V,
            z_loss=self.z_loss,
            chunk_tokens=self.chunk_tokens or None,
        )
        sums = LossSums(total, stats.cross_entropy, stats.correct, stats.weight_sum)
        return with_routing(sums, out)


def with_routing(sums: LossSums, out) -> LossSums:
    """The sums of a batch with what the routers of a model's `Output` add to every token."""
    if out.routing is None:
        return sums
    routing = type(out.routing)(*(sums.tokens * one for one in out.routing))
    return sums._replace(total=sums.total + sums.tokens * out.auxiliary, routing=routing)
