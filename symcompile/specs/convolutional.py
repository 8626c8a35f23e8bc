"""The perm_spec of a convolutional network of any spatial dimension.

In: the channels of its convolutions. Out: a `Network`. The one thing to know: flattening a feature
map makes the linear layer's input axis a composite of channels and pixels, whose order is that of
the layout: pixels outside in flax, channels outside in torch. Global pooling leaves channels alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from symcompile.errors import OptionError
from symcompile.specs.tensors import (
    LAYOUTS,
    NORMS,
    Dim,
    Layout,
    Network,
    Norm,
    Tensor,
    choose,
    end,
    flags,
    kernel_taps,
    linear,
    network,
    norm_name,
    norm_tensors,
    product,
)

__all__ = ["cnn"]


def cnn(
    channels: Sequence[int] = (8, 16),
    *,
    dim: Literal[1, 2, 3] = 2,
    taps: int | Sequence[int] = 3,
    pixels: int = 4,
    in_channels: int = 1,
    hidden: Sequence[int] = (),
    classes: int = 10,
    head: Literal["flatten", "pool"] = "flatten",
    norm: Norm = None,
    bias: bool | Sequence[bool] = True,
    permute_ends: bool = False,
    layout: Layout = "flax",
) -> Network:
    """Convolutions, then a flatten or a global pooling, then linear layers.

    In flax, layers called Conv_0, ..., Dense_0, ... (and BatchNorm_0 or LayerNorm_0, ...), as in a
    compact module; kernels are (*taps, channels in, channels out). In torch, `nn.Sequential` of
    convolution, norm if any and activation in turn, then Flatten, or AdaptiveAvgPool and Flatten,
    then Linear and activation in turn, and a Linear; weights are (out, in, *taps). A "layer" norm
    is there `nn.GroupNorm(1, channels)`. `Network.renamed` has other names.

    Args:
        channels: of every convolution's output.
        dim: number of spatial axes.
        taps: of every kernel, one number for all spatial axes or one for each.
        pixels: positions of the last feature map, over all spatial axes; read by "flatten" only.
        in_channels: of the input.
        hidden: widths of hidden layers between the head and the classes.
        classes: size of the output.
        head: what comes between the last convolution and the first linear layer.
        norm: after every convolution; a batch norm comes with its running statistics.
        bias: one for all layers, or one for each, convolutions first.
        permute_ends: label channels of the input and classes "input" and "output", instead of
            fixed axes.
        layout: "flax" or "torch": whose names, and whose order of axes in kernels.

    Returns:
        the spec, and the shapes that bind its sizes.

    Raises:
        OptionError: no channels, or an option that is not allowed.

    >>> cnn((8,)).spec["Dense_0"]["kernel"], cnn((8,)).shapes["Dense_0"]["kernel"]
    (((None, 'channels0'), None), (32, 10))
    >>> cnn((8,), layout="torch").spec["3.weight"]
    (None, ('channels0', None))
    >>> cnn((8,), head="pool", dim=1).spec["Conv_0"]["kernel"]
    (None, None, 'channels0')
    """
    if not isinstance(channels, Sequence) or not channels:
        raise OptionError(
            f"cnn: found channels={channels!r}, expected one size per convolution, as (8, 16)"
        )
    choose("layout", layout, LAYOUTS)
    choose("norm", norm, NORMS)
    choose("head", head, ("flatten", "pool"))
    choose("dim", dim, (1, 2, 3))
    sizes = kernel_taps("cnn", taps, dim)
    with_bias = flags("bias", bias, len(channels) + len(hidden) + 1)
    convolved = [end("input", in_channels, permute_ends)]
    convolved += [Dim(f"channels{i}", count) for i, count in enumerate(channels)]
    apart = 2 if norm is None else 3  # entries of the Sequential from one convolution to the next
    tensors: list[Tensor] = []
    for i, (inputs, outputs) in enumerate(pairwise(convolved)):
        name, after = str(apart * i), str(apart * i + 1)
        if layout == "flax":
            name, after = f"Conv_{i}", norm_name(norm, i)
        tensors += linear(layout, name, inputs, outputs, taps=sizes, bias=with_bias[i])
        tensors += norm_tensors(layout, after, norm, outputs)

    features = convolved[-1]
    if head == "flatten":
        places = Dim(None, pixels)
        features = product(features, places) if layout == "torch" else product(places, features)
    dense = [features, *(Dim(f"hidden{i}", width) for i, width in enumerate(hidden))]
    dense.append(end("output", classes, permute_ends))
    start = apart * len(channels) + (1 if head == "flatten" else 2)
    for i, (inputs, outputs) in enumerate(pairwise(dense)):
        name = f"Dense_{i}" if layout == "flax" else str(start + 2 * i)
        tensors += linear(layout, name, inputs, outputs, bias=with_bias[len(channels) + i])
    return network(tensors)
