"""The table that laws are fitted to: one row per trained run.

Parameters, tokens and FLOPs are plain counts; the loss is in nats per token by convention, though
every law here fits any unit (a change of unit only scales the floor and the coefficients).
"""

import contextlib
import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gptjax.errors import BadInput, did_you_mean

FIELDS = ("parameters", "tokens", "flops", "loss")
# Headers that mean a field when the caller maps none.
HEADERS = {
    "parameters": ("parameters", "params", "N", "n", "num_parameters", "model_size"),
    "tokens": ("tokens", "D", "t", "num_tokens", "training_tokens"),
    "flops": ("flops", "C", "FLOPs", "compute", "training_flops"),
    "loss": ("loss", "L", "final_loss", "validation_loss", "val_loss"),
    "names": ("name", "names", "run", "run_name"),
}
LETTERS = {"N": "parameters", "D": "tokens", "C": "flops", "L": "loss"}
NAMES = ("name", "names")
OTHERS_OUT = "leave such rows out: --skip-invalid, or runs.select(...) in Python"


@dataclass(frozen=True, eq=False)
class Runs:
    """One row per trained run; a figure that is not known is NaN.

    `columns` holds whatever else is known of each run: numbers as float64 (unique_tokens,
    experts, budget, seconds, accuracy, ...) or text (group, corpus, ...).
    """

    parameters: np.ndarray  # N
    tokens: np.ndarray  # D, training tokens seen
    flops: np.ndarray  # C, training FLOPs
    loss: np.ndarray  # L, nats per token
    names: tuple[str, ...]
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        for name in FIELDS:
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if isinstance(self.names, str) or not isinstance(self.names, Iterable):
            raise BadInput(f"names is {self.names!r:.80}; give one per run")
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        columns = {}
        for name, values in self.columns.items():
            if name in FIELDS or name == "names":
                raise BadInput(f"the column {name!r} is a field of Runs; give it as that")
            values = np.asarray(values)
            columns[name] = values if values.dtype.kind in "OUS" else _numbers(name, values)
        object.__setattr__(self, "columns", columns)
        for name in (*FIELDS, *columns):
            if len(self.column(name)) != len(self.names):
                raise BadInput(
                    f"{name} has {len(self.column(name))} rows and there are {len(self.names)} runs"
                )

    def __len__(self) -> int:
        return len(self.names)

    @staticmethod
    def of(
        loss,
        *,
        parameters=None,
        tokens=None,
        flops=None,
        names: Iterable[str] | None = None,
        **columns,
    ) -> "Runs":
        """A table from what is known; the one of N, D and C that is missing follows from C = 6ND.

        Scalars are repeated over the rows; what cannot be derived is NaN.
        """
        loss = _numbers("loss", np.atleast_1d(loss))
        rows = len(loss)

        def spread(name, values):
            values = _numbers(name, np.atleast_1d(values))
            if len(values) not in (1, rows):
                raise BadInput(f"{name} has {len(values)} rows and there are {rows} losses")
            return np.broadcast_to(values, (rows,)) * 1.0

        given = {"parameters": parameters, "tokens": tokens, "flops": flops}
        N, D, C = (None if v is None else spread(name, v) for name, v in given.items())
        unknown = np.full(rows, np.nan)
        with np.errstate(all="ignore"):  # rows of nonsense are told by who reads them
            if C is None and N is not None and D is not None:
                C = 6 * N * D
            elif D is None and N is not None and C is not None:
                D = C / (6 * N)
            elif N is None and D is not None and C is not None:
                N = C / (6 * D)
        extra = {}
        for name, values in columns.items():
            values = np.asarray(values)
            extra[name] = np.broadcast_to(values, (rows,)) if values.ndim == 0 else values
        return Runs(
            parameters=unknown if N is None else N,
            tokens=unknown if D is None else D,
            flops=unknown if C is None else C,
            loss=loss,
            names=tuple(f"run_{i}" for i in range(rows)) if names is None else names,
            columns=extra,
        )

    def column(self, name: str) -> np.ndarray:
        """A field or a further column by name, [rows]; the letters N, D, C, L will do.

        `name` gives the runs' names. BadInput when there is none of that name.
        """
        name = LETTERS.get(name, name) if name not in self.columns else name
        if name in FIELDS:
            return getattr(self, name)
        if name in NAMES and name not in self.columns:
            return np.array(self.names, dtype=object)
        if name not in self.columns:
            known = [*FIELDS, *self.columns]
            near = did_you_mean(name, known)
            raise BadInput(f"the runs have no column {name!r}, only {', '.join(known)}{near}")
        return self.columns[name]

    def select(self, mask) -> "Runs":
        """The rows where `mask` holds, or the rows numbered by an index array, in that order."""
        rows = np.asarray(mask)
        if rows.dtype.kind == "f" and (rows == np.floor(rows)).all():
            rows = rows.astype(int)
        if rows.dtype.kind not in "biu":
            raise BadInput(f"rows are chosen by {mask!r:.80}; give a mask, or numbers of rows")
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise BadInput(f"the mask has {rows.shape} entries for {len(self)} runs")
            rows = np.flatnonzero(rows)
        rows = rows.astype(int).ravel()
        if rows.size and not -len(self) <= rows.min() <= rows.max() < len(self):
            raise BadInput(f"there is no row {rows.max()}, only 0 to {len(self) - 1}")
        return Runs(
            **{name: getattr(self, name)[rows] for name in FIELDS},
            names=tuple(self.names[i] for i in rows),
            columns={name: values[rows] for name, values in self.columns.items()},
        )

    def finite(self) -> "Runs":
        """The runs whose loss is finite and positive: those that did not diverge."""
        return self.select(np.isfinite(self.loss) & (self.loss > 0))

    def with_columns(self, **columns) -> "Runs":
        """A copy with further (or replaced) columns, each [rows]."""
        return replace(self, columns={**self.columns, **columns})

    @staticmethod
    def concatenate(tables: Iterable["Runs"]) -> "Runs":
        """All rows of several tables; a column must be in each of them to be kept."""
        tables = list(tables)
        if not tables or not all(isinstance(table, Runs) for table in tables):
            raise BadInput("give one table of runs or more")
        shared = [c for c in tables[0].columns if all(c in t.columns for t in tables)]
        return Runs(
            **{f: np.concatenate([getattr(t, f) for t in tables]) for f in FIELDS},
            names=tuple(name for t in tables for name in t.names),
            columns={c: np.concatenate([t.columns[c] for t in tables]) for c in shared},
        )

    @staticmethod
    def read_csv(path, columns: Mapping[str, str] | None = None) -> "Runs":
        """Read a CSV file (or .csv.gz); `columns` maps field or column name to header.

        `{"parameters": "params"}` and `{"N": "params"}` mean the same. Fields that are not mapped
        are looked for under their usual headers; further headers become columns. An empty cell
        is NaN. The one of N, D, C that the file lacks follows from C = 6ND. BadInput names a
        missing file, header, or a cell of a field that is no number, and columns that could each
        be the same field.
        """
        if not isinstance(path, str | os.PathLike):
            raise BadInput(f"the path of a table is {path!r:.80}; give one, as 'runs.csv'")
        if not isinstance(columns or {}, Mapping):
            raise BadInput(f"columns is {columns!r:.80}; give a dict, as {{'N': 'params'}}")
        path = Path(path)
        header, rows = _read_rows(path)
        cells = {h: [row[i] for row in rows] for i, h in enumerate(header)}
        mapping = _mapped(path, cells, columns or {})
        if "loss" not in mapping:
            raise BadInput(
                f"{path} has no column for loss, only {', '.join(header)}: map one, as "
                f"--columns L={header[-1]}, or {{'L': {header[-1]!r}}} in Python"
            )
        known = {f: _parse(path, f, cells[mapping[f]]) for f in FIELDS if f in mapping}
        extra = {n: cells[h] for n, h in mapping.items() if n not in (*FIELDS, "names")}
        taken = {h for n, h in mapping.items() if n in (*FIELDS, "names")}
        extra.update({h: c for h, c in cells.items() if h not in taken and h not in extra})
        names = cells[mapping["names"]] if "names" in mapping else None
        table = Runs.of(known.pop("loss"), names=names, **known)
        extra = {n: c for n, c in extra.items() if n and n not in (*FIELDS, "names")}
        return replace(table, columns={n: _numbers_or_text(c) for n, c in extra.items()})

    def to_csv(self, path) -> None:
        """Write the table by one rename; `read_csv` reads it back with the same values."""
        path, out = Path(path), io.StringIO(newline="")
        writer = csv.writer(out)
        writer.writerow(["name", *FIELDS, *self.columns])
        columns = [self.names, *(self.column(c) for c in (*FIELDS, *self.columns))]
        for row in zip(*columns, strict=True):
            writer.writerow([_cell(value) for value in row])
        content = out.getvalue().encode()
        replace_file(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file by one rename: a full disk leaves the one before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _mapped(path: Path, cells: Mapping[str, list], columns: Mapping[str, str]) -> dict[str, str]:
    """Field or column name to header: what was asked for, then the usual headers of the rest."""
    mapping: dict[str, str] = {}
    for name, wanted in columns.items():
        name = "names" if name in NAMES else LETTERS.get(name, name)
        if wanted not in cells:
            near = did_you_mean(wanted, cells)
            raise BadInput(
                f"{path} has no column {wanted!r} for {name}, only {', '.join(cells)}{near}"
            )
        if mapping.get(name, wanted) != wanted:
            raise BadInput(f"{name} is mapped to two columns, {mapping[name]} and {wanted}")
        same = next(
            (n for n, h in mapping.items() if h == wanted and {n, name} <= {*HEADERS}), None
        )
        if same not in (None, name):
            raise BadInput(f"the column {wanted!r} is mapped to {same} and to {name}: one is wrong")
        mapping[name] = wanted
    taken = {h: n for n, h in mapping.items() if n in HEADERS}
    for name, usual in HEADERS.items():
        if name in mapping:
            continue
        there = [h for h in usual if h in cells]
        found = [h for h in there if h not in taken]
        if there and not found and name != "names":
            raise BadInput(
                f"the column {there[0]!r} is mapped to {taken[there[0]]} and nothing is left for "
                f"{name}: map that too, as {name}={_another(cells, taken)}"
            )
        if name != "names" and any(cells[h] != cells[found[0]] for h in found[1:]):
            raise BadInput(
                f"{path} has the columns {' and '.join(found[:3])}, any of which may be {name}: "
                f"say which, as {name}={found[0]}"
            )
        if found:
            mapping[name] = found[0]
    return mapping


def _another(cells: Mapping[str, list], taken: Mapping[str, str]) -> str:
    return next((header for header in cells if header not in taken), "HEADER")


def _cell(value) -> str:
    try:
        number = None if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None:
        return str(value)
    if np.isnan(number):
        return ""
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def _numbers(name: str, values) -> np.ndarray:
    try:
        array = np.array(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{name} holds something that is no number: {error}") from None
    if array.ndim != 1:
        raise BadInput(f"{name} has {array.ndim} axes; give one value per run")
    array.flags.writeable = False
    return array


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as lines:
            rows = [row for row in csv.reader(lines) if row]
    except UnicodeDecodeError:
        raise BadInput(f"cannot read {path}: it is no text in UTF-8") from None
    except (EOFError, zlib.error):
        raise BadInput(f"cannot read {path}: the compressed file is torn or damaged") from None
    except (OSError, ValueError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot read {path}: {why}") from None
    if not rows:
        raise BadInput(f"{path} is empty: a header and a row per run are expected")
    if len(rows) < 2:
        raise BadInput(f"{path} has no rows under its header")
    header = [name.strip() for name in rows[0]]
    for name in header:
        if name and header.count(name) > 1:
            raise BadInput(f"{path} has {header.count(name)} columns called {name!r}; rename one")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise BadInput(
                f"{path}, row {number}: {len(row)} cells under a header of {len(header)}"
            )
    return header, rows[1:]


def _parse(path: Path, name: str, cells: list[str]) -> np.ndarray:
    out = np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        try:
            out[i] = float(cell) if cell.strip() else np.nan
        except ValueError:
            raise BadInput(f"{path}, row {i + 2}: {name} is {cell!r}, not a number") from None
    return out


def _numbers_or_text(cells: list[str]) -> np.ndarray:
    try:
        return np.array([float(cell) if cell.strip() else np.nan for cell in cells])
    except ValueError:
        return np.array(cells, dtype=str)
