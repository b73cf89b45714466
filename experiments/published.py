"""What runs of published systems share: the corpus that stands in, the layout, the length.

Their corpora are not at hand: all read Python sources, with a BPE of up to 50257 ids trained on
them; a larger table keeps its published size, and its other rows rest. `--data.corpus=files` or
`tfds:NAME` puts another corpus in. Rates, batches and token budgets are the published ones as far
as `OptimConfig` and `DataConfig` can say them: a batch that grows is given its last or main size.
"""

import dataclasses

from gptjax import (
    DataConfig,
    Experiment,
    MeshConfig,
    NextToken,
    OptimConfig,
    TrainConfig,
)
from gptjax.data.vocabulary import AS_SEPARATOR
from gptjax.models.config import TransformerConfig
from gptjax.objectives import Objective
from gptjax.scaling.flops import count_parameters

STATE = 32e9  # bytes of parameters, gradients and moments that a device may hold
KEPT = 12e9  # bytes that a device may keep for the backward pass
NODE = 8  # devices that are near enough to each other to split a product


def published(
    model: TransformerConfig,
    *,
    lr: float,
    batch_size: int,
    tokens: float = 0,
    steps: int = 0,
    sequence_length: int = 0,
    warmup_tokens: float = 0,
    warmup_steps: int = 0,
    data: DataConfig | None = None,
    z_loss: float = 0.0,
    objective: Objective | None = None,
    **optim,
) -> Experiment:
    """A run in bfloat16, layers scanned and recomputed, on a mesh that holds it.

    batch_size: sequences; sequence_length: the model's context unless given. The mesh splits the
    state until a device holds at most 32 GB of it, and microbatches keep at most about 12 GB
    beside. The warm-up is of so many steps or tokens of the whole run. The objective is to predict
    the next token unless given; its special tokens stand behind those of the text. `optim`: further
    fields of OptimConfig.
    """
    length = sequence_length or model.context_length
    model = dataclasses.replace(model, remat="block", compute_dtype="bfloat16")
    if model.kind != "two_stream":  # whose layers are not scanned
        model = dataclasses.replace(model, layers="scan")
    mesh = _mesh(model)
    # A share of the steps, so that a run cut short has its schedule cut short too.
    every = steps or -(-int(tokens) // (batch_size * length))
    rising = warmup_steps or round(warmup_tokens / (batch_size * length))
    if rising:
        optim["warmup_fraction"] = (max(rising, 1) - 0.5) / every
    objective = dataclasses.replace(objective or NextToken(), z_loss=z_loss)
    extra = len({*objective.roles(length)} - {*AS_SEPARATOR})
    vocab_size = min(model.outputs - extra, 50257)
    data = data or DataConfig(tokenizer="bpe", vocab_size=vocab_size)
    return Experiment(
        name="published",  # the registry puts the registered name here
        model=model,
        data=dataclasses.replace(data, batch_size=batch_size, sequence_length=length),
        optim=OptimConfig(
            lr=lr, accumulation=_accumulation(model, mesh, batch_size, length), **optim
        ),
        objective=objective,
        train=TrainConfig(tokens=int(tokens), steps=steps),
        mesh=mesh,
    )


def _mesh(model: TransformerConfig) -> MeshConfig:
    ways, state = 1, 16 * count_parameters(model).total
    while state / ways > STATE:
        ways *= 2
    if ways <= NODE:
        return MeshConfig(fsdp=ways)
    splits = (model.num_heads, model.ff_size, *(n for n in (model.kv_heads,) if n > 1))
    tensor = next(n for n in (NODE, 4, 2, 1) if not any(size % n for size in splits))
    return MeshConfig(fsdp=ways // tensor, tensor=tensor)


def _accumulation(model: TransformerConfig, mesh: MeshConfig, batch_size: int, length: int) -> int:
    """The fewest microbatches whose activations a device can keep: one array for each layer."""
    layers = model.num_layers
    if model.kind == "encoder_decoder":
        layers += model.decoder.num_layers
    rows = max(int(KEPT // (2 * length * model.d_model * layers)), 1)
    return next(
        n
        for n in range(1, batch_size + 1)
        if batch_size % (n * mesh.fsdp) == 0 and batch_size // (n * mesh.fsdp) <= rows
    )
