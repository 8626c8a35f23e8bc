"""Norms that commute with permutations: over the channels, or over a whole tensor.

The one thing to know: variances are biased (Ba et al., arXiv 1607.06450), so nothing is divided by
zero where there is one channel or one entry; half types are normalised in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symcompile.spec import resolve_channels, unflatten
from symcompile_torch.nn.trees import cast, reader, widened

__all__ = ["ChannelNorm", "TensorNorm"]


class _Norm(nn.Module):
    """One scale and one shift for each tensor and channel."""

    def __init__(self, spec: Any, channels: Any, eps: float = 1e-5) -> None:
        super().__init__()
        self.reader = reader(spec, channels)
        self.eps = eps
        counts = resolve_channels(self.reader.spec, channels, "channels")
        self.scale = nn.ParameterList(torch.empty(count) for count in counts)
        self.shift = nn.ParameterList(torch.empty(count) for count in counts)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set scales to one and shifts to zero."""
        for scale, shift in zip(self.scale, self.shift, strict=True):
            nn.init.ones_(scale)
            nn.init.zeros_(shift)

    def forward(self, x: Any) -> Any:
        spec = self.reader.spec
        y = []
        for i, leaf in enumerate(self.reader.read(x)):
            value, scale, shift = cast(leaf, self.scale[i], self.shift[i])
            axes = len(spec.leaves[i].axes)
            y.append(self._normed(value, axes) * scale + shift)
        return unflatten(spec, y)

    def _normed(self, x: Tensor, axes: int) -> Tensor:
        raise NotImplementedError


class ChannelNorm(_Norm):
    """Layer norm over the channels, at every index by itself.

    Weights: `scale.i` (channels,), one, and `shift.i` (channels,), zero; i counts tensors in
    canonical order. A single channel becomes its shift: it is its own mean.

    Args:
        spec: as for `symcompile.compile`.
        channels: an int, or a tree of them.
        eps: added to the variance.

    Raises:
        SpecError, ShapeError, OptionError: an argument is malformed; ShapeError: a tree does not
            fit the spec.

    >>> ChannelNorm((0,), 2)(torch.tensor([[1.0, 3.0], [6.0, 2.0]])).round().tolist()
    [[-1.0, 1.0], [1.0, -1.0]]
    """

    def _normed(self, x: Tensor, axes: int) -> Tensor:
        if x.is_complex():  # torch's own has no complex kernel
            return _standard(x, (-1,), self.eps)
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)


class TensorNorm(_Norm):
    """Every tensor minus its mean over its standard deviation, for each channel by itself.

    Mean and variance are over all axes of the tensor, permuted and fixed, of one example. (Over
    the permuted ones alone, a tensor that has none would be its own mean, hence zero.) A tensor of
    one entry has no variance to speak of: it is scaled and shifted only.

    Weights: `scale.i` (channels,), one, and `shift.i` (channels,), zero; i counts tensors in
    canonical order.

    Args:
        spec: as for `symcompile.compile`.
        channels: an int, or a tree of them.
        eps: added to the variance.

    Raises:
        SpecError, ShapeError, OptionError: as `ChannelNorm`.

    >>> TensorNorm((0,), 1)(torch.tensor([[1.0], [2.0], [3.0]]))[:, 0].round(decimals=2).tolist()
    [-1.22..., 0.0, 1.22...]
    """

    def _normed(self, x: Tensor, axes: int) -> Tensor:
        dims = tuple(range(-axes - 1, -1))
        if all(x.shape[dim] == 1 for dim in dims):
            return x
        return _standard(x, dims, self.eps)


def _standard(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """`x` minus its mean over its standard deviation; the variance of complex numbers is real."""
    wide = widened(x)
    wide = wide - wide.mean(dims, keepdim=True)
    variance = (wide * wide.conj()).real.mean(dims, keepdim=True)
    return (wide * (variance + eps).rsqrt()).to(x.dtype)
