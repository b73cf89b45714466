"""Attention by its definition: the pattern's mask, a softmax and its gradient, in numpy float64."""

from typing import NamedTuple

import numpy as np


class Exact(NamedTuple):
    """Results by name, and the sums of their terms' magnitudes.

    Where terms cancel rounding acts on those all the same: a gradient is exactly zero where a query
    reads one key, a small one where it reads two alike.
    """

    values: dict[str, np.ndarray]
    terms: dict[str, np.ndarray]

    def size(self, name: str, share: float) -> float:
        """What an error counts against: the largest magnitude, or a share of that of the terms."""
        return max(np.abs(self.values[name]).max(), share * self.terms[name].max())


def member_of(head: int, heads: int, groups: int, count: int) -> int:
    """Which of `count` patterns a head has (`Pattern.members`)."""
    repeats = heads // groups
    return head % count if repeats % count == 0 else head // repeats % count


def exact_attention(pattern, scale, q, k, v, g, segments=None, slopes=None) -> Exact:
    """Output and gradients of q, k, v given g, that of the output: all [B, T, H or G, K]."""
    q, k, v, g = (np.asarray(x, np.float64) for x in (q, k, v, g))
    batch, length, heads, _ = q.shape
    groups, at = k.shape[2], np.arange(length)
    masks = [
        np.broadcast_to(np.asarray(member.mask(at[:, None], at[None, :], length)), (length,) * 2)
        for member in pattern.members
    ]
    apart = at[None, :] - at[:, None]
    names = {"out": g.shape, "dq": q.shape, "dk": k.shape, "dv": v.shape}
    values = {name: np.zeros(shape) for name, shape in names.items()}
    terms = {name: np.zeros(shape) for name, shape in names.items()}
    for b in range(batch):
        for h in range(heads):
            key = h // (heads // groups)
            mask = masks[member_of(h, heads, groups, len(masks))]
            if segments is not None:
                own = np.asarray(segments)[b]
                mask = mask & (own[:, None] == own[None, :])
            scores = scale * q[b, :, h] @ k[b, :, key].T
            if slopes is not None:
                scores = scores - float(slopes[h]) * np.abs(apart)
            scores = np.where(mask, scores, -np.inf)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            dweights = g[b, :, h] @ v[b, :, key].T
            mean = (weights * dweights).sum(1, keepdims=True)
            dscores, size = weights * (dweights - mean), weights * (np.abs(dweights) + np.abs(mean))
            for into, w, ds, absolute in (
                (values, weights, scale * dscores, lambda x: x),
                (terms, weights, abs(scale) * size, np.abs),
            ):
                into["out"][b, :, h] = w @ absolute(v[b, :, key])
                into["dq"][b, :, h] = ds @ absolute(k[b, :, key])
                into["dk"][b, :, key] += ds.T @ absolute(q[b, :, h])
                into["dv"][b, :, key] += w.T @ absolute(g[b, :, h])
    return Exact(values, terms)
