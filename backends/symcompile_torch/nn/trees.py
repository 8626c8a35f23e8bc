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

from symcompile.spec import TreeReader

__all__ = ["cast", "map_tree", "reader", "widened"]


def reader(
    spec: Any, channels: Any = None, *, shapes: Any = None, split: bool = False
) -> TreeReader:
    """A `TreeReader` of torch tensors."""
    return TreeReader.of(spec, channels, kind=Tensor, shapes=shapes, split=split)


def map_tree(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """`fn` of every leaf of a tree of mappings and sequences; makes dicts and lists."""
    if hasattr(tree, "keys"):
        return {key: map_tree(fn, tree[key]) for key in tree.keys()}  # noqa: SIM118
    if isinstance(tree, list | tuple):
        return [map_tree(fn, child) for child in tree]
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
