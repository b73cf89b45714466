"""A batch of made-up text, shaped as the experiment's own data would be."""

import numpy as np

from gptjax.data.vocabulary import numbered_vocabulary


def example_batch(experiment, rows: int = 0) -> dict[str, np.ndarray]:
    """Rows of random ids as the experiment's objective makes them, by default as many as a batch.

    Documents are as long as windows.
    """
    data, rng = experiment.data, np.random.default_rng(0)
    rows, lengths = rows or data.batch_size, experiment.lengths
    vocabulary = numbered_vocabulary(experiment.model.vocab_size, experiment.roles)
    make = experiment.rows(vocabulary).make
    draw = lambda rng, count: rng.choice(vocabulary.ordinary, count)
    made = [make(draw(rng, lengths.raw + lengths.overlap), rng, draw) for _ in range(rows)]
    batch = {name: np.stack([row[name] for row in made]) for name in made[0]}
    if data.document_attention == "within":
        batch["segments"] = np.zeros((rows, lengths.raw), np.int32)
    if data.positions == "document":
        batch["positions"] = np.zeros((rows, lengths.raw), np.int32)
    return batch
