"""Every objective with every kind of model: what goes together trains, resumes and is counted."""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest

from gptjax import (
    GLM,
    UL2,
    DataConfig,
    DecoderConfig,
    Denoising,
    EncoderConfig,
    EncoderDecoderConfig,
    Experiment,
    MaskedLM,
    MeshConfig,
    MultiTask,
    OptimConfig,
    PrefixLM,
    SpanCorruption,
    TaskModulesConfig,
    TrainConfig,
    TwoStreamConfig,
)
from gptjax.data import prepare
from gptjax.errors import BadInput
from gptjax.models.build import init_params, model_of
from gptjax.models.config_parts import AttentionConfig, EmbeddingConfig
from gptjax.models.stack import logits
from gptjax.objectives import OBJECTIVES
from gptjax.objectives.base import INPUTS
from gptjax.parallel import make_mesh
from gptjax.training.example import example_batch
from gptjax.training.optimizer import make_optimizer
from gptjax.training.state import init_state
from gptjax.training.step import loss_sums, make_train_step

SMALL = {"vocab_size": 331, "context_length": 64, "num_layers": 2, "d_model": 16, "num_heads": 2}
T5 = {"positions": "relative_bias", "attention": AttentionConfig(scale="one"), "init": "t5"}
MODELS = {
    "decoder": DecoderConfig(**SMALL, positions="learned_blocks"),
    "encoder": EncoderConfig(
        **SMALL, pooler="first", classes=3, embedding=EmbeddingConfig(types=2, head_bias=True)
    ),
    "encoder_decoder": EncoderDecoderConfig(**SMALL, **T5),
    "two_stream": TwoStreamConfig(**SMALL),
    "task_modules": TaskModulesConfig(
        **SMALL,
        task_layers=1,
        pooler="first",
        classes=3,
        embedding=EmbeddingConfig(types=2),
    ),
}
OBJECTIVES_OF = {
    "glm": GLM(sentence_share=0.3, document_share=0.3),
    "masked_lm": MaskedLM(sentences="three_way", shuffle_rate=0.05, unit="word"),
    "denoising": Denoising(permuted_share=0.5),
    "multi_task": MultiTask(sentences="three_way", unit="word", masked_share=0.3),
}
CASES = [(kind, family) for kind, one in OBJECTIVES.items() for family in one.families]


def run_of(kind, family, **more):
    model, objective = MODELS[family], OBJECTIVES_OF.get(kind) or OBJECTIVES[kind]()
    if kind == "masked_lm" and "objective" not in more:
        more["objective"] = objective
    return Experiment(
        name=f"{kind}_{family}",
        model=model,
        objective=more.pop("objective", objective),
        data=DataConfig(corpus="shakespeare", batch_size=4, sequence_length=41, max_bytes=60_000),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(steps=8),
        **more,
    )


@functools.cache
def shakespeare():
    return prepare(run_of("next_token", "decoder").data)


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_a_pair_trains_on_real_text(kind, family):
    experiment = run_of(kind, family)
    experiment.validate()
    assert Experiment.from_json(json.loads(json.dumps(experiment.to_json()))) == experiment
    dataset = shakespeare()
    vocabulary = experiment.vocabulary(dataset.tokenizer)
    batch = next(dataset.train_iterator(rows=experiment.rows(vocabulary)))
    made_up = example_batch(experiment)
    assert {n: (x.shape, x.dtype) for n, x in batch.items()} == {
        n: (x.shape, x.dtype) for n, x in made_up.items()
    }
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    step = make_train_step(experiment)
    state = init_state(experiment.model, make_optimizer(experiment.optim, 8), 0, mesh)
    losses = []
    with jax.set_mesh(mesh):
        for _ in range(8):
            state, metrics = step(state, batch)
            losses.append(float(metrics.loss))
    assert np.isfinite(losses).all() and losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_the_loss_is_that_of_the_chosen_places(kind, family):
    """Against log probabilities of whole rows of logits."""
    experiment = run_of(kind, family)
    params = init_params(experiment.model, jax.random.key(2))
    batch = example_batch(experiment)
    sums = jax.jit(functools.partial(loss_sums, experiment.model, experiment.objective))(
        params, batch
    )
    given = {name: batch[key] for key, name in INPUTS.items() if key in batch and key != "at"}
    out = model_of(experiment.model).apply({"params": params}, batch.get("tokens"), **given)
    logprobs = np.asarray(jax.nn.log_softmax(logits(out)))
    hidden = 0
    if "at" in batch:  # of queries all T were asked for above
        at, hidden = batch["at"], batch["at"].shape[1]
        if kind == "multi_task":  # after all of the source stand the tokens
            rest = np.broadcast_to(41 + np.arange(41), (4, 41))
            at = np.concatenate([at, rest], 1)
        logprobs = np.take_along_axis(logprobs, at[:, :, None], 1)
    chosen = np.take_along_axis(logprobs, batch["targets"][:, :, None], 2)[..., 0]
    weights = batch.get("weights", np.ones_like(chosen))
    assert float(sums.tokens) == weights.sum() > 0
    assert float(sums.nats) == pytest.approx(-(chosen * weights).sum(), rel=1e-5)
    total = float(sums.nats)
    if kind == "multi_task":
        said = {"masked": np.s_[:, :hidden], "next": np.s_[:, hidden:]}
        told = []
        for name, part in said.items():
            nats, count = -(chosen * weights)[part].sum(), weights[part].sum()
            assert float(sums.parts[name].nats) == pytest.approx(nats, rel=1e-5)
            assert float(sums.parts[name].count) == count
            told.append(nats)
        every = 0.15 * 38 + 41  # 3 of 41 places are marks
        total = every * (0.3 * told[0] / (0.15 * 38) + 0.7 * told[1] / 41)
        assert experiment.objective.text(sums, batch)[1].shape == (4, 41)
    if "label" in batch:
        rows = np.asarray(jax.nn.log_softmax(out.rows_BC))[np.arange(4), batch["label"]]
        assert float(sums.parts["row"].nats) == pytest.approx(-rows.sum(), rel=1e-5)
        total += float(sums.tokens) * -rows.mean()
    assert float(sums.total) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_rows_are_the_same_after_a_resume_and_with_other_workers(kind):
    family = OBJECTIVES[kind].families[0]
    experiment, dataset = run_of(kind, family), shakespeare()
    rows = experiment.rows(experiment.vocabulary(dataset.tokenizer))
    config = dataclasses.replace(dataset.config, epochs=2)
    dataset = type(dataset)(config, dataset.tokenizer, dataset.folder, dataset.manifest)
    whole = dataset.train_iterator(rows=rows)
    first, state = [next(whole) for _ in range(3)], whole.get_state()
    rest = [next(whole) for _ in range(3)]
    busy = dataclasses.replace(config, workers=2)
    again = type(dataset)(busy, dataset.tokenizer, dataset.folder, dataset.manifest)
    iterator = again.train_iterator(rows=rows)
    iterator.set_state(json.loads(json.dumps(state)))
    for one, other in zip(rest, iterator, strict=False):
        assert one.keys() == other.keys()
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name], name)
    if kind != "next_token":
        plain = dataset.train_iterator()
        with pytest.raises(BadInput, match="another corpus"):
            plain.set_state(state)
    parts = [dataset.train_iterator(p, 2, rows) for p in range(2)]
    halves = [next(part) for part in parts]
    for name, values in first[0].items():
        np.testing.assert_array_equal(values, np.concatenate([half[name] for half in halves]))


def test_a_static_mask_is_that_of_its_window_and_a_dynamic_one_is_not():
    def rows_by_text(masking):
        experiment = run_of("masked_lm", "encoder", objective=MaskedLM(masking=masking))
        dataset = shakespeare()
        config = dataclasses.replace(dataset.config, epochs=2)
        dataset = type(dataset)(config, dataset.tokenizer, dataset.folder, dataset.manifest)
        rows, found = experiment.rows(experiment.vocabulary(dataset.tokenizer)), {}
        for batch in dataset.train_iterator(rows=rows):
            for tokens, at, targets, weights in zip(
                *(batch[n] for n in ("tokens", "at", "targets", "weights")), strict=True
            ):
                text = tokens.copy()
                text[at[weights > 0]] = targets[weights > 0]
                found.setdefault(text.tobytes(), set()).add(tokens.tobytes())
        return [len(masks) for masks in found.values()]

    assert set(rows_by_text("static")) == {1}
    assert np.mean(np.array(rows_by_text("dynamic")) == 2) > 0.95


@pytest.mark.parametrize(
    ("family", "objective", "words"),
    [
        ("encoder", UL2(), "'ul2' is for a model of kind encoder_decoder or decoder.*masked_lm"),
        ("decoder", MaskedLM(), "for a model of kind encoder or task_modules, .*next_token, .*glm"),
        ("encoder", MaskedLM(sentences="order"), "--model.classes=2"),
        ("decoder", PrefixLM(low=0.9), "objective.low"),
    ],
)
def test_impossible_pairs_name_the_possible_ones(family, objective, words):
    with pytest.raises(BadInput, match=words):
        run_of("next_token", family, objective=objective).validate()


def test_what_is_missing_in_the_vocabulary_and_the_context_is_named():
    run = run_of("span_corruption", "encoder_decoder")
    small = dataclasses.replace(run.model, vocab_size=258)
    with pytest.raises(BadInput, match=r"257 and the 2 special tokens.*vocab_size=259"):
        dataclasses.replace(run, model=small).validate()
    with pytest.raises(BadInput, match="'span_corruption' moves tokens"):
        data = dataclasses.replace(run.data, document_attention="within")
        dataclasses.replace(run, data=data).validate()
    short = dataclasses.replace(run.model, context_length=40)
    with pytest.raises(BadInput, match=r"data\.sequence_length = 41 is longer"):
        dataclasses.replace(run, model=short).validate()


def test_an_objective_is_chosen_by_name():
    run = run_of("span_corruption", "encoder_decoder")
    other = run.with_objective("ul2")
    assert other.objective == UL2() and run.with_objective("") is run
    assert run.with_objective("span_corruption").objective is run.objective
    with pytest.raises(BadInput, match="did you mean 'ul2'"):
        run.with_objective("ul")
    smooth = dataclasses.replace(run, objective=SpanCorruption(z_loss=0.1))
    assert smooth.with_objective("prefix_lm").objective.z_loss == 0.1


def test_the_ledger_counts_the_sides_apart():
    """Products by hand: an encoder of S, a decoder of T that predicts at P places."""
    run = run_of("span_corruption", "encoder_decoder")
    f, (_, t, p, s, _, _) = run.step_flops, run.lengths
    d, n, rows, v = 16, 2, 4, 331
    assert f.encoder == rows * n * (2 * s * (4 * d * d + 8 * d * d) + 4 * s * s * d)
    assert f.projections == rows * n * 2 * t * 4 * d * d and f.mlp == rows * n * 2 * t * 8 * d * d
    assert f.attention == rows * n * 4 * d * t * (t + 1) / 2
    assert f.cross == rows * n * 2 * (2 * t * d * d + 2 * s * d * d + 2 * t * s * d)
    assert f.head == rows * 2 * p * v * d
    assert run.flops == 3 * f.forward * run.steps and run.tokens_per_step == rows * run.lengths.raw
    prefix = run_of("prefix_lm", "decoder")
    plain = run_of("next_token", "decoder").step_flops
    more = prefix.step_flops.attention - plain.attention
    sizes = np.arange(math.ceil(0.25 * 41), math.floor(0.75 * 41) + 1)
    assert more == pytest.approx(rows * n * 4 * d * np.mean(sizes * (sizes - 1) / 2))
