"""A plan is told what the run would be: the same refusals, before anything is prepared."""

import gzip
import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from gptjax.data import DataConfig, prepare
from gptjax.data.check import check
from gptjax.data.tokenizers import train_sentencepiece
from gptjax.errors import BadInput

LINES = "".join(json.dumps({"text": f"document {i} " * 9}) + "\n" for i in range(40))
BASE = DataConfig(corpus="files", batch_size=2, sequence_length=16, validation_fraction=0.2)

FAULTY = {
    "none.txt": (None, "does not exist"),
    "empty.txt": (b"", "is empty"),
    "cut.txt.gz": (gzip.compress(b"abc" * 999)[:-9], "truncated"),
    "cut.zst": (b"\x28\xb5\x2f\xfd\x20", "truncated"),
    "binary.txt": (b"abc\0" * 99, "binary: NUL at byte 3"),
    "latin.txt": (b"abc\xe9" * 99, "not UTF-8 at byte offset 3"),
    "odd.jsonl": (LINES.encode() + b'{"text": 3}\n', "odd.jsonl:41 field 'text' is int"),
    "bare.jsonl": (b"\n \n", "no document with text"),
    "one.txt": (b"only one document " * 99, "fall into one split"),
    "few.jsonl": (b'{"text": "abc def ghi jkl mno"}\n{"text": "b"}\n', "fewer than"),
}


@pytest.fixture
def config(tmp_path):
    """Forty documents that make a batch, and a cache that is not there yet."""
    (tmp_path / "good.jsonl").write_text(LINES)
    return replace(BASE, files=(f"{tmp_path}/good.jsonl",), cache_dir=f"{tmp_path}/a/cache")


@pytest.mark.parametrize("name", FAULTY)
def test_files_are_refused_as_by_the_run(config, tmp_path, name):
    data, words = FAULTY[name]
    if data is not None:
        (tmp_path / name).write_bytes(data)
    config = replace(config, files=(f"{tmp_path}/{name}",))
    messages = []
    for refuse in (check, prepare):
        with pytest.raises(BadInput, match=words) as error:
            refuse(config)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_other_refusals(config, tmp_path):
    assert check(config) == 257 and not (tmp_path / "a").exists()
    for changes, words in [
        ({"cache_dir": "/dev/null"}, "cannot be written"),
        ({"cache_dir": "/proc/x"}, "cannot be written"),
        ({"cache_dir": f"{tmp_path}/good.jsonl/x"}, "cannot be written"),
        ({"batch_size": 10_000}, "fewer than data.batch_size=10000"),
        ({"long_documents": "refuse"}, r"good\.jsonl:1 has 99 tokens"),
        ({"tokenizer": "bpe", "tokenizer_file": "/dev/null"}, "is not a file"),
    ]:
        with pytest.raises(BadInput, match=words):
            check(replace(config, **changes))
        with pytest.raises(BadInput):
            prepare(replace(config, **changes))


def test_a_cache_that_holds_the_corpus_need_not_be_writable(config, monkeypatch):
    prepare(config)

    def refuse(root):
        raise BadInput("cannot be written")

    monkeypatch.setattr("gptjax.data.check.check_writable", refuse)
    check(config)
    with pytest.raises(BadInput, match="cannot be written"):
        check(replace(config, cache_dir=config.cache_dir + "x"))


def test_a_large_corpus_is_read_in_part(config, tmp_path, monkeypatch):
    monkeypatch.setattr("gptjax.data.check.MOST_BYTES", 1000)
    (tmp_path / "good.jsonl").write_text(LINES + "no JSON")
    check(config)
    packed = io.BytesIO()
    with gzip.open(packed, "wb") as file:
        file.write(b"\0" * 100_000_000)  # all of it would take long to decode
    (tmp_path / "bomb.txt.gz").write_bytes(packed.getvalue())
    with pytest.raises(BadInput, match="binary"):
        check(replace(config, files=(f"{tmp_path}/bomb.txt.gz",)))


def test_the_ids_of_a_tokenizer(config, tmp_path):
    model = train_sentencepiece("bpe", 390, LINES.splitlines() * 9, lambda line: None).model
    (tmp_path / "m.model").write_bytes(model)
    assert check(replace(config, tokenizer="bpe", tokenizer_file=f"{tmp_path}/m.model")) == 390
    assert check(replace(config, tokenizer="bpe", vocab_size=500)) == 500


def test_pipes_and_undecodable_names(config, tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(BadInput, match="neither a file nor a folder"):
        check(replace(config, files=(f"{tmp_path}/pipe.txt",)))
    texts = np.random.default_rng(0).integers(97, 123, (40, 50), dtype=np.uint8)
    for i, row in enumerate(texts):
        with open(os.fsencode(tmp_path) + b"/f\xff%d.txt" % i, "wb") as file:
            file.write(row.tobytes())
    named = replace(config, files=(f"{tmp_path}/f*.txt",))
    check(named)
    assert prepare(named).manifest["corpus_documents"] == 40
