"""Which token comes next: a repetition penalty, temperature, top-k and nucleus sampling.

They compose in that order: the penalty of CTRL (arXiv 1909.05858), temperature, top-k
(arXiv 1805.04833), nucleus (arXiv 1904.09751). CTRL divides the scores of tokens that were there
before by the penalty; a negative score is multiplied here instead, so that it falls too.
Temperature 0 takes the likeliest token.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax.errors import BadInput

SEEDS = 2**32  # beyond it jax's keys repeat


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 1.0  # 0 takes the likeliest
    top_k: int = 0  # 0: all
    top_p: float = 1.0  # the mass of the nucleus
    repetition_penalty: float = 1.0  # of tokens in the prompt or drawn before; 1: none
    seed: int = 0

    def validate(self) -> None:
        """BadInput for what cannot be."""
        if not 0 <= self.temperature < float("inf"):
            raise BadInput(f"temperature = {self.temperature} must be 0 (the likeliest) or more")
        if self.top_k < 0:
            raise BadInput(f"top_k = {self.top_k} must be 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top_p = {self.top_p} must be above 0 and up to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise BadInput(
                f"repetition_penalty = {self.repetition_penalty} must be above 0; 1 is none"
            )
        if not 0 <= self.seed < SEEDS:
            raise BadInput(f"seed = {self.seed} must be 0 or more and below {SEEDS}")

    @property
    def method(self) -> "Method":
        """What a program is compiled for."""
        greedy = self.temperature == 0
        return Method(
            greedy,
            0 if greedy else self.top_k,
            self.top_p < 1 and not greedy,
            self.repetition_penalty != 1,
        )

    @property
    def settings(self) -> "Settings":
        """The numbers that a compiled program takes."""
        values = (self.temperature or 1.0, self.top_p, self.repetition_penalty)
        return Settings(*(jnp.float32(value) for value in values))


class Method(NamedTuple):
    """The part of a `Sampling` that decides the program."""

    greedy: bool
    top_k: int
    nucleus: bool
    penalised: bool


class Settings(NamedTuple):
    """The part of a `Sampling` that a program is given: float32 scalars."""

    temperature: jax.Array
    top_p: jax.Array
    repetition_penalty: jax.Array


def filtered(logits_BV, top_k: int = 0, top_p=None):
    """Logits outside the top k, and outside the smallest set of mass `top_p`, become -inf.

    top_k: 0 keeps all; top_p: a number or a traced scalar, None keeps all.
    """
    vocab = logits_BV.shape[-1]
    ordered_BV = None
    if 0 < top_k < vocab:
        ordered_BV = jax.lax.top_k(logits_BV, top_k)[0]
        logits_BV = jnp.where(logits_BV < ordered_BV[:, -1:], -jnp.inf, logits_BV)
    if top_p is not None:
        if ordered_BV is None:
            ordered_BV = -jnp.sort(-logits_BV, axis=-1)
        mass_BV = jnp.cumsum(jax.nn.softmax(ordered_BV, axis=-1), axis=-1)
        # The first token whose mass reaches top_p is still inside.
        inside_B1 = jnp.sum(mass_BV < top_p, axis=-1, keepdims=True)
        last_B1 = jnp.minimum(inside_B1, ordered_BV.shape[-1] - 1)
        least_B1 = jnp.take_along_axis(ordered_BV, last_B1, axis=-1)
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    return logits_BV


def penalised(logits_BV, tokens_BL, known_L, penalty):
    """Logits with those of tokens that were there before made smaller.

    known_L: bool [L] or [B, L], which of the tokens count. penalty: above 1 makes repetitions
    rarer.
    """
    rows = jnp.arange(logits_BV.shape[0])[:, None]
    known_BL = jnp.broadcast_to(known_L, tokens_BL.shape)
    # Tokens that do not count lie outside the vocabulary, where nothing is written.
    where_BL = jnp.where(known_BL, tokens_BL, logits_BV.shape[-1])
    old_BL = logits_BV.at[rows, where_BL].get(mode="fill", fill_value=0.0)
    new_BL = jnp.where(old_BL > 0, old_BL / penalty, old_BL * penalty)
    return logits_BV.at[rows, where_BL].set(new_BL, mode="drop")


def choose(logits_BV, keys_B, method: Method, settings: Settings):
    """One token per row, int32 [B]; keys_B: a random key for every row."""
    if method.greedy:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / settings.temperature
    kept_BV = filtered(logits_BV, method.top_k, settings.top_p if method.nucleus else None)
    return jax.vmap(jax.random.categorical)(keys_B, kept_BV).astype(jnp.int32)
