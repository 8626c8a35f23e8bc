"""From a Program to the statements of a function, for any array framework.

In: a `Compiled` and a `Dialect`. Out: `SourceParts`, the statements that read, check, compute and
return. Index axes are counted from the end, so the same lines serve any number of batch axes.

The one thing to know: a broadcast is emitted as indexing with None and left to the framework's own
broadcasting. Only where full extent matters (diagonals, stacks, outputs) is a value expanded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from symcompile.codegen.compiled import Compiled
from symcompile.codegen.dialect import Dialect, Embedding, Piece, Product
from symcompile.codegen.layout import Layout, one_move, wrapped
from symcompile.codegen.lifetime import free_early
from symcompile.codegen.pieces import grids_of
from symcompile.codegen.stacks import stacks_of
from symcompile.diagrams.partitions import Blocks
from symcompile.ir import (
    WIDE,
    Accumulation,
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
    Sum,
    Transpose,
    batch_behind,
    grouped,
    lazy_axes,
    ownership,
    readers_of,
    tiling,
    types_of,
)
from symcompile.names import Namer
from symcompile.spec import Label

__all__ = ["SourceParts", "Writer", "write_parts"]

_TERMS = 8
"""Most terms of a sum written in one statement."""

_LINE = 88
"""Longest statement written in one line."""


@dataclass(frozen=True, slots=True)
class SourceParts:
    """The pieces a backend puts into its template.

    Attributes:
        tensors: one literal per input: (path, number of stored axes).
        read: statements from `leaves` (a list of tensors) to checked and folded inputs.
        inputs: names of the inputs that are used: `terms=` may leave some out.
        reduces: whether `wide`, the dtype that reductions accumulate in, is used.
        compute: statements from inputs to outputs.
        outputs: names of the outputs.
        trees: statements that put deep parts of the output tree together.
        result: the expression of the output tree.
    """

    tensors: tuple[str, ...]
    read: tuple[str, ...]
    inputs: tuple[str, ...]
    reduces: bool
    compute: tuple[str, ...]
    outputs: tuple[str, ...]
    trees: tuple[str, ...]
    result: str


def write_parts(compiled: Compiled, dialect: Dialect, taken: set[str]) -> SourceParts:
    """Write a compiled layer in a framework's dialect.

    Args:
        taken: names the backend's template uses.
    """
    return Writer(compiled, dialect, taken).write()


@dataclass(frozen=True, slots=True)
class _Value:
    """A value as written.

    Attributes:
        text: an expression without side effects.
        wide: of the dtype that reductions accumulate in, not yet of the computation's.
        stem: how values made from it are named.
        channels: how many axes they are, last of all; several are not joined yet.
        stored: an output, as it is stored.
    """

    text: str
    wide: bool = False
    stem: str = ""
    channels: int = 1
    stored: bool = False


class Writer:
    """Writes op by op; a backend may have more to say where something is multiplied."""

    def __init__(
        self, compiled: Compiled, dialect: Dialect, taken: set[str], **layout: Any
    ) -> None:
        self.program = compiled.program
        self.dialect = dialect
        self.types = types_of(self.program)
        self.shapes = self.program.matrices
        stacks = stacks_of(self.program)
        self.stacks = {weights: stack for stack, weights in stacks.items()}
        self.batches: dict[int, str] = {}  # names of batches of products
        self.members: dict[int, list[_Value]] = {}  # their members
        reserved = {"batch", "dtype", "filled", "leaves", "tuple", "wide", *self.shapes, *stacks}
        self.namer = Namer(taken | reserved)
        self.lazy = lazy_axes(self.program)
        self.owned = ownership(self.program)
        self.layout = Layout(compiled, dialect, self.namer, self.owned.apart, **layout)
        self.lines: list[str] = []
        self.values: list[_Value] = []
        self.readers = readers_of(self.program)
        self.pieces: dict[int, str] = {}  # slices that a split has named already
        self.grids = grids_of(self.program)
        self.cells: dict[tuple[str, int, int], str] = {}  # pieces of weights, by first row, column
        self.paired: dict[int, _Value] = {}  # means made with another of the same value
        self.joined = self._joined_sums()  # by value, the mix of the one sum that multiplies it
        self.stored: dict[int, Piece] = {}  # slices that lie as an output is stored
        self.held: dict[int, str] = {}  # by mix, what its sum holds of the means of what it reads
        self.current = 0  # the op being written
        # Names of values worth freeing: those with index axes, where anything has some.
        self.large: set[str] = set()
        self.order = min(1, max(len(kind.labels) for kind in self.types))

    def compute(self) -> None:
        """Write all ops."""
        for number, op in enumerate(self.program.ops):
            self.current = number
            self.values.append(self._write(number, op))

    def write(self) -> SourceParts:
        """Write everything."""
        self.compute()
        trees: list[str] = []
        result = self.layout.result(trees)
        if self.dialect.frees:
            self.lines = free_early(self.lines, self.large, "\n".join([*trees, result]))
        return SourceParts(
            tuple(f"({t.path!r}, {len(t.axes)})" for t in self.program.inputs),
            tuple(self.layout.read()),
            tuple(self.layout.inputs[index] for index in self.layout.used),
            any(isinstance(op, Reduce) for op in self.program.ops),
            tuple(self.lines),
            tuple(self.layout.outputs),
            tuple(trees),
            result,
        )

    def multiplies(self, number: int, operands: Sequence[str]) -> tuple[str, ...]:
        """Before mix `number` is written: what it multiplies, side by side; as to be written."""
        return tuple(operands)

    def multiplied(self, number: int) -> None:
        """After mix `number` is written."""

    @property
    def multiplies_lazy(self) -> bool:
        """Whether a mix reads what is repeated along an axis, and not of full extent."""
        mixes = (op for op in self.program.ops if isinstance(op, Mix | BatchMix))
        return any(self.lazy[arg] for op in mixes for arg in op.args)

    def named(self, number: int, text: str) -> str:
        """The name of what mix `number` multiplies."""
        return text if text.isidentifier() else self._assign(self._stack_name(number), text).text

    def _stack_name(self, number: int) -> str:
        return f"in_{'_'.join(map(str, self.types[number].labels)) or 'scalar'}"

    def _write(self, number: int, op: Op) -> _Value:
        match op:
            case Input(tensor=tensor):
                name = self.layout.inputs[tensor]
                if len(self.types[number].labels) >= self.order:
                    self.large.add(name)  # may be a copy, of another layout or dtype
                return _Value(name, stem=name, channels=self.layout.channels[tensor])
            case Const():
                if number in self.owned.unmade:
                    return _Value("")  # a mix of the constant is the weight itself
                return self._assign("one", self.dialect.ones())
            case Slice(args=(arg,), start=start, stop=stop):
                source = self.values[arg]
                text = self.pieces.get(number) or f"{source.text}[..., {start}:{stop}]"
                return replace(source, text=text)
            case Broadcast():
                return self._broadcast(number, op)
            case Reduce():
                return self.paired.get(number) or self._reduce(number, op)
            case Transpose() if number in self.owned.within:
                return _Value("")  # written by the sum it is added to
            case Transpose(args=(arg,), axes=axes):
                source = self.values[arg]
                text = self.transposed(source.text, axes)
                return self._assign(f"{source.stem or source.text}_T", text, source)
            case Diagonal(args=(arg,), blocks=blocks):
                source = self.values[arg]
                text = self._diagonal(self._full(arg), blocks)
                return self._assign(f"{source.stem}_diag", text, source)
            case Concat():
                return self._concat(number, op)
            case Mix() | BatchMix() if not self.readers[number]:
                return self._unread(number, op)
            case Mix():
                return self._mix(number, op)
            case BatchMix():
                return self._batch_mix(number, op)
            case Pick(args=(arg,), member=member):
                return self._pick(number, self.members[arg][member])
            case Embed():
                return _Value("") if number in self.owned.within else self._embed(number, None)
            case Add():
                return self._add(number)
            case Output(args=(arg,), tensor=tensor):
                text = self._narrow(self._full(arg, batched=True), self.values[arg])
                if arg in self.owned.shared:
                    text = self.dialect.copy(text)
                self.lines += self.layout.write(text, tensor, stored=self.values[arg].stored)
                return _Value("")
        raise AssertionError(f"no rule for {op}")

    def _new(self, name: str) -> str:
        """A name for something the current op makes."""
        name = self.namer(name)
        if len(self.types[self.current].labels) >= self.order:
            self.large.add(name)
        return name

    def _assign(self, name: str, text: str, like: _Value | None = None) -> _Value:
        """Assign to a new name; `like` says everything about the value but its text."""
        name = self._new(name)
        self.lines.append(f"{name} = {text}")
        return replace(like or _Value(""), text=name, stem=name)

    def _narrow(self, text: str, value: _Value) -> str:
        return self.dialect.cast(text) if value.wide else text

    def _full(self, number: int, *, batched: bool = False) -> str:
        """The value at full extent."""
        value, kind = self.values[number], self.types[number]
        batched = batched or kind.batched
        if not self.lazy[number] and batched == kind.batched:
            return value.text
        shape = self.layout.shape(kind.labels, kind.width, batched=batched)
        return self.dialect.expand(value.text, shape)

    def _destination(self, number: int) -> str:
        """The output a value ends up in, for its name; or the signature of a mix nothing reads."""
        op = self.program.ops[number]
        while not isinstance(op, Output):
            if not self.readers[number]:
                return self._stack_name(number)
            number = self.readers[number][0]
            op = self.program.ops[number]
        return self.layout.outputs[op.tensor].removeprefix("out_")

    # -- index axes -------------------------------------------------------------------------

    def _broadcast(self, number: int, op: Broadcast) -> _Value:
        source = self.values[op.args[0]]
        order = len(op.labels)
        marks = [":" if axis in op.axes else "None" for axis in range(order)]
        return replace(source, text=f"{source.text}[..., {', '.join(marks)}, :]")

    def _reduce(self, number: int, op: Reduce) -> _Value:
        (arg,) = op.args
        source, labels = self.values[arg], self.types[arg].labels
        pair = self._pair(number, op)
        if pair and self._reduce_both(pair):
            return self.paired[number]
        how = self.program.reduce
        # A mean over repeated entries is the entry; a sum is not.
        text = source.text if how == "mean" else self._full(arg)
        places = [axis - len(labels) - source.channels for axis in op.axes]
        # Reductions of reductions stay wide: half types are rounded once, before the mix.
        text = self.dialect.reduce(text, how, places, self._count(op), widen=not source.wide)
        if source.channels > 1:
            text = self.dialect.join(text, source.channels)
        return self._assign(self._reduced(op), text, _Value("", wide=True))

    def _reduced(self, op: Reduce) -> str:
        """A name for a reduction."""
        (arg,) = op.args
        over = "_".join(str(self.types[arg].labels[axis]) for axis in op.axes)
        return f"{self.values[arg].stem}_{self.program.reduce}_{over}"

    def _count(self, op: Reduce) -> str:
        """The number of entries that a reduction brings together."""
        (arg,) = op.args
        labels = self.types[arg].labels
        sizes = [self.layout.size(labels[axis]) for axis in op.axes if axis not in self.lazy[arg]]
        return " * ".join(sizes) or "1"

    def _pair(self, number: int, op: Reduce) -> list[tuple[int, Reduce]]:
        """This reduction and another of the same value, not yet made, over axes side by side."""
        if self.program.reduce != self.dialect.pairs or self.lazy[op.args[0]]:
            return []
        ahead = {}
        for reader in reversed(self.readers[op.args[0]]):
            other = self.program.ops[reader]
            if isinstance(other, Reduce) and reader >= number and reader not in self.paired:
                ahead[other.axes] = reader, other
        for first in (op.axes[0], op.axes[0] - 1):
            if len(op.axes) == 1 and ahead.keys() >= {(first,), (first + 1,)}:
                return [ahead[first,], ahead[first + 1,]]
        return []

    def _reduce_both(self, pair: Sequence[tuple[int, Reduce]]) -> bool:
        """Write two reductions at once, if the dialect can."""
        _, first = pair[0]
        source = self.values[first.args[0]]
        place = first.axes[0] - len(self.types[first.args[0]].labels) - source.channels
        counts = [self._count(op) for _, op in pair]
        mix = None if source.wide else self.joined.get(first.args[0])
        weight = None
        if mix is not None and mix not in self.held:
            op = self.program.ops[mix]
            assert isinstance(op, Mix), "sums multiply by mixes"
            weight = self._weight(op)
        text = self.dialect.two_means(
            source.text, place, counts, weight, widen=not source.wide, channels=source.channels
        )
        if text is None:
            return False
        names = [self._new(self._reduced(op)) for _, op in pair]
        if mix is not None and weight:
            self.held[mix] = self.namer(f"{source.stem}_held")
            names.append(self.held[mix])
        width = _LINE - 20 if len(names) == 2 else 0
        self.lines.append(f"{wrapped(names, bare=True, width=width)} = {text}")
        for (number, _), name in zip(pair, names[:2], strict=True):
            if source.channels > 1:
                self.lines.append(f"{name} = {self.dialect.join(name, source.channels)}")
            self.paired[number] = _Value(name, wide=True, stem=name)
        return True

    def _joined_sums(self) -> dict[int, int]:
        """By number of a value, the mix of a sum that is its one reader but for means."""
        found = {}
        for made in self.owned.sums.values():
            if made.accumulation and not made.accumulation.late:
                (arg,) = self.program.ops[made.accumulation.base].args
                others = [self.program.ops[reader] for reader in self.readers[arg]]
                if sum(not isinstance(op, Reduce) for op in others) == 1:
                    found[arg] = made.accumulation.base
        return found

    def transposed(self, text: str, axes: Sequence[int]) -> str:
        """A value with its index axes in another order."""
        places = [axis - len(axes) - 1 for axis in range(len(axes))]
        return self._move_axes(text, [places[axis] for axis in axes], places)

    def _move_axes(self, text: str, source: Sequence[int], target: Sequence[int]) -> str:
        return self.dialect.move_axes(text, *one_move(source, target))

    def _diagonal(self, text: str, blocks: Blocks) -> str:
        """Diagonals one pair of axes at a time, then the axes in the order of `blocks`."""
        axes: list[tuple[int, ...]] = [(axis,) for axis in range(sum(map(len, blocks)))]
        axes.append(())  # the channels
        for block in blocks:
            for axis in block[1:]:
                first = next(k for k, group in enumerate(axes) if block[0] in group)
                second = axes.index((axis,))
                text = self.dialect.diagonal(text, first - len(axes), second - len(axes))
                merged = (*axes[first], axis)
                axes[first] = merged
                del axes[second]
                if self.dialect.diagonal_last:
                    axes.append(axes.pop(axes.index(merged)))
        wanted = [*blocks, ()]
        source = [axes.index(group) - len(axes) for group in wanted]
        target = [place - len(axes) for place in range(len(axes))]
        return text if source == target else self._move_axes(text, source, target)

    # -- channels ---------------------------------------------------------------------------

    def _concat(self, number: int, op: Concat) -> _Value:
        if len(self.readers[number]) == 1 and self.readers[number][0] in self.owned.parted:
            return _Value("")  # read by the product in parts
        text = self.dialect.concat([self._full(arg) for arg in op.args])
        wide = any(self.values[arg].wide for arg in op.args)  # the others are promoted
        name = self._stack_name(number)
        if len(self.readers[number]) == 1:
            return _Value(text, wide=wide, stem=name)
        return self._assign(name, text, _Value("", wide=wide))

    def _mix(self, number: int, op: Mix) -> _Value:
        if number in self.owned.within:
            return _Value("")  # written by the sum that is accumulated into it, or it is added to
        (arg,) = op.args
        source, feature = self.values[arg], self.program.ops[arg]
        weight, slices = self._weight(op), self._tiling(number)
        parted = number in self.owned.parted
        constant = not (source.text or parted)
        sliced = slices or ([] if constant else self._sliced_sum(number))
        if sliced:
            while isinstance(feature, Mix):  # the first factor of a mix of low rank
                feature = self.program.ops[feature.args[0]]
            count = len(feature.args) if isinstance(feature, Concat) else 1
            made_of = "the constant 1" if constant else f"{count} in-feature{'s'[: count > 1]}"
            made_of += " and the constant 1" * (not slices)
            signature = ascii(self.types[number].labels)[:200]
            self.lines.append("")
            self.lines.append(
                f"# Signature {signature}: {made_of}, {len(sliced)} half-diagrams out."
            )
        if parted:
            self._mix_parts(op, weight, slices)
            return _Value("")
        if not source.text:
            if not slices:
                return _Value(weight, stem=op.weight)
            self._split(weight, slices)
            return _Value("")
        (operand,) = self.multiplies(number, [self._operand(arg)])
        text = self._product(operand, weight, number)
        name = f"to_{self._destination(number)}"
        if sliced:
            name = _mixed_name(self.types[number].labels)
        elif all(isinstance(self.program.ops[reader], Mix) for reader in self.readers[number]):
            name = f"hidden_{'_'.join(map(str, self.types[number].labels))}"
        made = self._assign(name, text)
        self.multiplied(number)
        if slices:
            self._split(made.text, slices)
            return _Value("")
        return made

    def _unread(self, number: int, op: Mix | BatchMix) -> _Value:
        """A mix of which only what it multiplies is asked for."""
        operands = self._parts(op.args[0]) if isinstance(op, Mix) else [self._batch(op)]
        self.multiplies(number, operands)
        self.multiplied(number)
        return _Value("")

    def _mix_parts(self, op: Mix, weight: str, slices: Sequence[int]) -> None:
        """Write a product of many channels, that reads and makes parts."""
        (arg,) = op.args
        stack = self.program.ops[arg]
        alone = not isinstance(stack, Concat) or bool(self.values[arg].text)
        read = [arg] if alone else stack.args
        parts = [self._narrow(self._full(part), self.values[part]) for part in read]
        channels = [self.values[part].channels for part in read]
        pieces = [self._piece(number) for number in slices]
        names = [self._new(f"to_{self._destination(number)}") for number in slices]
        self.pieces.update(zip(slices, names, strict=True))
        self.stored.update(
            (number, piece) for number, piece in zip(slices, pieces, strict=True) if piece.sizes
        )
        text = self.dialect.mixed(parts, weight, channels, pieces)
        self.lines.append(f"{wrapped(names, bare=True)} = {text}")

    def _piece(self, number: int) -> Piece:
        """A slice of a product: if an output is a sum of it, it is to lie as that is stored."""
        width, lands = self.types[number].width, self._lands(number)
        return Piece(width) if lands is None else self.layout.piece(width, lands)

    def _lands(self, number: int) -> int | None:
        """The output that the one sum is that reads a slice, to which the rest is broadcast."""
        if len(self.readers[number]) != 1:
            return None
        (total,) = self.readers[number]
        made = self.owned.sums.get(total)
        if made is None or made.accumulation or made.embeds or len(self.readers[total]) != 1:
            return None
        op = self.program.ops[self.readers[total][0]]
        alone = sum(not self.lazy[arg] for arg in made.plain) == 1 and len(made.plain) <= _TERMS
        return op.tensor if isinstance(op, Output) and alone else None

    def _batch_mix(self, number: int, op: BatchMix) -> _Value:
        """One product for all members; or one each, where the dialect has no batches."""
        rows, cols = self.shapes[op.weights[0]]
        groups = grouped([self.types[arg].width for arg in op.args], rows) or []
        members = self.types[number].members
        names = [self._new(_mixed_name(labels)) for labels in members]
        batching = self.dialect.batching
        self.lines.append("")
        if batching is None:
            for name, weight, group in zip(names, op.weights, groups, strict=True):
                joined = self._joined([op.args[k] for k in group])
                self.lines.append(f"{name} = {self._product(joined, weight, number)}")
        else:
            count = len(names)
            self.lines.append(f"# {count} mixes of {rows} to {cols} channels at once.")
            (source,) = self.multiplies(number, [self._batch(op)])
            batch = self.batches[number] = self._new("mixed")
            self.lines.append(f"{batch} = {batching.multiply(source, self.stacks[op.weights])}")
            self.multiplied(number)
            shape = self.layout.shape(members[0], cols)
            if any(self._reads_pick(user) for user in self.readers[number]):
                parts = batching.members(batch, count, shape)
                self.lines.append(f"{wrapped(names, bare=True)} = {parts}")
        self.members[number] = [_Value(name, stem=name) for name in names]
        return _Value("")

    def _batch(self, op: BatchMix) -> str:
        """What a batch of products reads, where the dialect has batches."""
        before, batching = batch_behind(self.program.ops, op), self.dialect.batching
        if before is not None:
            return self.batches[before]
        assert batching is not None, "the dialect has batches"
        rows, _ = self.shapes[op.weights[0]]
        return batching.split(self._joined(op.args), len(op.weights), rows)

    def _operand(self, number: int) -> str:
        """What a product reads, in the dtype of the computation.

        What is put together for it has a name of its own: then what it is made of can be freed.
        """
        value = self.values[number]
        text = self._narrow(value.text, value)
        if isinstance(self.program.ops[number], Concat) and len(self.readers[number]) == 1:
            name = self._new(value.stem)
            self.lines.append(f"{name} = {text}")
            return name
        return text

    def _product(self, text: str, weight: str, number: int) -> str:
        """The product that value `number` is."""
        return self.dialect.product(text, weight, large=self._is_large(number))

    def _is_large(self, number: int) -> bool:
        """Whether a product may be large enough, with batch axes, to look for the fastest way."""
        (arg, *_) = self.program.ops[number].args
        weight = self.types[arg].width * self.types[number].width
        return bool(self.types[number].labels) or weight >= WIDE

    def _joined(self, args: Sequence[int]) -> str:
        """Values side by side along the channels, in the dtype of the computation."""
        texts = [self._full(arg) for arg in args]
        text = texts[0] if len(texts) == 1 else self.dialect.concat(texts)
        return self.dialect.cast(text) if any(self.values[arg].wide for arg in args) else text

    def _reads_pick(self, pick: int) -> bool:
        """False if a pick is read by batches alone that take their batch as it lies."""
        for user in self.readers[pick]:
            op = self.program.ops[user]
            if not isinstance(op, BatchMix) or batch_behind(self.program.ops, op) is None:
                return True
        return False

    def _pick(self, number: int, member: _Value) -> _Value:
        slices = self._tiling(number)
        if slices:
            self._split(member.text, slices)
        return member

    def _weight(self, op: Mix) -> str:
        """The rows and columns of a weight that a mix reads."""
        shape = self.shapes[op.weight]
        cols = "" if op.cols == (0, shape[-1]) else f"{op.cols[0]}:{op.cols[1]}"
        if op.args[0] in self.owned.unmade:
            return f"{op.weight}[{cols}]" if cols else op.weight
        if len(shape) == 1:
            return f"{op.weight}[None, {cols or ':'}]"
        if op.weight in self.grids:
            return self._cell(op)
        if cols or op.rows != (0, shape[0]):
            return f"{op.weight}[{op.rows[0]}:{op.rows[1]}, {cols or ':'}]"
        return op.weight

    def _cell(self, op: Mix) -> str:
        """The piece of a weight that a mix reads; the first to read one has the weight cut."""
        name, grid = op.weight, self.grids[op.weight]
        if (name, op.rows[0], op.cols[0]) not in self.cells:
            strips = self._cut(name, name, grid.rows, 0)
            for strip, (row, _) in zip(strips, grid.rows, strict=True):
                cells = self._cut(name, strip, grid.cols, -1)
                for cell, (col, _) in zip(cells, grid.cols, strict=True):
                    self.cells[name, row, col] = cell
        return self.cells[name, op.rows[0], op.cols[0]]

    def _cut(
        self, weight: str, text: str, ranges: Sequence[tuple[int, int]], axis: int
    ) -> list[str]:
        """Split a weight, or a part of it, along one axis."""
        if len(ranges) == 1:
            return [text]
        names = [self.namer(f"{weight}_part") for _ in ranges]
        split = self.dialect.split(text, [stop - start for start, stop in ranges], axis)
        self.lines.append(f"{wrapped(names, bare=True)} = {split}")
        return names

    def _split(self, text: str, slices: Sequence[int]) -> None:
        """Name all slices of a value at once: one op backward instead of one per slice."""
        names = [self._new(f"to_{self._destination(piece)}") for piece in slices]
        self.pieces.update(zip(slices, names, strict=True))
        widths = [self.types[piece].width for piece in slices]
        self.lines.append(f"{wrapped(names, bare=True)} = {self.dialect.split(text, widths)}")

    def _sliced_sum(self, number: int) -> list[int]:
        """The slices of the sum of a value without index axes and of what the constant makes."""
        if self.types[number].labels or len(self.readers[number]) != 1:
            return []
        (total,) = self.readers[number]
        op = self.program.ops[total]
        others = [self.types[arg] for arg in op.args if arg != number]
        constant = isinstance(op, Add) and not any(other.batched for other in others)
        return self._tiling(total) if constant else []

    def _tiling(self, number: int) -> list[int]:
        """The readers of a value, if they are slices that cover its channels in order."""
        return tiling(self.program.ops, self.readers, self.types, number)

    # -- sums -------------------------------------------------------------------------------

    def _add(self, number: int) -> _Value:
        made, slices = self.owned.sums[number], self._tiling(number)
        name = f"sum_{self._destination(number)}"
        if slices:
            name = _mixed_name(self.types[number].labels)
        total = self._plain(made, name) if made.plain else None
        for place, arg in enumerate(made.embeds):
            owned, covered = made.owned or place > 0, arg in made.covered
            total = self._embed(arg, total, owned=owned, covered=covered)
        assert total is not None, "a sum has operands"
        if slices:
            self._split(total.text, slices)
        return total

    def _plain(self, made: Sum, name: str) -> _Value:
        """The sum of everything but embeddings."""
        if made.accumulation:
            return self._accumulate(made.accumulation, made.plain, name)
        values = [self.values[arg] for arg in made.plain]
        if len(values) == 1:
            return values[0]
        stored = next((arg for arg in made.plain if arg in self.stored), None)
        if stored is not None:
            return self._onto(stored, [arg for arg in made.plain if arg != stored], name)
        texts = [value.text for value in values]
        target = self._new(name)
        self.lines.append(_sum(target, texts[:_TERMS]))
        # A long sum in one expression would exceed the parser's depth.
        for start in range(_TERMS, len(texts), _TERMS):
            self.lines.append(_sum(target, [target, *texts[start : start + _TERMS]]))
        return _Value(target, wide=any(value.wide for value in values), stem=target)

    def _onto(self, stored: int, others: Sequence[int], name: str) -> _Value:
        """An output: the sum of a value that lies as one is stored, and of what is broadcast."""
        terms = [self.values[arg] for arg in others]
        text = self.dialect.onto(
            self.values[stored].text, [term.text for term in terms], self.stored[stored]
        )
        wide = any(term.wide for term in terms)
        return self._assign(name, text, _Value("", wide=wide, stored=True))

    def _accumulate(self, accumulation: Accumulation, plain: Sequence[int], name: str) -> _Value:
        """Write a sum of which one mix is the base: all products and terms at once."""
        base = self.program.ops[accumulation.base]
        assert isinstance(base, Mix), "a base is a mix"
        (arg,) = base.args
        channels = self.values[arg].channels
        parts = self.multiplies(accumulation.base, self._parts(arg))
        products = [Product(parts, self._weight(base), channels=channels)]
        terms, written = [], {accumulation.base}
        for arg in plain:
            if arg in accumulation.late:
                products.append(self._late(arg, accumulation.late[arg]))
            elif arg != accumulation.base:
                terms.append(self.values[arg].text)
            written.update(_behind_broadcasts(self.program.ops, arg))
        anchors = [self.values[arg].text for arg in accumulation.anchors if arg not in written]
        target = self._new(name)
        held = self.held.get(accumulation.base)
        self.sum_of_products(
            accumulation, target, products, terms=terms, anchors=anchors, held=held
        )
        return _Value(target, stem=target)

    def sum_of_products(
        self, accumulation: Accumulation, target: str, products: Sequence[Product], **others: Any
    ) -> None:
        """Write a sum of products; for the others see `Dialect.linear_sum`."""
        self.lines += self.dialect.linear_sum(target, products, **others)
        for number in (accumulation.base, *accumulation.late.values()):
            self.multiplied(number)

    def _parts(self, number: int) -> tuple[str, ...]:
        """What a product reads, in parts if the dialect wants them."""
        op = self.program.ops[number]
        if not (self.dialect.takes_parts and isinstance(op, Concat)):
            return (self._operand(number),)
        if len(self.readers[number]) > 1 or any(self.values[arg].wide for arg in op.args):
            return (self._operand(number),)
        return tuple(self._full(arg) for arg in op.args)

    def _late(self, term: int, number: int) -> Product:
        """A product that is made when it is added, transposed if the term of the sum is."""
        op, moved = self.program.ops[number], self.program.ops[term]
        assert isinstance(op, Mix), "late terms are products"
        order = len(self.types[term].labels)
        axes = moved.axes if isinstance(moved, Transpose) else tuple(range(order))
        source = self.values[op.args[0]]
        parts = self.multiplies(number, [self._narrow(source.text, source)])
        return Product(parts, self._weight(op), tuple(axes))

    def _embed(
        self, number: int, total: _Value | None, *, owned: bool = False, covered: bool = False
    ) -> _Value:
        """Add an embedding to `total`; see `Embedding` for what is owned and covered."""
        op = self.program.ops[number]
        assert isinstance(op, Embed), "only embeddings are embedded"
        value, kind = self.values[op.args[0]], self.types[number]
        order = len(kind.labels)
        blocks = tuple(sorted(op.blocks))
        text = value.text
        if blocks != op.blocks:
            places = [axis - len(blocks) - 1 for axis in range(len(blocks))]
            source = [places[op.blocks.index(block)] for block in blocks]
            text = self._move_axes(text, source, places)
        firsts = {block[0] for block in blocks}
        marks = [":" if axis in firsts else "None" for axis in range(order)]
        target = total.text if total and owned else self._new(f"sum_{self._destination(number)}")
        self.lines += self.dialect.embed(
            Embedding(
                target=target,
                value=text,
                place=f"{text}[..., {', '.join(marks)}, :]",
                view=lambda whole: self._diagonal(whole, blocks),
                total=total.text if total else None,
                owned=owned,
                covered=covered,
                shape=self.layout.shape(kind.labels, kind.width),
                equal=tuple(
                    (block, self.layout.size(kind.labels[block[0]]))
                    for block in blocks
                    if len(block) > 1
                ),
                order=order,
            )
        )
        # Whatever the dialect, an embedding has full extent: totals and values are broadcast.
        wide = value.wide or (total is not None and total.wide)
        return _Value(target, wide=wide, stem=target)


def _behind_broadcasts(ops: Sequence[Op], number: int) -> set[int]:
    """A value and what it is a broadcast of."""
    found = {number}
    while isinstance(ops[number], Broadcast):
        (number,) = ops[number].args
        found.add(number)
    return found


def _mixed_name(labels: Sequence[Label]) -> str:
    return f"mixed_{'_'.join(map(str, labels))}"


def _sum(target: str, terms: Sequence[str]) -> str:
    text = f"{target} = {' + '.join(terms)}"
    if len(text) > _LINE:
        text = f"{target} = (\n    " + "\n    + ".join(terms) + "\n)"
    return text
