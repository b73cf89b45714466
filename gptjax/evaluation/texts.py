"""Continuations as text: prompts from files, text as it grows, stop strings, what else was likely.

Anything with a `config`, `params` and a `tokenizer` is a `Source`: a finished run, or somebody
else's weights.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gptjax.errors import BadInput, printable
from gptjax.evaluation.beams import beam_search
from gptjax.evaluation.generate import Clock, Row, generate_rows
from gptjax.evaluation.reading import Given, checked
from gptjax.evaluation.sampling import Sampling
from gptjax.models.config import DecoderConfig

UNKNOWN = "\ufffd"  # what decoding makes of bytes that are no character, or none yet
CONTEXT = 16  # tokens of the prompt before a continuation that its decoding may depend on


class Source(Protocol):
    """A model to be asked, on the mesh that its parameters are on; `tokenizer` may be None."""

    config: DecoderConfig
    params: Any
    tokenizer: Any


@dataclass(frozen=True)
class Prompt:
    """What is continued: int32 [P] with the document's start, and the text that they are of.

    given: what a model reads of it beside them, where it does.
    """

    ids: np.ndarray
    text: str
    given: Given | None = None


@dataclass(frozen=True)
class Text:
    """One continuation of a prompt.

    text: without the stop string; tokens: up to the one with which the stop string was whole;
    ended: "end" (of the document), "stop" (a stop string) or "length"; score: of a beam; row: the
    same as numbers, of a drawn one. Where blanks of the prompt were filled, `blanks` has the name
    and the text of each, and `text` is all of it.
    """

    prompt: Prompt
    sample: int
    text: str
    tokens: np.ndarray
    ended: str
    score: float | None = None
    row: Row | None = None
    blanks: tuple[tuple[str, str], ...] | None = None

    def record(self) -> dict:
        """A JSON object for a line of a file."""
        record = {
            "prompt": self.prompt.text,
            "sample": self.sample,
            "text": self.text,
            "tokens": self.tokens.tolist(),
            "ended": self.ended,
        }
        if self.blanks is not None:
            record["blanks"] = [list(blank) for blank in self.blanks]
        if self.score is not None:
            record["score"] = self.score
        if self.row is not None and self.row.logprobs is not None:
            record["logprobs"] = [round(float(x), 5) for x in self.row.logprobs]
        return record


class TextStream:
    """The text of tokens as they come: whole characters, and nothing that may begin a stop string.

    decode: ids to text, U+FFFD where bytes are no character; before: the ids that came before.
    After `stopped` the text ended before a stop string and nothing more is told.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        before: Sequence[int] = (),
        stops: Sequence[str] = (),
    ):
        self.decode, self.stops = decode, tuple(stops)
        self.before = list(before)[-CONTEXT:]
        self.base = len(decode(self.before).rstrip(UNKNOWN)) if self.before else 0
        self.ids: list[int] = []
        self.shown = 0
        self.text = ""
        self.stopped = False

    def push(self, ids: Iterable[int]) -> str:
        """The text that may be shown after these tokens, beyond what was."""
        new = ""
        for i in ids:
            if self.stopped:
                break
            self.ids.append(int(i))
            new += self._grown(last=False) if self.stops else ""
        return new if self.stops else self._grown(last=False)

    def close(self) -> str:
        """What was held back, as it stands."""
        return self._grown(last=True)

    def _grown(self, last: bool) -> str:
        if self.stopped:
            return ""
        text = self.decode([*self.before, *self.ids])[self.base :]
        ends = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        if ends:
            text, self.stopped = text[: min(ends)], True
        elif not last:
            text = text.rstrip(UNKNOWN)
            text = text[: len(text) - self._begun(text)]
        new = text[self.shown :]
        self.shown, self.text = max(self.shown, len(text)), self.text + new
        return new

    def _begun(self, text: str) -> int:
        """How many characters at the end may belong to a stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self.stops):
                return size
        return 0


def read_prompts(path: str | Path) -> list[str | list[int]]:
    """The prompts of a file: one a line, or in a .jsonl file a JSON value a line.

    That is a string, or an object with `prompt` (text) or `ids` (token ids). Blank lines count for
    nothing. BadInput for a file without prompts, or that cannot be read.
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadInput(f"the prompts in {path} cannot be read: {why}") from None
    prompts = []
    for number, line in enumerate(content.split("\n"), 1):
        line = line.removesuffix("\r")
        if line.strip():
            whole = path.suffix in (".jsonl", ".ndjson")
            prompts.append(_json_prompt(line, f"{path}, line {number}") if whole else line)
    if not prompts:
        raise BadInput(f"{path} holds no prompt: give one a line")
    return prompts


def _json_prompt(line: str, where: str) -> str | list[int]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise BadInput(f"{where} is no JSON: {error}") from None
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("prompt"), str):
        return value["prompt"]
    ids = value.get("ids") if isinstance(value, dict) else None
    if isinstance(ids, list) and all(type(i) is int and abs(i) < 2**31 for i in ids):
        return ids
    raise BadInput(
        f"{where}: give a string, or an object with 'prompt' (a string) or 'ids' (integers)"
    )


def encoded(source: Source, prompts: Iterable[str | Sequence[int]], begin: str) -> list[Prompt]:
    """Every prompt as the model reads it; BadInput for one that it cannot.

    begin: "separator" puts the token between documents before a text, "none" nothing. Ids are
    taken as they are.
    """
    tokenizer, found = source.tokenizer, []
    for prompt in prompts:
        if not isinstance(prompt, str):
            text = tokenizer.decode(prompt) if tokenizer is not None else ""
            found.append(Prompt(np.asarray(prompt, np.int32), text))
            continue
        if tokenizer is None:
            raise BadInput(
                "the weights come without a tokenizer: give prompts as ids, in a .jsonl file of "
                'lines such as {"ids": [1, 2, 3]}'
            )
        start = [tokenizer.separator_id] if begin == "separator" else []
        ids = np.array([*start, *tokenizer.encode(prompt)], np.int32)
        found.append(Prompt(ids, prompt))
    context = source.config.context_length
    for prompt in found:
        if len(prompt.ids) >= context:
            raise BadInput(
                f"a prompt of {len(prompt.ids)} tokens ({_short(prompt.text)}) leaves no room in "
                f"the model's context of {context}: give at most {context - 1}"
            )
    checked(source.config, [prompt.ids for prompt in found])
    return found


def _short(text: str, most: int = 24) -> str:
    return repr(text if len(text) <= most else text[:most] + "...")


def generate_texts(
    source: Source,
    prompts: Sequence[Prompt],
    count: int,
    sampling: Sampling,
    *,
    num_samples: int = 1,
    stops: Sequence[str] = (),
    on_text: Callable[[int, str], None] | None = None,
    top: int = 0,
    batch_size: int = 64,
    clock: Clock | None = None,
) -> list[Text]:
    """Continuations of up to `count` tokens, `num_samples` of the first prompt, then the second.

    `on_text(number, piece)` is told of text as it grows, in whole characters, with the number of
    the continuation. stops: strings before which a text ends. For `top` N the rows hold what else
    was likely.
    """
    decode, stop_token = _words(source)
    streams = [
        TextStream(decode, prompt.ids.tolist(), stops)
        for prompt in prompts
        for _ in range(num_samples)
    ]

    def heard(number: int, tokens: np.ndarray) -> bool:
        piece = streams[number].push(tokens)
        if piece and on_text is not None:
            on_text(number, piece)
        return streams[number].stopped

    rows = generate_rows(
        source.config,
        source.params,
        [prompt.given or prompt.ids for prompt in prompts],
        count,
        sampling,
        num_samples=num_samples,
        stop_token=stop_token,
        vocab_size=_vocabulary(source),
        on_tokens=heard if stops or on_text is not None else None,
        every=1 if on_text is not None else 8,
        batch_size=batch_size,
        top=top,
        clock=clock,
    )
    texts = []
    for number, (row, stream) in enumerate(zip(rows, streams, strict=True)):
        piece = stream.push(row.tokens[len(stream.ids) :]) + stream.close()
        if piece and on_text is not None:
            on_text(number, piece)
        ended = "stop" if stream.stopped else {"stop": "end"}.get(row.ended, row.ended)
        row = row.first(len(stream.ids))
        prompt, sample = prompts[number // num_samples], number % num_samples
        texts.append(Text(prompt, sample, stream.text, row.tokens, ended, row=row))
    return texts


def search_texts(
    source: Source,
    prompts: Sequence[Prompt],
    count: int,
    *,
    beams: int,
    length_penalty: float,
    num_samples: int = 1,
    batch_size: int = 64,
) -> list[Text]:
    """The best `num_samples` continuations of each prompt that a beam search finds."""
    decode, stop_token = _words(source)
    found = beam_search(
        source.config,
        source.params,
        [prompt.given or prompt.ids for prompt in prompts],
        count,
        beams=beams,
        length_penalty=length_penalty,
        num_results=num_samples,
        stop_token=stop_token,
        vocab_size=_vocabulary(source),
        batch_size=batch_size,
    )
    texts = []
    for prompt, results in zip(prompts, found, strict=True):
        for sample, beam in enumerate(results):
            stream = TextStream(decode, prompt.ids.tolist())
            stream.push(beam.tokens)
            stream.close()
            ended = "end" if beam.ended == "stop" else "length"
            texts.append(Text(prompt, sample, stream.text, beam.tokens, ended, beam.score))
    return texts


def _words(source: Source) -> tuple[Callable[[Sequence[int]], str], tuple[int, ...]]:
    """How ids become text, and the tokens that end a document."""
    tokenizer, ends = source.tokenizer, getattr(source, "ends", ())
    if tokenizer is None:
        return (lambda ids: ""), ends
    return tokenizer.decode, ends or (tokenizer.special.get("eos", tokenizer.separator_id),)


def _vocabulary(source: Source) -> int | None:
    """Ids that the tokenizer knows: a padded table has more, and a cut one may have fewer."""
    if source.tokenizer is None:
        return None
    return min(source.tokenizer.vocab_size, source.config.outputs)


def token_text(source: Source, token: int) -> str:
    """One token for a table: quoted text, or its number where it is no text of its own."""
    if source.tokenizer is None:
        return str(token)
    if token in _words(source)[1]:
        return "(end)"
    text = source.tokenizer.decode([token])
    return f"<{token}>" if not text or UNKNOWN in text else printable(repr(text))


def show_next(source: Source, text: Text) -> None:
    """A table of what the model holds likely after a prompt; one token must have been drawn."""
    from rich import box
    from rich.table import Table

    head = f"after {_short(text.prompt.text[-24:])}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=printable(head), title_justify="left")
    for name in ("", "token", "id", "probability", "sum"):
        table.add_column(name, justify="left" if name == "token" else "right")
    shares = np.exp(text.row.top_logprobs[0].astype(np.float64))
    for rank, (token, share, mass) in enumerate(
        zip(text.row.top_ids[0], shares, np.cumsum(shares), strict=True), 1
    ):
        cells = (token_text(source, int(token)), str(token), f"{share:.4f}", f"{mass:.4f}")
        table.add_row(str(rank), *cells)
    _console().print(table)


def show_steps(source: Source, text: Text) -> None:
    """A table of a continuation: a row for every token, with what else was likely there."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("drawn", no_wrap=True)
    table.add_column("probability", justify="right")
    table.add_column("likeliest", overflow="fold")
    row = text.row
    for step, token in enumerate(row.tokens):
        likely = "  ".join(
            f"{token_text(source, int(other))} {np.exp(logprob):.3f}"
            for other, logprob in zip(row.top_ids[step], row.top_logprobs[step], strict=True)
        )
        share = f"{np.exp(row.logprobs[step]):.4f}"
        table.add_row(str(step + 1), token_text(source, int(token)), share, likely)
    _console().print(table)


def _console():
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if console.is_terminal:
        return console
    return Console(highlight=False, markup=False, width=120)
