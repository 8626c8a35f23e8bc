"""Layers made of layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from symcompile.errors import OptionError, ShapeError
from symcompile.spec import format_path

__all__ = ["Residual", "Sequential"]


class Sequential(nn.Module):
    """Layers one after another; their weights are under `layers.0`, `layers.1`, ...

    Args:
        layers: modules; a function goes into an `Activation`.

    Raises:
        OptionError: one of them is no module.

    >>> from symcompile_torch.nn import Activation, ChannelLinear
    >>> net = Sequential(ChannelLinear((0,), 1, 4), Activation(torch.relu))
    >>> tuple(net(torch.ones(3, 1)).shape), list(net.state_dict())
    ((3, 4), ['layers.0.weight.0', 'layers.0.bias.0'])
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        for number, layer in enumerate(layers):
            if not isinstance(layer, nn.Module):
                raise OptionError(
                    f"layer {number}: found a {type(layer).__name__} object, expected a module; "
                    "wrap a function of tensors in Activation"
                )
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Any) -> Any:
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

    >>> from symcompile_torch.nn import Activation
    >>> Residual(Activation(torch.relu))({"w": torch.tensor([[-1.0], [2.0]])})
    {'w': tensor([[-1.],
            [ 4.]])}
    """

    def forward(self, x: Any) -> Any:
        return _sum(x, super().forward(x), ())


def _sum(x: Any, y: Any, path: tuple[Any, ...]) -> Any:
    if hasattr(x, "keys"):
        keys = list(x.keys())
        if not hasattr(y, "keys") or set(y.keys()) != set(keys):
            raise _other(path)
        return {key: _sum(x[key], y[key], (*path, key)) for key in keys}
    if isinstance(x, list | tuple):
        if not isinstance(y, list | tuple) or len(y) != len(x):
            raise _other(path)
        return [_sum(*pair, (*path, i)) for i, pair in enumerate(zip(x, y, strict=True))]
    if not isinstance(y, torch.Tensor):
        raise _other(path)
    if x.shape != y.shape:
        raise ShapeError(
            f"Residual, {format_path(path)}: the layers made the shape {tuple(y.shape)} of "
            f"{tuple(x.shape)}; choose layers that keep shapes, channels included"
        )
    return x + y


def _other(path: tuple[Any, ...]) -> ShapeError:
    return ShapeError(
        f"Residual, {format_path(path)}: the layers' result has other paths than their input; "
        "choose layers that keep the tree"
    )
