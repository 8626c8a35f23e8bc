"""What a program costs: bytes, flops and launches, symbolic in label sizes; a machine model."""

from symcompile.cost.machine import PRESETS, Machine
from symcompile.cost.polynomial import Polynomial
from symcompile.cost.work import Work, total_work, work_of

__all__ = ["PRESETS", "Machine", "Polynomial", "Work", "total_work", "work_of"]
