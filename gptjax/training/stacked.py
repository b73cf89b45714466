"""Several runs of one shape as one compiled program: their states are stacked, stepped at once.

"vmap" makes every operation that much larger, which pays where operations are too small to fill
the device; "map" (`jax.lax.map`) steps one member after the other inside one program, which saves
the host's part of K - 1 steps and computes what single runs compute; "sequential" calls the
program of a single run for each member.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax.errors import BadInput, did_you_mean
from gptjax.parallel import DEFAULT_RULES
from gptjax.training.loop import to_mesh
from gptjax.training.step import train_program, train_step_of

KINDS = ("sequential", "map", "vmap")


@dataclass(frozen=True)
class Mode:
    """How a population is stepped: by programs of `width` members each."""

    kind: Literal["sequential", "map", "vmap"]
    width: int = 1

    def __str__(self) -> str:
        return self.kind if self.kind == "sequential" else f"{self.kind} of {self.width}"

    def fitted(self, members: int) -> "Mode":
        """The same with no more places than so many members, in equal groups, leave filled."""
        groups = -(-members // self.width)
        width = -(-members // groups)
        return Mode(self.kind, width) if width > 1 else Mode("sequential")

    def validate(self, members: int) -> None:
        """BadInput for a kind that is none or a width that no population of so many has."""
        if self.kind not in KINDS:
            raise BadInput(
                f"the population's mode is {self.kind!r}{did_you_mean(self.kind, KINDS)}; give "
                f"one of {', '.join(KINDS)}"
            )
        most = 1 if self.kind == "sequential" else members
        if not 1 <= self.width <= most:
            raise BadInput(
                f"the width of a population of {members} by {self.kind} is {self.width}; give 1"
                + (f" to {most}" if most > 1 else "")
            )


def population_program(experiment, kind: str, shared: bool):
    """The jitted `(states, batch, hypers) -> (states, metrics)`; the states are donated.

    Every array of `states`, `hypers` and the metrics has a leading axis of members, and of the
    batch too unless it is `shared`; for "sequential" none has. Experiments of one program share it.
    """
    if kind == "sequential":
        return train_program(experiment)
    guard = "select" if kind == "vmap" else "branch"
    return jax.jit(_stacked(train_step_of(experiment, guard), kind, shared), donate_argnums=0)


@functools.lru_cache(maxsize=32)
def _stacked(step, kind: str, shared: bool):
    if kind == "vmap":
        return jax.vmap(step, in_axes=(0, None if shared else 0, 0))

    def mapped(states, batch, hypers):
        if shared:
            return jax.lax.map(lambda x: step(x[0], batch, x[1]), (states, hypers))
        return jax.lax.map(lambda x: step(*x), (states, batch, hypers))

    return mapped


@jax.jit
def stack(trees):
    """One tree with a leading axis from a sequence of equal trees."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def take(tree, index):
    """A copy of one member out of a stacked tree."""
    pick = lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
    return jax.tree.map(pick, tree)


def stack_batches(batches: list[dict[str, np.ndarray]], mesh) -> dict[str, jax.Array]:
    """This process's rows of one batch for each member as arrays [K, B, ...] of the whole mesh."""
    sharding = NamedSharding(mesh, P(None, DEFAULT_RULES.batch))
    return {
        name: jax.make_array_from_process_local_data(
            sharding, np.stack([batch[name] for batch in batches])
        )
        for name in batches[0]
    }


class Group:
    """Members in the places of one program, called under their mesh.

    A member offers `state`, `hyper` and `iterator`. A place whose member has left is stepped on
    and never read: another width would be another program to compile.
    """

    def __init__(self, experiment, mesh, mode: Mode, members: list):
        self.mesh, self.kind = mesh, mode.kind
        self._program = functools.cache(
            functools.partial(population_program, experiment, mode.kind)
        )
        self.places: list[Any] = [*members, *[None] * (mode.width - len(members))]
        filled = [*members, *members[:1] * (mode.width - len(members))]
        self._state, self._hyper = members[0].state, members[0].hyper
        if self.kind != "sequential":
            self._state = stack([member.state for member in filled])
            hypers = jax.tree.map(lambda *x: np.stack(x), *[member.hyper for member in filled])
            self._hyper = jax.device_put(hypers, NamedSharding(mesh, P()))
        for member in members:
            member.state = None

    @property
    def members(self) -> list:
        """Those who are still there."""
        return [member for member in self.places if member is not None]

    def step(self, batches: dict[int, dict[str, np.ndarray]]):
        """Step all members, each with the batch under the id of its iterator; the metrics."""
        ids = [id(member.iterator) for member in self.members]
        shared = len(set(ids)) == 1
        if shared:
            batch = to_mesh(batches[ids[0]], self.mesh)
        else:
            own = [ids[0] if m is None else id(m.iterator) for m in self.places]
            batch = stack_batches([batches[which] for which in own], self.mesh)
        self._state, metrics = self._program(shared)(self._state, batch, self._hyper)
        return metrics

    def state_of(self, member):
        """The member's state: a copy, but for "sequential", where the next step donates it."""
        if self.kind == "sequential":
            return self._state
        return take(self._state, self._place(member))

    def read(self, metrics) -> list[tuple[Any, Any]]:
        """(member, its metrics) on the host; waits for the device."""
        metrics = jax.device_get(metrics)
        if self.kind == "sequential":
            return [(member, metrics) for member in self.members]
        return [
            (member, jax.tree.map(lambda x, i=place: x[i], metrics))
            for place, member in enumerate(self.places)
            if member is not None
        ]

    def leave(self, member) -> None:
        """Its place is stepped on, unread."""
        self.places[self._place(member)] = None

    def _place(self, member) -> int:
        return next(place for place, one in enumerate(self.places) if one is member)


def arrange(experiment, mesh, mode: Mode, members: list) -> list[Group]:
    """Members in as few groups as there must be, called under their mesh.

    Members with one iterator stand together, and those that end at the same time.
    """
    first = {id(member.iterator): place for place, member in reversed([*enumerate(members)])}
    members = sorted(members, key=lambda member: (first[id(member.iterator)], member.left))
    count = -(-len(members) // mode.width)
    cuts = [len(members) * i // count for i in range(count + 1)]
    return [Group(experiment, mesh, mode, members[a:b]) for a, b in itertools.pairwise(cuts)]
