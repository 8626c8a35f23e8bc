"""A network as a chain of layers: which neurons each axis of each weight belongs to.

In: a `NetworkSpec`. Out: a `Chain`, and views of features in which every axis is either neurons or
fixed.

The one thing to know: neurons are numbered along the chain, 0 the inputs of the network. A weight
has axes (out, in, *taps): the taps of a kernel, or the pixels that a flatten put on one axis with
the channels. A norm's scale has one axis, the neurons it acts on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from symcompile.errors import ShapeError
from symcompile_torch.nfn.common import NetworkSpec, WeightSpaceFeatures

__all__ = [
    "Chain",
    "Layer",
    "chain_of",
    "fold",
    "known_io",
    "merge",
    "require_chain",
    "split",
    "unfold",
]


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight, and its bias if it has one.

    Attributes:
        neurons: the number of the neurons on each of the weight's axes: (out, in) or (on,).
        taps: sizes of its fixed axes, after those.
        flattened: the one entry of `taps` shares a stored axis with the inputs.
        bias: whether there is one; it lies on the first of `neurons`.
    """

    neurons: tuple[int, ...]
    taps: tuple[int, ...]
    flattened: bool
    bias: bool

    @property
    def entries(self) -> int:
        """The number of taps in all."""
        return prod(self.taps)

    @property
    def stored(self) -> int:
        """The number of axes of the weight as users pass it, without batch and channels."""
        return len(self.neurons) + (0 if self.flattened else len(self.taps))


@dataclass(frozen=True, slots=True)
class Chain:
    """All layers, in order.

    Attributes:
        last: the number of the neurons that are the network's outputs.
    """

    layers: tuple[Layer, ...]
    last: int

    @property
    def ends(self) -> tuple[int, int]:
        """The numbers of the neurons that are inputs and outputs of the network."""
        return (0, self.last)

    @property
    def biases(self) -> tuple[int, ...]:
        """The layers that have a bias."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.bias)


def chain_of(network_spec: NetworkSpec) -> Chain:
    """The chain that a spec describes.

    Raises:
        ShapeError: a shape is none of a weight or a bias, or the size of a tap is not known.
    """
    if len(network_spec.weight_spec) != len(network_spec.bias_spec):
        raise ShapeError(
            f"the network spec has {len(network_spec.weight_spec)} weights and "
            f"{len(network_spec.bias_spec)} biases; give None for a layer that has no bias"
        )
    layers: list[Layer] = []
    last = 0
    arrays = zip(network_spec.weight_spec, network_spec.bias_spec, strict=True)
    for i, (weight, bias) in enumerate(arrays):
        # Specs made with nfn itself have no pixels.
        pixels = getattr(weight, "pixels", 1)
        taps = tuple(weight.shape[2:]) + ((pixels,) if pixels != 1 else ())
        if not weight.shape or any(size < 1 for size in taps) or (pixels != 1 and len(taps) > 1):
            raise ShapeError(
                f"weight_spec[{i}] is {weight}; expected the shape (out, in, *taps) with the size "
                "of every tap, (neurons,) of a norm, or (out, in) with pixels after a flatten"
            )
        if bias is not None and len(bias.shape) != 1:
            raise ShapeError(f"bias_spec[{i}] is {bias}; expected the shape (out,), or None")
        if len(weight.shape) > 1:
            last += 1
        neurons = (last, last - 1) if len(weight.shape) > 1 else (last,)
        layers.append(Layer(neurons, taps, pixels != 1, bias is not None))
    if not last:
        raise ShapeError(
            "the network has no linear or convolutional layer; give a spec with at least one "
            "weight of two axes or more"
        )
    return Chain(tuple(layers), last)


def known_io(network_spec: NetworkSpec) -> tuple[int, int]:
    """The numbers of inputs and outputs of the network, where they must be known.

    Raises:
        ShapeError: one of them is −1.
    """
    n_in, n_out = network_spec.get_io()
    if n_in < 1 or n_out < 1:
        raise ShapeError(
            f"the network spec has {n_in} inputs and {n_out} outputs; their numbers must be "
            "known: give the first weight's shape[1] and the last weight's shape[0] a size"
        )
    return n_in, n_out


def split(
    features: WeightSpaceFeatures, chain: Chain, sizes: tuple[int, ...] = ()
) -> WeightSpaceFeatures:
    """Features with weights (batch, channels, *neurons, *taps): pixels have an axis of their own.

    Args:
        sizes: the numbers of inputs and outputs, for layers that tell them apart.

    Raises:
        ShapeError: they are of another network.
    """
    if len(features) != len(chain.layers):
        raise ShapeError(
            f"the features have {len(features)} layers, the network spec {len(chain.layers)}; "
            "give features of the network that the spec was made of"
        )
    weights = []
    for i, (layer, (weight, bias)) in enumerate(zip(chain.layers, features, strict=True)):
        if weight.dim() != layer.stored + 2 or (bias is None) == layer.bias:
            raise ShapeError(
                f"layer {i}: found a weight of shape {tuple(weight.shape)} "
                f"with{'out' if bias is None else ''} bias, expected {layer.stored} axes after "
                f"batch and channels, with{'' if layer.bias else 'out'} bias; give features of "
                "the network that the spec was made of"
            )
        if layer.flattened:
            weight = torch.unflatten(weight, 3, (-1, *layer.taps))
        weights.append(weight)
        for x in (weight, bias):
            if x is not None:
                _require_ends(i, layer, x, dict(zip(chain.ends, sizes, strict=False)))
    return WeightSpaceFeatures(weights, features.biases)


def _require_ends(i: int, layer: Layer, x: Tensor, sizes: dict[int, int]) -> None:
    # Unchecked, a network of one input would be broadcast to as many as the layer knows.
    for neurons, size in zip(layer.neurons, x.shape[2:], strict=False):
        if size != sizes.get(neurons, size):
            raise ShapeError(
                f"layer {i}: found a tensor of shape {tuple(x.shape)}, with {size} "
                f"{'outputs' if neurons else 'inputs'} of the network instead of "
                f"{sizes[neurons]}; give features of the network that the spec was made of"
            )


def require_chain(parts: WeightSpaceFeatures, chain: Chain) -> None:
    """For layers that read neighbours: the neurons between two weights must be the same.

    Args:
        parts: as `split` gives them.

    Raises:
        ShapeError: the network is no chain.
    """
    sizes: dict[int, int] = {}
    for i, (layer, weight) in enumerate(zip(chain.layers, parts.weights, strict=True)):
        for neurons, size in zip(layer.neurons, weight.shape[2:], strict=False):
            if sizes.setdefault(neurons, size) != size:
                raise ShapeError(
                    f"layer {i}: its weight of shape {tuple(weight.shape)} (batch, channels, out, "
                    "in, *taps) does not follow the layer before it, which has "
                    f"{sizes[neurons]} outputs; give the layers of a chain in order (only a linear "
                    "layer after a convolution may have a multiple of its channels as inputs), or "
                    "take layers that need no chain, as Pointwise and NPPool"
                )


def merge(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None], chain: Chain
) -> WeightSpaceFeatures:
    """The inverse of `split`."""
    merged = [
        weight.flatten(3) if layer.flattened else weight
        for layer, weight in zip(chain.layers, weights, strict=True)
    ]
    return WeightSpaceFeatures(merged, biases)


def fold(weight: Tensor, layer: Layer) -> Tensor:
    """(batch, channels, *neurons, *taps) to (batch, channels * taps, *neurons)."""
    if not layer.taps:
        return weight
    first = 2 + len(layer.neurons)
    taps = range(first, first + len(layer.taps))
    return weight.movedim(tuple(taps), tuple(range(2, 2 + len(taps)))).flatten(1, 1 + len(taps))


def unfold(weight: Tensor, layer: Layer) -> Tensor:
    """The inverse of `fold`."""
    if not layer.taps:
        return weight
    apart = torch.unflatten(weight, 1, (-1, *layer.taps))
    last = apart.dim()
    taps = range(2, 2 + len(layer.taps))
    return apart.movedim(tuple(taps), tuple(range(last - len(taps), last)))
