"""A run's folder as a record of what runs in it: its config, its manifest, and what must agree.

Everything here is checked before a step is computed and before anything in the folder changes.
"""

import dataclasses
import datetime
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

import jax

from gptjax.config_tree import differences
from gptjax.data import load_tokenizer
from gptjax.errors import BadInput, DamagedData
from gptjax.experiment import OF_THE_LOSS, Experiment, upgraded
from gptjax.training.workdir import MetricsLog, read_json, write_json

FOLDERS = ("checkpoints", "tensorboard", "tokenizer")
FILES = ("experiment.json", "manifest.json", "metrics.jsonl", "result.json", "curves.png")


def check_folder(workdir: Path) -> None:
    """Refuse a file where the run needs a folder, the other way round, and damaged metrics."""
    if (workdir / "sweep.json").exists():
        raise BadInput(f"{workdir} holds a sweep, not a single run: give another --workdir")
    for name in FOLDERS + FILES:
        path = workdir / name
        if path.exists() and path.is_dir() != (name in FOLDERS):
            wanted, found = ("folder", "file") if name in FOLDERS else ("file", "folder")
            raise BadInput(
                f"{path} is a {found} where the run needs a {wanted}: move it away, or give "
                "another --workdir"
            )
    MetricsLog(workdir / "metrics.jsonl").rows()


def read_config(workdir: Path) -> dict | None:
    """The config tree of the run in a folder, None where none has begun."""
    path = workdir / "experiment.json"
    if not path.exists():
        if any((workdir / "checkpoints").glob("[0-9]*")):
            raise BadInput(
                f"{workdir} holds checkpoints and no experiment.json: put the file back, or give "
                "another --workdir"
            )
        return None
    tree = read_json(path)
    parts = {f.name for f in dataclasses.fields(Experiment)}
    if not isinstance(tree, dict) or not parts <= tree.keys():
        raise DamagedData(f"{path} is damaged: it holds no experiment; give another --workdir")
    if not all(isinstance(tree[part], dict) for part in parts - {"name"}):
        raise DamagedData(f"{path} is damaged: it holds no experiment; give another --workdir")
    return upgraded(tree)


def load_experiment(workdir: str | Path) -> Experiment:
    """The experiment of a run's folder."""
    tree = read_config(Path(workdir))
    if tree is None:
        others = (Path(workdir) / "config.json").exists()
        source = f"hf:{workdir}"
        hint = f"; for a model of transformers give {source}" if others else ""
        hint += f', in Python gptjax.interop.load("{source}")' if others else ""
        raise BadInput(f"{workdir} holds no run: there is no experiment.json in it{hint}")
    return Experiment.from_json(tree)


def begun_in(workdir: str | Path) -> Experiment | None:
    """The experiment of a folder whose run has a checkpoint to go on from, else None."""
    if not any((Path(workdir) / "checkpoints").glob("[0-9]*")):
        return None
    return load_experiment(workdir)


def check_config(experiment: Experiment, workdir: Path, fork: bool) -> dict | None:
    """Refuse to go on with another config than the folder's, unless asked to fork."""
    before = read_config(workdir)
    changed = [] if before is None or fork else differences(before, experiment.to_json())
    if changed:
        shown = "; ".join(changed[:6]) + (f"; and {len(changed) - 6} more" * (len(changed) > 6))
        raise BadInput(
            f"{workdir} holds a run of another config ({shown}): give another --workdir, or "
            "--fork to go on from its newest checkpoint with the new one"
        )
    return before


def data_changed(experiment: Experiment, before: dict) -> bool:
    """A fork that reads other data, or makes other rows of it, starts from the beginning."""

    def read(tree: dict) -> dict:
        objective = {k: v for k, v in tree["objective"].items() if k not in OF_THE_LOSS}
        return {"data": tree["data"], "objective": objective}

    return bool(differences(read(before), read(experiment.to_json())))


def check_epochs(experiment: Experiment, windows: int) -> None:
    """Refuse a run that its epochs over a corpus of so many windows cannot feed."""
    config = experiment.data
    steps = windows * config.epochs // config.batch_size
    if config.epochs and steps < experiment.steps:
        raise BadInput(
            f"data.epochs = {config.epochs} over {windows} windows feed {steps} steps of "
            f"{config.batch_size}, not {experiment.steps}: raise data.epochs (0: as many as are "
            "needed) or lower train.steps"
        )


def check_steps(experiment: Experiment, workdir: Path, step: int) -> None:
    """Refuse a fork that would end before its beginning."""
    if step > experiment.steps:
        raise BadInput(
            f"the newest checkpoint of {workdir} is step {step}, beyond the {experiment.steps} "
            "steps asked for: raise train.steps or give another --workdir"
        )


def write_config(experiment: Experiment, workdir: Path, step: int) -> None:
    """The config of the run; that of a forked one is kept beside it."""
    path = workdir / "experiment.json"
    tree = experiment.to_json()
    before = read_json(path) if path.exists() else tree
    if differences(before, tree):
        write_json(workdir / f"experiment.until-step-{step}.json", before)
    write_json(path, tree)


def check_manifest(workdir: Path, dataset) -> None:
    """The corpus and the tokenizer must be those that the run began with."""
    path = workdir / "manifest.json"
    if not path.exists():
        return
    tree, now = read_json(path), dataset.manifest
    before = tree.get("data") if isinstance(tree, dict) else None
    keys = ("tokenizer_sha256", "corpus_sha256")
    if not isinstance(before, dict) or not all(isinstance(before.get(k), str) for k in keys):
        raise DamagedData(
            f"{path} is damaged: it names no corpus and tokenizer; give another --workdir, or "
            "move the file away if you know that they are the same"
        )
    for part in ("tokenizer", "corpus"):
        then, there = before[f"{part}_sha256"], now[f"{part}_sha256"]
        if then != there:
            raise BadInput(
                f"the {part} has changed since {workdir} began ({then[:12]} -> {there[:12]}): "
                "give another --workdir"
            )
    if (workdir / "tokenizer").exists():
        load_tokenizer(workdir / "tokenizer", before["tokenizer_sha256"])


def leave_nothing_empty(workdir: Path) -> None:
    """A run that was refused before it wrote anything takes its folder with it."""
    with suppress(OSError):
        alone = {path.name for path in workdir.iterdir()} == {".lock"}
        if alone and jax.process_index() == 0:
            (workdir / ".lock").unlink()
            workdir.rmdir()


def manifest(dataset) -> dict:
    """What this run stands on: versions, device, git revision, corpus and tokenizer."""
    from importlib.metadata import PackageNotFoundError, version

    def version_of(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    packages = ("gptjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    device = jax.devices()[0]
    return {
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in packages},
        "device": {"kind": device.device_kind, "platform": device.platform},
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "host": platform.node(),
        "git": _git_revision(),
        "data": dataset.manifest,
    }


def _git_revision() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
