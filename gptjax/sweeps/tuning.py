"""Learning rate and batch of every size by trial: short runs of a few shapes, a law through them.

For some shapes of a design's ladder, from its smallest up, and for some batches about the rule's,
a grid of learning rates a factor 2 apart is trained on a few tokens per parameter. A grid grows
while its best stands at its edge; a parabola through the lowest three gives the rate. The batch
with the lowest loss wins, and `Tuned` draws the power laws that serve all sizes. Under
`parametrization="mup"` one shape, the smallest, is tuned for all (arXiv 2203.03466).

It is an ordinary sweep in WORKDIR/tuning, so it survives what sweeps survive; runs that diverge
are infinitely bad, and no more than that.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptjax.errors import BadInput
from gptjax.models.config import DecoderConfig
from gptjax.scaling.checks import check_count, check_number
from gptjax.scaling.flops import count_flops, count_parameters
from gptjax.scaling.planner import shape_row
from gptjax.scaling.rates import Best, Tuned, lowest
from gptjax.sweeps.grid import rows
from gptjax.sweeps.ledger import Ledger, State
from gptjax.sweeps.sweep import Analysis, Sweep
from gptjax.training.config import warmup_length

GROWTH = 6  # rates that a grid may gain
WARMUPS = 3  # of a run's length at the least, so that its rate is really tried
LEAST_STEPS = 40
RATES = 32  # in a first grid: they span 9 decades
BATCHES = 1024  # times the rule's


@dataclass(frozen=True)
class Tuning:
    """How much is tried. The first grids take `share` of the sweep's FLOPs."""

    shapes: int = 3
    reach: float = 0.6  # the largest of them, as a place in the ladder: 1 is its end
    batches: tuple[float, ...] = (0.5, 1.0, 2.0)  # times the rule's
    rates: int = 3  # in a first grid, about the rule's
    share: float = 0.15

    def validate(self) -> None:
        """BadInput for the first field that makes no grid."""
        check_count("tuning.shapes", self.shapes)
        check_count("tuning.rates", self.rates, 2)
        if self.rates > RATES:
            raise BadInput(f"tuning.rates is {self.rates}; give {RATES} or less")
        check_number("tuning.share", self.share)
        check_number("tuning.reach", self.reach)
        if not self.reach <= 1:
            raise BadInput(f"tuning.reach is {self.reach}; give 1 (the largest shape) or less")
        if not isinstance(self.batches, tuple | list):
            raise BadInput(f"tuning.batches is {self.batches!r}; give several, such as (1.0, 2.0)")
        if not self.batches:
            raise BadInput("tuning.batches is empty; give (1.0,) for the rule's alone")
        for batch in self.batches:
            check_number("tuning.batches", batch)
            if batch > BATCHES:
                raise BadInput(f"tuning.batches holds {batch}; give {BATCHES} or less")


@dataclass(frozen=True)
class Cell:
    """One shape on one batch, and the learning rates that are tried for it, ascending."""

    shape: DecoderConfig
    batch: int  # sequences
    rates: tuple[float, ...]


def first_cells(sweep: Sweep, tuning: Tuning) -> tuple[Cell, ...]:
    """The grids that tuning begins with."""
    tuning.validate()
    design, model = sweep.design, sweep.base.model
    shapes = design.ladder(model)
    last = round(tuning.reach * (len(shapes) - 1))
    count = 1 if model.parametrization == "mup" else min(tuning.shapes, last + 1)
    places = {round(last * i / max(count - 1, 1)) for i in range(count)}
    cells = []
    for shape in (shapes[i] for i in sorted(places)):
        usual = design.rates.batch(shape, design.length)
        for batch in sorted({max(round(usual * times), 1) for times in tuning.batches}):
            # Adam's best rate grows with the root of the batch (arXiv 2205.10287).
            middle = design.rates.rate(shape) * math.sqrt(batch / usual)
            steps = (i - (tuning.rates - 1) // 2 for i in range(tuning.rates))
            cells.append(Cell(shape, batch, tuple(_rate(middle * 2.0**step) for step in steps)))
    return tuple(cells)


def _rate(value: float) -> float:
    return float(f"{value:.3g}")


def tokens_per_parameter(sweep: Sweep, cells: Sequence[Cell], tuning: Tuning) -> float:
    """What a tuning run may read, so that the first grids take their share of the sweep's FLOPs.

    Never more than the sweep's own ratio.
    """
    design = sweep.design
    each = (
        len(cell.rates)
        * count_flops(cell.shape, design.length).training
        * count_parameters(cell.shape).total
        for cell in cells
    )
    ratio = tuning.share * design.total / sum(each)
    return float(f"{min(ratio, design.tokens_per_parameter):.2g}")


def tuning_sweep(sweep: Sweep, cells: Sequence[Cell], ratio: float) -> Sweep:
    """The runs of these cells on `ratio` tokens per parameter, as a sweep.

    No run is shorter than three warm-ups on the largest batch of its shape.
    """
    design, base = sweep.design, sweep.base
    largest: dict[DecoderConfig, int] = {}
    for cell in cells:
        largest[cell.shape] = max(cell.batch, largest.get(cell.shape, 0))
    found = []
    for cell in cells:
        shape, width = cell.shape, cell.shape.d_model
        floor = max(WARMUPS * warmup_length(base.optim, LEAST_STEPS), LEAST_STEPS)
        tokens = ratio * count_parameters(shape).total
        tokens = max(tokens, floor * largest[shape] * design.length)
        for rate in cell.rates:
            found.append(
                {
                    "name": f"L{shape.num_layers}_d{width}_B{cell.batch}_lr{rate:g}",
                    "group": f"L{shape.num_layers}_d{width}",
                    **shape_row(base.model, shape),
                    "optim.lr": rate,
                    "data.batch_size": cell.batch,
                    "data.sequence_length": design.length,
                    "train.tokens": 0,
                    "train.steps": round(tokens / (cell.batch * design.length)),
                }
            )
    return Sweep(
        f"{sweep.name}_tuning",
        base,
        rows(*found),
        Analysis(laws=(), loss=sweep.analysis.loss),
        attempts=sweep.attempts,
        together=sweep.together,
    )


Losses = Mapping[tuple[Cell, float], float]


def losses_of(
    cells: Sequence[Cell], stage: Sweep, states: Mapping[str, State]
) -> dict[tuple[Cell, float], float]:
    """The loss of every run of the cells; infinite for one that diverged."""
    which = [(cell, rate) for cell in cells for rate in cell.rates]
    key = stage.analysis.loss
    found = {}
    for place, point in zip(which, stage.points, strict=True):
        state = states[point.name]
        found[place] = state.figures.get(key, math.inf) if state.status == "done" else math.inf
    return found


def check_failed(states: Mapping[str, State]) -> None:
    """BadInput when a run failed: it is no result, and the others wait for it."""
    for name, state in states.items():
        if state.status == "failed":
            raise BadInput(
                f"tuning cannot go on: {name} failed: {state.error}; --retry-failed tries it again"
            )


def grown(cells: Sequence[Cell], losses: Losses, rates: int) -> tuple[Cell, ...]:
    """The cells with more rates at the edge where the best stands; the same when none does.

    A grid that began with so many `rates` ends to grow when it has six more.
    """
    found = []
    for cell in cells:
        _, _, more = lowest(cell.rates, [losses[cell, rate] for rate in cell.rates])
        for _ in range(min(abs(more), rates + GROWTH - len(cell.rates))):
            new = (_rate(cell.rates[0] / 2),) if more < 0 else ()
            new += (*cell.rates, *((_rate(cell.rates[-1] * 2),) if more > 0 else ()))
            cell = dataclasses.replace(cell, rates=new)
        found.append(cell)
    return tuple(found)


def tuned_rates(cells: Sequence[Cell], losses: Losses, length: int) -> Tuned:
    """The best rate and batch of every shape; BadInput when all runs of one diverged."""
    best: dict[DecoderConfig, Best] = {}
    for cell in cells:
        rate, loss, _ = lowest(cell.rates, [losses[cell, rate] for rate in cell.rates])
        known = best.get(cell.shape)
        if known is None or loss < known.loss:
            size, width = count_parameters(cell.shape).total, cell.shape.d_model
            best[cell.shape] = Best(size, width, _rate(rate), cell.batch * length, loss)
    for found in best.values():
        if not math.isfinite(found.loss):
            raise BadInput(
                f"every tuning run of width {found.width} diverged, down to a rate of "
                f"{found.lr:g}; give the design a lower lr"
            )
    return Tuned(tuple(sorted(best.values(), key=lambda found: found.parameters)))


@dataclass(frozen=True)
class Stage:
    """Where tuning stands: the runs of the newest round, and the rounds so far."""

    sweep: Sweep
    rounds: int
    states: Mapping[str, State]  # empty where nothing was begun
    tuned: Tuned | None = None  # None while some of them are not finished


def look(sweep: Sweep, tuning: Tuning, ratio: float, folder: Path) -> Stage:
    """The stage that a folder has come to, by its ledger; nothing is run or written."""
    cells, rounds = first_cells(sweep, tuning), 1
    while True:
        stage = tuning_sweep(sweep, cells, ratio)
        names = [point.name for point in stage.points]
        if not (folder / "ledger").is_dir():
            return Stage(stage, rounds, {})
        states = Ledger(folder, names).states()
        if not all(state.status in ("done", "diverged") for state in states.values()):
            return Stage(stage, rounds, states)
        losses = losses_of(cells, stage, states)
        more = grown(cells, losses, tuning.rates)
        if more == cells:
            tuned = tuned_rates(cells, losses, sweep.design.length)
            return Stage(stage, rounds, states, tuned)
        cells, rounds = more, rounds + 1


def run_tuning(
    sweep: Sweep,
    tuning: Tuning,
    ratio: float,
    folder: Path,
    run: Callable[[Sweep, Path], object],
    say: Callable[[str], None] = print,
) -> Stage:
    """Run what is not finished, round by round; `run(stage, folder)` runs a sweep in a folder.

    Preempted when some runs are not finished after that; BadInput when one failed.
    """
    from gptjax.training.signals import Preempted

    while True:
        stage = look(sweep, tuning, ratio, folder)
        if stage.tuned is not None:
            return stage
        say(f"tuning, round {stage.rounds}: {len(stage.sweep.points)} runs")
        run(stage.sweep, folder)
        names = [point.name for point in stage.sweep.points]
        states = Ledger(folder, names).states()
        check_failed(states)
        if not all(state.finished for state in states.values()):
            raise Preempted("some tuning runs are with other workers")
