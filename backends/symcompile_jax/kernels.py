"""Primitives for CPU that XLA lacks: sums of products and terms, and pairs of means, in one go.

In: arrays of float32, of many rows of few channels. Out: `linear_sum` and `two_means`, which every
transform of JAX knows: jit, vmap, derivatives of any degree, remat, export, shardings. XLA takes
an op, and a pass over memory, for every product, every term and every mean; and large arrays of
few channels take as long as it takes to read and write them.

The one thing to know: every primitive has two lowerings. The kernels of `symcompile_kernels` serve
programs for one CPU device; all others, exported ones too, get XLA's own ops. Generated modules use
the primitives if this module is imported before them and was compiled for this processor when
symcompile was installed (`AVAILABLE`), and the same ops if not.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from symcompile_kernels.build import X86, library, runs_here

__all__ = ["AVAILABLE", "fits", "linear_sum", "two_means", "two_means_fit"]

Order: TypeAlias = tuple[int, ...]
Product: TypeAlias = tuple[Array, Array, Order]
"""An array, its weight, and the axes of the array in the order of the sum's, without channels."""

Written: TypeAlias = Sequence[Any]
"""A product as generated modules write it: the parts of what is multiplied, side by side, the
weight, and unless nothing moves the index axes in the order of the sum's."""

_MOST = 8
"""Products, terms and axes of a sum that `kernels.hpp` has room for."""

_FEWEST = 2**17
"""Entries of a result from which a kernel is the quickest."""

_DEEPEST = 512
"""Channels of all that is multiplied together up to which a kernel is the quickest."""


def _register(kind: str) -> bool:
    """Make the kernels for a kind of processor known to XLA, if they were compiled."""
    if not runs_here(kind):
        return False
    try:
        made = ctypes.CDLL(str(library(kind, host="xla")))
        for name in ("linear_sum", "sums", "outer", "back"):
            handler = jax.ffi.pycapsule(getattr(made, f"symcompile_{name}"))
            jax.ffi.register_ffi_target(f"symcompile_{name}_{kind}", handler, platform="cpu")
    except (OSError, RuntimeError):
        return False
    return True


_FOUND = [kind for kind in (*X86, "DEFAULT") if _register(kind)]
"""Kinds of processor that kernels are there for, that of the widest vectors first."""

AVAILABLE = bool(_FOUND)
"""Whether the kernels are there."""


# -- when they serve, and how ---------------------------------------------------------------


def fits(products: Sequence[Written], terms: Sequence[Array]) -> bool:
    """Whether a kernel is there and the quickest: on CPU, for many rows of few channels."""
    (x, *_), weight, *_ = products[0]
    values = [value for parts, weight, *_ in products for value in (*parts, weight)]
    return (
        prod(x.shape[:-1]) * weight.shape[1] >= _FEWEST
        and _have_room(sum(len(parts) for parts, *_ in products), len(terms), x.ndim - 1)
        and max(sum(w.shape[0] for _, w, *_ in products), 2 * weight.shape[1]) <= _DEEPEST
        and all(_fill_vectors(value.shape[-1]) for value in values)
        and _are_plain(*values, *terms)
    )


def two_means_fit(x: Array, axis: int) -> bool:
    """Whether a kernel is there and the quickest for the means over an axis and the next one."""
    axis %= x.ndim
    rows = prod(x.shape[:axis]) * -(-x.shape[axis] // 4)
    return (
        x.size >= _FEWEST
        and rows >= 2 * (os.cpu_count() or 1)  # four rows make a part, and threads share the parts
        and _fill_vectors(prod(x.shape[axis + 2 :]))
        and _are_plain(x)
    )


def _have_room(products: int, terms: int, axes: int) -> bool:
    return max(products, terms, axes) <= _MOST and axes > 0


def _fill_vectors(channels: int) -> bool:
    """Whether the vectors of a processor are well filled: if not, XLA is as fast or faster."""
    return channels % 8 == 0 or channels > 16


def _are_plain(*values: Array) -> bool:
    """Arrays of float32 for a CPU, whose types name no mesh of devices."""
    kinds = [jax.typeof(value) for value in values]
    return (
        AVAILABLE
        and jax.default_backend() == "cpu"
        and all(kind.dtype == jnp.float32 for kind in kinds)
        and all(kind.sharding.mesh.empty for kind in kinds)
    )


def _is_for_kernels(module: mlir.ModuleContext) -> bool:
    """Whether a program is for one device, and for this process."""
    axes = module.axis_context
    alone = isinstance(axes, mlir.ShardingContext) and axes.num_devices == 1
    return alone and not module.lowering_parameters.for_export


def _primitive(
    name: str,
    plain: Callable[..., Any],
    kernel: Callable[..., Any],
    params: Sequence[str],
    *,
    several: bool = False,
) -> Primitive:
    """A primitive of which two functions of the same arguments are the lowerings.

    Args:
        plain: in JAX's own operations.
        kernel: by a kernel.
        params: names of its parameters.
        several: whether it has several results.
    """
    made = Primitive(f"symcompile_{name}")
    made.multiple_results = several

    def shapes(*args: ShapedArray, **given: Any) -> Any:
        found = jax.eval_shape(partial(plain, **given), *args)
        kinds = [ShapedArray(one.shape, one.dtype) for one in jax.tree.leaves(found)]
        return kinds if several else kinds[0]

    by_plain, by_kernel = (mlir.lower_fun(how, several) for how in (plain, kernel))

    def lower(context: mlir.LoweringRuleContext, *args: Any, **given: Any) -> Any:
        chosen = by_kernel if _is_for_kernels(context.module_context) else by_plain
        return chosen(context, *args, **given)

    made.def_impl(jax.jit(made.bind, static_argnames=params))
    made.def_abstract_eval(shapes)
    mlir.register_lowering(made, by_plain)
    mlir.register_lowering(made, lower, platform="cpu")
    return made


def _call(name: str, width: int, results: Any, *args: Array, **numbers: Any) -> Any:
    """Call a handler of `xla.cpp`, by the narrowest vectors that hold `width` channels."""
    kind = _FOUND[-1 if width <= 8 else 0]
    made = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        results,
        is_leaf=lambda one: isinstance(one, tuple),
    )
    given = {
        key: np.float32(value) if isinstance(value, float) else np.array(value, np.int64)
        for key, value in numbers.items()
    }
    return jax.ffi.ffi_call(f"symcompile_{name}_{kind}", made)(*args, **given)


def _steps(shape: Sequence[int]) -> list[int]:
    """From an entry to the next one along every axis but that of the channels."""
    return [prod(shape[axis + 1 :]) for axis in range(len(shape) - 1)]


def _inverse(order: Order) -> Order:
    return tuple(order.index(axis) for axis in range(len(order)))


# -- sums of products -----------------------------------------------------------------------


def linear_sum(products: Sequence[Written], terms: Sequence[Array]) -> Array:
    """The sum of products and of terms, broadcast to the first product."""
    made: list[Product] = []
    for parts, weight, *axes in products:
        batch = parts[0].ndim - 1 - (len(axes[0]) if axes else 0)
        order = (*range(batch), *(batch + axis for axis in (axes[0] if axes else ())))
        ends = np.cumsum([part.shape[-1] for part in parts])[:-1]
        for part, rows in zip(parts, jnp.split(weight, ends), strict=True):
            made.append((part, rows, order))
    (x, *_), weight, *_ = products[0]
    return _sum(made, terms, (*x.shape[:-1], weight.shape[1]))


def _sum(products: Sequence[Product], terms: Sequence[Array], shape: tuple[int, ...]) -> Array:
    values: list[Array] = []
    sources = []
    for x, _, _ in products:
        # Of equal values the gradients come back together.
        known = [k for k, value in enumerate(values) if value is x]
        values += [] if known else [x]
        sources.append(known[0] if known else len(values) - 1)
    params = {
        "sources": tuple(sources),
        "orders": tuple(order for _, _, order in products),
        "shape": shape,
    }
    args = (*values, *(weight for _, weight, _ in products), *terms)
    if _have_room(len(products), len(terms), len(shape) - 1):
        made: Array = _linear_sum.bind(*args, **params)
        return made
    return _plain_sum(*args, **params)


def _parts(args: Sequence[Any], sources: Sequence[int]) -> tuple[list[Any], list[Any], list[Any]]:
    """What is multiplied, the weights, the terms."""
    first = max(sources, default=-1) + 1
    second = first + len(sources)
    return list(args[:first]), list(args[first:second]), list(args[second:])


def _plain_sum(
    *args: Array, sources: tuple[int, ...], orders: tuple[Order, ...], shape: tuple[int, ...]
) -> Array:
    x, weights, terms = _parts(args, sources)
    made = []
    for source, weight, order in zip(sources, weights, orders, strict=True):
        made.append(jnp.transpose(x[source] @ weight, (*order, len(order))))
    return jnp.broadcast_to(sum(terms, sum(made)), shape)


def _kernel_sum(
    *args: Array, sources: tuple[int, ...], orders: tuple[Order, ...], shape: tuple[int, ...]
) -> Array:
    x, weights, terms = _parts(args, sources)
    *rows, width = shape
    x_step, term_step = [], []
    for source, order in zip(sources, orders, strict=True):
        steps = _steps(x[source].shape)
        x_step += [steps[axis] for axis in order]
    for place, term in enumerate(terms):
        term = terms[place] = jnp.broadcast_to(term, (*term.shape[:-1], width))
        missing = len(shape) - term.ndim
        steps = [step * (size > 1) for step, size in zip(_steps(term.shape), term.shape)]
        term_step += [0] * missing + steps
    made: Array = _call(
        "linear_sum",
        width,
        shape,
        *(x[source] for source in sources),
        *weights,
        *terms,
        shape=rows,
        depth=[weight.shape[0] for weight in weights],
        x_step=x_step,
        term_step=term_step,
    )
    return made


_linear_sum = _primitive("linear_sum", _plain_sum, _kernel_sum, ("sources", "orders", "shape"))


def _linear_sum_jvp(
    args: Sequence[Any], tangents: Sequence[Any], **params: Any
) -> tuple[Array, Array | ad.Zero]:
    sources, orders, shape = params["sources"], params["orders"], params["shape"]
    y = _linear_sum.bind(*args, **params)
    x, weights, _ = _parts(args, sources)
    of_x, of_weights, of_terms = _parts(tangents, sources)
    pairs = []
    for place, (source, order) in enumerate(zip(sources, orders, strict=True)):
        pairs.append((of_x[source], weights[place], order))
        pairs.append((x[source], of_weights[place], order))
    products = [
        pair for pair in pairs if not any(isinstance(value, ad.Zero) for value in pair[:2])
    ]
    terms = [term for term in of_terms if not isinstance(term, ad.Zero)]
    return y, _sum(products, terms, shape)


def _linear_sum_transpose(g: Any, *args: Any, **params: Any) -> list[Any]:
    """Gradients of whatever is unknown."""
    sources, orders, shape = params["sources"], params["orders"], params["shape"]
    x, weights, terms = _parts(args, sources)
    unknown = ad.is_undefined_primal
    asked = [unknown(term) for term in terms]
    pair = _pair(shape, [_shape(term) for term in terms], asked)
    usual = _usual(x, weights, sources, orders)
    if usual and pair:
        # One product, its axes as they are: read everything once.
        axis, first, second = pair
        at_x, at_weight = usual
        known_x, known_weight = x[sources[at_weight]], weights[sources.index(at_x)]
        to_x, to_weight, *sums = _back.bind(g, known_x, known_weight, axis=axis)
        of_x = [to_x if place == at_x else None for place in range(len(x))]
        of_weights = [to_weight if place == at_weight else None for place in range(len(weights))]
        made = {first: sums[0], second: sums[1]}
        return [*of_x, *of_weights, *_of_terms(g, terms, made)]
    of_x = []
    for place, value in enumerate(x):
        back: list[Product] = [
            (g, weight.T, _inverse(order))
            for source, weight, order in zip(sources, weights, orders, strict=True)
            if source == place and unknown(value)
        ]
        of_x.append(_sum(back, [], _shape(value)) if back else None)
    of_weights = [
        _outer.bind(x[source], g, order=order) if unknown(weight) else None
        for source, weight, order in zip(sources, weights, orders, strict=True)
    ]
    made = {}
    if pair:
        axis, first, second = pair
        made[first], made[second] = _sums.bind(g, axis=axis, mean=False)
    return [*of_x, *of_weights, *_of_terms(g, terms, made)]


def _shape(value: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = (value.aval if ad.is_undefined_primal(value) else value).shape
    return shape


def _usual(
    x: Sequence[Any], weights: Sequence[Any], sources: Sequence[int], orders: Sequence[Order]
) -> tuple[int, int] | None:
    """Of a product that nothing is moved in: the places of unknown x and unknown weight."""
    unknown_x = [place for place, value in enumerate(x) if ad.is_undefined_primal(value)]
    unknown = [place for place, value in enumerate(weights) if ad.is_undefined_primal(value)]
    if len(unknown_x) != 1 or len(unknown) != 1 or len(sources) != 2:
        return None
    (at_x,), (at_weight,) = unknown_x, unknown
    in_order = all(order == tuple(range(len(order))) for order in orders)
    alike = _shape(x[0]) == _shape(x[1]) if len(x) == 2 else False
    return (at_x, at_weight) if in_order and alike else None


def _pair(
    full: Sequence[int], shapes: Sequence[tuple[int, ...]], asked: Sequence[bool]
) -> tuple[int, int, int] | None:
    """An axis, and two terms broadcast over it alone and over the one after it alone."""
    alone = {}
    for place, shape in enumerate(shapes):
        padded = (1,) * (len(full) - len(shape)) + shape
        over = [axis for axis, size in enumerate(padded) if size != full[axis]]
        if asked[place] and len(over) == 1:
            alone[over[0]] = place
    return next(
        ((axis, alone[axis], alone[axis + 1]) for axis in sorted(alone) if axis + 1 in alone), None
    )


def _of_terms(g: Array, terms: Sequence[Any], made: dict[int, Array]) -> list[Array | None]:
    """Gradients of terms: sums over the axes they were broadcast over."""
    return [
        (made[place] if place in made else _sum_to(g, _shape(term))).reshape(_shape(term))
        if ad.is_undefined_primal(term)
        else None
        for place, term in enumerate(terms)
    ]


def _sum_to(g: Array, shape: tuple[int, ...]) -> Array:
    padded = (1,) * (g.ndim - len(shape)) + shape
    return g.sum([axis for axis, size in enumerate(padded) if size != g.shape[axis]])


def _linear_sum_batch(
    args: Sequence[Any], dims: Sequence[int | None], **params: Any
) -> tuple[Array, int]:
    """A batch is one more axis of rows, unless weights are batched."""
    sources, orders, shape = params["sources"], params["orders"], params["shape"]
    of_x, of_weights, _ = _parts(dims, sources)
    if None in of_x or any(dim is not None for dim in of_weights) or len(shape) > _MOST:
        return jax.vmap(partial(_plain_sum, **params), dims)(*args), 0
    size = next(arg.shape[dim] for arg, dim in zip(args, dims, strict=True) if dim is not None)
    moved = [
        arg if dim is None else jnp.moveaxis(arg, dim, 0)
        for arg, dim in zip(args, dims, strict=True)
    ]
    x, weights, terms = _parts(moved, sources)
    *_, of_terms = _parts(dims, sources)
    for place, (term, dim) in enumerate(zip(terms, of_terms, strict=True)):
        if dim is not None:
            missing = len(shape) + 1 - term.ndim
            terms[place] = term.reshape(size, *(1,) * missing, *term.shape[1:])
    y = _linear_sum.bind(
        *x,
        *weights,
        *terms,
        sources=sources,
        orders=tuple((0, *(axis + 1 for axis in order)) for order in orders),
        shape=(size, *shape),
    )
    return y, 0


# -- sums over two axes, and back ------------------------------------------------------------


def two_means(x: Array, axis: int) -> tuple[Array, Array]:
    """The means over an axis and over the one after it."""
    first, second = _sums.bind(x, axis=axis % x.ndim, mean=True)
    return first, second


def _plain_sums(x: Array, *, axis: int, mean: bool) -> list[Array]:
    how = jnp.mean if mean else jnp.sum
    return [how(x, axis), how(x, axis + 1)]


def _kernel_sums(x: Array, *, axis: int, mean: bool) -> Any:
    before, (rows, count), after = x.shape[:axis], x.shape[axis : axis + 2], x.shape[axis + 2 :]
    return _call(
        "sums",
        prod(after),
        [(*before, count, *after), (*before, rows, *after)],
        x,
        shape=(prod(before), rows, count, prod(after)),
        row_scale=1 / rows if mean else 1.0,
        count_scale=1 / count if mean else 1.0,
    )


_sums = _primitive("sums", _plain_sums, _kernel_sums, ("axis", "mean"), several=True)


def _sums_transpose(sums: Sequence[Any], x: Any, *, axis: int, mean: bool) -> list[Any]:
    """Both repeated along the axes they lack; XLA adds them to what else the gradient is made of."""
    shape = _shape(x)
    spread = [
        jnp.expand_dims(one / shape[axis + k] if mean else one, axis + k)
        for k, one in enumerate(sums)
        if not isinstance(one, ad.Zero)
    ]
    return [jnp.broadcast_to(sum(spread), shape)]


def _sums_batch(args: Any, dims: Any, *, axis: int, mean: bool) -> tuple[Any, list[int]]:
    x = jnp.moveaxis(args[0], dims[0], 0)
    return _sums.bind(x, axis=axis + 1, mean=mean), [0, 0]


# -- outer products -------------------------------------------------------------------------


def _plain_outer(x: Array, g: Array, *, order: Order) -> Array:
    axes = list(range(len(order)))
    return jnp.tensordot(x, g, (list(order), axes))


def _kernel_outer(x: Array, g: Array, *, order: Order) -> Array:
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


_outer = _primitive("outer", _plain_outer, _kernel_outer, ("order",))
"""The gradient of a weight: over all rows, the sum of products of x, its axes in `order`, and g."""


def _outer_to_x(weight: Array, x: Any, g: Array, *, order: Order) -> Array:
    return _sum([(g, weight.T, _inverse(order))], [], x.aval.shape)


def _outer_to_g(weight: Array, x: Array, g: Any, *, order: Order) -> Array:
    return _sum([(x, weight, order)], [], g.aval.shape)


# -- all gradients at once ------------------------------------------------------------------


def _apart(g: Array, x: Array, weight: Array, *, axis: int) -> list[Array]:
    """The gradients of x, weight and two terms, of a sum of `x @ weight` and terms that were
    broadcast over `axis` and over the axis after it."""
    order = tuple(range(g.ndim - 1))
    to_x = _sum([(g, weight.T, order)], [], x.shape)
    sums = _sums.bind(g, axis=axis, mean=False)
    return [to_x, _outer.bind(x, g, order=order), *sums]


def _kernel_back(g: Array, x: Array, weight: Array, *, axis: int) -> Any:
    before, (rows, count), after = g.shape[:axis], g.shape[axis : axis + 2], g.shape[axis + 2 :]
    return _call(
        "back",
        min(weight.shape),
        [x.shape, weight.shape, (*before, count, *after), (*before, rows, *after)],
        g,
        x,
        weight.T,
        shape=(prod(before), rows, count, prod(after[:-1])),
    )


_back = _primitive("back", _apart, _kernel_back, ("axis",), several=True)


def _back_jvp(args: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[Any, Any]:
    made = [ad.instantiate_zeros(tangent) for tangent in tangents]
    return jax.jvp(partial(_apart, **params), tuple(args), tuple(made))


def _back_transpose(sums: Sequence[Any], *args: Any, **params: Any) -> list[Any]:
    places = [place for place, arg in enumerate(args) if ad.is_undefined_primal(arg)]

    def of_unknown(*unknown: Any) -> list[Array]:
        given = dict(zip(places, unknown, strict=True))
        return _apart(*[given.get(place, arg) for place, arg in enumerate(args)], **params)

    kinds = [jax.ShapeDtypeStruct(args[place].aval.shape, jnp.float32) for place in places]
    found = jax.linear_transpose(of_unknown, *kinds)([ad.instantiate_zeros(one) for one in sums])
    made = dict(zip(places, found, strict=True))
    return [made.get(place) for place in range(len(args))]


# -- what transforms do with them -----------------------------------------------------------


def _by_vmap(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A batching rule: XLA's own ops, vmapped."""

    def batched(args: Any, dims: Any, **params: Any) -> Any:
        made = jax.vmap(partial(plain, **params), dims)(*args)
        return made, jax.tree.map(lambda _: 0, made)

    return batched


ad.primitive_jvps[_linear_sum] = _linear_sum_jvp
ad.primitive_transposes[_linear_sum] = _linear_sum_transpose
batching.primitive_batchers[_linear_sum] = _linear_sum_batch
ad.deflinear2(_sums, _sums_transpose)
batching.primitive_batchers[_sums] = _sums_batch
ad.defbilinear(_outer, _outer_to_x, _outer_to_g)
batching.primitive_batchers[_outer] = _by_vmap(_plain_outer)
ad.primitive_jvps[_back] = _back_jvp
ad.primitive_transposes[_back] = _back_transpose
batching.primitive_batchers[_back] = _by_vmap(_apart)
