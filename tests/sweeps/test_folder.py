"""A sweep's folder: what it refuses, what damage it names, and where its points stand."""

import dataclasses
import errno
import json
import os
import shutil

import pytest

from gptjax import Analysis, Sweep, run_folder
from gptjax.errors import BadInput, DamagedData, Trouble
from gptjax.sweeps.folder import SweepFolder
from gptjax.sweeps.grid import values
from gptjax.sweeps.ledger import State
from gptjax.sweeps.report import write_report
from gptjax.sweeps.runner import SweepResult, exit_code, run_sweep
from gptjax.sweeps.status import show_status
from gptjax.sweeps.trunks import begin_from_trunk
from tests.sweeps.synthetic import BASE, fake, isoflop_sweep

RATES = Sweep("rates", BASE, values("optim.lr", 1e-3, 1e-2) * values("train.seed", 0, 1))


def finished(path, sweep=RATES, **options) -> SweepFolder:
    return fake(path, sweep, **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree["points"][0].update(row=None), "the row of lr-0.001_seed-0"),
        (lambda tree: tree["points"][0].update(group=3), "the group of lr-0.001"),
        (lambda tree: tree["points"][1].update(name="../up"), "the name of point 1"),
        (lambda tree: tree["points"][1].update(name=tree["points"][0]["name"]), "name of point 1"),
        (lambda tree: tree["points"][0]["experiment"].update(model=3), "lr-0.001.*experiment"),
        (lambda tree: tree["points"].insert(0, None), "the name of point 0"),
        (lambda tree: tree.update(points={}), "its points"),
        (lambda tree: tree.update(attempts="3"), "its attempts"),
        (lambda tree: tree.update(together=0), "its together is 0"),
        (lambda tree: tree.update(share_trunks=1), "its share_trunks"),
        (lambda tree: tree.update(analysis=None), "its analysis"),
        (lambda tree: tree["analysis"].update(laws=3), r"analysis\.laws is 3"),
        (lambda tree: tree["analysis"].update(odd=3), "its analysis.*'odd'"),
    ],
)
def test_damage_of_sweep_json_is_one_line(tmp_path, change, words):
    SweepFolder.create(RATES, tmp_path)
    tree = json.loads((tmp_path / "sweep.json").read_text())
    change(tree)
    (tmp_path / "sweep.json").write_text(json.dumps(tree))
    with pytest.raises(DamagedData, match=words):
        SweepFolder.open(tmp_path).analysis()
    SweepFolder.create(RATES, tmp_path)  # the sweep itself writes it anew
    assert list(SweepFolder.open(tmp_path).points) == [point.name for point in RATES.points]


@pytest.mark.parametrize("content", ["", "[", "3", "null", "{}"])
def test_a_sweep_json_of_something_else_is_one_line(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(DamagedData, match=r"sweep\.json is damaged"):
        SweepFolder.open(tmp_path)


def test_places_that_hold_no_sweep(tmp_path):
    (tmp_path / "file").touch()
    for path, words in (
        (tmp_path, "holds no sweep"),
        (tmp_path / "file", "is a file"),
        (tmp_path / ("x" * 300), "name is too long"),
        ("a\0b", "give a path"),
        (3, "the sweep's folder is 3"),
    ):
        with pytest.raises(BadInput, match=words):
            SweepFolder.open(path)
    with pytest.raises(BadInput, match="is a file"):
        SweepFolder.create(RATES, tmp_path / "file")


def test_points_do_not_change_under_a_worker(tmp_path):
    other = Sweep("rates", BASE, values("optim.lr", 5e-3))
    folder = SweepFolder.create(RATES, tmp_path)
    lease = folder.ledger.claim(RATES.points[0].name)
    with pytest.raises(BadInput, match="is being worked on with other points"):
        SweepFolder.create(other, tmp_path, fork=True)
    folder.ledger.give_back(lease)
    SweepFolder.create(other, tmp_path, fork=True)
    with pytest.raises(BadInput, match="started with other points meanwhile"):
        folder.check_unchanged()


def test_a_changed_sweep_does_not_take_over_a_folder(tmp_path, capsys):
    finished(tmp_path)
    before = (tmp_path / "sweep.json").read_bytes()
    base = dataclasses.replace(BASE, train=dataclasses.replace(BASE.train, steps=30))
    changed = dataclasses.replace(RATES, base=base)
    words = r"holds 4 points that rates no longer has \(train.steps: 3 -> 30\).*--fork"
    with pytest.raises(BadInput, match=words):
        SweepFolder.create(changed, tmp_path)
    assert (tmp_path / "sweep.json").read_bytes() == before
    assert "(train.steps: 3 -> 30)" in SweepFolder.open(tmp_path).differs_from(changed)
    more = dataclasses.replace(
        RATES, grid=values("optim.lr", 1e-3, 1e-2) * values("train.seed", 0, 1, 2)
    )
    grown = SweepFolder.create(more, tmp_path)
    assert sum(state.finished for state in grown.ledger.states().values()) == 4
    SweepFolder.create(changed, tmp_path, fork=True)
    assert grown.workdir(RATES.points[0].name).is_dir()


def test_a_single_run_does_not_go_into_a_sweep(tmp_path):
    SweepFolder.create(RATES, tmp_path)
    with pytest.raises(BadInput, match="holds a sweep, not a single run"):
        run_folder.check_folder(tmp_path)


def test_patterns_choose_by_name_and_by_number(tmp_path):
    folder = SweepFolder.create(RATES, tmp_path)
    names = list(folder.points)
    assert folder.select("lr=1e-2") == folder.select(("optim.lr=0.01",)) == names[2:]
    assert folder.select(()) == names and folder.select(("seed=1", "lr=1e-2")) == [
        names[1], names[3], names[2]
    ]  # fmt: skip
    words = r"--only=lr=1 names no point of rates: optim.lr is one of 0.001, 0.01$"
    with pytest.raises(BadInput, match=words):
        folder.select(("lr=1",))
    with pytest.raises(BadInput, match=r"of rates: the grid sets optim.lr, train.seed$"):
        folder.select(("rate=1",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"launcher": "slurn"}, "did you mean 'slurm'"),
        ({"launcher": 3}, "--launcher=3 is not one of here, local, ray, slurm"),
        ({"workers": -1}, "workers is -1; give 1 "),
        ({"workers": True}, "workers is True"),
        ({"only": 3}, "only is 3; give parts of points' names"),
        ({"path": 3}, "the sweep's folder is 3"),
    ],
)
def test_a_finished_sweep_refuses_bad_options_too(tmp_path, options, words):
    finished(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(BadInput, match=words):
        run_sweep(RATES, **{"path": tmp_path, **options})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_exit_codes(tmp_path):
    codes = {"done": 0, "diverged": 0, "waiting": 75, "failed": 1}
    for status, code in codes.items():
        states = {"a": State("done"), "b": State(status)}
        assert exit_code(SweepResult(None, states)) == code


def test_status_counts_what_it_shows(tmp_path, capsys, monkeypatch):
    waiting = State("waiting")
    folder = finished(tmp_path, states={1: waiting, 2: waiting, 3: State("failed", {}, "boom")})
    names = list(folder.points)
    (folder.ledger.folder / f"{names[2]}.json").unlink()  # never begun
    log = folder.workdir(names[1]) / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": "x", "loss": "low"}\n')
    lease = folder.ledger.claim(names[1])
    show_status(folder, names)
    assert "1 done, 1 failed, 1 running, 1 waiting" in capsys.readouterr().out
    folder.ledger.give_back(lease)
    show_status(folder, names)
    assert "1 done, 1 failed, 1 stopped, 1 waiting" in capsys.readouterr().out


def test_points_and_ledger_may_be_deleted_by_hand(tmp_path, capsys):
    folder = finished(tmp_path)
    shutil.rmtree(tmp_path / "points")
    show_status(folder, list(folder.points))
    assert "4 done" in capsys.readouterr().out
    assert "Lowest loss" in write_report(folder).summary[0]
    shutil.rmtree(tmp_path / "ledger")
    again = SweepFolder.open(tmp_path)
    show_status(again, list(again.points))
    assert "4 waiting" in capsys.readouterr().out
    assert again.ledger.claim(next(iter(again.points))) is not None


def test_a_report_on_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch):
    folder = finished(tmp_path)
    out = write_report(folder).path
    kept = {name: (tmp_path / name).read_bytes() for name in ("report.html", "runs.csv")}
    replace = os.replace

    def full(source, target):
        if str(target).endswith((".csv", ".html")):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(Trouble, match="the disk is full"):
        write_report(folder)
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept and out.exists()


@pytest.mark.parametrize("status", ["diverged", "failed", "waiting"])
def test_a_report_of_nothing_done(tmp_path, status):
    every = {number: State(status, {}, "") for number in range(20)}
    folder = fake(tmp_path, isoflop_sweep(), states=every)
    assert write_report(folder).summary == [
        "No point has finished with a finite loss: there is nothing to fit."
    ]


def test_a_report_of_one_group(tmp_path):
    sweep = isoflop_sweep(budgets=(4e11,), holdout=4.0, bootstrap=20)
    said = write_report(fake(tmp_path, sweep)).summary
    assert said[0].startswith("Lowest loss")


def test_a_damaged_trunk_is_left_alone(tmp_path):
    said = []
    step = tmp_path / "trunk" / "checkpoints" / "7"
    step.mkdir(parents=True)
    (step / "junk").write_text("x")
    assert not begin_from_trunk(tmp_path / "trunk", 7, tmp_path / "run", BASE, said.append)
    assert "damaged" in said[-1] and not (tmp_path / "run").exists()
    assert not begin_from_trunk(tmp_path / "gone", 7, tmp_path / "run", BASE, said.append)


def test_in_python_a_sweep_writes_its_report_too(tmp_path):
    quick = dataclasses.replace(RATES, analysis=Analysis(laws=()))
    finished(tmp_path, quick)
    result = run_sweep(quick, tmp_path)
    assert result.report.path == tmp_path / "report.html" and result.report.path.exists()
    assert len(result.runs) == 4 and result.best in result.folder.points
    assert repr(result) == f"<SweepResult of rates in {tmp_path}: 4 done, best {result.best}>"
    with pytest.raises(BadInput, match=r"synthetic is a single run; use gptjax\.fit"):
        run_sweep(BASE, tmp_path)
