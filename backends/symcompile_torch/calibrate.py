"""What PyTorch reaches on its default device. Out: the figures of a `Machine`."""

from __future__ import annotations

import torch

from symcompile.cost.measure import COPIED, LAUNCHED, SIDE, rates
from symcompile_torch.kernels import AVAILABLE

__all__ = ["calibrate"]


@torch.no_grad()
def calibrate() -> tuple[float, ...]:
    """(bytes per second, float32 operations per second, seconds per launch, seconds per byte of a
    new array, whether there are kernels for sums in one pass).

    Measured where tensors are made by default: `with torch.device("cuda"):` chooses.
    """
    source, target = torch.ones(COPIED), torch.empty(COPIED)
    matrix, entry = torch.ones(SIDE, SIDE), torch.ones(1)
    device = source.device

    def finish() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    def copy() -> None:
        target.copy_(source)
        finish()

    def clone() -> None:
        source.clone()
        finish()

    def multiply() -> None:
        torch.mm(matrix, matrix)
        finish()

    def launch() -> None:
        for _ in range(LAUNCHED):
            torch.add(entry, entry)
        finish()

    return *rates(copy, multiply, launch, clone), AVAILABLE and device.type == "cpu"
