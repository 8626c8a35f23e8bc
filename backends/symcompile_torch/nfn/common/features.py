"""Features of all weights and biases of a network, for a batch of networks.

In: two lists of tensors, one entry for each layer. Out: one value that torch's transforms see
through: it is a pytree.

The one thing to know: a layer without a bias has None in its place, and None is no leaf of the
pytree, so `torch.func.vmap` and `torch.export` never meet it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from symcompile.errors import ShapeError

__all__ = ["WeightSpaceFeatures"]


class WeightSpaceFeatures(Sequence[Any]):
    """The weights and biases of every layer, in order.

    Attributes:
        weights: (batch, channels, out, in, *taps) of a linear or convolutional layer;
            (batch, channels, neurons) of a norm's scale.
        biases: (batch, channels, out), or None where the layer has none.

    Raises:
        ShapeError: there are more weights than biases, or fewer.

    >>> features = WeightSpaceFeatures([torch.ones(8, 1, 3, 2)], [None])
    >>> (features * 2).weights[0].sum().item()
    96.0
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        if len(weights) != len(biases):
            raise ShapeError(
                f"found {len(weights)} weights and {len(biases)} biases, expected one bias for "
                "each weight; give None for a layer that has no bias"
            )
        self.weights = tuple(weights)
        self.biases = tuple(biases)

    def __len__(self) -> int:
        return len(self.weights)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        return zip(self.weights, self.biases, strict=True)

    def __getitem__(self, index: Any) -> Any:
        return self.weights[index], self.biases[index]

    def __add__(self, other: WeightSpaceFeatures) -> WeightSpaceFeatures:
        return self._with(other, torch.add)

    def __mul__(self, other: WeightSpaceFeatures | Tensor | float) -> WeightSpaceFeatures:
        if isinstance(other, WeightSpaceFeatures):
            return self._with(other, torch.mul)
        return self.map(lambda x: x * other)

    def __repr__(self) -> str:
        shapes = [tuple(weight.shape) for weight in self.weights]
        biases = [None if bias is None else tuple(bias.shape) for bias in self.biases]
        return f"WeightSpaceFeatures(weights={shapes}, biases={biases})"

    def map(self, func: Callable[[Tensor], Tensor]) -> WeightSpaceFeatures:
        """`func` of every weight and of every bias there is."""
        return WeightSpaceFeatures(
            [func(weight) for weight in self.weights],
            [None if bias is None else func(bias) for bias in self.biases],
        )

    def detach(self) -> WeightSpaceFeatures:
        """The same values, cut from the graph."""
        return self.map(torch.Tensor.detach)

    def to(self, device: Any) -> WeightSpaceFeatures:
        """All tensors on a device, or of a dtype."""
        return self.map(lambda x: x.to(device, non_blocking=True))

    @classmethod
    def from_zipped(
        cls, weight_and_biases: Iterable[tuple[Tensor, Tensor | None]]
    ) -> WeightSpaceFeatures:
        """From pairs (weight, bias), one for each layer."""
        weights, biases = zip(*weight_and_biases, strict=True)
        return cls(weights, biases)

    @classmethod
    def stack(cls, examples: Sequence[WeightSpaceFeatures]) -> WeightSpaceFeatures:
        """Several networks along a new leading axis.

        torch's `default_collate` does the same for pairs of lists of tensors, but refuses the None
        of a layer without a bias.

        >>> one = WeightSpaceFeatures([torch.ones(1, 3, 2)], [None])
        >>> WeightSpaceFeatures.stack([one, one])
        WeightSpaceFeatures(weights=[(2, 1, 3, 2)], biases=[None])
        """
        first, *others = examples
        stacked = pytree.tree_map(lambda *x: torch.stack(x), first, *others)
        assert isinstance(stacked, cls)
        return stacked

    def _with(
        self, other: WeightSpaceFeatures, func: Callable[[Tensor, Tensor], Tensor]
    ) -> WeightSpaceFeatures:
        if len(self) != len(other) or [b is None for b in self.biases] != [
            b is None for b in other.biases
        ]:
            raise ShapeError(
                f"{self!r} and {other!r} are features of different networks; give two with the "
                "same layers, and biases in the same places"
            )
        return WeightSpaceFeatures(
            [func(a, b) for a, b in zip(self.weights, other.weights, strict=True)],
            [
                None if a is None or b is None else func(a, b)
                for a, b in zip(self.biases, other.biases, strict=True)
            ],
        )


def _flatten(features: WeightSpaceFeatures) -> tuple[list[Any], None]:
    present = {i: bias for i, bias in enumerate(features.biases) if bias is not None}
    return [features.weights, present], None


def _flatten_with_keys(features: WeightSpaceFeatures) -> tuple[list[Any], None]:
    names = ("weights", "biases")
    children, context = _flatten(features)
    return [(pytree.GetAttrKey(n), x) for n, x in zip(names, children, strict=True)], context


def _unflatten(children: Iterable[Any], context: None) -> WeightSpaceFeatures:
    weights, present = children
    return WeightSpaceFeatures(weights, [present.get(i) for i in range(len(weights))])


pytree.register_pytree_node(
    WeightSpaceFeatures,
    _flatten,
    _unflatten,
    serialized_type_name="symcompile_torch.nfn.common.WeightSpaceFeatures",
    flatten_with_keys_fn=_flatten_with_keys,
)
# So that torch.load reads features, and programs exported with some, without weights_only=False.
torch.serialization.add_safe_globals([WeightSpaceFeatures])
