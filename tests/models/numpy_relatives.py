"""GLM, GLM-130B, ChatGLM and PLUG in plain numpy, from their papers: a second opinion.

`logits(params, ...)` of one row, [T, V]. Names of parameters are those of our tree, everything else
is written anew, with whole matrices of scores and masks as arrays.
"""

import math

import numpy as np

from tests.models.numpy_decoders import gelu, layer_norm, layers


def erf_gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def feed_forward(x, p, unit):
    """Plain, or gated where there is a gate, with all biases."""
    up = x @ p["up"] + p["up_bias"]
    h = unit(x @ p["gate"] + p["gate_bias"]) * up if "gate" in p else unit(up)
    return h @ p["down"] + p["down_bias"]


def heads_of(x, p, name):
    """[T, H, K] of one of the three products."""
    return np.einsum("td,dhk->thk", x, p[name]) + p.get(f"{name}_bias", 0)


def attend(x, keys, p, mask, turn=lambda x: x):
    """What attention writes: queries of x, keys and values of `keys`, read where mask [T, S]."""
    q, k, v = (
        turn(heads_of(x, p, "query")),
        turn(heads_of(keys, p, "key")),
        heads_of(keys, p, "value"),
    )
    scores = np.einsum("thk,shk->hts", q, k) / math.sqrt(q.shape[-1])
    scores = np.where(mask[None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    out = np.einsum("hts,shk,hkd->td", weights, v, p["output"])
    return out + p.get("output_bias", 0)


def reads(count, prefix):
    """[T, T]: the prefix is read by all, the rest from behind."""
    t, s = np.arange(count)[:, None], np.arange(count)[None]
    return (s <= t) | np.asarray(prefix)[None]


def glm(params, tokens, positions, blocks, prefix):
    """arXiv 2103.10360: two tables of positions, a prefix both ways; GPT-2's layers."""
    x = params["embedding"][tokens] + params["positions"][positions]
    x = x + params["block_positions"][blocks]
    mask = reads(len(tokens), prefix)
    for p in layers(params):
        h = layer_norm(x, p["attention_norm"])
        x = x + attend(h, h, p["attention"], mask)
        x = x + feed_forward(layer_norm(x, p["mlp_norm"]), p["mlp"], gelu)
    return layer_norm(x, params["final_norm"]) @ params["embedding"].T


def turned(x, positions):
    """Heads [T, H, K] turned by positions [T]: component i with i + K / 2, as complex numbers."""
    half = x.shape[-1] // 2
    angles = np.asarray(positions)[:, None] / 10_000 ** (np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
    return np.concatenate([z.real, z.imag], -1)


def deep(params, tokens, prefix, turn):
    """GLM-130B's layers as its code has them: a norm before each branch, whose stream it is.

    Our norms stand one place earlier: that of the embedding is the first layer's, that behind a
    feed-forward layer the next one's, the last one that above all layers.
    """
    x = params["embedding"][tokens]
    mask, stack = reads(len(tokens), prefix), layers(params)
    before = [params["embedding_norm"], *(p["mlp_norm"] for p in stack)]
    alpha = math.sqrt(2 * len(stack))
    for p, norm in zip(stack, before, strict=False):
        h = layer_norm(x, norm)
        x = alpha * h + attend(h, h, p["attention"], mask, turn)
        h = layer_norm(x, p["attention_norm"])
        x = alpha * h + feed_forward(h, p["mlp"], gelu)
    return layer_norm(x, before[-1]) @ params["embedding"].T


def glm_130b(params, tokens, positions, prefix):
    """arXiv 2210.02414: DeepNorm with sqrt(2 N), rotary positions, GEGLU, a prefix both ways."""
    return deep(params, tokens, prefix, lambda x: turned(x, positions))


def chatglm(params, tokens, positions, blocks, prefix):
    """ChatGLM-6B: two turns, of either half of a head, and plain GELU."""

    def turn(x):
        one, other = np.split(x, 2, axis=-1)
        return np.concatenate([turned(one, positions), turned(other, blocks)], -1)

    return deep(params, tokens, prefix, turn)


def plug(params, source, tokens, types):
    """A BERT encoder, and a decoder of fewer layers that reads it, normed behind as BERT is."""

    def enter(ids, side, types):
        x = params["embedding"][ids] + side["positions"][: len(ids)] + side["types"][types]
        return layer_norm(x, side["embedding_norm"], 1e-12)

    side = params["encoder"]
    y = enter(source, side, types)
    everything = np.ones((len(source), len(source)), bool)
    for p in layers(side):
        y = layer_norm(y + attend(y, y, p["attention"], everything), p["attention_norm"], 1e-12)
        y = layer_norm(y + feed_forward(y, p["mlp"], erf_gelu), p["mlp_norm"], 1e-12)
    side = params["decoder"]
    x = enter(tokens, side, np.zeros(len(tokens), int))
    mask, across = reads(len(tokens), [False] * len(tokens)), np.ones((len(tokens), len(y)), bool)
    for p in layers(side):
        x = layer_norm(x + attend(x, x, p["attention"], mask), p["attention_norm"], 1e-12)
        x = layer_norm(x + attend(x, y, p["cross_attention"], across), p["cross_norm"], 1e-12)
        x = layer_norm(x + feed_forward(x, p["mlp"], erf_gelu), p["mlp_norm"], 1e-12)
    return x @ params["embedding"].T
