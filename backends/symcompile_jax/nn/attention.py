"""Attention for any spec: fibres attend along shared labels, tensors by their means."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from symcompile.library import fibres, head_width
from symcompile_jax.functional import attention
from symcompile_jax.nn.weights import bound, normal

__all__ = ["EquivariantAttention"]


class EquivariantAttention(nnx.Module):
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

    Args:
        spec: as for `symcompile.compile`.
        channels: of every tensor, an int.
        heads: must divide `channels`.
        embed: whether to learn roles.
        shapes: as for `symcompile.compile`; sizes fixed parts of composite axes written None.
        rngs: draws the weights.

    Raises:
        SpecError, ShapeError, OptionError: an argument is malformed; ShapeError: a tree does not
            fit the spec.

    >>> attend = EquivariantAttention({"w": (0, 1), "b": (1,)}, 8, heads=2, rngs=nnx.Rngs(0))
    >>> y = attend({"w": jnp.ones((5, 3, 4, 8)), "b": jnp.ones((5, 4, 8))})
    >>> y["w"].shape, attend.qkv.shape, attend.role.shape
    ((5, 3, 4, 8), (8, 24), (5, 8))
    """

    def __init__(
        self,
        spec: Any,
        channels: int,
        heads: int = 1,
        *,
        embed: bool = True,
        shapes: Any = None,
        rngs: nnx.Rngs,
    ) -> None:
        head_width(channels, heads)
        self.heads = heads
        self.spec = bound(spec, shapes)
        _, means = fibres(self.spec)
        kind = jnp.result_type(float)
        most = 1 + max(len(leaf.labels) for leaf in self.spec.leaves)
        drawn = normal(rngs, (channels, 3 * channels), channels**-0.5)
        self.qkv = nnx.Param(drawn.at[:, 2 * channels :].divide(most**0.5))
        self.bias = nnx.Param(jnp.zeros(3 * channels, kind))
        self.role = nnx.Param(jnp.zeros((means[-1] + 1, channels), kind)) if embed else None

    def __call__(self, x: Any) -> Any:
        role = None if self.role is None else self.role[...]
        return attention(self.spec, x, self.qkv[...], self.bias[...], role, self.heads)
