"""Prompts in the way of an objective: what a model reads of them, and what its answer means.

A prompt may hold blanks, written as the vocabulary shows them (<extra_id_0>, [MASK]). A model of
span corruption or of UL2 answers with what stood in each, after its sentinel; a denoising one with
the whole text; GLM with one blank after another; an encoder with a token for each mask. A prompt
without a blank gets one at its end where the objective has such blanks, and a prefix LM goes on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from gptjax.data.vocabulary import NAMES, SENTINEL, Vocabulary, describe, vocabulary_of
from gptjax.errors import BadInput
from gptjax.evaluation.reading import Given, checked, checked_ids, room
from gptjax.evaluation.texts import Prompt, Text
from gptjax.models.config import TransformerConfig
from gptjax.objectives import (
    UL2,
    Denoising,
    MaskedLM,
    MultiTask,
    Objective,
    PrefixLM,
    SpanCorruption,
)
from gptjax.objectives.denoisers import ROLES
from gptjax.objectives.spans import rebuilt

# continuation: what follows; spans: what stood in the sentinels' places; whole: the text without
# blanks; blocks: a blank at a time, at its mask's position (GLM); masks: a token for each.
Kind = Literal["continuation", "spans", "whole", "blocks", "masks"]
MASKS = ("mask", "smask", "gmask")
LIKE_BLANKS = re.compile(r"<extra_id_\d+>|\[[sg]?MASK\]|<mask>")


@dataclass(frozen=True, eq=False)
class Form:
    """How text is put to a model, and what it answers.

    blanks, modes: names and ids that a prompt may hold; start: what a decoder behind an encoder
    begins with; end: the id that ends an answer, -1 for none; before, after: ids around every
    source; completes: whether a prompt without a blank gets one at its end; separated: whether the
    token between documents stood before texts in training; reading: of a prompt, by a decoder.
    """

    kind: Kind
    config: TransformerConfig
    tokenizer: object
    vocabulary: Vocabulary
    blanks: dict[str, int]
    start: int = -1
    end: int = -1
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    modes: dict[str, int] | None = None
    completes: bool = False
    separated: bool = False
    reading: Literal["both", "causal"] = "both"

    @property
    def words(self) -> "Named":
        """A tokenizer for answers, in which blanks have names."""
        return Named(self)

    @cached_property
    def _named(self) -> Vocabulary:
        return replace(self.vocabulary, names={i: name for name, i in self.blanks.items()})

    def shown(self, ids: Sequence[int]) -> str:
        """The text of ids, with the names of blanks and nothing for other special tokens."""
        kept = [i for i in ids if i in self._named.names or i < self.vocabulary.size]
        return describe(kept, self._named, self.tokenizer)

    def prompt(self, text: str, begin: Literal["separator", "none"] = "separator") -> Prompt:
        """What a model reads of a text; BadInput for a blank that it does not know.

        begin: whether the token between documents stands before the text, where training had it.
        """
        ids = self.ids_of(text)
        first = [self.vocabulary.separator] if begin == "separator" and self.separated else []
        mode = [i for i in ids[:1] if i in (self.modes or {}).values()]
        ids = [*mode, *first, *ids[len(mode) :]]
        return self.asked(self._completed(ids), text)

    def ids_of(self, text: str) -> list[int]:
        """The ids of a text in which the names of blanks and modes are single tokens."""
        marks, found = self.blanks | (self.modes or {}), []
        for other in LIKE_BLANKS.findall(text):
            if other not in marks:
                raise BadInput(self._unknown(other))
        parts = re.split("|".join(map(re.escape, marks)), text) if marks else [text]
        names = re.findall("|".join(map(re.escape, marks)), text) if marks else []
        for part, name in zip(parts, [*names, None], strict=True):
            found += self.tokenizer.encode(part).tolist() if part else []
            found += [] if name is None else [marks[name]]
        if len(text) and "" in parts[1:-1] and self.kind == "spans":
            raise BadInput("two blanks of the prompt touch each other: write one for both")
        return found

    def _unknown(self, name: str) -> str:
        if not self.blanks:
            return f"the prompt holds {name}, and this model fills no blanks, it goes on"
        known = list(self.blanks)
        shown = known if len(known) < 4 else [known[0], "...", known[-1]]
        return f"the prompt holds {name}, and blanks of this model are {', '.join(shown)}"

    def _completed(self, ids: list[int]) -> list[int]:
        """With a blank at the end, if there is none, and with a mode."""
        blank = any(i in self.blanks.values() for i in ids)
        if self.modes and not any(i in self.modes.values() for i in ids[:1]):
            # The end of a text is S, spans within it are R.
            wanted = ("R", "X", "S") if blank else ("S", "X", "R")
            names = (NAMES[ROLES[one]][0] for one in wanted)
            ids = [next(self.modes[name] for name in names if name in self.modes), *ids]
        if not blank and self.completes:
            ends = {name: i for name, i in self.blanks.items() if name.startswith("[g")}
            ids = [*ids, next(iter((ends or self.blanks).values()))]
        if self.kind == "masks" and not blank:
            raise BadInput(
                f"the prompt holds no {next(iter(self.blanks))}: write one where the model is to "
                "fill in a token"
            )
        return ids

    def asked(self, ids: Sequence[int], text: str | None = None) -> Prompt:
        """What a model reads of the ids of a text with blanks, as a row of training has them."""
        text = self.shown(ids) if text is None else text
        ids = np.array([*self.before, *ids, *self.after], np.int32)
        c = self.config
        if self.kind == "masks":
            ids = checked_ids(c, ids)
            if room(c, len(ids)) < len(ids):
                raise BadInput(
                    f"a prompt of {len(ids)} tokens is longer than the context of "
                    f"{c.context_length}"
                )
            return Prompt(ids, text)
        if c.kind == "encoder_decoder":
            given = Given(np.array([self.start], np.int32), source=ids)
        else:
            given = Given(ids, prefix=len(ids) if self.reading == "both" else 0)
        checked(c, [given])
        return Prompt(given.tokens, text, given)

    def source(self, prompt: Prompt) -> np.ndarray:
        """int32 [S]: what a model reads of a prompt, all of it."""
        given = prompt.given
        return prompt.ids if given is None or given.source is None else given.source

    def inner(self, prompt: Prompt) -> np.ndarray:
        """int32 [n]: the same without what stands around every source, and without its mode."""
        source = self.source(prompt)
        source = source[len(self.before) : len(source) - len(self.after)]
        return source[1:] if source[:1] in [*(self.modes or {}).values()] else source

    def read(self, answer: Text) -> Text:
        """An answer with the blanks that it fills, and with its text rebuilt where that is said."""
        if self.kind == "spans":
            return self._spans(answer)
        if self.kind == "whole":
            return self._whole(answer)
        return answer

    def _spans(self, answer: Text) -> Text:
        inner = self.inner(answer.prompt)
        asked = [i for i in inner.tolist() if i in self.blanks.values()]
        if not asked:  # a task in words, of a model that was taught more than to fill blanks
            return answer
        vocabulary = replace(self.vocabulary, extra={}, special=self._sentinels)
        parts = (np.append(x, self.end) for x in (inner, answer.tokens))
        text = self.shown(rebuilt(*parts, vocabulary).tolist())
        places = np.flatnonzero(np.isin(answer.tokens, list(self.blanks.values())))
        parts = np.split(answer.tokens, places)[1:]
        spans = {int(part[0]): self.shown(part[1:].tolist()) for part in parts}
        found = ((self._named.names[i], spans[i]) for i in asked if i in spans)
        return replace(answer, text=text, blanks=tuple(found))

    @property
    def _sentinels(self) -> dict[str, int]:
        return {f"{SENTINEL}{i}": number for i, number in enumerate(self.blanks.values())}

    def _whole(self, answer: Text) -> Text:
        """What stands between the parts of the prompt that came back; the text ends with them."""
        name = next(iter(self.blanks))
        fixed = self.shown(self.inner(answer.prompt).tolist()).split(name)
        ends = "" if fixed[-1] else "$"
        pattern = "(.*?)".join(map(re.escape, fixed)) + ends
        found = re.match(pattern, answer.text, re.DOTALL) if len(fixed) > 1 else None
        if found is None:
            return replace(answer, blanks=())
        return replace(answer, text=found.group(0), blanks=tuple((name, x) for x in found.groups()))


@dataclass(frozen=True, eq=False)
class Named:
    """What the functions of `texts` ask of a tokenizer, of the answers of a form."""

    form: Form

    @property
    def vocab_size(self) -> int:
        return min(self.form.vocabulary.total, self.form.config.outputs)

    @property
    def separator_id(self) -> int:
        return self.form.end

    @property
    def special(self) -> dict[str, int]:
        return {"eos": self.form.end}

    def decode(self, ids) -> str:
        return self.form.shown([int(i) for i in ids])


def form_of(
    config: TransformerConfig, objective: Objective, tokenizer, length: int, prompts: Sequence = ()
) -> Form | None:
    """The form of a model that was trained here with rows of `length`; None: it goes on, no more.

    A model of several tasks goes on with prompts, but for such as hold a mask. BadInput for an
    objective whose models neither go on nor fill blanks.
    """
    if objective.kind == "next_token":
        return None
    vocabulary = vocabulary_of(tokenizer, objective.roles(length))
    if isinstance(objective, MultiTask):
        mask = vocabulary.names[vocabulary.id("mask")]
        if not any(isinstance(prompt, str) and mask in prompt for prompt in prompts):
            return None
    names = {i: name for i, name in vocabulary.names.items() if i != vocabulary.separator}
    roles = vocabulary.special | vocabulary.extra
    pair, separator = config.kind == "encoder_decoder", vocabulary.separator

    def marks(wanted) -> dict[str, int]:
        return {names[roles[role]]: roles[role] for role in wanted if roles.get(role) in names}

    base = {"config": config, "tokenizer": tokenizer, "vocabulary": vocabulary}
    if isinstance(objective, PrefixLM):
        end = vocabulary.id("eos")
        more = {"start": separator, "end": end, "separated": True, "reading": objective.reading}
        return Form("continuation", **base, **more, blanks={})
    if isinstance(objective, SpanCorruption | UL2):
        spans = len(vocabulary.all_sentinels)
        more = {"start": vocabulary.id("pad"), "end": vocabulary.id("eos"), "completes": True}
        more |= {"separated": True, "reading": objective.reading}
        modes = marks(ROLES.values()) if isinstance(objective, UL2) else None
        blanks = marks(f"{SENTINEL}{i}" for i in range(spans))
        return Form("spans", **base, **more, blanks=blanks, modes=modes, after=(more["end"],))
    if isinstance(objective, Denoising):
        more = {"start": separator, "end": separator, "after": () if pair else (separator,)}
        return Form("whole", **base, **more, blanks=marks(("mask",)))
    if objective.kind == "glm":
        end = vocabulary.id("eop")
        more = {"completes": True, "separated": True}
        return Form("blocks", **base, **more, blanks=marks(MASKS), end=end)
    if isinstance(objective, MaskedLM):
        more = {"separated": True}
        if objective.paired:  # the two parts of text are one here
            more = {"before": (vocabulary.id("cls"),), "after": (vocabulary.id("sep"),)}
        return Form("masks", **base, **more, blanks=marks(("mask",)))
    raise BadInput(
        f"a model of the objective '{objective.kind}' neither goes on with a text nor fills blanks "
        "of it here"
    )


def form_of_checkpoint(config: TransformerConfig, tokenizer, source: str) -> Form | None:
    """The form of a checkpoint of others, such as hf:PATH, by its kind and its config.json.

    None for decoders, and without a tokenizer. BadInput where the vocabulary has no mask, or the
    config no start of a decoder.
    """
    if config.kind == "decoder" or tokenizer is None:
        return None
    if config.kind == "two_stream":
        raise BadInput("a model of two streams neither goes on with a text nor fills blanks here")
    names = [name for name in NAMES["mask"] if tokenizer.id_of(name) is not None]
    mask = {name: tokenizer.id_of(name) for name in names}
    if "mask" in tokenizer.special and not mask:
        mask = {NAMES["mask"][0]: tokenizer.special["mask"]}
    base = {"config": config, "tokenizer": tokenizer, "vocabulary": vocabulary_of(tokenizer)}
    if config.kind == "encoder":
        if not mask or config.head == "plain":
            what = "[MASK] in its vocabulary" if not mask else "head that predicts tokens"
            raise BadInput(f"{source} fills no blanks: it has no {what}")
        special = tokenizer.special
        around = ((special[role],) if role in special else () for role in ("cls", "sep"))
        before, after = around
        return Form("masks", **base, blanks=mask, before=before, after=after)
    settings = _settings(source, tokenizer.special)
    if "decoder_start_token_id" not in settings or "eos_token_id" not in settings:
        raise BadInput(
            f"{source}: config.json has no decoder_start_token_id or no eos_token_id, with which "
            "the decoder begins and ends"
        )
    start, end = settings["decoder_start_token_id"], settings["eos_token_id"]
    end = end[0] if isinstance(end, list) else end
    bart = settings.get("model_type") == "bart"
    before = (settings["bos_token_id"],) if bart and settings["add_bos_token"] else ()
    after = (end,) if settings["add_eos_token"] else ()
    more = {"start": start, "end": end, "before": before, "after": after}
    sentinels = {}
    while (number := tokenizer.id_of(f"<extra_id_{len(sentinels)}>")) is not None:
        sentinels[f"<extra_id_{len(sentinels)}>"] = number
    if not sentinels and mask:
        return Form("whole", **base, **more, blanks=mask)
    return Form("spans", **base, **more, blanks=sentinels)


# Where the configs of transformers say nothing, its classes have these.
USUAL = {
    "t5": {"decoder_start_token_id": 0, "eos_token_id": 1},
    "bart": {"decoder_start_token_id": 2, "eos_token_id": 2, "bos_token_id": 0},
}
AROUND = {"add_bos_token": True, "add_eos_token": True}  # unless tokenizer_config.json says not
USUAL |= dict.fromkeys(("mt5", "umt5", "switch_transformers"), USUAL["t5"])


def _settings(source: str, special: dict[str, int]) -> dict:
    """What is said of ids: by the config for generation, the model's, the tokenizer, the class."""
    from gptjax.interop.stores import read_json

    folder = Path(source.partition(":")[2]).expanduser()
    found = {f"{role}_token_id": special[role] for role in ("bos", "eos") if role in special}
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            told = read_json(folder / name)
            told = {k: told[k] for k in AROUND if k in told} if "tokenizer" in name else told
            found |= {key: value for key, value in told.items() if value is not None}
    return USUAL.get(found.get("model_type"), {}) | AROUND | found
