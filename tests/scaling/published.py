"""The published runs under `data/`, as tables."""

import json
from pathlib import Path

import numpy as np

from gptjax.scaling.table import Runs

DATA = Path(__file__).parent / "data"
GEMSTONE_VOCABULARY = 50304

# arXiv 2305.16264, utils/parametric_fit.ipynb: held at the C4 fit, and the two fitted constants
MUENNIGHOFF_HELD = {
    "E": float(np.exp(0.6254804)),
    "A": float(np.exp(6.255414)),
    "B": float(np.exp(7.3049974)),
    "alpha": 0.3526596,
    "beta": 0.3526596,
}
MUENNIGHOFF = {**MUENNIGHOFF_HELD, "R_D": 15.387756, "R_N": 5.309743}


def muennighoff() -> Runs:
    return Runs.read_csv(DATA / "data_constrained.csv")


def porian() -> dict[str, tuple[Runs, float]]:
    """Experiment -> (isoFLOP points, published exponent), as in figure 1 from high to low."""
    runs = Runs.read_csv(DATA / "porian.csv.gz")
    out = {}
    for name in dict.fromkeys(runs.columns["experiment"].tolist()):
        part = runs.select(runs.columns["experiment"] == name)
        out[name] = part, float(part.columns["published_a"][0])
    return out


def gemstone_fits() -> list[dict]:
    """Each published fit of approach 3 with its `runs`, its `law` and the `raw` point."""
    table = Runs.read_csv(DATA / "gemstones.csv.gz")
    fits = json.loads((DATA / "gemstones_published.json").read_text(encoding="utf-8"))
    for fit in fits:
        runs = table.select(table.columns["subset"] == fit["subset"])
        if fit["without_embedding"]:
            inner = runs.parameters - GEMSTONE_VOCABULARY * runs.columns["width"]
            runs = Runs.of(runs.loss, parameters=inner, tokens=runs.tokens, names=runs.names)
        fit["runs"], fit["law"] = runs, f"power_sum:{fit['columns']}"
        fit["raw"] = np.array([fit["floor"], *fit["coefficients"], *fit["exponents"]])
    return fits
