"""Linear layers: the compiled equivariant one, and those that act on channels alone."""

from __future__ import annotations

from typing import Any

from flax import nnx

import symcompile as sc
from symcompile.codegen import Compiled, CompiledLayer
from symcompile.spec import parse_spec, resolve_channels
from symcompile_jax import BACKEND, JaxLayer
from symcompile_jax.functional import channel_linear, channel_scale
from symcompile_jax.nn.weights import constants, matrix, values

__all__ = ["ChannelLinear", "EquivariantLinear", "LearnedScale"]


class EquivariantLinear(CompiledLayer, nnx.Module):
    """The compiled layer: every linear map that commutes with the permutations of the spec.

    Weights: the canonical ones by their names, `mix_...` and `bias`, as in PyTorch.

    Args:
        spec, out_spec, in_channels, out_channels, options: as for `symcompile.compile`.
        rngs: draws the weights.

    Raises:
        OptionError: `backend` is given, or an option is not allowed.
        SymcompileError: as `symcompile.compile`. When called, ShapeError: a tree does not fit.

    >>> import jax.numpy as jnp
    >>> layer = EquivariantLinear(
    ...     {"w": (0, 1), "b": (1,)}, in_channels=1, out_channels=4, rngs=nnx.Rngs(0)
    ... )
    >>> layer({"w": jnp.ones((5, 3, 2, 1)), "b": jnp.ones((5, 2, 1))})["w"].shape
    (5, 3, 2, 4)
    >>> layer.bias.shape
    (8,)
    """

    backend = "jax"

    def __init__(
        self,
        spec: Any,
        out_spec: Any = None,
        *,
        in_channels: Any,
        out_channels: Any,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        if "backend" in options:
            raise sc.OptionError(
                "EquivariantLinear: backend is 'jax' here; leave it out, or call symcompile.compile"
            )
        self.layer: JaxLayer = sc.compile(
            spec,
            out_spec,
            in_channels=in_channels,
            out_channels=out_channels,
            backend="jax",
            **options,
        )
        for name, value in self.layer.init(rngs.params()).items():
            setattr(self, name, nnx.Param(value))

    @property
    def compiled(self) -> Compiled:  # type: ignore[override]
        """The layer as data."""
        return self.layer.compiled

    @property
    def source(self) -> str:
        """The generated file: it needs jax, not symcompile."""
        return self.layer.source

    def __call__(self, x: Any) -> Any:
        weights = {name: getattr(self, name)[...] for name in self.compiled.shapes}
        return BACKEND.call(self.layer, weights, x)


class ChannelLinear(nnx.Module):
    """A linear map of the channels, one for each tensor, the same at every index.

    Weights: `weight` i (in_channels, out_channels), standard deviation in_channels ** -0.5, and
    `bias` i (out_channels,), zero; i counts tensors in canonical order.

    Args:
        spec: as for `symcompile.compile`.
        in_channels, out_channels: an int, or a tree of them.
        bias: whether to add one.
        rngs: draws the weights.

    Raises:
        SpecError, ShapeError, OptionError: an argument is malformed; ShapeError: a tree does not
            fit the spec.

    >>> import jax.numpy as jnp
    >>> layer = ChannelLinear({"w": (0, 1), "b": (1,)}, 2, 8, rngs=nnx.Rngs(0))
    >>> layer({"w": jnp.ones((5, 3, 4, 2)), "b": jnp.ones((5, 4, 2))})["w"].shape
    (5, 3, 4, 8)
    """

    def __init__(
        self,
        spec: Any,
        in_channels: Any,
        out_channels: Any,
        bias: bool = True,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.spec = parse_spec(spec)
        ins = resolve_channels(self.spec, in_channels, "in_channels")
        outs = resolve_channels(self.spec, out_channels, "out_channels")
        self.weight = nnx.List([matrix(rngs, a, b) for a, b in zip(ins, outs, strict=True)])
        self.bias = constants(outs, 0.0) if bias else None

    def __call__(self, x: Any) -> Any:
        bias = None if self.bias is None else values(self.bias)
        return channel_linear(self.spec, x, values(self.weight), bias)


class LearnedScale(nnx.Module):
    """Every tensor times a learned number for each of its channels.

    Weights: `scale` i (channels,), all `init`; i counts tensors in canonical order.

    Args:
        spec: as for `symcompile.compile`.
        channels: an int, or a tree of them.
        init: where the scales start.
        rngs: accepted as everywhere; nothing is drawn.

    Raises:
        SpecError, ShapeError, OptionError: as `ChannelLinear`.

    >>> import jax.numpy as jnp
    >>> scale = LearnedScale({"w": (0, 1), "b": (1,)}, 2, init=0.5)
    >>> scale({"w": jnp.ones((3, 4, 2)), "b": jnp.ones((4, 2))})["b"][0].tolist()
    [0.5, 0.5]
    """

    def __init__(
        self, spec: Any, channels: Any, init: float = 1.0, *, rngs: nnx.Rngs | None = None
    ) -> None:
        self.spec = parse_spec(spec)
        self.scale = constants(resolve_channels(self.spec, channels, "channels"), float(init))

    def __call__(self, x: Any) -> Any:
        return channel_scale(self.spec, x, values(self.scale))
