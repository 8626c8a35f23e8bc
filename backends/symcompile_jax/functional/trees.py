"""Reading trees of arrays, and in which dtype to compute.

In: a tree from a user. Out: checked leaves in canonical order, or the tree with a function applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from symcompile.errors import ShapeError
from symcompile.spec import Path, TreeReader, flatten_like, format_place, unflatten

__all__ = ["Array", "Weights", "map_leaves", "one_each", "read", "reader_of", "together", "wide"]

Array: TypeAlias = jax.Array
Weights: TypeAlias = Sequence[Array]
"""One array for each tensor, in the canonical order of the spec's leaves."""


def reader_of(
    spec: Any, channels: Sequence[int] | None = None, name: str = "channels", *, split: bool = False
) -> TreeReader:
    """A reader of trees of JAX arrays; `channels` are those of each leaf, in canonical order.

    Raises `ShapeError` for another number of them; `name` is what they were taken from.
    """
    reader = TreeReader.of(spec, kind=jax.Array, split=split)
    if channels is None:
        return reader
    one_each(reader, name, channels)
    return replace(reader, channels=tuple(channels))


def one_each(reader: TreeReader, name: str, given: Sequence[Any]) -> None:
    """Raise `ShapeError` unless there is one for each tensor."""
    count = len(reader.spec.leaves)
    if len(given) != count:
        raise ShapeError(
            f"{name}: found {len(given)}, expected {count}: one for each leaf of the spec, in "
            "canonical order"
        )


def read(reader: TreeReader, x: Any) -> list[Array]:
    """The leaves of `x`, in canonical order; NumPy's arrays become JAX's."""
    leaves = [
        jnp.asarray(value) if isinstance(value, np.ndarray | np.generic) else value
        for value in flatten_like(reader.spec, x)
    ]
    return reader.read(unflatten(reader.spec, leaves))


def map_leaves(
    function: Callable[..., Any], tree: Any, *others: Any, channels: int | None = None
) -> Any:
    """A function on every leaf: mappings become dicts, sequences lists.

    Raises `ShapeError` where a leaf is no array, has not the `channels` that are asked for, or
    another tree has no such entry, or one of another shape.
    """
    return _map(function, channels, (), tree, *others)


def _map(
    function: Callable[..., Any], channels: int | None, path: Path, tree: Any, *others: Any
) -> Any:
    if isinstance(tree, Mapping):
        keys = list(tree)
        for other in others:
            if not isinstance(other, Mapping) or set(other) != set(keys):
                raise ShapeError(_paths_differ(path))
        return {
            key: _map(function, channels, (*path, key), *(t[key] for t in (tree, *others)))
            for key in keys
        }
    if isinstance(tree, list | tuple):
        for other in others:
            if not isinstance(other, list | tuple) or len(other) != len(tree):
                raise ShapeError(_paths_differ(path))
        trees = enumerate(zip(tree, *others, strict=True))
        return [_map(function, channels, (*path, place), *children) for place, children in trees]
    for leaf in (tree, *others):
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise ShapeError(
                f"{format_place(path)}: found a {type(leaf).__name__} object, expected an array "
                "of shape (*batch, *axes, channels)"
            )
        if leaf.shape != tree.shape:
            raise ShapeError(
                f"{format_place(path)}: found the shapes {tree.shape} and {leaf.shape}, expected "
                "equal ones; nothing is broadcast, channels included"
            )
    if channels is not None and tree.shape[-1:] != (channels,):
        raise ShapeError(
            f"{format_place(path)} has shape {tree.shape}, expected {channels} channels: channels "
            "are the last axis"
        )
    return function(*map(jnp.asarray, (tree, *others)))


def _paths_differ(path: Path) -> str:
    return f"{format_place(path)}: the two trees have other paths; give trees of equal paths"


def together(x: Array, *weights: Array) -> tuple[Array, ...]:
    """A leaf and its weights in one dtype: the leaf's, unless it is an integer, or they complex."""
    dtype = x.dtype
    weight = jnp.result_type(*weights)
    if jnp.issubdtype(weight, jnp.complexfloating) or not jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.promote_types(dtype, weight)
    return tuple(value.astype(dtype) for value in (x, *weights))


def wide(x: Array) -> Array:
    """In at least float32, for what is summed over many entries."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
