"""Fits on published runs, on a known truth and on simulated noise: every figure of RESULTS.md.

    python benchmarks/fits.py [muennighoff porian gemstones memoriser bootstrap coverage]

The published runs are the extracts under tests/scaling/data (attributed there). `coverage` takes
about 25 minutes a loss on one core; all others together about 3.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gptjax.scaling import memoriser
from gptjax.scaling.laws import bootstrap, fit_law, get_law, isoflop, profile
from gptjax.scaling.table import Runs
from tests.scaling.published import (
    MUENNIGHOFF,
    MUENNIGHOFF_HELD,
    gemstone_fits,
    muennighoff,
    porian,
)

TRUTH = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}


def run_muennighoff() -> None:
    """The two constants of repetition, the rest held as published; then everything free."""
    fit = fit_law(muennighoff(), "data_constrained", fixed=MUENNIGHOFF_HELD)
    raw = fit.law.to_raw(MUENNIGHOFF)
    loss, predicted = fit.runs.loss, fit.law.predict(raw, fit.inputs())
    r2 = 1 - np.sum((loss - predicted) ** 2) / np.sum((loss - loss.mean()) ** 2)
    print(f"published point: objective {fit.problem().value(raw):.9f}, R2 {r2:.8f}")
    print(f"our optimum    : objective {fit.objective:.9f}, R_D {fit.parameters['R_D']:.2f}, "
          f"R_N {fit.parameters['R_N']:.3f}, R2 {fit.r2:.6f}, {fit.flags}")  # fmt: skip
    free = fit_law(muennighoff(), "data_constrained")
    values = {name: float(f"{v:.4g}") for name, v in free.parameters.items()}
    print(f"all free       : objective {free.objective:.9f}, R2 {free.r2:.6f}, {values}")


def run_porian() -> None:
    """Exponent a of N* by approach 2, for the five experiments of figure 1."""
    for name, (runs, published) in porian().items():
        found = isoflop(runs)
        kept = found.without_outliers
        other = f"{kept.a.estimate:.3f} without {len(found.dropped)} runs" if kept else "-"
        print(f"{name:24s} published {published:.3f} ours {found.a.estimate:.3f} "
              f"[{found.a.low:.3f}, {found.a.high:.3f}], {other}")  # fmt: skip


def run_gemstones() -> None:
    """The objective at every published point of approach 3, and our own optimum."""
    off, gains = [], []
    for entry in gemstone_fits():
        fit = fit_law(entry["runs"], entry["law"], delta=entry["delta"], diagnose=False)
        again = fit.problem().value(entry["raw"])
        off.append(abs(again - entry["objective"]))
        gains.append(1 - fit.objective / again)
        label = entry["subset"] + (" without embedding" if entry["without_embedding"] else "")
        print(f"{label:42s} {entry['columns']:30s} delta {entry['delta']:g} n {len(fit.runs):3d} "
              f"published {entry['objective']:.10f} off {again - entry['objective']:+.0e} ours "
              f"{-100 * gains[-1]:+.5f}% starts {fit.starts_agreeing}/{fit.starts}")  # fmt: skip
    gains = np.array(gains)
    print(f"{len(off)} fits; largest difference {max(off):.1e} (published to 1e-10); improved by "
          f"more than 1e-6 of the objective: {np.sum(gains > 1e-6)}, by more than 0.1%: "
          f"{np.sum(gains > 1e-3)}, most {100 * gains.max():.1f}%; worse: "
          f"{np.sum(gains < -1e-6)}")  # fmt: skip


def run_memoriser() -> None:
    """The q-norm law on the ideal memoriser: floor and exponents against theory."""
    memory, samples = np.round(np.logspace(2, 6, 12)), np.round(np.logspace(3, 8, 12))
    for alpha in (0.3, 0.5, 1.0):
        runs = memoriser.runs(memory, samples, alpha, floor=1.0, gap=3.0)
        for law in ("q_norm", "chinchilla"):
            p = fit_law(runs, law, diagnose=False).parameters
            print(f"alpha {alpha}: {law:10s} floor off {100 * (p['E'] - 1):+.3f}%, exponents off "
                  f"{p['alpha'] - alpha:+.4f} and {p['beta'] - alpha / (1 + alpha):+.4f}, "
                  f"q {p.get('q', 1.0):.2f}")  # fmt: skip


def simulated(rows: int, seed: int, heavy: bool = False) -> Runs:
    """Runs of Chinchilla's law with 1% noise of log loss, Gaussian or Student's t with 3."""
    random = np.random.default_rng(seed)
    N, D = 10 ** random.uniform(7, 10, rows), 10 ** random.uniform(8.5, 11.5, rows)
    loss = TRUTH["E"] + TRUTH["A"] * N ** -TRUTH["alpha"] + TRUTH["B"] * D ** -TRUTH["beta"]
    noise = random.standard_t(3, rows) * 0.7 if heavy else random.standard_normal(rows)
    return Runs.of(loss * np.exp(0.01 * noise), parameters=N, tokens=D)


def run_bootstrap() -> None:
    """Seconds of 1000 resamples of approach 3 on 240 runs."""
    for loss in ("huber_log", "squared_log"):
        fit = fit_law(simulated(240, 0), "chinchilla", loss=loss)
        wall, cpu = time.perf_counter(), time.process_time()
        result = bootstrap(fit, 1000)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{loss}: {wall:.2f} s on the clock, {cpu:.2f} s of CPU, "
              f"{result.unconverged} unconverged")  # fmt: skip


def run_coverage(repeats: int = 200, rows: int = 100, resamples: int = 300) -> None:
    """How often nominal 95% intervals hold the truth."""
    law = get_law("chinchilla")
    for loss, heavy in (("huber_log", False), ("squared_log", False), ("huber_log", True)):
        hits: dict[str, list[bool]] = {}
        for repeat in range(repeats):
            runs = simulated(rows, repeat, heavy)
            fit = fit_law(runs, law, loss=loss, starts=4, diagnose=False)
            boot = bootstrap(fit, resamples, seed=repeat)
            for name, value in TRUTH.items():
                hits.setdefault(f"bootstrap {name}", []).append(value in boot.parameters[name])
                hits.setdefault(f"profile {name}", []).append(value in profile(fit, name))
            share = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
            hits.setdefault("bootstrap a", []).append(share in boot.derived["a"])
            low, high = boot.predict(N=1e10, D=3e11)
            true = law.predict(law.to_raw(TRUTH), fit.inputs(N=1e10, D=3e11))
            hits.setdefault("bootstrap prediction", []).append(bool(low <= true <= high))
        said = ", ".join(f"{name} {100 * np.mean(hit):.1f}%" for name, hit in hits.items())
        print(f"{loss}, {'heavy-tailed' if heavy else 'Gaussian'} noise: {said}", flush=True)


PARTS = {
    "muennighoff": run_muennighoff,
    "porian": run_porian,
    "gemstones": run_gemstones,
    "memoriser": run_memoriser,
    "bootstrap": run_bootstrap,
    "coverage": run_coverage,
}


def main() -> None:
    """Run the parts that are named, all without."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help=", ".join(PARTS))
    for name in parser.parse_args().parts or PARTS:
        began = time.perf_counter()
        print(f"== {name}: {PARTS[name].__doc__}", flush=True)
        PARTS[name]()
        print(f"({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
