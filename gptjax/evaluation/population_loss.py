"""The exact expected loss of a model on facts that can all be listed.

No sample is drawn: every possible fact of `data.facts` is read once and weighted by its
probability, so the only error is that of float32 inside a fact's own loss.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.data.config import DataConfig
from gptjax.data.zipf import ZipfFacts, entropy, sequences
from gptjax.errors import BadInput
from gptjax.models.stack import logits
from gptjax.training.loop import to_mesh

MOST_SEQUENCES = 1 << 24  # about ten minutes for a model of 100,000 parameters on two cores


class PopulationLoss(NamedTuple):
    """Nats: the mean over all tokens of a fact, and by position [length].

    Entry t of `by_position` is the loss of the token after place t; `data.zipf.entropy` has the
    least of each in the same order.
    """

    per_token: float
    by_position: np.ndarray


def population_loss(
    apply: Callable, params, facts: ZipfFacts, *, mesh=None, chunk: int = 8192
) -> PopulationLoss:
    """The expected loss of `apply({"params": params}, tokens_BT) -> Output` under the law.

    `apply` is a module's, such as `Decoder(config).apply`. `chunk` facts are read at once; on a
    mesh of several devices they are split over its batch axes, whose size must divide `chunk`.
    Raises `BadInput` where there are too many facts to list.
    """
    return make_population_loss(apply, facts, mesh=mesh, chunk=chunk)(params)


def make_population_loss(
    apply: Callable, facts: ZipfFacts, *, mesh=None, chunk: int = 8192
) -> Callable[..., PopulationLoss]:
    """`params -> PopulationLoss`, compiled once for many evaluations."""
    if facts.sequences > MOST_SEQUENCES:
        raise BadInput(
            f"data.facts can make {facts.sequences:,} different facts, too many to read each; "
            f"the most is {MOST_SEQUENCES:,}: take fewer data.facts.keys or data.facts.values"
        )

    @jax.jit
    def nats(params, batch):
        """[T]: the weighted losses of a chunk, by position."""
        scores_BTV = logits(apply({"params": params}, batch["tokens"]))
        log_z_BT = jax.nn.logsumexp(scores_BTV, axis=-1)
        hit_BTV = jnp.arange(scores_BTV.shape[-1])[None, None] == batch["targets"][..., None]
        chosen_BT = jnp.sum(jnp.where(hit_BTV, scores_BTV, 0.0), axis=-1)
        return jnp.sum(batch["weights"][:, None] * (log_z_BT - chosen_BT), axis=0)

    def measure(params) -> PopulationLoss:
        total = np.zeros(facts.length)
        for ids, weights in sequences(facts, chunk):
            sums = nats(params, placed(_batch(facts, ids, weights, chunk)))
            total += np.asarray(jax.device_get(sums), np.float64)
        return PopulationLoss(float(total.mean()), total)

    def placed(batch):
        if mesh is None:
            return batch
        index, count = jax.process_index(), jax.process_count()
        return to_mesh({name: np.split(x, count)[index] for name, x in batch.items()}, mesh)

    return measure


def exact_figures(data: DataConfig, apply: Callable, params, mesh) -> dict[str, float]:
    """`population_loss` and `entropy` for a run's result; empty where data has no exact loss.

    It is left out where there are more facts than it is worth to read.
    """
    if data.corpus != "zipf_facts" or data.facts.sequences > MOST_SEQUENCES:
        return {}
    with jax.set_mesh(mesh):
        loss = population_loss(apply, params, data.facts, mesh=mesh)
    return {"population_loss": loss.per_token, "entropy": entropy(data.facts).per_token}


def _batch(facts: ZipfFacts, ids: np.ndarray, weights: np.ndarray, rows: int) -> dict:
    """Tokens, targets and weights; the last chunk is filled up with facts of weight 0."""
    filled = np.zeros((rows, facts.length), np.int32)
    filled[: len(ids)] = ids
    targets = np.full_like(filled, facts.separator)
    targets[:, :-1] = filled[:, 1:]
    scale = np.zeros(rows, np.float32)
    scale[: len(weights)] = weights
    return {"tokens": filled, "targets": targets, "weights": scale}
