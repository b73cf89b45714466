"""What is minimised. An objective calls a model through an `apply` function."""

from gptjax.errors import BadInput, did_you_mean
from gptjax.objectives.base import FAMILIES, Family, Lengths, LossSums, Objective
from gptjax.objectives.blanks import GLM
from gptjax.objectives.denoisers import UL2
from gptjax.objectives.denoising import Denoising
from gptjax.objectives.masked import MaskedLM
from gptjax.objectives.multi_task import MultiTask
from gptjax.objectives.next_token import NextToken
from gptjax.objectives.permutation import PermutationLM
from gptjax.objectives.prefix import PrefixLM
from gptjax.objectives.spans import SpanCorruption

# By the name that a command line and a run's files have for each.
OBJECTIVES: dict[str, type[Objective]] = {
    one.kind: one
    for one in (
        NextToken,
        MaskedLM,
        SpanCorruption,
        UL2,
        PrefixLM,
        GLM,
        PermutationLM,
        Denoising,
        MultiTask,
    )
}


def objective_of(kind: str) -> type[Objective]:
    """The objective of this name; BadInput, which lists all, for none."""
    if kind in OBJECTIVES:
        return OBJECTIVES[kind]
    hint = did_you_mean(str(kind), OBJECTIVES)
    raise BadInput(f"there is no objective {kind!r}{hint}; there are {', '.join(OBJECTIVES)}")


def possible(family: Family) -> tuple[str, ...]:
    """The names of the objectives that models of a family can carry."""
    return tuple(kind for kind, one in OBJECTIVES.items() if family in one.families)


__all__ = [
    "FAMILIES",
    "GLM",
    "OBJECTIVES",
    "UL2",
    "Denoising",
    "Family",
    "Lengths",
    "LossSums",
    "MaskedLM",
    "MultiTask",
    "NextToken",
    "Objective",
    "PermutationLM",
    "PrefixLM",
    "SpanCorruption",
    "objective_of",
    "possible",
]
