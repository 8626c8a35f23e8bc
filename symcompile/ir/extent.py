"""Which index axes of a value have extent one.

In: a Program. Out: for every value the axes along which it only repeats itself, as far as
generated code leaves the repetition to the framework's own broadcasting. What a broadcast adds
stays lazy through sums, transposes and mixes, until something needs the full extent.
"""

from __future__ import annotations

from symcompile.ir.ops import Add, Broadcast, Mix, Reduce, Slice, Transpose
from symcompile.ir.program import Program, fact

__all__ = ["lazy_axes"]


@fact
def lazy_axes(program: Program) -> tuple[frozenset[int], ...]:
    """For every value, its axes of extent one that stand for full ones."""
    lazy: list[frozenset[int]] = []
    for op in program.ops:
        args = [lazy[arg] for arg in op.args]
        match op:
            case Add():
                lazy.append(frozenset.intersection(*args))
            case Slice() | Mix():
                lazy.append(args[0])
            case Transpose(axes=axes):
                lazy.append(frozenset(axes.index(axis) for axis in args[0]))
            case Broadcast(labels=labels, axes=axes):
                new = frozenset(range(len(labels))).difference(axes)
                lazy.append(new | {axes[axis] for axis in args[0]})
            case Reduce(axes=axes) if program.reduce == "mean":
                # A mean over repeated entries is the entry; a sum is not.
                kept = args[0].difference(axes)
                lazy.append(frozenset(axis - sum(a < axis for a in axes) for axis in kept))
            case _:
                lazy.append(frozenset())
    return tuple(lazy)
