"""How tensors lie in memory, and what is to be done where kernels cannot read them so.

In: tensors of any layout. Out: facts, and tensors that lie otherwise, copied only if need be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

__all__ = ["axes_before", "channels_last", "first_in_line", "lie_side_by_side", "side_by_side"]


def lie_side_by_side(x: Tensor, axis: int) -> bool:
    """Whether the entries along `axis` and all axes after it do."""
    return side_by_side(x.shape[axis:], x.stride()[axis:])


def side_by_side(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether all entries do."""
    step = 1
    for size, found in zip(reversed(shape), reversed(strides), strict=True):
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


def axes_before(
    sums: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]],
    x: Tensor,
    axis: int,
    last: int,
    mean: bool,
) -> tuple[Tensor, Tensor]:
    """Two sums of an x whose entries lie side by side from the axis `last` on.

    They have to do so from `axis + 2` on: what lies between is moved before both axes.
    """
    between = range(axis + 2, last)
    moved = x.permute(*range(axis), *between, axis, axis + 1, *range(last, x.dim()))
    one, other = (part.movedim(last - 2, axis) for part in sums(moved, last - 2, mean))
    return one.contiguous(), other.contiguous()
