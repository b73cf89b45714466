"""Special ids, words and sentences as objectives see them, for every kind of tokenizer."""

import numpy as np
import pytest

from gptjax.data.tokenizers import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    SymbolTokenizer,
    sentencepiece_of_lists,
)
from gptjax.data.tokenizers.build import added_token, byte_bpe, word_piece_text
from gptjax.data.tokenizers.huggingface import byte_alphabet
from gptjax.data.vocabulary import describe, sentences, vocabulary_of, words
from gptjax.errors import BadInput


def pieces_of(ids, numbers, tokenizer) -> list[str]:
    """The text of each run of equal numbers."""
    cuts = np.flatnonzero(np.diff(numbers)) + 1
    return [tokenizer.decode(part) for part in np.split(ids, cuts)]


def test_roles_of_bytes_are_beyond_the_tokenizer():
    tokenizer = ByteTokenizer()
    vocabulary = vocabulary_of(tokenizer, ["mask", "eos", "pad", "sentinel_0", "sentinel_1"])
    assert (vocabulary.size, vocabulary.total, vocabulary.separator) == (257, 260, 256)
    assert vocabulary.extra == {"mask": 257, "sentinel_0": 258, "sentinel_1": 259}
    assert vocabulary.id("eos") == vocabulary.id("pad") == 256
    assert vocabulary.sentinels(2).tolist() == [258, 259]
    assert vocabulary.token_bytes.tolist() == [1] * 256 + [0] * 4
    assert vocabulary.ordinary.tolist() == list(range(256))
    assert np.flatnonzero(vocabulary.is_special).tolist() == [256, 257, 258, 259]
    with pytest.raises(BadInput, match="no gmask token"):
        vocabulary.id("gmask")
    shown = [*tokenizer.encode("one "), 257, *tokenizer.encode(" 3"), 256]
    assert describe(shown, vocabulary, tokenizer) == "one [MASK] 3<|separator|>"


def test_words_and_sentences_of_bytes():
    tokenizer = ByteTokenizer()
    vocabulary = vocabulary_of(tokenizer)
    ids = tokenizer.encode("naïve f_1(x), 3.14!")
    found = ["naïve", " ", "f_1", "(", "x", ")", ",", " ", "3", ".", "14", "!"]
    assert pieces_of(ids, words(ids, vocabulary), tokenizer) == found
    text = 'He has 3.14. "Why?" So a.b\n\n"End'
    ids = tokenizer.encode(text)
    found = pieces_of(ids, sentences(ids, vocabulary), tokenizer)
    assert found == ["He has 3.14.", ' "Why?"', " So a.b\n\n", '"End']
    ids = np.array([97, 256, 98])
    assert words(ids, vocabulary).tolist() == sentences(ids, vocabulary).tolist() == [0, 1, 2]


def test_words_of_sentencepiece_and_its_sentinels():
    tokens = ["<unk>", "<s>", "</s>", "\u2581the", "\u2581", "re", ".", "\u2581is", "x"]
    tokens += ["\u4e00", "\u4e8c", "<extra_id_1>", "<extra_id_0>"]
    types = [2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 3, 3]
    tokenizer = sentencepiece_of_lists(tokens, [0.0] * 13, types, {"unk": 0, "bos": 1, "eos": 2})
    vocabulary = vocabulary_of(tokenizer, ["sentinel_0", "sentinel_1", "sentinel_2", "mask"])
    assert vocabulary.sentinels(3).tolist() == [12, 11, 13]
    assert vocabulary.extra == {"sentinel_2": 13, "mask": 14}
    assert vocabulary.id("eos") == 2 and vocabulary.id("pad") == 1
    assert vocabulary.ordinary.tolist() == list(range(3, 11))
    ids = np.array([3, 5, 8, 6, 7, 4, 5, 9, 10, 1])
    assert words(ids, vocabulary).tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert sentences(ids, vocabulary).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2]


def test_words_of_word_piece_go_by_its_marks():
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {token: i for i, token in enumerate([*marks, "un", "##bro", "##ken", "_", "\u00a3"])}
    pytest.importorskip("tokenizers")
    added = [added_token(i, mark, True) for i, mark in enumerate(marks)]
    text = word_piece_text(vocab, added, "[UNK]", None)
    special = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    tokenizer = HuggingFaceTokenizer(text, 3, special)
    vocabulary = vocabulary_of(tokenizer, ["mask", "cls", "sep", "pad"])
    assert vocabulary.total == 10 and vocabulary.id("mask") == 4
    ids = np.array([2, 5, 6, 7, 8, 5, 9, 7, 3])
    assert words(ids, vocabulary).tolist() == [0, 1, 1, 1, 2, 3, 4, 4, 5]


def test_surfaces_are_what_is_decoded():
    pytest.importorskip("tokenizers")
    alphabet = [*byte_alphabet()]
    gpt2 = byte_bpe([*alphabet, "\u0120a", "<|endoftext|>"], ["\u0120 a"])
    for tokenizer in (ByteTokenizer(), SymbolTokenizer(300), gpt2):
        text = "\u0100\u0101\u0130" if tokenizer.kind == "symbols" else "n\u00e9 a <x> \U0001f642"
        surfaces = tokenizer.surfaces()
        ids = tokenizer.encode(text)
        assert b"".join(surfaces[i] for i in ids).decode() == text
        assert [len(one) for one in surfaces] == tokenizer.token_bytes.tolist()
    assert gpt2.surfaces()[256] == b" a" and gpt2.id_of("<|endoftext|>") == 257
    assert gpt2.id_of("<extra_id_0>") is None
    vocabulary = vocabulary_of(gpt2)
    assert words(gpt2.encode("a an"), vocabulary).tolist() == [0, 1, 1]
