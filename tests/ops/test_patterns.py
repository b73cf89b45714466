"""Patterns against their own masks: visited pairs, parts, texts, pictures, what a cache keeps."""

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.ops.patterns import KINDS, HeadPattern, Pattern, parse, parse_layers
from gptjax.ops.patterns.__main__ import main
from gptjax.ops.strips import multiplied, works
from tests.ops.cases import drawn


def masked(pattern, length: int) -> np.ndarray:
    at = np.arange(length)
    return np.asarray(pattern.mask(at[:, None], at[None, :], length))


@pytest.mark.parametrize("name", KINDS)
def test_pairs_and_parts_are_those_of_the_mask(name):
    """At 20 random sizes: the ledger's pairs, and every pair computed by one part exactly once."""
    random = np.random.default_rng(len(name))
    for length in [1, 2, *map(int, random.integers(3, 211, 18))]:
        pattern = parse(drawn(name, random))
        mask = masked(pattern, length)
        assert mask.diagonal().all(), f"{pattern}: a query that reads nothing has no softmax"
        assert np.array_equal(pattern.visited(length), mask.sum(1)), f"{pattern} at {length}"
        assert pattern.pairs(length) == mask.sum() <= multiplied(pattern, length)
        assert not pattern.causal or not np.triu(mask, 1).any()
        found = np.zeros((length, length), int)
        for work in works(pattern, length):
            for start, stop, first, last in work.strips:
                places = np.arange(start, stop)[:, None], np.arange(first, last)[None, :]
                rule = np.broadcast_to(work.rule.mask(*places), (stop - start, last - first))
                for queries, keys in zip(work.queries, work.keys, strict=True):
                    q, k = queries[start:stop, None], keys[None, first:last]
                    inside = rule & (q >= 0)
                    if work.filled:
                        inside = inside & (k >= 0)
                    if work.part.order == "positions":
                        inside = inside & (q >= k)
                    assert (np.broadcast_to(k, inside.shape)[inside] >= 0).all()
                    np.add.at(found, np.nonzero(inside) and tuple(
                        np.broadcast_to(x, inside.shape)[inside] for x in (q, k)), 1)  # fmt: skip
        assert np.array_equal(found, mask), f"{pattern} at {length}"


@pytest.mark.parametrize("name", KINDS)
def test_a_cache_holds_what_later_queries_read(name):
    random = np.random.default_rng(len(name) + 50)
    for length in map(int, random.integers(2, 150, 8)):
        pattern = parse(drawn(name, random))
        if not pattern.causal:
            continue
        ring, kept = pattern.kept(length)
        for query, reads in enumerate(masked(pattern, length)):
            held = set(kept.tolist()) | set(range(query + 1 - ring, query + 1))
            assert set(np.flatnonzero(reads).tolist()) <= held, f"{pattern}: query {query}"


def test_texts_make_patterns_and_patterns_texts():
    random = np.random.default_rng(0)
    for name in KINDS:
        for _ in range(5):
            pattern = parse(drawn(name, random))
            assert parse(str(pattern)) == pattern
    assert str(parse("fixed: 16, columns=4")) == "fixed:16,4"
    assert str(parse("image-conv:8")) == "image_conv:8"
    assert [str(p) for p in parse_layers("causal/window:4|window:8")] == [
        "causal",
        "window:4|window:8",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stride:8", "did you mean 'strided'"),
        ("", "pattern is empty"),
        ("strided", "lacks stride: write strided:stride,window"),
        ("strided:1,2,3", "a field too many"),
        ("strided:8,stride=9", "a field too many"),
        ("strided:8,windw=9", "no field 'windw'; write strided:stride,window; did you mean"),
        ("window:--5", "width of a window pattern is '--5'"),
        ("window:" + "9" * 5000, "larger than 2147483647"),
        ("image_row:0", "columns of an image_row pattern is 0"),
        ("strided:eight", "give an integer from 1 on"),
        ("window:0", "width of a window pattern is 0"),
        ("fixed:8,5,1", "give at most 0"),
        ("fixed:8,9", "at most as many columns"),
        ("longformer:8,1,sideways", "both or causal"),
        ("image_conv:8,4", "odd number up to the image's 8"),
        ("causal/", "pattern is empty"),
    ],
)
def test_what_is_no_pattern(text, words):
    with pytest.raises(BadInput, match=words):
        parse_layers(text)


def test_pictures(tmp_path, capsys):
    out = tmp_path / "p.png"
    assert main(["--show", "causal/strided:8|fixed:8,2", "--n", "64", f"--out={out}"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "strided:8: 708 pairs" in shown
    assert main([]) == 0 and "bigbird" in capsys.readouterr().out
    for wrong in (["--show", "stride:8"], ["--show", ""], ["--shw", "causal"],
                  ["--show", "causal", "--n", "0"], ["--show", "causal", "--n", "many"],
                  ["--show", "causal", f"--out={tmp_path}/no/p.png"],
                  ["--show", "causal", f"--out={tmp_path}"],
                  ["--show", "/".join(["causal"] * 17)]):  # fmt: skip
        assert main(wrong) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1


HUGE = ["window:1000000", "local:1000000", "fixed:1000000,3", "column:1000000", "bigbird:1000000"]
HUGE += ["dilated:1000000,1000000", "summary:1000000,5,1", "image_conv:1000001,1000001"]


@pytest.mark.parametrize("text", HUGE)
def test_fields_beyond_the_length_cost_nothing(text):
    """No array is as long as a block or a stride that no sequence reaches."""
    for length in (100, 700):
        chosen = works(parse(text), length)
        assert max(work.keys.size for work in chosen) <= 2 * length
        assert multiplied(parse(text), length) <= 1.1 * length * length


def test_what_is_abstract():
    for kind in (Pattern, HeadPattern):
        with pytest.raises(TypeError, match="abstract"):
            kind()
