"""Whole populations by `fit_population`: each member is the run that it would be alone."""

import os
import shutil
import signal

import jax
import numpy as np
import pytest

import gptjax
from gptjax.errors import BadInput
from gptjax.population import fit_population
from gptjax.training.loop import Diverged, Preempted
from gptjax.training.metrics import Recorder
from tests.conftest import changed
from tests.training.test_loop import assert_same_run, rows, steps_saved, without_time


@pytest.fixture(scope="module")
def three(tiny):
    """Runs that differ in seed, rate, length and, the last one, in what they read."""
    tiny = changed(tiny, train={"sample_tokens": 0, "steps": 17})
    return [
        tiny,
        changed(tiny, train={"seed": 5, "steps": 12}, optim={"lr": 3e-3, "b1": 0.8}),
        changed(tiny, optim={"weight_decay": 0.4, "clip_norm": 0.3}, data={"seed": 1}),
    ]


@pytest.fixture(scope="module")
def alone(three, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return [gptjax.fit(e, folder / str(i)) for i, e in enumerate(three)]


def folders(tmp_path, count: int = 3):
    return [tmp_path / str(i) for i in range(count)]


def assert_close_run(result, other) -> None:
    """The same rows and parameters within what another order of sums does in float32."""
    mine, theirs = (without_time(rows(r.workdir)) for r in (result, other))
    for row, expected in zip(mine, theirs, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    for one, another in zip(*(jax.tree.leaves(r.params) for r in (result, other)), strict=True):
        np.testing.assert_allclose(one, another, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "width", "same"),
    [("vmap", 0, assert_close_run), ("map", 2, assert_same_run)],
)
def test_each_member_is_the_run_that_it_would_be_alone(three, alone, tmp_path, mode, width, same):
    results = fit_population(three, folders(tmp_path), mode=mode, width=width)
    for result, expected in zip(results, alone, strict=True):
        same(result, expected)
        assert {p.name for p in result.workdir.iterdir()} == {
            p.name for p in expected.workdir.iterdir()
        }
        assert steps_saved(result.workdir) == steps_saved(expected.workdir)


def test_a_member_that_diverges_leaves_the_others_alone(three, alone, tmp_path, capsys):
    wild = changed(three[0], optim={"lr": 1e30, "clip_norm": 0.5})
    results = fit_population([three[0], wild, three[2]], folders(tmp_path), mode="vmap")
    assert isinstance(results[1], Diverged) and "not finite at step" in str(results[1])
    assert "not finite at step" in capsys.readouterr().out
    assert not (tmp_path / "1" / "result.json").exists()
    for place in (0, 2):
        assert_close_run(results[place], alone[place])


def test_a_stopped_population_goes_on_in_parts(three, alone, tmp_path, monkeypatch):
    write = Recorder.write

    def stops(self, row):
        if row["step"] == 6 and self.log.path.parent.name == "2":
            os.kill(os.getpid(), signal.SIGTERM)
        write(self, row)

    with monkeypatch.context() as patch, pytest.raises(Preempted, match="3 runs stopped at step 7"):
        patch.setattr(Recorder, "write", stops)
        fit_population(three, folders(tmp_path), mode="map")
    assert [steps_saved(folder) for folder in folders(tmp_path)] == [[5, 7]] * 3
    assert_same_run(gptjax.fit(three[1], tmp_path / "1"), alone[1])
    shutil.rmtree(tmp_path / "2" / "checkpoints" / "7")  # one stands further back than the others
    results = fit_population(three, folders(tmp_path), mode="map")
    for result, expected in zip(results, alone, strict=True):
        assert_same_run(result, expected)


def test_what_cannot_be_trained_together_is_refused(three, tmp_path):
    here = folders(tmp_path)
    with pytest.raises(BadInput, match=r"another program.*model.d_model is 32, not 16"):
        fit_population([three[0], changed(three[0], model={"d_model": 32})], here[:2])
    with pytest.raises(BadInput, match="two runs of a population"):
        fit_population(three[:2], [here[0], here[0]])
    with pytest.raises(BadInput, match="did you mean 'vmap'"):
        fit_population(three[:2], here[:2], mode="vmpa")
    with pytest.raises(BadInput, match="give 1 to 2"):
        fit_population(three[:2], here[:2], mode="vmap", width=3)
    with pytest.raises(BadInput, match="one experiment or more"):
        fit_population([], [])
    for experiments, options, words in (
        (3, {}, "experiments is 3; give a list"),
        ("tiny", {}, "experiments is 'tiny'; give a list"),
        ([three[0], 3], {}, r"experiments\[1\] is 3"),
        (three[:2], {"workdirs": 3}, "workdirs is 3"),
        (three[:2], {"workdirs": [3, 4]}, r"workdirs\[0\] is 3"),
        (three[:2], {"mode": 3}, "mode is 3; give one of auto, sequential"),
        (three[:2], {"mode": "vmap", "width": "a"}, "width is 'a'"),
        (three[:2], {"mode": "vmap", "width": 1.5}, "width is 1.5"),
        (three[:2], {"width": 2}, "mode is 'auto', which chooses it"),
        (three[:2], {"keep_steps": [()]}, "keep_steps has 1 entries for 2"),
        (three[:2], {"keep_steps": [(), ["a"]]}, r"keep_steps holds \['a'\]"),
    ):
        with pytest.raises(BadInput, match=words):
            fit_population(experiments, **{"workdirs": here[:2], **options})
    assert not any(tmp_path.iterdir())
