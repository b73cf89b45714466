"""The table of runs: what it derives, what it refuses, and that CSV keeps every value."""

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


def test_wrong_names_get_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'tokens'"):
        small().column("token")
    with pytest.raises(BadInput, match="2 rows and there are 1 runs"):
        Runs(np.ones(2), np.ones(1), np.ones(1), np.ones(1), ("a",))
