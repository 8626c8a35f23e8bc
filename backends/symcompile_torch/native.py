"""How operators of PyTorch call the kernels for CPU: the libraries, tensors as they lie.

In: tensors of float32. Out: what `kernels.hpp` and `products.hpp` read of them.

The one thing to know: the libraries were compiled when symcompile was installed; `AVAILABLE` says
whether there is one for this processor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from symcompile_kernels.build import library
from symcompile_torch.strides import lie_side_by_side

__all__ = [
    "AVAILABLE",
    "call",
    "check_dtype",
    "kinds",
    "lines",
    "steps",
]


@cache
def _load(kind: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(library(kind)))
    except OSError:
        return None


def kinds() -> tuple[str, ...]:
    """The kinds of libraries this processor can run, that of the widest vectors first."""
    capability = torch.backends.cpu.get_cpu_capability()
    known = {"AVX512": ("AVX512", "AVX2"), "AVX2": ("AVX2",)}
    return known.get(capability, ("DEFAULT",))


_FOUND = [made for kind in kinds() if (made := _load(kind)) is not None]

AVAILABLE = bool(_FOUND)
"""Whether the operators are there."""


def call(name: str, width: int, *args: Any) -> None:
    """Call a function of `openmp.cpp`, by the narrowest vectors that hold `width` channels."""
    found = getattr(_FOUND[-1 if width <= 8 else 0], name)
    if found(*map(_plain, args), ctypes.c_int64(torch.get_num_threads())):
        raise MemoryError(f"{name}: no memory for partial sums")


def _plain(value: Any) -> Any:
    """A tensor as its address (none as null), several as an array, numbers as the kernels want."""
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if value is None:
        return ctypes.c_void_p()
    if isinstance(value, float):
        return ctypes.c_float(value)
    if value and isinstance(value[0], Tensor):
        value = [tensor.data_ptr() for tensor in value]
    return _packed(len(value))(*value)


@lru_cache(256)
def _packed(count: int) -> Callable[..., bytes]:
    """To bytes, which takes half the time that an array of ctypes does."""
    return Struct(f"{count}q").pack


def steps(tensors: Sequence[Tensor], axes: int) -> list[int]:
    return [step for tensor in tensors for step in tensor.stride()[:axes]]


def lines(x: Tensor, axes: int) -> list[int]:
    """Where the channels of a row begin: all axes after `axes`, of which the last is a line."""
    if x.dim() == axes + 1 or x.numel() == 0 or lie_side_by_side(x, axes):
        return [0]
    return _places(tuple(x.shape[axes:-1]), tuple(x.stride()[axes:-1]))


@lru_cache(256)
def _places(shape: tuple[int, ...], steps: tuple[int, ...]) -> list[int]:
    places = [0]
    for size, step in zip(shape, steps, strict=True):
        places = [place + k * step for place in places for k in range(size)]
    return places


def check_dtype(*tensors: Tensor) -> None:
    if any(tensor.dtype is not torch.float32 for tensor in tensors):
        raise ValueError("the kernels of symcompile take float32 only")
