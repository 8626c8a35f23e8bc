"""Linear layers: the compiled equivariant one, and those that act on channels alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import symcompile as sc
from symcompile.spec import resolve_channels, unflatten
from symcompile_torch.layer import TorchLayer
from symcompile_torch.nn.start import noise, put
from symcompile_torch.nn.trees import cast, reader

__all__ = ["ChannelLinear", "EquivariantLinear", "LearnedScale"]


def EquivariantLinear(
    spec: Any, out_spec: Any = None, *, in_channels: Any, out_channels: Any, **options: Any
) -> TorchLayer:
    """The compiled layer: every linear map that commutes with the permutations of the spec.

    Args:
        spec, out_spec, in_channels, out_channels, options: as for `symcompile.compile`.

    Returns:
        a `TorchLayer`: an `nn.Module` whose parameters are the canonical weights.

    Raises:
        OptionError: `backend` is given, or an option is not allowed.
        SymcompileError: as `symcompile.compile`.

    >>> layer = EquivariantLinear({"w": (0, 1), "b": (1,)}, in_channels=1, out_channels=4)
    >>> y = layer({"w": torch.ones(5, 3, 2, 1), "b": torch.ones(5, 2, 1)})
    >>> tuple(y["w"].shape)
    (5, 3, 2, 4)
    """
    if "backend" in options:
        raise sc.OptionError(
            "EquivariantLinear: backend is 'torch' here; leave it out, or call symcompile.compile"
        )
    layer: TorchLayer = sc.compile(
        spec,
        out_spec,
        in_channels=in_channels,
        out_channels=out_channels,
        backend="torch",
        **options,
    )
    return layer


class ChannelLinear(nn.Module):
    """A linear map of the channels, one for each tensor, the same at every index.

    Weights: `weight.i` (in_channels, out_channels), standard deviation in_channels ** -0.5, and
    `bias.i` (out_channels,), zero; i counts tensors in canonical order.

    Args:
        spec: as for `symcompile.compile`.
        in_channels, out_channels: an int, or a tree of them.
        bias: whether to add one.

    Raises:
        SpecError, ShapeError, OptionError: an argument is malformed; ShapeError: a tree does not
            fit the spec.

    >>> layer = ChannelLinear({"w": (0, 1), "b": (1,)}, 2, 8)
    >>> y = layer({"w": torch.ones(5, 3, 4, 2), "b": torch.ones(5, 4, 2)})
    >>> tuple(y["w"].shape), sorted(layer.state_dict())
    ((5, 3, 4, 8), ['bias.0', 'bias.1', 'weight.0', 'weight.1'])
    """

    bias: nn.ParameterList | None

    def __init__(self, spec: Any, in_channels: Any, out_channels: Any, bias: bool = True) -> None:
        super().__init__()
        self.reader = reader(spec, in_channels)
        ins = resolve_channels(self.reader.spec, in_channels, "in_channels")
        outs = resolve_channels(self.reader.spec, out_channels, "out_channels")
        self.weight = nn.ParameterList(torch.empty(a, b) for a, b in zip(ins, outs, strict=True))
        self.bias = nn.ParameterList(torch.empty(b) for b in outs) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; biases start at zero."""
        for weight in self.weight:
            put(weight, noise(weight) * weight.shape[0] ** -0.5)
        for bias in self.bias or ():
            nn.init.zeros_(bias)

    def forward(self, x: Any) -> Any:
        leaves = self.reader.read(x)
        y = []
        for i, leaf in enumerate(leaves):
            value, weight = cast(leaf, self.weight[i])
            value = value @ weight
            y.append(value if self.bias is None else value + self.bias[i].to(value.dtype))
        return unflatten(self.reader.spec, y)


class LearnedScale(nn.Module):
    """Every tensor times a learned number for each of its channels.

    Weights: `scale.i` (channels,), all `init`; i counts tensors in canonical order.

    Args:
        spec: as for `symcompile.compile`.
        channels: an int, or a tree of them.
        init: where the scales start.

    Raises:
        SpecError, ShapeError, OptionError: as `ChannelLinear`.

    >>> scale = LearnedScale({"w": (0, 1), "b": (1,)}, 2, init=0.5)
    >>> scale({"w": torch.ones(3, 4, 2), "b": torch.ones(4, 2)})["b"][0].tolist()
    [0.5, 0.5]
    """

    def __init__(self, spec: Any, channels: Any, init: float = 1.0) -> None:
        super().__init__()
        self.reader = reader(spec, channels)
        counts = resolve_channels(self.reader.spec, channels, "channels")
        self.init = float(init)
        self.scale = nn.ParameterList(torch.empty(count) for count in counts)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every scale to where it started."""
        for scale in self.scale:
            nn.init.constant_(scale, self.init)

    def forward(self, x: Any) -> Any:
        y = []
        for leaf, weight in zip(self.reader.read(x), self.scale, strict=True):
            value, scale = cast(leaf, weight)
            y.append(value * scale)
        return unflatten(self.reader.spec, y)
