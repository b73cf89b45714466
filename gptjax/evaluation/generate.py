"""Sampling from a decoder with a key-value cache, one compiled loop for all tokens.

Temperature, top-k (arXiv 1805.04833) and nucleus sampling (arXiv 1904.09751) compose in that
order; temperature 0 is greedy.
"""

import functools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.errors import BadInput
from gptjax.models.config import DecoderConfig
from gptjax.models.decoder import Decoder, empty_cache, logits
from gptjax.ops.shards import explicit_mesh, reshard
from gptjax.parallel import Rules, place

# Few sequences are decoded at once: they are not split over devices, the weights still are.
DECODE_RULES = Rules(batch=())


def filtered(logits_BV, top_k: int, top_p: float):
    """Logits outside the top k, and outside the smallest set of mass `top_p`, become -inf."""
    vocab = logits_BV.shape[-1]
    if 0 < top_k < vocab:
        least = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
    if top_p < 1.0:
        ordered_BV = -jnp.sort(-logits_BV, axis=-1)
        mass_BV = jnp.cumsum(jax.nn.softmax(ordered_BV, axis=-1), axis=-1)
        # The first token whose mass reaches top_p is still inside.
        inside_B1 = jnp.sum(mass_BV < top_p, axis=-1, keepdims=True)
        least = jnp.take_along_axis(ordered_BV, jnp.minimum(inside_B1, vocab - 1), axis=-1)
        logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
    return logits_BV


def choose(logits_BV, key, temperature: float, top_k: int, top_p: float):
    """One token per row, int32 [B]."""
    if temperature == 0.0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    kept_BV = filtered(logits_BV / temperature, top_k, top_p)
    return jax.random.categorical(key, kept_BV, axis=-1).astype(jnp.int32)


@functools.partial(
    jax.jit,
    static_argnames=("config", "count", "temperature", "top_k", "top_p", "vocab_size", "stop"),
)
def _decode(params, prompt_BP, key, *, config, count, temperature, top_k, top_p, vocab_size, stop):
    model = Decoder(config, DECODE_RULES)
    batch, length = prompt_BP.shape

    def next_logits(tokens_BT, cache):
        out = model.apply({"params": params}, tokens_BT, cache=cache)
        last = out._replace(hidden_BTD=out.hidden_BTD[:, -1:])
        l_BV = logits(last, DECODE_RULES)[:, 0]
        if explicit_mesh() is not None:  # sampling sorts rows, so they are made whole
            l_BV = reshard(l_BV, jax.P(None, None))
        return l_BV[:, :vocab_size], out.cache

    def pick(l_BV, index):
        return choose(l_BV, jax.random.fold_in(key, index), temperature, top_k, top_p)

    def more(carry):
        index, _, _, _, done_B = carry
        return (index < count) & ~jnp.all(done_B)

    def one(carry):
        index, token_B, out_BC, cache, done_B = carry
        out_BC = jax.lax.dynamic_update_slice_in_dim(out_BC, token_B[:, None], index, axis=1)
        l_BV, cache = next_logits(token_B[:, None], cache)
        token_B = jnp.where(done_B, stop, pick(l_BV, index + 1))
        return index + 1, token_B, out_BC, cache, done_B | (token_B == stop)

    slots = empty_cache(config, batch, length + count, DECODE_RULES)
    l_BV, cache = next_logits(prompt_BP, slots)
    token_B = pick(l_BV, 0)
    out_BC = place(jnp.full((batch, count), stop, jnp.int32), (None, None), DECODE_RULES)
    carry = (jnp.zeros((), jnp.int32), token_B, out_BC, cache, token_B == stop)
    return jax.lax.while_loop(more, one, carry)[2]


def generate(
    config: DecoderConfig,
    params,
    prompt_BP,
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_token: int = -1,
    vocab_size: int | None = None,
    mesh=None,
) -> list[np.ndarray]:
    """Up to `count` tokens after each prompt [B, P]; each row ends before its stop token.

    Learned positions end with the context: `count` is cut there. `vocab_size` leaves out padded
    ids that no tokenizer knows.
    """
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise BadInput(
            f"temperature = {temperature} and top_k = {top_k} must be 0 or more, "
            f"top_p = {top_p} above 0 and up to 1"
        )
    vocab = config.vocab_size if vocab_size is None else vocab_size
    if count < 0 or not 0 < vocab <= config.vocab_size:
        raise BadInput(
            f"count = {count} must be 0 or more, vocab_size = {vocab} from 1 to the model's "
            f"{config.vocab_size}"
        )
    prompt_BP = np.asarray(prompt_BP, np.int32)
    if prompt_BP.shape[1] == 0:
        raise BadInput("the prompt is empty: give at least one token")
    unknown = prompt_BP[(prompt_BP < 0) | (prompt_BP >= config.vocab_size)]
    if unknown.size:
        raise BadInput(
            f"token {unknown[0]} of the prompt is not in the vocabulary of {config.vocab_size}"
        )
    if config.positions == "learned":
        room = config.context_length - prompt_BP.shape[1]
        if room < 1:
            raise BadInput(
                f"a prompt of {prompt_BP.shape[1]} tokens leaves no room in a context of "
                f"{config.context_length}"
            )
        count = min(count, room)
    if count == 0:
        return [np.zeros(0, np.int32) for _ in prompt_BP]
    with jax.set_mesh(mesh) if mesh is not None else nullcontext():
        tokens_BC = _decode(
            params,
            jnp.asarray(prompt_BP),
            jax.random.key(seed),
            config=config,
            count=count,
            temperature=float(temperature),
            top_k=int(top_k),
            top_p=float(top_p),
            vocab_size=vocab,
            stop=stop_token,
        )
    rows = np.asarray(tokens_BC)
    ends = [np.flatnonzero(row == stop_token) for row in rows]
    return [row[: end[0]] if end.size else row for row, end in zip(rows, ends, strict=True)]
