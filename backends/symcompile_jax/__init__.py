"""The JAX backend: emits pure `init` and `apply` as standalone source, and loads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from symcompile.codegen import Compiled
from symcompile.spec import flatten_like, unflatten
from symcompile_jax.calibrate import calibrate
from symcompile_jax.emit import emit
from symcompile_jax.kernels import AVAILABLE as HAS_KERNELS
from symcompile_jax.layer import JaxLayer, build
from symcompile_jax.width import require_width

__all__ = ["BACKEND", "HAS_KERNELS", "JaxLayer", "emit"]


@partial(jax.jit, static_argnums=0)
def _call(layer: JaxLayer, weights: dict[str, Any], leaves: list[Any]) -> list[Any]:
    """A layer on lists of leaves: compiled whole, as op by op takes ten times as long at first."""
    # Lists, not trees: jit cannot sort a dict whose keys are ints and strings.
    y = layer.apply(weights, unflatten(layer.spec, leaves))
    return flatten_like(layer.compiled.out_spec, y, "y")


class _JaxBackend:
    name = "jax"

    def emit(self, compiled: Compiled) -> str:
        return emit(compiled)

    def build(self, compiled: Compiled) -> JaxLayer:
        return build(compiled)

    def call(self, layer: Any, weights: Mapping[str, Any], x: Any) -> Any:
        outputs = _call(layer, dict(weights), flatten_like(layer.spec, x))
        return unflatten(layer.compiled.out_spec, outputs)

    def to_numpy(self, value: Any) -> np.ndarray[Any, Any]:
        return np.asarray(value)

    def from_numpy(self, value: np.ndarray[Any, Any]) -> Any:
        require_width(value.dtype)
        return jnp.asarray(value)

    @contextmanager
    def precision(self, dtype: str) -> Iterator[None]:
        wide = dtype in ("float64", "complex128")
        # On GPUs JAX multiplies float32 in TF32 unless it is told otherwise.
        with (
            jax.default_matmul_precision("highest"),
            jax.enable_x64(True) if wide else nullcontext(),
        ):
            yield

    def calibrate(self) -> tuple[float, ...]:
        return calibrate()


BACKEND = _JaxBackend()
