import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gptjax.errors import BadInput
from gptjax.ops.activations import activation, gelu_tanh
from gptjax.ops.linear import project
from gptjax.ops.norms import layer_norm, rms_norm
from gptjax.ops.rotary import alibi_slopes, rotary

BATCH = ("data", "fsdp")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def assert_close(got, wanted, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.max(np.abs(a - b)) <= tolerance * max(1e-2, np.max(np.abs(b)))


def pulled(function, g, *arguments):
    @jax.jit
    def both(g, arguments):
        out, pull = jax.vjp(function, *arguments)
        return out, *pull(g)

    return both(g, arguments)


def plain_layer_norm(x, scale, bias, eps=1e-5):
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + eps)
    return y * scale[None, None] + (0.0 if bias is None else bias[None, None])


def plain_rms_norm(x, scale, eps=1e-6):
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + eps) * scale[None, None]


def test_norms_and_their_gradients():
    x, scale, bias, g = normal(0, 2, 5, 13) + 3.0, normal(1, 13), normal(2, 13), normal(3, 2, 5, 13)
    assert_close(pulled(layer_norm, g, x, scale, bias), pulled(plain_layer_norm, g, x, scale, bias))
    assert_close(
        pulled(lambda x, s: layer_norm(x, s), g, x, scale),
        pulled(lambda x, s: plain_layer_norm(x, s, None), g, x, scale),
    )
    assert_close(pulled(rms_norm, g, x, scale), pulled(plain_rms_norm, g, x, scale))


def test_norms_of_bfloat16_use_float32_statistics():
    x = (normal(0, 2, 3, 257) + 100.0).astype(jnp.bfloat16)
    out = layer_norm(x, jnp.ones(257), jnp.zeros(257))
    assert out.dtype == jnp.bfloat16
    wanted = plain_layer_norm(x.astype(jnp.float32), jnp.ones(257), None)
    assert_close(out.astype(jnp.float32), wanted, 2.0**-7)


@pytest.mark.parametrize("name", ["gelu_tanh", "gelu_erf", "relu", "silu"])
def test_activations(name):
    x = jnp.linspace(-6.0, 6.0, 101)
    reference = {
        "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "gelu_erf": lambda x: jax.nn.gelu(x, approximate=False),
        "relu": jax.nn.relu,
        "silu": jax.nn.silu,
    }[name]
    got = pulled(activation(name), jnp.ones_like(x), x)
    assert_close(got, pulled(reference, jnp.ones_like(x), x), 5e-6)


def test_gelu_far_out_has_finite_gradients():
    out, slope = pulled(gelu_tanh, jnp.ones(2), jnp.array([-1e4, 1e4]))
    assert np.array_equal(out, [0.0, 1e4]) and np.array_equal(slope, [0.0, 1.0])


def test_unknown_activation():
    with pytest.raises(BadInput, match="did you mean 'gelu_tanh'"):
        activation("gelutanh")


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotary_is_a_rotation_of_pairs(fraction):
    x = normal(0, 2, 7, 3, 12)
    turned = int(12 * fraction)
    half = turned // 2
    positions = jnp.stack([jnp.arange(7), jnp.arange(7) + 5])
    pairs = np.asarray(x[..., :half]) + 1j * np.asarray(x[..., half:turned])
    angles = np.asarray(positions)[:, :, None] * 10000.0 ** (-np.arange(half) / half)
    pairs = pairs * np.exp(1j * angles)[:, :, None, :]
    wanted = np.concatenate([pairs.real, pairs.imag, np.asarray(x[..., turned:])], -1)
    assert_close(rotary(x, positions, 10000.0, fraction), wanted)
    assert_close(rotary(x, jnp.arange(7), 10000.0, fraction)[0], wanted[0])


def test_rotary_scores_depend_on_distance_only():
    q, k = normal(0, 1, 1, 1, 8), normal(1, 1, 1, 1, 8)

    def score(i, j):
        return float(jnp.sum(rotary(q, jnp.array([i])) * rotary(k, jnp.array([j]))))

    assert score(11, 4) == pytest.approx(score(107, 100), rel=1e-4)


@pytest.mark.parametrize(("size", "fraction"), [(7, 1.0), (8, 0.1), (8, 1.5)])
def test_rotary_refuses_odd_sizes(size, fraction):
    with pytest.raises(BadInput, match="even number"):
        rotary(jnp.zeros((1, 2, 1, size)), jnp.arange(2), fraction=fraction)


def test_alibi_slopes():
    assert_close(alibi_slopes(8), 2.0 ** -np.arange(1, 9), 1e-7)
    twelve = [2.0**-i for i in range(1, 9)] + [2.0 ** -(i + 0.5) for i in range(4)]
    assert_close(alibi_slopes(12), np.array(twelve), 1e-6)


def test_project():
    x, w = normal(0, 2, 3, 4, 5), normal(1, 4, 5, 6, 7)
    got = pulled(lambda x, w: project(x, w, contract=2), normal(2, 2, 3, 6, 7), x, w)
    wanted = pulled(lambda x, w: jnp.einsum("bthk,hkij->btij", x, w), normal(2, 2, 3, 6, 7), x, w)
    assert_close(got, wanted)
    with pytest.raises(ValueError, match="contract"):
        project(x, w)


def test_project_in_bfloat16_rounds_once():
    x, w, g = (normal(seed, 31, 31).astype(jnp.bfloat16) for seed in range(3))
    got = pulled(project, g, x, w)
    exact = pulled(jnp.matmul, *(a.astype(jnp.float32) for a in (g, x, w)))
    assert all(a.dtype == jnp.bfloat16 for a in got)
    assert_close([a.astype(jnp.float32) for a in got], exact, 2.0**-8)


def test_meshes(mesh):
    """A block of all small ops: up and down projections, heads in and out, scanned, remat."""
    rows, head = P(BATCH, None, None), P(BATCH, None, "tensor", None)
    arguments = {
        "x": (normal(0, 8, 5, 16), rows),
        "scale": (normal(1, 2, 16), P(None, None)),
        "bias": (normal(2, 2, 16), P(None, "fsdp")),
        "up": (normal(3, 2, 16, 24) / 4, P(None, "fsdp", "tensor")),
        "down": (normal(4, 2, 24, 16) / 5, P(None, "tensor", "fsdp")),
        "into": (normal(5, 2, 16, 4, 6) / 4, P(None, "fsdp", "tensor", None)),
        "out": (normal(6, 2, 4, 6, 16) / 5, P(None, "tensor", None, "fsdp")),
    }

    def step(arrays, partitioned):
        def to(spec):
            return spec if partitioned else None

        def block(x, w):
            y = layer_norm(x, w["scale"], w["bias"])
            y = gelu_tanh(project(y, w["up"], out_sharding=to(P(BATCH, None, "tensor"))))
            x = x + project(y, w["down"], out_sharding=to(rows))
            y = project(rms_norm(x, w["scale"]), w["into"], out_sharding=to(head))
            y = rotary(y, jnp.arange(5))
            return x + project(y, w["out"], contract=2, out_sharding=to(rows)), None

        def loss(arrays):
            weights = {name: w for name, w in arrays.items() if name != "x"}
            return jnp.sum(jnp.square(jax.lax.scan(jax.checkpoint(block), arrays["x"], weights)[0]))

        return jax.value_and_grad(loss)(arrays)

    arrays = {name: x for name, (x, _) in arguments.items()}
    wanted = jax.jit(step, static_argnums=1)(arrays, False)
    with jax.set_mesh(mesh):
        placed = {
            name: jax.device_put(x, jax.NamedSharding(mesh, spec))
            for name, (x, spec) in arguments.items()
        }
        got = jax.jit(step, static_argnums=1)(placed, True)
        assert {k: g.sharding.spec for k, g in got[1].items()} == {
            k: x.sharding.spec for k, x in placed.items()
        }
    assert_close(got, wanted)
