"""The line that says how far a sweep is, on a terminal and without one."""

import dataclasses
import re

import pytest

from gptjax.sweeps import status
from gptjax.sweeps.ledger import State
from gptjax.sweeps.status import Pace, SweepProgress
from gptjax.training.workdir import write_json
from tests.sweeps.synthetic import fake, isoflop_sweep


@pytest.fixture
def half_done(tmp_path, monkeypatch):
    """A folder of which nothing is done, a function that finishes the costlier half of it, time."""
    sweep = isoflop_sweep(budgets=(4e11, 8e11), per_budget=3)
    folder = fake(tmp_path / "runs", sweep)
    for point in sweep.points:
        write_json(folder.path / "ledger" / f"{point.name}.json", dataclasses.asdict(State()))

    def finish():
        for point in sweep.points[3:]:
            done = State("done", {"validation_loss": 3.0}, starts=1)
            path = folder.path / "ledger" / f"{point.name}.json"
            write_json(path, dataclasses.asdict(done))

    seconds = [0.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: seconds[0])
    return folder, finish, seconds


def test_the_time_left_follows_the_flops(half_done):
    folder, finish, seconds = half_done
    pace = Pace(folder, list(folder.points))
    assert pace.look() == (0.0, "0/6 points", "")
    finish()
    seconds[0] = 60.0
    share, points, left = pace.look()
    assert share == pytest.approx(2 / 3, rel=0.01) and points == "3/6 points"
    assert left == " · 00:30 left"


def test_without_a_terminal_a_line_says_percent_and_time_left(half_done, capsys):
    folder, finish, seconds = half_done
    progress = SweepProgress(folder, list(folder.points))
    for second in (0.0, 1.0, 40.0):
        if second:
            finish()
        seconds[0] = second
        progress.update(2)
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "0% · 0/6 points · 2 workers" and len(lines) == 2
    assert re.fullmatch(r"67% · 3/6 points · 2 workers · 00:\d\d left", lines[1])


def test_a_hundred_percent_are_for_what_is_finished(half_done, capsys, monkeypatch):
    folder, finish, _ = half_done
    monkeypatch.setattr(status.time, "time", lambda: 1e12)
    names = list(folder.points)
    for name in names[:3]:  # all steps are done, the evaluation is not
        folder.ledger.give_back(folder.ledger.claim(name))
    finish()
    status.show_status(folder, names)
    said = capsys.readouterr().out
    assert "· 99% of the FLOPs\n" in said and ", model.d_model, " in said
    assert "since the first start" in said
    assert status.percent(0.9999) == "99%" and status.percent(1.0) == "100%"
    status.show_status(folder, names[3:])
    assert "100% of the FLOPs of these 3, 99% of those of all 6" in capsys.readouterr().out
