"""The ledger: parameters and FLOPs counted from the config, never assumed.

A FLOP is one multiplication or addition inside a matrix product; norms, softmax and other
elementwise work are not counted (they are a few percent of the time and none of the convention).
Model FLOPs count the query-key pairs of the attention pattern and three times the forward pass
for training; executed FLOPs count what the chosen kernel and rematerialisation really multiply.
The rule of thumb 6 N per token (arXiv 2001.08361) is kept beside it, to be compared.

What passes a model is a row: the tokens that it predicts from, those that an encoder reads before
a decoder, and the places whose output meets the vocabulary. All of these are counted as they are
multiplied, those that only fill a row up among them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from gptjax.models.config import TransformerConfig
from gptjax.ops.patterns import Pattern


@dataclass(frozen=True)
class Parameters:
    """Parameter counts by group."""

    embedding: int  # the token table, and the head when it is tied
    positions: int
    attention: int
    mlp: int
    norms: int
    # 0 when tied; an encoder's transform, pooler and classes are part of it, and the products
    # between a trunk, the modules of its tasks and their head
    head: int
    cross: int = 0  # a decoder's attention to an encoder, with its norms
    resting: int = 0  # of the mlp group: those of experts that a token does not go to

    @property
    def total(self) -> int:
        return self.embedding + self.positions + self.non_embedding + self.head

    @property
    def non_embedding(self) -> int:
        """Without token table, position table and head: Kaplan's N (arXiv 2001.08361)."""
        return self.attention + self.mlp + self.norms + self.cross

    @property
    def active(self) -> int:
        """Parameters that take part in one token: all, in a dense model."""
        return self.total - self.resting

    def groups(self) -> dict[str, int]:
        names = (name for name in self.__dataclass_fields__ if name != "resting")
        return {name: getattr(self, name) for name in names}


def expert_layers(c: TransformerConfig) -> int:
    """How many layers have experts."""
    return sum(c.layer_kind(i).experts for i in range(c.num_layers))


def count_parameters(c: TransformerConfig) -> Parameters:
    """Every parameter of the model, by group."""
    E = c.embedding_size
    embedding = c.vocab_size * E + (2 * E * c.d_model if c.embedding.size else 0)
    head = (0 if c.tied_embeddings else c.outputs * E) + c.embedding.head_bias * c.outputs
    parts = [_stack(one) for one in _stacks(c)]
    groups = {name: sum(one[name] for one in parts) for name in parts[0]}
    D, norm = c.d_model, c.d_model * (2 if c.norm_biases else 1)
    if c.kind == "encoder":
        head += (c.head == "transform") * (D * D + D + norm) + (c.pooler == "first") * (D * D + D)
        head += (c.classes + c.token_classes) * (D + 1)
    elif c.kind == "task_modules":
        W = c.task_size
        head += 4 * D * W + 2 * (D + W)
        head += (c.pooler == "first") * (W * W + W) + c.classes * (W + 1)
    elif c.kind == "encoder_decoder":
        one = c.decoder
        groups["cross"] = one.num_layers * (_attention(one) + norm)
    return Parameters(embedding=embedding, head=head, **groups)


def _stacks(c: TransformerConfig) -> list[TransformerConfig]:
    """The stacks of layers of a model as configs."""
    if c.kind == "encoder_decoder":
        return [c.encoder, c.decoder]
    if c.kind == "task_modules":
        return [c.writer, c.understanding, c.generation]
    return [c]


def _attention(c: TransformerConfig) -> int:
    """Parameters of the products of an attention layer."""
    rows = (c.num_heads + c.kv_heads) * c.qk_size + c.kv_heads * c.head_size
    products = c.d_model * (rows + c.num_heads * c.head_size)
    return products + c.attention_biases * rows + c.output_biases * c.d_model


def _stack(c: TransformerConfig) -> dict[str, int]:
    """Those of a stack of layers and of what stands below it, but the table of tokens."""
    D, H, F, N = c.d_model, c.num_heads, c.ff_size, c.num_layers
    attention = _attention(c)
    tables = 2 if c.positions == "learned_blocks" else 1
    positions = tables * sum(c.position_axes) * D + (c.embedding.types + c.embedding.tasks) * D
    if c.kind == "two_stream":  # what queries begin with; types have keys in place of vectors
        positions += D * (1 - c.embedding.types)
        attention += 3 * H * c.qk_size * (c.embedding.types > 0)
    if c.positions == "relative":
        attention += (D + 2) * H * c.qk_size
    elif c.positions == "relative_bias":
        tables = N if c.attention.bias_tables == "layer" else 1
        positions += tables * c.attention.buckets * H
    if c.attention.top_query != "none":
        positions += c.context_length * D
    mlp = (3 if c.gated else 2) * D * F
    if c.mlp_biases:
        mlp += (2 if c.gated else 1) * F + D
    count, routed = c.experts.count, expert_layers(c)
    norm = D * (2 if c.norm_biases else 1)
    norms = N * (1 if c.block == "parallel" else 2) + c.embedding.norm
    norms += c.block not in ("post", "deep")
    return {
        "positions": positions,
        "attention": N * attention,
        "mlp": (N - routed) * mlp + routed * count * (mlp + D),
        "norms": norms * norm,
        "resting": routed * (count - c.experts.top_k) * mlp,
    }


@dataclass(frozen=True)
class Flops:
    """FLOPs of a token, or of whatever else they were counted for: forward by part, and training.

    Of an encoder-decoder the first three are the decoder's, of a trunk with modules of tasks those
    of what is written.
    """

    projections: float  # queries, keys, values, output
    attention: float  # scores and weighted values, over the pairs that the pattern visits
    mlp: float  # of experts those that a token goes to, and the router
    head: float  # and the maps between the widths of token vectors, model and modules of tasks
    cross: float = 0.0  # a decoder's attention to an encoder
    encoder: float = 0.0  # all layers over a source: an encoder's, or of a trunk and its module

    @property
    def forward(self) -> float:
        return sum(getattr(self, name) for name in self.__dataclass_fields__)

    @property
    def training(self) -> float:
        """Forward once and backward twice (a product has two operands to differentiate)."""
        return 3 * self.forward

    def __truediv__(self, count: float) -> "Flops":
        """FLOPs of one of so many."""
        parts = {name: getattr(self, name) / count for name in self.__dataclass_fields__}
        return Flops(**parts)


def count_flops(c: TransformerConfig, length: int, pairs: float | None = None) -> Flops:
    """FLOPs per token of rows of `length`; `pairs` defaults to those the pattern visits."""
    return row_flops(c, length, length, pairs=pairs) / length


def row_flops(
    c: TransformerConfig,
    tokens: int,
    predicted: int,
    source: int = 0,
    ahead: float = 0.0,
    pairs: float | None = None,
) -> Flops:
    """FLOPs of a row: of `tokens`, and of a `source` that is read apart.

    predicted: places whose output meets the vocabulary; ahead: pairs of a query and a later key
    that a prefix adds to those of the pattern; pairs: in place of those of the pattern.
    """
    E, D, P = c.embedding_size, c.d_model, predicted
    head = 2 * P * E * c.outputs
    if c.embedding.size:
        head += 2 * D * E * (tokens + source + P)
    if c.kind == "encoder":
        head += 2 * D * (P * D * (c.head == "transform") + D * (c.pooler == "first"))
        head += 2 * D * (c.classes + tokens * c.token_classes)
    if c.kind == "task_modules":
        made = _of_tasks(c, tokens, source, P, pairs)
        return replace(made, head=made.head + head)
    if c.kind != "encoder_decoder":
        stack = _stack_flops(c, tokens, ahead, pairs)
        if c.kind == "two_stream":
            stack = tuple(map(sum, zip(stack, _query_flops(c, tokens, P), strict=True)))
        return Flops(*stack, head)
    side = c.decoder
    H, G, K = side.num_heads, side.kv_heads, side.head_size
    cross = tokens * D * H * (side.qk_size + K) + source * D * G * (side.qk_size + K)
    cross += tokens * source * H * (side.qk_size + K)
    return Flops(
        *_stack_flops(side, tokens, ahead, pairs),
        head,
        2 * side.num_layers * cross,
        sum(_stack_flops(c.encoder, source)),
    )


def _of_tasks(
    c: TransformerConfig, tokens: int, source: int, predicted: int, pairs: float | None
) -> Flops:
    """Those of a trunk and the modules of its tasks, without the vocabulary's."""
    D, W = c.d_model, c.task_size
    written, read = (0.0, 0.0, 0.0), 0.0
    if tokens:
        stacks = [_stack_flops(one, tokens, pairs=pairs) for one in (c.writer, c.generation)]
        written = tuple(map(sum, zip(*stacks, strict=True)))
    if source:
        read = sum(sum(_stack_flops(one, source)) for one in (c.reader, c.understanding))
    between = 2 * D * W * (tokens + source + predicted)
    rows = 2 * W * (W * (c.pooler == "first") + c.classes) * (source > 0)
    return Flops(*written, between + rows, encoder=read)


def _query_flops(c: TransformerConfig, tokens: int, queries: int) -> tuple[float, float, float]:
    """Those of queries beside the content of a row, as `_stack_flops`."""
    D, H, K, N = c.d_model, c.num_heads, c.head_size, c.num_layers
    projections, scores = D * H * (c.qk_size + K), 2 * c.qk_size + K
    mlp = (3 if c.gated else 2) * D * c.ff_size
    pairs = queries * tokens
    return 2 * N * projections * queries, 2 * N * H * scores * pairs, 2 * N * mlp * queries


def _stack_flops(
    c: TransformerConfig, tokens: int, ahead: float = 0.0, pairs: float | None = None
) -> tuple[float, float, float]:
    """Those of projections, attention and feed-forward layers of a row."""
    D, H, G, K, F, N = c.d_model, c.num_heads, c.kv_heads, c.head_size, c.ff_size, c.num_layers
    if pairs is None:
        pairs = c.attention_pairs(tokens) + ahead
    projections, scores = D * (H + G) * (c.qk_size + K), c.qk_size + K
    if c.positions == "relative":
        # Not the keys of the distances: all sequences of a batch share them.
        projections += D * G * (c.qk_size + K) * (c.attention.memory > 0)
        scores += c.qk_size  # queries times those keys
    mlp, routed = (3 if c.gated else 2) * D * F, expert_layers(c)
    through = (N - routed) * mlp + routed * (c.experts.top_k * mlp + D * c.experts.count)
    return 2 * N * projections * tokens, 2 * N * H * scores * pairs, 2 * through * tokens


def executed_training_flops(
    c: TransformerConfig, length: int, choose: Callable[[Pattern], str]
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


def _not_recomputed(c: TransformerConfig) -> float:
    """The products that only make a block's output: no gradient inside the block needs them.

    What experts make is needed: the gradient of their weights is its product with the output's.
    """
    output, down = c.num_heads * c.head_size * c.d_model, c.ff_size * c.d_model
    dense = c.num_layers - expert_layers(c)
    parallel = c.num_layers * output + dense * down
    last = {"pre": dense * down, "post": 0, "deep": 0}.get(c.block, parallel)
    return 2 * last
