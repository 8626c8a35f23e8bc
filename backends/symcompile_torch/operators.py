"""Sums of products and terms, means, and what their gradients are made of, as operators.

In: nothing. Out: `torch.ops.symcompile.linear_sum`, `sums` and others: their signatures, the shapes
of their results, and their gradients, of any degree. What computes them is registered for a device
by `kernels` (CPU) or `triton` (GPU).

The one thing to know: every gradient is made of these operators again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from symcompile_torch.autograd import is_batched
from symcompile_torch.registry import Operator

__all__ = [
    "MOST",
    "OPERATORS",
    "back_from_shape",
    "back_shape",
    "check_back",
    "check_back_from",
    "check_outer",
    "check_sum",
    "held",
    "inverse",
    "linear_sum_shape",
    "mean_over",
    "orders_of",
    "outer_shape",
    "spread_shape",
    "sums_shape",
]


MOST = 8
"""Products, terms and axes of rows that a sum may have."""


def orders_of(axes: int, orders: Sequence[int]) -> list[list[int]]:
    return [list(orders[start : start + axes]) for start in range(0, len(orders), axes)]


def inverse(order: Sequence[int]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


def _joined(x: Tensor, rows: int) -> Tensor:
    """With one axis of channels after those of rows. If there is one, no op: batches know few."""
    return x if x.dim() == rows + 1 else x.reshape(*x.shape[:rows], x.shape[rows:].numel())


def _apart(x: Tensor, shape: torch.Size) -> Tensor:
    """With several axes of channels. What has that shape is left alone: a view is not added to."""
    return x if x.shape == shape else x.reshape(shape)


# -- sums of products -----------------------------------------------------------------------


def check_sum(
    shape: Sequence[int], x: Sequence[Sequence[int]], weights: Sequence[Sequence[int]], terms: int
) -> None:
    """Refuse shapes that make no sum of that shape; an x has its rows in order.

    Raises:
        ValueError: there are too many parts, or shapes do not fit.
    """
    axes = len(shape) - 1
    if max(len(x), terms, axes) > MOST:
        raise ValueError(f"found more than {MOST} products, terms or axes in one sum")
    for view, weight in zip(x, weights, strict=True):
        sides = prod(view[axes:]), shape[-1]
        if tuple(view[:axes]) != tuple(shape[:-1]) or tuple(weight) != sides:
            raise ValueError(
                f"found {tuple(view)} times {tuple(weight)}, expected the axes and channels of "
                f"{tuple(shape)}"
            )


def linear_sum_shape(
    x: Sequence[Tensor],
    weights: Sequence[Tensor],
    sources: Sequence[int],
    orders: Sequence[int],
    terms: Sequence[Tensor],
) -> Tensor:
    axes = len(orders) // len(sources)
    shape = [x[sources[0]].shape[axis] for axis in orders[:axes]]
    return x[0].new_empty((*shape, weights[0].shape[1]))


def _linear_sum_keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, ctx.sources, orders, terms = inputs
    ctx.orders = orders_of(len(orders) // len(ctx.sources), orders)
    ctx.count = len(x)
    ctx.terms = [term.shape for term in terms]
    ctx.save_for_backward(*x, *weights)


def _linear_sum_back(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # once: checkpointing hands it out once
    x, weights = saved[: ctx.count], saved[ctx.count :]
    to_x, to_weights, _, _, to_terms = ctx.needs
    ops, grad = torch.ops.symcompile, grad.contiguous()
    pair = _pair(grad, ctx.terms, to_terms)
    usual = ctx.orders == [list(range(grad.dim() - 1))] and to_x[0] and to_weights[0]
    if usual and pair and not torch.is_grad_enabled():
        # One product, its axes as they are, not to be differentiated again: all at once.
        axis, first, second = pair
        found = ops.back(grad, _joined(x[0], grad.dim() - 1), weights[0], axis)
        made = {first: found[2], second: found[3]}
        of_terms = _of_terms(grad, ctx.terms, to_terms, made)
        return [_apart(found[0], x[0].shape)], [found[1]], None, None, of_terms
    of_x: list[Tensor | None] = [None] * len(x)
    for place, needed in enumerate(to_x):
        read = [i for i, source in enumerate(ctx.sources) if source == place]
        if needed and read:
            back = [(inverse(ctx.orders[i]), weights[i].t()) for i in read]
            if is_batched(grad):
                made_of = sum(grad.permute(*order, -1) @ weight for order, weight in back)
            else:
                orders = [axis for order, _ in back for axis in order]
                transposed = [weight for _, weight in back]
                made_of = ops.linear_sum([grad], transposed, [0] * len(read), orders, [])
            of_x[place] = _apart(made_of, x[place].shape)
    of_weights = [
        ops.outer(_joined(x[source], grad.dim() - 1), order, grad) if needed else None
        for source, order, needed in zip(ctx.sources, ctx.orders, to_weights, strict=True)
    ]
    of_terms = _of_terms(grad, ctx.terms, to_terms, _pair_of_sums(grad, pair))
    return of_x, of_weights, None, None, of_terms


def _pair(
    grad: Tensor, shapes: Sequence[torch.Size], needed: Sequence[bool]
) -> tuple[int, int, int] | None:
    """An axis, and two terms broadcast over it alone and over the one after it alone."""
    alone = {}
    for place, shape in enumerate(shapes):
        full = (1,) * (grad.dim() - len(shape)) + tuple(shape)
        over = [axis for axis, size in enumerate(full) if size != grad.shape[axis]]
        if needed[place] and len(over) == 1 and over[0] < grad.dim() - 1:
            alone[over[0]] = place
    return next(
        ((axis, alone[axis], alone[axis + 1]) for axis in sorted(alone) if axis + 1 in alone), None
    )


def _pair_of_sums(grad: Tensor, pair: tuple[int, int, int] | None) -> dict[int, Tensor]:
    """The gradients of a pair of terms, by place."""
    if pair is None:
        return {}
    axis, *places = pair
    return dict(zip(places, torch.ops.symcompile.sums(grad, axis, False), strict=True))


def _of_terms(
    grad: Tensor,
    shapes: Sequence[torch.Size],
    needed: Sequence[bool],
    found: Mapping[int, Tensor],
) -> list[Tensor | None]:
    """Gradients of terms: sums over the axes they were broadcast over."""
    return [
        found[place].view(shape) if place in found else grad.sum_to_size(shape) if need else None
        for place, (shape, need) in enumerate(zip(shapes, needed, strict=True))
    ]


# -- sums over two axes, and back ------------------------------------------------------------


def sums_shape(x: Tensor, axis: int, mean: bool) -> tuple[Tensor, Tensor]:
    """Of half types the sums are float32."""
    before, after = x.shape[:axis], x.shape[axis + 2 :]
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (
        x.new_empty((*before, x.shape[axis + 1], *after), dtype=dtype),
        x.new_empty((*before, x.shape[axis], *after), dtype=dtype),
    )


def _sums_keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, ctx.axis, ctx.mean = inputs
    ctx.dtype = x.dtype
    ctx.sizes = x.shape[ctx.axis : ctx.axis + 2]


def _sums_back(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor, None, None]:
    if ctx.mean:
        rows, count = ctx.sizes
        first, second = first / rows, second / count
    if torch.compiler.is_compiling():  # it adds them to what else the gradient is made of
        return first.unsqueeze(ctx.axis) + second.unsqueeze(ctx.axis + 1), None, None
    return torch.ops.symcompile.spread(first, second, ctx.axis, ctx.dtype), None, None


def spread_shape(
    first: Tensor, second: Tensor, axis: int, dtype: torch.dtype | None = None
) -> Tensor:
    shape = (*second.shape[: axis + 1], *first.shape[axis:])
    return first.new_empty(shape, dtype=dtype or first.dtype)


def _spread_keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.axis = inputs[2]


def _spread_back(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return (*torch.ops.symcompile.sums(grad, ctx.axis, False), None, None)


def held(x: Tensor, weight: Tensor, channels: int) -> Tensor:
    return x.new_zeros(weight.shape[1]).expand(*x.shape[:-channels], weight.shape[1])


def _sums_held_shape(
    x: Tensor, weight: Tensor, axis: int, mean: bool, channels: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    return *sums_shape(x, axis, mean), held(x, weight, channels)


def _sums_held_keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, ctx.axis, ctx.mean, *_ = inputs
    ctx.shape, ctx.dtype = x.shape, x.dtype
    ctx.save_for_backward(x, weight)
    ctx.set_materialize_grads(False)


def _sums_held_back(
    ctx: Any, first: Tensor | None, second: Tensor | None, grad: Tensor | None
) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    to_x, to_weight, *_ = ctx.needs
    ops, axis = torch.ops.symcompile, ctx.axis
    like = next((one for one in (first, second, grad) if one is not None), None)
    if like is None:  # autograd runs a node though no gradient reaches it
        return None, None, None, None, None
    first, second = (
        _of_sum(one, ctx.shape, axis + k, ctx.mean, like) for k, one in enumerate((first, second))
    )
    if grad is None:
        alone = ops.spread(first, second, axis, ctx.dtype) if to_x else None
        return alone, None, None, None, None
    x, weight = ctx.saved_tensors  # not before they are needed: they may have changed
    rows = grad.dim() - 1
    x, first, second = _joined(x, rows), _joined(first, rows - 1), _joined(second, rows - 1)
    if to_x and to_weight and not torch.is_grad_enabled():
        of_x, of_weight = ops.back_from(grad, x, weight, axis, first, second)
        return _apart(of_x, ctx.shape), of_weight, None, None, None
    order, terms = [*range(rows)], [first.unsqueeze(axis), second.unsqueeze(axis + 1)]
    of_x = None
    if to_x and is_batched(grad):
        of_x = grad @ weight.t() + terms[0] + terms[1]
    elif to_x:
        of_x = ops.linear_sum([grad], [weight.t()], [0], order, terms)
    of_x = _apart(of_x, ctx.shape) if to_x else None
    return of_x, ops.outer(x, order, grad) if to_weight else None, None, None, None


def _of_sum(grad: Tensor | None, shape: torch.Size, axis: int, mean: bool, like: Tensor) -> Tensor:
    """From the gradient of a mean, or sum, over an axis of that shape to that of the sum."""
    if grad is None:
        return like.new_zeros(shape[:axis] + shape[axis + 1 :])
    return grad / shape[axis] if mean else grad


# -- one mean -------------------------------------------------------------------------------


def _mean_shape(x: Tensor, axis: int) -> Tensor:
    return x.new_empty((*x.shape[:axis], *x.shape[axis + 1 :]))


def _mean_keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.axis = inputs
    ctx.shape = x.shape


def _mean_back(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return (grad / ctx.shape[ctx.axis]).unsqueeze(ctx.axis).expand(ctx.shape), None


def mean_over(x: Tensor, axis: int) -> Tensor:
    """PyTorch's own. Over an outer axis the one that Inductor makes takes twice as long."""
    return x.mean(axis).contiguous()


# -- outer products -------------------------------------------------------------------------


def check_outer(x: Tensor, grad: Tensor) -> None:
    """Refuse rows that differ; those of x are in order.

    Raises:
        ValueError: the axes before channels differ.
    """
    if x.shape[:-1] != grad.shape[:-1]:
        raise ValueError(f"found {tuple(x.shape)} and {tuple(grad.shape)}: axes differ")


def outer_shape(x: Tensor, order: Sequence[int], grad: Tensor) -> Tensor:
    return x.new_empty((x.shape[-1], grad.shape[-1]))


def _outer_keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.order, grad = inputs
    ctx.save_for_backward(x, grad)


def _outer_back(ctx: Any, to_weight: Tensor) -> tuple[Tensor, None, Tensor]:
    x, grad = ctx.saved_tensors
    linear_sum = torch.ops.symcompile.linear_sum
    return (
        linear_sum([grad], [to_weight.t()], [0], inverse(ctx.order), []),
        None,
        linear_sum([x], [to_weight], [0], ctx.order, []),
    )


# -- all gradients at once ------------------------------------------------------------------


def check_back(grad: Tensor, x: Tensor, weight: Tensor, axis: int) -> None:
    """Refuse what is no gradient of that product.

    Raises:
        ValueError: shapes do not fit, or there is no such axis with one after it.
    """
    if not 0 <= axis < grad.dim() - 2:
        raise ValueError(f"found axis {axis} of {tuple(grad.shape)}, expected two before channels")
    if (*x.shape[:-1], *weight.shape) != (*grad.shape[:-1], x.shape[-1], grad.shape[-1]):
        raise ValueError(
            f"found a gradient {tuple(grad.shape)} of {tuple(x.shape)} times {tuple(weight.shape)}"
        )


def check_back_from(x: Tensor, axis: int, first: Tensor, second: Tensor) -> None:
    """Refuse what are no gradients of sums of x.

    Raises:
        ValueError: shapes do not fit.
    """
    wanted = [tuple(shaped.shape) for shaped in sums_shape(x, axis, False)]
    if [tuple(first.shape), tuple(second.shape)] != wanted:
        raise ValueError(
            f"found {tuple(first.shape)} and {tuple(second.shape)}, expected {wanted[0]} and "
            f"{wanted[1]}"
        )


def back_shape(grad: Tensor, x: Tensor, weight: Tensor, axis: int) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), *sums_shape(grad, axis, False)


def back_from_shape(
    grad: Tensor, x: Tensor, weight: Tensor, axis: int, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


# -- the operators --------------------------------------------------------------------------

_X = "Tensor[] x, Tensor[] weights, int[] sources, int[] orders, Tensor[] terms"
_GRADIENT = "Tensor grad, Tensor x, Tensor weight, int axis"

OPERATORS: tuple[Operator, ...] = (
    (
        f"linear_sum({_X}) -> Tensor",
        (linear_sum_shape, _linear_sum_back, _linear_sum_keep),
    ),
    (
        "sums(Tensor x, int axis, bool mean) -> (Tensor, Tensor)",
        (sums_shape, _sums_back, _sums_keep),
    ),
    (
        "spread(Tensor first, Tensor second, int axis, ScalarType? dtype=None) -> Tensor",
        (spread_shape, _spread_back, _spread_keep),
    ),
    ("mean(Tensor x, int axis) -> Tensor", (_mean_shape, _mean_back, _mean_keep)),
    (
        "outer(Tensor x, int[] order, Tensor grad) -> Tensor",
        (outer_shape, _outer_back, _outer_keep),
    ),
    (
        "sums_held(Tensor x, Tensor weight, int axis, bool mean, int channels=1) "
        "-> (Tensor, Tensor, Tensor)",
        (_sums_held_shape, _sums_held_back, _sums_held_keep),
    ),
    # The last two are for gradients that are not to be differentiated again.
    (
        f"back({_GRADIENT}) -> (Tensor, Tensor, Tensor, Tensor)",
        (back_shape,),
    ),
    (
        f"back_from({_GRADIENT}, Tensor first, Tensor second) -> (Tensor, Tensor)",
        (back_from_shape,),
    ),
)
