"""Findings in words, in tables and as plain data for law.json."""

import html
import math

import numpy as np

from gptjax.scaling.laws import Interval
from gptjax.sweeps.analysis import Best, Findings, LawResult
from gptjax.sweeps.page import Cell, bullets, number, table
from gptjax.training.metrics import short


def bounded(interval: Interval, form: str = ".4g") -> str:
    """`0.95 [0.86, 1.08]`; the estimate alone where there is no interval."""
    text = format(interval.estimate, form)
    if math.isfinite(interval.low) or math.isfinite(interval.high):
        text += f" [{interval.low:{form}}, {interval.high:{form}}]"
    return text


def summary(findings: Findings, unit: str) -> list[str]:
    """The report in a few sentences."""
    runs = findings.runs
    if not len(runs):
        return ["No point has finished with a finite loss: there is nothing to fit."]
    best = int(np.argmin(runs.loss))
    lines = [
        f"Lowest loss {runs.loss[best]:.4f} {unit}: {runs.names[best]}, with "
        f"{short(runs.parameters[best])} parameters, {short(runs.tokens[best])} tokens and "
        f"{runs.flops[best]:.3g} FLOPs."
    ]
    main = findings.main
    if not findings.laws and findings.analysis.compare:
        pass  # the comparison is what was asked for
    elif not findings.laws:
        lines.append("No law was asked for.")
    elif main is None:
        lines.append("No law is fitted: " + "; ".join(f"{law.why}" for law in findings.laws) + ".")
    else:
        known = main.intervals()
        values = (
            f"{name} = {bounded(known.get(name, Interval(value, math.nan, math.nan)))}"
            for name, value in main.fit.parameters.items()
        )
        lines.append(
            f"{main.name}, {main.fit.law.formula}, fitted to {len(main.fit.runs)} runs: "
            f"{', '.join(values)} (95% intervals by bootstrap)."
            if known
            else f"{main.name}, {main.fit.law.formula}, fitted to {len(main.fit.runs)} runs: "
            f"{', '.join(values)} ({main.why or 'no intervals asked for'})."
        )
    for best in findings.optima:
        if main is not None and best.by == main.name and best.flops > runs.flops.max() * 1.01:
            lines.append(
                f"Compute-optimal at {best.flops:.3g} FLOPs by {best.by}: N = "
                f"{size(best.parameters)}, D = {size(best.tokens)}, loss {bounded(best.loss)}."
            )
    own = [score for score in findings.scores if main is not None and score.name == main.name]
    rivals = [score for score in findings.scores if score.baseline]
    if own:
        score = own[0]
        against = f"; the best baseline ({rivals[0].name}): " if rivals else ""
        against += f"{100 * rivals[0].mean_absolute:.2f}%" if rivals else ""
        lines.append(
            f"The lowest loss of the largest budget was held out and {score.name} missed it by "
            f"{100 * score.at_best:+.2f}%; mean error over the {len(findings.held_out)} held-out "
            f"runs {100 * score.mean_absolute:.2f}%{against}."
        )
    flagged = sum(len(law.fit.flags) for law in findings.laws if law.fit is not None)
    if flagged:
        what = "1 warning about the fits stands" if flagged == 1 else f"{flagged} warnings stand"
        lines.append(f"{what} with the laws below.")
    return lines


def size(interval: Interval) -> str:
    """A count with its interval: `1.4M [1.2M, 1.5M]`."""
    if not math.isfinite(interval.low):
        return short(interval.estimate)
    return f"{short(interval.estimate)} [{short(interval.low)}, {short(interval.high)}]"


def law_section(law: LawResult, findings: Findings) -> str:
    """One law: its form, parameters with all that is known of them, quality, flags in words."""
    title = f"<h3>{html.escape(law.name)}</h3>"
    if law.fit is None:
        return f"{title}<p>Not fitted: {html.escape(law.why)}.</p>"
    fit, known = law.fit, law.intervals()
    who = "the lowest loss of each budget" if law.lowest_only else "all runs not held out"
    text = (
        f"<p><code>{html.escape(fit.law.formula)}</code> (arXiv {html.escape(fit.law.reference)}), "
        f"fitted to {len(fit.runs)} runs ({who}) by {fit.loss} with delta {fit.delta:g} from "
        f"{fit.starts} starts, of which {fit.starts_agreeing} reached the best objective. "
        f"Objective {fit.objective:.6g}, R² {fit.r2:.5f}, AIC {fit.aic:.1f}, BIC {fit.bic:.1f}; "
        f"the solver {'converged' if fit.converged else 'did not converge'}."
    )
    if law.bootstrap is not None and law.bootstrap.unconverged:
        text += f" {law.bootstrap.unconverged} resamples did not converge."
    heads = ["parameter", "estimate", "bootstrap 95%", "profile 95%", "spread over starts"]
    both = law.with_held_out
    rows = []
    for name, value in {**fit.parameters, **fit.derived}.items():
        row = [name, number(value, ".5g"), ends(known.get(name)), ends(law.profiles.get(name))]
        row.append(number(fit.spread[name], ".1e") if name in fit.spread else "")
        if both is not None:
            row.append(number({**both.parameters, **both.derived}[name], ".5g"))
        rows.append(row)
    heads += ["with held-out runs"] if both is not None else []
    parts = [title, text + "</p>", table(heads, rows, sort=False)]
    said = list(fit.flags) + ([law.why] if law.why else [])
    if said:
        parts.append(bullets(said, "plain flags"))
    return "\n".join(parts)


def ends(interval: Interval | None) -> str:
    """`[0.86, 1.08]`, with words for an open end."""
    if interval is None or math.isnan(interval.low):
        return ""
    high = f"{interval.high:.4g}" if math.isfinite(interval.high) else "open"
    low = f"{interval.low:.4g}" if math.isfinite(interval.low) else "open"
    return f"[{low}, {high}]"


def optima_table(findings: Findings) -> str:
    """Budgets with the N, D and loss that each law expects of them."""
    heads = ["FLOPs", "by", "N", "D", "D/N", "loss", "warnings"]
    rows = [
        [
            number(best.flops, ".3g"),
            best.by,
            Cell(size(best.parameters), best.parameters.estimate),
            Cell(size(best.tokens), best.tokens.estimate),
            number(best.tokens.estimate / best.parameters.estimate, ".3g"),
            Cell(bounded(best.loss), best.loss.estimate),
            Cell("; ".join(best.flags), "; ".join(best.flags), True),
        ]
        for best in findings.optima
    ]
    return table(heads, rows)


def scores_table(findings: Findings) -> str:
    """Laws and baselines on the held-out runs."""
    heads = ["predicted by", "kind", "mean error (%)", "worst (%)", "lowest loss, top budget (%)"]
    rows = [
        [
            score.name,
            "baseline" if score.baseline else "law",
            number(100 * score.mean_absolute, ".2f"),
            number(100 * score.worst, ".2f"),
            number(100 * score.at_best, "+.2f"),
        ]
        for score in findings.scores
    ]
    held = findings.held_out
    laws = [score for score in findings.scores if not score.baseline]
    each = [
        [
            name,
            Cell(short(held.parameters[i]), float(held.parameters[i])),
            Cell(short(held.tokens[i]), float(held.tokens[i])),
            number(held.flops[i], ".3g"),
            number(held.loss[i], ".4f"),
            *(number(100 * score.errors[i], "+.2f") for score in laws),
        ]
        for i, name in enumerate(held.names)
    ]
    runs = ["run held out", "N", "D", "FLOPs", "loss", *(f"{s.name} (%)" for s in laws)]
    text = (
        f"<p>Fitted to runs of at most 1/{findings.analysis.holdout:g} of the largest FLOPs. "
        "Errors are predicted over observed loss; a law of FLOPs alone speaks of the lowest "
        "losses only.</p>"
    )
    return text + table(heads, rows) + table(runs, each)


# ---------------------------------------------------------------- law.json


def plain(value):
    """A number as JSON has it: what is not finite is null."""
    value = float(value)
    return value if math.isfinite(value) else None


def interval_json(interval: Interval | None) -> dict | None:
    """An interval as plain data."""
    if interval is None:
        return None
    return {
        "estimate": plain(interval.estimate),
        "low": plain(interval.low),
        "high": plain(interval.high),
        "level": interval.level,
    }


def findings_json(findings: Findings) -> dict:
    """Everything that was fitted, as plain data."""
    return {
        "loss": findings.analysis.loss,
        "size": findings.analysis.size,
        "fitted": list(findings.fitted.names),
        "held_out": list(findings.held_out.names),
        "laws": [law_json(law) for law in findings.laws],
        "approach_1": _approach_json(findings.envelope, findings.why.get("envelope")),
        "approach_2": _approach_json(findings.isoflop, findings.why.get("isoflop")),
        "optima": [_best_json(best) for best in findings.optima],
        "scores": [
            {
                "name": score.name,
                "baseline": score.baseline,
                "mean_absolute_error": plain(score.mean_absolute),
                "worst_error": plain(score.worst),
                "error_at_lowest_loss": plain(score.at_best),
                "errors": {
                    name: plain(error)
                    for name, error in zip(findings.held_out.names, score.errors, strict=True)
                },
            }
            for score in findings.scores
        ],
        "remarks": list(findings.remarks),
    }


def law_json(law: LawResult) -> dict:
    """One law as plain data."""
    if law.fit is None:
        return {"name": law.name, "fitted": False, "why": law.why}
    fit, known = law.fit, law.intervals()
    both = law.with_held_out
    return {
        "name": law.name,
        "fitted": True,
        "formula": fit.law.formula,
        "reference": fit.law.reference,
        "runs": list(fit.runs.names),
        "parameters": {name: plain(value) for name, value in fit.parameters.items()},
        "derived": {name: plain(value) for name, value in fit.derived.items()},
        "bootstrap": {name: interval_json(interval) for name, interval in known.items()},
        "profile": {name: interval_json(interval) for name, interval in law.profiles.items()},
        "spread_over_starts": {name: plain(value) for name, value in fit.spread.items()},
        "with_held_out": {name: plain(v) for name, v in both.parameters.items()} if both else None,
        "loss": fit.loss,
        "delta": fit.delta,
        "objective": plain(fit.objective),
        "r2": plain(fit.r2),
        "aic": plain(fit.aic),
        "bic": plain(fit.bic),
        "converged": bool(fit.converged),
        "starts": fit.starts,
        "starts_agreeing": fit.starts_agreeing,
        "resamples": len(law.bootstrap.raws) if law.bootstrap is not None else 0,
        "flags": list(fit.flags),
        "why": law.why,
    }


def _approach_json(found, why: str | None) -> dict:
    if found is None:
        return {"fitted": False, "why": why}
    out = {
        "fitted": True,
        "a": interval_json(found.a),
        "b": interval_json(found.b),
        "N_factor": plain(found.N_factor),
        "D_factor": plain(found.D_factor),
        "flags": list(found.flags),
    }
    if hasattr(found, "minima"):
        out["minima"] = [
            {
                "flops": plain(minimum.flops),
                "parameters": interval_json(minimum.parameters),
                "tokens": interval_json(minimum.tokens),
                "loss": interval_json(minimum.loss),
            }
            for minimum in found.minima
        ]
    return out


def _best_json(best: Best) -> dict:
    return {
        "flops": plain(best.flops),
        "by": best.by,
        "parameters": interval_json(best.parameters),
        "tokens": interval_json(best.tokens),
        "loss": interval_json(best.loss),
        "flags": list(best.flags),
    }
