"""Networks in a few lines: an equivariant trunk, and an invariant head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from symcompile.errors import OptionError
from symcompile.library import Statistic, check_rate, count
from symcompile_torch.nn.containers import Residual, Sequential
from symcompile_torch.nn.linear import EquivariantLinear
from symcompile_torch.nn.pointwise import Activation, ChannelDropout
from symcompile_torch.nn.pooling import InvariantPool
from symcompile_torch.nn.start import noise, put
from symcompile_torch.nn.trees import reader

__all__ = ["InvariantHead", "trunk"]


def trunk(
    spec: Any,
    channels: Sequence[int],
    *,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    norm: Callable[[Any, int], nn.Module] | None = None,
    dropout: float = 0.0,
    residual: bool = False,
    **options: Any,
) -> Sequential:
    """Equivariant layers with activations between.

    The first layer is linear; every further one is norm, activation, dropout, linear (the order
    of He et al., arXiv 1603.05027). The last has no activation behind it: `InvariantHead` starts
    with one.

    Args:
        spec: as for `symcompile.compile`.
        channels: of the input, then of what each layer makes; at least two.
        activation: a function of tensors.
        norm: from spec and channels to a module, such as `ChannelNorm` or `TensorNorm`.
        dropout: rate of `ChannelDropout`.
        residual: add a layer's input to its output where they have equally many channels.
        options: of `symcompile.compile`, such as `shapes`.

    Raises:
        OptionError: fewer than two channel counts, or an option is not allowed.
        SymcompileError: as `symcompile.compile`.

    >>> from symcompile_torch.nn import ChannelNorm
    >>> net = trunk({"w": (0, 1), "b": (1,)}, [1, 16, 16, 2], norm=ChannelNorm, residual=True)
    >>> y = net({"w": torch.ones(5, 3, 4, 1), "b": torch.ones(5, 4, 1)})
    >>> tuple(y["w"].shape), [type(layer).__name__ for layer in net.layers]
    ((5, 3, 4, 2), ['EquivariantLinear', 'Residual', 'ChannelNorm', 'Activation', ...])
    """
    if not isinstance(channels, Sequence) or len(channels) < 2:
        raise OptionError(
            f"channels: found {channels!r:.80}, expected at least two counts, of the input and of "
            "each layer, such as [1, 32, 32]"
        )
    widths = [count(width, "channels") for width in channels]
    rate = check_rate(dropout)

    def linear(before: int, after: int) -> nn.Module:
        return EquivariantLinear(spec, in_channels=before, out_channels=after, **options)

    layers = [linear(*widths[:2])]
    for before, after in pairwise(widths[1:]):
        parts = [] if norm is None else [norm(spec, before)]
        parts.append(Activation(activation))
        if rate:
            parts.append(ChannelDropout(rate, spec))
        parts.append(linear(before, after))
        layers += [Residual(*parts)] if residual and before == after else parts
    return Sequential(*layers)


class InvariantHead(nn.Module):
    """Activation, invariant pooling, then a multi-layer perceptron of the features.

    Weights: `weight.k` (inputs, outputs), standard deviation inputs ** -0.5, and `bias.k`
    (outputs,), zero, for every layer k of the perceptron.

    Args:
        spec: as for `symcompile.compile`.
        in_channels: an int, or a tree of them.
        hidden: width of the hidden layer, or widths of several, or () for none.
        out_features: how many numbers come out.
        stats: as for `InvariantPool`.
        activation: a function of tensors.
        shapes: as for `symcompile.compile`; sizes fixed axes written None.

    Returns:
        when called, (*batch, out_features).

    Raises:
        SpecError, ShapeError, OptionError: an argument is malformed or a fixed axis has no size;
            ShapeError: a tree does not fit the spec.

    >>> head = InvariantHead({"w": (0, 1), "b": (1,)}, 8, hidden=32, out_features=3)
    >>> tuple(head({"w": torch.ones(5, 3, 4, 8), "b": torch.ones(5, 4, 8)}).shape)
    (5, 3)
    """

    def __init__(
        self,
        spec: Any,
        in_channels: Any,
        hidden: int | Sequence[int],
        out_features: int,
        *,
        stats: Sequence[Statistic] = ("mean",),
        activation: Callable[[Tensor], Tensor] = torch.relu,
        shapes: Any = None,
    ) -> None:
        super().__init__()
        self.pool = InvariantPool(spec, stats, shapes=shapes)
        self.reader = reader(spec, in_channels, shapes=shapes)
        self.activation = activation
        between = hidden if isinstance(hidden, Sequence) else (hidden,)
        widths = [
            self.pool.out_features(in_channels),
            *(count(width, "hidden") for width in between),
            count(out_features, "out_features"),
        ]
        pairs = list(pairwise(widths))
        self.weight = nn.ParameterList(torch.empty(a, b) for a, b in pairs)
        self.bias = nn.ParameterList(torch.empty(b) for _, b in pairs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; biases start at zero."""
        for weight, bias in zip(self.weight, self.bias, strict=True):
            put(weight, noise(weight) * weight.shape[0] ** -0.5)
            nn.init.zeros_(bias)

    def forward(self, x: Any) -> Tensor:
        leaves = self.reader.read(x)
        h = self.pool.pooled([self.activation(leaf) for leaf in leaves])
        for k, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            h = h if k == 0 else self.activation(h)
            h = h @ weight.to(h.dtype) + bias.to(h.dtype)
        return h
