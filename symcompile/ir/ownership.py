"""Which values own their memory, and how sums are put together from what they own.

In: a Program. Out: an `Ownership`. Code generation writes by it and the cost model counts by it, so
what is paid for is what is written.

The one thing to know: a sum adds up its plain operands first and then lays embeddings on its
diagonals, in place. That needs an array of full extent that nothing else refers to. Where the plain
operands do not make one (a view, a value that others read too, a sum without batch axes), the first
embedding makes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from symcompile.ir.accumulate import Accumulation, accumulated
from symcompile.ir.extent import lazy_axes
from symcompile.ir.ops import (
    Add,
    Broadcast,
    Concat,
    Const,
    Diagonal,
    Embed,
    Input,
    Mix,
    Op,
    Pick,
    Reduce,
    Slice,
    Transpose,
)
from symcompile.ir.program import Program, fact, types_of
from symcompile.ir.readers import readers_of
from symcompile.ir.sources import UNBATCHED, sources_of
from symcompile.ir.types import Type

__all__ = ["WIDE", "Ownership", "Sum", "ownership", "ownership_once", "tiles", "tiling"]

WIDE = 2**18
"""Entries of a weight whose products are large whatever the batch."""

_MANY = 64
"""Channels of parts, on average, from which to take them one by one costs less than it saves."""


@dataclass(frozen=True, slots=True)
class Sum:
    """How one `add` is put together.

    Attributes:
        plain: operands added up first.
        embeds: operands laid on its diagonals after them, in order: embeddings nothing else reads.
        owned: True if the plain operands make a new array of full extent that nothing else refers
            to, so that the first embedding is added in place. The others always are.
        covered: those of `embeds` that depend on no input and no weight that the sum does not
            depend on by then; the others may have batch axes under vmap that the sum lacks.
        accumulation: the mix whose product everything else is added to, if there is one.
    """

    plain: tuple[int, ...]
    embeds: tuple[int, ...]
    owned: bool
    covered: frozenset[int]
    accumulation: Accumulation | None


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who owns what, by number of the value.

    Attributes:
        shared: views of an array that does not belong to them alone: a part of it, or a weight.
        unmade: constants that mixes alone read. They are never made, and the mixes are the weights.
        within: values with no array of their own, and the sum they are written as a part of:
            its embeddings, the mix that it is accumulated into with the stack that this mix reads,
            and products made when they are added.
        parted: mixes of many channels that are read in slices alone. They read and write parts:
            what they stack is put together by them, if at all, and nothing else reads it.
        apart: inputs that nothing reads but means, and mixes that are parted or that sums are
            accumulated into. To join their fixed axes to the channels, a copy, is left to those.
        sums: every `add`.
    """

    shared: frozenset[int]
    unmade: frozenset[int]
    within: Mapping[int, int]
    parted: frozenset[int]
    apart: frozenset[int]
    sums: Mapping[int, Sum]


@fact
def ownership(program: Program) -> Ownership:
    """Work out who owns what."""
    return ownership_once(program, UNBATCHED)


def ownership_once(program: Program, batched: Mapping[int, int]) -> Ownership:
    """Who owns what once some mixes are computed at once with others.

    Args:
        batched: the mixes, see `sources_of`. Each is then a part of an array that it shares.
    """
    ops, readers = program.ops, readers_of(program)
    types, lazy = types_of(program), lazy_axes(program)
    sources = sources_of(program, batched)
    in_place = accumulated(program, sources, batched)
    fresh: set[int] = set()  # new arrays that nothing else refers to, made by sums and embeddings
    shared: set[int] = set()
    unmade: set[int] = set()
    within: dict[int, int] = {}
    sums: dict[int, Sum] = {}

    def makes_an_array(plain: Sequence[int]) -> bool:
        if len(plain) == 1:
            return plain[0] in fresh and len(readers[plain[0]]) == 1
        # Embeddings have batch axes always, and a sum of constants has none.
        return any(types[arg].batched for arg in plain)

    for number, op in enumerate(ops):
        match op:
            case Const() if all(isinstance(ops[reader], Mix) for reader in readers[number]):
                unmade.add(number)
            case Slice() | Pick():
                shared.add(number)
            case Mix() if number in batched:
                shared.add(number)
            case Mix(args=(arg,)) if arg in unmade:
                shared.add(number)
            case Transpose(args=(arg,)) | Diagonal(args=(arg,)) | Broadcast(args=(arg,)):
                if arg in shared:
                    shared.add(number)
            case Embed():
                fresh.add(number)
            case Add(args=args):
                embeds = tuple(
                    arg for arg in args if isinstance(ops[arg], Embed) and len(readers[arg]) == 1
                )
                within.update(dict.fromkeys(embeds, number))
                plain = tuple(arg for arg in args if arg not in embeds)
                accumulation = in_place.get(number)
                if accumulation:
                    within[accumulation.base] = number
                    for term, mix in accumulation.late.items():
                        within[term] = within[mix] = number
                    (stack,) = ops[accumulation.base].args
                    if isinstance(ops[stack], Concat) and len(readers[stack]) == 1:
                        within[stack] = number
                new = accumulation is not None or makes_an_array(plain)
                # Anchors make an accumulated sum depend on all that is added to it.
                covered = embeds if accumulation else _covered(plain, embeds, sources)
                full = new and not frozenset.intersection(*(lazy[arg] for arg in plain))
                sums[number] = Sum(plain, embeds, full, frozenset(covered), accumulation)
                if new or embeds:
                    fresh.add(number)
                elif len(plain) == 1 and plain[0] in shared:
                    shared.add(number)
    parted = frozenset(
        number
        for number, op in enumerate(ops)
        if isinstance(op, Mix)
        and number not in batched
        and number not in within
        and not lazy[number]
        and _is_wide(program, types, number)
        and (pieces := tiling(ops, readers, types, number))
        and types[number].width >= _MANY * len(pieces)
    )
    stacks = {
        op.args[0]
        for op in map(ops.__getitem__, parted)
        if isinstance(ops[op.args[0]], Concat) and len(readers[op.args[0]]) == 1
    }
    bases = {found.base for found in in_place.values()}
    apart = _apart(ops, readers, bases | parted | stacks)
    return Ownership(frozenset(shared), frozenset(unmade), within, parted, apart, sums)


def tiling(
    ops: Sequence[Op], readers: Sequence[tuple[int, ...]], types: Sequence[Type], number: int
) -> list[int]:
    """The readers of a value, if they are several slices that cover its channels in order."""
    pieces = [op for op in (ops[reader] for reader in readers[number]) if isinstance(op, Slice)]
    cover = tiles([(piece.start, piece.stop) for piece in pieces], types[number].width)
    return list(readers[number]) if cover and len(readers[number]) == len(pieces) > 1 else []


def tiles(ranges: Iterable[tuple[int, int]], length: int) -> bool:
    """Whether half-open ranges, in order, cover a length without gap or overlap.

    >>> tiles([(0, 2), (2, 5)], 5), tiles([(0, 2), (3, 5)], 5), tiles([(0, 2)], 5)
    (True, False, False)
    """
    place = 0
    for start, stop in ranges:
        if start != place:
            return False
        place = stop
    return place == length


def _is_wide(program: Program, types: Sequence[Type], number: int) -> bool:
    """Whether a mix has so many channels that its weight is large, and of each that it reads."""
    op = program.ops[number]
    assert isinstance(op, Mix), "asked of mixes"
    shape, stack = program.matrices[op.weight], program.ops[op.args[0]]
    kind, read = types[number], types[op.args[0]]
    return (
        len(shape) == 2
        and kind.batched
        and read.width * kind.width >= WIDE
        and read.width >= _MANY * (len(stack.args) if isinstance(stack, Concat) else 1)
        and not isinstance(stack, Const)
    )


def _apart(
    ops: Sequence[Op], readers: Sequence[tuple[int, ...]], takers: Collection[int]
) -> frozenset[int]:
    """The inputs that `takers` read, and that nothing else reads but reductions."""
    found = []
    for number, op in enumerate(ops):
        others = [reader for reader in readers[number] if not isinstance(ops[reader], Reduce)]
        if isinstance(op, Input) and others and all(reader in takers for reader in others):
            found.append(number)
    return frozenset(found)


def _covered(plain: Sequence[int], embeds: Sequence[int], sources: Sequence[int]) -> list[int]:
    """The embeddings whose sources are all among those of what comes before them in the sum."""
    found, before = [], 0
    for arg in plain:
        before |= sources[arg]
    for arg in embeds:
        if not sources[arg] & ~before:
            found.append(arg)
        before |= sources[arg]
    return found
