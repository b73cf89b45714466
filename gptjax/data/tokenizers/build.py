"""Tokenizers made of lists: byte-level BPE, GPT-1's BPE, WordPiece, and what GGUF files carry.

Each is written as the text of a tokenizer.json, so that it does not depend on the release of
the library which reads it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from gptjax.data.tokenizers.base import KEPT, Tokenizer, kept_of
from gptjax.data.tokenizers.huggingface import ROLES, HuggingFaceTokenizer
from gptjax.data.tokenizers.pieces import SentencePieceTokenizer
from gptjax.data.tokenizers.splitting import splitting
from gptjax.errors import BadInput

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens in GGUF
GGUF_ROLES = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
    "sep": "seperator_token_id",  # as the format spells it
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}
SEPARATORS = ("bos", "eos", "sep", "cls", "unk")  # the first of these separates documents
NAMES = {
    "bos": ("<|endoftext|>", "<|begin_of_text|>", "<s>", "<bos>"),
    "eos": ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"),
    "sep": ("[SEP]",),
    "cls": ("[CLS]",),
    "unk": ("<unk>", "[UNK]"),
    "pad": ("<pad>", "[PAD]"),
    "mask": ("<mask>", "[MASK]"),
}

Merges = Iterable[tuple[str, str]]


def byte_bpe(
    tokens: Sequence[str],
    merges: Sequence[str],
    special: Mapping[str, int] | None = None,
    *,
    types: Sequence[int] | None = None,
    pre: str = "gpt-2",
    source: str = "the tokenizer",
) -> HuggingFaceTokenizer:
    """Byte-level BPE of a list of tokens by id and of merges `left right`, as GGUF has them.

    `special` has ids by role (bos, eos, ...); without a bos and an eos the usual names are
    looked for. `types` are GGUF's (3 control, 4 user-defined, 5 unused), `pre` names how text
    is cut (`splitting.SPLITTINGS`). BadInput for lists that make no tokenizer.
    """
    if types is not None and len(types) != len(tokens):
        raise BadInput(f"{source} has {len(types)} types for {len(tokens)} tokens")
    vocab = _numbered(tokens, source)
    special = known_roles(special or {}, vocab)
    kinds = [NORMAL] * len(tokens) if types is None else [int(kind) for kind in types]
    marked = {n for n, kind in enumerate(kinds) if kind in (CONTROL, UNUSED)}
    if types is None:
        marked |= set(special.values())
    given = {n for n, kind in enumerate(kinds) if kind == USER_DEFINED} - marked
    for number in marked:
        if not 0 <= number < len(tokens):
            raise BadInput(f"{source} has {len(tokens)} tokens and none with the id {number}")
    added = [added_token(n, tokens[n], n in marked) for n in sorted(marked | given)]
    text = byte_bpe_text(vocab, _pairs(merges, source), added, pre=pre, source=source)
    return HuggingFaceTokenizer(text, separator(special, source), special, source)


def byte_bpe_text(
    vocab: Mapping[str, int],
    merges: Merges,
    added: Sequence[dict],
    *,
    pre: str = "gpt-2",
    add_prefix_space: bool = False,
    source: str = "the tokenizer",
) -> str:
    """The tokenizer.json of byte-level BPE."""
    cut = splitting(pre, source)
    model = _bpe(vocab, merges) | {"ignore_merges": cut.ignore_merges}
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    return described(
        model,
        added,
        normalizer=cut.normalizer(),
        pre_tokenizer=cut.pre_tokenizer(add_prefix_space),
        decoder=decoder | {"use_regex": True},
    )


def gpt1_text(vocab: Mapping[str, int], merges: Merges, added: Sequence[dict], unk: str) -> str:
    """The tokenizer.json of GPT-1's BPE, as transformers reads it: lower case, </w> ends words."""
    model = _bpe(vocab, merges) | {"unk_token": unk, "end_of_word_suffix": "</w>"}
    return described(
        model,
        added,
        normalizer=bert_normalizer(),
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "BPEDecoder", "suffix": "</w>"},
    )


def word_piece_text(
    vocab: Mapping[str, int], added: Sequence[dict], unk: str, normalizer: dict
) -> str:
    """The tokenizer.json of BERT's WordPiece; `normalizer` as `bert_normalizer` gives it."""
    model = {
        "type": "WordPiece",
        "unk_token": unk,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": dict(vocab),
    }
    return described(
        model,
        added,
        normalizer=normalizer,
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def bert_normalizer(
    lowercase: bool = True, chinese: bool = True, strip_accents: bool | None = None
) -> dict:
    """Controls dropped, Chinese characters apart; accents go with the case unless said."""
    return {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": chinese,
        "strip_accents": strip_accents,
        "lowercase": lowercase,
    }


def described(
    model: dict,
    added: Sequence[dict],
    *,
    normalizer: dict | None = None,
    pre_tokenizer: dict | None = None,
    decoder: dict | None = None,
) -> str:
    """The text of a tokenizer.json of these parts."""
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": list(added),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": None,
            "decoder": decoder,
            "model": model,
        },
        ensure_ascii=False,
    )


def added_token(number: int, content: str, special: bool, **changes: bool) -> dict:
    """A token that is found in the text before anything else is done to it."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, **changes, "special": special}


def sentencepiece_of_lists(
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    special: Mapping[str, int] | None = None,
    *,
    prefix_space: bool = True,
    source: str = "the tokenizer",
) -> SentencePieceTokenizer:
    """The sentencepiece BPE model of a GGUF file whose `tokenizer.ggml.model` is `llama`.

    The lists go by id; a text gets a space before it unless `prefix_space` is false.
    """
    from sentencepiece import sentencepiece_model_pb2

    if not len(tokens) == len(scores) == len(types):
        raise BadInput(
            f"{source} has {len(tokens)} tokens, {len(scores)} scores and {len(types)} types"
        )
    vocab = _numbered(tokens, source)
    special = known_roles(special or {}, vocab)
    model = sentencepiece_model_pb2.ModelProto()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        if not NORMAL <= kind <= BYTE:
            raise BadInput(f"{source} has a token of type {kind}; types go from 1 to {BYTE}")
        model.pieces.add(piece=token, score=float(score), type=int(kind))
    trainer = model.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(tokens)
    trainer.byte_fallback = BYTE in types
    for role in ("unk", "bos", "eos", "pad"):
        number = special.get(role, -1)
        if number >= len(tokens):
            raise BadInput(f"{source} has no token {number}, which is to be its {role}")
        setattr(trainer, f"{role}_id", number)
        if number >= 0:
            setattr(trainer, f"{role}_piece", tokens[number])
            model.pieces[number].type = UNKNOWN if role == "unk" else CONTROL
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = prefix_space
    model.normalizer_spec.remove_extra_whitespaces = False
    return SentencePieceTokenizer(model.SerializeToString(), "bpe", source)


def gguf_tokenizer(fields: Mapping[str, Any], source: str = "the GGUF file") -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file: `tokenizer.ggml.*`, strings and lists.

    Byte-level BPE (`gpt2`) and sentencepiece BPE (`llama`) are read; BadInput for another kind,
    a list that is missing or a pre-tokenizer that is not known.
    """

    def optional(name: str, kind: type, default=None):
        key = f"tokenizer.ggml.{name}"
        value = fields.get(key, default)
        if value is not None and not isinstance(value, kind):
            raise BadInput(f"{source}: {key} is {value!r:.40}, not of type {kind.__name__}")
        return value

    def listed(name: str, kind: type):
        key = f"tokenizer.ggml.{name}"
        if key not in fields:
            raise BadInput(f"{source} has no {key}, so it holds no tokenizer")
        values = fields[key]
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise BadInput(f"{source}: {key} is {values!r:.40}, not a list")
        for number, value in enumerate(values):
            if not isinstance(value, kind):
                raise BadInput(
                    f"{source}: {key} has {value!r:.40} as number {number}, which is not of type "
                    f"{kind.__name__}"
                )
        return values

    kind, tokens = optional("model", str), listed("tokens", str)
    named = {role: optional(name, int) for role, name in GGUF_ROLES.items()}
    special = {role: number for role, number in named.items() if number is not None}
    types = listed("token_type", Integral) if "tokenizer.ggml.token_type" in fields else None
    kept = {"chat_template": fields.get("tokenizer.chat_template")}
    kept |= {name: optional(name, bool) for name in KEPT if name not in kept}
    if kind == "gpt2":
        pre, merges = optional("pre", str, "gpt-2"), listed("merges", str)
        made = byte_bpe(tokens, merges, special, types=types, pre=pre, source=source)
        made.kept = kept_of(kept)
        return made
    if kind == "llama":
        special = {"unk": 0, "bos": 1, "eos": 2} | special  # what the format means by none
        prefix = optional("add_space_prefix", bool, True)
        scores, types = listed("scores", Real), listed("token_type", Integral)
        made = sentencepiece_of_lists(
            tokens, scores, types, special, prefix_space=prefix, source=source
        )
        made.kept = {"add_bos_token": True} | kept_of(kept)  # a bos is what files mean by none
        return made
    raise BadInput(
        f"{source} has a tokenizer of kind {kind!r}; gpt2 (byte-level BPE) and llama "
        "(sentencepiece BPE) are read"
    )


def known_roles(special: Mapping[str, int], vocab: Mapping[str, int]) -> dict[str, int]:
    """The roles that are given or, without a bos and an eos among them, by usual names too.

    Where one of these is known, nothing is guessed: `<unk>` may well be an ordinary token.
    """
    found = {role: number for role, number in special.items() if role in ROLES}
    if {"bos", "eos"} & found.keys():
        return found
    for role, names in NAMES.items():
        number = next((vocab[name] for name in names if name in vocab), None)
        if number is not None:
            found.setdefault(role, number)
    return found


def separator(special: Mapping[str, int], source: str) -> int:
    """The id that separates documents: bos, else eos, sep, cls, unk."""
    for role in SEPARATORS:
        if role in special:
            return special[role]
    raise BadInput(
        f"{source} has no token to separate documents: neither bos, eos, sep, cls nor unk; name "
        "a bos_token in its tokenizer_config.json"
    )


def _bpe(vocab: Mapping[str, int], merges: Merges) -> dict:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(vocab),
        "merges": [list(pair) for pair in merges],
    }


def _numbered(tokens: Sequence[str], source: str) -> dict[str, int]:
    vocab: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if vocab.setdefault(token, number) != number:
            raise BadInput(f"{source} has {token!r} twice: as {vocab[token]} and as {number}")
    return vocab


def _pairs(merges: Sequence[str], source: str) -> list[tuple[str, str]]:
    pairs = []
    for merge in merges:
        cut = merge.find(" ", 1)  # a token may begin with a space
        if not 0 < cut < len(merge) - 1:
            raise BadInput(f"{source} has a merge that is no pair: {merge!r}")
        pairs.append((merge[:cut], merge[cut + 1 :]))
    return pairs
