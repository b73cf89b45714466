"""Runs of other objectives: the sample at their end, the command that writes text, `load`."""

import dataclasses
import json

import numpy as np
import pytest

import gptjax
from experiments.generate import main
from gptjax import DecoderConfig, EncoderConfig, EncoderDecoderConfig, MaskedLM, SpanCorruption
from gptjax.data import prepare
from gptjax.models.config_parts import EmbeddingConfig
from gptjax.objectives import OBJECTIVES
from gptjax.objectives.corruption import parts_of
from gptjax.samples import _form, _window
from tests.conftest import changed

SIZES = {"vocab_size": 300, "context_length": 32, "num_layers": 1, "d_model": 16, "num_heads": 2}
MODELS = {
    "decoder": DecoderConfig(**SIZES),
    "encoder": EncoderConfig(
        **SIZES, pooler="first", classes=2, embedding=EmbeddingConfig(types=2)
    ),
    "encoder_decoder": EncoderDecoderConfig(**SIZES),
}
OBJECTIVES_OF = {"masked_lm": (MaskedLM(rate=0.4), MaskedLM(rate=0.4, sentences="next"))}
CASES = [
    (objective, family)
    for kind, cls in OBJECTIVES.items()
    for objective in OBJECTIVES_OF.get(kind, (cls(),))
    for family in cls.families
    if family in MODELS and kind != "next_token"
]


def of(tiny, objective, family, **train):
    experiment = dataclasses.replace(tiny, model=MODELS[family], objective=objective)
    return changed(experiment, train={"steps": 2, "checkpoint_every": 2, **train})


@pytest.mark.parametrize(("objective", "family"), CASES)
def test_a_sample_is_asked_as_rows_of_validation_are(tiny, objective, family):
    experiment = of(tiny, objective, family, sample_tokens=32)
    experiment.validate()
    dataset = prepare(experiment.data)
    form = _form(experiment, dataset.tokenizer)
    prompt = form.asked(_window(experiment, dataset, form))
    rows = experiment.rows(experiment.vocabulary(dataset.tokenizer))
    batch = next(iter(dataset.validation_batches(1, rows=rows)))
    row = {name: values[0] for name, values in batch.items()}
    source = form.source(prompt)
    if form.kind == "masks":
        np.testing.assert_array_equal(source, row["tokens"][: len(source)])
    elif form.kind != "whole":  # that one ends with its document
        wanted = row["tokens"][row["prefix"]] if "prefix" in row else parts_of(row)[0]
        np.testing.assert_array_equal(source, wanted)
    if prompt.given is not None and prompt.given.source is not None:
        assert prompt.given.tokens[0] == row["tokens"][0]
    assert not form.blanks or any(name in prompt.text for name in form.blanks)


def test_a_run_of_span_corruption(tiny, capsys, tmp_path):
    experiment = of(tiny, SpanCorruption(), "encoder_decoder")
    run = gptjax.fit(experiment, tmp_path / "run")
    assert "<extra_id_0>" in run.sample.partition("\n--- filled\n")[0]
    assert json.loads((run.workdir / "result.json").read_text())["sample"] == run.sample
    loaded = gptjax.load(run.workdir)
    text = loaded.generate("def <extra_id_0>(self)", 6, temperature=0)
    assert text.startswith("def ") and text.endswith("(self)")
    capsys.readouterr()
    arguments = [f"--from={run.workdir}", "--prompt=def <extra_id_0>(self)", "--temperature=0"]
    out = tmp_path / "out.jsonl"
    assert main([*arguments, "--max_tokens=6", f"--output={out}"]) == 0
    assert text in capsys.readouterr().out
    assert json.loads(out.read_text())["text"] == text
    for more, words in (
        ("--stop=x", "--stop is of text that goes on"),
        ("--explain", "--explain=next does not tell"),
        ("--prompt=[MASK]", r"holds [MASK], and blanks of this model are <extra_id_0>"),
    ):
        given = [one for one in arguments if not more.startswith(one.split("=")[0])]
        assert main([*given, more]) == 2
        assert words in capsys.readouterr().err
