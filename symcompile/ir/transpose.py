"""The transpose of a Program: from gradients of its outputs to those of its inputs.

In: a Program. Out: a Program again, with the weights transposed, that goes the same way back. A
layer is linear in its inputs, so what takes gradients back is a layer too: an op turns into its
transpose, and values that are read twice into sums. What was shared stays shared.

The one thing to know: a mean goes back as a broadcast divided by how many entries it was of. Those
divisions are left to the rows of the weights (`Transposed.means`), where they cost next to nothing;
so all other values of the transpose are gradients divided by the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from symcompile.ir.batch import grouped
from symcompile.ir.builder import Builder
from symcompile.ir.meaning import Slot
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
from symcompile.ir.ownership import tiles
from symcompile.ir.program import Program, types_of
from symcompile.ir.types import Tensor, Type
from symcompile.spec import Label

__all__ = ["Bias", "Transposed", "transposed"]

Segment = tuple[int, tuple[Label, ...]]
"""So many channels, or rows, and the labels of the axes that they are means over."""


@dataclass(frozen=True, slots=True)
class Bias:
    """A weight that nothing is multiplied by: a part of one row, and the output that is its
    gradient for every example."""

    weight: str
    cols: tuple[int, int]
    output: int


@dataclass(frozen=True, slots=True)
class Transposed:
    """A program the other way round.

    Attributes:
        program: its inputs are the outputs of the original, its outputs the inputs that the
            original reads, then one tensor for every bias. It sums, never averages. A weight is
            the transpose of the one that has its name in the original.
        read: numbers of the inputs of the original, one for each output that is no bias.
        biases: the others.
        means: for every weight runs of its columns, which are rows of the original: what they
            multiplied was a mean over axes of these labels, and they are divided by the sizes.
    """

    program: Program
    read: tuple[int, ...]
    biases: tuple[Bias, ...]
    means: Mapping[str, tuple[Segment, ...]]

    @property
    def to_weights(self) -> Program:
        """The part of the program that the gradients of weights need: up to what is multiplied,
        by mixes that nothing reads.

        >>> from symcompile.api import compile_spec
        >>> program = compile_spec({"w": ("a", "b")}, in_channels=2, out_channels=3).program
        >>> back = transposed(program)
        >>> len(back.program.ops), len(back.to_weights.ops)
        (15, 9)
        """
        live: set[int] = set()
        ops = self.program.ops
        for number in range(len(ops) - 1, -1, -1):
            op = ops[number]
            bias = isinstance(op, Output) and op.tensor >= len(self.read)
            if bias or number in live or isinstance(op, Mix | BatchMix):
                live.update((number, *op.args))
        return self.program.only(live)


def transposed(program: Program) -> Transposed | None:
    """The transpose of a program; None where it has none of this form.

    That is where a part of a weight is read twice, or means over different axes are added up before
    they are mixed; and before any pass, when a bias is spread before it is weighted.

    >>> from symcompile.api import compile_spec
    >>> program = compile_spec({"w": ("a", "b")}, in_channels=2, out_channels=3).program
    >>> back = transposed(program)
    >>> back.program.matrices["mix_a_b"], program.matrices["mix_a_b"]
    ((3, 2), (2, 3))
    """
    try:
        return _Transposition(program).result()
    except _Unfit:
        return None


class _Unfit(Exception):
    """The program has no transpose of this form."""


def _need(condition: bool) -> None:
    if not condition:
        raise _Unfit


class _Transposition:
    def __init__(self, program: Program) -> None:
        self.ops, self.types = program.ops, types_of(program)
        self.inputs, self.shapes = program.inputs, program.matrices
        self.over = _means(program, self.types)
        self.read = sorted({op.tensor for op in program.ops if isinstance(op, Input)})
        weights = [(name, shape[::-1]) for name, shape in self.shapes.items() if len(shape) == 2]
        like = replace(program, ops=(), inputs=program.outputs, outputs=(), reduce="sum", filled=())
        self.build = Builder(replace(like, weights=tuple(weights), in_place=True))
        self.terms: dict[int, list[int]] = {}  # by value, what its gradient is the sum of
        self.pieces: dict[int, list[tuple[int, int, int]]] = {}  # and its parts: channels, gradient
        self.biases: list[Bias] = []
        self.written: set[int] = set()
        self.cells: set[Slot] = set()
        self.runs: dict[str, dict[int, Segment]] = {}  # by weight, by first row

    def result(self) -> Transposed:
        for number in range(len(self.ops) - 1, -1, -1):
            self._back(number, self.ops[number])
        outputs = [self.inputs[tensor] for tensor in self.read]
        for bias in self.biases:
            outputs.append(Tensor(("bias", bias.output), (), bias.cols[1] - bias.cols[0]))
        made = replace(self.build.program(), outputs=tuple(outputs))
        means = {
            name: tuple(runs[start] for start in sorted(runs)) for name, runs in self.runs.items()
        }
        for name, found in means.items():
            _need(sum(width for width, _ in found) == self.shapes[name][0])
        return Transposed(made, tuple(self.read), tuple(self.biases), means)

    def _give(self, number: int, gradient: int) -> None:
        self.terms.setdefault(number, []).append(gradient)

    def _gradient(self, number: int) -> int:
        """The gradient of a value: the sum of what its readers gave."""
        # As the original has them: the last reader gave first.
        terms, pieces = self.terms.pop(number, [])[::-1], sorted(self.pieces.pop(number, []))
        if pieces:
            # Gaps would be zeros; what overlaps would be a sum.
            _need(tiles([(start, stop) for start, stop, _ in pieces], self.types[number].width))
            terms.append(self.build.concat([piece for _, _, piece in pieces]))
        _need(bool(terms))
        return self.build.add(terms)

    def _back(self, number: int, op: Op) -> None:
        build, labels = self.build, self.types[number].labels
        match op:
            case Output(args=(arg,), tensor=tensor):
                return self._give(arg, build.input(tensor))
            case Const():
                return None
            case BatchMix():
                return self._batch_mix(number, op)
            case Pick(args=(arg,), member=member):
                # Where a batch is, all its results are: parts by number.
                return self.pieces.setdefault(arg, []).append(
                    (member, member + 1, self._gradient(number))
                )
        gradient = self._gradient(number)
        match op:
            case Input(tensor=tensor):
                _need(tensor not in self.written)
                self.written.add(tensor)
                build.output(gradient, self.read.index(tensor))
            case Slice(args=(arg,), start=start, stop=stop):
                self.pieces.setdefault(arg, []).append((start, stop, gradient))
            case Concat(args=args):
                self._apart(args, gradient)
            case Add(args=args):
                for arg in args:
                    self._give(arg, gradient)
            case Broadcast(args=(arg,), axes=axes):
                others = [axis for axis in range(len(labels)) if axis not in axes]
                self._give(arg, build.reduce(gradient, others))
            case Reduce(args=(arg,), axes=axes):
                wider = self.types[arg].labels
                kept = [axis for axis in range(len(wider)) if axis not in axes]
                self._give(arg, build.broadcast(gradient, wider, kept))
            case Transpose(args=(arg,), axes=axes):
                back = [axes.index(axis) for axis in range(len(axes))]
                self._give(arg, build.transpose(gradient, back))
            case Diagonal(args=(arg,), blocks=blocks):
                self._give(arg, build.embed(gradient, blocks))
            case Embed(args=(arg,), blocks=blocks):
                self._give(arg, build.diagonal(gradient, blocks))
            case Mix():
                self._mix(op, gradient)
            case _:
                raise _Unfit
        return None

    def _apart(self, args: Sequence[int], gradient: int) -> None:
        """Give what was put side by side its part of a gradient."""
        width, start = sum(self.types[arg].width for arg in args), 0
        for arg in args:
            stop = start + self.types[arg].width
            self._give(arg, self.build.slice(gradient, start, stop, width))
            start = stop

    def _mix(self, op: Mix, gradient: int) -> None:
        (arg,) = op.args
        cell = op.weight, op.rows, op.cols
        _need(cell not in self.cells)
        self.cells.add(cell)
        if isinstance(self.ops[arg], Const):
            output = len(self.read) + len(self.biases)
            self.biases.append(Bias(op.weight, op.cols, output))
            self.build.output(gradient, output)
            return
        _need(len(self.shapes[op.weight]) == 2)
        self._divide(op.weight, op.rows[0], [arg])
        self._give(arg, self.build.mix(gradient, op.weight, op.cols, op.rows))

    def _batch_mix(self, number: int, op: BatchMix) -> None:
        parts = sorted(self.pieces.pop(number, []))
        _need([member for member, _, _ in parts] == [*range(len(op.weights))])
        batch = self.build.batch_mix([gradient for _, _, gradient in parts], op.weights)
        widths = [self.types[arg].width for arg in op.args]
        groups = grouped(widths, self.shapes[op.weights[0]][0]) or []
        for member, (weight, group) in enumerate(zip(op.weights, groups, strict=True)):
            args = [op.args[place] for place in group]
            self._divide(weight, 0, args)
            self._apart(args, self.build.pick(batch, member))

    def _divide(self, weight: str, start: int, args: Sequence[int]) -> None:
        """Note what the rows of a weight from `start` on are multiplied by."""
        runs = self.runs.setdefault(weight, {})
        for arg in args:
            for width, labels in self.over[arg]:
                _need(runs.setdefault(start, (width, labels)) == (width, labels))
                start += width


def _means(program: Program, types: Sequence[Type]) -> list[tuple[Segment, ...]]:
    """For every value, runs of its channels, and what they are means over since the last mix."""
    found: list[tuple[Segment, ...]] = []
    for number, op in enumerate(program.ops):
        args = [found[arg] for arg in op.args]
        match op:
            case Reduce(args=(arg,), axes=axes) if program.reduce == "mean":
                more = [types[arg].labels[axis] for axis in axes]
                segments = [
                    (width, tuple(sorted([*labels, *more], key=str))) for width, labels in args[0]
                ]
            case Concat():
                segments = [segment for arg in args for segment in arg]
            case Slice(start=start, stop=stop):
                segments = _cut(args[0], start, stop)
            case Add():
                _need(len(set(args)) == 1)
                segments = list(args[0])
            case Diagonal() | Transpose() | Broadcast() | Embed():
                segments = list(args[0])
            case _:  # an input, or what is mixed
                segments = [(types[number].width, ())]
        found.append(tuple(segments))
    return found


def _cut(segments: Sequence[Segment], start: int, stop: int) -> list[Segment]:
    found, begin = [], 0
    for width, labels in segments:
        low, high = max(start - begin, 0), min(stop - begin, width)
        if low < high:
            found.append((high - low, labels))
        begin += width
    return found
