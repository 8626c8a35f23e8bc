"""Norms that commute with permutations: over the channels, or over a whole tensor.

The one thing to know: variances are biased (Ba et al., arXiv 1607.06450), so nothing is divided by
zero where there is one channel or one entry; half types are normalised in float32.
"""

from __future__ import annotations

from typing import Any

from flax import nnx

from symcompile.spec import parse_spec, resolve_channels
from symcompile_jax.functional import channel_norm, tensor_norm
from symcompile_jax.nn.weights import constants, values

__all__ = ["ChannelNorm", "TensorNorm"]


class _Norm(nnx.Module):
    """One scale and one shift for each tensor and channel."""

    def __init__(
        self, spec: Any, channels: Any, eps: float = 1e-5, *, rngs: nnx.Rngs | None = None
    ) -> None:
        self.spec = parse_spec(spec)
        self.eps = eps
        counts = resolve_channels(self.spec, channels, "channels")
        self.scale = constants(counts, 1.0)
        self.shift = constants(counts, 0.0)


class ChannelNorm(_Norm):
    """Layer norm over the channels, at every index by itself.

    Weights: `scale` i (channels,), one, and `shift` i (channels,), zero; i counts tensors in
    canonical order. A single channel becomes its shift: it is its own mean.

    Args:
        spec: as for `symcompile.compile`.
        channels: an int, or a tree of them.
        eps: added to the variance.
        rngs: accepted as everywhere; nothing is drawn.

    Raises:
        SpecError, ShapeError, OptionError: an argument is malformed; ShapeError: a tree does not
            fit the spec.

    >>> import jax.numpy as jnp
    >>> ChannelNorm((0,), 2)(jnp.array([[1.0, 3.0], [6.0, 2.0]])).round().tolist()
    [[-1.0, 1.0], [1.0, -1.0]]
    """

    def __call__(self, x: Any) -> Any:
        return channel_norm(self.spec, x, values(self.scale), values(self.shift), self.eps)


class TensorNorm(_Norm):
    """Every tensor minus its mean over its standard deviation, for each channel by itself.

    Mean and variance are over all axes of the tensor, permuted and fixed, of one example. (Over
    the permuted ones alone, a tensor that has none would be its own mean, hence zero.) A tensor of
    one entry has no variance to speak of: it is scaled and shifted only.

    Weights: `scale` i (channels,), one, and `shift` i (channels,), zero; i counts tensors in
    canonical order.

    Args:
        spec: as for `symcompile.compile`.
        channels: an int, or a tree of them.
        eps: added to the variance.
        rngs: accepted as everywhere; nothing is drawn.

    Raises:
        SpecError, ShapeError, OptionError: as `ChannelNorm`.

    >>> import jax.numpy as jnp
    >>> TensorNorm((0,), 1)(jnp.array([[1.0], [2.0], [3.0]]))[:, 0].round(1).tolist()
    [-1.2..., 0.0, 1.2...]
    """

    def __call__(self, x: Any) -> Any:
        return tensor_norm(self.spec, x, values(self.scale), values(self.shift), self.eps)
