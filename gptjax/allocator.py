"""Tells glibc to keep the memory XLA:CPU frees; call `tune()` before jax is imported.

XLA:CPU takes its temporary buffer from malloc at every step and glibc gives the pages back to the
kernel, which costs a page fault per 4 KiB and step. benchmarks/RESULTS.md has the figures.
"""

import ctypes
import os
import sys

from gptjax.errors import BadInput

VARIABLE = "GPTJAX_ALLOCATOR"

# The codes of mallopt(3), from <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def tune() -> str:
    """Sets the allocator as GPTJAX_ALLOCATOR says (`tuned`, the default, or `system`).

    Returns one line saying what was done. Does nothing outside glibc. BadInput on other values.
    """
    choice = os.environ.get(VARIABLE, "tuned")
    if choice not in ("tuned", "system"):
        raise BadInput(f"{VARIABLE} must be 'tuned' or 'system', not {choice!r}")
    if choice == "system":
        return "allocator: system"
    mallopt = _glibc_mallopt()
    if mallopt is None:
        return "allocator: system (not glibc)"
    settings = {
        "ARENA_MAX": (_ARENA_MAX, 1),  # one heap: threads reuse each other's free pages
        "MMAP_MAX": (_MMAP_MAX, 0),  # large blocks come from that heap too
        "TRIM_THRESHOLD": (_TRIM_THRESHOLD, 2**31 - 1),  # and its top is not given back
        "TOP_PAD": (_TOP_PAD, 64 << 20),
    }
    refused = [name for name, (code, value) in settings.items() if mallopt(code, value) != 1]
    late = " (jax was imported first)" if "jax" in sys.modules else ""
    if refused:
        return f"allocator: glibc refused {', '.join(refused)}{late}"
    return f"allocator: tuned{late}"


def _glibc_mallopt():
    """glibc's mallopt, or None where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 (musl has no such symbol)
        return library.mallopt
    except (OSError, AttributeError):
        return None
