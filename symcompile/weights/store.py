"""Weights on disk, across backends.

In: a layer or a dict of arrays of any framework. Out: a safetensors file, and back as the arrays of
whichever backend is asked for. The canonical schema is the same everywhere, so a file written from
torch loads in JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from symcompile.errors import ExportError, ShapeError
from symcompile.files import write_atomically

__all__ = ["load_weights", "save_weights"]


def save_weights(weights: Any, path: str | Path) -> Path:
    """Write weights as safetensors.

    Args:
        weights: a torch layer, or a dict of arrays by name (torch, JAX or NumPy).

    Raises:
        ShapeError: `weights` is neither.
        ExportError: the file cannot be written; what stood there still does.
    """
    from safetensors.numpy import save

    state = weights.state_dict() if hasattr(weights, "state_dict") else weights
    if not isinstance(state, Mapping) or not all(hasattr(v, "shape") for v in state.values()):
        raise ShapeError(
            f"expected a torch layer or a dict of arrays by name, found {type(weights).__name__}; "
            "for jax and numpy layers pass the params that init returned"
        )
    return write_atomically(Path(path), save({name: _numpy(v) for name, v in state.items()}))


def load_weights(path: str | Path, backend: str = "numpy") -> dict[str, Any]:
    """Read weights written by `save_weights`, as arrays of a backend.

    Pass the result to `layer.load_state_dict` (torch) or `layer.apply` (JAX, NumPy).

    Raises:
        ExportError: the file cannot be read or is no safetensors file.
        BackendError: the backend is unknown.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    from symcompile.codegen import get_backend

    chosen = get_backend(backend)
    try:
        arrays = load(Path(path).read_bytes())
    except (OSError, SafetensorError) as error:
        raise ExportError(f"cannot read weights from {str(path)!r}: {error}") from error
    return {name: chosen.from_numpy(array) for name, array in arrays.items()}


def _numpy(value: Any) -> Any:
    import numpy as np

    from symcompile.codegen import get_backend

    kind = type(value).__module__.partition(".")[0]
    if kind == "torch":
        value = get_backend("torch").to_numpy(value)
    return np.ascontiguousarray(value)
