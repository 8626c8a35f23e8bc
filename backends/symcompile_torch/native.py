"""How operators of PyTorch call the kernels: the libraries, tensors as they lie, gradients.

In: tensors of float32. Out: what `kernels.hpp` and `products.hpp` read of them, and operators
registered with their gradients.

The one thing to know: the libraries were compiled when symcompile was installed; `AVAILABLE` says
whether there is one for this processor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache, wraps
from itertools import product
from typing import Any, TypeAlias

import optree
import torch
from torch import Tensor
from torch.autograd import forward_ad

from symcompile_kernels.build import library

__all__ = [
    "AVAILABLE",
    "Operator",
    "call",
    "channels_last",
    "check_dtype",
    "first_in_line",
    "is_batched",
    "kinds",
    "lie_side_by_side",
    "lines",
    "register",
    "steps",
]

Operator: TypeAlias = tuple[str, tuple[Callable[..., Any], ...]]
"""A signature; and what computes it, the shape of the result, its gradient, what that one needs."""


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
    match value:
        case Tensor():
            return ctypes.c_void_p(value.data_ptr())
        case None:
            return ctypes.c_void_p()
        case float():
            return ctypes.c_float(value)
        case int():
            return ctypes.c_int64(value)
        case [Tensor(), *_]:
            return (ctypes.c_void_p * len(value))(*[tensor.data_ptr() for tensor in value])
        case _:
            return (ctypes.c_int64 * max(len(value), 1))(*value)


def steps(tensors: Sequence[Tensor], axes: int) -> list[int]:
    return [step for tensor in tensors for step in tensor.stride()[:axes]]


def lines(x: Tensor, axes: int) -> list[int]:
    """Where the channels of a row begin: all axes after `axes`, of which the last is a line."""
    if x.dim() == axes + 1 or x.numel() == 0 or lie_side_by_side(x, axes):
        return [0]
    places = product(*map(range, x.shape[axes:-1]))
    along = x.stride()[axes:-1]
    return [sum(k * step for k, step in zip(place, along, strict=True)) for place in places]


def check_dtype(*tensors: Tensor) -> None:
    if any(tensor.dtype is not torch.float32 for tensor in tensors):
        raise ValueError("the kernels of symcompile take float32 only")


def lie_side_by_side(x: Tensor, axis: int) -> bool:
    """Whether the entries along `axis` and all axes after it do."""
    step = 1
    axes = [*zip(x.shape, x.stride(), strict=True)][axis:]
    for size, found in reversed(axes):
        if found != step and size != 1:
            return False
        step *= size
    return True


def channels_last(x: Tensor) -> Tensor:
    """With channels side by side, as the kernels read them."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def first_in_line(x: Tensor) -> int:
    """The first axis from which on all entries lie side by side; past the last if none do."""
    axis = x.dim()
    while axis > 1 and lie_side_by_side(x, axis - 1):
        axis -= 1
    return axis


# Of many gradients at once (`is_grads_batched=`), an operator of lists takes none.
is_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda x: False)


# -- operators ------------------------------------------------------------------------------


def _with_tangents(back: Callable[..., Any]) -> Callable[..., Any]:
    """A gradient of dual numbers too. It is linear, and operators would lose their tangents."""

    @wraps(back)
    def both(ctx: Any, *grads: Any) -> Any:
        if forward_ad._current_level < 0:
            return back(ctx, *grads)
        unpack: Any = forward_ad.unpack_dual
        given: list[Tensor | None]
        given, tree = optree.tree_flatten(grads, none_is_leaf=True)  # type: ignore[arg-type]
        pairs = [(None, None) if grad is None else unpack(grad) for grad in given]
        values, tangents = zip(*pairs, strict=True)
        if all(tangent is None for tangent in tangents):
            return back(ctx, *grads)
        filled = [
            torch.zeros_like(value) if tangent is None and value is not None else tangent
            for value, tangent in pairs
        ]
        made = [back(ctx, *tree.unflatten(side)) for side in (values, filled)]
        return optree.tree_map(forward_ad.make_dual, *made)  # none for what needs none

    return both


def register(operators: Sequence[Operator]) -> None:
    """Make them operators of PyTorch, where the kernels are there."""
    for schema, (compute, shape, *gradient) in operators if AVAILABLE else ():
        name, _, rest = schema.partition("(")
        name = f"symcompile::{name}"
        torch.library.define(name, f"({rest}")
        torch.library.impl(name, "CPU", compute)
        torch.library.register_fake(name, shape)
        if gradient:
            back, keep = gradient
            torch.library.register_autograd(name, _with_tangents(back), setup_context=keep)
