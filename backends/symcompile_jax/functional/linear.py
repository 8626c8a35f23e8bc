"""Maps of channels alone, the same at every index of a tensor.

In: a tree and one weight for each of its tensors. Out: a tree like the spec.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from symcompile.spec import unflatten
from symcompile_jax.functional.trees import Weights, one_each, read, reader_of, together

__all__ = ["channel_linear", "channel_scale"]


def channel_linear(spec: Any, x: Any, weight: Weights, bias: Weights | None = None) -> Any:
    """x @ weight + bias, tensor by tensor (`Pointwise` of arXiv 2302.14040's code).

    Args:
        weight: for each tensor (channels in, channels out).
        bias: for each tensor (channels out,).

    Raises:
        ShapeError: `x`, `weight` or `bias` does not fit the spec.

    >>> import jax.numpy as jnp
    >>> y = channel_linear({"b": ("n",)}, {"b": jnp.ones((3, 2))}, [jnp.ones((2, 5))])
    >>> y["b"].shape
    (3, 5)
    """
    reader = reader_of(spec, [matrix.shape[0] for matrix in weight], "weight")
    outputs = []
    biases: Sequence[Any] = [None] * len(weight) if bias is None else bias
    one_each(reader, "bias", biases)
    for value, matrix, shift in zip(read(reader, x), weight, biases, strict=True):
        own, matrix_ = together(value, matrix)
        product = own @ matrix_
        outputs.append(product if shift is None else product + shift.astype(product.dtype))
    return unflatten(reader.spec, outputs)


def channel_scale(spec: Any, x: Any, scale: Weights) -> Any:
    """Every channel of every tensor times a number of its own; `scale` is (channels,) for each.

    Raises `ShapeError` where `x` or `scale` does not fit the spec.

    >>> import jax.numpy as jnp
    >>> channel_scale((), jnp.ones(2), [jnp.array([1.0, 3.0])]).tolist()
    [1.0, 3.0]
    """
    reader = reader_of(spec, [factor.shape[0] for factor in scale], "scale")
    outputs = []
    for value, factor in zip(read(reader, x), scale, strict=True):
        own, factor_ = together(value, factor)
        outputs.append(own * factor_)
    return unflatten(reader.spec, outputs)
