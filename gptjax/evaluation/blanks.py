"""Answers of models that fill blanks, or go on with what they read both ways: text in, text out.

Spans and whole texts are decoded at once, GLM's blanks one after another, each behind those that
were filled before it; an encoder fills all masks in one pass, each apart from the others.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.errors import BadInput
from gptjax.evaluation.beams import beam_search
from gptjax.evaluation.decode import DECODE_RULES, as_multiplied, on_mesh
from gptjax.evaluation.forms import Form
from gptjax.evaluation.generate import Clock, Row, generate_rows, groups
from gptjax.evaluation.reading import Given
from gptjax.evaluation.sampling import SEEDS, Sampling
from gptjax.evaluation.texts import Prompt, Text, generate_texts, search_texts
from gptjax.models.build import model_of
from gptjax.models.config import TransformerConfig
from gptjax.models.stack import logits

CANDIDATES = 5  # for a mask, where nobody asked for more


@dataclass(frozen=True)
class Asked:
    """A model whose answers are read by a form; a `texts.Source`."""

    config: TransformerConfig
    params: Any
    form: Form

    @property
    def tokenizer(self):
        return self.form.words


def answers(
    asked: Asked,
    prompts: Sequence[Prompt],
    count: int,
    sampling: Sampling,
    *,
    num_samples: int = 1,
    beams: int = 0,
    length_penalty: float = 0.6,
    stops: Sequence[str] = (),
    on_text: Callable[[int, str], None] | None = None,
    top: int = 0,
    batch_size: int = 64,
    clock: Clock | None = None,
) -> list[Text]:
    """What a model makes of prompts, `num_samples` of the first, then of the second.

    count: the most tokens of an answer, of GLM of a blank; beams: above 0 a search takes the place
    of drawing. The other arguments are those of `generate_texts`. BadInput for what cannot be.
    """
    form = asked.form
    if form.kind == "masks":
        if beams or num_samples > 1:
            raise BadInput(
                "an encoder fills every mask with its likeliest token: leave out beams and samples"
            )
        return _masks(asked, prompts, top or CANDIDATES, batch_size)
    if form.kind == "blocks":
        if beams and num_samples > 1:
            raise BadInput("blanks one after another have one search each: give num_samples=1")
        search = {"beams": beams, "length_penalty": length_penalty}
        return _blocks(asked, prompts, count, sampling, num_samples, search, batch_size)
    more = {"num_samples": num_samples, "batch_size": batch_size}
    if beams:
        more |= {"beams": beams, "length_penalty": length_penalty}
        found = search_texts(asked, prompts, count, **more)
    else:
        more |= {"stops": stops, "on_text": on_text, "top": top, "clock": clock}
        found = generate_texts(asked, prompts, count, sampling, **more)
    return [form.read(one) for one in found]


def _blocks(asked, prompts, count, sampling, num_samples, search, batch_size) -> list[Text]:
    """Every blank from the first to the last, with the ends that GLM is trained with."""
    form, vocab = asked.form, asked.tokenizer.vocab_size
    sop, eop = form.vocabulary.id("sop"), form.end
    ids = [form.source(prompt) for prompt in prompts for _ in range(num_samples)]
    places = [np.flatnonzero(np.isin(one, list(form.blanks.values()))) for one in ids]
    fills: list[list[np.ndarray]] = [[] for _ in ids]
    ended = ["end"] * len(ids)
    options = {"stop_token": eop, "vocab_size": vocab, "batch_size": batch_size}
    for blank in range(max(map(len, places))):
        for sample in range(num_samples):
            rows = [i for i in range(sample, len(ids), num_samples) if blank < len(places[i])]
            if not rows:
                continue
            given = [_behind(ids[i], places[i], fills[i], sop) for i in rows]
            if search["beams"]:
                more = options | search
                found = [
                    one[0] for one in beam_search(asked.config, asked.params, given, count, **more)
                ]
            else:
                drawn = replace(sampling, seed=(sampling.seed + 7919 * sample + blank) % SEEDS)
                found = generate_rows(asked.config, asked.params, given, count, drawn, **options)
            for i, row in zip(rows, found, strict=True):
                fills[i].append(row.tokens)
                ended[i] = "length" if row.ended == "length" else ended[i]
    texts = []
    for i, spans in enumerate(fills):
        prompt = prompts[i // num_samples]
        names = [form.shown([number]) for number in ids[i][places[i]].tolist()]
        blanks = tuple(zip(names, (form.shown(x.tolist()) for x in spans), strict=True))
        whole = form.shown(_filled(ids[i], places[i], spans))
        tokens = np.concatenate(spans)
        texts.append(Text(prompt, i % num_samples, whole, tokens, ended[i], blanks=blanks))
    return texts


def _behind(ids: np.ndarray, places: np.ndarray, spans: list[np.ndarray], sop: int) -> Given:
    """Part A, the blanks that are filled, and the start of the next (`objectives.blanks`)."""
    parts, positions, blocks = [ids], [np.arange(len(ids))], [np.zeros(len(ids))]
    for place, span in zip(places, [*spans, np.zeros(0)], strict=False):
        parts += [[sop], span]
        positions.append(np.full(len(span) + 1, place))
        blocks.append(np.arange(len(span) + 1) + 1)
    joined = (np.concatenate(x).astype(np.int32) for x in (parts, positions, blocks))
    tokens, positions, blocks = joined
    return Given(tokens, prefix=len(ids), positions=positions, blocks=blocks)


def _filled(ids: np.ndarray, places: np.ndarray, spans: list[np.ndarray]) -> list[int]:
    found = dict(zip(places.tolist(), spans, strict=True))
    parts = [found[i].tolist() if i in found else [one] for i, one in enumerate(ids.tolist())]
    return [number for part in parts for number in part]


@functools.partial(jax.jit, static_argnames=("config", "vocab", "top"))
def _likeliest(params, tokens_BT, segments_BT, *, config, vocab: int, top: int):
    """Log probabilities of the likeliest tokens at every place, and the tokens: [B, T, top]."""
    model = model_of(config, DECODE_RULES)
    given = {"segments_BT": segments_BT}
    if config.kind == "task_modules":
        tokens_BT, given = None, {"source_BS": tokens_BT, "source_segments_BS": segments_BT}
    out = model.apply({"params": params}, tokens_BT, **given)
    logprobs_BTV = jax.nn.log_softmax(logits(out, DECODE_RULES)[..., :vocab], -1)
    return jax.lax.top_k(logprobs_BTV, top)


def _masks(asked, prompts, top: int, batch_size: int) -> list[Text]:
    form, config = asked.form, asked.config
    vocab = asked.tokenizer.vocab_size
    ids, texts = [prompt.ids for prompt in prompts], {}
    params, mesh = on_mesh(asked.params)
    with jax.set_mesh(mesh) if mesh is not None else nullcontext():
        params = as_multiplied(config, params)
        for group in groups([len(one) for one in ids], batch_size):
            longest = max(len(ids[i]) for i in group)
            length = min(-(-longest // 32) * 32, max(config.context_length, longest))
            tokens_BT = np.zeros((len(group), length), np.int32)
            segments_BT = np.full((len(group), length), -1, np.int32)
            for row, i in enumerate(group):
                tokens_BT[row, : len(ids[i])] = ids[i]
                segments_BT[row, : len(ids[i])] = 0
            arrays = jnp.asarray(tokens_BT), jnp.asarray(segments_BT)
            best, numbers = _likeliest(params, *arrays, config=config, vocab=vocab, top=top)
            best, numbers = np.asarray(best), np.asarray(numbers)
            for row, i in enumerate(group):
                texts[i] = _masked(form, prompts[i], best[row], numbers[row])
    return [texts[i] for i in range(len(prompts))]


def _masked(form: Form, prompt: Prompt, best_TN, numbers_TN) -> Text:
    """The prompt with its masks filled, from what is likely at every place."""
    ids = prompt.ids
    places = np.flatnonzero(np.isin(ids, list(form.blanks.values())))
    whole, tokens = ids.copy(), numbers_TN[places, 0]
    whole[places] = tokens
    row = Row(tokens, "filled", best_TN[places, 0], numbers_TN[places], best_TN[places])
    names = [form.shown([number]) for number in ids[places].tolist()]
    blanks = [(name, form.shown([one])) for name, one in zip(names, tokens.tolist(), strict=True)]
    text = form.shown(whole.tolist())
    return Text(prompt, 0, text, tokens, "filled", row=row, blanks=tuple(blanks))


def blank_lines(asked: Asked, text: Text, candidates: int = CANDIDATES) -> list[str]:
    """A line for every blank: its name, and what fills it or, of an encoder, what else could."""
    from gptjax.evaluation.texts import token_text

    lines = []
    for place, (name, fill) in enumerate(text.blanks or ()):
        told = repr(fill)
        if asked.form.kind == "masks":
            likely = zip(text.row.top_ids[place], text.row.top_logprobs[place], strict=True)
            told = "  ".join(
                f"{token_text(asked, int(token))} {np.exp(logprob):.3f}"
                for token, logprob in list(likely)[:candidates]
            )
        lines.append(f"{name}  {told}")
    return lines
