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

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from symcompile.ir.extent import lazy_axes
from symcompile.ir.ops import Add, Broadcast, Concat, Const, Embed, Mix, Transpose
from symcompile.ir.program import Program, fact, types_of
from symcompile.ir.readers import readers_of
from symcompile.ir.sources import sources_of
from symcompile.ir.types import Type

__all__ = ["Accumulation", "accumulated", "accumulations", "large_sums"]

_SMALL = 8
"""How many times a sum over one index axis goes into the largest tensor if it is small."""

_MANY = 512
"""Channels from which a product takes several times as long as writing its result twice."""


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


@fact
def accumulations(program: Program) -> Mapping[int, Accumulation]:
    """By number of the sum, for large ones; none unless the program is `in_place`."""
    return accumulated(program, sources_of(program))


def accumulated(
    program: Program, sources: Sequence[int], batched: Container[int] = ()
) -> dict[int, Accumulation]:
    """The same once some mixes are computed at once with others.

    Args:
        sources: of every value, see `sources_of`.
        batched: the mixes: they have no product of their own.
    """
    if not program.in_place:
        return {}
    types, lazy, readers = types_of(program), lazy_axes(program), readers_of(program)
    shapes, is_large = program.matrices, large_sums(program)

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
        if not isinstance(op, Add) or len(op.args) < 2 or not is_large(types[number]):
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


def large_sums(program: Program) -> Callable[[Type], bool]:
    """Tells of a sum, by its type, whether it is so large that its memory matters.

    Over two index axes or more it is. Over one it is unless it is small beside the largest tensor,
    or has so many channels that a product takes far longer than a sum. Where sizes are not known,
    tensors of one axis are taken for equally long, for large beside those of none and for small
    beside those of more.
    """
    sizes = dict(program.sizes)
    stored = [tensor.type for tensor in (*program.inputs, *program.outputs)]
    known = all(label in sizes for kind in stored for label in kind.labels)
    order = max((len(kind.labels) for kind in stored), default=0)

    def entries(kind: Type) -> int:
        return prod(sizes[label] for label in kind.labels if known) * kind.width

    most = max((entries(kind) for kind in stored if known or kind.labels), default=0)

    def is_large(kind: Type) -> bool:
        if len(kind.labels) != 1:
            return len(kind.labels) > 1
        return (known or order == 1) and kind.width < _MANY and entries(kind) * _SMALL > most

    return is_large
