"""`python -m gptjax.scaling.laws runs.csv --law=chinchilla`: fit laws to a table of runs."""

import argparse
import json
import sys
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from gptjax.errors import EXIT_DONE, BadInput, OneLineParser, did_you_mean, exit_code_of
from gptjax.scaling.laws import bootstrap, fit_law, formulas, get_law, holdout, isoflop
from gptjax.scaling.laws.figure import plot_fit
from gptjax.scaling.laws.fit import usable, usable_rows
from gptjax.scaling.laws.law import Law
from gptjax.scaling.laws.show import (
    WIDTH,
    print_fit,
    print_holdout,
    print_isoflop,
    print_laws,
    print_side_by_side,
)
from gptjax.scaling.laws.summary import holdout_summary, isoflop_summary, summary
from gptjax.scaling.table import LETTERS, Runs, replace_file

UNFINISHED = ("waiting", "diverged", "failed")  # of a sweep's points, in its runs.csv


class ListLaws(argparse.Action):
    """Prints every law with its formula and ends the command."""

    def __call__(self, parser, *_):
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            console.width = WIDTH
        print_laws(console, formulas())
        parser.exit()


def parser() -> OneLineParser:
    """The command line's options."""
    p = OneLineParser(
        prog="python -m gptjax.scaling.laws",
        description="Fit scaling laws to a CSV file of runs, with intervals and flags.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="laws:\n"
        + "\n".join(f"  {name:17} {formula}" for name, formula in formulas().items())
        + "\noptions of a law follow colons, as power_floor:tokens, power_sum:width,depth,tokens, "
        "broken_power:flops:2",
    )
    p.add_argument("runs", help="a .csv or .csv.gz file with a header")
    p.add_argument("--law", action="append",
                   help="which law (default: chinchilla); repeat it for several")  # fmt: skip
    p.add_argument("--list-laws", action=ListLaws, nargs=0, help="show the laws with formulas")
    p.add_argument("--columns", nargs="+", default=[], metavar="N=header",
                   help="which header is N, D, C, L or another column")  # fmt: skip
    p.add_argument("--where", nargs="+", default=[], metavar="column=value",
                   help="take only the rows with these values: name=RUN by name, * and ? for "
                        "any letters, a column twice for either value")  # fmt: skip
    p.add_argument("--bootstrap", type=int, default=0, metavar="RESAMPLES",
                   help="intervals from so many resamples (default: 0, none)")  # fmt: skip
    p.add_argument("--by", help="the column of runs that are drawn together in the bootstrap")
    p.add_argument(
        "--holdout", type=float, metavar="K", help="fit at most max(C) / K, score above it (K > 1)"
    )
    p.add_argument("--isoflop", action="store_true", help="approach 2 besides")
    p.add_argument("--optimum", nargs="+", type=float, default=[], metavar="FLOPS")
    p.add_argument("--given", nargs="+", default=[], metavar="name=value",
                   help="further columns for --optimum, as unique_tokens=1e9")  # fmt: skip
    p.add_argument("--fixed", nargs="+", default=[], metavar="name=value",
                   help="parameters that are held")  # fmt: skip
    p.add_argument("--loss", help="huber_log (default; huber for laws of accuracy or error), "
                   "squared_log, huber or squared")  # fmt: skip
    p.add_argument("--delta", type=float, default=1e-3,
                   help="where Huber's loss turns linear (default: %(default)s)")  # fmt: skip
    p.add_argument("--starts", type=int, default=16, help="default: %(default)s")
    p.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    p.add_argument("--skip-invalid", action="store_true",
                   help="leave out rows without the figures that the laws read")  # fmt: skip
    p.add_argument("--json", type=Path, metavar="OUT", help="write everything there too")
    p.add_argument("--plot", type=Path, metavar="FILE.png",
                   help="draw the first law over the runs")  # fmt: skip
    return p


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status."""
    return exit_code_of(lambda: _run(parser().parse_args(arguments)))


def _run(options) -> int:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    say = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)
    laws = [get_law(law) for law in options.law or ["chinchilla"]]
    given = _check(options, laws)
    runs = Runs.read_csv(_table_of(options.runs), _pairs("--columns", options.columns))
    wanted: dict[str, list[str]] = {}
    for text in options.where:
        ((name, value),) = _pairs("--where", [text]).items()
        wanted.setdefault(name, []).append(value)
    for name, values in wanted.items():
        runs = _where(runs, name, values)
    runs, unfinished = _finished(runs)
    if unfinished:
        say(unfinished)
    if options.skip_invalid:
        kept = _usable(runs, laws, options.isoflop)
        say(f"left out {len(runs) - len(kept)} of {len(runs)} rows without usable figures")
        runs = kept
    try:
        with np.errstate(all="ignore"):  # of rows of nonsense, which the fit's flags tell
            out = _fit(console, options, runs, laws, given)
    except BadInput as error:
        raise BadInput(f"{error}{f'; {unfinished}' if unfinished else ''}") from None
    if options.json:
        try:
            replace_file(options.json, (json.dumps(out, indent=1) + "\n").encode())
        except OSError as error:
            raise BadInput(f"cannot write --json={options.json}: {error.strerror}") from None
    if "why" in out.get("isoflop", {}):
        raise BadInput(f"approach 2 is not fitted: {out['isoflop']['why']}")
    return EXIT_DONE


def _check(options, laws: list[Law]) -> dict[str, float]:
    """The values of --given; BadInput for options that ask for nothing, before any fit."""
    if options.by and not options.bootstrap:
        raise BadInput("--by says what --bootstrap draws together: give --bootstrap=1000 too")
    if options.json and not options.json.resolve().parent.is_dir():
        raise BadInput(f"--json={options.json} lies in a folder that is not there")
    if options.plot and options.plot.suffix.lower() != ".png":
        raise BadInput(f"--plot={options.plot}: give a name that ends in .png")
    if options.plot and not options.plot.resolve().parent.is_dir():
        raise BadInput(f"--plot={options.plot} lies in a folder that is not there")
    if options.holdout is not None and not 1 < options.holdout < float("inf"):
        raise BadInput(
            f"--holdout={options.holdout:g}: give more than 1, as 4 to fit the runs up to a "
            "quarter of the largest FLOPs and score the others"
        )
    given = {LETTERS.get(n, n): v for n, v in _numbers("--given", options.given).items()}
    if given and not options.optimum:
        raise BadInput("--given says more about --optimum: give --optimum=FLOPS too")
    read = {name for law in laws for name in law.variables} - {"parameters", "tokens", "flops"}
    for name in given:
        if name not in read:
            known = f"they read {', '.join(sorted(read))}" if read else "they read no such column"
            raise BadInput(f"--given has {name}, which no law here reads beside N and D: {known}")
    return given


def _table_of(path: str) -> Path:
    """The file of runs; BadInput names the one inside a sweep's folder."""
    table = Path(path) / "runs.csv"
    try:
        if not Path(path).is_dir():
            return Path(path)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    if table.exists():
        raise BadInput(f"{path} is a folder; give {table}")
    raise BadInput(
        f"{path} is a folder without a runs.csv"
        + ("; its sweep's own command writes one" * (Path(path) / "sweep.json").exists())
    )


def _finished(runs: Runs) -> tuple[Runs, str]:
    """(runs without a sweep's points that are not done, what was left out in words)."""
    status = runs.columns.get("status")
    if status is None or status.dtype.kind not in "OUS":
        return runs, ""
    left = Counter(str(value) for value in status if value in UNFINISHED)
    if not left:
        return runs, ""
    counts = ", ".join(f"{left[name]} {name}" for name in UNFINISHED if name in left)
    more = "; the sweep's own command finishes those that wait" * ("waiting" in left)
    kept = runs.select(~np.isin(status.astype(str), UNFINISHED))
    return kept, f"left out {left.total()} of {len(runs)} points of a sweep: {counts}{more}"


def _usable(runs: Runs, laws: list[Law], by_budget: bool) -> Runs:
    """The runs that have every figure that is read."""
    mask = usable(runs.loss)
    for law in laws:
        mask &= usable_rows(runs, law)
    if by_budget:
        mask &= usable(runs.parameters)
    return runs.select(mask)


def _fit(console, options, runs: Runs, laws: list[Law], given: dict[str, float]) -> dict:
    """Fit and print everything that was asked for; the same as plain data."""
    settings = {
        "loss": options.loss,
        "delta": options.delta,
        "starts": options.starts,
        "seed": options.seed,
        "fixed": _numbers("--fixed", options.fixed),
    }
    out = {"runs": options.runs, "rows": len(runs), "fits": []}
    for law in laws:
        fit = fit_law(runs, law, **settings)
        boot = None
        if options.bootstrap:
            say = lambda text: print(text, file=sys.stderr, flush=True)
            boot = bootstrap(fit, options.bootstrap, options.seed, by=options.by, say=say)
        budgets = options.optimum if fit.law.has_shape or len(laws) == 1 else []
        read = {name: value for name, value in given.items() if name in law.variables}
        out["fits"].append(summary(fit, boot, budgets, **read))
        print_fit(console, out["fits"][-1])
        if options.plot and law is laws[0]:
            console.print(str(plot_fit(fit, options.plot, boot)), highlight=False, soft_wrap=True)
    print_side_by_side(console, out["fits"])
    if options.isoflop:
        try:
            out["isoflop"] = isoflop_summary(isoflop(runs, seed=options.seed))
            print_isoflop(console, out["isoflop"])
        except BadInput as error:
            out["isoflop"] = {"fitted": False, "why": str(error)}
    if options.holdout is not None:
        out["holdout"] = holdout_summary(holdout(runs, laws, options.holdout, **settings))
        print_holdout(console, out["holdout"])
    return out


def _pairs(option: str, texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise BadInput(f"{option} has {text!r}; write name=value, as N=params")
        if name in pairs:
            raise BadInput(f"{option} has {name} twice: {pairs[name]} and {value}")
        pairs[name] = value
    return pairs


def _where(runs: Runs, name: str, wanted: list[str]) -> Runs:
    """The rows that hold one of these values in a column, or a text that matches one."""
    column, chosen = runs.column(name), np.zeros(len(runs), bool)
    for value in wanted:
        if column.dtype.kind in "fiu":
            mask = column == _numbers("--where", [f"{name}={value}"])[name]
        else:
            mask = np.array(
                [value == text or fnmatchcase(text, value) for text in map(str, column)]
            )
        if not mask.any():
            known = sorted(set(column.tolist()))
            near = did_you_mean(value, map(str, known))
            shown = ", ".join(str(v) for v in known[:8]) + (", ..." if len(known) > 8 else "")
            raise BadInput(f"--where: no row has {name}={value}; there are {shown}{near}")
        chosen |= mask
    return runs.select(chosen)


def _numbers(option: str, texts: list[str]) -> dict[str, float]:
    out = {}
    for name, value in _pairs(option, texts).items():
        try:
            out[name] = float(value)
        except ValueError:
            raise BadInput(f"{option} has {name}={value!r}, which is not a number") from None
    return out


if __name__ == "__main__":
    sys.exit(main())
