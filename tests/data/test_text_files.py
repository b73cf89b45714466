"""The user's files: what is read, and the one line for everything that is wrong in them."""

import builtins
import gzip
import json

import pytest
import zstandard

from gptjax.data import DataConfig, prepare
from gptjax.data.text_files import Enough, find_files, read_documents
from gptjax.errors import BadInput

TEXT = "naïve \U0001f642 text\r\nsecond line\u2028not a new line\n" * 50


def documents(path, text_key="text"):
    return [text for _, text in read_documents(path, text_key)]


def packed(name, data):
    if name.endswith(".gz"):
        return gzip.compress(data)
    return zstandard.compress(data) if name.endswith(".zst") else data


@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a.txt.gz", "a.zst", "a.txt.zst"])
def test_text_file_is_one_document(tmp_path, name):
    (tmp_path / name).write_bytes(packed(name, TEXT.encode()))
    assert documents(tmp_path / name) == [TEXT]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_json_line_is_one_document(tmp_path, name):
    lines = "\n".join(json.dumps({"t": TEXT + str(i)}, ensure_ascii=False) for i in range(5))
    (tmp_path / name).write_bytes(packed(name, lines.encode() + b"\n\n"))
    assert documents(tmp_path / name, "t") == [TEXT + str(i) for i in range(5)]


def test_two_zstd_frames_are_read_as_one_text(tmp_path):
    data = zstandard.compress(b"one ") + zstandard.compress(b"two")
    (tmp_path / "a.zst").write_bytes(data)
    assert documents(tmp_path / "a.zst") == ["one two"]


CONTENT_FAULTS = {
    "binary": ("a.txt", b"abc\0def", "binary: NUL at byte 3"),
    "not utf-8": ("a.txt", b"abcd\xff\xfe", "not UTF-8 at byte offset 4"),
    "cut utf-8": ("a.txt", "é".encode()[:1], "not UTF-8 at byte offset 0"),
    "not utf-8 in a later line": ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "offset 24"),
    "cut gzip": ("a.gz", gzip.compress(TEXT.encode())[:-12], "truncated"),
    "not gzip": ("a.gz", b"plain text", "not whole gzip"),
    "cut zstd": ("a.zst", zstandard.compress(TEXT.encode())[:-5], "truncated"),
    "not zstd": ("a.zst", b"plain text", "not whole zstd"),
    "empty inside": ("a.gz", gzip.compress(b""), "is empty"),
    "cut json": ("a.jsonl", b'{"text": "a"}\n{"text": "b', "a.jsonl:2 is not whole JSON"),
    "no object": ("a.jsonl", b"[1]\n", "a.jsonl:1 is a JSON list"),
    "no text_key": ("a.jsonl", b'\n{"body": "a"}\n', "a.jsonl:2 has no field 'text', only body"),
    "no text": ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1 field 'text' is int"),
    "half a surrogate": ("a.jsonl", b'{"text": "\\ud800"}\n', "surrogate"),
}


@pytest.mark.parametrize("fault", CONTENT_FAULTS)
def test_content_faults_are_one_line(tmp_path, fault):
    name, data, message = CONTENT_FAULTS[fault]
    (tmp_path / name).write_bytes(data)
    config = DataConfig(
        corpus="files", files=(str(tmp_path / name),), cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(BadInput, match=message.replace(".", r"\.")) as error:
        prepare(config)
    assert "\n" not in str(error.value) and name in str(error.value)
    left = [p for p in (tmp_path / "cache").rglob("*") if p.is_dir() and "building" in p.name]
    assert not left


def test_listing_faults_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "page.html").write_text("x")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    for pattern, message in {
        "empty.txt": "is empty",
        "emty.txt": "does not exist; did you mean 'empty.txt'",
        "*.nothing": "no file matches",
        "folder.txt": "is a folder; give a glob",
        "folder*": "folders only",
        "page.html": "unknown ending",
        "gone.txt": "cannot be read",
    }.items():
        with pytest.raises(BadInput, match=message):
            find_files([str(tmp_path / pattern)])

    (tmp_path / "secret.txt").write_text("x")

    def refuse(path, *rest, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(BadInput, match=r"secret\.txt cannot be read: Permission denied"):
        find_files([str(tmp_path / "secret.txt")])


def test_a_file_named_by_two_globs_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert find_files([str(tmp_path / "*.txt"), str(tmp_path / "a.txt")]) == [tmp_path / "a.txt"]


def test_a_byte_order_mark_is_no_part_of_json(tmp_path):
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "x"}\n{"text": "\ufeffy"}\n')
    texts = [text for _, text in read_documents(tmp_path / "a.jsonl", "text")]
    assert texts == ["x", "\ufeffy"]


def test_reading_stops_where_enough_was_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": ')
    with pytest.raises(Enough):
        list(read_documents(tmp_path / "a.jsonl", "text", 5))
    with pytest.raises(BadInput, match=r"a\.jsonl:2 is not whole JSON"):
        list(read_documents(tmp_path / "a.jsonl", "text", 100))
