"""Passes: pure functions Program -> Program, none of which changes what the program computes.

`optimize` runs them in order and keeps the program after each; after each, `diagrams_of` is what
it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from symcompile.cost.objective import Objective
from symcompile.errors import PlanError, ProgramError
from symcompile.ir import Program, diagrams_of, verify
from symcompile.passes.batch import batch_mixes, plan_batches
from symcompile.passes.hoist import mix_before_spread
from symcompile.passes.mixes import MixPlan, form_mixes, plan_mixes
from symcompile.passes.reductions import needed_reductions, share_reductions
from symcompile.passes.schedule import plan_schedule, reorder
from symcompile.passes.share import share_equal
from symcompile.passes.spreads import needed_spreads, sum_before_spread
from symcompile.planner.decisions import BatchPlan, LatticePlan, Schedule, plan_lattices
from symcompile.planner.search import Planner

__all__ = [
    "Optimized",
    "batch_mixes",
    "mix_before_spread",
    "needed_reductions",
    "needed_spreads",
    "optimize",
    "share_equal",
    "share_reductions",
    "sum_before_spread",
    "sum_in_place",
]

Pass = Callable[[Program], Program]


@dataclass(frozen=True, slots=True)
class Optimized:
    """What the passes made of a program.

    Attributes:
        stages: (name, program): as lowered, then after every pass.
        reductions, spreads: what the planner decided, per input and per output.
        mixes: how each stack of features is mixed.
        batches: which mixes of equal size are computed at once.
        schedule: the order of ops.
    """

    stages: tuple[tuple[str, Program], ...]
    reductions: tuple[LatticePlan, ...]
    spreads: tuple[LatticePlan, ...]
    mixes: tuple[MixPlan, ...] = ()
    batches: tuple[BatchPlan, ...] = ()
    schedule: Schedule | None = None

    @property
    def program(self) -> Program:
        """The program after the last pass."""
        return self.stages[-1][1]


def optimize(
    program: Program, planner: Planner, objective: Objective, memory_limit: int | None = None
) -> Optimized:
    """Share, mix early, reduce and spread as the planner says, and order for little memory.

    With SYMCOMPILE_VERIFY=1 in the environment every stage is type-checked and its `diagrams_of`
    compared with that of the stage before.

    Raises:
        PlanError: the planner returned something that is not a plan, or no order found stays
            within `memory_limit` bytes.
        ProgramError: a verified pass changed what the program computes.
    """
    run = _Run(program)
    run.apply(share_equal)
    run.apply(mix_before_spread)
    needed = needed_reductions(run.program)
    reductions = plan_lattices("reduce", needed, program.inputs, planner, objective)
    parents = {plan.tensor: plan.parents for plan in reductions}
    run.apply(lambda stage: share_reductions(stage, parents), "share_reductions")
    mixes = plan_mixes(run.program, objective)
    run.apply(lambda stage: form_mixes(stage, mixes), "form_mixes")
    landed = needed_spreads(run.program)
    spreads = plan_lattices("spread", landed, program.outputs, planner, objective)
    targets = {plan.tensor: plan.parents for plan in spreads}
    run.apply(lambda stage: sum_before_spread(stage, targets), "sum_before_spread")
    run.apply(sum_in_place)
    batches = plan_batches(run.program, objective)
    batched = batch_mixes(run.program, batches)
    schedule = plan_schedule(batched, objective)
    if memory_limit is not None and schedule.peak * objective.itemsize > memory_limit:
        # What is mixed at once is alive at once.
        batches, batched = (), run.program
        schedule = plan_schedule(batched, objective)
    if memory_limit is not None and schedule.peak * objective.itemsize > memory_limit:
        least = "the least possible" if schedule.exact else "the least found"
        raise PlanError(
            f"memory_limit={memory_limit:,} bytes cannot be met: {least} peak is "
            f"{schedule.peak * objective.itemsize:,} bytes for one example, inputs and outputs "
            "included; raise the limit, or use fewer channels"
        )
    run.apply(lambda _: batched, "batch_mixes")
    run.apply(lambda stage: reorder(stage, schedule.order), "schedule")
    return Optimized(tuple(run.stages), reductions, spreads, mixes, batches, schedule)


def sum_in_place(program: Program) -> Program:
    """Let large sums be accumulated into the product of a mix; see `ir.accumulate`."""
    return replace(program, in_place=True)


class _Run:
    """Applies passes, keeps the stages, and verifies them if asked to."""

    def __init__(self, program: Program) -> None:
        check = os.environ.get("SYMCOMPILE_VERIFY", "0") not in ("", "0")
        self.program = program
        self.stages = [("lowered", program)]
        self._meaning = diagrams_of(verify(program)) if check else None

    def apply(self, transform: Pass, name: str = "") -> None:
        name = name or getattr(transform, "__name__", "pass")
        self.program = transform(self.program)
        self.stages.append((name, self.program))
        if self._meaning is None:
            return
        try:
            meaning = diagrams_of(verify(self.program))
        except ProgramError as error:
            raise ProgramError(f"pass {name} broke the program: {error}") from error
        if meaning != self._meaning:
            raise ProgramError(f"pass {name} changed what the program computes")
