"""The notebooks' cells, run in order on small stand-ins for the experiments that they name."""

import dataclasses
import json
import sys
import types
from pathlib import Path

import pytest

from gptjax import registry
from tests.conftest import changed
from tests.sweeps.synthetic import fake, isoflop_sweep

COLABS = Path(__file__).resolve().parent.parent / "colabs"


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Runs a notebook's cells with these functions as the registered ones; its names."""
    monkeypatch.chdir(tmp_path)
    display = types.ModuleType("IPython.display")
    display.Image = display.HTML = str
    ipython = types.ModuleType("IPython")
    ipython.display, ipython.version_info = display, (9, 0)  # matplotlib asks for the latter
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)

    def run(file: str, stand_ins: dict) -> dict:
        registry.names()
        for name, value in stand_ins.items():
            monkeypatch.setitem(registry._functions, name, lambda value=value: value)
        cells = json.loads((COLABS / file).read_text(encoding="utf-8"))["cells"]
        names: dict = {"__name__": "__main__"}
        for number, cell in enumerate(cells):
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or "%pip" in source:
                continue
            assert not cell["outputs"], f"{file}: cell {number} was saved with its output"
            exec(compile(source, f"{file}, cell {number}", "exec"), names)
        return names

    return run


@pytest.fixture
def quick(tiny):
    """A run of a second or two."""
    train = {"steps": 5, "eval_every": 50, "checkpoint_every": 50, "sample_tokens": 0}
    return changed(tiny, model={"num_layers": 1}, train=train)


def test_quickstart(notebook, quick):
    names = notebook("quickstart.ipynb", {"quickstart": quick})
    assert names["result"].figures["steps"] == 5
    assert Path("runs/wider/curves.png").exists()


def test_sweeps(notebook, quick, tmp_path, monkeypatch):
    """The two sweeps are finished beforehand, as after a first run of the cells."""
    import experiments.quickstart

    monkeypatch.setattr(experiments.quickstart, "quickstart", lambda: quick)
    stand_ins = {}
    for seed, (name, gain) in enumerate((("compare_gelu", 1.0), ("compare_swiglu", 1.3))):
        budgets = (4e11, 1.6e12, 6.4e12)
        sweep = isoflop_sweep(name, 5, budgets, 4, laws=("chinchilla",), bootstrap=20)
        stand_ins[name] = dataclasses.replace(sweep, plan_only=True)  # nothing is measured
        fake(tmp_path / "runs" / name, stand_ins[name], gain=gain, seed=seed)
    names = notebook("sweeps.ipynb", stand_ins)
    assert names["report"]._repr_html_().startswith("<iframe srcdoc=")
    assert 0.2 < names["fit"].parameters["alpha"] < 0.5
    (gain,) = (g for g in names["comparison"].gains if g.resource == "flops")
    assert gain.at.low < 1.3 < gain.at.high or abs(gain.at.estimate - 1.3) < 0.15
    assert len(names["result"].states) == 3 and not names["result"].failed
