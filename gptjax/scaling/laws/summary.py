"""A fit and what hangs on it as plain dictionaries, for law.json."""

import math
from collections.abc import Iterable

from gptjax.scaling.laws.fit import Fit
from gptjax.scaling.laws.holdout import Holdout
from gptjax.scaling.laws.intervals import Bootstrap, Interval
from gptjax.scaling.laws.isoflop import Isoflop
from gptjax.scaling.laws.words import doubts


def summary(
    fit: Fit, boot: Bootstrap | None = None, budgets: Iterable[float] = (), **others: float
) -> dict:
    """A fit as JSON: law, parameters with intervals, quality, flags, optima at `budgets`.

    `others` are further columns for the optima. What is not finite becomes None.
    """
    values = {**fit.parameters, **fit.derived}
    spans = {**boot.parameters, **boot.derived} if boot else {}
    out = {
        "law": fit.law.name,
        "formula": fit.law.formula,
        "reference": fit.law.reference,
        "runs": len(fit.runs),
        "target": fit.law.target,
        "loss": fit.loss,
        "delta": fit.delta,
        "fixed": fit.fixed,
        "parameters": {n: _figure(n, fit.parameters, spans) for n in fit.parameters},
        "derived": {n: _figure(n, fit.derived, spans) for n in fit.derived if n in values},
        "objective": fit.objective,
        "converged": fit.converged,
        "starts": fit.starts,
        "starts_agreeing": fit.starts_agreeing,
        "spread": fit.spread,
        "r2": fit.r2,
        "aic": fit.aic,
        "bic": fit.bic,
        "flags": list(fit.flags),
        "doubts": doubts(fit, boot.parameters if boot else None),
        "optima": [_optimum(fit, boot, budget, others) for budget in budgets],
    }
    if fit.without_outliers is not None:
        kept = fit.without_outliers
        out["without_outliers"] = {
            "dropped": sorted(set(fit.runs.names) - set(kept.runs.names)),
            "parameters": kept.parameters,
            "derived": kept.derived,
        }
    return clean(out)


def isoflop_summary(result: Isoflop) -> dict:
    """Approach 2 as JSON."""
    out = {
        "a": span(result.a),
        "b": span(result.b),
        "N_factor": result.N_factor,
        "D_factor": result.D_factor,
        "minima": [
            {
                "flops": m.flops,
                "parameters": span(m.parameters),
                "tokens": span(m.tokens),
                "loss": span(m.loss),
                "runs": len(m.rows),
            }
            for m in result.minima
        ],
        "flags": list(result.flags),
        "dropped": list(result.dropped),
    }
    if result.without_outliers is not None:
        out["without_outliers"] = {
            "a": span(result.without_outliers.a),
            "b": span(result.without_outliers.b),
        }
    return clean(out)


def holdout_summary(result: Holdout) -> dict:
    """Held-out scores as JSON."""
    fields = ("name", "baseline", "mean_absolute", "root_mean_square", "bias", "worst")
    return clean(
        {
            "k": result.k,
            "fitted": len(result.fitted),
            "held_out": len(result.held_out),
            "scores": [{f: getattr(s, f) for f in fields} for s in result.scores],
        }
    )


def span(interval: Interval) -> dict:
    """An interval as JSON."""
    return {
        "estimate": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "level": interval.level,
    }


def clean(value):
    """Plain JSON values: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    if isinstance(value, bool | str) or value is None:
        return value
    if hasattr(value, "item"):
        return clean(value.item())
    return value if math.isfinite(value) else None


def _figure(name: str, values: dict, spans: dict) -> dict:
    return span(spans[name]) if name in spans else {"estimate": values[name]}


def _optimum(fit: Fit, boot: Bootstrap | None, budget: float, others: dict) -> dict:
    best = fit.optimum(budget, **others)
    out = {"flops": best.flops, "parameters": best.parameters, "tokens": best.tokens,
           "loss": best.loss, "flags": list(best.flags)}  # fmt: skip
    if boot is not None:
        out["intervals"] = {n: span(i) for n, i in boot.optimum(budget, **others).items()}
    return out
