"""Trees of tensors: read along a spec, mapped leaf by leaf; and weights cast to their inputs.

In: trees. Out: leaves in canonical order, or trees of dicts and lists.
The one thing to know: a layer computes in the dtype of its inputs, as a compiled layer does; the
weights are cast. Only integers take the dtype of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from symcompile.errors import ShapeError
from symcompile.spec import Path, TreeReader, format_place

__all__ = ["cast", "map_tree", "reader", "widened"]


def reader(
    spec: Any, channels: Any = None, *, shapes: Any = None, split: bool = False
) -> TreeReader:
    """A `TreeReader` of torch tensors."""
    return TreeReader.of(spec, channels, kind=Tensor, shapes=shapes, split=split)


def map_tree(
    fn: Callable[[Tensor], Tensor], tree: Any, channels: int | None = None, path: Path = ()
) -> Any:
    """`fn` of every leaf of a tree of mappings and sequences; makes dicts and lists.

    Raises `ShapeError` where a leaf is no tensor, or has not the `channels` that are asked for.
    """
    if hasattr(tree, "keys"):
        keys = list(tree.keys())
        return {key: map_tree(fn, tree[key], channels, (*path, key)) for key in keys}
    if isinstance(tree, list | tuple):
        return [map_tree(fn, child, channels, (*path, i)) for i, child in enumerate(tree)]
    if not isinstance(tree, Tensor):
        raise ShapeError(
            f"{format_place(path)}: found a {type(tree).__name__} object, expected a Tensor of "
            "shape (*batch, *axes, channels)"
        )
    if channels is not None and tuple(tree.shape[-1:]) != (channels,):
        raise ShapeError(
            f"{format_place(path)} has shape {tuple(tree.shape)}, expected {channels} channels: "
            "channels are the last axis"
        )
    return fn(tree)


def cast(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """`x` and weights in the dtype to compute in."""
    dtype = x.dtype
    if not (dtype.is_floating_point or dtype.is_complex):
        dtype = weights[0].dtype
    return (x.to(dtype), *(weight.to(dtype) for weight in weights))


def widened(x: Tensor) -> Tensor:
    """`x` in a dtype good for sums: at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
