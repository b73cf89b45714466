"""The ledger under several processes and under kills: every point is held once."""

import builtins
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gptjax.errors import DamagedData, Trouble
from gptjax.sweeps.ledger import DEATHS, Ledger, State

POINTS = [f"p{i}" for i in range(23)]

# Takes every point it can get and finishes it at once.
GREEDY = """
import sys
from gptjax.sweeps.ledger import Ledger
ledger = Ledger(sys.argv[1], sys.argv[2].split(","))
print("ready", flush=True)
sys.stdin.readline()
for point in ledger.points:
    lease = ledger.claim(point)
    if lease is not None:
        ledger.finish(lease, "done", {"by": sys.argv[3]})
"""
# Takes one point and never comes back.
HOLDER = """
import sys, time
from gptjax.sweeps.ledger import Ledger
lease = Ledger(sys.argv[1], sys.argv[2].split(",")).claim("p0", int(sys.argv[3]))
print("ready" if lease else "refused", flush=True)
time.sleep(60)
"""


def start(code: str, folder, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-c", code, str(folder), ",".join(POINTS), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_many_processes_take_every_point_once(tmp_path):
    workers = [start(GREEDY, tmp_path, name) for name in "abc"]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    ledger = Ledger(tmp_path, POINTS)
    assert all(state.status == "done" and state.starts == 1 for state in ledger.states().values())
    begun = [row["point"] for row in ledger.events() if row["event"] == "start"]
    assert sorted(begun) == sorted(POINTS)


def test_a_point_is_free_again_when_its_holder_is_killed(tmp_path):
    holder = start(HOLDER, tmp_path, 0)
    assert holder.stdout.readline() == "ready\n"
    ledger = Ledger(tmp_path, POINTS)
    assert ledger.claim("p0") is None and ledger.running("p0")["pid"] == holder.pid
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert ledger.running("p0") is None
    lease = ledger.claim("p0", step=7)
    assert lease is not None and ledger.state("p0").deaths == 1
    ledger.finish(lease, "done", {"loss": 1.5})
    assert ledger.claim("p0") is None
    assert ledger.state("p0") == State("done", {"loss": 1.5}, starts=2, step=7)
    assert [row["event"] for row in ledger.events()] == ["start", "lost", "start", "done"]


def test_a_silent_holder_on_another_host_loses_its_point(tmp_path):
    ledger = Ledger(tmp_path, POINTS)
    ledger.folder.mkdir()
    lease = ledger.folder / "p0.lease"
    lease.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": 0}))
    assert ledger.claim("p0") is None and ledger.running("p0")["host"] == "elsewhere"
    old = time.time() - 3600
    os.utime(lease, (old, old))
    assert ledger.running("p0") is None
    taken = ledger.claim("p0")
    assert taken is not None
    ledger.give_back(taken)


def test_a_point_that_kills_its_process_again_and_again_fails(tmp_path):
    ledger = Ledger(tmp_path, POINTS)
    for _ in range(DEATHS):
        ledger.claim("p0", step=3).close(done=False)  # as a death leaves it
    assert ledger.claim("p0", step=3) is None
    assert "died 10 times in a row at step 3" in ledger.state("p0").error
    for step in range(2 * DEATHS):  # dying is no failure while it gets on
        ledger.claim("p1", step=step).close(done=False)
    assert not ledger.state("p1").finished


def test_failures_are_counted_and_can_be_forgiven(tmp_path):
    ledger = Ledger(tmp_path, POINTS)
    for number in range(3):
        assert ledger.state("p0").status == "waiting"
        ledger.failed(ledger.claim("p0"), f"boom {number}", attempts=3)
    state = ledger.state("p0")
    assert state.status == "failed" and state.error == "boom 2" and ledger.claim("p0") is None
    ledger.reset("p0")
    lease = ledger.claim("p0")
    assert lease is not None
    ledger.give_back(lease)
    assert ledger.state("p0").status == "waiting" and ledger.running("p0") is None


def test_a_torn_event_is_cut_off_and_a_damaged_state_named(tmp_path):
    ledger = Ledger(tmp_path, POINTS)
    ledger.give_back(ledger.claim("p0"))
    with open(ledger.log, "ab") as log:
        log.write(b'{"time": 1')
    ledger.give_back(ledger.claim("p0"))
    assert [row["event"] for row in ledger.events()] == ["start", "given back"] * 2
    (ledger.folder / "p1.json").write_text('{"status": "done", "odd": 1}')
    with pytest.raises(DamagedData, match=r"p1\.json is damaged"):
        ledger.state("p1")


def test_a_reader_who_may_not_write_sees_who_works(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, POINTS)
    lease, open_file, open_path = ledger.claim("p0"), os.open, builtins.open
    (ledger.folder / "p1.lease").write_text(json.dumps({"host": "elsewhere", "pid": 1}))

    def read_only(path, flags, *more, **named):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_file(path, flags, *more, **named)

    def reads(path, mode="r", *more, **named):
        assert not {*mode} & {*"wax+"}, f"{path} is opened for writing"
        return open_path(path, mode, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        patch.setattr(builtins, "open", reads)
        other = Ledger(tmp_path, POINTS)
        assert other.running("p0")["pid"] == os.getpid() and other.running("p2") is None
        assert other.running("p1")["host"] == "elsewhere"
        assert other.states()["p0"].starts == 1 and len(other.events()) == 1
    ledger.give_back(lease)
    assert other.running("p0") is None


def test_looking_makes_no_folder(tmp_path):
    ledger = Ledger(tmp_path, POINTS)
    assert ledger.running("p0") is None and ledger.state("p0") == State() and not ledger.events()
    assert not any(tmp_path.iterdir())


@pytest.fixture
def without_locks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_without_locks_the_heartbeat_holds_a_point(tmp_path, without_locks):
    ledger, other = Ledger(tmp_path, POINTS), Ledger(tmp_path, POINTS)
    lease = ledger.claim("p0")
    assert other.claim("p0") is None and other.running("p0")["pid"] == os.getpid()
    ledger.give_back(lease)
    gone = subprocess.Popen(["true"])
    gone.wait()
    path = ledger.folder / "p0.lease"
    path.write_text(json.dumps({"host": os.uname().nodename, "pid": gone.pid}))
    assert other.running("p0") is None
    other.give_back(other.claim("p0"))
    assert other.state("p0").deaths == 1 and not (ledger.folder / ".alone").exists()


def test_without_locks_what_a_kill_left_is_cleared_away(tmp_path, without_locks):
    ledger = Ledger(tmp_path, POINTS)
    ledger.folder.mkdir()
    alone = ledger.folder / ".alone"
    alone.touch()
    os.utime(alone, (0, 0))
    ledger.give_back(ledger.claim("p0"))
    assert not alone.exists()


def test_a_point_that_was_taken_over_keeps_its_new_holder(tmp_path):
    ledger = Ledger(tmp_path, POINTS)
    lease = ledger.claim("p0")
    taken = json.dumps({"host": "elsewhere", "pid": 1, "since": 1})
    lease.path.write_text(taken)
    ledger.give_back(lease)
    assert lease.path.read_text() == taken and ledger.running("p0")["host"] == "elsewhere"


def test_a_clock_that_jumps_back_frees_nobody(tmp_path):
    ledger = Ledger(tmp_path, POINTS)
    ledger.folder.mkdir()
    path = ledger.folder / "p0.lease"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(path, (time.time() + 3600, time.time() + 3600))
    assert ledger.claim("p0") is None


@pytest.mark.parametrize("content", [b"", b"{", b"3", b"\xff\x00", b'{"host": [], "pid": "x"}'])
def test_a_damaged_lease_holds_nothing(tmp_path, content):
    ledger = Ledger(tmp_path, POINTS)
    ledger.folder.mkdir()
    (ledger.folder / "p0.lease").write_bytes(content)
    assert ledger.running("p0") is None
    ledger.finish(ledger.claim("p0"), "done", {})
    assert ledger.state("p0").status == "done"


@pytest.mark.parametrize(
    "content",
    ["", "null", "[]", '{"status": "odd"}', '{"starts": "1"}', '{"figures": 3}', '{"error": null}',
     '{"status": "done", "figures": {"validation_loss": "low"}}'],
)  # fmt: skip
def test_a_damaged_state_is_named(tmp_path, content):
    ledger = Ledger(tmp_path, POINTS)
    ledger.folder.mkdir()
    (ledger.folder / "p0.json").write_text(content)
    with pytest.raises(DamagedData, match=r"p0\.json is damaged: remove it"):
        ledger.claim("p0")
    assert ledger.claim("p1") is not None


def test_a_folder_that_is_moved_away_is_not_begun_anew(tmp_path):
    (tmp_path / "sweep").mkdir()
    ledger = Ledger(tmp_path / "sweep", POINTS)
    lease = ledger.claim("p0")
    (tmp_path / "sweep").rename(tmp_path / "moved")
    with pytest.raises(Trouble, match="cannot write"):
        ledger.finish(lease, "done", {})
    lease.close()
    assert not (tmp_path / "sweep").exists()
    moved = Ledger(tmp_path / "moved", POINTS)
    assert moved.running("p0") is None and moved.claim("p0") is not None
