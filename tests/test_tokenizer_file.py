"""A run on the tokenizer of another project: prepared, trained, saved, loaded, decoded."""

import dataclasses
import json

import numpy as np
import pytest

import gptjax
from gptjax.data import prepare
from gptjax.data.check import check
from gptjax.data.tokenizers import byte_bpe, export_tokenizer, train_sentencepiece
from gptjax.data.tokenizers.huggingface import byte_alphabet
from gptjax.errors import BadInput
from tests.conftest import changed

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A tokenizer of bytes and a few words, as transformers keeps it."""
    path = tmp_path_factory.mktemp("tokenizer")
    tokens = [*byte_alphabet(), "re", "de", "def", "No", "on", "Ġx", "<|endoftext|>"]
    merges = ["r e", "d e", "de f", "N o", "o n", "Ġ x"]
    export_tokenizer(byte_bpe(tokens, merges), path)
    return str(path)


@pytest.fixture
def data(tiny, folder):
    return dataclasses.replace(tiny.data, tokenizer="file", tokenizer_file=folder)


def test_tokens_are_the_text(data):
    assert check(data) == 263
    dataset = prepare(data)
    assert (dataset.vocab_size, dataset.manifest["tokenizer"]) == (263, "hf")
    batch = next(dataset.validation_batches(1))
    text = dataset.tokenizer.decode(batch["targets"][0])
    counted = dataset.token_bytes[batch["targets"][0]].sum()
    assert counted == len(text.encode()) > np.size(batch["targets"][0])
    assert prepare(data).manifest == dataset.manifest


def test_a_sentencepiece_model_is_read_too(data, tmp_path):
    made = train_sentencepiece("bpe", 320, [str(i) for i in range(999)], lambda line: None)
    made.save(tmp_path)
    dataset = prepare(dataclasses.replace(data, tokenizer_file=str(tmp_path)))
    assert (dataset.tokenizer.kind, dataset.tokenizer.sha256) == ("bpe", made.sha256)


def test_a_run_keeps_its_tokenizer(tiny, data, tmp_path, capsys):
    experiment = changed(
        tiny,
        train={"steps": 3, "checkpoint_every": 3, "sample_prompt": "def "},
        model={"vocab_size": 257, "num_layers": 1},
    )
    experiment = dataclasses.replace(experiment, data=data)
    with pytest.raises(BadInput, match=r"smaller than the tokenizer's 263; give --model\.vocab"):
        gptjax.fit(experiment, tmp_path / "run")
    model = dataclasses.replace(experiment.model, vocab_size=263)
    experiment = dataclasses.replace(experiment, model=model)
    result = gptjax.fit(experiment, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "tokenizer" / "tokenizer.json").read_text())
    assert record["kind"] == "hf" and "keep every text" not in capsys.readouterr().err
    trained = gptjax.load(tmp_path / "run")
    assert trained.generate("def ", tiny.train.sample_tokens) == result.sample
    other = dataclasses.replace(tiny.data, tokenizer="bytes")
    figures = trained.evaluate(data=other)
    assert figures["bits_per_byte"] == pytest.approx(result.figures["bits_per_byte"], rel=1e-5)
