"""Encodings of values, and of where in the network a weight stands.

In and out: features; `GaussianFourierFeatureTransform` and `IOSinusoidalEncoding` change the number
of channels. The one thing to know: only the layer, the inputs and the outputs of the network have
a place in an order; hidden neurons have none, so nothing is told of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from symcompile_torch.nfn.chain import chain_of, known_io, merge, split
from symcompile_torch.nfn.common import NetworkSpec, WeightSpaceFeatures

__all__ = ["GaussianFourierFeatureTransform", "IOSinusoidalEncoding", "LearnedPosEmbedding"]


class GaussianFourierFeatureTransform(nn.Module):
    """`[sin, cos](2π x B)` of the channels, B drawn once (Tancik et al., arXiv 2006.10739).

    Args:
        in_channels: of the features.
        mapping_size: half the number of channels that come out.
        scale: standard deviation of B, which is a buffer.

    >>> from symcompile_torch.nfn.common import network_spec_from_wsfeat
    >>> x = WeightSpaceFeatures([torch.ones(5, 4, 8, 3), torch.ones(5, 4, 2, 8)], [None, None])
    >>> GaussianFourierFeatureTransform(network_spec_from_wsfeat(x), 4, mapping_size=16)(x)
    WeightSpaceFeatures(weights=[(5, 32, 8, 3), (5, 32, 2, 8)], biases=[None, None])
    """

    _B: Tensor

    def __init__(
        self,
        network_spec: NetworkSpec,
        in_channels: int,
        mapping_size: int = 256,
        scale: float = 10,
    ) -> None:
        super().__init__()
        self.network_spec = network_spec
        self.in_channels = in_channels
        self.mapping_size = mapping_size
        self.out_channels = 2 * mapping_size
        self.scale = scale
        self.register_buffer("_B", torch.randn(in_channels, mapping_size) * scale)

    def encode_tensor(self, x: Tensor) -> Tensor:
        """(batch, in_channels, ...) to (batch, 2 · mapping_size, ...)."""
        # An angle in bfloat16 would be off by whole turns.
        wide = torch.promote_types(x.dtype, self._B.dtype)
        angles = 2 * math.pi * (x.movedim(1, -1).to(wide) @ self._B.to(wide))
        return torch.cat([angles.sin(), angles.cos()], dim=-1).movedim(-1, 1).to(x.dtype)

    def forward(self, wsfeat: WeightSpaceFeatures) -> WeightSpaceFeatures:
        return wsfeat.map(self.encode_tensor)

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, mapping_size={self.mapping_size}, scale={self.scale}"
        )


class IOSinusoidalEncoding(nn.Module):
    """Appends sines and cosines of the number of the layer, the input and the output.

    Each of these numbers is spread over [−1, 1] and encoded by 2 · num_bands + 1 channels; the
    codes of a weight's layer, input and output are added up.

    Args:
        max_freq: twice the highest frequency.
        num_bands: number of frequencies, from 1 on.
        enc_layers: encode the number of the layer too.

    Raises:
        ShapeError: the spec does not have the numbers of inputs and outputs.

    >>> from symcompile_torch.nfn.common import network_spec_from_wsfeat
    >>> x = WeightSpaceFeatures([torch.ones(5, 4, 8, 3), torch.ones(5, 4, 2, 8)], [None, None])
    >>> IOSinusoidalEncoding(network_spec_from_wsfeat(x))(x)
    WeightSpaceFeatures(weights=[(5, 17, 8, 3), (5, 17, 2, 8)], biases=[None, None])
    """

    def __init__(
        self,
        network_spec: NetworkSpec,
        max_freq: float = 10,
        num_bands: int = 6,
        enc_layers: bool = True,
    ) -> None:
        super().__init__()
        self.network_spec = network_spec
        self.chain = chain_of(network_spec)
        self.max_freq = max_freq
        self.num_bands = num_bands
        self.enc_layers = enc_layers
        self.n_in, self.n_out = known_io(network_spec)

    def num_out_chan(self, in_chan: int) -> int:
        """The number of channels that come out."""
        return in_chan + 2 * self.num_bands + 1

    def forward(self, wsfeat: WeightSpaceFeatures) -> WeightSpaceFeatures:
        parts = split(wsfeat, self.chain, (self.n_in, self.n_out))
        like = parts.weights[0]
        numbers = self._codes(len(self.chain.layers), like)
        if not self.enc_layers:
            numbers = torch.zeros_like(numbers)
        into, out = self.chain.ends
        ends = {into: self._codes(self.n_in, like), out: self._codes(self.n_out, like)}
        weights: list[Tensor] = []
        biases: list[Tensor | None] = []
        for layer, number, (weight, bias) in zip(self.chain.layers, numbers, parts, strict=True):
            weights.append(_append(weight, _code(weight, layer.neurons, number, ends)))
            biases.append(
                None
                if bias is None
                else _append(bias, _code(bias, layer.neurons[:1], number, ends))
            )
        return merge(weights, biases, self.chain)

    def _codes(self, count: int, like: Tensor) -> Tensor:
        """(count, codes) of `count` numbers spread over [−1, 1]."""
        x = torch.linspace(-1, 1, count, dtype=like.dtype, device=like.device)[:, None]
        frequencies = torch.linspace(
            1, self.max_freq / 2, self.num_bands, dtype=like.dtype, device=like.device
        )
        angles = x * frequencies * math.pi
        return torch.cat([angles.sin(), angles.cos(), x], dim=-1)


class LearnedPosEmbedding(nn.Module):
    """Adds a learned vector of every layer, input and output, `channels` long.

    Raises:
        ShapeError: the spec does not have the numbers of inputs and outputs.

    >>> from symcompile_torch.nfn.common import network_spec_from_wsfeat
    >>> x = WeightSpaceFeatures([torch.ones(5, 4, 8, 3), torch.ones(5, 4, 2, 8)], [None, None])
    >>> LearnedPosEmbedding(network_spec_from_wsfeat(x), 4)(x)
    WeightSpaceFeatures(weights=[(5, 4, 8, 3), (5, 4, 2, 8)], biases=[None, None])
    """

    def __init__(self, network_spec: NetworkSpec, channels: int) -> None:
        super().__init__()
        self.network_spec = network_spec
        self.chain = chain_of(network_spec)
        self.channels = channels
        self.n_in, self.n_out = known_io(network_spec)
        self.weight_emb = nn.Embedding(len(network_spec), channels)
        self.bias_emb = nn.Embedding(len(network_spec), channels)
        self.inp_emb = nn.Embedding(self.n_in, channels)
        self.out_emb = nn.Embedding(self.n_out, channels)

    def forward(self, wsfeat: WeightSpaceFeatures) -> WeightSpaceFeatures:
        parts = split(wsfeat, self.chain, (self.n_in, self.n_out))
        into, out = self.chain.ends
        ends = {into: self.inp_emb.weight, out: self.out_emb.weight}
        weights: list[Tensor] = []
        biases: list[Tensor | None] = []
        for i, (layer, (weight, bias)) in enumerate(zip(self.chain.layers, parts, strict=True)):
            code = _code(weight, layer.neurons, self.weight_emb.weight[i], ends)
            weights.append(weight + code)
            if bias is None:
                biases.append(None)
            else:
                code = _code(bias, layer.neurons[:1], self.bias_emb.weight[i], ends)
                biases.append(bias + code)
        return merge(weights, biases, self.chain)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


def _code(x: Tensor, neurons: tuple[int, ...], number: Tensor, ends: dict[int, Tensor]) -> Tensor:
    """The code of a tensor's layer, plus those of the inputs and outputs on its axes.

    Args:
        x: (batch, channels, *neurons, *taps).
        number: (codes,) of the layer.
        ends: (entries, codes) by the number of the neurons.

    Returns:
        (codes, *axes of x), 1 where nothing depends on an axis.
    """
    dims = x.dim() - 2
    code = number.reshape(-1, *(1,) * dims)
    for axis, n in enumerate(neurons):
        if n in ends:
            entries = ends[n].T
            code = code + entries.reshape(
                -1, *(1,) * axis, entries.shape[1], *(1,) * (dims - axis - 1)
            )
    return code


def _append(x: Tensor, code: Tensor) -> Tensor:
    return torch.cat([x, code.expand(x.shape[0], -1, *x.shape[2:])], dim=1)
