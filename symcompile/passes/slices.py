"""Pass: add before slicing.

In: a Program and a plan. Out: one in which values without index axes are added whole, where all
their slices were added pair by pair. Every output gets a part of what the constant makes and the
same part of what the other features without index axes make: one sum instead of one for every
tensor. That spares launches, not always bytes: a slice that becomes an output is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from symcompile.cost.objective import Objective
from symcompile.ir import (
    Add,
    Builder,
    Output,
    Program,
    Slice,
    Type,
    lazy_axes,
    ownership,
    readers_of,
    types_of,
)

__all__ = ["Wholes", "add_before_slice", "plan_wholes"]

Wholes = tuple[int, ...]
"""Values all of whose slices are added pair by pair."""


def plan_wholes(program: Program, objective: Objective) -> tuple[Wholes, ...]:
    """Those for which it costs less to add them whole."""
    types, readers = types_of(program), readers_of(program)
    return tuple(
        wholes
        for wholes in _alike(program, types, readers)
        if _costs_less(program, types, readers, wholes, objective)
    )


def add_before_slice(program: Program, plans: Iterable[Wholes]) -> Program:
    """Replace sums of slices by slices of sums."""
    added_to = {whole: wholes for wholes in plans for whole in wholes}
    if not added_to:
        return program
    types = types_of(program)
    build = Builder(program)
    place: list[int] = []
    for op in program.ops:
        if not isinstance(op, Add):
            place.append(build.emit(replace(op, args=tuple(place[arg] for arg in op.args))))
            continue
        terms = []
        for arg in op.args:
            part = program.ops[arg]
            wholes = added_to.get(part.args[0], ()) if isinstance(part, Slice) else ()
            if not (wholes and isinstance(part, Slice)):
                terms.append(place[arg])
            elif part.args[0] == wholes[0]:  # it stands for the others too
                total = build.add([place[whole] for whole in wholes])
                width = types[wholes[0]].width
                terms.append(build.slice(total, part.start, part.stop, width))
        place.append(build.add(terms))
    return build.program()


def _costs_less(
    program: Program,
    types: Sequence[Type],
    readers: Sequence[Sequence[int]],
    wholes: Wholes,
    objective: Objective,
) -> bool:
    """Whether the sums that are spared cost more than one over all and what it moves besides."""
    spared = copied = moved = 0
    for part in readers[wholes[0]]:
        (total,) = readers[part]
        if len(program.ops[total].args) > len(wholes):  # it has other terms: it stays
            moved += types[part].width
            continue
        spared += 1
        if any(isinstance(program.ops[reader], Output) for reader in readers[total]):
            copied += 1  # as a slice
            moved += types[part].width
    whole = objective.score(moved, moved, 0, 1 + copied)
    return whole < objective.score(0, 0, 0, spared)


def _alike(
    program: Program, types: Sequence[Type], readers: Sequence[Sequence[int]]
) -> list[Wholes]:
    """Values without index axes all of whose slices are added pair by pair."""
    parted = ownership(program, types, lazy_axes(program)).parted  # they are made in slices
    found: dict[object, list[int]] = {}
    for number, parts in enumerate(readers):
        if types[number].labels or number in parted:
            continue
        sums = _sums(program, readers, parts)
        if sums:
            found.setdefault(sums, []).append(number)
    return [tuple(wholes) for wholes in found.values() if len(wholes) > 1]


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
