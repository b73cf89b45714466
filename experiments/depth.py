"""One dial: the number of layers decides the whole run."""

import math

from gptjax import DataConfig, DecoderConfig, Experiment, OptimConfig, TrainConfig, register
from gptjax.scaling.flops import count_parameters


def dial(depth: int) -> Experiment:
    """The run of a decoder with `depth` layers, everything else derived from it.

    - Width is 64 per layer. Kaplan et al. (arXiv 2001.08361, figure 5) find the loss flat within a
      few percent over width / depth from 30 to 150, and 64 is where GPT-2 small stands (768 / 12).
    - Heads are 64 wide, as in all of GPT-2: one head per layer of depth.
    - The block is that of LLaMA (arXiv 2302.13971): RMSNorm before each branch, rotary positions,
      SwiGLU, no biases; weights start from N(0, 1 / fan_in), so that no width needs its own scale.
    - Tokens are 20 per parameter, the compute-optimal ratio of Chinchilla (arXiv 2203.15556),
      counted over the parameters inside the layers: at these sizes the byte tables are small.
    - A batch holds 2^13 tokens at depth 2 and grows with depth, about the cube root of the budget,
      to a power of two: critical batch sizes grow as the loss falls (arXiv 1812.06162).
    - The learning rate falls as 1 / width from 4e-3 at width 128: Adam's update of a weight moves
      a hidden unit in proportion to its fan-in (arXiv 2203.03466, table 3).
    - Scanned layers from depth 8 on: there the compile time counts for more than the step's.
    """
    width = 64 * depth
    model = DecoderConfig(
        vocab_size=257,
        context_length=512,
        num_layers=depth,
        d_model=width,
        num_heads=depth,
        positions="rotary",
        norm="rmsnorm",
        activation="swiglu",
        biases="none",
        tied_embeddings=False,
        init="fan_in",
        layers="scan" if depth >= 8 else "unrolled",
    )
    tokens = 20 * count_parameters(model).non_embedding
    sequences = 2 ** round(math.log2(16 * (depth / 2)))
    return Experiment(
        name=f"depth_{depth}",
        model=model,
        data=DataConfig(batch_size=sequences, sequence_length=512),
        optim=OptimConfig(lr=4e-3 * 128 / width),
        train=TrainConfig(tokens=tokens),
    )


@register
def depth_2() -> Experiment:
    """The dial at 2 layers: 0.5M parameters, minutes on a laptop.

    python experiments/run.py --exp=depth_2
    """
    return dial(2)


@register
def depth_4() -> Experiment:
    """The dial at 4 layers: 3M parameters, hours on a laptop, minutes on an accelerator.

    python experiments/run.py --exp=depth_4
    """
    return dial(4)


@register
def depth_8() -> Experiment:
    """The dial at 8 layers: 25M parameters, for one accelerator.

    python experiments/run.py --exp=depth_8 --model.compute_dtype=bfloat16
    """
    return dial(8)


@register
def depth_12() -> Experiment:
    """The dial at 12 layers, the shape of GPT-2 small: 85M parameters, for one accelerator.

    python experiments/run.py --exp=depth_12 --model.compute_dtype=bfloat16
    """
    return dial(12)


@register
def depth_20() -> Experiment:
    """The dial at 20 layers: 0.4B parameters, for a node of accelerators.

    python experiments/run.py --exp=depth_20 --model.compute_dtype=bfloat16 --mesh.fsdp=8
    """
    return dial(20)
