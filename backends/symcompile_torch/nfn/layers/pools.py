"""Invariant features: means over permuted axes, and statistics of whole tensors.

In: `WeightSpaceFeatures`. Out: one array (batch, channels, outputs).

The one thing to know: `get_num_outs` counts the outputs of one channel, as nfn's does; with
`channels` it counts all of them, which is what a linear layer after `Flatten` needs.
"""

from __future__ import annotations

from math import floor, prod

import torch
from torch import Tensor, nn

from symcompile_torch.nfn.chain import Chain, Layer, chain_of, known_io, split
from symcompile_torch.nfn.common import NetworkSpec, WeightSpaceFeatures

__all__ = ["HNPPool", "NPPool", "StatFeaturizer"]

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


class _Pool(nn.Module):
    """The mean of each tensor over the neurons that `_kept` does not name."""

    def __init__(self, network_spec: NetworkSpec) -> None:
        super().__init__()
        self.network_spec = network_spec
        self.chain = chain_of(network_spec)

    @staticmethod
    def _kept(chain: Chain) -> tuple[int, ...]:
        """The numbers of the neurons that are not averaged."""
        raise NotImplementedError

    def forward(self, wsfeat: WeightSpaceFeatures) -> Tensor:
        """(batch, channels, outputs): weight then bias, layer by layer, taps each on their own."""
        kept = self._kept(self.chain)
        parts = split(wsfeat, self.chain)
        means = []
        for layer, (weight, bias) in zip(self.chain.layers, parts, strict=True):
            means.append(_mean(weight, layer.neurons, kept))
            if bias is not None:
                means.append(_mean(bias, layer.neurons[:1], kept))
        return torch.cat(means, dim=-1)

    @classmethod
    def get_num_outs(cls, network_spec: NetworkSpec, channels: int = 1) -> int:
        """The number of outputs, of one channel or of `channels`."""
        chain = chain_of(network_spec)
        kept = cls._kept(chain)
        sizes = dict(zip(kept, known_io(network_spec), strict=True)) if kept else {}

        def outs(layer: Layer) -> int:
            found = layer.entries * prod(sizes[n] for n in layer.neurons if n in kept)
            n = layer.neurons[0]
            return found + (sizes[n] if n in kept else 1) * layer.bias

        return channels * sum(map(outs, chain.layers))


class NPPool(_Pool):
    """Means over all neurons, inputs and outputs too.

    >>> from symcompile_torch.nfn.common import ArraySpec
    >>> spec = NetworkSpec([ArraySpec((8, 1, 3, 3))], [ArraySpec((8,))])
    >>> NPPool.get_num_outs(spec), NPPool.get_num_outs(spec, channels=16)
    (10, 160)
    """

    @staticmethod
    def _kept(chain: Chain) -> tuple[int, ...]:
        return ()


class HNPPool(_Pool):
    """Means over hidden neurons; inputs and outputs keep an output each.

    >>> from symcompile_torch.nfn.common import ArraySpec
    >>> spec = NetworkSpec([ArraySpec((-1, 3)), ArraySpec((2, -1))], [None, ArraySpec((2,))])
    >>> HNPPool.get_num_outs(spec)
    7
    """

    @staticmethod
    def _kept(chain: Chain) -> tuple[int, ...]:
        return chain.ends


class StatFeaturizer(nn.Module):
    """Mean, variance, and the quantiles 0, ¼, ½, ¾, 1 of every tensor and channel.

    (Unterthiner et al. 2020, arXiv 2002.11448.) The variance of a single entry is 0. Any floating
    dtype comes out as it went in, and a tensor may have any number of entries.

    >>> x = WeightSpaceFeatures([torch.arange(5.0).view(1, 1, 5, 1)], [None])
    >>> StatFeaturizer()(x)
    tensor([[[2.0000, 2.5000, 0.0000, 1.0000, 2.0000, 3.0000, 4.0000]]])
    """

    def forward(self, wsfeat: WeightSpaceFeatures) -> Tensor:
        """(batch, channels, 7 · number of tensors): weight then bias, layer by layer."""
        tensors = [tensor for pair in wsfeat for tensor in pair if tensor is not None]
        return torch.cat([self.compute_stats(tensor) for tensor in tensors], dim=-1)

    def compute_stats(self, tensor: Tensor) -> Tensor:
        """(batch, channels, ...) to (batch, channels, 7)."""
        # Below float32 sums and differences of many entries would lose most digits.
        wide = torch.promote_types(tensor.dtype, torch.float32)
        values = tensor.flatten(2).to(wide)
        count = values.shape[-1]
        mean = values.mean(-1)
        variance = values.var(-1, correction=min(1, count - 1))
        ordered = values.sort(dim=-1).values
        quantiles = [_at(ordered, q * (count - 1)) for q in QUANTILES]
        return torch.stack([mean, variance, *quantiles], dim=-1).to(tensor.dtype)

    @staticmethod
    def get_num_outs(network_spec: NetworkSpec, channels: int = 1) -> int:
        """The number of outputs, of one channel or of `channels`."""
        biases = sum(bias is not None for bias in network_spec.bias_spec)
        return (2 + len(QUANTILES)) * (len(network_spec) + biases) * channels


def _mean(x: Tensor, neurons: tuple[int, ...], kept: tuple[int, ...]) -> Tensor:
    over = [2 + axis for axis, n in enumerate(neurons) if n not in kept]
    mean = x.mean(dim=over) if over else x
    return mean.flatten(2) if mean.dim() > 2 else mean.unsqueeze(-1)


def _at(ordered: Tensor, position: float) -> Tensor:
    """The value at a place between two entries, interpolated."""
    low = floor(position)
    if low == position:
        return ordered[..., low]
    return torch.lerp(ordered[..., low], ordered[..., low + 1], position - low)
