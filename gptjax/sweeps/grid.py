"""An algebra of overrides: a grid is a list of rows, a row replaces fields of an experiment.

    product(values("model.d_model", 64, 128), values("train.seed", 0, 1, 2))

has six rows; `a * b` is the product, `a + b` the chain. Rows keep the order they are written in.
"""

import dataclasses
import itertools
import numbers
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gptjax.config_tree import field_names, list_lengths
from gptjax.errors import BadInput
from gptjax.experiment import Experiment
from gptjax.suggest import unknown_field


@dataclass(frozen=True)
class Grid:
    """Rows of overrides, each a dict from dotted field names to values."""

    rows: tuple[Mapping[str, object], ...] = ()

    def __post_init__(self):
        if not isinstance(self.rows, tuple | list):
            raise BadInput(f"the rows of a grid are {self.rows!r:.80}; give a tuple of dicts")
        checked = tuple(_row(number, row) for number, row in enumerate(self.rows))
        object.__setattr__(self, "rows", checked)

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __mul__(self, other: "Grid") -> "Grid":
        return product(self, other)

    def __rmul__(self, other: "Grid") -> "Grid":
        return product(other, self)

    def __add__(self, other: "Grid") -> "Grid":
        return chain(self, other)

    def __radd__(self, other: "Grid") -> "Grid":
        return chain(other, self)


def rows(*dicts: Mapping[str, object]) -> Grid:
    """A grid of these rows; BadInput for one that is no dict."""
    return Grid(dicts)


def values(field: str, *choices: object) -> Grid:
    """One row for each value of one field; BadInput for a value that no field can have."""
    if not choices:
        raise BadInput(f"values of {field} are missing: values({field!r}, 1, 2)")
    return Grid(tuple({field: choice} for choice in choices))


def _row(number: int, row) -> dict[str, object]:
    """A row as a dict of plain values."""
    if not isinstance(row, Mapping):
        raise BadInput(f"row {number} of a grid is {row!r:.80}; give a dict from field to value")
    for name in row:
        if not isinstance(name, str):
            raise BadInput(f"row {number} of a grid sets {name!r:.80}; give the name of a field")
    return {name: _plain(name, value) for name, value in row.items()}


def _plain(name: str, value: object):
    """A value as JSON has it, which a sweep's folder keeps: of numpy's scalars Python's own."""
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, list | tuple):
        return type(value)(_plain(name, part) for part in value)
    if isinstance(value, numbers.Integral | float | str):
        return value
    raise BadInput(
        f"a grid gives {name} the value {value!r:.80}, a {type(value).__name__}; give a number, a "
        "text, True or False, or a list of them"
    )


def _grids(grids: tuple) -> tuple["Grid", ...]:
    """The grids as they stand; BadInput for what is none."""
    for grid in grids:
        if not isinstance(grid, Grid):
            raise BadInput(
                f"{grid!r:.80} is no grid: values('optim.lr', 1e-3, 1e-2) makes one, and rows(...) "
                "one of dicts"
            )
    if not grids:
        raise BadInput("no grid is given; give one or more, such as values('optim.lr', 1e-3)")
    return grids


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
    return Grid(tuple(_merge(parts) for parts in itertools.product(*_grids(grids))))


def zipped(*grids: Grid) -> Grid:
    """First rows together, second rows together, ...; BadInput when the lengths differ."""
    lengths = {len(grid) for grid in _grids(grids)}
    if len(lengths) > 1:
        raise BadInput(f"grids of {', '.join(str(len(g)) for g in grids)} rows cannot be zipped")
    return Grid(tuple(_merge(parts) for parts in zip(*grids, strict=True)))


def chain(*grids: Grid) -> Grid:
    """The rows of all grids, one after the other."""
    return Grid(tuple(itertools.chain.from_iterable(_grids(grids))))


def subsample(grid: Grid, count: int, seed: int = 0) -> Grid:
    """So many rows, drawn without replacement; their order stays."""
    _grids((grid,))
    for name, value in (("count", count), ("seed", seed)):
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            raise BadInput(f"{name} of subsample is {value!r:.80}; give a whole number")
    if not 0 < count <= len(grid):
        raise BadInput(
            f"{count} rows cannot be drawn from a grid of {len(grid)}; give 1 to {len(grid)}"
        )
    chosen = sorted(random.Random(seed).sample(range(len(grid)), count))
    return Grid(tuple(grid.rows[i] for i in chosen))


def override(experiment: Experiment, row: Mapping[str, object]) -> Experiment:
    """The experiment with a row's fields replaced; BadInput names a field that does not exist."""
    known = field_names(experiment)
    known += list_lengths(known)  # a list may be replaced whole
    for name, value in row.items():
        if name not in known or name == "name":
            raise unknown_field(name, experiment)
        experiment = _replace(experiment, name.split("."), value)
    return experiment


def _replace(config, path: list[str], value):
    first, *rest = path
    if isinstance(config, tuple):
        place = int(first)
        return (*config[:place], _replace(config[place], rest, value), *config[place + 1 :])
    if rest:
        value = _replace(getattr(config, first), rest, value)
    elif isinstance(value, list):
        value = tuple(value)
    return dataclasses.replace(config, **{first: value})
