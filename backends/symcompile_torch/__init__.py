"""The PyTorch backend: emits an `nn.Module` as standalone source, and loads it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from symcompile.codegen import Compiled
from symcompile.spec import flatten_like, unflatten
from symcompile_torch.calibrate import calibrate
from symcompile_torch.emit import emit
from symcompile_torch.kernels import AVAILABLE as HAS_KERNELS
from symcompile_torch.layer import TorchLayer, build

__all__ = ["BACKEND", "HAS_KERNELS", "TorchLayer", "emit"]


class _TorchBackend:
    name = "torch"

    def emit(self, compiled: Compiled) -> str:
        return emit(compiled)

    def build(self, compiled: Compiled) -> TorchLayer:
        return build(compiled)

    def call(self, layer: Any, weights: Mapping[str, Any], x: Any) -> Any:
        place = next((weight.device for weight in layer.parameters()), torch.device("cpu"))
        own = {name: weight.to(place) for name, weight in weights.items()}
        leaves = [leaf.to(place) for leaf in flatten_like(layer.spec, x)]
        return torch.func.functional_call(layer, own, (unflatten(layer.spec, leaves),))

    def to_numpy(self, value: Any) -> np.ndarray[Any, Any]:
        tensor = value.detach().cpu()
        if tensor.dtype is torch.bfloat16:
            import ml_dtypes

            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
        return tensor.numpy()  # type: ignore[no-any-return]

    def from_numpy(self, value: np.ndarray[Any, Any]) -> torch.Tensor:
        value = np.array(value)  # torch wants to own writable memory
        if value.dtype.name == "bfloat16":
            return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(value)

    def precision(self, dtype: str) -> AbstractContextManager[object]:
        return nullcontext()

    def calibrate(self) -> tuple[float, ...]:
        return calibrate()


BACKEND = _TorchBackend()
