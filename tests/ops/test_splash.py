"""Splash attention: its grids by numbers, its kernels interpreted (slowly, so tiny), its programs
compiled for TPUs where the compiler is installed."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from gptjax.errors import BadInput
from gptjax.ops import splash
from gptjax.ops.attention import LOCAL, attention
from gptjax.ops.fused import rows_of, split
from gptjax.ops.kernels import choose_kernel, kernel_pairs
from gptjax.ops.patterns import parse
from gptjax.ops.shards import backend, on_platform
from tests.ops.test_attention import SPARSE, assert_close, inputs, segments

ROOT = Path(__file__).resolve().parent.parent.parent
IN_ROWS = ["causal", "bidirectional", "prefix:30", "window:11,5", "longformer:9,3", *SPARSE[:3]]
IN_ROWS += ["longformer:9,3,causal", "image_conv:8,3,20", "image_column:8,20", "dilated:3,5"]
IN_ROWS += ["local:40", "local:40,2"]
IN_ROWS.remove("strided:7"), IN_ROWS.append("strided:7,window=16")


def mask_in_kernel(grid):
    """What the kernel's mask function lets through: bool [queries, keys], filled up."""
    keys = np.arange(grid.keys, dtype=np.int32)[None]
    if grid.mask is None:
        return np.ones((grid.queries, grid.keys), bool)
    return np.asarray(grid.mask(jnp.asarray(grid.ends)[:, None], jnp.asarray(keys)))


@pytest.mark.parametrize("text", IN_ROWS)
@pytest.mark.parametrize("length", [131, 389])
def test_grids_hold_exactly_the_pattern(text, length, small_grids):
    pattern, found = parse(text), np.zeros((length, length), int)
    for part in pattern.parts(length):
        grid = splash.grid_of(part, length)
        assert splash.SPLASH.can(part, length)
        seen, rows = mask_in_kernel(grid), rows_of(part, length)
        blocks = splash.visits(part, length)
        visited = blocks.repeat(grid.block_q, 0).repeat(grid.block_k, 1)
        real = np.arange(grid.queries) < rows.queries
        real[: rows.queries] &= part.queries.positions(length).reshape(-1) >= 0
        assert not np.any(seen & ~visited & real[:, None])
        queries, keys = np.nonzero((seen & visited & real[:, None])[: rows.queries, : rows.keys])
        assert not seen[real][:, rows.keys :].any() and len(queries) == rows.pairs
        at = part.queries.positions(length).reshape(-1)[queries]
        np.add.at(found, (at, part.keys.positions(length).reshape(-1)[keys]), 1)
    at = np.arange(length)
    assert np.array_equal(found, pattern.mask(at[:, None], at[None, :], length).astype(int))


def test_steps_visit_every_block_once():
    seen = np.random.default_rng(0).random((7, 9)) < 0.4
    seen[3] = False
    blocks, run = splash._steps(seen)
    again = np.zeros_like(seen)
    for row in range(7):
        again[row, blocks[row, run[row]]] = True
        assert run[row].sum() == seen[row].sum() and (blocks < 9).all()
    assert np.array_equal(again, seen) and blocks.shape[1] == seen.sum(1).max()


def test_the_grid_of_a_sparse_pattern_is_small():
    """At 32k tokens: no mask, and a few blocks a row where dense causal has up to 64."""
    widths = []
    for part in parse("strided:128").parts(1 << 15):
        seen = splash.visits(part, 1 << 15)
        widths.append(int(seen.sum(1).max()))
        assert seen.shape == (128, 128)
    assert widths == [2, 1]
    long = parse("strided:128").parts(1 << 17)
    assert [splash.SPLASH.can(part, 1 << 17) for part in long] == [True, False]


# A causal part in several blocks; shifted groups; documents; a part that is left over.
CASES = [("strided:7", None), ("summary:16,3", segments(2, 200))]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "segments_BT"), CASES, ids=["strided", "summary-segments"])
def test_interpreted_kernels_equal_dense(text, segments_BT, small_grids):
    arrays = inputs(length=200, heads=2, groups=1)

    def both(kernel):
        def run(q, k, v, g):
            call = lambda q, k, v: kernel(parse(text), 0.3, q, k, v, segments_BT, None)
            out, pull = jax.vjp(call, q, k, v)
            return out, *pull(g)

        return jax.jit(run)(*arrays)

    got, wanted = both(splash.splash), both(LOCAL["dense"])
    assert len(split(splash.SPLASH, parse(text), 200)[1]) == (text == "summary:16,3")
    assert_close(got[0], wanted[0], 2e-6)
    assert_close(got[1:], wanted[1:], 2e-5)


@pytest.mark.slow
def test_on_a_mesh(monkeypatch):
    """Chosen by itself on a TPU's mesh; interpreted here, batch and heads in shards."""
    q, k, v, _ = inputs(length=128, heads=4, groups=2)
    wanted = attention(q, k, v, kernel="dense")
    monkeypatch.setattr("gptjax.ops.attention.backend", lambda: "tpu")
    mesh = jax.make_mesh((2, 1, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 3,
                         devices=jax.devices()[:4])  # fmt: skip
    spec = P("data", None, "tensor", None)
    with jax.set_mesh(mesh):
        q, k, v = (jax.device_put(x, jax.NamedSharding(mesh, spec)) for x in (q, k, v))
        traced = jax.jit(attention).trace(q, k, v)
        assert "splash" in str(traced.jaxpr)
        got = traced.lower().compile()(q, k, v)
        assert got.sharding.spec == spec
    assert_close(got, wanted, 2e-6)


def test_the_mesh_tells_the_backend():
    kinds = {"TPU v5 lite": "tpu", "NVIDIA H100 80GB HBM3": "gpu", "cpu": "cpu"}
    for kind, platform in kinds.items():
        fields = {"device_kind": kind, "num_cores": 1}
        if "platform" in jax.sharding.AbstractDevice.__dataclass_fields__:
            fields["platform"] = platform
        device = jax.sharding.AbstractDevice(**fields)
        mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert backend() == platform
    for platform in ("gpu", "tpu", "cpu"):
        with jax.sharding.use_abstract_mesh(on_platform(mesh, platform)):
            assert backend() == platform
    assert backend() == "cpu"


def test_choice():
    def choose(text, kernel="auto", **changed):
        given = {"has_segments": False, "has_slopes": False, "length": 2048, "dtype": jnp.bfloat16}
        return choose_kernel(kernel, "tpu", parse(text), **{**given, **changed})

    assert {choose(text) for text in IN_ROWS} == {"splash"}
    assert choose("causal", has_segments=True) == choose("causal", dtype=jnp.float32) == "splash"
    assert choose("bigbird:64,3,1,3,0,causal") == choose("causal", has_slopes=True) == "blocked"
    assert choose("causal", length=61) == "dense"
    with pytest.raises(BadInput, match="no part of bigbird"):
        choose("bigbird:64,3,1,3,0,causal", "splash")
    with pytest.raises(BadInput, match="it has no ALiBi"):
        choose("causal", "splash", has_slopes=True)
    with pytest.raises(BadInput, match="it needs a TPU and this is cpu"):
        choose_kernel("splash", "cpu", parse("causal"), False, False, 2048, jnp.bfloat16)


def test_pairs_are_those_of_the_visited_blocks():
    assert kernel_pairs(parse("causal"), 2048, "splash") == 10 * 512 * 512
    assert kernel_pairs(parse("strided:128"), 2048, "splash") == (15 + 8) * 256 * 256


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chip", "name"), [("v5e:2x2", "splash_mha_dkv_no_residuals"), ("h100", "fmhaSoftmaxBackward")]
)
def test_a_training_step_compiles_for_a_chip_that_is_not_here(chip, name):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import aot
    finally:
        sys.path.pop(0)
    if not aot.installed(chip):
        pytest.skip(f"{aot.PACKAGES[aot.platform_of(chip)]} is not installed")
    command = [sys.executable, "benchmarks/aot.py", "--chips", chip, "--length", "1024"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(
        [*command, "--patterns", "strided:16"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert "| yes |" in done.stdout and name in done.stdout, done.stdout + done.stderr[-2000:]
