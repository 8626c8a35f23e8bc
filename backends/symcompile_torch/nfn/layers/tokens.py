"""A network as a set of tokens, one for each of its parameters, and attention to and from it.

In: features, or an array (batch, tokens, channels). Out: the other.

The one thing to know: tokens stand in the order of the layers, weight before bias, each in the
order of memory; a kernel's taps are tokens of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symcompile.errors import ShapeError
from symcompile_torch.nfn.common import NetworkSpec, WeightSpaceFeatures

__all__ = ["CrossAttnDecoder", "CrossAttnEncoder", "FlattenWeights", "UnflattenWeights"]


class FlattenWeights(nn.Module):
    """Features to tokens (batch, parameters, channels).

    >>> from symcompile_torch.nfn.common import network_spec_from_wsfeat
    >>> x = WeightSpaceFeatures([torch.ones(5, 4, 8, 3), torch.ones(5, 4, 2, 8)], [None, None])
    >>> spec = network_spec_from_wsfeat(x, set_all_dims=True)
    >>> FlattenWeights(spec)(x).shape, spec.get_num_params()
    (torch.Size([5, 40, 4]), 40)
    """

    def __init__(self, network_spec: NetworkSpec) -> None:
        super().__init__()
        self.network_spec = network_spec

    def forward(self, wsfeat: WeightSpaceFeatures) -> Tensor:
        tensors = [tensor for pair in wsfeat for tensor in pair if tensor is not None]
        return torch.cat([tensor.flatten(2).transpose(1, 2) for tensor in tensors], dim=1)


class UnflattenWeights(nn.Module):
    """Tokens (batch, parameters, channels) to features.

    Args:
        network_spec: with the size of every axis, as `network_spec_from_wsfeat` gives them with
            `set_all_dims=True`.

    Raises:
        ShapeError: an axis of the spec has no size; at a call, the number of tokens is not that of
            the network's parameters.

    >>> from symcompile_torch.nfn.common import ArraySpec
    >>> UnflattenWeights(NetworkSpec([ArraySpec((8, 3))], [ArraySpec((8,))]))(torch.ones(5, 32, 4))
    WeightSpaceFeatures(weights=[(5, 4, 8, 3)], biases=[(5, 4, 8)])
    """

    def __init__(self, network_spec: NetworkSpec) -> None:
        super().__init__()
        self.network_spec = network_spec
        self.num_params = network_spec.get_num_params()

    def forward(self, x: Tensor) -> WeightSpaceFeatures:
        if x.shape[1] != self.num_params:
            raise ShapeError(
                f"found {x.shape[1]} tokens in shape {tuple(x.shape)} (batch, tokens, channels), "
                f"expected {self.num_params}, one for each parameter of the network"
            )
        parts = iter(torch.split(x.transpose(1, 2), list(self._sizes()), dim=2))
        weights: list[Tensor] = []
        biases: list[Tensor | None] = []
        arrays = zip(self.network_spec.weight_spec, self.network_spec.bias_spec, strict=True)
        for weight, bias in arrays:
            weights.append(torch.unflatten(next(parts), 2, weight.shape))
            biases.append(None if bias is None else torch.unflatten(next(parts), 2, bias.shape))
        return WeightSpaceFeatures(weights, biases)

    def _sizes(self) -> Iterator[int]:
        arrays = zip(self.network_spec.weight_spec, self.network_spec.bias_spec, strict=True)
        for weight, bias in arrays:
            yield prod(weight.shape)
            if bias is not None:
                yield prod(bias.shape)


class CrossAttnEncoder(nn.Module):
    """Features to latents (batch, num_latents, channels): each attends to all parameters.

    >>> from symcompile_torch.nfn.common import network_spec_from_wsfeat
    >>> x = WeightSpaceFeatures([torch.ones(5, 4, 8, 3), torch.ones(5, 4, 2, 8)], [None, None])
    >>> CrossAttnEncoder(network_spec_from_wsfeat(x), 4, num_latents=7)(x).shape
    torch.Size([5, 7, 4])
    """

    def __init__(self, network_spec: NetworkSpec, channels: int, num_latents: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(num_latents, channels))
        self.flatten = FlattenWeights(network_spec)

    def forward(self, params: WeightSpaceFeatures) -> Tensor:
        return _attend(self.embeddings, self.flatten(params))


class CrossAttnDecoder(nn.Module):
    """Latents (batch, latents, channels) to features: each parameter attends to all of them.

    Args:
        num_params: of the network, `network_spec.get_num_params()`; every axis has its size.

    >>> from symcompile_torch.nfn.common import ArraySpec
    >>> spec = NetworkSpec([ArraySpec((8, 3))], [ArraySpec((8,))])
    >>> CrossAttnDecoder(spec, 4, spec.get_num_params())(torch.ones(5, 7, 4))
    WeightSpaceFeatures(weights=[(5, 4, 8, 3)], biases=[(5, 4, 8)])
    """

    def __init__(self, network_spec: NetworkSpec, channels: int, num_params: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(num_params, channels))
        self.unflatten = UnflattenWeights(network_spec)

    def forward(self, latents: Tensor) -> WeightSpaceFeatures:
        out: WeightSpaceFeatures = self.unflatten(_attend(self.embeddings, latents))
        return out


def _attend(queries: Tensor, tokens: Tensor) -> Tensor:
    queries = queries.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
    return F.scaled_dot_product_attention(queries, tokens, tokens)
