"""The NumPy backend: interprets the Program. The semantics, and the oracle of every test."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from symcompile.codegen import Compiled
from symcompile.errors import BackendError
from symcompile_numpy.calibrate import calibrate
from symcompile_numpy.interpret import run
from symcompile_numpy.layer import NumpyLayer

__all__ = ["BACKEND", "NumpyLayer", "run"]


class _NumpyBackend:
    name = "numpy"

    def emit(self, compiled: Compiled) -> str:
        raise BackendError(
            "backend 'numpy' interprets the program and generates no source; "
            "use backend='torch' or backend='jax', or print the layer's program"
        )

    def build(self, compiled: Compiled) -> NumpyLayer:
        return NumpyLayer(compiled)

    def call(self, layer: NumpyLayer, weights: Mapping[str, Any], x: Any) -> Any:
        return layer.apply(weights, x)

    def to_numpy(self, value: Any) -> np.ndarray[Any, Any]:
        return np.asarray(value)

    def from_numpy(self, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return value

    def precision(self, dtype: str) -> AbstractContextManager[object]:
        return nullcontext()

    def calibrate(self) -> tuple[float, ...]:
        return calibrate()


BACKEND = _NumpyBackend()
