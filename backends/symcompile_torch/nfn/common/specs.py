"""The shapes of a network's weights, and which of its axes are permuted.

In: `WeightSpaceFeatures`. Out: a `NetworkSpec`.

The one thing to know: −1 stands on an axis of hidden neurons, whose order means nothing; inputs of
the first layer and outputs of the last have their size. With `set_all_dims` every axis has its
size, and layers still take hidden neurons to be those between two layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from symcompile.errors import ShapeError
from symcompile_torch.nfn.common.features import WeightSpaceFeatures

__all__ = ["ArraySpec", "NetworkSpec", "network_spec_from_wsfeat"]


@dataclass(frozen=True)
class ArraySpec:
    """The shape of one weight or bias, without batch and channels; −1 on hidden axes.

    Attributes:
        shape: (out, in, *taps), or (out,) of a bias or a norm's scale.
        pixels: of the linear layer after a flatten: its axis `in` has this many entries for each
            of the last convolution's channels, the channel being the outer part.
    """

    shape: tuple[int, ...]
    pixels: int = 1


@dataclass(frozen=True)
class NetworkSpec:
    """The shapes of all weights and biases; a bias is None where a layer has none."""

    weight_spec: Sequence[ArraySpec]
    bias_spec: Sequence[ArraySpec | None]

    def get_io(self) -> tuple[int, int]:
        """The number of inputs and outputs of the network."""
        matrices = [array.shape for array in self.weight_spec if len(array.shape) > 1]
        if not matrices:
            raise ShapeError(
                "the network has no linear or convolutional layer, so it has no inputs and "
                "outputs; give a spec with at least one weight of two axes or more"
            )
        return matrices[0][1], matrices[-1][0]

    def get_num_params(self) -> int:
        """The number of parameters of the network; every size must be known.

        Raises:
            ShapeError: an axis has size −1.
        """
        shapes = [array.shape for array in (*self.weight_spec, *self.bias_spec) if array]
        if any(size == -1 for shape in shapes for size in shape):
            raise ShapeError(
                "the spec has axes of size -1, so its parameters cannot be counted; give one from "
                "network_spec_from_wsfeat(features, set_all_dims=True)"
            )
        return sum(map(prod, shapes))

    def __len__(self) -> int:
        return len(self.weight_spec)


def network_spec_from_wsfeat(
    wsfeat: WeightSpaceFeatures, set_all_dims: bool = False
) -> NetworkSpec:
    """The spec of the network that these are features of.

    Layers follow one another: a weight's inputs are the outputs of the one before. A weight of one
    axis (of a norm) belongs to those outputs too. A linear layer after a convolution may have
    several inputs for each of its channels: then a flatten lies between them. Networks that are no
    chain have a spec too: layers that look at each tensor on its own take them, others raise.

    Args:
        wsfeat: weights (batch, channels, out, in, *taps) or (batch, channels, neurons).
        set_all_dims: give hidden axes their sizes too, as `UnflattenWeights` needs.

    Raises:
        ShapeError: a tensor has too few axes, or a bias is not of its weight's size.

    >>> import torch
    >>> weights = [torch.ones(1, 1, 8, 3, 5, 5), torch.ones(1, 1, 10, 8 * 16)]
    >>> spec = network_spec_from_wsfeat(WeightSpaceFeatures(weights, [None, None]))
    >>> for array in spec.weight_spec:
    ...     print(array)
    ArraySpec(shape=(-1, 3, 5, 5), pixels=1)
    ArraySpec(shape=(10, -1), pixels=16)
    """
    shapes = [tuple(weight.shape[2:]) for weight in wsfeat.weights]
    if not all(shapes):
        where = shapes.index(())
        raise ShapeError(
            f"weights[{where}] has shape {tuple(wsfeat.weights[where].shape)}, expected (batch, "
            "channels, out, in, *taps), or (batch, channels, neurons) of a norm"
        )
    matrices = [i for i, shape in enumerate(shapes) if len(shape) > 1]
    weight_spec: list[ArraySpec] = []
    bias_spec: list[ArraySpec | None] = []
    before: tuple[int, ...] = ()
    for i, (shape, bias) in enumerate(zip(shapes, wsfeat.biases, strict=True)):
        # A norm before the first matrix acts on the inputs, one after the last on the outputs.
        first = not matrices or i <= matrices[0]
        last = not matrices or i >= matrices[-1]
        pixels = 1
        if len(shape) == 1:
            weight_spec.append(ArraySpec(shape if set_all_dims or first or last else (-1,)))
            before = before or shape
        else:
            pixels = _pixels(shape, before)
            out = shape[0] if set_all_dims or last else -1
            into = shape[1] if set_all_dims or first else -1
            weight_spec.append(ArraySpec((out, into, *shape[2:]), pixels))
            before = shape
        size = None if bias is None else bias.shape[-1]
        if size is not None and size != shape[0]:
            raise ShapeError(
                f"biases[{i}] has {size} entries and weights[{i}] {shape[0]} outputs; give the "
                "bias of the same layer"
            )
        known = weight_spec[-1].shape[0]
        bias_spec.append(None if size is None else ArraySpec((known,)))
    return NetworkSpec(weight_spec, bias_spec)


def _pixels(shape: tuple[int, ...], before: tuple[int, ...]) -> int:
    """How many inputs of this weight come from each output of the one before."""
    flattened = len(before) > 2 and len(shape) == 2 and shape[1] % before[0] == 0
    return shape[1] // before[0] if flattened else 1
