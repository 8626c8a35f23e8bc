"""Weights on disk, across backends.

In: a layer or a dict of arrays of any framework. Out: a safetensors file, and back as the arrays of
whichever backend is asked for. The canonical schema is the same everywhere, so a file written from
torch loads in JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from symcompile.dtypes import numpy_dtype
from symcompile.errors import BackendError, ExportError, ShapeError
from symcompile.files import write_atomically

__all__ = ["load_weights", "save_weights"]

_DTYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
"""The dtypes of weights, by the format's names for them."""


def save_weights(weights: Any, path: str | Path) -> Path:
    """Write weights as safetensors.

    Args:
        weights: a torch layer, or a dict of arrays by name (torch, JAX or NumPy), each of dtype
            float16, bfloat16, float32, float64 or complex64.
        path: of the file; any suffix.

    Returns:
        the path, when all of it is written.

    Raises:
        ShapeError: `weights` is neither.
        ExportError: a dtype is not in the list (the format has no complex128), or the file cannot
            be written; what stood there still does.
        BackendError: the library safetensors is not installed.

    >>> import tempfile
    >>> import symcompile as sc
    >>> layer = sc.compile({"w": (0, 0)}, in_channels=2, out_channels=3, backend="numpy")
    >>> params = layer.init(0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     read = load_weights(save_weights(params, f"{folder}/layer.safetensors"))
    >>> all((read[name] == value).all() for name, value in params.items())
    True
    """
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise _no_safetensors() from error

    state = weights.state_dict() if hasattr(weights, "state_dict") else weights
    if not isinstance(state, Mapping) or not all(hasattr(v, "shape") for v in state.values()):
        raise ShapeError(
            f"expected a torch layer or a dict of arrays by name, found {type(weights).__name__}; "
            "for jax and numpy layers pass the params that init returned"
        )
    arrays = {name: _numpy(value) for name, value in state.items()}
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES.values():
            raise ExportError(
                f"{name!r} is {array.dtype.name}, which is not stored; convert it to one of "
                f"{', '.join(_DTYPES.values())}"
            )
    return write_atomically(Path(path), save(arrays))


def load_weights(path: str | Path, backend: str = "numpy") -> dict[str, Any]:
    """Read weights written by `save_weights`, as arrays of a backend.

    Pass the result to `layer.load_state_dict` (torch) or `layer.apply` (JAX, NumPy).

    Raises:
        ExportError: the file cannot be read or is no safetensors file of weights.
        BackendError: the backend is unknown or its framework not installed, or it rounds what the
            file holds; or the library safetensors is not installed.

    A layer of one backend goes on as one of another:

    >>> import tempfile
    >>> import symcompile as sc
    >>> torch_layer = sc.compile((0, 0), in_channels=2, out_channels=3, backend="torch")
    >>> numpy_layer = sc.compile((0, 0), in_channels=2, out_channels=3, backend="numpy")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     params = load_weights(save_weights(torch_layer, f"{folder}/layer.safetensors"))
    >>> import numpy as np
    >>> numpy_layer.apply(params, np.ones((5, 4, 4, 2), np.float32)).shape
    (5, 4, 4, 3)
    """
    from symcompile.codegen import get_backend

    try:
        from safetensors import SafetensorError, deserialize
    except ImportError as error:
        raise _no_safetensors() from error

    chosen = get_backend(backend)
    try:
        stored = deserialize(Path(path).read_bytes())  # type: ignore[no-untyped-call]
    except (OSError, ValueError, SafetensorError) as error:
        raise ExportError(
            f"cannot read weights from {str(path)!r}: {error}; give a file that save_weights wrote"
        ) from error
    return {name: chosen.from_numpy(_array(name, part, path)) for name, part in stored}


def _no_safetensors() -> BackendError:
    return BackendError(
        "weights are kept in safetensors files; install the library: pip install safetensors"
    )


def _array(name: str, stored: Mapping[str, Any], path: str | Path) -> Any:
    import numpy as np

    kind = stored["dtype"]
    if kind not in _DTYPES:
        raise ExportError(
            f"{str(path)!r}: {name!r} has dtype {kind}, expected one of {', '.join(_DTYPES)}"
        )
    return np.frombuffer(stored["data"], numpy_dtype(_DTYPES[kind])).reshape(stored["shape"]).copy()


def _numpy(value: Any) -> Any:
    import numpy as np

    from symcompile.codegen import get_backend

    kind = type(value).__module__.partition(".")[0]
    if kind == "torch":
        value = get_backend("torch").to_numpy(value)
    return np.ascontiguousarray(value).reshape(value.shape)
