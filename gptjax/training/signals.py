"""SIGTERM and Ctrl-C, answered at once even while the main thread sits in compiled code.

Python runs a signal's handler between two of its own instructions, so a compilation of a minute
keeps it waiting. But it writes the signal's number to a descriptor the moment it arrives; a thread
that reads there says what happens next and, where the process is ours to end, ends it.
"""

import os
import signal
import sys
import threading

from gptjax.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED

LEFT = (
    "left at once; the same command goes on from the newest checkpoint, and the steps since then "
    "are computed again"
)


class Preempted(Exception):
    """The run was asked to stop, and has saved itself; the same command goes on with it."""


class Signals:
    """Catches both signals while its block runs in the main thread; elsewhere it does nothing."""

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.thread: threading.Thread | None = None

    def arrived(self, number: int) -> None:
        """In a thread of its own, at once, for every signal."""

    def handle(self, number: int, frame) -> None:
        """In the main thread, once it is back in Python; signals may have come together."""

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.reader, self.writer = os.pipe()
            os.set_blocking(self.writer, False)
            self.thread = threading.Thread(target=self._watch, name="signals", daemon=True)
            self.thread.start()
            self.handlers = {n: signal.signal(n, self.handle) for n in self.NUMBERS}
            self.wakeup = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_):
        if self.thread is not None:
            signal.set_wakeup_fd(self.wakeup)
            for number, handler in self.handlers.items():
                signal.signal(number, handler)
            os.close(self.writer)
            self.thread.join()
            self.thread = None

    def _watch(self) -> None:
        while numbers := os.read(self.reader, 64):
            for number in numbers:
                # A handler that somebody has put above ours answers alone.
                if number in self.NUMBERS and signal.getsignal(number) == self.handle:
                    self.arrived(number)
        os.close(self.reader)


class LeaveAtOnce(Signals):
    """For a process that is ours: where nothing waits to be saved, a signal ends it with 75.

    In a run of several hosts (`others_wait`) the rest would hang on the one that leaves: there the
    loop is told instead, and all of them save and leave together.
    """

    active = False
    others_wait = False
    asked = False

    def __enter__(self):
        LeaveAtOnce.active, LeaveAtOnce.asked = True, False
        self.presses = 0
        return super().__enter__()

    def __exit__(self, *_):
        LeaveAtOnce.active = False
        super().__exit__(*_)

    def arrived(self, number: int) -> None:
        self.presses += number == signal.SIGINT
        if not LeaveAtOnce.others_wait:
            _leave(
                "stopped; nothing had to be saved: the same command goes on from the newest "
                "checkpoint, or from the start",
                EXIT_PREEMPTED,
            )
        elif self.presses >= 3:
            _leave(LEFT, EXIT_INTERRUPTED)
        elif not LeaveAtOnce.asked:
            LeaveAtOnce.asked = True
            _say("stopping together with the other hosts, after a save in their first steps")


class StopSignal(Signals):
    """The first signal asks for a clean stop (`asked`); the third Ctrl-C no longer waits for it.

    The second changes nothing: a hurried double Ctrl-C must not cost the save under way. The third
    ends a process that is ours at once, with 130; in another's (a notebook) it raises
    KeyboardInterrupt when the compiled code returns.
    """

    def __init__(self):
        super().__init__()
        self.asked = LeaveAtOnce.asked
        self.told = self.presses = self.handled = 0

    def arrived(self, number: int) -> None:
        self.presses += number == signal.SIGINT
        if self.presses >= 3:
            if LeaveAtOnce.active:
                _leave(LEFT, EXIT_INTERRUPTED)
        elif self.presses == 2:
            _say("still saving; Ctrl-C once more leaves at once and loses the steps not saved")
        elif not self.told:
            _say("stopping after one last save (Ctrl-C twice more leaves at once, without it)")
        self.told += 1

    def handle(self, number: int, frame) -> None:
        self.asked = True
        self.handled += number == signal.SIGINT
        if self.handled >= 3 and not LeaveAtOnce.active:
            raise KeyboardInterrupt


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _leave(line: str, code: int) -> None:
    """End the process from any thread, whatever the others do; files are whole at all times."""
    _say(line)
    sys.stdout.flush()
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h")  # a live progress line had hidden the cursor
    os._exit(code)
