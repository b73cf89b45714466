"""What a run would be, before any compute is spent: the report of --dry-run.

Everything but the time is computed on shapes alone, so the plan of a pod fits on a laptop. The
activations are those that the traced backward pass really keeps, with their layouts.
"""

import dataclasses
import math
import time
from collections import Counter
from dataclasses import dataclass, replace

import jax

from gptjax.config_tree import flatten
from gptjax.data.check import check as check_data
from gptjax.data.config import cache_root
from gptjax.data.prepare import training_tokens
from gptjax.experiment import Experiment
from gptjax.memory import Need, device_memory, verdict
from gptjax.models.build import param_axes
from gptjax.ops.shards import on_platform
from gptjax.parallel import DEFAULT_RULES
from gptjax.parallel.mesh import AXES, REST, abstract_mesh, check_mesh, make_mesh
from gptjax.planned_kernels import (
    interpreted,
    kernels_line,
    kernels_of,
    sparse_line,
    target_platform,
)
from gptjax.scaling.flops import Flops, Parameters, count_parameters
from gptjax.training.config import warmup_length
from gptjax.training.example import example_batch
from gptjax.training.loop import to_mesh
from gptjax.training.metrics import clock, peak_flops, short
from gptjax.training.optimizer import make_optimizer, path_name
from gptjax.training.state import abstract_params, init_state, param_specs
from gptjax.training.step import loss_sums, make_train_step

MEASURED_STEPS = 3
REPEATS = 4  # epochs that are worth about as much as new text (arXiv 2305.16264)
CPU_LIMIT = 5e11  # FLOPs of a step beyond which a CPU is not asked for three of them


@dataclass(frozen=True)
class Plan:
    """Bytes are per device; `seconds` is None where three steps could not be measured.

    `device_bytes` is what one device here has, where it is known; `corpus_tokens` those of an
    epoch and whether they have been counted.
    """

    experiment: Experiment
    mesh_shape: dict[str, int]
    devices_here: int
    parameters: Parameters
    flops: Flops
    kernel: str
    param_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    device_bytes: int | None
    corpus_tokens: tuple[int, bool] | None
    layouts: list[tuple[str, tuple[int, ...], tuple, str, int]]
    seconds: float | None
    not_measured: str

    @property
    def need(self) -> Need:
        """What one device must hold; gradients are as large as the parameters."""
        return Need(2 * self.param_bytes + self.optimizer_bytes, self.activation_bytes)


def _bytes(leaf, mesh) -> int:
    """Bytes of one array on one device."""
    spec = leaf.sharding.spec if leaf.sharding is not None else ()
    axes = [axis for part in spec if part for axis in ((part,) if isinstance(part, str) else part)]
    ways = math.prod(mesh.shape[axis] for axis in axes)
    return math.prod(leaf.shape) * leaf.dtype.itemsize // ways


def _tree_bytes(tree, mesh) -> int:
    return sum(_bytes(leaf, mesh) for leaf in jax.tree.leaves(tree))


def _bytes_beside(params, kept, mesh) -> int:
    """Bytes of what is kept on one device, without the parameters that are among it."""
    there = Counter((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params))
    total = 0
    for leaf in jax.tree.leaves(kept):
        if there[leaf.shape, leaf.dtype]:
            there[leaf.shape, leaf.dtype] -= 1
        else:
            total += _bytes(leaf, mesh)
    return total


def make_plan(experiment: Experiment, measure: bool = True) -> Plan:
    """The plan of a run on its mesh, which need not exist here; its data must."""
    experiment.validate()
    experiment.check_vocabulary(check_data(experiment.data), experiment.extra_ids)
    devices = jax.device_count()
    planned = max(devices, math.prod(experiment.mesh.shape(1)))
    check_mesh(experiment.mesh, planned, experiment.mesh_refusal, devices)
    shape = experiment.mesh.shape(planned)
    mesh = on_platform(abstract_mesh(shape), target_platform(experiment, shape, devices))
    model = experiment.model  # its parameters do not depend on a kernel that may be absent here
    config = replace(model, attention=replace(model.attention, kernel="auto"))
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
        kernel = kernels_of(experiment)
    seconds, why_not = None, "not asked for"
    if measure:
        seconds, why_not = _measure(experiment, shape, devices)
    return Plan(
        experiment=experiment,
        mesh_shape=dict(zip(AXES, shape, strict=True)),
        devices_here=devices,
        parameters=count_parameters(config),
        flops=experiment.step_flops / experiment.tokens_per_step,
        kernel=kernel,
        param_bytes=_tree_bytes(params, mesh),
        optimizer_bytes=_tree_bytes(opt_state, mesh),
        activation_bytes=_bytes_beside(params, kept, mesh),
        device_bytes=device_memory(),
        corpus_tokens=training_tokens(experiment.data),
        layouts=layouts,
        seconds=seconds,
        not_measured=why_not,
    )


def _batch(experiment: Experiment, mesh):
    """A microbatch of the experiment as shapes, split over the mesh."""
    rows = experiment.data.batch_size // experiment.optim.accumulation
    sharding = jax.sharding.NamedSharding(mesh, jax.P(DEFAULT_RULES.batch))

    def of(x):
        return jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=sharding)

    return jax.tree.map(of, example_batch(experiment, 1))


def _backward(experiment: Experiment, params, batch):
    """What the forward pass keeps for the backward pass: a function whose leaves are arrays."""
    key = jax.random.key(0) if experiment.model.random else None
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
    flops = experiment.step_flops.training
    if jax.default_backend() == "cpu" and flops > CPU_LIMIT:
        return None, f"a step of {short(flops, 'FLOP')} is too large for this CPU"
    if interpreted(experiment):
        return None, "the attention kernel block_list is interpreted here, which is slow"
    if jax.process_count() > 1:
        return None, "several processes are running"
    mesh = make_mesh(experiment.mesh)
    optimizer = make_optimizer(experiment.optim, experiment.steps)
    state = init_state(experiment.model, optimizer, 0, mesh)
    times = []
    with jax.set_mesh(mesh):
        step = make_train_step(experiment)
        batch = to_mesh(example_batch(experiment), mesh)
        for _ in range(MEASURED_STEPS + 1):
            begun = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - begun)
    return sorted(times[1:])[MEASURED_STEPS // 2], ""


PARTS = {
    "encoder_decoder": {"cross": "attention to the encoder", "encoder": "the encoder"},
    "task_modules": {"encoder": "what is read both ways"},
}
SIDES = {"encoder_decoder": ("for the encoder", "for the decoder")}


def rows_line(e: Experiment) -> str:
    """What the objective makes of windows of text."""
    raw, tokens, predicted, source, _, _ = e.lengths
    first, second = SIDES.get(e.model.kind, ("read both ways", "read in order"))
    sides = [f"{source} {first}"] * bool(source) + [f"{tokens} {second}"] * bool(tokens)
    read = " and ".join(sides) if source else f"{tokens}"
    return (
        f"objective {e.objective.kind}: of every {raw} tokens of text a row of {read}, of which "
        f"{predicted} places are compared with a target"
    )


def settled(plan: Plan) -> dict[str, str]:
    """What stands behind fields whose value means that it follows from others, by dotted name."""
    e, shape = plan.experiment, plan.mesh_shape
    follows = {
        "model.num_kv_heads": (0, e.model.kv_heads),
        "model.attention.head_dim": (0, e.model.head_size),
        "model.d_ff": (0, e.model.ff_size),
        "model.attention.kernel": ("auto", plan.kernel),
        "data.cache_dir": ("", cache_root(e.data)),
        "train.tokens": (0, e.tokens),
        "train.steps": (0, e.steps),
        "train.flops": (0, f"{e.flops:.5g}"),
        "train.eval_every": (0, e.every("eval")),
        "train.checkpoint_every": (0, e.every("checkpoint")),
        "optim.warmup_steps": (0, warmup_length(e.optim, e.steps)),
        "mesh.data": (REST, shape["data"]),
    }
    if e.model.parametrization == "mup":
        follows["model.attention.base_head_dim"] = (0, e.model.head_size)
    if e.optim.name == "muon":
        follows["optim.vector_lr"] = (0, e.optim.lr)
    means = {
        "model.attention.base_head_dim": (0, "of muP alone"),
        "optim.vector_lr": (0, "of Muon alone"),
        "model.experts.count": (0, "none: every layer is dense"),
        "model.experts.capacity": (0, "as many as come: no token is dropped"),
        "data.max_bytes": (0, "all of the corpus"),
        "data.epochs": (0, "as many as the run needs"),
        "data.workers": (0, "none reads ahead"),
        "train.keep_checkpoints": (0, "all"),
        "train.sample_prompt": ("", "the start of a document"),
        "train.sample_tokens": (0, "no sample"),
        "train.sample_top_k": (0, "all"),
        "optim.clip_norm": (0, "no clipping"),
        "objective.chunk_tokens": (0, "as many as 128 MB of logits hold"),
    }
    values = flatten(e.to_json())
    said = {n: f"{mark!r}: {text}" for n, (mark, text) in means.items() if values[n] == mark}
    said |= {n: f"{text} (derived)" for n, (mark, text) in follows.items() if values[n] == mark}
    by = "train.steps" if e.train.steps else "train.flops"
    if e.train.tokens and (e.train.steps or e.train.flops):
        said["train.tokens"] = f"{e.tokens} (by {by}, in the place of {e.train.tokens})"
    if e.train.flops:
        place = f"by {by}, in the place of" if e.train.steps else "in whole steps, for"
        said["train.flops"] = f"{e.flops:.5g} ({place} {e.train.flops:g})"
    if e.data.tokenizer in ("bytes", "symbols"):
        ids = 257 if e.data.tokenizer == "bytes" else e.data.symbols + 1
        said["data.vocab_size"] = f"{ids} (derived)"
    return said


def epochs_line(plan: Plan) -> str:
    """How often the run reads its corpus, in words."""
    e = plan.experiment
    if plan.corpus_tokens is None:
        return f"corpus {e.data.corpus}: how large it is shows once it is fetched and prepared"
    size, counted = plan.corpus_tokens
    epochs = e.tokens / max(size, 1)
    about = "" if counted else "about "
    line = (
        f"corpus {e.data.corpus}: {about}{short(size)} training tokens"
        f"{'' if counted else ', estimated'}; the run reads {about}{epochs:.3g} epochs of them"
    )
    if epochs > REPEATS:
        line += f" (beyond {REPEATS} a repeated token is worth less than a new one)"
    return line


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
    said = settled(plan)
    for name, value in flatten(e.to_json()).items():
        if not name.startswith("data.facts.") or e.data.corpus == "zipf_facts":
            config.add_row(name, said.get(name, str(value)))
    console.print(config)

    groups = table("\nparameters", "group", "count", "share")
    for name, count in c.groups().items():
        groups.add_row(name, f"{count:,}", f"{100 * count / c.total:.1f}%")
    groups.add_row("total", f"{c.total:,}", "100.0%")
    if c.resting:
        groups.add_row("active in one token", f"{c.active:,}", f"{100 * c.active / c.total:.1f}%")
    groups.add_row("non-embedding", f"{c.non_embedding:,}", "")
    console.print(groups)

    flops = table("FLOPs per token of text", "part", "forward", "training")
    names = PARTS.get(e.model.kind, {})
    for field in dataclasses.fields(f):
        if count := getattr(f, field.name):
            flops.add_row(
                PARTS.get(e.model.kind, {}).get(field.name, field.name),
                short(count),
                short(3 * count),
            )
    flops.add_row("total", short(f.forward), short(f.training))
    console.print(flops)
    rule = 6 * c.active * e.passed_per_step / e.tokens_per_step
    shape = tuple(plan.mesh_shape.values())
    kernels = kernels_line(e, shape, plan.devices_here, plan.kernel)
    console.print(
        f"training: {e.steps} steps x {e.tokens_per_step} tokens = {short(e.tokens)} tokens, "
        f"{short(f.training * e.tokens, 'FLOP')} ({short(rule * e.tokens, 'FLOP')} by 6ND, "
        f"{100 * (rule / f.training - 1):+.1f}%); {kernels}"
    )

    if e.objective.kind != "next_token":
        console.print(rows_line(e))
    if sparse := sparse_line(e, shape, plan.devices_here):
        console.print(sparse)
    console.print(epochs_line(plan))

    where = table(
        "\nparameters on the mesh", "parameter", "shape", "axes", "layout", "bytes/device"
    )
    for name, shape, axes, spec, size in plan.layouts:
        dims = "x".join(str(n) for n in shape)
        names = ",".join(axis or "-" for axis in axes)
        where.add_row(name, dims, names, spec, short(size, "B"))
    console.print(where)
    mesh = " x ".join(f"{axis}={n}" for axis, n in plan.mesh_shape.items())
    console.print(f"mesh: {mesh} ({plan.devices_here} device{'s' * (plan.devices_here > 1)} here)")
    memory = table("memory per device", "what", "bytes")
    memory.add_row("parameters", short(plan.param_bytes, "B"))
    memory.add_row("gradients", short(plan.param_bytes, "B"))
    memory.add_row("optimizer", short(plan.optimizer_bytes, "B"))
    memory.add_row("kept for the backward pass", short(plan.activation_bytes, "B"))
    memory.add_row("sum", short(plan.need.total, "B"))
    console.print(memory)
    here = math.prod(plan.mesh_shape.values()) <= plan.devices_here
    for line in verdict(e, plan.need, plan.mesh_shape, here, plan.device_bytes):
        console.print(line)
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
