"""A Program: frozen single-assignment ops, and the rules a well-formed one obeys.

In: ops, tensors, weights. Out: the type of every value (`types_of`), or a ProgramError that names
the op (`verify`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from math import prod
from typing import Any, TypeVar

from symcompile.errors import ProgramError
from symcompile.ir.batch import grouped
from symcompile.ir.filled import Filled, faults_of
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
    Op,
    Output,
    Pick,
    Reduce,
    Slice,
    Transpose,
)
from symcompile.ir.types import Tensor, Type
from symcompile.spec import Label

__all__ = ["Program", "fact", "types_of", "verify"]

_Fact = TypeVar("_Fact")


@dataclass(frozen=True, slots=True)
class Program:
    """A layer as straight-line code.

    Attributes:
        ops: op number k defines value k; operands come earlier.
        inputs: tensors read, in canonical order of the spec.
        outputs: tensors written, likewise.
        weights: (name, shape) of every weight, in the canonical schema.
        sizes: known label sizes.
        reduce: "mean" or "sum", what every `reduce` op does.
        in_place: True if large sums are accumulated into the product of a mix, where they can be
            (`accumulations`).
        filled: matrices put together from weights.
    """

    ops: tuple[Op, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weights: tuple[tuple[str, tuple[int, ...]], ...]
    sizes: tuple[tuple[Label, int], ...] = ()
    reduce: str = "mean"
    in_place: bool = False
    filled: tuple[Filled, ...] = ()
    _facts: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # Facts stay behind: they would make a pickle twice as long.
        return type(self), tuple(getattr(self, one.name) for one in fields(self) if one.init)

    def __str__(self) -> str:
        from symcompile.ir.text import print_program

        return print_program(self)

    @property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name of all that mixes read: weights, and what is put together from them."""
        return dict(self.weights) | {filled.name: filled.shape for filled in self.filled}

    @property
    def weight_count(self) -> int:
        """Number of scalar weights."""
        return sum(prod(shape) for _, shape in self.weights)

    def only(self, live: Collection[int]) -> Program:
        """The program with some of its ops, which read no others."""
        place = {old: new for new, old in enumerate(sorted(live))}
        return replace(self, ops=tuple([self.ops[old].renumbered(place) for old in place]))


def fact(find: Callable[[Program], _Fact]) -> Callable[[Program], _Fact]:
    """What follows from a program alone, and is found once: passes ask for it again and again.

    It goes to all who ask, so it is not to be changed.
    """

    @wraps(find)
    def known(program: Program) -> _Fact:
        if find not in program._facts:
            program._facts[find] = find(program)
        found: _Fact = program._facts[find]
        return found

    return known


@fact
def types_of(program: Program) -> tuple[Type, ...]:
    """The type of every value.

    Raises:
        ProgramError: an op reads a value not yet defined, or its operands do not fit it.
    """
    types: list[Type] = []
    shapes = program.matrices
    for number, op in enumerate(program.ops):
        if any(not 0 <= arg < number for arg in op.args):
            raise ProgramError(f"op %{number} {op}: reads a value that no earlier op defines")
        try:
            types.append(_type_of(op, [types[arg] for arg in op.args], program, shapes))
        except _IllTyped as error:
            raise ProgramError(f"op %{number} {op}: {error}") from None
    return tuple(types)


def verify(program: Program) -> Program:
    """Check single assignment, types, and that every output is written exactly once.

    Returns:
        the program itself, so that calls can be chained.

    Raises:
        ProgramError: naming the op or the output at fault.
    """
    types_of(program)
    written = [op.tensor for op in program.ops if isinstance(op, Output)]
    for tensor, output in enumerate(program.outputs):
        if written.count(tensor) != 1:
            raise ProgramError(
                f"output {tensor} {output.path} is written {written.count(tensor)} times, not once"
            )
    if program.reduce not in ("mean", "sum"):
        raise ProgramError(f"reduce is {program.reduce!r}, expected 'mean' or 'sum'")
    shapes = dict(program.weights)
    for filled in program.filled:
        for fault in faults_of(filled, shapes):
            raise ProgramError(f"matrix {filled.name!r}: {fault}")
    if len(program.matrices) < len(program.weights) + len(program.filled):
        raise ProgramError("two matrices have one name")
    used = {arg for op in program.ops for arg in op.args}
    for number, op in enumerate(program.ops):
        if number in used and isinstance(op, Output):
            raise ProgramError(f"op %{number} {op}: an output is read by another op")
    return program


class _IllTyped(Exception):
    pass


def _need(condition: bool, message: str, *found: object) -> None:
    if not condition:
        raise _IllTyped(message.format(*found))


def _is_partition(blocks: Sequence[Sequence[int]], count: int) -> bool:
    return all(blocks) and sorted(axis for block in blocks for axis in block) == list(range(count))


def _is_range(span: tuple[int, int], length: int) -> bool:
    return 0 <= span[0] < span[1] <= length


def _type_of(
    op: Op, args: list[Type], program: Program, shapes: dict[str, tuple[int, ...]]
) -> Type:
    match op:
        case Input(tensor=tensor):
            _need(not args, "an input has no operands")
            _need(0 <= tensor < len(program.inputs), "there is no input {}", tensor)
            return program.inputs[tensor].type
        case Const():
            _need(not args, "a const has no operands")
            return Type((), 1, batched=False)
        case Concat() | Add():
            _need(len(args) > 0, "needs at least one operand")
            _need(not any(arg.members for arg in args), "only a pick reads a batched mix")
            _need(len({arg.labels for arg in args}) == 1, "operands differ in labels")
            batched = any(arg.batched for arg in args)
            if isinstance(op, Concat):
                _need(len({arg.batched for arg in args}) == 1, "operands differ in batch")
                return Type(args[0].labels, sum(arg.width for arg in args), batched)
            _need(len({arg.width for arg in args}) == 1, "operands differ in width")
            return Type(args[0].labels, args[0].width, batched)
        case BatchMix(weights=weights):
            return _batch_type(weights, args, dict(program.sizes), shapes)
    _need(len(args) == 1, "needs one operand, has {}", len(args))
    (arg,) = args
    if isinstance(op, Pick):
        _need(bool(arg.members), "picks from what is no batched mix")
        _need(0 <= op.member < len(arg.members), "there is no result {}", op.member)
        return Type(arg.members[op.member], arg.width // len(arg.members), arg.batched)
    _need(not arg.members, "only a pick reads a batched mix")
    labels, order = arg.labels, len(arg.labels)
    match op:
        case Diagonal(blocks=blocks):
            _need(_is_partition(blocks, order), "blocks do not partition {} axes", order)
            for block in blocks:
                _need(len({labels[a] for a in block}) == 1, "block {} mixes labels", block)
            return Type(tuple(labels[b[0]] for b in blocks), arg.width, arg.batched)
        case Reduce(axes=axes):
            _need(len(set(axes)) == len(axes) > 0, "axes repeat, or there are none")
            _need(all(0 <= a < order for a in axes), "axes lie outside 0 to {}", order - 1)
            rest = tuple(label for a, label in enumerate(labels) if a not in axes)
            return Type(rest, arg.width, arg.batched)
        case Transpose(axes=axes):
            _need(sorted(axes) == list(range(order)), "axes do not permute {} axes", order)
            return Type(tuple(labels[a] for a in axes), arg.width, arg.batched)
        case Mix(weight=weight, rows=rows, cols=cols):
            _need(weight in shapes, "there is no weight {!r}", weight)
            shape = shapes[weight] if len(shapes[weight]) == 2 else (1, *shapes[weight])
            _need(_is_range(rows, shape[0]), "rows {} lie outside {}", rows, shape)
            _need(_is_range(cols, shape[1]), "columns {} lie outside {}", cols, shape)
            _need(rows[1] - rows[0] == arg.width, "{} channels meet rows {}", arg.width, rows)
            return Type(labels, cols[1] - cols[0], arg.batched)
        case Slice(start=start, stop=stop):
            _need(_is_range((start, stop), arg.width), "range lies outside {} channels", arg.width)
            return Type(labels, stop - start, arg.batched)
        case Broadcast(labels=wider, axes=axes):
            _need(len(axes) == order, "{} places for {} axes", len(axes), order)
            _need(list(axes) == sorted(set(axes)), "places do not increase")
            _need(all(0 <= a < len(wider) for a in axes), "places lie outside the result")
            _need(tuple(wider[a] for a in axes) == labels, "labels change on the way")
            return Type(wider, arg.width, arg.batched)
        case Embed(blocks=blocks):
            _need(len(blocks) == order, "{} blocks for {} axes", len(blocks), order)
            _need(
                _is_partition(blocks, sum(map(len, blocks))), "blocks do not partition the result"
            )
            placed = {axis: labels[k] for k, block in enumerate(blocks) for axis in block}
            return Type(tuple(placed[a] for a in range(len(placed))), arg.width, arg.batched)
        case Output(tensor=tensor):
            _need(0 <= tensor < len(program.outputs), "there is no output {}", tensor)
            expected = program.outputs[tensor].type
            _need(
                (labels, arg.width) == (expected.labels, expected.width),
                "expects {}, finds {}",
                expected,
                arg,
            )
            return arg
    raise _IllTyped(f"unknown op {type(op).__name__}")


def _batch_type(
    weights: tuple[str, ...],
    args: list[Type],
    sizes: dict[Label, int],
    shapes: dict[str, tuple[int, ...]],
) -> Type:
    _need(len(weights) == len(set(weights)) > 0, "weights repeat, or there are none")
    unknown = [weight for weight in weights if weight not in shapes]
    _need(not unknown, "there is no weight {}", unknown[:1])
    _need(len({shapes[weight] for weight in weights}) == 1, "weights differ in shape")
    _need(len(shapes[weights[0]]) == 2, "weights are not matrices")
    _need(all(arg.batched and not arg.members for arg in args), "operands are not plain values")
    extents = {tuple(sizes.get(label, (label,)) for label in arg.labels) for arg in args}
    _need(len(extents) == 1, "operands differ in size")
    rows, cols = shapes[weights[0]]
    groups = grouped([arg.width for arg in args], rows)
    _need(
        groups is not None and len(groups) == len(weights),
        "channels do not come in {} groups of {}",
        len(weights),
        rows,
    )
    members = []
    for group in groups or ():
        _need(len({args[k].labels for k in group}) == 1, "operands of one group differ in labels")
        members.append(args[group[0]].labels)
    return Type(members[0], cols * len(weights), True, tuple(members))
