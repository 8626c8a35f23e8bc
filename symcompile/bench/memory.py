"""Memory of a process, as the kernel sees it.

In: a call. Out: how far the resident set rose while it ran. Linux only; None elsewhere.
The one thing to know: freed memory that the allocator keeps would hide use, so it is told to keep
none, for the rest of the process's life. That makes it slower: time first, weigh last. For timing
it is told the opposite, see `process.environment`.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

if sys.platform != "win32":
    import resource

__all__ = ["available", "give_back", "page_faults", "peak_of"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_SMALLEST, _LARGEST = 1 << 16, 1 << 34
"""Bytes from which blocks are mapped one by one, and of the largest hole looked for."""

_MOST_HOLES = 1 << 14
"""Blocks that are taken at most: where none is ever mapped on its own, there is no end of them."""

_LONG = 1.0
_FREED = 0.1
"""Seconds after which buffers that nobody holds are freed: some frameworks do it in a thread."""


def peak_of(call: Callable[[], Any], repeats: int = 6) -> int | None:
    """Most bytes by which the resident set exceeds what it was before a call, its result alive.

    The least of several calls, since other threads of the process may take memory meanwhile; a
    call that takes long is looked at once.
    """
    _keep_nothing()
    _plug()
    call()  # what it frees goes back to the system, and with it what was kept before
    found: list[int] = []
    start = perf_counter()
    while len(found) < repeats and not (found and perf_counter() - start > _LONG):
        gc.collect()
        sleep(_FREED)
        give_back()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        except OSError:
            return None
        before = _status("VmRSS")
        result = call()
        peak = _status("VmHWM")
        del result
        if before is None or peak is None:
            return None
        found.append(max(peak - before, 0))
    return min(found)


def page_faults() -> int:
    """Pages that the system has handed to this process; 0 where it does not say."""
    if sys.platform == "win32":
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def available() -> int | None:
    """Bytes that can be taken without swapping."""
    return _field(Path("/proc/meminfo"), "MemAvailable")


def _status(name: str) -> int | None:
    return _field(Path("/proc/self/status"), name)


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), None
    )


def _keep_nothing() -> None:
    """Map large blocks one by one, and let heaps grow by no more than is asked for (mallopt)."""
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX):
            mallopt(parameter, _SMALLEST)
        mallopt(_TOP_PAD, 0)


def _plug() -> None:
    """Take all holes in the heap, without touching them.

    A large block goes into a hole before it is mapped on its own, and stays resident when it is
    freed: calls would seem to hold what they let go.
    """
    # Another C library, or another allocator in its place, lays blocks out in its own way.
    with suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        if _address(library.malloc) != _address(ctypes.CDLL("libc.so.6").malloc):
            return
        library.malloc.restype = ctypes.c_void_p
        library.malloc.argtypes = [ctypes.c_size_t]
        library.free.argtypes = [ctypes.c_void_p]
        size, left = _LARGEST, _MOST_HOLES
        while size >= _SMALLEST and left:
            block = library.malloc(size)
            left -= 1
            # Bit 1 of the word before a block says that it is mapped on its own (glibc, malloc.c).
            if block is None or ctypes.c_size_t.from_address(block - 8).value & 2:
                library.free(block)
                size //= 2


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value


def give_back() -> None:
    """Return to the system what the allocator keeps for later."""
    # Another C library has no such call: its allocator keeps what it keeps.
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
