"""Where an entry is, and what it is, as more channels: positions and Fourier features.

The one thing to know: only fixed axes have positions. What is added or appended is the same at
every index of a permuted axis, so all of this is equivariant.
"""

from __future__ import annotations

from typing import Any

from flax import nnx

from symcompile.errors import OptionError
from symcompile.library import count, fixed_sizes, frequencies
from symcompile.spec import resolve_channels
from symcompile_jax.functional import (
    fourier_features,
    position_embedding,
    sinusoidal_encoding,
)
from symcompile_jax.nn.weights import bound, normal, values

__all__ = ["Buffer", "GaussianFourierFeatures", "LearnedPosEmbedding", "SinusoidalEncoding"]


class Buffer(nnx.Variable[Any]):
    """An array that belongs to a module and is not trained."""


class LearnedPosEmbedding(nnx.Module):
    """Adds a learned vector for the position along each fixed axis.

    Weights: `weight` k (size, channels), standard deviation 0.02; k counts the fixed axes and the
    fixed parts of composite ones, tensors in canonical order.

    Args:
        spec: as for `symcompile.compile`.
        channels: an int, or a tree of them.
        shapes: as for `symcompile.compile`; sizes the axes written None.
        rngs: draws the weights.

    Raises:
        SpecError, ShapeError, OptionError: an argument is malformed or a fixed axis has no size;
            ShapeError: a tree does not fit the spec.

    >>> spec, shapes = {"w": (None, "h"), "b": ("h",)}, {"w": (7, 5), "b": (5,)}
    >>> embed = LearnedPosEmbedding(spec, 4, shapes=shapes, rngs=nnx.Rngs(0))
    >>> [weight.shape for weight in embed.weight]
    [(7, 4)]
    """

    def __init__(self, spec: Any, channels: Any, *, shapes: Any = None, rngs: nnx.Rngs) -> None:
        self.spec = bound(spec, shapes)
        self.channels = resolve_channels(self.spec, channels, "channels")
        self.weight = nnx.List(
            [
                nnx.Param(normal(rngs, (size, width), 0.02))
                for leaf, width in zip(self.spec.leaves, self.channels, strict=True)
                for size in fixed_sizes(leaf)
            ]
        )

    def __call__(self, x: Any) -> Any:
        return position_embedding(self.spec, x, values(self.weight), self.channels)


class SinusoidalEncoding(nnx.Module):
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

    >>> import jax.numpy as jnp
    >>> encoding = SinusoidalEncoding({"w": (None, "h"), "b": ("h",)}, num_bands=2)
    >>> y = encoding({"w": jnp.ones((7, 5, 1)), "b": jnp.ones((5, 1))})
    >>> y["b"][0].tolist(), y["w"].shape, encoding.out_channels(1)
    ([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], (7, 5, 9), 9)
    """

    def __init__(
        self, spec: Any, num_bands: int = 8, max_period: float = 10_000.0, *, shapes: Any = None
    ) -> None:
        frequencies(num_bands, max_period)  # refuses what makes no sense
        self.spec = bound(spec, shapes)
        self.num_bands = num_bands
        self.max_period = max_period

    def out_channels(self, channels: int) -> int:
        """How many channels come out."""
        codes = 1 + max(len(leaf.fixed) for leaf in self.spec.leaves)
        return channels + 2 * codes * self.num_bands

    def __call__(self, x: Any) -> Any:
        return sinusoidal_encoding(self.spec, x, self.num_bands, self.max_period)


class GaussianFourierFeatures(nnx.Module):
    """`[sin, cos](2 pi x B)` of the channels of every entry (Tancik et al., arXiv 2006.10739).

    Buffer: `frequencies` (in_channels, out_features / 2), which is B, of standard deviation
    `scale`, drawn once and not trained; the same for all tensors.

    Args:
        in_channels: of every tensor.
        out_features: channels that come out, an even number.
        scale: the larger, the finer the differences of values that are told apart.
        rngs: draws B.

    Raises:
        OptionError: `out_features` is odd, or a number is not positive. When called, ShapeError: a
            leaf is no array, or has other channels.

    >>> import jax.numpy as jnp
    >>> features = GaussianFourierFeatures(1, 8, rngs=nnx.Rngs(0))
    >>> features({"w": jnp.zeros((3, 4, 1))})["w"].shape
    (3, 4, 8)
    """

    def __init__(
        self, in_channels: int, out_features: int, scale: float = 1.0, *, rngs: nnx.Rngs
    ) -> None:
        if count(out_features, "out_features") % 2:
            raise OptionError(
                f"out_features={out_features} is odd; give an even number, for sines and cosines"
            )
        shape = (count(in_channels, "in_channels"), out_features // 2)
        self.frequencies = Buffer(normal(rngs, shape, scale))

    def __call__(self, x: Any) -> Any:
        return fourier_features(x, self.frequencies[...])
