"""What a run would be, before any compute is spent: the report of --dry-run.

Everything but the time is computed on shapes alone, so the plan of a pod fits on a laptop. The
activations are those that the traced backward pass really keeps, with their layouts.
"""

import math
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.data.check import check as check_data
from gptjax.experiment import Experiment, flatten
from gptjax.models.decoder import param_axes
from gptjax.parallel import DEFAULT_RULES
from gptjax.parallel.mesh import AXES, abstract_mesh, check_mesh, make_mesh
from gptjax.scaling.flops import Flops, Parameters, count_flops, count_parameters
from gptjax.training.loop import to_mesh
from gptjax.training.metrics import clock, peak_flops, short
from gptjax.training.optimizer import make_optimizer, path_name
from gptjax.training.state import abstract_params, init_state, param_specs
from gptjax.training.step import loss_sums, make_train_step

MEASURED_STEPS = 3
CPU_LIMIT = 5e11  # FLOPs of a step beyond which a CPU is not asked for three of them


@dataclass(frozen=True)
class Plan:
    """Bytes are per device; `seconds` is None where three steps could not be measured."""

    experiment: Experiment
    mesh_shape: dict[str, int]
    devices_here: int
    parameters: Parameters
    flops: Flops
    kernel: str
    param_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    layouts: list[tuple[str, tuple[int, ...], tuple, str, int]]
    seconds: float | None
    not_measured: str


def _bytes(leaf, mesh) -> int:
    """Bytes of one array on one device."""
    spec = leaf.sharding.spec if leaf.sharding is not None else ()
    axes = [axis for part in spec if part for axis in ((part,) if isinstance(part, str) else part)]
    ways = math.prod(mesh.shape[axis] for axis in axes)
    return math.prod(leaf.shape) * leaf.dtype.itemsize // ways


def _tree_bytes(tree, mesh) -> int:
    return sum(_bytes(leaf, mesh) for leaf in jax.tree.leaves(tree))


def make_plan(experiment: Experiment, measure: bool = True) -> Plan:
    """The plan of a run on its mesh, which need not exist here; its data must."""
    experiment.validate()
    experiment.check_vocabulary(check_data(experiment.data))
    devices = jax.device_count()
    planned = max(devices, math.prod(experiment.mesh.shape(1)))
    check_mesh(experiment.mesh, planned, experiment.mesh_refusal, devices)
    shape = experiment.mesh.shape(planned)
    mesh = abstract_mesh(shape)
    config = experiment.model
    specs, axes = param_specs(config, mesh), param_axes(config)
    params = jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=jax.sharding.NamedSharding(mesh, spec)
        ),
        abstract_params(config),
        specs,
    )
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    layouts = [
        (path_name(path), leaf.shape, name, str(leaf.sharding.spec), _bytes(leaf, mesh))
        for (path, leaf), name in zip(leaves, names, strict=True)
    ]
    optimizer = make_optimizer(experiment.optim, experiment.steps)
    with jax.sharding.use_abstract_mesh(mesh):
        opt_state = jax.eval_shape(optimizer.init, params)
        kept = jax.eval_shape(
            lambda p, b: _backward(experiment, p, b), params, _batch(experiment, mesh)
        )
    seconds, why_not = None, "not asked for"
    if measure:
        seconds, why_not = _measure(experiment, shape, devices)
    return Plan(
        experiment=experiment,
        mesh_shape=dict(zip(AXES, shape, strict=True)),
        devices_here=devices,
        parameters=count_parameters(config),
        flops=count_flops(config, experiment.data.sequence_length),
        kernel=kernel_of(experiment),
        param_bytes=_tree_bytes(params, mesh),
        optimizer_bytes=_tree_bytes(opt_state, mesh),
        activation_bytes=max(_tree_bytes(kept, mesh) - _tree_bytes(params, mesh), 0),
        layouts=layouts,
        seconds=seconds,
        not_measured=why_not,
    )


def kernel_of(experiment: Experiment) -> str:
    """The attention kernel that this backend would run."""
    from gptjax.ops.attention import choose_kernel

    model, data = experiment.model, experiment.data
    return choose_kernel(
        model.attention.kernel,
        jax.default_backend(),
        model.attention.pattern,
        data.document_attention == "within",
        model.positions == "alibi",
        data.sequence_length,
        jnp.dtype(model.compute_dtype),
    )


def _batch(experiment: Experiment, mesh):
    """A microbatch of the experiment as shapes, split over the mesh."""
    data = experiment.data
    shape = (data.batch_size // experiment.optim.accumulation, data.sequence_length)
    sharding = jax.sharding.NamedSharding(mesh, jax.P(DEFAULT_RULES.batch))
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
    names = ["tokens", "targets"]
    names += ["segments"] * (data.document_attention == "within")
    names += ["positions"] * (data.positions == "document")
    return dict.fromkeys(names, tokens)


def _backward(experiment: Experiment, params, batch):
    """What the forward pass keeps for the backward pass: a function whose leaves are arrays."""
    key = jax.random.key(0) if experiment.model.dropout else None
    sums = lambda p: loss_sums(experiment.model, experiment.objective, p, batch, key)
    return jax.vjp(lambda p: sums(p).total, params)[1]


def measure(experiment: Experiment) -> tuple[float | None, str]:
    """Seconds of a step on the devices that are here, or None and why there is no figure."""
    devices = jax.device_count()
    planned = max(devices, math.prod(experiment.mesh.shape(1)))
    return _measure(experiment, experiment.mesh.shape(planned), devices)


def _measure(experiment: Experiment, shape, devices: int) -> tuple[float | None, str]:
    """Seconds of a step, the median of three after one that compiles; or why there is none."""
    if math.prod(shape) > devices:
        return None, f"it takes {math.prod(shape)} devices and there are {devices}"
    flops = count_flops(experiment.model, experiment.data.sequence_length).training
    flops *= experiment.tokens_per_step
    if jax.default_backend() == "cpu" and flops > CPU_LIMIT:
        return None, f"a step of {short(flops, 'FLOP')} is too large for this CPU"
    if jax.process_count() > 1:
        return None, "several processes are running"
    mesh = make_mesh(experiment.mesh)
    optimizer = make_optimizer(experiment.optim, experiment.steps)
    state = init_state(experiment.model, optimizer, 0, mesh)
    rng = np.random.default_rng(0)
    rows = {
        name: np.zeros(leaf.shape, np.int32)
        for name, leaf in _batch(experiment, abstract_mesh(shape)).items()
    }
    full = (experiment.data.batch_size, experiment.data.sequence_length)
    vocab = experiment.model.vocab_size
    rows = {name: rng.integers(0, vocab, full, dtype=np.int32) for name in rows}
    for name in ("segments", "positions"):
        if name in rows:
            rows[name] = np.zeros(full, np.int32)
    times = []
    with jax.set_mesh(mesh):
        step = make_train_step(experiment)
        batch = to_mesh(rows, mesh)
        for _ in range(MEASURED_STEPS + 1):
            begun = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - begun)
    return sorted(times[1:])[MEASURED_STEPS // 2], ""


def show(plan: Plan) -> None:
    """Print the plan."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 140
    e, c, f = plan.experiment, plan.parameters, plan.flops

    def table(title: str, *columns: str) -> Table:
        t = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for i, column in enumerate(columns):
            t.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
        return t

    config = Table(title=f"{e.name}: config", title_justify="left", box=None, pad_edge=False)
    for _ in range(2):
        config.add_column(overflow="fold")
    for name, value in flatten(e.to_json()).items():
        config.add_row(name, str(value))
    console.print(config)

    groups = table("\nparameters", "group", "count", "share")
    for name, count in c.groups().items():
        groups.add_row(name, f"{count:,}", f"{100 * count / c.total:.1f}%")
    groups.add_row("total", f"{c.total:,}", "100.0%")
    groups.add_row("non-embedding", f"{c.non_embedding:,}", "")
    console.print(groups)

    flops = table("FLOPs per token", "part", "forward", "training")
    for name in ("projections", "attention", "mlp", "head"):
        flops.add_row(name, short(getattr(f, name)), short(3 * getattr(f, name)))
    flops.add_row("total", short(f.forward), short(f.training))
    console.print(flops)
    rule = 6 * c.total
    console.print(
        f"training: {e.steps} steps x {e.tokens_per_step} tokens = {short(e.tokens)} tokens, "
        f"{short(f.training * e.tokens, 'FLOP')} ({short(rule * e.tokens, 'FLOP')} by 6ND, "
        f"{100 * (rule / f.training - 1):+.1f}%); attention kernel here: {plan.kernel}"
    )

    where = table(
        "\nparameters on the mesh", "parameter", "shape", "axes", "layout", "bytes/device"
    )
    for name, shape, axes, spec, size in plan.layouts:
        dims = "x".join(str(n) for n in shape)
        names = ",".join(axis or "-" for axis in axes)
        where.add_row(name, dims, names, spec, short(size, "B"))
    console.print(where)
    mesh = " x ".join(f"{axis}={n}" for axis, n in plan.mesh_shape.items())
    console.print(f"mesh: {mesh} ({plan.devices_here} device(s) here)")
    gradient = plan.param_bytes
    memory = table("memory per device", "what", "bytes")
    memory.add_row("parameters", short(plan.param_bytes, "B"))
    memory.add_row("gradients", short(gradient, "B"))
    memory.add_row("optimizer", short(plan.optimizer_bytes, "B"))
    memory.add_row("kept for the backward pass", short(plan.activation_bytes, "B"))
    total = plan.param_bytes + gradient + plan.optimizer_bytes + plan.activation_bytes
    memory.add_row("sum", short(total, "B"))
    console.print(memory)
    if plan.seconds is None:
        console.print(f"expected time: not measured ({plan.not_measured})")
        return
    rate = f.training * e.tokens_per_step / plan.seconds
    kind = jax.devices()[0].device_kind
    share = ""
    if peak_flops(kind):
        of = 100 * rate / (peak_flops(kind) * math.prod(plan.mesh_shape.values()))
        share = f", {of:.0f}% of peak"
    console.print(
        f"expected time: {clock(plan.seconds * e.steps)} ({1000 * plan.seconds:.0f} ms a step, "
        f"{short(rate, 'FLOP/s')}{share}, measured over {MEASURED_STEPS} steps on {kind})"
    )
