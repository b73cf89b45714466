"""What keeps a folder to its plan: one writer, the base, damage, options refused before a write."""

import dataclasses
import json

import pytest

from gptjax.command_line import parse
from gptjax.errors import BadInput, DamagedData
from gptjax.sweeps import design
from gptjax.sweeps.command import run_command
from gptjax.sweeps.design import run_planned
from gptjax.sweeps.folder import SweepFolder
from gptjax.sweeps.planned import read_plan, read_tuned
from gptjax.sweeps.tuning import Tuning
from tests.conftest import changed
from tests.sweeps.synthetic import BASE
from tests.sweeps.test_design import PLACE, measured
from tests.sweeps.test_tuning import DESIGN, fake_run, sweep_of


@pytest.fixture
def ran(monkeypatch):
    """The sweeps of the main stage, which leave a sweep.json and train nothing."""
    found = []

    def run(sweep, path, **_):
        if path.name == "tuning":
            fake_run(sweep, path)
        else:
            SweepFolder.create(sweep, path)
            found.append(sweep)

    monkeypatch.setattr(design, "run_sweep", run)
    monkeypatch.setattr(design, "find_place", lambda *_: PLACE)
    monkeypatch.setattr(design, "measured", measured)
    return found


def test_the_second_runner_takes_the_plan_of_the_first(ran, monkeypatch, tmp_path):
    sweep, plans = sweep_of(), []
    real = design.plan_sweep

    def late(*args, **options):
        plan = real(*args, **options)
        if not plans:  # another runner plans while this one does, on a faster machine
            plans.append(plan)
            other = design.for_budget(sweep, 5e13)
            design.write_plan(tmp_path, other, design.Wish(minutes=5), 0.0)
        return plan

    monkeypatch.setattr(design, "plan_sweep", late)
    run_planned(sweep, tmp_path, minutes=5)
    assert ran[0].design == design.for_budget(sweep, 5e13).design != plans[0].sweep.design


def test_a_plan_of_another_base_is_refused(ran, tmp_path):
    run_planned(sweep_of(), tmp_path, budget=5e13)
    other = changed(BASE, model={"activation": "swiglu"}, optim={"b2": 0.9})
    with pytest.raises(BadInput, match=r"model.activation 'gelu\w*', not 'swiglu' \(and"):
        run_planned(sweep_of(other), tmp_path, budget=5e13)
    wider = dataclasses.replace(DESIGN, spread=4.0)
    with pytest.raises(BadInput, match=r"for design.spread 8.0, not 4.0: give another"):
        run_planned(sweep_of(design=wider), tmp_path, budget=5e13)
    run_planned(sweep_of(changed(BASE, data={"workers": 3})), tmp_path, budget=5e13)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"only": "zzz"}, "--only=zzz names no point"),
        ({"only": 3}, "only is 3"),
        ({"launcher": "locl"}, "did you mean 'local'"),
        ({"workers": -3}, "workers is -3"),
        ({"workers": 10**9}, "give 1 to 4095"),
        ({"workers": "2"}, "workers is '2'"),
        ({"workers": 1.5}, "workers is 1.5"),
    ],
)
def test_options_are_refused_before_anything_is_written(ran, monkeypatch, tmp_path, options, words):
    monkeypatch.setattr(design, "measured", None)
    for wish in ({"budget": 5e13}, {"minutes": 5, "tune": True}):
        with pytest.raises(BadInput, match=words):
            run_planned(sweep_of(), tmp_path / "new", **wish, **options)
    assert not (tmp_path / "new").exists()


PLAN = {"sweep": "synthetic", "options": "--budget=5e+13", "tuning": None, "ratio": 0.0}
BUDGETS = [5, None, [], "ab", [0], ["x"], [1e400], [True]]


@pytest.mark.parametrize("budgets", BUDGETS)
def test_damaged_budgets_are_one_line(tmp_path, budgets):
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN, "budgets": budgets}))
    with pytest.raises(DamagedData, match=r"plan\.json is damaged \(.*budget.*\): remove it"):
        read_plan(tmp_path)
    (tmp_path / "tuned.json").write_text(json.dumps({"found": [], "budgets": budgets}))
    with pytest.raises(DamagedData, match=r"tuned\.json is damaged \(.*budget.*\): remove it"):
        read_tuned(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("plan", text) for text in ("", "{", "[]", "null", "3")),
        *(
            ("plan", json.dumps({**PLAN, "budgets": [1e13], "tuning": {}, "ratio": ratio}))
            for ratio in ("x", None, -1, 0)
        ),
        *(
            (
                "tuned",
                '{"budgets": [1e13], "found": [{"parameters": 1, "width": 1, "batch_tokens": 1,'
                f' "loss": 1, "lr": {lr}}}]}}',
            )
            for lr in ('"x"', -1, "1e999", "null")
        ),
        *(("tuned", f'{{"budgets": [1e13], "found": {text}}}') for text in ("[3]", "3", "{}")),
    ],
)
def test_other_damage_is_one_line(tmp_path, name, text):
    (tmp_path / f"{name}.json").write_text(text)
    with pytest.raises(DamagedData, match=rf"{name}\.json is damaged \(.*\): remove it"):
        (read_plan if name == "plan" else read_tuned)(tmp_path)


def test_a_lost_plan_is_taken_from_the_sweep(ran, monkeypatch, tmp_path):
    for name, tune in (("plain", False), ("tuned", True)):
        run_planned(sweep_of(), tmp_path / name, minutes=10, tune=tune)
        monkeypatch.setattr(design, "measured", None)
        (tmp_path / name / "plan.json").unlink()
        run_planned(sweep_of(), tmp_path / name, minutes=10, tune=tune)
        run_planned(sweep_of(), tmp_path / name, minutes=10, tune=tune)
        assert ran[0] == ran[1] == ran[2]
        if tune:
            (tmp_path / name / "tuned.json").unlink()
            with pytest.raises(BadInput, match="not planned with"):
                (tmp_path / name / "plan.json").rename(tmp_path / name / "away")
                run_planned(sweep_of(), tmp_path / name, minutes=10, tune=tune)
        ran.clear()
        monkeypatch.setattr(design, "measured", measured)


def test_lost_tuned_rates_are_found_again(ran, monkeypatch, tmp_path):
    run_planned(sweep_of(), tmp_path, minutes=10, tune=True)
    monkeypatch.setattr(design, "measured", None)
    before = json.loads((tmp_path / "tuned.json").read_text())
    (tmp_path / "tuned.json").unlink()
    run_planned(sweep_of(), tmp_path, minutes=10, tune=True)
    assert ran[0] == ran[1] and json.loads((tmp_path / "tuned.json").read_text()) == before


def test_status_before_the_main_stage(ran, monkeypatch, capsys, tmp_path):
    stop = lambda sweep, path, **_: SweepFolder.create(sweep, path) and 1 / 0
    monkeypatch.setattr(design, "run_sweep", stop)
    sweep, words = sweep_of(), "the runs of synthetic in groups of 2.5e+12, 1e+13 FLOPs, none"
    for number, tune in enumerate((False, True)):
        path = tmp_path / str(number)
        with pytest.raises(ZeroDivisionError):
            run_planned(sweep, path, budget=5e13 * (1 + 0.15 * tune), tune=tune)
        (path / "sweep.json").unlink(missing_ok=True)
        command = parse(["--exp=synthetic", "--status", f"--workdir={path}"])
        capsys.readouterr()
        assert run_command(sweep, command) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert words in shown and ("27 waiting" in shown) == ("not tuned yet" in shown) == tune


@pytest.mark.parametrize(
    ("sweep", "options", "words"),
    [
        *((sweep, {"minutes": 5}, "a Sweep is run") for sweep in (None, "tiny", 3)),
        (BASE, {"minutes": 5}, "single run"),
        *((None, {"budget": 5e13, "tune": tune}, f"tune is {tune!r}") for tune in ("no", None, 2)),
        (None, {"tune": True, "tuning": 3}, "tuning is 3"),
        (None, {"tune": True, "tuning": Tuning(batches=3)}, "tuning.batches is 3"),
        (None, {"tune": True, "tuning": Tuning(rates=5000)}, "tuning.rates is 5000"),
        (None, {"tune": True, "tuning": Tuning(batches=(1e300,))}, "tuning.batches holds 1e"),
        (None, {"minutes": 10**400}, "--minutes is a number of more than 308 digits"),
        (None, {"minutes": "5"}, "--minutes is '5'"),
        (None, {"minutes": 5, "path": 3}, "folder is 3"),
    ],
)
def test_what_is_no_plan_is_one_line(ran, sweep, options, words):
    sweep = sweep if words in ("a Sweep is run", "single run") else sweep_of()
    with pytest.raises(BadInput, match=words):
        run_planned(sweep, **options)
    with pytest.raises(BadInput, match="is 3, no IsoFlops"):
        sweep_of().planned(design=3)
