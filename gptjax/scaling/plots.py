"""Figures from tables: loss against tokens, compute and time of one run."""

import json
from pathlib import Path


def read_rows(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; a torn last line is left out."""
    rows = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


AXES = (("tokens", "tokens"), ("flops", "training FLOPs (ledger)"), ("seconds", "seconds"))


def plot_curves(metrics: Path, out: Path, title: str = "") -> None:
    """Write loss against tokens, ledger FLOPs and seconds as one PNG."""
    from matplotlib.figure import Figure

    rows = read_rows(Path(metrics))
    train = [row for row in rows if "loss" in row]
    held_out = [row for row in rows if "validation_loss" in row]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, len(AXES), sharey=True)
    for panel, (column, label) in zip(panels, AXES, strict=True):
        panel.plot(
            [row[column] for row in train],
            _smooth([row["loss"] for row in train]),
            color="#7a9cc6",
            linewidth=1,
            label="training (running mean)",
        )
        panel.plot(
            [row[column] for row in held_out],
            [row["validation_loss"] for row in held_out],
            "o-",
            color="#c0392b",
            markersize=3.5,
            linewidth=1.2,
            label="validation",
        )
        panel.set_xlabel(label)
        if rows:  # an axis without values has no logarithm
            panel.set_yscale("log")
            panel.set_xscale("linear" if column == "seconds" else "log")
        panel.grid(True, which="both", alpha=0.2)
    panels[0].set_ylabel("nats per token")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    part = Path(out).with_suffix(".part.png")
    figure.savefig(part, dpi=130)
    part.replace(out)


def _smooth(values: list[float], share: float = 0.01) -> list[float]:
    """A trailing mean over 1% of the run, at least one step."""
    width = max(int(len(values) * share), 1)
    out, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        out.append(total / min(i + 1, width))
    return out
