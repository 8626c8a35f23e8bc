"""What PyTorch reaches on its default device. Out: the figures of a `Machine`."""

from __future__ import annotations

import torch

from symcompile.cost.measure import LAUNCHED, SIZES, rates
from symcompile_torch.registry import is_implemented

__all__ = ["calibrate"]


@torch.no_grad()
def calibrate() -> tuple[float, ...]:
    """(bytes per second, float32 operations per second, seconds per launch, seconds per byte of a
    new array, whether there are kernels for sums in one pass).

    Measured where tensors are made by default: `with torch.device("cuda"):` chooses.
    """
    entry = torch.ones(1)
    device = entry.device
    copied, side = SIZES["cpu" if device.type == "cpu" else "gpu"]
    source, target, matrix = torch.ones(copied), torch.empty(copied), torch.ones(side, side)

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

    figures = rates(copy, multiply, launch, clone, copied=copied, side=side)
    known = device.type in ("cpu", "cuda") and is_implemented("linear_sum", device.type)
    return *figures, known
