"""What NumPy reaches on this machine. Out: the four numbers of a `Machine`."""

from __future__ import annotations

import numpy as np

from symcompile.cost.measure import LAUNCHED, SIZES, rates

__all__ = ["calibrate"]


def calibrate() -> tuple[float, ...]:
    """(bytes per second, float32 operations per second, seconds per launch, seconds per byte of a
    new array).
    """
    copied, side = SIZES["cpu"]
    source, target = np.ones(copied, np.float32), np.empty(copied, np.float32)
    matrix, entry = np.ones((side, side), np.float32), np.ones(1, np.float32)

    def launch() -> None:
        for _ in range(LAUNCHED):
            entry + entry

    return rates(
        lambda: np.copyto(target, source),
        lambda: matrix @ matrix,
        launch,
        source.copy,
        copied=copied,
        side=side,
    )
