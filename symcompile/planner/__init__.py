"""What the planner decides and what it reports."""

from symcompile.planner.lattice import choose_parents, relative
from symcompile.planner.report import Column, PlanInfo, plan_info

__all__ = ["Column", "PlanInfo", "choose_parents", "plan_info", "relative"]
