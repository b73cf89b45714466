"""The attention kernels of a planned run: those here, or those of devices that are absent."""

import math
from collections.abc import Callable

import jax.numpy as jnp

from gptjax.experiment import Experiment
from gptjax.ops.kernels import PLATFORMS, choose_kernel, kernel_pairs
from gptjax.ops.patterns import HeadPattern
from gptjax.ops.shards import backend


def target_platform(experiment: Experiment, shape: tuple[int, ...], devices: int) -> str:
    """The platform of a plan: the one here, or for devices that are absent that of the kernel."""
    here = backend()
    if math.prod(shape) <= devices:
        return here
    return PLATFORMS.get(experiment.model.attention.kernel, here)


def kernel_chooser(experiment: Experiment, platform: str = "") -> Callable[[HeadPattern], str]:
    """Which attention kernel a platform would run for a pattern.

    By default that of the mesh in force, or that here. BadInput for one that cannot run there.
    """
    model, data = experiment.model, experiment.data
    platform = platform or backend()
    if experiment.lengths.ahead:  # a prefix that differs from row to row
        return lambda pattern: "dense"
    return lambda pattern: choose_kernel(
        model.kernel,
        platform,
        pattern,
        data.document_attention == "within",
        model.positions == "alibi",
        data.sequence_length,
        jnp.dtype(model.compute_dtype),
        model.qk_size,
        model.head_size,
    )


def kernels_of(experiment: Experiment, platform: str = "") -> str:
    """The attention kernels that a platform would run (`kernel_chooser`), in words."""
    choose, found = kernel_chooser(experiment, platform), {}
    for pattern in experiment.model.attention.patterns:
        for member in pattern.members:
            found.setdefault(choose(member), []).append(str(member))
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{kernel} ({' '.join(names)})" for kernel, names in found.items())


def kernels_line(experiment: Experiment, shape: tuple[int, ...], devices: int, kernel: str) -> str:
    """The attention kernels of a plan, and those of other platforms where its mesh is not here.

    shape: of the mesh; devices: how many are here; kernel: what the plan found.
    """
    here, target = backend(), target_platform(experiment, shape, devices)
    line = f"attention kernel {'here' if target == here else f'on a {target}'}: {kernel}"
    if math.prod(shape) > devices and experiment.model.attention.kernel == "auto":
        others = [name for name in ("cpu", "gpu", "tpu") if name != here]
        line += "".join(f", on a {name}: {kernels_of(experiment, name)}" for name in others)
    return line


def sparse_line(experiment: Experiment, shape: tuple[int, ...], devices: int) -> str:
    """What a sparse model reads and multiplies beside a dense causal one; "" for a dense one."""
    model, length = experiment.model, experiment.data.sequence_length
    dense = length * (length + 1) / 2
    read = model.attention_pairs(length) / dense
    if read == 1:
        return ""
    choose = kernel_chooser(experiment, target_platform(experiment, shape, devices))
    every = [model.layer_kind(i).pattern.members for i in range(model.num_layers)]
    multiplied = sum(
        kernel_pairs(member, length, choose(member)) / len(members)
        for members in every
        for member in members
    )
    return (
        f"attention reads {100 * read:.3g}% of the query-key pairs that dense causal attention "
        f"does, and multiplies {100 * multiplied / len(every) / dense:.3g}%"
    )


def interpreted(experiment: Experiment) -> bool:
    """Whether a GPU's kernel is asked for where it is only interpreted."""
    return experiment.model.attention.kernel == "block_list" and backend() == "cpu"
