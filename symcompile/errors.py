"""Every error symcompile raises on purpose.

One class per kind of mistake, all under `SymcompileError`, so that `except sc.SymcompileError`
catches whatever a user can mend. Each message names the place, what was found, what was expected
and how to mend it.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BasisTooLargeError",
    "CheckError",
    "ExportError",
    "OptionError",
    "PlanError",
    "ProgramError",
    "ShapeError",
    "SpecError",
    "SymcompileError",
]


class SymcompileError(Exception):
    """Base of every error symcompile raises on purpose."""


class SpecError(SymcompileError, ValueError):
    """A perm_spec, or a file holding one, is malformed."""


class ShapeError(SymcompileError, ValueError):
    """Sizes disagree, or a tensor or tree does not fit its spec."""


class OptionError(SymcompileError, ValueError):
    """An option or an argument is unknown, or has a value that is not allowed."""


class BasisTooLargeError(SymcompileError, ValueError):
    """The basis has more elements than the stated limit; nothing was built."""


class BackendError(SymcompileError, RuntimeError):
    """A backend is unknown, cannot do what was asked, or lacks a package that it needs."""


class ExportError(SymcompileError, OSError):
    """A file could not be written, and whatever stood there before still does; or not read."""


class PlanError(SymcompileError, ValueError):
    """A planner returned a wrong plan, or no plan meets a limit."""


class ProgramError(SymcompileError, ValueError):
    """A Program is ill-typed, or its text does not parse."""


class CheckError(SymcompileError, AssertionError):
    """A check (equivariance, completeness, cross-backend, symmetry) found a layer or spec wrong."""
