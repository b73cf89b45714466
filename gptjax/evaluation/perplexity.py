"""Validation loss in nats per predicted token and, tokenizer-free, in bits per byte of the text."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gptjax.data.config import IMAGES
from gptjax.data.loader import Rows
from gptjax.training.loop import to_mesh


@dataclass
class Perplexity:
    """Called with parameters under a mesh, it gives a row of validation figures.

    rows: what the objective makes of windows, None for the tokens that follow each; token_bytes: of
    every id, special ones among them. Bits per byte divide all nats by the UTF-8 bytes of the
    predicted text; separators between documents cost nats and hold no byte. They are told where the
    objective has a likelihood of whole text or of its continuation. Of images they are also told
    per dimension, a pixel.
    """

    eval_step: Any
    dataset: Any
    batches: int
    mesh: Any
    split: dict
    objective: Any
    rows: Rows | None = None
    token_bytes: np.ndarray | None = None

    def __call__(self, params) -> dict[str, float]:
        sums, text_nats, size = [], [], 0
        of = self.dataset.token_bytes if self.token_bytes is None else self.token_bytes
        for batch in self.dataset.validation_batches(self.batches, **self.split, rows=self.rows):
            # Waited for, as XLA:CPU's simulated devices deadlock on several independent programs.
            sums.append(jax.device_get(self.eval_step(params, to_mesh(batch, self.mesh))))
            said, targets, weights = self.objective.text(sums[-1], batch)
            counted = of[targets] * (1 if weights is None else weights > 0)
            size += int(counted.sum(dtype=np.int64))
            text_nats.append(float(said))
        size = _over_processes(size)
        nats = math.fsum(float(s.nats) for s in sums)
        tokens = math.fsum(float(s.tokens) for s in sums)
        figures = {"validation_loss": nats / tokens}
        if self.objective.likelihood in ("text", "continuation"):
            figures["bits_per_byte"] = math.fsum(text_nats) / math.log(2) / size
        figures["validation_accuracy"] = math.fsum(float(s.correct) for s in sums) / tokens
        for part in sums[0].parts or ():
            nats_of, correct, count = (
                math.fsum(float(getattr(s.parts[part], name)) for s in sums)
                for name in ("nats", "correct", "count")
            )
            figures[f"validation_{part}_loss"] = nats_of / count
            figures[f"validation_{part}_accuracy"] = correct / count
        image = IMAGES.get(self.dataset.config.corpus)
        if image is not None:  # windows hold whole images, each with one separator
            pixels = tokens * image[0] / (image[0] + 1)
            figures["bits_per_dimension"] = nats / math.log(2) / pixels
        return figures


def _over_processes(number: int) -> int:
    """The sum of a host's number over all hosts."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(np.sum(multihost_utils.process_allgather(np.int64(number))))
