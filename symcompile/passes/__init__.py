"""Passes: pure functions Program -> Program, none of which changes what the program computes.

`optimize` runs them in order and keeps the program after each; after each, `diagrams_of` is what
it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from symcompile.cost.objective import Objective
from symcompile.errors import PlanError, ProgramError
from symcompile.ir import Program, diagrams_of, verify
from symcompile.passes.batch import batch_mixes, plan_batches
from symcompile.passes.fill import fill_mixes, plan_fills
from symcompile.passes.hoist import mix_before_spread
from symcompile.passes.mixes import MixPlan, form_mixes, plan_mixes
from symcompile.passes.reductions import needed_reductions, share_reductions
from symcompile.passes.schedule import plan_schedule, reorder
from symcompile.passes.share import share_equal
from symcompile.passes.slices import add_before_slice, plan_wholes
from symcompile.passes.spreads import needed_spreads, sum_before_spread
from symcompile.planner.bound import least_held
from symcompile.planner.decisions import (
    BatchPlan,
    FillPlan,
    LatticePlan,
    Schedule,
    WholePlan,
    plan_lattices,
)
from symcompile.planner.search import Planner

__all__ = [
    "Optimized",
    "add_before_slice",
    "batch_mixes",
    "fill_mixes",
    "mix_before_spread",
    "needed_reductions",
    "needed_spreads",
    "optimize",
    "share_equal",
    "share_reductions",
    "sum_before_spread",
    "sum_in_place",
    "verifies",
]

Pass = Callable[[Program], Program]

_DEARER = "the whole layer costs less without filled matrices"

_NO_ROOM = "for memory_limit: what is mixed at once is alive at once"


@dataclass(frozen=True, slots=True)
class Optimized:
    """What the passes made of a program.

    Attributes:
        stages: (name, program): as lowered, then after every pass.
        reductions, spreads: what the planner decided, per input and per output.
        fills: which dense pieces are blocks of one matrix.
        mixes: how each stack of features is mixed.
        wholes: which values are added before they are sliced.
        batches: which mixes of equal size are computed at once.
        schedule: the order of ops.
        minimize: what the choices are best at; not what was asked for if that did not fit.
    """

    stages: tuple[tuple[str, Program], ...]
    reductions: tuple[LatticePlan, ...]
    spreads: tuple[LatticePlan, ...]
    fills: tuple[FillPlan, ...] = ()
    mixes: tuple[MixPlan, ...] = ()
    wholes: tuple[WholePlan, ...] = ()
    batches: tuple[BatchPlan, ...] = ()
    schedule: Schedule | None = None
    minimize: str = ""

    @property
    def program(self) -> Program:
        """The program after the last pass."""
        return self.stages[-1][1]

    @property
    def filled(self) -> bool:
        """Whether any pieces are blocks of a matrix."""
        return any(plan.chosen == "filled" for plan in self.fills)


def optimize(
    program: Program, planner: Planner, objective: Objective, memory_limit: int | None = None
) -> Optimized:
    """Share, mix early, reduce and spread as the planner says, and order for little memory.

    If the plan holds more than `memory_limit`, mixes are no longer batched, nor values added before
    they are sliced, then pieces no longer filled up to one matrix; if that is not enough, the plan
    is made for least peak, then for least bytes. The first that fits is taken.

    With SYMCOMPILE_VERIFY=1 in the environment every stage is type-checked and its `diagrams_of`
    compared with that of the stage before.

    Args:
        memory_limit: bytes for one example, inputs and outputs included.

    Raises:
        PlanError: the planner returned something that is not a plan, or no plan found stays
            within `memory_limit`.
        ProgramError: a verified pass changed what the program computes.
    """
    done = _planned(program, planner, objective)
    if done.filled:
        # Scores see one cover at a time; what it changes elsewhere only the whole layer shows.
        pieces = _planned(program, planner, objective, fills=_DEARER)
        done = min(done, pieces, key=lambda one: _score(one, objective))
    if memory_limit is None or _peak(done, objective) <= memory_limit:
        return done
    tried = [done]
    for minimize in dict.fromkeys((objective.minimize, "peak", "bytes")):
        goal = replace(objective, minimize=minimize)
        for fills in ("", _NO_ROOM):
            if fills and not tried[-1].filled:
                continue
            done = _planned(program, planner, goal, batches=_NO_ROOM, fills=fills)
            if _peak(done, objective) <= memory_limit:
                return done
            tried.append(done)
    raise _refusal(memory_limit, tried, objective)


def _score(done: Optimized, objective: Objective) -> float:
    """What was to be least, of the whole layer."""
    if objective.minimize == "peak":
        return _peak(done, objective)
    return objective.cost_of(done.program)


def _planned(
    program: Program,
    planner: Planner,
    objective: Objective,
    *,
    batches: str = "",
    fills: str = "",
) -> Optimized:
    """All passes for one objective.

    Args:
        batches, fills: why there are to be no batched mixes and sums of whole values, no filled
            matrices; or empty.
    """
    run = _Run(program)
    run.apply(share_equal)
    run.apply(mix_before_spread)
    needed = needed_reductions(run.program)
    reductions = plan_lattices("reduce", needed, program.inputs, planner, objective)
    parents = {plan.tensor: plan.parents for plan in reductions}
    run.apply(lambda stage: share_reductions(stage, parents), "share_reductions")
    covers = plan_fills(run.program, objective)
    if fills:
        covers = tuple(plan.one_by_one(fills) for plan in covers)
    run.apply(lambda stage: fill_mixes(stage, covers), "fill_mixes")
    mixes = plan_mixes(run.program, objective)
    run.apply(lambda stage: form_mixes(stage, mixes), "form_mixes")
    landed = needed_spreads(run.program)
    spreads = plan_lattices("spread", landed, program.outputs, planner, objective)
    targets = {plan.tensor: plan.parents for plan in spreads}
    run.apply(lambda stage: sum_before_spread(stage, targets), "sum_before_spread")
    wholes = () if batches else plan_wholes(run.program, objective)
    run.apply(lambda stage: add_before_slice(stage, wholes), "add_before_slice")
    run.apply(sum_in_place)
    groups = plan_batches(run.program, objective)
    if batches:
        groups = tuple(plan.one_by_one(batches) for plan in groups)
    run.apply(lambda stage: batch_mixes(stage, groups), "batch_mixes")
    schedule = plan_schedule(run.program, objective)
    run.apply(lambda stage: reorder(stage, schedule.order), "schedule")
    return Optimized(
        tuple(run.stages),
        reductions,
        spreads,
        covers,
        mixes,
        wholes,
        groups,
        schedule,
        objective.minimize,
    )


def _peak(done: Optimized, objective: Objective) -> int:
    assert done.schedule, "every plan has an order"
    return done.schedule.peak * objective.itemsize


def _refusal(limit: int, tried: Sequence[Optimized], objective: Objective) -> PlanError:
    best = min(tried, key=lambda done: _peak(done, objective))
    peak = _peak(best, objective)
    floor = least_held(best.program, objective.sizes_of(best.program)) * objective.itemsize
    least = "the least possible" if peak == floor else "the least found"
    return PlanError(
        f"memory_limit={limit:,} bytes cannot be met: {least} peak is {peak:,} bytes for one "
        "example, inputs and outputs included; raise the limit, or use fewer channels"
    )


def sum_in_place(program: Program) -> Program:
    """Let large sums be accumulated into the product of a mix; see `ir.accumulate`."""
    return replace(program, in_place=True)


def verifies() -> bool:
    """Whether every stage is held to the one before, as SYMCOMPILE_VERIFY=1 asks for."""
    return os.environ.get("SYMCOMPILE_VERIFY", "0") not in ("", "0")


class _Run:
    """Applies passes, keeps the stages, and verifies them if asked to."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.stages = [("lowered", program)]
        self._meaning = diagrams_of(verify(program)) if verifies() else None

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
