"""Norms and dropout of channels.

In and out: features of the same shape. The one thing to know: a kernel's taps, and the pixels of a
flatten, are fixed axes, and count as channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symcompile_torch.nfn.chain import chain_of, fold, known_io, merge, split, unfold
from symcompile_torch.nfn.common import NetworkSpec, WeightSpaceFeatures
from symcompile_torch.nfn.layers.wrappers import map_present

__all__ = ["ChannelDropout", "ChannelLayerNorm", "ParamLayerNorm", "SimpleLayerNorm"]


class ChannelLayerNorm(nn.Module):
    """(x − mean) / (deviation + eps) over the channels of one tensor (batch, channels, ...).

    The deviation is that of a sample, as in nfn. A single channel is its own mean: what comes out
    is `beta`, as of `torch.nn.LayerNorm`.

    >>> ChannelLayerNorm(2)(torch.tensor([[[1.0, 3.0], [2.0, 5.0]]])).detach()
    tensor([[[-0.7071, -0.7071],
             [ 0.7071,  0.7071]]])
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        deviation = x.std(dim=-1, keepdim=True, correction=min(1, x.shape[-1] - 1))
        x = (x - x.mean(dim=-1, keepdim=True)) / (deviation + self.eps)
        return (x * self.gamma + self.beta).movedim(-1, 1)


class SimpleLayerNorm(nn.Module):
    """A `ChannelLayerNorm` for every tensor, over its channels and taps.

    >>> from symcompile_torch.nfn.common import network_spec_from_wsfeat
    >>> x = WeightSpaceFeatures([torch.ones(5, 4, 8, 3), torch.ones(5, 4, 2, 8)], [None, None])
    >>> SimpleLayerNorm(network_spec_from_wsfeat(x), 4)(x)
    WeightSpaceFeatures(weights=[(5, 4, 8, 3), (5, 4, 2, 8)], biases=[None, None])
    """

    def __init__(self, network_spec: NetworkSpec, channels: int) -> None:
        super().__init__()
        self.network_spec = network_spec
        self.chain = chain_of(network_spec)
        self.channels = channels
        self.w_norms = nn.ModuleList(
            ChannelLayerNorm(channels * layer.entries) for layer in self.chain.layers
        )
        self.v_norms = nn.ModuleDict(
            {str(i): ChannelLayerNorm(channels) for i in self.chain.biases}
        )

    def forward(self, wsfeat: WeightSpaceFeatures) -> WeightSpaceFeatures:
        parts = split(wsfeat, self.chain)
        weights = [
            unfold(norm(fold(weight, layer)), layer)
            for norm, weight, layer in zip(
                self.w_norms, parts.weights, self.chain.layers, strict=True
            )
        ]
        return merge(weights, map_present(self.v_norms, parts.biases), self.chain)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


class ParamLayerNorm(nn.Module):
    """Layer norm over the channels and fixed axes of every tensor, a scale and shift for each.

    Fixed are taps, the inputs of the first layer, and the outputs of the last (in a network of one
    layer its inputs only, as in nfn).

    Raises:
        ShapeError: the spec does not have the numbers of inputs and outputs.

    >>> from symcompile_torch.nfn.common import network_spec_from_wsfeat
    >>> x = WeightSpaceFeatures([torch.ones(5, 4, 8, 3), torch.ones(5, 4, 2, 8)], [None, None])
    >>> ParamLayerNorm(network_spec_from_wsfeat(x), 4)(x)
    WeightSpaceFeatures(weights=[(5, 4, 8, 3), (5, 4, 2, 8)], biases=[None, None])
    """

    def __init__(self, network_spec: NetworkSpec, channels: int) -> None:
        super().__init__()
        self.network_spec = network_spec
        self.chain = chain_of(network_spec)
        self.channels = channels
        self.n_in, self.n_out = known_io(network_spec)
        self._weight_dims: list[tuple[int, ...]] = []
        self._bias_dims: list[tuple[int, ...]] = []
        for i, layer in enumerate(self.chain.layers):
            taps = tuple(range(2 + len(layer.neurons), 2 + len(layer.neurons) + len(layer.taps)))
            shape, dims = self._normalized(layer.neurons)
            self._weight_dims.append((*dims, *taps))
            self.add_module(f"norm{i}_w", nn.LayerNorm((*shape, *layer.taps)))
            shape, dims = self._normalized(layer.neurons[:1])
            self._bias_dims.append(dims)
            if layer.bias:
                self.add_module(f"norm{i}_v", nn.LayerNorm(shape))

    def _normalized(self, neurons: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sizes and places of the axes that a tensor is normalized over."""
        if neurons[-1] == 0:
            return (self.channels, self.n_in), (1, 1 + len(neurons))
        if neurons[0] == self.chain.last and self.chain.last > 1:
            # The order of a weight's and a bias's axes is nfn's, so that its parameters fit.
            weight = len(neurons) > 1
            sizes, dims = (self.n_out, self.channels), (2, 1)
            return (sizes, dims) if weight else (sizes[::-1], dims[::-1])
        return (self.channels,), (1,)

    def forward(self, wsfeat: WeightSpaceFeatures) -> WeightSpaceFeatures:
        parts = split(wsfeat, self.chain)
        weights = [
            _normalize(weight, self.get_submodule(f"norm{i}_w"), self._weight_dims[i])
            for i, weight in enumerate(parts.weights)
        ]
        biases = [
            None
            if bias is None
            else _normalize(bias, self.get_submodule(f"norm{i}_v"), self._bias_dims[i])
            for i, bias in enumerate(parts.biases)
        ]
        return merge(weights, biases, self.chain)


class ChannelDropout(nn.Module):
    """Drops whole channels of each weight and bias, alike at all neurons; taps are channels too.

    >>> x = WeightSpaceFeatures([torch.ones(5, 4, 8, 3)], [None])
    >>> y = ChannelDropout(0.5)(x).weights[0]
    >>> bool((y == y[:, :, :1, :1]).all())
    True
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, x: WeightSpaceFeatures) -> WeightSpaceFeatures:
        return WeightSpaceFeatures(
            [self._drop(weight, 2) for weight in x.weights],
            [None if bias is None else self._drop(bias, 1) for bias in x.biases],
        )

    def _drop(self, x: Tensor, neurons: int) -> Tensor:
        if not self.training:
            return x
        kept = x.new_ones(*x.shape[:2], *(1,) * min(neurons, x.dim() - 2), *x.shape[2 + neurons :])
        return x * F.dropout(kept, self.dropout)

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}"


def _normalize(x: Tensor, norm: nn.Module, dims: tuple[int, ...]) -> Tensor:
    last = tuple(range(-len(dims), 0))
    normalized: Tensor = norm(x.movedim(dims, last))
    return normalized.movedim(last, dims)
