"""One step: the same on every mesh, under every optimizer, and harmless when it is not finite."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax import DataConfig, DecoderConfig, Experiment, MeshConfig, NextToken, TrainConfig
from gptjax.models.build import init_params
from gptjax.models.config import AttentionConfig, EmbeddingConfig
from gptjax.models.config_parts import ExpertsConfig
from gptjax.models.kinds import EncoderConfig, EncoderDecoderConfig, TwoStreamConfig
from gptjax.parallel import make_mesh
from gptjax.training.loop import to_mesh
from gptjax.training.optimizer import (
    OptimConfig,
    decay_mask,
    hyper_of,
    is_block_matrix,
    make_optimizer,
    make_schedule,
    path_name,
    width_multipliers,
)
from gptjax.training.state import TrainState, init_state, param_specs
from gptjax.training.step import make_eval_step, make_train_step, train_program
from tests.conftest import changed

ROWS, LENGTH, STEPS = 8, 13, 20
ROTARY_GQA = DecoderConfig(
    vocab_size=64,
    context_length=LENGTH,
    num_layers=1,
    d_model=16,
    num_heads=4,
    num_kv_heads=2,
    positions="rotary",
    norm="rmsnorm",
    activation="swiglu",
    biases="none",
    tied_embeddings=False,
)
TIED = DecoderConfig(
    vocab_size=61, context_length=LENGTH, num_layers=1, d_model=16, num_heads=4, d_ff=32
)
MUP = dataclasses.replace(ROTARY_GQA, layers="scan", d_ff=32, parametrization="mup", base_width=4)
MEMORY = dataclasses.replace(
    ROTARY_GQA,
    positions="relative",
    block="post",
    activation="gelu_erf",
    attention=AttentionConfig(memory=4),
    embedding=EmbeddingConfig(size=12, scale=4.0, head_bias=True),
    init="fan_in",
)
QUERY_LAYER = dataclasses.replace(
    TIED,
    num_layers=2,
    block="parallel_two_norms",
    biases="output",
    attention=AttentionConfig(top_query="positions"),
    embedding=EmbeddingConfig(norm=True, position_offset=2, outputs=61),
    tied_embeddings=False,
)
BUCKETS = dataclasses.replace(
    TIED, positions="relative_bias", attention=AttentionConfig(buckets=4, max_distance=9)
)
MODELS = {
    "rotary_gqa": ROTARY_GQA,
    "tied": TIED,
    "mup": MUP,
    "memory": MEMORY,
    "query_layer": QUERY_LAYER,
    "buckets": BUCKETS,
}
ONE = (1, 1, 1)


def experiment(model: DecoderConfig = TIED, **optim) -> Experiment:
    return Experiment(
        name="step",
        model=model,
        data=DataConfig(batch_size=ROWS, sequence_length=LENGTH),
        train=TrainConfig(steps=STEPS),
        optim=OptimConfig(**{"lr": 3e-3, **optim}),
    )


def batches(model: DecoderConfig, count: int, seed: int = 0) -> list[dict]:
    """Tokens of which every second is the one before it: there is something to learn."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, model.vocab_size, (count, ROWS, LENGTH + 1), dtype=np.int32)
    ids[:, :, 1::2] = ids[:, :, :-1:2]
    return [{"tokens": x[:, :-1], "targets": x[:, 1:]} for x in ids]


@functools.cache
def fresh_params(model: DecoderConfig):
    return jax.device_get(jax.jit(lambda: init_params(model, jax.random.key(0)))())


def begin(e: Experiment, shape=ONE):
    """A mesh and a fresh state on it; parameters are made once, as compiling that is slow."""
    mesh = make_mesh(MeshConfig(*shape))
    params = jax.tree.map(
        lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)),
        fresh_params(e.model),
        param_specs(e.model, mesh),
    )
    with jax.set_mesh(mesh):
        opt_state = jax.jit(make_optimizer(e.optim, e.steps).init)(params)
        scalars = jax.device_put((np.int32(0), jax.random.key(1)), NamedSharding(mesh, P()))
    return mesh, TrainState(scalars[0], params, opt_state, scalars[1])


def train(e: Experiment, shape=ONE, count: int = STEPS):
    """(losses, parameters, metrics of the last step) after so many steps."""
    mesh, state = begin(e, shape)
    losses = []
    with jax.set_mesh(mesh):
        step = make_train_step(e)
        for batch in batches(e.model, count):
            state, metrics = step(state, to_mesh(batch, mesh))
            losses.append(float(metrics.loss))
    return np.array(losses), jax.device_get(state.params), jax.device_get(metrics)


@functools.cache
def on_one_device(name: str):
    return train(experiment(MODELS[name]))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("rotary_gqa", (8, 1, 1)),
        ("rotary_gqa", (1, 4, 1)),
        ("rotary_gqa", (1, 1, 4)),  # 4 heads over 4, of 2 key/value heads
        ("rotary_gqa", (2, 2, 2)),
        ("tied", (2, 2, 1)),
        ("tied", (1, 2, 2)),  # 61 tokens split over no two devices
        ("tied", (1, 1, 4)),
        ("mup", (2, 2, 2)),
        ("memory", (2, 2, 2)),
        ("query_layer", (1, 2, 4)),
        ("buckets", (2, 1, 4)),
    ],
)
def test_the_same_losses_on_every_mesh(name, shape):
    losses, params, _ = train(experiment(MODELS[name]), shape)
    expected, expected_params, _ = on_one_device(name)
    assert expected[-1] < expected[0] - 0.05
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    # A constant among the sinusoids of distances moves all scores alike: its weights' gradients are
    # rounding, which Adam makes as large as any.
    atol = 1e-2 if name == "memory" else 1e-3
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=atol)
    jax.tree.map(near, params, expected_params)


def test_a_fresh_state_does_not_depend_on_the_mesh():
    e = experiment(ROTARY_GQA)
    optimizer = make_optimizer(e.optim, e.steps)
    states = []
    for shape in (ONE, (2, 2, 2)):
        mesh = make_mesh(MeshConfig(*shape))
        state = init_state(e.model, optimizer, 3, mesh)
        for leaf in jax.tree.leaves(state):
            assert leaf.sharding.mesh == mesh
        states.append(state._replace(rng=jax.random.key_data(state.rng)))
    query = states[1].params["layer_0"]["attention"]["query"]
    assert query.sharding.spec == P("fsdp", "tensor", None)
    one, many = jax.device_get(states)
    jax.tree.map(np.testing.assert_array_equal, one, many)


@functools.cache
def updated(name: str, shape):
    """Parameters after two updates with given gradients."""
    e = experiment(ROTARY_GQA, name=name, lr=1e-2, warmup_fraction=0.0)
    mesh, state = begin(e, shape)
    optimizer = make_optimizer(e.optim, e.steps)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), state.params)
    grads = jax.tree.map(lambda g, p: jax.device_put(g, p.sharding), grads, state.params)

    @jax.jit
    def update(params, opt_state):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    with jax.set_mesh(mesh):
        params, opt_state = state.params, state.opt_state
        for _ in range(2):
            params, opt_state = update(params, opt_state)
        (batch,) = batches(e.model, 1)
        hyper = hyper_of(e.optim, e.steps)
        train_program(e).trace(state, to_mesh(batch, mesh), hyper)  # layouts fit the whole step
    jax.tree.map(
        lambda p, q: p.sharding == q.sharding or pytest.fail("moved"), params, state.params
    )
    return jax.device_get(params)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_every_optimizer_is_the_same_on_a_sharded_mesh(name):
    params, expected = updated(name, (2, 2, 2)), updated(name, ONE)
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(near, params, expected)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, fresh_params(ROTARY_GQA))
    assert all(0 < x < 1 for x in jax.tree.leaves(moved))


@pytest.mark.parametrize(("pieces", "shape"), [(4, ONE), (2, (2, 2, 1))])
def test_accumulation_changes_nothing(pieces, shape):
    e = experiment(ROTARY_GQA)
    expected, expected_params, expected_metrics = _two_steps(e)
    losses, params, metrics = train(changed(e, optim={"accumulation": pieces}), shape, 2)
    np.testing.assert_allclose(losses, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm, expected_metrics.grad_norm, rtol=1e-4)
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(near, params, expected_params)


@functools.cache
def _two_steps(e: Experiment):
    return train(e, ONE, 2)


def test_the_loss_is_the_mean_over_the_predicted_tokens():
    """A fresh model with zero weights knows nothing: log V, and the z-loss adds log(V)^2."""
    e = experiment(TIED)
    mesh, state = begin(e)
    nothing = jax.tree.map(jnp.zeros_like, state.params)
    (batch,) = batches(TIED, 1)
    z = 0.01
    with jax.set_mesh(mesh):
        sums = make_eval_step(e)(nothing, to_mesh(batch, mesh))
        with_z = dataclasses.replace(e, objective=NextToken(z_loss=z))
        z_sums = make_eval_step(with_z)(nothing, to_mesh(batch, mesh))
    assert sums.tokens == ROWS * LENGTH
    np.testing.assert_allclose(sums.nats / sums.tokens, np.log(61), rtol=1e-6)
    np.testing.assert_allclose(sums.total, sums.nats, rtol=1e-6)
    np.testing.assert_allclose(z_sums.nats, sums.nats, rtol=1e-6)
    np.testing.assert_allclose(
        z_sums.total, sums.nats + z * ROWS * LENGTH * np.log(61) ** 2, rtol=1e-6
    )


def test_weights_of_a_batch_choose_its_tokens():
    """Weights of zero leave tokens out of the loss and of the gradient, in one piece or two."""
    e = experiment(TIED, warmup_fraction=0.0)
    (batch,) = batches(TIED, 1)
    weights = np.zeros((ROWS, LENGTH), np.float32)
    weights[:3, :7] = 1.0
    batch["weights"] = weights
    other = {**batch, "targets": np.where(weights > 0, batch["targets"], 0).astype(np.int32)}

    def once(e, batch):
        mesh, state = begin(e)
        with jax.set_mesh(mesh):
            state, metrics = make_train_step(e)(state, to_mesh(batch, mesh))
        return jax.device_get((state.params, metrics.loss))

    params, loss = once(e, batch)
    again, same_loss = once(e, other)
    pieces, pieces_loss = once(changed(e, optim={"accumulation": 2}), batch)
    assert loss == same_loss
    np.testing.assert_allclose(loss, pieces_loss, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(near, params, pieces)


def test_every_step_has_its_own_dropout():
    e = experiment(dataclasses.replace(TIED, dropout=0.5), lr=1e-30, weight_decay=0.0)
    mesh, state = begin(e)
    (batch,) = batches(TIED, 1)
    losses = []
    with jax.set_mesh(mesh):
        step = make_train_step(e)
        for number in (0, 0, 1):
            fresh = jax.tree.map(jnp.copy, state)._replace(step=jnp.asarray(number, jnp.int32))
            losses.append(float(step(fresh, to_mesh(batch, mesh))[1].loss))
    assert losses[0] == losses[1] != losses[2]


def test_runs_that_differ_in_numbers_alone_share_one_program():
    one = experiment(TIED)
    other = experiment(
        TIED, lr=3e-2, b1=0.8, b2=0.9, weight_decay=0.3, clip_norm=0.5, warmup_steps=3, final_lr=0.2
    )
    other = dataclasses.replace(other, train=dataclasses.replace(other.train, steps=7, seed=5))
    losses, programs = [], []
    for e in (one, other):
        mesh, state = begin(e)
        with jax.set_mesh(mesh):
            step = make_train_step(e)
            for batch in batches(TIED, 2):
                state, metrics = step(state, to_mesh(batch, mesh))
        losses.append(float(metrics.loss))
        programs.append(train_program(e)._cache_size())  # those of other tests' meshes too
    assert losses[0] != losses[1]
    assert programs[0] == programs[1]


def test_a_step_that_is_not_finite_changes_nothing():
    e = experiment(TIED)
    mesh, state = begin(e)
    bad = {**state.params, "layer_0": jax.tree.map(jnp.copy, state.params["layer_0"])}
    bad["layer_0"]["mlp"]["up"] = bad["layer_0"]["mlp"]["up"] * jnp.nan
    state = state._replace(params=bad)
    before = jax.device_get(state._replace(rng=0))
    (batch,) = batches(TIED, 1)
    with jax.set_mesh(mesh):
        after, metrics = make_train_step(e)(state, to_mesh(batch, mesh))
    assert not metrics.finite and not np.isfinite(metrics.squares).all()
    after = jax.device_get(after._replace(rng=0))
    assert after.step == before.step + 1
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, before.opt_state)


# ---------------------------------------------------------------- rates by width


@pytest.mark.parametrize(
    ("optimizer", "inside", "shared"),
    [("adamw", 1 / 4, 1 / 4), ("lion", 1 / 4, 1 / 4), ("adafactor", 1 / 2, 1 / 2),
     ("muon", 1 / 2, 1 / 4)],
)  # fmt: skip
def test_mup_multiplies_the_rates_of_block_matrices(optimizer, inside, shared):
    """At four base widths; `shared` are key and value of multi-query attention."""
    for model in (ROTARY_GQA, MUP, dataclasses.replace(MUP, num_kv_heads=1, biases="all")):
        config = OptimConfig(name=optimizer)
        tree = width_multipliers(config, model, fresh_params(model))
        for path, multiplier in jax.tree_util.tree_flatten_with_path(tree)[0]:
            name = path_name(path)
            expected = 1.0
            if model.parametrization == "mup" and name.startswith("layer"):
                one = model.num_kv_heads == 1 and name.endswith(("/key", "/value"))
                vector = "bias" in name or "scale" in name
                expected = 1.0 if vector else shared if one else inside
            assert multiplier == pytest.approx(expected), name


@pytest.mark.parametrize("layers", ["unrolled", "scan"])
def test_matrices_of_all_stacks_are_those_of_blocks(layers):
    """Muon and muP ask for the weights inside blocks: tables, vectors and heads are none."""
    sizes = {"vocab_size": 16, "d_model": 8, "num_heads": 2, "num_layers": 2}
    more = {"positions": "relative_bias", "attention": AttentionConfig(bias_tables="layer")}
    pair = EncoderDecoderConfig(**sizes, **more, layers=layers, experts=ExpertsConfig(count=2))
    read = EncoderConfig(**sizes, layers=layers, pooler="first", classes=2)
    streams = TwoStreamConfig(**sizes, embedding=EmbeddingConfig(types=2))
    inside = r"/(query|key|value|output|distance|up|down)$|^(transform|pooler)$"
    for model in (pair, read, streams):
        shapes = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
        found = set()
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes):
            name = path_name(path)
            assert is_block_matrix(name) == bool(re.search(inside, name)), name
            found |= {name} if is_block_matrix(name) else set()
        assert len(found) >= 6
    assert any(name.startswith("layer_1/") for name in found)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lion", "muon"])
def test_mup_multiplies_updates_and_leaves_the_decay(optimizer):
    config = OptimConfig(name=optimizer, lr=0.1, warmup_fraction=0.0, schedule="constant")
    params = fresh_params(MUP)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)

    def updates(model, weight_decay):
        rule = make_optimizer(dataclasses.replace(config, weight_decay=weight_decay), 10, model)
        state = make_optimizer(config, 10).init(params)  # which knows of no model
        return jax.jit(rule.update)(grads, state, params)[0]

    plain, scaled, decayed = updates(None, 0.0), updates(MUP, 0.0), updates(MUP, 0.5)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    multipliers = width_multipliers(config, MUP, params)
    jax.tree.map(lambda u, m, v: near(u * m, v), plain, multipliers, scaled)
    decays = decay_mask(config, params)
    jax.tree.map(lambda u, v, p, d: near(v - u, -0.05 * d * p), scaled, decayed, params, decays)


# ---------------------------------------------------------------- schedules and masks


def rates(steps: int = 100, **fields) -> np.ndarray:
    config = OptimConfig(**{"lr": 1.0, "warmup_fraction": 0.1, "final_lr": 0.1, **fields})
    config.validate()
    schedule = make_schedule(config, steps)
    return np.array([float(schedule(step)) for step in range(steps + 1)])


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "inverse_sqrt", "constant"])
def test_warm_up_rises_to_the_rate_without_a_jump(name):
    lr = rates(schedule=name)
    np.testing.assert_allclose(lr[:10], np.arange(1, 11) / 10, rtol=1e-5)
    assert lr[10] == pytest.approx(1.0) and abs(np.diff(lr[9:])).max() < 0.06


def test_schedules_at_points_computed_by_hand():
    cosine = rates(schedule="cosine")
    assert cosine[55] == pytest.approx(0.55, abs=1e-6)  # half way down from 1 to 0.1
    assert cosine[100] == pytest.approx(0.1, abs=1e-6)
    linear = rates(schedule="linear", final_lr=0.0)
    np.testing.assert_allclose(linear[10:], np.linspace(1, 0, 91), atol=1e-6)
    wsd = rates(schedule="wsd", decay_fraction=0.2)
    np.testing.assert_allclose(wsd[10:81], 1.0)
    assert wsd[90] == pytest.approx(0.55, abs=1e-6) and wsd[100] == pytest.approx(0.1, abs=1e-6)
    root = rates(schedule="inverse_sqrt")
    assert root[10] == pytest.approx(1.0) and root[40] == pytest.approx(0.5, abs=1e-6)
    assert rates(schedule="constant", warmup_fraction=0.0)[[0, 50, 100]].tolist() == [1, 1, 1]
    assert rates(schedule="cosine", warmup_fraction=0.0)[0] == 1.0


def test_a_warm_up_in_steps_takes_the_place_of_the_fraction():
    lr = rates(schedule="wsd", warmup_steps=20)
    np.testing.assert_allclose(lr[:20], np.arange(1, 21) / 20, rtol=1e-5)
    np.testing.assert_allclose(lr[20:81], 1.0)


def test_a_run_of_one_step_has_a_rate():
    for name in ("cosine", "linear", "wsd", "inverse_sqrt", "constant"):
        assert rates(steps=1, schedule=name)[0] == pytest.approx(1.0)


def test_decay_is_chosen_by_path():
    config = OptimConfig()
    for model in (TIED, ROTARY_GQA):
        params = fresh_params(model)
        mask = decay_mask(config, params)
        block = mask.get("layers") or mask["layer_0"]
        assert block["attention"]["query"] and block["mlp"]["down"]
        assert not block["attention_norm"]["scale"] and not mask["embedding"]
        assert not mask["final_norm"]["scale"]
    assert mask["head"]
    tied = decay_mask(config, {"layer_0": {"mlp": {"up_bias": 0, "up": 0}}, "positions": 0})
    assert tied == {"layer_0": {"mlp": {"up_bias": False, "up": True}}, "positions": False}
    everything = decay_mask(dataclasses.replace(config, no_decay=()), {"embedding": 0})
    assert everything == {"embedding": True}


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lion", "muon"])
def test_decay_shrinks_what_the_mask_names_and_nothing_else(optimizer):
    config = OptimConfig(
        name=optimizer, lr=0.1, weight_decay=0.5, warmup_fraction=0.0, clip_norm=0.0,
        schedule="constant",
    )  # fmt: skip
    params = {"layer_0": {"mlp": {"up": jnp.ones((3, 5)), "up_bias": jnp.ones(5)}}}
    rule = make_optimizer(config, 10)
    none = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(rule.update)(none, rule.init(params), params)
    np.testing.assert_allclose(updates["layer_0"]["mlp"]["up"], -0.05, rtol=1e-5)
    np.testing.assert_allclose(updates["layer_0"]["mlp"]["up_bias"], 0.0, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lr": 0.0}, "optim.lr is 0.0"),
        ({"lr": float("nan")}, "optim.lr is nan"),
        ({"b2": 1.0}, "optim.b2 is 1.0"),
        ({"warmup_fraction": 1.5}, "optim.warmup_fraction is 1.5"),
        ({"schedule": "wsd", "warmup_fraction": 0.9}, "add up to more than 1"),
        ({"accumulation": 0}, "optim.accumulation is 0"),
        ({"no_decay": ("(",)}, "is no regex"),
        ({"name": "sgd"}, "optim.name"),
        ({"schedule": "cosin"}, "optim.schedule"),
    ],
)
def test_impossible_optimizers_are_refused(fields, words):
    from gptjax.errors import BadInput

    with pytest.raises(BadInput, match=words):
        OptimConfig(**fields).validate()
