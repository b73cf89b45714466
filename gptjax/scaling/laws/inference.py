"""Scale, likelihood and standard errors of a fit, right for Huber's loss as well as for squares.

A small delta makes Huber's loss act like absolute residuals, whose own likelihood understates the
spread of Gaussian noise. So intervals rest on M-estimation (Huber 1964): a change of the objective
by one unit counts E[psi'] / E[psi^2], and E[psi'], the share of runs within delta, is smoothed by
a kernel because few runs lie there.
"""

from dataclasses import dataclass

import numpy as np

from gptjax.scaling.laws.objective import Objective


@dataclass(frozen=True)
class Scale:
    """What one unit of the objective is worth."""

    bend: float  # E[psi']
    spread: float  # E[psi^2], corrected for the fitted parameters
    runs: int
    free: int  # fitted parameters

    @property
    def freedom(self) -> int:
        return max(self.runs - self.free, 1)

    def statistic(self, increase: float) -> float:
        """An increase of the objective as a statistic that is F(1, freedom) without effect."""
        return 2 * max(increase, 0.0) * self.bend / max(self.spread, 1e-300)

    def critical(self, level: float) -> float:
        """The statistic that is exceeded with probability 1 - level."""
        from scipy.special import fdtri  # scipy.stats takes a second to import

        return float(fdtri(1, self.freedom, level))


def scale_of(objective: Objective, raw: np.ndarray) -> Scale:
    """The scale at the optimum."""
    residual, _ = objective.residuals(raw)
    runs, free = len(residual), objective.basis.shape[1]
    correct = runs / max(runs - free, 1)
    spread = float(np.mean(objective.weights * objective.psi(residual) ** 2) * correct)
    bend = float(np.mean(objective.weights)) if not objective.robust else _bend(objective, residual)
    return Scale(bend, spread, runs, free)


def _bend(objective: Objective, residual: np.ndarray) -> float:
    from scipy.special import ndtr

    # as many residuals as there are parameters are drawn to zero by the fit itself
    free = objective.basis.shape[1]
    kept = np.argsort(np.abs(residual))[min(free, len(residual) - 1) :]
    width = 1.4826 * np.median(np.abs(residual)) * len(residual) ** -0.2
    width = max(width, 0.05 * objective.delta)
    inside = ndtr((objective.delta - residual) / width) - ndtr(
        (-objective.delta - residual) / width
    )
    weighted = objective.weights * inside
    full = weighted.sum() / len(residual)
    trimmed = weighted[kept].sum() / len(kept)
    return float(max(0.5 * (full + trimmed), 1e-12))


def covariance(objective: Objective, raw: np.ndarray, scale: Scale) -> np.ndarray:
    """[P, P], the sandwich estimate in raw coordinates; zero where something is held."""
    return objective.basis @ free_covariance(objective, raw, scale) @ objective.basis.T


def free_covariance(objective: Objective, raw: np.ndarray, scale: Scale) -> np.ndarray:
    """[free, free], the same in the solver's coordinates."""
    _, slopes = objective.residuals(raw)
    slopes = np.einsum("pf,pn->fn", objective.basis, slopes)
    bread = np.linalg.pinv(np.einsum("fn,gn->fg", slopes * objective.weights, slopes), rcond=1e-12)
    middle = np.einsum("fn,gn->fg", slopes * objective.weights**2, slopes)
    per_run = scale.spread / max(np.mean(objective.weights), 1e-300)
    bend = scale.bend / max(np.mean(objective.weights), 1e-300)
    return bread @ middle @ bread * per_run / bend**2


def information(objective: Objective, raw: np.ndarray) -> tuple[float, float]:
    """(AIC, BIC) under the density exp(-rho(r) / tau), with tau at its best.

    For squared residuals this is the usual Gaussian figure, for a small delta a Laplacian one.
    Figures under different losses or deltas are not comparable.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import erf

    residual, _ = objective.residuals(raw)
    n, free, delta = len(residual), objective.basis.shape[1] + 1, objective.delta
    total = float(np.sum(objective.weights * objective.rho(residual)))

    def twice_negative(log_tau: float) -> float:
        tau = np.exp(log_tau)
        norm = np.sqrt(2 * np.pi * tau)
        if objective.robust:
            norm = norm * erf(delta / np.sqrt(2 * tau)) + 2 * tau / delta * np.exp(
                -(delta**2) / (2 * tau)
            )
        return 2 * total / tau + 2 * n * np.log(norm)

    middle = np.log(max(total / n, 1e-60))
    best = minimize_scalar(twice_negative, bounds=(middle - 8, middle + 8), method="bounded")
    return float(best.fun + 2 * free), float(best.fun + free * np.log(n))
