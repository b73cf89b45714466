"""Fits on published runs against their published figures, and on the ideal memoriser."""

import json

import numpy as np
import pytest

from gptjax.scaling import memoriser
from gptjax.scaling.laws import bootstrap, fit_law, formulas, get_law, isoflop
from gptjax.scaling.laws.__main__ import main
from gptjax.scaling.laws.fit import build_objective
from gptjax.scaling.table import Runs
from tests.scaling import published
from tests.scaling.test_laws import drawn


def test_data_constrained_objective_and_optimum():
    fit = fit_law(published.muennighoff(), "data_constrained", fixed=published.MUENNIGHOFF_HELD)
    raw = fit.law.to_raw(published.MUENNIGHOFF)
    assert fit.problem().value(raw) == pytest.approx(0.015825935, abs=1e-9)
    loss, predicted = fit.runs.loss, fit.law.predict(raw, fit.inputs())
    r2 = 1 - np.sum((loss - predicted) ** 2) / np.sum((loss - loss.mean()) ** 2)
    assert r2 == pytest.approx(0.77220461, abs=1e-8)
    assert fit.objective <= 0.0158048


def test_porian_exponents_in_order():
    found = []
    for runs, exponent in published.porian().values():
        result = isoflop(runs)
        assert result.a.estimate == pytest.approx(exponent, abs=0.03)
        if result.without_outliers:
            assert result.without_outliers.a.estimate == pytest.approx(exponent, abs=0.03)
        found.append(result.a.estimate)
    assert len(found) == 5 and found == sorted(found, reverse=True)


def test_gemstones_objectives():
    for entry in published.gemstone_fits():
        law, runs = get_law(entry["law"]), entry["runs"]
        again = build_objective(runs, law, "huber_log", entry["delta"], {}).value(entry["raw"])
        assert again == pytest.approx(entry["objective"], abs=1e-10)


@pytest.mark.parametrize("subset, gain", [("cool_end", 0.005), ("hot_100b+_512x", 0.2)])
def test_gemstones_fits_that_had_not_converged(subset, gain):
    wanted = (subset, 1e-4, False, "parameters,tokens")
    for entry in published.gemstone_fits():
        said = (entry["subset"], entry["delta"], entry["without_embedding"], entry["columns"])
        if said == wanted:
            fit = fit_law(entry["runs"], "chinchilla", delta=1e-4, starts=3, diagnose=False)
            assert fit.converged and fit.objective < entry["objective"] * (1 - gain)


@pytest.mark.parametrize("alpha, floor_share", [(0.3, 0.015), (0.5, 0.001), (1.0, 0.001)])
def test_q_norm_on_the_memoriser(alpha, floor_share):
    memory, samples = np.round(np.logspace(2, 5, 10)), np.round(np.logspace(3, 7, 10))
    runs = memoriser.runs(memory, samples, alpha, floor=1.0, gap=3.0)
    fit = fit_law(runs, "q_norm", starts=6, loss="squared_log", diagnose=False)
    assert fit.parameters["E"] == pytest.approx(1.0, rel=floor_share)
    assert fit.parameters["alpha"] == pytest.approx(alpha, abs=0.01)
    assert fit.parameters["beta"] == pytest.approx(alpha / (1 + alpha), abs=0.01)


def test_bootstrap_of_approach_3_is_quick():
    import time

    entry = next(e for e in published.gemstone_fits() if e["subset"] == "hot")
    fit = fit_law(entry["runs"], "chinchilla", starts=2, diagnose=False)
    began = time.process_time()
    bootstrap(fit, 100)
    assert time.process_time() - began < 1.5  # 1000 in 15 s


def test_command_line(tmp_path, capsys):
    drawn("chinchilla", 0.01, rows=80).to_csv(tmp_path / "runs.csv")
    out = tmp_path / "law.json"
    done = main([str(tmp_path / "runs.csv"), "--law=chinchilla", "--law=kaplan_c", "--starts=4",
                 "--columns", "N=parameters", "--bootstrap=30", "--holdout=4",
                 "--optimum", "1e21", f"--json={out}",
                 f"--plot={tmp_path / 'fit.png'}"])  # fmt: skip
    assert done == 0 and (tmp_path / "fit.png").stat().st_size > 10_000
    text = capsys.readouterr().out
    assert "L = E + A N^-alpha + B D^-beta" in text and "held out" in text
    assert "laws side by side, 80 runs, huber_log" in text and "delta AIC" in text
    law = json.loads(out.read_text())
    assert [f["law"] for f in law["fits"]] == ["chinchilla", "kaplan_c"]
    assert law["fits"][0]["parameters"]["E"]["low"] > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "arguments are required: runs"),
        (["missing.csv"], "cannot read missing.csv"),
        ([str(published.DATA / "data_constrained.csv"), "--law=chinchila"], "did you mean"),
        ([str(published.DATA / "data_constrained.csv"), "--columns", "N"], "write name=value"),
        ([str(published.DATA / "data_constrained.csv"), "--where", "unique_tokens=1"], "no row"),
        ([str(published.DATA / "data_constrained.csv"), "--seed=-1"], "seed is -1; give a whole"),
        ([str(published.DATA / "data_constrained.csv"), "--delta=1e300"], "give 1e-09 to 1000"),
        ([str(published.DATA / "data_constrained.csv"), "--fixed", "alpha=nan"], "from -300 to"),
        ([str(published.DATA / "data_constrained.csv"), "--law=broken_power:N:²"], "give 1 to 5"),
        ([str(published.DATA / "data_constrained.csv"), "--law=power_sum:N,N"], "reads parameters"),
        ([str(published.DATA / "data_constrained.csv"), "--by=N"], "give --bootstrap=1000"),
        ([str(published.DATA / "data_constrained.csv"), "--given", "x=1"], "give --optimum"),
        ([str(published.DATA / "data_constrained.csv"), "--columns", "N=a", "N=b"], "N twice"),
        ([str(published.DATA / "data_constrained.csv"), "--json=/no/where"], "is not there"),
        ([str(published.DATA)], "is a folder without a runs.csv"),
        ([str(published.DATA / "data_constrained.csv"), "--holdout=0.5"], "give more than 1"),
        ([str(published.DATA / "data_constrained.csv"), "--plot=a.pdf"], "ends in .png"),
        (["x" * 5000], "File name too long"),
        (["a\0b"], "null byte"),
    ],
)
def test_command_line_refuses_in_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_laws_are_listed_with_formulas(capsys):
    assert main(["--list-laws"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed and formula in listed for name, formula in formulas().items())


def test_headers_that_nothing_names_are_listed(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("P,T,ce\n1,2,3\n")
    assert main([str(tmp_path / "a.csv")]) == 2
    assert "only P, T, ce: map one, as --columns L=ce" in capsys.readouterr().err
    assert main([str(tmp_path / "a.csv"), "--columns", "L=ce"]) == 2
    assert "if it is one of P, T, say so: --columns N=" in capsys.readouterr().err


def test_approach_2_that_cannot_be_fitted_leaves_the_law_and_the_reason(tmp_path, capsys):
    drawn("chinchilla", 0.01, rows=20).to_csv(tmp_path / "runs.csv")
    out = tmp_path / "law.json"
    assert main([str(tmp_path / "runs.csv"), "--isoflop", "--starts=2", f"--json={out}"]) == 2
    law = json.loads(out.read_text())
    assert law["fits"][0]["law"] == "chinchilla" and "2 budgets" in law["isoflop"]["why"]
    assert "approach 2 is not fitted" in capsys.readouterr().err


def test_points_of_a_sweep_that_are_not_done_are_left_out(tmp_path, capsys):
    runs = drawn("kaplan_n", 0.01, rows=8)
    status = np.array(["done"] * 5 + ["waiting", "diverged", "done"], dtype=object)
    loss = np.where(status == "done", runs.loss, np.nan)
    names = [f"width-{i}" for i in range(8)]
    runs = Runs.of(loss, parameters=runs.parameters, tokens=runs.tokens, names=names, status=status)
    path = str(tmp_path / "runs.csv")
    runs.to_csv(path)
    assert main([path, "--law=kaplan_n", "--starts=2"]) == 0
    said = capsys.readouterr().out
    assert "left out 2 of 8 points of a sweep: 1 waiting, 1 diverged; the sweep's own" in said
    assert "6 runs" in said
    assert main([path, "--law=kaplan_n", "--where", "name=width-?", "--starts=2"]) == 0
    assert main([path, "--law=kaplan_n", "--where", "name=width-1", "name=width-5"]) == 2
    error = capsys.readouterr().err
    assert "needs at least 3 runs; there are 1 runs; left out 1 of 2" in error
    assert main([str(tmp_path)]) == 2 and f"give {path}" in capsys.readouterr().err


def test_rows_without_figures_can_be_skipped(tmp_path, capsys):
    runs = drawn("kaplan_n", 0.01, rows=8)
    parameters = np.where(np.arange(8) == 3, -1.0, runs.parameters)
    loss = np.where(np.arange(8) == 5, np.inf, runs.loss)
    Runs.of(loss, parameters=parameters, tokens=runs.tokens).to_csv(tmp_path / "runs.csv")
    arguments = [str(tmp_path / "runs.csv"), "--law=kaplan_n", "--starts=2"]
    assert main(arguments) == 2 and "--skip-invalid" in capsys.readouterr().err
    assert main([*arguments, "--skip-invalid"]) == 0
    assert "left out 2 of 8 rows" in capsys.readouterr().out
