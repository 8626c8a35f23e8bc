"""Real torch networks for the perm_specs of `symcompile.specs`, with nothing left at its start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


def norms(kind: str | None, features: int, dim: int = 0) -> list[nn.Module]:
    if kind == "batch":
        return [BATCH[dim](features)]
    if kind == "layer":
        return [nn.LayerNorm(features) if dim == 0 else nn.GroupNorm(1, features)]
    return []


def mlp(widths: Sequence[int], *, norm: str | None = None, bias: bool = True) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs, bias), *norms(norm, outputs), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:], bias))


def cnn(
    channels: Sequence[int],
    *,
    dim: int,
    pixels: int,
    taps: Any = 3,
    head: str = "flatten",
    norm: str | None = None,
    hidden: Sequence[int] = (),
    bias: Sequence[bool] | None = None,
    in_channels: int = 1,
) -> nn.Module:
    biased = iter(bias or [True] * (len(channels) + len(hidden) + 1))
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([in_channels, *channels]):
        layers += [CONV[dim](inputs, outputs, taps, padding="same", bias=next(biased))]
        layers += [*norms(norm, outputs, dim), nn.GELU()]
    layers += [POOL[dim](1)] * (head == "pool") + [nn.Flatten()]
    features = channels[-1] * (pixels if head == "flatten" else 1)
    for inputs, outputs in pairwise([features, *hidden]):
        layers += [nn.Linear(inputs, outputs, next(biased)), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear([features, *hidden][-1], 10, next(biased)))


class Recurrent(nn.Module):
    def __init__(self, kind: str, inputs: int, hidden: int, outputs: int, **options: Any) -> None:
        super().__init__()
        cell = {"elman": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[kind]
        self.rnn = cell(inputs, hidden, batch_first=True, **options)
        self.readout = nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.rnn(x)
        y: torch.Tensor = self.readout(states[:, -1])
        return y


class Block(nn.Module):
    def __init__(self, layer: Callable[[int, int], nn.Module], width: int, hidden: int, norm: Any):
        super().__init__()
        self.norm = norm()
        self.first, self.last = layer(width, hidden), layer(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.last(torch.tanh(self.first(self.norm(x))))
        return y


class Residual(nn.Module):
    def __init__(
        self, inputs: int, width: int, outputs: int, *, hidden: int, dim: int, norm: str | None
    ) -> None:
        super().__init__()

        def layer(source: int, target: int) -> nn.Module:
            return CONV[dim](source, target, 3, padding=1) if dim else nn.Linear(source, target)

        def normal() -> nn.Module:
            return nn.Sequential() if norm is None else norms(norm, width, dim)[0]

        self.embed = layer(inputs, width)
        self.blocks = nn.ModuleList(Block(layer, width, hidden, normal) for _ in range(2))
        self.head_norm = normal()
        self.head = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        y: torch.Tensor = self.head(
            self.head_norm(x).flatten(2).mean(-1) if x.ndim > 2 else self.head_norm(x)
        )
        return y


class Transformer(nn.Module):
    """Token and position ids come one-hot, so that renaming them permutes an axis."""

    def __init__(self, blocks: int, *, norm_first: bool) -> None:
        super().__init__()
        self.token_embedding, self.position_embedding = nn.Embedding(7, 6), nn.Embedding(4, 6)
        layer = nn.TransformerEncoderLayer(6, 2, 5, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(
            layer, blocks, norm=nn.LayerNorm(6), enable_nested_tensor=False
        )
        self.unembedding = nn.Linear(6, 7)

    def forward(self, ids: dict[str, torch.Tensor]) -> torch.Tensor:
        x = ids["tokens"] @ self.token_embedding.weight
        x = x + ids["positions"] @ self.position_embedding.weight
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[-2], dtype=x.dtype)
        y: torch.Tensor = self.unembedding(self.encoder(x, mask=mask, is_causal=True))
        return y


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and eval mode, with every tensor random: biases and running statistics too."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        if name.endswith("running_var"):
            value.copy_(1 + noise.abs())
        elif value.ndim == 1:
            value.add_(0.3 * noise)
        else:
            value.copy_(noise / value[0].numel() ** 0.5)
    return module


def call(module: nn.Module) -> Callable[[Any, Any], Any]:
    """A module as a function of its state_dict and inputs."""

    def function(params: Any, inputs: Any) -> Any:
        with torch.no_grad():
            return torch.func.functional_call(module, params, (inputs,))

    return function
