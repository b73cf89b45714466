"""GPT-2's forward pass in plain numpy, written from the paper: a second opinion for the tests."""

import numpy as np


def layer_norm(x, scale, bias):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(x, p):
    length, width = x.shape
    out = np.zeros((length, width))
    for h in range(p["query"].shape[1]):
        q = x @ p["query"][:, h] + p["query_bias"][h]
        k = x @ p["key"][:, h] + p["key_bias"][h]
        v = x @ p["value"][:, h] + p["value_bias"][h]
        for t in range(length):
            scores = k[: t + 1] @ q[t] / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[t] += (weights / weights.sum()) @ v[: t + 1] @ p["output"][h]
    return out + p["output_bias"]


def logits(params, tokens):
    """[T, V] of one sequence."""
    x = params["embedding"][tokens] + params["positions"][: len(tokens)]
    i = 0
    while (layer := params.get(f"layer_{i}")) is not None:
        norm, mlp = layer["attention_norm"], layer["mlp"]
        x = x + attention(layer_norm(x, norm["scale"], norm["bias"]), layer["attention"])
        h = layer_norm(x, layer["mlp_norm"]["scale"], layer["mlp_norm"]["bias"])
        x = x + gelu(h @ mlp["up"] + mlp["up_bias"]) @ mlp["down"] + mlp["down_bias"]
        i += 1
    x = layer_norm(x, params["final_norm"]["scale"], params["final_norm"]["bias"])
    return x @ params["embedding"].T
