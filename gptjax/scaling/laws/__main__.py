"""`python -m gptjax.scaling.laws runs.csv --law=chinchilla`: fit laws to a table of runs."""

import argparse
import json
import sys
from pathlib import Path

from gptjax.errors import EXIT_BAD_INPUT, EXIT_DONE, BadInput
from gptjax.scaling.laws import LAWS, bootstrap, fit_law, holdout, isoflop
from gptjax.scaling.laws.summary import holdout_summary, isoflop_summary, summary
from gptjax.scaling.table import Runs

SHAPE = ("parameters", "tokens", "loss")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise BadInput(message)


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    p = _Parser(
        prog="python -m gptjax.scaling.laws",
        description="Fit scaling laws to a CSV file of runs, with intervals and flags.",
        epilog=f"laws: {', '.join(LAWS)}; options follow colons, as power_floor:tokens, "
        "power_sum:width,depth,tokens, broken_power:flops:2",
    )
    p.add_argument("runs", help="a .csv or .csv.gz file with a header")
    p.add_argument("--law", action="append", help="which law; repeat it to compare several")
    p.add_argument("--columns", nargs="+", default=[], metavar="N=header",
                   help="which header is N, D, C, L or another column")  # fmt: skip
    p.add_argument("--where", nargs="+", default=[], metavar="column=value",
                   help="take only the rows with these values")  # fmt: skip
    p.add_argument("--bootstrap", type=int, default=0, metavar="RESAMPLES")
    p.add_argument("--by", help="the column of runs that are drawn together in the bootstrap")
    p.add_argument("--holdout", type=float, metavar="K", help="score above max(C) / K")
    p.add_argument("--isoflop", action="store_true", help="approach 2 besides")
    p.add_argument("--optimum", nargs="+", type=float, default=[], metavar="FLOPS")
    p.add_argument("--given", nargs="+", default=[], metavar="name=value",
                   help="further columns for --optimum, as unique_tokens=1e9")  # fmt: skip
    p.add_argument("--fixed", nargs="+", default=[], metavar="name=value",
                   help="parameters that are held")  # fmt: skip
    p.add_argument("--loss", help="huber_log (default), squared_log, huber or squared")
    p.add_argument("--delta", type=float, default=1e-3, help="where Huber's loss turns linear")
    p.add_argument("--starts", type=int, default=16)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--skip-invalid", action="store_true", help="leave out rows without a loss")
    p.add_argument("--json", type=Path, metavar="OUT", help="write everything there too")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status."""
    try:
        return _run(parser().parse_args(arguments))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _run(options) -> int:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 120
    runs = Runs.read_csv(options.runs, _pairs("--columns", options.columns))
    for name, wanted in _pairs("--where", options.where).items():
        runs = _where(runs, name, wanted)
    if options.skip_invalid:
        kept = runs.finite()
        console.print(f"left out {len(runs) - len(kept)} of {len(runs)} rows without a loss")
        runs = kept
    given = _numbers("--given", options.given)
    settings = {
        "loss": options.loss,
        "delta": options.delta,
        "starts": options.starts,
        "seed": options.seed,
        "fixed": _numbers("--fixed", options.fixed),
    }
    laws = options.law or ([] if options.isoflop else ["chinchilla"])
    out = {"runs": options.runs, "rows": len(runs), "fits": []}
    for law in laws:
        fit = fit_law(runs, law, **settings)
        boot = None
        if options.bootstrap:
            boot = bootstrap(fit, options.bootstrap, options.seed, by=options.by)
        budgets = options.optimum if fit.law.has_shape or len(laws) == 1 else []
        out["fits"].append(summary(fit, boot, budgets, **given))
        _print_fit(console, out["fits"][-1])
    if options.isoflop:
        out["isoflop"] = isoflop_summary(isoflop(runs, seed=options.seed))
        _print_isoflop(console, out["isoflop"])
    if options.holdout is not None:
        out["holdout"] = holdout_summary(holdout(runs, laws, options.holdout, **settings))
        _print_holdout(console, out["holdout"])
    if options.json:
        try:
            options.json.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise BadInput(f"cannot write --json: {error}") from None
    return EXIT_DONE


def _pairs(option: str, texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise BadInput(f"{option} has {text!r}; write name=value, as N=params")
        pairs[name] = value
    return pairs


def _where(runs: Runs, name: str, wanted: str) -> Runs:
    values = runs.column(name)
    if values.dtype.kind in "fiu":
        mask = values == _numbers("--where", [f"{name}={wanted}"])[name]
    else:
        mask = values == wanted
    if not mask.any():
        known = ", ".join(str(v) for v in sorted(set(values.tolist()))[:8])
        raise BadInput(f"--where: no row has {name}={wanted}; there are {known}")
    return runs.select(mask)


def _numbers(option: str, texts: list[str]) -> dict[str, float]:
    out = {}
    for name, value in _pairs(option, texts).items():
        try:
            out[name] = float(value)
        except ValueError:
            raise BadInput(f"{option} has {name}={value!r}, which is not a number") from None
    return out


def _table(title: str, *headers: str):
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _number(value) -> str:
    return "-" if value is None else f"{value:.4g}"


def _range(figure: dict) -> str:
    if "low" not in figure:
        return "-"
    return f"{_number(figure['low'])} to {_number(figure['high'])}"


def _both(figure: dict) -> str:
    interval = f" ({_range(figure)})" if "low" in figure else ""
    return _number(figure["estimate"]) + interval


def _print_fit(console, fit: dict) -> None:
    table = _table(f"{fit['law']}: {fit['formula']}", "parameter", "estimate", "95% interval",
                   "without outliers")  # fmt: skip
    kept = fit.get("without_outliers", {})
    for kind in ("parameters", "derived"):
        for name, figure in fit[kind].items():
            other = kept.get(kind, {}).get(name)
            held = " (fixed)" if name in fit["fixed"] else ""
            table.add_row(name + held, _number(figure["estimate"]), _range(figure), _number(other))
    console.print(table)
    console.print(
        f"{fit['runs']} runs, {fit['loss']} {fit['objective']:.8g}, R2 {_number(fit['r2'])}, "
        f"AIC {_number(fit['aic'])}, BIC {_number(fit['bic'])}, "
        f"{fit['starts_agreeing']} of {fit['starts']} starts agree",
        highlight=False,
        soft_wrap=True,
    )
    _print_flags(console, fit["flags"])
    if fit["optima"]:
        table = _table("compute-optimal", "FLOPs", *SHAPE)
        for best in fit["optima"]:
            spans = best.get("intervals", {})
            cells = [_both(spans.get(name, {"estimate": best[name]})) for name in SHAPE]
            table.add_row(_number(best["flops"]), *cells)
        console.print(table)
        _print_flags(console, [f for best in fit["optima"] for f in best["flags"]])


def _print_isoflop(console, result: dict) -> None:
    table = _table("approach 2", "FLOPs", *SHAPE, "runs")
    for m in result["minima"]:
        table.add_row(_number(m["flops"]), *(_both(m[name]) for name in SHAPE), str(m["runs"]))
    console.print(table)
    kept = result.get("without_outliers", {})
    for name in ("a", "b"):
        other = f"; without outliers {_number(kept[name]['estimate'])}" if kept else ""
        figure = result[name]
        line = f"{name} = {_both(figure)}{other}"
        console.print(line, highlight=False, markup=False)
    _print_flags(console, result["flags"])


def _print_holdout(console, result: dict) -> None:
    title = f"{result['held_out']} runs above max(C) / {result['k']:g} held out, in log loss"
    table = _table(title, "prediction", "mean absolute", "rms", "bias", "worst")
    for s in result["scores"]:
        name = s["name"] + (" (baseline)" if s["baseline"] else "")
        figures = (s["mean_absolute"], s["root_mean_square"], s["bias"], s["worst"])
        table.add_row(name, *(_number(v) for v in figures))
    console.print(table)


def _print_flags(console, flags: list[str]) -> None:
    for flag in dict.fromkeys(flags):
        console.print(f"! {flag}", style="yellow", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
