"""Mixtures of experts: against a loop over all experts, the sources' losses, and dense training."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.models.build import empty_cache, init_params, param_axes
from gptjax.models.config import DecoderConfig
from gptjax.models.config_parts import ExpertsConfig
from gptjax.models.decoder import Decoder
from gptjax.models.experts import Experts, told
from gptjax.models.stack import logits
from gptjax.ops import activations, experts
from gptjax.parallel import DEFAULT_RULES
from gptjax.scaling.flops import count_flops, count_parameters, executed_training_flops
from gptjax.training.loop import Loop
from gptjax.training.metrics import Recorder
from gptjax.training.optimizer import OptimConfig, make_optimizer, path_name, width_multipliers
from tests.conftest import changed
from tests.scaling.test_flops import BASE, LENGTH, programs
from tests.training.test_population import alone, members, together
from tests.training.test_step import ONE, ROTARY_GQA, batches, experiment, train

SMALL = DecoderConfig(
    vocab_size=61,
    context_length=37,
    num_layers=2,
    d_model=16,
    num_heads=4,
    d_ff=24,
    experts=ExpertsConfig(count=5, z_weight=0.01),
)
SWITCH = ExpertsConfig(count=4, top_k=1, capacity=1.0, weights="as_routed", z_weight=0.003)
MIXTRAL = ExpertsConfig(count=4, top_k=2, z_weight=0.003)


def with_experts(config: DecoderConfig, **fields) -> DecoderConfig:
    return dataclasses.replace(config, experts=dataclasses.replace(config.experts, **fields))


def initialised(config, std: float = 0.3):
    """Scales of one and normal weights, by numpy: compiling the initialisers takes long."""
    rng = np.random.default_rng(7)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))

    def fill(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(mean, std, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def draw(*shape):
    return jnp.asarray(np.random.default_rng(1).normal(0, 1, shape), jnp.float32)


near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 61, (3, 19)), jnp.int32)


# ---------------------------------------------------------------- one layer


@functools.partial(jax.jit, static_argnums=(0, 3))
def layer(config, params, x_BTD, cached: bool = False):
    return Experts(config, DEFAULT_RULES).apply({"params": params}, x_BTD, cached=cached)


def every_expert(config, p, x_BTD):
    """The same by all experts for all tokens, in a loop."""
    c, e = config, config.experts
    act = activations.activation(c.unit)
    chances = jax.nn.softmax(jnp.einsum("btd,de->bte", x_BTD, p["router"]), axis=-1)
    last = jnp.sort(chances, axis=-1)[..., e.count - e.top_k]
    chances = jnp.where(chances >= last[..., None], chances, 0.0)
    if e.weights == "normalised":
        chances = chances / chances.sum(-1, keepdims=True)
    total = jnp.zeros_like(x_BTD)
    for i in range(e.count):
        bias = {n: p[n][i][None, None] if c.mlp_biases else 0.0 for n in p if n.endswith("bias")}
        up = x_BTD @ p["up"][i] + bias.get("up_bias", 0.0)
        gate = x_BTD @ p["gate"][i] + bias.get("gate_bias", 0.0) if c.gated else None
        h = act(gate) * up if c.gated else act(up)
        y = h @ p["down"][i] + bias.get("down_bias", 0.0)
        total = total + chances[..., i, None] * y
    return total


LAYERS = {
    "mixtral": ({"activation": "swiglu", "biases": "none"}, {}),
    "switch": ({"activation": "relu"}, {"top_k": 1, "weights": "as_routed"}),
    "three_gated_biases": ({"activation": "geglu"}, {"top_k": 3, "weights": "as_routed"}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_loop_over_its_experts(name, monkeypatch):
    """With rows in blocks, in the products of other platforms, and with room for all."""
    model, fields = LAYERS[name]
    config = with_experts(dataclasses.replace(SMALL, **model), **fields)
    params, x, to = initialised(config)["layer_0"]["experts"], draw(3, 37, 16), draw(3, 37, 16)

    def both(function):
        value = lambda p, x: jnp.sum(to * function(p, x))
        return jax.jit(lambda p, x: (function(p, x), jax.grad(value, (0, 1))(p, x)))(params, x)

    def ours(config):
        return both(lambda p, x: Experts(config, DEFAULT_RULES).apply({"params": p}, x, False)[0])

    wanted = both(functools.partial(every_expert, config))
    assert np.abs(wanted[1][0]["router"]).max() > 0.1
    roomy = with_experts(config, capacity=float(config.experts.count))
    with_room = ours(roomy)
    jax.tree.map(near, with_room, wanted)
    monkeypatch.setattr(experts, "BLOCK", 16)
    without_limit = ours(config)
    jax.tree.map(near, without_limit, wanted)
    np.testing.assert_allclose(without_limit[0], with_room[0], rtol=1e-6, atol=1e-6)
    if name == "three_gated_biases":
        monkeypatch.setattr(experts, "backend", lambda: "gpu")
        jax.tree.map(near, ours(dataclasses.replace(config, norm_epsilon=1e-6)), wanted)


def test_blocks_multiply_only_the_rows_of_experts():
    x, w = draw(13, 3), draw(4, 3, 5)
    sizes = jnp.asarray([2, 0, 7, 1], jnp.int32)
    wanted = jnp.concatenate([x[:2] @ w[0], x[2:9] @ w[2], x[9:10] @ w[3], jnp.zeros((3, 5))])
    np.testing.assert_allclose(experts.product(x, w, sizes), wanted, rtol=1e-6)


def by_hand(order: list[list[int]], **fields):
    """A layer whose tokens go to given experts, the likeliest first; experts double or so."""
    count = max(map(max, order)) + 1
    config = DecoderConfig(
        d_model=8, num_heads=1, d_ff=8, activation="relu", biases="none",
        experts=ExpertsConfig(count=count, top_k=len(order[0]), weights="as_routed", **fields),
    )  # fmt: skip
    config.validate()
    eye = jnp.eye(8)
    params = {
        "router": eye[:, :count],
        "up": jnp.stack([eye] * count),
        "down": jnp.stack([eye * 10.0**i for i in range(count)]),
    }
    x = np.zeros((1, len(order), 8), np.float32)
    for t, chosen in enumerate(order):
        for rank, expert in enumerate(chosen):
            x[0, t, expert] = 5.0 - rank
    y, routing = layer(config, params, jnp.asarray(x))
    chances = np.asarray(jax.nn.softmax(jnp.asarray(x[0, :, :count]), axis=-1))
    return np.asarray(y)[0], routing, x[0], chances


def test_tokens_beyond_the_capacity_pass_by():
    """Three places in each expert for six tokens: the fourth and the fifth of expert 0 are late."""
    y, routing, x, chances = by_hand([[0], [0], [0], [0], [1], [0]], capacity=1.0)
    np.testing.assert_allclose(y[[0, 1, 2]], chances[[0, 1, 2], :1] * x[:3], rtol=1e-6)
    np.testing.assert_allclose(y[4], 10 * chances[4, 1] * x[4], rtol=1e-6)
    assert not y[[3, 5]].any()
    assert float(routing.dropped) == pytest.approx(2 / 6)
    assert float(routing.busiest) == pytest.approx(5 / 6)


def test_earlier_tokens_come_first_also_by_their_second_choice():
    """Two places in each of three experts, three tokens with two choices."""
    y, routing, x, chances = by_hand([[0, 1], [2, 1], [1, 2]], capacity=1.0)
    np.testing.assert_allclose(y[0], (chances[0, 0] + 10 * chances[0, 1]) * x[0], rtol=1e-6)
    np.testing.assert_allclose(y[1], (100 * chances[1, 2] + 10 * chances[1, 1]) * x[1], rtol=1e-6)
    np.testing.assert_allclose(y[2], 100 * chances[2, 2] * x[2], rtol=1e-6)
    assert float(routing.dropped) == pytest.approx(1 / 6)


def test_places_of_a_capacity():
    even = ExpertsConfig(count=10, top_k=1, capacity=1.1)
    assert [even.slots(n) for n in (100, 101, 1, 5)] == [11, 12, 1, 1]
    assert dataclasses.replace(even, capacity=50.0).slots(100) == 100
    assert dataclasses.replace(even, capacity=0.0).slots(100) == 0
    fixed = dataclasses.replace(even, capacity=0.0, most=7)
    assert (fixed.slots(100), fixed.slots(5), fixed.limited) == (7, 5, True)
    with pytest.raises(BadInput, match="most is 7"):
        dataclasses.replace(even, most=7).validate(2)


@functools.partial(jax.jit, static_argnums=1)
def routing_of(scores, top_k: int):
    choices = experts.choose(scores, top_k, "as_routed")
    return told(scores, choices, jnp.zeros_like(choices.experts_BTJ), 0)


@pytest.mark.parametrize("top_k", [1, 2])
def test_losses_of_the_router_by_their_formulas(top_k):
    scores = 3 * draw(2, 7, 4)
    routing = routing_of(scores, top_k)
    flat = np.asarray(scores, np.float64).reshape(14, 4)
    chances = np.exp(flat) / np.exp(flat).sum(1, keepdims=True)
    chosen = np.argsort(-flat, axis=1)[:, :top_k]
    share = np.bincount(chosen.ravel(), minlength=4) / 14
    assert float(routing.balance_loss) == pytest.approx(4 * (share * chances.mean(0)).sum())
    assert float(routing.z_loss) == pytest.approx((np.log(np.exp(flat).sum(1)) ** 2).mean())
    assert float(routing.busiest) == pytest.approx(share.max() / top_k)
    assert float(routing_of(jnp.zeros((2, 7, 4)), top_k).balance_loss) == top_k


# ---------------------------------------------------------------- in a decoder


@functools.partial(jax.jit, static_argnums=0)
def outputs(config, params, tokens, **inputs):
    out = Decoder(config).apply({"params": params}, tokens, **inputs)
    return logits(out), out


def test_scanned_layers_equal_unrolled_ones():
    config = dataclasses.replace(SMALL, experts=ExpertsConfig(5, every=2, z_weight=0.01))
    params = initialised(config)
    layers = {f"turn_{i}": params[f"layer_{i}"] for i in range(2)}
    stacked = {k: v for k, v in params.items() if not k.startswith("layer_")}
    stacked["layers"] = jax.tree.map(lambda x: x[None], layers)
    wanted, out = outputs(config, params, TOKENS)
    got, scanned = outputs(dataclasses.replace(config, layers="scan"), stacked, TOKENS)
    near(got, wanted)
    jax.tree.map(near, (scanned.routing, scanned.auxiliary), (out.routing, out.auxiliary))
    e = config.experts
    weighted = e.balance_weight * out.routing.balance_loss + e.z_weight * out.routing.z_loss
    near(out.auxiliary, weighted)  # of the one layer that has experts


def test_both_kinds_of_rematerialisation_agree():
    plain = dataclasses.replace(SMALL, layers="scan", num_layers=1)
    params = initialised(plain)

    def gradient(remat):
        config = dataclasses.replace(plain, remat=remat)
        loss = lambda p: jnp.square(outputs(config, p, TOKENS)[0]).mean()
        return jax.jit(jax.grad(loss))(params)

    jax.tree.map(near, gradient("products"), gradient("block"))


def test_decoding_drops_no_token():
    config = dataclasses.replace(
        SMALL, num_layers=1, block="parallel", experts=dataclasses.replace(SWITCH, capacity=0.5)
    )
    params = initialised(config)
    cache, parts = empty_cache(config, 3, 19), []
    for start, stop in [(0, 9), (9, 18), (18, 19)]:
        part, out = outputs(config, params, TOKENS[:, start:stop], cache=cache)
        cache = out.cache
        parts.append(part)
    near(jnp.concatenate(parts, 1), outputs(with_experts(config, capacity=0.0), params, TOKENS)[0])


def test_bfloat16_routes_in_float32():
    config = dataclasses.replace(SMALL, compute_dtype="bfloat16")
    params = initialised(config, 0.1)
    got, out = outputs(config, params, TOKENS)
    assert out.hidden_BTD.dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in out.routing)
    np.testing.assert_allclose(got, outputs(SMALL, params, TOKENS)[0], atol=0.1)


def test_jitter_takes_a_key():
    config = with_experts(SMALL, jitter=0.3)
    assert config.random and not SMALL.random
    params = initialised(config)
    still = outputs(config, params, TOKENS)[1]
    shaken = outputs(config, params, TOKENS, rngs={"dropout": jax.random.key(1)})[1]
    assert (still.hidden_BTD == outputs(SMALL, params, TOKENS)[1].hidden_BTD).all()
    assert abs(float(still.routing.z_loss - shaken.routing.z_loss)) > 1e-4


def test_axes_spread_experts():
    axes = param_axes(dataclasses.replace(SMALL, layers="scan"))["layers"]["experts"]
    assert axes["up"] == ("layer", "expert", "embed", None)
    assert axes["down"] == ("layer", "expert", None, "embed")
    assert axes["up_bias"] == ("layer", "expert", None)


# ---------------------------------------------------------------- training

TRAINED = {
    "mixtral": dataclasses.replace(ROTARY_GQA, num_kv_heads=4, experts=MIXTRAL),
    "switch": dataclasses.replace(ROTARY_GQA, num_kv_heads=4, biases="all", experts=SWITCH),
}
UPDATES = 8


@functools.cache
def on_one_device(name: str):
    return train(experiment(TRAINED[name]), ONE, UPDATES)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mixtral", (2, 2, 1)), ("mixtral", (1, 2, 2)), ("switch", (2, 1, 4))],
)
def test_the_same_losses_on_every_mesh(name, shape):
    losses, params, metrics = train(experiment(TRAINED[name]), shape, UPDATES)
    expected, expected_params, one = on_one_device(name)
    assert expected[-1] < expected[0] - 0.02
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-3)
    jax.tree.map(close, params, expected_params)
    close(metrics.routing, one.routing)
    assert (one.routing.dropped > 0) == (name == "switch")


def test_microbatches():
    """Of the losses of routers only that of the balance is one of a microbatch."""
    quiet = experiment(with_experts(TRAINED["mixtral"], balance_weight=0.0))
    one, pieces = (train(changed(quiet, optim={"accumulation": n}), ONE, 2) for n in (1, 4))
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(close, one[1], pieces[1])
    close(one[2].routing.z_loss, pieces[2].routing.z_loss)
    # They move the gradient and not the loss that is told.
    (loss, *_), _, metrics = train(experiment(TRAINED["mixtral"]), ONE, 2)
    assert loss == one[0][0] and metrics.grad_norm != one[2].grad_norm


def test_populations():
    es, data = members(TRAINED["mixtral"])[:2], batches(TRAINED["mixtral"], 4)
    losses, params = together("vmap", es, ONE, [data] * 2, shared=True)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    for i, e in enumerate(es):
        own_losses, own_params = alone(e, ONE, data, i)
        close(losses[i], own_losses)
        jax.tree.map(close, params[i], own_params)


def test_routers_are_in_the_log(tmp_path):
    metrics = on_one_device("switch")[2]
    recorder = Recorder(tmp_path, 0)
    e = experiment(TRAINED["switch"])
    loop = Loop(e, None, None, None, recorder, None, None, None, account=lambda step: {})
    loop.begun = 0.0
    loop.record((1, metrics), None)
    loop.record((2, metrics._replace(routing=None)), None)  # of a dense model
    recorder.close()
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").open())
    names = {f"router_{name}" for name in ("balance_loss", "z_loss", "dropped", "busiest")}
    assert set(first) - set(second) == names
    assert first["router_balance_loss"] >= 1 and 0.25 <= first["router_busiest"] <= 1
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"router_dropped" in events.read_bytes()


# ---------------------------------------------------------------- ledger, rates, refusals

COUNTED = {
    "mixtral": {"activation": "swiglu", "biases": "none"},
    "every_third": {"experts": dataclasses.replace(MIXTRAL, every=3)},
    "capacity": {"experts": dataclasses.replace(MIXTRAL, capacity=1.25)},
    "recomputed": {"remat": "block", "experts": dataclasses.replace(SWITCH, every=3)},
    "recomputed_parallel": {"remat": "block", "block": "parallel", "layers": "scan"},
    "products": {"remat": "products", "layers": "scan"},
}


@pytest.mark.parametrize("name", COUNTED)
def test_the_ledger_counts_what_is_there_and_what_is_multiplied(name, monkeypatch):
    monkeypatch.setattr(experts, "backend", lambda: "gpu")  # blocks are a loop of unknown length
    config = dataclasses.replace(BASE, **{"experts": MIXTRAL, **COUNTED[name]})
    config.validate()
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    counts = count_parameters(config)
    sizes = {path_name(p): x.size for p, x in jax.tree_util.tree_flatten_with_path(shapes)[0]}
    assert sum(sizes.values()) == counts.total
    e = config.experts
    resting = sum(
        size * (e.count - e.top_k) // e.count
        for path, size in sizes.items()
        if "experts" in path and "router" not in path
    )
    assert counts.active == counts.total - resting
    forward, training = programs(config)
    dense = LENGTH**2  # pairs of the dense kernel
    if not e.capacity:
        assert forward == pytest.approx(count_flops(config, LENGTH, dense).forward, rel=1e-9)
    executed = executed_training_flops(config, LENGTH, lambda _: "dense")
    assert training == pytest.approx(executed, rel=1e-9)


def test_mup_treats_a_router_as_a_head():
    config = dataclasses.replace(SMALL, parametrization="mup", base_width=16)
    params = initialised(config)
    plain = dataclasses.replace(config, parametrization="standard")
    np.testing.assert_array_equal(
        outputs(config, params, TOKENS)[0], outputs(plain, params, TOKENS)[0]
    )
    wide = config.at_width(64)
    params = jax.jit(lambda: init_params(wide, jax.random.key(0)))()
    assert float(params["layer_0"]["experts"]["router"].std()) == pytest.approx(0.02, rel=0.15)
    assert float(params["layer_0"]["experts"]["up"].std()) == pytest.approx(0.01, rel=0.05)
    rates = width_multipliers(OptimConfig(), wide, params)["layer_0"]["experts"]
    assert rates["router"] == rates["up_bias"] == 1 and rates["up"] == rates["down"] == 1 / 4


def test_muon_turns_every_expert_by_itself():
    up = draw(3, 6, 5)
    rule = make_optimizer(OptimConfig(name="muon", warmup_fraction=0.0, clip_norm=0.0), 10)

    def update(tree):
        return jax.jit(lambda t: rule.update(t, rule.init(t), t)[0])(tree)

    together = update({"layer_0": {"experts": {"up": up}}})["layer_0"]["experts"]["up"]
    lone = update({"layer_0": {"mlp": {"up": up[1]}}})["layer_0"]["mlp"]["up"]
    np.testing.assert_allclose(together[1], lone, rtol=1e-4, atol=1e-7)


def test_refusals():
    with pytest.raises(BadInput, match="teaches the router nothing; give as_routed"):
        with_experts(SMALL, top_k=1).validate()
    e = experiment(TRAINED["mixtral"])
    refusal = changed(e, model={"experts": ExpertsConfig(6)}).mesh_refusal(1, 1, 4)
    assert refusal == "model.experts.count = 6 is not divisible by tensor = 4"
    assert changed(e, model={"d_ff": 37}).mesh_refusal(1, 1, 4) is None


# ---------------------------------------------------------------- transformers


def test_mixtral_of_transformers():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = DecoderConfig(
        vocab_size=61, context_length=32, num_layers=1, d_model=16, num_heads=4, num_kv_heads=2,
        d_ff=24, positions="rotary", norm="rmsnorm", activation="swiglu", biases="none",
        tied_embeddings=False, experts=ExpertsConfig(count=5),
    )  # fmt: skip
    theirs = transformers.MixtralConfig(
        vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=5, num_experts_per_tok=2,
        max_position_embeddings=32, rope_theta=1e4, attn_implementation="eager",
        output_router_logits=True, sliding_window=None,
    )  # fmt: skip
    peer = transformers.MixtralForCausalLM(theirs).eval()
    params = initialised(config)
    mix, moe = params["layer_0"]["attention"], params["layer_0"]["experts"]
    rows = lambda w: np.asarray(w).reshape(16, -1).T
    both = np.concatenate([np.asarray(moe[n]).swapaxes(1, 2) for n in ("gate", "up")], axis=1)
    at = "model.layers.0."
    tensors = {
        "model.embed_tokens.weight": params["embedding"],
        "lm_head.weight": params["head"],
        "model.norm.weight": params["final_norm"]["scale"],
        f"{at}input_layernorm.weight": params["layer_0"]["attention_norm"]["scale"],
        f"{at}post_attention_layernorm.weight": params["layer_0"]["mlp_norm"]["scale"],
        f"{at}self_attn.q_proj.weight": rows(mix["query"]),
        f"{at}self_attn.k_proj.weight": rows(mix["key"]),
        f"{at}self_attn.v_proj.weight": rows(mix["value"]),
        f"{at}self_attn.o_proj.weight": np.asarray(mix["output"]).reshape(16, 16).T,
        f"{at}mlp.gate.weight": np.asarray(moe["router"]).T,
        f"{at}mlp.experts.gate_up_proj": both,
        f"{at}mlp.experts.down_proj": np.asarray(moe["down"]).swapaxes(1, 2),
    }
    peer.load_state_dict({k: torch.tensor(np.array(v)) for k, v in tensors.items()})
    got, out = outputs(config, params, TOKENS)
    with torch.no_grad():
        answer = peer(torch.tensor(np.array(TOKENS)).long())
    wanted = answer.logits.numpy()
    assert np.abs(np.asarray(got) - wanted).max() < 1e-5 * np.abs(wanted).max()
    balance = load_balancing_loss_func(answer.router_logits, 5, 2)
    assert float(out.routing.balance_loss) == pytest.approx(float(balance), rel=1e-5)
