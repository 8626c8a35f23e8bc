"""The compiled kernels as functions of arrays, for programs that XLA compiles for one CPU device.

In: arrays of float32, and how their axes are read. Out: what `xla.cpp` makes of them. Importing
this file makes the kernels known to XLA where they were compiled for this processor (`AVAILABLE`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from itertools import product
from math import inf, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray

from symcompile_kernels.build import X86, library, runs_here

__all__ = [
    "AVAILABLE",
    "MOST",
    "WIDE",
    "all_gradients",
    "are_plain",
    "gradients_from",
    "outer_product",
    "product_back",
    "product_of_parts",
    "sum_of_products",
    "two_sums",
]

MOST = 8
"""Products, terms and axes of a sum that `kernels.hpp` has room for."""

_NAMES = ("linear_sum", "sums", "outer", "back", "back_from", "mixed", "mixed_back")
"""The handlers of `xla.cpp`."""


@cache
def _target(name: str, kind: str) -> str:
    """What XLA knows a kernel as: others come from other sources."""
    return f"symcompile_{name}_{library(kind, host='xla').stem}".replace("-", "_")


def _register(kind: str) -> bool:
    """Make the kernels for a kind of processor known to XLA, if they are there."""
    if not runs_here(kind):
        return False
    try:
        made = ctypes.CDLL(str(library(kind, host="xla")))
        for name in _NAMES:
            handler = jax.ffi.pycapsule(  # type: ignore[no-untyped-call]
                getattr(made, f"symcompile_{name}")
            )
            jax.ffi.register_ffi_target(_target(name, kind), handler, platform="cpu")
    except (OSError, RuntimeError):
        return False
    return True


_FOUND = [kind for kind in (*X86, "DEFAULT") if _register(kind)]
"""Kinds of processor that kernels are there for, that of the widest vectors first."""

AVAILABLE = bool(_FOUND)
"""Whether the kernels are there."""

WIDE = bool({*_FOUND} & {*X86})
"""Whether products of many channels are as quick as XLA's own: not by the narrowest vectors."""


def are_plain(*values: Array) -> bool:
    """Arrays of float32 for a CPU, of known sizes, whose types name no mesh of devices."""
    kinds = [jax.typeof(value) for value in values]
    return (
        AVAILABLE
        and jax.default_backend() == "cpu"
        and all(kind.dtype == jnp.float32 and kind.sharding.mesh.empty for kind in kinds)
        and all(isinstance(size, int) for kind in kinds for size in kind.shape)
    )


def _call(name: str, width: float, results: Any, *args: Array, **numbers: Any) -> Any:
    """Call a handler of `xla.cpp`, by the narrowest vectors that hold `width` channels.

    Args:
        width: inf for the widest vectors.
        results: the shape of the result, or a list of shapes.
    """
    kind = _FOUND[-1 if width <= 8 else 0]
    several = isinstance(results, list)
    made = [ShapedArray(shape, jnp.float32) for shape in (results if several else [results])]
    given = {
        key: np.float32(value) if isinstance(value, float) else np.array(value, np.int64)
        for key, value in numbers.items()
    }
    call = jax.ffi.ffi_call(_target(name, kind), made if several else made[0])
    return call(*args, **given)


def _steps(shape: Sequence[int]) -> list[int]:
    """From one entry to the next along every axis but the channels'; 0 where there is one only."""
    return [prod(shape[axis + 1 :]) if size > 1 else 0 for axis, size in enumerate(shape[:-1])]


def _lines(shape: Sequence[int], channels: Sequence[int]) -> list[int]:
    """Where the lines begin that the channels of a row lie in, the last axis of several being one
    line."""
    axes = [axis for axis in channels[:-1] if shape[axis] != 1]
    if not prod(shape) or axes == [*range(len(shape) - len(axes) - 1, len(shape) - 1)]:
        return [0]  # all side by side
    places = product(*(range(shape[axis]) for axis in axes))
    steps = [prod(shape[axis + 1 :]) for axis in axes]
    return [sum(k * step for k, step in zip(place, steps, strict=True)) for place in places]


def sum_of_products(
    x: Sequence[Array],
    weights: Sequence[Array],
    terms: Sequence[Array],
    *,
    sources: Sequence[int],
    orders: Sequence[Sequence[int]],
    channels: Sequence[Sequence[int]],
    shape: tuple[int, ...],
) -> Array:
    """The sum of products `x[sources[i]] @ weights[i]`, and of terms, of shape `shape`.

    orders[i] are the axes of rows of what is multiplied, in the order of the sum's, channels[i]
    those that are its channels.
    """
    *rows, width = shape
    x_step, term_step = [], []
    for source, order in zip(sources, orders, strict=True):
        steps = _steps(x[source].shape)
        x_step += [steps[axis] for axis in order]
    lines = [_lines(x[source].shape, axes) for source, axes in zip(sources, channels, strict=True)]
    # The channels alone must lie side by side.
    spread = [jnp.broadcast_to(term, (*term.shape[:-1], width)) for term in terms]
    for term in spread:
        term_step += [0] * (len(shape) - term.ndim) + _steps(term.shape)
    made: Array = _call(
        "linear_sum",
        width,
        shape,
        *(x[source] for source in sources),
        *weights,
        *spread,
        shape=rows,
        depth=[weight.shape[0] for weight in weights],
        lines=[len(places) for places in lines],
        line=[place for places in lines for place in places],
        x_step=x_step,
        term_step=term_step,
    )
    return made


def two_sums(
    x: Array, *, axis: int, mean: bool, order: Sequence[int], channels: Sequence[int]
) -> list[Array]:
    """The sums, or means, over an axis and over the one after it: of x with its axes of rows in
    `order`, and after them `channels`, joined."""
    last = x.ndim
    # What follows both axes must lie side by side: of that, what does not is one more axis before.
    before, (first, second), after = order[:axis], order[axis : axis + 2], order[axis + 2 :]
    lead = [*after, *channels]
    while lead and lead[-1] == last - 1:
        last = lead.pop()
    axes = [*before, *lead, first, second]
    shape, steps = ([sizes[place] for place in axes] for sizes in (x.shape, _steps(x.shape)))
    if len(shape) > MOST:  # they lie as they are read
        shape = [prod(shape[:-2]), *shape[-2:]]
        steps = [x.size // shape[0] if shape[0] else 0, *steps[-2:]]
    *_, rows, count = shape
    width = x.shape[last:]
    outer = [x.shape[place] for place in (*before, *lead)]
    made: list[Array] = _call(
        "sums",
        prod(width),
        [(*outer, count, *width), (*outer, rows, *width)],
        x,
        shape=(*shape, prod(width)),
        x_step=steps,
        row_scale=_scale(rows, mean),
        count_scale=_scale(count, mean),
    )
    joined = [*(x.shape[place] for place in after), prod(x.shape[place] for place in channels)]
    return [
        jnp.moveaxis(one, len(outer), axis).reshape(*outer[:axis], size, *joined)
        for one, size in zip(made, (count, rows), strict=True)
    ]


def _scale(count: int, mean: bool) -> float:
    """What a sum is multiplied by: the mean of nothing is no number."""
    return (1 / count if count else inf) if mean else 1.0


def outer_product(x: Array, g: Array, *, order: Sequence[int]) -> Array:
    """Over all rows, the sum of products of x, its axes in `order`, and g."""
    steps = _steps(x.shape)
    made: Array = _call(
        "outer",
        g.shape[-1],
        (x.shape[-1], g.shape[-1]),
        x,
        g,
        shape=g.shape[:-1],
        x_step=[steps[axis] for axis in order],
        g_step=_steps(g.shape),
    )
    return made


def all_gradients(g: Array, x: Array, weight: Array, *, axis: int) -> list[Array]:
    """The gradients of x, weight and two terms, of a sum of `x @ weight` and terms that were
    broadcast over `axis` and over the axis after it."""
    before, (rows, count), after = g.shape[:axis], g.shape[axis : axis + 2], g.shape[axis + 2 :]
    made: list[Array] = _call(
        "back",
        min(weight.shape),
        [x.shape, weight.shape, (*before, count, *after), (*before, rows, *after)],
        g,
        x,
        weight.T,
        shape=(prod(before), rows, count, prod(after[:-1])),
    )
    return made


def gradients_from(
    g: Array, x: Array, weight: Array, first: Array, second: Array, *, axis: int
) -> list[Array]:
    """The gradients of x and weight: of `x @ weight`, and of the sums of x over `axis` and over the
    axis after it, whose gradients are `first` and `second`."""
    before, (rows, count), after = g.shape[:axis], g.shape[axis : axis + 2], g.shape[axis + 2 :]
    made: list[Array] = _call(
        "back_from",
        min(weight.shape),
        [x.shape, weight.shape],
        g,
        x,
        weight.T,
        first,
        second,
        shape=(prod(before), rows, count, prod(after[:-1])),
    )
    return made


def product_of_parts(
    parts: Sequence[Array],
    weight: Array,
    *,
    into: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]],
    transposed: bool,
    orders: Sequence[Sequence[int]],
    channels: Sequence[Sequence[int]],
) -> list[Array]:
    """The product of a matrix in parts and a weight, or its transpose, in parts.

    orders[i] are the axes of rows of part i, channels[i] those that are its channels. into[i] are
    the sizes of the axes that the channels of result i are, the order in which its last axes lie,
    and the shape they are joined to.
    """
    rows = [parts[0].shape[axis] for axis in orders[0]]
    x = _side("x", parts, orders, channels)
    y, shapes, as_rows, as_channels = [], [], [], []
    for sizes, order, joined in into:
        apart = [*rows, *sizes]
        first = len(apart) - len(order)
        lies = [*range(first), *(first + axis for axis in order)]
        places = [lies.index(axis) for axis in range(len(apart))]
        y.append(ShapedArray(tuple(apart[axis] for axis in lies), jnp.float32))
        shapes.append((*y[-1].shape[:first], *(joined or y[-1].shape[first:])))
        as_rows.append(places[: len(rows)])
        as_channels.append(places[len(rows) :])
    width = sum(prod(sizes) for sizes, *_ in into)
    if not prod(rows) * sum(x["x_width"]) * width:  # the kernel would write nothing
        return [jnp.zeros(shape, jnp.float32) for shape in shapes]
    made: list[Array] = _call(
        "mixed",
        inf,
        shapes,
        *parts,
        weight,
        shape=rows or [1],
        transposed=[int(transposed)],
        **x,
        **_side("y", y, as_rows, as_channels),
    )
    return made


def product_back(
    x: Sequence[Array],
    g: Sequence[Array],
    *,
    orders: Sequence[Sequence[int]],
    channels: Sequence[Sequence[int]],
) -> Array:
    """Over all rows, the sum of products of two matrices in parts: the gradient of a weight.

    orders and channels are those of the parts of x and then of g, as for `product_of_parts`.
    """
    rows = [x[0].shape[axis] for axis in orders[0]]
    count = len(x)
    of_x = _side("x", x, orders[:count], channels[:count])
    of_g = _side("g", g, orders[count:], channels[count:])
    shape = sum(of_x["x_width"]), sum(of_g["g_width"])
    if not prod(rows):  # the kernel would write nothing
        return jnp.zeros(shape, jnp.float32)
    made: Array = _call("mixed_back", inf, shape, *x, *g, shape=rows or [1], **of_x, **of_g)
    return made


def _side(
    name: str,
    parts: Sequence[Array | ShapedArray],
    orders: Sequence[Sequence[int]],
    channels: Sequence[Sequence[int]],
) -> dict[str, list[int]]:
    """Where the parts of a matrix lie, as attributes that begin with its name."""
    shapes = [part.shape for part in parts]
    steps = [
        [_steps(shape)[axis] for axis in order] or [0]
        for shape, order in zip(shapes, orders, strict=True)
    ]
    lines = [_lines(shape, axes) for shape, axes in zip(shapes, channels, strict=True)]
    return {
        f"{name}_step": [step for of_part in steps for step in of_part],
        f"{name}_width": [
            prod(shape[axis] for axis in axes) for shape, axes in zip(shapes, channels, strict=True)
        ],
        f"{name}_lines": [len(places) for places in lines],
        f"{name}_line": [place for places in lines for place in places],
    }
