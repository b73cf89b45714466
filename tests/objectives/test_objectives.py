"""All objectives by name, and what is true of each."""

import subprocess
import sys

import pytest

from gptjax.errors import BadInput
from gptjax.objectives import FAMILIES, OBJECTIVES, MaskedLM, objective_of, possible

CLASSES = {"next": 2, "order": 2, "three_way": 3, "none": 0}


def test_by_name():
    assert objective_of("masked_lm") is MaskedLM
    assert all(one.kind == kind for kind, one in OBJECTIVES.items())
    with pytest.raises(BadInput, match=r"no objective 'mask_lm'; did you mean 'masked_lm'"):
        objective_of("mask_lm")
    with pytest.raises(BadInput, match="'rewards'; there are next_token, masked_lm, "):
        objective_of("rewards")


def test_families():
    assert possible("encoder") == ("masked_lm",)
    assert possible("two_stream") == ("permutation_lm",)
    assert {"span_corruption", "ul2", "prefix_lm", "denoising"} == set(possible("encoder_decoder"))
    assert "next_token" in possible("decoder") and "glm" in possible("decoder")
    assert {family for one in OBJECTIVES.values() for family in one.families} == set(FAMILIES)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_each_is_valid_as_it_is(kind):
    objective = OBJECTIVES[kind]()
    objective.validate()
    for family in objective.families:
        lengths = objective.lengths(128, family)
        read = lengths.tokens + (lengths.source if family == "task_modules" else 0)
        assert max(lengths.tokens, lengths.source) <= 128 and lengths.predicted <= read
    assert len(set(objective.roles(128))) == len(objective.roles(128))
    with pytest.raises(BadInput, match=r"objective.z_loss is -1.0; give 0 or more"):
        OBJECTIVES[kind](z_loss=-1.0).validate()


def test_classes():
    for sentences, classes in CLASSES.items():
        objective = MaskedLM(sentences=sentences)
        assert objective.classes() == classes and objective.in_place == (not classes)


def test_no_jax_at_import():
    code = "import sys, gptjax.objectives; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
