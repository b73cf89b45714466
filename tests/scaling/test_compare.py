"""Comparisons of tables whose gain is known."""

import dataclasses

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.scaling.compare import compare_runs
from gptjax.scaling.joint import JointPower
from gptjax.scaling.resampling import matched
from gptjax.scaling.table import Runs

BUDGETS = (4e15, 1.6e16, 6.4e16, 2.56e17)


def isoflops(gain=1.0, *, seed=0, noise=0.003, budgets=BUDGETS, bytes_per_token=4.0) -> Runs:
    """Four isoFLOP groups of a law; an architecture learns as from `gain` times its FLOPs."""
    random = np.random.default_rng(seed)
    C = np.repeat(budgets, 5)
    N = np.sqrt(C / 120) * np.tile(np.geomspace(0.25, 4, 5), len(budgets))
    D, s = C / 6 / N, gain**0.5
    loss = 1.7 + 400 * (s * N) ** -0.34 + 410 * (s * D) ** -0.28
    loss *= np.exp(noise * random.standard_normal(len(C)))
    return Runs.of(loss, parameters=N, tokens=D, seconds=C / 1e13, bytes=D * bytes_per_token)


def ladder(gain=1.0, *, seed=0, count=8) -> Runs:
    """Compute-optimal runs on one line, where N's part cannot be told from D's."""
    random = np.random.default_rng(seed)
    C = np.geomspace(1e14, 1e17, count)
    loss = (1.7 + 300 * (gain * C) ** -0.15) * np.exp(0.001 * random.standard_normal(count))
    N = np.sqrt(C / 120)
    return Runs.of(loss, parameters=N, tokens=C / 6 / N)


@pytest.fixture(scope="module")
def better():
    tables = {"gelu": isoflops(), "swiglu": isoflops(1.5, seed=1)}
    return compare_runs(tables, resamples=100)


def test_a_known_gain_in_every_resource(better):
    gains = {gain.resource: gain for gain in better.gains}
    assert better.law == "chinchilla" and better.unit == "nats per token"
    for name, truth in {"flops": 1.5, "seconds": 1.5, "parameters": 1.5**0.5}.items():
        gain = gains[name]
        assert truth in gain.at and abs(gain.at.estimate / truth - 1) < 0.08
    assert 1.5**0.5 in gains["bytes"].at
    assert gains["flops"].verdict.endswith("times less")


def test_gains_stay_within_the_losses_that_both_reached(better):
    for gain in better.gains:
        for runs in better.tables.values():
            assert gain.losses.max() <= runs.loss.max() and gain.losses.min() >= runs.loss.min()
    x, loss = better.lines["flops"]["gelu"]
    assert BUDGETS[0] * 0.999 <= x[0] and x[-1] <= BUDGETS[-1] * 1.001
    assert np.allclose([x[0], x[-1]], [BUDGETS[0], BUDGETS[-1]], rtol=0.05)
    assert (np.diff(loss) < 0).all() and (np.diff(x) > 0).all()


def test_the_same_architecture_twice_is_not_separable():
    tables = {"a": isoflops(seed=2), "b": isoflops(seed=3)}
    found = compare_runs(tables, resamples=100)
    assert {gain.verdict for gain in found.gains} == {"not separable"}
    again = compare_runs(tables, resamples=100)
    assert [g.at for g in again.gains] == [g.at for g in found.gains]


def test_a_worse_one_needs_more():
    tables = {"a": isoflops(2.0), "b": isoflops(seed=1)}
    (gain,) = (g for g in compare_runs(tables, resamples=60).gains if g.resource == "flops")
    assert gain.at.high < 1 and gain.verdict.endswith("times more")
    swapped = compare_runs(tables, resamples=60, reference="b")
    assert swapped.gains[0].label == "a" and swapped.gains[0].at.low > 1


def test_no_overlap_is_no_gain():
    tables = {"a": isoflops(), "b": isoflops(budgets=(1e21, 4e21, 1.6e22))}
    found = compare_runs(tables, resamples=20)
    assert all(gain.at is None and "no overlap" in gain.verdict for gain in found.gains)


def test_ladders_are_compared_by_a_power_of_each_resource():
    found = compare_runs({"a": ladder(), "b": ladder(1.5, seed=1)}, resamples=60)
    assert found.law == "power" and set(found.fits) == {"flops", "parameters", "tokens"}
    (gain,) = (g for g in found.gains if g.resource == "flops")
    assert 1.5 in gain.at and gain.at.low > 1
    assert "no gain in seconds: not every run of a, b tells them" in found.remarks
    shared = compare_runs(
        {"a": ladder(), "b": ladder(1.5, seed=1)}, resamples=60, exponents="shared"
    )
    assert np.ptp(shared.gains[0].estimate) < 1e-9, "one exponent: one gain at every loss"


def test_a_floor_for_each_corpus():
    tables = {"a": isoflops(), "b": isoflops(1.5, seed=1), "c": isoflops(seed=2)}
    corpora = {"a": "code", "b": "code", "c": "prose"}
    found = compare_runs(tables, corpora=corpora, resamples=20)
    names = found.fits["joint"].parameters
    assert {"E[code]", "E[prose]", "A[a]", "B[c]"} <= set(names)
    assert all((gain.at is None) == (gain.label == "c") for gain in found.gains)
    assert "another task" in found.gains[-1].verdict


def test_losses_are_per_byte_where_tokens_differ():
    found = compare_runs({"a": isoflops(), "b": isoflops(bytes_per_token=2.0)}, resamples=20)
    assert found.unit == "nats per byte"
    assert np.allclose(found.tables["a"].loss, isoflops().loss / 4)


def test_exponents_are_shared_until_own_ones_are_worth_it():
    runs = {"a": isoflops(), "b": isoflops(1.5, seed=1)}
    found = compare_runs(runs, resamples=20)
    assert found.fits["joint"].law.exponents == "shared"
    assert "joint: shared exponents have the lower corrected AIC" in found.remarks
    flat = runs["b"].loss.mean() * (runs["b"].loss / runs["b"].loss.mean()) ** 0.3
    bent = {**runs, "b": dataclasses.replace(runs["b"], loss=flat)}
    assert compare_runs(bent, resamples=20).fits["joint"].law.exponents == "own"


def test_slopes_of_the_joint_law():
    joint = JointPower(["a", "b", "c"], ("parameters", "tokens"), ["x", "y", "x"])
    random = np.random.default_rng(0)
    columns = {
        "parameters": np.exp(random.uniform(8, 12, 17)),
        "tokens": np.exp(random.uniform(10, 14, 17)),
        "architecture": np.arange(17.0) % 3,
    }
    x = joint.prepare(columns)
    raw = joint.start(x, np.log(random.uniform(2, 4, 17)), random)
    _, slopes = joint.evaluate(raw, x)
    for i in range(len(raw)):
        step = np.zeros(len(raw))
        step[i] = 1e-6
        difference = joint.evaluate(raw + step, x)[0] - joint.evaluate(raw - step, x)[0]
        assert np.allclose(difference / 2e-6, slopes[i], atol=1e-7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reference": "gel"}, "did you mean 'gelu'"),
        ({"law": "chinchila"}, "did you mean 'chinchilla'"),
        ({"exponents": "mine"}, "not one of auto, own, shared"),
        ({"resamples": 3}, "at least 20"),
        ({"level": 95}, "share between 0 and 1"),
    ],
)
def test_bad_options_are_one_line(options, words):
    with pytest.raises(BadInput, match=words):
        compare_runs({"gelu": isoflops(), "swiglu": isoflops(seed=1)}, **options)


def test_too_little_to_compare():
    with pytest.raises(BadInput, match="two sweeps or more"):
        compare_runs({"a": isoflops()})
    with pytest.raises(BadInput, match="b has no finished run"):
        compare_runs({"a": ladder(), "b": Runs.of([])})
    with pytest.raises(BadInput, match="a has 2, b has 2"):
        compare_runs({"a": ladder(count=2), "b": ladder(seed=1, count=2)})


def test_a_gain_without_an_interval_is_not_separable():
    few = np.array([0, 4, 7, 10, 14])
    tables = {"a": isoflops(seed=2).select(few), "b": isoflops(seed=3).select(few)}
    gains = compare_runs(tables, resamples=20, law="chinchilla", exponents="shared").gains
    assert all(gain.verdict.startswith("not separable: too few runs") for gain in gains)
    gains = compare_runs({"a": isoflops(noise=0), "b": isoflops(noise=0)}, resamples=20).gains
    assert all(gain.verdict.startswith("not separable") for gain in gains)


def test_too_few_runs_for_own_exponents():
    tables = {"a": ladder(count=3), "b": ladder(seed=1, count=3)}
    found = compare_runs(tables, resamples=20)
    assert found.fits["flops"].law.exponents == "shared"
    with pytest.raises(BadInput, match=r"a has 3, b has 3.*exponents='shared'"):
        small = {"a": ladder(count=3), "b": ladder(count=3)}
        compare_runs(small, law="chinchilla", exponents="own")


def test_one_budget_has_no_gain_in_flops():
    tables = {"a": isoflops(budgets=BUDGETS[:1]), "b": isoflops(seed=1, budgets=BUDGETS[:1])}
    found = compare_runs(tables, resamples=20, law="power")
    assert "flops" not in found.fits
    assert "no gain in flops: it is the same in every run of a, b" in found.remarks
    assert not any("nan" in gain.verdict for gain in found.gains)


def test_matched_runs_are_drawn_together():
    """What no law says of a size and a budget is the same in both, and blurs no gain."""
    tables = [isoflops(), isoflops(1.5, seed=1)]
    bent = [
        dataclasses.replace(runs, loss=runs.loss * np.exp(0.03 * np.sin(3 * np.log(runs.tokens))))
        for runs in tables
    ]
    flipped = bent[1].select(np.arange(len(bent[1]))[::-1])
    rows = matched([bent[0], flipped])
    assert rows[1].tolist() == list(range(len(flipped)))[::-1]
    larger = dataclasses.replace(bent[1], parameters=bent[1].parameters * 1.05)
    assert matched([bent[0], larger]) is None and matched([bent[0], ladder()]) is None
    found = compare_runs({"a": bent[0], "b": flipped}, resamples=40, exponents="shared")
    assert "drawn together" in found.remarks[-2]
    assert found.remarks[-1].startswith("b: loss below that of a in 20 of 20 matched runs, -0.")
    apart = compare_runs({"a": bent[0], "b": larger}, resamples=40, exponents="shared")
    assert not any("drawn together" in remark for remark in apart.remarks)
    narrow, wide = (one.gains[0].at for one in (found, apart))
    assert 1.5 in narrow and narrow.high / narrow.low < 0.8 * wide.high / wide.low
