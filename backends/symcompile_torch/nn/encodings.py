"""Where an entry is, and what it is, as more channels: positions and Fourier features.

The one thing to know: only fixed axes have positions. What is added or appended is the same at
every index of a permuted axis, so all of this is equivariant.
"""

from __future__ import annotations

from math import pi
from typing import Any

import torch
from torch import Tensor, nn

from symcompile.errors import OptionError
from symcompile.library import count, fixed_axes, fixed_sizes, frequencies
from symcompile.spec import resolve_channels, unflatten
from symcompile_torch.nn.start import noise, put
from symcompile_torch.nn.trees import cast, map_tree, reader, widened

__all__ = ["GaussianFourierFeatures", "LearnedPosEmbedding", "SinusoidalEncoding"]


class LearnedPosEmbedding(nn.Module):
    """Adds a learned vector for the position along each fixed axis.

    Weights: `weight.k` (size, channels), standard deviation 0.02; k counts the fixed axes and the
    fixed parts of composite ones, tensors in canonical order.

    Args:
        spec: as for `symcompile.compile`.
        channels: an int, or a tree of them.
        shapes: as for `symcompile.compile`; sizes the axes written None.

    Raises:
        SpecError, ShapeError, OptionError: an argument is malformed or a fixed axis has no size;
            ShapeError: a tree does not fit the spec.

    >>> spec, shapes = {"w": (None, "h"), "b": ("h",)}, {"w": (7, 5), "b": (5,)}
    >>> embed = LearnedPosEmbedding(spec, 4, shapes=shapes)
    >>> {name: tuple(weight.shape) for name, weight in embed.named_parameters()}
    {'weight.0': (7, 4)}
    """

    def __init__(self, spec: Any, channels: Any, *, shapes: Any = None) -> None:
        super().__init__()
        self.reader = reader(spec, channels, shapes=shapes, split=True)
        parsed = self.reader.spec
        counts = resolve_channels(parsed, channels, "channels")
        self.weight = nn.ParameterList(
            torch.empty(size, width)
            for leaf, width in zip(parsed.leaves, counts, strict=True)
            for size in fixed_sizes(leaf)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        for weight in self.weight:
            put(weight, noise(weight) * 0.02)

    def forward(self, x: Any) -> Any:
        leaves = self.reader.read(x)
        y = []
        k = 0
        for value, part, leaf in zip(
            leaves, self.reader.split(leaves), self.reader.spec.leaves, strict=True
        ):
            for axis in fixed_axes(leaf):
                part, weight = cast(part, self.weight[k])
                part = part + _along(weight, axis)
                k += 1
            # Never the input itself, which what follows may change in place.
            y.append(part.reshape(value.shape) if fixed_axes(leaf) else value.clone())
        return unflatten(self.reader.spec, y)


class SinusoidalEncoding(nn.Module):
    """Appends sines and cosines of the tensor's number and of positions along fixed axes.

    A position t becomes [sin(t f_k), cos(t f_k)] with f_k = max_period ** (-k / num_bands), k from
    0 (Vaswani et al., arXiv 1706.03762, section 3.5). The tensor's number, in canonical order,
    comes first, then its fixed axes and fixed parts, then zeros, so that all tensors grow alike.

    Args:
        spec: as for `symcompile.compile`.
        num_bands: frequencies; a position takes twice as many channels.
        max_period: the slowest has about this period, over 2 pi.
        shapes: as for `symcompile.compile`; sizes fixed parts written None.

    Raises:
        SpecError, ShapeError, OptionError: an argument is malformed; ShapeError: a tree does not
            fit the spec.

    >>> encoding = SinusoidalEncoding({"w": (None, "h"), "b": ("h",)}, num_bands=2)
    >>> y = encoding({"w": torch.ones(7, 5, 1), "b": torch.ones(5, 1)})
    >>> y["b"][0].tolist(), tuple(y["w"].shape), encoding.out_channels(1)
    ([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], (7, 5, 9), 9)
    """

    def __init__(
        self, spec: Any, num_bands: int = 8, max_period: float = 10_000.0, *, shapes: Any = None
    ) -> None:
        super().__init__()
        self.frequencies = frequencies(num_bands, max_period)
        self.reader = reader(spec, shapes=shapes, split=True)
        self.codes = 1 + max(len(leaf.fixed) for leaf in self.reader.spec.leaves)

    def out_channels(self, channels: int) -> int:
        """How many channels come out."""
        return channels + 2 * self.codes * len(self.frequencies)

    def forward(self, x: Any) -> Any:
        leaves = self.reader.read(x)
        y = []
        for i, (value, part, leaf) in enumerate(
            zip(leaves, self.reader.split(leaves), self.reader.spec.leaves, strict=True)
        ):
            axes = fixed_axes(leaf)
            code = [self._code(torch.full((1,), i, device=value.device), part)[0]]
            for axis in axes:
                positions = torch.arange(part.shape[axis], device=value.device)
                code.append(_along(self._code(positions, part), axis))
            grown = [part, *(one.expand(*part.shape[:-1], -1) for one in code)]
            missing = 2 * (self.codes - len(code)) * len(self.frequencies)
            if missing:
                grown.append(part.new_zeros(1).expand(*part.shape[:-1], missing))
            channels = self.out_channels(value.shape[-1])
            y.append(torch.cat(grown, dim=-1).reshape(*value.shape[:-1], channels))
        return unflatten(self.reader.spec, y)

    def _code(self, positions: Tensor, like: Tensor) -> Tensor:
        """(n,) to (n, 2 bands)."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        rates = torch.tensor(self.frequencies, dtype=dtype, device=like.device)
        angles = positions.to(dtype)[:, None] * rates
        code = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return code.to(like.dtype) if like.is_floating_point() else code


class GaussianFourierFeatures(nn.Module):
    """`[sin, cos](2 pi x B)` of the channels of every entry (Tancik et al., arXiv 2006.10739).

    Buffer: `frequencies` (in_channels, out_features / 2), which is B, of standard deviation
    `scale`, drawn once and not trained; the same for all tensors.

    Args:
        in_channels: of every tensor.
        out_features: channels that come out, an even number.
        scale: the larger, the finer the differences of values that are told apart.

    Raises:
        OptionError: `out_features` is odd, or a number is not positive. When called, ShapeError: a
            leaf is no tensor, or has other channels.

    >>> features = GaussianFourierFeatures(1, 8)
    >>> tuple(features({"w": torch.zeros(3, 4, 1)})["w"].shape)
    (3, 4, 8)
    """

    frequencies: Tensor

    def __init__(self, in_channels: int, out_features: int, scale: float = 1.0) -> None:
        super().__init__()
        if count(out_features, "out_features") % 2:
            raise OptionError(
                f"out_features={out_features} is odd; give an even number, for sines and cosines"
            )
        shape = (count(in_channels, "in_channels"), out_features // 2)
        self.scale = scale
        self.register_buffer("frequencies", torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the frequencies anew."""
        put(self.frequencies, noise(self.frequencies) * self.scale)

    def forward(self, x: Any) -> Any:
        return map_tree(self._features, x, self.frequencies.shape[0])

    def _features(self, x: Tensor) -> Tensor:
        wide = widened(x)
        angles = 2 * pi * (wide @ self.frequencies.to(wide.dtype))
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return features.to(x.dtype) if x.is_floating_point() else features


def _along(table: Tensor, axis: int) -> Tensor:
    """A table (size, channels) as one that stands along `axis` of a tensor, channels last."""
    return table.reshape(table.shape[0], *(1,) * (-axis - 2), table.shape[1])
