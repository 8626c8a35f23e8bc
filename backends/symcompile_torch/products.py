"""Operators for CPU of products of many channels, of matrices that lie in parts.

In: tensors of float32 with the same axes of rows, whose channels, side by side, are a matrix. Out:
`torch.ops.symcompile.mixed`, the parts of its product with a weight, and `mixed_back`, the gradient
of the weight. PyTorch multiplies one matrix into one: what a layer mixes would be put together
before, taken apart after, and held in between.

The one thing to know: every gradient is one of the two operators again. Results lie in memory as
they are asked for, so that an output is written where it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from symcompile_torch.autograd import is_batched
from symcompile_torch.native import (
    call,
    check_dtype,
    lines,
    steps,
)
from symcompile_torch.registry import Operator
from symcompile_torch.strides import channels_last

__all__ = ["COMPUTES", "PRODUCTS"]

_WIDTH = 16
"""More channels than this go to the widest vectors: see `call`."""


def _mixed(
    x: Sequence[Tensor],
    weight: Tensor,
    transposed: bool,
    rows: int,
    shapes: Sequence[int],
    orders: Sequence[int],
) -> list[Tensor]:
    """Parts x side by side times weight, or its transpose, in parts.

    The first `rows` axes of all parts are the same; those after them are channels. For every result
    `shapes` holds how many axes of channels it has, and their sizes; `orders` the order of its axes
    in memory.
    """
    check_dtype(*x, weight)
    y = _mixed_shape(x, weight, transposed, rows, shapes, orders)
    into, out_of = (sum(map(int, _widths(parts, rows))) for parts in (x, y))
    sides = (out_of, into) if transposed else (into, out_of)
    if tuple(weight.shape) != sides or any(part.shape[:rows] != x[0].shape[:rows] for part in x):
        raise ValueError(
            f"found {[tuple(part.shape) for part in x]} times {tuple(weight.shape)}, expected "
            f"equal axes of rows and a weight {sides}"
        )
    if any(part.stride(-1) != 1 for part in y if part.numel()):
        raise ValueError(f"found orders {[*orders]}, expected the last axis of each to be the last")
    if not weight.numel() or not prod(x[0].shape[:rows]):
        return [part.zero_() for part in y]
    if not weight.is_contiguous() and weight.t().is_contiguous():
        weight, transposed = weight.t(), not transposed  # read as it lies
    call(
        "symcompile_product",
        _WIDTH,
        *_rows_of(x[0], rows),
        *_as_parts(x, rows),
        weight.contiguous(),
        int(transposed),
        *_as_parts(y, rows),
    )
    return y


def _rows_of(x: Tensor, rows: int) -> tuple[int, list[int]]:
    """How many axes there are, and their sizes; one of size 1 where there are none."""
    return max(rows, 1), list(x.shape[:rows]) or [1]


def _as_parts(x: Sequence[Tensor], rows: int) -> tuple[Any, ...]:
    """As `products.hpp` takes the parts of a matrix."""
    x = [channels_last(part) for part in x]
    of_each = [lines(part.shape, part.stride(), rows) for part in x]
    return (
        len(x),
        x,
        steps(x, rows) if rows else [0] * len(x),
        _widths(x, rows),
        [len(places) for places in of_each],
        [place for places in of_each for place in places],
    )


def _widths(x: Sequence[Tensor], rows: int) -> list[int]:
    return [prod(part.shape[rows:]) for part in x]


def _mixed_shape(
    x: Sequence[Tensor],
    weight: Tensor,
    transposed: bool,
    rows: int,
    shapes: Sequence[int],
    orders: Sequence[int],
) -> list[Tensor]:
    made, orders = [], [*orders]
    left = [*shapes]
    while left:
        count, *left = left
        sizes, left = [*x[0].shape[:rows], *left[:count]], left[count:]
        order, orders = orders[: len(sizes)], orders[len(sizes) :]
        along, step = [0] * len(sizes), 1
        for axis in reversed(order):
            along[axis], step = step, step * max(sizes[axis], 1)
        # No view: to autograd that could not be changed in place.
        made.append(x[0].new_empty_strided(sizes, along))
    return made


def _laid_out(x: Sequence[Tensor], rows: int) -> tuple[list[int], list[int]]:
    """`shapes` and `orders` of results that lie as x does."""
    shapes = [size for part in x for size in (part.dim() - rows, *part.shape[rows:])]
    orders = []
    for part in x:
        along = part.stride()
        orders += sorted(range(part.dim() - 1), key=lambda axis: -along[axis])
        orders.append(part.dim() - 1)
    return shapes, orders


def _mixed_keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, ctx.transposed, ctx.rows, *_ = inputs
    ctx.laid_out = _laid_out(x, ctx.rows)
    ctx.save_for_backward(*x, weight)


def _mixed_gradients(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    *x, weight = ctx.saved_tensors
    to_x, to_weight, *_ = ctx.needs
    of_x: Any = [None] * len(x)
    if any(to_x):
        made = _mix(grads, weight, not ctx.transposed, ctx.rows, *ctx.laid_out)
        of_x = [part if needed else None for part, needed in zip(made, to_x, strict=True)]
    of_weight = None
    if to_weight:
        first, second = (grads, x) if ctx.transposed else (x, grads)
        of_weight = _outer(first, second, ctx.rows)
    return of_x, of_weight, None, None, None, None


def _mix(
    x: Sequence[Tensor],
    weight: Tensor,
    transposed: bool,
    rows: int,
    shapes: Sequence[int],
    orders: Sequence[int],
) -> Sequence[Tensor]:
    """The operator; or for many gradients at once, that an operator of lists does not take, ops."""
    if not any(map(is_batched, x)):
        found: Sequence[Tensor] = torch.ops.symcompile.mixed(
            x, weight, transposed, rows, shapes, orders
        )
        return found
    y = _joined(x, rows) @ (weight.t() if transposed else weight)
    like = _mixed_shape(x, weight, transposed, rows, shapes, orders)
    pieces = torch.split(y, _widths(like, rows), -1)
    return [piece.reshape(part.shape) for piece, part in zip(pieces, like, strict=True)]


def _outer(x: Sequence[Tensor], g: Sequence[Tensor], rows: int) -> Tensor:
    if not any(map(is_batched, (*x, *g))):
        found: Tensor = torch.ops.symcompile.mixed_back(x, g, rows)
        return found
    count = prod(x[0].shape[:rows])
    one, other = (_joined(parts, rows) for parts in (x, g))
    return one.reshape(count, one.shape[-1]).t() @ other.reshape(count, other.shape[-1])


def _joined(x: Sequence[Tensor], rows: int) -> Tensor:
    """The matrix itself."""
    parts = zip(x, _widths(x, rows), strict=True)
    return torch.cat([part.reshape(*part.shape[:rows], width) for part, width in parts], dim=-1)


def _mixed_back(x: Sequence[Tensor], g: Sequence[Tensor], rows: int) -> Tensor:
    """The gradient of the weight of `mixed`: over all rows, the sum of products of x and g."""
    check_dtype(*x, *g)
    if any(part.shape[:rows] != x[0].shape[:rows] for part in (*x, *g)):
        raise ValueError(f"axes of rows differ: {[tuple(part.shape) for part in (*x, *g)]}")
    weight = _mixed_back_shape(x, g, rows)
    if not weight.numel() or not prod(x[0].shape[:rows]):
        return weight.zero_()
    call(
        "symcompile_product_back",
        _WIDTH,
        *_rows_of(x[0], rows),
        *_as_parts(x, rows),
        *_as_parts(g, rows),
        weight,
    )
    return weight


def _mixed_back_shape(x: Sequence[Tensor], g: Sequence[Tensor], rows: int) -> Tensor:
    return x[0].new_empty((sum(_widths(x, rows)), sum(_widths(g, rows))))


def _mixed_back_keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, g, ctx.rows = inputs
    ctx.count = len(x)
    ctx.laid_out = [_laid_out(parts, ctx.rows) for parts in (x, g)]
    ctx.save_for_backward(*x, *g)


def _mixed_back_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    x, g = saved[: ctx.count], saved[ctx.count :]
    found = (
        _mix(parts, grad, transposed, ctx.rows, *like) if any(needed) else [None] * len(needed)
        for parts, transposed, like, needed in zip(
            (g, x), (True, False), ctx.laid_out, ctx.needs, strict=False
        )
    )
    return *found, None


PRODUCTS: tuple[Operator, ...] = (
    (
        "mixed(Tensor[] x, Tensor weight, bool transposed, int rows, int[] shapes, int[] orders) "
        "-> Tensor[]",
        (_mixed_shape, _mixed_gradients, _mixed_keep),
    ),
    (
        "mixed_back(Tensor[] x, Tensor[] g, int rows) -> Tensor",
        (_mixed_back_shape, _mixed_back_gradients, _mixed_back_keep),
    ),
)

COMPUTES: Mapping[str, Callable[..., Any]] = {"mixed": _mixed, "mixed_back": _mixed_back}
