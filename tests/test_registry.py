"""Experiments by name; every registered one is sound."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from gptjax import command_line, registry
from gptjax.errors import BadInput
from gptjax.experiment import Experiment
from gptjax.models.build import init_params
from gptjax.parallel.mesh import abstract_mesh
from gptjax.plan import _backward, _batch, make_plan
from gptjax.scaling.flops import count_parameters
from gptjax.training.state import param_specs
from tests.conftest import changed

ROOT = Path(__file__).resolve().parent.parent
NAMES = registry.names()
SWEEPS = [name for name in NAMES if isinstance(registry.get(name), registry.Sweep)]
EXPERIMENTS = [name for name in NAMES if name not in SWEEPS]
# Of the many sizes of published systems, one for every form: of equal ones the last.
SIZED = [name for name in EXPERIMENTS if hasattr(registry._functions[name], "func")]
OWN = [name for name in EXPERIMENTS if name not in SIZED]


def form(name):
    """An experiment's model without its numbers."""
    model = registry.get(name).model
    sizes = ("vocab_size", "context_length", "num_layers", "d_model", "num_heads", "d_ff")
    embedding = dataclasses.replace(model.embedding, logit_scale=1.0)
    return dataclasses.replace(
        model, **dict.fromkeys((*sizes, "norm_epsilon"), 0), embedding=embedding
    )


FORMS = {form(name): name for name in SIZED}
TRACED = OWN + [FORMS[model] for model in FORMS if model not in map(form, OWN)]


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_is_sound(name):
    """It validates with all its points, says what it is, and the ledger counts their parameters."""
    sweep = registry.get(name)
    assert sweep.name == name and registry.describe(name).endswith(".")
    for point in (min(sweep.points, key=key_of_size), max(sweep.points, key=key_of_size)):
        shapes = jax.eval_shape(lambda p=point: init_params(p.experiment.model, jax.random.key(0)))
        assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == point.parameters
        assert Experiment.from_json(point.experiment.to_json()) == point.experiment


def key_of_size(point):
    return point.parameters


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_sound(name):
    """It validates, says what it is, and the ledger counts its parameters."""
    experiment = registry.get(name)
    assert experiment.name == name and experiment.steps > 0
    assert registry.describe(name).endswith(".")
    shapes = jax.eval_shape(lambda: init_params(experiment.model, jax.random.key(0)))
    counted = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    assert counted == count_parameters(experiment.model).total
    assert Experiment.from_json(experiment.to_json()) == experiment


@pytest.mark.parametrize("name", TRACED)
def test_every_gradient_traces_on_an_abstract_mesh(name, shape=(2, 2, 2)):
    """With real widths and layouts, on hardware that is not here."""
    experiment = registry.get(name)
    rows = math.prod(shape[:2]) * experiment.optim.accumulation
    experiment = changed(experiment, data={"batch_size": rows})
    if name in SIZED:  # pieces of attention take long to trace
        experiment = changed(experiment, data={"sequence_length": 512})
    if experiment.mesh_refusal(*shape):  # GPT-2 XL has 25 heads
        shape = (shape[0], shape[1] * shape[2], 1)
        experiment = changed(
            experiment, data={"batch_size": math.prod(shape) * experiment.optim.accumulation}
        )
    assert experiment.mesh_refusal(*shape) is None
    mesh = abstract_mesh(shape)
    params = jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.sharding.NamedSharding(mesh, spec)
        ),
        jax.eval_shape(lambda: init_params(experiment.model, jax.random.key(0))),
        param_specs(experiment.model, mesh),
    )
    with jax.sharding.use_abstract_mesh(mesh):
        gradient = lambda p, b: _backward(experiment, p, b)(1.0)
        (grads,) = jax.eval_shape(gradient, params, _batch(experiment, mesh))
    for got, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True):
        assert got.shape == wanted.shape and got.sharding.spec == wanted.sharding.spec


def test_the_plan_of_a_pod_fits_here():
    plan = make_plan(changed(registry.get("gpt2_1558m"), mesh={"data": 4, "fsdp": 16}), False)
    total = plan.parameters.total
    assert plan.mesh_shape == {"data": 4, "fsdp": 16, "tensor": 1}
    assert plan.param_bytes == pytest.approx(4 * total / 16, rel=0.01)
    assert plan.optimizer_bytes == pytest.approx(2 * plan.param_bytes, rel=0.01)
    assert sum(math.prod(layout[1]) for layout in plan.layouts) == total
    assert plan.seconds is None


def test_names_suffixes_and_neighbours():
    assert "quickstart" in NAMES and len(set(NAMES)) == len(NAMES)
    assert registry.resolve("124m") == "gpt2_124m"
    assert registry.get("start").name == "quickstart"
    with pytest.raises(BadInput, match=r"'m' is ambiguous: .*gpt2_124m"):
        registry.resolve("m")
    with pytest.raises(BadInput, match="did you mean 'quickstart'"):
        registry.resolve("quikstart")
    with pytest.raises(BadInput, match="--list"):
        registry.resolve("zzzz")
    with pytest.raises(BadInput, match="no experiment is named"):
        registry.resolve("")
    for name in (5, None, ["quickstart"]):
        with pytest.raises(BadInput, match="by its name, a string"):
            registry.get(name)


def test_a_name_is_registered_once(monkeypatch):
    monkeypatch.setattr(registry, "_functions", dict(registry._functions))

    def quickstart():
        """Another one."""

    with pytest.raises(BadInput, match=r"two experiments are called quickstart: experiments\.qui"):
        registry.register(quickstart)

    def mine():
        """What it is.

        More.
        """

    assert registry.register(mine) is mine and registry.register(mine) is mine
    assert registry.describe("mine") == "What it is."
    with pytest.raises(BadInput, match=r"mine returned None, n.* an Experiment"):
        registry.get("mine")


def test_sizes_are_registered_one_by_one(monkeypatch):
    monkeypatch.setattr(registry, "_functions", {})

    @registry.register_sizes({"1.3b": "The small one.", "7b": "The large one."})
    def mine(size):
        """What all sizes share.

        And more.
        """
        return registry._functions, size

    assert mine("x")[1] == "x" and registry._functions["mine_7b"]()[1] == "7b"
    assert registry._functions["mine_1.3b"].__doc__ == (
        "The small one.\n\nWhat all sizes share.\n\nAnd more.\n\n"
        "python experiments/run.py --exp=mine_1.3b --dry-run"
    )
    assert registry.families() == {"test_registry": ["mine_1.3b", "mine_7b"]}


def test_every_name_is_of_a_family():
    families = registry.families()
    assert sorted(name for names in families.values() for name in names) == sorted(NAMES)
    assert families["llama"] == ["llama_7b", "llama_13b", "llama_33b", "llama_65b"]
    assert all(registry.describe_family(family).endswith((".", "?")) for family in families)
    assert registry.describe_family("nothing") == ""


def test_a_broken_experiment_costs_only_itself(monkeypatch, capsys, tmp_path):
    def divides():
        """Cannot be made, [/see]."""
        return 1 / 0

    def untrue():
        return registry.get("quickstart").__class__

    known = {"quickstart": registry._functions["quickstart"], "divides": divides, "untrue": untrue}
    monkeypatch.setattr(registry, "_functions", known)
    monkeypatch.setattr(registry, "_broken", {"experiments.mine": "no brackets (mine.py, line 3)"})
    with pytest.raises(BadInput, match=r"divides cannot be made: ZeroDivisionError: .*, line \d+"):
        registry.get("divides")
    with pytest.raises(BadInput, match=r"unknown .*experiments\.mine cannot be imported: no br"):
        registry.get("mine")
    assert command_line.main(["--list"]) == 2
    out, error = capsys.readouterr()
    assert "quickstart" in out and "divides" not in out
    assert [line.split(":")[1].split()[0] for line in error.splitlines()] == [
        "experiments.mine", "divides", "untrue"
    ]  # fmt: skip


def test_every_module_of_experiments_can_be_imported():
    assert not registry.broken()


def test_names_and_configs_need_nothing_heavy():
    heavy = "{'jax', 'optax', 'flax', 'tyro', 'orbax', 'tensorflow_datasets', 'grain'}"
    code = (
        "import sys; from gptjax.command_line import show_list; "
        f"print(show_list(), {heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("\n0 set()\n"), done.stderr
