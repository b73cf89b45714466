"""The known traps of a fit, looked for and named: each flag is `kind: what was seen`."""

from dataclasses import replace

import numpy as np

from gptjax.scaling.laws.inference import scale_of
from gptjax.scaling.laws.solve import coordinates_of, descend, hold

ROBUST_SIGMAS = 3.0  # a residual beyond this many is dropped to see what hangs on it
GROSS = 6.0  # beyond this many a residual is told by its run's name, whatever hangs on it
LEVEL = 0.95


def free_flags(fit) -> tuple[str, ...]:
    """Those that need no further fit."""
    flags = []
    target = fit.runs.column(fit.law.target)
    if np.ptp(target) <= 1e-9 * np.abs(target).max():
        flags.append(f"no variation: {fit.law.target} does not vary, it is {target[0]:.4g} in all")
    if not fit.converged:
        flags.append("unconverged: the solver still gained where it stopped; give more starts")
    if fit.starts == 1:
        flags.append("one start: nothing tells a local optimum from the best; give at least 8")
    elif fit.starts_agreeing < max(2, fit.starts // 8):
        flags.append(
            f"starts disagree: {fit.starts_agreeing} of {fit.starts} reached the best objective"
        )
    if "q" in fit.parameters and "q" not in fit.fixed and fit.parameters["q"] > 50:
        flags.append("q not identified: only the scarcer of N and D counts (Kaplan's form)")
    for name in ("alpha", "beta", "eta"):
        if fit.parameters.get(name, 1.0) < 0:
            flags.append(f"negative exponent: {name} is {fit.parameters[name]:.3g}")
    return (*flags, *gross_flags(fit))


def gross_flags(fit) -> list[str]:
    """Runs so far off that they are no noise: told by name, since a robust loss passes over them.

    As many residuals as there are free parameters may be drawn to zero by the fit, so the scale
    is that of the others; a run that stands in several rows counts once.
    """
    size = np.abs(fit.residuals)
    others = np.unique(size)[len(fit.raw) - len(fit.fixed) :]
    if len(others) < 3:
        return []
    sigma = 1.4826 * float(np.median(others))
    target = fit.runs.column(fit.law.target)
    shown = np.log(target) if fit.law.log_target else target
    far = np.flatnonzero(size > max(GROSS * sigma, 1e-3 * np.ptp(shown), 1e-9))
    far = far[np.argsort(-size[far])]
    if not len(far):
        return []
    predicted = fit.predict()
    told = ", ".join(
        f"{fit.runs.names[i]} has {fit.law.target} {target[i]:.4g} where the law has "
        f"{predicted[i]:.4g}" for i in far[:3]
    )  # fmt: skip
    more = f" and {len(far) - 3} more" if len(far) > 3 else ""
    sigmas = f"beyond {GROSS:g} robust standard deviations; R2 with it is {fit.r2:.3g}"
    return [f"gross outlier: {told}{more}, {sigmas}"]


def diagnosed(fit):
    """The fit with the flags that cost refits, and the fit without its outliers."""
    flags = list(fit.flags)
    flags += floor_flags(fit)
    without, more = outlier_flags(fit)
    return replace(fit, flags=(*flags, *more), without_outliers=without)


def floor_flags(fit) -> list[str]:
    """A floor of nothing that fits as well means that the runs do not show one."""
    law = fit.law
    if law.floor is None or law.floor in fit.fixed:
        return []
    objective, index = fit.problem(), law.index(law.floor)
    scale = scale_of(objective, fit.raw)
    low = np.log(np.exp(objective.y.min()) * 1e-4)
    if fit.raw[index] <= low:
        return [f"floor not identified: {law.floor} fell to {fit.parameters[law.floor]:.2g}"]
    held = {law.index(n): law.raw_value(n, v) for n, v in fit.fixed.items()}
    without = hold(objective, {**held, index: low})
    random = np.random.default_rng(0)
    raws = [fit.raw, *(law.start(objective.x, objective.y, random) for _ in range(3))]
    best = min(descend(without, coordinates_of(without, raw)).value for raw in raws)
    statistic = scale.statistic(best - fit.objective)
    if statistic < scale.critical(LEVEL):
        return [
            f"floor not identified: without {law.floor} the objective is {best:.6g} against "
            f"{fit.objective:.6g}"
        ]
    return []


def outliers(fit) -> np.ndarray:
    """Which runs have residuals beyond 3 robust standard deviations, at most a tenth, [rows]."""
    size = np.abs(fit.residuals - np.median(fit.residuals))
    limit = ROBUST_SIGMAS * 1.4826 * np.median(size)
    most = max(len(size) // 10, 1)
    allowed = np.argsort(-size)[:most]
    mask = np.zeros(len(size), bool)
    mask[allowed] = size[allowed] > limit
    return mask


def outlier_flags(fit):
    """(fit without the largest residuals or None, flags): both are reported where they differ."""
    from gptjax.errors import BadInput
    from gptjax.scaling.laws.fit import build_objective, describe

    drop = outliers(fit)
    if not drop.any():
        drop[np.argmax(np.abs(fit.residuals))] = True
    kept = fit.runs.select(~drop)
    try:
        objective = build_objective(kept, fit.law, fit.loss, fit.delta, fit.fixed)
    except BadInput:  # too few would be left
        return None, []
    objective = replace(objective, weights=fit.weights[~drop])
    random = np.random.default_rng(0)
    raws = [fit.raw, *(fit.law.start(objective.x, objective.y, random) for _ in range(3))]
    solutions = [descend(objective, coordinates_of(objective, raw)) for raw in raws]
    best = min(solutions, key=lambda s: s.value)
    without = describe(kept, objective, best, solutions, fit.fixed)
    flags = []
    for name, error in fit.standard_errors.items():
        index = fit.law.index(name)
        moved = abs(without.raw[index] - fit.raw[index])
        size = 1.0 if fit.law.parameters[index].log else abs(fit.raw[index])
        if moved > max(error, 0.02 * size):
            flags.append(f"{name} {fit.parameters[name]:.4g} to {without.parameters[name]:.4g}")
    if flags:
        flags = [f"outliers: without the {int(drop.sum())} largest residuals, " + ", ".join(flags)]
    return without, flags
