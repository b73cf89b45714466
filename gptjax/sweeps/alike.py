"""Which points of a sweep can be compared: those that differ in one field, seeds and length aside.

Nothing heavy is imported: a sweep is checked by this before anything runs.
"""

import dataclasses

import numpy as np

from gptjax.config_tree import MAY_DIFFER, flatten
from gptjax.errors import BadInput, did_you_mean
from gptjax.scaling.laws.isoflop import same_budgets
from gptjax.sweeps.sweep import FACTS, Analysis, Point

SEEDS = ("train.seed", "data.seed")
# What follows from a budget, and what a run says of itself.
LENGTH = (
    *("train.steps", "train.tokens", "train.flops"),
    *("train.eval_every", "train.checkpoint_every", "train.log_"),
)
SAME_BUDGET = 0.1  # in log of FLOPs: whole steps make equal budgets differ a little


def compared(points, analysis: Analysis) -> Analysis:
    """The analysis with a field to compare where it asks for no law and names none.

    The first of one or two fields, seeds and lengths aside, in which the grid's rows differ.
    """
    if analysis.laws or analysis.compare:
        return analysis
    points = tuple(points)
    fields = dict.fromkeys(name for point in points for name in point.row if name not in FACTS)
    fields = [f for f in fields if f not in SEEDS and not f.startswith(LENGTH)]
    varied = [f for f in fields if len({value_of(point, f) for point in points}) > 1]
    if len(varied) > 2:
        return analysis
    chosen = next((field for field in varied if alike(points, field)), "")
    return dataclasses.replace(analysis, compare=chosen)


def alike(points, field: str) -> list[tuple[str, dict[str, list[Point]]]]:
    """(label, points by value) of every set of points that differ in the field alone.

    Seeds and lengths aside. Of several budgets each is a set: by the points' group where they have
    one, by tokens where all values were given the same ones, by FLOPs otherwise. A set of one
    value is left out.
    """
    sets: dict[tuple, list[Point]] = {}
    others: dict[tuple, dict] = {}
    for point in points:
        rest = _rest(point, field)
        key = (point.group, *(f"{name}={value}" for name, value in sorted(rest.items())))
        sets.setdefault(key, []).append(point)
        others[key] = {**rest, "group": point.group} if point.group else rest
    varied = {
        name
        for rest in others.values()
        for name in rest
        if len({str(other.get(name)) for other in others.values()}) > 1
    }
    found = []
    for key, mine in sets.items():
        for budget, members in _budgets(mine, field, bool(mine[0].group)):
            by_value: dict[str, list[Point]] = {}
            for point in members:
                by_value.setdefault(value_of(point, field), []).append(point)
            if len(by_value) < 2:
                continue
            said = [f"{n.rsplit('.', 1)[-1]} {others[key].get(n, '')}" for n in sorted(varied)]
            found.append((", ".join([*said, *([budget] if budget else [])]), by_value))
    return found


def _rest(point: Point, field: str) -> dict[str, object]:
    """The fields in which points of one comparison agree."""
    flat = flatten(point.experiment.to_json())
    apart = (*MAY_DIFFER, *SEEDS, *LENGTH)
    return {
        name: value
        for name, value in flat.items()
        if name not in ("name", field) and not name.startswith((*apart, f"{field}."))
    }


def _budgets(points: list[Point], field: str, grouped: bool) -> list[tuple[str, list[Point]]]:
    """Points by budget with a label, which is empty when there is one."""
    tokens: dict[str, set[int]] = {}
    for point in points:
        tokens.setdefault(value_of(point, field), set()).add(point.experiment.tokens)
    if grouped:
        keys = [0.0] * len(points)
    elif len({frozenset(seen) for seen in tokens.values()}) == 1:
        keys = [float(point.experiment.tokens) for point in points]
    else:
        keys = list(same_budgets(np.array([point.flops for point in points]), SAME_BUDGET))
    found: dict[float, list[Point]] = {}
    for key, point in zip(keys, points, strict=True):
        found.setdefault(key, []).append(point)
    if len(found) == 1:
        return [("", points)]
    mean = lambda mine: float(np.mean([point.flops for point in mine]))
    return [(f"{mean(found[key]):.2g} FLOPs", found[key]) for key in sorted(found)]


def value_of(point: Point, field: str) -> str:
    """What a point has in the field, as text."""
    value = point.experiment.to_json()
    for part in field.split("."):
        value = value[int(part) if isinstance(value, list) else part]
    return str(value)


def reference_of(points, analysis: Analysis) -> str:
    """The value that others are compared with; BadInput for a field or a value that is not there.

    A number may be written in another way than the grid has it.
    """
    points, field, wanted = tuple(points), analysis.compare, analysis.reference
    known = sorted({name for point in points for name in point.row} - {*FACTS})
    if field not in known:
        raise BadInput(
            f"analysis.compare is {field!r}, which no row of the grid sets"
            f"{did_you_mean(field, known)} (set: {', '.join(known)})"
        )
    if field in SEEDS or field.startswith(LENGTH):
        raise BadInput(
            f"analysis.compare is {field!r}, but seeds and lengths are what a comparison goes "
            f"over; give another field that the grid sets ({', '.join(known)})"
        )
    values = list(dict.fromkeys(value_of(point, field) for point in points))
    if not wanted:
        return values[0]
    found = next((value for value in values if _same(value, wanted)), None)
    if found is None:
        raise BadInput(
            f"analysis.reference is {wanted!r}, no value of {field}{did_you_mean(wanted, values)} "
            f"(values: {', '.join(values)})"
        )
    return found


def _same(value: str, wanted: str) -> bool:
    try:
        return value == wanted or float(value) == float(wanted)
    except ValueError:
        return False


def check_compared(points, analysis: Analysis) -> None:
    """BadInput where nothing would be compared; nothing is computed before."""
    if not analysis.compare:
        return
    points = tuple(points)
    reference_of(points, analysis)
    if alike(points, analysis.compare):
        return
    rests = [_rest(point, analysis.compare) for point in points]
    varied = {
        name
        for rest in rests
        for name in rest
        if len({str(other.get(name)) for other in rests}) > 1
    }
    also = f" also differ in {', '.join(sorted(varied))}" if varied else " differ in their budgets"
    raise BadInput(
        f"analysis.compare is {analysis.compare!r}, but points with two values of it{also}: give "
        "points that are alike in everything but it, the seed and the length of the run"
    )


# ---------------------------------------------------------------- figures of one value
