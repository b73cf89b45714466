"""Approach 2 (arXiv 2203.15556): a parabola in log N per budget, power laws through the minima.

Loss rises far from the minimum faster on one side than on the other, so a parabola takes only the
runs within a window around it. The intervals of minima come from redrawn residuals; the minima's
scatter about the line, where it is more than those explain, goes into the exponents' intervals.
"""

from dataclasses import dataclass, field
from numbers import Real

import numpy as np

from gptjax.errors import BadInput
from gptjax.scaling.laws.checks import (
    check_level,
    check_resamples,
    check_runs,
    check_seed,
    numbers_of,
)
from gptjax.scaling.laws.intervals import Interval, interval_of
from gptjax.scaling.laws.optimum import DECADES, Optimum, reach_flags
from gptjax.scaling.table import OTHERS_OUT, Runs

WINDOW = np.log(6.0)  # a parabola takes the runs within this factor of its minimum
FEWEST = 4  # and no fewer than this, where the budget has them
SAME_BUDGET = 0.10  # runs whose log FLOPs are this close share a budget
ROBUST_SIGMAS = 3.0


@dataclass(frozen=True, eq=False)
class Minimum:
    """The parabola of one budget: log L = c0 + c1 z + c2 z^2 with z = log N - center."""

    flops: float
    parameters: Interval
    tokens: Interval
    loss: Interval
    coefficients: tuple[float, float, float]
    center: float
    rows: np.ndarray  # the rows of the table that it was fitted to

    def curve(self, parameters) -> np.ndarray:
        """The parabola's loss at sizes N."""
        z = np.log(np.asarray(parameters, dtype=float)) - self.center
        return np.exp(np.polynomial.polynomial.polyval(z, self.coefficients))


@dataclass(frozen=True, eq=False)
class Isoflop:
    """N* = N_factor C^a and D* = D_factor C^b through the minima of all budgets.

    `without_outliers` is the same analysis without the runs and budgets named in `dropped`.
    """

    runs: Runs
    minima: tuple[Minimum, ...]
    a: Interval
    b: Interval
    N_factor: float
    D_factor: float
    samples: np.ndarray  # [resamples, 4]: a, log N_factor, b, log D_factor
    level: float
    flags: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    without_outliers: "Isoflop | None" = field(default=None, repr=False)

    def optimum(self, flops: float, decades: float = DECADES) -> Optimum:
        """N and D by the power laws; the loss by a power law in C through the minima's losses."""
        N, D = self.N_factor * flops**self.a.estimate, self.D_factor * flops**self.b.estimate
        flags = reach_flags(self.runs, decades, flops=flops, parameters=N, tokens=D)
        return Optimum(float(flops), float(N), float(D), self._loss(flops), flags)

    def intervals(self, flops: float) -> dict[str, Interval]:
        """Intervals of the optimal `parameters` and `tokens` at a budget."""
        best, x = self.optimum(flops), np.log(flops)
        N = np.exp(self.samples[:, 1] + self.samples[:, 0] * x)
        D = np.exp(self.samples[:, 3] + self.samples[:, 2] * x)
        return {
            "parameters": interval_of("the optimal N", best.parameters, N, self.level),
            "tokens": interval_of("the optimal D", best.tokens, D, self.level),
        }

    def _loss(self, flops: float) -> float:
        from gptjax.scaling.laws.fit import fit_law

        minima = Runs.of(
            [m.loss.estimate for m in self.minima], flops=[m.flops for m in self.minima]
        )
        law = "power_floor" if len(minima) >= 5 else "kaplan_c"
        fit = fit_law(minima, law, loss="squared_log", diagnose=False)
        return float(fit.predict(flops=flops)[0])


def isoflop(
    runs: Runs,
    budgets=None,
    *,
    window: float = WINDOW,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Isoflop:
    """Approach 2 on runs that share budgets.

    Budgets are the column `budget` if there is one, else the FLOPs that runs share within 10%,
    or those given as `budgets` (each run joins the nearest in log). Budgets with fewer than 4
    sizes or whose minimum is not between two runs are left out with a flag. BadInput when fewer
    than 2 budgets remain. `window` is in e-folds of N on either side of the minimum.
    """
    check_runs(runs)
    check_level(level)
    check_seed(seed)
    check_resamples(resamples)
    if not isinstance(window, Real) or not window > 0:
        raise BadInput(f"window is {window!r}; give e-folds of N, as log(6)")
    settings = (window, resamples, seed, level)
    group = budget_of(runs, budgets)
    result, outlying = _analyse(runs, group, *settings)
    if not outlying.any():
        return result
    kept = runs.select(~outlying)
    try:
        without, _ = _analyse(kept, group[~outlying], *settings)
    except BadInput:
        return result
    flags = list(result.flags)
    moved = without.a.estimate - result.a.estimate
    names = tuple(name for name, out in zip(runs.names, outlying, strict=True) if out)
    if abs(moved) > 0.01:
        flags.append(f"outliers: without {len(names)} runs a moves from {result.a.estimate:.3f} to "
                     f"{without.a.estimate:.3f}")  # fmt: skip
    return Isoflop(**{**vars(result), "flags": tuple(flags), "dropped": names,
                      "without_outliers": without})  # fmt: skip


def budget_of(runs: Runs, budgets=None) -> np.ndarray:
    """The budget of every run in FLOPs [rows], NaN for a run that belongs to none."""
    if budgets is None and "budget" in runs.columns:
        return np.asarray(runs.columns["budget"], dtype=float)
    C = runs.flops
    if np.isnan(C).all():
        raise BadInput("approach 2 needs flops (or a column budget), and no run has them")
    if budgets is not None:
        known = np.sort(np.atleast_1d(numbers_of("budgets", budgets)))
        if not (known > 0).all() or not len(known):
            raise BadInput("budgets: give positive FLOPs")
        distance = np.abs(np.log(C)[:, None] - np.log(known))
        nearest = np.where(np.isnan(C), 0, distance.argmin(axis=1))
        return np.where(distance.min(axis=1) <= np.log(2.0), known[nearest], np.nan)
    return same_budgets(C, SAME_BUDGET)


def same_budgets(flops: np.ndarray, within: float) -> np.ndarray:
    """The mean in log of the FLOPs that lie `within` so much in log of the lowest, [rows]."""
    order = np.argsort(flops)
    out = np.full(len(flops), np.nan)
    members: list[int] = []
    for i in [*order[np.isfinite(flops[order]) & (flops[order] > 0)], None]:
        if i is not None and (not members or np.log(flops[i] / flops[members[0]]) <= within):
            members.append(i)
            continue
        if members:
            out[members] = np.exp(np.mean(np.log(flops[members])))
        members = [i] if i is not None else []
    return out


@dataclass
class _Parabola:
    flops: float
    rows: np.ndarray
    z: np.ndarray
    center: float
    y: np.ndarray
    coefficients: np.ndarray  # rising order
    log_tokens: np.ndarray  # intercept and slope of log D over z

    @property
    def at(self) -> float:
        return float(-self.coefficients[1] / (2 * self.coefficients[2]))


def _fit_parabola(flops: float, rows: np.ndarray, runs: Runs, window: float):
    """A _Parabola, or the reason why there is none."""
    n, y = np.log(runs.parameters[rows]), np.log(runs.loss[rows])
    sizes = np.unique(n)
    if len(sizes) < FEWEST:
        return f"fewer than {FEWEST} sizes"
    center = n[np.argmin(y)]
    if center in (sizes[0], sizes[-1]):
        end = "smallest" if center == sizes[0] else "largest"
        return f"the lowest loss is at the {end} size: no minimum in between"
    for _ in range(2):  # again about the parabola's own minimum
        distance = np.abs(sizes - center)
        reach = max(window, np.sort(distance)[FEWEST - 1]) * (1 + 1e-9)
        near = np.abs(n - center) <= reach
        z = n[near] - center
        coefficients = np.polynomial.polynomial.polyfit(z, y[near], 2)
        if coefficients[2] <= 0:
            return "the parabola opens downwards"
        at = center - coefficients[1] / (2 * coefficients[2])
        if not sizes[0] <= at <= sizes[-1]:
            return "the parabola's minimum is outside the runs"
        used, center_used, center = near, center, at
    tokens = runs.tokens[rows][used]
    if np.isnan(tokens).any():
        log_d = np.array([np.log(flops / 6) - center_used, -1.0])
    else:
        log_d = np.polynomial.polynomial.polyfit(z, np.log(tokens), 1)
    return _Parabola(flops, rows[used], z, center_used, y[used], coefficients, log_d)


def _analyse(runs: Runs, group, window, resamples, seed, level):
    """(Isoflop, which runs lie far off) for one set of runs."""
    known = np.isfinite(runs.loss) & (runs.loss > 0)
    known &= np.isfinite(runs.parameters) & (runs.parameters > 0)
    if not known.all():
        bad = ", ".join(np.array(runs.names)[~known][:3])
        raise BadInput(
            f"{(~known).sum()} runs lack a positive loss or parameters ({bad}); {OTHERS_OUT}"
        )
    found, flags, left_out, beyond = [], [], {}, 0
    for budget in np.unique(group[np.isfinite(group)]):
        parabola = _fit_parabola(budget, np.flatnonzero(group == budget), runs, window)
        if isinstance(parabola, str):
            left_out.setdefault(parabola, []).append(budget)
        else:
            found.append(parabola)
            beyond += np.count_nonzero(group == budget) - len(parabola.rows)
    for reason, which in left_out.items():
        budgets = ", ".join(f"{b:.3g}" for b in which[:3]) + (", ..." if len(which) > 3 else "")
        flags.append(f"left out {len(which)} budgets ({budgets}): {reason}")
    if beyond:
        flags.append(f"window: {beyond} runs are in no parabola, their sizes are over "
                     f"{np.exp(window):.3g} times off the minimum")  # fmt: skip
    if len(found) < 2:
        why = f"; {flags[0]}" if flags else ""
        raise BadInput(f"approach 2 needs 2 budgets with a minimum; there are {len(found)}{why}")
    designs = [np.stack([np.ones_like(p.z), p.z, p.z**2], axis=1) for p in found]
    inverses = [np.linalg.pinv(design) for design in designs]
    leverage = [np.einsum("np,pn->n", d, i) for d, i in zip(designs, inverses, strict=True)]
    fitted = [d @ p.coefficients for d, p in zip(designs, found, strict=True)]
    raw = [p.y - f for p, f in zip(found, fitted, strict=True)]
    pooled = np.concatenate(
        [(r / np.sqrt(np.maximum(1 - h, 0.05))) for r, h in zip(raw, leverage, strict=True)]
    )
    freedom = sum(len(p.z) - 3 for p in found)
    random = np.random.default_rng(seed)
    minima, columns = [], []
    for p, inverse, mean in zip(found, inverses, fitted, strict=True):
        drawn = mean + random.choice(pooled, (resamples, len(p.z)))
        c = drawn @ inverse.T
        at = np.where(c[:, 2] > 0, -c[:, 1] / (2 * c[:, 2]), np.nan)
        at = np.clip(at, p.z.min(), p.z.max())
        at = np.where(np.isnan(at), p.at, at)
        bottom = c[:, 0] + c[:, 1] * at + c[:, 2] * at**2
        best = np.polynomial.polynomial.polyval(p.at, p.coefficients)
        n, d = p.center + at, p.log_tokens[0] + p.log_tokens[1] * at
        d_best = p.log_tokens[0] + p.log_tokens[1] * p.at
        columns.append((n, d))
        text = f"at {p.flops:.3g} FLOPs"
        minima.append(
            Minimum(
                flops=float(p.flops),
                parameters=interval_of(f"N* {text}", np.exp(p.center + p.at), np.exp(n), level),
                tokens=interval_of(f"D* {text}", np.exp(d_best), np.exp(d), level),
                loss=interval_of(f"the loss {text}", np.exp(best), np.exp(bottom), level),
                coefficients=tuple(float(v) for v in p.coefficients),
                center=float(p.center),
                rows=p.rows,
            )
        )
    x = np.log([m.flops for m in minima])
    lines, off = [], np.zeros(len(minima), bool)
    for k, best in enumerate(("parameters", "tokens")):
        y = np.log([getattr(m, best).estimate for m in minima])
        drawn = np.stack([c[k] for c in columns], axis=1)
        line, samples, far = _line(x, y, drawn, random)
        lines.append((line, samples))
        off |= far
    (N_line, N_samples), (D_line, D_samples) = lines
    if freedom < 5:
        flags.append(
            f"few runs: {freedom} more than the parabolas' parameters; intervals are rough"
        )
    if len(minima) < 4:
        flags.append(f"few budgets: the exponents rest on {len(minima)} minima")
    outlying = np.zeros(len(runs), bool)
    sigma = 1.4826 * np.median(np.abs(pooled))
    far = np.abs(pooled) > max(ROBUST_SIGMAS * sigma, 1e-12)
    rows = np.concatenate([p.rows for p in found])
    outlying[rows[far]] = True
    for p, far_minimum in zip(found, off, strict=True):
        outlying[p.rows] |= far_minimum
    result = Isoflop(
        runs=runs,
        minima=tuple(minima),
        a=interval_of("a", float(N_line[0]), N_samples[:, 0], level),
        b=interval_of("b", float(D_line[0]), D_samples[:, 0], level),
        N_factor=float(np.exp(N_line[1])),
        D_factor=float(np.exp(D_line[1])),
        samples=np.concatenate([N_samples, D_samples], axis=1),
        level=level,
        flags=tuple(flags),
    )
    return result, outlying


def _line(x, y, drawn, random):
    """(slope and intercept, those of each draw, which points lie far off) of y over x."""
    line = np.polyfit(x, y, 1)
    residual = y - np.polyval(line, x)
    points, freedom = len(x), len(x) - 2
    within = np.mean(np.var(drawn, axis=0))
    between = np.sum(residual**2) / freedom if freedom else 0.0
    excess = np.sqrt(max(between - within, 0.0))
    if freedom:  # the excess itself is known only as well as the few points tell
        chi = random.chisquare(freedom, (len(drawn), 1)) / freedom
        drawn = drawn + excess / np.sqrt(chi) * random.standard_normal(drawn.shape)
    samples = np.polyfit(x - x.mean(), drawn.T, 1).T
    samples[:, 1] -= samples[:, 0] * x.mean()
    far = np.zeros(points, bool)
    if points >= 5:
        sigma = 1.4826 * np.median(np.abs(residual - np.median(residual)))
        far = np.abs(residual) > max(ROBUST_SIGMAS * sigma, 0.05)
    return line, samples, far
