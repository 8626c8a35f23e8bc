"""Pass: sum before spreading.

In: a Program and a plan per output. Out: one in which everything that lands on one out
half-diagram of an output is summed first, then spread to the half-diagram the plan says, and so on
up to the output: the mirror image of `reductions`, planned by the same search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from symcompile.diagrams import HalfDiagram
from symcompile.diagrams.half import canonical_half
from symcompile.diagrams.partitions import Blocks
from symcompile.ir import Add, Broadcast, Builder, Embed, Op, Output, Program, Transpose
from symcompile.lower.steps import spread_by
from symcompile.planner.lattice import relative
from symcompile.planner.search import Parents

__all__ = ["Landing", "landings", "needed_spreads", "sum_before_spread"]


def needed_spreads(program: Program) -> dict[int, tuple[HalfDiagram, ...]]:
    """By output: the half-diagrams that something lands on."""
    return {
        op.tensor: tuple(dict.fromkeys(landing.half for landing in landings(program, op)))
        for op in program.ops
        if isinstance(op, Output)
    }


def sum_before_spread(program: Program, plans: Mapping[int, Parents]) -> Program:
    """Put every output together along `plans[output]`."""
    build = Builder(program)
    place: list[int] = []
    for op in program.ops:
        if isinstance(op, Output):
            place.append(_assemble(build, program, op, place, plans[op.tensor]))
        else:
            place.append(build.emit(op.renumbered(place)))
    return build.program()


@dataclass(frozen=True, slots=True)
class Landing:
    """Value `source` lands on `half`; its axis k is propagating block `axes[k]`."""

    source: int
    half: HalfDiagram
    axes: tuple[int, ...]


def _assemble(
    build: Builder, program: Program, op: Output, place: list[int], parents: Parents
) -> int:
    labels = program.outputs[op.tensor].labels
    landed: dict[HalfDiagram, list[int]] = {}
    for landing in landings(program, op):
        order = [landing.axes.index(block) for block in range(len(landing.axes))]
        value = build.transpose(place[landing.source], order)
        landed.setdefault(landing.half, []).append(value)
    # A step down merges or closes propagating blocks, so this order meets children first.
    for half in sorted(parents, key=lambda h: (len(h.propagating), -len(h.closed), h.closed)):
        parent = parents[half]
        step = relative(parent, half)
        assert step is not None, "a parent lies above its child"
        total = build.add(landed.pop(half))
        total = spread_by(build, total, step, parent.signature(labels))
        landed.setdefault(parent, []).append(total)
    ((half, values),) = landed.items()
    total = spread_by(build, build.add(values), half, labels)
    return build.output(total, op.tensor)


def landings(program: Program, output: Output) -> list[Landing]:
    """Every value summed into an output, and the half-diagram it lands on."""
    labels = program.outputs[output.tensor].labels
    found: list[Landing] = []

    def walk(value: int, blocks: Blocks, closed: Blocks) -> None:
        op: Op = program.ops[value]
        match op:
            case Add():
                for arg in op.args:
                    walk(arg, blocks, closed)
            case Embed(blocks=groups):
                merged = tuple(
                    tuple(sorted(axis for k in group for axis in blocks[k])) for group in groups
                )
                walk(op.args[0], merged, closed)
            case Broadcast(axes=axes):
                new = tuple(block for axis, block in enumerate(blocks) if axis not in axes)
                walk(op.args[0], tuple(blocks[axis] for axis in axes), closed + new)
            case Transpose(axes=axes):
                # Result axis k is operand axis axes[k].
                walk(op.args[0], tuple(blocks[axes.index(a)] for a in range(len(axes))), closed)
            case _:
                half = canonical_half(blocks, closed, labels)
                order = tuple(half.propagating.index(block) for block in blocks)
                found.append(Landing(value, half, order))

    walk(output.args[0], tuple((axis,) for axis in range(len(labels))), ())
    return found
