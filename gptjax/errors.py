"""Errors a user can mend: one clear line, shown without a traceback, exit code 2."""

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: everything is saved, run the same command again


class BadInput(ValueError):
    """Something the user gave cannot be used; the message is one line and names the way out."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class DamagedData(BadInput):
    """A file this project wrote no longer holds what was written."""


def nearest(word: str, options: Iterable[str], count: int = 3) -> list[str]:
    """The options most like `word`, best first; empty when none is close."""
    options = list(dict.fromkeys(options))
    lowered = {}
    for option in options:
        lowered.setdefault(option.lower(), option)
    found = difflib.get_close_matches(word.lower(), list(lowered), n=count, cutoff=0.6)
    return [lowered[name] for name in found]


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """`; did you mean 'a' or 'b'?`, or an empty string when nothing is close."""
    found = nearest(word, options)
    return f"; did you mean {' or '.join(repr(name) for name in found)}?" if found else ""
