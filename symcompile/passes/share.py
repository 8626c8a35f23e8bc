"""Pass: compute equal values once.

In: any Program. Out: the same one without common subexpressions, ops that do nothing, and ops
nobody reads. This is what a compiler such as XLA reaches from the reference program.
"""

from __future__ import annotations

from symcompile.ir import Builder, Program

__all__ = ["share_equal"]


def share_equal(program: Program) -> Program:
    """Hash-consing: an op equal to an earlier one is replaced by it."""
    build = Builder(program)
    place: list[int] = []
    for op in program.ops:
        place.append(build.emit(op.renumbered(place)))
    return build.program()
