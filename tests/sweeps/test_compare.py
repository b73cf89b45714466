"""Sweep folders beside each other, from the shell too."""

import json

import pytest

from gptjax.errors import BadInput
from gptjax.sweeps.compare import compare, folder_runs, main
from gptjax.sweeps.ledger import State
from tests.sweeps.synthetic import fake, isoflop_sweep

SWEEP = isoflop_sweep(shapes=6, budgets=(4e11, 3.2e12, 2.56e13), per_budget=5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    return fake(path / "gelu", SWEEP), fake(path / "swiglu", SWEEP, gain=2.0, seed=1)


def test_folders_tell_their_resources(folders):
    runs = folder_runs(folders[0])
    assert abs(runs.columns["bytes"] / runs.tokens - 1).max() < 1e-9, "tokens are bytes here"
    assert abs(runs.columns["seconds"] * 2e10 / runs.flops - 1).max() < 1e-6
    found = compare({"gelu": folders[0], "swiglu": folders[1]}, resamples=40)
    assert found.corpora["gelu"] == "pycode"
    by_path = {"gelu": str(folders[0].path), "swiglu": folders[1].path}
    assert compare(by_path, resamples=40).gains[0].at == found.gains[0].at
    gains = {gain.resource: gain for gain in found.gains}
    assert set(gains) == {"flops", "parameters", "seconds", "bytes"}
    # FLOPs grow more slowly than N D at these sizes, so that the gain is a little below 2
    assert 1.7 < gains["flops"].at.estimate < 2.1 and gains["flops"].at.low > 1.4


def test_the_command_line_writes_a_page_and_data(folders, tmp_path, capsys):
    out = tmp_path / "out"
    paths = [f"GELU={folders[0].path}", str(folders[1].path)]
    assert main([*paths, f"--out={out}", "--resamples=20"]) == 0
    said = capsys.readouterr().out
    assert "swiglu against GELU, flops: gain" in said and str(out / "compare.html") in said
    assert "! joint: shared exponents have the lower corrected AIC" in said
    found = json.loads((out / "compare.json").read_text())
    assert found["reference"] == "GELU" and len(found["gains"]) == 4
    assert found["gains"][0]["verdict"].endswith("times less")
    assert len((out / "gains.csv").read_text().splitlines()) == 1 + 4 * 9
    page = (out / "compare.html").read_text(encoding="utf-8")
    for name in ("loss_flops", "gain_flops", "gain_bytes"):
        assert f'id="plot-{name}"' in page and (out / "figures" / f"{name}.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{0}"], "two sweeps or more"),
        (["{0}", "{0}"], "two sweeps are called 'gelu'"),
        (["{0}", "{0}/points"], "holds no sweep"),
        (["{0}", "{1}", "--reference=swiglo"], "did you mean 'swiglu'?"),
        (["{0}", "{1}", "--resample=x"], "--resamples"),
        ([], "sweeps"),
        (["{0}", "{1}", "--out={0}"], "holds a sweep or a run of its own"),
        (["{0}", "{1}", "--resamples=3"], "resamples is 3; an interval needs at least 20"),
    ],
)
def test_errors_are_one_line(folders, capsys, arguments, words):
    paths = [folder.path for folder in folders]
    assert main([argument.format(*paths) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and words in said


def test_a_sweep_that_waits_is_told_with_its_command(folders, tmp_path, capsys):
    waiting = {number: State("waiting") for number in (3, 7)}
    paused = fake(tmp_path / "a=b", SWEEP, states=waiting)
    words = f"2 of 15 points of a=b are not finished; python experiments/run.py --exp={SWEEP.name}"
    both = {"a=b": paused, "gelu": folders[0]}
    assert words in compare(both, resamples=20, exponents="shared").remarks[0]
    begun = fake(tmp_path / "b", SWEEP, states={n: State("waiting") for n in range(15)})
    assert main([str(begun.path), str(folders[0].path)]) == 2
    said = capsys.readouterr().err
    assert "b has no finished run" in said and "15 of 15 points of b are not finished" in said


def test_nonsense_is_one_line(folders):
    with pytest.raises(BadInput, match="sweeps is a list"):
        compare([folders[0]])
    with pytest.raises(BadInput, match="b is 3; give Runs, or a sweep"):
        compare({"a": folders[0], "b": 3})


def test_one_corpus_per_sweep(folders):
    runs = folder_runs(folders[0])
    mixed = runs.with_columns(corpus=["code"] * 7 + ["prose"] * (len(runs) - 7))
    with pytest.raises(BadInput, match="give one corpus"):
        compare({"a": mixed, "b": runs})
