"""Damaged, half-deleted and half-written checkpoints are named, and the newest good one is used."""

import gc
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.errors import BadInput, DamagedData
from gptjax.training import integrity
from gptjax.training.checkpoint import Checkpointer, restore_params

# orbax leaves coroutines behind when it cannot read a file.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_of(step):
    key = jax.random.key(step)
    return {
        "params": {
            "w": jax.random.normal(key, (101, 67)),
            "b": jnp.full((13,), step, jnp.bfloat16),
        },
        "step": jnp.int32(step),
        "rng": key,
    }


LIKE = jax.eval_shape(lambda: state_of(0))


@pytest.fixture(scope="module", autouse=True)
def collect():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    checkpointer = Checkpointer(folder)
    for step in (10, 20):
        checkpointer.save(step, state_of(step), {"position": step}, {})
    checkpointer.close()
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "checkpoints")


def restore(folder):
    lines = []
    return Checkpointer(folder, report=lines.append).restore(LIKE), lines


def flip(path, place=0.5, bit=3):
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)


def files_of(step_folder):
    return sorted(p for p in step_folder.rglob("*") if p.is_file() and p.stat().st_size)


def largest(step_folder):
    return max(files_of(step_folder), key=lambda p: p.stat().st_size)


def test_untouched_is_silent(folder):
    restored, lines = restore(folder)
    assert restored.step == 20 and restored.data_state == {"position": 20} and lines == []
    w = np.asarray(restored.state["params"]["w"])
    assert w.tobytes() == np.asarray(state_of(20)["params"]["w"]).tobytes()


def test_a_flip_in_any_file_is_named(folder):
    names = [p.relative_to(folder / "20") for p in files_of(folder / "20")]
    assert len(names) > 8
    for name in names:
        path = folder / "20" / name
        content = path.read_bytes()
        flip(path)
        restored, lines = restore(folder)
        path.write_bytes(content)
        assert restored.step == 10, name
        assert len(lines) == 2 and "20 is damaged" in lines[0] and path.name in lines[0]
        assert "\n" not in lines[0] and "step 10" in lines[1]
    assert restore(folder)[0].step == 20


@pytest.mark.parametrize("what", ["delete", "truncate", "empty", "zero", "folder", "extra"])
def test_other_damage(folder, what):
    path = largest(folder / "20")
    size = path.stat().st_size
    if what == "delete":
        path.unlink()
    elif what == "truncate":
        path.write_bytes(path.read_bytes()[:-7])
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "zero":
        path.write_bytes(bytes(size))
    elif what == "folder":
        shutil.rmtree(folder / "20" / "state")
    elif what == "extra":
        (folder / "20" / "state" / "stray").write_text("x")
    restored, lines = restore(folder)
    if what == "extra":
        assert restored.step == 20 and "stray is not part of the checkpoint" in lines[0]
    else:
        assert restored.step == 10 and "20 is damaged" in lines[0]


def test_a_step_without_its_manifest_is_named_and_passed_over(folder):
    (folder / "20" / integrity.MANIFEST).unlink()
    restored, lines = restore(folder)
    assert restored.step == 10 and "20 is damaged: files.json is missing" in lines[0]
    assert not integrity.has_manifest(folder / "20")
    (folder / "10" / integrity.MANIFEST).unlink()
    with pytest.raises(DamagedData, match=r"no good checkpoint .* all of \[10, 20\]"):
        restore(folder)


def test_a_file_in_the_place_of_a_step_is_named_and_passed_over(folder):
    for name in ("30", "040", "²"):  # only the first is the name of a step
        (folder / name).write_text("x")
    lines = []
    checkpointer = Checkpointer(folder, report=lines.append)
    assert checkpointer.restore(LIKE).step == 20
    assert "30 is damaged: it is a file and no folder" in lines[0] and len(lines) == 2
    checkpointer.save(30, state_of(30), {}, {})
    checkpointer.close()
    assert restore(folder)[0].step == 30 and (folder / "30.damaged").read_text() == "x"


def test_what_changed_before_the_manifest_is_found_by_fingerprint(folder):
    # The values of w lie in one of the large files: flip inside each of them.
    for path in files_of(folder / "20"):
        if path.stat().st_size > 101 * 67 * 4:
            flip(path, place=0.5, bit=0)
    (folder / "20" / integrity.MANIFEST).unlink()
    integrity.write_manifest(folder / "20")
    restored, lines = restore(folder)
    assert restored.step == 10 and "the values of params/w are not those computed" in lines[0]


def test_a_kill_right_after_the_commit_leaves_a_proven_step(folder, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    commit = integrity.write_manifest

    def write(folder, **without):
        if not without:  # the second time: after the commit
            shutil.copytree(folder, kept / folder.name)
        commit(folder, **without)

    monkeypatch.setattr(integrity, "write_manifest", write)
    checkpointer = Checkpointer(folder)
    checkpointer.save(30, state_of(30), {}, {})
    checkpointer.close()
    restored, lines = restore(kept)
    assert restored.step == 30 and lines == []
    flip(largest(kept / "30"))
    with pytest.raises(DamagedData):
        restore(kept)


def test_a_save_that_was_cut_off_is_named(folder):
    shutil.move(folder / "20", folder / "20.orbax-checkpoint-tmp")
    restored, lines = restore(folder)
    assert restored.step == 10 and "20.orbax-checkpoint-tmp was cut off" in lines[0]


def test_all_damaged_is_refused_and_nothing_is_harmed(folder):
    for step in ("10", "20"):
        flip(largest(folder / step))
    before = {p: p.read_bytes() for p in files_of(folder)}
    with pytest.raises(BadInput, match="no good checkpoint"):
        restore(folder)
    with pytest.raises(BadInput, match="no good checkpoint"):
        restore_params(folder, LIKE["params"], report=lambda line: None)
    assert before == {p: p.read_bytes() for p in files_of(folder)}


def test_params_alone_pass_over_damage(folder):
    flip(largest(folder / "20"))
    lines = []
    params = restore_params(folder, LIKE["params"], report=lines.append)
    assert float(params["b"][0]) == 10 and "20 is damaged" in lines[0]
    with pytest.raises(BadInput):
        restore_params(folder, LIKE["params"], step=20, report=lines.append)


def test_training_on_after_damage_replaces_the_step(folder):
    flip(largest(folder / "20"))
    lines = []
    checkpointer = Checkpointer(folder, keep=2, report=lines.append)
    assert checkpointer.restore(LIKE).step == 10
    checkpointer.save(15, state_of(15), {}, {})
    checkpointer.wait()
    assert checkpointer.steps() == [10, 15]  # the damaged one counts for nothing
    assert (folder / "20.damaged").is_dir()
    checkpointer.save(20, state_of(20), {}, {})
    checkpointer.close()
    assert restore(folder)[0].step == 20


def test_saving_over_a_damaged_step_of_an_earlier_process(folder):
    flip(largest(folder / "20"))
    lines = []
    checkpointer = Checkpointer(folder, report=lines.append)
    checkpointer.save(20, state_of(20), {"position": 21}, {})
    checkpointer.close()
    assert restore(folder)[0].data_state == {"position": 21}
    assert any("kept as" in line for line in lines)


def test_leftovers_are_cleared_by_the_next_save(folder):
    for name in ("30.orbax-checkpoint-tmp", ".5.deleted"):
        shutil.copytree(folder / "10", folder / name)
    checkpointer = Checkpointer(folder, report=lambda line: None)
    checkpointer.restore(LIKE)
    assert (folder / ".5.deleted").exists()  # reading changes nothing
    checkpointer.save(30, state_of(30), {}, {})
    checkpointer.close()
    assert sorted(p.name for p in folder.iterdir()) == ["20", "30"]


def test_a_record_of_another_step_is_damage(folder):
    shutil.rmtree(folder / "20")
    shutil.copytree(folder / "10", folder / "20")
    restored, lines = restore(folder)
    assert restored.step == 10 and "step 10; expected" in lines[0]


def test_seal_is_exact(tmp_path):
    body = {"float": 0.1 + 0.2, "list": [1, None, True], "text": "ü\u2028", "big": 2**70}
    (tmp_path / "x").write_text(json.dumps(integrity.seal(body)))
    assert integrity.unseal(tmp_path / "x") == body
