"""A report's figures as charts: loss, isoFLOP parabolas, contour, residuals, held-out runs."""

import html

import numpy as np

from gptjax.scaling.chart import (
    GREY,
    INK,
    PALETTE,
    Chart,
    Series,
    Surface,
    colors_by,
    margins,
    ramp,
    short_power,
)
from gptjax.scaling.laws import Isoflop
from gptjax.scaling.laws.isoflop import budget_of
from gptjax.scaling.table import Runs
from gptjax.sweeps.analysis import Findings, LawResult, frontier
from gptjax.sweeps.curves import Curve
from gptjax.training.metrics import short

HELD_OUT = "#e69f00"  # apart from the laws' red and blue, to colour-blind eyes too
REACH = 10.0  # curves of a law go on to so many times the largest run


def charts(findings: Findings, curves: dict[str, Curve], unit: str) -> tuple[Chart, ...]:
    """Those that the runs can fill, in the order of the report; `unit` names the loss."""
    if not len(findings.runs):
        return ()
    found = [loss_against_flops(findings, curves, unit)]
    if findings.isoflop is not None:
        found.append(parabolas(findings, unit))
    surface = next((law for law in findings.laws if _of_shape(law)), None)
    if surface is not None and np.ptp(np.log(findings.runs.parameters)) > 0:
        found.append(contour(findings, surface, unit))
    if findings.main is not None:
        found.append(residuals(findings))
    if findings.scores:
        found.append(extrapolation(findings, unit))
    return tuple(found)


def _of_shape(law: LawResult) -> bool:
    return law.fit is not None and set(law.fit.law.variables) <= {"parameters", "tokens", "flops"} \
        and {"parameters", "tokens"} <= set(law.fit.law.variables)  # fmt: skip


def describe_runs(runs: Runs, unit: str, extra: list[str] | None = None) -> list[str]:
    """What the pointer shows over each run, beginning with its name."""
    texts = []
    for i, name in enumerate(runs.names):
        text = (
            f"<b>{html.escape(name)}</b><br>{short(runs.parameters[i])} parameters, "
            f"{short(runs.tokens[i])} tokens<br>{runs.flops[i]:.3g} FLOPs<br>"
            f"loss {runs.loss[i]:.4f} {unit}"
        )
        texts.append(text + (f"<br>{extra[i]}" if extra else ""))
    return texts


def run_points(runs: Runs, x, y, unit: str, name: str, **style) -> Series:
    """One marker per run."""
    extra = style.pop("extra", None)
    hover = tuple(describe_runs(runs, unit, extra))
    return Series(name, list(x), list(y), "points", hover=hover, **style)


def every_run(findings: Findings, x: str, y: str, unit: str) -> list[Series]:
    """Markers of the fitted and of the held-out runs over two of their columns."""
    kinds = (
        (findings.fitted, "runs", "circle", ramp(0.35)),
        (findings.held_out, "runs held out", "diamond", HELD_OUT),
    )
    return [
        run_points(runs, runs.column(x), runs.column(y), unit, label, symbol=symbol, color=color)
        for runs, label, symbol, color in kinds
        if len(runs)
    ]


def loss_against_flops(findings: Findings, curves: dict[str, Curve], unit: str) -> Chart:
    """Training curves, final losses, the envelope, and each law along the compute-optimal line."""
    runs, series = findings.runs, []
    order = np.argsort(runs.parameters, kind="stable")
    colors = dict(zip(runs.names, colors_by(runs.parameters), strict=True))
    ends = [short(size) for size in (runs.parameters.min(), runs.parameters.max())]
    several = f" (dark: {ends[0]} parameters, light: {ends[1]})" if ends[0] != ends[1] else ""
    for i in order:
        name = runs.names[i]
        if name in curves:
            series.append(
                Series(
                    name,
                    curves[name].flops,
                    curves[name].loss,
                    color=colors[name],
                    width=1.0,
                    opacity=0.45,
                    group=f"training curves{several}",
                )
            )
    if findings.envelope is not None:
        edge = findings.envelope
        series.append(
            Series(
                "envelope of the training curves",
                edge.flops,
                edge.loss,
                color=INK,
                width=1.5,
                dash="dash",
            )
        )
    reach = margins(runs.flops)
    lowest = float(runs.loss.min())
    for k, law in enumerate(findings.laws):
        for part in law_lines(law, findings, PALETTE[k % len(PALETTE)]):
            series.append(part)
            # an interval may reach far down: it takes at most a quarter more of the figure
            bottom = np.min(part.y) if part.low is None else np.min(part.low)
            lowest = min(lowest, float(max(bottom, 0.88 * np.min(part.y))))
            reach = (reach[0], max(reach[1], max(part.x) * 1.05))
    series += every_run(findings, "flops", "loss", unit)
    return Chart(
        name="loss_flops",
        title="Loss against training FLOPs",
        x_label="training FLOPs",
        y_label=f"loss ({unit})",
        series=tuple(series),
        x_range=(reach[0] / 3, reach[1]),
        y_range=margins([lowest, float(runs.loss.max()) * 1.1]),
        caption=(
            "Every run's training curve (trailing mean) ends at its held-out loss (marker). "
            "The laws show the lowest loss that a budget allows, with the 95% interval of the "
            "bootstrap over runs; dotted where they go beyond the runs. The rate decays over a "
            "run, so that only a curve's end is tuned to its compute."
        ),
    )


def law_lines(law: LawResult, findings: Findings, color: str) -> list[Series]:
    """The law's frontier with its interval: solid over the fitted runs, dotted beyond."""
    low, high = float(findings.fitted.flops.min()), float(findings.fitted.flops.max())
    far = float(findings.runs.flops.max()) * REACH
    lines = []
    for begin, end, dash in ((low, high, "solid"), (high, far, "dot")):
        if end <= begin:
            continue
        grid = np.geomspace(begin, end, 25)
        band = frontier(law, grid)
        if band is None:
            return []
        label = f"{law.name}" + (": lowest loss" if dash == "solid" else ": extrapolated")
        lines.append(
            Series(
                label,
                grid,
                band["loss"],
                color=color,
                dash=dash,
                low=band.get("low"),
                high=band.get("high"),
                group=label,
            )
        )
    return lines


def parabolas(findings: Findings, unit: str) -> Chart:
    """Approach 2: loss over size at each budget, with the minima and their intervals."""
    found: Isoflop = findings.isoflop
    runs, series = findings.fitted, []
    minima = sorted(found.minima, key=lambda minimum: minimum.flops)
    for k, minimum in enumerate(minima):
        color = ramp(k / max(len(minima) - 1, 1))
        label = f"{short_power(minimum.flops)} FLOPs"
        mine = runs.select(minimum.rows)
        sizes = np.geomspace(*margins(mine.parameters), 60)
        series += [
            Series(label, sizes, minimum.curve(sizes), color=color, width=1.5, group=label),
            run_points(mine, mine.parameters, mine.loss, unit, label, color=color, group=label),
        ]
    rest = np.setdiff1d(np.arange(len(runs)), np.concatenate([m.rows for m in minima]))
    if len(rest):
        other = runs.select(rest)
        series.append(
            run_points(
                other,
                other.parameters,
                other.loss,
                unit,
                "runs in no parabola",
                color=GREY,
                symbol="circle-open",
            )
        )
    N, L = [m.parameters for m in minima], [m.loss for m in minima]
    series.append(
        Series(
            "minima with 95% intervals",
            [n.estimate for n in N],
            [v.estimate for v in L],
            "points",
            color=PALETTE[0],
            symbol="star",
            size=12,
            low=[v.low for v in L],
            high=[v.high for v in L],
            x_low=[n.low for n in N],
            x_high=[n.high for n in N],
            hover=tuple(
                f"<b>minimum at {m.flops:.3g} FLOPs</b><br>N* {short(m.parameters.estimate)} "
                f"[{short(m.parameters.low)}, {short(m.parameters.high)}]<br>"
                f"D* {short(m.tokens.estimate)}<br>loss {m.loss.estimate:.4f}"
                for m in minima
            ),
        )
    )
    return Chart(
        name="isoflop",
        title="IsoFLOP parabolas",
        x_label="parameters",
        y_label=f"loss ({unit})",
        series=tuple(series),
        log_y=False,
        caption=(
            f"Approach 2: through the minima N* grows as C^{found.a.estimate:.3f} "
            f"[{found.a.low:.3f}, {found.a.high:.3f}] and D* as C^{found.b.estimate:.3f} "
            f"[{found.b.low:.3f}, {found.b.high:.3f}]."
        ),
    )


def contour(findings: Findings, law: LawResult, unit: str) -> Chart:
    """The fitted loss over N and D, the runs, and the compute-optimal line."""
    runs, fit = findings.runs, law.fit
    N, D = (np.geomspace(*margins(v, 0.12), 60) for v in (runs.parameters, runs.tokens))
    grid_N, grid_D = np.meshgrid(N, D)
    columns = {"N": grid_N.ravel(), "D": grid_D.ravel()}
    z = fit.predict(**columns).reshape(grid_N.shape)
    series = []
    for k, flops in enumerate(np.geomspace(runs.flops.min(), runs.flops.max(), 5)):
        tokens = np.exp(fit.cost.tokens(np.log(N), flops))
        inside = (tokens >= D[0]) & (tokens <= D[-1])
        if inside.sum() > 1:
            series.append(
                Series(
                    f"{short_power(flops)} FLOPs",
                    N[inside],
                    tokens[inside],
                    color=INK,
                    width=1.0,
                    dash="dot",
                    opacity=0.35 + 0.05 * k,
                    group="equal FLOPs",
                )
            )
    budgets = np.geomspace(runs.flops.min() / 2, runs.flops.max() * 2, 40)
    best = frontier(law, budgets)
    if best is not None:
        inside = (best["parameters"] >= N[0]) & (best["parameters"] <= N[-1])
        inside &= (best["tokens"] >= D[0]) & (best["tokens"] <= D[-1])
        series.append(
            Series(
                "compute-optimal",
                best["parameters"][inside],
                best["tokens"][inside],
                color=PALETTE[0],
                width=2.5,
            )
        )
    series += every_run(findings, "parameters", "tokens", unit)
    return Chart(
        name="contour",
        title=f"Fitted loss over parameters and tokens ({law.name})",
        x_label="parameters",
        y_label="training tokens",
        series=tuple(series),
        x_range=(N[0], N[-1]),
        y_range=(D[0], D[-1]),
        surface=Surface(N, D, z, f"loss ({unit})"),
        caption=f"Contours of {fit.law.formula}, fitted to the runs that were not held out.",
    )


def residuals(findings: Findings) -> Chart:
    """Observed over predicted loss of each law, in percent, against FLOPs."""
    series, runs = [], findings.runs
    for k, law in enumerate(findings.laws):
        if law.fit is None or law.fit.law.target != "loss":
            continue
        color = PALETTE[k % len(PALETTE)]
        parts = ((law.fit.runs, "circle", law.name), (findings.held_out, "diamond", "held out"))
        for subset, symbol, said in parts:
            if not len(subset) or (said == "held out" and law.lowest_only):
                continue
            error = 100 * (subset.loss / law.fit.predict(subset) - 1)
            label = law.name if said == law.name else f"{law.name}, held out"
            series.append(
                run_points(
                    subset,
                    subset.flops,
                    error,
                    "",
                    label,
                    extra=[f"{law.name}: observed {e:+.2f}% off" for e in error],
                    symbol=symbol,
                    color=color,
                    hidden=k > 1,
                )
            )
    ends = margins(runs.flops)
    series.insert(0, Series("0", ends, [0, 0], color=GREY, width=1.0, group="no error"))
    return Chart(
        name="residuals",
        title="Residuals",
        x_label="training FLOPs",
        y_label="observed / predicted loss - 1 (%)",
        series=tuple(series),
        log_y=False,
        x_range=ends,
        caption="A pattern here is something that the law does not say; scatter is noise.",
    )


def extrapolation(findings: Findings, unit: str) -> Chart:
    """What the laws say of the held-out runs, which they were not fitted to, and what came out."""
    held, series = findings.held_out, []
    laws = [s for s in findings.scores if not s.baseline and np.isfinite(s.errors).all()]
    by_name = {law.name: law for law in findings.laws}
    said = [""] * len(held)
    for k, score in enumerate(laws):
        law, color = by_name[score.name], PALETTE[k % len(PALETTE)]
        predicted = law.fit.predict(held)
        low, high = law.bootstrap.predict(held) if law.bootstrap else (None, None)
        texts = [
            f"{law.name} predicts {p:.4f}: observed {100 * e:+.2f}% off"
            for p, e in zip(predicted, score.errors, strict=True)
        ]
        said = [f"{before}<br>{text}" for before, text in zip(said, texts, strict=True)]
        style = {"color": color, "hidden": k > 0, "group": f"predicted by {law.name}"}
        series += _predicted_curves(law, held, style)
        series.append(
            run_points(
                held, held.parameters, predicted, unit, style["group"], extra=texts,
                symbol="square", size=11, low=low, high=high, **style,
            )
        )  # fmt: skip
    texts = [text.removeprefix("<br>") for text in said]
    series.append(
        run_points(
            held, held.parameters, held.loss, unit, "held-out runs", extra=texts,
            symbol="diamond", color=HELD_OUT, size=10,
        )
    )  # fmt: skip
    best = findings.scores[0]
    return Chart(
        name="extrapolation",
        title="Held-out runs, predicted and observed",
        x_label="parameters",
        y_label=f"loss ({unit})",
        series=tuple(series),
        log_y=False,
        caption=(
            f"Fitted to {len(findings.fitted)} runs of at most "
            f"1/{findings.analysis.holdout:g} of the largest FLOPs, and asked for the "
            f"{len(held)} others; lines follow one budget. The intervals are of the fit, without "
            f"the noise of single runs. Lowest mean error: {best.name}, "
            f"{100 * best.mean_absolute:.2f}%. The legend shows the other laws."
        ),
    )


def _predicted_curves(law: LawResult, held: Runs, style: dict) -> list[Series]:
    """The law over N at each budget that held-out runs share."""
    if not _of_shape(law):
        return []
    lines = []
    budgets = budget_of(held)
    for budget in np.unique(budgets[np.isfinite(budgets)]):
        sizes = held.parameters[budgets == budget]
        if len(np.unique(sizes)) < 2:
            continue
        N = np.geomspace(sizes.min(), sizes.max(), 40)
        # tokens as the runs had them: the fitted cost is not exact, and the line is to meet them
        order = np.argsort(sizes)
        logs = np.log(sizes[order]), np.log(held.tokens[budgets == budget][order])
        columns = {"N": N, "D": np.exp(np.interp(np.log(N), *logs))}
        low, high = law.bootstrap.predict(**columns) if law.bootstrap else (None, None)
        name = f"{law.name} at {short_power(budget)} FLOPs"
        loss = law.fit.predict(**columns)
        lines.append(Series(name, N, loss, width=1.5, low=low, high=high, **style))
    return lines
