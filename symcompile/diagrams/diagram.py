"""Diagrams of a pair of tensors, and their cut into two half-diagrams.

In: half-diagrams of an output and an input tensor and a bijection of their propagating blocks.
Out: the set partition of the joint axes, and back. This is the cellular structure of the partition
algebra (Graham & Lehrer 1996; Halverson & Ram 2005).

The one thing to know: joint axes count the output's axes first, then the input's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product

from symcompile.diagrams.half import HalfDiagram, canonical_half
from symcompile.diagrams.partitions import Blocks
from symcompile.diagrams.signatures import Signature
from symcompile.spec.types import Label

__all__ = ["Diagram", "bijections", "cut", "glue"]


@dataclass(frozen=True, slots=True)
class Diagram:
    """One basis element of the equivariant maps from one tensor to another.

    Attributes:
        out_order: number of axes of the output tensor.
        blocks: partition of the joint axes; axes below `out_order` are the output's.
    """

    out_order: int
    blocks: Blocks

    def __str__(self) -> str:
        def side(block: tuple[int, ...]) -> str:
            out = "".join(str(a) for a in block if a < self.out_order)
            into = "".join(str(a - self.out_order) for a in block if a >= self.out_order)
            return f"{out}<-{into}"

        return "|".join(map(side, self.blocks)) or "-"


def bijections(signature: Signature) -> Iterator[tuple[int, ...]]:
    """Every permutation of the propagating blocks that keeps labels, the identity first.

    `b[i]` is the in-block that out-block i is joined to.

    >>> list(bijections(("a", "b", "b")))
    [(0, 1, 2), (0, 2, 1)]
    """
    runs: list[list[int]] = []
    for place, label in enumerate(signature):
        if place and signature[place - 1] == label:
            runs[-1].append(place)
        else:
            runs.append([place])
    for choice in product(*(permutations(run) for run in runs)):
        yield tuple(place for run in choice for place in run)


def glue(out: HalfDiagram, into: HalfDiagram, bijection: Sequence[int]) -> Diagram:
    """Join two half-diagrams of one signature along a bijection of their propagating blocks.

    >>> row = HalfDiagram(propagating=((0,),), closed=((1,),))
    >>> str(glue(row, row, (0,)))
    '0<-0|1<-|<-1'
    """
    shift = out.order

    def moved(block: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(axis + shift for axis in block)

    blocks = [
        block + moved(into.propagating[source])
        for block, source in zip(out.propagating, bijection, strict=True)
    ]
    blocks += out.closed
    blocks += map(moved, into.closed)
    return Diagram(shift, tuple(sorted(blocks)))


def cut(
    diagram: Diagram, out_labels: Sequence[Label], in_labels: Sequence[Label]
) -> tuple[HalfDiagram, HalfDiagram, tuple[int, ...]]:
    """The inverse of `glue`: (out half-diagram, in half-diagram, bijection)."""
    split = diagram.out_order
    pairs = [
        (
            tuple(axis for axis in block if axis < split),
            tuple(axis - split for axis in block if axis >= split),
        )
        for block in diagram.blocks
    ]
    through = {top: bottom for top, bottom in pairs if top and bottom}
    out = canonical_half(list(through), [top for top, bottom in pairs if not bottom], out_labels)
    into = canonical_half(
        list(through.values()), [bottom for top, bottom in pairs if not top], in_labels
    )
    return out, into, tuple(into.propagating.index(through[block]) for block in out.propagating)
