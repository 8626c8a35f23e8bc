"""The perm_spec of a multi-layer perceptron.

In: the widths of its layers. Out: a `Network`. The one thing to know: every layer of hidden neurons
is a label of its own, shared by the kernel before it, the bias, the norm and the kernel after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

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
    linear,
    network,
    norm_name,
    norm_tensors,
)

__all__ = ["mlp"]


def mlp(
    widths: Sequence[int],
    *,
    bias: bool | Sequence[bool] = True,
    norm: Norm = None,
    permute_ends: bool = False,
    layout: Layout = "flax",
) -> Network:
    """A multi-layer perceptron.

    In flax, layers called Dense_0, Dense_1, ... (and BatchNorm_0 or LayerNorm_0, ...), as in a
    compact module. In torch, `nn.Sequential` of Linear, norm if any and activation in turn, and a
    Linear: "0.weight", "2.weight", ... without norms. `Network.renamed` has other names.

    Args:
        widths: sizes of all layers of neurons, inputs and outputs included.
        bias: one for all linear layers, or one for each.
        norm: after every hidden linear layer; a batch norm comes with its running statistics.
        permute_ends: label inputs and outputs "input" and "output", instead of fixed axes.
        layout: "flax" or "torch": whose names, and whose order of axes in kernels.

    Returns:
        the spec, and the shapes that bind its sizes.

    Raises:
        OptionError: fewer than two widths, or an option that is not allowed.

    >>> mlp((64, 16, 10)).spec["Dense_0"]
    {'kernel': (None, 'hidden0'), 'bias': ('hidden0',)}
    >>> mlp((64, 16, 10)).shapes["Dense_1"]
    {'kernel': (16, 10), 'bias': (10,)}
    >>> mlp((64, 16, 10), layout="torch", bias=False).spec
    {'0.weight': ('hidden0', None), '2.weight': (None, 'hidden0')}
    """
    if not isinstance(widths, Sequence) or len(widths) < 2:
        raise OptionError(
            f"mlp: found widths={widths!r}, expected at least 2 sizes; "
            "give the input and the output size too, such as (64, 16, 10)"
        )
    choose("layout", layout, LAYOUTS)
    choose("norm", norm, NORMS)
    hidden = [Dim(f"hidden{i}", width) for i, width in enumerate(widths[1:-1])]
    dims = (
        end("input", widths[0], permute_ends),
        *hidden,
        end("output", widths[-1], permute_ends),
    )
    with_bias = flags("bias", bias, len(dims) - 1)
    apart = 2 if norm is None else 3  # entries of the Sequential from one linear layer to the next
    tensors: list[Tensor] = []
    for i, (inputs, outputs) in enumerate(pairwise(dims)):
        name, after = str(apart * i), str(apart * i + 1)
        if layout == "flax":
            name, after = f"Dense_{i}", norm_name(norm, i)
        tensors += linear(layout, name, inputs, outputs, bias=with_bias[i])
        if i < len(hidden):
            tensors += norm_tensors(layout, after, norm, outputs)
    return network(tensors)
