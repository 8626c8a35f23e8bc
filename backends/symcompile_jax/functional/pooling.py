"""What does not change when a tensor's axes are permuted: statistics over them.

In: a tree. Out: one array (*batch, features), tensor by tensor in canonical order, for each tensor
statistic by statistic.

The one thing to know: permuted axes are reduced together, all at once; a fixed axis stays, folded
into the features ahead of the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import floor, prod
from typing import Any

import jax.numpy as jnp

from symcompile.library import FIVE_NUMBERS, Statistic, parse_stats, permuted_axes, require_order
from symcompile_jax.functional.trees import Array, read, reader_of, wide

__all__ = ["invariant_pool", "statistics"]


def invariant_pool(
    spec: Any,
    x: Any,
    stats: Sequence[Statistic] = ("mean",),
    channels: Sequence[int] | None = None,
) -> Array:
    """Statistics over all permuted axes of every tensor, (*batch, features).

    Args:
        stats: "mean", "sum", "max", "var" (divided by n), or numbers from 0 to 1 for quantiles,
            interpolated linearly; NaN if any entry is. Of no entries all but the sum are NaN.
            Complex entries have no "max" and no quantiles.
        channels: of each tensor, to be checked.

    >>> invariant_pool(("n",), jnp.array([[1.0], [4.0], [7.0]]), ("mean", "max", 0.25)).tolist()
    [4.0, 7.0, 2.5]
    """
    stats = parse_stats(stats)
    reader = reader_of(spec, channels, split=True)
    parts = []
    for leaf, value in zip(reader.spec.leaves, reader.split(read(reader, x)), strict=True):
        require_order(leaf, stats, is_complex=jnp.iscomplexobj(value))
        axes = permuted_axes(leaf)
        lead = value.ndim - len(leaf.atoms) - 1
        moved = jnp.moveaxis(value, axes, range(lead, lead + len(axes)))
        entries = prod(moved.shape[lead : lead + len(axes)])
        rest = prod(moved.shape[lead + len(axes) :])
        parts += _reduced(moved.reshape(*moved.shape[:lead], entries, rest), stats)
    return jnp.concatenate(parts, axis=-1)


def statistics(spec: Any, x: Any) -> Array:
    """Mean, variance and quantiles 0, ¼, ½, ¾, 1 of every channel of every tensor.

    Over all axes, fixed ones too, as in arXiv 2002.11448; (*batch, 7 * channels of all tensors).

    >>> statistics(("n",), jnp.array([[1.0], [3.0]])).tolist()
    [2.0, 1.0, 1.0, 1.5, 2.0, 2.5, 3.0]
    """
    reader = reader_of(spec)
    parts: list[Array] = []
    for leaf, value in zip(reader.spec.leaves, read(reader, x), strict=True):
        require_order(leaf, FIVE_NUMBERS, is_complex=jnp.iscomplexobj(value))
        lead = value.ndim - len(leaf.axes) - 1
        entries = prod(value.shape[lead:-1])
        rows = value.reshape(*value.shape[:lead], entries, value.shape[-1])
        parts += _reduced(rows, FIVE_NUMBERS)
    return jnp.concatenate(parts, axis=-1)


def _reduced(x: Array, stats: Sequence[Statistic]) -> list[Array]:
    """Each statistic of (*batch, entries, features) over the entries."""
    values = _Values(x)
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else values.x.dtype
    return [values.stat(stat).astype(dtype) for stat in stats]


class _Values:
    """Entries to reduce, sorted at most once."""

    def __init__(self, x: Array) -> None:
        self.x = wide(x)

    @cached_property
    def sorted(self) -> Array:
        return jnp.sort(self.x, axis=-2)  # NaN comes last

    def stat(self, stat: Statistic) -> Array:
        if stat == "sum":
            return self.x.sum(-2)
        if stat == "mean" or not self.x.shape[-2]:
            return self.x.mean(-2)  # of nothing, NaN
        if stat == "max":
            return self.x.max(-2)
        if stat == "var":
            return self.x.var(-2)
        return self._quantile(float(stat))

    def _quantile(self, q: float) -> Array:
        # Positions are Python's own numbers: float32 cannot tell places beyond 16 million apart.
        place = q * (self.x.shape[-2] - 1)
        low = floor(place)
        value = self.sorted[..., low, :]
        if place > low:
            value = value + (place - low) * (self.sorted[..., low + 1, :] - value)
        last = self.sorted[..., -1, :]
        return jnp.where(jnp.isnan(last), last, value)
