"""Statistics of tensors: invariant pooling, and the features of a whole network.

In: a tree. Out: one array (*batch, features).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from symcompile.library import FIVE_NUMBERS, Statistic, parse_stats, pooled_features
from symcompile.spec import parse_spec, resolve_channels
from symcompile_jax.functional import invariant_pool, statistics
from symcompile_jax.nn.weights import bound

__all__ = ["InvariantPool", "StatFeaturizer"]


class InvariantPool(nnx.Module):
    """Statistics over all permuted axes of each tensor; fixed axes are kept, as features.

    Args:
        spec: as for `symcompile.compile`.
        stats: which ones, of "mean", "sum", "max", "var" (biased), and quantiles as numbers in
            [0, 1] (linear between entries; not a number if any entry is).
        shapes: as for `symcompile.compile`; needed for `out_features` where the spec says None.

    Returns:
        when called, (*batch, features): tensors in canonical order, of each the statistics in the
        order given, of each (fixed indices..., channels) in a row.

    Raises:
        SpecError, ShapeError, OptionError: an argument is malformed; ShapeError: a tree does not
            fit the spec.

    >>> import jax.numpy as jnp
    >>> pool = InvariantPool({"w": (0, 1), "b": (1,)}, ("mean", "max", 0.5))
    >>> pool({"w": jnp.arange(6.0).reshape(3, 2, 1), "b": jnp.ones((2, 1))}).tolist()
    [1.0, 1.0, 1.0, 2.5, 5.0, 2.5]
    >>> pool.out_features(channels=8)
    48
    """

    def __init__(
        self, spec: Any, stats: Sequence[Statistic] = ("mean",), *, shapes: Any = None
    ) -> None:
        self.stats = parse_stats(stats)
        self.spec = bound(spec, shapes)

    def out_features(self, channels: Any) -> int:
        """The number of features, for an int of channels or a tree of them."""
        counts = resolve_channels(self.spec, channels, "channels")
        return pooled_features(self.spec, counts, self.stats, keep_fixed=True)

    def __call__(self, x: Any) -> jax.Array:
        return invariant_pool(self.spec, x, self.stats)


class StatFeaturizer(nnx.Module):
    """Mean, variance and the quantiles 0, 1/4, 1/2, 3/4, 1 of each tensor and channel.

    Over all axes, permuted and fixed (Unterthiner et al., arXiv 2002.11448); any real dtype, any
    size: of no entries, NaN.

    Args:
        spec: as for `symcompile.compile`.

    Returns:
        when called, (*batch, features): tensors in canonical order, of each the seven statistics,
        of each the channels.

    Raises:
        SpecError: the spec is malformed; ShapeError: a tree does not fit it.

    >>> import jax.numpy as jnp
    >>> StatFeaturizer({"b": (0,)})({"b": jnp.arange(5.0)[:, None]}).tolist()
    [2.0, 2.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    """

    def __init__(self, spec: Any) -> None:
        self.spec = parse_spec(spec)

    def out_features(self, channels: Any) -> int:
        """The number of features, for an int of channels or a tree of them."""
        counts = resolve_channels(self.spec, channels, "channels")
        return pooled_features(self.spec, counts, FIVE_NUMBERS, keep_fixed=False)

    def __call__(self, x: Any) -> jax.Array:
        return statistics(self.spec, x)
