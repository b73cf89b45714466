"""From an Experiment and a folder to a finished run: claim, prepare, resume, train, write up."""

import dataclasses
import datetime
import json
import platform
import subprocess
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from gptjax import data, registry
from gptjax.errors import BadInput
from gptjax.evaluation.generate import generate
from gptjax.evaluation.perplexity import Perplexity
from gptjax.experiment import Experiment, differences
from gptjax.parallel.mesh import check_mesh, make_mesh
from gptjax.scaling.flops import count_flops, count_parameters
from gptjax.scaling.plots import plot_curves
from gptjax.training.checkpoint import Checkpointer
from gptjax.training.loop import Loop
from gptjax.training.metrics import Progress, Recorder, clock, peak_flops, short
from gptjax.training.optimizer import make_optimizer
from gptjax.training.state import abstract_like, init_state
from gptjax.training.step import make_eval_step, make_train_step
from gptjax.training.workdir import claim, read_json, write_json


@dataclass(frozen=True)
class Result:
    """What a finished run leaves: its figures (also in result.json) and its parameters."""

    workdir: Path
    figures: dict
    params: object
    sample: str


def fit(experiment: Experiment | str, workdir: str | Path | None = None, *, fork: bool = False):
    """Train an experiment in a folder, or go on with the one that stands there.

    `workdir` defaults to runs/NAME. `fork` goes on from the newest checkpoint of another config.
    Returns a `Result`; raises BadInput for anything the caller can mend, `loop.Preempted` when a
    signal stopped the run after saving it.
    """
    if isinstance(experiment, str):
        experiment = registry.get(experiment)
    experiment.validate()
    check_mesh(experiment.mesh, jax.device_count(), experiment.mesh_refusal)
    workdir = Path(workdir or Path("runs") / experiment.name)
    with claim(workdir) if jax.process_index() == 0 else nullcontext():
        try:
            return _fit(experiment, workdir, fork)
        finally:
            _leave_nothing_empty(workdir)


def _fit(experiment: Experiment, workdir: Path, fork: bool) -> Result:
    begun = time.monotonic()
    main = jax.process_index() == 0
    say = print if main else lambda *_: None
    _check_config(experiment, workdir, fork)
    other_data = _data_changed(experiment, workdir)
    dataset = data.prepare(experiment.data, report=say)
    if dataset.vocab_size > experiment.model.vocab_size:
        raise BadInput(
            f"model.vocab_size = {experiment.model.vocab_size} is smaller than the tokenizer's "
            f"{dataset.vocab_size}; give --model.vocab_size={dataset.vocab_size}"
        )
    split = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    iterator = dataset.train_iterator(**split)
    if not other_data:
        _check_manifest(workdir, dataset)
    mesh = make_mesh(experiment.mesh)
    optimizer = make_optimizer(experiment.optim, experiment.steps)
    state = init_state(experiment.model, optimizer, experiment.train.seed, mesh)
    checkpointer = Checkpointer(
        workdir / "checkpoints", keep=experiment.train.keep_checkpoints, report=say
    )
    restored = checkpointer.restore(abstract_like(state))
    seconds = 0.0
    if restored is not None:
        state, seconds = restored.state, restored.extra["seconds"]
        if not other_data:
            iterator.set_state(restored.data_state)
        say(f"resuming {workdir} at step {restored.step} of {experiment.steps}")
    step = int(state.step)
    if main:
        _write_config(experiment, workdir, step)
        write_json(workdir / "manifest.json", manifest(dataset))
        dataset.tokenizer.save(workdir / "tokenizer")
    flops = count_flops(experiment.model, experiment.data.sequence_length)
    counts = count_parameters(experiment.model)
    say(
        f"{experiment.name}: {short(counts.total)} parameters · {short(experiment.tokens)} tokens "
        f"in {experiment.steps} steps · {short(flops.training * experiment.tokens, 'FLOP')} · mesh "
        f"{'x'.join(str(n) for n in mesh.devices.shape)} of {jax.devices()[0].device_kind}"
    )
    recorder = Recorder(workdir) if main else None
    if recorder is not None:
        recorder.log.truncate_after(step)
    kind = jax.devices()[0].device_kind
    peak = peak_flops(kind)
    progress = None
    if main:
        progress = Progress(
            experiment.name,
            experiment.steps,
            step,
            flops.training * experiment.tokens_per_step,
            peak and peak * mesh.size,
        )
    perplexity = Perplexity(
        make_eval_step(experiment), dataset, experiment.train.eval_batches, mesh, split
    )

    def account(step: int) -> dict:
        tokens = step * experiment.tokens_per_step
        return {
            "tokens": tokens,
            "flops": flops.training * tokens,
            "flops_6nd": 6 * counts.total * tokens,
        }

    loop = Loop(
        experiment,
        mesh,
        make_train_step(experiment),
        iterator,
        recorder,
        progress,
        checkpointer,
        perplexity,
        account,
        seconds,
    )
    try:
        state = loop.run(state)
    finally:
        if progress is not None:
            progress.close()
        if recorder is not None:
            recorder.close()
        checkpointer.close()
    final = loop.figures  # the loop ends with an evaluation, unless the run had ended before
    if final is None:
        with jax.set_mesh(mesh):
            final = perplexity(state.params)
    sample = ""
    if experiment.train.sample_tokens:
        sample = _sample(experiment, dataset.tokenizer, state.params, mesh)
    figures = {
        "experiment": experiment.name,
        **final,
        "unigram_nats": dataset.unigram_entropy,
        "parameters": counts.total,
        "non_embedding_parameters": counts.non_embedding,
        **account(experiment.steps),
        "steps": experiment.steps,
        "seconds": round(loop.seconds, 3),
        "sample": sample,
    }
    if main:
        write_json(workdir / "result.json", figures)
        plot_curves(workdir / "metrics.jsonl", workdir / "curves.png", title=experiment.name)
        _report(figures, workdir, time.monotonic() - begun)
    return Result(workdir, figures, state.params, sample)


def _leave_nothing_empty(workdir: Path) -> None:
    """A run that was refused before it wrote anything takes its folder with it."""
    alone = {path.name for path in workdir.iterdir()} == {".lock"}
    if alone and jax.process_index() == 0:
        with suppress(OSError):
            (workdir / ".lock").unlink()
            workdir.rmdir()


def _report(figures: dict, workdir: Path, seconds: float) -> None:
    if figures["sample"]:
        print(f"--- sample\n{figures['sample']}\n---")
    print(
        f"validation {figures['validation_loss']:.4f} nats/token = "
        f"{figures['bits_per_byte']:.4f} bits/byte (unigram baseline "
        f"{figures['unigram_nats']:.4f} nats/token) · {clock(seconds)} in all · see {workdir}"
    )


def _check_config(experiment: Experiment, workdir: Path, fork: bool) -> None:
    """Refuse to go on with another config than the folder's, unless asked to fork."""
    path = workdir / "experiment.json"
    if not path.exists() or fork:
        return
    changed = differences(read_json(path), experiment.to_json())
    if changed:
        shown = "; ".join(changed[:6]) + (f"; and {len(changed) - 6} more" * (len(changed) > 6))
        raise BadInput(
            f"{workdir} holds a run of another config ({shown}): give another --workdir, or "
            "--fork to go on from its newest checkpoint with the new one"
        )


def _data_changed(experiment: Experiment, workdir: Path) -> bool:
    """A fork that reads other data starts reading it from the beginning."""
    path = workdir / "experiment.json"
    if not path.exists():
        return False
    old = {"data": read_json(path)["data"]}
    return bool(differences(old, {"data": experiment.to_json()["data"]}))


def _write_config(experiment: Experiment, workdir: Path, step: int) -> None:
    """The config of the run; that of a forked one is kept beside it."""
    path = workdir / "experiment.json"
    tree = experiment.to_json()
    if path.exists() and differences(read_json(path), tree):
        path.rename(workdir / f"experiment.until-step-{step}.json")
    write_json(path, tree)


def _check_manifest(workdir: Path, dataset) -> None:
    """The corpus and the tokenizer must be those that the run began with."""
    path = workdir / "manifest.json"
    if not path.exists():
        return
    before, now = read_json(path)["data"], dataset.manifest
    for part in ("tokenizer", "corpus"):
        if before[f"{part}_sha256"] != now[f"{part}_sha256"]:
            raise BadInput(
                f"the {part} has changed since {workdir} began ({before[f'{part}_sha256'][:12]} -> "
                f"{now[f'{part}_sha256'][:12]}): give another --workdir"
            )


def manifest(dataset) -> dict:
    """What this run stands on: versions, device, git revision, corpus and tokenizer."""
    from importlib.metadata import PackageNotFoundError, version

    def version_of(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    packages = ("gptjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    device = jax.devices()[0]
    return {
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in packages},
        "device": {"kind": device.device_kind, "platform": device.platform},
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "host": platform.node(),
        "git": _git_revision(),
        "data": dataset.manifest,
    }


def _git_revision() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _sample(experiment: Experiment, tokenizer, params, mesh) -> str:
    train = experiment.train
    prompt = np.array([tokenizer.separator_id, *tokenizer.encode(train.sample_prompt)], np.int32)
    tokens = generate(
        experiment.model,
        params,
        prompt[None],
        train.sample_tokens,
        temperature=train.sample_temperature,
        top_k=train.sample_top_k,
        top_p=train.sample_top_p,
        seed=train.seed,
        stop_token=tokenizer.separator_id,
        vocab_size=tokenizer.vocab_size,
        mesh=mesh,
    )[0]
    return train.sample_prompt + tokenizer.decode(tokens)


def load_experiment(workdir: str | Path) -> Experiment:
    """The experiment of a run's folder."""
    path = Path(workdir) / "experiment.json"
    if not path.exists():
        raise BadInput(f"{workdir} holds no run: there is no experiment.json in it")
    return dataclasses.replace(Experiment.from_json(json.loads(path.read_text())))
