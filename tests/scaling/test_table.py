"""The table of runs: what it derives, what it refuses, and that CSV keeps every value."""

import gzip

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.scaling.table import Runs


def small() -> Runs:
    return Runs.of(
        [3.0, 2.5, np.nan],
        parameters=[1e6, 2e6, 3e6],
        tokens=[1e8, 1e8, 2e8],
        names=["a", "b", "c"],
        experts=[1, 2, 4],
        corpus=np.array(["x", "y, z", "x"]),
    )


def test_the_missing_one_of_n_d_c_follows():
    runs = small()
    np.testing.assert_allclose(runs.flops, 6 * runs.parameters * runs.tokens)
    again = Runs.of(runs.loss, parameters=runs.parameters, flops=runs.flops)
    np.testing.assert_allclose(again.tokens, runs.tokens)
    assert np.isnan(Runs.of([1.0], flops=[1e9]).parameters).all()


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_csv_round_trip(tmp_path, suffix):
    runs = small()
    runs.to_csv(tmp_path / f"runs{suffix}")
    back = Runs.read_csv(tmp_path / f"runs{suffix}")
    assert back.names == runs.names and list(back.columns) == list(runs.columns)
    for name in ("parameters", "tokens", "flops", "loss", "experts", "corpus"):
        np.testing.assert_array_equal(back.column(name), runs.column(name))


def test_select_finite_and_concatenate():
    runs = small()
    assert runs.finite().names == ("a", "b")
    assert runs.select([2, 0]).names == ("c", "a")
    both = Runs.concatenate([runs, runs.select(runs.tokens > 1e8)])
    assert len(both) == 4 and both.columns["corpus"][3] == "x"
    assert both.column("N") is both.parameters


@pytest.mark.parametrize(
    "text, message",
    [
        ("name,N,L\na,1,2\n", None),
        ("params,tokens,loss\n1,2\n", "row 2: 2 cells under a header of 3"),
        ("params,tokens,loss\n", "no rows"),
        ("params,tokens,loss\n1,x,2\n", "tokens is 'x', not a number"),
        ("params,tokens\n1,2\n", "no column for loss"),
        ("N,N,D,L\n1,2,3,4\n", "2 columns called 'N'"),
        ("params,N,D,L\n1,2,3,4\n", "params and N, any of which may be parameters"),
        ("params,N,D,L\n1,1,3,4\n", None),
        ("self,N,D,L\n1,1,3,4\n", None),
        ("", "is empty"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    if message is None:
        assert Runs.read_csv(path).parameters[0] == 1
        return
    with pytest.raises(BadInput, match=message):
        Runs.read_csv(path)


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"N": "D"}, "'D' is mapped to parameters and nothing is left for tokens"),
        ({"N": "D", "D": "D"}, "'D' is mapped to parameters and to tokens"),
        ({"N": "N", "params": "D", "parameters": "D"}, "parameters is mapped to two columns"),
        ({"N": "M"}, "has no column 'M' for parameters"),
        ({"unique_tokens": "D"}, None),  # all are seen once
    ],
)
def test_columns_that_cannot_be_mapped_so(tmp_path, columns, message):
    (tmp_path / "runs.csv").write_text("N,D,L\n1,2,3\n")
    if message is None:
        table = Runs.read_csv(tmp_path / "runs.csv", columns)
        assert table.tokens[0] == table.column("unique_tokens")[0] == 2
        return
    with pytest.raises(BadInput, match=message):
        Runs.read_csv(tmp_path / "runs.csv", columns)


def test_files_that_hold_no_table(tmp_path):
    small().to_csv(tmp_path / "runs.csv.gz")
    whole = (tmp_path / "runs.csv.gz").read_bytes()
    for name, content, message in (
        ("torn.csv.gz", whole[:-20], "torn or damaged"),
        ("plain.csv.gz", gzip.decompress(whole), "Not a gzipped file"),
        ("binary.csv", bytes(range(256)), "no text in UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=message):
            Runs.read_csv(tmp_path / name)
    with pytest.raises(BadInput, match="Is a directory"):
        Runs.read_csv(tmp_path)


def test_a_table_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "runs.csv"
    small().to_csv(path)
    before = path.read_bytes()
    monkeypatch.setattr(type(path), "write_bytes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        small().select([0]).to_csv(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_runs_are_known_by_name():
    assert list(small().column("name")) == ["a", "b", "c"]
    odd = small().with_columns(thing=np.array([None, 3, "x"], dtype=object))
    assert len(odd.column("thing")) == 3


def test_wrong_names_get_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'tokens'"):
        small().column("token")
    with pytest.raises(BadInput, match="2 rows and there are 1 runs"):
        Runs(np.ones(2), np.ones(1), np.ones(1), np.ones(1), ("a",))
