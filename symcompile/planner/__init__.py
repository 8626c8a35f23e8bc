"""What the planner decides and what it reports."""

from symcompile.planner.lattice import Lattice, build_lattice, relative
from symcompile.planner.report import Figures, PlanInfo, Step, plan_info
from symcompile.planner.search import Choice, Planner

__all__ = [
    "Choice",
    "Figures",
    "Lattice",
    "PlanInfo",
    "Planner",
    "Step",
    "build_lattice",
    "plan_info",
    "relative",
]
