"""Errors a user can mend: one clear line, shown without a traceback, exit code 2."""

import argparse
import dataclasses
import difflib
import errno
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable
from typing import get_args, get_origin

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: everything is saved, run the same command again
EXIT_INTERRUPTED = 130  # as shells report Ctrl-C


class BadInput(ValueError):
    """Something the user gave cannot be used; the message is one line and names the way out."""

    def __init__(self, message: str):
        super().__init__(printable(" ".join(message.split())))


class Trouble(BadInput):
    """The machine's state stands in the way, such as a full disk: the same may do later."""


class DamagedData(BadInput):
    """A file this project wrote no longer holds what was written."""


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a command's options as BadInput, without the usage."""

    def error(self, message: str):
        raise BadInput(message)


def exit_code_of(command: Callable[[], int]) -> int:
    """The exit code of a command; what went wrong is one line on stderr.

    BadInput gives 2, Ctrl-C 130. A reader that has had enough of the output (`| head`) gives 1
    without a word, a full disk under it 2.
    """
    try:
        code = command()
        sys.stdout.flush()
        return code
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC) or error.filename is not None:
            raise
        _mute()
        if error.errno == errno.EPIPE:
            return EXIT_FAILED
        print("error: cannot print: the disk is full", file=sys.stderr)
        return EXIT_BAD_INPUT
    except SystemExit as stop:
        if stop.code == EXIT_FAILED:  # what rich makes of a closed pipe
            _mute()
        return stop.code or EXIT_DONE


def _mute() -> None:
    """Nothing more can be printed: what is left in the buffer must not fail at the exit."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def printable(text: str) -> str:
    """The text as a terminal may be given it.

    Newlines, tabs, spaces of all widths and joiners of emoji stay; whatever else shows no sign
    (controls, halves of surrogate pairs, marks that turn the direction) is written out: \\x1b.
    """
    if text.isprintable():
        return text
    return "".join(c if _shows(c) else c.encode("unicode_escape").decode() for c in text)


def _shows(c: str) -> bool:
    return c.isprintable() or c in "\n\t\u200c\u200d" or unicodedata.category(c) == "Zs"


def nearest(word: str, options: Iterable[str], count: int = 3, likeness: float = 0.6) -> list[str]:
    """The options most like `word`, best first; empty when none is close."""
    options = list(dict.fromkeys(options))
    lowered = {}
    for option in options:
        lowered.setdefault(option.lower(), option)
    found = difflib.get_close_matches(str(word).lower(), list(lowered), n=count, cutoff=likeness)
    return [lowered[name] for name in found]


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """`; did you mean 'a' or 'b'?`, or an empty string when nothing is close."""
    found = nearest(word, options)
    return f"; did you mean {' or '.join(repr(name) for name in found)}?" if found else ""


LARGE = ("tokens", "max_bytes")  # integers that may pass 2**31


def check_types(part: str, config) -> None:
    """BadInput for the first field of a config dataclass that holds another type than it says."""
    for field in dataclasses.fields(config):
        name, value, kind = f"{part}.{field.name}", getattr(config, field.name), field.type
        options = get_args(kind)
        if get_origin(kind) is tuple and dataclasses.is_dataclass(options[0]):
            if not isinstance(value, tuple) or not all(type(v) is options[0] for v in value):
                raise BadInput(f"{name} is {value!r}, not a tuple of {options[0].__name__}")
            for place, one in enumerate(value):
                check_types(f"{name}.{place}", one)
        elif dataclasses.is_dataclass(kind):
            if not isinstance(value, kind):
                raise BadInput(f"{name} is {value!r}, not a {kind.__name__}")
            check_types(name, value)
        elif kind == tuple[str, ...]:
            if not isinstance(value, tuple | list) or not all(isinstance(v, str) for v in value):
                raise BadInput(f"{name} is {value!r}, not a list of strings")
            for text in value:
                _check_text(name, text)
        elif options:
            if value not in options:
                near = did_you_mean(str(value), options)
                raise BadInput(f"{name} is {value!r}, not one of {', '.join(options)}{near}")
        else:
            wanted = (int, float) if kind is float else kind
            if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
                raise BadInput(f"{name} is {value!r}, which is not of type {kind.__name__}")
            largest = (2**60 if field.name in LARGE else 2**31) - 1
            if kind is int and abs(value) > largest:
                raise BadInput(f"{name} is {value}; the largest is {largest}")
            if kind is str:
                _check_text(name, value)
            if kind is float and not abs(value) <= sys.float_info.max:  # also of huge integers
                raise BadInput(f"{name} is {value}; give a finite number")


def _check_text(name: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{name} is {text!r}: character {error.start} is half of a surrogate pair (a byte that "
            "is not UTF-8, where a shell gave it); give UTF-8 text"
        ) from None
