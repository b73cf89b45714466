"""The training curves of a sweep's points, thinned, and what a step took without compilation."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gptjax.errors import BadInput
from gptjax.scaling.plots import trailing_mean
from gptjax.scaling.table import Runs
from gptjax.sweeps.folder import SweepFolder
from gptjax.training.workdir import MetricsLog

CHECKS = 4  # evaluations along a run from which on they are a curve
POINTS = 120  # of a thinned curve, evenly in log steps
SMOOTH = 0.05  # the trailing mean takes this share of the steps so far


@dataclass(frozen=True, eq=False)
class Curve:
    """Training loss along one run, a trailing mean, each [points], and validation loss."""

    flops: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    seconds: float  # of all steps but for what the first took: compilation and the loading of data
    pace: float = np.nan  # seconds of all steps as the median one took, without evaluations, saves
    check_flops: np.ndarray = field(default_factory=lambda: np.zeros(0))  # [evaluations]
    check_loss: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def has_checks(self) -> bool:
        """Whether the run was evaluated often enough for a curve of it."""
        return len(self.check_flops) >= CHECKS

    def line(self, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
        """(FLOPs, loss) of the evaluations or of the training curve."""
        return (self.check_flops, self.check_loss) if held_out else (self.flops, self.loss)


def read_curve(metrics: Path) -> Curve | None:
    """The curve in a metrics.jsonl, nats; None when there are not two finite steps in it."""
    try:
        every = [row for row in MetricsLog(metrics).rows() if "flops" in row]
    except (BadInput, OSError):  # a damaged log costs its curve, not the report
        return None
    rows = [row for row in every if "loss" in row]
    loss = np.array([row["loss"] for row in rows], dtype=float)
    rows = [row for row, good in zip(rows, np.isfinite(loss), strict=True) if good]
    if len(rows) < 2:
        return None
    loss = loss[np.isfinite(loss)]
    flops, tokens, seconds, step = (
        np.array([row.get(name, np.nan) for row in rows], dtype=float)
        for name in ("flops", "tokens", "seconds", "step")
    )
    mean = trailing_mean(loss, SMOOTH)
    chosen = np.unique(np.geomspace(1, len(rows), POINTS).round().astype(int)) - 1
    steps = step[-1] - step[0]
    per_step = (seconds[-1] - seconds[0]) / steps if steps > 0 else np.nan
    gaps = np.diff(seconds) / np.maximum(np.diff(step), 1)
    checks = [row for row in every if np.isfinite(row.get("validation_loss", np.nan))]
    return Curve(
        flops[chosen],
        tokens[chosen],
        mean[chosen],
        float(per_step * step[-1]),
        float(np.median(gaps) * step[-1]),
        np.array([row["flops"] for row in checks], dtype=float),
        np.array([row["validation_loss"] for row in checks], dtype=float),
    )


def read_curves(folder: SweepFolder) -> dict[str, Curve]:
    """By point, for those that have one."""
    found = {name: read_curve(folder.workdir(name) / "metrics.jsonl") for name in folder.points}
    return {name: curve for name, curve in found.items() if curve is not None}


def curve_table(runs: Runs, curves: dict[str, Curve]) -> Runs:
    """The curves of these runs as a table of checkpoints, for approach 1; rows share a name."""
    parts = [
        Runs.of(
            curves[name].loss,
            parameters=runs.parameters[i],
            tokens=curves[name].tokens,
            flops=curves[name].flops,
            names=[name] * len(curves[name].loss),
        )
        for i, name in enumerate(runs.names)
        if name in curves
    ]
    return Runs.concatenate(parts) if parts else Runs.of([])


def shared_with_trunks(folder: SweepFolder, names: list[str]) -> tuple[float, float]:
    """(FLOPs, seconds) that these points did not spend, since they began inside another's run."""
    flops = seconds = 0.0
    for name in names:
        branch = folder.branches.get(name)
        if branch is None:
            continue
        mine, theirs = (_row_at(folder, point, branch.step) for point in (name, branch.trunk))
        if mine is not None and mine == theirs:  # copied to the second, not trained again
            flops, seconds = flops + mine["flops"], seconds + mine["seconds"]
    return flops, seconds


def _row_at(folder: SweepFolder, point: str, step: int) -> dict | None:
    try:
        rows = MetricsLog(folder.workdir(point) / "metrics.jsonl").rows()
    except (BadInput, OSError):
        return None
    return next((row for row in rows if row.get("step") == step and "loss" in row), None)
