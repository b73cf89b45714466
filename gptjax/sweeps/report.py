"""The report of a sweep: report.html, the same figures as PNG, law.json and runs.csv.

Where the analysis compares the values of a field, it begins with them, also in ablation.json.

Everything is made from the sweep's folder alone and comes out the same for the same folder, so
that reports can be compared line by line.
"""

import dataclasses
import html
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptjax.config_tree import flatten
from gptjax.errors import BadInput
from gptjax.scaling.chart import Chart
from gptjax.scaling.table import Runs
from gptjax.sweeps.ablation import Ablation, ablate
from gptjax.sweeps.ablation_page import (
    ablation_charts,
    ablation_json,
    ablation_section,
    ablation_summary,
)
from gptjax.sweeps.alike import compared
from gptjax.sweeps.analysis import Findings, analyse
from gptjax.sweeps.curves import Curve, read_curves, shared_with_trunks
from gptjax.sweeps.figures import charts
from gptjax.sweeps.findings import findings_json, law_section, optima_table, scores_table, summary
from gptjax.sweeps.folder import SweepFolder
from gptjax.sweeps.ledger import State
from gptjax.sweeps.page import Cell, bullets, figure, frame, number, page, table, write_figures
from gptjax.sweeps.sweep import Analysis
from gptjax.sweeps.tasks import unit_of
from gptjax.training.metrics import clock, short
from gptjax.training.workdir import storage_errors, write_json, write_whole

# columns of runs.csv that are no settings of a point
FIGURES = {
    "status", "group", "used", "steps", "seconds", "training_seconds", "bits_per_byte",
    "all_parameters", "non_embedding_parameters", "active_parameters", "predicted_loss", "error",
}  # fmt: skip
UNITS = {
    "validation_loss": "nats per token",
    "population_loss": "nats per token, population",
    "bits_per_dimension": "bits per dimension",
}


class Report(NamedTuple):
    """Where a report stands, and what it says in a few sentences."""

    path: Path
    summary: list[str]

    def _repr_html_(self) -> str:
        """The page as a notebook shows it."""
        return frame(self.path)


def write_report(folder: SweepFolder) -> Report:
    """Write the report of a sweep's folder as it stands.

    Works with any number of finished points: what cannot be fitted is said in words. BadInput
    when the folder cannot be written.
    """
    states = folder.ledger.states()
    curves = in_unit(read_curves(folder), states, folder.analysis().loss)
    findings = findings_of(folder, curves)
    unit = _unit(folder, findings)
    drawn = charts(findings, curves, unit)
    ablation = ablation_of(folder, findings.analysis, curves)
    if ablation is not None:
        drawn = (*ablation_charts(ablation, curves, unit), *drawn)
        tree = {"sweep": folder.name, **ablation_json(ablation, unit)}
        write_json(folder.path / "ablation.json", tree)
    write_figures(folder.path / "figures", drawn)
    write_json(folder.path / "law.json", {"sweep": folder.name, **findings_json(findings)})
    with storage_errors(f"write {folder.path / 'runs.csv'}"):
        every_point(folder, states, findings, curves).to_csv(folder.path / "runs.csv")
    body = report_body(folder, states, findings, drawn, curves, ablation)
    out = folder.path / "report.html"
    write_whole(out, page(f"{folder.name}: report of a sweep", body).encode())
    return Report(out, [*sentences(findings, ablation, unit), *findings.remarks])


def in_unit(curves: dict[str, Curve], states: dict[str, State], loss: str) -> dict[str, Curve]:
    """Curves, which are read in nats per token, as the loss of the report has them."""
    if loss != "bits_per_dimension":
        return curves
    found = {}
    for name, curve in curves.items():
        figures = states[name].figures
        factor = figures.get(loss, math.nan) / figures.get("validation_loss", math.nan)
        if math.isfinite(factor):
            found[name] = dataclasses.replace(
                curve, loss=curve.loss * factor, check_loss=curve.check_loss * factor
            )
    return found


def _unit(folder: SweepFolder, findings: Findings) -> str:
    points = folder.points.values()
    return unit_of((point.experiment for point in points), UNITS[findings.analysis.loss])


def sentences(findings: Findings, ablation: Ablation | None, unit: str) -> list[str]:
    """The report in a few sentences; what was compared comes first."""
    compared = [] if ablation is None else ablation_summary(ablation, unit)
    return [*compared, *summary(findings, unit)]


def ablation_of(folder: SweepFolder, analysis: Analysis, curves) -> Ablation | None:
    """What the compared values of a field came to; None where none are, or the loss is absent."""
    if not analysis.compare:
        return None
    try:
        return ablate(folder.points, folder.runs(analysis).finite(), analysis, curves)
    except BadInput:  # a loss that is absent stands in the remarks
        return None


def findings_of(folder: SweepFolder, curves: dict[str, Curve]) -> Findings:
    """What the finished points say; a remark where the asked-for loss is not there."""
    analysis, remarks = compared(folder.points.values(), folder.analysis()), []
    runs = Runs.of([])
    for loss in dict.fromkeys((analysis.loss, "validation_loss")):
        try:
            runs = folder.runs(dataclasses.replace(analysis, loss=loss))
        except BadInput as error:
            remarks.append(str(error))
            continue
        analysis = dataclasses.replace(analysis, loss=loss)
        break
    fields = sorted({name for point in folder.points.values() for name in point.row})
    found = analyse(runs, analysis, curves, tuple(f for f in fields if f not in ("name", "group")))
    corpora = corpora_of(folder, runs.names)
    if len(corpora) > 1:
        remarks.append(
            f"points have different corpora ({', '.join(corpora)}): their losses do not compare"
        )
    return dataclasses.replace(found, remarks=(*remarks, *found.remarks))


def corpora_of(folder: SweepFolder, names: Iterable[str]) -> list[str]:
    """What these points are trained on, each once."""
    found = {}
    for name in names:
        data = folder.points[name].experiment.data
        files = f" {' '.join(data.files)}" if data.corpus == "files" else ""
        found[f"{data.corpus}{files}"] = None
    return list(found)


def every_point(
    folder: SweepFolder, states: dict[str, State], findings: Findings, curves: dict[str, Curve]
) -> Runs:
    """All points as a table; planned figures where a point has none, and no loss then."""
    analysis: Analysis = findings.analysis
    names = list(folder.points)
    points = [folder.points[name] for name in names]
    figures = [states[name].figures if states[name].status == "done" else {} for name in names]

    def column(key: str, planned=None) -> np.ndarray:
        found = [
            f.get(key, np.nan if planned is None else planned[i]) for i, f in enumerate(figures)
        ]
        return np.array(found, dtype=float)

    used = dict.fromkeys(findings.fitted.names, "fitted")
    used.update(dict.fromkeys(findings.held_out.names, "held out"))
    columns: dict[str, np.ndarray] = {
        "status": np.array([states[name].status for name in names], dtype=object),
        "group": np.array([point.group for point in points], dtype=object),
        "used": np.array([used.get(name, "") for name in names], dtype=object),
        "steps": column("steps", [point.experiment.steps for point in points]),
        "seconds": column("seconds"),
        "training_seconds": np.array(
            [curves[name].seconds if name in curves else np.nan for name in names]
        ),
        "bits_per_byte": column("bits_per_byte"),
        "all_parameters": column("parameters", [point.parameters for point in points]),
        "non_embedding_parameters": column("non_embedding_parameters"),
    }
    if any(point.experiment.model.experts.count for point in points):
        columns["active_parameters"] = column("active_parameters")
    main = findings.main
    if main is not None and set(main.fit.law.variables) <= {"parameters", "tokens", "flops"}:
        predicted = dict(zip(findings.runs.names, main.fit.predict(findings.runs), strict=True))
        columns["predicted_loss"] = np.array([predicted.get(name, np.nan) for name in names])
    for field in sorted({name for point in points for name in point.row} - {"name", "group"}):
        texts = [str(point.row.get(field, "")) for point in points]
        columns[field] = np.array(texts, dtype=object)
    columns["error"] = np.array([" ".join(states[n].error.split()) for n in names], dtype=object)
    sizes = [point.parameters for point in points] if analysis.size == "parameters" else None
    return Runs(
        parameters=column(analysis.size, sizes),
        tokens=column("tokens", [point.experiment.tokens for point in points]),
        flops=column("flops", [point.flops for point in points]),
        loss=column(analysis.loss),
        names=tuple(names),
        columns=columns,
    )


# ---------------------------------------------------------------- the page


def report_body(
    folder: SweepFolder,
    states: dict[str, State],
    findings: Findings,
    drawn: tuple[Chart, ...],
    curves: dict[str, Curve],
    ablation: Ablation | None = None,
) -> str:
    """The page between its head and its script."""
    unit = _unit(folder, findings)
    counts: dict[str, int] = {}
    for state in states.values():
        counts[state.status] = counts.get(state.status, 0) + 1
    order = ("done", "diverged", "failed", "waiting")
    stand = ", ".join(f"{counts[status]} {status}" for status in order if status in counts)
    parts = [
        f"<h1>{html.escape(folder.name)}</h1>",
        f'<p class="lead">A sweep of {len(states)} points: {stand}.</p>',
        '<div class="summary">' + bullets(sentences(findings, ablation, unit)) + "</div>",
    ]
    if findings.remarks:
        parts.append(bullets(list(findings.remarks), "plain flags"))
    if ablation is not None:
        parts.append(ablation_section(ablation, unit))
    if drawn:
        parts.append("<h2>Figures</h2>")
        parts += [figure(chart, place) for place, chart in enumerate(drawn, 1)]
    if findings.laws:
        parts.append("<h2>Laws</h2>")
        parts += [law_section(law, findings) for law in findings.laws]
        parts.append(approaches(findings))
    if findings.optima:
        parts += ["<h2>Compute-optimal sizes</h2>", optima_table(findings)]
    if findings.scores:
        parts += ["<h2>Held-out runs</h2>", scores_table(findings)]
    elif findings.laws:
        parts += ["<h2>Held-out runs</h2>", f"<p>{findings.why['scores'].capitalize()}.</p>"]
    every = every_point(folder, states, findings, curves)
    parts += ["<h2>Runs and costs</h2>", costs(folder, every), runs_table(every, findings)]
    troubles = [(name, state) for name, state in states.items() if state.error]
    if troubles:
        parts.append("<h2>Points that diverged or failed</h2>")
        rows = [
            [name, state.status, number(state.starts, "d"), Cell(state.error, state.error, True)]
            for name, state in troubles
        ]
        parts.append(table(["point", "status", "starts", "what happened"], rows))
    parts += ["<h2>Configuration</h2>", shared_config(folder)]
    return "\n".join(parts)


def approaches(findings: Findings) -> str:
    """Approaches 1 and 2 in words."""
    texts = []
    for title, found, why in (
        ("Approach 1 (envelope of training curves)", findings.envelope, "envelope"),
        ("Approach 2 (isoFLOP parabolas)", findings.isoflop, "isoflop"),
    ):
        if found is None:
            texts.append(f"<h3>{title}</h3><p>Not fitted: {html.escape(findings.why[why])}.</p>")
            continue
        texts.append(
            f"<h3>{title}</h3><p>N* = {found.N_factor:.3g} C<sup>{found.a.estimate:.3f}</sup> "
            f"[{found.a.low:.3f}, {found.a.high:.3f}], D* = {found.D_factor:.3g} "
            f"C<sup>{found.b.estimate:.3f}</sup> [{found.b.low:.3f}, {found.b.high:.3f}].</p>"
        )
        if found.flags:
            texts.append(bullets(list(found.flags), "plain flags"))
    return "\n".join(texts)


def costs(folder: SweepFolder, every: Runs) -> str:
    """What the finished points took in all; what points share with a trunk counts once."""
    done = every.select(np.array([status == "done" for status in every.columns["status"]], bool))
    if not len(done):
        return "<p>No point is finished.</p>"
    flops, seconds = shared_with_trunks(folder, list(done.names))
    shared = (
        f" Points that began inside another's run saved {short(flops, 'FLOP')} and "
        f"{clock(seconds)}, which stand in their rows but not in these sums."
        if flops
        else ""
    )
    return (
        f"<p>The {len(done)} finished points took {short(done.flops.sum() - flops, 'FLOP')} and "
        f"{clock(float(np.nansum(done.columns['seconds'])) - seconds)} of one worker's time, "
        f"compilation and evaluation within, and saw {short(done.tokens.sum())} tokens.{shared} "
        "A click on a column's head sorts.</p>"
    )


def runs_table(every: Runs, findings: Findings) -> str:
    """One row per point: settings, size, cost, loss."""
    settings = [name for name in every.columns if name not in FIGURES]
    shown = [name for name in settings if len(set(every.columns[name])) > 1]
    predicted = "predicted_loss" in every.columns
    used = ["used"] if findings.laws else []
    texts = ["status", *(["group"] if any(every.columns["group"]) else []), *used]
    heads = ["point", *(name.rsplit(".", 1)[-1] for name in shown), *texts]
    heads += ["N", "D", "D/N", "FLOPs", "loss"]
    heads += [f"{findings.main.name} off by (%)"] if predicted else []
    heads += ["bits/byte", "seconds"]
    rows = []
    for i, name in enumerate(every.names):
        row: list[Cell | str] = [name]
        row += [sortable(str(every.columns[setting][i])) for setting in shown]
        row += [str(every.columns[text][i]) for text in texts]
        N, D, loss = every.parameters[i], every.tokens[i], every.loss[i]
        row += [Cell(short(N), float(N)), Cell(short(D), float(D)), number(D / N, ".3g")]
        row += [number(every.flops[i], ".3g"), number(loss, ".4f")]
        if predicted:
            row.append(number(100 * (loss / every.columns["predicted_loss"][i] - 1), "+.2f"))
        row += [number(every.columns["bits_per_byte"][i], ".4f")]
        row += [number(every.columns["seconds"][i], ".0f")]
        rows.append(row)
    return table(heads, rows, kinds=list(every.columns["status"]))


def sortable(text: str) -> Cell:
    """A setting's cell, a number where it is one."""
    try:
        return Cell(text, float(text))
    except ValueError:
        return Cell(text, text)


def shared_config(folder: SweepFolder) -> str:
    """The fields that all points share; what differs stands in the table of runs."""
    flat = [flatten(point.experiment.to_json()) for point in folder.points.values()]
    shared = {
        key: value
        for key, value in flat[0].items()
        if key != "name" and all(other.get(key) == value for other in flat)
    }
    rows = [[key, Cell(str(value), str(value), True)] for key, value in sorted(shared.items())]
    differ = sorted({key for other in flat for key in other} - shared.keys() - {"name"})
    return (
        f"<p>Fields that differ between points: {', '.join(differ) or 'none'}.</p>"
        f"<details><summary>The {len(shared)} fields that all points share</summary>"
        f"{table(['field', 'value'], rows)}</details>"
    )
