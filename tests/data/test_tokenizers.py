"""Round trips of every tokenizer, exact byte counts, and models that are not the run's."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data import load_tokenizer
from gptjax.data.shards import shard_dtype
from gptjax.data.tokenizers import (
    IMAGES,
    ByteTokenizer,
    SentencePieceTokenizer,
    escape,
    read_sentencepiece,
    train_sentencepiece,
    unescape,
)
from gptjax.errors import BadInput

SAMPLE = [
    f"def f{i}(x):\n    # count  to {i}\n\treturn x +  {i}\r\n\n\nprint('é \U0001f642', f{i}(3))\n"
    for i in range(200)
]
HARD = "\n\t\r\0 \u2581\u2585\u2047\ufeff\ufffd\u200d\x85\u2028abcg<>_\U0001f642" + "".join(
    [*IMAGES.values(), "\ue00f", "\ue00b"]
)
TEXTS = st.text(
    st.one_of(st.sampled_from(HARD), st.characters(exclude_categories=["Cs"])), max_size=40
)


@pytest.fixture(scope="module", params=["bytes", "bpe", "unigram"])
def tokenizer(request):
    if request.param == "bytes":
        return ByteTokenizer()
    return train_sentencepiece(request.param, 400, SAMPLE, lambda line: None)


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_escape_is_undone_and_leaves_nothing_special(text):
    escaped = escape(text)
    assert unescape(escaped) == text
    assert not set(escaped) & set(IMAGES)


@given(text=TEXTS)
@settings(max_examples=300, deadline=None)
def test_round_trip_and_byte_counts_are_exact(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.separator_id not in ids
    assert tokenizer.token_bytes[ids].sum() == len(text.encode("utf-8"))
    assert np.array_equal(tokenizer.encode_many([text])[0], ids)


def test_round_trip_of_named_cases(tokenizer):
    for text in [*SAMPLE[:3], "", " ", "\n", "  a  ", "<|separator|><0x0A><|unknown|>\0", "\r\n\t"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.separator_id not in ids
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    assert tokenizer.token_bytes[tokenizer.separator_id] == 0
    assert tokenizer.decode([tokenizer.separator_id]) == ""


def test_training_learns_newlines_and_indentation(tokenizer):
    if tokenizer.kind != "bytes":
        assert tokenizer.vocab_size == 400
        assert len(tokenizer.encode("):\n    #")) < 8


def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(BadInput, match="surrogate"):
        tokenizer.encode("a\ud800")


def test_saved_copy_is_the_same_and_another_model_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path, tokenizer.sha256)
    assert (loaded.kind, loaded.sha256) == (tokenizer.kind, tokenizer.sha256)
    assert np.array_equal(loaded.encode(SAMPLE[0]), tokenizer.encode(SAMPLE[0]))
    with pytest.raises(BadInput, match="of another run"):
        load_tokenizer(tmp_path, "0" * 64)
    record = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(record | {"sha256": "1" * 64}))
    with pytest.raises(BadInput, match="of another run"):
        load_tokenizer(tmp_path)
    with pytest.raises(BadInput, match="no whole tokenizer"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_vocabulary_that_the_text_cannot_fill_names_the_largest():
    with pytest.raises(BadInput, match=r"vocab_size=5000 .* largest possible is \d+"):
        train_sentencepiece("bpe", 5000, SAMPLE[:3], lambda line: None)


def test_a_vocabulary_below_the_characters_names_the_least():
    many = ["".join(chr(0x4E00 + i) for i in range(600))]
    with pytest.raises(BadInput, match=r"vocab_size=330 .* the least is \d+"):
        train_sentencepiece("bpe", 330, many, lambda line: None)


def test_dtype_of_ids_follows_the_vocabulary():
    assert shard_dtype(65536) == np.uint16
    assert shard_dtype(65537) == np.uint32
    with pytest.raises(BadInput, match="over what the tokens' dtype holds"):
        shard_dtype((1 << 31) + 1)


def test_a_foreign_model_is_fed_plain_text_and_says_whether_it_is_exact():
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(SAMPLE).split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=100,
        minloglevel=2,
    )
    foreign = SentencePieceTokenizer(model.getvalue(), "bpe")
    assert not foreign.escapes and not foreign.exact
    assert foreign.decode(foreign.encode("def f1(x)")) == "def f1(x)"


def test_what_is_no_model_is_one_line_without_noise(tmp_path, capfd):
    (tmp_path / "empty.model").touch()
    (tmp_path / "random.model").write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "plain.model").write_bytes(b"plain text, no model\n")
    (tmp_path / "part.model").write_bytes(b"\x1a\x04\x10\x01\x18\x02")  # settings without pieces
    os.mkfifo(tmp_path / "pipe.model")
    for name, words in {
        "empty.model": "is not a sentencepiece model",
        "random.model": "is not a sentencepiece model",
        "plain.model": "is not a sentencepiece model",
        "part.model": "is not a sentencepiece model",
        "pipe.model": "is not a file",
        "": "is not a file",
        "none.model": "cannot be read: No such file",
        "empty.model/x": "cannot be read: Not a directory",
        "~nobody-of-that-name/x": "home directory",
        "/dev/null": "is not a file",
    }.items():
        path = name if name[:1] in ("~", "/") else str(tmp_path / name)
        with pytest.raises(BadInput, match=words):
            read_sentencepiece(path, "bpe")
    assert capfd.readouterr() == ("", "")
