"""What the losses of sweeps are of, and which of them may be compared."""

import dataclasses

import pytest

from gptjax import EncoderDecoderConfig, MaskedLM, NextToken, PrefixLM, SpanCorruption
from gptjax.errors import BadInput
from gptjax.sweeps.compare import compare, comparison_charts
from gptjax.sweeps.folder import SweepFolder
from gptjax.sweeps.grid import rows, values
from gptjax.sweeps.report import write_report
from gptjax.sweeps.sweep import Sweep
from gptjax.sweeps.tasks import remarks_on, task_of, unit_of
from tests.sweeps.synthetic import BASE, fake, isoflop_sweep


def folder(path, objective, grid=None, **changes) -> SweepFolder:
    base = dataclasses.replace(BASE, objective=objective, **changes)
    grid = values("optim.lr", 1e-3, 2e-3) if grid is None else grid
    return SweepFolder.create(Sweep("tried", base, grid), path)


def test_one_task_whoever_reads_it_how(tmp_path):
    halves = PrefixLM(low=0.5, high=0.5)
    pair = EncoderDecoderConfig(num_layers=2, d_model=16, num_heads=2)
    folders = {
        "causal": folder(
            tmp_path / "a", dataclasses.replace(halves, reading="causal", z_loss=1e-4)
        ),
        "both": folder(tmp_path / "b", halves),
        "pair": folder(tmp_path / "c", halves, model=pair),
    }
    tasks = {task_of(one, label) for label, one in folders.items()}
    assert tasks == {"pycode, prefix_lm(low=0.5, high=0.5) of 128 bytes"}
    assert remarks_on(folders) == [
        "of every 128 tokens of text at most 65 are predicted by causal, both, pair: tokens and "
        "bytes count the text",
        "parameters of pair are those of encoder and decoder together, of which a token passes one",
    ]


def test_other_tasks_have_other_names(tmp_path):
    objectives = [NextToken(), PrefixLM(), SpanCorruption(), SpanCorruption(rate=0.5)]
    model = dataclasses.replace(BASE.model, vocab_size=400)
    found = [
        task_of(folder(tmp_path / str(i), one, model=model), "x")
        for i, one in enumerate(objectives)
    ]
    assert found[:2] == ["pycode", "pycode, prefix_lm() of 128 bytes"] and len({*found}) == 4
    grid = rows({"data.sequence_length": 64}, {"data.sequence_length": 128})
    assert task_of(folder(tmp_path / "lengths", NextToken(), grid), "x") == "pycode"
    with pytest.raises(BadInput, match=r"x holds points on .* 128 .* 64 bytes; give one corpus, o"):
        task_of(folder(tmp_path / "mixed", PrefixLM(), grid), "x")


def test_units():
    masked = dataclasses.replace(BASE, objective=MaskedLM())
    assert unit_of([BASE], "nats per token") == "nats per token"
    assert unit_of([BASE, masked], "nats per token") == "nats per predicted token"
    assert unit_of([masked], "bits per dimension") == "bits per dimension"


def test_pages_say_what_the_loss_is_of(tmp_path):
    sweep = isoflop_sweep(shapes=4, budgets=(4e11, 3.2e12), per_budget=4, laws=())
    objective = PrefixLM(low=0.5, high=0.5)
    other = dataclasses.replace(sweep, base=dataclasses.replace(sweep.base, objective=objective))
    folders = {"all": fake(tmp_path / "all", sweep), "rest": fake(tmp_path / "rest", other)}
    both = {"rest": folders["rest"], "again": fake(tmp_path / "again", other, seed=1)}
    found = compare(both, resamples=20)
    assert found.unit == "nats per predicted token" and found.gains[0].at is not None
    assert comparison_charts(found)[0].y_label == "loss (nats per predicted token)"
    apart = compare(folders, resamples=20)
    said = "not comparable: pycode, prefix_lm(low=0.5, high=0.5) of 128 bytes is another task than"
    assert apart.gains[0].verdict == f"{said} pycode"
    page = write_report(folders["rest"]).path.read_text(encoding="utf-8")
    assert "nats per predicted token" in page and "nats per token" not in page
