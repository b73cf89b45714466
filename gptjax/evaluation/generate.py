"""Continuations of prompts: drawn token by token (`generate`), or those that a beam search finds.

The decoding itself stands in `decode.py`, the drawing in `sampling.py`, the beams in `beams.py`.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.errors import BadInput
from gptjax.evaluation.decode import (
    Request,
    State,
    as_multiplied,
    begun,
    cache_length,
    everywhere,
    on_mesh,
    run,
    stops_of,
)
from gptjax.evaluation.reading import Given, checked, reading_of, room
from gptjax.evaluation.sampling import Sampling
from gptjax.models.config import TransformerConfig

SPREAD = 32  # prompts whose lengths differ by more than this are not decoded together


@dataclass(frozen=True)
class Row:
    """One continuation: tokens int32 [T], without the stop token that may have ended it.

    ended: "stop" (by the stop token or the callback) or "length". With `top` N asked for, log
    probabilities in nats before any sampling setting: logprobs [T] of the tokens, top_ids and
    top_logprobs [T, N] of the likeliest.
    """

    tokens: np.ndarray
    ended: str
    logprobs: np.ndarray | None = None
    top_ids: np.ndarray | None = None
    top_logprobs: np.ndarray | None = None

    def first(self, count: int) -> "Row":
        """The row with so many of its tokens."""
        cut = {
            f.name: getattr(self, f.name)[:count]
            for f in fields(self)
            if isinstance(getattr(self, f.name), np.ndarray)
        }
        return replace(self, **cut)


@dataclass
class Clock:
    """How long decoding took: to the first tokens, compilation with it, and all after them."""

    first_seconds: float = 0.0
    first_tokens: int = 0
    seconds: float = 0.0


def generate(
    config: TransformerConfig,
    params,
    prompts,
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    num_samples: int = 1,
    stop_token: int | Sequence[int] = -1,
    vocab_size: int | None = None,
    mesh=None,
    on_tokens: Callable[[int, np.ndarray], bool | None] | None = None,
    every: int = 1,
    batch_size: int = 64,
) -> list[np.ndarray]:
    """Up to `count` tokens after each prompt; each row ends before a stop token.

    prompts: int array [B, P], or a list of arrays of any lengths, or of `Given`, which have what is
    read both ways or by an encoder; what follows one does not depend on the others. The rows that
    come back are those of the first prompt, `num_samples` of them, then those of the second; sample
    i of every prompt draws from the same random numbers.
    `on_tokens(row, tokens)` is called with the new tokens of a row, `every` tokens at a time; the
    row ends when it returns True. Learned positions end with the context: rows are cut there.
    `vocab_size` leaves out padded ids that no tokenizer knows. BadInput for what cannot be.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    rows = generate_rows(
        config,
        params,
        prompts,
        count,
        sampling,
        num_samples=num_samples,
        stop_token=stop_token,
        vocab_size=vocab_size,
        mesh=mesh,
        on_tokens=on_tokens,
        every=every,
        batch_size=batch_size,
    )
    return [row.tokens for row in rows]


def generate_rows(
    config: TransformerConfig,
    params,
    prompts,
    count: int,
    sampling: Sampling,
    *,
    num_samples: int = 1,
    stop_token: int | Sequence[int] = -1,
    vocab_size: int | None = None,
    mesh=None,
    on_tokens: Callable[[int, np.ndarray], bool | None] | None = None,
    every: int = 1,
    batch_size: int = 64,
    top: int = 0,
    clock: Clock | None = None,
) -> list[Row]:
    """What `generate` does, with how every row ended and, for `top` N, what else was likely."""
    sampling.validate()
    for name, value in (("num_samples", num_samples), ("every", every), ("batch_size", batch_size)):
        if value < 1:
            raise BadInput(f"{name} = {value} must be 1 or more")
    vocab = checked_vocabulary(config, count, vocab_size)
    if not 0 <= top <= vocab:
        raise BadInput(f"top = {top} must be 0 or more and at most the vocabulary of {vocab}")
    prompts, stops = checked(config, prompts), stops_of(stop_token)
    if count == 0:
        none = np.zeros(0, np.int32)
        return [Row(none, "length") for _ in range(len(prompts) * num_samples)]
    rows: dict[int, Row] = {}
    params, mesh = on_mesh(params, mesh)
    with jax.set_mesh(mesh) if mesh is not None else nullcontext():
        params = as_multiplied(config, params)
        for group in groups(sizes(prompts), max(batch_size // num_samples, 1)):
            mine = [prompts[i] for i in group]
            lengths = np.tile([len(prompt.tokens) for prompt in mine], num_samples)
            limits = np.minimum(lengths + count, room(config, int(lengths.max()) + count))
            length = cache_length(config, int(limits.max()))
            reading = reading_of(config, mine, length)
            request = Request(
                jnp.asarray(lengths, jnp.int32),
                jnp.asarray(limits, jnp.int32),
                keys_of(sampling.seed, np.repeat(np.arange(num_samples), len(mine))),
                sampling.settings,
                jnp.asarray(stops),
                reading.later(num_samples),
            )
            state = begun(config, params, mine, reading, length, num_samples, top)
            # Row j of the batch is sample j // B of the group's prompt j mod B.
            places = [i * num_samples + sample for sample in range(num_samples) for i in group]
            heard = _Heard(places, lengths, stops, on_tokens)
            options = {"config": config, "method": sampling.method, "vocab": vocab}
            state = _driven(params, state, request, limits, heard, every, clock, options)
            for j, row in enumerate(_finished(state, lengths, limits, stops, heard.ended)):
                rows[places[j]] = row
    return [rows[i] for i in range(len(prompts) * num_samples)]


def keys_of(seed: int, samples_B):
    """A random key for every row, by the number of its sample."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return fold(jax.random.key(seed), jnp.asarray(samples_B, jnp.uint32))


def _driven(params, state: State, request, limits, heard, every, clock, options) -> State:
    """Runs the loop to its end, in pieces where somebody listens."""
    end, begin = int(limits.max()), time.perf_counter()
    index = int(np.min(request.lengths_B)) + 1
    state = run(params, state, request, jnp.int32(index), **options)
    index = int(state.index)
    if clock is not None:
        clock.first_seconds += time.perf_counter() - begin
        clock.first_tokens += int(np.sum(request.lengths_B < index))
        begin = time.perf_counter()
    while True:
        state = heard.told(state, index)
        if index >= end or bool(np.all(state.done_B)):
            break
        until = min(index + every, end) if heard.listener else end
        state = run(params, state, request, jnp.int32(until), **options)
        index = int(state.index)
    if clock is not None:
        clock.seconds += time.perf_counter() - begin
    return state


class _Heard:
    """Tells a listener of new tokens, row by row, and ends the rows that it wants ended."""

    def __init__(self, places, lengths, stops: np.ndarray, listener):
        self.places, self.stops, self.listener = places, stops, listener
        self.told_to = np.array(lengths)  # tokens of every row that the listener has been told of
        self.ended: dict[int, int] = {}  # where rows end that it ended
        self.closed = np.zeros(len(places), bool)

    def told(self, state: State, index: int) -> State:
        if self.listener is None:
            return state
        # Copies: the state's own memory is written over by the next step.
        tokens, done, asked = np.array(state.tokens_BL), np.array(state.done_B), False
        for row, place in enumerate(self.places):
            if self.closed[row] or self.told_to[row] >= index:
                continue
            new = tokens[row, self.told_to[row] : index]
            stops = np.flatnonzero(np.isin(new, self.stops))
            self.told_to[row] = index
            wanted = self.listener(place, new[: stops[0]] if stops.size else new)
            self.closed[row] = wanted or bool(done[row])
            if wanted:
                self.ended[row], asked = index, True
        return state._replace(done_B=everywhere(done | self.closed)) if asked else state


def _finished(state: State, lengths, limits, ends: np.ndarray, ended: dict[int, int]) -> list[Row]:
    tokens = np.asarray(state.tokens_BL)
    top = None if state.top is None else jax.tree.map(np.asarray, state.top)
    rows = []
    for row, (length, limit) in enumerate(zip(lengths, limits, strict=True)):
        here = tokens[row, length : ended.get(row, limit)]
        stops = np.flatnonzero(np.isin(here, ends))
        end = length + (int(stops[0]) if stops.size else len(here))
        how = "stop" if stops.size or row in ended else "length"
        noted = [] if top is None else [array[row, length:end] for array in top]
        rows.append(Row(tokens[row, length:end], how, *noted))
    return rows


def sizes(prompts: list[Given]) -> list[int]:
    """How many tokens are read before the first is written: of the source, where there is one."""
    return [len(one.tokens if one.source is None else one.source) for one in prompts]


def groups(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Which prompts are decoded together: at most `most`, of lengths within SPREAD tokens."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        group = found[-1] if found else None
        if not group or len(group) == most or lengths[i] - lengths[group[0]] > SPREAD:
            found.append([i])
        else:
            group.append(i)
    return found


def checked_vocabulary(config: TransformerConfig, count: int, vocab_size: int | None) -> int:
    """How many ids may be drawn; BadInput for a count or a number that cannot be."""
    vocab = config.outputs if vocab_size is None else vocab_size
    if count < 0 or not 0 < vocab <= config.outputs:
        raise BadInput(
            f"count = {count} must be 0 or more, vocab_size = {vocab} from 1 to the model's "
            f"{config.outputs}"
        )
    return vocab
