"""Every law: its derivatives, its recovery from exact data, what the fit refuses and flags."""

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.scaling.laws import (
    LAWS,
    bootstrap,
    doubts,
    envelope,
    fit_law,
    fit_two_step,
    get_law,
    holdout,
    isoflop,
)
from gptjax.scaling.laws.holdout import frontier
from gptjax.scaling.laws.threads import _libraries, one_blas_thread
from gptjax.scaling.table import Runs

TRUTH = {
    "power_floor:tokens": {"E": 1.7, "A": 400.0, "alpha": 0.3},
    "power_sum:width,depth,tokens": {
        "E": 1.5, "A_width": 20.0, "A_depth": 1.0, "A_tokens": 2000.0,
        "alpha_width": 0.6, "alpha_depth": 0.9, "alpha_tokens": 0.4,
    },
    "kaplan_n": {"A": 12.0, "alpha": 0.076},
    "kaplan_d": {"A": 14.0, "alpha": 0.095},
    "kaplan_c": {"A": 15.0, "alpha": 0.05},
    "kaplan_nd": {"A": 12.0, "alpha": 0.076, "B": 20.0, "beta": 0.103},
    "chinchilla": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    "q_norm": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28, "q": 2.5},
    "over_training": {"E": 1.8, "A": 150.0, "B": 400.0, "eta": 0.14},
    "data_constrained": {
        "E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.353, "R_D": 15.4, "R_N": 5.3,
    },
    "routed": {"d": 2.6, "a": -0.085, "b": -0.13, "c": 0.005, "E_start": 2.0, "saturation": 150.0},
    "broken_power:flops:1": {"E": 1.0, "A": 60.0, "c0": 0.1, "c1": 0.25, "d1": 3e19, "f1": 0.3},
}  # fmt: skip


def table(rows: int = 240, seed: int = 0) -> Runs:
    random = np.random.default_rng(seed)
    N, D = 10 ** random.uniform(7, 10, rows), 10 ** random.uniform(8.5, 11.5, rows)
    return Runs.of(
        np.ones(rows),
        parameters=N,
        tokens=D,
        width=random.integers(2, 33, rows) * 64,
        depth=random.integers(3, 80, rows),
        unique_tokens=D / 10 ** random.uniform(0, 2.5, rows),
        experts=2.0 ** random.integers(0, 9, rows),
    )


def drawn(law: str, noise: float = 0.0, rows: int = 240, seed: int = 0) -> Runs:
    runs, law = table(rows, seed), get_law(law)
    columns = {name: runs.column(name) for name in law.variables}
    loss = law.predict(law.to_raw(TRUTH[law.name]), law.prepare(columns))
    loss = loss * np.exp(noise * np.random.default_rng(seed + 1).standard_normal(rows))
    return Runs.of(loss, parameters=runs.parameters, tokens=runs.tokens, **runs.columns)


@pytest.mark.parametrize("name", [*LAWS, "broken_power:flops:3", "power_sum:width,depth,tokens"])
def test_derivatives(name):
    law, random, runs = get_law(name), np.random.default_rng(3), table(17)
    loss = random.uniform(1.5, 4.0, 17)
    x = law.prepare({v: loss if v == "loss" else runs.column(v) for v in law.variables})
    y = np.log(loss) if law.log_target else 0.8 - 0.1 * loss
    for _ in range(4):
        raw = law.start(x, y, random)
        _, slopes = law.evaluate(raw, x)
        for i in range(len(raw)):
            step = np.zeros(len(raw))
            step[i] = 1e-6 * max(1, abs(raw[i]))
            change = law.evaluate(raw + step, x)[0] - law.evaluate(raw - step, x)[0]
            np.testing.assert_allclose(slopes[i], change / (2 * step[i]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRUTH)
def test_exact_data_give_the_parameters_back(name):
    fit = fit_law(drawn(name), name, starts=8, loss="squared_log", diagnose=False)
    assert fit.r2 > 1 - 1e-8
    for parameter, value in TRUTH[name].items():
        assert fit.parameters[parameter] == pytest.approx(value, rel=5e-3)


def test_a_broken_power_takes_a_u_shape():
    C, law = 10 ** np.linspace(17, 23, 60), get_law("broken_power:flops:1")
    truth = {"E": 1.0, "A": 6e3, "c0": 0.22, "c1": -0.4, "d1": 1e20, "f1": 0.4}
    loss = law.predict(law.to_raw(truth), law.prepare({"flops": C}))
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(60))
    assert loss.argmin() not in (0, 59)
    fit = fit_law(Runs.of(loss * noise, flops=C), law, starts=6, diagnose=False)
    assert fit.r2 > 0.998
    assert fit.parameters["d1"] == pytest.approx(1e20, rel=0.3)
    assert fit.parameters["c1"] == pytest.approx(-0.4, abs=0.05)


def test_a_change_of_unit_scales_the_floor_and_nothing_else():
    runs = drawn("chinchilla", 0.01)
    bits = Runs.of(runs.loss / np.log(2), parameters=runs.parameters, tokens=runs.tokens)
    nats, bits = (fit_law(r, "chinchilla", starts=4, diagnose=False) for r in (runs, bits))
    assert bits.parameters["E"] == pytest.approx(nats.parameters["E"] / np.log(2), rel=1e-4)
    assert bits.parameters["alpha"] == pytest.approx(nats.parameters["alpha"], rel=1e-4)


def test_every_start_of_chinchilla_reaches_the_optimum():
    fit = fit_law(drawn("chinchilla", 0.01), "chinchilla", starts=16)
    assert fit.converged and fit.starts_agreeing == 16 and fit.flags == ()
    assert max(fit.spread.values()) < 1


def test_the_optimum_is_the_closed_form_and_fills_in_tokens():
    fit = fit_law(drawn("chinchilla", 0.01), "chinchilla", starts=4, diagnose=False)
    p = fit.parameters
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    best = fit.optimum(1e21)
    assert best.parameters == pytest.approx(G * (1e21 / 6) ** fit.derived["a"], rel=1e-6)
    assert best.parameters * best.tokens * 6 == pytest.approx(1e21)
    assert best.loss == pytest.approx(fit.predict(N=best.parameters, D=best.tokens)[0])
    assert best.loss == pytest.approx(fit.predict(N=best.parameters, C=1e21)[0])
    assert best.flags == () and any("extrapolation: flops" in f for f in fit.optimum(1e26).flags)


def test_counted_flops_decide_what_a_budget_buys():
    runs = drawn("chinchilla")
    counted = Runs.of(runs.loss, parameters=runs.parameters, tokens=runs.tokens,
                      flops=20 * runs.parameters**0.95 * runs.tokens)  # fmt: skip
    fit = fit_law(counted, "chinchilla", starts=2, diagnose=False)
    best = fit.optimum(1e21)
    assert 20 * best.parameters**0.95 * best.tokens == pytest.approx(1e21)


def test_fixed_parameters_and_weights():
    runs = drawn("chinchilla", 0.01)
    held = fit_law(runs, "chinchilla", fixed={"E": 1.69, "alpha": 0.34}, starts=4)
    assert held.parameters["E"] == pytest.approx(1.69) and "E" not in held.standard_errors
    assert held.parameters["beta"] == pytest.approx(0.28, abs=0.01)
    few = np.where(np.arange(240) < 60, 1.0, 1e-9)
    options = {"starts": 4, "diagnose": False, "loss": "squared_log"}
    weighted = fit_law(runs, "chinchilla", weights=few, **options)
    alone = fit_law(runs.select(slice_of(60)), "chinchilla", **options)
    assert weighted.parameters["alpha"] == pytest.approx(alone.parameters["alpha"], rel=1e-3)


def slice_of(rows: int) -> np.ndarray:
    return np.arange(rows)


def test_what_is_flagged():
    one = fit_law(drawn("chinchilla", 0.01), "chinchilla", starts=1, diagnose=False)
    assert any(f.startswith("one start") for f in one.flags)
    flat = fit_law(drawn("kaplan_n", 0.01), "power_floor:parameters")
    assert any(f.startswith("floor not identified") for f in flat.flags)
    runs = drawn("chinchilla", 0.003, rows=25)
    spoilt = Runs.of(runs.loss * np.where(np.arange(25) < 2, 1.3, 1.0),
                     parameters=runs.parameters, tokens=runs.tokens)  # fmt: skip
    fit = fit_law(spoilt, "chinchilla", loss="squared_log")
    assert any(f.startswith("outliers") for f in fit.flags)
    kept = fit.without_outliers
    assert set(spoilt.names) - set(kept.runs.names) == {"run_0", "run_1"}
    assert kept.parameters["E"] == pytest.approx(1.69, abs=0.1)


def test_a_gross_outlier_and_losses_that_do_not_vary_are_flagged():
    runs = drawn("chinchilla", 0.01, rows=25)
    shape = {"parameters": runs.parameters, "tokens": runs.tokens}
    for wrong in (100 * runs.loss, np.full(25, 1e30)):
        spoilt = Runs.of(np.where(np.arange(25) == 12, wrong, runs.loss), **shape)
        fit = fit_law(spoilt, "chinchilla", starts=4)
        assert any(f.startswith("gross outlier: run_12 has") and "R2" in f for f in fit.flags)
    flat = fit_law(Runs.of(np.full(25, 3.0), **shape), "chinchilla", starts=2, diagnose=False)
    assert "no variation" in doubts(flat) and repr(flat).count("\n") == 0
    assert "! no variation: loss does not vary" in str(flat)
    assert flat.flags[0].startswith("no variation: loss does not vary") and np.isnan(flat.r2)


BAD = [
    (lambda r: fit_law(r.select(slice_of(5)), "chinchilla"), "needs at least 6 runs; there are 5"),
    (lambda r: fit_law(r.select(np.zeros(9)), "chinchilla"), "1 different runs"),
    (lambda r: fit_law(r, "chinchila"), "did you mean 'chinchilla'"),
    (lambda r: fit_law(r, "chinchilla", loss="hubber_log"), "did you mean 'huber_log'"),
    (lambda r: fit_law(r, "chinchilla", delta=0), "delta is 0"),
    (lambda r: fit_law(r, "chinchilla", starts=0), "starts is 0"),
    (lambda r: fit_law(r, "chinchilla", fixed={"gamma": 1}), "no parameter 'gamma'"),
    (lambda r: fit_law(r, "chinchilla", fixed={"E": -1}), "E is -1; it must be positive"),
    (lambda r: fit_law(r, "chinchilla", weights=[1, 2]), "one positive number for each"),
    (lambda r: fit_law(r, "power_floor:seconds"), "no column 'seconds'"),
    (lambda r: fit_law(r, "loss_to_accuracy"), "no column 'accuracy'"),
    (lambda r: fit_law(r, "broken_power:flops:9"), "give 1 to 5"),
    (lambda r: fit_law(Runs.of(r.loss, flops=r.flops), "chinchilla"), "needs parameters"),
    (lambda r: fit_law(Runs.of(r.loss, parameters=r.parameters, tokens=1e9), "chinchilla"),
     "differ in tokens; all have 1e"),
    (lambda r: fit_law(Runs.of(np.where(r.loss > 3, np.nan, r.loss), parameters=r.parameters,
                               tokens=r.tokens), "chinchilla"), r"loss is not .* run_\d+ \(nan\)"),
    (lambda r: fit_law(r, "kaplan_n", diagnose=False).optimum(1e20), "no optimum"),
    (lambda r: holdout(r, "chinchilla", k=0.5), "k is 0.5"),
    (lambda r: holdout(r, "chinchilla", k=1e9), "below max"),
    (lambda r: holdout(r, 3), "law is '3'"),
    (lambda r: holdout(r, "chinchilla", k="a"), "k is 'a'"),
    (lambda r: fit_law(3, "chinchilla"), "runs is a int"),
    (lambda r: fit_law(r, "chinchilla", seed=-1), "seed is -1"),
    (lambda r: fit_law(r, "chinchilla", delta="a"), "delta is 'a'"),
    (lambda r: fit_law(r, "chinchilla", loss=3), "loss is 3, not one of"),
    (lambda r: fit_law(r, "chinchilla", fixed=3), "fixed is 3; give a dict"),
    (lambda r: fit_law(r, "chinchilla", fixed={"E": "a"}), "fixed holds E at 'a'"),
    (lambda r: fit_law(r, "chinchilla", fixed={"alpha": np.inf}), "alpha is inf; it must be from"),
    (lambda r: fit_law(r, "chinchilla", weights="a"), "weights is 'a'"),
    (lambda r: fit_law(r, "chinchilla", starts=1, diagnose=False).optimum("1e20"), "flops is '1e2"),
    (lambda r: fit_law(r, "chinchilla", starts=1, diagnose=False).predict(N=-1, D=1), "positive"),
    (lambda r: fit_law(r, "chinchilla", starts=1, diagnose=False).predict(N=[1, 2], D=[1, 2, 3]),
     r"parameters \(2,\), tokens \(3,\)"),
    (lambda r: isoflop(r, window=-1), "window is -1"),
    (lambda r: isoflop(r, budgets="a"), "budgets is 'a'"),
    (lambda r: envelope(r, seed=1.5), "seed is 1.5"),
    (lambda r: bootstrap(3), "fit is a int"),
    (lambda r: Runs.of("a"), "loss holds something that is no number"),
    (lambda r: Runs.of(r.loss, parameters=[1, 2]), "parameters has 2 rows and there are 30 losses"),
    (lambda r: Runs.of([1.0], names="a"), "names is 'a'; give one per run"),
    (lambda r: r.select([99]), "there is no row 99, only 0 to 29"),
    (lambda r: r.select("a"), "rows are chosen by 'a'"),
    (lambda r: Runs.concatenate([]), "one table of runs or more"),
    (lambda r: Runs.read_csv(3), "the path of a table is 3"),
]  # fmt: skip


@pytest.mark.parametrize("call, message", BAD)
def test_what_is_refused(call, message):
    with pytest.raises(BadInput, match=message):
        call(drawn("chinchilla", 0.01, rows=30))


def test_accuracy_in_two_steps():
    runs = drawn("chinchilla", 0.003)
    noise = 0.005 * np.random.default_rng(5).standard_normal(len(runs))
    accuracy = 0.25 + 0.6 / (1 + np.exp(3 * (runs.loss - 2.4))) + noise
    runs = runs.with_columns(accuracy=accuracy, error=1 - accuracy)
    both = fit_two_step(runs, starts=4)
    loss = 1.69 + 406.4 * 3e9**-0.34 + 410.7 * 2e11**-0.28
    truth = 0.25 + 0.6 / (1 + np.exp(3 * (loss - 2.4)))
    assert both.predict(N=3e9, D=2e11)[0] == pytest.approx(truth, abs=0.01)
    low, high = both.interval(N=3e9, D=2e11, resamples=60)
    assert low[0] < both.predict(N=3e9, D=2e11)[0] < high[0] < low[0] + 0.05
    assert fit_law(runs, "loss_to_error", starts=4).r2 > 0.9


def test_held_out_by_compute_beside_baselines():
    result = holdout(drawn("chinchilla", 0.003), ["chinchilla", "kaplan_nd"], k=8, starts=4)
    assert result.held_out.flops.min() > result.below >= result.fitted.flops.max()
    assert result.scores[0].name == "chinchilla" and result.scores[0].mean_absolute < 0.01
    assert {s.name for s in result.scores if s.baseline} == {
        "power law in C", "nearest run", "last value"
    }  # fmt: skip
    assert result["last value"].bias < 0


def test_a_budget_rounded_to_whole_steps_is_one_budget():
    front = frontier(Runs.of([3.0, 2.9, 2.5, 2.7], flops=[1e18, 1.004e18, 4e18, 4.002e18]))
    assert list(front.loss) == [2.9, 2.5]
    assert len(frontier(Runs.of([], flops=[]))) == 0


def test_too_little_to_hold_out():
    few = Runs.of([3.0, 2.5, 2.2], parameters=[1e6, 2e6, 4e6], tokens=[1e8, 2e8, 8e8])
    with pytest.raises(BadInput, match=r"2 runs lie below max.*there are 3 runs in all"):
        holdout(few, "kaplan_c", 4)
    with pytest.raises(BadInput, match="no runs to hold out"):
        holdout(few.select([]), "kaplan_c", 4)


def test_blas_keeps_to_one_thread_and_gets_its_threads_back():
    libraries = _libraries()
    if not libraries:
        pytest.skip("no OpenBLAS here")
    before = [get() for get, _ in libraries]
    with one_blas_thread():
        assert [get() for get, _ in libraries] == [1] * len(libraries)
    assert [get() for get, _ in libraries] == before
