"""Compiles a training step for chips that are not here, and looks into the program.

    python benchmarks/aot.py [--chips v5e:2x4 v5p:2x2x1 v6e:2x2] [--patterns causal strided:128]

A tiny GPT's whole step (forward, backward, AdamW) in bfloat16, sharded over the chips. For TPUs
the package `libtpu` must be installed, for `h100` the packages jax-cuda12-plugin and
jax-cuda12-pjrt; chips without their package are left out. No accelerator is touched, so nothing
here says how fast a program runs. The columns:

    s            seconds of tracing and compilation
    fused calls  the kernels' names, or cuDNN's
    grids        of splash's calls: rows x blocks a row, of the rows x rows that all pairs take
    n x n        how many shapes with two axes of n or more stand anywhere in the program, in all
                 computations and inside of fusions
    largest      elements of the largest array over n^2 (scores of a chip's share have as many n^2
                 as it has sequences times heads), in brackets of the largest of truth values or
                 integers
    temporary    MB of each chip

--grids adds what splash visits: the blocks of every part's grid of all n x n. --keep writes the
programs' texts to a folder.
"""

import argparse
import importlib.util
import math
import os
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
CHIPS = ("v5e:2x4", "v5p:2x2x1", "v6e:2x2", "h100")
PATTERNS = ("causal", "causal/window:256", "strided:128", "fixed:128,16")
PACKAGES = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda12"}
# What XLA must know of an H100 SXM to compile for it.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclass(frozen=True)
class Row:
    """One compiled program."""

    chip: str
    pattern: str
    seconds: float
    temp_bytes: int
    text: str


def platform_of(chip: str) -> str:
    return "tpu" if chip.startswith("v") else "cuda"


def installed(chip: str) -> bool:
    """Whether the package that compiles for this chip is here."""
    name = PACKAGES[platform_of(chip)]
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def devices_of(chip: str):
    """The devices of a topology that need not be here."""
    from jax.experimental import topologies

    if platform_of(chip) == "tpu":
        return topologies.get_topology_desc(chip, platform="tpu").devices
    return topologies.get_topology_desc(
        "h100", platform="cuda", target_config=H100, topology="1x1x8"
    ).devices


def experiment_of(pattern: str, length: int, kernel: str = "auto"):
    """A tiny run in bfloat16 with this attention pattern: a layer for each it has."""
    from gptjax import DataConfig, DecoderConfig, Experiment, MeshConfig, OptimConfig, TrainConfig
    from gptjax.models.config import AttentionConfig
    from gptjax.ops.patterns import parse_layers

    return Experiment(
        name="aot",
        model=DecoderConfig(
            num_layers=len(parse_layers(pattern)), d_model=256, num_heads=4, vocab_size=512,
            context_length=length, compute_dtype="bfloat16",
            attention=AttentionConfig(pattern=pattern, kernel=kernel),
        ),
        data=DataConfig(batch_size=16, sequence_length=length),
        train=TrainConfig(steps=10),
        optim=OptimConfig(lr=1e-3),
        mesh=MeshConfig(),
    )  # fmt: skip


def compile_step(experiment, devices, platform: str):
    """The compiled training step of an experiment on a mesh over these devices."""
    import jax
    import jax.numpy as jnp

    from gptjax.parallel import MeshConfig, make_mesh
    from gptjax.training.optimizer import hyper_of, make_optimizer
    from gptjax.training.state import TrainState, abstract_params, param_specs
    from gptjax.training.step import train_program

    mesh = make_mesh(MeshConfig(fsdp=2), list(devices))
    place = lambda x, *spec: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.NamedSharding(mesh, jax.P(*spec))
    )
    config = experiment.model
    params = jax.tree.map(
        lambda leaf, spec: place(leaf, *spec), abstract_params(config), param_specs(config, mesh)
    )
    optimizer = make_optimizer(experiment.optim, experiment.steps)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        opt_state = jax.eval_shape(optimizer.init, params)
    opt_state = jax.tree.map(
        lambda x: place(x, *(x.sharding.spec if x.sharding is not None else ())), opt_state
    )
    whole = lambda make: place(jax.eval_shape(make))
    state = TrainState(
        whole(lambda: jnp.zeros((), jnp.int32)), params, opt_state, whole(lambda: jax.random.key(0))
    )
    shape = (experiment.data.batch_size, experiment.data.sequence_length)
    tokens = place(jax.ShapeDtypeStruct(shape, jnp.int32), ("data", "fsdp"))
    hyper = hyper_of(experiment.optim, experiment.steps)
    with jax.set_mesh(mesh):
        batch = {"tokens": tokens, "targets": tokens}
        traced = train_program(experiment).trace(state, batch, hyper)
        return traced.lower(lowering_platforms=(platform,)).compile()


def fused_calls(text: str) -> dict[str, int]:
    """How often each fused attention kernel is called in a compiled program."""
    names = [name for name, _ in _splash_calls(text)]
    names += re.findall(r'custom_call_target="(__cudnn\$\w+)"', text)
    return dict(sorted(Counter(names).items()))


def _splash_calls(text: str) -> list[tuple[str, str]]:
    """Name and operands' types of every call of a splash kernel."""
    call = r'%(splash_[a-z_]+)[.\d]* = .* custom-call\(.*custom_call_target="tpu_custom_call", '
    return re.findall(call + r"operand_layout_constraints=\{(.*?)\}, \w+=", text)


def splash_grids(text: str) -> list[tuple[int, int]]:
    """(rows, blocks a row) of every splash call's grid, as its index arrays tell.

    Those are [1, rows, blocks], and transposed for the gradients of keys.
    """
    found = []
    for _, operands in _splash_calls(text):
        rows, blocks = map(int, re.search(r"\bs\d+\[1,(\d+),(\d+)\]", operands).groups())
        found.append((max(rows, blocks), min(rows, blocks)))
    return found


def shapes(text: str) -> set[tuple[str, tuple[int, ...]]]:
    """Element type and axes of every array in a program, inside of fusions, too."""
    found = set(re.findall(r"\b(pred|bf16|[suf]\d+\w*)\[([\d,]+)\]", text))
    found = {(kind, tuple(map(int, axes.split(",")))) for kind, axes in found}
    # Flat s8 are the bytes of other arrays, which XLA fetches in slices.
    return {(kind, axes) for kind, axes in found if (kind, len(axes)) != ("s8", 1)}


def check(chip: str, pattern: str, length: int, kernel: str = "auto") -> Row:
    """Compiles the step of one pattern for one chip."""
    experiment = experiment_of(pattern, length, kernel)
    devices = devices_of(chip)
    begun = time.perf_counter()
    program = compile_step(experiment, devices, platform_of(chip))
    seconds = time.perf_counter() - begun
    temp_bytes = program.memory_analysis().temp_size_in_bytes
    return Row(chip, pattern, seconds, temp_bytes, program.as_text())


def cells(row: Row, length: int) -> str:
    """A row of the table."""
    found = shapes(row.text)
    squares = [f"{kind}{list(n)}" for kind, n in sorted(found) if sum(x >= length for x in n) > 1]
    largest = max(math.prod(n) for _, n in found) / length**2
    mask = max(math.prod(n) for kind, n in found if kind[0] in "psu") / length**2
    calls = ", ".join(f"{count} {name}" for name, count in fused_calls(row.text).items())
    seen = Counter(f"{rows} x {n} of {rows} x {rows}" for rows, n in splash_grids(row.text))
    seen = ", ".join(f"{count} of {grid}" for grid, count in seen.items())
    return (
        f"| {row.chip} | {row.pattern} | yes | {row.seconds:.1f} | {calls or 'none'} "
        f"| {seen or 'none'} | {' '.join([str(len(squares)), *squares[:3]])} "
        f"| {largest:.2g} ({mask:.2g}) | {row.temp_bytes / 1e6:.1f} |"
    )


def grids(pattern: str, length: int) -> list[str]:
    """The grid of every part that splash computes, a line each."""
    from gptjax.ops.patterns import parse_layers
    from gptjax.ops.splash import SPLASH, grid_of, visits

    lines = []
    for layer in parse_layers(pattern):
        for part in (p for m in layer.members for p in m.parts(length)):
            name = f"  {layer}: {type(part.queries).__name__}, {part.rule}: "
            if not SPLASH.can(part, length):
                lines.append(name + "portable")
                continue
            grid, seen = grid_of(part, length), visits(part, length)
            lines.append(
                name + f"{seen.shape[0]} x {seen.shape[1]} blocks of {grid.block_q} x "
                f"{grid.block_k}, {int(seen.sum())} visited, at most {int(seen.sum(1).max())} a row"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chips", nargs="+", default=list(CHIPS))
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--kernel", default="auto", help="dense shows what the search finds")
    parser.add_argument("--grids", action="store_true")
    parser.add_argument("--keep", type=Path, help="a folder for the programs' texts")
    given = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is held
    columns = ["chip", "pattern", "compiles", "s", "fused calls", "grids", "n x n"]
    print(f"| {' | '.join([*columns, 'largest / n^2 (mask)', 'temporary MB'])} |")
    print("|---" * 9 + "|")
    for chip in given.chips:
        if not installed(chip):
            print(f"| {chip} | | {PACKAGES[platform_of(chip)]} is not installed" + " |" * 7)
            continue
        for pattern in given.patterns:
            try:
                row = check(chip, pattern, given.length, given.kernel)
            except Exception as error:  # the compiler's own; the table goes on
                print(f"| {chip} | {pattern} | no: {str(error).splitlines()[0][:200]}" + " |" * 7)
                continue
            print(cells(row, given.length), flush=True)
            if given.keep:
                given.keep.mkdir(parents=True, exist_ok=True)
                name = re.sub(r"\W+", "_", f"{chip}_{pattern}")
                (given.keep / f"{name}.txt").write_text(row.text, encoding="utf-8")
    if given.grids:
        for pattern in given.patterns:
            print(f"{pattern} at {given.length}:", *grids(pattern, given.length), sep="\n")


if __name__ == "__main__":
    main()
