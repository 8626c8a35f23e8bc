"""What every compiled layer offers, whatever framework runs it."""

from __future__ import annotations

from symcompile.codegen.compiled import Compiled
from symcompile.planner import PlanInfo
from symcompile.spec import PermSpec
from symcompile.weights import BasisElement

__all__ = ["CompiledLayer"]


class CompiledLayer:
    """A layer that knows how it came about."""

    compiled: Compiled

    @property
    def spec(self) -> PermSpec:
        """The bound input spec."""
        return self.compiled.spec

    @property
    def plan(self) -> PlanInfo:
        """What the planner did."""
        return self.compiled.plan

    @property
    def basis(self) -> tuple[BasisElement, ...]:
        """Every basis element and its weight slice."""
        return self.compiled.basis

    def describe(self) -> str:
        """The layer in one line."""
        plan = self.compiled.plan
        return f"{plan.diagrams} diagrams, {plan.planned.mixes} mixes, {plan.weights} weights"
