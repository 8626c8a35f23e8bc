"""How the operands of a batched mix belong together.

In: a `BatchMix`. Out: its operands group by group, and the batch it takes as it lies.
"""

from __future__ import annotations

from collections.abc import Sequence

from symcompile.ir.ops import BatchMix, Op, Pick

__all__ = ["batch_behind", "grouped"]


def grouped(widths: Sequence[int], rows: int) -> list[range] | None:
    """The places of operands in groups of `rows` channels each; None if they do not fit.

    >>> grouped((1, 3, 4), 4)
    [range(0, 2), range(2, 3)]
    """
    groups, start, total = [], 0, 0
    for place, width in enumerate(widths):
        total += width
        if total > rows:
            return None
        if total == rows:
            groups.append(range(start, place + 1))
            start, total = place + 1, 0
    return None if total else groups


def batch_behind(ops: Sequence[Op], op: BatchMix) -> int | None:
    """The batched mix whose results, all of them and in order, are what `op` mixes.

    They lie in memory as `op` needs them, so nothing has to be copied.
    """
    first = ops[op.args[0]]
    if not isinstance(first, Pick):
        return None
    (behind,) = first.args
    made = ops[behind]
    wanted = [Pick((behind,), member) for member in range(len(op.weights))]
    whole = isinstance(made, BatchMix) and len(made.weights) == len(op.weights)
    return behind if whole and [ops[arg] for arg in op.args] == wanted else None
