r"""Tokenizers written as `transformers.AutoTokenizer.from_pretrained(folder)` loads them.

Ids stay what they are. A sentencepiece model becomes a tokenizer.json, whose ids are compared
with its own on hard texts before anything is written; one that was brought along is also
written as tokenizer.model, one that was trained here is not, since only gptjax knows its
escapes. Where two splits of a text are equally likely, unigram may choose the other one there
(14 of 6000 pieces of code and random text with 4000 ids); BPE did not differ once. A model that
normalises (NFKC) does so by grapheme there: an accent on a ligature is lost, and \r\n is one
space, for which a model that keeps double spaces is refused.

The names of special tokens in a text are read as these tokens by transformers, unless it is told
`split_special_tokens=True`. What the tokenizer has in `kept` is written too: where its source puts
a bos before each text or an eos behind it, a post_processor does so. One puts the start and the end
that an encoder is trained with around a text (`AROUND`), where the vocabulary has them; that of a
tokenizer.json stays what it is. Special tokens beyond the tokenizer's ids, which an objective asked
for, are added to those.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gptjax.data.tokenizers.base import HARD_TEXT, ByteTokenizer, Tokenizer
from gptjax.data.tokenizers.build import added_token, byte_bpe_text, described
from gptjax.data.tokenizers.huggingface import ROLES, HuggingFaceTokenizer, byte_alphabet
from gptjax.data.tokenizers.pieces import ESCAPE, IMAGES, LETTERS, MODEL, SentencePieceTokenizer
from gptjax.errors import BadInput

if TYPE_CHECKING:
    from gptjax.data.vocabulary import Vocabulary

SEPARATOR = "<|separator|>"
INPUTS = ["input_ids", "token_type_ids", "attention_mask"]
# What stands around one text and around two, by roles, with the type of each token behind a colon.
AROUND = {
    "bert": ("cls A sep", "cls A sep B:1 sep:1"),
    "roberta": ("cls A sep", "cls A sep sep B sep"),
    "xlnet": ("A sep cls:2", "A sep B:1 sep:1 cls:2"),
}
APART = -1e6  # score of what unigram must not find in a text: byte pieces and control pieces
TRIALS = (
    HARD_TEXT,
    "def f(x):\n    return x + 1  # 100 % of 1234567\n\n\n",
    "The quick brown fox, aged 7, isn't quick: it jumps over 2 dogs!",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "Съешь же ещё этих мягких французских булок, 其他語言的文字, ひらがな, 한국어",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \t\t x\u00a0y\ue00a\ue00f\u2047 <unk></s>",
)


def export_tokenizer(
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    vocabulary: Vocabulary | None = None,
    around: str = "",
    ends: Collection[str] | None = None,
) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into `folder`.

    vocabulary: the tokenizer's with special tokens of a run; around: how a model of an `AROUND`
    reads a text; ends: which of "bos" and "eos" stand around every text; None: as the tokenizer
    says. BadInput for a tokenizer that cannot be written with the same ids, such as plain symbols.
    """
    folder = Path(folder)
    names, kept = {}, {}
    if isinstance(tokenizer, HuggingFaceTokenizer):
        text, kept = tokenizer.text, tokenizer.kept
        names = {role: tokenizer.token(number) for role, number in tokenizer.special.items()}
        separator = tokenizer.token(tokenizer.separator_id)
    elif isinstance(tokenizer, ByteTokenizer):
        text, separator = _bytes_text(tokenizer), SEPARATOR
    elif isinstance(tokenizer, SentencePieceTokenizer):
        text, names, separator = _pieces_text(tokenizer)
        kept = tokenizer.kept
    else:
        raise BadInput(
            f"a tokenizer of {tokenizer.kind} has no form that others read; bytes, sentencepiece "
            "models and tokenizers of others have"
        )
    special = dict(tokenizer.special)
    if vocabulary is not None:
        extra = vocabulary.extra.values()
        text = _with_tokens(text, {number: vocabulary.names[number] for number in extra})
        if isinstance(tokenizer, HuggingFaceTokenizer):  # roles that the vocabulary alone has
            known = {token["id"] for token in json.loads(text)["added_tokens"]}
            plain = {n for role, n in vocabulary.special.items() if role in ROLES} - known
            text = _with_tokens(text, {number: tokenizer.token(number) for number in sorted(plain)})
        written = {token["id"]: token["content"] for token in json.loads(text)["added_tokens"]}
        for role, number in (vocabulary.special | vocabulary.extra).items():
            if role in ROLES and role not in names and number in written:
                special[role], names[role] = number, written[number]
    if ends is not None:
        kept = {**kept, "add_bos_token": "bos" in ends, "add_eos_token": "eos" in ends}
        for role in ends if {"bos", "eos"} & names.keys() else ("bos", "eos"):
            if role not in names:
                special[role], names[role] = tokenizer.separator_id, separator
    added = {r: names[r] for r in ("bos", "eos") if kept.get(f"add_{r}_token") and r in names}
    if around and {"cls", "sep"} <= names.keys():
        text = _with_ends(text, AROUND[around], names, special)
        if ":" in AROUND[around][1]:  # releases since 5 give types only where they are told
            kept = {**kept, "model_input_names": INPUTS}
    elif added or (ends is not None and json.loads(text).get("post_processor") is not None):
        one = [word for word in ("bos", "A", "eos") if word in {*added, "A"}]
        two = [*one, *(f"{'B' if word == 'A' else word}:1" for word in one)]
        text = _with_ends(text, (" ".join(one), " ".join(two)), names, special, always=True)
    if not {"bos", "eos"} & names.keys():
        names |= {"bos": separator, "eos": separator}
    roles = {f"{role}_token": name for role, name in names.items()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **roles,
        **kept,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8", newline="")
    for name, value in {"tokenizer_config": config, "special_tokens_map": roles}.items():
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
    if isinstance(tokenizer, SentencePieceTokenizer) and not tokenizer.escapes:
        (folder / MODEL).write_bytes(tokenizer.model)


def _with_tokens(text: str, names: Mapping[int, str]) -> str:
    """The tokenizer.json with special tokens of these ids and names added."""
    if not names:
        return text
    whole = json.loads(text)
    whole["added_tokens"] += [added_token(number, name, True) for number, name in names.items()]
    return json.dumps(whole, ensure_ascii=False)


def _with_ends(
    text: str,
    forms: tuple[str, str],
    names: Mapping[str, str],
    special: Mapping[str, int],
    always: bool = False,
) -> str:
    """The tokenizer.json with a post_processor that writes one or two texts as the forms say.

    One that is there already stays, unless the new one is always to stand.
    """
    whole = json.loads(text)
    if whole.get("post_processor") is not None and not always:
        return text
    tokens = {}

    def part(word: str) -> dict:
        role, _, number = word.partition(":")
        if role in ("A", "B"):
            return {"Sequence": {"id": role, "type_id": int(number or 0)}}
        name = names[role]
        tokens[name] = {"id": name, "ids": [special[role]], "tokens": [name]}
        return {"SpecialToken": {"id": name, "type_id": int(number or 0)}}

    single, pair = ([part(word) for word in form.split()] for form in forms)
    made = {"type": "TemplateProcessing", "single": single, "pair": pair}
    whole["post_processor"] = made | {"special_tokens": tokens}
    return json.dumps(whole, ensure_ascii=False)


def _bytes_text(tokenizer: ByteTokenizer) -> str:
    number = tokenizer.separator_id
    vocab = byte_alphabet() | {SEPARATOR: number}
    return byte_bpe_text(vocab, (), [added_token(number, SEPARATOR, True)])


def _pieces_text(tokenizer: SentencePieceTokenizer) -> tuple[str, dict[str, str], str]:
    """The tokenizer.json of a sentencepiece model, its special names, its separator's name."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    pieces, trainer, rules = proto.pieces, proto.trainer_spec, proto.normalizer_spec
    kinds = pieces[0] if pieces else None
    names = {role: pieces[number].piece for role, number in tokenizer.special.items()}
    added = [
        added_token(number, piece.piece, piece.type == kinds.CONTROL)
        for number, piece in enumerate(pieces)
        if piece.type in (kinds.CONTROL, kinds.USER_DEFINED)
    ]
    unk = tokenizer.special["unk"]
    if trainer.model_type == trainer.BPE:
        model = _bpe_model(pieces, pieces[unk].piece, trainer.byte_fallback)
    elif trainer.model_type == trainer.UNIGRAM:
        model = _unigram_model(pieces, unk, trainer.byte_fallback)
    else:
        raise BadInput("only sentencepiece models of BPE and unigram have a form that others read")
    text = described(
        model,
        added,
        normalizer={"type": "Sequence", "normalizers": _normalizers(rules, tokenizer.escapes)},
        decoder={"type": "Sequence", "decoders": _decoders(rules, tokenizer.escapes)},
    )
    written = HuggingFaceTokenizer(text, tokenizer.separator_id, source="the exported model")
    symbols = [f"  x {p.piece} y{p.piece}z" for p in pieces if p.type == p.USER_DEFINED]
    if any(list(written.encode(t)) != list(tokenizer.encode(t)) for t in (*TRIALS, *symbols)):
        raise BadInput(
            "this sentencepiece model splits texts in a way that a tokenizer.json cannot say; its "
            f"file {MODEL} is what others can use"
        )
    return text, names, pieces[tokenizer.separator_id].piece


def _bpe_model(pieces, unk: str, byte_fallback: bool) -> dict:
    """Sentencepiece joins the pair whose piece has the highest score: every pair is a merge."""
    scores = {p.piece: (-p.score, n) for n, p in enumerate(pieces) if p.type == p.NORMAL}
    merges = []
    for piece in sorted(scores, key=scores.__getitem__):
        cuts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        pairs = [pair for pair in cuts if pair[0] in scores and pair[1] in scores]
        merges += sorted(pairs, key=lambda pair: (scores[pair[0]], scores[pair[1]]))
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        "vocab": {p.piece: number for number, p in enumerate(pieces)},
        "merges": [list(pair) for pair in merges],
    }


def _unigram_model(pieces, unk: int, byte_fallback: bool) -> dict:
    found = [(p.piece, p.score if p.type in (p.NORMAL, p.USER_DEFINED) else APART) for p in pieces]
    return {"type": "Unigram", "unk_id": unk, "byte_fallback": byte_fallback, "vocab": found}


def _normalizers(rules, escapes: bool) -> list[dict]:
    """What sentencepiece does to a text first, after our own escapes where the model has them."""
    steps = []
    if escapes:
        for old, new in [*reversed(_escapes()), *IMAGES.items()]:  # the escape itself comes first
            steps.append(_replace(old, new))
    if rules.precompiled_charsmap:
        import base64

        charsmap = base64.b64encode(rules.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if rules.remove_extra_whitespaces:
        for pattern, content in (("^ +| +$", ""), (" {2,}", " ")):
            steps.append({"type": "Replace", "pattern": {"Regex": pattern}, "content": content})
    if rules.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": "\u2581"})
    return [*steps, _replace(" ", "\u2581")]


def _decoders(rules, escapes: bool) -> list[dict]:
    steps = [_replace("\u2581", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if rules.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    if escapes:
        steps += [_replace(new, old) for old, new in IMAGES.items()]
        steps += [_replace(new, old) for old, new in _escapes()]
    return steps


def _escapes() -> list[tuple[str, str]]:
    """Reserved characters and how they are written; the escape itself is the last."""
    reserved = [*IMAGES.values(), ESCAPE]
    return [(c, ESCAPE + letter) for c, letter in zip(reserved, LETTERS, strict=True)]


def _replace(old: str, new: str) -> dict:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}
