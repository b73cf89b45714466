"""The ledger against what the traced program multiplies, product by product."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest

from gptjax.models import presets
from gptjax.models.build import init_params
from gptjax.models.config import AttentionConfig, DecoderConfig, EmbeddingConfig
from gptjax.models.decoder import Decoder
from gptjax.objectives import NextToken
from gptjax.ops.kernels import kernel_pairs
from gptjax.scaling.flops import count_flops, count_parameters, executed_training_flops
from gptjax.scaling.plots import plot_curves, read_rows

BATCH, LENGTH = 3, 130  # three strips of the blocked kernel, the last one short
BASE = DecoderConfig(
    vocab_size=61,
    context_length=LENGTH,
    num_layers=3,
    d_model=24,
    num_heads=4,
    attention=AttentionConfig(kernel="dense"),
)
BLOCKED = {"attention": AttentionConfig(kernel="blocked")}
WIDE_HEADS = {"attention": AttentionConfig(kernel="dense", head_dim=10)}
VARIANTS = {
    "dense": {},
    "blocked": BLOCKED,
    "grouped_gated_untied": {
        "num_kv_heads": 2,
        "positions": "rotary",
        "activation": "swiglu",
        "norm": "rmsnorm",
        "biases": "none",
        "tied_embeddings": False,
    },
    "multi_query_parallel_blocked": {
        "num_kv_heads": 1,
        "positions": "alibi",
        "block": "parallel",
        "attention": AttentionConfig(kernel="blocked", head_dim=10),
    },
    "post_wide": {"block": "post", "d_ff": 37},
    "scan": {"layers": "scan", **BLOCKED},
    "narrow_tokens_outputs": {
        "tied_embeddings": False,
        "embedding": EmbeddingConfig(size=10, outputs=40, head_bias=True),
    },
    "two_norms": {"block": "parallel_two_norms", "remat": "block"},
    "query_layer": {"attention": AttentionConfig(kernel="dense", top_query="positions")},
    "block_remat_dense": {"remat": "block"},
    "block_remat_blocked": {"remat": "block", **BLOCKED},
    "block_remat_scan": {"remat": "block", "layers": "scan", **BLOCKED},
    "block_remat_parallel": {"remat": "block", "block": "parallel", **WIDE_HEADS},
    "block_remat_post": {"remat": "block", "block": "post", "activation": "geglu", **BLOCKED},
    "products_remat_dense": {"remat": "products"},
    "products_remat_blocked": {"remat": "products", **BLOCKED},
    "products_remat_scan": {"remat": "products", "layers": "scan"},
}


def multiplied(jaxpr, times: int = 1) -> int:
    """FLOPs of all matrix products in a jaxpr and whatever it calls, loops counted out."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contract)
            total += times * 2 * inner * math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name.startswith("ragged_dot"):
            rows = equation.invars[0].aval
            total += times * 2 * rows.size * equation.outvars[0].aval.shape[-1]
        assert equation.primitive.name not in ("while", "cond"), "a loop of unknown length"
        inside = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for value in jax.tree.leaves(dict(equation.params), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                total += multiplied(getattr(value, "jaxpr", value), inside)
    return total


def _is_jaxpr(value) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def programs(config: DecoderConfig):
    """Forward and training FLOPs per token of the traced programs."""
    objective = NextToken()
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)

    def loss(params, tokens):
        apply = lambda ids, **inputs: Decoder(config).apply({"params": params}, ids, **inputs)
        return objective.sums(apply, {"tokens": tokens, "targets": tokens}).total

    def counted(function):
        return multiplied(jax.make_jaxpr(function)(params, tokens).jaxpr) / (BATCH * LENGTH)

    return counted(loss), counted(jax.grad(loss))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_ledger_counts_what_the_program_multiplies(name):
    config = dataclasses.replace(BASE, **VARIANTS[name])
    kernel = config.attention.kernel
    forward, training = programs(config)
    members = [m for i in range(config.num_layers) for m in config.layer_kind(i).pattern.members]
    pairs = sum(kernel_pairs(m, LENGTH, kernel) for m in members) / len(members)
    assert forward == pytest.approx(count_flops(config, LENGTH, pairs).forward, rel=1e-9)
    assert training == pytest.approx(
        executed_training_flops(config, LENGTH, lambda _: kernel), rel=1e-9
    )


def test_the_counter_sees_loops_and_calls():
    w = jax.ShapeDtypeStruct((5, 5), jnp.float32)
    looped = lambda w: jax.lax.scan(lambda x, _: (x @ w, None), w, length=7)[0]
    assert multiplied(jax.make_jaxpr(looped)(w).jaxpr) == 7 * 2 * 5**3
    called = lambda w: jax.jit(jax.checkpoint(lambda x: x @ x))(w)
    assert multiplied(jax.make_jaxpr(called)(w).jaxpr) == 2 * 5**3


def test_model_flops_count_the_pairs_of_the_pattern():
    config = dataclasses.replace(BASE, num_kv_heads=2)
    f = count_flops(config, LENGTH)
    pairs = LENGTH * (LENGTH + 1) / 2
    assert f.attention == pytest.approx(3 * 4 * 24 * pairs / LENGTH)  # N, 2 products of 2, H K
    assert f.projections == 3 * 2 * (24 * 24 * 2 + 24 * 12 * 2)
    assert f.mlp == 3 * 2 * 2 * 24 * 96 and f.head == 2 * 24 * 61
    assert f.training == 3 * f.forward
    assert f.forward < count_flops(config, LENGTH, LENGTH**2).forward


def test_the_rule_of_thumb_is_near_for_wide_models_only():
    """6 N counts no attention scores and, for tied tables, the head: near at GPT-2's widths."""
    wide = presets.gpt2("1558m")
    ratio = 6 * count_parameters(wide).total / count_flops(wide, 1024).training
    assert 0.9 < ratio < 1.0
    narrow = dataclasses.replace(BASE, d_model=16, vocab_size=257)
    ratio = 6 * count_parameters(narrow).total / count_flops(narrow, LENGTH).training
    assert abs(ratio - 1) > 0.1


def test_non_embedding_parameters():
    """Kaplan's N: 12 N D^2 with biases and norms of GPT-2 small counted, tables not."""
    small = count_parameters(presets.gpt2("124m"))
    assert small.total == 124_439_808 and small.embedding == 50257 * 768
    assert small.positions == 1024 * 768 and small.head == 0
    assert small.non_embedding == 12 * (12 * 768**2 + 13 * 768) + 2 * 768
    untied = count_parameters(dataclasses.replace(presets.gpt2("124m"), tied_embeddings=False))
    assert untied.non_embedding == small.non_embedding
    assert untied.total == small.total + 50257 * 768
    assert sum(small.groups().values()) == small.total == small.active


def test_curves_are_drawn_from_rows(tmp_path):
    rows = [
        {"step": i, "loss": 5 / i, "tokens": 64 * i, "flops": 1e6 * i, "seconds": 0.1 * i}
        for i in range(1, 13)
    ]
    rows.append({**rows[-1], "validation_loss": 0.5})
    del rows[-1]["loss"]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 13, "lo')
    assert read_rows(metrics) == rows
    plot_curves(metrics, tmp_path / "curves.png", title="a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.jsonl", "curves.png"}
    metrics.write_text("")
    plot_curves(metrics, tmp_path / "curves.png")
