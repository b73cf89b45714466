"""Attention patterns as values: which query may read which key.

A pattern knows its mask (the oracle of every kernel), the keys every query reads (the compute
ledger), the dense parts it is made of (what the kernels compute) and what a cache must keep of
it. `parse` makes one of a text such as `strided:128`;
`python -m gptjax.ops.patterns --show strided:128 --n 1024` draws it.

Widths count the query itself: of a window of w a query reads its own position and w - 1 others.
(The Sparse Transformer's paper has l + 1 keys in a strided head, its code, GPT-Neo and Mistral l.)
"""

import dataclasses
import functools

from gptjax.errors import BadInput, did_you_mean
from gptjax.ops.patterns.base import LARGEST, HeadPattern, Heads, Pattern
from gptjax.ops.patterns.blocks import BigBird, Longformer
from gptjax.ops.patterns.dense import Bidirectional, Causal, Prefix, Window
from gptjax.ops.patterns.images import ImageColumn, ImageConv, ImageRow
from gptjax.ops.patterns.sparse import Column, Dilated, Fixed, Local, Strided, Summary

ALL: tuple[type[HeadPattern], ...] = (
    Causal,
    Bidirectional,
    Prefix,
    Window,
    Column,
    Dilated,
    Strided,
    Local,
    Fixed,
    Summary,
    Longformer,
    BigBird,
    ImageRow,
    ImageColumn,
    ImageConv,
)
KINDS = {kind.name: kind for kind in ALL}
LONGEST_NAME = 40  # of a name that is echoed


def parse_layers(text: str) -> tuple[Pattern, ...]:
    """The patterns of the layers, in turn: `causal/window:256` is dense, banded, dense, ..."""
    return tuple(parse(part) for part in text.split("/"))


@functools.lru_cache(maxsize=256)
def parse(text: str) -> Pattern:
    """The pattern of a text: a name and, after a colon, its fields in order or by name.

    `window:256`, `fixed:128,16`, `longformer:512,2,causal`, `strided:128,window=129`; groups of
    heads are set apart by `|`. BadInput names the nearest kind or the field.
    """
    if "|" in text:
        return Heads(tuple(parse(part) for part in text.split("|")))
    name, _, rest = text.strip().partition(":")
    name = name.strip().lower().replace("-", "_")
    if not name:
        raise BadInput("an attention pattern is empty: name one on both sides of every / and |")
    if len(name) > LONGEST_NAME or name not in KINDS:
        name = name[:LONGEST_NAME]
        raise BadInput(
            f"there is no attention pattern {name!r}{did_you_mean(name, KINDS)} "
            f"(known: {', '.join(KINDS)})"
        )
    kind, given = KINDS[name], {}
    fields = [field.name for field in dataclasses.fields(kind)]
    usage = name + (":" + ",".join(fields) if fields else "")
    for place, word in enumerate(rest.split(",") if rest.strip() else []):
        key, equals, value = word.partition("=")
        if not equals:
            value = key
            key = fields[place] if place < len(fields) else ""
        key, value = key.strip(), value.strip()
        if equals and key not in fields:
            raise BadInput(
                f"pattern {text!r} has no field {key!r}; write {usage}{did_you_mean(key, fields)}"
            )
        if key not in fields or key in given:
            raise BadInput(f"pattern {text!r} has a field too many: write {usage}")
        given[key] = _number(value)
    needed = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
    missing = [field for field in needed if field not in given]
    if missing:
        raise BadInput(f"pattern {text!r} lacks {', '.join(missing)}: write {usage}")
    return kind(**given)


def _number(word: str) -> int | str:
    """The integer that a word says, or the word; what is far too large is one that is too large."""
    if not word.removeprefix("-").isdecimal():
        return word
    return int(word) if len(word) < 20 else LARGEST + 1
