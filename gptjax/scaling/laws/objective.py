"""What a fit minimises: a sum over runs of Huber or squared residuals, with its gradient.

Sums, not means: the mean over runs together with a solver's default tolerance stops early and
has given a published wrong fit. Matrix products go through einsum, which starts no threads.
"""

from dataclasses import dataclass

import numpy as np

from gptjax.errors import BadInput, did_you_mean
from gptjax.scaling.laws.law import SAFE, Law

LOSSES = ("huber_log", "squared_log", "huber", "squared")


def check_loss(loss: str, law: Law) -> str:
    """The loss as it stands, or BadInput."""
    if loss not in LOSSES:
        raise BadInput(
            f"loss is {loss!r}, not one of {', '.join(LOSSES)}{did_you_mean(loss, LOSSES)}"
        )
    if loss.endswith("_log") and not law.log_target:
        plain = loss.removesuffix("_log")
        raise BadInput(f"law {law.name!r} predicts {law.target}, which has no logarithm to fit: "
                       f"use loss={plain!r}")  # fmt: skip
    return loss


@dataclass(frozen=True, eq=False)
class Objective:
    """One law on one table under one loss; coordinates are raw = base + basis @ coordinates."""

    law: Law
    x: np.ndarray
    y: np.ndarray  # log of the target where the law's target is, else the target
    weights: np.ndarray
    loss: str
    delta: float
    centring: np.ndarray  # [P, P], the law's
    base: np.ndarray
    basis: np.ndarray  # [P, free]

    @property
    def robust(self) -> bool:
        return self.loss.startswith("huber")

    def raw(self, coordinates: np.ndarray) -> np.ndarray:
        return self.base + self.basis @ coordinates

    def residuals(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predicted minus observed [rows] in the space of the loss, and slopes [P, rows]."""
        predicted, slopes = self.law.evaluate(raw, self.x)
        if self.law.log_target and not self.loss.endswith("_log"):
            predicted = np.exp(np.clip(predicted, -SAFE, SAFE))
            return predicted - np.exp(self.y), slopes * predicted
        return predicted - self.y, slopes

    def value(self, raw: np.ndarray) -> float:
        residual, _ = self.residuals(raw)
        return float(np.sum(self.weights * self.rho(residual)))

    def rho(self, residual: np.ndarray) -> np.ndarray:
        """The loss of each residual."""
        if not self.robust:
            return 0.5 * residual**2
        size = np.abs(residual)
        return np.where(
            size <= self.delta, 0.5 * residual**2, self.delta * (size - 0.5 * self.delta)
        )

    def psi(self, residual: np.ndarray) -> np.ndarray:
        """The derivative of `rho`."""
        return np.clip(residual, -self.delta, self.delta) if self.robust else residual

    def value_and_gradient(self, coordinates: np.ndarray) -> tuple[float, np.ndarray]:
        residual, slopes = self.residuals(self.raw(coordinates))
        pull = self.weights * self.psi(residual)
        value = np.sum(self.weights * self.rho(residual))
        gradient = np.einsum("pf,p->f", self.basis, np.einsum("pn,n->p", slopes, pull))
        if not np.isfinite(value) or not np.isfinite(gradient).all():
            return 1e30, np.zeros_like(coordinates)  # a step too far: the line search turns back
        return float(value), gradient

    def curvature(self, coordinates: np.ndarray) -> np.ndarray:
        """[free, free]: the Gauss-Newton matrix, with a robust loss as reweighted squares."""
        residual, slopes = self.residuals(self.raw(coordinates))
        size = np.maximum(np.abs(residual), 1e-300)
        share = np.minimum(self.delta / size, 1.0) if self.robust else np.ones_like(size)
        slopes = np.einsum("pf,pn->fn", self.basis, slopes)
        return np.einsum("fn,gn->fg", slopes * (self.weights * share), slopes)
