"""Draws an attention pattern: python -m gptjax.ops.patterns --show strided:128 --n 1024."""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from gptjax.errors import EXIT_DONE, BadInput, OneLineParser, exit_code_of
from gptjax.ops.patterns import KINDS, parse_layers
from gptjax.ops.patterns.base import HeadPattern

LONGEST = 8192  # a mask of 64 M entries
PANELS = 16  # beside each other in a picture


def picture(members: list[HeadPattern], length: int, out: Path) -> str:
    """Write a PNG with a panel for every pattern; what it shows, in a line each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(members), 5.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    at, lines = np.arange(length), []
    for axes, member in zip(figure.subplots(1, len(members), squeeze=False)[0], members,
                            strict=True):  # fmt: skip
        mask = np.asarray(member.mask(at[:, None], at[None, :], length))
        axes.imshow(~mask, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
        axes.set(xlabel="key", ylabel="query", title=str(member))
        pairs, dense = member.pairs(length), length * (length + 1) // 2
        axes.text(
            *(0.98, 0.98, f"{pairs:,} pairs\n{100 * pairs / dense:.3g}% of causal"),
            **{"transform": axes.transAxes, "ha": "right", "va": "top", "fontsize": 9},
        )
        lines.append(f"{member}: {pairs:,} pairs at {length} tokens, {pairs / dense:.4g} of causal")
    figure.savefig(out)
    return "\n".join(lines)


def usage(kind: type[HeadPattern]) -> str:
    """The text that makes a pattern of this kind, fields with a default in brackets."""
    fields = [
        f.name if f.default is dataclasses.MISSING else f"[{f.name}={f.default}]"
        for f in dataclasses.fields(kind)
    ]
    return kind.name + (":" + ",".join(fields) if fields else "")


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code."""
    return exit_code_of(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = OneLineParser(
        prog="python -m gptjax.ops.patterns", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--show", metavar="PATTERN", help="such as strided:128 or causal/window:64")
    parser.add_argument("--n", type=int, default=256, help="tokens (default 256)")
    parser.add_argument("--out", type=Path, help="the PNG (default: the pattern's name)")
    given = parser.parse_args(arguments)
    if given.show is None:
        for kind in KINDS.values():
            mark = "" if kind.causal is not False else " Not for decoders."
            print(f"{usage(kind)}\n    {kind.__doc__.splitlines()[0]}{mark}")
        print("\n| parts groups of heads, / layers: window:64|column:64, causal/window:256")
        print("A decoder wants longformer and bigbird with ways=causal: longformer:8,ways=causal")
        return EXIT_DONE
    if not 1 <= given.n <= LONGEST:
        raise BadInput(f"--n={given.n}: give 1 to {LONGEST} tokens")
    members = [member for layer in parse_layers(given.show) for member in layer.members]
    if len(members) > PANELS:
        raise BadInput(f"--show has {len(members)} patterns; give at most {PANELS} to draw")
    name = "".join(c if c.isalnum() else "_" for c in given.show)
    out = given.out or Path(f"{name}_{given.n}.png")
    if out.suffix != ".png":
        raise BadInput(f"--out={out}: give a file whose name ends in .png")
    try:
        print(picture(members, given.n, out))
    except OSError as error:
        raise BadInput(f"cannot write {out}: {error.strerror or error}") from None
    print(out)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
