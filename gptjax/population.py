"""Many runs of one shape trained in one program, each in a folder of its own as `fit` leaves it.

The runs may differ in whatever is not compiled in: seed, learning rate, decay, betas, warm-up,
clipping, length, order of the data. `Experiment.program` says which can go together.
"""

import copy
import dataclasses
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path

import jax

from gptjax import data
from gptjax.config_tree import flatten
from gptjax.data.config import DataConfig, cache_root
from gptjax.errors import BadInput
from gptjax.experiment import Experiment
from gptjax.parallel.mesh import check_mesh
from gptjax.runs import (
    Ledger,
    OpenRun,
    Result,
    device_kind,
    held,
    in_short,
    open_run,
    say,
    write_up,
)
from gptjax.training.loop import Diverged
from gptjax.training.metrics import Progress, clock, peak_flops
from gptjax.training.population import Member, Population
from gptjax.training.population_mode import choose_mode
from gptjax.training.signals import LeaveAtOnce
from gptjax.training.stacked import KINDS, Mode


def fit_population(
    experiments: Sequence[Experiment],
    workdirs: Sequence[str | Path] | None = None,
    *,
    mode: str = "auto",
    width: int = 0,
    fork: bool = False,
    keep_steps: Sequence[Collection[int]] | None = None,
) -> list[Result | Diverged]:
    """Train experiments of one program side by side, or go on with those that stand there.

    Each has its own folder (by default runs/NAME), from which `fit` or another population can go
    on alone; they may stand at different steps. `mode`: "auto" (the fastest by a measurement that
    is made once a device), "sequential", "map" or "vmap"; `width`: members in one program, 0 for
    all. A run whose loss is not finite gives its `Diverged` instead of a `Result`, and the others
    go on. Raises BadInput for anything the caller can mend, before any step; Preempted when a
    signal stopped the population after saving all of it. `keep_steps`: for each run the
    checkpoints that are written and stay, whatever else is kept.
    """
    experiments = _list_of("experiments", experiments, Experiment, "gptjax.get(NAME)")
    if workdirs is None:
        workdirs = [Path("runs") / e.name for e in experiments]
    folders = _list_of("workdirs", workdirs, str | PathLike, "'runs/a'")
    folders = [Path(folder) for folder in folders]
    _check(experiments, folders)
    forced = _forced(mode, width, len(experiments))
    kept = _kept(keep_steps, len(experiments))
    LeaveAtOnce.others_wait = jax.process_count() > 1
    with ExitStack() as stack:
        begun, datasets, runs = time.monotonic(), _Datasets(), []
        for folder in folders:
            stack.enter_context(held(folder))
        for experiment, folder, keep in zip(experiments, folders, kept, strict=True):
            run = open_run(
                experiment, folder, fork=fork, keep_steps=keep, prepare=datasets, watched=False
            )
            stack.callback(run.loop.close)
            run.loop = Member.of(run.loop, run.state)
            runs.append(run)
        _train(runs, forced)
        return [_ended(run, begun) for run in runs]


def _train(runs: list[OpenRun], mode: Mode | None) -> None:
    members = [run.loop for run in runs]
    training = [member for member in members if member.left]
    if not training:
        return
    first = training[0].experiment
    if mode is None:
        store = cache_root(first.data) / "population_modes.json"
        mode = choose_mode(first, len(training), training[0].mesh, store, say)
    progress = None
    if jax.process_index() == 0:
        progress = _progress(members, runs[0].ledger)
        progress.say(f"{len(training)} runs together: {mode}")
    try:
        Population(members, mode, progress).run()
    finally:
        if progress is not None:
            progress.close()


def _progress(members: list[Member], ledger: Ledger) -> Progress:
    """Counts the steps of all members together; its loss is the lowest."""
    peak = peak_flops(device_kind())
    return Progress(
        f"{len(members)} runs",
        sum(member.experiment.steps for member in members),
        sum(member.step for member in members),
        ledger.step_flops,
        peak and peak * members[0].mesh.size,
    )


def _ended(run: OpenRun, begun: float) -> Result | Diverged:
    member = run.loop
    member.close()
    if member.error is not None:
        return member.error
    result = write_up(run, member.state)
    figures = result.figures
    say(
        f"{figures['experiment']}: {in_short(figures)} · {clock(time.monotonic() - begun)} in all "
        f"· see {run.workdir}"
    )
    return result


class _Datasets:
    """Prepares a corpus once for all runs that differ in the order of its windows alone."""

    def __init__(self):
        self.known: dict[DataConfig, data.Dataset] = {}

    def __call__(self, config: DataConfig, report) -> data.Dataset:
        plain = dataclasses.replace(config, seed=0, epochs=0, workers=0)
        if plain not in self.known:
            self.known[plain] = data.prepare(config, report)
        dataset = copy.copy(self.known[plain])
        dataset.config = config
        return dataset


def _list_of(name: str, values, kind, example: str) -> list:
    """The values as a list; BadInput for the first that is of another kind."""
    if isinstance(values, str | bytes | Experiment | PathLike) or not isinstance(values, Iterable):
        raise BadInput(f"{name} is {values!r:.80}; give a list, such as [{example}]")
    values = list(values)
    for number, value in enumerate(values):
        if not isinstance(value, kind):
            raise BadInput(f"{name}[{number}] is {value!r:.80}; give one such as {example}")
    return values


def _forced(mode: str, width: int, members: int) -> Mode | None:
    """The mode that is asked for, None for "auto"; BadInput for one that cannot be."""
    if not isinstance(mode, str):
        raise BadInput(f"mode is {mode!r}; give one of auto, {', '.join(KINDS)}")
    if not isinstance(width, int) or isinstance(width, bool) or width < 0:
        raise BadInput(f"width is {width!r}; give 1 or more members in one program, or 0 for all")
    if mode == "auto":
        if width:
            raise BadInput(f"width is {width}, and mode is 'auto', which chooses it: leave one out")
        return None
    forced = Mode(mode, 1 if mode == "sequential" else width or members)
    forced.validate(members)
    return forced


def _kept(keep_steps, members: int) -> list:
    """The steps whose checkpoints stay, for each run."""
    if keep_steps is None:
        return [()] * members
    kept = _list_of("keep_steps", keep_steps, Collection, "(100, 200)")
    if len(kept) != members:
        raise BadInput(f"keep_steps has {len(kept)} entries for {members} experiments: one each")
    for steps in kept:
        if not all(isinstance(step, int) and step >= 0 for step in steps):
            raise BadInput(f"keep_steps holds {steps!r:.80}; give numbers of steps, such as (100,)")
    return kept


def _check(experiments: list[Experiment], folders: list[Path]) -> None:
    """BadInput for what cannot be trained together."""
    if not experiments:
        raise BadInput("a population needs one experiment or more")
    if len(experiments) != len(folders):
        raise BadInput(f"{len(experiments)} experiments and {len(folders)} workdirs: give one each")
    places = [folder.absolute() for folder in folders]
    twice = next((folder for folder in places if places.count(folder) > 1), None)
    if twice is not None:
        raise BadInput(f"{twice} is given to two runs of a population: give each its own workdir")
    first = _flat_program(experiments[0])
    for number, experiment in enumerate(experiments):
        experiment.validate()
        check_mesh(experiment.mesh, jax.device_count(), experiment.mesh_refusal)
        other = _flat_program(experiment)
        for name in [name for name in (first | other) if first.get(name) != other.get(name)][:1]:
            raise BadInput(
                f"experiment {number} ({experiment.name}) is of another program than the first: "
                f"{name} is {other.get(name)}, not {first.get(name)}; runs of a population may "
                "differ in seeds, rates, decay, betas, warm-up, clipping and length"
            )


def _flat_program(experiment: Experiment) -> dict[str, object]:
    """The fields that are compiled in, by their dotted names."""
    model, objective, optim, (batch, length, attention, positions), mesh = experiment.program
    parts = {"model": model, "objective": objective, "optim": optim, "mesh": mesh}
    read = {
        "batch_size": batch,
        "sequence_length": length,
        "document_attention": attention,
        "positions": positions,
    }
    parts = {name: dataclasses.asdict(part) for name, part in parts.items()}
    return flatten({**parts, "data": read})
