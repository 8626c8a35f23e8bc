"""Numerical checks: equivariance, completeness and agreement of layers, symmetry of networks.

In: a layer, a spec, or a function of your own. Out: a report with figures, or a `CheckError`. The
checks know group actions on arrays and nothing of diagrams, so they share no mistake with the
compiler.
"""

from symcompile.check.agreement import AgreementReport, check_backends
from symcompile.check.completeness import CompletenessReport, check_completeness
from symcompile.check.equivariance import EquivarianceReport, check_equivariance
from symcompile.check.symmetry import SymmetryReport, check_symmetry

__all__ = [
    "AgreementReport",
    "CompletenessReport",
    "EquivarianceReport",
    "SymmetryReport",
    "check_backends",
    "check_completeness",
    "check_equivariance",
    "check_symmetry",
]
