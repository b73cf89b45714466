"""How long a sweep takes: its workers played through, with trunks, start-up and compilation.

The order is that of `worker.next_points`: the program at hand first, then the costliest point; a
branch waits for its trunk; a worker that finds nothing to take leaves, and another is started
when there is something again. Points trained together count as one after the other.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptjax.sweeps.measure import Cost
from gptjax.sweeps.sweep import Point
from gptjax.sweeps.trunks import find_branches

RUNNER_SECONDS = 3.0  # until the runner has asked for the device and starts workers
POLL_SECONDS = 0.5  # until it sees that one is needed, or that all is done
REPORT_SECONDS = 8.0  # laws with 200 resamples and the figures of some 20 points


@dataclass(frozen=True)
class Schedule:
    """Seconds of a sweep: by the clock, in one worker, and of each point without its program's."""

    wall: float
    alone: float
    points: Mapping[str, float]
    begins: Mapping[str, float]  # when each is taken, since the start of the runner


def schedule(
    points: Sequence[Point],
    costs: Mapping[str, Cost | str],
    workers: int,
    share_trunks: bool = False,
) -> Schedule | None:
    """Play the points through so many workers; None when one of their costs is not known."""
    known = {point.name: costs[point.program] for point in points}
    if not points or any(isinstance(cost, str) for cost in known.values()):
        return None
    branches = find_branches({point.name: point for point in points}) if share_trunks else {}
    flops = {point.name: point.flops for point in points}
    seconds = {
        p.name: known[p.name].seconds(
            p.experiment, branches[p.name].step if p.name in branches else 0
        )
        for p in points
    }
    start = max(cost.start for cost in known.values())
    left = {point.name: point for point in points}
    begins: dict[str, float] = {}
    reached: dict[str, float] = {}  # when a point's steps began
    # (free at, slot, program at hand, programs that the worker has)
    free = [(RUNNER_SECONDS + start, i, "", frozenset()) for i in range(min(workers, len(points)))]
    ends = 0.0
    while left:
        now, slot, last, seen = heapq.heappop(free)
        ready = {}
        for name in left:
            branch = branches.get(name)
            if branch is None:
                ready[name] = 0.0
            elif branch.trunk in reached:
                ready[name] = reached[branch.trunk] + branch.step * known[name].step
            else:
                ready[name] = math.inf
        able = [point for point in left.values() if ready[point.name] <= now]
        if not able:
            again = min(ready.values()) + POLL_SECONDS + start
            heapq.heappush(free, (again, slot, "", frozenset()))
            continue
        point = min(able, key=lambda p: (p.program != last, -flops[p.name]))
        cost = known[point.name]
        begin = 0.0 if point.program in seen else cost.begin
        begins[point.name] = now
        reached[point.name] = now + begin + cost.run / 2
        now += begin + seconds[point.name]
        ends = max(ends, now)
        heapq.heappush(free, (now, slot, point.program, seen | {point.program}))
        del left[point.name]
    programs = {point.program: known[point.name].begin for point in points}
    alone = RUNNER_SECONDS + start + sum(seconds.values()) + sum(programs.values()) + REPORT_SECONDS
    return Schedule(ends + POLL_SECONDS + REPORT_SECONDS, alone, seconds, begins)
