"""Which inputs and weights a value is made from.

In: a Program. Out: per value a set of bits. A sum in place is safe under vmap only where the sum
depends on everything that the summand depends on: otherwise the summand may have a batch axis that
the sum has not.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from symcompile.ir.ops import BatchMix, Input, Mix
from symcompile.ir.program import Program

__all__ = ["UNBATCHED", "sources_of"]

UNBATCHED: Mapping[int, int] = MappingProxyType({})
"""No mix is to be computed at once with others."""


def sources_of(program: Program, batched: Mapping[int, int] = UNBATCHED) -> tuple[int, ...]:
    """Per value, the inputs and weights it is made from, as bits.

    Args:
        batched: mixes that are to be computed at once with others, by number, and the sources of
            all that are computed with them.
    """
    names = {name: 1 << place for place, (name, _) in enumerate(program.weights)}
    for filled in program.filled:
        names[filled.name] = 0
        for weight in filled.weights:
            names[filled.name] |= names[weight]
    found: list[int] = []
    for number, op in enumerate(program.ops):
        bits = 0
        for arg in op.args:
            bits |= found[arg]
        if isinstance(op, Input):
            bits |= 1 << (len(program.weights) + op.tensor)
        elif isinstance(op, Mix):
            bits |= batched.get(number, names[op.weight])
        elif isinstance(op, BatchMix):
            for weight in op.weights:
                bits |= names[weight]
        found.append(bits)
    return tuple(found)
