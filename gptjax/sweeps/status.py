"""Where a sweep stands: a table of its points, and a live line while it runs."""

import json
import math
import time
from collections import Counter
from pathlib import Path

from gptjax.sweeps.folder import SweepFolder
from gptjax.sweeps.sweep import FACTS
from gptjax.training.metrics import clock, short

TAIL_BYTES = 4096
ENDING = 0.97  # of a point's FLOPs, at most, before it is finished: evaluation is still to come
COUNTED = ("step", "loss", "flops", "seconds")


def newest_row(metrics: Path) -> dict:
    """The last whole row of a metrics.jsonl, {} when there is none."""
    try:
        with open(metrics, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - TAIL_BYTES, 0))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and all(isinstance(row.get(n, 0), int | float) for n in COUNTED):
            return row
    return {}


def share_done(folder: SweepFolder, names: list[str]) -> float:
    """Done FLOPs of these points, as a share of all of theirs."""
    states = folder.ledger.states()
    done = total = 0.0
    for name in names:
        flops = folder.points[name].flops
        total += flops
        if states[name].finished:
            done += flops
        elif states[name].starts:
            row = newest_row(folder.workdir(name) / "metrics.jsonl")
            done += min(row.get("flops", 0.0), ENDING * flops)
    return done / total if total else 1.0


def show_status(folder: SweepFolder, names: list[str]) -> None:
    """Print a line for each point and what is left to do."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("point", overflow="fold")
    for name in ("status", "step", "loss", "FLOPs", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("remark", overflow="fold")
    states, counts = folder.ledger.states(), Counter()
    for name in names:
        state, point = states[name], folder.points[name]
        status, remark = state.status, state.error
        row = {} if state.finished else newest_row(folder.workdir(name) / "metrics.jsonl")
        if not state.finished and state.starts:
            holder = folder.ledger.running(name)
            status = "running" if holder else "stopped"
            remark = f"on {holder['host']}, process {holder['pid']}" if holder else remark
        counts[status] += 1
        loss = state.figures.get("validation_loss", row.get("loss", math.nan))
        step = state.figures.get("steps", row.get("step", 0))
        seconds = state.figures.get("seconds", row.get("seconds", 0.0))
        table.add_row(
            name,
            status,
            f"{step}/{point.experiment.steps}",
            "" if math.isnan(loss) else f"{loss:.4f}",
            short(point.flops),
            f"{seconds:.0f}" if seconds else "",
            remark,
        )
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=140)
    console.print(table)
    parts = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    share = f"{percent(share_done(folder, names))} of the FLOPs"
    if len(names) < len(folder.points):
        whole = share_done(folder, list(folder.points))
        share += f" of these {len(names)}, {percent(whole)} of those of all {len(folder.points)}"
    console.print(f"{folder.path}: {parts} · {share}")
    fields = {field for name in names for field in folder.points[name].row} - {*FACTS}
    if fields:
        console.print(f"the grid sets {', '.join(sorted(fields))}")
    console.print(times(folder, names, counts["running"]), end="")


def percent(share: float) -> str:
    """Whole percent; 100% only for what is finished."""
    return f"{100 if share >= 1 else min(int(100 * share + 0.5), 99)}%"


def times(folder: SweepFolder, names: list[str], workers: int) -> str:
    """A line on the time since the first start and the time that is left; "" before a start."""
    at = [row["time"] for row in folder.ledger.events() if row.get("point") in {*names}]
    if not at:
        return ""
    since = clock((time.time() if workers else max(at)) - min(at))
    states = folder.ledger.states()
    seconds = flops = left = 0.0
    for name in names:
        state, whole = states[name], folder.points[name].flops
        row = newest_row(folder.workdir(name) / "metrics.jsonl")
        done = whole if state.finished else min(row.get("flops", 0.0), ENDING * whole)
        if state.status != "failed" and state.starts:
            flops += min(row.get("flops", 0.0), whole) or state.figures.get("flops", 0.0)
            seconds += state.figures.get("seconds", row.get("seconds", 0.0))
        left += whole - done
    if not left:
        return f"{since} from the first start to the last end\n"
    if not (flops and seconds):
        return f"{since} since the first start\n"
    rest = clock(seconds / flops * left / max(workers, 1))
    who = f"with {workers} running" if workers else "with one worker"
    return f"{since} since the first start · about {rest} left {who}\n"


class Pace:
    """How far a sweep is, and how long the rest takes at the pace since this was made."""

    def __init__(self, folder: SweepFolder, names: list[str]):
        self.folder, self.names = folder, names
        self.begun, self.share = time.monotonic(), share_done(folder, names)

    def look(self) -> tuple[float, str, str]:
        """(share of the FLOPs done, finished points, time left) as they are now."""
        share = share_done(self.folder, self.names)
        states = self.folder.ledger.states()
        finished = sum(states[name].finished for name in self.names)
        left = ""
        if share > self.share and share < 1:
            seconds = (time.monotonic() - self.begun) * (1 - share) / (share - self.share)
            left = f" · {clock(seconds)} left"
        return share, f"{finished}/{len(self.names)} points", left


class SweepProgress:
    """One live line for a whole sweep; where there is no terminal, a line now and then."""

    PLAIN_SECONDS = 30.0

    def __init__(self, folder: SweepFolder, names: list[str]):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.pace = Pace(folder, names)
        self.console = Console(highlight=False, soft_wrap=True)
        self.next_plain = 0.0
        self.live = None
        if self.console.is_terminal:
            self.live = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.percentage:.0f}% {task.fields[line]}"),
                console=self.console,
            )
            self.task = self.live.add_task(folder.name, total=1.0, line="")
            self.live.start()

    def update(self, workers: int) -> None:
        """Look at the folder and show how far it is."""
        now = time.monotonic()
        if self.live is None and now < self.next_plain:
            return
        share, points, left = self.pace.look()
        share = share if share >= 1 else min(share, 0.99)
        line = f"{points} · {workers} workers{left}"
        if self.live is not None:
            self.live.update(self.task, completed=share, line=line)
        else:
            self.next_plain = now + self.PLAIN_SECONDS
            self.say(f"{percent(share)} · {line}")

    def say(self, text: str) -> None:
        """A line of its own."""
        self.console.print(text, markup=False)

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
