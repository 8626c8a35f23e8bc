"""What a primitive of JAX needs: two lowerings, and rules for transforms.

In: functions of arrays, one in JAX's own operations and one that calls a kernel. Out: a primitive
that is either, by what its program is for; and rules for primitives that are made of others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any, TypeAlias

import jax
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

__all__ = [
    "Order",
    "as_it_lay",
    "by_vmap",
    "derived",
    "instantiated",
    "inverse",
    "is_unknown",
    "primitive",
    "shape_of",
    "transposed",
    "varies",
]

Order: TypeAlias = tuple[int, ...]

_UNCACHED: dict[str, Any] = (
    {"cacheable": False} if "cacheable" in signature(mlir.register_lowering).parameters else {}
)
"""A lowering that is kept for the next call does not see what its arguments are made from."""


def primitive(
    name: str,
    plain: Callable[..., Any],
    kernel: Callable[..., Any],
    params: Sequence[str],
    *,
    several: bool = False,
    through: Callable[..., Any] = lambda *args: args,
) -> Any:
    """A primitive whose lowerings are two functions of the same arguments.

    Args:
        plain: in JAX's own operations.
        kernel: by a kernel.
        params: names of the arguments that are no arrays.
        several: whether it has several results.
        through: from a lowering for kernels to one that reads what arguments are made from.
    """
    made: Any = Primitive(f"symcompile_{name}")
    made.multiple_results = several

    def shapes(*args: ShapedArray, **given: Any) -> Any:
        found = jax.tree.leaves(jax.eval_shape(partial(plain, **given), *args))
        kinds = [ShapedArray(one.shape, one.dtype) for one in found]
        return kinds if several else kinds[0]

    by_plain, by_kernel = (mlir.lower_fun(how, several) for how in (plain, kernel))

    def lower(context: mlir.LoweringRuleContext, *args: Any, **given: Any) -> Any:
        if not _calls_kernels(context.module_context):
            return by_plain(context, *args, **given)
        context, args, given = through(context, args, given)
        return by_kernel(context, *args, **given)

    compiled = jax.jit(made.bind, static_argnames=params)

    def run(*args: Array, **given: Any) -> Any:
        # With NaNs looked for, JAX runs again op by op what made one.
        config: Any = jax.config
        apart = config.jax_disable_jit or config.jax_debug_nans or config.jax_debug_infs
        return (plain if apart else compiled)(*args, **given)

    made.def_impl(run)
    made.def_abstract_eval(shapes)
    mlir.register_lowering(made, lower, **_UNCACHED)
    return made


def _calls_kernels(module: mlir.ModuleContext) -> bool:
    """Whether a program is for one CPU device, and for this process."""
    axes = module.axis_context
    alone = isinstance(axes, mlir.ShardingContext) and axes.num_devices == 1
    here = tuple(module.platforms) == ("cpu",) and not module.lowering_parameters.for_export
    return alone and here


# -- lowerings that read what arguments are made from ----------------------------------------


def as_it_lay(value: Any, kind: Any) -> tuple[Any, ShapedArray, Order, Order]:
    """What an array was made from by moving axes, and by joining the last ones to its channels.

    Returns:
        that, its type, which of its axes every axis of rows was, and which the channels were, in
        order; the last of these is its last, so that they are lines of entries side by side.
    """
    last = len(kind.shape) - 1
    rows: Order = tuple(range(last))
    channels: Order = (last,)
    found = value, kind, rows, channels
    while (before := _before(value, kind)) is not None:
        value, kind, axes = before
        if any(len(axes[axis]) > 1 for axis in rows):
            break  # what was joined became an axis of rows
        rows = tuple(place for axis in rows for place in axes[axis])
        channels = tuple(place for axis in channels for place in axes[axis])
        if channels[-1] == len(kind.shape) - 1:
            found = value, kind, rows, channels
    return found


def _before(value: Any, kind: Any) -> tuple[Any, ShapedArray, Sequence[Order]] | None:
    """What a transpose or a joining of the last axes was made from, its type, and which of its axes
    each axis was made of; None for anything else."""
    op, last = value.owner, len(kind.shape) - 1
    name = getattr(op, "name", "")
    if name not in ("stablehlo.transpose", "stablehlo.reshape"):
        return None
    source = op.operands[0]
    shape = tuple(source.type.shape)
    made_from = ShapedArray(shape, kind.dtype)
    if name == "stablehlo.transpose":
        return source, made_from, [(axis,) for axis in op.attributes["permutation"]]
    if shape[:last] != tuple(kind.shape[:-1]) or len(shape) <= last:
        return None
    return source, made_from, [*((axis,) for axis in range(last)), tuple(range(last, len(shape)))]


# -- rules for transforms -------------------------------------------------------------------


def inverse(order: Order) -> Order:
    return tuple(order.index(axis) for axis in range(len(order)))


def is_unknown(value: Any) -> bool:
    """Whether a value is what a gradient is asked for."""
    return isinstance(value, ad.UndefinedPrimal)


def shape_of(value: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = getattr(value, "aval", value).shape
    return shape


def varies(derivative: Any) -> bool:
    return not isinstance(derivative, ad.Zero)


def instantiated(values: Sequence[Any]) -> tuple[Any, ...]:
    """Derivatives as arrays: zeros where none depends on anything."""
    return tuple(ad.instantiate_zeros(value) for value in values)  # type: ignore[no-untyped-call]


def by_vmap(apart: Callable[..., Any]) -> Callable[..., Any]:
    """The rule for batches of a primitive made of others."""

    def batched(args: Any, dims: Any, **params: Any) -> Any:
        made = jax.vmap(partial(apart, **params), dims)(*args)
        return made, jax.tree.map(lambda _: 0, made)

    return batched


def _among(
    args: Sequence[Any], places: Sequence[int], apart: Callable[..., Any]
) -> Callable[..., list[Array]]:
    """A function of the arguments at some places; the others are as they are."""

    def of_some(*values: Array) -> list[Array]:
        given = dict(zip(places, values, strict=True))
        return [*apart(*[given.get(place, arg) for place, arg in enumerate(args)])]

    return of_some


def derived(apart: Callable[..., Any]) -> Callable[..., Any]:
    """The derivative of a primitive made of others."""

    def derivative(args: Sequence[Any], tangents: Sequence[Any], **params: Any) -> Any:
        places = [place for place, tangent in enumerate(tangents) if varies(tangent)]
        of_varying = _among(args, places, partial(apart, **params))
        varying, moved = ([one[place] for place in places] for one in (args, tangents))
        return jax.jvp(of_varying, varying, moved)

    return derivative


def transposed(apart: Callable[..., Any]) -> Callable[..., Any]:
    """The gradients of a primitive made of others, to all that is unknown."""

    def transpose(sums: Sequence[Any], *args: Any, **params: Any) -> list[Any]:
        places = [place for place, arg in enumerate(args) if is_unknown(arg)]

        of_unknown = _among(args, places, partial(apart, **params))
        kinds = [args[place].aval for place in places]
        found = jax.linear_transpose(of_unknown, *kinds)([*instantiated(sums)])
        made = dict(zip(places, found, strict=True))
        return [made.get(place) for place in range(len(args))]

    return transpose
