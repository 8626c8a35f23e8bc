"""Calling a layer of any backend on NumPy arrays.

In: a layer, weights by name and one array per input leaf. Out: one array per output leaf, shapes
checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from symcompile.check.draw import Array, draw, stored_shape
from symcompile.codegen import Backend, Compiled, get_backend
from symcompile.errors import CheckError, OptionError
from symcompile.spec import Label, PermSpec, flatten_like, format_path, unflatten

__all__ = ["Leaves", "Run", "compiled_of", "draw_inputs", "draw_weights", "expect", "runner"]

Leaves: TypeAlias = list[Array]
Run: TypeAlias = Callable[[Sequence[Array]], Leaves]
"""From input leaves to output leaves, in canonical order."""


def compiled_of(layer: Any) -> Compiled:
    """What a layer was built from.

    Raises:
        OptionError: it is no layer of symcompile's.
    """
    compiled = getattr(layer, "compiled", None)
    if not isinstance(compiled, Compiled):
        raise OptionError(
            f"layer is a {type(layer).__name__}, expected what symcompile.compile returned; "
            "check a function of your own with function=, spec= and in_channels="
        )
    return compiled


def runner(
    layer: Any, weights: Mapping[str, Any], dtype: np.dtype[Any], backend: Backend | None = None
) -> Run:
    """A layer with its weights, as a function of NumPy leaves.

    Args:
        weights: NumPy arrays, cast to `dtype`; arrays of the layer's framework pass as they are.
        backend: default the one the layer names.
    """
    compiled = compiled_of(layer)
    chosen = get_backend(layer.backend) if backend is None else backend

    def run(leaves: Sequence[Array]) -> Leaves:
        with chosen.precision(dtype.name):
            own = {
                name: chosen.from_numpy(value.astype(dtype))
                if isinstance(value, np.ndarray)
                else value
                for name, value in weights.items()
            }
            x = unflatten(compiled.spec, [chosen.from_numpy(leaf) for leaf in leaves])
            y = chosen.call(layer, own, x)
            outputs = flatten_like(compiled.out_spec, y, "y")
            return [np.asarray(chosen.to_numpy(output)) for output in outputs]

    return run


def draw_weights(
    rng: np.random.Generator, compiled: Compiled, dtype: np.dtype[Any]
) -> dict[str, Array]:
    """Standard normal weights of the canonical shapes, whatever the layer's own scales."""
    return {name: draw(rng, shape, dtype) for name, shape in compiled.shapes.items()}


def draw_inputs(
    rng: np.random.Generator,
    spec: PermSpec,
    channels: Sequence[int],
    sizes: Mapping[Label, int],
    batch: Sequence[int],
    dtype: np.dtype[Any],
) -> Leaves:
    """Standard normal inputs of shape (*batch, *axes, channels), in canonical order."""
    return [
        draw(rng, (*batch, *stored_shape(leaf, sizes), count), dtype)
        for leaf, count in zip(spec.leaves, channels, strict=True)
    ]


def expect(
    outputs: Sequence[Array],
    spec: PermSpec,
    sizes: Mapping[Label, int],
    batch: Sequence[int],
    channels: Sequence[int] | None = None,
) -> None:
    """Raise `CheckError` unless every output has shape (*batch, *axes, channels)."""
    for place, (leaf, output) in enumerate(zip(spec.leaves, outputs, strict=True)):
        shape = (*batch, *stored_shape(leaf, sizes))
        count = output.shape[-1:] if channels is None else (channels[place],)
        if output.ndim == 0 or output.shape != (*shape, *count):
            wanted = f"({', '.join(map(str, shape))}{', ' if shape else ''}channels)"
            raise CheckError(
                f"y{format_path(leaf.path)} has shape {output.shape}, expected {wanted}"
                f"{'' if channels is None else f' with {channels[place]} channels'}; "
                "the layer does not follow its out_spec"
            )
