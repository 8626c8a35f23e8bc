"""Statistics of tensors: invariant pooling, and the features of a whole network.

In: a tree. Out: one tensor (*batch, features).
The one thing to know: variances are biased, so that of one entry is zero; quantiles come from a
sort, which takes tensors of any size, unlike `torch.quantile`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Any

import torch
from torch import Tensor, nn

from symcompile.library import (
    FIVE_NUMBERS,
    Statistic,
    fixed_axes,
    parse_stats,
    permuted_axes,
    pooled_features,
    require_order,
)
from symcompile.spec import Leaf, resolve_channels
from symcompile_torch.nn.trees import reader, widened

__all__ = ["InvariantPool", "StatFeaturizer"]


class InvariantPool(nn.Module):
    """Statistics over all permuted axes of each tensor; fixed axes are kept, as features.

    Args:
        spec: as for `symcompile.compile`.
        stats: which ones, of "mean", "sum", "max", "var" (biased), and quantiles as numbers in
            [0, 1] (linear between entries; not a number if any entry is). Of no entries all but the
            sum are not a number; complex entries have no "max" and no quantiles.
        shapes: as for `symcompile.compile`; needed for `out_features` where the spec says None.

    Returns:
        when called, (*batch, features): tensors in canonical order, of each the statistics in the
        order given, of each (fixed indices..., channels) in a row.

    Raises:
        SpecError, ShapeError, OptionError: an argument is malformed; ShapeError: a tree does not
            fit the spec.

    >>> pool = InvariantPool({"w": (0, 1), "b": (1,)}, ("mean", "max", 0.5))
    >>> pool({"w": torch.arange(6.0).reshape(3, 2, 1), "b": torch.ones(2, 1)}).tolist()
    [1.0, 1.0, 1.0, 2.5, 5.0, 2.5]
    >>> pool.out_features(channels=8)
    48
    """

    def __init__(
        self, spec: Any, stats: Sequence[Statistic] = ("mean",), *, shapes: Any = None
    ) -> None:
        super().__init__()
        self.stats = parse_stats(stats)
        self.reader = reader(spec, shapes=shapes, split=True)

    def out_features(self, channels: Any) -> int:
        """The number of features, for an int of channels or a tree of them."""
        spec = self.reader.spec
        counts = resolve_channels(spec, channels, "channels")
        return pooled_features(spec, counts, self.stats, keep_fixed=True)

    def forward(self, x: Any) -> Tensor:
        return self.pooled(self.reader.read(x))

    def pooled(self, leaves: Sequence[Tensor]) -> Tensor:
        """The features of leaves in canonical order."""
        pairs = zip(self.reader.split(leaves), self.reader.spec.leaves, strict=True)
        return torch.cat(
            [
                _pooled(x, leaf, permuted_axes(leaf), fixed_axes(leaf), self.stats)
                for x, leaf in pairs
            ],
            dim=-1,
        )

    def extra_repr(self) -> str:
        return f"stats={self.stats}"


class StatFeaturizer(nn.Module):
    """Mean, variance and the quantiles 0, 1/4, 1/2, 3/4, 1 of each tensor and channel.

    Over all axes, permuted and fixed (Unterthiner et al., arXiv 2002.11448); any real dtype, any
    size: of no entries, not a number.

    Args:
        spec: as for `symcompile.compile`.

    Returns:
        when called, (*batch, features): tensors in canonical order, of each the seven statistics,
        of each the channels.

    Raises:
        SpecError: the spec is malformed; ShapeError: a tree does not fit it.

    >>> StatFeaturizer({"b": (0,)})({"b": torch.arange(5.0)[:, None]}).tolist()
    [2.0, 2.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    """

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.reader = reader(spec)

    def out_features(self, channels: Any) -> int:
        """The number of features, for an int of channels or a tree of them."""
        spec = self.reader.spec
        counts = resolve_channels(spec, channels, "channels")
        return pooled_features(spec, counts, FIVE_NUMBERS, keep_fixed=False)

    def forward(self, x: Any) -> Tensor:
        pairs = zip(self.reader.read(x), self.reader.spec.leaves, strict=True)
        return torch.cat(
            [
                _pooled(value, leaf, tuple(range(-len(leaf.axes) - 1, -1)), (), FIVE_NUMBERS)
                for value, leaf in pairs
            ],
            dim=-1,
        )


def _pooled(
    x: Tensor,
    leaf: Leaf,
    reduced: Sequence[int],
    kept: Sequence[int],
    stats: Sequence[Statistic],
) -> Tensor:
    """(*batch, *atoms, channels) to (*batch, statistics x kept x channels)."""
    require_order(leaf, stats, is_complex=x.is_complex())
    lead = x.ndim - len(reduced) - len(kept) - 1
    columns = x.permute(*range(lead), *kept, *reduced, -1)
    columns = columns.flatten(lead + len(kept), -2) if reduced else columns.unsqueeze(-2)
    dtype = x.dtype if x.is_floating_point() or x.is_complex() else torch.float32
    wide, order = widened(columns), None
    features = []
    for stat in stats:
        if not columns.shape[-2] and stat != "sum":
            feature = wide.mean(-2)  # of nothing, not a number
        elif isinstance(stat, str):
            feature = _moment(wide, stat)
        else:
            order = columns.sort(dim=-2).values if order is None else order
            feature = _quantile(order, stat)
        features.append(feature.to(dtype).flatten(lead))
    return torch.cat(features, dim=-1)


def _moment(x: Tensor, stat: str) -> Tensor:
    if stat == "mean":
        return x.mean(-2)
    if stat == "sum":
        return x.sum(-2)
    if stat == "max":
        return x.amax(-2)
    centred = x - x.mean(-2, keepdim=True)
    return (centred * centred.conj()).real.mean(-2)


def _quantile(order: Tensor, q: float) -> Tensor:
    """The q-quantile along axis -2 of sorted entries, linear between neighbours."""
    last = order.shape[-2] - 1
    low = floor(q * last)
    part = q * last - low
    value = widened(order.select(-2, low))
    if part:
        value = (1 - part) * value + part * widened(order.select(-2, low + 1))
    worst = widened(order.select(-2, last))  # sorted last, if there is one that is not a number
    return torch.where(worst.isnan(), worst, value)
