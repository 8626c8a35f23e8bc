"""Operators for CPU: sums of products and terms and pairs of means, in one go, as PyTorch has none.

In: tensors of float32, of many rows of few channels. Out: `torch.ops.symcompile.linear_sum`, `sums`
and others, which know their gradients, of any degree, and serve eager mode and `torch.compile`.
PyTorch takes an op, and a pass over memory, for every product, every term and every mean; and large
arrays of few channels take as long as it takes to read and write them.

The one thing to know: generated modules use the operators if they are there when the module is
imported, and PyTorch's own ops if not. Importing this package makes them, where the
kernels were compiled for this processor when symcompile was installed (`AVAILABLE`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from symcompile_torch.native import (
    AVAILABLE,
    call,
    check_dtype,
    kinds,
    lines,
    packed,
    steps,
)
from symcompile_torch.operators import (
    MOST,
    OPERATORS,
    back_from_shape,
    back_shape,
    check_back,
    check_back_from,
    check_outer,
    check_sum,
    held,
    linear_sum_shape,
    mean_over,
    orders_of,
    outer_shape,
    spread_shape,
    sums_shape,
)
from symcompile_torch.products import COMPUTES, PRODUCTS
from symcompile_torch.registry import implement
from symcompile_torch.strides import axes_before, channels_last, first_in_line, lie_side_by_side

__all__ = ["AVAILABLE"]

_STREAMED = 2**23
"""Bytes of a result from which it is written past the caches."""


def _too_few(x: Tensor, axis: int, rows: int) -> bool:
    """Whether there are too few rows along an axis for all threads, four of which make a part."""
    batch = x.shape[:axis].numel()
    return x.numel() == 0 or batch * -(-rows // 4) < 2 * torch.get_num_threads()


# -- sums of products -----------------------------------------------------------------------


def _linear_sum(
    x: Sequence[Tensor],
    weights: Sequence[Tensor],
    sources: Sequence[int],
    orders: Sequence[int],
    terms: Sequence[Tensor],
) -> Tensor:
    """The sum of products `x[sources[i]].permute(order i) @ weights[i]`, and of terms, broadcast.

    `orders` holds one permutation of the axes of rows after another. The axes of an x after those
    are channels: of several the rows of a weight stand for all entries in order, wherever they lie.
    """
    y = linear_sum_shape(x, weights, sources, orders, terms)
    _fill(y, x, sources, orders, weights, terms)
    return y


def _fill(
    y: Tensor,
    x: Sequence[Tensor],
    sources: Sequence[int],
    orders: Sequence[int],
    weights: Sequence[Tensor],
    terms: Sequence[Tensor],
) -> None:
    """Write the sum of products, if any, and of terms into y; see `_linear_sum`."""
    check_dtype(*x, *weights, *terms)
    width = y.shape[-1]
    x = [channels_last(part) for part in x]
    weights = [weight.contiguous() for weight in weights]
    terms = [
        channels_last(term if term.shape[-1:] == (width,) else term.expand(y.shape))
        for term in terms
    ]
    sizes, *along = _layout_of_sum(
        tuple(y.shape),
        tuple([(tuple(part.shape), part.stride()) for part in x]),
        (*sources,),
        (*orders,),
        tuple([tuple(weight.shape) for weight in weights]),
        tuple([(tuple(term.shape), term.stride()) for term in terms]),
    )
    if y.numel():
        read = [x[source] for source in sources]
        of_x, depths, counts, places, of_terms = along
        call(
            "symcompile_sum",
            width,
            y.dim() - 1,
            sizes,
            width,
            len(read),
            read,
            of_x,
            depths,
            counts,
            places,
            weights,
            len(terms),
            terms,
            of_terms,
            y,
            int(y.nbytes >= _STREAMED),
        )


_Lie: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides."""


@lru_cache(4096)
def _layout_of_sum(
    shape: tuple[int, ...],
    x: tuple[_Lie, ...],
    sources: tuple[int, ...],
    orders: tuple[int, ...],
    weights: tuple[tuple[int, ...], ...],
    terms: tuple[_Lie, ...],
) -> tuple[bytes, ...]:
    """As the kernel takes them: the sizes of the axes of rows; of every product the steps along
    them, how many channels it reads, in how many lines, and where those begin; the steps of terms.

    Raises:
        ValueError: there are too many parts, or shapes do not fit.
    """
    axes = len(shape) - 1
    views: list[_Lie] = []
    for source, order in zip(sources, orders_of(axes, orders), strict=True):
        found, along = x[source]
        if sorted(order) != [*range(axes)] or len(found) <= axes:
            raise ValueError(
                f"found the order {order} of axes of {found}, expected one of the first {axes}, "
                "before the last"
            )
        order += range(axes, len(found))
        views.append((tuple(found[k] for k in order), tuple(along[k] for k in order)))
    check_sum(shape, [sizes for sizes, _ in views], weights, len(terms))
    of_each = [lines(sizes, along, axes) for sizes, along in views]
    spread: list[int] = []
    for sizes, along in terms:
        lacking = len(shape) - len(sizes)
        if lacking < 0 or any(a not in (1, b) for a, b in zip(sizes, shape[lacking:], strict=True)):
            raise ValueError(f"found a term {sizes}, expected one that broadcasts to {shape}")
        steps_of = [0 if size == 1 else step for size, step in zip(sizes, along, strict=True)]
        spread += [0] * lacking + steps_of[:-1]
    return (
        packed(shape[:-1]),
        packed([step for _, along in views for step in along[:axes]]),
        packed([prod(sizes[axes:]) for sizes, _ in views]),
        packed([len(places) for places in of_each]),
        packed([place for places in of_each for place in places]),
        packed(spread),
    )


# -- sums over two axes, and back ------------------------------------------------------------


def _sums(x: Tensor, axis: int, mean: bool) -> tuple[Tensor, Tensor]:
    """The sums, or means, over an axis and over the one after it."""
    check_dtype(x)
    before, (rows, count) = x.shape[:axis].numel(), x.shape[axis : axis + 2]
    # Where the second axis has the longer steps, the kernel may take its entries as rows.
    most = max(rows, count) if x.stride(axis) < x.stride(axis + 1) else rows
    width = x.shape[axis + 2 :].numel()
    if width == 1 or _too_few(x, axis, most):  # PyTorch's own are as quick
        how = torch.mean if mean else torch.sum
        return how(x, axis).contiguous(), how(x, axis + 1).contiguous()
    lies = lie_side_by_side(x, axis + 2)
    last = axis + 2 if lies else first_in_line(x)
    if axis + 2 < last <= MOST and last < x.dim():
        return axes_before(_sums, x, axis, last, mean)
    first, second = sums_shape(x, axis, mean)
    if axis + 2 > MOST or not lies:
        x, axis = x.contiguous().view(before, rows, count, width), 1
    call(
        "symcompile_sums",
        width,
        axis + 2,
        x.shape[: axis + 2],
        x,
        x.stride()[: axis + 2],
        width,
        first,
        1 / rows if mean else 1.0,
        second,
        1 / count if mean else 1.0,
    )
    return first, second


def _spread(first: Tensor, second: Tensor, axis: int, dtype: torch.dtype | None = None) -> Tensor:
    """What `sums` is the transpose of: the sum of both, repeated along the axes they lack."""
    y = spread_shape(first, second, axis, dtype)
    check_dtype(y)
    _fill(y, [], [], [], [], [first.unsqueeze(axis), second.unsqueeze(axis + 1)])
    return y


def _sums_held(
    x: Tensor, weight: Tensor, axis: int, mean: bool, channels: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """As `sums`, of an x that `linear_sum` will multiply by a weight; and zeros, held for it.

    The last axes of x, `channels` of them, are what is multiplied. The zeros have the shape of the
    product but few entries of their own. Added to the product of x and weight, detached, they take
    its gradient: so those of x and weight are made together with those of the sums, in one pass
    that reads x once and writes its gradient once.
    """
    return *_sums(x, axis, mean), held(x, weight, channels)


# -- outer products -------------------------------------------------------------------------


def _outer(x: Tensor, order: Sequence[int], grad: Tensor) -> Tensor:
    """The gradient of a weight: over all rows, the sum of products of x, its axes in `order`, and
    grad."""
    check_dtype(x, grad)
    view = channels_last(x.permute(*order, -1))
    grad = channels_last(grad)
    check_outer(view, grad)
    weight = outer_shape(x, order, grad)
    if x.numel() == 0:
        return weight.zero_()
    call(
        "symcompile_outer",
        grad.shape[-1],
        len(order),
        view.shape[:-1],
        view,
        steps([view], len(order)),
        view.shape[-1],
        grad,
        steps([grad], len(order)),
        grad.shape[-1],
        weight,
    )
    return weight


# -- all gradients at once ------------------------------------------------------------------


def _back(grad: Tensor, x: Tensor, weight: Tensor, axis: int) -> tuple[Tensor, ...]:
    """The gradients of x, weight and two terms, of a sum of `x @ weight` and terms that were
    broadcast over `axis` and over the axis after it."""
    check_back(grad, x, weight, axis)
    width = grad.shape[axis + 2 :].numel()
    if width == 1 or _too_few(grad, axis, grad.shape[axis]):
        order = list(range(grad.dim() - 1))
        to_x = _linear_sum([grad], [weight.t()], [0], order, [])
        return to_x, _outer(x, order, grad), *_sums(grad, axis, False)
    found = back_shape(grad, x, weight, axis)
    _go_back(grad, x, weight, axis, None, None, *found)
    return found


def _go_back(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    axis: int,
    first: Tensor | None,
    second: Tensor | None,
    to_x: Tensor,
    to_weight: Tensor,
    over_rows: Tensor | None,
    over_count: Tensor | None,
) -> None:
    """Fill to_x, to_weight and the two sums, to_x with the terms first and second in it."""
    check_dtype(grad, x, weight, *(term for term in (first, second) if term is not None))
    depth, width = weight.shape
    call(
        "symcompile_back",
        min(depth, width),
        grad.contiguous(),
        x.contiguous(),
        grad.shape[:axis].numel(),
        *grad.shape[axis : axis + 2],
        grad.shape[axis + 2 : -1].numel(),
        width,
        depth,
        weight.t().contiguous(),
        first,
        second,
        to_x,
        to_weight,
        over_rows,
        over_count,
        int(x.nbytes >= _STREAMED),
    )


def _back_from(
    grad: Tensor, x: Tensor, weight: Tensor, axis: int, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight: of `x @ weight`, and of the sums of x over `axis` and over the
    axis after it, whose gradients are `first` and `second`."""
    if _too_few(grad, axis, grad.shape[axis]):
        order = list(range(grad.dim() - 1))
        terms = [first.unsqueeze(axis), second.unsqueeze(axis + 1)]
        return _linear_sum([grad], [weight.t()], [0], order, terms), _outer(x, order, grad)
    check_back(grad, x, weight, axis)
    check_back_from(x, axis, first, second)
    to_x, to_weight = back_from_shape(grad, x, weight, axis, first, second)
    terms = [first.contiguous(), second.contiguous()]
    _go_back(grad, x, weight, axis, terms[0], terms[1], to_x, to_weight, None, None)
    return to_x, to_weight


# -- the operators --------------------------------------------------------------------------

_SUMS: Mapping[str, Callable[..., Any]] = {
    "linear_sum": _linear_sum,
    "sums": _sums,
    "spread": _spread,
    "outer": _outer,
    "sums_held": _sums_held,
    "mean": mean_over,
    "back": _back,
    "back_from": _back_from,
}

if AVAILABLE:
    implement("CPU", OPERATORS, _SUMS)
    if kinds() != ("DEFAULT",):  # by narrower vectors products are slower than those of libraries
        implement("CPU", PRODUCTS, COMPUTES)
