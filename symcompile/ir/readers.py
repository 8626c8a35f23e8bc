"""Who reads a value.

In: a Program. Out: for every value the numbers of the ops that read it, in order; an op that reads
it twice is named twice.
"""

from __future__ import annotations

from symcompile.ir.program import Program, fact

__all__ = ["readers_of"]


@fact
def readers_of(program: Program) -> tuple[tuple[int, ...], ...]:
    """For every value, the ops that read it, once per operand."""
    readers: list[list[int]] = [[] for _ in program.ops]
    for number, op in enumerate(program.ops):
        for arg in op.args:
            readers[arg].append(number)
    return tuple(map(tuple, readers))
