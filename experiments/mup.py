"""muP against the standard parametrization: does the best learning rate stay as the width grows?"""

from gptjax import (
    Analysis,
    DataConfig,
    DecoderConfig,
    Experiment,
    OptimConfig,
    Sweep,
    TrainConfig,
    register,
)
from gptjax.sweeps.grid import rows, values


@register
def sweep_lr_width() -> Sweep:
    """Learning rates by width under both parametrizations (arXiv 2203.03466).

    Two layers of widths 64, 128, 256 and 512 with heads of 32, 100 steps of 512 bytes at a
    constant rate from 2^-11 to 2^-5. The rates of a width share one program and train as a
    population. The best standard rate falls by about two powers of two from width 64 to 512, that
    of muP stays within one: benchmarks/RESULTS.md has the losses at the two ends.

    python experiments/run.py --exp=sweep_lr_width
    """
    base = Experiment(
        name="lr_width",
        model=DecoderConfig(
            vocab_size=257,
            context_length=64,
            num_layers=2,
            d_model=64,
            num_heads=2,
            positions="rotary",
            norm="rmsnorm",
            biases="none",
            tied_embeddings=False,
            init="fan_in_zero",
            base_width=64,
        ),
        data=DataConfig(corpus="pycode", batch_size=8, sequence_length=64),
        optim=OptimConfig(weight_decay=0.0, schedule="constant"),
        train=TrainConfig(steps=100, eval_every=100, eval_batches=64, sample_tokens=0),
    )
    widths = rows(*({"model.d_model": w, "model.num_heads": w // 32} for w in (64, 128, 256, 512)))
    kinds = values("model.parametrization", "standard", "mup")
    rates = values("optim.lr", *(2.0**power for power in range(-11, -4)))
    named = rows(
        *(
            {
                "name": f"{row['model.parametrization']}_d{row['model.d_model']}_"
                f"lr{row['optim.lr']:.2g}",
                "group": row["model.parametrization"],
                **row,
            }
            for row in kinds * widths * rates
        )
    )
    return Sweep("sweep_lr_width", base, named, Analysis(laws=()), together=7)
