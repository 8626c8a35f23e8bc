"""Pass: add before slicing.

In: a Program and a plan. Out: one in which values without index axes are added whole, where all
their slices were added pair by pair. Every output gets a part of what the constant makes and the
same part of what the other features without index axes make: one sum instead of one for every
tensor. That spares launches, not always bytes: a slice that becomes an output is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from symcompile.cost.objective import Objective
from symcompile.ir import (
    Add,
    Builder,
    Output,
    Program,
    Slice,
    Type,
    ownership,
    readers_of,
    types_of,
)
from symcompile.planner.decisions import WholePlan

__all__ = ["add_before_slice", "plan_wholes"]


def plan_wholes(program: Program, objective: Objective) -> tuple[WholePlan, ...]:
    """For all values whose slices are added pair by pair, whether to add them whole costs less."""
    types, readers = types_of(program), readers_of(program)
    plans = []
    for values in _alike(program, types, readers):
        slices, whole = _scores(program, types, readers, values, objective)
        ranked = (("slices", slices), ("whole", whole))
        if whole < slices:
            ranked = ranked[::-1]
        plans.append(WholePlan(values, len(readers[values[0]]), ranked[0][0], ranked))
    return tuple(plans)


def add_before_slice(program: Program, plans: Iterable[WholePlan]) -> Program:
    """Replace sums of slices by slices of sums where that is planned."""
    chosen = [plan.values for plan in plans if plan.chosen == "whole"]
    added_to = {value: values for values in chosen for value in values}
    if not added_to:
        return program
    types = types_of(program)
    build = Builder(program)
    place: list[int] = []
    for op in program.ops:
        if not isinstance(op, Add):
            place.append(build.emit(op.renumbered(place)))
            continue
        terms = []
        for arg in op.args:
            part = program.ops[arg]
            if not (isinstance(part, Slice) and part.args[0] in added_to):
                terms.append(place[arg])
                continue
            (whole,), values = part.args, added_to[part.args[0]]
            if whole == values[0]:  # it stands for the others too
                total = build.add([place[value] for value in values])
                terms.append(build.slice(total, part.start, part.stop, types[whole].width))
        place.append(build.add(terms))
    return build.program()


def _scores(
    program: Program,
    types: Sequence[Type],
    readers: Sequence[Sequence[int]],
    values: tuple[int, ...],
    objective: Objective,
) -> tuple[float, float]:
    """Of the sums that may be spared; and of one over all, with what it moves besides."""
    spared = copied = moved = 0
    for part in readers[values[0]]:
        (total,) = readers[part]
        if len(program.ops[total].args) > len(values):  # it has other terms: it stays
            moved += types[part].width
            continue
        spared += 1
        if any(isinstance(program.ops[reader], Output) for reader in readers[total]):
            copied += 1  # as a slice
            moved += types[part].width
    whole = objective.score(moved, moved, 0, 1 + copied)
    return objective.score(0, 0, 0, spared), whole


def _alike(
    program: Program, types: Sequence[Type], readers: Sequence[Sequence[int]]
) -> list[tuple[int, ...]]:
    """Values without index axes all of whose slices are added pair by pair."""
    parted = ownership(program).parted  # they are made in slices
    found: dict[object, list[int]] = {}
    for number, parts in enumerate(readers):
        if types[number].labels or number in parted:
            continue
        sums = _sums(program, readers, parts)
        if sums:
            found.setdefault(sums, []).append(number)
    return [tuple(values) for values in found.values() if len(values) > 1]


def _sums(
    program: Program, readers: Sequence[Sequence[int]], parts: Sequence[int]
) -> tuple[tuple[int, int, int], ...]:
    """Where each slice starts and stops, and the one sum it is in; nothing if any is not a slice,
    or not in one sum."""
    sums = []
    for number in parts:
        part, into = program.ops[number], readers[number]
        if not isinstance(part, Slice) or len(into) != 1:
            return ()
        if not isinstance(program.ops[into[0]], Add):
            return ()
        sums.append((part.start, part.stop, into[0]))
    return tuple(sorted(sums))
