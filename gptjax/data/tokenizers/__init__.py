"""Text to ids and back: bytes, sentencepiece, plain symbols, and the tokenizers of others."""

from gptjax.data.tokenizers.base import (
    FIRST_SYMBOL,
    MOST_SYMBOLS,
    RECORD,
    ByteTokenizer,
    SymbolTokenizer,
    Tokenizer,
)
from gptjax.data.tokenizers.build import byte_bpe, gguf_tokenizer, sentencepiece_of_lists
from gptjax.data.tokenizers.export import export_tokenizer
from gptjax.data.tokenizers.folder import load_tokenizer, read_tokenizer, tokenizer_of
from gptjax.data.tokenizers.huggingface import HuggingFaceTokenizer
from gptjax.data.tokenizers.pieces import (
    ESCAPE,
    IMAGES,
    MODEL,
    SentencePieceTokenizer,
    escape,
    read_sentencepiece,
    train_sentencepiece,
    unescape,
)

__all__ = [
    "ESCAPE",
    "FIRST_SYMBOL",
    "IMAGES",
    "MODEL",
    "MOST_SYMBOLS",
    "RECORD",
    "ByteTokenizer",
    "HuggingFaceTokenizer",
    "SentencePieceTokenizer",
    "SymbolTokenizer",
    "Tokenizer",
    "byte_bpe",
    "escape",
    "export_tokenizer",
    "gguf_tokenizer",
    "load_tokenizer",
    "read_sentencepiece",
    "read_tokenizer",
    "sentencepiece_of_lists",
    "tokenizer_of",
    "train_sentencepiece",
    "unescape",
]
