"""cuDNN's parts, with a dense stand-in for its primitives: what is cut, merged and fed back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.ops import cudnn
from gptjax.ops.attention import LOCAL, attention
from gptjax.ops.blocked import FAR
from gptjax.ops.fused import merged, split
from gptjax.ops.kernels import choose_kernel, kernel_pairs
from gptjax.ops.patterns import parse
from tests.ops.test_attention import assert_close, inputs

LENGTH = 131


def scores_of(call, scale, q, k):
    """[N, H, T, S]; every head has keys of its own."""
    k = jnp.repeat(k, q.shape[2] // k.shape[2], 2)
    apart = jnp.arange(q.shape[1])[:, None] - jnp.arange(k.shape[1])[None, :]
    mask = (apart >= 0) | (not call.causal)
    mask = mask & ((apart < call.window) | (call.window == 0))
    return jnp.where(mask, scale * jnp.einsum("nthk,nshk->nhts", q, k), FAR)


def forward(call, scale, q, k, v):
    scores = scores_of(call, scale, q, k)
    v = jnp.repeat(v, q.shape[2] // v.shape[2], 2)
    logsum = jax.nn.logsumexp(scores, -1)
    return jnp.einsum("nhts,nshk->nthk", jnp.exp(scores - logsum[..., None]), v), logsum


def backward(call, scale, q, k, v, logsum, out, g):
    weights = jnp.exp(scores_of(call, scale, q, k) - logsum[..., None])
    repeats, radial = q.shape[2] // k.shape[2], jnp.einsum("nthk,nthk->nht", g, out)
    wide = functools.partial(jnp.repeat, repeats=repeats, axis=2)
    dweights = jnp.einsum("nthk,nshk->nhts", g, wide(v)) - radial[..., None]
    dscores = scale * weights * dweights
    narrow = lambda x: x.reshape(*x.shape[:2], -1, repeats, x.shape[-1]).sum(3)
    dk = narrow(jnp.einsum("nhts,nthk->nshk", dscores, q))
    dv = narrow(jnp.einsum("nhts,nthk->nshk", weights, g))
    return jnp.einsum("nhts,nshk->nthk", dscores, wide(k)), dk, dv


STAND_IN = cudnn.CuDNN(forward, backward)
# The text, the parts of cuDNN and those that are left to the portable kernel.
CASES = {
    "causal": (1, 0),
    "bidirectional": (1, 0),
    "window:11": (1, 0),
    "window:11,5": (0, 1),
    "strided:7": (2, 0),
    "strided:7,window=16": (2, 0),
    "fixed:16,3": (1, 1),
    "dilated:3,5": (1, 0),
    "longformer:9,70,causal": (3, 0),
    "prefix:30": (1, 1),
    "image_conv:8,3,20": (4, 0),
    "image_column:8,20": (3, 0),
}


def with_gradients(kernel, text, arrays):
    def both(q, k, v, g):
        out, pull = jax.vjp(lambda *x: kernel(parse(text), 0.3, *x), q, k, v)
        return out, *pull(g)

    return jax.jit(both)(*arrays)


@pytest.mark.parametrize("text", CASES)
def test_parts_merge_to_the_dense_result(text, monkeypatch):
    monkeypatch.setattr(cudnn, "SHORTEST", 1)
    mine, rest = split(STAND_IN, parse(text), LENGTH)
    assert (len(mine), len(rest)) == CASES[text]
    arrays = inputs(length=LENGTH, groups=2)
    fused = lambda pattern, scale, *x: merged(STAND_IN, pattern, scale, *x, None)
    dense = lambda pattern, scale, *x: LOCAL["dense"](pattern, scale, *x, None, None)
    got, wanted = with_gradients(fused, text, arrays), with_gradients(dense, text, arrays)
    assert_close(got[0], wanted[0], 2e-6)
    assert_close(got[1:], wanted[1:], 2e-5)


def test_short_groups_are_left_to_the_portable_kernel():
    mine, rest = split(cudnn.CUDNN, parse("strided:128"), 2048)
    assert len(mine) == 1 and len(rest) == 1
    assert len(split(cudnn.CUDNN, parse("strided:16"), 2048)[0]) == 2


@pytest.mark.parametrize(("text", "calls"), [("window:300", 1), ("strided:16", 2)])
def test_the_lowered_program_calls_cudnn(text, calls, monkeypatch):
    """A call per part and direction, windows as numbers, no array of all pairs."""
    monkeypatch.setattr("gptjax.ops.attention.backend", lambda: "gpu")
    x = jax.ShapeDtypeStruct((2, 2048, 4, 60), jnp.bfloat16)

    def loss(q, k, v):
        return attention(q, k, v, pattern=parse(text)).astype(jnp.float32).sum()

    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(x, x, x).lower(lowering_platforms=("cuda",))
    program = lowered.as_text()
    assert program.count("@__cudnn$fmhaSoftmaxBackward(") == calls
    assert program.count("@__cudnn$fmhaSoftmax(") == calls
    assert f"sliding_window_length\\22: {parse(text).width}" in program.replace("\\5C", "")
    assert "2048x2048" not in program


def test_choice():
    def choose(text, kernel="auto", **changed):
        given = {"has_segments": False, "has_slopes": False, "length": 2048, "dtype": jnp.bfloat16}
        return choose_kernel(kernel, "gpu", parse(text), **{**given, **changed})

    assert choose("strided:16") == choose("window:64") == choose("fixed:128,16") == "cudnn"
    assert choose("window:64,3") == "blocked" and choose("bigbird:64") == "block_list"
    assert choose("strided:16", dtype=jnp.float32) == "blocked"
    assert choose("causal", length=31) == "dense"
    for wrong, why in (({"dtype": jnp.float32}, "float32"), ({"head_size": 256}, "at most 128"),
                       ({"has_segments": True}, "segments")):  # fmt: skip
        with pytest.raises(BadInput, match=why):
            choose("strided:16", "cudnn", **wrong)
    with pytest.raises(BadInput, match="no part of bigbird:64 at length 2048 is causal"):
        choose("bigbird:64", "cudnn")


def test_without_the_primitives_only_single_parts(monkeypatch):
    monkeypatch.setattr(cudnn, "available", lambda: False)
    assert cudnn.cudnn_can(parse("window:64"), 256) == ""
    assert "lacks" in cudnn.cudnn_can(parse("strided:4"), 256)


def test_pairs():
    for text in ("causal", "window:64", "strided:16", "longformer:70,80,causal"):
        assert kernel_pairs(parse(text), 2048, "cudnn") == parse(text).pairs(2048)
    pairs = np.array([kernel_pairs(parse("fixed:128,16"), 2048, k) for k in ("cudnn", "blocked")])
    assert parse("fixed:128,16").pairs(2048) <= pairs[0] < pairs[1]
