import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gptjax.ops.vocab_loss import vocab_loss


def inputs(batch=3, length=7, width=5, vocab=53, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(1), 5)
    return (
        jax.random.normal(keys[0], (batch, length, width)).astype(dtype),
        jax.random.normal(keys[1], (vocab, width)).astype(dtype),
        jax.random.normal(keys[2], (vocab,)),
        jax.random.randint(keys[3], (batch, length), 0, vocab),
        jnp.round(jax.random.uniform(keys[4], (batch, length)) * 2) / 2,
    )


def plain(hidden, head, bias, targets, weights, z_loss):
    logits = jnp.einsum("btd,vd->btv", hidden.astype("float32"), head.astype("float32"))
    logits = logits if bias is None else logits + bias[None, None]
    logsum = jax.nn.logsumexp(logits, -1)
    picked = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    entropy, z_term = jnp.sum((logsum - picked) * weights), jnp.sum(z_loss * logsum**2 * weights)
    correct = jnp.sum(weights * (jnp.argmax(logits, -1) == targets))
    return entropy + z_term, (entropy, z_term, jnp.sum(weights), correct)


def mean_loss(function, hidden, head, bias, targets, weights):
    def run(hidden, head, bias, weights):
        total, stats = function(hidden, head, bias, targets, weights)
        return total / jnp.sum(weights), (total, tuple(stats))

    step = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2, 3), has_aux=True))
    return step(hidden, head, bias, weights)


def assert_close(got, wanted, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


@pytest.mark.parametrize(("with_bias", "z_loss"), [(False, 0.0), (True, 1e-2)])
@pytest.mark.parametrize("chunk", [None, 1, 2, 8, 64])
def test_equals_the_plain_loss(chunk, z_loss, with_bias):
    hidden, head, bias, targets, weights = inputs()
    bias = bias if with_bias else None

    def fused(hidden, head, bias, targets, weights):
        return vocab_loss(
            hidden, head, targets, weights, head_bias_V=bias, z_loss=z_loss, chunk_tokens=chunk
        )

    got = mean_loss(fused, hidden, head, bias, targets, weights)
    wanted = mean_loss(lambda *x: plain(*x, z_loss=z_loss), hidden, head, bias, targets, weights)
    assert_close(got[0], wanted[0], 2e-6)
    assert_close(got[1], wanted[1], 2e-5)
    assert_close(jax.jit(fused)(hidden, head, bias, targets, weights)[0], wanted[0][1][0], 2e-6)


def test_without_weights_every_token_counts_one():
    hidden, head, _, targets, _ = inputs()
    total, stats = jax.jit(vocab_loss)(hidden, head, targets)
    wanted = jax.jit(plain)(hidden, head, None, targets, jnp.ones((3, 7)), 0.0)[0]
    assert_close(total, wanted, 2e-6)
    assert stats.weight_sum == 21.0 and stats.z_term == 0.0


def test_targets_of_weight_zero_may_be_anything():
    hidden, head, _, targets, _ = inputs()
    weights = jnp.ones((3, 7)).at[1, 3].set(0.0)
    outside = targets.at[1, 3].set(-1)
    run = jax.jit(jax.value_and_grad(lambda h, t: vocab_loss(h, head, t, weights)[0]))
    for a, b in zip(run(hidden, targets), run(hidden, outside), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bfloat16_gives_float32_sums():
    hidden, head, _, targets, weights = inputs(dtype=jnp.bfloat16)

    def run(hidden, head):
        return vocab_loss(hidden, head, targets, weights)[0]

    step = jax.jit(jax.value_and_grad(run, (0, 1)))
    value, gradients = step(hidden, head)
    wanted, exact = step(hidden.astype("float32"), head.astype("float32"))
    assert value.dtype == jnp.float32 and all(g.dtype == jnp.bfloat16 for g in gradients)
    assert_close(value, wanted, 2e-6)
    assert_close(gradients, exact, 2.0**-6)


def test_logits_never_exist_whole():
    hidden, head = jnp.zeros((4, 257, 16)), jnp.zeros((30011, 16))
    targets = jnp.zeros((4, 257), jnp.int32)
    step = jax.jit(jax.grad(lambda *x: vocab_loss(*x, chunk_tokens=64)[0], (0, 1)))
    memory = step.lower(hidden, head, targets).compile().memory_analysis()
    if memory is None:
        pytest.skip("this backend does not report memory")
    assert memory.temp_size_in_bytes < 4 * 257 * 30011 * 4 / 3


@pytest.mark.parametrize("chunk", [None, 1])
def test_meshes(mesh, chunk):
    hidden, head, bias, targets, weights = inputs(batch=8, length=11, width=6, vocab=52)

    def step(hidden, head, bias, targets, weights):
        def fused(hidden, head, bias, targets, weights):
            run = jax.checkpoint(
                lambda h, w, b: vocab_loss(
                    h, w, targets, weights, head_bias_V=b, z_loss=1e-2, chunk_tokens=chunk
                )
            )
            return run(hidden, head, bias)

        return mean_loss(fused, hidden, head, bias, targets, weights)

    wanted = jax.jit(step)(hidden, head, bias, targets, weights)
    token = P(("data", "fsdp"), None)
    specs = (P(*token, None), P("tensor", "fsdp"), P("tensor"), token, token)
    with jax.set_mesh(mesh):
        arrays = [
            jax.device_put(x, jax.NamedSharding(mesh, spec))
            for x, spec in zip((hidden, head, bias, targets, weights), specs, strict=True)
        ]
        got = jax.jit(step)(*arrays)
        assert [g.sharding.spec for g in got[1]] == [specs[0], specs[1], specs[2], token]
    assert_close(got[0], wanted[0], 2e-6)
    assert_close(got[1], wanted[1], 2e-5)
