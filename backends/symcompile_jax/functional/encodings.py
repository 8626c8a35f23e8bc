"""Where an entry sits, and what its value is, told in more channels.

In: a tree. Out: a tree like it. Positions along permuted axes are never told: they mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from math import pi
from typing import Any

import jax.numpy as jnp

from symcompile.errors import ShapeError
from symcompile.library import fixed_axes, frequencies
from symcompile.spec import unflatten
from symcompile_jax.functional.trees import (
    Array,
    Weights,
    map_leaves,
    read,
    reader_of,
    together,
    wide,
)

__all__ = ["fourier_features", "position_embedding", "sinusoidal_encoding"]


def position_embedding(
    spec: Any, x: Any, weight: Weights, channels: Sequence[int] | None = None
) -> Any:
    """A learned vector added for each position along each fixed axis.

    Args:
        weight: (size, channels) for each fixed axis, or fixed part of a composite one, of all
            tensors in canonical order, then in storage order.
        channels: of each tensor, to be checked.

    >>> x = {"w": jnp.zeros((3, 2, 4))}
    >>> y = position_embedding({"w": ("n", None)}, x, [jnp.ones((2, 4))])
    >>> float(y["w"].sum())
    24.0
    """
    reader = reader_of(spec, channels, split=True)
    leaves = read(reader, x)
    numbers = count()
    outputs = []
    for leaf, whole, value in zip(reader.spec.leaves, leaves, reader.split(leaves), strict=True):
        for axis in fixed_axes(leaf):
            number = next(numbers)
            value, table = together(value, _table(weight, number))
            wanted = (value.shape[axis], value.shape[-1])
            if table.shape != wanted:
                raise ShapeError(f"weight {number} has shape {table.shape}, expected {wanted}")
            value = value + _along(table, axis)
        outputs.append(value.reshape(whole.shape))
    return unflatten(reader.spec, outputs)


def _table(weight: Weights, number: int) -> Array:
    if number >= len(weight):
        raise ShapeError(f"found {len(weight)} weights; expected one for each fixed axis")
    return weight[number]


def sinusoidal_encoding(spec: Any, x: Any, num_bands: int = 8, max_period: float = 10_000.0) -> Any:
    """Channels appended that tell the tensor's number and the position along its fixed axes.

    A position t is told by sin(t f) and cos(t f) for f = max_period**(-k / num_bands), k from 0
    to num_bands - 1 (Vaswani et al., arXiv 1706.03762, section 3.5). First the number of the
    tensor in canonical order, then its fixed axes in storage order, then zeros: every tensor gets
    2 * num_bands * (1 + the most fixed axes that one has) channels more.

    Raises `OptionError` unless `num_bands` is a positive int and `max_period` positive.

    >>> sinusoidal_encoding(("n",), jnp.ones((3, 1)), num_bands=2)[0].tolist()
    [1.0, 0.0, 0.0, 1.0, 1.0]
    """
    rates = frequencies(num_bands, max_period)
    reader = reader_of(spec, split=True)
    leaves = read(reader, x)
    most = max(len(leaf.fixed) for leaf in reader.spec.leaves)
    outputs = []
    for number, (leaf, whole, value) in enumerate(
        zip(reader.spec.leaves, leaves, reader.split(leaves), strict=True)
    ):
        axes = fixed_axes(leaf)
        kind = wide(value).dtype
        codes = [_code(jnp.array([number], kind), rates)[0]]
        for axis in axes:
            codes.append(_along(_code(jnp.arange(value.shape[axis], dtype=kind), rates), axis))
        codes.append(jnp.zeros(2 * len(rates) * (most - len(axes)), kind))
        dtype = value.dtype if jnp.issubdtype(value.dtype, jnp.inexact) else kind
        shape = value.shape[:-1]
        parts = [jnp.broadcast_to(code, (*shape, code.shape[-1])).astype(dtype) for code in codes]
        joined = jnp.concatenate([value.astype(dtype), *parts], axis=-1)
        outputs.append(joined.reshape(*whole.shape[:-1], joined.shape[-1]))
    return unflatten(reader.spec, outputs)


def fourier_features(x: Any, matrix: Array) -> Any:
    """`[sin, cos](2π x B)` of every entry's channels (Tancik et al., arXiv 2006.10739).

    `matrix` B is (channels in, n); 2 n channels come out.

    >>> y = fourier_features({"s": jnp.zeros(2)}, jnp.ones((2, 3)))
    >>> y["s"].tolist()
    [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    """
    return map_leaves(lambda leaf: _fourier(leaf, matrix), x, channels=matrix.shape[0])


def _fourier(x: Array, matrix: Array) -> Array:
    # Angles in float32 at least: many turns leave nothing of a half type's digits.
    own = wide(x)
    angle = 2 * pi * (own @ matrix.astype(own.dtype))
    result = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return result.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else result


def _code(positions: Array, rates: Sequence[float]) -> Array:
    """(n,) to (n, 2 * bands)."""
    angle = positions[:, None] * jnp.array(rates, positions.dtype)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def _along(table: Array, axis: int) -> Array:
    """(size, channels) as it stands along an axis counted from the end, channels last."""
    return table.reshape(table.shape[0], *(1,) * (-axis - 2), table.shape[1])
