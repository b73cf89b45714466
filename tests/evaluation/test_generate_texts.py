"""Text as it grows: whole characters, stop strings, prompts from files, tables of the likely."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from gptjax import DecoderConfig
from gptjax.data.tokenizers import ByteTokenizer
from gptjax.errors import BadInput
from gptjax.evaluation.generate import Clock
from gptjax.evaluation.sampling import Sampling
from gptjax.evaluation.texts import (
    TextStream,
    encoded,
    generate_texts,
    read_prompts,
    search_texts,
    show_next,
    show_steps,
)
from gptjax.models.build import init_params

BYTES = ByteTokenizer()
TEXT = "aé€🙂 z\ufffd"


@pytest.fixture(scope="module")
def source():
    config = DecoderConfig(
        vocab_size=257, context_length=32, num_layers=1, d_model=16, num_heads=2, init="fan_in"
    )
    params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    params = jax.tree.map(lambda x: 3.0 * x, params)
    return types.SimpleNamespace(config=config, params=params, tokenizer=BYTES)


def told(stream: TextStream, ids) -> list[str]:
    return [piece for piece in [*(stream.push([i]) for i in ids), stream.close()] if piece]


def test_characters_are_told_when_they_are_whole():
    ids = BYTES.encode(TEXT).tolist()
    pieces = told(TextStream(BYTES.decode), ids)
    assert pieces == list(TEXT)
    cut = told(TextStream(BYTES.decode), ids[:-5])  # in the middle of the last but one character
    assert "".join(cut) == BYTES.decode(ids[:-5])
    # Bytes that are no character are told of once something follows, or at the end.
    assert told(TextStream(BYTES.decode), [0x61, 0xFF, 0x62]) == ["a", "\ufffdb"]


def test_a_prompt_may_end_within_a_character():
    ids = BYTES.encode("é").tolist()
    assert told(TextStream(BYTES.decode, ids[:1]), ids[1:]) == ["é"]


def test_nothing_of_a_stop_string_is_told():
    stream = TextStream(BYTES.decode, stops=("END", "\n\n"))
    pieces = told(stream, BYTES.encode("EEN EN\nENDs").tolist())
    assert "".join(pieces) == "EEN EN\n" and stream.stopped and stream.text == "EEN EN\n"
    assert len(stream.ids) == len("EEN EN\nEND")
    assert "".join(told(TextStream(BYTES.decode, stops=("END",)), BYTES.encode("EN"))) == "EN"
    two = TextStream(BYTES.decode, stops=("bc", "abcd"))
    assert "".join(told(two, BYTES.encode("xabcd").tolist())) == "xa"


def test_texts_grow_to_what_they_are(source):
    prompts = encoded(source, ["ab", "é", [7, 8, 9]], "separator")
    assert prompts[1].ids.tolist() == [256, 0xC3, 0xA9]
    pieces, clock = {}, Clock()
    texts = generate_texts(
        source, prompts, 9, Sampling(temperature=1.0, seed=4), num_samples=2, clock=clock,
        on_text=lambda number, piece: pieces.setdefault(number, []).append(piece),
    )  # fmt: skip
    assert [t.sample for t in texts] == [0, 1] * 3 and clock.first_tokens > 0
    for number, text in enumerate(texts):
        assert "".join(pieces.get(number, [])) == text.text
        assert text.record()["tokens"] == text.tokens.tolist() and len(text.tokens) == 9


def test_a_stop_string_ends_a_text_as_a_cut_would(source):
    prompts = encoded(source, ["ab"], "none")
    whole = generate_texts(source, prompts, 20, Sampling(seed=1))[0]
    letters = whole.text[4:6]
    stopped = generate_texts(source, prompts, 20, Sampling(seed=1), stops=(letters,), top=3)[0]
    assert stopped.text == whole.text[: whole.text.index(letters)] and stopped.ended == "stop"
    count = len(stopped.tokens)
    np.testing.assert_array_equal(stopped.tokens, whole.tokens[:count])
    assert count < 20 and stopped.row.logprobs.shape == (count,)
    assert len(stopped.record()["logprobs"]) == count


def test_beams_and_tables_are_text_too(source, capsys):
    prompts = encoded(source, ["ab"], "none")
    found = search_texts(source, prompts, 5, beams=3, length_penalty=0.0, num_samples=2)
    assert [t.sample for t in found] == [0, 1] and found[0].score >= found[1].score
    assert json.loads(json.dumps(found[0].record()))["score"] == found[0].score
    text = generate_texts(source, prompts, 3, Sampling(temperature=0.0), top=4)[0]
    show_next(source, text)
    show_steps(source, text)
    out = capsys.readouterr().out
    assert "after 'ab'" in out and "probability" in out and out.count("\n") > 10


def test_without_a_tokenizer_there_are_ids(source):
    bare = types.SimpleNamespace(config=source.config, params=source.params, tokenizer=None)
    with pytest.raises(BadInput, match="without a tokenizer: give prompts as ids"):
        encoded(bare, ["ab"], "none")
    prompts = encoded(bare, [[97, 98]], "none")
    text = generate_texts(bare, prompts, 3, Sampling(temperature=0.0))[0]
    assert text.text == "" and len(text.tokens) == 3


def test_prompts_that_a_model_cannot_begin_with(source):
    with pytest.raises(BadInput, match=r"33 tokens \('a{24}\.\.\.'\) leaves no room.*at most 31"):
        encoded(source, ["a" * 32], "separator")
    with pytest.raises(BadInput, match="the prompt is empty"):
        encoded(source, [""], "none")
    with pytest.raises(BadInput, match="token 257 of the prompt"):
        encoded(source, [[257]], "none")
    with pytest.raises(BadInput, match="33 tokens"):  # also where positions would go on
        rotary = dataclasses.replace(source.config, positions="rotary")
        encoded(types.SimpleNamespace(config=rotary, tokenizer=BYTES), ["a" * 32], "separator")


def test_files_of_prompts(tmp_path):
    lines = tmp_path / "a.txt"
    lines.write_text("one\u2028line\r\n\n  two\n", encoding="utf-8")
    assert read_prompts(lines) == ["one\u2028line", "  two"]
    values = tmp_path / "a.jsonl"
    values.write_text('"a\\nb"\n{"prompt": "c", "n": 1}\n{"ids": [1, 2]}\n', encoding="utf-8")
    assert read_prompts(values) == ["a\nb", "c", [1, 2]]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\n \n", "holds no prompt"),
        ("a.txt", b"\xff\xfe", "is not UTF-8 text"),
        ("a.jsonl", b'"a"\n{"text": 1}', "line 2: give a string, or an object"),
        ("a.jsonl", b"{", "line 1 is no JSON"),
        ("a.jsonl", b'{"ids": [true]}', "line 1: give a string"),
        ("a.jsonl", b"", "holds no prompt"),
    ],
)
def test_bad_files_of_prompts(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=words):
        read_prompts(tmp_path / name)


def test_a_missing_file_of_prompts(tmp_path):
    with pytest.raises(BadInput, match="No such file"):
        read_prompts(tmp_path / "none.txt")
