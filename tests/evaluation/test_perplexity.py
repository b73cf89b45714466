import math

import numpy as np
import pytest

from gptjax import DataConfig, MaskedLM, MeshConfig, NextToken
from gptjax.evaluation.perplexity import Perplexity
from gptjax.objectives import LossSums
from gptjax.parallel import make_mesh


class TwoBatches:
    """Three tokens: `a` is one byte, `é` two, and the separator none."""

    config = DataConfig()
    token_bytes = np.array([1, 2, 0], np.int32)

    def validation_batches(self, count, process_index, process_count, rows):
        assert (count, process_index, process_count) == (2, 0, 1)
        for row in ([0, 1, 2, 0], [1, 1, 0, 2]):
            ids = np.array([row], np.int32)
            yield {"tokens": np.roll(ids, 1), "targets": ids}


def test_bits_per_byte_by_hand():
    """Eight predictions of 3 bits each over 1+2+0+1 + 2+2+1+0 = 9 bytes."""
    nats = 3 * math.log(2)

    def eval_step(params, batch):
        count = batch["targets"].size
        return LossSums(None, np.float32(nats * count), np.float32(params), np.float32(count))

    split = {"process_index": 0, "process_count": 1}
    mesh = make_mesh(MeshConfig(data=1))
    row = Perplexity(eval_step, TwoBatches(), 2, mesh, split, NextToken())(1.0)
    assert row["validation_loss"] == pytest.approx(nats)
    assert row["bits_per_byte"] == pytest.approx(8 * 3 / 9)
    assert row["validation_accuracy"] == pytest.approx(2 / 8)
    # What is predicted apart from each other has no likelihood.
    assert "bits_per_byte" not in Perplexity(eval_step, TwoBatches(), 2, mesh, split, MaskedLM())(
        1.0
    )
