"""Networks for the tests of `symcompile_torch.nfn`, each with what permutes on its parameters.

The one thing to know: `axes` is written by hand, and a test asks the network itself whether it is
true: permuting parameters by it must not change what the network computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from symcompile_torch.nfn.common import WeightSpaceFeatures, state_dict_to_tensors

__all__ = ["CASES", "Case", "features_of", "permutations", "permute_features", "permute_state"]

Axis = str | tuple[str, int] | None
"""The neurons on an axis; with a number, that many pixels for each of them; None is fixed."""


@dataclass(frozen=True)
class Case:
    """A network.

    Attributes:
        make: builds it.
        x: shape of an input.
        axes: by key of the state_dict, the neurons on each axis. "in" and "out" are its ends.
        sizes: of the neurons.
    """

    make: Callable[[], nn.Module]
    x: tuple[int, ...]
    axes: Mapping[str, tuple[Axis, ...]]
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def pairs(self) -> list[list[tuple[Axis, ...] | None]]:
        """The axes of weights, and of biases."""
        keys = [key for key in self.make().state_dict() if not key.endswith("tracked")]
        weights = [key for key in keys if not key.endswith(("bias", "var"))]
        biases = [
            {"weight": key[: -len("weight")] + "bias", "mean": key[: -len("mean")] + "var"}[
                key.rpartition(".")[2].rpartition("_")[2]
            ]
            for key in weights
        ]
        return [[self.axes[key] for key in weights], [self.axes.get(key) for key in biases]]


def _mlp(*widths: int, bias: bool = True) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for into, out in pairwise(widths):
            layers += [nn.Linear(into, out, bias=bias), nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    return make


def _normed() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 6, 3),
    )
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert values is not None
        values.data.uniform_(0.5, 1.5)
    return net.eval()


CASES: dict[str, Case] = {
    "mlp": Case(
        _mlp(3, 5, 6, 4),
        (3,),
        {
            "0.weight": ("a", "in"),
            "0.bias": ("a",),
            "2.weight": ("b", "a"),
            "2.bias": ("b",),
            "4.weight": ("out", "b"),
            "4.bias": ("out",),
        },
        {"in": 3, "a": 5, "b": 6, "out": 4},
    ),
    "one layer": Case(
        _mlp(3, 4), (3,), {"0.weight": ("out", "in"), "0.bias": ("out",)}, {"in": 3, "out": 4}
    ),
    "no biases": Case(
        _mlp(3, 5, 4, bias=False),
        (3,),
        {"0.weight": ("a", "in"), "2.weight": ("out", "a")},
        {"in": 3, "a": 5, "out": 4},
    ),
    "one output": Case(
        _mlp(2, 5, 1),
        (2,),
        {"0.weight": ("a", "in"), "0.bias": ("a",), "2.weight": ("out", "a"), "2.bias": ("out",)},
        {"in": 2, "a": 5, "out": 1},
    ),
    "conv1d": Case(
        lambda: nn.Sequential(nn.Conv1d(2, 5, 3), nn.Tanh(), nn.Conv1d(5, 3, 2, bias=False)),
        (2, 6),
        {"0.weight": ("a", "in", None), "0.bias": ("a",), "2.weight": ("out", "a", None)},
        {"in": 2, "a": 5, "out": 3},
    ),
    "conv2d": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 5, (3, 2)), nn.Tanh(), nn.Conv2d(5, 4, 2), nn.Tanh(), nn.Conv2d(4, 3, 1)
        ),
        (2, 6, 5),
        {
            "0.weight": ("a", "in", None, None),
            "0.bias": ("a",),
            "2.weight": ("b", "a", None, None),
            "2.bias": ("b",),
            "4.weight": ("out", "b", None, None),
            "4.bias": ("out",),
        },
        {"in": 2, "a": 5, "b": 4, "out": 3},
    ),
    "conv3d": Case(
        lambda: nn.Sequential(nn.Conv3d(1, 5, (1, 2, 3)), nn.Tanh(), nn.Conv3d(5, 2, 2)),
        (1, 4, 4, 5),
        {
            "0.weight": ("a", "in", None, None, None),
            "0.bias": ("a",),
            "2.weight": ("out", "a", None, None, None),
            "2.bias": ("out",),
        },
        {"in": 1, "a": 5, "out": 2},
    ),
    "flatten": Case(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 6, 5), nn.Linear(5, 3)
        ),
        (1, 4, 5),
        {
            "0.weight": ("a", "in", None, None),
            "0.bias": ("a",),
            "3.weight": ("b", ("a", 6)),
            "3.bias": ("b",),
            "4.weight": ("out", "b"),
            "4.bias": ("out",),
        },
        {"in": 1, "a": 4, "b": 5, "out": 3},
    ),
    "batch norm": Case(
        _normed,
        (2, 5, 4),
        {
            "0.weight": ("a", "in", None, None),
            "0.bias": ("a",),
            "1.weight": ("a",),
            "1.bias": ("a",),
            "1.running_mean": ("a",),
            "1.running_var": ("a",),
            "4.weight": ("out", ("a", 6)),
            "4.bias": ("out",),
        },
        {"in": 2, "a": 4, "out": 3},
    ),
}


def permutations(case: Case, *, ends: bool) -> dict[str, Tensor]:
    """A random order of each layer's neurons, of inputs and outputs too if `ends`."""
    return {
        name: torch.randperm(size)
        for name, size in case.sizes.items()
        if ends or name not in ("in", "out")
    }


def permute_state(
    state: Mapping[str, Tensor], case: Case, orders: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    return {
        key: _permute(value, case.axes[key], orders, 0) if key in case.axes else value
        for key, value in state.items()
    }


def permute_features(
    x: WeightSpaceFeatures, case: Case, orders: Mapping[str, Tensor]
) -> WeightSpaceFeatures:
    weight_axes, bias_axes = case.pairs
    return WeightSpaceFeatures(
        [_permute(w, a or (), orders, 2) for w, a in zip(x.weights, weight_axes, strict=True)],
        [
            None if b is None else _permute(b, a or (), orders, 2)
            for b, a in zip(x.biases, bias_axes, strict=True)
        ],
    )


def _permute(x: Tensor, axes: tuple[Axis, ...], orders: Mapping[str, Tensor], start: int) -> Tensor:
    for dim, axis in enumerate(axes, start):
        name, pixels = axis if isinstance(axis, tuple) else (axis, 1)
        if name in orders:
            order: Any = orders[name]
            index = (order[:, None] * pixels + torch.arange(pixels)).flatten()
            x = x.index_select(dim, index)
    return x


def features_of(
    case: Case, channels: int = 1, *, batch: int = 2, dtype: torch.dtype = torch.float64
) -> WeightSpaceFeatures:
    """Random features of the shapes of the network's parameters."""
    weights, biases = state_dict_to_tensors(case.make().state_dict())

    def draw(x: Tensor) -> Tensor:
        return torch.randn(batch, channels, *x.shape[1:], dtype=dtype)

    return WeightSpaceFeatures(
        [draw(weight) for weight in weights],
        [None if bias is None else draw(bias) for bias in biases],
    )
