"""From a canonical schema to a Program: one diagram at a time, or factored by signature."""

from symcompile.lower.factored import lower_factored
from symcompile.lower.reference import lower_reference

__all__ = ["lower_factored", "lower_reference"]
