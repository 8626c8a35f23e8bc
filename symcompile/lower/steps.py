"""Applying a half-diagram: `reduce_by` on the way in, `spread_by` on the way out, `mix_by` between.

In: a value and a half-diagram over its (or the result's) axes. Out: the ops that carry it out. The
two are each other's mirror image: diagonal and embed, reduce and broadcast, in opposite order.
"""

from __future__ import annotations

from collections.abc import Sequence

from symcompile.diagrams import HalfDiagram
from symcompile.diagrams.partitions import Blocks
from symcompile.ir import Builder
from symcompile.spec import Label
from symcompile.weights import Weight

__all__ = ["mix_by", "reduce_by", "spread_by"]


def reduce_by(build: Builder, value: int, half: HalfDiagram) -> int:
    """The in-feature of `value`: diagonals, then means over closed blocks.

    The result's axes are the propagating blocks in canonical order.
    """
    blocks, propagating, order = _layout(half)
    value = build.diagonal(value, blocks)
    value = build.reduce(value, [axis for axis in range(len(blocks)) if axis not in propagating])
    return build.transpose(value, order)


def spread_by(build: Builder, value: int, half: HalfDiagram, labels: Sequence[Label]) -> int:
    """The transpose of `reduce_by`: broadcast over closed blocks, then embed on diagonals.

    Args:
        labels: the labels of the result's axes.
    """
    blocks, propagating, order = _layout(half)
    value = build.transpose(value, [order.index(axis) for axis in range(len(order))])
    value = build.broadcast(value, [labels[block[0]] for block in blocks], propagating)
    return build.embed(value, blocks)


def mix_by(
    build: Builder, value: int, weight: Weight, rows: tuple[int, int], cols: tuple[int, int]
) -> int:
    """Channels times a part of a weight, or one after the other of its two factors."""
    if weight.factors is None:
        return build.mix(value, weight.name, rows, cols)
    within = (0, weight.factors.inner)
    value = build.mix(value, weight.factors.into, rows, within)
    return build.mix(value, weight.factors.out, within, cols)


def _layout(half: HalfDiagram) -> tuple[Blocks, list[int], list[int]]:
    """All blocks by first axis; which of them propagate; and canonical order among those."""
    blocks = tuple(sorted(half.propagating + half.closed))
    propagating = [place for place, block in enumerate(blocks) if block in half.propagating]
    by_first_axis = [blocks[place] for place in propagating]
    return blocks, propagating, [by_first_axis.index(block) for block in half.propagating]
