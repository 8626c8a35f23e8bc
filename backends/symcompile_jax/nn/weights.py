"""Weights of the modules: how they are drawn, and lists of them, one for each tensor.

In: shapes and `rngs`. Out: `nnx.Param`s, and the arrays in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from symcompile.spec import PermSpec, bind_specs, parse_spec

__all__ = ["bound", "constants", "matrix", "normal", "values"]


def bound(spec: Any, shapes: Any = None) -> PermSpec:
    """The spec with the sizes that `shapes` tell."""
    parsed = parse_spec(spec)
    return parsed if shapes is None else bind_specs(parsed, None, shapes)[0]


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], deviation: float) -> jax.Array:
    """A normal array of JAX's default float."""
    return jax.random.normal(rngs.params(), shape) * deviation


def matrix(rngs: nnx.Rngs, rows: int, columns: int) -> nnx.Param[jax.Array]:
    """A matrix that keeps the scale of what it is applied to."""
    return nnx.Param(normal(rngs, (rows, columns), rows**-0.5))


def constants(widths: Iterable[int], value: float) -> Any:
    """Vectors of one number."""
    kind = jnp.result_type(float)
    return nnx.List([nnx.Param(jnp.full((width,), value, kind)) for width in widths])


def values(weights: Any) -> list[jax.Array]:
    """The arrays of a list of weights."""
    return [weight[...] for weight in weights]
