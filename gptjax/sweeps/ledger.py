"""Who works on which point of a sweep, and what came out: files that survive any kill.

A folder `ledger/` holds for each point a JSON state, replaced by one rename, and a lease: a file
that its holder keeps locked with `flock`, so that the kernel frees it when the holder dies, and
touches now and then, so that other hosts, whose locks a network file system may not show, see it
alive. Every change happens under one more lock, and is a line of `events.jsonl`.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gptjax.errors import DamagedData
from gptjax.training.workdir import MetricsLog, read_json, storage_errors, write_json

HEARTBEAT_SECONDS = 5.0
LEASE_SECONDS = 60.0  # a holder on another host that is silent for longer has lost its point
ALONE_SECONDS = 20.0  # a change of the ledger takes far less
DEATHS = 10  # in a row without a newer checkpoint, until a point counts as failed

Status = Literal["waiting", "done", "diverged", "failed"]
FINISHED = ("done", "diverged", "failed")
# Figures of a finished run that sweeps count with.
FIGURES = ("validation_loss", "population_loss", "bits_per_byte", "bits_per_dimension", "steps",
           "parameters", "non_embedding_parameters", "active_parameters", "tokens", "flops",
           "seconds")  # fmt: skip


@dataclass(frozen=True)
class State:
    """What is known of a point: its status, what it reached, and how often it was begun."""

    status: Status = "waiting"
    figures: dict = field(default_factory=dict)
    error: str = ""
    starts: int = 0
    failures: int = 0  # exceptions
    deaths: int = 0  # in a row, without a newer checkpoint
    step: int = 0  # the newest checkpoint at the last start

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


class Lease:
    """The right to work on a point, held until `close` or until the process dies."""

    def __init__(self, point: str, path: Path, descriptor: int):
        self.point = point
        self.path = path
        self.descriptor = descriptor
        self.holder = os.pread(descriptor, 4096, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def close(self, done: bool = True) -> None:
        """Give the point back; `done=False` leaves the holder's name, as a death would."""
        self._stop.set()
        self._thread.join()
        if done and os.pread(self.descriptor, 4096, 0) == self.holder:  # nobody took it over
            os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)


class Ledger:
    """The state of every point of a sweep's folder; any number of processes may use it."""

    def __init__(self, folder: Path, points: list[str]):
        self.folder = Path(folder) / "ledger"
        self.points = list(points)
        self.log = self.folder / "events.jsonl"
        self._held: dict[str, Lease] = {}

    # ---------------------------------------------------------------- reading

    def state(self, point: str) -> State:
        """The state of a point; DamagedData names a file that holds something else."""
        path = self.folder / f"{point}.json"
        if not path.exists():
            return State()
        try:
            state = State(**read_json(path))
            numbers = (state.starts, state.failures, state.deaths, state.step)
            good = state.status in ("waiting", *FINISHED) and isinstance(state.error, str)
            figures = [state.figures.get(name, 0) for name in FIGURES]
            good = good and all(isinstance(value, int | float) for value in figures)
            if good and all(isinstance(n, int) for n in numbers):
                return state
        except (AttributeError, TypeError, DamagedData):
            pass
        raise DamagedData(f"{path} is damaged: remove it, and the point is looked at anew")

    def states(self) -> dict[str, State]:
        return {point: self.state(point) for point in self.points}

    def running(self, point: str) -> dict | None:
        """Who holds a point now: its process and host; None when nobody does.

        Nothing is written: anybody who may read the folder may look.
        """
        path = self.folder / f"{point}.lease"
        with self._looking(), storage_errors(f"read {path}"):
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            try:
                return self._holder(path, descriptor, fcntl.LOCK_SH)
            finally:
                os.close(descriptor)

    def events(self) -> list[dict]:
        """Every change so far, oldest first."""
        return MetricsLog(self.log).rows()

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        """Keeps those who claim out, as far as one who only reads may: a look at a lease takes
        its lock for a moment."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # there is none yet, or no right or no locks
                file = stack.enter_context(open(self.folder / ".lock", "rb"))
                fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def _holder(self, path: Path, descriptor: int, lock: int = fcntl.LOCK_EX) -> dict | None:
        """The living holder of an open lease. Leaves the lease locked when there is none."""
        try:
            holder = json.loads(os.pread(descriptor, 4096, 0) or b"null")
            holder = {"host": str(holder["host"]), "pid": int(holder["pid"])}
        except (ValueError, TypeError, KeyError):
            holder = None  # nobody, or a kill tore it
        locks = True
        try:
            fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
        except BlockingIOError:
            return holder or {"host": "?", "pid": 0}
        except OSError:
            locks = False  # a file system without locks: the heartbeat alone must do
        if holder is None:
            return None
        if holder["host"] == socket.gethostname() and (locks or not _lives(holder["pid"])):
            return None
        return holder if self._age(path) < LEASE_SECONDS else None

    def _age(self, path: Path) -> float:
        """Seconds since the last heartbeat, by the file server's clock or, for a reader, ours."""
        now = self.folder / ".now"
        try:
            now.touch()
            return now.stat().st_mtime - path.stat().st_mtime
        except OSError:
            return time.time() - path.stat().st_mtime

    # ---------------------------------------------------------------- changing

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with storage_errors(f"write {self.folder}"):
            self.folder.mkdir(exist_ok=True)  # not its parents: a sweep may have been moved away
            with contextlib.ExitStack() as stack:
                file = stack.enter_context(open(self.folder / ".lock", "w"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX)
                except OSError:  # a file system without locks
                    stack.enter_context(self._alone())
                yield

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """A lock for file systems without locks: a file that only one can create."""
        path = self.folder / ".alone"
        while True:
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
                break
            except FileExistsError:
                with contextlib.suppress(FileNotFoundError):  # a kill may have left it
                    if self._age(path) > ALONE_SECONDS:
                        path.unlink()
                time.sleep(0.02)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def _note(self, point: str, event: str, **more) -> None:
        log = MetricsLog(self.log)
        if not _ends_whole(self.log):  # a kill tore the last line
            with contextlib.suppress(DamagedData):  # the log carries no state
                log.truncate_after(1 << 62)
        row = {"time": round(time.time(), 3), "point": point, "event": event}
        log.write(row | {"pid": os.getpid(), "host": socket.gethostname()} | more)
        log.close()

    def _write(self, point: str, state: State) -> None:
        write_json(self.folder / f"{point}.json", dataclasses.asdict(state))

    def claim(self, point: str, step: int = 0) -> Lease | None:
        """Take a point that nobody holds and that is not finished; None when it cannot be had.

        `step` is the point's newest checkpoint: a point whose process died again and again
        without getting further is failed here.
        """
        if self.state(point).finished:
            return None
        with self._locked():
            state = self.state(point)  # it may have changed until the lock was had
            if state.finished:
                return None
            path = self.folder / f"{point}.lease"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if self._holder(path, descriptor) is not None:
                    os.close(descriptor)
                    return None
                died = os.fstat(descriptor).st_size > 0  # nobody gave it back
                if died:
                    deaths = state.deaths + 1 if step <= state.step else 1
                    state = dataclasses.replace(state, deaths=deaths)
                    self._note(point, "lost", step=step)
                    if deaths >= DEATHS:
                        why = f"its process died {deaths} times in a row at step {step}"
                        self._write(point, dataclasses.replace(state, status="failed", error=why))
                        self._note(point, "failed", error=why)
                        os.close(descriptor)
                        return None
                state = dataclasses.replace(state, starts=state.starts + 1, step=step)
                holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(holder).encode(), 0)
                self._write(point, state)
                self._note(point, "start", step=step)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
                raise
        self._held[point] = Lease(point, path, descriptor)
        return self._held[point]

    def held(self) -> list[Lease]:
        """What this process holds through this object."""
        return list(self._held.values())

    def _close(self, lease: Lease) -> None:
        if self._held.pop(lease.point, None) is not None:
            lease.close()

    def finish(self, lease: Lease, status: Status, figures: dict, error: str = "") -> None:
        """Write down what a point came to, and give it back."""
        with self._locked():
            state = self.state(lease.point)
            if not state.finished:
                done = {"status": status, "figures": figures, "error": error, "deaths": 0}
                self._write(lease.point, dataclasses.replace(state, **done))
                self._note(lease.point, status)
        self._close(lease)

    def failed(self, lease: Lease, error: str, attempts: int) -> None:
        """Count an exception; the point is tried again until it has failed `attempts` times."""
        with self._locked():
            state = self.state(lease.point)
            failures = state.failures + 1
            status: Status = "failed" if failures >= attempts else "waiting"
            changed = {"failures": failures, "error": error, "status": status}
            self._write(lease.point, dataclasses.replace(state, **changed))
            self._note(lease.point, "failed" if status == "failed" else "retry", error=error)
        self._close(lease)

    def give_back(self, lease: Lease) -> None:
        """Stop working on a point that is not finished; nothing for one that is not held."""
        if lease.point not in self._held:
            return
        try:
            with self._locked():
                self._note(lease.point, "given back")
        finally:
            self._close(lease)

    def reset(self, point: str) -> None:
        """Make a failed point wait again; its checkpoints stay."""
        with self._locked():
            self._write(point, State(starts=self.state(point).starts))
            self._note(point, "reset")


def _lives(pid: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _ends_whole(path: Path) -> bool:
    """Whether a file of lines is absent, empty or ends with a line's end."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
    return True
