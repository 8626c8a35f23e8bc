"""Attention for any spec: fibres attend along shared labels, tensors by their means.

In: a tree. Out: a tree of the same shapes.
The one thing to know: a token is a vector along a permuted axis, and dot products sum over that
axis. Permuting the axis changes no dot product; permuting another axis permutes tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from symcompile.library import Fibre, fibres, head_width
from symcompile.spec import unflatten
from symcompile_torch.nn.start import noise, put
from symcompile_torch.nn.trees import cast, reader

__all__ = ["EquivariantAttention"]


class EquivariantAttention(nn.Module):
    """Attention among the tensors of a spec, added up over labels and over tensor means.

    For every label, the tokens are all fibres along it: a tensor that carries the label gives one
    for each index of its other axes, a vector over the label's indices times the channels of a
    head. All tokens of a label attend to each other, scaled by 1 / sqrt(length of a token), and
    what they receive lands on the fibre they came from. Besides, the means of all tensors attend to
    each other, and what a tensor receives is added to all of its entries.

    From NFT (Zhou et al., arXiv 2305.13546) are: the tokens of an MLP, which are rows
    and columns of neighbouring weights, and the bias, along a layer of neurons; attention among
    tensor means; projections shared by all tensors; no output projection (put a `ChannelLinear`
    behind). Ours are: any spec, with repeated labels (the same tensor gives fibres along each of
    its axes), fixed axes (every index gives a token), composite axes (split into parts) and tensors
    without axes (their mean alone attends); and learned roles, added to the entries of a token as
    it is projected, which tell tensors and their axes apart. Roles start at zero, which is NFT's.

    The cost is quadratic in the number of fibres along a label.

    Weights: `qkv` (channels, 3 channels), columns of queries, keys, values, each head by head,
    standard deviation channels ** -0.5, for values over the root of the most additions that a
    tensor receives (its permuted axes and its mean); `bias` (3 channels,), zero; `role` (roles,
    channels), zero: for every tensor one for each permuted axis, then one for its mean.

    Second derivatives by autograd need torch's own `sdpa_kernel(SDPBackend.MATH)` around the call.

    Args:
        spec: as for `symcompile.compile`.
        channels: of every tensor, an int.
        heads: must divide `channels`.
        embed: whether to learn roles.
        shapes: as for `symcompile.compile`; sizes fixed parts of composite axes written None.

    Raises:
        SpecError, ShapeError, OptionError: an argument is malformed; ShapeError: a tree does not
            fit the spec.

    >>> attend = EquivariantAttention({"w": (0, 1), "b": (1,)}, 8, heads=2)
    >>> y = attend({"w": torch.ones(5, 3, 4, 8), "b": torch.ones(5, 4, 8)})
    >>> tuple(y["w"].shape), {name: tuple(w.shape) for name, w in attend.named_parameters()}
    ((5, 3, 4, 8), {'qkv': (8, 24), 'bias': (24,), 'role': (5, 8)})
    """

    role: nn.Parameter | None

    def __init__(
        self, spec: Any, channels: int, heads: int = 1, *, embed: bool = True, shapes: Any = None
    ) -> None:
        super().__init__()
        head_width(channels, heads)
        self.heads = heads
        self.reader = reader(spec, channels, shapes=shapes, split=True)
        self.labels, self.means = fibres(self.reader.spec)
        self.qkv = nn.Parameter(torch.empty(channels, 3 * channels))
        self.bias = nn.Parameter(torch.empty(3 * channels))
        self.role = nn.Parameter(torch.empty(self.means[-1] + 1, channels)) if embed else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; bias and roles start at zero."""
        channels = self.qkv.shape[0]
        values = noise(self.qkv) * channels**-0.5
        most = 1 + max(len(leaf.labels) for leaf in self.reader.spec.leaves)
        values[:, 2 * channels :] /= most**0.5
        put(self.qkv, values)
        for weight in (self.bias, self.role):
            if weight is not None:
                nn.init.zeros_(weight)

    def forward(self, x: Any) -> Any:
        leaves = self.reader.read(x)
        # Queries, keys and values of every entry, side by side.
        projected = [torch.matmul(*cast(part, self.qkv)) for part in self.reader.split(leaves)]
        offsets = self._offsets(projected[0].dtype)
        y = self._among_means(projected, offsets)
        for _, along in self.labels:
            for fibre, received in zip(along, self._among(projected, along, offsets), strict=True):
                y[fibre.leaf] = y[fibre.leaf] + received
        y = [value.reshape(leaf.shape) for value, leaf in zip(y, leaves, strict=True)]
        return unflatten(self.reader.spec, y)

    def _offsets(self, dtype: torch.dtype) -> Tensor:
        """What is added to projected entries, for every role: (roles, 3 channels)."""
        if self.role is None:
            return self.bias.to(dtype).expand(self.means[-1] + 1, -1)
        return self.role.to(dtype) @ self.qkv.to(dtype) + self.bias.to(dtype)

    def _among_means(self, projected: list[Tensor], offsets: Tensor) -> list[Tensor]:
        """For every tensor what its mean receives, repeated at all its entries."""
        orders = [len(leaf.atoms) for leaf in self.reader.spec.leaves]
        means = torch.stack(
            [_mean(value, order) for value, order in zip(projected, orders, strict=True)], dim=-2
        )
        # Not offsets[list(...)]: the indices would be copied to a GPU in every call.
        received = self._attend(
            [means.unsqueeze(-2)], torch.stack([offsets[role] for role in self.means])
        )
        return [
            one.reshape(*one.shape[:-1], *(1,) * order, one.shape[-1]).expand(*value.shape[:-1], -1)
            for one, value, order in zip(
                received.squeeze(-2).unbind(-2), projected, orders, strict=True
            )
        ]

    def _among(
        self, projected: list[Tensor], along: Sequence[Fibre], offsets: Tensor
    ) -> list[Tensor]:
        """For the fibres along one label what they receive, in the shape of their tensors."""
        moved = [projected[fibre.leaf].movedim(fibre.axis, -2) for fibre in along]
        tokens = []
        for fibre, value in zip(along, moved, strict=True):
            others = len(self.reader.spec.leaves[fibre.leaf].atoms) - 1
            tokens.append(value.flatten(-2 - others, -3) if others else value.unsqueeze(-3))
        counts = [token.shape[-3] for token in tokens]
        rows = [
            offsets[fibre.role].expand(count, -1)
            for fibre, count in zip(along, counts, strict=True)
        ]
        received = self._attend(tokens, torch.cat(rows))
        return [
            part.reshape(*value.shape[:-1], part.shape[-1]).movedim(-2, fibre.axis)
            for fibre, value, part in zip(
                along, moved, torch.split(received, counts, dim=-3), strict=True
            )
        ]

    def _attend(self, tokens: Sequence[Tensor], offsets: Tensor) -> Tensor:
        """Several (*batch, tokens, n, 3 channels) to one (*batch, all tokens, n, channels)."""
        *batch, _, n, width = tokens[0].shape
        cut = (3, self.heads, width // (3 * self.heads))
        # Heads are brought forward by the copy that joins the tokens.
        parts = [
            token.reshape(prod(batch), token.shape[-3], n, *cut).permute(3, 0, 4, 1, 2, 5)
            for token in tokens
        ]
        added = offsets.reshape(-1, *cut).permute(1, 2, 0, 3)[:, None, :, :, None]
        q, k, v = (torch.cat(parts, dim=3) + added).flatten(-2).unbind(0)
        received = _attention(q, k, v)
        received = received.reshape(*received.shape[:-1], n, cut[-1]).permute(0, 2, 3, 1, 4)
        return received.reshape(*batch, *received.shape[1:3], width // 3)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's own; under the transforms of torch.func by the kernel that supports them all."""
    if torch.compiler.is_compiling() or not torch._C._functorch.is_functorch_wrapped_tensor(q):
        return F.scaled_dot_product_attention(q, k, v)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v)


def _mean(x: Tensor, order: int) -> Tensor:
    """Over the last `order` axes before the channels."""
    return x.mean(tuple(range(-order - 1, -1))) if order else x
