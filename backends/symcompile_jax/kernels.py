"""Primitives for CPU that XLA lacks: sums of products and terms, and pairs of means, in one go.

In: arrays of float32, of many rows of few channels. Out: `linear_sum` and `two_means`, which every
transform of JAX knows: jit, vmap, derivatives of any degree, remat, export, shardings. XLA takes
an op, and a pass over memory, for every product, every term and every mean; and large arrays of
few channels take as long as it takes to read and write them. (Of many channels: `products`.)

The one thing to know: every primitive has two lowerings. Programs for one CPU device call the
kernels; all others, exported ones too, get XLA's own ops. Generated modules use the primitives
where this module was imported before them and finds kernels (`AVAILABLE`), and the same ops if not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.interpreters import ad, batching, mlir

from symcompile_jax.handlers import (
    AVAILABLE,
    MOST,
    all_gradients,
    are_plain,
    gradients_from,
    outer_product,
    sum_of_products,
    two_sums,
)
from symcompile_jax.primitives import (
    Order,
    as_it_lay,
    by_vmap,
    derived,
    instantiated,
    inverse,
    is_unknown,
    primitive,
    shape_of,
    transposed,
    varies,
)
from symcompile_jax.products import mixed, mixed_fit
from symcompile_kernels.build import cores

__all__ = [
    "AVAILABLE",
    "fits",
    "linear_sum",
    "mixed",
    "mixed_fit",
    "two_means",
    "two_means_fit",
    "two_means_held",
]

Product: TypeAlias = tuple[Array, Array, Order]
"""An array, its weight, and the axes of the array in the order of the sum's, without channels."""

Written: TypeAlias = Sequence[Any]
"""A product as generated modules write it: the parts of what is multiplied, side by side, the
weight, and unless nothing moves the index axes in the order of the sum's."""

_FEWEST = 2**17
"""Entries of a result from which a kernel is the quickest."""

_DEEPEST = 512
"""Channels of all that is multiplied together up to which a kernel is the quickest."""


# -- when they serve ------------------------------------------------------------------------


def fits(products: Sequence[Written], terms: Sequence[Array]) -> bool:
    """Whether a kernel is there and the quickest: on CPU, for many rows of few channels."""
    (x, *_), weight, *_ = products[0]
    values = [value for parts, weight, *_ in products for value in (*parts, weight)]
    return (
        weight.shape[1] > 1
        and are_plain(*values, *terms)
        and prod(x.shape[:-1]) * weight.shape[1] >= _FEWEST
        and _have_room(sum(len(parts) for parts, *_ in products), len(terms), x.ndim - 1)
        and max(sum(w.shape[0] for _, w, *_ in products), 2 * weight.shape[1]) <= _DEEPEST
    )


def two_means_fit(x: Array, axis: int) -> bool:
    """Whether a kernel is there and the quickest for the means over an axis and the next one."""
    axis %= x.ndim
    return (
        are_plain(x)
        and x.size >= _FEWEST
        # Threads, as many as cores, take four rows at a time.
        and prod(x.shape[:axis]) * -(-x.shape[axis] // 4) >= 2 * cores()
        and prod(x.shape[axis + 2 :]) > 1
    )


def _have_room(products: int, terms: int, axes: int) -> bool:
    return max(products, terms, axes) <= MOST and axes > 0


# -- sums of products -----------------------------------------------------------------------


def linear_sum(
    products: Sequence[Written], terms: Sequence[Array], held: Array | None = None
) -> Array:
    """The sum of products and of terms, broadcast to the first product.

    Args:
        held: of `two_means_held` of the one x and the one weight: takes their derivatives.
    """
    if held is not None and len(products) != 1:
        raise ValueError(f"found {len(products)} products, expected the one that is held")
    made: list[Product] = []
    for parts, weight, *axes in products:
        moved = axes[0] if axes else ()
        batch = parts[0].ndim - 1 - len(moved)
        order = (*range(batch), *(batch + axis for axis in moved))
        ends = np.cumsum([part.shape[-1] for part in parts])[:-1]
        pieces = jnp.split(weight, ends)
        made += [(part, piece, order) for part, piece in zip(parts, pieces, strict=True)]
    (x, *_), weight, *_ = products[0]
    return _sum(made, terms, (*x.shape[:-1], weight.shape[1]), held)


def _sum(
    products: Sequence[Product],
    terms: Sequence[Array],
    shape: tuple[int, ...],
    held: Array | None = None,
) -> Array:
    """The sum of products and of terms, broadcast to `shape`."""
    if max(len(products), len(terms)) > MOST:
        rest = _sum(products[MOST:], terms[MOST:], shape)
        return _sum(products[:MOST], terms[:MOST], shape, held) + rest
    values: list[Array] = []
    sources = []
    for x, _, _ in products:
        # Of equal values the gradients come back together.
        known = [place for place, value in enumerate(values) if value is x]
        values += [] if known else [x]
        sources.append(known[0] if known else len(values) - 1)
    zeros = [] if held is None else [held]
    args = (*values, *(weight for _, weight, _ in products), *terms, *zeros)
    orders = tuple(order for _, _, order in products)
    how = _linear_sum.bind if 1 < len(shape) <= MOST + 1 else _plain_sum
    made: Array = how(*args, sources=tuple(sources), orders=orders, shape=shape, held=bool(zeros))
    return made


def _parts(args: Sequence[Any], sources: Sequence[int]) -> tuple[list[Any], list[Any], list[Any]]:
    """What is multiplied, the weights, the terms."""
    first = max(sources, default=-1) + 1
    second = first + len(sources)
    return list(args[:first]), list(args[first:second]), list(args[second:])


def _plain_sum(
    *args: Array,
    sources: Sequence[int],
    orders: Sequence[Order],
    shape: tuple[int, ...],
    held: bool,
) -> Array:
    """The last of the arguments is known to be zero if it is `held`."""
    x, weights, terms = _parts(args[:-1] if held else args, sources)
    products = [
        jnp.transpose(x[source] @ weight, (*order, len(order)))
        for source, weight, order in zip(sources, weights, orders, strict=True)
    ]
    return jnp.broadcast_to(sum([*products[1:], *terms], *products[:1]), shape)


def _kernel_sum(*args: Array, sources: Sequence[int], held: bool, **params: Any) -> Array:
    made = _parts(args[:-1] if held else args, sources)
    return sum_of_products(*made, sources=sources, **params)


def _sum_through(
    context: mlir.LoweringRuleContext, args: Sequence[Any], params: dict[str, Any]
) -> tuple[mlir.LoweringRuleContext, list[Any], dict[str, Any]]:
    """What is multiplied as it was before its axes moved: XLA would copy it, a kernel need not."""
    sources, orders = params["sources"], list(params["orders"])
    values, kinds = list(args), list(context.avals_in)
    channels = {}
    for place in {*sources}:
        found = as_it_lay(values[place], kinds[place])
        values[place], kinds[place], rows, channels[place] = found
        for k, source in enumerate(sources):
            if source == place:
                orders[k] = tuple(rows[axis] for axis in orders[k])
    context = context.replace(avals_in=kinds)  # type: ignore[no-untyped-call]
    of_each = tuple(channels[source] for source in sources)
    return context, values, {**params, "orders": tuple(orders), "channels": of_each}


_linear_sum = primitive(
    "linear_sum",
    _plain_sum,
    _kernel_sum,
    ("sources", "orders", "shape", "held"),
    through=_sum_through,
)


def _linear_sum_jvp(args: Sequence[Any], tangents: Sequence[Any], **params: Any) -> Any:
    sources, orders = params["sources"], params["orders"]
    x, weights, _ = _parts(args, sources)
    to_x, to_weights, to_terms = _parts(tangents, sources)
    whole = [*zip(sources, weights, to_weights, orders, strict=True)]
    whole = [] if params["held"] else whole  # what is held has the derivatives of the product
    products = [(to_x[source], w, order) for source, w, _, order in whole if varies(to_x[source])]
    products += [(x[source], to_w, order) for source, _, to_w, order in whole if varies(to_w)]
    terms = [term for term in to_terms if varies(term)]
    return _linear_sum.bind(*args, **params), _sum(products, terms, params["shape"])


def _linear_sum_transpose(g: Any, *args: Any, **params: Any) -> list[Any]:
    """Gradients of all that is unknown."""
    sources, orders = params["sources"], params["orders"]
    x, weights, terms = _parts(args, sources)
    to_x: list[Any] = [None] * len(x)
    to_weights: list[Any] = [None] * len(weights)
    to_terms = {}
    pair, usual = _pair(terms, params["shape"]), _usual(x, weights, sources, orders)
    if pair and usual:  # read everything once
        (axis, first, second), (of_x, of_weight) = pair, usual
        known = x[sources[of_weight]], weights[sources.index(of_x)]
        found = _back.bind(g, *known, axis=axis)
        to_x[of_x], to_weights[of_weight], to_terms[first], to_terms[second] = found
    else:
        products = [*zip(sources, weights, orders, strict=True)]
        for place, value in enumerate(x):
            if is_unknown(value):
                back = [(g, w.T, inverse(order)) for at, w, order in products if at == place]
                to_x[place] = _sum(back, [], shape_of(value))
        for place, (source, weight, order) in enumerate(products):
            if is_unknown(weight):
                to_weights[place] = _outer.bind(x[source], g, order=order)
        if pair:
            axis, first, second = pair
            to_terms[first], to_terms[second] = _sums.bind(g, axis=axis, mean=False)
    return [*to_x, *to_weights, *_of_terms(g, terms, to_terms)]


def _usual(
    x: Sequence[Any], weights: Sequence[Any], sources: Sequence[int], orders: Sequence[Order]
) -> tuple[int, int] | None:
    """Of one product that nothing is moved in: the places of unknown x and unknown weight.

    Its derivative is the sum of two products, of which either x or weight is unknown.
    """
    of_x, of_weight = (
        [place for place, value in enumerate(values) if is_unknown(value)]
        for values in (x, weights)
    )
    if not len(of_x) == len(of_weight) == 1 or len(sources) != 2 or len(x) != 2:
        return None
    moved = any(order != tuple(range(len(order))) for order in orders)
    return None if moved or shape_of(x[0]) != shape_of(x[1]) else (of_x[0], of_weight[0])


def _pair(terms: Sequence[Any], full: Sequence[int]) -> tuple[int, int, int] | None:
    """An axis, and two unknown terms broadcast over it alone and over the one after it alone."""
    over = {
        tuple(_lacking(shape_of(term), full)): place
        for place, term in enumerate(terms)
        if is_unknown(term)
    }
    pairs = [(axis, (axis,), (axis + 1,)) for axis in range(len(full) - 2)]
    return next(
        ((axis, over[one], over[two]) for axis, one, two in pairs if {one, two} <= {*over}), None
    )


def _lacking(shape: tuple[int, ...], full: Sequence[int]) -> list[int]:
    """The axes that an array is broadcast over."""
    padded = (1,) * (len(full) - len(shape)) + shape
    return [axis for axis, size in enumerate(padded) if size != full[axis]]


def _of_terms(g: Array, terms: Sequence[Any], made: dict[int, Array]) -> list[Array | None]:
    """Gradients of terms: sums over the axes they were broadcast over."""
    found: list[Array | None] = []
    for place, term in enumerate(terms):
        shape = shape_of(term)
        summed = made[place] if place in made else g.sum(_lacking(shape, g.shape))
        found.append(summed.reshape(shape) if is_unknown(term) else None)
    return found


def _linear_sum_batch(args: Sequence[Any], dims: Sequence[int | None], **params: Any) -> Any:
    """A batch is one more axis of rows, unless the weights have it, or x lacks it."""
    sources, orders, shape = params["sources"], params["orders"], params["shape"]
    of_x, of_weights, of_terms = _parts(dims, sources)
    weighted = any(dim is not None for dim in of_weights)
    if not of_x or None in of_x or weighted or not _have_room(0, 0, len(shape)):
        return jax.vmap(partial(_plain_sum, **params), dims)(*args), 0
    first = [
        arg if dim is None else jnp.moveaxis(arg, dim, 0)
        for arg, dim in zip(args, dims, strict=True)
    ]
    x, weights, terms = _parts(first, sources)
    for place, dim in enumerate(of_terms):
        if dim is not None:
            size, *others = terms[place].shape
            missing = len(shape) - len(others)
            terms[place] = terms[place].reshape(size, *[1] * missing, *others)
    size = next(arg.shape[dim] for arg, dim in zip(args, dims, strict=True) if dim is not None)
    y = _linear_sum.bind(
        *x,
        *weights,
        *terms,
        sources=sources,
        orders=tuple((0, *(axis + 1 for axis in order)) for order in orders),
        shape=(size, *shape),
        held=params["held"],
    )
    return y, 0


# -- sums over two axes ---------------------------------------------------------------------


def two_means(x: Array, axis: int) -> tuple[Array, Array]:
    """The means over an axis and over the one after it."""
    first, second = _sums.bind(x, axis=axis % x.ndim, mean=True)
    return first, second


def _plain_sums(x: Array, *, axis: int, mean: bool) -> list[Array]:
    how = jnp.mean if mean else jnp.sum
    return [how(x, axis), how(x, axis + 1)]


def _sums_through(
    context: mlir.LoweringRuleContext, args: Sequence[Any], params: dict[str, Any]
) -> tuple[mlir.LoweringRuleContext, list[Any], dict[str, Any]]:
    """As it was before its axes moved; XLA moves those of the means, which are small."""
    kind: Any = context.avals_in[0]
    x, laid_out, rows, channels = as_it_lay(args[0], kind)
    if len(laid_out.shape) > MOST:
        x, laid_out = args[0], kind
        rows, channels = tuple(range(len(kind.shape) - 1)), (len(kind.shape) - 1,)
    context = context.replace(avals_in=[laid_out])  # type: ignore[no-untyped-call]
    return context, [x], {**params, "order": rows, "channels": channels}


_sums = primitive(
    "sums", _plain_sums, two_sums, ("axis", "mean"), several=True, through=_sums_through
)


def _sums_transpose(sums: Sequence[Any], x: Any, *, axis: int, mean: bool) -> list[Any]:
    """Both repeated along the axes they lack; XLA adds them to what else the gradient is of."""
    shape = shape_of(x)
    spread = [
        jnp.expand_dims(one / shape[axis + k] if mean else one, axis + k)
        for k, one in enumerate(sums)
        if varies(one)
    ]
    return [jnp.broadcast_to(sum(spread), shape)]


def _sums_batch(args: Any, dims: Any, *, axis: int, mean: bool) -> Any:
    return _sums.bind(jnp.moveaxis(args[0], dims[0], 0), axis=axis + 1, mean=mean), [0, 0]


# -- sums over two axes, and what holds a product's derivatives -------------------------------


def two_means_held(x: Array, weight: Array, axis: int) -> tuple[Array, Array, Array | None]:
    """As `two_means`, of an x that `linear_sum` will multiply by a weight; and zeros, held for it.

    They have the shape of the product and its derivatives: so those of x and weight are made
    together with those of the means, reading x once. Nothing else reads them: under jit no memory
    is taken for them. Where nothing is traced there are none.
    """
    if axis % x.ndim > x.ndim - 3:
        raise ValueError(f"found axis {axis} of {x.shape}, expected one with an axis and channels")
    if not isinstance(x, jax.core.Tracer) and not isinstance(weight, jax.core.Tracer):
        return *two_means(x, axis), None
    first, second, held = _held.bind(x, weight, axis=axis % x.ndim)
    return first, second, held


def _plain_held(x: Array, weight: Array, *, axis: int) -> list[Array]:
    zeros = jnp.zeros((*x.shape[:-1], weight.shape[1]), x.dtype)
    return [*_sums.bind(x, axis=axis, mean=True), zeros]


_held = primitive("held", _plain_held, _plain_held, ("axis",), several=True)


def _held_jvp(args: Sequence[Any], tangents: Sequence[Any], *, axis: int) -> Any:
    (x, weight), (to_x, to_weight) = args, tangents
    made = _held.bind(x, weight, axis=axis)
    if varies(to_x) and varies(to_weight):
        return made, _joint.bind(to_x, to_weight, x, weight, axis=axis)
    order, shape = tuple(range(x.ndim - 1)), (*x.shape[:-1], weight.shape[1])
    if varies(to_x):
        sums = _sums.bind(to_x, axis=axis, mean=True)
        return made, [*sums, _sum([(to_x, weight, order)], [], shape)]
    zeros = [ad.Zero(jax.typeof(one)) for one in made[:2]]
    return made, [*zeros, _sum([(x, to_weight, order)], [], shape)]


def _held_transpose(sums: Sequence[Any], x: Any, weight: Any, *, axis: int) -> list[Any]:
    """The zeros depend on nothing."""
    return [*_sums_transpose(instantiated(sums[:2]), x, axis=axis, mean=True), None]


def _held_batch(args: Any, dims: Any, *, axis: int) -> Any:
    (x, weight), (of_x, of_weight) = args, dims
    if of_weight is None:
        return _held.bind(jnp.moveaxis(x, of_x, 0), weight, axis=axis + 1), [0, 0, 0]
    return jax.vmap(partial(_plain_held, axis=axis), dims)(x, weight), [0, 0, 0]


def _joint_apart(
    to_x: Array, to_weight: Array, x: Array, weight: Array, *, axis: int
) -> list[Array]:
    """The derivatives of both means and of the product."""
    order, shape = tuple(range(x.ndim - 1)), (*x.shape[:-1], weight.shape[1])
    product = _sum([(to_x, weight, order), (x, to_weight, order)], [], shape)
    return [*_sums.bind(to_x, axis=axis, mean=True), product]


_joint = primitive("joint", _joint_apart, _joint_apart, ("axis",), several=True)
"""Linear in the first two arguments together; its transpose is what all this is for."""


def _joint_transpose(cotangents: Sequence[Any], *args: Any, axis: int) -> list[Any]:
    first, second, g = cotangents
    to_x, to_weight, x, weight = args
    both = is_unknown(to_x) and is_unknown(to_weight)
    if both and not varies(g):
        return [*_sums_transpose([first, second], to_x, axis=axis, mean=True), None, None, None]
    if both and not is_unknown(x) and not is_unknown(weight):
        scaled = [one / x.shape[axis + k] for k, one in enumerate(instantiated([first, second]))]
        return [*_back_from.bind(g, x, weight, *scaled, axis=axis), None, None]
    return transposed(_joint_apart)(cotangents, *args, axis=axis)  # type: ignore[no-any-return]


# -- outer products -------------------------------------------------------------------------


def _plain_outer(x: Array, g: Array, *, order: Order) -> Array:
    return jnp.tensordot(x, g, (list(order), list(range(len(order)))))


def _outer_through(
    context: mlir.LoweringRuleContext, args: Sequence[Any], params: dict[str, Any]
) -> tuple[mlir.LoweringRuleContext, list[Any], dict[str, Any]]:
    x, kind, rows, channels = as_it_lay(args[0], context.avals_in[0])
    if len(channels) > 1:
        return context, [*args], params
    context = context.replace(avals_in=[kind, context.avals_in[1]])  # type: ignore[no-untyped-call]
    return context, [x, args[1]], {"order": tuple(rows[axis] for axis in params["order"])}


_outer = primitive("outer", _plain_outer, outer_product, ("order",), through=_outer_through)
"""The gradient of a weight: over all rows, the sum of products of x, its axes in `order`, and g."""


def _outer_jvp(args: Sequence[Any], tangents: Sequence[Any], *, order: Order) -> Any:
    (x, g), (to_x, to_g) = args, tangents
    moved = [(to_x, g)] if varies(to_x) else []
    moved += [(x, to_g)] if varies(to_g) else []
    made = sum(_outer.bind(*pair, order=order) for pair in moved)
    return _outer.bind(x, g, order=order), made


def _outer_transpose(weight: Array, x: Any, g: Any, *, order: Order) -> list[Any]:
    if is_unknown(x):
        return [_sum([(g, weight.T, inverse(order))], [], shape_of(x)), None]
    return [None, _sum([(x, weight, order)], [], shape_of(g))]


# -- all gradients at once ------------------------------------------------------------------


def _apart(g: Array, x: Array, weight: Array, *, axis: int) -> list[Array]:
    """What `all_gradients` makes, one after the other."""
    order = tuple(range(g.ndim - 1))
    sums = _sums.bind(g, axis=axis, mean=False)
    return [_sum([(g, weight.T, order)], [], x.shape), _outer.bind(x, g, order=order), *sums]


_back = primitive("back", _apart, all_gradients, ("axis",), several=True)


def _apart_from(
    g: Array, x: Array, weight: Array, first: Array, second: Array, *, axis: int
) -> list[Array]:
    """What `gradients_from` makes, one after the other."""
    order = tuple(range(g.ndim - 1))
    terms = [jnp.expand_dims(first, axis), jnp.expand_dims(second, axis + 1)]
    return [_sum([(g, weight.T, order)], terms, x.shape), _outer.bind(x, g, order=order)]


_back_from = primitive("back_from", _apart_from, gradients_from, ("axis",), several=True)


# -- what transforms do with them -----------------------------------------------------------


ad.primitive_jvps[_linear_sum] = _linear_sum_jvp
ad.primitive_transposes[_linear_sum] = _linear_sum_transpose
batching.primitive_batchers[_linear_sum] = _linear_sum_batch
ad.deflinear2(_sums, _sums_transpose)  # type: ignore[no-untyped-call]
batching.primitive_batchers[_sums] = _sums_batch
ad.primitive_jvps[_outer] = _outer_jvp
ad.primitive_transposes[_outer] = _outer_transpose
batching.primitive_batchers[_outer] = by_vmap(_plain_outer)
ad.primitive_jvps[_held] = _held_jvp
ad.primitive_transposes[_held] = _held_transpose
batching.primitive_batchers[_held] = _held_batch
ad.primitive_transposes[_joint] = _joint_transpose
for _made_at_once, _made_apart in (
    (_joint, _joint_apart),
    (_back, _apart),
    (_back_from, _apart_from),
):
    ad.primitive_jvps[_made_at_once] = derived(_made_apart)
    ad.primitive_transposes.setdefault(_made_at_once, transposed(_made_apart))
    batching.primitive_batchers[_made_at_once] = by_vmap(_made_apart)
