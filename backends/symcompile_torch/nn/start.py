"""Where weights start, also those that are shared by several devices.

The one thing to know: a `DTensor` gets, part by part, what the first of its processes has drawn, as
weights of compiled layers do; so it does not matter whether seeds differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["noise", "put"]


def noise(weight: Tensor) -> Tensor:
    """Normal numbers of a weight's shape and device, whole; for half types in float32."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return torch.randn(weight.shape, dtype=dtype, device=weight.device)


@torch.no_grad()
def put(weight: Tensor, values: Tensor) -> None:
    """Make a weight start at values of its shape."""
    if hasattr(weight, "device_mesh") and hasattr(weight, "placements"):
        from torch.distributed.tensor import distribute_tensor

        values = distribute_tensor(values, weight.device_mesh, weight.placements)
    weight.copy_(values)
