"""A primitive for CPU that XLA lacks: the product of a matrix that lies in parts, and its gradient.

In: arrays of float32 with the same axes of rows and many channels, that side by side are one
matrix, and a weight. Out: `mixed`, their product in parts again, which every transform of JAX
knows. XLA's own product takes one array and makes one: it would copy the parts together, and what
it made apart; axes that were moved or joined to the channels it would copy once more.

The one thing to know: a product and the gradient of its weight are each other's derivatives, so
that two primitives serve for any degree. They are lowered as those in `kernels` are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from math import prod
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import ShapedArray
from jax.interpreters import ad, batching, mlir

from symcompile_jax.handlers import WIDE, are_plain, product_back, product_of_parts
from symcompile_jax.primitives import (
    Order,
    as_it_lay,
    by_vmap,
    instantiated,
    inverse,
    is_unknown,
    primitive,
    shape_of,
    varies,
)

__all__ = ["mixed", "mixed_fit"]

Lies: TypeAlias = tuple[Order, Order, Order]
"""Of a result: the sizes its channels are of, the order that its last axes are in, none if they
are in order, and the shape that those are joined to."""

_LEAST_WEIGHT = 2**18
"""Entries of a weight from which the kernel is the quickest, and rows for as many vectors."""

_LEAST_ROWS = 8

_LEAST_LINE = 8
"""Channels that lie side by side, at least, where they are read as they lie."""

_VECTOR = 16
"""Channels in a vector of the widest."""


def mixed_fit(parts: Sequence[Array], weight: Array) -> bool:
    """Whether a kernel is there and the quickest: on CPU, for a large weight and many rows."""
    return (
        WIDE
        and are_plain(*parts, weight)
        and prod(parts[0].shape[:-1]) >= _LEAST_ROWS
        and weight.size >= _LEAST_WEIGHT
    )


def mixed(
    parts: Sequence[Array],
    weight: Array,
    into: Sequence[int | tuple[Order, Order, Order]],
) -> list[Array]:
    """The product of arrays side by side and a weight, apart again.

    Args:
        parts: of shapes (*rows, channels), of which each has its own number of channels.
        weight: of shape (all those channels, sum of all widths).
        into: of each result, which is of shape (*rows, width), the width. Or how it is stored: its
            axes (*rows, *sizes), the last of them in an order that ends with the last, and then
            joined to a shape: that is (sizes, order, shape).

    Raises:
        ValueError: shapes disagree, an array is none of float32, or a result cannot be stored so.
    """
    made_so = tuple(
        tuple(map(tuple, piece)) if isinstance(piece, tuple) else ((int(piece),), (), ())
        for piece in into
    )
    rows = {part.shape[:-1] for part in parts if part.ndim}
    if not made_so or len(rows) != 1 or not all(part.ndim for part in parts):
        shapes = [part.shape for part in parts]
        raise ValueError(
            f"found parts of {shapes} for results of {[*into]}, expected some of each, "
            "and that parts differ in their last axis alone"
        )
    expected = sum(part.shape[-1] for part in parts), sum(prod(sizes) for sizes, *_ in made_so)
    if weight.shape != expected:
        raise ValueError(f"found a weight of {weight.shape}, expected {expected}")
    kinds = {str(value.dtype) for value in (*parts, weight)}
    if kinds != {"float32"}:
        raise ValueError(f"found {sorted(kinds)}, expected float32")
    for sizes, order, shape in made_so:
        lies = [*parts[0].shape[:-1], *sizes][-len(order) :] if order else []
        moves = sorted(order) == [*range(len(lies))] and len(order) >= len(sizes)
        if order and not (moves and order[-1] == len(order) - 1 and prod(shape) == prod(lies)):
            raise ValueError(
                f"found a result of {sizes} in the order {order} as {shape}, expected an order of "
                f"its last axes that ends with the last, and a shape of as many entries"
            )
    made: list[Array] = _mixed.bind(*parts, weight, into=made_so, transposed=False)
    return made


# -- products -------------------------------------------------------------------------------


def _plain_mixed(*args: Array, into: tuple[Lies, ...], transposed: bool) -> list[Array]:
    *parts, weight = args
    y = _side_by_side(parts) @ (weight.T if transposed else weight)
    pieces = jnp.split(y, _ends([prod(sizes) for sizes, *_ in into]), -1)
    return [_lain(piece, lies) for piece, lies in zip(pieces, into, strict=True)]


def _lain(piece: Array, lies: Lies) -> Array:
    """What is of shape (*rows, width), as a result lies."""
    sizes, order, shape = lies
    apart = piece.reshape(*piece.shape[:-1], *sizes)
    before = apart.ndim - len(order)
    moved = apart.transpose(*range(before), *(before + axis for axis in order))
    return moved.reshape(*moved.shape[:before], *shape)


def _joined(value: Array, lies: Lies, rows: Sequence[int]) -> Array:
    """What lies as a result does, of shape (*rows, width)."""
    sizes, order, _ = lies
    apart = [*rows, *sizes]
    before = len(apart) - len(order)
    lain = [*range(before), *(before + axis for axis in order)]
    moved = value.reshape([apart[axis] for axis in lain])
    return moved.transpose(inverse(tuple(lain))).reshape(*rows, prod(sizes))


def _side_by_side(parts: Sequence[Array]) -> Array:
    return jnp.concatenate(parts, -1) if len(parts) > 1 else parts[0]


def _ends(widths: Sequence[int]) -> list[int]:
    """Where a matrix is split into parts of these widths."""
    return [*accumulate(widths)][:-1]


def _as(parts: Sequence[Any]) -> tuple[Lies, ...]:
    """Results that lie as these parts do."""
    return tuple(((shape_of(part)[-1],), (), ()) for part in parts)


def _kernel_mixed(*args: Array, **params: Any) -> list[Array]:
    return product_of_parts(args[:-1], args[-1], **params)


def _mixed_through(
    context: mlir.LoweringRuleContext, args: Sequence[Any], params: dict[str, Any]
) -> tuple[mlir.LoweringRuleContext, list[Any], dict[str, Any]]:
    values, kinds, places = _as_they_lay(args[:-1], context.avals_in[:-1], len(args) - 1)
    context = context.replace(avals_in=[*kinds, context.avals_in[-1]])  # type: ignore[no-untyped-call]
    return context, [*values, args[-1]], {**params, **places}


def _as_they_lay(
    values: Sequence[Any], kinds: Sequence[Any], count: int
) -> tuple[list[Any], list[ShapedArray], dict[str, tuple[Order, ...]]]:
    """Parts before their axes moved: XLA would copy them, a kernel need not.

    Of the first `count` a kernel reads a channel at a time, of others vectors of each line.
    """
    found = []
    for place, (value, kind) in enumerate(zip(values, kinds, strict=True)):
        before = as_it_lay(value, kind)
        _, laid_out, _, channels = before
        last = len(kind.shape) - 1
        usual = value, kind, tuple(range(last)), (last,)
        serves = _is_long if place < count else _fills_vectors
        found.append(before if len(channels) == 1 or serves(laid_out.shape[-1]) else usual)
    made, types, orders, joined = zip(*found, strict=True)
    return [*made], [*types], {"orders": orders, "channels": joined}


def _is_long(line: int) -> bool:
    return line >= _LEAST_LINE


def _fills_vectors(line: int) -> bool:
    """Whether a copy takes longer than the vectors that a line leaves empty: a fifth at most."""
    return 4 * -(-line // _VECTOR) * _VECTOR <= 5 * line


_mixed = primitive(
    "mixed",
    _plain_mixed,
    _kernel_mixed,
    ("into", "transposed"),
    several=True,
    through=_mixed_through,
)
"""Parts and a weight, or its transpose, to parts that lie as `into` says."""


def _mixed_jvp(args: Sequence[Any], tangents: Sequence[Any], **params: Any) -> Any:
    *parts, weight = args
    *to_parts, to_weight = tangents
    moved = []
    some = [place for place, tangent in enumerate(to_parts) if varies(tangent)]
    if some:  # those alone, and the channels of the weight that multiply them
        pieces = weight
        if len(some) < len(parts):
            axis = int(params["transposed"])
            apart = jnp.split(weight, _ends([shape_of(part)[-1] for part in parts]), axis)
            pieces = jnp.concatenate([apart[place] for place in some], axis)
        moved.append(_mixed.bind(*(to_parts[place] for place in some), pieces, **params))
    if varies(to_weight):
        moved.append(_mixed.bind(*parts, to_weight, **params))
    return _mixed.bind(*args, **params), [sum(of_result) for of_result in zip(*moved, strict=True)]


def _mixed_transpose(
    sums: Sequence[Any], *args: Any, into: tuple[Lies, ...], transposed: bool
) -> list[Any]:
    *parts, weight = args
    rows = shape_of(parts[0])[:-1]
    g = [_joined(one, lies, rows) for one, lies in zip(instantiated(sums), into, strict=True)]
    if is_unknown(weight):
        x, y = (g, parts) if transposed else (parts, g)
        return [*[None] * len(parts), _mixed_back.bind(*x, *y, count=len(x))]
    found = _mixed.bind(*g, weight, into=_as(parts), transposed=not transposed)
    return [*_if_unknown(parts, found), None]


def _if_unknown(args: Sequence[Any], found: Sequence[Array]) -> list[Array | None]:
    return [one if is_unknown(arg) else None for arg, one in zip(args, found, strict=True)]


def _mixed_batch(args: Sequence[Any], dims: Sequence[int | None], **params: Any) -> Any:
    """A batch is one more axis of rows, unless the weight has it."""
    results = [0] * len(params["into"])
    if dims[-1] is not None:
        return jax.vmap(partial(_plain_mixed, **params), dims)(*args), results
    *parts, weight = args
    size = next(part.shape[dim] for part, dim in zip(parts, dims, strict=False) if dim is not None)
    rows = [
        jnp.broadcast_to(part, (size, *part.shape)) if dim is None else jnp.moveaxis(part, dim, 0)
        for part, dim in zip(parts, dims[:-1], strict=True)
    ]
    return _mixed.bind(*rows, weight, **params), results


# -- gradients of weights -------------------------------------------------------------------


def _plain_back(*args: Array, count: int) -> Array:
    x, g = _side_by_side(args[:count]), _side_by_side(args[count:])
    rows = [*range(x.ndim - 1)]
    return jnp.tensordot(x, g, (rows, rows))


def _kernel_back(*args: Array, count: int, **places: Any) -> Array:
    return product_back(args[:count], args[count:], **places)


def _back_through(
    context: mlir.LoweringRuleContext, args: Sequence[Any], params: dict[str, Any]
) -> tuple[mlir.LoweringRuleContext, list[Any], dict[str, Any]]:
    values, kinds, places = _as_they_lay(args, context.avals_in, params["count"])
    context = context.replace(avals_in=kinds)  # type: ignore[no-untyped-call]
    return context, values, {**params, **places}


_mixed_back = primitive("mixed_back", _plain_back, _kernel_back, ("count",), through=_back_through)
"""Over all rows, the sum of products of two matrices: `count` parts are those of the first."""


def _back_jvp(args: Sequence[Any], tangents: Sequence[Any], *, count: int) -> Any:
    x, g = args[:count], args[count:]
    to_x, to_g = tangents[:count], tangents[count:]
    moved = [(*instantiated(to_x), *g)] if any(map(varies, to_x)) else []
    moved += [(*x, *instantiated(to_g))] if any(map(varies, to_g)) else []
    made = sum(_mixed_back.bind(*of_both, count=count) for of_both in moved)
    return _mixed_back.bind(*args, count=count), made


def _back_transpose(weight: Array, *args: Any, count: int) -> list[Any]:
    x, g = args[:count], args[count:]
    if any(map(is_unknown, x)):
        found = _mixed.bind(*g, weight, into=_as(x), transposed=True)
        return [*_if_unknown(x, found), *[None] * len(g)]
    found = _mixed.bind(*x, weight, into=_as(g), transposed=False)
    return [*[None] * count, *_if_unknown(g, found)]


# -- what transforms do with them -----------------------------------------------------------


ad.primitive_jvps[_mixed] = _mixed_jvp
ad.primitive_transposes[_mixed] = _mixed_transpose
batching.primitive_batchers[_mixed] = _mixed_batch
ad.primitive_jvps[_mixed_back] = _back_jvp
ad.primitive_transposes[_mixed_back] = _back_transpose
batching.primitive_batchers[_mixed_back] = by_vmap(_plain_back)
