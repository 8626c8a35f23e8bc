"""`NPAttention`: attention between the rows and columns that share neurons (arXiv 2305.13546).

In and out: features of the same shape.

The one thing to know: along the neurons of one layer, every column of its weight, its bias, and
every row of the next weight is one token, whose entries are channels × those neurons. Permuting
them permutes the entries of all queries and keys alike and no product changes, so the layer
commutes with it. The taps of a kernel are tokens of their own if projections are shared; else they
are channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symcompile.errors import OptionError
from symcompile_torch.nfn.chain import chain_of, fold, merge, require_chain, split, unfold
from symcompile_torch.nfn.common import NetworkSpec, WeightSpaceFeatures
from symcompile_torch.nfn.layers.linear import ChannelLinear

__all__ = ["NPAttention"]


class NPAttention(nn.Module):
    """Attention along each layer's neurons, plus attention between the means of all tensors.

    Args:
        channels: of the features, in and out.
        num_heads: divides `channels`.
        dropout: of attention along neurons, in training.
        share_projections: one projection to queries, keys and values for all tensors, else one for
            each, and one back for each weight.
        ablate_crossterm: leave out attention along neurons.
        ablate_diagonalterm: leave out attention between means.

    Raises:
        OptionError: `num_heads` does not divide `channels`.

    >>> from symcompile_torch.nfn.common import network_spec_from_wsfeat
    >>> x = WeightSpaceFeatures([torch.ones(5, 4, 8, 3), torch.ones(5, 4, 2, 8)], [None, None])
    >>> NPAttention(network_spec_from_wsfeat(x), 4, num_heads=2)(x)
    WeightSpaceFeatures(weights=[(5, 4, 8, 3), (5, 4, 2, 8)], biases=[None, None])
    """

    def __init__(
        self,
        network_spec: NetworkSpec,
        channels: int,
        num_heads: int = 8,
        dropout: float = 0,
        share_projections: bool = True,
        ablate_crossterm: bool = False,
        ablate_diagonalterm: bool = False,
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise OptionError(
                f"channels={channels} is not a multiple of num_heads={num_heads}; choose a number "
                "of heads that divides the channels"
            )
        self.network_spec = network_spec
        self.chain = chain_of(network_spec)
        self.channels = channels
        self.num_heads = num_heads
        self.dropout = dropout
        self.share_projections = share_projections
        self.ablate_crossterm = ablate_crossterm
        self.ablate_diagonalterm = ablate_diagonalterm
        if share_projections:
            self.to_qkv = ChannelLinear(channels, 3 * channels)
            return
        self.weight_to_qkv = nn.ModuleList(
            ChannelLinear(layer.entries * channels, 3 * channels) for layer in self.chain.layers
        )
        self.bias_to_qkv = nn.ModuleDict(
            {str(i): ChannelLinear(channels, 3 * channels) for i in self.chain.biases}
        )
        self.unproject_weight = nn.ModuleList(
            ChannelLinear(channels, layer.entries * channels) for layer in self.chain.layers
        )

    def forward(self, wsfeat: WeightSpaceFeatures) -> WeightSpaceFeatures:
        parts = split(wsfeat, self.chain)
        if not self.ablate_crossterm:
            require_chain(parts, self.chain)
        layers = self.chain.layers
        tensors = [*parts.weights, *(bias for bias in parts.biases if bias is not None)]
        sources = [(i, True) for i in range(len(layers))]
        sources += [(i, False) for i in self.chain.biases]
        neurons = [layers[i].neurons[: 2 if is_weight else 1] for i, is_weight in sources]
        found = [self._project(x, *source) for x, source in zip(tensors, sources, strict=True)]
        out = [torch.zeros_like(x) for x in tensors]
        changes: list[tuple[int, Tensor]] = []
        if not self.ablate_diagonalterm:
            changes += enumerate(self._between_means(found))
        if not self.ablate_crossterm:
            for shared in range(self.chain.last + 1):
                members = [k for k, on in enumerate(neurons) if shared in on]
                axes = [3 + neurons[k].index(shared) for k in members]
                attended = self._along([found[k] for k in members], axes)
                changes += zip(members, attended, strict=True)
        for k, change in changes:
            out[k] = out[k] + self._unproject(change, *sources[k])
        biases = dict(zip(self.chain.biases, out[len(layers) :], strict=True))
        return merge(out[: len(layers)], [biases.get(i) for i in range(len(layers))], self.chain)

    def _project(self, x: Tensor, i: int, is_weight: bool) -> Tensor:
        """(batch, heads, 3 · channels of a head, *neurons, taps): queries, keys and values."""
        layer = self.chain.layers[i]
        if self.share_projections:
            x = self.to_qkv(x)
        elif is_weight:
            x = self.weight_to_qkv[i](fold(x, layer))
        else:
            x = self.bias_to_qkv[str(i)](x)
        x = torch.unflatten(x, 1, (self.num_heads, -1))
        axes = 3 + (len(layer.neurons) if is_weight else 1)
        return x.flatten(axes) if x.dim() > axes else x.unsqueeze(-1)

    def _unproject(self, x: Tensor, i: int, is_weight: bool) -> Tensor:
        """(batch, heads, channels of a head, *neurons, taps) to the shape of the features."""
        layer = self.chain.layers[i]
        x = x.flatten(1, 2)
        if not is_weight:
            return x.squeeze(-1)
        if self.share_projections:
            return torch.unflatten(x, -1, layer.taps) if layer.taps else x.squeeze(-1)
        return unfold(self.unproject_weight[i](x.squeeze(-1)), layer)

    def _between_means(self, found: list[Tensor]) -> list[Tensor]:
        """Every tensor's mean over its neurons, one token for each of its taps."""
        means = [x.mean(dim=tuple(range(3, x.dim() - 1)), keepdim=True) for x in found]
        tokens = torch.cat([mean.flatten(3).transpose(2, 3) for mean in means], dim=2)
        q, k, v = tokens.chunk(3, dim=-1)
        attended = _attend(q, k, v)
        each = torch.split(attended.transpose(2, 3), [mean.shape[-1] for mean in means], dim=-1)
        return [
            y.reshape(*y.shape[:3], *mean.shape[3:]) for y, mean in zip(each, means, strict=True)
        ]

    def _along(self, found: list[Tensor], axes: list[int]) -> list[Tensor]:
        """Attention between all rows and columns along one axis of each tensor."""
        moved = [x.movedim(axis, -1) for x, axis in zip(found, axes, strict=True)]
        tokens = [x.flatten(3, -2).movedim(2, 3) for x in moved]
        q, k, v = (part.flatten(3) for part in torch.cat(tokens, dim=2).chunk(3, dim=3))
        attended = _attend(q, k, v, self.dropout if self.training else 0.0)
        heads = torch.unflatten(attended, 3, (-1, tokens[0].shape[-1])).movedim(2, 3)
        each = torch.split(heads, [x.shape[2] for x in tokens], dim=3)
        return [
            y.reshape(*y.shape[:3], *x.shape[3:]).movedim(-1, axis)
            for y, x, axis in zip(each, moved, axes, strict=True)
        ]

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, num_heads={self.num_heads}, dropout={self.dropout}, "
            f"share_projections={self.share_projections}"
        )


def _attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
