"""What is read before it is gone on with: by decoders in two ways, and by encoders."""

import dataclasses

import jax
import numpy as np
import pytest

from gptjax import UL2, DataConfig, DecoderConfig, EncoderDecoderConfig, Experiment, TrainConfig
from gptjax.data import prepare
from gptjax.errors import BadInput
from gptjax.evaluation.forms import form_of
from gptjax.models.build import init_params
from gptjax.objectives import NextToken, PrefixLM, SpanCorruption
from gptjax.objectives.corruption import parts_of
from gptjax.training.example import example_batch
from gptjax.training.step import loss_sums

OBJECTIVES = [PrefixLM(), PrefixLM(low=0.5, high=0.5), SpanCorruption(), UL2()]
SIZES = {"vocab_size": 400, "context_length": 128, "num_layers": 1, "d_model": 8, "num_heads": 1}
PAIR, DECODER = EncoderDecoderConfig(**SIZES), DecoderConfig(**SIZES)


def run_of(model, objective, length):
    return Experiment(
        name="run",
        model=model,
        objective=objective,
        data=DataConfig(
            corpus="shakespeare", batch_size=4, sequence_length=length, max_bytes=60_000
        ),
        train=TrainConfig(steps=2),
    )


def batches(experiment, count=3):
    experiment.validate()
    dataset = prepare(experiment.data)
    rows = experiment.rows(experiment.vocabulary(dataset.tokenizer))
    iterator = dataset.train_iterator(rows=rows)
    trained = [next(iterator) for _ in range(count)]
    return [*trained, *dataset.validation_batches(count, rows=rows)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_three_families_read_and_predict_the_same(objective):
    """The same windows in the same order, cut in the same places, in training and validation."""
    causal = dataclasses.replace(objective, reading="causal")
    length = objective.matching_length(67, "encoder_decoder", "decoder")
    pair = batches(run_of(PAIR, objective, 67))
    both = batches(run_of(DECODER, objective, length))
    one_way = batches(run_of(DECODER, causal, length))
    assert len(pair) == len(both) == len(one_way) == 6
    for three in zip(pair, both, one_way, strict=True):
        assert "prefix" in three[1] and "prefix" not in three[2]
        for name in three[2]:
            assert np.array_equal(three[1][name], three[2][name])
        for i in range(4):
            rows = [{name: values[i] for name, values in batch.items()} for batch in three]
            parts = [parts_of(row) for row in rows]
            for source, targets in parts[1:]:
                assert np.array_equal(source, parts[0][0])
                assert np.array_equal(targets, parts[0][1])
            assert rows[1]["prefix"].sum() == len(parts[1][0])


def test_lengths_of_the_same_text():
    spans = SpanCorruption()
    assert spans.matching_length(512, "encoder_decoder", "decoder") == 512 + 114 - 1
    assert spans.matching_length(625, "decoder", "encoder_decoder") == 512
    assert PrefixLM().matching_length(512, "encoder_decoder", "decoder") == 512
    with pytest.raises(BadInput, match=r"rows of 203 tokens .* cannot have; nearest: 204 at"):
        spans.matching_length(224, "decoder", "encoder_decoder")


@pytest.mark.parametrize("objective", OBJECTIVES[1:], ids=lambda one: one.kind)
def test_read_causally(objective):
    causal = dataclasses.replace(objective, reading="causal")
    assert causal.lengths(67, "decoder") == objective.lengths(67, "decoder")._replace(ahead=0.0)
    assert objective.lengths(67, "decoder").ahead > 100
    dataset = prepare(run_of(DECODER, causal, 67).data)
    ids = list(b"abc")
    for one, prefix in ((causal, 0), (objective, len)):
        asked = form_of(DECODER, one, dataset.tokenizer, 67).asked(ids)
        assert asked.given.prefix == (prefix and prefix(asked.given.tokens))


@pytest.mark.parametrize("objective", OBJECTIVES[1:], ids=lambda one: one.kind)
def test_an_encoder_reads_both_ways(objective):
    causal = dataclasses.replace(objective, reading="causal")
    with pytest.raises(BadInput, match=r"objective.reading is 'causal', which is of decoders"):
        run_of(PAIR, causal, 67).validate()
    with pytest.raises(BadInput, match=r"objective.reading .*'backwards'"):
        dataclasses.replace(objective, reading="backwards").validate()


def test_read_causally_the_loss_is_that_of_the_next_tokens():
    params = init_params(DECODER, jax.random.key(1))
    batch = example_batch(run_of(DECODER, PrefixLM(reading="causal"), 67))
    predicted = batch["weights"] > 0
    weights = np.zeros((4, 67), np.float32)
    for row, (at, known) in enumerate(zip(batch["at"], predicted, strict=True)):
        weights[row, at[known]] = 1.0
    targets = np.concatenate([batch["tokens"][:, 1:], batch["targets"][:, -1:]], 1)
    targets[:, -1] = [
        row[known][-1] for row, known in zip(batch["targets"], predicted, strict=True)
    ]
    plain = {"tokens": batch["tokens"], "targets": targets, "weights": weights}
    nats = [
        float(jax.jit(lambda p, b=b: loss_sums(DECODER, NextToken(), p, b))(params).nats)
        for b in (plain, batch)
    ]
    assert nats[0] == pytest.approx(nats[1], rel=1e-5)
