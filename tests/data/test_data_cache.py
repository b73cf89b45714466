"""The cache holds whole things or nothing: kills, damage, two builders, no room."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gptjax.data import DataConfig, prepare
from gptjax.data.cache import prepared, read_record
from gptjax.errors import BadInput, DamagedData


def build(folder):
    (folder / "inner").mkdir()
    (folder / "inner" / "a.bin").write_bytes(b"x" * 1000)
    return {"answer": 42}


def never(folder):
    raise AssertionError("built again")


def test_a_folder_is_built_once(tmp_path):
    folder = tmp_path / "cache" / "thing"
    assert prepared(folder, build, print) == {"answer": 42}
    assert prepared(folder, never, print) == {"answer": 42}


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "record"])
def test_damage_is_found_reported_and_mended(tmp_path, damage):
    folder = tmp_path / "thing"
    prepared(folder, build, print)
    file = folder / "inner" / "a.bin"
    if damage == "truncate":
        os.truncate(file, 500)
    elif damage == "flip":
        file.write_bytes(b"x" * 500 + b"y" + b"x" * 499)
    elif damage == "remove":
        file.unlink()
    else:
        (folder / "record.json").write_text("{")
    with pytest.raises(DamagedData):
        read_record(folder)
    lines = []
    assert prepared(folder, build, lines.append) == {"answer": 42}
    assert len(lines) == 1 and lines[0].startswith("rebuilding: ") and str(folder) in lines[0]
    assert file.read_bytes() == b"x" * 1000


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(folder):
        build(folder)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        prepared(tmp_path / "thing", fail, print)
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []


def test_a_full_disk_is_one_line(tmp_path):
    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("write() failed: No space left on device; writing a.array_record"),
    ):

        def full(folder, error=error):
            raise error

        with pytest.raises(BadInput, match=r"cannot be written \(No space left.*data.cache_dir"):
            prepared(tmp_path / "thing", full, print)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="cannot be written"):
        prepared(tmp_path / "file" / "inner" / "thing", build, print)


KILLED = """
import os, signal, sys
from pathlib import Path
from gptjax.data import cache
moment = sys.argv[2]
def build(folder):
    (folder / "a.bin").write_bytes(b"half")
    if moment == "build":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "a.bin").write_bytes(b"whole")
    return {}
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "seal":
    cache.sync = die
if moment == "rename":
    cache.os.replace = die
cache.prepared(Path(sys.argv[1]), build, print)
"""


@pytest.mark.parametrize("moment", ["build", "seal", "rename"])
def test_a_killed_build_is_not_taken_as_good(tmp_path, moment):
    folder = tmp_path / "thing"
    done = subprocess.run([sys.executable, "-c", KILLED, folder, moment])
    assert done.returncode == -signal.SIGKILL
    assert read_record(folder) is None
    assert list(tmp_path.glob(".thing.building-*"))
    assert prepared(folder, build, print) == {"answer": 42}
    assert not list(tmp_path.glob(".thing.building-*"))


def _slow_build(folder):
    with open(folder.parent / "builds", "a") as file:
        file.write("x")
    time.sleep(0.3)
    return {"by": os.getpid()}


def _prepare_slowly(folder):
    return prepared(Path(folder), _slow_build, print)["by"]


def test_two_processes_build_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        builders = pool.map(_prepare_slowly, [str(tmp_path / "thing")] * 2, chunksize=1)
    assert builders[0] == builders[1]
    assert (tmp_path / "builds").read_text() == "x"


@pytest.fixture
def config(tmp_path):
    lines = [json.dumps({"text": f"document {i} " * 30}) for i in range(40)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    return DataConfig(
        corpus="files",
        files=(str(tmp_path / "texts.jsonl"),),
        batch_size=2,
        sequence_length=16,
        cache_dir=str(tmp_path / "cache"),
    )


@pytest.mark.parametrize("where", ["tokens/*/train.bin", "corpora/*/tfds/files/*/*record*"])
def test_a_damaged_shard_is_rebuilt(config, where):
    first = next(prepare(config).train_iterator())
    (shard,) = Path(config.cache_dir).glob(where)
    os.truncate(shard, shard.stat().st_size // 2)
    lines = []
    again = next(prepare(config, lines.append).train_iterator())
    assert any(line.startswith("rebuilding") and shard.name in line for line in lines)
    np.testing.assert_array_equal(first["tokens"], again["tokens"])
    lines.clear()
    prepare(config, lines.append)
    assert not lines


def test_changed_text_is_another_corpus(config):
    before = prepare(config).manifest["corpus_sha256"]
    assert prepare(config).manifest["corpus_sha256"] == before
    with open(config.files[0], "a") as file:
        file.write('\n{"text": "one more"}\n')
    assert prepare(config).manifest["corpus_sha256"] != before


def test_a_model_replaced_in_the_cache_is_not_used(config):
    from dataclasses import replace

    config = replace(config, tokenizer="bpe", vocab_size=320)
    with pytest.raises(BadInput, match="largest possible is"):
        prepare(replace(config, vocab_size=4000))
    dataset = prepare(config)
    (model,) = Path(config.cache_dir).glob("tokenizers/*/tokenizer.model")
    data = model.read_bytes()
    model.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    lines = []
    assert prepare(config, lines.append).tokenizer.sha256 == dataset.tokenizer.sha256
    assert any("rebuilding" in line for line in lines)
