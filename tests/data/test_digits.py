"""Images as sequences of symbols: whole ones in every window, a split by image, bits per pixel."""

import dataclasses
import math
import sys
from collections import namedtuple

import numpy as np
import pytest

from gptjax import DataConfig, DecoderConfig, Experiment, NextToken, TrainConfig
from gptjax.data import prepare
from gptjax.data.corpora import digits
from gptjax.errors import BadInput
from gptjax.evaluation.perplexity import Perplexity
from gptjax.parallel.mesh import MeshConfig, make_mesh

Sums = namedtuple("Sums", "nats tokens correct parts")

CONFIG = DataConfig(
    corpus="digits",
    tokenizer="symbols",
    batch_size=8,
    sequence_length=65,
    document_attention="within",
    validation_fraction=0.2,
)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    pytest.importorskip("sklearn")
    config = dataclasses.replace(CONFIG, cache_dir=str(tmp_path_factory.mktemp("cache")))
    return config, prepare(config, lambda line: None)


def test_every_window_is_a_separator_and_an_image(cached):
    _, dataset = cached
    known = {image.tobytes() for image in digits.read_images()}
    assert dataset.vocab_size == 18
    for batch in dataset.validation_batches(3):
        assert (batch["tokens"][:, 0] == 17).all() and (batch["targets"][:, -1] == 17).all()
        assert (batch["segments"] == 0).all()
        assert {row.astype(np.uint8).tobytes() for row in batch["tokens"][:, 1:]} <= known


def test_the_split_is_one_by_image(cached):
    _, dataset = cached
    train, validation = (dataset.manifest[split]["documents"] for split in ("train", "validation"))
    assert train + validation == digits.COUNT and 300 < validation < 420
    assert dataset.manifest["corpus_details"]["pixels_sha256"] == digits.SHA256


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sequence_length": 64}, "the nearest that does not is 65"),
        ({"sequence_length": 128}, "the nearest that does not is 130"),
        ({"tokenizer": "bytes"}, "belong together"),
        ({"document_attention": "across"}, "'within'"),
        ({"corpus": "digit"}, "did you mean 'digits'"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, words):
    with pytest.raises(BadInput, match=words):
        dataclasses.replace(CONFIG, **fields).validate()


def test_without_scikit_learn_one_line_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    config = dataclasses.replace(CONFIG, cache_dir=str(tmp_path))
    with pytest.raises(BadInput, match=r"pip install -e '\.\[images\]'"):
        prepare(config, lambda line: None)


def test_the_loss_is_told_per_dimension(cached):
    _, dataset = cached
    mesh = make_mesh(MeshConfig(data=1))
    sums = {"nats": 650.0, "tokens": 325.0, "correct": 0.0}  # of five images
    eval_step = lambda params, batch: Sums(**sums, parts=None)
    told = Perplexity(eval_step, dataset, 1, mesh, {}, NextToken())
    figures = told(None)
    assert figures["bits_per_dimension"] == pytest.approx(650 / math.log(2) / 320)


def test_a_model_without_the_levels_is_refused():
    model = DecoderConfig(vocab_size=17, context_length=65, num_heads=2)
    with pytest.raises(BadInput, match="smaller than the 18 symbols of digits"):
        Experiment(name="images", model=model, data=CONFIG, train=TrainConfig(steps=1)).validate()
