"""What a run's folder must agree on, each refused in one line before anything changes in it."""

import json
from types import SimpleNamespace

import pytest

from gptjax.data.tokenizers import ByteTokenizer, SymbolTokenizer
from gptjax.errors import BadInput, DamagedData
from gptjax.run_folder import (
    FILES,
    FOLDERS,
    check_config,
    check_epochs,
    check_folder,
    check_manifest,
    check_steps,
    data_changed,
    load_experiment,
    write_config,
)
from tests.conftest import changed


def one_line(refused) -> str:
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_config_comes_back(tiny, tmp_path):
    assert check_config(tiny, tmp_path, fork=False) is None
    write_config(tiny, tmp_path, 0)
    assert load_experiment(tmp_path) == tiny
    assert check_config(tiny, tmp_path, fork=False) == tiny.to_json()
    other = changed(tiny, train={"steps": 29})
    with pytest.raises(BadInput, match=r"train\.steps: 23 -> 29"):
        check_config(other, tmp_path, fork=False)
    assert check_config(other, tmp_path, fork=True) == tiny.to_json()
    write_config(other, tmp_path, 7)
    assert load_experiment(tmp_path) == other
    assert json.loads((tmp_path / "experiment.until-step-7.json").read_text()) == tiny.to_json()


def test_many_changed_fields_are_counted(tiny, tmp_path):
    write_config(tiny, tmp_path, 0)
    model = {"num_layers": 3, "d_model": 32, "num_heads": 2, "positions": "learned"}
    other = changed(tiny, model=model, optim={"lr": 0.5, "b1": 0.5, "b2": 0.5, "clip_norm": 7.0})
    with pytest.raises(BadInput, match="and 2 more") as refused:
        check_config(other, tmp_path, fork=False)
    assert one_line(refused).count(" -> ") == 6


@pytest.mark.parametrize("text", ["", "[]", "null", '{"name": "x"}', '{"name": 3, "model": []}'])
def test_an_odd_config_is_damage(tiny, tmp_path, text):
    (tmp_path / "experiment.json").write_text(text)
    with pytest.raises(DamagedData, match=r"experiment\.json is damaged") as refused:
        check_config(tiny, tmp_path, fork=True)
    one_line(refused)
    assert (tmp_path / "experiment.json").read_text() == text


def test_checkpoints_without_a_config_are_refused(tiny, tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(BadInput, match=r"holds checkpoints and no experiment\.json"):
        check_config(tiny, tmp_path, fork=True)
    with pytest.raises(BadInput, match="holds no run"):
        load_experiment(tmp_path / "other")


@pytest.mark.parametrize("name", FOLDERS + FILES)
def test_a_file_for_a_folder_and_the_other_way_round(tmp_path, name):
    check_folder(tmp_path)
    found, wanted = ("folder", "file") if name in FILES else ("file", "folder")
    (tmp_path / name).mkdir() if name in FILES else (tmp_path / name).write_text("x")
    with pytest.raises(BadInput, match=rf"{name} is a {found} where .* needs a {wanted}") as no:
        check_folder(tmp_path)
    one_line(no)


def test_damaged_metrics_are_found_first(tmp_path):
    text = '{"step": 1}\n{"st\n{"step": 3}\n{"torn'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(DamagedData, match=r"metrics\.jsonl, line 2 is damaged"):
        check_folder(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == text
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"torn')
    check_folder(tmp_path)


def dataset(tokenizer, corpus="c" * 64):
    manifest = {"tokenizer_sha256": tokenizer.sha256, "corpus_sha256": corpus}
    return SimpleNamespace(manifest=manifest)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"data": 3}', '{"data": {"corpus_sha256": 3, "tokenizer_sha256": 4}}']
)
def test_an_odd_manifest_is_damage(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DamagedData, match=r"manifest\.json is damaged") as refused:
        check_manifest(tmp_path, dataset(ByteTokenizer()))
    one_line(refused)


def test_corpus_and_tokenizer_are_those_of_the_folder(tmp_path):
    ours, other = ByteTokenizer(), SymbolTokenizer(7)
    check_manifest(tmp_path, dataset(ours))  # nothing has begun, or the file was moved away
    (tmp_path / "manifest.json").write_text(json.dumps({"data": dataset(ours).manifest}))
    check_manifest(tmp_path, dataset(ours))
    with pytest.raises(BadInput, match=r"the corpus has changed since .*cccccccccccc -> dddd"):
        check_manifest(tmp_path, dataset(ours, "d" * 64))
    with pytest.raises(BadInput, match="the tokenizer has changed since"):
        check_manifest(tmp_path, dataset(other))
    ours.save(tmp_path / "tokenizer")
    check_manifest(tmp_path, dataset(ours))
    for path in (tmp_path / "tokenizer").iterdir():
        path.unlink()
    other.save(tmp_path / "tokenizer")
    with pytest.raises(BadInput, match="another run"):
        check_manifest(tmp_path, dataset(ours))


def test_epochs_that_do_not_suffice(tiny):
    few = changed(tiny, data={"epochs": 2})
    with pytest.raises(BadInput, match=r"2 over 91 windows feed 22 steps of 8, not 23") as refused:
        check_epochs(few, 91)
    one_line(refused)
    check_epochs(few, 92)
    check_epochs(tiny, 1)


def test_a_fork_that_would_end_before_its_beginning(tiny, tmp_path):
    check_steps(tiny, tmp_path, 23)
    with pytest.raises(BadInput, match="is step 24, beyond the 23 steps asked for"):
        check_steps(tiny, tmp_path, 24)


def test_other_rows_of_the_same_text_are_other_data(tiny):
    before = tiny.to_json()
    assert not data_changed(tiny, before)
    assert not data_changed(changed(tiny, objective={"z_loss": 1e-4}), before)
    assert data_changed(changed(tiny, data={"seed": 7}), before)
    assert data_changed(tiny.with_objective("prefix_lm"), before)
