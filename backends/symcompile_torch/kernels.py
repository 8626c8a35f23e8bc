"""Operators for CPU that PyTorch lacks: sums of products and terms, and pairs of means, in one go.

In: tensors of float32, of many rows of few channels. Out: `torch.ops.symcompile.linear_sum`, `sums`
and others, which know their gradients, of any degree, and serve eager mode and `torch.compile`.
PyTorch takes an op, and a pass over memory, for every product, every term and every mean; and large
arrays of few channels take as long as it takes to read and write them.

The one thing to know: generated modules use the operators if they are there when the module is
imported, and PyTorch's own ops if not. Importing this package makes them, where the
kernels were compiled for this processor when symcompile was installed (`AVAILABLE`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from symcompile_torch.native import (
    AVAILABLE,
    Operator,
    call,
    channels_last,
    check_dtype,
    first_in_line,
    is_batched,
    kinds,
    lie_side_by_side,
    lines,
    register,
    steps,
)
from symcompile_torch.products import PRODUCTS

__all__ = ["AVAILABLE"]

_MOST = 8
"""Products, terms and axes of a sum that `kernels.hpp` has room for."""

_STREAMED = 2**23
"""Bytes of a result from which it is written past the caches."""


def _too_few(batch: int, rows: int) -> bool:
    """Whether there are too few rows for all threads, four of which make a part."""
    return batch * -(-rows // 4) < 2 * torch.get_num_threads()


def _rows_in_order(x: Tensor, order: Sequence[int]) -> Tensor:
    return x.permute(*order, *range(len(order), x.dim()))


def _orders(axes: int, orders: Sequence[int]) -> list[list[int]]:
    return [list(orders[start : start + axes]) for start in range(0, len(orders), axes)]


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


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
    axes = len(orders) // len(sources)
    views = [
        channels_last(_rows_in_order(x[source], order))
        for source, order in zip(sources, _orders(axes, orders), strict=True)
    ]
    y = x[0].new_empty((*views[0].shape[:axes], weights[0].shape[1]))
    _fill(y, views, [weight.contiguous() for weight in weights], terms)
    return y


def _fill(
    y: Tensor, x: Sequence[Tensor], weights: Sequence[Tensor], terms: Sequence[Tensor]
) -> None:
    """Write the sum of `x[i] @ weights[i]` and of terms into y."""
    check_dtype(*x, *weights, *terms)
    axes = y.dim() - 1
    if max(len(x), len(terms), axes) > _MOST:
        raise ValueError(f"found more than {_MOST} products, terms or axes in one sum")
    for view, weight in zip(x, weights, strict=True):
        sides = view.shape[axes:].numel(), y.shape[-1]
        if view.shape[:axes] != y.shape[:-1] or weight.shape != sides:
            raise ValueError(
                f"found {tuple(view.shape)} times {tuple(weight.shape)}, expected the axes and "
                f"channels of {tuple(y.shape)}"
            )
    spread = [channels_last(term.expand(y.shape)) for term in terms]
    if y.numel() == 0:
        return
    of_each = [lines(view, axes) for view in x]
    call(
        "symcompile_sum",
        y.shape[-1],
        axes,
        y.shape[:-1],
        y.shape[-1],
        len(x),
        x,
        steps(x, axes),
        [view.shape[axes:].numel() for view in x],
        [len(places) for places in of_each],
        [place for places in of_each for place in places],
        weights,
        len(spread),
        spread,
        steps(spread, axes),
        y,
        int(y.nbytes >= _STREAMED),
    )


def _joined(x: Tensor, rows: int) -> Tensor:
    """With one axis of channels after those of rows. If there is one, no op: batches know few."""
    return x if x.dim() == rows + 1 else x.reshape(*x.shape[:rows], x.shape[rows:].numel())


def _apart(x: Tensor, shape: torch.Size) -> Tensor:
    """With several axes of channels. What has that shape is left alone: a view is not added to."""
    return x if x.shape == shape else x.reshape(shape)


def _linear_sum_shape(
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
    ctx.orders = _orders(len(orders) // len(ctx.sources), orders)
    ctx.count = len(x)
    ctx.terms = [term.shape for term in terms]
    ctx.save_for_backward(*x, *weights)


def _linear_sum_back(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # once: checkpointing hands it out once
    x, weights = saved[: ctx.count], saved[ctx.count :]
    to_x, to_weights, _, _, to_terms = ctx.needs_input_grad
    ops, grad = torch.ops.symcompile, grad.contiguous()
    pair = _pair(grad, ctx.terms, to_terms)
    usual = ctx.orders == [list(range(grad.dim() - 1))] and to_x[0] and to_weights[0]
    if usual and pair and not torch.is_grad_enabled():
        # One product, its axes as they are, not to be differentiated again: read everything once.
        axis, first, second = pair
        found = ops.back(grad, _joined(x[0], grad.dim() - 1), weights[0], axis)
        made = {first: found[2], second: found[3]}
        of_terms = _of_terms(grad, ctx.terms, to_terms, made)
        return [_apart(found[0], x[0].shape)], [found[1]], None, None, of_terms
    of_x: list[Tensor | None] = [None] * len(x)
    for place, needed in enumerate(to_x):
        read = [i for i, source in enumerate(ctx.sources) if source == place]
        if needed and read:
            back = [(_inverse(ctx.orders[i]), weights[i].t()) for i in read]
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


def _sums(x: Tensor, axis: int, mean: bool) -> tuple[Tensor, Tensor]:
    """The sums, or means, over an axis and over the one after it."""
    check_dtype(x)
    before, (rows, count) = x.shape[:axis].numel(), x.shape[axis : axis + 2]
    # Where the second axis has the longer steps, the kernel may take its entries as rows.
    most = max(rows, count) if x.stride(axis) < x.stride(axis + 1) else rows
    if x.numel() == 0 or _too_few(before, most):
        how = torch.mean if mean else torch.sum
        return how(x, axis).contiguous(), how(x, axis + 1).contiguous()
    lies = lie_side_by_side(x, axis + 2)
    last = axis + 2 if lies else first_in_line(x)
    if axis + 2 < last <= _MOST and last < x.dim():
        # What follows both axes has to lie side by side: of that, what does not is moved before.
        moved = x.permute(
            *range(axis), *range(axis + 2, last), axis, axis + 1, *range(last, x.dim())
        )
        one, other = (part.movedim(last - 2, axis) for part in _sums(moved, last - 2, mean))
        return one.contiguous(), other.contiguous()
    first, second = _sums_shape(x, axis, mean)
    width = x.shape[axis + 2 :].numel()
    if axis + 2 > _MOST or not lies:
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


def _sums_shape(x: Tensor, axis: int, mean: bool) -> tuple[Tensor, Tensor]:
    before, after = x.shape[:axis], x.shape[axis + 2 :]
    return (
        x.new_empty((*before, x.shape[axis + 1], *after)),
        x.new_empty((*before, x.shape[axis], *after)),
    )


def _sums_keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, ctx.axis, ctx.mean = inputs
    ctx.sizes = x.shape[ctx.axis : ctx.axis + 2]


def _sums_back(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor, None, None]:
    if ctx.mean:
        rows, count = ctx.sizes
        first, second = first / rows, second / count
    if torch.compiler.is_compiling():  # it adds them to what else the gradient is made of
        return first.unsqueeze(ctx.axis) + second.unsqueeze(ctx.axis + 1), None, None
    return torch.ops.symcompile.spread(first, second, ctx.axis), None, None


def _spread(first: Tensor, second: Tensor, axis: int) -> Tensor:
    """What `sums` is the transpose of: the sum of both, repeated along the axes they lack."""
    y = _spread_shape(first, second, axis)
    _fill(y, [], [], [first.unsqueeze(axis), second.unsqueeze(axis + 1)])
    return y


def _spread_shape(first: Tensor, second: Tensor, axis: int) -> Tensor:
    return first.new_empty((*second.shape[: axis + 1], *first.shape[axis:]))


def _spread_keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.axis = inputs[2]


def _spread_back(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return (*torch.ops.symcompile.sums(grad, ctx.axis, False), None)


def _sums_held(
    x: Tensor, weight: Tensor, axis: int, mean: bool, channels: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """As `sums`, of an x that `linear_sum` will multiply by a weight; and zeros, held for it.

    The last axes of x, `channels` of them, are what is multiplied. The zeros have the shape of the
    product but few entries of their own. Added to the product of x and weight, detached, they take
    its gradient: so those of x and weight are made together with those of the sums, in one pass
    that reads x once and writes its gradient once.
    """
    return *_sums(x, axis, mean), _held(x, weight, channels)


def _held(x: Tensor, weight: Tensor, channels: int) -> Tensor:
    return x.new_zeros(weight.shape[1]).expand(*x.shape[:-channels], weight.shape[1])


def _sums_held_shape(
    x: Tensor, weight: Tensor, axis: int, mean: bool, channels: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    return *_sums_shape(x, axis, mean), _held(x, weight, channels)


def _sums_held_keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, ctx.axis, ctx.mean, *_ = inputs
    ctx.shape = x.shape
    ctx.save_for_backward(x, weight)
    ctx.set_materialize_grads(False)


def _sums_held_back(
    ctx: Any, first: Tensor | None, second: Tensor | None, grad: Tensor | None
) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    to_x, to_weight, *_ = ctx.needs_input_grad
    ops, axis = torch.ops.symcompile, ctx.axis
    like = next((one for one in (first, second, grad) if one is not None), None)
    if like is None:  # autograd runs a node though no gradient reaches it
        return None, None, None, None, None
    first, second = (
        _of_sum(one, ctx.shape, axis + k, ctx.mean, like) for k, one in enumerate((first, second))
    )
    if grad is None:
        return ops.spread(first, second, axis) if to_x else None, None, None, None, None
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


# -- outer products -------------------------------------------------------------------------


def _outer(x: Tensor, order: Sequence[int], grad: Tensor) -> Tensor:
    """The gradient of a weight: over all rows, the sum of products of x, its axes in `order`, and
    grad."""
    check_dtype(x, grad)
    view = channels_last(x.permute(*order, -1))
    grad = channels_last(grad)
    if view.shape[:-1] != grad.shape[:-1]:
        raise ValueError(f"found {tuple(view.shape)} and {tuple(grad.shape)}: axes differ")
    weight = _outer_shape(x, order, grad)
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


def _outer_shape(x: Tensor, order: Sequence[int], grad: Tensor) -> Tensor:
    return x.new_empty((x.shape[-1], grad.shape[-1]))


def _outer_keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.order, grad = inputs
    ctx.save_for_backward(x, grad)


def _outer_back(ctx: Any, to_weight: Tensor) -> tuple[Tensor, None, Tensor]:
    x, grad = ctx.saved_tensors
    linear_sum = torch.ops.symcompile.linear_sum
    return (
        linear_sum([grad], [to_weight.t()], [0], _inverse(ctx.order), []),
        None,
        linear_sum([x], [to_weight], [0], ctx.order, []),
    )


# -- all gradients at once ------------------------------------------------------------------


def _back(grad: Tensor, x: Tensor, weight: Tensor, axis: int) -> tuple[Tensor, ...]:
    """The gradients of x, weight and two terms, of a sum of `x @ weight` and terms that were
    broadcast over `axis` and over the axis after it."""
    if grad.numel() == 0 or _too_few(grad.shape[:axis].numel(), grad.shape[axis]):
        order = list(range(grad.dim() - 1))
        to_x = _linear_sum([grad], [weight.t()], [0], order, [])
        return to_x, _outer(x, order, grad), *_sums(grad, axis, False)
    found = _back_shape(grad, x, weight, axis)
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
    if not 0 <= axis < grad.dim() - 2:
        raise ValueError(f"found axis {axis} of {tuple(grad.shape)}, expected two before channels")
    check_dtype(grad, x, weight, *(term for term in (first, second) if term is not None))
    if (*x.shape[:-1], *weight.shape) != (*grad.shape[:-1], x.shape[-1], grad.shape[-1]):
        raise ValueError(
            f"found a gradient {tuple(grad.shape)} of {tuple(x.shape)} times {tuple(weight.shape)}"
        )
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


def _back_shape(grad: Tensor, x: Tensor, weight: Tensor, axis: int) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), *_sums_shape(grad, axis, False)


def _back_from(
    grad: Tensor, x: Tensor, weight: Tensor, axis: int, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight: of `x @ weight`, and of the sums of x over `axis` and over the
    axis after it, whose gradients are `first` and `second`."""
    if grad.numel() == 0 or _too_few(grad.shape[:axis].numel(), grad.shape[axis]):
        order = list(range(grad.dim() - 1))
        terms = [first.unsqueeze(axis), second.unsqueeze(axis + 1)]
        return _linear_sum([grad], [weight.t()], [0], order, terms), _outer(x, order, grad)
    wanted = [tuple(shaped.shape) for shaped in _sums_shape(x, axis, False)]
    if [tuple(first.shape), tuple(second.shape)] != wanted:
        raise ValueError(
            f"found {tuple(first.shape)} and {tuple(second.shape)}, expected {wanted[0]} and "
            f"{wanted[1]}"
        )
    to_x, to_weight = _back_from_shape(grad, x, weight, axis, first, second)
    terms = [first.contiguous(), second.contiguous()]
    _go_back(grad, x, weight, axis, terms[0], terms[1], to_x, to_weight, None, None)
    return to_x, to_weight


def _back_from_shape(
    grad: Tensor, x: Tensor, weight: Tensor, axis: int, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


# -- the operators --------------------------------------------------------------------------

_X = "Tensor[] x, Tensor[] weights, int[] sources, int[] orders, Tensor[] terms"
_GRADIENT = "Tensor grad, Tensor x, Tensor weight, int axis"

_OPERATORS: tuple[Operator, ...] = (
    (
        f"linear_sum({_X}) -> Tensor",
        (_linear_sum, _linear_sum_shape, _linear_sum_back, _linear_sum_keep),
    ),
    (
        "sums(Tensor x, int axis, bool mean) -> (Tensor, Tensor)",
        (_sums, _sums_shape, _sums_back, _sums_keep),
    ),
    (
        "spread(Tensor first, Tensor second, int axis) -> Tensor",
        (_spread, _spread_shape, _spread_back, _spread_keep),
    ),
    (
        "outer(Tensor x, int[] order, Tensor grad) -> Tensor",
        (_outer, _outer_shape, _outer_back, _outer_keep),
    ),
    (
        "sums_held(Tensor x, Tensor weight, int axis, bool mean, int channels=1) "
        "-> (Tensor, Tensor, Tensor)",
        (_sums_held, _sums_held_shape, _sums_held_back, _sums_held_keep),
    ),
    # The last two are for gradients that are not to be differentiated again.
    (
        f"back({_GRADIENT}) -> (Tensor, Tensor, Tensor, Tensor)",
        (_back, _back_shape),
    ),
    (
        f"back_from({_GRADIENT}, Tensor first, Tensor second) -> (Tensor, Tensor)",
        (_back_from, _back_from_shape),
    ),
)

register(_OPERATORS)
if kinds() != ("DEFAULT",):  # by narrower vectors products are slower than those of libraries
    register(PRODUCTS)
