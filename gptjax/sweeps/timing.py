"""How long a sweep will take: a few steps of every compiled program, measured once a device.

Measured figures are kept beside the prepared corpora, so a second plan is free.
"""

import dataclasses
import json
from pathlib import Path

import jax

from gptjax.data.config import cache_root
from gptjax.experiment import Experiment
from gptjax.plan import measure
from gptjax.sweeps.sweep import Point
from gptjax.training.workdir import storage_errors, write_json


def _store(experiment: Experiment) -> Path:
    return cache_root(experiment.data) / "timings.json"


def seconds_per_step(points: tuple[Point, ...], say=print) -> dict[str, float | str]:
    """For each program of these points the seconds of a step, or why it was not measured."""
    found: dict[str, float | str] = {}
    programs = {point.program: point.experiment for point in points}
    for number, (program, experiment) in enumerate(programs.items()):
        store = _store(experiment)
        try:
            known = json.loads(store.read_text())
        except (OSError, ValueError):
            known = {}
        known = known if isinstance(known, dict) else {}
        device = jax.devices()[0].device_kind
        key = f"{program} {jax.device_count()}x{device} jax {jax.__version__}"
        if key not in known:
            say(f"measuring program {number + 1} of {len(programs)}")
            one = dataclasses.replace(
                experiment, train=dataclasses.replace(experiment.train, tokens=0, steps=100)
            )
            seconds, why_not = measure(one)
            if seconds is None:
                found[program] = why_not
                continue
            known[key] = seconds
            with storage_errors(f"write {store}"):
                store.parent.mkdir(parents=True, exist_ok=True)
            write_json(store, known)
        found[program] = known[key]
    return found
