"""A Sweep is many runs as one frozen value: a base experiment, a grid of overrides, an analysis."""

import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gptjax.config_tree import MAY_DIFFER, flatten
from gptjax.errors import BadInput, check_types
from gptjax.experiment import Experiment
from gptjax.scaling.flops import count_parameters
from gptjax.scaling.planner import IsoFlops
from gptjax.sweeps.grid import Grid, override
from gptjax.sweeps.grid import rows as rows_of

LABEL = re.compile(r"[\w.+=-]{1,80}")
FACTS = ("name", "group")  # what a row may say of a point beside its fields
# Fields that came after the first sweeps: at these values no point gets another name.
LATER = {"train.flops": 0}


@dataclass(frozen=True)
class Analysis:
    """What is fitted to the finished points, and to which of their columns."""

    laws: tuple[str, ...] = ("chinchilla", "kaplan_c")
    # Of a model with experts all parameters, or the active ones: those that a token goes through.
    size: Literal["parameters", "non_embedding_parameters", "active_parameters"] = "parameters"
    loss: Literal["validation_loss", "population_loss", "bits_per_dimension"] = "validation_loss"
    holdout: float = 1.0  # points of more than 1/k of the largest budget are predicted, not fitted
    bootstrap: int = 200  # resamples for intervals
    predict: tuple[str, ...] = ()  # budgets in FLOPs, such as "1e20", to extrapolate to
    compare: str = ""  # a field of the grid, of which the values are compared at equal compute
    reference: str = ""  # the value that others are compared with; "": the grid's first

    def validate(self) -> None:
        check_types("analysis", self)
        if self.holdout < 1:
            raise BadInput(f"analysis.holdout is {self.holdout}; give 1 (nothing held out) or more")
        if self.bootstrap < 0:
            raise BadInput(f"analysis.bootstrap is {self.bootstrap}; give 0 (none) or more")
        for text in self.predict:
            try:
                good = 0 < float(text) < math.inf
            except ValueError:
                good = False
            if not good:
                raise BadInput(f"analysis.predict holds {text!r}; give FLOPs, such as '1e20'")
        if self.reference and not self.compare:
            raise BadInput(
                f"analysis.reference is {self.reference!r}, but nothing is compared: give "
                "analysis.compare a field of the grid"
            )
        from gptjax.scaling.laws import get_law

        for law in self.laws:
            get_law(law)


@dataclass(frozen=True)
class Point:
    """One run of a sweep. `row` is what sets it apart, `group` what it belongs to in the analysis.

    The name ends in a digest of the experiment, so a changed point is another point.
    """

    name: str
    experiment: Experiment
    row: Mapping[str, object]
    group: str

    @property
    def flops(self) -> float:
        """Training FLOPs by the ledger."""
        return self.experiment.flops

    @property
    def parameters(self) -> int:
        return count_parameters(self.experiment.model).total

    @property
    def program(self) -> str:
        """A short name for the compiled program that the point shares with others."""
        return digest(repr(self.experiment.program))


@dataclass(frozen=True)
class Sweep:
    """Many runs and what is made of them.

    A row of the grid may also hold `name` (a label for the point) and `group`. A `design` is what
    the grid was made by, `rows(*design.rows(base.model))`, so that it can be planned anew.
    """

    name: str
    base: Experiment
    grid: Grid
    analysis: Analysis = field(default_factory=Analysis)
    budget: float = 0.0  # FLOPs that the whole sweep may take; 0: whatever it takes
    attempts: int = 3  # starts of a failing point before it is reported
    together: int = 1  # points of one program that a worker trains as one population
    share_trunks: bool = False  # runs that differ in length alone share their beginning
    plan_only: bool = False  # a plan with its cost, too large for this code to start it unasked
    design: IsoFlops | None = None  # what the grid follows from

    @functools.cached_property
    def points(self) -> tuple[Point, ...]:
        """Every point, in the order of the grid; BadInput names a row that cannot be."""
        points, seen = [], {}
        for number, row in enumerate(self.grid):
            point = self._point(number, row)
            if point.name in seen:
                raise BadInput(
                    f"rows {seen[point.name]} and {number} of sweep {self.name} are the same run"
                )
            seen[point.name] = number
            points.append(point)
        return tuple(points)

    def _point(self, number: int, row: Mapping[str, object]) -> Point:
        fields = {key: value for key, value in row.items() if key not in FACTS}
        label = str(row.get("name") or _label(fields) or self.base.name)
        if not LABEL.fullmatch(label):
            raise BadInput(f"row {number} of sweep {self.name}: {label!r} is no name for a folder")
        try:
            experiment = override(self.base, fields)
            experiment.validate()
            if "train.flops" in fields and fields["train.flops"] and experiment.train.steps:
                raise BadInput(
                    f"train.steps = {experiment.train.steps} takes the place of train.flops; give "
                    "the base train.steps=0"
                )
        except BadInput as error:
            raise BadInput(f"row {number} of sweep {self.name} ({label}): {error}") from None
        name = f"{label}-{identity(experiment)}"
        experiment = dataclasses.replace(experiment, name=name)
        return Point(name, experiment, dict(row), str(row.get("group", "")))

    @property
    def flops(self) -> float:
        """Training FLOPs of all points."""
        return sum(point.flops for point in self.points)

    def planned(self, base: Experiment | None = None, design: IsoFlops | None = None) -> "Sweep":
        """The sweep of another base or by another design; its grid follows from the design."""
        base = self.base if base is None else base
        design = self.design if design is None else design
        if not isinstance(base, Experiment):
            raise BadInput(f"base of sweep {self.name} is {base!r}, no Experiment")
        if design is not None and not isinstance(design, IsoFlops):
            raise BadInput(f"design of sweep {self.name} is {design!r}, no IsoFlops")
        grid = self.grid if design is None else rows_of(*design.rows(base.model))
        return dataclasses.replace(self, base=base, grid=grid, design=design)

    def validate(self) -> None:
        """One clear line for a sweep that cannot be; nothing is computed before."""
        if not isinstance(self.name, str) or not LABEL.fullmatch(self.name):
            raise BadInput(f"a sweep's name is {self.name!r}; give letters, digits and . _ = + -")
        for name, kind in (("base", Experiment), ("grid", Grid), ("analysis", Analysis)):
            if not isinstance(getattr(self, name), kind):
                raise BadInput(f"{name} of sweep {self.name} is no {kind.__name__}")
        if not len(self.grid):
            raise BadInput(f"sweep {self.name} has no points")
        for name in ("attempts", "together"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInput(f"{name} of sweep {self.name} is {value!r}; give 1 or more")
        for name in ("share_trunks", "plan_only"):
            if not isinstance(getattr(self, name), bool):
                value = getattr(self, name)
                raise BadInput(f"{name} of sweep {self.name} is {value!r}; give True or False")
        if not isinstance(self.budget, int | float) or not 0 <= self.budget < math.inf:
            raise BadInput(
                f"budget of sweep {self.name} is {self.budget!r}; give FLOPs, or 0 for no limit"
            )
        if self.design is not None:
            self._check_design()
        self.analysis.validate()
        _ = self.points  # each is checked as it is made
        from gptjax.sweeps.alike import check_compared

        check_compared(self.points, self.analysis)
        if self.budget and not self.flops <= self.budget * 1.001:
            raise BadInput(
                f"sweep {self.name} takes {self.flops:.3g} FLOPs, more than its budget of "
                f"{self.budget:.3g}"
            )

    def _check_design(self) -> None:
        if not isinstance(self.design, IsoFlops):
            raise BadInput(f"design of sweep {self.name} is {self.design!r}, no IsoFlops")
        if [dict(row) for row in self.grid] != self.design.rows(self.base.model):
            raise BadInput(
                f"the grid of sweep {self.name} is not what its design makes of its base; give "
                "grid=rows(*design.rows(base.model)), or no design"
            )


def identity(experiment: Experiment, digits: int = 6) -> str:
    """Hex digits that change with everything that changes a run's results."""
    flat = flatten(experiment.to_json())
    kept = {k: v for k, v in flat.items() if k != "name" and not k.startswith(MAY_DIFFER)}
    kept = {k: v for k, v in kept.items() if k not in LATER or v != LATER[k]}
    return digest(json.dumps(kept, sort_keys=True), digits)


def digest(text: str, digits: int = 6) -> str:
    """The first hex digits of a text's sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def _label(fields: Mapping[str, object]) -> str:
    """`d_model=64,lr=0.001` as a folder's name: d_model-64_lr-0.001."""
    said = dict(fields)
    if isinstance(flops := fields.get("train.flops"), int | float):
        said["train.flops"] = f"{flops:g}"
    parts = (f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in said.items())
    return re.sub(r"[^\w.+=-]", "-", "_".join(parts))[:60]
