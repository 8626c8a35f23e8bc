"""Networks in a few lines: an equivariant trunk, and an invariant head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
from flax import nnx

from symcompile.errors import OptionError
from symcompile.library import Statistic, check_rate, count
from symcompile.spec import resolve_channels
from symcompile_jax.functional import activation as activate
from symcompile_jax.functional import invariant_pool
from symcompile_jax.nn.containers import Residual, Sequential
from symcompile_jax.nn.linear import EquivariantLinear
from symcompile_jax.nn.pointwise import Activation, ChannelDropout
from symcompile_jax.nn.pooling import InvariantPool
from symcompile_jax.nn.weights import constants, matrix

__all__ = ["InvariantHead", "trunk"]


def trunk(
    spec: Any,
    channels: Sequence[int],
    *,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
    norm: Callable[..., nnx.Module] | None = None,
    dropout: float = 0.0,
    residual: bool = False,
    rngs: nnx.Rngs,
    **options: Any,
) -> Sequential:
    """Equivariant layers with activations between.

    The first layer is linear; every further one is norm, activation, dropout, linear (the order
    of He et al., arXiv 1603.05027). The last has no activation behind it: `InvariantHead` starts
    with one.

    Args:
        spec: as for `symcompile.compile`.
        channels: of the input, then of what each layer makes; at least two.
        activation: a function of arrays.
        norm: from spec, channels and `rngs=` to a module, such as `ChannelNorm` or `TensorNorm`.
        dropout: rate of `ChannelDropout`.
        residual: add a layer's input to its output where they have equally many channels.
        rngs: draws the weights, and what dropout drops.
        options: of `symcompile.compile`, such as `shapes`.

    Raises:
        OptionError: fewer than two channel counts, or an option is not allowed.
        SymcompileError: as `symcompile.compile`.

    >>> import jax.numpy as jnp
    >>> from symcompile_jax.nn import ChannelNorm
    >>> spec, rngs = {"w": (0, 1), "b": (1,)}, nnx.Rngs(0)
    >>> net = trunk(spec, [1, 16, 16, 2], norm=ChannelNorm, residual=True, rngs=rngs)
    >>> y = net({"w": jnp.ones((5, 3, 4, 1)), "b": jnp.ones((5, 4, 1))})
    >>> y["w"].shape, [type(layer).__name__ for layer in net.layers]
    ((5, 3, 4, 2), ['EquivariantLinear', 'Residual', 'ChannelNorm', 'Activation', ...])
    """
    if not isinstance(channels, Sequence) or len(channels) < 2:
        raise OptionError(
            f"channels: found {channels!r:.80}, expected at least two counts, of the input and of "
            "each layer, such as [1, 32, 32]"
        )
    widths = [count(width, "channels") for width in channels]
    rate = check_rate(dropout)

    def linear(before: int, after: int) -> nnx.Module:
        return EquivariantLinear(spec, in_channels=before, out_channels=after, rngs=rngs, **options)

    layers = [linear(*widths[:2])]
    for before, after in pairwise(widths[1:]):
        parts = [] if norm is None else [norm(spec, before, rngs=rngs)]
        parts.append(Activation(activation))
        if rate:
            parts.append(ChannelDropout(rate, spec, rngs=rngs))
        parts.append(linear(before, after))
        layers += [Residual(*parts)] if residual and before == after else parts
    return Sequential(*layers)


class InvariantHead(nnx.Module):
    """Activation, invariant pooling, then a multi-layer perceptron of the features.

    Weights: `weight` k (inputs, outputs), standard deviation inputs ** -0.5, and `bias` k
    (outputs,), zero, for every layer k of the perceptron.

    Args:
        spec: as for `symcompile.compile`.
        in_channels: an int, or a tree of them.
        hidden: width of the hidden layer, or widths of several, or () for none.
        out_features: how many numbers come out.
        stats: as for `InvariantPool`.
        activation: a function of arrays.
        shapes: as for `symcompile.compile`; sizes fixed axes written None.
        rngs: draws the weights.

    Returns:
        when called, (*batch, out_features).

    Raises:
        SpecError, ShapeError, OptionError: an argument is malformed or a fixed axis has no size;
            ShapeError: a tree does not fit the spec.

    >>> import jax.numpy as jnp
    >>> spec, rngs = {"w": (0, 1), "b": (1,)}, nnx.Rngs(0)
    >>> head = InvariantHead(spec, 8, hidden=32, out_features=3, rngs=rngs)
    >>> head({"w": jnp.ones((5, 3, 4, 8)), "b": jnp.ones((5, 4, 8))}).shape
    (5, 3)
    """

    def __init__(
        self,
        spec: Any,
        in_channels: Any,
        hidden: int | Sequence[int],
        out_features: int,
        *,
        stats: Sequence[Statistic] = ("mean",),
        activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        shapes: Any = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.pool = InvariantPool(spec, stats, shapes=shapes)
        self.channels = resolve_channels(self.pool.spec, in_channels, "channels")
        self.activation = activation
        between = hidden if isinstance(hidden, Sequence) else (hidden,)
        widths = [
            self.pool.out_features(in_channels),
            *(count(width, "hidden") for width in between),
            count(out_features, "out_features"),
        ]
        self.weight = nnx.List([matrix(rngs, *pair) for pair in pairwise(widths)])
        self.bias = constants(widths[1:], 0.0)

    def __call__(self, x: Any) -> jax.Array:
        h = invariant_pool(
            self.pool.spec, activate(self.activation, x), self.pool.stats, self.channels
        )
        for k, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            h = h if k == 0 else self.activation(h)
            h = h @ weight[...].astype(h.dtype) + bias[...].astype(h.dtype)
        return h
