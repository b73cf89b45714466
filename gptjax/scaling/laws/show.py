"""A fit and what hangs on it as tables for the terminal."""

import math

import numpy as np

from gptjax.scaling.laws.words import ends_text

SHAPE = ("parameters", "tokens", "loss")
WIDTH = 120  # of tables that no terminal bounds


def fit_text(fit) -> str:
    """A fit's tables and flags as plain text."""
    from rich.console import Console

    from gptjax.scaling.laws.summary import summary

    console = Console(width=WIDTH, color_system=None)
    with console.capture() as captured:
        print_fit(console, summary(fit))
    return captured.get().rstrip()


def print_laws(console, formulas: dict[str, str]) -> None:
    """Every law with its formula."""
    table = _table("laws", "law", "formula")
    table.columns[1].justify = "left"
    for name, formula in formulas.items():
        table.add_row(name, formula)
    console.print(table)


def print_fit(console, fit: dict) -> None:
    """The plain data of `summary`: parameters, quality, flags, optima."""
    table = _table(f"{fit['law']}: {fit['formula']}", "parameter", "estimate", "95% interval",
                   "without outliers")  # fmt: skip
    kept = fit.get("without_outliers", {})
    for kind in ("parameters", "derived"):
        for name, figure in fit[kind].items():
            other = kept.get(kind, {}).get(name)
            held = " (fixed)" if name in fit["fixed"] else ""
            table.add_row(name + held, _number(figure["estimate"]), _range(figure), _number(other))
    console.print(table)
    doubt = f"; not a result yet: {fit['doubts']}" if fit["doubts"] else ""
    console.print(
        f"{fit['runs']} runs, {fit['loss']} {fit['objective']:.8g}, R2 {_number(fit['r2'])}, "
        f"AIC {_number(fit['aic'])}, BIC {_number(fit['bic'])}, "
        f"{fit['starts_agreeing']} of {fit['starts']} starts agree{doubt}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    print_flags(console, fit["flags"])
    if fit["optima"]:
        table = _table("compute-optimal", "FLOPs", *SHAPE)
        for best in fit["optima"]:
            spans = best.get("intervals", {})
            cells = [_both(spans.get(name, {"estimate": best[name]})) for name in SHAPE]
            table.add_row(_number(best["flops"]), *cells)
        console.print(table)
        print_flags(console, [f for best in fit["optima"] for f in best["flags"]])


def print_side_by_side(console, fits: list[dict]) -> None:
    """Laws fitted to the same runs under the same loss, lowest AIC first."""
    kinds: dict[tuple, list[dict]] = {}
    for fit in fits:
        kinds.setdefault((fit["loss"], fit["delta"], fit["runs"], fit["target"]), []).append(fit)
    for (loss, _, runs, _), group in kinds.items():
        if len(group) < 2:
            continue
        table = _table(f"laws side by side, {runs} runs, {loss}", "law", "parameters", "R2",
                       "delta AIC", "delta BIC", "not a result yet")  # fmt: skip
        table.columns[-1].no_wrap = False
        known = [fit for fit in group if fit["aic"] is not None]
        lowest = {kind: min((fit[kind] for fit in known), default=None) for kind in ("aic", "bic")}
        for fit in sorted(group, key=lambda f: math.inf if f["aic"] is None else f["aic"]):
            apart = [
                "-" if fit[kind] is None else f"{fit[kind] - lowest[kind]:.1f}" for kind in lowest
            ]
            free = len(fit["parameters"]) - len(fit["fixed"])
            table.add_row(fit["law"], str(free), _number(fit["r2"]), *apart, fit["doubts"] or "-")
        console.print(table)


def print_isoflop(console, result: dict) -> None:
    """The plain data of `isoflop_summary`."""
    table = _table("approach 2", "FLOPs", *SHAPE, "runs")
    for m in result["minima"]:
        table.add_row(_number(m["flops"]), *(_both(m[name]) for name in SHAPE), str(m["runs"]))
    console.print(table)
    kept = result.get("without_outliers", {})
    for name in ("a", "b"):
        other = f"; without outliers {_number(kept[name]['estimate'])}" if kept else ""
        line = f"{name} = {_both(result[name])}{other}"
        console.print(line, highlight=False, markup=False)
    print_flags(console, result["flags"])


def print_holdout(console, result: dict) -> None:
    """The plain data of `holdout_summary`."""
    title = f"{result['held_out']} runs above max(C) / {result['k']:g} held out, in log loss"
    table = _table(title, "prediction", "mean absolute", "rms", "bias", "worst")
    for s in result["scores"]:
        name = s["name"] + (" (baseline)" if s["baseline"] else "")
        figures = (s["mean_absolute"], s["root_mean_square"], s["bias"], s["worst"])
        table.add_row(name, *(_number(v) for v in figures))
    console.print(table)


def print_flags(console, flags: list[str]) -> None:
    """Each flag once, on a line of its own."""
    for flag in dict.fromkeys(flags):
        console.print(f"! {flag}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def _table(title: str, *headers: str):
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE)
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _number(value) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.4g}"


def _range(figure: dict) -> str:
    if "low" not in figure or figure["estimate"] is None:
        return "-"
    return ends_text(figure["estimate"], figure["low"], figure["high"])


def _both(figure: dict) -> str:
    return _number(figure["estimate"]) + (f" {_range(figure)}" if "low" in figure else "")
