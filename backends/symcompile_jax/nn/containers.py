"""Layers made of layers."""

from __future__ import annotations

from typing import Any

from flax import nnx

from symcompile.errors import OptionError
from symcompile_jax.functional import add

__all__ = ["Residual", "Sequential"]


class Sequential(nnx.Module):
    """Layers one after another; their weights are under ("layers", 0), ("layers", 1), ...

    Args:
        layers: modules; a function goes into an `Activation`.

    Raises:
        OptionError: one of them is no module.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from symcompile_jax.nn import Activation, ChannelLinear
    >>> net = Sequential(ChannelLinear((0,), 1, 4, rngs=nnx.Rngs(0)), Activation(jax.nn.relu))
    >>> net(jnp.ones((3, 1))).shape, [path for path, _ in nnx.to_flat_state(nnx.state(net))]
    ((3, 4), [('layers', 0, 'bias', 0), ('layers', 0, 'weight', 0)])
    """

    def __init__(self, *layers: nnx.Module) -> None:
        for number, layer in enumerate(layers):
            if not isinstance(layer, nnx.Module):
                raise OptionError(
                    f"layer {number}: found a {type(layer).__name__} object, expected a module; "
                    "wrap a function of arrays in Activation"
                )
        self.layers = nnx.List(layers)

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


class Residual(Sequential):
    """x + layers(x), for layers that keep shapes; weights as for `Sequential`.

    Args:
        layers: modules, applied one after another.

    Raises:
        OptionError: one of them is no module. ShapeError: what comes out has not the paths and
            shapes of what went in; nothing is broadcast.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from symcompile_jax.nn import Activation
    >>> Residual(Activation(jax.nn.relu))({"w": jnp.array([[-1.0], [2.0]])})["w"].tolist()
    [[-1.0], [4.0]]
    """

    def __call__(self, x: Any) -> Any:
        return add(x, super().__call__(x))
