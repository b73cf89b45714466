"""What a dry run says of memory and of epochs, and the values behind fields that are derived."""

import dataclasses

import pytest

from gptjax import registry
from gptjax.data import prepare
from gptjax.data.prepare import training_tokens
from gptjax.memory import GIB, Need, device_memory, verdict
from gptjax.plan import epochs_line, make_plan, settled
from tests.conftest import changed

ONE = {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("state", "kept", "limit", "words"),
    [
        (2, 3, 10, ["fits, ", "are left"]),
        (2, 7.5, 10, ["fits barely", "--optim.accumulation=2", "--mesh.fsdp=2"]),
        (2, 30, 10, ["does not fit, 23.6GB too much", "--optim.accumulation=8 fits"]),
        (25, 80, 20, ["--mesh.data=1 --mesh.fsdp=2 --optim.accumulation=8", "on 8 such devices"]),
    ],
)
def test_what_does_not_fit_is_told_what_helps(state, kept, limit, words):
    experiment = registry.get("gpt2_1558m")
    lines = verdict(experiment, Need(state * GIB, int(kept * GIB)), ONE, True, limit * GIB)
    assert all(word in "\n".join(lines) for word in words), lines
    assert (len(lines) == 1) == (words[0] == "fits, ")


def test_the_remedies_do_fit():
    """The settings that are named are those of a plan that fits."""
    experiment = registry.get("gpt2_124m")
    plan = make_plan(experiment, measure=False)
    limit = int(1.3 * plan.need.state)
    assert plan.need.total > limit
    lines = verdict(experiment, plan.need, plan.mesh_shape, True, limit)
    accumulation = int(lines[1].partition("--optim.accumulation=")[2].split()[0])
    better = changed(experiment, optim={"accumulation": accumulation})
    assert make_plan(better, measure=False).need.total <= limit


def test_absent_devices_are_told_by_kind():
    experiment = registry.get("gpt2_1558m")
    (line,) = verdict(experiment, Need(50 * GIB, 0), ONE, False, None)
    assert "fits NVIDIA A100 80GB (80 GiB) and larger, not TPU v6e (32 GiB)" in line
    lines = verdict(experiment, Need(50 * GIB, 500 * GIB), ONE, False, None)
    assert "does not fit the largest known, NVIDIA H200" in lines[0] and len(lines) > 1
    assert device_memory() > 1 << 20


def test_an_epoch_is_estimated_and_then_counted(tiny, tmp_path):
    data = dataclasses.replace(tiny.data, cache_dir=str(tmp_path))
    guess, counted = training_tokens(data)
    assert not counted
    exact = prepare(data).manifest["train"]["tokens"]
    assert training_tokens(data) == (exact, True)
    assert abs(guess / exact - 1) < 0.1
    bpe = dataclasses.replace(data, tokenizer="bpe", vocab_size=320)
    assert training_tokens(bpe)[0] < exact and not training_tokens(bpe)[1]
    assert training_tokens(dataclasses.replace(data, corpus="tfds:lm1b", files=())) is None


def test_derived_fields_show_what_they_come_to(tiny):
    plan = make_plan(changed(tiny, train={"tokens": 7}), measure=False)
    said = settled(plan)
    assert said["model.num_kv_heads"] == "4 (derived)" and said["model.d_ff"] == "64 (derived)"
    assert (
        said["model.attention.head_dim"] == "4 (derived)"
        and said["data.vocab_size"] == "257 (derived)"
    )
    assert said["train.tokens"] == "5888 (by train.steps, in the place of 7)"
    assert "model.num_heads" not in said and "mesh.data" not in said
    assert said["data.epochs"] == "0: as many as the run needs"
    assert "training tokens" in epochs_line(plan) and "epochs" in epochs_line(plan)
    long = dataclasses.replace(plan, corpus_tokens=(1000, True))
    assert "5.89 epochs of them (beyond 4" in epochs_line(long)
