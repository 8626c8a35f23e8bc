"""Functions of single entries, and the dropout of whole channels.

In: a tree of arrays; most need no spec. Out: a tree of the same paths.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp

from symcompile.library import check_rate
from symcompile.spec import unflatten
from symcompile_jax.functional.trees import Array, map_leaves, read, reader_of

__all__ = ["activation", "add", "channel_dropout"]


def activation(function: Callable[[Array], Array], x: Any) -> Any:
    """A function on every leaf.

    >>> activation(jax.nn.relu, {"s": jnp.array([-1.0, 2.0])})["s"].tolist()
    [0.0, 2.0]
    """
    return map_leaves(function, x)


def add(x: Any, y: Any) -> Any:
    """x + y, leaf by leaf; nothing is broadcast.

    Raises `ShapeError` where paths or shapes differ.

    >>> add([jnp.ones(2)], [jnp.ones(2)])[0].tolist()
    [2.0, 2.0]
    """
    return map_leaves(jnp.add, x, y)


def channel_dropout(key: Array, x: Any, rate: float, spec: Any = None) -> Any:
    """Whole channels of tensors set to zero, each with probability `rate`; others grow to match.

    A channel is dropped at all indices of a tensor at once, so the layer commutes with
    permutations; channel by channel as in Tompson et al., arXiv 1411.4280. With a spec each
    example of a batch drops channels of its own. Without one, batch axes cannot be told apart, and
    all examples drop the same.

    Raises `OptionError` unless 0 <= rate < 1.

    >>> y = channel_dropout(jax.random.key(0), {"w": jnp.ones((3, 2, 64))}, 0.5)["w"]
    >>> sorted(set(y.ravel().tolist())), bool((y == y[0, 0]).all())
    ([0.0, 2.0], True)
    """
    rate = check_rate(rate)
    if spec is None:
        numbers = count()
        return map_leaves(lambda leaf: _dropped(key, next(numbers), leaf, rate, leaf.ndim - 1), x)
    reader = reader_of(spec)
    pairs = zip(reader.spec.leaves, read(reader, x), strict=True)
    outputs = [
        _dropped(key, place, value, rate, len(leaf.axes))
        for place, (leaf, value) in enumerate(pairs)
    ]
    return unflatten(reader.spec, outputs)


def _dropped(key: Array, place: int, x: Array, rate: float, order: int) -> Array:
    """`x` with channels dropped; they are the same along `order` axes before the last."""
    lead = x.ndim - order - 1
    keep = jax.random.bernoulli(
        jax.random.fold_in(key, place), 1 - rate, (*x.shape[:lead], *(1,) * order, x.shape[-1])
    )
    return jnp.where(keep, x / (1 - rate), 0)
