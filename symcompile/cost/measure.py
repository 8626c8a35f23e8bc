"""Calibrating a machine model with a framework's own operations.

In: actions of known work. Out: bytes per second, operations per second, seconds per launch, and
seconds per byte of a new array. The one thing to know: an action returns once its result is there,
not once it is queued.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

__all__ = ["LAUNCHED", "SIZES", "rates"]

SIZES = {"cpu": (1 << 24, 1024), "gpu": (1 << 28, 8192)}
"""Entries of the float32 array that is copied (64 MiB and 1 GiB: more than caches hold), and rows
and columns of the float32 matrices that are multiplied. A GPU is done with those of a CPU in the
time that it takes to start."""

LAUNCHED = 1000
"""Operations on a single entry that are started one after the other."""


def rates(
    copy: Callable[[], object],
    multiply: Callable[[], object],
    launch: Callable[[], object],
    clone: Callable[[], object] | None = None,
    *,
    copied: int,
    side: int,
) -> tuple[float, ...]:
    """Time each action a few times and divide its work by the median.

    Args:
        copy: copies `copied` float32 entries.
        multiply: multiplies two square float32 matrices of side `side`.
        launch: starts `LAUNCHED` operations on one entry.
        clone: copies as many entries into a new array; None if `copy` does.

    Returns:
        (bytes per second, operations per second, seconds per launch, seconds per byte of a new
            array).
    """
    copying = _seconds(copy)
    cloning = _seconds(clone) if clone else copying
    return (
        8 * copied / copying,
        2 * side**3 / _seconds(multiply),
        _seconds(launch) / LAUNCHED,
        max(cloning - copying, 0.0) / (4 * copied),
    )


def _seconds(action: Callable[[], object], repeats: int = 5) -> float:
    action()  # the first run loads kernels and touches memory
    times = []
    for _ in range(repeats):
        start = perf_counter()
        action()
        times.append(perf_counter() - start)
    return median(times)
