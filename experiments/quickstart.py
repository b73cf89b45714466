"""The first run of a new user: real text, a real loss, a few minutes on two cores."""

from gptjax import DataConfig, DecoderConfig, Experiment, OptimConfig, TrainConfig, register


@register
def quickstart() -> Experiment:
    """A byte-level GPT on the Python sources of this machine, in minutes on a laptop.

    python experiments/run.py --exp=quickstart
    """
    return Experiment(
        name="quickstart",
        model=DecoderConfig(
            vocab_size=257,
            context_length=256,
            num_layers=4,
            d_model=128,
            num_heads=2,
            positions="rotary",
            norm="rmsnorm",
            activation="gelu_tanh",
            biases="none",
            tied_embeddings=False,
            init="fan_in",
        ),
        data=DataConfig(corpus="pycode", tokenizer="bytes", batch_size=8, sequence_length=256),
        optim=OptimConfig(name="muon", lr=0.01, schedule="linear", final_lr=0.0, weight_decay=0.25),
        train=TrainConfig(tokens=2_300_000, eval_every=281, eval_batches=64),
    )
