"""The perm_spec of a chain of residual blocks, dense or convolutional.

In: the width of the residual stream and the number of blocks. Out: a `Network`. The one thing to
know: every block adds to the stream, so the stream has ONE label over all blocks; what a block
computes inside has a label of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

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
    kernel_taps,
    linear,
    network,
    norm_tensors,
)

__all__ = ["residual"]


def residual(
    inputs: int,
    width: int,
    outputs: int,
    *,
    blocks: int = 2,
    hidden: int | None = None,
    dim: Literal[0, 1, 2, 3] = 0,
    taps: int | Sequence[int] = 3,
    norm: Norm = None,
    bias: bool = True,
    permute_ends: bool = False,
    layout: Layout = "flax",
) -> Network:
    """An embedding into a stream, blocks that add to it, and a linear head.

    A block is stream + last(activation(first(norm(stream)))). Its layers are called "norm", "first"
    and "last", in "blocks_0" and so on in flax, "blocks.0" in torch; besides there are "embed",
    "head_norm" (if there are norms) and "head".

    Args:
        inputs, width, outputs: neurons, or channels, of the input, of the stream and of the output.
        blocks: how many there are.
        hidden: neurons, or channels, inside a block; default `width`.
        dim: 0 for dense layers; 1, 2 or 3 for convolutions over that many axes, pooled over all
            positions before the head, which is dense. A "layer" norm is then nn.GroupNorm(1,
            channels) in torch.
        taps: of every kernel, one number for all spatial axes or one for each.
        norm: at the start of every block and before the head; a batch norm comes with its running
            statistics.
        bias: of all layers.
        permute_ends: label inputs and outputs "input" and "output", instead of fixed axes.
        layout: "flax" or "torch": whose names, and whose order of axes in kernels.

    Returns:
        the spec, and the shapes that bind its sizes.

    Raises:
        OptionError: an option that is not allowed.

    >>> residual(4, 8, 2).spec["blocks_1"]["last"]
    {'kernel': ('blocks1.hidden', 'stream'), 'bias': ('stream',)}
    >>> residual(4, 8, 2, dim=2, layout="torch").shapes["blocks.0.first.weight"]
    (8, 8, 3, 3)
    """
    choose("layout", layout, LAYOUTS)
    choose("norm", norm, NORMS)
    choose("dim", dim, (0, 1, 2, 3))
    sizes = kernel_taps("residual", taps, dim)
    stream = Dim("stream", width)

    def layer(name: str, source: Dim, target: Dim) -> list[Tensor]:
        return linear(layout, name, source, target, taps=sizes, bias=bias)

    tensors = layer("embed", end("input", inputs, permute_ends), stream)
    for i in range(blocks):
        block = f"blocks.{i}" if layout == "torch" else f"blocks_{i}"
        inside = Dim(f"blocks{i}.hidden", width if hidden is None else hidden)
        tensors += norm_tensors(layout, f"{block}.norm", norm, stream)
        tensors += layer(f"{block}.first", stream, inside)
        tensors += layer(f"{block}.last", inside, stream)
    tensors += norm_tensors(layout, "head_norm", norm, stream)
    classes = end("output", outputs, permute_ends)
    return network([*tensors, *linear(layout, "head", stream, classes, bias=bias)])
