"""TensorBoard's events: what a row becomes, and disks that refuse."""

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from gptjax.errors import BadInput
from gptjax.training.metrics import Events, Recorder
from gptjax.training.workdir import MetricsLog


def read(path) -> list[Event]:
    content, events = path.read_bytes(), []
    while content:
        (size,) = struct.unpack("Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return events


def test_a_row_is_an_event_of_its_step(tmp_path):
    for step in (3, 4):  # two starts, the second from step 3
        recorder = Recorder(tmp_path, 3)
        recorder.write({"step": step, "loss": 0.5, "tokens": 7, "name": "text"})
        recorder.close()
    assert [row["step"] for row in MetricsLog(tmp_path / "metrics.jsonl").rows()] == [3, 4]
    first, row = read(recorder.events.path)
    assert first.file_version == "brain.Event:2" and row.step == 4
    assert {v.tag: v.simple_value for v in row.summary.value} == {"loss": 0.5, "tokens": 7}


def test_a_full_disk_is_one_line_and_never_a_wait(tmp_path):
    events = Events(tmp_path / "tensorboard")
    events.file.close()
    events.file._writer = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(BadInput, match=r"cannot write .*tfevents.*: the disk is full"):
        for step in range(1000):
            events.write({"step": step, "loss": 0.5})
    with pytest.raises(BadInput, match="the disk is full"):
        events.close()
    events.close()  # closed all the same
