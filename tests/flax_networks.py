"""Real flax.linen networks for the perm_specs of `symcompile.specs`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def normed(kind: str | None, x: Any, name: str | None = None) -> Any:
    if kind == "batch":
        return nn.BatchNorm(use_running_average=True, name=name)(x)
    return nn.LayerNorm(name=name)(x) if kind == "layer" else x


class MLP(nn.Module):
    widths: Sequence[int]
    norm: str | None = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for width in self.widths[1:-1]:
            x = nn.gelu(normed(self.norm, nn.Dense(width)(x)))
        return nn.Dense(self.widths[-1])(x)


class CNN(nn.Module):
    channels: Sequence[int]
    dim: int
    head: str
    norm: str | None = None
    hidden: Sequence[int] = ()

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for count in self.channels:
            x = nn.gelu(normed(self.norm, nn.Conv(count, (3,) * self.dim)(x)))
        x = x.reshape(len(x), -1, x.shape[-1])
        x = x.mean(1) if self.head == "pool" else x.reshape(len(x), -1)
        for width in self.hidden:
            x = nn.gelu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class Recurrent(nn.Module):
    kind: str
    hidden: int
    outputs: int
    layers: int = 1

    @nn.compact
    def __call__(self, x: Any) -> Any:
        cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}[self.kind]
        for i in range(self.layers):
            name = "cell" if self.layers == 1 else f"cell_{i}"
            x = nn.RNN(cell(self.hidden, param_dtype=float, name=name))(x)
        return nn.Dense(self.outputs, name="readout")(x[:, -1])


class Block(nn.Module):
    width: int
    hidden: int
    dim: int
    norm: str | None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = normed(self.norm, x, "norm")
        y = jnp.tanh(layer(self.dim, self.hidden, "first")(y))
        return x + layer(self.dim, self.width, "last")(y)


class Residual(nn.Module):
    width: int
    hidden: int
    outputs: int
    dim: int = 0
    norm: str | None = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = layer(self.dim, self.width, "embed")(x)
        for i in range(2):
            x = Block(self.width, self.hidden, self.dim, self.norm, name=f"blocks_{i}")(x)
        x = normed(self.norm, x, "head_norm")
        if self.dim:
            x = x.reshape(len(x), -1, x.shape[-1]).mean(1)
        return nn.Dense(self.outputs, name="head")(x)


def layer(dim: int, features: int, name: str) -> nn.Module:
    return nn.Conv(features, (3,) * dim, name=name) if dim else nn.Dense(features, name=name)


class DecoderBlock(nn.Module):
    @nn.compact
    def __call__(self, x: Any, mask: Any) -> Any:
        attention = nn.MultiHeadDotProductAttention(2, name="attention")
        x = x + attention(nn.LayerNorm(name="ln1")(x), mask=mask)
        y = nn.gelu(nn.Dense(5, name="mlp_in")(nn.LayerNorm(name="ln2")(x)))
        return x + nn.Dense(6, name="mlp_out")(y)


class Transformer(nn.Module):
    """Token and position ids come one-hot, so that renaming them permutes an axis."""

    blocks: int

    @nn.compact
    def __call__(self, ids: Any) -> Any:
        start = nn.initializers.normal()
        x = ids["tokens"] @ self.param("token_embedding", start, (7, 6))
        x = x + ids["positions"] @ self.param("position_embedding", start, (4, 6))
        mask = nn.make_causal_mask(x[..., 0])
        for i in range(self.blocks):
            x = DecoderBlock(name=f"block{i}")(x, mask)
        return nn.Dense(7, name="unembedding")(nn.LayerNorm(name="ln_final")(x))


def drawn(shapes: Any, seed: int = 0) -> Any:
    """float64 parameters of some shapes, every tensor random; variances are above one."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, shape: tuple[int, ...]) -> np.ndarray:
        noise = rng.standard_normal(shape)
        if path[-1].key == "var":
            return 1 + np.abs(noise)
        return 1 + 0.3 * noise if len(shape) == 1 else noise / np.prod(shape[:-1]) ** 0.5

    is_leaf = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map_with_path(draw, shapes, is_leaf=is_leaf)
