"""What a Program computes, symbolically.

In: a Program. Out: the multiset of (output, input, diagram, weight slot) it sums, with
coefficients. Two programs with equal `diagrams_of` compute the same function of inputs and
weights; every term is a partition diagram, so the function is equivariant; and if every basis
element has its own weight slot, it is complete. That is a proof without numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from symcompile.diagrams import Diagram
from symcompile.errors import ProgramError
from symcompile.ir.batch import grouped
from symcompile.ir.filled import Filled
from symcompile.ir.ops import (
    Add,
    BatchMix,
    Broadcast,
    Concat,
    Const,
    Diagonal,
    Embed,
    Input,
    Mix,
    Output,
    Pick,
    Reduce,
    Slice,
    Transpose,
)
from symcompile.ir.program import Program, types_of
from symcompile.spec import Label

__all__ = ["BIAS", "Slot", "Term", "diagrams_of"]

BIAS = -1
"""Stands for the constant 1 where an input number is expected."""

Slot = tuple[str, tuple[int, int], tuple[int, int]]
"""A weight's name, rows and columns."""

Joint = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
"""Blocks of (value axes, input axes), sorted."""


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of one output.

    Attributes:
        output, input: tensor numbers; `input` is `BIAS` for the constant.
        diagram: which indices are shared.
        channels: the input's channel range that is read.
        slots: the weights it is multiplied by, in order.
        powers: powers of label sizes in its coefficient, beside the multiplicity.
    """

    output: int
    input: int
    diagram: Diagram
    channels: tuple[int, int]
    slots: tuple[Slot, ...]
    powers: tuple[tuple[Label, int], ...]


class _Part(NamedTuple):
    """A summand of a value: an input's channels, seen through `joint` and then `slots`."""

    input: int
    joint: Joint
    channels: tuple[int, int]
    slots: tuple[Slot, ...] = ()
    powers: tuple[tuple[Label, int], ...] = ()


_Parts = dict[_Part, int]
"""Summands, and how often each is added."""

_Segments = list[tuple[int, _Parts]]
"""A value, channel range by channel range: (width, its summands)."""


def diagrams_of(program: Program) -> Counter[Term]:
    """Expand `program` to the terms it sums, with multiplicities.

    Raises:
        ProgramError: the program is ill-typed.
    """
    types, shapes = types_of(program), program.matrices
    filled = {matrix.name: matrix for matrix in program.filled}
    values: list[_Segments] = []
    terms: Counter[Term] = Counter()
    for number, op in enumerate(program.ops):
        args = [values[arg] for arg in op.args]
        match op:
            case Input(tensor=tensor):
                kind = types[number]
                joint = tuple(((axis,), (axis,)) for axis in range(len(kind.labels)))
                part = _Part(tensor, joint, (0, kind.width))
                values.append([(kind.width, {part: 1})])
            case Const():
                values.append([(1, {_Part(BIAS, (), (0, 1)): 1})])
            case Concat():
                values.append([segment for arg in args for segment in arg])
            case Add():
                values.append(_sum(args))
            case Slice(start=start, stop=stop):
                values.append(_cut(args[0], start, stop))
            case Mix(weight=weight, rows=rows, cols=cols) if weight in filled:
                values.append(_mixed_by_blocks(args[0], filled[weight], rows, cols))
            case Mix(weight=weight, rows=rows, cols=cols):
                values.append(_mixed(args[0], weight, rows[0], cols))
            case BatchMix(weights=weights):
                shape = shapes[weights[0]]
                groups = grouped([types[arg].width for arg in op.args], shape[0]) or []
                values.append(
                    [
                        segment
                        for weight, group in zip(weights, groups, strict=True)
                        for segment in _mixed(
                            [s for k in group for s in args[k]], weight, 0, (0, shape[1])
                        )
                    ]
                )
            case Pick(member=member):
                values.append([args[0][member]])
            case Output(tensor=tensor):
                values.append([])
                for part, count in _whole(args[0]).items():
                    terms[_term(part, tensor, len(types[number].labels))] += count
            case _:
                values.append(_mapped(args[0], op, types[op.args[0]].labels, program))
    return terms


def _mapped(
    segments: _Segments, op: object, labels: tuple[Label, ...], program: Program
) -> _Segments:
    moved: dict[Joint, tuple[Joint, Counter[Label]]] = {}  # many parts have one joint
    results: _Segments = []
    for width, parts in segments:
        result: _Parts = {}
        for part, count in parts.items():
            if part.joint not in moved:
                moved[part.joint] = _moved(part.joint, op, labels, program)
            joint, by = moved[part.joint]
            powers = part.powers
            if by:
                total = Counter(dict(powers))
                total.update(by)
                powers = tuple([(label, power) for label, power in total.items() if power])
            _add(result, _Part(part.input, joint, part.channels, part.slots, powers), count)
        results.append((width, result))
    return results


def _moved(
    joint: Joint, op: object, labels: tuple[Label, ...], program: Program
) -> tuple[Joint, Counter[Label]]:
    """What becomes of the axes of a value, and the powers of sizes that come with it."""
    blocks = [(set(value), set(into)) for value, into in joint]
    powers: Counter[Label] = Counter()
    match op:
        case Diagonal(blocks=groups):
            for new, group in enumerate(groups):
                touched = [block for block in blocks if block[0] & set(group)]
                blocks = [block for block in blocks if not block[0] & set(group)]
                rest = set().union(*(value for value, _ in touched)) - set(group)
                # Results are numbered below zero until all groups are done.
                blocks.append((rest | {-1 - new}, set().union(*(into for _, into in touched))))
            blocks = [({-1 - axis for axis in value}, into) for value, into in blocks]
        case Reduce(axes=axes):
            blocks = list(_reduced(blocks, axes, labels, powers, program.reduce))
        case Transpose(axes=axes):
            blocks = [({axes.index(axis) for axis in value}, into) for value, into in blocks]
        case Broadcast(labels=wider, axes=axes):
            blocks = [({axes[axis] for axis in value}, into) for value, into in blocks]
            blocks += [({axis}, set()) for axis in range(len(wider)) if axis not in axes]
        case Embed(blocks=groups):
            blocks = [
                ({new for axis in value for new in groups[axis]}, into) for value, into in blocks
            ]
        case _:
            raise ProgramError(f"diagrams_of does not know {op}")
    return tuple(sorted((tuple(sorted(v)), tuple(sorted(i))) for v, i in blocks)), powers


def _reduced(
    blocks: Sequence[tuple[set[int], set[int]]],
    axes: tuple[int, ...],
    labels: tuple[Label, ...],
    powers: Counter[Label],
    reduce: str,
) -> Iterator[tuple[set[int], set[int]]]:
    rest = [axis for axis in range(len(labels)) if axis not in axes]
    for value, into in blocks:
        gone = value & set(axes)
        kept = {rest.index(axis) for axis in value - gone}
        if gone:
            label = labels[min(gone)]
            # A block that stays whole is met once in n^|gone| places; one that goes entirely is
            # averaged over its own index, which is what a closed block stands for.
            lost = len(gone) if kept else len(gone) - 1
            if reduce == "mean":
                powers[label] -= lost
            elif not kept and not into:
                powers[label] += 1
        if kept or into:
            yield kept, into


def _sum(args: Sequence[_Segments]) -> _Segments:
    cuts = sorted({edge for arg in args for edge in _edges(arg)})
    result: _Segments = []
    for start, stop in pairwise(cuts):
        total: _Parts = {}
        for arg in args:
            for _, parts in _cut(arg, start, stop):
                _add_all(total, parts)
        result.append((stop - start, total))
    return result


def _edges(segments: _Segments) -> Iterator[int]:
    yield 0
    end = 0
    for width, _ in segments:
        end += width
        yield end


def _cut(segments: _Segments, start: int, stop: int) -> _Segments:
    result: _Segments = []
    begin = 0
    for width, parts in segments:
        low, high = max(start - begin, 0), min(stop - begin, width)
        if high - low == width:
            result.append((width, parts))
        elif low < high:
            result.append((high - low, {_narrow(part, low, high): n for part, n in parts.items()}))
        begin += width
    return result


def _narrow(part: _Part, low: int, high: int) -> _Part:
    if part.slots:
        weight, rows, (first, _) = part.slots[-1]
        slot = (weight, rows, (first + low, first + high))
        return part._replace(slots=(*part.slots[:-1], slot))
    first = part.channels[0]
    return part._replace(channels=(first + low, first + high))


def _mixed(segments: _Segments, weight: str, row: int, cols: tuple[int, int]) -> _Segments:
    total: _Parts = {}
    for width, parts in segments:
        slot = (weight, (row, row + width), cols)
        for part, count in parts.items():
            _add(total, part._replace(slots=(*part.slots, slot)), count)
        row += width
    return [(cols[1] - cols[0], total)]


def _mixed_by_blocks(
    segments: _Segments, matrix: Filled, rows: tuple[int, int], cols: tuple[int, int]
) -> _Segments:
    edges = {edge for block in matrix.blocks for edge in block.across}
    cuts = sorted({*cols, *(edge for edge in edges if cols[0] < edge < cols[1])})
    result: _Segments = []
    for start, stop in pairwise(cuts):
        total: _Parts = {}
        for block in matrix.blocks:
            if not block.across[0] <= start < block.across[1]:
                continue
            low, high = max(rows[0], block.down[0]), min(rows[1], block.down[1])
            first = start - block.col + block.cols[0]
            for _, parts in _mixed(
                _cut(segments, low - rows[0], high - rows[0]),
                block.weight,
                low - block.row + block.rows[0],
                (first, first + stop - start),
            ):
                _add_all(total, parts)
        result.append((stop - start, total))
    return result


def _add(total: _Parts, part: _Part, count: int) -> None:
    total[part] = total.get(part, 0) + count


def _add_all(total: _Parts, parts: _Parts) -> None:
    if not total:
        total.update(parts)
        return
    for part, count in parts.items():
        _add(total, part, count)


def _whole(segments: _Segments) -> _Parts:
    if len(segments) == 1:
        return segments[0][1]
    raise ProgramError("an output is pieced together along its channels; sum into one mix instead")


def _term(part: _Part, output: int, order: int) -> Term:
    blocks = sorted(value + tuple(axis + order for axis in into) for value, into in part.joint)
    diagram = Diagram(order, tuple(blocks))
    return Term(output, part.input, diagram, part.channels, part.slots, part.powers)
