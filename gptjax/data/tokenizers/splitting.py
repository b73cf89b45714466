"""How byte-level BPE cuts a text before it merges: by the names that GGUF files give it.

The key `tokenizer.ggml.pre` of a GGUF file names the pre-tokenizer; the names are those of
llama.cpp (src/llama-vocab.cpp) and of the tokenizer.json that each of them stands for. A text
is cut by each pattern in turn; what lies between two matches is a piece as well.
"""

from dataclasses import dataclass

from gptjax.errors import BadInput, did_you_mean

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"


def _words(digits: str, contractions: str = f"{_CONTRACTIONS}|", letters: str = r"\p{L}") -> str:
    """The pattern that came with cl100k, for runs of so many digits."""
    inside = letters.strip("[]")
    return (
        rf"{contractions}[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}"
        rf"| ?[^\s{inside}\p{{N}}]+[\r\n]*|{_BLANKS}"
    )


def _cased(digits: str, end: str) -> str:
    """The pattern that came with o200k: a capital begins a word."""
    return (
        f"{_LEAD}{_UPPER}*{_LOWER}+{end}|{_LEAD}{_UPPER}+{_LOWER}*{end}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
    )


_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CJK_V3 = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_SIGNS_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}"
)
_BLOOM = r" ?[^(\s|.,!?" + "\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c" + ")]+"
_LLAMA3 = _words(r"\p{N}{1,3}")
_QWEN2 = _words(r"\p{N}")


@dataclass(frozen=True)
class Splitting:
    """Patterns in their order, then GPT-2's own (`gpt2`) or none; what else goes with a name."""

    patterns: tuple[str, ...] = ()
    gpt2: bool = True
    nfc: bool = False  # whether the text is composed first
    ignore_merges: bool = False  # whether a whole piece of the vocabulary is taken unmerged

    def normalizer(self) -> dict | None:
        """As a tokenizer.json has it."""
        return {"type": "NFC"} if self.nfc else None

    def pre_tokenizer(self, add_prefix_space: bool = False) -> dict:
        """As a tokenizer.json has it."""
        last = {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True}
        last["use_regex"] = self.gpt2
        if not self.patterns:
            return last
        cuts = [
            {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
            for p in self.patterns
        ]
        return {"type": "Sequence", "pretokenizers": [*cuts, last]}


_GPT2 = Splitting()
_NEOX = Splitting(nfc=True)
_DIGITS = Splitting((r"\p{N}",))
_PLAIN_LLAMA3 = Splitting((_LLAMA3,), gpt2=False)
_PLAIN_QWEN2 = Splitting((_QWEN2,), gpt2=False)
_FAMILIES = (
    (_GPT2, "gpt-2 phi-2 jais trillion granite-docling exaone4 mellum modern-bert gigachat"),
    (_GPT2, "a.x-4.0 roberta-bpe jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code"),
    (_NEOX, "mpt olmo"),
    (_DIGITS, "smollm starcoder refact codeshell exaone minerva-7b mellum2"),
    (Splitting((r"\p{N}",), nfc=True), "command-r"),
    (
        Splitting((_LLAMA3,), gpt2=False, ignore_merges=True),
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    ),
    (_PLAIN_LLAMA3, "dbrx smaug-bpe glm4 chatglm-bpe"),
    (Splitting((_QWEN2,), gpt2=False, nfc=True), "qwen2"),
    (_PLAIN_QWEN2, "deepseek-r1-qwen stablelm2 megrez hunyuan solar-open grok-2 kormo"),
    (Splitting((_words(r"\p{N}", letters=r"[\p{L}\p{M}]"),), gpt2=False, nfc=True), "qwen35"),
    (
        Splitting((_cased(r"\p{N}{1,3}", f"{_CONTRACTIONS}?"),), gpt2=False),
        "gpt-4o llama4 kanana2",
    ),
    (Splitting((_cased(r"\p{N}", ""),), gpt2=False, ignore_merges=True), "tekken"),
    (Splitting((r"\p{N}{1,3}", _CJK_V3, _SIGNS_V3), gpt2=False), "deepseek-v3 hunyuan-dense"),
    (
        Splitting(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"), gpt2=False),
        "deepseek-coder",
    ),
    (Splitting((_BLOOM,), gpt2=False), "bloom poro-chat gpt3-finnish"),
    (Splitting((_BLOOM, r"\p{N}"), gpt2=False), "viking"),
)
SPLITTINGS = {name: family for family, names in _FAMILIES for name in names.split()}


def splitting(name: str, source: str = "the tokenizer") -> Splitting:
    """The pre-tokenizer of a name; BadInput for one that is not known here."""
    if name not in SPLITTINGS:
        raise BadInput(
            f"{source} cuts its text by the pre-tokenizer {name!r}, which is not known here"
            + (did_you_mean(name, SPLITTINGS) or f"; known are {', '.join(SPLITTINGS)}")
        )
    return SPLITTINGS[name]
