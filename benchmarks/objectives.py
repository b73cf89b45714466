"""Times a training step of every kind of model against the decoder's, per FLOP of the ledger.

    python benchmarks/objectives.py [--width 128] [--layers 4] [--length 256] [--batch 8]

All have the same width, depth and length of rows, learned positions or those of their family, and
are stepped in turn in one process; a figure is the median over rounds of the ratio to the
decoder's time in the same round, beside the ratio of their FLOPs. `per FLOP` is the first over the
second: 1.00 is the decoder's speed, 1.10 a tenth slower. Results stand in RESULTS.md.
"""

import argparse
import os
import statistics
import time

from gptjax import (
    GLM,
    UL2,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    Experiment,
    MaskedLM,
    MeshConfig,
    MultiTask,
    NextToken,
    OptimConfig,
    PermutationLM,
    PrefixLM,
    SpanCorruption,
    TaskModulesConfig,
    TrainConfig,
    TwoStreamConfig,
    allocator,
)


def experiments(given) -> dict[str, Experiment]:
    """What is timed, by name; the decoder first."""
    from gptjax.models.config import AttentionConfig

    sizes = {
        "vocab_size": given.vocab,
        "context_length": given.length,
        "num_layers": given.layers,
        "d_model": given.width,
        "num_heads": max(given.width // 64, 1),
    }
    half = sizes | {"num_layers": max(given.layers // 2, 1)}
    t5 = EncoderDecoderConfig(
        **half, positions="relative_bias", attention=AttentionConfig(scale="one")
    )
    made = {
        "decoder, next token": (DecoderConfig(**sizes), NextToken()),
        "encoder, masked": (EncoderConfig(**sizes, head="plain"), MaskedLM()),
        "encoder-decoder, span corruption": (t5, SpanCorruption()),
        "encoder-decoder, prefix": (t5, PrefixLM()),
        "encoder-decoder, ul2": (t5, UL2()),
        "learned positions, span corruption": (EncoderDecoderConfig(**half), SpanCorruption()),
        "decoder, prefix": (DecoderConfig(**sizes), PrefixLM()),
        "decoder, glm": (DecoderConfig(**sizes, positions="learned_blocks"), GLM()),
        "task modules, multi task": (
            TaskModulesConfig(**half, positions="learned", task_layers=half["num_layers"]),
            MultiTask(),
        ),
        "two streams, permutation": (TwoStreamConfig(**sizes), PermutationLM()),
        "decoder, relative": (DecoderConfig(**sizes, positions="relative"), NextToken()),
        "decoder, relative bias": (DecoderConfig(**sizes, positions="relative_bias"), NextToken()),
    }
    return {
        name: Experiment(
            name="timed",
            model=model,
            objective=objective,
            data=DataConfig(batch_size=given.batch, sequence_length=given.length),
            optim=OptimConfig(lr=1e-3),
            train=TrainConfig(steps=1000),
        )
        for name, (model, objective) in made.items()
        if not given.only or any(part in name for part in given.only) or name.endswith("next token")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("width", 128), ("layers", 4), ("length", 256), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--vocab", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="of a side in a round")
    parser.add_argument("--only", nargs="*", default=[], help="parts of names")
    given = parser.parse_args()
    allocator.tune()
    import jax

    from gptjax.parallel import make_mesh
    from gptjax.training.example import example_batch
    from gptjax.training.loop import to_mesh
    from gptjax.training.optimizer import make_optimizer
    from gptjax.training.state import init_state
    from gptjax.training.step import make_train_step

    mesh = make_mesh(MeshConfig(data=1))
    sides, times = {}, {}
    for name, one in experiments(given).items():
        state = init_state(one.model, make_optimizer(one.optim, one.steps), 0, mesh)
        with jax.set_mesh(mesh):
            batch = to_mesh(example_batch(one), mesh)
        sides[name], times[name] = [one, make_train_step(one), batch, state], []
    with jax.set_mesh(mesh):
        for side in sides.values():
            for _ in range(2):
                side[3], metrics = side[1](side[3], side[2])
            jax.block_until_ready(metrics)
        for _ in range(given.rounds):
            for name, side in sides.items():
                begun = time.perf_counter()
                for _ in range(given.steps):
                    side[3], metrics = side[1](side[3], side[2])
                jax.block_until_ready(metrics)
                times[name].append((time.perf_counter() - begun) / given.steps)
    first = next(iter(sides))
    print(f"# {given.layers} layers x {given.width}, length {given.length}, batch {given.batch}")
    print(
        "| model, objective | ms a step | GFLOP/s | time / decoder | FLOPs / decoder | per FLOP |"
    )
    print("|---|---|---|---|---|---|")
    for name, (one, *_) in sides.items():
        flops = one.step_flops.training
        work = flops / sides[first][0].step_flops.training
        ratio = statistics.median(a / b for a, b in zip(times[name], times[first], strict=True))
        ms = 1000 * statistics.median(times[name])
        rate = flops / ms / 1e6
        print(f"| {name} | {ms:.0f} | {rate:.0f} | {ratio:.2f} | {work:.2f} | {ratio / work:.2f} |")
    print(f"# load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
