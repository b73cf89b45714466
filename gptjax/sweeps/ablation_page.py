"""An ablation in words, in tables, as curves over FLOPs and seconds, and as plain data."""

import html
import math
from collections.abc import Mapping

import numpy as np

from gptjax.scaling.chart import PALETTE, Chart, Series, ramp
from gptjax.scaling.laws import Interval
from gptjax.sweeps.ablation import Ablation, Arm, Contrast, beyond_edge, lead, numbers_of
from gptjax.sweeps.curves import Curve
from gptjax.sweeps.findings import bounded, interval_json, plain
from gptjax.sweeps.page import Cell, number, table
from gptjax.training.metrics import short

EACH = 3  # numbers that the summary tells one by one
DRAWN = 100.0  # curves are drawn from this part of the budget on
NOTE = (
    "95% intervals by Student's t over seeds; a difference is paired by seed where both sides have "
    "the same ones, and by Welch's approximation otherwise. Each interval stands for itself: of "
    "twenty values that are alike, one would be told apart by chance. The share of FLOPs is where "
    "a value's curve meets the reference's final loss; as the rate falls over a run, a run planned "
    "for that length would meet it earlier."
)


def verdict(difference: Interval, unit: str) -> str:
    """`lower by 0.031 nats per token [0.022, 0.040]`, or that it cannot be said."""
    gap, low, high = difference.estimate, difference.low, difference.high
    if math.isnan(gap):
        return "no finished run to compare"
    way = "lower" if gap < 0 else "higher"
    if math.isnan(low):
        return f"{way} by {abs(gap):.4f} {unit}; a lone seed, so nothing can be told apart"
    if low <= 0 <= high:
        return f"not separable ({gap:+.4f} {unit} [{low:+.4f}, {high:+.4f}])"
    ends = sorted((abs(low), abs(high)))
    return f"{way} by {abs(gap):.4f} {unit} [{ends[0]:.4f}, {ends[1]:.4f}]"


def ablation_summary(ablation: Ablation, unit: str) -> list[str]:
    """The winner of each budget, and each value against the reference."""
    lines, numbers = [], numbers_of(ablation)
    for contrast in ablation.contrasts:
        at = f" at {contrast.label}" if contrast.label else ""
        ranked, first = contrast.ranked, lead(contrast)
        if not ranked:
            lines.append(f"{ablation.field}{at}: no point has finished.")
            continue
        best = ranked[0]
        text = f"{ablation.field}{at}: the lowest loss is that of {best.value}, {_mean(best, unit)}"
        if first is not None:
            text += f"; against {first[1].value}, the next: {verdict(first[2], unit)}"
        lines.append(text + ".")
        way = beyond_edge(contrast, numbers)
        if way:
            lines.append(
                f"{best.value} stands at the edge of the grid{at}: {way} values of "
                f"{ablation.field} may be better still."
            )
        if len(numbers) > EACH:
            continue  # the table and the figure tell of so many
        for arm in contrast.arms:
            if arm.difference is not None and len(arm.loss):
                text = f"{arm.value} against {ablation.reference}{at}: "
                text += verdict(arm.difference, unit)
                shared = share_words(arm)
                lines.append(text + (f"; {shared}." if shared else "."))
    return lines


def _mean(arm: Arm, unit: str) -> str:
    seeds = f"{len(arm.loss)} seeds" if len(arm.loss) > 1 else "1 seed"
    return f"{bounded(arm.mean, '.4f')} {unit} over {seeds}"


def share_words(arm: Arm) -> str:
    """`73% of the FLOPs [70%, 76% over seeds] for the reference's final loss`."""
    met = arm.share[np.isfinite(arm.share)]
    if not _compared(arm):
        return ""
    if not len(met):
        return "the reference's final loss is not met"
    text = f"{_percent(arm)} of the FLOPs for the reference's final loss"
    if len(met) < len(arm.share):
        text += f", met by {len(met)} of {len(arm.share)} seeds"
    return text


def _compared(arm: Arm) -> bool:
    """Whether both it and the reference have finished runs."""
    return arm.difference is not None and math.isfinite(arm.difference.estimate)


def _percent(arm: Arm) -> str:
    met = arm.share[np.isfinite(arm.share)]
    if not len(met):
        return "not met" if _compared(arm) else ""
    text = f"{100 * met.mean():.0f}%"
    if len(met) > 1:
        text += f" ({100 * met.min():.0f}% to {100 * met.max():.0f}% over seeds)"
    return text


def ablation_section(ablation: Ablation, unit: str) -> str:
    """The tables between the summary and the figures."""
    parts = [f"<h2>{html.escape(ablation.field)}, value by value</h2>", f"<p>{NOTE}</p>"]
    heads = ["value", "seeds", "not finished", f"loss ({unit})", "FLOPs", "tokens", "seconds"]
    heads += [f"to {ablation.reference}", "FLOPs to equal it", "verdict"]
    for contrast in ablation.contrasts:
        if contrast.label:
            parts.append(f"<h3>{html.escape(contrast.label)}</h3>")
        best = contrast.ranked[0] if contrast.ranked else None
        rows, kinds = [], []
        for arm in contrast.arms:
            rows.append(_row(arm, unit))
            kinds.append("best" if arm is best else "done")
        parts.append(table(heads, rows, kinds))
    return "\n".join(parts)


def _row(arm: Arm, unit: str) -> list[Cell | str]:
    mean = lambda values: float(np.mean(values)) if len(values) else math.nan
    gap, apart = arm.difference, Cell("", "")
    if gap is not None and math.isfinite(gap.estimate):
        apart = Cell(bounded(gap, "+.4f"), gap.estimate)
    said = "reference" if gap is None else verdict(gap, unit)
    shared = Cell(_percent(arm), float(np.nanmean(arm.share))) if met(arm) else _percent(arm)
    tokens = mean(arm.tokens)
    return [
        arm.value,
        number(len(arm.loss), "d"),
        number(arm.unfinished, "d"),
        Cell(bounded(arm.mean, ".4f"), arm.mean.estimate) if len(arm.loss) else "",
        number(mean(arm.flops), ".3g"),
        Cell(short(tokens), tokens) if len(arm.loss) else "",
        number(mean(arm.seconds), ".3g"),
        apart,
        shared,
        Cell(said, said, True),
    ]


def met(arm: Arm) -> bool:
    """Whether any seed met the reference's final loss."""
    return bool(np.isfinite(arm.share).any())


# ---------------------------------------------------------------- curves


def ablation_charts(
    ablation: Ablation, curves: Mapping[str, Curve], unit: str
) -> tuple[Chart, ...]:
    """Loss against the value where it is a number, against FLOPs and seconds for each budget."""
    values = ablation.values
    spread = [ramp(k / max(len(values) - 1, 1)) for k in range(len(values))]
    colors = dict(zip(values, PALETTE if len(values) <= len(PALETTE) else spread, strict=False))
    charts = [value_chart(ablation, unit)] if _drawn_over_values(ablation) else []
    for place, contrast in enumerate(ablation.contrasts, 1):
        known = [arm for arm in contrast.arms if any(name in curves for name in arm.names)]
        if not known:
            continue
        held_out = all(
            curves[name].has_checks for arm in known for name in arm.names if name in curves
        )
        tail = f"_{place}" if len(ablation.contrasts) > 1 else ""
        at = f", {contrast.label}" if contrast.label else ""
        for axis, label in (("flops", "training FLOPs"), ("seconds", "seconds of training")):
            series = []
            for arm in known:
                series += _lines(arm, curves, axis, held_out, colors[arm.value], unit)
            if not series:
                continue
            charts.append(_chart(ablation, f"{axis}{tail}", at, label, series, held_out, unit))
    return tuple(charts)


def _drawn_over_values(ablation: Ablation) -> bool:
    return len(numbers_of(ablation)) > 1 and any(c.ranked for c in ablation.contrasts)


def value_chart(ablation: Ablation, unit: str) -> Chart:
    """The loss over the values of a number: each run, and the mean and spread over seeds."""
    numbers = numbers_of(ablation)
    series, several = [], len(ablation.contrasts) > 1
    for k, contrast in enumerate(ablation.contrasts):
        arms = sorted((a for a in contrast.arms if len(a.loss)), key=lambda a: numbers[a.value])
        if not arms:
            continue
        group = (contrast.label or "runs") if several else "runs"
        color = ramp(k / (len(ablation.contrasts) - 1)) if several else PALETTE[1]
        style = {"color": color, "group": group if several else "mean over seeds"}
        at = [numbers[arm.value] for arm in arms]
        each = [arm.loss for arm in arms]
        seeds = max(len(loss) for loss in each) > 1
        ends = {"low": [v.min() for v in each], "high": [v.max() for v in each]} if seeds else {}
        series.append(Series(group, at, [float(v.mean()) for v in each], **style, **ends))
        series.append(
            Series(
                group,
                [numbers[arm.value] for arm in arms for _ in arm.loss],
                np.concatenate(each),
                "points",
                color=color,
                group=group,
                hover=tuple(
                    f"<b>{html.escape(name)}</b><br>{html.escape(ablation.field)} {arm.value}"
                    f"<br>loss {loss:.4f} {unit}"
                    for arm in arms
                    for name, loss in zip(arm.names, arm.loss, strict=True)
                ),
            )
        )
    return Chart(
        name="loss_value",
        title=f"Loss against {ablation.field}",
        x_label=ablation.field,
        y_label=f"loss ({unit})",
        series=tuple(series),
        log_x=geometric(list(numbers.values())),
        log_y=False,
        caption=(
            "Final losses; the line is the mean over seeds, the band goes from the lowest to the "
            "highest one. Points that diverged or failed have none."
        ),
    )


def geometric(values: list[float]) -> bool:
    """Whether numbers are spaced by factors rather than by steps."""
    values = np.unique(np.asarray(values, dtype=float))
    if len(values) < 2 or values[0] <= 0:
        return False
    if len(values) == 2:
        return bool(values[1] >= 4 * values[0])
    spread = lambda gaps: float(np.std(gaps) / np.mean(gaps))
    return spread(np.diff(np.log(values))) < spread(np.diff(values))


def _lines(arm: Arm, curves, axis: str, held_out: bool, color: str, unit: str) -> list[Series]:
    """The mean over an arm's seeds with its band, and its final losses."""
    lines, ends, said = [], [], []
    for name, loss in zip(arm.names, arm.loss, strict=True):
        if name not in curves:
            continue
        curve = curves[name]
        x, y = curve.line(held_out)
        pace = curve.pace / curve.flops[-1] if axis == "seconds" else 1.0
        if not math.isfinite(pace) or pace <= 0:
            continue
        lines.append((x * pace, y))
        ends.append((curve.flops[-1] * pace, float(loss)))
        said.append(f"<b>{html.escape(name)}</b><br>final loss {loss:.4f} {unit}")
    if not lines:
        return []
    low, high = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    low = max(low, high / DRAWN)
    grid = np.geomspace(low, high, 60) if low < high else np.array([high])
    each = np.stack([np.interp(np.log(grid), np.log(x), y) for x, y in lines])
    band = {"low": each.min(axis=0), "high": each.max(axis=0)} if len(each) > 1 else {}
    style = {"color": color, "group": arm.value}
    return [
        Series(arm.value, grid, each.mean(axis=0), **style, **band),
        Series(
            arm.value,
            [x for x, _ in ends],
            [y for _, y in ends],
            "points",
            hover=tuple(said),
            size=7,
            **style,
        ),
    ]


def _chart(ablation, stem: str, at: str, label: str, series, held_out: bool, unit: str) -> Chart:
    what = "Validation loss" if held_out else "Training loss (trailing mean)"
    return Chart(
        name=f"ablation_{stem}",
        title=f"{ablation.field} against {label}{at}",
        x_label=label,
        y_label=f"loss ({unit})",
        series=tuple(series),
        caption=(
            f"{what}, the mean over seeds with a band from the lowest to the highest one; markers "
            "are final losses. A click on a name in the legend hides or shows it. "
            + (
                "Seconds are steps at the run's median pace, without compilation, evaluations "
                "and saves."
                if stem.startswith("seconds")
                else "FLOPs are the ledger's."
            )
        ),
    )


# ---------------------------------------------------------------- ablation.json


def ablation_json(ablation: Ablation, unit: str) -> dict:
    """Everything as plain data."""
    return {
        "field": ablation.field,
        "reference": ablation.reference,
        "unit": unit,
        "comparisons": [_contrast_json(contrast, unit) for contrast in ablation.contrasts],
    }


def _contrast_json(contrast: Contrast, unit: str) -> dict:
    first = lead(contrast)
    return {
        "label": contrast.label,
        "lowest": contrast.ranked[0].value if contrast.ranked else None,
        "lead": first
        and {
            "over": first[1].value,
            "difference": interval_json(first[2]),
            "verdict": verdict(first[2], unit),
        },
        "values": [_arm_json(arm, unit) for arm in contrast.arms],
    }


def _arm_json(arm: Arm, unit: str) -> dict:
    gap = arm.difference
    return {
        "value": arm.value,
        "points": list(arm.names),
        "seeds": list(arm.seeds),
        "unfinished": arm.unfinished,
        "losses": [plain(loss) for loss in arm.loss],
        "loss": _interval(arm.mean),
        "flops": [plain(value) for value in arm.flops],
        "tokens": [plain(value) for value in arm.tokens],
        "seconds": [plain(value) for value in arm.seconds],
        "difference": None if gap is None else _interval(gap),
        "paired": arm.paired,
        "verdict": "reference" if gap is None else verdict(gap, unit),
        "share_of_flops": [plain(value) for value in arm.share],
    }


def _interval(interval: Interval) -> dict | None:
    return interval_json(interval) if math.isfinite(interval.estimate) else None
