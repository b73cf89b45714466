"""From an Experiment and a folder to a finished run: claim, prepare, resume, train, write up."""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from gptjax import data, registry
from gptjax.errors import BadInput, printable
from gptjax.evaluation.generate import generate
from gptjax.evaluation.perplexity import Perplexity
from gptjax.experiment import Experiment
from gptjax.parallel.mesh import check_mesh, make_mesh
from gptjax.run_folder import (
    check_config,
    check_epochs,
    check_manifest,
    check_steps,
    data_changed,
    leave_nothing_empty,
    manifest,
    write_config,
)
from gptjax.scaling.flops import count_flops, count_parameters
from gptjax.scaling.plots import plot_curves
from gptjax.training.checkpoint import Checkpointer
from gptjax.training.loop import Loop
from gptjax.training.metrics import Progress, Recorder, clock, peak_flops, short
from gptjax.training.optimizer import make_optimizer
from gptjax.training.state import abstract_like, init_state
from gptjax.training.step import make_eval_step, make_train_step
from gptjax.training.workdir import MetricsLog, claim, write_json


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
    if not isinstance(experiment, Experiment):
        experiment = registry.get(experiment)
    experiment.validate()
    check_mesh(experiment.mesh, jax.device_count(), experiment.mesh_refusal)
    workdir = Path(workdir or Path("runs") / experiment.name)
    with claim(workdir) if jax.process_index() == 0 else nullcontext():
        try:
            return _fit(experiment, workdir, fork)
        finally:
            leave_nothing_empty(workdir)


def _fit(experiment: Experiment, workdir: Path, fork: bool) -> Result:
    begun = time.monotonic()
    main = jax.process_index() == 0
    say = partial(print, flush=True) if main else lambda *_: None
    before = check_config(experiment, workdir, fork)
    other_data = before is not None and data_changed(experiment, before)
    dataset = data.prepare(experiment.data, report=say)
    if dataset.vocab_size > experiment.model.vocab_size:
        raise BadInput(
            f"model.vocab_size = {experiment.model.vocab_size} is smaller than the tokenizer's "
            f"{dataset.vocab_size}; give --model.vocab_size={dataset.vocab_size}"
        )
    split = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    iterator = dataset.train_iterator(**split)
    check_epochs(experiment, dataset)
    if not other_data:
        check_manifest(workdir, dataset)
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
        check_steps(experiment, workdir, restored.step)
        if restored.step == experiment.steps:
            say(f"{workdir} is finished; a higher train.steps and --fork lengthen it")
        else:
            say(f"resuming {workdir} at step {restored.step} of {experiment.steps}")
    step = int(state.step)
    MetricsLog(workdir / "metrics.jsonl").rows()  # damage is found before anything is written
    if main:
        write_config(experiment, workdir, step)
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


def _report(figures: dict, workdir: Path, seconds: float) -> None:
    if figures["sample"]:
        print(f"--- sample\n{printable(figures['sample'])}\n---")
    print(
        f"validation {figures['validation_loss']:.4f} nats/token = "
        f"{figures['bits_per_byte']:.4f} bits/byte (unigram baseline "
        f"{figures['unigram_nats']:.4f} nats/token) · {clock(seconds)} in all · see {workdir}"
    )


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
