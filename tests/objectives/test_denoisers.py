"""UL2: each denoiser as often as said, behind its mode token, and the way back."""

import dataclasses
import json

import cattrs
import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.objectives import UL2
from gptjax.objectives.corruption import parts_of
from gptjax.objectives.denoisers import PAPER, Denoiser
from gptjax.objectives.spans import noise_counts, rebuilt
from tests.objectives.rows import check_ahead, check_rows, maker, within

FAMILIES = ("encoder_decoder", "decoder")


@pytest.mark.parametrize("family", FAMILIES)
def test_rows(family):
    for length in (12, 64, 127):
        check_rows(UL2(), length, family, count=4)
    check_rows(UL2(denoisers=(Denoiser("S", 0.25),)), 64, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_modes_and_the_way_back(family):
    denoisers = (*PAPER[:-1], dataclasses.replace(PAPER[-1], share=3.0))
    make, vocabulary, lengths = maker(UL2(denoisers=denoisers), 256, family)
    modes = {
        vocabulary.id(role): mode for role, mode in {"nlu": "R", "nlg": "X", "s2s": "S"}.items()
    }
    counts, noise, runs = dict.fromkeys("RSX", 0), 0, 900
    cut = [noise_counts(lengths.raw, one.rate, one.span)[0] for one in denoisers]
    for seed in range(runs):
        row, ids = make(seed)
        source, targets = parts_of(row)
        mode = modes[int(source[0])]
        counts[mode] += 1
        spans = np.isin(targets, vocabulary.all_sentinels).sum()
        noise += len(targets) - spans - 1
        assert np.array_equal(rebuilt(source[1:], targets, vocabulary), ids)
        if mode == "S":
            assert spans == 1 and len(targets) == cut[2] + 2
            assert np.array_equal(source[1:-2], ids[: -cut[2]])
        assert row["weights"].sum() == len(targets)
    for mode, p in {"R": 2 / 9, "S": 1 / 9, "X": 6 / 9}.items():
        assert within(counts[mode], p * runs, (p * (1 - p) * runs) ** 0.5)
    shares = np.array([1, 1, 1, 1, 1, 1, 3]) / 9
    mean = shares @ cut
    assert within(noise, runs * mean, (runs * (shares @ np.square(cut) - mean**2)) ** 0.5)


def test_a_mixture_survives_its_file():
    objective = UL2()
    tree = json.loads(json.dumps(dataclasses.asdict(objective)))
    assert cattrs.Converter(forbid_extra_keys=True).structure(tree, UL2) == objective


def test_pairs_of_a_prefix():
    check_ahead(UL2(), 200)


@pytest.mark.parametrize(
    ("denoisers", "message"),
    [
        ((), "objective.denoisers is empty"),
        (("R",), "not a tuple of Denoiser"),
        ((Denoiser("R", 1.5),), r"objective.denoisers.0.rate is 1.5"),
        ((Denoiser("R", "a"),), r"objective.denoisers.0.rate is 'a'"),
        ((PAPER[0], Denoiser("Q", 0.5)), r"objective.denoisers.1.mode is 'Q', not one of R, S, X"),
        ((Denoiser("X", 0.5, 0.1),), r"objective.denoisers.0.mean_span is 0.1"),
        ((Denoiser("X", 0.5, share=0.0),), r"objective.denoisers.0.share is 0.0"),
    ],
)
def test_bad_fields(denoisers, message):
    with pytest.raises(BadInput, match=message):
        UL2(denoisers=denoisers).validate()
