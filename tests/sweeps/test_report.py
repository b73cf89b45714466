"""The report of a sweep: what it says, with few points too, and that it is the same every time."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest

from gptjax.scaling.table import Runs
from gptjax.sweeps.analysis import analyse, split, tuned
from gptjax.sweeps.curves import read_curve, shared_with_trunks
from gptjax.sweeps.ledger import State
from gptjax.sweeps.report import write_report
from gptjax.sweeps.sweep import Analysis
from gptjax.sweeps.trunks import Branch
from tests.sweeps.synthetic import LAW, fake, isoflop_sweep

QUICK = {"laws": ("chinchilla", "kaplan_c"), "bootstrap": 20}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of 20 points with a divergence and a failure, reported once."""
    path = tmp_path_factory.mktemp("sweep")
    sweep = isoflop_sweep(holdout=4.0, predict=("1e15",), **QUICK)
    states = {
        3: State("diverged", {}, "the loss is not finite at step 57"),
        8: State("failed", {}, "RuntimeError: <b>out</b> of memory", failures=3),
    }
    folder = fake(path / "runs", sweep, states=states)
    write_report(folder)
    return folder


def page_text(folder) -> str:
    """The report without the scripts that draw it."""
    text = (folder.path / "report.html").read_text(encoding="utf-8")
    return re.sub(r"<script>.*?</script>", "", text, flags=re.S)


def test_the_law_is_told_as_plain_data(finished):
    law = json.loads((finished.path / "law.json").read_text())
    chinchilla, kaplan = law["laws"]
    interval = chinchilla["bootstrap"]["alpha"]
    assert interval["low"] < interval["estimate"] < interval["high"]
    assert abs(chinchilla["parameters"]["alpha"] - LAW["alpha"]) < 0.02
    assert len(kaplan["runs"]) == 3, "one run per budget: the lowest loss"
    assert len(law["held_out"]) == 5 and law["approach_2"]["fitted"]
    best = law["scores"][0]
    assert best["name"] == "chinchilla" and best["mean_absolute_error"] < 0.01
    assert {score["name"] for score in law["scores"] if score["baseline"]} == {
        "power law in C", "nearest run", "last value"
    }  # fmt: skip
    asked = next(b for b in law["optima"] if b["flops"] == 1e15 and b["by"] == "chinchilla")
    assert asked["parameters"]["low"] < asked["parameters"]["estimate"]
    assert asked["flags"][0].startswith("extrapolation")


def test_runs_csv_holds_every_point(finished):
    table = Runs.read_csv(finished.path / "runs.csv")
    assert table.names == tuple(finished.points)
    with open(finished.path / "runs.csv", newline="") as lines:
        row = next(csv.DictReader(lines))
    assert row["parameters"].isdigit() and row["tokens"].isdigit() and row["steps"].isdigit()
    assert np.isnan(table.loss).sum() == 2 and len(table.finite()) == 18
    assert list(table.columns["status"]).count("diverged") == 1
    assert set(table.columns["used"]) == {"fitted", "held out", ""}
    done = np.array(table.columns["status"]) == "done"
    # without the 5 seconds before the first step
    ratio = table.columns["training_seconds"][done] / (table.columns["seconds"][done] - 5.0)
    assert np.allclose(ratio, 1, atol=1e-6)


def test_the_page_says_what_happened(finished):
    text = page_text(finished)
    assert "18 done, 1 diverged, 1 failed" in text
    assert "the loss is not finite at step 57" in text
    assert "RuntimeError: &lt;b&gt;out&lt;/b&gt; of memory" in text
    assert "Compute-optimal at 1e+15 FLOPs by chinchilla: N = " in text
    for name in ("loss_flops", "isoflop", "contour", "residuals", "extrapolation"):
        assert f'id="plot-{name}"' in text
        assert (finished.path / "figures" / f"{name}.png").stat().st_size > 5000
    assert not re.search(r'(src|href)="(?!data:)', text), "nothing is fetched"


def test_the_report_is_the_same_every_time(finished):
    def files():
        paths = [finished.path / n for n in ("report.html", "law.json", "runs.csv")]
        return {p.name: p.read_bytes() for p in [*paths, *finished.path.glob("figures/*.png")]}

    before = files()
    (finished.path / "figures" / "left_over.png").write_bytes(b"")
    write_report(finished)
    assert files() == before


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_points_are_reported_in_words(tmp_path, count):
    sweep = isoflop_sweep(budgets=(4e11,), per_budget=4, **QUICK)
    rest = {i: State("diverged", {}, "the loss is not finite") for i in range(count, 4)}
    folder = fake(tmp_path / "runs", sweep, states=rest)
    write_report(folder)
    text = page_text(folder)
    law = json.loads((folder.path / "law.json").read_text())
    why = "needs at least" if count else "no run has finished"
    assert not law["laws"][0]["fitted"] and why in law["laws"][0]["why"]
    assert "Not fitted: " in text and f"{4 - count} diverged" in text
    assert ("there is nothing to fit" in text) == (count == 0)
    assert (folder.path / "figures" / "loss_flops.png").exists() == (count > 0)


def test_a_sweep_that_has_not_begun(tmp_path):
    folder = fake(tmp_path / "runs", isoflop_sweep(budgets=(4e11,), per_budget=4))
    for path in folder.path.glob("ledger/*.json"):
        path.unlink()
    write_report(folder)
    assert "4 waiting" in page_text(folder)
    assert Runs.read_csv(folder.path / "runs.csv").parameters.min() > 0


def test_an_unknown_law_and_an_absent_loss_are_said(tmp_path):
    sweep = isoflop_sweep(laws=("chinchila",), loss="population_loss", bootstrap=0)
    folder = fake(tmp_path / "runs", sweep)
    write_report(folder)
    text = page_text(folder)
    assert "did you mean &#x27;chinchilla&#x27;?" in text
    assert "has no population_loss" in text


def test_of_rival_settings_only_the_best_is_fitted():
    rate = np.array(["0.1", "0.1", "0.2", "0.2", "0.1"], dtype=object)
    seed = np.array(["0", "1", "0", "1", "0"], dtype=object)
    runs = Runs.of([3.0, 3.4, 2.9, 3.2, 2.0], parameters=[1e3] * 4 + [1e4], tokens=1e6)
    runs = runs.with_columns(**{"optim.lr": rate, "train.seed": seed})
    kept, remarks = tuned(runs, ("optim.lr", "train.seed"))
    assert kept.names == ("run_2", "run_3", "run_4")
    assert "2 of 5 runs are not fitted" in remarks[0] and "optim.lr" in remarks[0]
    assert tuned(runs, ("train.seed",)) == (runs, [])


def test_too_little_below_the_held_out_runs():
    runs = Runs.of([3.0, 2.5, 2.2], parameters=[1e3, 1e4, 1e5], tokens=[1e5, 1e6, 1e7])
    fitted, held_out, remarks = split(runs, 4.0)
    assert len(fitted) == 3 and not len(held_out) and "2 of 3 runs lie below" in remarks[0]
    found = analyse(runs, Analysis(laws=("kaplan_c",), holdout=4.0, bootstrap=0))
    assert found.why["scores"] == "no runs were held out" and found.main.name == "kaplan_c"


def test_damaged_curves_cost_only_themselves(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "loss": 3.0, "flops": 1, "tokens": 1}\nnot json\n{"step": 3}\n')
    assert read_curve(log) is None and read_curve(tmp_path / "absent") is None
    rows = [
        {"step": i, "loss": 5.0 / i, "flops": 9.0 * i, "tokens": i, "seconds": 2.0 * i}
        for i in (1, 2, 3)
    ]
    rows[1]["loss"] = float("nan")
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = read_curve(log)
    assert list(curve.tokens) == [1, 3] and curve.seconds == 6.0


def test_one_point_per_budget_has_a_report(tmp_path):
    sweep = isoflop_sweep(budgets=(4e11, 8e11, 1.6e12), per_budget=1, **QUICK)
    folder = fake(tmp_path / "runs", sweep)
    write_report(folder)
    assert "approach 2 needs" in page_text(folder)


def test_what_is_shared_with_a_trunk_is_counted_once(tmp_path):
    folder = fake(tmp_path / "runs", isoflop_sweep(budgets=(4e11,), per_budget=4))
    trunk, point, other, _ = folder.points
    logs = [folder.workdir(name) / "metrics.jsonl" for name in (trunk, point)]
    rows = logs[0].read_text().splitlines()
    logs[1].write_text("\n".join(rows[:5]) + "\n")
    row = json.loads(rows[4])
    folder.branches = {point: Branch(trunk, row["step"]), other: Branch(trunk, row["step"])}
    # the other one was trained from its beginning, as when its trunk had failed
    assert shared_with_trunks(folder, list(folder.points)) == (row["flops"], row["seconds"])


def test_warnings_and_laws_that_are_absent_stand_in_the_summary(tmp_path):
    sweep = isoflop_sweep(budgets=(4e11, 1.6e12), laws=("chinchilla", "kaplan_c"), bootstrap=0)
    folder = fake(tmp_path / "runs", sweep, noise=0.3)
    for point, corpus in zip(sweep.points[:2], ("pycode", "shakespeare"), strict=True):
        data = dataclasses.replace(point.experiment.data, corpus=corpus)
        changed = dataclasses.replace(point.experiment, data=data)
        folder.points[point.name] = dataclasses.replace(point, experiment=changed)
    said = write_report(folder).summary
    law = next(line for line in said if line.startswith("chinchilla, L = "))
    warnings = [line for line in said if line.startswith("Warning, chinchilla: ")]
    assert warnings and all(line.split(": ")[1] in law.split("beware: ")[1] for line in warnings)
    assert any(line.startswith("kaplan_c is not fitted: ") for line in said)
    words = "points have different corpora (pycode, shakespeare): their losses do not compare"
    assert said[-1] == words or words in said
