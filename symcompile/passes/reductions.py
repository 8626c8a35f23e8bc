"""Pass: reduce features from each other instead of each from its input.

In: a Program and a plan per input. Out: one in which every in-feature (a value made from an input
by diagonals, reductions and transposes alone) comes from the one the plan says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from symcompile.diagrams import HalfDiagram
from symcompile.diagrams.half import canonical_half
from symcompile.diagrams.partitions import Blocks
from symcompile.ir import Builder, Diagonal, Input, Op, Program, Reduce, Transpose
from symcompile.lower.steps import reduce_by
from symcompile.planner.lattice import relative
from symcompile.planner.search import Parents

__all__ = ["needed_reductions", "share_reductions"]


def needed_reductions(program: Program) -> dict[int, tuple[HalfDiagram, ...]]:
    """By input: the half-diagrams whose features something other than a reduction reads."""
    features = _features(program)
    needed: dict[int, dict[HalfDiagram, None]] = {}
    for op in program.ops:
        if not _is_step(op):
            for arg in op.args:
                if arg in features:
                    feature = features[arg]
                    needed.setdefault(feature.tensor, {})[feature.half] = None
    return {tensor: tuple(halves) for tensor, halves in needed.items()}


def share_reductions(program: Program, plans: Mapping[int, Parents]) -> Program:
    """Reduce every in-feature from its parent in `plans[input]`."""
    features = _features(program)
    build = Builder(program)
    made: dict[tuple[int, HalfDiagram], int] = {}
    place: list[int] = []
    for number, op in enumerate(program.ops):
        if number not in features:
            place.append(build.emit(op.renumbered(place)))
            continue
        feature = features[number]
        # Values on the way to a feature need no place of their own in the plan.
        if feature.half.is_identity or feature.half in plans.get(feature.tensor, {}):
            value = _make(build, feature.tensor, feature.half, plans, made)
            place.append(build.transpose(value, feature.axes))
        else:
            place.append(-1)
    return build.program()


@dataclass(frozen=True, slots=True)
class _Feature:
    """A half-diagram of an input; axis k of the value is its propagating block `axes[k]`."""

    tensor: int
    half: HalfDiagram
    axes: tuple[int, ...]


def _is_step(op: Op) -> bool:
    return isinstance(op, Diagonal | Reduce | Transpose)


def _features(program: Program) -> dict[int, _Feature]:
    """Every value that is an in-feature."""
    seen: dict[int, tuple[int, Blocks, Blocks]] = {}
    for number, op in enumerate(program.ops):
        match op:
            case Input(tensor=tensor):
                axes = range(len(program.inputs[tensor].labels))
                seen[number] = (tensor, tuple((axis,) for axis in axes), ())
                continue
            case _ if not _is_step(op) or op.args[0] not in seen:
                continue
        tensor, blocks, closed = seen[op.args[0]]
        match op:
            case Diagonal(blocks=groups):
                blocks = tuple(
                    tuple(sorted(axis for k in group for axis in blocks[k])) for group in groups
                )
            case Reduce(axes=gone):
                closed += tuple(blocks[axis] for axis in gone)
                blocks = tuple(block for axis, block in enumerate(blocks) if axis not in gone)
            case Transpose(axes=order):
                blocks = tuple(blocks[axis] for axis in order)
        seen[number] = (tensor, blocks, closed)
    features = {}
    for number, (tensor, blocks, closed) in seen.items():
        half = canonical_half(blocks, closed, program.inputs[tensor].labels)
        order = tuple(half.propagating.index(block) for block in blocks)
        features[number] = _Feature(tensor, half, order)
    return features


def _make(
    build: Builder,
    tensor: int,
    half: HalfDiagram,
    plans: Mapping[int, Parents],
    made: dict[tuple[int, HalfDiagram], int],
) -> int:
    """Emit a feature, and before it those it is reduced from."""
    if (tensor, half) not in made:
        if half.is_identity:
            # Canonical order differs from storage order where labels are not sorted.
            made[tensor, half] = reduce_by(build, build.input(tensor), half)
        else:
            parent = plans[tensor][half]
            step = relative(parent, half)
            assert step is not None, "a parent lies above its child"
            value = _make(build, tensor, parent, plans, made)
            made[tensor, half] = reduce_by(build, value, step)
    return made[tensor, half]
