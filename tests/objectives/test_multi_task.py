"""Rows of two tasks: one text is masked, the text after it is read in order."""

import functools

import jax
import numpy as np
import pytest

from gptjax import TaskModulesConfig
from gptjax.errors import BadInput
from gptjax.models.build import init_params
from gptjax.objectives import MaskedLM, MultiTask
from gptjax.training.step import gradients, loss_sums
from tests.objectives.rows import SYMBOLS, maker

FAMILY = "task_modules"


@pytest.mark.parametrize("changes", [{}, {"sentences": "order"}, {"unit": "word"}])
def test_a_row_is_a_masked_one_and_the_text_after_it(changes):
    """The first half is what masked_lm makes of the same ids with the same numbers."""
    make, _, lengths = maker(MultiTask(**changes), 40, FAMILY)
    masked, _, own = maker(MaskedLM(**changes), 40, FAMILY)
    hidden = own.predicted
    assert (own.tokens, own.source, own.overlap) == (0, 40, 0)
    assert lengths == (own.raw + 40, 40, hidden + 40, 40, 1, 0.0)
    for seed in range(8):
        row, ids = make(seed)
        first, _ = masked(seed, ids[: own.raw])
        text = ids[own.raw :]
        for name in ("source", "at", "source_segments", "source_types", "label"):
            assert (name in row) == (name in first)
            if name in row:
                assert np.array_equal(row[name], first[name]), name
        assert np.array_equal(row["tokens"], text[:-1])
        assert np.array_equal(row["targets"], [*first["targets"], *text[1:]])
        assert np.array_equal(row["weights"], [*first["weights"], *[1.0] * 40])


def test_hidden_tokens_and_targets_give_the_text_back():
    make, vocabulary, _ = maker(MultiTask(mask_share=1.0, random_share=0.0), 61, FAMILY)
    for seed in range(20):
        row, ids = make(seed)
        hidden = row["at"].shape[0]
        real = row["weights"][:hidden] > 0
        text = row["source"].copy()
        text[row["at"][real]] = row["targets"][:hidden][real]
        assert (row["source"][row["at"][real]] == vocabulary.id("mask")).all()
        assert np.array_equal(np.append(text, row["tokens"]), ids[:-1])
        assert not (ids[row["at"][real]] == SYMBOLS).any()


def test_a_share_of_one_task_alone_is_refused():
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(BadInput, match="--objective=masked_lm or next_token"):
            MultiTask(masked_share=share).validate()


def test_microbatches_add_up_to_the_batch_also_where_nothing_is_hidden():
    model = TaskModulesConfig(
        vocab_size=130, context_length=8, num_layers=1, d_model=8, num_heads=1, task_layers=1
    )
    objective = MultiTask(rate=0.05)
    make, _, _ = maker(objective, 8, FAMILY)
    made = [make(seed)[0] for seed in range(8)]
    batch = {name: np.stack([row[name] for row in made]) for name in made[0]}
    assert (batch["weights"][:, : batch["at"].shape[1]].sum(1) == 0).any()
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    sums_of = functools.partial(loss_sums, model, objective)
    whole, parts = (
        jax.jit(lambda p, b, n=n: gradients(sums_of, n, p, b, None)[0])(params, batch)
        for n in (1, 8)
    )
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
