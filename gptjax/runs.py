"""From an Experiment and a folder to a finished run: claim, prepare, resume, train, write up."""

import functools
import time
from collections.abc import Collection
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import jax

from gptjax import data, registry
from gptjax.data.loader import Rows
from gptjax.data.tokenizers import tokenizer_of
from gptjax.errors import printable
from gptjax.evaluation.perplexity import Perplexity
from gptjax.evaluation.population_loss import exact_figures
from gptjax.experiment import Experiment
from gptjax.models.build import model_of
from gptjax.parallel.mesh import check_mesh, make_mesh
from gptjax.run_folder import (
    check_config,
    check_epochs,
    check_folder,
    check_manifest,
    check_steps,
    data_changed,
    leave_nothing_empty,
    manifest,
    write_config,
)
from gptjax.samples import sample_of
from gptjax.scaling.flops import count_parameters
from gptjax.scaling.plots import plot_curves
from gptjax.training.checkpoint import Checkpointer
from gptjax.training.config import OptimConfig, program_config
from gptjax.training.loop import Loop
from gptjax.training.metrics import Progress, Recorder, clock, peak_flops, short
from gptjax.training.optimizer import make_optimizer
from gptjax.training.signals import LeaveAtOnce
from gptjax.training.state import TrainState, abstract_like, init_state
from gptjax.training.step import make_eval_step, make_train_step
from gptjax.training.workdir import claim, storage_errors, write_json


@dataclass(frozen=True)
class Result:
    """What a finished run leaves: its figures (also in result.json) and its parameters."""

    workdir: Path
    figures: dict
    params: object
    sample: str


def fit(
    experiment: Experiment | str,
    workdir: str | Path | None = None,
    *,
    fork: bool = False,
    keep_steps: Collection[int] = (),
    init_from: str = "",
):
    """Train an experiment in a folder, or go on with the one that stands there.

    `workdir` defaults to runs/NAME. `fork` goes on from the newest checkpoint of another config;
    checkpoints of `keep_steps` are written and stay, whatever else is kept. `init_from` names a
    checkpoint of others (`interop.load`) that a new run begins with; one that goes on ignores it.
    Returns a `Result`; raises BadInput for anything the caller can mend, `loop.Preempted` when a
    signal stopped the run after saving it.
    """
    if not isinstance(experiment, Experiment):
        experiment = registry.get(experiment)
    experiment.validate()
    check_mesh(experiment.mesh, jax.device_count(), experiment.mesh_refusal)
    workdir = Path(workdir or Path("runs") / experiment.name)
    LeaveAtOnce.others_wait = jax.process_count() > 1
    with held(workdir):
        begun = time.monotonic()
        more = {"fork": fork, "keep_steps": keep_steps, "init_from": init_from}
        run = open_run(experiment, workdir, **more)
        try:
            state = run.loop.run(run.state)
        finally:
            run.loop.close()
        result = write_up(run, state)
        if jax.process_index() == 0:
            _report(result.figures, workdir, time.monotonic() - begun)
        return result


@contextmanager
def held(workdir: Path):
    """A run's folder, held by this run alone; one that a refusal leaves empty is taken away."""
    with claim(workdir) if jax.process_index() == 0 else nullcontext():
        try:
            yield
        finally:
            leave_nothing_empty(workdir)


def say(text: str) -> None:
    """A line on the screen, from the first process alone."""
    if jax.process_index() == 0:
        print(text, flush=True)


@dataclass
class OpenRun:
    """A run that stands in its folder: a loop to take it from `state` to its end."""

    workdir: Path
    loop: Loop
    state: TrainState
    dataset: data.Dataset
    ledger: "Ledger"
    rows: Rows


def open_run(
    experiment: Experiment,
    workdir: Path,
    *,
    fork: bool = False,
    keep_steps: Collection[int] = (),
    init_from: str = "",
    prepare=data.prepare,
    watched: bool = True,
) -> OpenRun:
    """Check a held folder and everything that the run needs, restore it, write what it is.

    `prepare(config, report=)` gives the dataset. `watched`: with a line of progress of its own.
    """
    main = jax.process_index() == 0
    check_folder(workdir)
    before = check_config(experiment, workdir, fork)
    same_data = before is None or not data_changed(experiment, before)
    if experiment.data.tokenizer_file:  # before a corpus is cut by it
        words = tokenizer_of(experiment.data.tokenizer_file, experiment.data.tokenizer)
        experiment.vocabulary(words)
    dataset = prepare(experiment.data, report=say)
    vocabulary = experiment.vocabulary(dataset.tokenizer)
    rows = experiment.rows(vocabulary)
    check_epochs(experiment, dataset.windows(rows))
    if same_data:
        check_manifest(workdir, dataset)
    split = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    iterator = dataset.train_iterator(**split, rows=rows)
    mesh = make_mesh(experiment.mesh)
    checkpointer = Checkpointer(
        workdir / "checkpoints",
        keep=experiment.train.keep_checkpoints,
        keep_steps=keep_steps,
        report=say,
    )
    state, seconds = _begin(
        experiment, mesh, checkpointer, iterator if same_data else None, init_from
    )
    step = int(state.step)
    if main:
        write_config(experiment, workdir, step)
        source = {"init_from": init_from} if init_from else {}
        write_json(workdir / "manifest.json", manifest(dataset) | source)
        with storage_errors(f"write {workdir / 'tokenizer'}"):
            dataset.tokenizer.save(workdir / "tokenizer")
    ledger = Ledger(experiment)
    say(f"{ledger.headline()} · mesh {'x'.join(map(str, mesh.devices.shape))} of {device_kind()}")
    perplexity = Perplexity(
        make_eval_step(experiment),
        dataset,
        experiment.train.eval_batches,
        mesh,
        split,
        experiment.objective,
        rows,
        vocabulary.token_bytes,
    )
    loop = Loop(
        experiment,
        mesh,
        make_train_step(experiment),
        iterator,
        Recorder(workdir, step) if main else None,
        _progress(experiment, ledger, step, mesh) if main and watched else None,
        checkpointer,
        perplexity,
        ledger.account,
        seconds,
    )
    return OpenRun(workdir, loop, state, dataset, ledger, rows)


def write_up(run: OpenRun, state: TrainState) -> Result:
    """The last figures, a sample, result.json and the curves of a run that has ended."""
    loop, dataset, ledger, experiment = run.loop, run.dataset, run.ledger, run.loop.experiment
    final = loop.figures  # the loop ends with an evaluation, unless the run had ended before
    if final is None:
        with jax.set_mesh(loop.mesh):
            final = loop.evaluate(state.params)
    plain = experiment.objective.kind == "next_token"
    sample = sample_of(experiment, dataset, state.params, loop.mesh)
    figures = {
        "experiment": experiment.name,
        "objective": experiment.objective.kind,
        **final,
        **exact_figures(experiment.data, model_of(experiment.model).apply, state.params, loop.mesh),
        "unigram_nats": dataset.unigram_entropy if plain else dataset.target_entropy(run.rows),
        "parameters": ledger.counts.total,
        "non_embedding_parameters": ledger.counts.non_embedding,
        "active_parameters": ledger.counts.active,
        **ledger.account(experiment.steps),
        "steps": experiment.steps,
        "seconds": round(loop.seconds, 3),
        "sample": sample,
    }
    if jax.process_index() == 0:
        folder = run.workdir
        write_json(folder / "result.json", figures)
        with storage_errors(f"write {folder / 'curves.png'}"):
            plot_curves(folder / "metrics.jsonl", folder / "curves.png", title=experiment.name)
    return Result(run.workdir, figures, state.params, sample)


def _begin(experiment: Experiment, mesh, checkpointer: Checkpointer, iterator, init_from: str):
    """The state to go on from and the seconds already trained; None keeps the data at its start."""
    optimizer = _initialiser(program_config(experiment.optim))
    state = init_state(experiment.model, optimizer, experiment.train.seed, mesh)
    restored = checkpointer.restore(abstract_like(state))
    if restored is None:
        return _started(state, experiment, optimizer, mesh, init_from), 0.0
    workdir = checkpointer.folder.parent
    check_steps(experiment, workdir, restored.step)
    if iterator is not None:
        iterator.set_state(restored.data_state)
    if restored.step == experiment.steps:
        say(f"{workdir} is finished; a higher train.steps and --fork lengthen it")
    else:
        say(f"resuming {workdir} at step {restored.step} of {experiment.steps}")
    return restored.state, restored.extra["seconds"]


def _started(state: TrainState, experiment: Experiment, optimizer, mesh, source: str):
    """A fresh state with the weights of a checkpoint of others, where one is named."""
    if not source:
        return state
    from gptjax import interop

    found = interop.load(source, mesh=mesh, config=experiment.model, tokenizer=False)
    say(f"starting from {source}")
    with jax.set_mesh(mesh):
        return state._replace(params=found.params, opt_state=jax.jit(optimizer.init)(found.params))


@functools.lru_cache(maxsize=32)
def _initialiser(optim: OptimConfig):
    """An optimizer that only begins: one object, and one compiled program, for many runs."""
    return make_optimizer(optim, 1)


class Ledger:
    """What a run has cost at any step, by its config."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.counts = count_parameters(experiment.model)
        self.step_flops = experiment.step_flops.training

    def account(self, step: int) -> dict:
        """The columns that every row of metrics carries.

        `tokens` are those of the text, `predicted_tokens` the places whose output is compared with
        one; the rule of thumb counts what passes the model.
        """
        experiment = self.experiment
        figures = {"tokens": step * experiment.tokens_per_step}
        if experiment.objective.kind != "next_token":
            figures["predicted_tokens"] = step * experiment.predicted_per_step
        return figures | {
            "flops": self.step_flops * step,
            "flops_6nd": 6 * self.counts.active * step * experiment.passed_per_step,
        }

    def headline(self) -> str:
        e, counts = self.experiment, self.counts
        active = f" ({short(counts.active)} active)" if counts.resting else ""
        return (
            f"{e.name}: {short(counts.total)} parameters{active} · {short(e.tokens)} tokens in "
            f"{e.steps} steps · {short(e.flops, 'FLOP')}"
        )


def device_kind() -> str:
    return jax.devices()[0].device_kind


def _progress(experiment: Experiment, ledger: Ledger, step: int, mesh) -> Progress:
    flops, peak = ledger.step_flops, peak_flops(device_kind())
    return Progress(experiment.name, experiment.steps, step, flops, peak and peak * mesh.size)


def _report(figures: dict, workdir: Path, seconds: float) -> None:
    if figures["sample"]:
        print(f"--- sample\n{printable(figures['sample'])}\n---")
    print(
        f"{in_short(figures)} (unigram baseline {figures['unigram_nats']:.4f} nats/token) · "
        f"{clock(seconds)} in all · see {workdir}"
    )


def in_short(figures: dict) -> str:
    """The validation figures of a run in a few words."""
    said = f"validation {figures['validation_loss']:.4f} nats/token"
    bits = ""
    if "bits_per_byte" in figures:
        bits = f" = {figures['bits_per_byte']:.4f} bits/byte"
    if "validation_next_loss" in figures:
        hidden, following = (figures[f"validation_{part}_loss"] for part in ("masked", "next"))
        bits = f" (hidden tokens {hidden:.4f}, next tokens {following:.4f}{bits})"
    said += bits
    if "validation_row_accuracy" in figures:
        said += f", {figures['validation_row_accuracy']:.1%} of the rows in the right class"
    return said
