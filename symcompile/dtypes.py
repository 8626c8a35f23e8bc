"""NumPy dtypes by name, bfloat16 included, which NumPy itself does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from symcompile.errors import BackendError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["numpy_dtype"]


def numpy_dtype(name: Any) -> np.dtype[Any]:
    """The dtype called `name`.

    Raises:
        BackendError: bfloat16 is asked for and `ml_dtypes` is not installed.

    >>> numpy_dtype("complex64")
    dtype('complex64')
    """
    import numpy as np

    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise BackendError("NumPy has no bfloat16 of its own; pip install ml_dtypes") from error
        name = ml_dtypes.bfloat16
    kind: np.dtype[Any] = np.dtype(name)
    return kind
