"""An algebra of overrides: a grid is a list of rows, a row replaces fields of an experiment.

    product(values("model.d_model", 64, 128), values("train.seed", 0, 1, 2))

has six rows; `a * b` is the product, `a + b` the chain. Rows keep the order they are written in.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gptjax.errors import BadInput
from gptjax.experiment import Experiment, field_names
from gptjax.suggest import unknown_field


@dataclass(frozen=True)
class Grid:
    """Rows of overrides, each a dict from dotted field names to values."""

    rows: tuple[Mapping[str, object], ...] = ()

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __mul__(self, other: "Grid") -> "Grid":
        return product(self, other)

    def __add__(self, other: "Grid") -> "Grid":
        return chain(self, other)


def rows(*dicts: Mapping[str, object]) -> Grid:
    """A grid of these rows."""
    return Grid(tuple(dict(row) for row in dicts))


def values(field: str, *choices: object) -> Grid:
    """One row for each value of one field."""
    return Grid(tuple({field: choice} for choice in choices))


def _merge(parts) -> dict[str, object]:
    merged: dict[str, object] = {}
    for part in parts:
        twice = merged.keys() & part.keys()
        if twice:
            raise BadInput(f"two factors of a grid set {', '.join(sorted(twice))}")
        merged.update(part)
    return merged


def product(*grids: Grid) -> Grid:
    """Every row of the first with every row of the second, and so on; the last varies fastest."""
    return Grid(tuple(_merge(parts) for parts in itertools.product(*grids)))


def zipped(*grids: Grid) -> Grid:
    """First rows together, second rows together, ...; BadInput when the lengths differ."""
    lengths = {len(grid) for grid in grids}
    if len(lengths) > 1:
        raise BadInput(f"grids of {', '.join(str(len(g)) for g in grids)} rows cannot be zipped")
    return Grid(tuple(_merge(parts) for parts in zip(*grids, strict=True)))


def chain(*grids: Grid) -> Grid:
    """The rows of all grids, one after the other."""
    return Grid(tuple(itertools.chain.from_iterable(grids)))


def subsample(grid: Grid, count: int, seed: int = 0) -> Grid:
    """So many rows, drawn without replacement; their order stays."""
    if not 0 < count <= len(grid):
        raise BadInput(f"{count} rows cannot be drawn from a grid of {len(grid)}")
    chosen = sorted(random.Random(seed).sample(range(len(grid)), count))
    return Grid(tuple(grid.rows[i] for i in chosen))


def override(experiment: Experiment, row: Mapping[str, object]) -> Experiment:
    """The experiment with a row's fields replaced; BadInput names a field that does not exist."""
    known = field_names(Experiment)
    for name, value in row.items():
        if name not in known or name == "name":
            raise unknown_field(name)
        experiment = _replace(experiment, name.split("."), value)
    return experiment


def _replace(config, path: list[str], value):
    first, *rest = path
    if rest:
        value = _replace(getattr(config, first), rest, value)
    elif isinstance(value, list):
        value = tuple(value)
    return dataclasses.replace(config, **{first: value})
