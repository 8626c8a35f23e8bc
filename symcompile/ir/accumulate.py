"""Which sums are accumulated into the product of a mix.

In: a Program. Out: for each such sum the mix whose result it is accumulated into, the terms that
anchor it, and the terms that are made only when they are added. A fresh array costs about as much
as the arithmetic that fills it, so of a large sum only one operand should ever be allocated.

The one thing to know: under vmap a term may have a batch axis that the product lacks, and then a
sum in place would not fit. So there a zero made from each such term, the anchors, is added to the
weight of the mix, and one from each factor of what is made late: then the product depends on
everything that is added to it.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from symcompile.ir.extent import lazy_axes
from symcompile.ir.ops import Add, Broadcast, Concat, Const, Embed, Mix, Transpose
from symcompile.ir.program import Program, types_of
from symcompile.ir.readers import readers_of
from symcompile.ir.sources import sources_of
from symcompile.ir.types import Type

__all__ = ["Accumulation", "accumulated", "accumulations"]


@dataclass(frozen=True, slots=True)
class Accumulation:
    """A sum in place.

    Attributes:
        base: the mix whose product is added to.
        anchors: the values a zero is made from.
        late: terms that are products, maybe transposed, by number of the term its mix.
            Made only when they are added, one after the other, they need memory one at a time.
    """

    base: int
    anchors: tuple[int, ...]
    late: Mapping[int, int] = field(default_factory=dict)


def accumulations(program: Program) -> dict[int, Accumulation]:
    """By number of the sum; none unless the program is `in_place`.

    Sums over fewer than two index axes are too small to matter.
    """
    return accumulated(
        program, types_of(program), lazy_axes(program), readers_of(program), sources_of(program)
    )


def accumulated(
    program: Program,
    types: Sequence[Type],
    lazy: Sequence[frozenset[int]],
    readers: Sequence[tuple[int, ...]],
    sources: Sequence[int],
    batched: Container[int] = (),
) -> dict[int, Accumulation]:
    """`accumulations`, for those who know more about the program already.

    Args:
        types, lazy, readers, sources: of every value.
        batched: mixes that have no product of their own, as they are to be computed at once.
    """
    if not program.in_place:
        return {}
    shapes = program.matrices

    def is_base(arg: int, total: int) -> bool:
        op = program.ops[arg]
        return (
            isinstance(op, Mix)
            and arg not in batched
            and len(shapes[op.weight]) == 2
            and not isinstance(program.ops[op.args[0]], Const)
            and types[arg].batched
            and not lazy[arg]
            and readers[arg] == (total,)
        )

    def late_mix(arg: int) -> int | None:
        if isinstance(program.ops[arg], Transpose) and len(readers[arg]) == 1:
            (arg,) = program.ops[arg].args
        op = program.ops[arg]
        if not (isinstance(op, Mix) and len(readers[arg]) == 1 and not lazy[arg]):
            return None
        if not types[arg].batched:
            return None
        if arg in batched or len(shapes[op.weight]) != 2:
            return None
        return None if isinstance(program.ops[op.args[0]], Concat | Const) else arg

    found: dict[int, Accumulation] = {}
    for number, op in enumerate(program.ops):
        if not isinstance(op, Add) or len(op.args) < 2 or len(types[number].labels) < 2:
            continue
        base = next((arg for arg in op.args if is_base(arg, number)), None)
        if base is None:
            continue
        late = {arg: made for arg in op.args if (made := late_mix(arg)) not in (None, base)}
        covered, anchors = sources[base], []
        for arg in op.args:
            if sources[arg] & ~covered:
                covered |= sources[arg]
                while isinstance(program.ops[arg], Broadcast | Embed):
                    arg = program.ops[arg].args[0]
                if arg not in late:
                    anchors.append(arg)
        found[number] = Accumulation(base, tuple(anchors), late)
    return found
