"""Where numbers go: the run's metrics.jsonl, TensorBoard, and one line on the screen."""

import math
import os
import socket
import time
from pathlib import Path

from gptjax.training.workdir import MetricsLog, storage_errors

# Dense bf16 matrix products per second and chip, from the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA T4": 65e12,
}


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of one chip, or None for a kind whose data sheet is not here (such as a CPU)."""
    kinds = [kind for kind in PEAK_FLOPS if device_kind.startswith(kind)]
    return PEAK_FLOPS[max(kinds, key=len)] if kinds else None


def short(number: float, unit: str = "") -> str:
    """1234567 as 1.23M."""
    if not math.isfinite(number):
        return f"{number}{unit}"
    for limit, letter in (
        (1e24, "Y"),
        (1e21, "Z"),
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
    ):
        if abs(number) >= limit:
            return f"{number / limit:.3g}{letter}{unit}"
    return f"{number:.3g}{unit}"


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 02:03."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    head = f"{hours}:" if hours else ""
    return f"{head}{rest // 60:02d}:{rest % 60:02d}"


class Events:
    """Rows as TensorBoard events, in a file of their own for every start.

    Written by the thread that calls: tensorboardX's own writer has a thread and a queue, and a
    full disk ends the thread and blocks the run for ever on the queue.
    """

    FLUSH_SECONDS = 30.0

    def __init__(self, folder: Path):
        from tensorboardX.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        with storage_errors(f"write {self.path}"):
            folder.mkdir(exist_ok=True)
            self.file = RecordWriter(str(self.path))
        self.flushed = 0.0
        self._add(file_version="brain.Event:2")

    def write(self, row: dict) -> None:
        """Add the numbers of a row under its step."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name != "step" and isinstance(value, (int, float))
        ]
        self._add(step=row["step"], summary=Summary(value=values))

    def _add(self, **parts) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with storage_errors(f"write {self.path}"):
            self.file.write(Event(wall_time=time.time(), **parts).SerializeToString())
            if time.monotonic() > self.flushed + self.FLUSH_SECONDS:
                self.file.flush()
                self.flushed = time.monotonic()

    def close(self) -> None:
        with storage_errors(f"write {self.path}"):
            self.file.close()


class Recorder:
    """Writes every row to metrics.jsonl and TensorBoard; only process 0 of a run has one.

    Rows of steps beyond `step`, from which the run goes on, are dropped.
    """

    def __init__(self, workdir: Path, step: int):
        self.log = MetricsLog(workdir / "metrics.jsonl")
        self.log.truncate_after(step)
        self.events = Events(workdir / "tensorboard")

    def write(self, row: dict) -> None:
        self.log.write(row)
        self.events.write(row)

    def close(self) -> None:
        self.log.close()
        self.events.close()


class Progress:
    """A live line on a terminal; elsewhere a plain line every few seconds."""

    PLAIN_SECONDS = 10.0

    def __init__(
        self, name: str, total: int, start: int, flops_per_step: float, peak: float | None
    ):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.console = Console(stderr=False, highlight=False, soft_wrap=True)
        self.total, self.peak, self.flops_per_step = total, peak, flops_per_step
        self.marks: list[tuple[float, int]] = []
        self.next_plain = 0.0
        self.live = None
        if self.console.is_terminal:
            self.live = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.completed}/{task.total} {task.fields[line]}"),
                console=self.console,
            )
            self.task = self.live.add_task(name, total=total, completed=start, line="compiling")
            self.live.start()

    def step(self, step: int, loss: float, tokens_per_step: int) -> None:
        """Show that `step` updates are done, the last one with this loss."""
        now = time.monotonic()
        self.marks = [*self.marks[-40:], (now, step)]
        if self.live is None and now < self.next_plain and step < self.total:
            return
        line = f"loss {loss:.4f}"
        (first, begun), (last, done) = self.marks[0], self.marks[-1]
        if last > first and done > begun:
            rate = (done - begun) / (last - first)
            flops = rate * self.flops_per_step
            line += f" · {short(rate * tokens_per_step)} tokens/s · {short(flops, 'FLOP/s')}"
            if self.peak:
                line += f" ({100 * flops / self.peak:.0f}% of peak)"
            line += f" · {clock((self.total - step) / rate)} left"
        if self.live is not None:
            self.live.update(self.task, completed=step, line=line)
        else:
            self.next_plain = now + (self.PLAIN_SECONDS if len(self.marks) > 1 else 2.0)
            self.say(f"step {step}/{self.total} · {line}")

    def say(self, text: str) -> None:
        """A line of its own, above the live one."""
        self.console.print(text, markup=False)

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
