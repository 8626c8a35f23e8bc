"""Normalisation over channels, or over the entries of a tensor.

In: a tree, and scale and shift for each of its tensors. Out: a tree like the spec.

The one thing to know: variances are divided by n, eps is inside the root, and mean and variance are
computed in at least float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import jax.numpy as jnp

from symcompile.spec import unflatten
from symcompile_jax.functional.trees import (
    Array,
    Weights,
    one_each,
    read,
    reader_of,
    together,
    wide,
)

__all__ = ["channel_norm", "tensor_norm"]


def channel_norm(spec: Any, x: Any, scale: Weights, shift: Weights, eps: float = 1e-5) -> Any:
    """Layer norm over channels (Ba et al., arXiv 1607.06450, eq. 3), at every index on its own.

    With one channel nothing is left of a value but the shift. `scale` and `shift` are (channels,)
    for each tensor. Raises `ShapeError` where `x`, `scale` or `shift` does not fit the spec.

    >>> import jax.numpy as jnp
    >>> one = [jnp.ones(2)]
    >>> channel_norm((), jnp.array([1.0, 3.0]), one, [jnp.zeros(2)], eps=0.0).tolist()
    [-1.0, 1.0]
    """
    reader = reader_of(spec, [factor.shape[0] for factor in scale], "scale")
    one_each(reader, "shift", shift)
    outputs = [
        _normalised(value, (-1,), factor, offset, eps)
        for value, factor, offset in zip(read(reader, x), scale, shift, strict=True)
    ]
    return unflatten(reader.spec, outputs)


def tensor_norm(spec: Any, x: Any, scale: Weights, shift: Weights, eps: float = 1e-5) -> Any:
    """Each channel of a tensor by its mean and variance over all the tensor's axes.

    A tensor with one entry has no variance, so it is only scaled and shifted, by `scale` and
    `shift` of shape (channels,) for each tensor. Raises `ShapeError` where `x`, `scale` or `shift`
    does not fit the spec.

    >>> import jax.numpy as jnp
    >>> one, x = [jnp.ones(1)], jnp.array([[1.0], [3.0]])
    >>> tensor_norm(("n",), x, one, [jnp.zeros(1)], eps=0.0).tolist()
    [[-1.0], [1.0]]
    """
    reader = reader_of(spec, [factor.shape[0] for factor in scale], "scale")
    one_each(reader, "shift", shift)
    outputs = []
    rows = zip(reader.spec.leaves, read(reader, x), scale, shift, strict=True)
    for leaf, value, factor, offset in rows:
        axes = range(-len(leaf.axes) - 1, -1)
        if prod(value.shape[axis] for axis in axes) == 1:
            own, factor_, offset_ = together(value, factor, offset)
            outputs.append(own * factor_ + offset_)
        else:
            outputs.append(_normalised(value, axes, factor, offset, eps))
    return unflatten(reader.spec, outputs)


def _normalised(x: Array, axes: Sequence[int], scale: Array, shift: Array, eps: float) -> Array:
    own, *weights = together(x, scale, shift)
    x, scale, shift = wide(own), *map(wide, weights)
    centred = x - x.mean(tuple(axes), keepdims=True)
    variance = jnp.square(jnp.abs(centred)).mean(tuple(axes), keepdims=True)
    return (centred / jnp.sqrt(variance + eps) * scale + shift).astype(own.dtype)
