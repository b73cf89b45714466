"""Eight simulated devices in every process, strict ranks; compiled things are shared by session."""

import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # compilation is most of the time

# Runs that follow each other compile the same programs: the first keeps them for the others.
_compiled = tempfile.TemporaryDirectory(prefix="gptjax-tests-")
jax.config.update("jax_compilation_cache_dir", _compiled.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

import dataclasses

import numpy as np
import pytest

from gptjax import DataConfig, DecoderConfig, Experiment, MeshConfig, OptimConfig, TrainConfig


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> str:
    """One cache of prepared corpora for all tests, never the user's."""
    path = str(tmp_path_factory.mktemp("cache"))
    os.environ["GPTJAX_CACHE"] = path
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> str:
    """A glob of small text files with learnable structure."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    words = ["def", "return", "import", "self", "for", "in", "if", "else", "None", "x", "y"]
    for i in range(67):
        lines = [" ".join(rng.choice(words, 7)) for _ in range(41)]
        (folder / f"{i}.txt").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / "*.txt")


@pytest.fixture(scope="session")
def tiny(corpus, cache_dir) -> Experiment:
    """A run of seconds: 23 steps of two layers on the small corpus, one device."""
    return Experiment(
        name="tiny",
        model=DecoderConfig(
            vocab_size=257,
            context_length=32,
            num_layers=2,
            d_model=16,
            num_heads=4,
            positions="rotary",
        ),
        data=DataConfig(
            corpus="files",
            files=(corpus,),
            batch_size=8,
            sequence_length=32,
            validation_fraction=0.1,
            cache_dir=cache_dir,
        ),
        train=TrainConfig(
            steps=23, eval_every=10, eval_batches=2, checkpoint_every=5, sample_tokens=8
        ),
        optim=OptimConfig(lr=1e-2),
        mesh=MeshConfig(data=1),
    )


def changed(experiment: Experiment, **parts: dict) -> Experiment:
    """The experiment with fields of its parts replaced: `changed(e, model={"d_model": 8})`."""
    return dataclasses.replace(
        experiment,
        **{
            name: dataclasses.replace(getattr(experiment, name), **fields)
            for name, fields in parts.items()
        },
    )
