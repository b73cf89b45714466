"""A run's folder: one process, whole JSON, an exact metrics log, disks that refuse."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gptjax.errors import BadInput, DamagedData
from gptjax.training.workdir import MetricsLog, claim, read_json, storage_failure, write_json

HOLD = """
import sys, time
from gptjax.training.workdir import claim
with claim(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_claim_creates_and_can_be_taken_again(tmp_path):
    for _ in range(2):
        with claim(tmp_path / "a" / "b") as folder:
            assert folder.is_dir()
            assert read_json(folder / ".lock")["pid"] == os.getpid()


def test_second_claim_names_the_holder_and_a_crash_releases(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(BadInput, match="in use by") as caught, claim(tmp_path):
            pass
        line = str(caught.value)
        assert re.search(rf"process {child.pid} on host \S+ since .*\d\d:\d\d:\d\d", line)
        assert "\n" not in line
        assert read_json(tmp_path / ".lock")["pid"] == child.pid
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    with claim(tmp_path):
        pass


def test_claim_twice_in_one_process(tmp_path):
    with claim(tmp_path), pytest.raises(BadInput, match=f"process {os.getpid()}"), claim(tmp_path):
        pass


def test_claim_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadInput, match="a file is in the way"), claim(path):
            pass
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    "number, words", [(errno.EROFS, "read-only"), (errno.ENOSPC, "disk is full")]
)
def test_refusing_disks_are_one_line(tmp_path, monkeypatch, number, words):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BadInput, match=words), claim(tmp_path):
        pass
    monkeypatch.undo()
    write_json(tmp_path / "a.json", {"a": 1})
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(BadInput, match=words):
        write_json(tmp_path / "a.json", {"a": 2})
    monkeypatch.undo()
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


def test_storage_failure_looks_through_the_chain():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as inner:
            raise RuntimeError("writing failed") from inner
    except RuntimeError as outer:
        assert storage_failure(outer) == "the disk is full"
    assert storage_failure(ValueError("RESOURCE_EXHAUSTED: No space left on device")) is not None
    assert storage_failure(ValueError("something else")) is None
    assert storage_failure(None) is None


def test_json_round_trip_and_damage(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"loss": np.float32(0.5), "steps": np.int64(7), "name": "ünïcode"})
    assert read_json(path) == {"loss": 0.5, "steps": 7, "name": "ünïcode"}
    path.write_text('{"loss": 0.')
    with pytest.raises(DamagedData, match=r"x\.json is damaged"):
        read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DamagedData, match=r"x\.json"):
        read_json(path)
    with pytest.raises(BadInput, match="does not exist"):
        read_json(tmp_path / "none.json")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})


def test_metrics_resume_cuts_later_rows_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    losses = [0.1 + 0.2, 1 / 3, 2.0**-1074, 5.0, 6.0]
    for step, loss in enumerate(losses, 1):
        log.write({"step": step, "loss": loss, "text": "a\u2028b"})
        assert len(log.rows()) == step  # every row is there at once
    log.sync()
    log.close()
    whole = path.read_bytes()
    with open(path, "ab") as file:
        file.write(b'{"step": 6, "lo')
    log = MetricsLog(path)
    assert [row["loss"] for row in log.rows()] == losses
    log.truncate_after(3)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    log.write({"step": 4, "loss": 7.0})
    assert [row["step"] for row in log.rows()] == [1, 2, 3, 4]
    log.truncate_after(0)
    assert log.rows() == [] and path.read_bytes() == b""
    log.close()


def test_metrics_torn_without_newline_is_dropped_even_when_it_parses(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    log = MetricsLog(path)
    log.truncate_after(9)
    log.write({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    log.close()


def test_metrics_without_a_file(tmp_path):
    log = MetricsLog(tmp_path / "none" / "metrics.jsonl")
    log.truncate_after(3)
    assert log.rows() == [] and not log.path.exists()


def test_metrics_damage_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\x00p": \n[3]\n{"step": 4}\n')
    with pytest.raises(DamagedData, match="line 2"):
        MetricsLog(path).rows()


def test_metrics_many_rows_are_quick(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    begun = time.monotonic()
    for step in range(2000):
        log.write({"step": step, "loss": 1.5})
    assert time.monotonic() - begun < 2
    assert json.loads(log.path.read_bytes().splitlines()[-1])["step"] == 1999
    log.close()
