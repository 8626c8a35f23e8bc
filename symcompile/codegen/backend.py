"""The seam between the compiler and its backends.

A backend turns a `Compiled` into source text and into a layer object. Backends register under the
entry-point group `symcompile.backends`, so a third party can add one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

from symcompile.codegen.compiled import Compiled
from symcompile.errors import BackendError

__all__ = ["GROUP", "Backend", "backend_names", "get_backend"]

GROUP = "symcompile.backends"


@runtime_checkable
class Backend(Protocol):
    """What a backend offers."""

    @property
    def name(self) -> str:
        """The name users pass as `backend=`."""

    def emit(self, compiled: Compiled) -> str:
        """The layer's standalone source.

        Raises:
            BackendError: this backend generates none.
        """

    def build(self, compiled: Compiled) -> Any:
        """The layer object."""

    def call(self, layer: Any, weights: Mapping[str, Any], x: Any) -> Any:
        """Run a layer of this backend on given weights and inputs (its own tensors)."""

    def to_numpy(self, value: Any) -> Any:
        """One of its tensors as a NumPy array."""

    def from_numpy(self, value: Any) -> Any:
        """A NumPy array as one of its tensors."""

    def precision(self, dtype: str) -> AbstractContextManager[object]:
        """Inside it, `from_numpy` and `call` keep this dtype (JAX turns off float64 otherwise)."""

    def calibrate(self) -> tuple[float, ...]:
        """What the framework reaches on its default device, measured in a second or two.

        Returns:
            (bytes per second, float32 operations per second in a matmul, seconds per launch), and
            seconds per byte of a new array where that is more than writing it, and whether sums
            take one pass: the figures of a `Machine`, in its order. The last two may be left out.
        """


def backend_names() -> tuple[str, ...]:
    """Names of the installed backends."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


@cache
def get_backend(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        BackendError: there is none, or its framework is not installed.
    """
    found = [point for point in entry_points(group=GROUP) if point.name == name]
    if not found:
        known = ", ".join(map(repr, backend_names())) or "none"
        raise BackendError(f"backend={name!r} is not known; installed backends: {known}")
    try:
        loaded = found[0].load()
    except ImportError as error:
        raise BackendError(
            f"backend {name!r} cannot be imported ({error}); "
            f"install its framework, or symcompile with its extra {name!r}"
        ) from error
    if not isinstance(loaded, Backend):
        raise BackendError(f"entry point {found[0].value!r} is no symcompile backend")
    return loaded
