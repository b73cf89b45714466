"""Decoders that no library has, in plain numpy and loops, from their papers: a second opinion.

`logits(params, tokens, ...)` of one sequence, [T, V], in the precision of the parameters. Layers
are unrolled; names of parameters are those of our tree, everything else is written anew.
"""

import math

import numpy as np


def layer_norm(x, p, eps=1e-5):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * p["scale"]
    return scaled + p.get("bias", 0)


def rms_norm(x, p, eps=1e-5):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + np.exp(-x))


def feed_forward(x, p, unit):
    """Plain, or gated (arXiv 2002.05202) where there is a gate."""
    up = x @ p["up"] + p.get("up_bias", 0)
    h = unit(x @ p["gate"]) * up if "gate" in p else unit(up)
    return h @ p["down"] + p.get("down_bias", 0)


def project(x, p, name, head):
    return x @ p[name][:, head] + (p[f"{name}_bias"][head] if f"{name}_bias" in p else 0)


def attend(x, p, score, sees=lambda t, s: True, queries=None, past=None):
    """What attention writes for every row of x.

    score(h, q, k, t, s): of a query at t and a key at s, which counts from the first row of
    `past`; sees(t, s): whether it is looked at, beside that s is not later than t.
    """
    every = x if past is None else np.concatenate([past, x])
    queries, before = x if queries is None else queries, len(every) - len(x)
    out = np.zeros_like(x)
    num_heads, kv_heads = p["query"].shape[1], p["key"].shape[1]
    for h in range(num_heads):
        g = h * kv_heads // num_heads
        q = project(queries, p, "query", h)
        k, v = project(every, p, "key", g), project(every, p, "value", g)
        for i in range(len(x)):
            t = i + before
            seen = [s for s in range(t + 1) if sees(t, s)]
            scores = np.array([score(h, q[i], k[s], t, s) for s in seen])
            weights = np.exp(scores - scores.max())
            out[i] += (
                sum(w * v[s] for w, s in zip(weights / weights.sum(), seen, strict=True))
                @ (p["output"][h])
            )
    return out + p.get("output_bias", 0)


def dot(h, q, k, t, s):
    return q @ k / math.sqrt(len(q))


def layers(params):
    return [params[f"layer_{i}"] for i in range(sum(name.startswith("layer_") for name in params))]


def pre_norm(x, p, norm, unit, **attention):
    x = x + attend(norm(x, p["attention_norm"]), p["attention"], **attention)
    return x + feed_forward(norm(x, p["mlp_norm"]), p["mlp"], unit)


def gpt3(params, tokens, band):
    """Dense and banded layers in turn (arXiv 2005.14165); a band holds so many positions."""
    x = params["embedding"][tokens] + params["positions"][: len(tokens)]
    for i, p in enumerate(layers(params)):
        near = (lambda t, s: t - s < band) if i % 2 else (lambda t, s: True)
        x = pre_norm(x, p, layer_norm, gelu, score=dot, sees=near)
    return layer_norm(x, params["final_norm"]) @ params["embedding"].T


def pangu(params, tokens):
    """A query layer above the others (arXiv 2104.12369, section 2.2): p_n queries, not x."""
    x = params["embedding"][tokens] + params["positions"][: len(tokens)]
    for p in layers(params):
        x = pre_norm(x, p, layer_norm, gelu, score=dot)
    x = layer_norm(x, params["final_norm"])
    where = params["query_positions"][: len(tokens)]
    x = pre_norm(x, params["query_layer"], layer_norm, gelu, score=dot, queries=where)
    return x @ params["embedding"].T


def palm(params, tokens):
    """y = x + MLP(LN(x)) + Attention(LN(x)), rotary, one key head (arXiv 2204.02311, section 2)."""

    def turned(x, t):
        half = len(x) // 2
        angles = t * 10000.0 ** (-np.arange(half) / half)
        z = (x[:half] + 1j * x[half:]) * np.exp(1j * angles)
        return np.concatenate([z.real, z.imag])

    def score(h, q, k, t, s):
        return turned(q, t) @ turned(k, s) / math.sqrt(len(q))

    x = params["embedding"][tokens]
    for p in layers(params):
        y = layer_norm(x, p["norm"])
        x = x + feed_forward(y, p["mlp"], silu) + attend(y, p["attention"], score)
    width = x.shape[-1]
    return layer_norm(x, params["final_norm"]) @ params["embedding"].T / math.sqrt(width)


def lamda(params, tokens, buckets, max_distance):
    """T5's bias of a distance's bucket, shared by the layers (arXiv 1910.10683), gated GELU."""
    exact = buckets // 2

    def bucket(distance):
        if distance < exact:
            return distance
        share = math.log(distance / exact) / math.log(max_distance / exact)
        return min(exact + int(share * (buckets - exact)), buckets - 1)

    def score(h, q, k, t, s):
        return q @ k / math.sqrt(len(q)) + params["distance_scores"][bucket(t - s), h]

    x = params["embedding"][tokens]
    for p in layers(params):
        x = pre_norm(x, p, layer_norm, gelu, score=score)
    return layer_norm(x, params["final_norm"]) @ params["embedding"].T


def by_distance(p):
    """Equation for A_rel (arXiv 1901.02860, section 3.3) with one layer's parameters."""
    width = p["distance"].shape[0]

    def vector(distance):
        angles = [distance / 10000 ** (2 * i / width) for i in range(width // 2)]
        return np.array([*map(math.sin, angles), *map(math.cos, angles)])

    def score(h, q, k, t, s):
        content = (q + p["content_bias"][h]) @ k
        place = (q + p["place_bias"][h]) @ (vector(t - s) @ p["distance"][:, h])
        return (content + place) / math.sqrt(len(q))

    return score


def gopher(params, tokens):
    """GPT-2 with RMSNorm and scores of distances (arXiv 2112.11446, section 3.1)."""
    x = params["embedding"][tokens]
    for p in layers(params):
        x = pre_norm(x, p, rms_norm, gelu, score=by_distance(p["attention"]))
    return rms_norm(x, params["final_norm"]) @ params["embedding"].T


def transformer_xl(params, tokens, segment):
    """Segment by segment, each layer reading its inputs of the segment before (arXiv 1901.02860).

    Post-norm and ReLU; a query reads the whole segment before and its own up to itself.
    """
    relu = lambda x: np.maximum(x, 0)
    memory, found = None, []
    width = params["embedding"].shape[1]
    for start in range(0, len(tokens), segment):
        x = params["embedding"][tokens[start : start + segment]] * math.sqrt(width)
        inputs = []
        for i, p in enumerate(layers(params)):
            inputs.append(x)
            past = None if memory is None else memory[i]
            y = attend(x, p["attention"], by_distance(p["attention"]), past=past)
            x = layer_norm(x + y, p["attention_norm"])
            x = layer_norm(x + feed_forward(x, p["mlp"], relu), p["mlp_norm"])
        memory = inputs
        found.append(x @ params["embedding"].T + params["head_bias"])
    return np.concatenate(found)
