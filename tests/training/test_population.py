"""Populations: what is stacked computes what runs alone compute, and each keeps its own record."""

import dataclasses

import jax
import numpy as np
import pytest

from gptjax.training.loop import to_mesh
from gptjax.training.optimizer import hyper_of
from gptjax.training.stacked import population_program, stack, stack_batches, take
from gptjax.training.step import make_train_step
from tests.conftest import changed
from tests.training.test_step import ROTARY_GQA, TIED, batches, begin, experiment

STEPS = 20


def members(model=TIED, **optim):
    """Three runs that differ in every traced number."""
    base = experiment(model, **optim)
    return [
        base,
        changed(base, optim={"lr": 1e-2, "b1": 0.8, "clip_norm": 0.3}, train={"steps": 13}),
        changed(base, optim={"weight_decay": 0.4, "warmup_steps": 5, "final_lr": 0.5}),
    ]


def alone(e, shape, own: list[dict], number: int):
    mesh, state = begin(e, shape)
    losses = []
    with jax.set_mesh(mesh):
        state = state._replace(rng=jax.random.fold_in(state.rng, number))
        step = make_train_step(e)
        for batch in own:
            state, metrics = step(state, to_mesh(batch, mesh))
            losses.append(float(metrics.loss))
    return np.array(losses), jax.device_get(state.params)


def together(kind: str, es, shape, data: list[list[dict]], shared: bool):
    mesh, _ = begin(es[0], shape)
    states = [begin(e, shape)[1] for e in es]
    hypers = [hyper_of(e.optim, e.steps) for e in es]
    losses = []
    with jax.set_mesh(mesh):
        states = [s._replace(rng=jax.random.fold_in(s.rng, i)) for i, s in enumerate(states)]
        state, hyper = stack(states), jax.tree.map(lambda *x: np.stack(x), *hypers)
        program = population_program(es[0], kind, shared)
        for batch in zip(*data, strict=True):
            rows = to_mesh(batch[0], mesh) if shared else stack_batches(batch, mesh)
            state, metrics = program(state, rows, hyper)
            losses.append(np.asarray(metrics.loss))
        return np.stack(losses, 1), [jax.device_get(take(state, i).params) for i in range(len(es))]


@pytest.mark.parametrize(
    ("kind", "optim", "shape", "shared"),
    [
        ("map", "adamw", (1, 1, 1), True),
        ("map", "muon", (1, 1, 1), False),
        ("vmap", "adamw", (1, 1, 1), True),
        ("vmap", "adamw", (1, 1, 1), False),
        ("vmap", "muon", (1, 1, 1), True),
        ("vmap", "lion", (1, 1, 1), True),
        ("vmap", "adafactor", (1, 1, 1), True),
        ("vmap", "adamw", (2, 2, 2), False),
        ("map", "adamw", (2, 2, 2), True),
    ],
)
def test_members_compute_what_single_runs_compute(kind, optim, shape, shared):
    model = dataclasses.replace(ROTARY_GQA if optim == "adamw" else TIED, dropout=0.1)
    es = members(model, name=optim)
    data = [batches(model, STEPS, seed=0 if shared else i) for i in range(3)]
    losses, params = together(kind, es, shape, data, shared)
    for i, e in enumerate(es):
        expected, expected_params = alone(e, shape, data[i], i)
        np.testing.assert_allclose(losses[i], expected, rtol=0, atol=1e-5)
        for one, other in zip(*map(jax.tree.leaves, (params[i], expected_params)), strict=True):
            if kind == "map" and shape == (1, 1, 1):
                np.testing.assert_array_equal(one, other)
