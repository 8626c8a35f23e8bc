"""The work each op of a Program does, as generated code executes it eagerly.

In: a Program. Out: per op the entries it reads and writes, its operations and its kernel launches,
as polynomials in label sizes for one example (no batch).

The one thing to know: diagonals, transposes, slices and broadcasts are views and free; what reads
them pays. A broadcast axis has extent one until something needs it whole (`ir.lazy_axes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from math import inf, prod

from symcompile.cost.layout import layouts_of, moves_on_the_way_in, moves_on_the_way_out
from symcompile.cost.polynomial import Polynomial
from symcompile.ir import (
    Accumulation,
    Add,
    BatchMix,
    Concat,
    Const,
    Embed,
    Input,
    Mix,
    Op,
    Output,
    Program,
    Reduce,
    Sum,
    batch_behind,
    lazy_axes,
    ownership,
    ownership_once,
    types_of,
)

__all__ = ["FILL_LAUNCHES", "Accountant", "Work", "total_work", "work_of"]

_NOTHING = Polynomial()

_FEW_CHANNELS = 512
"""Channels multiplied together up to which kernels are the quickest; twice those of the result."""

_MANY_ENTRIES = 2**11
"""Entries of a result of which 64 examples are enough for a kernel to be the quickest."""

_ROOM = 8
"""Products, other terms, and axes with those of batch and channels that a kernel has room for."""

FILL_LAUNCHES = 2
"""Kernels that put all filled matrices together: zeros, and the weights' entries among them."""


@dataclass(frozen=True, slots=True)
class Work:
    """What running something takes.

    Attributes:
        read, written: entries moved (not bytes).
        flops: operations; a multiply-add is two.
        launches: kernels started in eager execution.
        placed: entries written into arrays that are there already; all others go to new arrays.
    """

    read: Polynomial = _NOTHING
    written: Polynomial = _NOTHING
    flops: Polynomial = _NOTHING
    launches: int = 0
    placed: Polynomial = _NOTHING

    def __mul__(self, factor: int) -> Work:
        return Work(
            self.read * factor,
            self.written * factor,
            self.flops * factor,
            self.launches * factor,
            self.placed * factor,
        )

    @property
    def moved(self) -> Polynomial:
        """Entries read and written."""
        return self.read + self.written

    @property
    def new(self) -> Polynomial:
        """Entries written to new arrays."""
        return self.written + self.placed * -1


def total_work(parts: Sequence[Work]) -> Work:
    """The sum."""
    if len(parts) == 1:
        return parts[0]
    return Work(
        Polynomial.sum(part.read for part in parts),
        Polynomial.sum(part.written for part in parts),
        Polynomial.sum(part.flops for part in parts),
        sum(part.launches for part in parts),
        Polynomial.sum(part.placed for part in parts),
    )


def work_of(program: Program, *, one_pass: bool = False) -> tuple[Work, ...]:
    """The work of every op.

    Args:
        one_pass: on a machine with kernels for sums of products, see `Machine`.
    """
    return Accountant(program, one_pass=one_pass).works()


class Accountant:
    """Work and storage of ops, worked out from types, lazy axes, layouts and ownership."""

    def __init__(self, program: Program, *, one_pass: bool = False) -> None:
        self.program = program
        self.one_pass = one_pass
        self.types = types_of(program)
        self.shapes = program.matrices
        self.first = _first_filled(program)
        self.lazy = lazy_axes(program)
        self.layouts = layouts_of(program)
        self.owned = ownership(program)
        self.fused = self._fused()

    def works(self) -> tuple[Work, ...]:
        """The work of every op; the first that reads a filled matrix does the work of all."""
        works = [self.work_at(number) for number in range(len(self.program.ops))]
        if self.first is not None:
            works[self.first] = total_work([self._filling(), works[self.first]])
        return tuple(works)

    def work_at(self, number: int) -> Work:
        """The work of one op, filled matrices left out."""
        return self._work(number, self.program.ops[number])

    def once(self, batched: Mapping[int, int]) -> Accountant:
        """The same once some mixes are computed at once; their own work stays as it was.

        Args:
            batched: the mixes, see `sources_of`.
        """
        other = copy(self)
        other.owned = ownership_once(self.program, batched)
        other.fused = other._fused()
        return other

    def storage_of(self, number: int) -> tuple[Polynomial, Polynomial]:
        """Entries an op makes storage for, and entries it needs on top while it runs."""
        op = self.program.ops[number]
        if number in self.owned.within or number in self.owned.unmade:
            return _NOTHING, _NOTHING
        match op:
            case Input() if self._moves_in(number) and number not in self.owned.apart:
                return self._whole(number), _NOTHING
            case Const() | Embed():
                return self._whole(number), _NOTHING
            case Reduce(args=(arg,)):
                lazy = self.program.reduce == "sum" and self.lazy[arg]
                return self._extent(number), self._whole(arg) if lazy else _NOTHING
            case Concat():
                copies = [self._whole(arg) for arg in op.args if self.lazy[arg] or self._joins(arg)]
                return self._whole(number), Polynomial.sum(copies)
            case Mix(args=(arg,)) if arg not in self.owned.unmade:
                return self._extent(number), self._extent(arg) if self._copied(arg) else _NOTHING
            case BatchMix():
                return self._whole(number), Polynomial.sum(self._batched(op))
            case Add():
                return self._sum_storage(number)
            case Output():
                times = self._copies_out(op)
                whole = self._whole(number)
                return whole * min(times, 1), whole * (times > 1)
        return _NOTHING, _NOTHING

    # -- facts ----------------------------------------------------------------------------------

    def _fused(self) -> frozenset[int]:
        """Stacks, products and terms that are read and written by the sum they are a part of.

        A kernel makes it in one pass, if there are few channels; see `Machine.one_pass`.
        """
        fused: set[int] = set()
        for number, made in self.owned.sums.items():
            if self.one_pass and made.accumulation and self._suits(number, made):
                base, late = made.accumulation.base, made.accumulation.late
                stack = self.program.ops[base].args[0]
                fused.update((base, *late, *late.values()))
                fused.update({stack} & self.owned.within.keys())
        return frozenset(fused)

    def _suits(self, number: int, made: Sum) -> bool:
        """Whether a sum counts as made by kernels, quicker than an op for every operand.

        See `_fits` in generated modules, which hands them sums of few channels too.
        """
        assert made.accumulation, "kernels make sums of products"
        mixes = [made.accumulation.base, *made.accumulation.late.values()]
        read = [width for mix in mixes for width in self._widths(*self.program.ops[mix].args)]
        kind, sizes = self.types[number], dict(self.program.sizes)
        entries = prod(sizes.get(label, inf) for label in kind.labels) * kind.width
        return (
            max(sum(read), 2 * kind.width) <= _FEW_CHANNELS
            and max(len(mixes), len(made.plain) - len(mixes), len(kind.labels) + 2) <= _ROOM
            and all(width % 8 == 0 or width > 16 for width in (*read, kind.width))
            and entries >= _MANY_ENTRIES
        )

    def _widths(self, value: int) -> list[int]:
        """Of what a product reads, or of the parts it reads instead."""
        parts = self.program.ops[value].args if value in self.owned.within else (value,)
        return [self.types[part].width for part in parts]

    def _copies_out(self, op: Output) -> int:
        """How often an output is copied: to full extent, out of a shared array, to merge axes."""
        (arg,) = op.args
        tensor = self.program.outputs[op.tensor]
        lazy = bool(self.lazy[arg])
        order = range(len(tensor.labels)) if lazy else self.layouts[arg].order
        return lazy + (arg in self.owned.shared) + moves_on_the_way_out(tensor, order)

    def _moves_in(self, number: int) -> bool:
        """Whether an input is copied to join its fixed axes to the channels."""
        op = self.program.ops[number]
        return isinstance(op, Input) and moves_on_the_way_in(self.program.inputs[op.tensor])

    def _joins(self, value: int) -> bool:
        """Whether what reads an input joins its fixed axes to the channels, which is a copy."""
        return value in self.owned.apart and self._moves_in(value)

    def _copied(self, value: int) -> bool:
        """Whether a product copies what it reads: it is no matrix as it lies."""
        return self._joins(value) or not self.layouts[value].in_rows

    def _extent(self, value: int, lazy: frozenset[int] | None = None) -> Polynomial:
        """Entries actually stored."""
        kind = self.types[value]
        skipped = self.lazy[value] if lazy is None else lazy
        labels = [label for axis, label in enumerate(kind.labels) if axis not in skipped]
        return Polynomial.of(labels, kind.width)

    def _whole(self, value: int) -> Polynomial:
        return self._extent(value, frozenset())

    # -- work -----------------------------------------------------------------------------------

    def _work(self, number: int, op: Op) -> Work:
        match op:
            case Input() if self._moves_in(number) and number not in self.owned.apart:
                return self._copy(number)
            case Const() if number not in self.owned.unmade:
                return Work(_NOTHING, self._whole(number), _NOTHING, 1)
            case Reduce(args=(arg,)):
                if self.program.reduce == "mean":
                    read, before = self._extent(arg), Work()
                else:
                    read, before = self._whole(arg), self._expanded(arg)
                return total_work([before, Work(read, self._extent(number), read, 1)])
            case Concat() if number in self.fused:
                return total_work([Work(), *map(self._expanded, op.args)])
            case Concat():
                size = self._whole(number)
                copies = [self._expanded(arg) for arg in op.args]
                copies += [self._copy(arg) for arg in op.args if self._joins(arg)]
                return total_work([*copies, Work(size, size, _NOTHING, 1)])
            case Mix(args=(arg,)) if arg not in self.owned.unmade:
                return self._mix(number, op)
            case BatchMix(weights=weights):
                return self._batch_mix(number, op, weights)
            case Add():
                return self._add(number)
            case Embed(args=(arg,)) if number not in self.owned.within:
                return total_work([self._zeros(number), self._onto_diagonal(arg)])
            case Output(args=(arg,)):
                times = self._copies_out(op)
                if self.lazy[arg]:
                    return total_work([self._expanded(arg), self._copy(number) * (times - 1)])
                return self._copy(number) * times
        return Work()

    def _mix(self, number: int, op: Mix) -> Work:
        (arg,) = op.args
        inputs, result = self._extent(arg), self._extent(number)
        rows = op.rows[1] - op.rows[0]
        weight = Polynomial.of((), rows * self.types[number].width)
        flops = result * (2 * rows)
        if number in self.fused:
            return Work(inputs + weight, _NOTHING, flops)
        matmul = Work(inputs + weight, result, flops, 1)
        if not self._copied(arg):
            return matmul
        return total_work([Work(inputs, inputs, _NOTHING, 1), matmul])

    def _filling(self) -> Work:
        """All filled matrices at once. A place is an integer of eight bytes, two entries long."""
        whole = sum(prod(filled.shape) for filled in self.program.filled)
        entries = Polynomial.of((), sum(filled.entries for filled in self.program.filled))
        zeros = Work(_NOTHING, Polynomial.of((), whole), _NOTHING, 1)
        return total_work([zeros, Work(entries * 3, entries, _NOTHING, 1, placed=entries)])

    def _batch_mix(self, number: int, op: BatchMix, weights: tuple[str, ...]) -> Work:
        copied, result = Polynomial.sum(self._batched(op)), self._whole(number)
        inputs = Polynomial.sum(self._whole(arg) for arg in op.args)
        rows, cols = self.shapes[weights[0]]
        weight = Polynomial.of((), rows * cols * len(weights))
        matmul = Work(inputs + weight, result, result * (2 * rows), 1)
        return total_work([Work(copied, copied, _NOTHING, 1), matmul]) if copied.terms else matmul

    def _batched(self, op: BatchMix) -> list[Polynomial]:
        """What is copied to lie side by side: all operands, or none."""
        if batch_behind(self.program.ops, op) is not None:
            return []
        return [self._whole(arg) for arg in op.args]

    def _add(self, number: int) -> Work:
        made = self.owned.sums[number]
        if made.accumulation:
            return self._accumulate(number, made, made.accumulation)
        parts: list[Work] = []
        lazy = frozenset(range(len(self.types[number].labels)))
        for place, arg in enumerate(made.plain):
            before = self._extent(number, lazy)
            lazy &= self.lazy[arg]
            if place:
                after = self._extent(number, lazy)
                parts.append(Work(before + self._extent(arg), after, after, 1))
        whole = self._whole(number)
        for place, arg in enumerate(made.embeds):
            if not place and not made.owned:
                parts.append(self._zeros(number))
                if made.plain:
                    parts.append(Work(whole + self._extent(number, lazy), whole, whole, 1))
            elif arg not in made.covered:
                # A zero that depends on the embedding is added first, for vmap's sake.
                one = Polynomial.of(())
                parts.append(Work(whole + one, whole + one, whole, 2))
            parts.append(self._onto_diagonal(self.program.ops[arg].args[0]))
        return total_work(parts)

    def _accumulate(self, number: int, made: Sum, accumulation: Accumulation) -> Work:
        """Sums in place: the matmul itself is the mix's."""
        whole = self._whole(number)
        diagonals = [self._onto_diagonal(self.program.ops[arg].args[0]) for arg in made.embeds]
        if accumulation.base in self.fused:
            apart = [arg for arg in made.plain if arg not in self.fused]
            read = Polynomial.sum(self._extent(arg) for arg in apart)
            return total_work([Work(read, whole, whole * len(apart), 1), *diagonals])
        terms = [
            Work(whole + self._extent(arg), whole, whole, 1, placed=whole)
            for arg in made.plain
            if arg != accumulation.base
        ]
        return total_work([*terms, *diagonals])

    def _sum_storage(self, number: int) -> tuple[Polynomial, Polynomial]:
        made, whole = self.owned.sums[number], self._whole(number)
        if made.accumulation:
            (arg,) = self.program.ops[made.accumulation.base].args
            stacked = arg in self.owned.within or self._copied(arg)
            # One after the other: what the base multiplies, then every product made late and, if it
            # does not lie in rows, what that one multiplies.
            labels, wide = self.types[number].labels, self.types[number].width
            width = self.types[arg].width * stacked
            for mix in made.accumulation.late.values():
                (read,) = self.program.ops[mix].args
                width = max(width, wide + self.types[read].width * self._copied(read))
            return whole, Polynomial.of(labels, width) if width else _NOTHING
        if made.embeds and not made.owned:
            return whole, whole if made.plain else _NOTHING
        if len(made.covered) < len(made.embeds):
            return whole, whole
        if len(made.plain) == 1:
            return _NOTHING, _NOTHING
        # Of a + b + c the first sum is alive while the second is written.
        lazy = frozenset.intersection(*(self.lazy[arg] for arg in made.plain[:-1]))
        before = self._extent(number, lazy) if len(made.plain) > 2 else _NOTHING
        return self._extent(number), before

    def _copy(self, number: int) -> Work:
        return Work(self._whole(number), self._whole(number), _NOTHING, 1)

    def _expanded(self, value: int) -> Work:
        """Writing out what a broadcast left lazy."""
        if not self.lazy[value]:
            return Work()
        return Work(self._extent(value), self._whole(value), _NOTHING, 1)

    def _zeros(self, number: int) -> Work:
        return Work(_NOTHING, self._whole(number), _NOTHING, 1)

    def _onto_diagonal(self, value: int) -> Work:
        stored, placed = self._extent(value), self._whole(value)
        return Work(stored + placed, placed, placed, 1, placed=placed)


def _first_filled(program: Program) -> int | None:
    """The first op that reads a filled matrix."""
    names = {filled.name for filled in program.filled}
    return next(
        (k for k, op in enumerate(program.ops) if isinstance(op, Mix) and op.weight in names), None
    )
