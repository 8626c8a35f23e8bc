"""Layers without weights that treat every index alike: activations, dropout of channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from symcompile.errors import OptionError
from symcompile.library import check_rate
from symcompile.spec import parse_spec
from symcompile_jax.functional import activation, channel_dropout

__all__ = ["Activation", "ChannelDropout"]


class Activation(nnx.Module):
    """A function of arrays on every array of a tree.

    Equivariant if `fn` acts entry by entry, or on the last axis, the channels.

    Args:
        fn: from array to array; a module's weights are under `fn`.

    Raises:
        OptionError: `fn` cannot be called. When called, ShapeError: a leaf is no array.

    >>> import jax.numpy as jnp
    >>> Activation(jax.nn.relu)({"w": jnp.array([[-1.0], [2.0]])})["w"].tolist()
    [[0.0], [2.0]]
    """

    def __init__(self, fn: Callable[[jax.Array], jax.Array]) -> None:
        if not callable(fn):
            raise OptionError(
                f"fn: found a {type(fn).__name__} object, expected a function of one array, such "
                "as jax.nn.relu"
            )
        self.fn = fn

    def __call__(self, x: Any) -> Any:
        return activation(self.fn, x)


class ChannelDropout(nnx.Module):
    """In training, sets whole channels of a tensor to zero and scales up the others.

    A channel is dropped at all indices at once, so that the layer commutes with permutations. No
    effect after `eval()`, or while `deterministic` is True, as in `nnx.Dropout`.

    Args:
        rate: the part of the channels to drop, in [0, 1).
        spec: as for `symcompile.compile`. With it every example of a batch drops channels of its
            own; without it nobody can tell batch axes from others, and all drop the same.
        rngs: its stream "dropout" draws.

    Raises:
        OptionError: `rate` is outside [0, 1), or something has to be drawn and `rngs` was not
            given.

    >>> import jax.numpy as jnp
    >>> dropout = ChannelDropout(0.5, spec=("a", "b"), rngs=nnx.Rngs(0))
    >>> y = dropout(jnp.ones((4, 2, 3, 64)))
    >>> sorted(set(y.ravel().tolist())), bool((y == y[:, :1, :1]).all())
    ([0.0, 2.0], True)
    >>> dropout.eval()
    >>> bool((dropout(jnp.ones((2, 3, 64))) == 1).all())
    True
    """

    def __init__(self, rate: float, spec: Any = None, *, rngs: nnx.Rngs | None = None) -> None:
        self.rate = check_rate(rate)
        self.spec = None if spec is None else parse_spec(spec)
        self.deterministic = False
        self.rngs = nnx.data(None if rngs is None else rngs["dropout"].fork())

    def __call__(self, x: Any) -> Any:
        if self.deterministic or not self.rate:
            return x
        if self.rngs is None:
            raise OptionError(
                "ChannelDropout: nothing to draw from; give rngs=nnx.Rngs(seed), or call eval() "
                "first, which turns it off"
            )
        return channel_dropout(self.rngs(), x, self.rate, self.spec)
