"""The ledger: parameters and FLOPs counted from the config, never assumed.

A FLOP is one multiplication or addition inside a matrix product; norms, softmax and other
elementwise work are not counted (they are a few percent of the time and none of the convention).
Model FLOPs count the query-key pairs of the attention pattern and three times the forward pass
for training; executed FLOPs count what the chosen kernel and rematerialisation really multiply.
The rule of thumb 6 N per token (arXiv 2001.08361) is kept beside it, to be compared.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from gptjax.models.config import DecoderConfig
from gptjax.ops.patterns import Pattern


@dataclass(frozen=True)
class Parameters:
    """Parameter counts by group."""

    embedding: int  # the token table, and the head when it is tied
    positions: int
    attention: int
    mlp: int
    norms: int
    head: int  # 0 when tied
    resting: int = 0  # of the mlp group: those of experts that a token does not go to

    @property
    def total(self) -> int:
        return self.embedding + self.positions + self.non_embedding + self.head

    @property
    def non_embedding(self) -> int:
        """Without token table, position table and head: Kaplan's N (arXiv 2001.08361)."""
        return self.attention + self.mlp + self.norms

    @property
    def active(self) -> int:
        """Parameters that take part in one token: all, in a dense model."""
        return self.total - self.resting

    def groups(self) -> dict[str, int]:
        names = (name for name in self.__dataclass_fields__ if name != "resting")
        return {name: getattr(self, name) for name in names}


def expert_layers(c: DecoderConfig) -> int:
    """How many layers have experts."""
    return sum(c.layer_kind(i).experts for i in range(c.num_layers))


def count_parameters(c: DecoderConfig) -> Parameters:
    """Every parameter of the decoder, by group."""
    D, H, G, K, F, N = c.d_model, c.num_heads, c.kv_heads, c.head_size, c.ff_size, c.num_layers
    rows = (H + G) * c.qk_size + G * K
    attention = D * rows + H * K * D
    attention += c.attention_biases * rows + c.output_biases * D
    positions = sum(c.position_axes) * D
    if c.positions == "relative":
        attention += (D + 2) * H * c.qk_size
    elif c.positions == "relative_bias":
        positions = c.attention.buckets * H
    if c.attention.top_query != "none":
        positions += c.context_length * D
    mlp = (3 if c.gated else 2) * D * F
    if c.mlp_biases:
        mlp += (2 if c.gated else 1) * F + D
    count, routed = c.experts.count, expert_layers(c)
    norm = D * (2 if c.norm_biases else 1)
    norms = N * (1 if c.block == "parallel" else 2) + (c.block != "post") + c.embedding.norm
    E = c.embedding_size
    return Parameters(
        embedding=c.vocab_size * E + (2 * E * D if c.embedding.size else 0),
        positions=positions,
        attention=N * attention,
        mlp=(N - routed) * mlp + routed * count * (mlp + D),
        norms=norms * norm,
        head=(0 if c.tied_embeddings else c.outputs * E) + c.embedding.head_bias * c.outputs,
        resting=routed * (count - c.experts.top_k) * mlp,
    )


@dataclass(frozen=True)
class Flops:
    """FLOPs per token at one sequence length: forward by part, and of training."""

    projections: float  # queries, keys, values, output
    attention: float  # scores and weighted values, over the pairs that the pattern visits
    mlp: float  # of experts those that a token goes to, and the router
    head: float  # and the maps between the token vectors' width and the model's

    @property
    def forward(self) -> float:
        return self.projections + self.attention + self.mlp + self.head

    @property
    def training(self) -> float:
        """Forward once and backward twice (a product has two operands to differentiate)."""
        return 3 * self.forward


def count_flops(c: DecoderConfig, length: int, pairs: float | None = None) -> Flops:
    """FLOPs per token of sequences of `length`; `pairs` defaults to those the pattern visits."""
    D, H, G, K, F, N = c.d_model, c.num_heads, c.kv_heads, c.head_size, c.ff_size, c.num_layers
    if pairs is None:
        pairs = c.attention_pairs(length)
    projections, scores = D * (H + G) * (c.qk_size + K), c.qk_size + K
    if c.positions == "relative":
        # Not the keys of the distances: all sequences of a batch share them.
        projections += D * G * (c.qk_size + K) * (c.attention.memory > 0)
        scores += c.qk_size  # queries times those keys
    mlp, routed = (3 if c.gated else 2) * D * F, expert_layers(c)
    through = (N - routed) * mlp + routed * (c.experts.top_k * mlp + D * c.experts.count)
    E = c.embedding_size
    return Flops(
        projections=2 * N * projections,
        attention=2 * N * H * scores * pairs / length,
        mlp=2 * through,
        head=2 * E * c.outputs + (4 * D * E if c.embedding.size else 0),
    )


def executed_training_flops(
    c: DecoderConfig, length: int, choose: Callable[[Pattern], str]
) -> float:
    """FLOPs per token that a training step multiplies, recomputation counted.

    choose: the kernel that computes a pattern. A fused attention kernel keeps no scores: its
    backward makes them again (more products over its pairs than the dense one's four). Experts of
    a capacity compute all their places, also those that no token takes.
    """
    from gptjax.ops.kernels import kernel_pairs, kernel_products, score_products

    pairs = again = 0.0  # again: what is multiplied beside the dense backward, in operations
    for layer in range(c.num_layers):
        members = c.layer_kind(layer).pattern.members
        for member in members:
            kernel = choose(member)
            share = kernel_pairs(member, length, kernel) / len(members)
            pairs += share / c.num_layers
            scores = score_products(kernel)
            values = kernel_products(kernel)[1] - scores
            again += 2 * share * ((scores - 2) * c.qk_size + (values - 2) * c.head_size)
    f = count_flops(c, length, pairs)
    slots = c.experts.slots(length)
    if slots:
        more = c.experts.count * slots / length - c.experts.top_k
        width = (3 if c.gated else 2) * c.d_model * c.ff_size
        f = replace(f, mlp=f.mlp + 2 * expert_layers(c) * more * width)
    total = f.training + c.num_heads * again / length
    if c.remat == "block":
        total += f.projections + f.attention + f.mlp - _not_recomputed(c)
    elif c.remat == "products":
        total += f.attention
    return total


def _not_recomputed(c: DecoderConfig) -> float:
    """The products that only make a block's output: no gradient inside the block needs them.

    What experts make is needed: the gradient of their weights is its product with the output's.
    """
    output, down = c.num_heads * c.head_size * c.d_model, c.ff_size * c.d_model
    dense = c.num_layers - expert_layers(c)
    last = {"pre": dense * down, "post": 0}.get(c.block, c.num_layers * output + dense * down)
    return 2 * last
