"""Populations: what is stacked computes what runs alone compute, and each keeps its own record."""

import dataclasses

import jax
import numpy as np
import pytest

from gptjax import MeshConfig
from gptjax.errors import BadInput
from gptjax.parallel import make_mesh
from gptjax.training import population_mode
from gptjax.training.loop import to_mesh
from gptjax.training.optimizer import hyper_of
from gptjax.training.population_mode import choose_mode, measure_modes
from gptjax.training.stacked import Mode, population_program, stack, stack_batches, take
from gptjax.training.step import make_train_step
from tests.conftest import changed
from tests.training.test_step import ROTARY_GQA, TIED, batches, begin, experiment

STEPS = 20
SEQUENTIAL = Mode("sequential")


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
        ("map", "adamw", (1, 1, 1), False),
        ("vmap", "adamw", (1, 1, 1), True),
        ("vmap", "muon", (1, 1, 1), False),
        ("vmap", "adafactor", (1, 1, 1), True),
        ("vmap", "adamw", (2, 2, 2), False),
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
            if kind == "map":
                np.testing.assert_array_equal(one, other)


def test_a_member_that_is_not_finite_changes_nothing_and_no_other():
    es = members()
    mesh, state = begin(es[0])
    batch = batches(TIED, 1)[0]
    with jax.set_mesh(mesh):
        wild = state._replace(params=jax.tree.map(lambda x: x * np.inf, state.params))
        states = stack([state, wild, state])
        hyper = jax.tree.map(lambda *x: np.stack(x), *[hyper_of(e.optim, e.steps) for e in es])
        before = jax.device_get(take(states, 1).opt_state)
        program = population_program(es[0], "vmap", True)
        states, metrics = program(states, to_mesh(batch, mesh), hyper)
        assert metrics.finite.tolist() == [True, False, True]
        after = jax.device_get(take(states, 1).opt_state)
        jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_mode_fills_its_groups_evenly():
    assert Mode("vmap", 4).fitted(9) == Mode("vmap", 3)
    assert Mode("vmap", 4).fitted(5) == Mode("vmap", 3)
    assert Mode("map", 8).fitted(1) == Mode("sequential")
    assert [str(Mode("vmap", 4)), str(Mode("sequential"))] == ["vmap of 4", "sequential"]
    for wrong in (Mode("vmap", 9), Mode("vmap", 0), Mode("sequential", 2)):
        with pytest.raises(BadInput, match="the width of a population of 8"):
            wrong.validate(8)


@pytest.mark.parametrize(("ratio", "expected"), [(0.6, Mode("vmap", 4)), (0.99, SEQUENTIAL)])
def test_the_fastest_mode_is_measured_once(tmp_path, monkeypatch, ratio, expected):
    asked = []

    def measured(e, count, *_):
        asked.append(count)
        return {SEQUENTIAL: 1.0, Mode("map", 8): 1.2, Mode("vmap", 4): ratio}

    monkeypatch.setattr(population_mode, "measure_modes", measured)
    mesh, store = make_mesh(MeshConfig(data=1)), tmp_path / "cache" / "modes.json"
    said = []
    for _ in range(2):
        assert choose_mode(experiment(), 8, mesh, store, said.append) == expected
    other = changed(experiment(), optim={"lr": 1.0}, train={"seed": 3})  # the same program
    assert choose_mode(other, 8, mesh, store, said.append) == expected
    assert asked == [8] and f"{expected} (time against sequential" in said[1]
    good = store.read_text()
    for damaged in (
        "{",
        good.replace('"width"', '"wide"'),
        good.replace('"kind": "', '"kind": "x'),
    ):
        store.write_text(damaged)  # it is measured anew
        assert choose_mode(experiment(), 8, mesh, store, said.append) == expected
    assert asked == [8] * 4
    assert choose_mode(experiment(), 1, mesh) == SEQUENTIAL


def test_modes_are_timed_and_those_beyond_memory_left_out(monkeypatch):
    monkeypatch.setattr(population_mode, "ROUND_SECONDS", 0.01)
    mesh, said = make_mesh(MeshConfig(data=1)), []
    ratios = measure_modes(experiment(), 2, mesh, said.append)
    assert list(ratios) == [SEQUENTIAL, Mode("map", 2), Mode("vmap", 2)]
    assert all(0 < ratio < 20 for ratio in ratios.values()) and not said
    monkeypatch.setattr(population_mode, "free_memory", lambda mesh: 1000.0)
    assert measure_modes(experiment(), 2, mesh, said.append)[Mode("vmap", 2)] == float("inf")
    assert "vmap of 2 is left out" in said[-1]
    monkeypatch.setattr(population_mode, "LARGE_ON_CPU", 1e3)
    assert list(measure_modes(experiment(), 2, mesh)) == [SEQUENTIAL]
