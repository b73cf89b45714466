"""The loop: batches in, updates out, and at set steps a row, an evaluation, a checkpoint.

The metrics of step k are read after step k + 1 has been dispatched, so the device never waits
for the host. A stop signal, a loss that is not finite and the end of the budget are the only
ways out, and each leaves a checkpoint that the next start goes on from.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax.errors import BadInput
from gptjax.parallel import DEFAULT_RULES
from gptjax.parallel.hosts import AGREE_EVERY, any_host
from gptjax.training.optimizer import path_name
from gptjax.training.signals import Preempted, StopSignal
from gptjax.training.state import TrainState


class Diverged(BadInput):
    """The loss or a gradient stopped being finite."""


def to_mesh(batch: dict[str, np.ndarray], mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as arrays of the whole mesh, split over its rows."""
    sharding = NamedSharding(mesh, P(DEFAULT_RULES.batch))
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def router_columns(routing) -> dict[str, float]:
    """`router_balance_loss`, ... of a row: the means over layers that have experts, if any do."""
    if routing is None:
        return {}
    return {f"router_{name}": float(value) for name, value in routing._asdict().items()}


@dataclass
class Loop:
    """Everything a run needs to go from `state.step` to its last step.

    `evaluate(params)` returns a row of validation figures; `account(step)` the columns that every
    row carries (tokens, FLOPs).
    """

    experiment: Any
    mesh: Any
    train_step: Callable
    iterator: Any
    recorder: Any
    progress: Any
    checkpointer: Any
    evaluate: Callable[[Any], dict]
    account: Callable[[int], dict]
    seconds: float = 0.0  # spent training until the newest checkpoint
    figures: dict | None = None  # of the newest evaluation in this start

    def run(self, state: TrainState) -> TrainState:
        """Train to the end; Preempted, Diverged or BadInput (a full disk) leave early."""
        self.begun = time.monotonic() - self.seconds
        self.pending = None
        self.saved = step = int(state.step)
        experiment, stop = self.experiment, None
        with jax.set_mesh(self.mesh), contextlib.ExitStack() as stack:
            while step < experiment.steps:
                batch = to_mesh(next(self.iterator), self.mesh)
                if stop is None and jax.process_count() > 1:  # the others would wait for this one
                    stop = stack.enter_context(StopSignal())
                state, metrics = self.train_step(state, batch)
                if stop is None:  # before the first step is on its way nothing can be lost
                    stop = stack.enter_context(StopSignal())
                before, self.pending = self.pending, (step + 1, metrics)
                if before is not None:
                    self.record(before, state.params)
                step += 1
                stopping = self.stopping(stop, step)
                self.after_step(step, state, stopping)
                if stopping and step < experiment.steps:
                    self.checkpointer.wait()
                    raise Preempted(f"stopped at step {step} and saved")
            self.checkpointer.wait()
        return state

    def due(self, what: str, step: int) -> bool:
        """Whether an "eval" or a "checkpoint" follows this step."""
        if what == "checkpoint" and step in self.checkpointer.keep_steps:
            return True
        return step == self.experiment.steps or step % self.experiment.every(what) == 0

    def after_step(self, step: int, state: TrainState, stopping: bool) -> None:
        """What is due then: an evaluation, a checkpoint."""
        if self.due("eval", step):
            self.flush(state.params)
            self.evaluated(step, state.params)
        if self.due("checkpoint", step) or stopping:
            self.flush(state.params)
            self.save(step, state)

    def close(self) -> None:
        """After a run, however it ended: the screen, the rows and the last save are let go."""
        with contextlib.ExitStack() as stack:  # one that cannot be closed keeps none from it
            stack.callback(self.checkpointer.close)
            if self.recorder is not None:
                stack.callback(self.recorder.close)
            if self.progress is not None:
                stack.callback(self.progress.close)

    def stopping(self, stop: StopSignal, step: int) -> bool:
        """Whether to stop after this step; several hosts agree on it now and then."""
        if jax.process_count() == 1:
            return stop.asked
        return step % AGREE_EVERY == 0 and any_host(stop.asked)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begun

    def flush(self, params) -> None:
        """Read the newest metrics now."""
        if self.pending is not None:
            self.record(self.pending, params)
            self.pending = None

    def record(self, pending, params) -> None:
        step, metrics = pending
        metrics = jax.device_get(metrics)
        if not metrics.finite:
            raise Diverged(self.blame(step, metrics, params))
        row = {
            "step": step,
            "loss": float(metrics.loss),
            "accuracy": float(metrics.accuracy),
            "grad_norm": float(metrics.grad_norm),
            "lr": float(metrics.lr),
            **router_columns(metrics.routing),
            "seconds": round(self.elapsed, 3),
            **self.account(step),
        }
        if self.recorder is not None and step % self.experiment.train.log_every == 0:
            self.recorder.write(row)
        if self.progress is not None:
            self.progress.step(step, row["loss"], self.experiment.tokens_per_step)

    def blame(self, step: int, metrics, params) -> str:
        """Which step and which parameters; and where the largest values are."""
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        groups = [path_name(path) for path, _ in leaves]
        bad = [g for g, s in zip(groups, metrics.squares, strict=True) if not np.isfinite(s)]
        largest = {g: float(abs(leaf).max()) for g, (_, leaf) in zip(groups, leaves, strict=True)}
        top = max(largest, key=largest.get)
        what = f"loss {float(metrics.loss)}"
        kept = f"the last good checkpoint is step {self.saved}"
        if not self.saved:
            kept = "no checkpoint had been written yet"
        where = f"gradients of {', '.join(bad[:3])}" if bad else "no single gradient"
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        return (
            f"not finite at step {step}: {what}; not finite are {where}{more}; the largest "
            f"parameters are in {top} (up to {largest[top]:.3g}); {kept}; lower optim.lr or raise "
            "optim.warmup_fraction"
        )

    def evaluated(self, step: int, params) -> None:
        self.figures = self.evaluate(params)
        row = {"step": step, **self.figures}
        row.update(seconds=round(self.elapsed, 3), **self.account(step))
        if self.recorder is not None:
            self.recorder.write(row)
        if self.progress is not None:
            figures = " · ".join(
                f"{name.replace('_', ' ')} {row[name]:.4f}"
                for name in ("validation_loss", "bits_per_byte")
                if name in row
            )
            self.progress.say(f"step {step} · {figures}")

    def save(self, step: int, state: TrainState) -> None:
        if step == self.saved and step:
            return
        self.seconds = self.elapsed
        extra = {"seconds": self.seconds}
        self.checkpointer.save(step, state, self.iterator.get_state(), extra)
        self.saved = step
