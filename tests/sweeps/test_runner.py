"""What a runner and its workers do when stopped, and when points fail; without training."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from gptjax import Sweep, command_line, population, registry, runs
from gptjax.errors import BadInput, Trouble
from gptjax.sweeps import worker
from gptjax.sweeps.folder import SweepFolder
from gptjax.sweeps.grid import values
from gptjax.sweeps.runner import run_sweep
from gptjax.training.signals import Preempted
from tests.sweeps.synthetic import BASE

SEEDS = Sweep("seeds", BASE, values("train.seed", 0, 1), attempts=2)

# A sweep whose workers are stand-ins: they say their process and save for as long as they are told.
RUNNER = """
import signal, sys
from gptjax import command_line, registry
from gptjax.sweeps import launchers, runner
from gptjax.sweeps.grid import values
from gptjax.sweeps.sweep import Sweep
from tests.sweeps.synthetic import BASE

registry._functions["stand_in"] = lambda: Sweep("stand_in", BASE, values("train.seed", 0, 1))
worker = f'''
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep({sys.argv[2]}), sys.exit(75)))
open(sys.argv[1] + "/" + str(os.getpid()), "w").close()
time.sleep(60)
'''
launchers.worker_command = lambda *_: [sys.executable, "-c", worker, sys.argv[1]]
runner.backend = lambda: "tpu"
code = command_line.main(["--exp=stand_in", "--workers=2", "--workdir=" + sys.argv[1] + "/sweep"])
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.exit(code)
"""


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("presses", "saving", "code"), [(2, 1, 75), (3, 60, 130)])
def test_ctrl_c_again_and_again(tmp_path, presses, saving, code):
    command = [sys.executable, "-c", RUNNER, str(tmp_path), str(saving)]
    runner = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 60
    while len(workers := [p.name for p in tmp_path.iterdir() if p.name.isdigit()]) < 2:
        assert time.monotonic() < until and runner.poll() is None, runner.stderr.read()
        time.sleep(0.05)
    for _ in range(presses):
        os.killpg(runner.pid, signal.SIGINT)
        time.sleep(0.3)
    error = runner.communicate(timeout=30)[1]
    assert runner.returncode == code and "Traceback" not in error, error
    assert not any(alive(int(name)) for name in workers)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{}", "--cpus=abc"], "--cpus=abc is no list of CPUs that this process may use: "),
        (["{}", "--cpus=99999"], "--cpus=99999 is no list"),
        (["{}", "--cpus=0,"], "--cpus=0, is no list"),
        (["{}", "--cups=1"], "unrecognized arguments: --cups=1"),
        (["{}"], "holds no sweep"),
        (["{}/none"], "holds no sweep"),
        ([], "arguments are required: folder"),
    ],
)
def test_a_worker_refuses_in_one_line(tmp_path, capsys, arguments, words):
    assert worker.main([text.format(tmp_path) for text in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1


def test_what_the_grid_sets_is_not_overridden(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(registry, "_functions", {"seeds": lambda: SEEDS})
    place = f"--workdir={tmp_path / 'seeds'}"
    assert command_line.main(["--exp=seeds", "--train.seed=3", place]) == 2
    assert "--train.seed is set by the grid of seeds, point by point; --only=seed=VALUE" in (
        capsys.readouterr().err
    )
    assert not any(tmp_path.iterdir())


@pytest.fixture
def outcomes(monkeypatch):
    """Training that ends as told: by a list of errors, or of None for a point that is done."""
    told = []

    def fit(experiment, workdir, keep_steps=()):
        outcome = told.pop(0) if told else None
        if outcome is not None:
            raise outcome
        return SimpleNamespace(figures={"validation_loss": 2.0, "sample": "x"})

    def fit_population(experiments, workdirs, keep_steps):
        return [fit(experiment, None) for experiment in experiments]

    monkeypatch.setattr(runs, "fit", fit)
    monkeypatch.setattr(population, "fit_population", fit_population)
    return told


def states_of(path):
    folder = SweepFolder.open(path)
    assert all(folder.ledger.running(point) is None for point in folder.points)
    return [folder.ledger.state(point) for point in folder.points]


@pytest.mark.parametrize(
    "error",
    [Trouble("the disk is full"), Preempted("stopped"), KeyboardInterrupt()],
)
def test_troubles_of_the_machine_cost_no_attempt(tmp_path, outcomes, error):
    for _ in range(3):  # more often than there are attempts
        outcomes.append(error)
        with pytest.raises(type(error)):
            run_sweep(SEEDS, tmp_path, launcher="here", report=False)
    for state in states_of(tmp_path):
        assert state.status == "waiting" and state.failures == state.deaths == 0
    result = run_sweep(SEEDS, tmp_path, launcher="here", report=False)  # the same process may go on
    assert all(state.status == "done" for state in result.states.values())
    assert "sample" not in next(iter(result.states.values())).figures


def test_bad_input_fails_a_point_at_once_and_others_go_on(tmp_path, outcomes):
    outcomes.append(BadInput("data.files matches no file"))
    run_sweep(SEEDS, tmp_path, launcher="here", report=False)
    assert [(state.status, state.starts) for state in states_of(tmp_path)] == [
        ("failed", 1), ("done", 1)
    ]  # fmt: skip
    run_sweep(SEEDS, tmp_path, launcher="here", retry_failed=True, report=False)
    assert [state.status for state in states_of(tmp_path)] == ["done", "done"]


def test_members_of_a_population_that_fails_are_tried_alone(tmp_path, outcomes):
    outcomes += [RuntimeError("out of memory"), RuntimeError("again"), None]
    pair = Sweep("seeds", BASE, SEEDS.grid, attempts=1, together=2)
    run_sweep(pair, tmp_path, launcher="here", report=False)
    first, second = states_of(tmp_path)
    assert (first.status, first.error) == ("failed", "RuntimeError: again")
    assert second.status == "done" and first.starts == second.starts == 1
