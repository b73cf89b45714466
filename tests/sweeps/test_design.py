"""Plans for minutes and for FLOPs, with times that are given: nothing is measured or trained."""

import dataclasses
import json

import pytest

from gptjax import Sweep, registry
from gptjax.command_line import parse
from gptjax.errors import BadInput, DamagedData
from gptjax.scaling.flops import count_flops
from gptjax.sweeps import design
from gptjax.sweeps.command import show_plan
from gptjax.sweeps.design import Wish, every_shape, for_budget, for_minutes, plan_sweep, run_planned
from gptjax.sweeps.grid import rows, values
from gptjax.sweeps.measure import Cost
from gptjax.sweeps.schedule import schedule
from gptjax.sweeps.timing import Place
from gptjax.sweeps.tuning import Tuning
from tests.sweeps.synthetic import BASE
from tests.sweeps.test_tuning import best_rate, fake_run, sweep_of

PLACE = Place("a device", "cpu", ((0,), (1,)))


def cost_of(point, speed=5e10) -> Cost:
    e = point.experiment
    step = count_flops(e.model, e.data.sequence_length).training * e.tokens_per_step / speed
    return Cost(start=5.0, begin=3.0, run=1.0, step=step, evaluation=0.1, save=0.05, when=1.0)


def measured(points, place, *_):
    return {point.program: cost_of(point) for point in points}


@pytest.fixture
def given_times(monkeypatch):
    """Times of an imagined device of two workers."""
    monkeypatch.setattr(design, "find_place", lambda *_: PLACE)
    monkeypatch.setattr(design, "measured", measured)


def wall(sweep) -> float:
    return schedule(sweep.points, measured(sweep.points, PLACE), 2, sweep.share_trunks).wall


def test_minutes_are_filled_and_refused_where_they_cannot_be():
    sweep = sweep_of()
    costs = measured(every_shape(sweep).points, PLACE)
    assert len(costs) == 6
    before = 0.0
    for minutes in (3, 8, 20):
        planned = for_minutes(sweep, minutes, costs, 2)
        planned.validate()
        assert 0.93 * minutes < wall(planned) / 60 <= minutes
        assert planned.design.total > before and planned.design.budgets[0] < 1e13
        assert all(float(f"{b:.2g}") == b for b in planned.design.budgets)
        before = planned.design.total
    later = for_minutes(sweep, 8, costs, 2, before=lambda total: 60.0)
    assert 0.9 * 7 < wall(later) / 60 <= 7
    with pytest.raises(BadInput, match=r"--minutes=0.2 is too short .* smallest plan takes \d"):
        for_minutes(sweep, 0.2, costs, 2)
    with pytest.raises(BadInput, match=r"more than the shapes .* are the most on this machine"):
        for_minutes(sweep, 1e6, costs, 2)
    unknown = dict.fromkeys(costs, "a step of 3T is too large for this CPU")
    with pytest.raises(BadInput, match="on this machine: a step of 3T is too large"):
        for_minutes(sweep, 5, unknown, 2)


def test_budgets_are_kept_and_refused_where_they_cannot_be():
    sweep = sweep_of()
    planned = for_budget(sweep, 5e13)
    assert planned.flops == pytest.approx(5e13, rel=0.03)
    assert {point.group for point in planned.points} == {"2.5e+12", "1e+13"}
    for total, words in ((1e6, "too few: give"), (1e22, "has a use for: give")):
        with pytest.raises(BadInput, match=words):
            for_budget(sweep, total)


def test_grid_and_design_agree():
    sweep = sweep_of()
    sweep.validate()
    for changed in (
        {"grid": rows(*sweep.grid.rows[1:])},
        {"design": sweep.design.scaled(3e13)},
        {"design": "isoflop"},
    ):
        with pytest.raises(BadInput, match="design"):
            dataclasses.replace(sweep, **changed).validate()
    model = dataclasses.replace(BASE.model, activation="swiglu")
    other = sweep.planned(dataclasses.replace(BASE, model=model))
    other.validate()
    assert other.flops == pytest.approx(sweep.flops, rel=0.03)
    plain = Sweep("plain", BASE, values("train.seed", 0, 1))
    assert plain.planned(BASE) == plain


@pytest.mark.parametrize(
    ("name", "wish", "words"),
    [
        ("sweep_lr_width", Wish(minutes=5), "--minutes=5: sweep_lr_width has no design"),
        ("sweep_lr_width", Wish(tune=True), "--tune: sweep_lr_width has no design"),
        ("plan_chinchilla", Wish(minutes=5), "is a plan, too large"),
        ("sweep_cpu_10min", Wish(minutes=5, budget=1e14), "give one"),
        ("sweep_cpu_10min", Wish(minutes=-5), "--minutes is -5"),
        ("sweep_cpu_10min", Wish(minutes="5"), "--minutes is '5'"),
        ("sweep_cpu_10min", Wish(budget=float("nan")), "--budget is nan"),
        ("sweep_cpu_10min", Wish(), "give minutes"),
    ],
)
def test_wishes_that_cannot_be_are_one_line(name, wish, words):
    with pytest.raises(BadInput, match=words):
        plan_sweep(registry.get(name), wish)


@pytest.mark.parametrize("text", ["0", "-3", "nan", "inf", "ten", "1e999", "3m"])
def test_options_are_numbers_above_nothing(text):
    for option in ("minutes", "budget"):
        with pytest.raises(BadInput, match=f"--{option}={text} is no number of"):
            parse(["--exp=sweep_cpu_10min", f"--{option}={text}"])
    assert parse(["--minutes", "2.5"]).minutes == 2.5 and parse(["--budget=1e14"]).budget == 1e14


def test_minutes_of_other_machines_are_refused():
    with pytest.raises(BadInput, match="--launcher=slurm works on other machines"):
        plan_sweep(registry.get("sweep_cpu_10min"), Wish(minutes=5), launcher="slurm")


def test_a_folder_goes_on_with_the_plan_it_has(given_times, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(design, "run_sweep", lambda sweep, path, **_: ran.append((sweep, path)))
    sweep, path = sweep_of(), tmp_path / "sweep"
    run_planned(sweep, path, minutes=5)
    slower = lambda points, *_: {p.program: cost_of(p, speed=1e10) for p in points}
    monkeypatch.setattr(design, "measured", slower)
    run_planned(sweep, path, minutes=5)
    assert ran[0] == ran[1] and ran[0][0].design != sweep.design
    run_planned(sweep, tmp_path / "later", minutes=5)
    assert ran[2][0].design.total < ran[0][0].design.total
    for wish in ({"minutes": 6}, {"budget": 1e13}, {"minutes": 5, "tune": True}):
        with pytest.raises(BadInput, match="was planned for synthetic with --minutes=5"):
            run_planned(sweep, path, **wish)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "sweep.json").write_text("{}")
    with pytest.raises(BadInput, match="not planned with --budget=1e"):
        run_planned(sweep, tmp_path / "plain", budget=1e13)
    (path / "plan.json").write_text("{")
    with pytest.raises(DamagedData, match=r"plan\.json"):
        run_planned(sweep, path, minutes=5)
    monkeypatch.chdir(tmp_path)
    run_planned(sweep, budget=5e13)
    assert (tmp_path / "runs" / "synthetic-5e13FLOP" / "plan.json").exists()


def test_minutes_without_hope_are_refused_at_once(monkeypatch):
    asked = []

    def slow(points, place, say, check):
        asked.append(len(points))
        check({})
        point = points[0]
        check({point.program: dataclasses.replace(cost_of(point, speed=1e9), cpu=0.2)})

    monkeypatch.setattr(design, "find_place", lambda *_: PLACE)
    monkeypatch.setattr(design, "measured", slow)
    with pytest.raises(BadInput, match=r"takes 0.3 minutes or more on this machine$"):
        plan_sweep(sweep_of(), Wish(minutes=0.1))
    assert not asked
    with pytest.raises(BadInput, match=r"minutes or more on .* busy .* --remeasure measures"):
        plan_sweep(sweep_of(), Wish(minutes=0.5))
    assert asked and parse(["--remeasure"]).remeasure


def test_tuned_rates_and_the_rest_of_the_minutes(given_times, monkeypatch, tmp_path):
    stages, ran = [], []

    def run(sweep, path, **options):
        if path.name == "tuning":
            stages.append(len(sweep.points))
            fake_run(sweep, path)
        else:
            ran.append(sweep)

    monkeypatch.setattr(design, "run_sweep", run)
    sweep, path = sweep_of(), tmp_path / "sweep"
    plan = plan_sweep(sweep, Wish(minutes=10, tune=True), path)
    assert not path.exists()
    alone = plan_sweep(sweep, Wish(minutes=10), path)
    assert len(plan.tuning.points) == 27
    assert plan.sweep.design.total < alone.sweep.design.total
    run_planned(sweep, path, minutes=10, tune=True)
    tuned = ran[0].design
    assert stages == sorted(stages) and stages[0] == 27
    for point in ran[0].points:
        assert point.experiment.optim.lr == pytest.approx(best_rate(point.parameters), rel=0.03)
    last = design.look(plan.sweep, Tuning(), plan.ratio, path / "tuning")
    spent = schedule(last.sweep.points, measured(last.sweep.points, PLACE), 2).wall
    assert wall(ran[0]) + spent < 10.3 * 60 and tuned.total < plan.sweep.design.total
    run_planned(sweep, path, minutes=10, tune=True)
    assert ran[1] == ran[0] and len(stages) == last.rounds
    saved = json.loads((path / "tuned.json").read_text())
    assert len(saved["found"]) == 3 and saved["rounds"] == last.rounds
    with pytest.raises(BadInput, match="was planned for"):
        run_planned(sweep, path, minutes=10, tune=True, tuning=Tuning(shapes=2))


def test_a_plan_shows_what_is_expected(given_times, monkeypatch, capsys):
    from gptjax.sweeps import timing

    monkeypatch.setattr(timing, "find_place", lambda *_: PLACE)
    monkeypatch.setattr(timing, "measured", lambda points, *_: measured(points, PLACE))
    show_plan(registry.get("sweep_cpu_10min"))
    shown = capsys.readouterr().out
    for words in (
        "8 compiled programs",
        "12 points branch off 7 others, which saves 15% of the FLOPs",
        "with 2 workers, from start to report",
        "one point at a time",
        "kept for 24 hours; --remeasure measures them again",
    ):
        assert words in shown
    show_plan(registry.get("plan_chinchilla"))
    shown = capsys.readouterr().out
    assert "not measured for 20 programs (a plan only)" in shown
    assert "3,000E" in shown and "1e+03" not in shown
    assert "H100-days at 40% of 989 TFLOP/s (bf16)" in shown
