"""A fit drawn over its runs, for tables that come from no sweep."""

from pathlib import Path

import numpy as np

from gptjax.errors import BadInput
from gptjax.scaling.chart import GREY, INK, PALETTE, Chart, Series, margins
from gptjax.scaling.laws.fit import Fit
from gptjax.scaling.laws.intervals import Bootstrap

LABELS = {"parameters": "parameters", "tokens": "training tokens", "flops": "training FLOPs"}
POINTS = 60


def plot_fit(fit: Fit, path: str | Path, boot: Bootstrap | None = None) -> Path:
    """Draw `fit_chart` into a PNG and return its path; BadInput when it cannot be written."""
    from gptjax.scaling.plots import draw_png

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise BadInput(f"the figure is {str(path)!r}; give a name that ends in .png")
    try:
        draw_png(fit_chart(fit, boot), path)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}") from None
    return path


def fit_chart(fit: Fit, boot: Bootstrap | None = None) -> Chart:
    """The runs with the law: its curve in one variable, its lowest loss over FLOPs for a law of N
    and D, or observed against predicted for any other; with the band of `boot` if given."""
    law, runs = fit.law, fit.runs
    observed = runs.column(law.target)
    lines, caption = [], ""
    if len(law.variables) == 1:
        name = law.variables[0]
        x, label = runs.column(name), LABELS.get(name, name)
        lines = [_curve(fit, boot, name, np.geomspace(*margins(x), POINTS))]
        caption = "The fitted law through the runs."
    elif law.has_shape and set(law.variables) <= set(LABELS) and np.isfinite(runs.flops).all():
        x, label = runs.flops, LABELS["flops"]
        lines = _lowest(fit, boot, np.geomspace(*margins(x), POINTS // 2))
        caption = "The runs, and the lowest loss that the law expects of each budget."
    else:
        x, label = fit.predict(), f"predicted {law.target}"
        ends = margins(x) if (x > 0).all() else (float(x.min()), float(x.max()))
        lines = [Series("observed = predicted", ends, ends, color=GREY, dash="dash")]
    points = Series("runs", x, observed, "points", color=INK, size=7, opacity=0.8)
    return Chart(
        name="fit",
        title=f"{law.name}: {law.formula}",
        x_label=label,
        y_label=law.target,
        series=(points, *lines),
        caption=caption,
        log_x=bool((x > 0).all()) and law.log_target,
        log_y=bool((observed > 0).all()) and law.log_target,
    )


def _curve(fit: Fit, boot: Bootstrap | None, name: str, grid: np.ndarray) -> Series:
    band = dict(zip(("low", "high"), boot.predict(**{name: grid}), strict=True)) if boot else {}
    return Series(fit.law.name, grid, fit.predict(**{name: grid}), color=PALETTE[0], **band)


def _lowest(fit: Fit, boot: Bootstrap | None, budgets: np.ndarray) -> list[Series]:
    found = []
    for flops in budgets:
        try:
            found.append((flops, fit.optimum(flops)))
        except BadInput:  # no interior optimum at this budget
            continue
    if not found:
        return []
    x, loss = [flops for flops, _ in found], [best.loss for _, best in found]
    band = {}
    if boot:
        N, D = [best.parameters for _, best in found], [best.tokens for _, best in found]
        columns = {"N": N, "D": D, "C": x} if "flops" in fit.law.variables else {"N": N, "D": D}
        band = dict(zip(("low", "high"), boot.predict(**columns), strict=True))
    label = f"{fit.law.name}: lowest loss"
    return [Series(label, x, loss, color=PALETTE[0], **band)]
