"""Tokenizers read from disk: those of our own runs, and folders in the layout of transformers.

A folder is read by the first of these that is there: our own record, tokenizer.json, vocab.json
or encoder.json with merges.txt or vocab.bpe, vocab.txt, a sentencepiece model. A file is known
by its content; files that belong to it stand beside it. Nothing is ever unpickled.

The separator of documents is the bos token, else eos, sep, cls, unk; each as named by
tokenizer_config.json, else special_tokens_map.json, else by its id in config.json, else, where
these name neither bos nor eos, by the usual names (<|endoftext|>, <s>, </s>, [SEP], ...).
"""

import hashlib
import json
from pathlib import Path

from gptjax.data.config import absolute
from gptjax.data.tokenizers import lists
from gptjax.data.tokenizers.base import (
    RECORD,
    ByteTokenizer,
    SymbolTokenizer,
    Tokenizer,
    kept_of,
    read_file,
)
from gptjax.data.tokenizers.build import separator
from gptjax.data.tokenizers.huggingface import JSON, HuggingFaceTokenizer
from gptjax.data.tokenizers.lists import Settings, parse_json
from gptjax.data.tokenizers.pieces import MODEL, SentencePieceTokenizer, read_sentencepiece
from gptjax.errors import BadInput

PIECES = (MODEL, "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model")
WANTED = "a tokenizer.json, vocab.json with merges.txt, vocab.txt or a sentencepiece model"
# Their sentencepiece ids are moved by transformers, so the .model alone does not tell them.
RENUMBERED = ("XLMRoberta", "Camembert", "MBart", "Barthez", "NLLB", "Nllb", "XGLM", "Pegasus")
RENUMBERED += ("M2M100", "Marian", "BigBirdPegasus", "Plbart", "PLBart", "SeamlessM4T")
FORBIDDEN = {
    b"\x80": "a pickle, which is never loaded",
    b"PK\x03\x04": "an archive",
    b"\x1f\x8b": "compressed",
    b"GGUF": "a GGUF file; load it as a model",
}


def load_tokenizer(folder: str | Path, sha256: str = "") -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`.

    Raises `BadInput` if the files are missing, if the model is not the one recorded beside it
    or, where `sha256` is given, if it is not that one.
    """
    folder = Path(folder)
    model, file, kept = b"", folder / MODEL, {}
    try:
        record = json.loads((folder / RECORD).read_text())
        kind, recorded, kept = record["kind"], record["sha256"], kept_of(record)
        made: Tokenizer | None = None
        if kind == "bytes":
            made = ByteTokenizer()
        elif kind == "symbols":
            made = SymbolTokenizer(record["vocab_size"] - 1)
        elif kind == "hf":
            file = folder / JSON
            text = file.read_bytes().decode("utf-8")
            settings = record["separator_id"], record["special"]
            made = HuggingFaceTokenizer(text, *settings, source=str(file), kept=kept)
        else:
            model = file.read_bytes()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{folder} holds no whole tokenizer ({error}); copy it again") from error
    found = made.sha256 if made else hashlib.sha256(model).hexdigest()
    if found != recorded or (sha256 and found != sha256):
        expected = sha256 if sha256 and found != sha256 else recorded
        raise BadInput(
            f"{file} is the tokenizer of another run: its sha256 is {found[:12]}, the recorded "
            f"one is {expected[:12]}; put the run's own file back"
        )
    return made or SentencePieceTokenizer(model, kind, kept=kept)


def tokenizer_of(path: str, kind: str) -> Tokenizer:
    """What `data.tokenizer_file` names: any tokenizer for the kind `file`, else sentencepiece."""
    if kind == "file":
        return read_tokenizer(path, name="data.tokenizer_file")
    return read_sentencepiece(path, kind)


def read_tokenizer(path: str | Path, *, name: str = "the tokenizer") -> Tokenizer:
    """The tokenizer in a folder as transformers writes it, in one of its files, or in a run's.

    BadInput, which begins with `name` and the path, for what is missing, damaged, cut short or
    of a kind that is not read. Reading a tokenizer of the library `tokenizers` needs it.
    """
    place, name = absolute(str(path), name), f"{name} {path}"
    if not place.is_dir():
        return _read_file(place, name)
    for file in (RECORD, *lists.VOCABULARIES, lists.WORDS, *PIECES):
        if (place / file).exists():
            return _read_file(place / file, f"{name}/{file}")
    raise BadInput(f"{name} holds no tokenizer: it has no {WANTED.removeprefix('a ')}")


def _read_file(path: Path, name: str) -> Tokenizer:
    data = read_file(path, name, WANTED)
    for start, what in FORBIDDEN.items():
        if data.startswith(start):
            raise BadInput(f"{name} is {what}; give {WANTED}")
    if not data.strip():
        raise BadInput(f"{name} is empty; give {WANTED}")
    settings = Settings(path.parent)
    if data.lstrip().startswith(b"{"):
        return _of_json(data, path, name, settings)
    if path.suffix == ".json":
        raise BadInput(f"{name} holds no JSON object; give {WANTED}")
    if path.suffix == ".model" or data.startswith(b"\n"):  # how its first piece begins
        return _of_pieces(data, name, settings)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return _of_pieces(data, name, settings)
    lines = lists.lines_of(text)
    if path.name in lists.MERGES or lines[0].startswith("#version"):
        beside = [path.parent / other for other in lists.VOCABULARIES]
        for other in beside:
            if other.exists():
                return _read_file(other, str(other))
        raise BadInput(f"{name} holds merges without a vocabulary: {beside[0]} is missing")
    return _made(lists.word_piece(lines, name, settings), name, settings.kept())


def _of_json(data: bytes, path: Path, name: str, settings: Settings) -> Tokenizer:
    value = parse_json(data, name)
    if "sha256" in value and "kind" in value:
        return load_tokenizer(path.parent)
    if isinstance(value.get("model"), dict):
        text, kept = data.decode("utf-8"), settings.kept()
        for added in ("add_bos_token", "add_eos_token"):  # its own post_processor says this
            kept.pop(added, None)
        return _made((text, settings.roles(lists.ids_of(value, name))), name, kept)
    if value and all(type(number) is int for number in value.values()):
        return _made(lists.bpe(value, path, name, settings), name, settings.kept())
    raise BadInput(f"{name} is neither a tokenizer.json nor a vocabulary with ids; give {WANTED}")


def _made(parts: tuple[str, dict[str, int]], name: str, kept: dict) -> HuggingFaceTokenizer:
    text, special = parts
    return HuggingFaceTokenizer(text, separator(special, name), special, name, kept)


def _of_pieces(data: bytes, name: str, settings: Settings) -> SentencePieceTokenizer:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise BadInput(f"{name} is damaged or no tokenizer; give {WANTED}") from None
    if not (proto.pieces and proto.HasField("trainer_spec") and proto.HasField("normalizer_spec")):
        raise BadInput(f"{name} is a sentencepiece model that was cut short; copy it again")
    trainer = proto.trainer_spec
    kind = {trainer.UNIGRAM: "unigram", trainer.BPE: "bpe"}.get(trainer.model_type)
    if kind is None:
        raise BadInput(f"{name} splits into words or characters; give a BPE or unigram model")
    if settings.tokenizer_class.startswith(RENUMBERED):
        raise BadInput(
            f"{name} is not all of a {settings.tokenizer_class}, which has other ids than its "
            "sentencepiece model; give its tokenizer.json"
        )
    return SentencePieceTokenizer(data, kind, name, settings.kept())
