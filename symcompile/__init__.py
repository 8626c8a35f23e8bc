"""symcompile: a compiler for permutation-equivariant linear layers.

`import symcompile as sc`, then `sc.compile(spec, in_channels=…, out_channels=…, backend=…)`.
Importing this package imports no ML framework; a backend is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from symcompile.errors import (
    BackendError,
    BasisTooLargeError,
    CheckError,
    ExportError,
    OptionError,
    PlanError,
    ProgramError,
    ShapeError,
    SpecError,
    SymcompileError,
)
from symcompile.spec.types import Fixed, PermSpec

if TYPE_CHECKING:
    from symcompile import specs, terms
    from symcompile.api import compile, export, plan
    from symcompile.check import (
        check_backends,
        check_completeness,
        check_equivariance,
        check_symmetry,
    )
    from symcompile.cost.machine import Machine
    from symcompile.spec import dump_spec, load_spec
    from symcompile.weights.store import load_weights, save_weights

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BasisTooLargeError",
    "CheckError",
    "ExportError",
    "Fixed",
    "Machine",
    "OptionError",
    "PermSpec",
    "PlanError",
    "ProgramError",
    "ShapeError",
    "SpecError",
    "SymcompileError",
    "__version__",
    "check_backends",
    "check_completeness",
    "check_equivariance",
    "check_symmetry",
    "compile",
    "dump_spec",
    "export",
    "load_spec",
    "load_weights",
    "plan",
    "save_weights",
    "specs",
    "terms",
]

# Looked up when first used: importing symcompile stays well under a third of a second.
_LAZY = {
    "Machine": "symcompile.cost.machine",
    "check_backends": "symcompile.check",
    "check_completeness": "symcompile.check",
    "check_equivariance": "symcompile.check",
    "check_symmetry": "symcompile.check",
    "compile": "symcompile.api",
    "dump_spec": "symcompile.spec",
    "export": "symcompile.api",
    "load_spec": "symcompile.spec",
    "load_weights": "symcompile.weights.store",
    "plan": "symcompile.api",
    "save_weights": "symcompile.weights.store",
}


def __getattr__(name: str) -> Any:
    if name in ("specs", "terms"):
        return import_module(f"symcompile.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'symcompile' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
