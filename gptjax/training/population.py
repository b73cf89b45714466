"""The loop over a population: runs of one shape trained side by side, each with its own record.

Every member is a `Loop` of its own: its step, data, rows, evaluations and checkpoints are those
of a run that is alone, so it can go on alone or in another population. Only the steps are taken
together. A member that has ended, or whose loss is not finite, leaves; the others go on.
"""

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import jax

from gptjax.parallel.hosts import AGREE_EVERY, any_host
from gptjax.training.loop import Diverged, Loop
from gptjax.training.optimizer import Hyper, hyper_of
from gptjax.training.signals import Preempted, StopSignal
from gptjax.training.stacked import Group, Mode, arrange
from gptjax.training.state import TrainState


class ShareClock:
    """Seconds that have passed, each divided by the number of members then training."""

    def __init__(self):
        self.total, self.last, self.members = 0.0, time.monotonic(), 1

    def now(self) -> float:
        before, self.last = self.last, time.monotonic()
        self.total += (self.last - before) / self.members
        return self.total

    def divide(self, members: int) -> None:
        """From now on among so many."""
        self.now()
        self.members = max(members, 1)


@dataclass(eq=False)
class Member(Loop):
    """A run inside a population; its seconds are its share of those that pass.

    `state` is None while a group holds it.
    """

    state: TrainState | None = None
    hyper: Hyper | None = None
    error: Diverged | None = None

    @classmethod
    def of(cls, loop: Loop, state: TrainState) -> "Member":
        """The run of a loop, to go on from this state in a population."""
        fields = {f.name: getattr(loop, f.name) for f in dataclasses.fields(Loop)}
        hyper = hyper_of(loop.experiment.optim, loop.experiment.steps)
        return cls(**fields, state=state, hyper=hyper)

    def __post_init__(self):
        self.step = self.saved = int(self.state.step)
        self.pending = None  # a group reads the metrics of all its members
        self.before, self.clock = self.seconds, ShareClock()

    @property
    def elapsed(self) -> float:
        return self.before + self.clock.now()

    @property
    def left(self) -> int:
        """Steps to the end."""
        return self.experiment.steps - self.step


class Population:
    """Members of one program on one mesh, and the mode in which they are stepped."""

    def __init__(self, members: list[Member], mode: Mode, progress: Any = None):
        self.members, self.mode, self.progress = members, mode, progress
        self.experiment, self.mesh = members[0].experiment, members[0].mesh
        self.groups: list[Group] = []
        self.unread: list[tuple[Group, Any]] = []  # metrics of the newest steps
        self.clock = ShareClock()
        for member in members:
            member.clock = self.clock

    def run(self) -> None:
        """Train every member to its end; afterwards each has its `state` or its `error`.

        Preempted after a signal, when all have been saved; BadInput for a disk that is full.
        """
        self.share_iterators()
        training = [member for member in self.members if member.left]
        ticks, stop = 0, None
        with jax.set_mesh(self.mesh), contextlib.ExitStack() as stack:
            self.regroup(training, self.mode.fitted(max(len(training), 1)))
            while training:
                if stop is None and jax.process_count() > 1:  # the others would wait for this one
                    stop = stack.enter_context(StopSignal())
                self.advance()
                if stop is None:  # before the first step is on its way nothing can be lost
                    stop = stack.enter_context(StopSignal())
                ticks += 1
                stopping = self.stopping(stop, ticks)
                self.wind_up(stopping)
                training = self.let_go(training)
                if stopping and training:
                    self.wait()
                    steps = sorted({member.step for member in training})
                    where = "step " + " and ".join(map(str, steps[:: max(len(steps) - 1, 1)]))
                    raise Preempted(f"{len(training)} runs stopped at {where} and saved")
            self.wait()

    def share_iterators(self) -> None:
        """Members that read the same data and stand at the same place read it once."""
        for place, member in enumerate(self.members):
            for other in self.members[:place]:
                same = member.experiment.data == other.experiment.data and other.left
                if same and member.iterator.get_state() == other.iterator.get_state():
                    member.iterator = other.iterator
                    break

    def regroup(self, training: list[Member], mode: Mode) -> None:
        for group in self.groups:
            for member in group.members:
                member.state = group.state_of(member)
        self.mode = mode
        self.clock.divide(len(training))
        self.groups = arrange(self.experiment, self.mesh, mode, training) if training else []

    def advance(self) -> None:
        """Dispatch a step of everyone, then read the metrics of the step before."""
        iterators = {id(m.iterator): m.iterator for group in self.groups for m in group.members}
        batches = {name: next(iterator) for name, iterator in iterators.items()}
        before, self.unread = self.unread, []
        for group in self.groups:
            self.unread.append((group, group.step(batches)))
            for member in group.members:
                member.step += 1
        self.read(before, behind=1)

    def read(self, unread, behind: int = 0) -> None:
        """Rows of the metrics, which are `behind` steps old."""
        losses = []
        for group, metrics in unread:
            for member, one in group.read(metrics):
                try:
                    params = None if one.finite else group.state_of(member).params
                    member.record((member.step - behind, one), params)
                    losses.append(float(one.loss))
                except Diverged as error:
                    member.error = error
                    group.leave(member)
        if self.progress is not None and losses:
            done = sum(member.step for member in self.members)
            self.progress.step(done, min(losses), self.experiment.tokens_per_step)

    def wind_up(self, stopping: bool) -> None:
        """Evaluations and checkpoints that are due, and the states of those at their end."""
        due = lambda m: stopping or m.due("eval", m.step) or m.due("checkpoint", m.step)
        if any(due(member) for group in self.groups for member in group.members):
            self.read_newest()
        for group in self.groups:
            for member in filter(due, group.members):
                state = group.state_of(member)
                member.after_step(member.step, state, stopping)
                if not member.left:
                    member.state = state
                    group.leave(member)

    def read_newest(self) -> None:
        unread, self.unread = self.unread, []
        self.read(unread)

    def let_go(self, training: list[Member]) -> list[Member]:
        """Those who go on, in fewer or narrower groups where that saves work."""
        if sum(len(group.members) for group in self.groups) == len(training):
            return training
        self.read_newest()
        staying = [member for group in self.groups for member in group.members]
        self.clock.divide(len(staying))
        for member in training:
            if member.error is not None and self.progress is not None:
                self.progress.say(f"{member.experiment.name}: {member.error}")
        count = -(-len(staying) // self.mode.width)
        narrow = count == 1 and 2 * len(staying) <= self.mode.width
        if narrow or count < len(self.groups):
            self.regroup(staying, self.mode.fitted(len(staying)) if narrow else self.mode)
        return staying

    def stopping(self, stop: StopSignal, ticks: int) -> bool:
        """Whether to stop after this step; several hosts agree on it now and then."""
        if jax.process_count() == 1:
            return stop.asked
        return ticks % AGREE_EVERY == 0 and any_host(stop.asked)

    def wait(self) -> None:
        """Until every checkpoint is on the disk."""
        for member in self.members:
            member.checkpointer.wait()
