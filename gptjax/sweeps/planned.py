"""What a sweep is planned for, and the files in its folder that keep it to that.

WORKDIR/plan.json holds the options, the budgets that were found for them and the base they were
found for, WORKDIR/tuned.json the rates. Whoever comes second takes what the first wrote.
"""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gptjax.config_tree import MAY_DIFFER, flatten
from gptjax.errors import BadInput, DamagedData
from gptjax.scaling.checks import check_number
from gptjax.scaling.planner import check_budgets
from gptjax.scaling.rates import Tuned
from gptjax.sweeps.sweep import Sweep
from gptjax.sweeps.tuning import Tuning
from gptjax.training.workdir import read_json, storage_errors, write_json


@dataclass(frozen=True)
class Wish:
    """What a sweep is planned anew for; all at nothing: it stays as it is registered."""

    minutes: float = 0.0  # on this machine, from the first worker to the report
    budget: float = 0.0  # FLOPs of all runs
    tune: bool = False
    tuning: Tuning = dataclasses.field(default_factory=Tuning)

    @property
    def any(self) -> bool:
        return bool(self.minutes or self.budget or self.tune)

    @property
    def suffix(self) -> str:
        """What a folder of such a plan is called after the sweep's name."""
        parts = [f"-{self.minutes:g}min"] if self.minutes else []
        parts += [f"-{self.budget:g}FLOP".replace("+", "")] if self.budget else []
        return "".join(parts + ["-tuned"] * self.tune)

    @property
    def options(self) -> str:
        """As it is typed."""
        parts = [f"--minutes={self.minutes:g}"] if self.minutes else []
        parts += [f"--budget={self.budget:g}"] if self.budget else []
        return " ".join(parts + ["--tune"] * self.tune)

    @property
    def saved(self) -> dict:
        """As it stands in a folder."""
        tuning = dataclasses.asdict(self.tuning) if self.tune else None
        return json.loads(json.dumps({"options": self.options, "tuning": tuning}))

    def check(self, sweep: Sweep) -> None:
        """BadInput for what this sweep cannot be planned for."""
        if not isinstance(self.tune, bool):
            raise BadInput(f"tune is {self.tune!r}; give True or False")
        if not isinstance(self.tuning, Tuning):
            raise BadInput(f"tuning is {self.tuning!r}; give a Tuning, such as Tuning(shapes=2)")
        if not self.any:
            raise BadInput("give minutes, a budget in FLOPs, or tune, to plan a sweep anew")
        for name in ("minutes", "budget"):
            if getattr(self, name) != 0:
                check_number(f"--{name}", getattr(self, name))
        if self.minutes and self.budget:
            raise BadInput("--minutes and --budget are two answers to one question; give one")
        self.tuning.validate()
        if sweep.design is None:
            raise BadInput(
                f"{self.options}: {sweep.name} has no design to plan anew, its rows are written "
                "one by one; a sweep of an IsoFlops has one, such as sweep_cpu_10min"
            )
        if sweep.plan_only and (self.minutes or self.tune):
            raise BadInput(
                f"{self.options}: {sweep.name} is a plan, too large to be run; --budget=FLOPS "
                "--dry-run shows it for another budget"
            )


# ---------------------------------------------------------------- one writer


@contextlib.contextmanager
def locked(file: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file alone; on a file system without locks nothing is held.

    `waiting()` is called when another process holds it.
    """
    with contextlib.ExitStack() as stack:
        with storage_errors(f"write {file}"):
            file.parent.mkdir(parents=True, exist_ok=True)
            opened = stack.enter_context(open(file, "a"))
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def write_plan(path: Path, sweep: Sweep, wish: Wish, ratio: float) -> None:
    """Keep the folder to a plan, unless it has one by now."""
    with locked(path / ".plan.lock"):
        if read_plan(path) is None:
            saved = {"budgets": list(sweep.design.budgets), "ratio": ratio}
            tree = {"sweep": sweep.name, **wish.saved, **saved, "base": base_fields(sweep)}
            write_json(path / "plan.json", tree)


def write_tuned(path: Path, sweep: Sweep, base: dict, rounds: int) -> None:
    """Keep the folder to tuned rates and their budgets, unless it has some by now."""
    with locked(path / ".plan.lock"):
        if not (path / "tuned.json").exists():
            found = {"found": sweep.design.rates.to_json(), "budgets": list(sweep.design.budgets)}
            write_json(path / "tuned.json", {**found, "rounds": rounds, "base": base})


# ---------------------------------------------------------------- reading


def read_plan(path: Path) -> dict | None:
    """What a folder was planned for; None where it was not; DamagedData for anything else."""
    file = path / "plan.json"
    tree = _read(file)
    if tree is None:
        return None
    for name, kind in (("sweep", str), ("options", str), ("tuning", dict | None)):
        if name not in tree or not isinstance(tree[name], kind):
            raise _damaged(file, f"its {name}")
    with _damage(file):
        if tree["tuning"] is not None:
            check_number("ratio", tree.get("ratio"))
    return tree


def read_tuned(path: Path) -> tuple[Tuned, tuple[float, ...], dict] | None:
    """(rates, budgets, fields of the base) that tuning found, None where it has not ended."""
    file = path / "tuned.json"
    tree = _read(file)
    if tree is None:
        return None
    with _damage(file):
        found = Tuned.from_json(tree.get("found"))
    return found, tuple(tree["budgets"]), tree.get("base", {})


def _read(file: Path) -> dict | None:
    if not file.exists():
        return None
    try:
        tree = read_json(file)
    except DamagedData:
        raise _damaged(file, "it is no JSON") from None
    if not isinstance(tree, dict):
        raise _damaged(file, "it is no object")
    if not isinstance(tree.get("base", {}), dict):
        raise _damaged(file, "its base")
    with _damage(file):
        check_budgets(tree.get("budgets"))
    return tree


@contextlib.contextmanager
def _damage(file: Path) -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        raise _damaged(file, str(error)) from None


def _damaged(file: Path, what: str) -> DamagedData:
    where = " on the budgets in sweep.json" if (file.parent / "sweep.json").exists() else ""
    return DamagedData(
        f"{file} is damaged ({what}): remove it, and the command it was planned with goes on{where}"
    )


def base_fields(sweep: Sweep) -> dict[str, object]:
    """What a plan was made for: the fields of base and design that change results."""
    design = dataclasses.asdict(dataclasses.replace(sweep.design, budgets=()))
    flat = flatten(sweep.base.to_json()) | flatten({"design": design})
    left_out = ("name", "design.budgets")
    kept = {k: v for k, v in flat.items() if k not in left_out and not k.startswith(MAY_DIFFER)}
    return json.loads(json.dumps(kept, default=repr))


def check_base(file: Path, saved: dict, sweep: Sweep) -> None:
    """BadInput when a file was written for another base or design, with the first difference."""
    now = base_fields(sweep)
    other = [key for key in now if key in saved and saved[key] != now[key]]
    if other:
        more = f" (and {len(other) - 1} more fields)" if len(other) > 1 else ""
        raise BadInput(
            f"{file} was written for {other[0]} {saved[other[0]]!r}, not {now[other[0]]!r}{more}: "
            "give another --workdir"
        )


def check_folder(sweep: Sweep, path: Path, wish: Wish) -> dict | None:
    """The plan in a folder, None where there is none; BadInput when it is another's."""
    with storage_errors(f"use {path}"):
        if path.exists() and not path.is_dir():
            raise BadInput(f"{path} is a file, not a folder; give another --workdir")
        if (path / "experiment.json").exists():
            raise BadInput(f"{path} holds a single run, not a sweep; give another --workdir")
    saved = read_plan(path)
    if saved is None:
        return None
    if {"sweep": sweep.name, **wish.saved} != {k: saved[k] for k in ("sweep", *wish.saved)}:
        raise BadInput(
            f"{path} was planned for {saved['sweep']} with {saved['options']}: the same goes on; "
            "for another plan give another --workdir"
        )
    check_base(path / "plan.json", saved.get("base", {}), sweep)
    return saved


def with_budgets(sweep: Sweep, budgets: tuple[float, ...]) -> Sweep:
    """The sweep on other budgets."""
    return sweep.planned(design=dataclasses.replace(sweep.design, budgets=budgets))


def with_tuned(sweep: Sweep, path: Path) -> Sweep | None:
    """The sweep with the rates in a folder, None where tuning has not ended."""
    found = read_tuned(path)
    if found is None:
        return None
    rates, budgets, base = found
    check_base(path / "tuned.json", base, sweep)
    with _damage(path / "tuned.json"):
        design = dataclasses.replace(sweep.design, rates=rates, budgets=budgets)
        tuned = sweep.planned(design=design)
        tuned.validate()
    return tuned


def as_begun(sweep: Sweep, path: Path) -> Sweep | None:
    """The sweep on the budgets that a folder's sweep.json runs; None when that is no plan of it."""
    try:
        points = read_json(path / "sweep.json")["points"]
        budgets = tuple(dict.fromkeys(float(row["group"]) for row in points))
        found = with_budgets(sweep, budgets)
        same = [point.name for point in found.points] == [row["name"] for row in points]
    except (BadInput, ValueError, TypeError, KeyError):
        return None
    return found if same else None


def recovered(sweep: Sweep, path: Path, wish: Wish) -> Sweep | None:
    """The sweep that a folder without its plan.json has begun; None where none was begun.

    BadInput when it is not a plan of this design.
    """
    if not (path / "sweep.json").exists():
        return None
    tuned = with_tuned(sweep, path) if wish.tune else None
    found = as_begun(tuned or sweep, path)
    as_registered = found and found.design.budgets == tuple(sweep.design.budgets)
    if found is None or as_registered or (wish.tune and tuned is None):
        raise BadInput(
            f"{path} holds a sweep that was not planned with {wish.options}; give another --workdir"
        )
    return found


def default_folder(sweep: Sweep, wish: Wish) -> Path:
    """Where a sweep is run when no folder is given."""
    return Path("runs") / f"{sweep.name}{wish.suffix}"
