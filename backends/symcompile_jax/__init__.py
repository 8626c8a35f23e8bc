"""The JAX backend: emits pure `init` and `apply` as standalone source, and loads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from symcompile.codegen import Compiled
from symcompile_jax.emit import emit
from symcompile_jax.layer import JaxLayer, build

__all__ = ["BACKEND", "JaxLayer", "emit"]


class _JaxBackend:
    name = "jax"

    def emit(self, compiled: Compiled) -> str:
        return emit(compiled)

    def build(self, compiled: Compiled) -> JaxLayer:
        return build(compiled)

    def call(self, layer: Any, weights: Mapping[str, Any], x: Any) -> Any:
        return layer.apply(dict(weights), x)

    def to_numpy(self, value: Any) -> np.ndarray[Any, Any]:
        return np.asarray(value)

    def from_numpy(self, value: np.ndarray[Any, Any]) -> Any:
        return jnp.asarray(value)


BACKEND = _JaxBackend()
