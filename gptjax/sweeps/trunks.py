"""Shared trunks: runs that differ in length alone are one run until the shortest cools down.

With a constant rate between warm-up and cooldown (arXiv 2405.18392) a run of 1000 steps and one
of 3000 compute the same until the first begins to cool. The longest of such a family is trained
first and keeps its checkpoints where the others branch off; each of them begins with a copy of
that checkpoint and of the rows before it, and ends exactly as if it had been trained alone.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gptjax.errors import DamagedData
from gptjax.experiment import Experiment
from gptjax.sweeps.sweep import Point, identity
from gptjax.training.config import cooldown_start
from gptjax.training.restore import check_step_files
from gptjax.training.workdir import MetricsLog, storage_errors, write_json, write_whole


@dataclass(frozen=True)
class Branch:
    """Where a point leaves the run of another."""

    trunk: str
    step: int


def find_branches(points: Mapping[str, Point]) -> dict[str, Branch]:
    """For every point that can begin inside a longer one: which, and at what step."""
    families: dict[str, list[Point]] = {}
    for point in points.values():
        if point.experiment.optim.schedule == "wsd" and point.experiment.optim.warmup_steps:
            families.setdefault(_family(point.experiment), []).append(point)
    branches = {}
    for family in families.values():
        trunk = max(family, key=lambda point: point.experiment.steps)
        most = _cooldown(trunk.experiment)
        for point in family:
            step = min(_cooldown(point.experiment), most)
            if point is not trunk and step > 0:
                branches[point.name] = Branch(trunk.name, step)
    return branches


def _cooldown(experiment: Experiment) -> int:
    return cooldown_start(experiment.optim, experiment.steps)


def _family(experiment: Experiment) -> str:
    """Equal for experiments that are the same but for their length and their cooldown."""
    alone = {"tokens": 0, "steps": 1, "flops": 0.0, "checkpoint_every": 0}
    train = dataclasses.replace(experiment.train, **alone)
    optim = dataclasses.replace(experiment.optim, decay_fraction=0.0, final_lr=0.0)
    return identity(dataclasses.replace(experiment, train=train, optim=optim), digits=16)


def begin_from_trunk(
    trunk: Path, step: int, workdir: Path, experiment: Experiment, report: Callable[[str], None]
) -> bool:
    """Give a run that has not begun the checkpoint of its trunk; False when there is no good one.

    The checkpoint comes last and by one rename: a kill leaves a run that has not begun.
    """
    source = trunk / "checkpoints" / str(step)
    target = workdir / "checkpoints" / str(step)
    if not source.is_dir() or _steps(workdir):
        return False
    try:
        check_step_files(source, report)
        rows = MetricsLog(trunk / "metrics.jsonl").rows()
    except DamagedData as error:
        report(f"{source} is damaged, so {workdir} begins at its own beginning: {error}")
        return False
    with storage_errors(f"copy {source}"):
        _copy(source, target, [row for row in rows if row["step"] <= step], workdir, experiment)
    return True


def _copy(source: Path, target: Path, rows: list[dict], workdir: Path, experiment: Experiment):
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "experiment.json", experiment.to_json())
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_whole(workdir / "metrics.jsonl", lines.encode())
    partial = target.with_name(f".{target.name}.copy")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    partial.rename(target)


def _steps(workdir: Path) -> list[Path]:
    folder = workdir / "checkpoints"
    return [path for path in folder.glob("[0-9]*") if path.name.isdecimal()]


def ready(workdir: Path, trunk: Path, branch: Branch, trunk_finished: bool) -> bool:
    """Whether a point can begin: its trunk has come far enough, or will never."""
    there = (trunk / "checkpoints" / str(branch.step)).is_dir()
    return there or trunk_finished or bool(_steps(workdir))
