"""A word now and then from what repeats a fit many times."""

import time
from collections.abc import Callable, Iterator

QUIET_SECONDS = 3.0  # what ends sooner says nothing
SAY_SECONDS = 5.0

Say = Callable[[str], None]


def counted(total: int, what: str, say: Say | None) -> Iterator[int]:
    """`range(total)`; tells through `say` how far it is and how long it will still take."""
    begun = time.monotonic()
    due = begun + QUIET_SECONDS
    for done in range(total):
        now = time.monotonic()
        if say is not None and done and now > due:
            left = (now - begun) * (total - done) / done
            say(f"{what}: {100 * done / total:.0f}% · {done} of {total} · {left:.0f} s left")
            due = now + SAY_SECONDS
        yield done
