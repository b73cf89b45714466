"""The population loss against the entropy, against samples, and on a mesh."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import DataConfig, DecoderConfig, Experiment, MeshConfig, OptimConfig, TrainConfig
from gptjax.data import prepare
from gptjax.data.zipf import ZipfFacts, entropy, probabilities, sequences, value_table
from gptjax.errors import BadInput
from gptjax.evaluation.population_loss import (
    exact_figures,
    make_population_loss,
    population_loss,
)
from gptjax.models.decoder import Decoder
from gptjax.models.stack import Output
from gptjax.parallel import make_mesh
from gptjax.training.loop import to_mesh
from gptjax.training.optimizer import make_optimizer
from gptjax.training.state import init_state
from gptjax.training.step import make_eval_step, make_train_step

FACTS = ZipfFacts(alpha=0.5, keys=101, values=5, noise=0.1, count=40_000)


def uniform(variables, tokens_BT):
    vocab = variables["params"]
    return Output(jnp.zeros((*tokens_BT.shape, 1)), jnp.zeros((vocab.shape[0], 1)))


@pytest.mark.parametrize("variant", ["plain", "gap", "split"])
def test_a_uniform_guess_costs_log_vocabulary(variant):
    facts = ZipfFacts(keys=31, values=3, variant=variant, gap=2)
    loss = population_loss(uniform, jnp.zeros(facts.vocab_size), facts, chunk=97)
    assert loss.by_position == pytest.approx([math.log(facts.vocab_size)] * facts.length, rel=1e-6)
    assert loss.per_token == pytest.approx(math.log(facts.vocab_size))


def test_a_model_that_knows_everything_pays_the_entropy():
    """Its logits are the law's own log probabilities, looked up by what stands before."""
    n, V = FACTS.digits, FACTS.vocab_size
    joint = np.zeros(n * n)
    joint[: FACTS.keys] = probabilities(FACTS)
    joint = joint.reshape(n, n)
    first = joint.sum(1)
    likely, other = FACTS.value_probabilities
    value = np.full((n * n, FACTS.values), other)
    value[np.arange(FACTS.keys), value_table(FACTS)] = likely
    params = {
        "first": np.pad(first, (0, V - n)),
        "second": np.pad(joint / np.maximum(first, 1e-30)[:, None], ((0, 0), (0, V - n))),
        "value": np.pad(value, ((0, 0), (n, 1))),
        "end": np.eye(V)[FACTS.separator],
    }
    params = {name: jnp.log(jnp.maximum(p, 1e-30)) for name, p in params.items()}

    def knowing(variables, tokens_BT):
        p = variables["params"]
        d1, d2 = tokens_BT[:, 1], tokens_BT[:, 2]
        rows = (len(d1), V)
        scores = [
            jnp.broadcast_to(p["first"][None], rows),
            p["second"][d1],
            p["value"][d1 * n + d2],
            jnp.broadcast_to(p["end"][None], rows),
        ]
        return Output(jnp.stack(scores, axis=1), jnp.eye(V))

    loss = population_loss(knowing, params, FACTS)
    assert loss.by_position == pytest.approx(entropy(FACTS).by_position, abs=1e-6)


@pytest.fixture(scope="module")
def trained(cache_dir):
    """A tiny model after a few steps on the facts, with what it was trained by."""
    experiment = Experiment(
        name="facts",
        model=DecoderConfig(
            vocab_size=FACTS.vocab_size, context_length=32, num_layers=1, d_model=16, num_heads=2
        ),
        data=DataConfig(
            corpus="zipf_facts",
            facts=FACTS,
            tokenizer="symbols",
            batch_size=32,
            sequence_length=32,
            document_attention="within",
            positions="document",
            validation_fraction=0.5,
            epochs=1,
            cache_dir=cache_dir,
        ),
        train=TrainConfig(steps=60),
        optim=OptimConfig(lr=1e-2),
        mesh=MeshConfig(data=1),
    )
    experiment.validate()
    dataset, mesh = prepare(experiment.data), make_mesh(experiment.mesh)
    state = init_state(experiment.model, make_optimizer(experiment.optim, 60), 0, mesh)
    step = make_train_step(experiment)
    with jax.set_mesh(mesh):
        for batch, _ in zip(dataset.train_iterator(), range(60), strict=False):
            state, _ = step(state, to_mesh(batch, mesh))
    return experiment, dataset, mesh, state.params


def test_population_loss_is_what_samples_tend_to(trained):
    experiment, dataset, mesh, params = trained
    evaluate = make_eval_step(experiment)
    with jax.set_mesh(mesh):
        exact = population_loss(Decoder(experiment.model).apply, params, FACTS, mesh=mesh)
        sums = [
            jax.device_get(evaluate(params, to_mesh(batch, mesh)))
            for batch in dataset.validation_batches(10_000)
        ]
    losses = np.array([s.nats / s.tokens for s in sums])
    error = losses.std(ddof=1) / math.sqrt(len(losses))
    assert len(losses) > 50 and error < 0.02
    assert abs(losses.mean() - exact.per_token) < 4 * error
    least = entropy(FACTS)
    assert least.per_token + 0.02 < exact.per_token < dataset.unigram_entropy
    assert (exact.by_position > least.by_position - 1e-6).all()


def test_chunks_and_meshes_change_nothing(trained):
    experiment, _, mesh, params = trained
    apply = Decoder(experiment.model).apply
    with jax.set_mesh(mesh):
        one = population_loss(apply, params, FACTS, mesh=mesh, chunk=FACTS.sequences)
        many = population_loss(apply, params, FACTS, mesh=mesh, chunk=64)
    assert many.by_position == pytest.approx(one.by_position, rel=1e-6)
    wide = make_mesh(MeshConfig(data=2, tensor=2))
    like = init_state(experiment.model, make_optimizer(experiment.optim, 60), 0, wide).params
    moved = jax.tree.map(
        lambda leaf, there: jax.device_put(np.asarray(leaf), there.sharding), params, like
    )
    with jax.set_mesh(wide):
        split = population_loss(apply, moved, FACTS, mesh=wide, chunk=128)
    assert split.by_position == pytest.approx(one.by_position, rel=1e-5)


def test_figures_for_a_result(trained):
    experiment, _, mesh, params = trained
    apply = Decoder(experiment.model).apply
    figures = exact_figures(experiment.data, apply, params, mesh)
    assert figures["entropy"] == entropy(FACTS).per_token < figures["population_loss"]
    many = dataclasses.replace(FACTS, keys=1 << 20, values=1000)
    for other in (DataConfig(), dataclasses.replace(experiment.data, facts=many)):
        assert exact_figures(other, apply, params, mesh) == {}


def test_too_many_facts_are_refused():
    with pytest.raises(BadInput, match="too many to read each"):
        make_population_loss(uniform, ZipfFacts(keys=1 << 20, values=1000))


def test_every_sequence_is_read_once():
    rows = sum(len(ids) for ids, _ in sequences(FACTS, 97))
    assert rows == FACTS.sequences == 505
