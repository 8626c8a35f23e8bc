"""The reduction lattice of one tensor.

In: the half-diagrams needed of a tensor. Out: for each, which other one it is reduced from. Spreads
are planned by the same function: an edge that is a reduction one way is a spread the other way.

The one thing to know: a half-diagram is *above* another if the second arises from the first by
merging propagating blocks and closing propagating blocks; closed blocks never change again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from symcompile.diagrams import HalfDiagram
from symcompile.spec import Label, label_order

__all__ = ["NOMINAL_SIZE", "choose_parents", "relative"]

NOMINAL_SIZE = 64
"""Stands for a label size that is unknown while planning."""


def relative(above: HalfDiagram, below: HalfDiagram) -> HalfDiagram | None:
    """`below` as a half-diagram over the propagating blocks of `above`, or None if not below it.

    >>> full = HalfDiagram(((0,), (1,)), ())
    >>> row = HalfDiagram(((0,),), ((1,),))
    >>> relative(full, row)
    HalfDiagram(propagating=((0,),), closed=((1,),))
    >>> relative(row, full) is None
    True
    """
    place = {axis: k for k, block in enumerate(above.propagating) for axis in block}
    newly_closed = tuple(block for block in below.closed if block not in above.closed)
    if len(newly_closed) + len(above.closed) != len(below.closed):
        return None
    joined = below.propagating + newly_closed
    if any(axis not in place for block in joined for axis in block):
        return None
    moved = [tuple(sorted({place[axis] for axis in block})) for block in joined]
    if sum(map(len, moved)) != len(above.propagating):
        return None  # a block of `above` would be torn apart
    split = len(below.propagating)
    return HalfDiagram(tuple(moved[:split]), tuple(sorted(moved[split:])))


def choose_parents(
    needed: Iterable[HalfDiagram], labels: Sequence[Label], sizes: Mapping[Label, int]
) -> dict[HalfDiagram, HalfDiagram]:
    """For each needed half-diagram the cheapest one above it to reduce it from.

    The tensor itself (the identity half-diagram) is always there to start from and is not in the
    result. An edge costs the entries it reads: those of the parent that lie on the diagonals the
    child keeps. Among needed nodes only, so exact whenever no unneeded node could help.
    """
    identity = HalfDiagram(
        tuple(
            (axis,)
            for axis in sorted(range(len(labels)), key=lambda a: (label_order(labels[a]), a))
        ),
        (),
    )
    nodes = dict.fromkeys(needed)
    nodes.pop(identity, None)
    parents: dict[HalfDiagram, HalfDiagram] = {}
    # From few propagating blocks to many: a cheap parent has as few as possible.
    candidates = sorted([identity, *nodes], key=lambda half: _entries(half, labels, sizes))
    for child in nodes:
        best = min(
            (
                (_read(parent, child, labels, sizes), place, parent)
                for place, parent in enumerate(candidates)
                if parent != child and relative(parent, child) is not None
            ),
            key=lambda option: option[:2],
        )
        parents[child] = best[2]
    return parents


def _entries(half: HalfDiagram, labels: Sequence[Label], sizes: Mapping[Label, int]) -> int:
    return prod(sizes.get(labels[block[0]], NOMINAL_SIZE) for block in half.propagating)


def _read(
    parent: HalfDiagram,
    child: HalfDiagram,
    labels: Sequence[Label],
    sizes: Mapping[Label, int],
) -> int:
    """Entries read: one index per block the child keeps or closes."""
    blocks = (*child.propagating, *(block for block in child.closed if block not in parent.closed))
    return prod(sizes.get(labels[block[0]], NOMINAL_SIZE) for block in blocks)
