"""Whole runs by `gptjax.fit`: what they leave, and that stopping them changes nothing."""

import dataclasses
import json
import os
import shutil
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import gptjax
from gptjax.data.loader import TrainIterator
from gptjax.errors import BadInput
from gptjax.run_folder import load_experiment
from gptjax.scaling.flops import count_flops, count_parameters
from gptjax.training.loop import Diverged, Loop, Preempted
from gptjax.training.metrics import Recorder
from gptjax.training.workdir import claim
from tests.conftest import changed


def rows(workdir) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def without_time(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def steps_saved(workdir) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())


def assert_same_run(result, other) -> None:
    """To the bit: every figure of every row but the time, and every parameter."""
    assert without_time(rows(result.workdir)) == without_time(rows(other.workdir))
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(result.params), jax.device_get(other.params)
    )
    figures = [{k: v for k, v in r.figures.items() if k != "seconds"} for r in (result, other)]
    assert figures[0] == figures[1]


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run that nothing disturbed; tests look at it and change it only in copies."""
    return gptjax.fit(tiny, tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module")
def crashed(tiny, tmp_path_factory):
    """The folder of a run that died at step 13, with a checkpoint of step 10."""
    workdir = tmp_path_factory.mktemp("runs") / "crashed"
    write = Recorder.write

    def fails(self, row):
        if row["step"] == 13:
            raise RuntimeError("the machine is gone")
        write(self, row)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="is gone"):
        patch.setattr(Recorder, "write", fails)
        gptjax.fit(tiny, workdir)
    with open(workdir / "metrics.jsonl", "a") as log:
        log.write('{"step": 13, "lo')  # what a kill in the middle of a line leaves
    return workdir


@pytest.fixture
def copy_of(tmp_path):
    return lambda workdir: shutil.copytree(workdir, tmp_path / "copy")


def test_a_run_leaves_what_it_promises(finished, tiny):
    found = {p.name for p in finished.workdir.iterdir()} - {".lock"}
    promised = {"experiment.json", "manifest.json", "metrics.jsonl", "tensorboard", "checkpoints"}
    assert found == promised | {"result.json", "curves.png", "tokenizer"}
    assert list((finished.workdir / "tensorboard").iterdir())
    assert (finished.workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert steps_saved(finished.workdir) == [20, 23]  # the newest two
    assert load_experiment(finished.workdir) == tiny
    manifest = json.loads((finished.workdir / "manifest.json").read_text())
    assert manifest["packages"]["jax"] == jax.__version__ and manifest["devices"] == 8
    assert len(manifest["data"]["corpus_sha256"]) == 64 == len(manifest["data"]["tokenizer_sha256"])


def test_rows_carry_the_ledger(finished, tiny):
    flops, counts = count_flops(tiny.model, 32).training, count_parameters(tiny.model)
    train = [row for row in rows(finished.workdir) if "loss" in row]
    assert [row["step"] for row in train] == list(range(1, 24))
    for row in rows(finished.workdir):
        tokens = row["step"] * 8 * 32
        assert row["tokens"] == tokens and row["flops"] == pytest.approx(flops * tokens)
        assert row["flops_6nd"] == 6 * counts.total * tokens and row["seconds"] > 0
    assert {"accuracy", "grad_norm", "lr"} <= train[0].keys()
    assert train[-1]["loss"] < train[0]["loss"] - 1
    held_out = [row for row in rows(finished.workdir) if "validation_loss" in row]
    assert [row["step"] for row in held_out] == [10, 20, 23]
    result = json.loads((finished.workdir / "result.json").read_text())
    assert result["objective"] == finished.figures["objective"] == "next_token"
    assert result == json.loads(json.dumps(finished.figures))
    assert result["validation_loss"] == held_out[-1]["validation_loss"]
    # A token is a byte but for the separators, which cost nats and hold none.
    bits = result["validation_loss"] / np.log(2)
    assert bits <= result["bits_per_byte"] < 1.01 * bits
    assert result["steps"] == 23 and result["parameters"] == counts.total
    assert result["sample"] == finished.sample


def test_a_crashed_run_goes_on_to_the_bit(finished, crashed, copy_of, tiny):
    assert steps_saved(crashed) == [5, 10]
    assert_same_run(gptjax.fit(tiny, copy_of(crashed)), finished)


def test_a_run_goes_on_on_another_mesh(finished, crashed, copy_of, tiny):
    other = changed(tiny, mesh={"data": 2, "fsdp": 2, "tensor": 2})
    result = gptjax.fit(other, copy_of(crashed))
    for row, expected in zip(rows(result.workdir), rows(finished.workdir), strict=True):
        name = "loss" if "loss" in row else "validation_loss"
        assert row["step"] == expected["step"]
        assert row[name] == pytest.approx(expected[name], abs=1e-5)
    assert load_experiment(result.workdir).mesh == other.mesh


def test_sigterm_saves_once_and_the_run_goes_on_to_the_bit(finished, tiny, tmp_path, monkeypatch):
    workdir, following = tmp_path / "run", TrainIterator.__next__
    handler = signal.getsignal(signal.SIGTERM)
    count = 0

    def asks(self):
        nonlocal count
        count += 1
        if count == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return following(self)

    monkeypatch.setattr(TrainIterator, "__next__", asks)
    with pytest.raises(Preempted, match="stopped at step 7 and saved"):
        gptjax.fit(tiny, workdir)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert steps_saved(workdir) == [5, 7] and rows(workdir)[-1]["step"] == 7
    assert not (workdir / "result.json").exists()
    monkeypatch.undo()
    assert_same_run(gptjax.fit(tiny, workdir), finished)


def test_a_finished_run_that_is_started_again_stays_as_it_is(finished, copy_of, tiny):
    workdir = copy_of(finished.workdir)
    before = {name: (workdir / name).read_bytes() for name in ("metrics.jsonl", "experiment.json")}
    again = gptjax.fit(tiny, workdir)
    assert_same_run(again, finished)
    assert again.figures["seconds"] == finished.figures["seconds"]
    assert steps_saved(workdir) == [20, 23]
    for name, content in before.items():
        assert (workdir / name).read_bytes() == content


def test_divergence_names_step_and_parameters_and_keeps_the_last_good_step(tiny, tmp_path):
    e = changed(
        tiny,
        optim={"lr": 1e30, "warmup_fraction": 0.0, "clip_norm": 0.0},
        train={"checkpoint_every": 1, "sample_tokens": 0},
    )
    for _ in range(2):  # the second start finds the good checkpoint and says the same
        with pytest.raises(Diverged) as raised:
            gptjax.fit(e, tmp_path / "run")
        text = str(raised.value)
        assert "not finite at step 2: loss nan" in text and "\n" not in text
        assert "not finite are gradients of embedding," in text and "and 32 more" in text
        assert "the last good checkpoint is step 1;" in text
        assert steps_saved(tmp_path / "run") == [1]
        assert [row["step"] for row in rows(tmp_path / "run")] == [1]
    assert not (tmp_path / "run" / "result.json").exists()


def test_divergence_before_the_first_checkpoint_says_so():
    loop = Loop(*[None] * 9)
    loop.saved = 0
    params = {"a": np.ones(3, np.float32), "b": np.full(3, -7, np.float32)}
    metrics = SimpleNamespace(loss=np.float32("nan"), squares=np.array([1, np.inf]))
    text = loop.blame(1, metrics, params)
    assert "gradients of b; the largest parameters are in b (up to 7)" in text
    assert "no checkpoint had been written yet" in text


def test_another_config_is_refused_by_field_unless_forked(finished, copy_of, tiny):
    workdir = copy_of(finished.workdir)
    other = changed(tiny, train={"steps": 25}, optim={"weight_decay": 0.0})
    with pytest.raises(BadInput) as refused:
        gptjax.fit(other, workdir)
    assert "optim.weight_decay: 0.1 -> 0.0; train.steps: 23 -> 25" in str(refused.value)
    assert "--fork" in str(refused.value)
    assert load_experiment(workdir) == tiny
    result = gptjax.fit(other, workdir, fork=True)
    assert result.figures["steps"] == 25 and steps_saved(workdir) == [23, 25]
    assert load_experiment(workdir) == other
    old = json.loads((workdir / "experiment.until-step-23.json").read_text())
    assert old == tiny.to_json()
    train = [row["step"] for row in rows(workdir) if "loss" in row]
    assert train == list(range(1, 26))


def test_a_fork_onto_other_data_reads_it_from_the_start(crashed, copy_of, tiny, tmp_path):
    texts = tmp_path / "other.jsonl"
    line = json.dumps({"text": "another text altogether, " * 40})
    texts.write_text("".join(f'{line[:-2]} {i}"}}\n' for i in range(40)))
    other = changed(tiny, data={"files": (str(texts),)}, train={"steps": 12, "sample_tokens": 0})
    workdir = copy_of(crashed)
    with pytest.raises(BadInput, match=r"data\.files"):
        gptjax.fit(other, workdir)
    result = gptjax.fit(other, workdir, fork=True)
    assert result.figures["steps"] == 12
    assert (workdir / "experiment.until-step-10.json").exists()


def test_another_model_is_refused_by_its_parameters_even_when_forked(crashed, copy_of, tiny):
    workdir = copy_of(crashed)
    wider = changed(tiny, model={"d_ff": 48})
    words = r"another state.*mlp/(down|up).* and \d+ more arrays"
    with pytest.raises(BadInput, match=words) as refused:
        gptjax.fit(wider, workdir, fork=True)
    assert str(refused.value).count(" there and ") == 3
    assert load_experiment(workdir) == tiny and steps_saved(workdir) == [5, 10]


def test_a_folder_in_use_is_refused(finished, tiny):
    with claim(finished.workdir), pytest.raises(BadInput, match=f"in use by process {os.getpid()}"):
        gptjax.fit(tiny, finished.workdir)


def test_changed_text_under_a_run_is_refused(crashed, copy_of, tiny, corpus):
    from pathlib import Path

    workdir = copy_of(crashed)
    added = Path(corpus).parent / "added.txt"
    try:
        added.write_text("x = y " * 99)
        with pytest.raises(BadInput, match="the corpus has changed since"):
            gptjax.fit(tiny, workdir)
    finally:
        added.unlink()
    assert steps_saved(workdir) == [5, 10]


def test_nothing_is_trained_on_an_impossible_mesh(tiny, tmp_path):
    for mesh, words in (({"data": 3}, "8 sequences"), ({"tensor": 16}, "takes .*16 devices")):
        with pytest.raises(BadInput, match=words):
            gptjax.fit(changed(tiny, mesh=mesh), tmp_path / "run")
    with pytest.raises(BadInput, match=r"vocab_size = 257 .*320|give --model.vocab_size"):
        gptjax.fit(changed(tiny, data={"tokenizer": "bpe", "vocab_size": 330}), tmp_path / "run")
    assert not list((tmp_path / "run").glob("[!.]*"))


def test_rows_are_written_every_so_often(tiny, tmp_path):
    e = changed(tiny, train={"steps": 5, "log_every": 2, "eval_every": 3, "sample_tokens": 0})
    gptjax.fit(dataclasses.replace(e, name="seldom"), tmp_path)
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [2, 4]
    assert [row["step"] for row in rows(tmp_path) if "validation_loss" in row] == [3, 5]
