"""One BLAS thread while fitting.

scipy's L-BFGS-B calls LAPACK on matrices of a few dozen entries; OpenBLAS hands even those to its
thread pool, and on a busy machine each call then waits for a time slice: fits were 50 times
slower. Environment variables come too late once numpy is imported, so the libraries are told.
"""

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator

NAMES = [
    (f"{prefix}openblas_get_num_threads{suffix}", f"{prefix}openblas_set_num_threads{suffix}")
    for prefix in ("", "scipy_")
    for suffix in ("", "64_", "_64")
]


@functools.cache
def _libraries() -> tuple[tuple[Callable, Callable], ...]:
    """(get, set) of every OpenBLAS in this process; none where they cannot be listed."""
    import scipy.linalg  # noqa: F401  loads scipy's own copy

    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            paths = {line.split()[-1] for line in maps if "openblas" in line}
    except OSError:  # not Linux: the platform's BLAS there is not OpenBLAS's pool
        return ()
    found = []
    for path in sorted(paths):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for get, set_ in NAMES:
            if hasattr(library, get) and hasattr(library, set_):
                found.append((getattr(library, get), getattr(library, set_)))
                break
    return tuple(found)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within, OpenBLAS keeps to the calling thread; afterwards it has what it had."""
    before = [(set_, get()) for get, set_ in _libraries()]
    try:
        for set_, _ in before:
            set_(1)
        yield
    finally:
        for set_, count in before:
            set_(count)
