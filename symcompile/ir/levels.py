"""How many mixes lie behind every op.

In: a Program. Out: a level per op, and an order by level. Mixes of one level never need each other,
so any of them can be computed together.
"""

from __future__ import annotations

from symcompile.ir.ops import BatchMix, Mix
from symcompile.ir.program import Program, fact

__all__ = ["by_level", "levels_of"]


@fact
def levels_of(program: Program) -> tuple[int, ...]:
    """The most mixes on a way from an input to the op, itself not counted."""
    levels: list[int] = []
    for op in program.ops:
        behind = (levels[arg] + isinstance(program.ops[arg], Mix | BatchMix) for arg in op.args)
        levels.append(max(behind, default=0))
    return tuple(levels)


def by_level(program: Program) -> list[int]:
    """An order in which all mixes of a level come before anything that reads one of them."""
    levels = levels_of(program)
    return sorted(range(len(program.ops)), key=lambda number: (levels[number], number))
