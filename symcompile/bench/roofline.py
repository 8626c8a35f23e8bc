"""How fast the machine could be: a floor for the time of a layer.

In: a workload; a device. Out: the bytes and operations no implementation can do without, and the
bandwidth and matmul rate that the device reaches in this very run.

The one thing to know: floor = max(bytes / bandwidth, operations / rate). Bytes: inputs and weights
read once, outputs written once; training also reads the cotangents and writes all gradients.
Operations: the channel mixes at propagating size (a multiply-add is two), three times in training.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from math import prod
from time import perf_counter
from typing import Any

import numpy as np

from symcompile.bench.subject import Setting, Unsuited
from symcompile.bench.workloads import Workload
from symcompile.codegen import get_backend
from symcompile.errors import BackendError

__all__ = ["GAUGES", "Floor", "Rates", "calibrate", "floor_of"]


@dataclass(frozen=True, slots=True)
class Floor:
    """What a layer cannot do without: bytes moved and operations."""

    bytes: int
    flops: int


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device reaches.

    Attributes:
        bandwidth: bytes per second, read and written, of a copy larger than caches.
        flops: operations per second of a large matrix product.
    """

    bandwidth: float
    flops: float

    def seconds(self, floor: Floor) -> float:
        """The least time for that work.

        >>> Rates(bandwidth=1e9, flops=1e12).seconds(Floor(bytes=2_000_000, flops=1_000))
        0.002
        """
        return max(floor.bytes / self.bandwidth, floor.flops / self.flops)


def floor_of(workload: Workload, itemsize: int, *, train: bool = False) -> Floor:
    """The floor of a forward pass, or of a forward and backward pass."""
    schema = workload.schema
    sizes = dict(workload.spec.sizes)
    weights = sum(prod(weight.shape) for weight in schema.weights)
    flops = sum(
        2 * workload.batch * prod(sizes[label] for label in weight.signature) * prod(weight.shape)
        for weight in schema.weights
        if weight.rows
    )
    tensors = 2 * workload.entries
    if train:
        return Floor((2 * tensors + 2 * weights) * itemsize, 3 * flops)
    return Floor((tensors + weights) * itemsize, flops)


def calibrate(
    setting: Setting, by: str, *, copied: int = 1 << 28, side: int = 2048
) -> dict[str, float]:
    """Bandwidth and matmul rate that a library reaches, for torch with symcompile's kernels too.

    Args:
        by: one of `GAUGES`.
        copied: bytes of the array that is copied.
        side: rows and columns of the matrices; half of it is tried too.

    Raises:
        Unsuited: it does not run on that device.
        ModuleNotFoundError: it is not installed.
    """
    copy, products, done = _ACTIONS[by](setting, copied)
    sides = (side, max(side // 2, 1))
    return {
        "bandwidth": 2 * copied / _best(copy, done),
        "flops": max(2 * n**3 / _best(action, done) for n in sides for action in products(n)),
    }


def _torch_actions(setting: Setting, copied: int) -> Any:
    import torch

    from symcompile.bench.torch_subject import finish, prepare

    device = prepare(setting)
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)

    with suppress(BackendError):
        get_backend("torch")  # with which its kernels are there
    kernels = setting.dtype == "float32" and device.type == "cpu"
    kernels = kernels and hasattr(torch.ops.symcompile, "mixed")

    def products(side: int) -> Any:
        matrix = torch.ones((side, side), dtype=getattr(torch, setting.dtype), device=device)
        out = torch.zeros_like(matrix)
        yield lambda: torch.mm(matrix, matrix, out=out)
        if kernels:
            yield lambda: torch.ops.symcompile.mixed([matrix], matrix, False, 1, [1, side], [0, 1])

    return lambda: target.copy_(source), products, lambda _: finish(device)


def _jax_actions(setting: Setting, copied: int) -> Any:
    import jax

    from symcompile.bench.jax_subject import prepare

    prepare(setting)
    copy = jax.jit(lambda x: x + 1)
    multiply = jax.jit(lambda x: x @ x)
    source = jax.numpy.ones(copied // 4, "float32")

    def products(side: int) -> Any:
        matrix = jax.numpy.ones((side, side), setting.dtype)
        yield lambda: multiply(matrix)

    return lambda: copy(source), products, jax.block_until_ready


def _numpy_actions(setting: Setting, copied: int) -> Any:
    from symcompile.check.draw import dtype_of

    if setting.device != "cpu":
        raise Unsuited("NumPy runs on the CPU only")
    source = np.ones(copied, np.uint8)
    target = np.zeros_like(source)

    def products(side: int) -> Any:
        matrix = np.ones((side, side), dtype_of(setting.dtype))
        out = np.zeros_like(matrix)
        yield lambda: np.matmul(matrix, matrix, out=out)

    return lambda: np.copyto(target, source), products, lambda _: None


_ACTIONS = {"torch": _torch_actions, "jax": _jax_actions, "numpy": _numpy_actions}

GAUGES = tuple(_ACTIONS)
"""Libraries that the machine is measured by: the limit is the best of them."""


def _best(action: Any, done: Any, repeats: int = 7) -> float:
    """Seconds of the fastest of a few: the limit is what the device can do at its best."""
    times = []
    for _ in range(repeats + 2):
        start = perf_counter()
        done(action())
        times.append(perf_counter() - start)
    return min(times)
