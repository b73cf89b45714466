"""Points that are really trained: in this process, by workers, on shared trunks, after failures."""

import json
import subprocess
import sys

import numpy as np
import pytest

import gptjax
from gptjax import Sweep, population, runs
from gptjax.errors import BadInput
from gptjax.sweeps import worker
from gptjax.sweeps.command import show_plan
from gptjax.sweeps.folder import SweepFolder
from gptjax.sweeps.grid import rows, values
from gptjax.sweeps.runner import run_sweep
from gptjax.sweeps.status import show_status
from gptjax.sweeps.trunks import Branch, find_branches
from gptjax.training.stacked import Mode
from tests.conftest import changed
from tests.training.test_loop import assert_same_run, steps_saved
from tests.training.test_loop import rows as logged


@pytest.fixture(scope="module")
def base(tiny):
    """The tiny run with a rate that stays until a cooldown."""
    optim = {"schedule": "wsd", "warmup_steps": 3, "warmup_fraction": 0.0, "decay_fraction": 0.3}
    return changed(tiny, optim=optim, train={"tokens": 0, "steps": 11, "sample_tokens": 0})


@pytest.fixture(scope="module")
def trunks(base, tmp_path_factory):
    """A finished sweep of one shape on three lengths, the longest of them the trunk."""
    sweep = Sweep("trunks", base, values("train.steps", 11, 23, 17), share_trunks=True)
    path = tmp_path_factory.mktemp("sweeps") / "trunks"
    return sweep, run_sweep(sweep, path, launcher="here", report=False)


def test_branches_are_found_where_the_cooldown_begins(base):
    sweep = Sweep("trunks", base, values("train.steps", 11, 23, 17))
    short, trunk, middle = sweep.points
    branches = find_branches({point.name: point for point in sweep.points})
    assert branches == {
        short.name: Branch(trunk.name, 11 - 4),
        middle.name: Branch(trunk.name, 17 - 6),
    }
    other = Sweep("rates", base, values("optim.lr", 1e-3, 2e-3))
    assert not find_branches({point.name: point for point in other.points})


def test_a_branch_ends_as_if_it_had_been_trained_alone(base, trunks, tmp_path):
    sweep, result = trunks
    assert [state.status for state in result.states.values()] == ["done"] * 3
    short, trunk, middle = (result.folder.workdir(point.name) for point in sweep.points)
    assert {7, 11} <= set(steps_saved(trunk))
    assert logged(short)[:7] == logged(trunk)[:7] and steps_saved(middle)[-1] == 17
    alone = gptjax.fit(sweep.points[0].experiment, tmp_path / "alone")
    again = gptjax.fit(sweep.points[0].experiment, short)  # finished: it only reads
    assert_same_run(again, alone)


def test_the_table_of_a_sweep(trunks):
    sweep, result = trunks
    table = result.folder.runs()
    assert table.names == tuple(point.name for point in sweep.points)
    np.testing.assert_allclose(table.flops, [point.flops for point in sweep.points])
    assert list(table.column("train.steps")) == ["11", "23", "17"]
    longer = table.loss[1] < table.loss[0]
    assert longer and np.isfinite(table.column("seconds")).all()


def test_status_and_plan_name_every_point(trunks, capsys):
    sweep, result = trunks
    show_status(result.folder, list(result.folder.points))
    shown = capsys.readouterr().out
    assert all(point.name in shown for point in sweep.points) and "3 done" in shown
    show_plan(sweep, launcher="here")
    shown = capsys.readouterr().out
    assert "3 points, 1 compiled program," in shown and "expected wall time" in shown


def test_a_finished_sweep_is_left_alone(trunks):
    sweep, result = trunks
    before = result.folder.ledger.events()
    again = run_sweep(sweep, result.folder.path, launcher="here", report=False)
    assert again.folder.ledger.events() == before


def test_failures_are_tried_again_and_divergence_is_a_result(base, tmp_path, monkeypatch):
    grid = rows(
        {"name": "breaks", "train.seed": 1},
        {"name": "diverges", "optim.lr": 1e30, "optim.clip_norm": 0.0},
        {"name": "works", "train.seed": 2},
    )
    sweep = Sweep("mixed", base, grid, attempts=2)
    fit, tried = runs.fit, []

    def sometimes(experiment, *arguments, **options):
        tried.append(experiment.name.split("-")[0])
        if tried[-1] == "breaks":
            raise RuntimeError("out of memory")
        return fit(experiment, *arguments, **options)

    monkeypatch.setattr(runs, "fit", sometimes)
    result = run_sweep(sweep, tmp_path / "mixed", launcher="here", report=False)
    by_label = {name.split("-")[0]: state for name, state in result.states.items()}
    assert sorted(tried) == ["breaks", "breaks", "diverges", "works"]
    assert by_label["breaks"].status == "failed"
    assert by_label["breaks"].error == "RuntimeError: out of memory"
    assert by_label["diverges"].status == "diverged" and "not finite" in by_label["diverges"].error
    assert by_label["works"].status == "done" and len(result.failed) == 1
    assert len(result.folder.runs()) == 1


def test_points_of_one_program_train_as_a_population(base, tmp_path, monkeypatch):
    monkeypatch.setattr(population, "choose_mode", lambda *_: Mode("map", 2))
    grid = rows({"optim.lr": 1e-3}, {"optim.lr": 3e-3}, {"model.d_ff": 24})
    sweep = Sweep("together", base, grid, together=2)
    result = run_sweep(sweep, tmp_path / "together", launcher="here", report=False)
    assert [state.status for state in result.states.values()] == ["done"] * 3
    one, other, odd = (result.states[point.name].figures for point in sweep.points)
    assert one["validation_loss"] != other["validation_loss"] and odd["steps"] == 11
    started = [row["point"] for row in result.folder.ledger.events() if row["event"] == "start"]
    pair = {sweep.points[0].name, sweep.points[1].name}
    assert pair in ({*started[:2]}, {*started[1:]})


def test_workers_of_a_runner_share_the_points(base, tmp_path):
    sweep = Sweep("two", base, values("train.seed", 0, 1, 2))
    code = """
import sys
from gptjax.experiment import Experiment
from gptjax.sweeps.grid import values
from gptjax.sweeps.runner import run_sweep
from gptjax import Sweep, population, runs
import json
base = Experiment.from_json(json.loads(sys.argv[1]))
run_sweep(Sweep("two", base, values("train.seed", 0, 1, 2)), sys.argv[2], workers=2, report=False)
"""
    arguments = [json.dumps(base.to_json()), str(tmp_path / "two")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = SweepFolder.open(tmp_path / "two")
    assert set(folder.points) == {point.name for point in sweep.points}
    assert all(s.status == "done" and s.starts == 1 for s in folder.ledger.states().values())
    finished = [row for row in folder.ledger.events() if row["event"] == "done"]
    assert len(finished) == 3


def test_bad_sweeps_and_patterns_are_refused(base, trunks, tmp_path):
    sweep, result = trunks
    with pytest.raises(BadInput, match="names no point of trunks"):
        run_sweep(sweep, result.folder.path, only=("seed-9",), launcher="here", report=False)
    with pytest.raises(BadInput, match="holds the sweep trunks, not other"):
        run_sweep(Sweep("other", base, values("train.seed", 0)), result.folder.path)
    with pytest.raises(BadInput, match="holds a single run"):
        run_sweep(sweep, result.folder.workdir(sweep.points[0].name))
    with pytest.raises(BadInput, match="holds no sweep"):
        SweepFolder.open(tmp_path)
    with pytest.raises(BadInput, match="did you mean 'slurm'"):
        run_sweep(Sweep("x", base, values("train.seed", 0)), tmp_path / "x", launcher="slurn")
    assert worker.main([str(tmp_path / "nowhere")]) == 2
    assert result.folder.select(("steps=17", "steps-11")) == [
        sweep.points[2].name,
        sweep.points[0].name,
    ]
