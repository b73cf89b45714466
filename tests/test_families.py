"""The study of model families: what its three sweeps have in common."""

import pytest

from gptjax import registry

FAMILIES = ("causal", "prefix", "encoder_decoder")


@pytest.fixture(scope="module")
def points():
    return [registry.get(f"family_{name}").points for name in FAMILIES]


def test_budgets_sizes_and_tokens_are_equal(points):
    for three in zip(*points, strict=True):
        causal, both, pair = (point.experiment for point in three)
        assert len({point.row["name"] for point in three}) == 1
        for point in three:
            assert point.flops == pytest.approx(float(point.group), rel=0.004)
            assert point.parameters == pytest.approx(three[0].parameters, rel=0.003)
        assert causal.optim == both.optim == pair.optim and causal.data == both.data == pair.data
        assert pair.model.num_layers * 2 == causal.model.num_layers and causal.model == both.model
        raws = {
            (one.lengths.raw, one.lengths.overlap, one.lengths.predicted)
            for one in (causal, both, pair)
        }
        assert raws == {(128, 1, 65)}
        assert 1.65 < pair.steps / both.steps < 2 > pair.steps / causal.steps


def test_rates_are_tried_around_the_one_that_is_taken(points):
    for name, family in zip(FAMILIES, points, strict=True):
        tried = {point.row["optim.lr"] for point in registry.get(f"family_{name}_rates").points}
        taken = {p.experiment.optim.lr for p in family if p.experiment.model.d_model == 32}
        assert len(taken) == 1 and taken < tried and min(tried) < min(taken) < max(tried)
