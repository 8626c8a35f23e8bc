"""What NumPy reaches on this machine. Out: the four numbers of a `Machine`."""

from __future__ import annotations

import numpy as np

from symcompile.cost.measure import COPIED, LAUNCHED, SIDE, rates

__all__ = ["calibrate"]


def calibrate() -> tuple[float, ...]:
    """(bytes per second, float32 operations per second, seconds per launch, seconds per byte of a
    new array).
    """
    source, target = np.ones(COPIED, np.float32), np.empty(COPIED, np.float32)
    matrix, entry = np.ones((SIDE, SIDE), np.float32), np.ones(1, np.float32)

    def launch() -> None:
        for _ in range(LAUNCHED):
            entry + entry

    return rates(lambda: np.copyto(target, source), lambda: matrix @ matrix, launch, source.copy)
