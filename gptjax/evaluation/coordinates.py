"""The coordinate check: how the scale of activations follows the width (arXiv 2203.03466, D.1).

Under a parametrization that keeps its learning rate from width to width, what attention, the
feed-forward layers, the residual stream and the logits are made of neither grows nor vanishes
with the width, at the start and after some updates. It is seen in a few steps and finds most
mistakes. Flax's recording of submodules' results is used here and nowhere else.

Logits at the start are the exception: muP lets those of a random head fall as 1 / sqrt(width).
With `init="fan_in_zero"` they are zero at every width, and all else is flat from the start.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import data
from gptjax.errors import BadInput
from gptjax.models.config import DecoderConfig
from gptjax.models.decoder import Decoder
from gptjax.models.experts import Experts
from gptjax.models.layers import MLP, Attention, Block
from gptjax.models.stack import logits
from gptjax.parallel.mesh import make_mesh
from gptjax.training.loop import to_mesh
from gptjax.training.optimizer import make_optimizer
from gptjax.training.state import init_state
from gptjax.training.step import make_train_step

PARTS = ("attention", "mlp", "residual", "logits")


@dataclass(frozen=True)
class Coordinates:
    """The table of a check: a row per width, seed, step and place.

    `place` is a part of one layer (`layer_0/mlp`) or `logits`; `scale` the mean absolute value of
    its coordinates over a validation batch, `change` that of their difference to step 0.
    """

    rows: list[dict]

    def mean(self, column: Literal["scale", "change"]) -> dict[tuple[str, int], dict[int, float]]:
        """By place and step: the column's mean over seeds at each width."""
        table: dict = {}
        for row in self.rows:
            widths = table.setdefault((row["place"], row["step"]), {})
            widths.setdefault(row["width"], []).append(row[column])
        return {
            key: {width: math.fsum(values) / len(values) for width, values in widths.items()}
            for key, widths in table.items()
        }

    def slopes(self, column: Literal["scale", "change"] = "scale") -> dict[tuple[str, int], float]:
        """By place and step: the slope of log scale over log width by least squares.

        Without places that are zero, as a zero head's logits and all changes at step 0.
        """
        slopes = {}
        for key, widths in self.mean(column).items():
            if min(widths.values()) > 0:
                x, y = np.log(list(widths)), np.log(list(widths.values()))
                slopes[key] = float(np.polyfit(x, y, 1)[0])
        return slopes

    def steepest(self, column: Literal["scale", "change"] = "scale") -> dict[str, float]:
        """The slope farthest from 0 of each part, over its layers and all steps."""
        worst: dict[str, float] = {}
        for (place, _), slope in self.slopes(column).items():
            part = place.rsplit("/", 1)[-1]
            worst[part] = max(worst.get(part, 0.0), slope, key=abs)
        return worst


def coordinate_check(
    experiment,
    widths: Sequence[int],
    *,
    steps: Sequence[int] = (0, 10),
    seeds: Sequence[int] = (0,),
    grow: Literal["heads", "head_dim"] = "heads",
    report: Callable[[str], None] = lambda line: None,
) -> Coordinates:
    """Train the experiment's model at several widths and measure it after so many updates.

    All widths see the same batches of the experiment's data with its optimizer; a seed is one of
    initial weights. Layers are unrolled, which changes no value. BadInput for fewer than two
    widths or a width at which a size of the model would not be whole.
    """
    if len(set(widths)) < 2 or not steps or min(steps) < 0 or not seeds:
        raise BadInput(
            f"a coordinate check needs two widths, a step and a seed, not widths {list(widths)}, "
            f"steps {list(steps)}, seeds {list(seeds)}"
        )
    plain = {"layers": "unrolled", "remat": "none"}
    members = []
    for width in sorted(set(widths)):
        model = dataclasses.replace(experiment.model.at_width(width, grow), **plain)
        members.append(dataclasses.replace(experiment, model=model))
        members[-1].validate()
    dataset = data.prepare(experiment.data, report=report)
    made = experiment.rows(experiment.vocabulary(dataset.tokenizer))
    iterator = dataset.train_iterator(rows=made)
    batches = [next(iterator) for _ in range(max(steps))]
    held_out = next(dataset.validation_batches(1, rows=made))
    mesh = make_mesh(experiment.mesh)
    rows = []
    for member in members:
        about = {"width": member.model.d_model}
        for seed in seeds:
            records = _follow(member, mesh, seed, batches, held_out, steps)
            rows += [{**about, "seed": seed, **record} for record in records]
        report(f"width {member.model.d_model}: {len(seeds)} seeds of {max(steps)} steps")
    return Coordinates(rows)


def _follow(experiment, mesh, seed: int, batches, held_out, steps) -> list[dict]:
    """Records of one run at the steps asked for."""
    optimizer = make_optimizer(experiment.optim, experiment.steps)
    state = init_state(experiment.model, optimizer, seed, mesh)
    train_step = make_train_step(experiment)
    measure = _measurement(experiment.model)
    held_out = {k: v for k, v in to_mesh(held_out, mesh).items() if k not in ("targets", "weights")}
    records = []
    with jax.set_mesh(mesh):
        start = measure(state.params, held_out)
        for step in range(max(steps) + 1):
            if step in steps:
                now = measure(state.params, held_out) if step else start
                scales, changes = jax.device_get(_scales(now, start))
                records += [
                    {"step": step, "place": place, "scale": float(scale), "change": float(change)}
                    for place, scale, change in zip(
                        now, scales.values(), changes.values(), strict=True
                    )
                ]
            if step < len(batches):
                state, _ = train_step(state, to_mesh(batches[step], mesh))
    return records


@jax.jit
def _scales(now, start):
    mean = lambda x: jnp.mean(jnp.abs(x.astype(jnp.float32)))
    return jax.tree.map(mean, now), jax.tree.map(lambda x, y: mean(x - y), now, start)


@functools.lru_cache(maxsize=32)
def _measurement(model: DecoderConfig):
    """`(params, batch)` to the activations by place."""

    def recorded(module, method):
        return method == "__call__" and isinstance(module, (Attention, MLP, Experts, Block))

    def measure(params, batch):
        out, kept = Decoder(model).apply(
            {"params": params},
            batch["tokens"],
            positions_BT=batch.get("positions"),
            segments_BT=batch.get("segments"),
            capture_intermediates=recorded,
            mutable=["intermediates"],
        )
        places = {}
        for i in range(model.num_layers):
            layer = kept["intermediates"][f"layer_{i}"]
            places[f"layer_{i}/attention"] = layer["attention"]["__call__"][0][0]
            of_experts = "experts" in layer
            mlp = layer["experts" if of_experts else "mlp"]["__call__"][0]
            places[f"layer_{i}/mlp"] = mlp[0] if of_experts else mlp
            places[f"layer_{i}/residual"] = layer["__call__"][0][0]
        places["logits"] = logits(out)
        return places

    return jax.jit(measure)


def plot_coordinates(checks: dict[str, Coordinates], out: str | Path) -> None:
    """Scale against width by part, a row of panels per check and a colour per step, as one PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(12, 2.8 * len(checks)), layout="constrained")
    panels = figure.subplots(len(checks), len(PARTS), squeeze=False, sharex=True)
    steps = sorted({row["step"] for check in checks.values() for row in check.rows})
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(steps)))
    for (title, check), row in zip(checks.items(), panels, strict=True):
        for (place, step), widths in check.mean("scale").items():
            panel = row[PARTS.index(place.rsplit("/", 1)[-1])]
            points = sorted((width, scale) for width, scale in widths.items() if scale > 0)
            if points:
                panel.plot(
                    *zip(*points, strict=True),
                    "o-",
                    color=colours[steps.index(step)],
                    markersize=3,
                    linewidth=1,
                )
        for part, panel in zip(PARTS, row, strict=True):
            slope = check.steepest().get(part, 0.0)
            panel.set_title(f"{title}: {part}, steepest slope {slope:+.3f}", fontsize=9)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.grid(True, which="both", alpha=0.2)
        row[0].set_ylabel("mean absolute value")
    for panel in panels[-1]:
        panel.set_xlabel("width")
    handles = [Line2D([], [], color=colour) for colour in colours]
    names = [f"step {step}" for step in steps]
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=8)
    part = Path(out).with_suffix(".part.png")
    figure.savefig(part, dpi=130)
    part.replace(out)
