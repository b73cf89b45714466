"""Scaling laws: fitted to a table of runs, with intervals, flags and the compute-optimal shape.

    runs = Runs.read_csv("runs.csv", {"N": "params", "D": "tokens", "L": "loss"})
    formulas()                                   every law's name with its formula
    fit = fit_law(runs, "chinchilla")            Fit: parameters, residuals, aic, flags, predict,
    print(fit), plot_fit(fit, "fit.png")         its table; the law drawn over the runs
    fit.optimum(1e21)                            Optimum(parameters, tokens, loss, flops, flags)
    bootstrap(fit).parameters["alpha"]           Interval(estimate, low, high, level)
    bootstrap(fit).optimum(1e21)                 {"parameters": Interval, "tokens": ..., "loss"}
    profile(fit, "alpha")                        Interval
    isoflop(runs), envelope(runs)                approaches 2 and 1: minima, exponents a and b
    holdout(runs, ["chinchilla"], k=4)           scored above C / k beside baselines

`python -m gptjax.scaling.laws runs.csv --law=chinchilla` does the same from the shell.
"""

from gptjax.scaling.laws.envelope import Envelope, envelope
from gptjax.scaling.laws.figure import fit_chart, plot_fit
from gptjax.scaling.laws.fit import Fit, fit_law
from gptjax.scaling.laws.holdout import Holdout, Score, holdout
from gptjax.scaling.laws.intervals import Bootstrap, Interval, bootstrap, profile
from gptjax.scaling.laws.isoflop import Isoflop, Minimum, isoflop
from gptjax.scaling.laws.law import Law, Parameter
from gptjax.scaling.laws.optimum import Cost, Optimum
from gptjax.scaling.laws.registry import LAWS, formulas, get_law
from gptjax.scaling.laws.summary import holdout_summary, isoflop_summary, summary
from gptjax.scaling.laws.two_step import TwoStep, fit_two_step
from gptjax.scaling.laws.words import doubts, ends_text, interval_text, is_open
from gptjax.scaling.table import Runs

__all__ = [
    "LAWS",
    "Bootstrap",
    "Cost",
    "Envelope",
    "Fit",
    "Holdout",
    "Interval",
    "Isoflop",
    "Law",
    "Minimum",
    "Optimum",
    "Parameter",
    "Runs",
    "Score",
    "TwoStep",
    "bootstrap",
    "doubts",
    "ends_text",
    "envelope",
    "fit_chart",
    "fit_law",
    "fit_two_step",
    "formulas",
    "get_law",
    "holdout",
    "holdout_summary",
    "interval_text",
    "is_open",
    "isoflop",
    "isoflop_summary",
    "plot_fit",
    "profile",
    "summary",
]
