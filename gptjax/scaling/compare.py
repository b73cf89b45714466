"""Architectures on one axis: how much less one needs for the same loss, and whether that is known.

The compute-equivalent gain of an architecture over a reference at a loss is the reference's
resource over its own, each on its own compute-optimal line: above 1, it needs less. It is told
within the losses that both have reached and nowhere else, for FLOPs, parameters, seconds and
bytes of text, with a bootstrap over each sweep's runs. An interval that holds 1 is "not separable".
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from gptjax.errors import BadInput, did_you_mean
from gptjax.scaling.joint import JointPower, fit_joint, joint_table
from gptjax.scaling.laws.checks import check_level, check_resamples, check_runs, check_seed
from gptjax.scaling.laws.fit import Fit
from gptjax.scaling.laws.intervals import Interval
from gptjax.scaling.laws.isoflop import SAME_BUDGET
from gptjax.scaling.laws.optimum import Cost
from gptjax.scaling.resampling import fewest, matched, resample, too_few
from gptjax.scaling.table import Runs

RESOURCES = ("flops", "parameters", "seconds", "bytes", "tokens")
LEVELS = 9  # losses at which gains are told
SHAPES_VARY = 0.25  # of log D about a power of N: enough to tell N's part from D's
LOST = 0.2  # more resamples without a gain than this: no interval
NO_WIDTH = 1e-6  # an interval relatively narrower than this is rounding, not knowledge


@dataclass(frozen=True, eq=False)
class Gain:
    """How many times less of a resource `label` needs than `reference`, over the shared losses.

    Arrays are [LEVELS], from the highest loss to the lowest; `at` is the gain in the middle.
    `why` says why there is none.
    """

    label: str
    reference: str
    resource: str
    losses: np.ndarray
    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    at: Interval | None
    why: str = ""

    @property
    def loss(self) -> float:
        """The loss of `at`."""
        return float(self.losses[LEVELS // 2]) if len(self.losses) else float("nan")

    @property
    def verdict(self) -> str:
        """In words; "not separable" when the interval holds 1."""
        if self.at is None:
            return self.why
        if not np.isfinite(self.at.low):
            return f"not separable: {self.why}"
        if 1.0 in self.at:
            return "not separable"
        times = self.at.estimate if self.at.low > 1 else 1 / self.at.estimate
        apart = (self.low > 1) | (self.high < 1)
        part = "" if apart.all() else f", separable at {apart.sum()} of {LEVELS} losses"
        return f"{times:.2f} times {'less' if self.at.low > 1 else 'more'}{part}"


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare_runs` found."""

    tables: Mapping[str, Runs]  # the runs by label, loss in `unit`
    reference: str
    corpora: Mapping[str, str]
    law: str  # "chinchilla" or "power"
    unit: str
    fits: Mapping[str, Fit]  # one for "joint", or one per resource
    gains: tuple[Gain, ...]
    lines: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]  # resource, label: x, loss
    resamples: int
    level: float
    remarks: tuple[str, ...]


def compare_runs(
    tables: Mapping[str, Runs],
    *,
    reference: str | None = None,
    corpora: Mapping[str, str] | None = None,
    law: str = "auto",
    exponents: str = "auto",
    resamples: int = 400,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Compare tables of runs by label; the first is the reference unless another is named.

    `law`: "chinchilla" fits L(N, D) of all jointly and reads each one's compute-optimal line;
    "power" fits loss against each resource alone, for ladders of compute-optimal runs; "auto"
    takes the first where every table varies D beside N. `exponents`: "own" per architecture,
    "shared", or "auto": shared unless own ones are worth their number by the AIC corrected for
    few runs (Hurvich and Tsai, 1989); gains hang on them by far the most. `corpora`: by label the
    text that is predicted, with a floor for each and no gain between two. Columns `seconds` and
    `bytes` are used where a table has them. BadInput when there are fewer than two tables or too
    few runs.
    """
    check(tables, reference, law, exponents, level, resamples, seed)
    labels = list(tables)
    reference = labels[0] if reference is None else reference
    if not isinstance(corpora or {}, Mapping):
        raise BadInput(f"corpora is {corpora!r:.80}; give a dict from label to corpus")
    corpora = {label: (corpora or {}).get(label, "") for label in labels}
    tables = {label: runs.finite() for label, runs in tables.items()}
    for label, runs in tables.items():
        if not len(runs):
            raise BadInput(f"{label} has no finished run with a finite loss")
    tables, unit = common_unit(tables)
    if law == "auto":
        law = "chinchilla" if all(shapes_vary(runs) for runs in tables.values()) else "power"
    known, remarks = resources_of(tables, law)
    groups = [("parameters", "tokens")] if law == "chinchilla" else [(name,) for name in known]
    if law == "power":
        still = {name: constant(tables, name) for name in known}
        groups = [(name,) for name in known if not still[name]]
        remarks += [
            f"no gain in {name}: it is the same in every run of {', '.join(which)}"
            for name, which in still.items()
            if which
        ]
        if not groups:
            raise BadInput(f"there is nothing to compare: {'; '.join(remarks)}")
    fits, gains, lines = {}, [], {}
    for variables in groups:
        floors = [corpora[label] for label in labels]
        fit = fit_joint(joint_table(tables), labels, variables, floors, exponents)
        few = too_few(fit, tables)
        raws = None if few else resample(fit, list(tables.values()), resamples, seed)
        name = "joint" if law == "chinchilla" else variables[0]
        fits[name] = fit
        axes = [Axes(fit, k, runs, known) for k, runs in enumerate(tables.values())]
        lines.update(_lines(axes, labels, fit.raw, known if law == "chinchilla" else variables))
        for k, label in enumerate(labels):
            if label == reference:
                continue
            r = labels.index(reference)
            if corpora[label] != corpora[reference]:
                why = f"not comparable: {corpora[label]} is another task than {corpora[reference]}"
                gains += [_none(label, reference, n, why) for n in axes[k].names(variables)]
            else:
                gains += _gains(label, reference, axes[k], axes[r], fit, raws, variables, level)
        remarks += [f"{name}: {flag}" for flag in fit.flags]
        if exponents == "auto":
            remarks.append(f"{name}: {fit.law.exponents} exponents have the lower corrected AIC")
    remarks += _run_by_run(tables, reference)
    return Comparison(
        tables=tables,
        reference=reference,
        corpora=corpora,
        law=law,
        unit=unit,
        fits=fits,
        gains=tuple(gains),
        lines=lines,
        resamples=resamples,
        level=level,
        remarks=tuple(remarks),
    )


def _run_by_run(tables: Mapping[str, Runs], reference: str) -> list[str]:
    """The difference of losses where every run has a partner of its size and budget."""
    rows = matched(list(tables.values()))
    if rows is None:
        return []
    found = ["runs match in size and budget, and are drawn together for the intervals"]
    loss = {k: runs.loss[at] for (k, runs), at in zip(tables.items(), rows, strict=True)}
    for label in loss:
        gap = loss[label] - loss[reference]
        if label != reference:
            found.append(
                f"{label}: loss below that of {reference} in {(gap < 0).sum()} of {len(gap)} "
                f"matched runs, {gap.mean():+.4f} in the mean, {gap.min():+.4f} to {gap.max():+.4f}"
            )
    return found


def check(tables, reference, law: str, exponents: str, level, resamples, seed) -> None:
    """BadInput for what cannot be compared."""
    if not isinstance(tables, Mapping):
        raise BadInput(f"tables is a {type(tables).__name__}; give a dict from label to runs")
    if len(tables) < 2:
        raise BadInput(f"a comparison needs two sweeps or more; there are {len(tables)}")
    for runs in tables.values():
        check_runs(runs)
    if reference is not None and not isinstance(reference, str):
        raise BadInput(f"reference is {reference!r:.80}; give one label of {', '.join(tables)}")
    if reference is not None and reference not in tables:
        near = did_you_mean(reference, tables)
        raise BadInput(f"reference is {reference!r}, not one of {', '.join(tables)}{near}")
    for name, value, options in (
        ("law", law, ("auto", "chinchilla", "power")),
        ("exponents", exponents, ("auto", "own", "shared")),
    ):
        if value not in options:
            near = did_you_mean(value, options)
            raise BadInput(f"{name} is {value!r}, not one of {', '.join(options)}{near}")
    check_level(level)
    check_resamples(resamples)
    check_seed(seed)


def common_unit(tables: Mapping[str, Runs]) -> tuple[dict[str, Runs], str]:
    """(tables, unit of their loss): per byte where a token is not the same text in all."""
    rates = {}
    for label, runs in tables.items():
        if "bytes" not in runs.columns:
            return dict(tables), "nats per token"
        rates[label] = runs.columns["bytes"] / runs.tokens
    every = np.concatenate(list(rates.values()))
    if not np.isfinite(every).all() or every.max() < 1.005 * every.min():
        return dict(tables), "nats per token"
    changed = {
        label: replace(runs, loss=runs.loss / rates[label]) for label, runs in tables.items()
    }
    return changed, "nats per byte"


def shapes_vary(runs: Runs) -> bool:
    """Whether D varies beside N enough to fit a law of both."""
    n, d = np.log(runs.parameters), np.log(runs.tokens)
    if len(runs) < 6 or len(np.unique(n)) < 3:
        return False
    return bool(np.std(d - np.polyval(np.polyfit(n, d, 1), n)) > SHAPES_VARY)


def resources_of(tables: Mapping[str, Runs], law: str) -> tuple[list[str], list[str]]:
    """(resources that every run tells, remarks on the others); tokens stand in for bytes."""
    known, remarks = [], []
    for name in RESOURCES:
        if name == "tokens" and "bytes" in known:
            continue
        lacking = [label for label, runs in tables.items() if not _told(runs, name)]
        if not lacking:
            known.append(name)
        elif name != "tokens":
            remarks.append(f"no gain in {name}: not every run of {', '.join(lacking)} tells them")
    needed = ("parameters", "tokens", "flops") if law == "chinchilla" else ("flops",)
    for name in needed:
        for label, runs in tables.items():
            if not _told(runs, name):
                raise BadInput(f"{label}: not every run tells its {name}")
    return known, remarks


def _told(runs: Runs, name: str) -> bool:
    if name not in ("flops", "parameters", "tokens") and name not in runs.columns:
        return False
    values = runs.column(name)
    return values.dtype.kind == "f" and bool((np.isfinite(values) & (values > 0)).all())


def constant(tables: Mapping[str, Runs], name: str) -> list[str]:
    """The labels whose runs do not differ in a resource: budgets are met to a few percent."""
    spans = {label: np.ptp(np.log(runs.column(name))) for label, runs in tables.items()}
    return [label for label, span in spans.items() if span < SAME_BUDGET]


class Axes:
    """One architecture's resources as functions of loss, along its compute-optimal line."""

    def __init__(self, fit: Fit, k: int, runs: Runs, known: list[str]):
        self.law: JointPower = fit.law
        self.k, self.runs, self.known = k, runs, known
        self.cost = Cost.of(runs)
        self.pace = None
        if "seconds" in known and len(self.law.of) == 2:
            # seconds per token as a power of N, as FLOPs per token are
            self.pace = Cost.of(replace(runs, flops=runs.columns["seconds"]))

    def names(self, variables: tuple[str, ...]) -> list[str]:
        """The resources that a fit in these variables tells."""
        return list(variables) if len(variables) == 1 else list(self.known)

    def at_loss(self, raw: np.ndarray, losses: np.ndarray) -> dict[str, np.ndarray]:
        """By resource, [..., losses] for raw [..., P]; NaN where a loss is out of reach."""
        E, A, alpha = self.law.of_label(raw, self.k)
        with np.errstate(all="ignore"):
            above = losses - E[..., None]
            above = np.where(above > 0, above, np.nan)
            A, alpha = A[..., None, :], np.where(alpha > 0, alpha, np.nan)[..., None, :]
            if len(self.law.of) == 1:
                return {self.law.of[0]: (A[..., 0] / above) ** (1 / alpha[..., 0])}
            # where C = f N^p D is least at a loss: alpha A N^-alpha = p beta B D^-beta
            lean = alpha[..., 0] / (self.cost.power * alpha[..., 1])
            by_N = above / (1 + lean)
            N = (A[..., 0] / by_N) ** (1 / alpha[..., 0])
            D = (A[..., 1] / (above - by_N)) ** (1 / alpha[..., 1])
        found = {"flops": self.cost.factor * N**self.cost.power * D, "parameters": N, "tokens": D}
        if self.pace is not None:
            found["seconds"] = self.pace.factor * N**self.pace.power * D
        if "bytes" in self.known:
            found["bytes"] = D * float(np.mean(self.runs.columns["bytes"] / self.runs.tokens))
        return {name: found[name] for name in self.known}

    def reached(self, raw: np.ndarray) -> tuple[float, float]:
        """(highest, lowest) loss that a run had and that the line has over what runs spent."""
        name = "flops" if len(self.law.of) == 2 else self.law.of[0]
        spent = self.runs.column(name)
        E, _, _ = self.law.of_label(raw, self.k)
        high = float(self.runs.loss.max() * 2)
        losses = np.geomspace(high, float(E) * (1 + 1e-9) + 1e-300, 4000)
        x = self.at_loss(raw, losses)[name]
        known = np.isfinite(x)
        if not known.any():
            return np.nan, np.nan
        ends = np.interp(
            np.log([spent.min(), spent.max()]), np.log(x[known]), np.log(losses[known])
        )
        high, low = (float(np.exp(end)) for end in ends)
        return min(high, float(self.runs.loss.max())), max(low, float(self.runs.loss.min()))


def _gains(label, reference, mine: Axes, other: Axes, fit: Fit, raws, variables, level):
    """The gains of one architecture over the reference, one per resource."""
    (top, bottom), (their_top, their_bottom) = mine.reached(fit.raw), other.reached(fit.raw)
    high, low = min(top, their_top), max(bottom, their_bottom)
    names = mine.names(variables)
    flat = [own for own, end in ((label, top), (reference, their_top)) if not np.isfinite(end)]
    if flat:
        what = variables[0] if len(variables) == 1 else "parameters and tokens"
        why = f"no gain: the fitted loss of {' and '.join(flat)} does not fall with {what}"
        return [_none(label, reference, name, why) for name in names]
    if not high > low:
        why = (
            f"no overlap: {label} went from a loss of {top:.4g} to {bottom:.4g}, {reference} from "
            f"{their_top:.4g} to {their_bottom:.4g}"
        )
        return [_none(label, reference, name, why) for name in names]
    losses = np.geomspace(high, low, LEVELS)
    spent, theirs = mine.at_loss(fit.raw, losses), other.at_loss(fit.raw, losses)
    if raws is not None:
        drawn, against = mine.at_loss(raws, losses), other.at_loss(raws, losses)
    found, middle = [], LEVELS // 2
    for name in names:
        estimate = theirs[name] / spent[name]
        ends = np.full((2, LEVELS), np.nan)
        if raws is None:
            why = f"too few runs to resample, {fewest(fit) + 1} or more of each sweep are needed"
        else:
            with np.errstate(all="ignore"):
                samples = against[name] / drawn[name]
            lost = np.mean(~np.isfinite(samples), axis=0)
            known = lost <= LOST
            shares = [0.5 - level / 2, 0.5 + level / 2]
            ends[:, known] = np.nanquantile(samples[:, known], shares, axis=0)
            flat = known & (ends[1] - ends[0] <= NO_WIDTH * estimate)
            ends[:, flat] = np.nan
            why = (
                "" if known[middle] else f"{100 * lost[middle]:.0f}% of the resamples have no gain"
            )
            why = "all resamples give one gain, its interval has no width" if flat[middle] else why
        at = Interval(float(estimate[middle]), *map(float, ends[:, middle]), level)
        found.append(Gain(label, reference, name, losses, estimate, *ends, at, why))
    return found


def _none(label: str, reference: str, resource: str, why: str) -> Gain:
    nothing = np.zeros(0)
    return Gain(label, reference, resource, nothing, nothing, nothing, nothing, None, why)


def _lines(axes: list[Axes], labels: list[str], raw: np.ndarray, names):
    """By resource and label: (x, loss) along the fitted line, over the reached losses."""
    lines: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {name: {} for name in names}
    for own, label in zip(axes, labels, strict=True):
        high, low = own.reached(raw)
        if not high > low:
            continue
        losses = np.geomspace(high, low, 40)
        at = own.at_loss(raw, losses)
        for name in names:
            lines[name][label] = (at[name], losses)
    return lines
