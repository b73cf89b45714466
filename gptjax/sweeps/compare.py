"""Sweeps beside each other: shared axes and compute-equivalent gains, as a page and as data.

    python -m gptjax.sweeps.compare runs/gelu runs/swiglu [--out runs/compare]
    python -m gptjax.sweeps.compare GELU=runs/a SwiGLU=runs/b --reference=GELU --law=power

The first sweep is the reference. A folder's seconds are those of its steps, without compilation;
its bytes are the text that it was trained on, so that tokenizers can differ.
"""

import csv
import dataclasses
import html
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gptjax.errors import EXIT_DONE, BadInput, OneLineParser, exit_code_of
from gptjax.scaling.chart import GREY, PALETTE, Chart, Series, margins
from gptjax.scaling.compare import Comparison, Gain, compare_runs
from gptjax.scaling.laws import doubts, interval_text
from gptjax.scaling.table import Runs
from gptjax.sweeps.analysis import tuned
from gptjax.sweeps.curves import read_curves
from gptjax.sweeps.figures import run_points
from gptjax.sweeps.findings import interval_json, plain
from gptjax.sweeps.folder import SweepFolder
from gptjax.sweeps.page import Cell, bullets, figure, number, page, table, write_figures
from gptjax.sweeps.tasks import remarks_on, task_of, unit_of
from gptjax.training.workdir import storage_errors, write_json, write_whole

AXES = {
    "flops": "training FLOPs",
    "parameters": "parameters",
    "seconds": "seconds of training",
    "bytes": "bytes of training text",
    "tokens": "training tokens",
}


def compare(sweeps: Mapping[str, Runs | SweepFolder | str | Path], **options) -> Comparison:
    """Compare sweeps by label, the first one being the reference; `options` as of `compare_runs`.

    A path is that of a sweep's folder, or of a table of runs (.csv, .csv.gz). A folder gives its
    finished points, the best setting of each shape and length, with seconds, bytes and what they
    predict; a remark tells those that wait. BadInput when there is too little to compare.
    """
    if not isinstance(sweeps, Mapping):
        raise BadInput(f"sweeps is a {type(sweeps).__name__}; give a dict from label to sweep")
    tables, corpora, waiting, folders = {}, {}, [], {}
    for label, sweep in sweeps.items():
        if isinstance(sweep, str | Path):
            table = str(sweep).endswith((".csv", ".csv.gz"))
            sweep = Runs.read_csv(sweep) if table else SweepFolder.open(sweep)
        if isinstance(sweep, SweepFolder):
            folders[label], tables[label] = sweep, folder_runs(sweep)
            corpora[label] = task_of(sweep, label)
            waiting += unfinished(sweep, label)
        elif not isinstance(sweep, Runs):
            raise BadInput(f"{label} is {sweep!r:.80}; give Runs, or a sweep's folder")
        else:
            tables[label] = sweep
            names = {str(name) for name in sweep.columns.get("corpus", ())}
            if len(names) > 1:
                raise BadInput(f"{label} holds runs on {', '.join(sorted(names))}; give one corpus")
            corpora[label] = names.pop() if names else ""
    try:
        found = compare_runs(tables, **{"corpora": corpora, **options})
    except BadInput as error:
        raise BadInput("; ".join([str(error), *waiting])) from None
    points = (point for folder in folders.values() for point in folder.points.values())
    unit = unit_of((point.experiment for point in points), found.unit)
    remarks = (*waiting, *remarks_on(folders), *found.remarks)
    return dataclasses.replace(found, unit=unit, remarks=remarks)


def unfinished(folder: SweepFolder, label: str) -> list[str]:
    """What to do about the points of a sweep that are not finished; nothing when there are none."""
    left = sum(not state.finished for state in folder.ledger.states().values())
    if not left:
        return []
    return [
        f"{left} of {len(folder.points)} points of {label} are not finished; python "
        f"experiments/run.py --exp={folder.name} --workdir={folder.path} finishes them"
    ]


def folder_runs(folder: SweepFolder) -> Runs:
    """The finished points that a law may be fitted to, with columns seconds and bytes."""
    runs = folder.runs().finite()
    fields = {name for point in folder.points.values() for name in point.row}
    runs, _ = tuned(runs, tuple(sorted(fields - {"name", "group"})))
    curves = read_curves(folder)
    seconds = [
        curves[name].seconds if name in curves else whole
        for name, whole in zip(runs.names, runs.columns["seconds"], strict=True)
    ]
    columns = {"seconds": np.array(seconds)}
    per_byte = runs.columns["bits_per_byte"] * np.log(2)
    if np.isfinite(per_byte).all():
        columns["bytes"] = runs.tokens * runs.loss / per_byte
    return runs.with_columns(**columns)


# ---------------------------------------------------------------- what is written


def write_comparison(comparison: Comparison, out: str | Path) -> Path:
    """Write compare.html, compare.json, gains.csv and the figures; the path of compare.html."""
    out = Path(out)
    drawn = comparison_charts(comparison)
    write_figures(out / "figures", drawn)
    write_json(out / "compare.json", comparison_json(comparison))
    write_whole(out / "gains.csv", gains_csv(comparison).encode())
    body = comparison_body(comparison, drawn)
    path = out / "compare.html"
    write_whole(path, page(f"comparison of {', '.join(comparison.tables)}", body).encode())
    return path


def summary(comparison: Comparison) -> list[str]:
    """A sentence for each pair and resource, and the remarks that put all of them in doubt."""
    wrong = {name: doubts(fit) for name, fit in comparison.fits.items()}
    said = [f"Not a result yet, {name} fit: {why}." for name, why in wrong.items() if why]
    return [*said, *(sentence(gain) for gain in comparison.gains)]


def sentence(gain: Gain) -> str:
    """A gain in words."""
    if gain.at is None:
        return f"{gain.label} against {gain.reference}, {gain.resource}: {gain.verdict}."
    return (
        f"{gain.label} against {gain.reference}, {gain.resource}: gain "
        f"{interval_text(gain.at, '.3g')} at a loss of {gain.loss:.4g}: {gain.verdict}."
    )


def comparison_charts(comparison: Comparison) -> tuple[Chart, ...]:
    """Loss against each resource with all sweeps on it, and each resource's gains over loss."""
    colors = {label: PALETTE[k % len(PALETTE)] for k, label in enumerate(comparison.tables)}
    charts = []
    for name, lines in comparison.lines.items():
        series = []
        for label, (x, loss) in lines.items():
            series.append(Series(label, x, loss, color=colors[label], group=label))
        for label, runs in comparison.tables.items():
            style = {"color": colors[label], "group": label, "opacity": 0.75}
            series.append(
                run_points(runs, runs.column(name), runs.loss, comparison.unit, label, **style)
            )
        charts.append(
            Chart(
                name=f"loss_{name}",
                title=f"Loss against {AXES[name]}",
                x_label=AXES[name],
                y_label=f"loss ({comparison.unit})",
                series=tuple(series),
                caption=(
                    "Runs, and the lowest fitted loss: along each one's compute-optimal line."
                    if comparison.law == "chinchilla"
                    else "Runs, and the jointly fitted powers above a shared floor."
                ),
            )
        )
        charts += gain_chart(comparison, name, colors)
    return tuple(charts)


def gain_chart(comparison: Comparison, name: str, colors: Mapping[str, str]) -> list[Chart]:
    """The gains in one resource over the losses that both have reached."""
    gains = [g for g in comparison.gains if g.resource == name and g.at is not None]
    if not gains:
        return []
    losses = np.concatenate([gain.losses for gain in gains])
    ends = margins(losses, 0.02)
    series = [Series("no gain", ends, [1, 1], color=GREY, width=1.2, dash="dash")]
    for gain in gains:
        known = np.isfinite(gain.low)
        series.append(
            Series(
                gain.label,
                gain.losses[known],
                gain.estimate[known],
                color=colors[gain.label],
                low=gain.low[known],
                high=gain.high[known],
            )
        )
    said = "; ".join(f"{gain.label}: {gain.verdict}" for gain in gains)
    return [
        Chart(
            name=f"gain_{name}",
            title=f"Gain in {AXES[name]} over {comparison.reference} at equal loss",
            x_label=f"loss ({comparison.unit})",
            y_label="times less is needed",
            series=tuple(series),
            log_x=False,
            caption=f"Only over the losses that both have reached. In the middle: {said}.",
        )
    ]


def comparison_body(comparison: Comparison, drawn: tuple[Chart, ...]) -> str:
    """The page between its head and its script."""
    labels = ", ".join(comparison.tables)
    rows = []
    for gain in comparison.gains:
        row: list[Cell | str] = [gain.label, gain.resource]
        if gain.at is None:
            row += ["", "", ""]
        else:
            row += [
                Cell(interval_text(gain.at, ".3g"), gain.at.estimate),
                number(gain.loss, ".4g"),
                f"{gain.losses[-1]:.4g} to {gain.losses[0]:.4g}",
            ]
        rows.append([*row, Cell(gain.verdict, gain.verdict, True)])
    heads = ["sweep", "resource", f"gain over {comparison.reference}", "at loss", "overlap"]
    form = "L(N, D)" if comparison.law == "chinchilla" else "one power per resource"
    exponents = " and ".join(sorted({fit.law.exponents for fit in comparison.fits.values()}))
    parts = [
        "<h1>Comparison</h1>",
        f'<p class="lead">{html.escape(labels)}; the reference is '
        f"{html.escape(comparison.reference)}.</p>",
        f'<div class="summary">{bullets(summary(comparison))}</div>',
        "<h2>Gains at equal loss</h2>",
        f"<p>How many times less is needed than by {html.escape(comparison.reference)} to reach "
        f"the same loss, fitted jointly ({form}, {exponents} exponents) above one "
        f"floor for each corpus and objective; {100 * comparison.level:.0f}% intervals from "
        f"{comparison.resamples} resamples of each sweep's runs. "
        "Not separable: the interval holds 1.</p>",
        table([*heads, "verdict"], rows),
    ]
    if comparison.remarks:
        parts.append(bullets(list(comparison.remarks), "plain flags"))
    parts.append("<h2>Figures</h2>")
    parts += [figure(chart, place) for place, chart in enumerate(drawn, 1)]
    parts.append("<h2>Joint fits</h2>")
    for name, fit in comparison.fits.items():
        said = [[key, number(value, ".5g")] for key, value in fit.parameters.items()]
        parts.append(
            f"<h3>{html.escape(name)}</h3><p><code>{html.escape(fit.law.formula)}</code>, "
            f"{len(fit.runs)} runs, R² {fit.r2:.5f}, {fit.starts_agreeing} of {fit.starts} starts "
            "agree.</p>" + table(["parameter", "estimate"], said, sort=False)
        )
    parts.append("<h2>Runs</h2>")
    rows = []
    for label, runs in comparison.tables.items():
        for i, name in enumerate(runs.names):
            known = [number(runs.column(n)[i], ".4g") for n in comparison.lines]
            rows.append([label, name, *known, number(runs.loss[i], ".4f")])
    parts.append(table(["sweep", "run", *comparison.lines, f"loss ({comparison.unit})"], rows))
    return "\n".join(parts)


def gains_csv(comparison: Comparison) -> str:
    """The gains at every level of loss, a row each."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["label", "reference", "resource", "loss", "gain", "low", "high"])
    for gain in comparison.gains:
        for values in zip(gain.losses, gain.estimate, gain.low, gain.high, strict=True):
            cells = ["" if not np.isfinite(v) else repr(float(v)) for v in values]
            writer.writerow([gain.label, gain.reference, gain.resource, *cells])
    return out.getvalue()


def comparison_json(comparison: Comparison) -> dict:
    """Everything found, as plain data."""
    return {
        "reference": comparison.reference,
        "corpora": dict(comparison.corpora),
        "law": comparison.law,
        "exponents": {name: fit.law.exponents for name, fit in comparison.fits.items()},
        "unit": comparison.unit,
        "runs": {label: list(runs.names) for label, runs in comparison.tables.items()},
        "gains": [
            {
                "label": gain.label,
                "reference": gain.reference,
                "resource": gain.resource,
                "loss": plain(gain.loss),
                "gain": interval_json(gain.at),
                "verdict": gain.verdict,
                "over": [
                    {"loss": plain(x), "gain": plain(g), "low": plain(a), "high": plain(b)}
                    for x, g, a, b in zip(
                        gain.losses, gain.estimate, gain.low, gain.high, strict=True
                    )
                ],
            }
            for gain in comparison.gains
        ],
        "fits": {
            name: {
                "formula": fit.law.formula,
                "parameters": {key: plain(value) for key, value in fit.parameters.items()},
                "objective": plain(fit.objective),
                "aic": plain(fit.aic),
                "r2": plain(fit.r2),
                "flags": list(fit.flags),
            }
            for name, fit in comparison.fits.items()
        },
        "remarks": list(comparison.remarks),
    }


# ---------------------------------------------------------------- the command line


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 2 for what can be mended."""
    return exit_code_of(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    about = __doc__.split("\n")[0]
    parser = OneLineParser(prog="python -m gptjax.sweeps.compare", description=about)
    parser.add_argument("sweeps", nargs="+", help="folders of sweeps, or LABEL=FOLDER")
    parser.add_argument("--out", default="", help="where to write (default: beside the first)")
    parser.add_argument("--reference", help="the label that the others are measured against")
    parser.add_argument("--law", default="auto", help="auto, chinchilla or power")
    parser.add_argument("--exponents", default="auto", help="auto, own or shared")
    parser.add_argument("--resamples", type=int, default=400)
    given = parser.parse_args(arguments)
    folders: dict[str, SweepFolder] = {}
    for text in given.sweeps:
        label, equals, path = text.partition("=")
        if not equals or Path(text, "sweep.json").exists():  # a folder's name may hold one
            label, path = Path(text).resolve().name, text
        if label in folders:
            raise BadInput(f"two sweeps are called {label!r}; give LABEL=FOLDER")
        folders[label] = SweepFolder.open(path)
    out = Path(given.out) if given.out else next(iter(folders.values())).path.parent / "compare"
    for name in ("sweep.json", "experiment.json"):
        if (out / name).exists():
            raise BadInput(f"{out} holds a sweep or a run of its own; give another --out")
    comparison = compare(
        folders,
        reference=given.reference,
        law=given.law,
        exponents=given.exponents,
        resamples=given.resamples,
    )
    with storage_errors(f"write {out}"):
        out.mkdir(parents=True, exist_ok=True)
    path = write_comparison(comparison, out)
    remarks = [f"! {remark}" for remark in comparison.remarks]
    print("\n".join([*summary(comparison), *remarks, str(path)]))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
