"""Planning every tensor of a program.

In: which half-diagrams each tensor needs, a planner, an objective. Out: one `LatticePlan` per
tensor. Tensors of one kind (same labels, width and needs) are searched once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from symcompile.cost.objective import Objective
from symcompile.diagrams import HalfDiagram
from symcompile.ir.types import Tensor
from symcompile.planner.lattice import Lattice, build_lattice
from symcompile.planner.search import Choice, Parents, Planner, checked, parents_of
from symcompile.spec import Path

__all__ = [
    "BatchPlan",
    "FillPlan",
    "LatticePlan",
    "MixPlan",
    "Schedule",
    "SumPlan",
    "plan_lattices",
]


@dataclass(frozen=True, slots=True)
class LatticePlan:
    """How the features of one input are reduced, or the parts of one output spread.

    Attributes:
        kind: "reduce" or "spread".
        tensor: number of the input or output.
        path: where it sits in the tree.
        lattice: what there was to choose from.
        choice: what was chosen.
    """

    kind: Literal["reduce", "spread"]
    tensor: int
    path: Path
    lattice: Lattice
    choice: Choice

    @property
    def parents(self) -> Parents:
        """What each half-diagram is reduced from, or spread to."""
        return parents_of(self.lattice, self.choice)


@dataclass(frozen=True, slots=True)
class MixPlan:
    """How one mix is computed.

    Attributes:
        weight: name of its weight.
        chosen: the form taken, see `passes.mixes`.
        scores: (form, score) of every form considered, the chosen one first.
    """

    weight: str
    chosen: str
    scores: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class _Joint:
    """Whether several mixes are computed together or one by one.

    Attributes:
        weights: names of their weights.
        chosen: the form taken.
        scores: (form, score) of both, the chosen one first.
        reason: why the chosen form is not the cheaper one, or empty.
    """

    ONE_BY_ONE: ClassVar[str]

    weights: tuple[str, ...]
    chosen: str
    scores: tuple[tuple[str, float], ...]
    reason: str = ""

    def one_by_one(self, reason: str) -> Self:
        """The same, but for `reason` they are computed one by one whatever that costs."""
        if self.chosen == self.ONE_BY_ONE:
            return self
        return replace(self, chosen=self.ONE_BY_ONE, scores=self.scores[::-1], reason=reason)


@dataclass(frozen=True, slots=True)
class BatchPlan(_Joint):
    """Whether mixes of equal size are computed at once: "batched" or "separate"."""

    ONE_BY_ONE: ClassVar[str] = "separate"


@dataclass(frozen=True, slots=True)
class FillPlan(_Joint):
    """Whether dense pieces of one signature are blocks of one matrix: "filled" or "pieces".

    Attributes:
        share: the part of the matrix that they fill; the rest is zero.
    """

    ONE_BY_ONE: ClassVar[str] = "pieces"

    share: float = 1.0


@dataclass(frozen=True, slots=True)
class WholePlan:
    """Whether values are added "whole" and the sum is sliced, or their "slices" one by one.

    Attributes:
        values: numbers of the values, in the program before this pass.
        slices: how many slices each has.
        chosen: the form taken.
        scores: (form, score) of both, the chosen one first.
    """

    values: tuple[int, ...]
    slices: int
    chosen: str
    scores: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class SumPlan:
    """A large sum, and whether it is accumulated into the product of a mix.

    Attributes:
        weight: name of the mix's weight; None if a new array is made for the sum.
        terms: how many terms it has.
        entries: its size, for one example: what is not allocated anew where there is a weight.
    """

    weight: str | None
    terms: int
    entries: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """An order of ops.

    Attributes:
        order: op numbers.
        peak: most entries alive at once, for one example.
        before: the same in the order given.
        exact: True if no order has a lower peak.
    """

    order: tuple[int, ...]
    peak: int
    before: int
    exact: bool


def plan_lattices(
    kind: Literal["reduce", "spread"],
    needed: Mapping[int, Sequence[HalfDiagram]],
    tensors: Sequence[Tensor],
    planner: Planner,
    objective: Objective,
) -> tuple[LatticePlan, ...]:
    """One plan per tensor that needs anything.

    Raises:
        PlanError: the planner returned something that is not a plan.
    """
    found: dict[object, tuple[Lattice, Choice]] = {}
    plans = []
    for tensor, halves in sorted(needed.items()):
        labels, width = tensors[tensor].labels, tensors[tensor].width
        key = (labels, width, frozenset(halves))
        if key not in found:
            lattice = build_lattice(halves, labels, width, objective)
            found[key] = lattice, checked(lattice, planner.choose(lattice))
        plans.append(LatticePlan(kind, tensor, tensors[tensor].path, *found[key]))
    return tuple(plans)
