"""A sweep's folder: what was asked for, one run folder per point, the ledger, the report.

runs/NAME/sweep.json        the points with their experiments: all that a worker needs
runs/NAME/points/POINT/     a run's folder, as `fit` leaves it
runs/NAME/ledger/           who works on what, and what came out
runs/NAME/logs/             what each worker printed
runs/NAME/report.html       with law.json, runs.csv and the figures, once points are finished
"""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from gptjax.config_tree import MAY_DIFFER, flatten
from gptjax.errors import BadInput, DamagedData, check_types, did_you_mean
from gptjax.experiment import Experiment
from gptjax.scaling.table import Runs
from gptjax.sweeps.ledger import Ledger
from gptjax.sweeps.sweep import Analysis, Point, Sweep
from gptjax.sweeps.trunks import find_branches, ready
from gptjax.training.workdir import read_json, storage_errors, write_json

SHOWN = 6  # fields that a refusal names

OPTIONS = {"attempts": int, "together": int, "share_trunks": bool}
POINT = re.compile(r"(?!\.{1,2}$)[\w.+=-]+")  # a point's name is that of its folder


class SweepFolder:
    """The points of a sweep where they are run."""

    def __init__(
        self,
        path: str | Path,
        name: str,
        points: tuple[Point, ...],
        attempts: int,
        together: int,
        share_trunks: bool,
    ):
        self.path = Path(path)
        self.name = name
        self.points = {point.name: point for point in points}
        self.attempts = attempts
        self.together = together
        self.branches = find_branches(self.points) if share_trunks else {}
        self.ledger = Ledger(self.path, list(self.points))

    @staticmethod
    def create(sweep: Sweep, path: str | Path, fork: bool = False) -> "SweepFolder":
        """The folder of a sweep, new or as it stands, to which points may be added.

        BadInput when the sweep no longer has points that were begun in the folder; with `fork`
        it goes on with those that it has, and the others' folders stay.
        """
        path = _place(path)
        if _holds_file(path, "experiment.json"):
            raise BadInput(f"{path} holds a single run, not a sweep; give another --workdir")
        before: object = {}
        if _holds_file(path, "sweep.json"):
            with contextlib.suppress(DamagedData):  # it is written anew
                before = read_json(path / "sweep.json")
        before = before if isinstance(before, dict) else {}
        if before.get("name", sweep.name) != sweep.name:
            raise BadInput(
                f"{path} holds the sweep {before['name']}, not {sweep.name}; give another --workdir"
            )
        folder = SweepFolder(
            path, sweep.name, sweep.points, sweep.attempts, sweep.together, sweep.share_trunks
        )
        tree = {
            "name": sweep.name,
            "attempts": sweep.attempts,
            "together": sweep.together,
            "share_trunks": sweep.share_trunks,
            "analysis": dataclasses.asdict(sweep.analysis),
            "points": [
                {
                    "name": point.name,
                    "row": dict(point.row),
                    "group": point.group,
                    "experiment": point.experiment.to_json(),
                }
                for point in sweep.points
            ],
        }
        with storage_errors(f"use {folder.ledger.folder}"):
            folder.ledger.folder.mkdir(parents=True, exist_ok=True)
        if before == json.loads(json.dumps(tree)):
            return folder
        rows = before.get("points")
        rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        theirs = [str(row.get("name")) for row in rows if POINT.fullmatch(str(row.get("name")))]
        if {*theirs} != {*folder.points}:
            lost = [name for name in theirs if name not in folder.points]
            begun = [name for name in lost if folder.ledger.state(name).starts]
            if begun and not fork:
                points = "1 point" if len(begun) == 1 else f"{len(begun)} points"
                raise BadInput(
                    f"{path} holds {points} that {sweep.name} no longer has"
                    f"{_in_words(changed_fields(rows, tree['points']))}: give another --workdir, "
                    "or --fork to go on with the new points and leave the old ones in points/"
                )
            alive = [name for name in theirs if Ledger(path, theirs).running(name)]
            if alive:
                raise BadInput(
                    f"{path} is being worked on with other points ({alive[0]} among them): wait "
                    "for it, or give another --workdir"
                )
        write_json(path / "sweep.json", tree)
        return folder

    @staticmethod
    def open(path: str | Path) -> "SweepFolder":
        """The folder as its sweep.json describes it, without the code that registered it."""
        path = _place(path)
        tree = _sweep_json(path)
        points = tuple(_point(path, row) for row in tree["points"])
        return SweepFolder(path, tree["name"], points, *(tree[name] for name in OPTIONS))

    def check_unchanged(self) -> None:
        """BadInput when the sweep was started here with other points since this was opened."""
        names = [row["name"] for row in _sweep_json(self.path)["points"]]
        if names != list(self.points):
            raise BadInput(f"{self.path} was started with other points meanwhile; start it again")

    def differs_from(self, sweep: Sweep) -> str:
        """What sets the folder's points apart from a sweep's, in words; "" when they are alike."""
        if {*self.points} == {point.name for point in sweep.points}:
            return ""
        mine = [{"experiment": point.experiment.to_json()} for point in self.points.values()]
        theirs = [{"experiment": point.experiment.to_json()} for point in sweep.points]
        changes = _in_words(changed_fields(mine, theirs))
        return f"{self.path} was started with other points than {sweep.name} has now{changes}"

    def analysis(self) -> Analysis:
        """What the sweep asked to be fitted."""
        tree = _sweep_json(self.path)["analysis"]
        try:
            fields = {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()}
            analysis = Analysis(**fields)
            check_types("analysis", analysis)
        except (TypeError, BadInput) as error:
            raise _damaged(self.path, f"its analysis: {error}") from None
        return analysis

    def workdir(self, point: str) -> Path:
        """The run folder of a point."""
        return self.path / "points" / point

    def can_begin(self, point: str, among: Collection[str]) -> bool:
        """False for a point whose trunk, one of those that are run, has not come far enough."""
        branch = self.branches.get(point)
        if branch is None or branch.trunk not in among:
            return True
        finished = self.ledger.state(branch.trunk).finished
        return ready(self.workdir(point), self.workdir(branch.trunk), branch, finished)

    def kept_steps(self, point: str) -> tuple[int, ...]:
        """Where other points branch off a point's run."""
        return tuple(sorted(b.step for b in self.branches.values() if b.trunk == point))

    def newest_step(self, point: str) -> int:
        """The newest checkpoint of a point by name, 0 when there is none."""
        folder = self.workdir(point) / "checkpoints"
        steps = (p.name for p in folder.glob("[0-9]*")) if folder.is_dir() else ()
        return max((int(name) for name in steps if name.isdigit()), default=0)

    def runs(self, analysis: Analysis | None = None) -> Runs:
        """The finished points as a table; a point that diverged has no loss and is left out."""
        analysis = analysis or self.analysis()
        done = {n: s for n, s in self.ledger.states().items() if s.status == "done"}
        figures = [done[name].figures for name in done]
        missing = [n for n in done if analysis.loss not in done[n].figures]
        if missing:
            raise BadInput(f"{missing[0]} has no {analysis.loss}; set analysis.loss to another")
        column = lambda key: np.array([row.get(key, math.nan) for row in figures], float)
        extra = ["seconds", "steps", "bits_per_byte", "parameters", "non_embedding_parameters"]
        if any(self.points[name].experiment.model.experts.count for name in done):
            extra.append("active_parameters")
        columns = {key if key != "parameters" else "all_parameters": column(key) for key in extra}
        columns["group"] = np.array([self.points[name].group for name in done], dtype=object)
        for field in sorted({f for name in done for f in self.points[name].row}):
            if field not in ("name", "group"):
                found = [self.points[name].row.get(field, "") for name in done]
                columns[field] = np.array([str(value) for value in found], dtype=object)
        return Runs(
            parameters=column(analysis.size),
            tokens=column("tokens"),
            flops=column("flops"),
            loss=column(analysis.loss),
            names=tuple(done),
            columns=columns,
        )

    def select(self, patterns: tuple[str, ...]) -> list[str]:
        """The points that the patterns of --only choose; all, when there is none."""
        return matching(self.name, self.points, patterns)


def changed_fields(old: list[dict], new: list[dict]) -> list[str]:
    """`train.steps: 60 -> 30` for each field of which two sweep.json's points hold other values."""
    before, now = _values(old), _values(new)
    found = []
    for field in sorted(before.keys() | now.keys()):
        mine, theirs = before.get(field, ()), now.get(field, ())
        gone = ", ".join(value for value in mine if value not in theirs)
        come = ", ".join(value for value in theirs if value not in mine)
        if gone or come:
            found.append(f"{field}: {gone or '(the same)'} -> {come or '(fewer)'}")
    return found


def _values(points: list[dict]) -> dict[str, tuple[str, ...]]:
    """The values of every field over points, each once."""
    found: dict[str, dict[str, None]] = {}
    for point in points:
        tree = point.get("experiment")
        for field, value in flatten(tree).items() if isinstance(tree, dict) else ():
            if field != "name" and not field.startswith(MAY_DIFFER):
                found.setdefault(field, {})[str(value)] = None
    return {field: tuple(values) for field, values in found.items()}


def _in_words(changes: list[str]) -> str:
    more = f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    return f" ({'; '.join(changes[:SHOWN])}{more})" if changes else ""


def matching(sweep: str, points: Mapping[str, Point], patterns: tuple[str, ...]) -> list[str]:
    """The names of the points that one of the patterns chooses; all, when there is none.

    A pattern is a part of a name, or `field=value` of a row; BadInput when it finds nothing.
    """
    chosen = []
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        field, equals, value = pattern.partition("=")
        found = [
            name
            for name, point in points.items()
            if pattern in name or (equals and _holds(point, field, value))
        ]
        if not found:
            hint = _held(points, field) if equals else ""
            hint = hint or did_you_mean(pattern, points)
            raise BadInput(f"--only={pattern} names no point of {sweep}{hint}")
        chosen += [name for name in found if name not in chosen]
    return chosen if patterns else list(points)


def _holds(point: Point, field: str, value: str) -> bool:
    same = lambda held: isinstance(held, int | float) and held == _number(value)
    fields = (key for key, held in point.row.items() if value == str(held) or same(held))
    return any(key == field or key.endswith(f".{field}") for key in fields)


def _held(points: Mapping[str, Point], field: str) -> str:
    """The values that the points have in a field, or the fields that their rows have."""
    rows = [point.row for point in points.values()]
    fields = dict.fromkeys(key for row in rows for key in row)
    found = [key for key in fields if key == field or key.endswith(f".{field}")]
    if not found:
        return f": the grid sets {', '.join(fields)}" if fields else ""
    values = dict.fromkeys(str(row[key]) for row in rows for key in found if key in row)
    shown = ", ".join(list(values)[:12]) + (", ..." if len(values) > 12 else "")
    return f": {', '.join(found)} is one of {shown}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _place(path: str | Path) -> Path:
    if not isinstance(path, str | Path) or "\0" in str(path):
        raise BadInput(f"the sweep's folder is {path!r}; give a path, such as 'runs/rates'")
    return Path(path)


def _holds_file(path: Path, name: str) -> bool:
    with storage_errors(f"use {path}"):
        if path.exists() and not path.is_dir():
            raise BadInput(f"{path} is a file, not a folder; give another --workdir")
        return (path / name).exists()


def _sweep_json(path: Path) -> dict:
    if not _holds_file(path, "sweep.json"):
        raise BadInput(f"{path} holds no sweep: there is no sweep.json in it")
    tree = read_json(path / "sweep.json")
    if not isinstance(tree, dict):
        raise _damaged(path, "it is no object")
    kinds = {"name": str, "points": list, "analysis": dict, **OPTIONS}
    for name, kind in kinds.items():
        value = tree.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise _damaged(path, f"its {name}")
        if kind is int and value < 1:
            raise _damaged(path, f"its {name} is {value}")
    names = [row.get("name") if isinstance(row, dict) else None for row in tree["points"]]
    for number, name in enumerate(names):
        if not isinstance(name, str) or not POINT.fullmatch(name) or names.index(name) < number:
            raise _damaged(path, f"the name of point {number}")
    return tree


def _point(path: Path, row: dict) -> Point:
    """A point of a checked sweep.json."""
    for name, kind in (("row", dict), ("group", str), ("experiment", dict)):
        if not isinstance(row.get(name), kind):
            raise _damaged(path, f"the {name} of {row['name']}")
    try:
        experiment = Experiment.from_json(row["experiment"])
        experiment.validate()
    except BadInput as error:
        raise _damaged(path, f"{row['name']}: {error}") from None
    return Point(row["name"], experiment, row["row"], row["group"])


def _damaged(path: Path, what: str) -> DamagedData:
    return DamagedData(
        f"{path / 'sweep.json'} is damaged, or written by another version ({what}): start the "
        "sweep by its name, and it is written anew"
    )
