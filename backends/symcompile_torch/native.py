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
from symcompile_torch.strides import side_by_side

__all__ = [
    "AVAILABLE",
    "call",
    "check_dtype",
    "kinds",
    "lines",
    "packed",
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
    kinds = tuple([type(arg) is float for arg in args])
    plain = [arg.data_ptr() if isinstance(arg, Tensor) else _plain(arg) for arg in args]
    if _function(name, width <= 8, kinds)(*plain, torch.get_num_threads()):
        raise MemoryError(f"{name}: no memory for partial sums")


@lru_cache(256)
def _function(name: str, narrow: bool, kinds: tuple[bool, ...]) -> Callable[..., int]:
    """A function that takes floats where `kinds` says so; all else is 64 bits wide, the number of
    threads too."""
    types = [ctypes.c_float if kind else ctypes.c_void_p for kind in (*kinds, False)]
    library = _FOUND[-1 if narrow else 0]
    return ctypes.CFUNCTYPE(ctypes.c_int, *types)((name, library))


def _plain(value: Any) -> Any:
    """Several tensors as an array of their addresses, several numbers as one."""
    if value is None or isinstance(value, (int, float, bytes)):
        return value
    if value and isinstance(value[0], Tensor):
        value = [tensor.data_ptr() for tensor in value]
    return packed(value)


def packed(numbers: Sequence[int]) -> bytes:
    """As an array of the kernels."""
    return _packer(len(numbers))(*numbers)


@lru_cache(256)
def _packer(count: int) -> Callable[..., bytes]:
    """To bytes, which takes half the time that an array of ctypes does."""
    return Struct(f"{count}q").pack


def steps(tensors: Sequence[Tensor], axes: int) -> list[int]:
    return [step for tensor in tensors for step in tensor.stride()[:axes]]


def lines(shape: Sequence[int], strides: Sequence[int], axes: int) -> list[int]:
    """Where the channels of a row begin: all axes after `axes`, of which the last is a line."""
    if len(shape) == axes + 1 or 0 in shape or side_by_side(shape[axes:], strides[axes:]):
        return [0]
    return _places(tuple(shape[axes:-1]), tuple(strides[axes:-1]))


@lru_cache(256)
def _places(shape: tuple[int, ...], steps: tuple[int, ...]) -> list[int]:
    places = [0]
    for size, step in zip(shape, steps, strict=True):
        places = [place + k * step for place in places for k in range(size)]
    return places


def check_dtype(*tensors: Tensor) -> None:
    if any(tensor.dtype is not torch.float32 for tensor in tensors):
        raise ValueError("the kernels of symcompile take float32 only")
