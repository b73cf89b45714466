"""Tuning without training: grids that grow, divergence, laws, what a kill leaves."""

import dataclasses
import math

import pytest

from gptjax import Sweep
from gptjax.errors import BadInput
from gptjax.scaling.flops import count_parameters
from gptjax.scaling.planner import IsoFlops, Rates, ShapeRule
from gptjax.sweeps.grid import rows
from gptjax.sweeps.ledger import State
from gptjax.sweeps.tuning import (
    LEAST_STEPS,
    Tuning,
    first_cells,
    look,
    run_tuning,
    tokens_per_parameter,
    tuning_sweep,
)
from gptjax.training.signals import Preempted
from gptjax.training.workdir import write_json
from tests.conftest import changed
from tests.sweeps.synthetic import BASE, LENGTH, MODEL

DESIGN = IsoFlops(
    ShapeRule(aspect=16, head_size=16),
    smallest=2e4,
    largest=1e6,
    shapes=6,
    budgets=(1e12, 4e12),
    per_budget=4,
    length=LENGTH,
    rates=Rates(lr=1e-3, reference_width=64, batch_tokens=1024, batch_exponent=0.0),
)


def sweep_of(base=BASE, design=DESIGN) -> Sweep:
    return Sweep("synthetic", base, rows(*design.rows(base.model)), design=design)


def best_rate(parameters: float) -> float:
    return 0.008 * (parameters / 1e5) ** -0.4


def fake_run(stage: Sweep, path, broken=()):
    """Leaves the ledger of a sweep whose loss is a parabola in the rate, best at batch 16."""
    (path / "ledger").mkdir(parents=True, exist_ok=True)
    for point in stage.points:
        file = path / "ledger" / f"{point.name}.json"
        e = point.experiment
        away = math.log(e.optim.lr / best_rate(point.parameters))
        loss = 2.0 + 0.1 * away**2 + 0.05 * abs(math.log2(e.data.batch_size / 16))
        state = State("done", {"validation_loss": loss}, starts=1)
        if away > 2.0:
            state = State("diverged", error="not finite", starts=1)
        if point.name in broken:
            state = State("failed", error="out of memory", starts=1)
        if not file.exists():
            write_json(file, dataclasses.asdict(state))


def test_first_grids_take_their_share():
    sweep, tuning = sweep_of(), Tuning(share=0.15)
    cells = first_cells(sweep, tuning)
    shapes = DESIGN.ladder(MODEL)
    assert list(dict.fromkeys(cell.shape for cell in cells)) == [shapes[0], shapes[2], shapes[3]]
    assert [cell.batch for cell in cells[:3]] == [4, 8, 16]
    assert cells[1].rates == (5e-4, 1e-3, 2e-3)
    assert cells[2].rates == (7.07e-4, 1.41e-3, 2.83e-3)
    ratio = tokens_per_parameter(sweep, cells, tuning)
    stage = tuning_sweep(sweep, cells, ratio)
    assert len(stage.points) == 27 and stage.name == "synthetic_tuning"
    assert 0.1 * DESIGN.total < stage.flops < 0.2 * DESIGN.total
    assert min(point.experiment.steps for point in stage.points) >= LEAST_STEPS
    tiny = tuning_sweep(sweep, cells, 1e-3)
    assert {p.experiment.steps for p in tiny.points} == {40, 80, 160}  # as many tokens each
    mup = changed(BASE, model={"parametrization": "mup"})
    assert {cell.shape for cell in first_cells(sweep_of(mup), tuning)} == {
        DESIGN.ladder(mup.model)[0]
    }


def test_grids_grow_until_the_best_rate_lies_inside(tmp_path):
    sweep, said = sweep_of(), []
    stage = run_tuning(sweep, Tuning(), 5.0, tmp_path, fake_run, said.append)
    assert stage.rounds > 2 and len(said) == stage.rounds
    found = stage.tuned.found
    assert [best.parameters for best in found] == sorted(best.parameters for best in found)
    for best in found:
        assert best.lr == pytest.approx(best_rate(best.parameters), rel=0.01)
        assert best.batch_tokens == 16 * LENGTH
    large = DESIGN.ladder(MODEL)[-1]
    expected = best_rate(count_parameters(large).total)
    assert stage.tuned.rate(large) == pytest.approx(expected, rel=0.02)
    assert stage.tuned.batch(large, LENGTH) == 16
    again = run_tuning(sweep, Tuning(), 5.0, tmp_path, None)  # finished: nothing is run
    assert again.tuned == stage.tuned


def test_what_a_kill_leaves_is_gone_on_with(tmp_path):
    sweep = sweep_of()

    def killed(stage, path):
        half = dataclasses.replace(stage, grid=rows(*stage.grid.rows[: len(stage.grid) - 5]))
        fake_run(half, path)

    with pytest.raises(Preempted):
        run_tuning(sweep, Tuning(), 5.0, tmp_path, killed)
    assert look(sweep, Tuning(), 5.0, tmp_path).tuned is None
    stage = run_tuning(sweep, Tuning(), 5.0, tmp_path, fake_run)
    whole = run_tuning(sweep, Tuning(), 5.0, tmp_path / "whole", fake_run)
    assert stage.tuned == whole.tuned and stage.sweep.grid == whole.sweep.grid


def test_failures_and_divergence(tmp_path):
    sweep = sweep_of()
    first = look(sweep, Tuning(), 5.0, tmp_path).sweep.points[3].name
    with pytest.raises(BadInput, match=f"{first} failed: out of memory; --retry-failed"):
        broken = lambda stage, path: fake_run(stage, path, broken=(first,))
        run_tuning(sweep, Tuning(), 5.0, tmp_path, broken)
    hot = dataclasses.replace(DESIGN, rates=dataclasses.replace(DESIGN.rates, lr=1e6))
    with pytest.raises(BadInput, match="every tuning run of width 32 diverged, down to"):
        run_tuning(sweep_of(design=hot), Tuning(), 5.0, tmp_path / "hot", fake_run)


@pytest.mark.parametrize(
    "wrong",
    [{"shapes": 0}, {"rates": 1}, {"share": 0}, {"reach": 1.5}, {"batches": ()}, {"batches": (0,)}],
)
def test_what_makes_no_tuning_is_refused(wrong):
    with pytest.raises(BadInput, match=f"tuning.{next(iter(wrong))}"):
        Tuning(**wrong).validate()
